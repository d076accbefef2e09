/**
 * A disk that fails (SPEC §3 `read_only` and `outcome_unknown`, §11, §14): real daemon, real SQLite, failing system calls.
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { tempHome, waitFor } from "../support/binary.ts";
import { type Fault, faults, unavailable } from "../support/faults.ts";
import { ask, type Fate, type Launched, launch, launched, type Receipt, send, sendBatch } from "./launch.ts";

if (unavailable !== undefined) console.log(`skipped: ${unavailable}`);

const create = (name: string) => ({
  type: "workspace.create",
  payload: { name },
  idempotency_key: `key-${name}`,
});

interface LogCheck {
  ok: boolean;
  events: number;
  first_bad: unknown;
}

async function accepted(socket: string, name: string): Promise<Receipt> {
  const fate = await send(socket, create(name));
  if (fate.kind !== "receipt") throw new Error(`${name} was not accepted: ${JSON.stringify(fate)}`);
  return fate.receipt;
}

const codeOf = (fate: Fate) => (fate.kind === "problem" ? `${fate.status} ${fate.problem.code}` : fate.kind);

async function clean(daemon: Launched, events: number): Promise<void> {
  expect(await ask<LogCheck>(daemon.socket, "log.verify")).toMatchObject({ ok: true, events });
  expect(await ask(daemon.socket, "projection.verify")).toMatchObject({ ok: true });
  const list = await ask<{ items: unknown[] }>(daemon.socket, "workspace.list", "?limit=10000");
  expect(list.items).toHaveLength(events);
}

function logged(home: string): { level: string; msg: string; code?: string }[] {
  const lines = readFileSync(join(home, "daemon.log"), "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as { level: string; msg: string });
}

describe.skipIf(unavailable !== undefined)("a disk that fails", () => {
  const unknown: readonly (readonly [string, Fault, number])[] = [
    ["an fsync that fails", "fsync-eio", 0],
    ["a first write that fails", "write-eio", 0],
    ["a write in the middle of a commit that fails", "write-eio", 7],
  ];
  for (const [what, fault, n] of unknown)
    test(`${what} leaves the outcome unknown; the daemon ends, and a retry after the restart tells the truth`, async () => {
      const home = tempHome();
      const disk = faults();
      const daemon = await launched(home, disk.env);
      const first = await accepted(daemon.socket, "before");
      const stream = await fetch("http://mp/v1/events?follow=true&frames=true&after=1", {
        unix: daemon.socket,
        headers: { accept: "application/x-ndjson" },
      });
      disk.arm(fault, n);
      // Many at once: some are in the batch that fails, some wait behind it.
      const names = Array.from({ length: 30 }, (_, i) => `during-${i}`);
      const fates = await Promise.all(names.map((name) => send(daemon.socket, create(name))));
      expect(await daemon.exited).toBe(1);
      disk.disarm(fault);
      // Readers hear the end, at the last position that was certain; nothing says that a daemon is still there.
      const frames = (await stream.text()).trim().split("\n");
      expect(JSON.parse(frames.at(-1)!)).toMatchObject({ kind: "end", resume_after: 1 });
      expect([existsSync(daemon.socket), existsSync(join(home, "daemon.json"))]).toEqual([false, false]);

      // Nothing is called accepted after the failure, nothing is called failed.
      expect(new Set(fates.map(codeOf))).toContain("500 outcome_unknown");
      for (const fate of fates)
        expect(["500 outcome_unknown", "503 overloaded", "lost"]).toContain(codeOf(fate));
      expect(logged(home).filter((line) => line.level === "fatal")).toHaveLength(1);

      const next = await launched(home, disk.env);
      expect(await accepted(next.socket, "before")).toEqual({ ...first, replayed: true });
      const stored = await ask<{ as_of_seq: number; items: { name: string }[] }>(
        next.socket,
        "workspace.list",
        "?limit=100",
      );
      const there = new Set(stored.items.map((item) => item.name));
      // The batch of the failed commit is there as a whole or not at all, and each retry says which.
      for (const name of names) expect((await accepted(next.socket, name)).replayed).toBe(there.has(name));
      for (const name of names) expect((await accepted(next.socket, name)).replayed).toBe(true);
      await clean(next, 1 + names.length);
    });

  test("after a commit that failed nothing more is written, though the disk would take it", async () => {
    const home = tempHome();
    const disk = faults();
    const acknowledged = new Set<string>();
    let number = 0;
    const write = async (socket: string) => {
      for (;;) {
        const name = `w-${number++}`;
        const fate = await send(socket, create(name));
        if (fate.kind !== "receipt") return;
        acknowledged.add(`key-${name}`);
      }
    };
    // One write fails among many: the batch behind it, which mostly is on its way by then, would succeed.
    for (const nth of [200, 300, 400, 500]) {
      const daemon = await launched(home, disk.env);
      disk.arm("write-eio", nth);
      await Promise.all(Array.from({ length: 64 }, () => write(daemon.socket)));
      expect(await daemon.exited).toBe(1);
      disk.disarm("write-eio");
    }
    const last = await launched(home);
    const db = new Database(join(home, "kernel.db"), { readonly: true });
    const stored = db.query<{ key: string }, []>("SELECT idempotency_key AS key FROM command_keys").all();
    db.close();
    expect(stored.map((row) => row.key).toSorted()).toEqual([...acknowledged].toSorted());
    await clean(last, acknowledged.size);
  });

  for (const n of [0, 7])
    test(`a full disk (every ${n + 1}. write) refuses writes with read_only, reads go on, and room mends it`, async () => {
      const home = tempHome();
      const disk = faults();
      const daemon = await launched(home, disk.env);
      const before = await accepted(daemon.socket, "before");
      disk.arm("enospc", n);
      for (let round = 0; round < 2; round++) {
        const fates = await Promise.all(
          Array.from({ length: 10 }, (_, i) => send(daemon.socket, create(`during-${i}`))),
        );
        expect(fates.map(codeOf)).toEqual(Array<string>(10).fill("503 read_only"));
        // A key that is known is answered from what is stored.
        expect(await accepted(daemon.socket, "before")).toEqual({ ...before, replayed: true });
        const list = await ask<{ as_of_seq: number; items: unknown[] }>(daemon.socket, "workspace.list");
        expect(list).toMatchObject({ as_of_seq: 1, items: [{ name: "before" }] });
        expect(await ask<LogCheck>(daemon.socket, "log.verify")).toMatchObject({ ok: true, events: 1 });
      }
      expect(await ask(daemon.socket, "daemon.status")).toMatchObject({ state: "read_only", head: 1 });
      disk.disarm("enospc");
      for (let i = 0; i < 10; i++)
        expect(await accepted(daemon.socket, `during-${i}`)).toMatchObject({
          seq_global: i + 2,
          replayed: false,
        });
      expect(await ask(daemon.socket, "daemon.status")).toMatchObject({ state: "running" });
      await clean(daemon, 11);
      // Said once each, however many commands met it.
      expect(logged(home).filter((line) => line.code === "SQLITE_FULL")).toHaveLength(1);
      expect(logged(home).filter((line) => line.msg.includes("written again"))).toHaveLength(1);

      daemon.kill("SIGKILL");
      await daemon.exited;
      const next = await launched(home);
      await clean(next, 11);
    });

  test("a disk that is full while read models are rebuilt ends the rebuild, not the daemon", async () => {
    const home = tempHome();
    const disk = faults();
    const daemon = await launched(home, disk.env);
    const events = 8_000;
    for (let n = 0; n < events; n += 1_000)
      await sendBatch(
        daemon.socket,
        Array.from({ length: 1_000 }, (_, i) => create(`w-${n + i}`)),
      );
    const rebuild = (idempotency_key: string) =>
      send(daemon.socket, { type: "projection.rebuild", payload: {}, idempotency_key });
    const settled = (status: (each: { status: string }) => boolean) =>
      waitFor(
        async () => {
          const { items } = await ask<{ items: { status: string }[] }>(daemon.socket, "projection.list");
          return items.every(status);
        },
        { what: "projections that settle" },
      );
    let rebuilds = 0;
    await waitFor(
      async () => {
        // One that was done before the disk was full says nothing.
        disk.disarm("enospc");
        expect(codeOf(await rebuild(`without-room-${rebuilds++}`))).toBe("receipt");
        disk.arm("enospc");
        await settled((each) => each.status === "serving");
        return logged(home).some((line) => line.msg.includes("the rebuild was given up"));
      },
      { what: "a rebuild to meet the full disk" },
    );
    expect(codeOf(await send(daemon.socket, create("during")))).toBe("503 read_only");
    const list = await ask<{ items: unknown[] }>(daemon.socket, "workspace.list", "?limit=10000");
    expect(list.items).toHaveLength(events);
    disk.disarm("enospc");
    await accepted(daemon.socket, "after");
    expect(codeOf(await rebuild("with-room"))).toBe("receipt");
    await settled((each) => each.status === "serving");
    expect(await ask<LogCheck>(daemon.socket, "log.verify")).toMatchObject({ ok: true, events: events + 1 });
    expect(await ask(daemon.socket, "projection.verify")).toMatchObject({ ok: true });
  });

  test("a disk that is full at a clean stop leaves everything in the WAL, and the next start has it", async () => {
    const home = tempHome();
    const disk = faults();
    const daemon = await launched(home, disk.env);
    for (let i = 0; i < 20; i++) await accepted(daemon.socket, `w-${i}`);
    disk.arm("enospc");
    daemon.kill("SIGTERM");
    expect(await daemon.exited).toBe(0);
    disk.disarm("enospc");
    await clean(await launched(home), 20);
  });

  test("a database that cannot grow leaves commits in the WAL, says so, and takes them in when there is room", async () => {
    const home = tempHome();
    const disk = faults();
    const daemon = await launched(home, disk.env);
    disk.arm("enospc-db");
    let n = 0;
    /** Long paths, so that the WAL soon is long enough to be moved into the database. */
    const write = async (upTo: number) => {
      while (n < upTo) {
        const batch = Array.from({ length: 50 }, () => `/${n++}${"/long".repeat(800)}`);
        const fates = await Promise.all(
          batch.map((root_path, i) =>
            send(daemon.socket, {
              type: "workspace.create",
              payload: { name: `w-${n}-${i}`, root_path },
              idempotency_key: `w-${n}-${i}`,
            }),
          ),
        );
        expect(new Set(fates.map(codeOf))).toEqual(new Set(["receipt"]));
      }
    };
    const sizes = () => ask<{ wal_bytes: number; database_bytes: number }>(daemon.socket, "daemon.status");
    const warned = () => logged(home).filter((line) => line.msg.includes("the WAL cannot be moved"));
    await write(1_000);
    const full = await sizes();
    expect(full.database_bytes).toBeLessThan(1 << 20);
    expect(full.wal_bytes).toBeGreaterThan(8 << 20);
    expect(warned()).not.toHaveLength(0);
    disk.disarm("enospc-db");
    await write(1_100);
    expect((await sizes()).database_bytes).toBeGreaterThan(8 << 20);
    daemon.kill("SIGKILL");
    await daemon.exited;
    await clean(await launched(home), n);
  });

  test("a database that cannot be made for want of room is a refusal to start that says so", async () => {
    const disk = faults();
    disk.arm("enospc");
    const refusal = await launch(tempHome(), disk.env, "ignore");
    expect(refusal).toMatchObject({ code: "daemon_unavailable" });
    expect((refusal as { detail: string }).detail).toContain("SQLITE_FULL");
    expect((refusal as { detail: string }).detail).not.toContain(" at ");
  });

  test("while every fsync takes 200 ms, ping stays quick and many clients share each commit", async () => {
    const disk = faults();
    const daemon = await launched(tempHome(), disk.env);
    disk.arm("slow-fsync", 200);
    const [clients, each] = [64, 5];
    const began = performance.now();
    let writing = true;
    const work = Promise.all(
      Array.from({ length: clients }, async (_, client) => {
        for (let i = 0; i < each; i++) await accepted(daemon.socket, `c${client}-${i}`);
      }),
    ).finally(() => {
      writing = false;
    });
    const pings: number[] = [];
    while (writing) {
      const sent = performance.now();
      await ask(daemon.socket, "daemon.ping");
      pings.push(performance.now() - sent);
    }
    await work;
    const took = performance.now() - began;
    pings.sort((a, b) => a - b);
    const p99 = pings[Math.floor(pings.length * 0.99)]!;
    console.log(
      `ping p99 ${p99.toFixed(1)} ms of ${pings.length}; ${clients * each} commands in ${took.toFixed(0)} ms`,
    );
    // Each fsync really was slow, and each was shared: one by one they would have taken 64 s.
    expect(took).toBeGreaterThan(each * 200);
    expect(took).toBeLessThan((clients * each * 200) / 10);
    expect(p99).toBeLessThanOrEqual(20);
    disk.disarm("slow-fsync");
    await clean(daemon, clients * each);
  });
});
