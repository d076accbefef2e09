/**
 * `mp events tail` (SPEC §12): from a start or a cursor file to one of its ends.
 *
 * Every end is a word (`count`, `idle`, `SIGINT` …) that stops the connection; what was taken by then still goes out. The
 * connection and its resuming are tail.ts of client/, the way out and the cursor file are sink.ts.
 */
import { type ControlFrame, type EventFrame, type TailFilter, type TailFrame, tail } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import type { Ending } from "./command.ts";
import { INTERRUPTED, TERMINATED } from "./exit.ts";
import { drawer, frameInWords } from "./lines.ts";
import type { Link } from "./link.ts";
import { note, type Output } from "./output.ts";
import { watchReader } from "./reader.ts";
import { type Cursor, CursorFile, Sink } from "./sink.ts";

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
/** How long a reader that does not read may hold up an end that cannot wait. */
const GRACE_MS = 500;
/** How soon a reader that has gone is noticed while nothing happens. */
const READER_MS = 1_000;
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
  out: Output,
  link: Link,
  filter: () => Promise<TailFilter | Problem>,
): Promise<Ending> {
  const file = wanted["cursor-file"] === undefined ? undefined : new CursorFile(wanted["cursor-file"]);
  const cursor = file?.read();
  if (isProblem(cursor)) return cursor;
  const target = await link.address();
  if (isProblem(target)) return target;
  const chosen = await filter();
  if (isProblem(chosen)) return chosen;

  const following = new Following(wanted, out, file, out.asJson ? undefined : await drawer(out));
  const frames = tail(target, {
    ...startOf(wanted, cursor),
    filter: chosen,
    as_stored: wanted["as-stored"],
    signal: following.signal,
    ...(wanted["no-follow"] && { give_up_ms: GIVE_UP_MS }),
  });
  for await (const frame of frames) if (!(await following.take(frame))) break;
  return following.end();
}

/** One run of a tail: what it has seen, and which of its ends has come. */
class Following {
  readonly #stop = new AbortController();
  readonly #sink: Sink;
  readonly #timer: Timer | undefined;
  readonly #unwatch: () => void;
  #idleTimer: Timer | undefined;
  #over: End | undefined;
  #refused: Problem | undefined;
  #log_id = "";
  #lines = 0;
  /** At the live end: only there silence means that nothing happens. */
  #live = false;
  #disconnected = false;
  /** Where `--no-follow` ends: what was the log's end when we came. */
  #until: number | undefined;

  constructor(
    readonly wanted: Tailing,
    readonly out: Output,
    file: CursorFile | undefined,
    /** How an event is drawn; undefined where it goes out as it is. */
    readonly draw: ((event: Event) => string) | undefined,
  ) {
    this.#sink = new Sink(out, file, this.signal, () => this.#finish("gone"));
    // Once each: a second Ctrl-C ends the process at once.
    process.once("SIGINT", () => this.#finish("SIGINT"));
    process.once("SIGTERM", () => this.#finish("SIGTERM"));
    this.#timer = alarm(wanted.timeout, () => this.#finish("timeout"));
    this.#unwatch = watchReader(READER_MS, () => this.#finish("gone"));
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  #finish(end: End): void {
    this.#over ??= end;
    this.#stop.abort();
  }

  /** @returns false when it is over */
  async take(frame: TailFrame): Promise<boolean> {
    const position = positionOf(frame);
    const until = this.#until;
    if (frame.kind === "event" && until !== undefined && frame.seq_global > until) {
      this.#finish("end");
      return false;
    }
    const text = frame.kind === "event" ? this.#event(frame) : await this.#control(frame);
    const cursor = position === undefined ? undefined : { log_id: this.#log_id, seq_global: position };
    await this.#sink.add(text, cursor);
    if (this.#lines === this.wanted.count) this.#finish("count");
    if (this.#until !== undefined && position !== undefined && position >= this.#until) this.#finish("end");
    return this.#over === undefined && this.#refused === undefined;
  }

  #event(frame: EventFrame): string {
    this.#lines += 1;
    this.#quietFromNow();
    return this.draw ? this.draw(frame.event) : `${frame.line}\n`;
  }

  /** @returns what goes to stdout: nothing, unless `--frames --json` */
  async #control(frame: ControlFrame): Promise<string> {
    switch (frame.kind) {
      case "hello":
        this.#log_id = frame.log_id;
        if (this.wanted["no-follow"]) this.#until ??= frame.head;
        if (this.#disconnected) await this.#tell("connected again", frame);
        this.#disconnected = false;
        break;
      case "caught_up":
        if (!this.#live && this.#lines === 0 && this.#until === undefined)
          await this.#waiting(frame.seq_global);
        this.#live = true;
        this.#quietFromNow();
        break;
      case "disconnected":
        this.#live = false;
        this.#quietFromNow();
        if (!this.#disconnected) await this.#tell(frameInWords(frame), frame);
        this.#disconnected = true;
        break;
      case "end":
        this.#refused = frame.problem;
        return "";
    }
    if (!this.wanted.frames) return "";
    if (this.out.asJson) return `${JSON.stringify(frame)}\n`;
    // stdout is for rows; and of a lost connection stderr has heard already.
    if (frame.kind !== "disconnected") await note(frameInWords(frame));
    return "";
  }

  /** `--until-idle` counts from here, while we are at the live end. */
  #quietFromNow(): void {
    clearTimeout(this.#idleTimer);
    if (this.#live) this.#idleTimer = alarm(this.wanted["until-idle"], () => this.#finish("idle"));
  }

  /** A person who sees nothing wants to know that this is right. */
  async #waiting(seq: number): Promise<void> {
    if (this.out.terminal && !this.out.asJson)
      await note(`waiting for what comes after #${seq}; Ctrl-C ends it`);
  }

  /** News about the connection, for whoever watches stderr. */
  async #tell(words: string, frame: ControlFrame): Promise<void> {
    await note(this.out.asJson ? JSON.stringify(frame) : words);
  }

  /** Let everything out that was taken, and say how it ended. */
  async end(): Promise<Ending> {
    this.#unwatch();
    clearTimeout(this.#timer);
    clearTimeout(this.#idleTimer);
    const over = this.#over;
    const hurried = over === "SIGINT" || over === "SIGTERM" || over === "timeout";
    const failed = await this.#sink.end(hurried ? GRACE_MS : undefined);
    if (failed || this.#refused) return failed ?? this.#refused;
    if (over === "SIGINT") return INTERRUPTED;
    if (over === "SIGTERM") return TERMINATED;
    return over === "timeout" ? this.#timedOut() : 0;
  }

  #timedOut(): Problem {
    const { count, timeout } = this.wanted;
    const of = count === undefined ? "" : ` of ${count}`;
    return problem("timeout", `${this.#lines}${of} events came within ${spanOf(timeout!)}`, {
      hint: "allow more time with --timeout, or end with --until-idle or --no-follow",
    });
  }
}

/** A timer, where a time is given. */
function alarm(ms: number | undefined, ring: () => void): Timer | undefined {
  return ms === undefined ? undefined : setTimeout(ring, Math.min(ms, LONGEST_TIMER_MS));
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
