/**
 * Opening `kernel.db` (SPEC §11): the settings every connection has, and the migrations.
 *
 * Always holds: one write connection in the process, WAL, `synchronous=FULL` (but for `withoutWaiting`), triggers that also fire for REPLACE; a
 * setting that SQLite did not take is an error. A migration runs in its own transaction, after a verified copy of a
 * database that has content. What the schema is after the last migration is compared with what it should be, so a
 * dropped trigger is found at start. Read models are left out of that: they have generations (projection.ts).
 */
import { Database, SQLiteError } from "bun:sqlite";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import log from "../../migrations/0001_log.sql" with { type: "text" };
import leases from "../../migrations/0002_leases.sql" with { type: "text" };

/** The oldest SQLite whose WAL is known to be sound (SPEC §11). */
const OLDEST_SQLITE = "3.51.3";

/** The WAL file is cut back to this size when it starts over, in bytes. */
const WAL_KEPT_BYTES = 32 << 20;

/**
 * Statements that each connection keeps prepared. The runtime's own number, 20, is less than one command of each kind needs,
 * and preparing a statement costs ten times as much as finding it. No text depends on a value, a limit or the length of a list,
 * so they are not many.
 */
Database.MAX_QUERY_CACHE_SIZE = 1_000;

/** Numbered from 1, in order, never changed once released. */
export const migrations: readonly string[] = [log, leases];

/** A database that cannot be served: the message says what is wrong and how to go on. */
export class DatabaseRefused extends Error {}

/** The disk or the file is at fault, not what was asked of it. */
export function isStorageError(error: unknown): error is SQLiteError {
  return (
    error instanceof SQLiteError &&
    /^SQLITE_(FULL|IOERR|CORRUPT|NOTADB|NOMEM|READONLY|CANTOPEN|BUSY|LOCKED|PROTOCOL)/.test(error.code ?? "")
  );
}

/** Each setting with what SQLite must answer when asked for it. busy_timeout first: switching to WAL takes a lock. */
const SETTINGS: readonly (readonly [name: string, value: string, told: string | number])[] = [
  ["busy_timeout", "5000", 5000],
  ["journal_mode", "WAL", "wal"],
  ["synchronous", "FULL", 2],
  ["foreign_keys", "ON", 1],
  ["recursive_triggers", "ON", 1],
  ["trusted_schema", "OFF", 0],
  ["cell_size_check", "ON", 1],
  // The writer checkpoints between batches instead (writer.ts), so that no commit pays for it.
  ["wal_autocheckpoint", "0", 0],
  // What a long reader made it grow to is given back once the WAL starts over.
  ["journal_size_limit", String(WAL_KEPT_BYTES), WAL_KEPT_BYTES],
  ["cache_size", "-16384", -16384],
];

function configure(db: Database): void {
  for (const [name, value, told] of SETTINGS) {
    db.run(`PRAGMA ${name} = ${value}`);
    const [found] = Object.values(db.query<Record<string, unknown>, []>(`PRAGMA ${name}`).get() ?? {});
    if (found !== told)
      throw new DatabaseRefused(
        `SQLite did not take ${name} = ${value} (it is ${String(found)}): the file system may not allow it`,
      );
  }
}

/**
 * Open the write connection, bring the schema up to date and check it.
 * @param path of `kernel.db`; made when absent
 * @param steps the migrations; a parameter so that a test can have a second one
 * @throws DatabaseRefused when SQLite is too old, the file is no database of mp's, it is newer than this binary, a
 * migration fails, or the schema was altered. SQLiteError when the disk is at fault
 */
export function openForWriting(path: string, steps: readonly string[] = migrations): Database {
  const db = new Database(path, { create: true, strict: true });
  try {
    const { version } = db.query<{ version: string }, []>("SELECT sqlite_version() AS version").get()!;
    const old = tooOld(version);
    if (old) throw new DatabaseRefused(old);
    // Before the settings: one of them changes the file, and a foreign one is not ours to change.
    refuseForeign(db, path, steps.length);
    configure(db);
    migrate(db, path, steps);
    checkSchema(db, steps);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/**
 * Commit what nobody is told of and nobody is served from, such as a read model that is being built, without waiting for the
 * disk. It may be lost with the power, whole commits from the last one back, never torn; the next commit that waits makes it
 * durable too, for it waits for the whole WAL.
 * @param work commits, and leaves no transaction open
 */
export function withoutWaiting(db: Database, work: () => void): void {
  db.run("PRAGMA synchronous = NORMAL");
  try {
    work();
  } finally {
    waitAgain(db);
  }
}

/** @throws when the connection would go on without waiting: nothing may be written with it then */
function waitAgain(db: Database): void {
  db.run("PRAGMA synchronous = FULL");
  const { synchronous } = db.query<{ synchronous: number }, []>("PRAGMA synchronous").get()!;
  if (synchronous !== FULL) throw new Error("the database would not wait for the disk any more");
}

/** How SQLite tells `synchronous = FULL`. */
const FULL = 2;

/** Open a connection that can only read. It sees each commit as soon as it is made. */
export function openForReading(path: string): Database {
  const db = new Database(path, { readonly: true, strict: true });
  db.run("PRAGMA busy_timeout = 5000");
  db.run("PRAGMA trusted_schema = OFF");
  db.run("PRAGMA cell_size_check = ON");
  db.run("PRAGMA query_only = ON");
  return db;
}

/**
 * Why a version of SQLite is not good enough; undefined when it is.
 * @param version as `sqlite_version()` tells it
 */
export function tooOld(version: string): string | undefined {
  return Bun.semver.order(version, OLDEST_SQLITE) < 0
    ? `SQLite ${version} is too old: at least ${OLDEST_SQLITE} is needed`
    : undefined;
}

function userVersion(db: Database): number {
  return db.query<{ user_version: number }, []>("PRAGMA user_version").get()!.user_version;
}

function refuseForeign(db: Database, path: string, known: number): void {
  const version = userVersion(db);
  if (version > known)
    throw new DatabaseRefused(
      `the database has schema ${version}, this mp knows ${known}: use the newer mp that wrote it`,
    );
  if (version === 0 && tableNames(db).length > 0)
    throw new DatabaseRefused(`${path} is a database of another program: move it away, or set MP_HOME`);
}

function migrate(db: Database, path: string, steps: readonly string[]): void {
  const from = userVersion(db);
  const backup = from > 0 && from < steps.length ? backUp(db, path, from) : undefined;
  for (let step = from; step < steps.length; step++) {
    try {
      db.transaction(() => {
        db.run(steps[step]!);
        db.run(`PRAGMA user_version = ${step + 1}`);
      }).immediate();
    } catch (error) {
      if (isStorageError(error)) throw error;
      const kept = backup === undefined ? "" : `; the copy from before is ${backup}`;
      throw new DatabaseRefused(
        `migration ${step + 1} failed, the database is still at schema ${step}${kept}: ${(error as Error).message}`,
        { cause: error },
      );
    }
  }
}

/** A whole copy, opened and checked, before a migration touches anything. Returns its path. */
function backUp(db: Database, path: string, version: number): string {
  const folder = join(dirname(path), "backups");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  let copy = join(folder, `kernel-schema-${version}.db`);
  for (let n = 2; existsSync(copy); n++) copy = join(folder, `kernel-schema-${version}-${n}.db`);
  // Under another name until it is whole: a full disk or a crash must not leave half a copy that looks like one.
  const draft = `${copy}.part`;
  rmSync(draft, { force: true });
  db.query("VACUUM INTO ?").run(draft);
  const check = new Database(draft, { readonly: true });
  try {
    const found = check.query<{ integrity_check: string }, []>("PRAGMA integrity_check").all();
    if (found.length !== 1 || found[0]!.integrity_check !== "ok" || content(check) !== content(db))
      throw new DatabaseRefused("the copy made before the migration does not check: nothing was migrated");
  } finally {
    check.close();
  }
  renameSync(draft, copy);
  for (const each of [copy, folder]) sync(each);
  return copy;
}

/** What a copy must have in common with the original: schema version and the number of rows of every table. */
function content(db: Database): string {
  const counts = tableNames(db).map(
    (name) => `${name} ${db.query<{ n: number }, []>(`SELECT count(*) AS n FROM "${name}"`).get()!.n}`,
  );
  return [userVersion(db), ...counts].join("\n");
}

function sync(path: string): void {
  // Windows opens no folders; there the file system looks after its own entries.
  if (process.platform === "win32") return;
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The log's tables and indexes, and every trigger and view there is, as SQL text. */
function logSchema(db: Database, tables: readonly string[]): string {
  return db
    .query<{ type: string; tbl_name: string; sql: string | null }, []>(
      "SELECT type, tbl_name, sql FROM sqlite_schema ORDER BY type, name",
    )
    .all()
    .filter(({ type, tbl_name }) => tables.includes(tbl_name) || type === "trigger" || type === "view")
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
 * Compare the schema with the one that the migrations make. Read models have tables and indexes only, so a trigger or
 * a view that no migration made is foreign wherever it hangs.
 * @throws DatabaseRefused when a table, index, trigger or view was changed, dropped or added from outside
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
