/**
 * The order of the queue of tasks (SPEC §8): by priority, then by age; who stands in it has nothing to wait for but its time.
 *
 * Always holds: whose turn it is costs a few looks into an index, however long the queue is, as long as few tasks of archived
 * projects stand in front. Part of task.ts.
 */
import type { Find, Read } from "../kernel/aggregate.ts";
import { LEAST_URGENT, type Queued } from "./task-rows.ts";

/** A part of the queue that one index holds in order. */
export type Part = Partial<Pick<Queued, "workspace_id" | "project_id" | "parent_task_id" | "stage">>;

/** Whether one stands before another in the queue. */
function precedes(one: Queued, other: Queued): boolean {
  if (one.priority !== other.priority) return one.priority < other.priority;
  return one.since === other.since ? one.task_id < other.task_id : one.since < other.since;
}

/** What keeps the work of a project from being begun, if anything does. Its tasks stand in the queue all the same. */
export function closedBy(
  find: Pick<Find, "one">,
  project_id: string,
): "project_archived" | "workspace_closed" | undefined {
  const project = find.one("projects", { project_id })!;
  if (project.status === "archived") return "project_archived";
  const workspace = find.one("workspaces", { workspace_id: project.workspace_id })!;
  return workspace.status === "closed" ? "workspace_closed" : undefined;
}

/** So many tasks of closed projects are passed over; where more stand in front, one looks project by project. */
const MOST_PASSED = 1_000;

type Line = { readonly priority: number; readonly timed: 0 | 1; readonly since?: object };

/** The first of one line of a part of the queue whose project is open. */
function head(find: Pick<Find, "one" | "all">, part: Part, line: Line): Queued | undefined {
  const isOpen = ({ project_id }: { readonly project_id: string }) =>
    closedBy(find, project_id) === undefined;
  for (const limit of [1, MOST_PASSED]) {
    const rows = find.all("task_queue", { ...part, ...line }, { limit });
    const found = rows.find(isOpen);
    if (found || rows.length < limit) return found;
  }
  if (part.project_id !== undefined || part.parent_task_id !== undefined) return undefined;
  const { workspace_id, ...rest } = part;
  return find
    .all("projects", { workspace_id, status: "active" })
    .filter(isOpen)
    .flatMap(({ project_id }) => find.all("task_queue", { project_id, ...rest, ...line }, { limit: 1 }))
    .reduce<Queued | undefined>((best, each) => (best && precedes(best, each) ? best : each), undefined);
}

/**
 * Whose turn it is in a part of the queue.
 * @param at the time, RFC 3339
 */
export function foremost(find: Find, part: Part, at: string): Queued | undefined {
  for (let from = 0; ; ) {
    const any = find.all("task_queue", { ...part, priority: { from } }, { limit: 1 })[0];
    if (!any) return undefined;
    const { priority } = any;
    const due = head(find, part, { priority, timed: 1, since: { upTo: at } });
    const other = any.timed ? undefined : head(find, part, { priority, timed: 0 });
    const first = due && other ? (precedes(due, other) ? due : other) : (due ?? other);
    if (first) return first;
    from = priority + 1;
  }
}

/**
 * When the next task of a part of the queue becomes ready by nothing but its time.
 * @param at the time, RFC 3339
 * @returns RFC 3339; null when none does
 */
export function nextTime(find: Pick<Find, "one" | "all">, part: Part, at: string): string | null {
  let next: string | null = null;
  for (let priority = 0; priority <= LEAST_URGENT; priority++) {
    const first = head(find, part, { priority, timed: 1, since: { above: at } });
    if (first && (next === null || first.since < next)) next = first.since;
  }
  return next;
}

/**
 * Tasks that stand behind one in a part of the queue, or from its start on, and whose time has come; closed projects' too.
 * @param at the time, RFC 3339
 * @param limit at most so many
 */
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
