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
    if (change.what === "add") {
      const { changes: added } = this.db
        .query("INSERT OR IGNORE INTO blobs (digest, size, stored_at) VALUES (?, ?, ?)")
        .run(digest, change.size, now);
      // Sent once more: whoever did it has all the time again to register them.
      if (added === 0) this.db.query("UPDATE blobs SET stored_at = ? WHERE digest = ?").run(now, digest);
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

  /**
   * Artifacts have expired: forget the bytes that no other artifact has.
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
            this.db.query("DELETE FROM blobs WHERE digest = ?").run(digest).changes > 0,
        ),
      )
      .immediate();
  }
}
