/**
 * Which machine this is, as worktrees say it (SPEC §8): their identity is (host, path).
 *
 * Always holds: the name is the one that the log's first worktree has; before there is one, that of the machine now. So a
 * machine that is renamed, or a container that has a new name at each start, stays the one whose worktrees it has. Left out
 * on purpose: an id of the hardware. A data folder is served by one machine, and goes with its worktrees when it moves.
 */
import type { Database } from "bun:sqlite";
import { hostname } from "node:os";

/** The name of this machine in worktrees (SPEC §8), from a connection on which the read models are in place. */
export function hostOf(db: Database): string {
  // There is none while its projection has never been built.
  const built = db.query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'worktrees'").get();
  const first = built
    ? db.query<{ host: string }, []>("SELECT host FROM worktrees ORDER BY worktree_id LIMIT 1").get()
    : null;
  return first?.host ?? hostname();
}
