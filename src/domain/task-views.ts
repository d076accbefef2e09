/**
 * What queries tell of tasks (SPEC §8): the queue in pages, what is overdue, one task with all that bears on it.
 *
 * Always holds: a page goes on where the one before ended, whatever has changed between them. Part of task.ts.
 */
import { type Static, Type } from "typebox";
import { missing, type Read } from "../kernel/aggregate.ts";
import { DEFAULT_PAGE, Id, Name, object, oneOf } from "../kernel/schema.ts";
import { endOf } from "./lease.ts";
import { closedBy, following, nextTime, type Part } from "./task-queue.ts";
import { isEarly, NEVER, type Queued, queued, type Row, Status } from "./task-rows.ts";

export const Some = object({ task_id: Id, title: Name, status: Status });
/** How many unmet dependencies a refusal or an answer names. */
export const MAX_UNMET = 100;
/** How many dependencies, dependents and attempts `get` shows of each. */
const MAX_SHOWN = 1_000;
export const Why = object({
  because: oneOf("status", "dependency", "not_before", "project_archived", "workspace_closed"),
  detail: Type.String(),
  /** The dependency that has not succeeded. */
  task_id: Type.Optional(Id),
});

interface Page {
  readonly limit?: number;
  readonly cursor?: string;
}
type Filter = { readonly [K in "workspace_id" | "project_id" | "parent_task_id" | "stage"]?: string };

/** What no page gave is refused as every page refuses it. */
function badCursor(read: Read) {
  return read.page("tasks", {}, { cursor: "" });
}

/** The rows of these tasks, in this order. */
function rowsInOrder(read: Read, ids: readonly string[]): Row[] {
  if (ids.length === 0) return [];
  const found = new Map(read.all("tasks", { task_id: { oneOf: ids } }).map((row) => [row.task_id, row]));
  return ids.map((id) => found.get(id)!);
}

/** A page from one row more than it may have: the cursor is the task it ends with, whose place in the order never changes. */
function pageFrom(read: Read, ids: readonly string[], limit: number) {
  const page = ids.slice(0, limit);
  return { items: rowsInOrder(read, page), next: ids.length > limit ? page.at(-1)! : null };
}

/**
 * `task.ready`: the queue as a claimer finds it, in the order of claims, and when the next one's time comes.
 * @param at the time, RFC 3339
 * @throws BadCursor when the cursor is none that a page gave
 */
export function ready(read: Read, { limit = DEFAULT_PAGE, cursor, ...filter }: Filter & Page, at: string) {
  const last = cursor === undefined ? undefined : read.one("tasks", { task_id: cursor });
  if (cursor !== undefined && !last) return badCursor(read);
  const part = partOf(read, filter);
  if (!part) return { items: [], next: null, next_at: null };
  const projects = new Map<string, boolean>();
  const open = ({ project_id }: Queued) => {
    const known = projects.get(project_id) ?? closedBy(read, project_id) === undefined;
    projects.set(project_id, known);
    return known;
  };
  const ids: string[] = [];
  let after = last && queued({ ...last, ready: 1, result: null, due: NEVER });
  while (ids.length <= limit) {
    const rows = following(read, part, after, at, limit + 1);
    ids.push(...rows.filter(open).map((row) => row.task_id));
    if (rows.length <= limit) break;
    after = rows.at(-1);
  }
  return { ...pageFrom(read, ids, limit), next_at: nextTime(read, part, at) };
}

/** The part of the queue that a filter means, in the fewest words, so that one index serves it; undefined when it is empty. */
function partOf(read: Read, { workspace_id, project_id, parent_task_id, stage }: Filter): Part | undefined {
  const staged = stage === undefined ? {} : { stage };
  if (parent_task_id !== undefined) {
    const parent = read.one("tasks", { task_id: parent_task_id });
    const inside =
      parent &&
      (project_id ?? parent.project_id) === parent.project_id &&
      (workspace_id ?? parent.workspace_id) === parent.workspace_id;
    return inside ? { parent_task_id, ...staged } : undefined;
  }
  if (project_id === undefined) return workspace_id === undefined ? staged : { workspace_id, ...staged };
  const project = read.one("projects", { project_id });
  return project && (workspace_id ?? project.workspace_id) === project.workspace_id
    ? { project_id, ...staged }
    : undefined;
}

/**
 * `task.list` of those whose deadline has passed before they were done, the longest overdue first.
 * @param where columns of `tasks` with the value that each must have
 * @param at the time, RFC 3339
 * @throws BadCursor when the cursor is none that a page gave
 */
export function overdueOnes(
  read: Read,
  where: Readonly<Record<string, string | undefined>>,
  { limit = DEFAULT_PAGE, cursor }: Page,
  at: string,
) {
  const last = cursor === undefined ? undefined : read.one("tasks", { task_id: cursor });
  if (cursor !== undefined && !last?.deadline_at) return badCursor(read);
  const given = Object.entries(where).filter((each): each is [string, string] => each[1] !== undefined);
  const rows = read.sql<{ task_id: string }>(
    // The plus keeps SQLite from another index, behind which it would have to sort.
    `SELECT task_id FROM tasks WHERE due < ? AND (due, task_id) > (?, ?)
     ${given.map(([column]) => `AND +${column} = ?`).join(" ")} ORDER BY due, task_id LIMIT ?`,
    at,
    last?.deadline_at ?? "",
    last?.task_id ?? "",
    ...given.map(([, value]) => value),
    limit + 1,
  );
  return pageFrom(
    read,
    rows.map((row) => row.task_id),
    limit,
  );
}

/**
 * `task.get`: one task with all that bears on it.
 * @param at the time, RFC 3339
 * @returns `not_found` when there is none
 */
export function get(read: Read, { task_id }: { readonly task_id: string }, at: string) {
  const row = read.one("tasks", { task_id });
  if (!row) return missing("task", task_id);
  const linked = (own: string, other: string) =>
    read.sql<Static<typeof Some>>(
      `SELECT t.task_id, t.title, t.status FROM task_dependencies AS d JOIN tasks AS t ON t.task_id = d.${other}
       WHERE d.${own} = ? ORDER BY d.${other} LIMIT ${MAX_SHOWN}`,
      task_id,
    );
  const count = (own: string) =>
    read.sql<{ n: number }>(`SELECT count(*) AS n FROM task_dependencies WHERE ${own} = ?`, task_id)[0]!.n;
  const [told] = read.sql<{ result: string | null }>("SELECT result FROM tasks WHERE task_id = ?", task_id);
  const { claim_session_id, claim_epoch: epoch } = row;
  return {
    ...row,
    dependencies: linked("task_id", "depends_on_task_id"),
    dependency_count: count("task_id"),
    dependents: linked("depends_on_task_id", "task_id"),
    dependent_count: count("depends_on_task_id"),
    attempts: read
      .all("task_attempts", { task_id }, { by: ["attempt"], descending: true, limit: MAX_SHOWN })
      .reverse()
      .map(({ task_id: _, ...each }) => each),
    claim:
      claim_session_id === null
        ? null
        : {
            session_id: claim_session_id,
            epoch,
            attempt: row.attempt,
            expires_at: endOf(read, `task/${task_id}`) ?? at,
          },
    result: told?.result ? (JSON.parse(told.result) as object) : null,
    why: why(read, row, at),
  };
}

/** Why a task cannot be claimed now: nothing when it can. */
function why(read: Read, row: Row, at: string): Static<typeof Why>[] {
  const found: Static<typeof Why>[] = [];
  const { task_id, project_id, status, blocked_reason, not_before } = row;
  if (status !== "queued")
    found.push({
      because: "status",
      detail: `it is ${status}${blocked_reason === null ? "" : `: ${blocked_reason}`}`,
    });
  const unmet = read.sql<Static<typeof Some>>(
    `SELECT t.task_id, t.title, t.status FROM task_dependencies AS d JOIN tasks AS t ON t.task_id = d.depends_on_task_id
     WHERE d.task_id = ? AND t.status <> 'succeeded' ORDER BY d.depends_on_task_id LIMIT ${MAX_UNMET}`,
    task_id,
  );
  for (const each of unmet)
    found.push({
      because: "dependency",
      detail: `it waits for '${each.title}', which is ${each.status}`,
      task_id: each.task_id,
    });
  if (isEarly(row, at)) found.push({ because: "not_before", detail: `its time comes at ${not_before}` });
  const closed = closedBy(read, project_id);
  if (closed)
    found.push({
      because: closed,
      detail: closed === "project_archived" ? "its project is archived" : "its workspace is closed",
    });
  return found;
}
