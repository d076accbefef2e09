/**
 * The order of the queue of tasks (SPEC §8): by priority, then by age; who stands in it has nothing to wait for but its time.
 *
 * Always holds: whose turn it is costs a few looks into an index, however long the queue is. Part of task.ts.
 */
import type { Find, Read } from "../kernel/aggregate.ts";
import { LEAST_URGENT, type Queued } from "./task-rows.ts";

/** A part of the queue that one index holds in order. */
export type Part = Partial<Pick<Queued, "workspace_id" | "project_id" | "parent_task_id" | "stage">>;

/** Whose turn it is in a part of the queue. */
export function foremost(find: Find, part: Part, at: string): Queued | undefined {
  for (let from = 0; ; ) {
    const head = find.all("task_queue", { ...part, priority: { from } }, { limit: 1 })[0];
    if (!head) return undefined;
    const { priority, timed } = head;
    const other = timed ? head : find.all("task_queue", { ...part, priority, timed: 1 }, { limit: 1 })[0];
    const due = other && other.since <= at ? other : undefined;
    if (!timed) return due && precedes(due, head) ? due : head;
    if (due) return due;
    from = priority + 1;
  }
}

/** When the next task of a part of the queue becomes ready by nothing but its time; null when none does. */
export function nextTime(find: Pick<Find, "all">, part: Part, at: string): string | null {
  let next: string | null = null;
  for (let priority = 0; priority <= LEAST_URGENT; priority++) {
    const head = find.all(
      "task_queue",
      { ...part, priority, timed: 1, since: { above: at } },
      { limit: 1 },
    )[0];
    if (head && (next === null || head.since < next)) next = head.since;
  }
  return next;
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
  if (!found || find.one("projects", { project_id: found.project_id })?.status === "active") return found;
  return activeProjects(find, workspace_id)
    .flatMap((project_id) => foremost(find, { project_id, ...part }, at) ?? [])
    .reduce<Queued | undefined>((best, each) => (best && precedes(best, each) ? best : each), undefined);
}

/** The same of a workspace as `nextTime` of a part. */
export function nextTimeOf(
  find: Pick<Find, "all">,
  workspace_id: string,
  part: Part,
  at: string,
): string | null {
  if (nextTime(find, { workspace_id, ...part }, at) === null) return null;
  const times = activeProjects(find, workspace_id).map((project_id) =>
    nextTime(find, { project_id, ...part }, at),
  );
  return times.filter((time) => time !== null).sort()[0] ?? null;
}

function activeProjects(find: Pick<Find, "all">, workspace_id: string): string[] {
  return find.all("projects", { workspace_id, status: "active" }).map((each) => each.project_id);
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
