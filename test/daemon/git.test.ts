/**
 * What git does for worktrees (SPEC §8): a real daemon process, real repositories. Where a moment must be certain, a script
 * named git stands on the daemon's PATH: it calls the real one, and waits before or after it as long as the test says.
 */
import { Database } from "bun:sqlite";
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { markOf, orphansEnded, parseWorktrees, runGit } from "../../src/daemon/git.ts";
import { sessionVariables } from "../../src/daemon/variables.ts";
import { ask, type Fate, type Receipt, send } from "../crash/launch.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";

// Several starts of a daemon and of git each, on a machine that may be busy.
setDefaultTimeout(30_000);

const git = Bun.which("git");
if (git === null && process.env.CI) throw new Error("git is not installed, and CI must not skip its tests");
if (git === null) console.log("test/daemon/git.test.ts: skipped, because git is not installed");

describe("git worktree list --porcelain", () => {
  const nul = (...lines: string[]) => lines.map((line) => `${line}\0`).join("");
  const plain = { bare: false, detached: false };

  test("every kind of entry, with -z", () => {
    const text = nul(
      "worktree /srv/repo.git",
      "bare",
      "",
      "worktree /srv/with space/ü 名😀",
      "HEAD 1a2b",
      "branch refs/heads/feat/x",
      "",
      "worktree /srv/line\nbreak\nworktree /etc",
      "HEAD 3c4d",
      "detached",
      "",
      "worktree /srv/locked",
      "HEAD 5e6f",
      "branch refs/heads/main",
      "locked",
      "",
      "worktree /srv/kept",
      "HEAD 5e6f",
      "detached",
      "locked on a stick\nof mine",
      "",
      "worktree /srv/gone",
      "HEAD 5e6f",
      "branch refs/heads/gone",
      "prunable gitdir file points to non-existent location",
      "later what this does not know",
      "",
    );
    expect(parseWorktrees(text)).toEqual([
      { path: "/srv/repo.git", bare: true, detached: false },
      { ...plain, path: "/srv/with space/ü 名😀", head: "1a2b", branch: "feat/x" },
      { ...plain, path: "/srv/line\nbreak\nworktree /etc", head: "3c4d", detached: true },
      { ...plain, path: "/srv/locked", head: "5e6f", branch: "main", locked: "" },
      { ...plain, path: "/srv/kept", head: "5e6f", detached: true, locked: "on a stick\nof mine" },
      {
        ...plain,
        path: "/srv/gone",
        head: "5e6f",
        branch: "gone",
        prunable: "gitdir file points to non-existent location",
      },
    ]);
  });

  test("with newlines, from an older git; and nothing at all", () => {
    expect(parseWorktrees("worktree /a\nHEAD 1\nbranch refs/heads/m\n\nworktree /b\nbare\n\n", "\n")).toEqual(
      [
        { ...plain, path: "/a", head: "1", branch: "m" },
        { ...plain, path: "/b", bare: true },
      ],
    );
    for (const text of ["", "\0", "\0\0", "\0\0\0\0"]) expect(parseWorktrees(text)).toEqual([]);
  });

  test("what a branch or folder is called decides nothing", () => {
    expect(parseWorktrees(nul("worktree /a", "HEAD 1", "branch refs/heads/refs/heads/x", ""))).toEqual([
      { ...plain, path: "/a", head: "1", branch: "refs/heads/x" },
    ]);
    expect(parseWorktrees(nul("worktree  /a ", "HEAD 1", "detached", ""))).toEqual([
      { ...plain, path: " /a ", head: "1", detached: true },
    ]);
  });
});

/** Run the real git; throws with what it said. */
function real(folder: string, ...args: string[]): string {
  const ran = Bun.spawnSync([git!, "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", ...args], {
    env: { PATH: process.env.PATH, HOME: folder, GIT_CONFIG_NOSYSTEM: "1" },
  });
  if (ran.exitCode !== 0) throw new Error(`git ${args.join(" ")}: ${ran.stderr.toString()}`);
  return ran.stdout.toString().trim();
}

/** A repository with a commit. */
function repository(home: string, name: string): string {
  const path = join(realpathSync(home), name);
  mkdirSync(path);
  real(path, "init", "--quiet", "--initial-branch=main");
  writeFileSync(join(path, "file.txt"), "one\n");
  real(path, "add", ".");
  real(path, "commit", "--quiet", "--message=one");
  return path;
}

/** A folder with a script named git, and what it is told to wait for. */
function gate(home: string) {
  const folder = join(realpathSync(home), "gate");
  mkdirSync(folder);
  const script = `#!/bin/sh
case " $* " in
*" worktree add "* | *" worktree remove "*)
  echo $$ > "${folder}/pid.tmp" && mv "${folder}/pid.tmp" "${folder}/pid"
  echo begin >> "${folder}/log"
  while [ -e "${folder}/before" ]; do sleep 0.02; done
  '${git}' "$@"
  code=$?
  echo end >> "${folder}/log"
  while [ -e "${folder}/after" ]; do sleep 0.02; done
  exit $code
  ;;
*" worktree list "*)
  while [ -e "${folder}/list" ]; do sleep 0.02; done
  ;;
esac
exec '${git}' "$@"
`;
  writeFileSync(join(folder, "git"), script);
  chmodSync(join(folder, "git"), 0o755);
  const said = () => (existsSync(join(folder, "log")) ? readFileSync(join(folder, "log"), "utf8") : "");
  return {
    PATH: `${folder}:${process.env.PATH}`,
    shut: (when: "before" | "after" | "list") => writeFileSync(join(folder, when), ""),
    open: (when: "before" | "after" | "list") => rmSync(join(folder, when)),
    said: () => said().trim().split("\n").filter(Boolean),
    /** Kill the git that runs, and all that it has started. */
    kill: () => process.kill(-Number(readFileSync(join(folder, "pid"), "utf8")), "SIGKILL"),
  };
}

interface Shown {
  readonly status: string;
  readonly failure: string | null;
  readonly branch: string | null;
  readonly commit_sha: string | null;
  readonly version: number;
}

/** A daemon with a workspace and a project for each repository. */
async function world(
  repositories: readonly string[],
  home: string,
  env: Readonly<Record<string, string>> = {},
) {
  const daemon = await startDaemonProcess(home, { HOME: home, ...env });
  let sent = 0;
  const give = (type: string, payload: object, idempotency_key = `k-${++sent}-${daemon.info.start_id}`) =>
    send(daemon.socket, { type, payload, idempotency_key });
  const workspace_id = receiptOf(await give("workspace.create", { name: "w" })).subject.id;
  const projects: string[] = [];
  for (const [index, repo_path] of repositories.entries()) {
    const place = repo_path === "" ? {} : { repo_path };
    projects.push(
      receiptOf(await give("project.create", { workspace_id, name: `p${index}`, ...place })).subject.id,
    );
  }
  return {
    daemon,
    give,
    workspace_id,
    projects,
    project_id: projects[0]!,
    show: (worktree_id: string) => ask<Shown>(daemon.socket, "worktree.get", `?worktree_id=${worktree_id}`),
    /** The id of the one worktree, once its intent is there. */
    only: () =>
      waitFor(
        async () =>
          (await ask<{ items: { worktree_id: string }[] }>(daemon.socket, "worktree.list")).items[0]
            ?.worktree_id,
        { what: "the worktree" },
      ),
    events: (worktree_id: string) => eventsOf(daemon, worktree_id),
  };
}

function receiptOf(fate: Fate): Receipt {
  if (fate.kind !== "receipt") throw new Error(`not accepted: ${JSON.stringify(fate)}`);
  return fate.receipt;
}

/** The events of a worktree, by their short names. */
async function eventsOf(daemon: DaemonProcess, worktree_id: string): Promise<string[]> {
  const response = await fetch(`http://mp/v1/events?streams=worktree/${worktree_id}`, {
    unix: daemon.socket,
  });
  const { items } = (await response.json()) as { items: { event_type: string }[] };
  return items.map(({ event_type }) => event_type.replace("worktree.", ""));
}

const notesIn = (home: string) => (existsSync(join(home, "git")) ? readdirSync(join(home, "git")) : []);

describe.skipIf(git === null)("create, remove, reconcile", () => {
  test("a new branch, from HEAD or a base; a branch that is there; answered when git is done", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const one = real(repo, "rev-parse", "HEAD");
    writeFileSync(join(repo, "file.txt"), "two\n");
    real(repo, "commit", "--quiet", "--all", "--message=two");
    const two = real(repo, "rev-parse", "HEAD");
    real(repo, "branch", "there", one);
    const before = process.umask(0o022);
    const it = await world([repo], home, {
      // Whatever a caller's shell had: git must not be led elsewhere.
      GIT_DIR: "/nowhere",
      GIT_WORK_TREE: "/nowhere",
      GIT_INDEX_FILE: "/nowhere",
      GIT_CONFIG_COUNT: "broken",
    }).finally(() => process.umask(before));
    for (const [name, branch, base, commit] of [
      ["a", "new", undefined, two],
      ["ü 名 b", "feat/ü", one, one],
      ["c", "there", undefined, one],
      ["deep/er/d", "from-branch", "there", one],
    ] as const) {
      const path = join(repo, "..", "trees", name);
      const { subject, events } = receiptOf(
        await it.give("worktree.create", { project_id: it.project_id, path, branch, ...(base && { base }) }),
      );
      expect(events).toHaveLength(1);
      expect(await it.show(subject.id)).toMatchObject({
        status: "present",
        failure: null,
        branch,
        commit_sha: commit,
        host: hostname(),
      });
      expect(real(path, "rev-parse", "HEAD")).toBe(commit);
      expect(real(path, "symbolic-ref", "HEAD")).toBe(`refs/heads/${branch}`);
      expect((statSync(join(path, "file.txt")).mode & 0o777).toString(8)).toBe("644");
      expect(await it.events(subject.id)).toEqual(["creation_started", "created"]);
    }
    expect(notesIn(home)).toEqual([]);
  });

  test("what git cannot do is told in its words, and the place is free again", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const it = await world([repo, "", join(repo, "nothing")], home);
    const path = join(repo, "..", "t");
    const failure = async (payload: object) => {
      const { subject } = receiptOf(
        await it.give("worktree.create", { project_id: it.project_id, path, branch: "b", ...payload }),
      );
      const found = await it.show(subject.id);
      expect(found.status).toBe("failed");
      expect(await it.events(subject.id)).toEqual(["creation_started", "creation_failed"]);
      return found.failure;
    };
    expect(await failure({ branch: "main" })).toContain("already checked out");
    expect(await failure({ base: "no-such-commit" })).toContain("no-such-commit");
    expect(await failure({ project_id: it.projects[2] })).toContain("cannot change to");
    expect(existsSync(path)).toBe(false);
    for (const make of [() => mkdirSync(path), () => writeFileSync(path, "mine")]) {
      make();
      expect(await failure({})).toContain("already");
      expect(existsSync(path)).toBe(true);
      rmSync(path, { recursive: true });
    }
    expect(await it.give("worktree.create", { project_id: it.projects[1], path, branch: "b" })).toMatchObject(
      { kind: "problem", status: 409, problem: { reason: "worktree.no_repository" } },
    );
    for (const branch of ["--force", "-b", "a..b"])
      expect(await it.give("worktree.create", { project_id: it.project_id, path, branch })).toMatchObject({
        kind: "problem",
        problem: { code: "invalid_schema" },
      });
    const { subject } = receiptOf(
      await it.give("worktree.create", { project_id: it.project_id, path, branch: "b" }),
    );
    expect(await it.show(subject.id)).toMatchObject({ status: "present", branch: "b" });
    expect(notesIn(home)).toEqual([]);
  });

  test("a base that is not where a branch already is is no base", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const one = real(repo, "rev-parse", "HEAD");
    real(repo, "branch", "b");
    writeFileSync(join(repo, "file.txt"), "two\n");
    real(repo, "commit", "--quiet", "--all", "--message=two");
    const two = real(repo, "rev-parse", "HEAD");
    const it = await world([repo], home);
    const path = join(repo, "..", "t");
    const create = async (base: string) => {
      const payload = { project_id: it.project_id, path, branch: "b", base };
      return it.show(receiptOf(await it.give("worktree.create", payload)).subject.id);
    };
    const unlike = await create("main");
    expect(unlike.status).toBe("failed");
    expect(unlike.failure).toContain(`the branch b exists at ${one}, and the base main is ${two}`);
    expect(await create("nothing")).toMatchObject({
      status: "failed",
      failure: expect.stringContaining("the base nothing is no commit"),
    });
    expect(existsSync(path)).toBe(false);
    expect(await create("main~1")).toMatchObject({ status: "present", branch: "b", commit_sha: one });
  });

  test("another's worktree, made at the path a moment before, is not the one that was asked for", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    const path = join(repo, "..", "t");
    wait.shut("before");
    const given = it.give("worktree.create", { project_id: it.project_id, path, branch: "b" });
    await waitFor(() => wait.said().length === 1, { what: "git" });
    real(repo, "worktree", "add", "--quiet", path, "-b", "another");
    wait.open("before");
    const { status, failure } = await it.show(receiptOf(await given).subject.id);
    expect([status, failure]).toEqual(["failed", expect.stringContaining("already exists")]);
    expect(existsSync(join(path, "file.txt"))).toBe(true);
  });

  test("a machine stays the one whose worktrees it has when its name is another; of any other's it says so", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const it = await world([repo], home);
    const { project_id } = it;
    const [path, other] = [join(repo, "..", "t"), join(repo, "..", "u")];
    const [mine, foreign] = [
      receiptOf(await it.give("worktree.create", { project_id, path, branch: "b" })).subject.id,
      receiptOf(await it.give("worktree.create", { project_id, path: other, branch: "c" })).subject.id,
    ];
    await it.daemon.kill();
    // As they are when the machine was called differently at the time.
    const db = new Database(join(home, "kernel.db"));
    const rename = db.query(
      "UPDATE worktrees SET host = ?2, place = ?2 || ':' || path WHERE worktree_id = ?1",
    );
    rename.run(mine, "before");
    rename.run(foreign, "elsewhere");
    db.close();
    await it.daemon.restart();
    expect(await it.give("worktree.register", { project_id, path })).toMatchObject({
      problem: { reason: "worktree.path_taken", details: { worktree_id: mine } },
    });
    const own = receiptOf(await it.give("worktree.register", { project_id, path: repo })).subject.id;
    expect(await it.show(own)).toMatchObject({ host: "before" });
    receiptOf(await it.give("worktree.reconcile", { worktree_id: mine }));
    expect((await it.events(mine)).slice(-2)).toEqual(["reconciliation_started", "reconciled"]);
    receiptOf(await it.give("worktree.remove", { worktree_id: mine }));
    expect([(await it.show(mine)).status, existsSync(path)]).toEqual(["removed", false]);
    expect(await it.give("worktree.reconcile", { worktree_id: foreign })).toMatchObject({
      problem: { reason: "worktree.other_host", details: { host: "elsewhere", here: "before" } },
    });
    receiptOf(await it.give("worktree.remove", { worktree_id: foreign }));
    expect(await it.show(foreign)).toMatchObject({
      status: "present",
      failure: "the worktree is on the machine elsewhere, this is before",
    });
    expect(existsSync(other)).toBe(true);
  });

  test("a worktree whose hook fails is there all the same", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const hook = join(repo, ".git", "hooks", "post-checkout");
    mkdirSync(dirname(hook), { recursive: true });
    writeFileSync(hook, "#!/bin/sh\necho no >&2\nexit 3\n");
    chmodSync(hook, 0o755);
    const it = await world([repo], home);
    const path = join(repo, "..", "t");
    const { subject } = receiptOf(
      await it.give("worktree.create", { project_id: it.project_id, path, branch: "b" }),
    );
    expect(await it.show(subject.id)).toMatchObject({ status: "present", branch: "b" });
  });

  test("a daemon that is begun in a session acts for nobody: what it runs has nothing of that session's", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const hook = join(repo, ".git", "hooks", "post-checkout");
    mkdirSync(dirname(hook), { recursive: true });
    writeFileSync(hook, `#!/bin/sh\nenv > "${home}/hooked"\n`);
    chmodSync(hook, 0o755);
    const named = Object.fromEntries(sessionVariables.map((name) => [name, "another's"]));
    const it = await world([repo], home, { ...named, MP_KEPT: "kept" });
    const create = { project_id: it.project_id, path: `${repo}-t`, branch: "b" };
    const { subject } = receiptOf(await it.give("worktree.create", create));
    expect(await it.show(subject.id)).toMatchObject({ status: "present" });
    const env = readFileSync(join(home, "hooked"), "utf8");
    // What is the daemon's own is there, so it is its environment that was looked at.
    expect(env).toContain("MP_KEPT=kept\n");
    expect(env).not.toContain("another's");
  });

  test("remove: git's own with its files, unless they are changed; a registered one keeps them", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const it = await world([repo], home);
    const path = join(repo, "..", "t");
    const create = { project_id: it.project_id, path, branch: "b" };
    const worktree_id = receiptOf(await it.give("worktree.create", create)).subject.id;
    writeFileSync(join(path, "new.txt"), "not in any commit");
    receiptOf(await it.give("worktree.remove", { worktree_id }));
    const kept = await it.show(worktree_id);
    expect(kept.status).toBe("present");
    expect(kept.failure).toContain("use --force");
    expect(existsSync(join(path, "new.txt"))).toBe(true);
    receiptOf(await it.give("worktree.remove", { worktree_id, force: true }));
    expect(await it.show(worktree_id)).toMatchObject({ status: "removed", failure: null });
    expect(existsSync(path)).toBe(false);
    expect(real(repo, "worktree", "list").split("\n")).toHaveLength(1);
    expect(await it.events(worktree_id)).toEqual([
      "creation_started",
      "created",
      "removal_started",
      "removal_failed",
      "removal_started",
      "removed",
    ]);

    // One that somebody took away by hand, with or without git.
    for (const away of [
      () => rmSync(path, { recursive: true }),
      () => real(repo, "worktree", "remove", path),
    ]) {
      const again = receiptOf(await it.give("worktree.create", create)).subject.id;
      away();
      receiptOf(await it.give("worktree.remove", { worktree_id: again }));
      expect(await it.show(again)).toMatchObject({ status: "removed" });
      expect(real(repo, "worktree", "list").split("\n")).toHaveLength(1);
    }

    real(repo, "worktree", "add", "--quiet", path, "b");
    const registered = receiptOf(await it.give("worktree.register", { ...create })).subject.id;
    receiptOf(await it.give("worktree.remove", { worktree_id: registered }));
    expect(await it.show(registered)).toMatchObject({ status: "removed" });
    expect(existsSync(join(path, "file.txt"))).toBe(true);
    expect(notesIn(home)).toEqual([]);
  });

  test("reconcile: what git lists, and for a plain folder what the disk says", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const it = await world([repo], home);
    const { project_id } = it;
    const path = join(repo, "..", "t");
    const worktree_id = receiptOf(await it.give("worktree.create", { project_id, path, branch: "b" })).subject
      .id;
    const look = async (id: string) => {
      receiptOf(await it.give("worktree.reconcile", { worktree_id: id }));
      const { status, branch, commit_sha } = await it.show(id);
      return { status, branch, commit_sha };
    };
    writeFileSync(join(path, "file.txt"), "three\n");
    real(path, "commit", "--quiet", "--all", "--message=three");
    const head = real(path, "rev-parse", "HEAD");
    expect(await look(worktree_id)).toEqual({ status: "present", branch: "b", commit_sha: head });
    real(path, "checkout", "--quiet", "--detach");
    expect(await look(worktree_id)).toEqual({ status: "present", branch: null, commit_sha: head });
    real(repo, "worktree", "move", path, `${path}-moved`);
    expect(await look(worktree_id)).toMatchObject({ status: "missing" });
    mkdirSync(path);
    expect(await look(worktree_id)).toMatchObject({ status: "missing" });
    rmSync(path, { recursive: true });
    real(repo, "worktree", "move", `${path}-moved`, path);
    expect(await look(worktree_id)).toMatchObject({ status: "present", commit_sha: head });

    const folder = join(repo, "..", "plain");
    const plain = receiptOf(await it.give("worktree.register", { project_id, path: folder })).subject.id;
    expect(await look(plain)).toEqual({ status: "missing", branch: null, commit_sha: null });
    mkdirSync(folder);
    expect(await look(plain)).toEqual({ status: "present", branch: null, commit_sha: null });
    const own = receiptOf(await it.give("worktree.register", { project_id, path: repo })).subject.id;
    expect(await look(own)).toMatchObject({ status: "present", branch: "main" });
    // Of another repository, as far as this one knows: what it was registered with is all that there is to know.
    const clone = repository(home, "clone");
    const named = { project_id, path: clone, branch: "feature" };
    const cloned = receiptOf(await it.give("worktree.register", named)).subject.id;
    expect(await look(cloned)).toEqual({ status: "present", branch: "feature", commit_sha: null });
  });

  test("without git on the machine that is what is told, and everything else works", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const nothing = join(home, "nothing");
    mkdirSync(nothing);
    const it = await world([repo], home, { PATH: nothing });
    const { project_id, workspace_id } = it;
    const path = join(repo, "..", "t");
    const { subject } = receiptOf(await it.give("worktree.create", { project_id, path, branch: "b" }));
    const { status, failure } = await it.show(subject.id);
    expect([status, failure]).toEqual(["failed", expect.stringContaining("git is not installed")]);
    const worktree_id = receiptOf(await it.give("worktree.register", { project_id, path: repo })).subject.id;
    receiptOf(await it.give("worktree.reconcile", { worktree_id }));
    expect(await it.show(worktree_id)).toMatchObject({ status: "present" });
    const session_id = receiptOf(await it.give("session.spawn", { workspace_id, agent: { name: "a" } }))
      .subject.id;
    receiptOf(await it.give("worktree.attach", { worktree_id, session_id, mode: "write" }));
    receiptOf(await it.give("worktree.lock_writer", { worktree_id, session_id }));
    receiptOf(await it.give("worktree.detach", { worktree_id, session_id }));
    receiptOf(await it.give("worktree.remove", { worktree_id }));
  });
});

describe.skipIf(git === null)("one at a time", () => {
  test("in one repository, whatever comes at once; the answers wait for their own", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    const fates = await Promise.all(
      Array.from({ length: 4 }, (_, n) =>
        it.give("worktree.create", {
          project_id: it.project_id,
          path: join(repo, "..", `t${n}`),
          branch: `b${n}`,
        }),
      ),
    );
    expect(wait.said()).toEqual(Array.from({ length: 4 }, () => ["begin", "end"]).flat());
    for (const [n, fate] of fates.entries()) {
      expect(await it.show(receiptOf(fate).subject.id)).toMatchObject({ status: "present", branch: `b${n}` });
    }
  });

  test("in one repository that projects know by many paths, two of its worktrees among them", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const other = repository(home, "other");
    const wait = gate(home);
    const linked = [1, 2].map((n) => `${repo}-linked-${n}`);
    for (const [n, path] of linked.entries())
      real(repo, "worktree", "add", "--quiet", path, "-b", `linked-${n}`);
    const it = await world([other, ...linked, repo], home, { PATH: wait.PATH });
    const { workspace_id } = it;
    const common = { workspace_id, name: "common", repo_path: repo, git_common_dir: join(repo, ".git") };
    const bare = { workspace_id, name: "bare", git_common_dir: join(repo, ".git") };
    for (const project of [common, bare])
      it.projects.push(receiptOf(await it.give("project.create", project)).subject.id);
    const [elsewhere, ...ways] = it.projects;
    const create = async (project_id: string, name: string) => {
      const { subject } = receiptOf(
        await it.give("worktree.create", { project_id, path: `${repo}-${name}`, branch: name }),
      );
      expect(await it.show(subject.id)).toMatchObject({ status: "present", branch: name });
    };
    const { subject: looked } = receiptOf(
      await it.give("worktree.register", { project_id: elsewhere, path: other }),
    );
    const reconcile = async () => receiptOf(await it.give("worktree.reconcile", { worktree_id: looked.id }));
    // From here on the daemon knows which repository each of the paths is in.
    for (const [n, project_id] of ways.entries()) await create(project_id, `first-${n}`);
    await reconcile();
    const before = wait.said().length;
    wait.shut("before");
    const created = ways.map((project_id, n) => create(project_id, `second-${n}`));
    await waitFor(() => wait.said().length > before, { what: "git in one of the worktrees" });
    await waitFor(
      async () =>
        (await ask<{ items: unknown[] }>(it.daemon.socket, "worktree.list", "?status=creating")).items
          .length === ways.length,
      { what: "all that is to be created" },
    );
    // What another repository is asked meanwhile is answered, time and again: long enough for any that did not wait.
    for (let n = 0; n < 5; n += 1) await reconcile();
    expect(wait.said().slice(before)).toEqual(["begin"]);
    wait.open("before");
    await Promise.all(created);
    expect(wait.said().slice(before)).toEqual(ways.flatMap(() => ["begin", "end"]));
  });

  test("in two repositories at the same time, also while one of them waits; nothing else does", async () => {
    const home = tempHome();
    const repos = [repository(home, "one"), repository(home, "two")];
    const wait = gate(home);
    const it = await world(repos, home, { PATH: wait.PATH });
    wait.shut("before");
    let answered = 0;
    const given = it.projects.map((project_id, n) =>
      it
        .give("worktree.create", { project_id, path: `${repos[n]}-t`, branch: "b" })
        .finally(() => (answered += 1)),
    );
    await waitFor(() => wait.said().length === 2, { what: "git in both repositories" });
    receiptOf(await it.give("workspace.create", { name: "meanwhile" }));
    expect(answered).toBe(0);
    const worktree_id = await it.only();
    expect(await it.show(worktree_id)).toMatchObject({ status: "creating" });
    expect(await it.give("worktree.remove", { worktree_id })).toMatchObject({
      problem: { reason: "worktree.not_present", details: { status: "creating" } },
    });
    wait.open("before");
    for (const fate of await Promise.all(given))
      expect(await it.show(receiptOf(fate).subject.id)).toMatchObject({ status: "present" });
    expect(wait.said()).toEqual(["begin", "begin", "end", "end"]);
  });

  test("a batch is answered when all of it is done, and a retry of a command waits as the first did", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    wait.shut("before");
    const create = { project_id: it.project_id, path: join(repo, "..", "t"), branch: "b" };
    const first = it.give("worktree.create", create, "same");
    const worktree_id = await it.only();
    let retried = false;
    const again = it.give("worktree.create", create, "same").finally(() => {
      retried = true;
    });
    await waitFor(() => wait.said().length === 1, { what: "git" });
    receiptOf(await it.give("workspace.create", { name: "meanwhile" }));
    expect(retried).toBe(false);
    wait.open("before");
    expect(receiptOf(await first).subject.id).toBe(worktree_id);
    expect(receiptOf(await again)).toMatchObject({ replayed: true, subject: { id: worktree_id } });
    const response = await fetch("http://mp/v1/commands/batch", {
      unix: it.daemon.socket,
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        atomic: true,
        commands: [1, 2].map((n) => ({
          type: "worktree.create",
          payload: { ...create, path: `${create.path}${n}`, branch: `b${n}` },
          idempotency_key: `batch-${n}`,
        })),
      }),
    });
    expect(response.status).toBe(200);
    const { items } = await ask<{ items: Shown[] }>(it.daemon.socket, "worktree.list");
    expect(items.map((each) => each.status)).toEqual(["present", "present", "present"]);
  });
});

describe.skipIf(git === null)("a daemon that is killed between intent and outcome", () => {
  /** A daemon killed while it creates, at the moment that the gate says. */
  async function killedWhileCreating(when: "before" | "after") {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    const path = join(repo, "..", "t");
    wait.shut(when);
    const lost = it.give("worktree.create", { project_id: it.project_id, path, branch: "b" });
    const worktree_id = await it.only();
    await waitFor(() => wait.said().length === (when === "before" ? 1 : 2), { what: `git to wait ${when}` });
    expect(notesIn(home)).toContain(worktree_id);
    await it.daemon.kill("SIGKILL");
    expect(await lost).toEqual({ kind: "lost" });
    return { ...it, home, repo, wait, path, worktree_id };
  }
  const settled = (it: Awaited<ReturnType<typeof killedWhileCreating>>, not = "creating") =>
    waitFor(
      async () => {
        const found = await it.show(it.worktree_id);
        return found.status !== not && found;
      },
      { what: "the outcome" },
    );

  test("git had finished: it is there", async () => {
    const it = await killedWhileCreating("after");
    it.wait.kill();
    await it.daemon.restart();
    const commit = real(it.repo, "rev-parse", "main");
    expect(await settled(it)).toMatchObject({ status: "present", branch: "b", commit_sha: commit });
    expect(await it.events(it.worktree_id)).toEqual(["creation_started", "created"]);
    await waitFor(() => notesIn(it.home).length === 0, { what: "the note to go" });
  });

  test("git had not begun: it has failed, and the place is free", async () => {
    const it = await killedWhileCreating("before");
    it.wait.kill();
    it.wait.open("before");
    await it.daemon.restart();
    expect(await settled(it)).toMatchObject({
      status: "failed",
      failure: expect.stringContaining("interrupted"),
    });
    expect(existsSync(it.path)).toBe(false);
    const { project_id, path } = it;
    const { subject } = receiptOf(await it.give("worktree.create", { project_id, path, branch: "b" }));
    expect(await it.show(subject.id)).toMatchObject({ status: "present" });
  });

  test("git goes on: it is waited for, and so is whatever else the repository is to do", async () => {
    const it = await killedWhileCreating("before");
    await it.daemon.restart();
    const { project_id, path } = it;
    const next = it.give("worktree.create", { project_id, path: `${path}2`, branch: "b2" });
    await waitFor(
      async () => (await ask<{ items: Shown[] }>(it.daemon.socket, "worktree.list")).items.length === 2,
      { what: "the second intent" },
    );
    receiptOf(await it.give("workspace.create", { name: "meanwhile" }));
    expect(await it.show(it.worktree_id)).toMatchObject({ status: "creating" });
    expect(it.wait.said()).toEqual(["begin"]);
    it.wait.open("before");
    expect(await settled(it)).toMatchObject({ status: "present", branch: "b" });
    expect(await it.show(receiptOf(await next).subject.id)).toMatchObject({
      status: "present",
      branch: "b2",
    });
    expect(it.wait.said()).toEqual(["begin", "end", "begin", "end"]);
  });

  /** A daemon that is killed together with its git, which has begun to write files. */
  async function killedInTheMiddle() {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    // A filter of the repository stops git in the middle of its checkout.
    const reached = join(home, "reached");
    const script = join(home, "filter");
    writeFileSync(script, `#!/bin/sh\n: > '${reached}'\nwhile [ -e '${script}' ]; do sleep 0.02; done\n`);
    chmodSync(script, 0o755);
    real(repo, "config", "filter.stop.smudge", `'${script}'`);
    mkdirSync(join(repo, ".git", "info"), { recursive: true });
    writeFileSync(join(repo, ".git", "info", "attributes"), "*.txt filter=stop\n");
    const path = join(repo, "..", "t");
    const lost = it.give("worktree.create", { project_id: it.project_id, path, branch: "b" });
    const worktree_id = await it.only();
    await waitFor(() => existsSync(reached), { what: "git in the middle of its checkout" });
    await it.daemon.kill("SIGKILL");
    await lost;
    wait.kill();
    expect(real(repo, "worktree", "list", "--porcelain")).toContain("locked initializing");
    expect(existsSync(join(path, ".git"))).toBe(true);
    rmSync(script);
    return { ...it, home, repo, wait, path, worktree_id };
  }

  test("git was killed in the middle: what it left is taken away", async () => {
    const it = await killedInTheMiddle();
    const { repo, path } = it;
    await it.daemon.restart();
    const found = await settled(it);
    expect(found).toMatchObject({ status: "failed", failure: expect.stringContaining("interrupted") });
    expect(existsSync(path)).toBe(false);
    expect(real(repo, "worktree", "list").split("\n")).toHaveLength(1);
    expect(existsSync(join(repo, ".git", "worktrees", "t"))).toBe(false);
    expect(notesIn(it.home)).toEqual([]);
  });

  test("git was killed in the middle: what somebody has put there since then stays, and all that is with it", async () => {
    for (const name of ["thesis.txt", "file.txt"]) {
      const it = await killedInTheMiddle();
      writeFileSync(join(it.path, name), "a day's work");
      await it.daemon.restart();
      expect(await settled(it)).toMatchObject({
        status: "failed",
        failure: expect.stringContaining("was left as it is"),
      });
      expect(readFileSync(join(it.path, name), "utf8")).toBe("a day's work");
      expect(real(it.repo, "worktree", "list").split("\n")).toHaveLength(2);
    }
  });

  test("a worktree that somebody has made at the path since then stays, of whatever repository", async () => {
    for (const of of ["another", "the same"]) {
      const it = await killedWhileCreating("before");
      it.wait.kill();
      it.wait.open("before");
      const owner = of === "another" ? repository(it.home, "other") : it.repo;
      real(owner, "worktree", "add", "--quiet", it.path, "-b", "mine");
      writeFileSync(join(it.path, "thesis.txt"), "a day's work");
      await it.daemon.restart();
      expect(await settled(it)).toMatchObject({
        status: "failed",
        failure: expect.stringContaining("was left as it is"),
      });
      expect(existsSync(join(it.path, "thesis.txt"))).toBe(true);
      expect(real(owner, "worktree", "list").split("\n")).toHaveLength(2);
    }
  });

  test("an empty folder, all that git had come to, is taken away", async () => {
    const it = await killedWhileCreating("before");
    it.wait.kill();
    it.wait.open("before");
    mkdirSync(it.path);
    await it.daemon.restart();
    expect(await settled(it)).toMatchObject({
      status: "failed",
      failure: expect.not.stringContaining("left"),
    });
    expect(existsSync(it.path)).toBe(false);
  });

  test("what is at the path and is not ours stays", async () => {
    const it = await killedWhileCreating("before");
    it.wait.kill();
    it.wait.open("before");
    // As if the daemon had been killed before it looked, and somebody has put something there.
    rmSync(join(it.home, "git", it.worktree_id));
    mkdirSync(it.path);
    writeFileSync(join(it.path, "mine"), "");
    await it.daemon.restart();
    expect(await settled(it)).toMatchObject({ status: "failed" });
    expect(existsSync(join(it.path, "mine"))).toBe(true);
  });

  test("what git cannot be asked about stays, for it may be whole", async () => {
    const it = await killedWhileCreating("after");
    it.wait.kill();
    const nothing = join(it.home, "nothing");
    mkdirSync(nothing);
    await startDaemonProcess(it.home, { HOME: it.home, PATH: nothing });
    expect(await settled(it)).toMatchObject({
      status: "failed",
      failure: expect.stringContaining("interrupted"),
    });
    expect(existsSync(join(it.path, "file.txt"))).toBe(true);
  });

  test("somebody else's folder stays, even if it came when git was about to begin", async () => {
    const it = await killedWhileCreating("before");
    it.wait.kill();
    mkdirSync(it.path);
    writeFileSync(join(it.path, "mine"), "");
    await it.daemon.restart();
    expect(await settled(it)).toMatchObject({ status: "failed" });
    expect(existsSync(join(it.path, "mine"))).toBe(true);
  });

  /** A daemon killed while it removes, at the moment that the gate says. */
  async function killedWhileRemoving(when: "before" | "after") {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    const path = join(repo, "..", "t");
    const { subject } = receiptOf(
      await it.give("worktree.create", { project_id: it.project_id, path, branch: "b" }),
    );
    const worktree_id = subject.id;
    wait.shut(when);
    const lost = it.give("worktree.remove", { worktree_id });
    await waitFor(() => wait.said().length === (when === "before" ? 3 : 4), { what: `git to wait ${when}` });
    await it.daemon.kill("SIGKILL");
    expect(await lost).toEqual({ kind: "lost" });
    wait.kill();
    wait.open(when);
    return { ...it, home, repo, wait, path, worktree_id };
  }

  test("a removal that git had finished is one", async () => {
    const it = await killedWhileRemoving("after");
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({ status: "removed" });
    expect(await it.events(it.worktree_id)).toEqual([
      "creation_started",
      "created",
      "removal_started",
      "removed",
    ]);
  });

  test("a folder that somebody has made where git had finished a removal stays", async () => {
    const it = await killedWhileRemoving("after");
    mkdirSync(it.path);
    writeFileSync(join(it.path, "thesis.txt"), "a day's work");
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({ status: "removed" });
    expect(existsSync(join(it.path, "thesis.txt"))).toBe(true);
  });

  test("a removal that git had begun stops at what somebody has put there since then", async () => {
    const it = await killedWhileRemoving("before");
    rmSync(join(it.path, ".git"));
    rmSync(join(it.path, "file.txt"));
    writeFileSync(join(it.path, "thesis.txt"), "a day's work");
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({
      status: "present",
      failure: expect.stringContaining("take it away yourself"),
    });
    expect(existsSync(join(it.path, "thesis.txt"))).toBe(true);
    rmSync(it.path, { recursive: true });
    receiptOf(await it.give("worktree.remove", { worktree_id: it.worktree_id }));
    expect(await it.show(it.worktree_id)).toMatchObject({ status: "removed" });
    expect(real(it.repo, "worktree", "list").split("\n")).toHaveLength(1);
  });

  test("a look at git that was cut off, or had to wait, gets its outcome at the next start", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    const path = join(repo, "..", "t");
    const create = { project_id: it.project_id, path, branch: "b" };
    const worktree_id = receiptOf(await it.give("worktree.create", create)).subject.id;
    const counts = async () => {
      const events = await it.events(worktree_id);
      return ["reconciliation_started", "reconciled"].map(
        (type) => events.filter((each) => each === type).length,
      );
    };
    for (const [n, signal] of (["SIGKILL", "SIGTERM"] as const).entries()) {
      wait.shut("list");
      const given = [1, 2].map(() => it.give("worktree.reconcile", { worktree_id }));
      await waitFor(async () => (await counts())[0] === 2 * n + 2, { what: "both intents" });
      real(path, "commit", "--quiet", "--allow-empty", `--message=${signal}`);
      await it.daemon.kill(signal);
      await Promise.all(given);
      wait.open("list");
      await it.daemon.restart();
      await waitFor(async () => (await counts())[1] === 2 * n + 2, { what: "both outcomes" });
      const commit_sha = real(path, "rev-parse", "HEAD");
      expect(await it.show(worktree_id)).toMatchObject({ status: "present", branch: "b", commit_sha });
    }
    // What has its outcome is not looked at again.
    await it.daemon.restart();
    const last = receiptOf(await it.give("worktree.reconcile", { worktree_id }));
    expect(await counts()).toEqual([5, 5]);
    expect(last.events).toHaveLength(1);
  });

  test("a removal that git had not begun has failed, and may be tried again", async () => {
    const it = await killedWhileRemoving("before");
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({
      status: "present",
      failure: expect.stringContaining("interrupted"),
    });
    expect(existsSync(join(it.path, "file.txt"))).toBe(true);
    receiptOf(await it.give("worktree.remove", { worktree_id: it.worktree_id }));
    expect(await it.show(it.worktree_id)).toMatchObject({ status: "removed" });
  });

  test("a removal that git had begun is finished", async () => {
    const it = await killedWhileRemoving("before");
    rmSync(join(it.path, ".git"));
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({ status: "removed" });
    expect(existsSync(it.path)).toBe(false);
    expect(real(it.repo, "worktree", "list").split("\n")).toHaveLength(1);
  });

  test("a folder that lost its link to git before a removal stays", async () => {
    const it = await killedWhileRemoving("before");
    rmSync(join(it.path, ".git"));
    rmSync(join(it.home, "git", it.worktree_id));
    await it.daemon.restart();
    expect(await settled(it, "removing")).toMatchObject({ status: "present" });
    expect(existsSync(join(it.path, "file.txt"))).toBe(true);
  });
});

describe.skipIf(git === null)("an end of git that is not its own", () => {
  test("a daemon that stops answers, ends git, and settles at its next start", async () => {
    const home = tempHome();
    const repo = repository(home, "repo");
    const wait = gate(home);
    const it = await world([repo], home, { PATH: wait.PATH });
    wait.shut("before");
    const path = join(repo, "..", "t");
    const given = it.give("worktree.create", { project_id: it.project_id, path, branch: "b" });
    const worktree_id = await it.only();
    await waitFor(() => wait.said().length === 1, { what: "git" });
    expect(await it.daemon.kill("SIGTERM")).toBe(0);
    expect(receiptOf(await given).subject.id).toBe(worktree_id);
    expect(wait.said()).toEqual(["begin"]);
    wait.open("before");
    await it.daemon.restart();
    await waitFor(async () => (await it.show(worktree_id)).status === "failed", { what: "the outcome" });
    expect(existsSync(path)).toBe(false);
  });

  test("git that takes too long is killed, with all that it has started", async () => {
    const home = tempHome();
    const script = "!echo begun >&2; sleep 600 & echo $!; wait";
    const started = performance.now();
    const ran = await runGit(["-c", `alias.linger=${script}`, "linger"], { limit_ms: 300 });
    expect(performance.now() - started).toBeLessThan(4_000);
    expect(ran).toMatchObject({ code: null, killed: true });
    expect(ran.said).toMatch(/^git was killed: it had not ended after 300 ms\nbegun/);
    await waitFor(() => !existsSync(`/proc/${ran.out.trim()}/cwd`), {
      what: "the end of what git had started",
    });
    expect(existsSync(home)).toBe(true);
  });

  test("what it says is cut, without controls", async () => {
    const long = `!printf '\\033[31mred\\000\\n' >&2; printf 'x%.0s' $(seq 1 9000) >&2; exit 3`;
    const ran = await runGit(["-c", `alias.talk=${long}`, "talk"]);
    expect(ran).toMatchObject({ code: 3, killed: false });
    expect(ran.said.length).toBe(4_096);
    expect(ran.said).toMatch(/^\[31mred\nx+$/);
  });

  test("what it says has no credentials in it", async () => {
    const words =
      "fatal: unable to access 'https://ada:s3cret@example.org/x.git/': ssh://git@example.org/y a@b.c";
    const ran = await runGit(["-c", `alias.talk=!echo "${words}" >&2; exit 3`, "talk"]);
    expect(ran.said).toBe("fatal: unable to access 'https://example.org/x.git/': ssh://example.org/y a@b.c");
  });

  test("a run that a killed daemon left is waited for, and nobody who only speaks of it", async () => {
    const id = crypto.randomUUID();
    const mark = markOf(id)[1];
    const spawn = (detached: boolean, ...words: string[]) =>
      Bun.spawn(["/bin/sh", "-c", "echo here; read line", ...words], {
        stdin: "pipe",
        stdout: "pipe",
        detached,
      });
    const ours = ["git", ...markOf(id)];
    const left = spawn(true, ...ours);
    const strangers = [
      spawn(true, "sh", mark),
      spawn(true, "git", "commit", "-m", mark),
      spawn(true, "notgit", ...markOf(id)),
      // Not begun as a daemon begins git.
      spawn(false, ...ours),
    ];
    // They have their arguments once they say so.
    for (const each of [left, ...strangers]) await each.stdout.getReader().read();
    let over = false;
    const ended = orphansEnded(id, AbortSignal.timeout(10_000)).then(() => {
      over = true;
    });
    try {
      await orphansEnded(crypto.randomUUID(), AbortSignal.timeout(10_000));
      expect(over).toBe(false);
      left.stdin.end();
      await left.exited;
      await ended;
      const late = spawn(true, ...ours);
      strangers.push(late);
      await late.stdout.getReader().read();
      // After its time it is killed, with all that it has begun.
      await orphansEnded(id, AbortSignal.timeout(10_000), 300);
      expect(await late.exited).not.toBe(0);
      expect(strangers.slice(0, 4).map((each) => each.exitCode)).toEqual([null, null, null, null]);
    } finally {
      for (const each of [left, ...strangers]) each.kill("SIGKILL");
    }
  });
});
