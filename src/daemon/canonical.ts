/**
 * The one path of a folder on this machine (SPEC §8: paths are absolute and canonical).
 *
 * Always holds: two names of one place, as a link and what it points to, are one path here; so one folder is never two
 * worktrees with two writers. A path that is not there is followed as far as something is. Nothing here keeps the thread
 * waiting: a disk may be slow, or far away.
 */
import { lstat, realpath } from "node:fs/promises";
import { join, resolve, sep } from "node:path";
import type { SchemaError } from "../kernel/problems.ts";

/**
 * A path with the links of all that is there resolved.
 * @param path absolute
 * @returns undefined when a link on its way leads nowhere, or cannot be followed
 */
export async function canonical(path: string): Promise<string | undefined> {
  const names = resolve(path).split(sep);
  const upTo = (count: number) => names.slice(0, count).join(sep) || sep;
  // By halves: a path may have thousands of names that are not there.
  let [there, missing] = [1, names.length + 1];
  while (missing - there > 1) {
    const middle = (there + missing) >> 1;
    if (await isThere(upTo(middle))) there = middle;
    else missing = middle;
  }
  try {
    return join(await realpath(upTo(there)), ...names.slice(there));
  } catch {
    return undefined;
  }
}

function isThere(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}

/** What has to be a place on the daemon's own machine: worktrees are (those of a project may be elsewhere). */
const PLACED = new Set(["worktree.create", "worktree.register", "worktree.check"]);

/**
 * What is wrong with the path of a command or query that is about a place on this machine.
 * @param type of the command or query
 * @param payload valid by its schema
 * @returns as for `invalid_schema`; undefined at once where there is nothing to look at
 */
export function misplaced(
  type: string,
  { path }: Readonly<Record<string, unknown>>,
): Promise<SchemaError[]> | undefined {
  if (!PLACED.has(type) || typeof path !== "string") return undefined;
  return canonical(path).then((real) =>
    real === path
      ? []
      : [{ pointer: "/payload/path", message: "must be canonical: a symbolic link is on its way" }],
  );
}
