/**
 * The order of the queue of tasks (SPEC §8): by priority, then by age; who stands in it has nothing to wait for but its time.
 *
 * Always holds: whose turn it is costs a few looks into an index, however long the queue is. Part of task.ts.
 */
import type { Find, Read } from "../kernel/aggregate.ts";
import { LEAST_URGENT, type Queued } from "./task-rows.ts";

/** The time that `not_before` is held against. Whose time has come stays due when the clock is set back. */
export function horizon({ all }: Pick<Find, "all">, at: string): string {
  const youngest = all("tasks", { task_id: { above: "" } }, { descending: true, limit: 1 })[0];
  return youngest && youngest.created_at > at ? youngest.created_at : at;
}

/** A part of the queue that one index holds in order. */
export type Part = Partial<Pick<Queued, "workspace_id" | "project_id" | "parent_task_id" | "stage">>;

/** Whose turn it is in a part of the queue; when it is nobody's, when the first one's time comes. */
export function foremost(find: Find, part: Part, upTo: string): { next?: Queued; next_at: string | null } {
  let next_at: string | null = null;
  for (let from = 0; ; ) {
    const head = find.all("task_queue", { ...part, priority: { from } }, { limit: 1 })[0];
    if (!head) return { next_at };
    if (head.since <= upTo) return { next: head, next_at };
    // The first of its priority is not due, so none of it is.
    if (next_at === null || head.since < next_at) next_at = head.since;
    from = head.priority + 1;
  }
}

/** Whether one stands before another in the queue. */
function precedes(one: Queued, other: Queued): boolean {
  if (one.priority !== other.priority) return one.priority < other.priority;
  return one.since === other.since ? one.task_id < other.task_id : one.since < other.since;
}

/** Whose turn it is in a workspace, where an archived project's tasks stand in the queue but are nobody's work. */
export function foremostOf(
  find: Find,
  workspace_id: string,
  part: Part,
  upTo: string,
): ReturnType<typeof foremost> {
  const found = foremost(find, { workspace_id, ...part }, upTo);
  const project_id = found.next?.project_id;
  // A time to wait for may be that of an archived project's task as well.
  const open =
    project_id === undefined
      ? found.next_at === null
      : find.one("projects", { project_id })?.status === "active";
  if (open) return found;
  return find
    .all("projects", { workspace_id, status: "active" })
    .map((each) => foremost(find, { project_id: each.project_id, ...part }, upTo))
    .reduce(
      (best, each) => ({
        next_at: [best.next_at, each.next_at].filter((time) => time !== null).sort()[0] ?? null,
        ...(best.next && !(each.next && precedes(each.next, best.next))
          ? { next: best.next }
          : each.next && { next: each.next }),
      }),
      { next_at: null } as ReturnType<typeof foremost>,
    );
}

/** Up to so many tasks that stand behind one in the queue, or from its start on, whose time has come. */
export function following(
  read: Read,
  part: Part,
  after: Queued | undefined,
  upTo: string,
  limit: number,
): Queued[] {
  const rows: Queued[] = [];
  for (let priority = after?.priority ?? 0; priority <= LEAST_URGENT; priority++) {
    const pieces =
      after?.priority === priority
        ? [
            { since: { from: after.since, upTo: after.since }, task_id: { above: after.task_id } },
            { since: { above: after.since, upTo } },
          ]
        : [{ since: { upTo } }];
    for (const piece of pieces)
      if (rows.length < limit)
        rows.push(...read.all("task_queue", { ...part, priority, ...piece }, { limit: limit - rows.length }));
  }
  return rows;
}
