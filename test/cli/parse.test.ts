import { describe, expect, test } from "bun:test";
import { type Args, asking, changing, everywhere } from "../../src/cli/command.ts";
import { duration, parse } from "../../src/cli/parse.ts";
import { isProblem } from "../../src/kernel/problems.ts";

const args = {
  name: { type: "positional", required: true, description: "", valueHint: "NAME" },
  more: { type: "positional", description: "" },
  "root-path": { type: "string", description: "", valueHint: "PATH" },
  workspace: { type: "string", alias: ["workspace-id", "w"], env: "MP_WORKSPACE", description: "" },
  status: { type: "string", options: ["open", "closed"], description: "" },
  type: { type: "string", many: true, description: "" },
  lines: { type: "string", format: "count", alias: ["n"], description: "" },
  ttl: { type: "string", format: "milliseconds", description: "" },
  ratio: { type: "string", format: "number", description: "" },
  agent: { type: "string", format: "json", description: "" },
  write: { type: "boolean", negatable: true, description: "" },
  ...changing,
  ...asking,
  ...everywhere,
} as const satisfies Args;

const read = (line: readonly string[], env: Record<string, string> = {}) =>
  parse(line, args, "mp noun verb", env);

async function values(line: readonly string[], env: Record<string, string> = {}) {
  const found = await read(line, env);
  if (isProblem(found)) throw new Error(`${found.detail} / ${found.hint}`);
  return found;
}

async function refusal(line: readonly string[], env: Record<string, string> = {}) {
  const found = await read(line, env);
  if (!isProblem(found)) throw new Error(`taken: ${JSON.stringify(found)}`);
  expect(found.code).toBe("invalid_schema");
  return `${found.detail} | ${found.hint}`;
}

describe("what is taken", () => {
  test("flags before, between and behind positionals, in both spellings", async () => {
    const expected = { name: "demo", more: "x", "root-path": "/p", lines: 3, json: true };
    expect(await values(["--json", "demo", "--root-path", "/p", "x", "-n", "3"])).toMatchObject(expected);
    expect(await values(["--root-path=/p", "--lines=3", "demo", "x", "--json"])).toMatchObject(expected);
  });

  test("what is not given is undefined, a flag without a value false", async () => {
    const found = await values(["demo"]);
    expect(found).toMatchObject({ json: false, "no-spawn": false });
    expect(found.more).toBeUndefined();
    expect(found.workspace).toBeUndefined();
    expect(found.write).toBeUndefined();
  });

  test("after -- everything is a positional", async () => {
    expect(await values(["--", "--json", "-n"])).toMatchObject({ name: "--json", more: "-n", json: false });
  });

  test("a value that looks like a flag, with =", async () => {
    expect(await values(["demo", "--key=--json"])).toMatchObject({ key: "--json", json: false });
    expect(await values(["demo", "--root-path=a=b"])).toMatchObject({ "root-path": "a=b" });
  });

  test("a dash alone and a negative number are values", async () => {
    expect(await values(["-", "--ratio", "-1.5"])).toMatchObject({ name: "-", ratio: -1.5 });
  });

  test("a list: repeated, with commas, or both", async () => {
    expect(await values(["demo", "--type", "a.*", "--type=b.*,c.d"])).toMatchObject({
      type: ["a.*", "b.*", "c.d"],
    });
  });

  test("a flag that can be denied", async () => {
    expect(await values(["demo", "--write"])).toMatchObject({ write: true });
    expect(await values(["demo", "--no-write"])).toMatchObject({ write: false });
  });

  test("formats", async () => {
    expect(
      await values([
        "demo",
        "--ttl",
        "250ms",
        "--timeout",
        "2s",
        "--agent",
        '{"name":"x"}',
        "--expected-version",
        "0",
      ]),
    ).toMatchObject({ ttl: 250, timeout: 2_000, agent: { name: "x" }, "expected-version": 0 });
  });

  test("a positional as a flag of its name: the words are the others, in their order", async () => {
    expect(await values(["--name", "demo", "x"])).toMatchObject({ name: "demo", more: "x" });
    expect(await values(["demo", "--more=x"])).toMatchObject({ name: "demo", more: "x" });
    expect(await refusal(["--name", "demo", "x", "y"])).toMatch(/unexpected argument 'y'/);
    expect(await refusal(["--nmae", "demo"])).toMatch(/did you mean --name\?/);
    const command = { ...args, rest: { type: "positional", many: true, description: "" } } as const;
    expect(await parse(["a", "b", "--rest", "c"], command, "mp noun verb", {})).toMatchObject({
      detail: "unknown flag --rest",
    });
  });

  test("a first word with a fallback may be left out, where the others are there and the variable is set", async () => {
    const two = {
      task: { type: "positional", required: true, fallback: "MP_TASK_ID", description: "" },
      stage: { type: "positional", required: true, options: ["a", "b"], description: "" },
    } as const satisfies Args;
    const given = (words: readonly string[], env: Record<string, string> = { MP_TASK_ID: "env" }) =>
      parse(words, two, "mp noun verb", env);
    expect(await given(["a"])).toEqual({ stage: "a" });
    expect(await given(["--stage", "a"])).toEqual({ stage: "a" });
    expect(await given(["x", "a"])).toEqual({ task: "x", stage: "a" });
    expect(await given(["--task", "x", "a"])).toEqual({ task: "x", stage: "a" });
    expect(await given(["x"])).toMatchObject({ detail: "STAGE must be one of a, b" });
    expect(await given([])).toMatchObject({ detail: "TASK and STAGE are missing" });
    expect(await given(["--task", "x"])).toMatchObject({ detail: "STAGE is missing" });
    for (const env of [{}, { MP_TASK_ID: "" }])
      expect(await given(["a"], env as Record<string, string>)).toMatchObject({
        detail: "STAGE is missing",
      });
    expect(await given(["--stage", "a"], {})).toMatchObject({
      detail: "TASK is missing",
      hint: "give it, or set MP_TASK_ID; see 'mp noun verb --help'",
    });
  });

  test("flag before environment before nothing; an empty variable is not set", async () => {
    expect(await values(["demo", "-w", "flag"], { MP_WORKSPACE: "env" })).toMatchObject({
      workspace: "flag",
    });
    expect(await values(["demo"], { MP_WORKSPACE: "env" })).toMatchObject({ workspace: "env" });
    expect((await values(["demo"], { MP_WORKSPACE: "" })).workspace).toBeUndefined();
    expect(await values(["demo"], { MP_NO_SPAWN: "1", MP_TIMEOUT: "3s" })).toMatchObject({
      "no-spawn": true,
      timeout: 3_000,
    });
    expect(await values(["demo"], { MP_NO_SPAWN: "0" })).toMatchObject({ "no-spawn": false });
  });
});

describe("what is refused", () => {
  const rows: readonly (readonly [readonly string[], RegExp])[] = [
    [
      ["demo", "--root-pth", "/p"],
      /unknown flag --root-pth \| did you mean --root-path\? see 'mp noun verb --help'/,
    ],
    [["demo", "--xyzzy"], /unknown flag --xyzzy \| see/],
    [["demo", "-x"], /unknown flag -x/],
    [["demo", "--lin", "3"], /unknown flag --lin /],
    [["demo", "-n3"], /unknown flag -n3/],
    [["demo", "--no-json"], /unknown flag --no-json/],
    [["demo", "--root-path"], /--root-path needs a value/],
    [["demo", "--root-path="], /--root-path needs a value/],
    [["demo", "--root-path", ""], /--root-path needs a value/],
    [
      ["demo", "--root-path", "--json"],
      /--root-path needs a value \| if '--json' is the value, write --root-path='--json'/,
    ],
    [["demo", "--json=yes"], /--json takes no value/],
    [["demo", "--key", "a", "--key", "b"], /--key is given twice/],
    [["demo", "--write", "--no-write"], /--write and --no-write exclude each other/],
    [["demo", "--type", "a,,b"], /--type has an empty value/],
    [["demo", "--status", "opn"], /--status must be one of open, closed/],
    [["demo", "--lines", "-3"], /--lines must be a whole number/],
    [["demo", "--lines", "1e3"], /--lines must be a whole number/],
    [["demo", "--lines", "99999999999999999"], /--lines must be a whole number/],
    [["demo", "--timeout", "soon"], /--timeout must be a time such as/],
    [["demo", "--ratio", "0x10"], /--ratio must be a number/],
    [["demo", "--agent", "{"], /--agent must be JSON/],
    [[], /NAME is missing/],
    [[""], /NAME is empty/],
    [["a", "b", "c"], /unexpected argument 'c'/],
    [["a", "b", "status"], /unexpected argument 'status' \| did you mean --status\?/],
  ];
  for (const [line, says] of rows)
    test(JSON.stringify(line), async () => {
      expect(await refusal(line)).toMatch(says);
    });

  test("a wrong environment variable is named", async () => {
    expect(await refusal(["demo"], { MP_TIMEOUT: "soon" })).toMatch(
      /the environment variable MP_TIMEOUT must be a time/,
    );
  });
});

test("durations", () => {
  const taken: Readonly<Record<string, number>> = {
    "250ms": 250,
    "5s": 5_000,
    "1m30s": 90_000,
    "1.5s": 1_500,
    "2h": 7_200_000,
    "30d": 2_592_000_000,
    "7": 7_000,
    "0.2": 200,
    "0s": 0,
  };
  for (const [text, ms] of Object.entries(taken)) expect([text, duration(text)]).toEqual([text, ms]);
  for (const text of ["", "s", "5 s", "-5s", "5x", "1e3", "5S", "99999999999d", ".5s"])
    expect([text, duration(text)]).toEqual([text, undefined]);
});
