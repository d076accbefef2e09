/**
 * Waiting for the writer lock from the command line; waiting for a task is in task.test.ts and run-next.test.ts. And what all
 * waiting has in common: it hears, and does not ask.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { proxy } from "../client/proxy.ts";
import { binary, tempHome, waitFor } from "../support/binary.ts";
import { cli } from "./cli.ts";

const home = tempHome();
const { out, json, refused } = cli(home);

async function spawn(): Promise<string> {
  return (await out("session", "spawn", "--workspace", "demo", "--agent", "worker")).split("\t")[0]!;
}

/** A folder whose lock one session holds, and another wants. */
async function held(name: string, ...flags: string[]) {
  const folder = join(home, name);
  mkdirSync(folder);
  const worktree_id = await out("worktree", "register", folder, "--project", "core");
  const [holder, other] = [await spawn(), await spawn()];
  for (const session of [holder, other])
    await out("worktree", "attach", folder, "write", "--session", session);
  await out("worktree", "lock-writer", folder, "--session", holder, ...flags);
  return { folder, worktree_id, holder, other };
}

/** A verb that waits for it, at a terminal, because there it says that it does. */
function waiting(folder: string, session: string, wait = "60s") {
  let shown = "";
  const args = ["worktree", "lock-writer", folder, "--session", session, "--wait", wait];
  const child = Bun.spawn([binary(), ...args], {
    env: { ...process.env, TERM: "dumb", MP_HOME: home },
    terminal: {
      data(_terminal, data) {
        shown += new TextDecoder().decode(data);
      },
    },
  });
  return {
    waits: () => waitFor(() => shown.includes("waiting for the writer lock"), { what: "that it waits" }),
    press: (key: string) => child.terminal?.write(key),
    async ended() {
      const code = await child.exited;
      child.terminal?.close();
      return { code, shown };
    },
  };
}

const writer = async (folder: string) =>
  (await json<{ writer: { session_id: string; epoch: number } | null }>("worktree", "get", folder)).writer;

beforeAll(async () => {
  await out("workspace", "create", "demo");
  await out("project", "create", "core", "--workspace", "demo");
  await out("workspace", "create", "elsewhere");
});

describe("lock-writer --wait", () => {
  test("a lock that is free is taken at once", async () => {
    const { folder, holder } = await held("free");
    await out("worktree", "release-writer", folder, "--session", holder, "--epoch", "1");
    const told = await out("worktree", "lock-writer", folder, "--session", holder, "--wait", "60s");
    expect(told.split("\t")[1]).toBe("2");
  });

  test("it is taken when it is given back", async () => {
    const { folder, holder, other } = await held("released");
    const waiter = waiting(folder, other);
    await waiter.waits();
    await out("worktree", "release-writer", folder, "--session", holder, "--epoch", "1");
    expect(await waiter.ended()).toMatchObject({ code: 0, shown: expect.stringContaining("epoch 2") });
    expect(await writer(folder)).toMatchObject({ session_id: other, epoch: 2 });
  });

  test("so it is when the holder ends, and when it runs out", async () => {
    const ending = await held("ends");
    const first = waiting(ending.folder, ending.other);
    await first.waits();
    await out("session", "end", ending.holder, "cancelled");
    expect((await first.ended()).code).toBe(0);
    const expiring = await held("expires", "--ttl-ms", "1s");
    expect((await waiting(expiring.folder, expiring.other).ended()).code).toBe(0);
    expect(await writer(expiring.folder)).toMatchObject({ session_id: expiring.other });
  });

  test("exit code 7 when it was not free in time, with who holds it; 130 after Ctrl-C", async () => {
    const { folder, holder, other } = await held("late");
    const args = ["worktree", "lock-writer", folder, "--session", other, "--wait", "300ms"];
    const said = await refused(7, ...args);
    expect(said).toContain("the writer lock did not become free within 300ms: another session holds");
    expect(said).toContain(`holder: ${holder}`);
    const waiter = waiting(folder, other);
    await waiter.waits();
    waiter.press("\u0003");
    expect((await waiter.ended()).code).toBe(130);
    expect(await writer(folder)).toMatchObject({ session_id: holder });
  });

  test("what waiting does not mend is refused at once", async () => {
    const { folder } = await held("detached");
    const stranger = await spawn();
    const args = ["worktree", "lock-writer", folder, "--session", stranger, "--wait", "60s"];
    expect(await refused(5, ...args)).toContain("worktree.not_attached");
  });
});

describe("by subscription", () => {
  /** `mp` at a terminal, in a home whose socket is a proxy of the daemon's, so that all that it asks can be seen. */
  async function watched(words: string, ...args: string[]) {
    const front = tempHome();
    const between = await proxy(join(home, "run", "mp.sock"));
    afterAll(() => between[Symbol.asyncDispose]());
    mkdirSync(join(front, "run"), { mode: 0o700 });
    symlinkSync(between.socket, join(front, "run", "mp.sock"));
    let shown = "";
    const child = Bun.spawn([binary(), ...args], {
      env: { ...process.env, TERM: "dumb", MP_HOME: front },
      terminal: {
        data(_terminal, data) {
          shown += new TextDecoder().decode(data);
        },
      },
    });
    const bytes = () => between.sent.reduce((sum, text) => sum + text.length, 0);
    await waitFor(() => shown.includes(words), { what: `'${words}'; it said: ${shown}` });
    return {
      /** Everything that it has sent, in bytes: a request, on whatever connection, makes it more. */
      bytes,
      /** How often it has sent a command or query of this type. */
      times: (type: string) =>
        between.sent.join("").split(`"type":"${type}"`).length +
        between.sent.join("").split(`/v1/queries/${type}`).length -
        2,
      async ended() {
        const code = await child.exited;
        child.terminal?.close();
        return { code, shown };
      },
    };
  }

  /** A lease elsewhere begins and runs out: a second in the life of the daemon, and nothing to whoever waits for something. */
  async function second(): Promise<void> {
    const args = ["--workspace", "elsewhere", "--agent", "short", "--ttl-ms", "1s"];
    const [id = ""] = (await out("session", "spawn", ...args)).split("\t");
    const status = async () => (await json<{ status: string }>("session", "get", id)).status;
    await waitFor(async () => (await status()) === "lost", { what: "a second" });
  }

  const inCore = ["--project", "core"];
  const create = (...flags: string[]) => out("task", "create", "work", ...inCore, ...flags);

  test("lock-writer asks for the lock when it begins and when it was given back, and never between", async () => {
    const { folder, holder, other } = await held("heard", "--ttl-ms", "10m");
    const args = ["worktree", "lock-writer", folder, "--session", other, "--wait", "60s"];
    const it = await watched("waiting for the writer lock", ...args);
    const [before, tries] = [it.bytes(), it.times("worktree.lock_writer")];
    await second();
    expect([it.bytes(), tries]).toEqual([before, 1]);
    await out("worktree", "release-writer", folder, "--session", holder, "--epoch", "1");
    expect((await it.ended()).code).toBe(0);
    expect(it.times("worktree.lock_writer")).toBe(2);
  });

  test("task claim asks for one when it begins and when one has come, and never between", async () => {
    const args = [
      "task",
      "claim",
      "--session",
      await spawn(),
      ...inCore,
      "--stage",
      "heard",
      "--wait",
      "60s",
    ];
    const it = await watched("waiting for a task", ...args);
    const [before, tries] = [it.bytes(), it.times("task.claim")];
    await second();
    expect([it.bytes(), tries]).toEqual([before, 1]);
    await create("--stage", "heard");
    expect((await it.ended()).code).toBe(0);
    expect(it.times("task.claim")).toBe(2);
  });

  test("so does session run with --next, with --task and with --write", async () => {
    const { folder, worktree_id, holder } = await held("begun", "--ttl-ms", "10m");
    const first = await create("--stage", "first");
    const blocked = await create("--depends-on", first);
    const claim = ["task", "claim", first, "--session", holder, "--ttl-ms", "10m"];
    const { result } = await json<{ result: { epoch: number } }>(...claim);
    for (const [flags, asks, come] of [
      [[...inCore, "--next", "--stage", "run"], "task.ready", () => create("--stage", "run")],
      [
        ["--task", blocked],
        "task.get",
        () => out("task", "complete", first, "--epoch", String(result.epoch)),
      ],
      [
        ["--worktree", folder, "--write"],
        "worktree.check",
        () => out("worktree", "release-writer", worktree_id, "--session", holder, "--epoch", "1"),
      ],
    ] as const) {
      const args = ["session", "run", ...flags, "--workspace", "demo", "--wait", "60s", "--", "true"];
      const it = await watched("mp: waiting: ", ...args);
      const [before, looks] = [it.bytes(), it.times(asks)];
      await second();
      expect([asks, looks > 0, it.bytes()]).toEqual([asks, true, before]);
      await come();
      expect((await it.ended()).code).toBe(0);
      expect([asks, it.times(asks)]).toEqual([asks, looks + 1]);
    }
  });
});
