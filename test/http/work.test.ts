/**
 * Every reason for which the domain refuses, met through the real socket (SPEC §8): its code, its exact details and hint, and
 * that nothing changed, neither the log nor the key: once the cause is mended the same command is carried out. Not here: who
 * is refused for what lies above or beside (parents.test.ts), leases and batches (leases.test.ts), and what no schema lets through
 * (values.test.ts).
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, ask, envelope, expectNoEcho, expectRefused, type Json, MARKER } from "./api.ts";
import { digestOf, fresh, freshPath, makePlace, NOWHERE, type Place } from "./place.ts";

const registry = buildRegistry(aggregates, system);
const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let here: Place;
let there: Place;
beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  here = await makePlace(mp, daemon.socket);
  there = await makePlace(mp, daemon.socket);
});

/** A command that is refused, what is said of it, and what lets it through. */
interface Met {
  readonly payload: object;
  /** Exactly these; `expect.any` where only the daemon can know. */
  readonly details: object;
  /** Where it can be mended. */
  readonly mend?: () => Promise<unknown>;
}
/**
 * A row of the tables.
 * @param by the type of what is sent, and what is special about it
 */
const refused = (reason: string, by: string, meet: () => Promise<Met>) =>
  [`${reason} by ${by}`, reason, by.split(" ")[0]!, meet] as const;

const later = () => new Date(Date.now() + 3_600_000).toISOString();
const agent = { name: "tester" };

const cases: readonly ReturnType<typeof refused>[] = [
  refused("workspace.name_taken", "workspace.create", async () => {
    const { subject } = await mp.done("workspace.create", { name: "Straße" });
    return { payload: { name: "STRASSE" }, details: { workspace_id: subject.id } };
  }),
  refused("workspace.path_taken", "workspace.create", async () => {
    const root_path = freshPath();
    const { subject } = await mp.done("workspace.create", { name: fresh("w"), root_path });
    return { payload: { name: fresh("w"), root_path }, details: { workspace_id: subject.id } };
  }),
  refused("workspace.closed", "session.spawn", async () => {
    const { workspace_id, close, open } = await makePlace(mp, daemon.socket);
    await close();
    return { payload: { workspace_id, agent }, details: { workspace_id }, mend: open };
  }),
  refused("project.name_taken", "project.create", async () => {
    const project_id = await here.project({ name: "core" });
    const { workspace_id } = here;
    return { payload: { workspace_id, name: "CORE" }, details: { project_id } };
  }),
  refused("project.archived", "task.create", async () => {
    const project_id = await here.project();
    await here.archive(project_id);
    return { payload: { project_id, title: MARKER }, details: { project_id } };
  }),
  refused("project.other_workspace", "session.spawn", async () => ({
    payload: { workspace_id: here.workspace_id, project_id: there.project_id, agent },
    details: { project_id: there.project_id, workspace_id: there.workspace_id },
  })),

  refused("session.invalid_transition", "session.report_status", async () => {
    const session_id = await here.session();
    return {
      payload: { session_id, status: "idle" },
      details: { from: "starting", to: "idle", allowed: ["running", "failed", "cancelled", "lost"] },
      mend: () => mp.done("session.report_status", { session_id, status: "running" }),
    };
  }),
  refused("session.invalid_transition", "session.heartbeat of one that has ended", async () => {
    const session_id = await here.session();
    await here.end(session_id);
    return {
      payload: { session_id, epoch: 1 },
      details: { from: "cancelled", to: "running", allowed: [] },
    };
  }),
  refused("session.stale_epoch", "session.heartbeat of one that was resumed by another", async () => {
    const session_id = await here.lost();
    await mp.done("session.resume", { session_id });
    return { payload: { session_id, epoch: 1 }, details: { epoch: 1, current: 2 } };
  }),
  refused("session.stale_epoch", "session.end with an epoch that nobody has yet", async () => {
    const session_id = await here.session();
    await mp.done("session.report_status", { session_id, status: "running" });
    return {
      payload: { session_id, outcome: "completed", epoch: 5 },
      details: { epoch: 5, current: 1 },
    };
  }),
  refused("session.parent_not_found", "session.spawn", async () => ({
    payload: { workspace_id: here.workspace_id, parent_session_id: NOWHERE, agent },
    details: { parent_session_id: NOWHERE },
  })),
  refused("session.not_live", "worktree.attach", async () => {
    const [worktree_id, session_id] = [await here.worktree(), await here.lost()];
    return {
      payload: { worktree_id, session_id, mode: "read" },
      details: { session_id, status: "lost" },
      mend: () => mp.done("session.resume", { session_id }),
    };
  }),
  refused("session.not_live", "task.claim of one that has ended", async () => {
    const [task_id, session_id] = [await here.task(), await here.session()];
    await here.end(session_id);
    return { payload: { task_id, session_id }, details: { session_id, status: "cancelled" } };
  }),
  refused("session.other_workspace", "task.claim", async () => {
    const [task_id, session_id] = [await here.task(), await there.session()];
    return {
      payload: { task_id, session_id },
      details: { session_id, workspace_id: there.workspace_id },
    };
  }),
  refused("session.fork_ahead", "session.fork", async () => {
    const from_session_id = await here.session();
    const head = await mp.head();
    return {
      payload: { from_session_id, at_seq: head + 1, mode: "planning_only" },
      details: { at_seq: head + 1, head },
      mend: () => here.session(),
    };
  }),

  refused("worktree.path_taken", "worktree.register", async () => {
    const path = freshPath();
    const { subject } = await mp.done("worktree.register", { project_id: there.project_id, path });
    const worktree_id = subject.id;
    return {
      payload: { project_id: here.project_id, path },
      details: { worktree_id, status: "present" },
      mend: () => mp.done("worktree.remove", { worktree_id }),
    };
  }),
  refused("worktree.no_repository", "worktree.create", async () => ({
    payload: { project_id: here.project_id, path: freshPath(), branch: "main" },
    details: { project_id: here.project_id },
  })),
  refused("worktree.not_present", "worktree.attach", async () => {
    const [worktree_id, session_id] = [await here.worktree(), await here.session()];
    await mp.done("worktree.remove", { worktree_id });
    return { payload: { worktree_id, session_id, mode: "write" }, details: { status: "removed" } };
  }),
  refused("worktree.has_attachments", "worktree.remove", async () => {
    const worktree_id = await here.worktree();
    const sessions = [await here.attached(worktree_id, "read"), await here.attached(worktree_id)];
    return {
      payload: { worktree_id, force: true },
      details: { sessions: sessions.sort() },
      mend: () => Promise.all(sessions.map((each) => here.end(each))),
    };
  }),
  refused("worktree.not_attached", "worktree.lock_writer", async () => {
    const [worktree_id, session_id] = [await here.worktree(), await here.session()];
    return {
      payload: { worktree_id, session_id },
      details: { worktree_id, session_id, mode: null },
      mend: () => mp.done("worktree.attach", { worktree_id, session_id, mode: "write" }),
    };
  }),
  refused("worktree.not_attached", "worktree.steal_writer for write", async () => {
    const { worktree_id, epoch } = await here.written();
    const session_id = await here.attached(worktree_id, "read");
    return {
      payload: { worktree_id, session_id, expected_epoch: epoch, reason: "it hangs" },
      details: { worktree_id, session_id, mode: "read" },
      mend: () => mp.done("worktree.attach", { worktree_id, session_id, mode: "write" }),
    };
  }),
  refused("worktree.writer_held", "worktree.lock_writer", async () => {
    const { worktree_id, session_id: holder, epoch, expires_at } = await here.written();
    return {
      payload: { worktree_id, session_id: await here.attached(worktree_id) },
      details: { worktree_id, holder, epoch, expires_at, retry_after_ms: expect.any(Number) },
      mend: () => mp.done("worktree.release_writer", { worktree_id, session_id: holder, epoch }),
    };
  }),
  refused("worktree.stale_epoch", "worktree.renew_writer after it was stolen", async () => {
    const { worktree_id, session_id, epoch } = await here.written();
    await mp.done("worktree.steal_writer", {
      worktree_id,
      session_id: await here.attached(worktree_id),
      expected_epoch: epoch,
      reason: "it hangs",
    });
    return { payload: { worktree_id, session_id, epoch }, details: { epoch, current: epoch + 1 } };
  }),
  refused("worktree.stale_epoch", "worktree.steal_writer by a thief that looked too early", async () => {
    const { worktree_id, epoch } = await here.written();
    const session_id = await here.attached(worktree_id);
    return {
      payload: { worktree_id, session_id, expected_epoch: epoch - 1, reason: "it hangs" },
      details: { epoch: epoch - 1, current: epoch },
    };
  }),

  refused("task.already_claimed", "task.claim", async () => {
    const { task_id, session_id: holder, epoch, expires_at } = await here.claimed();
    return {
      payload: { task_id, session_id: await here.session() },
      details: { holder, epoch, expires_at, retry_after_ms: expect.any(Number) },
      mend: () => mp.done("task.release", { task_id, epoch }),
    };
  }),
  refused("task.not_ready", "task.claim", async () => {
    const needed = [await here.task(), await here.task(), await here.task()];
    await here.done(needed[1]!);
    const task_id = await here.task({ depends_on: needed });
    const { epoch } = await here.claim(needed[2]!, await here.session());
    return {
      payload: { task_id, session_id: await here.session() },
      details: {
        unmet: [
          { task_id: needed[0], status: "queued" },
          { task_id: needed[2], status: "running" },
        ],
      },
      mend: async () => {
        await mp.done("task.complete", { task_id: needed[2], epoch });
        await here.done(needed[0]!);
      },
    };
  }),
  refused("task.not_ready", "task.claim before its time", async () => {
    const not_before = later();
    const task_id = await here.task({ not_before });
    return {
      payload: { task_id, session_id: await here.session() },
      details: { unmet: [], not_before },
    };
  }),
  refused("task.none_ready", "task.claim", async () => {
    const project_id = await here.project();
    return {
      payload: { filter: { project_id }, session_id: await here.session() },
      details: { next_at: null },
      mend: () => here.task({ project_id }),
    };
  }),
  refused("task.none_ready", "task.claim yet", async () => {
    const next_at = later();
    const parent_task_id = await here.task();
    await here.task({ parent_task_id, not_before: next_at });
    return {
      payload: { filter: { parent_task_id }, session_id: await here.session() },
      details: { next_at },
      mend: () => here.task({ parent_task_id }),
    };
  }),
  refused("task.stale_epoch", "task.complete", async () => {
    const { task_id, epoch } = await here.claimed();
    await mp.done("task.release", { task_id, epoch });
    const next = await here.claim(task_id, await here.session());
    expect(next.epoch).toBe(epoch + 1);
    return { payload: { task_id, epoch }, details: { epoch, current: epoch + 1 } };
  }),
  refused("task.invalid_transition", "task.retry", async () => {
    const { task_id, epoch } = await here.claimed();
    return {
      payload: { task_id },
      details: {
        from: "running",
        to: "queued",
        allowed: [
          "succeeded",
          "failed",
          "cancelled",
          "paused",
          "awaiting_user_input",
          "blocked_by_policy",
          "blocked_by_approval",
          "queued",
        ],
      },
      mend: () => mp.done("task.fail", { task_id, epoch, failure: { class: "flaky", message: "" } }),
    };
  }),
  refused("task.invalid_transition", "task.complete of a paused one", async () => {
    const { task_id, epoch } = await here.claimed();
    await mp.done("task.pause", { task_id });
    return {
      payload: { task_id, epoch },
      details: { from: "paused", to: "succeeded", allowed: ["queued", "running", "cancelled", "failed"] },
      mend: () => mp.done("task.resume", { task_id }),
    };
  }),
  refused("task.dependency_cycle", "task.add_dependency", async () => {
    const first = await here.task();
    const second = await here.task({ depends_on: [first] });
    const third = await here.task({ depends_on: [second] });
    return {
      payload: { task_id: first, depends_on_task_id: third },
      details: { path: [first, third, second, first] },
      mend: () => mp.done("task.remove_dependency", { task_id: third, depends_on_task_id: second }),
    };
  }),
  refused("task.dependency_cycle", "task.add_dependency of one with itself", async () => {
    const task_id = await here.task();
    return { payload: { task_id, depends_on_task_id: task_id }, details: { path: [task_id, task_id] } };
  }),
  refused("task.attempts_exhausted", "task.retry", async () => {
    const { task_id, epoch } = await here.claimed({ max_attempts: 1 });
    await mp.done("task.fail", { task_id, epoch, failure: { class: "flaky", message: "once" } });
    return { payload: { task_id }, details: { attempt: 1, max_attempts: 1 } };
  }),
  refused("task.other_workspace", "task.create", async () => {
    const task_id = await there.task();
    return {
      payload: { project_id: here.project_id, title: MARKER, depends_on: [await here.task(), task_id] },
      details: { task_id, workspace_id: there.workspace_id },
    };
  }),
  refused("task.other_project", "task.create", async () => {
    const project_id = await here.project();
    const task_id = await here.task({ project_id });
    return {
      payload: { project_id: here.project_id, title: MARKER, parent_task_id: task_id },
      details: { task_id, project_id },
    };
  }),

  refused("board.name_taken", "board.create", async () => {
    const { workspace_id } = here;
    const lanes = [{ name: "one" }];
    const { subject } = await mp.done("board.create", { workspace_id, name: "Plan", lanes });
    return { payload: { workspace_id, name: "PLAN", lanes }, details: { board_id: subject.id } };
  }),
  refused("board.duplicate_lane", "board.create", async () => ({
    payload: {
      workspace_id: here.workspace_id,
      name: fresh("board"),
      lanes: [{ name: "done" }, { name: "to do" }, { name: "DONE" }],
    },
    details: { lanes: [0, 2] },
  })),
  refused("board.duplicate_lane", "board.update_lanes with a new one", async () => {
    const { board_id, lane_id } = await here.board("one", "two");
    return {
      payload: { board_id, lanes: [{ lane_id, name: "Two" }, { name: "two" }] },
      details: { lanes: [0, 1] },
    };
  }),
  refused("board.lane_not_empty", "board.update_lanes", async () => {
    const { board_id, lane_ids } = await here.board("one", "two");
    const [gone, kept] = lane_ids as [string, string];
    const nodes = [await here.node(board_id, gone), await here.node(board_id, gone)];
    return {
      payload: { board_id, lanes: [{ lane_id: kept, name: "two" }] },
      details: { lane_id: gone, node_count: 2 },
      mend: () => Promise.all(nodes.map((node_id) => mp.done("board.remove_node", { board_id, node_id }))),
    };
  }),
  refused("board.already_on_board", "board.add_node", async () => {
    const { board_id, lane_ids } = await here.board();
    const what = { kind: "task", ref_id: await here.task() };
    const node_id = await here.node(board_id, lane_ids[1]!, what);
    return {
      payload: { board_id, lane_id: lane_ids[0], ...what },
      details: { node_id },
      mend: () => mp.done("board.remove_node", { board_id, node_id }),
    };
  }),
  refused("board.neighbour_not_in_lane", "board.move_node", async () => {
    const { board_id, lane_ids } = await here.board();
    const [one, two] = lane_ids as [string, string];
    const [node_id, neighbour] = [await here.node(board_id, one), await here.node(board_id, one)];
    return {
      payload: { board_id, node_id, lane_id: two, before: neighbour },
      details: { node_id: neighbour },
      mend: () => mp.done("board.move_node", { board_id, node_id: neighbour, lane_id: two }),
    };
  }),
  refused("board.neighbour_not_in_lane", "board.add_node in the other order", async () => {
    const { board_id, lane_id } = await here.board();
    const [first, second] = [await here.node(board_id, lane_id), await here.node(board_id, lane_id)];
    return {
      payload: { board_id, lane_id, kind: "gate", text: MARKER, after: second, before: first },
      details: { node_id: first },
      mend: () => mp.done("board.move_node", { board_id, node_id: first, lane_id, after: second }),
    };
  }),
  refused("board.other_workspace", "board.add_node", async () => {
    const [{ board_id, lane_id }, ref_id] = [await here.board(), await there.session()];
    return {
      payload: { board_id, lane_id, kind: "session", ref_id },
      details: { kind: "session", id: ref_id },
    };
  }),

  refused("artifact.size_mismatch", "artifact.register", async () => {
    const { size, ...what } = await here.bytes();
    return {
      payload: { ...what, size: size + 1, links: [{ kind: "workspace", id: here.workspace_id }] },
      details: { digest: what.digest, size: size + 1, actual: size },
    };
  }),
  refused("artifact.bytes_missing", "artifact.register", async () => {
    const bytes = fresh("never sent");
    const digest = digestOf(bytes);
    return {
      payload: {
        digest,
        size: bytes.length,
        media_type: "text/plain",
        links: [{ kind: "session", id: await here.session() }],
      },
      details: { digest },
      mend: () => here.bytes(bytes),
    };
  }),
  refused("artifact.bytes_expired", "artifact.register", async () => {
    const bytes = fresh("expired");
    const links = [{ kind: "workspace", id: here.workspace_id }];
    const what = await here.bytes(bytes);
    const artifact_id = await here.artifact({ ...what, links });
    await mp.done("artifact.expire", { artifact_id, reason: MARKER });
    const { expired_at } = await mp.answer("artifact.get", { artifact_id });
    return {
      payload: { ...what, links },
      details: { digest: what.digest, artifact_id, expired_at },
      mend: () => here.bytes(bytes),
    };
  }),
  refused("artifact.other_workspace", "artifact.link", async () => {
    const [artifact_id, id] = [await here.artifact(), await there.task()];
    return {
      payload: { artifact_id, links: [{ kind: "task", id }] },
      details: { kind: "task", id, workspace_id: there.workspace_id },
    };
  }),
];

/** What an upload is refused for: no envelope, no key. */
const uploads = [
  [
    "artifact.digest_mismatch",
    (digest: string, bytes: string) =>
      ask(daemon.socket, "PUT", `/v1/artifacts/${digest}`, `${bytes.slice(0, -1)}!`),
    (digest: string, bytes: string) => ({ digest, actual: digestOf(`${bytes.slice(0, -1)}!`) }),
  ],
] as const;

/** Refusals of queries: nothing to mend, and no key. */
const queries: readonly ReturnType<typeof refused>[] = [
  refused("session.other_workspace", "session.tree", async () => {
    const session_id = await there.session();
    return {
      payload: { root: session_id, workspace_id: here.workspace_id },
      details: { session_id, workspace_id: there.workspace_id },
    };
  }),
  refused("worktree.writer_held", "worktree.check", async () => {
    const { worktree_id, session_id: holder, epoch, expires_at } = await here.written();
    const { path } = await mp.answer("worktree.get", { worktree_id });
    return {
      payload: { path: `${path}/src/deep` },
      details: { worktree_id, holder, epoch, expires_at, retry_after_ms: expect.any(Number) },
    };
  }),
  refused("worktree.stale_epoch", "worktree.check", async () => {
    const { worktree_id, session_id, epoch } = await here.written();
    await mp.done("worktree.release_writer", { worktree_id, session_id, epoch });
    const { path } = await mp.answer("worktree.get", { worktree_id });
    return { payload: { path, epoch }, details: { epoch, current: epoch } };
  }),
];

/** What a refusal must say; its details once more, to be looked at. */
function expectReason(reply: Parameters<typeof expectRefused>[0], reason: string, details: object): Json {
  const found = expectRefused(reply, "conflict");
  const { is, hint } = registry.reasons.get(reason)!;
  expect({ status: reply.status, reason: found.reason, detail: found.detail, hint: found.hint }).toEqual({
    status: 409,
    reason,
    detail: is,
    hint,
  });
  expect(found.details).toEqual(details as Json);
  expectNoEcho(reply.text, home);
  const { retry_after_ms } = found.details as { retry_after_ms?: number };
  if (retry_after_ms !== undefined) {
    expect(retry_after_ms).toBeGreaterThan(0);
    expect(retry_after_ms).toBeLessThanOrEqual(300_000);
  }
  return found.details as Json;
}

describe("a reason", () => {
  test.each(cases)("%s", async (_, reason, type, meet) => {
    const { payload, details, mend } = await meet();
    const command = envelope(type, payload);
    const head = await mp.head();
    expectReason(await mp.post(command), reason, details);
    expect(await mp.head()).toBe(head);

    // The key is free: for the same command where the cause can be mended, else for any other.
    await mend?.();
    const again = mend ? command : { ...command, type: "workspace.create", payload: { name: fresh("w") } };
    const done = await mp.post(again);
    expect([done.status, done.json.replayed, done.text]).toEqual([200, false, done.text]);
    const replay = await mp.post(again);
    expect([replay.status, replay.json]).toEqual([200, { ...done.json, replayed: true }]);
  });

  test.each(uploads)("%s by an upload", async (reason, send, details) => {
    const bytes = fresh("bytes that come to harm");
    const digest = digestOf(bytes);
    const head = await mp.head();
    expectReason(await send(digest, bytes), reason, details(digest, bytes));
    expect(await mp.head()).toBe(head);
    expectRefused(await mp.get(`/v1/artifacts/${digest}`), "not_found");
    await here.bytes(bytes);
    expect((await mp.get(`/v1/artifacts/${digest}`)).text).toBe(bytes);
  });

  test.each(queries)("%s", async (_, reason, type, meet) => {
    const { payload, details } = await meet();
    const head = await mp.head();
    expectReason(await mp.post({ type, payload }), reason, details);
    const search = new URLSearchParams(
      Object.entries(payload).map(([name, value]): [string, string] => [name, String(value)]),
    );
    expectReason(await mp.get(`/v1/queries/${type}?${search}`), reason, details);
    expect(await mp.head()).toBe(head);
  });

  test("of the registry is in one of these tables, and no other is", () => {
    const met = new Set([
      ...[...cases, ...queries].map(([, reason]) => reason),
      ...uploads.map(([reason]) => reason),
      // It needs a log that two machines had: test/daemon/git.test.ts makes one.
      "worktree.other_host",
    ]);
    expect([...met].sort()).toEqual([...registry.reasons.keys()].sort());
  });
});
