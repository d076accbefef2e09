/**
 * Projections: the read models, derived from the log (SPEC §6). One projection per aggregate, named after its kind.
 *
 * Always holds: they are written in the transaction of their events; the same log gives the same bytes; a
 * generation that is not the binary's own is rebuilt before it serves; an event that cannot be applied stops
 * its projection visibly and fails closed for writes that need it. Nothing here reads a clock.
 */
import type { Database, Statement } from "bun:sqlite";
import type { AnyAggregate, Event, Find, Read, TableSpec } from "./aggregate.ts";
import { isStorageError } from "./database.ts";
import type { LogReader } from "./log.ts";
import { currentEvent, type Registry } from "./registry.ts";
import { DEFAULT_PAGE } from "./schema.ts";

type Value = string | number | null;
type Row = Record<string, Value>;

const decoder = new TextDecoder();

/** Events per step of a rebuild: a step is short, so that commands wait behind it for milliseconds only. */
const STEP_EVENTS = 2_000;

/** Events per read of the log: of the largest size they are 8 MB. */
const READ_EVENTS = 128;

/** The tables of a generation that is being built stand beside the serving ones under this suffix. */
const NEXT = "__next";

export interface ProjectionStatus {
  readonly name: string;
  readonly generation: string;
  readonly as_of_seq: number;
  readonly status: "serving" | "rebuilding" | "stopped";
  /** While rebuilding: how far the next generation is. */
  readonly rebuilt_to_seq: number | null;
  readonly error: string | null;
}

/** A write needs a projection that has stopped. */
export class ProjectionStopped extends Error {
  constructor(readonly projection: string) {
    super(`the projection ${projection} has stopped`);
  }
}

function columnsOf(spec: TableSpec): string[] {
  return Object.keys(spec.row.properties);
}

function columnType(schema: object): string {
  const types = JSON.stringify(schema);
  const base = types.includes('"type":"integer"') ? "INTEGER" : "TEXT";
  return types.includes('"type":"null"') ? base : `${base} NOT NULL`;
}

/** The SQL that makes a table. SQLite cannot rename an index, so a `tag` tells those of two generations apart. */
function tableSql(name: string, spec: TableSpec, tag: string): string[] {
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

function createTables(db: Database, tables: Readonly<Record<string, TableSpec>>, suffix: string): void {
  const taken = db.query<{ n: number }, [string]>(
    "SELECT count(*) AS n FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND name LIKE '%$a' AND sql NOT NULL",
  );
  for (const [name, spec] of Object.entries(tables))
    for (const sql of tableSql(name + suffix, spec, taken.get(name)!.n > 0 ? "$b" : "$a")) db.run(sql);
}

/** Whether a table is there with the columns that its spec names: another program may have taken it away. */
function asDeclared(db: Database, name: string, spec: TableSpec): boolean {
  const found = db.query<{ name: string }, [string]>("SELECT name FROM pragma_table_info(?)").all(name);
  return found.map((column) => column.name).join() === columnsOf(spec).join();
}

/** Hash of the schema, the code version and the upcasters (SPEC §6). */
export function generationId(aggregate: AnyAggregate): string {
  const { version, tables } = aggregate.readModel;
  const parts = [
    version,
    // Case folding follows the runtime's Unicode tables, and with it what a projection writes.
    process.versions.unicode,
    Object.entries(tables).map(([name, spec]) => tableSql(name, spec, "")),
    Object.entries(aggregate.events).map(([name, spec]) => [name, spec.version, Object.keys(spec.older)]),
  ];
  return new Bun.CryptoHasher("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 16);
}

/**
 * Equality conditions; null matches null.
 * @param optional true where an undefined member does not filter; else it is a bug, for it would match every row
 */
function conditions(
  where: Readonly<Record<string, unknown>>,
  optional = false,
): { sql: string; values: Value[] } {
  let sql = "";
  const values: Value[] = [];
  for (const column in where) {
    const value = where[column];
    if (value === undefined) {
      if (optional) continue;
      throw new Error(`no value for the column ${column}`);
    }
    sql += `${sql === "" ? " WHERE" : " AND"} ${column} IS ?`;
    values.push(value as Value);
  }
  return { sql, values };
}

/** Writes one projection's tables, either the serving ones or the next. */
function rowsOf(db: Database, tables: Readonly<Record<string, TableSpec>>, suffix: string) {
  return Object.fromEntries(
    Object.entries(tables).map(([name, spec]) => {
      const target = name + suffix;
      const columns = columnsOf(spec);
      const insertSql = `INSERT INTO ${target} (${columns.join(", ")}) VALUES (${columns.map(() => "?").join(", ")})`;
      let insert: Statement<unknown, Value[]> | undefined;
      return [
        name,
        {
          insert(row: Row) {
            // Not before the first row: the table of a next generation does not exist yet.
            insert ??= db.query<unknown, Value[]>(insertSql);
            insert.run(...columns.map((column) => row[column] as Value));
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

function* bodies(log: LogReader, after: number, upTo: number): Generator<Uint8Array> {
  for (let at = after; at < upTo; at += READ_EVENTS) yield* log.bodies(at, Math.min(upTo, at + READ_EVENTS));
}

interface Projection {
  readonly aggregate: AnyAggregate;
  readonly name: string;
  readonly generation: string;
  /** Undefined while it goes on, at the log's end; once it has stopped, why and where. */
  stopped: { readonly error: string; readonly as_of_seq: number } | undefined;
  readonly rows: ReturnType<typeof rowsOf>;
  readonly next: ReturnType<typeof rowsOf>;
  /** A generation of this binary is in place, whether or not it goes on. */
  serves: boolean;
  /** Position of the generation that is being built, undefined when none is. */
  building: number | undefined;
}

function applyTo(registry: Registry, aggregate: AnyAggregate, rows: object, event: Event): void {
  if (event.subject.kind !== aggregate.kind) return;
  const current = currentEvent(registry, event);
  const name = registry.events.get(current.event_type)!.name;
  aggregate.readModel.apply[name]!(rows as never, current as never);
}

/** The projections of a log, on the write connection. Its methods run inside the writer's transactions. */
export class Projections {
  readonly #all: Projection[];
  readonly #byKind = new Map<string, Projection>();
  readonly #byTable = new Map<string, Projection>();
  readonly find: Find;

  constructor(
    readonly db: Database,
    readonly registry: Registry,
    readonly log: LogReader,
  ) {
    this.#all = registry.aggregates.map((aggregate) => ({
      aggregate,
      name: aggregate.kind,
      generation: generationId(aggregate),
      stopped: undefined,
      rows: rowsOf(db, aggregate.readModel.tables, ""),
      next: rowsOf(db, aggregate.readModel.tables, NEXT),
      building: undefined,
      serves: false,
    }));
    for (const projection of this.#all) {
      this.#byKind.set(projection.name, projection);
      for (const name of Object.keys(projection.aggregate.readModel.tables))
        this.#byTable.set(name, projection);
    }
    const select = (name: string, where: object, tail: string) => {
      const owner = this.#byTable.get(name);
      if (owner?.stopped) throw new ProjectionStopped(owner.name);
      const { sql, values } = conditions(where as Row);
      return { statement: db.query<Row, Value[]>(`SELECT * FROM ${name}${sql}${tail}`), values };
    };
    this.find = {
      one(name, where) {
        const { statement, values } = select(name, where, " LIMIT 1");
        return (statement.get(...values) ?? undefined) as never;
      },
      all: (name, where) => {
        const { key } = this.#byTable.get(name)!.aggregate.readModel.tables[name]!;
        const { statement, values } = select(name, where, ` ORDER BY ${key.join(", ")}`);
        return statement.all(...values) as never;
      },
    };
  }

  /**
   * Bring every projection to this binary's generation and to the log's end, before anything is served.
   * @param progress told after each step of a rebuild that is needed
   */
  start(progress: (name: string, done: number, of: number) => void): void {
    const stored = new Map(
      this.db
        .query<{ name: string; generation: string; as_of_seq: number; error: string | null }, []>(
          "SELECT name, generation, as_of_seq, error FROM projections",
        )
        .all()
        .map((row) => [row.name, row]),
    );
    for (const projection of this.#all) {
      const row = stored.get(projection.name);
      const { tables } = projection.aggregate.readModel;
      projection.serves =
        row?.generation === projection.generation &&
        row.error === null &&
        row.as_of_seq === this.log.head() &&
        Object.entries(tables).every(([name, spec]) => asDeclared(this.db, name, spec));
      // What a rebuild left that was cut short.
      this.db.transaction(() => this.#dropNext(projection)).immediate();
      if (projection.serves) continue;
      this.rebuild(projection.name);
      while (projection.building !== undefined) {
        this.step();
        progress(projection.name, projection.building ?? this.log.head(), this.log.head());
      }
    }
  }

  /** Fails closed (SPEC §6): throws ProjectionStopped when the aggregate's own projection has stopped. */
  needs(kind: string): void {
    if (this.#byKind.get(kind)?.stopped) throw new ProjectionStopped(kind);
  }

  /** Apply an event that was just appended. Throws what `apply` throws: then the command is rolled back. */
  apply(event: Event): void {
    const projection = this.#byKind.get(event.subject.kind);
    if (projection && !projection.stopped)
      applyTo(this.registry, projection.aggregate, projection.rows, event);
  }

  /** Before the commit of a batch: note that all that serve are at the head. */
  reached(head: number): void {
    this.db.query("UPDATE projections SET as_of_seq = ? WHERE error IS NULL").run(head);
  }

  status(): ProjectionStatus[] {
    return this.#all.map(({ name, generation, stopped, building }) => ({
      name,
      generation,
      as_of_seq: stopped?.as_of_seq ?? this.log.head(),
      status: building !== undefined ? "rebuilding" : stopped ? "stopped" : "serving",
      rebuilt_to_seq: building ?? null,
      error: stopped?.error ?? null,
    }));
  }

  /** Begin to build the next generation of one projection beside the serving one. Nothing if it is under way. */
  rebuild(name: string): void {
    const projection = this.#byKind.get(name);
    if (!projection || projection.building !== undefined) return;
    this.db
      .transaction(() => {
        this.#dropNext(projection);
        createTables(this.db, projection.aggregate.readModel.tables, NEXT);
      })
      .immediate();
    projection.building = 0;
  }

  /**
   * Go on with the rebuilds by one short transaction; switch to a next generation that has reached the log's end.
   * @returns the projection it worked on, undefined when nothing is being rebuilt
   * @throws SQLiteError when the disk or the file is at fault: then see `giveUp`
   */
  step(): string | undefined {
    const projection = this.#all.find((each) => each.building !== undefined);
    if (!projection) return undefined;
    const from = projection.building!;
    const head = this.log.head();
    const upTo = Math.min(head, from + STEP_EVENTS);
    const at = { seq: from };
    try {
      this.db
        .transaction(() => {
          this.#applyNext(projection, from, upTo, at);
          if (upTo === head) this.#switch(projection, head, null);
        })
        .immediate();
    } catch (error) {
      // The log cannot be at fault when there was nothing to apply, or when the disk is.
      if (isStorageError(error) || at.seq === from) throw error;
      this.#stop(projection, from, at.seq, error);
      return projection.name;
    }
    projection.building = upTo === head ? undefined : upTo;
    if (upTo === head) this.#serves(projection, undefined);
    return projection.name;
  }

  /** Give up the rebuilds that are under way, as when the disk is full. What serves goes on serving. */
  giveUp(): void {
    for (const projection of this.#all) projection.building = undefined;
  }

  /** @param at told which event is being applied, so that the one that cannot be is known */
  #applyNext(projection: Projection, after: number, upTo: number, at: { seq: number }): void {
    for (const body of bodies(this.log, after, upTo)) {
      at.seq += 1;
      const event = JSON.parse(decoder.decode(body)) as Event;
      applyTo(this.registry, projection.aggregate, projection.next, event);
    }
  }

  /** The next generation becomes the serving one. Inside the caller's transaction. */
  #switch(projection: Projection, as_of_seq: number, error: string | null): void {
    for (const table of Object.keys(projection.aggregate.readModel.tables)) {
      this.db.run(`DROP TABLE IF EXISTS ${table}`);
      this.db.run(`ALTER TABLE ${table}${NEXT} RENAME TO ${table}`);
    }
    this.#note(projection, as_of_seq, error);
  }

  #note({ name, generation }: Projection, as_of_seq: number, error: string | null): void {
    this.db
      .query("INSERT OR REPLACE INTO projections (name, generation, as_of_seq, error) VALUES (?, ?, ?, ?)")
      .run(name, generation, as_of_seq, error);
  }

  /** After the commit that made it so. */
  #serves(projection: Projection, stopped: Projection["stopped"]): void {
    projection.stopped = stopped;
    projection.serves = true;
  }

  /**
   * Stop at the event that cannot be applied. A generation that serves stays as it is, at its position; a new one
   * serves what it has up to that event. Either way it is said in the database, so it is seen until it is mended.
   */
  #stop(projection: Projection, from: number, seq: number, cause: unknown): void {
    const error = `event ${seq} cannot be applied: ${cause instanceof Error ? cause.message : String(cause)}`;
    const as_of_seq = projection.serves ? (projection.stopped?.as_of_seq ?? this.log.head()) : seq - 1;
    this.db
      .transaction(() => {
        if (projection.serves) {
          this.#dropNext(projection);
          this.#note(projection, as_of_seq, error);
          return;
        }
        this.#applyNext(projection, from, seq - 1, { seq: from });
        this.#switch(projection, as_of_seq, error);
      })
      .immediate();
    projection.building = undefined;
    this.#serves(projection, { error, as_of_seq });
  }

  #dropNext(projection: Projection): void {
    for (const table of Object.keys(projection.aggregate.readModel.tables))
      this.db.run(`DROP TABLE IF EXISTS ${table}${NEXT}`);
  }
}

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

/** What `projection.verify` found about one projection. */
export interface ProjectionCheck {
  readonly name: string;
  readonly as_of_seq: number;
  readonly ok: boolean;
  /** SHA-256 over all rows of all tables in key order, hexadecimal: the serving ones and the rebuilt ones. */
  readonly digest: string;
  readonly rebuilt_digest: string;
  readonly error: string | null;
}

function digest(db: Database, tables: Readonly<Record<string, TableSpec>>): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const [name, spec] of Object.entries(tables)) {
    const columns = columnsOf(spec).join(", ");
    hash.update(`${name}(${columns})\n`);
    const rows = db.query<Row, []>(`SELECT ${columns} FROM ${name} ORDER BY ${spec.key.join(", ")}`);
    for (const row of rows.iterate()) hash.update(`${JSON.stringify(Object.values(row))}\n`);
  }
  return hash.digest("hex");
}

/**
 * Rebuild every read model from the log into a scratch database and compare it with the serving one at the same
 * position (SPEC §6). Most of the log is read before the snapshot in which the two are compared: a long snapshot would
 * keep the WAL from starting over while writers go on.
 * @param db a connection that only reads
 * @param scratch an empty database, the caller's to delete
 * @param progress told how many events of how many are done
 */
export function verifyProjections(
  db: Database,
  registry: Registry,
  log: LogReader,
  scratch: Database,
  progress: (done: number, of: number) => void,
): ProjectionCheck[] {
  scratch.run("PRAGMA journal_mode = OFF");
  scratch.run("PRAGMA synchronous = OFF");
  const served = () =>
    new Map(
      db
        .query<{ name: string; as_of_seq: number; error: string | null }, []>(
          "SELECT name, as_of_seq, error FROM projections",
        )
        .all()
        .map((row) => [row.name, row]),
    );
  const models = new Map(
    registry.aggregates.map((aggregate): [string, Model] => {
      createTables(scratch, aggregate.readModel.tables, "");
      const rows = rowsOf(scratch, aggregate.readModel.tables, "");
      return [aggregate.kind, { aggregate, rows, as_of_seq: 0, error: null }];
    }),
  );
  let done = 0;
  /** Apply what each model lacks up to where the serving one stands. */
  const catchUp = () => {
    const stands = served();
    for (const model of models.values()) model.as_of_seq = stands.get(model.aggregate.kind)?.as_of_seq ?? 0;
    const head = Math.max(0, ...[...models.values()].map((model) => model.as_of_seq));
    while (done < head) {
      const upTo = Math.min(head, done + STEP_EVENTS);
      scratch.transaction(() => {
        for (const body of bodies(log, done, upTo)) applyScratch(registry, models, body, ++done);
      })();
      // A hole in the log is for log.verify to name.
      done = upTo;
      progress(done, head);
    }
    return stands;
  };
  catchUp();
  return db.transaction(() => {
    const stands = catchUp();
    return [...models.values()].map(({ aggregate, as_of_seq, error }) => {
      const live = digest(db, aggregate.readModel.tables);
      const rebuilt = digest(scratch, aggregate.readModel.tables);
      const said = stands.get(aggregate.kind)?.error ?? error;
      return {
        name: aggregate.kind,
        as_of_seq,
        ok: live === rebuilt && said === null,
        digest: live,
        rebuilt_digest: rebuilt,
        error: said,
      };
    });
  })();
}

interface Model {
  readonly aggregate: AnyAggregate;
  readonly rows: ReturnType<typeof rowsOf>;
  /** Where the serving one stands. */
  as_of_seq: number;
  /** Why this one went no further. */
  error: string | null;
}

function applyScratch(
  registry: Registry,
  models: ReadonlyMap<string, Model>,
  body: Uint8Array,
  seq: number,
): void {
  let event: Event | undefined;
  try {
    event = JSON.parse(decoder.decode(body)) as Event;
    const model = models.get(event.subject.kind);
    if (model && model.error === null && seq <= model.as_of_seq)
      applyTo(registry, model.aggregate, model.rows, event);
  } catch (error) {
    if (isStorageError(error)) throw error;
    const said = `event ${seq} cannot be applied: ${(error as Error).message}`;
    // Of an event that cannot be read nobody knows whose it is.
    const whose = event?.subject === undefined ? [...models.values()] : [models.get(event.subject.kind)!];
    for (const model of whose) model.error ??= said;
  }
}
