import { describe, expect, test } from "bun:test";
import { chmodSync, existsSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { acquireLock, isLocked } from "../../src/daemon/lock.ts";
import { tempHome } from "../support/binary.ts";

const CONTENDER = join(import.meta.dir, "lock-contender.ts");

/** A real process that is told what to do with the lock; it ends with `await using`. */
function contender(path: string) {
  const child = Bun.spawn([process.execPath, CONTENDER, path], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = readLines(child.stdout);
  return {
    child,
    async tell(word: "take" | "drop" | "probe" | "dawdle"): Promise<string | undefined> {
      child.stdin.write(`${word}\n`);
      child.stdin.flush();
      return (await lines.next()).value ?? undefined;
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function* readLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

const lockPath = () => join(tempHome(), "daemon.lock");

describe("acquireLock", () => {
  test("a second process does not get what the first one holds, until it is released", async () => {
    const path = lockPath();
    await using first = contender(path);
    await using second = contender(path);
    expect(await first.tell("take")).toBe("won");
    expect(await second.tell("take")).toBe("lost");
    expect(acquireLock(path)).toBeUndefined();
    expect(await first.tell("drop")).toBe("dropped");
    expect(await second.tell("take")).toBe("won");
  });

  test("SIGKILL frees it", async () => {
    const path = lockPath();
    await using first = contender(path);
    await using second = contender(path);
    expect(await first.tell("take")).toBe("won");
    expect(await second.tell("probe")).toBe("locked");
    first.child.kill("SIGKILL");
    await first.child.exited;
    expect(await second.tell("probe")).toBe("free");
    expect(await second.tell("take")).toBe("won");
  });

  test("of 8 processes that want it at once exactly one gets it, round after round", async () => {
    const path = lockPath();
    const all = Array.from({ length: 8 }, () => contender(path));
    try {
      for (let round = 0; round < 8; round++) {
        const answers = await Promise.all(all.map((one) => one.tell("take")));
        expect(answers.toSorted()).toEqual([...Array<string>(7).fill("lost"), "won"]);
        expect(await all[round]?.tell("probe")).toBe("locked");
        await Promise.all(all.map((one) => one.tell("drop")));
      }
    } finally {
      await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    }
  });

  test("within a process too there is one holder, and asking does not loosen its hold", async () => {
    const path = lockPath();
    await using other = contender(path);
    const lock = acquireLock(path);
    expect(lock).toBeDefined();
    expect(acquireLock(path)).toBeUndefined();
    expect(isLocked(path)).toBe(true);
    expect(await other.tell("take")).toBe("lost");
    lock?.release();
    lock?.release();
    expect(isLocked(path)).toBe(false);
  });

  test("the lock outlives the reference to it: only release or the process's end gives it up", async () => {
    const path = lockPath();
    await using other = contender(path);
    expect(acquireLock(path)).toBeDefined();
    for (let i = 0; i < 5; i++) Bun.gc(true);
    expect(await other.tell("probe")).toBe("locked");
  });

  test("leaves one empty private file and nothing beside it", async () => {
    const path = lockPath();
    const before = process.umask(0);
    try {
      acquireLock(path)?.release();
    } finally {
      process.umask(before);
    }
    await using other = contender(path);
    expect(await other.tell("take")).toBe("won");
    expect(readdirSync(join(path, ".."))).toEqual(["daemon.lock"]);
    expect(statSync(path).size).toBe(0);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test("the file's time says since when it is held", () => {
    const path = lockPath();
    acquireLock(path)?.release();
    utimesSync(path, 0, 0);
    const before = Date.now();
    const lock = acquireLock(path);
    expect(statSync(path).mtimeMs).toBeGreaterThanOrEqual(before - 1_000);
    lock?.release();
  });

  test("a file that is not a lock is an error, not a lock", () => {
    const path = lockPath();
    writeFileSync(path, "4711\n".repeat(200));
    expect(() => acquireLock(path)).toThrow();
    expect(isLocked(path)).toBe(false);
  });
});

describe("isLocked", () => {
  test("makes no file", () => {
    const path = lockPath();
    expect(isLocked(path)).toBe(false);
    expect(existsSync(path)).toBe(false);
    expect(isLocked(join(path, "deeper"))).toBe(false);
  });

  test("a file that may not be read counts as free", () => {
    const path = lockPath();
    acquireLock(path)?.release();
    chmodSync(path, 0);
    expect(isLocked(path)).toBe(false);
  });

  test("a probe that takes its time is waited for by the one that takes the lock", async () => {
    const path = lockPath();
    acquireLock(path)?.release();
    await using other = contender(path);
    expect(await other.tell("dawdle")).toBe("reading");
    expect(acquireLock(path)).toBeDefined();
    expect(await other.tell("probe")).toBe("locked");
  });

  test("processes that keep probing never keep the lock from the one that takes it", async () => {
    const path = lockPath();
    await using first = contender(path);
    await using second = contender(path);
    let taking = true;
    const probing = [first, second].map(async (one) => {
      for (let answered = 0; taking || answered < 20; answered++) {
        expect(await one.tell("probe")).toMatch(/^(free|locked)$/);
      }
    });
    for (let i = 0; i < 100; i++) {
      const lock = acquireLock(path);
      expect(lock).toBeDefined();
      // Lets the probers' answers in, so that their next questions meet the next taking.
      await Promise.resolve(lock?.release());
      await new Promise(setImmediate);
    }
    taking = false;
    await Promise.all(probing);
  });
});
