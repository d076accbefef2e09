/** Boards from the command line: lanes in short form, nodes by what they stand for, the board as a person sees it. */
import { beforeAll, describe, expect, test } from "bun:test";
import { binary, tempHome, waitFor } from "../support/binary.ts";
import { atTerminal, cli, lines } from "./cli.ts";

const home = tempHome();
const { out, json, refused } = cli(home);
const plainly = async (args: readonly string[], columns = 100) =>
  (await atTerminal(args, { home, columns, env: { NO_COLOR: "1" } })).shown;

interface Lane {
  readonly lane_id: string;
  readonly name: string;
  readonly stage: string | null;
  readonly wip_limit: number | null;
}
const lanesOf = async (board: string) => (await json<{ lanes: Lane[] }>("board", "get", board)).lanes;
const shapes = (lanes: readonly Lane[]) =>
  lanes.map(({ name, stage, wip_limit }) => [name, stage, wip_limit]);

/** Puts a node on a board and gives its id. */
async function add(board: string, lane: string, ...args: string[]): Promise<string> {
  return (await out("board", "add-node", board, lane, ...args)).split("\t")[1]!;
}

beforeAll(async () => {
  await out("workspace", "create", "demo");
  await out("project", "create", "core", "--workspace", "demo");
});

describe("lanes", () => {
  test("in short form, and as JSON", async () => {
    await out(
      ...["board", "create", "short", "--workspace", "demo"],
      ...["--lane", "todo", "--lane", "doing:in progress:3", "--lane", "done::9"],
    );
    expect(shapes(await lanesOf("short"))).toEqual([
      ["todo", null, null],
      ["doing", "in progress", 3],
      ["done", null, 9],
    ]);
    await out(
      ...["board", "create", "json", "--workspace", "demo"],
      ...["--lanes", '[{"name":"a:b, c"},{"name":"d","stage":"e","wip_limit":1}]'],
    );
    expect(shapes(await lanesOf("json"))).toEqual([
      ["a:b, c", null, null],
      ["d", "e", 1],
    ]);
  });

  test("what is no lane is refused", async () => {
    const create = (...args: string[]) =>
      refused(2, "board", "create", "bad", "--workspace", "demo", ...args);
    expect(await create()).toContain("--lane is missing");
    expect(await create("--lane", "a:b:c")).toContain("'a:b:c' is not NAME[:STAGE[:LIMIT]]");
    expect(await create("--lane", "a::0")).toContain("--lane (number 1, wip_limit)");
    expect(await create("--lane", "[{")).toContain("--lane must be");
  });

  test("update-lanes keeps the lanes of the same name, with what they have, and renames with =", async () => {
    await out(
      "board",
      "create",
      "change",
      "--workspace",
      "demo",
      "--lane",
      "a:s:2",
      "--lane",
      "b",
      "--lane",
      "c",
    );
    const [a, b] = await lanesOf("change");
    await out("board", "update-lanes", "change", "--lane", "B=bee", "--lane", "new", "--lane", "A::");
    const [bee, fresh, after] = await lanesOf("change");
    expect(shapes([bee!, fresh!, after!])).toEqual([
      ["bee", null, null],
      ["new", null, null],
      ["A", null, null],
    ]);
    expect([bee!.lane_id, after!.lane_id]).toEqual([b!.lane_id, a!.lane_id]);
    expect(await refused(3, "board", "update-lanes", "change", "--lane", "nobody=x")).toContain(
      "no lane 'nobody'",
    );
  });
});

describe("nodes", () => {
  test("by the name of a lane, by what they stand for, beside others", async () => {
    await out("board", "create", "nodes", "--workspace", "demo", "--lane", "todo", "--lane", "doing:doing");
    const task = await out("task", "create", "a task", "--project", "core");
    const node = await add("nodes", "TODO", "task", "--ref", task.slice(-8));
    const note = await add("nodes", "todo", "comment", "--text", "mind the gap");
    await out("board", "move-node", "nodes", note, "todo", "--before", task);
    const order = async () => lines(await out("board", "show", "nodes")).map((line) => line.split("\t")[5]);
    expect(await order()).toEqual([note, node]);
    await out("board", "move-node", "nodes", task.slice(-8), "doing");
    expect(await json("task", "get", task)).toMatchObject({ stage: "doing" });
    await out("board", "remove-node", "nodes", node.slice(-10));
    expect(await order()).toEqual([note]);
    expect(await refused(3, "board", "remove-node", "nodes", node)).toMatch(
      /nothing on the board is [\s\S]*hint: 'mp board show [0-9a-f-]{36}'/,
    );
    expect(await refused(3, "board", "move-node", "nodes", note, "nowhere")).toContain("it has todo, doing");
  });

  test("a name that two workspaces have", async () => {
    await out("workspace", "create", "other");
    await out("board", "create", "twin", "--workspace", "demo", "--lane", "a");
    await out("board", "create", "twin", "--workspace", "other", "--lane", "b");
    expect(await refused(2, "board", "show", "twin")).toContain("more than one board is named 'twin'");
    expect(await plainly(["board", "show", "twin", "--workspace", "other"])).toContain("b 0");
  });
});

describe("board show", () => {
  let tasks: string[];

  beforeAll(async () => {
    await out(
      "board",
      "create",
      "sprint",
      "--workspace",
      "demo",
      "--lane",
      "todo",
      "--lane",
      "doing:doing:1",
      "--lane",
      "done",
    );
    tasks = [];
    for (const title of ["漢字 and a title that is longer than any lane is wide", "two", "three"])
      tasks.push(await out("task", "create", title, "--project", "core"));
    await add("sprint", "todo", "task", "--ref", tasks[0]!);
    await add("sprint", "doing", "task", "--ref", tasks[1]!);
    await add("sprint", "doing", "task", "--ref", tasks[2]!);
  });

  test("lanes side by side, heads with their count, cards of two lines", async () => {
    const rows = lines(await plainly(["board", "show", "sprint"], 90));
    expect(rows[0]).toMatch(/^sprint {2}[0-9a-f]{8} {2}as of #\d+$/);
    expect(rows[1]!.split(/ {2,}/)).toEqual(["todo 1", "doing 2/1 over", "done 0"]);
    expect(rows[2]).toMatch(/^─+ {2}─+ {2}─+$/);
    expect(rows[3]).toMatch(/^● 漢字 and a title.*… {2}● two {2,}nothing$/);
    expect(rows[4]!.trim().split(/ {2,}/)).toEqual([
      `task queued ${tasks[0]!.slice(-8)}`,
      `task queued ${tasks[1]!.slice(-8)}`,
    ]);
    for (const row of rows) expect(Bun.stringWidth(row)).toBeLessThanOrEqual(90);
    // The second lane begins where its line does, also behind letters of two columns.
    const column = rows[2]!.indexOf("─  ─") + 3;
    expect(Bun.stringWidth(rows[3]!.slice(0, rows[3]!.indexOf("● two")))).toBe(column);
  });

  test("below each other where that is too narrow", async () => {
    const rows = lines(await plainly(["board", "show", "sprint"], 51));
    expect(rows.filter((row) => /^(todo|doing|done) /.test(row))).toEqual([
      "todo 1",
      "doing 2/1 over",
      "done 0",
    ]);
    expect(rows).toContain("● three");
    for (const row of rows) expect(Bun.stringWidth(row)).toBeLessThanOrEqual(51);
  });

  test("six lanes of 16 columns are side by side, and each card stays in its lane", async () => {
    const names = ["todo", "doing", "review", "test", "ship", "done"];
    const lanes = names.flatMap((name) => ["--lane", name]);
    await out("board", "create", "six", "--workspace", "demo", ...lanes);
    await add("six", "todo", "task", "--ref", tasks[0]!);
    await add("six", "doing", "task", "--ref", tasks[1]!);
    const done = await out("task", "create", "   ", "--project", "core");
    await out("task", "cancel", done);
    await add("six", "done", "task", "--ref", done);
    const rows = lines(await plainly(["board", "show", "six"], 106));
    expect(rows[1]!.split(/ {2,}/)).toEqual(names.map((name, at) => `${name} ${at < 2 || at === 5 ? 1 : 0}`));
    expect(rows[2]).toBe(names.map(() => "─".repeat(16)).join("  "));
    expect(rows[3]).toEndWith('● "   "');
    expect(rows[4]).toMatch(
      new RegExp(
        `^queued ${tasks[0]!.slice(-8)} {3}queued ${tasks[1]!.slice(-8)} +cancel… ${done.slice(-8)}$`,
      ),
    );
    for (const row of rows) expect(Bun.stringWidth(row)).toBeLessThanOrEqual(106);
    // One column less, and they are below each other.
    expect(lines(await plainly(["board", "show", "six"], 105))[1]).toBe("todo 1");
  });

  test("a node that is put somewhere is said with the name of the lane", async () => {
    await out("board", "create", "said", "--workspace", "demo", "--lane", "todo", "--lane", "in work");
    const said = await plainly(["board", "add-node", "said", "TODO", "comment", "--text", "x"], 200);
    expect(said).toMatch(
      /^board said \([0-9a-f-]{36}\): node added to todo, node id ([0-9a-f-]{36}), rank \S+\n$/,
    );
    const node = /node id (\S+),/.exec(said)![1]!;
    expect(await plainly(["board", "move-node", "said", node, "in work"], 200)).toMatch(
      /^board said \([0-9a-f-]{36}\): node moved to in work, rank \S+\n$/,
    );
  });

  test("--limit and --lane; what is left out is counted", async () => {
    const rows = lines(await plainly(["board", "show", "sprint", "--lane", "doing", "--limit", "1"], 60));
    expect(rows.slice(1)).toEqual([
      "doing 2/1 over",
      "─".repeat(60),
      "● two",
      `  task queued ${tasks[1]!.slice(-8)}`,
      "+ 1 more",
    ]);
    expect(lines(await out("board", "show", "sprint", "--limit", "1"))).toHaveLength(2);
  });

  test("too many cards are red", async () => {
    expect((await atTerminal(["board", "show", "sprint"], { home })).shown).toContain(
      "\u001b[31m2/1 over\u001b[39m",
    );
  });

  test("in a pipe: TSV, lane by lane in the order of the ranks; --json: the whole snapshot", async () => {
    const rows = lines(await out("board", "show", "sprint")).map((line) => line.split("\t"));
    expect(rows.map(([lane, , kind, status, title, , ref]) => [lane, kind, status, title, ref])).toEqual([
      ["todo", "task", "queued", "漢字 and a title that is longer than any lane is wide", tasks[0]!],
      ["doing", "task", "queued", "two", tasks[1]!],
      ["doing", "task", "queued", "three", tasks[2]!],
    ]);
    const whole = await json<{ nodes: unknown[]; lanes: unknown[]; edges: unknown[] }>(
      "board",
      "show",
      "sprint",
    );
    expect([whole.nodes.length, whole.lanes.length, whole.edges.length]).toEqual([3, 3, 0]);
    expect(await json("board", "snapshot", "sprint")).toMatchObject({ next: null });
  });

  test("--follow draws again when a card moves or its task changes; Ctrl-C ends it", async () => {
    let shown = "";
    const follow = () =>
      Bun.spawn([binary(), "board", "show", "sprint", "--follow"], {
        env: { ...process.env, TERM: "dumb", MP_HOME: home },
        terminal: {
          cols: 90,
          rows: 30,
          data(_terminal, data) {
            shown += new TextDecoder().decode(data);
          },
        },
      });
    const child = follow();
    const last = () => shown.slice(shown.lastIndexOf("as of #"));
    await waitFor(() => last().includes("done 0"), { what: "the board" });
    const id = await out("task", "create", "moves", "--project", "core");
    const node = await add("sprint", "todo", "task", "--ref", id);
    await waitFor(() => last().includes("todo 2"), { what: "the new card" });
    await out("board", "move-node", "sprint", node, "done");
    await waitFor(() => last().includes("done 1"), { what: "the card in its new lane" });
    await out("task", "cancel", id);
    await waitFor(() => last().includes("task cancelled"), { what: "the new status" });
    child.terminal?.write("\u0003");
    expect(await child.exited).toBe(130);
    child.terminal?.close();
    shown = "";
    const another = follow();
    await waitFor(() => last().includes("done 1"), { what: "the board again" });
    another.kill("SIGTERM");
    expect(await another.exited).toBe(143);
    another.terminal?.close();
    await out("board", "remove-node", "sprint", node);
    expect(await refused(2, "board", "show", "sprint", "--follow")).toContain("at a terminal");
  });

  test("near misses", async () => {
    expect(await refused(2, "board", "shwo", "sprint")).toContain("did you mean 'mp board show'?");
    expect(await refused(3, "board", "show", "nowhere")).toContain("there is no board named 'nowhere'");
  });
});
