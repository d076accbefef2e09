/**
 * The yardstick of queries, a process of its own: bare `bun:sqlite` that reads the rows of one answer, over and over. Nothing
 * is checked, folded, put in order or sent. Prints one JSON line, PageResult.
 */
import { Database } from "bun:sqlite";

export interface PagePlan {
  readonly database: string;
  readonly sql: string;
  readonly values: readonly (string | number)[];
  readonly seconds: number;
}

export interface PageResult {
  readonly median_ms: number;
}

function run({ database, sql, values, seconds }: PagePlan): PageResult {
  const db = new Database(database, { readonly: true });
  const times: number[] = [];
  const end = performance.now() + seconds * 1000;
  while (performance.now() < end) {
    const started = performance.now();
    db.query<unknown, (string | number)[]>(sql).all(...values);
    times.push(performance.now() - started);
  }
  db.close();
  return { median_ms: times.sort((a, b) => a - b)[times.length >> 1]! };
}

if (import.meta.main) console.log(JSON.stringify(run(JSON.parse(process.argv[2]!) as PagePlan)));
