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
import { checkSchema, DatabaseRefused, isStorageError } from "../kernel/database.ts";
import { LogReader, leafHash, originHash, type Row, storedLogId } from "../kernel/log.ts";
import { type Registry, schemaOf } from "../kernel/registry.ts";
import { matches } from "../kernel/schema.ts";

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

/**
 * The envelope of SPEC §4 as its RFC 8785 bytes: its members are known, so they stand in this order and in no other form.
 * To look at it with one expression takes half the time of parsing it. Nothing a client sends becomes part of it.
 */
const TEXT = '"(?:[^"\\\\\\u0000-\\u001f]|\\\\.)*"';
const ID = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
const NUMBER = "[1-9][0-9]{0,15}";
const ENVELOPE = new RegExp(
  [
    `^{"actor":{"id":${TEXT},"kind":"(?:user|session|system|ci|service)"(?:,"on_behalf_of":{"id":${TEXT},"kind":${TEXT}})?}`,
    `"causality":{"command_id":"(?<command_id>${ID})","idempotency_key":${TEXT}(?:,"parent_event_id":"${ID}")?}`,
    `"event_id":"(?<event_id>${ID})"`,
    `"event_type":"(?<event_type>[a-z_]+[.][a-z_]+)"`,
    `"payload":(?<payload>{.*})`,
    `"prev_hash":"(?<prev_hash>[0-9a-f]{64})"(?:,"project_id":"(?<project_id>[^" ]+)")?`,
    `"schema_version":(?<schema_version>${NUMBER})`,
    `"seq_global":(?<seq_global>${NUMBER})`,
    `"seq_stream":(?<seq_stream>${NUMBER})`,
    `"stream":"(?<stream>(?<kind>[a-z_]+)/(?<id>[^" ]+))"`,
    `"subject":{"id":"\\k<id>","kind":"\\k<kind>"}`,
    `"timestamp":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z"`,
    `"trace_id":"[0-9a-f]{32}"(?:,"workspace_id":"(?<workspace_id>[^" ]+)")?}$`,
  ].join(","),
  "s",
);

/** What the expression finds in an envelope. */
interface Found {
  readonly command_id: string;
  readonly event_id: string;
  readonly event_type: string;
  readonly payload: string;
  readonly prev_hash: string;
  readonly project_id?: string;
  readonly schema_version: string;
  readonly seq_global: string;
  readonly seq_stream: string;
  readonly stream: string;
  readonly kind: string;
  readonly workspace_id?: string;
}

const PAGE = 256;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

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
  const noted = new Set(reader.versions().map((each) => `${each.event_type} ${each.schema_version}`));
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
    const rows = readable(reader, before.seq_global, Math.min(head, before.seq_global + PAGE));
    if (typeof rows === "string") return result({ seq_global: before.seq_global + 1, problem: rows });
    if (rows.length === 0)
      return result({ seq_global: before.seq_global + 1, problem: "the event is missing" });
    for (const row of rows) {
      const found = checkRow(registry, row, before);
      if (typeof found === "string") return result({ seq_global: before.seq_global + 1, problem: found });
      if (found.prev_hash !== before.leaf) return result(brokenChain(reader, row));
      if (!noted.has(`${found.event_type} ${found.schema_version}`))
        return result({
          seq_global: row.seq_global,
          problem: "its type and version are not in event_versions",
        });
      before = {
        seq_global: row.seq_global,
        prev_hash: before.leaf,
        leaf: leafHash(row.body),
        event_id: found.event_id,
        command_id: found.command_id,
        command_end: row.command_end,
      };
    }
    progress(before.seq_global, head);
  }
  if (before.command_end !== 1)
    return result({ seq_global: head, problem: "the last event is not marked as the end of its command" });
  try {
    const gap = reader.streamGap(head);
    if (gap !== undefined)
      return result({ seq_global: gap, problem: "seq_stream is not the next of its stream" });
    checkSchema(db);
  } catch (error) {
    if (isStorageError(error))
      return result({ seq_global: 0, problem: `an index of the log cannot be read (${error.code})` });
    if (!(error instanceof DatabaseRefused)) throw error;
    return result({ seq_global: 0, problem: error.message });
  }
  return result(null);
}

/** The rows of a page, or of its readable beginning; a sentence when not even the first can be read. */
function readable(reader: LogReader, after: number, upTo: number): Row[] | string {
  try {
    return reader.rows(after, upTo);
  } catch (error) {
    if (!isStorageError(error)) throw error;
    if (upTo - after === 1) return `the database cannot be read here (${error.code})`;
    return readable(reader, after, after + ((upTo - after) >>> 1));
  }
}

/** What is in a row that is right in itself; else what is wrong with it. */
function checkRow(registry: Registry, row: Row, before: Before): Found | string {
  if (row.seq_global !== before.seq_global + 1) return "the event is missing";
  const text = decoded(row.body);
  const found = text === undefined ? undefined : (ENVELOPE.exec(text)?.groups as Found | undefined);
  if (text === undefined || !found)
    return parsed(text) === undefined
      ? "the body is not JSON in UTF-8"
      : "the body is not a canonical envelope";
  const { event_id, event_type, schema_version, stream, kind } = found;
  const columns = `${event_id} ${stream} ${found.seq_stream} ${event_type} ${schema_version} ${found.workspace_id ?? ""} ${
    found.project_id ?? ""
  } ${kind}`;
  if (Number(found.seq_global) !== row.seq_global || columns !== row.columns)
    return "a look-up column differs from the body";
  if (event_id <= before.event_id) return "its event_id is not greater than the one before";
  if ((found.command_id !== before.command_id) !== (before.command_end === 1))
    return "command_end is wrong on the event before, or its command is split";
  const entry = registry.events.get(event_type);
  const schema = entry && schemaOf(entry.spec, Number(schema_version));
  if (!schema) return `${event_type} version ${schema_version} has no path to a version this mp knows`;
  // The rest of the text is known to be JSON, but for escapes.
  const payload = parsed(text.includes("\\") ? text : found.payload);
  if (payload === undefined) return "the body is not JSON in UTF-8";
  const value = text.includes("\\") ? (payload as { payload: unknown }).payload : payload;
  return matches(schema, value) ? found : `the payload breaks the schema of ${event_type}`;
}

function decoded(body: Uint8Array): string | undefined {
  try {
    return decoder.decode(body);
  } catch {
    return undefined;
  }
}

function parsed(text: string | undefined): unknown {
  try {
    return text === undefined ? undefined : JSON.parse(text);
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
  const after = next && ENVELOPE.exec(decoded(next.body) ?? "")?.groups?.prev_hash;
  return seq > 1 && after === leafHash(row.body)
    ? { seq_global: seq - 1, problem: "its bytes are not those that the next event was chained to" }
    : {
        seq_global: seq,
        problem: "prev_hash is not the leaf hash of the event before: one of them was changed",
      };
}
