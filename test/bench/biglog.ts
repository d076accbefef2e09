/**
 * Makes a large log fast, a process of its own: the kernel's own LogWriter and Projections, `synchronous=OFF`, large
 * transactions. The chain is valid and the read models are current, as if a daemon had written it; only the command
 * keys are left out. Prints one JSON line, BigLogResult, when the file is complete.
 *
 * One workspace for a thousand projects; every tenth project is archived.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { aggregates } from "../../src/domain/index.ts";
import type { Event } from "../../src/kernel/aggregate.ts";
import { systemClock, wireTime } from "../../src/kernel/clock.ts";
import { openForWriting } from "../../src/kernel/database.ts";
import { encode, LogReader, LogWriter, logId } from "../../src/kernel/log.ts";
import { Projections } from "../../src/kernel/projection.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";

export interface BigLogPlan {
  /** MP_HOME of the daemon that will serve it. */
  readonly home: string;
  readonly events: number;
}

export interface BigLogResult {
  /** Bytes of all bodies together. */
  readonly bytes: number;
}

const PER_TRANSACTION = 2_000;
const PER_WORKSPACE = 1_000;
const ARCHIVED_EACH = 10;

type Made = Pick<Event, "event_type" | "payload" | "seq_stream" | "subject" | "workspace_id" | "project_id">;

/** Endless workspaces with their projects. */
function* life(): Generator<Made> {
  for (let workspace = 0; ; workspace++) {
    const workspace_id = systemClock.id();
    const subject = { kind: "workspace", id: workspace_id };
    const payload = { name: `workspace-${workspace}` };
    yield { event_type: "workspace.created", payload, seq_stream: 1, subject, workspace_id };
    for (let project = 0; project < PER_WORKSPACE; project++) {
      const project_id = systemClock.id();
      const common = { subject: { kind: "project", id: project_id }, workspace_id, project_id };
      const name = `project-${workspace}-${project}`;
      yield { event_type: "project.created", payload: { name }, seq_stream: 1, ...common };
      if (project % ARCHIVED_EACH === 0)
        yield { event_type: "project.archived", payload: {}, seq_stream: 2, ...common };
    }
  }
}

function run({ home, events }: BigLogPlan): BigLogResult {
  mkdirSync(home, { recursive: true, mode: 0o700 });
  const db = openForWriting(join(home, "kernel.db"));
  db.run("PRAGMA synchronous = OFF");
  const log_id = logId(db, systemClock.id, () => wireTime(systemClock.now()));
  const registry = buildRegistry(aggregates, system);
  const projections = new Projections(db, registry, new LogReader(db));
  projections.start(() => {});
  const log = new LogWriter(db, log_id);
  const source = life();
  const actor = { id: "bench", kind: "user" } as const;
  const trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  let bytes = 0;

  for (let at = 0; at < events; at += PER_TRANSACTION) {
    const timestamp = wireTime(systemClock.now());
    db.run("BEGIN IMMEDIATE");
    for (let index = at; index < Math.min(events, at + PER_TRANSACTION); index++) {
      const made = source.next().value as Made;
      const { kind, id } = made.subject;
      const causality = { command_id: systemClock.id(), idempotency_key: `bench-${index}` };
      const event_id = log.nextId(systemClock.now());
      const stream = `${kind}/${id}`;
      const { head } = log;
      const place = { prev_hash: head.leaf, seq_global: head.seq_global + 1, schema_version: 1 };
      const encoded = encode({ actor, causality, event_id, stream, timestamp, trace_id, ...place, ...made });
      log.append([encoded]);
      bytes += Buffer.byteLength(encoded.body);
      projections.apply(encoded.event);
    }
    projections.reached(log.head.seq_global);
    db.run("COMMIT");
    if (at % (25 * PER_TRANSACTION) === 0) db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  db.close();
  return { bytes };
}

if (import.meta.main) console.log(JSON.stringify(run(JSON.parse(process.argv[2]!) as BigLogPlan)));
