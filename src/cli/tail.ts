/**
 * `mp events tail` (SPEC §12): from a start or a cursor file to one of its ends, lines out as fast as they are taken.
 *
 * Always holds: the cursor file never names a position whose lines have not been written to stdout; it is replaced as a
 * whole; a reader that is slow holds the daemon back instead of filling memory. Connections are tail.ts of client/.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { type ControlFrame, type TailFilter, type TailFrame, tail } from "../client/tail.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Ending } from "./command.ts";
import { INTERRUPTED } from "./exit.ts";
import { drawer, frameInWords } from "./lines.ts";
import type { Link } from "./link.ts";
import { note, type Output } from "./output.ts";
import { usage } from "./parse.ts";

export interface Tailing {
  readonly after: number | undefined;
  /** RFC 3339. */
  readonly since: string | undefined;
  readonly "from-start": boolean;
  readonly count: number | undefined;
  /** Milliseconds. */
  readonly "until-idle": number | undefined;
  readonly "no-follow": boolean;
  readonly "cursor-file": string | undefined;
  readonly frames: boolean;
  readonly "as-stored": boolean;
  /** Milliseconds. */
  readonly timeout: number | undefined;
}

/** A daemon that does not come back ends a tail that was not to wait for more. */
const GIVE_UP_MS = 10_000;
/** Characters that may wait for a slow reader. */
const MOST_WAITING = 256 << 10;
/** How long a reader that does not read may hold up an end that cannot wait. */
const GRACE_MS = 500;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Why a tail is over, where it is not the last frame that says so. */
type End = "count" | "idle" | "end" | "gone" | "timeout" | "SIGINT" | "SIGTERM";

/**
 * Follow the log until one of the ends.
 * @param link to the daemon, started when need be
 * @param filter looks the names of the filter up
 */
export async function follow(
  wanted: Tailing,
  {
    out,
    link,
    filter,
  }: { readonly out: Output; readonly link: Link; readonly filter: () => Promise<TailFilter | Problem> },
): Promise<Ending> {
  const file = wanted["cursor-file"] === undefined ? undefined : new CursorFile(wanted["cursor-file"]);
  const cursor = file?.read();
  if (isProblem(cursor)) return cursor;
  const target = await link.address();
  if (isProblem(target)) return target;
  const chosen = await filter();
  if (isProblem(chosen)) return chosen;

  const stop = new AbortController();
  let over: End | undefined;
  const finish = (end: End) => {
    over ??= end;
    stop.abort();
  };
  // Once each: a second Ctrl-C ends the process at once.
  process.once("SIGINT", () => finish("SIGINT"));
  process.once("SIGTERM", () => finish("SIGTERM"));
  const timer = wanted.timeout === undefined ? undefined : alarm(wanted.timeout, () => finish("timeout"));

  const sink = new Sink(out, file, stop.signal, () => finish("gone"));
  const draw = out.asJson ? undefined : await drawer(out);
  const idle = wanted["until-idle"];
  let idleTimer: Timer | undefined;
  /** Nothing has come since now; counts only while we are at the live end. */
  const quietFromNow = (live: boolean) => {
    clearTimeout(idleTimer);
    if (idle !== undefined && live) idleTimer = alarm(idle, () => finish("idle"));
  };

  let live = false;
  let lines = 0;
  let away = false;
  /** Where `--no-follow` ends. */
  let until: number | undefined;
  let log_id = "";
  let ending: Problem | undefined;
  for await (const frame of tail(target, {
    ...startOf(wanted, cursor),
    filter: chosen,
    as_stored: wanted["as-stored"],
    signal: stop.signal,
    ...(wanted["no-follow"] && { give_up_ms: GIVE_UP_MS }),
  })) {
    const position = positionOf(frame);
    if (frame.kind === "event") {
      if (until !== undefined && frame.seq_global > until) {
        finish("end");
        break;
      }
      lines += 1;
      const text = draw ? draw(frame.event) : `${frame.line}\n`;
      if (!(await sink.add(text, { log_id, seq_global: frame.seq_global }))) break;
      quietFromNow(live);
      if (lines === wanted.count) finish("count");
    } else {
      if (frame.kind === "end") {
        ending = frame.problem;
        break;
      }
      if (frame.kind === "hello") {
        log_id = frame.log_id;
        if (wanted["no-follow"]) until ??= frame.head;
        if (away) await tell(out, "connected again", frame);
        away = false;
      }
      if (frame.kind === "disconnected") {
        live = false;
        quietFromNow(false);
        if (!away) await tell(out, frameInWords(frame), frame);
        away = true;
      }
      if (frame.kind === "caught_up") {
        if (!live && lines === 0 && until === undefined) await waiting(out, frame.seq_global);
        live = true;
        quietFromNow(true);
      }
      const line = wanted.frames ? await shown(frame, out) : "";
      if (position !== undefined) {
        if (!(await sink.add(line, { log_id, seq_global: position }))) break;
      } else if (line !== "" && !(await sink.add(line))) break;
    }
    if (until !== undefined && position !== undefined && position >= until) finish("end");
    if (over) break;
  }
  clearTimeout(timer);
  clearTimeout(idleTimer);
  const failed = await sink.end(
    over === "SIGINT" || over === "SIGTERM" || over === "timeout" ? GRACE_MS : undefined,
  );
  return failed ?? ending ?? endingOf(over, wanted, lines);
}

function endingOf(over: End | undefined, { timeout, count }: Tailing, lines: number): Ending {
  switch (over) {
    case "SIGINT":
      return INTERRUPTED;
    case "SIGTERM":
      return 143;
    case "timeout":
      return problem(
        "timeout",
        `${lines}${count === undefined ? "" : ` of ${count}`} events came within ${timeout} ms`,
        {
          hint: "allow more time with --timeout, or end with --until-idle or --no-follow",
        },
      );
    default:
      return 0;
  }
}

function alarm(ms: number, ring: () => void): Timer {
  return setTimeout(ring, Math.min(ms, LONGEST_TIMER_MS));
}

/** The file wins: the flags say where to start as long as there is none. */
function startOf(wanted: Tailing, cursor: Cursor | undefined) {
  if (cursor) return { after: cursor.seq_global, log_id: cursor.log_id };
  if (wanted.since !== undefined) return { since: wanted.since };
  if (wanted.after !== undefined) return { after: wanted.after };
  return { after: wanted["from-start"] || wanted["no-follow"] ? 0 : ("head" as const) };
}

/** The position up to which everything that matches has been given out once this frame is. */
function positionOf(frame: TailFrame): number | undefined {
  switch (frame.kind) {
    case "event":
    case "checkpoint":
    case "caught_up":
      return frame.seq_global;
    case "heartbeat":
      return frame.head;
    default:
      return undefined;
  }
}

/** A control frame for stdout; without `--json` it goes to stderr, as stdout is for rows. */
async function shown(frame: ControlFrame, out: Output): Promise<string> {
  if (out.asJson) return `${JSON.stringify(frame)}\n`;
  if (frame.kind !== "disconnected") await note(frameInWords(frame));
  return "";
}

/** A person who sees nothing wants to know that this is right. */
async function waiting(out: Output, seq: number): Promise<void> {
  if (out.terminal && !out.asJson) await note(`waiting for what comes after #${seq}; Ctrl-C ends it`);
}

/** News about the connection, for whoever watches stderr. */
async function tell(out: Output, words: string, frame: ControlFrame): Promise<void> {
  await note(out.asJson ? JSON.stringify(frame) : words);
}

/** Lines on their way out: what arrives while a write is under way is the next write. */
class Sink {
  #waiting = "";
  #cursor: Cursor | undefined;
  #writing: Promise<void> | undefined;
  #failed: Problem | undefined;

  constructor(
    readonly out: Output,
    readonly file: CursorFile | undefined,
    readonly signal: AbortSignal,
    /** Called when a write fails: the daemon may be silent for long, so nobody would ask. */
    readonly onStopped: () => void,
  ) {}

  /**
   * Take a line, and the position that is reached once it is out.
   * @returns false when nobody takes lines any more
   */
  async add(text: string, cursor?: Cursor): Promise<boolean> {
    this.#waiting += text;
    if (cursor) this.#cursor = cursor;
    this.#writing ??= this.#write();
    if (this.#waiting.length > MOST_WAITING) await Promise.race([this.#writing, aborted(this.signal)]);
    return !this.#stopped;
  }

  get #stopped(): boolean {
    return this.out.gone || this.out.failed !== undefined || this.#failed !== undefined;
  }

  async #write(): Promise<void> {
    // Whatever came in the same chunk is there after one turn.
    await new Promise<void>((resolve) => setImmediate(resolve));
    while (!this.#stopped && (this.#waiting !== "" || this.#cursor)) {
      const text = this.#waiting;
      const cursor = this.#cursor;
      this.#waiting = "";
      this.#cursor = undefined;
      if (!(await this.out.print(text))) break;
      if (cursor) this.#failed ??= this.file?.write(cursor);
    }
    this.#writing = undefined;
    if (this.#stopped) this.onStopped();
  }

  /** Wait until everything is out, at most `most_ms` milliseconds where that is given. */
  async end(most_ms?: number): Promise<Problem | undefined> {
    if (this.#writing)
      await (most_ms === undefined ? this.#writing : Promise.race([this.#writing, Bun.sleep(most_ms)]));
    return this.#failed;
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

interface Cursor {
  readonly log_id: string;
  readonly seq_global: number;
}

/** The file that holds the position: `{"log_id":"…","seq_global":42}`. */
class CursorFile {
  constructor(readonly path: string) {}

  /** @returns the position; undefined while there is no file; a problem when it cannot be used */
  read(): Cursor | undefined | Problem {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (error) {
      if (codeOf(error) !== "ENOENT") return this.#unusable(error);
      return this.#writable();
    }
    try {
      const { log_id, seq_global } = JSON.parse(text) as Partial<Cursor>;
      if (typeof log_id === "string" && Number.isSafeInteger(seq_global) && seq_global! >= 0)
        return { log_id, seq_global: seq_global! };
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
    return problem("cursor_foreign", `the file ${this.path} holds no cursor of mp`, {
      hint: "give another file; or, if it is a damaged cursor, remove it and say where to start",
    });
  }

  /** Find out now, not after the first event, that the file cannot be made. */
  #writable(): Problem | undefined {
    const draft = `${this.path}.${process.pid}.tmp`;
    try {
      closeSync(openSync(draft, "w", 0o600));
      rmSync(draft);
      return undefined;
    } catch (error) {
      return this.#unusable(error);
    }
  }

  /** Put a new position in place in one step, safe against a power cut. */
  write(cursor: Cursor): Problem | undefined {
    const draft = `${this.path}.${process.pid}.tmp`;
    try {
      const fd = openSync(draft, "w", 0o600);
      writeSync(fd, `${JSON.stringify(cursor)}\n`);
      fsyncSync(fd);
      closeSync(fd);
      renameSync(draft, this.path);
      return undefined;
    } catch (error) {
      return this.#unusable(error);
    }
  }

  #unusable(error: unknown): Problem {
    return usage(
      `the cursor file ${this.path} cannot be used: ${codeOf(error)}`,
      "give a file that you can write",
    );
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "unknown error";
}
