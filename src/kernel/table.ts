/**
 * The tables of read models as SQL: made from their specs, written by projections, read back for digests.
 *
 * Always holds: columns, keys and indexes say what the spec says; a value that is not there is a bug, never a NULL by
 * accident. Nothing here knows which generation a table belongs to beyond the suffix it is given.
 */
import type { Database, Statement } from "bun:sqlite";
import type { Order, Range, TableSpec } from "./aggregate.ts";

export type Value = string | number | null;
export type Row = Record<string, Value>;

/** The tables of a generation that is being built stand beside the serving ones under this suffix. */
export const NEXT = "__next";

/** The tables that look-ups see beside the read models: of this moment and this machine, made by a migration. */
export const BESIDE: Readonly<Record<string, Pick<TableSpec, "key" | "hidden">>> = {
  leases: {
    key: ["stream"],
    hidden: ["grace", "renewal_principal", "renewal_key", "renewal_fingerprint", "renewal_receipt"],
  },
  blobs: { key: ["digest"], hidden: [] },
};

/** The names of a table's columns, in the order of its spec. */
export function columnsOf(spec: TableSpec): string[] {
  return Object.keys(spec.row.properties);
}

function columnType(schema: object): string {
  const types = JSON.stringify(schema);
  const base = types.includes('"type":"integer"') ? "INTEGER" : "TEXT";
  return types.includes('"type":"null"') ? base : `${base} NOT NULL`;
}

/** The SQL that makes a table. SQLite cannot rename an index, so a `tag` tells those of two generations apart. */
export function tableSql(name: string, spec: TableSpec, tag: string): string[] {
  const columns = Object.entries(spec.row.properties).map(
    ([column, schema]) => `${column} ${columnType(schema)}`,
  );
  const index = (kind: string, keys: readonly string[]) =>
    `CREATE ${kind} ${name.replace(NEXT, "")}_by_${keys.join("_")}${tag} ON ${name} (${keys.join(", ")})`;
  return [
    `CREATE TABLE ${name} (${columns.join(", ")}, PRIMARY KEY (${spec.key.join(", ")})) STRICT, WITHOUT ROWID`,
    ...spec.unique.map((keys) => index("UNIQUE INDEX", keys)),
    ...spec.index.map((keys) => index("INDEX", keys)),
  ];
}

/** Make every table of a read model under its name and a suffix. */
export function createTables(
  db: Database,
  tables: Readonly<Record<string, TableSpec>>,
  suffix: string,
): void {
  const taken = db.query<{ n: number }, [string]>(
    "SELECT count(*) AS n FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND name LIKE '%$a' AND sql NOT NULL",
  );
  for (const [name, spec] of Object.entries(tables))
    for (const sql of tableSql(name + suffix, spec, taken.get(name)!.n > 0 ? "$b" : "$a")) db.run(sql);
}

/** Whether a table is there with the columns that its spec names: another program may have taken it away. */
export function asDeclared(db: Database, name: string, spec: TableSpec): boolean {
  const found = db.query<{ name: string }, [string]>("SELECT name FROM pragma_table_info(?)").all(name);
  return found.map((column) => column.name).join() === columnsOf(spec).join();
}

const COMPARED = { above: ">", from: ">=", below: "<", upTo: "<=" } as const;

/**
 * The conditions of a look-up: a value is the column's (null matches null), a range bounds it.
 * @param optional true where an undefined member does not filter; else it is a bug, for it would match every row
 */
export function conditions(
  where: Readonly<Record<string, unknown>>,
  optional = false,
): { sql: string; values: Value[] } {
  let sql = "";
  const values: Value[] = [];
  const also = (condition: string, ...more: Value[]) => {
    sql += `${sql === "" ? " WHERE" : " AND"} ${condition}`;
    values.push(...more);
  };
  for (const column in where) {
    const value = where[column];
    if (value === undefined) {
      if (optional) continue;
      throw new Error(`no value for the column ${column}`);
    }
    if (typeof value !== "object" || value === null) {
      also(`${column} IS ?`, value as Value);
      continue;
    }
    for (const [bound, limit] of Object.entries(value as Range<Value>)) {
      // One parameter for a list of any length: every text stays prepared, so there must be few.
      if (Array.isArray(limit)) also(`${column} IN (SELECT value FROM json_each(?))`, JSON.stringify(limit));
      else if (limit !== undefined) also(`${column} ${COMPARED[bound as keyof typeof COMPARED]} ?`, limit);
      else if (!optional) throw new Error(`no value for a bound of the column ${column}`);
    }
  }
  return { sql, values };
}

/** The tail of a look-up: its order (key order when nothing else is said) and how many rows at most. */
export function ordered(
  key: readonly string[],
  { by = key, descending = false, limit }: Order<Row> = {},
): { sql: string; values: Value[] } {
  const sorted = by.map((column) => (descending ? `${column} DESC` : column)).join(", ");
  return limit === undefined
    ? { sql: ` ORDER BY ${sorted}`, values: [] }
    : { sql: ` ORDER BY ${sorted} LIMIT ?`, values: [limit] };
}

/** Writes one projection's tables, either the serving ones or the next. */
export function rowsOf(db: Database, tables: Readonly<Record<string, TableSpec>>, suffix: string) {
  return Object.fromEntries(
    Object.entries(tables).map(([name, spec]) => {
      const target = name + suffix;
      const columns = columnsOf(spec);
      const insertSql = `INSERT INTO ${target} (${columns.join(", ")}) VALUES ($${columns.join(", $")})`;
      let insert: Statement<unknown, [Row]> | undefined;
      return [
        name,
        {
          one(where: Row) {
            const { sql, values } = conditions(where);
            return (
              db.query<Row, Value[]>(`SELECT * FROM ${target}${sql} LIMIT 1`).get(...values) ?? undefined
            );
          },
          all(where: Row, order?: Order<Row>) {
            const { sql, values } = conditions(where);
            const tail = ordered(spec.key, order);
            return db
              .query<Row, Value[]>(`SELECT * FROM ${target}${sql}${tail.sql}`)
              .all(...values, ...tail.values);
          },
          insert(row: Row) {
            // Not before the first row: the table of a next generation does not exist yet.
            insert ??= db.query<unknown, [Row]>(insertSql);
            insert.run(row);
          },
          update(where: Row, change: Row) {
            const { sql, values } = conditions(where);
            const set = Object.keys(change).map((column) => `${column} = ?`);
            const changed = Object.values(change);
            if (changed.includes(undefined as never)) throw new Error("no value for a column that changes");
            db.query<unknown, Value[]>(`UPDATE ${target} SET ${set.join(", ")}${sql}`).run(
              ...changed,
              ...values,
            );
          },
          delete(where: Row) {
            const { sql, values } = conditions(where);
            db.query<unknown, Value[]>(`DELETE FROM ${target}${sql}`).run(...values);
          },
        },
      ];
    }),
  );
}

/** SHA-256 over all rows of all tables in key order, hexadecimal: the same rows, the same digest (SPEC §6). */
export function digest(db: Database, tables: Readonly<Record<string, TableSpec>>): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const [name, spec] of Object.entries(tables)) {
    const columns = columnsOf(spec).join(", ");
    hash.update(`${name}(${columns})\n`);
    const rows = db.query<Row, []>(`SELECT ${columns} FROM ${name} ORDER BY ${spec.key.join(", ")}`);
    for (const row of rows.iterate()) hash.update(`${JSON.stringify(Object.values(row))}\n`);
  }
  return hash.digest("hex");
}
