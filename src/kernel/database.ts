/**
 * Opening `kernel.db` (SPEC §11): the settings every connection has, and the migrations.
 *
 * Always holds: one write connection in the process, WAL, `synchronous=FULL`, triggers that also fire for REPLACE.
 * A migration runs in its own transaction, after a verified copy of a database that has content. What the
 * schema is after the last migration is compared with what it should be, so a dropped trigger is found at start.
 */
import { Database, SQLiteError } from "bun:sqlite";
import { existsSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import log from "../../migrations/0001_log.sql" with { type: "text" };

/** The oldest SQLite whose WAL is known to be sound (SPEC §11). */
const OLDEST_SQLITE = "3.51.3";

/** Numbered from 1, in order, never changed once released. */
export const migrations: readonly string[] = [log];

/** A database that cannot be served: the message says what is wrong and how to go on. */
export class DatabaseRefused extends Error {}

/** The disk or the file is at fault, not what was asked of it. */
export function isStorageError(error: unknown): error is SQLiteError {
  return (
    error instanceof SQLiteError &&
    /^SQLITE_(FULL|IOERR|CORRUPT|NOTADB|NOMEM|READONLY|CANTOPEN|BUSY|LOCKED|PROTOCOL)/.test(error.code ?? "")
  );
}

function configure(db: Database): void {
  // busy_timeout first: switching to WAL takes a lock.
  db.run("PRAGMA busy_timeout = 5000");
  db.run("PRAGMA journal_mode = WAL");
  db.run("PRAGMA synchronous = FULL");
  db.run("PRAGMA foreign_keys = ON");
  db.run("PRAGMA recursive_triggers = ON");
  db.run("PRAGMA trusted_schema = OFF");
  db.run("PRAGMA cell_size_check = ON");
  // The writer checkpoints between batches instead (writer.ts), so that no commit pays for it.
  db.run("PRAGMA wal_autocheckpoint = 0");
  db.run("PRAGMA cache_size = -16384");
}

/**
 * Open the write connection, bring the schema up to date and check it.
 * @param path of `kernel.db`; made when absent
 * @param steps the migrations; a parameter so that a test can have a second one
 * @throws DatabaseRefused when SQLite is too old, the database is newer than this binary, or its schema was altered
 */
export function openForWriting(path: string, steps: readonly string[] = migrations): Database {
  const db = new Database(path, { create: true, strict: true });
  try {
    const { version } = db.query<{ version: string }, []>("SELECT sqlite_version() AS version").get()!;
    if (olderThan(version, OLDEST_SQLITE))
      throw new DatabaseRefused(`SQLite ${version} is too old: at least ${OLDEST_SQLITE} is needed`);
    configure(db);
    migrate(db, path, steps);
    checkSchema(db, steps);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/** Open a connection that can only read. It sees each commit as soon as it is made. */
export function openForReading(path: string): Database {
  const db = new Database(path, { readonly: true, strict: true });
  db.run("PRAGMA busy_timeout = 5000");
  db.run("PRAGMA trusted_schema = OFF");
  db.run("PRAGMA cell_size_check = ON");
  db.run("PRAGMA query_only = ON");
  return db;
}

function olderThan(version: string, limit: string): boolean {
  const [have, want] = [version, limit].map((text) => text.split(".").map(Number));
  for (let part = 0; part < 3; part++) {
    const difference = (have?.[part] ?? 0) - (want?.[part] ?? 0);
    if (difference !== 0) return difference < 0;
  }
  return false;
}

function userVersion(db: Database): number {
  return db.query<{ user_version: number }, []>("PRAGMA user_version").get()!.user_version;
}

function migrate(db: Database, path: string, steps: readonly string[]): void {
  const from = userVersion(db);
  if (from > steps.length)
    throw new DatabaseRefused(
      `the database has schema ${from}, this mp knows ${steps.length}: use the newer mp that wrote it`,
    );
  if (from > 0 && from < steps.length) backUp(db, path, from);
  for (let step = from; step < steps.length; step++) {
    db.transaction(() => {
      db.run(steps[step]!);
      db.run(`PRAGMA user_version = ${step + 1}`);
    }).immediate();
  }
}

/** A whole copy, opened and checked, before a migration touches anything. */
function backUp(db: Database, path: string, version: number): void {
  const folder = join(dirname(path), "backups");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  let copy = join(folder, `kernel-schema-${version}.db`);
  for (let n = 2; existsSync(copy); n++) copy = join(folder, `kernel-schema-${version}-${n}.db`);
  db.query("VACUUM INTO ?").run(copy);
  const check = new Database(copy, { readonly: true });
  try {
    const found = check.query<{ integrity_check: string }, []>("PRAGMA integrity_check").all();
    const counts = [db, check].map(
      (each) => each.query<{ n: number }, []>("SELECT count(*) AS n FROM events").get()!.n,
    );
    if (found.length !== 1 || found[0]!.integrity_check !== "ok" || counts[0] !== counts[1])
      throw new DatabaseRefused("the copy made before the migration does not check: nothing was migrated");
  } finally {
    check.close();
  }
}

/** The log's tables, indexes and triggers as SQL text; read models are left out, they have generations. */
function logSchema(db: Database, names: readonly string[]): string {
  return db
    .query<{ tbl_name: string; sql: string | null }, []>(
      "SELECT tbl_name, sql FROM sqlite_schema ORDER BY type, name",
    )
    .all()
    .filter((each) => names.includes(each.tbl_name))
    .map((each) => each.sql)
    .join(";\n");
}

function tableNames(db: Database): string[] {
  return db
    .query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    .all()
    .map((each) => each.name);
}

/**
 * Compare the schema with the one that the migrations make.
 * @throws DatabaseRefused when a table or a trigger was changed, dropped or added from outside
 */
export function checkSchema(db: Database, steps: readonly string[] = migrations): void {
  const model = new Database(":memory:");
  try {
    for (const step of steps) model.run(step);
    const names = tableNames(model);
    if (logSchema(db, names) !== logSchema(model, names))
      throw new DatabaseRefused(
        "the tables or triggers of the log are not as mp made them: restore a backup, or find out who changed them",
      );
  } finally {
    model.close();
  }
}
