/** Waiting for the writer lock from the command line, by subscription; waiting for a task is in task.test.ts. */
import { beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
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
