/**
 * What the leases of the domain have in common (SPEC §8): the claim of a task, the writer lock of a worktree, the heartbeat of
 * a session. How long one may last, and until when one does. That a lease is there, and whose it is, follows from the log and
 * is each aggregate's own matter; only its end, which renewals put off, is looked up here.
 */
import { Type } from "typebox";
import { type Find, later } from "../kernel/aggregate.ts";

/** How long a lease lasts when the command does not say, in milliseconds. */
export const DEFAULT_TTL_MS = 300_000;

const SHORTEST_TTL_MS = 1_000;
const LONGEST_TTL_MS = 86_400_000;
const UNIX_START = "1970-01-01T00:00:00.000Z";

/** The schema of a ttl: a second to a day, in milliseconds. `what` says what lasts so long, and without what. */
export function ttl(what: string) {
  return Type.Integer({
    minimum: SHORTEST_TTL_MS,
    maximum: LONGEST_TTL_MS,
    description: `how long ${what}, in milliseconds: 1000 to 86400000, ${DEFAULT_TTL_MS} when absent`,
  });
}

/**
 * The schema of a ttl that a command asks for: the same values as `ttl`, told as people do.
 * @param absent what it is when it is not given
 */
export function askedTtl(what: string, absent = "5m") {
  const description = `how long ${what}, 1s to 24h; ${absent} when absent`;
  return Type.Optional(Type.Integer({ minimum: SHORTEST_TTL_MS, maximum: LONGEST_TTL_MS, description }));
}

/** Until when the lease of a stream lasts unless it is renewed, RFC 3339; undefined when it has none. */
export function endOf({ one }: Pick<Find, "one">, stream: string): string | undefined {
  const lease = one("leases", { stream });
  return lease && later(UNIX_START, lease.expires_at);
}
