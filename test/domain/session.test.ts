/**
 * The rules of session (SPEC §8): every command in every status, by a copy of SPEC's table; every reason with its details;
 * leases from heartbeat to loss and back; what an end gives back; and trees against a naive model of them. The seed is printed;
 * MP_TEST_SEED=… repeats a run.
 */
import { describe, expect, test } from "bun:test";
import { project } from "../../src/domain/project.ts";
import { session } from "../../src/domain/session.ts";
import { task } from "../../src/domain/task.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { worktree } from "../../src/domain/worktree.ts";
import { BadCursor } from "../../src/kernel/readmodel.ts";
import { schemaErrors } from "../../src/kernel/schema.ts";
import { about, type Fact, given, type Kernel, kernel, uuid } from "../support/given.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/session.test.ts: MP_TEST_SEED=${seed}`);

const W = uuid(1);
const W2 = uuid(2);
const P = uuid(3);
const P2 = uuid(4);
const S = uuid(5);
const PARENT = uuid(6);
const FOREIGN = uuid(7);
const NOWHERE = uuid(9);

const [inW, inW2] = [about(workspace, W), about(workspace, W2)];
const open = inW("created", { name: "w" });
const closed = inW("closed", {});
const other = inW2("created", { name: "w2" });
const inP = about(project, P, { workspace_id: W });
const its = about(session, S, { workspace_id: W });
const agent = { name: "coder" };
const spawned = its("spawned", { agent, epoch: 1, ttl_ms: 300_000 });
const reported = (
  status: "running" | "idle" | "waiting",
  waiting_for?: "approval" | "user_input" | "policy",
) => its("status_reported", { status, ...(waiting_for && { waiting_for }) });
const lost = its("lost", { epoch: 1 });
const ended = (outcome: "completed" | "failed" | "cancelled") => its("ended", { outcome });
const running = [open, spawned, reported("running")];
const parentOf = about(session, PARENT, { workspace_id: W });
const parent = parentOf("spawned", { agent, epoch: 1, ttl_ms: 300_000 });
const foreign = about(session, FOREIGN, { workspace_id: W2 })("spawned", {
  agent,
  epoch: 1,
  ttl_ms: 300_000,
});

const expiry = (at: string, ttl_ms: number) => new Date(Date.parse(at) + ttl_ms).toISOString();

/** SPEC §8, word for word. */
const TABLE = `
  starting  | running, failed, cancelled, lost
  running   | idle, waiting, completed, failed, cancelled, lost
  idle      | running, completed, cancelled, lost
  waiting   | running, failed, cancelled, lost
  lost      | running, failed, cancelled
  completed |
  failed    |
  cancelled |`;
const follows = new Map(
  TABLE.trim()
    .split("\n")
    .map((line) => line.split("|").map((part) => part.trim()) as [string, string])
    .map(([from, to]) => [from, to === "" ? [] : to.split(", ")]),
);

/** How a session comes to each status. */
const past: Readonly<Record<string, readonly Fact[]>> = {
  starting: [open, spawned],
  running,
  idle: [...running, reported("idle")],
  waiting: [...running, reported("waiting", "approval")],
  lost: [...running, lost],
  completed: [...running, ended("completed")],
  failed: [...running, ended("failed")],
  cancelled: [...running, ended("cancelled")],
};

describe("every command in every status", () => {
  test("the table names every status", () => {
    expect([...follows.keys()]).toEqual(Object.keys(past));
  });

  for (const [from, allowed] of follows) {
    const facts = past[from]!;
    const there = allowed.includes("lost");

    test(`${from}: report_status`, () => {
      for (const status of ["running", "idle", "waiting"] as const) {
        const payload = status === "waiting" ? { status, waiting_for: "approval" as const } : { status };
        const told = given(session, ...facts).when("report_status", { session_id: S, ...payload });
        if (from === status) told.thenEvents();
        // Out of lost only resume leads.
        else if (allowed.includes(status) && from !== "lost")
          told.thenEvents({ type: "status_reported", payload });
        else told.thenRefused("session.invalid_transition", { from, to: status, allowed });
      }
    });

    test(`${from}: end`, () => {
      for (const outcome of ["completed", "failed", "cancelled"] as const) {
        const told = given(session, ...facts).when("end", { session_id: S, outcome });
        if (allowed.includes(outcome)) told.thenEvents({ type: "ended", payload: { outcome } });
        else told.thenRefused("session.invalid_transition", { from, to: outcome, allowed });
      }
    });

    test(`${from}: resume`, () => {
      const told = given(session, ...facts).when("resume", { session_id: S });
      if (from === "lost") told.thenEvents({ type: "resumed", payload: { epoch: 2, ttl_ms: 300_000 } });
      else told.thenRefused("session.invalid_transition", { from, to: "running", allowed });
    });

    test(`${from}: heartbeat`, () => {
      const about = given(session, ...facts);
      const told = about.when("heartbeat", { session_id: S, epoch: 1 });
      if (!there) told.thenRefused("session.invalid_transition", { from, to: "running", allowed });
      else {
        told.thenEvents();
        const { expires_at } = about.kernel.lease(`session/${S}`)!;
        told.thenResult({ epoch: 1, expires_at: new Date(expires_at).toISOString() });
      }
    });

    test(`${from}: lose, which the daemon gives when the lease has run out`, () => {
      const told = given(session, ...facts).when("lose", { session_id: S, epoch: 1 });
      if (there) told.thenEvents({ type: "lost", payload: { epoch: 1 } });
      else told.thenEvents();
      given(session, ...facts)
        .when("lose", { session_id: S, epoch: 2 })
        .thenEvents();
    });

    test(`${from}: fork`, () => {
      given(session, ...facts)
        .when("fork", { from_session_id: S, mode: "planning_only" })
        .thenEvents({
          type: "forked",
          payload: {
            from_session_id: S,
            at_seq: facts.length,
            mode: "planning_only",
            agent,
            epoch: 1,
            ttl_ms: 300_000,
          },
        });
    });

    test(`${from}: an epoch that is not the current one is told before anything else`, () => {
      const details = { epoch: 2, current: 1 };
      const it = given(session, ...facts);
      it.when("report_status", { session_id: S, status: "running", epoch: 2 }).thenRefused(
        "session.stale_epoch",
        details,
      );
      it.when("end", { session_id: S, outcome: "failed", epoch: 2 }).thenRefused(
        "session.stale_epoch",
        details,
      );
      it.when("heartbeat", { session_id: S, epoch: 2 }).thenRefused("session.stale_epoch", details);
    });

    test(`${from}: has a lease just while it is live`, () => {
      const it = given(session, ...facts).kernel;
      expect(it.lease(`session/${S}`) !== undefined).toBe(there);
      const { expires_at, status } = it.query("session.get", { session_id: S });
      expect([status, expires_at !== null]).toEqual([from, there]);
    });
  }
});

describe("spawn", () => {
  const payload = { agent, epoch: 1, ttl_ms: 300_000 };

  test("makes it starting, with what was given and the default ttl, in the scope of its workspace", () => {
    const told = given(session, open).when("spawn", { workspace_id: W, agent });
    const [event] = told.thenEvents({ type: "spawned", payload });
    told.thenResult({ epoch: 1, expires_at: expiry(event!.timestamp, 300_000) });
    expect([event!.workspace_id, event!.project_id, event!.seq_stream]).toEqual([W, undefined, 1]);

    const whole = {
      agent: { name: "coder", version: "2.1", model: "large" },
      title: "Mend the parser",
      external_ref: "ci/4711",
      ttl_ms: 60_000,
    };
    const it = given(session, open, inP("created", { name: "p" }), parent);
    const full = it.when("spawn", { workspace_id: W, project_id: P, parent_session_id: PARENT, ...whole });
    const [second] = full.thenEvents({
      type: "spawned",
      payload: { ...whole, parent_session_id: PARENT, epoch: 1 },
    });
    full.thenResult({ epoch: 1, expires_at: expiry(second!.timestamp, 60_000) });
    expect([second!.workspace_id, second!.project_id]).toEqual([W, P]);
    expect(it.kernel.query("session.get", { session_id: second!.subject.id })).toMatchObject({
      workspace_id: W,
      project_id: P,
      parent_session_id: PARENT,
      root_session_id: PARENT,
      depth: 1,
      status: "starting",
      waiting_for: null,
      title: "Mend the parser",
      agent_name: "coder",
      agent_version: "2.1",
      agent_model: "large",
      external_ref: "ci/4711",
      epoch: 1,
      ttl_ms: 60_000,
      forked_from_session_id: null,
      ended_at: null,
      expires_at: expiry(second!.timestamp, 60_000),
      attachments: [],
      claims: [],
      version: 1,
    });
  });

  test("needs a workspace that is there and open, and a project of it that is active", () => {
    const spawn = (facts: Fact[], more: { workspace_id?: string; project_id?: string } = {}) =>
      given(session, ...facts).when("spawn", { workspace_id: W, agent, ...more });
    spawn([]).thenMissing("workspace", W);
    spawn([open], { workspace_id: NOWHERE }).thenMissing("workspace", NOWHERE);
    spawn([open, closed]).thenRefused("workspace.closed", { workspace_id: W });
    spawn([open, closed, inW("opened", {})]).thenEvents({ type: "spawned", payload });
    spawn([open], { project_id: NOWHERE }).thenMissing("project", NOWHERE);
    const made = inP("created", { name: "p" });
    spawn([open, made, inP("archived", {})], { project_id: P }).thenRefused("project.archived", {
      project_id: P,
    });
    spawn([open, other, about(project, P2, { workspace_id: W2 })("created", { name: "p" })], {
      project_id: P2,
    }).thenRefused("project.other_workspace", { project_id: P2, workspace_id: W2 });
  });

  test("takes a parent in any status, but of its own workspace", () => {
    const below = (parent_session_id: string, ...facts: Fact[]) =>
      given(session, open, ...facts).when("spawn", { workspace_id: W, agent, parent_session_id });
    for (const facts of [
      [parent],
      [parent, parentOf("lost", { epoch: 1 })],
      [parent, parentOf("ended", { outcome: "failed" })],
    ])
      below(PARENT, ...facts).thenEvents({
        type: "spawned",
        payload: { ...payload, parent_session_id: PARENT },
      });
    below(NOWHERE).thenRefused("session.parent_not_found", { parent_session_id: NOWHERE });
    below(FOREIGN, other, foreign).thenRefused("session.parent_not_found", { parent_session_id: FOREIGN });
    // A closed workspace comes first.
    below(NOWHERE, closed).thenRefused("workspace.closed", { workspace_id: W });
  });

  test("takes a ttl from a second to a day", () => {
    const errors = (ttl_ms: unknown) =>
      schemaErrors(session.commands.spawn.payload, { workspace_id: W, agent, ttl_ms }).map((e) => e.pointer);
    expect([1_000, 86_400_000].map(errors)).toEqual([[], []]);
    expect([999, 86_400_001, 0, -1, 1_000.5, "5000", null].flatMap(errors)).toEqual(Array(7).fill("/ttl_ms"));
  });
});

describe("report_status", () => {
  test("tells what it waits for, and again only when that is something else", () => {
    const waiting = [...running, reported("waiting", "approval")];
    given(session, ...waiting)
      .when("report_status", { session_id: S, status: "waiting", waiting_for: "approval", epoch: 1 })
      .thenEvents();
    const it = given(session, ...waiting);
    it.when("report_status", { session_id: S, status: "waiting", waiting_for: "policy" }).thenEvents({
      type: "status_reported",
      payload: { status: "waiting", waiting_for: "policy" },
    });
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      status: "waiting",
      waiting_for: "policy",
    });
    it.when("report_status", { session_id: S, status: "running", epoch: 1 }).thenEvents({
      type: "status_reported",
      payload: { status: "running" },
    });
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      status: "running",
      waiting_for: null,
      version: 5,
    });
  });

  test("says what it waits for if it waits, and only then", () => {
    const errors = (payload: object) =>
      schemaErrors(session.commands.report_status.payload, { session_id: S, ...payload }).length;
    expect(errors({ status: "waiting", waiting_for: "user_input" })).toBe(0);
    expect(errors({ status: "idle" })).toBe(0);
    expect(errors({ status: "waiting" })).toBeGreaterThan(0);
    expect(errors({ status: "running", waiting_for: "approval" })).toBeGreaterThan(0);
    for (const status of ["starting", "lost", "completed"]) expect(errors({ status })).toBeGreaterThan(0);
  });

  test("is about a session that is there, in a closed workspace too", () => {
    given(session, open)
      .when("report_status", { session_id: S, status: "running" })
      .thenMissing("session", S);
    given(session, ...running, closed)
      .when("report_status", { session_id: S, status: "idle" })
      .thenEvents({ type: "status_reported", payload: { status: "idle" } });
  });
});

describe("fork", () => {
  test("makes a sibling of its source in the same scope, with the source's agent unless another is given", () => {
    const source = about(session, S, { workspace_id: W, project_id: P })("spawned", {
      parent_session_id: PARENT,
      agent: { name: "coder", version: "2", model: "large" },
      title: "first try",
      external_ref: "ci/1",
      epoch: 1,
      ttl_ms: 1_000,
    });
    const facts = [open, inP("created", { name: "p" }), parent, source];
    const common = { from_session_id: S, parent_session_id: PARENT, epoch: 1 };
    const it = given(session, ...facts);
    const told = it.when("fork", { from_session_id: S, mode: "same_branch" });
    const [event] = told.thenEvents({
      type: "forked",
      payload: {
        ...common,
        at_seq: 4,
        mode: "same_branch",
        agent: { name: "coder", version: "2", model: "large" },
        ttl_ms: 300_000,
      },
    });
    told.thenResult({ epoch: 1, expires_at: expiry(event!.timestamp, 300_000) });
    expect([event!.workspace_id, event!.project_id, event!.seq_stream]).toEqual([W, P, 1]);
    expect(it.kernel.query("session.get", { session_id: event!.subject.id })).toMatchObject({
      parent_session_id: PARENT,
      root_session_id: PARENT,
      depth: 1,
      status: "starting",
      title: null,
      agent_name: "coder",
      agent_version: "2",
      agent_model: "large",
      external_ref: null,
      forked_from_session_id: S,
      forked_at_seq: 4,
      fork_mode: "same_branch",
      ttl_ms: 300_000,
    });
    it.when("fork", {
      from_session_id: S,
      at_seq: 2,
      mode: "new_worktree",
      title: "second try",
      agent: { name: "reviewer" },
      ttl_ms: 5_000,
    }).thenEvents({
      type: "forked",
      payload: {
        ...common,
        at_seq: 2,
        mode: "new_worktree",
        title: "second try",
        agent: { name: "reviewer" },
        ttl_ms: 5_000,
      },
    });
  });

  test("of a session without a parent begins a tree of its own", () => {
    const it = given(session, ...running);
    const [event] = it.when("fork", { from_session_id: S, at_seq: 0, mode: "new_worktree" }).thenEvents({
      type: "forked",
      payload: { from_session_id: S, at_seq: 0, mode: "new_worktree", agent, epoch: 1, ttl_ms: 300_000 },
    });
    const { id } = event!.subject;
    expect(it.kernel.query("session.get", { session_id: id })).toMatchObject({
      parent_session_id: null,
      root_session_id: id,
      depth: 0,
    });
  });

  test("needs a source that is there and a workspace and project that are open", () => {
    const mode = "planning_only";
    given(session, open).when("fork", { from_session_id: S, mode }).thenMissing("session", S);
    given(session, ...running, closed)
      .when("fork", { from_session_id: S, mode })
      .thenRefused("workspace.closed", { workspace_id: W });
    const source = about(session, S, { workspace_id: W, project_id: P })("spawned", spawned.payload as never);
    given(session, open, inP("created", { name: "p" }), source, inP("archived", {}))
      .when("fork", { from_session_id: S, mode })
      .thenRefused("project.archived", { project_id: P });
  });

  test("is not ahead of the log", () => {
    given(session, ...running)
      .when("fork", { from_session_id: S, mode: "same_branch", at_seq: 4 })
      .thenRefused("session.fork_ahead", { at_seq: 4, head: 3 });
    given(session, ...running)
      .when("fork", { from_session_id: S, mode: "same_branch", at_seq: 3 })
      .thenEvents({
        type: "forked",
        payload: { from_session_id: S, at_seq: 3, mode: "same_branch", agent, epoch: 1, ttl_ms: 300_000 },
      });
  });
});

describe("a lease", () => {
  const stream = `session/${S}`;

  test("is put off by each heartbeat, without a trace in the log, and of a retry only once", () => {
    const it = given(session, open, spawned);
    const first = it.kernel.lease(stream)!;
    it.kernel.clock.forward(200_000);
    const key = { idempotency_key: "beat" };
    const told = it.when("heartbeat", { session_id: S, epoch: 1 }, key);
    told.thenEvents();
    const second = it.kernel.lease(stream)!;
    expect(second.expires_at).toBeGreaterThanOrEqual(first.expires_at + 200_000);
    expect([second.epoch, second.ttl_ms]).toEqual([1, 300_000]);
    const result = { epoch: 1, expires_at: new Date(second.expires_at).toISOString() };
    told.thenResult(result);
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      expires_at: result.expires_at,
      version: 1,
      status: "starting",
    });
    it.kernel.clock.forward(1_000);
    it.when("heartbeat", { session_id: S, epoch: 1 }, key).thenResult(result);
    expect(it.kernel.lease(stream)).toEqual(second);
  });

  test("goes on as it was when the status changes", () => {
    const it = given(session, open, spawned);
    const before = it.kernel.lease(stream)!;
    it.when("report_status", { session_id: S, status: "running" }).thenEvents({
      type: "status_reported",
      payload: { status: "running" },
    });
    expect(it.kernel.lease(stream)).toEqual(before);
  });

  test("that runs out loses the session, once; a session that beats in time is kept", () => {
    const it = given(session, open, spawned, reported("waiting", "policy"), parent).kernel;
    it.clock.forward(290_000);
    expect(it.expire()).toBeUndefined();
    it.run("session.heartbeat", { session_id: PARENT, epoch: 1 });
    it.clock.forward(20_000);
    const before = it.head();
    it.expire();
    expect(
      it.events(before).map((each) => [each.stream, each.event_type, each.payload, each.actor.id]),
    ).toEqual([[stream, "session.lost", { epoch: 1 }, "mpd"]]);
    expect(it.expire()).toBeUndefined();
    expect(it.lease(stream)).toBeUndefined();
    expect(it.query("session.get", { session_id: S })).toMatchObject({
      status: "lost",
      waiting_for: null,
      expires_at: null,
      epoch: 1,
    });
    expect(it.query("session.get", { session_id: PARENT })).toMatchObject({ status: "starting" });
  });

  test("gets one whole ttl after a restart", () => {
    const it = given(session, open, spawned).kernel;
    it.clock.forward(290_000);
    it.grace();
    it.clock.forward(290_000);
    expect(it.expire()).toBeUndefined();
    it.clock.forward(20_000);
    expect(it.expire()?.events.length).toBe(1);
  });
});

describe("resume", () => {
  test("begins a new epoch with a lease of its own; the old one can do no more", () => {
    const it = given(session, ...past.lost!);
    const told = it.when("resume", { session_id: S, ttl_ms: 10_000 });
    const [event] = told.thenEvents({ type: "resumed", payload: { epoch: 2, ttl_ms: 10_000 } });
    const expires_at = expiry(event!.timestamp, 10_000);
    told.thenResult({ epoch: 2, expires_at });
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      status: "running",
      epoch: 2,
      ttl_ms: 10_000,
      expires_at,
    });
    const stale = { epoch: 1, current: 2 };
    it.when("heartbeat", { session_id: S, epoch: 1 }).thenRefused("session.stale_epoch", stale);
    it.when("report_status", { session_id: S, status: "idle", epoch: 1 }).thenRefused(
      "session.stale_epoch",
      stale,
    );
    it.when("end", { session_id: S, outcome: "completed", epoch: 1 }).thenRefused(
      "session.stale_epoch",
      stale,
    );
    // An end of the old lease that comes late ends nothing.
    it.when("lose", { session_id: S, epoch: 1 }).thenEvents();
    it.when("heartbeat", { session_id: S, epoch: 2 }).thenEvents();
    // Nobody can take up what is not lost.
    it.when("resume", { session_id: S }).thenRefused("session.invalid_transition", {
      from: "running",
      to: "running",
      allowed: follows.get("running"),
    });
    it.kernel.clock.forward(20_000);
    expect(it.kernel.expire()?.events.length).toBe(1);
    // As long as it lived before, where nothing else is said.
    it.when("resume", { session_id: S }).thenEvents({
      type: "resumed",
      payload: { epoch: 3, ttl_ms: 10_000 },
    });
    it.when("end", { session_id: S, outcome: "completed", epoch: 3 }).thenEvents({
      type: "ended",
      payload: { outcome: "completed" },
    });
  });

  test("is refused in a closed workspace and an archived project, before its status is looked at", () => {
    for (const facts of [past.lost!, running])
      given(session, ...facts, closed)
        .when("resume", { session_id: S })
        .thenRefused("workspace.closed", { workspace_id: W });
    const scoped = about(session, S, { workspace_id: W, project_id: P });
    const facts = [
      open,
      inP("created", { name: "p" }),
      scoped("spawned", spawned.payload as never),
      scoped("lost", { epoch: 1 }),
      inP("archived", {}),
    ];
    given(session, ...facts)
      .when("resume", { session_id: S })
      .thenRefused("project.archived", { project_id: P });
    given(session, open).when("resume", { session_id: S }).thenMissing("session", S);
  });
});

describe("end", () => {
  test("says how it went, in a closed workspace too", () => {
    const it = given(session, ...running, closed);
    const payload = {
      outcome: "failed",
      summary: "no luck\ntwice",
      exit_code: 137,
      reason: "killed",
    } as const;
    const [event] = it
      .when("end", { session_id: S, ...payload, epoch: 1 })
      .thenEvents({ type: "ended", payload });
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      status: "failed",
      summary: payload.summary,
      exit_code: 137,
      end_reason: "killed",
      ended_at: event!.timestamp,
      expires_at: null,
    });
    expect(it.kernel.lease(`session/${S}`)).toBeUndefined();
    given(session, open).when("end", { session_id: S, outcome: "failed" }).thenMissing("session", S);
  });
});

describe("list", () => {
  test("filters by each of its fields, and by all at once", () => {
    const it = kernel();
    const [a, b, c, d] = [uuid(21), uuid(22), uuid(23), uuid(24)];
    const payload = { agent, epoch: 1, ttl_ms: 300_000 };
    it.tell([
      open,
      other,
      inP("created", { name: "p" }),
      about(session, a, { workspace_id: W })("spawned", payload),
      about(session, b, { workspace_id: W, project_id: P })("spawned", {
        ...payload,
        parent_session_id: a,
        external_ref: "ci/1",
      }),
      about(session, b, { workspace_id: W, project_id: P })("status_reported", { status: "running" }),
      about(session, c, { workspace_id: W2 })("spawned", { ...payload, external_ref: "ci/1" }),
      about(session, c, { workspace_id: W2 })("lost", { epoch: 1 }),
      about(session, d, { workspace_id: W })("spawned", { ...payload, parent_session_id: a }),
      about(session, d, { workspace_id: W })("ended", { outcome: "cancelled" }),
    ]);
    const list = (params: Record<string, unknown>) =>
      it
        .query<{ items: { session_id: string }[] }>("session.list", params)
        .items.map((each) => each.session_id);
    expect(list({})).toEqual([a, b, c, d]);
    expect(list({ workspace_id: W })).toEqual([a, b, d]);
    expect(list({ project_id: P })).toEqual([b]);
    expect(list({ parent_session_id: a })).toEqual([b, d]);
    expect(list({ external_ref: "ci/1" })).toEqual([b, c]);
    expect(list({ external_ref: "ci/1", workspace_id: W })).toEqual([b]);
    expect(list({ status: "starting" })).toEqual([a]);
    expect(list({ live: true })).toEqual([a, b]);
    expect(list({ live: false })).toEqual([c, d]);
    expect(list({ live: false, status: "lost" })).toEqual([c]);
    expect(list({ live: true, status: "lost" })).toEqual([]);
    expect(
      list({ live: true, status: "running", workspace_id: W, project_id: P, parent_session_id: a }),
    ).toEqual([b]);
    const page = it.query<{ items: { session_id: string }[]; next: string }>("session.list", {
      live: false,
      limit: 1,
    });
    expect([page.items.length, page.items[0]!.session_id]).toEqual([1, c]);
    expect(list({ live: false, cursor: page.next })).toEqual([d]);
  });
});

describe("get", () => {
  test("is about a session that is there", () => {
    const problem = kernel().queryRefused("session.get", { session_id: S });
    expect([problem.code, problem.details]).toEqual(["not_found", { kind: "session", id: S }]);
  });
});

describe("what a session holds changes with it, in one transaction", () => {
  const [T1, T2, T3] = [uuid(31), uuid(32), uuid(33)];
  const [D1, D2] = [uuid(41), uuid(42)];
  const scope = { workspace_id: W, project_id: P };
  const [tree1, tree2] = [about(worktree, T1, scope), about(worktree, T2, scope)];
  const [first, second] = [about(task, D1, scope), about(task, D2, scope)];
  const made = (title: string) => ({ title, priority: 2, max_attempts: 3, depends_on: [] });
  const held = [
    open,
    inP("created", { name: "p" }),
    spawned,
    reported("running"),
    parent,
    tree1("registered", { host: "here", path: "/a" }),
    tree1("attached", { session_id: S, mode: "write" }),
    tree1("attached", { session_id: PARENT, mode: "write" }),
    tree1("writer_locked", { session_id: S, epoch: 1, ttl_ms: 300_000 }),
    tree2("registered", { host: "here", path: "/b" }),
    tree2("attached", { session_id: S, mode: "read" }),
    first("created", made("mine")),
    first("claimed", { session_id: S, epoch: 1, attempt: 1, ttl_ms: 300_000 }),
    second("created", made("not mine")),
    second("claimed", { session_id: PARENT, epoch: 1, attempt: 1, ttl_ms: 300_000 }),
  ];
  const back = [
    tree1("writer_released", { session_id: S, epoch: 1 }),
    tree1("detached", { session_id: S }),
    tree2("detached", { session_id: S }),
    first("released", { session_id: S, epoch: 1, reason: "the session has ended" }),
  ];

  test("a resumed one has it under new epochs: who knows the old ones can do no more", () => {
    const it = given(session, ...held, lost);
    const [again] = it
      .when("resume", { session_id: S })
      .thenEvents(
        { type: "resumed", payload: { epoch: 2, ttl_ms: 300_000 } },
        tree1("writer_locked", { session_id: S, epoch: 2, ttl_ms: 300_000 }),
        first("claim_resumed", { session_id: S, epoch: 2, ttl_ms: 300_000 }),
      );
    const { kernel } = it;
    const stale = { details: { epoch: 1, current: 2 } };
    const [mine, old] = [{ session_id: S }, { epoch: 1 }];
    for (const type of ["worktree.renew_writer", "worktree.release_writer"])
      expect(kernel.run(type, { worktree_id: T1, ...mine, ...old })).toMatchObject({ problem: stale });
    for (const [type, more] of [
      ["task.renew", {}],
      ["task.release", {}],
      ["task.complete", {}],
      ["task.fail", { failure: { class: "x", message: "" } }],
    ] as const)
      expect(kernel.run(type, { task_id: D1, ...old, ...more })).toMatchObject({ problem: stale });
    expect(kernel.queryRefused("worktree.check", { path: "/a", ...old })).toMatchObject(stale);
    // Who asks for what it has is told the new ones; the attempt is the one that it was.
    const expires_at = expiry(again!.timestamp, 300_000);
    it.kernel.clock.forward(1_000);
    const told = (type: string, payload: Record<string, unknown>) => {
      const outcome = kernel.run(type, payload);
      return JSON.parse("receipt" in outcome ? outcome.receipt : "{}") as object;
    };
    expect(told("worktree.lock_writer", { worktree_id: T1, ...mine })).toMatchObject({
      events: [],
      result: { epoch: 2, expires_at },
    });
    const claimed = { task_id: D1, epoch: 2, attempt: 1, expires_at };
    expect(told("task.claim", { task_id: D1, ...mine })).toMatchObject({ events: [], result: claimed });
    expect(kernel.query("task.get", { task_id: D1 })).toMatchObject({
      claim: { ...mine, epoch: 2, attempt: 1 },
      attempts: [{ attempt: 1, epoch: 2 }],
    });
    kernel.run("task.complete", { task_id: D1, epoch: 2 });
    expect(kernel.query("task.get", { task_id: D1 })).toMatchObject({
      attempts: [{ attempt: 1, epoch: 2, outcome: "succeeded" }],
    });
  });

  test("an end gives back locks, attachments and claims of its own, and of nobody else", () => {
    const it = given(session, ...held);
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({
      attachments: [
        { worktree_id: T1, mode: "write" },
        { worktree_id: T2, mode: "read" },
      ],
      claims: [{ task_id: D1, epoch: 1 }],
    });
    const events = it
      .when("end", { session_id: S, outcome: "completed" })
      .thenEvents({ type: "ended", payload: { outcome: "completed" } }, ...back);
    expect(new Set(events.map((each) => each.causality.command_id)).size).toBe(1);
    expect(
      [S, T1, D1].map((id, at) => it.kernel.lease(`${["session", "worktree", "task"][at]}/${id}`)),
    ).toEqual([undefined, undefined, undefined]);
    expect(it.kernel.query("session.get", { session_id: S })).toMatchObject({ attachments: [], claims: [] });
    expect(it.kernel.query("session.get", { session_id: PARENT })).toMatchObject({
      attachments: [{ worktree_id: T1, mode: "write" }],
      claims: [{ task_id: D2, epoch: 1 }],
    });
  });

  test("in a closed workspace too, and for one that was lost", () => {
    given(session, ...held, closed)
      .when("end", { session_id: S, outcome: "failed" })
      .thenEvents({ type: "ended", payload: { outcome: "failed" } }, ...back);
    given(session, ...held, lost)
      .when("end", { session_id: S, outcome: "cancelled" })
      .thenEvents({ type: "ended", payload: { outcome: "cancelled" } }, ...back);
  });

  test("a lost one keeps what it has until that runs out by itself", () => {
    given(session, ...held)
      .when("lose", { session_id: S, epoch: 1 })
      .thenEvents({ type: "lost", payload: { epoch: 1 } });
    expect(given(session, ...held, lost).kernel.query("session.get", { session_id: S })).toMatchObject({
      attachments: [
        { worktree_id: T1, mode: "write" },
        { worktree_id: T2, mode: "read" },
      ],
      claims: [{ task_id: D1, epoch: 1 }],
    });
  });

  test("a refused end gives nothing back", () => {
    given(session, ...held)
      .when("end", { session_id: S, outcome: "completed", epoch: 7 })
      .thenRefused("session.stale_epoch", { epoch: 7, current: 1 });
  });

  test("what has gone before is not given back again", () => {
    given(
      session,
      ...held,
      tree1("writer_expired", { session_id: S, epoch: 1 }),
      tree2("detached", { session_id: S }),
      first("claim_expired", { session_id: S, epoch: 1 }),
      about(worktree, T3, scope)("registered", { host: "here", path: "/c" }),
    )
      .when("end", { session_id: S, outcome: "failed" })
      .thenEvents({ type: "ended", payload: { outcome: "failed" } }, tree1("detached", { session_id: S }));
  });
});

describe("tree", () => {
  interface Item {
    readonly session_id: string;
    readonly depth: number;
    readonly children: number;
    readonly worst_status: string | null;
    readonly status: string;
    readonly parent_session_id: string | null;
  }
  interface Page {
    readonly items: Item[];
    readonly next: string | null;
  }
  const begun = (number: number, above?: number, workspace_id = W) =>
    about(session, uuid(number), { workspace_id })("spawned", {
      agent,
      epoch: 1,
      ttl_ms: 300_000,
      ...(above !== undefined && { parent_session_id: uuid(above) }),
    });
  const short = (page: Page) =>
    page.items.map(({ session_id, depth, children, worst_status }) => [
      Number.parseInt(session_id.slice(-12), 16),
      depth,
      children,
      worst_status,
    ]);

  test("shows each session before those below it, with depth, children and the worst below", () => {
    const it = kernel();
    it.tell([
      open,
      begun(10),
      begun(11, 10),
      begun(12),
      begun(13, 10),
      begun(14, 11),
      about(session, uuid(14), { workspace_id: W })("ended", { outcome: "failed" }),
      about(session, uuid(13), { workspace_id: W })("status_reported", { status: "running" }),
    ]);
    const whole = [
      [10, 0, 2, "failed"],
      [11, 1, 1, "failed"],
      [14, 2, 0, null],
      [13, 1, 0, null],
      [12, 0, 0, null],
    ];
    expect(short(it.query("session.tree"))).toEqual(whole);
    expect(short(it.query("session.tree", { workspace_id: W }))).toEqual(whole);
    expect(short(it.query("session.tree", { root: uuid(10) }))).toEqual(whole.slice(0, 4));
    expect(short(it.query("session.tree", { root: uuid(11) }))).toEqual([
      [11, 0, 1, "failed"],
      [14, 1, 0, null],
    ]);
    expect(short(it.query("session.tree", { root: uuid(12), workspace_id: W }))).toEqual([[12, 0, 0, null]]);
    // What is told of a session of a tree is what is told of it alone, but for the depth.
    const [alone, { depth, children, worst_status, ...row }] = [
      it.query("session.get", { session_id: uuid(14) }),
      it.query<Page>("session.tree", { root: uuid(14) }).items[0]!,
    ];
    expect(alone).toMatchObject(row);
    expect([depth, children, worst_status]).toEqual([0, 0, null]);
  });

  test("orders what may be below from completed to failed", () => {
    // From the best to the worst.
    const order = ["completed", "cancelled", "idle", "running", "starting", "waiting", "lost", "failed"];
    const it = kernel();
    const put = (number: number, above: number, status: string) => [
      begun(number, above),
      ...past[status]!.slice(2).map((fact) => ({ ...fact, id: uuid(number) })),
    ];
    it.tell([
      open,
      ...order.flatMap((status, index) => [
        begun(100 + 3 * index),
        ...put(101 + 3 * index, 100 + 3 * index, order[Math.max(0, index - 1)]!),
        ...put(102 + 3 * index, 101 + 3 * index, status),
      ]),
    ]);
    const worst = (number: number) =>
      it.query<Page>("session.tree", { root: uuid(number) }).items.map((each) => each.worst_status);
    expect(order.map((_, index) => worst(100 + 3 * index))).toEqual(
      order.map((status) => [status, status, null]),
    );
  });

  test("is about a root that is there, in the workspace that is named", () => {
    const it = kernel();
    it.tell([open, other, begun(10)]);
    const problem = it.queryRefused("session.tree", { root: NOWHERE });
    expect([problem.code, problem.details]).toEqual(["not_found", { kind: "session", id: NOWHERE }]);
    const elsewhere = it.queryRefused("session.tree", { root: uuid(10), workspace_id: W2 });
    expect([elsewhere.reason, elsewhere.details]).toEqual([
      "session.other_workspace",
      { session_id: uuid(10), workspace_id: W },
    ]);
    expect(it.query("session.tree", { workspace_id: NOWHERE })).toMatchObject({ items: [], next: null });
  });

  test("takes no cursor but that of its own pages", () => {
    const it = kernel();
    it.tell([open, other, begun(10), begun(11, 10), begun(12), begun(13, undefined, W2)]);
    for (const params of [
      { cursor: "" },
      { cursor: "x" },
      { cursor: NOWHERE },
      { cursor: uuid(12), root: uuid(10) },
      { cursor: uuid(10), root: uuid(11) },
      { cursor: uuid(13), workspace_id: W },
    ])
      expect(() => it.queryRefused("session.tree", params)).toThrow(BadCursor);
  });

  /** Any numbers from a seed (mulberry32). */
  function dice(from: number) {
    let state = from | 0;
    return (below: number) => {
      state = (state + 0x6d2b79f5) | 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
    };
  }

  interface Made {
    readonly session_id: string;
    readonly workspace_id: string;
    readonly parent: string | null;
    readonly status: string;
  }

  /** More sessions of two workspaces: some begin a tree, most lie below another, some are forks. */
  function wood(it: Kernel, any: (below: number) => number, made: Made[], count: number, from = 100) {
    const statuses = Object.keys(past);
    it.tell(
      Array.from({ length: count }, (_, index): Fact[] => {
        const number = from + index;
        const workspace_id = any(4) === 0 ? W2 : W;
        const candidates = made.filter((each) => each.workspace_id === workspace_id);
        const above =
          candidates.length === 0 || any(12) === 0 ? undefined : candidates[any(candidates.length)];
        const status = statuses[any(statuses.length)]!;
        made.push({ session_id: uuid(number), workspace_id, parent: above?.session_id ?? null, status });
        const fact = about(session, uuid(number), { workspace_id });
        const payload = {
          agent,
          epoch: 1,
          ttl_ms: 300_000,
          ...(above && { parent_session_id: above.session_id }),
        };
        const fork = { from_session_id: uuid(from), at_seq: 0, mode: "same_branch" as const };
        return [
          any(5) === 0 ? fact("forked", { ...payload, ...fork }) : fact("spawned", payload),
          ...past[status]!.slice(2).map((each) => ({ ...each, id: uuid(number), scope: { workspace_id } })),
        ];
      }).flat(),
    );
  }
  /** The trees as a child would make them: by recursion over all, again and again. */
  function naive(made: readonly Made[], root?: string, workspace_id?: string): unknown[] {
    const order = ["completed", "cancelled", "idle", "running", "starting", "waiting", "lost", "failed"];
    const childrenOf = (id: string | null) =>
      made.filter((each) => each.parent === id).sort((a, b) => (a.session_id < b.session_id ? -1 : 1));
    const below = (id: string): Made[] =>
      childrenOf(id).flatMap((child) => [child, ...below(child.session_id)]);
    const from = (each: Made, depth: number): unknown[] => {
      const worst = Math.max(-1, ...below(each.session_id).map(({ status }) => order.indexOf(status)));
      return [
        [
          Number.parseInt(each.session_id.slice(-12), 16),
          depth,
          childrenOf(each.session_id).length,
          order[worst] ?? null,
        ],
        ...childrenOf(each.session_id).flatMap((child) => from(child, depth + 1)),
      ];
    };
    const roots = root === undefined ? childrenOf(null) : made.filter((each) => each.session_id === root);
    return roots
      .filter((each) => workspace_id === undefined || each.workspace_id === workspace_id)
      .flatMap((each) => from(each, 0));
  }

  test("of hundreds of sessions is what a naive model says, from any root, in pages of any size", () => {
    const any = dice(seed);
    const it = kernel();
    const made: Made[] = [];
    it.tell([open, other]);
    wood(it, any, made, 400);
    const asked: Record<string, unknown>[] = [
      {},
      { workspace_id: W },
      { workspace_id: W2 },
      ...Array.from({ length: 20 }, () => ({ root: made[any(made.length)]!.session_id })),
    ];
    for (const params of asked) {
      const expected = naive(
        made,
        params.root as string | undefined,
        params.workspace_id as string | undefined,
      );
      expect(short(it.query("session.tree", { ...params, limit: 1_000 }))).toEqual(expected as never);
      for (const limit of [1 + any(9), 50 + any(60)]) {
        const found: unknown[] = [];
        let cursor: string | null = null;
        do {
          const page: Page = it.query("session.tree", {
            ...params,
            limit,
            ...(cursor !== null && { cursor }),
          });
          found.push(...short(page));
          cursor = page.next;
          // Only the last page is shorter, and none is empty.
          expect(cursor === null ? page.items.length > 0 : page.items.length === limit).toBe(true);
        } while (cursor !== null);
        expect(found).toEqual(expected);
      }
    }
  });

  test("misses and repeats none that was there when the first page was read, whatever begins meanwhile", () => {
    const any = dice(seed + 1);
    const it = kernel();
    const made: Made[] = [];
    it.tell([open, other]);
    wood(it, any, made, 150);
    const there = made.map((each) => each.session_id).sort();
    const found: string[] = [];
    let cursor: string | null = null;
    let next = 1_000;
    do {
      const page: Page = it.query("session.tree", { limit: 20, ...(cursor !== null && { cursor }) });
      found.push(...page.items.map((each) => each.session_id));
      cursor = page.next;
      wood(it, any, made, 5, next);
      next += 5;
    } while (cursor !== null && next < 2_000);
    expect(new Set(found).size).toBe(found.length);
    expect(there.filter((id) => !found.includes(id))).toEqual([]);
  });

  test("of a chain of thousands, and of thousands below one, is walked to the end", () => {
    const it = kernel();
    const insert = it.db.transaction((parentOf: (index: number) => string | null, from: number) => {
      const columns = Object.keys(session.readModel.tables.sessions.row.properties);
      const row = it.db.query<Record<string, string | number | null>, [string]>(
        "SELECT * FROM sessions WHERE session_id = ?",
      );
      const like = row.get(uuid(10))!;
      const sql = `INSERT INTO sessions (${columns.join()}) VALUES (${columns.map(() => "?").join()})`;
      for (let index = 0; index < 5_000; index++)
        it.db.query(sql).run(
          ...columns.map((column) => {
            if (column === "session_id") return uuid(from + index);
            if (column === "root_session_id") return uuid(from);
            return column === "parent_session_id" ? parentOf(index) : like[column]!;
          }),
        );
    });
    it.tell([open, begun(10)]);
    insert((index) => (index === 0 ? null : uuid(100_000 + index - 1)), 100_000);
    insert((index) => (index === 0 ? null : uuid(200_000)), 200_000);
    const walk = (root: number) => {
      const depths: number[] = [];
      for (let cursor: string | undefined; ; ) {
        const asked = { root: uuid(root), limit: 1_000, ...(cursor !== undefined && { cursor }) };
        const { items, next } = it.query<Page>("session.tree", asked);
        depths.push(...items.map((each) => each.depth));
        if (next === null) return depths;
        cursor = next;
      }
    };
    expect(walk(100_000)).toEqual(Array.from({ length: 5_000 }, (_, index) => index));
    expect(walk(200_000)).toEqual([0, ...Array<number>(4_999).fill(1)]);
  });
});
