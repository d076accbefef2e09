/**
 * Queries through the real socket (SPEC §2, §3): pages, positions, filters, the same answer by GET and by envelope; and
 * over the whole registry: every answer, every receipt's result and every event is what its published schema says.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Compile, type Validator } from "typebox/schema";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, ask, envelope, expectRefused, type Json, type Wire, wire } from "./api.ts";
import { freshPath, makePlace } from "./place.ts";

const git = Bun.which("git");
if (git === null && process.env.CI) throw new Error("git is not installed, and CI must not skip its tests");

const registry = buildRegistry(aggregates, system);
const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let ws: Wire;
/** Ids of what exists, by kind: two of each, as different as can be. */
const ids: Record<string, string[]> = { workspace: [], project: [] };
/** Where nobody else writes. */
let path = "";

beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  ws = await wire(daemon.socket);
  const made = async (type: string, payload: object) => {
    const { subject } = await mp.done(type, payload);
    ids[type.split(".")[0]!]!.push(subject.id);
    return subject.id;
  };
  const first = await made("workspace.create", { name: "Ärger & Söhne", root_path: "/srv/ä b" });
  const second = await made("workspace.create", { name: "second" });
  await made("project.create", { workspace_id: first, name: "core", repo_path: "/srv/ä b/core" });
  await made("project.create", { workspace_id: second, name: "core" });
  await mp.done("project.archive", { project_id: ids.project![1] });
  await mp.done("workspace.close", { workspace_id: second });

  const here = await makePlace(mp, daemon.socket);
  const parent = await here.session();
  const child = await here.session({ parent_session_id: parent, title: "child", external_ref: "run/1" });
  const folder = await here.worktree();
  await mp.done("worktree.attach", { worktree_id: folder, session_id: child, mode: "write" });
  await here.lock(folder, child);
  const free = await here.worktree();
  path = (await mp.answer("worktree.get", { worktree_id: free })).path as string;
  const needed = await here.task();
  await here.done(needed);
  const claimed = await here.task({ depends_on: [needed], deadline_at: "2020-01-01T00:00:00.000Z" });
  await here.claim(claimed, child);
  const waiting = await here.task({ depends_on: [claimed] });
  // Two that can be claimed.
  for (let times = 0; times < 2; times++) await here.task();
  const artifact = await here.artifact({
    name: "report",
    retention: { expire_after_ms: 3_600_000 },
    links: [
      { kind: "task", id: claimed },
      { kind: "session", id: child },
    ],
  });
  const { board_id, lane_id } = await here.board();
  await here.node(board_id, lane_id);
  for (const [kind, ref_id] of Object.entries({ session: child, worktree: folder, task: claimed, artifact }))
    await here.node(board_id, lane_id, { kind, ref_id });
  for (const [kind, ref_id] of Object.entries({ session: parent, task: needed }))
    await here.node(board_id, lane_id, { kind, ref_id });
  Object.assign(ids, {
    session: [child, parent],
    worktree: [folder, free],
    task: [claimed, waiting],
    board: [board_id, (await here.board()).board_id],
    artifact: [artifact, await here.artifact()],
  });
});
afterAll(() => ws.close());

interface Page {
  readonly as_of_seq: number;
  readonly items: Json[];
  readonly next: string | null;
}
const get = async (path: string) => (await mp.get(path)).json as unknown as Page;
const list = (type: string, params = "") => get(`/v1/queries/${type}?${params}`);

/** Every page of a list, in order. `between` runs after each page. */
async function pages(type: string, params: string, between?: () => Promise<unknown>): Promise<Json[]> {
  const items: Json[] = [];
  for (let cursor: string | null = ""; cursor !== null; ) {
    const page: Page = await list(
      type,
      `${params}${cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`}`,
    );
    items.push(...page.items);
    cursor = page.next;
    await between?.();
  }
  return items;
}

describe("pages", () => {
  const all: string[] = [];
  beforeAll(async () => {
    const commands = Array.from({ length: 60 }, (_, index) =>
      envelope("workspace.create", { name: `page ${index}` }),
    );
    await mp.batch(true, commands);
    for (const item of (await list("workspace.list", "limit=10000")).items)
      all.push(item.workspace_id as string);
    expect(all.length).toBeGreaterThan(60);
  });

  test.each([1, 2, 7, 59, 10_000])(
    "of %d rows lead through everything, once, in one order",
    async (limit) => {
      const items = await pages("workspace.list", `limit=${limit}`);
      expect(items.map((item) => item.workspace_id as string)).toEqual(all);
    },
  );

  test("have 100 rows when no number is asked for, and a next only when there is more", async () => {
    expect((await list("workspace.list")).items).toHaveLength(Math.min(100, all.length));
    const exact = await list("workspace.list", `limit=${all.length}`);
    expect([exact.items.length, exact.next]).toEqual([all.length, null]);
    const less = await list("workspace.list", `limit=${all.length - 1}`);
    expect([less.items.length, less.next === null]).toEqual([all.length - 1, false]);
  });

  test("lose and repeat nothing that was there before, whatever is added meanwhile", async () => {
    let added = 0;
    const add = () => mp.done("workspace.create", { name: `between ${added++}` });
    const before = (await pages("workspace.list", "limit=10000")).map((item) => item.workspace_id);
    const seen = (
      await pages("workspace.list", "limit=5", () => (added < 40 ? add() : Promise.resolve()))
    ).map((item) => item.workspace_id);
    expect(seen.slice(0, before.length)).toEqual(before);
    expect(new Set(seen).size).toBe(seen.length);
    const after = (await pages("workspace.list", "limit=10000")).map((item) => item.workspace_id);
    expect(seen).toEqual(after.slice(0, seen.length));
  });

  test("keep their filter only when it is sent again, and a cursor works with any limit", async () => {
    const first = await list("workspace.list", "status=open&limit=3");
    const rest = await list("workspace.list", `status=open&limit=10000&cursor=${first.next}`);
    const open = (await list("workspace.list", "status=open&limit=10000")).items;
    expect([...first.items, ...rest.items]).toEqual(open);
  });

  const others = [...registry.queries].flatMap(([type, { spec }]) => {
    const { properties } = spec.answer as unknown as { properties: object };
    // The log has a test of its own.
    return "items" in properties && "next" in properties && type !== "events.list" ? [type] : [];
  });
  test.each(others)("of %s lead through all of it too", async (type) => {
    const { items } = await list(type, "limit=1000");
    expect(items.length).toBeGreaterThan(1);
    expect(await pages(type, "limit=1")).toEqual(items);
  });

  test("with a cursor that no page gave are refused", async () => {
    const real = (await list("workspace.list", "limit=1")).next!;
    const text = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    for (const cursor of [
      "",
      "x",
      real.slice(1),
      `${real}x`,
      text([]),
      text(["a", "b"]),
      text([null]),
      text({}),
      text("a"),
      text([["a"]]),
    ]) {
      const found = expectRefused(
        await mp.get(`/v1/queries/workspace.list?cursor=${encodeURIComponent(cursor)}`),
        "invalid_schema",
      );
      expect([cursor, found.errors?.[0]?.pointer]).toEqual([cursor, "/payload/cursor"]);
    }
    expectRefused(await mp.get(`/v1/queries/workspace.list?cursor=${"x".repeat(513)}`), "invalid_schema");
    for (const type of ["events.list", "schema.list", "projection.list"]) {
      const found = expectRefused(await mp.get(`/v1/queries/${type}?cursor=x`), "invalid_schema");
      expect([type, found.errors?.[0]?.pointer]).toEqual([type, "/payload/cursor"]);
    }
  });

  test("of events lead through the whole log, while it grows, as JSON and as NDJSON", async () => {
    const head = await mp.head();
    const seqs: number[] = [];
    for (let cursor: string | null = "0"; cursor !== null; ) {
      const page: Page = await get(`/v1/events?limit=7&cursor=${cursor}`);
      seqs.push(...page.items.map((event) => event.seq_global as number));
      if (seqs.length < 40) await mp.done("workspace.create", { name: `log ${seqs.length}` });
      cursor = page.next;
    }
    expect(seqs).toEqual(seqs.map((_, index) => index + 1));
    expect(seqs.length).toBeGreaterThan(head);
    let lines = "";
    for (let cursor: string | null = "0"; cursor !== null; ) {
      const reply = await mp.get(`/v1/events?limit=11&cursor=${cursor}`, { accept: "application/x-ndjson" });
      expect(reply.headers.get("content-type")).toBe("application/x-ndjson");
      lines += reply.text;
      cursor = reply.headers.get("mp-next");
    }
    expect(
      lines
        .trimEnd()
        .split("\n")
        .map((line) => (JSON.parse(line) as Json).seq_global as number),
    ).toEqual(seqs);
  });
});

describe("filters", () => {
  const names = async (params: string) =>
    (await list("workspace.list", `${params}&limit=10000`)).items.map((item) => item.name);

  test("by name, without regard to case; by status; by both", async () => {
    expect(await names("name=%C3%A4RGER%20%26%20S%C3%96HNE")).toEqual(["Ärger & Söhne"]);
    expect(await names("name=SECOND&status=closed")).toEqual(["second"]);
    expect(await names("name=second&status=open")).toEqual([]);
    expect(await names("name=a%25")).toEqual([]);
    const closed = (await list("workspace.list", "status=closed&limit=10000")).items;
    expect(closed.map((item) => item.status)).toEqual(["closed"]);
  });

  test("of projects by their workspace", async () => {
    for (const [index, workspace_id] of ids.workspace!.entries()) {
      const { items } = await list("project.list", `workspace_id=${workspace_id}`);
      expect(items.map((item) => item.project_id as string)).toEqual([ids.project![index]!]);
    }
    expect((await list("project.list", "status=archived")).items).toHaveLength(1);
    expect((await list("project.list", "name=CORE")).items).toHaveLength(2);
  });

  test("of events: AND between kinds, OR within", async () => {
    const [workspace_id] = ids.workspace as [string];
    const types = async (params: string) =>
      (await get(`/v1/events?limit=10000&${params}`)).items.map((event) => event.event_type);
    expect(await types(`workspace_id=${workspace_id}`)).toEqual(["workspace.created", "project.created"]);
    expect(await types(`workspace_id=${workspace_id}&subject_kind=project`)).toEqual(["project.created"]);
    expect(await types("types=workspace.closed,project.archived")).toEqual([
      "project.archived",
      "workspace.closed",
    ]);
    expect(await types("types=workspace.closed&types=project.archived")).toEqual([
      "project.archived",
      "workspace.closed",
    ]);
    expect(await types("types=project.*")).toEqual([
      "project.created",
      "project.created",
      "project.archived",
      "project.created",
    ]);
    expect(await types(`streams=workspace/${workspace_id}&types=*`)).toEqual(["workspace.created"]);
    const found = (await mp.get("/v1/events?types=workspace.opned")).json;
    expect([found.code, found.hint]).toEqual([
      "invalid_schema",
      expect.stringContaining("did you mean workspace.opened"),
    ]);
  });

  test("hidden columns are not shown", async () => {
    const { items } = await list("project.list");
    expect(Object.keys(items[0]!)).not.toContain("name_key");
  });
});

describe("min_seq", () => {
  test("waits for a position that is still to come, on every transport", async () => {
    const min_seq = (await mp.head()) + 2;
    let answered = 0;
    const count = <T>(answer: T) => {
      answered += 1;
      return answer;
    };
    const asked = [
      mp.get(`/v1/queries/workspace.list?limit=10000&min_seq=${min_seq}`).then((reply) => count(reply.json)),
      mp
        .post({ type: "workspace.list", payload: { limit: 10_000, min_seq } })
        .then((reply) => count(reply.json)),
      ws.request({ type: "workspace.list", payload: { limit: 10_000, min_seq } }).then(count),
      mp.get(`/v1/events?after=${min_seq - 1}&min_seq=${min_seq}`).then((reply) => count(reply.json)),
    ];
    await mp.done("workspace.create", { name: "one of two" });
    expect(answered).toBe(0);
    await mp.done("workspace.create", { name: "two of two" });
    const answers = (await Promise.all(asked)) as unknown as Page[];
    for (const answer of answers) {
      expect(answer.as_of_seq).toBeGreaterThanOrEqual(min_seq);
      expect(JSON.stringify(answer.items)).toContain("two of two");
    }
  });

  test("lets a query after a receipt see what the receipt says", async () => {
    for (let times = 0; times < 50; times++) {
      const { subject, seq_global } = await mp.done("workspace.create", { name: `seen ${times}` });
      const seen = await list("workspace.get", `workspace_id=${subject.id}&min_seq=${String(seq_global)}`);
      expect(seen).toMatchObject({ name: `seen ${times}`, version: 1 });
      expect(seen.as_of_seq).toBeGreaterThanOrEqual(seq_global as number);
    }
  });
});

/** What differs from one moment to the next, and so from one transport to the next. */
const MOMENTARY = new Set(["memory_bytes", "wal_bytes", "database_bytes", "jobs", "queued_commands"]);
const lasting = (answer: unknown) =>
  Object.fromEntries(Object.entries(answer as Json).filter(([name]) => !MOMENTARY.has(name)));

/** Parameters for a query: its required ones, from the first or the second of what exists. */
function sample(type: string, which: 0 | 1 = 0): Json {
  const { params } = registry.queries.get(type)!;
  const required = (params.required ?? []) as string[];
  return Object.fromEntries(
    required.map((name) => {
      const kind = name.replace(/_id$/, "");
      if (ids[kind]?.[which]) return [name, ids[kind][which]];
      if (type === "schema.get" && name === "name") return [name, "event.workspace.created.v1"];
      if (type === "worktree.check" && name === "path") return [name, `${path}/src`];
      throw new Error(`say here what to ask ${type} for its ${name}`);
    }),
  );
}

const validators = new Map<string, Validator>();
/** The published schema by this name, as the daemon serves it. */
async function published(name: string): Promise<Validator> {
  let validator = validators.get(name);
  if (!validator) {
    const reply = await mp.get(`/v1/schemas/${name}`);
    expect([name, reply.status, reply.headers.get("content-type")]).toEqual([
      name,
      200,
      "application/schema+json",
    ]);
    validator = Compile(reply.json as never) as unknown as Validator;
    validators.set(name, validator);
  }
  return validator;
}
async function expectPublished(name: string, value: unknown): Promise<void> {
  const validator = await published(name);
  if (!validator.Check(value)) expect([name, validator.Errors(value)]).toEqual([name, [true, []]] as never);
  // It is a schema that says no at all.
  const { unknown_member: _, ...same } = { ...(value as Json), unknown_member: 1 };
  expect([name, validator.Check(same), validator.Check({ ...same, unknown_member: 1 })]).toEqual([
    name,
    true,
    false,
  ]);
}

describe.each([...registry.queries.keys()])("%s", (type) => {
  const same = "is answered as its published schema says, the same by GET, by envelope and on a WebSocket";
  test.each([0, 1] as const)(`${same} (%d)`, async (which) => {
    const params = sample(type, which);
    await expectPublished(`query.${type}.v1`, params);
    const search = new URLSearchParams(Object.entries(params).map(([name, value]) => [name, String(value)]));
    const byGet = await mp.get(`/v1/queries/${type}?${search}`);
    expect([byGet.status, byGet.headers.get("content-type")]).toEqual([200, "application/json"]);
    const byPost = await mp.post({ type, payload: params, schema_version: 1 });
    const { kind, ...byWire } = await ws.request({ type, payload: params });
    expect([byPost.status, kind]).toEqual([200, "result"]);
    for (const answer of [byGet.json, byPost.json, byWire]) {
      await expectPublished(`answer.${type}.v1`, answer);
      expect(lasting(answer)).toEqual(lasting(byGet.json));
      expect(answer.as_of_seq).toBe(await mp.head());
    }
  });

  test("takes min_seq, and every page takes limit and cursor", async () => {
    const { params, spec } = registry.queries.get(type)!;
    const properties = Object.keys(params.properties);
    expect(properties).toContain("min_seq");
    const paged = "next" in (spec.answer as unknown as { properties: object }).properties;
    expect(properties.includes("limit") && properties.includes("cursor")).toBe(paged);
    const reply = await mp.post({ type, payload: { ...sample(type), min_seq: 1 } });
    expect(reply.status).toBe(200);
  });

  test("refuses a parameter that it does not have", async () => {
    const found = expectRefused(
      await mp.post({ type, payload: { ...sample(type), colour: 1 } }),
      "invalid_schema",
    );
    expect(found.errors).toEqual([{ pointer: "/payload/colour", message: "is not a known field" }]);
  });
});

test("GET and envelope agree for parameters of every type", async () => {
  for (const [type, payload, search] of [
    ["workspace.list", { limit: 3, status: "open" }, "limit=3&status=open"],
    ["workspace.list", { name: "a+b c&d" }, "name=a%2Bb+c%26d"],
    ["session.list", { live: true, external_ref: "run/1" }, "live=true&external_ref=run%2F1"],
    ["task.list", { overdue: true, status: "running" }, "overdue=true&status=running"],
    ["task.list", { overdue: false, limit: 2 }, "overdue=false&limit=2"],
    [
      "events.list",
      { types: ["workspace.*", "project.created"], limit: 4, after: 2 },
      "types=workspace.*&types=project.created&limit=4&after=2",
    ],
    [
      "events.list",
      { types: ["workspace.*", "project.created"], as_stored: true },
      "types=workspace.*,project.created&as_stored=true",
    ],
    [
      "events.list",
      { since: "2020-01-01T00:00:00.000Z", as_stored: false, limit: 2 },
      "since=2020-01-01T00:00:00.000Z&as_stored=false&limit=2",
    ],
  ] as const) {
    const byGet = await mp.get(`/v1/queries/${type}?${search}`);
    const byPost = await mp.post({ type, payload });
    expect([search, byGet.status]).toEqual([search, 200]);
    expect(byGet.json).toEqual(byPost.json);
  }
});

describe("what commands make", () => {
  test.skipIf(git === null)(
    "every command's payload, result and events are what their published schemas say",
    async () => {
      const folder = tempHome();
      const other = await startDaemonProcess(folder, { HOME: folder });
      const its = api(other);
      const sent = new Set<string>();
      /** The API of the other daemon, which holds each command against the schemas. */
      const checked: Api = {
        ...its,
        async done(type, payload, more) {
          await expectPublished(`command.${type}.v1`, payload);
          const receipt = await its.done(type, payload, more);
          await expectPublished(`result.${type}.v1`, receipt.result);
          sent.add(type);
          return receipt;
        },
      };
      await story(checked, other.socket, folder);
      const made = (await its.get("/v1/events?limit=10000")).json.items as (Json & { event_type: string })[];
      for (const event of made)
        await expectPublished(`event.${event.event_type}.v${String(event.schema_version)}`, event.payload);
      await checked.done("daemon.shutdown", {});
      expect([...sent].sort()).toEqual([...registry.commands.keys()].sort());
      expect([...new Set(made.map((event) => event.event_type))].sort()).toEqual(
        [...registry.events.keys()].sort(),
      );
    },
    30_000,
  );
});

/**
 * Whatever can be asked for is done, with every field that it can have, and whatever can happen happens; all but the
 * daemon's end.
 * @param folder where a repository can be
 */
async function story(mp: Api, socket: string, folder: string): Promise<void> {
  const made = async (type: string, payload: object) => (await mp.done(type, payload)).subject.id;
  const given = async <Result>(type: string, payload: object) =>
    (await mp.done(type, payload)).result as Result;
  const statusOf = async (kind: string, id: string) =>
    (await mp.answer(`${kind}.get`, { [`${kind}_id`]: id })).status;
  const later = new Date(Date.now() + 3_600_000).toISOString();
  const reason = "because";
  const [short, long] = [{ ttl_ms: 1_000 }, { ttl_ms: 600_000 }];

  const old = await made("workspace.create", { name: "old", root_path: "/srv/old" });
  const paths = { repo_path: "/srv/old/repo", git_common_dir: "/srv/old/repo/.git" };
  const project_id = await made("project.create", { workspace_id: old, name: "old", ...paths });
  await mp.done("project.archive", { project_id });
  await mp.done("workspace.close", { workspace_id: old });
  await mp.done("workspace.open", { workspace_id: old });

  const repository = join(folder, "repository");
  mkdirSync(repository);
  const who = ["-c", "user.name=t", "-c", "user.email=t@t"];
  for (const args of [
    ["init", "--quiet", "--initial-branch=main"],
    [...who, "commit", "--quiet", "--allow-empty", "--message=one"],
  ])
    expect(Bun.spawnSync([git!, "-C", repository, ...args], { env: { HOME: folder } }).exitCode).toBe(0);
  const here = await makePlace(mp, socket, repository);

  // What runs out meanwhile.
  const lost = await here.session(short);
  await mp.done("task.claim", { task_id: await here.task(), session_id: lost, ...long });
  const deserted = await here.worktree();
  const deserter = await here.attached(deserted);
  await mp.done("worktree.lock_writer", { worktree_id: deserted, session_id: deserter, ...short });
  const forgotten = await here.task();
  await mp.done("task.claim", { task_id: forgotten, session_id: deserter, ...short });

  const agent = { name: "tester", version: "1.0", model: "m" };
  const parent_session_id = await here.session();
  const session_id = await made("session.spawn", {
    workspace_id: here.workspace_id,
    project_id: here.project_id,
    parent_session_id,
    agent,
    title: "all of it",
    external_ref: "run/1",
    ...long,
  });
  await mp.done("session.report_status", { session_id, status: "running", epoch: 1 });
  await mp.done("session.report_status", { session_id, status: "waiting", waiting_for: "approval" });
  await mp.done("session.heartbeat", { session_id, epoch: 1 });
  const fork = { from_session_id: session_id, at_seq: await mp.head(), title: "fork", agent, ...long };
  const thief = await made("session.fork", { ...fork, mode: "new_worktree" });

  const seen = { project_id: here.project_id, path: freshPath(), branch: "main" };
  const worktree_id = await made("worktree.register", seen);
  for (const each of [session_id, thief])
    await mp.done("worktree.attach", { worktree_id, session_id: each, mode: "write" });
  const lock = { worktree_id, session_id, ...long };
  const { epoch } = await given<{ epoch: number }>("worktree.lock_writer", lock);
  await mp.done("worktree.renew_writer", { worktree_id, session_id, epoch });
  const theft = { worktree_id, session_id: thief, expected_epoch: epoch, reason };
  const stolen = await given<{ epoch: number }>("worktree.steal_writer", theft);
  await mp.done("worktree.release_writer", { worktree_id, session_id: thief, epoch: stolen.epoch });
  await mp.done("worktree.detach", { worktree_id, session_id: thief });

  const branch = { project_id: here.project_id, branch: "work", base: "main" };
  const path = join(folder, "work");
  const work = await made("worktree.create", { ...branch, path });
  expect(await statusOf("worktree", work)).toBe("present");
  // No branch is checked out twice.
  const twice = await made("worktree.create", { ...branch, path: join(folder, "twice") });
  expect(await statusOf("worktree", twice)).toBe("failed");
  await mp.done("worktree.reconcile", { worktree_id: work });
  writeFileSync(join(path, "new.txt"), "in no commit");
  await mp.done("worktree.remove", { worktree_id: work, force: false });
  expect(await statusOf("worktree", work)).toBe("present");
  await mp.done("worktree.remove", { worktree_id: work, force: true });
  expect(await statusOf("worktree", work)).toBe("removed");

  const [needed, parent_task_id] = [await here.task(), await here.task()];
  const task_id = await made("task.create", {
    project_id: here.project_id,
    title: "all of it",
    body: "words",
    parent_task_id,
    stage: "plan",
    not_before: "2020-01-01T00:00:00.000Z",
    deadline_at: later,
    priority: 0,
    depends_on: [needed],
    max_attempts: 5,
  });
  await mp.done("task.remove_dependency", { task_id, depends_on_task_id: needed });
  await mp.done("task.add_dependency", { task_id, depends_on_task_id: needed });
  await here.done(needed);
  await mp.done("task.advance_stage", { task_id, stage: "build" });
  const filter = { project_id: here.project_id, stage: "build", parent_task_id };
  const claim = async () => {
    const claimed = await given<{ task_id: string; epoch: number }>("task.claim", {
      filter,
      session_id,
      ...long,
    });
    expect(claimed.task_id).toBe(task_id);
    return { task_id, epoch: claimed.epoch };
  };
  const first = await claim();
  await mp.done("task.renew", first);
  await mp.done("task.release", { ...first, reason });
  const second = await claim();
  await mp.done("task.block", { ...second, on: "user_input", reason });
  await mp.done("task.unblock", { task_id });
  await mp.done("task.pause", { task_id, reason });
  await mp.done("task.resume", { task_id });
  await mp.done("task.fail", { ...second, failure: { class: "flaky", message: "once" } });
  await mp.done("task.retry", { task_id });
  await mp.done("task.complete", { ...(await claim()), result: { any: ["thing"] } });
  await mp.done("task.cancel", { task_id: parent_task_id, reason });

  const { board_id, lane_ids } = await here.board("one", "two");
  const [one, two] = lane_ids as [string, string];
  await mp.done("board.update_lanes", {
    board_id,
    lanes: [
      { lane_id: one, name: "one" },
      { lane_id: two, name: "two", stage: "done", wip_limit: 1 },
      { name: "new" },
    ],
  });
  const [node_id, after] = [
    await here.node(board_id, one, { kind: "task", ref_id: task_id }),
    await here.node(board_id, two),
  ];
  const before = await here.node(board_id, two, { kind: "gate", text: "words", after });
  await mp.done("board.move_node", { board_id, node_id, lane_id: two, after, before });
  await mp.done("board.remove_node", { board_id, node_id: before });

  const retention = { expire_after_ms: 3_600_000 };
  const artifact_id = await here.artifact({ name: "report", retention });
  await mp.done("artifact.link", { artifact_id, links: [{ kind: "board", id: board_id }] });
  await mp.done("artifact.expire", { artifact_id, reason });

  const over = ["session.lost", "worktree.writer_expired", "task.claim_expired"];
  const happened = async () =>
    ((await mp.get(`/v1/events?types=${over.join(",")}`)).json.items as unknown[]).length === over.length;
  await waitFor(happened, { what: "the session, the lock and the claim to run out" });
  await mp.done("session.resume", { session_id: lost, ...long });
  const end = { session_id: lost, outcome: "failed", summary: "words", exit_code: 1, reason, epoch: 2 };
  await mp.done("session.end", end);
  await mp.done("projection.rebuild", { name: "workspace" });
}

describe("schemas", () => {
  test("are listed, and each of the list can be got, by route and by query", async () => {
    const { items } = await list("schema.list", "limit=10000");
    expect((await get("/v1/schemas?limit=10000")).items).toEqual(items);
    const served = await Promise.all(
      items.map(async ({ name }) => {
        const byRoute = (await mp.get(`/v1/schemas/${String(name)}`)).json;
        expect((await mp.get(`/v1/schemas/${String(name)}.json`)).json).toEqual(byRoute);
        expect((await mp.answer("schema.get", { name })).schema).toEqual(byRoute);
        expect(byRoute.$id).toBe(`urn:mp:schema:${String(name)}`);
        return [`${String(name)}.json`, byRoute];
      }),
    );
    const committed = await Promise.all(
      [...new Bun.Glob("*.json").scanSync(`${import.meta.dir}/../../schemas`)].map(async (file) => [
        file,
        await Bun.file(`${import.meta.dir}/../../schemas/${file}`).json(),
      ]),
    );
    expect(Object.fromEntries(served)).toEqual(Object.fromEntries(committed));
  });
});

test("/health says four things, to anyone", async () => {
  const reply = await ask(daemon.socket, "GET", "/health");
  expect(reply.headers.get("content-type")).toBe("application/json");
  expect(reply.headers.get("cache-control")).toBe("no-store");
  expect(reply.json).toEqual({
    status: "ok",
    version: daemon.info.version,
    api_version: daemon.info.api_version,
    start_id: daemon.info.start_id,
  });
});
