/**
 * What the child of `mp session run` wrote, kept on disk until it is an artifact (SPEC §8).
 *
 * Always holds: a file that only this user can read, as long as the limit at most, with its digest made on the way; a disk
 * that is full ends the keeping, never the passing on.
 */
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What the artifact is called. */
export const OUTPUT_NAME = "output.log";

/** The most that is kept, in bytes. */
const SPOOL_BYTES = 64 << 20;

const CUT = `\n[mp: the output is longer than ${SPOOL_BYTES >> 20} MiB: the rest was passed on and not kept]\n`;

export class Spool {
  size = 0;
  /** Why something is not kept. */
  lost: "too long" | "disk" | undefined;
  readonly path: string;
  readonly #folder: string;
  readonly #file: number;
  readonly #hash = new Bun.CryptoHasher("sha256");

  /** Throws when there is no folder for temporary files. */
  constructor() {
    this.#folder = mkdtempSync(join(tmpdir(), "mp-run-"));
    this.path = join(this.#folder, OUTPUT_NAME);
    this.#file = openSync(this.path, "wx", 0o600);
  }

  /** Keep these bytes, behind those before. */
  add(bytes: Uint8Array): void {
    if (this.lost) return;
    const room = SPOOL_BYTES - this.size;
    this.#write(bytes.subarray(0, room));
    if (bytes.length <= room || this.lost) return;
    this.lost = "too long";
    this.#write(Buffer.from(CUT));
  }

  /** Everything is in the file now. */
  close(): { readonly path: string; readonly size: number; readonly digest: string } {
    closeSync(this.#file);
    return { path: this.path, size: this.size, digest: `sha256:${this.#hash.digest("hex")}` };
  }

  /** Take the file away. */
  remove(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #write(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      try {
        const taken = writeSync(this.#file, bytes, at);
        this.#hash.update(bytes.subarray(at, at + taken));
        this.size += taken;
        at += taken;
      } catch {
        this.lost = "disk";
        return;
      }
    }
  }
}
