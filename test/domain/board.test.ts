/**
 * The rules of board (SPEC §8): every command and every reason; the order of lanes against a naive model of arrays; snapshots,
 * their pages and their edges. The seed is printed; MP_TEST_SEED=… repeats a run.
 */
import type { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { artifact } from "../../src/domain/artifact.ts";
import { board } from "../../src/domain/board.ts";
import { project } from "../../src/domain/project.ts";
import { session } from "../../src/domain/session.ts";
import { task } from "../../src/domain/task.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { worktree } from "../../src/domain/worktree.ts";
import type { Scope } from "../../src/kernel/aggregate.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { matches, schemaErrors } from "../../src/kernel/schema.ts";
import { digest } from "../../src/kernel/table.ts";
import { about, given, type Kernel, kernel, uuid } from "../support/given.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/board.test.ts: MP_TEST_SEED=${seed}`);

const W = uuid(1);
const W2 = uuid(2);
const P = uuid(3);
const B = uuid(4);
const [TODO, DOING, DONE] = [uuid(11), uuid(12), uuid(13)];
const [N1, N2, N3, N4] = [uuid(21), uuid(22), uuid(23), uuid(24)];
const NOWHERE = uuid(9);
const inW = about(workspace, W);
const inW2 = about(workspace, W2);
const open = inW("created", { name: "w" });
const closed = inW("closed", {});
const its = about(board, B, { workspace_id: W });
const lanes = [
  { lane_id: TODO, name: "To do" },
  { lane_id: DOING, name: "Doing", stage: "build", wip_limit: 1 },
  { lane_id: DONE, name: "Done" },
];
const created = its("created", { name: "Main", lanes });
const note = (node_id: string, rank: string, lane_id = TODO) =>
  its("node_added", { node_id, lane_id, rank, kind: "comment", text: node_id });
/** To do: N1, N2, N3; Done: N4. */
const filled = [open, created, note(N1, "a0"), note(N2, "a1"), note(N3, "a2"), note(N4, "a0", DONE)];
const text = { kind: "comment", text: "x" } as const;

/** The result of the command's receipt and its only event's payload. */
function resultOf(outcome: ReturnType<Kernel["run"]>): Record<string, string> {
  if ("problem" in outcome) throw new Error(JSON.stringify(outcome.problem));
  return (JSON.parse(outcome.receipt) as { result: Record<string, string> }).result;
}

interface Node {
  readonly node_id: string;
  readonly lane_id: string;
  readonly rank: string;
  readonly title: string | null;
  readonly status: string | null;
}
interface Snapshot {
  readonly as_of_seq: number;
  readonly board: object;
  readonly lanes: readonly {
    readonly lane_id: string;
    readonly node_count: number;
    readonly over_limit: boolean;
  }[];
  readonly nodes: readonly Node[];
  readonly edges: readonly {
    readonly kind: string;
    readonly relation: string;
    readonly from_node_id: string;
    readonly to_node_id: string;
  }[];
  readonly next: string | null;
}

/** The nodes of each lane in the order of their ranks, as any client would sort them. */
function inOrder(nodes: Iterable<Pick<Node, "node_id" | "lane_id" | "rank">>): Record<string, string[]> {
  const sorted = [...nodes].sort((a, b) => (a.rank < b.rank ? -1 : 1));
  const found: Record<string, string[]> = {};
  for (const { lane_id, node_id } of sorted) {
    found[lane_id] ??= [];
    found[lane_id].push(node_id);
  }
  return found;
}

describe("create", () => {
  const payload = {
    workspace_id: W,
    name: "Main",
    lanes: [{ name: "a", stage: "s", wip_limit: 3 }, { name: "b" }],
  };

  test("makes it with its lanes, each with an id of its own, in the scope of its workspace", () => {
    const it = kernel();
    it.tell([open]);
    const outcome = it.run("board.create", payload);
    resultOf(outcome);
    const [event] = it.events(1) as unknown as [
      { payload: { lanes: { lane_id: string }[] }; subject: { id: string }; workspace_id: string },
    ];
    const [a, b] = event.payload.lanes as [{ lane_id: string }, { lane_id: string }];
    expect(event.payload as object).toEqual({
      name: "Main",
      lanes: [
        { lane_id: a.lane_id, name: "a", stage: "s", wip_limit: 3 },
        { lane_id: b.lane_id, name: "b" },
      ],
    });
    expect(event.workspace_id).toBe(W);
    expect(new Set([a.lane_id, b.lane_id, event.subject.id]).size).toBe(3);
    expect(it.query("board.get", { board_id: event.subject.id })).toMatchObject({
      as_of_seq: 2,
      name: "Main",
      workspace_id: W,
      version: 1,
      lanes: [
        {
          lane_id: a.lane_id,
          position: 0,
          name: "a",
          stage: "s",
          wip_limit: 3,
          node_count: 0,
          over_limit: false,
        },
        {
          lane_id: b.lane_id,
          position: 1,
          name: "b",
          stage: null,
          wip_limit: null,
          node_count: 0,
          over_limit: false,
        },
      ],
    });
  });

  test("needs a workspace that exists and is open, before anything else", () => {
    given(board).when("create", payload).thenMissing("workspace", W);
    given(board, open, created, closed)
      .when("create", { ...payload, lanes: [{ name: "a" }, { name: "a" }] })
      .thenRefused("workspace.closed", { workspace_id: W });
  });

  test("is refused when the name is taken in that workspace, whatever the case, and free in another", () => {
    for (const name of ["Main", "MAIN"])
      given(board, open, created)
        .when("create", { ...payload, name })
        .thenRefused("board.name_taken", { board_id: B });
    const it = kernel();
    it.tell([open, inW2("created", { name: "w2" }), created]);
    resultOf(it.run("board.create", { ...payload, workspace_id: W2 }));
  });

  test("is refused when two lanes have one name, whatever the case", () => {
    given(board, open)
      .when("create", { ...payload, lanes: [{ name: "a" }, { name: "b" }, { name: "B" }] })
      .thenRefused("board.duplicate_lane", { lanes: [1, 2] });
  });

  test("takes 1 to 64 lanes, and limits from 1", () => {
    const { payload: schema } = board.commands.create;
    const many = (length: number) => Array.from({ length }, (_, n) => ({ name: `${n}` }));
    for (const [length, right] of [
      [0, false],
      [1, true],
      [64, true],
      [65, false],
    ] as const)
      expect([length, matches(schema, { ...payload, lanes: many(length) })]).toEqual([length, right]);
    expect(matches(schema, { ...payload, lanes: [{ name: "a", wip_limit: 0 }] })).toBe(false);
  });
});

describe("add_node", () => {
  const rankOf = (wanted: { after?: string; before?: string; lane_id?: string }) => {
    const it = kernel();
    it.tell(filled);
    const result = resultOf(it.run("board.add_node", { board_id: B, lane_id: TODO, ...text, ...wanted }));
    const event = it.events().at(-1)!;
    expect(event.payload as object).toEqual({
      lane_id: TODO,
      ...text,
      ...result,
      ...("lane_id" in wanted && wanted),
    });
    return result.rank;
  };

  test("puts it at the end, right behind, right before or between, and tells where", () => {
    expect(rankOf({ lane_id: DOING })).toBe("a0");
    expect(rankOf({ lane_id: DONE })).toBe("a1");
    expect(rankOf({})).toBe("a3");
    expect(rankOf({ after: N3 })).toBe("a3");
    expect(rankOf({ after: N1 })).toBe("a0V");
    expect(rankOf({ before: N2 })).toBe("a0V");
    expect(rankOf({ before: N1 })).toBe("Zz");
    expect(rankOf({ after: N1, before: N2 })).toBe("a0V");
    // Not adjacent: still no node's own rank.
    expect(rankOf({ after: N1, before: N3 })).toBe("a0V");
  });

  test("is not about a board, a lane or a thing that does not exist", () => {
    const add = { board_id: B, lane_id: TODO };
    given(board, open)
      .when("add_node", { ...add, ...text })
      .thenMissing("board", B);
    given(board, ...filled)
      .when("add_node", { ...add, ...text, lane_id: NOWHERE })
      .thenMissing("lane", NOWHERE);
    for (const kind of ["task", "session", "worktree", "artifact"] as const)
      given(board, ...filled, closed)
        .when("add_node", { ...add, kind, ref_id: P })
        .thenMissing(kind, P);
  });

  test("is refused in a closed workspace", () => {
    given(board, ...filled, closed)
      .when("add_node", { board_id: B, lane_id: TODO, ...text, after: NOWHERE })
      .thenRefused("workspace.closed", { workspace_id: W });
  });

  test("is refused when a neighbour is not in the lane, or the two are in the other order", () => {
    const refused = (wanted: { after?: string; before?: string }, node_id: string) =>
      given(board, ...filled)
        .when("add_node", { board_id: B, lane_id: TODO, ...text, ...wanted })
        .thenRefused("board.neighbour_not_in_lane", { node_id });
    refused({ after: NOWHERE }, NOWHERE);
    refused({ before: NOWHERE }, NOWHERE);
    refused({ after: N4 }, N4);
    refused({ before: N4 }, N4);
    refused({ after: N1, before: N4 }, N4);
    refused({ after: N4, before: N1 }, N4);
    refused({ after: N2, before: N1 }, N1);
    refused({ after: N2, before: N2 }, N2);
  });

  test("wants a text for a gate, a group or a comment, and for all else what it stands for", () => {
    const { payload: schema } = board.commands.add_node;
    const node = { board_id: B, lane_id: TODO };
    for (const kind of ["gate", "group", "comment", "task", "session", "worktree", "artifact"]) {
      const textual = ["gate", "group", "comment"].includes(kind);
      const right = [{ text: "x" }, { ref_id: P }, { text: "x", ref_id: P }, {}].map((own) =>
        matches(schema, { ...node, kind, ...own }),
      );
      expect([kind, ...right]).toEqual([kind, textual, !textual, false, false]);
    }
    expect(schemaErrors(schema, { ...node, kind: "gate" })).toHaveLength(1);
  });
});

describe("move_node", () => {
  const moved = (wanted: { node_id: string; lane_id?: string; after?: string; before?: string }) => {
    const it = kernel();
    it.tell(filled);
    const head = it.head();
    const { rank } = resultOf(it.run("board.move_node", { board_id: B, lane_id: TODO, ...wanted }));
    const events = it.events(head);
    if (events.length === 0) return `stays ${rank}`;
    expect(events).toHaveLength(1);
    const { node_id, lane_id = TODO } = wanted;
    const from_lane_id = node_id === N4 ? DONE : TODO;
    expect(events[0]!.payload as object).toEqual({ node_id, from_lane_id, lane_id, rank: rank! });
    return rank;
  };

  test("moves it to the end, right behind, right before or between, in its lane or another", () => {
    expect(moved({ node_id: N1 })).toBe("a3");
    expect(moved({ node_id: N1, after: N2 })).toBe("a1V");
    expect(moved({ node_id: N1, before: N3 })).toBe("a1V");
    expect(moved({ node_id: N3, before: N1 })).toBe("Zz");
    expect(moved({ node_id: N3, after: N1, before: N2 })).toBe("a0V");
    expect(moved({ node_id: N4, after: N1, before: N3 })).toBe("a0V");
    expect(moved({ node_id: N1, lane_id: DOING })).toBe("a0");
    expect(moved({ node_id: N1, lane_id: DONE, before: N4 })).toBe("Zz");
  });

  test("changes nothing where it is already", () => {
    expect(moved({ node_id: N3 })).toBe("stays a2");
    expect(moved({ node_id: N3, after: N2 })).toBe("stays a2");
    expect(moved({ node_id: N2, after: N1 })).toBe("stays a1");
    expect(moved({ node_id: N2, before: N3 })).toBe("stays a1");
    expect(moved({ node_id: N1, before: N2 })).toBe("stays a0");
    expect(moved({ node_id: N2, after: N1, before: N3 })).toBe("stays a1");
    expect(moved({ node_id: N4, lane_id: DONE })).toBe("stays a0");
  });

  test("is not about a board, a node or a lane that does not exist", () => {
    const move = { board_id: B, node_id: N1, lane_id: TODO };
    given(board, open).when("move_node", move).thenMissing("board", B);
    given(board, ...filled, closed)
      .when("move_node", { ...move, node_id: NOWHERE })
      .thenMissing("node", NOWHERE);
    given(board, ...filled, closed)
      .when("move_node", { ...move, lane_id: NOWHERE })
      .thenMissing("lane", NOWHERE);
  });

  test("does not know the nodes and lanes of another board", () => {
    const other = about(board, uuid(5), { workspace_id: W })("created", {
      name: "Other",
      lanes: [{ lane_id: uuid(14), name: "a" }],
    });
    given(board, ...filled, other)
      .when("move_node", { board_id: uuid(5), node_id: N1, lane_id: uuid(14) })
      .thenMissing("node", N1);
    given(board, ...filled, other)
      .when("move_node", { board_id: B, node_id: N1, lane_id: uuid(14) })
      .thenMissing("lane", uuid(14));
  });

  test("is refused in a closed workspace, and beside what is no other node of the lane", () => {
    given(board, ...filled, closed)
      .when("move_node", { board_id: B, node_id: N1, lane_id: TODO })
      .thenRefused("workspace.closed", { workspace_id: W });
    for (const [wanted, node_id] of [
      [{ after: N4 }, N4],
      [{ before: NOWHERE }, NOWHERE],
      [{ after: N1 }, N1],
      [{ before: N1 }, N1],
      [{ after: N3, before: N2 }, N2],
    ] as const)
      given(board, ...filled)
        .when("move_node", { board_id: B, node_id: N1, lane_id: TODO, ...wanted })
        .thenRefused("board.neighbour_not_in_lane", { node_id });
  });
});

describe("remove_node", () => {
  test("takes it off, once", () => {
    given(board, ...filled)
      .when("remove_node", { board_id: B, node_id: N1 })
      .thenEvents({ type: "node_removed", payload: { node_id: N1 } });
    given(board, ...filled, its("node_removed", { node_id: N1 }))
      .when("remove_node", { board_id: B, node_id: N1 })
      .thenMissing("node", N1);
    given(board, open).when("remove_node", { board_id: B, node_id: N1 }).thenMissing("board", B);
  });

  test("is refused in a closed workspace", () => {
    given(board, ...filled, closed)
      .when("remove_node", { board_id: B, node_id: N1 })
      .thenRefused("workspace.closed", { workspace_id: W });
  });
});

describe("update_lanes", () => {
  const [todo, doing, done] = lanes as [(typeof lanes)[0], (typeof lanes)[0], (typeof lanes)[0]];
  const { stage: _, ...unbound } = doing;

  test("gives it another list: another order, other names, stages and limits; what is empty may go", () => {
    for (const list of [
      [done, todo, doing],
      [todo, unbound, done],
      [todo, { ...doing, wip_limit: 2 }, done],
      [todo, { ...doing, name: "TO DO 2" }, done],
      [
        { ...todo, name: done.name },
        { ...done, name: todo.name },
      ],
      [done, todo],
    ])
      given(board, ...filled)
        .when("update_lanes", { board_id: B, lanes: list })
        .thenEvents({ type: "lanes_updated", payload: { lanes: list } });
  });

  test("gives a new lane an id", () => {
    const it = kernel();
    it.tell(filled);
    resultOf(it.run("board.update_lanes", { board_id: B, lanes: [todo, { name: "New" }, done] }));
    const { lanes: list } = it.events().at(-1)!.payload as { lanes: { lane_id: string }[] };
    expect(list).toEqual([todo, { lane_id: list[1]!.lane_id, name: "New" }, done]);
    const rows = it.db
      .query("SELECT lane_id, position, name, node_count FROM board_lanes ORDER BY position")
      .all();
    expect(rows).toEqual([
      { lane_id: TODO, position: 0, name: "To do", node_count: 3 },
      { lane_id: list[1]!.lane_id, position: 1, name: "New", node_count: 0 },
      { lane_id: DONE, position: 2, name: "Done", node_count: 1 },
    ]);
    // The folded state has it too.
    resultOf(it.run("board.add_node", { board_id: B, lane_id: list[1]!.lane_id, ...text }));
    it.forget();
    resultOf(it.run("board.add_node", { board_id: B, lane_id: list[1]!.lane_id, ...text }));
  });

  test("changes nothing when it is the same list", () => {
    given(board, ...filled)
      .when("update_lanes", { board_id: B, lanes })
      .thenEvents();
  });

  test("is refused for a lane with nodes that would go, one name twice, a lane of no board, a closed workspace", () => {
    given(board, ...filled)
      .when("update_lanes", { board_id: B, lanes: [doing, done] })
      .thenRefused("board.lane_not_empty", { lane_id: TODO, node_count: 3 });
    // Its name alone does not make a lane the one that was there.
    given(board, ...filled)
      .when("update_lanes", { board_id: B, lanes: [{ name: todo.name }, done] })
      .thenRefused("board.lane_not_empty", { lane_id: TODO, node_count: 3 });
    given(board, ...filled)
      .when("update_lanes", { board_id: B, lanes: [todo, { ...doing, name: "TO DO" }] })
      .thenRefused("board.duplicate_lane", { lanes: [0, 1] });
    given(board, ...filled, closed)
      .when("update_lanes", { board_id: B, lanes: [{ lane_id: NOWHERE, name: "a" }] })
      .thenMissing("lane", NOWHERE);
    given(board, ...filled, closed)
      .when("update_lanes", { board_id: B, lanes: [doing, doing].slice(1) })
      .thenRefused("workspace.closed", { workspace_id: W });
    given(board, open).when("update_lanes", { board_id: B, lanes }).thenMissing("board", B);
    expect(matches(board.commands.update_lanes.payload, { board_id: B, lanes: [todo, todo] })).toBe(false);
  });
});

describe("against a model of arrays", () => {
  type Step =
    | { do: "add"; lane: number; after: number | null; before: number | null }
    | { do: "move"; node: number; lane: number; after: number | null; before: number | null }
    | { do: "remove"; node: number }
    | { do: "lanes"; order: number[]; add: boolean };
  const place = {
    lane: fc.nat(5),
    after: fc.option(fc.nat(30), { freq: 2 }),
    before: fc.option(fc.nat(30), { freq: 2 }),
  };
  const step: fc.Arbitrary<Step> = fc.oneof(
    { weight: 5, arbitrary: fc.record({ do: fc.constant("add" as const), ...place }) },
    { weight: 6, arbitrary: fc.record({ do: fc.constant("move" as const), node: fc.nat(30), ...place }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant("remove" as const), node: fc.nat(30) }) },
    {
      weight: 1,
      arbitrary: fc.record({
        do: fc.constant("lanes" as const),
        order: fc.uniqueArray(fc.nat(5), { minLength: 1, maxLength: 6 }),
        add: fc.boolean(),
      }),
    },
  );

  test("the order of each lane, the counts, what is refused and what stays are the model's", () => {
    const met: Record<string, number> = {};
    const meet = (what: string) => {
      met[what] = (met[what] ?? 0) + 1;
    };
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 120, size: "max" }), (steps) => {
        const it = kernel();
        it.tell([open, created]);
        /** Lanes in order, each with its nodes in order. */
        let model = lanes.map(({ lane_id }) => ({ lane_id, nodes: [] as string[] }));
        const known: string[] = [];
        const nodeAt = (n: number | null) =>
          n === null ? undefined : (known[n % (known.length || 1)] ?? NOWHERE);

        /** Put a node into the model; undefined: refused. "stays": it was there. */
        const put = (lane: number, node: string, after?: string, before?: string) => {
          const to = model[lane % model.length]!;
          const rest = to.nodes.filter((each) => each !== node);
          const [a, b] = [after, before].map((each) => (each === undefined ? undefined : rest.indexOf(each)));
          if (a === -1 || b === -1 || (a !== undefined && b !== undefined && b <= a)) return undefined;
          const was = to.nodes.indexOf(node);
          // Between two that are not adjacent it may lie anywhere already.
          if (a !== undefined && b !== undefined && was > a && was <= b) return "stays";
          const index = a !== undefined ? a + 1 : (b ?? rest.length);
          if (was === index) return "stays";
          for (const each of model) each.nodes = each.nodes.filter((other) => other !== node);
          to.nodes.splice(index, 0, node);
          return "moved";
        };

        for (const each of steps) {
          const head = it.head();
          switch (each.do) {
            case "add": {
              const neighbours = { after: nodeAt(each.after), before: nodeAt(each.before) };
              const { lane_id } = model[each.lane % model.length]!;
              const outcome = it.run("board.add_node", {
                board_id: B,
                lane_id,
                ...text,
                ...JSON.parse(JSON.stringify(neighbours)),
              });
              const node = "problem" in outcome ? "new" : resultOf(outcome).node_id!;
              const placed = put(each.lane, node, neighbours.after, neighbours.before);
              meet(`add ${placed}`);
              expect("problem" in outcome ? outcome.problem.reason : "moved").toBe(
                placed ?? "board.neighbour_not_in_lane",
              );
              if (placed !== undefined) known.push(node);
              break;
            }
            case "move": {
              const node_id = nodeAt(each.node)!;
              const neighbours = { after: nodeAt(each.after), before: nodeAt(each.before) };
              const { lane_id } = model[each.lane % model.length]!;
              const outcome = it.run("board.move_node", {
                board_id: B,
                node_id,
                lane_id,
                ...JSON.parse(JSON.stringify(neighbours)),
              });
              if (!model.some(({ nodes }) => nodes.includes(node_id))) {
                expect("problem" in outcome && outcome.problem.code).toBe("not_found");
                meet("move missing");
                break;
              }
              const placed = put(each.lane, node_id, neighbours.after, neighbours.before);
              meet(`move ${placed}`);
              const did = it.head() > head ? "moved" : "stays";
              expect("problem" in outcome ? outcome.problem.reason : did).toBe(
                placed ?? "board.neighbour_not_in_lane",
              );
              break;
            }
            case "remove": {
              const node_id = nodeAt(each.node)!;
              const lane = model.find(({ nodes }) => nodes.includes(node_id));
              const outcome = it.run("board.remove_node", { board_id: B, node_id });
              expect("problem" in outcome).toBe(lane === undefined);
              if (lane) lane.nodes = lane.nodes.filter((other) => other !== node_id);
              break;
            }
            case "lanes": {
              const stay = [...new Set(each.order.map((n) => model[n % model.length]!))];
              const list = stay.map(
                ({ lane_id }) => ({ lane_id, name: lane_id }) as { lane_id?: string; name: string },
              );
              if (each.add) list.splice(1, 0, { name: `new ${head}` });
              const outcome = it.run("board.update_lanes", { board_id: B, lanes: list });
              const left = model.find((lane) => !stay.includes(lane) && lane.nodes.length > 0);
              meet(left ? "lanes not empty" : "lanes");
              expect("problem" in outcome ? outcome.problem.details : undefined).toEqual(
                left && { lane_id: left.lane_id, node_count: left.nodes.length },
              );
              if (left) break;
              if (it.head() === head) break;
              const now = it.events(head)[0]!.payload as { lanes: { lane_id: string }[] };
              model = now.lanes.map(
                ({ lane_id }) => model.find((lane) => lane.lane_id === lane_id) ?? { lane_id, nodes: [] },
              );
              break;
            }
          }
          expect(it.bugs).toEqual([]);
        }

        const nodes = it.db.query<Node, []>("SELECT * FROM board_nodes").all();
        expect(inOrder(nodes)).toEqual(
          Object.fromEntries(
            model.filter((lane) => lane.nodes.length > 0).map((lane) => [lane.lane_id, lane.nodes]),
          ),
        );
        // The database compares as JavaScript does.
        for (const { lane_id, nodes } of model)
          expect(
            it.db
              .query("SELECT node_id FROM board_nodes WHERE lane_id = ? ORDER BY rank")
              .values(lane_id)
              .flat(),
          ).toEqual(nodes);
        expect(it.db.query("SELECT lane_id, node_count FROM board_lanes ORDER BY position").values()).toEqual(
          model.map(({ lane_id, nodes }) => [lane_id, nodes.length]),
        );
        const before = digest(it.db, board.readModel.tables);
        it.projections.rebuild("board");
        while (it.projections.step() !== undefined);
        expect(digest(it.db, board.readModel.tables)).toBe(before);
      }),
      { seed, numRuns: 40 },
    );
    for (const what of [
      "add moved",
      "add undefined",
      "move moved",
      "move stays",
      "move undefined",
      "move missing",
      "lanes",
      "lanes not empty",
    ])
      expect([what, met[what] ?? 0]).not.toEqual([what, 0]);
  });

  test("a thousand moves into one gap keep their order, and the rank stays short", () => {
    const it = kernel();
    it.tell(filled);
    let rank = "";
    for (let n = 0; n < 1_000; n++) {
      // The one that was there comes out at the other side.
      const [node_id, after] = n % 2 === 0 ? [N2, N1] : [N3, N1];
      rank = resultOf(it.run("board.move_node", { board_id: B, node_id, lane_id: TODO, after })).rank!;
    }
    expect(rank.length).toBeLessThan(1_000 / 5);
    const order = it.db.query("SELECT node_id FROM board_nodes WHERE lane_id = ? ORDER BY rank").values(TODO);
    expect(order.flat()).toEqual([N1, N3, N2]);
  });
});

const agent = { name: "coder" };
const T = [uuid(31), uuid(32), uuid(33)] as const;
const S = [uuid(41), uuid(42), uuid(43)] as const;
const [TREE, FILE] = [uuid(51), uuid(61)];
const digestOf = `sha256:${"0".repeat(64)}`;
const inP = { workspace_id: W, project_id: P };
const taskOf = (id: string, depends_on: string[] = [], scope: Scope = inP) =>
  about(task, id, scope)("created", { title: `task ${id}`, priority: 2, max_attempts: 3, depends_on });
const sessionOf = (
  id: string,
  more: { parent_session_id?: string; title?: string } = {},
  scope: Scope = inP,
) => about(session, id, scope)("spawned", { agent, epoch: 1, ttl_ms: 60_000, ...more });
const things = [
  open,
  about(project, P, inP)("created", { name: "core" }),
  taskOf(T[0]),
  taskOf(T[1], [T[0]]),
  taskOf(T[2], [T[0], T[1]]),
  sessionOf(S[0], { title: "first" }),
  sessionOf(S[1], { parent_session_id: S[0] }),
  about(
    session,
    S[2],
    inP,
  )("forked", {
    from_session_id: S[1],
    at_seq: 1,
    mode: "planning_only",
    parent_session_id: S[0],
    agent,
    epoch: 1,
    ttl_ms: 60_000,
  }),
  about(worktree, TREE, inP)("registered", { host: "here", path: "/srv/core" }),
  about(worktree, TREE, inP)("attached", { session_id: S[0], mode: "write" }),
  about(worktree, TREE, inP)("attached", { session_id: S[1], mode: "read" }),
  about(artifact, FILE, { workspace_id: W })("registered", {
    digest: digestOf,
    media_type: "text/plain",
    size: 1,
    links: [
      { kind: "task", id: T[0] },
      { kind: "session", id: S[0] },
      { kind: "project", id: P },
    ],
  }),
  created,
];
/** The node of a thing has the thing's id with another end. */
const nodeOf = (id: string) => id.replace("0000000000", "000000000f");
const on = (
  kind: "task" | "session" | "worktree" | "artifact",
  ref_id: string,
  rank: string,
  lane_id = TODO,
) => its("node_added", { node_id: nodeOf(ref_id), lane_id, rank, kind, ref_id });
const all = [
  ...things,
  ...T.map((id, n) => on("task", id, `a${n}`)),
  ...S.map((id, n) => on("session", id, `a${n}`, DOING)),
  on("worktree", TREE, "a0", DONE),
  on("artifact", FILE, "a1", DONE),
];

describe("what stands for something else", () => {
  const add = { board_id: B, lane_id: TODO };
  const kinds = [
    ["task", T[0]],
    ["session", S[0]],
    ["worktree", TREE],
    ["artifact", FILE],
  ] as const;

  test("each kind can be put on the board, once", () => {
    for (const [kind, ref_id] of kinds) {
      const it = kernel();
      it.tell(things);
      const result = resultOf(it.run("board.add_node", { ...add, kind, ref_id }));
      expect(it.events().at(-1)!.payload as object).toEqual({ ...result, lane_id: TODO, kind, ref_id });
      given(board, ...things, on(kind, ref_id, "a0", DONE))
        .when("add_node", { ...add, kind, ref_id })
        .thenRefused("board.already_on_board", { node_id: nodeOf(ref_id) });
    }
  });

  test("it may be on another board as well, and again once it was taken off", () => {
    const other = about(board, uuid(5), { workspace_id: W })("created", {
      name: "Other",
      lanes: [{ lane_id: uuid(14), name: "a" }],
    });
    const it = kernel();
    it.tell([...all, other]);
    resultOf(it.run("board.add_node", { board_id: uuid(5), lane_id: uuid(14), kind: "task", ref_id: T[0] }));
    resultOf(it.run("board.remove_node", { board_id: B, node_id: nodeOf(T[0]) }));
    resultOf(it.run("board.add_node", { ...add, kind: "task", ref_id: T[0] }));
  });

  test("is not taken for another kind, nor from another workspace", () => {
    given(board, ...things)
      .when("add_node", { ...add, kind: "session", ref_id: T[0] })
      .thenMissing("session", T[0]);
    const elsewhere = { workspace_id: W2, project_id: uuid(6) };
    const links = [{ kind: "workspace" as const, id: W2 }];
    for (const [kind, fact] of [
      ["task", taskOf(uuid(71), [], elsewhere)],
      ["session", sessionOf(uuid(72), {}, elsewhere)],
      ["worktree", about(worktree, uuid(73), elsewhere)("registered", { host: "here", path: "/x" })],
      [
        "artifact",
        about(
          artifact,
          uuid(74),
          elsewhere,
        )("registered", { digest: digestOf, media_type: "a/b", size: 1, links }),
      ],
    ] as const)
      given(board, ...things, inW2("created", { name: "w2" }), fact)
        .when("add_node", { ...add, kind, ref_id: fact.id })
        .thenRefused("board.other_workspace", { kind, id: fact.id });
  });
});

describe("a lane with a stage", () => {
  const stages = (it: Kernel, after: number) =>
    it.events(after).map(({ event_type, payload }) => [event_type, (payload as { stage?: string }).stage]);

  test("gives it to a task that enters, by the same command", () => {
    const added = kernel();
    added.tell(things);
    const head = added.head();
    resultOf(added.run("board.add_node", { board_id: B, lane_id: DOING, kind: "task", ref_id: T[0] }));
    expect(stages(added, head)).toEqual([
      ["board.node_added", undefined],
      ["task.stage_advanced", "build"],
    ]);
    const moved = kernel();
    moved.tell(all);
    const before = moved.head();
    resultOf(moved.run("board.move_node", { board_id: B, node_id: nodeOf(T[0]), lane_id: DOING }));
    expect(stages(moved, before)).toEqual([
      ["board.node_moved", undefined],
      ["task.stage_advanced", "build"],
    ]);
    expect(
      moved
        .events()
        .slice(-2)
        .map(({ causality }) => causality.command_id),
    ).toEqual(Array.from({ length: 2 }, () => moved.events().at(-1)!.causality.command_id));
  });

  test("asks nothing of what is no task, of a lane without one, of a move within the lane", () => {
    const it = kernel();
    it.tell([...all, on("task", uuid(34), "a3", DOING)].concat(taskOf(uuid(34))));
    const head = it.head();
    const move = (ref_id: string, lane_id: string, more = {}) =>
      resultOf(it.run("board.move_node", { board_id: B, node_id: nodeOf(ref_id), lane_id, ...more }));
    move(TREE, DOING);
    move(T[0], DONE);
    move(uuid(34), DOING, { before: nodeOf(S[0]) });
    expect(stages(it, head)).toEqual(Array.from({ length: 3 }, () => ["board.node_moved", undefined]));
  });

  test("a task that refuses the stage keeps its node where it is", () => {
    const it = kernel();
    it.tell([...all, taskOf(uuid(34)), about(project, P, inP)("archived", {})]);
    const head = it.head();
    for (const [type, node] of [
      ["board.move_node", { node_id: nodeOf(T[0]) }],
      ["board.add_node", { kind: "task", ref_id: uuid(34) }],
    ] as const)
      expect(it.run(type, { board_id: B, lane_id: DOING, ...node })).toMatchObject({
        problem: { code: "conflict", reason: "project.archived", details: { project_id: P } },
      });
    expect(it.head()).toBe(head);
    // A lane without a stage asks the task nothing.
    resultOf(it.run("board.move_node", { board_id: B, node_id: nodeOf(T[0]), lane_id: DONE }));
    expect(it.events(head).map(({ event_type }) => event_type)).toEqual(["board.node_moved"]);
    const { lanes: counted } = it.query<Snapshot>("board.snapshot", { board_id: B });
    expect(counted.map((lane) => lane.node_count)).toEqual([2, 3, 3]);
  });
});

describe("list and get", () => {
  test("list by workspace and by name, whatever its case; get shows the lanes", () => {
    const it = kernel();
    it.tell([...filled, inW2("created", { name: "w2" })]);
    const rows = (params: Record<string, unknown>) =>
      it.query<{ items: { board_id: string }[] }>("board.list", params).items.map((row) => row.board_id);
    expect([
      rows({}),
      rows({ workspace_id: W }),
      rows({ workspace_id: W2 }),
      rows({ name: "MAIN" }),
      rows({ name: "x" }),
    ]).toEqual([[B], [B], [], [B], []]);
    expect(it.query("board.get", { board_id: B })).toMatchObject({
      version: 5,
      lanes: [{ node_count: 3 }, {}, { node_count: 1 }],
    });
    for (const type of ["board.get", "board.snapshot"])
      expect(it.queryRefused(type, { board_id: NOWHERE })).toMatchObject({
        code: "not_found",
        details: { kind: "board", id: NOWHERE },
      });
    expect(it.queryRefused("board.snapshot", { board_id: B, lane_id: NOWHERE })).toMatchObject({
      details: { kind: "lane", id: NOWHERE },
    });
  });
});

describe("snapshot", () => {
  test("has each node with the title and the status of what it stands for", () => {
    const it = kernel();
    it.tell([...all, note(N1, "a9")]);
    const { nodes, as_of_seq, next } = it.query<Snapshot>("board.snapshot", { board_id: B });
    expect([as_of_seq, next]).toEqual([it.head(), null]);
    expect(nodes.map(({ node_id }) => node_id)).toEqual(nodes.map(({ node_id }) => node_id).sort());
    const told = Object.fromEntries(nodes.map(({ node_id, title, status }) => [node_id, [title, status]]));
    expect(told).toEqual({
      [nodeOf(T[0])]: [`task ${T[0]}`, "queued"],
      [nodeOf(T[1])]: [`task ${T[1]}`, "queued"],
      [nodeOf(T[2])]: [`task ${T[2]}`, "queued"],
      [nodeOf(S[0])]: ["first", "starting"],
      [nodeOf(S[1])]: ["coder", "starting"],
      [nodeOf(S[2])]: ["coder", "starting"],
      [nodeOf(TREE)]: ["/srv/core", "present"],
      [nodeOf(FILE)]: [digestOf, "available"],
      [N1]: [null, null],
    });
    expect(nodes.find(({ node_id }) => node_id === N1)).toEqual({
      node_id: N1,
      lane_id: TODO,
      rank: "a9",
      kind: "comment",
      ref_id: null,
      text: N1,
      title: null,
      status: null,
    } as Node);
  });

  test("tells which lanes have more than their limit, and refuses no node for it", () => {
    const it = kernel();
    it.tell(filled);
    const over = () =>
      it
        .query<Snapshot>("board.snapshot", { board_id: B })
        .lanes.map((lane) => [lane.node_count, lane.over_limit]);
    for (const [node_count, over_limit] of [
      [1, false],
      [2, true],
    ] as const) {
      resultOf(it.run("board.add_node", { board_id: B, lane_id: DOING, ...text }));
      expect(over()).toEqual([
        [3, false],
        [node_count, over_limit],
        [1, false],
      ]);
    }
  });

  const edges = [
    ["attachment", "write", S[0], TREE],
    ["attachment", "read", S[1], TREE],
    ["dependency", "depends_on", T[1], T[0]],
    ["dependency", "depends_on", T[2], T[0]],
    ["dependency", "depends_on", T[2], T[1]],
    ["lineage", "parent", S[1], S[0]],
    ["lineage", "parent", S[2], S[0]],
    ["lineage", "fork", S[2], S[1]],
    ["provenance", "linked", FILE, T[0]],
    ["provenance", "linked", FILE, S[0]],
  ] as const;
  const wanted = (without?: string) =>
    edges
      .filter(([, , from, to]) => from !== without && to !== without)
      .map(([kind, relation, from, to]) => `${kind} ${relation} ${nodeOf(from)} ${nodeOf(to)}`)
      .sort();
  const told = (snapshots: readonly Snapshot[]) =>
    snapshots
      .flatMap((each) => each.edges)
      .map((edge) => `${edge.kind} ${edge.relation} ${edge.from_node_id} ${edge.to_node_id}`)
      .sort();
  const pages = (it: Kernel, params: object) => {
    const found = [it.query<Snapshot>("board.snapshot", { board_id: B, ...params })];
    for (let next = found[0]!.next; next !== null; next = found.at(-1)!.next)
      found.push(it.query<Snapshot>("board.snapshot", { board_id: B, ...params, cursor: next }));
    return found;
  };

  test("has an edge of each kind between nodes of the board, in one page or many, and none that has no end", () => {
    const it = kernel();
    it.tell(all);
    for (const limit of [1, 2, 3, 8, 100])
      expect([limit, told(pages(it, { limit }))]).toEqual([limit, wanted()]);
    // An edge comes with the page of the node that it starts at.
    for (const { nodes, edges } of pages(it, { limit: 3 })) {
      const here = new Set(nodes.map(({ node_id }) => node_id));
      expect(edges.filter(({ from_node_id }) => !here.has(from_node_id))).toEqual([]);
    }
    for (const id of [...T, ...S, TREE, FILE]) {
      const without = kernel();
      without.tell([...all, its("node_removed", { node_id: nodeOf(id) })]);
      expect([id, told(pages(without, {}))]).toEqual([id, wanted(id)]);
    }
  });

  test("of one lane has its nodes, and their edges to the whole board", () => {
    const it = kernel();
    it.tell(all);
    for (const limit of [1, 100]) {
      const found = pages(it, { lane_id: DONE, limit });
      expect(found.flatMap(({ nodes }) => nodes.map(({ node_id }) => node_id))).toEqual([
        nodeOf(TREE),
        nodeOf(FILE),
      ]);
      expect(told(found)).toEqual(wanted().filter((edge) => edge.startsWith("provenance")));
    }
    expect(it.query<Snapshot>("board.snapshot", { board_id: B, lane_id: DOING }).lanes).toHaveLength(3);
  });

  test("knows nothing of the edges and nodes of another board", () => {
    const it = kernel();
    const [other, lane_id] = [uuid(5), uuid(14)];
    const theirs = about(board, other, { workspace_id: W });
    it.tell([
      ...all,
      theirs("created", { name: "Other", lanes: [{ lane_id, name: "a" }] }),
      theirs("node_added", { node_id: uuid(81), lane_id, rank: "a0", kind: "task", ref_id: T[0] }),
      theirs("node_added", { node_id: uuid(82), lane_id, rank: "a1", kind: "task", ref_id: T[1] }),
    ]);
    expect(told(pages(it, {}))).toEqual(wanted());
    expect(it.query<Snapshot>("board.snapshot", { board_id: other })).toMatchObject({
      nodes: [{ node_id: uuid(81) }, { node_id: uuid(82) }],
      edges: [{ kind: "dependency", from_node_id: uuid(82), to_node_id: uuid(81) }],
    });
  });

  test("a node that moves between two pages is neither missed nor told twice, wherever it goes", () => {
    const it = kernel();
    it.tell([open, created]);
    const added = Array.from({ length: 4 }, () => {
      const { node_id } = resultOf(it.run("board.add_node", { board_id: B, lane_id: TODO, ...text }));
      return node_id!;
    });
    const [first, second, third, fourth] = added as [string, string, string, string];
    const move = (node_id: string, to: object) =>
      resultOf(it.run("board.move_node", { board_id: B, node_id, lane_id: TODO, ...to }));
    const page = (more: object) => it.query<Snapshot>("board.snapshot", { board_id: B, limit: 2, ...more });
    const { nodes, next } = page({});
    expect(nodes.map(({ node_id }) => node_id)).toEqual([first, second]);
    // One that was told goes behind all that was not, and one that was not before all that was.
    move(first, { after: fourth });
    move(fourth, { before: second });
    move(second, { lane_id: lanes[2]!.lane_id });
    const rest = page({ cursor: next });
    expect([rest.nodes.map(({ node_id }) => node_id), rest.next]).toEqual([[third, fourth], null]);
    expect(inOrder(page({ limit: 10 }).nodes)).toEqual({
      [TODO]: [fourth, third, first],
      [lanes[2]!.lane_id]: [second],
    });
  });

  test("pages that are read while nodes come, move and go, and the events from the first page on, give the board", () => {
    const random = fc.sample(
      fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })),
      {
        seed,
        numRuns: 1,
      },
    )[0]!;
    const nth = (n: number) => Math.floor(random.next().value! * n);
    for (const limit of [1, 3, 7]) {
      const it = kernel();
      it.tell([open, created]);
      const known = new Set<string>();
      const change = () => {
        const [node_id, lane_id] = [[...known][nth(known.size)], lanes[nth(3)]!.lane_id];
        const dice = nth(4);
        if (dice === 0 || node_id === undefined)
          known.add(resultOf(it.run("board.add_node", { board_id: B, lane_id, ...text })).node_id!);
        else if (dice === 1) {
          resultOf(it.run("board.remove_node", { board_id: B, node_id }));
          known.delete(node_id);
        } else resultOf(it.run("board.move_node", { board_id: B, node_id, lane_id }));
      };
      for (let n = 0; n < 60; n++)
        known.add(resultOf(it.run("board.add_node", { board_id: B, lane_id: TODO, ...text })).node_id!);

      const held = new Map<string, Pick<Node, "node_id" | "lane_id" | "rank">>();
      const always = new Set(known);
      let came = 0;
      let cursor: string | null | undefined;
      let from: number | undefined;
      while (cursor !== null) {
        const page = it.query<Snapshot>("board.snapshot", { board_id: B, limit, ...(cursor && { cursor }) });
        from ??= page.as_of_seq;
        came += page.nodes.length;
        for (const node of page.nodes) held.set(node.node_id, node);
        cursor = page.next;
        // Not for ever: nodes come at the end, and with pages of one they would come faster than they are read.
        for (let n = 0; n < 5 && it.head() < 400; n++) change();
        for (const node_id of always) if (!known.has(node_id)) always.delete(node_id);
      }
      // None came twice; none that was there all the time was missed.
      expect(came).toBe(held.size);
      expect([...always].filter((node_id) => !held.has(node_id))).toEqual([]);

      for (const { event_type, payload } of it.events(from)) {
        const { node_id, lane_id, rank } = payload as Node;
        if (event_type === "board.node_added") held.set(node_id, { node_id, lane_id, rank });
        else if (event_type === "board.node_removed") held.delete(node_id);
        else if (held.has(node_id)) held.set(node_id, { node_id, lane_id, rank });
      }
      const { nodes } = it.query<Snapshot>("board.snapshot", { board_id: B, limit: 1_000 });
      expect(inOrder(held.values())).toEqual(inOrder(nodes));
    }
  });
});

describe("at its size", () => {
  /** What runs on a connection meanwhile, and what SQLite does for it. */
  function plans(db: Database, run: () => void): { sql: string; steps: string[] } {
    const seen = new Set<string>();
    const query = db.query.bind(db);
    db.query = ((sql: string) => {
      if (/^\s*(SELECT|WITH)/.test(sql)) seen.add(sql);
      return query(sql);
    }) as typeof db.query;
    try {
      run();
    } finally {
      db.query = query as typeof db.query;
    }
    const steps = [...seen].flatMap((sql) =>
      db
        .prepare<{ detail: string }, []>(`EXPLAIN QUERY PLAN ${sql.replaceAll(/\?\d*/g, "'x'")}`)
        .all()
        .map(({ detail }) => detail),
    );
    return { sql: [...seen].join("\n"), steps };
  }

  test("a snapshot and every command look up by an index what they need", () => {
    const it = kernel();
    it.tell(all);
    const db = openForReading(it.path);
    afterAll(() => db.close());
    const models = new ReadModels(db, it.registry);
    const snapshot = (params: object) =>
      models.snapshot("board", (read) =>
        board.queries.snapshot.run(read, params as never, "2026-01-01T00:00:00.000Z"),
      );
    const asked = plans(db, () => {
      snapshot({ board_id: B, limit: 2 });
      snapshot({ board_id: B, lane_id: TODO, limit: 2 });
      const { answer } = snapshot({ board_id: B, limit: 2 }) as { answer: Snapshot };
      snapshot({ board_id: B, limit: 2, cursor: answer.next });
    });
    for (const name of [
      "board_nodes",
      "board_lanes",
      "tasks",
      "sessions",
      "worktrees",
      "artifacts",
      "task_dependencies",
      "worktree_attachments",
      "artifact_links",
    ])
      expect([name, new RegExp(`\\b${name}\\b`).test(asked.sql)]).toEqual([name, true]);
    // Of the edges only the page's own nodes are gone through, which stand ready under that name.
    const scanned = ({ steps }: { steps: string[] }) => steps.filter((step) => /^SCAN (?!a$)/.test(step));
    expect(asked.steps.filter((step) => step === "MATERIALIZE a")).toHaveLength(1);
    expect(scanned(asked)).toEqual([]);

    const decided = plans(it.db, () => {
      const neighbours = { after: nodeOf(T[0]), before: nodeOf(T[2]) };
      resultOf(
        it.run("board.move_node", { board_id: B, node_id: nodeOf(TREE), lane_id: TODO, ...neighbours }),
      );
      resultOf(
        it.run("board.move_node", {
          board_id: B,
          node_id: nodeOf(TREE),
          lane_id: TODO,
          before: nodeOf(T[0]),
        }),
      );
      resultOf(it.run("board.add_node", { board_id: B, lane_id: DONE, ...text }));
      resultOf(it.run("board.remove_node", { board_id: B, node_id: nodeOf(TREE) }));
      resultOf(it.run("board.update_lanes", { board_id: B, lanes: lanes.toReversed() }));
    });
    expect(decided.steps.some((step) => step.includes("board_nodes_by_board_id_lane_id_rank"))).toBe(true);
    expect(scanned(decided)).toEqual([]);
    expect(decided.steps.filter((step) => step.includes("TEMP B-TREE"))).toEqual([]);
  });
});
