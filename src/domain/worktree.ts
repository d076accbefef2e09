/**
 * worktree: a git worktree, or a plain folder, that sessions work in (SPEC §8). Many attach, one writes.
 *
 * Always holds: a place (host and path) belongs to one worktree until that one has failed or is removed; whoever holds the
 * writer lock is attached for write; its epoch grows with every holder, so that a stale one is told apart for ever. What
 * git does is begun by `*_started`, done outside (daemon/git-effects.ts) and told by the internal `record_*` commands. A registered
 * worktree is only ever looked at: removing it forgets it and leaves its files.
 */
import { Type } from "typebox";
import {
  aggregate,
  between,
  born,
  type Context,
  command,
  event,
  type Find,
  later,
  missing,
  query,
  type Refused,
  type RowOf,
  reject,
  type Scope,
  table,
  touched,
} from "../kernel/aggregate.ts";
import { field, Id, nullable, object, oneOf, Path, pageOf, Seq, Time } from "../kernel/schema.ts";
import { askedTtl, DEFAULT_TTL_MS, endOf, ttl } from "./lease.ts";
import { shut, unfit } from "./scope.ts";

const Status = oneOf("creating", "present", "missing", "failed", "removing", "removed");
const Mode = oneOf("read", "write");
const Host = Type.String({ minLength: 1, maxLength: 255 });
/** What git said when it could not do what was asked. */
const Said = Type.String({ maxLength: 4_096 });
const Commit = Type.String({ maxLength: 64 });
const Reason = Type.String({ minLength: 1, maxLength: 1_024 });
const Ttl = ttl("the lock lasts without a renewal");

/** What no text that git gets may hold: controls, also those that turn the text of a line around, and what git refuses. */
const never = "\\u0000-\\u0020\\u007f-\\u009f\\u202a-\\u202e\\u2066-\\u2069:?*\\[\\\\";

/** A branch by the rules of `git check-ref-format --branch`; it can never be taken for an option. */
const Branch = Type.String({
  minLength: 1,
  maxLength: 255,
  pattern:
    "^(?![\\s\\S]{256})(?![-/.]|@$|HEAD$)(?![\\s\\S]*(?:\\.\\.|@\\{|//|/\\.|\\.lock(?:/|$)))" +
    `[^${never}~^]+(?<![/.])$`,
  description: "a branch name that git takes, not starting with '-'",
});

/** Where a branch begins: anything that names a commit, except what could be taken for an option. */
const Base = Type.String({
  minLength: 1,
  maxLength: 255,
  pattern: `^(?![\\s\\S]{256})(?!-)[^${never}]+$`,
  description: "a branch, tag or commit, not starting with '-'",
});

const shown = {
  worktree_id: Id,
  workspace_id: Id,
  project_id: Id,
  host: Host,
  path: Path,
  /** Null for a plain folder, and for a worktree with a detached HEAD. */
  branch: nullable(Type.String({ maxLength: 255 })),
  origin: oneOf("created", "registered"),
  status: Status,
  failure: nullable(Said),
  /** The commit that the last look at git found. */
  commit_sha: nullable(Commit),
  writer_status: oneOf("free", "held", "expired"),
  /** Who holds the writer lock; null when nobody does. */
  writer_session_id: nullable(Id),
  /** The last epoch that was given out; 0 when none was. */
  writer_epoch: Seq,
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const worktrees = table(
  {
    ...shown,
    /** `host:path` while the place is taken, null once it is free again: its uniqueness is the rule. */
    place: nullable(Type.String()),
    /** The status to go back to when a removal fails; null while none is under way. */
    status_before: nullable(Status),
    /** How many looks at git have begun and have no outcome yet. */
    reconciling: Seq,
  },
  {
    key: ["worktree_id"],
    unique: [["place"]],
    index: [
      ["workspace_id", "worktree_id"],
      ["project_id", "worktree_id"],
      ["status", "worktree_id"],
      ["path", "worktree_id"],
      ["writer_session_id"],
    ],
    hidden: ["place", "status_before", "reconciling"],
  },
);

const worktree_attachments = table(
  {
    worktree_id: Id,
    session_id: Id,
    mode: Mode,
    attached_at: Time,
  },
  { key: ["worktree_id", "session_id"], index: [["session_id", "worktree_id"]] },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    worktrees: RowOf<typeof worktrees>;
    worktree_attachments: RowOf<typeof worktree_attachments>;
  }
  interface Calls {
    /** A session has ended: release its writer lock, if it has it, and detach it. */
    "worktree.leave": { readonly worktree_id: string; readonly session_id: string };
    /** A session was resumed: the writer lock that it still holds gets a new epoch. */
    "worktree.take_up": { readonly worktree_id: string; readonly session_id: string };
  }
}

interface Lock {
  readonly status: "free" | "held" | "expired";
  /** The last epoch that was given out. */
  readonly epoch: number;
  readonly ttl_ms: number;
  /** Who holds it, or held it last. */
  readonly session_id?: string;
}

interface Worktree {
  readonly status: "absent" | "creating" | "present" | "missing" | "failed" | "removing" | "removed";
  readonly origin: "created" | "registered";
  /** The status to go back to when a removal fails. */
  readonly before: "present" | "missing";
  readonly lock: Lock;
}

const absent: Worktree = {
  status: "absent",
  origin: "created",
  before: "present",
  lock: { status: "free", epoch: 0, ttl_ms: DEFAULT_TTL_MS },
};

const place = (host: string, path: string) => `${host}:${path}`;

/** Why a worktree cannot come into being at a place of a project. */
function unplaceable(find: Find, host: string, project_id: string, path: string): Refused | undefined {
  const project = find.one("projects", { project_id });
  if (!project) return missing("project", project_id);
  const refused = shut(find, { workspace_id: project.workspace_id, project_id });
  if (refused) return refused;
  const there = find.one("worktrees", { place: place(host, path) });
  return there && reject("worktree.path_taken", { worktree_id: there.worktree_id, status: there.status });
}

/** Why a session can take nothing in a worktree: the parents first, then the session, then the worktree. */
function barred(find: Find, scope: Scope, { status }: Worktree, session_id: string): Refused | undefined {
  return (
    shut(find, scope) ??
    unfit(find, session_id, scope.workspace_id) ??
    (status === "present" ? undefined : reject("worktree.not_present", { status }))
  );
}

/** How a session is attached to a worktree; undefined when it is not. */
function modeOf(find: Find, worktree_id: string, session_id: string): "read" | "write" | undefined {
  return find.one("worktree_attachments", { worktree_id, session_id })?.mode;
}

/** Why a session may not have the writer lock, whoever has it now. */
function barredFromLock(
  { find, scope, id }: Context,
  state: Worktree,
  session_id: string,
): Refused | undefined {
  const refused = barred(find, scope, state, session_id);
  if (refused) return refused;
  const mode = modeOf(find, id, session_id) ?? null;
  return mode === "write"
    ? undefined
    : reject("worktree.not_attached", { worktree_id: id, session_id, mode });
}

/** Until when the lock of a worktree is held, RFC 3339; the present where it is not known. */
function heldUntil(find: Pick<Find, "one">, worktree_id: string, at: string): string {
  return endOf(find, `worktree/${worktree_id}`) ?? at;
}

/** The next epoch of a lock: above all that were ever given out at its place, also by worktrees that are gone from there. */
function nextEpoch({ find, id }: Context, { lock }: Worktree): number {
  if (lock.epoch > 0) return lock.epoch + 1;
  const { host, path } = find.one("worktrees", { worktree_id: id })!;
  const before = find.all("worktrees", { path }).filter((each) => each.host === host);
  return 1 + Math.max(...before.map((each) => each.writer_epoch));
}

function writerHeld(
  worktree_id: string,
  holder: string,
  epoch: number,
  expires_at: string,
  at: string,
): Refused {
  const retry_after_ms = Math.max(0, between(at, expires_at));
  return reject("worktree.writer_held", { worktree_id, holder, epoch, expires_at, retry_after_ms });
}

const stale = (epoch: number, current: number) => reject("worktree.stale_epoch", { epoch, current });

/** The release of the lock that a session holds; nothing when it holds none. */
function released({ lock: { status, epoch, session_id: holder } }: Worktree, session_id: string) {
  return status === "held" && holder === session_id
    ? [{ type: "writer_released" as const, payload: { session_id, epoch } }]
    : [];
}

/** The events by which a session goes: its lock first. */
function going({ find, id }: Context, state: Worktree, session_id: string) {
  if (modeOf(find, id, session_id) === undefined) return [];
  return [...released(state, session_id), { type: "detached" as const, payload: { session_id } }];
}

/** How many sessions a refusal names. */
const MAX_NAMED = 100;

const held = object({ epoch: Seq, expires_at: Time });
const one = { worktree_id: Id };
const locked = { worktree_id: field(Id, "the worktree that the lock is of") };
const OwnEpoch = field(Seq, "the epoch that the lock was taken with: an older one is refused");
const attachment = object({ session_id: Id, mode: Mode, attached_at: Time });
const writer = nullable(object({ session_id: Id, epoch: Seq, expires_at: Time }));

export const worktree = aggregate(
  "worktree",
  absent,
)({
  commands: {
    create: command(
      {
        project_id: field(Id, "the project whose repository it is of"),
        path: field(Path, "where it will be"),
        branch: field(Branch, "the branch that is checked out there, a new one if need be"),
        base: Type.Optional(field(Base, "where a new branch begins; at the repository's HEAD when absent")),
      },
      "Create a git worktree of a project's repository; a branch that is not there begins at `base`, else at its HEAD.",
      { creates: true },
    ),
    register: command(
      {
        project_id: field(Id, "the project that it is of"),
        path: field(Path, "where it is"),
        branch: Type.Optional(field(Branch, "the branch that is checked out there")),
      },
      "Register a worktree or folder that is there already; its files stay when it is removed.",
      { creates: true },
    ),
    remove: command(
      {
        worktree_id: field(Id, "the worktree to remove"),
        force: Type.Optional(field(Type.Boolean(), "also with changes that no commit has: they are lost")),
      },
      "Remove a worktree that nobody is attached to; `force`: even with changes that no commit has.",
    ),
    reconcile: command(
      { worktree_id: field(Id, "the worktree to look at") },
      "Compare a worktree with what git lists, and note whether it is there.",
    ),
    attach: command(
      {
        worktree_id: field(Id, "the worktree to work in"),
        session_id: field(Id, "the session that will work there"),
        mode: field(Mode, "what it may do there: only write may ask for the writer lock"),
      },
      "Attach a session; `write`: it may ask for the writer lock.",
    ),
    detach: command(
      {
        worktree_id: field(Id, "the worktree to leave"),
        session_id: field(Id, "the session that leaves"),
      },
      "Detach a session; the writer lock goes with it.",
    ),
    lock_writer: command(
      {
        worktree_id: field(Id, "the worktree to write in"),
        session_id: field(Id, "the session that will write, attached for write"),
        ttl_ms: askedTtl("the lock lasts without a renewal"),
      },
      "Take the writer lock for an attached session.",
      { result: held },
    ),
    renew_writer: command(
      { ...locked, session_id: field(Id, "the session that holds the lock"), epoch: OwnEpoch },
      "Keep the writer lock for another ttl from now.",
      { renews: true, result: held },
    ),
    release_writer: command(
      { ...locked, session_id: field(Id, "the session that holds the lock"), epoch: OwnEpoch },
      "Give the writer lock back.",
    ),
    steal_writer: command(
      {
        ...locked,
        session_id: field(Id, "the session that takes it, attached for write"),
        expected_epoch: field(Seq, "the epoch of the lock that is taken away: another one is refused"),
        reason: field(Reason, "why it is taken away: stays in the log"),
      },
      "Take the writer lock away from whoever holds it, with a reason that stays in the log.",
      { result: held },
    ),
    expire_writer: command({ ...one, epoch: Seq }, "The writer lock has run out.", { internal: true }),
    leave: command({ ...one, session_id: Id }, "A session has ended.", { internal: true }),
    take_up: command({ ...one, session_id: Id }, "A session was resumed.", { internal: true }),
    record_created: command(
      { ...one, branch: Type.Optional(Type.String({ maxLength: 255 })), commit: Type.Optional(Commit) },
      "Git has made it.",
      { internal: true },
    ),
    record_creation_failed: command({ ...one, message: Said }, "Git could not make it.", { internal: true }),
    record_removed: command(one, "Git has removed it.", { internal: true }),
    record_removal_failed: command({ ...one, message: Said }, "Git could not remove it.", { internal: true }),
    record_reconciled: command(
      {
        ...one,
        presence: oneOf("present", "missing"),
        branch: Type.Optional(Type.String({ maxLength: 255 })),
        commit: Type.Optional(Commit),
      },
      "What the look at git has found.",
      { internal: true },
    ),
  },
  events: {
    creation_started: event(1, { host: Host, path: Path, branch: Branch, base: Type.Optional(Base) }),
    created: event(1, {
      branch: Type.Optional(Type.String({ maxLength: 255 })),
      commit: Type.Optional(Commit),
    }),
    creation_failed: event(1, { message: Said }),
    registered: event(1, { host: Host, path: Path, branch: Type.Optional(Branch) }),
    removal_started: event(1, { force: Type.Boolean() }),
    removed: event(1, {}),
    removal_failed: event(1, { message: Said }),
    reconciliation_started: event(1, {}),
    reconciled: event(1, {
      presence: oneOf("present", "missing"),
      branch: Type.Optional(Type.String({ maxLength: 255 })),
      commit: Type.Optional(Commit),
    }),
    attached: event(1, { session_id: Id, mode: Mode }),
    detached: event(1, { session_id: Id }),
    writer_locked: event(1, { session_id: Id, epoch: Seq, ttl_ms: Ttl }),
    writer_released: event(1, { session_id: Id, epoch: Seq }),
    writer_expired: event(1, { session_id: Id, epoch: Seq }),
    writer_stolen: event(1, {
      session_id: Id,
      /** Absent when nobody held it. */
      from_session_id: Type.Optional(Id),
      epoch: Seq,
      expected_epoch: Seq,
      ttl_ms: Ttl,
      reason: Reason,
    }),
  },
  reasons: {
    "worktree.path_taken": {
      is: "another worktree has that path on this machine",
      hint: "use that worktree, see mp worktree get WORKTREE, or give another path; one that is missing gives its place free with mp worktree remove WORKTREE",
    },
    "worktree.no_repository": {
      is: "the project has no repository to make a worktree of",
      hint: "create a project with a repo_path, or register a folder: mp worktree register",
    },
    "worktree.not_present": {
      is: "the worktree is not there to be worked in",
      hint: "see its status: mp worktree get WORKTREE; look at the disk again: mp worktree reconcile WORKTREE",
    },
    "worktree.other_host": {
      is: "the worktree is on another machine than the daemon",
      hint: "reconcile it where it is, or register its path here: mp worktree register",
    },
    "worktree.has_attachments": {
      is: "sessions are attached to the worktree",
      hint: "end them, or detach them: mp worktree detach WORKTREE --session SESSION",
    },
    "worktree.not_attached": {
      is: "the session is not attached for write",
      hint: "attach it first: mp worktree attach WORKTREE write --session SESSION",
    },
    "worktree.writer_held": {
      is: "another session holds the writer lock",
      hint: "wait until it is released or runs out, see 'expires_at'; who it is: mp session get HOLDER; to take it away from one that hangs: mp worktree steal-writer WORKTREE 'why' --session SESSION --expected-epoch EPOCH",
    },
    "worktree.stale_epoch": {
      is: "the writer lock is not held under that epoch",
      hint: "it was released, ran out or was stolen: stop writing, then take it again: mp worktree lock-writer",
    },
  },
  scope: (_, { project_id }, find) => ({
    workspace_id: find.one("projects", { project_id: project_id as string })?.workspace_id,
    project_id: project_id as string,
  }),
  lease: {
    of: ({ lock: { status, epoch, ttl_ms } }) => (status === "held" ? { epoch, ttl_ms } : undefined),
    expire: "expire_writer",
  },
  decide: {
    create(_, { project_id, path, branch, base }, { find, host }) {
      const refused = unplaceable(find, host, project_id, path);
      if (refused) return refused;
      const { repo_path, git_common_dir } = find.one("projects", { project_id })!;
      if ((repo_path ?? git_common_dir) === null) return reject("worktree.no_repository", { project_id });
      return [{ type: "creation_started", payload: { host, path, branch, base } }];
    },
    register: (_, { project_id, path, branch }, { find, host }) =>
      unplaceable(find, host, project_id, path) ?? [{ type: "registered", payload: { host, path, branch } }],
    remove(state, { force = false }, { find, id, scope: { workspace_id } }) {
      if (state.status === "removed" || state.status === "removing") return [];
      // An archived project may be tidied up: it can never be opened again.
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      if (state.status === "creating") return reject("worktree.not_present", { status: state.status });
      const sessions = find
        .all("worktree_attachments", { worktree_id: id }, { limit: MAX_NAMED })
        .map(({ session_id }) => session_id);
      if (sessions.length > 0) return reject("worktree.has_attachments", { sessions });
      return state.origin === "registered" || state.status === "failed"
        ? [{ type: "removed", payload: {} }]
        : [{ type: "removal_started", payload: { force } }];
    },
    reconcile({ status }, _, { find, id, host: here, scope: { workspace_id } }) {
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      const { host } = find.one("worktrees", { worktree_id: id })!;
      if (host !== here) return reject("worktree.other_host", { host, here });
      return status === "present" || status === "missing"
        ? [{ type: "reconciliation_started", payload: {} }]
        : reject("worktree.not_present", { status });
    },
    attach(state, { session_id, mode }, { find, scope, id }) {
      const refused = barred(find, scope, state, session_id);
      if (refused) return refused;
      if (modeOf(find, id, session_id) === mode) return [];
      return [...released(state, session_id), { type: "attached", payload: { session_id, mode } }];
    },
    detach: (state, { session_id }, context) =>
      context.find.one("sessions", { session_id })
        ? going(context, state, session_id)
        : missing("session", session_id),
    lock_writer(state, { session_id, ttl_ms = DEFAULT_TTL_MS }, context) {
      const refused = barredFromLock(context, state, session_id);
      if (refused) return refused;
      const { find, id, at } = context;
      const { lock } = state;
      if (lock.status === "held") {
        const expires_at = heldUntil(find, id, at);
        return lock.session_id === session_id
          ? { events: [], result: { epoch: lock.epoch, expires_at } }
          : writerHeld(id, lock.session_id!, lock.epoch, expires_at, at);
      }
      const epoch = nextEpoch(context, state);
      return {
        events: [{ type: "writer_locked", payload: { session_id, epoch, ttl_ms } }],
        result: { epoch, expires_at: later(at, ttl_ms) },
      };
    },
    renew_writer({ lock }, { session_id, epoch }, { find, id, at }) {
      if (lock.status !== "held" || lock.epoch !== epoch) return stale(epoch, lock.epoch);
      if (lock.session_id !== session_id)
        return writerHeld(id, lock.session_id!, epoch, heldUntil(find, id, at), at);
      return { events: [], result: { epoch, expires_at: later(at, lock.ttl_ms) } };
    },
    release_writer({ lock, status }, { session_id, epoch }, { find, id, at }) {
      if (lock.session_id === undefined || lock.epoch !== epoch) return stale(epoch, lock.epoch);
      if (lock.session_id !== session_id)
        return lock.status === "held"
          ? writerHeld(id, lock.session_id, epoch, heldUntil(find, id, at), at)
          : stale(epoch, lock.epoch);
      // Who had it last may give it back after it ran out: nobody has had it since.
      return lock.status === "free" || status === "removed"
        ? []
        : [{ type: "writer_released", payload: { session_id, epoch } }];
    },
    steal_writer(state, { session_id, expected_epoch, reason }, context) {
      const refused = barredFromLock(context, state, session_id);
      if (refused) return refused;
      const { find, id, at } = context;
      const { lock } = state;
      if (lock.epoch !== expected_epoch) return stale(expected_epoch, lock.epoch);
      if (lock.status === "held" && lock.session_id === session_id)
        return { events: [], result: { epoch: lock.epoch, expires_at: heldUntil(find, id, at) } };
      const epoch = nextEpoch(context, state);
      const from_session_id = lock.status === "held" ? lock.session_id : undefined;
      return {
        events: [
          {
            type: "writer_stolen",
            payload: { session_id, from_session_id, epoch, expected_epoch, ttl_ms: DEFAULT_TTL_MS, reason },
          },
        ],
        result: { epoch, expires_at: later(at, DEFAULT_TTL_MS) },
      };
    },
    expire_writer: ({ lock }, { epoch }) =>
      lock.status === "held" && lock.epoch === epoch
        ? [{ type: "writer_expired", payload: { session_id: lock.session_id!, epoch } }]
        : [],
    leave: (state, { session_id }, context) => going(context, state, session_id),
    take_up: ({ lock: { status, session_id: holder, epoch, ttl_ms } }, { session_id }) =>
      status === "held" && holder === session_id
        ? [{ type: "writer_locked", payload: { session_id, epoch: epoch + 1, ttl_ms } }]
        : [],
    // An outcome is recorded once: told again, or after a start has settled it, it changes nothing.
    record_created: ({ status }, { branch, commit }) =>
      status === "creating" ? [{ type: "created", payload: { branch, commit } }] : [],
    record_creation_failed: ({ status }, { message }) =>
      status === "creating" ? [{ type: "creation_failed", payload: { message } }] : [],
    record_removed: ({ status }) => (status === "removing" ? [{ type: "removed", payload: {} }] : []),
    record_removal_failed: ({ status }, { message }) =>
      status === "removing" ? [{ type: "removal_failed", payload: { message } }] : [],
    record_reconciled: ({ status }, { presence, branch, commit }) =>
      status === "present" || status === "missing"
        ? [{ type: "reconciled", payload: { presence, branch, commit } }]
        : [],
  },
  evolve: {
    creation_started: (state) => ({ ...state, status: "creating", origin: "created" }),
    created: (state) => ({ ...state, status: "present" }),
    creation_failed: (state) => ({ ...state, status: "failed" }),
    registered: (state) => ({ ...state, status: "present", origin: "registered" }),
    removal_started: (state) => ({
      ...state,
      status: "removing",
      before: state.status === "missing" ? "missing" : "present",
    }),
    removed: (state) => ({ ...state, status: "removed" }),
    removal_failed: (state) => ({ ...state, status: state.before }),
    reconciliation_started: (state) => state,
    reconciled: (state, { presence }) => ({ ...state, status: presence }),
    // Who is attached is looked up where it is needed: there may be thousands.
    attached: (state) => state,
    detached: (state) => state,
    writer_locked: (state, { session_id, epoch, ttl_ms }) => ({
      ...state,
      lock: { status: "held", session_id, epoch, ttl_ms },
    }),
    writer_released: (state) => ({ ...state, lock: { ...state.lock, status: "free" } }),
    writer_expired: (state) => ({ ...state, lock: { ...state.lock, status: "expired" } }),
    writer_stolen: (state, { session_id, epoch, ttl_ms }) => ({
      ...state,
      lock: { status: "held", session_id, epoch, ttl_ms },
    }),
  },
  readModel: {
    version: 1,
    tables: { worktrees, worktree_attachments },
    apply: {
      creation_started: (rows, event) =>
        rows.worktrees.insert({ ...begun(event), origin: "created", status: "creating" }),
      created(rows, event) {
        const { branch = null, commit = null } = event.payload;
        rows.worktrees.update(its(event), {
          status: "present",
          branch,
          commit_sha: commit,
          ...touched(event),
        });
      },
      creation_failed: (rows, event) =>
        rows.worktrees.update(its(event), {
          status: "failed",
          failure: event.payload.message,
          place: null,
          ...touched(event),
        }),
      registered: (rows, event) =>
        rows.worktrees.insert({ ...begun(event), origin: "registered", status: "present" }),
      removal_started(rows, event) {
        const status_before = rows.worktrees.one(its(event))?.status ?? null;
        rows.worktrees.update(its(event), {
          status: "removing",
          status_before,
          // A look that is not over by now says nothing any more.
          reconciling: 0,
          failure: null,
          ...touched(event),
        });
      },
      removed: (rows, event) =>
        rows.worktrees.update(its(event), {
          status: "removed",
          status_before: null,
          reconciling: 0,
          place: null,
          ...touched(event),
        }),
      removal_failed(rows, event) {
        const status = rows.worktrees.one(its(event))?.status_before ?? "present";
        rows.worktrees.update(its(event), {
          status,
          status_before: null,
          failure: event.payload.message,
          ...touched(event),
        });
      },
      reconciliation_started(rows, event) {
        const reconciling = (rows.worktrees.one(its(event))?.reconciling ?? 0) + 1;
        rows.worktrees.update(its(event), { reconciling, ...touched(event) });
      },
      reconciled(rows, event) {
        const { presence, branch = null, commit = null } = event.payload;
        const before = rows.worktrees.one(its(event))?.reconciling ?? 0;
        rows.worktrees.update(its(event), {
          status: presence,
          failure: null,
          reconciling: Math.max(0, before - 1),
          // What is not there any more is still known by its last branch.
          ...(presence === "present" && { branch, commit_sha: commit }),
          ...touched(event),
        });
      },
      attached(rows, event) {
        const { session_id, mode } = event.payload;
        const which = { ...its(event), session_id };
        if (rows.worktree_attachments.one(which)) rows.worktree_attachments.update(which, { mode });
        else rows.worktree_attachments.insert({ ...which, mode, attached_at: event.timestamp });
        rows.worktrees.update(its(event), touched(event));
      },
      detached(rows, event) {
        const { session_id } = event.payload;
        rows.worktree_attachments.delete({ ...its(event), session_id });
        rows.worktrees.update(its(event), touched(event));
      },
      writer_locked: (rows, event) => rows.worktrees.update(its(event), heldFrom(event)),
      writer_released: (rows, event) =>
        rows.worktrees.update(its(event), {
          writer_status: "free",
          writer_session_id: null,
          ...touched(event),
        }),
      writer_expired: (rows, event) =>
        rows.worktrees.update(its(event), {
          writer_status: "expired",
          writer_session_id: null,
          ...touched(event),
        }),
      writer_stolen: (rows, event) => rows.worktrees.update(its(event), heldFrom(event)),
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        project_id: Type.Optional(field(Id, "only those of this project")),
        path: Type.Optional(field(Path, "only those that are or were there")),
        status: Type.Optional(field(Status, "only those with this status")),
      },
      pageOf(object(shown)),
      "List worktrees, oldest first.",
      (read, { workspace_id, project_id, path, status, ...page }) =>
        read.page("worktrees", { workspace_id, project_id, path, status }, page),
    ),
    get: query(
      { worktree_id: field(Id, "the worktree to show") },
      object({ as_of_seq: Seq, ...shown, attachments: Type.Array(attachment), writer }),
      "Show one worktree, who is attached to it and who writes.",
      (read, { worktree_id }, at) => {
        const row = read.one("worktrees", { worktree_id });
        if (!row) return missing("worktree", worktree_id);
        const attachments = read
          .all("worktree_attachments", { worktree_id })
          .map(({ session_id, mode, attached_at }) => ({ session_id, mode, attached_at }));
        return { ...row, attachments, writer: writerOf(read, row, at) };
      },
    ),
    check: query(
      {
        path: field(Path, "where one wants to write"),
        epoch: Type.Optional(field(Seq, "the epoch that one took the lock with: an older one is refused")),
        session_id: Type.Optional(field(Id, "the session that wants to write")),
      },
      object({
        as_of_seq: Seq,
        worktree_id: nullable(Id),
        path: nullable(Path),
        allowed: Type.Literal(true),
        writer,
      }),
      "Whether one may write at a path: refused when another session holds the lock of its worktree, or the epoch is stale.",
      (read, { path, epoch, session_id }, at) => {
        // The nearest one whose place is taken; of two machines that share a log, the one that came last.
        const row = read
          .all("worktrees", { path: { oneOf: atOrAbove(path) }, place: { above: "" } })
          .reduce<RowOf<typeof worktrees> | undefined>(
            (best, each) => (best && best.path.length > each.path.length ? best : each),
            undefined,
          );
        if (!row)
          return epoch === undefined
            ? { worktree_id: null, path: null, allowed: true, writer: null }
            : stale(epoch, 0);
        const now = writerOf(read, row, at);
        if (epoch !== undefined && epoch !== now?.epoch) return stale(epoch, row.writer_epoch);
        // The holder may say who it is instead of its epoch; whoever says both must be right in both.
        const itself = session_id === undefined ? epoch !== undefined : session_id === now?.session_id;
        if (now && !itself) return writerHeld(row.worktree_id, now.session_id, now.epoch, now.expires_at, at);
        return { worktree_id: row.worktree_id, path: row.path, allowed: true, writer: now };
      },
    ),
  },
});

type Row = RowOf<typeof worktrees>;
type Of = Parameters<typeof touched>[0];

function its({ subject }: Of) {
  return { worktree_id: subject.id };
}

function begun(event: Of & { payload: { host: string; path: string; branch?: string } }) {
  const { host, path, branch } = event.payload;
  return {
    ...born(event),
    ...its(event),
    workspace_id: event.workspace_id ?? "",
    project_id: event.project_id ?? "",
    host,
    path,
    branch: branch ?? null,
    failure: null,
    commit_sha: null,
    writer_status: "free" as const,
    writer_session_id: null,
    writer_epoch: 0,
    place: place(host, path),
    status_before: null,
    reconciling: 0,
  };
}

function heldFrom(event: Of & { payload: { session_id: string; epoch: number } }) {
  const { session_id, epoch } = event.payload;
  return {
    writer_status: "held" as const,
    writer_session_id: session_id,
    writer_epoch: epoch,
    ...touched(event),
  };
}

/** Who holds the lock as queries show it; null when nobody does. */
function writerOf(find: Pick<Find, "one">, row: Row, at: string) {
  const { worktree_id, writer_session_id: session_id, writer_epoch: epoch } = row;
  return session_id === null ? null : { session_id, epoch, expires_at: heldUntil(find, worktree_id, at) };
}

/** A path and every folder above it. */
function atOrAbove(path: string): string[] {
  const [separator, root] = path.startsWith("/") ? ["/", "/"] : ["\\", path.slice(0, 3)];
  const found = [path];
  for (let at = path.lastIndexOf(separator); at >= root.length; at = path.lastIndexOf(separator, at - 1))
    found.push(path.slice(0, at));
  return path === root ? found : [...found, root];
}
