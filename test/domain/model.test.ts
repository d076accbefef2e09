/**
 * The whole domain against a model of it (SPEC §8): random commands, the daemon's own ones among them, go to the real kernel and
 * to a world of plain maps (model.ts), while time passes, leases run out and the daemon starts again. Each command must come
 * to the same: accepted with the same events and result, or refused for the same reason with the same details; and the
 * queries must show what the maps hold. The seed is printed; MP_TEST_SEED=… repeats a run.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import type { Outcome } from "../../src/kernel/execute.ts";
import { matches } from "../../src/kernel/schema.ts";
import { type Kernel, kernel, uuid } from "../support/given.ts";
import { random as dice } from "../support/random.ts";
import { type Answer, type Fresh, iso, LIVE, LOCK, SESSION, TASK, type World, world } from "./model.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/model.test.ts: MP_TEST_SEED=${seed}`);

type Payload = Record<string, unknown>;

// ── What is sent ────────────────────────────────────────────────────────────────────────────────────────────────────

const NAMES = ["a", "A", "b", "é", "É", "c", "d", "e", "f", "g", "h", "i"];
const REPORTED = ["running", "idle", "waiting"];
const STAGES = ["plan", "build", "ship"];
const PATHS = ["/", "/a", "/a/b", "/a/b/c", "/ab", "/c", "/d", "/e"];
const DIGESTS = ["a", "b", "c", "d"].map((digit) => `sha256:${digit.repeat(64)}`);

/**
 * Makes payloads that go somewhere: things in each status alike, most of what belongs together of one workspace, epochs that
 * most often are the current ones; and now and then none of that.
 */
function maker(it: World, now: number, random: () => number) {
  const chance = (of: number) => random() < of;
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!;
  const maybe = <T>(of: number, value: () => T | undefined) => (chance(of) ? value() : undefined);
  const ttl_ms = () => maybe(0.7, () => pick([2_000, 200_000, 900_000, 86_400_000]));
  const time = () => iso(now + pick([-60_000, 10_000, 200_000, 3_600_000]));
  const reason = () => maybe(0.5, () => pick(["why", "because"]));
  const nobody = () => uuid(0xdead + Math.floor(random() * 2));

  /** One that fits, in each status alike; one that does not where none does, and now and then; rarely one that never was. */
  function one<T extends object>(
    all: Map<string, T>,
    fits: (it: T, id: string) => boolean = () => true,
    status: (it: T) => unknown = (each) => ("status" in each ? each.status : ""),
  ): string {
    const fitting = [...all].filter(([id, each]) => fits(each, id));
    const from = fitting.length > 0 && chance(0.93) ? fitting : [...all];
    if (from.length === 0 || chance(0.005)) return nobody();
    const wanted = pick([...new Set(from.map(([, each]) => status(each)))]);
    return pick(from.filter(([, each]) => status(each) === wanted))[0];
  }
  /** One that fits, if one does. */
  const any = <T extends object>(all: Map<string, T>, fits: (it: T) => boolean) =>
    [...all.values()].some(fits) ? one(all, fits) : undefined;
  const at = (home: string | undefined) => (each: { workspace_id: string }) =>
    home === undefined || each.workspace_id === home;
  const workspace = () => one(it.workspaces, ({ open }) => open);
  const project = (home?: string) => one(it.projects, (each) => at(home)(each) && !each.archived);
  const session = (home?: string) => one(it.sessions, (each) => at(home)(each) && LIVE.includes(each.status));
  const task = (home?: string) => one(it.tasks, at(home));
  const worktree = () => one(it.worktrees, undefined, ({ status, lock }) => `${status} ${lock.status}`);
  const homeOf = (of: Map<string, { workspace_id: string }>, id: string) => of.get(id)?.workspace_id;
  const near = (epoch: number | undefined, least: number) =>
    Math.max(least, (epoch ?? 0) + (chance(0.75) ? 0 : pick([-1, 1])));

  const claimed = () => {
    const wanted = chance(0.5);
    const fits = ({ holder }: { holder?: string | undefined }) => !wanted || holder !== undefined;
    const task_id = one(it.tasks, fits);
    return { task_id, epoch: near(it.tasks.get(task_id)?.epoch, 1) };
  };
  const holding = () => {
    const task_id = one(it.tasks, ({ holder }) => holder !== undefined);
    const { holder } = it.tasks.get(task_id) ?? {};
    return { task_id, session_id: chance(0.8) && holder ? holder : session() };
  };
  const stopped = () => ({ task_id: claimed().task_id });
  const speaking = () => {
    const lives = chance(0.6);
    const session_id = one(it.sessions, ({ status }) => !lives || LIVE.includes(status));
    return { session_id, epoch: near(it.sessions.get(session_id)?.epoch, 1) };
  };
  const locked = () => {
    const worktree_id = chance(0.5) ? worktree() : one(it.worktrees, ({ lock }) => lock.status === "held");
    const found = it.worktrees.get(worktree_id);
    return { worktree_id, found, epoch: near(found?.lock.epoch, 0) };
  };
  /** Whoever may have to do with the lock of a worktree. */
  const locker = (found: ReturnType<typeof locked>["found"]) =>
    (chance(0.2) ? found?.lock.last : undefined) ??
    one(it.sessions, (_, id) => found?.attached.get(id) === "write" && found.lock.last !== id);
  const writer = () => {
    const { worktree_id, found, epoch } = locked();
    return {
      worktree_id,
      session_id: chance(0.8) && found?.lock.last ? found.lock.last : locker(found),
      epoch,
    };
  };
  const agent = () => ({ name: pick(["coder", "ada"]) });
  const title = () => maybe(0.5, () => pick(NAMES));
  const branch = () => pick(["main", "topic"]);
  const lane = (lane_id?: string) => ({
    ...(lane_id !== undefined && { lane_id }),
    name: pick(NAMES),
    stage: maybe(0.5, () => pick(STAGES)),
    wip_limit: maybe(0.4, () => pick([1, 2, 5])),
  });
  /** Lanes of which no two have one name, most often. */
  const lanes = (from: readonly (string | undefined)[]) =>
    from.map((id, index) => ({ ...lane(id), ...(chance(0.97) && { name: `lane ${index}` }) }));
  const boardOf = (board_id: string) => it.boards.get(board_id);
  const beside = (board_id: string, lane_id: string) => {
    const board = boardOf(board_id);
    const inLane = board?.lanes.find((each) => each.lane_id === lane_id)?.nodes ?? [];
    const nodes = chance(0.9) ? inLane : [...(board?.nodes.keys() ?? [])];
    return {
      after: maybe(0.4, () => pick(nodes)),
      before: maybe(0.3, () => pick(nodes)),
    };
  };
  const onLane = (board_id: string) => pick(boardOf(board_id)?.lanes ?? [])?.lane_id ?? nobody();
  const linkTo = (home: string | undefined) => {
    const kind = pick(["workspace", "project", "session", "worktree", "task", "board"]);
    if (kind === "workspace" && home !== undefined) return { kind, id: home };
    return { kind, id: one(it.kinds[kind]! as Map<string, { workspace_id: string }>, at(home)) };
  };
  const links = (home: string | undefined) =>
    Array.from({ length: 1 + Math.floor(random() * 2) }, () => linkTo(home));

  const payloads: Record<string, () => Payload> = {
    "workspace.create": () => ({ name: pick(NAMES), root_path: maybe(0.3, () => pick(PATHS)) }),
    "workspace.open": () => ({ workspace_id: one(it.workspaces, undefined, ({ open }) => open) }),
    "workspace.close": () => ({ workspace_id: one(it.workspaces) }),
    "project.create": () => ({
      workspace_id: workspace(),
      name: pick(NAMES),
      repo_path: maybe(0.7, () => pick(PATHS)),
    }),
    "project.archive": () => ({ project_id: one(it.projects) }),
    "session.spawn"() {
      const workspace_id = workspace();
      const parent_session_id = maybe(0.7, () => any(it.sessions, at(workspace_id)));
      const project_id = maybe(0.4, () => project(workspace_id));
      return {
        workspace_id,
        project_id,
        parent_session_id,
        agent: agent(),
        title: title(),
        ttl_ms: ttl_ms(),
      };
    },
    "session.fork": () => ({
      from_session_id: one(it.sessions),
      at_seq: maybe(0.4, () => it.head() + pick([-1, 0, 0, 1])),
      mode: pick(["new_worktree", "same_branch", "planning_only"]),
      title: title(),
      agent: maybe(0.3, agent),
      ttl_ms: ttl_ms(),
    }),
    "session.report_status"() {
      const { session_id, epoch } = speaking();
      // Most often what may follow.
      const runs = it.sessions.get(session_id)?.status === "running";
      const status = pick(chance(0.3) ? REPORTED : runs ? REPORTED.slice(1) : REPORTED.slice(0, 1));
      const waiting_for = status === "waiting" ? pick(["approval", "user_input", "policy"]) : undefined;
      return { session_id, status, waiting_for, epoch: maybe(0.4, () => epoch) };
    },
    "session.resume": () => ({ session_id: one(it.sessions), ttl_ms: ttl_ms() }),
    "session.end"() {
      const { session_id, epoch } = speaking();
      return {
        session_id,
        outcome: pick(["completed", "failed", "cancelled"]),
        epoch: maybe(0.4, () => epoch),
      };
    },
    "session.heartbeat": speaking,
    "session.lose": speaking,
    "worktree.create": () => ({ project_id: project(), path: pick(PATHS), branch: branch() }),
    "worktree.register": () => ({
      project_id: project(),
      path: pick(PATHS),
      branch: maybe(0.5, branch),
    }),
    "worktree.remove": () => ({
      worktree_id: one(
        it.worktrees,
        ({ attached }) => chance(0.3) || attached.size === 0,
        ({ status, registered }) => `${status} ${registered}`,
      ),
    }),
    "worktree.reconcile": () => ({ worktree_id: worktree() }),
    "worktree.attach"() {
      const worktree_id = one(it.worktrees, ({ status }) => status === "present");
      const session_id = session(homeOf(it.worktrees, worktree_id));
      return { worktree_id, session_id, mode: pick(["read", "write", "write", "write"]) };
    },
    "worktree.detach"() {
      const { worktree_id, found } = locked();
      return { worktree_id, session_id: one(it.sessions, (_, id) => found?.attached.has(id) ?? false) };
    },
    "worktree.lock_writer"() {
      const { worktree_id, found } = locked();
      return { worktree_id, session_id: locker(found), ttl_ms: ttl_ms() };
    },
    "worktree.renew_writer": writer,
    "worktree.release_writer": writer,
    "worktree.steal_writer"() {
      const { worktree_id, found, epoch } = locked();
      return { worktree_id, session_id: locker(found), expected_epoch: epoch, reason: "it hangs" };
    },
    "worktree.expire_writer"() {
      const { worktree_id, epoch } = locked();
      return { worktree_id, epoch };
    },
    "worktree.leave": writerOnly(writer),
    "worktree.take_up": writerOnly(writer),
    "worktree.record_created": () => ({ worktree_id: worktree(), branch: maybe(0.8, branch) }),
    "worktree.record_creation_failed": () => ({ worktree_id: worktree(), message: "no space" }),
    "worktree.record_removed": () => ({ worktree_id: worktree() }),
    "worktree.record_removal_failed": () => ({ worktree_id: worktree(), message: "changes" }),
    "worktree.record_reconciled": () => ({
      worktree_id: worktree(),
      presence: pick(["present", "present", "missing"]),
      branch: maybe(0.8, branch),
    }),
    "task.create"() {
      const project_id = project();
      const home = homeOf(it.projects, project_id);
      return {
        project_id,
        title: pick(NAMES),
        parent_task_id: maybe(0.3, () => any(it.tasks, (each) => each.project_id === project_id)),
        priority: maybe(0.6, () => pick([0, 1, 2, 3, 4])),
        depends_on: maybe(0.4, () =>
          Array.from({ length: it.tasks.size && pick([0, 1, 2]) }, () => task(home)),
        ),
        stage: maybe(0.5, () => pick(STAGES)),
        max_attempts: maybe(0.6, () => pick([1, 2])),
        not_before: maybe(0.35, time),
        deadline_at: maybe(0.3, time),
      };
    },
    "task.claim"() {
      const task_id = one(
        it.tasks,
        (each) => chance(0.2) || each.holder !== undefined || (each.status === "queued" && chance(0.9)),
      );
      const session_id =
        (chance(0.1) ? it.tasks.get(task_id)?.holder : undefined) ?? session(homeOf(it.tasks, task_id));
      if (chance(0.6)) return { task_id, session_id, ttl_ms: ttl_ms() };
      const home = homeOf(it.sessions, session_id);
      const filter = {
        project_id: maybe(0.3, () => project(home)),
        stage: maybe(0.3, () => pick(STAGES)),
        parent_task_id: maybe(0.2, () => task(home)),
      };
      return { filter, session_id, ttl_ms: ttl_ms() };
    },
    "task.renew": claimed,
    "task.release": () => ({ ...claimed(), reason: reason() }),
    "task.complete": () => ({ ...claimed(), result: maybe(0.5, () => ({ b: [1], a: "x" })) }),
    "task.fail": () => ({ ...claimed(), failure: { class: pick(["tests", "merge"]), message: "it did" } }),
    "task.block"() {
      const { task_id, epoch } = claimed();
      return {
        ...{ task_id, on: pick(["policy", "approval", "user_input"]) },
        ...{ reason: reason(), epoch: maybe(0.3, () => epoch) },
      };
    },
    "task.unblock": stopped,
    "task.pause": () => ({ ...stopped(), reason: reason() }),
    "task.resume": stopped,
    "task.retry": stopped,
    "task.cancel": () => ({ ...stopped(), reason: reason() }),
    "task.add_dependency"() {
      const task_id = task();
      return { task_id, depends_on_task_id: task(homeOf(it.tasks, task_id)) };
    },
    "task.remove_dependency"() {
      const task_id = one(it.tasks, ({ needs }) => needs.size > 0);
      const needs = it.tasks.get(task_id)?.needs ?? new Set();
      return { task_id, depends_on_task_id: one(it.tasks, (_, id) => needs.has(id)) };
    },
    "task.advance_stage": () => ({ task_id: task(), stage: pick(STAGES) }),
    "task.expire_claim": claimed,
    "task.leave": holding,
    "task.take_up": holding,
    "board.create": () => ({
      workspace_id: workspace(),
      name: pick(NAMES),
      lanes: lanes([undefined, undefined, undefined]),
    }),
    "board.add_node"() {
      const board_id = one(it.boards);
      const lane_id = onLane(board_id);
      const kind = pick(["task", "task", "session", "worktree", "artifact", "gate", "comment"]);
      const where = { board_id, lane_id, kind, ...beside(board_id, lane_id) };
      if (kind === "gate" || kind === "comment") return { ...where, text: "look" };
      const all = it.kinds[kind]! as Map<string, { workspace_id: string }>;
      return { ...where, ref_id: one(all, at(homeOf(it.boards, board_id))) };
    },
    "board.move_node"() {
      const board_id = one(it.boards, ({ nodes }) => nodes.size > 0);
      const lane_id = onLane(board_id);
      const node_id = chance(0.98) ? pick([...(boardOf(board_id)?.nodes.keys() ?? [])]) : undefined;
      return { board_id, node_id: node_id ?? nobody(), lane_id, ...beside(board_id, lane_id) };
    },
    "board.remove_node"() {
      const board_id = one(it.boards, ({ nodes }) => nodes.size > 0);
      return { board_id, node_id: pick([...(boardOf(board_id)?.nodes.keys() ?? [])]) ?? nobody() };
    },
    "board.update_lanes"() {
      const board_id = one(it.boards);
      const now = boardOf(board_id)?.lanes ?? [];
      if (chance(0.2)) return { board_id, lanes: now.map(({ nodes: _, ...each }) => ({ ...each })) };
      const kept = now
        .filter(({ nodes }) => chance(nodes.length > 0 ? 0.9 : 0.5))
        .map((each) => each.lane_id);
      const ids = [...kept, ...(chance(0.5) ? [undefined] : [])];
      return { board_id, lanes: lanes(chance(0.5) ? ids : ids.toReversed()) };
    },
    "artifact.register"() {
      const digest = pick(DIGESTS);
      return {
        ...{ digest, size: DIGESTS.indexOf(digest) + (chance(0.95) ? 1 : 2), media_type: "text/plain" },
        name: maybe(0.5, () => pick(NAMES)),
        retention: maybe(0.4, () => ({ expire_after_ms: pick([1_000, 100_000, 86_400_000]) })),
        links: links(workspace()),
      };
    },
    "artifact.link"() {
      const artifact_id = one(it.artifacts);
      return { artifact_id, links: links(homeOf(it.artifacts, artifact_id)) };
    },
    "artifact.expire": () => ({ artifact_id: one(it.artifacts) }),
    "artifact.retention_over": () => ({ artifact_id: one(it.artifacts), epoch: 1 }),
  };
  return {
    random,
    pick,
    chance,
    /** A payload of a command, without what is undefined. */
    payload: (type: string) => JSON.parse(JSON.stringify(payloads[type]!())) as Payload,
  };
}
const writerOnly = (writer: () => { worktree_id: string; session_id: string }) => () => {
  const { worktree_id, session_id } = writer();
  return { worktree_id, session_id };
};

// ── Both at once ────────────────────────────────────────────────────────────────────────────────────────────────────

const TIME = "(time passes)";
const START = "(the daemon starts again)";
const BYTES = "(bytes come and go)";
interface Step {
  readonly type: string;
  /** Another number makes another payload. */
  readonly with: number;
}

/** Which pairs of a status and a command were met, with what came of them; and which way things went. */
interface Met {
  readonly pairs: Map<string, Map<string, number>>;
  readonly ways: Map<string, number>;
  readonly reasons: Map<string, number>;
  /** Commands that would have been right but for a stale epoch. */
  readonly fenced: Map<string, number>;
  commands: number;
}

const TICK = 1_000;

/** What the kernel told, in the words of the model: events by stream, in the order of each. */
function heard(it: Kernel, outcome: Outcome, before: number): Answer {
  if ("problem" in outcome) {
    const { code, reason, details = {} } = outcome.problem;
    return { refused: reason ?? code, details };
  }
  // A rank is the kernel's own affair: what the model knows is the order of a lane.
  const { rank: _, ...result } = JSON.parse(outcome.receipt).result as Row;
  return {
    events: byStream(it.events(before).map(({ stream, event_type }) => [stream, event_type] as const)),
    result,
  };
}
const byStream = (events: readonly (readonly [string, string])[]) =>
  events.toSorted(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0));

/** The ids that the kernel has made up for a command. */
function made(it: Kernel, outcome: Outcome, before: number): Fresh {
  if ("problem" in outcome) return { id: "", node_id: "", lanes: [] };
  const payload = (it.events(before)[0]?.payload ?? {}) as {
    node_id?: string;
    lanes?: { lane_id: string }[];
  };
  return {
    id: JSON.parse(outcome.receipt).subject.id,
    node_id: payload.node_id ?? "",
    lanes: (payload.lanes ?? []).map(({ lane_id }) => lane_id),
  };
}

/** Where everything stands that SPEC §8 has a table for. */
function standing(it: World) {
  const all = new Map<string, string>();
  for (const [id, { status, epoch }] of it.sessions) all.set(`session ${id}`, `${status} ${epoch}`);
  for (const [id, { status, epoch }] of it.tasks) all.set(`task ${id}`, `${status} ${epoch}`);
  for (const [id, { lock }] of it.worktrees)
    all.set(`lock ${id}`, `${lock.status} ${lock.epoch} ${lock.last}`);
  return all;
}
const count = (of: Map<string, number>, what: string) => of.set(what, (of.get(what) ?? 0) + 1);

/** What a command is called in the tables: with what makes another transition of it. */
function called(type: string, { status, outcome, on }: Payload): string {
  return [type, status ?? outcome ?? on].filter(Boolean).join(" ");
}

function play(first: number, steps: readonly Step[], met: Met): void {
  const it = kernel();
  const model = world();
  const trail: string[] = [];
  const agree = (what: string, real: unknown, expected: unknown) => {
    if (Bun.deepEquals(real, expected)) return;
    const text = (value: unknown) => JSON.stringify(value);
    throw new Error(
      `${what}\n  kernel: ${text(real)}\n  model:  ${text(expected)}\nafter\n  ${trail.slice(-25).join("\n  ")}`,
    );
  };
  const noteWays = (before: Map<string, string>) => {
    for (const [what, to] of standing(model)) {
      const kind = what.split(" ")[0]!;
      const was = before.get(what);
      if (was === undefined || was === to) continue;
      const way = `${kind}: ${was.split(" ")[0]} → ${to.split(" ")[0]}`;
      // A task whose claim is taken up under a new epoch stays where it is.
      if (ways.includes(way) || was.split(" ")[0] !== to.split(" ")[0]) count(met.ways, way);
    }
  };

  const notePair = (
    type: string,
    payload: Payload,
    subject: string[],
    came: Answer,
    before: Map<string, string>,
  ) => {
    for (const what of subject) {
      const [status, current, holder] = before.get(what)?.split(" ") ?? [];
      if (status === undefined) continue;
      // Told apart by nothing but its epoch: the right is there, and it is the holder who speaks.
      const itself = holder === undefined || [undefined, holder].includes(payload.session_id as string);
      const epoch = payload.epoch ?? payload.expected_epoch;
      const right = [...LIVE, "held"].includes(status) && (itself || type === "worktree.steal_writer");
      if (right && epoch !== undefined && String(epoch) !== current) count(met.fenced, type);
      const pair = `${what.split(" ")[0]}: ${status} × ${called(type, payload)}`;
      const known = met.pairs.get(pair) ?? new Map<string, number>();
      met.pairs.set(pair, known);
      count(known, "refused" in came ? "refused" : came.events.length > 0 ? "changed" : "unchanged");
    }
  };

  /** A command to both. */
  function send(type: string, payload: Payload): void {
    const { spec } = it.registry.commands.get(type) ?? it.registry.internal.get(type)!;
    if (!matches(spec.payload, payload)) return;
    const [head, before] = [it.head(), standing(model)];
    const at = it.clock.now() + TICK;
    const outcome = it.run(type, payload);
    // The command asked for the time once, so the model knows what it was.
    expect(it.clock.now()).toBe(at + TICK);
    const [real, fresh] = [heard(it, outcome, head), made(it, outcome, head)];
    trail.push(`${type} ${JSON.stringify(payload)}${"refused" in real ? ` → ${real.refused}` : ""}`);
    const subject = named(type, payload, real);
    const told = model.run(type, payload, at, fresh);
    const other = "or" in told ? told.or : undefined;
    const expected = other && "refused" in real && real.refused === other.refused ? other : told;
    if ("refused" in expected && expected.refused === "task.dependency_cycle" && "refused" in real) {
      agree(`${type} is refused otherwise`, real.refused, expected.refused);
      const { path } = real.details as { path: string[] };
      const { task_id, depends_on_task_id } = payload as Record<string, string>;
      const [first, second] = path;
      // It begins with what was asked for; each of the others waits for the next, and the last is the first.
      agree("the cycle", [first, second, path.at(-1)], [task_id, depends_on_task_id, task_id]);
      for (const [index, id] of path.entries())
        if (index > 0 && index < path.length - 1)
          agree("a step of the cycle", model.tasks.get(id)!.needs.has(path[index + 1]!), true);
    } else if ("refused" in expected)
      agree(`${type} comes to something else`, settle(real), settle(expected));
    else agree(`${type} comes to something else`, real, { ...expected, events: byStream(expected.events) });
    agree("the position of the log", it.head(), model.head());
    met.commands += 1;
    if ("refused" in expected) count(met.reasons, expected.refused);
    noteWays(before);
    notePair(type, payload, subject, expected, before);
  }

  for (const [index, step] of [...firstSteps(first), ...steps].entries()) {
    const to = maker(model, it.clock.now(), dice(step.with));
    if (step.type === TIME) {
      const ms = Math.floor(to.random() ** 4 * 800_000);
      it.clock.forward(ms);
      trail.push(`${TIME}: ${ms} ms`);
      const [head, before] = [it.head(), standing(model)];
      const at = it.clock.now() + TICK;
      it.expire();
      const events = model.due(at).flatMap(({ type, payload }, nth) => {
        const answer = model.run(type, payload, at + (nth + 1) * TICK);
        notePair(type, payload, named(type, payload, answer), answer, before);
        return "events" in answer ? answer.events : [];
      });
      const real = it.events(head).map(({ stream, event_type }) => [stream, event_type]);
      agree("what time does", real, events);
      noteWays(before);
    } else if (step.type === START) {
      trail.push(START);
      it.forget();
      const at = it.clock.now() + TICK;
      it.grace();
      model.grace(at);
    } else if (step.type === BYTES) bytes(it, model, to.pick(DIGESTS));
    else send(step.type, to.payload(step.type));
    expect(it.bugs).toEqual([]);
    if (index % 100 === 99) compare(it, model, agree);
  }
  compare(it, model, agree);
}

/** What of a refusal is compared: the order of what may follow says nothing. */
function settle(answer: Answer): unknown {
  if (!("refused" in answer)) return answer;
  const { refused } = answer;
  const { allowed, ...details } = answer.details as { allowed?: string[] };
  return { refused, details, allowed: allowed?.toSorted() };
}

/** Of what the tables are about a command is. */
function named(type: string, payload: Payload, real: Answer): string[] {
  const [kind] = type.split(".");
  if (type === "session.fork") return [`session ${payload.from_session_id}`];
  if (kind === "session") return [`session ${payload.session_id}`];
  if (kind === "worktree") return [`lock ${payload.worktree_id}`];
  const chosen = "result" in real && "task_id" in real.result ? real.result.task_id : undefined;
  return kind === "task" ? [`task ${payload.task_id ?? chosen}`] : [];
}

function bytes(it: Kernel, model: World, digest: string): void {
  const size = DIGESTS.indexOf(digest) + 1;
  const needed = [...model.artifacts.values()].some((each) => each.digest === digest && !each.expired_at);
  if (!model.blobs.has(digest)) {
    it.store(digest, size);
    model.blobs.set(digest, size);
  } else if (!needed) {
    it.db.query("DELETE FROM blobs WHERE digest = ?").run(digest);
    model.blobs.delete(digest);
  }
}

// ── What the queries show ───────────────────────────────────────────────────────────────────────────────────────────

type Agree = (what: string, real: unknown, expected: unknown) => void;
type Row = Record<string, unknown>;

function compare(it: Kernel, model: World, agree: Agree): void {
  const now = it.clock.now();
  const at = iso(now);
  const params = (given: Payload) => JSON.parse(JSON.stringify(given)) as Payload;
  /** All pages of a query. */
  function pages(type: string, given: Payload = {}, items = "items"): Row[] {
    const found: Row[] = [];
    for (let cursor: unknown; cursor !== null; ) {
      const page = it.query<Row>(
        type,
        params({ ...given, limit: 17, ...(cursor !== undefined && { cursor }) }),
        at,
      );
      found.push(...(page[items] as Row[]));
      cursor = page.next;
    }
    return found;
  }
  /** Of a row what is expected of it, and nothing else. */
  const like = (row: Row | undefined, expected: Row): Row | undefined =>
    row && Object.fromEntries(Object.keys(expected).map((column) => [column, row[column]]));
  const rows = (what: string, real: readonly Row[], expected: readonly Row[]) => {
    agree(`how many: ${what}`, real.length, expected.length);
    for (const [index, row] of expected.entries()) agree(what, like(real[index], row), row);
  };
  const ids = (type: string, given: Payload, id: string) => pages(type, given).map((row) => row[id]);
  const asIs = (kind: string, id: string) => ({ [`${kind}_id`]: id, ...model.streams.get(`${kind}/${id}`) });
  const known = <T>(all: Map<string, T>) => [...all].sort(([one], [other]) => (one < other ? -1 : 1));
  const one = (type: string, given: Payload) => it.query<Row>(type, given, at);
  const ends = (stream: string) => {
    const lease = model.leases.get(stream);
    return lease ? iso(lease.ends) : null;
  };

  rows(
    "workspace.list",
    pages("workspace.list"),
    known(model.workspaces).map(([id, { name, root_path = null, open }]) => ({
      ...asIs("workspace", id),
      ...{ name, root_path, status: open ? "open" : "closed" },
    })),
  );
  rows(
    "project.list",
    pages("project.list"),
    known(model.projects).map(([id, { workspace_id, name, repo_path = null, archived }]) => ({
      ...asIs("project", id),
      ...{ workspace_id, name, repo_path, status: archived ? "archived" : "active" },
    })),
  );

  const session = ([id, each]: [string, ReturnType<World["sessions"]["get"]> & object]) => ({
    ...asIs("session", id),
    ...{ workspace_id: each.workspace_id, project_id: each.project_id ?? null, agent_name: each.agent },
    ...{ parent_session_id: each.parent ?? null, forked_from_session_id: each.forked_from ?? null },
    ...{ title: each.title ?? null, status: each.status, waiting_for: each.waiting_for ?? null },
    ...{ epoch: each.epoch, ttl_ms: each.ttl },
  });
  rows("session.list", pages("session.list"), known(model.sessions).map(session));
  agree(
    "those that are live",
    ids("session.list", { live: true }, "session_id"),
    known(model.sessions).flatMap(([id, { status }]) => (LIVE.includes(status) ? [id] : [])),
  );
  for (const status of Object.keys(SESSION))
    agree(
      `sessions that are ${status}`,
      ids("session.list", { status }, "session_id"),
      known(model.sessions).flatMap(([id, each]) => (each.status === status ? [id] : [])),
    );
  for (const [id] of known(model.sessions)) {
    const shown = one("session.get", { session_id: id });
    agree("session.get", like(shown, { expires_at: 0, attachments: 0, claims: 0 }), {
      expires_at: ends(`session/${id}`),
      attachments: known(model.worktrees).flatMap(([worktree_id, { attached }]) =>
        attached.has(id) ? [{ worktree_id, mode: attached.get(id) }] : [],
      ),
      claims: known(model.tasks).flatMap(([task_id, { holder, epoch }]) =>
        holder === id ? [{ task_id, epoch }] : [],
      ),
    });
  }
  const tree = (given: Payload) =>
    pages("session.tree", given).map(({ session_id, depth, children, worst_status: worst }) => ({
      ...{ session_id, depth, children, worst },
    }));
  const tops = [...model.sessions].filter(([, { parent }]) => parent === undefined).map(([id]) => id);
  agree("session.tree", tree({}), model.tree(tops));
  for (const [root] of known(model.sessions).slice(0, 5))
    agree("session.tree of one", tree({ root }), model.tree([root]));

  rows(
    "worktree.list",
    pages("worktree.list"),
    known(model.worktrees).map(([id, each]) => ({
      ...asIs("worktree", id),
      ...{ workspace_id: each.workspace_id, project_id: each.project_id, path: each.path },
      ...{ branch: each.branch, status: each.status, failure: each.failure },
      origin: each.registered ? "registered" : "created",
      writer_status: each.lock.status,
      writer_session_id: each.lock.status === "held" ? each.lock.last : null,
      writer_epoch: each.lock.epoch,
    })),
  );
  const writerOf = (id: string) => {
    const { lock } = model.worktrees.get(id)!;
    return lock.status === "held"
      ? { session_id: lock.last, epoch: lock.epoch, expires_at: ends(`worktree/${id}`) }
      : null;
  };
  for (const [id, { attached }] of known(model.worktrees)) {
    const { attachments, writer } = one("worktree.get", { worktree_id: id });
    agree("who writes", writer, writerOf(id));
    agree(
      "who is attached",
      (attachments as Row[]).map(({ session_id, mode }) => [session_id, mode]),
      known(attached),
    );
  }
  for (const path of [...PATHS, "/a/b/c/d", "/abc"]) {
    const [nearest] = known(model.worktrees)
      .filter(
        ([, each]) => model.placed(each) && `${path}/`.startsWith(each.path === "/" ? "/" : `${each.path}/`),
      )
      .sort(([, one], [, other]) => other.path.length - one.path.length);
    const lock = nearest?.[1].lock;
    const writer = nearest ? writerOf(nearest[0]) : null;
    const fine = {
      worktree_id: nearest?.[0] ?? null,
      path: nearest?.[1].path ?? null,
      allowed: true,
      writer,
    };
    const heldBy = writer && {
      worktree_id: nearest![0],
      ...{ holder: writer.session_id, epoch: writer.epoch, expires_at: writer.expires_at },
      retry_after_ms: Math.max(0, model.leases.get(`worktree/${nearest![0]}`)!.ends - now),
    };
    const check = (given: Payload) => {
      const found = it.ask("worktree.check", { path, ...given }, at);
      return "problem" in found
        ? { refused: found.problem.reason, details: found.problem.details }
        : like(found.answer as Row, fine);
    };
    agree(
      "check without an epoch",
      check({}),
      heldBy ? { refused: "worktree.writer_held", details: heldBy } : fine,
    );
    for (const epoch of [lock?.epoch ?? 0, (lock?.epoch ?? 0) + 1]) {
      const details = { epoch, current: lock?.epoch ?? 0 };
      const right = writer?.epoch === epoch;
      agree(
        "check with an epoch",
        check({ epoch }),
        right ? fine : { refused: "worktree.stale_epoch", details },
      );
    }
    if (writer) agree("check as the holder", check({ session_id: writer.session_id }), fine);
  }

  rows(
    "task.list",
    pages("task.list"),
    known(model.tasks).map(([id, each]) => ({
      ...asIs("task", id),
      ...{
        workspace_id: each.workspace_id,
        project_id: each.project_id,
        parent_task_id: each.parent ?? null,
      },
      ...{ title: each.title, priority: each.priority, stage: each.stage ?? null, status: each.status },
      ...{ attempt: each.attempts.length, max_attempts: each.max_attempts, unmet: model.unmet(each).length },
      ...{ not_before: each.not_before ?? null, deadline_at: each.deadline_at ?? null },
      ...{ blocked_reason: each.why ?? null, failure_class: each.failure_class },
      ...{ claim_session_id: each.holder ?? null, claim_epoch: each.epoch },
    })),
  );
  for (const status of Object.keys(TASK))
    agree(
      `tasks that are ${status}`,
      ids("task.list", { status }, "task_id"),
      known(model.tasks).flatMap(([id, each]) => (each.status === status ? [id] : [])),
    );
  const some = (all: Iterable<string>) =>
    [...all].sort().map((task_id) => {
      const { title, status } = model.tasks.get(task_id)!;
      return { task_id, title, status };
    });
  const over = ["succeeded", "failed", "cancelled"];
  agree(
    "tasks that are overdue",
    ids("task.list", { overdue: true }, "task_id"),
    known(model.tasks)
      .filter(([, { deadline_at, status }]) => deadline_at && deadline_at < at && !over.includes(status))
      .sort(([, one], [, other]) => (one.deadline_at! < other.deadline_at! ? -1 : 1))
      .map(([id]) => id),
  );
  for (const [id, each] of known(model.tasks)) {
    const shown = one("task.get", { task_id: id });
    const unmet = model.unmet(each).map((task_id) => ({ because: "dependency", task_id }));
    agree(
      "task.get",
      {
        ...like(shown, { dependencies: 0, dependents: 0, claim: 0, result: 0 }),
        attempts: (shown.attempts as Row[]).map((attempt, nth) =>
          like(attempt, { ...each.attempts[nth] } as Row),
        ),
        why: (shown.why as Row[]).map(({ detail: _, ...reason }) => reason),
      },
      {
        dependencies: some(each.needs),
        dependents: some([...model.tasks].flatMap(([other, { needs }]) => (needs.has(id) ? [other] : []))),
        claim:
          each.holder === undefined
            ? null
            : {
                ...{ session_id: each.holder, epoch: each.epoch, attempt: each.attempts.length },
                expires_at: ends(`task/${id}`),
              },
        result: each.result,
        attempts: each.attempts.map((attempt) => ({ ...attempt })),
        why: [
          ...(each.status === "queued" ? [] : [{ because: "status" }]),
          ...unmet,
          ...(model.since(id) > at ? [{ because: "not_before" }] : []),
          ...(model.projects.get(each.project_id)!.archived
            ? [{ because: "project_archived" }]
            : model.isOpen(each)
              ? []
              : [{ because: "workspace_closed" }]),
        ],
      },
    );
  }
  const filters: Payload[] = [
    ...[{}, ...STAGES.map((stage) => ({ stage }))],
    ...[...model.workspaces.keys()].map((workspace_id) => ({ workspace_id })),
    ...[...model.projects.keys()].map((project_id) => ({ project_id, stage: STAGES[0] })),
    ...[...model.tasks.keys()].slice(0, 5).map((parent_task_id) => ({ parent_task_id })),
  ];
  for (const filter of filters)
    agree(
      `task.ready ${JSON.stringify(filter)}`,
      ids("task.ready", filter, "task_id"),
      model
        .queue(filter)
        .filter((each) => each.since <= at)
        .map((each) => each.id),
    );

  rows(
    "board.list",
    pages("board.list"),
    known(model.boards).map(([id, { workspace_id, name }]) => ({ ...asIs("board", id), workspace_id, name })),
  );
  for (const [board_id, board] of known(model.boards)) {
    const lanes = board.lanes.map(({ nodes, stage = null, wip_limit = null, ...lane }, position) => ({
      ...{ ...lane, stage, wip_limit, position, node_count: nodes.length },
      over_limit: wip_limit !== null && nodes.length > wip_limit,
    }));
    const found = one("board.snapshot", { board_id });
    agree("the lanes", found.lanes, lanes);
    agree("the lanes of board.get", one("board.get", { board_id }).lanes, lanes);
    const nodes = pages("board.snapshot", { board_id }, "nodes") as (Row & {
      node_id: string;
      rank: string;
    })[];
    for (const { lane_id, nodes: order } of board.lanes)
      agree(
        "the order of a lane",
        nodes
          .filter((node) => node.lane_id === lane_id)
          .sort((one, other) => (one.rank < other.rank ? -1 : 1))
          .map((node) => node.node_id),
        order,
      );
    agree(
      "the nodes",
      nodes.map((node) => like(node, { node_id: 0, kind: 0, ref_id: 0, text: 0, title: 0, status: 0 })),
      known(board.nodes).map(([node_id, { kind, ref_id = null, text = null }]) => ({
        ...{ node_id, kind, ref_id, text },
        ...(ref_id === null ? { title: null, status: null } : model.shownAs(kind, ref_id)),
      })),
    );
    const edges = pages("board.snapshot", { board_id }, "edges").map(
      (edge) => `${edge.from_node_id} ${edge.to_node_id} ${edge.kind} ${edge.relation}`,
    );
    agree("the edges", edges.sort(), edgesOf(model, board_id).sort());
  }

  rows(
    "artifact.list",
    pages("artifact.list"),
    known(model.artifacts).map(([id, { workspace_id, digest, name = null, expired_at = null }]) => ({
      ...asIs("artifact", id),
      ...{ workspace_id, digest, name, expired_at, status: expired_at === null ? "available" : "expired" },
    })),
  );
  for (const [artifact_id, { links, digest }] of known(model.artifacts)) {
    const shown = one("artifact.get", { artifact_id });
    agree("the expiry of an artifact", shown.expires_at, ends(`artifact/${artifact_id}`));
    agree("whether it is stored", shown.stored, model.blobs.has(digest));
    agree(
      "the links",
      (shown.links as Row[]).map(({ kind, id }) => `${kind} ${id}`).sort(),
      links.map(({ kind, id }) => `${kind} ${id}`).sort(),
    );
  }
}

/** Every edge that a board must show. */
function edgesOf(model: World, board_id: string): string[] {
  const { nodes } = model.boards.get(board_id)!;
  const nodeOf = new Map([...nodes].map(([node_id, { ref_id }]) => [ref_id, node_id]));
  return [...nodes].flatMap(([from, { kind, ref_id = "" }]) => {
    const edge = (to: string | undefined, what: string, relation: string) => {
      const node = to === undefined ? undefined : nodeOf.get(to);
      return node === undefined ? [] : [`${from} ${node} ${what} ${relation}`];
    };
    if (kind === "session") {
      const { parent, forked_from } = model.sessions.get(ref_id)!;
      return [
        ...edge(parent, "lineage", "parent"),
        ...edge(forked_from, "lineage", "fork"),
        ...[...model.worktrees].flatMap(([id, { attached }]) =>
          attached.has(ref_id) ? edge(id, "attachment", attached.get(ref_id)!) : [],
        ),
      ];
    }
    if (kind === "task")
      return [...model.tasks.get(ref_id)!.needs].flatMap((id) => edge(id, "dependency", "depends_on"));
    if (kind === "artifact")
      return model.artifacts.get(ref_id)!.links.flatMap(({ id }) => edge(id, "provenance", "linked"));
    return [];
  });
}

// ── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A world in which something can happen. */
function firstSteps(from: number): Step[] {
  const several = (type: string, times: number) => Array.from({ length: times }, () => type);
  return [
    ...[...several("workspace.create", 2), ...several(BYTES, 2), ...several("project.create", 4)],
    ...[...several("session.spawn", 8), ...several("worktree.register", 3), ...several("worktree.create", 3)],
    ...[...several("task.create", 10), ...several("board.create", 2), "artifact.register"],
  ].map((type, index) => ({ type, with: from + index }));
}

/** How often each command comes: what makes something or closes it less often than what happens in between. */
function weight(type: string): number {
  if (/^workspace\.close$|^project\.archive$/.test(type)) return 1;
  if (/^workspace\.create$|^project\.|\.(leave|expire|retention_over)$/.test(type)) return 2;
  if (/^worktree\.(create|register|remove|record_)|^(session|board)\.(fork|create)$|^artifact\./.test(type))
    return 6;
  if (/^worktree\.(attach|lock|renew|steal)|^task\.(claim|block)$|^session\.report_status$/.test(type))
    return 30;
  return 10;
}
const arbitrary = fc.array(
  fc.record({
    type: fc.oneof(
      ...world().types.map((type) => ({ weight: weight(type), arbitrary: fc.constant(type) })),
      { weight: 20, arbitrary: fc.constant(TIME) },
      { weight: 4, arbitrary: fc.constant(START) },
      { weight: 8, arbitrary: fc.constant(BYTES) },
    ),
    with: fc.noShrink(fc.nat()),
  }),
  { minLength: 300, maxLength: 600, size: "max" },
);

/** What SPEC's tables allow: which command changes a thing in which statuses. In all others it changes nothing. */
const STOPPED = ["paused", "awaiting_user_input", "blocked_by_policy", "blocked_by_approval"];
const CHANGES: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  session: {
    "session.report_status running": ["starting", "idle", "waiting"],
    "session.report_status idle": ["running"],
    // Also for something else than it waited for.
    "session.report_status waiting": ["running", "waiting"],
    "session.end completed": ["running", "idle"],
    "session.end failed": ["starting", "running", "waiting", "lost"],
    "session.end cancelled": ["starting", "running", "idle", "waiting", "lost"],
    "session.resume": ["lost"],
    "session.lose": LIVE,
    "session.heartbeat": [],
    // What is made is another session.
    "session.fork": Object.keys(SESSION),
  },
  lock: {
    "worktree.lock_writer": ["free", "expired"],
    "worktree.renew_writer": [],
    "worktree.release_writer": ["held", "expired"],
    "worktree.steal_writer": ["free", "held", "expired"],
    "worktree.expire_writer": ["held"],
    "worktree.take_up": ["held"],
  },
  task: {
    "task.claim": ["queued"],
    "task.renew": [],
    "task.release": ["running", ...STOPPED],
    "task.complete": ["running"],
    "task.fail": ["running", ...STOPPED],
    "task.block policy": ["queued", "running", "blocked_by_policy"],
    "task.block approval": ["queued", "running", "blocked_by_approval"],
    "task.block user_input": ["running", "awaiting_user_input"],
    "task.unblock": STOPPED.slice(1),
    "task.pause": ["queued", "running", "paused"],
    "task.resume": ["paused"],
    "task.retry": ["failed"],
    "task.cancel": ["queued", "running", ...STOPPED],
    "task.expire_claim": ["running", ...STOPPED],
    "task.take_up": ["running", ...STOPPED],
  },
};
const TABLES = { session: SESSION, lock: LOCK, task: TASK };
const pairs = Object.entries(TABLES).flatMap(([kind, table]) =>
  Object.entries(CHANGES[kind]!).flatMap(([command, from]) =>
    Object.keys(table).map((status) => ({
      pair: `${kind}: ${status} × ${command}`,
      changes: from.includes(status),
    })),
  ),
);
const ways = Object.entries(TABLES).flatMap(([kind, table]) =>
  Object.entries(table).flatMap(([from, followers]) => followers.map((to) => `${kind}: ${from} → ${to}`)),
);

const met: Met = { pairs: new Map(), ways: new Map(), reasons: new Map(), fenced: new Map(), commands: 0 };
/** Each must be met where it would be right but for its stale epoch. */
const FENCED = [
  ...["session.heartbeat", "session.report_status", "session.end", "session.lose"],
  ...["worktree.renew_writer", "worktree.release_writer", "worktree.steal_writer", "worktree.expire_writer"],
  ...["task.renew", "task.release", "task.complete", "task.fail", "task.block", "task.expire_claim"],
];
/** What the tables ask for and no run has met yet. */
const missing = () => [
  ...pairs
    .filter(({ pair, changes }) =>
      changes ? !met.pairs.get(pair)?.has("changed") : met.pairs.get(pair) === undefined,
    )
    .map(({ pair }) => pair),
  ...ways.filter((way) => !met.ways.has(way)),
  ...FENCED.filter((type) => !met.fenced.has(type)),
];

test("whatever is sent, the kernel and the model come to the same", () => {
  const property = fc.property(fc.noBias(fc.noShrink(fc.nat())), fc.noBias(arbitrary), (first, steps) =>
    play(first, steps, met),
  );
  const numRuns = 5;
  // All in all the runs meet whatever the tables have.
  for (let round = 0; round < 150 && (round === 0 || missing().length > 0); round++)
    fc.assert(property, {
      ...{ seed: (seed + round * 1_000_003) | 0, numRuns, includeErrorInReport: true },
      interruptAfterTimeLimit: 20_000,
    });
  const changed = pairs.filter(({ changes }) => changes).length;
  console.log(
    `${met.commands} commands; ${pairs.length - pairs.filter(({ pair }) => missing().includes(pair)).length} of ${pairs.length} pairs of a status and a command, ` +
      `${changed} allowed and ${pairs.length - changed} not; ${met.ways.size} of ${ways.length} ways; ` +
      `${met.reasons.size} reasons`,
  );
  expect(missing()).toEqual([]);
  // And nothing else: no command changes what its table does not let it change, nothing goes where no table leads.
  const wrong = pairs.filter(({ pair, changes }) => !changes && met.pairs.get(pair)?.has("changed"));
  expect(wrong.map(({ pair }) => pair)).toEqual([]);
  expect([...met.ways.keys()].filter((way) => !ways.includes(way))).toEqual([]);
}, 300_000);

test("the time to wait for is never that of an archived project's task", () => {
  const it = kernel();
  const make = (type: string, payload: Payload) => {
    const outcome = it.run(type, payload);
    if ("problem" in outcome) throw new Error(JSON.stringify(outcome.problem));
    return JSON.parse(outcome.receipt).subject.id as string;
  };
  const workspace_id = make("workspace.create", { name: "w" });
  const [open, archived] = ["open", "archived"].map((name) => make("project.create", { workspace_id, name }));
  const session_id = make("session.spawn", { workspace_id, agent: { name: "ada" } });
  const claim = () => it.run("task.claim", { filter: {}, session_id });
  make("task.create", { project_id: archived, title: "soon", not_before: "2027-01-01T00:00:00.000Z" });
  make("project.archive", { project_id: archived });
  expect(claim()).toMatchObject({ problem: { reason: "task.none_ready", details: { next_at: null } } });
  const not_before = "2028-01-01T00:00:00.000Z";
  make("task.create", { project_id: open, title: "later", not_before });
  expect(claim()).toMatchObject({ problem: { reason: "task.none_ready", details: { next_at: not_before } } });
});
