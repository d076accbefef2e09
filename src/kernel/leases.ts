/**
 * Leases (SPEC §8): rights that end by themselves unless they are renewed, one per stream at most.
 *
 * Always holds: that a lease is there, and its epoch, follow from the log; only when it ends is kept here, beside the log, so a
 * renewal leaves no trace and replay needs no clock. Written in the transaction of the command that makes, renews or ends
 * the lease. Turning a lease that has run out into an event is a command like any other (Executor.expire).
 */
import type { Database } from "bun:sqlite";
import type { Lease } from "./aggregate.ts";

/** A lease whose end has passed. */
export interface Due {
  readonly stream: string;
  readonly epoch: number;
}

/** The last renewal of a lease, for its retry. */
export interface Renewal {
  /** Hexadecimal. */
  readonly fingerprint: string;
  readonly receipt: string;
}

/** The leases, on the write connection. Times are milliseconds since the epoch. */
export class Leases {
  constructor(readonly db: Database) {}

  /**
   * After a command on a stream: begin or end its lease, if the command did. A lease of the same epoch goes on as it was.
   * @param before the lease of the state before, undefined when there was none
   */
  changed(stream: string, before: Lease | undefined, after: Lease | undefined, now: number): void {
    if (after === undefined) {
      if (before !== undefined) this.db.query("DELETE FROM leases WHERE stream = ?").run(stream);
      return;
    }
    if (before?.epoch === after.epoch) return;
    const { epoch, ttl_ms, grace = true } = after;
    this.db
      .query(
        "INSERT OR REPLACE INTO leases (stream, epoch, ttl_ms, expires_at, grace) VALUES (?, ?, ?, ?, ?)",
      )
      .run(stream, epoch, ttl_ms, now + ttl_ms, grace ? 1 : 0);
  }

  /**
   * Put off the end of a lease by its ttl from now, and remember the renewal for its retry. What stands in the log is what
   * counts: a lease whose row was lost has one again.
   */
  renew(
    stream: string,
    { epoch, ttl_ms, grace = true }: Lease,
    now: number,
    renewal: Renewal & { readonly principal: string; readonly key: string },
  ): void {
    this.db
      .query(
        `INSERT OR REPLACE INTO leases (stream, epoch, ttl_ms, expires_at, grace, renewal_principal, renewal_key,
         renewal_fingerprint, renewal_receipt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(
        stream,
        epoch,
        ttl_ms,
        now + ttl_ms,
        grace ? 1 : 0,
        renewal.principal,
        renewal.key,
        renewal.fingerprint,
        renewal.receipt,
      );
  }

  /** The renewal that was the last of its lease, by its key. */
  renewed(principal: string, key: string): Renewal | undefined {
    return (
      this.db
        .query<Renewal, [string, string]>(
          `SELECT renewal_fingerprint AS fingerprint, renewal_receipt AS receipt FROM leases
           WHERE renewal_principal = ? AND renewal_key = ? AND renewal_key IS NOT NULL`,
        )
        .get(principal, key) ?? undefined
    );
  }

  /** When the next lease ends; undefined when there is none. */
  next(): number | undefined {
    const row = this.db.query<{ at: number | null }, []>("SELECT min(expires_at) AS at FROM leases").get();
    return row?.at ?? undefined;
  }

  /** Leases whose end has passed, the earliest first, at most so many. */
  due(now: number, limit: number): Due[] {
    return this.db
      .query<Due, [number, number]>(
        "SELECT stream, epoch FROM leases WHERE expires_at <= ? ORDER BY expires_at, stream LIMIT ?",
      )
      .all(now, limit);
  }

  /** Look at a lease again later, if it is still due: it could not be ended now. */
  postpone({ stream, epoch }: Due, until: number): void {
    this.db
      .query("UPDATE leases SET expires_at = ?1 WHERE stream = ?2 AND epoch = ?3 AND expires_at < ?1")
      .run(until, stream, epoch);
  }

  /**
   * Nobody could renew while the daemon was not there: every holder gets one whole ttl from now (SPEC §8). No lease is left
   * with more, as one has that was made or renewed while the clock was ahead.
   */
  grace(now: number): void {
    this.db
      .query("UPDATE leases SET expires_at = ?1 + ttl_ms WHERE grace = 1 OR expires_at > ?1 + ttl_ms")
      .run(now);
  }
}
