/**
 * Rules in a test's own words: `given(aggregate, …what happened).when(command, payload).thenEvents(…)` or `.thenRefused(…)`.
 *
 * Always so: it is the real kernel on a real SQLite file (log, projections, execute, leases), with a clock that only the
 * test and each question move, and ids that count, so what a test says is what a daemon does; a refusal is checked to have
 * written nothing, an event and an answer to pass their schema. Left out on purpose: transports, threads and the timer
 * that ends leases (`expire` does it); durability, so no fsync is waited for.
 */
import { afterAll, expect } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Static, TObject } from "typebox";
import { aggregates } from "../../src/domain/index.ts";
import { type Event, isRefused, type Scope } from "../../src/kernel/aggregate.ts";
import { type Clock, wireTime } from "../../src/kernel/clock.ts";
import { openForReading, openForWriting } from "../../src/kernel/database.ts";
import {
  Executor,
  type Outcome,
  refusal,
  type WriteCommand,
  type WriteRequest,
} from "../../src/kernel/execute.ts";
import { fingerprint } from "../../src/kernel/idempotency.ts";
import { Leases } from "../../src/kernel/leases.ts";
import { encode, LogReader, LogWriter, logId } from "../../src/kernel/log.ts";
import type { Problem } from "../../src/kernel/problems.ts";
import { Projections } from "../../src/kernel/projection.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { buildRegistry, currentEvent, type Registry } from "../../src/kernel/registry.ts";
import { schemaErrors } from "../../src/kernel/schema.ts";
import { system } from "../../src/kernel/system.ts";

/** A UUIDv7 that says which one it is: 1 is `00000000-0001-7000-8000-000000000001`. */
export function uuid(number: number): string {
  return `00000000-0001-7000-8000-${number.toString(16).padStart(12, "0")}`;
}

/** A clock that goes on by a second whenever it is asked, or by as much as a test says, and counts its ids. */
export function steadyClock(): Clock & { forward(ms: number): void } {
  let time = Date.UTC(2026, 0, 1) - 1_000;
  let ids = 0x1000_0000;
  return {
    now() {
      time += 1_000;
      return time;
    },
    id: () => uuid(ids++),
    /** Let so many milliseconds pass. */
    forward(ms) {
      time += ms;
    },
  };
}

const actor = { id: "ada", kind: "user" } as const;

/** Something that happened before the test begins. */
export interface Fact {
  readonly kind: string;
  readonly id: string;
  readonly scope: Scope;
  readonly type: string;
  readonly payload: object;
  /** The version it was stored in; the current one when absent. */
  readonly version?: number;
}

/** A kernel of its own for one test: what the writer thread has, in this process. */
export function kernel(registry: Registry = buildRegistry(aggregates, system)) {
  const folder = mkdtempSync(join(tmpdir(), "mp-kernel-"));
  const path = join(folder, "kernel.db");
  const db = openForWriting(path);
  let reading: ReturnType<typeof openForReading> | undefined;
  afterAll(() => {
    reading?.close();
    db.close();
    rmSync(folder, { recursive: true, force: true });
  });
  db.run("PRAGMA synchronous = OFF");
  const clock = steadyClock();
  const reader = new LogReader(db);
  const projections = new Projections(db, registry, reader);
  const log_id = logId(db, clock.id, () => wireTime(clock.now()));
  projections.start(() => undefined);
  const log = new LogWriter(db, log_id);
  const bugs: unknown[] = [];
  const fresh = () =>
    new Executor(db, registry, log, reader, projections, clock, uuid(0xda), "here", (_, error) =>
      bugs.push(error),
    );
  let executor = fresh();
  let sent = 0;
  const leases = new Leases(db);

  /** The state of a stream, folded from the log. */
  function folded(stream: string): unknown {
    const aggregate = registry.aggregates.find((each) => each.kind === stream.split("/")[0])!;
    return reader.stream(stream).reduce((state, line) => {
      const event = currentEvent(registry, JSON.parse(line.body) as Event);
      const { name } = registry.events.get(event.event_type)!;
      return aggregate.evolve[name]!(state as never, event.payload as never);
    }, aggregate.initial);
  }

  /** Ask a query on a connection that only reads; its parameters must be valid, an answer must pass its schema. */
  function ask(
    type: string,
    params: Record<string, unknown> = {},
    at = wireTime(clock.now()),
  ): { readonly answer: object } | { readonly problem: Problem } {
    const entry = registry.queries.get(type)!;
    expect([type, schemaErrors(entry.params, params)]).toEqual([type, []]);
    reading ??= openForReading(path);
    const { kind, run } = entry.reads!;
    const { as_of_seq, answer: found } = new ReadModels(reading, registry).snapshot(kind, (read) =>
      run(read, params as never, at),
    );
    if (isRefused(found)) return { problem: refusal(registry, found) };
    const answer = { as_of_seq, ...found };
    expect([type, schemaErrors(entry.spec.answer, answer)]).toEqual([type, []]);
    return { answer };
  }

  return {
    db,
    clock,
    folded,
    path,
    registry,
    reader,
    projections,
    log_id,
    /** What the kernel called bugs. */
    bugs,
    head: () => reader.head(),
    /** Every event as it is stored, after a position. */
    events: (after = 0): Event[] =>
      reader.range(after, reader.head()).map((line) => JSON.parse(line.body) as Event),
    /** Forget all that is kept in memory, as a restart does. */
    forget() {
      projections.rolledBack();
      executor = fresh();
    },
    /** Store facts, with their read models and leases, as the commands that made them once did. */
    tell(facts: readonly Fact[]) {
      db.transaction(() => {
        for (const { kind, id, scope, type, payload, version } of facts) {
          const stream = `${kind}/${id}`;
          const { lease } = registry.aggregates.find((each) => each.kind === kind)!;
          const before = lease?.of(folded(stream) as never);
          const { head } = log;
          const encoded = encode({
            actor,
            causality: { command_id: clock.id(), idempotency_key: "given" },
            event_id: log.nextId(clock.now()),
            event_type: `${kind}.${type}`,
            payload,
            prev_hash: head.leaf,
            ...(scope.project_id !== undefined && { project_id: scope.project_id }),
            schema_version: version ?? registry.events.get(`${kind}.${type}`)!.spec.version,
            seq_global: head.seq_global + 1,
            seq_stream: reader.stream(stream).length + 1,
            stream,
            subject: { id, kind },
            timestamp: wireTime(clock.now()),
            trace_id: "1".repeat(32),
            ...(scope.workspace_id !== undefined && { workspace_id: scope.workspace_id }),
          });
          log.append([encoded]);
          projections.apply(encoded.event);
          if (lease) leases.changed(stream, before, lease.of(folded(stream) as never), clock.now());
        }
        projections.reached(log.head.seq_global);
      })();
      executor = fresh();
    },
    /** Note bytes as the artifact store does once it has them. */
    store(digest: string, size: number) {
      db.query("INSERT INTO blobs (digest, size, stored_at) VALUES (?, ?, ?)").run(digest, size, clock.now());
    },
    /** The lease of a stream, as it is kept: `expires_at` in milliseconds since the epoch. */
    lease: (stream: string) =>
      db
        .query<{ epoch: number; ttl_ms: number; expires_at: number }, [string]>(
          "SELECT epoch, ttl_ms, expires_at FROM leases WHERE stream = ?",
        )
        .get(stream) ?? undefined,
    /** End the leases that have run out by now, as the writer's timer does; undefined when none has. */
    expire: () => executor.expire(),
    /** Give every lease one whole ttl from now, as a start of the daemon does. */
    grace: () => executor.grace(),
    ask,
    /**
     * Ask a query that must be answered.
     * @param at the time of the question, RFC 3339; the clock's when absent
     */
    query<A extends object = Record<string, unknown>>(
      type: string,
      params: Record<string, unknown> = {},
      at?: string,
    ): A {
      const found = ask(type, params, at);
      if ("problem" in found) throw new Error(`${type} was refused: ${JSON.stringify(found.problem)}`);
      return found.answer as A;
    },
    /** Ask a query that must be refused. */
    queryRefused(type: string, params: Record<string, unknown> = {}, at?: string): Problem {
      const found = ask(type, params, at);
      if ("answer" in found) throw new Error(`${type} was answered: ${JSON.stringify(found.answer)}`);
      return found.problem;
    },
    /** Run what dispatch hands over. */
    execute: (request: WriteRequest) => executor.run([request]),
    /** Run one command, in its current version and valid. */
    run(
      type: string,
      payload: Record<string, unknown>,
      more: Partial<Pick<WriteCommand, "idempotency_key" | "expected_version" | "principal">> = {},
    ): Outcome {
      sent += 1;
      const { expected_version } = more;
      const command: WriteCommand = {
        type,
        payload,
        idempotency_key: `key-${sent}`,
        fingerprint: fingerprint({ type, payload, expected_version }),
        trace_id: "2".repeat(32),
        principal: "test",
        actor,
        ...more,
      };
      return executor.run([{ commands: [command], atomic: false }]).outcomes[0]![0]!;
    },
  };
}
export type Kernel = ReturnType<typeof kernel>;

type Schemas = Readonly<Record<string, { readonly payload: TObject }>>;
/** As much of an aggregate as a test needs to know. */
export interface Subject<C extends Schemas = Schemas, E extends Schemas = Schemas> {
  readonly kind: string;
  readonly commands: C;
  readonly events: E;
}
type PayloadOf<S extends Schemas, N extends keyof S> = Static<S[N]["payload"]>;

/**
 * A stream to say facts about: `about(workspace, uuid(1))("created", { name: "w" })`.
 * @param scope what its events have in their envelope; a stream's own id stands in it as `<kind>_id` anyway
 */
export function about<C extends Schemas, E extends Schemas>(
  { kind }: Subject<C, E>,
  id: string,
  scope: Scope = {},
) {
  return <N extends keyof E & string>(type: N, payload: PayloadOf<E, N>): Fact => ({
    kind,
    id,
    scope: { ...scope, [`${kind}_id`]: id },
    type,
    payload: payload as object,
  });
}

/**
 * What happened, in order, in any streams; then a command of `aggregate`, and what must come of it. `kernel` is there for what
 * comes between or afterwards: `given(…).kernel.clock.forward(60_000)`.
 */
export function given<C extends Schemas, E extends Schemas>(
  aggregate: Subject<C, E>,
  ...facts: readonly Fact[]
) {
  const it = kernel();
  it.tell(facts);
  return {
    kernel: it,
    when<N extends keyof C & string>(
      name: N,
      payload: PayloadOf<C, N>,
      more: Parameters<typeof it.run>[2] = {},
    ) {
      const type = `${aggregate.kind}.${name}`;
      expect(schemaErrors(aggregate.commands[name]!.payload, payload)).toEqual([]);
      const before = it.head();
      const outcome = it.run(type, payload as Record<string, unknown>, more);
      const made = it.events(before);
      for (const { event_type, payload } of made)
        expect([event_type, schemaErrors(it.registry.events.get(event_type)!.spec.payload, payload)]).toEqual(
          [event_type, []],
        );
      const receipt = () => {
        if ("problem" in outcome) throw new Error(`${type} was refused: ${JSON.stringify(outcome.problem)}`);
        return JSON.parse(outcome.receipt) as {
          subject: Event["subject"];
          version: number;
          result: Record<string, unknown>;
        };
      };
      const refused = (): Problem => {
        if (!("problem" in outcome)) throw new Error(`${type} was accepted: ${outcome.receipt}`);
        expect(made).toEqual([]);
        return outcome.problem;
      };
      return {
        /**
         * Accepted, with exactly these events, in order; none: it changed nothing. Those of the command's own stream are
         * said by type and payload, those of other streams as facts: `about(task, uuid(7))("released", { … })`.
         */
        thenEvents(
          ...expected: (
            | { [K in keyof E & string]: { type: K; payload: PayloadOf<E, K> } }[keyof E & string]
            | Fact
          )[]
        ) {
          const { subject } = receipt();
          const own = `${subject.kind}/${subject.id}`;
          expect(
            made.map(({ stream, event_type, payload }) => ({
              stream,
              type: event_type,
              payload: payload as object,
            })),
          ).toEqual(
            expected.map((each) => ({
              stream: "kind" in each ? `${each.kind}/${each.id}` : own,
              type: `${"kind" in each ? each.kind : aggregate.kind}.${each.type}`,
              payload: each.payload as object,
            })),
          );
          return made;
        },
        /** Accepted, with exactly this in the receipt's `result`. */
        thenResult(expected: object) {
          expect(receipt().result).toEqual(expected as Record<string, unknown>);
        },
        /** Refused with `conflict`, this reason and exactly these details. */
        thenRefused(reason: string, details: object) {
          expect(refused()).toMatchObject({ code: "conflict", reason });
          expect(refused().details).toEqual(details as Record<string, unknown>);
        },
        /** Refused because there is no such thing. */
        thenMissing(kind: string, id: string) {
          expect(refused()).toMatchObject({ code: "not_found", reason: null });
          expect(refused().details).toEqual({ kind, id });
        },
        /** Refused because the stream is at another version. */
        thenMismatch(actual: number) {
          expect(refused()).toMatchObject({ code: "expected_version_mismatch", details: { actual } });
        },
      };
    },
  };
}
