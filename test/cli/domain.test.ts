/** Workspaces and projects from the command line: what is printed, names for ids, paths, keys. */
import { beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run, tempHome } from "../support/binary.ts";
import { cli, fill, lines } from "./cli.ts";

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const home = tempHome();
const { mp, out, json, refused } = cli(home);

beforeAll(async () => {
  await out("daemon", "start");
});

describe("commands", () => {
  test("in a pipe a command prints the id of its subject, nothing else", async () => {
    expect(await out("workspace", "create", "plain")).toMatch(ID);
  });

  test("--json prints the receipt, with the key that was made up", async () => {
    const receipt = await json("workspace", "create", "receipt");
    expect(receipt).toMatchObject({
      type: "workspace.create",
      subject: { kind: "workspace" },
      version: 1,
      replayed: false,
      idempotency_key: expect.stringMatching(/^mp-/),
    });
    expect(receipt.events).toHaveLength(1);
  });

  test("--key: the same command again is the same receipt, another one is refused", async () => {
    const first = await json("workspace", "create", "keyed", "--key", "k-1");
    const again = await json("workspace", "create", "keyed", "--key", "k-1");
    expect(again).toEqual({ ...first, replayed: true });
    expect(first.idempotency_key).toBe("k-1");
    expect(await refused(5, "workspace", "create", "other", "--key", "k-1")).toContain(
      "idempotency_key_reused",
    );
  });

  test("--expected-version and --trace-id reach the daemon", async () => {
    const id = await out("workspace", "create", "versioned");
    expect(await refused(5, "workspace", "close", id, "--expected-version", "2")).toMatch(
      /is at version 1, not 2\n {2}code: expected_version_mismatch/,
    );
    const trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    const receipt = await json<{ events: { event_id: string }[] }>(
      "workspace",
      "close",
      id,
      "--expected-version",
      "1",
      "--trace-id",
      trace,
    );
    expect(await json("events", "get", receipt.events[0]!.event_id)).toMatchObject({ trace_id: trace });
  });

  test("a command that changes nothing ends well", async () => {
    const id = await out("workspace", "create", "twice");
    expect(await out("workspace", "open", "twice")).toBe(id);
    expect(await json("workspace", "open", "twice")).toMatchObject({ events: [] });
  });
});

describe("queries", () => {
  test("a list in a pipe is TSV with every column, in the order of its schema", async () => {
    const id = await out("workspace", "create", "listed", "--root-path", home);
    const rows = lines(await out("workspace", "list", "--name", "LISTED"));
    expect(rows).toHaveLength(1);
    const [workspace_id, name, status, root_path, created_at, updated_at, version] = rows[0]!.split("\t");
    expect([workspace_id, name, status, root_path, version]).toEqual([id, "listed", "open", home, "1"]);
    expect(created_at).toBe(updated_at!);
  });

  test("get in a pipe is a name and a value per line; what is null has no value", async () => {
    await out("workspace", "create", "got");
    const rows = lines(await out("workspace", "get", "got")).map((line) => line.split("\t"));
    const found = Object.fromEntries(rows);
    expect(found).toMatchObject({ name: "got", status: "open", root_path: "", version: "1" });
    expect(found.as_of_seq).toBeUndefined();
  });

  test("an empty list is empty: exit code 0", async () => {
    expect(await out("project", "list", "--name", "nobody")).toBe("");
    expect(await json("project", "list", "--name", "nobody")).toMatchObject({ items: [], next: null });
  });

  test("filters of the payload are flags", async () => {
    await out("workspace", "create", "shut");
    await out("workspace", "close", "shut");
    const closed = await json<{ items: { name: string; status: string }[] }>(
      "workspace",
      "list",
      "--status",
      "closed",
    );
    expect(closed.items.map(({ status }) => status)).toEqual(closed.items.map(() => "closed"));
    expect(closed.items.map(({ name }) => name)).toContain("shut");
  });

  test("a list is whole unless --limit says otherwise; then --cursor goes on", async () => {
    const here = tempHome();
    const big = cli(here);
    await big.out("daemon", "start");
    await fill(here, 2_500);
    const all = lines(await big.out("workspace", "list"));
    expect(all).toHaveLength(2_500);
    expect(new Set(all).size).toBe(2_500);
    const whole = await big.json<{ as_of_seq: number; items: unknown[]; next: null }>("workspace", "list");
    expect([whole.as_of_seq, whole.items.length, whole.next]).toEqual([2_500, 2_500, null]);

    const first = await big.mp("workspace", "list", "--limit", "1500");
    const cursor = /^there are more: --cursor (\S+)\n$/.exec(first.stderr)?.[1];
    const rest = lines(await big.out("workspace", "list", "--cursor", cursor!));
    expect([...lines(first.stdout), ...rest]).toEqual(all);
  });
});

describe("names wherever ids do", () => {
  test("by id, by name, by name in another case", async () => {
    const id = await out("workspace", "create", "Grün & Blau");
    for (const text of [id, "Grün & Blau", "GRÜN & BLAU"])
      expect(await out("workspace", "open", text)).toBe(id);
  });

  test("by the end of its id, from eight digits on; a name counts first", async () => {
    const id = await out("workspace", "create", "by-its-end");
    for (const text of [id.slice(-8), id.slice(-17), id.slice(-8).toUpperCase()])
      expect(await out("workspace", "open", text)).toBe(id);
    expect(await refused(3, "workspace", "open", id.slice(-7))).toContain("there is no workspace named");
    const named = await out("workspace", "create", id.slice(-8));
    expect(await out("workspace", "open", id.slice(-8))).toBe(named);
    expect(await out("workspace", "open", id.slice(-9))).toBe(id);
  });

  test("names typed in parts of letters (NFD) are those in whole letters (NFC), given and looked up", async () => {
    const parts = "Pru\u0308fung".normalize("NFD");
    const id = await out("workspace", "create", parts);
    expect(await json("workspace", "get", parts)).toMatchObject({
      workspace_id: id,
      name: parts.normalize("NFC"),
    });
    const task = await out("project", "create", "nfd", "--workspace", parts).then(() =>
      out("task", "create", parts, "--project", "nfd", "--workspace", parts, "--stage", parts),
    );
    const [title, stage] = [parts.normalize("NFC"), parts.normalize("NFC")];
    expect(await json("task", "get", task)).toMatchObject({ title, stage });
  });

  test("a name that nothing has", async () => {
    expect(await refused(3, "workspace", "get", "nirgends")).toContain(
      "there is no workspace named 'nirgends'",
    );
    expect(await refused(3, "project", "create", "x", "--workspace", "nirgends")).toContain(
      "no workspace named",
    );
  });

  test("a name that two have is refused with both of them, and --workspace tells which", async () => {
    const [left, right] = [
      await out("workspace", "create", "left"),
      await out("workspace", "create", "right"),
    ];
    const one = await out("project", "create", "core", "--workspace", "left");
    const two = await out("project", "create", "core", "--workspace", right);
    const said = await refused(2, "project", "get", "core");
    for (const part of ["more than one project is named 'core'", one, two, left, right])
      expect(said).toContain(part);
    const problem = JSON.parse(await refused(2, "project", "get", "core", "--json"));
    expect(problem.details.candidates).toEqual([
      { id: one, workspace_id: left },
      { id: two, workspace_id: right },
    ]);
    expect(await json("project", "get", "core", "--workspace", "right")).toMatchObject({ project_id: two });
    expect(await out("project", "archive", "core", "--workspace-id", left)).toBe(one);
    expect(lines(await out("project", "list", "--workspace", "left", "--status", "archived"))).toHaveLength(
      1,
    );
  });

  test("the workspace may come from the environment; the flag wins", async () => {
    const id = await out("workspace", "create", "from-env");
    const created = await run(["project", "create", "a", "--json"], {
      home,
      env: { MP_WORKSPACE: "from-env" },
    });
    const { subject } = JSON.parse(created.stdout);
    expect(await json("project", "get", subject.id)).toMatchObject({ workspace_id: id });
    const flagged = await run(["project", "create", "b", "--workspace", id, "--json"], {
      home,
      env: { MP_WORKSPACE: "nirgends" },
    });
    expect(flagged.code).toBe(0);
  });
});

describe("paths", () => {
  const disk = realpathSync(tempHome());

  function checkout(name: string): string {
    const path = join(disk, name);
    mkdirSync(join(path, ".git"), { recursive: true });
    mkdirSync(join(path, "src", "deep"), { recursive: true });
    writeFileSync(join(path, ".git", "HEAD"), "ref: refs/heads/main\n");
    return path;
  }

  /** What a project that is created here says about its place. */
  async function placeOf(cwd: string, path: string, name: string) {
    await mp("workspace", "create", "places");
    const { code, stderr } = await run(
      ["project", "create", name, "--workspace", "places", "--repo-path", path],
      { home, cwd },
    );
    expect([code, stderr]).toEqual([0, ""]);
    const { repo_path, git_common_dir } = await json("project", "get", name, "--workspace", "places");
    return { repo_path, git_common_dir };
  }

  test("become absolute and canonical, and the checkout's git folder is found", async () => {
    const repo = checkout("repo");
    const git_common_dir = join(repo, ".git");
    expect(await placeOf(repo, ".", "here")).toEqual({ repo_path: repo, git_common_dir });
    expect(await placeOf(join(repo, "src"), "deep/../deep", "below")).toEqual({
      repo_path: join(repo, "src", "deep"),
      git_common_dir,
    });
    symlinkSync(repo, join(disk, "link"));
    expect(await placeOf(disk, "link/src", "linked")).toEqual({
      repo_path: join(repo, "src"),
      git_common_dir,
    });
  });

  test("a worktree shares its repository's git folder", async () => {
    const repo = checkout("main-tree");
    const admin = join(repo, ".git", "worktrees", "wt");
    mkdirSync(admin, { recursive: true });
    writeFileSync(join(admin, "HEAD"), "ref: refs/heads/wt\n");
    writeFileSync(join(admin, "commondir"), "../..\n");
    const worktree = join(disk, "wt");
    mkdirSync(worktree);
    writeFileSync(join(worktree, ".git"), `gitdir: ${admin}\n`);
    expect(await placeOf(worktree, ".", "worktree")).toEqual({
      repo_path: worktree,
      git_common_dir: join(repo, ".git"),
    });
  });

  test.skipIf(!Bun.which("git"))("git's own idea of it is the same (git)", async () => {
    const repo = join(disk, "real");
    const git = (...args: string[]) =>
      Bun.spawnSync(["git", "-C", repo, ...args], { stderr: "pipe" })
        .stdout.toString()
        .trim();
    mkdirSync(repo);
    git("init", "-q");
    expect(await placeOf(repo, ".", "real")).toEqual({
      repo_path: repo,
      git_common_dir: realpathSync(join(repo, git("rev-parse", "--git-common-dir"))),
    });
  });

  test("outside a checkout there is no git folder; a folder that is only called .git is none", async () => {
    const plain = join(disk, "plain");
    mkdirSync(join(plain, ".git"), { recursive: true });
    expect(await placeOf(plain, ".", "plain")).toEqual({ repo_path: plain, git_common_dir: null });
  });

  test("a path that does not exist is refused before anything is sent", async () => {
    expect(
      await refused(2, "workspace", "create", "typo", "--root-path", join(disk, "no", "where")),
    ).toContain("--root-path: the path");
    expect(await refused(3, "workspace", "get", "typo")).toContain("no workspace named");
  });
});
