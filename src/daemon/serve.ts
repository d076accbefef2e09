/**
 * The daemon's life: claim, open, listen, announce, drain (SPEC §11, §12). `mp daemon run` calls `serve`.
 *
 * Always holds: nothing is opened before the lock is ours; the socket appears only when every read model is current; an
 * accepted command is answered before the process ends, except when its outcome is unknown.
 */
import { readFileSync, rmSync } from "node:fs";
import { userInfo } from "node:os";
import { join } from "node:path";
import { aggregates } from "../domain/index.ts";
import { type App, app } from "../http/app.ts";
import { socketGate } from "../http/request.ts";
import { systemClock, wireTime } from "../kernel/clock.ts";
import { openForReading } from "../kernel/database.ts";
import { dispatcher } from "../kernel/dispatch.ts";
import { LogReader } from "../kernel/log.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { ReadModels } from "../kernel/readmodel.ts";
import { buildRegistry } from "../kernel/registry.ts";
import { Hub } from "../kernel/stream.ts";
import { system } from "../kernel/system.ts";
import { API_VERSION, VERSION } from "../version.ts";
import { GitEffects } from "./git-effects.ts";
import { claimDaemon } from "./handshake.ts";
import { type DaemonInfo, removeInfo, writeInfo } from "./info.ts";
import { Jobs } from "./jobs.ts";
import type { Lock } from "./lock.ts";
import { type Logger, logger } from "./logger.ts";
import { type Paths, prepare } from "./paths.ts";
import { WriteQueue } from "./queue.ts";
import { Store } from "./store.ts";
import { systemAnswers } from "./system.ts";
import { sessionTokens } from "./tokens.ts";
import { sessionVariables } from "./variables.ts";

/** What requests, streams and jobs hear once the daemon is stopping. */
const STOPPING = problem("overloaded", "the daemon is stopping", {
  hint: "try again: the next one takes over",
});

/** How a daemon came up: it runs in this process until `ended`, or another one was there already. */
export type Served =
  | { readonly info: DaemonInfo; readonly ended: Promise<number>; readonly stop: () => void }
  | { readonly running: DaemonInfo };

/**
 * Become the daemon of these paths.
 * @param paths where everything is
 * @returns once clients can connect; `ended` gives the exit code after the drain. A problem when it cannot be.
 */
export async function serve(paths: Paths): Promise<Served | Problem> {
  // Before anything is made: the socket must never be open to others, not even for a moment (SPEC §10).
  const umask = process.umask(0o077);
  for (const name of sessionVariables) delete process.env[name];
  const refusal = prepare(paths);
  if (refusal) return refusal;
  const claim = await claimDaemon(paths);
  if (isProblem(claim) || "running" in claim) return claim;
  const log = logger(paths.log, { level: "info" });
  try {
    const served = await start(paths, claim.lock, log, umask);
    if (isProblem(served)) {
      log.error({ problem: served }, "the daemon cannot start");
      claim.lock.release();
    }
    return served;
  } catch (error) {
    log.fatal({ err: error }, "the daemon met a bug while it started");
    claim.lock.release();
    throw error;
  }
}

async function start(paths: Paths, lock: Lock, log: Logger, umask: number): Promise<Served | Problem> {
  const start_id = systemClock.id();
  const { promise: ended, resolve: end } = Promise.withResolvers<number>();
  let hub: Hub | undefined;
  let store: Store | undefined;
  let git: GitEffects | undefined;
  // Before there is anything to drain only the loss of the writer ends it.
  let stop = () => end(1);

  const opened = await WriteQueue.open(paths.database, start_id, {
    progress(name, done, of) {
      if (of > 0) log.info({ projection: name, done, of }, "rebuilding");
    },
    committed(events, names) {
      hub?.publish(events, names);
      if (names.includes("worktree")) git?.committed(events);
    },
    released: (digests) => store?.released(digests),
    shutdown: () => stop(),
    readOnly: (code) =>
      code === undefined
        ? log.info("the database can be written again")
        : log.error({ code }, "the database cannot be written: reads go on, commands are refused"),
    warning: (message) => log.warn(message),
    bug: (trace_id, error) => log.error({ trace_id, error }, "a command met a bug"),
    lost: (error) => {
      log.fatal({ error }, "the writer is lost: ending, so that the next start finds out what is stored");
      stop();
    },
  });
  if ("refused" in opened)
    return problem("daemon_unavailable", `the database cannot be served: ${opened.refused}`, {
      hint: `see ${paths.log}`,
    });
  const { queue, log_id } = opened;

  const registry = buildRegistry(aggregates, system);
  const reader = new LogReader(openForReading(paths.database));
  hub = new Hub(reader, registry, log_id);
  const info: DaemonInfo = {
    pid: process.pid,
    version: VERSION,
    api_version: API_VERSION,
    start_id,
    log_id,
    started_at: wireTime(systemClock.now()),
    addresses: { socket: paths.socket },
  };
  const jobs = new Jobs(paths.database);
  let stopping = false;
  const closed = () => (stopping ? STOPPING : undefined);
  const user = userName();
  const tokens = sessionTokens({ keys: paths.keys, db: reader.db, registry, user });
  const gate = socketGate(user, process.getuid?.() ?? 0, tokens.caller);
  const readModels = new ReadModels(reader.db, registry);
  const effects = new GitEffects({ queue, readModels, log, notes: join(paths.data, "git"), umask });
  git = effects;
  const dispatch = dispatcher({
    closed,
    now: systemClock.now,
    registry,
    submit: (request) => effects.submit(request),
    readModels,
    hub,
    systemQueries: systemAnswers({ info, registry, hub, queue, jobs, tokens, database: paths.database }),
  });
  store = new Store({
    folder: paths.artifacts,
    db: reader.db,
    registry,
    change: (change) => queue.blob(change),
    warning: (message) => log.warn(message),
    bug: (error) => log.error({ err: error }, "the artifact store met a bug"),
  });
  const routes = app({
    registry,
    dispatch,
    hub,
    bytes: store,
    health: { status: "ok", version: VERSION, api_version: API_VERSION, start_id },
    gate: (request) => closed() ?? gate(request),
    onBug: (trace_id, error) => log.error({ trace_id, err: error }, "a request met a bug"),
  });
  const parts: Running = { routes, hub, queue, git, store, jobs, paths, lock, log };
  stop = () => {
    if (stopping) return;
    stopping = true;
    drain(parts).then(end, (error: unknown) => {
      log.fatal({ err: error }, "the daemon met a bug while it stopped");
      end(1);
    });
  };
  try {
    listen(routes, paths);
    writeInfo(paths, info);
    git.settle();
  } catch (error) {
    reader.db.close();
    await queue.close();
    throw error;
  }
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) process.on(signal, stop);
  log.info({ start_id, version: VERSION, log_id, head: hub.head, socket: paths.socket }, "ready");
  store.begin();
  return { info, ended, stop };
}

/** The name of the user that runs the daemon. The runtime takes it from the environment, which a service may lack. */
function userName(): string {
  const { username, uid } = userInfo();
  if (username !== "" && username !== "unknown") return username;
  try {
    const line = readFileSync("/etc/passwd", "utf8")
      .split("\n")
      .find((each) => each.split(":")[2] === String(uid));
    return line?.split(":")[0] ?? `uid-${uid}`;
  } catch {
    return `uid-${uid}`;
  }
}

function listen(routes: App, paths: Paths): void {
  // A socket that a killed daemon left behind: the lock is ours, so nobody listens on it.
  rmSync(paths.socket, { force: true });
  // A socket needs no execute bit: 0600 from its first moment on (SPEC §10). Binding is synchronous.
  const before = process.umask(0o177);
  routes.listen({
    unix: paths.socket,
    reusePort: false,
    development: false,
    idleTimeout: 0,
    // Bodies are measured by the routes, which answer with a problem; the runtime's own answer has no body.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    websocket: {
      maxPayloadLength: 2 << 20,
      backpressureLimit: 1 << 20,
      idleTimeout: 120,
      perMessageDeflate: false,
    },
  } as Parameters<App["listen"]>[0]);
  process.umask(before);
}

/** What a running daemon is made of. */
interface Running {
  readonly routes: App;
  readonly hub: Hub;
  readonly queue: WriteQueue;
  readonly git: GitEffects;
  readonly store: Store;
  readonly jobs: Jobs;
  readonly paths: Paths;
  readonly lock: Lock;
  readonly log: Logger;
}

/**
 * Stop taking requests, answer what was accepted, end the streams, close the database, let go.
 * @returns the exit code: 1 when the writer is lost; then the database is left as it is, and locked until the process
 * ends, for the next start to find out what is stored
 */
async function drain({ routes, hub, queue, git, store, jobs, paths, lock, log }: Running): Promise<number> {
  log.info("stopping");
  // Gone from the file system at once: a client that connects from now on starts the next daemon.
  rmSync(paths.socket, { force: true });
  const { server } = routes;
  const closed = server?.stop(false);
  hub.close(STOPPING);
  jobs.close(STOPPING);
  await git.close();
  await queue.flush();
  // What is still open after the answers went out is an idle keep-alive or a reader that does not read.
  await Promise.race([closed, Bun.sleep(250)]);
  await server?.stop(true);
  await store.close();
  removeInfo(paths);
  // Readers first: the last connection to close takes the WAL away.
  hub.reader.db.close();
  if (!queue.lost) await queue.close();
  if (queue.lost) return 1;
  log.info("stopped");
  lock.release();
  return 0;
}
