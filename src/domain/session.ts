/** session: contract of tables; the rest follows. */
import { Type } from "typebox";
import { type RowOf, table } from "../kernel/aggregate.ts";
import { Id, Name, nullable, oneOf, Seq, Time } from "../kernel/schema.ts";

const sessions = table(
  {
    session_id: Id,
    workspace_id: Id,
    project_id: nullable(Id),
    parent_session_id: nullable(Id),
    root_session_id: Id,
    depth: Seq,
    status: oneOf("starting", "running", "idle", "waiting", "lost", "completed", "failed", "cancelled"),
    waiting_for: nullable(oneOf("approval", "user_input", "policy")),
    title: nullable(Name),
    agent_name: Name,
    agent_version: nullable(Name),
    agent_model: nullable(Name),
    external_ref: nullable(Type.String({ minLength: 1, maxLength: 512 })),
    epoch: Seq,
    ttl_ms: Seq,
    forked_from_session_id: nullable(Id),
    forked_at_seq: nullable(Seq),
    fork_mode: nullable(oneOf("new_worktree", "same_branch", "planning_only")),
    summary: nullable(Type.String({ maxLength: 4_096 })),
    exit_code: nullable(Type.Integer()),
    end_reason: nullable(Type.String({ maxLength: 128 })),
    ended_at: nullable(Time),
    created_at: Time,
    updated_at: Time,
    version: Seq,
  },
  {
    key: ["session_id"],
    index: [
      ["workspace_id", "session_id"],
      ["root_session_id", "session_id"],
      ["parent_session_id", "session_id"],
      ["status", "session_id"],
    ],
  },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    sessions: RowOf<typeof sessions>;
  }
}
