/**
 * The front of a daemon: everything that is served, put together on an open database, and how it drains (SPEC §11).
 *
 * Always holds: the socket appears only when every read model is current; an accepted command is answered before the
 * process ends, except when its outcome is unknown.
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
import { problem } from "../kernel/problems.ts";
import { ReadModels } from "../kernel/readmodel.ts";
import { buildRegistry } from "../kernel/registry.ts";
import { Hub } from "../kernel/stream.ts";
import { system } from "../kernel/system.ts";
import { API_VERSION, VERSION } from "../version.ts";
import { misplaced } from "./canonical.ts";
import { GitEffects } from "./git-effects.ts";
import { type DaemonInfo, removeInfo, writeInfo } from "./info.ts";
import { Jobs } from "./jobs.ts";
import type { Lock } from "./lock.ts";
import type { Logger } from "./logger.ts";
import type { Paths } from "./paths.ts";
import type { WriteQueue } from "./queue.ts";
import { Store } from "./store.ts";
import { systemAnswers } from "./system.ts";
import { sessionTokens } from "./tokens.ts";

/** What requests, streams and jobs hear once the daemon is stopping. */
const STOPPING = problem("overloaded", "the daemon is stopping", {
  hint: "try again: the next one takes over",
});

// Made while the module is loaded: by then the writer's thread has the database to open.
const registry = buildRegistry(aggregates, system);

/** What a front is opened with. */
interface Given {
  readonly queue: WriteQueue;
  readonly log_id: string;
  readonly start_id: string;
  readonly paths: Paths;
  readonly lock: Lock;
  readonly log: Logger;
  /** What files that are the user's own are made with. */
  readonly umask: number;
  /** Told the exit code after the drain. */
  readonly end: (code: number) => void;
}

/** A front that is open: what the writer's news goes to. */
export interface Front {
  readonly info: DaemonInfo;
  readonly hub: Hub;
  readonly git: GitEffects;
  readonly store: Store;
  /** Begin to drain, unless that has begun. */
  readonly stop: () => void;
}

/**
 * Open the front.
 * @returns once clients can connect
 * @throws what stands in the way of listening, with the database closed
 */
export async function openFront({
  queue,
  log_id,
  start_id,
  paths,
  lock,
  log,
  umask,
  end,
}: Given): Promise<Front> {
  const reader = new LogReader(openForReading(paths.database));
  const hub = new Hub(reader, registry, log_id);
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
  const git = new GitEffects({ queue, readModels, log, notes: join(paths.data, "git"), umask });
  const dispatch = dispatcher({
    closed,
    now: systemClock.now,
    registry,
    submit: (request) => git.submit(request),
    misplaced,
    readModels,
    hub,
    systemQueries: systemAnswers({ info, registry, hub, queue, jobs, tokens, database: paths.database }),
  });
  const store = new Store({
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
  const stop = () => {
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
  return { info, hub, git, store, stop };
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
