/**
 * The order of the queue of tasks (SPEC §8): by priority, then by age; who stands in it has nothing to wait for but its time.
 *
 * Always holds: whose turn it is costs a few looks into an index, however long the queue is. Part of task.ts.
 */
import type { Find, Read } from "../kernel/aggregate.ts";
import { LEAST_URGENT, type Queued } from "./task-rows.ts";

/** A part of the queue that one index holds in order. */
export type Part = Partial<Pick<Queued, "workspace_id" | "project_id" | "parent_task_id" | "stage">>;

/** Whose turn it is in a part of the queue; when it is nobody's, when the first one's time comes. */
export function foremost(find: Find, part: Part, at: string): { next?: Queued; next_at: string | null } {
  let next_at: string | null = null;
  for (let from = 0; ; ) {
    const head = find.all("task_queue", { ...part, priority: { from } }, { limit: 1 })[0];
    if (!head) return { next_at };
    const { priority, timed } = head;
    const other = timed ? head : find.all("task_queue", { ...part, priority, timed: 1 }, { limit: 1 })[0];
    const due = other && other.since <= at ? other : undefined;
    if (!timed) return { next: due && precedes(due, head) ? due : head, next_at };
    if (due) return { next: due, next_at };
    if (next_at === null || head.since < next_at) next_at = head.since;
    from = priority + 1;
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
  at: string,
): ReturnType<typeof foremost> {
  const found = foremost(find, { workspace_id, ...part }, at);
  const project_id = found.next?.project_id;
  // A time to wait for may be that of an archived project's task as well.
  const open =
    project_id === undefined
      ? found.next_at === null
      : find.one("projects", { project_id })?.status === "active";
  if (open) return found;
  return find
    .all("projects", { workspace_id, status: "active" })
    .map((each) => foremost(find, { project_id: each.project_id, ...part }, at))
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
  at: string,
  limit: number,
): Queued[] {
  const rows: Queued[] = [];
  for (let priority = after?.priority ?? 0; priority <= LEAST_URGENT && rows.length < limit; priority++) {
    const lines = [{ timed: 0 }, { timed: 1, since: { upTo: at } }].flatMap((line) => {
      const pieces =
        after?.priority === priority
          ? [
              { ...line, since: after.since, task_id: { above: after.task_id } },
              { ...line, since: { ...line.since, above: after.since } },
            ]
          : [line];
      return pieces.flatMap((piece) => read.all("task_queue", { ...part, priority, ...piece }, { limit }));
    });
    rows.push(...lines.sort((one, other) => (precedes(one, other) ? -1 : 1)));
  }
  return rows.slice(0, limit);
}
