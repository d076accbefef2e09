/**
 * The yardstick of the reading rows, a process of its own: bare `bun:sqlite` that reads the bodies of the log in pages,
 * and, when asked, takes one SHA-256 of each. Nothing is parsed, compared or sent. Prints one JSON line, ReadResult.
 */
import { Database } from "bun:sqlite";

export interface ReadPlan {
  readonly database: string;
  readonly hash: boolean;
}

export interface ReadResult {
  readonly rows: number;
  readonly seconds: number;
}

const PAGE = 1_000;

function pass(db: Database, hash: boolean, upTo: number): number {
  const page = db.query<{ seq_global: number; body: Uint8Array }, [number, number]>(
    `SELECT seq_global, body FROM events WHERE seq_global > ? ORDER BY seq_global LIMIT ?`,
  );
  const digest = new Uint8Array(32);
  let after = 0;
  while (after < upTo) {
    const rows = page.all(after, PAGE);
    if (rows.length === 0) break;
    if (hash) for (const { body } of rows) Bun.SHA256.hash(body, digest);
    after = rows.at(-1)!.seq_global;
  }
  return after;
}

function run({ database, hash }: ReadPlan): ReadResult {
  const db = new Database(database, { readonly: true });
  pass(db, hash, 20_000);
  const started = performance.now();
  const rows = pass(db, hash, Number.POSITIVE_INFINITY);
  const seconds = (performance.now() - started) / 1000;
  db.close();
  return { rows, seconds };
}

if (import.meta.main) console.log(JSON.stringify(run(JSON.parse(process.argv[2]!) as ReadPlan)));
