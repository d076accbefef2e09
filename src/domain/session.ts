/**
 * session: one run of an agent, a person or a CI job, in a tree of such runs (SPEC §8). What may follow what is the table
 * `transitions`.
 *
 * The parent never changes, so no cycle can exist. While a session is live it has a lease that heartbeats renew; when it
 * runs out the session is lost, and keeps what it holds until that runs out too. Ending it gives everything back: its
 * writer locks, attachments and claims, in the same transaction. The epoch only grows: whoever sends an older one was
 * thought lost and has been replaced, and is told so before anything else.
 */
import { type Static, Type } from "typebox";
import {
  aggregate,
  born,
  command,
  event,
  type Fact,
  type Find,
  later,
  missing,
  query,
  type Read,
  type Refused,
  type RowOf,
  type Rows,
  reject,
  type Scope,
  table,
  touched,
} from "../kernel/aggregate.ts";
import {
  DEFAULT_PAGE,
  field,
  Id,
  LARGE_PAGE,
  Name,
  nullable,
  object,
  oneOf,
  pageOf,
  Seq,
  Time,
} from "../kernel/schema.ts";
import { askedTtl, DEFAULT_TTL_MS, endOf, ttl } from "./lease.ts";
import { shut } from "./scope.ts";

const Status = oneOf("starting", "running", "idle", "waiting", "lost", "completed", "failed", "cancelled");
const WaitingFor = oneOf("approval", "user_input", "policy");
const Outcome = oneOf("completed", "failed", "cancelled");
const ForkMode = oneOf("new_worktree", "same_branch", "planning_only");
const ExternalRef = Type.String({ minLength: 1, maxLength: 512 });
const Summary = Type.String({ maxLength: 4_096 });
const EndReason = Type.String({ maxLength: 128 });
/** From the smallest signed to the largest unsigned number of 32 bits: what any system gives. */
const ExitCode = Type.Integer({ minimum: -2_147_483_648, maximum: 4_294_967_295 });
const Agent = object({ name: Name, version: Type.Optional(Name), model: Type.Optional(Name) });
const Epoch = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Ttl = ttl("it lives without a heartbeat");
const AskedTtl = askedTtl("it lives without a heartbeat");
const AskedAgent = object({
  name: field(Name, "who works: a program, a person, a CI job"),
  version: Type.Optional(field(Name, "which release of the agent is at work")),
  model: Type.Optional(field(Name, "the model that the agent works with")),
});
const OwnEpoch = field(Epoch, "the epoch that the session has: an older one is refused");
const Leased = object({ epoch: Seq, expires_at: Time });

type Status = Static<typeof Status>;
type Step = "report_status" | "end" | "resume" | "lose";

/** SPEC §8: from each status to each that may follow it, and the command that leads there. */
const transitions: Readonly<Record<Status, Readonly<Partial<Record<Status, Step>>>>> = {
  starting: { running: "report_status", failed: "end", cancelled: "end", lost: "lose" },
  running: {
    idle: "report_status",
    waiting: "report_status",
    completed: "end",
    failed: "end",
    cancelled: "end",
    lost: "lose",
  },
  idle: { running: "report_status", completed: "end", cancelled: "end", lost: "lose" },
  waiting: { running: "report_status", failed: "end", cancelled: "end", lost: "lose" },
  lost: { running: "resume", failed: "end", cancelled: "end" },
  completed: {},
  failed: {},
  cancelled: {},
};

/** From the best to the worst: what a tree tells of all that is below a session is the worst. */
const severity: readonly Status[] = [
  "completed",
  "cancelled",
  "idle",
  "running",
  "starting",
  "waiting",
  "lost",
  "failed",
];

/** The statuses in which a session is there: those that it can be lost from. */
const live = severity.filter(isLive);
const notLive = severity.filter((status) => !isLive(status));

function isLive(status: Status): boolean {
  return transitions[status].lost !== undefined;
}

const shown = {
  session_id: Id,
  workspace_id: Id,
  project_id: nullable(Id),
  parent_session_id: nullable(Id),
  /** The session at the top of its tree; itself when it has no parent. */
  root_session_id: Id,
  /** How many sessions are above it. */
  depth: Seq,
  status: Status,
  waiting_for: nullable(WaitingFor),
  title: nullable(Name),
  agent_name: Name,
  agent_version: nullable(Name),
  agent_model: nullable(Name),
  external_ref: nullable(ExternalRef),
  epoch: Seq,
  ttl_ms: Seq,
  forked_from_session_id: nullable(Id),
  forked_at_seq: nullable(Seq),
  fork_mode: nullable(ForkMode),
  summary: nullable(Summary),
  exit_code: nullable(ExitCode),
  end_reason: nullable(EndReason),
  ended_at: nullable(Time),
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const sessions = table(shown, {
  key: ["session_id"],
  index: [
    ["workspace_id", "session_id"],
    ["workspace_id", "parent_session_id", "session_id"],
    ["project_id", "session_id"],
    // All that a tree needs to know of those that it does not show.
    ["root_session_id", "session_id", "parent_session_id", "status"],
    ["parent_session_id", "session_id"],
    ["status", "session_id"],
    ["external_ref", "session_id"],
  ],
});
type Row = RowOf<typeof sessions>;

declare module "../kernel/aggregate.ts" {
  interface Tables {
    sessions: RowOf<typeof sessions>;
  }
}

interface State {
  readonly status: Status;
  readonly waiting_for?: Static<typeof WaitingFor> | undefined;
  readonly epoch: number;
  readonly ttl_ms: number;
}

function invalid({ status: from }: State, to: Status): Refused {
  return reject("session.invalid_transition", { from, to, allowed: Object.keys(transitions[from]) });
}

/** Why a step cannot be taken: the table does not have it, or has it for another command. */
function barred(state: State, to: Status, by: Step): Refused | undefined {
  return transitions[state.status][to] === by ? undefined : invalid(state, to);
}

/** Why whoever sends this epoch may not speak for the session; one who sends none may. */
function stale(state: State, epoch: number | undefined): Refused | undefined {
  if (epoch === undefined || epoch === state.epoch) return undefined;
  return reject("session.stale_epoch", { epoch, current: state.epoch });
}

function scopeOf({ workspace_id, project_id }: Row): Scope {
  return { workspace_id, project_id: project_id ?? undefined };
}

/** What an ended session gives back, each decided by the stream that it is of. */
function givenBack(find: Find, session_id: string) {
  const attached = find.all("worktree_attachments", { session_id });
  const claimed = find.all("tasks", { claim_session_id: session_id });
  return [
    ...attached.map(
      ({ worktree_id }) => ({ type: "worktree.leave", payload: { worktree_id, session_id } }) as const,
    ),
    ...claimed.map(({ task_id }) => ({ type: "task.leave", payload: { task_id, session_id } }) as const),
  ];
}

/** What a resumed session still holds: each goes on under a new epoch, so whoever has the old one can do no more. */
function takenUp(find: Find, session_id: string) {
  const locked = find.all("worktrees", { writer_session_id: session_id });
  const claimed = find.all("tasks", { claim_session_id: session_id });
  return [
    ...locked.map(
      ({ worktree_id }) => ({ type: "worktree.take_up", payload: { worktree_id, session_id } }) as const,
    ),
    ...claimed.map(({ task_id }) => ({ type: "task.take_up", payload: { task_id, session_id } }) as const),
  ];
}

const beginning = {
  parent_session_id: Type.Optional(Id),
  agent: Agent,
  title: Type.Optional(Name),
  epoch: Epoch,
  ttl_ms: Ttl,
};

/** The row of a session that begins, spawned or forked. */
function begin(
  rows: Rows<Row>,
  event: Fact<{
    parent_session_id?: string;
    agent: Static<typeof Agent>;
    title?: string;
    epoch: number;
    ttl_ms: number;
  }>,
  more: Partial<Row>,
): void {
  const { subject, workspace_id, project_id, payload } = event;
  const { parent_session_id = null, agent, title, epoch, ttl_ms } = payload;
  const parent = parent_session_id === null ? undefined : rows.one({ session_id: parent_session_id });
  rows.insert({
    ...born(event),
    session_id: subject.id,
    workspace_id: workspace_id ?? "",
    project_id: project_id ?? null,
    parent_session_id,
    root_session_id: parent?.root_session_id ?? subject.id,
    depth: parent ? parent.depth + 1 : 0,
    status: "starting",
    waiting_for: null,
    title: title ?? null,
    agent_name: agent.name,
    agent_version: agent.version ?? null,
    agent_model: agent.model ?? null,
    external_ref: null,
    epoch,
    ttl_ms,
    forked_from_session_id: null,
    forked_at_seq: null,
    fork_mode: null,
    summary: null,
    exit_code: null,
    end_reason: null,
    ended_at: null,
    ...more,
  });
}

export const session = aggregate("session", { status: "starting", epoch: 0, ttl_ms: 0 } as State)({
  commands: {
    spawn: command(
      {
        workspace_id: field(Id, "the workspace that it is in"),
        project_id: Type.Optional(field(Id, "the project that it is about")),
        parent_session_id: Type.Optional(
          field(Id, "the session that began it, for ever above it in the tree"),
        ),
        agent: AskedAgent,
        title: Type.Optional(field(Name, "what it is about")),
        external_ref: Type.Optional(field(ExternalRef, "what another program calls it, to find it by")),
        ttl_ms: AskedTtl,
      },
      "Begin a session, on its own or below another; it lives as long as its heartbeats come.",
      { creates: true, result: Leased },
    ),
    report_status: command(
      {
        session_id: field(Id, "the session that does it"),
        status: field(oneOf("running", "idle", "waiting"), "what it does now"),
        waiting_for: Type.Optional(field(WaitingFor, "what it waits for, where the status is waiting")),
        epoch: Type.Optional(OwnEpoch),
      },
      "Tell what a session is doing: running, idle, or waiting for something.",
      {
        rule: {
          holds: ({ status, waiting_for }) => (status === "waiting") === (waiting_for !== undefined),
          message: "must have waiting_for if the status is waiting, and only then",
        },
      },
    ),
    fork: command(
      {
        from_session_id: field(Id, "the session that it goes on from"),
        at_seq: Type.Optional(
          field(Seq, "the position of the log that it goes on from; where the log is now when absent"),
        ),
        mode: field(ForkMode, "what is meant to become of its files: the daemon only notes it"),
        title: Type.Optional(field(Name, "what it is about")),
        agent: Type.Optional(AskedAgent),
        ttl_ms: AskedTtl,
      },
      "Begin a session that goes on from what another had come to, beside it, whatever has become of it.",
      { creates: true, result: Leased },
    ),
    resume: command(
      {
        session_id: field(Id, "the session that was lost"),
        ttl_ms: askedTtl("it lives without a heartbeat", "as long as before"),
      },
      "Take up a lost session again: it and what it still holds get new epochs, those before are void.",
      { result: Leased },
    ),
    end: command(
      {
        session_id: field(Id, "the session to end"),
        outcome: field(Outcome, "how it has ended"),
        summary: Type.Optional(field(Summary, "what came of it, in a few sentences")),
        exit_code: Type.Optional(field(ExitCode, "the exit code that it ended with, if it has one")),
        reason: Type.Optional(field(EndReason, "why it has ended, in a few words")),
        epoch: Type.Optional(OwnEpoch),
      },
      "End a session: its writer locks and claims are given back, its worktrees left.",
    ),
    heartbeat: command(
      { session_id: field(Id, "the session that is still there"), epoch: OwnEpoch },
      "Say that a session is still there: it lives for another ttl.",
      { renews: true, result: Leased },
    ),
    lose: command({ session_id: Id, epoch: Epoch }, "No heartbeat came in time.", { internal: true }),
  },
  events: {
    spawned: event(1, { ...beginning, external_ref: Type.Optional(ExternalRef) }),
    forked: event(1, { ...beginning, from_session_id: Id, at_seq: Seq, mode: ForkMode }),
    status_reported: event(1, {
      status: oneOf("running", "idle", "waiting"),
      waiting_for: Type.Optional(WaitingFor),
    }),
    lost: event(1, { epoch: Epoch }),
    resumed: event(1, { epoch: Epoch, ttl_ms: Ttl }),
    ended: event(1, {
      outcome: Outcome,
      summary: Type.Optional(Summary),
      exit_code: Type.Optional(ExitCode),
      reason: Type.Optional(EndReason),
    }),
  },
  reasons: {
    "session.invalid_transition": {
      is: "the session cannot come from its status to that one by this command",
      hint: "see 'allowed' in the details: mp session resume leads out of lost, mp session end ends, mp session report-status does the rest; an ended one can only be forked: mp session fork",
    },
    "session.stale_epoch": {
      is: "the session was resumed under a newer epoch, so this one no longer speaks for it",
      hint: "stop: another runs it now; if that is wrong, look at it with mp session get SESSION",
    },
    "session.parent_not_found": {
      is: "there is no such parent session in the workspace",
      hint: "name a session of the same workspace (mp session list --workspace WORKSPACE), or none",
    },
    "session.not_live": {
      is: "the session is lost or has ended, so it can take nothing",
      hint: "take up a lost one with mp session resume SESSION, else begin another: mp session spawn",
    },
    "session.other_workspace": {
      is: "the session is in another workspace",
      hint: "name a session of the workspace that this is about, see mp session list --workspace WORKSPACE",
    },
    "session.fork_ahead": {
      is: "the log has not come to the position to fork at",
      hint: "leave at_seq out to fork where the log is now, or give at most the head in the details",
    },
  },
  scope: (_, { workspace_id, project_id, from_session_id }, find) =>
    from_session_id === undefined
      ? { workspace_id: workspace_id as string, project_id: project_id as string | undefined }
      : scopeOf(find.one("sessions", { session_id: from_session_id as string })!),
  lease: {
    of: ({ status, epoch, ttl_ms }) => (epoch > 0 && isLive(status) ? { epoch, ttl_ms } : undefined),
    expire: "lose",
  },
  decide: {
    spawn(_, { workspace_id, project_id, ttl_ms = DEFAULT_TTL_MS, ...given }, { find, at }) {
      const refused = shut(find, { workspace_id, project_id });
      if (refused) return refused;
      const { parent_session_id } = given;
      if (
        parent_session_id !== undefined &&
        find.one("sessions", { session_id: parent_session_id })?.workspace_id !== workspace_id
      )
        return reject("session.parent_not_found", { parent_session_id });
      return {
        events: [{ type: "spawned", payload: { ...given, epoch: 1, ttl_ms } }],
        result: { epoch: 1, expires_at: later(at, ttl_ms) },
      };
    },
    report_status(state, { status, waiting_for, epoch }) {
      const refused = stale(state, epoch);
      if (refused) return refused;
      if (state.status === status && state.waiting_for === waiting_for) return [];
      const another = state.status === "waiting" && status === "waiting";
      return (
        (another ? undefined : barred(state, status, "report_status")) ?? [
          { type: "status_reported", payload: { status, waiting_for } },
        ]
      );
    },
    fork(_, { from_session_id, at_seq, mode, title, agent, ttl_ms = DEFAULT_TTL_MS }, { find, at, head }) {
      const from = find.one("sessions", { session_id: from_session_id });
      if (!from) return missing("session", from_session_id);
      const refused = shut(find, scopeOf(from));
      if (refused) return refused;
      if (at_seq !== undefined && at_seq > head) return reject("session.fork_ahead", { at_seq, head });
      const payload = {
        parent_session_id: from.parent_session_id ?? undefined,
        agent: agent ?? agentOf(from),
        title,
        epoch: 1,
        ttl_ms,
        from_session_id,
        at_seq: at_seq ?? head,
        mode,
      };
      return {
        events: [{ type: "forked", payload }],
        result: { epoch: 1, expires_at: later(at, ttl_ms) },
      };
    },
    resume(state, { ttl_ms = state.ttl_ms }, { find, id, scope, at }) {
      const refused = shut(find, scope) ?? barred(state, "running", "resume");
      if (refused) return refused;
      const epoch = state.epoch + 1;
      return {
        events: [{ type: "resumed", payload: { epoch, ttl_ms } }],
        result: { epoch, expires_at: later(at, ttl_ms) },
        also: takenUp(find, id),
      };
    },
    end(state, { outcome, summary, exit_code, reason, epoch }, { find, id }) {
      const refused = stale(state, epoch) ?? barred(state, outcome, "end");
      if (refused) return refused;
      return {
        events: [{ type: "ended", payload: { outcome, summary, exit_code, reason } }],
        also: givenBack(find, id),
      };
    },
    heartbeat(state, { epoch }, { at }) {
      const refused = stale(state, epoch);
      if (refused) return refused;
      // It says that it runs, and that cannot be.
      if (!isLive(state.status)) return invalid(state, "running");
      return { events: [], result: { epoch, expires_at: later(at, state.ttl_ms) } };
    },
    lose: (state, { epoch }) =>
      epoch === state.epoch && isLive(state.status) ? [{ type: "lost", payload: { epoch } }] : [],
  },
  evolve: {
    spawned: (_, { epoch, ttl_ms }) => ({ status: "starting", epoch, ttl_ms }),
    forked: (_, { epoch, ttl_ms }) => ({ status: "starting", epoch, ttl_ms }),
    status_reported: ({ epoch, ttl_ms }, { status, waiting_for }) => ({ status, waiting_for, epoch, ttl_ms }),
    lost: ({ epoch, ttl_ms }) => ({ status: "lost", epoch, ttl_ms }),
    resumed: (_, { epoch, ttl_ms }) => ({ status: "running", epoch, ttl_ms }),
    ended: ({ epoch, ttl_ms }, { outcome }) => ({ status: outcome, epoch, ttl_ms }),
  },
  readModel: {
    version: 1,
    tables: { sessions },
    apply: {
      spawned: (rows, event) =>
        begin(rows.sessions, event, { external_ref: event.payload.external_ref ?? null }),
      forked: (rows, event) => {
        const { from_session_id, at_seq, mode } = event.payload;
        begin(rows.sessions, event, {
          forked_from_session_id: from_session_id,
          forked_at_seq: at_seq,
          fork_mode: mode,
        });
      },
      status_reported: (rows, event) => {
        const { status, waiting_for = null } = event.payload;
        rows.sessions.update({ session_id: event.subject.id }, { status, waiting_for, ...touched(event) });
      },
      lost: (rows, event) =>
        rows.sessions.update(
          { session_id: event.subject.id },
          { status: "lost", waiting_for: null, ...touched(event) },
        ),
      resumed: (rows, event) => {
        const { epoch, ttl_ms } = event.payload;
        rows.sessions.update(
          { session_id: event.subject.id },
          { status: "running", epoch, ttl_ms, ...touched(event) },
        );
      },
      ended: (rows, event) => {
        const { outcome, summary = null, exit_code = null, reason = null } = event.payload;
        rows.sessions.update(
          { session_id: event.subject.id },
          {
            status: outcome,
            waiting_for: null,
            summary,
            exit_code,
            end_reason: reason,
            ended_at: event.timestamp,
            ...touched(event),
          },
        );
      },
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        project_id: Type.Optional(field(Id, "only those of this project")),
        parent_session_id: Type.Optional(field(Id, "only those right below this session")),
        status: Type.Optional(field(Status, "only those with this status")),
        external_ref: Type.Optional(field(ExternalRef, "only those that another program calls so")),
        live: Type.Optional(
          field(
            Type.Boolean(),
            "only those that are there: starting, running, idle or waiting; false: only the others",
          ),
        ),
      },
      pageOf(object(shown)),
      "List sessions, oldest first.",
      (read, { workspace_id, project_id, parent_session_id, status, external_ref, live: wanted, ...page }) =>
        read.page(
          "sessions",
          { workspace_id, project_id, parent_session_id, status: withStatus(status, wanted), external_ref },
          page,
        ),
    ),
    get: query(
      { session_id: field(Id, "the session to show") },
      object({
        as_of_seq: Seq,
        ...shown,
        expires_at: nullable(Time),
        attachments: Type.Array(object({ worktree_id: Id, mode: oneOf("read", "write") })),
        claims: Type.Array(object({ task_id: Id, epoch: Seq })),
      }),
      "Show one session, until when it lives, and what it holds.",
      (read, { session_id }) => {
        const row = read.one("sessions", { session_id });
        if (!row) return missing("session", session_id);
        return {
          ...row,
          expires_at: endOf(read, `session/${session_id}`) ?? null,
          attachments: read
            .all("worktree_attachments", { session_id })
            .map(({ worktree_id, mode }) => ({ worktree_id, mode })),
          claims: read
            .all("tasks", { claim_session_id: session_id })
            .map(({ task_id, claim_epoch }) => ({ task_id, epoch: claim_epoch })),
        };
      },
    ),
    tree: query(
      {
        root: Type.Optional(field(Id, "the session that the tree is shown from; all trees when absent")),
        workspace_id: Type.Optional(field(Id, "only trees of this workspace")),
      },
      pageOf(
        object({
          ...shown,
          children: Seq,
          /** The worst status of all that are below it. */
          worst_status: nullable(Status),
        }),
      ),
      "Show sessions as trees: each followed by those below it, with the depth below the first of its tree.",
      tree,
      { largest: LARGE_PAGE },
    ),
  },
});

function agentOf({ agent_name, agent_version, agent_model }: Row): Static<typeof Agent> {
  return {
    name: agent_name,
    ...(agent_version !== null && { version: agent_version }),
    ...(agent_model !== null && { model: agent_model }),
  };
}

/** The statuses that a list is asked for, by name, by whether the session is there, or by both. */
function withStatus(status: Status | undefined, wanted: boolean | undefined) {
  if (wanted === undefined) return status;
  const those = wanted ? live : notLive;
  return { oneOf: status === undefined ? those : those.filter((each) => each === status) };
}

interface Ask {
  readonly root?: string;
  readonly workspace_id?: string;
  readonly limit?: number;
  readonly cursor?: string;
}

/**
 * A page of trees (SPEC §8): every session followed by those below it, children in the order they began. The cursor is
 * the session that a page ended with: nothing is ever moved or taken out, so the next page goes on behind it.
 */
function tree(read: Read, { root, workspace_id, limit = DEFAULT_PAGE, cursor }: Ask) {
  const top = root === undefined ? undefined : read.one("sessions", { session_id: root });
  if (root !== undefined && !top) return missing("session", root);
  if (top && workspace_id !== undefined && top.workspace_id !== workspace_id)
    return reject("session.other_workspace", { session_id: top.session_id, workspace_id: top.workspace_id });

  const last = cursor === undefined ? undefined : read.one("sessions", { session_id: cursor });
  const roots = top
    ? [top.root_session_id]
    : rootsFrom(read, last?.root_session_id ?? "", workspace_id, limit);
  const walked = walk(read, roots, top?.session_id);
  const from = last === undefined ? 0 : walked.findIndex((each) => each.session_id === last.session_id) + 1;
  // What no page of this tree gave is refused as every page refuses it.
  if (cursor !== undefined && from === 0) return read.page("sessions", {}, { cursor: "" });

  const page = walked.slice(from, from + limit);
  const rows = new Map(
    read
      .all("sessions", { session_id: { oneOf: page.map((each) => each.session_id) } })
      .map((row) => [row.session_id, row]),
  );
  return {
    items: page.map(({ session_id, depth, children, worst }) =>
      Object.assign(rows.get(session_id)!, { depth, children, worst_status: severity[worst] ?? null }),
    ),
    next: from + limit < walked.length ? page.at(-1)!.session_id : null,
  };
}

/** The roots of as many trees, from one on, as hold a page behind the first of them and one session more. */
function rootsFrom(read: Read, first: string, workspace_id: string | undefined, limit: number): string[] {
  const within = workspace_id === undefined ? "" : "AND top.workspace_id = ?";
  const trees = read.sql<{ root: string; size: number }>(
    `SELECT session_id AS root,
            (SELECT count(*) FROM sessions AS each WHERE each.root_session_id = top.session_id) AS size
     FROM sessions AS top WHERE parent_session_id IS NULL AND session_id >= ? ${within}
     ORDER BY session_id LIMIT ?`,
    first,
    ...(workspace_id === undefined ? [] : [workspace_id]),
    limit + 2,
  );
  let behind = 0;
  const enough = trees.findIndex(({ size }, index) => {
    if (index > 0) behind += size;
    return behind > limit;
  });
  return (enough < 0 ? trees : trees.slice(0, enough + 1)).map((each) => each.root);
}

interface Walked {
  readonly session_id: string;
  readonly depth: number;
  /** How many sessions are right below it. */
  children: number;
  /** The place in `severity` of the worst below it; -1 when nothing is. */
  worst: number;
}

/** Whole trees in pre-order, or the part of one from `top` down. One small read, then arithmetic: it is linear. */
function walk(read: Read, roots: readonly string[], top: string | undefined): Walked[] {
  const rows = read.sql<Pick<Row, "session_id" | "parent_session_id" | "status">>(
    `SELECT session_id, parent_session_id, status FROM sessions
     WHERE root_session_id IN (SELECT value FROM json_each(?)) ORDER BY root_session_id DESC, session_id DESC`,
    JSON.stringify(roots),
  );
  type Node = (typeof rows)[number];
  const below = new Map<string | null, Node[]>();
  for (const row of rows) {
    const parent = row.session_id === top ? null : row.parent_session_id;
    const siblings = below.get(parent);
    if (siblings) siblings.push(row);
    else below.set(parent, [row]);
  }
  const found: Walked[] = [];
  const above: number[] = [];
  const statuses: number[] = [];
  // The newest lies at the bottom, so what is taken from the top is the oldest.
  const open = (below.get(null) ?? [])
    .filter((row) => top === undefined || row.session_id === top)
    .map((row) => ({ row, parent: -1 }));
  for (let next = open.pop(); next; next = open.pop()) {
    const { row, parent } = next;
    const index = found.length;
    const children = below.get(row.session_id) ?? [];
    const depth = parent < 0 ? 0 : found[parent]!.depth + 1;
    found.push({ session_id: row.session_id, depth, children: children.length, worst: -1 });
    above.push(parent);
    statuses.push(severity.indexOf(row.status));
    for (const child of children) open.push({ row: child, parent: index });
  }
  // Whoever is below stands behind: from the end each has heard of all below it before it tells its parent.
  for (let index = found.length - 1; index > 0; index--) {
    const parent = found[above[index]!];
    if (parent) parent.worst = Math.max(parent.worst, found[index]!.worst, statuses[index]!);
  }
  return found;
}
