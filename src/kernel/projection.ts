/**
 * Projections: the read models, derived from the log (SPEC §6). One projection per aggregate, named after its kind.
 *
 * Always holds: they are written in the transaction of their events; the same log gives the same bytes; a
 * generation that is not the binary's own is rebuilt before it serves; an event that cannot be applied stops
 * its projection visibly and fails closed for writes that need it. Nothing here reads a clock.
 */
import type { Database } from "bun:sqlite";
import type { AnyAggregate, Fact, Find, Order } from "./aggregate.ts";
import { isStorageError, withoutWaiting } from "./database.ts";
import { factOf } from "./fact.ts";
import type { LogReader, Placed } from "./log.ts";
import { currentEvent, type Registry } from "./registry.ts";
import {
  asDeclared,
  BESIDE,
  conditions,
  createTables,
  NEXT,
  ordered,
  type Row,
  rowsOf,
  tableSql,
  type Value,
} from "./table.ts";

/** Events per step of a rebuild: a step is short, so that commands wait behind it for milliseconds only. */
export const STEP_EVENTS = 2_000;

/** Positions per read of the log: events of the largest size are 8 MB then. */
export const READ_EVENTS = 128;

/** Rows that are remembered per table. */
const MAX_FOUND = 1_000;

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

/** The events of a range of the log, read a few at a time; of one kind only, when there is one. */
function* eventsOf(log: LogReader, kind: string | undefined, after: number, upTo: number): Generator<Placed> {
  const filter = kind === undefined ? {} : { subject_kind: kind };
  for (let at = after; at < upTo; at += READ_EVENTS)
    yield* log.placed(at, Math.min(upTo, at + READ_EVENTS), filter);
}

interface Projection {
  readonly aggregate: AnyAggregate;
  readonly name: string;
  readonly generation: string;
  /** The names of its tables. */
  readonly tables: readonly string[];
  /** Undefined while it goes on, at the log's end; once it has stopped, why and where. */
  stopped: { readonly error: string; readonly as_of_seq: number } | undefined;
  readonly rows: ReturnType<typeof rowsOf>;
  readonly next: ReturnType<typeof rowsOf>;
  /** A generation of this binary is in place, whether or not it goes on. */
  serves: boolean;
  /** Position of the generation that is being built, undefined when none is. */
  building: number | undefined;
}

/** Which event is being applied, and to what. */
interface Applying {
  seq: number;
  projection: Projection | undefined;
}

/** Let an aggregate's `apply` write one event, in its current version. Throws what `apply` throws. */
export function applyTo(registry: Registry, aggregate: AnyAggregate, rows: object, event: Fact): void {
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
  /** Rows that `find.one` found, by table: commands in a row often ask for the same ones, such as their workspace. */
  readonly #found = new Map<string, Map<string, Row>>();
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
      tables: Object.keys(aggregate.readModel.tables),
      stopped: undefined,
      rows: rowsOf(db, aggregate.readModel.tables, ""),
      next: rowsOf(db, aggregate.readModel.tables, NEXT),
      building: undefined,
      serves: false,
    }));
    for (const projection of this.#all) {
      this.#byKind.set(projection.name, projection);
      for (const name of projection.tables) this.#byTable.set(name, projection);
    }
    const select = (name: string, where: object, tail: { sql: string; values: readonly Value[] }) => {
      const owner = this.#byTable.get(name);
      if (owner?.stopped) throw new ProjectionStopped(owner.name);
      const { sql, values } = conditions(where as Row);
      return {
        statement: db.query<Row, Value[]>(`SELECT * FROM ${name}${sql}${tail.sql}`),
        values: [...values, ...tail.values],
      };
    };
    this.find = {
      one: (name, where) => {
        const owner = this.#byTable.get(name);
        const key = JSON.stringify(where);
        const known = owner?.stopped ? undefined : this.#found.get(name)?.get(key);
        if (known) return known as never;
        const { statement, values } = select(name, where, { sql: " LIMIT 1", values: [] });
        const row = statement.get(...values) ?? undefined;
        // Leases and bytes come and go without an event that would tell of it.
        if (row && owner) this.#remember(name, key, row);
        return row as never;
      },
      all: (name, where, order) => {
        const { key } = this.#byTable.get(name)?.aggregate.readModel.tables[name] ?? BESIDE[name]!;
        const { statement, values } = select(name, where, ordered(key, order as Order<Row>));
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
      if (!projection.serves) this.rebuild(projection.name);
    }
    for (let name = this.step(); name !== undefined; name = this.step())
      progress(name, this.#byKind.get(name)!.building ?? this.log.head(), this.log.head());
  }

  /** Fails closed (SPEC §6): throws ProjectionStopped when the aggregate's own projection has stopped. */
  needs(kind: string): void {
    if (this.#byKind.get(kind)?.stopped) throw new ProjectionStopped(kind);
  }

  /** Apply an event that was just appended. Throws what `apply` throws: then the command is rolled back. */
  apply(event: Fact): void {
    const projection = this.#byKind.get(event.subject.kind);
    if (!projection || projection.stopped) return;
    for (const name of projection.tables) this.#found.delete(name);
    applyTo(this.registry, projection.aggregate, projection.rows, event);
  }

  #remember(table: string, key: string, row: Row): void {
    let found = this.#found.get(table);
    if (!found || found.size >= MAX_FOUND) {
      found = new Map();
      this.#found.set(table, found);
    }
    found.set(key, row);
  }

  /** After a rollback: forget what was found before it. */
  rolledBack(): void {
    this.#found.clear();
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
   * Go on with the rebuilds by one short transaction; switch to next generations that have reached the log's end. Those
   * that are furthest behind go on together: the log is read once for all of them. Only the switch waits for the disk: what
   * is built before it can be built again.
   * @returns a projection it worked on, undefined when nothing is being rebuilt
   * @throws SQLiteError when the disk or the file is at fault: then see `giveUp`
   */
  step(): string | undefined {
    const building = this.#all.filter((each) => each.building !== undefined);
    const from = Math.min(...building.map((each) => each.building!));
    const group = building.filter((each) => each.building === from);
    const [first] = group;
    if (!first) return undefined;
    const head = this.log.head();
    const next = Math.min(
      head,
      ...building.filter((each) => each.building! > from).map((each) => each.building!),
    );
    const upTo = Math.min(next, from + STEP_EVENTS);
    const at: Applying = { seq: from, projection: undefined };
    const commit = this.db.transaction(() => {
      this.#applyNext(group, from, upTo, at);
      if (upTo === head) for (const projection of group) this.#switch(projection, head, null);
    });
    try {
      if (upTo === head) commit.immediate();
      else withoutWaiting(this.db, commit.immediate);
    } catch (error) {
      // The log cannot be at fault when there was nothing to apply, or when the disk is.
      if (isStorageError(error) || !at.projection) throw error;
      this.#stop(at.projection, from, at.seq, error);
      return at.projection.name;
    }
    for (const projection of group) {
      projection.building = upTo === head ? undefined : upTo;
      if (upTo === head) this.#serves(projection, undefined);
    }
    return first.name;
  }

  /** Give up the rebuilds that are under way, as when the disk is full. What serves goes on serving. */
  giveUp(): void {
    for (const projection of this.#all) projection.building = undefined;
  }

  /** @param at told which event is being applied to what, so that the one that cannot be is known */
  #applyNext(group: readonly Projection[], after: number, upTo: number, at: Applying): void {
    const [only, ...others] = group;
    const whose = new Map(group.map((each) => [each.name, each]));
    for (const line of eventsOf(this.log, others.length === 0 ? only?.name : undefined, after, upTo)) {
      const projection = whose.get(line.event_type.slice(0, line.event_type.indexOf(".")));
      if (!projection) continue;
      at.seq = line.seq_global;
      at.projection = projection;
      applyTo(this.registry, projection.aggregate, projection.next, factOf(line));
    }
    // What fails from here on is no event's fault.
    at.projection = undefined;
  }

  /** The next generation becomes the serving one. Inside the caller's transaction. */
  #switch(projection: Projection, as_of_seq: number, error: string | null): void {
    for (const table of projection.tables) {
      this.#found.delete(table);
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
        this.#applyNext([projection], from, seq - 1, { seq: from, projection: undefined });
        this.#switch(projection, as_of_seq, error);
      })
      .immediate();
    projection.building = undefined;
    this.#serves(projection, { error, as_of_seq });
  }

  #dropNext(projection: Projection): void {
    for (const table of projection.tables) this.db.run(`DROP TABLE IF EXISTS ${table}${NEXT}`);
  }
}
