/**
 * How SQLite goes about what the domain asks of it, on tables of thousands of rows: by an index wherever one can serve, and in
 * an order that needs no sorting where work is claimed.
 *
 * What runs is caught on the connection that it runs on, so a statement that changes is looked at as well. There are no
 * statistics, as in a daemon's database: the plans are those of production. Snapshots and moves of boards, and tasks by each
 * of their filters, have such tests of their own (board.test.ts, task.test.ts); here they stand among all the others, and a
 * scan must be on the list of those that are meant.
 */
import type { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { artifact } from "../../src/domain/artifact.ts";
import { board } from "../../src/domain/board.ts";
import { project } from "../../src/domain/project.ts";
import { session } from "../../src/domain/session.ts";
import { task } from "../../src/domain/task.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { worktree } from "../../src/domain/worktree.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { about, type Fact, kernel, uuid } from "../support/given.ts";

/** Scans that are meant: of which table, by which statement, and why no index can serve. */
const MEANT: readonly { readonly step: RegExp; readonly by: RegExp; readonly why: string }[] = [
  {
    step: /^SCAN projections$/,
    by: /^UPDATE projections SET as_of_seq = \? WHERE error IS NULL$/,
    why: "it has a row for each kind, and all of them are meant",
  },
  {
    step: /^SCAN (sessions|tasks|boards|worktrees|artifacts)$/,
    by: /^SELECT \* FROM \w+ ORDER BY \w+_id LIMIT \?$/,
    why: "nothing but the next rows in the order of the key is asked for, and the scan ends with the page",
  },
  {
    step: /^SCAN tasks$/,
    by: /^SELECT \* FROM tasks WHERE due >= \? ORDER BY task_id LIMIT \?$/,
    why: "nearly all tasks are not overdue: by their deadline they would have to be sorted",
  },
];

const [W, P, B] = [uuid(1), uuid(2), uuid(3)];
const TASKS = 2_000;
const SESSIONS = 1_000;
const WORKTREES = 200;
const ARTIFACTS = 200;
const NODES = 200;
const idOf = (kind: number, index: number) => uuid(kind * 0x100_0000 + index);
const taskOf = (index: number) => idOf(1, index);
const sessionOf = (index: number) => idOf(2, index);
const worktreeOf = (index: number) => idOf(3, index);
const artifactOf = (index: number) => idOf(4, index);
const nodeOf = (index: number) => idOf(5, index);
const [LANE, DONE] = [uuid(4), uuid(5)];
const inside = { workspace_id: W, project_id: P };
const many = (count: number, make: (index: number) => Fact | Fact[]) =>
  Array.from({ length: count }, (_, index) => make(index)).flat();

const world: readonly Fact[] = [
  about(workspace, W)("created", { name: "w" }),
  about(project, P, { workspace_id: W })("created", { name: "p" }),
  ...many(SESSIONS, (index) =>
    about(
      session,
      sessionOf(index),
      inside,
    )("spawned", {
      ...(index > 0 && { parent_session_id: sessionOf((index - 1) >> 2) }),
      agent: { name: "agent" },
      external_ref: `run-${index}`,
      epoch: 1,
      ttl_ms: 86_400_000,
    }),
  ),
  ...many(TASKS, (index) =>
    about(
      task,
      taskOf(index),
      inside,
    )("created", {
      title: `task ${index}`,
      priority: index % 5,
      max_attempts: 3,
      depends_on: index % 4 === 3 ? [taskOf(index - 1), taskOf(index - 2)] : [],
      ...(index % 2 === 0 && { stage: "build" }),
      ...(index > 0 && index % 3 === 0 && { parent_task_id: taskOf(0) }),
      ...(index % 7 === 0 && { deadline_at: "2026-01-02T00:00:00.000Z" }),
    }),
  ),
  ...many(WORKTREES, (index) => {
    const facts = about(worktree, worktreeOf(index), inside);
    return [
      facts("registered", { host: "here", path: `/srv/${index}` }),
      facts("attached", { session_id: sessionOf(index), mode: "write" }),
    ];
  }),
  ...many(ARTIFACTS, (index) =>
    about(artifact, artifactOf(index), { workspace_id: W })("registered", {
      digest: `sha256:${index.toString(16).padStart(64, "0")}`,
      media_type: "text/plain",
      size: 1,
      name: `log-${index}`,
      links: [{ kind: "task", id: taskOf(index) }],
    }),
  ),
  about(board, B, { workspace_id: W })("created", {
    name: "b",
    lanes: [
      { lane_id: LANE, name: "to do" },
      { lane_id: DONE, name: "done", stage: "done" },
    ],
  }),
  ...many(NODES, (index) =>
    about(board, B, { workspace_id: W })("node_added", {
      node_id: nodeOf(index),
      lane_id: LANE,
      rank: `a${index.toString(36).padStart(3, "0")}1`,
      kind: "task",
      ref_id: taskOf(index),
    }),
  ),
];

interface Asked {
  readonly sql: string;
  readonly steps: readonly string[];
}

/** Every statement that is asked for on a connection meanwhile, with what SQLite does for it. */
function asked(db: Database, run: () => unknown): Asked[] {
  const seen = new Set<string>();
  const query = db.query.bind(db);
  db.query = ((sql: string) => {
    seen.add(sql);
    return query(sql);
  }) as typeof db.query;
  try {
    run();
  } finally {
    db.query = query as typeof db.query;
  }
  return [...seen].map((sql) => {
    const plan = db.prepare<{ detail: string }, null[]>(`EXPLAIN QUERY PLAN ${sql}`);
    const steps = plan.all(...Array<null>(plan.paramsCount).fill(null)).map((step) => step.detail);
    plan.finalize();
    return { sql, steps };
  });
}

/** What of it scans a table, unless it is meant. Common table expressions and lists of ids are no tables. */
function scans(all: readonly Asked[]): string[] {
  return all.flatMap(({ sql, steps }) =>
    steps
      .filter((step) => /^SCAN (?!json_each|a$|CONSTANT ROW)/.test(step))
      .filter((step) => !MEANT.some((meant) => meant.step.test(step) && meant.by.test(sql)))
      .map((step) => `${step}: ${sql}`),
  );
}

function sorts(all: readonly Asked[]): string[] {
  return all.flatMap(({ sql, steps }) =>
    steps.filter((step) => step.includes("TEMP B-TREE")).map((step) => `${step}: ${sql}`),
  );
}

/** Of each look into the queue: the columns that it is asked to be equal in, and those that SQLite finds by its index. */
function looks(all: readonly Asked[]): { readonly asked: string[]; readonly found: string[] }[] {
  const equal = (text: string, mark: RegExp) => [...text.matchAll(mark)].map((match) => match[1]!);
  return all
    .filter(({ sql }) => sql.startsWith("SELECT") && /\bFROM task_queue\b/.test(sql))
    .map(({ sql, steps }) => {
      const [step = "", ...more] = steps.filter((each) => /\btask_queue\b/.test(each));
      expect(more).toEqual([]);
      const by = /^SEARCH task_queue USING (?:INDEX \S+|PRIMARY KEY) \((.*)\)$/.exec(step)?.[1] ?? "";
      return { asked: equal(sql, /(\w+) IS \?/g), found: equal(by, /(\w+)=\?/g) };
    });
}

const it = kernel();
it.tell(world);
const reading = openForReading(it.path);
afterAll(() => reading.close());
const models = new ReadModels(reading, it.registry);

/** A query's first two pages. */
function queried(type: string, params: object): Asked[] {
  const { kind, run } = it.registry.queries.get(type)!.reads!;
  const page = (more: object) => {
    const at = "2026-06-01T00:00:00.000Z";
    return models.snapshot(kind, (read) => run(read, { ...params, ...more } as never, at)).answer;
  };
  return asked(reading, () => {
    const limit = "limit" in it.registry.queries.get(type)!.params.properties ? { limit: 3 } : {};
    const { next } = page(limit) as { next?: string | null };
    if (next) page({ ...limit, cursor: next });
  });
}

/** Accepted, or the test is about something else than it says. */
function done(type: string, payload: Record<string, unknown>): void {
  const outcome = it.run(type, payload);
  if ("problem" in outcome) throw new Error(`${type}: ${JSON.stringify(outcome.problem)}`);
}

describe("with thousands of rows and no statistics", () => {
  test("there are none, as in a daemon's database", () => {
    expect(it.db.query("SELECT name FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'").all()).toEqual([]);
    expect(it.db.query("SELECT count(*) AS n FROM tasks").get()).toEqual({ n: TASKS });
  });

  const session_id = sessionOf(0);
  test.each([
    ["task.claim", { filter: {}, session_id }],
    ["task.claim", { filter: { stage: "build" }, session_id }],
    ["task.claim", { filter: { project_id: P }, session_id }],
    ["task.claim", { filter: { project_id: P, stage: "build" }, session_id }],
    ["task.claim", { filter: { parent_task_id: taskOf(0) }, session_id }],
    ["task.claim", { filter: { project_id: P, parent_task_id: taskOf(0), stage: "build" }, session_id }],
    ["task.claim", { task_id: taskOf(1_000), session_id }],
    ["task.renew", { task_id: taskOf(1_000), epoch: 1 }],
    ["task.complete", { task_id: taskOf(1_000), epoch: 1 }],
    ["task.add_dependency", { task_id: taskOf(1_996), depends_on_task_id: taskOf(3) }],
    ["task.remove_dependency", { task_id: taskOf(1_996), depends_on_task_id: taskOf(3) }],
    ["board.add_node", { board_id: B, lane_id: DONE, kind: "session", ref_id: sessionOf(5) }],
    ["board.move_node", { board_id: B, node_id: nodeOf(7), lane_id: DONE }],
    ["board.move_node", { board_id: B, node_id: nodeOf(8), lane_id: LANE, after: nodeOf(20) }],
    ["session.spawn", { workspace_id: W, parent_session_id: session_id, agent: { name: "a" } }],
    ["session.heartbeat", { session_id: sessionOf(9), epoch: 1 }],
    ["worktree.lock_writer", { worktree_id: worktreeOf(1), session_id: sessionOf(1) }],
    ["session.end", { session_id: sessionOf(1), outcome: "failed" }],
  ] as const)("%s %j neither scans nor sorts", (type, payload) => {
    // What an executor keeps is asked for again.
    it.forget();
    const all = asked(it.db, () => done(type, payload));
    expect(all.length).toBeGreaterThan(1);
    expect([...scans(all), ...sorts(all)]).toEqual([]);
  });

  test.each([
    ["task.ready", {}],
    ["task.ready", { workspace_id: W }],
    ["task.ready", { workspace_id: W, stage: "build" }],
    ["task.ready", { project_id: P, stage: "build" }],
    ["task.ready", { parent_task_id: taskOf(0) }],
    ["task.list", { workspace_id: W }],
    ["task.list", { project_id: P }],
    ["task.list", { status: "queued" }],
    ["task.list", { session_id }],
    ["task.list", { stage: "build" }],
    ["task.list", { parent_task_id: taskOf(0) }],
    ["task.list", { overdue: true, workspace_id: W }],
    ["task.list", { overdue: false, project_id: P, status: "queued" }],
    ["session.list", { workspace_id: W }],
    ["session.list", { project_id: P }],
    ["session.list", { parent_session_id: session_id }],
    ["session.list", { status: "running" }],
    ["session.list", { external_ref: "run-3" }],
    ["session.get", { session_id }],
    ["board.list", { workspace_id: W }],
    ["board.get", { board_id: B }],
    ["board.snapshot", { board_id: B }],
    ["worktree.list", { workspace_id: W }],
    ["worktree.list", { project_id: P }],
    ["worktree.list", { path: "/srv/3" }],
    ["worktree.list", { status: "present" }],
    ["worktree.get", { worktree_id: worktreeOf(3) }],
    ["worktree.check", { path: "/srv/3/src/deep" }],
    ["artifact.list", { workspace_id: W }],
    ["artifact.list", { digest: `sha256:${"0".repeat(64)}` }],
    ["artifact.list", { status: "available" }],
    ["artifact.list", { name: "log-3" }],
    ["artifact.list", { linked_to: taskOf(3) }],
    ["artifact.get", { artifact_id: artifactOf(3) }],
  ] as const)("%s %j looks up by an index", (type, params) => {
    const all = queried(type, params);
    expect(all.length).toBeGreaterThan(1);
    expect(scans(all)).toEqual([]);
    if (type === "task.ready") expect(sorts(all)).toEqual([]);
  });

  // A wider index would do without a scan as well, and look at all that it holds: in each part of the queue one serves for all.
  test.each([
    ["task.claim", { workspace_id: W }, ["workspace_id"]],
    ["task.claim", { workspace_id: W, stage: "build" }, ["workspace_id", "stage"]],
    ["task.claim", { project_id: P }, ["project_id"]],
    ["task.claim", { project_id: P, stage: "build" }, ["project_id", "stage"]],
    ["task.claim", { parent_task_id: taskOf(0) }, ["parent_task_id"]],
    ["task.claim", { parent_task_id: taskOf(0), stage: "build" }, ["parent_task_id", "stage"]],
    ["task.ready", {}, []],
    ["task.ready", { workspace_id: W }, ["workspace_id"]],
    ["task.ready", { workspace_id: W, stage: "build" }, ["workspace_id", "stage"]],
    ["task.ready", { project_id: P }, ["project_id"]],
    ["task.ready", { project_id: P, stage: "build" }, ["project_id", "stage"]],
    ["task.ready", { parent_task_id: taskOf(0) }, ["parent_task_id"]],
    ["task.ready", { parent_task_id: taskOf(0), stage: "build" }, ["parent_task_id", "stage"]],
  ] as const)(
    "%s of %j finds its part of the queue, and the place in it, by one index",
    (type, filter, part) => {
      it.forget();
      const all =
        type === "task.ready"
          ? queried(type, filter)
          : asked(it.db, () => done(type, { filter, session_id }));
      const found = looks(all);
      expect(found.length).toBeGreaterThan(0);
      for (const look of found) {
        expect(look.found).toEqual(look.asked);
        expect(look.asked.slice(0, part.length)).toEqual([...part]);
      }
    },
  );

  test.each([
    ["session.tree", {}],
    ["session.tree", { workspace_id: W }],
    ["session.tree", { root: sessionOf(1) }],
    ["session.list", { live: true }],
    ["session.list", {}],
    ["task.list", {}],
    ["task.list", { overdue: false }],
    ["board.list", {}],
    ["worktree.list", {}],
    ["artifact.list", {}],
  ] as const)("%s %j scans nothing but what is meant", (type, params) => {
    expect(scans(queried(type, params))).toEqual([]);
  });
});
