/**
 * The kernel without a daemon: a real SQLite file, the real executor on it, and aggregates that no product has.
 *
 * `counter` makes any number of events, and can be told to go wrong in every place where a bug may be; `mirror` decides by
 * looking at counters. Always so: time stands still unless a test moves it; ids are real; a folder goes away with its test.
 */
import type { Database } from "bun:sqlite";
import { afterAll } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Type } from "typebox";
import { aggregate, command, event, type RowOf, reject, table } from "../../src/kernel/aggregate.ts";
import { type Clock, systemClock } from "../../src/kernel/clock.ts";
import { openForReading, openForWriting } from "../../src/kernel/database.ts";
import { type Committed, Executor, type Outcome, type WriteCommand } from "../../src/kernel/execute.ts";
import { fingerprint } from "../../src/kernel/idempotency.ts";
import { LogReader, LogWriter, logId } from "../../src/kernel/log.ts";
import type { Problem } from "../../src/kernel/problems.ts";
import { Projections } from "../../src/kernel/projection.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { Id } from "../../src/kernel/schema.ts";
import { system } from "../../src/kernel/system.ts";

const counters = table(
  { counter_id: Id, name: Type.String(), total: Type.Integer(), version: Type.Integer() },
  { key: ["counter_id"], unique: [["name"]] },
);
const entries = table(
  { counter_id: Id, seq: Type.Integer(), by: Type.Integer() },
  { key: ["counter_id", "seq"], index: [["by"]] },
);
const mirrors = table({ mirror_id: Id, counter_id: Id }, { key: ["mirror_id"] });

declare module "../../src/kernel/aggregate.ts" {
  interface Tables {
    counters: RowOf<typeof counters>;
    entries: RowOf<typeof entries>;
    mirrors: RowOf<typeof mirrors>;
  }
}

/** Where `explode` goes wrong. */
const Place = Type.Enum(["decide", "schema", "evolve", "apply", "nowhere"]);

export interface Counter {
  readonly total: number;
  readonly added: readonly number[];
}

/**
 * Make the counter aggregate.
 * @param flaws `apply` throws at an event that adds this; the read model's version; `lenient` leaves the name's
 * uniqueness to the table
 */
export function counterAggregate(flaws: { throwsAt?: number; version?: number; lenient?: boolean } = {}) {
  return aggregate("counter", { total: 0, added: [] } as Counter)({
    commands: {
      create: command({ name: Type.String() }, "Make a counter.", { creates: true }),
      add: command({ counter_id: Id, by: Type.Array(Type.Integer()) }, "Add each, in one command.", {
        result: Type.Object({ total: Type.Integer() }),
      }),
      clear: command({ counter_id: Id }, "Forget all entries."),
      keep: command({ counter_id: Id, data: Type.Unknown() }, "Store any JSON."),
      explode: command({ counter_id: Id, place: Place }, "Be a bug."),
    },
    events: {
      created: event(1, { name: Type.String() }),
      added: event(1, { by: Type.Integer() }),
      cleared: event(1, {}),
      kept: event(1, { data: Type.Unknown() }),
      exploded: event(1, { place: Place }),
    },
    reasons: {
      "counter.name_taken": { is: "another counter has that name", hint: "choose another" },
      "counter.too_much": { is: "it would be too much", hint: "add less" },
    },
    scope: () => ({}),
    decide: {
      create: (_, { name }, { find }) =>
        !flaws.lenient && find.one("counters", { name })
          ? reject("counter.name_taken")
          : [{ type: "created", payload: { name } }],
      add(state, { by }) {
        const total = by.reduce((sum, each) => sum + each, state.total);
        if (total > 1_000) return reject("counter.too_much", { total });
        return {
          events: by.map((each) => ({ type: "added" as const, payload: { by: each } })),
          result: { total },
        };
      },
      clear: () => [{ type: "cleared", payload: {} }],
      keep: (_, { data }) => [{ type: "kept", payload: { data } }],
      explode(_, { place }) {
        if (place === "decide") throw new Error("a bug in decide");
        // What the compiler would not let through.
        const payload = place === "schema" ? { place: "elsewhere" as "nowhere" } : { place };
        return [
          { type: "added", payload: { by: 1 } },
          { type: "exploded", payload },
        ];
      },
    },
    evolve: {
      created: (state) => state,
      added: ({ total, added }, { by }) => ({ total: total + by, added: [...added, by] }),
      cleared: () => ({ total: 0, added: [] }),
      kept: (state) => state,
      exploded(state, { place }) {
        if (place === "evolve") throw new Error("a bug in evolve");
        return state;
      },
    },
    readModel: {
      version: flaws.version ?? 1,
      tables: { counters, entries },
      apply: {
        created: (rows, { subject, payload, seq_stream }) =>
          rows.counters.insert({ counter_id: subject.id, name: payload.name, total: 0, version: seq_stream }),
        added(rows, { subject, payload: { by }, seq_stream }) {
          if (by === flaws.throwsAt) throw new Error("a bug in apply");
          rows.entries.insert({ counter_id: subject.id, seq: seq_stream, by });
          rows.counters.update({ counter_id: subject.id }, { version: seq_stream });
        },
        cleared: (rows, { subject }) => rows.entries.delete({ counter_id: subject.id }),
        kept: () => {},
        exploded(_, { payload }) {
          if (payload.place === "apply") throw new Error("a bug in apply");
        },
      },
    },
    queries: {},
  });
}

export const mirror = aggregate(
  "mirror",
  {},
)({
  commands: {
    create: command({ counter_id: Id }, "Mirror a counter.", { creates: true }),
    polish: command({ mirror_id: Id }, "Polish it: a command that looks at nothing."),
  },
  events: { created: event(1, { counter_id: Id }), polished: event(1, {}) },
  reasons: { "mirror.nothing_there": { is: "there is no counter", hint: "make the counter first" } },
  scope: () => ({}),
  decide: {
    create: (_, { counter_id }, { find }) =>
      find.one("counters", { counter_id })
        ? [{ type: "created", payload: { counter_id } }]
        : reject("mirror.nothing_there"),
    polish: () => [{ type: "polished", payload: {} }],
  },
  evolve: { created: (state) => state, polished: (state) => state },
  readModel: {
    version: 1,
    tables: { mirrors },
    apply: {
      created: (rows, { subject, payload }) =>
        rows.mirrors.insert({ mirror_id: subject.id, counter_id: payload.counter_id }),
      polished: () => {},
    },
  },
  queries: {},
});

/** A new folder with nothing in it; it goes away with the test, or the file, that asked for it. */
export function tempFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "mp-kernel-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export interface Receipt {
  readonly command_id: string;
  readonly type: string;
  readonly subject: { readonly kind: string; readonly id: string };
  readonly version: number;
  readonly seq_global: number;
  readonly events: readonly {
    readonly event_id: string;
    readonly event_type: string;
    readonly seq_global: number;
    readonly seq_stream: number;
  }[];
  readonly result: object;
  readonly replayed: boolean;
}

let keys = 0;

/** A command as the front would hand it over, with a key of its own unless one is given. */
export function toWrite(
  type: string,
  payload: Record<string, unknown>,
  more: Partial<WriteCommand> = {},
): WriteCommand {
  const idempotency_key = more.idempotency_key ?? `key-${++keys}`;
  const { expected_version } = more;
  return {
    type,
    payload,
    idempotency_key,
    fingerprint: fingerprint({ type, payload, expected_version }),
    trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
    principal: "uid:1",
    actor: { id: "ada", kind: "user" },
    ...more,
  };
}

export const refusedOf = (outcome: Outcome): Problem => {
  if (!("problem" in outcome)) throw new Error("it was accepted");
  return outcome.problem;
};
export const receiptOf = (outcome: Outcome): Receipt => {
  if ("problem" in outcome) throw new Error(`it was refused: ${JSON.stringify(outcome.problem)}`);
  return { ...(JSON.parse(outcome.receipt) as Receipt), replayed: outcome.replayed };
};

/**
 * Open a log and all that works on it, as the writer does.
 * @param path of the database; in a new folder when absent
 * @param aggregates counter and mirror when absent
 * @param now the time in ms; stands still at the same moment when absent
 */
export function engine({
  path = join(tempFolder(), "kernel.db"),
  aggregates = [counterAggregate(), mirror] as readonly unknown[],
  now = () => Date.UTC(2026, 10, 22, 10),
}: {
  path?: string;
  aggregates?: readonly unknown[];
  now?: () => number;
} = {}) {
  const clock: Clock = { now, id: systemClock.id };
  const registry = buildRegistry(aggregates, system);
  const db = openForWriting(path);
  const reader = new LogReader(db);
  const log_id = logId(db, clock.id, () => "2026-11-22T10:00:00.000Z");
  const projections = new Projections(db, registry, reader);
  projections.start(() => {});
  const log = new LogWriter(db, log_id);
  const bugs: { trace_id: string; error: unknown }[] = [];
  const executor = new Executor(
    db,
    registry,
    log,
    reader,
    projections,
    clock,
    clock.id(),
    "here",
    (trace_id, error) => bugs.push({ trace_id, error }),
  );
  const run = (...commands: WriteCommand[]): Committed =>
    executor.run(commands.map((each) => ({ commands: [each], atomic: false })));
  let open = true;
  const close = () => {
    if (open) db.close();
    open = false;
  };
  // Before the folder goes.
  afterAll(close);
  return {
    path,
    db,
    registry,
    reader,
    log_id,
    log,
    projections,
    executor,
    /** Every bug that was told, in order. */
    bugs,
    /** Run commands in one batch, each a request of its own. */
    run,
    /** Run one command that must be accepted. */
    done(type: string, payload: Record<string, unknown>, more: Partial<WriteCommand> = {}): Receipt {
      return receiptOf(run(toWrite(type, payload, more)).outcomes[0]![0]!);
    },
    /** Run one command that must be refused. */
    refused(type: string, payload: Record<string, unknown>, more: Partial<WriteCommand> = {}): Problem {
      return refusedOf(run(toWrite(type, payload, more)).outcomes[0]![0]!);
    },
    /** Go on with the rebuilds until none is left. */
    finishRebuilds(): void {
      while (projections.step() !== undefined);
    },
    close,
  };
}

export type Engine = ReturnType<typeof engine>;

/** What is in a table, as text that can be compared, whatever the order of its rows. */
export function dump(db: Database, table: string): string {
  const rows = db.query(`SELECT * FROM ${table}`).all();
  return `[${rows.map((row) => JSON.stringify(row)).sort()}]`;
}

/** The rows of every table, read by a connection of its own. */
export function dumpAll(path: string): Record<string, string> {
  const db = openForReading(path);
  try {
    const tables = db
      .query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
      .all();
    return Object.fromEntries(tables.map(({ name }) => [name, dump(db, name)]));
  } finally {
    db.close();
  }
}
