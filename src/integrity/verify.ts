/**
 * `log.verify`: check the whole log against itself (SPEC §9). It believes nothing but the stored bytes.
 *
 * For each event: `seq_global` has no gap, `prev_hash` is the leaf hash of the event before, the look-up columns say what
 * the body says, the body passes the schema of its version and that version has an upcaster path. Then: no stream has a gap,
 * the triggers are in place. The first bad position is told. Signatures and the Merkle tree are not here yet.
 */
import type { Database } from "bun:sqlite";
import type { Event } from "../kernel/aggregate.ts";
import { checkSchema, DatabaseRefused } from "../kernel/database.ts";
import { LogReader, leafHash, originHash, storedLogId } from "../kernel/log.ts";
import { type Registry, schemaOf } from "../kernel/registry.ts";
import { matches } from "../kernel/schema.ts";

export interface LogCheck {
  readonly as_of_seq: number;
  readonly ok: boolean;
  readonly log_id: string;
  /** Events that were checked. */
  readonly events: number;
  /** Leaf hash of the last good event. */
  readonly head_hash: string;
  /** The first event that is wrong; seq_global 0 where the fault is not one event's. */
  readonly first_bad: { readonly seq_global: number; readonly problem: string } | null;
}

const PAGE = 5_000;
const decoder = new TextDecoder("utf-8", { fatal: true });

/**
 * Verify a log in one snapshot.
 * @param db a connection that only reads
 * @param registry what event types there are
 * @param progress told how many events of how many are done
 */
export function verifyLog(
  db: Database,
  registry: Registry,
  progress: (done: number, of: number) => void,
): LogCheck {
  return db.transaction(() => {
    const log_id = storedLogId(db) ?? "";
    const reader = new LogReader(db);
    const head = reader.head();
    let hash = originHash(log_id);
    let seq = 0;
    const result = (first_bad: LogCheck["first_bad"]): LogCheck => ({
      as_of_seq: head,
      ok: first_bad === null,
      log_id,
      events: seq,
      head_hash: hash,
      first_bad,
    });
    while (seq < head) {
      const rows = reader.rows(seq, Math.min(head, seq + PAGE));
      for (const row of rows) {
        const wrong = checkRow(registry, row, seq + 1, hash);
        if (wrong) return result({ seq_global: seq + 1, problem: wrong });
        hash = leafHash(row.body);
        seq = row.seq_global;
      }
      if (rows.length === 0) return result({ seq_global: seq + 1, problem: "the event is missing" });
      progress(seq, head);
    }
    const gap = reader.streamWithGap();
    if (gap) return result({ seq_global: 0, problem: `the stream ${gap} has a gap in its seq_stream` });
    try {
      checkSchema(db);
    } catch (error) {
      if (!(error instanceof DatabaseRefused)) throw error;
      return result({ seq_global: 0, problem: error.message });
    }
    return result(null);
  })();
}

type Row = ReturnType<LogReader["rows"]>[number];

/** What is wrong with one stored event; undefined when nothing is. */
function checkRow(registry: Registry, row: Row, seq: number, prev_hash: string): string | undefined {
  if (row.seq_global !== seq) return "the event is missing";
  let event: Event;
  try {
    event = JSON.parse(decoder.decode(row.body)) as Event;
  } catch (error) {
    return `the body is not JSON: ${(error as Error).name}`;
  }
  if (event.prev_hash !== prev_hash) return "prev_hash is not the leaf hash of the event before";
  if (
    event.seq_global !== seq ||
    event.event_id !== row.event_id ||
    event.stream !== row.stream ||
    event.seq_stream !== row.seq_stream ||
    event.event_type !== row.event_type ||
    event.schema_version !== row.schema_version ||
    (event.workspace_id ?? null) !== row.workspace_id ||
    (event.project_id ?? null) !== row.project_id ||
    event.subject.kind !== row.subject_kind
  )
    return "a look-up column differs from the body";
  const entry = registry.events.get(event.event_type);
  const schema = entry && schemaOf(entry.spec, event.schema_version);
  if (!schema)
    return `${event.event_type} version ${event.schema_version} has no path to a version this mp knows`;
  if (!matches(schema, event.payload)) return `the payload breaks the schema of ${event.event_type}`;
  return undefined;
}
