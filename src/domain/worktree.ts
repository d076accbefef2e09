/** worktree: contract of tables; the rest follows. */
import { Type } from "typebox";
import { type RowOf, table } from "../kernel/aggregate.ts";
import { Id, nullable, oneOf, Path, Seq, Time } from "../kernel/schema.ts";

const worktrees = table(
  {
    worktree_id: Id,
    workspace_id: Id,
    project_id: Id,
    host: Type.String({ minLength: 1, maxLength: 255 }),
    path: Path,
    branch: nullable(Type.String({ maxLength: 255 })),
    origin: oneOf("created", "registered"),
    status: oneOf("creating", "present", "missing", "failed", "removing", "removed"),
    /** What git said when it could not do what was asked. */
    failure: nullable(Type.String({ maxLength: 4_096 })),
    /** The commit that the last look at git found. */
    commit: nullable(Type.String({ maxLength: 64 })),
    writer_status: oneOf("free", "held", "expired"),
    /** Who holds the writer lock; null when nobody does. */
    writer_session_id: nullable(Id),
    /** The last epoch that was given out; 0 when none was. */
    writer_epoch: Seq,
    created_at: Time,
    updated_at: Time,
    version: Seq,
    /** `host:path` while the place is taken, null once it is free again: its uniqueness is the rule. */
    place: nullable(Type.String()),
  },
  {
    key: ["worktree_id"],
    unique: [["place"]],
    index: [["workspace_id", "worktree_id"], ["project_id", "worktree_id"], ["status", "worktree_id"], ["writer_session_id"]],
    hidden: ["place"],
  },
);

const worktree_attachments = table(
  {
    worktree_id: Id,
    session_id: Id,
    mode: oneOf("read", "write"),
    attached_at: Time,
  },
  { key: ["worktree_id", "session_id"], index: [["session_id", "worktree_id"]] },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    worktrees: RowOf<typeof worktrees>;
    worktree_attachments: RowOf<typeof worktree_attachments>;
  }
  interface Calls {
    /** A session has ended: release its writer lock, if it has it, and detach it. */
    "worktree.leave": { readonly worktree_id: string; readonly session_id: string };
  }
}
