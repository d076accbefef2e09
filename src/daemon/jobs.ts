/**
 * Long work on threads of its own, with their own read connections: `log.verify` and `projection.verify`.
 *
 * Threads end with their job, and one job of a type runs at a time: whoever asks while one runs shares the next one
 * with all the others, so that no number of requests makes more threads than two jobs have. A large log is verified by two,
 * which have half the time of one. Writers and readers go on meanwhile.
 */
import { Database } from "bun:sqlite";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { availableParallelism, setPriority } from "node:os";
import { dirname, join } from "node:path";
import { aggregates } from "../domain/index.ts";
import { type ProjectionCheck, verifyProjections } from "../integrity/projections.ts";
import { type LogCheck, type LogTask, verifyLogTogether, verifyPart } from "../integrity/verify.ts";
import { openForReading } from "../kernel/database.ts";
import { LogReader } from "../kernel/log.ts";
import type { Problem } from "../kernel/problems.ts";
import { buildRegistry, type Registry } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";

/** Out of −20 to 19: behind everything that answers somebody. */
const JOB_NICENESS = 10;

/** For one job: more would leave nothing to who is answered on a machine of few cores. */
const MOST_THREADS = Math.min(2, availableParallelism());

interface Results {
  "log.verify": LogCheck;
  "projection.verify": ProjectionCheck[];
}
type JobType = keyof Results;

/** What one thread does in one go: it keeps nothing from one task to the next. */
type Task = LogTask | { readonly kind: "projection.verify" };

interface ToJob {
  readonly task: Task;
  readonly database: string;
}
type FromJob =
  | { readonly kind: "progress"; readonly done: number; readonly of: number }
  | { readonly kind: "done"; readonly result: unknown }
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
    const progress = (done: number, of: number) => Object.assign(job, { done, of });
    const { promise, resolve, reject } = Promise.withResolvers<Results[T] | Problem>();
    const threads = threadsFor(this.database, progress, reject);
    this.#stops.add(resolve);
    try {
      work[type](threads.ask, progress).then(resolve, reject);
      return await promise;
    } finally {
      threads.end();
      this.#stops.delete(resolve);
      this.running.delete(job);
    }
  }
}

type Progress = (done: number, of: number) => void;

/** Have the nth thread of a job do something. The caller knows what comes back. */
type Ask = <R>(nth: number, task: Task) => Promise<R>;

/** How the threads of a job share its work. */
const work: { readonly [T in JobType]: (ask: Ask, progress: Progress) => Promise<Results[T]> } = {
  "log.verify": (ask, progress) => verifyLogTogether(ask, MOST_THREADS, progress),
  "projection.verify": (ask) => ask(0, { kind: "projection.verify" }),
};

/**
 * The threads of one job; each begins when it is first asked, and does one thing at a time.
 * @param failed told when one met a bug or died: then nothing more is to be had from any
 */
function threadsFor(database: string, progress: Progress, failed: (error: Error) => void) {
  const workers: Worker[] = [];
  let over = false;
  const ask: Ask = (nth, task) =>
    new Promise((resolve) => {
      // The job has its result; who asks on is never answered.
      if (over) return;
      workers[nth] ??= new Worker(new URL("./jobs.ts", import.meta.url));
      const worker = workers[nth];
      worker.onerror = (event) => failed(new Error(event.message));
      worker.onmessage = ({ data }: MessageEvent<FromJob>) => {
        if (data.kind === "done") resolve(data.result as never);
        else if (data.kind === "failed") failed(new Error(data.error));
        else progress(data.done, data.of);
      };
      worker.postMessage({ task, database } satisfies ToJob);
    });
  const end = () => {
    over = true;
    for (const worker of workers) worker.terminate();
  };
  return { ask, end };
}

function perform(registry: Registry, { task, database }: ToJob, progress: Progress): unknown {
  const db = openForReading(database);
  try {
    if (task.kind !== "projection.verify") return verifyPart(db, registry, task);
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
  const registry = buildRegistry(aggregates, system);
  self.onmessage = ({ data }: MessageEvent<ToJob>) => {
    const say = (message: FromJob) => self.postMessage(message);
    try {
      say({
        kind: "done",
        result: perform(registry, data, (done, of) => say({ kind: "progress", done, of })),
      });
    } catch (error) {
      say({ kind: "failed", error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  };
}
