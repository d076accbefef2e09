/**
 * The leases of `mp session run` (SPEC §8): renewed by one timer, watched by one subscription.
 *
 * Always holds: what is taken away is noticed once, by whichever hears it first: the subscription says who took it and why, a
 * refused renewal only that it is gone. What the session's own commands give back is no loss. A daemon that is not there is
 * waited for, never started; after a restart every lease has a whole ttl (SPEC §8).
 */
import { tail } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Asker } from "./run-asker.ts";

export type Kind = "session" | "writer" | "claim";

/** One right with an end. */
export interface Lease {
  readonly kind: Kind;
  /** The id of the session, worktree or task. */
  readonly id: string;
  readonly epoch: number;
}

/** What was lost, and how. */
export interface Loss {
  readonly kind: Kind;
  /** For the end of the session, such as `worktree.writer_stolen`. */
  readonly reason: string;
  /** The rest of a sentence: what happened to it, and by whom. */
  readonly words: string;
}

const streams: Readonly<Record<Kind, string>> = { session: "session", writer: "worktree", claim: "task" };

/** How long the subscription may take to say more about a renewal that was refused, in milliseconds. */
const EXPLAIN_MS = 1_000;
const SHORTEST_RETRY_MS = 50;
const LONGEST_RETRY_MS = 1_000;
const RECONNECT_MS = 250;

export class Leases {
  readonly #held = new Map<Kind, Lease>();
  readonly #stop = new AbortController();
  #timer: Timer | undefined;
  #lost: Loss | undefined;

  constructor(
    readonly asker: Asker,
    readonly session_id: string,
    readonly ttl_ms: number,
    /** Called once: at the first thing that is lost. */
    readonly onLoss: (loss: Loss) => void,
  ) {}

  /** What was lost first. */
  get lost(): Loss | undefined {
    return this.#lost;
  }

  /** A lease that is still ours, as far as is known. */
  held(kind: Kind): Lease | undefined {
    return this.#held.get(kind);
  }

  /** Renew it from now on. */
  hold(lease: Lease): void {
    this.#held.set(lease.kind, lease);
    if (this.#timer === undefined) this.#arm(this.ttl_ms / 3);
  }

  /**
   * Watch what happens to the things that are held.
   * @param after the position of the log before which nothing can have happened to them
   */
  watch(after: number): void {
    void this.#follow(after);
  }

  /** Neither renew nor watch any more. A renewal that is under way does no harm, whatever becomes of it. */
  stop(): void {
    this.#stop.abort();
    clearTimeout(this.#timer);
  }

  #arm(ms: number): void {
    if (this.#stop.signal.aborted) return;
    this.#timer = setTimeout(() => void this.#renew(), ms);
  }

  async #renew(): Promise<void> {
    const answers = await Promise.all([...this.#held.values()].map((lease) => this.#one(lease)));
    const soon = Math.min(LONGEST_RETRY_MS, Math.max(SHORTEST_RETRY_MS, this.ttl_ms / 12));
    this.#arm(answers.includes("again") ? soon : this.ttl_ms / 3);
  }

  async #one({ kind, id, epoch }: Lease): Promise<"done" | "again"> {
    const { session_id } = this;
    const [type, payload] = {
      session: ["session.heartbeat", { session_id, epoch }] as const,
      writer: ["worktree.renew_writer", { worktree_id: id, session_id, epoch }] as const,
      claim: ["task.renew", { task_id: id, epoch }] as const,
    }[kind];
    const answer = await this.asker.renew(type, payload, this.ttl_ms / 3);
    if (!isProblem(answer)) return "done";
    if (answer.retryable) return "again";
    // Refused for good. Whoever took it has written that into the log before.
    setTimeout(() => this.#refused(kind, epoch, answer), EXPLAIN_MS);
    return "done";
  }

  #refused(kind: Kind, epoch: number, { reason, code, detail }: Problem): void {
    if (this.#stop.signal.aborted || this.#held.get(kind)?.epoch !== epoch) return;
    this.#lose({ kind, reason: reason ?? code, words: `is lost: ${detail}` });
  }

  #lose(loss: Loss): void {
    this.#held.delete(loss.kind);
    if (this.#lost) return;
    this.#lost = loss;
    this.onLoss(loss);
  }

  async #follow(from: number): Promise<void> {
    const { signal } = this.#stop;
    let after = from;
    while (!signal.aborted) {
      const target = await this.asker.address({ timeout_ms: LONGEST_RETRY_MS });
      if (!isProblem(target)) {
        const filter = { streams: [...this.#held.values()].map(({ kind, id }) => `${streams[kind]}/${id}`) };
        if (filter.streams.length === 0) return;
        for await (const frame of tail(target, { after, filter, signal })) {
          if (frame.kind !== "event") continue;
          after = frame.seq_global;
          this.#heard(frame.event as Event<Told>);
        }
      }
      await Bun.sleep(RECONNECT_MS);
    }
  }

  #heard(event: Event<Told>): void {
    const kind = (Object.keys(streams) as Kind[]).find((each) => streams[each] === event.subject.kind);
    const lease = kind && this.#held.get(kind);
    if (!lease || lease.id !== event.subject.id) return;
    const words = this.#ending(event, lease);
    if (words === undefined) return;
    // What the session's own commands give back is no loss, and neither is a task that is done in its name.
    const own = event.actor.kind === "session" && event.actor.id === this.session_id;
    const done = /^task\.(succeeded|failed)$/.test(event.event_type);
    if (own || done) this.#held.delete(lease.kind);
    else this.#lose({ kind: lease.kind, reason: event.event_type, words });
  }

  /** What an event says of the end of a lease; undefined when it goes on. */
  #ending({ event_type, payload, actor }: Event<Told>, { epoch }: Lease): string | undefined {
    const { session_id } = this;
    const by = actor.kind === "system" ? "by the daemon" : `by ${actor.kind} ${actor.id}`;
    const ours = payload.session_id === session_id && payload.epoch === epoch;
    switch (event_type) {
      case "session.lost":
        return "was given up by the daemon: no heartbeat came in time";
      case "session.resumed":
        return payload.epoch === epoch ? undefined : `was taken up elsewhere ${by}`;
      case "session.ended":
        return `was ended ${by}`;
      case "worktree.writer_stolen":
        return payload.from_session_id === session_id && payload.session_id !== session_id
          ? `was taken by session ${payload.session_id}, ${by}: ${payload.reason}`
          : undefined;
      case "worktree.writer_expired":
        return ours ? "ran out: no renewal came in time" : undefined;
      case "worktree.writer_released":
        return ours ? `was given back ${by}` : undefined;
      case "task.claim_expired":
        return ours ? "ran out: no renewal came in time" : undefined;
      case "task.released":
        return ours ? `was given back ${by}` : undefined;
      case "task.succeeded":
      case "task.failed":
        return payload.epoch === epoch ? `is over ${by}` : undefined;
      case "task.cancelled":
        return `is over, for the task was cancelled ${by}`;
      default:
        return undefined;
    }
  }
}

/** What is read of the payloads. */
interface Told {
  readonly session_id?: string;
  readonly from_session_id?: string;
  readonly epoch?: number;
  readonly reason?: string;
}
