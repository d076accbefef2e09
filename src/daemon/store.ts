/**
 * The artifact store (SPEC §8, §11): bytes on disk by their digest, on the front thread, never whole in memory.
 *
 * Always holds: bytes can be seen only when their row is in `blobs`; the row is written after the file is durable and deleted
 * before the file is; what is done to one digest is done in turn; a path is made only of checked hexadecimal digits. What a
 * crash leaves behind (drafts, files without a row, rows without a file) the sweep takes away, never a file that an artifact
 * has: that gets its row again. What bytes are, and whether anybody wants them, is the log's to say (domain/artifact.ts) and
 * the writer's to decide (blobs.ts).
 */
import type { Database } from "bun:sqlite";
import { existsSync, mkdirSync, renameSync } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { reject } from "../kernel/aggregate.ts";
import { refusal } from "../kernel/execute.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import type { BlobChange } from "./blobs.ts";

/** Bytes of one upload, at most. */
const MAX_BYTES = 1 << 30;
/** An upload that brings nothing for so long is given up, in milliseconds. */
const STALLED_MS = 120_000;
/** Bytes that nobody has registered are kept for so long, in milliseconds. */
const UNREGISTERED_MS = 24 * 3_600_000;
/** The time between two sweeps, in milliseconds. */
const SWEEP_MS = 3_600_000;
/** Rows that a sweep reads at a time, so that requests come in between. */
const SWEPT = 500;

const DIGEST = /^sha256:([0-9a-f]{64})$/;
const HEX = /^[0-9a-f]{64}$/;

interface Parts {
  /** The folder of the artifacts; it exists. */
  readonly folder: string;
  /** A connection that only reads. */
  readonly db: Database;
  readonly registry: Registry;
  /** Has the writer change the table of blobs: whether it did, or why it cannot. */
  readonly change: (change: BlobChange) => Promise<boolean | Problem>;
  /** Something that an operator should know. */
  readonly warning: (message: string) => void;
  readonly bug: (error: unknown) => void;
  readonly max_bytes?: number;
  readonly stalled_ms?: number;
  readonly unregistered_ms?: number;
  /** Milliseconds since the epoch. */
  readonly now?: () => number;
  /** Makes the names in a folder durable. */
  readonly sync?: (folder: string) => Promise<void>;
}

/** Bytes that are in the store. */
interface Stored {
  /** `sha256:` and 64 hexadecimal digits. */
  readonly digest: string;
  readonly size: number;
}

/** A row of `blobs`, with what the read models know of it. */
interface Seen {
  readonly digest: string;
  readonly stored_at: number;
  /** 1 when an artifact that has not expired has these bytes. */
  readonly wanted: number;
  /** When the last artifact of these bytes that has expired was registered, RFC 3339. */
  readonly registered_at: string | null;
}

/** Where a file of the store is, as far as can be seen. */
type Look = "there" | "gone" | "unseen";

export class Store {
  readonly #parts: Parts;
  readonly #drafts: string;
  readonly #files: string;
  readonly #maxBytes: number;
  /** The drafts under way, by name. */
  readonly #underWay = new Set<string>();
  /** The end of what is done to each digest, by its hexadecimal digits. */
  readonly #turns = new Map<string, Promise<unknown>>();
  /** The folders whose names are known to be durable. */
  readonly #durable = new Set<string>();
  #closed = false;
  #sweeping: Promise<void> | undefined;
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(parts: Parts) {
    this.#parts = parts;
    this.#drafts = join(parts.folder, "tmp");
    this.#files = join(parts.folder, "sha256");
    this.#maxBytes = parts.max_bytes ?? MAX_BYTES;
    mkdirSync(this.#drafts, { recursive: true, mode: 0o700 });
  }

  /**
   * Take bytes in.
   * @param digest as the URL has it, unchecked
   * @param length how many bytes were announced; undefined when nobody said
   * @returns once they are durable; `created` is false when they were there already. Refusals: invalid_schema,
   *   payload_too_large, malformed_request, read_only, artifact.digest_mismatch, artifact.size_mismatch
   */
  async put(
    digest: string,
    body: ReadableStream<Uint8Array> | null,
    length: number | undefined,
  ): Promise<(Stored & { readonly created: boolean }) | Problem> {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return NO_DIGEST;
    if (length !== undefined && length > this.#maxBytes) return this.#tooLarge();
    const name = crypto.randomUUID();
    const draft = join(this.#drafts, name);
    this.#underWay.add(name);
    try {
      const came = await this.#receive(draft, body);
      if (isProblem(came)) return came;
      if (length !== undefined && came.size !== length)
        return this.#refuse("artifact.size_mismatch", { digest, size: length, actual: came.size });
      if (came.digest !== digest)
        return this.#refuse("artifact.digest_mismatch", { digest, actual: came.digest });
      return await this.#inTurn(hex, () => this.#place(draft, hex, came));
    } catch (error) {
      return unwritable(error);
    } finally {
      await this.#remove(draft);
      this.#underWay.delete(name);
    }
  }

  /**
   * Where bytes are.
   * @param digest as the URL has it, unchecked
   * @returns their file. Refusals: invalid_schema, not_found, artifact.bytes_expired
   */
  find(digest: string): (Stored & { readonly path: string }) | Problem {
    const hex = DIGEST.exec(digest)?.[1];
    if (hex === undefined) return NO_DIGEST;
    const { db } = this.#parts;
    const row = db.query<{ size: number }, [string]>("SELECT size FROM blobs WHERE digest = ?").get(digest);
    const path = this.#pathOf(hex);
    if (row && existsSync(path)) return { digest, size: row.size, path };
    const [expired] = db
      .query<{ artifact_id: string; expired_at: string }, [string]>(
        `SELECT artifact_id, expired_at FROM artifacts WHERE digest = ? AND status = 'expired'
         ORDER BY artifact_id DESC LIMIT 1`,
      )
      .all(digest);
    if (expired && !row) return this.#refuse("artifact.bytes_expired", { digest, ...expired });
    return problem("not_found", "no bytes of that digest are in the store", {
      hint: "send them first: 'mp artifact upload FILE', or PUT /v1/artifacts/DIGEST",
      details: { kind: "artifact", digest },
    });
  }

  /** The rows of these digests are gone: so are the files now, unless they have been sent again. */
  released(digests: readonly string[]): void {
    for (const digest of digests) void this.#drop(DIGEST.exec(digest)![1]!).catch(this.#parts.bug);
  }

  /** Sweep now, and each hour from now on, in the background. */
  begin(): void {
    const go = () => void this.sweep().catch(this.#parts.bug);
    this.#timer = setInterval(go, SWEEP_MS);
    go();
  }

  /**
   * Take away what a crash has left behind, and bytes that nobody wants: those whose artifacts have all expired, and those
   * that nobody has registered in 24 hours.
   */
  sweep(): Promise<void> {
    this.#sweeping ??= this.#sweep().finally(() => {
      this.#sweeping = undefined;
    });
    return this.#sweeping;
  }

  /** Begin nothing more, and wait for what is under way on the disk. Uploads must have ended. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await this.#sweeping?.catch(this.#parts.bug);
    await Promise.all(this.#turns.values());
  }

  /** Write a body into a draft and make it durable, hashing on the way. */
  async #receive(draft: string, body: ReadableStream<Uint8Array> | null): Promise<Stored | Problem> {
    await mkdir(this.#drafts, { recursive: true, mode: 0o700 });
    const file = await open(draft, "wx", 0o600);
    try {
      const hash = new Bun.CryptoHasher("sha256");
      let size = 0;
      const reader = body?.getReader();
      for (;;) {
        const next = await nextOf(reader, this.#parts.stalled_ms ?? STALLED_MS);
        if (isProblem(next)) return next;
        if (next === undefined) break;
        size += next.length;
        if (size > this.#maxBytes) {
          await refuseRest(reader);
          return this.#tooLarge();
        }
        hash.update(next);
        await write(file, next);
      }
      await file.sync();
      return { digest: `sha256:${hash.digest("hex")}`, size };
    } finally {
      await file.close();
    }
  }

  /** Give a draft its name, durably, then its row. In turn. */
  async #place(
    draft: string,
    hex: string,
    { digest, size }: Stored,
  ): Promise<(Stored & { readonly created: boolean }) | Problem> {
    if (this.#closed) return problem("overloaded", "the daemon is stopping");
    const path = this.#pathOf(hex);
    const folder = dirname(path);
    const made = await mkdir(folder, { recursive: true, mode: 0o700 });
    for (let at = folder; made !== undefined && at !== dirname(made); at = dirname(at))
      this.#durable.delete(at);
    await rename(draft, path);
    const { sync = synced } = this.#parts;
    await sync(folder);
    // A folder is as durable as its name in the one above, also one that another upload has only just made.
    for (let at = folder; at !== dirname(this.#files); at = dirname(at)) {
      if (this.#durable.has(at)) continue;
      await sync(dirname(at));
      this.#durable.add(at);
    }
    const created = await this.#parts.change({ what: "add", digest, size });
    if (!isProblem(created)) return { digest, size, created };
    // Whether there is a row now, the next start finds out.
    if (created.code !== "outcome_unknown") await this.#removeUnlessStored(hex);
    return created;
  }

  async #sweep(): Promise<void> {
    for (const name of await namesIn(this.#drafts))
      if (!this.#underWay.has(name)) await this.#remove(join(this.#drafts, name));
    for (const prefix of await namesIn(this.#files))
      for (const name of await namesIn(join(this.#files, prefix))) {
        if (this.#closed) return;
        if (HEX.test(name) && name.startsWith(prefix) && !this.#stored(name)) await this.#leftover(name);
      }
    let unseen = 0;
    for (let after = ""; ; ) {
      const rows = this.#closed ? [] : this.#seen(after);
      const swept = await Promise.all(rows.map((row) => this.#sweepRow(row)));
      unseen += swept.filter((look) => look === "unseen").length;
      if (rows.length < SWEPT) break;
      after = rows.at(-1)!.digest;
    }
    if (unseen > 0)
      this.#parts.warning(`${unseen} files of the artifact store cannot be looked at: is their folder away?`);
  }

  /** A file without a row: given its row again when an artifact has its bytes, else taken away. */
  async #leftover(hex: string): Promise<void> {
    if (this.#wanted(hex) !== true) return this.#drop(hex);
    const { change, warning } = this.#parts;
    const digest = `sha256:${hex}`;
    await this.#inTurn(hex, async () => {
      if (this.#closed || this.#stored(hex)) return;
      try {
        const path = this.#pathOf(hex);
        const { mtimeMs } = await stat(path);
        const { digest: actual, size } = await this.#hashed(path);
        if (this.#closed) return;
        if (actual !== digest) warning(`the file of ${digest} has other bytes: they should be sent again`);
        // As old as the file, which is as old as its sending: found again is not sent again.
        else if ((await change({ what: "find", digest, size, stored_at: Math.floor(mtimeMs) })) === true)
          warning(`the bytes of ${digest} are in the store again`);
      } catch (error) {
        if (codeOf(error) === "") throw error;
        warning(`the file of ${digest} cannot be read: ${codeOf(error)}`);
      }
    });
  }

  /** What a file has in it, as far as it was read when the store is closed. */
  async #hashed(path: string): Promise<Stored> {
    const hash = new Bun.CryptoHasher("sha256");
    let size = 0;
    for await (const part of Bun.file(path).stream()) {
      if (this.#closed) break;
      hash.update(part);
      size += part.length;
    }
    return { digest: `sha256:${hash.digest("hex")}`, size };
  }

  #seen(after: string): Seen[] {
    return this.#parts.db
      .query<Seen, [string, number]>(
        `SELECT digest, stored_at,
           EXISTS (SELECT 1 FROM artifacts a WHERE a.digest = b.digest AND a.status = 'available') AS wanted,
           (SELECT a.created_at FROM artifacts a WHERE a.digest = b.digest AND a.status = 'expired'
            ORDER BY a.artifact_id DESC LIMIT 1) AS registered_at
         FROM blobs b WHERE digest > ? ORDER BY digest LIMIT ?`,
      )
      .all(after, SWEPT);
  }

  /** Let go of bytes that are gone or that nobody wants; told is where the others are. */
  async #sweepRow({ digest, stored_at, wanted, registered_at }: Seen): Promise<Look | undefined> {
    if (this.#closed) return undefined;
    const { change, warning, now = Date.now, unregistered_ms = UNREGISTERED_MS } = this.#parts;
    const hex = DIGEST.exec(digest)![1]!;
    const look = await this.#look(hex);
    if (look === "gone") {
      const lost = await this.#inTurn(hex, async () =>
        (await this.#look(hex)) === "gone" ? change({ what: "lose", digest, stored_at }) : false,
      );
      if (lost === true) warning(`the bytes of ${digest} are not in the store any more`);
      return undefined;
    }
    // Sent again after the last artifact was registered, they wait for the next one.
    const over = registered_at !== null && Date.parse(registered_at) >= stored_at;
    if (wanted === 1 || !(over || stored_at < now() - unregistered_ms)) return look;
    if ((await change({ what: "release", digest, stored_at })) === true) await this.#drop(hex);
    return undefined;
  }

  /** Where a file is. Of a folder that is away, or of a disk that fails, nothing can be said of its files. */
  async #look(hex: string): Promise<Look> {
    const path = this.#pathOf(hex);
    try {
      await stat(path);
      return "there";
    } catch (error) {
      if (codeOf(error) !== "ENOENT") return "unseen";
    }
    try {
      return (await readdir(dirname(path))).includes(hex) ? "unseen" : "gone";
    } catch {
      return "unseen"; // for whatever reason
    }
  }

  /** Remove a file that has no row. */
  #drop(hex: string): Promise<void> {
    return this.#inTurn(hex, () => this.#removeUnlessStored(hex));
  }

  async #removeUnlessStored(hex: string): Promise<void> {
    if (this.#closed || this.#stored(hex) || this.#wanted(hex) !== false) return;
    const gone = join(this.#drafts, crypto.randomUUID());
    // In one step with the look above: whoever found the file before has opened it by now. Removing takes its time.
    try {
      renameSync(this.#pathOf(hex), gone);
    } catch (error) {
      if (codeOf(error) === "ENOENT") return;
      throw error;
    }
    await this.#remove(gone);
  }

  /** Remove a file, or say why it stays: the next sweep tries again. */
  async #remove(path: string): Promise<void> {
    try {
      await unlink(path);
    } catch (error) {
      const code = codeOf(error);
      if (!["ENOENT", "ENOTDIR"].includes(code))
        this.#parts.warning(`a file of the artifact store cannot be removed: ${code}`);
    }
  }

  #stored(hex: string): boolean {
    return this.#parts.db.query("SELECT 1 FROM blobs WHERE digest = ?").get(`sha256:${hex}`) !== null;
  }

  /** Whether an artifact has these bytes; undefined while the read model that knows it has stopped. */
  #wanted(hex: string): boolean | undefined {
    const { wanted, known } = this.#parts.db
      .query<{ wanted: number; known: number }, [string]>(
        `SELECT EXISTS (SELECT 1 FROM artifacts WHERE digest = ? AND status = 'available') AS wanted,
           EXISTS (SELECT 1 FROM projections WHERE name = 'artifact' AND error IS NULL) AS known`,
      )
      .get(`sha256:${hex}`)!;
    return wanted === 1 ? true : known === 1 ? false : undefined;
  }

  #pathOf(hex: string): string {
    return join(this.#files, hex.slice(0, 2), hex);
  }

  /** Do something to a digest after everything that was begun before. */
  #inTurn<T>(hex: string, work: () => Promise<T>): Promise<T> {
    const mine = (this.#turns.get(hex) ?? Promise.resolve()).then(work);
    const over = mine.then(
      () => undefined,
      () => undefined,
    );
    this.#turns.set(hex, over);
    void over.then(() => {
      if (this.#turns.get(hex) === over) this.#turns.delete(hex);
    });
    return mine;
  }

  #refuse(reason: string, details: Readonly<Record<string, unknown>>): Problem {
    return refusal(this.#parts.registry, reject(reason, details));
  }

  #tooLarge(): Problem {
    return problem("payload_too_large", `an artifact has at most ${this.#maxBytes} bytes`, {
      hint: "send it in parts, each an artifact of its own",
      details: { max_bytes: this.#maxBytes },
    });
  }
}

/** The next part of a body; undefined at its end. */
async function nextOf(
  reader: ReadableStreamDefaultReader<Uint8Array> | undefined,
  stalled_ms: number,
): Promise<Uint8Array | undefined | Problem> {
  const { promise: late, resolve } = Promise.withResolvers<Problem>();
  const timer = setTimeout(() => {
    resolve(problem("malformed_request", "the body stopped coming"));
    void refuseRest(reader);
  }, stalled_ms);
  try {
    const next = await Promise.race([reader?.read(), late]);
    return isProblem(next) ? next : next?.value;
  } catch {
    // The client has hung up, which is its right and no bug: nobody hears this answer.
    return problem("malformed_request", "the body ended early");
  } finally {
    clearTimeout(timer);
  }
}

/** Take no more of a body; a client that has hung up meanwhile is no bug. */
async function refuseRest(reader: ReadableStreamDefaultReader<Uint8Array> | undefined): Promise<void> {
  try {
    await reader?.cancel();
  } catch {
    return;
  }
}

async function write(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let from = 0; from < bytes.length; )
    from += (await file.write(bytes, from, bytes.length - from)).bytesWritten;
}

/** Make the names in a folder durable. */
async function synced(folder: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** What is in a folder; nothing when it is not there, is none or cannot be read. */
async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (codeOf(error) === "") throw error;
    return [];
  }
}

/** A disk that cannot be written is no bug of ours. */
function unwritable(error: unknown): Problem {
  const code = codeOf(error);
  if (!/^E[A-Z0-9]+$/.test(code)) throw error;
  return problem("read_only", `the bytes cannot be stored (${code}): nothing was kept`, {
    hint: "make room on the disk of the artifacts, and send them again",
  });
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/** The one thing to say about a digest that is none. It does not repeat it. */
const NO_DIGEST = problem("invalid_schema", "the URL has no digest in it", {
  hint: "the route is /v1/artifacts/sha256:HEX, with 64 hexadecimal digits in lower case",
  errors: [{ pointer: "/digest", message: "must be sha256: and 64 hexadecimal digits, lower case" }],
});
