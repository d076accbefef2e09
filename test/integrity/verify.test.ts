import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import canonicalize from "canonicalize";
import {
  type AskThread,
  type LogCheck,
  type LogTask,
  verifyLog,
  verifyLogTogether,
  verifyPart,
} from "../../src/integrity/verify.ts";
import type { Event } from "../../src/kernel/aggregate.ts";
import { migrations, openForReading } from "../../src/kernel/database.ts";
import { leafHash, originHash } from "../../src/kernel/log.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { counterAggregate, engine, mirror } from "../kernel/engine.ts";
import { random } from "../support/random.ts";

const registry = buildRegistry([counterAggregate(), mirror], system);
const decoder = new TextDecoder();

/** A good log of 12 events, closed: 1–2 created, 3–5 one command, 6–11 one each, 12 the other counter. */
function goodLog() {
  const kernel = engine();
  const one = kernel.done("counter.create", { name: "one" }).subject.id;
  const two = kernel.done("counter.create", { name: "two" }).subject.id;
  kernel.done("counter.add", { counter_id: one, by: [1, 2, 3] });
  for (let i = 6; i <= 11; i++) kernel.done("counter.add", { counter_id: one, by: [i] });
  kernel.done("counter.keep", { counter_id: two, data: { text: 'é " \\ 😀', list: [1, null] } });
  kernel.close();
  return { path: kernel.path, log_id: kernel.log_id, one, two };
}
type Log = ReturnType<typeof goodLog>;

function verify(path: string): LogCheck {
  const db = openForReading(path);
  try {
    return verifyLog(db, registry, () => {});
  } finally {
    db.close();
  }
}

const seed = Number(process.env.MP_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`MP_TEST_SEED=${seed}`);
const chance = random(seed);

/** What the one who hands out the parts of a verification may be interested in. */
interface Watch {
  readonly threads?: number;
  /** How many ticks an answer takes; by chance when absent. */
  readonly ticks?: (task: LogTask) => number;
  readonly asked?: (nth: number, task: LogTask) => void;
  readonly answered?: (task: LogTask) => void;
}

/** The same by several, each in its turn on a connection of its own; answers come in any order. */
async function verifyTogether(path: string, rangeEvents: number, watch: Watch = {}): Promise<LogCheck> {
  const dbs: Database[] = [];
  const ask: AskThread = async (nth, task) => {
    watch.asked?.(nth, task);
    dbs[nth] ??= openForReading(path);
    const answer = structuredClone(verifyPart(dbs[nth], registry, task));
    watch.answered?.(task);
    for (let tick = watch.ticks?.(task) ?? Math.floor(chance() * 6); tick > 0; tick--) await null;
    return answer as never;
  };
  try {
    return await verifyLogTogether(ask, watch.threads ?? 2, () => {}, rangeEvents);
  } finally {
    for (const db of dbs) db.close();
  }
}

/** Several say of a log what one says of it, wherever ranges end: also with a range for each event. */
async function agree(path: string): Promise<LogCheck> {
  const alone = verify(path);
  for (const size of [1, 2, 5]) expect([size, await verifyTogether(path, size)]).toEqual([size, alone]);
  return alone;
}

/** Every trigger of the log, as the migrations make them. */
const triggers = migrations.flatMap((sql) => sql.match(/CREATE TRIGGER[\s\S]*?END;/g) ?? []);

/** Somebody with the file and time: takes the triggers away, does it, and puts them back as they were. */
function tamper(path: string, work: (db: Database) => void): void {
  const db = new Database(path, { strict: true });
  db.run("PRAGMA synchronous = OFF");
  const names = db.query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'trigger'").all();
  for (const { name } of names) db.run(`DROP TRIGGER ${name}`);
  work(db);
  for (const trigger of triggers) db.run(trigger);
  db.close();
}

function eventAt(db: Database, seq: number): Event<Record<string, unknown>> {
  const row = db
    .query<{ body: Uint8Array }, [number]>("SELECT body FROM events WHERE seq_global = ?")
    .get(seq);
  return JSON.parse(decoder.decode(row!.body)) as Event<Record<string, unknown>>;
}

function setBody(db: Database, seq: number, body: string | Uint8Array): void {
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
  db.query("UPDATE events SET body = ? WHERE seq_global = ?").run(bytes, seq);
}

/** Write events from a position on, chained and with the columns they should have: a forger who knows the rules. */
function rechain(
  db: Database,
  log: Log,
  from: number,
  change: (event: Event<Record<string, unknown>>) => object,
): void {
  const head = db.query<{ head: number }, []>("SELECT max(seq_global) AS head FROM events").get()!.head;
  let prev_hash = originHash(log.log_id);
  for (let seq = 1; seq <= head; seq++) {
    const old = eventAt(db, seq);
    const event = (seq >= from ? { ...old, ...change(old), prev_hash } : old) as Event;
    const body = canonicalize(event)!;
    db.query(
      "UPDATE events SET body = CAST(? AS BLOB), event_id = ?, stream = ?, seq_stream = ?, event_type = ?, schema_version = ? WHERE seq_global = ?",
    ).run(body, event.event_id, event.stream, event.seq_stream, event.event_type, event.schema_version, seq);
    prev_hash = leafHash(body);
  }
}

describe("log.verify", () => {
  test("says ok of a good log, and tells its head", () => {
    const log = goodLog();
    const db = openForReading(log.path);
    const seen: [number, number][] = [];
    const found = verifyLog(db, registry, (done, of) => seen.push([done, of]));
    const [last] = db.query<{ body: Uint8Array }, []>("SELECT body FROM events WHERE seq_global = 12").all();
    expect(found).toEqual({
      as_of_seq: 12,
      ok: true,
      log_id: log.log_id,
      events: 12,
      head_hash: leafHash(last!.body),
      first_bad: null,
    });
    expect(seen.at(-1)).toEqual([12, 12]);
    db.close();
  });

  test("says ok of an empty log", () => {
    const kernel = engine();
    kernel.close();
    expect(verify(kernel.path)).toMatchObject({ ok: true, events: 0, head_hash: originHash(kernel.log_id) });
  });

  test("reads a log of many pages, and names the bad event in any of them", () => {
    const kernel = engine();
    const counter_id = kernel.done("counter.create", { name: "one" }).subject.id;
    for (let i = 0; i < 2_000; i += 20) kernel.done("counter.add", { counter_id, by: Array(20).fill(0) });
    kernel.close();
    expect(verify(kernel.path)).toMatchObject({ ok: true, events: 2_001 });
    const whole = readFileSync(kernel.path);
    // More than a page is gone: there is nothing to look at.
    tamper(kernel.path, (db) => db.run("DELETE FROM events WHERE seq_global BETWEEN 300 AND 1500"));
    expect(verify(kernel.path).first_bad).toMatchObject({ seq_global: 300, problem: "the event is missing" });
    tamper(kernel.path, (db) => db.run("DELETE FROM events WHERE seq_global < 300"));
    expect(verify(kernel.path).first_bad).toMatchObject({ seq_global: 1, problem: "the event is missing" });
    writeFileSync(kernel.path, whole);
    for (const seq of [1_999, 600, 256]) {
      tamper(kernel.path, (db) => {
        const event = eventAt(db, seq);
        setBody(db, seq, canonicalize({ ...event, payload: { by: 1 } })!);
      });
      expect(verify(kernel.path).first_bad).toMatchObject({ seq_global: seq });
    }
  });

  test("finds one changed byte of a payload, which SQLite's own check does not", () => {
    const log = goodLog();
    tamper(log.path, (db) => {
      const bytes = db
        .query<{ body: Uint8Array }, []>("SELECT body FROM events WHERE seq_global = 7")
        .get()!.body;
      const at = decoder.decode(bytes).indexOf('"by":7');
      bytes[at + 5] = "8".charCodeAt(0);
      setBody(db, 7, bytes);
    });
    const db = openForReading(log.path);
    expect(db.query("PRAGMA integrity_check").all()).toEqual([{ integrity_check: "ok" }]);
    db.close();
    expect(verify(log.path)).toMatchObject({
      ok: false,
      events: 6,
      first_bad: { seq_global: 7, problem: "its bytes are not those that the next event was chained to" },
    });
  });

  /** What is done to a good log → the first bad position and what is said of it. */
  const cases: Readonly<
    Record<string, readonly [work: (db: Database, log: Log) => void, seq: number, said: RegExp]>
  > = {
    "a changed first event": [
      (db) => setBody(db, 1, canonicalize({ ...eventAt(db, 1), payload: { name: "ONE" } })!),
      1,
      /its bytes/,
    ],
    "a changed prev_hash": [
      (db) => setBody(db, 5, canonicalize({ ...eventAt(db, 5), prev_hash: "0".repeat(64) })!),
      5,
      /prev_hash is not the leaf hash/,
    ],
    "another log's id": [
      (db) => db.run("UPDATE log SET log_id = '01a20475-8d86-738e-8073-973ee2c74a0f'"),
      1,
      /prev_hash/,
    ],
    "no log's id": [(db) => db.run("DELETE FROM log"), 1, /prev_hash/],
    "a deleted event": [(db) => db.run("DELETE FROM events WHERE seq_global = 8"), 8, /missing/],
    "a deleted first event": [(db) => db.run("DELETE FROM events WHERE seq_global = 1"), 1, /missing/],
    "a deleted page of events": [(db) => db.run("DELETE FROM events WHERE seq_global < 12"), 1, /missing/],
    "a deleted event, the rest moved up": [
      (db) => {
        db.run("DELETE FROM events WHERE seq_global = 8");
        for (let seq = 9; seq <= 12; seq++)
          db.run(`UPDATE events SET seq_global = ${seq - 1} WHERE seq_global = ${seq}`);
      },
      8,
      /look-up column/,
    ],
    "two events that changed places": [
      (db) => {
        const [a, b] = [eventAt(db, 6), eventAt(db, 7)];
        setBody(db, 6, canonicalize(b)!);
        setBody(db, 7, canonicalize(a)!);
      },
      6,
      /look-up column/,
    ],
    "two events that changed places with all their columns": [
      (db) => {
        db.run("UPDATE events SET seq_global = 99 WHERE seq_global = 6");
        db.run("UPDATE events SET seq_global = 6 WHERE seq_global = 7");
        db.run("UPDATE events SET seq_global = 7 WHERE seq_global = 99");
      },
      6,
      /look-up column/,
    ],
    "an event put in between": [
      (db) => {
        for (let seq = 12; seq >= 7; seq--)
          db.run(`UPDATE events SET seq_global = ${seq + 1} WHERE seq_global = ${seq}`);
        db.run(
          "INSERT INTO events SELECT 7, 'x', 'counter/x', 1, event_type, 1, NULL, NULL, 'counter', 1, body FROM events WHERE seq_global = 6",
        );
      },
      7,
      /look-up column/,
    ],
    "bytes that are not JSON": [(db) => setBody(db, 4, "{"), 4, /not JSON/],
    "bytes that are not UTF-8": [(db) => setBody(db, 4, new Uint8Array([0x7b, 0xff, 0x7d])), 4, /not JSON/],
    "a byte that is not UTF-8 in a text": [
      (db) => {
        const bytes = new TextEncoder().encode(canonicalize(eventAt(db, 1))!);
        bytes[new TextDecoder().decode(bytes).indexOf('"name":"one"') + 9] = 0xff;
        setBody(db, 1, bytes);
      },
      1,
      /not JSON/,
    ],
    "no bytes": [(db) => setBody(db, 4, ""), 4, /not JSON/],
    "JSON that is no object": [(db) => setBody(db, 4, "null"), 4, /not a canonical envelope/],
    "JSON that is no envelope": [(db) => setBody(db, 4, '{"seq_global":4}'), 4, /not a canonical envelope/],
    "an envelope with a space in it": [
      (db) => setBody(db, 4, JSON.stringify(eventAt(db, 4), null, 1)),
      4,
      /not a canonical envelope/,
    ],
    "an envelope in another order": [
      (db) => setBody(db, 4, JSON.stringify(Object.fromEntries(Object.entries(eventAt(db, 4)).toReversed()))),
      4,
      /not a canonical envelope/,
    ],
    "an envelope with one member more": [
      (db) => setBody(db, 4, canonicalize({ ...eventAt(db, 4), z: 1 })!),
      4,
      /not a canonical envelope/,
    ],
    "a byte order mark": [
      (db) => setBody(db, 4, `\ufeff${canonicalize(eventAt(db, 4))}`),
      4,
      /not a canonical envelope|not JSON/,
    ],
    "a subject that is not the stream's": [
      (db, { two }) =>
        setBody(db, 4, canonicalize({ ...eventAt(db, 4), subject: { kind: "counter", id: two } })!),
      4,
      /not a canonical envelope/,
    ],
    "a changed event_id": [
      (db) => db.run("UPDATE events SET event_id = 'x' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed stream": [
      (db) => db.run("UPDATE events SET stream = 'counter/x' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed seq_stream": [
      (db) => db.run("UPDATE events SET seq_stream = 99 WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed type": [
      (db) => db.run("UPDATE events SET event_type = 'counter.cleared' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed version": [
      (db) => db.run("UPDATE events SET schema_version = 2 WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed workspace": [
      (db) => db.run("UPDATE events SET workspace_id = 'x' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed project": [
      (db) => db.run("UPDATE events SET project_id = 'x' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a changed kind": [
      (db) => db.run("UPDATE events SET subject_kind = 'x' WHERE seq_global = 9"),
      9,
      /look-up column/,
    ],
    "a command cut in two": [
      (db) => db.run("UPDATE events SET command_end = 1 WHERE seq_global = 4"),
      5,
      /command_end/,
    ],
    "two commands made one": [
      (db) => db.run("UPDATE events SET command_end = 0 WHERE seq_global = 6"),
      7,
      /command_end/,
    ],
    "a last command without an end": [
      (db) => db.run("UPDATE events SET command_end = 0 WHERE seq_global = 12"),
      12,
      /not marked as the end/,
    ],
    "a noted version that is gone": [
      (db) => db.run("DELETE FROM event_versions WHERE event_type = 'counter.kept'"),
      12,
      /event_versions/,
    ],
    // From here on the chain is right: only what the events say is wrong.
    "an unknown type": [
      (db, log) =>
        rechain(db, log, 6, (event) => (event.seq_global === 6 ? { event_type: "counter.imagined" } : {})),
      6,
      /counter.imagined version 1 has no path/,
    ],
    "an unknown version": [
      (db, log) => rechain(db, log, 6, (event) => (event.seq_global === 6 ? { schema_version: 2 } : {})),
      6,
      /counter.added version 2 has no path/,
    ],
    "a payload that breaks its schema": [
      (db, log) => rechain(db, log, 6, (event) => (event.seq_global === 6 ? { payload: { by: "6" } } : {})),
      6,
      /breaks the schema of counter.added/,
    ],
    "a payload with a field more": [
      (db, log) =>
        rechain(db, log, 6, (event) => (event.seq_global === 6 ? { payload: { by: 6, more: 1 } } : {})),
      6,
      /breaks the schema of counter.added/,
    ],
    "an event_id that does not grow": [
      (db, log) =>
        rechain(db, log, 6, (event) =>
          event.seq_global === 8 ? { event_id: "00000000-0000-7000-8000-000000000000" } : {},
        ),
      8,
      /event_id/,
    ],
    "a hole in a stream": [
      (db, log) => {
        db.run("UPDATE events SET seq_stream = -seq_stream");
        rechain(db, log, 1, (event) =>
          event.stream.endsWith(log.one) && event.seq_stream >= 6 ? { seq_stream: event.seq_stream + 1 } : {},
        );
      },
      7,
      /seq_stream/,
    ],
    "a stream that starts at 2": [
      (db, log) => {
        db.run("UPDATE events SET seq_stream = -seq_stream");
        rechain(db, log, 1, (event) =>
          event.stream.endsWith(log.two) ? { seq_stream: event.seq_stream + 1 } : {},
        );
      },
      2,
      /seq_stream/,
    ],
  };
  for (const [what, [work, seq, said]] of Object.entries(cases))
    test(`names ${what}`, async () => {
      const log = goodLog();
      tamper(log.path, (db) => work(db, log));
      const { ok, first_bad, events } = await agree(log.path);
      expect(first_bad?.problem).toMatch(said);
      expect({ ok, seq: first_bad?.seq_global }).toEqual({ ok: false, seq });
      expect(events).toBeGreaterThanOrEqual(seq - 1);
    });

  for (const recursive of ["ON", "OFF"])
    test(`names an event that an outsider appended past the triggers (recursive_triggers ${recursive})`, () => {
      const log = goodLog();
      const db = new Database(log.path);
      db.run(`PRAGMA recursive_triggers = ${recursive}`);
      // All that the triggers ask for: the next place, and an id that grows.
      const forged = {
        ...eventAt(db, 12),
        event_id: "ffffffff-ffff-7fff-bfff-ffffffffffff",
        seq_global: 13,
        seq_stream: 3,
      };
      db.query(
        "INSERT INTO events VALUES (13, ?, ?, 3, 'counter.kept', 1, NULL, NULL, 'counter', 1, CAST(? AS BLOB))",
      ).run(forged.event_id, forged.stream, canonicalize(forged)!);
      db.close();
      expect(verify(log.path)).toMatchObject({ ok: false, events: 12, first_bad: { seq_global: 13 } });
    });

  test("names missing and changed triggers", () => {
    for (const sql of [
      "DROP TRIGGER events_no_update",
      "DROP TRIGGER events_no_update; CREATE TRIGGER events_no_update BEFORE UPDATE ON events WHEN 0 BEGIN SELECT 1; END",
    ]) {
      const log = goodLog();
      const db = new Database(log.path);
      db.run(sql);
      db.close();
      expect(verify(log.path)).toMatchObject({
        ok: false,
        first_bad: { seq_global: 0, problem: expect.stringContaining("not as mp made them") },
      });
    }
  });

  /** Overwrite one page of the file. */
  function damage(path: string, page: number): void {
    const bytes = readFileSync(path);
    bytes.fill(0xa5, (page - 1) * 4_096, page * 4_096);
    writeFileSync(path, bytes);
  }

  test("names the first event on a page of the file that is damaged", () => {
    const kernel = engine();
    const counter_id = kernel.done("counter.create", { name: "one" }).subject.id;
    for (let i = 0; i < 2_000; i += 20) kernel.done("counter.add", { counter_id, by: Array(20).fill(0) });
    const leaves = kernel.db
      .query<{ page: number; rows: number }, []>(
        "SELECT pageno AS page, ncell AS rows FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' ORDER BY path",
      )
      .all();
    kernel.close();
    const nth = leaves.length >>> 1;
    damage(kernel.path, leaves[nth]!.page);
    const first = leaves.slice(0, nth).reduce((sum, { rows }) => sum + rows, 1);
    expect(verify(kernel.path)).toMatchObject({
      ok: false,
      events: first - 1,
      first_bad: { seq_global: first, problem: expect.stringContaining("SQLITE_CORRUPT") },
    });
  });

  test("says that an index is damaged", () => {
    const log = goodLog();
    const db = openForReading(log.path);
    const { rootpage } = db
      .query<{ rootpage: number }, []>(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_events_1'",
      )
      .get()!;
    db.close();
    damage(log.path, rootpage);
    expect(verify(log.path)).toMatchObject({
      ok: false,
      first_bad: { seq_global: 0, problem: expect.stringContaining("SQLITE_CORRUPT") },
    });
  });

  test("names the first of several faults", () => {
    const log = goodLog();
    tamper(log.path, (db) => {
      for (const seq of [10, 4, 7]) setBody(db, seq, "{}");
    });
    expect(verify(log.path)).toMatchObject({ events: 3, first_bad: { seq_global: 4 } });
  });
});

describe("log.verify by several threads", () => {
  test("says ok of a good log and of an empty one, wherever ranges end", async () => {
    expect(await agree(goodLog().path)).toMatchObject({ ok: true, events: 12 });
    const kernel = engine();
    kernel.close();
    expect(await agree(kernel.path)).toMatchObject({ ok: true, events: 0 });
  });

  /** What is done to one event, whichever it is, and at which positions it is no fault. */
  const faults: Readonly<
    Record<string, readonly [work: (db: Database, log: Log, seq: number) => void, unless: readonly number[]]>
  > = {
    // No prev_hash covers the bytes of the last one.
    "a changed byte": [
      (db, _, seq) => {
        const event = eventAt(db, seq);
        setBody(db, seq, canonicalize({ ...event, trace_id: event.trace_id.replace(/^./, "f") })!);
      },
      [12],
    ],
    "a changed prev_hash": [
      (db, _, seq) => setBody(db, seq, canonicalize({ ...eventAt(db, seq), prev_hash: "0".repeat(64) })!),
      [],
    ],
    "a missing event": [(db, _, seq) => db.query("DELETE FROM events WHERE seq_global = ?").run(seq), [12]],
    "bytes that are no envelope": [(db, _, seq) => setBody(db, seq, "{}"), []],
    "another mark of a command's end": [
      (db, _, seq) =>
        db.query("UPDATE events SET command_end = 1 - command_end WHERE seq_global = ?").run(seq),
      [],
    ],
    // All but 3 to 5 are commands of one event.
    "another command's id": [
      (db, log, seq) =>
        rechain(db, log, seq, (event) =>
          event.seq_global === seq
            ? { causality: { ...event.causality, command_id: "01a20475-8d86-738e-8073-973ee2c74a0f" } }
            : {},
        ),
      [1, 2, 6, 7, 8, 9, 10, 11, 12],
    ],
    "an event_id that does not grow": [
      (db, log, seq) =>
        rechain(db, log, seq, (event) =>
          event.seq_global === seq ? { event_id: "00000000-0000-7000-8000-000000000000" } : {},
        ),
      [1],
    ],
    "a hole in a stream": [
      (db, log, seq) => {
        db.run("UPDATE events SET seq_stream = -seq_stream");
        const { stream } = eventAt(db, seq);
        rechain(db, log, 1, (event) =>
          event.stream === stream && event.seq_global >= seq ? { seq_stream: event.seq_stream + 1 } : {},
        );
      },
      [],
    ],
  };
  for (const [what, [work, unless]] of Object.entries(faults))
    test(`names ${what} at every position, wherever ranges end`, async () => {
      const log = goodLog();
      const whole = readFileSync(log.path);
      for (let seq = 1; seq <= 12; seq++) {
        writeFileSync(log.path, whole);
        tamper(log.path, (db) => work(db, log, seq));
        const { first_bad } = await agree(log.path);
        if (unless.includes(seq)) expect([seq, first_bad]).toEqual([seq, null]);
        // Some faults show in the event behind.
        else expect([seq, seq + 1]).toContain(first_bad?.seq_global ?? Number.NaN);
      }
    });

  test("names the first of faults in several ranges, whichever is found first, and asks no further", async () => {
    const log = goodLog();
    tamper(log.path, (db) => {
      for (const seq of [11, 5, 8]) setBody(db, seq, "{}");
    });
    const alone = verify(log.path);
    expect(alone).toMatchObject({ events: 4, first_bad: { seq_global: 5 } });
    for (const slow of [4, 6]) {
      const asked: number[] = [];
      const found = await verifyTogether(log.path, 2, {
        // The range with the first fault, or the one behind it, answers long after all the others.
        ticks: (task) => (task.kind === "range" && task.after === slow ? 1_000 : 1),
        asked: (_, task) => task.kind === "range" && asked.push(task.after),
      });
      expect(found).toEqual(alone);
      // The fault in the range after 6 is known before the one after 4, or the other way round.
      expect(asked).toEqual([0, 2, 4, 6]);
    }
  });

  test("an event that is gone once its range was checked is missed by the range behind", async () => {
    const log = goodLog();
    const good = verify(log.path);
    const found = await verifyTogether(log.path, 4, {
      threads: 1,
      answered: (task) => {
        if (task.kind === "range" && task.after === 0)
          tamper(log.path, (db) => db.run("DELETE FROM events WHERE seq_global = 4"));
      },
    });
    expect(good.ok).toBe(true);
    expect(found).toMatchObject({ ok: false, as_of_seq: 12, events: 4, first_bad: { seq_global: 5 } });
    expect(found.head_hash).toMatch(/^[0-9a-f]{64}$/);
  });

  test("each thread is asked one thing at a time, and no more of them than there are ranges", async () => {
    const { path } = goodLog();
    for (const [size, most] of [
      [12, 1],
      [6, 2],
      [1, 3],
    ] as const) {
      const seen = new Map<number, number>();
      const covered: number[] = [];
      const busy = new Set<number>();
      let of = 0;
      const dbs = Array.from({ length: 3 }, () => openForReading(path));
      const ask: AskThread = async (nth, task: LogTask) => {
        expect(busy.has(nth)).toBe(false);
        busy.add(nth);
        seen.set(nth, (seen.get(nth) ?? 0) + 1);
        if (task.kind === "range") for (let seq = task.after + 1; seq <= task.upTo; seq++) covered.push(seq);
        const answer = verifyPart(dbs[nth]!, registry, task);
        for (let tick = Math.floor(chance() * 6); tick > 0; tick--) await null;
        busy.delete(nth);
        return answer as never;
      };
      const progress: number[] = [];
      const found = await verifyLogTogether(
        ask,
        3,
        (done, all) => {
          progress.push(done);
          of = all;
        },
        size,
      );
      for (const db of dbs) db.close();
      expect(found).toEqual(verify(path));
      expect([...seen.keys()].sort()).toEqual(Array.from({ length: most }, (_, nth) => nth));
      expect(covered).toEqual(Array.from({ length: 12 }, (_, index) => index + 1));
      expect(progress).toEqual(progress.toSorted((a, b) => a - b));
      expect([progress.at(-1), of]).toEqual([12, 12]);
    }
  });
});
