/**
 * `mp daemon`: start, run, stop, restart, status, logs, wait, ping (SPEC §12).
 *
 * `start`, `stop` and `restart` may be repeated: they say what is, and end well when it is what was wanted. The lock, the
 * process and daemon.json say that a daemon has gone. The server and what looks for a daemon are imported by the verb that needs
 * them: `ping` is the yardstick of a trivial command. Left out on purpose: installing a service.
 */
import type { Discovery } from "../client/discover.ts";
import type { DaemonInfo } from "../daemon/info.ts";
import { type Paths, paths } from "../daemon/paths.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import { VERSION } from "../version.ts";
import { asking, type Noun, verb } from "./command.ts";
import { daemonLink, HUNG_HINT, hungHint, START_MS } from "./link.ts";
import { note } from "./output.ts";

/** How long /health is waited for. */
const LOOK_MS = 1_000;
/** How long the daemon may take to accept its shutdown, before it gets a signal. */
const ASK_MS = 5_000;
/** How often a waiting verb looks again. */
const AGAIN_MS = 25;
const UNAVAILABLE = 6;

const look = async (here: Paths): Promise<Discovery> => {
  const { discover } = await import("../client/discover.ts");
  return discover(here, { timeout_ms: LOOK_MS, version: VERSION });
};

const runs = (found: Discovery): found is Discovery & { info: DaemonInfo } =>
  (found.state === "running" || found.state === "running-older") && found.info !== undefined;

/** A script may add --no-spawn to every command; the verbs that start nothing take it and need not heed it. */
const quietly = { "no-spawn": { ...asking["no-spawn"], hidden: true } };
const timeout = { timeout: { ...asking.timeout, description: "give up after this time (30s)" } };

const start = verb(
  "Start the daemon in the background, unless it runs already.",
  timeout,
  async (values, { out }) => {
    const started = await begin(values.timeout);
    if (isProblem(started)) return started;
    const { info } = started;
    if (out.asJson) await out.json({ started: started.started, ...info });
    else
      await out.said(
        `${started.started ? "started" : "already running"}: ${described(info)}`,
        lineOf(started.started ? "started" : "already-running", info),
      );
    return outdated(info);
  },
  {
    notes: [
      "Any command that needs the daemon starts it too. A pipe gets: started|already-running, pid, version, socket.",
    ],
  },
);

async function begin(timeout_ms: number | undefined) {
  const { selfCommand, startDaemon } = await import("../daemon/handshake.ts");
  const command = selfCommand(["daemon", "run", "--background"]);
  const started = await startDaemon({ paths: paths(), command, timeout_ms: timeout_ms ?? START_MS });
  return isProblem(started) ? hungHint(started) : started;
}

const described = (info: DaemonInfo) =>
  `pid ${info.pid}, version ${info.version}, socket ${info.addresses.socket}`;

const lineOf = (word: string, info: DaemonInfo) => [word, info.pid, info.version, info.addresses.socket];

/** Say so when the daemon is of an older version than this program. */
async function outdated(info: DaemonInfo): Promise<undefined> {
  if (Bun.semver.order(info.version, VERSION) < 0)
    await note(`it is older than this program (${VERSION}): 'mp daemon restart' changes over`);
  return undefined;
}

const run = verb(
  "Run the daemon in the foreground until Ctrl-C or SIGTERM.",
  {
    background: { type: "boolean", hidden: true, description: "tell a waiting parent when it is ready" },
  },
  async ({ background }, { out }) => {
    const [{ serve }, { announceFailed, announceReady }] = await Promise.all([
      import("../daemon/serve.ts"),
      import("../daemon/handshake.ts"),
    ]);
    const served = await serve(paths());
    if (background) {
      if (isProblem(served)) {
        announceFailed(served);
        return served;
      }
      announceReady("running" in served ? served.running : served.info);
      return "running" in served ? 0 : served.ended;
    }
    if (isProblem(served)) return served;
    if ("running" in served)
      return problem("conflict", `a daemon runs already: ${described(served.running)}`, {
        hint: "use that one, or end it with 'mp daemon stop'",
        details: { pid: served.running.pid },
      });
    if (out.asJson) await out.json({ ready: true, ...served.info });
    else await out.said(`ready: ${described(served.info)}; Ctrl-C ends it`, lineOf("ready", served.info));
    return served.ended;
  },
  { notes: ["Its log goes to the file that 'mp daemon logs' shows."] },
);

const stop = verb(
  "Stop the daemon: it answers what it has accepted, then ends. Fine when none runs.",
  { ...timeout, ...quietly },
  async (values, { out }) => {
    const stopped = await end(values.timeout ?? START_MS);
    if (isProblem(stopped)) return stopped;
    if (out.asJson) await out.json(stopped);
    else
      await out.said(stopped.stopped ? `stopped: pid ${stopped.pid}` : "no daemon runs", [
        stopped.stopped ? "stopped" : "not-running",
        stopped.pid,
      ]);
    if (stopped.taken_over_by !== undefined && !out.asJson)
      await note(`another start has taken over: pid ${stopped.taken_over_by}`);
    return undefined;
  },
  { notes: ["It has ended when this returns. A pipe gets: stopped|not-running, pid."] },
);

interface Ended {
  readonly stopped: boolean;
  /** The daemon that was asked. */
  readonly pid: number | null;
  /** The daemon that somebody else started meanwhile. */
  readonly taken_over_by?: number;
}

/**
 * End the daemon and wait until it has gone: its lock is free, or its process gone, or daemon.json speaks of another.
 * @returns whether there was one; a problem when it has not ended in time
 */
async function end(timeout_ms: number): Promise<Ended | Problem> {
  const here = paths();
  const [{ isLocked }, { readInfo }] = await Promise.all([
    import("../daemon/lock.ts"),
    import("../daemon/info.ts"),
  ]);
  const deadline = performance.now() + timeout_ms;
  let found = await look(here);
  // It takes no signal and no request yet, or has not said who it is; soon it does.
  const early = () =>
    found.state === "starting" || (found.health !== undefined && !runs(found) && found.state !== "foreign");
  while (early() && performance.now() < deadline) {
    await Bun.sleep(AGAIN_MS);
    found = await look(here);
  }
  if (found.state === "stopped") return { stopped: false, pid: null };
  if (found.state === "foreign")
    return problem("policy_denied", `what listens on ${here.socket} is not the daemon of this folder`, {
      hint: "see 'mp daemon status'; nothing was ended",
    });
  const { info } = found;
  if (info === undefined)
    return problem("timeout", `another process holds the lock ${here.lock} and does not say who it is`, {
      hint: "find it with 'fuser' or 'lsof' on that file",
    });
  const { pid, start_id } = info;
  const asked = runs(found)
    ? await daemonLink({ "no-spawn": true, timeout: Math.min(timeout_ms, ASK_MS) }).execute(
        "daemon.shutdown",
        {},
      )
    : undefined;
  // The polite way leaves a trace of who asked; a daemon that answers nothing still takes a signal.
  if ((asked === undefined || isProblem(asked)) && !signal(pid))
    return problem("policy_denied", `the daemon (pid ${pid}) is another user's`);
  for (;;) {
    if (!isLocked(here.lock)) return { stopped: true, pid };
    const now = await readInfo(here);
    const other = now !== undefined && (now.start_id !== start_id || now.pid !== pid) ? now.pid : undefined;
    if (other !== undefined) return { stopped: true, pid, taken_over_by: other };
    if (!alive(pid)) return { stopped: true, pid };
    if (performance.now() > deadline)
      return problem("timeout", `the daemon (pid ${pid}) has not ended within ${spanOf(timeout_ms)}`, {
        hint: `it may be writing: look with 'mp daemon logs'; if it hangs: kill -9 ${pid} (nothing acknowledged is lost)`,
        details: { pid },
      });
    await Bun.sleep(AGAIN_MS);
  }
}

/** Is there such a process? */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** SIGTERM, which the daemon takes like `daemon.shutdown`. False: the process is not ours to end. */
function signal(pid: number): boolean {
  try {
    process.kill(pid, "SIGTERM");
  } catch (error) {
    return !(error instanceof Error && "code" in error && error.code === "EPERM");
  }
  return true;
}

const restart = verb(
  "Stop the daemon if it runs, then start it.",
  timeout,
  async (values, { out }) => {
    const from = performance.now();
    const allowed = values.timeout ?? START_MS;
    const stopped = await end(allowed);
    if (isProblem(stopped)) return stopped;
    const started = await begin(Math.max(1, Math.round(allowed - (performance.now() - from))));
    if (isProblem(started)) return started;
    if (out.asJson) await out.json({ started: started.started, stopped_pid: stopped.pid, ...started.info });
    else
      await out.said(
        `${stopped.stopped ? "restarted" : "started"}: ${described(started.info)}`,
        lineOf(stopped.stopped ? "restarted" : "started", started.info),
      );
    if (!started.started && !out.asJson) await note("it was another start that took over");
    return undefined;
  },
  {
    notes: [
      "Readers reconnect and go on where they were. A pipe gets: restarted|started, pid, version, socket.",
    ],
  },
);

const status = verb(
  "Show whether the daemon runs, and how it does.",
  quietly,
  async (_, { out }) => {
    const here = paths();
    const found = await look(here);
    const running = runs(found);
    const answer = running
      ? await daemonLink({ "no-spawn": true, timeout: 5 * LOOK_MS }).query("daemon.status", {})
      : undefined;
    const alive = answer && !isProblem(answer) ? answer : undefined;
    const report = {
      ...(alive ?? {
        pid: found.info?.pid ?? null,
        version: found.health?.version ?? null,
        start_id: found.health?.start_id ?? null,
        log_id: found.info?.log_id ?? null,
        head: null,
        addresses: { socket: here.socket },
      }),
      // Asked for its status and silent: that is what unresponsive means.
      state: running && !alive ? "unresponsive" : found.state,
      read_only: alive?.state === "read_only",
      data: here.data,
      log: here.log,
    };
    if (out.asJson) await out.json(report);
    else await out.record(flat(report), out.terminal ? await forPeople(report) : undefined);
    return alive ? 0 : UNAVAILABLE;
  },
  {
    notes: [
      "States: running, running-older (than this program), starting, unresponsive, stopped, foreign (something else",
      "listens there). Exit code 0 when it runs, 6 otherwise; the report is on stdout either way. It starts nothing.",
    ],
  },
);

interface Report extends Readonly<Record<string, unknown>> {
  readonly addresses: { readonly socket: string; readonly tcp?: string };
  readonly projections?: readonly {
    readonly name: string;
    readonly status: string;
    readonly as_of_seq: number;
  }[];
  readonly jobs?: readonly { readonly type: string; readonly done: number; readonly of: number }[];
}

/** The report with a text for every member. */
function flat({ addresses, projections, jobs, ...rest }: Report): Record<string, unknown> {
  return {
    ...rest,
    ...addresses,
    ...(projections && { projections: projections.map((each) => `${each.name}=${each.status}`) }),
    ...(jobs && { jobs: jobs.map((each) => `${each.type}=${each.done}/${each.of}`) }),
  };
}

/** What a person wants to know, first things first. */
async function forPeople(report: Report): Promise<Record<string, unknown>> {
  const { ago, size } = await import("./terminal.ts");
  const { state, pid, version, addresses, projections = [], jobs = [], data, log } = report;
  const bad = projections.filter((each) => each.status !== "serving");
  const running = report.started_at !== undefined && {
    up: ago(String(report.started_at)),
    head: report.head,
    projections:
      bad.length === 0 ? "all serving" : bad.map((each) => `${each.name} is ${each.status}`).join(", "),
    ...(jobs.length > 0 && {
      jobs: jobs.map((each) => `${each.type} ${each.done} of ${each.of}`).join(", "),
    }),
    readers: report.subscriptions,
    "commands waiting": report.queued_commands,
    database: `${size(Number(report.database_bytes))} and ${size(Number(report.wal_bytes))} of WAL`,
    memory: size(Number(report.memory_bytes)),
    "log id": report.log_id,
    "start id": report.start_id,
  };
  return {
    state,
    ...(report.read_only === true && { writes: "refused: see the log" }),
    ...(pid !== null && { pid }),
    ...(version !== null && { version }),
    ...running,
    ...addresses,
    data,
    "log file": log,
  };
}

const logs = verb(
  "Show the end of the daemon's log.",
  {
    follow: { type: "boolean", alias: ["f"], description: "go on as the log grows" },
    lines: {
      type: "string",
      format: "count",
      alias: ["n"],
      valueHint: "N",
      description: "how many lines to begin with (50)",
    },
    ...quietly,
  },
  async (values, context) => {
    const { showLog } = await import("./logs.ts");
    return showLog(paths().log, { follow: values.follow, lines: values.lines ?? 50 }, context.out);
  },
  { notes: ["A pipe, and --json, gets the JSON lines as they are."] },
);

const wait = verb(
  "Wait until the daemon is ready. It starts nothing.",
  { ...timeout, ...quietly },
  async (values, { out }) => {
    const here = paths();
    const allowed = values.timeout ?? START_MS;
    const deadline = performance.now() + allowed;
    let found = await look(here);
    while (!runs(found)) {
      if (performance.now() > deadline)
        return problem("timeout", `no daemon was ready within ${spanOf(allowed)}: it is ${found.state}`, {
          hint: found.state === "unresponsive" ? HUNG_HINT : "start one with 'mp daemon start'",
          details: { state: found.state },
        });
      await Bun.sleep(AGAIN_MS);
      found = await look(here);
    }
    const { info } = found;
    if (out.asJson) await out.json({ state: found.state, ...info });
    else await out.said(`ready: ${described(info)}`, lineOf("ready", info));
    return undefined;
  },
);

const ping = verb(
  "Ask the daemon for a sign of life.",
  asking,
  async (values, { out }) => {
    const from = performance.now();
    const answer = await daemonLink(values).query("daemon.ping", {});
    if (isProblem(answer)) return answer;
    const took = (performance.now() - from).toFixed(1);
    if (out.asJson) await out.json(answer);
    else
      await out.said(`pong from ${answer.version}, log at ${answer.as_of_seq}, ${took} ms`, [
        "pong",
        answer.version,
        answer.as_of_seq,
        took,
      ]);
    return undefined;
  },
  {
    notes: [
      "Like every command it starts the daemon when none runs. To find out whether one does: mp daemon status.",
      "A pipe gets: pong, version, head, milliseconds.",
    ],
  },
);

export const daemon: Noun = {
  doc: "The daemon: start, stop, look after it.",
  verbs: { start, stop, restart, status, ping, wait, logs, run },
};
