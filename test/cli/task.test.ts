/** Tasks from the command line: the queue, one task in sentences, waiting for work without polling. */
import { beforeAll, describe, expect, test } from "bun:test";
import { binary, run, start, tempHome, waitFor } from "../support/binary.ts";
import { atTerminal, cli, lines } from "./cli.ts";

const home = tempHome();
const { out, json, refused } = cli(home);
const plainly = async (...args: string[]) => (await atTerminal(args, { home, env: { NO_COLOR: "1" } })).shown;

let session: string;

async function spawn(at = home): Promise<string> {
  const told = await cli(at).out("session", "spawn", "--workspace", "demo", "--agent", "worker");
  return told.split("\t")[0]!;
}

/** Creates a task in a project of its own test. */
const task = (project: string, title: string, ...args: string[]) =>
  out("task", "create", title, "--project", project, ...args);

/** A claim that waits, at a terminal, because there it says that it does. */
function waiting(project: string, { at = home, by = session, wait = "60s" } = {}) {
  let shown = "";
  const child = Bun.spawn(
    [binary(), "task", "claim", "--session", by, "--project", project, "--wait", wait],
    {
      env: { ...process.env, TERM: "dumb", MP_HOME: at },
      terminal: {
        data(_terminal, data) {
          shown += new TextDecoder().decode(data);
        },
      },
    },
  );
  return {
    child,
    shown: () => shown,
    waits: () => waitFor(() => shown.includes("waiting for a task"), { what: "a claim that waits" }),
    press: (key: string) => child.terminal?.write(key),
    async ended() {
      const code = await child.exited;
      child.terminal?.close();
      return { code, claimed: /claimed task ([0-9a-f-]{36}), epoch 1/.exec(shown)?.[1] };
    },
  };
}

beforeAll(async () => {
  await out("workspace", "create", "demo");
  for (const name of ["core", "queue", "wait", "time", "many", "halt", "deps", "dry"])
    await out("project", "create", name, "--workspace", "demo");
  session = await spawn();
});

describe("arguments", () => {
  test("by id, by filter, and both", async () => {
    const id = await task("core", "by id", "--priority", "4");
    const first = await task("core", "by filter", "--priority", "0", "--stage", "review");
    expect((await out("task", "claim", "--session", session, "--project", "core")).split("\t")[0]).toBe(
      first,
    );
    expect((await out("task", "claim", id.slice(-8), "--session", session)).split("\t").slice(0, 3)).toEqual([
      id,
      "1",
      "1",
    ]);
    expect(
      await refused(2, "task", "claim", id, "--session", session, "--stage", "x", "--project", "core"),
    ).toStartWith("error: TASK and --project and --stage exclude each other\n");
    expect(await refused(5, "task", "claim", "--session", session, "--filter-project", "core")).toContain(
      "task.none_ready",
    );
  });

  test("claim, complete and fail know the session and task of the environment, with their epochs", async () => {
    const id = await task("core", "from the environment");
    const env = { MP_SESSION_ID: session, MP_TASK_ID: id, MP_TASK_EPOCH: "1" };
    const mp = (...args: string[]) => run(["task", ...args], { home, env });
    // MP_TASK_ID is the task one has, not the one one wants.
    const claimed = await mp("claim", "--project", "core");
    expect(claimed.stdout.split("\t")[0]).toBe(id);
    expect((await mp("renew")).stdout.split("\t")[0]).toBe(id);
    const other = await task("core", "another", "--depends-on", id);
    expect(await mp("complete", other)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--epoch"),
    });
    expect((await mp("fail", "--class", "build", "--message", "it does not")).code).toBe(0);
    expect(await json("task", "get", id)).toMatchObject({
      status: "failed",
      failure_class: "build",
      failure_message: "it does not",
    });
  });

  test("members that are wrong are named by their flags", async () => {
    const id = await task("core", "wrong flags");
    const said = await refused(2, "task", "fail", id, "--epoch", "1", "--class", "\u0001", "--message", "m");
    expect(said).toContain("--class ");
    expect(await refused(2, "task", "fail", id, "--epoch", "1", "--class", "c")).toContain(
      "--message is missing",
    );
  });

  test("times may be so long from now", async () => {
    const before = Date.now();
    const id = await task("core", "later", "--not-before", "2h", "--deadline-at", "2999-01-01");
    const { not_before, deadline_at } = await json("task", "get", id);
    const ahead = Date.parse(String(not_before)) - before - 7_200_000;
    expect(ahead).toBeGreaterThanOrEqual(0);
    expect(ahead).toBeLessThan(30_000);
    expect(deadline_at).toBe("2999-01-01T00:00:00.000Z");
    expect(
      await refused(2, "task", "create", "never", "--project", "core", "--not-before", "soon"),
    ).toContain("--not-before must be a time");
  });

  test("dependencies are named by the ends of their ids", async () => {
    const [one, two] = [await task("core", "one"), await task("core", "two")];
    const id = await task("core", "both", "--depends-on", `${one.slice(-8)},${two}`);
    const { dependencies } = await json<{ dependencies: { task_id: string }[] }>("task", "get", id);
    expect(dependencies.map((each) => each.task_id).toSorted()).toEqual([one, two].toSorted());
    await out("task", "remove-dependency", id, two.slice(-8));
    expect(await json("task", "get", id)).toMatchObject({ dependency_count: 1 });
  });
});

describe("the queue", () => {
  test("at a terminal: position, priority, title, age, stage, id; in a pipe every column", async () => {
    const low = await task("queue", "low", "--priority", "3", "--stage", "review");
    const high = await task("queue", "high", "--priority", "0");
    await task("queue", "waits", "--depends-on", low);
    const [head, ...rows] = lines(await plainly("task", "ready", "--project", "queue"));
    expect(head!.split(/ {2,}/)).toEqual(["#", "PRIO", "TITLE", "AGE", "STAGE", "ID"]);
    expect(rows.map((row) => row.split(/ {2,}/))).toEqual([
      ["1", "P0", "high", expect.stringMatching(/^\d+s$/), "–", high.slice(-8)],
      ["2", "P3", "low", expect.stringMatching(/^\d+s$/), "review", low.slice(-8)],
    ]);
    expect(lines(await out("task", "ready", "--project", "queue")).map((row) => row.split("\t")[0])).toEqual([
      high,
      low,
    ]);
    expect(await plainly("task", "ready", "--project", "dry")).toBe("no task is ready\n");
  });

  test("a task says in sentences why it cannot be claimed, and what came of it", async () => {
    const first = await task("deps", "first");
    const second = await task("deps", "second", "--depends-on", first);
    const waits = await plainly("task", "get", second);
    expect(waits).toContain(
      `why it cannot be claimed\n  it waits for 'first', which is queued (${first.slice(-8)})\n`,
    );
    expect(waits).toMatch(/depends on\nSTATUS +TITLE +ID\nqueued +first +/);
    await out("task", "claim", first, "--session", session);
    const claimed = await plainly("task", "get", first);
    expect(claimed).toMatch(
      new RegExp(`claim +session ${session}, epoch 1, until \\d{4}-.* \\(in \\w+\\)\n`),
    );
    expect(claimed).toMatch(/attempt +1 of 3\n/);
    expect(claimed).not.toContain("why it cannot be claimed");
    await out("task", "release", first, "--epoch", "1");
    expect(await plainly("task", "get", first)).toMatch(/attempts\n# +OUTCOME +SESSION +.*\n1 +released +/);
    // A pipe gets a name and a value a line, lists as JSON.
    const rows = Object.fromEntries(lines(await out("task", "get", second)).map((line) => line.split("\t")));
    expect(JSON.parse(rows.why)).toMatchObject([{ because: "dependency", task_id: first }]);
  });
});

describe("claim --wait", () => {
  test("what is ready is claimed at once", async () => {
    const id = await task("wait", "there already");
    const told = await out("task", "claim", "--session", session, "--project", "wait", "--wait", "60s");
    expect(told.split("\t").slice(0, 3)).toEqual([id, "1", "1"]);
  });

  test("a task that is created while it waits wakes it; it says so at a terminal", async () => {
    const waiter = waiting("wait");
    await waiter.waits();
    const id = await task("wait", "at last");
    expect(await waiter.ended()).toEqual({ code: 0, claimed: id });
  });

  test("so does a dependency that is done, by id too", async () => {
    const first = await task("deps", "to be done", "--priority", "0");
    const second = await task("deps", "after it", "--depends-on", first);
    await out("task", "claim", first, "--session", session);
    const child = start(["task", "claim", second, "--session", session, "--wait", "60s", "--json"], { home });
    await out("task", "complete", first, "--epoch", "1");
    expect(await child.exited).toBe(0);
    expect(JSON.parse(await Bun.readableStreamToText(child.stdout))).toMatchObject({
      subject: { id: second },
      result: { epoch: 1 },
    });
  });

  test("so does the time of a task, without an event", async () => {
    const id = await task("time", "soon", "--not-before", "1500ms");
    const waiter = waiting("time");
    await waiter.waits();
    expect(await waiter.ended()).toEqual({ code: 0, claimed: id });
  });

  test("of several that wait one wins, and the others go on waiting", async () => {
    const waiters = Array.from({ length: 4 }, () => waiting("many"));
    await Promise.all(waiters.map((each) => each.waits()));
    const ids = [await task("many", "one"), await task("many", "two")];
    const over = waiters.map((each) => each.ended());
    await waitFor(() => waiters.filter((each) => each.child.exitCode !== null).length === 2, {
      what: "two winners",
    });
    const still = waiters.filter((each) => each.child.exitCode === null);
    expect(still).toHaveLength(2);
    for (const each of still) each.press("\u0003");
    const ends = await Promise.all(over);
    expect(ends.map(({ code }) => code).toSorted()).toEqual([0, 0, 130, 130]);
    expect(ends.flatMap(({ claimed }) => claimed ?? []).toSorted()).toEqual(ids.toSorted());
  });

  test("it outlives the daemon", async () => {
    const here = tempHome();
    const there = cli(here);
    await there.out("workspace", "create", "demo");
    await there.out("project", "create", "core", "--workspace", "demo");
    const waiter = waiting("core", { at: here, by: await spawn(here) });
    await waiter.waits();
    await there.out("daemon", "restart");
    const id = await there.out("task", "create", "after the restart", "--project", "core");
    expect(await waiter.ended()).toEqual({ code: 0, claimed: id });
  });

  test("exit code 7 when nothing came in time, with what the daemon said last", async () => {
    const said = await refused(
      7,
      "task",
      "claim",
      "--session",
      session,
      "--project",
      "dry",
      "--wait",
      "300ms",
    );
    expect(said).toContain("nothing could be claimed within 300ms: no task that matches is ready");
    const problem = JSON.parse(
      await refused(
        7,
        "task",
        "claim",
        "--session",
        session,
        "--project",
        "dry",
        "--wait",
        "200ms",
        "--json",
      ),
    );
    expect(problem.code).toBe("timeout");
  });

  test("Ctrl-C: 130, and nothing is claimed", async () => {
    const waiter = waiting("halt");
    await waiter.waits();
    waiter.press("\u0003");
    expect((await waiter.ended()).code).toBe(130);
    const id = await task("halt", "nobody wants it");
    expect(await json("task", "get", id)).toMatchObject({ status: "queued", attempt: 0 });
  });

  test("what waiting does not mend is refused at once", async () => {
    const gone = await spawn();
    await out("session", "end", gone, "cancelled");
    expect(
      await refused(5, "task", "claim", "--session", gone, "--project", "dry", "--wait", "60s"),
    ).toContain("session.not_live");
  });
});

test("help reads well", async () => {
  const help = await out("task", "claim", "--help");
  for (const part of [
    "mp task claim [TASK] --session SESSION",
    "--project PROJECT",
    "--wait TIME",
    "(required; or MP_SESSION_ID)",
    "exit code 7",
  ])
    expect(help.replaceAll(/\s+/g, " ")).toContain(part);
  expect(await out("task", "complete", "--help")).toContain("(or MP_TASK_EPOCH of MP_TASK_ID)");
});
