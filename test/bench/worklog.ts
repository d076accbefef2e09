/**
 * Makes the work of the row `work`, a process of its own (fill.ts): one tree of 10,000 sessions, 100,000 tasks with 200,000
 * dependencies, a board of 10,000 nodes. Prints one JSON line, WorkLogResult, when the file is complete.
 *
 * The tasks are four kinds: free ones, which make the queue; hubs with a hundred dependents each, which depend on nothing
 * else; two chains, where each depends on the one before; and a mesh, where each depends on three or four of those close
 * before it. On the board stand tasks of the mesh, sessions and comments, in four lanes, three of them with a stage.
 */
import { generateKeyBetween } from "fractional-indexing";
import { systemClock } from "../../src/kernel/clock.ts";
import { fill, type Made } from "./fill.ts";

export interface WorkLogPlan {
  /** MP_HOME of the daemon that will serve it. */
  readonly home: string;
}

export interface WorkLogResult {
  readonly workspace_id: string;
  readonly projects: readonly string[];
  /** Every session, the root of the tree first. All are starting or running. */
  readonly sessions: readonly string[];
  /** Tasks that depend on nothing and that nothing depends on, by no filter's first choice: of the least priority. */
  readonly free: readonly string[];
  readonly hubs: readonly string[];
  /** From the first, which depends on nothing, to the last. */
  readonly chains: readonly (readonly string[])[];
  readonly board_id: string;
  readonly lanes: readonly string[];
  /** Those that a load may move, and in each lane those that stay where they are. */
  readonly movable: readonly string[];
  readonly anchors: readonly (readonly string[])[];
}

const SESSIONS = 10_000;
/** Sessions right below one. */
const CHILDREN = 10;
const PROJECTS = 10;
const HUBS = 200;
const DEPENDENTS = 100;
const FREE = 20_000 - HUBS;
const CHAINS = 2;
const CHAIN = 5_000;
const MESH = 50_000;
/** How far back a task of the mesh looks for what it depends on. */
const NEAR = 500;
const DEPENDENCIES = 200_000;
const LANES = 4;
const NODES = { task: 8_000, session: 1_000, comment: 1_000 };
const STAGES = ["design", "build", "review"];
/** As long as a lease can be: none ends while the bench runs. */
const TTL_MS = 86_400_000;
const LEAST_URGENT = 4;

/** The same numbers on every run: 0 ≤ n < below. */
function dice(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const random = dice(1);
const workspace_id = systemClock.id();
const projects: string[] = [];
const sessions: string[] = [];
const free: string[] = [];
const hubs: string[] = [];
const chains: string[][] = [];
const mesh: string[] = [];
const board_id = systemClock.id();
const lanes: string[] = [];
const movable: string[] = [];
const anchors: string[][] = [];
let tasks = 0;
let dependencies = 0;

function born(kind: string, id: string, type: string, payload: object): Made {
  const event_type = `${kind}.${type}`;
  return { event_type, payload, seq_stream: 1, subject: { kind, id }, workspace_id } as Made;
}

function newTask(depends_on: readonly string[], more: object = {}): Made {
  const id = systemClock.id();
  const project_id = projects[tasks % PROJECTS]!;
  const payload = {
    title: `task ${tasks}`,
    priority: random(LEAST_URGENT),
    max_attempts: 3,
    depends_on,
    ...(random(2) === 0 && { stage: STAGES[random(STAGES.length)]! }),
    ...more,
  };
  tasks += 1;
  dependencies += depends_on.length;
  return { ...born("task", id, "created", payload), project_id };
}

function* work(): Generator<Made> {
  yield born("workspace", workspace_id, "created", { name: "work" });
  for (let index = 0; index < PROJECTS; index++) {
    const project_id = systemClock.id();
    projects.push(project_id);
    yield { ...born("project", project_id, "created", { name: `project-${index}` }), project_id };
  }

  for (let index = 0; index < SESSIONS; index++) {
    const id = systemClock.id();
    const parent = sessions[Math.floor((index - 1) / CHILDREN)];
    sessions.push(id);
    const payload = {
      ...(parent !== undefined && { parent_session_id: parent }),
      agent: { name: "agent", version: "1.0", model: "model" },
      title: `session ${index}`,
      epoch: 1,
      ttl_ms: TTL_MS,
    };
    yield { ...born("session", id, "spawned", payload), lease: { epoch: 1, ttl_ms: TTL_MS } };
    if (index % 2 === 0)
      yield { ...born("session", id, "status_reported", { status: "running" }), seq_stream: 2 };
  }

  for (let index = 0; index < FREE; index++) {
    const last = index >= FREE / 2;
    const made = newTask([], last ? { priority: LEAST_URGENT } : {});
    if (last) free.push(made.subject.id);
    yield made;
  }
  for (let hub = 0; hub < HUBS; hub++) {
    const made = newTask([], { priority: LEAST_URGENT });
    hubs.push(made.subject.id);
    yield made;
    for (let index = 0; index < DEPENDENTS; index++) yield newTask([made.subject.id]);
  }
  for (let chain = 0; chain < CHAINS; chain++) {
    const links: string[] = [];
    chains.push(links);
    for (let index = 0; index < CHAIN; index++) {
      const made = newTask(links.slice(-1));
      links.push(made.subject.id);
      yield made;
    }
  }
  const missing = DEPENDENCIES - dependencies;
  const end = dependencies + missing;
  for (let index = 0; index < MESH; index++) {
    // Four each as long as that leaves three for each of the others.
    const wanted = Math.min(index, Math.ceil((end - dependencies) / (MESH - index)));
    const needed = new Set<string>();
    while (needed.size < wanted) needed.add(mesh[index - 1 - random(Math.min(index, NEAR))]!);
    const made = newTask([...needed]);
    mesh.push(made.subject.id);
    yield made;
  }

  for (let index = 0; index < LANES; index++) {
    lanes.push(systemClock.id());
    anchors.push([]);
  }
  const named = lanes.map((lane_id, index) => ({
    lane_id,
    name: `lane ${index}`,
    ...(index > 0 && { stage: STAGES[index - 1]! }),
  }));
  yield born("board", board_id, "created", { name: "work", lanes: named });
  const ranks = lanes.map(() => undefined as string | undefined);
  let seq_stream = 2;
  for (const kind of ["task", "session", "comment"] as const)
    for (let index = 0; index < NODES[kind]; index++) {
      const node_id = systemClock.id();
      const lane = random(LANES);
      const rank = generateKeyBetween(ranks[lane], undefined);
      ranks[lane] = rank;
      const what =
        kind === "comment"
          ? { text: `comment ${index}` }
          : { ref_id: (kind === "task" ? mesh : sessions)[index]! };
      (kind === "comment" ? anchors[lane]! : movable).push(node_id);
      const payload = { node_id, lane_id: lanes[lane]!, rank, kind, ...what };
      yield { ...born("board", board_id, "node_added", payload), seq_stream: seq_stream++ };
    }
}

if (import.meta.main) {
  const { home } = JSON.parse(process.argv[2]!) as WorkLogPlan;
  fill(home, work());
  if (tasks !== 100_000 || dependencies !== DEPENDENCIES)
    throw new Error(`${tasks} tasks with ${dependencies} dependencies were made`);
  const ids = { workspace_id, projects, sessions, free, hubs, chains, board_id, lanes, movable, anchors };
  console.log(JSON.stringify(ids satisfies WorkLogResult));
}
