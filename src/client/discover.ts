/**
 * Which daemon, if any, serves these paths: the states of `mp daemon status` (SPEC §12).
 *
 * Three witnesses: /health on the socket, the lock, daemon.json. A healthy answer with the start id of
 * daemon.json settles it with one request; the lock is asked only when something does not fit. The lock decides
 * whether a daemon lives, never daemon.json or a socket file: both outlive a SIGKILL. Cheap to import: what
 * only the slow path needs is loaded there.
 */
import { type DaemonInfo, readInfo } from "../daemon/info.ts";
import type { Paths } from "../daemon/paths.ts";

export type DaemonState = "running" | "running-older" | "starting" | "unresponsive" | "stopped" | "foreign";

/** What `GET /health` answers (SPEC §2). */
export interface Health {
  readonly status: string;
  readonly version: string;
  readonly api_version: number;
  readonly start_id: string;
}

export interface Discovery {
  /**
   * `running`; `running-older` than this program; `starting`: lock held, socket not up yet; `unresponsive`: lock
   * held, no answer; `stopped`: lock free; `foreign`: something answers that is not the daemon of these paths.
   */
  readonly state: DaemonState;
  /** daemon.json, where it speaks of the daemon of `state`. */
  readonly info?: DaemonInfo;
  /** Present when running, running-older, and for a foreign daemon. */
  readonly health?: Health;
}

interface Limits {
  /** How long to wait for /health, in milliseconds. */
  readonly timeout_ms: number;
  /** This program's version; without it nothing is called older. */
  readonly version?: string;
}

/** A daemon that holds the lock for so long without a socket is not starting any more. */
const YOUNG_MS = 60_000;

/**
 * Find the daemon of `paths`. Never throws; costs one request when it runs, at most two otherwise.
 * @returns the state with what is known; see `Discovery`
 */
export async function discover(paths: Paths, { timeout_ms, version }: Limits): Promise<Discovery> {
  const info = await readInfo(paths);
  const elsewhere = info !== undefined && info.addresses.socket !== paths.socket;
  // A copied folder brings the original's daemon.json along: another address counts only under our own lock.
  const socket = elsewhere && (await locked(paths)) ? info.addresses.socket : paths.socket;
  const answer = await askHealth(socket, timeout_ms);
  if (answer === "nobody" || answer === "silent") return quiet(paths, answer, info);
  if (answer === "stranger") return { state: "foreign" };
  const own = info?.start_id === answer.start_id ? info : await settled(paths, answer);
  if (own === "foreign") return { state: "foreign", health: answer };
  const older = version !== undefined && Bun.semver.order(answer.version, version) < 0;
  return { state: older ? "running-older" : "running", health: answer, ...(own && { info: own }) };
}

/**
 * A daemon answers, but daemon.json speaks of another or is missing. Missing and locked: it came up a moment ago
 * (the socket is there before the file). Anything else is not ours: who takes the lock removes what the last one
 * left, so a daemon.json that stays different was written by somebody who is not the one that answers.
 */
async function settled(paths: Paths, health: Health): Promise<DaemonInfo | undefined | "foreign"> {
  const now = await readInfo(paths);
  if (now !== undefined) return now.start_id === health.start_id ? now : "foreign";
  return (await locked(paths)) ? undefined : "foreign";
}

/** Nobody answers /health: what the lock says about it. */
async function quiet(
  paths: Paths,
  answer: "nobody" | "silent",
  info: DaemonInfo | undefined,
): Promise<Discovery> {
  if (!(await locked(paths))) return { state: answer === "nobody" ? "stopped" : "foreign" };
  const current = info !== undefined && alive(info.pid) ? { info } : {};
  const starting = answer === "nobody" && current.info === undefined && (await young(paths.lock));
  return { state: starting ? "starting" : "unresponsive", ...current };
}

async function locked(paths: Paths): Promise<boolean> {
  const { isLocked } = await import("../daemon/lock.ts");
  return isLocked(paths.lock);
}

async function young(lock: string): Promise<boolean> {
  return Date.now() - (await Bun.file(lock).stat()).mtimeMs < YOUNG_MS;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errorCode(error) === "EPERM";
  }
}

type Answer = Health | "nobody" | "silent" | "stranger";

/** One GET /health, and another when the connection broke: a daemon that is just going looks like that. */
async function askHealth(socket: string, timeout_ms: number): Promise<Answer> {
  for (let attempt = 0; attempt < 2; attempt++) {
    const answer = await ask(socket, timeout_ms);
    if (answer !== "broken") return answer;
  }
  return "silent";
}

async function ask(unix: string, timeout_ms: number): Promise<Answer | "broken"> {
  try {
    const signal = AbortSignal.timeout(timeout_ms);
    const response = await fetch("http://localhost/health", { unix, signal, redirect: "manual" });
    return reading(await response.text());
  } catch (error) {
    if (error instanceof Error && error.name === "TimeoutError") return "silent";
    const code = errorCode(error);
    if (code === "ECONNRESET" || code === "EPIPE") return "broken";
    // EAGAIN: the queue of connections that wait to be accepted is full.
    if (code === "EAGAIN") return "silent";
    return code === "Malformed_HTTP_Response" ? "stranger" : "nobody";
  }
}

function reading(body: string): Answer {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return "stranger";
  }
  if (isHealth(value)) return value;
  return isOurProblem(value) ? "silent" : "stranger";
}

function isHealth(value: unknown): value is Health {
  const health = value as Partial<Health> | null;
  return (
    typeof health === "object" &&
    health !== null &&
    typeof health.status === "string" &&
    typeof health.version === "string" &&
    typeof health.api_version === "number" &&
    typeof health.start_id === "string"
  );
}

function isOurProblem(value: unknown): boolean {
  const type = (value as { type?: unknown } | null)?.type;
  return typeof type === "string" && type.startsWith("urn:mp:problem:");
}

function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}
