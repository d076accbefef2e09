/**
 * What no schema of the domain lets through, and what just passes, through the real socket (SPEC §2, §8, §10): commands that are
 * only the daemon's, fields that nobody knows at any depth, values at each side of a limit. Always checked as well: what is
 * refused moves nothing. Not here: what a result may hold, and how large an event may be (results.test.ts).
 */
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from "bun:test";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import {
  type Api,
  api,
  envelope,
  expectNoEcho,
  expectProblem,
  expectRefused,
  type Json,
  MARKER,
  type Wire,
  wire,
} from "./api.ts";
import { makePlace, NOWHERE, type Place } from "./place.ts";

setDefaultTimeout(30_000);

const registry = buildRegistry(aggregates, system);
const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let ws: Wire;
let here: Place;
/** Ids of things that are there, for commands that must get past them. */
let it: Readonly<
  Record<"session_id" | "worktree_id" | "task_id" | "board_id" | "lane_id" | "artifact_id", string>
>;
beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  ws = await wire(daemon.socket);
  here = await makePlace(mp, daemon.socket);
  const { worktree_id, session_id } = await here.written();
  const { board_id, lane_id } = await here.board();
  it = {
    session_id,
    worktree_id,
    board_id,
    lane_id,
    task_id: await here.task(),
    artifact_id: await here.artifact(),
  };
  await here.claim(it.task_id, session_id);
});
afterAll(() => ws.close());

describe("a command that is only the daemon's", () => {
  /** As the daemon itself would give it, about something that is there. */
  const payload = (type: string): object => {
    const [kind] = type.split(".") as ["session" | "worktree" | "task" | "artifact"];
    const { properties } = registry.internal.get(type)!.spec.payload;
    const all: Json = {
      [`${kind}_id`]: it[`${kind}_id`],
      session_id: it.session_id,
      epoch: 1,
      message: MARKER,
      presence: "missing",
      branch: "main",
      commit: "1a2b",
    };
    return Object.fromEntries(Object.keys(properties).map((name) => [name, all[name]]));
  };
  const types = [...registry.internal.keys()];

  test("is there for every lease and every effect", () => {
    for (const type of ["session.lose", "worktree.expire_writer", "worktree.record_created"])
      expect(types).toContain(type);
    for (const type of ["task.expire_claim", "task.leave", "artifact.retention_over"])
      expect(types).toContain(type);
  });

  test.each(types)("%s is unknown to everybody, on every transport", async (type) => {
    const head = await mp.head();
    const said = (found: unknown) => {
      const { hint } = expectProblem(found, "unknown_command");
      expect(hint).not.toContain(type);
    };
    const command = () => envelope(type, payload(type));
    expect(Object.values(payload(type))).not.toContain(undefined);
    const reply = await mp.post(command());
    said(expectRefused(reply, "unknown_command"));
    expectNoEcho(reply.text, home);
    const { kind, ...found } = await ws.request(command());
    expect(kind).toBe("problem");
    said(found);
    for (const atomic of [true, false]) {
      const batch = await mp.batch(atomic, [command()]);
      if (atomic) said(expectRefused(batch, "unknown_command"));
      else {
        const [{ kind: of, ...item }] = batch.json.items as [Json];
        expect(of).toBe("problem");
        said(item);
      }
    }
    said((await mp.get(`/v1/queries/${type}`)).json);
    expect(await mp.head()).toBe(head);
  });

  test("is in no list, no schema and no document", async () => {
    const texts = [
      (await mp.post({ type: "schema.list", payload: { limit: 10_000 } })).text,
      (await mp.get("/v1/schemas?limit=10000")).text,
      (await mp.get("/openapi.json")).text,
    ];
    for (const text of texts) {
      expect(text).toContain("task.claim");
      for (const type of types) expect(text).not.toMatch(new RegExp(`\\b${type.replace(".", "\\.")}\\b`));
    }
    for (const type of types) expectRefused(await mp.get(`/v1/schemas/command.${type}.v1`), "not_found");
  });
});

/** A send that must be refused before anything looks at what it is about. */
function refusedWith(pointers: readonly string[]) {
  return async (type: string, payload: object) => {
    const reply = await mp.post(envelope(type, payload));
    const found = expectRefused(reply, "invalid_schema");
    expect([type, (found.errors ?? []).map(({ pointer }) => pointer).sort()]).toEqual([
      type,
      [...pointers].sort(),
    ]);
    expectNoEcho(reply.text, home);
  };
}

const agent = { name: "tester" };
const failure = { class: "flaky", message: "once" };
const lane = { name: "one" };
const link = { kind: "workspace", id: NOWHERE };
const bytes = { digest: `sha256:${"0".repeat(64)}`, media_type: "text/plain", size: 1 };

describe("a field that nobody knows", () => {
  let head = 0;
  beforeEach(async () => {
    head = await mp.head();
  });
  afterEach(async () => {
    expect(await mp.head()).toBe(head);
  });

  const types = [...registry.commands.keys()];
  test.each(types)("beside the others in %s", async (type) => {
    const found = expectRefused(await mp.post(envelope(type, { colour: MARKER })), "invalid_schema");
    expect(found.errors).toContainEqual({ pointer: "/payload/colour", message: "is not a known field" });
  });

  const more = { colour: MARKER };
  /** By the object inside a payload: a payload in which only that has one field too many. */
  const inside: Readonly<Record<string, readonly [pointer: string, payload: () => object]>> = {
    "session.spawn agent": [
      "/agent/colour",
      () => ({ workspace_id: here.workspace_id, agent: { ...agent, ...more } }),
    ],
    "session.fork agent": [
      "/agent/colour",
      () => ({ from_session_id: it.session_id, mode: "same_branch", agent: { ...agent, ...more } }),
    ],
    "task.claim filter": ["/filter/colour", () => ({ session_id: it.session_id, filter: more })],
    "task.fail failure": [
      "/failure/colour",
      () => ({ task_id: it.task_id, epoch: 1, failure: { ...failure, ...more } }),
    ],
    "board.create lanes": [
      "/lanes/1/colour",
      () => ({ workspace_id: here.workspace_id, name: "b", lanes: [lane, { name: "two", ...more }] }),
    ],
    "board.update_lanes lanes": [
      "/lanes/0/colour",
      () => ({ board_id: it.board_id, lanes: [{ lane_id: it.lane_id, ...lane, ...more }] }),
    ],
    "artifact.register retention": [
      "/retention/colour",
      () => ({ ...bytes, links: [link], retention: { expire_after_ms: 1_000, ...more } }),
    ],
    "artifact.register links": ["/links/0/colour", () => ({ ...bytes, links: [{ ...link, ...more }] })],
    "artifact.link links": [
      "/links/2/colour",
      () => ({ artifact_id: it.artifact_id, links: [link, link, { ...link, ...more }] }),
    ],
  };
  test.each(Object.entries(inside))("in %s", async (where, [pointer, payload]) => {
    await refusedWith([`/payload${pointer}`])(where.split(" ")[0]!, payload());
  });

  test("is tried in every object of every payload; only a result is anybody's to fill", () => {
    interface Schema {
      readonly type?: string;
      readonly properties?: Readonly<Record<string, Schema>>;
      readonly items?: Schema;
      readonly additionalProperties?: unknown;
    }
    const open: string[] = [];
    const shut: string[] = [];
    const walk = (type: string, at: readonly string[], schema: Schema) => {
      if (schema.items) walk(type, at, schema.items);
      if (schema.type !== "object") return;
      if (schema.additionalProperties !== false) open.push([type, ...at].join(" "));
      else if (at.length > 0) shut.push([type, ...at].join(" "));
      for (const [name, each] of Object.entries(schema.properties ?? {})) walk(type, [...at, name], each);
    };
    for (const [type, { spec }] of registry.commands) walk(type, [], spec.payload as Schema);
    expect(open).toEqual(["task.complete result"]);
    expect(shut.sort()).toEqual(Object.keys(inside).sort());
  });
});

const long = (length: number) => "x".repeat(length);
const many = <T>(length: number, each: T): T[] => Array.from({ length }, () => each);
/** A text that reads backwards where it is shown. */
const BIDI = "abc\u202egpj.exe";

/** Values that a field must not have, by type and the pointer that is named for them. */
const never: readonly (readonly [
  type: string,
  pointer: string,
  base: () => object,
  values: readonly unknown[],
])[] = [
  ...(
    [
      ["session.spawn", () => ({ workspace_id: here.workspace_id, agent })],
      ["session.fork", () => ({ from_session_id: it.session_id, mode: "same_branch" })],
      ["session.resume", () => ({ session_id: it.session_id })],
      ["worktree.lock_writer", () => ({ worktree_id: it.worktree_id, session_id: it.session_id })],
      ["task.claim", () => ({ task_id: it.task_id, session_id: it.session_id })],
    ] as const
  ).map(
    ([type, base]) =>
      [type, "/ttl_ms", base, [999, 0, -1, 86_400_001, 1_000.5, "300000", null, true]] as const,
  ),
  ...(
    [
      ["session.heartbeat", () => ({ session_id: it.session_id })],
      ["session.end", () => ({ session_id: it.session_id, outcome: "failed" })],
      ["task.renew", () => ({ task_id: it.task_id })],
      ["task.release", () => ({ task_id: it.task_id })],
      ["task.complete", () => ({ task_id: it.task_id })],
      ["task.fail", () => ({ task_id: it.task_id, failure })],
    ] as const
  ).map(([type, base]) => [type, "/epoch", base, [0, -1, 1.5, "1", null]] as const),
  ...(
    [
      ["session.spawn", "/title", () => ({ workspace_id: here.workspace_id, agent })],
      ["session.spawn", "/agent/name", () => ({ workspace_id: here.workspace_id, agent: {} })],
      ["task.create", "/title", () => ({ project_id: here.project_id })],
      ["task.create", "/stage", () => ({ project_id: here.project_id, title: "t" })],
      ["task.advance_stage", "/stage", () => ({ task_id: it.task_id })],
      ["task.fail", "/failure/class", () => ({ task_id: it.task_id, epoch: 1, failure: { message: "" } })],
      ["board.create", "/name", () => ({ workspace_id: here.workspace_id, lanes: [lane] })],
      ["board.create", "/lanes/0/name", () => ({ workspace_id: here.workspace_id, name: "b", lanes: [{}] })],
      ["artifact.register", "/name", () => ({ ...bytes, links: [link] })],
    ] as const
  ).map(
    ([type, pointer, base]) =>
      [
        type,
        pointer,
        base,
        ["", long(129), BIDI, "a\nb", "a\u0085b", "\u2066a", "e\u0301", 5, null],
      ] as const,
  ),
  ["task.create", "/priority", () => ({ project_id: here.project_id, title: "t" }), [-1, 5, 1.5, "2", null]],
  ["task.create", "/max_attempts", () => ({ project_id: here.project_id, title: "t" }), [0, -1, 1_001, 2.5]],
  ["task.create", "/body", () => ({ project_id: here.project_id, title: "t" }), [long(32_769), 5, null]],
  ...["/not_before", "/deadline_at"].map(
    (pointer) =>
      [
        "task.create",
        pointer,
        () => ({ project_id: here.project_id, title: "t" }),
        [
          "2026-02-30T00:00:00.000Z",
          "2026-02-01T24:00:00.000Z",
          "2026-02-01T00:00:00Z",
          "2026-02-01T00:00:00.000+00:00",
          "tomorrow",
          1_764_000_000_000,
        ],
      ] as const,
  ),
  [
    "task.create",
    "/depends_on",
    () => ({ project_id: here.project_id, title: "t" }),
    [many(1_001, NOWHERE), {}, NOWHERE, null],
  ],
  [
    "task.create",
    "/depends_on/1",
    () => ({ project_id: here.project_id, title: "t", depends_on: [NOWHERE] }),
    [5, "", "x"],
  ],
  ["task.block", "/on", () => ({ task_id: it.task_id }), ["queued", "", 1, null]],
  ["task.complete", "/result", () => ({ task_id: it.task_id, epoch: 1 }), [[], [{}], "done", 5, null, true]],
  [
    "session.report_status",
    "/status",
    () => ({ session_id: it.session_id }),
    ["starting", "lost", "completed", ""],
  ],
  ["session.end", "/outcome", () => ({ session_id: it.session_id }), ["lost", "running", "succeeded"]],
  [
    "session.end",
    "/exit_code",
    () => ({ session_id: it.session_id, outcome: "failed" }),
    [4_294_967_296, -2_147_483_649, 1.5, "1"],
  ],
  ["session.end", "/summary", () => ({ session_id: it.session_id, outcome: "failed" }), [long(4_097), 1]],
  ["session.spawn", "/external_ref", () => ({ workspace_id: here.workspace_id, agent }), ["", long(513)]],
  ["session.fork", "/mode", () => ({ from_session_id: it.session_id }), ["", "new-worktree", null]],
  [
    "session.fork",
    "/at_seq",
    () => ({ from_session_id: it.session_id, mode: "same_branch" }),
    [-1, 0.5, "1"],
  ],
  [
    "worktree.create",
    "/branch",
    () => ({ project_id: here.project_id, path: "/srv/x" }),
    [
      "-x",
      "--upload-pack=x",
      "a..b",
      "a b",
      "a\nb",
      "a/.b",
      "x.lock",
      "@",
      "HEAD",
      "a@{1}",
      "",
      long(256),
      BIDI,
    ],
  ],
  [
    "worktree.create",
    "/base",
    () => ({ project_id: here.project_id, path: "/srv/x", branch: "b" }),
    ["-x", "--orphan", "a b", "a\nb", "", long(256)],
  ],
  [
    "worktree.register",
    "/path",
    () => ({ project_id: here.project_id }),
    ["", "srv/x", "/srv/../x", "/srv/./x", "/srv//x", "/srv/", "~/x", `/${long(4_096)}`, null],
  ],
  [
    "worktree.attach",
    "/mode",
    () => ({ worktree_id: it.worktree_id, session_id: it.session_id }),
    ["", "admin", 2],
  ],
  [
    "worktree.steal_writer",
    "/reason",
    () => ({ worktree_id: it.worktree_id, session_id: it.session_id, expected_epoch: 1 }),
    ["", long(1_025), null],
  ],
  [
    "board.create",
    "/lanes",
    () => ({ workspace_id: here.workspace_id, name: "b" }),
    [[], many(65, lane), {}, null],
  ],
  ["board.update_lanes", "/lanes", () => ({ board_id: it.board_id }), [[], many(65, lane)]],
  [
    "board.create",
    "/lanes/0/wip_limit",
    () => ({ workspace_id: here.workspace_id, name: "b", lanes: [lane] }),
    [0, -1, 1.5, "3", null],
  ],
  [
    "board.add_node",
    "/text",
    () => ({ board_id: it.board_id, lane_id: it.lane_id, kind: "comment" }),
    ["", long(4_097), 5],
  ],
  ["artifact.register", "/links", () => bytes, [[], many(65, link), {}]],
  ["artifact.register", "/links/0/kind", () => ({ ...bytes, links: [link] }), ["lane", "artifact", "", 1]],
  ["artifact.register", "/size", () => ({ ...bytes, links: [link] }), [-1, 0.5, "1", null]],
  [
    "artifact.register",
    "/digest",
    () => ({ ...bytes, links: [link] }),
    [
      "",
      "0".repeat(64),
      `sha256:${"A".repeat(64)}`,
      `sha256:${"0".repeat(63)}`,
      "sha256:../../../../etc/passwd",
    ],
  ],
  [
    "artifact.register",
    "/media_type",
    () => ({ ...bytes, links: [link] }),
    ["", "text", "text/", "text/plain\r\nx: y", "text/plain; charset=\u202e", long(256)],
  ],
  [
    "artifact.register",
    "/retention/expire_after_ms",
    () => ({ ...bytes, links: [link], retention: {} }),
    [999, 0, -1, 315_360_000_001, 1_000.5],
  ],
];

/** A copy in which a value stands at a pointer. */
function withValue(payload: object, pointer: string, value: unknown): object {
  const copy = structuredClone(payload) as Json;
  const names = pointer.slice(1).split("/");
  const last = names.pop()!;
  names.reduce((at, name) => at[name] as Json, copy)[last] = value;
  return copy;
}

describe("a value that a field cannot have", () => {
  test.each(never.map((row) => [`${row[0]} ${row[1]}`, row] as const))("%s", async (_, row) => {
    const [type, pointer, base, values] = row;
    const head = await mp.head();
    for (const value of values)
      await refusedWith([`/payload${pointer}`])(type, withValue(base(), pointer, value));
    expect(await mp.head()).toBe(head);
  });

  const rules: readonly (readonly [name: string, type: string, payload: () => object])[] = [
    [
      "waiting for nothing",
      "session.report_status",
      () => ({ session_id: it.session_id, status: "waiting" }),
    ],
    [
      "running, and waiting for something",
      "session.report_status",
      () => ({ session_id: it.session_id, status: "running", waiting_for: "policy" }),
    ],
    ["a claim of nothing", "task.claim", () => ({ session_id: it.session_id })],
    [
      "a claim of one task and of any",
      "task.claim",
      () => ({ session_id: it.session_id, task_id: it.task_id, filter: {} }),
    ],
    ...(
      [
        ["a task's node with a text", { kind: "task", text: "t" }],
        ["a task's node with both", { kind: "task", ref_id: NOWHERE, text: "t" }],
        ["a task's node with neither", { kind: "task" }],
        ["a comment about something", { kind: "comment", ref_id: NOWHERE }],
        ["a gate with nothing", { kind: "gate" }],
      ] as const
    ).map(
      ([name, what]) =>
        [name, "board.add_node", () => ({ board_id: it.board_id, lane_id: it.lane_id, ...what })] as const,
    ),
    [
      "one lane twice",
      "board.update_lanes",
      () => ({ board_id: it.board_id, lanes: many(2, { lane_id: it.lane_id, name: "x" }) }),
    ],
  ];
  test.each(rules)("between fields: %s", async (_, type, payload) => {
    const head = await mp.head();
    await refusedWith(["/payload"])(type, payload());
    expect(await mp.head()).toBe(head);
  });
});

describe("a value at the limit passes", () => {
  test("the shortest and the longest ttl, for each lease", async () => {
    for (const ttl_ms of [1_000, 86_400_000]) {
      const session_id = await here.session({ ttl_ms });
      await here.end(session_id);
      const holder = await here.session();
      const at = Date.now();
      const task_id = await here.task();
      const claim = await mp.done("task.claim", { task_id, session_id: holder, ttl_ms });
      const ends = Date.parse((claim.result as { expires_at: string }).expires_at);
      expect(ends - at).toBeWithin(ttl_ms, ttl_ms + 10_000);
      await mp.done("session.end", { session_id: holder, outcome: "cancelled" });
    }
  });

  test("names of 128 characters, however many bytes they have", async () => {
    for (const title of ["x", long(128), "ß".repeat(128), "😀".repeat(128)]) {
      const task_id = await here.task({ title, priority: 0, max_attempts: 1_000 });
      expect(await mp.answer("task.get", { task_id })).toMatchObject({ title, priority: 0 });
    }
    expect(await mp.answer("task.get", { task_id: await here.task({ priority: 4 }) })).toMatchObject({
      priority: 4,
      max_attempts: 3,
    });
  });

  test("1,000 dependencies, told once however often they are named; 64 lanes; 64 links", async () => {
    const { project_id, workspace_id } = here;
    const batch = await mp.batch(
      true,
      many(1_000, 0).map(() => envelope("task.create", { project_id, title: "needed" })),
    );
    const depends_on = (batch.json.items as { subject: { id: string } }[]).map(({ subject }) => subject.id);
    const task_id = await here.task({ depends_on });
    expect(await mp.answer("task.get", { task_id })).toMatchObject({ unmet: 1_000, dependency_count: 1_000 });
    const twice = await here.task({ depends_on: [...many(500, task_id), ...many(500, depends_on[0])] });
    expect(await mp.answer("task.get", { task_id: twice })).toMatchObject({ unmet: 2, dependency_count: 2 });
    const { lane_ids } = await here.board(...many(64, 0).map((_, n) => `lane ${n}`));
    expect(lane_ids).toHaveLength(64);
    const artifact_id = await here.artifact({ links: many(64, { kind: "workspace", id: workspace_id }) });
    expect((await mp.answer("artifact.get", { artifact_id })).links).toHaveLength(1);
  });
});
