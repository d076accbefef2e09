/**
 * The work at its size: a board of 10,000 nodes, a tree of 10,000 sessions, 100,000 tasks with 200,000 dependencies
 * (worklog.ts), asked for and changed by one client, and how the daemon answers others meanwhile.
 *
 * Each load has three figures: the median beside its yardstick (the bare read of the rows that are answered; the bare insert of
 * one event, a transaction each), the 99th percentile, and that of pings that go on all the while.
 */
import { join } from "node:path";
import type { Ask, AsksPlan, AsksResult } from "./asks.ts";
import { type Daemon, startDaemon, temporaryFolder } from "./daemon.ts";
import type { InsertPlan, InsertResult } from "./insert.ts";
import type { PagePlan, PageResult } from "./page.ts";
import type { PingsPlan, PingsResult } from "./pings.ts";
import { type Bench, type Figure, measured, median, partner, type Row } from "./row.ts";
import type { WorkLogPlan, WorkLogResult } from "./worklog.ts";

const EVERY_MS = 5;
/** Rounds at most: what a round uses up is gone for the next one. */
const FEW = 3;
const PAGE = 100;
const LARGE_PAGE = 1_000;
/** Claims and ends of tasks that one round may use up. */
const PER_ROUND = 1_000;
const STAGES = ["design", "build", "review"];

/** What one client does, over and over. */
interface Load {
  readonly name: string;
  readonly asks: (round: number) => readonly Ask[];
  /** The bare read of the same rows; for commands, where there is none, it is the insert of an event. */
  readonly read?: Pick<PagePlan, "sql" | "values">;
  /** The status of its answers, if it is not 200. */
  readonly status?: number;
}

export const work: Row = {
  name: "work",
  what: "a board of 10,000 nodes, a tree of 10,000 sessions, 100,000 tasks with 200,000 dependencies, and pings beside",
  async measure(bench) {
    const { launcher, rounds, say } = bench;
    const home = temporaryFolder();
    say("making 100,000 tasks, 10,000 sessions and a board of 10,000 nodes");
    const begun = performance.now();
    const made = await measured<WorkLogResult>("worklog.ts", { home } satisfies WorkLogPlan);
    say(`made in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
    const daemon = await startDaemon(launcher, { home });
    try {
      await claimed(daemon, made);
      const figures: Figure[] = [];
      for (const load of loads(made, Math.min(rounds, FEW))) {
        say(load.name);
        figures.push(...(await under(bench, daemon, load)));
      }
      return figures;
    } finally {
      await daemon.stop();
    }
  },
};

function query(type: string, params: Record<string, string | number>, all = false): () => Ask[] {
  const texts = Object.entries(params).map(([name, value]) => [name, String(value)] as const);
  return () => [{ query: type, params: Object.fromEntries(texts), all }];
}

/** One part of a list for each round. */
function share<T>(all: readonly T[], round: number, rounds: number): readonly T[] {
  const size = Math.min(PER_ROUND, Math.floor(all.length / rounds));
  return all.slice(round * size, (round + 1) * size);
}

function loads(made: WorkLogResult, rounds: number): Load[] {
  const { workspace_id, projects, sessions, free, hubs, chains, board_id, lanes, movable, anchors } = made;
  const root = sessions[0]!;
  const session_id = root;
  const [upper, lower] = [chains[0]!, chains[1]!];
  const nodes = (limit: number) => ({
    sql: "SELECT * FROM board_nodes WHERE board_id = ? ORDER BY node_id LIMIT ?",
    values: [board_id, limit],
  });
  const tree = (limit: number) => ({
    sql: "SELECT * FROM sessions WHERE root_session_id = ? ORDER BY session_id LIMIT ?",
    values: [root, limit],
  });
  const links = [
    { command: "task.add_dependency", payload: { task_id: upper[0], depends_on_task_id: lower.at(-1) } },
    {
      command: "task.remove_dependency",
      payload: { task_id: upper[0], depends_on_task_id: lower.at(-1) },
      aside: true,
    },
  ];
  return [
    {
      name: "board.snapshot, its largest page (1,000)",
      asks: query("board.snapshot", { board_id, limit: LARGE_PAGE }),
      read: nodes(LARGE_PAGE),
    },
    {
      name: "board.snapshot, all 10,000 in pages of 1,000",
      asks: query("board.snapshot", { board_id, limit: LARGE_PAGE }, true),
      read: nodes(movable.length + anchors.flat().length),
    },
    {
      name: "board.move_node",
      asks: (round) =>
        share(movable, round, rounds).map((node_id, index) => {
          const lane = index % lanes.length;
          const near = anchors[lane]!;
          const payload = { board_id, node_id, lane_id: lanes[lane], after: near[index % near.length] };
          return { command: "board.move_node", payload };
        }),
    },
    {
      name: "session.tree, a page of 100",
      asks: query("session.tree", { root, limit: PAGE }),
      read: tree(PAGE),
    },
    {
      name: "session.tree, its largest page (1,000)",
      asks: query("session.tree", { root, limit: LARGE_PAGE }),
      read: tree(LARGE_PAGE),
    },
    {
      name: "session.tree, all 10,000 in pages of 1,000",
      asks: query("session.tree", { root, limit: LARGE_PAGE }, true),
      read: tree(sessions.length),
    },
    {
      name: "task.ready, a page of 100",
      asks: query("task.ready", { workspace_id, limit: PAGE }),
      read: {
        sql: `SELECT t.* FROM task_queue AS q CROSS JOIN tasks AS t ON t.task_id = q.task_id
              ORDER BY q.priority, q.timed, q.since, q.task_id LIMIT ?`,
        values: [PAGE],
      },
    },
    {
      name: "task.claim by filter",
      asks: (round) =>
        Array.from({ length: PER_ROUND }, (_, index) => {
          const project_id = projects[(round * PER_ROUND + index) % projects.length]!;
          const stage = STAGES[index % STAGES.length]!;
          const filter = [{}, { project_id }, { stage }, { project_id, stage }][index % 4]!;
          return { command: "task.claim", payload: { filter, session_id, ttl_ms: 86_400_000 } };
        }),
    },
    {
      name: "task.claim by id",
      asks: (round) =>
        share(free, round, rounds).map((task_id) => ({
          command: "task.claim",
          payload: { task_id, session_id, ttl_ms: 86_400_000 },
        })),
    },
    {
      name: "task.complete of one with 100 dependents",
      asks: (round) =>
        share(hubs, round, rounds).map((task_id) => ({
          command: "task.complete",
          payload: { task_id, epoch: 1, result: { files: 3 } },
        })),
    },
    {
      name: "task.add_dependency, 10,000 tasks looked at for a cycle",
      asks: () => Array.from({ length: PER_ROUND }, (_, index) => links[index % links.length]!),
    },
    {
      name: "task.add_dependency, refused for a cycle of 5,000",
      asks: () =>
        Array.from({ length: PER_ROUND }, () => ({
          command: "task.add_dependency",
          payload: { task_id: upper[0], depends_on_task_id: upper.at(-1) },
        })),
      status: 409,
    },
  ];
}

/** Let the root session have every task that is to be completed. */
async function claimed(daemon: Daemon, { hubs, sessions }: WorkLogResult): Promise<void> {
  const asks = hubs.map((task_id) => ({
    command: "task.claim",
    payload: { task_id, session_id: sessions[0], ttl_ms: 86_400_000 },
  }));
  await asked({ socket: daemon.socket, seconds: Number.MAX_SAFE_INTEGER, asks });
}

async function asked(plan: AsksPlan): Promise<AsksResult> {
  const asking = partner("asks.ts", {});
  asking.tell(JSON.stringify(plan));
  const [result] = await Promise.all([asking.line<AsksResult>(), asking.end()]);
  return result;
}

/** Rounds of the yardstick and of a load, with pings beside the load. */
async function under({ quick, rounds }: Bench, daemon: Daemon, load: Load): Promise<Figure[]> {
  const { socket, database, home } = daemon;
  const bare: number[] = [];
  const runs: (AsksResult & { readonly pings: PingsResult })[] = [];
  for (let round = 0; round < Math.min(rounds, FEW); round++) {
    bare.push(load.read ? await bareRead(database, load.read) : await bareInsert(database, home));
    const pinging = partner("pings.ts", { socket, every_ms: EVERY_MS } satisfies PingsPlan);
    const asks = load.asks(round);
    const { status = 200 } = load;
    const result = await asked({ socket, seconds: quick ? 1 : 3, asks, status });
    const [pings] = await Promise.all([pinging.line<PingsResult>(), pinging.end()]);
    runs.push({ ...result, pings });
  }
  const times = runs.flatMap((run) => run.times).sort((a, b) => a - b);
  const pings = (pick: (run: PingsResult) => number) => runs.map((run) => pick(run.pings));
  const bytes = Math.max(...runs.map((run) => run.most_bytes));
  const ms = (value: number) => `${value.toPrecision(3)} ms`;
  const figure = { unit: "ms", yardstick: null, floor: { kind: "none" }, notes: [] } as const;
  return [
    {
      ...figure,
      name: load.name,
      yardstick: median(bare),
      ours: median(times),
      notes: [
        `${times.length} times; longest answer ${ms(Math.max(...runs.map((run) => run.longest_ms)))}, ` +
          `largest ${Math.ceil(bytes / 1024).toLocaleString("en")} KiB`,
      ],
    },
    { ...figure, name: "… p99", ours: times[Math.floor(times.length * 0.99)]! },
    {
      ...figure,
      name: "… ping p99 meanwhile",
      ours: median(pings((run) => run.p99_ms)),
      floor: { kind: "limit", of: 20 },
      notes: [
        `${pings((run) => run.pings).reduce((sum, count) => sum + count)} pings, longest ${ms(Math.max(...pings((run) => run.max_ms)))}`,
      ],
    },
  ];
}

async function bareRead(
  database: string,
  { sql, values }: Pick<PagePlan, "sql" | "values">,
): Promise<number> {
  const plan: PagePlan = { database, sql, values, seconds: 0.3 };
  return (await measured<PageResult>("page.ts", plan)).median_ms;
}

/** One durable insert of an event, a transaction of its own: mean milliseconds. */
async function bareInsert(database: string, home: string): Promise<number> {
  const plan: InsertPlan = {
    from: database,
    table: "events",
    rows: 300,
    into: join(home, "yardstick.db"),
    per_transaction: 1,
    synchronous: "FULL",
  };
  const { rows, seconds } = await measured<InsertResult>("insert.ts", plan);
  return (seconds * 1000) / rows;
}
