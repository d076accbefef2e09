/**
 * The writer thread: the only write connection of the process (SPEC §7, rule 6; §11).
 *
 * It takes batches from the front (queue.ts), runs each in one transaction (kernel/execute.ts), and answers after the
 * commit is durable; whatever queued up meanwhile is the next batch. Between batches it goes on with
 * rebuilds in short steps and moves the WAL into the database. It knows no socket and no caller.
 */
import { statSync } from "node:fs";
import { aggregates } from "../domain/index.ts";
import { systemClock, wireTime } from "../kernel/clock.ts";
import { DatabaseRefused, openForWriting } from "../kernel/database.ts";
import { Executor, OutcomeUnknown, type WriteRequest } from "../kernel/execute.ts";
import { LogReader, LogWriter, logId } from "../kernel/log.ts";
import { Projections } from "../kernel/projection.ts";
import { buildRegistry, versionsWithoutPath } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";
import { encodeMessage, type FromWriter, type ToWriter } from "./messages.ts";

/** From this size on the WAL is moved into the database between two batches. */
const WAL_BYTES = 8 << 20;
/** How many batches pass between two looks at its size. */
const WAL_LOOK_BATCHES = 64;

const say = (message: FromWriter) => self.postMessage(encodeMessage(message));
const text = (error: unknown) => (error instanceof Error ? (error.stack ?? error.message) : String(error));

function open(database: string, start_id: string) {
  const registry = buildRegistry(aggregates, system);
  const db = openForWriting(database);
  const reader = new LogReader(db);
  const without = versionsWithoutPath(registry, reader.versions());
  if (without.length > 0) throw new DatabaseRefused(without.join("; "));
  const log_id = logId(db, systemClock.id, () => wireTime(systemClock.now()));
  const projections = new Projections(db, registry, reader);
  projections.start((name, done, of) => say({ kind: "progress", name, done, of }));
  const log = new LogWriter(db, log_id);
  const bug = (trace_id: string, error: unknown) => say({ kind: "bug", trace_id, error: text(error) });
  const executor = new Executor(db, registry, log, reader, projections, systemClock, start_id, bug);

  let batches = 0;
  function tidy() {
    if (++batches % WAL_LOOK_BATCHES !== 0) return;
    const { size } = statSync(`${database}-wal`);
    if (size > WAL_BYTES) db.run("PRAGMA wal_checkpoint(PASSIVE)");
  }

  let rebuilding = false;
  /** One short step, then whatever the front has sent meanwhile, then the next. */
  function goOn() {
    const name = projections.step();
    rebuilding = name !== undefined;
    say({ kind: "projections", projections: projections.status() });
    tidy();
    if (rebuilding) setImmediate(goOn);
  }

  return {
    log_id,
    projections,
    write(id: number, requests: readonly WriteRequest[]) {
      try {
        const committed = executor.run(requests);
        say({ kind: "committed", id, ...committed });
        for (const effect of committed.effects)
          if (effect.kind === "rebuild") {
            for (const name of effect.projections) projections.rebuild(name);
            say({ kind: "projections", projections: projections.status() });
            if (!rebuilding) setImmediate(goOn);
            rebuilding = true;
          }
        tidy();
      } catch (error) {
        if (!(error instanceof OutcomeUnknown)) throw error;
        say({ kind: "lost", id, error: text(error.cause) });
      }
    },
    close() {
      db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      db.close();
    },
  };
}

let opened: ReturnType<typeof open> | undefined;

self.onmessage = (message: MessageEvent<string>) => {
  const data = JSON.parse(message.data) as ToWriter;
  switch (data.kind) {
    case "open":
      try {
        opened = open(data.database, data.start_id);
        say({ kind: "ready", log_id: opened.log_id, projections: opened.projections.status() });
      } catch (error) {
        say({ kind: "refused", message: error instanceof DatabaseRefused ? error.message : text(error) });
      }
      break;
    case "write":
      opened!.write(data.id, data.requests);
      break;
    case "close":
      opened?.close();
      say({ kind: "closed" });
  }
};
