import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { connect } from "../../src/client/client.ts";
import { type EventFrame, type TailFrame, type TailOptions, tail } from "../../src/client/tail.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";
import { proxy } from "./proxy.ts";

/** The daemon of the tests that leave it running. */
const shared = await startDaemonProcess(tempHome());

function must<T extends object>(answer: T | Problem): T {
  if (isProblem(answer)) throw new Error(JSON.stringify(answer));
  return answer;
}

let names = 0;

/** Create workspaces; each is one event. */
async function create(socket: string, count: number, name = "w", root = ""): Promise<number> {
  const client = connect({ socket });
  const commands = Array.from({ length: count }, () => {
    const number = ++names;
    const root_path = root === "" ? {} : { root_path: `/${number}${root}` };
    return { type: "workspace.create", payload: { name: `${name} ${number}`, ...root_path } } as const;
  });
  let last = 0;
  for (let at = 0; at < count; at += 200) {
    const { items } = must(await client.batch(commands.slice(at, at + 200)));
    for (const item of items) {
      if (item.kind === "problem") throw new Error(JSON.stringify(item));
      last = item.seq_global;
    }
  }
  return last;
}

async function head(socket: string): Promise<number> {
  return must(await connect({ socket }).query("daemon.ping")).as_of_seq;
}

/** Take frames until `enough`, with that last one; then leave the loop. */
async function until(frames: AsyncIterable<TailFrame>, enough: (frame: TailFrame) => boolean) {
  const seen: TailFrame[] = [];
  for await (const frame of frames) {
    seen.push(frame);
    if (enough(frame)) break;
  }
  return seen;
}

const upTo = (seq: number) => (frame: TailFrame) => frame.kind === "event" && frame.seq_global >= seq;
const isEnd = (frame: TailFrame) => frame.kind === "end";
const kinds = (frames: readonly TailFrame[]) => frames.map((frame) => frame.kind);
const events = (frames: readonly TailFrame[]) =>
  frames.filter((frame): frame is EventFrame => frame.kind === "event");
const seqs = (frames: readonly TailFrame[]) => events(frames).map((frame) => frame.seq_global);
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

/** The chain of SPEC §4, from the lines alone. */
function expectChain(frames: readonly EventFrame[], log_id: string): void {
  const sha256 = (...parts: (string | Uint8Array)[]) => {
    const hash = new Bun.CryptoHasher("sha256");
    for (const part of parts) hash.update(part);
    return hash.digest("hex");
  };
  let previous = sha256(`mp.local/${log_id}/events`);
  for (const { line, event } of frames) {
    expect(event.prev_hash).toBe(previous);
    previous = sha256(new Uint8Array([0]), line);
  }
}

describe("one connection", () => {
  test("from the start: hello, the backlog, caught_up, what is new; lines are the bytes that the chain hashes", async () => {
    const daemon = await startDaemonProcess();
    await create(daemon.socket, 25, 'grüße 👋 ,"seq_global":7,');
    const frames = tail({ socket: daemon.socket }, { after: 0 });
    const backlog = await until(frames, (frame) => frame.kind === "caught_up");
    expect(kinds(backlog)).toEqual(["hello", ...Array<"event">(25).fill("event"), "caught_up"]);
    expect(backlog[0]).toMatchObject({ log_id: daemon.info.log_id, head: 25 });

    const live: TailFrame[] = [];
    for await (const frame of tail({ socket: daemon.socket }, { after: 20, log_id: daemon.info.log_id })) {
      if (frame.kind === "caught_up") await create(daemon.socket, 3);
      live.push(frame);
      if (upTo(28)(frame)) break;
    }
    expect(seqs(live)).toEqual(range(21, 28));
    const all = [...events(backlog).slice(0, 20), ...events(live)];
    expect(all.map(({ line }) => JSON.parse(line))).toEqual(all.map(({ event }) => event));
    expect(all.map(({ event }) => event.seq_global)).toEqual(range(1, 28));
    expectChain(all, daemon.info.log_id);
  });

  test("without a cursor: only what comes from now on", async () => {
    await create(shared.socket, 2);
    const before = await head(shared.socket);
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: shared.socket })) {
      seen.push(frame);
      if (frame.kind === "caught_up") await create(shared.socket, 1);
      if (frame.kind === "event") break;
    }
    expect(seqs(seen)).toEqual([before + 1]);
    expect(seen).toContainEqual({ kind: "caught_up", seq_global: before });
  });

  test("since a time", async () => {
    const { socket } = shared;
    const old = await create(socket, 1);
    const first = (await until(tail({ socket }, { after: old - 1 }), upTo(old))).at(-1) as EventFrame;
    await waitFor(() => Date.now() > Date.parse(first.event.timestamp), { what: "the next millisecond" });
    const since = new Date().toISOString();
    const last = await create(socket, 2);
    expect(seqs(await until(tail({ socket }, { since }), upTo(last)))).toEqual([old + 1, old + 2]);
    expect(kinds(await until(tail({ socket }, { since: "yesterday" }), isEnd))).toEqual(["end"]);
  });

  test("a filter: only what passes, and control frames move the cursor over the rest", async () => {
    const daemon = await startDaemonProcess();
    await create(daemon.socket, 2_500);
    const client = connect({ socket: daemon.socket });
    const { items } = must(await client.send({ type: "workspace.list", payload: { limit: 1 } })) as {
      items: { workspace_id: string }[];
    };
    const { workspace_id } = items[0]!;
    must(await client.execute("workspace.close", { workspace_id }));
    await create(daemon.socket, 1);
    const options: TailOptions = { after: 0, filter: { types: ["workspace.closed", "project.*"] } };
    await using line = await proxy(daemon.socket);
    const frames = tail({ socket: line.socket }, options);
    const seen = await until(tail({ socket: line.socket }, options), (frame) => frame.kind === "caught_up");
    expect(seqs(seen)).toEqual([2_501]);
    expect(seen.filter((frame) => frame.kind === "checkpoint").length).toBeGreaterThanOrEqual(2);

    const first = (await frames.next()).value;
    expect(first).toMatchObject({ kind: "hello" });
    let next = (await frames.next()).value as TailFrame;
    while (next.kind !== "caught_up") next = (await frames.next()).value as TailFrame;
    line.cut();
    const gone = (await frames.next()).value;
    expect(gone).toMatchObject({ kind: "disconnected", resume_after: 2_502 });
    await frames.return();

    const streams = [`workspace/${workspace_id}`];
    const one = await until(tail({ socket: daemon.socket }, { after: 0, filter: { streams } }), upTo(2_501));
    expect(seqs(one)).toEqual([1, 2_501]);
  });

  test("characters that arrive in pieces are whole", async () => {
    await using line = await proxy(shared.socket);
    const before = await head(shared.socket);
    const last = await create(shared.socket, 5, "ä€👋🏽漢");
    for (const pieces of [1, 2, 3, 7]) {
      line.pieces = pieces;
      const seen = events(await until(tail({ socket: line.socket }, { after: before }), upTo(last)));
      expect(seqs(seen)).toEqual(range(before + 1, last));
      for (const { event } of seen) expect((event.payload as { name: string }).name).toStartWith("ä€👋🏽漢 ");
    }
  });
});

describe("a connection that is lost", () => {
  for (const signal of ["SIGKILL", "SIGTERM"] as const) {
    test(`a daemon restarted with ${signal} under writes: no gap, no duplicate, the chain holds`, async () => {
      const daemon = await startDaemonProcess();
      const client = connect({ socket: daemon.socket }, { start: async () => undefined });
      const total = 120;
      const restarts = [20, 60, 90];
      const seen: TailFrame[] = [];
      const writing = (async () => {
        for (let done = 1; done <= total; done++) {
          const name = `${signal} ${done}`;
          const receipt = must(await client.execute("workspace.create", { name }));
          // Whatever was retried was carried out once.
          expect(receipt.seq_global).toBe(done);
        }
      })();
      const reading = (async () => {
        let restarting: Promise<void> | undefined;
        for await (const frame of tail({ socket: daemon.socket }, { after: 0 })) {
          seen.push(frame);
          if (frame.kind === "end") throw new Error(JSON.stringify(frame));
          if (frame.kind !== "event") continue;
          if (restarts.includes(frame.seq_global)) restarting = daemon.restart(signal);
          if (frame.seq_global === total) break;
        }
        await restarting;
      })();
      await Promise.all([writing, reading]);
      expect(seqs(seen)).toEqual(range(1, total));
      const gone = seen.filter((frame) => frame.kind === "disconnected");
      expect(gone.length).toBeGreaterThanOrEqual(restarts.length);
      // A daemon that stops says so; one that is killed does not.
      const words = signal === "SIGTERM" ? ["overloaded", "daemon_unavailable"] : ["daemon_unavailable"];
      for (const frame of gone) expect(words).toContain(frame.problem.code);
      expectChain(events(seen), daemon.info.log_id);
    }, 30_000);
  }

  test("cut at any byte: it resumes after the last whole line", async () => {
    await using line = await proxy(shared.socket);
    const from = await head(shared.socket);
    const last = await create(shared.socket, 30);
    for (const cutAt of [0, 100, 300, 1_000, 5_000, 9_000]) {
      line.losing = 1;
      line.cutAt = cutAt;
      const seen = await until(tail({ socket: line.socket }, { after: from }), upTo(last));
      expect(line.losing).toBe(0);
      expect(seqs(seen)).toEqual(range(from + 1, last));
      expect(kinds(seen)).toContain("disconnected");
    }
  });

  test("a connection that has gone silent is given up and made again", async () => {
    await using line = await proxy(shared.socket);
    const from = await head(shared.socket);
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: line.socket }, { after: from, silence_ms: 200 })) {
      seen.push(frame);
      if (frame.kind === "caught_up" && !kinds(seen).includes("disconnected")) {
        line.frozen = true;
        await create(shared.socket, 2);
      }
      if (frame.kind === "disconnected") line.frozen = false;
      if (upTo(from + 2)(frame)) break;
    }
    const gone = seen.find((frame) => frame.kind === "disconnected");
    expect(gone).toMatchObject({ resume_after: from });
    expect(gone?.problem.detail).toContain("200 ms");
    expect(seqs(seen)).toEqual([from + 1, from + 2]);
  });

  test("a consumer that takes its time is not silence", async () => {
    const from = await head(shared.socket);
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: shared.socket }, { after: from, silence_ms: 150 })) {
      seen.push(frame);
      if (frame.kind === "event") break;
      if (frame.kind !== "caught_up") continue;
      const slow = performance.now() + 400;
      await waitFor(() => performance.now() > slow, { what: "a slow consumer" });
      await create(shared.socket, 1);
    }
    expect(kinds(seen)).toEqual(["hello", "caught_up", "event"]);
  });
});

describe("the end", () => {
  test("cursor_ahead at once, with what to know", async () => {
    const at = await head(shared.socket);
    const seen = await until(tail({ socket: shared.socket }, { after: at + 100 }), isEnd);
    expect(kinds(seen)).toEqual(["end"]);
    expect(seen[0]).toMatchObject({
      problem: { code: "cursor_ahead", details: { head: at } },
      resume_after: at + 100,
    });
  });

  test("cursor_foreign at once when the log is another one", async () => {
    const log_id = "0198c0de-0000-7000-8000-000000000000";
    for (const options of [{ after: 0, log_id }, { log_id }, { since: "2026-01-01T00:00:00.000Z", log_id }]) {
      const seen = await until(tail({ socket: shared.socket }, options), isEnd);
      expect(kinds(seen)).toEqual(["end"]);
      expect(seen[0]).toMatchObject({ problem: { code: "cursor_foreign" } });
    }
  });

  test("a log that was replaced meanwhile is heard, although the tail was never told its id", async () => {
    const [one, other] = [await startDaemonProcess(), await startDaemonProcess()];
    await create(one.socket, 3);
    await create(other.socket, 9);
    await using line = await proxy(one.socket);
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: line.socket }, { after: 0 })) {
      seen.push(frame);
      if (frame.kind !== "caught_up") continue;
      line.to = other.socket;
      line.cut();
    }
    expect(seqs(seen)).toEqual([1, 2, 3]);
    expect(seen.at(-1)).toMatchObject({ kind: "end", problem: { code: "cursor_foreign" }, resume_after: 3 });
  });

  test("a refusal that waiting does not mend", async () => {
    const seen = await until(
      tail({ socket: shared.socket }, { after: 0, filter: { types: ["not a type"] } }),
      isEnd,
    );
    expect(seen).toMatchObject([{ kind: "end", problem: { code: "invalid_schema" } }]);
  });

  test("nobody there to begin with", async () => {
    const socket = join(tempHome(), "none.sock");
    for (const options of [{ after: 5 }, {}]) {
      const seen = await until(tail({ socket }, options), isEnd);
      expect(kinds(seen)).toEqual(["end"]);
      expect(seen[0]).toMatchObject({
        problem: { code: "daemon_unavailable", details: { address: socket } },
      });
    }
  });

  test("somebody else there", async () => {
    const socket = join(tempHome(), "other.sock");
    for (const body of ["<h1>hello</h1>\n", "\xff\xfe\n", "x".repeat(3 << 20)]) {
      const server = Bun.serve({ unix: socket, fetch: () => new Response(Buffer.from(body, "latin1")) });
      const seen = await until(tail({ socket }, { after: 0 }), isEnd);
      void server.stop(true);
      expect(kinds(seen)).toEqual(["end"]);
      expect((seen[0] as { problem: Problem }).problem.detail).toContain("not mp");
    }
  });

  test("a daemon that skips or repeats an event is not believed", async () => {
    const from = await head(shared.socket);
    const last = await create(shared.socket, 4);
    const whole = await (
      await fetch(`http://localhost/v1/events?after=${from}`, {
        unix: shared.socket,
        headers: { accept: "application/x-ndjson" },
      })
    ).text();
    const lines = whole.trimEnd().split("\n");
    for (const order of [
      [0, 1, 3],
      [0, 1, 1],
      [1, 0],
    ]) {
      const socket = join(tempHome(), "bad.sock");
      const body = order.map((index) => `{"kind":"event","event":${lines[index]}}\n`).join("");
      const server = Bun.serve({ unix: socket, fetch: () => new Response(body) });
      const seen = await until(tail({ socket }, { after: from }), isEnd);
      void server.stop(true);
      expect(seen.at(-1)).toMatchObject({ kind: "end", problem: { code: "internal" } });
      expect(seqs(seen).every((seq, index) => seq === from + 1 + index)).toBe(true);
    }
    expect(last).toBe(from + 4);
  });

  test("reconnect: false, and give_up_ms: the tail ends when the daemon does", async () => {
    const daemon = await startDaemonProcess();
    await create(daemon.socket, 2);
    for (const options of [{ reconnect: false }, { give_up_ms: 300 }]) {
      const seen: TailFrame[] = [];
      for await (const frame of tail({ socket: daemon.socket }, { after: 0, ...options })) {
        seen.push(frame);
        if (frame.kind === "caught_up") await daemon.kill();
      }
      const wait = "give_up_ms" in options;
      expect(kinds(seen).includes("disconnected")).toBe(wait);
      expect(seen.at(-1)).toMatchObject({
        kind: "end",
        problem: { code: expect.stringMatching(/^(overloaded|daemon_unavailable)$/) },
        resume_after: 2,
      });
      await daemon.restart();
    }
  });
});

describe("leaving", () => {
  const subscriptions = async (socket: string) =>
    must(await connect({ socket }).query("daemon.status")).subscriptions;

  test("the signal ends it without a last frame and closes the connection, also while nobody pulls", async () => {
    const daemon = await startDaemonProcess();
    const given = new AbortController();
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: daemon.socket }, { after: 0, signal: given.signal })) {
      seen.push(frame);
      if (frame.kind === "caught_up") setTimeout(() => given.abort(), 20);
    }
    expect(kinds(seen)).toEqual(["hello", "caught_up"]);
    await waitFor(async () => (await subscriptions(daemon.socket)) === 0, { what: "the closed connection" });

    const second = new AbortController();
    const idle = tail({ socket: daemon.socket }, { after: 0, signal: second.signal });
    await idle.next();
    expect(await subscriptions(daemon.socket)).toBe(1);
    second.abort();
    await waitFor(async () => (await subscriptions(daemon.socket)) === 0, { what: "the closed connection" });
    expect((await idle.next()).done).toBe(true);
    expect(await until(tail({ socket: daemon.socket }, { signal: AbortSignal.abort() }), isEnd)).toEqual([]);
  });

  test("the signal ends the wait for a daemon", async () => {
    const daemon = await startDaemonProcess();
    const given = new AbortController();
    const seen: TailFrame[] = [];
    for await (const frame of tail({ socket: daemon.socket }, { after: 0, signal: given.signal })) {
      seen.push(frame);
      if (frame.kind === "caught_up") await daemon.kill("SIGKILL");
      if (frame.kind === "disconnected") setTimeout(() => given.abort(), 30);
    }
    expect(seen.at(-1)?.kind).toBe("disconnected");
  });

  test("leaving the loop closes the connection", async () => {
    const daemon = await startDaemonProcess();
    await until(tail({ socket: daemon.socket }, { after: 0 }), (frame) => frame.kind === "caught_up");
    await waitFor(async () => (await subscriptions(daemon.socket)) === 0, { what: "the closed connection" });
  });

  test("a consumer that stops pulling holds the daemon back: what was not asked for is not sent", async () => {
    const daemon = await startDaemonProcess();
    const last = await create(daemon.socket, 6_000, "w", `/${"x".repeat(4_000)}`);
    await using line = await proxy(daemon.socket);
    const frames = tail({ socket: line.socket }, { after: 0 });
    const taken = [(await frames.next()).value, (await frames.next()).value] as TailFrame[];
    expect(kinds(taken)).toEqual(["hello", "event"]);
    // It stands still once every buffer on the way is full.
    let before = -1;
    let same = 0;
    const still = () => {
      same = line.passed === before ? same + 1 : 0;
      before = line.passed;
      return same >= 60;
    };
    await waitFor(still, { what: "a connection that stands still" });
    expect(line.passed).toBeLessThan(8 << 20);
    const rest = await until(frames, upTo(last));
    expect(seqs(rest)).toEqual(range(2, last));
    expect(line.passed).toBeGreaterThan(24 << 20);
  }, 30_000);
});
