import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type ProjectionCheck, verifyProjections } from "../../src/integrity/projections.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { LogReader } from "../../src/kernel/log.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import {
  counterAggregate,
  dump,
  dumpAll,
  type Engine,
  engine,
  mirror,
  receiptOf,
  refusedOf,
  tempFolder,
  toWrite,
} from "./engine.ts";

/** Write a counter with many events, 20 to a command. */
function fill(kernel: Engine, events: number, name = "one"): string {
  const counter_id = kernel.done("counter.create", { name }).subject.id;
  const commands = Array.from({ length: events / 20 }, () =>
    toWrite("counter.add", { counter_id, by: Array(20).fill(0) }),
  );
  for (const [outcome] of kernel.run(...commands).outcomes) receiptOf(outcome!);
  return counter_id;
}

const TABLES = ["counters", "entries", "mirrors"];
const readModels = (db: Database) => TABLES.map((table) => dump(db, table));

function verify(kernel: Pick<Engine, "path" | "registry">): ProjectionCheck[] {
  const db = openForReading(kernel.path);
  const scratch = new Database(join(tempFolder(), "scratch.db"), { create: true, strict: true });
  try {
    return verifyProjections(db, kernel.registry, new LogReader(db), scratch, () => {});
  } finally {
    scratch.close();
    db.close();
  }
}

const FULL = 2;
const synchronous = ({ db }: Engine) =>
  db.query<{ synchronous: number }, []>("PRAGMA synchronous").get()!.synchronous;

const statusOf = (kernel: Engine, name: string) =>
  kernel.projections.status().find((each) => each.name === name)!;

/** Read models on a connection of their own, as the front has them. */
function reading({ path, registry }: Engine) {
  const db = openForReading(path);
  const models = new ReadModels(db, registry);
  return {
    db,
    counters: () => models.snapshot("counter", (read) => read.page("counters", {}, { limit: 10_000 }).items),
    close: () => db.close(),
  };
}

describe("a rebuild", () => {
  test("goes on beside the serving one, step by step, and switches at once", () => {
    const kernel = engine();
    const counter_id = fill(kernel, 5_000);
    const reader = reading(kernel);
    const entries = () => reader.db.query<{ n: number }, []>("SELECT count(*) AS n FROM entries").get()!.n;
    const before = readModels(kernel.db);
    for (const { name } of kernel.projections.status()) kernel.projections.rebuild(name);
    expect(readModels(kernel.db)).toEqual(before);
    let written = 5_000;
    let steps = 0;
    const seen = new Set<number>();
    while (kernel.projections.step() !== undefined) {
      steps += 1;
      seen.add(statusOf(kernel, "counter").rebuilt_to_seq ?? -1);
      // Every reader finds a whole read model that holds for the position it names, whatever is being built.
      expect(entries()).toBe(written);
      expect(reader.counters()).toMatchObject({ as_of_seq: kernel.reader.head() });
      // Every writer is answered, and decides on the truth. It waits for the disk, though the rebuild does not.
      expect(synchronous(kernel)).toBe(FULL);
      expect(kernel.done("counter.add", { counter_id, by: [0] }).version).toBe(written + 2);
      written += 1;
      expect(entries()).toBe(written);
    }
    expect(steps).toBeGreaterThan(2);
    expect([...seen].slice(0, 3)).toEqual([2_000, 4_000, -1]);
    for (const check of verify(kernel)) expect(check).toMatchObject({ ok: true, error: null });
    expect(kernel.projections.status().map((each) => each.status)).toEqual(["serving", "serving"]);
    reader.close();
  });

  test("leaves a reader's snapshot as it was, and lets it go on after the switch", () => {
    const kernel = engine();
    fill(kernel, 100);
    const reader = reading(kernel);
    reader.db.run("BEGIN");
    const before = readModels(reader.db);
    kernel.projections.rebuild("counter");
    kernel.finishRebuilds();
    fill(kernel, 20, "two");
    expect(readModels(reader.db)).toEqual(before);
    reader.db.run("COMMIT");
    expect(readModels(reader.db)).toEqual(readModels(kernel.db));
    reader.close();
  });

  test("makes the same rows every time, whatever the tables went through", () => {
    const kernel = engine();
    const counter_id = fill(kernel, 200);
    kernel.done("mirror.create", { counter_id });
    kernel.done("counter.clear", { counter_id });
    fill(kernel, 100, "two");
    const before = readModels(kernel.db);
    const digests = new Set<string>();
    for (let time = 0; time < 3; time++) {
      for (const { name } of kernel.projections.status()) kernel.projections.rebuild(name);
      kernel.finishRebuilds();
      expect(readModels(kernel.db)).toEqual(before);
      digests.add(JSON.stringify(verify(kernel)));
    }
    expect(digests.size).toBe(1);
    // The order in which rows came to lie in a table is not in its digest.
    const other = new Database(kernel.path);
    other.run("CREATE TEMP TABLE keep AS SELECT * FROM entries ORDER BY seq DESC");
    other.run("DELETE FROM entries");
    other.run("INSERT INTO entries SELECT * FROM keep");
    other.close();
    digests.add(JSON.stringify(verify(kernel)));
    expect(digests.size).toBe(1);
  });

  test("that was cut short leaves the serving one, and nothing of its own", () => {
    const kernel = engine();
    fill(kernel, 5_000);
    const before = readModels(kernel.db);
    kernel.projections.rebuild("counter");
    kernel.projections.step();
    const generation = statusOf(kernel, "counter").generation;
    kernel.close();
    expect(Object.keys(dumpAll(kernel.path))).toContain("entries__next");
    const again = engine({ path: kernel.path });
    expect(Object.keys(dumpAll(kernel.path)).filter((name) => name.includes("__next"))).toEqual([]);
    expect(readModels(again.db)).toEqual(before);
    expect(statusOf(again, "counter")).toMatchObject({ generation, status: "serving", rebuilt_to_seq: null });
  });

  test("that is asked for twice is one, and given up is none", () => {
    const kernel = engine();
    fill(kernel, 5_000);
    kernel.projections.rebuild("counter");
    kernel.projections.step();
    kernel.projections.rebuild("counter");
    expect(statusOf(kernel, "counter").rebuilt_to_seq).toBe(2_000);
    kernel.projections.giveUp();
    expect(kernel.projections.step()).toBeUndefined();
    expect(statusOf(kernel, "counter")).toMatchObject({ status: "serving", rebuilt_to_seq: null });
    kernel.projections.rebuild("counter");
    kernel.finishRebuilds();
    expect(verify(kernel).every((check) => check.ok)).toBe(true);
  });
});

describe("a generation", () => {
  test("of the binary's own is served as it is", () => {
    const kernel = engine();
    fill(kernel, 20);
    kernel.close();
    const db = new Database(kernel.path);
    db.run("UPDATE counters SET total = 4711");
    db.close();
    // Still there: nothing was rebuilt.
    expect(dump(engine({ path: kernel.path }).db, "counters")).toContain("4711");
  });

  test("of another version is rebuilt before it is served", () => {
    const kernel = engine();
    fill(kernel, 5_000);
    const before = readModels(kernel.db);
    const generations = kernel.projections.status().map((each) => each.generation);
    kernel.close();
    const db = new Database(kernel.path);
    db.run("UPDATE counters SET total = 4711");
    db.close();
    const again = engine({ path: kernel.path, aggregates: [counterAggregate({ version: 2 }), mirror] });
    expect(readModels(again.db)).toEqual(before);
    const now = again.projections.status();
    expect(now[0]!.generation).not.toBe(generations[0]!);
    // Only the one that differs.
    expect(now[1]!.generation).toBe(generations[1]!);
    expect(now.map((each) => each.status)).toEqual(["serving", "serving"]);
  });

  test("that stands elsewhere than the log is rebuilt before it is served", () => {
    for (const change of ["as_of_seq = 3", "as_of_seq = 99", "error = 'event 3 cannot be applied'"]) {
      const kernel = engine();
      fill(kernel, 20);
      const before = readModels(kernel.db);
      kernel.close();
      const db = new Database(kernel.path);
      db.run("UPDATE counters SET total = 4711");
      db.run(`UPDATE projections SET ${change} WHERE name = 'counter'`);
      db.close();
      const again = engine({ path: kernel.path });
      expect(readModels(again.db)).toEqual(before);
      expect(statusOf(again, "counter")).toMatchObject({ status: "serving", as_of_seq: 21, error: null });
    }
  });
});

describe("an event that cannot be applied", () => {
  /** A log whose event 14 adds 7, which a later version of the read model cannot take. */
  function stuck() {
    const kernel = engine();
    const counter_id = fill(kernel, 20);
    kernel.done("counter.add", { counter_id, by: [1, 7, 2] }, { idempotency_key: "known" });
    const other = fill(kernel, 20, "two");
    const mirror_id = kernel.done("mirror.create", { counter_id }).subject.id;
    kernel.close();
    return { path: kernel.path, counter_id, other, mirror_id, seq: 23, head: 46 };
  }

  function expectStopped(
    kernel: Engine,
    at: { as_of_seq: number; seq: number },
    ids: ReturnType<typeof stuck>,
  ) {
    expect(statusOf(kernel, "counter")).toMatchObject({
      status: "stopped",
      as_of_seq: at.as_of_seq,
      error: `event ${at.seq} cannot be applied: a bug in apply`,
    });
    expect(statusOf(kernel, "mirror")).toMatchObject({ status: "serving", error: null });
    // Reads go on, and say where they stand.
    const reader = reading(kernel);
    expect(reader.counters().as_of_seq).toBe(at.as_of_seq);
    expect(reader.counters().answer.map((row) => row.name)).toContain("one");
    reader.close();
    // Writes that need it are refused: those of the kind, and those of others that look at it.
    const before = dumpAll(kernel.path);
    for (const [type, payload] of [
      ["counter.add", { counter_id: ids.counter_id, by: [1] }],
      ["counter.create", { name: "three" }],
      ["mirror.create", { counter_id: ids.counter_id }],
    ] as const)
      expect(kernel.refused(type, payload)).toMatchObject({
        code: "read_only",
        status: 503,
        details: { projection: "counter" },
      });
    expect(dumpAll(kernel.path)).toEqual(before);
    // Writes that do not need it go on, and move nobody but their own.
    const { seq_global } = kernel.done("mirror.polish", { mirror_id: ids.mirror_id });
    const stands = new Map(
      kernel.db
        .query<{ name: string; as_of_seq: number }, []>("SELECT name, as_of_seq FROM projections")
        .all()
        .map((row) => [row.name, row.as_of_seq]),
    );
    expect(Object.fromEntries(stands)).toEqual({ counter: at.as_of_seq, mirror: seq_global });
    expect(statusOf(kernel, "counter").as_of_seq).toBe(at.as_of_seq);
    // What was carried out before is still answered.
    const again = toWrite(
      "counter.add",
      { counter_id: ids.counter_id, by: [1, 7, 2] },
      { idempotency_key: "known" },
    );
    expect(receiptOf(kernel.run(again).outcomes[0]![0]!).replayed).toBe(true);
  }

  function expectMended(kernel: Engine, ids: ReturnType<typeof stuck>) {
    expect(statusOf(kernel, "counter")).toMatchObject({ status: "serving", error: null });
    const head = kernel.reader.head();
    expect(kernel.done("counter.add", { counter_id: ids.counter_id, by: [3] }).seq_global).toBe(head + 1);
    expect(kernel.done("mirror.create", { counter_id: ids.counter_id }).seq_global).toBe(head + 2);
    expect(verify(kernel).map((check) => check.ok)).toEqual([true, true]);
  }

  test("stops a new generation at it, is seen, fails closed, and a mended one recovers at start", () => {
    const log = stuck();
    const broken = { path: log.path, aggregates: [counterAggregate({ throwsAt: 7, version: 2 }), mirror] };
    for (let start = 0; start < 2; start++) {
      const kernel = engine(broken);
      expectStopped(kernel, { as_of_seq: log.seq - 1, seq: log.seq }, log);
      // Applied up to it, and not a step further.
      expect(dump(kernel.db, "entries").match(/"seq"/g)).toHaveLength(21);
      expect(verify(kernel)).toMatchObject([{ ok: false, as_of_seq: log.seq - 1 }, { ok: true }]);
      kernel.close();
    }
    // Compared up to where it stands, and no further, by one who could go on.
    const mended = { path: log.path, registry: buildRegistry([counterAggregate(), mirror], system) };
    const [check] = verify(mended) as [ProjectionCheck];
    expect(check).toMatchObject({ ok: false, as_of_seq: log.seq - 1, digest: check.rebuilt_digest });
    expectMended(engine({ path: log.path, aggregates: [counterAggregate({ version: 3 }), mirror] }), log);
  });

  test("met by a rebuild stops the serving one where it stands; rebuilt after the mend it recovers", () => {
    const log = stuck();
    const flaws: { throwsAt?: number } = {};
    const kernel = engine({ path: log.path, aggregates: [counterAggregate(flaws), mirror] });
    const before = readModels(kernel.db);
    expect(kernel.reader.head()).toBe(log.head);
    flaws.throwsAt = 7;
    kernel.projections.rebuild("counter");
    kernel.finishRebuilds();
    expectStopped(kernel, { as_of_seq: log.head, seq: log.seq }, log);
    expect(synchronous(kernel)).toBe(FULL);
    expect(readModels(kernel.db)).toEqual(before);
    expect(Object.keys(dumpAll(log.path)).filter((name) => name.includes("__next"))).toEqual([]);
    // Again, still broken: nothing gets worse.
    kernel.projections.rebuild("counter");
    kernel.finishRebuilds();
    expectStopped(kernel, { as_of_seq: log.head, seq: log.seq }, log);
    delete flaws.throwsAt;
    kernel.projections.rebuild("counter");
    expect(statusOf(kernel, "counter")).toMatchObject({
      status: "rebuilding",
      error: expect.stringContaining("23"),
    });
    kernel.finishRebuilds();
    expectMended(kernel, log);
  });

  test("met by the command that makes it is that command's bug, and stops nothing", () => {
    const kernel = engine({ aggregates: [counterAggregate({ throwsAt: 7 }), mirror] });
    const counter_id = fill(kernel, 20);
    expect(kernel.refused("counter.add", { counter_id, by: [7] }).code).toBe("internal");
    expect(statusOf(kernel, "counter")).toMatchObject({ status: "serving", as_of_seq: 21 });
    expect(kernel.done("counter.add", { counter_id, by: [8] }).seq_global).toBe(22);
  });

  test("because its bytes are broken stops its own projection at exactly that event", () => {
    const kernel = engine();
    fill(kernel, 100);
    kernel.close();
    const db = new Database(kernel.path);
    const [{ sql }] = db
      .query<{ sql: string }, []>("SELECT sql FROM sqlite_schema WHERE name = 'events_no_update'")
      .all() as [{ sql: string }];
    db.run("DROP TRIGGER events_no_update");
    db.run("UPDATE events SET body = CAST('{' AS BLOB) WHERE seq_global = 42");
    db.run(sql);
    db.run("UPDATE projections SET generation = 'another'");
    db.close();
    const again = engine({ path: kernel.path });
    expect(statusOf(again, "counter")).toMatchObject({
      status: "stopped",
      as_of_seq: 41,
      error: expect.stringMatching(/^event 42 cannot be applied/),
    });
    expect(statusOf(again, "mirror")).toMatchObject({ status: "serving", as_of_seq: 101 });
    // Verification believes the bytes alone, and of these nobody can say whose they are.
    expect(verify(again).map((check) => check.ok)).toEqual([false, false]);
  });
});

describe("projection.verify", () => {
  const tampers: Readonly<Record<string, string>> = {
    "a changed row": "UPDATE counters SET total = total + 1",
    "a row that is gone": "DELETE FROM entries WHERE seq = 7",
    "a row more": "INSERT INTO entries SELECT counter_id, 9999, 0 FROM counters LIMIT 1",
    "a changed key": "UPDATE entries SET seq = 9999 WHERE seq = 7",
  };
  for (const [what, sql] of Object.entries(tampers))
    test(`finds ${what}, in the read model that has it, and a rebuild mends it`, () => {
      const kernel = engine();
      const counter_id = fill(kernel, 100);
      kernel.done("mirror.create", { counter_id });
      expect(verify(kernel).map((check) => check.ok)).toEqual([true, true]);
      const db = new Database(kernel.path);
      db.run(sql);
      db.close();
      const [counter, other] = verify(kernel) as [ProjectionCheck, ProjectionCheck];
      expect(counter).toMatchObject({ name: "counter", ok: false, error: null, as_of_seq: 102 });
      expect(counter.digest).not.toBe(counter.rebuilt_digest);
      expect(other).toMatchObject({ name: "mirror", ok: true });
      kernel.projections.rebuild("counter");
      kernel.finishRebuilds();
      expect(verify(kernel)[0]).toMatchObject({ ok: true, digest: counter.rebuilt_digest });
    });

  test("compares at one position while commands go on", () => {
    const kernel = engine();
    const counter_id = fill(kernel, 5_000);
    const db = openForReading(kernel.path);
    const scratch = new Database(join(tempFolder(), "scratch.db"), { create: true, strict: true });
    let at = 0;
    const found = verifyProjections(db, kernel.registry, new LogReader(db), scratch, () => {
      // In the middle of it.
      at = kernel.done("counter.add", { counter_id, by: [1] }).seq_global;
    });
    expect(found.map((check) => check.ok)).toEqual([true, true]);
    expect(found[0]!.as_of_seq).toBeGreaterThan(5_001);
    expect(found[0]!.as_of_seq).toBeLessThanOrEqual(at);
    scratch.close();
    db.close();
  });
});

describe("what decide may look for", () => {
  test("a look-up without a value is a bug, not every row", () => {
    const kernel = engine();
    fill(kernel, 20);
    expect(() => kernel.projections.find.one("counters", { name: undefined })).toThrow(/no value/);
    expect(() => kernel.projections.find.all("counters", { counter_id: undefined })).toThrow(/no value/);
    expect(kernel.projections.find.all("counters", {})).toHaveLength(1);
    expect(kernel.projections.find.one("counters", { name: "nobody" })).toBeUndefined();
  });

  test("is what it is now, however often it was asked for before", () => {
    const kernel = engine();
    const counter_id = fill(kernel, 20);
    const { find } = kernel.projections;
    const version = () => [
      find.one("counters", { counter_id })!.version,
      find.one("counters", { name: "one" })!.version,
    ];
    expect(version()).toEqual([21, 21]);
    kernel.done("counter.add", { counter_id, by: [0] });
    expect(version()).toEqual([22, 22]);
    // Changed, looked at in between, and taken back: by a batch that is all or nothing, and by a bug.
    const add = (by: number[]) => toWrite("counter.add", { counter_id, by });
    const looks = () => toWrite("mirror.create", { counter_id });
    kernel.executor.run([{ atomic: true, commands: [looks(), add([0]), looks(), add([5_000])] }]);
    expect(version()).toEqual([22, 22]);
    kernel.run(add([0]), looks(), toWrite("counter.explode", { counter_id, place: "apply" }));
    expect(version()).toEqual([23, 23]);
    // Somebody else's rows do not age with them; a rebuild makes new ones.
    kernel.projections.rebuild("counter");
    kernel.finishRebuilds();
    expect(version()).toEqual([23, 23]);
    expect(find.all("mirrors", {})).toHaveLength(1);
  });

  test("is the truth inside the transaction, in key order", () => {
    const kernel = engine();
    const names = ["c", "a", "b"];
    kernel.run(...names.map((name) => toWrite("counter.create", { name })));
    const ids = kernel.projections.find.all("counters", {}).map((row) => row.counter_id);
    expect(ids).toEqual(ids.toSorted());
    const twice = kernel.run(
      toWrite("counter.create", { name: "d" }),
      toWrite("counter.create", { name: "d" }),
    );
    expect(refusedOf(twice.outcomes[1]![0]!)).toMatchObject({ reason: "counter.name_taken" });
  });

  test("a table's own rule that decide forgot is a bug of that command, and nothing is stored", () => {
    const kernel = engine({ aggregates: [counterAggregate({ lenient: true }), mirror] });
    kernel.done("counter.create", { name: "one" });
    const before = dumpAll(kernel.path);
    expect(kernel.refused("counter.create", { name: "one" }).code).toBe("internal");
    expect(dumpAll(kernel.path)).toEqual(before);
  });
});
