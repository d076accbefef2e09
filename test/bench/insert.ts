/**
 * The yardstick of the writing rows, a process of its own: bare `bun:sqlite` that copies rows into a plain table with the
 * same columns and key. No further index, no trigger, no check, no read model, no socket. Prints one JSON line,
 * InsertResult.
 */
import { Database } from "bun:sqlite";
import { rmSync } from "node:fs";

export interface InsertPlan {
  /** The database whose last rows, in key order, are copied; it is only read. */
  readonly from: string;
  readonly table: string;
  readonly rows: number;
  /** The file to make, on the same disk; removed at the end. */
  readonly into: string;
  readonly per_transaction: number;
  readonly synchronous: "FULL" | "OFF";
}

export interface InsertResult {
  readonly rows: number;
  readonly seconds: number;
}

interface Column {
  readonly name: string;
  readonly type: string;
  /** Place in the primary key, from 1; 0 outside it. */
  readonly pk: number;
}

function run({ from, table, rows, into, per_transaction, synchronous }: InsertPlan): InsertResult {
  const source = new Database(from, { readonly: true });
  const columns = source.query<Column, []>(`PRAGMA table_info(${table})`).all();
  const key = columns.filter(({ pk }) => pk > 0).toSorted((a, b) => a.pk - b.pk);
  const keyNames = key.map(({ name }) => name).join(", ");
  const values = source
    .query<unknown, [number]>(`SELECT * FROM ${table} ORDER BY ${keyNames} DESC LIMIT ?`)
    .values(rows)
    .reverse() as (string | number | Uint8Array | null)[][];
  source.close();

  const db = new Database(into);
  db.run("PRAGMA journal_mode = WAL");
  db.run(`PRAGMA synchronous = ${synchronous}`);
  const tail = key.length === 1 && key[0]!.type === "INTEGER" ? "STRICT" : "STRICT, WITHOUT ROWID";
  const typed = columns.map(({ name, type }) => `${name} ${type}`);
  db.run(`CREATE TABLE copy (${typed.join(", ")}, PRIMARY KEY (${keyNames})) ${tail}`);
  const insert = db.query(`INSERT INTO copy VALUES (${columns.map(() => "?").join(", ")})`);
  const started = performance.now();
  for (let at = 0; at < values.length; at += per_transaction) {
    db.run("BEGIN IMMEDIATE");
    for (const row of values.slice(at, at + per_transaction)) insert.run(...row);
    db.run("COMMIT");
  }
  const seconds = (performance.now() - started) / 1000;
  db.close();
  for (const end of ["", "-wal", "-shm"]) rmSync(into + end, { force: true });
  return { rows: values.length, seconds };
}

if (import.meta.main) console.log(JSON.stringify(run(JSON.parse(process.argv[2]!) as InsertPlan)));
