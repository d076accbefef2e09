/**
 * What a `mp session run` needs that others may have (SPEC §8): a writer lock, a task.
 *
 * Always holds: it is looked at, and waited for, before there is a session, so that waiting leaves none behind; that it was
 * free is no promise: whether it is had is decided when it is taken (run-take.ts).
 */
import type { TailFilter } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Asker } from "./run-asker.ts";
import type { Place } from "./run-place.ts";
import { surface } from "./surface.ts";
import { mayFree, type Wish } from "./waiting.ts";

/** As long as nothing runs, a daemon that is not there is started. */
export const START = { start: true } as const;
/** Tasks asked for at a time. */
const PAGE = 1_000;
/** How long a time that has come still counts: a timer may ring a little early. */
const JUST_MS = 1_000;

/** Events after which a task is not in the queue. */
const DONE = /\.(succeeded|failed|cancelled)$/;

interface Rows {
  readonly items: readonly { readonly not_before: string | null }[];
  readonly next: string | null;
}

export class Needs {
  /** When tasks of the queue become ready by themselves, which no event tells; undefined when it must be asked for. */
  #times: string[] | undefined;

  constructor(
    readonly asker: Asker,
    readonly place: Place,
    readonly write: boolean,
  ) {}

  /** What is waited for in the end. */
  get kind(): Wish["kind"] {
    return this.place.next || this.place.task_id !== undefined ? "task" : "lock";
  }

  /** Whose events count. */
  get filter(): TailFilter {
    const { workspace_id } = this.place;
    const types = [...(this.write ? ["worktree.*"] : []), ...(this.kind === "task" ? ["task.*"] : [])];
    return { workspace_id, types };
  }

  /** Whether an event may be what it waits for. */
  hears(event: Event): boolean {
    const { subject, event_type, payload } = event;
    if (subject.kind === "worktree") return subject.id === this.place.worktree?.id && mayFree(event);
    if (event_type === "task.created") {
      const { not_before } = payload as { readonly not_before?: string };
      if (not_before !== undefined) this.#times?.push(not_before);
    } else if (mayFree(event) && !DONE.test(event_type)) this.#times = undefined;
    return mayFree(event);
  }

  /** Why it cannot all be had now; undefined when it can, or when only taking it can tell. */
  async hindrance(): Promise<Problem | undefined> {
    const { worktree, task_id, next } = this.place;
    if (this.write && worktree) {
      const checked = await this.#ask("worktree.check", { path: worktree.path });
      if (isProblem(checked)) return checked;
    }
    if (task_id !== undefined) return this.#notReady(task_id);
    return next && this.#noneReady(next);
  }

  async #noneReady(filter: NonNullable<Place["next"]>): Promise<Problem | undefined> {
    const scope = { workspace_id: this.place.workspace_id, ...filter };
    const ready = await this.#ask("task.ready", { ...scope, limit: 1 });
    if (isProblem(ready) || (ready as Rows).items.length > 0) return isProblem(ready) ? ready : undefined;
    const next_at = await this.#nextOf(scope);
    if (isProblem(next_at)) return next_at;
    return refused(
      "task.none_ready",
      { next_at },
      "wait for one with --wait TIME; 'mp task list' shows them",
    );
  }

  /** When the first of these tasks becomes ready by itself; null when none does. */
  async #nextOf(scope: object): Promise<string | null | Problem> {
    if (this.#times === undefined) {
      const times: string[] = [];
      // What happens meanwhile makes it unknown again.
      this.#times = times;
      for (let cursor: string | null | undefined; cursor !== null; ) {
        const page = await this.#ask("task.list", {
          ...scope,
          status: "queued",
          limit: PAGE,
          ...(cursor && { cursor }),
        });
        if (isProblem(page)) {
          this.#times = undefined;
          return page;
        }
        times.push(...(page as Rows).items.flatMap(({ not_before }) => not_before ?? []));
        cursor = (page as Rows).next;
      }
    }
    const past = new Date(Date.now() - JUST_MS).toISOString();
    this.#times = this.#times?.filter((time) => time > past);
    return this.#times?.toSorted()[0] ?? null;
  }

  async #notReady(task_id: string): Promise<Problem | undefined> {
    const task = await this.#ask("task.get", { task_id });
    if (isProblem(task)) return task;
    const { status, why, claim, not_before } = task as Task;
    if (status === "running") return refused("task.already_claimed", { holder: claim?.session_id });
    const passing = why.filter(({ because }) => because === "dependency" || because === "not_before");
    if (passing.length === 0 || passing.length < why.length) return undefined;
    const unmet = why.flatMap((each) => each.task_id ?? []);
    const isEarly = passing.some(({ because }) => because === "not_before");
    return refused("task.not_ready", { unmet, ...(isEarly && { not_before }) });
  }

  #ask(type: string, params: Readonly<Record<string, unknown>>): Promise<object | Problem> {
    return this.asker.ask(type, params, START);
  }
}

interface Task {
  readonly status: string;
  readonly not_before: string | null;
  readonly claim: { readonly session_id: string } | null;
  readonly why: readonly { readonly because: string; readonly task_id?: string }[];
}

/** The refusal that taking it would meet, in the daemon's own words. */
function refused(reason: string, details: Readonly<Record<string, unknown>>, ownHint?: string): Problem {
  const { is, hint } = surface().reasons.get(reason)!;
  return problem("conflict", is, { reason, hint: ownHint ?? hint, details });
}
