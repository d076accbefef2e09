/**
 * Long work on a thread of its own, with its own read connection: `log.verify` and `projection.verify`.
 *
 * One thread per job, ended with it; it reads one snapshot, so writers and readers go on.
 */
import { Database } from "bun:sqlite";
import { mkdtempSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { aggregates } from "../domain/index.ts";
import { type LogCheck, verifyLog } from "../integrity/verify.ts";
import { openForReading } from "../kernel/database.ts";
import { LogReader } from "../kernel/log.ts";
import { type ProjectionCheck, verifyProjections } from "../kernel/projection.ts";
import { buildRegistry } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";

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

/** The jobs of a daemon. */
export class Jobs {
  readonly running = new Set<Job>();

  constructor(readonly database: string) {}

  /**
   * Run one job.
   * @returns its result
   * @throws Error when the job met a bug or its thread died
   */
  async run<T extends JobType>(type: T): Promise<Results[T]> {
    const job: Job = { type, done: 0, of: 0 };
    this.running.add(job);
    const worker = new Worker(new URL("./jobs.ts", import.meta.url));
    try {
      const { promise, resolve, reject } = Promise.withResolvers<Results[T]>();
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
      this.running.delete(job);
    }
  }
}

function perform({ type, database }: ToJob, progress: (done: number, of: number) => void): Results[JobType] {
  const registry = buildRegistry(aggregates, system);
  const db = openForReading(database);
  try {
    if (type === "log.verify") return verifyLog(db, registry, progress);
    const folder = mkdtempSync(join(dirname(database), "verify-"));
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
  self.onmessage = ({ data }: MessageEvent<ToJob>) => {
    const say = (message: FromJob) => self.postMessage(message);
    try {
      say({ kind: "done", result: perform(data, (done, of) => say({ kind: "progress", done, of })) });
    } catch (error) {
      say({ kind: "failed", error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  };
}
