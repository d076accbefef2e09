/**
 * task: a piece of work, done by one session at a time (SPEC §8). What may follow what is the table `transitions`.
 *
 * A task is ready when it is queued and all that it depends on has succeeded; `task_queue` holds those that are ready and
 * no others, in the order in which they are claimed, so what is finished or waits costs a claim nothing. A claim is a lease
 * with an epoch: whoever holds it says so with each word about the work, and is refused once it is over. Dependencies never
 * form a cycle. Left out on purpose: nothing here knows what the work is, or does any.
 */
import { Type } from "typebox";
import {
  aggregate,
  between,
  born,
  command,
  event,
  type Find,
  later,
  missing,
  query,
  type Refused,
  reject,
  touched,
} from "../kernel/aggregate.ts";
import { field, Id, LARGE_PAGE, Name, nullable, object, oneOf, pageOf, Seq, Time } from "../kernel/schema.ts";
import { askedTtl, DEFAULT_TTL_MS, endOf, ttl } from "./lease.ts";
import { shut, unfit } from "./scope.ts";
import { wayFrom } from "./task-cycle.ts";
import { foremost, nextTime } from "./task-queue.ts";
import {
  attempt,
  Body,
  begin,
  change,
  claimOver,
  DEFAULT_PRIORITY,
  depend,
  endAttempt,
  Failure,
  goOn,
  isDone,
  isEarly,
  Priority,
  rowOf,
  Status,
  shown,
  sortedJson,
  tables,
  Words,
} from "./task-rows.ts";
import { get, MAX_UNMET, overdueOnes, ready, Some, Why } from "./task-views.ts";

const DEFAULT_ATTEMPTS = 3;
/** What a task can depend on from the start: more does not fit into its event. */
const MAX_DEPENDS_ON = 1_000;
/** Any JSON object: what came of the work, in the words of who did it. */
const Result = Type.Object({});
const Attempts = Type.Integer({ minimum: 1, maximum: 1_000 });
const Epoch = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Ttl = ttl("the claim lasts without a renewal");
const BlockedOn = oneOf("policy", "approval", "user_input");

type Step =
  | "claim"
  | "release"
  | "complete"
  | "fail"
  | "block"
  | "unblock"
  | "pause"
  | "resume"
  | "retry"
  | "cancel";
type Followers = Readonly<Partial<Record<Status, Step>>>;

const fromPause = (on: "resume" | "unblock"): Followers => ({
  queued: on,
  running: on,
  cancelled: "cancel",
  failed: "fail",
});

/** SPEC §8: from each status to each that may follow it, and the command that leads there. */
const transitions: Readonly<Record<Status, Followers>> = {
  queued: {
    running: "claim",
    paused: "pause",
    cancelled: "cancel",
    blocked_by_policy: "block",
    blocked_by_approval: "block",
  },
  running: {
    succeeded: "complete",
    failed: "fail",
    cancelled: "cancel",
    paused: "pause",
    awaiting_user_input: "block",
    blocked_by_policy: "block",
    blocked_by_approval: "block",
    queued: "release",
  },
  paused: fromPause("resume"),
  awaiting_user_input: fromPause("unblock"),
  blocked_by_policy: fromPause("unblock"),
  blocked_by_approval: fromPause("unblock"),
  failed: { queued: "retry" },
  succeeded: {},
  cancelled: {},
};

const blockedBy = {
  policy: "blocked_by_policy",
  approval: "blocked_by_approval",
  user_input: "awaiting_user_input",
} as const;

declare module "../kernel/aggregate.ts" {
  interface Calls {
    /** A session has ended: give back the claim it has on the task. */
    "task.leave": { readonly task_id: string; readonly session_id: string };
    /** A session was resumed: the claim that it still has on the task gets a new epoch. */
    "task.take_up": { readonly task_id: string; readonly session_id: string };
    "task.advance_stage": { readonly task_id: string; readonly stage: string };
  }
}

// ── What a decision asks ────────────────────────────────────────────────────────────────────────────────────────────

interface State {
  readonly status: Status;
  /** Why it is blocked or paused. */
  readonly reason?: string | undefined;
  readonly stage?: string | undefined;
  readonly attempt: number;
  readonly max_attempts: number;
  /** The last that was given out. */
  readonly epoch: number;
  readonly claim?:
    | { readonly session_id: string; readonly epoch: number; readonly ttl_ms: number }
    | undefined;
}

function invalid({ status: from }: State, to: Status): Refused {
  return reject("task.invalid_transition", { from, to, allowed: Object.keys(transitions[from]) });
}

/** Why a step cannot be taken: the table does not have it, or has it for another command. */
function barred(state: State, to: Status, by: Step): Refused | undefined {
  return transitions[state.status][to] === by ? undefined : invalid(state, to);
}

/** Where a task goes on when nothing stops it any more. */
function goingOn({ claim }: State): "running" | "queued" {
  return claim ? "running" : "queued";
}

/**
 * Why whoever sends this epoch may not speak for the work.
 * @param to what the claim's holder wants of the task: told when the claim ended because the work did
 */
function stale(state: State, epoch: number, to: Status): Refused | undefined {
  if (state.claim?.epoch === epoch) return undefined;
  if (epoch === state.epoch && isDone(state.status)) return invalid(state, to);
  return reject("task.stale_epoch", { epoch, current: state.epoch });
}

/** Why these tasks are nothing to depend on for one of this workspace: each must be there, and in it. */
function foreign(find: Find, ids: readonly string[], workspace_id: string | undefined): Refused | undefined {
  if (ids.length === 0) return undefined;
  const found = new Map(find.all("tasks", { task_id: { oneOf: ids } }).map((row) => [row.task_id, row]));
  for (const task_id of ids) {
    const row = found.get(task_id);
    if (!row) return missing("task", task_id);
    if (row.workspace_id !== workspace_id)
      return reject("task.other_workspace", { task_id, workspace_id: row.workspace_id });
  }
  return undefined;
}

/** Why a task is no parent for one of this project. */
function foreignParent(find: Find, task_id: string | undefined, project_id: string): Refused | undefined {
  if (task_id === undefined) return undefined;
  const parent = find.one("tasks", { task_id });
  if (!parent) return missing("task", task_id);
  return parent.project_id === project_id
    ? undefined
    : reject("task.other_project", { task_id, project_id: parent.project_id });
}

/** Why a queued task cannot be claimed yet. */
function unready(find: Find, task_id: string, at: string): Refused | undefined {
  const row = find.one("tasks", { task_id })!;
  const early = isEarly(row, at);
  if (row.unmet === 0 && !early) return undefined;
  const unmet =
    row.unmet === 0
      ? []
      : find
          .all("task_dependencies", { task_id })
          .map((each) => find.one("tasks", { task_id: each.depends_on_task_id })!)
          .filter((each) => each.status !== "succeeded")
          .slice(0, MAX_UNMET)
          .map(({ task_id, status }) => ({ task_id, status }));
  return reject("task.not_ready", { unmet, ...(early && { not_before: row.not_before }) });
}

// ── The aggregate ───────────────────────────────────────────────────────────────────────────────────────────────────

const described = {
  title: Name,
  body: Type.Optional(Body),
  parent_task_id: Type.Optional(Id),
  stage: Type.Optional(Name),
  not_before: Type.Optional(Time),
  deadline_at: Type.Optional(Time),
};
const Reason = Type.Optional(Words);
const filters = {
  project_id: Type.Optional(field(Id, "only those of this project")),
  stage: Type.Optional(field(Name, "only those in this stage")),
  parent_task_id: Type.Optional(field(Id, "only those that are a part of this task")),
};
const held = { task_id: Id, epoch: Epoch };
const OwnEpoch = field(Epoch, "the epoch that the claim was made with: an older one is refused");
const own = { task_id: field(Id, "the task that is claimed"), epoch: OwnEpoch };
const initial: State = { status: "queued", attempt: 0, max_attempts: 0, epoch: 0 };

export const task = aggregate(
  "task",
  initial,
)({
  commands: {
    create: command(
      {
        project_id: field(Id, "the project that it is of"),
        title: field(Name, "what is to be done, in a line"),
        body: Type.Optional(field(Body, "all that is to be known about it")),
        parent_task_id: Type.Optional(field(Id, "the task that it is a part of")),
        stage: Type.Optional(field(Name, "where in the project's work it stands, to claim by")),
        not_before: Type.Optional(field(Time, "the time before which it cannot be claimed")),
        deadline_at: Type.Optional(field(Time, "the time after which it is overdue")),
        priority: Type.Optional(field(Priority, "how urgent it is")),
        depends_on: Type.Optional(
          field(Type.Array(Id, { maxItems: MAX_DEPENDS_ON }), "the tasks that must succeed first"),
        ),
        max_attempts: Type.Optional(
          field(
            Attempts,
            `how often it may be claimed before it has failed for good, 1 to 1000; ${DEFAULT_ATTEMPTS} when absent`,
          ),
        ),
      },
      "Create a task; it can be claimed once all that it depends on has succeeded.",
      { creates: true },
    ),
    claim: command(
      {
        task_id: Type.Optional(field(Id, "the task to claim, instead of the most urgent one that matches")),
        filter: Type.Optional(field(object(filters), "what the most urgent one is looked for in")),
        session_id: field(Id, "the session that will do the work"),
        ttl_ms: askedTtl("the claim lasts without a renewal"),
      },
      "Take a task for a session: this one, or the first that is ready and matches.",
      {
        result: object({ task_id: Id, epoch: Seq, attempt: Seq, expires_at: Time }),
        rule: {
          holds: ({ task_id, filter }) => (task_id === undefined) !== (filter === undefined),
          message: "must have either task_id or filter, and not both",
        },
      },
    ),
    renew: command(own, "Say that the work goes on: the claim lasts for another ttl.", {
      renews: true,
      result: object({ epoch: Seq, expires_at: Time }),
    }),
    release: command(
      { ...own, reason: Type.Optional(field(Words, "why it is given back")) },
      "Give a claim back, so that another can take the task.",
    ),
    complete: command(
      { ...own, result: Type.Optional(field(Result, "what came of the work")) },
      "Say that the work is done, and what came of it.",
    ),
    fail: command(
      {
        ...own,
        failure: object({
          class: field(Name, "what kind of failure it is, to count by"),
          message: field(Words, "what has failed, and how"),
        }),
      },
      "Say that the work has failed, and how.",
    ),
    block: command(
      {
        task_id: field(Id, "the task to stop"),
        on: field(BlockedOn, "what it waits for"),
        reason: Type.Optional(field(Words, "why it is stopped")),
        epoch: Type.Optional(OwnEpoch),
      },
      "Stop a task until a policy, an approval or a person's answer lets it go on.",
    ),
    unblock: command({ task_id: field(Id, "the task that was blocked") }, "Let a blocked task go on."),
    pause: command(
      { task_id: field(Id, "the task to stop"), reason: Type.Optional(field(Words, "why it is stopped")) },
      "Stop a task until it is resumed.",
    ),
    resume: command({ task_id: field(Id, "the task that was paused") }, "Let a paused task go on."),
    retry: command(
      { task_id: field(Id, "the task that has failed") },
      "Put a failed task into the queue again, while it has attempts left.",
    ),
    cancel: command(
      {
        task_id: field(Id, "the task to give up"),
        reason: Type.Optional(field(Words, "why it is given up")),
      },
      "Give a task up for good.",
    ),
    add_dependency: command(
      {
        task_id: field(Id, "the task that is to wait"),
        depends_on_task_id: field(Id, "the task that must succeed first"),
      },
      "Let a task wait until another has succeeded.",
    ),
    remove_dependency: command(
      {
        task_id: field(Id, "the task that waits"),
        depends_on_task_id: field(Id, "the task that it need not wait for any more"),
      },
      "Let a task wait for another no more.",
    ),
    advance_stage: command(
      { task_id: field(Id, "the task to move on"), stage: field(Name, "the stage that it comes to") },
      "Put a task into another stage of its project.",
    ),
    expire_claim: command(held, "No renewal came in time.", { internal: true }),
    leave: command({ task_id: Id, session_id: Id }, "The session has ended: its claim goes.", {
      internal: true,
    }),
    take_up: command({ task_id: Id, session_id: Id }, "The session was resumed: its claim goes on.", {
      internal: true,
    }),
  },
  events: {
    created: event(1, {
      ...described,
      priority: Priority,
      depends_on: Type.Array(Id, { maxItems: MAX_DEPENDS_ON }),
      max_attempts: Attempts,
    }),
    claimed: event(1, { session_id: Id, epoch: Epoch, attempt: Epoch, ttl_ms: Ttl }),
    claim_resumed: event(1, { session_id: Id, epoch: Epoch, ttl_ms: Ttl }),
    released: event(1, { session_id: Id, epoch: Epoch, reason: Reason }),
    claim_expired: event(1, { session_id: Id, epoch: Epoch }),
    succeeded: event(1, { epoch: Epoch, result: Type.Optional(Result) }),
    failed: event(1, { epoch: Type.Optional(Epoch), failure: Failure }),
    blocked: event(1, { on: BlockedOn, reason: Reason }),
    unblocked: event(1, {}),
    paused: event(1, { reason: Reason }),
    resumed: event(1, {}),
    retried: event(1, {}),
    cancelled: event(1, { reason: Reason }),
    dependency_added: event(1, { depends_on_task_id: Id }),
    dependency_removed: event(1, { depends_on_task_id: Id }),
    stage_advanced: event(1, { from: Type.Optional(Name), stage: Name }),
  },
  reasons: {
    "task.already_claimed": {
      is: "another session holds the claim on the task",
      hint: "wait until it is released or runs out, see 'expires_at' in the details, or take another: mp task claim",
    },
    "task.not_ready": {
      is: "the task waits for other tasks, or for its time",
      hint: "see 'unmet' and 'not_before' in the details, and mp task get TASK; take what is ready: mp task ready",
    },
    "task.none_ready": {
      is: "no task that matches is ready",
      hint: "wait for work with mp task claim --wait, see 'next_at' for when the next one's time comes, or ask for less",
    },
    "task.stale_epoch": {
      is: "the claim of that epoch is over: it was given back, has run out or is another's",
      hint: "stop the work: what it came to is not taken; claim the task again to go on: mp task claim",
    },
    "task.invalid_transition": {
      is: "the status of the task does not allow that",
      hint: "see 'allowed' in the details, and mp task get TASK for what stops it: mp task unblock lets a blocked one go on, mp task resume a paused one, mp task retry a failed one; one that is over for good, succeeded or cancelled, takes no dependencies either",
    },
    "task.dependency_cycle": {
      is: "the task would wait for itself",
      hint: "see 'path' in the details: each of it waits for the next; take one out with mp task remove-dependency",
    },
    "task.attempts_exhausted": {
      is: "the task has no attempts left",
      hint: "create another task for the work, with mp task create, once the cause of the failures is mended",
    },
    "task.other_workspace": {
      is: "the other task is in another workspace",
      hint: "name a task of the same workspace, see mp task list --workspace WORKSPACE",
    },
    "task.other_project": {
      is: "the parent task is in another project",
      hint: "name a task of the same project, see mp task list --project PROJECT",
    },
  },
  scope: (_, payload, find) => {
    const project_id = payload.project_id as string;
    return { workspace_id: find.one("projects", { project_id })!.workspace_id, project_id };
  },
  lease: { of: ({ claim }) => claim, expire: "expire_claim" },
  choose: {
    claim({ filter = {}, session_id }, { find, at }) {
      const { project_id, parent_task_id, stage } = filter;
      const session = find.one("sessions", { session_id });
      if (!session) return missing("session", session_id);
      const { workspace_id } = session;
      const parent =
        parent_task_id === undefined ? undefined : find.one("tasks", { task_id: parent_task_id });
      const refused =
        shut(find, { workspace_id, project_id }) ??
        unfit(find, session_id, workspace_id) ??
        (parent_task_id === undefined ? undefined : foreign(find, [parent_task_id], workspace_id)) ??
        shut(find, { workspace_id, project_id: parent?.project_id }) ??
        (project_id === undefined ? undefined : foreignParent(find, parent_task_id, project_id));
      if (refused) return refused;
      const staged = stage === undefined ? {} : { stage };
      const whose =
        parent_task_id !== undefined
          ? { parent_task_id }
          : project_id !== undefined
            ? { project_id }
            : { workspace_id };
      const part = { ...whose, ...staged };
      const next = foremost(find, part, at)?.task_id;
      return next ?? reject("task.none_ready", { next_at: nextTime(find, part, at) });
    },
  },
  decide: {
    create(_, payload, { find }) {
      const {
        project_id,
        depends_on = [],
        priority = DEFAULT_PRIORITY,
        max_attempts = DEFAULT_ATTEMPTS,
        ...given
      } = payload;
      const project = find.one("projects", { project_id });
      if (!project) return missing("project", project_id);
      const { workspace_id } = project;
      const needed = [...new Set(depends_on)];
      return (
        shut(find, { workspace_id, project_id }) ??
        foreignParent(find, given.parent_task_id, project_id) ??
        foreign(find, needed, workspace_id) ?? [
          { type: "created", payload: { ...given, priority, max_attempts, depends_on: needed } },
        ]
      );
    },
    claim(state, { session_id, ttl_ms = DEFAULT_TTL_MS }, { find, id, at, scope }) {
      const refused = shut(find, scope) ?? unfit(find, session_id, scope.workspace_id);
      if (refused) return refused;
      const { claim, attempt: attempts } = state;
      if (claim) {
        const { epoch, session_id: holder } = claim;
        const expires_at = endOf(find, `task/${id}`) ?? at;
        // Whoever has it already is told so again; but one that is stopped is not to be worked on.
        if (holder === session_id)
          return state.status === "running"
            ? { events: [], result: { task_id: id, epoch, attempt: attempts, expires_at } }
            : invalid(state, "running");
        const retry_after_ms = Math.max(0, between(at, expires_at));
        return reject("task.already_claimed", { holder, epoch, expires_at, retry_after_ms });
      }
      const not = barred(state, "running", "claim") ?? unready(find, id, at);
      if (not) return not;
      const [epoch, attempt] = [state.epoch + 1, attempts + 1];
      return {
        events: [{ type: "claimed", payload: { session_id, epoch, attempt, ttl_ms } }],
        result: { task_id: id, epoch, attempt, expires_at: later(at, ttl_ms) },
      };
    },
    renew: (state, { epoch }, { at }) =>
      stale(state, epoch, "running") ?? {
        events: [],
        result: { epoch, expires_at: later(at, state.claim!.ttl_ms) },
      },
    release: (state, { epoch, reason }) =>
      stale(state, epoch, "queued") ?? [
        { type: "released", payload: { session_id: state.claim!.session_id, epoch, reason } },
      ],
    complete: (state, { epoch, result }) =>
      stale(state, epoch, "succeeded") ??
      barred(state, "succeeded", "complete") ?? [{ type: "succeeded", payload: { epoch, result } }],
    fail: (state, { epoch, failure }) =>
      stale(state, epoch, "failed") ??
      barred(state, "failed", "fail") ?? [{ type: "failed", payload: { epoch, failure } }],
    block(state, { on, reason, epoch }, { find, scope }) {
      const to = blockedBy[on];
      const refused = shut(find, scope) ?? (epoch === undefined ? undefined : stale(state, epoch, to));
      if (refused) return refused;
      if (state.status === to)
        return saidAlready(state, reason) ? [] : [{ type: "blocked", payload: { on, reason } }];
      return barred(state, to, "block") ?? [{ type: "blocked", payload: { on, reason } }];
    },
    unblock(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      const to = goingOn(state);
      return state.status === to
        ? []
        : (barred(state, to, "unblock") ?? [{ type: "unblocked", payload: {} }]);
    },
    pause(state, { reason }, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "paused")
        return saidAlready(state, reason) ? [] : [{ type: "paused", payload: { reason } }];
      return barred(state, "paused", "pause") ?? [{ type: "paused", payload: { reason } }];
    },
    resume(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      const to = goingOn(state);
      return state.status === to ? [] : (barred(state, to, "resume") ?? [{ type: "resumed", payload: {} }]);
    },
    retry(state, _, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "queued") return [];
      const { attempt, max_attempts } = state;
      return (
        barred(state, "queued", "retry") ??
        (attempt >= max_attempts
          ? reject("task.attempts_exhausted", { attempt, max_attempts })
          : [{ type: "retried", payload: {} }])
      );
    },
    cancel(state, { reason }, { find, scope }) {
      const refused = shut(find, scope);
      if (refused) return refused;
      if (state.status === "cancelled") return [];
      return barred(state, "cancelled", "cancel") ?? [{ type: "cancelled", payload: { reason } }];
    },
    add_dependency(state, { depends_on_task_id }, { find, id, scope }) {
      const refused =
        shut(find, scope) ?? foreign(find, [depends_on_task_id], scope.workspace_id) ?? settled(state);
      if (refused) return refused;
      if (find.one("task_dependencies", { task_id: id, depends_on_task_id })) return [];
      const way = wayFrom(find, depends_on_task_id, id);
      return way
        ? reject("task.dependency_cycle", { path: [id, ...way] })
        : [{ type: "dependency_added", payload: { depends_on_task_id } }];
    },
    remove_dependency(state, { depends_on_task_id }, { find, id, scope }) {
      const refused =
        shut(find, scope) ?? foreign(find, [depends_on_task_id], scope.workspace_id) ?? settled(state);
      if (refused) return refused;
      return find.one("task_dependencies", { task_id: id, depends_on_task_id })
        ? [{ type: "dependency_removed", payload: { depends_on_task_id } }]
        : [];
    },
    advance_stage: (state, { stage }, { find, scope }) =>
      shut(find, scope) ??
      (state.stage === stage ? [] : [{ type: "stage_advanced", payload: { from: state.stage, stage } }]),
    expire_claim(state, { epoch }) {
      const { claim, attempt, max_attempts } = state;
      if (claim?.epoch !== epoch) return [];
      const { session_id } = claim;
      const expired = { type: "claim_expired", payload: { session_id, epoch } } as const;
      // One that is stopped is nobody's fault: it waits on, and is queued once it may go on.
      if (state.status !== "running" || attempt < max_attempts) return [expired];
      const message = `the claim ran out in the last of ${max_attempts} attempts`;
      const failure = { class: "claim_expired", message };
      return [expired, { type: "failed", payload: { epoch, failure } }];
    },
    leave: ({ claim }, { session_id }) =>
      claim?.session_id === session_id
        ? [{ type: "released", payload: { session_id, epoch: claim.epoch, reason: "the session has ended" } }]
        : [],
    take_up: ({ claim, epoch }, { session_id }) =>
      claim?.session_id === session_id
        ? [{ type: "claim_resumed", payload: { ...claim, epoch: epoch + 1 } }]
        : [],
  },
  evolve: {
    created: (state, { stage, max_attempts }) => ({ ...state, stage, max_attempts }),
    claimed: (state, { session_id, epoch, attempt, ttl_ms }) => ({
      ...state,
      status: "running",
      attempt,
      epoch,
      claim: { session_id, epoch, ttl_ms },
    }),
    claim_resumed: (state, claim) => ({ ...state, epoch: claim.epoch, claim }),
    released: unclaimed,
    claim_expired: unclaimed,
    succeeded: (state) => ({ ...state, status: "succeeded", claim: undefined }),
    failed: (state) => ({ ...state, status: "failed", claim: undefined, reason: undefined }),
    blocked: (state, { on, reason }) => ({ ...state, status: blockedBy[on], reason }),
    unblocked: (state) => ({ ...state, status: goingOn(state), reason: undefined }),
    paused: (state, { reason }) => ({ ...state, status: "paused", reason }),
    resumed: (state) => ({ ...state, status: goingOn(state), reason: undefined }),
    retried: (state) => ({ ...state, status: "queued" }),
    cancelled: (state) => ({ ...state, status: "cancelled", claim: undefined, reason: undefined }),
    dependency_added: (state) => state,
    dependency_removed: (state) => state,
    stage_advanced: (state, { stage }) => ({ ...state, stage }),
  },
  readModel: {
    version: 1,
    tables,
    apply: {
      created: (rows, event) => {
        const { subject, workspace_id, project_id, payload } = event;
        const { depends_on } = payload;
        const met = depends_on.filter(
          (task_id) => rows.tasks.one({ task_id })!.status === "succeeded",
        ).length;
        begin(rows, {
          ...born(event),
          task_id: subject.id,
          workspace_id: workspace_id ?? "",
          project_id: project_id ?? "",
          parent_task_id: payload.parent_task_id ?? null,
          title: payload.title,
          body: payload.body ?? null,
          priority: payload.priority,
          stage: payload.stage ?? null,
          status: "queued",
          attempt: 0,
          max_attempts: payload.max_attempts,
          not_before: payload.not_before ?? null,
          deadline_at: payload.deadline_at ?? null,
          blocked_reason: null,
          claim_session_id: null,
          claim_epoch: 0,
          unmet: depends_on.length - met,
          failure_class: null,
          failure_message: null,
          result: null,
        });
        for (const depends_on_task_id of depends_on)
          rows.task_dependencies.insert({ task_id: subject.id, depends_on_task_id });
      },
      claimed: (rows, event) => {
        const { session_id, epoch, attempt } = event.payload;
        const row = rowOf(rows, event);
        rows.task_attempts.insert({
          task_id: row.task_id,
          attempt,
          session_id,
          epoch,
          claimed_at: event.timestamp,
          ended_at: null,
          outcome: null,
          failure_class: null,
          failure_message: null,
        });
        change(rows, row, {
          status: "running",
          attempt,
          claim_session_id: session_id,
          claim_epoch: epoch,
          ...touched(event),
        });
      },
      claim_resumed: (rows, event) => {
        const { epoch } = event.payload;
        const { task_id, attempt } = rowOf(rows, event);
        rows.task_attempts.update({ task_id, attempt }, { epoch });
        rows.tasks.update({ task_id }, { claim_epoch: epoch, ...touched(event) });
      },
      released: (rows, event) => claimOver(rows, event, "released"),
      claim_expired: (rows, event) => claimOver(rows, event, "expired"),
      succeeded: (rows, event) => {
        const row = rowOf(rows, event);
        const { result } = event.payload;
        change(rows, row, {
          ...endAttempt(rows, row, event, "succeeded"),
          status: "succeeded",
          result: result === undefined ? null : sortedJson(result),
          ...touched(event),
        });
        for (const { task_id } of rows.task_dependencies.all({ depends_on_task_id: row.task_id })) {
          const dependent = rows.tasks.one({ task_id })!;
          change(rows, dependent, { unmet: dependent.unmet - 1 });
        }
      },
      failed: (rows, event) => {
        const row = rowOf(rows, event);
        const { failure } = event.payload;
        change(rows, row, {
          ...endAttempt(rows, row, event, "failed", failure),
          status: "failed",
          blocked_reason: null,
          failure_class: failure.class,
          failure_message: failure.message,
          ...touched(event),
        });
      },
      blocked: (rows, event) => {
        const { on, reason = null } = event.payload;
        change(rows, rowOf(rows, event), {
          status: blockedBy[on],
          blocked_reason: reason,
          ...touched(event),
        });
      },
      unblocked: goOn,
      paused: (rows, event) =>
        change(rows, rowOf(rows, event), {
          status: "paused",
          blocked_reason: event.payload.reason ?? null,
          ...touched(event),
        }),
      resumed: goOn,
      retried: (rows, event) =>
        change(rows, rowOf(rows, event), {
          status: "queued",
          failure_class: null,
          failure_message: null,
          ...touched(event),
        }),
      cancelled: (rows, event) => {
        const row = rowOf(rows, event);
        change(rows, row, {
          ...endAttempt(rows, row, event, "cancelled"),
          status: "cancelled",
          blocked_reason: null,
          ...touched(event),
        });
      },
      dependency_added: (rows, event) => depend(rows, event, 1),
      dependency_removed: (rows, event) => depend(rows, event, -1),
      stage_advanced: (rows, event) =>
        change(rows, rowOf(rows, event), { stage: event.payload.stage, ...touched(event) }),
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        ...filters,
        status: Type.Optional(field(Status, "only those with this status")),
        session_id: Type.Optional(field(Id, "only those that this session has claimed")),
        overdue: Type.Optional(
          field(
            Type.Boolean(),
            "only those whose deadline has passed before they were done, by deadline; false: only the others",
          ),
        ),
      },
      pageOf(object(shown)),
      "List tasks, oldest first; with `overdue` by deadline, the earliest first.",
      (read, { session_id, overdue, limit, cursor, ...given }, at) => {
        const where = { ...given, claim_session_id: session_id };
        const page = { ...(limit !== undefined && { limit }), ...(cursor !== undefined && { cursor }) };
        if (overdue) return overdueOnes(read, where, page, at);
        return read.page("tasks", { ...where, due: overdue === false ? { from: at } : undefined }, page);
      },
    ),
    ready: query(
      { workspace_id: Type.Optional(field(Id, "only those of this workspace")), ...filters },
      object({ ...pageOf(object(shown)).properties, next_at: nullable(Time) }),
      "List the tasks that can be claimed now, in the order in which they are: by priority, then by age.",
      ready,
      { largest: LARGE_PAGE },
    ),
    get: query(
      { task_id: field(Id, "the task to show") },
      object({
        as_of_seq: Seq,
        ...shown,
        dependencies: Type.Array(Some),
        dependency_count: Seq,
        dependents: Type.Array(Some),
        dependent_count: Seq,
        attempts: Type.Array(object(attempt)),
        claim: nullable(object({ session_id: Id, epoch: Seq, attempt: Seq, expires_at: Time })),
        result: nullable(Result),
        why: Type.Array(Why),
      }),
      "Show one task, with its dependencies, its attempts, and why it cannot be claimed.",
      get,
    ),
  },
});

/** Whether a task is stopped in just these words, or nothing new is said. */
function saidAlready(state: State, reason: string | undefined): boolean {
  return reason === undefined || reason === state.reason;
}

/** Why the dependencies of a task no longer change: it is over for good. */
function settled(state: State): Refused | undefined {
  return Object.keys(transitions[state.status]).length === 0 ? invalid(state, state.status) : undefined;
}

function unclaimed(state: State): State {
  return { ...state, status: state.status === "running" ? "queued" : state.status, claim: undefined };
}
