/** The rules of artifact (SPEC §8): every command in every state, every reason with its details, and the queries. */
import { describe, expect, test } from "bun:test";
import { artifact } from "../../src/domain/artifact.ts";
import { project } from "../../src/domain/project.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { later } from "../../src/kernel/aggregate.ts";
import type { Problem } from "../../src/kernel/problems.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { matches, schemaErrors } from "../../src/kernel/schema.ts";
import { about, type Fact, given, type Kernel, kernel, uuid } from "../support/given.ts";

const [W, W2, P, P2, A, A2, NOWHERE] = [1, 2, 3, 4, 5, 6, 9].map(uuid) as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
];
const D = `sha256:${"ab".repeat(32)}`;
const E = `sha256:${"cd".repeat(32)}`;

const inW = about(workspace, W);
const inW2 = about(workspace, W2);
const world: readonly Fact[] = [
  inW("created", { name: "w" }),
  inW2("created", { name: "w2" }),
  about(project, P, { workspace_id: W })("created", { name: "p" }),
  about(project, P2, { workspace_id: W2 })("created", { name: "p2" }),
];
const archived = about(project, P, { workspace_id: W })("archived", {});
const closed = inW("closed", {});

/** An artifact's stream has no `artifact_id` in its envelope, only its workspace. */
const its =
  (id: string) =>
  (type: "registered" | "linked" | "expired", payload: object): Fact => ({
    kind: "artifact",
    id,
    scope: { workspace_id: W },
    type,
    payload,
  });
const toW = { kind: "workspace", id: W } as const;
const toP = { kind: "project", id: P } as const;
const what = { digest: D, media_type: "text/plain", size: 3 };
const registered = its(A)("registered", { ...what, links: [toP] });
const expired = its(A)("expired", { reason: "too old" });

/** A kernel that knows facts, and whose store has bytes of a digest and size. */
function after(facts: readonly Fact[], ...stored: readonly (readonly [string, number])[]) {
  const it = kernel();
  it.tell([...world, ...facts]);
  for (const [digest, size] of stored)
    it.db.query("INSERT INTO blobs (digest, size, stored_at) VALUES (?, ?, 0)").run(digest, size);
  return it;
}

type Payload = Record<string, unknown>;

/** Send a command that is valid, and must be accepted; what it appended. */
function made(it: Kernel, name: keyof typeof artifact.commands, payload: Payload) {
  expect(schemaErrors(artifact.commands[name].payload, payload)).toEqual([]);
  const before = it.head();
  const outcome = it.run(`artifact.${name}`, payload);
  expect(it.bugs).toEqual([]);
  if ("problem" in outcome) throw new Error(JSON.stringify(outcome.problem));
  return it.events(before);
}

/** Send a command that is valid, and must be refused, writing nothing. */
function refused(it: Kernel, name: keyof typeof artifact.commands, payload: Payload): Problem {
  expect(schemaErrors(artifact.commands[name].payload, payload)).toEqual([]);
  const before = it.head();
  const outcome = it.run(`artifact.${name}`, payload);
  expect(it.bugs).toEqual([]);
  if (!("problem" in outcome)) throw new Error(`accepted: ${outcome.receipt}`);
  expect(it.head()).toBe(before);
  return outcome.problem;
}

const conflict = (reason: string, details: object) => ({ code: "conflict", reason, details });
const notFound = (kind: string, id: string) => ({ code: "not_found", reason: null, details: { kind, id } });

/** What a query answers; its answer is of its schema. */
function answer(it: Kernel, name: keyof typeof artifact.queries, params: Payload) {
  const models = new ReadModels(it.db, it.registry);
  const { run, answer: schema } = artifact.queries[name];
  const found = models.snapshot("artifact", (read) => run(read, params as never, "2026-01-01T00:00:00.000Z"));
  const whole = { as_of_seq: found.as_of_seq, ...found.answer };
  if (!("refused" in found.answer)) expect(schemaErrors(schema, whole)).toEqual([]);
  return found.answer as Payload & { items: Payload[]; next: string | null };
}

describe("register", () => {
  test("tells what the bytes are, in the workspace of what they are linked to", () => {
    const it = after([], [D, 3]);
    const [event, ...more] = made(it, "register", { ...what, links: [toP] });
    expect(more).toEqual([]);
    expect(event).toMatchObject({
      event_type: "artifact.registered",
      workspace_id: W,
      payload: { ...what, links: [toP] },
    });
    expect(event!.project_id).toBeUndefined();
    const whole = { ...what, name: "out.log", retention: { expire_after_ms: 1_000 }, links: [toP, toW] };
    expect(made(it, "register", whole)[0]!.payload).toEqual(whole);
  });

  test("takes a link that is named twice once", () => {
    const [event] = made(after([], [D, 3]), "register", { ...what, links: [toP, toW, toP] });
    expect(event!.payload).toEqual({ ...what, links: [toP, toW] });
  });

  test("takes bytes of no length, and the same bytes more than once", () => {
    const it = after([registered], [D, 3], [E, 0]);
    expect(made(it, "register", { ...what, digest: E, size: 0, links: [toW] })).toHaveLength(1);
    expect(made(it, "register", { ...what, links: [toW] })).toHaveLength(1);
  });

  test("needs everything that it is linked to", () => {
    for (const kind of ["workspace", "project"] as const)
      expect(
        refused(after([], [D, 3]), "register", { ...what, links: [toP, { kind, id: NOWHERE }] }),
      ).toMatchObject(notFound(kind, NOWHERE));
    // A project is no workspace.
    expect(
      refused(after([], [D, 3]), "register", { ...what, links: [{ kind: "workspace", id: P }] }),
    ).toMatchObject(notFound("workspace", P));
  });

  test("needs what it is linked to to be open, and in one workspace", () => {
    expect(refused(after([closed], [D, 3]), "register", { ...what, links: [toP] })).toMatchObject(
      conflict("workspace.closed", { workspace_id: W }),
    );
    expect(refused(after([archived], [D, 3]), "register", { ...what, links: [toW, toP] })).toMatchObject(
      conflict("project.archived", { project_id: P }),
    );
    const other = { kind: "project", id: P2 } as const;
    expect(refused(after([], [D, 3]), "register", { ...what, links: [toP, other] })).toMatchObject(
      conflict("artifact.other_workspace", { ...other, workspace_id: W2 }),
    );
  });

  test("needs the bytes, with the size they have", () => {
    expect(refused(after([], [E, 3]), "register", { ...what, links: [toP] })).toMatchObject(
      conflict("artifact.bytes_missing", { digest: D }),
    );
    expect(refused(after([], [D, 4]), "register", { ...what, links: [toP] })).toMatchObject(
      conflict("artifact.size_mismatch", { digest: D, size: 3, actual: 4 }),
    );
    // Lost, not expired.
    expect(refused(after([registered]), "register", { ...what, links: [toP] })).toMatchObject(
      conflict("artifact.bytes_missing", { digest: D }),
    );
    const it = after([registered, expired]);
    expect(refused(it, "register", { ...what, links: [toP] })).toMatchObject(
      conflict("artifact.bytes_expired", {
        digest: D,
        artifact_id: A,
        expired_at: it.events().at(-1)!.timestamp,
      }),
    );
    // Sent again.
    expect(made(after([registered, expired], [D, 3]), "register", { ...what, links: [toP] })).toHaveLength(1);
  });

  test("tells that a parent is closed before it tells that the bytes are missing", () => {
    expect(refused(after([closed]), "register", { ...what, links: [toP] })).toMatchObject({
      reason: "workspace.closed",
    });
  });

  test("refuses by schema what is no digest, no media type, no size, no link, no time to keep", () => {
    const { payload } = artifact.commands.register;
    const good = { ...what, links: [toP] };
    expect(matches(payload, good)).toBe(true);
    for (const media_type of ["text/plain; charset=utf-8", "application/vnd.x+json", "image/svg+xml;q=1"])
      expect([media_type, matches(payload, { ...good, media_type })]).toEqual([media_type, true]);
    for (const bad of [
      { digest: `sha256:${"AB".repeat(32)}` },
      { digest: "ab".repeat(32) },
      { digest: `sha256:${"ab".repeat(31)}` },
      { digest: `sha256:${"ab".repeat(32)}/../x` },
      { digest: `sha512:${"ab".repeat(32)}` },
      { media_type: "text" },
      { media_type: "text/plain\r\nx: y" },
      { media_type: "text/" },
      { media_type: "text/plain;" },
      { size: -1 },
      { size: 1.5 },
      { links: [] },
      { links: Array.from({ length: 65 }, () => toP) },
      { links: [{ kind: "artifact", id: A }] },
      { links: [{ ...toP, role: "x" }] },
      { retention: {} },
      { retention: { expire_after_ms: 999 } },
      { retention: { expire_after_ms: 315_360_000_001 } },
      { name: "" },
    ])
      expect([bad, matches(payload, { ...good, ...bad })]).toEqual([bad, false]);
  });
});

describe("link", () => {
  test("is not about what does not exist", () => {
    given(artifact, ...world)
      .when("link", { artifact_id: A, links: [toP] })
      .thenMissing("artifact", A);
    expect(
      refused(after([registered]), "link", { artifact_id: A, links: [{ kind: "project", id: NOWHERE }] }),
    ).toMatchObject(notFound("project", NOWHERE));
  });

  test("tells only what is new, and changes nothing when nothing is", () => {
    const facts = [...world, registered];
    given(artifact, ...facts)
      .when("link", { artifact_id: A, links: [toP, toW, toW] })
      .thenEvents({ type: "linked", payload: { links: [toW] } });
    given(artifact, ...facts)
      .when("link", { artifact_id: A, links: [toP] })
      .thenEvents();
  });

  test("keeps to its workspace, which must be open", () => {
    const facts = [...world, registered];
    for (const link of [
      { kind: "project", id: P2 },
      { kind: "workspace", id: W2 },
    ] as const)
      given(artifact, ...facts)
        .when("link", { artifact_id: A, links: [link] })
        .thenRefused("artifact.other_workspace", { ...link, workspace_id: W2 });
    given(artifact, ...facts, closed)
      .when("link", { artifact_id: A, links: [toW] })
      .thenRefused("workspace.closed", { workspace_id: W });
    given(artifact, ...facts, closed)
      .when("link", { artifact_id: A, links: [{ kind: "workspace", id: W2 }] })
      .thenRefused("workspace.closed", { workspace_id: W });
  });

  test("goes on after the bytes have gone: where they came from stays true", () => {
    given(artifact, ...world, registered, expired)
      .when("link", { artifact_id: A, links: [toW] })
      .thenEvents({ type: "linked", payload: { links: [toW] } });
  });

  test("is guarded by the version", () => {
    given(artifact, ...world, registered)
      .when("link", { artifact_id: A, links: [toW] }, { expected_version: 2 })
      .thenMismatch(1);
  });
});

describe("expire", () => {
  test("happens once, with a reason or without", () => {
    given(artifact, ...world)
      .when("expire", { artifact_id: A })
      .thenMissing("artifact", A);
    given(artifact, ...world, registered)
      .when("expire", { artifact_id: A })
      .thenEvents({ type: "expired", payload: {} });
    given(artifact, ...world, registered)
      .when("expire", { artifact_id: A, reason: "too large" })
      .thenEvents({ type: "expired", payload: { reason: "too large" } });
    given(artifact, ...world, registered, expired)
      .when("expire", { artifact_id: A })
      .thenEvents();
  });

  test("is refused in a closed workspace, unless there is nothing to change", () => {
    given(artifact, ...world, registered, closed)
      .when("expire", { artifact_id: A })
      .thenRefused("workspace.closed", { workspace_id: W });
    given(artifact, ...world, registered, expired, closed)
      .when("expire", { artifact_id: A })
      .thenEvents();
  });
});

describe("retention", () => {
  const leases = (it: Kernel) => it.db.query("SELECT stream, epoch, ttl_ms, grace FROM leases").all();

  test("is a lease that a restart does not put off, from its event on", () => {
    const it = after([], [D, 3]);
    const [event] = made(it, "register", { ...what, retention: { expire_after_ms: 5_000 }, links: [toP] });
    expect(leases(it)).toEqual([{ stream: event!.stream, epoch: 1, ttl_ms: 5_000, grace: 0 }]);
    const { expires_at } = it.db.query("SELECT expires_at FROM leases").get() as { expires_at: number };
    const ends = later(event!.timestamp, 5_000);
    expect(new Date(expires_at).toISOString()).toBe(ends);
    expect(answer(it, "get", { artifact_id: event!.subject.id })).toMatchObject({
      expire_after_ms: 5_000,
      expires_at: ends,
    });
  });

  test("is none when nobody asks for it", () => {
    const it = after([], [D, 3]);
    made(it, "register", { ...what, links: [toP] });
    expect(leases(it)).toEqual([]);
  });

  test("ends by itself, also in a closed workspace, and by a command before", () => {
    const it = after([], [D, 3]);
    const register = { ...what, retention: { expire_after_ms: 5_000 }, links: [toP] };
    const [first] = made(it, "register", register);
    const [second] = made(it, "register", register);
    made(it, "expire", { artifact_id: second!.subject.id });
    expect(leases(it)).toHaveLength(1);
    it.tell([closed]);
    const [end] = made(it, "retention_over", { artifact_id: first!.subject.id, epoch: 1 });
    expect(end).toMatchObject({ event_type: "artifact.expired", payload: { reason: "retention" } });
    expect(leases(it)).toEqual([]);
    expect(made(it, "retention_over", { artifact_id: first!.subject.id, epoch: 1 })).toEqual([]);
  });

  test("is nobody's to end but the daemon's", () => {
    const it = kernel();
    expect([...it.registry.commands.keys()]).not.toContain("artifact.retention_over");
    expect([...it.registry.internal.keys()]).toContain("artifact.retention_over");
  });
});

describe("queries", () => {
  const facts = [
    its(A)("registered", { ...what, name: "Out.log", links: [toP, toW] }),
    its(A2)("registered", { ...what, digest: E, links: [toP] }),
    its(A2)("expired", {}),
    its(A2)("linked", { links: [toW] }),
  ];
  const ids = (it: Kernel, params: Payload) =>
    answer(it, "list", params).items.map((each) => each.artifact_id);

  test("get shows what is known, the links, and whether the bytes are there", () => {
    const it = after(facts, [D, 3]);
    const times = it.events().map((event) => event.timestamp);
    const [at, , expiredAt, linkedAt] = times.slice(-4);
    expect(answer(it, "get", { artifact_id: A })).toEqual({
      artifact_id: A,
      workspace_id: W,
      ...what,
      name: "Out.log",
      status: "available",
      expire_after_ms: null,
      expired_at: null,
      expire_reason: null,
      created_at: at,
      updated_at: at,
      version: 1,
      expires_at: null,
      stored: true,
      links: [
        { ...toP, linked_at: at },
        { ...toW, linked_at: at },
      ],
    } as never);
    expect(answer(it, "get", { artifact_id: A2 })).toMatchObject({
      status: "expired",
      expired_at: expiredAt,
      updated_at: linkedAt,
      version: 3,
      stored: false,
      name: null,
    });
    expect(answer(it, "get", { artifact_id: NOWHERE })).toMatchObject({ refused: "not_found" });
  });

  test("list filters by everything it takes, alone and together", () => {
    const it = after(facts);
    const cases: [Payload, string[]][] = [
      [{}, [A, A2]],
      [{ workspace_id: W }, [A, A2]],
      [{ workspace_id: W2 }, []],
      [{ digest: D }, [A]],
      [{ status: "expired" }, [A2]],
      [{ name: "OUT.LOG" }, [A]],
      [{ linked_to: P }, [A, A2]],
      [{ linked_to: W }, [A, A2]],
      [{ linked_to: P2 }, []],
      [{ linked_to: NOWHERE }, []],
      [{ linked_to: P, status: "available" }, [A]],
      [{ linked_to: W, status: "expired" }, [A2]],
      [{ linked_to: P, digest: E }, [A2]],
      [{ linked_to: P, name: "out.log" }, [A]],
      [{ linked_to: P, workspace_id: W }, [A, A2]],
      [{ linked_to: P, workspace_id: W2 }, []],
    ];
    for (const [params, expected] of cases) expect([params, ids(it, params)]).toEqual([params, expected]);
  });

  test("list is paged, also by what is linked", () => {
    const it = after(facts);
    for (const params of [{}, { linked_to: P }, { linked_to: W }]) {
      const first = answer(it, "list", { ...params, limit: 1 });
      expect(first.items.map((each) => each.artifact_id)).toEqual([A]);
      const second = answer(it, "list", { ...params, limit: 1, cursor: first.next });
      expect([second.items.map((each) => each.artifact_id), second.next]).toEqual([[A2], null]);
    }
  });

  test("what is linked to one thing is found without a scan", () => {
    const it = after(facts);
    const plan = it.db
      .query("EXPLAIN QUERY PLAN SELECT * FROM artifact_links WHERE id IS ? ORDER BY artifact_id, kind")
      .all(P) as { detail: string }[];
    expect(plan.map((step) => step.detail).join("\n")).toMatch(/^SEARCH [^\n]*$/);
  });

  test("rebuilt tables are the live ones", () => {
    const it = after(facts);
    const rows = () => [
      it.db.query("SELECT * FROM artifacts").all(),
      it.db.query("SELECT * FROM artifact_links").all(),
    ];
    const live = rows();
    it.projections.rebuild("artifact");
    while (it.projections.step() !== undefined);
    expect(rows()).toEqual(live);
  });
});
