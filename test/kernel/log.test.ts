import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import canonicalize from "canonicalize";
import fc from "fast-check";
import type { Event } from "../../src/kernel/aggregate.ts";
import { canonical } from "../../src/kernel/canonical.ts";
import { openForReading } from "../../src/kernel/database.ts";
import {
  encode,
  type Filter,
  LogReader,
  leafHash,
  MAX_EVENT_BYTES,
  passes,
  type Stored,
} from "../../src/kernel/log.ts";
import { dumpAll, engine, receiptOf, refusedOf, toWrite } from "./engine.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/kernel/log.test.ts: MP_TEST_SEED=${seed}`);
const checked = { seed, numRuns: 300 };

const bytesOf = (text: string) => new TextEncoder().encode(text);
const sha256 = (...parts: (string | Uint8Array)[]) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};

const uuid = fc.uuid({ version: 7 });
const hex = (length: number) =>
  fc
    .array(fc.constantFrom(..."0123456789abcdef"), { minLength: length, maxLength: length })
    .map((all) => all.join(""));
const optional = <K extends string, T>(key: K, value: fc.Arbitrary<T>) =>
  fc.option(value, { nil: undefined }).map((each) => (each === undefined ? {} : { [key]: each }));

/** Events as the executor makes them: odd in everything that comes from outside. */
const anyEvent: fc.Arbitrary<Event> = fc
  .tuple(
    fc.record({
      actor: fc
        .tuple(
          fc.record({
            id: fc.string({ unit: "grapheme" }),
            kind: fc.constantFrom("user" as const, "ci" as const, "session" as const),
          }),
          optional("on_behalf_of", fc.record({ kind: fc.string(), id: fc.string({ unit: "grapheme" }) })),
        )
        .map(([actor, more]) => ({ ...actor, ...more })),
      causality: fc
        .tuple(
          fc.record({ command_id: uuid, idempotency_key: fc.stringMatching(/^[!-~]{1,200}$/) }),
          optional("parent_event_id", uuid),
        )
        .map(([causality, more]) => ({ ...causality, ...more })),
      event_id: uuid,
      event_type: fc.constantFrom("counter.added", "project.created"),
      payload: fc.dictionary(fc.string({ unit: "grapheme" }), fc.jsonValue({ noUnicodeString: false })),
      prev_hash: hex(64),
      schema_version: fc.integer({ min: 1, max: 1_000_000 }),
      seq_global: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      seq_stream: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      stream: uuid.map((id) => `counter/${id}`),
      subject: fc.record({ kind: fc.constant("counter"), id: uuid }),
      timestamp: fc.constant("2026-11-22T10:00:00.000Z"),
      trace_id: hex(32),
    }),
    optional("workspace_id", uuid),
    optional("project_id", uuid),
  )
  .map(([event, workspace, project]) => ({ ...event, ...workspace, ...project }));

describe("the bytes of an event", () => {
  test("are its RFC 8785 form, whatever is in it", () => {
    fc.assert(
      fc.property(anyEvent, (event) => {
        expect(canonical(event)).toBe(canonicalize(event)!);
      }),
      checked,
    );
  });

  test("keep an actor apart from one that looks like it", () => {
    const base = fc.sample(anyEvent, { seed, numRuns: 1 })[0]!;
    const actors: Event["actor"][] = [
      { id: "x", kind: "user" },
      { id: "x", kind: "ci" },
      { id: "user x", kind: "ci" },
      { id: "x", kind: "user", on_behalf_of: { id: "y", kind: "user" } },
      { id: 'quote" back\\slash', kind: "user" },
    ];
    for (const actor of [...actors, ...actors])
      expect(canonical({ ...base, actor })).toBe(canonicalize({ ...base, actor })!);
  });

  test("have the size and the leaf hash of their UTF-8", () => {
    fc.assert(
      fc.property(anyEvent, (event) => {
        const { body, size, leaf } = encode(event);
        const bytes = bytesOf(body);
        expect(size).toBe(bytes.length);
        expect(leaf).toBe(sha256(new Uint8Array([0]), bytes));
        expect(leafHash(bytes)).toBe(leaf);
      }),
      checked,
    );
  });

  /** RFC 8785, appendix B: the bits of a double, and how it is written. */
  const numbers: readonly (readonly [bits: string, text: string])[] = [
    ["0000000000000000", "0"],
    ["8000000000000000", "0"],
    ["0000000000000001", "5e-324"],
    ["8000000000000001", "-5e-324"],
    ["7fefffffffffffff", "1.7976931348623157e+308"],
    ["ffefffffffffffff", "-1.7976931348623157e+308"],
    ["4340000000000000", "9007199254740992"],
    ["c340000000000000", "-9007199254740992"],
    ["4430000000000000", "295147905179352830000"],
    ["44b52d02c7e14af5", "9.999999999999997e+22"],
    ["44b52d02c7e14af6", "1e+23"],
    ["44b52d02c7e14af7", "1.0000000000000001e+23"],
    ["444b1ae4d6e2ef4e", "999999999999999700000"],
    ["444b1ae4d6e2ef4f", "999999999999999900000"],
    ["444b1ae4d6e2ef50", "1e+21"],
    ["3eb0c6f7a0b5ed8c", "9.999999999999997e-7"],
    ["3eb0c6f7a0b5ed8d", "0.000001"],
    ["41b3de4355555553", "333333333.3333332"],
    ["41b3de4355555554", "333333333.33333325"],
    ["41b3de4355555555", "333333333.3333333"],
    ["41b3de4355555556", "333333333.3333334"],
    ["41b3de4355555557", "333333333.33333343"],
    ["becbf647612f3696", "-0.0000033333333333333333"],
    ["43143ff3c1cb0959", "1424953923781206.2"],
  ];
  const vectors: readonly (readonly [what: string, sent: string, stored: string])[] = [
    [
      "RFC 8785 §3.2.2",
      '{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/","literals":[null,true,false]}',
      '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    ],
    [
      "RFC 8785 §3.2.3",
      '{"\\u20ac":"Euro Sign","\\r":"Carriage Return","\\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\\ud83d\\ude00":"Emoji: Grinning Face","\\u0080":"Control","\\u00f6":"Latin Small Letter O With Diaeresis"}',
      '{"\\r":"Carriage Return","1":"One","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis","\u20ac":"Euro Sign","\ud83d\ude00":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}',
    ],
    ["keys that look like numbers", '{"10":1,"9":2,"-1":3,"a":4,"":5}', '{"":5,"-1":3,"10":1,"9":2,"a":4}'],
    [
      "nesting",
      '{"b":[{"d":1,"c":[]},{}],"a":{"z":null,"y":{}}}',
      '{"a":{"y":{},"z":null},"b":[{"c":[],"d":1},{}]}',
    ],
    ["text that stays as it is", '"\u2028\u2029é́\u007f"', '"\u2028\u2029é́\u007f"'],
  ];
  const kernel = engine();
  const { subject } = kernel.done("counter.create", { name: "vectors" });

  /** What the log holds as `data` after a command had it. */
  function stored(data: unknown): string {
    const { seq_global } = kernel.done("counter.keep", { counter_id: subject.id, data });
    const [bytes] = kernel.reader.bodies(seq_global - 1, seq_global);
    return /"payload":\{"data":(.*)\},"prev_hash":/s.exec(new TextDecoder().decode(bytes))![1]!;
  }

  for (const [bits, text] of numbers)
    test(`write the double ${bits} as ${text}`, () => {
      const double = Buffer.from(bits, "hex").readDoubleBE();
      expect(stored(double)).toBe(text);
      expect(stored({ nested: [double] })).toBe(`{"nested":[${text}]}`);
    });
  for (const [what, sent, expected] of vectors)
    test(`hold to ${what}`, () => expect(stored(JSON.parse(sent))).toBe(expected));

  test("cannot be of a value that JSON has no word for", () => {
    const plain = toWrite("counter.keep", { counter_id: subject.id, data: 0 });
    for (const data of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const { outcomes } = kernel.run({ ...plain, payload: { counter_id: subject.id, data } });
      expect(refusedOf(outcomes[0]![0]!).code).toBe("internal");
    }
  });
});

describe("the chain", () => {
  test("is reproduced by a few lines that know nothing of the kernel", () => {
    const kernel = engine();
    const { subject } = kernel.done("counter.create", { name: "é 😀" });
    for (let i = 0; i < 20; i++) kernel.done("counter.add", { counter_id: subject.id, by: [i, -i, 0] });
    kernel.close();
    const db = openForReading(kernel.path);
    const rows = db.query<{ body: Uint8Array }, []>("SELECT body FROM events ORDER BY seq_global").all();
    db.close();
    expect(rows).toHaveLength(61);
    let prev_hash = sha256(`mp.local/${kernel.log_id}/events`);
    for (const { body } of rows) {
      expect(JSON.parse(new TextDecoder().decode(body)).prev_hash).toBe(prev_hash);
      prev_hash = sha256(new Uint8Array([0]), body);
    }
    expect(kernel.log.head).toEqual({ seq_global: 61, leaf: prev_hash });
  });

  test("goes on after a rollback as if nothing had been tried", () => {
    const kernel = engine();
    const { subject } = kernel.done("counter.create", { name: "one" });
    const { head } = kernel.log;
    kernel.refused("counter.explode", { counter_id: subject.id, place: "apply" });
    expect(kernel.log.head).toEqual(head);
    const { events } = kernel.done("counter.add", { counter_id: subject.id, by: [1] });
    expect(events[0]).toMatchObject({ seq_global: 2, seq_stream: 2 });
    const [body] = kernel.reader.bodies(1, 2);
    expect(JSON.parse(new TextDecoder().decode(body)).prev_hash).toBe(head.leaf);
  });

  test("goes on after a restart, and ids grow though the clock was set back", () => {
    let now = Date.UTC(2026, 10, 22, 10);
    const first = engine({ now: () => now });
    const { subject } = first.done("counter.create", { name: "one" });
    now -= 3_600_000;
    first.done("counter.add", { counter_id: subject.id, by: [1, 2, 3] });
    first.close();
    now -= 86_400_000;
    const again = engine({ path: first.path, now: () => now });
    for (let i = 0; i < 2_000; i += 10)
      again.done("counter.add", { counter_id: subject.id, by: Array(10).fill(0) });
    const ids = again.reader.rows(0, 3_000).map((row) => row.columns.split(" ")[0]!);
    expect(ids).toHaveLength(2_004);
    expect(ids).toEqual(ids.toSorted());
    expect(new Set(ids).size).toBe(ids.length);
    // The time itself is told as the clock has it.
    expect(JSON.parse(again.reader.range(2_003, 2_004)[0]!.body).timestamp).toBe("2026-11-21T09:00:00.000Z");
  });
});

describe("the largest event", () => {
  for (const [what, letter] of [
    ["ASCII", "x"],
    ["two bytes a letter", "é"],
    ["escapes", '"'],
  ] as const)
    test(`of exactly ${MAX_EVENT_BYTES} bytes is stored, and one byte more is not (${what})`, () => {
      const kernel = engine();
      const { subject } = kernel.done("counter.create", { name: "one" });
      const keep = (data: string, key: string) =>
        kernel.run(toWrite("counter.keep", { counter_id: subject.id, data }, { idempotency_key: key }));
      const size = () =>
        kernel.reader.bodies(kernel.log.head.seq_global - 1, kernel.log.head.seq_global)[0]!.length;
      receiptOf(keep("", "k-empty").outcomes[0]![0]!);
      const room = MAX_EVENT_BYTES - size();
      const each = letter === "x" ? 1 : 2;
      const data = letter.repeat(Math.floor(room / each)) + "x".repeat(room % each);

      const before = dumpAll(kernel.path);
      const { outcomes, events } = keep(`${data}x`, "k-large");
      expect(refusedOf(outcomes[0]![0]!)).toMatchObject({ code: "payload_too_large", status: 413 });
      expect(events).toEqual([]);
      expect(dumpAll(kernel.path)).toEqual(before);

      // The refusal used up no key, and no position.
      const receipt = receiptOf(keep(data, "k-large").outcomes[0]![0]!);
      expect(receipt).toMatchObject({ version: 3, seq_global: 3 });
      expect(size()).toBe(MAX_EVENT_BYTES);
    });

  test("among others takes its command with it, and no other", () => {
    const kernel = engine();
    const { subject } = kernel.done("counter.create", { name: "one" });
    const large = toWrite("counter.keep", { counter_id: subject.id, data: "x".repeat(MAX_EVENT_BYTES) });
    const small = () => toWrite("counter.add", { counter_id: subject.id, by: [1] });
    const { outcomes, events } = kernel.run(small(), large, small());
    expect(outcomes.map(([outcome]) => ("problem" in outcome! ? outcome.problem.code : "receipt"))).toEqual([
      "receipt",
      "payload_too_large",
      "receipt",
    ]);
    expect(events.map((event) => event.seq_global)).toEqual([2, 3]);
  });
});

describe("reading", () => {
  const kernel = engine();
  const one = kernel.done("counter.create", { name: "one" }).subject.id;
  const two = kernel.done("counter.create", { name: "two" }).subject.id;
  kernel.done("counter.add", { counter_id: one, by: [1, 2, 3] });
  kernel.done("counter.add", { counter_id: two, by: [4] });
  kernel.done("counter.clear", { counter_id: one });
  const reader = new LogReader(openForReading(kernel.path));
  const rows = reader.db
    .query<Stored, []>("SELECT *, CAST(body AS TEXT) AS body FROM events ORDER BY seq_global")
    .all();

  test("gives rows, lines and bodies of one log", () => {
    expect(reader.head()).toBe(7);
    expect(rows.map((row) => row.seq_global)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(reader.range(0, 7).map((line) => line.body)).toEqual(rows.map((row) => row.body));
    expect(reader.bodies(2, 4).map((body) => new TextDecoder().decode(body))).toEqual(
      rows.slice(2, 4).map((row) => row.body),
    );
    expect(reader.range(1, 6, {}, 2).map((line) => line.seq_global)).toEqual([2, 3]);
    expect(reader.stream(`counter/${one}`).map((line) => line.seq_global)).toEqual([1, 3, 4, 5, 7]);
    expect(reader.stream(`counter/${one}`, 3).map((line) => line.seq_global)).toEqual([5, 7]);
    expect(reader.versions().map((each) => each.event_type)).toEqual([
      "counter.added",
      "counter.cleared",
      "counter.created",
    ]);
  });

  test("stops only where a command ends", () => {
    expect([1, 2, 3, 4, 5, 6, 7].map((seq) => reader.boundary(seq))).toEqual([1, 2, 5, 5, 5, 6, 7]);
  });

  test("finds an event by its id, and nothing by any other", () => {
    for (const { event_id, body } of rows) expect(reader.byId(event_id)?.body).toBe(body);
    for (const { event_id } of rows) {
      const other = `${event_id.slice(0, -1)}${event_id.endsWith("0") ? "1" : "0"}`;
      if (!rows.some((row) => row.event_id === other)) expect(reader.byId(other)).toBeUndefined();
    }
    for (const id of ["", "0", "ffffffff-ffff-7fff-bfff-ffffffffffff"])
      expect(reader.byId(id)).toBeUndefined();
  });

  test("filters in SQL as it filters in memory", () => {
    const types = ["counter.added", "counter.created", "counter.cleared", "counter.kept"];
    const some = (values: string[]) => fc.option(fc.subarray(values, { minLength: 1 }), { nil: undefined });
    const anyFilter: fc.Arbitrary<Filter> = fc
      .tuple(
        some(types),
        some([`counter/${one}`, `counter/${two}`, "counter/none"]),
        some(["counter", "mirror"]),
      )
      .map(([chosen, streams, kinds]) => ({
        ...(chosen && { types: chosen }),
        ...(streams && { streams }),
        ...(kinds && { subject_kind: kinds[0]! }),
      }));
    fc.assert(
      fc.property(anyFilter, fc.nat(8), fc.nat(8), (filter, after, upTo) => {
        const expected = rows.filter(
          (row) => row.seq_global > after && row.seq_global <= upTo && passes(filter, row),
        );
        expect(reader.range(after, upTo, filter).map((line) => line.seq_global)).toEqual(
          expected.map((row) => row.seq_global),
        );
      }),
      checked,
    );
  });

  test("finds the first event since a time", () => {
    let now = Date.UTC(2026, 0, 1);
    const timed = engine({ now: () => now });
    const { subject } = timed.done("counter.create", { name: "one" });
    for (let hour = 1; hour < 10; hour++) {
      now += 3_600_000;
      timed.done("counter.add", { counter_id: subject.id, by: [0, 0] });
    }
    const since = (hours: number) => timed.reader.firstSince(Date.UTC(2026, 0, 1) + hours * 3_600_000);
    expect([-1, 0, 0.5, 1, 1.5, 9, 9.5].map(since)).toEqual([1, 1, 2, 2, 4, 18, 20]);
  });
});
