/**
 * Running git, and reading what it says (SPEC §8). Which runs there are, and what becomes of them, is in git-effects.ts.
 *
 * Always holds: git sees none of the daemon's GIT_* variables, speaks English, asks nothing, is killed with all it has started
 * when it takes too long, and can be found again by its mark when the daemon that began it is gone. What it says is cut,
 * without controls and credentials, before anybody stores or shows it.
 */
import {
  closeSync,
  existsSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";

/** One entry of `git worktree list --porcelain`. */
export interface Listed {
  readonly path: string;
  /** The commit that is checked out; absent in a bare repository. */
  readonly head?: string;
  /** Without `refs/heads/`; absent when it is detached or bare. */
  readonly branch?: string;
  readonly bare: boolean;
  readonly detached: boolean;
  /** Why it may not be removed, "" when nobody said; absent when it is not locked. */
  readonly locked?: string;
  /** Why git would forget it, such as that its folder is gone; absent when it would not. */
  readonly prunable?: string;
}

/**
 * Read what `git worktree list --porcelain` says.
 * @param text its output; attributes this does not know are left out
 * @param end what ends an attribute: NUL with `-z`, a newline without; an entry ends with an empty attribute
 */
export function parseWorktrees(text: string, end = "\0"): Listed[] {
  return text
    .split(end + end)
    .map((entry) =>
      Object.fromEntries(
        entry.split(end).map((attribute) => {
          const at = attribute.indexOf(" ");
          return at < 0 ? [attribute, ""] : [attribute.slice(0, at), attribute.slice(at + 1)];
        }),
      ),
    )
    .flatMap(({ worktree: path, HEAD: head, branch, bare, detached, locked, prunable }) =>
      path
        ? [
            {
              path,
              ...(head !== undefined && { head }),
              ...(branch !== undefined && { branch: branch.replace(/^refs\/heads\//, "") }),
              bare: bare !== undefined,
              detached: detached !== undefined,
              ...(locked !== undefined && { locked }),
              ...(prunable !== undefined && { prunable }),
            },
          ]
        : [],
    );
}

/** How a run of git came to its end. */
export interface Ran {
  /** Exit code; null when it was killed, or could not be begun. */
  readonly code: number | null;
  readonly killed: boolean;
  readonly out: string;
  /** What it said, or why it did not run: for people, at most 4,096 characters. */
  readonly said: string;
}

/** Longest run of git, in milliseconds. */
const LIMIT_MS = 600_000;
/** After a polite signal git tidies up; then it is killed. */
const POLITE_MS = 5_000;
/** A program that a hook left in the background may keep the output open: it is not waited for. */
const OUTPUT_MS = 500;
const MOST_SAID = 4_096;
/** Bytes of a file with what git said that are looked at. */
const MOST_READ = 65_536;

/** The environment without anything that would turn git to another repository, another language or a prompt. */
function environment(): Record<string, string | undefined> {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^(GIT_|LC_|LANGUAGE$|SSH_ASKPASS)/.test(name),
  );
  return { ...Object.fromEntries(kept), LC_ALL: "C", GIT_TERMINAL_PROMPT: "0" };
}

/** Text of another program as it may be stored and shown: no controls, no half characters, no credentials, cut to its limit. */
export function saying(text: string): string {
  return text
    .replace(/(?![\n\t])\p{Cc}/gu, "")
    .replace(/(\b[a-z][a-z0-9+.-]{0,20}:\/\/)[^\s/@]*@/gi, "$1")
    .trim()
    .slice(0, MOST_SAID)
    .toWellFormed();
}

/**
 * Run git to its end.
 * @param args its arguments
 * @param how `umask`: what its files get; `limit_ms`: then it is killed, 10 minutes when absent; `signal`: kills it before;
 *   `output`: a file for what it says, so that it can go on when the daemon is gone, and `out` stays empty; `index`: a file
 *   that it uses as its index
 * @returns `code` null with `said` when git is not installed, or was killed
 * @throws the system's error when the machine refuses to begin it: no room for the file, no process more
 */
export async function runGit(
  args: readonly string[],
  how: { umask?: number; limit_ms?: number; signal?: AbortSignal; output?: string; index?: string } = {},
): Promise<Ran> {
  const { umask = 0o022, limit_ms = LIMIT_MS, signal, output, index } = how;
  const env = environment();
  if (index !== undefined) env.GIT_INDEX_FILE = index;
  const git = Bun.which("git", { PATH: env.PATH ?? "" });
  if (git === null) return notRun("git is not installed on this machine, or not on the daemon's PATH");
  if (signal?.aborted) return notRun("the daemon is stopping");
  // The daemon's own umask would hide a worktree's files from others; changing it here would open the daemon's.
  const asUser = ["/bin/sh", "-c", `umask ${umask.toString(8)}; exec "$0" "$@"`];
  const file = output === undefined ? undefined : openSync(output, "w", 0o600);
  const begin = () =>
    Bun.spawn([...(process.platform === "win32" ? [] : asUser), git, ...args], {
      stdin: "ignore",
      stdout: file ?? "pipe",
      stderr: file ?? "pipe",
      env,
      // In a group of its own, so that its hooks end with it, and Ctrl-C at a daemon's terminal does not cut it off.
      detached: true,
    });
  let child: ReturnType<typeof begin>;
  try {
    child = begin();
  } finally {
    if (file !== undefined) closeSync(file);
  }
  const group = process.platform === "win32" ? child.pid : -child.pid;
  let killed: string | undefined;
  let late: Timer | undefined;
  const kill = (why: string) => {
    if (killed !== undefined) return;
    killed = why;
    end(group, "SIGTERM");
    late = setTimeout(() => end(group, "SIGKILL"), POLITE_MS);
  };
  const limit = setTimeout(() => kill(`git was killed: it had not ended after ${limit_ms} ms`), limit_ms);
  const stopping = () => kill("git was killed: the daemon is stopping");
  signal?.addEventListener("abort", stopping);
  const [out, err] = [collect(child.stdout), collect(child.stderr)];
  await child.exited;
  // Whatever of it is left, such as a hook.
  if (killed !== undefined) end(group, "SIGKILL");
  clearTimeout(limit);
  clearTimeout(late);
  signal?.removeEventListener("abort", stopping);
  const told = await out();
  const said = output === undefined ? await err() : await saidIn(output);
  if (killed === undefined && child.signalCode !== null) killed = `git was killed by ${child.signalCode}`;
  if (killed !== undefined)
    return { code: null, killed: true, out: told, said: saying(`${killed}\n${said}`) };
  const code = child.exitCode;
  return { code, killed: false, out: told, said: saying(said) || `git ended with code ${code}` };
}

/** What a file with git's output says at its beginning; nothing when it is not there. */
export async function saidIn(output: string): Promise<string> {
  return existsSync(output) ? Bun.file(output).slice(0, MOST_READ).text() : "";
}

const notRun = (said: string): Ran => ({ code: null, killed: false, out: "", said });

/** Send a signal to a process, or to a group by its negated id; it may be gone already, or be another user's by now. */
function end(pid: number, signal: "SIGTERM" | "SIGKILL"): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    // EPERM is also what macOS says of a group in which nobody is alive.
    if (!["ESRCH", "EPERM"].includes((error as { code?: string }).code ?? "")) throw error;
  }
}

/** Read a stream, if it is one, as it comes; the function gives what has come, once it has ended or a little later. */
function collect(stream: ReadableStream<Uint8Array> | number | undefined): () => Promise<string> {
  if (!(stream instanceof ReadableStream)) return async () => "";
  const parts: Uint8Array[] = [];
  const reader = stream.getReader();
  const ended = (async () => {
    for (let next = await reader.read(); !next.done; next = await reader.read()) parts.push(next.value);
  })().catch(() => undefined); // What cannot be read any more has ended too.
  return async () => {
    await Promise.race([ended, Bun.sleep(OUTPUT_MS)]);
    await reader.cancel();
    return Buffer.concat(parts).toString();
  };
}

/** Ask git for the worktrees of a repository; what it said when it could not tell. */
export async function worktreesOf(
  repository: string,
  signal: AbortSignal,
): Promise<readonly Listed[] | { said: string }> {
  const list = ["-C", repository, "worktree", "list", "--porcelain"];
  const ran = await runGit([...list, "-z"], { signal });
  if (ran.code === 0) return parseWorktrees(ran.out);
  // Before 2.36 git knew no -z.
  const plain = ran.code === 129 ? await runGit(list, { signal }) : ran;
  return plain.code === 0 ? parseWorktrees(plain.out, "\n") : { said: plain.said };
}

/** A path as git shows it: links resolved as far as there is something. */
export function real(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    const above = dirname(path);
    return above === path ? path : join(real(above), basename(path));
  }
}

/** Asking which repository it is takes git no time. */
const ASKED_MS = 10_000;

/** The folder that all worktrees of a repository share, canonical; undefined when git cannot tell. */
export async function sharedFolderOf(repository: string, signal: AbortSignal): Promise<string | undefined> {
  // An older git knows no --path-format: what it says is seen from the repository.
  const ran = await runGit(["-C", repository, "rev-parse", "--git-common-dir"], {
    signal,
    limit_ms: ASKED_MS,
  });
  return ran.code === 0 ? real(resolve(repository, ran.out.replace(/\n$/, ""))) : undefined;
}

/** The folder in which git keeps what it knows of the worktree at a path; undefined when there is none. */
function ownFolderOf(shared: string, path: string): string | undefined {
  const all = join(shared, "worktrees");
  return namesIn(all)
    .map((name) => join(all, name))
    .find((own) => {
      const link = textOf(join(own, "gitdir"))?.trimEnd();
      return link !== undefined && real(dirname(resolve(own, link))) === real(path);
    });
}

/**
 * Whether a folder has nothing in it but what git itself has put there, so that nobody misses it: nothing at all, its link to
 * this repository, and files as they are in the commit that the worktree is at. A file that was cut off is none of these.
 * @param shared as `sharedFolderOf` has it
 * @param listed whether git lists it as a worktree of the repository: without that no file in it can be told to be git's
 * @param how `index`: a file that may be written and is gone afterwards; `signal` ends it, and then it is not known
 */
export async function onlyOfGit(
  path: string,
  shared: string,
  listed: boolean,
  { index, signal }: { index: string; signal: AbortSignal },
): Promise<boolean> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isDirectory()) return false;
  const names = readdirSync(path);
  if (names.includes(".git")) {
    const link = /^gitdir: ([^\n]+)\n?$/.exec(textOf(join(path, ".git")) ?? "")?.[1];
    if (link === undefined || dirname(real(resolve(path, link))) !== join(shared, "worktrees")) return false;
  }
  if (names.every((name) => name === ".git")) return true;
  const own = listed ? ownFolderOf(shared, path) : undefined;
  if (own === undefined) return false;
  const options = ["core.sparseCheckout=false", "core.fsmonitor=false"].flatMap((option) => ["-c", option]);
  const run = (...args: string[]) =>
    runGit(["-C", path, "--git-dir", own, "--work-tree", path, ...options, ...args], { index, signal });
  try {
    if ((await run("read-tree", "HEAD")).code !== 0) return false;
    const { code, out } = await run("status", "--porcelain", "-z", "--untracked-files=all", "--ignored");
    // That files are missing is all that may differ.
    return code === 0 && out.split("\0").every((line) => line === "" || line.startsWith(" D "));
  } finally {
    rmSync(index, { force: true });
  }
}

/** The names in a folder; nothing when it is not there. */
function namesIn(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : [];
}

/** What a file says; undefined for anything else. */
function textOf(path: string): string | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.isFile() ? readFileSync(path, "utf8") : undefined;
}

/** An option for git that does nothing but tell its process from any other. */
export const markOf = (id: string) => ["-c", `mp.worktree=${id}`] as const;

/** How often a run of git that a killed daemon left is looked at, in milliseconds. */
const LOOK_MS = 250;

/**
 * Wait until the git that a killed daemon left behind has ended; it has its ten minutes too, then it is killed.
 * @param id what it was marked with
 * @param signal ends the wait
 * @param limit_ms its ten minutes
 */
export async function orphansEnded(id: string, signal: AbortSignal, limit_ms = LIMIT_MS): Promise<void> {
  const mark = markOf(id);
  // What comes later was not left by anybody who is gone.
  let left = await gitsWith(mark);
  for (let waited = 0; left.length > 0 && !signal.aborted; waited += LOOK_MS) {
    if (waited >= limit_ms) for (const pid of left) end(-pid, "SIGKILL");
    await Bun.sleep(LOOK_MS);
    const now = await gitsWith(mark);
    left = left.filter((pid) => now.includes(pid));
  }
}

/**
 * The ids of the processes that are a git begun by `runGit` with a mark: git, or a script of that name, with the mark as its
 * first option, at the head of a group of its own. A program that only has the mark among its words is somebody else's.
 */
async function gitsWith(mark: readonly string[]): Promise<number[]> {
  const ours = (words: readonly string[]) => {
    const at = words.indexOf(mark[1]!);
    return at >= 2 && words[at - 1] === mark[0] && basename(words[at - 2]!) === "git";
  };
  if (process.platform === "win32") return [];
  if (process.platform === "linux")
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && ours(ofProcess(name, "cmdline").split("\0")))
      .filter((pid) => {
        // pid (name) state parent group session: the name may have anything in it.
        const stat = ofProcess(pid, "stat");
        const [, , group, session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
        return group === pid && session === pid;
      })
      .map(Number);
  const child = Bun.spawn(["ps", "-axww", "-o", "pid=,pgid=,command="], { stdout: "pipe", stderr: "ignore" });
  const lines = (await Bun.readableStreamToText(child.stdout)).split("\n");
  return lines.flatMap((line) => {
    const [pid, group, ...words] = line.trim().split(/\s+/);
    return pid === group && ours(words) ? [Number(pid)] : [];
  });
}

/** A file about a process; nothing once it has ended. */
function ofProcess(pid: string, file: "cmdline" | "stat"): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    return "";
  }
}
