/**
 * Waiting for what another holds (SPEC §8, §12): a task, a writer lock.
 *
 * Waiting never polls: it hears the log from before its first try, so nothing that becomes free is missed; each event that
 * can free something leads to one more try, and of several that wait one wins and the others go on waiting.
 */
import type { TailFilter, TailFrame } from "../client/tail.ts";
import type { Target } from "../client/transport.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import type { Arg } from "./command.ts";
import type { Answered } from "./domain.ts";
import { INTERRUPTED, TERMINATED } from "./exit.ts";
import { daemonLink, type Sent } from "./link.ts";
import { note } from "./output.ts";
import type { Values } from "./payload.ts";

/** A clock that runs before the daemon's must not make it try without pause. */
const SOONEST_MS = 100;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** What time may mend. */
const PASSING = new Set([
  "task.none_ready",
  "task.not_ready",
  "task.already_claimed",
  "worktree.writer_held",
]);
/** Events that only take away: nothing becomes free by them. */
const TAKING = new Set([
  "task.claimed",
  "task.blocked",
  "task.paused",
  "task.dependency_added",
  "worktree.attached",
  "worktree.writer_locked",
  "worktree.writer_stolen",
]);

/** `--wait TIME` of a verb. */
export const waitArg = (description: string) =>
  ({ type: "string", format: "limit", valueHint: "TIME", description }) as const satisfies Arg;

/** Is it worth waiting after this refusal? */
export function isPassing({ reason }: Problem): boolean {
  return PASSING.has(reason ?? "");
}

/** May something have become free by this event? */
export function mayFree({ event_type }: Event): boolean {
  return !TAKING.has(event_type);
}

const words = {
  task: {
    waits: "waiting for a task",
    late: "nothing could be claimed",
    hint: "wait longer, or 'mp task ready' and 'mp task list --status running' show what there is",
  },
  lock: {
    waits: "waiting for the writer lock",
    late: "the writer lock did not become free",
    hint: "wait longer, work elsewhere, or take it away: mp worktree steal-writer",
  },
};

/** What is waited for. */
export interface Wish {
  readonly kind: keyof typeof words;
  /** Whose events count. */
  readonly filter: TailFilter;
  /** Gives back what nobody wants any more. */
  readonly undo: (receipt: Sent) => readonly [type: string, payload: Values];
}

/**
 * Carry out a command: with `--wait` as soon as it can be done, but no later than `--timeout` allows.
 * @param wishOf what it is for; a problem ends it
 * @returns the receipt; a problem: `timeout` when it could not be done in time; the exit code when a signal ended it
 */
export async function sendOnceFree(
  type: string,
  payload: Values,
  { values, link, out }: Answered,
  wishOf: () => Promise<Wish | Problem>,
): Promise<Sent | Problem | number> {
  const wait_ms = values.wait as number | undefined;
  if (wait_ms === undefined) return link.send(type, payload);
  const wish = await wishOf();
  if (isProblem(wish)) return wish;
  const target = await link.address();
  if (isProblem(target)) return target;
  const waiting = new Waiting(target, wish.filter, Math.min(wait_ms, Number(values.timeout ?? wait_ms)));
  // Once each: a second Ctrl-C ends the process at once.
  process.once("SIGINT", () => waiting.finish("SIGINT"));
  process.once("SIGTERM", () => waiting.finish("SIGTERM"));
  const interrupted = () => (waiting.over === "SIGINT" ? INTERRUPTED : TERMINATED);
  try {
    for (let told = false; ; told = true) {
      const woken = await waiting.next();
      if (isProblem(woken)) return woken;
      if (woken === "timeout") return waiting.late(wish.kind);
      if (woken !== "try") return interrupted();
      const receipt = await link.send(type, payload);
      if (isProblem(receipt)) {
        if (!isPassing(receipt)) return receipt;
        waiting.refusedWith(receipt);
        if (!told && out.terminal && !out.asJson) await note(`${words[wish.kind].waits}; Ctrl-C ends it`);
        continue;
      }
      if (waiting.over === undefined || waiting.over === "timeout") return receipt;
      // Whoever pressed Ctrl-C has no use for it: others have. Its key and expected version are the command's own.
      const { key: _, "expected-version": __, ...rest } = values;
      await daemonLink(rest).send(...wish.undo(receipt));
      return interrupted();
    }
  } finally {
    waiting.end();
  }
}

/** Why a wait is over. */
type Over = "timeout" | NodeJS.Signals;

/** What to wait for: news of the log, a time, an end. */
export class Waiting {
  readonly #stop = new AbortController();
  readonly #deadline: Timer;
  #alarm: Timer | undefined;
  #wake: (() => void) | undefined;
  /** Something has happened since the last try. */
  #news = false;
  #failed: Problem | undefined;
  #refused: Problem | undefined;
  over: Over | undefined;

  constructor(
    target: Target,
    filter: TailFilter,
    readonly wait_ms: number,
    /** Whether an event is a reason to try. */
    readonly frees: (event: Event) => boolean = mayFree,
  ) {
    this.#deadline = setTimeout(() => this.finish("timeout"), Math.min(wait_ms, LONGEST_TIMER_MS));
    void this.#listen(target, filter);
  }

  async #listen(target: Target, filter: TailFilter): Promise<void> {
    const { tail } = await import("../client/tail.ts");
    for await (const frame of tail(target, { filter, signal: this.#stop.signal })) this.#heard(frame);
  }

  #heard(frame: TailFrame): void {
    if (frame.kind === "end") this.#failed = frame.problem;
    // The first greeting is the leave to try; a later one comes after a connection was lost, or the daemon restarted.
    else if (frame.kind === "event" ? this.frees(frame.event) : frame.kind === "hello") this.#news = true;
    else return;
    this.#wake?.();
  }

  /** Nothing is waited for any more. */
  finish(over: Over): void {
    this.over ??= over;
    this.#wake?.();
  }

  /** Remember why it could not be had, and when that passes by itself. */
  refusedWith(refused: Problem): void {
    this.#refused = refused;
    const { next_at, not_before, expires_at } = (refused.details ?? {}) as Record<string, unknown>;
    const at = next_at ?? not_before ?? expires_at;
    clearTimeout(this.#alarm);
    if (typeof at !== "string") return;
    const ms = Math.max(SOONEST_MS, Date.parse(at) - Date.now());
    this.#alarm = setTimeout(
      () => {
        this.#news = true;
        this.#wake?.();
      },
      Math.min(ms, LONGEST_TIMER_MS),
    );
  }

  /** Wait until there is a reason to try, or none to go on. */
  async next(): Promise<"try" | Over | Problem> {
    while (!this.#news && this.over === undefined && this.#failed === undefined)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    if (this.#failed || this.over) return this.#failed ?? this.over!;
    this.#news = false;
    return "try";
  }

  /** The time is over: why, as far as is known, in the words of what was waited for last. */
  late(kind: Wish["kind"]): Problem {
    const refused = this.#refused;
    const { late, hint } = words[refused?.reason === "worktree.writer_held" ? "lock" : kind];
    const why = refused ? `: ${refused.detail}` : "";
    return problem("timeout", `${late} within ${spanOf(this.wait_ms)}${why}`, {
      hint,
      ...(refused?.details && { details: refused.details }),
    });
  }

  end(): void {
    clearTimeout(this.#deadline);
    clearTimeout(this.#alarm);
    this.#stop.abort();
  }
}
