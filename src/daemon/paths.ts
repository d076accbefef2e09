/**
 * Where every file of mp lives (SPEC §11), and the folders around them made safe (SPEC §10).
 *
 * `paths` only computes. `prepare` is the one place that makes folders, and it refuses a place where somebody
 * else could swap a file under us. Lock and daemon.json stand beside the database they speak for, not in the
 * runtime folder: a shell without XDG_RUNTIME_DIR must still meet the same daemon. Every CLI command pays for
 * this module's import, so node:fs (about 1 ms) is loaded only where it is used. The umask is left to the
 * daemon process: set here it would leak into what the CLI starts for the user.
 */
import type { Stats } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { posix, win32 } from "node:path";
import { type Problem, problem } from "../kernel/problems.ts";

/** Every folder and file of one installation, absolute. */
export interface Paths {
  /** MP_HOME made absolute; absent when the platform's own folders are used. */
  readonly home?: string;
  /** Folder of what must not be lost. */
  readonly data: string;
  /** Folder of config.toml. */
  readonly config: string;
  /** Folder of logs. */
  readonly state: string;
  /** Folder of the socket; private to the user. */
  readonly runtime: string;
  readonly configFile: string;
  readonly database: string;
  readonly checkpoints: string;
  readonly keys: string;
  readonly artifacts: string;
  readonly backups: string;
  readonly socket: string;
  /** The OS lock held for the daemon's life (lock.ts). */
  readonly lock: string;
  /** daemon.json: who runs and where it listens (info.ts). */
  readonly info: string;
  /** JSON lines, rotated (logger.ts). */
  readonly log: string;
  /** What a background daemon prints by itself: a crash of the runtime lands here. */
  readonly stderr: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** A sun_path has 108 bytes on Linux and 104 on macOS, and curl has no way around that. */
const SOCKET_BYTES = 100;

const fs = (): typeof import("node:fs") => require("node:fs");

/**
 * Name every file of SPEC §11. Makes nothing; looks at the disk only to see whether XDG_RUNTIME_DIR is usable
 * (set, there, and ours: sudo and containers often pass on one that is not).
 * @param env MP_HOME first, else the XDG variables (relative ones are ignored, as XDG asks) or the platform's
 * @param platform as `process.platform`
 * @returns absolute paths; a socket path too long for the OS is replaced by a hashed one in a short folder
 */
export function paths(env: Environment = process.env, platform: NodeJS.Platform = process.platform): Paths {
  const { join, resolve } = platform === "win32" ? win32 : posix;
  const places = env.MP_HOME ? underHome(resolve(env.MP_HOME), join) : platformPlaces(env, platform);
  const socket = shortened(join(places.runtime, "mp.sock"), env, platform);
  return {
    ...places,
    runtime: (platform === "win32" ? win32 : posix).dirname(socket),
    configFile: join(places.config, "config.toml"),
    database: join(places.data, "kernel.db"),
    checkpoints: join(places.data, "checkpoints.db"),
    keys: join(places.data, "keys"),
    artifacts: join(places.data, "artifacts"),
    backups: join(places.data, "backups"),
    socket,
    lock: join(places.data, "daemon.lock"),
    info: join(places.data, "daemon.json"),
    log: join(places.state, "daemon.log"),
    stderr: join(places.state, "daemon.stderr"),
  };
}

type Places = Pick<Paths, "home" | "data" | "config" | "state" | "runtime">;

function underHome(home: string, join: typeof posix.join): Places {
  return { home, data: home, config: home, state: home, runtime: join(home, "run") };
}

function platformPlaces(env: Environment, platform: NodeJS.Platform): Places {
  if (platform === "win32") {
    const home = env.USERPROFILE || homedir();
    const local = win32.join(env.LOCALAPPDATA || win32.join(home, "AppData", "Local"), "mp");
    const roaming = win32.join(env.APPDATA || win32.join(home, "AppData", "Roaming"), "mp");
    const state = win32.join(local, "State");
    return { data: win32.join(local, "Data"), config: roaming, state, runtime: win32.join(state, "run") };
  }
  const home = env.HOME || homedir();
  if (platform === "darwin") {
    const data = posix.join(home, "Library", "Application Support", "mp");
    return {
      data,
      config: data,
      state: posix.join(home, "Library", "Logs", "mp"),
      runtime: posix.join(data, "run"),
    };
  }
  const xdg = (name: string, ...fallback: string[]) =>
    posix.join(env[name]?.startsWith("/") ? env[name] : posix.join(home, ...fallback), "mp");
  const state = xdg("XDG_STATE_HOME", ".local", "state");
  const session = sessionFolder(env);
  return {
    data: xdg("XDG_DATA_HOME", ".local", "share"),
    config: xdg("XDG_CONFIG_HOME", ".config"),
    state,
    runtime: session ? posix.join(session, "mp") : posix.join(state, "run"),
  };
}

/** XDG_RUNTIME_DIR, when it is absolute, exists and belongs to this user; else undefined. */
function sessionFolder(env: Environment): string | undefined {
  const folder = env.XDG_RUNTIME_DIR;
  if (!folder?.startsWith("/")) return undefined;
  const found = fs().statSync(folder, { throwIfNoEntry: false });
  return found?.isDirectory() && found.uid === process.getuid?.() ? folder : undefined;
}

/** The socket itself, or `<short folder>/mp-<uid>/<hash of the long path>/mp.sock`. */
function shortened(socket: string, env: Environment, platform: NodeJS.Platform): string {
  if (platform === "win32" || Buffer.byteLength(socket) <= SOCKET_BYTES) return socket;
  const hash = new Bun.CryptoHasher("sha256").update(socket).digest("hex").slice(0, 16);
  const under = (folder: string) => posix.join(folder, `mp-${process.getuid?.() ?? 0}`, hash, "mp.sock");
  const short = [sessionFolder(env), env.TMPDIR || tmpdir()]
    .filter((folder) => folder?.startsWith("/"))
    .map((folder) => under(folder!))
    .find((path) => Buffer.byteLength(path) <= SOCKET_BYTES);
  return short ?? under("/tmp");
}

/**
 * Make the folders of `paths`, each 0700, and check every component of their paths (SPEC §10): it belongs to
 * this user or root, and nobody else can write to it (a sticky folder such as /tmp is fine on the way). The
 * folders themselves must be this user's and no symlinks; the socket's and the keys' let nobody else look in.
 * On Windows the folders are made and their inherited access lists are trusted.
 * @returns undefined when all is well; else `policy_denied`, or `read_only` for a full or read-only disk. Names
 * the folder and the way out: it is for the person at this machine and never goes over a wire
 */
export function prepare(paths: Paths): Problem | undefined {
  const secret = [paths.runtime, paths.keys];
  for (const folder of [paths.data, paths.state, paths.artifacts, paths.backups, ...secret]) {
    const refusal = makeSafe(folder, secret.includes(folder) ? 0o077 : 0o022);
    if (refusal) return refusal;
  }
  return undefined;
}

/**
 * Walk from the root to `folder`, following symlinks on the way as the kernel does, making what is missing.
 * @param forbidden mode bits that the folder itself must not have
 */
function makeSafe(folder: string, forbidden: number): Problem | undefined {
  const { lstatSync, mkdirSync, readlinkSync } = fs();
  try {
    if (process.platform === "win32") {
      mkdirSync(folder, { recursive: true });
      return undefined;
    }
    const rest = folder.split("/").filter(Boolean);
    let links = 0;
    let current = "/";
    let refusal = unsafeParent(current, lstatSync(current));
    for (let next = rest.shift(); next !== undefined && !refusal; next = rest.shift()) {
      current = posix.join(current, next);
      const found = lstatSync(current, { throwIfNoEntry: false }) ?? made(current);
      refusal = rest.length === 0 ? unsafeFolder(current, found, forbidden) : unsafeParent(current, found);
      if (refusal || !found.isSymbolicLink()) continue;
      if (++links > 40) return refuse(current, "leads through too many symlinks");
      const target = readlinkSync(current);
      rest.unshift(...target.split("/").filter((part) => part !== "" && part !== "."));
      current = target.startsWith("/") ? "/" : posix.dirname(current);
    }
    return refusal;
  } catch (error) {
    return fromSystem(folder, error);
  }
}

function made(folder: string): Stats {
  try {
    fs().mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    // Two daemons that start at once make the same folders.
    if (errno(error) !== "EEXIST") throw error;
  }
  return fs().lstatSync(folder);
}

/** A folder on the way: nobody but this user and root may rename or replace what is in it. */
function unsafeParent(folder: string, found: Stats): Problem | undefined {
  if (!trusted(found.uid)) return refuse(folder, "belongs to another user");
  if (found.isSymbolicLink()) return undefined;
  if (!found.isDirectory()) return refuse(folder, "is not a folder");
  const sticky = (found.mode & 0o1000) !== 0;
  if ((found.mode & 0o002) !== 0 && !sticky) return refuse(folder, "can be changed by every user");
  if ((found.mode & 0o020) !== 0 && !sticky && !ownGroup(found.gid)) {
    return refuse(folder, "can be changed by its group");
  }
  return undefined;
}

/** A folder that is ours to make and to use. */
function unsafeFolder(folder: string, found: Stats, forbidden: number): Problem | undefined {
  if (found.isSymbolicLink()) {
    return refuse(folder, "is a symlink", "name the real folder, for instance with MP_HOME");
  }
  if (!found.isDirectory()) return refuse(folder, "is not a folder");
  if (found.uid !== process.getuid?.()) return refuse(folder, "belongs to another user");
  if ((found.mode & forbidden) === 0) return undefined;
  return refuse(
    folder,
    `has mode ${(found.mode & 0o777).toString(8)}, so other users can reach into it`,
    `after checking what is in it: chmod 700 '${folder}'`,
  );
}

function trusted(uid: number): boolean {
  return uid === process.getuid?.() || uid === 0 || outsideNamespace(uid);
}

/** In a sandbox with its own user namespace, root of the host shows up as the overflow user. */
function outsideNamespace(uid: number): boolean {
  if (process.platform !== "linux" || uid !== 65534) return false;
  return !/^\s*0\s+0\s+4294967295\s*$/.test(fs().readFileSync("/proc/self/uid_map", "utf8"));
}

/** Where every user has a group of their own (same number, umask 002), group-writable means the user alone. */
function ownGroup(gid: number): boolean {
  return gid !== 0 && gid === process.getgid?.() && gid === process.getuid?.();
}

const CHOOSE = "set MP_HOME to a folder of your own whose parents only you or root can change";

function refuse(folder: string, what: string, hint = CHOOSE): Problem {
  return problem("policy_denied", `the folder ${folder} ${what}`, { hint, details: { path: folder } });
}

function fromSystem(folder: string, error: unknown): Problem {
  const code = errno(error);
  const details = { path: folder, errno: code };
  if (code === "ENOSPC" || code === "EDQUOT" || code === "EROFS") {
    const hint = "make room, or set MP_HOME to a folder on a disk that can be written";
    return problem("read_only", `the folder ${folder} cannot be made: ${code}`, { hint, details });
  }
  return problem("policy_denied", `the folder ${folder} cannot be used: ${code}`, { hint: CHOOSE, details });
}

function errno(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
