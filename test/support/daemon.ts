/**
 * A real daemon, from source, in a process of its own: for tests of everything that talks to one.
 *
 * Always so: it has an MP_HOME of its own (`tempHome`, which also ends it when the test or file ends), sees nothing of
 * the caller's MP_* or BUN_OPTIONS, and `kill` comes back when the process is really gone. Left out on purpose:
 * anything between the test and the socket; a test that needs a bad network puts its own proxy in front.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type DaemonInfo, isInfo } from "../../src/daemon/info.ts";
import { tempHome } from "./binary.ts";

const SCRIPT = join(import.meta.dir, "serve.ts");

export interface DaemonProcess {
  readonly home: string;
  /** The Unix socket; the same after a restart. */
  readonly socket: string;
  /** What the running daemon says about itself; another one after a restart. */
  readonly info: DaemonInfo;
  /** Send a signal (SIGTERM when absent) and wait for the end. Returns the exit code, 128 + n after signal n. */
  kill(signal?: NodeJS.Signals): Promise<number>;
  /** `kill`, if it runs, and start again in the same home. Comes back when clients can connect. */
  restart(signal?: NodeJS.Signals): Promise<void>;
}

/**
 * Start a daemon and wait until clients can connect.
 * @param home its MP_HOME; a new temporary one when absent. Give one that `tempHome` made, or end the daemon yourself
 * @param env added to its environment
 * @throws Error with what it said when it cannot be started
 */
export async function startDaemonProcess(
  home = tempHome(),
  env: Readonly<Record<string, string>> = {},
): Promise<DaemonProcess> {
  // Always the newest: a restart that comes during another one ends the daemon that one starts.
  let running = spawn(home, env);
  let { info } = await running;
  const kill = async (signal: NodeJS.Signals = "SIGTERM") => {
    const { child } = await running;
    child.kill(signal);
    return child.exited;
  };
  return {
    home,
    socket: info.addresses.socket,
    get info() {
      return info;
    },
    kill,
    async restart(signal) {
      running = kill(signal).then(() => spawn(home, env));
      ({ info } = await running);
    },
  };
}

async function spawn(home: string, env: Readonly<Record<string, string>>) {
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith("MP_") && name !== "BUN_OPTIONS",
  );
  const child = Bun.spawn([process.execPath, SCRIPT], {
    // Never written to: it ends with this process, and the daemon with it.
    stdin: "pipe",
    stdout: "pipe",
    stderr: Bun.file(join(home, "stderr.txt")),
    env: { ...Object.fromEntries(kept), ...env, MP_HOME: home },
  });
  // The daemon closes its standard output after the one line.
  const said = await Bun.readableStreamToText(child.stdout);
  const info = said.startsWith("{") ? (JSON.parse(said) as { info?: unknown }).info : undefined;
  if (!isInfo(info))
    throw new Error(`the daemon did not start: ${said}${readFileSync(join(home, "stderr.txt"), "utf8")}`);
  if (info.pid !== child.pid) throw new Error(`the daemon ${info.pid} runs in this home already`);
  return { child, info };
}
