/**
 * Streams: from any cursor, in order, no gap, no duplicate, from backlog into live (SPEC §5).
 *
 * A `Feed` is one reader's position; it is pulled by its transport at the transport's pace, so a slow reader costs one
 * page of memory and nobody's time. The ring of recent events and the wake-up after a commit are shortcuts: what is
 * not in the ring is read from the log, which is the truth. Control frames name a position only after
 * every matching event up to it, and only at the end of a command.
 */
import canonicalize from "canonicalize";
import type { Event } from "./aggregate.ts";
import { type Filter, type Line, type LogReader, passes, type Stored } from "./log.ts";
import { type Problem, problem } from "./problems.ts";
import { currentEvent, type Registry } from "./registry.ts";

export type Frame =
  | { readonly kind: "hello"; readonly log_id: string; readonly oldest: number; readonly head: number }
  | { readonly kind: "event"; readonly seq_global: number; readonly body: string }
  | { readonly kind: "checkpoint"; readonly seq_global: number }
  | { readonly kind: "caught_up"; readonly seq_global: number }
  | { readonly kind: "fell_behind"; readonly seq_global: number; readonly head: number }
  | { readonly kind: "heartbeat"; readonly head: number }
  | { readonly kind: "projection_updated"; readonly name: string; readonly as_of_seq: number }
  | { readonly kind: "end"; readonly problem: Problem; readonly resume_after: number };

/** Milliseconds between heartbeats (SPEC §5). */
export const HEARTBEAT_MS = 15_000;

/** Events that one pull looks at, at most (a command's last events may come on top). */
const PAGE = 1_000;

/** The ring's bounds: events, and characters of them. */
const RING_EVENTS = 8_192;
const RING_CHARS = 8 << 20;

export interface Subscription {
  readonly after: number;
  readonly filter: Filter;
  /** Give old versions as they are stored. */
  readonly as_stored: boolean;
  /** Also tell when a projection's serving generation was switched or reached a new position. */
  readonly projections: boolean;
}

/** The front's view of the log's live end. One per process. */
export class Hub {
  #ring: Stored[] = [];
  /** Index in `#ring` of the oldest event that counts; the array is cut when half of it is stale. */
  #start = 0;
  #chars = 0;
  #head: number;
  readonly #feeds = new Set<Feed>();
  #headWaiters: { readonly seq: number; readonly resolve: () => void }[] = [];

  constructor(
    readonly reader: LogReader,
    readonly registry: Registry,
    readonly log_id: string,
  ) {
    this.#head = reader.head();
  }

  get head(): number {
    return this.#head;
  }

  get subscriptions(): number {
    return this.#feeds.size;
  }

  /** Take in what a commit made durable, and wake whoever waits. */
  publish(events: readonly Stored[], names: readonly string[]): void {
    for (const event of events) {
      this.#ring.push(event);
      this.#chars += event.body.length;
    }
    while (this.#ring.length - this.#start > RING_EVENTS || this.#chars > RING_CHARS)
      this.#chars -= this.#ring[this.#start++]!.body.length;
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

  /** The recent events after a cursor, or undefined when the ring does not reach back so far. */
  recent(after: number): readonly Stored[] | undefined {
    const first = this.#ring[this.#start]?.seq_global;
    if (first === undefined || after + 1 < first) return undefined;
    const from = this.#start + (after + 1 - first);
    let to = Math.min(from + PAGE, this.#ring.length);
    while (to < this.#ring.length && this.#ring[to - 1]!.command_end === 0) to++;
    return this.#ring.slice(from, to);
  }

  /**
   * Wait until the log has reached a position.
   * @returns false when it has not within `timeout_ms`
   */
  async reached(seq: number, timeout_ms: number): Promise<boolean> {
    if (seq <= this.#head) return true;
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
   * @returns the feed, or `cursor_ahead` at once (SPEC §5, guarantee 6)
   */
  open(subscription: Subscription): Feed | Problem {
    const ahead = this.checkCursor(subscription.after);
    if (ahead) return ahead;
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

  /** End every feed, as the daemon does when it stops. */
  close(why: Problem): void {
    for (const feed of [...this.#feeds]) feed.end(why);
  }
}

/** One reader's way through the log. Its transport calls `next` when it can take more. */
export class Feed {
  #after: number;
  #told: number;
  #greeted = false;
  #live = false;
  #ended: Problem | undefined;
  #over = false;
  #wake: (() => void) | undefined;
  readonly #updated = new Set<string>();

  constructor(
    readonly hub: Hub,
    readonly subscription: Subscription,
    readonly close: () => void,
  ) {
    this.#after = subscription.after;
    this.#told = subscription.after;
  }

  /** True once `end` was given out: nothing comes any more. */
  get over(): boolean {
    return this.#over;
  }

  /**
   * The next frames, at most about a page of them.
   * @returns none when the reader has everything; then `onWake` tells when to ask again
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
      this.#over = true;
      this.close();
      frames.push({ kind: "end", problem: this.#ended, resume_after: this.#after });
      return frames;
    }
    if (this.#after < hub.head) this.#read(frames);
    if (this.#after === hub.head && !this.#live) {
      this.#live = true;
      this.#told = this.#after;
      frames.push({ kind: "caught_up", seq_global: this.#after });
    }
    if (this.#after === hub.head) {
      for (const name of this.#updated)
        frames.push({ kind: "projection_updated", name, as_of_seq: this.#after });
      this.#updated.clear();
    }
    return frames;
  }

  /** Move on by one page. */
  #read(frames: Frame[]): void {
    const { hub, subscription } = this;
    const recent = hub.recent(this.#after);
    let upTo: number;
    let lines: readonly Line[];
    if (recent) {
      upTo = recent.at(-1)!.seq_global;
      lines = recent.filter((row) => passes(subscription.filter, row));
    } else {
      if (this.#live) {
        this.#live = false;
        frames.push({ kind: "fell_behind", seq_global: this.#after, head: hub.head });
      }
      upTo = Math.min(hub.reader.boundary(Math.min(this.#after + PAGE, hub.head)), hub.head);
      lines = hub.reader.range(this.#after, upTo, subscription.filter);
    }
    for (const line of lines)
      frames.push({
        kind: "event",
        seq_global: line.seq_global,
        body: subscription.as_stored ? line.body : currentBody(hub.registry, line),
      });
    this.#after = upTo;
    if (lines.length > 0) this.#told = lines.at(-1)!.seq_global;
    if (upTo - this.#told >= PAGE) {
      this.#told = upTo;
      frames.push({ kind: "checkpoint", seq_global: upTo });
    }
  }

  /** The heartbeat that is due, if the reader has everything: it names the position that it has. */
  heartbeat(): Frame | undefined {
    if (!this.#live || this.#after !== this.hub.head) return undefined;
    this.#told = this.#after;
    return { kind: "heartbeat", head: this.#after };
  }

  /** Call back once, when there may be more. */
  onWake(callback: () => void): void {
    this.#wake = callback;
  }

  /** Is there nothing to give right now? */
  get idle(): boolean {
    return (
      this.#greeted && this.#live && this.#after === this.hub.head && !this.#ended && this.#updated.size === 0
    );
  }

  /** The hub's signal after a commit. */
  woken(names: readonly string[]): void {
    if (this.subscription.projections) for (const name of names) this.#updated.add(name);
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Give out `end` after what is under way. */
  end(why: Problem): void {
    this.#ended ??= why;
    this.woken([]);
  }
}

/** An event's bytes in its current version: the stored ones unless they are of an older version. */
export function currentBody(registry: Registry, line: Line): string {
  if (registry.events.get(line.event_type)?.spec.version === line.schema_version) return line.body;
  return canonicalize(currentEvent(registry, JSON.parse(line.body) as Event))!;
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
