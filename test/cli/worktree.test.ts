/** Worktrees from the command line: real git, outcomes that are said, the check for hooks. */
import { beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run, tempHome } from "../support/binary.ts";
import { atTerminal, cli, lines } from "./cli.ts";

const home = tempHome();
const disk = realpathSync(tempHome());
const repo = join(disk, "repo");
const { out, mp, json, refused } = cli(home);
const plainly = async (...args: string[]) =>
  Bun.stripANSI((await atTerminal(args, { home, columns: 200 })).shown);

function git(...args: string[]): string {
  const done = Bun.spawnSync(["git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@b.c", ...args]);
  if (!done.success) throw new Error(done.stderr.toString());
  return done.stdout.toString().trim();
}

const at = (name: string) => join(disk, name);
const create = (name: string, branch = name) =>
  out("worktree", "create", at(name), branch, "--project", "core");
const idOf = async (name: string) =>
  (await json<{ worktree_id: string }>("worktree", "get", at(name))).worktree_id;

let session: string;

async function spawn(): Promise<string> {
  return (await out("session", "spawn", "--workspace", "demo", "--agent", "coder")).split("\t")[0]!;
}

/** A worktree whose writer lock the session has. */
async function locked(name: string): Promise<string> {
  await create(name);
  await out("worktree", "attach", at(name), "write", "--session", session);
  return (await out("worktree", "lock-writer", at(name), "--session", session)).split("\t")[1]!;
}

beforeAll(async () => {
  mkdirSync(repo);
  git("init", "-q", "-b", "main");
  git("commit", "-q", "--allow-empty", "-m", "first");
  await out("workspace", "create", "demo");
  await out("project", "create", "core", "--workspace", "demo", "--repo-path", repo);
  session = await spawn();
});

describe("create, remove, reconcile end with what git did", () => {
  test("created: the folder is there; a pipe gets id, status, branch, commit and path", async () => {
    const told = (await create("one", "fix/one")).split("\t");
    expect(told).toEqual([await idOf("one"), "present", "fix/one", git("rev-parse", "HEAD"), at("one")]);
    expect(existsSync(join(at("one"), ".git"))).toBe(true);
    expect(await plainly("worktree", "reconcile", at("one"))).toMatch(
      /^present: worktree \S+\/one \([0-9a-f-]{36}\): fix\/one at [0-9a-f]{12}\n$/,
    );
  });

  test("failed: exit code 1 with the words of git, and the place is free again", async () => {
    git("branch", "taken");
    git("worktree", "add", "-q", at("elsewhere"), "taken");
    const failed = await mp("worktree", "create", at("two"), "taken", "--project", "core");
    expect(failed).toMatchObject({ code: 1, stdout: "" });
    expect(failed.stderr).toMatch(
      /^error: git could not create the worktree \S+\/two\n[\s\S]*taken[\s\S]*hint: it is failed now/,
    );
    const asJson = await mp("worktree", "create", at("two"), "taken", "--project", "core", "--json");
    expect(asJson.code).toBe(1);
    expect(JSON.parse(asJson.stdout)).toMatchObject({
      type: "worktree.create",
      worktree: { status: "failed", failure: expect.stringContaining("taken") },
    });
    expect(JSON.parse(asJson.stderr)).toMatchObject({ status: "failed" });
    expect((await create("two", "mended")).split("\t")[1]).toBe("present");
  });

  test("removed; what has changes only by --force", async () => {
    await create("three");
    writeFileSync(join(at("three"), "new.txt"), "x");
    const refusedByGit = await mp("worktree", "remove", at("three"));
    expect(refusedByGit).toMatchObject({ code: 1, stdout: "" });
    expect(refusedByGit.stderr).toContain("it is present now");
    expect((await out("worktree", "remove", at("three"), "--force")).split("\t")[1]).toBe("removed");
    expect(existsSync(at("three"))).toBe(false);
  });

  test("reconcile finds what has gone", async () => {
    await create("four");
    git("worktree", "remove", at("four"));
    expect((await out("worktree", "reconcile", at("four"))).split("\t")[1]).toBe("missing");
  });

  test("--json is the receipt, with the worktree as it is then", async () => {
    const told = await json<{ subject: { id: string }; worktree: object }>(
      ...["worktree", "create", at("five"), "five", "--project", "core"],
    );
    expect(told.worktree).toMatchObject({
      worktree_id: told.subject.id,
      status: "present",
      path: at("five"),
    });
  });
});

describe("paths", () => {
  test("a new worktree's folder need not be there, the one it will be in must", async () => {
    const made = await run(["worktree", "create", "../six", "six", "--project", "core"], { home, cwd: repo });
    expect(made).toMatchObject({ code: 0, stdout: expect.stringContaining(at("six")) });
    expect(await refused(2, "worktree", "create", at("no/where"), "x", "--project", "core")).toContain(
      "PATH: the path",
    );
    expect(await refused(2, "worktree", "register", at("nowhere"), "--project", "core")).toContain("PATH");
  });

  test("a worktree is named by its path, also from inside and when it is gone; or by the end of its id", async () => {
    await create("seven");
    const id = await idOf("seven");
    const got = await run(["worktree", "get", ".", "--json"], { home, cwd: at("seven") });
    expect(JSON.parse(got.stdout)).toMatchObject({ worktree_id: id });
    expect(await json("worktree", "get", id.slice(-8))).toMatchObject({ worktree_id: id });
    await out("worktree", "remove", at("seven"));
    expect(await json("worktree", "get", at("seven"))).toMatchObject({ worktree_id: id, status: "removed" });
    expect(lines(await out("worktree", "list", "--path", at("seven")))).toHaveLength(1);
    // A place that was taken again means the one that is there now.
    await create("seven", "seven-again");
    expect(await idOf("seven")).not.toBe(id);
    expect(await refused(3, "worktree", "get", at("nothing"))).toContain(`no worktree at '${at("nothing")}'`);
  });
});

test("a path in a worktree means that worktree, as it does for check; an id's end stays an id's end", async () => {
  await locked("deep");
  const id = await idOf("deep");
  mkdirSync(join(at("deep"), "src", "in"), { recursive: true });
  for (const [cwd, path] of [
    [at("deep"), "src"],
    [join(at("deep"), "src", "in"), "."],
    [join(at("deep"), "src", "in"), ".."],
    [disk, "deep/src/in/not-there.ts"],
    [join(at("deep"), "src"), id.slice(-8)],
  ] as const) {
    const got = await run(["worktree", "get", path, "--json"], { home, cwd });
    expect([path, (JSON.parse(got.stdout || "{}") as { worktree_id?: string }).worktree_id]).toEqual([
      path,
      id,
    ]);
  }
  expect((await run(["worktree", "get", "deadbeef"], { home, cwd: at("deep") })).code).toBe(3);
});

test("in a worktree its project and workspace are meant, unless a flag or a variable says otherwise", async () => {
  await create("around");
  mkdirSync(join(at("around"), "src"));
  const here = join(at("around"), "src");
  const { project_id, workspace_id } = await json<Record<string, string>>("worktree", "get", at("around"));
  const other = await out("project", "create", "aside", "--workspace", "demo");
  const within = async (args: readonly string[], env: Record<string, string> = {}) => {
    const { code, stdout, stderr } = await run([...args, "--json"], { home, cwd: here, env });
    expect([args, code, stderr]).toEqual([args, 0, ""]);
    return JSON.parse(stdout) as { subject: { id: string }; items: { project_id: string }[] };
  };
  const made = async (...how: Parameters<typeof within>) =>
    (await json<{ project_id: string }>("task", "get", (await within(...how)).subject.id)).project_id;
  expect(await made(["task", "create", "a"])).toBe(project_id!);
  expect(await made(["task", "create", "b", "--project", "aside"])).toBe(other);
  expect(await made(["task", "create", "c"], { MP_PROJECT: "aside" })).toBe(other);
  const projects = async (...args: string[]) =>
    new Set((await within(["task", "list", ...args])).items.map((row) => row.project_id));
  expect(await projects()).toEqual(new Set([project_id!]));
  expect(await projects("--workspace", "demo")).toEqual(new Set([project_id!, other]));
  const spawned = await within(["session", "spawn", "--agent", "x"]);
  expect(await json("session", "get", spawned.subject.id)).toMatchObject({ project_id, workspace_id });
  const elsewhere = (...args: string[]) => run(args, { home, cwd: disk });
  expect((await elsewhere("task", "create", "d")).stderr).toMatch(/--project is missing\n.*MP_PROJECT/);
  expect((await elsewhere("session", "spawn", "--agent", "x")).stderr).toMatch(
    /--workspace is missing\n.*--workspace NAME, open are 'demo'\n/,
  );
});

describe("check", () => {
  const check = (cwd: string, args: readonly string[] = [], env: Record<string, string> = {}) =>
    run(["worktree", "check", ...args], { home, cwd, env });

  test("nobody writes, or nothing is registered: allowed, and quiet", async () => {
    await create("free");
    for (const cwd of [at("free"), disk])
      expect(await check(cwd)).toEqual({ code: 0, stdout: "", stderr: "" });
    expect(await plainly("worktree", "check", at("free"))).toBe(
      `allowed: nobody holds the writer lock of ${at("free")}\n`,
    );
    expect(await json("worktree", "check", at("free"))).toMatchObject({ allowed: true, writer: null });
  });

  test("another writes: 5 with who it is; oneself by epoch, also below and where nothing is yet", async () => {
    const epoch = await locked("held");
    const refusal = await check(at("held"));
    expect([refusal.code, refusal.stdout]).toEqual([5, ""]);
    for (const part of ["worktree.writer_held", session, "retry_after: 4m"])
      expect(refusal.stderr).toContain(part);
    expect((await check(at("held"), ["--epoch", epoch])).code).toBe(0);
    expect((await check(at("held"), ["not/there.ts", "--session", session])).code).toBe(0);
    const stale = await check(at("held"), ["--epoch", "99"]);
    expect([stale.code, stale.stderr.includes("worktree.stale_epoch")]).toEqual([5, true]);
  });

  test("the hints are command lines with what the refusal met in its places", async () => {
    const epoch = await locked("steal");
    const id = await idOf("steal");
    const { stderr } = await check(at("steal"));
    expect(stderr).toContain(`mp session get ${session}; `);
    expect(stderr).toContain(
      `mp worktree steal-writer ${id} 'why' --session SESSION --expected-epoch ${epoch}\n`,
    );
    await create("gone");
    rmSync(at("gone"), { recursive: true });
    await out("worktree", "reconcile", at("gone"));
    const taken = await refused(5, "worktree", "create", at("gone"), "gone-again", "--project", "core");
    expect(taken).toContain("\n  status: missing\n");
    expect(taken).toContain(`mp worktree remove ${await idOf("gone")}`);
    const asJson = await mp("worktree", "check", at("steal"), "--json");
    expect(JSON.parse(asJson.stderr).hint).toContain("mp session get HOLDER");
  });

  test("in a session that is named by the environment nothing need be said", async () => {
    const epoch = await locked("own");
    const env = { MP_SESSION_ID: session, MP_WORKTREE_ID: await idOf("own"), MP_WRITER_EPOCH: epoch };
    expect((await check(at("own"), [], env)).code).toBe(0);
    expect((await check(at("own"), [], { ...env, MP_WRITER_EPOCH: "99" })).code).toBe(5);
    // The epoch is that worktree's: another one, which nobody writes to, is free.
    await create("beside");
    expect((await check(at("beside"), [], env)).code).toBe(0);
    expect((await check(disk, [], env)).code).toBe(0);
    // Once the lock is stolen the epoch is an old one.
    const thief = await spawn();
    await out("worktree", "attach", at("own"), "write", "--session", thief);
    await out(
      "worktree",
      "steal-writer",
      at("own"),
      "it hangs",
      "--session",
      thief,
      "--expected-epoch",
      epoch,
    );
    const robbed = await check(at("own"), [], env);
    expect([robbed.code, robbed.stderr.includes("worktree.stale_epoch")]).toEqual([5, true]);
  });

  test("the environment's epoch is also for the lock's own verbs, and for no other worktree", async () => {
    const epoch = await locked("verbs");
    const env = { MP_SESSION_ID: session, MP_WORKTREE_ID: await idOf("verbs"), MP_WRITER_EPOCH: epoch };
    expect((await run(["worktree", "renew-writer"], { home, env })).code).toBe(0);
    const other = await run(["worktree", "renew-writer", at("one")], { home, env });
    expect([other.code, other.stderr]).toEqual([2, expect.stringContaining("--epoch is missing")]);
    expect((await run(["worktree", "release-writer"], { home, env })).code).toBe(0);
  });

  test("mode and reason may be flags; the environment's worktree is not robbed where the reason was forgotten", async () => {
    const epoch = await locked("flags");
    const thief = await spawn();
    const env = { MP_SESSION_ID: thief, MP_WORKTREE_ID: await idOf("flags") };
    const inside = (...words: string[]) => run(["worktree", ...words], { home, env });
    expect((await inside("attach", "--mode", "write")).code).toBe(0);
    const forgotten = await inside("steal-writer", at("flags"), "--expected-epoch", epoch);
    expect([forgotten.code, forgotten.stderr]).toEqual([2, expect.stringContaining("REASON is missing")]);
    const stolen = await inside("steal-writer", "--reason", "it is gone", "--expected-epoch", epoch);
    expect([stolen.code, stolen.stderr]).toEqual([0, ""]);
  });

  test("a home without a log: allowed, and no daemon is started for it", async () => {
    const empty = tempHome();
    expect(await run(["worktree", "check"], { home: empty })).toEqual({ code: 0, stdout: "", stderr: "" });
    expect(readdirSync(empty)).toEqual([]);
  });

  test("a daemon that is down is started, unless that is forbidden: 6", async () => {
    const here = tempHome();
    await cli(here).out("workspace", "create", "demo");
    await cli(here).out("daemon", "stop");
    expect((await run(["worktree", "check", "--no-spawn"], { home: here })).code).toBe(6);
    expect(await run(["worktree", "check"], { home: here })).toEqual({ code: 0, stdout: "", stderr: "" });
    expect(await cli(here).out("daemon", "status")).toContain("running");
  });
});

test("sentences and help", async () => {
  await create("said");
  expect(await plainly("worktree", "attach", at("said"), "write", "--session", session)).toMatch(
    /^attached worktree \S+\/said \([0-9a-f-]{36}\)\n$/,
  );
  expect(
    await plainly("worktree", "lock-writer", at("said"), "--session", session, "--ttl-ms", "1m"),
  ).toMatch(/: writer locked, epoch 1, expires at \d{4}-/);
  expect(await plainly("worktree", "detach", at("said"), "--session", session)).toMatch(
    /: writer released, detached\n$/,
  );
  expect(await refused(2, "worktree", "chek")).toContain("did you mean 'mp worktree check'?");
  expect(await out("worktree", "create", "--help")).toContain("a folder that is not there yet");
});

describe("list and get at a terminal", () => {
  test("what was removed or never came to be is hidden, and counted; a pipe gets all", async () => {
    await out("workspace", "create", "hidden");
    await out("project", "create", "hidden", "--workspace", "hidden", "--repo-path", repo);
    for (const name of ["stays", "goes"])
      await out("worktree", "create", at(name), name, "--project", "hidden");
    await out("worktree", "remove", at("goes"));
    git("branch", "used");
    git("worktree", "add", "-q", at("user"), "used");
    expect((await mp("worktree", "create", at("never"), "used", "--project", "hidden")).code).toBe(1);
    const list = ["worktree", "list", "--project", "hidden"];
    const names = (text: string) =>
      lines(text).flatMap((line) => /(stays|goes|never) /.exec(line)?.[1] ?? []);
    const shown = await plainly(...list);
    expect(names(shown)).toEqual(["stays"]);
    expect(lines(shown).at(-1)).toBe("hidden: 1 removed, 1 failed; --all shows them");
    expect(names(await plainly(...list, "--all"))).toEqual(["stays", "goes", "never"]);
    expect(names(await plainly(...list, "--status", "removed"))).toEqual(["goes"]);
    expect(names(await plainly("worktree", "list", "--path", at("never")))).toEqual(["never"]);
    expect(lines(await out(...list))).toHaveLength(3);
    expect((await json<{ items: object[] }>(...list)).items).toHaveLength(3);
    expect(await out("worktree", "list", "--help")).toContain("--all");
  });

  test("a narrow list tells worktrees apart by the ends of their paths", async () => {
    const { shown } = await atTerminal(["worktree", "list", "--project", "hidden"], {
      home,
      columns: 45,
      env: { NO_COLOR: "1" },
    });
    expect(lines(shown)[1]).toStartWith("…/stays ");
  });

  test("one worktree: its writer is told once, with how long", async () => {
    const epoch = await locked("whole");
    const shown = await plainly("worktree", "get", at("whole"));
    expect(shown).toMatch(/^path +\S+\/whole\nstatus +present\nworktree id +\S{36}\nbranch +whole\n/);
    expect(shown).toMatch(
      new RegExp(
        `\\nwriter +session ${session}, epoch ${epoch}, until [\\d-]{10} [\\d:]{8} \\(in \\w+\\)\\n`,
      ),
    );
    expect(shown.match(/writer/g)).toHaveLength(1);
    expect(shown).toMatch(/\nattached sessions\nSESSION +MODE +ATTACHED\n[0-9a-f]{8} +write +\w+\n$/);
    await out("worktree", "release-writer", at("whole"), "--session", session, "--epoch", epoch);
    expect(await plainly("worktree", "get", at("whole"))).toContain(
      `nobody: the lock is free, the last epoch was ${epoch}\n`,
    );
    expect(await out("worktree", "get", at("whole"))).toContain(`\nwriter_epoch\t${epoch}\n`);
  });
});
