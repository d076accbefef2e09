/**
 * How a daemon comes to be: claim, open, serve (SPEC §11, §12). `mp daemon run` calls `serve`; what runs then is front.ts.
 *
 * Always holds: nothing is opened before the lock is ours. Loading is most of a start, so the writer's thread loads its code
 * and opens the database while this thread loads the front: nothing of that is imported here at once.
 */
import { systemClock } from "../kernel/clock.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Front } from "./front.ts";
import { claimDaemon } from "./handshake.ts";
import type { DaemonInfo } from "./info.ts";
import type { Lock } from "./lock.ts";
import { type Logger, logger } from "./logger.ts";
import { type Paths, prepare } from "./paths.ts";
import { WriteQueue } from "./queue.ts";
import { sessionVariables } from "./variables.ts";

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
  // What is committed before the front is there (a lease that has run out) it finds in the database.
  let front: Front | undefined;
  const stop = () => front?.stop();

  const opening = WriteQueue.open(paths.database, start_id, {
    progress(name, done, of) {
      if (of > 0) log.info({ projection: name, done, of }, "rebuilding");
    },
    committed(events, names) {
      front?.hub.publish(events, names);
      if (names.includes("worktree")) front?.git.committed(events);
    },
    released: (digests) => front?.store.released(digests),
    shutdown: stop,
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
  const { openFront } = await import("./front.ts");
  const opened = await opening;
  if ("refused" in opened)
    return problem("daemon_unavailable", `the database cannot be served: ${opened.refused}`, {
      hint: `see ${paths.log}`,
    });
  front = await openFront({ ...opened, start_id, paths, lock, log, umask, end });
  // Lost while the front was loading: it drains at once.
  if (opened.queue.lost) stop();
  return { info: front.info, ended, stop };
}
