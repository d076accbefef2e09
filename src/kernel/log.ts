/**
 * The log: append and read. The only SQL on `events` (SPEC §4, §5).
 *
 * Always holds: a body is encoded once, hashed, and stored as those bytes; `seq_global` and `seq_stream` have no gap;
 * each `prev_hash` is the leaf hash of the event before; event ids grow along the log, so no index is needed to find
 * one. Nothing here begins or ends a transaction, and nothing here knows what an event means.
 */
import type { Database, Statement } from "bun:sqlite";
import type { Event } from "./aggregate.ts";
import { canonical } from "./canonical.ts";
import { growingIds, timeOfId } from "./clock.ts";

/** The largest event, in bytes (SPEC §4). */
export const MAX_EVENT_BYTES = 61_440;

/** An event as a reader of the log gets it: its place and its canonical JSON. */
export interface Text {
  readonly seq_global: number;
  readonly body: string;
}

/** The same with what it takes to convert it. */
export interface Line extends Text {
  readonly event_type: string;
  readonly schema_version: number;
}

/** The same with where it stands: whose it is, and in which stream. */
export interface Placed extends Line {
  readonly stream: string;
  readonly seq_stream: number;
  readonly workspace_id: string | null;
  readonly project_id: string | null;
}

/** An event as it is stored: its line, and the parts of it that filters look at. */
export interface Stored extends Placed {
  readonly event_id: string;
  readonly subject_kind: string;
  /** 1 on the last event of a command. */
  readonly command_end: 0 | 1;
}

/** An event that is encoded and hashed but not yet stored. */
export interface Encoded {
  readonly event: Event;
  readonly body: string;
  /** Length of the body in UTF-8 bytes. */
  readonly size: number;
  readonly leaf: string;
}

/** Where the log ends. */
export interface Head {
  readonly seq_global: number;
  /** Leaf hash of the last event, hexadecimal; of the origin when there is none. */
  readonly leaf: string;
}

const LEAF = new Uint8Array([0]);

/** SHA-256(0x00 ‖ bytes), hexadecimal: the RFC 6962 leaf hash of an event (SPEC §4). Text counts as its UTF-8 bytes. */
export function leafHash(bytes: Uint8Array | string): string {
  return new Bun.CryptoHasher("sha256").update(LEAF).update(bytes).digest("hex");
}

/** The origin that names a log in its first `prev_hash` and in its checkpoints. */
export function origin(log_id: string): string {
  return `mp.local/${log_id}/events`;
}

/** The `prev_hash` of the first event: SHA-256(origin), hexadecimal. */
export function originHash(log_id: string): string {
  return new Bun.CryptoHasher("sha256").update(origin(log_id)).digest("hex");
}

/**
 * Encode an event.
 * @param event the whole envelope, with its place in the chain
 * @returns its bytes and leaf hash; the caller checks the size against MAX_EVENT_BYTES
 */
export function encode(event: Event): Encoded {
  const body = canonical(event);
  return { event, body, size: Buffer.byteLength(body), leaf: leafHash(body) };
}

/** Create the log's identity if it has none yet, and tell it. */
export function logId(db: Database, fresh: () => string, now: () => string): string {
  const found = storedLogId(db);
  if (found) return found;
  db.query("INSERT INTO log (only, log_id, created_at) VALUES (1, ?, ?)").run(fresh(), now());
  return storedLogId(db)!;
}

/** The log's id, or undefined in a database that no daemon has served yet. */
export function storedLogId(db: Database): string | undefined {
  return db.query<{ log_id: string }, []>("SELECT log_id FROM log").get()?.log_id;
}

/** The appending side. One per process, on the write connection. */
export class LogWriter {
  #head: Head;
  /** The next event id, from the time now in ms: greater than any in the log. */
  readonly nextId: (now: number) => string;
  readonly #insert: Statement;
  readonly #version: Statement;
  readonly #versions = new Set<string>();

  constructor(
    readonly db: Database,
    readonly log_id: string,
  ) {
    this.#insert = db.query(
      `INSERT INTO events (seq_global, event_id, stream, seq_stream, event_type, schema_version, workspace_id,
         project_id, subject_kind, command_end, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS BLOB))`,
    );
    this.#version = db.query(
      "INSERT OR IGNORE INTO event_versions (event_type, schema_version) VALUES (?, ?)",
    );
    this.#head = this.#readHead();
    this.nextId = growingIds(
      db.query<{ id: string }, []>("SELECT event_id AS id FROM events ORDER BY seq_global DESC LIMIT 1").get()
        ?.id,
    );
  }

  get head(): Head {
    return this.#head;
  }

  /**
   * Store what `encode` made. Each must come right after the head.
   * @returns the rows, in order, the last one marked as the end of its command
   */
  append(events: readonly Encoded[]): Stored[] {
    return events.map(({ event, body, leaf }, index) => {
      const row: Stored = {
        seq_global: event.seq_global,
        event_id: event.event_id,
        stream: event.stream,
        seq_stream: event.seq_stream,
        event_type: event.event_type,
        schema_version: event.schema_version,
        workspace_id: event.workspace_id ?? null,
        project_id: event.project_id ?? null,
        subject_kind: event.subject.kind,
        command_end: index === events.length - 1 ? 1 : 0,
        body,
      };
      const version = `${row.event_type} ${row.schema_version}`;
      if (!this.#versions.has(version)) {
        this.#version.run(row.event_type, row.schema_version);
        this.#versions.add(version);
      }
      this.#insert.run(
        row.seq_global,
        row.event_id,
        row.stream,
        row.seq_stream,
        row.event_type,
        row.schema_version,
        row.workspace_id,
        row.project_id,
        row.subject_kind,
        row.command_end,
        // Bound as text, stored as its UTF-8 bytes: one copy less than encoding it here.
        body,
      );
      this.#head = { seq_global: row.seq_global, leaf };
      return row;
    });
  }

  /** After a rollback: forget what was not stored. */
  rolledBack(): void {
    this.#versions.clear();
    this.#head = this.#readHead();
  }

  #readHead(): Head {
    const last = this.db
      .query<{ seq_global: number; body: Uint8Array }, []>(
        "SELECT seq_global, body FROM events ORDER BY seq_global DESC LIMIT 1",
      )
      .get();
    return last
      ? { seq_global: last.seq_global, leaf: leafHash(last.body) }
      : { seq_global: 0, leaf: originHash(this.log_id) };
  }
}

/** What a reader wants to see; absent members let everything through. Members combine with AND (SPEC §5). */
export interface Filter {
  /** Exact event types: globs are resolved before. */
  readonly types?: readonly string[];
  readonly streams?: readonly string[];
  readonly workspace_id?: string;
  readonly project_id?: string;
  readonly subject_kind?: string;
}

const TEXT = "seq_global, CAST(body AS TEXT) AS body";
const LINE = "seq_global, event_type, schema_version, CAST(body AS TEXT) AS body";
const PLACED = `stream, seq_stream, workspace_id, project_id, ${LINE}`;

/** A row as verification wants it: one text of look-up columns is read three times as fast as eight columns. */
export interface Row {
  readonly seq_global: number;
  readonly command_end: number;
  /** event_id, stream, seq_stream, event_type, schema_version, workspace_id, project_id, subject_kind, with a space between. */
  readonly columns: string;
  readonly body: Uint8Array;
}

/** The reading side: any number, on connections that cannot write. */
export class LogReader {
  readonly #head: Statement<{ seq: number | null }, []>;
  readonly #boundary: Statement<{ seq: number }, [number]>;
  readonly #stream: Statement<Line, [string, number]>;
  readonly #idAt: Statement<{ event_id: string }, [number]>;
  readonly #bodies: Statement<{ body: Uint8Array }, [number, number]>;

  readonly #rows: Statement<Row, [number, number]>;

  constructor(readonly db: Database) {
    this.#rows = db.query(
      `SELECT seq_global, command_end, event_id || ' ' || stream || ' ' || seq_stream || ' ' || event_type || ' ' ||
         schema_version || ' ' || coalesce(workspace_id, '') || ' ' || coalesce(project_id, '') || ' ' ||
         subject_kind AS columns, body
       FROM events WHERE seq_global > ?1 AND seq_global <= ?2 ORDER BY seq_global LIMIT ?2 - ?1`,
    );
    this.#head = db.query("SELECT max(seq_global) AS seq FROM events");
    this.#boundary = db.query(
      "SELECT seq_global AS seq FROM events WHERE seq_global >= ? AND command_end = 1 ORDER BY seq_global LIMIT 1",
    );
    this.#stream = db.query(
      `SELECT ${LINE} FROM events WHERE stream = ? AND seq_stream > ? ORDER BY seq_stream`,
    );
    this.#idAt = db.query("SELECT event_id FROM events WHERE seq_global = ?");
    this.#bodies = db.query(
      "SELECT body FROM events WHERE seq_global > ? AND seq_global <= ? ORDER BY seq_global",
    );
  }

  /** `seq_global` of the last event, 0 in an empty log. */
  head(): number {
    return this.#head.get()?.seq ?? 0;
  }

  /** The end of the command that the event at `seq` belongs to: where a page may stop. */
  boundary(seq: number): number {
    return this.#boundary.get(seq)?.seq ?? this.head();
  }

  /** The matching events with after < seq_global ≤ upTo, in order, at most `limit` (−1: all). */
  range(after: number, upTo: number, filter: Filter = {}, limit = -1): Line[] {
    return this.#select<Line>(LINE, after, upTo, filter, limit);
  }

  /** Like `range` and cheaper, for who takes events as they are stored. */
  texts(after: number, upTo: number, filter: Filter = {}, limit = -1): Text[] {
    return this.#select<Text>(TEXT, after, upTo, filter, limit);
  }

  /** Like `range`, with where each event stands. */
  placed(after: number, upTo: number, filter: Filter = {}): Placed[] {
    return this.#select<Placed>(PLACED, after, upTo, filter, -1);
  }

  #select<L>(columns: string, after: number, upTo: number, filter: Filter, limit: number): L[] {
    const { where, values } = conditions(filter);
    return this.db
      .query<L, (string | number)[]>(
        `SELECT ${columns} FROM events WHERE seq_global > ? AND seq_global <= ?${where} ORDER BY seq_global LIMIT ?`,
      )
      .all(after, upTo, ...values, limit);
  }

  /** The stored bytes of all events with after < seq_global ≤ upTo, in order, with nothing else read. */
  bodies(after: number, upTo: number): Uint8Array[] {
    return this.#bodies.all(after, upTo).map((row) => row.body);
  }

  /** Whole rows as stored, for verification. The page of the file behind the last one is not looked at. */
  rows(after: number, upTo: number): Row[] {
    return this.#rows.all(after, upTo);
  }

  /** The first event up to a position whose `seq_stream` is not 1, 2, 3 … along its stream; undefined when none is. */
  streamGap(upTo: number): number | undefined {
    // Both in the order of the index on (stream, seq_stream), so nothing is sorted. The first is five times as fast.
    const broken = this.db
      .query<{ stream: string }, [number]>(
        `SELECT stream FROM events WHERE +seq_global <= ? GROUP BY stream
         HAVING min(seq_stream) <> 1 OR max(seq_stream) <> count(*) LIMIT 1`,
      )
      .get(upTo);
    if (!broken) return undefined;
    const found = this.db
      .query<{ seq: number | null }, [number]>(
        `SELECT min(seq_global) AS seq FROM (
           SELECT seq_global, seq_stream - lag(seq_stream, 1, 0) OVER stream AS step,
             seq_global - lag(seq_global, 1, 0) OVER stream AS onward
           FROM events WHERE +seq_global <= ? WINDOW stream AS (PARTITION BY stream ORDER BY seq_stream))
         WHERE step <> 1 OR onward <= 0`,
      )
      .get(upTo);
    return found?.seq ?? undefined;
  }

  /** The events of one stream after a `seq_stream`. */
  stream(stream: string, after = 0): Line[] {
    return this.#stream.all(stream, after);
  }

  byId(event_id: string): Line | undefined {
    const seq = this.#first((id) => id >= event_id);
    return this.#idAt.get(seq)?.event_id === event_id ? this.range(seq - 1, seq)[0] : undefined;
  }

  /** `seq_global` of the first event at or after a time in ms; one past the end when there is none. */
  firstSince(time: number): number {
    return this.#first((id) => timeOfId(id) >= time);
  }

  /** Bisection: event ids grow along the log. */
  #first(reached: (event_id: string) => boolean): number {
    let low = 1;
    let high = this.head() + 1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (reached(this.#idAt.get(middle)!.event_id)) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Every (type, version) that was ever stored. */
  versions(): { event_type: string; schema_version: number }[] {
    return this.db
      .query<{ event_type: string; schema_version: number }, []>(
        "SELECT event_type, schema_version FROM event_versions ORDER BY event_type, schema_version",
      )
      .all();
  }
}

function conditions(filter: Filter): { where: string; values: string[] } {
  let where = "";
  const values: string[] = [];
  const among = (column: string, wanted: readonly string[] | undefined) => {
    if (!wanted) return;
    // "+": never by an index, which would look through a whole stream for each window of positions.
    where += ` AND +${column} IN (SELECT value FROM json_each(?))`;
    values.push(JSON.stringify(wanted));
  };
  among("event_type", filter.types);
  among("stream", filter.streams);
  among("workspace_id", filter.workspace_id === undefined ? undefined : [filter.workspace_id]);
  among("project_id", filter.project_id === undefined ? undefined : [filter.project_id]);
  among("subject_kind", filter.subject_kind === undefined ? undefined : [filter.subject_kind]);
  return { where, values };
}

/** The same filter for an event that is in memory. */
export function passes(filter: Filter, row: Stored): boolean {
  return (
    (!filter.types || filter.types.includes(row.event_type)) &&
    (!filter.streams || filter.streams.includes(row.stream)) &&
    (filter.workspace_id === undefined || filter.workspace_id === row.workspace_id) &&
    (filter.project_id === undefined || filter.project_id === row.project_id) &&
    (filter.subject_kind === undefined || filter.subject_kind === row.subject_kind)
  );
}
