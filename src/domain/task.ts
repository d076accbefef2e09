/** task: contract of tables; the rest follows. */
import { Type } from "typebox";
import { type RowOf, table } from "../kernel/aggregate.ts";
import { Id, Name, nullable, oneOf, Seq, Time } from "../kernel/schema.ts";

const tasks = table(
  {
    task_id: Id,
    workspace_id: Id,
    project_id: Id,
    parent_task_id: nullable(Id),
    title: Name,
    body: nullable(Type.String({ maxLength: 32_768 })),
    priority: Type.Integer({ minimum: 0, maximum: 4 }),
    stage: nullable(Name),
    status: oneOf(
      "queued",
      "running",
      "paused",
      "awaiting_user_input",
      "blocked_by_policy",
      "blocked_by_approval",
      "succeeded",
      "failed",
      "cancelled",
    ),
    attempt: Seq,
    max_attempts: Seq,
    not_before: nullable(Time),
    deadline_at: nullable(Time),
    /** Why it is blocked, in the words of who blocked it. */
    blocked_reason: nullable(Type.String({ maxLength: 4_096 })),
    /** Who holds the claim; null when nobody does. */
    claim_session_id: nullable(Id),
    /** The last epoch that was given out; 0 when none was. */
    claim_epoch: Seq,
    /** How many of its dependencies have not succeeded. */
    unmet: Seq,
    failure_class: nullable(Name),
    failure_message: nullable(Type.String({ maxLength: 4_096 })),
    created_at: Time,
    updated_at: Time,
    version: Seq,
    /** 1 when it is queued and nothing is unmet: the ready queue but for not_before. */
    ready: Type.Integer({ minimum: 0, maximum: 1 }),
    /** JSON, as `complete` told it. */
    result: nullable(Type.String()),
  },
  {
    key: ["task_id"],
    index: [
      ["ready", "priority", "task_id"],
      ["ready", "project_id", "priority", "task_id"],
      ["workspace_id", "task_id"],
      ["project_id", "task_id"],
      ["parent_task_id", "task_id"],
      ["status", "task_id"],
      ["claim_session_id", "task_id"],
    ],
    hidden: ["ready", "result"],
  },
);

const task_dependencies = table(
  { task_id: Id, depends_on_task_id: Id },
  { key: ["task_id", "depends_on_task_id"], index: [["depends_on_task_id", "task_id"]] },
);

const task_attempts = table(
  {
    task_id: Id,
    attempt: Seq,
    session_id: Id,
    epoch: Seq,
    claimed_at: Time,
    ended_at: nullable(Time),
    outcome: nullable(oneOf("succeeded", "failed", "released", "expired", "cancelled")),
    failure_class: nullable(Name),
    failure_message: nullable(Type.String({ maxLength: 4_096 })),
  },
  { key: ["task_id", "attempt"], index: [["session_id", "task_id"]] },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    tasks: RowOf<typeof tasks>;
    task_dependencies: RowOf<typeof task_dependencies>;
    task_attempts: RowOf<typeof task_attempts>;
  }
  interface Calls {
    /** A session has ended: give back the claim it has on the task. */
    "task.leave": { readonly task_id: string; readonly session_id: string };
    "task.advance_stage": { readonly task_id: string; readonly stage: string };
  }
}
