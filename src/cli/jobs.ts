/**
 * Long queries of the daemon, and how far they are: the answer comes when it is done, `daemon.status` tells meanwhile.
 */
import type { Ask } from "../client/types.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Asking } from "./command.ts";
import { daemonLink } from "./link.ts";
import { progress } from "./progress.ts";

const LOOK_MS = 200;

/**
 * Ask a query that takes long, with progress on stderr.
 * @param type `log.verify` or `projection.verify`
 */
export async function longQuery<T extends "log.verify" | "projection.verify">(
  type: T,
  values: Partial<Asking>,
): Promise<Ask<T> | Problem> {
  const link = daemonLink(values);
  // Starts the daemon if need be, so that what is counted below is the work alone.
  const target = await link.address();
  if (isProblem(target)) return target;
  const told = await progress(type);
  let done = false;
  const answer = link.query(type, {} as never).finally(() => {
    done = true;
  });
  const watch = (async () => {
    for (;;) {
      await Promise.race([answer, Bun.sleep(LOOK_MS)]);
      if (done) return;
      const status = await link.query("daemon.status", {});
      const job = isProblem(status) ? undefined : status.jobs.findLast((each) => each.type === type);
      if (job && !done) await told.report(job.done, job.of);
    }
  })();
  const found = await answer;
  await watch;
  await told.end(!isProblem(found));
  return found;
}
