/** `mp daemon`: starting by itself and by hand, stopping, what it says about itself. */
import { describe, expect, test } from "bun:test";
import { appendFileSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DaemonInfo } from "../../src/daemon/info.ts";
import { acquireLock } from "../../src/daemon/lock.ts";
import { paths } from "../../src/daemon/paths.ts";
import { aggregates } from "../../src/domain/index.ts";
import { run, start, tempHome, waitFor } from "../support/binary.ts";
import { cli, lines, shell } from "./cli.ts";

interface Status {
  readonly state: string;
  readonly pid: number | null;
  readonly version: string | null;
  readonly start_id: string | null;
  readonly log_id: string | null;
  readonly head: number | null;
  readonly addresses: { readonly socket: string };
}

/** `mp daemon status --json` with its exit code. */
async function status(home: string): Promise<[number, Status]> {
  const { code, stdout, stderr } = await cli(home).mp("daemon", "status", "--json");
  expect(stderr).toBe("");
  return [code, JSON.parse(stdout) as Status];
}

describe("starting by itself", () => {
  test("the first command starts the daemon and answers, silently in a pipe", async () => {
    const home = tempHome();
    expect(await cli(home).out("workspace", "create", "demo")).toMatch(/^[0-9a-f-]{36}$/);
    expect((await status(home))[1].state).toBe("running");
  });

  test("ten first commands at once meet one daemon", async () => {
    const home = tempHome();
    const { json } = cli(home);
    const answers = await Promise.all(range(10).map((at) => json("workspace", "create", `w${at}`)));
    expect(new Set(answers.map(({ seq_global }) => seq_global)).size).toBe(10);
    const pids = lines(readFileSync(paths({ MP_HOME: home }).log, "utf8"))
      .map((line) => JSON.parse(line) as { pid: number; msg: string })
      .filter(({ msg }) => msg === "ready")
      .map(({ pid }) => pid);
    expect(pids).toHaveLength(1);
  });

  test("a command that meets a stopped or killed daemon starts the next one", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    await out("workspace", "create", "demo");
    const [, first] = await status(home);
    process.kill(first.pid!, "SIGKILL");
    await waitFor(async () => (await status(home))[1].state === "stopped", { what: "the end of the daemon" });
    expect(await json("workspace", "get", "demo")).toMatchObject({ name: "demo" });
    expect((await status(home))[1].start_id).not.toBe(first.start_id);
  });

  test("the child's own error is what the parent prints, with the child's exit code", async () => {
    const home = tempHome();
    writeFileSync(
      join(home, "kernel.db"),
      "this is no database, but it is long enough to look like a file of one",
    );
    const said = await cli(home).refused(6, "workspace", "list");
    expect(said).toContain("the database cannot be served");
  });

  test("what a wrapper set for its child does not reach the daemon", async () => {
    const home = tempHome();
    await run(["daemon", "start"], { home, env: { MP_TOKEN: "secret", MP_SESSION_ID: "s" } });
    const [, { pid }] = await status(home);
    if (process.platform === "linux")
      expect(readFileSync(`/proc/${pid}/environ`, "utf8")).not.toContain("secret");
  });
});

describe("start, stop, restart, wait", () => {
  test("start says what it did and may be repeated", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    const [word, pid, version, socket] = (await out("daemon", "start")).split("\t");
    expect([word, version, socket]).toEqual([
      "started",
      expect.stringMatching(/^\d+\.\d+\.\d+/),
      `${home}/run/mp.sock`,
    ]);
    expect((await out("daemon", "start")).split("\t").slice(0, 2)).toEqual(["already-running", pid!]);
    expect(await json("daemon", "start")).toMatchObject({
      started: false,
      pid: Number(pid),
      addresses: { socket },
    });
  });

  test("stop comes back when the daemon has gone, and may be repeated", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    await out("workspace", "create", "demo");
    const [, { pid }] = await status(home);
    expect(await out("daemon", "stop")).toBe(`stopped\t${pid}`);
    expect(existsSync(join(home, "daemon.json"))).toBe(false);
    expect((await status(home))[1].state).toBe("stopped");
    expect(await out("daemon", "stop")).toBe("not-running\t");
    expect(await json("daemon", "stop")).toEqual({ stopped: false, pid: null });
  });

  test("stop in a home that does not exist makes none", async () => {
    const home = join(tempHome(), "nothing", "here");
    expect(await cli(home).out("daemon", "stop")).toBe("not-running\t");
    expect(existsSync(home)).toBe(false);
  });

  test("stop says so when the daemon does not end, and how to go on", async () => {
    const home = tempHome();
    const { out, refused } = cli(home);
    await out("daemon", "start");
    const [, { pid }] = await status(home);
    process.kill(pid!, "SIGSTOP");
    try {
      expect(await refused(7, "daemon", "stop", "--timeout", "1200ms")).toMatch(
        new RegExp(`pid ${pid}.*has not ended within 1.2s[\\s\\S]*kill -9 ${pid}`),
      );
    } finally {
      process.kill(pid!, "SIGCONT");
    }
    // It had got the signal: once it goes on, it ends.
    await waitFor(async () => (await status(home))[1].state === "stopped", { what: "its end" });
  });

  test("stop is done when the daemon that it asked has gone, whoever holds the lock by then", async () => {
    const home = tempHome();
    const child = await posing(home, "exit 0");
    const lock = acquireLock(paths({ MP_HOME: home }).lock)!;
    try {
      expect(await cli(home).out("daemon", "stop", "--timeout", "20s")).toBe(`stopped\t${child.pid}`);
      expect(await child.exited).toBe(0);
    } finally {
      lock.release();
    }
  });

  test("stop is done, and says so, when another start has taken over", async () => {
    const home = tempHome();
    const child = await posing(home, `mv ${home}/next.json ${home}/daemon.json`);
    const next = { ...JSON.parse(readFileSync(join(home, "daemon.json"), "utf8")), start_id: "next" };
    writeFileSync(join(home, "next.json"), JSON.stringify(next));
    const lock = acquireLock(paths({ MP_HOME: home }).lock)!;
    try {
      const { code, stdout, stderr } = await cli(home).mp("daemon", "stop", "--timeout", "20s");
      expect([code, stdout]).toEqual([0, `stopped\t${child.pid}\n`]);
      expect(stderr).toBe(`another start has taken over: pid ${child.pid}\n`);
    } finally {
      lock.release();
      child.kill("SIGKILL");
      await child.exited;
    }
  });

  test("a daemon whose socket somebody removed: restart is the advice", async () => {
    const home = tempHome();
    const { json, refused } = cli(home);
    const first = await json<Status>("daemon", "start");
    rmSync(first.addresses.socket);
    expect(await refused(6, "workspace", "list", "--no-spawn")).toContain("mp daemon restart");
    expect(await refused(7, "daemon", "wait", "--timeout", "100ms")).toContain("mp daemon restart");
    expect(await refused(6, "daemon", "start", "--timeout", "300ms")).toContain("mp daemon restart");
    expect(await refused(6, "workspace", "list", "--timeout", "300ms")).toContain("mp daemon restart");
    // What those two started still waits for the lock, and may be the next daemon.
    const { code, stdout } = await cli(home).mp("daemon", "restart", "--json");
    expect([code, JSON.parse(stdout)]).toMatchObject([0, { stopped_pid: first.pid }]);
    expect(JSON.parse(stdout).pid).not.toBe(first.pid);
  });

  test("a daemon whose socket somebody removed: restart and stop work", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    const first = await json<Status>("daemon", "start");
    rmSync(first.addresses.socket);
    const second = await json<Status>("daemon", "restart");
    expect(second).toMatchObject({ started: true, stopped_pid: first.pid });
    rmSync(second.addresses.socket);
    expect(await out("daemon", "stop")).toBe(`stopped\t${second.pid}`);
    expect((await status(home))[1].state).toBe("stopped");
  });

  test("--no-spawn is taken, and changes nothing, where nothing is started", async () => {
    const home = tempHome();
    const { mp, out } = cli(home);
    expect(await out("daemon", "stop", "--no-spawn")).toBe("not-running\t");
    expect((await mp("daemon", "status", "--no-spawn")).code).toBe(6);
    expect((await mp("daemon", "wait", "--no-spawn", "--timeout", "50ms")).code).toBe(7);
    expect((await mp("daemon", "logs", "--no-spawn")).code).toBe(3);
  });

  test("restart: another daemon, the same log", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    const first = await json<Status>("daemon", "restart");
    expect(first).toMatchObject({ started: true, stopped_pid: null });
    await out("workspace", "create", "demo");
    const second = await json<Status>("daemon", "restart");
    expect(second).toMatchObject({ started: true, stopped_pid: first.pid, log_id: first.log_id });
    expect(second.start_id).not.toBe(first.start_id);
    expect(await json("workspace", "get", "demo")).toMatchObject({ name: "demo" });
  });

  test("wait: 7 while there is none, 0 once somebody starts one", async () => {
    const home = tempHome();
    const { refused, mp, out } = cli(home);
    expect(await refused(7, "daemon", "wait", "--timeout", "200ms")).toContain("it is stopped");
    const waiting = mp("daemon", "wait", "--timeout", "20s");
    await out("daemon", "start");
    const { code, stdout } = await waiting;
    expect([code, stdout.split("\t")[0]]).toEqual([0, "ready"]);
  });
});

describe("run", () => {
  test("in the foreground: says when it is ready, ends at SIGTERM with 0", async () => {
    const home = tempHome();
    const child = start(["daemon", "run", "--json"], { home });
    const { value } = await child.stdout.getReader().read();
    expect(JSON.parse(new TextDecoder().decode(value))).toMatchObject({ ready: true, pid: child.pid });
    expect((await status(home))[1]).toMatchObject({ state: "running", pid: child.pid });
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
    expect((await status(home))[1].state).toBe("stopped");
  });

  test("a second one is refused: conflict, exit code 5", async () => {
    const home = tempHome();
    const { out, refused } = cli(home);
    await out("daemon", "start");
    expect(await refused(5, "daemon", "run")).toContain("a daemon runs already");
  });
});

describe("status", () => {
  test("stopped: exit code 6, the report on stdout all the same, nothing started", async () => {
    const home = tempHome();
    const [code, report] = await status(home);
    expect(code).toBe(6);
    expect(report).toMatchObject({
      state: "stopped",
      pid: null,
      version: null,
      start_id: null,
      log_id: null,
      head: null,
    });
    expect(report.addresses.socket).toBe(`${home}/run/mp.sock`);
    expect(existsSync(join(home, "kernel.db"))).toBe(false);
  });

  test("running: exit code 0, with all that SPEC §12 asks for", async () => {
    const home = tempHome();
    await cli(home).out("workspace", "create", "demo");
    const [code, report] = await status(home);
    expect(code).toBe(0);
    expect(report).toMatchObject({
      state: "running",
      pid: expect.any(Number),
      version: expect.stringMatching(/^\d/),
      start_id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      log_id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      head: 1,
      read_only: false,
      projections: aggregates.map(({ kind }) => ({ name: kind, status: "serving" })),
    });
  });

  test("in a pipe: a name and a value per line", async () => {
    const home = tempHome();
    const { out, mp } = cli(home);
    expect((await mp("daemon", "status")).stdout).toContain("state\tstopped\n");
    await out("daemon", "start");
    const rows = Object.fromEntries(lines(await out("daemon", "status")).map((line) => line.split("\t")));
    expect(rows).toMatchObject({
      state: "running",
      head: "0",
      socket: `${home}/run/mp.sock`,
      read_only: "false",
    });
  });

  test("unresponsive: a daemon that does not move", async () => {
    const home = tempHome();
    await cli(home).out("daemon", "start");
    const [, { pid }] = await status(home);
    process.kill(pid!, "SIGSTOP");
    try {
      const [code, report] = await status(home);
      expect([code, report.state, report.pid]).toEqual([6, "unresponsive", pid]);
    } finally {
      process.kill(pid!, "SIGCONT");
    }
  });
});

describe("ping", () => {
  test("answers, and starts the daemon like any command", async () => {
    const home = tempHome();
    const { out, json } = cli(home);
    expect((await out("daemon", "ping")).split("\t").slice(0, 3)).toEqual(["pong", expect.any(String), "0"]);
    expect(await json("daemon", "ping")).toMatchObject({ pong: true, as_of_seq: 0 });
  });
});

describe("logs", () => {
  test("the last lines, as they are", async () => {
    const home = tempHome();
    const { out, refused } = cli(home);
    expect(await refused(3, "daemon", "logs")).toContain("there is no log");
    await out("daemon", "start");
    await out("daemon", "stop");
    const whole = lines(readFileSync(join(home, "daemon.log"), "utf8"));
    expect(lines(await out("daemon", "logs"))).toEqual(whole);
    expect(lines(await out("daemon", "logs", "-n", "1"))).toEqual(whole.slice(-1));
    expect(await out("daemon", "logs", "-n", "0")).toBe("");
    expect(JSON.parse(await out("daemon", "logs", "-n", "1"))).toMatchObject({ msg: "stopped" });
  });

  test.skipIf(process.platform === "win32")("-f ends soon after its reader has gone", async () => {
    const home = tempHome();
    appendFileSync(join(home, "daemon.log"), '{"msg":"one"}\n{"msg":"two"}\n');
    const { stdout } = await shell(`mp daemon logs -f | head -n 1; echo "code \${PIPESTATUS[0]}"`, home);
    expect(stdout).toBe('{"msg":"one"}\ncode 0\n');
  });

  test("-f goes on as the file grows, also when it is put aside and begun anew", async () => {
    const home = tempHome();
    const log = join(home, "daemon.log");
    appendFileSync(log, '{"msg":"one"}\n{"msg":"zwei – ä"}\n');
    const child = start(["daemon", "logs", "-f", "-n", "1"], { home });
    let seen = "";
    const reading = (async () => {
      const decoder = new TextDecoder();
      for await (const chunk of child.stdout) seen += decoder.decode(chunk, { stream: true });
    })();
    const shows = (text: string) => waitFor(() => seen.endsWith(text), { what: `${text} after ${seen}` });
    await shows('{"msg":"zwei – ä"}\n');
    appendFileSync(log, '{"msg":"three"}\n{"ms');
    await shows('{"msg":"three"}\n');
    appendFileSync(log, 'g":"four"}\n');
    await shows('{"msg":"four"}\n');
    appendFileSync(log, '{"msg":"last of the old"}\n');
    renameSync(log, `${log}.1`);
    writeFileSync(log, '{"msg":"first of the new"}\n');
    await shows('{"msg":"last of the old"}\n{"msg":"first of the new"}\n');
    child.kill("SIGINT");
    await child.exited;
    await reading;
    expect(seen).not.toContain('"one"');
  });
});

/** A process that daemon.json calls the daemon, and that does `at` when it gets SIGTERM. */
async function posing(home: string, at: string) {
  const script = `trap '${at}' TERM; echo ready; while :; do sleep 0.02; done`;
  const child = Bun.spawn(["bash", "-c", script], { stdout: "pipe" });
  await child.stdout.getReader().read();
  const info: DaemonInfo = {
    pid: child.pid,
    version: "0.0.0",
    api_version: 1,
    start_id: "first",
    log_id: "log",
    started_at: "2026-11-22T10:00:00.000Z",
    addresses: { socket: paths({ MP_HOME: home }).socket },
  };
  writeFileSync(join(home, "daemon.json"), JSON.stringify(info));
  return child;
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, at) => at);
}
