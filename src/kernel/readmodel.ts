/**
 * Read models as queries see them (SPEC §3, §6): on a connection that only reads, each answer from one snapshot, in pages
 * whose cursor is the key of their last row. Hidden columns stay hidden.
 */
import type { Database } from "bun:sqlite";
import type { Order, Read, TableSpec } from "./aggregate.ts";
import type { Registry } from "./registry.ts";
import { DEFAULT_PAGE } from "./schema.ts";
import { BESIDE, conditions, ordered, type Row, type Value } from "./table.ts";

/** Read models for queries, on a connection that only reads: every answer is one snapshot. */
export class ReadModels {
  readonly #tables = new Map<string, Pick<TableSpec, "key" | "hidden">>(Object.entries(BESIDE));

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
    one: (name, where) =>
      this.#select(name, where, "", [], { sql: " LIMIT 1", values: [] }).map((row) =>
        this.#shown(name, row),
      )[0] as never,
    all: (name, where, order) =>
      this.#select(name, where, "", [], ordered(this.#tables.get(name)!.key, order as Order<Row>)).map(
        (row) => this.#shown(name, row),
      ) as never,
    page: (name, where, params, by) => {
      const order = by ?? this.#tables.get(name)!.key;
      const limit = params.limit ?? DEFAULT_PAGE;
      const after = params.cursor === undefined ? undefined : decodeCursor(params.cursor, order.length);
      const rows = this.#select(
        name,
        where,
        after ? `(${order.join(", ")}) > (${order.map(() => "?").join(", ")})` : "",
        after ?? [],
        ordered(order, { limit: limit + 1 }),
      );
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map((row) => this.#shown(name, row)) as never,
        next: last ? encodeCursor(order.map((column) => last[column]!)) : null,
      };
    },
    sql: (text, ...values) => this.db.query(text).all(...values) as never,
  };

  #select(
    name: string,
    where: object,
    also: string,
    alsoValues: readonly Value[],
    tail: { sql: string; values: readonly Value[] },
  ): Row[] {
    const { sql, values } = conditions(where as Row, true);
    const both = also ? `${sql ? `${sql} AND` : " WHERE"} ${also}` : sql;
    return this.db
      .query<Row, Value[]>(`SELECT * FROM ${name}${both}${tail.sql}`)
      .all(...values, ...alsoValues, ...tail.values);
  }

  /** A row as answers show it. */
  #shown(name: string, row: Row): Row {
    for (const column of this.#tables.get(name)!.hidden) delete row[column];
    return row;
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
