/**
 * The daemon's life (SPEC §10, §11): what it leaves on disk and how it stops, as a process, through its socket.
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DaemonInfo } from "../../src/daemon/info.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import {
  ask,
  begin,
  command,
  type Fate,
  type Launched,
  launch,
  launched,
  send,
  sendBatch,
} from "../crash/launch.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { faults, unavailable } from "../support/faults.ts";

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const create = (name: string) => ({
  type: "workspace.create",
  payload: { name },
  idempotency_key: `key-${name}`,
});

async function accept(socket: string, name: string) {
  const fate = await send(socket, create(name));
  if (fate.kind !== "receipt") throw new Error(`not accepted: ${JSON.stringify(fate)}`);
  return fate.receipt;
}

/** Many workspaces, a thousand to a request. */
async function fill(socket: string, count: number, prefix = "w"): Promise<void> {
  for (let n = 0; n < count; n += 1_000)
    await sendBatch(
      socket,
      Array.from({ length: Math.min(1_000, count - n) }, (_, i) => create(`${prefix}-${n + i}`)),
    );
}

async function stop(daemon: Launched): Promise<void> {
  daemon.kill("SIGTERM");
  expect(await daemon.exited).toBe(0);
}

const infoIn = (home: string) => JSON.parse(readFileSync(join(home, "daemon.json"), "utf8")) as DaemonInfo;
const walFiles = (home: string) => readdirSync(home).filter((name) => /-(wal|shm)$/.test(name));

/** Every frame of a live NDJSON stream, until it ends. */
async function frames(
  socket: string,
  search: string,
  caughtUp: () => void = () => undefined,
): Promise<{ kind: string }[]> {
  const response = await fetch(`http://mp/v1/events?follow=true&frames=true&${search}`, {
    unix: socket,
    headers: { accept: "application/x-ndjson" },
  });
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of response.body!) {
    text += decoder.decode(chunk, { stream: true });
    if (text.includes('"kind":"caught_up"')) caughtUp();
  }
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { kind: string });
}

describe("files and modes", () => {
  test("are the user's alone, whatever the umask of who starts it", async () => {
    const home = tempHome();
    const before = process.umask(0);
    const daemon = await launched(home).finally(() => process.umask(before));
    await accept(daemon.socket, "one");
    const mode = (path: string) => (statSync(join(home, path)).mode & 0o777).toString(8);
    expect(mode("run/mp.sock")).toBe("600");
    for (const folder of ["run", "keys", "artifacts", "backups"]) expect(mode(folder)).toBe("700");
    const files = readdirSync(home).filter((name) => statSync(join(home, name)).isFile());
    expect(files.toSorted()).toEqual([
      "daemon.json",
      "daemon.lock",
      "daemon.log",
      "kernel.db",
      "kernel.db-shm",
      "kernel.db-wal",
    ]);
    for (const file of files) expect([file, mode(file)]).toEqual([file, "600"]);
    await stop(daemon);
    expect(readdirSync(join(home, "run"))).toEqual([]);
    expect(existsSync(join(home, "daemon.json"))).toBe(false);
    expect(walFiles(home)).toEqual([]);
  });

  test("daemon.json says who runs; a restart is another start of the same log", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    const first = infoIn(home);
    expect(first).toEqual(daemon.info);
    expect(first).toMatchObject({ pid: daemon.pid, api_version: 1, addresses: { socket: daemon.socket } });
    expect(first.start_id).toMatch(ID);
    expect(first.log_id).toMatch(ID);
    expect(new Date(first.started_at).toISOString()).toBe(first.started_at);
    const health = await fetch("http://mp/health", { unix: daemon.socket }).then((response) =>
      response.json(),
    );
    expect(health).toMatchObject({ status: "ok", start_id: first.start_id });
    await stop(daemon);
    const second = await launched(home);
    expect(infoIn(home).log_id).toBe(first.log_id);
    expect(infoIn(home).start_id).not.toBe(first.start_id);
    await stop(second);
  });

  test("a socket that a killed daemon left is replaced, and what it had accepted is there", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    await accept(daemon.socket, "one");
    daemon.kill("SIGKILL");
    await daemon.exited;
    expect(existsSync(daemon.socket)).toBe(true);
    expect(await send(daemon.socket, create("two"))).toEqual({ kind: "lost" });
    const next = await launched(home);
    expect(next.socket).toBe(daemon.socket);
    expect((await accept(next.socket, "one")).replayed).toBe(true);
    expect((await accept(next.socket, "two")).seq_global).toBe(2);
    await stop(next);
  });

  test("a second daemon does not start: it names the first, which goes on", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    const second = begin(home);
    const said = await Bun.readableStreamToText(second.stdout);
    expect(await second.exited).toBe(0);
    expect(JSON.parse(said)).toMatchObject({ ready: true, info: { pid: daemon.pid } });
    expect(infoIn(home)).toEqual(daemon.info);
    await accept(daemon.socket, "one");
    await stop(daemon);
  });

  test("scratch that a killed verification left is removed at the next start", async () => {
    const home = tempHome();
    mkdirSync(join(home, "verify-abcdef"));
    writeFileSync(join(home, "verify-abcdef", "scratch.db"), "half");
    const daemon = await launched(home);
    expect(readdirSync(home).filter((name) => name.startsWith("verify-"))).toEqual([]);
    expect(await ask(daemon.socket, "projection.verify")).toMatchObject({ ok: true });
    expect(readdirSync(home).filter((name) => name.startsWith("verify-"))).toEqual([]);
    await stop(daemon);
  });
});

describe("a refusal to start", () => {
  const altered: Readonly<Record<string, readonly [sql: string, said: RegExp]>> = {
    "a log whose trigger is gone": [
      "DROP TRIGGER events_no_delete",
      /tables or triggers of the log are not as mp made them/,
    ],
    "a log of a newer mp": ["PRAGMA user_version = 99", /schema 99, this mp knows 2/],
    "an event of a newer mp": [
      "INSERT INTO event_versions VALUES ('workspace.created', 7)",
      /workspace.created version 7, this mp knows 1/,
    ],
  };
  for (const [what, [sql, said]] of Object.entries(altered))
    test(`says so: ${what}`, async () => {
      const home = tempHome();
      const daemon = await launched(home);
      await accept(daemon.socket, "one");
      await stop(daemon);
      const db = new Database(join(home, "kernel.db"));
      db.run(sql);
      db.close();
      const refusal = await launch(home, {}, "ignore");
      if (!isProblem(refusal)) throw new Error("it started");
      expect(refusal.code).toBe("daemon_unavailable");
      expect(refusal.detail).toMatch(said);
      expect(refusal.detail).not.toMatch(/ at .*:\d+/);
      expect(existsSync(daemon.socket)).toBe(false);
      expect(existsSync(join(home, "daemon.json"))).toBe(false);
      // It is in the log too, and the lock is free for the next try.
      expect(readFileSync(join(home, "daemon.log"), "utf8")).toContain("the daemon cannot start");
      expect(isProblem(await launch(home, {}, "ignore"))).toBe(true);
    });
});

describe("stopping", () => {
  for (const how of ["SIGTERM", "SIGINT", "SIGHUP", "daemon.shutdown"] as const)
    test(`${how} ends streams with a frame, takes the WAL in and leaves nothing behind`, async () => {
      const home = tempHome();
      const daemon = await launched(home);
      await fill(daemon.socket, 50);
      const live = new Set<string>();
      const searches = ["after=0", "after=50", "after=0&types=workspace.closed"];
      const streams = searches.map((search) => frames(daemon.socket, search, () => live.add(search)));
      const socket = new WebSocket(`ws+unix://${daemon.socket}:/v1/stream`);
      const pushed: { kind: string }[] = [];
      const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
      socket.addEventListener("message", ({ data }) =>
        pushed.push(JSON.parse(String(data)) as { kind: string }),
      );
      socket.addEventListener("open", () =>
        socket.send(JSON.stringify({ request_id: "s", type: "events.subscribe", payload: { after: 0 } })),
      );
      await waitFor(() => pushed.some((frame) => frame.kind === "caught_up"), { what: "the live end" });
      await waitFor(() => live.size === searches.length, { what: "the live end of each stream" });
      expect((await ask(daemon.socket, "daemon.status")).subscriptions).toBe(4);
      if (how === "daemon.shutdown")
        expect((await send(daemon.socket, { type: how, payload: {}, idempotency_key: "end" })).kind).toBe(
          "receipt",
        );
      else daemon.kill(how);
      expect(await daemon.exited).toBe(0);
      await closed;
      for (const all of [...(await Promise.all(streams)), pushed])
        expect(all.at(-1)).toMatchObject({
          kind: "end",
          resume_after: 50,
          problem: { code: "overloaded", status: 503, retryable: true },
        });
      expect(walFiles(home)).toEqual([]);
      expect(existsSync(daemon.socket)).toBe(false);
      expect(existsSync(join(home, "daemon.json"))).toBe(false);
      if (how !== "daemon.shutdown") return;
      // The same request again is answered with the same receipt, and ends nobody.
      const next = await launched(home);
      const again = await send(next.socket, { type: how, payload: {}, idempotency_key: "end" });
      expect(again).toMatchObject({ kind: "receipt", receipt: { replayed: true } });
      await accept(next.socket, "after");
      await stop(next);
    });

  test.skipIf(unavailable !== undefined)(
    "answers every command it has accepted, and refuses the rest unheard",
    async () => {
      const home = tempHome();
      const disk = faults();
      const daemon = await launched(home, disk.env);
      // Slow enough that many wait in the queue when it is told to stop.
      disk.arm("slow-fsync", 400);
      const names = Array.from({ length: 200 }, (_, i) => `w-${i}`);
      const fates: Promise<Fate>[] = [];
      for (const name of names) {
        fates.push(send(daemon.socket, create(name)));
        if (fates.length === 150) {
          await waitFor(
            async () => ((await ask(daemon.socket, "daemon.status")).queued_commands as number) > 50,
            {
              what: "a queue",
            },
          );
          daemon.kill("SIGTERM");
        }
      }
      expect(await daemon.exited).toBe(0);
      const answers = await Promise.all(fates);
      const receipts = answers.filter((fate) => fate.kind === "receipt");
      expect(receipts.length).toBeGreaterThan(50);
      expect(walFiles(home)).toEqual([]);
      const db = new Database(join(home, "kernel.db"), { readonly: true });
      const stored = new Set(
        db
          .query<{ key: string }, []>("SELECT idempotency_key AS key FROM command_keys")
          .all()
          .map((row) => row.key),
      );
      db.close();
      for (const [index, fate] of answers.entries()) {
        // Whoever got no receipt was not carried out; whoever got one was.
        expect([names[index], stored.has(`key-${names[index]}`)]).toEqual([
          names[index],
          fate.kind === "receipt",
        ]);
        if (fate.kind === "problem")
          expect(fate).toMatchObject({ status: 503, problem: { code: "overloaded" } });
      }
    },
  );

  test("does not wait for a verification or a rebuild, which go no further", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    await fill(daemon.socket, 10_000);
    await send(daemon.socket, { type: "projection.rebuild", payload: {}, idempotency_key: "rebuild" });
    const verification = fetch("http://mp/v1/queries/projection.verify", { unix: daemon.socket });
    await waitFor(async () => ((await ask(daemon.socket, "daemon.status")).jobs as unknown[]).length === 1, {
      what: "the job",
    });
    // One more that waits for the first.
    const second = fetch("http://mp/v1/queries/projection.verify", { unix: daemon.socket });
    await ask(daemon.socket, "daemon.ping");
    daemon.kill("SIGTERM");
    expect(await daemon.exited).toBe(0);
    for (const asked of [verification, second]) {
      const answer = await asked.then((response) => response.json()).catch(() => undefined);
      if (answer !== undefined && !("items" in (answer as object)))
        expect(answer).toMatchObject({ code: "overloaded", status: 503 });
    }
    expect(readdirSync(home).filter((name) => name === "kernel.db-wal")).toEqual([]);
    const next = await launched(home);
    expect(await ask(next.socket, "projection.verify")).toMatchObject({ ok: true });
    await stop(next);
  });
});

describe("long work", () => {
  test("a rebuild under load keeps readers and writers going", async () => {
    const daemon = await launched(tempHome());
    await fill(daemon.socket, 20_000);
    let busy = true;
    const took: number[] = [];
    let reads = 0;
    let written = 20_000;
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; busy; i++) {
        const sent = performance.now();
        await accept(daemon.socket, `during-${writer}-${i}`);
        took.push(performance.now() - sent);
        written += 1;
      }
    });
    const reader = (async () => {
      while (busy) {
        const before = written;
        const page = await ask<{ as_of_seq: number; items: unknown[] }>(
          daemon.socket,
          "workspace.list",
          "?limit=10000",
        );
        // Whole, and never behind what was acknowledged before it was asked.
        expect(page.items).toHaveLength(10_000);
        expect(page.as_of_seq).toBeGreaterThanOrEqual(before);
        reads += 1;
      }
    })();
    const began = performance.now();
    await send(daemon.socket, { type: "projection.rebuild", payload: {}, idempotency_key: "rebuild" });
    await waitFor(
      async () => {
        const { items } = await ask<{ items: { status: string }[] }>(daemon.socket, "projection.list");
        return items.every((item) => item.status === "serving");
      },
      { what: "the end of the rebuild", timeout_ms: 25_000 },
    );
    const rebuilt = performance.now() - began;
    busy = false;
    await Promise.all([...writers, reader]);
    took.sort((a, b) => a - b);
    const at = (share: number) => took[Math.floor((took.length - 1) * share)]!.toFixed(1);
    console.log(
      `rebuild of 20,000 in ${rebuilt.toFixed(0)} ms; ${took.length} commands meanwhile: p50 ${at(0.5)} p99 ${at(0.99)} max ${at(1)} ms; ${reads} reads`,
    );
    // There are 20 steps, and a command waits for one of them, not for the rebuild.
    expect(took.length).toBeGreaterThan(40);
    expect(took.at(-1)!).toBeLessThan(rebuilt);
    expect(reads).toBeGreaterThan(0);
    expect(await ask(daemon.socket, "projection.verify")).toMatchObject({ ok: true });
    await stop(daemon);
  });

  test("however many ask for a verification at once, two threads do it, and all are answered", async () => {
    const daemon = await launched(tempHome());
    await fill(daemon.socket, 2_000);
    const most = { jobs: 0 };
    let waiting = true;
    const answers = Promise.all(
      Array.from({ length: 20 }, () => ask<{ ok: boolean; as_of_seq: number }>(daemon.socket, "log.verify")),
    ).finally(() => {
      waiting = false;
    });
    while (waiting) {
      const { jobs } = await ask<{ jobs: unknown[] }>(daemon.socket, "daemon.status");
      most.jobs = Math.max(most.jobs, jobs.length);
    }
    for (const answer of await answers) expect(answer).toMatchObject({ ok: true, as_of_seq: 2_000 });
    expect(most.jobs).toBe(1);
    await stop(daemon);
  });

  test("read models of another generation are rebuilt before the socket is there", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    await fill(daemon.socket, 5_000);
    await stop(daemon);
    const db = new Database(join(home, "kernel.db"));
    db.run("UPDATE projections SET generation = 'another'");
    db.run("DELETE FROM workspaces");
    db.close();
    const child = begin(home);
    // Whoever connects first finds them whole.
    const first = await waitFor(
      () => ask<{ as_of_seq: number; items: unknown[] }>(daemon.socket, "workspace.list", "?limit=10000"),
      {
        what: "the first answer",
      },
    );
    expect(first).toMatchObject({ as_of_seq: 5_000 });
    expect(first.items).toHaveLength(5_000);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  });
});

describe("bounds", () => {
  test("100 MB of events, and all read models made of them anew, never make a WAL of 64 MB", async () => {
    const home = tempHome();
    const daemon = await launched(home);
    const wal = { largest: 0 };
    const look = () => {
      const { size } = statSync(join(home, "kernel.db-wal"), { throwIfNoEntry: false }) ?? { size: 0 };
      wal.largest = Math.max(wal.largest, size);
      return size;
    };
    const parent = (await accept(daemon.socket, "parent")).subject.id;
    const path = "/long".repeat(800);
    let bytes = 0;
    let n = 0;
    const writer = async () => {
      while (bytes < 100 << 20) {
        const commands = Array.from({ length: 200 }, () => ({
          type: "project.create",
          payload: { workspace_id: parent, name: `p-${n}`, repo_path: `/${n}${path}` },
          idempotency_key: `p-${n++}`,
        }));
        await sendBatch(daemon.socket, commands);
        bytes += 200 * (path.length + 700);
        look();
      }
    };
    await Promise.all([writer(), writer(), writer(), writer()]);
    expect(statSync(join(home, "kernel.db")).size).toBeGreaterThan(100 << 20);
    const written = wal.largest;

    await send(daemon.socket, { type: "projection.rebuild", payload: {}, idempotency_key: "rebuild" });
    await waitFor(
      async () => {
        look();
        const { items } = await ask<{ items: { status: string }[] }>(daemon.socket, "projection.list");
        return items.every((item) => item.status === "serving");
      },
      { what: "the end of the rebuild" },
    );
    await stop(daemon);
    expect(walFiles(home)).toEqual([]);

    const db = new Database(join(home, "kernel.db"));
    db.run("UPDATE projections SET generation = 'another'");
    db.close();
    const child = begin(home);
    const pinged = () => {
      look();
      return ask(daemon.socket, "daemon.ping");
    };
    await waitFor(pinged, { what: "the start that rebuilds", timeout_ms: 20_000 });
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
    expect(walFiles(home)).toEqual([]);
    const mib = (size: number) => (size / 2 ** 20).toFixed(1);
    console.log(
      `the WAL had ${mib(written)} MiB at most for ${n} events, ${mib(wal.largest)} with the rebuilds`,
    );
    expect(written).toBeGreaterThan(0);
    expect(wal.largest).toBeLessThan(64 << 20);
  }, 120_000);

  // The budget is the product's: from source the runtime also holds a transpiler.
  test.skipIf(command[1] !== "daemon")("an idle daemon stays within its memory", async () => {
    const daemon = await launched(tempHome());
    await accept(daemon.socket, "one");
    const { memory_bytes } = await ask<{ memory_bytes: number }>(daemon.socket, "daemon.status");
    console.log(`idle: ${(memory_bytes / 2 ** 20).toFixed(1)} MiB`);
    expect(memory_bytes).toBeLessThanOrEqual(90 << 20);
    await stop(daemon);
  });
});
