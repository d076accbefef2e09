/** Sessions from the command line: spawning, the epoch of the environment, the tree as a tree. */
import { beforeAll, describe, expect, test } from "bun:test";
import { run, tempHome } from "../support/binary.ts";
import { atTerminal, cli, lines } from "./cli.ts";

const home = tempHome();
const { out, json, refused } = cli(home);
const plainly = async (args: readonly string[], columns = 100) =>
  (await atTerminal(args, { home, columns, env: { NO_COLOR: "1" } })).shown;

/** Spawns a session and gives its id. */
async function spawn(agent: string, ...args: string[]): Promise<string> {
  return (await out("session", "spawn", "--workspace", "demo", "--agent", agent, ...args)).split("\t")[0]!;
}

let top: string;
let left: string;
let below: string;
let right: string;

beforeAll(async () => {
  await out("workspace", "create", "demo");
  top = await spawn("ada", "--title", "the plan");
  left = await spawn("coder", "--parent-session", top);
  below = await spawn("tester", "--parent-session", left.slice(-8), "--title", "漢字 tests");
  right = await spawn("writer", "--parent-session-id", top);
  await out("session", "report-status", left, "running");
  await out("session", "report-status", below, "running");
  await out("session", "report-status", below, "waiting", "--waiting-for", "approval");
});

describe("commands", () => {
  test("the members of the agent are flags; a pipe gets id, epoch and until when", async () => {
    const told = await out(
      ...["session", "spawn", "--workspace", "demo", "--agent", "ada", "--agent-version", "2"],
      ...["--agent-model", "large", "--ttl-ms", "30s"],
    );
    const [id, epoch, expires_at] = told.split("\t");
    expect([epoch, Number.isNaN(Date.parse(expires_at!))]).toEqual(["1", false]);
    expect(await json("session", "get", id!)).toMatchObject({
      agent_name: "ada",
      agent_version: "2",
      agent_model: "large",
      ttl_ms: 30_000,
    });
    await out("session", "end", id!, "cancelled");
  });

  test("a member that is missing or wrong is named by its flag", async () => {
    expect(await refused(2, "session", "spawn", "--workspace", "demo")).toContain("--agent is missing");
    expect(
      await refused(
        2,
        "session",
        "spawn",
        "--workspace",
        "demo",
        "--agent",
        "a",
        "--agent-version",
        "\u0001",
      ),
    ).toContain("--agent-version ");
    expect(await refused(2, "session", "fork", top, "planning_only", "--agent-version", "2")).toContain(
      "--agent",
    );
  });

  test("in a session that is named by the environment, its id and epoch need not be given", async () => {
    const id = await spawn("env");
    const env = { MP_SESSION_ID: id, MP_SESSION_EPOCH: "1" };
    const beat = await run(["session", "heartbeat"], { home, env });
    expect([beat.code, beat.stdout.split("\t").slice(0, 2)]).toEqual([0, [id, "1"]]);
    const stale = await run(["session", "heartbeat"], { home, env: { ...env, MP_SESSION_EPOCH: "7" } });
    expect([stale.code, stale.stderr.includes("session.stale_epoch")]).toEqual([5, true]);
    // The epoch is that session's: for another one it says nothing.
    const other = await run(["session", "heartbeat", top], { home, env });
    expect([other.code, other.stderr]).toEqual([2, expect.stringContaining("--epoch is missing")]);
    const ended = await run(["session", "end", id, "failed"], {
      home,
      env: { ...env, MP_SESSION_EPOCH: "7" },
    });
    expect(ended.code).toBe(5);
    expect((await run(["session", "end", id, "failed"], { home, env })).code).toBe(0);
    expect(await refused(2, "session", "heartbeat")).toContain("set MP_SESSION_ID");
  });

  test("nor where another word follows; and that word may be a flag", async () => {
    const id = await spawn("words");
    const env = { MP_SESSION_ID: id };
    const inside = async (...words: string[]) => {
      const { code, stdout, stderr } = await run(["session", ...words], { home, env });
      return [code, `${stdout}${stderr}`.trim()];
    };
    expect(await inside("report-status", "running")).toEqual([0, id]);
    expect(await inside("report-status", "--status", "waiting", "--waiting-for", "approval")).toEqual([
      0,
      id,
    ]);
    expect(await inside("report-status", "running", "--session", id)).toEqual([0, id]);
    expect(await inside("report-status", "waiting")).toEqual([
      2,
      expect.stringContaining("error: --waiting-for is missing\n  hint: say what it waits for: approval,"),
    ]);
    expect(await inside("end", id)).toEqual([
      2,
      expect.stringContaining("must be one of completed, failed, cancelled"),
    ]);
    expect(await inside("end", "completed")).toEqual([0, id]);
    const help = await out("session", "end", "--help");
    for (const part of ["end [SESSION] completed|failed|cancelled", "(or MP_SESSION_ID)", "(or --outcome)"])
      expect(help).toContain(part);
  });

  test("sentences", async () => {
    const said = await plainly([
      "session",
      "spawn",
      "--workspace",
      "demo",
      "--agent",
      "a",
      "--title",
      "said",
    ]);
    expect(said).toMatch(
      /^spawned session said \([0-9a-f-]{36}\), epoch 1, expires at \d{4}-\d\d-\d\d [\d:]{8}\n$/,
    );
    const id = /\(([0-9a-f-]{36})\)/.exec(said)![1]!;
    expect(await plainly(["session", "heartbeat", id, "--epoch", "1"])).toMatch(
      /^renewed: session [0-9a-f-]{36}, epoch 1, expires at /,
    );
    expect(await plainly(["session", "report-status", id, "running"])).toBe(
      `session ${id}: status reported\n`,
    );
    expect(await plainly(["session", "end", id, "completed"])).toBe(`ended session ${id}\n`);
  });

  test("the end of an id is enough, and so little of it is not", async () => {
    expect(await json("session", "get", top.slice(-8).toUpperCase())).toMatchObject({ session_id: top });
    expect(await json("session", "get", top.slice(-12))).toMatchObject({ session_id: top });
    expect(await refused(2, "session", "get", top.slice(-7))).toContain("is not the id of a session");
    expect(await refused(3, "session", "get", "00000000")).toContain(
      "no session whose id ends in '00000000'",
    );
  });
});

describe("session tree", () => {
  test("in a pipe: TSV in the order of the tree, with the depth", async () => {
    const rows = lines(await out("session", "tree", top)).map((line) => line.split("\t"));
    expect(rows.map(([depth, id, parent, status]) => [depth, id, parent, status])).toEqual([
      ["0", top, "", "starting"],
      ["1", left, top, "running"],
      ["2", below, left, "waiting"],
      ["1", right, top, "starting"],
    ]);
    expect(rows[0]!.slice(-2)).toEqual(["2", "waiting"]);
  });

  test("--json is the query's own answer", async () => {
    const answer = await json<{ items: { session_id: string; depth: number }[]; next: null }>(
      ...["session", "tree", top.slice(-8)],
    );
    expect(answer.items.map(({ session_id, depth }) => [session_id, depth])).toEqual([
      [top, 0],
      [left, 1],
      [below, 2],
      [right, 1],
    ]);
    expect(answer).toHaveProperty("as_of_seq");
  });

  test("at a terminal: branches, marks, states that line up, short ids", async () => {
    const rows = lines(await plainly(["session", "tree", top]));
    expect(rows.map((row) => row.split(/ {2,}/)[0])).toEqual([
      "◌ the plan (ada)",
      "├─ ● coder",
      "│",
      "└─ ◌ writer",
    ]);
    expect(rows[2]).toStartWith("│  └─ ◐ 漢字 tests (tester)  waiting for approval  ");
    for (const [at, id] of [top, left, below, right].entries())
      expect(rows[at]).toContain(`  ${id.slice(-8)}`);
    // The worst below, where it is worse than the row's own.
    expect(rows.map((row) => row.split(/ {2,}/).at(-1)!)).toEqual([
      "worst waiting",
      "worst waiting",
      below.slice(-8),
      right.slice(-8),
    ]);
    const columns = rows.map((row, at) =>
      Bun.stringWidth(row.slice(0, row.indexOf(["starting", "running", "waiting", "starting"][at]!))),
    );
    expect(new Set(columns).size).toBe(1);
  });

  test("--depth hides what is below, and says how many and how bad", async () => {
    const rows = lines(await plainly(["session", "tree", top, "--depth", "2"]));
    expect(rows).toHaveLength(3);
    expect(rows[1]).toEndWith("+ 1 below, worst waiting");
    expect(rows[2]).not.toContain("below");
    const one = lines(await plainly(["session", "tree", top, "--depth", "1"]));
    expect(one).toHaveLength(1);
    expect(one[0]).toEndWith("+ 3 below, worst waiting");
    const told = await json<{ items: { session_id: string }[] }>("session", "tree", top, "--depth", "1");
    expect(told.items.map(({ session_id }) => session_id)).toEqual([top]);
    expect(await refused(2, "session", "tree", "--depth", "0")).toContain("--depth");
    expect(JSON.parse(await refused(2, "session", "tree", "--depth", "0", "--json")).code).toBe(
      "invalid_schema",
    );
  });

  test("fits a narrow terminal, and what is deep is told by a number", async () => {
    for (const line of lines(await plainly(["session", "tree", top], 70)))
      expect(Bun.stringWidth(line)).toBeLessThanOrEqual(70);
    let parent = right;
    for (let depth = 0; depth < 14; depth++) parent = await spawn("deep", "--parent-session", parent);
    const rows = lines(await plainly(["session", "tree", top], 70));
    expect(rows.at(-1)).toContain("… 15 deep ─ ◌ deep");
    for (const line of rows) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(70);
  });

  test("states are coloured", async () => {
    const { shown } = await atTerminal(["session", "tree", left], { home });
    expect(shown).toContain("\u001b[32m●\u001b[39m coder");
    expect(shown).toContain("\u001b[33mworst waiting\u001b[39m");
  });
});

describe("what has ended", () => {
  let root: string;
  let ended: string;
  let deep: string;
  let gone: string;

  beforeAll(async () => {
    await out("workspace", "create", "ended");
    const begin = async (...args: string[]) =>
      (await out("session", "spawn", "--workspace", "ended", "--agent", "a", ...args)).split("\t")[0]!;
    root = await begin();
    ended = await begin("--parent-session", root);
    deep = await begin("--parent-session", ended);
    gone = await begin("--parent-session", ended);
    for (const id of [root, ended, gone]) await out("session", "report-status", id, "running");
    await out("session", "end", ended, "completed");
    await out("session", "end", gone, "failed");
  });

  const ids = (text: string) => [...text.matchAll(/ ([0-9a-f]{8})(?= |$)/gm)].map((found) => found[1]);
  const tails = (...all: string[]) => all.map((id) => id.slice(-8));

  test("is in the tree unless --live: then those that are there, and those above them", async () => {
    const tree = ["session", "tree", "--workspace", "ended"];
    const all = await plainly(tree);
    expect(ids(all)).toEqual(tails(root, ended, deep, gone));
    expect(lines(all).at(-1)).toBe("2 of 4 ended or are lost: --live hides them");
    expect(lines(all)[0]).toEndWith("  worst failed");
    const live = await plainly([...tree, "--live"]);
    expect(ids(live)).toEqual(tails(root, ended, deep));
    expect(lines(live).at(-1)).toBe("1 that ended or are lost are hidden: leave out --live to see them");
    const found = await json<{ items: { session_id: string }[] }>(...tree, "--live");
    expect(found.items.map(({ session_id }) => session_id)).toEqual([root, ended, deep]);
    expect(lines(await out(...tree, "--live"))).toHaveLength(3);
    expect(lines(await out(...tree))).toHaveLength(4);
  });

  test("is in the list, with a word about --live", async () => {
    const all = await plainly(["session", "list", "--workspace", "ended"]);
    expect(lines(all)).toHaveLength(6);
    expect(lines(all).at(-1)).toBe("2 of 4 ended or are lost: --live hides them");
    const live = await plainly(["session", "list", "--workspace", "ended", "--live"]);
    expect(ids(live)).toEqual(tails(root, deep));
    expect((await atTerminal(["session", "list", "--workspace", "ended"], { home })).shown).toContain(
      "\u001b[2m2 of 4 ended or are lost: --live hides them\u001b[22m",
    );
  });
});

test("a fork says of which session it is, in the tree and alone", async () => {
  const from = await spawn("first");
  const fork = (await out("session", "fork", from, "planning_only", "--title", "another way")).split(
    "\t",
  )[0]!;
  const row = lines(await plainly(["session", "tree", fork]))[0]!;
  expect(row).toEndWith(`  ${fork.slice(-8)}  fork of ${from.slice(-8)}`);
  // Where all of it does not fit, its own columns still do.
  const child = await spawn("child", "--parent-session", fork);
  for (const id of [fork, child]) await out("session", "report-status", id, "running");
  await out("session", "report-status", child, "waiting", "--waiting-for", "user_input");
  for (const columns of [70, 80, 100]) {
    const rows = lines(await plainly(["session", "tree", fork], columns));
    for (const each of rows.slice(0, 2)) expect(Bun.stringWidth(each)).toBeLessThanOrEqual(columns);
    expect([columns, rows[0]!.includes("fork of")]).toEqual([columns, columns > 80]);
    expect(rows[0]).toEndWith("worst waiting");
  }
  expect(await plainly(["session", "get", fork])).toMatch(
    new RegExp(`\\nfork +of ${from.slice(-8)} at #\\d+, planning_only\\n`),
  );
});

test("one session shows what it has made", async () => {
  const id = await spawn("maker");
  const path = `${home}/made.txt`;
  await Bun.write(path, "12345");
  const artifact = (await out("artifact", "upload", path, "--session", id)).split("\t")[0]!;
  const shown = await plainly(["session", "get", id]);
  expect(shown).toMatch(
    new RegExp(`\\n\\nartifacts\\nNAME .*\\nmade\\.txt +5 B +available +\\w+ +${artifact.slice(-8)}\\n$`),
  );
});

test("a list has the columns a person wants, in a pipe all of them", async () => {
  const [head] = lines(await plainly(["session", "list"], 140));
  expect(head!.split(/ {2,}/)).toEqual(["AGENT", "TITLE", "STATUS", "WAITING FOR", "CHANGED", "ID"]);
  expect(lines(await out("session", "list", "--status", "waiting"))[0]!.split("\t")).toHaveLength(25);
});

test("one session: a person sees what is there, a pipe gets every member", async () => {
  const shown = await plainly(["session", "get", top]);
  expect(shown).toMatch(/^title +the plan\nstatus +starting\nsession id +[0-9a-f-]{36}\nagent +ada\n/);
  expect(shown).toMatch(/\nttl +5m\n/);
  expect(shown).toMatch(/\nexpires at +\d{4}-\d\d-\d\d [\d:]{8} \(in \w+\)\n/);
  expect(shown).not.toContain("–");
  expect(lines(await out("session", "get", top)).map((line) => line.split("\t")[0])).toContain("exit_code");
});

test("help and near misses", async () => {
  expect(await refused(2, "session", "tre")).toContain("did you mean 'mp session tree'?");
  expect(await refused(2, "session", "spawn", "--agnet", "x")).toContain("did you mean --agent?");
  const help = await out("session", "tree", "--help");
  for (const part of ["mp session tree [ROOT]", "--depth N", "Examples:"]) expect(help).toContain(part);
});
