/**
 * How a command ends badly (SPEC §3, §12): the problem on stderr, its exit code from the catalogue.
 *
 * Under `--json` the problem goes out as it is, one JSON document. A person gets the sentence, the code, each place of the
 * command line that is wrong, what the refusal met, and the hint; all text of the daemon's is made safe first.
 */
import { catalogue, exitCode, type Problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import { isTerminal, note, type Output, plain } from "./output.ts";

/** Exit code of a command that Ctrl-C ended. */
export const INTERRUPTED = 130;
/** Exit code of a command that SIGTERM ended: 128 and the number of the signal, as shells have it. */
export const TERMINATED = 143;

/** Which command met the problem. */
export interface Place {
  /** The words the user typed, `mp workspace create`. */
  readonly path: string;
  /** Where JSON pointers lead on the command line (`/payload/name` → `NAME`). */
  readonly pointers: Readonly<Record<string, string>>;
}

/**
 * Print a problem.
 * @returns the exit code
 */
export async function complain(
  found: Problem,
  out: Pick<Output, "asJson" | "env">,
  place: Place = { path: "mp", pointers: {} },
): Promise<number> {
  const terminal = await isTerminal(2);
  if (out.asJson) await note(JSON.stringify(found, null, terminal ? 2 : undefined));
  else await note(terminal ? await coloured(found, out, place) : inWords(found, place, (text) => text));
  return exitCode(found);
}

async function coloured(found: Problem, { env }: Pick<Output, "env">, place: Place): Promise<string> {
  const { paint, safe } = await import("./terminal.ts");
  const colours = paint(!env.NO_COLOR && env.TERM !== "dumb");
  const text = inWords(found, place, safe);
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
function inWords(found: Problem, { path, pointers }: Place, clean: (text: string) => string): string {
  const places = (found.errors ?? []).map(({ pointer, message }) => ({
    place: pointers[pointer] ?? GENERAL[pointer] ?? nearestPlace(pointer, pointers),
    message: onCommandLine(message, pointer, pointers),
  }));
  const [only] = places;
  // With one wrong place its own sentence says more than the general one.
  const detail = places.length === 1 && only ? `${only.place} ${only.message}` : found.detail;
  // What is wrong with the command line itself needs no code to be looked up.
  const isUsage = found.code === "invalid_schema" && found.errors === undefined;
  const code =
    found.reason === null || detail.includes(found.reason) ? found.code : `${found.code}, ${found.reason}`;
  const told = Object.entries(found.details ?? {})
    .map(inDetail)
    // The sentence about a rule is always the same one: what it met is said only here.
    .filter(([, text]) => found.reason !== null || text === NONE || !detail.includes(text));
  const hint = found.hint === catalogue.invalid_schema.hint ? `see '${path} --help'` : filled(found);
  return [
    `error: ${detail.split("\n").map(clean).join("\n  ")}`,
    ...(isUsage ? [] : [`  code: ${code}`]),
    ...(places.length > 1 ? places.map(({ place, message }) => `  ${place} ${message}`) : []),
    ...(isUsage ? [] : told).map(([name, text]) => `  ${name}: ${clean(text)}`),
    ...(found.code === "internal" && found.trace_id ? [`  trace_id: ${found.trace_id}`] : []),
    `  hint: ${hint.split("\n").map(clean).join("\n")}`,
  ].join("\n");
}

/** What the daemon says of a value, in the words of the command line: flags for fields, times with units. */
function onCommandLine(message: string, at: string, pointers: Place["pointers"]): string {
  const limit = (sign: string, number: string) => {
    const value = /_ms$/.test(at) ? spanOf(Number(number)) : number;
    return `${sign === ">" ? "at least" : "at most"} ${value}`;
  };
  const said = message.replace(/([<>])= (\d+)/, (_, sign: string, number: string) => limit(sign, number));
  if (at !== "/payload") return said;
  return said.replace(/\b[a-z]+(?:_[a-z]+)+\b/g, (name) => pointers[`/payload/${name}`] ?? name);
}

/** The hint with what the refusal met in the places of its commands, so that a line of it can be given as it stands. */
function filled({ hint, reason, details = {} }: Problem): string {
  // Those say where the other thing lies: the command wants to know where this one does.
  if (reason === null || reason.includes(".other_")) return hint;
  return hint.replace(/\b[A-Z]{4,}\b/g, (word) => {
    const name = word.toLowerCase();
    const value = details[`${name}_id`] ?? details[name];
    return typeof value === "string" || typeof value === "number" ? String(value) : word;
  });
}

const NONE = "none";

/** A detail as a person reads it: what is not there is said to be none, a length of time has units and no `_ms`. */
function inDetail([name, value]: readonly [string, unknown]): readonly [string, string] {
  return typeof value === "number" && name.endsWith("_ms")
    ? [name.replace(/_ms$/, ""), spanOf(value)]
    : [name, plain(value) || NONE];
}

/** `1` → ` (number 2)`: where in a list or a structure. */
function inside(path: string): string {
  const parts = path.split("/").map((part) => (/^\d+$/.test(part) ? `number ${Number(part) + 1}` : part));
  return ` (${parts.join(", ")})`;
}

/** A place inside a value, for instance `/payload/types/1`: the flag of the part that has one. */
function nearestPlace(pointer: string, pointers: Readonly<Record<string, string>>): string {
  for (let end = pointer.lastIndexOf("/"); end > 0; end = pointer.lastIndexOf("/", end - 1)) {
    const known = pointers[pointer.slice(0, end)];
    if (known) return `${known}${inside(pointer.slice(end + 1))}`;
  }
  return pointer === "" || pointer === "/payload"
    ? "the request"
    : pointer
        .slice(1)
        .replace(/^payload\//, "")
        .replaceAll("/", " ");
}
