/**
 * Real use (SPEC §8): one repository, three worktrees, three `mp session run` side by side that really commit. One is
 * killed; another session steals its lock and finishes its task. At the end the log, the board and `git log` tell one story.
 */
import { expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { binary, start, tempHome, waitFor } from "../support/binary.ts";
import { cli } from "./cli.ts";

const NAMES = ["parser", "printer", "docs"] as const;

interface Event {
  readonly event_type: string;
  readonly stream: string;
  readonly actor: { readonly id: string; readonly kind: string };
  readonly payload: Readonly<Record<string, unknown>>;
}

function git(cwd: string, ...args: string[]): string {
  const done = Bun.spawnSync(["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", ...args], {
    cwd,
  });
  if (done.exitCode !== 0) throw new Error(`git ${args.join(" ")}: ${done.stderr.toString()}`);
  return done.stdout.toString().trim();
}

test("three runs commit in three worktrees; one is killed, its lock stolen, its task finished by another", async () => {
  const home = tempHome();
  const mp = cli(home);
  const id = async (...args: string[]) => (await mp.json<{ subject: { id: string } }>(...args)).subject.id;
  const repo = join(home, "repo");
  mkdirSync(repo);
  git(repo, "init", "-q", "-b", "main");
  git(repo, "commit", "-q", "--allow-empty", "-m", "begin");
  // The hook of the guide: no commit without the right to write.
  const hook = join(repo, ".git", "hooks", "pre-commit");
  writeFileSync(hook, `#!/bin/sh\nexec '${binary()}' worktree check\n`);
  chmodSync(hook, 0o755);

  const workspace = await id("workspace", "create", "studio");
  const project = await id("project", "create", "core", "--workspace", workspace, "--repo-path", repo);
  const board = await id(
    "board",
    "create",
    "sprint",
    "--workspace",
    workspace,
    "--lane",
    "todo",
    "--lane",
    "doing:doing",
    "--lane",
    "done:done",
  );
  const { lanes } = await mp.json<{ lanes: { lane_id: string; name: string }[] }>("board", "get", board);
  const lane = (name: string) => lanes.find((each) => each.name === name)!.lane_id;
  const works = await Promise.all(
    NAMES.map(async (name) => {
      const path = join(home, name);
      const worktree = await id("worktree", "create", path, name, "--project", project);
      const task = await id("task", "create", `write the ${name}`, "--project", project);
      await mp.json("board", "add-node", board, "todo", "task", "--ref", task);
      return { name, path, worktree, task };
    }),
  );

  /** What an agent does: takes the card, commits once, waits for its sign, commits again. */
  const script = (name: string, task: string) => `
    set -e
    mp board move-node ${board} ${task} doing >/dev/null
    echo one > ${name}.txt; git add .; git commit -q -m "${name}: one"
    echo "${name} is half way"
    until [ -e '${home}/go-${name}' ]; do sleep 0.05; done
    echo two >> ${name}.txt; git add .; git commit -q -m "${name}: two"
    mp board move-node ${board} ${task} done >/dev/null
    echo "${name} is done"`;
  const bin = join(home, "bin");
  mkdirSync(bin);
  writeFileSync(join(bin, "mp"), `#!/bin/sh\nexec '${binary()}' "$@"\n`, { mode: 0o755 });
  const env = {
    PATH: `${bin}:${process.env.PATH}`,
    GIT_AUTHOR_NAME: "Agent",
    GIT_AUTHOR_EMAIL: "agent@example.org",
    GIT_COMMITTER_NAME: "Agent",
    GIT_COMMITTER_EMAIL: "agent@example.org",
  };
  const runs = works.map(({ name, path, task }) =>
    start(
      [
        "session",
        "run",
        "--worktree",
        path,
        "--write",
        "--task",
        task,
        "--ttl",
        "2s",
        "--title",
        name,
        "--",
        "sh",
        "-c",
        script(name, task),
      ],
      { home, env },
    ),
  );
  await waitFor(
    () => works.every(({ path, name }) => git(path, "log", "--format=%s").startsWith(`${name}: one`)),
    {
      what: "the first commit of each",
      timeout_ms: 20_000,
    },
  );

  // A human at the wrong folder is refused by the hook while the agent holds the lock, and nothing is committed.
  const meddle = Bun.spawnSync(["git", "commit", "-q", "--allow-empty", "-m", "meddle"], {
    cwd: works[0]!.path,
    env: { ...process.env, ...env, MP_HOME: home },
  });
  expect(meddle.exitCode).not.toBe(0);
  expect(meddle.stderr.toString()).toContain("worktree.writer_held");

  // The third is killed without a word: the runner and what it started.
  const [, , victim] = runs;
  const lost = works[2]!;
  victim!.kill("SIGKILL");
  await victim!.exited;
  const held = await mp.json<{ writer: { session_id: string; epoch: number } }>("worktree", "get", lost.path);
  const rescuer = await mp.json<{ subject: { id: string } }>(
    "session",
    "spawn",
    "--agent",
    "rescuer",
    "--workspace",
    workspace,
  );
  const session = rescuer.subject.id;
  await mp.out("session", "report-status", session, "running");
  await mp.out("worktree", "attach", lost.path, "write", "--session", session);
  const epoch = String(held.writer.epoch);
  const stolen = await mp.json<{ result: { epoch: number } }>(
    "worktree",
    "steal-writer",
    lost.path,
    "its runner was killed",
    "--session",
    session,
    "--expected-epoch",
    epoch,
  );
  expect(stolen.result.epoch).toBeGreaterThan(held.writer.epoch);
  // What the killed one left running still has its old epoch: the hook stops it from now on.
  writeFileSync(join(home, "go-docs"), "");
  const claimed = await mp.json<{ result: { task_id: string; epoch: number; attempt: number } }>(
    "task",
    "claim",
    "--project",
    project,
    "--session",
    session,
    "--wait",
    "20s",
  );
  expect(claimed.result).toMatchObject({ task_id: lost.task, attempt: 2 });
  const own = {
    ...process.env,
    ...env,
    MP_HOME: home,
    MP_WORKTREE_ID: lost.worktree,
    MP_WRITER_EPOCH: String(stolen.result.epoch),
  };
  writeFileSync(join(lost.path, "docs.txt"), "one\nrescued\n");
  const commit = Bun.spawnSync(["git", "commit", "-q", "-a", "-m", "docs: rescued"], {
    cwd: lost.path,
    env: own,
  });
  expect(commit.stderr.toString()).toBe("");
  await mp.out("board", "move-node", board, lost.task, "done");
  await mp.out("task", "complete", lost.task, "--epoch", String(claimed.result.epoch));
  await mp.out("session", "end", session, "completed");

  for (const { name } of works.slice(0, 2)) writeFileSync(join(home, `go-${name}`), "");
  for (const [index, each] of runs.slice(0, 2).entries()) {
    const said = await Bun.readableStreamToText(each.stdout);
    expect([await each.exited, said]).toEqual([0, `${NAMES[index]} is half way\n${NAMES[index]} is done\n`]);
  }

  // One story. Git's:
  const commits = (path: string) => git(path, "log", "--reverse", "--format=%s").split("\n");
  expect(works.map(({ path }) => commits(path))).toEqual([
    ["begin", "parser: one", "parser: two"],
    ["begin", "printer: one", "printer: two"],
    ["begin", "docs: one", "docs: rescued"],
  ]);
  // The board's:
  const snapshot = await mp.json<{ nodes: { ref_id: string; lane_id: string; status: string }[] }>(
    "board",
    "snapshot",
    board,
  );
  expect(
    snapshot.nodes
      .map(({ ref_id, lane_id, status }) => ({ ref_id, lane_id, status }))
      .sort((a, b) => (a.ref_id < b.ref_id ? -1 : 1)),
  ).toEqual(
    works
      .map(({ task }) => ({ ref_id: task, lane_id: lane("done"), status: "succeeded" }))
      .sort((a, b) => (a.ref_id < b.ref_id ? -1 : 1)),
  );
  // The log's:
  await waitFor(async () => (await mp.out("session", "list", "--status", "lost")) !== "", {
    what: "the killed session to be lost",
  });
  const events = (await mp.out("events", "tail", "--from-start", "--no-follow", "--json"))
    .split("\n")
    .map((line) => JSON.parse(line) as Event);
  const types = (stream: string) =>
    events.filter((each) => each.stream === stream).map((each) => each.event_type);
  for (const { worktree, task } of works.slice(0, 2)) {
    expect(types(`task/${task}`)).toEqual([
      "task.created",
      "task.claimed",
      "task.stage_advanced",
      "task.stage_advanced",
      "task.succeeded",
    ]);
    expect(types(`worktree/${worktree}`).slice(-4)).toEqual([
      "worktree.attached",
      "worktree.writer_locked",
      "worktree.writer_released",
      "worktree.detached",
    ]);
  }
  expect(types(`task/${lost.task}`)).toEqual([
    "task.created",
    "task.claimed",
    "task.stage_advanced",
    "task.claim_expired",
    "task.claimed",
    "task.stage_advanced",
    "task.succeeded",
  ]);
  expect(types(`worktree/${lost.worktree}`)).toContain("worktree.writer_stolen");
  // What an agent did by itself is told as the session's, on behalf of whoever started it.
  const moves = events.filter((each) => each.event_type === "board.node_moved");
  expect(moves.filter((each) => each.actor.kind === "session").length).toBe(5);
  const artifacts = await mp.json<{ items: { name: string }[] }>("artifact", "list");
  expect(artifacts.items.map(({ name }) => name)).toEqual(["output.log", "output.log"]);
  expect(JSON.parse(await mp.out("projection", "verify", "--json"))).toMatchObject({ ok: true });
  expect(JSON.parse(await mp.out("log", "verify", "--json"))).toMatchObject({ ok: true });
  expect(existsSync(join(lost.path, "docs.txt"))).toBe(true);
}, 60_000);
