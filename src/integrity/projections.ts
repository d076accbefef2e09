/**
 * `projection.verify`: every read model rebuilt into a scratch database and compared with the serving one, row for row,
 * by digest (SPEC §6). It believes the log and nothing else.
 */
import type { Database } from "bun:sqlite";
import type { AnyAggregate, Event } from "../kernel/aggregate.ts";
import { isStorageError } from "../kernel/database.ts";
import type { LogReader } from "../kernel/log.ts";
import { applyTo, READ_EVENTS, STEP_EVENTS } from "../kernel/projection.ts";
import type { Registry } from "../kernel/registry.ts";
import { createTables, digest, rowsOf } from "../kernel/table.ts";

const decoder = new TextDecoder();

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

/** The bodies of a range of the log, read a few at a time. */
function* bodies(log: LogReader, after: number, upTo: number): Generator<Uint8Array> {
  for (let at = after; at < upTo; at += READ_EVENTS) yield* log.bodies(at, Math.min(upTo, at + READ_EVENTS));
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
