/**
 * The way of one envelope through dispatch and execute, in one process: what a socket cannot show, because it has one caller,
 * a domain without old versions, and no bugs. Everything else about dispatch is tested through the socket (test/http).
 */
import { describe, expect, test } from "bun:test";
import { type TSchema, Type } from "typebox";
import { command } from "../../src/kernel/aggregate.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { type Answer, type Caller, dispatcher, fromText } from "../../src/kernel/dispatch.ts";
import { fingerprint } from "../../src/kernel/idempotency.ts";
import { LogReader } from "../../src/kernel/log.ts";
import { isProblem, type Problem, problem } from "../../src/kernel/problems.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { Id, matches, object } from "../../src/kernel/schema.ts";
import { allSchemas } from "../../src/kernel/schemas.ts";
import { Hub } from "../../src/kernel/stream.ts";
import { system } from "../../src/kernel/system.ts";
import { kernel, uuid } from "../support/given.ts";
import { ticket } from "../support/ticket.ts";

const ada: Caller = { actor: { id: "ada", kind: "user" }, principal: "uid:1" };
const bob: Caller = { actor: { id: "bob", kind: "ci" }, principal: "uid:2" };
/** Another person under the same credential. */
const eve: Caller = { actor: { id: "eve", kind: "user" }, principal: "uid:1" };

/** A kernel with its dispatcher. */
function start(aggregate: unknown = ticket) {
  const it = kernel(buildRegistry([aggregate], system));
  const reader = new LogReader(openForReading(it.path));
  const hub = new Hub(reader, it.registry, it.log_id);
  let closed: Problem | undefined;
  let keepBack = 0;
  const dispatch = dispatcher({
    now: Date.now,
    registry: it.registry,
    async submit(request) {
      const { outcomes, events } = it.execute(request);
      if (keepBack === 0) hub.publish(events, []);
      return outcomes[0]!;
    },
    readModels: new ReadModels(reader.db, it.registry),
    hub,
    systemQueries: { "daemon.ping": () => ({ as_of_seq: hub.head, pong: true }) },
    misplaced: () => undefined,
    closed: () => closed,
  });
  return {
    ...it,
    dispatch,
    hub,
    stop: () => {
      closed = problem("overloaded", "the daemon is stopping");
    },
    /** Commits are made, but the front has not heard of them. */
    delayed: (yes: boolean) => {
      keepBack = yes ? 1 : 0;
    },
    async send(type: string, payload: object, more: object = {}, caller = ada) {
      return dispatch.one({ type, payload, idempotency_key: `k-${Math.random()}`, ...more }, caller);
    },
  };
}

const receipt = (answer: Answer) => {
  if (answer.kind !== "receipt") throw new Error(JSON.stringify(answer));
  return {
    ...(JSON.parse(answer.receipt) as { subject: { id: string }; seq_global: number }),
    replayed: answer.replayed,
  };
};
const refusal = (answer: Answer): Problem => {
  if (answer.kind !== "problem") throw new Error(JSON.stringify(answer));
  expect(answer.problem.trace_id).toMatch(/^[0-9a-f]{32}$/);
  return answer.problem;
};
const now = { headline: "h", priority: 1, tags: ["a"] };

describe("idempotency keys are scoped by the principal (SPEC §7)", () => {
  test("two principals have the same key each for themselves; two actors of one credential share it", async () => {
    const it = start();
    const idempotency_key = "the same";
    const first = receipt(await it.send("ticket.open", now, { idempotency_key }));
    const others = receipt(
      await it.send("ticket.open", { ...now, headline: "other" }, { idempotency_key }, bob),
    );
    expect([first.seq_global, others.seq_global, others.replayed]).toEqual([1, 2, false]);
    const again = receipt(await it.send("ticket.open", now, { idempotency_key }, eve));
    expect([again.seq_global, again.replayed]).toEqual([1, true]);
    expect(refusal(await it.send("ticket.open", now, { idempotency_key }, bob)).code).toBe(
      "idempotency_key_reused",
    );
    expect(it.head()).toBe(2);
    expect(it.events().map((event) => event.actor)).toEqual([ada.actor, bob.actor]);
  });
});

describe("the fingerprint (SPEC §7)", () => {
  const sent = { type: "a.b", payload: { y: [1, { b: 2, a: 1 }], x: "ü" } };

  test("is SHA-256 of the canonical command as it was sent: known bytes, known hash", () => {
    const text = '{"payload":{"x":"ü","y":[1,{"a":1,"b":2}]},"type":"a.b"}';
    expect(fingerprint(sent)).toBe(new Bun.CryptoHasher("sha256").update(text).digest("hex"));
    const whole =
      '{"expected_version":0,"payload":{"x":"ü","y":[1,{"a":1,"b":2}]},"schema_version":1,"type":"a.b"}';
    expect(fingerprint({ ...sent, expected_version: 0, schema_version: 1 })).toBe(
      new Bun.CryptoHasher("sha256").update(whole).digest("hex"),
    );
  });

  test("does not depend on the order of members, nor on anything but the four", () => {
    const shuffled = {
      payload: { x: "ü", y: [1, { a: 1, b: 2 }] },
      type: "a.b",
      trace_id: "t",
      idempotency_key: "k",
    };
    expect(fingerprint(shuffled)).toBe(fingerprint(sent));
    const different = [
      { ...sent, type: "a.c" },
      { ...sent, schema_version: 1 },
      { ...sent, expected_version: 0 },
      { ...sent, expected_version: 1 },
      { ...sent, payload: { ...sent.payload, z: null } },
      { ...sent, payload: { ...sent.payload, y: [{ b: 2, a: 1 }, 1] } },
    ].map(fingerprint);
    expect(new Set([fingerprint(sent), ...different]).size).toBe(different.length + 1);
  });
});

describe("older versions of a command (SPEC §2, §13)", () => {
  test("are accepted, checked by their own schema and stored as the current event", async () => {
    const it = start();
    const accepted = [
      [1, { title: "one" }],
      [2, { title: "two", priority: 4 }],
      [3, { headline: "three", priority: 5, tags: [] }],
      [undefined, now],
    ] as const;
    for (const [schema_version, payload] of accepted)
      receipt(await it.send("ticket.open", payload, schema_version === undefined ? {} : { schema_version }));
    expect(it.events().map((event) => [event.schema_version, event.payload])).toEqual([
      [3, { headline: "one", priority: 2, tags: [] }],
      [3, { headline: "two", priority: 4, tags: [] }],
      [3, { headline: "three", priority: 5, tags: [] }],
      [3, now],
    ]);
  });

  test("whose payload is of another version are refused, at the place", async () => {
    const it = start();
    const places = async (schema_version: number, payload: object) =>
      refusal(await it.send("ticket.open", payload, { schema_version }))
        .errors?.map((error) => error.pointer)
        .sort();
    expect(await places(1, now)).toEqual([
      "/payload/headline",
      "/payload/priority",
      "/payload/tags",
      "/payload/title",
    ]);
    expect(await places(2, { title: 5, priority: 1 })).toEqual(["/payload/title"]);
    expect(await places(3, { title: "x" })).toEqual([
      "/payload/headline",
      "/payload/priority",
      "/payload/tags",
      "/payload/title",
    ]);
    // With something else wrong too, still by the version that was sent.
    const broken = await it.send("ticket.open", { title: "t" }, { schema_version: 1, expected_version: -1 });
    expect(refusal(broken).errors?.map((error) => error.pointer)).toEqual(["/expected_version"]);
    expect(it.head()).toBe(0);
  });

  test("that this mp does not know are refused with the one it has, before the payload is looked at", async () => {
    const it = start();
    for (const schema_version of [0, -3, 4, 1_000_000_000]) {
      const found = refusal(await it.send("ticket.open", { any: "thing" }, { schema_version }));
      expect([found.code, found.details]).toEqual([
        "unsupported_schema_version",
        { type: "ticket.open", current: 3 },
      ]);
    }
  });

  test("are replayed as they were sent: another version under the same key is another command", async () => {
    const it = start();
    const more = { idempotency_key: "k", schema_version: 1 };
    const first = receipt(await it.send("ticket.open", { title: "h" }, more));
    expect(receipt(await it.send("ticket.open", { title: "h" }, more))).toEqual({ ...first, replayed: true });
    const current = await it.send(
      "ticket.open",
      { headline: "h", priority: 2, tags: [] },
      { idempotency_key: "k" },
    );
    expect(refusal(current).code).toBe("idempotency_key_reused");
  });
});

describe("an event of 61,440 bytes", () => {
  const sized = async (it: ReturnType<typeof start>, length: number) =>
    it.send(
      "ticket.open",
      { ...now, headline: "x".repeat(length) },
      { idempotency_key: `size-${length}`, trace_id: "3".repeat(32) },
    );

  test("is stored, one of a byte more is refused, consumes no key and leaves nothing", async () => {
    const probe = start();
    receipt(await sized(probe, 10_000));
    const overhead = Buffer.byteLength(probe.reader.range(0, 1)[0]!.body) - 10_000;
    const it = start();
    const fits = 61_440 - overhead;
    const found = refusal(await sized(it, fits + 1));
    expect([found.code, found.detail]).toEqual([
      "payload_too_large",
      "the event would have 61441 bytes, at most 61440 fit",
    ]);
    expect(it.head()).toBe(0);
    expect(it.db.query("SELECT count(*) AS n FROM command_keys").get()).toEqual({ n: 0 });
    receipt(await sized(it, fits));
    expect(Buffer.byteLength(it.reader.range(0, 1)[0]!.body)).toBe(61_440);
    // In code points as in bytes: what counts is what is stored.
    expect(
      refusal(
        await sized(it, 60_000).then(() => it.send("ticket.open", { ...now, headline: "名".repeat(30_000) })),
      ).code,
    ).toBe("payload_too_large");
  });
});

describe("a bug in one command", () => {
  test("answers internal without its words, is told to the log once, and leaves the others as they are", async () => {
    const it = start();
    const { subject } = receipt(await it.send("ticket.open", now));
    for (const [index, how] of ["throw", "break the schema"].entries()) {
      const command = { ticket_id: subject.id, how };
      const found = refusal(await it.send("ticket.break", command, { idempotency_key: how }));
      expect([found.code, found.detail]).toEqual(["internal", "the command met a bug; nothing was changed"]);
      expect([it.head(), it.bugs.length]).toEqual([index + 1, index + 1]);
      // It consumed no key.
      receipt(await it.send("ticket.open", now, { idempotency_key: how }));
    }
  });

  test("in a batch, each for itself: only the guilty one answers internal", async () => {
    const it = start();
    const { subject } = receipt(await it.send("ticket.open", now));
    const commands = [
      { type: "ticket.open", payload: now, idempotency_key: "b1" },
      { type: "ticket.break", payload: { ticket_id: subject.id, how: "throw" }, idempotency_key: "b2" },
      { type: "ticket.open", payload: now, idempotency_key: "b3" },
    ];
    const done = await it.dispatch.batch({ atomic: false, commands }, ada);
    if ("problem" in done) throw new Error(done.problem.detail);
    expect(
      done.answers.map((answer) => (answer.kind === "problem" ? answer.problem.code : answer.kind)),
    ).toEqual(["receipt", "internal", "receipt"]);
    expect([it.head(), it.bugs.length]).toEqual([3, 1]);
    const atomic = await it.dispatch.batch(
      {
        atomic: true,
        commands: commands.map((command) => ({ ...command, idempotency_key: `${command.idempotency_key}a` })),
      },
      ada,
    );
    expect(atomic).toMatchObject({ problem: { code: "internal", details: { index: 1 } } });
    expect(it.head()).toBe(3);
  });

  test("in a projection rolls its command back", async () => {
    const it = start();
    const found = refusal(await it.send("ticket.open", { ...now, headline: "unbearable" }));
    expect([found.code, it.head(), it.bugs.length]).toEqual(["internal", 0, 1]);
    receipt(await it.send("ticket.open", now));
    expect(it.projections.status()[0]).toMatchObject({ status: "serving", as_of_seq: 1 });
  });

  test("in a query is not answered by dispatch: it throws, for the transport to answer internal", async () => {
    const it = start();
    it.db.run("DROP TABLE tickets");
    await expect(it.dispatch.one({ type: "ticket.list", payload: {} }, ada)).rejects.toThrow("tickets");
  });
});

describe("min_seq", () => {
  test("waits until the front has heard of the commit, and then answers from the read model", async () => {
    const it = start();
    const waiting = it.dispatch.one({ type: "ticket.list", payload: { min_seq: 1 } }, ada);
    receipt(await it.send("ticket.open", now));
    const answer = await waiting;
    expect(answer).toMatchObject({ kind: "result", result: { as_of_seq: 1, items: [{ headline: "h" }] } });
  });

  test("is refused at once when the projection has stopped before it", async () => {
    const it = start();
    receipt(await it.send("ticket.open", now));
    it.db.run("UPDATE projections SET as_of_seq = 0, error = 'stopped'");
    const found = refusal(await it.dispatch.one({ type: "ticket.list", payload: { min_seq: 1 } }, ada));
    expect([found.code, found.details]).toEqual([
      "overloaded",
      { projection: "ticket", as_of_seq: 0, min_seq: 1 },
    ]);
    const plain = await it.dispatch.one({ type: "ticket.list", payload: {} }, ada);
    expect(plain).toMatchObject({ kind: "result", result: { as_of_seq: 0 } });
  });

  test("that waits while the daemon stops is told so, and touches no database", async () => {
    const it = start();
    const waiting = it.dispatch.one({ type: "ticket.list", payload: { min_seq: 1 } }, ada);
    it.stop();
    it.hub.reader.db.close();
    it.hub.publish([{ seq_global: 1, body: "{}", command_end: 1 } as never], []);
    expect(refusal(await waiting).detail).toBe("the daemon is stopping");
  });
});

describe("a daemon that stops", () => {
  test("refuses every request with the same problem, and a trace id of its own", async () => {
    const it = start();
    it.stop();
    const trace_id = "4".repeat(32);
    const answer = await it.dispatch.one(
      { type: "ticket.open", payload: now, trace_id, idempotency_key: "k" },
      ada,
    );
    expect(refusal(answer)).toMatchObject({ code: "overloaded", trace_id });
    const batch = await it.dispatch.batch({ atomic: true, commands: [{}] }, ada, trace_id);
    expect(batch).toMatchObject({ problem: { code: "overloaded", trace_id } });
    expect(it.head()).toBe(0);
  });
});

describe("parameters from a URL", () => {
  const fields = {
    count: Type.Integer(),
    flag: Type.Boolean(),
    text: Type.String(),
    list: Type.Array(Type.String()),
  } satisfies Record<string, TSchema>;
  const read = (search: string) => fromText(fields, new URLSearchParams(search));

  test("become what the schema says, and only what is plainly that", () => {
    expect(read("count=5&flag=true&text=5&list=a&list=b,c")).toEqual({
      count: 5,
      flag: true,
      text: "5",
      list: ["a", "b", "c"],
    });
    expect(read("count=0&flag=false")).toEqual({ count: 0, flag: false });
    expect(read("count=-12")).toEqual({ count: -12 });
    for (const text of ["", "01", "+1", "1.0", "1e3", "0x1", " 1", "-0", "1 ", "12345678901234567", "NaN"])
      expect(read(`count=${encodeURIComponent(text)}`)).toEqual({ count: text });
    for (const text of ["", "1", "TRUE", "yes"]) expect(read(`flag=${text}`)).toEqual({ flag: text });
  });

  test("that are sent twice, or have a name of an object's own, are refused by the schema", () => {
    const schema = object({ text: Type.Optional(Type.String()) });
    for (const search of [
      "text=a&text=a",
      "__proto__=a",
      "__proto__=a&__proto__=b",
      "constructor=a",
      "toString=a",
    ]) {
      const params = fromText(schema.properties, new URLSearchParams(search));
      expect([search, Object.keys(params).length, matches(schema, params)]).toEqual([search, 1, false]);
      expect(Object.getPrototypeOf(params)).toBe(Object.prototype);
    }
  });
});

test("a command that only the daemon gives is not known to who sends it, alone, in a batch or as a hint", async () => {
  const it = start({
    ...ticket,
    commands: { ...ticket.commands, forget: command({ ticket_id: Id }, "Forget it.", { internal: true }) },
    decide: { ...ticket.decide, forget: () => [{ type: "closed", payload: {} }] },
  });
  const ticket_id = receipt(await it.send("ticket.open", now)).subject.id;
  const sent = refusal(await it.send("ticket.forget", { ticket_id }));
  expect(sent).toMatchObject({ code: "unknown_command" });
  expect(refusal(await it.send("ticket.forged", { ticket_id })).hint).not.toContain("ticket.forget");
  for (const atomic of [true, false]) {
    const each = { type: "ticket.forget", payload: { ticket_id }, idempotency_key: "k" };
    const answer = await it.dispatch.batch({ atomic, commands: [each] }, ada);
    expect(JSON.stringify(answer)).toContain('"unknown_command"');
  }
  expect(it.head()).toBe(1);
  expect([...allSchemas(it.registry).keys()].filter((name) => name.includes("forget"))).toEqual([]);
});

test("the kernel's own commands are accepted in their own words and have no stream", async () => {
  const it = start();
  const answer = await it.send("projection.rebuild", { name: "ticket" });
  expect(receipt(answer)).toMatchObject({
    version: 0,
    events: [],
    subject: { kind: "projection", id: "ticket" },
  });
  expect(isProblem(refusal(await it.send("projection.rebuild", { name: "none" })))).toBe(true);
  expect(refusal(await it.send("ticket.close", { ticket_id: uuid(404) })).code).toBe("not_found");
});
