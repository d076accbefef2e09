/** board: contract of tables; the rest follows. */
import { Type } from "typebox";
import { type RowOf, table } from "../kernel/aggregate.ts";
import { Id, Name, nullable, oneOf, Seq, Time } from "../kernel/schema.ts";

const boards = table(
  {
    board_id: Id,
    workspace_id: Id,
    name: Name,
    created_at: Time,
    updated_at: Time,
    version: Seq,
    name_key: Type.String(),
  },
  { key: ["board_id"], unique: [["workspace_id", "name_key"]], hidden: ["name_key"] },
);

const board_lanes = table(
  {
    board_id: Id,
    lane_id: Id,
    position: Seq,
    name: Name,
    /** The stage that a task gets by being moved here. */
    stage: nullable(Name),
    wip_limit: nullable(Seq),
    node_count: Seq,
  },
  { key: ["board_id", "lane_id"] },
);

const board_nodes = table(
  {
    board_id: Id,
    node_id: Id,
    lane_id: Id,
    rank: Type.String(),
    kind: oneOf("task", "session", "worktree", "artifact", "gate", "group", "comment"),
    /** What it stands for; null for kinds that only have a text. */
    ref_id: nullable(Id),
    text: nullable(Type.String({ maxLength: 4_096 })),
  },
  {
    key: ["board_id", "node_id"],
    unique: [
      ["board_id", "lane_id", "rank"],
      ["board_id", "ref_id"],
    ],
    index: [["ref_id", "board_id"]],
  },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    boards: RowOf<typeof boards>;
    board_lanes: RowOf<typeof board_lanes>;
    board_nodes: RowOf<typeof board_nodes>;
  }
}
