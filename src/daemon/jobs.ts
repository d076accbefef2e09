/**
 * Long work on a thread of its own, with its own read connection: `log.verify` and `projection.verify`.
 *
 * One thread per job, ended with it, and one job of a type at a time: whoever asks while one runs shares the next one
 * with all the others, so that no number of requests makes more than two threads. Writers and readers go on meanwhile.
 */
import { Database } from "bun:sqlite";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { setPriority } from "node:os";
import { dirname, join } from "node:path";
import { aggregates } from "../domain/index.ts";
import { type ProjectionCheck, verifyProjections } from "../integrity/projections.ts";
import { type LogCheck, verifyLog } from "../integrity/verify.ts";
import { openForReading } from "../kernel/database.ts";
import { LogReader } from "../kernel/log.ts";
import type { Problem } from "../kernel/problems.ts";
import { buildRegistry } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";

/** Out of −20 to 19: behind everything that answers somebody. */
const JOB_NICENESS = 10;

interface Results {
  "log.verify": LogCheck;
  "projection.verify": ProjectionCheck[];
}
type JobType = keyof Results;

interface ToJob {
  readonly type: JobType;
  readonly database: string;
}
type FromJob =
  | { readonly kind: "progress"; readonly done: number; readonly of: number }
  | { readonly kind: "done"; readonly result: Results[JobType] }
  | { readonly kind: "failed"; readonly error: string };

/** A job under way, for `daemon.status`. */
export interface Job {
  readonly type: JobType;
  done: number;
  of: number;
}

/** The folders of scratch databases, beside the database: a rebuilt copy may be too large for a folder in memory. */
const SCRATCH = "verify-";

/** The jobs of a daemon. */
export class Jobs {
  readonly running = new Set<Job>();
  readonly #now = new Map<JobType, Promise<unknown>>();
  readonly #next = new Map<JobType, Promise<unknown>>();
  readonly #stops = new Set<(why: Problem) => void>();
  #closed: Problem | undefined;

  /** @param database path of `kernel.db`; scratch that a killed daemon left beside it is removed */
  constructor(readonly database: string) {
    const folder = dirname(database);
    for (const name of readdirSync(folder))
      if (name.startsWith(SCRATCH)) rmSync(join(folder, name), { recursive: true, force: true });
  }

  /**
   * Run one job, after the one of its type that is running, if any.
   * @returns its result, or a problem when the daemon stops before there is one
   * @throws Error when the job met a bug or its thread died
   */
  run<T extends JobType>(type: T): Promise<Results[T] | Problem> {
    const running = this.#now.get(type);
    const waiting = this.#next.get(type);
    // The one that runs may have passed what was written since.
    if (waiting) return waiting as Promise<Results[T] | Problem>;
    const begin = () => {
      this.#next.delete(type);
      const started = this.#start(type).finally(() => this.#now.delete(type));
      this.#now.set(type, started);
      return started;
    };
    if (!running) return begin();
    const next = running.then(begin, begin);
    this.#next.set(type, next);
    return next;
  }

  /** End all jobs, also those that wait: their callers hear why. */
  close(why: Problem): void {
    this.#closed = why;
    for (const stop of this.#stops) stop(why);
  }

  async #start<T extends JobType>(type: T): Promise<Results[T] | Problem> {
    if (this.#closed) return this.#closed;
    const job: Job = { type, done: 0, of: 0 };
    this.running.add(job);
    const worker = new Worker(new URL("./jobs.ts", import.meta.url));
    const { promise, resolve, reject } = Promise.withResolvers<Results[T] | Problem>();
    const stop = (why: Problem) => resolve(why);
    this.#stops.add(stop);
    try {
      worker.onerror = (event) => reject(new Error(event.message));
      worker.onmessage = ({ data }: MessageEvent<FromJob>) => {
        if (data.kind === "done") resolve(data.result as Results[T]);
        else if (data.kind === "failed") reject(new Error(data.error));
        else Object.assign(job, { done: data.done, of: data.of });
      };
      worker.postMessage({ type, database: this.database } satisfies ToJob);
      return await promise;
    } finally {
      worker.terminate();
      this.#stops.delete(stop);
      this.running.delete(job);
    }
  }
}

function perform({ type, database }: ToJob, progress: (done: number, of: number) => void): Results[JobType] {
  const registry = buildRegistry(aggregates, system);
  const db = openForReading(database);
  try {
    if (type === "log.verify") return verifyLog(db, registry, progress);
    const folder = mkdtempSync(join(dirname(database), SCRATCH));
    const scratch = new Database(join(folder, "scratch.db"), { create: true, strict: true });
    try {
      return verifyProjections(db, registry, new LogReader(db), scratch, progress);
    } finally {
      scratch.close();
      rmSync(folder, { recursive: true, force: true });
    }
  } finally {
    db.close();
  }
}

if (!Bun.isMainThread) {
  // On Linux this is about this thread alone: a job takes the time that nobody else wants.
  if (process.platform === "linux") setPriority(JOB_NICENESS);
  self.onmessage = ({ data }: MessageEvent<ToJob>) => {
    const say = (message: FromJob) => self.postMessage(message);
    try {
      say({ kind: "done", result: perform(data, (done, of) => say({ kind: "progress", done, of })) });
    } catch (error) {
      say({ kind: "failed", error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  };
}
