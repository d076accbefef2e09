import { afterEach, describe, expect, test } from "bun:test";
import { cpSync, existsSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { type Discovery, discover } from "../../src/client/discover.ts";
import { startDaemon } from "../../src/daemon/handshake.ts";
import { type DaemonInfo, readInfo, removeInfo, writeInfo } from "../../src/daemon/info.ts";
import { acquireLock, isLocked, type Lock } from "../../src/daemon/lock.ts";
import { type Paths, paths, prepare } from "../../src/daemon/paths.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { tempHome, waitFor } from "../support/binary.ts";

const TINY = [process.execPath, join(import.meta.dir, "../daemon/tiny-daemon.ts")];

const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

/** The folders of a new home, as a daemon would have made them. */
function home(): Paths {
  const here = paths({ MP_HOME: tempHome() });
  expect(prepare(here)).toBeUndefined();
  return here;
}

async function daemon(here: Paths): Promise<DaemonInfo> {
  const answer = await startDaemon({ paths: here, command: TINY, timeout_ms: 20_000 });
  if (isProblem(answer)) throw new Error(JSON.stringify(answer));
  return answer.info;
}

/** SIGKILL, and wait until the process is gone: its lock is free a moment before its socket is. */
async function kill(pid: number): Promise<void> {
  process.kill(pid, "SIGKILL");
  const gone = () => {
    try {
      return !process.kill(pid, 0);
    } catch {
      return true;
    }
  };
  await waitFor(gone, { what: "the end of the daemon" });
}

function lock(here: Paths): Lock {
  const taken = acquireLock(here.lock);
  if (!taken) throw new Error("the lock is not free");
  endings.push(() => taken.release());
  return taken;
}

/** Something that listens on the socket and is no HTTP server. */
async function listen(path: string, on: (socket: Socket) => void): Promise<Server> {
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.on("error", () => open.delete(socket));
    on(socket);
  });
  await new Promise<void>((done) => server.listen(path, done));
  endings.push(() => {
    for (const socket of open) socket.destroy();
    return new Promise((done) => server.close(done));
  });
  return server;
}

/** An HTTP server on the socket; returns how often it was asked. */
function serve(path: string, answer: () => Response): { asked: number } {
  const count = { asked: 0 };
  const server = Bun.serve({
    unix: path,
    fetch() {
      count.asked++;
      return answer();
    },
  });
  endings.push(() => server.stop(true));
  return count;
}

const described = (here: Paths, more: Partial<DaemonInfo> = {}): DaemonInfo => ({
  pid: process.pid,
  version: "1.2.3",
  api_version: 1,
  start_id: "start-1",
  log_id: "log-1",
  started_at: new Date().toISOString(),
  addresses: { socket: here.socket },
  ...more,
});

const healthy = (more: object = {}) =>
  Response.json({ status: "ok", version: "1.2.3", api_version: 1, start_id: "start-1", ...more });

const look = (here: Paths, timeout_ms = 5_000, version?: string): Promise<Discovery> =>
  discover(here, { timeout_ms, ...(version !== undefined && { version }) });

describe("stopped", () => {
  test("where nothing is, and looking makes nothing", async () => {
    const here = paths({ MP_HOME: join(tempHome(), "absent") });
    expect(await look(here)).toEqual({ state: "stopped" });
    expect(existsSync(here.data)).toBe(false);
  });

  test("after SIGKILL, though socket and daemon.json are still there", async () => {
    const here = home();
    const { pid } = await daemon(here);
    await kill(pid);
    expect(readdirSync(here.data)).toContain("daemon.json");
    expect(existsSync(here.socket)).toBe(true);
    expect(await look(here)).toEqual({ state: "stopped" });
  });

  test("in a copy of a home whose original runs", async () => {
    const here = home();
    const info = await daemon(here);
    const copy = paths({ MP_HOME: join(tempHome(), "copy") });
    cpSync(here.data, copy.data, { recursive: true, filter: (path) => !path.startsWith(here.runtime) });
    expect(await readInfo(copy)).toEqual(info);
    expect(await look(copy)).toEqual({ state: "stopped" });
    removeInfo(copy);
  });

  test("when the socket breaks off and the lock is free a moment later", async () => {
    const here = home();
    const server = await listen(here.socket, (socket) => {
      server.close();
      rmSync(here.socket, { force: true });
      socket.destroy();
    });
    expect(await look(here)).toEqual({ state: "stopped" });
  });
});

describe("running", () => {
  test("a daemon of this version", async () => {
    const here = home();
    const info = await daemon(here);
    const found = await look(here, 5_000, "1.2.3");
    expect(found).toEqual({
      state: "running",
      info,
      health: { status: "ok", version: "1.2.3", api_version: 1, start_id: info.start_id },
    });
  });

  test("costs one request and no look at the lock", async () => {
    const here = home();
    writeInfo(here, described(here));
    const count = serve(here.socket, () => healthy());
    expect(existsSync(here.lock)).toBe(false);
    expect((await look(here)).state).toBe("running");
    expect(count.asked).toBe(1);
  });

  test("is called older only when its version is lower", async () => {
    const here = home();
    writeInfo(here, described(here));
    let version = "";
    serve(here.socket, () => healthy({ version }));
    const older = { "1.2.2": true, "1.2.3-rc.1": true, "0.99.99": true, "1.2.3": false, "1.10.0": false };
    for (const [of, expected] of Object.entries(older)) {
      version = of;
      expect((await look(here, 5_000, "1.2.3")).state).toBe(expected ? "running-older" : "running");
    }
    version = "0.0.1";
    expect((await look(here)).state).toBe("running");
  });

  test("is found where daemon.json says, when this shell's runtime folder is another", async () => {
    const here = home();
    const info = await daemon(here);
    const elsewhere = { ...here, socket: join(here.data, "other.sock") };
    expect(await look(elsewhere)).toMatchObject({ state: "running", info });
  });

  test("is believed without daemon.json while the lock is held: it comes a moment after the socket", async () => {
    const here = home();
    lock(here);
    serve(here.socket, () => healthy());
    const found = await look(here);
    expect(found).toMatchObject({ state: "running", health: { start_id: "start-1" } });
    expect(found.info).toBeUndefined();
  });

  test("a restart between the two looks is no stranger", async () => {
    const here = home();
    lock(here);
    writeInfo(here, described(here));
    const next = described(here, { start_id: "start-2" });
    serve(here.socket, () => {
      writeInfo(here, next);
      return healthy({ start_id: "start-2" });
    });
    expect(await look(here)).toMatchObject({ state: "running", info: next });
  });
});

describe("starting", () => {
  test("the lock is held and there is no socket yet", async () => {
    const here = home();
    process.env.TINY = "gated";
    endings.push(() => delete process.env.TINY);
    const starting = daemon(here);
    await waitFor(() => isLocked(here.lock), { what: "the lock" });
    expect(await look(here)).toEqual({ state: "starting" });
    writeFileSync(join(here.data, "gate"), "");
    const info = await starting;
    expect(await look(here)).toMatchObject({ state: "running", info });
  });

  test("also when a daemon that was killed left its socket and daemon.json", async () => {
    const here = home();
    const { pid } = await daemon(here);
    await kill(pid);
    lock(here);
    expect(await look(here)).toEqual({ state: "starting" });
  });
});

describe("unresponsive", () => {
  test("a daemon that is stopped by a signal, and it is running again afterwards", async () => {
    const here = home();
    const info = await daemon(here);
    process.kill(info.pid, "SIGSTOP");
    try {
      expect(await look(here, 100)).toEqual({ state: "unresponsive", info });
    } finally {
      process.kill(info.pid, "SIGCONT");
    }
    expect(await look(here)).toMatchObject({ state: "running", info });
  });

  test("a daemon whose socket somebody removed", async () => {
    const here = home();
    const info = await daemon(here);
    rmSync(here.socket);
    expect(await look(here)).toEqual({ state: "unresponsive", info });
  });

  test("one that has held the lock for long and never came up", async () => {
    const here = home();
    lock(here);
    const longAgo = new Date(Date.now() - 10 * 60_000);
    utimesSync(here.lock, longAgo, longAgo);
    expect(await look(here)).toEqual({ state: "unresponsive" });
  });

  test("one that answers with a problem of ours, or breaks every connection", async () => {
    const here = home();
    lock(here);
    writeInfo(here, described(here));
    const count = serve(here.socket, () =>
      Response.json({ type: "urn:mp:problem:overloaded", status: 503 }, { status: 503 }),
    );
    expect((await look(here)).state).toBe("unresponsive");
    expect(count.asked).toBe(1);
    await endings.pop()?.();
    rmSync(here.socket, { force: true });
    await listen(here.socket, (socket) => socket.destroy());
    expect((await look(here)).state).toBe("unresponsive");
  });
});

describe("foreign", () => {
  test("something that does not speak HTTP", async () => {
    const here = home();
    await listen(here.socket, (socket) => socket.write("SSH-2.0-OpenSSH_9.9\r\n"));
    expect(await look(here)).toEqual({ state: "foreign" });
  });

  test("something that accepts and says nothing, or hangs up, while no daemon holds the lock", async () => {
    for (const on of [() => undefined, (socket: Socket) => socket.destroy()]) {
      const here = home();
      await listen(here.socket, on);
      expect(await look(here, 100)).toEqual({ state: "foreign" });
    }
  });

  test("another HTTP server, whatever it answers, and it is not followed elsewhere", async () => {
    const here = home();
    lock(here);
    let body: BodyInit | null = null;
    let init: ResponseInit = {};
    serve(here.socket, () => new Response(body, init));
    for (const text of [
      "hello",
      "",
      "null",
      "[]",
      '{"status":"ok"}',
      '{"status":"ok","version":1,"start_id":"s"}',
    ]) {
      body = text;
      expect(await look(here)).toEqual({ state: "foreign" });
    }
    init = { status: 302, headers: { location: "http://localhost/health" } };
    expect(await look(here)).toEqual({ state: "foreign" });
  });

  test("a daemon that is not the one of daemon.json, or holds no lock of these paths", async () => {
    const here = home();
    serve(here.socket, () => healthy({ start_id: "another" }));
    const foreign = { state: "foreign", health: { start_id: "another" } };
    expect(await look(here)).toMatchObject(foreign);
    writeInfo(here, described(here));
    expect(await look(here)).toMatchObject(foreign);
    lock(here);
    expect(await look(here)).toMatchObject(foreign);
  });
});

test("looking leaves nothing that keeps the program up", async () => {
  const here = home();
  await daemon(here);
  const modules = [
    join(import.meta.dir, "../../src/client/discover.ts"),
    join(import.meta.dir, "../../src/daemon/paths.ts"),
  ];
  const script = `const [{ discover }, { paths }] = await Promise.all(${JSON.stringify(modules)}.map((path) => import(path)));
    console.log((await discover(paths(), { timeout_ms: 60_000 })).state);`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    env: { ...process.env, MP_HOME: here.home },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const started = performance.now();
  expect(await new Response(child.stdout).text()).toBe("running\n");
  expect(await child.exited).toBe(0);
  expect(performance.now() - started).toBeLessThan(20_000);
});
