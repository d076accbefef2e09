/**
 * task: a piece of work, done by one session at a time (SPEC §8). What may follow what is the table `transitions`.
 *
 * A task is ready when it is queued and all that it depends on has succeeded; `task_queue` holds those that are ready and
 * no others, in the order in which they are claimed, so what is finished or waits costs a claim nothing. A claim is a lease
 * with an epoch: whoever holds it says so with each word about the work, and is refused once it is over. Dependencies never
 * form a cycle. Left out on purpose: nothing here knows what the work is, or does any.
 */
import { type Static, Type } from "typebox";
import {
  aggregate,
  between,
  born,
  command,
  type Event,
  event,
  type Find,
  later,
  missing,
  query,
  type Read,
  type Refused,
  type RowOf,
  type Rows,
  reject,
  table,
  touched,
} from "../kernel/aggregate.ts";
import {
  DEFAULT_PAGE,
  Id,
  LARGE_PAGE,
  Name,
  nullable,
  object,
  oneOf,
  pageOf,
  Seq,
  Time,
} from "../kernel/schema.ts";
import { DEFAULT_TTL_MS, endOf, ttl } from "./lease.ts";
import { shut, unfit } from "./scope.ts";

const Status = oneOf(
  "queued",
  "running",
  "paused",
  "awaiting_user_input",
  "blocked_by_policy",
  "blocked_by_approval",
  "succeeded",
  "failed",
  "cancelled",
);
const LEAST_URGENT = 4;
const DEFAULT_PRIORITY = 2;
const DEFAULT_ATTEMPTS = 3;
/** What a task can depend on from the start: more does not fit into its event. */
const MAX_DEPENDS_ON = 1_000;

const Priority = Type.Integer({
  minimum: 0,
  maximum: LEAST_URGENT,
  description: `0 is the most urgent, ${LEAST_URGENT} the least, ${DEFAULT_PRIORITY} when absent`,
});
const Attempts = Type.Integer({ minimum: 1, maximum: 1_000 });
const Body = Type.String({ maxLength: 32_768 });
const Words = Type.String({ maxLength: 4_096 });
const Failure = object({ class: Name, message: Words });
/** Any JSON object: what came of the work, in the words of who did it. */
const Result = Type.Object({});
const Epoch = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Ttl = ttl("the claim lasts without a renewal");
const BlockedOn = oneOf("policy", "approval", "user_input");

type Status = Static<typeof Status>;
type Step =
  | "claim"
  | "release"
  | "complete"
  | "fail"
  | "block"
  | "unblock"
  | "pause"
  | "resume"
  | "retry"
  | "cancel";
type Followers = Readonly<Partial<Record<Status, Step>>>;

const fromPause = (on: "resume" | "unblock"): Followers => ({
  queued: on,
  running: on,
  cancelled: "cancel",
  failed: "fail",
});

/** SPEC §8: from each status to each that may follow it, and the command that leads there. */
const transitions: Readonly<Record<Status, Followers>> = {
  queued: {
    running: "claim",
    paused: "pause",
    cancelled: "cancel",
    blocked_by_policy: "block",
    blocked_by_approval: "block",
  },
  running: {
    succeeded: "complete",
    failed: "fail",
    cancelled: "cancel",
    paused: "pause",
    awaiting_user_input: "block",
    blocked_by_policy: "block",
    blocked_by_approval: "block",
    queued: "release",
  },
  paused: fromPause("resume"),
  awaiting_user_input: fromPause("unblock"),
  blocked_by_policy: fromPause("unblock"),
  blocked_by_approval: fromPause("unblock"),
  failed: { queued: "retry" },
  succeeded: {},
  cancelled: {},
};

const blockedBy = {
  policy: "blocked_by_policy",
  approval: "blocked_by_approval",
  user_input: "awaiting_user_input",
} as const;

/** Nothing is to be done any more, unless it is tried again. */
function isDone(status: Status): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

// ── Tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const shown = {
  task_id: Id,
  workspace_id: Id,
  project_id: Id,
  parent_task_id: nullable(Id),
  title: Name,
  body: nullable(Body),
  priority: Priority,
  stage: nullable(Name),
  status: Status,
  /** How often it was claimed. */
  attempt: Seq,
  max_attempts: Seq,
  not_before: nullable(Time),
  deadline_at: nullable(Time),
  /** Why it is blocked or paused, in the words of who did it. */
  blocked_reason: nullable(Words),
  /** Who holds the claim; null when nobody does. */
  claim_session_id: nullable(Id),
  /** The last epoch that was given out; 0 when none was. */
  claim_epoch: Seq,
  /** How many of its dependencies have not succeeded. */
  unmet: Seq,
  failure_class: nullable(Name),
  failure_message: nullable(Words),
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const tasks = table(
  {
    ...shown,
    /** 1 when it is queued and nothing is unmet: it is in the queue. */
    ready: Type.Integer({ minimum: 0, maximum: 1 }),
    /** JSON, as `complete` told it. */
    result: nullable(Type.String()),
    /** Its deadline while there is something to be done; NEVER otherwise. */
    due: Time,
  },
  {
    key: ["task_id"],
    // Where two serve alike SQLite takes the later one: so from those that tell little apart to those that tell much.
    index: [
      ["workspace_id"],
      ["project_id"],
      ["status"],
      ["stage"],
      ["due"],
      ["parent_task_id"],
      ["claim_session_id"],
    ],
    hidden: ["ready", "result", "due"],
  },
);

/** Later than any time on the wire that means something. */
const NEVER = "9999-12-31T23:59:59.999Z";

const task_queue = table(
  {
    task_id: Id,
    workspace_id: Id,
    project_id: Id,
    parent_task_id: nullable(Id),
    stage: nullable(Name),
    priority: Priority,
    /** When its time came or comes: at its creation, or `not_before` where that is later. */
    since: Time,
  },
  {
    // The order of claims. Every index ends in the key, so each part of the queue is in that order too.
    key: ["priority", "since", "task_id"],
    index: [
      ["workspace_id"],
      ["workspace_id", "stage"],
      ["project_id"],
      ["project_id", "stage"],
      ["parent_task_id"],
    ],
  },
);

const task_dependencies = table(
  { task_id: Id, depends_on_task_id: Id },
  { key: ["task_id", "depends_on_task_id"], index: [["depends_on_task_id", "task_id"]] },
);

const attempt = {
  attempt: Seq,
  session_id: Id,
  epoch: Seq,
  claimed_at: Time,
  ended_at: nullable(Time),
  outcome: nullable(oneOf("succeeded", "failed", "released", "expired", "cancelled")),
  failure_class: nullable(Name),
  failure_message: nullable(Words),
};

const task_attempts = table(
  { task_id: Id, ...attempt },
  { key: ["task_id", "attempt"], index: [["session_id", "task_id"]] },
);

const tables = { tasks, task_queue, task_dependencies, task_attempts };
type Row = RowOf<typeof tasks>;
type Queued = RowOf<typeof task_queue>;
type TaskRows = { readonly [T in keyof typeof tables]: Rows<RowOf<(typeof tables)[T]>> };

declare module "../kernel/aggregate.ts" {
  interface Tables {
    tasks: RowOf<typeof tasks>;
    task_queue: RowOf<typeof task_queue>;
    task_dependencies: RowOf<typeof task_dependencies>;
    task_attempts: RowOf<typeof task_attempts>;
  }
  interface Calls {
    /** A session has ended: give back the claim it has on the task. */
    "task.leave": { readonly task_id: string; readonly session_id: string };
    /** A session was resumed: the claim that it still has on the task gets a new epoch. */
    "task.take_up": { readonly task_id: string; readonly session_id: string };
    "task.advance_stage": { readonly task_id: string; readonly stage: string };
  }
}

// ── What a decision asks ────────────────────────────────────────────────────────────────────────────────────────────

interface State {
  readonly status: Status;
  /** Why it is blocked or paused. */
  readonly reason?: string | undefined;
  readonly stage?: string | undefined;
  readonly attempt: number;
  readonly max_attempts: number;
  /** The last that was given out. */
  readonly epoch: number;
  readonly claim?:
    | { readonly session_id: string; readonly epoch: number; readonly ttl_ms: number }
    | undefined;
}

function invalid({ status: from }: State, to: Status): Refused {
  return reject("task.invalid_transition", { from, to, allowed: Object.keys(transitions[from]) });
}

/** Why a step cannot be taken: the table does not have it, or has it for another command. */
function barred(state: State, to: Status, by: Step): Refused | undefined {
  return transitions[state.status][to] === by ? undefined : invalid(state, to);
}

/** Where a task goes on when nothing stops it any more. */
function goingOn({ claim }: State): "running" | "queued" {
  return claim ? "running" : "queued";
}

/**
 * Why whoever sends this epoch may not speak for the work.
 * @param to what the claim's holder wants of the task: told when the claim ended because the work did
 */
function stale(state: State, epoch: number, to: Status): Refused | undefined {
  if (state.claim?.epoch === epoch) return undefined;
  if (epoch === state.epoch && isDone(state.status)) return invalid(state, to);
  return reject("task.stale_epoch", { epoch, current: state.epoch });
}

/** Why these tasks are nothing to depend on for one of this workspace: each must be there, and in it. */
function foreign(find: Find, ids: readonly string[], workspace_id: string | undefined): Refused | undefined {
  if (ids.length === 0) return undefined;
  const found = new Map(find.all("tasks", { task_id: { oneOf: ids } }).map((row) => [row.task_id, row]));
  for (const task_id of ids) {
    const row = found.get(task_id);
    if (!row) return missing("task", task_id);
    if (row.workspace_id !== workspace_id)
      return reject("task.other_workspace", { task_id, workspace_id: row.workspace_id });
  }
  return undefined;
}

/** Why a task is no parent for one of this project. */
function foreignParent(find: Find, task_id: string | undefined, project_id: string): Refused | undefined {
  if (task_id === undefined) return undefined;
  const parent = find.one("tasks", { task_id });
  if (!parent) return missing("task", task_id);
  return parent.project_id === project_id
    ? undefined
    : reject("task.other_project", { task_id, project_id: parent.project_id });
}

/** How many tasks a step of a search looks at in one go. */
const SEARCH_STEP = 500;

/**
 * The shortest way from a task along what it depends on to another, both ends included. Breadth-first from both ends, always
 * on the side where less is open: when either runs dry there is no way, so a task that nothing depends on costs one look.
 */
function wayFrom(find: Find, from: string, to: string): string[] | undefined {
  if (from === to) return [from];
  const side = (start: string, step: (ids: readonly string[]) => (readonly [string, string])[]) => ({
    came: new Map<string, string | undefined>([[start, undefined]]),
    open: [start],
    step,
  });
  const down = side(from, (ids) =>
    find
      .all("task_dependencies", { task_id: { oneOf: ids } })
      .map(({ task_id, depends_on_task_id }) => [task_id, depends_on_task_id]),
  );
  const up = side(to, (ids) =>
    find
      .all(
        "task_dependencies",
        { depends_on_task_id: { oneOf: ids } },
        { by: ["depends_on_task_id", "task_id"] },
      )
      .map(({ task_id, depends_on_task_id }) => [depends_on_task_id, task_id]),
  );
  while (down.open.length > 0 && up.open.length > 0) {
    const [near, far] = down.open.length < up.open.length ? [down, up] : [up, down];
    const { open } = near;
    near.open = [];
    for (let at = 0; at < open.length; at += SEARCH_STEP)
      for (const [last, reached] of near.step(open.slice(at, at + SEARCH_STEP))) {
        if (near.came.has(reached)) continue;
        near.came.set(reached, last);
        if (far.came.has(reached))
          return [...trail(down.came, reached).reverse(), ...trail(up.came, reached).slice(1)];
        near.open.push(reached);
      }
  }
  return undefined;
}

function trail(came: ReadonlyMap<string, string | undefined>, from: string): string[] {
  const way: string[] = [];
  for (let at: string | undefined = from; at !== undefined; at = came.get(at)) way.push(at);
  return way;
}

// ── The queue ───────────────────────────────────────────────────────────────────────────────────────────────────────

function since({ created_at, not_before }: Pick<Row, "created_at" | "not_before">): string {
  return not_before !== null && not_before > created_at ? not_before : created_at;
}

/** The time that `not_before` is held against. Whose time has come stays due when the clock is set back. */
function horizon({ all }: Pick<Find, "all">, at: string): string {
  const youngest = all("tasks", { task_id: { above: "" } }, { descending: true, limit: 1 })[0];
  return youngest && youngest.created_at > at ? youngest.created_at : at;
}

/** A part of the queue that one index holds in order. */
type Part = Partial<Pick<Queued, "workspace_id" | "project_id" | "parent_task_id" | "stage">>;

/** Whose turn it is in a part of the queue; when it is nobody's, when the first one's time comes. */
function foremost(find: Find, part: Part, upTo: string): { next?: Queued; next_at: string | null } {
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
function foremostOf(find: Find, workspace_id: string, part: Part, upTo: string): ReturnType<typeof foremost> {
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
function following(read: Read, part: Part, after: Queued | undefined, upTo: string, limit: number): Queued[] {
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

// ── The read model ──────────────────────────────────────────────────────────────────────────────────────────────────

function queued(row: Row): Queued {
  const { task_id, workspace_id, project_id, parent_task_id, stage, priority } = row;
  return { task_id, workspace_id, project_id, parent_task_id, stage, priority, since: since(row) };
}

/** Columns that follow from the others. */
function derived({ status, unmet, deadline_at }: Row): Pick<Row, "ready" | "due"> {
  return {
    ready: status === "queued" && unmet === 0 ? 1 : 0,
    due: deadline_at === null || isDone(status) ? NEVER : deadline_at,
  };
}

function rowOf(rows: TaskRows, { subject }: Event): Row {
  return rows.tasks.one({ task_id: subject.id })!;
}

/** Change a task's row, and have it in the queue while it is ready, and only then. */
function change(rows: TaskRows, row: Row, to: Partial<Row>): void {
  const after = { ...row, ...to };
  const { ready, due } = derived(after);
  const { task_id } = row;
  rows.tasks.update({ task_id }, { ...to, ready, ...(due !== row.due && { due }) });
  const { priority, since } = queued(row);
  if (ready > row.ready) rows.task_queue.insert(queued(after));
  else if (ready < row.ready) rows.task_queue.delete({ priority, since, task_id });
  else if (ready === 1 && after.stage !== row.stage)
    rows.task_queue.update({ priority, since, task_id }, { stage: after.stage });
}

/** What ends with an attempt: the claim, and the row that tells of it. Nothing when nobody holds a claim. */
function endAttempt(
  rows: TaskRows,
  row: Row,
  event: Event,
  outcome: Static<typeof attempt.outcome>,
  failure?: Static<typeof Failure>,
): Partial<Row> {
  if (row.claim_session_id === null) return {};
  rows.task_attempts.update(
    { task_id: row.task_id, attempt: row.attempt },
    {
      ended_at: event.timestamp,
      outcome,
      failure_class: failure?.class ?? null,
      failure_message: failure?.message ?? null,
    },
  );
  return { claim_session_id: null };
}

/** The claim is given back, or has run out: whoever comes next can have the task, unless something else stops it. */
function claimOver(rows: TaskRows, event: Event, outcome: "released" | "expired"): void {
  const row = rowOf(rows, event);
  change(rows, row, {
    ...endAttempt(rows, row, event, outcome),
    status: row.status === "running" ? "queued" : row.status,
    ...touched(event),
  });
}

/** Nothing stops it any more: it goes on with whoever has the claim, or waits for the next one. */
function goOn(rows: TaskRows, event: Event): void {
  const row = rowOf(rows, event);
  change(rows, row, {
    status: row.claim_session_id === null ? "queued" : "running",
    blocked_reason: null,
    ...touched(event),
  });
}

/** JSON whose members stand in one order, whether the event is new or comes from the log. */
function sortedJson(value: object): string {
  return JSON.stringify(value, (_, each) =>
    typeof each === "object" && each !== null && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)))
      : each,
  );
}

// ── Queries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const Some = object({ task_id: Id, title: Name, status: Status });
/** How many dependencies, dependents and attempts `get` shows of each. */
const MAX_SHOWN = 1_000;
const Why = object({
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

/** The queue as a claimer finds it: what could be claimed now, in that order. */
function ready(read: Read, { limit = DEFAULT_PAGE, cursor, ...filter }: Filter & Page, at: string) {
  const last = cursor === undefined ? undefined : read.one("tasks", { task_id: cursor });
  if (cursor !== undefined && !last) return badCursor(read);
  const part = partOf(read, filter);
  if (!part) return { items: [], next: null };
  const projects = new Map<string, boolean>();
  const open = ({ project_id }: Queued) => {
    const known = projects.get(project_id) ?? closedBy(read, project_id) === undefined;
    projects.set(project_id, known);
    return known;
  };
  const upTo = horizon(read, at);
  const ids: string[] = [];
  let after = last && queued({ ...last, ready: 1, result: null, due: NEVER });
  while (ids.length <= limit) {
    const rows = following(read, part, after, upTo, limit + 1);
    ids.push(...rows.filter(open).map((row) => row.task_id));
    if (rows.length <= limit) break;
    after = rows.at(-1);
  }
  return pageFrom(read, ids, limit);
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

/** What keeps the work of a project from being begun, if anything does. */
function closedBy(read: Read, project_id: string): "project_archived" | "workspace_closed" | undefined {
  const project = read.one("projects", { project_id })!;
  if (project.status === "archived") return "project_archived";
  const workspace = read.one("workspaces", { workspace_id: project.workspace_id })!;
  return workspace.status === "closed" ? "workspace_closed" : undefined;
}

/** Tasks whose deadline has passed before they were done, the longest overdue first. */
function overdueOnes(
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

/** One task with all that bears on it. */
function get(read: Read, { task_id }: { readonly task_id: string }, at: string) {
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
  if (since(row) > horizon(read, at))
    found.push({ because: "not_before", detail: `its time comes at ${not_before}` });
  const closed = closedBy(read, project_id);
  if (closed)
    found.push({
      because: closed,
      detail: closed === "project_archived" ? "its project is archived" : "its workspace is closed",
    });
  return found;
}

/** How many unmet dependencies a refusal names. */
const MAX_UNMET = 100;

/** Why a queued task cannot be claimed yet. */
function unready(find: Find, task_id: string, at: string): Refused | undefined {
  const row = find.one("tasks", { task_id })!;
  const early = since(row) > horizon(find, at);
  if (row.unmet === 0 && !early) return undefined;
  const unmet =
    row.unmet === 0
      ? []
      : find
          .all("task_dependencies", { task_id })
          .map((each) => find.one("tasks", { task_id: each.depends_on_task_id })!)
          .filter((each) => each.status !== "succeeded")
          .slice(0, MAX_UNMET)
          .map(({ task_id, status }) => ({ task_id, status }));
  return reject("task.not_ready", { unmet, ...(early && { not_before: row.not_before }) });
}

// ── The aggregate ───────────────────────────────────────────────────────────────────────────────────────────────────

const described = {
  title: Name,
  body: Type.Optional(Body),
  parent_task_id: Type.Optional(Id),
  stage: Type.Optional(Name),
  not_before: Type.Optional(Time),
  deadline_at: Type.Optional(Time),
};
const Reason = Type.Optional(Words);
const filters = {
  project_id: Type.Optional(Id),
  stage: Type.Optional(Name),
  parent_task_id: Type.Optional(Id),
};
const held = { task_id: Id, epoch: Epoch };
const initial: State = { status: "queued", attempt: 0, max_attempts: 0, epoch: 0 };

export const task = aggregate(
  "task",
  initial,
)({
  commands: {
    create: command(
      {
        project_id: Id,
        ...described,
        priority: Type.Optional(Priority),
        depends_on: Type.Optional(Type.Array(Id, { maxItems: MAX_DEPENDS_ON })),
        max_attempts: Type.Optional(Attempts),
      },
      "Create a task; it can be claimed once all that it depends on has succeeded.",
      { creates: true },
    ),
    claim: command(
      {
        task_id: Type.Optional(Id),
        filter: Type.Optional(object(filters)),
        session_id: Id,
        ttl_ms: Type.Optional(Ttl),
      },
      "Take a task for a session: this one, or the first that is ready and matches.",
      {
        result: object({ task_id: Id, epoch: Seq, attempt: Seq, expires_at: Time }),
        rule: {
          holds: ({ task_id, filter }) => (task_id === undefined) !== (filter === undefined),
          message: "must have either task_id or filter, and not both",
        },
      },
    ),
    renew: command(held, "Say that the work goes on: the claim lasts for another ttl.", {
      renews: true,
      result: object({ epoch: Seq, expires_at: Time }),
    }),
    release: command({ ...held, reason: Reason }, "Give a claim back, so that another can take the task."),
    complete: command(
      { ...held, result: Type.Optional(Result) },
      "Say that the work is done, and what came of it.",
    ),
    fail: command({ ...held, failure: Failure }, "Say that the work has failed, and how."),
    block: command(
      { task_id: Id, on: BlockedOn, reason: Reason, epoch: Type.Optional(Epoch) },
      "Stop a task until a policy, an approval or a person's answer lets it go on.",
    ),
    unblock: command({ task_id: Id }, "Let a blocked task go on."),
    pause: command({ task_id: Id, reason: Reason }, "Stop a task until it is resumed."),
    resume: command({ task_id: Id }, "Let a paused task go on."),
    retry: command({ task_id: Id }, "Put a failed task into the queue again, while it has attempts left."),
    cancel: command({ task_id: Id, reason: Reason }, "Give a task up for good."),
    add_dependency: command(
      { task_id: Id, depends_on_task_id: Id },
      "Let a task wait until another has succeeded.",
    ),
    remove_dependency: command(
      { task_id: Id, depends_on_task_id: Id },
      "Let a task wait for another no more.",
    ),
    advance_stage: command({ task_id: Id, stage: Name }, "Put a task into another stage of its project."),
    expire_claim: command(held, "No renewal came in time.", { internal: true }),
    leave: command({ task_id: Id, session_id: Id }, "The session has ended: its claim goes.", {
      internal: true,
    }),
    take_up: command({ task_id: Id, session_id: Id }, "The session was resumed: its claim goes on.", {
      internal: true,
    }),
  },
  events: {
    created: event(1, {
      ...described,
      priority: Priority,
      depends_on: Type.Array(Id, { maxItems: MAX_DEPENDS_ON }),
      max_attempts: Attempts,
    }),
    claimed: event(1, { session_id: Id, epoch: Epoch, attempt: Epoch, ttl_ms: Ttl }),
    claim_resumed: event(1, { session_id: Id, epoch: Epoch, ttl_ms: Ttl }),
    released: event(1, { session_id: Id, epoch: Epoch, reason: Reason }),
    claim_expired: event(1, { session_id: Id, epoch: Epoch }),
    succeeded: event(1, { epoch: Epoch, result: Type.Optional(Result) }),
    failed: event(1, { epoch: Type.Optional(Epoch), failure: Failure }),
    blocked: event(1, { on: BlockedOn, reason: Reason }),
    unblocked: event(1, {}),
    paused: event(1, { reason: Reason }),
    resumed: event(1, {}),
    retried: event(1, {}),
    cancelled: event(1, { reason: Reason }),
    dependency_added: event(1, { depends_on_task_id: Id }),
    dependency_removed: event(1, { depends_on_task_id: Id }),
    stage_advanced: event(1, { from: Type.Optional(Name), stage: Name }),
  },
  reasons: {
    "task.already_claimed": {
      is: "another session holds the claim on the task",
      hint: "wait until it is released or runs out, see 'retry_after_ms', or take another: mp task claim",
    },
    "task.not_ready": {
      is: "the task waits for other tasks, or for its time",
      hint: "see 'unmet' and 'not_before' in the details, and mp task get TASK; take what is ready: mp task ready",
    },
    "task.none_ready": {
      is: "no task that matches is ready",
      hint: "wait for work with mp task claim --wait, see 'next_at' for when the next one's time comes, or ask for less",
    },
    "task.stale_epoch": {
      is: "the claim of that epoch is over: it was given back, has run out or is another's",
      hint: "stop the work: what it came to is not taken; claim the task again to go on: mp task claim",
    },
    "task.invalid_transition": {
      is: "the task cannot come from its status to that one by this command",
      hint: "see 'allowed' in the details, and mp task get TASK for what stops it: mp task unblock lets a blocked one go on, mp task resume a paused one, mp task retry a failed one",
    },
    "task.dependency_cycle": {
      is: "the task would wait for itself",
      hint: "see 'path' in the details: each of it waits for the next; take one out with mp task remove-dependency",
    },
    "task.attempts_exhausted": {
      is: "the task has no attempts left",
      hint: "create another task for the work, with mp task create, once the cause of the failures is mended",
    },
    "task.other_workspace": {
      is: "the other task is in another workspace",
      hint: "name a task of the same workspace, see mp task list --workspace WORKSPACE",
    },
    "task.other_project": {
      is: "the parent task is in another project",
      hint: "name a task of the same project, see mp task list --project PROJECT",
    },
  },
  scope: (_, payload, find) => {
    const project_id = payload.project_id as string;
    return { workspace_id: find.one("projects", { project_id })!.workspace_id, project_id };
  },
  lease: { of: ({ claim }) => claim, expire: "expire_claim" },
  choose: {
    claim({ filter = {}, session_id }, { find, at }) {
      const { project_id, parent_task_id, stage } = filter;
      const session = find.one("sessions", { session_id });
      if (!session) return missing("session", session_id);
      const { workspace_id } = session;
      const parent =
        parent_task_id === undefined ? undefined : find.one("tasks", { task_id: parent_task_id });
      const refused =
        shut(find, { workspace_id, project_id }) ??
        unfit(find, session_id, workspace_id) ??
        (parent_task_id === undefined ? undefined : foreign(find, [parent_task_id], workspace_id)) ??
        shut(find, { workspace_id, project_id: parent?.project_id }) ??
        (project_id === undefined ? undefined : foreignParent(find, parent_task_id, project_id));
      if (refused) return refused;
      const staged = stage === undefined ? {} : { stage };
      const upTo = horizon(find, at);
      const { next, next_at } =
        parent_task_id !== undefined
          ? foremost(find, { parent_task_id, ...staged }, upTo)
          : project_id !== undefined
            ? foremost(find, { project_id, ...staged }, upTo)
            : foremostOf(find, workspace_id, staged, upTo);
      return next?.task_id ?? reject("task.none_ready", { next_at });
    },
  },
  decide: {
    create(_, payload, { find }) {
      const {
        project_id,
        depends_on = [],
        priority = DEFAULT_PRIORITY,
        max_attempts = DEFAULT_ATTEMPTS,
        ...given
      } = payload;
      const project = find.one("projects", { project_id });
      if (!project) return missing("project", project_id);
      const { workspace_id } = project;
      const needed = [...new Set(depends_on)];
      return (
        shut(find, { workspace_id, project_id }) ??
        foreignParent(find, given.parent_task_id, project_id) ??
        foreign(find, needed, workspace_id) ?? [
          { type: "created", payload: { ...given, priority, max_attempts, depends_on: needed } },
        ]
      );
    },
    claim(state, { session_id, ttl_ms = DEFAULT_TTL_MS }, { find, id, at, scope }) {
      const refused = shut(find, scope) ?? unfit(find, session_id, scope.workspace_id);
      if (refused) return refused;
      const { claim, attempt: attempts } = state;
      if (claim) {
        const { epoch, session_id: holder } = claim;
        const expires_at = endOf(find, `task/${id}`) ?? at;
        if (holder === session_id)
          return { events: [], result: { task_id: id, epoch, attempt: attempts, expires_at } };
        const retry_after_ms = Math.max(0, between(at, expires_at));
        return reject("task.already_claimed", { holder, epoch, expires_at, retry_after_ms });
      }
      const not = barred(state, "running", "claim") ?? unready(find, id, at);
      if (not) return not;
      const [epoch, attempt] = [state.epoch + 1, attempts + 1];
      return {
        events: [{ type: "claimed", payload: { session_id, epoch, attempt, ttl_ms } }],
        result: { task_id: id, epoch, attempt, expires_at: later(at, ttl_ms) },
      };
    },
    renew: (state, { epoch }, { at }) =>
      stale(state, epoch, "running") ?? {
        events: [],
        result: { epoch, expires_at: later(at, state.claim!.ttl_ms) },
      },
    release: (state, { epoch, reason }) =>
      stale(state, epoch, "queued") ?? [
        { type: "released", payload: { session_id: state.claim!.session_id, epoch, reason } },
      ],
    complete: (state, { epoch, result }) =>
      stale(state, epoch, "succeeded") ??
      barred(state, "succeeded", "complete") ?? [{ type: "succeeded", payload: { epoch, result } }],
    fail: (state, { epoch, failure }) =>
      stale(state, epoch, "failed") ??
      barred(state, "failed", "fail") ?? [{ type: "failed", payload: { epoch, failure } }],
    block(state, { on, reason, epoch }, { find, scope }) {
      const to = blockedBy[on];
      const refused = shut(find, scope) ?? (epoch === undefined ? undefined : stale(state, epoch, to));
      if (refused) return refused;
      if (state.status === to)
        return saidAlready(state, reason) ? [] : [{ type: "blocked", payload: { on, reason } }];
      return barred(state, to, "block") ?? [{ type: "blocked", payload: { on, reason } }];
    },
    unblock(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      const to = goingOn(state);
      return state.status === to
        ? []
        : (barred(state, to, "unblock") ?? [{ type: "unblocked", payload: {} }]);
    },
    pause(state, { reason }, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "paused")
        return saidAlready(state, reason) ? [] : [{ type: "paused", payload: { reason } }];
      return barred(state, "paused", "pause") ?? [{ type: "paused", payload: { reason } }];
    },
    resume(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      const to = goingOn(state);
      return state.status === to ? [] : (barred(state, to, "resume") ?? [{ type: "resumed", payload: {} }]);
    },
    retry(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "queued") return [];
      const { attempt, max_attempts } = state;
      return (
        barred(state, "queued", "retry") ??
        (attempt >= max_attempts
          ? reject("task.attempts_exhausted", { attempt, max_attempts })
          : [{ type: "retried", payload: {} }])
      );
    },
    cancel(state, { reason }, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "cancelled") return [];
      return barred(state, "cancelled", "cancel") ?? [{ type: "cancelled", payload: { reason } }];
    },
    add_dependency(state, { depends_on_task_id }, { find, id, scope }) {
      const refused =
        shut(find, scope) ?? foreign(find, [depends_on_task_id], scope.workspace_id) ?? settled(state);
      if (refused) return refused;
      if (find.one("task_dependencies", { task_id: id, depends_on_task_id })) return [];
      const way = wayFrom(find, depends_on_task_id, id);
      return way
        ? reject("task.dependency_cycle", { path: [id, ...way] })
        : [{ type: "dependency_added", payload: { depends_on_task_id } }];
    },
    remove_dependency(state, { depends_on_task_id }, { find, id, scope }) {
      const refused =
        shut(find, scope) ?? foreign(find, [depends_on_task_id], scope.workspace_id) ?? settled(state);
      if (refused) return refused;
      return find.one("task_dependencies", { task_id: id, depends_on_task_id })
        ? [{ type: "dependency_removed", payload: { depends_on_task_id } }]
        : [];
    },
    advance_stage: (state, { stage }, { find, scope }) =>
      shut(find, scope) ??
      (state.stage === stage ? [] : [{ type: "stage_advanced", payload: { from: state.stage, stage } }]),
    expire_claim(state, { epoch }) {
      const { claim, attempt, max_attempts } = state;
      if (claim?.epoch !== epoch) return [];
      const { session_id } = claim;
      const expired = { type: "claim_expired", payload: { session_id, epoch } } as const;
      if (attempt < max_attempts) return [expired];
      const message = `the claim ran out in the last of ${max_attempts} attempts`;
      const failure = { class: "claim_expired", message };
      return [expired, { type: "failed", payload: { epoch, failure } }];
    },
    leave: ({ claim }, { session_id }) =>
      claim?.session_id === session_id
        ? [{ type: "released", payload: { session_id, epoch: claim.epoch, reason: "the session has ended" } }]
        : [],
    take_up: ({ claim, epoch }, { session_id }) =>
      claim?.session_id === session_id
        ? [{ type: "claim_resumed", payload: { ...claim, epoch: epoch + 1 } }]
        : [],
  },
  evolve: {
    created: (state, { stage, max_attempts }) => ({ ...state, stage, max_attempts }),
    claimed: (state, { session_id, epoch, attempt, ttl_ms }) => ({
      ...state,
      status: "running",
      attempt,
      epoch,
      claim: { session_id, epoch, ttl_ms },
    }),
    claim_resumed: (state, claim) => ({ ...state, epoch: claim.epoch, claim }),
    released: unclaimed,
    claim_expired: unclaimed,
    succeeded: (state) => ({ ...state, status: "succeeded", claim: undefined }),
    failed: (state) => ({ ...state, status: "failed", claim: undefined, reason: undefined }),
    blocked: (state, { on, reason }) => ({ ...state, status: blockedBy[on], reason }),
    unblocked: (state) => ({ ...state, status: goingOn(state), reason: undefined }),
    paused: (state, { reason }) => ({ ...state, status: "paused", reason }),
    resumed: (state) => ({ ...state, status: goingOn(state), reason: undefined }),
    retried: (state) => ({ ...state, status: "queued" }),
    cancelled: (state) => ({ ...state, status: "cancelled", claim: undefined, reason: undefined }),
    dependency_added: (state) => state,
    dependency_removed: (state) => state,
    stage_advanced: (state, { stage }) => ({ ...state, stage }),
  },
  readModel: {
    version: 1,
    tables,
    apply: {
      created: (rows, event) => {
        const { subject, workspace_id, project_id, payload } = event;
        const { depends_on } = payload;
        const met = depends_on.filter(
          (task_id) => rows.tasks.one({ task_id })!.status === "succeeded",
        ).length;
        const row: Row = {
          ...born(event),
          task_id: subject.id,
          workspace_id: workspace_id ?? "",
          project_id: project_id ?? "",
          parent_task_id: payload.parent_task_id ?? null,
          title: payload.title,
          body: payload.body ?? null,
          priority: payload.priority,
          stage: payload.stage ?? null,
          status: "queued",
          attempt: 0,
          max_attempts: payload.max_attempts,
          not_before: payload.not_before ?? null,
          deadline_at: payload.deadline_at ?? null,
          blocked_reason: null,
          claim_session_id: null,
          claim_epoch: 0,
          unmet: depends_on.length - met,
          failure_class: null,
          failure_message: null,
          result: null,
          ready: 0,
          due: NEVER,
        };
        const whole = { ...row, ...derived(row) };
        rows.tasks.insert(whole);
        if (whole.ready === 1) rows.task_queue.insert(queued(whole));
        for (const depends_on_task_id of depends_on)
          rows.task_dependencies.insert({ task_id: subject.id, depends_on_task_id });
      },
      claimed: (rows, event) => {
        const { session_id, epoch, attempt } = event.payload;
        const row = rowOf(rows, event);
        rows.task_attempts.insert({
          task_id: row.task_id,
          attempt,
          session_id,
          epoch,
          claimed_at: event.timestamp,
          ended_at: null,
          outcome: null,
          failure_class: null,
          failure_message: null,
        });
        change(rows, row, {
          status: "running",
          attempt,
          claim_session_id: session_id,
          claim_epoch: epoch,
          ...touched(event),
        });
      },
      claim_resumed: (rows, event) => {
        const { epoch } = event.payload;
        const { task_id, attempt } = rowOf(rows, event);
        rows.task_attempts.update({ task_id, attempt }, { epoch });
        rows.tasks.update({ task_id }, { claim_epoch: epoch, ...touched(event) });
      },
      released: (rows, event) => claimOver(rows, event, "released"),
      claim_expired: (rows, event) => claimOver(rows, event, "expired"),
      succeeded: (rows, event) => {
        const row = rowOf(rows, event);
        const { result } = event.payload;
        change(rows, row, {
          ...endAttempt(rows, row, event, "succeeded"),
          status: "succeeded",
          result: result === undefined ? null : sortedJson(result),
          ...touched(event),
        });
        for (const { task_id } of rows.task_dependencies.all({ depends_on_task_id: row.task_id })) {
          const dependent = rows.tasks.one({ task_id })!;
          change(rows, dependent, { unmet: dependent.unmet - 1 });
        }
      },
      failed: (rows, event) => {
        const row = rowOf(rows, event);
        const { failure } = event.payload;
        change(rows, row, {
          ...endAttempt(rows, row, event, "failed", failure),
          status: "failed",
          blocked_reason: null,
          failure_class: failure.class,
          failure_message: failure.message,
          ...touched(event),
        });
      },
      blocked: (rows, event) => {
        const { on, reason = null } = event.payload;
        change(rows, rowOf(rows, event), {
          status: blockedBy[on],
          blocked_reason: reason,
          ...touched(event),
        });
      },
      unblocked: goOn,
      paused: (rows, event) =>
        change(rows, rowOf(rows, event), {
          status: "paused",
          blocked_reason: event.payload.reason ?? null,
          ...touched(event),
        }),
      resumed: goOn,
      retried: (rows, event) =>
        change(rows, rowOf(rows, event), {
          status: "queued",
          failure_class: null,
          failure_message: null,
          ...touched(event),
        }),
      cancelled: (rows, event) => {
        const row = rowOf(rows, event);
        change(rows, row, {
          ...endAttempt(rows, row, event, "cancelled"),
          status: "cancelled",
          blocked_reason: null,
          ...touched(event),
        });
      },
      dependency_added: (rows, event) => depend(rows, event, 1),
      dependency_removed: (rows, event) => depend(rows, event, -1),
      stage_advanced: (rows, event) =>
        change(rows, rowOf(rows, event), { stage: event.payload.stage, ...touched(event) }),
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(Id),
        ...filters,
        status: Type.Optional(Status),
        session_id: Type.Optional(Id),
        overdue: Type.Optional(Type.Boolean()),
      },
      pageOf(object(shown)),
      "List tasks, oldest first; those that are overdue by their deadline.",
      (read, { session_id, overdue, limit, cursor, ...given }, at) => {
        const where = { ...given, claim_session_id: session_id };
        const page = { ...(limit !== undefined && { limit }), ...(cursor !== undefined && { cursor }) };
        if (overdue) return overdueOnes(read, where, page, at);
        return read.page("tasks", { ...where, due: overdue === false ? { from: at } : undefined }, page);
      },
    ),
    ready: query(
      { workspace_id: Type.Optional(Id), ...filters },
      pageOf(object(shown)),
      "List the tasks that can be claimed now, in the order in which they are: by priority, then by age.",
      ready,
      { largest: LARGE_PAGE },
    ),
    get: query(
      { task_id: Id },
      object({
        as_of_seq: Seq,
        ...shown,
        dependencies: Type.Array(Some),
        dependency_count: Seq,
        dependents: Type.Array(Some),
        dependent_count: Seq,
        attempts: Type.Array(object(attempt)),
        claim: nullable(object({ session_id: Id, epoch: Seq, attempt: Seq, expires_at: Time })),
        result: nullable(Result),
        why: Type.Array(Why),
      }),
      "Show one task, with its dependencies, its attempts, and why it cannot be claimed.",
      get,
    ),
  },
});

/** Whether a task is stopped in just these words, or nothing new is said. */
function saidAlready(state: State, reason: string | undefined): boolean {
  return reason === undefined || reason === state.reason;
}

/** Why the dependencies of a task no longer change: it is over for good. */
function settled(state: State): Refused | undefined {
  return Object.keys(transitions[state.status]).length === 0 ? invalid(state, state.status) : undefined;
}

function unclaimed(state: State): State {
  return { ...state, status: state.status === "running" ? "queued" : state.status, claim: undefined };
}

/** A dependency comes or goes: it counts as long as it has not succeeded. */
function depend(rows: TaskRows, event: Event<{ depends_on_task_id: string }>, by: 1 | -1): void {
  const row = rowOf(rows, event);
  const { task_id } = row;
  const { depends_on_task_id } = event.payload;
  const needed = rows.tasks.one({ task_id: depends_on_task_id })!;
  if (by === 1) rows.task_dependencies.insert({ task_id, depends_on_task_id });
  else rows.task_dependencies.delete({ task_id, depends_on_task_id });
  change(rows, row, { unmet: row.unmet + (needed.status === "succeeded" ? 0 : by), ...touched(event) });
}
