/**
 * The stream rows of SPEC §14: catching up from the log, and live events to a hundred WebSockets.
 *
 * Both sides have the same receiver (receive.ts). In the fan-out row ours carries out the commands meanwhile, with
 * everything that a command is; the yardstick has only to send.
 */
import { Database } from "bun:sqlite";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { createWorkspace, head, projectBatch, sendBatch } from "./api.ts";
import { cpuBetween, cpuTimes, type Daemon, startDaemon, temporaryFolder } from "./daemon.ts";
import type { PublishPlan, PublishResult } from "./publish.ts";
import type { ReadPlan, ReadResult } from "./read.ts";
import type { ReceivePlan, ReceiveResult } from "./receive.ts";
import { type Figure, measured, median, partner, type Row, takeTurns } from "./row.ts";

const seconds = ({ begun, ended }: { begun: number; ended: number }) => (ended - begun) / 1000;

/** Wait for everything a receiver is to get, with the daemon's CPU time meanwhile. */
async function receiveAll(daemon: Daemon, plan: Omit<ReceivePlan, "socket">) {
  const before = cpuTimes(daemon.pid);
  const receiver = partner("receive.ts", { ...plan, socket: daemon.socket } satisfies ReceivePlan);
  await receiver.line();
  const result = await receiver.line<ReceiveResult>();
  await receiver.end();
  const after = cpuTimes(daemon.pid);
  return { ...result, front: before && after ? cpuBetween(before, after).front : undefined };
}

export const catchup: Row = {
  name: "catch-up",
  what: "the whole log over the socket, as WebSocket frames and as NDJSON, beside a bare paged read of the same rows",
  async measure({ launcher, rounds, bigLog }) {
    const { home, events, bytes } = await bigLog();
    const daemon = await startDaemon(launcher, { home });
    try {
      const figures: Figure[] = [];
      for (const form of ["websocket", "ndjson"] as const) {
        const plan = {
          form,
          connections: 1,
          after: 0,
          events: form === "websocket" ? events : bytes + events,
        };
        await receiveAll(daemon, plan);
        const done = await takeTurns(
          rounds,
          () =>
            measured<ReadResult>("read.ts", { database: daemon.database, hash: false } satisfies ReadPlan),
          () => receiveAll(daemon, plan),
        );
        const micro = (pick: (run: (typeof done.ours)[number]) => number) =>
          ((median(done.ours.map(pick)) / events) * 1e6).toFixed(2);
        figures.push({
          name: `catch-up, ${form === "websocket" ? "WebSocket" : "NDJSON"}`,
          unit: "events/s",
          yardstick: median(done.yardstick.map((run) => run.rows / run.seconds)),
          ours: median(done.ours.map((run) => events / seconds(run))),
          floor: { kind: "at least", times: 0.3 },
          notes: [
            `${events} events of ${Math.round(bytes / events)} bytes; ` +
              `CPU µs per event: front ${micro((run) => run.front ?? Number.NaN)}, receiver ${micro((run) => run.cpu)}`,
          ],
        });
      }
      return figures;
    } finally {
      await daemon.stop({ keep: true });
    }
  },
};

const SUBSCRIBERS = 100;
/** Commands in one request, and requests under way: as many as share an fsync in a busy daemon. */
const PER_BATCH = 100;
const UNDER_WAY = 4;

export const fanout: Row = {
  name: "fan-out",
  what: "live events to 100 WebSocket subscribers, beside a bare Bun.serve publish of the same frame",
  async measure({ launcher, quick, rounds }) {
    const daemon = await startDaemon(launcher);
    try {
      const workspace_id = await createWorkspace(daemon.socket);
      const events = quick ? 5_000 : 20_000;
      await live(daemon, workspace_id, events);
      const frame = `{"kind":"event","subscription":"1","event":${lastBody(daemon.database)}}`;
      const done = await takeTurns(
        rounds,
        () => published(frame, events),
        () => live(daemon, workspace_id, events),
      );
      const deliveries = events * SUBSCRIBERS;
      const cpu = done.ours.map((run) => run.front).filter((value) => value !== undefined);
      return [
        {
          name: `fan-out to ${SUBSCRIBERS} WebSockets`,
          unit: "deliveries/s",
          yardstick: median(done.yardstick.map((run) => deliveries / seconds(run))),
          ours: median(done.ours.map((run) => deliveries / seconds(run))),
          floor: { kind: "at least", times: 0.4 },
          notes: [
            `frames of ${frame.length} bytes; ${events} events a round, ${PER_BATCH} a request; CPU µs per delivery: ` +
              `front ${cpu.length > 0 ? ((median(cpu) / deliveries) * 1e6).toFixed(2) : "?"}, receiver ` +
              `${((median(done.ours.map((run) => run.cpu)) / deliveries) * 1e6).toFixed(2)}`,
          ],
        },
      ];
    } finally {
      await daemon.stop();
    }
  },
};

/** The newest event as it is stored. */
function lastBody(database: string): string {
  const db = new Database(database, { readonly: true });
  const { body } = db
    .query<{ body: string }, []>(
      "SELECT CAST(body AS TEXT) AS body FROM events ORDER BY seq_global DESC LIMIT 1",
    )
    .get()!;
  db.close();
  return body;
}

/** Ours: from the first request to the last event at the last subscriber. */
export async function live(daemon: Daemon, workspace_id: string, events: number, backlog = 0) {
  const plan: ReceivePlan = {
    socket: daemon.socket,
    form: "websocket",
    connections: SUBSCRIBERS,
    after: (await head(daemon.socket)) - backlog,
    events: events + backlog,
  };
  const receiver = partner("receive.ts", plan);
  const bodies = Array.from({ length: events / PER_BATCH }, () => projectBatch(workspace_id, PER_BATCH));
  await receiver.line();
  const before = cpuTimes(daemon.pid);
  const begun = performance.timeOrigin + performance.now();
  const sender = async () => {
    for (let body = bodies.pop(); body !== undefined; body = bodies.pop())
      await sendBatch(daemon.socket, body);
  };
  await Promise.all(Array.from({ length: UNDER_WAY }, sender));
  const { ended, cpu } = await receiver.line<ReceiveResult>();
  const after = cpuTimes(daemon.pid);
  await receiver.end();
  return { begun, ended, cpu, front: before && after ? cpuBetween(before, after).front : undefined };
}

/** The yardstick: from the first publish to the last frame at the last socket. */
async function published(frame: string, events: number) {
  const folder = temporaryFolder();
  const socket = join(folder, "yardstick.sock");
  const publisher = partner("publish.ts", { socket, frame, times: events } satisfies PublishPlan);
  await publisher.line();
  const plan: ReceivePlan = { socket, form: "websocket", connections: SUBSCRIBERS, after: 0, events };
  const receiver = partner("receive.ts", plan);
  await receiver.line();
  publisher.tell("go");
  const { begun } = await publisher.line<PublishResult>();
  const { ended } = await receiver.line<ReceiveResult>();
  await receiver.end();
  await publisher.end();
  rmSync(folder, { recursive: true, force: true });
  return { begun, ended };
}
