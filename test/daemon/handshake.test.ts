import { afterEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { discover } from "../../src/client/discover.ts";
import { type Started, selfCommand, startDaemon } from "../../src/daemon/handshake.ts";
import { type DaemonInfo, readInfo, removeInfo, writeInfo } from "../../src/daemon/info.ts";
import { acquireLock, isLocked } from "../../src/daemon/lock.ts";
import { type Paths, paths, prepare } from "../../src/daemon/paths.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";
import { tempHome, waitFor } from "../support/binary.ts";

const TINY = [process.execPath, join(import.meta.dir, "tiny-daemon.ts")];
const PARENT = [process.execPath, join(import.meta.dir, "parent.ts")];

const home = (): Paths => paths({ MP_HOME: tempHome() });

/** What the next tiny daemons are told; startDaemon passes the environment on. */
function told(how: string, more: Record<string, string> = {}): void {
  Object.assign(process.env, { TINY: how, ...more });
}

afterEach(() => {
  for (const name of Object.keys(process.env)) if (name.startsWith("TINY")) delete process.env[name];
});

const start = (here: Paths, timeout_ms = 20_000) => startDaemon({ paths: here, command: TINY, timeout_ms });

function succeeded(answer: Started | Problem | undefined): Started {
  if (answer === undefined || isProblem(answer)) throw new Error(JSON.stringify(answer));
  return answer;
}

function refused(answer: Started | Problem): Problem {
  if (!isProblem(answer)) throw new Error(`started ${JSON.stringify(answer)}`);
  return answer;
}

const get = async (here: Paths, path: string) => fetch(`http://localhost${path}`, { unix: here.socket });

describe("startDaemon", () => {
  test("starts a daemon and answers when it is ready", async () => {
    const here = home();
    const { started, info } = succeeded(await start(here));
    expect(started).toBe(true);
    expect(await readInfo(here)).toEqual(info);
    expect(await discover(here, { timeout_ms: 5_000 })).toMatchObject({ state: "running", info });
    expect(isLocked(here.lock)).toBe(true);
  });

  test.if(process.platform === "linux")("the daemon has a session of its own and stands in /", async () => {
    const here = home();
    const { pid } = succeeded(await start(here)).info;
    const [, , group, session, terminal] = (
      readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1] ?? ""
    ).split(" ");
    expect({ group, session, terminal }).toEqual({ group: String(pid), session: String(pid), terminal: "0" });
    const { cwd } = await (await get(here, "/environment")).json();
    expect(cwd).toBe("/");
  });

  test("a relative MP_HOME still means the same place, and a wrapper's credentials stay behind", async () => {
    const here = home();
    Object.assign(process.env, { MP_HOME: "relative", MP_TOKEN: "secret", MP_TASK_ID: "t" });
    try {
      succeeded(await start(here));
    } finally {
      for (const name of ["MP_HOME", "MP_TOKEN", "MP_TASK_ID"]) delete process.env[name];
    }
    const { env } = await (await get(here, "/environment")).json();
    expect(env.MP_HOME).toBe(here.home);
    expect(env.MP_TOKEN).toBeUndefined();
    expect(env.MP_TASK_ID).toBeUndefined();
  });

  test("the daemon lives on when its parent is gone, and may print", async () => {
    const here = home();
    const parent = Bun.spawn(PARENT, {
      env: { ...process.env, MP_HOME: here.home },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const { info } = succeeded(JSON.parse(await new Response(parent.stdout).text()));
    expect(await parent.exited).toBe(0);
    expect(await (await get(here, "/print")).text()).toBe("printed");
    expect(await discover(here, { timeout_ms: 5_000 })).toMatchObject({ state: "running", info });
    expect(readFileSync(here.stderr, "utf8")).toBe("printed\n");
  });

  test("finds a daemon that runs, without starting anything", async () => {
    const here = home();
    const { info } = succeeded(await start(here));
    const again = await startDaemon({ paths: here, command: ["/nonexistent"], timeout_ms: 5_000 });
    expect(again).toEqual({ started: false, info });
  });

  test("what a SIGKILL leaves behind does not stop the next start", async () => {
    const here = home();
    const first = succeeded(await start(here)).info;
    process.kill(first.pid, "SIGKILL");
    await waitFor(() => !isLocked(here.lock), { what: "the end of the daemon" });
    expect(existsSync(here.socket) && existsSync(here.info)).toBe(true);
    const second = succeeded(await start(here));
    expect(second.started).toBe(true);
    expect(second.info.start_id).not.toBe(first.start_id);
  });

  test("the child's own problem is the answer", async () => {
    const here = home();
    told("fails");
    expect(refused(await start(here))).toMatchObject({ code: "read_only", detail: "the log is damaged" });
    await waitFor(() => !isLocked(here.lock), { what: "the end of the daemon" });
    told("");
    expect(succeeded(await start(here)).started).toBe(true);
  });

  test("a child that dies without a word is quoted from its stderr, this time's only", async () => {
    const here = home();
    prepare(here);
    writeFileSync(here.stderr, "an old complaint\n");
    told("speechless");
    const refusal = refused(await start(here));
    expect(refusal.code).toBe("daemon_unavailable");
    expect(refusal.detail).toBe(
      "the daemon ended before it was ready (exit code 3) and printed:\nthe runtime is broken",
    );
  });

  test("a long stderr is quoted by its end, and does not grow for ever", async () => {
    const here = home();
    prepare(here);
    writeFileSync(here.stderr, "x".repeat(2 * 1024 * 1024));
    const loud = [process.execPath, "-e", 'console.error("y".repeat(100_000) + "the end")'];
    const refusal = refused(await startDaemon({ paths: here, command: loud, timeout_ms: 20_000 }));
    expect(refusal.detail).toEndWith("ythe end");
    expect(refusal.detail.length).toBeLessThan(3_000);
    expect(statSync(here.stderr).size).toBe(100_008);
  });

  test("a child that is killed is named by its signal, a program that is not there by its error", async () => {
    const here = home();
    const killed = [process.execPath, "-e", 'process.kill(process.pid, "SIGKILL")'];
    const first = refused(await startDaemon({ paths: here, command: killed, timeout_ms: 20_000 }));
    expect(first.detail).toBe("the daemon ended before it was ready (SIGKILL) and printed nothing");
    const second = refused(await startDaemon({ paths: here, command: ["/nonexistent"], timeout_ms: 20_000 }));
    expect(second).toMatchObject({
      code: "daemon_unavailable",
      detail: "the daemon cannot be started: ENOENT",
    });
  });

  test("other output before the word is passed over", async () => {
    told("noisy");
    expect(succeeded(await start(home())).started).toBe(true);
  });

  test("a folder that is not safe is refused before anything starts", async () => {
    const base = tempHome();
    mkdirSync(join(base, "real"));
    symlinkSync("real", join(base, "link"));
    const here = paths({ MP_HOME: join(base, "link") });
    const refusal = refused(await startDaemon({ paths: here, command: ["/nonexistent"], timeout_ms: 5_000 }));
    expect(refusal.code).toBe("policy_denied");
  });

  test("a child that is only slow is left to go on", async () => {
    const here = home();
    told("gated");
    const refusal = refused(await start(here, 500));
    expect(refusal.code).toBe("daemon_unavailable");
    expect(refusal.detail).toStartWith("no daemon was ready within 500 ms; it is st");
    expect(refusal.hint).toContain(here.log);
    writeFileSync(join(here.data, "gate"), "");
    const found = await waitFor(async () => (await discover(here, { timeout_ms: 1_000 })).info, {
      what: "the slow daemon",
    });
    expect(await (await get(here, "/print")).text()).toBe("printed");
    expect(succeeded(await start(here))).toEqual({ started: false, info: found });
  });

  test("6 parents at once all end up with one daemon, and one of them started it", async () => {
    const here = home();
    const parents = Array.from({ length: 6 }, () =>
      Bun.spawn(PARENT, {
        env: { ...process.env, MP_HOME: here.home },
        stdio: ["ignore", "pipe", "inherit"],
      }),
    );
    const answers = await Promise.all(
      parents.map(async ({ stdout }) => succeeded(JSON.parse(await new Response(stdout).text()))),
    );
    const info = await readInfo(here);
    expect(answers.map((answer) => answer.info)).toEqual(answers.map(() => info as DaemonInfo));
    expect(answers.filter(({ started }) => started)).toHaveLength(1);
  });

  test("when the winner fails it says so to its parent, and another child takes over", async () => {
    const here = home();
    told("fails-once");
    const answers = await Promise.all([start(here), start(here), start(here)]);
    const problems = answers.filter(isProblem);
    expect(problems).toMatchObject([{ code: "read_only" }]);
    const others = answers.filter((answer) => !isProblem(answer)).map(succeeded);
    expect(new Set(others.map(({ info }) => info.pid)).size).toBe(1);
    expect(others.map(({ started }) => started).toSorted()).toEqual([false, true]);
  });

  test("a daemon that holds the lock and does not answer is named", async () => {
    const here = home();
    const { info } = succeeded(await start(here));
    process.kill(info.pid, "SIGSTOP");
    try {
      told("", { TINY_TIMEOUT_MS: "100" });
      const refusal = refused(await start(here));
      expect(refusal.code).toBe("daemon_unavailable");
      expect(refusal.detail).toContain(`the daemon with pid ${info.pid} holds the lock`);
      expect(refusal.details).toEqual({ state: "unresponsive", pid: info.pid });
    } finally {
      process.kill(info.pid, "SIGCONT");
    }
  });

  test("a lock file that is not one is a problem of the child's", async () => {
    const here = home();
    prepare(here);
    writeFileSync(here.lock, "4711\n".repeat(200));
    const refusal = refused(await start(here));
    expect(refusal.code).toBe("policy_denied");
    expect(refusal.detail).toContain(here.lock);
  });
});

describe("selfCommand", () => {
  test("from source it is this Bun and the main file", () => {
    expect(selfCommand(["daemon", "run"])).toEqual([process.execPath, Bun.main, "daemon", "run"]);
  });

  test("compiled it is the executable alone, whatever it is called and wherever it stands", async () => {
    const folder = tempHome();
    const source = join(folder, "self.ts");
    const module = JSON.stringify(join(import.meta.dir, "../../src/daemon/handshake.ts"));
    writeFileSync(
      source,
      `import { selfCommand } from ${module};
      if (process.argv[2] === "again") console.log("again", process.argv.slice(3).join());
      else process.exit(Bun.spawnSync(selfCommand(["again", "a", "b"]), { stdout: "inherit" }).exitCode);`,
    );
    const executable = join(folder, "renamed");
    const built = Bun.spawnSync([
      process.execPath,
      "build",
      "--compile",
      "--bytecode",
      source,
      "--outfile",
      executable,
    ]);
    expect(built.exitCode).toBe(0);
    const { stdout } = Bun.spawnSync([executable, "first"], { cwd: "/" });
    expect(stdout.toString()).toBe("again a,b\n");
  });
});

describe("daemon.json", () => {
  const info = (here: Paths): DaemonInfo => ({
    pid: 1,
    version: "1.0.0",
    api_version: 1,
    start_id: "s",
    log_id: "l",
    started_at: "2026-11-22T10:00:00.000Z",
    addresses: { socket: here.socket, tcp: "https://localhost:1" },
  });

  test("comes back as it was written, private, with nothing beside it", async () => {
    const here = home();
    const before = process.umask(0);
    try {
      writeInfo(here, { ...info(here), pid: 2 });
      writeInfo(here, info(here));
    } finally {
      process.umask(before);
    }
    expect(await readInfo(here)).toEqual(info(here));
    expect(statSync(here.info).mode & 0o777).toBe(0o600);
    expect(readdirSync(here.data)).toEqual(["daemon.json"]);
    removeInfo(here);
    removeInfo(here);
    expect(await readInfo(here)).toBeUndefined();
  });

  test("a reader meets a whole file at any moment", async () => {
    const here = home();
    writeInfo(here, info(here));
    let writing = true;
    const reader = (async () => {
      for (let reads = 0; writing || reads < 50; reads++) expect(await readInfo(here)).toBeDefined();
    })();
    for (let n = 0; n < 300; n++) {
      writeInfo(here, { ...info(here), log_id: "l".repeat(1 + (n % 5_000)) });
      await new Promise(setImmediate);
    }
    writing = false;
    await reader;
  });

  test("what a crash left half written is no obstacle, what is not a daemon.json is none", async () => {
    const here = home();
    writeFileSync(`${here.info}.tmp`, '{"pid":');
    writeInfo(here, info(here));
    expect(await readInfo(here)).toEqual(info(here));
    for (const content of [
      "",
      "null",
      '"x"',
      "[]",
      "{}",
      '{"pid":1}',
      JSON.stringify({ ...info(here), addresses: {} }),
    ]) {
      writeFileSync(here.info, content);
      expect(await readInfo(here)).toBeUndefined();
    }
  });

  test("a start removes what the last daemon left before it is found", async () => {
    const here = home();
    told("gated");
    prepare(here);
    writeInfo(here, { ...info(here), pid: process.pid });
    const starting = start(here);
    await waitFor(() => isLocked(here.lock) && !existsSync(here.info), {
      what: "the removal of daemon.json",
    });
    writeFileSync(join(here.data, "gate"), "");
    expect(succeeded(await starting).started).toBe(true);
    rmSync(join(here.data, "gate"));
    expect(acquireLock(here.lock)).toBeUndefined();
  });
});
