import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  DatabaseRefused,
  migrations,
  openForReading,
  openForWriting,
  tooOld,
} from "../../src/kernel/database.ts";
import { dump, dumpAll, type Engine, engine, tempFolder } from "./engine.ts";

const tempPath = () => join(tempFolder(), "kernel.db");

function pragma(db: Database, name: string): unknown {
  return Object.values(db.query<Record<string, unknown>, []>(`PRAGMA ${name}`).get() ?? {})[0];
}

/** A log with a little of everything in it, closed. */
function filled(): { path: string; log_id: string; counter_id: string } {
  const kernel = engine();
  const { subject } = kernel.done("counter.create", { name: "one" });
  kernel.done("counter.add", { counter_id: subject.id, by: [1, 2, 3] });
  kernel.close();
  return { path: kernel.path, log_id: kernel.log_id, counter_id: subject.id };
}

/** Another program's connection to the same file. */
function outsider(path: string, recursive_triggers: "ON" | "OFF"): Database {
  const db = new Database(path);
  db.run(`PRAGMA recursive_triggers = ${recursive_triggers}`);
  return db;
}

describe("settings", () => {
  const expected = {
    journal_mode: "wal",
    synchronous: 2,
    foreign_keys: 1,
    trusted_schema: 0,
    cell_size_check: 1,
    recursive_triggers: 1,
    busy_timeout: 5000,
    wal_autocheckpoint: 0,
  };
  for (const [name, value] of Object.entries(expected))
    test(`the write connection has ${name} = ${value}, also when the database was there already`, () => {
      const path = tempPath();
      for (let time = 0; time < 2; time++) {
        const db = openForWriting(path);
        expect(pragma(db, name)).toBe(value);
        db.close();
      }
    });

  test("a read connection cannot write, and sees each commit", () => {
    const kernel = engine();
    const reading = openForReading(kernel.path);
    expect(() => reading.run("INSERT INTO projections VALUES ('x', 'y', 0, NULL)")).toThrow(
      /readonly|read-only/,
    );
    expect(pragma(reading, "query_only")).toBe(1);
    expect(pragma(reading, "trusted_schema")).toBe(0);
    const count = reading.query<{ n: number }, []>("SELECT count(*) AS n FROM events");
    expect(count.get()!.n).toBe(0);
    kernel.done("counter.create", { name: "one" });
    expect(count.get()!.n).toBe(1);
    reading.close();
  });

  test("a file system without WAL is refused in words", () => {
    // A database in memory cannot have one.
    expect(() => openForWriting(":memory:")).toThrow(/did not take journal_mode = WAL/);
  });

  test("a SQLite that is too old is told apart by its numbers, not by its letters", () => {
    for (const version of ["3.51.2", "3.9.9", "3.50.99", "2.99.99"])
      expect(tooOld(version)).toContain(`SQLite ${version} is too old`);
    for (const version of ["3.51.3", "3.51.10", "3.100.0", "4.0.0"]) expect(tooOld(version)).toBeUndefined();
  });
});

describe("append-only", () => {
  /** Every way in which SQL can change or forge a row that is there. */
  const attacks: Readonly<Record<string, (log: ReturnType<typeof filled>) => string>> = {
    "UPDATE of a body": () => "UPDATE events SET body = 'x' WHERE seq_global = 1",
    "UPDATE of a column": () => "UPDATE events SET subject_kind = 'x' WHERE seq_global = 1",
    "UPDATE OR REPLACE of seq_global": () =>
      "UPDATE OR REPLACE events SET seq_global = 1 WHERE seq_global = 2",
    "DELETE of the last event": () => "DELETE FROM events WHERE seq_global = 4",
    "DELETE of all": () => "DELETE FROM events",
    "INSERT OR REPLACE of an event": () =>
      "INSERT OR REPLACE INTO events SELECT seq_global, event_id, stream, seq_stream, 'x', 1, NULL, NULL, 'x', 1, x'78' FROM events WHERE seq_global = 1",
    "REPLACE at the next seq of an event_id that is there": () =>
      "REPLACE INTO events SELECT 5, event_id, 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78' FROM events WHERE seq_global = 1",
    "REPLACE at the next seq of a place in a stream that is taken": () =>
      "REPLACE INTO events SELECT 5, 'z', stream, seq_stream, 'x', 1, NULL, NULL, 'x', 1, x'78' FROM events WHERE seq_global = 1",
    "upsert of an event": () =>
      "INSERT INTO events SELECT * FROM events WHERE seq_global = 1 ON CONFLICT DO UPDATE SET body = 'x'",
    "INSERT OR IGNORE with a seq that is not the next": () =>
      "INSERT OR IGNORE INTO events VALUES (6, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT with a seq that is not the next": () =>
      "INSERT INTO events VALUES (6, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT at 0": () => "INSERT INTO events VALUES (0, '0', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT with no seq": () =>
      "INSERT INTO events VALUES (NULL, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT of an event_id that is there": () =>
      "INSERT INTO events SELECT 5, event_id, 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78' FROM events WHERE seq_global = 4",
    "INSERT of an event_id that does not grow": () =>
      "INSERT INTO events VALUES (5, '00000000-0000-7000-8000-000000000000', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT with a hole in its stream": () =>
      "INSERT INTO events VALUES (5, 'z', 'x/1', 2, 'x', 1, NULL, NULL, 'x', 1, x'78')",
    "INSERT of an event that is too large": () =>
      "INSERT INTO events VALUES (5, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, zeroblob(61441))",
    "INSERT of a body that is text": () =>
      "INSERT INTO events VALUES (5, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, 'x')",
    "UPDATE of the log's id": () => "UPDATE log SET log_id = 'x'",
    "DELETE of the log's id": () => "DELETE FROM log",
    "REPLACE of the log's id": () => "REPLACE INTO log VALUES (1, 'x', 'x')",
    "a second log": () => "INSERT INTO log VALUES (2, 'x', 'x')",
    "UPDATE of a key": () => "UPDATE command_keys SET seq_global = 1",
    "DELETE of a key": () => "DELETE FROM command_keys",
    "REPLACE of a key": () =>
      "REPLACE INTO command_keys SELECT principal, idempotency_key, zeroblob(32), 'x', 1, 1, NULL FROM command_keys",
    "REPLACE of a key by its rowid": () =>
      "REPLACE INTO command_keys (rowid, principal, idempotency_key, fingerprint, command_type, seq_global, events) VALUES (1, 'x', 'x', zeroblob(32), 'x', 1, 1)",
    "INSERT OR IGNORE of a key that is there": () =>
      "INSERT OR IGNORE INTO command_keys SELECT * FROM command_keys",
    "UPDATE of a noted version": () => "UPDATE event_versions SET schema_version = 9",
    "DELETE of a noted version": () => "DELETE FROM event_versions",
  };
  // REPLACE does not fire delete triggers in a connection that has recursive triggers off, as most have.
  for (const recursive of ["ON", "OFF"] as const)
    for (const [what, sql] of Object.entries(attacks))
      test(`${what} from outside is refused (recursive_triggers ${recursive})`, () => {
        const log = filled();
        const before = dumpAll(log.path);
        const db = outsider(log.path, recursive);
        expect(() => db.run(sql(log))).toThrow();
        db.close();
        expect(dumpAll(log.path)).toEqual(before);
        openForWriting(log.path).close();
      });

  test("the next event with all that is asked for is taken: the rows above are refused for what they say", () => {
    const { path } = filled();
    const db = outsider(path, "OFF");
    // No trigger can tell a forger from the daemon: that is what log.verify is for.
    db.run("INSERT INTO events VALUES (5, 'z', 'x/1', 1, 'x', 1, NULL, NULL, 'x', 1, x'78')");
    db.close();
  });

  test("REPLACE of a noted version by itself is refused or changes nothing", () => {
    const { path } = filled();
    const before = dumpAll(path);
    const db = outsider(path, "OFF");
    db.run("REPLACE INTO event_versions SELECT * FROM event_versions");
    db.close();
    expect(dumpAll(path)).toEqual(before);
  });

  test("the daemon's own connection is bound by the same triggers", () => {
    const kernel = engine();
    kernel.done("counter.create", { name: "one" });
    expect(() => kernel.db.run("DELETE FROM events")).toThrow(/append-only/);
    expect(() => kernel.db.run("REPLACE INTO events SELECT * FROM events")).toThrow(/one after the other/);
  });
});

describe("a schema that is not as mp made it", () => {
  const alterations: Readonly<Record<string, string>> = {
    "a dropped trigger": "DROP TRIGGER events_no_delete",
    "a trigger that does less":
      "DROP TRIGGER events_no_update; CREATE TRIGGER events_no_update BEFORE UPDATE ON events WHEN 0 BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "a trigger more on the log":
      "CREATE TRIGGER more AFTER INSERT ON events BEGIN INSERT INTO event_versions VALUES ('x', 1); END",
    "a trigger on a read model":
      "CREATE TRIGGER more AFTER INSERT ON counters BEGIN DELETE FROM projections; END",
    "a view": "CREATE VIEW more AS SELECT * FROM events",
    "a column more": "ALTER TABLE events ADD COLUMN more TEXT",
    "an index more on the log": "CREATE INDEX more ON events (event_type)",
    "a table that is gone": "DROP TABLE event_versions",
    "a table under another name": "ALTER TABLE command_keys RENAME TO keys",
  };
  for (const [what, sql] of Object.entries(alterations))
    test(`${what} is refused at start, and said`, () => {
      const { path } = filled();
      const db = outsider(path, "ON");
      db.run(sql);
      db.close();
      expect(() => openForWriting(path)).toThrow(DatabaseRefused);
      expect(() => openForWriting(path)).toThrow(/not as mp made them/);
    });

  test("a table whose text was rewritten in the schema itself is refused", () => {
    const { path } = filled();
    const bytes = readFileSync(path);
    // Also where a page holds it that is used no more.
    const from = "length(body) <= 61440";
    let found = 0;
    for (let at = bytes.indexOf(from); at >= 0; at = bytes.indexOf(from, at))
      found += bytes.write("length(body) <= 99999", at);
    expect(found).toBeGreaterThan(0);
    writeFileSync(path, bytes);
    expect(() => openForWriting(path)).toThrow(/not as mp made them/);
  });

  test("a read model that is gone or changed is not the log: it is rebuilt", () => {
    const { path } = filled();
    for (const sql of ["DROP TABLE entries", "ALTER TABLE entries ADD COLUMN more TEXT"]) {
      const before = dumpAll(path).entries;
      const db = outsider(path, "ON");
      db.run(sql);
      db.close();
      engine({ path }).close();
      expect(dumpAll(path).entries).toEqual(before);
    }
  });

  test("a database of a newer mp is refused, and left alone", () => {
    const { path } = filled();
    const db = outsider(path, "ON");
    db.run("PRAGMA user_version = 99");
    db.close();
    const before = readFileSync(path);
    expect(() => openForWriting(path)).toThrow(
      `schema 99, this mp knows ${migrations.length}: use the newer mp`,
    );
    expect(readFileSync(path)).toEqual(before);
  });

  test("a database of another program is refused, and left alone", () => {
    const path = tempPath();
    const db = new Database(path);
    db.run("CREATE TABLE songs (title TEXT)");
    db.close();
    const before = readFileSync(path);
    expect(() => openForWriting(path)).toThrow(/another program/);
    expect(readFileSync(path)).toEqual(before);
    expect(readdirSync(join(path, ".."))).toEqual(["kernel.db"]);
  });

  test("a file that is no database is refused", () => {
    const path = tempPath();
    writeFileSync(path, "not a database, but long enough to be taken for one\n".repeat(100));
    expect(() => openForWriting(path)).toThrow(/not a database/);
  });
});

describe("migrations", () => {
  /** The schema of this mp, and the first one that it does not know. */
  const now = migrations.length;
  const next = now + 1;
  const good = "CREATE TABLE more (n INTEGER) STRICT; INSERT INTO more SELECT count(*) FROM events;";
  const bad =
    "CREATE TABLE more (n INTEGER) STRICT; DROP TABLE command_keys; INSERT INTO nowhere VALUES (1);";
  const backups = (path: string) => {
    const folder = join(path, "..", "backups");
    return existsSync(folder) ? readdirSync(folder).toSorted() : [];
  };

  test("a new database gets all of them, and no copy", () => {
    const path = tempPath();
    const db = openForWriting(path, [...migrations, good]);
    expect(pragma(db, "user_version")).toBe(next);
    expect(dump(db, "more")).toBe('[{"n":0}]');
    db.close();
    expect(backups(path)).toEqual([]);
  });

  test("a database with content is copied first, whole and checked, and then brought up to date", () => {
    const { path } = filled();
    const before = dumpAll(path);
    const db = openForWriting(path, [...migrations, good]);
    expect(pragma(db, "user_version")).toBe(next);
    expect(dump(db, "more")).toBe('[{"n":4}]');
    db.close();
    expect(backups(path)).toEqual([`kernel-schema-${now}.db`]);
    const copy = join(path, "..", "backups", `kernel-schema-${now}.db`);
    expect(statSync(join(copy, "..")).mode & 0o777).toBe(0o700);
    expect(dumpAll(copy)).toEqual(before);
    // The copy is a database that mp can go on with.
    const restored = openForWriting(copy);
    expect(pragma(restored, "user_version")).toBe(now);
    expect(pragma(restored, "integrity_check")).toBe("ok");
    restored.close();
    // Up to date: nothing to do, nothing to copy.
    openForWriting(path, [...migrations, good]).close();
    expect(backups(path)).toHaveLength(1);
    // And the older mp now says that it is too old.
    expect(() => openForWriting(path)).toThrow(`schema ${next}, this mp knows ${now}`);
  });

  test("one that fails leaves everything as it was, and says where the copy is", () => {
    const { path } = filled();
    const before = dumpAll(path);
    expect(() => openForWriting(path, [...migrations, bad])).toThrow(DatabaseRefused);
    expect(() => openForWriting(path, [...migrations, bad])).toThrow(
      new RegExp(
        `migration ${next} failed, the database is still at schema ${now}; the copy from before is .*kernel-schema-${now}.*nowhere`,
      ),
    );
    expect(dumpAll(path)).toEqual(before);
    const db = openForWriting(path);
    expect(pragma(db, "user_version")).toBe(now);
    db.close();
    // No copy is ever written over.
    expect(backups(path)).toEqual([`kernel-schema-${now}-2.db`, `kernel-schema-${now}.db`]);
  });

  test("when the second of two fails, the first stays done", () => {
    const { path } = filled();
    const steps = [...migrations, good, "INSERT INTO nowhere VALUES (1)"];
    expect(() => openForWriting(path, steps)).toThrow(
      `migration ${next + 1} failed, the database is still at schema ${next}`,
    );
    const db = openForWriting(path, steps.slice(0, next));
    expect(dump(db, "more")).toBe('[{"n":4}]');
    db.close();
  });

  test("without a copy nothing is migrated", () => {
    const { path } = filled();
    writeFileSync(join(path, "..", "backups"), "a file where the folder should be");
    expect(() => openForWriting(path, [...migrations, good])).toThrow();
    const db = openForWriting(path);
    expect(pragma(db, "user_version")).toBe(now);
    db.close();
  });

  test("half a copy that a crash left behind is not taken for one", () => {
    const { path } = filled();
    mkdirSync(join(path, "..", "backups"));
    writeFileSync(join(path, "..", "backups", `kernel-schema-${now}.db.part`), "half");
    openForWriting(path, [...migrations, good]).close();
    expect(backups(path)).toEqual([`kernel-schema-${now}.db`]);
  });

  test("an index or table that a migration makes is part of what is checked", () => {
    const { path } = filled();
    const steps = [...migrations, good];
    openForWriting(path, steps).close();
    const db = outsider(path, "ON");
    db.run("DROP TABLE more");
    db.close();
    expect(() => openForWriting(path, steps)).toThrow(/not as mp made them/);
  });
});

describe("storage", () => {
  test("a log is its bytes: closed and opened again it says the same", () => {
    const { path, log_id, counter_id } = filled();
    const before = dumpAll(path);
    const kernel: Engine = engine({ path });
    expect(kernel.log_id).toBe(log_id);
    expect(kernel.log.head.seq_global).toBe(4);
    expect(dumpAll(path)).toEqual(before);
    expect(kernel.done("counter.add", { counter_id, by: [4] }).seq_global).toBe(5);
  });
});
