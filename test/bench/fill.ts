/**
 * Fills a log fast, without a daemon: the kernel's own LogWriter, Projections and Leases, `synchronous=OFF`, large
 * transactions. The chain is valid, the read models are current and who lives has a lease, as if a daemon had written it;
 * only the command keys are left out.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { aggregates } from "../../src/domain/index.ts";
import type { Event, Lease } from "../../src/kernel/aggregate.ts";
import { systemClock, wireTime } from "../../src/kernel/clock.ts";
import { openForWriting } from "../../src/kernel/database.ts";
import { Leases } from "../../src/kernel/leases.ts";
import { encode, LogReader, LogWriter, logId } from "../../src/kernel/log.ts";
import { Projections } from "../../src/kernel/projection.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";

/** An event without what every event has, and the lease that begins with it. */
export type Made = Pick<
  Event,
  "event_type" | "payload" | "seq_stream" | "subject" | "workspace_id" | "project_id"
> & { readonly lease?: Lease };

const PER_TRANSACTION = 2_000;

/**
 * Write events into the log of a new home, as many as the source has.
 * @param home MP_HOME of the daemon that will serve it
 * @returns the bytes of all bodies together
 */
export function fill(home: string, source: Iterator<Made>): number {
  mkdirSync(home, { recursive: true, mode: 0o700 });
  const db = openForWriting(join(home, "kernel.db"));
  db.run("PRAGMA synchronous = OFF");
  const log_id = logId(db, systemClock.id, () => wireTime(systemClock.now()));
  const registry = buildRegistry(aggregates, system);
  const projections = new Projections(db, registry, new LogReader(db));
  projections.start(() => {});
  const log = new LogWriter(db, log_id);
  const leases = new Leases(db);
  const actor = { id: "bench", kind: "user" } as const;
  const trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  let bytes = 0;

  for (let next = source.next(), at = 0; !next.done; at += PER_TRANSACTION) {
    const now = systemClock.now();
    const timestamp = wireTime(now);
    db.run("BEGIN IMMEDIATE");
    for (let index = at; !next.done && index < at + PER_TRANSACTION; index++, next = source.next()) {
      const { lease, ...made } = next.value;
      const { kind, id } = made.subject;
      const causality = { command_id: systemClock.id(), idempotency_key: `bench-${index}` };
      const event_id = log.nextId(now);
      const stream = `${kind}/${id}`;
      const { head } = log;
      const place = { prev_hash: head.leaf, seq_global: head.seq_global + 1, schema_version: 1 };
      const encoded = encode({ actor, causality, event_id, stream, timestamp, trace_id, ...place, ...made });
      log.append([encoded]);
      bytes += Buffer.byteLength(encoded.body);
      projections.apply(encoded.event);
      if (lease) leases.changed(stream, undefined, lease, now);
    }
    projections.reached(log.head.seq_global);
    db.run("COMMIT");
    if (at % (25 * PER_TRANSACTION) === 0) db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  db.close();
  return bytes;
}
