/**
 * How a command ends badly (SPEC §3, §12): the problem on stderr, its exit code from the catalogue.
 *
 * Under `--json` the problem goes out as it is, one JSON document. A person gets the sentence, the code, each place of the
 * command line that is wrong, what the refusal met, and the hint; all text of the daemon's is made safe first.
 */
import { exitCode, type Problem } from "../kernel/problems.ts";
import { isTerminal, note, type Output, plain } from "./output.ts";

/** Exit code of a command that Ctrl-C ended. */
export const INTERRUPTED = 130;

/**
 * Print a problem.
 * @param pointers where JSON pointers lead on the command line (`/payload/name` → `NAME`)
 * @returns the exit code
 */
export async function complain(
  found: Problem,
  out: Pick<Output, "asJson" | "env">,
  pointers: Readonly<Record<string, string>> = {},
): Promise<number> {
  const terminal = await isTerminal(2);
  if (out.asJson) await note(JSON.stringify(found, null, terminal ? 2 : undefined));
  else await note(terminal ? await coloured(found, out, pointers) : inWords(found, pointers, (text) => text));
  return exitCode(found);
}

async function coloured(
  found: Problem,
  { env }: Pick<Output, "env">,
  pointers: Readonly<Record<string, string>>,
): Promise<string> {
  const { paint, safe } = await import("./terminal.ts");
  const colours = paint(!env.NO_COLOR && env.TERM !== "dumb");
  const text = inWords(found, pointers, safe);
  return text
    .replace(/^error:/, colours.bold(colours.red("error:")))
    .replace(/^( {2}hint:)/m, colours.cyan("$1"));
}

const GENERAL: Readonly<Record<string, string>> = {
  "/idempotency_key": "--key",
  "/expected_version": "--expected-version",
  "/trace_id": "--trace-id",
};

/** The problem as people read it; `clean` is applied to every part. */
export function inWords(
  found: Problem,
  pointers: Readonly<Record<string, string>>,
  clean: (text: string) => string,
): string {
  const places = (found.errors ?? []).map(({ pointer, message }) => ({
    place: pointers[pointer] ?? GENERAL[pointer] ?? nearestPlace(pointer, pointers),
    message,
  }));
  const [only] = places;
  // With one wrong place its own sentence says more than the general one.
  const detail = places.length === 1 && only ? `${only.place} ${only.message}` : found.detail;
  const said = found.reason === null ? found.code : `${found.code}, ${found.reason}`;
  return [
    `error: ${detail.split("\n").map(clean).join("\n  ")}`,
    `  code: ${said}`,
    ...(places.length > 1 ? places.map(({ place, message }) => `  ${place} ${message}`) : []),
    ...Object.entries(found.details ?? {}).map(([name, value]) => `  ${name}: ${clean(plain(value))}`),
    ...(found.code === "internal" && found.trace_id ? [`  trace_id: ${found.trace_id}`] : []),
    `  hint: ${clean(found.hint)}`,
  ].join("\n");
}

/** A place inside a value, for instance `/payload/types/1`: the flag of the part that has one. */
function nearestPlace(pointer: string, pointers: Readonly<Record<string, string>>): string {
  for (let end = pointer.lastIndexOf("/"); end > 0; end = pointer.lastIndexOf("/", end - 1)) {
    const known = pointers[pointer.slice(0, end)];
    if (known) return `${known} (${pointer.slice(end)})`;
  }
  return pointer === "" ? "the request" : pointer;
}
