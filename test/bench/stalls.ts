/**
 * The last row of SPEC §14: does the daemon answer at once while it works hard, and while the disk is slow?
 *
 * The work and the pings all share the machine's cores, so what is measured is also the scheduler's doing.
 */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createWorkspace, head } from "./api.ts";
import { load } from "./commands.ts";
import { startDaemon, temporaryFolder } from "./daemon.ts";
import { rebuild, verify } from "./derived.ts";
import type { PingsPlan, PingsResult } from "./pings.ts";
import type { ReceivePlan } from "./receive.ts";
import { type Bench, type Figure, measured, median, type Row } from "./row.ts";

const EVERY_MS = 5;
const CATCH_UP_BYTES = 100e6;
const SLOW_SYNC_MS = 200;
const FEW = 3;

export const stalls: Row = {
  name: "stalls",
  what: "ping p99 while a rebuild, a verify and a 100 MB catch-up run, and while every fsync takes 200 ms",
  async measure(bench) {
    return [...(await whileBusy(bench)), ...(await whileSlow(bench))];
  },
};

function figure(name: string, runs: readonly PingsResult[], notes: readonly string[]): Figure {
  const of = (pick: (run: PingsResult) => number) => median(runs.map(pick)).toFixed(2);
  return {
    name,
    unit: "ms",
    yardstick: null,
    ours: median(runs.map((run) => run.p99_ms)),
    floor: { kind: "limit", of: 20 },
    notes: [`median ${of((run) => run.median_ms)} ms, longest ${of((run) => run.max_ms)} ms`, ...notes],
  };
}

/** Do one thing after the other until told to stop; how often it was done. */
async function keepDoing(work: () => Promise<unknown>, over: () => boolean): Promise<number> {
  let times = 0;
  for (; !over(); times++) await work();
  return times;
}

async function whileBusy({ launcher, quick, rounds, bigLog }: Bench): Promise<Figure[]> {
  const { home, events, bytes } = await bigLog();
  const seconds = quick ? 4 : 10;
  const daemon = await startDaemon(launcher, { home });
  try {
    const last = await head(daemon.socket);
    const wanted = Math.min(events, Math.round((CATCH_UP_BYTES / bytes) * events));
    const catchUp: ReceivePlan = {
      socket: daemon.socket,
      form: "websocket",
      connections: 1,
      after: last - wanted,
      events: wanted,
    };
    let over = false;
    const work = Promise.all(
      [() => rebuild(daemon), () => verify(daemon), () => caughtUp(catchUp)].map((each) =>
        keepDoing(each, () => over),
      ),
    );
    const pings: PingsPlan = { socket: daemon.socket, seconds, every_ms: EVERY_MS };
    const runs: PingsResult[] = [];
    for (let round = 0; round < Math.min(rounds, FEW); round++)
      runs.push(await measured<PingsResult>("pings.ts", pings));
    over = true;
    const [rebuilds, verifies, catchUps] = await work;
    const note = `until all had ended: ${rebuilds} rebuilds, ${verifies} verifies, ${catchUps} catch-ups`;
    return [figure("ping p99 under a rebuild, a verify and a catch-up", runs, [note])];
  } finally {
    await daemon.stop({ keep: true });
  }
}

async function caughtUp(plan: ReceivePlan): Promise<void> {
  const lines = Bun.spawn([process.execPath, join(import.meta.dir, "receive.ts"), JSON.stringify(plan)], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  if ((await lines.exited) !== 0) throw new Error("the catch-up failed");
}

async function whileSlow({ launcher, quick, rounds, say }: Bench): Promise<Figure[]> {
  const folder = temporaryFolder();
  const library = join(folder, "faults.so");
  const source = join(import.meta.dir, "..", "support", "faults.c");
  const cc = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"];
  if (process.platform !== "linux" || Bun.which("cc") === null || !Bun.spawnSync(cc).success) {
    say("skipped: a slow disk can be feigned only on Linux with a C compiler");
    rmSync(folder, { recursive: true });
    return [];
  }
  writeFileSync(join(folder, "slow-fsync"), String(SLOW_SYNC_MS));
  const daemon = await startDaemon(launcher, { env: { LD_PRELOAD: library, MP_FAULTS: folder } });
  try {
    const workspace_id = await createWorkspace(daemon.socket);
    const connections = 16;
    const seconds = quick ? 3 : 8;
    const pings: PingsPlan = { socket: daemon.socket, seconds: seconds - 1, every_ms: EVERY_MS };
    const runs: PingsResult[] = [];
    for (let round = 0; round < Math.min(rounds, FEW); round++) {
      const commands = (connections * seconds * 1000) / SLOW_SYNC_MS;
      const writing = load(daemon, { workspace_id, connections, warmup: 0, commands });
      runs.push(await measured<PingsResult>("pings.ts", pings));
      const { median_ms } = await writing;
      if (median_ms < SLOW_SYNC_MS) throw new Error(`commands took ${median_ms} ms: the disk was not slow`);
    }
    return [
      figure(`ping p99 while every fsync takes ${SLOW_SYNC_MS} ms`, runs, [
        `${connections} writers all the time`,
      ]),
    ];
  } finally {
    await daemon.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}
