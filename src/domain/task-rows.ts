/**
 * The rows of tasks (SPEC §8): their tables, and how an event changes them.
 *
 * Always holds: `task_queue` has just the tasks that are queued and have nothing unmet, in the order in which they are
 * claimed, so what is finished or waits costs a claim nothing. Part of task.ts, which says when what happens.
 */
import { type Static, Type } from "typebox";
import { type Fact, type RowOf, type Rows, table, touched } from "../kernel/aggregate.ts";
import { Id, Name, nullable, object, oneOf, Seq, Time } from "../kernel/schema.ts";

export const Status = oneOf(
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
export const LEAST_URGENT = 4;
export const DEFAULT_PRIORITY = 2;

export const Priority = Type.Integer({
  minimum: 0,
  maximum: LEAST_URGENT,
  description: `0 is the most urgent, ${LEAST_URGENT} the least, ${DEFAULT_PRIORITY} when absent`,
});
export const Body = Type.String({ maxLength: 32_768 });
export const Words = Type.String({ maxLength: 4_096 });
export const Failure = object({ class: Name, message: Words });

export type Status = Static<typeof Status>;
/** Nothing is to be done any more, unless it is tried again. */
export function isDone(status: Status): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

export const shown = {
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
export const NEVER = "9999-12-31T23:59:59.999Z";

const task_queue = table(
  {
    task_id: Id,
    workspace_id: Id,
    project_id: Id,
    parent_task_id: nullable(Id),
    stage: nullable(Name),
    priority: Priority,
    /** 1 when its time had still to come at its creation: of those some are not due. */
    timed: Type.Integer({ minimum: 0, maximum: 1 }),
    /** When its time came or comes: at its creation, or `not_before` where that is later. */
    since: Time,
  },
  {
    // Two lines of each priority, in the order of claims. Every index ends in the key, so each part of the queue is so too.
    key: ["priority", "timed", "since", "task_id"],
    index: [
      ["workspace_id"],
      ["workspace_id", "stage"],
      ["project_id"],
      ["project_id", "stage"],
      ["parent_task_id"],
      ["parent_task_id", "stage"],
    ],
  },
);

const task_dependencies = table(
  { task_id: Id, depends_on_task_id: Id },
  { key: ["task_id", "depends_on_task_id"], index: [["depends_on_task_id", "task_id"]] },
);

export const attempt = {
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

export const tables = { tasks, task_queue, task_dependencies, task_attempts };
export type Row = RowOf<typeof tasks>;
export type Queued = RowOf<typeof task_queue>;
type TaskRows = { readonly [T in keyof typeof tables]: Rows<RowOf<(typeof tables)[T]>> };

declare module "../kernel/aggregate.ts" {
  interface Tables {
    tasks: RowOf<typeof tasks>;
    task_queue: RowOf<typeof task_queue>;
    task_dependencies: RowOf<typeof task_dependencies>;
    task_attempts: RowOf<typeof task_attempts>;
  }
}

/** Since when a task's time has come, RFC 3339, and whether it had to be waited for. */
function turn({ created_at, not_before }: Row): Pick<Queued, "timed" | "since"> {
  return not_before !== null && not_before > created_at
    ? { timed: 1, since: not_before }
    : { timed: 0, since: created_at };
}

/**
 * Whether the time of a task has still to come. A clock that is set back takes nothing away from those without one.
 * @param at the time, RFC 3339
 */
export function isEarly(row: Row, at: string): boolean {
  const { timed, since } = turn(row);
  return timed === 1 && since > at;
}

/** The row of a task in the queue. */
export function queued(row: Row): Queued {
  const { task_id, workspace_id, project_id, parent_task_id, stage, priority } = row;
  return { task_id, workspace_id, project_id, parent_task_id, stage, priority, ...turn(row) };
}

/** Columns that follow from the others. */
function derived({
  status,
  unmet,
  deadline_at,
}: Pick<Row, "status" | "unmet" | "deadline_at">): Pick<Row, "ready" | "due"> {
  return {
    ready: status === "queued" && unmet === 0 ? 1 : 0,
    due: deadline_at === null || isDone(status) ? NEVER : deadline_at,
  };
}

/** The row of the task that an event is about, as it was before it. Its creation made one. */
export function rowOf(rows: TaskRows, { subject }: Fact): Row {
  return rows.tasks.one({ task_id: subject.id })!;
}

/** A task begins: it is in the queue if it is ready. */
export function begin(rows: TaskRows, row: Omit<Row, "ready" | "due">): void {
  const whole = { ...row, ...derived(row) };
  rows.tasks.insert(whole);
  if (whole.ready === 1) rows.task_queue.insert(queued(whole));
}

/**
 * Change a task's row, and have it in the queue while it is ready, and only then.
 * @param row as it is
 * @param to what is to be different; `ready` and `due` follow from it
 */
export function change(rows: TaskRows, row: Row, to: Partial<Row>): void {
  const after = { ...row, ...to };
  const { ready, due } = derived(after);
  const { task_id } = row;
  rows.tasks.update({ task_id }, { ...to, ready, ...(due !== row.due && { due }) });
  const { priority, timed, since } = queued(row);
  if (ready > row.ready) rows.task_queue.insert(queued(after));
  else if (ready < row.ready) rows.task_queue.delete({ priority, timed, since, task_id });
  else if (ready === 1 && after.stage !== row.stage)
    rows.task_queue.update({ priority, timed, since, task_id }, { stage: after.stage });
}

/**
 * End the attempt that is under way: the row that tells of it. Nothing when nobody holds a claim.
 * @param failure of the work, where that is how it ended
 * @returns what is different in the task's row by it
 */
export function endAttempt(
  rows: TaskRows,
  row: Row,
  event: Fact,
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

/** Apply the end of a claim that is given back, or has run out: whoever comes next can have the task, unless something else stops it. */
export function claimOver(rows: TaskRows, event: Fact, outcome: "released" | "expired"): void {
  const row = rowOf(rows, event);
  change(rows, row, {
    ...endAttempt(rows, row, event, outcome),
    status: row.status === "running" ? "queued" : row.status,
    ...touched(event),
  });
}

/** Apply that nothing stops it any more: it goes on with whoever has the claim, or waits for the next one. */
export function goOn(rows: TaskRows, event: Fact): void {
  const row = rowOf(rows, event);
  change(rows, row, {
    status: row.claim_session_id === null ? "queued" : "running",
    blocked_reason: null,
    ...touched(event),
  });
}

/** JSON whose members stand in one order, whether the event is new or comes from the log. */
export function sortedJson(value: object): string {
  return JSON.stringify(value, (_, each) =>
    typeof each === "object" && each !== null && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)))
      : each,
  );
}

/**
 * Apply that a dependency comes or goes: it counts as long as it has not succeeded.
 * @param by 1 when it comes, -1 when it goes
 */
export function depend(rows: TaskRows, event: Fact<{ depends_on_task_id: string }>, by: 1 | -1): void {
  const row = rowOf(rows, event);
  const { task_id } = row;
  const { depends_on_task_id } = event.payload;
  const needed = rows.tasks.one({ task_id: depends_on_task_id })!;
  if (by === 1) rows.task_dependencies.insert({ task_id, depends_on_task_id });
  else rows.task_dependencies.delete({ task_id, depends_on_task_id });
  change(rows, row, { unmet: row.unmet + (needed.status === "succeeded" ? 0 : by), ...touched(event) });
}
