/**
 * What a `mp session run` needs that others may have (SPEC §8): a writer lock, a task.
 *
 * Always holds: it is looked at, and waited for, before there is a session, so that waiting leaves none behind; that it was
 * free is no promise: whether it is had is decided when it is taken (run-take.ts).
 */
import type { TailFilter } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { type Asker, START } from "./run-asker.ts";
import type { Place } from "./run-place.ts";
import { surface } from "./surface.ts";
import { mayFree, type Wish } from "./waiting.ts";

/** What one run needs: whether it is there, and what to listen to until it is. */
export class Needs {
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
    if (event.subject.kind === "worktree" && event.subject.id !== this.place.worktree?.id) return false;
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
    if (isProblem(ready)) return ready;
    const { items, next_at } = ready as {
      readonly items: readonly object[];
      readonly next_at: string | null;
    };
    if (items.length > 0) return undefined;
    const hint = "wait for one with --wait TIME; 'mp task list' shows them";
    return refused("task.none_ready", { next_at }, hint);
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
