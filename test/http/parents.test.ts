/**
 * Every command of the registry against what it names, through the real socket (SPEC §8): each id in turn is of nothing, or of
 * something in another workspace; its workspace is closed; its project is archived. What must then be refused is refused
 * and changes nothing, and is carried out under the same key once the workspace is open again; what gives something back is
 * taken all the same.
 *
 * The commands are generated from the registry, the ids from their schemas; the table below says how to make one that is
 * good, so a new command, or a new id in one, has no place until somebody says what is to come of it.
 */
import { beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, envelope, expectNoEcho, expectRefused, type Json } from "./api.ts";
import { fresh, freshPath, makePlace, NOWHERE, type Place } from "./place.ts";

// A row makes its own place, and every command waits for the disk.
setDefaultTimeout(30_000);

const registry = buildRegistry(aggregates, system);
const home = tempHome();
const git = Bun.which("git");
let daemon: DaemonProcess;
let mp: Api;
let there: Place;
let repository: string | undefined;
beforeAll(async () => {
  daemon = await startDaemonProcess(home, { HOME: home });
  mp = api(daemon);
  there = await makePlace(mp, daemon.socket);
  if (git === null) return;
  repository = join(home, "repository");
  mkdirSync(repository);
  const who = ["-c", "user.name=t", "-c", "user.email=t@t"];
  for (const args of [
    ["init", "--quiet"],
    [...who, "commit", "--quiet", "--allow-empty", "--message=one"],
  ])
    expect(Bun.spawnSync([git, "-C", repository, ...args], { env: { HOME: home } }).exitCode).toBe(0);
});

/** What comes of a command in a closed workspace, or in an archived project. */
type Shut = "refused" | "accepted";
interface Act {
  readonly closed: Shut;
  readonly archived: Shut;
  /** A payload that is accepted here, with every id that the command can have. */
  readonly good: (here: Place) => Promise<object> | object;
}
const act = (closed: Shut, archived: Shut, good: Act["good"]): Act => ({ closed, archived, good });
/** It begins something, or changes work that is to be done. */
const begins = (good: Act["good"]) => act("refused", "refused", good);
/** It gives something back, or says what became of work that was begun: it must not be lost. */
const givesBack = (good: Act["good"]) => act("accepted", "accepted", good);
/** It is about the workspace, or tidies up: an archived project does not keep it. */
const tidies = (good: Act["good"]) => act("refused", "accepted", good);

const agent = { name: "tester" };

/** By type; a type that has two forms has two rows, told apart by a word behind it. */
const acts: Readonly<Record<string, Act>> = {
  "workspace.open": givesBack(({ workspace_id }) => ({ workspace_id })),
  "workspace.close": givesBack(({ workspace_id }) => ({ workspace_id })),
  "project.create": tidies(({ workspace_id }) => ({ workspace_id, name: fresh("project") })),
  "project.archive": tidies(({ project_id }) => ({ project_id })),

  "session.spawn": begins(async ({ workspace_id, project_id, session }) => ({
    workspace_id,
    project_id,
    parent_session_id: await session(),
    agent,
  })),
  "session.fork": begins(async ({ session }) => ({ from_session_id: await session(), mode: "same_branch" })),
  "session.resume": begins(async ({ lost }) => ({ session_id: await lost() })),
  "session.report_status": givesBack(async ({ session }) => ({
    session_id: await session(),
    status: "running",
  })),
  "session.heartbeat": givesBack(async ({ session }) => ({ session_id: await session(), epoch: 1 })),
  "session.end": givesBack(async ({ session }) => ({ session_id: await session(), outcome: "failed" })),

  "worktree.create": begins(({ project_id }) => {
    const branch = fresh("branch").replace(" ", "-");
    return { project_id, path: join(home, branch), branch };
  }),
  "worktree.register": begins(({ project_id }) => ({ project_id, path: freshPath() })),
  "worktree.remove": tidies(async ({ worktree }) => ({ worktree_id: await worktree() })),
  "worktree.reconcile": tidies(async ({ worktree }) => ({ worktree_id: await worktree() })),
  "worktree.attach": begins(async ({ worktree, session }) => ({
    worktree_id: await worktree(),
    session_id: await session(),
    mode: "write",
  })),
  "worktree.detach": givesBack(async ({ written }) => {
    const { worktree_id, session_id } = await written();
    return { worktree_id, session_id };
  }),
  "worktree.lock_writer": begins(async ({ worktree, attached }) => {
    const worktree_id = await worktree();
    return { worktree_id, session_id: await attached(worktree_id) };
  }),
  "worktree.renew_writer": givesBack(async ({ written }) => {
    const { worktree_id, session_id, epoch } = await written();
    return { worktree_id, session_id, epoch };
  }),
  "worktree.release_writer": givesBack(async ({ written }) => {
    const { worktree_id, session_id, epoch } = await written();
    return { worktree_id, session_id, epoch };
  }),
  "worktree.steal_writer": begins(async ({ written, attached }) => {
    const { worktree_id, epoch: expected_epoch } = await written();
    return { worktree_id, session_id: await attached(worktree_id), expected_epoch, reason: "it hangs" };
  }),

  "task.create": begins(async ({ project_id, task }) => ({
    project_id,
    title: fresh("task"),
    parent_task_id: await task(),
    depends_on: [await task(), await task()],
  })),
  "task.claim": begins(async ({ task, session }) => ({
    task_id: await task(),
    session_id: await session(),
  })),
  "task.claim filter": begins(async ({ project_id, task, session }) => {
    const parent_task_id = await task();
    await task({ parent_task_id });
    return { filter: { project_id, parent_task_id }, session_id: await session() };
  }),
  "task.renew": givesBack(async ({ claimed }) => {
    const { task_id, epoch } = await claimed();
    return { task_id, epoch };
  }),
  "task.release": givesBack(async ({ claimed }) => {
    const { task_id, epoch } = await claimed();
    return { task_id, epoch };
  }),
  "task.complete": givesBack(async ({ claimed }) => {
    const { task_id, epoch } = await claimed();
    return { task_id, epoch, result: { commit: "1a2b" } };
  }),
  "task.fail": givesBack(async ({ claimed }) => {
    const { task_id, epoch } = await claimed();
    return { task_id, epoch, failure: { class: "flaky", message: "" } };
  }),
  "task.block": begins(async ({ task }) => ({ task_id: await task(), on: "approval" })),
  "task.unblock": begins(async ({ task }) => {
    const task_id = await task();
    await mp.done("task.block", { task_id, on: "policy" });
    return { task_id };
  }),
  "task.pause": begins(async ({ task }) => ({ task_id: await task() })),
  "task.resume": begins(async ({ task }) => {
    const task_id = await task();
    await mp.done("task.pause", { task_id });
    return { task_id };
  }),
  "task.retry": begins(async ({ claimed }) => {
    const { task_id, epoch } = await claimed();
    await mp.done("task.fail", { task_id, epoch, failure: { class: "flaky", message: "" } });
    return { task_id };
  }),
  "task.cancel": begins(async ({ task }) => ({ task_id: await task() })),
  "task.add_dependency": begins(async ({ task }) => ({
    task_id: await task(),
    depends_on_task_id: await task(),
  })),
  "task.remove_dependency": begins(async ({ task }) => {
    const depends_on_task_id = await task();
    return { task_id: await task({ depends_on: [depends_on_task_id] }), depends_on_task_id };
  }),
  "task.advance_stage": begins(async ({ task }) => ({ task_id: await task(), stage: "build" })),

  "board.create": tidies(({ workspace_id }) => ({
    workspace_id,
    name: fresh("board"),
    lanes: [{ name: "one" }],
  })),
  ...Object.fromEntries(
    ["task", "session", "worktree", "artifact"].map((kind) => [
      `board.add_node ${kind}`,
      tidies(async ({ board, node, one }) => {
        const { board_id, lane_id } = await board();
        const [after, before] = [await node(board_id, lane_id), await node(board_id, lane_id)];
        return { board_id, lane_id, kind, ref_id: await one(kind), after, before };
      }),
    ]),
  ),
  "board.move_node": tidies(async ({ board, node }) => {
    const { board_id, lane_ids } = await board();
    const [from, lane_id] = lane_ids as [string, string];
    const node_id = await node(board_id, from);
    const [after, before] = [await node(board_id, lane_id), await node(board_id, lane_id)];
    return { board_id, node_id, lane_id, after, before };
  }),
  "board.remove_node": tidies(async ({ board, node }) => {
    const { board_id, lane_id } = await board();
    return { board_id, node_id: await node(board_id, lane_id) };
  }),
  "board.update_lanes": tidies(async ({ board }) => {
    const { board_id, lane_id } = await board();
    return { board_id, lanes: [{ lane_id, name: "kept" }, { name: "new" }] };
  }),

  "artifact.register": begins(async ({ bytes, one }) => ({ ...(await bytes()), links: await links(one) })),
  "artifact.link": begins(async ({ artifact, one }) => ({
    artifact_id: await artifact(),
    links: (await links(one)).filter(({ kind }) => kind !== "workspace"),
  })),
  "artifact.expire": tidies(async ({ artifact }) => ({ artifact_id: await artifact() })),
};

async function links(one: Place["one"]) {
  const kinds = ["workspace", "project", "session", "worktree", "task", "board"];
  return Promise.all(kinds.map(async (kind) => ({ kind, id: await one(kind) })));
}

/** Commands that name nothing which could be missing, closed or elsewhere. */
const alone = ["workspace.create", "projection.rebuild", "daemon.shutdown"];

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

interface Schema {
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly items?: Schema;
  readonly pattern?: string;
}
/** Where a schema has ids, as pointers in which `*` is any place of a list. */
function idsOf(schema: Schema, at = ""): string[] {
  if (schema.pattern === ID.source) return [at];
  const inside = Object.entries(schema.properties ?? {}).flatMap(([name, each]) =>
    idsOf(each, `${at}/${name}`),
  );
  return schema.items ? [...inside, ...idsOf(schema.items, `${at}/*`)] : inside;
}

/** Where a value has ids, as pointers. */
function idsIn(value: unknown, at = ""): string[] {
  if (typeof value === "string") return ID.test(value) ? [at] : [];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([name, each]) => idsIn(each, `${at}/${name}`));
}

const anywhere = (pointer: string) => pointer.replace(/\/\d+(?=\/|$)/g, "/*");

/** What a pointer points at, and what it is in; with `to`, another value stands there. */
function point(payload: object, pointer: string, to?: unknown): { value: unknown; parent: Json } {
  const names = pointer.slice(1).split("/");
  const last = names.pop()!;
  const parent = names.reduce((at, name) => at[name] as Json, payload as Json);
  if (to !== undefined) parent[last] = to;
  return { value: parent[last], parent };
}

/** What kind of thing the id at a pointer is of. */
function kindAt(payload: object, pointer: string): string {
  const name = anywhere(pointer)
    .split("/")
    .findLast((each) => each !== "*")!;
  if (name === "ref_id" || name === "id") return point(payload, pointer).parent.kind as string;
  if (name === "after" || name === "before") return "node";
  if (name === "depends_on") return "task";
  return /(?:^|_)([a-z]+)_id$/.exec(name)![1]!;
}

/** What is said of an id that is of nothing, or of something elsewhere: a reason and its details, or that it is accepted. */
type Said =
  | readonly [reason: string, details: (id: string, payload: Json) => object]
  | "accepted"
  | "not_found";
const parentNotFound: Said = ["session.parent_not_found", (parent_session_id) => ({ parent_session_id })];
const notInLane: Said = ["board.neighbour_not_in_lane", (node_id) => ({ node_id })];
/** Whoever it is that asks, it is not who holds the lock. */
const held: Said = [
  "worktree.writer_held",
  (_, { worktree_id, epoch }) => ({
    worktree_id,
    holder: expect.any(String),
    epoch,
    expires_at: expect.any(String),
    retry_after_ms: expect.any(Number),
  }),
];
const inOther = (kind: string): Said => [
  `${kind}.other_workspace`,
  (id) => ({ [`${kind}_id`]: id, workspace_id: there.workspace_id }),
];

/** Ids of nothing: not_found with kind and id, except where this says otherwise. */
const ofNothing: Readonly<Record<string, Said>> = {
  "session.spawn /parent_session_id": parentNotFound,
  "worktree.renew_writer /session_id": held,
  "worktree.release_writer /session_id": held,
  "board.add_node /after": notInLane,
  "board.add_node /before": notInLane,
  "board.move_node /after": notInLane,
  "board.move_node /before": notInLane,
};

/** Ids of things in another workspace, in every command that names a second thing beside its subject. */
const ofOthers: Readonly<Record<string, Said>> = {
  "session.spawn /workspace_id": ["project.other_workspace", () => expect.anything() as object],
  "session.spawn /project_id": inOther("project"),
  "session.spawn /parent_session_id": parentNotFound,
  "worktree.attach /session_id": inOther("session"),
  // It is not attached, so there is nothing to change.
  "worktree.detach /session_id": "accepted",
  "worktree.lock_writer /session_id": inOther("session"),
  "worktree.renew_writer /session_id": held,
  "worktree.release_writer /session_id": held,
  "worktree.steal_writer /session_id": inOther("session"),
  "task.create /project_id": ["task.other_project", () => expect.anything() as object],
  "task.create /parent_task_id": [
    "task.other_project",
    (task_id) => ({ task_id, project_id: there.project_id }),
  ],
  "task.create /depends_on/*": inOther("task"),
  "task.claim /session_id": inOther("session"),
  // A filter searches the workspace of the session.
  "task.claim filter /session_id": ["project.other_workspace", () => expect.anything() as object],
  "task.claim filter /filter/project_id": inOther("project"),
  "task.claim filter /filter/parent_task_id": inOther("task"),
  "task.add_dependency /depends_on_task_id": inOther("task"),
  "task.remove_dependency /depends_on_task_id": inOther("task"),
  "board.add_node /lane_id": "not_found",
  "board.add_node /ref_id": ["board.other_workspace", (id, { kind }) => ({ kind, id })],
  "board.add_node /after": notInLane,
  "board.add_node /before": notInLane,
  "board.move_node /node_id": "not_found",
  "board.move_node /lane_id": "not_found",
  "board.move_node /after": notInLane,
  "board.move_node /before": notInLane,
  "board.remove_node /node_id": "not_found",
  "board.update_lanes /lanes/*/lane_id": "not_found",
  "artifact.register /links/*/id": ["artifact.other_workspace", () => expect.anything() as object],
  "artifact.link /links/*/id": ["artifact.other_workspace", () => expect.anything() as object],
};

const typeOf = (row: string) => row.split(" ")[0]!;
/** A row's word counts only where the table has it: the kinds of nodes are refused alike. */
const saidOf = (table: Readonly<Record<string, Said>>, row: string, pointer: string): Said | undefined =>
  table[`${row} ${anywhere(pointer)}`] ?? table[`${typeOf(row)} ${anywhere(pointer)}`];

const rows = Object.entries(acts).map(([row, each]) => [row, each] as const);

const place = () => makePlace(mp, daemon.socket, repository);

/** Send what must be refused, or change nothing: the log does not move. */
async function refused(command: Json, said: Said, bad: string, kind: string): Promise<void> {
  const head = await mp.head();
  const reply = await mp.post(command);
  if (said === "accepted") {
    expect([reply.status, reply.json.events]).toEqual([200, []]);
    expect(await mp.head()).toBe(head);
    return;
  }
  if (said === "not_found") expect(expectRefused(reply, "not_found").details).toEqual({ kind, id: bad });
  else {
    const found = expectRefused(reply, "conflict");
    expect(found.reason).toBe(said[0]);
    expect(found.details).toEqual(said[1](bad, command.payload as Json) as Json);
  }
  expectNoEcho(reply.text, home);
  expect(await mp.head()).toBe(head);
}

describe("the tables", () => {
  test("have every command of the registry that names something, with each of its ids", async () => {
    const types = [...registry.commands.keys()].filter((type) => !alone.includes(type));
    expect([...new Set(Object.keys(acts).map(typeOf))].sort()).toEqual(types.sort());
    const here = await place();
    const met = new Set<string>();
    for (const [row, { good }] of rows)
      for (const pointer of idsIn(await good(here))) met.add(`${typeOf(row)} ${anywhere(pointer)}`);
    const declared = types.flatMap((type) =>
      idsOf(registry.commands.get(type)!.spec.payload as Schema).map((pointer) => `${type} ${pointer}`),
    );
    expect([...met].sort()).toEqual(declared.sort());
  });

  test("say nothing of ids that no command has", async () => {
    const here = await place();
    const known = new Set<string>();
    for (const [row, { good }] of rows)
      for (const pointer of idsIn(await good(here)))
        for (const name of [row, typeOf(row)]) known.add(`${name} ${anywhere(pointer)}`);
    for (const said of [...Object.keys(ofNothing), ...Object.keys(ofOthers)]) expect(known).toContain(said);
  });
});

describe.each(rows)("%s", (row, { closed, archived, good }) => {
  const type = typeOf(row);
  const { aggregate, spec } = registry.commands.get(type)!;

  test("with an id of nothing", async () => {
    const payload = await good(await place());
    const pointers = idsIn(payload);
    expect(pointers.length).toBeGreaterThan(0);
    for (const pointer of pointers) {
      const kind = kindAt(payload, pointer);
      const bad = structuredClone(payload);
      point(bad, pointer, NOWHERE);
      await refused(envelope(type, bad), saidOf(ofNothing, row, pointer) ?? "not_found", NOWHERE, kind);
      // Nor is anything found under the id of a thing of another kind.
      const other = kind === "workspace" ? there.project_id : there.workspace_id;
      point(bad, pointer, other);
      await refused(envelope(type, bad), saidOf(ofNothing, row, pointer) ?? "not_found", other, kind);
    }
    // It was the ids.
    const done = await mp.post(envelope(type, payload));
    if (type !== "worktree.create" || repository) expect([row, done.status]).toEqual([row, 200]);
  });

  test("with an id of something in another workspace", async () => {
    const payload = await good(await place());
    for (const pointer of idsIn(payload)) {
      // Its own subject may be anywhere; so may what alone says where a thing is to be.
      const own = pointer === `/${aggregate!.kind}_id` && !spec.creates;
      const said = saidOf(ofOthers, row, pointer);
      if (own || (idsIn(payload).length === 1 && !said)) continue;
      expect([row, pointer, said]).not.toEqual([row, pointer, undefined]);
      const kind = kindAt(payload, pointer);
      const id = await there.one(kind);
      const bad = structuredClone(payload);
      point(bad, pointer, id);
      await refused(envelope(type, bad), said!, id, kind);
    }
  });

  test(`in a closed workspace is ${closed}`, async () => {
    const here = await place();
    const command = envelope(type, await good(here));
    await here.close();
    const { workspace_id } = here;
    if (closed === "refused") {
      await refused(command, ["workspace.closed", () => ({ workspace_id })], workspace_id, "workspace");
      await here.open();
    }
    const done = await mp.post(command);
    if (type === "worktree.create" && !repository) return;
    expect([row, done.status, done.json.replayed]).toEqual([row, 200, false]);
    expect((await mp.post(command)).json).toEqual({ ...done.json, replayed: true });
  });

  test(`in an archived project is ${archived}`, async () => {
    const here = await place();
    const command = envelope(type, await good(here));
    await here.archive();
    const { project_id } = here;
    if (archived === "refused")
      await refused(command, ["project.archived", () => ({ project_id })], project_id, "project");
    else expect([row, (await mp.post(command)).status]).toEqual([row, 200]);
  });
});

describe("a command that asks something of another stream", () => {
  test("is refused whole when that is: a task's node into a lane with a stage, where the project is archived", async () => {
    const here = await place();
    const { board_id, lane_ids } = await here.board("one", "two");
    const [one, two] = lane_ids as [string, string];
    const lanes = [
      { lane_id: one, name: "one" },
      { lane_id: two, name: "two", stage: "build" },
    ];
    await mp.done("board.update_lanes", { board_id, lanes });
    const task_id = await here.task();
    const node_id = await here.node(board_id, one, { kind: "task", ref_id: task_id });
    const project_id = await here.project();
    await here.archive();
    const before = await mp.answer("board.snapshot", { board_id });
    const archived: Said = ["project.archived", () => ({ project_id: here.project_id })];
    const move = envelope("board.move_node", { board_id, node_id, lane_id: two });
    await refused(move, archived, here.project_id, "project");
    const other = await here.board("built");
    const stage = { lane_id: other.lane_id, name: "built", stage: "build" };
    await mp.done("board.update_lanes", { board_id: other.board_id, lanes: [stage] });
    const add = { board_id: other.board_id, lane_id: other.lane_id, kind: "task", ref_id: task_id };
    await refused(envelope("board.add_node", add), archived, here.project_id, "project");
    const after = await mp.answer("board.snapshot", { board_id });
    expect({ ...after, as_of_seq: 0 }).toEqual({ ...before, as_of_seq: 0 });
    expect(await mp.answer("task.get", { task_id })).toMatchObject({ stage: null, version: 1 });
    // One of a project that is not archived goes.
    const free = await here.task({ project_id });
    await here.node(other.board_id, other.lane_id, { kind: "task", ref_id: free });
    expect(await mp.answer("task.get", { task_id: free })).toMatchObject({ stage: "build", version: 2 });
  });
});
