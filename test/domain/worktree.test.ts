/**
 * The rules of worktree (SPEC §8): every command in every status of it and of its writer lock, every reason with its
 * details, epochs that only grow, and what becomes of leases, parents and sessions that are not fit.
 */
import { describe, expect, test } from "bun:test";
import { project } from "../../src/domain/project.ts";
import { session } from "../../src/domain/session.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { worktree } from "../../src/domain/worktree.ts";
import { matches } from "../../src/kernel/schema.ts";
import { about, type Fact, given, type Kernel, kernel, uuid } from "../support/given.ts";

const [W, W2, P, P2, BARE, A, B, C, FOREIGN, T, T2, NOWHERE] = Array.from({ length: 12 }, (_, n) =>
  uuid(n + 1),
) as [string, string, string, string, string, string, string, string, string, string, string, string];

const inW = { workspace_id: W, project_id: P };
const [w, w2] = [about(workspace, W), about(workspace, W2)];
const p = about(project, P, inW);
const agent = { name: "agent" };
const spawned = (id: string, workspace_id = W) =>
  about(session, id, { workspace_id })("spawned", { agent, epoch: 1, ttl_ms: 300_000 });
const became = (id: string, status: "running" | "idle") =>
  about(session, id, { workspace_id: W })("status_reported", { status });
const lost = (id: string) => about(session, id, { workspace_id: W })("lost", { epoch: 1 });
const ended = (id: string) => about(session, id, { workspace_id: W })("ended", { outcome: "failed" });

/** Two workspaces, a project with a repository, one without, and sessions that live: A, B, C here, FOREIGN there. */
const world: readonly Fact[] = [
  w("created", { name: "w" }),
  w2("created", { name: "w2" }),
  p("created", { name: "p", repo_path: "/srv/p", git_common_dir: "/srv/p/.git" }),
  about(project, BARE, { workspace_id: W })("created", { name: "bare" }),
  ...[A, B, C].flatMap((id) => [spawned(id), became(id, "running")]),
  spawned(FOREIGN, W2),
];
const closed = w("closed", {});
const archived = p("archived", {});

const t = about(worktree, T, inW);
const place = { host: "here", path: "/srv/t" };
const started = t("creation_started", { ...place, branch: "b" });
const present = [started, t("created", { branch: "b", commit: "c0" })];
const past = {
  creating: [started],
  present,
  missing: [...present, t("reconciled", { presence: "missing" })],
  failed: [started, t("creation_failed", { message: "no" })],
  removing: [...present, t("removal_started", { force: false })],
  removed: [...present, t("removal_started", { force: false }), t("removed", {})],
  registered: [t("registered", place)],
} as const;
type Past = keyof typeof past;
const pasts = Object.keys(past) as Past[];
const statusOf = (name: Past) => (name === "registered" ? "present" : name);

const attached = (session_id: string, mode: "read" | "write" = "write") =>
  t("attached", { session_id, mode });
const locked = (session_id: string, epoch: number, ttl_ms = 60_000) =>
  t("writer_locked", { session_id, epoch, ttl_ms });
const released = (session_id: string, epoch: number) => t("writer_released", { session_id, epoch });
const expired = (session_id: string, epoch: number) => t("writer_expired", { session_id, epoch });
const stolen = (session_id: string, from_session_id: string, epoch: number) =>
  t("writer_stolen", {
    session_id,
    from_session_id,
    epoch,
    expected_epoch: epoch - 1,
    ttl_ms: 300_000,
    reason: "gone",
  });
/** A present worktree that A and B may write in and C may read. */
const shared = [...world, ...present, attached(A), attached(B), attached(C, "read")];

const one = { worktree_id: T };
const iso = (ms: number) => new Date(ms).toISOString();
const endOf = (it: Kernel) => iso(it.lease(`worktree/${T}`)!.expires_at);

/** Refused because another holds the lock, with what the caller needs to go on. */
function thenHeld(
  it: ReturnType<typeof given<typeof worktree.commands, typeof worktree.events>>,
  when: {
    name: "lock_writer" | "renew_writer" | "release_writer";
    payload: { worktree_id: string; session_id: string; epoch?: number };
    holder: string;
    epoch: number;
  },
) {
  const expires_at = endOf(it.kernel);
  const before = it.kernel.clock.now();
  it.when(when.name, when.payload as never).thenRefused("worktree.writer_held", {
    worktree_id: T,
    holder: when.holder,
    epoch: when.epoch,
    expires_at,
    retry_after_ms: Date.parse(expires_at) - before - 1_000,
  });
}

describe("create and register", () => {
  const make = { project_id: P, path: "/srv/t", branch: "b" };

  test("begin in the scope of their project, with what was given and the machine's name", () => {
    const [event] = given(worktree, ...world)
      .when("create", { ...make, base: "main" })
      .thenEvents({ type: "creation_started", payload: { ...place, branch: "b", base: "main" } });
    expect(event).toMatchObject({ ...inW, seq_stream: 1 });
    given(worktree, ...world)
      .when("create", make)
      .thenEvents({ type: "creation_started", payload: { ...place, branch: "b" } });
    const [there] = given(worktree, ...world)
      .when("register", { project_id: P, path: "/srv/t" })
      .thenEvents({ type: "registered", payload: place });
    expect(there).toMatchObject(inW);
    given(worktree, ...world)
      .when("register", make)
      .thenEvents({ type: "registered", payload: { ...place, branch: "b" } });
  });

  test("need a project that is there, in an open workspace, not archived", () => {
    for (const name of ["create", "register"] as const) {
      given(worktree, ...world)
        .when(name, { ...make, project_id: NOWHERE })
        .thenMissing("project", NOWHERE);
      given(worktree, ...world, closed)
        .when(name, make)
        .thenRefused("workspace.closed", { workspace_id: W });
      given(worktree, ...world, archived)
        .when(name, make)
        .thenRefused("project.archived", { project_id: P });
      given(worktree, ...world, archived, closed)
        .when(name, make)
        .thenRefused("workspace.closed", { workspace_id: W });
    }
  });

  test("create needs a repository, register does not", () => {
    given(worktree, ...world)
      .when("create", { ...make, project_id: BARE })
      .thenRefused("worktree.no_repository", { project_id: BARE });
    given(worktree, ...world)
      .when("register", { project_id: BARE, path: "/srv/t" })
      .thenEvents({ type: "registered", payload: place });
  });

  test("a place is taken until its worktree has failed or is removed", () => {
    for (const name of pasts)
      for (const verb of ["create", "register"] as const) {
        const it = given(worktree, ...world, ...past[name]).when(verb, make);
        if (name === "failed" || name === "removed")
          it.thenEvents(
            verb === "create"
              ? { type: "creation_started", payload: { ...place, branch: "b" } }
              : { type: "registered", payload: { ...place, branch: "b" } },
          );
        else it.thenRefused("worktree.path_taken", { worktree_id: T, status: statusOf(name) });
      }
  });

  test("another path, and the same path on another machine, are free; another project's worktree takes the place too", () => {
    given(worktree, ...world, ...present)
      .when("register", { project_id: P, path: "/srv/t2" })
      .thenEvents({ type: "registered", payload: { host: "here", path: "/srv/t2" } });
    given(worktree, ...world, t("registered", { host: "elsewhere", path: "/srv/t" }))
      .when("register", { project_id: P, path: "/srv/t" })
      .thenEvents({ type: "registered", payload: place });
    given(worktree, ...world, ...present)
      .when("register", { project_id: BARE, path: "/srv/t" })
      .thenRefused("worktree.path_taken", { worktree_id: T, status: "present" });
  });

  test("what is on another machine cannot be looked at from here", () => {
    given(worktree, ...world, t("registered", { host: "elsewhere", path: "/srv/t" }))
      .when("reconcile", one)
      .thenRefused("worktree.other_host", { host: "elsewhere", here: "here" });
  });

  test("no branch and no base can be taken for an option of git", () => {
    const { branch, base } = worktree.commands.create.payload.properties;
    const branches = "a feat/x a.b a- @a HEADx x-y ü/名 😀 a.lockx".split(" ");
    expect(branches.filter((text) => !matches(branch, text))).toEqual([]);
    const never = [
      ..."-x --force @ HEAD a..b a@{b /a a/ a//b .a a/.b a.lock a.lock/b a. a~1 a^ a:b a? a* a[ a\\b".split(
        " ",
      ),
      "",
      "a b",
      "a\n",
      "a\u0001",
      "a\u202eb",
      "x".repeat(256),
    ];
    expect(never.filter((text) => matches(branch, text))).toEqual([]);
    expect(
      "main HEAD HEAD~2 origin/main v1^{commit} 1a2b".split(" ").filter((text) => !matches(base, text)),
    ).toEqual([]);
    expect(["-x", "--", "-", "", "a b", "a\n", "a\0"].filter((text) => matches(base, text))).toEqual([]);
  });
});

describe("in each status", () => {
  test("what git made, or could not make, is noted while it is awaited, and never again", () => {
    for (const name of pasts) {
      const it = () => given(worktree, ...world, ...past[name]);
      const made = { branch: "b", commit: "c1" };
      it()
        .when("record_created", { ...one, ...made })
        .thenEvents(...(name === "creating" ? [{ type: "created" as const, payload: made }] : []));
      it()
        .when("record_creation_failed", { ...one, message: "no" })
        .thenEvents(
          ...(name === "creating" ? [{ type: "creation_failed" as const, payload: { message: "no" } }] : []),
        );
      it()
        .when("record_removed", one)
        .thenEvents(...(name === "removing" ? [{ type: "removed" as const, payload: {} }] : []));
      it()
        .when("record_removal_failed", { ...one, message: "no" })
        .thenEvents(
          ...(name === "removing" ? [{ type: "removal_failed" as const, payload: { message: "no" } }] : []),
        );
      const found = { presence: "missing" as const };
      it()
        .when("record_reconciled", { ...one, ...found })
        .thenEvents(
          ...(["present", "missing"].includes(statusOf(name))
            ? [{ type: "reconciled" as const, payload: found }]
            : []),
        );
    }
  });

  test("remove: git's own go by git, a registered or failed one is only forgotten, a gone one changes nothing", () => {
    for (const name of pasts) {
      const it = given(worktree, ...world, ...past[name]).when("remove", one);
      if (name === "present" || name === "missing")
        it.thenEvents({ type: "removal_started", payload: { force: false } });
      else if (name === "registered" || name === "failed") it.thenEvents({ type: "removed", payload: {} });
      else if (name === "creating") it.thenRefused("worktree.not_present", { status: "creating" });
      else it.thenEvents();
    }
    given(worktree, ...world, ...present)
      .when("remove", { ...one, force: true })
      .thenEvents({ type: "removal_started", payload: { force: true } });
  });

  test("reconcile: what is there or missing; a registered one that is missing is still only forgotten", () => {
    for (const name of pasts) {
      const it = given(worktree, ...world, ...past[name]).when("reconcile", one);
      if (["present", "missing"].includes(statusOf(name)))
        it.thenEvents({ type: "reconciliation_started", payload: {} });
      else it.thenRefused("worktree.not_present", { status: statusOf(name) });
    }
    given(worktree, ...world, ...past.registered, t("reconciled", { presence: "missing" }))
      .when("remove", one)
      .thenEvents({ type: "removed", payload: {} });
  });

  test("a removal that failed leaves it as it was before", () => {
    for (const name of ["present", "missing"] as const) {
      const it = given(
        worktree,
        ...world,
        ...past[name],
        t("removal_started", { force: false }),
        t("removal_failed", { message: "no" }),
      );
      expect(it.kernel.query("worktree.get", one)).toMatchObject({ status: name, failure: "no" });
      it.when("remove", one).thenEvents({ type: "removal_started", payload: { force: false } });
    }
  });

  test("attach, lock and steal: only in one that is present", () => {
    for (const name of pasts) {
      const it = () => given(worktree, ...world, ...past[name]);
      const refused = { status: statusOf(name) };
      const attach = it().when("attach", { ...one, session_id: A, mode: "write" });
      const lock = it().when("lock_writer", { ...one, session_id: A });
      const steal = it().when("steal_writer", { ...one, session_id: A, expected_epoch: 0, reason: "r" });
      if (statusOf(name) === "present") {
        attach.thenEvents({ type: "attached", payload: { session_id: A, mode: "write" } });
        lock.thenRefused("worktree.not_attached", { worktree_id: T, session_id: A, mode: null });
        steal.thenRefused("worktree.not_attached", { worktree_id: T, session_id: A, mode: null });
      } else for (const each of [attach, lock, steal]) each.thenRefused("worktree.not_present", refused);
    }
  });

  test("detach, release and renew ask for no status: they give back", () => {
    for (const name of pasts) {
      const it = () => given(worktree, ...world, ...past[name]);
      it()
        .when("detach", { ...one, session_id: A })
        .thenEvents();
      it()
        .when("leave", { ...one, session_id: A })
        .thenEvents();
      it()
        .when("take_up", { ...one, session_id: A })
        .thenEvents();
      it()
        .when("renew_writer", { ...one, session_id: A, epoch: 1 })
        .thenRefused("worktree.stale_epoch", { epoch: 1, current: 0 });
      it()
        .when("release_writer", { ...one, session_id: A, epoch: 0 })
        .thenRefused("worktree.stale_epoch", { epoch: 0, current: 0 });
      it()
        .when("expire_writer", { ...one, epoch: 0 })
        .thenEvents();
    }
  });

  test("nothing is about what does not exist", () => {
    const about = { worktree_id: NOWHERE, session_id: A };
    const none = () => given(worktree, ...world);
    none().when("remove", { worktree_id: NOWHERE }).thenMissing("worktree", NOWHERE);
    none().when("reconcile", { worktree_id: NOWHERE }).thenMissing("worktree", NOWHERE);
    none()
      .when("attach", { ...about, mode: "read" })
      .thenMissing("worktree", NOWHERE);
    none().when("detach", about).thenMissing("worktree", NOWHERE);
    none().when("lock_writer", about).thenMissing("worktree", NOWHERE);
    none()
      .when("renew_writer", { ...about, epoch: 1 })
      .thenMissing("worktree", NOWHERE);
    none()
      .when("release_writer", { ...about, epoch: 1 })
      .thenMissing("worktree", NOWHERE);
    none()
      .when("steal_writer", { ...about, expected_epoch: 1, reason: "r" })
      .thenMissing("worktree", NOWHERE);
  });
});

describe("closed and archived parents", () => {
  const held = [...shared, locked(A, 1)];

  test("nothing is begun in them", () => {
    for (const [fact, reason, details] of [
      [closed, "workspace.closed", { workspace_id: W }],
      [archived, "project.archived", { project_id: P }],
    ] as const) {
      const it = () => given(worktree, ...held, fact);
      it()
        .when("attach", { ...one, session_id: A, mode: "read" })
        .thenRefused(reason, details);
      it()
        .when("lock_writer", { ...one, session_id: B })
        .thenRefused(reason, details);
      it()
        .when("steal_writer", { ...one, session_id: B, expected_epoch: 1, reason: "r" })
        .thenRefused(reason, details);
    }
  });

  test("nothing is looked at or removed in a closed workspace; an archived project may be tidied up", () => {
    for (const name of ["remove", "reconcile"] as const)
      given(worktree, ...world, ...present, closed)
        .when(name, one)
        .thenRefused("workspace.closed", { workspace_id: W });
    given(worktree, ...world, ...present, archived)
      .when("remove", one)
      .thenEvents({ type: "removal_started", payload: { force: false } });
    given(worktree, ...world, ...present, archived)
      .when("reconcile", one)
      .thenEvents({ type: "reconciliation_started", payload: {} });
    given(worktree, ...world, ...past.removed, closed)
      .when("remove", one)
      .thenEvents();
  });

  test("what was taken is given back, renewed and ended in them", () => {
    for (const fact of [closed, archived]) {
      const it = () => given(worktree, ...held, fact);
      it()
        .when("renew_writer", { ...one, session_id: A, epoch: 1 })
        .thenEvents();
      it()
        .when("release_writer", { ...one, session_id: A, epoch: 1 })
        .thenEvents({ type: "writer_released", payload: { session_id: A, epoch: 1 } });
      it()
        .when("detach", { ...one, session_id: B })
        .thenEvents({ type: "detached", payload: { session_id: B } });
      it()
        .when("expire_writer", { ...one, epoch: 1 })
        .thenEvents({ type: "writer_expired", payload: { session_id: A, epoch: 1 } });
    }
    given(worktree, ...world, ...past.creating, archived, closed)
      .when("record_created", one)
      .thenEvents({ type: "created", payload: {} });
    given(worktree, ...world, ...past.removing, archived, closed)
      .when("record_removed", one)
      .thenEvents({ type: "removed", payload: {} });
  });
});

describe("attach and detach", () => {
  test("a session attaches once; another mode replaces the first", () => {
    given(worktree, ...world, ...present, attached(A))
      .when("attach", { ...one, session_id: A, mode: "write" })
      .thenEvents();
    for (const [from, mode] of [
      ["read", "write"],
      ["write", "read"],
    ] as const)
      given(worktree, ...world, ...present, attached(A, from))
        .when("attach", { ...one, session_id: A, mode })
        .thenEvents({ type: "attached", payload: { session_id: A, mode } });
  });

  test("any number attach, and a session to any number", () => {
    given(worktree, ...shared, about(worktree, T2, inW)("registered", { host: "here", path: "/srv/t2" }))
      .when("attach", { worktree_id: T2, session_id: A, mode: "write" })
      .thenEvents({ type: "attached", payload: { session_id: A, mode: "write" } });
  });

  test("from write to read gives the lock back, whoever else's stays", () => {
    given(worktree, ...shared, locked(A, 1))
      .when("attach", { ...one, session_id: A, mode: "read" })
      .thenEvents(
        { type: "writer_released", payload: { session_id: A, epoch: 1 } },
        { type: "attached", payload: { session_id: A, mode: "read" } },
      );
    given(worktree, ...shared, locked(A, 1))
      .when("attach", { ...one, session_id: B, mode: "read" })
      .thenEvents({ type: "attached", payload: { session_id: B, mode: "read" } });
  });

  test("detach and leave give the lock back first; what is not attached changes nothing", () => {
    for (const name of ["detach", "leave"] as const) {
      given(worktree, ...shared, locked(A, 4))
        .when(name, { ...one, session_id: A })
        .thenEvents(
          { type: "writer_released", payload: { session_id: A, epoch: 4 } },
          { type: "detached", payload: { session_id: A } },
        );
      given(worktree, ...shared, locked(A, 4))
        .when(name, { ...one, session_id: B })
        .thenEvents({ type: "detached", payload: { session_id: B } });
      given(worktree, ...shared, locked(A, 4), expired(A, 4))
        .when(name, { ...one, session_id: A })
        .thenEvents({ type: "detached", payload: { session_id: A } });
      given(worktree, ...world, ...present)
        .when(name, { ...one, session_id: A })
        .thenEvents();
    }
    given(worktree, ...shared)
      .when("detach", { ...one, session_id: NOWHERE })
      .thenMissing("session", NOWHERE);
  });

  test("a session that takes something must be there, live and of the same workspace", () => {
    const takes = [
      ["attach", { mode: "write" }],
      ["lock_writer", {}],
      ["steal_writer", { expected_epoch: 0, reason: "r" }],
    ] as const;
    for (const [name, more] of takes) {
      const it = (session_id: string, ...facts: Fact[]) =>
        given(worktree, ...shared, ...facts).when(name, { ...one, session_id, ...more } as never);
      it(NOWHERE).thenMissing("session", NOWHERE);
      it(FOREIGN).thenRefused("session.other_workspace", { session_id: FOREIGN, workspace_id: W2 });
      it(A, lost(A)).thenRefused("session.not_live", { session_id: A, status: "lost" });
      it(A, ended(A)).thenRefused("session.not_live", { session_id: A, status: "failed" });
    }
    for (const fact of [became(A, "idle"), became(A, "running")])
      given(worktree, ...shared, fact)
        .when("lock_writer", { ...one, session_id: A, ttl_ms: 1_000 })
        .thenEvents({ type: "writer_locked", payload: { session_id: A, epoch: 1, ttl_ms: 1_000 } });
  });

  test("a session that is not live still gives back", () => {
    for (const fact of [lost(A), ended(A)]) {
      given(worktree, ...shared, locked(A, 1), fact)
        .when("release_writer", { ...one, session_id: A, epoch: 1 })
        .thenEvents({ type: "writer_released", payload: { session_id: A, epoch: 1 } });
      given(worktree, ...shared, fact)
        .when("detach", { ...one, session_id: A })
        .thenEvents({ type: "detached", payload: { session_id: A } });
    }
  });

  test("however many sessions are attached, a refusal names a hundred of them, and each can go", () => {
    const many = Array.from({ length: 120 }, (_, n) => uuid(1_000 + n));
    const it = kernel();
    it.tell([...world, ...present, ...many.flatMap((id) => [spawned(id), attached(id)])]);
    const refused = it.run("worktree.remove", one);
    expect("problem" in refused && refused.problem.details).toEqual({ sessions: many.slice(0, 100) });
    for (const session_id of many) it.run("worktree.detach", { ...one, session_id });
    expect(it.run("worktree.remove", one)).toHaveProperty("receipt");
    // The state of a stream holds none of them: folding one that thousands came to and left costs no more than its events.
    expect(JSON.stringify(it.folded(`worktree/${T}`))).not.toContain(many[0]!);
  });

  test("one with sessions is not removed, and says which they are", () => {
    given(worktree, ...shared)
      .when("remove", { ...one, force: true })
      .thenRefused("worktree.has_attachments", { sessions: [A, B, C] });
    given(worktree, ...world, ...past.registered, attached(C, "read"))
      .when("remove", one)
      .thenRefused("worktree.has_attachments", { sessions: [C] });
    given(worktree, ...world, ...present, attached(A), t("detached", { session_id: A }))
      .when("remove", one)
      .thenEvents({ type: "removal_started", payload: { force: false } });
  });

  test("a session that is resumed has the locks that still hold under new epochs, and no others", () => {
    const [T3, other] = [uuid(40), about(worktree, T2, inW)];
    const third = about(worktree, T3, inW);
    const begun = [other, third].flatMap((each, n) => [
      each("registered", { host: "here", path: `/srv/t${n}` }),
      each("attached", { session_id: A, mode: "write" }),
      each("writer_locked", { session_id: A, epoch: 1, ttl_ms: 60_000 }),
    ]);
    const [ran, s] = [third("writer_expired", { session_id: A, epoch: 1 }), about(session, A, inW)];
    const it = given(session, ...shared, locked(A, 3), ...begun, ran, s("lost", { epoch: 1 }));
    it.when("resume", { session_id: A }).thenEvents(
      { type: "resumed", payload: { epoch: 2, ttl_ms: 300_000 } },
      locked(A, 4),
      other("writer_locked", { session_id: A, epoch: 2, ttl_ms: 60_000 }),
    );
    expect(it.kernel.lease(`worktree/${T2}`)).toMatchObject({ epoch: 2, ttl_ms: 60_000 });
    expect(it.kernel.lease(`worktree/${T3}`)).toBeUndefined();
  });

  test("a session that ends leaves every worktree, and gives its lock back", () => {
    const other = about(worktree, T2, inW);
    given(
      session,
      ...shared,
      locked(A, 3),
      other("registered", { host: "here", path: "/srv/t2" }),
      other("attached", { session_id: A, mode: "read" }),
    )
      .when("end", { session_id: A, outcome: "completed" })
      .thenEvents(
        { type: "ended", payload: { outcome: "completed" } },
        released(A, 3),
        t("detached", { session_id: A }),
        other("detached", { session_id: A }),
      );
  });
});

describe("the writer lock", () => {
  test("begins above every epoch that was given out at its place before: none is good twice", () => {
    const again = about(worktree, T2, inW);
    const elsewhere = about(worktree, uuid(40), inW);
    const it = given(
      worktree,
      ...world,
      elsewhere("registered", { ...place, host: "there" }),
      elsewhere("writer_locked", { session_id: C, epoch: 70, ttl_ms: 60_000 }),
      elsewhere("removed", {}),
      t("registered", place),
      attached(A),
      locked(A, 6),
      released(A, 6),
      t("detached", { session_id: A }),
      t("removed", {}),
      again("registered", place),
      again("attached", { session_id: B, mode: "write" }),
    );
    it.when("lock_writer", { worktree_id: T2, session_id: B }).thenEvents(
      again("writer_locked", { session_id: B, epoch: 7, ttl_ms: 300_000 }),
    );
    expect(it.kernel.queryRefused("worktree.check", { path: place.path, epoch: 6 })).toMatchObject({
      reason: "worktree.stale_epoch",
      details: { epoch: 6, current: 7 },
    });
  });

  test("of a worktree that is gone is given back by nobody", () => {
    const gone = [locked(A, 1), expired(A, 1), t("detached", { session_id: A }), t("removed", {})];
    given(worktree, ...world, t("registered", place), attached(A), ...gone)
      .when("release_writer", { ...one, session_id: A, epoch: 1 })
      .thenEvents();
  });

  /** Each state it can be in, with the last epoch and who had it. */
  const states = {
    "free, never held": { facts: [], epoch: 0, last: undefined, holds: false },
    "free, released": { facts: [locked(A, 1), released(A, 1)], epoch: 1, last: A, holds: false },
    held: { facts: [locked(A, 1)], epoch: 1, last: A, holds: true },
    "held again": { facts: [locked(B, 1), released(B, 1), locked(A, 2)], epoch: 2, last: A, holds: true },
    stolen: { facts: [locked(B, 1), stolen(A, B, 2)], epoch: 2, last: A, holds: true },
    expired: { facts: [locked(A, 1), expired(A, 1)], epoch: 1, last: A, holds: false },
  };

  for (const [name, { facts, epoch, last, holds }] of Object.entries(states)) {
    const it = () => given(worktree, ...shared, ...facts);

    test(`${name}: lock`, () => {
      if (holds) {
        const own = it();
        own
          .when("lock_writer", { ...one, session_id: A })
          .thenResult({ epoch, expires_at: endOf(own.kernel) });
        own.when("lock_writer", { ...one, session_id: A }).thenEvents();
        thenHeld(it(), { name: "lock_writer", payload: { ...one, session_id: B }, holder: A, epoch });
      } else
        for (const session_id of [A, B])
          it()
            .when("lock_writer", { ...one, session_id })
            .thenEvents({
              type: "writer_locked",
              payload: { session_id, epoch: epoch + 1, ttl_ms: 300_000 },
            });
      it()
        .when("lock_writer", { ...one, session_id: C })
        .thenRefused("worktree.not_attached", { worktree_id: T, session_id: C, mode: "read" });
    });

    test(`${name}: renew`, () => {
      const own = it().when("renew_writer", { ...one, session_id: A, epoch });
      if (holds) own.thenEvents();
      else own.thenRefused("worktree.stale_epoch", { epoch, current: epoch });
      if (holds)
        thenHeld(it(), { name: "renew_writer", payload: { ...one, session_id: B, epoch }, holder: A, epoch });
      for (const wrong of [epoch + 1, ...(epoch > 0 ? [epoch - 1] : [])])
        it()
          .when("renew_writer", { ...one, session_id: A, epoch: wrong })
          .thenRefused("worktree.stale_epoch", { epoch: wrong, current: epoch });
    });

    test(`${name}: release`, () => {
      const own = it().when("release_writer", { ...one, session_id: A, epoch });
      const gone = { type: "writer_released" as const, payload: { session_id: A, epoch } };
      // What ran out may be given back by who had it: nobody has had it since.
      if (holds || name === "expired") own.thenEvents(gone);
      else if (last === A) own.thenEvents();
      else own.thenRefused("worktree.stale_epoch", { epoch, current: epoch });
      if (holds)
        thenHeld(it(), {
          name: "release_writer",
          payload: { ...one, session_id: B, epoch },
          holder: A,
          epoch,
        });
      else
        it()
          .when("release_writer", { ...one, session_id: B, epoch })
          .thenRefused("worktree.stale_epoch", { epoch, current: epoch });
      for (const wrong of [epoch + 1, ...(epoch > 0 ? [epoch - 1] : [])])
        it()
          .when("release_writer", { ...one, session_id: A, epoch: wrong })
          .thenRefused("worktree.stale_epoch", { epoch: wrong, current: epoch });
    });

    test(`${name}: steal`, () => {
      const reason = "it hangs";
      it()
        .when("steal_writer", { ...one, session_id: B, expected_epoch: epoch, reason })
        .thenEvents({
          type: "writer_stolen",
          payload: {
            session_id: B,
            ...(holds && { from_session_id: A }),
            epoch: epoch + 1,
            expected_epoch: epoch,
            ttl_ms: 300_000,
            reason,
          },
        });
      for (const expected_epoch of [epoch + 1, ...(epoch > 0 ? [epoch - 1] : [])])
        it()
          .when("steal_writer", { ...one, session_id: B, expected_epoch, reason })
          .thenRefused("worktree.stale_epoch", { epoch: expected_epoch, current: epoch });
      it()
        .when("steal_writer", { ...one, session_id: C, expected_epoch: epoch, reason })
        .thenRefused("worktree.not_attached", { worktree_id: T, session_id: C, mode: "read" });
      if (holds)
        it()
          .when("steal_writer", { ...one, session_id: A, expected_epoch: epoch, reason })
          .thenEvents();
    });

    test(`${name}: expire`, () => {
      it()
        .when("expire_writer", { ...one, epoch })
        .thenEvents(
          ...(holds ? [{ type: "writer_expired" as const, payload: { session_id: A, epoch } }] : []),
        );
      it()
        .when("expire_writer", { ...one, epoch: epoch + 1 })
        .thenEvents();
    });
  }

  test("its epoch only grows, whichever way a holder comes and goes", () => {
    const it = kernel();
    it.tell(shared);
    const epochs: number[] = [];
    const run = (name: string, payload: Record<string, unknown>) => {
      const outcome = it.run(`worktree.${name}`, { ...one, ...payload });
      if ("problem" in outcome) throw new Error(JSON.stringify(outcome.problem));
      return JSON.parse(outcome.receipt) as { result: { epoch: number; expires_at: string } };
    };
    const lock = (session_id: string) => {
      epochs.push(run("lock_writer", { session_id, ttl_ms: 60_000 }).result.epoch);
    };
    lock(A);
    run("release_writer", { session_id: A, epoch: 1 });
    lock(B);
    epochs.push(run("steal_writer", { session_id: A, expected_epoch: 2, reason: "r" }).result.epoch);
    run("detach", { session_id: A });
    run("attach", { session_id: A, mode: "write" });
    lock(A);
    it.clock.forward(60_000);
    expect(it.expire()?.events.map((event) => event.event_type)).toEqual(["worktree.writer_expired"]);
    lock(A);
    run("attach", { session_id: A, mode: "read" });
    lock(B);
    it.forget();
    run("leave", { session_id: B });
    run("attach", { session_id: B, mode: "write" });
    lock(B);
    expect(epochs).toEqual([1, 2, 3, 4, 5, 6, 7]);
  });

  test("its lease begins with the holder, is put off by renewals, ends with a release, and runs out by itself", () => {
    const it = kernel();
    it.tell(shared);
    const stream = `worktree/${T}`;
    const run = (name: string, payload: Record<string, unknown>) =>
      JSON.parse(
        (it.run(`worktree.${name}`, { ...one, session_id: A, ...payload }) as { receipt: string }).receipt,
      ) as { result: { epoch: number; expires_at: string }; events: unknown[] };
    expect(it.lease(stream)).toBeUndefined();
    const first = run("lock_writer", { ttl_ms: 10_000 });
    expect(it.lease(stream)).toMatchObject({ epoch: 1, ttl_ms: 10_000 });
    expect(first.result.expires_at).toBe(endOf(it));
    it.clock.forward(5_000);
    const head = it.head();
    const renewed = run("renew_writer", { epoch: 1 });
    expect(renewed.result).toEqual({ epoch: 1, expires_at: endOf(it) });
    expect(renewed.result.expires_at > first.result.expires_at).toBe(true);
    expect([it.head(), renewed.events]).toEqual([head, []]);
    expect(it.query("worktree.get", one).writer).toEqual({ session_id: A, ...renewed.result });
    run("release_writer", { epoch: 1 });
    expect(it.lease(stream)).toBeUndefined();
    run("lock_writer", { ttl_ms: 10_000 });
    expect(it.expire()).toBeUndefined();
    it.clock.forward(10_000);
    it.expire();
    expect(it.lease(stream)).toBeUndefined();
    expect(it.query("worktree.get", one)).toMatchObject({
      writer: null,
      writer_status: "expired",
      writer_session_id: null,
      writer_epoch: 2,
    });
    // A thief's lease takes the place of the one before.
    run("lock_writer", { session_id: B, ttl_ms: 10_000 });
    run("steal_writer", { expected_epoch: 3, reason: "r" });
    expect(it.lease(stream)).toMatchObject({ epoch: 4, ttl_ms: 300_000 });
  });

  test("who waits is told how long, and no less than nothing when the end has passed unnoticed", () => {
    const it = given(worktree, ...shared, locked(A, 1, 5_000));
    const expires_at = endOf(it.kernel);
    it.kernel.clock.forward(60_000);
    it.when("lock_writer", { ...one, session_id: B }).thenRefused("worktree.writer_held", {
      worktree_id: T,
      holder: A,
      epoch: 1,
      expires_at,
      retry_after_ms: 0,
    });
  });
});

describe("queries", () => {
  test("list and get show everything but bookkeeping", () => {
    const it = given(worktree, ...shared, locked(A, 1)).kernel;
    const row = {
      worktree_id: T,
      ...inW,
      ...place,
      branch: "b",
      origin: "created",
      status: "present",
      failure: null,
      commit_sha: "c0",
      writer_status: "held",
      writer_session_id: A,
      writer_epoch: 1,
    };
    const { items } = it.query<{ items: object[] }>("worktree.list", inW);
    expect(items).toEqual([expect.objectContaining(row)]);
    expect(Object.keys(items[0]!).toSorted()).toEqual(
      [...Object.keys(row), "created_at", "updated_at", "version"].toSorted(),
    );
    const found = it.query<{ attachments: object[]; writer: object }>("worktree.get", one);
    expect(found).toMatchObject(row);
    expect(found.attachments).toEqual([
      { session_id: A, mode: "write", attached_at: expect.any(String) },
      { session_id: B, mode: "write", attached_at: expect.any(String) },
      { session_id: C, mode: "read", attached_at: expect.any(String) },
    ]);
    expect(found.writer).toEqual({ session_id: A, epoch: 1, expires_at: endOf(it) });
    for (const params of [{ status: "failed" }, { path: "/srv" }, { project_id: P2 }, { workspace_id: W2 }])
      expect(it.query<{ items: object[] }>("worktree.list", params).items).toEqual([]);
    for (const params of [{ status: "present" }, { path: "/srv/t" }])
      expect(it.query<{ items: object[] }>("worktree.list", params).items).toHaveLength(1);
    expect(it.queryRefused("worktree.get", { worktree_id: NOWHERE })).toMatchObject({ code: "not_found" });
  });

  test("a look at git changes what is shown; one that is missing keeps its last branch", () => {
    const it = given(
      worktree,
      ...world,
      ...present,
      t("reconciled", { presence: "present", commit: "c2" }),
    ).kernel;
    expect(it.query("worktree.get", one)).toMatchObject({ branch: null, commit_sha: "c2" });
    it.tell([t("reconciled", { presence: "present", branch: "n", commit: "c3" })]);
    it.tell([t("reconciled", { presence: "missing" })]);
    expect(it.query("worktree.get", one)).toMatchObject({ status: "missing", branch: "n", commit_sha: "c3" });
  });

  test("check: the nearest worktree at or above a path", () => {
    const inner = about(worktree, T2, inW);
    const it = given(
      worktree,
      ...world,
      ...present,
      inner("registered", { host: "here", path: "/srv/t/in/ner" }),
    ).kernel;
    const at = (path: string) => it.query("worktree.check", { path });
    for (const path of ["/srv/t", "/srv/t/a", "/srv/t/in", "/srv/t/in/nerd", "/srv/t/x/in/ner"])
      expect(at(path)).toMatchObject({ worktree_id: T, path: "/srv/t", allowed: true, writer: null });
    for (const path of ["/srv/t/in/ner", "/srv/t/in/ner/deep/er"])
      expect(at(path)).toMatchObject({ worktree_id: T2, path: "/srv/t/in/ner" });
    for (const path of ["/", "/srv", "/srv/tt", "/srv/t\\a", "C:\\srv\\t", "C:\\"])
      expect(at(path)).toMatchObject({ worktree_id: null, path: null, allowed: true, writer: null });
    it.tell([inner("removed", {})]);
    expect(at("/srv/t/in/ner")).toMatchObject({ worktree_id: T });
    it.tell([about(worktree, uuid(77), inW)("registered", { host: "here", path: "/" })]);
    expect(at("/etc")).toMatchObject({ worktree_id: uuid(77), path: "/" });
    it.tell([about(worktree, uuid(78), inW)("registered", { host: "here", path: "C:\\srv" })]);
    expect(at("C:\\srv\\deep")).toMatchObject({ worktree_id: uuid(78) });
  });

  test("check: allowed to who holds the lock, and to anyone while nobody does", () => {
    const path = "/srv/t/file";
    const stale = (epoch: number, current: number) => ({
      code: "conflict",
      reason: "worktree.stale_epoch",
      details: { epoch, current },
    });
    for (const facts of [[], [locked(A, 1), released(A, 1)], [locked(A, 1), expired(A, 1)]]) {
      const it = given(worktree, ...shared, ...facts).kernel;
      for (const who of [{}, { session_id: B }])
        expect(it.query("worktree.check", { path, ...who })).toMatchObject({ worktree_id: T, writer: null });
      const current = facts.length === 0 ? 0 : 1;
      for (const epoch of [0, 1, 2])
        expect(it.queryRefused("worktree.check", { path, epoch })).toMatchObject(stale(epoch, current));
    }
    const it = given(worktree, ...shared, locked(B, 1), released(B, 1), locked(A, 2)).kernel;
    const expires_at = endOf(it);
    const writer = { session_id: A, epoch: 2, expires_at };
    for (const who of [{ epoch: 2 }, { session_id: A }, { epoch: 2, session_id: A }])
      expect(it.query("worktree.check", { path, ...who })).toMatchObject({ allowed: true, writer });
    const at = iso(Date.parse(expires_at) - 7_000);
    for (const who of [{}, { session_id: B }, { epoch: 2, session_id: B }])
      expect(it.queryRefused("worktree.check", { path, ...who }, at)).toMatchObject({
        reason: "worktree.writer_held",
        details: { worktree_id: T, holder: A, epoch: 2, expires_at, retry_after_ms: 7_000 },
      });
    for (const epoch of [1, 3])
      expect(it.queryRefused("worktree.check", { path, epoch })).toMatchObject(stale(epoch, 2));
    expect(it.queryRefused("worktree.check", { path: "/elsewhere", epoch: 1 })).toMatchObject(stale(1, 0));
  });

  test("look-ups go by an index", () => {
    const it = given(worktree, ...shared).kernel;
    const plan = (sql: string) =>
      it.db
        .query<{ detail: string }, []>(`EXPLAIN QUERY PLAN ${sql}`)
        .all()
        .map((row) => row.detail)
        .join();
    for (const where of ["path IN ('/a', '/b') AND place > ''", "place IS 'here:/a'", "status IS 'creating'"])
      expect(plan(`SELECT * FROM worktrees WHERE ${where} ORDER BY worktree_id`)).toContain("SEARCH");
    expect(plan("SELECT * FROM worktree_attachments WHERE session_id IS 'a'")).toContain("SEARCH");
  });
});
