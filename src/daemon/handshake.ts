/**
 * How a daemon comes up in the background (SPEC §12): the parent starts it and waits for one line on its stdout.
 *
 * The line is `{"ready":true,"info":{…}}` or `{"failed":{…problem}}`. Any number of parents may start one at once:
 * the child that gets the lock becomes the daemon, every other child waits for it and reports it as its own, so
 * all parents end with the same daemon. A child that dies speechless is quoted from its stderr, which is a file:
 * a pipe would break with the parent. The parent never kills a child that is only slow: it may be migrating.
 */
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { devNull } from "node:os";
import { type Discovery, discover } from "../client/discover.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { type DaemonInfo, isInfo, removeInfo } from "./info.ts";
import { acquireLock, isLocked, type Lock } from "./lock.ts";
import { type Paths, prepare } from "./paths.ts";
import { sessionVariables } from "./variables.ts";

/** How long one request to a daemon that may be stuck is waited for. */
const HEALTH_MS = 1_000;
/** How often a waiting child looks again. */
const LOOK_MS = 25;
const STDERR_KEPT_BYTES = 1024 * 1024;
const STDERR_QUOTED_BYTES = 2_000;

/**
 * The argv that runs this same program again, compiled or from source.
 * @param args what follows the program's name, for instance `["daemon", "run", "--background"]`
 */
export function selfCommand(args: readonly string[]): string[] {
  return Bun.isStandaloneExecutable ? [process.execPath, ...args] : [process.execPath, Bun.main, ...args];
}

export interface Started {
  /** False when a daemon was there already, or another parent's child won. */
  readonly started: boolean;
  readonly info: DaemonInfo;
}

interface StartOptions {
  readonly paths: Paths;
  /** The argv of a process that calls `claimDaemon` and then `announceReady` or `announceFailed`. */
  readonly command: readonly string[];
  /** How long to wait for the child's word. */
  readonly timeout_ms: number;
}

/**
 * Make sure that a daemon runs: find it, or start one in a session of its own and wait until it is ready.
 * @returns who runs and whether it is our child; else the child's own problem, `daemon_unavailable` when it died
 * without a word (with the end of its stderr) or was not ready in time (it goes on), or a problem of `prepare`
 */
export async function startDaemon({ paths, command, timeout_ms }: StartOptions): Promise<Started | Problem> {
  const deadline = performance.now() + timeout_ms;
  const found = await discover(paths, { timeout_ms: Math.min(HEALTH_MS, timeout_ms) });
  if (runs(found)) return { started: false, info: found.info };
  const refusal = prepare(paths);
  if (refusal) return refusal;

  const stderr = openStderr(paths.stderr);
  try {
    const child = spawn(paths, command, stderr.fd);
    return isProblem(child) ? child : await listen(child, { paths, stderr, deadline, timeout_ms });
  } finally {
    closeSync(stderr.fd);
  }
}

interface Listening {
  readonly paths: Paths;
  readonly stderr: Stderr;
  /** On the clock of `performance.now()`. */
  readonly deadline: number;
  readonly timeout_ms: number;
}

/** Wait for the child's word, its end, or the deadline; afterwards the child no longer keeps this process up. */
async function listen(
  child: Child,
  { paths, stderr, deadline, timeout_ms }: Listening,
): Promise<Started | Problem> {
  const stdout = child.stdout.getReader();
  try {
    const word = await before(deadline, firstWord(stdout));
    const code = word === undefined ? await before(deadline, child.exited) : undefined;
    if (word === LATE || code === LATE) return await late(paths, timeout_ms);
    if (word === undefined) return died(child.signalCode ?? `exit code ${code}`, tail(stderr));
    return isProblem(word) ? word : { started: word.pid === child.pid, info: word };
  } finally {
    child.unref();
    await stdout.cancel();
  }
}

function runs(found: Discovery): found is Discovery & { info: DaemonInfo } {
  return (found.state === "running" || found.state === "running-older") && found.info !== undefined;
}

type Child = Bun.Subprocess<"ignore", "pipe", number>;

function spawn(paths: Paths, command: readonly string[], stderr: number): Child | Problem {
  // What a wrapper gave its child is not the daemon's; and "/" is where a relative MP_HOME would now point to.
  const env = { ...process.env };
  for (const name of sessionVariables) delete env[name];
  if (paths.home !== undefined) env.MP_HOME = paths.home;
  const cwd = process.platform === "win32" ? paths.data : "/";
  try {
    return Bun.spawn([...command], { cwd, env, detached: true, stdio: ["ignore", "pipe", stderr] });
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
    return problem("daemon_unavailable", `the daemon cannot be started: ${code}`);
  }
}

const LATE = Symbol("late");

async function before<T>(deadline: number, promise: Promise<T>): Promise<T | typeof LATE> {
  let timer: Timer | undefined;
  const end = new Promise<typeof LATE>((resolve) => {
    timer = setTimeout(() => resolve(LATE), Math.max(0, deadline - performance.now()));
  });
  try {
    return await Promise.race([promise, end]);
  } finally {
    clearTimeout(timer);
  }
}

type Output = Pick<ReadableStreamDefaultReader<Uint8Array>, "read">;

/** The first line that is a word of the handshake; undefined when the output ends without one. */
async function firstWord(stdout: Output): Promise<DaemonInfo | Problem | undefined> {
  const decoder = new TextDecoder();
  let rest = "";
  for (let next = await stdout.read(); !next.done; next = await stdout.read()) {
    const lines = (rest + decoder.decode(next.value, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const word = parseWord(line);
      if (word) return word;
    }
  }
  return undefined;
}

function parseWord(line: string): DaemonInfo | Problem | undefined {
  try {
    const word: { ready?: unknown; info?: unknown; failed?: unknown } = JSON.parse(line);
    if (isProblem(word.failed)) return word.failed;
    return word.ready === true && isInfo(word.info) ? word.info : undefined;
  } catch {
    return undefined;
  }
}

interface Stderr {
  readonly fd: number;
  /** Where this start's output begins. */
  readonly from: number;
}

/** Open the file that takes what the daemon prints by itself; it is emptied when it has become large. */
function openStderr(path: string): Stderr {
  const fd = openElseNull(path);
  const { size } = fstatSync(fd);
  if (size <= STDERR_KEPT_BYTES) return { fd, from: size };
  ftruncateSync(fd, 0);
  return { fd, from: 0 };
}

/** A start must not fail for want of a place to complain. */
function openElseNull(path: string): number {
  try {
    return openSync(path, "a+", 0o600);
  } catch {
    return openSync(devNull, "a+");
  }
}

function tail({ fd, from }: Stderr): string {
  const { size } = fstatSync(fd);
  const start = Math.max(from, size - STDERR_QUOTED_BYTES);
  const bytes = Buffer.alloc(Math.max(0, size - start));
  const length = readSync(fd, bytes, 0, bytes.length, start);
  return Bun.stripANSI(bytes.toString("utf8", 0, length)).trim();
}

function died(how: string | number, printed: string): Problem {
  const said = printed === "" ? "and printed nothing" : `and printed:\n${printed}`;
  return problem("daemon_unavailable", `the daemon ended before it was ready (${how}) ${said}`, {
    hint: "run 'mp daemon run' to see it start in the foreground",
  });
}

async function late(paths: Paths, timeout_ms: number): Promise<Problem> {
  const { state, info } = await discover(paths, { timeout_ms: HEALTH_MS });
  return problem("daemon_unavailable", `no daemon was ready within ${timeout_ms} ms; it is ${state} now`, {
    hint: `see ${paths.log}, or wait for it with 'mp daemon wait'`,
    details: { state, ...(info && { pid: info.pid }) },
  });
}

/** What became of a process that wants to be the daemon. */
export type Claim =
  /** It is the daemon now, for as long as it holds the lock; what an earlier one left in daemon.json is gone. */
  | { readonly lock: Lock }
  /** Another one is, and answers. */
  | { readonly running: DaemonInfo };

/**
 * Become the daemon of `paths`, or wait for the one that is. When the holder of the lock gives up before it is
 * ready, the next one takes over. Call after `prepare`.
 * @param timeout_ms how long to wait for a holder that does not answer (default 30,000)
 * @returns the lock or the running daemon; `daemon_unavailable` when its holder stays silent, `policy_denied`
 * when the lock file cannot be used
 */
export async function claimDaemon(paths: Paths, { timeout_ms = 30_000 } = {}): Promise<Claim | Problem> {
  const deadline = performance.now() + timeout_ms;
  for (;;) {
    const lock = isLocked(paths.lock) ? undefined : take(paths.lock);
    if (isProblem(lock)) return lock;
    if (lock) {
      removeInfo(paths);
      return { lock };
    }
    const found = await discover(paths, { timeout_ms: HEALTH_MS });
    if (runs(found)) return { running: found.info };
    if (performance.now() > deadline) return heldInSilence(found, paths);
    await Bun.sleep(LOOK_MS);
  }
}

function take(path: string): Lock | Problem | undefined {
  try {
    return acquireLock(path);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
    return problem("policy_denied", `the lock file ${path} cannot be used: ${code}`, {
      hint: "check who owns it; if it is not empty, it is not mp's: move it away",
      details: { path },
    });
  }
}

function heldInSilence({ state, info }: Discovery, paths: Paths): Problem {
  const who = info ? `the daemon with pid ${info.pid}` : "another process";
  return problem("daemon_unavailable", `${who} holds the lock ${paths.lock} but is ${state}`, {
    hint: `see ${paths.log}; 'mp daemon stop' ends a daemon that is stuck`,
    details: { state, ...(info && { pid: info.pid }) },
  });
}

/** Child: tell the parent that `info` is ready (this process, or the one that was waited for). Call once. */
export function announceReady(info: DaemonInfo): void {
  say({ ready: true, info });
}

/** Child: tell the parent why there will be no daemon. Call once, then exit. */
export function announceFailed(found: Problem): void {
  say({ failed: found });
}

/**
 * Write the line and let go of the pipe: once the parent is gone a write to it would kill the daemon. The null
 * device takes its place at once, so that no file opened later becomes "stdout".
 */
function say(word: object): void {
  const bytes = Buffer.from(`${JSON.stringify(word)}\n`);
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
  } catch {
    // The parent did not wait so long: there is nobody to tell.
  }
  closeSync(1);
  openSync(devNull, "w");
}
