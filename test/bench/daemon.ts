/**
 * The daemon under the bench: the compiled executable as a child in a temporary MP_HOME, and what /proc says of it.
 *
 * Always so: it is ready when its socket answers; it ends and its home goes away with `stop`. With `source` it runs from
 * the source tree by the same Bun, for a profiler; those figures are not the product's.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dir, "..", "..");

/** How the daemon is run: once for the whole bench. */
export interface Launcher {
  /** The argv in front of the arguments of `mp`. */
  readonly command: readonly string[];
}

/** The executable (MP_BINARY, else dist/mp, which is built when it is missing), or the source under this Bun. */
export function launcher(source: boolean): Launcher {
  if (source) return { command: [process.execPath, join(root, "src", "main.ts")] };
  const path = process.env.MP_BINARY ?? join(root, "dist", "mp");
  if (!existsSync(path)) {
    const built = Bun.spawnSync([process.execPath, join(root, "build.ts")], { cwd: root, stderr: "inherit" });
    if (!built.success) throw new Error("dist/mp could not be built");
  }
  return { command: [path] };
}

/** What must not outlive the bench, however it ends: children, then folders. */
const children = new Set<Bun.Subprocess>();
const folders = new Set<string>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => process.exit(130));

/** A new empty folder, short enough for a socket in it; it goes away with the bench, if not before. */
export function temporaryFolder(): string {
  const preferred = realpathSync(tmpdir());
  const folder = mkdtempSync(join(preferred.length < 60 ? preferred : "/tmp", "mp-bench-"));
  folders.add(folder);
  return folder;
}

export interface Daemon {
  readonly pid: number;
  readonly home: string;
  readonly socket: string;
  readonly database: string;
  /** From the spawn to the first answer of `/health`, in milliseconds. */
  readonly ready_ms: number;
  /** SIGTERM, wait, and remove the home unless `keep`. */
  stop(options?: { readonly keep?: boolean }): Promise<void>;
}

export interface StartOptions {
  /** MP_HOME; a new one when absent. */
  readonly home?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Start `mp daemon run` and wait until it answers. */
export async function startDaemon({ command }: Launcher, { home, env }: StartOptions = {}): Promise<Daemon> {
  const folder = home ?? temporaryFolder();
  const socket = join(folder, "run", "mp.sock");
  const started = performance.now();
  const child = Bun.spawn([...command, "daemon", "run"], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...cleanEnvironment(), MP_HOME: folder, ...env },
  });
  children.add(child);
  while (!(await answers(socket))) {
    if (child.exitCode !== null)
      throw new Error(`the daemon ended: ${await Bun.readableStreamToText(child.stderr)}`);
    await Bun.sleep(0.5);
  }
  return {
    pid: child.pid,
    home: folder,
    socket,
    database: join(folder, "kernel.db"),
    ready_ms: performance.now() - started,
    async stop({ keep = false } = {}) {
      child.kill("SIGTERM");
      await child.exited;
      children.delete(child);
      if (!keep) rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function answers(socket: string): Promise<boolean> {
  if (!existsSync(socket)) return false;
  try {
    return (await fetch("http://mp/health", { unix: socket })).ok;
  } catch {
    return false;
  }
}

/** The environment without what would change the daemon or the runtime. */
export function cleanEnvironment(): Record<string, string | undefined> {
  return Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith("MP_") && name !== "BUN_OPTIONS"),
  );
}

/** CPU seconds of a process so far: the main thread, the busiest other thread, all of them. Linux only. */
export interface CpuTimes {
  readonly main: number;
  readonly threads: ReadonlyMap<string, number>;
  readonly total: number;
}

/** @returns undefined where there is no /proc */
export function cpuTimes(pid: number): CpuTimes | undefined {
  const folder = `/proc/${pid}/task`;
  if (!existsSync(folder)) return undefined;
  const threads = new Map(readdirSync(folder).map((tid) => [tid, threadSeconds(`${folder}/${tid}`)]));
  const main = threads.get(String(pid)) ?? 0;
  // Threads that ended meanwhile are only in the process's own line.
  return { main, threads, total: statSeconds(readFileSync(`/proc/${pid}/stat`, "utf8")) };
}

/** What a process did between two looks, in CPU seconds. */
export function cpuBetween(
  before: CpuTimes,
  after: CpuTimes,
): { front: number; writer: number; all: number } {
  const spent = [...after.threads].map(([tid, seconds]) => seconds - (before.threads.get(tid) ?? 0));
  const front = after.main - before.main;
  spent.sort((a, b) => b - a);
  const writer = spent.find((seconds) => seconds !== front) ?? 0;
  return { front, writer, all: spent.reduce((sum, seconds) => sum + seconds, 0) };
}

function threadSeconds(folder: string): number {
  try {
    // Nanoseconds on the CPU, where the system keeps them; else clock ticks.
    return Number(readFileSync(`${folder}/schedstat`, "utf8").split(" ")[0]) / 1e9;
  } catch {
    return existsSync(`${folder}/stat`) ? statSeconds(readFileSync(`${folder}/stat`, "utf8")) : 0;
  }
}

function statSeconds(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Clock ticks of CPU time so far: the whole machine's, idle ones too, the busy ones, and those of this bench. */
export interface MachineTimes {
  readonly all: number;
  readonly busy: number;
  /** Of this process and of every child of it that has ended. */
  readonly own: number;
}

/** @returns undefined where there is no /proc */
export function machineTimes(): MachineTimes | undefined {
  if (!existsSync("/proc/stat")) return undefined;
  const ticks = readFileSync("/proc/stat", "utf8").split("\n")[0]!.split(/ +/).slice(1, 9).map(Number);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const [idle = 0, waiting = 0] = ticks.slice(3, 5);
  const stat = readFileSync("/proc/self/stat", "utf8");
  const own = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .slice(11, 15)
    .map(Number);
  return { all: sum(ticks), busy: sum(ticks) - idle - waiting, own: sum(own) };
}

/** The share of the machine's CPU time that other programs had between two looks, 0 to 1. */
export function othersShare(before: MachineTimes, after: MachineTimes): number {
  const others = after.busy - before.busy - (after.own - before.own);
  return Math.max(0, others / (after.all - before.all));
}

/** Resident memory of a process in MiB; undefined where there is no /proc. */
export function residentMiB(pid: number): number | undefined {
  const path = `/proc/${pid}/status`;
  if (!existsSync(path)) return undefined;
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(path, "utf8"))?.[1]) / 1024;
}
