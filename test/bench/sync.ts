/**
 * The yardstick of the latency row, a process of its own: a 4 KiB write at the end of a file, then one `fdatasync`, over
 * and over. Prints one JSON line, SyncResult.
 */
import { closeSync, fdatasyncSync, openSync, rmSync, writeSync } from "node:fs";

export interface SyncPlan {
  /** The file to make, on the same disk; removed at the end. */
  readonly into: string;
  readonly writes: number;
}

export interface SyncResult {
  readonly median_ms: number;
}

function run({ into, writes }: SyncPlan): SyncResult {
  const page = Buffer.alloc(4096, 7);
  const fd = openSync(into, "w");
  const times = new Float64Array(writes);
  for (let index = 0; index < writes; index++) {
    const started = performance.now();
    writeSync(fd, page);
    fdatasyncSync(fd);
    times[index] = performance.now() - started;
  }
  closeSync(fd);
  rmSync(into);
  times.sort();
  return { median_ms: times[writes >> 1]! };
}

if (import.meta.main) console.log(JSON.stringify(run(JSON.parse(process.argv[2]!) as SyncPlan)));
