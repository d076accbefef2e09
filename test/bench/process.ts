/**
 * The rows of SPEC §14 about the process itself: a trivial command, the start with a large log, memory.
 */
import { rmSync } from "node:fs";
import { createWorkspace } from "./api.ts";
import { cleanEnvironment, residentMiB, startDaemon, temporaryFolder } from "./daemon.ts";
import { type Figure, median, type Row, takeTurns } from "./row.ts";
import { live } from "./streams.ts";

export const ping: Row = {
  name: "ping",
  what: "`mp daemon ping`, the whole process, beside `bun -e 0` of the same runtime",
  async measure({ launcher, quick }) {
    const daemon = await startDaemon(launcher);
    try {
      const env = { ...cleanEnvironment(), MP_HOME: daemon.home };
      const done = await takeTurns(
        quick ? 30 : 100,
        () => wholeProcess([process.execPath, "-e", "0"], env),
        () => wholeProcess([...launcher.command, "daemon", "ping"], env),
      );
      return [
        {
          name: "mp daemon ping, whole process",
          unit: "ms",
          yardstick: median(done.yardstick),
          ours: median(done.ours),
          floor: { kind: "at most", times: 3 },
          notes: [],
        },
      ];
    } finally {
      await daemon.stop();
    }
  },
};

/** Milliseconds from the spawn to the exit. */
async function wholeProcess(command: string[], env: Record<string, string | undefined>): Promise<number> {
  const started = performance.now();
  const { success, stderr } = Bun.spawnSync(command, { env, stdin: "ignore", stdout: "ignore" });
  if (!success) throw new Error(`${command.slice(1).join(" ")}: ${stderr}`);
  return performance.now() - started;
}

export const start: Row = {
  name: "start",
  what: "daemon start to its first answer with the large log, beside the same with an empty one",
  async measure({ launcher, rounds, bigLog }) {
    const { home, events } = await bigLog();
    const empty = temporaryFolder();
    const ready = async (folder: string) => {
      const daemon = await startDaemon(launcher, { home: folder });
      await daemon.stop({ keep: true });
      return daemon.ready_ms;
    };
    // The first start makes the files; it is not the one that counts.
    await ready(empty);
    const done = await takeTurns(
      rounds,
      () => ready(empty),
      () => ready(home),
    );
    rmSync(empty, { recursive: true, force: true });
    return [
      {
        name: `start to ready, ${events.toLocaleString("en")} events`,
        unit: "ms",
        yardstick: median(done.yardstick),
        ours: median(done.ours),
        floor: { kind: "at most", times: 1.5 },
        notes: [],
      },
    ];
  },
};

/** Events that each of the hundred has to catch up with, then events that come live. */
const BACKLOG = 10_000;
const LIVE = 2_000;
/** What a start leaves behind has settled by then. */
const SETTLED_MS = 1_000;

export const memory: Row = {
  name: "memory",
  what: "resident memory: idle, and with the large log and 100 subscribers that caught up and went live",
  async measure({ launcher, rounds, bigLog }) {
    const { home, events } = await bigLog();
    const idle: number[] = [];
    const busy: number[] = [];
    for (let round = 0; round < Math.min(rounds, 3); round++) {
      const quiet = await startDaemon(launcher);
      await Bun.sleep(SETTLED_MS);
      idle.push(residentMiB(quiet.pid) ?? Number.NaN);
      await quiet.stop();

      const daemon = await startDaemon(launcher, { home });
      const workspace_id = await createWorkspace(daemon.socket);
      await live(daemon, workspace_id, LIVE, BACKLOG);
      busy.push(residentMiB(daemon.pid) ?? Number.NaN);
      await daemon.stop({ keep: true });
    }
    if (Number.isNaN(idle[0])) return [];
    const figure = (name: string, values: number[], of: number): Figure => ({
      name,
      unit: "MiB",
      yardstick: null,
      ours: median(values),
      floor: { kind: "limit", of },
      notes: [],
    });
    return [
      figure("memory, idle", idle, 90),
      figure(`memory, ${events.toLocaleString("en")} events and 100 subscribers`, busy, 200),
    ];
  },
};
