/**
 * `mp session run --next` and `--wait` (SPEC §8): the next task of the queue, and the lock, waited for before there is a
 * session.
 */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { binary, start, tempHome, waitFor } from "../support/binary.ts";
import { type Cli, cli, lines } from "./cli.ts";

type Row = Record<string, unknown>;

/** A home with a workspace, two projects and a registered folder of the first. */
async function place() {
  const home = tempHome();
  const mp = cli(home);
  const folder = join(home, "tree");
  mkdirSync(folder);
  await mp.out("workspace", "create", "demo");
  const core = await mp.out("project", "create", "core", "--workspace", "demo");
  await mp.out("project", "create", "docs", "--workspace", "demo");
  await mp.out("worktree", "register", folder, "--project", "core");
  return { home, mp, folder, core };
}

const task = (mp: Cli, title: string, ...flags: string[]) => mp.out("task", "create", title, ...flags);
const inCore = ["--project", "core"];

const row = (mp: Cli, id: string) => mp.json<Row>("task", "get", id);

async function sessions(mp: Cli): Promise<Row[]> {
  return (await mp.json<{ items: Row[] }>("session", "list")).items;
}

/** `mp session run FLAGS -- sh -c SCRIPT`. */
function running(home: string, flags: readonly string[], script: string) {
  const child = start(["session", "run", ...flags, "--", "sh", "-c", script], { home });
  const outputs = Promise.all([
    Bun.readableStreamToText(child.stdout),
    Bun.readableStreamToText(child.stderr),
  ]);
  return {
    child,
    async ended() {
      const code = await child.exited;
      const [stdout, stderr] = await outputs;
      return { code, stdout, stderr };
    },
  };
}

/** The same with its words on a terminal, where it says that it waits. Its stdin and stdout are none: no pty for the command. */
async function waiting(home: string, flags: readonly string[], script: string) {
  let shown = "";
  const run = `"$MP" session run "$@" -- sh -c '${script}' </dev/null | cat`;
  const child = Bun.spawn(["bash", "-o", "pipefail", "-c", run, "bash", ...flags], {
    env: { ...process.env, TERM: "dumb", MP: binary(), MP_HOME: home },
    terminal: {
      cols: 200,
      data(_terminal, data) {
        shown += new TextDecoder().decode(data);
      },
    },
  });
  await waitFor(() => shown.includes("mp: waiting: "), { what: "that it waits" });
  return {
    press: (key: string) => child.terminal?.write(key),
    async ended() {
      const code = await child.exited;
      child.terminal?.close();
      return { code, shown: shown.replaceAll("\r", "") };
    },
  };
}

const IDS = 'echo "$MP_TASK_ID $MP_TASK_EPOCH $MP_PROJECT"';

describe("--next", () => {
  test("takes the most urgent task that is ready, and what comes of the command comes of it", async () => {
    const { home, mp, core } = await place();
    const low = await task(mp, "low", ...inCore, "--priority", "3");
    const high = await task(mp, "high", ...inCore, "--priority", "0");
    const first = await running(home, ["--next"], IDS).ended();
    expect([first.code, first.stdout]).toEqual([0, `${high} 1 ${core}\n`]);
    expect((await row(mp, high)).status).toBe("succeeded");
    expect((await running(home, ["--next"], `${IDS}; exit 3`).ended()).stdout).toBe(`${low} 1 ${core}\n`);
    expect(await row(mp, low)).toMatchObject({ status: "failed", failure_message: "exit code 3" });
    const { items } = await mp.json<{ items: Row[] }>("artifact", "list", "--session", low);
    expect(items).toHaveLength(1);
  });

  test("of a project, of a worktree's project, of a stage", async () => {
    const { home, mp, folder } = await place();
    const docs = await task(mp, "docs", "--project", "docs");
    const code = await task(mp, "code", ...inCore);
    const review = await task(mp, "review", ...inCore, "--stage", "review");
    const taken = async (...flags: string[]) =>
      (await running(home, ["--next", ...flags], 'echo "$MP_TASK_ID"').ended()).stdout.trim();
    expect(await taken("--worktree", folder, "--stage", "review")).toBe(review);
    expect(await taken("--worktree", folder)).toBe(code);
    expect(await taken("--project", "docs")).toBe(docs);
  });

  test("none that is ready: refused as a claim is, no command, no session", async () => {
    const { mp, home } = await place();
    await task(mp, "later", ...inCore, "--not-before", "2999-01-01");
    const mark = join(home, "started");
    const args = ["session", "run", "--next", "--json", "--", "touch", mark];
    const found = JSON.parse(await mp.refused(5, ...args));
    expect(found).toMatchObject({ code: "conflict", reason: "task.none_ready" });
    expect(found.details).toEqual({ next_at: "2999-01-01T00:00:00.000Z" });
    expect([existsSync(mark), await sessions(mp)]).toEqual([false, []]);
  });

  test("what the command line lacks, or has too much of", async () => {
    const { mp, home } = await place();
    const id = await task(mp, "one", ...inCore);
    const said = (...flags: string[]) => mp.refused(2, "session", "run", ...flags, "--", "true");
    expect(await said("--next", "--task", id)).toContain("--task and --next exclude each other");
    expect(await said("--stage", "review")).toContain("--stage needs --next");
    expect(await said("--wait", "1s")).toContain("--wait needs");
    expect(existsSync(home)).toBe(true);
  });
});

describe("--next --wait", () => {
  test("a task that is created while it waits is taken; until then there is no session", async () => {
    const { home, mp } = await place();
    const run = await waiting(home, ["--next", "--wait", "60s"], 'echo "took $MP_TASK_ID"');
    expect(await sessions(mp)).toEqual([]);
    const id = await task(mp, "at last", ...inCore);
    const { code, shown } = await run.ended();
    expect([code, lines(shown)]).toEqual([
      0,
      ["mp: waiting: no task that matches is ready; Ctrl-C ends it", `took ${id}`],
    ]);
    expect(await row(mp, id)).toMatchObject({ status: "succeeded" });
    expect(await sessions(mp)).toHaveLength(1);
  });

  test("so is one whose time comes, known before or created meanwhile", async () => {
    const { home, mp } = await place();
    const known = await task(mp, "soon", ...inCore, "--not-before", "1500ms");
    const first = running(home, ["--next", "--wait", "60s"], 'echo "$MP_TASK_ID"');
    expect(await first.ended()).toMatchObject({ code: 0, stdout: `${known}\n` });
    const second = await waiting(home, ["--next", "--wait", "60s"], 'echo "took $MP_TASK_ID"');
    const later = await task(mp, "later", ...inCore, "--not-before", "1s");
    expect(await second.ended()).toMatchObject({ code: 0, shown: expect.stringContaining(`took ${later}`) });
  });

  test("so is one that another gives back, whose time comes only then", async () => {
    const { home, mp } = await place();
    const id = await task(mp, "paused", ...inCore, "--not-before", "2s");
    await mp.out("task", "pause", id);
    const run = await waiting(home, ["--next", "--wait", "60s"], 'echo "took $MP_TASK_ID"');
    await mp.out("task", "resume", id);
    expect(await run.ended()).toMatchObject({ code: 0, shown: expect.stringContaining(`took ${id}`) });
  });

  test("of several that wait one wins, the others go on waiting, each with one session at most", async () => {
    const { home, mp } = await place();
    const runs = await Promise.all(
      Array.from({ length: 3 }, () => waiting(home, ["--next", "--wait", "60s"], 'echo "took $MP_TASK_ID"')),
    );
    const ids: string[] = [];
    for (let at = 0; at < runs.length; at++) {
      const id = await task(mp, `task ${at}`, ...inCore);
      await waitFor(async () => (await row(mp, id)).status === "succeeded", { what: `task ${at}` });
      ids.push(id);
    }
    const ends = await Promise.all(runs.map((each) => each.ended()));
    expect(ends.map(({ code }) => code)).toEqual([0, 0, 0]);
    const took = ends.map(({ shown }) => /took (\S+)/.exec(shown)?.[1]);
    expect(took.toSorted()).toEqual(ids.toSorted());
    expect((await sessions(mp)).map(({ status }) => status)).toEqual(["completed", "completed", "completed"]);
  });

  test("in vain: 7 as for a claim; Ctrl-C: 130; neither leaves a session", async () => {
    const { home, mp } = await place();
    const args = ["session", "run", "--next", "--wait", "300ms", "--", "true"];
    const said = await mp.refused(7, ...args);
    expect(said).toContain("nothing could be claimed within 300ms: no task that matches is ready");
    const run = await waiting(home, ["--next", "--wait", "60s"], "true");
    run.press("\x03");
    expect((await run.ended()).code).toBe(130);
    expect(await sessions(mp)).toEqual([]);
  });

  test("a task that is named is waited for as well", async () => {
    const { home, mp } = await place();
    const first = await task(mp, "first", ...inCore);
    const second = await task(mp, "second", ...inCore, "--depends-on", first);
    const run = await waiting(home, ["--task", second, "--wait", "60s"], 'echo "took $MP_TASK_ID"');
    expect(await sessions(mp)).toEqual([]);
    expect((await running(home, ["--task", first], "true").ended()).code).toBe(0);
    expect(await run.ended()).toMatchObject({ code: 0, shown: expect.stringContaining(`took ${second}`) });
  });
});

describe("--write --wait", () => {
  const until = (file: string) => `echo ready; while [ ! -e "${file}" ]; do sleep 0.02; done`;

  test("begins when the lock is given back; without a session until then", async () => {
    const { home, mp, folder } = await place();
    const go = join(home, "go");
    const holder = running(home, ["--worktree", folder, "--write"], until(go));
    await waitFor(async () => (await mp.json<Row>("worktree", "get", folder)).writer !== null, {
      what: "the lock",
    });
    const flags = ["--worktree", folder, "--write", "--wait", "60s"];
    const run = await waiting(home, flags, 'echo "epoch $MP_WRITER_EPOCH"');
    expect(await sessions(mp)).toHaveLength(1);
    writeFileSync(go, "");
    expect((await holder.ended()).code).toBe(0);
    const { code, shown } = await run.ended();
    expect([code, lines(shown)]).toEqual([
      0,
      ["mp: waiting: another session holds the writer lock; Ctrl-C ends it", "epoch 2"],
    ]);
    expect((await sessions(mp)).map(({ status }) => status)).toEqual(["completed", "completed"]);
  });

  test("7 when it does not become free in time; with --next the lock and the task are both waited for", async () => {
    const { home, mp, folder } = await place();
    const id = await task(mp, "the work", ...inCore);
    const go = join(home, "go");
    const holder = running(home, ["--worktree", folder, "--write"], until(go));
    await waitFor(async () => (await mp.json<Row>("worktree", "get", folder)).writer !== null, {
      what: "the lock",
    });
    const flags = ["--worktree", folder, "--write", "--next"];
    const said = await mp.refused(7, "session", "run", ...flags, "--wait", "300ms", "--", "true");
    expect(said).toContain("the writer lock did not become free within 300ms");
    const run = await waiting(home, [...flags, "--wait", "60s"], 'echo "took $MP_TASK_ID"');
    // The work is not kept from others meanwhile.
    expect(await row(mp, id)).toMatchObject({ status: "queued", attempt: 0 });
    writeFileSync(go, "");
    expect((await holder.ended()).code).toBe(0);
    expect(await run.ended()).toMatchObject({ code: 0, shown: expect.stringContaining(`took ${id}`) });
    expect(await sessions(mp)).toHaveLength(2);
  });
});
