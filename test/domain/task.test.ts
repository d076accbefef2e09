/**
 * The rules of task (SPEC §8): every command in every status by a copy of SPEC's table, every reason with its details, parents
 * that are missing, closed or foreign; claims, their ends and attempts; the queue's order and what is read of it; cycles and
 * counters against naive models; and that nothing is looked for without an index. MP_TEST_SEED=… repeats a run.
 */
import type { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { project } from "../../src/domain/project.ts";
import { session } from "../../src/domain/session.ts";
import { task } from "../../src/domain/task.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { wireTime } from "../../src/kernel/clock.ts";
import { openForReading } from "../../src/kernel/database.ts";
import type { Outcome } from "../../src/kernel/execute.ts";
import type { Problem } from "../../src/kernel/problems.ts";
import { BadCursor, ReadModels } from "../../src/kernel/readmodel.ts";
import { matches } from "../../src/kernel/schema.ts";
import { about, type Fact, given, type Kernel, kernel, uuid } from "../support/given.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/task.test.ts: MP_TEST_SEED=${seed}`);

const [W, W2, P, P2, PW2] = [uuid(1), uuid(2), uuid(3), uuid(4), uuid(5)];
const [S, S2, SW2] = [uuid(6), uuid(7), uuid(8)];
const NOWHERE = uuid(9);
const T = uuid(10);
const T2 = uuid(11);

const [inW, inW2] = [about(workspace, W), about(workspace, W2)];
const closed = inW("closed", {});
const archived = about(project, P, { workspace_id: W })("archived", {});
const born = { agent: { name: "coder" }, epoch: 1, ttl_ms: 300_000 };
const world = [
  inW("created", { name: "w" }),
  inW2("created", { name: "w2" }),
  about(project, P, { workspace_id: W })("created", { name: "p" }),
  about(project, P2, { workspace_id: W })("created", { name: "p2" }),
  about(project, PW2, { workspace_id: W2 })("created", { name: "p" }),
  about(session, S, { workspace_id: W })("spawned", born),
  about(session, S2, { workspace_id: W })("spawned", born),
  about(session, SW2, { workspace_id: W2 })("spawned", born),
];

const defaults = { priority: 2, max_attempts: 3, depends_on: [] as string[] };
type Created = typeof defaults & Record<string, unknown>;
/** A task that was created, in a project of W when nothing else is said. */
const made = (id: string, more: Partial<Created> = {}, project_id = P): Fact =>
  about(task, id, { workspace_id: project_id === PW2 ? W2 : W, project_id })("created", {
    title: "do it",
    ...defaults,
    ...more,
  });
const its = about(task, T, { workspace_id: W, project_id: P });
const claimed = (by = S, epoch = 1) =>
  its("claimed", { session_id: by, epoch, attempt: epoch, ttl_ms: 60_000 });
const released = its("released", { session_id: S, epoch: 1 });
const failure = { class: "tests", message: "2 of 3 fail" };

const problemOf = (outcome: Outcome): Problem => {
  if (!("problem" in outcome)) throw new Error(`accepted: ${outcome.receipt}`);
  return outcome.problem;
};
const receiptOf = (outcome: Outcome) => {
  if (!("receipt" in outcome)) throw new Error(`refused: ${JSON.stringify(outcome.problem)}`);
  return JSON.parse(outcome.receipt) as {
    subject: { id: string };
    events: { event_type: string }[];
    result: Record<string, unknown>;
  };
};
const after = (time: string, ms: number) => new Date(Date.parse(time) + ms).toISOString();

/** SPEC §8, word for word but for `blocked_by_*`. */
const TABLE = `
  queued              | running, paused, cancelled, blocked_by_policy, blocked_by_approval
  running             | succeeded, failed, cancelled, paused, awaiting_user_input, blocked_by_policy, blocked_by_approval, queued
  paused              | queued, running, cancelled, failed
  awaiting_user_input | queued, running, cancelled, failed
  blocked_by_policy   | queued, running, cancelled, failed
  blocked_by_approval | queued, running, cancelled, failed
  failed              | queued
  succeeded           |
  cancelled           |`;
const lines = (text: string) =>
  text
    .trim()
    .split("\n")
    .map((line) => line.split("|").map((part) => part.trim()));
const follows = new Map(lines(TABLE).map(([from, to]) => [from!, to === "" ? [] : to!.split(", ")]));

const blocked = (on: "policy" | "approval" | "user_input") => its("blocked", { on });
/** How a task comes to each status; with a star a session has the claim, or had it when the work ended. */
const past: Readonly<Record<string, readonly Fact[]>> = {
  queued: [],
  "running*": [claimed()],
  paused: [its("paused", {})],
  "paused*": [claimed(), its("paused", {})],
  awaiting_user_input: [claimed(), blocked("user_input"), released],
  "awaiting_user_input*": [claimed(), blocked("user_input")],
  blocked_by_policy: [blocked("policy")],
  "blocked_by_policy*": [claimed(), blocked("policy")],
  blocked_by_approval: [claimed(), blocked("approval"), its("claim_expired", { session_id: S, epoch: 1 })],
  "blocked_by_approval*": [claimed(), blocked("approval")],
  succeeded: [claimed(), its("succeeded", { epoch: 1 })],
  failed: [claimed(), its("failed", { epoch: 1, failure })],
  cancelled: [claimed(), its("cancelled", {})],
};

type Name = keyof typeof task.commands & string;
/** Each command as it is tried: what it is given, the status it asks for, and the event it makes. */
const tried: Readonly<Record<string, { name: Name; more: object; to: string; event: string }>> = {
  claim: { name: "claim", more: { session_id: S2 }, to: "running", event: "claimed" },
  renew: { name: "renew", more: { epoch: 1 }, to: "running", event: "" },
  release: { name: "release", more: { epoch: 1 }, to: "queued", event: "released" },
  complete: { name: "complete", more: { epoch: 1 }, to: "succeeded", event: "succeeded" },
  fail: { name: "fail", more: { epoch: 1, failure }, to: "failed", event: "failed" },
  policy: { name: "block", more: { on: "policy" }, to: "blocked_by_policy", event: "blocked" },
  approval: { name: "block", more: { on: "approval" }, to: "blocked_by_approval", event: "blocked" },
  input: { name: "block", more: { on: "user_input" }, to: "awaiting_user_input", event: "blocked" },
  unblock: { name: "unblock", more: {}, to: "", event: "unblocked" },
  pause: { name: "pause", more: {}, to: "paused", event: "paused" },
  resume: { name: "resume", more: {}, to: "", event: "resumed" },
  retry: { name: "retry", more: {}, to: "queued", event: "retried" },
  cancel: { name: "cancel", more: {}, to: "cancelled", event: "cancelled" },
};

/** +: makes its event · =: changes nothing · x: invalid_transition · e: stale_epoch · h: already_claimed. */
const PAIRS = `
                       | claim renew release complete fail policy approval input unblock pause resume retry cancel
  queued               | +     e     e       e        e    +      +        x     =       +     =      =     +
  running*             | h     =     +       +        +    +      +        +     =       +     =      x     +
  paused               | x     e     e       e        e    x      x        x     x       =     +      x     +
  paused*              | h     =     +       x        +    x      x        x     x       =     +      x     +
  awaiting_user_input  | x     e     e       e        e    x      x        =     +       x     x      x     +
  awaiting_user_input* | h     =     +       x        +    x      x        =     +       x     x      x     +
  blocked_by_policy    | x     e     e       e        e    =      x        x     +       x     x      x     +
  blocked_by_policy*   | h     =     +       x        +    =      x        x     +       x     x      x     +
  blocked_by_approval  | x     e     e       e        e    x      =        x     +       x     x      x     +
  blocked_by_approval* | h     =     +       x        +    x      =        x     +       x     x      x     +
  succeeded            | x     x     x       x        x    x      x        x     x       x     x      x     x
  failed               | x     x     x       x        x    x      x        x     x       x     x      +     x
  cancelled            | x     x     x       x        x    x      x        x     x       x     x      x     =`;
const [head, ...pairs] = PAIRS.split("\n")
  .slice(1)
  .map((line) => line.split("|").map((part) => part.trim().split(/ +/)));

describe("every command in every status", () => {
  test("the tables name every status and every command", () => {
    expect(pairs.map(([from]) => from![0]!)).toEqual(Object.keys(past));
    expect([...new Set(Object.keys(past).map((from) => from.replace("*", "")))].sort()).toEqual(
      [...follows.keys()].sort(),
    );
    expect(head![1]).toEqual(Object.keys(tried));
    const others = [
      "create",
      "add_dependency",
      "remove_dependency",
      "advance_stage",
      "expire_claim",
      "leave",
      "take_up",
    ];
    expect([...new Set(Object.values(tried).map(({ name }) => name)), ...others].sort()).toEqual(
      Object.keys(task.commands).sort(),
    );
  });

  for (const [[named], outcomes] of pairs as [[string], string[]][])
    test(`${named}: ${head![1]!.join(", ")}`, () => {
      const from = named.replace("*", "");
      const has = named.endsWith("*");
      const going = has ? "running" : "queued";
      const ended = follows.get(from)!.length < 2;
      for (const [index, outcome] of outcomes.entries()) {
        const word = head![1]![index]!;
        const { name, more, to: asked, event } = tried[word]!;
        const to = asked || going;
        const it = kernel();
        it.tell([...world, made(T), ...past[named]!]);
        expect([named, it.db.query("SELECT status FROM tasks").get()]).toEqual([named, { status: from }]);
        const before = it.head();
        const payload = { task_id: T, ...more };
        expect(matches(task.commands[name].payload, payload)).toBe(true);
        const answer = it.run(`task.${name}`, payload);
        const events = it.events(before).map((each) => each.event_type);
        const { reason, details } =
          "problem" in answer ? answer.problem : { reason: null, details: undefined };
        const came = { pair: `${named} ${word}`, events, reason, details };
        const told = (expected: object) =>
          expect(came).toEqual({
            pair: `${named} ${word}`,
            events: [],
            reason: null,
            details: undefined,
            ...expected,
          } as never);
        if (outcome === "+") told({ events: [`task.${event}`] });
        else if (outcome === "=") told({});
        else if (outcome === "e")
          told({
            reason: "task.stale_epoch",
            details: { epoch: 1, current: /^(queued|paused|blocked_by_policy)$/.test(from) ? 0 : 1 },
          });
        else if (outcome === "h")
          told({
            reason: "task.already_claimed",
            details: {
              holder: S,
              epoch: 1,
              expires_at: expect.any(String),
              retry_after_ms: expect.any(Number),
            },
          });
        else {
          told({
            reason: "task.invalid_transition",
            details: { from, to, allowed: expect.any(Array) },
          });
          expect([...(details!.allowed as string[])].sort()).toEqual([...follows.get(from)!].sort());
        }
        // What is accepted leads where SPEC's table lets it, and to what was asked for.
        if (outcome !== "+") continue;
        const now = it.db.query<{ status: string }, []>("SELECT status FROM tasks").get()!.status;
        const stays = name === "release" && from !== "running";
        expect([came.pair, now]).toEqual([came.pair, stays ? from : to]);
        if (!stays) expect(follows.get(from)).toContain(now);
        expect([came.pair, it.lease(`task/${T}`) !== undefined]).toEqual([
          came.pair,
          (has || name === "claim") && !["release", "complete", "fail", "cancel"].includes(name),
        ]);
      }
      expect(ended).toBe(["succeeded", "failed", "cancelled"].includes(from));
    });
});

describe("create", () => {
  test("puts it into the queue with what was given and the defaults, in the scope of its project", () => {
    const about = given(task, ...world);
    const [event] = about
      .when("create", { project_id: P, title: "a" })
      .thenEvents({ type: "created", payload: { title: "a", ...defaults } });
    expect(event).toMatchObject({ workspace_id: W, project_id: P, seq_stream: 1 });
    const whole = {
      title: "b",
      body: "all of it",
      parent_task_id: event!.subject.id,
      stage: "review",
      not_before: "2026-03-01T00:00:00.000Z",
      deadline_at: "2026-04-01T00:00:00.000Z",
      priority: 0,
      max_attempts: 1,
    };
    const twice = [event!.subject.id, event!.subject.id];
    about
      .when("create", { project_id: P, ...whole, depends_on: twice })
      .thenEvents({ type: "created", payload: { ...whole, depends_on: [event!.subject.id] } });
  });

  test("needs a project that is there and open, a parent in it, and dependencies in its workspace", () => {
    const create = (facts: readonly Fact[], more: object) =>
      given(task, ...world, ...facts).when("create", { project_id: P, title: "a", ...more });
    create([], { project_id: NOWHERE }).thenMissing("project", NOWHERE);
    create([closed], {}).thenRefused("workspace.closed", { workspace_id: W });
    create([archived], {}).thenRefused("project.archived", { project_id: P });
    create([], { parent_task_id: NOWHERE }).thenMissing("task", NOWHERE);
    create([made(T, {}, P2)], { parent_task_id: T }).thenRefused("task.other_project", {
      task_id: T,
      project_id: P2,
    });
    create([made(T, {}, P2)], { depends_on: [T, NOWHERE] }).thenMissing("task", NOWHERE);
    create([made(T, {}, PW2)], { depends_on: [T] }).thenRefused("task.other_workspace", {
      task_id: T,
      workspace_id: W2,
    });
    create([made(T, {}, P2)], { depends_on: [T] }).thenEvents({
      type: "created",
      payload: { title: "a", ...defaults, depends_on: [T] },
    });
  });
});

test("whatever begins or changes work is refused in what is closed; giving it back is not", () => {
  const begins: [Name, object][] = [
    ["claim", { task_id: T, session_id: S }],
    ["claim", { filter: { project_id: P }, session_id: S }],
    ["block", { task_id: T, on: "policy" }],
    ["unblock", { task_id: T }],
    ["pause", { task_id: T }],
    ["resume", { task_id: T }],
    ["retry", { task_id: T }],
    ["cancel", { task_id: T }],
    ["add_dependency", { task_id: T, depends_on_task_id: T2 }],
    ["remove_dependency", { task_id: T, depends_on_task_id: T2 }],
    ["advance_stage", { task_id: T, stage: "review" }],
  ];
  for (const [name, payload] of begins)
    for (const [fact, reason, details] of [
      [closed, "workspace.closed", { workspace_id: W }],
      [archived, "project.archived", { project_id: P }],
    ] as const)
      given(task, ...world, made(T), made(T2), fact)
        .when(name, payload as never)
        .thenRefused(reason, details);
  for (const fact of [closed, archived]) {
    const all = [...world, made(T), claimed(), fact];
    given(task, ...all)
      .when("renew", { task_id: T, epoch: 1 })
      .thenEvents();
    given(task, ...all)
      .when("release", { task_id: T, epoch: 1, reason: "lunch" })
      .thenEvents({ type: "released", payload: { session_id: S, epoch: 1, reason: "lunch" } });
    given(task, ...all)
      .when("complete", { task_id: T, epoch: 1, result: { commit: "abc" } })
      .thenEvents({ type: "succeeded", payload: { epoch: 1, result: { commit: "abc" } } });
    given(task, ...all)
      .when("fail", { task_id: T, epoch: 1, failure })
      .thenEvents({ type: "failed", payload: { epoch: 1, failure } });
    given(task, ...all)
      .when("expire_claim", { task_id: T, epoch: 1 })
      .thenEvents({ type: "claim_expired", payload: { session_id: S, epoch: 1 } });
    given(task, ...all)
      .when("leave", { task_id: T, session_id: S })
      .thenEvents({
        type: "released",
        payload: { session_id: S, epoch: 1, reason: "the session has ended" },
      });
  }
});

test("no command is about a task that does not exist", () => {
  for (const { name, more } of Object.values(tried))
    given(task, ...world, made(T))
      .when(name, { task_id: NOWHERE, ...more } as never)
      .thenMissing("task", NOWHERE);
  given(task, ...world, made(T))
    .when("advance_stage", { task_id: P, stage: "a" })
    .thenMissing("task", P);
});

describe("claim", () => {
  const claim = (facts: readonly Fact[], payload: object) =>
    given(task, ...world, ...facts).when("claim", { session_id: S, ...payload });

  test("takes one for a session, with the next epoch and attempt, until its ttl has run out", () => {
    const about = given(task, ...world, made(T));
    const told = about.when("claim", { task_id: T, session_id: S });
    const [event] = told.thenEvents({
      type: "claimed",
      payload: { session_id: S, epoch: 1, attempt: 1, ttl_ms: 300_000 },
    });
    const expires_at = after(event!.timestamp, 300_000);
    told.thenResult({ task_id: T, epoch: 1, attempt: 1, expires_at });
    expect(about.kernel.lease(`task/${T}`)).toMatchObject({ epoch: 1, expires_at: Date.parse(expires_at) });
    about.when("release", { task_id: T, epoch: 1 }).thenEvents({
      type: "released",
      payload: { session_id: S, epoch: 1 },
    });
    about.when("claim", { task_id: T, session_id: S2, ttl_ms: 1_000 }).thenEvents({
      type: "claimed",
      payload: { session_id: S2, epoch: 2, attempt: 2, ttl_ms: 1_000 },
    });
    about
      .when("complete", { task_id: T, epoch: 1 })
      .thenRefused("task.stale_epoch", { epoch: 1, current: 2 });
  });

  test("by whoever has it changes nothing and tells until when; another is told who has it", () => {
    const about = given(task, ...world, made(T), claimed());
    const expires_at = new Date(about.kernel.lease(`task/${T}`)!.expires_at).toISOString();
    const own = about.when("claim", { task_id: T, session_id: S });
    own.thenEvents();
    own.thenResult({ task_id: T, epoch: 1, attempt: 1, expires_at });
    const at = new Date(about.kernel.clock.now() + 1_000).toISOString();
    about.when("claim", { task_id: T, session_id: S2 }).thenRefused("task.already_claimed", {
      holder: S,
      epoch: 1,
      expires_at,
      retry_after_ms: Date.parse(expires_at) - Date.parse(at),
    });
  });

  test("needs a session that is there, live, and of the workspace, whichever way the task is named", () => {
    const ended = about(session, S, { workspace_id: W })("ended", { outcome: "completed" });
    for (const payload of [{ task_id: T }, { filter: {} }]) {
      claim([made(T)], { ...payload, session_id: NOWHERE }).thenMissing("session", NOWHERE);
      claim([made(T), ended], payload).thenRefused("session.not_live", {
        session_id: S,
        status: "completed",
      });
    }
    claim([made(T)], { task_id: T, session_id: SW2 }).thenRefused("session.other_workspace", {
      session_id: SW2,
      workspace_id: W2,
    });
  });

  test("is refused while it waits for others or for its time, and says for what", () => {
    const soon = "2026-01-01T12:00:00.000Z";
    claim([made(T2), made(T, { depends_on: [T2] })], { task_id: T }).thenRefused("task.not_ready", {
      unmet: [{ task_id: T2, status: "queued" }],
    });
    claim([made(T, { not_before: soon })], { task_id: T }).thenRefused("task.not_ready", {
      unmet: [],
      not_before: soon,
    });
    const both = given(task, ...world, made(T2), made(T, { depends_on: [T2], not_before: soon }));
    both.when("claim", { task_id: T, session_id: S }).thenRefused("task.not_ready", {
      unmet: [{ task_id: T2, status: "queued" }],
      not_before: soon,
    });
    both.when("claim", { task_id: T2, session_id: S });
    both.when("complete", { task_id: T2, epoch: 1 });
    both.kernel.clock.forward(24 * 3_600_000);
    both.kernel.run("session.resume", { session_id: S });
    both.when("claim", { task_id: T, session_id: S }).thenEvents({
      type: "claimed",
      payload: { session_id: S, epoch: 1, attempt: 1, ttl_ms: 300_000 },
    });
  });

  test("of one that it has already tells a session its epoch again, unless the task is stopped", () => {
    const about = given(task, ...world, made(T), claimed());
    const again = about.when("claim", { task_id: T, session_id: S });
    again.thenEvents();
    again.thenResult({ task_id: T, epoch: 1, attempt: 1, expires_at: expect.any(String) });
    about.when("pause", { task_id: T });
    about.when("claim", { task_id: T, session_id: S }).thenRefused("task.invalid_transition", {
      from: "paused",
      to: "running",
      allowed: ["queued", "running", "cancelled", "failed"],
    });
  });

  test("names a task or a filter, not both and not neither", () => {
    const { payload } = task.commands.claim;
    expect(matches(payload, { session_id: S })).toBe(false);
    expect(matches(payload, { session_id: S, task_id: T, filter: {} })).toBe(false);
    expect(matches(payload, { session_id: S, filter: { workspace_id: W } })).toBe(false);
  });

  test("by filter takes the first that matches, only in the session's workspace", () => {
    const [a, b, c, d, e] = [uuid(20), uuid(21), uuid(22), uuid(23), uuid(24)] as const;
    const facts = [
      made(a, { priority: 0 }, PW2),
      made(b),
      made(c, { stage: "review", priority: 3 }),
      made(d, { parent_task_id: b, priority: 4 }),
      made(e, { priority: 1, stage: "review" }, P2),
    ];
    const first = (filter: object) => {
      const told = given(task, ...world, ...facts).when("claim", { filter, session_id: S });
      return told.thenEvents({
        type: "claimed",
        payload: { session_id: S, epoch: 1, attempt: 1, ttl_ms: 300_000 },
      })[0]!.subject.id;
    };
    expect(first({})).toBe(e);
    expect(first({ project_id: P })).toBe(b);
    expect(first({ stage: "review" })).toBe(e);
    expect(first({ stage: "review", project_id: P })).toBe(c);
    expect(first({ parent_task_id: b })).toBe(d);
    expect(first({ parent_task_id: b, project_id: P })).toBe(d);
    const none = (filter: object) => claim(facts, { filter });
    none({ stage: "nowhere" }).thenRefused("task.none_ready", { next_at: null });
    none({ parent_task_id: b, stage: "review" }).thenRefused("task.none_ready", { next_at: null });
    none({ project_id: NOWHERE }).thenMissing("project", NOWHERE);
    none({ project_id: PW2 }).thenRefused("project.other_workspace", { project_id: PW2, workspace_id: W2 });
    none({ parent_task_id: NOWHERE }).thenMissing("task", NOWHERE);
    none({ parent_task_id: b, project_id: P2 }).thenRefused("task.other_project", {
      task_id: b,
      project_id: P,
    });
    claim([made(T), made(a, {}, PW2)], { filter: { parent_task_id: a } }).thenRefused(
      "task.other_workspace",
      { task_id: a, workspace_id: W2 },
    );
  });

  test("by filter passes over what an archived project left in the queue", () => {
    const facts = [made(T, { priority: 0 }), made(T2, { priority: 4 }, P2), archived];
    const about = given(task, ...world, ...facts);
    const [event] = about
      .when("claim", { filter: {}, session_id: S })
      .thenEvents({ type: "claimed", payload: { session_id: S, epoch: 1, attempt: 1, ttl_ms: 300_000 } });
    expect(event!.subject.id).toBe(T2);
    about.when("claim", { filter: {}, session_id: S }).thenRefused("task.none_ready", { next_at: null });
    expect(about.kernel.query<Ids>("task.ready").items).toEqual([]);
    const soon = "2026-06-01T00:00:00.000Z";
    claim([made(T, { priority: 0 }), made(T2, { not_before: soon }, P2), archived], {
      filter: {},
    }).thenRefused("task.none_ready", { next_at: soon });
  });

  test("by filter tells when the next one's time comes, of whatever priority", () => {
    const [soon, later] = ["2026-06-01T00:00:00.000Z", "2026-07-01T00:00:00.000Z"];
    const facts = [made(T, { not_before: later, priority: 0 }), made(T2, { not_before: soon, priority: 4 })];
    const { kernel, when } = given(task, ...world, ...facts);
    when("claim", { filter: {}, session_id: S }).thenRefused("task.none_ready", { next_at: soon });
    expect(kernel.query("task.ready")).toMatchObject({ items: [], next: null, next_at: soon });
    expect(kernel.query("task.ready", { project_id: P })).toMatchObject({ next_at: soon });
    expect(kernel.query("task.ready", { workspace_id: W, stage: "a" })).toMatchObject({ next_at: null });
    claim(facts, { filter: { stage: "a" } }).thenRefused("task.none_ready", { next_at: null });
  });

  test("a clock that is set back takes no task out of the queue again", () => {
    const it = kernel();
    it.tell(world);
    const { subject } = receiptOf(it.run("task.create", { project_id: P, title: "a" }));
    it.clock.forward(-3_600_000);
    expect(it.query<Ids>("task.ready").items.map((each) => each.task_id)).toEqual([subject.id]);
    expect(receiptOf(it.run("task.claim", { filter: {}, session_id: S })).subject).toEqual(subject);
  });

  test("a task that was made while the clock was ahead brings nobody's time nearer", () => {
    const it = kernel();
    it.tell(world);
    const year = 365 * 86_400_000;
    it.clock.forward(year);
    const { subject } = receiptOf(it.run("task.create", { project_id: P, title: "a", priority: 1 }));
    it.clock.forward(-year);
    const not_before = "2026-06-01T00:00:00.000Z";
    const june = receiptOf(it.run("task.create", { project_id: P, title: "June", priority: 0, not_before }));
    expect(problemOf(it.run("task.claim", { task_id: june.subject.id, session_id: S })).details).toEqual({
      unmet: [],
      not_before,
    });
    expect(receiptOf(it.run("task.claim", { filter: {}, session_id: S })).subject).toEqual(subject);
    expect(problemOf(it.run("task.claim", { filter: {}, session_id: S })).details).toEqual({
      next_at: not_before,
    });
  });

  test("those whose time had to come stand among the others by when it came", () => {
    const it = kernel();
    it.tell(world);
    const names: string[] = [];
    for (let n = 0; n < 12; n++) {
      it.clock.forward(60_000);
      // Every other one waits for a minute and a half: it comes after the one that is made after it.
      const not_before = wireTime(it.clock.now() + 90_000);
      const made = { project_id: P, title: `${n}`, ...(n % 2 === 0 && { not_before }) };
      names.push(receiptOf(it.run("task.create", made)).subject.id);
    }
    const due = ["1", "0", "3", "2", "5", "4", "7", "6", "9", "8", "11"].map((n) => names[Number(n)]!);
    for (const limit of [1, 3, 100]) {
      const found: string[] = [];
      for (let cursor: string | null | undefined; cursor !== null; ) {
        const page = it.query<Ids & { next: string | null }>("task.ready", {
          limit,
          ...(cursor !== undefined && { cursor }),
        });
        found.push(...page.items.map((each) => each.task_id));
        cursor = page.next;
      }
      expect(found).toEqual(due);
    }
    const claimed = due.map(() => receiptOf(it.run("task.claim", { filter: {}, session_id: S })).subject.id);
    expect(claimed).toEqual(due);
    it.clock.forward(60_000);
    expect(receiptOf(it.run("task.claim", { filter: {}, session_id: S })).subject.id).toBe(names[10]!);
  });
});

describe("the end of a claim", () => {
  const attempts = (it: Kernel) =>
    it.query<{ attempts: { attempt: number; outcome: string | null; failure_class: string | null }[] }>(
      "task.get",
      {
        task_id: T,
      },
    ).attempts;

  test("by its time: the daemon says so, the task is there for the next, and after the last attempt it has failed", () => {
    const it = kernel();
    it.tell([...world, made(T, { max_attempts: 2 })]);
    for (const [epoch, ends] of [
      [1, ["task.claimed", "task.claim_expired"]],
      [2, ["task.claimed", "task.claim_expired", "task.failed"]],
    ] as const) {
      const before = it.head();
      receiptOf(it.run("task.claim", { task_id: T, session_id: S, ttl_ms: 60_000 }));
      // It has not run out yet.
      expect(it.expire()).toBeUndefined();
      it.clock.forward(60_000);
      it.expire();
      expect(it.events(before).map((each) => each.event_type)).toEqual([...ends]);
      expect(problemOf(it.run("task.complete", { task_id: T, epoch })).reason).toBe(
        epoch === 1 ? "task.stale_epoch" : "task.invalid_transition",
      );
      expect(it.lease(`task/${T}`)).toBeUndefined();
    }
    expect(it.events().at(-1)!.payload).toMatchObject({ epoch: 2, failure: { class: "claim_expired" } });
    expect(attempts(it).map(({ attempt, outcome }) => [attempt, outcome])).toEqual([
      [1, "expired"],
      [2, "expired"],
    ]);
    expect(problemOf(it.run("task.retry", { task_id: T }))).toMatchObject({
      reason: "task.attempts_exhausted",
      details: { attempt: 2, max_attempts: 2 },
    });
  });

  test("a renewal puts it off by the ttl and leaves nothing in the log", () => {
    const it = kernel();
    it.tell([...world, made(T)]);
    it.run("task.claim", { task_id: T, session_id: S, ttl_ms: 60_000 });
    const head = it.head();
    it.clock.forward(50_000);
    const { result, events } = receiptOf(it.run("task.renew", { task_id: T, epoch: 1 }));
    expect(events).toEqual([]);
    expect(result).toEqual({
      epoch: 1,
      expires_at: new Date(it.lease(`task/${T}`)!.expires_at).toISOString(),
    });
    it.clock.forward(50_000);
    expect(it.expire()).toBeUndefined();
    it.clock.forward(10_000);
    it.expire();
    expect(it.events(head).map((each) => each.event_type)).toEqual(["task.claim_expired"]);
    expect(problemOf(it.run("task.renew", { task_id: T, epoch: 1 }))).toMatchObject({
      reason: "task.stale_epoch",
      details: { epoch: 1, current: 1 },
    });
  });

  test("of a task that is stopped: it stays so, and goes on to the queue", () => {
    for (const stop of [its("paused", { reason: "wait" }), blocked("policy"), blocked("user_input")])
      for (const [name, payload] of [
        ["release", { epoch: 1 }],
        ["expire_claim", { epoch: 1 }],
        ["leave", { session_id: S }],
      ] as const) {
        const about = given(task, ...world, made(T), claimed(), stop);
        about.when(name, { task_id: T, ...payload } as never);
        const went = about.when(stop.type === "paused" ? "resume" : "unblock", { task_id: T });
        went.thenEvents(its(stop.type === "paused" ? "resumed" : "unblocked", {}));
        expect(about.kernel.query("task.get", { task_id: T })).toMatchObject({
          status: "queued",
          claim: null,
        });
      }
  });

  test("of a task that is stopped, in its last attempt too: it waits on, for nobody has failed at it", () => {
    const about = given(task, ...world, made(T, { max_attempts: 1 }), claimed(), blocked("approval"));
    about
      .when("expire_claim", { task_id: T, epoch: 1 })
      .thenEvents(its("claim_expired", { session_id: S, epoch: 1 }));
    about.when("unblock", { task_id: T }).thenEvents(its("unblocked", {}));
    expect(about.kernel.query("task.get", { task_id: T })).toMatchObject({ status: "queued", claim: null });
  });

  test("a claim that is over, or another's, is not ended again", () => {
    const all = [...world, made(T), claimed()];
    given(task, ...all)
      .when("expire_claim", { task_id: T, epoch: 2 })
      .thenEvents();
    given(task, ...all, released)
      .when("expire_claim", { task_id: T, epoch: 1 })
      .thenEvents();
    given(task, ...all)
      .when("leave", { task_id: T, session_id: S2 })
      .thenEvents();
    given(task, ...all, released)
      .when("leave", { task_id: T, session_id: S })
      .thenEvents();
  });

  test("taken up, it goes on under a new epoch and as it was, stopped or not", () => {
    for (const stop of [[], [its("paused", { reason: "wait" })], [blocked("approval")]]) {
      const about = given(task, ...world, made(T), claimed(), ...stop);
      const { status } = about.kernel.query("task.get", { task_id: T });
      about.kernel.clock.forward(1_000);
      about.when("take_up", { task_id: T, session_id: S2 }).thenEvents();
      const [event] = about
        .when("take_up", { task_id: T, session_id: S })
        .thenEvents(its("claim_resumed", { session_id: S, epoch: 2, ttl_ms: 60_000 }));
      expect(about.kernel.query("task.get", { task_id: T })).toMatchObject({
        status,
        claim: { session_id: S, epoch: 2, attempt: 1 },
      });
      expect(about.kernel.lease(`task/${T}`)).toMatchObject({
        epoch: 2,
        expires_at: Date.parse(event!.timestamp) + 60_000,
      });
    }
    given(task, ...world, made(T), claimed(), released)
      .when("take_up", { task_id: T, session_id: S })
      .thenEvents();
  });

  test("by the session's own end, in the same transaction", () => {
    const it = kernel();
    it.tell([...world, made(T), claimed()]);
    const { events } = receiptOf(it.run("session.end", { session_id: S, outcome: "cancelled" }));
    expect(events.map((each) => each.event_type)).toEqual(["session.ended", "task.released"]);
    expect(it.query("task.get", { task_id: T })).toMatchObject({ status: "queued", claim_session_id: null });
  });

  test("attempts tell how each ended; a retry clears the failure and is limited by them", () => {
    const about = given(task, ...world, made(T, { max_attempts: 2 }));
    const it = about.kernel;
    about.when("claim", { task_id: T, session_id: S });
    about.when("fail", { task_id: T, epoch: 1, failure });
    expect(it.query("task.get", { task_id: T })).toMatchObject({ status: "failed", failure_class: "tests" });
    about.when("retry", { task_id: T }).thenEvents({ type: "retried", payload: {} });
    expect(it.query("task.get", { task_id: T })).toMatchObject({ status: "queued", failure_class: null });
    about.when("claim", { task_id: T, session_id: S2 });
    about.when("fail", { task_id: T, epoch: 2, failure });
    about
      .when("retry", { task_id: T })
      .thenRefused("task.attempts_exhausted", { attempt: 2, max_attempts: 2 });
    expect(attempts(it)).toMatchObject([
      { attempt: 1, session_id: S, epoch: 1, outcome: "failed", failure_class: "tests" },
      { attempt: 2, session_id: S2, epoch: 2, outcome: "failed", failure_class: "tests" },
    ]);
  });
});

describe("block, pause and stage", () => {
  test("another reason is told, the same one or none is not", () => {
    for (const [name, event, more] of [
      ["pause", "paused", {}],
      ["block", "blocked", { on: "policy" }],
    ] as const) {
      const facts = [...world, made(T), its(event, { ...more, reason: "a" } as never)];
      const payload = { task_id: T, ...more };
      given(task, ...facts)
        .when(name, { ...payload, reason: "a" } as never)
        .thenEvents();
      given(task, ...facts)
        .when(name, payload as never)
        .thenEvents();
      given(task, ...facts)
        .when(name, { ...payload, reason: "b" } as never)
        .thenEvents({ type: event, payload: { ...more, reason: "b" } } as never);
    }
  });

  test("a block that comes from the work itself is fenced by its epoch", () => {
    const all = [...world, made(T), claimed()];
    const block = { task_id: T, on: "user_input" as const };
    given(task, ...all)
      .when("block", { ...block, epoch: 2 })
      .thenRefused("task.stale_epoch", { epoch: 2, current: 1 });
    given(task, ...all)
      .when("block", { ...block, epoch: 1 })
      .thenEvents({ type: "blocked", payload: { on: "user_input" } });
  });

  test("the stage changes in any status, and tells where it came from", () => {
    const about = given(task, ...world, made(T));
    about
      .when("advance_stage", { task_id: T, stage: "a" })
      .thenEvents({ type: "stage_advanced", payload: { stage: "a" } });
    about.when("advance_stage", { task_id: T, stage: "a" }).thenEvents();
    // The queue knows of it.
    about.when("claim", { filter: { stage: "a" }, session_id: S });
    about.when("complete", { task_id: T, epoch: 1 });
    about
      .when("advance_stage", { task_id: T, stage: "b" })
      .thenEvents({ type: "stage_advanced", payload: { from: "a", stage: "b" } });
    expect(about.kernel.query("task.get", { task_id: T })).toMatchObject({ stage: "b", status: "succeeded" });
  });
});

describe("dependencies", () => {
  test("come and go once, between tasks of one workspace that are there", () => {
    const all = [...world, made(T), made(T2, {}, P2)];
    const pair = { task_id: T, depends_on_task_id: T2 };
    const payload = { depends_on_task_id: T2 };
    given(task, ...all)
      .when("add_dependency", pair)
      .thenEvents({ type: "dependency_added", payload });
    given(task, ...all)
      .when("remove_dependency", pair)
      .thenEvents();
    const with_ = [...all, its("dependency_added", payload)];
    given(task, ...with_)
      .when("add_dependency", pair)
      .thenEvents();
    given(task, ...with_)
      .when("remove_dependency", pair)
      .thenEvents({ type: "dependency_removed", payload });
    for (const name of ["add_dependency", "remove_dependency"] as const) {
      given(task, ...all)
        .when(name, { task_id: T, depends_on_task_id: NOWHERE })
        .thenMissing("task", NOWHERE);
      given(task, ...world, made(T), made(T2, {}, PW2))
        .when(name, pair)
        .thenRefused("task.other_workspace", { task_id: T2, workspace_id: W2 });
      for (const status of ["succeeded", "cancelled"])
        given(task, ...all, ...past[status]!)
          .when(name, pair)
          .thenRefused("task.invalid_transition", { from: status, to: status, allowed: [] });
    }
  });

  test("a task that would wait for itself is told how, through any number of hops", () => {
    const ids = Array.from({ length: 40 }, (_, index) => uuid(100 + index));
    const chain = ids.map((id, index) => made(id, { depends_on: ids.slice(Math.max(0, index - 1), index) }));
    const refused = (task_id: string, depends_on_task_id: string) =>
      given(task, ...world, ...chain).when("add_dependency", { task_id, depends_on_task_id });
    refused(ids[0]!, ids[0]!).thenRefused("task.dependency_cycle", { path: [ids[0], ids[0]] });
    refused(ids[0]!, ids[39]!).thenRefused("task.dependency_cycle", { path: [ids[0], ...ids.toReversed()] });
    refused(ids[38]!, ids[39]!).thenRefused("task.dependency_cycle", { path: [ids[38], ids[39], ids[38]] });
    refused(ids[39]!, ids[0]!).thenEvents({
      type: "dependency_added",
      payload: { depends_on_task_id: ids[0]! },
    });
  });

  test("no graph has a cycle, and none is refused that would have none: against reachability", () => {
    const edges = fc.array(fc.tuple(fc.nat(8), fc.nat(8)), { minLength: 1, maxLength: 40, size: "max" });
    const met = { cycles: 0, added: 0 };
    fc.assert(
      fc.property(edges, (sequence) => {
        const it = kernel();
        const ids = Array.from({ length: 9 }, (_, index) => uuid(100 + index));
        it.tell([...world, ...ids.map((id) => made(id))]);
        const needs = new Set<string>();
        const reaches = (from: number, to: number, seen = new Set<number>()): boolean =>
          from === to ||
          ids.some((_, next) => {
            if (!needs.has(`${from} ${next}`) || seen.has(next)) return false;
            seen.add(next);
            return reaches(next, to, seen);
          });
        for (const [from, to] of sequence) {
          const cycle = reaches(to, from);
          const outcome = it.run("task.add_dependency", { task_id: ids[from], depends_on_task_id: ids[to] });
          if (!cycle) {
            receiptOf(outcome);
            needs.add(`${from} ${to}`);
            met.added++;
            continue;
          }
          met.cycles++;
          const { reason, details } = problemOf(outcome);
          const path = (details!.path as string[]).map((id) => ids.indexOf(id));
          expect(reason).toBe("task.dependency_cycle");
          expect([path[0], path[1], path.at(-1)]).toEqual([from, to, from]);
          for (let at = 1; at < path.length - 1; at++)
            expect(needs.has(`${path[at]} ${path[at + 1]}`)).toBe(true);
          expect(new Set(path.slice(1)).size).toBe(path.length - 1);
        }
      }),
      { seed, numRuns: 25 },
    );
    expect([met.cycles > 20, met.added > 20]).toEqual([true, true]);
  });
});

interface Ids {
  readonly items: { readonly task_id: string }[];
  readonly next: string | null;
}

/** Every page of a query. */
function pages(it: Kernel, type: string, params: object, limit: number, at?: string): string[] {
  const ids: string[] = [];
  let cursor: string | undefined;
  do {
    const page = it.query<Ids>(type, { ...params, limit, ...(cursor !== undefined && { cursor }) }, at);
    expect(page.items.length).toBeLessThanOrEqual(limit);
    ids.push(...page.items.map((each) => each.task_id));
    cursor = page.next ?? undefined;
    expect(cursor === undefined || page.items.length === limit).toBe(true);
  } while (cursor !== undefined);
  return ids;
}

describe("the queue", () => {
  const NOW = "2026-02-01T00:00:00.000Z";
  const times = [
    undefined,
    "2025-06-01T00:00:00.000Z",
    "2026-01-15T00:00:00.000Z",
    NOW,
    "2026-02-01T00:00:00.001Z",
  ];
  interface Sketch {
    readonly priority: number;
    readonly time: number;
    readonly stage: number;
    readonly project: number;
    readonly child: boolean;
  }
  const sketch: fc.Arbitrary<Sketch> = fc.record({
    priority: fc.nat(4),
    time: fc.nat(times.length - 1),
    stage: fc.nat(2),
    project: fc.nat(2),
    child: fc.boolean(),
  });
  const stages = [undefined, "a", "b"];
  const projects = [P, P2, PW2];

  test("is read in pages of any size in the order in which it is claimed, by any filter: against a sort", () => {
    fc.assert(
      fc.property(
        fc.array(sketch, { maxLength: 25, size: "max" }),
        fc.integer({ min: 1, max: 4 }),
        (all, limit) => {
          const it = kernel();
          const rows = all.map(({ priority, time, stage, project, child }, index) => ({
            id: uuid(101 + index),
            priority,
            not_before: times[time],
            stage: stages[stage],
            project_id: projects[project]!,
            parent_task_id: child && projects[project] === P ? uuid(100) : undefined,
          }));
          it.tell([
            ...world,
            made(uuid(100), { priority: 4 }),
            ...rows.map(({ id, project_id, ...more }) =>
              made(
                id,
                Object.fromEntries(Object.entries(more).filter(([, value]) => value !== undefined)),
                project_id,
              ),
            ),
          ]);
          const known = it.db
            .query<{ task_id: string; created_at: string; project_id: string; priority: number }, []>(
              "SELECT * FROM tasks",
            )
            .all();
          const naive = (filter: Record<string, unknown>) =>
            known
              .filter((row) =>
                Object.entries(filter).every(
                  ([name, value]) => (row as Record<string, unknown>)[name] === value,
                ),
              )
              .map((row) => {
                const not_before = rows.find((each) => each.id === row.task_id)?.not_before ?? "";
                return { ...row, since: [not_before, row.created_at].sort()[1]! };
              })
              .filter(({ since }) => since <= NOW)
              .sort((one, other) => {
                const key = ({ priority, since, task_id }: typeof one) => `${priority} ${since} ${task_id}`;
                return key(one) < key(other) ? -1 : 1;
              })
              .map((row) => row.task_id);
          for (const filter of [
            {},
            { workspace_id: W },
            { workspace_id: W, stage: "a" },
            { project_id: P },
            { project_id: P, workspace_id: W, stage: "b" },
            { stage: "a" },
            { parent_task_id: uuid(100) },
            { parent_task_id: uuid(100), project_id: P, stage: "a" },
          ])
            expect([filter, pages(it, "task.ready", filter, limit, NOW)]).toEqual([filter, naive(filter)]);
          for (const nothing of [
            { workspace_id: W2, project_id: P },
            { project_id: P2, parent_task_id: uuid(100) },
            { project_id: NOWHERE },
          ])
            expect(pages(it, "task.ready", nothing, limit, NOW)).toEqual([]);

          // Claimed one by one, in the order in which all of it is read once its time has come.
          it.clock.forward(60 * 86_400_000);
          const order = pages(it, "task.ready", { workspace_id: W }, 10, "2026-03-01T00:00:00.000Z");
          const taken = order.map(
            () => receiptOf(it.run("task.claim", { filter: {}, session_id: S })).subject.id,
          );
          expect(taken).toEqual(order);
        },
      ),
      { seed, numRuns: 25 },
    );
  });

  test("is claimed in the order in which it is read", () => {
    const it = kernel();
    it.tell([
      ...world,
      made(uuid(20), { priority: 3 }),
      made(uuid(21), { not_before: "2026-01-01T00:00:30.000Z" }),
      made(uuid(22), { priority: 1 }),
      made(uuid(23)),
      made(uuid(24), { priority: 0, not_before: "2027-01-01T00:00:00.000Z" }),
    ]);
    it.clock.forward(100_000);
    const order = pages(it, "task.ready", { workspace_id: W }, 10);
    expect(order).toEqual([uuid(22), uuid(21), uuid(23), uuid(20)]);
    const claim = () => it.run("task.claim", { filter: {}, session_id: S });
    expect(order.map(() => receiptOf(claim()).subject.id)).toEqual(order);
    expect(problemOf(claim())).toMatchObject({
      reason: "task.none_ready",
      details: { next_at: "2027-01-01T00:00:00.000Z" },
    });
  });

  test("goes on behind a task that has been claimed since; what no page gave is no cursor", () => {
    const it = kernel();
    it.tell([...world, ...[0, 1, 2, 3].map((index) => made(uuid(20 + index)))]);
    const first = it.query<Ids>("task.ready", { limit: 2 });
    it.run("task.claim", { task_id: uuid(21), session_id: S });
    it.run("task.claim", { task_id: uuid(22), session_id: S });
    const rest = it.query<Ids>("task.ready", { limit: 2, cursor: first.next! });
    expect([rest.items.map((each) => each.task_id), rest.next]).toEqual([[uuid(23)], null]);
    for (const type of ["task.ready", "task.list"])
      expect(() =>
        it.query(type, { cursor: "nonsense", ...(type === "task.list" && { overdue: true }) }),
      ).toThrow(BadCursor);
  });

  test("has a closed workspace's tasks no more, until it is open again", () => {
    const it = kernel();
    it.tell([...world, made(T), made(T2, {}, PW2), closed]);
    const ready = () => it.query<Ids>("task.ready", { limit: 1 }).items.map((each) => each.task_id);
    expect(ready()).toEqual([T2]);
    it.tell([inW("opened", {})]);
    expect(ready()).toEqual([T]);
  });
});

describe("list and get", () => {
  test("list filters by whatever a task has", () => {
    const it = kernel();
    it.tell([
      ...world,
      made(T, { stage: "a" }),
      claimed(),
      made(T2, { parent_task_id: T }),
      made(uuid(20), {}, P2),
      made(uuid(21), {}, PW2),
    ]);
    const list = (params: object) => pages(it, "task.list", params, 1);
    expect(list({})).toEqual([T, T2, uuid(20), uuid(21)]);
    expect(list({ workspace_id: W })).toEqual([T, T2, uuid(20)]);
    expect(list({ project_id: P })).toEqual([T, T2]);
    expect(list({ project_id: P, status: "queued" })).toEqual([T2]);
    expect(list({ status: "running" })).toEqual([T]);
    expect(list({ session_id: S })).toEqual([T]);
    expect(list({ stage: "a" })).toEqual([T]);
    expect(list({ parent_task_id: T })).toEqual([T2]);
    expect(list({ parent_task_id: T, status: "failed" })).toEqual([]);
  });

  test("overdue is what should be done by now and is not; the longest first", () => {
    const it = kernel();
    const [a, b, c, d] = [uuid(20), uuid(21), uuid(22), uuid(23)];
    it.tell([
      ...world,
      made(a, { deadline_at: "2026-02-02T00:00:00.000Z" }),
      made(b, { deadline_at: "2026-02-01T00:00:00.000Z" }, P2),
      made(c, { deadline_at: "2026-02-03T00:00:00.000Z" }),
      made(d),
      made(T, { deadline_at: "2026-01-01T00:00:00.000Z" }),
      claimed(),
    ]);
    const at = "2026-02-03T00:00:00.000Z";
    const list = (params: object, limit = 1) => pages(it, "task.list", params, limit, at);
    for (const limit of [1, 2, 5]) expect(list({ overdue: true }, limit)).toEqual([T, b, a]);
    expect(list({ overdue: true, project_id: P })).toEqual([T, a]);
    expect(list({ overdue: true, session_id: S })).toEqual([T]);
    expect(list({ overdue: false })).toEqual([c, d]);
    it.tell([its("succeeded", { epoch: 1 })]);
    expect(list({ overdue: true })).toEqual([b, a]);
    expect(list({ overdue: false })).toEqual([T, c, d]);
  });

  test("get tells all that bears on a task, and why it cannot be claimed", () => {
    const it = kernel();
    expect(it.queryRefused("task.get", { task_id: T })).toMatchObject({
      code: "not_found",
      details: { kind: "task", id: T },
    });
    const soon = "2026-06-01T00:00:00.000Z";
    it.tell([...world, made(T), made(T2, { depends_on: [T], not_before: soon, title: "then" })]);
    expect(it.query("task.get", { task_id: T })).toMatchObject({ why: [], claim: null, result: null });
    expect(it.query("task.get", { task_id: T2 })).toMatchObject({
      unmet: 1,
      dependencies: [{ task_id: T, title: "do it", status: "queued" }],
      dependency_count: 1,
      why: [
        { because: "dependency", detail: "it waits for 'do it', which is queued", task_id: T },
        { because: "not_before", detail: `its time comes at ${soon}` },
      ],
    });
    it.tell([claimed()]);
    expect(it.query("task.get", { task_id: T })).toMatchObject({
      dependents: [{ task_id: T2, title: "then", status: "queued" }],
      dependent_count: 1,
      attempts: [{ attempt: 1, session_id: S, epoch: 1, outcome: null }],
      claim: {
        session_id: S,
        epoch: 1,
        attempt: 1,
        expires_at: new Date(it.lease(`task/${T}`)!.expires_at).toISOString(),
      },
      why: [{ because: "status", detail: "it is running" }],
    });
    const result = { z: [1, { b: 1, a: 2 }], commit: "abc" };
    it.tell([its("succeeded", { epoch: 1, result }), archived]);
    expect(it.query("task.get", { task_id: T })).toMatchObject({
      claim: null,
      result,
      why: [
        { because: "status", detail: "it is succeeded" },
        { because: "project_archived", detail: "its project is archived" },
      ],
    });
    it.tell([closed, made(uuid(20), {}, P2), about(task, uuid(20))("paused", { reason: "lunch" })]);
    expect(it.query("task.get", { task_id: uuid(20) })).toMatchObject({
      blocked_reason: "lunch",
      why: [
        { because: "status", detail: "it is paused: lunch" },
        { because: "workspace_closed", detail: "its workspace is closed" },
      ],
    });
  });
});

describe("after any sequence of commands", () => {
  const TABLES = ["tasks", "task_queue", "task_dependencies", "task_attempts"];
  const nth = fc.nat(6);
  const epoch = fc.integer({ min: 1, max: 3 });
  const step = (name: string, more: Record<string, fc.Arbitrary<unknown>> = {}) =>
    fc.record({ name: fc.constant(name), nth, more: fc.record(more) });
  const steps = fc.array(
    fc.oneof(
      { weight: 4, arbitrary: step("create", { needs: fc.array(nth, { maxLength: 3 }) }) },
      { weight: 6, arbitrary: step("claim", { session_id: fc.constantFrom(S, S2) }) },
      { weight: 6, arbitrary: step("complete", { epoch, result: fc.constant({ b: 1, a: { d: 1, c: 2 } }) }) },
      { weight: 4, arbitrary: step("fail", { epoch, failure: fc.constant(failure) }) },
      step("release", { epoch }),
      step("block", { on: fc.constantFrom("policy", "approval", "user_input") }),
      step("unblock"),
      step("pause"),
      step("resume"),
      { weight: 3, arbitrary: step("retry") },
      step("cancel"),
      step("advance_stage", { stage: fc.constantFrom("a", "b") }),
      { weight: 3, arbitrary: step("add_dependency", { on: nth }) },
      { weight: 2, arbitrary: step("remove_dependency", { on: nth }) },
      { weight: 6, arbitrary: step("expire_claim", { epoch }) },
      step("leave", { session_id: fc.constantFrom(S, S2) }),
      { weight: 2, arbitrary: step("take_up", { session_id: fc.constantFrom(S, S2) }) },
    ),
    { minLength: 90, maxLength: 180, size: "max" },
  );

  /** Which tasks are ready, told from nothing but the log: a status each, and who needs whom. */
  function naive(it: Kernel) {
    const status = new Map<string, string>();
    const claim = new Map<string, boolean>();
    const needs = new Map<string, Set<string>>();
    const on = {
      policy: "blocked_by_policy",
      approval: "blocked_by_approval",
      user_input: "awaiting_user_input",
    };
    for (const { event_type, subject, payload } of it.events()) {
      if (subject.kind !== "task") continue;
      const { id } = subject;
      const given = payload as { depends_on?: string[]; depends_on_task_id?: string; on?: keyof typeof on };
      const goOn = () => status.set(id, claim.get(id) ? "running" : "queued");
      const name = event_type.replace("task.", "");
      if (name === "created") {
        status.set(id, "queued");
        needs.set(id, new Set(given.depends_on));
      } else if (name === "claimed") {
        status.set(id, "running");
        claim.set(id, true);
      } else if (name === "released" || name === "claim_expired") {
        claim.set(id, false);
        if (status.get(id) === "running") status.set(id, "queued");
      } else if (["succeeded", "failed", "cancelled"].includes(name)) {
        status.set(id, name);
        claim.set(id, false);
      } else if (name === "paused") status.set(id, name);
      else if (name === "blocked") status.set(id, on[given.on!]);
      else if (["unblocked", "resumed"].includes(name)) goOn();
      else if (name === "retried") status.set(id, "queued");
      else if (name === "dependency_added") needs.get(id)!.add(given.depends_on_task_id!);
      else if (name === "dependency_removed") needs.get(id)!.delete(given.depends_on_task_id!);
    }
    return [...status]
      .map(([task_id, now]) => {
        const unmet = [...needs.get(task_id)!].filter((id) => status.get(id) !== "succeeded").length;
        return { task_id, status: now, unmet, ready: now === "queued" && unmet === 0 ? 1 : 0 };
      })
      .sort((a, b) => (a.task_id < b.task_id ? -1 : 1));
  }

  test("the counters are what a naive model says, the queue is what is ready, and a rebuild gives the same", () => {
    const met = new Set<string>();
    fc.assert(
      fc.property(steps, (sequence) => {
        const it = kernel();
        it.tell(world);
        const ids: string[] = [];
        const id = (index: number) => ids[index % ids.length] ?? NOWHERE;
        for (const { name, nth, more } of sequence) {
          const { needs, on, ...rest } = more as { needs?: number[]; on?: unknown };
          const payload =
            name === "create"
              ? { project_id: P, title: "t", ...(ids.length > 0 && { depends_on: needs!.map(id) }) }
              : {
                  task_id: id(nth),
                  ...rest,
                  ...(typeof on === "number" && { depends_on_task_id: id(on) }),
                  ...(typeof on === "string" && { on }),
                };
          const outcome = it.run(`task.${name}`, payload);
          expect(it.bugs).toEqual([]);
          if ("problem" in outcome) met.add(outcome.problem.reason ?? outcome.problem.code);
          else if (name === "create") ids.push(receiptOf(outcome).subject.id);
        }
        for (const { event_type } of it.events()) met.add(event_type);
        const all = (sql: string) => it.db.query<{ task_id: string }, []>(sql).all();
        const expected = naive(it);
        expect(all("SELECT task_id, status, unmet, ready FROM tasks ORDER BY task_id") as unknown).toEqual(
          expected,
        );
        expect(all("SELECT task_id FROM task_queue ORDER BY task_id").map((row) => row.task_id)).toEqual(
          expected.filter((row) => row.ready === 1).map((row) => row.task_id),
        );
        // Who has a claim has a lease and an attempt that goes on, and nobody else has either.
        const holders = all("SELECT task_id FROM tasks WHERE claim_session_id NOT NULL ORDER BY task_id");
        expect(all("SELECT task_id FROM task_attempts WHERE outcome IS NULL ORDER BY task_id")).toEqual(
          holders,
        );
        expect(
          all("SELECT substr(stream, 6) AS task_id FROM leases WHERE stream LIKE 'task/%' ORDER BY stream"),
        ).toEqual(holders);

        const tables = () => TABLES.map((name) => it.db.query(`SELECT * FROM ${name}`).all());
        const live = tables();
        it.projections.rebuild("task");
        while (it.projections.step() !== undefined);
        expect(tables()).toEqual(live);
      }),
      { seed, numRuns: 25 },
    );
    const events = Object.keys(task.events).map((name) => `task.${name}`);
    expect(events.filter((name) => !met.has(name))).toEqual([]);
    expect([...met]).toEqual(
      expect.arrayContaining([
        "task.not_ready",
        "task.dependency_cycle",
        "task.stale_epoch",
        "task.invalid_transition",
      ]),
    );
  });
});

describe("nothing about tasks is looked for without an index", () => {
  /** How SQLite goes about each statement that a run asks for, by statement. It is asked on another connection. */
  function plans(db: Database, other: Database, run: () => unknown): Map<string, string[]> {
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
    return new Map(
      [...seen]
        .filter((sql) => /\b(tasks|task_[a-z]+)\b/.test(sql) && !sql.startsWith("INSERT"))
        .map((sql) => [
          sql,
          other
            .prepare<{ detail: string }, []>(`EXPLAIN QUERY PLAN ${sql.replaceAll(/\?\d*/g, "'x'")}`)
            .all()
            .map((step) => step.detail),
        ]),
    );
  }
  /** What goes through more than it shows; a list that the statement was given is no table. */
  const slow = (steps: Map<string, string[]>) =>
    [...steps].filter(([, plan]) => plan.some((step) => /^SCAN (?!json_each)|TEMP B-TREE/.test(step)));
  const facts = [
    ...world,
    made(T, { stage: "a", deadline_at: "2026-01-02T00:00:00.000Z" }),
    made(T2, { depends_on: [T], parent_task_id: T }),
    made(uuid(20), { not_before: "2026-09-01T00:00:00.000Z", priority: 0 }),
    ...Array.from({ length: 5 }, (_, index) => made(uuid(30 + index), { parent_task_id: T, stage: "a" })),
  ];

  test("neither by a claim nor by any other command", () => {
    const it = kernel();
    it.tell(facts);
    const db = openForReading(it.path);
    afterAll(() => db.close());
    const claimed = plans(it.db, db, () => {
      for (const filter of [
        {},
        { stage: "a" },
        { project_id: P },
        { project_id: P, stage: "a" },
        { parent_task_id: T },
        { parent_task_id: T, stage: "a" },
      ])
        receiptOf(it.run("task.claim", { filter, session_id: S }));
    });
    expect([...claimed.keys()].filter((sql) => /FROM task_queue.*priority >= /.test(sql)).length).toBe(6);
    expect(slow(claimed)).toEqual([]);
    const others = plans(it.db, db, () => {
      it.run("task.complete", { task_id: T, epoch: 1 });
      it.run("task.create", { project_id: P, title: "a", depends_on: [T2], parent_task_id: T2 });
      it.run("task.add_dependency", { task_id: uuid(30), depends_on_task_id: uuid(20) });
      it.run("task.add_dependency", { task_id: uuid(20), depends_on_task_id: uuid(30) });
      it.run("task.remove_dependency", { task_id: uuid(30), depends_on_task_id: uuid(20) });
      it.run("task.claim", { task_id: uuid(20), session_id: S2 });
      it.run("task.advance_stage", { task_id: T2, stage: "b" });
      it.run("session.end", { session_id: S, outcome: "completed" });
    });
    expect(others.size).toBeGreaterThan(8);
    expect(slow(others)).toEqual([]);
  });

  test("nor by a query", () => {
    const it = kernel();
    it.tell(facts);
    const db = openForReading(it.path);
    afterAll(() => db.close());
    const models = new ReadModels(db, it.registry);
    const at = "2026-03-01T00:00:00.000Z";
    const asked = (name: "list" | "ready" | "get", params: object) => {
      const steps = plans(db, db, () => {
        const { answer } = models.snapshot("task", (read) =>
          task.queries[name].run(read, params as never, at),
        );
        const { next } = answer as { next?: string | null };
        if (next)
          models.snapshot("task", (read) =>
            task.queries[name].run(read, { ...params, cursor: next } as never, at),
          );
      });
      expect([name, params, steps.size > 0, slow(steps)]).toEqual([name, params, true, []]);
    };
    for (const filter of [
      {},
      { workspace_id: W },
      { workspace_id: W, stage: "a" },
      { project_id: P },
      { project_id: P, stage: "a" },
      { workspace_id: W, project_id: P, stage: "a" },
      { parent_task_id: T },
      { parent_task_id: T, project_id: P, stage: "a" },
      { stage: "a" },
    ])
      asked("ready", { ...filter, limit: 1 });
    for (const filter of [
      { workspace_id: W },
      { project_id: P },
      { project_id: P, workspace_id: W },
      { status: "queued" },
      { project_id: P, status: "queued" },
      { session_id: S },
      { stage: "a" },
      { parent_task_id: T },
      { overdue: true },
      { overdue: true, project_id: P, status: "queued" },
      { overdue: false, project_id: P },
    ])
      asked("list", { ...filter, limit: 1 });
    asked("get", { task_id: T2 });
  });
});
