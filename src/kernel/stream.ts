/**
 * Streams: from any cursor, in order, no gap, no duplicate, from backlog into live (SPEC §5).
 *
 * A `Feed` is one reader's position; it is pulled by its transport at the transport's pace, so a slow reader costs one
 * page of memory and nobody's time. The ring of recent events and the wake-up after a commit are shortcuts: what is
 * not in the ring is read from the log, which is the truth. Pages end where a command ends, and control frames come
 * after them, so none names a position before every matching event up to it, or splits a command.
 */
import type { Event } from "./aggregate.ts";
import { canonical } from "./canonical.ts";
import { type Filter, type Line, type LogReader, passes, type Stored, type Text } from "./log.ts";
import { type Problem, problem } from "./problems.ts";
import { currentEvent, type Registry } from "./registry.ts";

/** An event on its way out. A recent one is the same object for all its readers. */
export interface EventFrame {
  readonly kind: "event";
  readonly seq_global: number;
  readonly body: string;
  /** Where a transport keeps the text that it made of it last, for the next reader who needs the same one. */
  readonly shared?: { prefix: string; text: string };
}

export type Frame =
  | EventFrame
  | { readonly kind: "hello"; readonly log_id: string; readonly oldest: number; readonly head: number }
  | { readonly kind: "checkpoint"; readonly seq_global: number }
  | { readonly kind: "caught_up"; readonly seq_global: number }
  | { readonly kind: "fell_behind"; readonly seq_global: number; readonly head: number }
  | { readonly kind: "heartbeat"; readonly head: number }
  | { readonly kind: "projection_updated"; readonly name: string; readonly as_of_seq: number }
  | { readonly kind: "end"; readonly problem: Problem; readonly resume_after: number };

/** Milliseconds between heartbeats (SPEC §5). */
export const HEARTBEAT_MS = 15_000;

/** Positions that one pull looks at, at most (a command's last events may come on top). */
const PAGE = 1_000;

/** Characters of events after which a pull ends early: what a reader that does not read holds in memory. */
const PAGE_CHARS = 1 << 20;

/** Rows per read of the log, so that not even events of the largest size overrun PAGE_CHARS by much. */
const STEP = 64;

/** The ring's bound: characters of events, about 8,000 of them; as many again for the texts that are shared. */
const RING_CHARS = 4 << 20;

/** A recent event; the frame is there when the event needs no conversion. */
interface Recent {
  readonly row: Stored;
  readonly frame: EventFrame | undefined;
}

export interface Subscription {
  readonly after: number;
  readonly filter: Filter;
  /** Give old versions as they are stored. */
  readonly as_stored: boolean;
  /** Also tell which projections a commit moved on. */
  readonly projections: boolean;
}

function sharedFrame({ seq_global, body }: Stored): EventFrame {
  return { kind: "event", seq_global, body, shared: { prefix: "", text: "" } };
}

/** The front's view of the log's live end. One per process. */
export class Hub {
  #ring: Recent[] = [];
  /** Index in `#ring` of the oldest event that counts; the array is cut when half of it is stale. */
  #start = 0;
  #chars = 0;
  #head: number;
  readonly #feeds = new Set<Feed>();
  readonly #turns: (() => void)[] = [];
  #headWaiters: { readonly seq: number; readonly resolve: () => void }[] = [];
  /** Why nothing is opened any more; undefined while all is well. */
  #closed: Problem | undefined;
  #converts: boolean;
  readonly #heartbeat: Timer;

  /** @param heartbeat_ms between heartbeats; a parameter so that a test need not wait */
  constructor(
    readonly reader: LogReader,
    readonly registry: Registry,
    readonly log_id: string,
    heartbeat_ms = HEARTBEAT_MS,
  ) {
    this.#head = reader.head();
    this.#converts = reader.versions().some((version) => !isCurrent(registry, version));
    this.#heartbeat = setInterval(() => {
      for (const feed of this.#feeds) feed.beat();
    }, heartbeat_ms);
    this.#heartbeat.unref();
  }

  get head(): number {
    return this.#head;
  }

  /** Does the log hold versions that are not current? Most logs do not, and are read for less. */
  get converts(): boolean {
    return this.#converts;
  }

  get subscriptions(): number {
    return this.#feeds.size;
  }

  /** Take in what a commit made durable, and wake whoever waits. */
  publish(events: readonly Stored[], names: readonly string[]): void {
    for (const row of events) {
      const current = isCurrent(this.registry, row);
      if (!current) this.#converts = true;
      this.#ring.push({ row, frame: current ? sharedFrame(row) : undefined });
      this.#chars += row.body.length;
    }
    while (this.#chars > RING_CHARS) this.#chars -= this.#ring[this.#start++]!.row.body.length;
    if (this.#start > this.#ring.length / 2) {
      this.#ring = this.#ring.slice(this.#start);
      this.#start = 0;
    }
    const last = events.at(-1);
    if (last) this.#head = last.seq_global;
    const due = this.#headWaiters.filter((waiter) => waiter.seq <= this.#head);
    if (due.length > 0) this.#headWaiters = this.#headWaiters.filter((waiter) => waiter.seq > this.#head);
    for (const waiter of due) waiter.resolve();
    for (const feed of this.#feeds) feed.woken(names);
  }

  /** A page of recent events after a cursor, or undefined when the ring does not reach back so far. */
  recent(after: number): readonly Recent[] | undefined {
    const first = this.#ring[this.#start]?.row.seq_global;
    if (first === undefined || after + 1 < first) return undefined;
    const from = this.#start + (after + 1 - first);
    let to = from;
    let chars = 0;
    for (let row = this.#ring[to]?.row; row; row = this.#ring[to]?.row) {
      to += 1;
      chars += row.body.length;
      if (row.command_end === 1 && (to - from >= PAGE || chars >= PAGE_CHARS)) break;
    }
    return this.#ring.slice(from, to);
  }

  /**
   * Wait for a turn to read the log: one page per round of the event loop, whoever reads, so that requests and
   * commits get in between however many readers catch up.
   */
  turn(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#turns.push(resolve);
    if (this.#turns.length === 1) setImmediate(() => this.#giveTurn());
    return promise;
  }

  #giveTurn(): void {
    this.#turns.shift()?.();
    if (this.#turns.length > 0) setImmediate(() => this.#giveTurn());
  }

  /**
   * Wait until the log has reached a position.
   * @returns false when it has not within `timeout_ms`, or the daemon is stopping
   */
  async reached(seq: number, timeout_ms: number): Promise<boolean> {
    if (seq <= this.#head) return true;
    if (this.#closed) return false;
    const { promise, resolve } = Promise.withResolvers<void>();
    const waiter = { seq, resolve };
    this.#headWaiters.push(waiter);
    const timer = setTimeout(resolve, timeout_ms);
    await promise;
    clearTimeout(timer);
    this.#headWaiters = this.#headWaiters.filter((each) => each !== waiter);
    return seq <= this.#head;
  }

  /**
   * Start a feed.
   * @returns the feed, or at once `cursor_ahead` (SPEC §5, guarantee 6), or why the hub was closed
   */
  open(subscription: Subscription): Feed | Problem {
    const refusal = this.#closed ?? this.checkCursor(subscription.after);
    if (refusal) return refusal;
    const feed = new Feed(this, subscription, () => this.#feeds.delete(feed));
    this.#feeds.add(feed);
    return feed;
  }

  /** `cursor_ahead` when a cursor is past the end, `cursor_foreign` when it is of another log. */
  checkCursor(after: number, log_id?: string): Problem | undefined {
    if (log_id !== undefined && log_id !== this.log_id)
      return problem("cursor_foreign", "the cursor is of another log than this daemon's", {
        details: { log_id: this.log_id },
      });
    if (after > this.#head)
      return problem("cursor_ahead", `the log ends at ${this.#head}, before the cursor`, {
        details: { head: this.#head, after, log_id: this.log_id },
      });
    return undefined;
  }

  /** End every feed and every wait, as the daemon does when it stops. Nothing is read from the log any more. */
  close(why: Problem): void {
    this.#closed = why;
    clearInterval(this.#heartbeat);
    for (const feed of [...this.#feeds]) feed.end(why);
    for (const waiter of this.#headWaiters) waiter.resolve();
  }
}

/** One reader's way through the log. Its transport calls `next` when it can take more. */
export class Feed {
  #after: number;
  /** The position that the reader knows to have, from an event or a control frame. */
  #told: number;
  #greeted = false;
  #live = false;
  #beat = false;
  #ended: Problem | undefined;
  #over = false;
  #wake: (() => void) | undefined;
  readonly #updated = new Set<string>();
  readonly #closed: () => void;

  constructor(
    readonly hub: Hub,
    readonly subscription: Subscription,
    closed: () => void,
  ) {
    this.#after = subscription.after;
    this.#told = subscription.after;
    this.#closed = closed;
  }

  /** True once `end` was given out or the reader has left: nothing comes any more. */
  get over(): boolean {
    return this.#over;
  }

  /** Is there nothing to give right now? */
  get idle(): boolean {
    return (
      this.#live &&
      this.#after === this.hub.head &&
      !this.#beat &&
      this.#updated.size === 0 &&
      this.#ended === undefined
    );
  }

  /**
   * The next frames, about a page of them at most.
   * @returns none when the reader has everything, and also when a page had nothing that passes: `idle` tells
   * @throws what reading the log throws; the position stays, so `end` may follow
   */
  next(): Frame[] {
    const { hub } = this;
    const frames: Frame[] = [];
    if (this.#over) return frames;
    if (!this.#greeted) {
      this.#greeted = true;
      frames.push({ kind: "hello", log_id: hub.log_id, oldest: 1, head: hub.head });
    }
    if (this.#ended) {
      this.close();
      frames.push({ kind: "end", problem: this.#ended, resume_after: this.#after });
      return frames;
    }
    if (this.#after < hub.head) this.#read(frames);
    if (this.#after < hub.head) return frames;
    if (!this.#live) {
      this.#live = true;
      this.#told = this.#after;
      frames.push({ kind: "caught_up", seq_global: this.#after });
    }
    for (const name of this.#updated)
      frames.push({ kind: "projection_updated", name, as_of_seq: this.#after });
    this.#updated.clear();
    if (this.#beat) {
      this.#beat = false;
      this.#told = this.#after;
      frames.push({ kind: "heartbeat", head: this.#after });
    }
    return frames;
  }

  /** Move on by one page. */
  #read(frames: Frame[]): void {
    const { hub } = this;
    const recent = hub.recent(this.#after);
    if (!recent && this.#live) {
      this.#live = false;
      frames.push({ kind: "fell_behind", seq_global: this.#after, head: hub.head });
    }
    const { events, upTo } = recent ? this.#fromRing(recent) : this.#fromLog();
    for (const event of events) frames.push(event);
    this.#after = upTo;
    this.#told = events.at(-1)?.seq_global ?? this.#told;
    if (upTo - this.#told >= PAGE) {
      this.#told = upTo;
      frames.push({ kind: "checkpoint", seq_global: upTo });
    }
  }

  #fromRing(recent: readonly Recent[]): { events: EventFrame[]; upTo: number } {
    const events: EventFrame[] = [];
    for (const { row, frame } of recent)
      if (passes(this.subscription.filter, row)) events.push(frame ?? this.#frame(row));
    return { events, upTo: recent.at(-1)!.row.seq_global };
  }

  #fromLog(): { events: EventFrame[]; upTo: number } {
    const { reader, head, converts } = this.hub;
    const { filter, as_stored } = this.subscription;
    const end = reader.boundary(Math.min(this.#after + PAGE, head));
    if (converts && !as_stored) {
      const { lines, upTo } = readPage(reader, "range", this.#after, end, filter);
      return { events: lines.map((line) => this.#frame(line)), upTo };
    }
    const { lines, upTo } = readPage(reader, "texts", this.#after, end, filter);
    return { events: lines.map(({ seq_global, body }) => ({ kind: "event", seq_global, body })), upTo };
  }

  #frame(line: Line): EventFrame {
    const { seq_global } = line;
    return {
      kind: "event",
      seq_global,
      body: this.subscription.as_stored ? line.body : currentBody(this.hub.registry, line),
    };
  }

  /** Wait until it is worth calling `next`: for the reader's turn while it is behind, for a wake once it is idle. */
  ready(): Promise<void> {
    if (!this.idle) return this.hub.turn();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    return promise;
  }

  /** Call back once, when an idle feed has something to give again. */
  onWake(callback: () => void): void {
    this.#wake = callback;
  }

  #rouse(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** The hub's signal after a commit. */
  woken(names: readonly string[]): void {
    if (this.subscription.projections) for (const name of names) this.#updated.add(name);
    this.#rouse();
  }

  /** The hub's signal that a heartbeat is due. Who has fallen behind gets other signs of life. */
  beat(): void {
    if (!this.#live) return;
    this.#beat = true;
    this.#rouse();
  }

  /** Give out `end` instead of what would come next. */
  end(why: Problem): void {
    this.#ended ??= why;
    this.#rouse();
  }

  /** The reader has left. */
  close(): void {
    this.#over = true;
    this.#closed();
  }
}

/**
 * Matching events in order, until the positions, the limit or the space are used up.
 * @param read with what it takes to convert them, or their texts only
 * @param upTo the last position to look at
 * @param limit events at most
 * @param chars of events after which no further command is begun
 * @returns the events, and the position up to which there are no others
 */
export function readPage<R extends "range" | "texts">(
  reader: LogReader,
  read: R,
  after: number,
  upTo: number,
  filter: Filter,
  limit: number = Number.MAX_SAFE_INTEGER,
  chars: number = PAGE_CHARS,
): { lines: ReturnType<LogReader[R]>; upTo: number } {
  const lines: Text[] = [];
  let at = after;
  let end = upTo;
  let space = chars;
  while (at < end && lines.length < limit) {
    const wanted = Math.min(STEP, limit - lines.length);
    const found: Text[] = reader[read](at, end, filter, wanted);
    for (const line of found) {
      lines.push(line);
      space -= line.body.length;
    }
    at = found.length < wanted ? end : found.at(-1)!.seq_global;
    if (space <= 0 && at < end) end = Math.min(end, reader.boundary(at));
  }
  return { lines: lines as ReturnType<LogReader[R]>, upTo: at };
}

function isCurrent(registry: Registry, { event_type, schema_version }: Omit<Line, keyof Text>): boolean {
  return registry.events.get(event_type)?.spec.version === schema_version;
}

/** An event's bytes in its current version: the stored ones unless they are of an older version. */
export function currentBody(registry: Registry, line: Line): string {
  if (isCurrent(registry, line)) return line.body;
  return canonical(currentEvent(registry, JSON.parse(line.body) as Event));
}

/**
 * Resolve the type globs of a filter (`task.*`, `*`) to exact types, so that nothing a client sends is a pattern later.
 * @returns undefined when everything passes
 */
export function resolveTypes(registry: Registry, globs: readonly string[] | undefined): string[] | undefined {
  if (!globs || globs.includes("*")) return undefined;
  const known = [...registry.events.keys()];
  return globs.flatMap((glob) =>
    glob.endsWith(".*") ? known.filter((type) => type.startsWith(glob.slice(0, -1))) : [glob],
  );
}
