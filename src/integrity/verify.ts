/**
 * `log.verify`: check the whole log against itself (SPEC §9). It believes nothing but the stored bytes.
 *
 * For each event: `seq_global` has no gap, the body is an envelope, the look-up columns say what it says, `prev_hash` is
 * the leaf hash of the event before, ids grow, the payload passes the schema of its version, and that version has an
 * upcaster path. Then: no stream has a gap, the triggers are in place. The first bad position is told. Left out, until
 * there are checkpoints: signatures, and with them the bytes of the last event, which no `prev_hash` covers yet.
 * It reads page by page, not in one snapshot: what is in the log never changes, and a long snapshot would keep the
 * WAL from starting over while writers go on.
 */
import type { Database } from "bun:sqlite";
import { Type } from "typebox";
import type { Event } from "../kernel/aggregate.ts";
import { checkSchema, DatabaseRefused } from "../kernel/database.ts";
import { LogReader, leafHash, originHash, storedLogId } from "../kernel/log.ts";
import { type Registry, schemaOf } from "../kernel/registry.ts";
import { Id, matches, object, oneOf, Seq, Sha256, Time } from "../kernel/schema.ts";

export interface LogCheck {
  readonly as_of_seq: number;
  readonly ok: boolean;
  readonly log_id: string;
  /** Events that were checked and are good. */
  readonly events: number;
  /** Leaf hash of the last good event. */
  readonly head_hash: string;
  /** The first event that is wrong; seq_global 0 where the fault is not one event's. */
  readonly first_bad: { readonly seq_global: number; readonly problem: string } | null;
}

/** The envelope of SPEC §4. */
const Envelope = object({
  actor: object({
    id: Type.String(),
    kind: oneOf("user", "session", "system", "ci", "service"),
    on_behalf_of: Type.Optional(object({ id: Type.String(), kind: Type.String() })),
  }),
  causality: object({
    command_id: Id,
    idempotency_key: Type.String(),
    parent_event_id: Type.Optional(Id),
  }),
  event_id: Id,
  event_type: Type.String(),
  payload: Type.Unknown(),
  prev_hash: Sha256,
  project_id: Type.Optional(Type.String()),
  schema_version: Type.Integer({ minimum: 1 }),
  seq_global: Seq,
  seq_stream: Seq,
  stream: Type.String(),
  subject: object({ id: Type.String(), kind: Type.String() }),
  timestamp: Time,
  trace_id: Type.String(),
  workspace_id: Type.Optional(Type.String()),
});

const PAGE = 5_000;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

type Row = ReturnType<LogReader["rows"]>[number];

/** What of the event before an event is checked against. */
interface Before {
  readonly seq_global: number;
  readonly prev_hash: string;
  readonly leaf: string;
  readonly event_id: string;
  readonly command_id: string;
  readonly command_end: number;
}

/**
 * Verify a log as far as it goes now.
 * @param db a connection that only reads
 * @param registry what event types there are
 * @param progress told how many events of how many are done
 */
export function verifyLog(
  db: Database,
  registry: Registry,
  progress: (done: number, of: number) => void,
): LogCheck {
  const log_id = storedLogId(db) ?? "";
  const reader = new LogReader(db);
  const head = reader.head();
  const noted = new Set(reader.versions().map(versionName));
  let before: Before = {
    seq_global: 0,
    prev_hash: "",
    leaf: originHash(log_id),
    event_id: "",
    command_id: "",
    command_end: 1,
  };
  const result = (first_bad: LogCheck["first_bad"]): LogCheck => {
    // The event before may turn out to be the bad one.
    const good = first_bad?.seq_global !== before.seq_global || before.seq_global === 0;
    return {
      as_of_seq: head,
      ok: first_bad === null,
      log_id,
      events: good ? before.seq_global : before.seq_global - 1,
      head_hash: good ? before.leaf : before.prev_hash,
      first_bad,
    };
  };
  while (before.seq_global < head) {
    const rows = reader.rows(before.seq_global, Math.min(head, before.seq_global + PAGE));
    if (rows.length === 0)
      return result({ seq_global: before.seq_global + 1, problem: "the event is missing" });
    for (const row of rows) {
      const found = checkRow(registry, row, before);
      if (typeof found === "string") return result({ seq_global: before.seq_global + 1, problem: found });
      if (found.prev_hash !== before.leaf) return result(brokenChain(reader, row));
      if (!noted.has(versionName(row)))
        return result({
          seq_global: row.seq_global,
          problem: "its type and version are not in event_versions",
        });
      before = {
        seq_global: row.seq_global,
        prev_hash: before.leaf,
        leaf: leafHash(row.body),
        event_id: row.event_id,
        command_id: found.causality.command_id,
        command_end: row.command_end,
      };
    }
    progress(before.seq_global, head);
  }
  if (before.command_end !== 1)
    return result({ seq_global: head, problem: "the last event is not marked as the end of its command" });
  const gap = reader.streamGap(head);
  if (gap !== undefined)
    return result({ seq_global: gap, problem: "seq_stream is not the next of its stream" });
  try {
    checkSchema(db);
  } catch (error) {
    if (!(error instanceof DatabaseRefused)) throw error;
    return result({ seq_global: 0, problem: error.message });
  }
  return result(null);
}

function versionName(row: { readonly event_type: string; readonly schema_version: number }): string {
  return `${row.event_type} ${row.schema_version}`;
}

/** The event in a row that is right in itself; else what is wrong with it. */
function checkRow(registry: Registry, row: Row, before: Before): Event | string {
  if (row.seq_global !== before.seq_global + 1) return "the event is missing";
  const event = parse(row.body);
  if (event === undefined) return "the body is not JSON in UTF-8";
  if (!matches(Envelope, event)) return "the body is not the envelope of an event";
  if (
    event.seq_global !== row.seq_global ||
    event.event_id !== row.event_id ||
    event.stream !== row.stream ||
    event.seq_stream !== row.seq_stream ||
    event.event_type !== row.event_type ||
    event.schema_version !== row.schema_version ||
    (event.workspace_id ?? null) !== row.workspace_id ||
    (event.project_id ?? null) !== row.project_id ||
    event.subject.kind !== row.subject_kind ||
    event.stream !== `${event.subject.kind}/${event.subject.id}`
  )
    return "a look-up column differs from the body";
  if (event.event_id <= before.event_id) return "its event_id is not greater than the one before";
  if ((event.causality.command_id !== before.command_id) !== (before.command_end === 1))
    return "command_end is wrong on the event before, or its command is split";
  const entry = registry.events.get(event.event_type);
  const schema = entry && schemaOf(entry.spec, event.schema_version);
  if (!schema)
    return `${event.event_type} version ${event.schema_version} has no path to a version this mp knows`;
  if (!matches(schema, event.payload)) return `the payload breaks the schema of ${event.event_type}`;
  return event as Event;
}

function parse(body: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(body));
  } catch {
    return undefined;
  }
}

/**
 * A `prev_hash` that is not the leaf hash of the event before: one of the two was changed. When the event after them
 * vouches for the second, it was the first.
 */
function brokenChain(reader: LogReader, row: Row): NonNullable<LogCheck["first_bad"]> {
  const seq = row.seq_global;
  const [next] = reader.rows(seq, seq + 1);
  const after = next && parse(next.body);
  const vouched = matches(Envelope, after) && after.prev_hash === leafHash(row.body);
  return seq > 1 && vouched
    ? { seq_global: seq - 1, problem: "its bytes are not those that the next event was chained to" }
    : {
        seq_global: seq,
        problem: "prev_hash is not the leaf hash of the event before: one of them was changed",
      };
}
