/**
 * Leases in a real daemon, with real time (SPEC §8): they end by themselves and in the log; what keeps holders from renewing
 * (a crash, a process that was stopped, a disk that is full) costs them nothing. The rules themselves are in test/kernel/leases.test.ts.
 */
import { describe, expect, test } from "bun:test";
import { between, type Event } from "../../src/kernel/aggregate.ts";
import { api, envelope } from "../http/api.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { faults, unavailable } from "../support/faults.ts";

/** A daemon with a workspace, and what its streams deliver of sessions. */
async function start(env: Readonly<Record<string, string>> = {}) {
  const daemon = await startDaemonProcess(tempHome(), env);
  const mp = api(daemon);
  const workspace_id = (await mp.done("workspace.create", { name: "w" })).subject.id;
  return {
    daemon,
    mp,
    workspace_id,
    async spawn(ttl_ms: number) {
      const { subject, result } = await mp.done("session.spawn", {
        workspace_id,
        agent: { name: "test" },
        ttl_ms,
      });
      return { session_id: subject.id, expires_at: (result as { expires_at: string }).expires_at };
    },
    heartbeat: (session_id: string) => mp.done("session.heartbeat", { session_id, epoch: 1 }),
    status: async (session_id: string) => (await mp.answer("session.get", { session_id })).status,
    expiresAt: async (session_id: string) =>
      (await mp.answer("session.get", { session_id })).expires_at as string,
    /** Every event of a session that is in the log. */
    async events(session_id: string): Promise<Event[]> {
      const { text } = await mp.get(`/v1/events?streams=session/${session_id}`, {
        accept: "application/x-ndjson",
      });
      return text
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Event);
    },
  };
}

/** The first event of a type that a live stream delivers. */
async function delivered({ socket }: Pick<DaemonProcess, "socket">, type: string): Promise<Event> {
  const response = await fetch(`http://mp/v1/events?follow=true&types=${type}`, {
    unix: socket,
    headers: { accept: "application/x-ndjson" },
    signal: AbortSignal.timeout(20_000),
  });
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body!) {
    text += decoder.decode(chunk, { stream: true });
    if (text.includes("\n")) return JSON.parse(text.slice(0, text.indexOf("\n"))) as Event;
  }
  throw new Error("the stream ended");
}

const until = (time: number, what: string) => waitFor(() => Date.now() > time, { what });

describe("a lease", () => {
  test("ends by itself however fast batches of commands come in", async () => {
    const it = await start();
    const { workspace_id } = it;
    const project_id = (await it.mp.done("project.create", { workspace_id, name: "p" })).subject.id;
    const batch = () =>
      Array.from({ length: 100 }, () => envelope("task.create", { project_id, title: "load" }));
    const ended = new AbortController();
    const load = Array.from({ length: 4 }, async () => {
      while (!ended.signal.aborted) expect((await it.mp.batch(false, batch())).status).toBe(200);
    });
    const { session_id } = await it.spawn(1_000);
    try {
      const lost = async () => (await it.status(session_id)) === "lost";
      await waitFor(lost, { what: "the end of the lease under load", timeout_ms: 15_000 });
    } finally {
      ended.abort();
      await Promise.all(load);
    }
  }, 60_000);

  test.skipIf(unavailable !== undefined)(
    "ends on a disk that takes more than a second for each commit, and is renewed there while it is held",
    async () => {
      const disk = faults();
      const it = await start(disk.env);
      const [{ session_id: left }, { session_id: held }] = [await it.spawn(2_000), await it.spawn(5_000)];
      disk.arm("slow-fsync", 1_100);
      try {
        // One command after another: the writer is hardly ever idle.
        for (let n = 0; (await it.status(left)) !== "lost"; n++) {
          expect(n).toBeLessThan(12);
          await it.mp.done("workspace.create", { name: `slow ${n}` });
          await it.heartbeat(held);
        }
      } finally {
        disk.disarm("slow-fsync");
      }
      expect(await it.status(held)).toBe("starting");
    },
    60_000,
  );

  test("ends by itself in a daemon that nobody asks anything, and streams deliver it live", async () => {
    const it = await start();
    const lost = delivered(it.daemon, "session.lost");
    const { session_id, expires_at } = await it.spawn(1_000);
    const event = await lost;
    expect(event).toMatchObject({
      actor: { id: "mpd", kind: "system" },
      event_type: "session.lost",
      payload: { epoch: 1 },
      seq_stream: 2,
      stream: `session/${session_id}`,
    });
    // Not before its time, and not long after it.
    expect(between(expires_at, event.timestamp)).toBeGreaterThanOrEqual(0);
    expect(await it.status(session_id)).toBe("lost");
    expect(await it.mp.head()).toBe(3);
  }, 30_000);

  test("is kept alive by renewals, which leave no trace, and ends once they stop", async () => {
    const it = await start();
    const lost = delivered(it.daemon, "session.lost");
    const ttl_ms = 1_500;
    const { session_id, expires_at } = await it.spawn(ttl_ms);
    const enough = Date.parse(expires_at) + ttl_ms;
    let renewed = expires_at;
    await waitFor(
      async () => {
        const { result, events } = await it.heartbeat(session_id);
        expect(events).toEqual([]);
        renewed = (result as { expires_at: string }).expires_at;
        return Date.now() > enough;
      },
      { what: "renewals over two times the ttl" },
    );
    expect(await it.status(session_id)).toBe("starting");
    const { timestamp } = await lost;
    expect(between(renewed, timestamp)).toBeGreaterThanOrEqual(0);
    expect((await it.events(session_id)).map((each) => each.event_type)).toEqual([
      "session.spawned",
      "session.lost",
    ]);
  }, 30_000);
});

describe("a holder that could not renew has one whole ttl", () => {
  test("after the daemon was killed and started again, long after the lease would have ended", async () => {
    const it = await start();
    const ttl_ms = 1_500;
    const { session_id, expires_at } = await it.spawn(ttl_ms);
    await it.daemon.kill("SIGKILL");
    await until(Date.parse(expires_at), "the end of the lease while no daemon runs");
    const restarted = Date.now();
    await it.daemon.restart();
    expect(await it.status(session_id)).toBe("starting");
    expect(Date.parse(await it.expiresAt(session_id))).toBeGreaterThanOrEqual(restarted + ttl_ms);
    const { timestamp } = await delivered(it.daemon, "session.lost");
    expect(Date.parse(timestamp)).toBeGreaterThanOrEqual(restarted + ttl_ms);
  }, 30_000);

  test("after the daemon was stopped for longer than the lease, as when the machine sleeps", async () => {
    const it = await start();
    const ttl_ms = 1_000;
    const { session_id, expires_at } = await it.spawn(ttl_ms);
    process.kill(it.daemon.info.pid, "SIGSTOP");
    await until(Date.parse(expires_at) + 1_500, "the end of the lease while the daemon is stopped");
    const woken = Date.now();
    process.kill(it.daemon.info.pid, "SIGCONT");
    await it.heartbeat(session_id);
    expect(await it.status(session_id)).toBe("starting");
    const { timestamp } = await delivered(it.daemon, "session.lost");
    expect(Date.parse(timestamp)).toBeGreaterThanOrEqual(woken + ttl_ms);
  }, 30_000);

  const fails = unavailable === undefined ? test : test.skip;
  fails(
    "after the disk was full: the daemon neither ends the lease nor itself",
    async () => {
      const disk = faults();
      const it = await start(disk.env);
      const ttl_ms = 1_000;
      const { session_id, expires_at } = await it.spawn(ttl_ms);
      disk.arm("enospc");
      // Long enough for the timer to ring, to be refused, and to ring again.
      await until(Date.parse(expires_at) + 2_500, "the end of the lease while the disk is full");
      expect(await it.status(session_id)).toBe("starting");
      const mended = Date.now();
      disk.disarm("enospc");
      const { timestamp } = await delivered(it.daemon, "session.lost");
      expect(Date.parse(timestamp)).toBeGreaterThanOrEqual(mended + ttl_ms);
    },
    30_000,
  );
});
