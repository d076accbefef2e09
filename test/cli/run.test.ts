/**
 * `mp session run` (SPEC §8) with the real executable and daemon: what the child gets, what is told of it, what happens when
 * the daemon goes, when something is taken away, when this or that process is killed.
 *
 * The child is a shell script that says on its output how far it has come, and waits for files that the test writes.
 */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "../../src/client/client.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { binary, type Finished, run, start, tempHome, waitFor } from "../support/binary.ts";
import { atTerminal, type Cli, cli, lines, shell } from "./cli.ts";

type Row = Record<string, unknown>;

/** A home with a workspace, a project and a registered folder. */
async function place() {
  const home = tempHome();
  const mp = cli(home);
  const folder = join(home, "tree");
  mkdirSync(folder);
  const workspace_id = await mp.out("workspace", "create", "demo");
  const project_id = await mp.out("project", "create", "core", "--workspace", "demo");
  const worktree_id = await mp.out("worktree", "register", folder, "--project", "core");
  return { home, mp, folder, workspace_id, project_id, worktree_id };
}

async function task(mp: Cli): Promise<string> {
  return (await mp.out("task", "create", "the work", "--project", "core")).split("\t")[0]!;
}

/** `mp session run … -- sh -c SCRIPT`, under way. */
function running(home: string, flags: readonly string[], script: string, env: Record<string, string> = {}) {
  const child = start(["session", "run", "--json", ...flags, "--", "sh", "-c", script], {
    home,
    env: { MP: binary(), ...env },
  });
  let stdout = "";
  let stderr = "";
  const decode = new TextDecoder();
  const read = async (from: ReadableStream<Uint8Array>, add: (text: string) => void) => {
    for await (const chunk of from) add(decode.decode(chunk));
  };
  const outputs = Promise.all([
    read(child.stdout, (text) => {
      stdout += text;
    }),
    read(child.stderr, (text) => {
      stderr += text;
    }),
  ]);
  return {
    child,
    get stdout() {
      return stdout;
    },
    get stderr() {
      return stderr;
    },
    /** Wait until the script has said this. */
    said: (text: string) =>
      waitFor(() => stdout.includes(text), { what: `'${text}' in the output; it was: ${stdout}${stderr}` }),
    async ended() {
      const code = await child.exited;
      await outputs;
      return { code, stdout, stderr, report: reportIn(stderr) };
    },
  };
}

interface Report {
  readonly session_id: string;
  readonly exit_code: number;
  readonly outcome: string;
  readonly reason: string | null;
  readonly artifact_id: string | null;
  readonly ended: boolean;
  readonly keys: Readonly<Record<string, string>>;
}

function reportIn(stderr: string): Report {
  const line = lines(stderr).findLast((each) => each.startsWith('{"session_id"'));
  if (line === undefined) throw new Error(`there is no report in: ${stderr}`);
  return JSON.parse(line) as Report;
}

const ended = (home: string, flags: readonly string[], script: string, env?: Record<string, string>) =>
  running(home, flags, script, env).ended();

const session = (mp: Cli, id: string) => mp.json<Row>("session", "get", id);
const taskRow = (mp: Cli, id: string) => mp.json<Row>("task", "get", id);
const worktree = (mp: Cli, id: string) => mp.json<Row & { writer: Row | null }>("worktree", "get", id);

/** The bytes of an artifact. */
async function bytesOf(home: string, mp: Cli, artifact_id: string): Promise<Buffer> {
  const { digest } = await mp.json<{ digest: string }>("artifact", "get", artifact_id);
  const response = await connect({ socket: join(home, "run", "mp.sock") }).download(digest);
  if (isProblem(response)) throw new Error(JSON.stringify(response));
  return Buffer.from(await response.arrayBuffer());
}

/** Every event of a home. */
async function events(mp: Cli): Promise<Row[]> {
  return lines(await mp.out("events", "tail", "--no-follow", "--json")).map(
    (line) => JSON.parse(line) as Row,
  );
}

function daemonPid(home: string): number {
  return (JSON.parse(readFileSync(join(home, "daemon.json"), "utf8")) as { pid: number }).pid;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  // A zombie that nobody has waited for has ended.
  return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
}

/** A script that says that it is there, then waits for a file. */
const until = (file: string) => `echo ready; while [ ! -e '${file}' ]; do sleep 0.02; done`;

describe("the child", () => {
  test("has the session, the leases and the place in its environment, and nothing of another session's", async () => {
    const { home, mp, folder, workspace_id, project_id, worktree_id } = await place();
    const id = await task(mp);
    const stale = { MP_TASK_ID: "stale", MP_TASK_EPOCH: "99", MP_WRITER_EPOCH: "99", MP_TOKEN: "" };
    const flags = ["--worktree", folder, "--write", "--task", id];
    const found = await ended(home, flags, "env | grep '^MP_' | sort; pwd", stale);
    const { session_id } = found.report;
    const env = Object.fromEntries(lines(found.stdout).map((line) => line.split(/=(.*)/s).slice(0, 2)));
    expect(env).toMatchObject({
      MP_SESSION_ID: session_id,
      MP_SESSION_EPOCH: "1",
      MP_TOKEN: expect.stringMatching(new RegExp(`^mps_${session_id}_1_[\\w-]{43}$`)),
      MP_WORKSPACE: workspace_id,
      MP_PROJECT: project_id,
      MP_WORKTREE_ID: worktree_id,
      MP_WRITER_EPOCH: "1",
      MP_TASK_ID: id,
      MP_TASK_EPOCH: "1",
      MP_HOME: home,
    });
    expect(lines(found.stdout).at(-1)).toBe(folder);
    const bare = await ended(home, ["--workspace", "demo"], "env | grep '^MP_' | cut -d= -f1 | sort", stale);
    expect(lines(bare.stdout)).toEqual(
      ["MP", "MP_HOME", "MP_SESSION_EPOCH", "MP_SESSION_ID", "MP_TOKEN", "MP_WORKSPACE"].filter(
        (name) => name !== "MP",
      ),
    );
  });

  test("acts as its session, and so does a session that it runs, below it", async () => {
    const { home, mp } = await place();
    const script = `"$MP" workspace create inner >/dev/null; "$MP" session run --json -- sh -c '"$MP" workspace create innermost'`;
    const { code, report: inner, stderr } = await ended(home, [], script);
    expect([code, lines(stderr).length]).toEqual([0, 2]);
    const outer = reportIn(lines(stderr).at(-1)!).session_id;
    const nested = JSON.parse(lines(stderr)[0]!) as Report;
    expect(inner.session_id).toBe(outer);
    const all = await events(mp);
    const by = (name: string) => all.find(({ payload }) => (payload as Row).name === name)!.actor as Row;
    expect(by("inner")).toMatchObject({ id: outer, kind: "session", on_behalf_of: { kind: "user" } });
    expect(by("innermost")).toMatchObject({ id: nested.session_id, kind: "session" });
    expect(await session(mp, nested.session_id)).toMatchObject({
      parent_session_id: outer,
      status: "completed",
    });
    const spawned = all.find(({ subject }) => (subject as Row).id === nested.session_id)!;
    expect(spawned.actor).toMatchObject({ id: outer, kind: "session" });
  });

  test("can do nothing with mp any more once its session has ended, on any way to the daemon", async () => {
    const { home, mp } = await place();
    const { stdout } = await ended(home, [], 'echo "$MP_TOKEN"');
    const late = cli(home, { MP_TOKEN: stdout.trim() });
    for (const args of [
      ["workspace", "create", "late"],
      ["workspace", "list"],
      ["events", "tail", "--no-follow"],
      ["schema", "get", "event.workspace.created.v1"],
      ["session", "run", "--", "true"],
    ]) {
      const said = await late.refused(4, ...args);
      expect(said).toContain("the token's session is completed");
      expect(said).not.toContain(stdout.trim());
    }
    expect(await mp.out("workspace", "list")).not.toContain("late");
  });

  test("is below the session that it is in, unless that is in another workspace or another is named", async () => {
    const { home, mp } = await place();
    const other = (await mp.out("workspace", "create", "other")).split("\t")[0]!;
    const named = (await mp.out("session", "spawn", "--workspace", "demo", "--agent", "x")).split("\t")[0]!;
    const nested = (flags: string) => `"$MP" session run ${flags} -- sh -c 'echo "$MP_SESSION_ID"'`;
    const script = `${nested("")}; ${nested("--workspace other")}; ${nested(`--parent ${named.slice(-12)}`)}`;
    const found = await ended(home, ["--workspace", "demo"], script);
    const [below, apart, elsewhere] = await Promise.all(lines(found.stdout).map((id) => session(mp, id)));
    expect(below).toMatchObject({ parent_session_id: found.report.session_id, depth: 1 });
    expect(apart).toMatchObject({ parent_session_id: null, workspace_id: other });
    expect(elsewhere).toMatchObject({ parent_session_id: named });
  });

  test("is where the worktree is that one is in, unless a flag or a variable says otherwise", async () => {
    const { home, mp, folder, workspace_id, project_id } = await place();
    const second = await mp.out("workspace", "create", "second");
    const other = await mp.out("project", "create", "other", "--workspace", "second");
    const aside = await mp.out("project", "create", "aside", "--workspace", "demo");
    const below = join(folder, "src");
    mkdirSync(below);
    const where = async (flags: readonly string[], env: Record<string, string> = {}, cwd = below) => {
      const words = ["session", "run", ...flags, "--", "sh", "-c", 'echo "$MP_WORKSPACE $MP_PROJECT"'];
      const { stdout, stderr } = await run(words, { home, cwd, env });
      return `${stdout}${stderr}`.trim();
    };
    expect(await where([])).toBe(`${workspace_id} ${project_id}`);
    expect(await where([], {}, folder)).toBe(`${workspace_id} ${project_id}`);
    expect(await where(["--workspace", "second"])).toBe(second);
    expect(await where([], { MP_WORKSPACE: "second" })).toBe(second);
    expect(await where([], { MP_WORKSPACE: "second", MP_PROJECT: "other" })).toBe(`${second} ${other}`);
    expect(await where(["--workspace", "demo"], { MP_WORKSPACE: second, MP_PROJECT: other })).toBe(
      workspace_id,
    );
    expect(await where(["--workspace", "demo", "--project", "aside"])).toBe(`${workspace_id} ${aside}`);
    expect(await where([], {}, home)).toContain("more than one open workspace");
  });

  test("a title and an agent's name may be typed with letters in parts", async () => {
    const { home, mp } = await place();
    const { report } = await ended(home, ["--title", "Cafe\u0301", "--agent", "Zoe\u0308"], "true");
    expect(await session(mp, report.session_id)).toMatchObject({
      title: "Caf\u00e9",
      agent_name: "Zo\u00eb",
    });
  });

  // Told by the first renewal that is refused, or only at the end; with the session's lease alone, or with all three.
  for (const [ttl, isAll] of [
    ["3s", false],
    ["3s", true],
    ["10m", true],
  ] as const)
    test(`goes on when the session that it is in ends, as the user from then on (ttl ${ttl}, ${isAll ? "three leases" : "one"})`, async () => {
      const { home, mp, folder } = await place();
      const id = isAll ? await task(mp) : undefined;
      const spawned = await mp.json<Row>("session", "spawn", "--workspace", "demo", "--agent", "outer");
      const outer = (spawned.subject as { id: string }).id;
      const user = connect({ socket: join(home, "run", "mp.sock") });
      const minted = await user.query("token.session", { session_id: outer });
      if (isProblem(minted)) throw new Error(JSON.stringify(minted));
      const go = join(home, "go");
      const flags = ["--ttl", ttl, ...(id ? ["--worktree", folder, "--write", "--task", id] : [])];
      const script = `echo "$MP_SESSION_ID"; ${until(go)}`;
      const run = running(home, flags, script, { MP_TOKEN: minted.token, MP_SESSION_ID: outer });
      await run.said("ready");
      const inner = lines(run.stdout)[0]!;
      await mp.out("session", "end", outer, "cancelled");
      const expires = async () => String((await session(mp, inner)).expires_at);
      const before = await expires();
      if (ttl === "3s")
        await waitFor(async () => (await expires()) > before, {
          what: "a renewal after the end of the outer session",
        });
      writeFileSync(go, "");
      const found = await run.ended();
      // Nothing is said but the report.
      expect([found.code, lines(found.stderr).length]).toEqual([0, 1]);
      expect(found.report).toMatchObject({ outcome: "completed", reason: null, ended: true });
      expect(await session(mp, inner)).toMatchObject({ parent_session_id: outer, status: "completed" });
      const { artifact_id } = found.report;
      expect((await bytesOf(home, mp, artifact_id!)).toString()).toBe(`${inner}\nready\n`);
      const all = await events(mp);
      const by = (event_type: string, subject: string) =>
        all.find((each) => each.event_type === event_type && (each.subject as Row).id === subject)?.actor;
      expect(by("session.spawned", inner)).toMatchObject({ kind: "session", id: outer });
      expect(by("artifact.registered", artifact_id!)).toMatchObject({ kind: "user" });
      expect(by("session.ended", inner)).toMatchObject({ kind: "user" });
      if (id === undefined) return;
      expect(by("task.claimed", id)).toMatchObject({ kind: "session", id: outer });
      expect(by("task.succeeded", id)).toMatchObject({ kind: "user" });
    });

  test("gets stdin, and its output passes byte for byte and is kept as it came", async () => {
    const { home, mp } = await place();
    const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, at) => (at * 7 + (at >> 8)) & 0xff));
    writeFileSync(join(home, "in.bin"), bytes);
    const run = `mp session run --json --workspace demo -- sh -c 'cat; echo to-stderr >&2' < "$MP_HOME/in.bin"`;
    const { code, stderr } = await shell(`${run} > "$MP_HOME/out.bin"`, home);
    expect([code, lines(stderr)[0]]).toEqual([0, "to-stderr"]);
    expect(readFileSync(join(home, "out.bin")).equals(bytes)).toBe(true);
    const { artifact_id, session_id } = reportIn(stderr);
    const kept = await bytesOf(home, mp, artifact_id!);
    expect(kept.length).toBe(bytes.length + "to-stderr\n".length);
    // Two pipes: which of them is read first is chance, what is in each is not.
    const at = kept.indexOf("to-stderr\n");
    expect(Buffer.concat([kept.subarray(0, at), kept.subarray(at + 10)]).equals(bytes)).toBe(true);
    const artifact = await mp.json<Row>("artifact", "get", artifact_id!);
    expect(artifact).toMatchObject({ name: "output.log", media_type: "text/plain", size: kept.length });
    expect(JSON.stringify(artifact)).toContain(session_id);
    // Behind what is there already: a file that is open for appending.
    await shell(`echo before > "$MP_HOME/log"; ${run} >> "$MP_HOME/log"`, home);
    expect(readFileSync(join(home, "log")).equals(Buffer.concat([Buffer.from("before\n"), bytes]))).toBe(
      true,
    );
  });

  test("may write more than is kept", async () => {
    const { home, mp } = await place();
    const run = "mp session run --json --workspace demo -- head -c 70000000 /dev/zero | wc -c";
    const { stdout, stderr } = await shell(run, home);
    expect(stdout.trim()).toBe("70000000");
    const kept = await bytesOf(home, mp, reportIn(stderr).artifact_id!);
    const note = kept.subarray(64 << 20).toString();
    expect([kept.indexOf("\n"), note]).toEqual([64 << 20, expect.stringMatching(/^\n\[mp: .*64 MiB.*\]\n$/)]);
  });

  test("has no artifact without output, or when none is to be kept", async () => {
    const { home, mp } = await place();
    expect((await ended(home, [], "exit 0")).report.artifact_id).toBeNull();
    const quiet = await ended(home, ["--no-output"], "echo seen");
    expect([quiet.stdout, quiet.report.artifact_id]).toEqual(["seen\n", null]);
    expect(await mp.json<{ items: unknown[] }>("artifact", "list")).toMatchObject({ items: [] });
  });

  test("ends for good though something it began still holds its output, and hears that its reader has gone", async () => {
    const { home } = await place();
    const from = performance.now();
    const { code, stdout } = await ended(home, [], "sleep 600 & echo $!; echo done");
    expect([code, lines(stdout)[1]]).toEqual([0, "done"]);
    expect(performance.now() - from).toBeLessThan(10_000);
    process.kill(Number(lines(stdout)[0]), "SIGKILL");
    const closed = await shell("mp session run --json --workspace demo -- yes | head -1", home);
    expect(closed.stdout).toBe("y\n");
    expect(reportIn(closed.stderr).exit_code).not.toBe(0);
  });
});

describe("the end", () => {
  test("code 0 completes, another fails; the exit code is the child's", async () => {
    const { home, mp } = await place();
    for (const [script, code, outcome, status, failure] of [
      ["exit 0", 0, "completed", "succeeded", [null, null]],
      ["exit 3", 3, "failed", "failed", ["exit", "exit code 3"]],
      ["kill -9 $$", 137, "failed", "failed", ["signal", "killed by SIGKILL"]],
    ] as const) {
      const id = await task(mp);
      const found = await ended(home, ["--task", id], script);
      expect([script, found.code, found.report]).toMatchObject([
        script,
        code,
        { exit_code: code, outcome, ended: true },
      ]);
      expect(await session(mp, found.report.session_id)).toMatchObject({ status: outcome, exit_code: code });
      const row = await taskRow(mp, id);
      expect([script, row.status, row.failure_class, row.failure_message]).toEqual([
        script,
        status,
        ...failure,
      ]);
      expect(found.report.keys["session.end"]).toMatch(/^mp-/);
    }
  });

  test("--leave-task only gives the task back, and a task that the child has completed stays so", async () => {
    const { home, mp } = await place();
    const left = await task(mp);
    await ended(home, ["--task", left, "--leave-task"], "exit 3");
    expect(await taskRow(mp, left)).toMatchObject({ status: "queued", claim_session_id: null });
    const own = await task(mp);
    const complete = `"$MP" task complete "$MP_TASK_ID" --epoch "$MP_TASK_EPOCH" --result '{"by":"child"}'`;
    const found = await ended(home, ["--task", own], complete);
    expect([found.code, lines(found.stderr).length]).toEqual([0, 1]);
    expect(await taskRow(mp, own)).toMatchObject({ status: "succeeded", result: { by: "child" } });
  });

  test("a child that is waiting or idle by its own word can end either way", async () => {
    const { home, mp } = await place();
    const report = (...words: string[]) => `"$MP" session report-status "$MP_SESSION_ID" ${words.join(" ")}`;
    const waiting = await ended(home, [], report("waiting", "--waiting-for", "approval"));
    expect(await session(mp, waiting.report.session_id)).toMatchObject({ status: "completed" });
    const idle = await ended(home, [], `${report("idle")}; exit 4`);
    expect(await session(mp, idle.report.session_id)).toMatchObject({ status: "failed", exit_code: 4 });
  });

  test("a command that cannot be started: 127 or 126, the session has failed, the task goes back", async () => {
    const { home, mp } = await place();
    const id = await task(mp);
    writeFileSync(join(home, "plain.txt"), "no program");
    for (const [command, code] of [
      ["no-such-command-here", 127],
      [join(home, "plain.txt"), 126],
    ] as const) {
      const found = await mp.mp("session", "run", "--json", "--task", id, "--", command);
      expect([command, found.code, found.stdout]).toEqual([command, code, ""]);
      const report = reportIn(found.stderr);
      expect(await session(mp, report.session_id)).toMatchObject({ status: "failed", exit_code: code });
      expect(await taskRow(mp, id)).toMatchObject({ status: "queued" });
    }
  });

  test("signals are passed on; one that ends the child cancels the session and gives the task back", async () => {
    const { home, mp } = await place();
    for (const [name, number] of [
      ["SIGTERM", 15],
      ["SIGINT", 2],
      ["SIGHUP", 1],
      ["SIGQUIT", 3],
    ] as const) {
      const id = await task(mp);
      const run = running(home, ["--task", id], "echo ready; exec sleep 600");
      await run.said("ready");
      run.child.kill(name);
      const found = await run.ended();
      expect([name, found.code, found.report.outcome, found.report.reason]).toEqual([
        name,
        128 + number,
        "cancelled",
        `signal ${name}`,
      ]);
      expect(await taskRow(mp, id)).toMatchObject({ status: "queued", failure_class: null });
    }
    const script =
      "trap 'echo one' USR1; trap 'echo two; exit 7' USR2; echo ready; while :; do sleep 0.02; done";
    const run = running(home, [], script);
    await run.said("ready");
    run.child.kill("SIGUSR1");
    await run.said("one");
    run.child.kill("SIGUSR2");
    const found = await run.ended();
    expect([found.stdout, found.code, found.report.outcome]).toEqual(["ready\none\ntwo\n", 7, "failed"]);
  });

  test("whoever was told to end and says with any code but 0 that it did not finish is cancelled, not failed", async () => {
    const { home, mp } = await place();
    for (const [signal, code, outcome, status] of [
      ["SIGTERM", 143, "cancelled", "queued"],
      ["SIGTERM", 9, "cancelled", "queued"],
      ["SIGHUP", 1, "cancelled", "queued"],
      ["SIGTERM", 0, "completed", "succeeded"],
    ] as const) {
      const id = await task(mp);
      const trap = `trap 'exit ${code}' ${signal.slice(3)}; echo ready; while :; do sleep 0.02; done`;
      const run = running(home, ["--task", id], trap);
      await run.said("ready");
      run.child.kill(signal);
      const found = await run.ended();
      expect([found.code, found.report]).toMatchObject([
        code,
        { outcome, reason: code === 0 ? null : `signal ${signal}` },
      ]);
      expect(await taskRow(mp, id)).toMatchObject({ status, failure_class: null });
    }
  });

  test("a worktree whose folder has gone: 126, and what to do about it", async () => {
    const { mp, folder } = await place();
    rmSync(folder, { recursive: true });
    const found = await mp.mp("session", "run", "--worktree", folder, "--", "true");
    expect([found.code, found.stdout]).toEqual([126, ""]);
    expect(found.stderr).toMatch(
      /^mp: true: its folder is not there: .*\n {2}hint: 'mp worktree reconcile PATH' .*'mp worktree remove PATH'/,
    );
  });
});

describe("what is refused", () => {
  test("a lock or a task that another holds: 5, nothing is started, the session is cancelled", async () => {
    const { home, mp, folder } = await place();
    const id = await task(mp);
    const go = join(home, "go");
    const first = running(home, ["--worktree", folder, "--write", "--task", id], until(go));
    await first.said("ready");
    const mark = join(home, "started");
    const refused = async (flags: readonly string[]): Promise<Finished> =>
      mp.mp("session", "run", ...flags, "--", "touch", mark);
    const locked = await refused(["--worktree", folder, "--write"]);
    expect([locked.code, locked.stdout]).toEqual([5, ""]);
    expect(locked.stderr).toContain("worktree.writer_held");
    const claimed = await refused(["--task", id]);
    expect(claimed.code).toBe(5);
    expect(claimed.stderr).toContain("task.already_claimed");
    expect(existsSync(mark)).toBe(false);
    const { items } = await mp.json<{ items: Row[] }>("session", "list", "--status", "cancelled");
    expect(items.map(({ end_reason }) => end_reason)).toEqual([
      "worktree.writer_held",
      "task.already_claimed",
    ]);
    // Reading beside a writer is fine.
    expect((await ended(home, ["--worktree", folder], "exit 0")).code).toBe(0);
    writeFileSync(go, "");
    expect((await first.ended()).code).toBe(0);
  });

  test("Ctrl-C before the command has begun: it does not begin", async () => {
    const { home, mp, workspace_id } = await place();
    const daemon = daemonPid(home);
    const mark = join(home, "started");
    const begun = async (...flags: string[]) => {
      const run = start(["session", "run", ...flags, "--", "touch", mark], { home });
      const catches = () => {
        const mask = /^SigCgt:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${run.pid}/status`, "utf8"))![1]!;
        return (BigInt(`0x${mask}`) & 2n) !== 0n;
      };
      await waitFor(catches, { what: "that it listens to SIGINT" });
      run.kill("SIGINT");
      return run;
    };
    // A daemon that does not answer for a while.
    process.kill(daemon, "SIGSTOP");
    // Nothing is held yet: it does not even wait.
    expect(await (await begun()).exited).toBe(130);
    const spawning = await begun("--workspace", workspace_id);
    process.kill(daemon, "SIGCONT");
    expect(await spawning.exited).toBe(130);
    expect(existsSync(mark)).toBe(false);
    const { items } = await mp.json<{ items: Row[] }>("session", "list");
    expect(items.filter(({ status }) => status !== "cancelled")).toEqual([]);
  });

  test("what the command line lacks", async () => {
    const { mp, folder } = await place();
    expect(await mp.out("session", "run", "--help")).toContain("  mp session run [FLAGS] -- CMD ARGS…\n");
    expect(await mp.refused(2, "session", "run")).toContain("CMD");
    expect(await mp.refused(2, "session", "run", "--write", "--", "true")).toContain("--worktree");
    await mp.out("workspace", "create", "second");
    const which = await mp.refused(2, "session", "run", "--", "true");
    expect(which).toMatch(/more than one open workspace\n.*--workspace NAME, open are 'demo', 'second';/);
    expect(await mp.refused(3, "session", "run", "--worktree", "/", "--", "true")).toContain(
      "mp worktree list",
    );
    expect(
      await mp.refused(2, "session", "run", "--worktree", folder, "--ttl", "5ms", "--", "true"),
    ).toContain("--ttl");
    const env = { MP_WORKSPACE: "second" };
    const { stdout } = await cli(mp.home, env).mp("session", "run", "--", "sh", "-c", "echo $MP_WORKSPACE");
    expect((await mp.json<{ name: string }>("workspace", "get", stdout.trim())).name).toBe("second");
  });
});

describe("while it runs", () => {
  test("everything is held for longer than its ttl", async () => {
    const { home, mp, folder, worktree_id } = await place();
    const id = await task(mp);
    const go = join(home, "go");
    const run = running(home, ["--worktree", folder, "--write", "--task", id, "--ttl", "2s"], until(go));
    await run.said("ready");
    const end = async () => Date.parse(String((await worktree(mp, worktree_id)).writer!.expires_at));
    const first = await end();
    await waitFor(async () => (await end()) > first + 4_000, {
      what: "renewals for two more ttls",
      timeout_ms: 15_000,
    });
    expect(await taskRow(mp, id)).toMatchObject({ status: "running", claim: { epoch: 1 } });
    writeFileSync(go, "");
    expect((await run.ended()).report).toMatchObject({ outcome: "completed", reason: null });
    const types = (await events(mp)).map(({ event_type }) => event_type);
    expect(types.filter((type) => /expired|lost|renew/.test(String(type)))).toEqual([]);
  });

  test("a daemon that is killed and comes back is gone on with; one that stays away is started for the end", async () => {
    const { home, mp, folder, worktree_id } = await place();
    const id = await task(mp);
    const go = join(home, "go");
    const run = running(home, ["--worktree", folder, "--write", "--task", id, "--ttl", "2s"], until(go));
    await run.said("ready");
    process.kill(daemonPid(home), "SIGKILL");
    await mp.out("daemon", "start");
    const { expires_at } = (await worktree(mp, worktree_id)).writer!;
    await waitFor(
      async () => String((await worktree(mp, worktree_id)).writer?.expires_at) > String(expires_at),
      {
        what: "a renewal with the next daemon",
      },
    );
    const pid = daemonPid(home);
    process.kill(pid, "SIGKILL");
    await waitFor(() => !alive(pid), { what: "the end of the daemon" });
    writeFileSync(go, "");
    const found = await run.ended();
    expect([found.code, found.report]).toMatchObject([
      0,
      { outcome: "completed", reason: null, ended: true },
    ]);
    expect(daemonPid(home)).not.toBe(pid);
    expect(await taskRow(mp, id)).toMatchObject({ status: "succeeded" });
    expect(await session(mp, found.report.session_id)).toMatchObject({ status: "completed" });
    expect((await bytesOf(home, mp, found.report.artifact_id!)).toString()).toBe("ready\n");
  });

  test("a daemon that was stopped is not started as long as the child runs", async () => {
    const { home, mp } = await place();
    const go = join(home, "go");
    const stopped = join(home, "stopped");
    // Long enough for several renewals, of a third of a second each.
    const script = `${until(stopped)}; sleep 1.2; echo later; ${until(go)}`;
    const run = running(home, ["--ttl", "1s"], script);
    await run.said("ready");
    await mp.out("daemon", "stop");
    writeFileSync(stopped, "");
    await run.said("later");
    expect(await mp.mp("daemon", "status")).toMatchObject({ code: 6 });
    writeFileSync(go, "");
    const found = await run.ended();
    expect(found.report).toMatchObject({ outcome: "completed", ended: true });
    // Whoever has stopped it hears why it is there again: once, though more than one thing is told.
    expect(lines(found.stderr).slice(0, -1)).toEqual([
      "mp: the daemon does not run any more: it is started again to tell the end",
    ]);
    expect(await mp.mp("daemon", "status")).toMatchObject({ code: 0 });
  });

  test("with --no-spawn an end that nobody hears is said, and the exit code stays the child's", async () => {
    const { home, mp } = await place();
    const go = join(home, "go");
    const run = running(home, ["--no-spawn"], `echo "pid=$$"; ${until(go)}; exit 4`);
    await run.said("ready");
    await mp.out("daemon", "stop");
    writeFileSync(go, "");
    const pid = Number(/pid=(\d+)/.exec(run.stdout)![1]);
    await waitFor(() => !alive(pid), { what: "the end of the child" });
    // Ctrl-C, when there is nobody left to pass it on to, does not wait for the daemon.
    const typing = setInterval(() => run.child.kill("SIGINT"), 100);
    const found = await run.ended();
    clearInterval(typing);
    expect([found.code, found.report.ended, found.report.outcome]).toEqual([4, false, "failed"]);
    expect(found.stderr).toContain("leases run out by themselves");
  });
});

describe("what is taken away", () => {
  /** Another session takes the writer lock. */
  async function steal({
    mp,
    worktree_id,
    workspace_id,
  }: Awaited<ReturnType<typeof place>>): Promise<string> {
    const thief = (await mp.out("session", "spawn", "--workspace", workspace_id, "--agent", "thief")).split(
      "\t",
    )[0]!;
    await mp.out("worktree", "attach", worktree_id, "write", "--session", thief);
    const flags = ["--session", thief, "--expected-epoch", "1"];
    await mp.out("worktree", "steal-writer", worktree_id, "it hangs", ...flags);
    return thief;
  }

  test("a stolen lock stops the child, by force if need be, and the end says why", async () => {
    const here = await place();
    const id = await task(here.mp);
    const script = "trap '' TERM; echo ready; while :; do sleep 0.02; done";
    const flags = ["--worktree", here.folder, "--write", "--task", id, "--grace", "300ms"];
    const run = running(here.home, flags, script);
    await run.said("ready");
    const thief = await steal(here);
    const found = await run.ended();
    expect([found.code, found.report]).toMatchObject([
      137,
      { outcome: "failed", reason: "worktree.writer_stolen", exit_code: 137 },
    ]);
    expect(lines(found.stderr)[0]).toMatch(
      new RegExp(
        `^mp: the writer lock of .* was taken by session ${thief}, by user .*: it hangs; .* being stopped$`,
      ),
    );
    expect(await session(here.mp, found.report.session_id)).toMatchObject({
      status: "failed",
      end_reason: "worktree.writer_stolen",
    });
    // The work itself has not failed: another may go on with it.
    expect(await taskRow(here.mp, id)).toMatchObject({ status: "queued" });
    expect((await worktree(here.mp, here.worktree_id)).writer).toMatchObject({ session_id: thief, epoch: 2 });
  });

  test("--on-lost tell: the child hears SIGURG and ends as it likes", async () => {
    const here = await place();
    const script = "trap 'echo told; exit 0' URG; echo ready; while :; do sleep 0.02; done";
    const run = running(here.home, ["--worktree", here.folder, "--write", "--on-lost", "tell"], script);
    await run.said("ready");
    await steal(here);
    const found = await run.ended();
    expect([found.code, found.stdout, found.report]).toMatchObject([
      0,
      "ready\ntold\n",
      { outcome: "completed", reason: "worktree.writer_stolen" },
    ]);
  });

  test("a task that is cancelled, and a session that is ended by somebody else", async () => {
    const { home, mp } = await place();
    const id = await task(mp);
    const run = running(home, ["--task", id], "echo ready; exec sleep 600");
    await run.said("ready");
    await mp.out("task", "cancel", id);
    const found = await run.ended();
    expect([found.code, found.report.reason]).toEqual([143, "task.cancelled"]);
    expect(found.stderr).toContain("the task was cancelled by user");
    expect(await taskRow(mp, id)).toMatchObject({ status: "cancelled" });
    const other = running(home, [], `echo "$MP_SESSION_ID"; exec sleep 600`);
    await other.said("\n");
    await mp.out("session", "end", other.stdout.trim(), "cancelled");
    const over = await other.ended();
    expect([over.code, over.report.reason, over.report.ended]).toEqual([143, "session.ended", false]);
    expect(over.stderr).toContain("was ended by user");
  });

  test("leases that ran out while this program was stopped: the session is lost, and that is how it ends", async () => {
    const { home, mp } = await place();
    const run = running(home, ["--ttl", "1s"], `echo "$MP_SESSION_ID"; exec sleep 600`);
    await run.said("\n");
    const id = run.stdout.trim();
    run.child.kill("SIGSTOP");
    await waitFor(async () => (await session(mp, id)).status === "lost", { what: "the loss of the session" });
    run.child.kill("SIGCONT");
    const found = await run.ended();
    expect([found.code, found.report]).toMatchObject([
      143,
      { outcome: "failed", reason: "session.lost", ended: true },
    ]);
    expect(await session(mp, id)).toMatchObject({ status: "failed", end_reason: "session.lost" });
  });

  test("kill -9 of this program: the child goes on, and after the ttl the daemon frees what it held", async () => {
    const { home, mp, folder, worktree_id } = await place();
    const script = `echo "$MP_SESSION_ID $$"; exec sleep 600`;
    const run = running(home, ["--worktree", folder, "--write", "--ttl", "1s"], script);
    await run.said("\n");
    const [id = "", pid = ""] = run.stdout.trim().split(" ");
    run.child.kill("SIGKILL");
    await run.child.exited;
    await waitFor(async () => (await session(mp, id)).status === "lost", { what: "the loss of the session" });
    await waitFor(async () => (await worktree(mp, worktree_id)).writer === null, {
      what: "the end of the lock",
    });
    expect(alive(Number(pid))).toBe(true);
    const stale = await mp.mp("worktree", "check", folder, "--epoch", "1");
    expect([stale.code, stale.stderr.includes("worktree.stale_epoch")]).toEqual([5, true]);
    process.kill(Number(pid), "SIGKILL");
  });
});

describe("at a terminal", () => {
  test("the child has one of its own, of the same size, and what it shows is shown and kept", async () => {
    const { home, mp } = await place();
    const script = "test -t 0 && test -t 1 && test -t 2 && stty size; echo to-stderr >&2; exit 5";
    const { code, shown } = await atTerminal(["session", "run", "--json", "--", "sh", "-c", script], {
      home,
      columns: 93,
    });
    expect(code).toBe(5);
    expect(lines(shown).slice(0, 2)).toEqual(["50 93", "to-stderr"]);
    const { artifact_id } = reportIn(shown);
    expect((await bytesOf(home, mp, artifact_id!)).toString()).toBe("50 93\r\nto-stderr\r\n");
    const many = await atTerminal(["session", "run", "--", "seq", "1", "200000"], { home });
    expect(lines(many.shown)).toEqual(Array.from({ length: 200_000 }, (_, at) => String(at + 1)));
  });

  test("the child's terminal grows with ours", async () => {
    const { home } = await place();
    let shown = "";
    const script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done";
    const child = Bun.spawn([binary(), "session", "run", "--", "sh", "-c", script], {
      env: { ...process.env, TERM: "xterm", MP_HOME: home },
      terminal: {
        cols: 80,
        rows: 24,
        data(_, data) {
          shown += Buffer.from(data).toString();
        },
      },
    });
    await waitFor(() => shown.includes("ready"), { what: "the child" });
    child.terminal!.resize(101, 31);
    expect(await child.exited).toBe(0);
    child.terminal!.close();
    expect(shown).toContain("31 101");
  });

  /** `mp session run -- sh -c SCRIPT` at a terminal, where a key is pressed as soon as the script is ready. */
  async function pressed(home: string, id: string, script: string, key: string) {
    let shown = "";
    const child = Bun.spawn([binary(), "session", "run", "--json", "--task", id, "--", "sh", "-c", script], {
      env: { ...process.env, TERM: "xterm", MP_HOME: home },
      terminal: {
        cols: 500,
        rows: 24,
        data(_, data) {
          shown += Buffer.from(data).toString();
        },
      },
    });
    await waitFor(() => shown.includes("ready"), { what: "the child" });
    child.terminal!.write(key);
    const code = await child.exited;
    child.terminal!.close();
    return { code, report: reportIn(shown.slice(shown.lastIndexOf('{"session_id"'))) };
  }

  test("a key that the child's terminal makes a signal of counts as one that was passed on", async () => {
    const { home, mp } = await place();
    for (const [key, script, code, signal] of [
      ["\x03", "echo ready; exec sleep 600", 130, "SIGINT"],
      ["\x1c", "echo ready; exec sleep 600", 131, "SIGQUIT"],
      ["\x03", "trap 'exit 7' INT; echo ready; while :; do sleep 0.02; done", 7, "SIGINT"],
    ] as const) {
      const id = await task(mp);
      const found = await pressed(home, id, script, key);
      expect([found.code, found.report]).toMatchObject([
        code,
        { outcome: "cancelled", reason: `signal ${signal}`, ended: true },
      ]);
      expect(await taskRow(mp, id)).toMatchObject({ status: "queued", failure_class: null });
    }
  });

  test("a key that the child reads as a key is no signal", async () => {
    const { home, mp } = await place();
    const id = await task(mp);
    const script = "stty raw -echo; echo ready; head -c 1 >/dev/null; stty sane; exit 130";
    const found = await pressed(home, id, script, "\x03");
    expect([found.code, found.report]).toMatchObject([130, { outcome: "failed", reason: null }]);
    expect(await taskRow(mp, id)).toMatchObject({ status: "failed", failure_message: "exit code 130" });
  });

  test("what is typed reaches the child, Ctrl-C once, and the terminal is as it was afterwards", async () => {
    const { home } = await place();
    const inner = `trap "echo interrupted" INT; echo ready; read -r line; read -r line; echo "got $line"`;
    const script = `stty -a > "$MP_HOME/before"; "$MP" session run --json -- sh -c '${inner}'; echo "code $?"; stty -a > "$MP_HOME/after"`;
    let shown = "";
    const child = Bun.spawn(["sh", "-c", script], {
      env: { ...process.env, TERM: "xterm", MP_HOME: home, MP: binary() },
      terminal: {
        cols: 80,
        rows: 24,
        data(_, data) {
          shown += Buffer.from(data).toString();
        },
      },
    });
    await waitFor(() => shown.includes("ready"), { what: "the child" });
    child.terminal!.write("\x03");
    await waitFor(() => shown.includes("interrupted"), { what: "Ctrl-C" });
    child.terminal!.write("\nhello\n");
    expect(await child.exited).toBe(0);
    child.terminal!.close();
    expect(shown.match(/interrupted/g)).toHaveLength(1);
    expect(shown).toContain("code 0");
    const settings = (name: string) => readFileSync(join(home, name), "utf8");
    expect(settings("after")).toBe(settings("before"));
  });
});
