/**
 * The table of what the artifact store has (SPEC §8), on the writer's connection. A row says that bytes are on the disk, with
 * their digest checked: it is written after the file and deleted before it. Not state: it is neither in the log nor replayed.
 */
import { type Database, SQLiteError } from "bun:sqlite";
import type { Stored } from "../kernel/log.ts";

/** A change that the store asks of the writer. `stored_at` (milliseconds) tells the row that was seen from a later one. */
export type BlobChange =
  /** The file is there. */
  | { readonly what: "add"; readonly digest: string; readonly size: number }
  /** The file is there and had lost its row. */
  | { readonly what: "find"; readonly digest: string; readonly size: number; readonly stored_at: number }
  /** Nobody wants the bytes, as far as was seen: forget them unless an artifact has them by now. */
  | { readonly what: "release"; readonly digest: string; readonly stored_at: number }
  /** The file is gone. */
  | { readonly what: "lose"; readonly digest: string; readonly stored_at: number };

/** What came of changes: whether each made a row more or less, or SQLite's code when nothing could be written. */
export type BlobsChanged = { readonly changed: readonly boolean[] } | { readonly refused: string };

export class Blobs {
  constructor(readonly db: Database) {}

  /**
   * Carry out changes in one transaction, durably.
   * @param now milliseconds since the epoch
   * @param readable whether the artifacts' read model is complete, so that it can be said that nobody wants something
   * @throws SQLiteError when it is not known what is on the disk: the process must end (SPEC §11)
   */
  change(changes: readonly BlobChange[], now: number, readable: boolean): BlobsChanged {
    const all = () => changes.map((change) => this.#change(change, now, readable));
    try {
      return { changed: this.db.transaction(all).immediate() };
    } catch (error) {
      const code = error instanceof SQLiteError ? (error.code ?? "") : "";
      if (!/^SQLITE_(FULL|BUSY|READONLY)/.test(code)) throw error;
      return { refused: code };
    }
  }

  #change(change: BlobChange, now: number, readable: boolean): boolean {
    const { digest } = change;
    if (change.what === "add" || change.what === "find") {
      const { changes: added } = this.db
        .query("INSERT OR IGNORE INTO blobs (digest, size, stored_at) VALUES (?, ?, ?)")
        .run(digest, change.size, change.what === "find" ? Math.min(change.stored_at, now) : now);
      // Sent once more: whoever did it has all the time again to register them.
      if (added === 0 && change.what === "add")
        this.db.query("UPDATE blobs SET stored_at = ? WHERE digest = ?").run(now, digest);
      return added > 0;
    }
    if (change.what === "release" && (!readable || this.#wanted(digest))) return false;
    const gone = this.db.query("DELETE FROM blobs WHERE digest = ? AND stored_at = ?");
    return gone.run(digest, change.stored_at).changes > 0;
  }

  #wanted(digest: string): boolean {
    return (
      this.db
        .query("SELECT 1 FROM artifacts WHERE digest = ? AND status = 'available' LIMIT 1")
        .get(digest) !== null
    );
  }

  /** Whether bytes were sent again after the last artifact of them was registered: they wait for the next one. */
  #sentAgain(digest: string): boolean {
    const found = this.db
      .query<{ stored_at: number; registered_at: string | null }, [string]>(
        `SELECT stored_at,
           (SELECT a.created_at FROM artifacts a WHERE a.digest = b.digest AND a.status = 'expired'
            ORDER BY a.artifact_id DESC LIMIT 1) AS registered_at
         FROM blobs b WHERE digest = ?`,
      )
      .get(digest);
    return found !== null && found.stored_at > Date.parse(found.registered_at ?? "");
  }

  /**
   * Artifacts have expired: forget the bytes that no other artifact has, unless they were sent again meanwhile.
   * @param events what was just committed
   * @returns the digests that were forgotten
   */
  expired(events: readonly Stored[]): string[] {
    const ids = events
      .filter((event) => event.event_type === "artifact.expired")
      .map((event) => event.stream.slice("artifact/".length));
    if (ids.length === 0) return [];
    const artifact = this.db.query<{ digest: string }, [string]>(
      "SELECT digest FROM artifacts WHERE artifact_id = ?",
    );
    const digests = new Set(ids.flatMap((id) => artifact.get(id)?.digest ?? []));
    return this.db
      .transaction(() =>
        [...digests].filter(
          (digest) =>
            !this.#wanted(digest) &&
            !this.#sentAgain(digest) &&
            this.db.query("DELETE FROM blobs WHERE digest = ?").run(digest).changes > 0,
        ),
      )
      .immediate();
  }
}
