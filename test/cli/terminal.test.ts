/** What a person at a terminal sees: tables, colour, sentences, bars; and what must never reach a terminal. */
import { beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ago, cut, cutPath, drawRecord, drawTable, pad, span } from "../../src/cli/terminal.ts";
import { binary, tempHome } from "../support/binary.ts";
import { atTerminal, cli, fill, lines } from "./cli.ts";

const home = tempHome();
const { out } = cli(home);
const ESC = "\u001b";

beforeAll(async () => {
  await out("workspace", "create", "demo");
  await out("workspace", "create", "Grün");
  await out("workspace", "close", "Grün");
});

const at = async (...args: string[]) => (await atTerminal(args, { home })).shown;
const plainly = async (...args: string[]) => (await atTerminal(args, { home, env: { NO_COLOR: "1" } })).shown;

describe("tables", () => {
  test("have a head and columns that line up, also behind letters of other widths", async () => {
    const [head, demo, gruen, ...rest] = (await plainly("workspace", "list")).split("\n");
    expect(rest).toEqual([""]);
    expect(head!.split(/ {2,}/)).toEqual(["NAME", "STATUS", "ROOT PATH", "ID"]);
    expect(demo!.indexOf("open")).toBe(head!.indexOf("STATUS"));
    expect(gruen!.indexOf("closed")).toBe(head!.indexOf("STATUS"));
  });

  test("are coloured, unless NO_COLOR or a dumb terminal", async () => {
    expect(await at("workspace", "list")).toContain(`${ESC}[32mopen${ESC}[39m`);
    for (const env of [{ NO_COLOR: "1" }, { TERM: "dumb" }])
      expect((await atTerminal(["workspace", "list"], { home, env })).shown).not.toContain(ESC);
    expect((await cli(home).mp("workspace", "list")).stdout).not.toContain(ESC);
  });

  test("fit the terminal: long cells are cut, ids are not", async () => {
    const here = tempHome();
    const deep = join(here, "a-rather-long-folder-name".repeat(3));
    mkdirSync(deep);
    const id = await cli(here).out("workspace", "create", "n".repeat(60), "--root-path", deep);
    const { shown } = await atTerminal(["workspace", "list"], {
      home: here,
      columns: 80,
      env: { NO_COLOR: "1" },
    });
    for (const line of shown.split("\n")) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(80);
    expect(shown).toContain(id.slice(-8));
    expect(shown).toContain("…");
  });

  test("cut paths in front, between two folders: their ends tell them apart; and names last", async () => {
    const here = tempHome();
    const deep = join(here, "a-rather-long-folder-name".repeat(3));
    const named = "n".repeat(30);
    for (const name of ["one", "two"]) {
      mkdirSync(join(deep, `app-${name}`), { recursive: true });
      await cli(here).out(
        "workspace",
        "create",
        `${named}-${name}`,
        "--root-path",
        join(deep, `app-${name}`),
      );
    }
    const rows = lines(
      (await atTerminal(["workspace", "list"], { home: here, columns: 80, env: { NO_COLOR: "1" } })).shown,
    );
    expect(rows.slice(1).map((row) => row.split(/ {2,}/).slice(0, 3))).toEqual([
      [`${named}-one`, "open", "…/app-one"],
      [`${named}-two`, "open", "…/app-two"],
    ]);
  });

  test("leave out columns that say nothing where they are too wide, and only there", async () => {
    const here = tempHome();
    await cli(here).out("workspace", "create", "demo");
    const spawn = ["session", "spawn", "--workspace", "demo", "--agent", "ada", "--title", "t".repeat(40)];
    await cli(here).out(...spawn);
    const head = async (columns: number) =>
      (await atTerminal(["session", "list"], { home: here, columns, env: { NO_COLOR: "1" } })).shown
        .split("\n")[0]!
        .split(/ {2,}/);
    expect(await head(120)).toEqual(["AGENT", "TITLE", "STATUS", "WAITING FOR", "CHANGED", "ID"]);
    expect(await head(80)).toEqual(["AGENT", "TITLE", "STATUS", "CHANGED", "ID"]);
  });

  test("short ids in every list, which commands take; all of an id in a pipe", async () => {
    const here = cli(tempHome());
    const ids = [
      ["workspace", await here.out("workspace", "create", "demo")],
      ["project", await here.out("project", "create", "core", "--workspace", "demo")],
      ["board", await here.out("board", "create", "b", "--workspace", "demo", "--lane", "todo")],
    ] as const;
    for (const [kind, id] of ids) {
      const { shown } = await atTerminal([kind, "list"], { home: here.home, env: { NO_COLOR: "1" } });
      expect(lines(shown)[1]).toEndWith(`  ${id.slice(-8)}`);
      expect(shown).not.toContain(id);
      expect(await here.out(kind, "list")).toContain(id);
    }
  });

  test("show a name of spaces in quotes", async () => {
    const here = cli(tempHome());
    await here.out("workspace", "create", "   ");
    const show = async (...args: string[]) =>
      (await atTerminal(args, { home: here.home, env: { NO_COLOR: "1" } })).shown;
    expect(lines(await show("workspace", "list"))[1]).toStartWith('"   "  open');
    expect(await show("workspace", "get", "   ")).toStartWith('name          "   "\n');
    expect(await show("workspace", "close", "   ")).toStartWith('closed workspace "   " (');
    expect(await here.out("workspace", "list")).toContain("\t   \t");
  });

  test("without rows say so on stderr, and print nothing in a pipe", async () => {
    expect(await plainly("project", "list")).toBe("no project matches\n");
  });

  test("--json is indented for a person", async () => {
    const shown = await at("workspace", "get", "demo", "--json");
    expect(shown).toMatch(/^\{\n {2}"as_of_seq": 3,\n/);
    expect(JSON.parse(shown)).toMatchObject({ name: "demo" });
  });
});

describe("one thing", () => {
  test("has its members on lines, and lists of structures as tables below", () => {
    const drawn = drawRecord(
      { name: "n", none: null, empty: [], claim: { epoch: 1, by: null }, rows: [{ id: 1, mode: "read" }] },
      false,
    );
    expect(drawn).toBe("name   n\nnone   –\nempty  –\nclaim  epoch 1, by –\n\nrows\nID  MODE\n1   read\n");
  });

  test("a text is cut by columns, not by characters", () => {
    expect(cut("漢字漢字", 8)).toBe("漢字漢字");
    expect(cut("漢字漢字", 7)).toBe("漢字漢…");
    expect(cut("漢字漢字", 6)).toBe("漢字…");
    expect([cut("abc", 1), cut("abc", 0), pad("漢", 4)]).toEqual(["…", "", "漢  "]);
  });

  test("what matters comes first: its name, how it is, its id; times have their age", async () => {
    const shown = await plainly("workspace", "get", "demo");
    expect(shown).toMatch(
      /^name +demo\nstatus +open\nworkspace id +[0-9a-f-]{36}\ncreated at +\d{4}-\d\d-\d\d [\d:]{8} \(\w+ ago\)\nupdated at /,
    );
    expect(shown).not.toContain("version");
  });

  test("a path is cut in front, between two folders where it can be", () => {
    expect(cutPath("/a/b/app-feature", 16)).toBe("/a/b/app-feature");
    expect(cutPath("/a/b/app-feature", 14)).toBe("…/app-feature");
    expect(cutPath("/a/b/app-feature", 13)).toBe("…/app-feature");
    expect(cutPath("/a/b/app-feature", 8)).toBe("…feature");
    expect([cutPath("/漢/漢字", 6), cutPath("/漢/漢字", 5), cutPath("/abc", 0)]).toEqual([
      "…/漢字",
      "…漢字",
      "",
    ]);
  });

  test("lengths of time in units, all that they have; ages in two", () => {
    expect([0, 250, 60_000, 90_000, 28_800_000, 90_061_001].map(span)).toEqual([
      "0s",
      "250ms",
      "1m",
      "1m30s",
      "8h",
      "1d1h1m1s1ms",
    ]);
    const before = (ms: number) => ago(new Date(Date.now() - ms).toISOString());
    expect([before(7_200_000), before(7_500_000), before(0)]).toEqual(["2h", "2h5m", "0s"]);
  });

  test("cells as their columns want them", () => {
    const at = new Date(Date.now() - 7_500_000).toISOString();
    const columns = [
      { name: "priority", as: "priority" },
      { name: "size", as: "bytes" },
      { name: "id", as: "short" },
      { name: "at", as: "age" },
    ] as const;
    const row = { priority: 1, size: 1_536, id: "0198-0123456789ab", at };
    const [, cells] = drawTable([row], columns, false).split("\n");
    expect(cells).toMatch(/^P1 +2 KiB {2}456789ab {2}2h5m$/);
    expect(drawTable([{ ...row, size: null, at: null }], columns, false)).toMatch(/\nP1 +– +456789ab {2}–\n/);
  });
});

describe("sentences", () => {
  test("say what has happened, by name and id", async () => {
    expect(await at("workspace", "create", "spoken")).toMatch(
      /^created workspace spoken \([0-9a-f-]{36}\)\n$/,
    );
    expect(await at("workspace", "close", "spoken", "--key", "s")).toMatch(/^closed workspace spoken \(/);
    expect(await at("workspace", "close", "spoken")).toMatch(/^nothing changed: workspace spoken \(/);
    expect(await at("workspace", "close", "spoken", "--key", "s")).toMatch(
      /; it was done before, under this key\n$/,
    );
  });

  test("a first command says that it started the daemon", async () => {
    const { shown } = await atTerminal(["workspace", "create", "first"], { home: tempHome() });
    expect(shown).toMatch(/^started the daemon \(pid \d+\)\ncreated workspace first /);
  });

  test("errors: the word in red, the code, the hint", async () => {
    const { code, shown } = await atTerminal(["workspace", "create", "DEMO"], { home });
    expect(code).toBe(5);
    expect(shown).toContain(`${ESC}[31merror:${ESC}[39m`);
    expect(Bun.stripANSI(shown)).toMatch(
      /^error: another workspace has that name\n {2}code: conflict, workspace\.name_taken\n {2}workspace_id: .*\n {2}hint: choose another name/,
    );
  });

  test("status, ping, version, help are for reading", async () => {
    expect(await plainly("daemon", "status")).toMatch(
      /^state +running\npid +\d+\n[\s\S]*projections +all serving\n/,
    );
    expect(await plainly("daemon", "ping")).toMatch(/^pong from \S+, log at \d+, [\d.]+ ms\n$/);
    expect(await plainly("version")).toMatch(/^mp \d+\.\d+\.\d+ \(/);
    expect(await at()).toContain(`${ESC}[1mUsage:${ESC}[22m`);
  });

  test("logs are lines with a time, a level and a message", async () => {
    expect(await plainly("daemon", "logs", "-n", "3")).toMatch(
      /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ info {2}/m,
    );
  });
});

describe("events", () => {
  test("are one line each: when, where, what, whom, by whom", async () => {
    const shown = await plainly("events", "tail", "--from-start", "--count", "2");
    expect(shown).toMatch(
      /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d #1 +workspace\.created +demo by \S+\n.* #2 +workspace\.created +Grün by /,
    );
  });

  test("a tail that waits says so; Ctrl-C at the keyboard ends it with 130", async () => {
    let shown = "";
    const child = Bun.spawn([binary(), "events", "tail"], {
      env: { ...process.env, MP_HOME: home },
      terminal: {
        data(terminal, data) {
          shown += new TextDecoder().decode(data);
          if (shown.includes("waiting for what comes after #")) terminal.write("\u0003");
        },
      },
    });
    expect(await child.exited).toBe(130);
    child.terminal?.close();
  });
});

describe("long work", () => {
  test("shows a bar at a terminal when it takes long enough, and takes it away again", async () => {
    const here = tempHome();
    await cli(here).out("daemon", "start");
    await fill(here, 40_000);
    const { code, shown } = await atTerminal(["log", "verify"], { home: here });
    expect(code).toBe(0);
    expect(shown).not.toContain('{"progress"');
    expect(Bun.stripANSI(shown)).toMatch(/ok +true\nevents +40000\n/);
  }, 60_000);
});

test("what the log holds cannot talk to the terminal", async () => {
  const here = tempHome();
  const evil = join(here, `x${ESC}]0;owned\u0007${ESC}[31mred\u202e`);
  mkdirSync(evil);
  await cli(here).out("workspace", "create", "evil", "--root-path", evil);
  for (const args of [
    ["workspace", "list"],
    ["workspace", "get", "evil"],
    ["events", "tail", "--no-follow"],
  ]) {
    const { shown } = await atTerminal(args, { home: here, columns: 300, env: { NO_COLOR: "1" } });
    expect([args, shown.includes(ESC), shown.includes("\u0007"), shown.includes("\u202e")]).toEqual([
      args,
      false,
      false,
      false,
    ]);
    expect(shown).toMatch(/x(\\x1b|\\u001b)\]0;owned/);
  }
  // A pipe gets what is there: it is a program that reads it.
  expect(await cli(here).out("workspace", "list")).toContain(`${ESC}]0;owned`);
});
