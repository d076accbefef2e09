/**
 * board: lanes of nodes, and the edges between what the nodes stand for (SPEC §8).
 *
 * A node's place in its lane is a rank: a text that the daemon chooses, stored in the event, compared byte by byte; no two
 * nodes of a lane have one. A thing stands on a board once. A task whose node enters a lane with a stage gets that stage in
 * the same transaction, or nothing happens; moving it within the lane says nothing about its stage. Edges are nobody's
 * state: they are read from sessions, tasks, worktrees and artifacts. A limit on work in progress only tells (`over_limit`).
 * Left out on purpose: ranks are never dealt anew; one grows by a character about every six moves into the same gap.
 */
import { generateKeyBetween } from "fractional-indexing";
import { type Static, Type } from "typebox";
import {
  aggregate,
  born,
  type Call,
  command,
  event,
  type Find,
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
  field,
  foldCase,
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
import { shut } from "./scope.ts";

const NodeKind = oneOf("task", "session", "worktree", "artifact", "gate", "group", "comment");
type NodeKind = Static<typeof NodeKind>;

const Text = Type.String({ minLength: 1, maxLength: 4_096 });
/** In base 62, as `fractional-indexing` makes it. */
const Rank = Type.String({ pattern: "^[0-9A-Za-z]+$" });
const WipLimit = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });

const shown = {
  board_id: Id,
  workspace_id: Id,
  name: Name,
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const boards = table(
  { ...shown, name_key: Type.String() },
  { key: ["board_id"], unique: [["workspace_id", "name_key"]], hidden: ["name_key"] },
);

const laneShown = {
  lane_id: Id,
  position: Seq,
  name: Name,
  /** The stage that a task gets by being moved here. */
  stage: nullable(Name),
  wip_limit: nullable(WipLimit),
  node_count: Seq,
};

const board_lanes = table({ board_id: Id, ...laneShown }, { key: ["board_id", "lane_id"] });

const nodeShown = {
  node_id: Id,
  lane_id: Id,
  rank: Rank,
  kind: NodeKind,
  /** What it stands for; null for kinds that only have a text. */
  ref_id: nullable(Id),
  text: nullable(Text),
};

const board_nodes = table(
  { board_id: Id, ...nodeShown },
  {
    key: ["board_id", "node_id"],
    unique: [
      ["board_id", "lane_id", "rank"],
      // Also for the boards that a thing stands on.
      ["ref_id", "board_id"],
    ],
  },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    boards: RowOf<typeof boards>;
    board_lanes: RowOf<typeof board_lanes>;
    board_nodes: RowOf<typeof board_nodes>;
  }
}

const laneFields = { name: Name, stage: Type.Optional(Name), wip_limit: Type.Optional(WipLimit) };
const askedLane = {
  name: field(Name, "what the lane is called"),
  stage: Type.Optional(field(Name, "the stage that a task gets by being moved there")),
  wip_limit: Type.Optional(
    field(WipLimit, "how many nodes it should hold at most: more are told, not refused"),
  ),
};
const Lane = object({ lane_id: Id, ...laneFields });
type Lane = Static<typeof Lane>;

/** At least one, because a node must lie somewhere; few enough that every answer can have them all. */
const manyLanes = { minItems: 1, maxItems: 64 };

const neighbours = {
  after: Type.Optional(
    field(Id, "right behind this node of the lane; with before too, somewhere between the two"),
  ),
  before: Type.Optional(field(Id, "right before this node of the lane")),
};

/** Why two lanes of a list cannot have their names: they are unique without regard to case. */
function sameName(lanes: readonly { readonly name: string }[]): Refused | undefined {
  const first = new Map<string, number>();
  for (const [at, { name }] of lanes.entries()) {
    const before = first.get(foldCase(name));
    if (before !== undefined) return reject("board.duplicate_lane", { lanes: [before, at] });
    first.set(foldCase(name), at);
  }
  return undefined;
}

/** The workspace of what a node is to stand for; undefined when there is no such thing. */
function workspaceOf(find: Find, kind: NodeKind, id: string): string | undefined {
  switch (kind) {
    case "task":
      return find.one("tasks", { task_id: id })?.workspace_id;
    case "session":
      return find.one("sessions", { session_id: id })?.workspace_id;
    case "worktree":
      return find.one("worktrees", { worktree_id: id })?.workspace_id;
    case "artifact":
      return find.one("artifacts", { artifact_id: id })?.workspace_id;
    default:
      return undefined;
  }
}

/**
 * The rank for a place in a lane: right behind `after`, else right before `before`, else at the end.
 * @param wanted where it is to be
 * @param moved the node that moves, if it is on the board already
 * @returns its rank; the one it has when it is there already
 */
function rankFor(
  find: Find,
  wanted: {
    readonly board_id: string;
    readonly lane_id: string;
    readonly after?: string;
    readonly before?: string;
  },
  moved?: RowOf<typeof board_nodes>,
): string | Refused {
  const { board_id, lane_id } = wanted;
  const neighbour = (node_id: string) => {
    const node = find.one("board_nodes", { board_id, node_id });
    return node?.lane_id === lane_id && node_id !== moved?.node_id ? node.rank : undefined;
  };
  const nearest = (rank: { above?: string; below?: string }, descending: boolean) =>
    find.all("board_nodes", { board_id, lane_id, rank }, { by: ["rank"], descending, limit: 1 })[0]?.rank;

  const after = wanted.after === undefined ? undefined : neighbour(wanted.after);
  if (wanted.after !== undefined && after === undefined)
    return reject("board.neighbour_not_in_lane", { node_id: wanted.after });
  const before = wanted.before === undefined ? undefined : neighbour(wanted.before);
  if (wanted.before !== undefined && (before === undefined || (after !== undefined && after >= before)))
    return reject("board.neighbour_not_in_lane", { node_id: wanted.before });

  const low = after ?? nearest(before === undefined ? {} : { below: before }, true);
  const high = after === undefined ? before : nearest({ above: after }, false);
  const own = moved?.lane_id === lane_id ? moved.rank : undefined;
  if (own !== undefined) {
    const between = after !== undefined && before !== undefined && after < own && own < before;
    if (between || own === (after === undefined ? low : high)) return own;
  }
  return generateKeyBetween(low, high);
}

/** What entering a lane asks of a task. */
function advance(lane: Lane, kind: NodeKind, ref_id: string | null | undefined): Call[] {
  if (kind !== "task" || lane.stage === undefined || !ref_id) return [];
  return [{ type: "task.advance_stage", payload: { task_id: ref_id, stage: lane.stage } }];
}

/** The lanes of a board as answers show them, in their order. */
function lanesOf(read: Read, board_id: string) {
  return read.all("board_lanes", { board_id }, { by: ["position"] }).map(({ board_id: _, ...lane }) => ({
    ...lane,
    over_limit: lane.wip_limit !== null && lane.node_count > lane.wip_limit,
  }));
}

/** The nodes of a page with what they stand for; those between two ids, of one lane or of all. */
const NODES = `
  SELECT a.node_id, a.lane_id, a.rank, a.kind, a.ref_id, a.text,
    coalesce(t.title, s.title, s.agent_name, w.path, f.name, f.digest) AS title,
    coalesce(t.status, s.status, w.status, f.status) AS status
  FROM board_nodes a
  LEFT JOIN tasks t ON a.kind = 'task' AND t.task_id = a.ref_id
  LEFT JOIN sessions s ON a.kind = 'session' AND s.session_id = a.ref_id
  LEFT JOIN worktrees w ON a.kind = 'worktree' AND w.worktree_id = a.ref_id
  LEFT JOIN artifacts f ON a.kind = 'artifact' AND f.artifact_id = a.ref_id
  WHERE a.board_id = ?1 AND a.node_id BETWEEN ?2 AND ?3 AND (?4 IS NULL OR a.lane_id = ?4)
  ORDER BY a.node_id`;

/**
 * One kind of edges that start at a page's nodes and end on the board. They go from what names the other to what it names, so
 * that each is found by the key of the node it starts at; CROSS JOIN makes SQLite look in the order that is written.
 */
const edges = (
  kind: string,
  relation: string,
  found: { from: string; in: string; by: string; to: string },
) => `
  SELECT '${kind}' AS kind, ${relation} AS relation, a.node_id AS from_node_id, b.node_id AS to_node_id
  FROM a CROSS JOIN ${found.in} x ON x.${found.by} = a.ref_id
  CROSS JOIN board_nodes b ON b.ref_id = x.${found.to} AND b.board_id = ?1
  WHERE a.kind = '${found.from}'`;

const ofSession = { from: "session", in: "sessions", by: "session_id" };
const EDGES = `
  WITH a AS MATERIALIZED (
    SELECT node_id, kind, ref_id FROM board_nodes
    WHERE board_id = ?1 AND node_id BETWEEN ?2 AND ?3 AND (?4 IS NULL OR lane_id = ?4) AND ref_id IS NOT NULL
  )
  ${[
    edges("lineage", "'parent'", { ...ofSession, to: "parent_session_id" }),
    edges("lineage", "'fork'", { ...ofSession, to: "forked_from_session_id" }),
    edges("attachment", "x.mode", { ...ofSession, in: "worktree_attachments", to: "worktree_id" }),
    edges("dependency", "'depends_on'", {
      from: "task",
      in: "task_dependencies",
      by: "task_id",
      to: "depends_on_task_id",
    }),
    edges("provenance", "'linked'", { from: "artifact", in: "artifact_links", by: "artifact_id", to: "id" }),
  ].join(" UNION ALL ")}
  ORDER BY from_node_id, to_node_id, kind, relation`;

const LaneAnswer = object({ ...laneShown, over_limit: Type.Boolean() });

const NodeAnswer = object({
  ...nodeShown,
  /** What it stands for is called so: a session without a title by its agent, a worktree by its path, an artifact at last by its digest. */
  title: nullable(Type.String()),
  /** Of what it stands for. */
  status: nullable(Type.String()),
});

const EdgeAnswer = object({
  kind: oneOf("lineage", "dependency", "attachment", "provenance"),
  /** The session has this parent, was forked from it; the task depends on it; the session is attached to it; the artifact is linked to it. */
  relation: oneOf("parent", "fork", "depends_on", "read", "write", "linked"),
  from_node_id: Id,
  to_node_id: Id,
});

export const board = aggregate("board", { lanes: [] as readonly Lane[] })({
  commands: {
    create: command(
      {
        workspace_id: field(Id, "the workspace that it lies in"),
        name: field(Name, "what it is called"),
        lanes: field(Type.Array(object(askedLane), manyLanes), "its lanes, from left to right"),
      },
      "Create a board with its lanes, from left to right.",
      { creates: true },
    ),
    add_node: command(
      {
        board_id: field(Id, "the board that it comes on"),
        lane_id: field(Id, "the lane that it comes into"),
        kind: field(NodeKind, "what kind of thing the node stands for"),
        ref_id: Type.Optional(field(Id, "the thing that the node stands for")),
        text: Type.Optional(field(Text, "what a gate, a group or a comment says")),
        ...neighbours,
      },
      "Put a thing, or a text, on a board: at the end of a lane, or beside other nodes of it.",
      {
        result: object({ node_id: Id, rank: Rank }),
        rule: {
          holds: ({ kind, ref_id, text }) =>
            ["gate", "group", "comment"].includes(kind)
              ? text !== undefined && ref_id === undefined
              : ref_id !== undefined && text === undefined,
          message: "must have a text and no ref_id for gate, group and comment, else a ref_id and no text",
        },
      },
    ),
    move_node: command(
      {
        board_id: field(Id, "the board that it is on"),
        node_id: field(Id, "the node to move"),
        lane_id: field(Id, "the lane that it comes into"),
        ...neighbours,
      },
      "Move a node to the end of a lane, or beside other nodes of it.",
      { result: object({ rank: Rank }) },
    ),
    remove_node: command(
      {
        board_id: field(Id, "the board that it is on"),
        node_id: field(Id, "the node to take off"),
      },
      "Take a node off a board; what it stands for stays as it is.",
    ),
    update_lanes: command(
      {
        board_id: field(Id, "the board whose lanes change"),
        lanes: field(
          Type.Array(
            object({
              lane_id: Type.Optional(field(Id, "the lane that stays; a new one when absent")),
              ...askedLane,
            }),
            manyLanes,
          ),
          "all its lanes, from left to right",
        ),
      },
      "Give a board another list of lanes, whole and in order: those with a lane_id stay, others are new, missing ones go.",
      {
        rule: {
          holds: ({ lanes }) => {
            const ids = lanes.flatMap(({ lane_id }) => lane_id ?? []);
            return new Set(ids).size === ids.length;
          },
          message: "must not name a lane_id twice",
        },
      },
    ),
  },
  events: {
    created: event(1, { name: Name, lanes: Type.Array(Lane, manyLanes) }),
    node_added: event(1, {
      node_id: Id,
      lane_id: Id,
      rank: Rank,
      kind: NodeKind,
      ref_id: Type.Optional(Id),
      text: Type.Optional(Text),
    }),
    node_moved: event(1, { node_id: Id, from_lane_id: Id, lane_id: Id, rank: Rank }),
    node_removed: event(1, { node_id: Id }),
    lanes_updated: event(1, { lanes: Type.Array(Lane, manyLanes) }),
  },
  reasons: {
    "board.name_taken": {
      is: "another board of the workspace has that name",
      hint: "choose another name, or use the board whose id is in the details",
    },
    "board.duplicate_lane": {
      is: "two lanes of the board would have the same name",
      hint: "'lanes' in the details are their places in the list: give each lane a name of its own; the case of letters makes no difference",
    },
    "board.lane_not_empty": {
      is: "a lane that would go still has nodes",
      hint: "move them to another lane first, mp board move-node, or keep the lane",
    },
    "board.already_on_board": {
      is: "it is on the board already",
      hint: "move the node whose id is in the details: mp board move-node",
    },
    "board.neighbour_not_in_lane": {
      is: "a neighbour is not another node of that lane, or the two are in the other order",
      hint: "read the lane again, mp board snapshot BOARD, and name nodes that are in it",
    },
    "board.other_workspace": {
      is: "it is in another workspace than the board",
      hint: "put it on a board of its own workspace: mp board list",
    },
  },
  scope: (_, { workspace_id }) => ({ workspace_id: workspace_id as string }),
  decide: {
    create(_, { workspace_id, name, lanes }, { find, newId }) {
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      const named = find.one("boards", { workspace_id, name_key: foldCase(name) });
      if (named) return reject("board.name_taken", { board_id: named.board_id });
      const made = lanes.map((lane) => ({ lane_id: newId(), ...lane }));
      return sameName(lanes) ?? [{ type: "created", payload: { name, lanes: made } }];
    },

    add_node(state, wanted, { find, scope: { workspace_id }, newId }) {
      const { board_id, lane_id, kind, ref_id, text } = wanted;
      const lane = state.lanes.find((each) => each.lane_id === lane_id);
      if (!lane) return missing("lane", lane_id);
      const lies = ref_id === undefined ? workspace_id : workspaceOf(find, kind, ref_id);
      if (ref_id !== undefined && lies === undefined) return missing(kind, ref_id);
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      if (lies !== workspace_id) return reject("board.other_workspace", { kind, id: ref_id });
      const known = ref_id === undefined ? undefined : find.one("board_nodes", { ref_id, board_id });
      if (known) return reject("board.already_on_board", { node_id: known.node_id });
      const rank = rankFor(find, wanted);
      if (typeof rank !== "string") return rank;
      const node_id = newId();
      return {
        events: [{ type: "node_added", payload: { node_id, lane_id, rank, kind, ref_id, text } }],
        result: { node_id, rank },
        also: advance(lane, kind, ref_id),
      };
    },

    move_node(state, { node_id, ...wanted }, { find, scope: { workspace_id } }) {
      const { board_id, lane_id } = wanted;
      const node = find.one("board_nodes", { board_id, node_id });
      if (!node) return missing("node", node_id);
      const lane = state.lanes.find((each) => each.lane_id === lane_id);
      if (!lane) return missing("lane", lane_id);
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      const rank = rankFor(find, wanted, node);
      if (typeof rank !== "string") return rank;
      const enters = node.lane_id !== lane_id;
      if (!enters && rank === node.rank) return { events: [], result: { rank } };
      return {
        events: [{ type: "node_moved", payload: { node_id, from_lane_id: node.lane_id, lane_id, rank } }],
        result: { rank },
        also: enters ? advance(lane, node.kind, node.ref_id) : [],
      };
    },

    remove_node(_, { board_id, node_id }, { find, scope: { workspace_id } }) {
      if (!find.one("board_nodes", { board_id, node_id })) return missing("node", node_id);
      return shut(find, { workspace_id }) ?? [{ type: "node_removed", payload: { node_id } }];
    },

    update_lanes(state, { board_id, lanes }, { find, scope: { workspace_id }, newId }) {
      const stay = new Set(lanes.map(({ lane_id }) => lane_id));
      for (const { lane_id } of lanes)
        if (lane_id !== undefined && !state.lanes.some((each) => each.lane_id === lane_id))
          return missing("lane", lane_id);
      const refused = shut(find, { workspace_id }) ?? sameName(lanes);
      if (refused) return refused;
      for (const { lane_id } of state.lanes) {
        const node_count = stay.has(lane_id)
          ? 0
          : (find.one("board_lanes", { board_id, lane_id })?.node_count ?? 0);
        if (node_count > 0) return reject("board.lane_not_empty", { lane_id, node_count });
      }
      const same =
        lanes.length === state.lanes.length &&
        state.lanes.every(({ lane_id, name, stage, wip_limit }, at) => {
          const lane = lanes[at]!;
          return (
            lane.lane_id === lane_id &&
            lane.name === name &&
            lane.stage === stage &&
            lane.wip_limit === wip_limit
          );
        });
      const made = lanes.map(({ lane_id = newId(), ...lane }) => ({ lane_id, ...lane }));
      return same ? [] : [{ type: "lanes_updated", payload: { lanes: made } }];
    },
  },
  evolve: {
    created: (_, { lanes }) => ({ lanes }),
    // Nodes are looked up where they are needed: a board has thousands.
    node_added: (state) => state,
    node_moved: (state) => state,
    node_removed: (state) => state,
    lanes_updated: (_, { lanes }) => ({ lanes }),
  },
  readModel: {
    version: 1,
    tables: { boards, board_lanes, board_nodes },
    apply: {
      created: (rows, event) => {
        const { subject, workspace_id, payload } = event;
        const board_id = subject.id;
        rows.boards.insert({
          ...born(event),
          board_id,
          workspace_id: workspace_id ?? "",
          name: payload.name,
          name_key: foldCase(payload.name),
        });
        for (const [position, { lane_id, name, stage = null, wip_limit = null }] of payload.lanes.entries())
          rows.board_lanes.insert({ board_id, lane_id, position, name, stage, wip_limit, node_count: 0 });
      },
      node_added: (rows, event) => {
        const { node_id, lane_id, rank, kind, ref_id = null, text = null } = event.payload;
        const board_id = event.subject.id;
        rows.board_nodes.insert({ board_id, node_id, lane_id, rank, kind, ref_id, text });
        count(rows.board_lanes, { board_id, lane_id }, 1);
        rows.boards.update({ board_id }, touched(event));
      },
      node_moved: (rows, event) => {
        const { node_id, from_lane_id, lane_id, rank } = event.payload;
        const board_id = event.subject.id;
        rows.board_nodes.update({ board_id, node_id }, { lane_id, rank });
        if (from_lane_id !== lane_id) {
          count(rows.board_lanes, { board_id, lane_id: from_lane_id }, -1);
          count(rows.board_lanes, { board_id, lane_id }, 1);
        }
        rows.boards.update({ board_id }, touched(event));
      },
      node_removed: (rows, event) => {
        const { node_id } = event.payload;
        const board_id = event.subject.id;
        const { lane_id } = rows.board_nodes.one({ board_id, node_id })!;
        rows.board_nodes.delete({ board_id, node_id });
        count(rows.board_lanes, { board_id, lane_id }, -1);
        rows.boards.update({ board_id }, touched(event));
      },
      lanes_updated: (rows, event) => {
        const board_id = event.subject.id;
        const { lanes } = event.payload;
        const gone = new Set(rows.board_lanes.all({ board_id }).map(({ lane_id }) => lane_id));
        for (const [position, { lane_id, name, stage = null, wip_limit = null }] of lanes.entries())
          if (gone.delete(lane_id))
            rows.board_lanes.update({ board_id, lane_id }, { position, name, stage, wip_limit });
          else
            rows.board_lanes.insert({ board_id, lane_id, position, name, stage, wip_limit, node_count: 0 });
        for (const lane_id of gone) rows.board_lanes.delete({ board_id, lane_id });
        rows.boards.update({ board_id }, touched(event));
      },
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        name: Type.Optional(field(Name, "only those of this name")),
      },
      pageOf(object(shown)),
      "List boards, oldest first.",
      (read, { workspace_id, name, ...page }) =>
        read.page(
          "boards",
          { workspace_id, name_key: name === undefined ? undefined : foldCase(name) },
          page,
        ),
    ),
    get: query(
      { board_id: field(Id, "the board to show") },
      object({ as_of_seq: Seq, ...shown, lanes: Type.Array(LaneAnswer) }),
      "Show one board with its lanes.",
      (read, { board_id }) => {
        const found = read.one("boards", { board_id });
        return found ? { ...found, lanes: lanesOf(read, board_id) } : missing("board", board_id);
      },
    ),
    snapshot: query(
      {
        board_id: field(Id, "the board to show"),
        lane_id: Type.Optional(field(Id, "only the nodes of this lane")),
      },
      object({
        as_of_seq: Seq,
        board: object(shown),
        lanes: Type.Array(LaneAnswer),
        nodes: Type.Array(NodeAnswer),
        edges: Type.Array(EdgeAnswer),
        next: nullable(Type.String()),
      }),
      "Show a board at one moment, its nodes page by page: lanes in order, nodes by id, and the edges that start at them.",
      (read, { board_id, lane_id, ...page }) => {
        const found = read.one("boards", { board_id });
        if (!found) return missing("board", board_id);
        const lanes = lanesOf(read, board_id);
        if (lane_id !== undefined && !lanes.some((lane) => lane.lane_id === lane_id))
          return missing("lane", lane_id);
        // By id, because a rank changes: a node that moves between two pages would be missed, or come twice.
        const { items, next } = read.page("board_nodes", { board_id, lane_id }, page);
        const [first, last] = [items[0], items.at(-1)];
        if (!first || !last) return { board: found, lanes, nodes: [], edges: [], next };
        const bounds = [board_id, first.node_id, last.node_id, lane_id ?? null] as const;
        return {
          board: found,
          lanes,
          nodes: read.sql(NODES, ...bounds),
          edges: read.sql(EDGES, ...bounds),
          next,
        };
      },
      { largest: LARGE_PAGE },
    ),
  },
});

/** Keep the number of a lane's nodes. */
function count(
  lanes: Rows<RowOf<typeof board_lanes>>,
  lane: { readonly board_id: string; readonly lane_id: string },
  change: number,
): void {
  lanes.update(lane, { node_count: lanes.one(lane)!.node_count + change });
}
