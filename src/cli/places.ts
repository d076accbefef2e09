/**
 * Paths as the daemon wants them (SPEC §8): absolute and canonical, with the repository they belong to.
 *
 * The CLI sees the caller's disk, the daemon need not: so it is here that a path is resolved and git's files are read.
 */
import { existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, isAbsolute, join, relative, resolve } from "node:path";
import type { Problem } from "../kernel/problems.ts";
import { usage } from "./parse.ts";

/** What must be there: the folder itself; the folder that it will be made in; nothing. */
export type PathRule = "folder" | "new" | "any";

/**
 * A path as the daemon wants it. What must be there must be: a mistyped path would be remembered for ever.
 * @param text as typed, relative to this process's folder
 * @param label what the command line calls it
 * @param rule what must be there
 */
export function canonicalPath(text: string, label: string, rule: PathRule = "folder"): string | Problem {
  const path = isAbsolute(text) ? resolve(text) : resolve(process.cwd(), text);
  if (rule === "any") return asFarAsThere(path);
  if (rule === "new" && !existsSync(path)) {
    const parent = folderAt(dirname(path), label, dirname(text));
    return typeof parent === "string" ? join(parent, basename(path)) : parent;
  }
  return folderAt(path, label, text);
}

/** Is a text meant as a path, rather than as an id or a name? */
export function looksLikePath(text: string): boolean {
  return /[/\\]|^\.{1,2}$/.test(text) || existsSync(resolve(process.cwd(), text));
}

function folderAt(path: string, label: string, text: string): string | Problem {
  try {
    const real = realpathSync(path);
    return statSync(real).isDirectory() ? real : usage(`${label}: '${text}' is no folder`, FOLDER_HINT);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
    const why = code === "ENOENT" ? "does not exist" : `cannot be reached (${code})`;
    return usage(`${label}: the path '${text}' ${why}`, FOLDER_HINT);
  }
}

/** A path that may be gone: links are followed as far as there is something. */
function asFarAsThere(path: string): string {
  for (let there = path; ; there = dirname(there)) {
    if (there === dirname(there)) return path;
    try {
      return join(realpathSync(there), relative(there, path));
    } catch (error) {
      if (!(error instanceof Error)) throw error;
    }
  }
}

const FOLDER_HINT = "give the path of a folder that is there";

/**
 * The git common directory of the checkout that a path is in: the one folder that all worktrees of a repository share.
 * Reads `.git`, `gitdir:` and `commondir` as git does, and needs no git.
 * @returns undefined when the path is in no checkout
 */
export function gitCommonDir(path: string): string | undefined {
  for (let folder = path; ; folder = dirname(folder)) {
    const found = commonDirAt(join(folder, ".git"));
    if (found !== undefined || folder === dirname(folder)) return found;
  }
}

function commonDirAt(entry: string): string | undefined {
  try {
    const folder = statSync(entry).isDirectory()
      ? entry
      : pointed(readFileSync(entry, "utf8"), dirname(entry));
    // A folder named .git that is none: git itself looks for HEAD.
    if (folder === undefined || !statSync(join(folder, "HEAD"), { throwIfNoEntry: false })) return undefined;
    const shared = readIf(join(folder, "commondir"));
    return realpathSync(shared === undefined ? folder : resolve(folder, shared.trim()));
  } catch {
    return undefined;
  }
}

/** Where a `.git` file points to. */
function pointed(text: string, from: string): string | undefined {
  const path = /^gitdir: (.+?)\s*$/.exec(text)?.[1];
  return path === undefined ? undefined : resolve(from, path);
}

function readIf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
