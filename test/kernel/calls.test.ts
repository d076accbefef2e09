/**
 * A decision that asks other streams for theirs (kernel/execute.ts): all of them are accepted, or nothing happens.
 *
 * `node` is an aggregate that no product has: its command carries the calls to make, to any depth, so a test draws the tree.
 */
import { describe, expect, test } from "bun:test";
import { Type } from "typebox";
import {
  aggregate,
  type Call,
  command,
  event,
  type RowOf,
  reject,
  table,
} from "../../src/kernel/aggregate.ts";
import type { Outcome } from "../../src/kernel/execute.ts";
import { MAX_EVENT_BYTES } from "../../src/kernel/log.ts";
import { Id } from "../../src/kernel/schema.ts";
import { dumpAll, type Engine, engine, receiptOf, refusedOf, toWrite } from "./engine.ts";

const nodes = table({ node_id: Id, total: Type.Integer(), version: Type.Integer() }, { key: ["node_id"] });
const boxes = table({ box_id: Id, node_id: Id }, { key: ["box_id"] });

/** What a node is to do. */
interface Visit {
  readonly node_id: string;
  readonly add?: readonly number[];
  readonly text?: string;
  readonly throws?: boolean;
  readonly also?: readonly Call[];
}

declare module "../../src/kernel/aggregate.ts" {
  interface Tables {
    nodes: RowOf<typeof nodes>;
    boxes: RowOf<typeof boxes>;
  }
  interface Calls {
    "node.visit": Visit;
    "node.note": Visit;
    "box.pack": { readonly node_id: string };
    "box.open": { readonly box_id: string };
  }
}

const payload = {
  node_id: Id,
  add: Type.Optional(Type.Array(Type.Integer())),
  text: Type.Optional(Type.String()),
  throws: Type.Optional(Type.Boolean()),
  also: Type.Optional(Type.Array(Type.Unsafe<Call>(Type.Unknown()))),
};

function node(flaws: { throwsAt?: number; version?: number } = {}) {
  const visit = (
    state: { total: number },
    { node_id, add = [], text, throws, also = [] }: Visit,
    { find }: { find: { one(table: "nodes", where: { node_id: string }): { total: number } | undefined } },
  ) => {
    if (throws) throw new Error("a bug in a called one");
    const total = add.reduce((sum, by) => sum + by, state.total);
    if (total > 100) return reject("node.too_much", { node_id, total });
    const found = find.one("nodes", { node_id })!.total;
    return {
      events: add.map((by) => ({ type: "added" as const, payload: { by, found, text } })),
      result: { total },
      also,
    };
  };
  return aggregate("node", { total: 0 })({
    commands: {
      create: command({}, "Make a node.", { creates: true }),
      go: command(payload, "Do it.", { result: Type.Object({ total: Type.Integer() }) }),
      note: command(payload, "The same, as a call to a command that can also be sent."),
      visit: command(payload, "The same, from another decision only.", { internal: true }),
    },
    events: {
      created: event(1, {}),
      added: event(1, { by: Type.Integer(), found: Type.Integer(), text: Type.Optional(Type.String()) }),
    },
    reasons: { "node.too_much": { is: "it would be too much", hint: "add less" } },
    scope: (id) => ({ workspace_id: id }),
    decide: {
      create: () => [{ type: "created", payload: {} }],
      go: visit,
      note: visit,
      visit,
    },
    evolve: { created: (state) => state, added: ({ total }, { by }) => ({ total: total + by }) },
    readModel: {
      version: flaws.version ?? 1,
      tables: { nodes },
      apply: {
        created: (rows, { subject }) => rows.nodes.insert({ node_id: subject.id, total: 0, version: 1 }),
        added(rows, { subject, payload: { by }, seq_stream }) {
          if (by === flaws.throwsAt) throw new Error("a bug in apply");
          const { total } = rows.nodes.one({ node_id: subject.id })!;
          rows.nodes.update({ node_id: subject.id }, { total: total + by, version: seq_stream });
        },
      },
    },
    queries: {},
  });
}

/** A call that makes its subject. */
const box = aggregate("box", { open: false })({
  commands: {
    pack: command({ node_id: Id }, "Make a box.", { creates: true, internal: true }),
    open: command({ box_id: Id }, "Open it."),
  },
  events: { packed: event(1, { node_id: Id }), opened: event(1, {}) },
  reasons: {},
  scope: (_, { node_id }) => ({ workspace_id: node_id as string }),
  decide: {
    pack: (_, { node_id }) => [{ type: "packed", payload: { node_id } }],
    open: () => [{ type: "opened", payload: {} }],
  },
  evolve: { packed: (state) => state, opened: () => ({ open: true }) },
  readModel: {
    version: 1,
    tables: { boxes },
    apply: {
      packed: (rows, { subject, payload: { node_id } }) => rows.boxes.insert({ box_id: subject.id, node_id }),
      opened: () => {},
    },
  },
  queries: {},
});

const call = (visit: Visit): Call => ({ type: "node.visit", payload: visit });
const NOBODY = "01a20475-8d86-738e-8073-973ee2c74a0f";

function withNodes(kernel: Engine = engine({ aggregates: [node(), box] })) {
  const [a, b, c] = [1, 2, 3].map(() => kernel.done("node.create", {}).subject.id) as [
    string,
    string,
    string,
  ];
  /** Every event since the nodes were made: whose it is, and what it added to what `find` had seen. */
  const made = () =>
    kernel.reader.range(3, kernel.reader.head()).map((line) => {
      const { stream, payload: told, seq_stream, workspace_id, causality } = JSON.parse(line.body);
      return { stream, ...told, seq_stream, workspace_id, command_id: causality.command_id };
    });
  const brief = () => made().map(({ stream, by, found }) => [names.get(stream), by, found]);
  const names = new Map([
    [`node/${a}`, "a"],
    [`node/${b}`, "b"],
    [`node/${c}`, "c"],
  ]);
  return { kernel, a, b, c, made, brief };
}

describe("a decision that calls others", () => {
  test("is one command: its events come first, then those of each call, in order and to any depth", () => {
    const { kernel, a, b, c, made } = withNodes();
    const also = [
      call({ node_id: b, add: [2, 3], also: [call({ node_id: c, add: [4] })] }),
      call({ node_id: c, add: [5] }),
    ];
    const committed = kernel.run(toWrite("node.go", { node_id: a, add: [1], also }));
    const receipt = receiptOf(committed.outcomes[0]![0]!);
    expect(made().map(({ stream, by, seq_stream }) => [stream, by, seq_stream])).toEqual([
      [`node/${a}`, 1, 2],
      [`node/${b}`, 2, 2],
      [`node/${b}`, 3, 3],
      [`node/${c}`, 4, 2],
      [`node/${c}`, 5, 3],
    ]);
    expect(new Set(made().map((each) => each.command_id))).toEqual(new Set([receipt.command_id]));
    // Each in the scope of its own stream, and the command ends once.
    expect(made().map((each) => each.workspace_id)).toEqual([a, b, b, c, c]);
    expect(committed.events.map((each) => each.command_end)).toEqual([0, 0, 0, 0, 1]);
    // The receipt is about the subject, and names all that happened.
    expect(receipt).toMatchObject({
      subject: { kind: "node", id: a },
      version: 2,
      seq_global: 8,
      result: { total: 1 },
    });
    expect(receipt.events.map((each) => each.seq_global)).toEqual([4, 5, 6, 7, 8]);
    expect(kernel.projections.find.all("nodes", {}).map((row) => [row.total, row.version])).toEqual([
      [1, 2],
      [5, 3],
      [9, 3],
    ]);
  });

  test("gives the same receipt again, also after a restart, when the last event is another stream's", () => {
    const { kernel, a, b } = withNodes();
    const commands = [
      toWrite("node.go", { node_id: a, add: [1], also: [call({ node_id: b, add: [2] })] }),
      toWrite("node.note", { node_id: a, add: [], also: [call({ node_id: b, add: [3] })] }),
      toWrite("node.note", {
        node_id: a,
        add: [4],
        also: [call({ node_id: b, add: [5] }), call({ node_id: a, add: [6] })],
      }),
      toWrite("node.note", { node_id: a, also: [{ type: "box.pack", payload: { node_id: a } }] }),
    ];
    const firsts = commands.map((each) => kernel.run(each).outcomes[0]![0]! as { receipt: string });
    expect(firsts.map((first) => JSON.parse(first.receipt).version)).toEqual([2, 2, 4, 4]);
    const again = () => commands.map((each) => reopened.run(each).outcomes[0]![0]! as Outcome);
    let reopened: Engine = kernel;
    const before = dumpAll(kernel.path);
    expect(again()).toEqual(firsts.map(({ receipt }) => ({ receipt, replayed: true })));
    kernel.close();
    reopened = engine({ path: kernel.path, aggregates: [node(), box] });
    expect(again()).toEqual(firsts.map(({ receipt }) => ({ receipt, replayed: true })));
    expect(dumpAll(kernel.path)).toEqual(before);
  });

  test("may make what it calls, in a stream of its own", () => {
    const { kernel, a } = withNodes();
    const { events } = kernel.done("node.go", {
      node_id: a,
      also: [{ type: "box.pack", payload: { node_id: a } }],
    });
    const [row] = kernel.projections.find.all("boxes", {});
    expect(row).toMatchObject({ node_id: a });
    expect(events.map((each) => [each.event_type, each.seq_stream])).toEqual([["box.packed", 1]]);
    expect(kernel.done("box.open", { box_id: row!.box_id }).version).toBe(2);
  });

  test("lets two calls on one stream see each other's state, while find shows what was before the command", () => {
    const { kernel, a, b, brief } = withNodes();
    kernel.done("node.go", { node_id: b, add: [10] });
    const twice = [call({ node_id: b, add: [50] }), call({ node_id: b, add: [40] })];
    kernel.done("node.go", { node_id: a, also: twice });
    expect(brief()).toEqual([
      ["b", 10, 0],
      ["b", 50, 10],
      ["b", 40, 10],
    ]);
    // 100 is reached: one more is too much, and only the sum of both calls is.
    kernel.done("node.go", { node_id: b, add: [-100] });
    const refused = kernel.refused("node.go", {
      node_id: a,
      also: [call({ node_id: b, add: [60] }), call({ node_id: b, add: [60] })],
    });
    expect(refused).toMatchObject({ reason: "node.too_much", details: { node_id: b, total: 120 } });
  });

  test("may come back to its own stream, and its version says so", () => {
    const { kernel, a, b, brief } = withNodes();
    const back = call({ node_id: b, add: [2], also: [call({ node_id: a, add: [3] })] });
    const receipt = kernel.done("node.go", { node_id: a, add: [1], also: [back] });
    expect(receipt.version).toBe(3);
    expect(brief()).toEqual([
      ["a", 1, 0],
      ["b", 2, 0],
      ["a", 3, 0],
    ]);
    expect(kernel.done("node.go", { node_id: a, add: [] }, { expected_version: 3 }).result).toEqual({
      total: 4,
    });
  });
});

describe("what is all or nothing", () => {
  /** Refusals at every depth, with what the caller hears. */
  const refusals: Readonly<
    Record<string, (ids: { a: string; b: string; c: string }) => [readonly Call[], object]>
  > = {
    "the called one refuses": ({ b }) => [
      [call({ node_id: b, add: [101] })],
      { code: "conflict", reason: "node.too_much", details: { node_id: b, total: 101 } },
    ],
    "the last of several refuses": ({ b, c }) => [
      [call({ node_id: b, add: [1] }), call({ node_id: c, add: [2] }), call({ node_id: b, add: [100] })],
      { code: "conflict", details: { node_id: b, total: 101 } },
    ],
    "one that is called by a called one refuses": ({ b, c }) => [
      [call({ node_id: b, add: [1], also: [call({ node_id: c, add: [500] })] })],
      { code: "conflict", details: { node_id: c, total: 500 } },
    ],
    "a called stream does not exist": ({ b }) => [
      [call({ node_id: b, add: [1] }), call({ node_id: NOBODY, add: [1] })],
      { code: "not_found", reason: null, details: { kind: "node", id: NOBODY } },
    ],
    "a called stream of another kind does not exist": () => [
      [{ type: "box.open", payload: { box_id: NOBODY } }],
      { code: "not_found", details: { kind: "box", id: NOBODY } },
    ],
    "an event of a called one is too large": ({ b, c }) => [
      [call({ node_id: b, add: [1] }), call({ node_id: c, add: [1], text: "x".repeat(MAX_EVENT_BYTES) })],
      { code: "payload_too_large" },
    ],
    "a called one throws": ({ b, c }) => [
      [call({ node_id: b, add: [1] }), call({ node_id: c, throws: true })],
      { code: "internal" },
    ],
  };
  for (const [what, make] of Object.entries(refusals))
    test(`${what}: nothing is written, no key is used up, no state is kept`, () => {
      const { kernel, a, b, c, brief } = withNodes();
      const [also, told] = make({ a, b, c });
      const before = dumpAll(kernel.path);
      const key = { idempotency_key: "the-same" };
      const { outcomes, events } = kernel.run(toWrite("node.go", { node_id: a, add: [7], also }, key));
      expect(refusedOf(outcomes[0]![0]!)).toMatchObject(told);
      expect(events).toEqual([]);
      expect(dumpAll(kernel.path)).toEqual(before);
      expect(kernel.bugs).toHaveLength(told && "code" in told && told.code === "internal" ? 1 : 0);
      const fine = [call({ node_id: b, add: [100] }), call({ node_id: c, add: [100] })];
      const done = kernel.done("node.go", { node_id: a, add: [100], also: fine }, key);
      expect(done).toMatchObject({ seq_global: 6, result: { total: 100 }, replayed: false });
      expect(brief()).toEqual([
        ["a", 100, 0],
        ["b", 100, 0],
        ["c", 100, 0],
      ]);
    });

  test("also when it is in a batch: neither its neighbours nor the batch are taken for it", () => {
    const { kernel, a, b, c, brief } = withNodes();
    const bad = toWrite("node.go", { node_id: a, add: [5], also: [call({ node_id: b, add: [101] })] });
    const good = (by: number) =>
      toWrite("node.go", { node_id: a, add: [by], also: [call({ node_id: c, add: [by] })] });
    const { outcomes } = kernel.executor.run([
      { commands: [good(1), bad, good(2)], atomic: false },
      { commands: [good(3), bad], atomic: true },
      { commands: [good(4)], atomic: true },
    ]);
    const codes = outcomes.map((each) =>
      each.map((outcome) => ("problem" in outcome ? outcome.problem.code : "receipt")),
    );
    expect(codes).toEqual([["receipt", "conflict", "receipt"], ["conflict", "conflict"], ["receipt"]]);
    expect(brief()).toEqual([
      ["a", 1, 0],
      ["c", 1, 0],
      ["a", 2, 1],
      ["c", 2, 1],
      ["a", 4, 3],
      ["c", 4, 3],
    ]);
  });

  test("a bug in a called one is the bug of the command that called it, and of no other in its batch", () => {
    const { kernel, a, b, c, brief } = withNodes();
    const trace_id = "0af7651916cd43dd8448eb211c80319c";
    const bad = toWrite(
      "node.go",
      { node_id: a, add: [5], also: [call({ node_id: b, throws: true })] },
      { trace_id },
    );
    const { outcomes } = kernel.run(
      toWrite("node.go", { node_id: c, add: [1] }),
      bad,
      toWrite("node.go", { node_id: c, add: [2] }),
    );
    expect(outcomes.flat().map((outcome) => "problem" in outcome && outcome.problem.code)).toEqual([
      false,
      "internal",
      false,
    ]);
    expect(kernel.bugs.map((bug) => bug.trace_id)).toEqual([trace_id]);
    expect(brief()).toEqual([
      ["c", 1, 0],
      ["c", 2, 1],
    ]);
  });

  test("a called one whose projection has stopped refuses the whole command", () => {
    const first = withNodes();
    const { a, b } = first;
    first.kernel.done("node.go", {
      node_id: a,
      add: [13],
      also: [{ type: "box.pack", payload: { node_id: a } }],
    });
    const { box_id } = first.kernel.projections.find.all("boxes", {})[0]!;
    first.kernel.close();
    // Another version of the read model, which cannot apply what is stored.
    const kernel = engine({ path: first.kernel.path, aggregates: [node({ throwsAt: 13, version: 2 }), box] });
    const before = dumpAll(kernel.path);
    expect(kernel.refused("node.go", { node_id: b, add: [1] })).toMatchObject({ code: "read_only" });
    expect(kernel.done("box.open", { box_id }).version).toBe(2);
    expect(kernel.bugs).toEqual([]);
    expect(dumpAll(kernel.path).nodes).toEqual(before.nodes!);
  });
});

test("what a call can give, nobody can send", () => {
  const { kernel } = withNodes();
  expect([...kernel.registry.commands.keys()].filter((type) => type.startsWith("node."))).toEqual([
    "node.create",
    "node.go",
    "node.note",
  ]);
  expect([...kernel.registry.internal.keys()]).toEqual(["node.visit", "box.pack"]);
});
