/**
 * The compiled executable and temporary homes for tests.
 *
 * Always so: a command runs in an MP_HOME of its own and never sees the caller's MP_* or BUN_OPTIONS; a home goes away
 * when the test, or the file, that made it ends, however that ends, with its daemon and all else that runs in it, so that
 * nothing is there that would begin a daemon again; a process is killed only when it really belongs to that home.
 * `waitFor` is the only place that polls. Left out on purpose: a mock of any part of the product.
 */
import { afterAll } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A Unix socket path ends at about 100 characters; the socket may lie a folder deep in its home. */
const HOME_LENGTH_MAX = 70;
const STOP_TIMEOUT_MS = 5_000;

/** Homes that are gone: a test that is over, and does not know it, begins nothing in them any more. */
const removed = new Set<string>();

export interface RunOptions {
  /** Added to the environment; a value of undefined removes the variable. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** MP_HOME; a new temporary one when absent. */
  readonly home?: string;
  readonly cwd?: string;
}

export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** The absolute path of the executable: MP_BINARY, else dist/mp. Throws when it has not been built. */
export function binary(): string {
  const path = process.env.MP_BINARY ?? join(import.meta.dir, "..", "..", "dist", "mp");
  if (!existsSync(path)) throw new Error("the executable is not there: run `bun run build` or set MP_BINARY");
  return path;
}

/**
 * Makes an empty folder for MP_HOME and returns its real path. What runs in it is killed, its daemon stopped (SIGTERM,
 * after 5 s SIGKILL), and it is removed at the end of the test, beforeEach's test, describe or file that called this. Not for beforeAll: Bun
 * runs the clean-up at the end of that hook; call it at the top of the file instead.
 */
export function tempHome(): string {
  const preferred = realpathSync(tmpdir());
  const parent = preferred.length < HOME_LENGTH_MAX - 10 ? preferred : realpathSync("/tmp");
  const home = mkdtempSync(join(parent, "mp-"));
  afterAll(() => removeHome(home), 4 * STOP_TIMEOUT_MS);
  return home;
}

/**
 * Starts `mp` with piped output, for commands that go on (`events tail`, `daemon run`). The caller ends it.
 * Standard input is empty unless `stdin` is "pipe".
 */
export function start(args: readonly string[], options: RunOptions & { stdin?: "pipe" } = {}) {
  return Bun.spawn([binary(), ...args], {
    stdin: options.stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: environment(options.home ?? tempHome(), options.env),
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
}

/**
 * Runs `mp` to its end and returns the exit code (128 + n after signal n) and both outputs. Throws when it has not
 * ended, or something it left behind still holds its output open, after `timeout_ms` (30,000 when absent).
 */
export async function run(
  args: readonly string[],
  options: RunOptions & { readonly stdin?: string; readonly timeout_ms?: number } = {},
): Promise<Finished> {
  const timeout_ms = options.timeout_ms ?? 30_000;
  const child = start(args, { ...options, stdin: "pipe" });
  if (options.stdin !== undefined) child.stdin?.write(options.stdin);
  child.stdin?.end();

  let timer: Timer | undefined;
  const late = new Promise<never>((_, refuse) => {
    timer = setTimeout(() => {
      child.kill("SIGKILL");
      refuse(new Error(`\`mp ${args.join(" ")}\` did not end, or its output did not, in ${timeout_ms} ms`));
    }, timeout_ms);
  });
  const finished = Promise.all([
    child.exited,
    Bun.readableStreamToText(child.stdout),
    Bun.readableStreamToText(child.stderr),
  ]);
  try {
    const [code, stdout, stderr] = await Promise.race([finished, late]);
    return { code, stdout, stderr };
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Polls until `condition` gives something truthy and returns that. A condition that throws is one that does not hold
 * yet; after `timeout_ms` (10,000 when absent) the error says what was waited for and has the last throw as its cause.
 */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  { what, timeout_ms = 10_000 }: { readonly what: string; readonly timeout_ms?: number },
): Promise<Exclude<T, false | null | undefined | 0 | "">> {
  const deadline = performance.now() + timeout_ms;
  let cause: unknown;
  do {
    try {
      const value = await condition();
      if (value) return value as Exclude<T, false | null | undefined | 0 | "">;
      cause = undefined;
    } catch (thrown) {
      cause = thrown;
    }
    await Bun.sleep(5);
  } while (performance.now() < deadline);
  throw new Error(`waited ${timeout_ms} ms in vain for: ${what}`, { cause });
}

function environment(home: string, added: RunOptions["env"] = {}): Record<string, string | undefined> {
  if (removed.has(home)) throw new Error(`the test that made ${home} is over`);
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith("MP_") && name !== "BUN_OPTIONS",
  );
  return { ...Object.fromEntries(kept), MP_HOME: home, ...added };
}

/** Ends what runs in `home`, its daemon gently, and removes the folder. */
async function removeHome(home: string): Promise<void> {
  removed.add(home);
  const info = join(home, "daemon.json");
  const pid = existsSync(info) ? /"pid"\s*:\s*(\d+)/.exec(readFileSync(info, "utf8"))?.[1] : undefined;
  // First all others: a client that finds its daemon gone begins a new one.
  for (const each of processesOf(home)) if (each !== Number(pid)) kill(each, "SIGKILL");
  if (pid !== undefined) await endDaemon(Number(pid), home);
  // What was killed may have begun something a moment before.
  const none = () => processesOf(home).every((each) => !kill(each, "SIGKILL"));
  const what = `the end of all that runs in ${home}`;
  await waitFor(none, { what, timeout_ms: STOP_TIMEOUT_MS }).catch((late: Error) =>
    console.error(String(late)),
  );
  rmSync(home, { recursive: true, force: true, maxRetries: 5 });
}

async function endDaemon(pid: number, home: string): Promise<void> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    if (!belongsTo(pid, home) || !kill(pid, signal)) return;
    const gone = await waitFor(() => !belongsTo(pid, home), {
      what: `the end of daemon ${pid} after ${signal}`,
      timeout_ms: STOP_TIMEOUT_MS,
    }).catch((late: Error) => late);
    if (gone === true) return;
    console.error(String(gone));
  }
}

/** Whether the signal could be sent; a process may end by itself at any moment. */
function kill(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

/** The processes that run with this home, this one aside. */
export function processesOf(home: string): number[] {
  if (process.platform === "linux")
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => pid !== process.pid && belongsTo(pid, home));
  const listed = Bun.spawnSync(["ps", "axeww", "-o", "pid=,command="]).stdout.toString().split("\n");
  return listed
    .filter((line) => line.includes(home))
    .map((line) => Number.parseInt(line, 10))
    .filter((pid) => pid !== process.pid);
}

/** Does process `pid` run with this home? A pid in a file may long be another program's; a zombie has no environment. */
function belongsTo(pid: number, home: string): boolean {
  if (process.platform !== "linux") {
    return Bun.spawnSync(["ps", "eww", "-o", "command=", "-p", String(pid)]).stdout.includes(home);
  }
  try {
    return readFileSync(`/proc/${pid}/environ`).includes(home);
  } catch {
    return false; // the process is gone
  }
}
