/** artifact: contract of tables; the rest follows. */
import { Type } from "typebox";
import { type RowOf, table } from "../kernel/aggregate.ts";
import { Id, Name, nullable, oneOf, Seq, Time } from "../kernel/schema.ts";

const artifacts = table(
  {
    artifact_id: Id,
    workspace_id: Id,
    digest: Type.String({ pattern: "^sha256:[0-9a-f]{64}$" }),
    size: Seq,
    media_type: Type.String({ maxLength: 255 }),
    name: nullable(Name),
    status: oneOf("available", "expired"),
    /** How long the bytes are kept; null: until they are expired by a command. */
    expire_after_ms: nullable(Seq),
    expired_at: nullable(Time),
    created_at: Time,
    updated_at: Time,
    version: Seq,
  },
  {
    key: ["artifact_id"],
    index: [
      ["digest", "status"],
      ["workspace_id", "artifact_id"],
    ],
  },
);

const artifact_links = table(
  {
    artifact_id: Id,
    kind: oneOf("workspace", "project", "session", "worktree", "task", "board"),
    id: Id,
    linked_at: Time,
  },
  { key: ["artifact_id", "kind", "id"], index: [["id", "artifact_id"]] },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    artifacts: RowOf<typeof artifacts>;
    artifact_links: RowOf<typeof artifact_links>;
  }
}
