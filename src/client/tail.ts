/**
 * The log as an endless iterator: from a cursor, over lost connections and daemon restarts, without gap or duplicate
 * (SPEC §5). NDJSON with frames over `fetch`, because a body that is not read holds the daemon back: a consumer
 * that stops costs one chunk of memory, where a WebSocket would go on buffering.
 *
 * Always holds: every request after the first names the log, so a restored one is heard and not waited for; an event's
 * line is the daemon's bytes, never parsed and written again; nobody hears an event twice. Left out on purpose: cursor
 * files, counts, idle limits; they are the CLI's.
 */
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import {
  addressOf,
  backoff,
  baseOf,
  codeOf,
  failureOf,
  fetchFrom,
  pause,
  retryAfter,
  type Target,
  unavailable,
} from "./transport.ts";

export interface TailFilter {
  /** Event types or globs such as `task.*`. */
  readonly types?: readonly string[];
  /** Streams such as `task/<id>`. */
  readonly streams?: readonly string[];
  readonly workspace_id?: string;
  readonly project_id?: string;
  readonly subject_kind?: string;
}

export interface TailOptions {
  /** The last `seq_global` that is known already: 0 for the whole log, "head" (the default) for what comes from now on. */
  readonly after?: number | "head";
  /** Instead of `after`: the events since this time, RFC 3339 UTC with milliseconds. */
  readonly since?: string;
  /** The log that `after` belongs to, if known: another one ends the tail with `cursor_foreign`. */
  readonly log_id?: string;
  readonly filter?: TailFilter;
  /** Give old versions as they are stored. */
  readonly as_stored?: boolean;
  /** Ends the tail, without a last frame. */
  readonly signal?: AbortSignal;
  /** When the connection is lost: true (the default) comes back and resumes, false ends. */
  readonly reconnect?: boolean;
  /** How long to try to come back, in milliseconds, before it ends; for ever when absent. */
  readonly give_up_ms?: number;
  /** After how much silence, in milliseconds, a connection counts as lost: two missed heartbeats when absent. */
  readonly silence_ms?: number;
}

/** One event. `line` is its JSON as the daemon sent it, without the newline; `event` parses it when asked. */
export interface EventFrame {
  readonly kind: "event";
  readonly seq_global: number;
  readonly line: string;
  readonly event: Event;
}

/** The frames of SPEC §5 besides events, and `disconnected`, which the tail itself adds. */
export type ControlFrame =
  | { readonly kind: "hello"; readonly log_id: string; readonly oldest: number; readonly head: number }
  | { readonly kind: "checkpoint"; readonly seq_global: number }
  | { readonly kind: "caught_up"; readonly seq_global: number }
  | { readonly kind: "fell_behind"; readonly seq_global: number; readonly head: number }
  | { readonly kind: "heartbeat"; readonly head: number }
  /** The connection is gone; the next attempt comes after `retry_in_ms` and resumes after `resume_after`. */
  | {
      readonly kind: "disconnected";
      readonly problem: Problem;
      readonly resume_after: number | null;
      readonly retry_in_ms: number;
    }
  /** Always the last: it cannot go on. `resume_after` is null when not even the start was known. */
  | { readonly kind: "end"; readonly problem: Problem; readonly resume_after: number | null };

export type TailFrame = EventFrame | ControlFrame;

/** Two heartbeats of 15 s and a little (SPEC §5). */
const SILENCE_MS = 32_000;
/** Longer than any line can be: an event has at most 61,440 bytes (SPEC §10). */
const LONGEST_LINE_BYTES = 1 << 20;

/**
 * Follow the log.
 *
 * The first connection must come about, else it ends with `daemon_unavailable`; after that it comes back by itself.
 * `cursor_ahead`, `cursor_foreign` and every other refusal that waiting does not mend end it.
 * @param target the daemon's address
 * @param options where to start, what to see, when to stop; see `TailOptions`
 * @returns every frame in order; after an `end` frame, or once `signal` is aborted, nothing. Leaving the loop closes the
 *   connection. Never rejects because of the daemon or the network.
 */
export async function* tail(
  target: Target,
  options: TailOptions = {},
): AsyncGenerator<TailFrame, void, undefined> {
  const { signal, reconnect = true, give_up_ms = Number.POSITIVE_INFINITY } = options;
  const place = startOf(options);
  let attempt = 0;
  let lostAt = 0;
  while (!signal?.aborted) {
    let lost: Lost | undefined;
    for await (const chunk of connection(target, options, place)) {
      if (chunk.frames.length > 0) attempt = 0;
      for (const frame of chunk.frames) {
        if (signal?.aborted) return;
        yield frame;
      }
      lost = chunk.lost;
    }
    if (signal?.aborted || !lost) return;

    if (attempt === 0) lostAt = performance.now();
    const wait = Math.round(lost.after_ms ?? backoff(attempt));
    const resume_after = place.after ?? null;
    if (!reconnect || !lost.passing || performance.now() - lostAt + wait > give_up_ms) {
      yield { kind: "end", problem: lost.problem, resume_after };
      return;
    }
    yield { kind: "disconnected", problem: lost.problem, resume_after, retry_in_ms: wait };
    attempt += 1;
    await pause(wait, signal);
  }
}

/** How far the tail has come. */
interface Place {
  /** Everything up to and including this was given out; undefined until it is known. */
  after: number | undefined;
  log_id: string | undefined;
  /** Has the daemon greeted us before? */
  greeted: boolean;
}

function startOf({ after, log_id }: TailOptions): Place {
  return { after: typeof after === "number" ? after : undefined, log_id, greeted: false };
}

/** Why a connection is over, whether a later one may do better, and when the daemon said to come back. */
interface Lost {
  readonly problem: Problem;
  readonly passing: boolean;
  readonly after_ms?: number;
}

/** The frames that arrived together; with `lost` they are the connection's last. */
interface Chunk {
  readonly frames: readonly TailFrame[];
  readonly lost?: Lost;
}

/** One connection, from where `place` is. The last chunk, and only that, says why it is over. */
async function* connection(
  target: Target,
  options: TailOptions,
  place: Place,
): AsyncGenerator<Chunk, void, undefined> {
  const { signal, silence_ms = SILENCE_MS } = options;
  const stop = new AbortController();
  const abort = () => stop.abort();
  signal?.addEventListener("abort", abort, { once: true });
  let silent = false;
  /** The silence that counts is the daemon's: the clock runs only while we wait for it, not while we are not asked. */
  const heard = async <T>(work: Promise<T>): Promise<T> => {
    const timer = setTimeout(() => {
      silent = true;
      stop.abort();
    }, silence_ms);
    try {
      return await work;
    } finally {
      clearTimeout(timer);
    }
  };
  const request = (query: URLSearchParams, accept: string) =>
    fetchFrom(target)(`${baseOf(target)}/v1/events?${query}`, { headers: { accept }, signal: stop.signal });

  try {
    if (place.after === undefined && options.since === undefined) {
      const response = await heard(request(headQuery(place), "application/json"));
      const lost = await refused(target, response);
      if (lost) return yield { frames: [], lost };
      const { as_of_seq, log_id } = (await heard(response.json())) as { as_of_seq: number; log_id: string };
      place.after = as_of_seq;
      place.log_id = log_id;
    }
    const response = await heard(request(followQuery(options, place), "application/x-ndjson"));
    const lost = await refused(target, response);
    if (lost) return yield { frames: [], lost };

    const contiguous = Object.keys(options.filter ?? {}).length === 0;
    const lines = new Lines();
    const reader = response.body!.getReader();
    for (;;) {
      const { done, value } = await heard(reader.read());
      if (done) return yield { frames: [], lost: { problem: unavailable(target, "lost"), passing: true } };
      const chunk = chunkOf(lines.complete(value), place, contiguous);
      yield chunk;
      if (chunk.lost) return;
    }
  } catch (error) {
    if (silent) return yield { frames: [], lost: { problem: quiet(target, silence_ms), passing: true } };
    const failure = failureOf(error);
    // Nobody there at the very start is an answer; later it is a daemon that restarts.
    const passing = failure === "unreachable" ? place.greeted : failure !== "foreign";
    yield { frames: [], lost: { problem: unavailable(target, failure, codeOf(error)), passing } };
  } finally {
    signal?.removeEventListener("abort", abort);
    stop.abort();
  }
}

/** The cheapest request that tells where the log ends. */
function headQuery({ log_id }: Place): URLSearchParams {
  return new URLSearchParams({ limit: "1", ...(log_id !== undefined && { log_id }) });
}

function followQuery(
  { since, filter = {}, as_stored }: TailOptions,
  { after, log_id }: Place,
): URLSearchParams {
  const { types = [], streams = [], ...one } = filter;
  const query = new URLSearchParams({ follow: "true", frames: "true", ...one });
  for (const type of types) query.append("types", type);
  for (const stream of streams) query.append("streams", stream);
  if (after !== undefined) query.set("after", String(after));
  else if (since !== undefined) query.set("since", since);
  if (log_id !== undefined) query.set("log_id", log_id);
  if (as_stored) query.set("as_stored", "true");
  return query;
}

/** What a response that is no stream says; undefined when it is one. */
async function refused(target: Target, response: Response): Promise<Lost | undefined> {
  if (response.ok && response.body) return undefined;
  const found: unknown = response.ok ? undefined : await response.json();
  if (!isProblem(found))
    return { problem: unavailable(target, "foreign", `HTTP ${response.status}`), passing: false };
  return { problem: found, passing: found.retryable, after_ms: retryAfter(response.headers) };
}

/** The frames of these lines, as far as the connection is worth listening to. */
function chunkOf(lines: readonly string[], place: Place, contiguous: boolean): Chunk {
  const frames: TailFrame[] = [];
  for (const line of lines) {
    const frame = frameOf(line, place, contiguous);
    if (frame === undefined) continue;
    if ("passing" in frame) return { frames, lost: frame };
    frames.push(frame);
  }
  return { frames };
}

const EVENT = '{"kind":"event","event":';
const SEQ = ',"seq_global":';

/** One line: a frame to give out, the end of the connection, or nothing for a kind that a newer daemon may send. */
function frameOf(line: string, place: Place, contiguous: boolean): TailFrame | Lost | undefined {
  if (line.startsWith(EVENT)) return eventOf(line.slice(EVENT.length, -1), place, contiguous);
  if (line === "") return undefined;
  const frame = JSON.parse(line) as ControlFrame;
  switch (frame.kind) {
    case "hello":
      place.greeted = true;
      place.log_id ??= frame.log_id;
      return frame;
    case "checkpoint":
    case "caught_up":
    case "fell_behind":
      reached(place, frame.seq_global);
      return frame;
    case "heartbeat":
      reached(place, frame.head);
      return frame;
    case "end":
      return { problem: frame.problem, passing: frame.problem.retryable };
    default:
      return undefined;
  }
}

/** Everything up to here was sent, says the daemon (SPEC §5, guarantee 3), also where a filter left much out. */
function reached(place: Place, seq: number): void {
  if (place.after === undefined || seq > place.after) place.after = seq;
}

/**
 * An event, which must be the next one. Its position is the last `seq_global` of the line: keys are sorted (RFC 8785), and
 * behind that one come only members that hold no object of the payload.
 */
function eventOf(line: string, place: Place, contiguous: boolean): EventFrame | Lost {
  const seq_global = Number.parseInt(line.slice(line.lastIndexOf(SEQ) + SEQ.length), 10);
  const { after } = place;
  const fits = after === undefined || (contiguous ? seq_global === after + 1 : seq_global > after);
  if (!fits || !Number.isSafeInteger(seq_global))
    return { problem: internal(`event ${seq_global} came after position ${after}`), passing: false };
  place.after = seq_global;
  let event: Event | undefined;
  return {
    kind: "event",
    seq_global,
    line,
    get event() {
      event ??= JSON.parse(line) as Event;
      return event;
    },
  };
}

/** Bytes in, whole lines out: what is not complete waits, so that no character is cut in two. */
class Lines {
  #rest: Uint8Array[] = [];
  #size = 0;
  readonly #decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  /** The lines that this chunk completes. Throws a SyntaxError when a line has no end. */
  complete(chunk: Uint8Array): string[] {
    const end = chunk.lastIndexOf(0x0a);
    if (end < 0) {
      this.#keep(chunk);
      return [];
    }
    const bytes = Buffer.concat([...this.#rest, chunk.subarray(0, end)]);
    this.#rest = [];
    this.#size = 0;
    this.#keep(chunk.subarray(end + 1));
    return this.#decoder.decode(bytes).split("\n");
  }

  #keep(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#rest.push(bytes);
    this.#size += bytes.length;
    if (this.#size > LONGEST_LINE_BYTES) throw new SyntaxError("a line has no end");
  }
}

function internal(detail: string): Problem {
  return problem("internal", detail, {
    hint: "this is a bug in mp: 'mp log verify' says whether the log is whole",
  });
}

function quiet(target: Target, silence_ms: number): Problem {
  return problem("daemon_unavailable", `${addressOf(target)} has sent nothing for ${silence_ms} ms`, {
    hint: "it is being tried again; 'mp daemon status' says how it does",
  });
}
