/**
 * The one path of a folder on this machine (SPEC §8: paths are absolute and canonical).
 *
 * Always holds: two names of one place, as a link and what it points to, are one path here; so one folder is never two
 * worktrees with two writers. A path that is not there is followed as far as something is.
 */
import { realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { SchemaError } from "../kernel/problems.ts";

/** A path with the links of all that is there resolved. */
export function canonical(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    const above = dirname(path);
    return above === path ? path : join(canonical(above), basename(path));
  }
}

/** What has to be a place on the daemon's own machine: worktrees are (those of a project may be elsewhere). */
const PLACED = new Set(["worktree.create", "worktree.register", "worktree.check"]);

/** What is wrong with the path of a command or query that is about a place on this machine, as for `invalid_schema`. */
export function misplaced(type: string, payload: Readonly<Record<string, unknown>>): SchemaError[] {
  if (!PLACED.has(type)) return [];
  const real = canonical(payload.path as string);
  return real === payload.path
    ? []
    : [{ pointer: "/payload/path", message: `must be canonical: on this machine it is ${real}` }];
}
