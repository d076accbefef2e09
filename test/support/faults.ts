/**
 * A daemon on a disk that fails on command (faults.c): real system calls of the real SQLite, only their answers are ours.
 *
 * It needs Linux with glibc and a C compiler; where one is missing, `unavailable` says so and the tests that need it are
 * skipped. Faults are armed and disarmed while the daemon runs, and do not outlive the test file.
 */

import { afterAll } from "bun:test";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export type Fault = "fsync-eio" | "draft-eio" | "write-eio" | "enospc" | "enospc-db" | "slow-fsync";

/** Why there can be no faults here; undefined where there can. */
export const unavailable: string | undefined = reason();

function reason(): string | undefined {
  if (process.platform !== "linux") return "fault injection needs Linux";
  const header = (process.report.getReport() as { header?: { glibcVersionRuntime?: string } }).header;
  if (header?.glibcVersionRuntime === undefined) return "fault injection needs glibc";
  return Bun.which("cc") === null ? "fault injection needs a C compiler (cc)" : undefined;
}

/**
 * Faults for one daemon, none armed. Compiles faults.c; what it makes goes away with the test that called it.
 * @returns `env` for the daemon's process, and how to arm (`n` is explained in faults.c) and disarm
 */
export function faults() {
  const folder = mkdtempSync(join(tmpdir(), "mp-faults-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const library = join(folder, "faults.so");
  const source = join(import.meta.dir, "faults.c");
  const cc = Bun.spawnSync(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]);
  if (!cc.success) throw new Error(`faults.c does not compile: ${cc.stderr.toString()}`);
  return {
    env: { LD_PRELOAD: library, MP_FAULTS: folder },
    arm(fault: Fault, n = 0): void {
      // In one step: a daemon must not read a number that is not there yet.
      writeFileSync(join(folder, "armed"), String(n));
      renameSync(join(folder, "armed"), join(folder, fault));
    },
    disarm(fault: Fault): void {
      rmSync(join(folder, fault), { force: true });
    },
  };
}
