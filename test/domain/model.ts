/**
 * What SPEC §8 says, a second time and in other words: maps and lists, no events to fold, no SQL, no ranks. The real kernel is
 * held against it (model.test.ts), so nothing of src is used here.
 *
 * Always so: a command first finds all that stands against it, then changes the maps and tells which events it makes, in
 * which streams. Ids that the daemon makes up come from outside, as does the time. Left out on purpose: payloads' schemas,
 * idempotency, what git does: only its outcomes come in.
 */

/** SPEC §8: from each status of a session to those that may follow it. */
export const SESSION: Table = {
  starting: ["running", "failed", "cancelled", "lost"],
  running: ["idle", "waiting", "completed", "failed", "cancelled", "lost"],
  idle: ["running", "completed", "cancelled", "lost"],
  waiting: ["running", "failed", "cancelled", "lost"],
  lost: ["running", "failed", "cancelled"],
  completed: [],
  failed: [],
  cancelled: [],
};

/** SPEC §8: the same of the writer lock of a worktree. */
export const LOCK: Table = {
  free: ["held"],
  held: ["free", "expired", "held"],
  expired: ["held", "free"],
};

const STOPPED = ["queued", "running", "cancelled", "failed"];
/** SPEC §8: the same of a task. */
export const TASK: Table = {
  queued: ["running", "paused", "cancelled", "blocked_by_policy", "blocked_by_approval"],
  running: [
    ...["succeeded", "failed", "cancelled", "paused", "awaiting_user_input"],
    ...["blocked_by_policy", "blocked_by_approval", "queued"],
  ],
  paused: STOPPED,
  awaiting_user_input: STOPPED,
  blocked_by_policy: STOPPED,
  blocked_by_approval: STOPPED,
  failed: ["queued"],
  succeeded: [],
  cancelled: [],
};
type Table = Readonly<Record<string, readonly string[]>>;

export const LIVE = ["starting", "running", "idle", "waiting"];
const BEST_TO_WORST = ["completed", "cancelled", "idle", "running", "starting", "waiting", "lost", "failed"];
const TTL = 300_000;

interface Workspace {
  name: string;
  root_path?: string | undefined;
  open: boolean;
}
interface Project {
  workspace_id: string;
  name: string;
  repo_path?: string | undefined;
  archived: boolean;
}
interface Session {
  workspace_id: string;
  project_id?: string | undefined;
  parent?: string | undefined;
  forked_from?: string | undefined;
  agent: string;
  title?: string | undefined;
  status: string;
  waiting_for?: string | undefined;
  epoch: number;
  ttl: number;
}
interface Worktree {
  workspace_id: string;
  project_id: string;
  path: string;
  branch: string | null;
  registered: boolean;
  status: string;
  /** What a removal that fails goes back to. */
  before?: string;
  failure: string | null;
  attached: Map<string, string>;
  lock: { status: string; epoch: number; ttl: number; last?: string };
}
interface Attempt {
  attempt: number;
  session_id: string;
  epoch: number;
  claimed_at: string;
  ended_at: string | null;
  outcome: string | null;
  failure_class: string | null;
}
interface Task {
  workspace_id: string;
  project_id: string;
  parent?: string | undefined;
  title: string;
  priority: number;
  stage?: string | undefined;
  status: string;
  why?: string | undefined;
  needs: Set<string>;
  not_before?: string | undefined;
  deadline_at?: string | undefined;
  max_attempts: number;
  epoch: number;
  holder?: string | undefined;
  ttl: number;
  attempts: Attempt[];
  failure_class: string | null;
  result: object | null;
}
interface Lane {
  lane_id: string;
  name: string;
  stage?: string | undefined;
  wip_limit?: number | undefined;
  /** From the top down. */
  nodes: string[];
}
interface Node {
  kind: string;
  ref_id?: string | undefined;
  text?: string | undefined;
}
interface Board {
  workspace_id: string;
  name: string;
  lanes: Lane[];
  nodes: Map<string, Node>;
}
interface Link {
  readonly kind: string;
  readonly id: string;
}
interface Artifact {
  workspace_id: string;
  digest: string;
  name?: string | undefined;
  expired_at?: string | undefined;
  expire_after_ms?: number | undefined;
  links: Link[];
}
interface Lease {
  epoch: number;
  ttl: number;
  ends: number;
  grace: boolean;
}

/** Ids that the daemon has made up while it carried a command out. */
export interface Fresh {
  readonly id: string;
  readonly node_id: string;
  readonly lanes: readonly string[];
}

export type Answer =
  | { readonly events: readonly (readonly [stream: string, type: string])[]; readonly result: object }
  | Refusal;

interface Refusal {
  readonly refused: string;
  readonly details: object;
  /** Stands against the command as well, and SPEC does not say which of the two is told. */
  readonly or?: Refusal | undefined;
}

/** What stands against a command: a reason of the catalogue, or `not_found`. */
class Against extends Error {
  constructor(
    readonly reason: string,
    readonly details: object,
    readonly or?: Refusal,
  ) {
    super(reason);
  }
}
function no(reason: string, details: object = {}, or?: Refusal): never {
  throw new Against(reason, details, or);
}
const none = (kind: string, id: string) => no("not_found", { kind, id });

export const iso = (ms: number) => new Date(ms).toISOString();
const same = (one: string, other: string) => one.toLowerCase() === other.toLowerCase();
const sorted = (ids: Iterable<string>) => [...ids].sort();

/** A world in which nothing has happened yet. */
export function world() {
  const workspaces = new Map<string, Workspace>();
  const projects = new Map<string, Project>();
  const sessions = new Map<string, Session>();
  const worktrees = new Map<string, Worktree>();
  const tasks = new Map<string, Task>();
  const boards = new Map<string, Board>();
  const artifacts = new Map<string, Artifact>();
  const blobs = new Map<string, number>();
  const leases = new Map<string, Lease>();
  const streams = new Map<string, { version: number; created_at: string; updated_at: string }>();
  const kinds: Record<string, Map<string, object>> = {
    ...{ workspace: workspaces, project: projects, session: sessions, worktree: worktrees },
    ...{ task: tasks, board: boards, artifact: artifacts },
  };
  let head = 0;
  let now = 0;
  let fresh: Fresh = { id: "", node_id: "", lanes: [] };
  let told: (readonly [string, string])[] = [];

  function tell(kind: string, id: string, ...types: string[]) {
    for (const type of types) {
      const stream = `${kind}/${id}`;
      const { version, created_at } = streams.get(stream) ?? { version: 0, created_at: iso(now) };
      streams.set(stream, { version: version + 1, created_at, updated_at: iso(now) });
      told.push([stream, `${kind}.${type}`]);
      head += 1;
    }
  }
  function lease(stream: string, epoch: number, ttl: number, grace = true) {
    leases.set(stream, { epoch, ttl, ends: now + ttl, grace });
  }
  /** A renewal: nothing but the end of the lease moves. */
  function renew(stream: string) {
    const { epoch, ttl, grace } = leases.get(stream)!;
    lease(stream, epoch, ttl, grace);
    return { epoch, expires_at: iso(now + ttl) };
  }
  const ends = (stream: string) => iso(leases.get(stream)!.ends);
  const held = (holder: string, epoch: number, stream: string) => ({
    holder,
    epoch,
    expires_at: ends(stream),
    retry_after_ms: Math.max(0, leases.get(stream)!.ends - now),
  });

  /** Whatever begins or changes work needs an open workspace, and an active project of it. */
  function open(workspace_id: string, project_id?: string) {
    const workspace = workspaces.get(workspace_id) ?? none("workspace", workspace_id);
    if (!workspace.open) no("workspace.closed", { workspace_id });
    if (project_id === undefined) return;
    const project = projects.get(project_id) ?? none("project", project_id);
    if (project.workspace_id !== workspace_id)
      no("project.other_workspace", { project_id, workspace_id: project.workspace_id });
    if (project.archived) no("project.archived", { project_id });
  }

  // ── Sessions ──

  function begin(it: Omit<Session, "status" | "epoch" | "ttl">, type: string, ttl = TTL) {
    sessions.set(fresh.id, { ...it, status: "starting", epoch: 1, ttl });
    tell("session", fresh.id, type);
    lease(`session/${fresh.id}`, 1, ttl);
    return { epoch: 1, expires_at: iso(now + ttl) };
  }
  function current(it: Session, epoch: number | undefined) {
    if (epoch !== undefined && epoch !== it.epoch) no("session.stale_epoch", { epoch, current: it.epoch });
  }
  function never({ status: from }: Session, to: string) {
    no("session.invalid_transition", { from, to, allowed: SESSION[from] });
  }
  /** A session that is to take something of a workspace; `or`: what stands against that as well. */
  function taker(session_id: string, home: string, or?: Refusal) {
    const { workspace_id, status } = sessions.get(session_id) ?? none("session", session_id);
    if (workspace_id !== home) no("session.other_workspace", { session_id, workspace_id }, or);
    if (!LIVE.includes(status)) no("session.not_live", { session_id, status }, or);
  }

  // ── Worktrees ──

  const placed = ({ status }: Worktree) => status !== "failed" && status !== "removed";
  function place(project_id: string, path: string) {
    const project = projects.get(project_id) ?? none("project", project_id);
    open(project.workspace_id, project_id);
    for (const [worktree_id, it] of worktrees)
      if (placed(it) && it.path === path) no("worktree.path_taken", { worktree_id, status: it.status });
    return project;
  }
  function put(project_id: string, path: string, branch: string | undefined, registered: boolean) {
    const { workspace_id } = projects.get(project_id)!;
    worktrees.set(fresh.id, {
      ...{ workspace_id, project_id, path, branch: branch ?? null, registered, failure: null },
      status: registered ? "present" : "creating",
      attached: new Map(),
      lock: { status: "free", epoch: 0, ttl: TTL },
    });
    tell("worktree", fresh.id, registered ? "registered" : "creation_started");
  }
  /** Nobody holds the lock any more. */
  function unlock(id: string, type: string, status = "free") {
    worktrees.get(id)!.lock.status = status;
    leases.delete(`worktree/${id}`);
    tell("worktree", id, type);
  }
  const holds = ({ lock }: Worktree, session_id: string) =>
    lock.status === "held" && lock.last === session_id;
  function leave(id: string, session_id: string) {
    const it = worktrees.get(id)!;
    if (!it.attached.has(session_id)) return;
    if (holds(it, session_id)) unlock(id, "writer_released");
    it.attached.delete(session_id);
    tell("worktree", id, "detached");
  }
  function enter(it: Worktree, session_id: string) {
    open(it.workspace_id, it.project_id);
    const gone: Refusal | undefined =
      it.status === "present"
        ? undefined
        : { refused: "worktree.not_present", details: { status: it.status } };
    taker(session_id, it.workspace_id, gone);
    if (gone) no(gone.refused, gone.details);
  }
  function writer(worktree_id: string, session_id: string) {
    const it = worktrees.get(worktree_id)!;
    enter(it, session_id);
    const mode = it.attached.get(session_id) ?? null;
    if (mode !== "write") no("worktree.not_attached", { worktree_id, session_id, mode });
  }
  const staleLock = (epoch: number, { lock }: Worktree) =>
    no("worktree.stale_epoch", { epoch, current: lock.epoch });
  function lock(id: string, session_id: string, type: string, ttl: number) {
    const it = worktrees.get(id)!;
    // No epoch is given out twice at one place, whatever stood there before.
    const there = [...worktrees.values()].filter((each) => each.path === it.path);
    const epoch = 1 + (it.lock.epoch || Math.max(...there.map((each) => each.lock.epoch)));
    it.lock = { status: "held", epoch, ttl, last: session_id };
    tell("worktree", id, type);
    lease(`worktree/${id}`, it.lock.epoch, ttl);
    return { epoch: it.lock.epoch, expires_at: iso(now + ttl) };
  }
  /** What a resumed session holds goes on under new epochs. */
  function takeUpLock(id: string, session_id: string) {
    const it = worktrees.get(id)!;
    if (holds(it, session_id)) lock(id, session_id, "writer_locked", it.lock.ttl);
  }
  function takeUpClaim(id: string, session_id: string) {
    const it = tasks.get(id)!;
    if (it.holder !== session_id) return;
    it.epoch += 1;
    it.attempts.at(-1)!.epoch = it.epoch;
    tell("task", id, "claim_resumed");
    lease(`task/${id}`, it.epoch, it.ttl);
  }
  /** Git says how what it began has ended. It counts while it is waited for, and only then. */
  function outcome(id: string, awaited: readonly string[], type: string, change: Partial<Worktree>) {
    const it = worktrees.get(id)!;
    if (!awaited.includes(it.status)) return;
    Object.assign(it, change);
    tell("worktree", id, type);
  }

  // ── Tasks ──

  const claimable = (it: Task) => it.status === "queued" && unmet(it).length === 0;
  const unmet = (it: Task) => sorted(it.needs).filter((id) => tasks.get(id)!.status !== "succeeded");
  /** When its turn began, or begins. */
  const since = (id: string) => {
    const { created_at } = streams.get(`task/${id}`)!;
    const { not_before = created_at } = tasks.get(id)!;
    return sorted([not_before, created_at])[1]!;
  };
  const isOpen = ({ project_id, workspace_id }: Task) =>
    !projects.get(project_id)!.archived && workspaces.get(workspace_id)!.open;
  type Filter = { [K in "workspace_id" | "project_id" | "parent_task_id" | "stage"]?: string | undefined };
  /** Tasks that only time may keep from being claimed, in the order of claims. */
  function queue({ workspace_id, project_id, parent_task_id, stage }: Filter) {
    return [...tasks]
      .filter(
        ([, it]) =>
          claimable(it) &&
          isOpen(it) &&
          [it.workspace_id, undefined].includes(workspace_id) &&
          [it.project_id, undefined].includes(project_id) &&
          (parent_task_id === undefined || it.parent === parent_task_id) &&
          (stage === undefined || it.stage === stage),
      )
      .map(([id, it]) => ({ id, order: `${it.priority} ${since(id)} ${id}`, since: since(id) }))
      .sort((one, other) => (one.order < other.order ? -1 : 1));
  }
  const bad = ({ status: from }: Task, to: string) =>
    no("task.invalid_transition", { from, to, allowed: TASK[from] });
  const OVER = ["succeeded", "failed", "cancelled"];
  /** Whoever speaks for the work must have the claim. */
  function speaker(it: Task, epoch: number, to: string) {
    if (it.holder !== undefined && it.epoch === epoch) return;
    // The claim ended with the work, not because it was another's.
    if (epoch === it.epoch && OVER.includes(it.status)) bad(it, to);
    no("task.stale_epoch", { epoch, current: it.epoch });
  }
  function unclaim(id: string, outcome: string) {
    const it = tasks.get(id)!;
    if (it.holder === undefined) return;
    it.holder = undefined;
    Object.assign(it.attempts.at(-1)!, { ended_at: iso(now), outcome });
    leases.delete(`task/${id}`);
  }
  function giveBack(id: string, outcome: "released" | "expired") {
    const it = tasks.get(id)!;
    unclaim(id, outcome);
    if (it.status === "running") it.status = "queued";
    tell("task", id, outcome === "released" ? "released" : "claim_expired");
  }
  function fail(id: string, failure_class: string) {
    const it = tasks.get(id)!;
    if (it.holder !== undefined) it.attempts.at(-1)!.failure_class = failure_class;
    unclaim(id, "failed");
    Object.assign(it, { status: "failed", why: undefined, failure_class });
    tell("task", id, "failed");
  }
  function stop(id: string, status: string, reason: string | undefined, type: string) {
    const it = tasks.get(id)!;
    if (it.status === status && (reason === undefined || reason === it.why)) return;
    Object.assign(it, { status, why: reason });
    tell("task", id, type);
  }
  function goOn(id: string, from: readonly string[], type: string) {
    const it = tasks.get(id)!;
    open(it.workspace_id, it.project_id);
    const to = it.holder === undefined ? "queued" : "running";
    if (it.status === to) return;
    if (!from.includes(it.status)) bad(it, to);
    Object.assign(it, { status: to, why: undefined });
    tell("task", id, type);
  }
  function needed(ids: Iterable<string>, home: string) {
    for (const task_id of ids) {
      const { workspace_id } = tasks.get(task_id) ?? none("task", task_id);
      if (workspace_id !== home) no("task.other_workspace", { task_id, workspace_id });
    }
  }
  function parentOf(task_id: string | undefined, home: string) {
    if (task_id === undefined) return;
    const { project_id } = tasks.get(task_id) ?? none("task", task_id);
    if (project_id !== home) no("task.other_project", { task_id, project_id });
  }
  /** All that a task waits for, through any number of hops. */
  function reach(id: string, seen = new Set<string>()): Set<string> {
    if (!seen.has(id)) {
      seen.add(id);
      for (const each of tasks.get(id)!.needs) reach(each, seen);
    }
    return seen;
  }
  /** A task whose dependencies are to change. */
  function waiting(id: string, other: string) {
    const it = tasks.get(id)!;
    open(it.workspace_id, it.project_id);
    needed([other], it.workspace_id);
    if (it.status === "succeeded" || it.status === "cancelled") bad(it, it.status);
    return it;
  }
  function claim(id: string, session_id: string, ttl = TTL) {
    const it = tasks.get(id)!;
    open(it.workspace_id, it.project_id);
    taker(session_id, it.workspace_id);
    const stream = `task/${id}`;
    const taken = { task_id: id, epoch: it.epoch, attempt: it.attempts.length };
    if (it.holder === session_id && it.status !== "running") bad(it, "running");
    if (it.holder === session_id) return { ...taken, expires_at: ends(stream) };
    if (it.holder !== undefined) no("task.already_claimed", held(it.holder, it.epoch, stream));
    if (it.status !== "queued") bad(it, "running");
    const early = since(id) > iso(now);
    if (early || unmet(it).length > 0)
      no("task.not_ready", {
        unmet: unmet(it).map((task_id) => ({ task_id, status: tasks.get(task_id)!.status })),
        ...(early && { not_before: it.not_before }),
      });
    Object.assign(it, { status: "running", holder: session_id, epoch: it.epoch + 1, ttl });
    it.attempts.push({
      ...{ attempt: it.attempts.length + 1, session_id, epoch: it.epoch, claimed_at: iso(now) },
      ...{ ended_at: null, outcome: null, failure_class: null },
    });
    tell("task", id, "claimed");
    lease(stream, it.epoch, ttl);
    return { task_id: id, epoch: it.epoch, attempt: it.attempts.length, expires_at: iso(now + ttl) };
  }
  function canAdvance(id: string) {
    const it = tasks.get(id)!;
    open(it.workspace_id, it.project_id);
  }
  function advance(id: string, stage: string) {
    const it = tasks.get(id)!;
    if (it.stage === stage) return;
    it.stage = stage;
    tell("task", id, "stage_advanced");
  }

  // ── Boards ──

  interface Beside {
    readonly after?: string | undefined;
    readonly before?: string | undefined;
  }
  /** The order of a lane once a node is in it; the order that it has when that is good enough. */
  function ordered({ nodes }: Lane, node_id: string, { after, before }: Beside): string[] {
    const others = nodes.filter((each) => each !== node_id);
    const [behind, ahead] = [after, before].map((each) => (each === undefined ? -1 : others.indexOf(each)));
    if (after !== undefined && behind! < 0) no("board.neighbour_not_in_lane", { node_id: after });
    if (before !== undefined && (ahead! < 0 || behind! >= ahead!))
      no("board.neighbour_not_in_lane", { node_id: before });
    const own = nodes.indexOf(node_id);
    // Between two it is already: it need not be right behind the first.
    if (
      after !== undefined &&
      before !== undefined &&
      nodes.indexOf(after) < own &&
      own < nodes.indexOf(before)
    )
      return nodes;
    const at = after !== undefined ? behind! + 1 : before !== undefined ? ahead! : others.length;
    return others.toSpliced(at, 0, node_id);
  }
  const laneOf = (board: Board, lane_id: string) =>
    board.lanes.find((lane) => lane.lane_id === lane_id) ?? none("lane", lane_id);
  type Wanted = { readonly name: string; readonly stage?: string; readonly wip_limit?: number };
  function differ(lanes: readonly Wanted[]) {
    for (const [at, { name }] of lanes.entries()) {
      const before = lanes.findIndex((lane) => same(lane.name, name));
      if (before < at) no("board.duplicate_lane", { lanes: [before, at] });
    }
  }
  /** What a thing is called, and how it is. */
  function shownAs(kind: string, id: string): { title: string | null; status: string | null } {
    const session = kind === "session" ? sessions.get(id) : undefined;
    if (session) return { title: session.title ?? session.agent, status: session.status };
    const task = kind === "task" ? tasks.get(id) : undefined;
    if (task) return { title: task.title, status: task.status };
    const worktree = kind === "worktree" ? worktrees.get(id) : undefined;
    if (worktree) return { title: worktree.path, status: worktree.status };
    const artifact = kind === "artifact" ? artifacts.get(id) : undefined;
    if (!artifact) return { title: null, status: null };
    const status = artifact.expired_at === undefined ? "available" : "expired";
    return { title: artifact.name ?? artifact.digest, status };
  }

  // ── Artifacts ──

  /** Where a thing lies; an id of another kind is nothing. */
  function liesIn(kind: string, id: string): { workspace_id: string; project_id?: string | undefined } {
    const it = (kinds[kind]!.get(id) ?? none(kind, id)) as { workspace_id: string; project_id?: string };
    if (kind === "workspace") return { workspace_id: id };
    if (kind === "project") return { workspace_id: it.workspace_id, project_id: id };
    return { workspace_id: it.workspace_id, project_id: it.project_id };
  }
  function linkable(links: readonly Link[], home?: string) {
    const places = links.map(({ kind, id }) => liesIn(kind, id));
    const workspace_id = home ?? places[0]!.workspace_id;
    open(workspace_id);
    for (const place of places) open(place.workspace_id, place.project_id);
    for (const [at, place] of places.entries())
      if (place.workspace_id !== workspace_id)
        no("artifact.other_workspace", { ...links[at]!, workspace_id: place.workspace_id });
    return workspace_id;
  }
  const once = (links: readonly Link[]) =>
    links.filter(({ id }, at) => links.findIndex((link) => link.id === id) === at);
  function expire(artifact_id: string) {
    artifacts.get(artifact_id)!.expired_at = iso(now);
    leases.delete(`artifact/${artifact_id}`);
    tell("artifact", artifact_id, "expired");
  }

  // ── Commands ──

  type Id<K extends string> = { readonly [N in `${K}_id`]: string };
  const commands = {
    "workspace.create"({ name, root_path }: { name: string; root_path?: string }) {
      for (const [workspace_id, it] of workspaces)
        if (same(it.name, name)) no("workspace.name_taken", { workspace_id });
      for (const [workspace_id, it] of workspaces)
        if (root_path !== undefined && it.root_path === root_path)
          no("workspace.path_taken", { workspace_id });
      workspaces.set(fresh.id, { name, root_path, open: true });
      tell("workspace", fresh.id, "created");
    },
    "workspace.open"({ workspace_id }: Id<"workspace">) {
      const it = workspaces.get(workspace_id)!;
      if (!it.open) tell("workspace", workspace_id, "opened");
      it.open = true;
    },
    "workspace.close"({ workspace_id }: Id<"workspace">) {
      const it = workspaces.get(workspace_id)!;
      if (it.open) tell("workspace", workspace_id, "closed");
      it.open = false;
    },

    "project.create"(given: { workspace_id: string; name: string; repo_path?: string }) {
      open(given.workspace_id);
      for (const [project_id, it] of projects)
        if (it.workspace_id === given.workspace_id && same(it.name, given.name))
          no("project.name_taken", { project_id });
      projects.set(fresh.id, { ...given, archived: false });
      tell("project", fresh.id, "created");
    },
    "project.archive"({ project_id }: Id<"project">) {
      const it = projects.get(project_id)!;
      if (it.archived) return;
      open(it.workspace_id);
      it.archived = true;
      tell("project", project_id, "archived");
    },

    "session.spawn"(given: {
      workspace_id: string;
      project_id?: string;
      parent_session_id?: string;
      agent: { name: string };
      title?: string;
      ttl_ms?: number;
    }) {
      const { workspace_id, project_id, parent_session_id: parent, agent, title, ttl_ms } = given;
      open(workspace_id, project_id);
      if (parent !== undefined && sessions.get(parent)?.workspace_id !== workspace_id)
        no("session.parent_not_found", { parent_session_id: parent });
      return begin({ workspace_id, project_id, parent, agent: agent.name, title }, "spawned", ttl_ms);
    },
    "session.fork"(given: {
      from_session_id: string;
      at_seq?: number;
      agent?: { name: string };
      title?: string;
      ttl_ms?: number;
    }) {
      const { from_session_id: forked_from, at_seq = 0, title, ttl_ms } = given;
      const from = sessions.get(forked_from) ?? none("session", forked_from);
      open(from.workspace_id, from.project_id);
      if (at_seq > head) no("session.fork_ahead", { at_seq, head });
      const { workspace_id, project_id, parent } = from;
      const agent = given.agent?.name ?? from.agent;
      return begin({ workspace_id, project_id, parent, forked_from, agent, title }, "forked", ttl_ms);
    },
    "session.report_status"(given: Id<"session"> & { status: string; waiting_for?: string; epoch?: number }) {
      const { session_id, status, waiting_for, epoch } = given;
      const it = sessions.get(session_id)!;
      current(it, epoch);
      if (it.status === status && it.waiting_for === waiting_for) return;
      const anew = it.status === "waiting" && status === "waiting";
      if (!anew && (it.status === "lost" || !SESSION[it.status]!.includes(status))) never(it, status);
      Object.assign(it, { status, waiting_for });
      tell("session", session_id, "status_reported");
    },
    "session.resume"({ session_id, ttl_ms }: Id<"session"> & { ttl_ms?: number }) {
      const it = sessions.get(session_id)!;
      const ttl = ttl_ms ?? it.ttl;
      open(it.workspace_id, it.project_id);
      if (it.status !== "lost") never(it, "running");
      Object.assign(it, { status: "running", epoch: it.epoch + 1, ttl });
      tell("session", session_id, "resumed");
      lease(`session/${session_id}`, it.epoch, ttl);
      for (const id of worktrees.keys()) takeUpLock(id, session_id);
      for (const id of tasks.keys()) takeUpClaim(id, session_id);
      return { epoch: it.epoch, expires_at: iso(now + ttl) };
    },
    "session.end"({ session_id, outcome, epoch }: Id<"session"> & { outcome: string; epoch?: number }) {
      const it = sessions.get(session_id)!;
      current(it, epoch);
      if (!SESSION[it.status]!.includes(outcome)) never(it, outcome);
      Object.assign(it, { status: outcome, waiting_for: undefined });
      leases.delete(`session/${session_id}`);
      tell("session", session_id, "ended");
      for (const id of worktrees.keys()) leave(id, session_id);
      for (const [id, { holder }] of tasks) if (holder === session_id) giveBack(id, "released");
    },
    "session.heartbeat"({ session_id, epoch }: Id<"session"> & { epoch: number }) {
      const it = sessions.get(session_id)!;
      current(it, epoch);
      if (!LIVE.includes(it.status)) never(it, "running");
      return renew(`session/${session_id}`);
    },
    "session.lose"({ session_id, epoch }: Id<"session"> & { epoch: number }) {
      const it = sessions.get(session_id)!;
      if (epoch !== it.epoch || !LIVE.includes(it.status)) return;
      Object.assign(it, { status: "lost", waiting_for: undefined });
      leases.delete(`session/${session_id}`);
      tell("session", session_id, "lost");
    },

    "worktree.create"({ project_id, path, branch }: { project_id: string; path: string; branch: string }) {
      const { repo_path } = place(project_id, path);
      if (repo_path === undefined) no("worktree.no_repository", { project_id });
      put(project_id, path, branch, false);
    },
    "worktree.register"(given: { project_id: string; path: string; branch?: string }) {
      place(given.project_id, given.path);
      put(given.project_id, given.path, given.branch, true);
    },
    "worktree.remove"({ worktree_id }: Id<"worktree">) {
      const it = worktrees.get(worktree_id)!;
      const { status, attached, registered } = it;
      if (status === "removed" || status === "removing") return;
      open(it.workspace_id);
      if (status === "creating") no("worktree.not_present", { status });
      if (attached.size > 0) no("worktree.has_attachments", { sessions: sorted(attached.keys()) });
      const forgotten = registered || status === "failed";
      if (forgotten) it.status = "removed";
      else Object.assign(it, { status: "removing", before: status, failure: null });
      tell("worktree", worktree_id, forgotten ? "removed" : "removal_started");
    },
    "worktree.reconcile"({ worktree_id }: Id<"worktree">) {
      const { workspace_id, status } = worktrees.get(worktree_id)!;
      open(workspace_id);
      if (status !== "present" && status !== "missing") no("worktree.not_present", { status });
      tell("worktree", worktree_id, "reconciliation_started");
    },
    "worktree.attach"({ worktree_id, session_id, mode }: Id<"worktree"> & Id<"session"> & { mode: string }) {
      const it = worktrees.get(worktree_id)!;
      enter(it, session_id);
      if (it.attached.get(session_id) === mode) return;
      if (holds(it, session_id)) unlock(worktree_id, "writer_released");
      it.attached.set(session_id, mode);
      tell("worktree", worktree_id, "attached");
    },
    "worktree.detach"({ worktree_id, session_id }: Id<"worktree"> & Id<"session">) {
      if (!sessions.has(session_id)) none("session", session_id);
      leave(worktree_id, session_id);
    },
    "worktree.lock_writer"(given: Id<"worktree"> & Id<"session"> & { ttl_ms?: number }) {
      const { worktree_id, session_id, ttl_ms = TTL } = given;
      const it = worktrees.get(worktree_id)!;
      writer(worktree_id, session_id);
      const { epoch, last, status } = it.lock;
      const stream = `worktree/${worktree_id}`;
      if (holds(it, session_id)) return { epoch, expires_at: ends(stream) };
      if (status === "held") no("worktree.writer_held", { worktree_id, ...held(last!, epoch, stream) });
      return lock(worktree_id, session_id, "writer_locked", ttl_ms);
    },
    "worktree.renew_writer"({ worktree_id, session_id, epoch }: Writer) {
      const it = worktrees.get(worktree_id)!;
      const stream = `worktree/${worktree_id}`;
      if (it.lock.status !== "held" || it.lock.epoch !== epoch) staleLock(epoch, it);
      if (it.lock.last !== session_id)
        no("worktree.writer_held", { worktree_id, ...held(it.lock.last!, epoch, stream) });
      return renew(stream);
    },
    "worktree.release_writer"({ worktree_id, session_id, epoch }: Writer) {
      const it = worktrees.get(worktree_id)!;
      const { status, last } = it.lock;
      if (epoch === 0 || epoch !== it.lock.epoch) staleLock(epoch, it);
      if (last !== session_id && status === "held")
        no("worktree.writer_held", { worktree_id, ...held(last!, epoch, `worktree/${worktree_id}`) });
      if (last !== session_id) staleLock(epoch, it);
      if (status !== "free" && it.status !== "removed") unlock(worktree_id, "writer_released");
    },
    "worktree.steal_writer"(given: Id<"worktree"> & Id<"session"> & { expected_epoch: number }) {
      const { worktree_id, session_id, expected_epoch } = given;
      const it = worktrees.get(worktree_id)!;
      writer(worktree_id, session_id);
      if (it.lock.epoch !== expected_epoch) staleLock(expected_epoch, it);
      if (holds(it, session_id))
        return { epoch: expected_epoch, expires_at: ends(`worktree/${worktree_id}`) };
      return lock(worktree_id, session_id, "writer_stolen", TTL);
    },
    "worktree.expire_writer"({ worktree_id, epoch }: Id<"worktree"> & { epoch: number }) {
      const { status, epoch: last } = worktrees.get(worktree_id)!.lock;
      if (status === "held" && last === epoch) unlock(worktree_id, "writer_expired", "expired");
    },
    "worktree.leave": ({ worktree_id, session_id }: Id<"worktree"> & Id<"session">) =>
      leave(worktree_id, session_id),
    "worktree.take_up": ({ worktree_id, session_id }: Id<"worktree"> & Id<"session">) =>
      takeUpLock(worktree_id, session_id),
    "worktree.record_created": ({
      worktree_id,
      branch = null,
    }: Id<"worktree"> & { branch?: string | null }) =>
      outcome(worktree_id, ["creating"], "created", { status: "present", branch }),
    "worktree.record_creation_failed": ({ worktree_id, message }: Id<"worktree"> & { message: string }) =>
      outcome(worktree_id, ["creating"], "creation_failed", { status: "failed", failure: message }),
    "worktree.record_removed": ({ worktree_id }: Id<"worktree">) =>
      outcome(worktree_id, ["removing"], "removed", { status: "removed" }),
    "worktree.record_removal_failed"({ worktree_id, message }: Id<"worktree"> & { message: string }) {
      const { before = "" } = worktrees.get(worktree_id)!;
      outcome(worktree_id, ["removing"], "removal_failed", { status: before, failure: message });
    },
    "worktree.record_reconciled"(given: Id<"worktree"> & { presence: string; branch?: string }) {
      const { worktree_id, presence: status, branch = null } = given;
      const seen = status === "present" ? { branch } : {};
      outcome(worktree_id, ["present", "missing"], "reconciled", { status, failure: null, ...seen });
    },

    "task.create"(given: {
      project_id: string;
      title: string;
      parent_task_id?: string;
      priority?: number;
      depends_on?: string[];
      stage?: string;
      max_attempts?: number;
      not_before?: string;
      deadline_at?: string;
    }) {
      const { project_id, parent_task_id: parent, depends_on = [], title, stage } = given;
      const { workspace_id } = projects.get(project_id) ?? none("project", project_id);
      open(workspace_id, project_id);
      parentOf(parent, project_id);
      needed(depends_on, workspace_id);
      tasks.set(fresh.id, {
        ...{ workspace_id, project_id, parent, title, stage, needs: new Set(depends_on) },
        ...{ not_before: given.not_before, deadline_at: given.deadline_at },
        priority: given.priority ?? 2,
        max_attempts: given.max_attempts ?? 3,
        ...{ status: "queued", epoch: 0, ttl: 0, attempts: [], failure_class: null, result: null },
      });
      tell("task", fresh.id, "created");
    },
    "task.claim"(given: {
      task_id?: string;
      filter?: { project_id?: string; parent_task_id?: string; stage?: string };
      session_id: string;
      ttl_ms?: number;
    }) {
      const { task_id, filter = {}, session_id, ttl_ms } = given;
      if (task_id !== undefined) return claim(task_id, session_id, ttl_ms);
      const { workspace_id } = sessions.get(session_id) ?? none("session", session_id);
      const { project_id, parent_task_id } = filter;
      const parent = parent_task_id === undefined ? undefined : tasks.get(parent_task_id);
      open(workspace_id, project_id);
      taker(session_id, workspace_id);
      if (parent_task_id !== undefined) needed([parent_task_id], workspace_id);
      open(workspace_id, parent?.project_id);
      if (project_id !== undefined) parentOf(parent_task_id, project_id);
      const all = queue({ workspace_id, ...filter });
      const next = all.find((each) => each.since <= iso(now));
      const next_at = sorted(all.map((each) => each.since))[0] ?? null;
      return next ? claim(next.id, session_id, ttl_ms) : no("task.none_ready", { next_at });
    },
    "task.renew"({ task_id, epoch }: Claim) {
      speaker(tasks.get(task_id)!, epoch, "running");
      return renew(`task/${task_id}`);
    },
    "task.release"({ task_id, epoch }: Claim) {
      speaker(tasks.get(task_id)!, epoch, "queued");
      giveBack(task_id, "released");
    },
    "task.complete"({ task_id, epoch, result = null }: Claim & { result?: object | null }) {
      const it = tasks.get(task_id)!;
      speaker(it, epoch, "succeeded");
      if (it.status !== "running") bad(it, "succeeded");
      unclaim(task_id, "succeeded");
      Object.assign(it, { status: "succeeded", result });
      tell("task", task_id, "succeeded");
    },
    "task.fail"({ task_id, epoch, failure }: Claim & { failure: { class: string } }) {
      speaker(tasks.get(task_id)!, epoch, "failed");
      fail(task_id, failure.class);
    },
    "task.block"(given: { task_id: string; on: string; reason?: string; epoch?: number }) {
      const { task_id, on, reason, epoch } = given;
      const it = tasks.get(task_id)!;
      open(it.workspace_id, it.project_id);
      const to = on === "user_input" ? "awaiting_user_input" : `blocked_by_${on}`;
      if (epoch !== undefined) speaker(it, epoch, to);
      if (it.status !== to && !TASK[it.status]!.includes(to)) bad(it, to);
      stop(task_id, to, reason, "blocked");
    },
    "task.unblock": ({ task_id }: Id<"task">) =>
      goOn(task_id, ["awaiting_user_input", "blocked_by_policy", "blocked_by_approval"], "unblocked"),
    "task.pause"({ task_id, reason }: Id<"task"> & { reason?: string }) {
      const it = tasks.get(task_id)!;
      open(it.workspace_id, it.project_id);
      if (it.status !== "paused" && !TASK[it.status]!.includes("paused")) bad(it, "paused");
      stop(task_id, "paused", reason, "paused");
    },
    "task.resume": ({ task_id }: Id<"task">) => goOn(task_id, ["paused"], "resumed"),
    "task.retry"({ task_id }: Id<"task">) {
      const it = tasks.get(task_id)!;
      open(it.workspace_id, it.project_id);
      if (it.status === "queued") return;
      if (it.status !== "failed") bad(it, "queued");
      const { max_attempts, attempts } = it;
      if (attempts.length >= max_attempts)
        no("task.attempts_exhausted", { attempt: attempts.length, max_attempts });
      Object.assign(it, { status: "queued", failure_class: null });
      tell("task", task_id, "retried");
    },
    "task.cancel"({ task_id }: Id<"task">) {
      const it = tasks.get(task_id)!;
      open(it.workspace_id, it.project_id);
      if (it.status === "cancelled") return;
      if (!TASK[it.status]!.includes("cancelled")) bad(it, "cancelled");
      unclaim(task_id, "cancelled");
      Object.assign(it, { status: "cancelled", why: undefined });
      tell("task", task_id, "cancelled");
    },
    "task.add_dependency"({ task_id, depends_on_task_id: other }: Dependency) {
      const it = waiting(task_id, other);
      if (it.needs.has(other)) return;
      // Which way it goes is not said here: the test sees that it is one.
      if (reach(other).has(task_id)) no("task.dependency_cycle", { from: task_id, to: other });
      it.needs.add(other);
      tell("task", task_id, "dependency_added");
    },
    "task.remove_dependency"({ task_id, depends_on_task_id: other }: Dependency) {
      if (waiting(task_id, other).needs.delete(other)) tell("task", task_id, "dependency_removed");
    },
    "task.advance_stage"({ task_id, stage }: Id<"task"> & { stage: string }) {
      canAdvance(task_id);
      advance(task_id, stage);
    },
    "task.expire_claim"({ task_id, epoch }: Claim) {
      const it = tasks.get(task_id)!;
      if (it.holder === undefined || it.epoch !== epoch) return;
      const worked = it.status === "running";
      giveBack(task_id, "expired");
      if (worked && it.attempts.length >= it.max_attempts) fail(task_id, "claim_expired");
    },
    "task.leave"({ task_id, session_id }: Id<"task"> & Id<"session">) {
      if (tasks.get(task_id)!.holder === session_id) giveBack(task_id, "released");
    },
    "task.take_up": ({ task_id, session_id }: Id<"task"> & Id<"session">) => takeUpClaim(task_id, session_id),

    "board.create"({ workspace_id, name, lanes }: { workspace_id: string; name: string; lanes: Wanted[] }) {
      open(workspace_id);
      for (const [board_id, it] of boards)
        if (it.workspace_id === workspace_id && same(it.name, name)) no("board.name_taken", { board_id });
      differ(lanes);
      const made = lanes.map((lane, at) => ({ ...lane, lane_id: fresh.lanes[at]!, nodes: [] }));
      boards.set(fresh.id, { workspace_id, name, lanes: made, nodes: new Map() });
      tell("board", fresh.id, "created");
    },
    "board.add_node"(given: Id<"board"> & Id<"lane"> & Node & Beside) {
      const { board_id, lane_id, kind, ref_id, text } = given;
      const it = boards.get(board_id)!;
      const lane = laneOf(it, lane_id);
      const home = ref_id === undefined ? it : liesIn(kind, ref_id);
      open(it.workspace_id);
      if (home.workspace_id !== it.workspace_id) no("board.other_workspace", { kind, id: ref_id });
      for (const [node_id, node] of it.nodes)
        if (ref_id !== undefined && node.ref_id === ref_id) no("board.already_on_board", { node_id });
      const nodes = ordered(lane, fresh.node_id, given);
      const staged = kind === "task" && lane.stage !== undefined;
      if (staged) canAdvance(ref_id!);
      lane.nodes = nodes;
      it.nodes.set(fresh.node_id, { kind, ref_id, text });
      tell("board", board_id, "node_added");
      if (staged) advance(ref_id!, lane.stage!);
      return { node_id: fresh.node_id };
    },
    "board.move_node"(given: Id<"board"> & Id<"lane"> & { node_id: string } & Beside) {
      const { board_id, node_id, lane_id } = given;
      const it = boards.get(board_id)!;
      const { kind, ref_id } = it.nodes.get(node_id) ?? none("node", node_id);
      const lane = laneOf(it, lane_id);
      open(it.workspace_id);
      const from = it.lanes.find(({ nodes }) => nodes.includes(node_id))!;
      const nodes = ordered(lane, node_id, given);
      if (from === lane && String(nodes) === String(lane.nodes)) return;
      const staged = from !== lane && kind === "task" && lane.stage !== undefined;
      if (staged) canAdvance(ref_id!);
      from.nodes = from.nodes.filter((each) => each !== node_id);
      lane.nodes = nodes;
      tell("board", board_id, "node_moved");
      if (staged) advance(ref_id!, lane.stage!);
    },
    "board.remove_node"({ board_id, node_id }: Id<"board"> & { node_id: string }) {
      const it = boards.get(board_id)!;
      if (!it.nodes.has(node_id)) none("node", node_id);
      open(it.workspace_id);
      it.nodes.delete(node_id);
      for (const lane of it.lanes) lane.nodes = lane.nodes.filter((each) => each !== node_id);
      tell("board", board_id, "node_removed");
    },
    "board.update_lanes"({ board_id, lanes }: Id<"board"> & { lanes: (Wanted & { lane_id?: string })[] }) {
      const it = boards.get(board_id)!;
      for (const { lane_id } of lanes) if (lane_id !== undefined) laneOf(it, lane_id);
      open(it.workspace_id);
      differ(lanes);
      for (const { lane_id, nodes } of it.lanes)
        if (nodes.length > 0 && !lanes.some((lane) => lane.lane_id === lane_id))
          no("board.lane_not_empty", { lane_id, node_count: nodes.length });
      const told = (all: readonly (Wanted | Lane)[]) =>
        JSON.stringify(
          all.map((lane) => [
            ...["lane_id" in lane ? lane.lane_id : null, lane.name],
            ...[lane.stage ?? null, lane.wip_limit ?? null],
          ]),
        );
      if (told(lanes) === told(it.lanes)) return;
      const made = lanes.map((lane, at) => {
        const lane_id = fresh.lanes[at]!;
        return { ...lane, lane_id, nodes: it.lanes.find((each) => each.lane_id === lane_id)?.nodes ?? [] };
      });
      it.lanes = made;
      tell("board", board_id, "lanes_updated");
    },

    "artifact.register"(given: {
      digest: string;
      size: number;
      name?: string;
      retention?: { expire_after_ms: number };
      links: Link[];
    }) {
      const { digest, size, name, retention } = given;
      const links = once(given.links);
      const workspace_id = linkable(links);
      const actual = blobs.get(digest);
      if (actual === undefined) {
        const gone = sorted(artifacts.keys())
          .filter((id) => artifacts.get(id)!.digest === digest && artifacts.get(id)!.expired_at)
          .at(-1);
        if (gone === undefined) no("artifact.bytes_missing", { digest });
        else
          no("artifact.bytes_expired", {
            digest,
            artifact_id: gone,
            expired_at: artifacts.get(gone)!.expired_at,
          });
      }
      if (actual !== size) no("artifact.size_mismatch", { digest, size, actual });
      const expire_after_ms = retention?.expire_after_ms;
      artifacts.set(fresh.id, { workspace_id, digest, name, expire_after_ms, links });
      tell("artifact", fresh.id, "registered");
      if (expire_after_ms !== undefined) lease(`artifact/${fresh.id}`, 1, expire_after_ms, false);
    },
    "artifact.link"({ artifact_id, links }: Id<"artifact"> & { links: Link[] }) {
      const it = artifacts.get(artifact_id)!;
      const others = once(links).filter(({ id }) => !it.links.some((link) => link.id === id));
      if (others.length === 0) return;
      linkable(others, it.workspace_id);
      it.links.push(...others);
      tell("artifact", artifact_id, "linked");
    },
    "artifact.expire"({ artifact_id }: Id<"artifact">) {
      const { workspace_id, expired_at } = artifacts.get(artifact_id)!;
      if (expired_at !== undefined) return;
      open(workspace_id);
      expire(artifact_id);
    },
    "artifact.retention_over"({ artifact_id }: Id<"artifact">) {
      if (artifacts.get(artifact_id)!.expired_at === undefined) expire(artifact_id);
    },
  };
  type Writer = Id<"worktree"> & Id<"session"> & { readonly epoch: number };
  type Claim = Id<"task"> & { readonly epoch: number };
  type Dependency = Id<"task"> & { readonly depends_on_task_id: string };

  return {
    ...{ workspaces, projects, sessions, worktrees, tasks, boards, artifacts, blobs, leases, streams, kinds },
    ...{ placed, unmet, queue, since, isOpen, reach, shownAs },
    types: Object.keys(commands),
    head: () => head,
    /**
     * Give a command.
     * @param at its time, in milliseconds since the epoch
     * @param made the ids that the daemon has made up for it
     */
    run(type: string, payload: Record<string, unknown>, at: number, made: Fresh = fresh): Answer {
      [now, fresh, told] = [at, made, []];
      try {
        const kind = type.split(".")[0]!;
        const named = CREATING.includes(type) ? undefined : (payload[`${kind}_id`] as string | undefined);
        if (named !== undefined && !kinds[kind]!.has(named)) none(kind, named);
        const command: (payload: never) => unknown = commands[type as keyof typeof commands];
        const result = (command(payload as never) ?? {}) as object;
        return { events: told, result };
      } catch (error) {
        if (!(error instanceof Against)) throw error;
        return { refused: error.reason, details: error.details, or: error.or };
      }
    },
    /** The internal commands that are due, in the order in which they are given. */
    due(at: number): { type: string; payload: Record<string, unknown> }[] {
      return [...leases]
        .filter(([, lease]) => lease.ends <= at)
        .sort(([one, a], [other, b]) => a.ends - b.ends || (one < other ? -1 : 1))
        .map(([stream, { epoch }]) => {
          const [kind, id] = stream.split("/") as [keyof typeof EXPIRES, string];
          return { type: EXPIRES[kind], payload: { [`${kind}_id`]: id, epoch } };
        });
    },
    /** The daemon has started again: each holder has a whole ttl from now. */
    grace(at: number) {
      for (const lease of leases.values()) if (lease.grace) lease.ends = Math.max(lease.ends, at + lease.ttl);
    },
    /** All sessions as a tree is shown, from one down or all of them. */
    tree(
      roots: readonly string[],
      depth = 0,
    ): { session_id: string; depth: number; children: number; worst: string | null }[] {
      return sorted(roots).flatMap((session_id) => {
        const children = sorted(sessions.keys()).filter((id) => sessions.get(id)!.parent === session_id);
        const below = this.tree(children, depth + 1);
        const statuses = below.map((each) => sessions.get(each.session_id)!.status);
        const worst = BEST_TO_WORST.findLast((status) => statuses.includes(status)) ?? null;
        return [{ session_id, depth, children: children.length, worst }, ...below];
      });
    },
  };
}
export type World = ReturnType<typeof world>;

const CREATING = [
  ...["workspace.create", "project.create", "session.spawn", "session.fork", "worktree.create"],
  ...["worktree.register", "task.create", "board.create", "artifact.register"],
];
const EXPIRES = {
  session: "session.lose",
  worktree: "worktree.expire_writer",
  task: "task.expire_claim",
  artifact: "artifact.retention_over",
};
