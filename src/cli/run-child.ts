/**
 * The child of `mp session run` (SPEC §8): started in a process group of its own, its output passed through and kept.
 *
 * Always holds: what the child writes arrives byte for byte, on its own stream, and a slow reader slows the child, not our
 * memory; once the child has ended nothing that still holds its output open keeps us. At a terminal the child gets a
 * pseudo-terminal, where stdout and stderr are one as they are on any screen, and which makes a signal of Ctrl-C unless the
 * child wants the key itself; it is read as fast as it writes, for the runtime has no way to hold it back, so there a slow
 * screen does cost memory.
 * Written with write(2): the runtime's own write to a file that is open for appending leaves holes in it.
 */
import { existsSync, write } from "node:fs";
import { constants as os } from "node:os";
import { isAbsolute, join } from "node:path";
import { isatty } from "node:tty";
import type { Spool } from "./run-spool.ts";

/** How a child ended. */
export interface Ended {
  /** Its exit code; 128 + n after signal n; 127 or 126 when it could not be started, as shells have it. */
  readonly code: number;
  /** The signal that killed it. */
  readonly signal?: NodeJS.Signals;
  /** Why it could not be started. */
  readonly unstarted?: string;
  /** What to do about that. */
  readonly hint?: string;
}

export interface Child {
  readonly ended: Promise<Ended>;
  /** All its output has been read, and kept if it was to be. */
  readonly read: Promise<void>;
  /** All of that has been written where it goes, or nobody reads it there any more. */
  readonly written: Promise<void>;
  /** Our terminal only passes on: a new line needs its carriage return. */
  readonly raw: boolean;
  /** Send a signal; to its whole group where everything that it started shall hear it. Nothing once it has ended. */
  signal(signal: NodeJS.Signals, group: boolean): void;
}

interface Wanted {
  readonly command: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Keeps the output; without it nothing is kept. */
  readonly spool: Spool | undefined;
  /** Called when the child's terminal makes a signal of what is typed. */
  readonly onTyped: (signal: NodeJS.Signals) => void;
}

/** After the child's end: how long its output may be quiet, and how much of it may come, before it counts as others'. */
const QUIET_MS = 250;
const REST_BYTES = 4 << 20;
const REST_MS = 2_000;

const FOLDER_HINT =
  "'mp worktree reconcile PATH' looks whether it is back, 'mp worktree remove PATH' takes it off the list";

/** The keys that a terminal makes signals of, as long as nobody has chosen others: Ctrl-C and Ctrl-\. */
const TYPED: ReadonlyMap<number, NodeJS.Signals> = new Map([
  [0x03, "SIGINT"],
  [0x1c, "SIGQUIT"],
]);
/** The local flag of a terminal that makes it do so (termios.h). */
const ISIG = process.platform === "linux" ? 0x1 : 0x80;

/**
 * Start it.
 * @returns the child, or how it could not be started
 */
export function startChild(wanted: Wanted): Child | Ended {
  if (!existsSync(wanted.cwd))
    return { code: 126, unstarted: `its folder is not there: ${wanted.cwd}`, hint: FOLDER_HINT };
  try {
    return hasTerminal() ? atTerminal(wanted) : withPipes(wanted);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    const [name = ""] = wanted.command;
    const missing = code === "ENOENT" && !exists(name, wanted.cwd);
    return {
      code: missing ? 127 : 126,
      unstarted: missing ? "there is no such command" : `it cannot be run (${code})`,
    };
  }
}

/** A script whose interpreter is missing is there, and still ENOENT. */
function exists(name: string, cwd: string): boolean {
  if (!name.includes("/")) return Bun.which(name) !== null;
  return existsSync(isAbsolute(name) ? name : join(cwd, name));
}

/** Is it a person who sees and types? Then all three are terminals. */
function hasTerminal(): boolean {
  return process.platform !== "win32" && [0, 1, 2].every((stream) => isatty(stream));
}

function withPipes({ command, cwd, env, spool }: Wanted): Child {
  const out = spool ? "pipe" : "inherit";
  // A process group of its own, so that a signal reaches it once: from us, never from the terminal as well.
  const child = Bun.spawn([...command], {
    cwd,
    env: { ...env },
    stdin: "inherit",
    stdout: out,
    stderr: out,
    detached: true,
  });
  const passing = [
    passOn(child.stdout, 1, child.exited, spool),
    passOn(child.stderr, 2, child.exited, spool),
  ];
  return {
    ended: child.exited.then(() => endOf(child)),
    read: Promise.all(passing.map(({ read }) => read)).then(() => undefined),
    written: Promise.all(passing.map(({ written }) => written)).then(() => undefined),
    raw: false,
    signal: sender(child),
  };
}

interface Passing {
  readonly read: Promise<void>;
  readonly written: Promise<void>;
}

/** Carry one stream of the child to ours. */
function passOn(
  from: ReadableStream<Uint8Array> | undefined,
  to: 1 | 2,
  ended: Promise<unknown>,
  spool: Spool | undefined,
): Passing {
  if (!from) return { read: Promise.resolve(), written: Promise.resolve() };
  const reader = from.getReader();
  const sink = new Sink(to);
  let over = false;
  const end = ended.then(() => {
    over = true;
  });
  const read = (async () => {
    for (let rest = 0; rest <= REST_BYTES; ) {
      const next = reader.read();
      const chunk = await Promise.race([next, end.then(() => soon(next))]);
      if (!chunk || chunk.done) break;
      if (over) rest += chunk.value.length;
      spool?.add(chunk.value);
      const written = sink.write(chunk.value);
      // The child waits for whoever reads; its end does not.
      if (!over) await Promise.race([written, end]);
      if (sink.gone) break;
    }
    // What still writes now hears that nobody reads.
    await reader.cancel();
  })();
  return { read, written: read.then(() => sink.settled()) };
}

/** What a promise gives within the time of quiet. */
async function soon<T>(promise: Promise<T>): Promise<T | undefined> {
  const quiet = Bun.sleep(QUIET_MS)
    // Once more round the loop: what was there all the time, while this process was stopped, still counts.
    .then(() => Bun.sleep(1))
    .then(() => undefined);
  return Promise.race([promise, quiet]);
}

function atTerminal({ command, cwd, env, spool, onTyped }: Wanted): Child {
  const sink = new Sink(1);
  const closed = Promise.withResolvers<void>();
  let heard = performance.now();
  const { stdin, stdout } = process;
  const child = Bun.spawn([...command], {
    cwd,
    env: { ...env },
    terminal: {
      cols: stdout.columns || 80,
      rows: stdout.rows || 24,
      name: env.TERM || "xterm-256color",
      data(_, data) {
        heard = performance.now();
        const bytes = data.slice();
        spool?.add(bytes);
        void sink.write(bytes);
      },
      exit: () => closed.resolve(),
    },
  });
  const terminal = child.terminal!;
  const typed = (bytes: Uint8Array) => {
    if (terminal.closed) return;
    for (const byte of bytes) {
      const signal = TYPED.get(byte);
      if (signal && terminal.localFlags & ISIG) onTyped(signal);
    }
    terminal.write(bytes);
  };
  const resized = () => terminal.closed || terminal.resize(stdout.columns || 80, stdout.rows || 24);
  const restore = rawTerminal();
  process.on("exit", restore);
  process.on("SIGWINCH", resized);
  stdin.on("data", typed);
  const read = child.exited.then(async () => {
    const end = performance.now();
    for (let now = end; now - Math.max(heard, end) < QUIET_MS && now - end < REST_MS; now = performance.now())
      if (await Promise.race([closed.promise.then(() => true), Bun.sleep(QUIET_MS).then(() => false)])) break;
    stdin.off("data", typed);
    stdin.pause();
    process.off("SIGWINCH", resized);
    // What is still on its way to the screen must find it as it was made for it.
    await sink.settled();
    restore();
    process.off("exit", restore);
    terminal.close();
  });
  return {
    ended: child.exited.then(() => endOf(child)),
    read,
    written: read.then(() => sink.settled()),
    raw: true,
    signal: sender(child),
  };
}

/**
 * Let our terminal pass everything on as it is, in both directions: what the child's own terminal has done to a line must
 * not be done to it twice, and a full-screen program's line feeds are no new lines. The runtime's raw mode is only half of
 * it, so stty does it where there is one.
 * @returns makes it what it was; any number of times
 */
function rawTerminal(): () => void {
  const stty = (...words: string[]) =>
    Bun.spawnSync(["stty", ...words], { stdin: "inherit", stdout: "pipe", stderr: "ignore" });
  const saved = Bun.which("stty") === null ? undefined : stty("-g");
  if (saved?.success && stty("raw", "-echo").success) {
    const before = saved.stdout.toString().trim();
    return () => {
      stty(before);
    };
  }
  process.stdin.setRawMode(true);
  return () => {
    process.stdin.setRawMode(false);
  };
}

function endOf({ exitCode, signalCode }: Bun.Subprocess): Ended {
  if (signalCode === null) return { code: exitCode ?? 1 };
  const signals = Object.entries(os.signals) as [NodeJS.Signals, number][];
  const [signal, number] =
    signals.find(([name, each]) => name === signalCode || each === signalCode) ?? signals[0]!;
  return { code: 128 + number, signal };
}

function sender(child: Bun.Subprocess): Child["signal"] {
  return (signal, group) => {
    const over = child.exitCode !== null || child.signalCode !== null;
    try {
      // The rest of a group may outlive its leader.
      if (group) process.kill(-child.pid, signal);
      else if (!over) process.kill(child.pid, signal);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
    }
  };
}

/** One of our own streams, written in order. */
class Sink {
  /** Nobody reads it any more, or it cannot be written. */
  gone = false;
  #last: Promise<void> = Promise.resolve();

  constructor(readonly stream: 1 | 2) {}

  /** Comes back when these bytes have been taken. */
  write(bytes: Uint8Array): Promise<void> {
    this.#last = this.#last.then(() => this.#take(bytes));
    return this.#last;
  }

  settled(): Promise<void> {
    return this.#last;
  }

  async #take(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length && !this.gone; ) {
      const { code, taken } = await written(this.stream, bytes.subarray(at));
      at += taken;
      // Somebody who shares the stream has made it non-blocking.
      if (code === "EAGAIN") await Bun.sleep(5);
      else if (code !== undefined && code !== "EINTR") this.gone = true;
    }
  }
}

function written(
  stream: number,
  bytes: Uint8Array,
): Promise<{ readonly code?: string; readonly taken: number }> {
  return new Promise((resolve) => {
    write(stream, bytes, (error, taken) =>
      resolve(error ? { code: error.code ?? "unknown", taken: 0 } : { taken }),
    );
  });
}
