/**
 * The rows of SPEC §14 about what is derived from the log: rebuilding every read model, and verifying the log.
 *
 * Both run in the daemon, as a client asks for them, over the whole large log.
 */
import { join } from "node:path";
import { command, query } from "./api.ts";
import { type Daemon, startDaemon } from "./daemon.ts";
import type { InsertPlan, InsertResult } from "./insert.ts";
import type { ReadPlan, ReadResult } from "./read.ts";
import { measured, median, type Row, takeTurns } from "./row.ts";

/** Rounds of rows that take seconds each. */
const FEW = 3;

/** How often the end of a rebuild is looked for. */
const LOOK_MS = 10;

/** Rebuild all read models; seconds from the command to the last switch. */
export async function rebuild({ socket }: Daemon): Promise<number> {
  const started = performance.now();
  await command(socket, "projection.rebuild", {});
  for (;;) {
    await Bun.sleep(LOOK_MS);
    const { items } = await query<{ items: { status: string }[] }>(socket, "projection.list");
    if (items.every(({ status }) => status === "serving")) return (performance.now() - started) / 1000;
    if (items.some(({ status }) => status === "stopped")) throw new Error("a projection has stopped");
  }
}

/** Verify the log; seconds. */
export async function verify({ socket }: Daemon): Promise<{ events: number; seconds: number }> {
  const started = performance.now();
  const { ok, events } = await query<{ ok: boolean; events: number }>(socket, "log.verify");
  if (!ok) throw new Error("the log does not verify");
  return { events, seconds: (performance.now() - started) / 1000 };
}

export const rebuilding: Row = {
  name: "rebuild",
  what: "projection.rebuild of every read model, beside a bare insert of the projects' rows, synchronous=OFF",
  async measure({ launcher, rounds, bigLog }) {
    const { home, events } = await bigLog();
    const daemon = await startDaemon(launcher, { home });
    try {
      const done = await takeTurns(
        Math.min(rounds, FEW),
        () =>
          measured<InsertResult>("insert.ts", {
            from: daemon.database,
            table: "projects",
            rows: events,
            into: join(home, "yardstick.db"),
            per_transaction: 2_000,
            synchronous: "OFF",
          } satisfies InsertPlan),
        () => rebuild(daemon),
      );
      return [
        {
          name: "rebuild of all read models",
          unit: "events/s",
          yardstick: median(done.yardstick.map((run) => run.rows / run.seconds)),
          ours: median(done.ours.map((seconds) => events / seconds)),
          floor: { kind: "at least", times: 0.4 },
          notes: [`${events} events; commands and readers could go on meanwhile`],
        },
      ];
    } finally {
      await daemon.stop({ keep: true });
    }
  },
};

export const verifying: Row = {
  name: "verify",
  what: "log.verify of the whole log, beside a bare paged read plus one SHA-256 of each row",
  async measure({ launcher, rounds, bigLog }) {
    const { home } = await bigLog();
    const daemon = await startDaemon(launcher, { home });
    try {
      const done = await takeTurns(
        Math.min(rounds, FEW),
        () => measured<ReadResult>("read.ts", { database: daemon.database, hash: true } satisfies ReadPlan),
        () => verify(daemon),
      );
      return [
        {
          name: "log verify",
          unit: "events/s",
          yardstick: median(done.yardstick.map((run) => run.rows / run.seconds)),
          ours: median(done.ours.map((run) => run.events / run.seconds)),
          floor: { kind: "at least", times: 0.3 },
          notes: [],
        },
      ];
    } finally {
      await daemon.stop({ keep: true });
    }
  },
};
