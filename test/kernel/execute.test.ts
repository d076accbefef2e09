import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import type { Event } from "../../src/kernel/aggregate.ts";
import type { Committed, Outcome, WriteCommand, WriteRequest } from "../../src/kernel/execute.ts";
import { MAX_EVENT_BYTES } from "../../src/kernel/log.ts";
import {
  type Counter,
  dumpAll,
  type Engine,
  engine,
  type Receipt,
  receiptOf,
  refusedOf,
  toWrite,
} from "./engine.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/kernel/execute.test.ts: MP_TEST_SEED=${seed}`);

const codes = ({ outcomes }: Committed) =>
  outcomes.map((each) => each.map((outcome) => ("problem" in outcome ? outcome.problem.code : "receipt")));

const atomic = (...commands: WriteCommand[]): WriteRequest => ({ commands, atomic: true });
const loose = (...commands: WriteCommand[]): WriteRequest => ({ commands, atomic: false });

/** A counter with nothing added. */
function withCounter(kernel: Engine = engine(), name = "one") {
  const counter_id = kernel.done("counter.create", { name }).subject.id;
  return {
    kernel,
    counter_id,
    add: (by: number[], more: Partial<WriteCommand> = {}) => toWrite("counter.add", { counter_id, by }, more),
    explode: (place: string, more: Partial<WriteCommand> = {}) =>
      toWrite("counter.explode", { counter_id, place }, more),
  };
}

/** The state of a counter, folded anew from the log. */
function folded(kernel: Engine, counter_id: string): Counter & { version: number } {
  const state = { total: 0, added: [] as number[] };
  const lines = kernel.reader.stream(`counter/${counter_id}`);
  for (const { body, event_type } of lines) {
    const { by } = (JSON.parse(body) as Event<{ by: number }>).payload;
    if (event_type === "counter.added") {
      state.total += by;
      state.added.push(by);
    } else if (event_type === "counter.cleared") Object.assign(state, { total: 0, added: [] });
  }
  return { ...state, version: lines.length };
}

/** The state as the executor has it: told by refusals, which change nothing. */
function held(kernel: Engine, counter_id: string): { total: number; version: number } {
  const much = kernel.refused("counter.add", { counter_id, by: [1_000_000] });
  const late = kernel.refused("counter.add", { counter_id, by: [] }, { expected_version: 999_999 });
  return {
    total: (much.details as { total: number }).total - 1_000_000,
    version: (late.details as { actual: number }).actual,
  };
}

describe("a command", () => {
  test("of several events takes its places in one go, and its receipt names them", () => {
    const { kernel, counter_id } = withCounter();
    const committed = kernel.run(toWrite("counter.add", { counter_id, by: [5, 6, 7] }));
    const receipt = receiptOf(committed.outcomes[0]![0]!);
    expect(receipt).toMatchObject({
      type: "counter.add",
      subject: { kind: "counter", id: counter_id },
      version: 4,
      seq_global: 4,
      result: { total: 18 },
      replayed: false,
    });
    expect(receipt.events.map((each) => [each.event_type, each.seq_global, each.seq_stream])).toEqual([
      ["counter.added", 2, 2],
      ["counter.added", 3, 3],
      ["counter.added", 4, 4],
    ]);
    expect(committed.events.map((event) => event.command_end)).toEqual([0, 0, 1]);
    expect(committed.head).toBe(4);
    const bodies = kernel.reader.range(1, 4).map((line) => JSON.parse(line.body) as Event);
    expect(new Set(bodies.map((event) => event.causality.command_id))).toEqual(new Set([receipt.command_id]));
    expect(bodies.map((event) => event.event_id)).toEqual(receipt.events.map((each) => each.event_id));
  });

  test("that changes nothing is accepted with no events", () => {
    const { kernel, counter_id } = withCounter();
    const before = dumpAll(kernel.path);
    expect(kernel.done("counter.add", { counter_id, by: [] })).toMatchObject({
      events: [],
      version: 1,
      seq_global: 1,
      result: { total: 0 },
    });
    const { command_keys: _, ...after } = dumpAll(kernel.path);
    expect(before).toMatchObject(after);
  });

  test("is refused in the order of the rules, and a refusal writes nothing and uses up no key", () => {
    const { kernel, counter_id } = withCounter();
    const other = "01a20475-8d86-738e-8073-973ee2c74a0f";
    const before = dumpAll(kernel.path);
    const key = { idempotency_key: "the-same" };
    expect(kernel.refused("counter.add", { counter_id: other, by: [1] }, key)).toMatchObject({
      code: "not_found",
      details: { kind: "counter", id: other },
    });
    expect(
      kernel.refused("counter.add", { counter_id, by: [1] }, { ...key, expected_version: 7 }),
    ).toMatchObject({
      code: "expected_version_mismatch",
      details: { stream: `counter/${counter_id}`, expected: 7, actual: 1 },
    });
    expect(kernel.refused("counter.add", { counter_id, by: [2_000] }, key)).toMatchObject({
      code: "conflict",
      reason: "counter.too_much",
      hint: "add less",
      details: { total: 2_000 },
    });
    expect(
      kernel.refused("counter.add", { counter_id, by: [1] }, { ...key, parent_event_id: other }),
    ).toMatchObject({
      code: "not_found",
      details: { kind: "event", id: other },
    });
    expect(kernel.refused("counter.create", { name: "two" }, { ...key, expected_version: 1 })).toMatchObject({
      code: "expected_version_mismatch",
      details: { expected: 1, actual: 0 },
    });
    expect(dumpAll(kernel.path)).toEqual(before);
    expect(kernel.done("counter.create", { name: "two" }, { ...key, expected_version: 0 }).seq_global).toBe(
      2,
    );
    expect(kernel.bugs).toEqual([]);
  });

  test("names the event that led to it", () => {
    const { kernel, counter_id } = withCounter();
    const [parent] = kernel.done("counter.add", { counter_id, by: [1] }).events;
    kernel.done("counter.add", { counter_id, by: [1] }, { parent_event_id: parent!.event_id });
    expect(JSON.parse(kernel.reader.range(2, 3)[0]!.body).causality.parent_event_id).toBe(parent!.event_id);
  });

  test("that races with another in one batch has one winner", () => {
    const { kernel, add } = withCounter();
    expect(codes(kernel.run(add([1], { expected_version: 1 }), add([2], { expected_version: 1 })))).toEqual([
      ["receipt"],
      ["expected_version_mismatch"],
    ]);
    const names = ["two", "two", "three", "two"].map((name) => toWrite("counter.create", { name }));
    expect(codes(kernel.run(...names))).toEqual([["receipt"], ["conflict"], ["receipt"], ["conflict"]]);
  });
});

describe("a key", () => {
  const kernel = engine();
  const { counter_id } = withCounter(kernel);
  const [event] = kernel.done("counter.add", { counter_id, by: [1] }).events;
  const commands: Readonly<Record<string, WriteCommand>> = {
    "a command that creates": toWrite("counter.create", { name: "kept" }),
    "one event": toWrite("counter.clear", { counter_id }),
    "several events and a result": toWrite("counter.add", { counter_id, by: [1, 2, 3] }),
    "no events": toWrite("counter.add", { counter_id, by: [] }),
    "an expected version": toWrite("counter.add", { counter_id, by: [9] }, { expected_version: 6 }),
    "a parent event": toWrite("counter.add", { counter_id, by: [9] }, { parent_event_id: event!.event_id }),
    "a key of odd characters": toWrite("counter.clear", { counter_id }, { idempotency_key: "\"\\'%_~!" }),
    "a command of the kernel": toWrite("projection.rebuild", { name: "counter" }),
    "the end of the daemon": toWrite("daemon.shutdown", {}),
  };
  const firsts = new Map<string, string>();
  for (const [what, command] of Object.entries(commands)) {
    const [[outcome]] = kernel.run(command).outcomes as [[Outcome]];
    firsts.set(what, "receipt" in outcome ? outcome.receipt : JSON.stringify(outcome.problem));
  }

  for (const [what, command] of Object.entries(commands))
    test(`sent again gives the first receipt in the same words, for ever (${what})`, () => {
      const after = dumpAll(kernel.path);
      for (let time = 0; time < 2; time++) {
        const again = kernel.run(command);
        expect(again.outcomes).toEqual([[{ receipt: firsts.get(what)!, replayed: true }]]);
        expect(again.events).toEqual([]);
        // What was asked for once is done once.
        expect(again.effects).toEqual([]);
      }
      expect(dumpAll(kernel.path)).toEqual(after);
      const reopened = engine({ path: kernel.path });
      expect(reopened.run(command).outcomes).toEqual([[{ receipt: firsts.get(what)!, replayed: true }]]);
      reopened.close();
    });

  test("with another command is refused and changes nothing", () => {
    const key = { idempotency_key: commands["one event"]!.idempotency_key };
    const before = dumpAll(kernel.path);
    const others: [string, Record<string, unknown>, object][] = [
      ["counter.add", { counter_id, by: [1] }, {}],
      ["counter.clear", { counter_id: "01a20475-8d86-738e-8073-973ee2c74a0f" }, {}],
      ["counter.clear", { counter_id }, { expected_version: 3 }],
      ["projection.rebuild", {}, {}],
    ];
    for (const [type, payload, more] of others)
      expect(kernel.refused(type, payload, { ...key, ...more })).toMatchObject({
        code: "idempotency_key_reused",
        status: 422,
      });
    expect(dumpAll(kernel.path)).toEqual(before);
  });

  test("belongs to its principal", () => {
    const command = commands["one event"]!;
    const mine = receiptOf(kernel.run({ ...command, principal: "uid:2" }).outcomes[0]![0]!);
    expect(mine.replayed).toBe(false);
    expect(JSON.parse(firsts.get("one event")!).command_id).not.toBe(mine.command_id);
  });

  test("is looked at before the expected version", () => {
    const fresh = withCounter();
    const command = fresh.add([1], { expected_version: 1 });
    const first = receiptOf(fresh.kernel.run(command).outcomes[0]![0]!);
    fresh.kernel.run(fresh.add([1]));
    expect(receiptOf(fresh.kernel.run(command).outcomes[0]![0]!)).toEqual({ ...first, replayed: true });
  });

  test("used twice in one batch is carried out once", () => {
    const fresh = withCounter();
    const command = fresh.add([1, 2]);
    for (const requests of [
      [loose(command), loose(command), loose(command)],
      [loose(command, command)],
      [atomic(command, command)],
    ]) {
      const { outcomes } = fresh.kernel.executor.run(requests);
      expect(new Set(outcomes.flat().map((outcome) => receiptOf(outcome).command_id)).size).toBe(1);
    }
    expect(folded(fresh.kernel, fresh.counter_id)).toMatchObject({ total: 3, version: 3 });
  });
});

describe("a batch that is all or nothing", () => {
  test("is carried out in order, each command seeing the ones before it", () => {
    const { kernel, counter_id, add } = withCounter();
    const committed = kernel.executor.run([
      atomic(add([600], { expected_version: 1 }), add([400], { expected_version: 2 }), add([-1_000, 5])),
    ]);
    expect(codes(committed)).toEqual([["receipt", "receipt", "receipt"]]);
    expect(committed.events.map((event) => event.command_end)).toEqual([1, 1, 0, 1]);
    expect(folded(kernel, counter_id)).toMatchObject({ total: 5, version: 5 });
    expect(held(kernel, counter_id)).toEqual({ total: 5, version: 5 });
  });

  test("leaves nothing behind when one is refused: no event, key, row, state or head", () => {
    const { kernel, counter_id, add } = withCounter();
    kernel.run(add([1]));
    const before = dumpAll(kernel.path);
    const { head } = kernel.log;
    const commands = [
      add([2]),
      toWrite("counter.create", { name: "two" }),
      toWrite("projection.rebuild", {}),
      add([5_000]),
      add([3]),
    ];
    const committed = kernel.executor.run([atomic(...commands)]);
    // Each answers with what the guilty one met, and says which it was.
    for (const outcome of committed.outcomes[0]!)
      expect(refusedOf(outcome)).toMatchObject({ code: "conflict", details: { total: 5_003, index: 3 } });
    expect(committed).toMatchObject({ events: [], effects: [], head: 2 });
    expect(dumpAll(kernel.path)).toEqual(before);
    expect(kernel.log.head).toEqual(head);
    expect(held(kernel, counter_id)).toEqual({ total: 1, version: 2 });
    // The keys of the others are free.
    expect(codes(kernel.run(commands[0]!, commands[1]!))).toEqual([["receipt"], ["receipt"]]);
  });

  test("takes nobody else with it", () => {
    const { kernel, counter_id, add, explode } = withCounter();
    for (const guilty of [add([5_000]), explode("apply")]) {
      const at = kernel.log.head.seq_global;
      const committed = kernel.executor.run([
        loose(add([1])),
        atomic(add([10]), guilty, add([10])),
        loose(add([2]), add([3])),
      ]);
      const code = guilty.type === "counter.add" ? "conflict" : "internal";
      expect(codes(committed)).toEqual([["receipt"], [code, code, code], ["receipt", "receipt"]]);
      expect(committed.events.map((event) => event.seq_global)).toEqual([at + 1, at + 2, at + 3]);
    }
    expect(folded(kernel, counter_id).added).toEqual([1, 2, 3, 1, 2, 3]);
    expect(held(kernel, counter_id)).toEqual({ total: 12, version: 7 });
  });

  test("with an event that is too large writes nothing", () => {
    const { kernel, counter_id, add } = withCounter();
    const before = dumpAll(kernel.path);
    const large = toWrite("counter.keep", { counter_id, data: "x".repeat(MAX_EVENT_BYTES) });
    expect(codes(kernel.executor.run([atomic(add([1]), large)]))).toEqual([
      ["payload_too_large", "payload_too_large"],
    ]);
    expect(dumpAll(kernel.path)).toEqual(before);
  });

  test("may repeat what was carried out before", () => {
    const { kernel, add } = withCounter();
    const known = add([1]);
    kernel.run(known);
    const { outcomes } = kernel.executor.run([atomic(known, add([2]))]);
    expect(outcomes[0]!.map((outcome) => receiptOf(outcome).replayed)).toEqual([true, false]);
  });
});

describe("a bug", () => {
  for (const place of ["decide", "schema", "evolve", "apply"])
    test(`in one command (${place}) is internal for that one alone, whoever shares its batch or its request`, () => {
      const { kernel, counter_id, add, explode } = withCounter();
      const trace_id = "0af7651916cd43dd8448eb211c80319c";
      const before = dumpAll(kernel.path);
      const requests: Readonly<Record<string, readonly WriteRequest[]>> = {
        batch: [loose(add([1])), loose(explode(place, { trace_id })), loose(add([2]))],
        request: [loose(add([1]), explode(place, { trace_id }), add([2]))],
      };
      for (const [what, sent] of Object.entries(requests)) {
        kernel.bugs.length = 0;
        const committed = kernel.executor.run(sent);
        expect(codes(committed).flat()).toEqual(["receipt", "internal", "receipt"]);
        expect(committed.outcomes.map((each) => each.length)).toEqual(what === "batch" ? [1, 1, 1] : [3]);
        // Told once, with the trace of the guilty one; the answer says nothing of it.
        expect(kernel.bugs.map((bug) => bug.trace_id)).toEqual([trace_id]);
        const answer = refusedOf(committed.outcomes.flat()[1]!);
        expect(answer.trace_id).toBe(trace_id);
        expect(JSON.stringify(answer)).not.toMatch(/bug in (decide|evolve|apply)|breaks its own|engine\.ts/);
        expect(committed.events.map((event) => event.seq_stream)).toHaveLength(2);
      }
      expect(folded(kernel, counter_id)).toMatchObject({ added: [1, 2, 1, 2], version: 5 });
      expect(held(kernel, counter_id)).toEqual({ total: 6, version: 5 });
      expect(dumpAll(kernel.path).event_versions).not.toBe(before.event_versions);
    });

  test("uses up no key, and leaves the command free to be carried out once it is mended", () => {
    const { kernel, explode } = withCounter();
    const before = dumpAll(kernel.path);
    for (const place of ["decide", "schema", "evolve", "apply"]) {
      kernel.run(explode(place, { idempotency_key: "again" }));
      expect(dumpAll(kernel.path)).toEqual(before);
    }
    expect(codes(kernel.run(explode("nowhere", { idempotency_key: "again" })))).toEqual([["receipt"]]);
  });

  test("in a batch that is all or nothing says where, and nothing of the batch is written", () => {
    const { kernel, add, explode } = withCounter();
    const before = dumpAll(kernel.path);
    const trace_id = "0af7651916cd43dd8448eb211c80319c";
    const { outcomes } = kernel.executor.run([atomic(add([1]), add([2]), explode("evolve", { trace_id }))]);
    for (const outcome of outcomes[0]!)
      expect(refusedOf(outcome)).toMatchObject({ code: "internal", trace_id, details: { index: 2 } });
    expect(kernel.bugs).toHaveLength(1);
    expect(dumpAll(kernel.path)).toEqual(before);
  });
});

describe("a database that cannot be written", () => {
  test("is read_only for all, and writes go on when it can", () => {
    const { kernel, counter_id, add } = withCounter();
    // Another program that holds the write lock; without the patience that the daemon has.
    kernel.db.run("PRAGMA busy_timeout = 1");
    const before = dumpAll(kernel.path);
    const other = engine({ path: kernel.path });
    other.db.run("BEGIN IMMEDIATE");
    const commands = [add([1]), add([2])];
    const committed = kernel.run(...commands);
    expect(codes(committed)).toEqual([["read_only"], ["read_only"]]);
    expect(committed).toMatchObject({ refused: "SQLITE_BUSY", events: [], head: 1 });
    expect(kernel.bugs).toEqual([]);
    other.db.run("ROLLBACK");
    other.close();
    expect(dumpAll(kernel.path)).toEqual(before);
    const after = kernel.run(...commands);
    expect(codes(after)).toEqual([["receipt"], ["receipt"]]);
    expect(after.refused).toBeUndefined();
    expect(held(kernel, counter_id)).toEqual({ total: 3, version: 3 });
  });
});

describe("a database that is damaged", () => {
  test("is read_only for what meets the damage, and is still read", () => {
    const { kernel, counter_id } = withCounter();
    kernel.executor.run([
      loose(...Array.from({ length: 500 }, (_, i) => toWrite("counter.create", { name: `c-${i}` }))),
    ]);
    const { rootpage } = kernel.db
      .query<{ rootpage: number }, []>(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_events_1'",
      )
      .get()!;
    kernel.close();
    // The index that says where a stream's events are.
    const bytes = readFileSync(kernel.path);
    bytes.fill(0xa5, (rootpage - 1) * 4_096, rootpage * 4_096);
    writeFileSync(kernel.path, bytes);
    const damaged = engine({ path: kernel.path });
    const { outcomes, refused } = damaged.run(toWrite("counter.add", { counter_id, by: [1] }));
    expect(refusedOf(outcomes[0]![0]!)).toMatchObject({ code: "read_only", status: 503 });
    expect(refused).toMatch(/^SQLITE_CORRUPT/);
    expect(damaged.bugs).toEqual([]);
    expect(damaged.reader.range(0, 10)).toHaveLength(10);
    expect(damaged.projections.find.all("counters", {})).toHaveLength(501);
  });
});

describe("the state that is held", () => {
  /** One command of a random batch: which counter, what to do with it. */
  const step = fc.record({
    counter: fc.nat(2),
    what: fc.oneof(
      {
        weight: 5,
        arbitrary: fc.record({ add: fc.array(fc.integer({ min: -400, max: 600 }), { maxLength: 4 }) }),
      },
      {
        weight: 1,
        arbitrary: fc.record({ explode: fc.constantFrom("decide", "schema", "evolve", "apply") }),
      },
      { weight: 1, arbitrary: fc.record({ clear: fc.constant(true) }) },
      { weight: 1, arbitrary: fc.record({ again: fc.nat(20) }) },
      { weight: 1, arbitrary: fc.record({ late: fc.constant(true) }) },
    ),
  });
  const request = fc.record({
    atomic: fc.boolean(),
    commands: fc.array(step, { minLength: 1, maxLength: 4 }),
  });
  const batches = fc.array(fc.array(request, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 6 });

  test("is the fold of the log after any batch, whatever was refused, rolled back or repeated in it", () => {
    fc.assert(
      fc.property(batches, (all) => {
        const kernel = engine();
        const ids = ["a", "b", "c"].map((name) => withCounter(kernel, name).counter_id);
        const sent: WriteCommand[] = [];
        const receipts = new Map<WriteCommand, Receipt>();
        const build = ({ counter, what }: { counter: number; what: object }): WriteCommand => {
          const counter_id = ids[counter]!;
          let command = toWrite("counter.clear", { counter_id });
          if ("add" in what) command = toWrite("counter.add", { counter_id, by: what.add });
          else if ("explode" in what)
            command = toWrite("counter.explode", { counter_id, place: what.explode });
          else if ("late" in what)
            command = toWrite("counter.clear", { counter_id }, { expected_version: 77_777 });
          else if ("again" in what) command = sent[(what.again as number) % (sent.length || 1)] ?? command;
          sent.push(command);
          return command;
        };
        for (const batch of all) {
          const requests = batch.map(({ atomic: whole, commands }) => ({
            atomic: whole,
            commands: commands.map(build),
          }));
          const from = kernel.log.head.seq_global;
          const { outcomes, events } = kernel.executor.run(requests);
          // What is told to readers is what is in the log.
          expect(events.map((event) => event.body)).toEqual(
            kernel.reader.range(from, 1e9).map((line) => line.body),
          );
          for (const [index, each] of outcomes.entries()) {
            const accepted = each.filter((outcome) => "receipt" in outcome);
            if (requests[index]!.atomic) expect([0, each.length]).toContain(accepted.length);
            for (const [place, outcome] of each.entries()) {
              if ("problem" in outcome) continue;
              const command = requests[index]!.commands[place]!;
              const receipt = receiptOf(outcome);
              const first = receipts.get(command);
              expect(receipt.replayed).toBe(first !== undefined);
              if (first) expect({ ...receipt, replayed: false }).toEqual(first);
              receipts.set(command, first ?? receipt);
            }
          }
          for (const id of ids) {
            const { total, version } = folded(kernel, id);
            expect(held(kernel, id)).toEqual({ total, version });
          }
        }
        // Every event belongs to a receipt, once; the head is where the log ends.
        const claimed = [...receipts.values()].flatMap((receipt) =>
          receipt.events.map((each) => each.seq_global),
        );
        expect(claimed.toSorted((a, b) => a - b)).toEqual(
          Array.from({ length: kernel.reader.head() - ids.length }, (_, i) => i + ids.length + 1),
        );
        expect(kernel.log.head.seq_global).toBe(kernel.reader.head());
        kernel.close();
      }),
      { seed, numRuns: 60 },
    );
  }, 60_000);

  test("may be forgotten for other streams and is folded again", () => {
    const { kernel, counter_id, add } = withCounter();
    let named = 0;
    /** So many others are touched. */
    const others = (count: number) =>
      kernel.executor.run([
        loose(...Array.from({ length: count }, () => toWrite("counter.create", { name: `c-${named++}` }))),
      ]);
    kernel.run(add([1, 2]));
    // Once as one that was touched before the last 5,000, then as one of whom nothing is left.
    others(5_500);
    expect(held(kernel, counter_id)).toEqual({ total: 3, version: 3 });
    expect(receiptOf(kernel.run(add([4])).outcomes[0]![0]!)).toMatchObject({
      version: 4,
      result: { total: 7 },
    });
    expect(held(kernel, counter_id)).toEqual({ total: 7, version: 4 });
    others(11_000);
    expect(held(kernel, counter_id)).toEqual({ total: 7, version: 4 });
    expect(receiptOf(kernel.run(add([1])).outcomes[0]![0]!)).toMatchObject({
      version: 5,
      result: { total: 8 },
    });
  });
});

describe("an effect", () => {
  test("is told with the commit that made it true, and not for what was refused", () => {
    const kernel = engine();
    expect(kernel.run(toWrite("projection.rebuild", {}), toWrite("daemon.shutdown", {})).effects).toEqual([
      { kind: "rebuild", projections: ["counter", "mirror"] },
      { kind: "shutdown" },
    ]);
    expect(kernel.run(toWrite("projection.rebuild", { name: "mirror" })).effects).toEqual([
      { kind: "rebuild", projections: ["mirror"] },
    ]);
    const refused = kernel.run(toWrite("projection.rebuild", { name: "nothing" }));
    expect(codes(refused)).toEqual([["not_found"]]);
    expect(refused.effects).toEqual([]);
    expect(kernel.reader.head()).toBe(0);
  });
});
