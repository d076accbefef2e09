/**
 * The registry and its versions (SPEC §13): what it refuses to be built from, how old versions become current ones in
 * decide, read models and streams, and that a daemon does not start on a log that it cannot read whole.
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Type } from "typebox";
import { aggregates } from "../../src/domain/index.ts";
import { type AnyAggregate, command, type Event, event, query } from "../../src/kernel/aggregate.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { LogReader } from "../../src/kernel/log.ts";
import { nearest } from "../../src/kernel/nearest.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { generationId } from "../../src/kernel/projection.ts";
import {
  buildRegistry,
  currentEvent,
  schemaOf,
  upcast,
  versionsWithoutPath,
} from "../../src/kernel/registry.ts";
import { Id, MAX_PAGE, object, pageOf, schemaErrors } from "../../src/kernel/schema.ts";
import { allSchemas } from "../../src/kernel/schemas.ts";
import { Hub } from "../../src/kernel/stream.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";
import { about, kernel, uuid } from "../support/given.ts";
import { ticket } from "../support/ticket.ts";

const registry = buildRegistry([ticket], system);
const none = { commands: {}, queries: {} };
const plain = ticket as unknown as AnyAggregate;
const withParts = (parts: Partial<AnyAggregate>) => ({ ...plain, ...parts });

describe("a registry is not built from", () => {
  const build =
    (...list: unknown[]) =>
    () =>
      buildRegistry(list, none);

  test("two things of one name", () => {
    expect(build(ticket, ticket)).toThrow("ticket.open is declared twice");
    expect(
      build(
        ticket,
        withParts({ kind: "other", reasons: plain.reasons, readModel: { ...plain.readModel, tables: {} } }),
      ),
    ).toThrow();
    expect(build(withParts({ queries: { open: plain.queries.list! } }))).toThrow(
      "ticket.open is declared twice",
    );
    const sameTable = withParts({ kind: "other", commands: {}, reasons: {} });
    expect(build(ticket, sameTable)).toThrow("tickets is declared twice");
    expect(() =>
      buildRegistry([ticket], { commands: { "ticket.open": command({}, "x") }, queries: {} }),
    ).toThrow("ticket.open is declared twice");
    expect(() =>
      buildRegistry([], {
        commands: { "a.b": command({}, "x") },
        queries: { "a.b": system.queries["daemon.ping"] },
      }),
    ).toThrow("a.b is declared twice");
  });

  test("a command that does not say what it is about", () => {
    expect(build(withParts({ commands: { close: command({ id: Type.String() }, "x") } }))).toThrow(
      "ticket.close does not name its subject",
    );
  });

  test("a command that may leave its subject out, when nothing chooses one", () => {
    const commands = { close: command({ ticket_id: Type.Optional(Type.String()) }, "x") };
    expect(build(withParts({ commands }))).toThrow("ticket.close does not always name its subject");
    expect(build(withParts({ commands, choose: { close: () => "" } }))).not.toThrow();
  });

  test("a renewal of what has no lease, and a lease that anybody may end", () => {
    const subject = { ticket_id: Type.String() };
    const lease = { of: () => undefined, expire: "end" };
    const end = command(subject, "x", { internal: true });
    const hold = command(subject, "x", { renews: true });
    expect(build(withParts({ commands: { hold } }))).toThrow("ticket.hold renews, but ticket has no lease");
    expect(build(withParts({ commands: { hold, end }, lease }))).not.toThrow();
    for (const commands of [{ hold }, { hold, end: command(subject, "x") }])
      expect(build(withParts({ commands, lease }))).toThrow(
        "ticket.end ends a lease, so it must be internal",
      );
  });

  test("a chain of versions with a hole, for events and for commands", () => {
    const step = { payload: object({}), up: () => ({}) };
    const holes = [
      [4, { 1: step, 3: step }],
      [4, { 1: step, 2: step }],
      [3, { 1: step }],
      [2, { 1: step, 2: step }],
      [2, { 1: step, 3: step }],
    ] as const;
    for (const [version, older] of holes) {
      expect(build(withParts({ events: { opened: event(version, {}, older) } }))).toThrow(
        /ticket\.opened: nothing leads/,
      );
      expect(
        build(withParts({ commands: { open: command({}, "x", { creates: true, version, older }) } })),
      ).toThrow(/ticket\.open: nothing leads/);
    }
    for (const [version, older] of [
      [1, {}],
      [3, { 1: step, 2: step }],
      [3, { 2: step }],
    ] as const)
      expect(build(withParts({ events: { opened: event(version, {}, older) } }))).not.toThrow();
  });
});

describe("upcasters", () => {
  const { spec } = registry.events.get("ticket.opened")!;

  test("go one version at a time, to the current one", () => {
    const current = { headline: "t", priority: 2, tags: [] };
    expect(upcast("ticket.opened", spec, 1, { title: "t" })).toEqual(current);
    expect(upcast("ticket.opened", spec, 2, { title: "t", priority: 2 })).toEqual(current);
    expect(upcast("ticket.opened", spec, 3, current)).toBe(current);
  });

  test("that make what the next version does not allow are a bug, and say which", () => {
    const broken = event(2, { n: Type.Integer() }, { 1: { payload: object({}), up: () => ({ n: "one" }) } });
    expect(() => upcast("ticket.opened", broken, 1, {})).toThrow(
      "the upcaster of ticket.opened from version 1 breaks version 2",
    );
  });

  test("each version has its schema, and it is published", () => {
    expect([1, 2, 3].map((version) => schemaOf(spec, version) !== undefined)).toEqual([true, true, true]);
    expect([0, 4, -1].map((version) => schemaOf(spec, version))).toEqual([undefined, undefined, undefined]);
    const names = [...allSchemas(registry).keys()].filter((name) =>
      /^(event|command)\.ticket\.open/.test(name),
    );
    expect(names).toEqual([
      "command.ticket.open.v1",
      "command.ticket.open.v2",
      "command.ticket.open.v3",
      "event.ticket.opened.v1",
      "event.ticket.opened.v2",
      "event.ticket.opened.v3",
    ]);
  });

  test("leave the envelope as it is, and a current event untouched", () => {
    const old = {
      event_type: "ticket.opened",
      schema_version: 1,
      payload: { title: "t" },
      seq_global: 7,
    } as unknown as Event;
    expect(currentEvent(registry, old)).toEqual({
      ...old,
      schema_version: 3,
      payload: { headline: "t", priority: 2, tags: [] },
    });
    expect(old.payload).toEqual({ title: "t" });
    const current = { ...old, schema_version: 3, payload: { headline: "t", priority: 2, tags: [] } };
    expect(currentEvent(registry, current)).toBe(current);
    expect(() => currentEvent(registry, { ...old, event_type: "ticket.lost" })).toThrow("ticket.lost");
  });

  test("change the generation of the read model", () => {
    const ids = [
      plain,
      withParts({ readModel: { ...plain.readModel, version: 2 } }),
      withParts({ events: { ...plain.events, opened: { ...plain.events.opened!, version: 4 } } }),
      withParts({ events: { ...plain.events, opened: { ...plain.events.opened!, older: {} } } }),
      withParts({ readModel: { ...plain.readModel, tables: {} } }),
    ].map(generationId);
    expect(new Set(ids).size).toBe(ids.length);
    expect(generationId({ ...plain })).toBe(ids[0]!);
  });
});

describe("a log with events of all versions", () => {
  const [A, B, C] = [uuid(1), uuid(2), uuid(3)];
  /** Stored as three versions of mp once stored them. */
  const facts = [
    { ...about(ticket, A)("opened", {} as never), payload: { title: "one" }, version: 1 },
    { ...about(ticket, B)("opened", {} as never), payload: { title: "two", priority: 4 }, version: 2 },
    about(ticket, C)("opened", { headline: "three", priority: 0, tags: ["x", "y"] }),
  ];
  const told = () => {
    const it = kernel(registry);
    it.tell(facts);
    return it;
  };
  const rows = [
    { ticket_id: A, headline: "one", priority: 2, tags: "", version: 1 },
    { ticket_id: B, headline: "two", priority: 4, tags: "", version: 1 },
    { ticket_id: C, headline: "three", priority: 0, tags: "x y", version: 1 },
  ];

  test("decide sees the current version", () => {
    const it = told();
    for (const { ticket_id, headline, priority } of rows) {
      const outcome = it.run("ticket.close", { ticket_id });
      if ("problem" in outcome) throw new Error(outcome.problem.detail);
      expect(JSON.parse(outcome.receipt)).toMatchObject({ version: 2, result: { headline, priority } });
    }
    expect(it.bugs).toEqual([]);
  });

  test("read models are made of the current version, live and rebuilt", () => {
    const it = told();
    const table = () => it.db.query("SELECT * FROM tickets ORDER BY ticket_id").all();
    expect(table()).toEqual(rows);
    it.projections.rebuild("ticket");
    while (it.projections.step() !== undefined);
    expect(table()).toEqual(rows);
  });

  test("streams give the current version, and the stored bytes to who asks for them", () => {
    const it = told();
    const hub = new Hub(new LogReader(openForReading(it.path)), registry, it.log_id);
    const bodies = (as_stored: boolean) => {
      const feed = hub.open({ after: 0, filter: {}, as_stored, projections: false });
      if (isProblem(feed)) throw new Error(feed.detail);
      const found = feed.next().flatMap((frame) => (frame.kind === "event" ? [frame.body] : []));
      feed.close();
      return found;
    };
    const stored = it.reader.range(0, 3).map((line) => line.body);
    expect(bodies(true)).toEqual(stored);
    const current = bodies(false).map((body) => JSON.parse(body) as Event);
    expect(current.map((each) => [each.schema_version, each.payload])).toEqual([
      [3, { headline: "one", priority: 2, tags: [] }],
      [3, { headline: "two", priority: 4, tags: [] }],
      [3, { headline: "three", priority: 0, tags: ["x", "y"] }],
    ]);
    expect(bodies(false)[2]).toBe(stored[2]!);
    const envelopes = (events: Event[]) => events.map(({ payload: _, schema_version: __, ...rest }) => rest);
    expect(envelopes(current)).toEqual(envelopes(stored.map((body) => JSON.parse(body) as Event)));
    hub.reader.db.close();
  });

  test("is proved readable at start, and what cannot be read is named", () => {
    const it = told();
    const stored = it.reader.versions();
    expect(stored).toEqual(
      [1, 2, 3].map((schema_version) => ({ event_type: "ticket.opened", schema_version })),
    );
    expect(versionsWithoutPath(registry, stored)).toEqual([]);
    const { spec } = registry.events.get("ticket.opened")!;
    const current = (version: number, older: typeof spec.older) =>
      versionsWithoutPath(
        {
          ...registry,
          events: new Map([
            [
              "ticket.opened",
              { ...registry.events.get("ticket.opened")!, spec: { ...spec, version, older } },
            ],
          ]),
        },
        stored,
      );
    expect(current(3, { 2: spec.older[2]! })).toEqual([
      "the log holds ticket.opened version 1, which has no upcaster in this mp",
    ]);
    expect(current(2, { 1: spec.older[1]! })).toEqual([
      "the log holds ticket.opened version 3, this mp knows 2: use a newer mp",
    ]);
    expect(current(1, {})).toHaveLength(2);
    expect(versionsWithoutPath({ ...registry, events: new Map() }, stored)[0]).toBe(
      "the log holds ticket.opened, which this mp does not know",
    );
  });
});

describe("a daemon on a log of a newer mp", () => {
  test("does not start, says which events it cannot read, and leaves the log as it is", async () => {
    const home = tempHome();
    const daemon = await startDaemonProcess(home);
    await daemon.kill();
    const store = (event_type: string, schema_version: number) => {
      const db = new Database(join(home, "kernel.db"));
      db.run("INSERT INTO event_versions (event_type, schema_version) VALUES (?, ?)", [
        event_type,
        schema_version,
      ]);
      db.close();
    };
    store("workspace.created", 99);
    store("robot.built", 1);
    const message = await startDaemonProcess(home).then(
      () => "it started",
      (error: Error) => error.message,
    );
    expect(message).toContain("workspace.created version 99, this mp knows 1: use a newer mp");
    expect(message).toContain("robot.built, which this mp does not know");
    const db = new Database(join(home, "kernel.db"), { readonly: true });
    expect(db.query("SELECT count(*) AS n FROM event_versions").get()).toEqual({ n: 2 });
    db.close();
  }, 30_000);
});

describe("the product's own registry", () => {
  const own = buildRegistry(aggregates, system);

  test("gives every reason its advice, and every command and query a sentence", () => {
    for (const [reason, { is, hint }] of own.reasons)
      expect([reason, is.length > 10, hint.length > 10]).toEqual([reason, true, true]);
    for (const { type, spec } of [...own.commands.values(), ...own.queries.values()])
      expect([type, /^[A-Z].*\.$/.test(spec.doc)]).toEqual([type, true]);
  });

  test("has types of two words, and aggregates whose kind is the first", () => {
    for (const type of [...own.commands.keys(), ...own.queries.keys(), ...own.events.keys()])
      expect(type).toMatch(/^[a-z]+\.[a-z_]+$/);
  });
});

describe("the nearest names", () => {
  const known = ["workspace.create", "workspace.close", "workspace.open", "project.create", "daemon.ping"];
  test("are those a person may have meant, best first, at most three", () => {
    expect(nearest("workspace.craete", known)[0]).toBe("workspace.create");
    expect(nearest("wokspace.open", known)[0]).toBe("workspace.open");
    expect(nearest("daemon.pong", known)).toEqual(["daemon.ping"]);
    expect(nearest("workspace.", known).length).toBeLessThanOrEqual(3);
    expect(nearest("completely-else", known)).toEqual([]);
    expect(nearest("", known)).toEqual([]);
  });
});

test("what no single field can say is in the schema of the command too, in the words of its refusal", () => {
  const message = "must have a or b";
  const { payload } = command({ a: Type.Optional(Id), b: Type.Optional(Id) }, "Do.", {
    rule: { holds: ({ a, b }) => a !== undefined || b !== undefined, message },
  });
  expect(JSON.parse(JSON.stringify(payload))).toMatchObject({ description: message, type: "object" });
  expect(schemaErrors(payload, {}, "/payload")).toEqual([{ pointer: "/payload", message }]);
});

test("a query has the largest page that it declares, else that of all", () => {
  const listed = (...more: [] | [{ largest: number }]) =>
    query({}, pageOf(object({})), "List nothing.", () => ({ items: [], next: null }), ...more);
  const { queries } = buildRegistry(
    [withParts({ queries: { list: listed(), tree: listed({ largest: 5 }) } })],
    system,
  );
  const most = (type: string) => queries.get(type)!.params.properties.limit;
  expect(most("ticket.list")).toMatchObject({ minimum: 1, maximum: MAX_PAGE });
  expect(most("ticket.tree")).toMatchObject({ minimum: 1, maximum: 5 });
});
