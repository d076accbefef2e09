/** Every exit code, every way to mistype: the code, a silent stdout, and words that help (SPEC §3, §12). */
import { beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { isProblem } from "../../src/kernel/problems.ts";
import { run, tempHome, waitFor } from "../support/binary.ts";
import { cli, fill, shell } from "./cli.ts";

const ID = "01a20000-0000-7000-8000-000000000000";
const home = tempHome();
const { mp, out, json, refused } = cli(home);

beforeAll(async () => {
  await out("workspace", "create", "demo");
  await out("project", "create", "core", "--workspace", "demo");
});

describe("the command line itself: exit code 2", () => {
  const rows: readonly (readonly [readonly string[], string])[] = [
    [["wrokspace", "list"], "did you mean 'mp workspace'?"],
    [["workspaces"], "did you mean 'mp workspace'?"],
    [["frobnicate"], "there is no command 'mp frobnicate'"],
    [["__proto__"], "there is no command 'mp __proto__'"],
    [["workspace"], "mp workspace needs a verb"],
    [["daemon"], "mp daemon needs a verb"],
    [["workspace", "craete", "x"], "did you mean 'mp workspace create'?"],
    [["workspace", "constructor"], "has no verb 'constructor'"],
    [["workspace", "create"], "NAME is missing"],
    [["workspace", "create", ""], "NAME is empty"],
    [["workspace", "create", "a", "b"], "unexpected argument 'b'"],
    [["workspace", "create", "a", "--root-pth", "."], "did you mean --root-path?"],
    [["session", "spawn", "--parent", "x"], "did you mean --parent-session?"],
    [["workspace", "create", "a", "--root-path"], "--root-path needs a value"],
    [["workspace", "create", "a", "--root-path="], "--root-path needs a value"],
    [["workspace", "create", "a", "--key", "x", "--key", "y"], "--key is given twice"],
    [["workspace", "create", "a", "--expected-version", "one"], "--expected-version must be a whole number"],
    [["workspace", "list", "--key", "x"], "unknown flag --key"],
    [["workspace", "list", "--status", "opn"], "--status must be one of open, closed"],
    [["workspace", "list", "--limit", "0"], "--limit must be at least 1"],
    [["workspace", "list", "--limit", "-1"], "--limit must be a whole number"],
    [["workspace", "list", "--cursor", "nonsense"], "--cursor must be the 'next' of an earlier page"],
    [["workspace", "create", "a\nb"], "NAME must be 1–128 characters"],
    [["workspace", "create", "x".repeat(129)], "128 characters"],
    [["workspace", "create", "a", "--key", "schlüssel"], "--key must be 1–200 printable ASCII"],
    [["workspace", "create", "a", "--trace-id", "42"], "--trace-id must be 32 hex digits"],
    [["workspace", "get", "a\u0007b"], "is neither the id nor the name of a workspace"],
    [["project", "create", "x"], "--workspace is missing"],
    [["project", "create"], "NAME and --workspace are missing"],
    [["session", "end"], "SESSION and completed|failed|cancelled are missing"],
    [["session", "report-status", "x", "runing"], "did you mean 'running'?"],
    [["session", "fork", "x", "same_branh"], "did you mean 'same_branch'?"],
    [["session", "list", "--status", "runing"], "did you mean 'running'?"],
    [["worktree", "rm", "x"], "did you mean 'mp worktree remove'?"],
    [["task", "ls"], "did you mean 'mp task list'?"],
    [["task", "show", "x"], "did you mean 'mp task get'?"],
    [["task", "delete", "x"], "did you mean 'mp task cancel'?"],
    [["project", "add", "x"], "did you mean 'mp project create'?"],
    [["workspace", "list", "--timeout", "5"], "--timeout must be a time with its unit: 5s, 5m or 5ms, not 5"],
    [
      ["session", "spawn", "--workspace", "demo", "--agent", "a", "--ttl-ms", "5"],
      "--ttl-ms must be at least 1s",
    ],
    [
      ["session", "spawn", "--workspace", "demo", "--agent", "a", "--ttl-ms", "2d"],
      "--ttl-ms must be at most 24h",
    ],
    [
      ["session", "report-status", ID, "idle", "--waiting-for", "approval"],
      "the request must have --waiting-for if the status is waiting",
    ],
    [["project", "create", "x", "--workspace"], "--workspace needs a value"],
    [["--jsno"], "did you mean --json?"],
    [["--timeout", "5s"], "a noun is missing"],
    [["daemon", "start", "--timeout", "soon"], "--timeout must be a time"],
    [["daemon", "logs", "-n", "many"], "-n must be a whole number"],
    [["daemon", "status", "--follow"], "unknown flag --follow"],
    [["events", "tail", "--after", "5", "--from-start"], "--after and --from-start exclude each other"],
    [["events", "tail", "--after", "-1"], "--after must be a whole number"],
    [["events", "tail", "--since", "yesterday"], "--since must be a length of time or a time"],
    [["events", "tail", "--count", "0"], "--count must be 1 or more"],
    [["events", "tail", "--until-idle", "x"], "--until-idle must be a time"],
    [["events", "tail", "--type", "a.b,Task.*", "--no-follow"], "--type (number 2) "],
    [["events", "tail", "--type", ""], "--type needs a value"],
    [["events", "tail", "--subject-kind", "X", "--no-follow"], "--subject-kind"],
    [["events", "tail", "--stream", "nokind"], "has no kind"],
    [
      ["events", "tail", "--stream", "planet/abc"],
      "there is no kind 'planet'; there are workspace, project, session",
    ],
    [
      ["events", "list", "--stream", "planet/abc"],
      "there is no kind 'planet'; there are workspace, project, session",
    ],
    [["events", "list", "--after", "5", "--since", "1h"], "--after and --since exclude each other"],
    [["events", "list", "--after", "0", "--cursor", "5"], "--after and --cursor exclude each other"],
    [["events", "list", "--since", "1h", "--cursor", "5"], "--since and --cursor exclude each other"],
    [["events", "list", "--from-start", "--cursor", "5"], "--cursor and --from-start exclude each other"],
    [["workspace", "create", "a", "--root-path", "/dev/null"], "--root-path: '/dev/null' is no folder"],
    [["workspace", "list", "--timeout", "0"], "--timeout must be a time"],
    [["events", "tail", "--timeout", "0ms"], "--timeout must be a time"],
    [["daemon", "stop", "--timeout", "0s"], "--timeout must be a time"],
    [["events", "list", "--limit", "10001"], "--limit must be at most 10000"],
    [["events", "get"], "EVENT_ID is missing"],
    [["projection", "rebuild", "a", "b"], "unexpected argument 'b'"],
    [["log", "verify", "extra"], "unexpected argument 'extra'"],
    [["schema", "list", "--kind", "verb"], "--kind must be one of command, query, event"],
    [["explain"], "CODE|REASON is missing"],
    [["errors", "extra"], "unexpected argument 'extra'"],
    [["help", "workspace", "craete"], "has no verb 'craete'"],
    [["help", "nothing"], "topics: exit-codes, environment"],
    [["help", "exit-codes", "more"], "unexpected argument 'more'"],
    [["version", "--verbose"], "unknown flag --verbose"],
  ];
  for (const [args, says] of rows)
    test(JSON.stringify(args).slice(0, 90), async () => {
      expect(await refused(2, ...args)).toContain(says);
    });
});

describe("the other exit codes", () => {
  test("1: a log that does not verify is in reports.test.ts; an output that cannot be written is here", async () => {
    for (const command of ["workspace list", "workspace get demo --json", "events tail --from-start"]) {
      const { code, stdout, stderr } = await shell(`mp ${command} > /dev/full`, home);
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toContain("the output cannot be written: ENOSPC");
    }
  });

  test("3: not found", async () => {
    expect(await refused(3, "workspace", "get", "01a20000-0000-7000-8000-000000000000")).toContain(
      "not_found",
    );
    expect(await refused(3, "projection", "rebuild", "nothing")).toContain("there are: workspace, project");
    expect(await refused(3, "events", "get", "01a20000-0000-7000-8000-000000000000")).toContain(
      "no such event",
    );
    expect(await refused(3, "events", "get", "../health")).toContain("not_found");
    expect(await refused(3, "schema", "get", "project.crate")).toContain("did you mean project.create");
    expect(await refused(3, "explain", "not_fuond")).toContain("did you mean not_found");
  });

  test("4: denied, where somebody else could reach into the home", async () => {
    const open = tempHome();
    mkdirSync(join(open, "run"), { recursive: true });
    chmodSync(join(open, "run"), 0o777);
    expect(await cli(open).refused(4, "workspace", "list")).toMatch(/policy_denied[\s\S]*chmod 700/);
  });

  test("5: conflict, with the rule and what it met", async () => {
    const said = await refused(5, "workspace", "create", "Demo");
    expect(said).toMatch(
      /^error: another workspace has that name\n {2}code: conflict, workspace\.name_taken\n {2}workspace_id: [0-9a-f-]{36}\n {2}hint: /,
    );
  });

  test("5: a hint's 'see … in the details' finds it there: also when it is none, or a word of the sentence", async () => {
    const spawn = async () =>
      (await out("session", "spawn", "--workspace", "demo", "--agent", "a")).split("\t")[0]!;
    const session = await spawn();
    expect(await refused(5, "task", "claim", "--session", session)).toMatch(
      /code: conflict, task\.none_ready\n {2}next_at: none\n/,
    );
    const task = await out("task", "create", "t", "--project", "core");
    await out("task", "claim", task, "--session", session, "--ttl-ms", "8h");
    const held = await refused(5, "task", "claim", task, "--session", await spawn());
    expect(held).toMatch(/\n {2}epoch: 1\n {2}expires_at: \S+Z\n {2}retry_after: 7h59m\n {2}hint: /);
    const asJson = await mp("task", "claim", task, "--session", await spawn(), "--json");
    expect(JSON.parse(asJson.stderr).details.retry_after_ms).toBeGreaterThan(28_000_000);
    await out("session", "report-status", session, "running");
    await out("session", "end", session, "completed");
    expect(await refused(5, "session", "report-status", session, "idle")).toMatch(
      /\n {2}from: completed\n {2}to: idle\n {2}allowed: none\n/,
    );
    const short = (
      await out("session", "spawn", "--workspace", "demo", "--agent", "a", "--ttl-ms", "1s")
    ).split("\t")[0]!;
    await waitFor(async () => (await json("session", "get", short)).status === "lost", { what: "the loss" });
    // The sentence says "is lost or has ended".
    expect(await refused(5, "task", "claim", "--session", short)).toContain("\n  status: lost\n");
  });

  test("5: a task that is over takes no dependencies, and the hint says so", async () => {
    const create = () => out("task", "create", "t", "--project", "core");
    const [one, other] = [await create(), await create()];
    await out("task", "cancel", one);
    const said = await refused(5, "task", "add-dependency", one, other);
    expect(said).toStartWith("error: the status of the task does not allow that\n");
    expect(said).toMatch(/\n {2}allowed: none\n[\s\S]*takes no dependencies/);
  });

  test("6: no daemon, with the address and how to start one", async () => {
    const empty = tempHome();
    const said = await cli(empty).refused(6, "workspace", "list", "--no-spawn");
    expect(said).toContain(`${empty}/run/mp.sock`);
    expect(said).toContain("mp daemon start");
    expect((await run(["daemon", "ping"], { home: empty, env: { MP_NO_SPAWN: "1" } })).code).toBe(6);
  });

  test("6: something else listens there", async () => {
    const other = tempHome();
    mkdirSync(join(other, "run"), { recursive: true, mode: 0o700 });
    const server = createServer((socket) => socket.end("hello\n"));
    await new Promise<void>((done) => server.listen(join(other, "run", "mp.sock"), done));
    try {
      const said = await cli(other).refused(6, "workspace", "list", "--timeout", "2s");
      expect(said).toContain("daemon_unavailable");
    } finally {
      server.close();
    }
  });

  test("7: a daemon that does not answer in time", async () => {
    const mute = tempHome();
    mkdirSync(join(mute, "run"), { recursive: true, mode: 0o700 });
    const server = createServer(() => undefined);
    await new Promise<void>((done) => server.listen(join(mute, "run", "mp.sock"), done));
    try {
      expect(await cli(mute).refused(7, "workspace", "list", "--timeout", "300ms")).toContain(
        "code: timeout",
      );
      const said = await cli(mute).refused(
        7,
        "workspace",
        "create",
        "x",
        "--timeout",
        "300ms",
        "--key",
        "mine",
      );
      expect(said).toMatch(/idempotency_key: mine\n/);
      expect(said).toContain("same key");
    } finally {
      server.close();
    }
  });

  test("7: a frozen daemon keeps a hook waiting for 5 s, and the hint says how to look at it", async () => {
    const frozen = tempHome();
    await cli(frozen).out("workspace", "create", "w");
    const { pid } = await cli(frozen).json<{ pid: number }>("daemon", "status");
    process.kill(pid, "SIGSTOP");
    try {
      const said = await cli(frozen).refused(7, "worktree", "check");
      expect(said).toContain("has not answered within 5s\n  code: timeout\n");
      expect(said).toContain("'mp daemon status'");
      const sooner = await cli(frozen).refused(7, "worktree", "check", "--timeout", "200ms");
      expect(sooner).toContain("within 200ms");
    } finally {
      process.kill(pid, "SIGCONT");
    }
  }, 20_000);

  test("7: --wait waits no longer than --timeout allows", async () => {
    const session = (await out("session", "spawn", "--workspace", "demo", "--agent", "a")).split("\t")[0]!;
    const said = await refused(
      ...([
        7,
        "task",
        "claim",
        "--session",
        session,
        "--stage",
        "none",
        "--wait",
        "20s",
        "--timeout",
        "1s",
      ] as const),
    );
    expect(said).toStartWith("error: nothing could be claimed within 1s: ");
  });

  test("8: cursors that cannot be resumed", async () => {
    expect(await refused(8, "events", "tail", "--after", "999999")).toContain("cursor_ahead");
    expect(await refused(8, "events", "list", "--after", "999999")).toContain("cursor_ahead");
    const file = join(tempHome(), "cursor");
    writeFileSync(file, '{"log_id":"01a20000-0000-7000-8000-000000000000","seq_global":1}\n');
    expect(await refused(8, "events", "tail", "--cursor-file", file)).toContain("cursor_foreign");
    for (const text of [
      "garbage",
      "null",
      "[]",
      '{"log_id":1,"seq_global":1}',
      '{"log_id":"x","seq_global":-1}',
      "",
    ]) {
      writeFileSync(file, text);
      expect(await refused(8, "events", "tail", "--cursor-file", file)).toContain("holds no cursor of mp");
    }
  });
});

describe("the problem on stderr", () => {
  test("under --json is the daemon's own, one line of JSON", async () => {
    const said = await refused(5, "workspace", "create", "demo", "--json");
    const problem: unknown = JSON.parse(said);
    expect(isProblem(problem)).toBe(true);
    expect(problem).toMatchObject({
      type: "urn:mp:problem:conflict",
      status: 409,
      reason: "workspace.name_taken",
      trace_id: expect.stringMatching(/^[0-9a-f]{32}$/),
    });
    expect(said.trimEnd().split("\n")).toHaveLength(1);
  });

  test("under --json is JSON also when the command line is wrong, wherever --json stands", async () => {
    for (const args of [
      ["--json", "workspace", "craete"],
      ["workspace", "list", "--bogus", "--json"],
      ["--json", "nope"],
    ])
      expect(JSON.parse(await refused(2, ...args))).toMatchObject({
        code: "invalid_schema",
        hint: expect.any(String),
      });
  });

  test("names every place that is wrong as the command line calls it", async () => {
    const said = await refused(2, "workspace", "create", "x".repeat(200), "--key", "schlüssel");
    expect(said).toMatch(/\n {2}NAME must /);
    expect(said).toMatch(/\n {2}--key must be 1–200 printable ASCII/);
    expect(said).not.toContain("/payload");
  });
});

describe("a reader that goes away", () => {
  test("is no error: exit code 0, nothing on stderr", async () => {
    await fill(home, 2_000, "closed-pipe-");
    const { stdout, stderr } = await shell(
      `mp workspace list | head -n 1 >/dev/null; echo \${PIPESTATUS[0]}
       mp workspace list --json | head -c 1 >/dev/null; echo \${PIPESTATUS[0]}`,
      home,
    );
    expect([stdout, stderr]).toEqual(["0\n0\n", ""]);
  });

  test("a file that is appended to gets what was printed, behind what it had", async () => {
    const { stdout } = await shell(
      "cd \"$MP_HOME\" && printf 'before\\n' > list.txt; mp workspace list >> list.txt; head -n 1 list.txt; tr -dc '\\0' < list.txt | wc -c; wc -l < list.txt",
      home,
    );
    expect(stdout.split(/\s+/).filter(Boolean).slice(0, 2)).toEqual(["before", "0"]);
    expect(Number(stdout.split(/\s+/).filter(Boolean)[2])).toBeGreaterThan(2_000);
  });

  test("a slow one gets everything", async () => {
    const { stdout } = await shell(
      "mp workspace list --json | (read -r -N 1 first; printf '%s' \"$first\"; cat)",
      home,
    );
    expect(JSON.parse(stdout).items.length).toBeGreaterThan(2_000);
  });
});
