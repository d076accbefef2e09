/**
 * `mp daemon logs`: the end of a file of JSON lines, and what is added to it (SPEC §12).
 *
 * Follows through rotation: the rest of the old file comes before the new one. A person gets time, level and message, a
 * pipe the lines as they are.
 */
import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { type Problem, problem } from "../kernel/problems.ts";
import { type Output, plain } from "./output.ts";
import { watchReader } from "./reader.ts";

const AGAIN_MS = 200;
/** How soon a reader that has gone is noticed while nothing is written. */
const READER_MS = 1_000;
const CHUNK_BYTES = 64 << 10;

/** Show a log file. Ends when it is shown, with `follow` when nobody reads any more. */
export async function showLog(
  path: string,
  { follow, lines }: { readonly follow: boolean; readonly lines: number },
  out: Output,
): Promise<Problem | undefined> {
  let fd = openIf(path);
  if (fd === undefined && !follow)
    return problem("not_found", `there is no log at ${path} yet`, {
      hint: "the daemon writes it: mp daemon start",
    });
  const draw = await drawer(out);
  let at = 0;
  let rest = "";
  let decoder = new TextDecoder();
  let gone = false;
  const unwatch = follow ? watchReader(READER_MS, () => (gone = true)) : undefined;

  if (fd !== undefined) {
    const size = fstatSync(fd).size;
    at = tailStart(fd, size, lines);
  }
  for (;;) {
    if (fd !== undefined) {
      for (let chunk = read(fd, at); chunk.length > 0; chunk = read(fd, at)) {
        at += chunk.length;
        const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
        rest = parts.pop() ?? "";
        if (await out.print(parts.map(draw).join(""))) continue;
        unwatch?.();
        return undefined;
      }
    }
    if (!follow) {
      if (rest !== "") await out.print(draw(rest));
      return undefined;
    }
    await Bun.sleep(AGAIN_MS);
    if (gone) return undefined;
    if (fd === undefined) {
      fd = openIf(path);
    } else if (replaced(fd, path)) {
      // What was added to the old file meanwhile is read in the next round only if it is still open.
      const left = read(fd, at);
      if (left.length > 0) continue;
      closeSync(fd);
      fd = openIf(path);
      at = 0;
      rest = "";
      decoder = new TextDecoder();
    }
  }
}

function openIf(path: string): number | undefined {
  try {
    return openSync(path, "r");
  } catch {
    return undefined;
  }
}

/** Is another file at this path now? */
function replaced(fd: number, path: string): boolean {
  const there = statSync(path, { throwIfNoEntry: false });
  return there !== undefined && there.ino !== fstatSync(fd).ino;
}

function read(fd: number, at: number): Uint8Array {
  const chunk = Buffer.alloc(CHUNK_BYTES);
  return chunk.subarray(0, readSync(fd, chunk, 0, CHUNK_BYTES, at));
}

/** Where the last `lines` lines begin. */
function tailStart(fd: number, size: number, lines: number): number {
  let at = size;
  let found = 0;
  while (at > 0) {
    const from = Math.max(0, at - CHUNK_BYTES);
    const chunk = Buffer.alloc(at - from);
    readSync(fd, chunk, 0, chunk.length, from);
    for (let i = chunk.length - 1; i >= 0; i--) {
      // The end of the last line is not the start of one.
      if (chunk[i] === 0x0a && from + i !== size - 1 && ++found === lines) return from + i + 1;
      if (lines === 0) return size;
    }
    at = from;
  }
  return 0;
}

/** How a line is shown. */
async function drawer(out: Output): Promise<(line: string) => string> {
  if (!out.terminal || out.asJson) return (line) => `${line}\n`;
  const { localTime, paint, safe } = await import("./terminal.ts");
  const colours = paint(out.colour);
  return (line) => {
    let entry: Record<string, unknown>;
    try {
      entry = JSON.parse(line) as Record<string, unknown>;
    } catch {
      return `${safe(line)}\n`;
    }
    const { level, time, pid, msg, ...more } = entry;
    const word = String(level).padEnd(5);
    const mood =
      level === "error" || level === "fatal"
        ? colours.red(word)
        : level === "warn"
          ? colours.yellow(word)
          : word;
    const members = Object.entries(more).map(([name, value]) => `${name}=${plain(value)}`);
    return (
      `${colours.dim(`${localTime(String(time))} ${pid}`)} ${mood} ${safe(String(msg ?? ""))} ${colours.dim(safe(members.join(" ")))}`.trimEnd() +
      "\n"
    );
  };
}
