/**
 * Short forms for tests of the CLI: `mp` with the output a test wants, a refusal, a terminal.
 *
 * Everything runs the executable (test/support/binary.ts) in a home of its own.
 */
import { expect } from "bun:test";
import { connect } from "../../src/client/client.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { binary, type Finished, run } from "../support/binary.ts";

export interface Cli {
  readonly home: string;
  /** Runs `mp`; the test looks at the exit code. */
  mp(...args: string[]): Promise<Finished>;
  /** Runs `mp`, which must end with 0 and a silent stderr; its stdout without the last newline. */
  out(...args: string[]): Promise<string>;
  /** The same with `--json`, parsed. */
  json<T = Record<string, unknown>>(...args: string[]): Promise<T>;
  /** Runs `mp`, which must end with this code and an empty stdout; what it says on stderr. */
  refused(code: number, ...args: string[]): Promise<string>;
}

/** The CLI in one home. */
export function cli(home: string, env: Readonly<Record<string, string | undefined>> = {}): Cli {
  const mp = (...args: string[]) => run(args, { home, env });
  const out = async (...args: string[]) => {
    const { code, stdout, stderr } = await mp(...args);
    expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: "" });
    return stdout.replace(/\n$/, "");
  };
  return {
    home,
    mp,
    out,
    json: async <T>(...args: string[]) => JSON.parse(await out(...args, "--json")) as T,
    async refused(code, ...args) {
      const finished = await mp(...args);
      expect({ args, code: finished.code, stdout: finished.stdout }).toEqual({ args, code, stdout: "" });
      expect(finished.stderr).not.toBe("");
      return finished.stderr;
    },
  };
}

/** Lines of a text without the empty end. */
export function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

/**
 * Creates so many workspaces in one go, `<prefix>0` and on, so that a log has something in it.
 * @param socket of a daemon that runs
 */
export async function fill(home: string, count: number, prefix = "w"): Promise<void> {
  const client = connect({ socket: `${home}/run/mp.sock` });
  for (let from = 0; from < count; from += 1_000) {
    const size = Math.min(1_000, count - from);
    const commands = Array.from({ length: size }, (_, at) => ({
      type: "workspace.create" as const,
      payload: { name: `${prefix}${from + at}` },
    }));
    const answer = await client.batch(commands, { atomic: true });
    if (isProblem(answer)) throw new Error(JSON.stringify(answer));
  }
}

/** Runs `mp` at a terminal; what it shows, stdout and stderr in one, with `\n` for line ends. */
export async function atTerminal(
  args: readonly string[],
  {
    home,
    columns = 100,
    env = {},
  }: { readonly home: string; readonly columns?: number; readonly env?: Readonly<Record<string, string>> },
): Promise<{ readonly code: number; readonly shown: string }> {
  const chunks: Uint8Array[] = [];
  const { NO_COLOR: _, FORCE_COLOR: __, MP_BINARY: ___, ...inherited } = process.env;
  const child = Bun.spawn([binary(), ...args], {
    env: { ...inherited, TERM: "xterm-256color", MP_HOME: home, ...env },
    terminal: {
      cols: columns,
      rows: 50,
      data(_terminal, data) {
        chunks.push(data.slice());
      },
    },
  });
  const code = await child.exited;
  child.terminal?.close();
  return { code, shown: Buffer.concat(chunks).toString().replaceAll("\r\n", "\n") };
}

/** Runs a shell script with `mp` on its PATH. */
export async function shell(script: string, home: string): Promise<Finished> {
  const child = Bun.spawn(["bash", "-c", script], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: {
      ...process.env,
      MP_HOME: home,
      PATH: `${binary().replace(/\/[^/]+$/, "")}:${process.env.PATH ?? ""}`,
    },
  });
  const [code, stdout, stderr] = await Promise.all([
    child.exited,
    Bun.readableStreamToText(child.stdout),
    Bun.readableStreamToText(child.stderr),
  ]);
  return { code, stdout, stderr };
}
