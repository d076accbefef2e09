/**
 * Durable commands over HTTP on the Unix socket, everything on (SPEC §14, the first two rows).
 *
 * Beside the rate stands the bare insert of the very events that the daemon has just stored (insert.ts); beside the
 * latency of one connection one fdatasync (sync.ts).
 */
import { join } from "node:path";
import { createWorkspace } from "./api.ts";
import { type Daemon, startDaemon } from "./daemon.ts";
import type { InsertPlan, InsertResult } from "./insert.ts";
import type { LoadPlan, LoadResult } from "./load.ts";
import { type Figure, measured, median, type Row, takeTurns } from "./row.ts";
import type { SyncPlan, SyncResult } from "./sync.ts";

let loads = 0;

/** Run the load once; every run uses names of its own. */
export function load(daemon: Daemon, plan: Omit<LoadPlan, "socket" | "pid" | "tag">): Promise<LoadResult> {
  const tag = (loads++).toString(36).padStart(4, "0");
  return measured("load.ts", { ...plan, socket: daemon.socket, pid: daemon.pid, tag } satisfies LoadPlan);
}

export const commands: Row = {
  name: "commands",
  what: "durable project.create at 64 and at 256 connections, beside a bare insert of the same events",
  async measure({ launcher, quick, rounds, say }) {
    const daemon = await startDaemon(launcher);
    try {
      const workspace_id = await createWorkspace(daemon.socket);
      const count = quick ? 20_000 : 60_000;
      // The first thousands of commands run in code that is not compiled yet.
      await load(daemon, { workspace_id, connections: 64, warmup: 0, commands: count });
      const figures: Figure[] = [];
      for (const connections of [64, 256]) {
        say(`${connections} connections`);
        const done = await takeTurns(
          rounds,
          () =>
            measured<InsertResult>("insert.ts", {
              from: daemon.database,
              table: "events",
              rows: count,
              into: join(daemon.home, "yardstick.db"),
              per_transaction: 64,
              synchronous: "FULL",
            } satisfies InsertPlan),
          () => load(daemon, { workspace_id, connections, warmup: 4 * connections, commands: count }),
        );
        figures.push({
          name: `commands, ${connections} connections`,
          unit: "commands/s",
          yardstick: median(done.yardstick.map(({ rows, seconds }) => rows / seconds)),
          ours: median(done.ours.map(({ commands, seconds }) => commands / seconds)),
          floor: { kind: "at least", times: 0.25 },
          notes: [latencies(done.ours), cpu(done.ours)],
        });
      }
      return figures;
    } finally {
      await daemon.stop();
    }
  },
};

export const latency: Row = {
  name: "latency",
  what: "median latency of project.create at one connection, beside one fdatasync after a 4 KiB write",
  async measure({ launcher, quick, rounds }) {
    const daemon = await startDaemon(launcher);
    try {
      const workspace_id = await createWorkspace(daemon.socket);
      const count = quick ? 1_000 : 3_000;
      await load(daemon, { workspace_id, connections: 1, warmup: 0, commands: 3_000 });
      const done = await takeTurns(
        rounds,
        () =>
          measured<SyncResult>("sync.ts", {
            into: join(daemon.home, "yardstick"),
            writes: count,
          } satisfies SyncPlan),
        () => load(daemon, { workspace_id, connections: 1, warmup: 100, commands: count }),
      );
      return [
        {
          name: "commands, 1 connection, latency",
          unit: "ms",
          yardstick: median(done.yardstick.map((each) => each.median_ms)),
          ours: median(done.ours.map((each) => each.median_ms)),
          floor: { kind: "at most more", by: 0.5 },
          notes: [latencies(done.ours), cpu(done.ours)],
        },
      ];
    } finally {
      await daemon.stop();
    }
  },
};

function latencies(runs: readonly LoadResult[]): string {
  const of = (pick: (run: LoadResult) => number) => median(runs.map(pick)).toFixed(2);
  return `latency p50 ${of((run) => run.median_ms)} ms, p99 ${of((run) => run.p99_ms)} ms`;
}

/** Where the time of a command goes: CPU µs of the daemon's threads and of the load itself. */
function cpu(runs: readonly LoadResult[]): string {
  const of = (pick: (run: LoadResult) => number | null) => {
    const known = runs.map(pick).filter((value) => value !== null);
    return known.length === 0 ? "?" : median(known).toFixed(1);
  };
  return (
    `CPU µs per command: front ${of((run) => run.front_cpu_us)}, writer ${of((run) => run.writer_cpu_us)}, ` +
    `daemon in all ${of((run) => run.daemon_cpu_us)}, load ${of((run) => run.load_cpu_us)}`
  );
}
