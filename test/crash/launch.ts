/**
 * A daemon that a test means to hurt: the compiled executable when there is one (MP_BINARY, else dist/mp), else from source.
 *
 * Always so: `exited` tells how it ended, however that came about; nothing of the caller's MP_* reaches it; a command that
 * got no answer is told apart from one that was refused. The home is the caller's, from `tempHome`.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type DaemonInfo, isInfo } from "../../src/daemon/info.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";

const compiled = process.env.MP_BINARY ?? join(import.meta.dir, "..", "..", "dist", "mp");

/** A daemon that has not said a word by then is killed. */
const START_MS = 20_000;

/** What is run: told once by the tests that care. */
export const command: readonly string[] = existsSync(compiled)
  ? [compiled, "daemon", "run", "--background"]
  : [process.execPath, join(import.meta.dir, "..", "support", "serve.ts")];

export interface Launched {
  readonly pid: number;
  readonly info: DaemonInfo;
  readonly socket: string;
  /** Exit code, 128 + n after signal n. */
  readonly exited: Promise<number>;
  kill(signal: NodeJS.Signals): void;
}

/** Start the process of a daemon and let it be: it may be killed before it is ready. */
export function begin(
  home: string,
  env: Readonly<Record<string, string>> = {},
  stderr: "inherit" | "ignore" = "inherit",
) {
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith("MP_") && name !== "BUN_OPTIONS",
  );
  return Bun.spawn([...command], {
    // From source it ends with its standard input, so that no daemon outlives the tests.
    stdin: "pipe",
    stdout: "pipe",
    stderr,
    env: { ...Object.fromEntries(kept), ...env, MP_HOME: home },
  });
}

/**
 * Start a daemon and wait until clients can connect.
 * @param stderr "ignore" where a refusal is expected
 * @returns the daemon, or the problem with which it refused to start
 */
export async function launch(
  home: string,
  env: Readonly<Record<string, string>> = {},
  stderr: "inherit" | "ignore" = "inherit",
): Promise<Launched | Problem> {
  const child = begin(home, env, stderr);
  const late = setTimeout(() => child.kill("SIGKILL"), START_MS);
  // The daemon closes its standard output after the one line.
  const said = await Bun.readableStreamToText(child.stdout);
  clearTimeout(late);
  const word = (said.startsWith("{") ? JSON.parse(said) : {}) as { info?: unknown; failed?: unknown };
  if (isProblem(word.failed)) return word.failed;
  const { info } = word;
  if (!isInfo(info) || info.pid !== child.pid)
    throw new Error(`the daemon did not start (exit code ${await child.exited}): ${said.trim()}`);
  return {
    pid: child.pid,
    info,
    socket: info.addresses.socket,
    exited: child.exited,
    kill: (signal) => child.kill(signal),
  };
}

/** `launch`, where a refusal to start fails the test. */
export async function launched(home: string, env: Readonly<Record<string, string>> = {}): Promise<Launched> {
  const daemon = await launch(home, env);
  if (isProblem(daemon)) throw new Error(`the daemon refused to start: ${daemon.detail}`);
  return daemon;
}

export interface Envelope {
  readonly type: string;
  readonly payload: object;
  readonly idempotency_key: string;
}

export interface Receipt {
  readonly command_id: string;
  readonly seq_global: number;
  readonly version: number;
  readonly subject: { readonly kind: string; readonly id: string };
  readonly events: readonly {
    readonly event_id: string;
    readonly seq_global: number;
    readonly seq_stream: number;
  }[];
  readonly replayed: boolean;
}

/** What became of a command: its receipt, its problem, or nothing, because the connection ended first. */
export type Fate =
  | { readonly kind: "receipt"; readonly receipt: Receipt }
  | { readonly kind: "problem"; readonly status: number; readonly problem: Problem }
  | { readonly kind: "lost" };

/** Send one command over HTTP on the socket. */
export async function send(socket: string, envelope: Envelope): Promise<Fate> {
  let status: number;
  let text: string;
  try {
    const response = await fetch("http://mp/v1/commands", {
      unix: socket,
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(envelope),
    });
    status = response.status;
    text = await response.text();
  } catch {
    return { kind: "lost" };
  }
  return status === 200
    ? { kind: "receipt", receipt: JSON.parse(text) as Receipt }
    : { kind: "problem", status, problem: JSON.parse(text) as Problem };
}

/** Send commands in one request, not atomic; throws when one is not accepted. */
export async function sendBatch(socket: string, commands: readonly Envelope[]): Promise<void> {
  const response = await fetch("http://mp/v1/commands/batch", {
    unix: socket,
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ atomic: false, commands }),
  });
  const { items } = (await response.json()) as { items?: { kind: string }[] };
  if (!items?.every((item) => item.kind === "receipt")) throw new Error("the batch was not accepted");
}

/** Ask one query; throws when it is not answered. */
export async function ask<T = Record<string, unknown>>(
  socket: string,
  type: string,
  search = "",
): Promise<T> {
  const response = await fetch(`http://mp/v1/queries/${type}${search}`, { unix: socket });
  if (!response.ok) throw new Error(`${type}: ${response.status} ${await response.text()}`);
  return (await response.json()) as T;
}
