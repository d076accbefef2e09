/**
 * Read models as queries see them (SPEC §3, §6): on a connection that only reads, each answer from one snapshot, in pages
 * whose cursor is the key of their last row. Hidden columns stay hidden.
 */
import type { Database } from "bun:sqlite";
import type { Read, TableSpec } from "./aggregate.ts";
import type { Registry } from "./registry.ts";
import { DEFAULT_PAGE } from "./schema.ts";
import { columnsOf, conditions, type Row, type Value } from "./table.ts";

/** Read models for queries, on a connection that only reads: every answer is one snapshot. */
export class ReadModels {
  readonly #tables = new Map<string, TableSpec>();

  constructor(
    readonly db: Database,
    registry: Registry,
  ) {
    for (const aggregate of registry.aggregates)
      for (const [name, spec] of Object.entries(aggregate.readModel.tables)) this.#tables.set(name, spec);
  }

  /**
   * Run a query in one snapshot.
   * @param kind the aggregate whose projection answers
   * @param run the query's own reading
   * @returns its answer, with the position it holds for
   */
  snapshot<R>(kind: string, run: (read: Read) => R): { as_of_seq: number; answer: R } {
    return this.db.transaction(() => {
      const row = this.db
        .query<{ as_of_seq: number }, [string]>("SELECT as_of_seq FROM projections WHERE name = ?")
        .get(kind);
      return { as_of_seq: row?.as_of_seq ?? 0, answer: run(this.#read) };
    })();
  }

  readonly #read: Read = {
    one: (name, where) => this.#select(name, where, "", [])[0] as never,
    page: (name, where, params) => {
      const { key } = this.#tables.get(name)!;
      const limit = params.limit ?? DEFAULT_PAGE;
      const after = params.cursor === undefined ? undefined : decodeCursor(params.cursor, key.length);
      const rows = this.#select(
        name,
        where,
        after ? `(${key.join(", ")}) > (${key.map(() => "?").join(", ")})` : "",
        after ?? [],
        ` ORDER BY ${key.join(", ")} LIMIT ?`,
        limit + 1,
      );
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit) as never,
        next: last ? encodeCursor(key.map((k) => last[k]!)) : null,
      };
    },
  };

  #select(
    name: string,
    where: object,
    also: string,
    alsoValues: Value[],
    tail = "",
    ...last: Value[]
  ): Row[] {
    const spec = this.#tables.get(name)!;
    const columns = columnsOf(spec).filter((column) => !spec.hidden.includes(column));
    const { sql, values } = conditions(where as Row, true);
    const both = also ? `${sql ? `${sql} AND` : " WHERE"} ${also}` : sql;
    return this.db
      .query<Row, Value[]>(`SELECT ${columns.join(", ")} FROM ${name}${both}${tail}`)
      .all(...values, ...alsoValues, ...last);
  }
}

/** A page's cursor was not made by us. */
export class BadCursor extends Error {}

function encodeCursor(key: Value[]): string {
  return Buffer.from(JSON.stringify(key)).toString("base64url");
}

function decodeCursor(cursor: string, parts: number): Value[] {
  try {
    const key = JSON.parse(Buffer.from(cursor, "base64url").toString()) as Value[];
    if (
      Array.isArray(key) &&
      key.length === parts &&
      key.every((part) => ["string", "number"].includes(typeof part))
    )
      return key;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new BadCursor("the cursor is not one that a page gave");
}
