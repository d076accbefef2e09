/**
 * Tokens of sessions (SPEC §8, §10): with one, what a child of a session asks for is recorded as done by that session, on
 * behalf of the daemon's user.
 *
 * Always holds: a token is `mps_<session>_<epoch>_<HMAC-SHA256>` and nothing of it is stored, in the log or beside it: the
 * key is the only secret on disk. It is good as long as its session is live in that epoch, so ending, losing or resuming
 * a session ends its tokens. Left out on purpose: rights. On the socket everybody is the owner; a token says who acts.
 */
import type { Database } from "bun:sqlite";
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { missing, reject } from "../kernel/aggregate.ts";
import type { Caller } from "../kernel/dispatch.ts";
import { type Acting, refusal } from "../kernel/execute.ts";
import { type Problem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";

const KEY_BYTES = 32;
const TOKEN = /^mps_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_(\d{1,15})_[\w-]{43}$/;
const LIVE: ReadonlySet<string> = new Set(["starting", "running", "idle", "waiting"]);

/** What `token.session` answers. */
export interface Minted {
  readonly token: string;
  readonly session_id: string;
  readonly epoch: number;
}

export interface SessionTokens {
  /**
   * A token for a session as it is now.
   * @returns `not_found`, `conflict` session.not_live, or `read_only` when the key cannot be made
   */
  mint(session_id: string): Minted | Problem;
  /**
   * Who an Authorization header stands for.
   * @returns the session as caller, also when it has ended: `ended` tells; `unauthorized` for everything but a token of ours
   */
  caller(authorization: string): Caller | Problem;
}

/**
 * The tokens of one daemon. Call it under the daemon's lock: the key is made when it is first needed.
 * @param keys the folder of keys, which exists and is closed to others
 * @param db the read models
 * @param user on whose behalf sessions act
 */
export function sessionTokens({
  keys,
  db,
  registry,
  user,
}: {
  readonly keys: string;
  readonly db: Database;
  readonly registry: Registry;
  readonly user: string;
}): SessionTokens {
  const path = join(keys, "session.key");
  let key: Buffer | undefined;

  function signed(secret: Buffer, session_id: string, epoch: number): string {
    const said = `mps_${session_id}_${epoch}`;
    return `${said}_${createHmac("sha256", secret).update(said).digest("base64url")}`;
  }

  return {
    mint(session_id) {
      const found = stateOf(db, session_id);
      if (!found) return refusal(registry, missing("session", session_id));
      if (!LIVE.has(found.status))
        return refusal(registry, reject("session.not_live", { session_id, status: found.status }));
      const secret = key ?? keyOf(path) ?? newKey(path);
      if (!Buffer.isBuffer(secret)) return secret;
      key = secret;
      return { token: signed(secret, session_id, found.epoch), session_id, epoch: found.epoch };
    },

    caller(authorization) {
      const token = /^Bearer +([\w-]+)$/i.exec(authorization)?.[1] ?? "";
      const [, session_id, epochText] = TOKEN.exec(token) ?? [];
      // Without a key no token was ever made.
      key ??= keyOf(path);
      if (session_id === undefined || key === undefined) return refused("the token is none of this daemon's");
      const epoch = Number(epochText);
      const [given, right] = [Buffer.from(token), Buffer.from(signed(key, session_id, epoch))];
      if (given.length !== right.length || !timingSafeEqual(given, right))
        return refused("the token is none of this daemon's");
      const acting = { session_id, epoch };
      return {
        actor: { id: session_id, kind: "session", on_behalf_of: { id: user, kind: "user" } },
        principal: `session/${session_id}`,
        acting,
        ended: () => sessionEnded(db, acting),
      };
    },
  };
}

function stateOf(db: Database, session_id: string) {
  return (
    db
      .query<{ status: string; epoch: number }, [string]>(
        "SELECT status, epoch FROM sessions WHERE session_id = ?",
      )
      .get(session_id) ?? undefined
  );
}

/**
 * Why a token whose signature is right is good no more; undefined while it is.
 * @param db the read models: the writer's own, in its transaction, where a command is decided
 */
export function sessionEnded(db: Database, { session_id, epoch }: Acting): Problem | undefined {
  const found = stateOf(db, session_id);
  if (!found) return refused("the token's session is not in this log");
  if (!LIVE.has(found.status)) return refused(`the token's session is ${found.status}`);
  return found.epoch === epoch ? undefined : refused("the token is of an earlier epoch of its session");
}

function refused(detail: string): Problem {
  return problem("unauthorized", detail, {
    hint: "without MP_TOKEN in the environment it is done as yourself; 'mp session run' gives its child a token that is good",
  });
}

/** The key, where there is one that is whole and nobody else's. */
function keyOf(path: string): Buffer | undefined {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch {
    return undefined;
  }
  try {
    const { mode, uid } = fstatSync(file);
    const closed = process.platform === "win32" || ((mode & 0o077) === 0 && uid === process.getuid?.());
    const bytes = readFileSync(file);
    return closed && bytes.length === KEY_BYTES ? bytes : undefined;
  } finally {
    closeSync(file);
  }
}

/** Make a key, in place of one that is damaged or that others could read: the tokens made with that one end. */
function newKey(path: string): Buffer | Problem {
  const key = randomBytes(KEY_BYTES);
  const half = `${path}.new`;
  try {
    rmSync(half, { force: true });
    const file = openSync(half, "wx", 0o600);
    try {
      writeSync(file, key);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(half, path);
    return key;
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
    return problem("read_only", `the key of session tokens cannot be written: ${code}`, {
      hint: "make room on the disk of the daemon's data",
    });
  }
}
