/**
 * Leases, guards and batches of the domain's commands through the real socket (SPEC §7, §8): what a receipt that gives a lease
 * says the second time, what an expected version is held against where a command chooses its subject, and that all or nothing
 * is true across streams and their leases.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, envelope, expectRefused, type Json } from "./api.ts";
import { makePlace, NOWHERE, type Place } from "./place.ts";

const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let here: Place;
beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  here = await makePlace(mp, daemon.socket);
});

const agent = { name: "tester" };
const TIME = expect.stringMatching(/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/);

/** Everything that can be seen of a thing: its row, its lease, its events. */
async function seen(kind: string, id: string) {
  const stream = `${kind}/${id}`;
  return [
    await mp.answer(`${kind}.get`, { [`${kind}_id`]: id }),
    (await mp.get(`/v1/events?after=0&limit=10000&streams=${stream}`)).json.items,
  ].map((each) =>
    JSON.parse(JSON.stringify(each, (name, value) => (name === "as_of_seq" ? undefined : value))),
  );
}

describe("a receipt of a lease", () => {
  /** Send a command, then once more; between the two, something that changes what it was about. */
  async function twice(type: string, payload: object, meanwhile: () => Promise<unknown>) {
    const command = envelope(type, payload);
    const first = await mp.post(command);
    expect([first.status, first.json.replayed]).toEqual([200, false]);
    await meanwhile();
    const head = await mp.head();
    const second = await mp.post(command);
    expect(second.headers.get("idempotency-replayed")).toBe("true");
    expect([second.status, second.json]).toEqual([200, { ...first.json, replayed: true }]);
    expect(await mp.head()).toBe(head);
    return first.json.result as Json;
  }

  test("of session.spawn is the same again after the session has ended, and begins no other", async () => {
    const { workspace_id } = await makePlace(mp, daemon.socket);
    const live = async () => (await mp.answer("session.list", { workspace_id })).items as Json[];
    const result = await twice("session.spawn", { workspace_id, agent }, async () =>
      here.end((await live())[0]!.session_id as string),
    );
    expect(result).toEqual({ epoch: 1, expires_at: TIME });
    expect((await live()).map((each) => each.status)).toEqual(["cancelled"]);
  });

  test("of worktree.lock_writer keeps its epoch after the lock was stolen, and takes nothing back", async () => {
    const worktree_id = await here.worktree();
    const [session_id, thief] = [await here.attached(worktree_id), await here.attached(worktree_id)];
    const steal = { worktree_id, session_id: thief, expected_epoch: 1, reason: "it hangs" };
    const result = await twice("worktree.lock_writer", { worktree_id, session_id }, () =>
      mp.done("worktree.steal_writer", steal),
    );
    expect(result).toEqual({ epoch: 1, expires_at: TIME });
    expect(await mp.answer("worktree.get", { worktree_id })).toMatchObject({
      writer: { session_id: thief, epoch: 2 },
    });
  });

  test("of task.claim names the same task, epoch and attempt again, by id or by filter", async () => {
    const project_id = await here.project();
    const session_id = await here.session();
    const tasks = [await here.task({ project_id }), await here.task({ project_id })];
    for (const [index, what] of [{ task_id: tasks[0] }, { filter: { project_id } }].entries()) {
      const task_id = tasks[index]!;
      const result = await twice("task.claim", { ...what, session_id }, () =>
        mp.done("task.complete", { task_id, epoch: 1 }),
      );
      expect(result).toEqual({ task_id, epoch: 1, attempt: 1, expires_at: TIME });
      expect(await mp.answer("task.get", { task_id })).toMatchObject({ status: "succeeded", attempt: 1 });
    }
  });

  test("of a renewal is the same again, and renews nothing twice", async () => {
    const { task_id, epoch } = await here.claimed();
    const renewal = envelope("task.renew", { task_id, epoch });
    const first = await mp.post(renewal);
    const until = (await seen("task", task_id))[0].claim.expires_at;
    expect((first.json.result as Json).expires_at).toBe(until);
    const second = await mp.post(renewal);
    expect(second.json).toEqual({ ...first.json, replayed: true });
    expect((await seen("task", task_id))[0].claim.expires_at).toBe(until);
    // The same key for another renewal is refused, and leaves the lease as it was.
    const session_id = await here.session();
    const other = { ...renewal, type: "session.heartbeat", payload: { session_id, epoch: 1 } };
    expectRefused(await mp.post(other), "idempotency_key_reused");
  });

  test("of a renewal says until when others must wait", async () => {
    const { task_id, epoch } = await here.claimed();
    const { worktree_id, session_id: writer, epoch: held } = await here.written();
    const session_id = await here.attached(worktree_id);
    const renewed = async (type: string, payload: object) =>
      ((await mp.done(type, payload)).result as { expires_at: string }).expires_at;
    const asked = async (type: string, payload: object) =>
      expectRefused(await mp.post(envelope(type, payload)), "conflict").details as Json;
    for (let times = 0; times < 2; times++) {
      const claim = await renewed("task.renew", { task_id, epoch });
      expect((await asked("task.claim", { task_id, session_id })).expires_at).toBe(claim);
      const lock = await renewed("worktree.renew_writer", { worktree_id, session_id: writer, epoch: held });
      expect((await asked("worktree.lock_writer", { worktree_id, session_id })).expires_at).toBe(lock);
    }
  });

  test("who holds it already gets its epoch again under a new key, without an event", async () => {
    const { task_id, session_id, epoch, expires_at } = await here.claimed();
    const lock = await here.written();
    const head = await mp.head();
    const claim = await mp.done("task.claim", { task_id, session_id });
    expect([claim.events, claim.result]).toEqual([[], { task_id, epoch, attempt: 1, expires_at }]);
    const { worktree_id, session_id: writer } = lock;
    const locked = await mp.done("worktree.lock_writer", { worktree_id, session_id: writer });
    expect([locked.events, locked.result]).toEqual([[], { epoch: lock.epoch, expires_at: lock.expires_at }]);
    expect(await mp.head()).toBe(head);
  });
});

describe("a renewal", () => {
  test("of any kind puts the end off and leaves nothing in the log", async () => {
    const session_id = await here.session();
    const { task_id, epoch } = await here.claimed();
    const { worktree_id, session_id: writer, epoch: held } = await here.written();
    for (const [kind, id, type, payload] of [
      ["session", session_id, "session.heartbeat", { session_id, epoch: 1 }],
      ["task", task_id, "task.renew", { task_id, epoch }],
      ["worktree", worktree_id, "worktree.renew_writer", { worktree_id, session_id: writer, epoch: held }],
    ] as const) {
      const before = await seen(kind, id);
      const head = await mp.head();
      const until = async () =>
        /"expires_at":"([^"]+)"/.exec(JSON.stringify((await seen(kind, id))[0]))?.[1] ?? "";
      const first = await until();
      const renewed = async () => {
        const { events, version, seq_global } = await mp.done(type, payload);
        return [events, version, seq_global];
      };
      expect([type, await renewed()]).toEqual([type, [[], before[0].version, head]]);
      // In the same millisecond it is the same end: then once more.
      const isLater = async () => (await until()) > first || ((await renewed()) && (await until()) > first);
      await waitFor(isLater, { what: `the end to be put off by ${type}` });
      expect(await mp.head()).toBe(head);
      expect((await seen(kind, id))[1]).toEqual(before[1]);
      const after = (await mp.get(`/v1/events?after=${head}`)).json;
      expect([after.items, after.as_of_seq]).toEqual([[], head]);
    }
  });
});

describe("an expected version", () => {
  test("that is stale holds back what the command asks of other streams as well", async () => {
    const { task_id, session_id } = await here.claimed();
    const worktree_id = await here.worktree();
    await mp.done("worktree.attach", { worktree_id, session_id, mode: "write" });
    await here.lock(worktree_id, session_id);
    const [read] = await seen("session", session_id);
    // Since it was read, the session has gone on.
    await mp.done("session.report_status", { session_id, status: "running" });
    const streams = () =>
      Promise.all([seen("session", session_id), seen("task", task_id), seen("worktree", worktree_id)]);
    const [before, head] = [await streams(), await mp.head()];
    const end = { session_id, outcome: "completed" };
    const stale = envelope("session.end", end, { expected_version: read.version });
    const { details } = expectRefused(await mp.post(stale), "expected_version_mismatch");
    const actual = read.version + 1;
    expect(details).toEqual({ stream: `session/${session_id}`, expected: read.version, actual });
    expect([await streams(), await mp.head()]).toEqual([before, head]);
    // The same in the version that it has: the task, the lock and the folder are given back with it.
    const { events } = await mp.done("session.end", end, { expected_version: actual });
    expect((events as Json[]).map(({ event_type }) => event_type).sort()).toEqual([
      "session.ended",
      "task.released",
      "worktree.detached",
      "worktree.writer_released",
    ]);
  });

  test("on a claim by filter is held against the task that is chosen", async () => {
    const project_id = await here.project();
    const session_id = await here.session();
    const task_id = await here.task({ project_id });
    await mp.done("task.advance_stage", { task_id, stage: "build" });
    const payload = { filter: { project_id }, session_id };
    const head = await mp.head();
    const wrong = envelope("task.claim", payload, { expected_version: 1 });
    const refused = expectRefused(await mp.post(wrong), "expected_version_mismatch");
    expect(refused.details).toEqual({ stream: `task/${task_id}`, expected: 1, actual: 2 });
    expect(await mp.head()).toBe(head);
    expect((await mp.done("task.claim", payload, { expected_version: 2 })).subject.id).toBe(task_id);
    // Where there is nothing to choose, that is what is said.
    const none = await mp.post(envelope("task.claim", payload, { expected_version: 2 }));
    expect(expectRefused(none, "conflict").reason).toBe("task.none_ready");
  });

  test("on a renewal is held against the stream, which renewals do not move", async () => {
    const { task_id, epoch } = await here.claimed();
    for (let times = 0; times < 3; times++)
      expect(await mp.done("task.renew", { task_id, epoch }, { expected_version: 2 })).toMatchObject({
        version: 2,
        events: [],
      });
    const wrong = await mp.post(envelope("task.renew", { task_id, epoch }, { expected_version: 3 }));
    expectRefused(wrong, "expected_version_mismatch");
  });
});

describe("a batch that is all or nothing", () => {
  test("over several streams and their leases: the refusal of one undoes the others whole", async () => {
    const [task_id, session_id] = [await here.task(), await here.session()];
    const held = await here.written();
    const { task_id: other } = await here.claimed();
    const own = await here.claimed();
    const before = await Promise.all([
      seen("task", task_id),
      seen("task", own.task_id),
      seen("worktree", held.worktree_id),
      seen("session", own.session_id),
      seen("session", session_id),
    ]);
    const head = await mp.head();
    const commands = [
      envelope("task.claim", { task_id, session_id }),
      // Ends a claim and its lease, and a session with its own.
      envelope("session.end", { session_id: own.session_id, outcome: "failed" }),
      envelope("worktree.release_writer", giveBack(held)),
      envelope("session.heartbeat", { session_id, epoch: 1 }),
      envelope("task.claim", { task_id: other, session_id }),
    ];
    const refused = expectRefused(await mp.batch(true, commands), "conflict");
    expect(refused.reason).toBe("task.already_claimed");
    expect(refused.details).toMatchObject({ index: 4, epoch: 1 });
    expect(await mp.head()).toBe(head);
    const after = await Promise.all([
      seen("task", task_id),
      seen("task", own.task_id),
      seen("worktree", held.worktree_id),
      seen("session", own.session_id),
      seen("session", session_id),
    ]);
    expect(after).toEqual(before);

    // No key was used up, and what the writer keeps in memory is what is in the log.
    const accepted = await mp.batch(true, commands.slice(0, 4));
    const items = accepted.json.items as Json[];
    expect(items.map((item) => [item.kind, item.replayed])).toEqual(Array(4).fill(["receipt", false]));
    expect(items[0]!.result).toMatchObject({ task_id, epoch: 1, attempt: 1 });
    expect((items[1]!.events as Json[]).map((each) => each.event_type)).toEqual([
      "session.ended",
      "task.released",
    ]);
  });

  test("later commands see the claims of earlier ones: one filter gives each another task, then none", async () => {
    const project_id = await here.project();
    const session_id = await here.session();
    const tasks = [await here.task({ project_id }), await here.task({ project_id })];
    const claim = () => envelope("task.claim", { filter: { project_id }, session_id });
    const head = await mp.head();
    const three = await mp.batch(true, [claim(), claim(), claim()]);
    expect(expectRefused(three, "conflict").details).toEqual({ next_at: null, index: 2 });
    expect(await mp.head()).toBe(head);
    const two = (await mp.batch(true, [claim(), claim()])).json.items as { subject: { id: string } }[];
    expect(two.map((item) => item.subject.id)).toEqual(tasks);
  });

  test("cannot name what it makes: ids are the daemon's, so a claim beside its spawn finds no session", async () => {
    const { workspace_id } = here;
    const task_id = await here.task();
    const head = await mp.head();
    const batch = await mp.batch(true, [
      envelope("session.spawn", { workspace_id, agent }),
      envelope("task.claim", { task_id, session_id: NOWHERE }),
    ]);
    expect(expectRefused(batch, "not_found").details).toEqual({ kind: "session", id: NOWHERE, index: 1 });
    expect(await mp.head()).toBe(head);
    const chosen = { session_id: NOWHERE, workspace_id, agent };
    expectRefused(await mp.post(envelope("session.spawn", chosen)), "invalid_schema");
  });
});

/** What gives a held lock back. */
function giveBack({
  worktree_id,
  session_id,
  epoch,
}: {
  worktree_id: string;
  session_id: string;
  epoch: number;
}) {
  return { worktree_id, session_id, epoch };
}
