/**
 * `log.verify`: check the whole log against itself (SPEC §9). It believes nothing but the stored bytes.
 *
 * For each event: `seq_global` has no gap, the body is an envelope, the look-up columns say what it says, `prev_hash` is
 * the leaf hash of the event before, ids grow, the payload passes the schema of its version, and that version has an
 * upcaster path. Then: no stream has a gap, the triggers are in place. The first bad position is told. Left out, until
 * there are checkpoints: signatures, and with them the bytes of the last event, which no `prev_hash` covers yet.
 * An event is checked against the stored row before it and nothing else, so ranges of the log can be checked by several
 * at once: where all ranges before one are good, so is the row that it began from.
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
  readonly first_bad: Bad | null;
}

interface Bad {
  readonly seq_global: number;
  readonly problem: string;
}

/** What is verified: the log as far as it went when the verification began. */
export interface Extent {
  readonly log_id: string;
  readonly head: number;
}

/** What is found in a range of the log. */
interface RangeCheck {
  /** The last event that was checked; null when not even the event before the range can be looked at. */
  readonly last: Pick<Before, "seq_global" | "prev_hash" | "leaf"> | null;
  readonly first_bad: Bad | null;
}

/** A part of a verification that needs no other part; `range` is the events with after < seq_global ≤ upTo. */
export type LogTask =
  | { readonly kind: "extent" }
  | { readonly kind: "range"; readonly extent: Extent; readonly after: number; readonly upTo: number }
  /** What is not about one event: the streams and the schema of the database. */
  | { readonly kind: "rest"; readonly extent: Extent };

/** The answer to each kind of part; all of it survives a way between threads. */
export interface LogAnswers {
  readonly extent: Extent;
  readonly range: RangeCheck;
  readonly rest: Bad | null;
}

/** Have the nth thread carry out a part. */
export type AskThread = <K extends keyof LogAnswers>(
  nth: number,
  task: LogTask & { readonly kind: K },
) => Promise<LogAnswers[K]>;

/** Events that a thread takes at a time: a tenth of a second's work, more than starting another thread. */
const RANGE_EVENTS = 16_384;

/**
 * The envelope of SPEC §4 as its RFC 8785 bytes: its members are known, so they stand in this order and in no other form.
 * To look at it with one expression takes half the time of parsing it. Nothing a client sends becomes part of it. What it
 * captures is taken by number, in the order of `Found`: names would double its time.
 */
const PLAIN = '[^"\\\\\\u0000-\\u001f]*';
const TEXT = `"${PLAIN}(?:\\\\.${PLAIN})*"`;
const ID = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";
const NUMBER = "[1-9][0-9]{0,15}";
const ENVELOPE = new RegExp(
  [
    `^{"actor":{"id":${TEXT},"kind":"(?:user|session|system|ci|service)"(?:,"on_behalf_of":{"id":${TEXT},"kind":${TEXT}})?}`,
    `"causality":{"command_id":"(${ID})","idempotency_key":${TEXT}(?:,"parent_event_id":"${ID}")?}`,
    `"event_id":"(${ID})"`,
    `"event_type":"([a-z_]+[.][a-z_]+)"`,
    `"payload":({.*})`,
    `"prev_hash":"([0-9a-f]{64})"(?:,"project_id":"([^" ]+)")?`,
    `"schema_version":(${NUMBER})`,
    `"seq_global":(${NUMBER})`,
    `"seq_stream":(${NUMBER})`,
    `"stream":"(([a-z_]+)/([^" ]+))"`,
    `"subject":{"id":"\\12","kind":"\\11"}`,
    `"timestamp":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{3}Z"`,
    `"trace_id":"[0-9a-f]{32}"(?:,"workspace_id":"([^" ]+)")?}$`,
  ].join(","),
  "s",
);

/** What the expression captures in an envelope, behind the whole of it. */
type Found = readonly [
  whole: string,
  command_id: string,
  event_id: string,
  event_type: string,
  payload: string,
  prev_hash: string,
  project_id: string | undefined,
  schema_version: string,
  seq_global: string,
  seq_stream: string,
  stream: string,
  kind: string,
  id: string,
  workspace_id: string | undefined,
];

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
 * Verify a log as far as it goes now, on this thread.
 * @param db a connection that only reads
 * @param registry what event types there are
 * @param progress told how many events of how many are done
 */
export function verifyLog(
  db: Database,
  registry: Registry,
  progress: (done: number, of: number) => void,
): LogCheck {
  const extent = extentOf(db);
  const check = checkRange(db, registry, extent, 0, extent.head, progress);
  return report(extent, [check], check.first_bad ? null : checkRest(db, extent));
}

/**
 * The same with the same result on several threads, each of which takes the next range when it is done with one.
 * @param ask has a thread carry out a part with `verifyPart`; a thread is asked one thing at a time
 * @param threads how many there may be; the nth is first asked when there is a range for it
 * @param progress told how many events of how many are done
 * @param rangeEvents how many events a range has; a parameter so that a test can have many ranges
 */
export async function verifyLogTogether(
  ask: AskThread,
  threads: number,
  progress: (done: number, of: number) => void,
  rangeEvents: number = RANGE_EVENTS,
): Promise<LogCheck> {
  const extent = await ask(0, { kind: "extent" });
  const ranges = Math.max(1, Math.ceil(extent.head / rangeEvents));
  const checks: RangeCheck[] = [];
  let rest: Bad | null = null;
  // The rest goes first: it takes longer than a range.
  let next = -1;
  let done = 0;
  const work = async (nth: number) => {
    while (next < ranges) {
      const part = next++;
      if (part < 0) {
        rest = await ask(nth, { kind: "rest", extent });
        continue;
      }
      const after = part * rangeEvents;
      const upTo = Math.min(extent.head, after + rangeEvents);
      const check = await ask(nth, { kind: "range", extent, after, upTo });
      checks[part] = check;
      // All before it are asked for; whatever is behind it is not the first.
      if (check.first_bad) next = ranges;
      done += upTo - after;
      progress(done, extent.head);
    }
  };
  await Promise.all(Array.from({ length: Math.min(threads, ranges) }, (_, nth) => work(nth)));
  return report(extent, checks, rest);
}

/**
 * Carry out a part of a verification (SPEC §9).
 * @param db a connection that only reads
 * @param task which part
 * @returns what the part found; `verifyLogTogether` puts them together
 */
export function verifyPart(db: Database, registry: Registry, task: LogTask): LogAnswers[keyof LogAnswers] {
  switch (task.kind) {
    case "extent":
      return extentOf(db);
    case "range":
      return checkRange(db, registry, task.extent, task.after, task.upTo, () => undefined);
    case "rest":
      return checkRest(db, task.extent);
  }
}

function extentOf(db: Database): Extent {
  return { log_id: storedLogId(db) ?? "", head: new LogReader(db).head() };
}

/** The result, from what is found in the ranges; those behind the first bad one may be missing. */
function report({ log_id, head }: Extent, checks: readonly RangeCheck[], rest: Bad | null): LogCheck {
  const bad = checks.findIndex((check) => check?.first_bad);
  const nth = bad < 0 ? checks.length - 1 : bad;
  const first_bad = checks[nth]!.first_bad ?? rest;
  const last = (checks[nth]!.last ?? checks[nth - 1]!.last)!;
  // The last one that was checked may turn out to be the bad one.
  const good = first_bad?.seq_global !== last.seq_global || last.seq_global === 0;
  return {
    as_of_seq: head,
    ok: first_bad === null,
    log_id,
    events: good ? last.seq_global : last.seq_global - 1,
    head_hash: good ? last.leaf : last.prev_hash,
    first_bad,
  };
}

/** Check the events with after < seq_global ≤ upTo, the first of them against the one before it. */
function checkRange(
  db: Database,
  registry: Registry,
  { log_id, head }: Extent,
  after: number,
  upTo: number,
  progress: (done: number, of: number) => void,
): RangeCheck {
  const reader = new LogReader(db);
  const noted = new Set(reader.versions().map((each) => `${each.event_type} ${each.schema_version}`));
  const first = startOf(reader, log_id, after);
  if (typeof first === "string") return { last: null, first_bad: { seq_global: after + 1, problem: first } };
  let before = first;
  const result = (first_bad: Bad | null): RangeCheck => {
    const { seq_global, prev_hash, leaf } = before;
    return { last: { seq_global, prev_hash, leaf }, first_bad };
  };
  const bad = (problem: string) => result({ seq_global: before.seq_global + 1, problem });
  while (before.seq_global < upTo) {
    const rows = readable(reader, before.seq_global, Math.min(upTo, before.seq_global + PAGE));
    if (typeof rows === "string") return bad(rows);
    if (rows.length === 0) return bad("the event is missing");
    for (const row of rows) {
      const found = checkRow(registry, row, before);
      if (typeof found === "string") return bad(found);
      const [, command_id, event_id, event_type, , prev_hash, , schema_version] = found;
      if (prev_hash !== before.leaf) return result(brokenChain(reader, row));
      if (!noted.has(`${event_type} ${schema_version}`))
        return bad("its type and version are not in event_versions");
      before = {
        seq_global: row.seq_global,
        prev_hash,
        leaf: leafHash(row.body),
        event_id,
        command_id,
        command_end: row.command_end,
      };
    }
    progress(before.seq_global, head);
  }
  if (upTo === head && before.command_end !== 1)
    return result({ seq_global: head, problem: "the last event is not marked as the end of its command" });
  return result(null);
}

/**
 * What the first event of a range is checked against: the event before, as it is stored, or the origin.
 * A sentence when it is not to be had. Whether it is good is for the range that ends with it to say.
 */
function startOf(reader: LogReader, log_id: string, seq: number): Before | string {
  if (seq === 0)
    return {
      seq_global: 0,
      prev_hash: "",
      leaf: originHash(log_id),
      event_id: "",
      command_id: "",
      command_end: 1,
    };
  const rows = readable(reader, seq - 1, seq);
  if (typeof rows === "string") return rows;
  const [row] = rows;
  const found = row && envelope(decoded(row.body));
  if (!found) return "the event before it cannot be looked at";
  const [, command_id, event_id, , , prev_hash] = found;
  const { seq_global, command_end } = row;
  return { seq_global, prev_hash, leaf: leafHash(row.body), event_id, command_id, command_end };
}

/** What is wrong with the streams, with an index or with the schema; null when nothing is. */
function checkRest(db: Database, { head }: Extent): Bad | null {
  try {
    const gap = new LogReader(db).streamGap(head);
    if (gap !== undefined) return { seq_global: gap, problem: "seq_stream is not the next of its stream" };
    checkSchema(db);
    return null;
  } catch (error) {
    if (isStorageError(error))
      return { seq_global: 0, problem: `an index of the log cannot be read (${error.code})` };
    if (!(error instanceof DatabaseRefused)) throw error;
    return { seq_global: 0, problem: error.message };
  }
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
  const found = envelope(text);
  if (text === undefined || !found)
    return parsed(text) === undefined
      ? "the body is not JSON in UTF-8"
      : "the body is not a canonical envelope";
  const [
    ,
    command_id,
    event_id,
    event_type,
    payload_text,
    ,
    project_id = "",
    schema_version,
    seq_global,
    seq_stream,
    stream,
    kind,
    ,
    workspace_id = "",
  ] = found;
  const columns = `${event_id} ${stream} ${seq_stream} ${event_type} ${schema_version} ${workspace_id} ${project_id} ${kind}`;
  if (Number(seq_global) !== row.seq_global || columns !== row.columns)
    return "a look-up column differs from the body";
  if (event_id <= before.event_id) return "its event_id is not greater than the one before";
  if ((command_id !== before.command_id) !== (before.command_end === 1))
    return "command_end is wrong on the event before, or its command is split";
  const entry = registry.events.get(event_type);
  const schema = entry && schemaOf(entry.spec, Number(schema_version));
  if (!schema) return `${event_type} version ${schema_version} has no path to a version this mp knows`;
  // The rest of the text is known to be JSON, but for escapes.
  const payload = parsed(text.includes("\\") ? text : payload_text);
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

function envelope(text: string | undefined): Found | undefined {
  return text === undefined ? undefined : ((ENVELOPE.exec(text) as Found | null) ?? undefined);
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
function brokenChain(reader: LogReader, row: Row): Bad {
  const seq = row.seq_global;
  const [next] = reader.rows(seq, seq + 1);
  const after = next && envelope(decoded(next.body))?.[5];
  return seq > 1 && after === leafHash(row.body)
    ? { seq_global: seq - 1, problem: "its bytes are not those that the next event was chained to" }
    : {
        seq_global: seq,
        problem: "prev_hash is not the leaf hash of the event before: one of them was changed",
      };
}
