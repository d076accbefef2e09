/**
 * The lock that makes a daemon the only one of its data folder (SPEC §11).
 *
 * It is SQLite's own exclusive file lock on an empty file: the same code on Linux, macOS and Windows, dropped
 * by the OS however the process dies. Nothing is ever written, so a power cut cannot damage it and no journal
 * appears beside it. POSIX locks have one trap: they vanish when this process closes any other descriptor of
 * the same file. So nothing in the daemon may open daemon.lock except this module (a stat is fine).
 */
import { Database, SQLiteError } from "bun:sqlite";
import { closeSync, existsSync, openSync, utimesSync } from "node:fs";

export interface Lock {
  /** Give the lock up; a second call does nothing. The file stays. */
  release(): void;
}

/** An open transaction is what holds the lock: without this reference the collector would close it. */
const held = new Set<Database>();

/** A probe blocks a taker for as long as its read lasts; this outlasts many of them. */
const PATIENCE_MS = 250;

/**
 * Take the lock, at once or not at all (up to 250 ms go by while others probe it or it is held).
 * @param path daemon.lock; made 0600 if missing, in a folder that exists. Its mtime becomes the time of taking
 * @returns the lock, held until `release` or the end of the process; undefined when somebody else has it
 * @throws when the file cannot be opened or is not ours (not empty): see `claimDaemon` for the problem made of it
 */
export function acquireLock(path: string): Lock | undefined {
  if (!existsSync(path)) makePrivate(path);
  const db = new Database(path, { readwrite: true });
  try {
    db.run(`PRAGMA busy_timeout = ${PATIENCE_MS}`);
    // In memory, or the never committed transaction would leave a journal on disk.
    db.run("PRAGMA journal_mode = MEMORY");
    db.run("BEGIN EXCLUSIVE");
  } catch (error) {
    db.close();
    if (busy(error)) return undefined;
    throw error;
  }
  held.add(db);
  const now = new Date();
  utimesSync(path, now, now);
  return {
    release() {
      if (held.delete(db)) db.close();
    },
  };
}

/** SQLite would make the file as open as the umask allows. */
function makePrivate(path: string): void {
  try {
    closeSync(openSync(path, "wx", 0o600));
  } catch (error) {
    const another = error instanceof Error && "code" in error && error.code === "EEXIST";
    if (!another) throw error;
  }
}

/**
 * Tell whether somebody, this process included, holds the lock. Takes nothing that keeps a taker from it for
 * longer than one read, and makes no file. A file that cannot be read counts as free: taking it will say why.
 */
export function isLocked(path: string): boolean {
  if (!existsSync(path)) return false;
  let db: Database | undefined;
  try {
    db = new Database(path, { readonly: true });
    db.query("PRAGMA schema_version").get();
    return false;
  } catch (error) {
    return busy(error);
  } finally {
    db?.close();
  }
}

function busy(error: unknown): boolean {
  return error instanceof SQLiteError && error.code?.startsWith("SQLITE_BUSY") === true;
}
