/**
 * The way out of `mp events tail`: lines to stdout, then the position to the cursor file (SPEC §12).
 *
 * Always holds: the file never names a position whose lines have not been written; it is replaced as a whole, safe against
 * a power cut; a reader that is slow holds us back instead of filling memory.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { type Problem, problem } from "../kernel/problems.ts";
import type { Output } from "./output.ts";
import { usage } from "./parse.ts";

/** Characters that may wait for a slow reader. */
const MOST_WAITING = 256 << 10;

/** Lines on their way out: what arrives while a write is under way is the next write. */
export class Sink {
  #waiting = "";
  #cursor: Cursor | undefined;
  #writing: Promise<void> | undefined;
  #failed: Problem | undefined;
  readonly #aborted: Promise<void>;

  /**
   * @param signal ends the waiting for a slow reader
   * @param onStopped called when a write fails: the daemon may be silent for long, so nobody would ask
   */
  constructor(
    readonly out: Output,
    readonly file: CursorFile | undefined,
    signal: AbortSignal,
    readonly onStopped: () => void,
  ) {
    const { promise, resolve } = Promise.withResolvers<void>();
    signal.addEventListener("abort", () => resolve(), { once: true });
    this.#aborted = promise;
  }

  /** Take a line, and the position that is reached once it is out. Waits while too much is on its way. */
  async add(text: string, cursor: Cursor | undefined): Promise<void> {
    this.#waiting += text;
    if (cursor) this.#cursor = cursor;
    this.#writing ??= this.#write();
    if (this.#waiting.length > MOST_WAITING) await Promise.race([this.#writing, this.#aborted]);
  }

  get #stopped(): boolean {
    return this.out.gone || this.out.failed !== undefined || this.#failed !== undefined;
  }

  async #write(): Promise<void> {
    // Whatever came in the same chunk is there after one turn.
    await new Promise<void>((resolve) => setImmediate(resolve));
    while (!this.#stopped && (this.#waiting !== "" || this.#cursor)) {
      const text = this.#waiting;
      const cursor = this.#cursor;
      this.#waiting = "";
      this.#cursor = undefined;
      if (!(await this.out.print(text))) break;
      if (cursor) this.#failed ??= this.file?.write(cursor);
    }
    this.#writing = undefined;
    if (this.#stopped) this.onStopped();
  }

  /** Wait until everything is out, at most `most_ms` milliseconds where that is given. */
  async end(most_ms?: number): Promise<Problem | undefined> {
    if (this.#writing)
      await (most_ms === undefined ? this.#writing : Promise.race([this.#writing, Bun.sleep(most_ms)]));
    return this.#failed;
  }
}

export interface Cursor {
  readonly log_id: string;
  readonly seq_global: number;
}

/** The file that holds the position: `{"log_id":"…","seq_global":42}`. */
export class CursorFile {
  constructor(readonly path: string) {}

  /** @returns the position; undefined while there is no file; a problem when it cannot be used */
  read(): Cursor | undefined | Problem {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (error) {
      if (codeOf(error) !== "ENOENT") return this.#unusable(error);
      return this.#writable();
    }
    try {
      const { log_id, seq_global } = (JSON.parse(text) ?? {}) as Partial<Cursor>;
      if (typeof log_id === "string" && Number.isSafeInteger(seq_global) && seq_global! >= 0)
        return { log_id, seq_global: seq_global! };
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
    return problem("cursor_foreign", `the file ${this.path} holds no cursor of mp`, {
      hint: "give another file; or, if it is a damaged cursor, remove it and say where to start",
    });
  }

  /** Find out now, not after the first event, that the file cannot be made. */
  #writable(): Problem | undefined {
    const draft = `${this.path}.${process.pid}.tmp`;
    try {
      closeSync(openSync(draft, "w", 0o600));
      rmSync(draft);
      return undefined;
    } catch (error) {
      return this.#unusable(error);
    }
  }

  /** Put a new position in place in one step, safe against a power cut. */
  write(cursor: Cursor): Problem | undefined {
    const draft = `${this.path}.${process.pid}.tmp`;
    try {
      const fd = openSync(draft, "w", 0o600);
      writeSync(fd, `${JSON.stringify(cursor)}\n`);
      fsyncSync(fd);
      closeSync(fd);
      renameSync(draft, this.path);
      return undefined;
    } catch (error) {
      return problem("internal", `the cursor file ${this.path} cannot be written: ${codeOf(error)}`, {
        hint: "it names an earlier position now: some lines will come again next time",
      });
    }
  }

  #unusable(error: unknown): Problem {
    return usage(
      `the cursor file ${this.path} cannot be used: ${codeOf(error)}`,
      "give a file that you can write",
    );
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "unknown error";
}
