/**
 * One `mp session run … -- CMD` (SPEC §8): a command as a session, with the leases it needs, from its first to its last moment.
 *
 * Always holds: nothing is started before everything that was asked for is held; the session's end is told with what really
 * came of the child; the exit code is the child's. In order: where (find), take (run-asker.ts), keep (run-leases.ts), run
 * (run-child.ts), tell (run-end.ts). A kill -9 of this program leaves the child running: its leases run out, and its
 * epochs are stale from then on.
 */
import { constants as os } from "node:os";
import { basename } from "node:path";
import { sessionVariables } from "../daemon/variables.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Ending } from "./command.ts";
import type { Link, Sent } from "./link.ts";
import { idOf } from "./names.ts";
import { note } from "./output.ts";
import { usage } from "./parse.ts";
import type { RunValues } from "./run.ts";
import { Asker, aborted } from "./run-asker.ts";
import { type Child, type Ended, startChild } from "./run-child.ts";
import { endingSignals, Telling, type Verdict, verdictOf } from "./run-end.ts";
import { type Lease, Leases, type Loss } from "./run-leases.ts";
import { Spool } from "./run-spool.ts";

const TTL_MS = 60_000;
/** As long as nothing runs, a daemon that is not there is started. */
const START = { start: true } as const;
const GRACE_MS = 10_000;

/** Passed on to the child: to its whole group what ends things, to itself what only it understands. */
const signals = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"] as const;
const codeOf = (signal: NodeJS.Signals) => 128 + os.signals[signal];

/** Where a session is, and what it is about. */
interface Place {
  readonly workspace_id: string;
  readonly project_id: string | undefined;
  readonly worktree: { readonly id: string; readonly path: string } | undefined;
  readonly task_id: string | undefined;
  readonly parent_session_id: string | undefined;
}

/** Ids of where a thing is. */
interface Within {
  readonly workspace_id: string;
  readonly project_id: string | null;
}

/** One run, from the command line to its exit code. */
export class Run {
  readonly #asker: Asker;
  readonly #passed: { readonly name: NodeJS.Signals; readonly code: number }[] = [];
  readonly #hurry = new AbortController();
  #child: Child | undefined;
  #childEnded = false;
  /** A session has been asked for. */
  #begun = false;
  #stopped = false;

  constructor(
    readonly values: RunValues,
    readonly asJson: boolean,
  ) {
    this.#asker = new Asker(values["no-spawn"]);
  }

  async run(): Promise<Ending> {
    const { write, worktree } = this.values;
    if (write && worktree === undefined)
      return usage("--write needs --worktree", "say which worktree's lock it wants");
    for (const name of signals) process.on(name, () => this.#signalled(name));
    const place = await this.#find();
    if (isProblem(place)) return place;
    this.#begun = true;
    const spawned = await this.#spawn(place);
    if (isProblem(spawned)) return spawned;
    const session: Lease = { kind: "session", id: spawned.subject.id, epoch: Number(spawned.result.epoch) };
    const ttl_ms = this.values.ttl ?? TTL_MS;
    const leases = new Leases(this.#asker, session.id, ttl_ms, (loss) => void this.#lost(loss, place));
    leases.hold(session);
    const env = await this.#take(place, session, leases);
    const interrupted = this.#passed.at(-1);
    if (isProblem(env) || interrupted) {
      leases.stop();
      this.#childEnded = true;
      const reason = isProblem(env) ? (env.reason ?? env.code) : `signal ${interrupted!.name}`;
      await new Telling(this.#asker, session, this.#hurry.signal).end({ outcome: "cancelled", reason });
      return isProblem(env) ? env : interrupted!.code;
    }
    leases.watch(spawned.seq_global);
    return this.#work(place, session, leases, env);
  }

  /** Where it is to be: what is named, then what that lies in, then the environment, then the only one there is. */
  async #find(): Promise<Place | Problem> {
    const { values } = this;
    const link = this.#asker.link();
    const worktree = await found(link, "worktree", values.worktree);
    if (isProblem(worktree)) return worktree;
    const task = await found(link, "task", values.task);
    if (isProblem(task)) return task;
    const about: Within | undefined = worktree ?? task;
    const workspace_id = await this.#workspace(link, about);
    if (isProblem(workspace_id)) return workspace_id;
    const parent = await this.#parent(link, workspace_id);
    if (isProblem(parent)) return parent;
    // What the environment names is where the session around this one is: it counts only there.
    const { MP_WORKSPACE, MP_PROJECT } = process.env;
    const inherited =
      about === undefined && workspace_id === MP_WORKSPACE ? MP_PROJECT || undefined : undefined;
    const named = values.project ?? inherited;
    const project_id =
      named === undefined
        ? (worktree?.project_id ?? task?.project_id ?? undefined)
        : await idOf(link, "project", named, { workspace_id });
    if (isProblem(project_id)) return project_id;
    return {
      workspace_id,
      project_id,
      worktree: worktree && { id: worktree.worktree_id, path: worktree.path },
      task_id: task?.task_id,
      parent_session_id: parent?.session_id,
    };
  }

  /** The session that is named; else the one around, which is none of another workspace's parents. */
  async #parent(link: Link, workspace_id: string): Promise<SessionRow | undefined | Problem> {
    if (this.values.parent !== undefined) return found(link, "session", this.values.parent);
    const around = await found(link, "session", process.env.MP_SESSION_ID || undefined);
    return isProblem(around) || around?.workspace_id === workspace_id ? around : undefined;
  }

  async #workspace(link: Link, about: Within | undefined): Promise<string | Problem> {
    const named = this.values.workspace ?? (about ? undefined : process.env.MP_WORKSPACE || undefined);
    if (named !== undefined) return idOf(link, "workspace", named);
    if (about) return about.workspace_id;
    const open = await link.query("workspace.list", { status: "open", limit: 2 });
    if (isProblem(open)) return open;
    const [only, another] = open.items;
    if (only && !another) return only.workspace_id;
    return usage(
      only ? "there is more than one open workspace" : "there is no open workspace",
      only
        ? "say which with --workspace or MP_WORKSPACE, or give a --worktree or a --task"
        : "create one: mp workspace create NAME",
    );
  }

  #spawn({ workspace_id, project_id, parent_session_id }: Place): Promise<Sent | Problem> {
    const { command = [], title, agent, ttl = TTL_MS } = this.values;
    return this.#asker.send(
      "session.spawn",
      {
        workspace_id,
        agent: { name: agent ?? (basename(command[0]!).slice(0, 128) || "command") },
        ttl_ms: ttl,
        ...(project_id !== undefined && { project_id }),
        ...(parent_session_id !== undefined && { parent_session_id }),
        ...(title !== undefined && { title }),
      },
      START,
    );
  }

  /** Take what was asked for. @returns the child's environment */
  async #take(
    { workspace_id, project_id, worktree, task_id }: Place,
    { id: session_id, epoch }: Lease,
    leases: Leases,
  ): Promise<Readonly<Record<string, string | undefined>> | Problem> {
    const { write, ttl: ttl_ms = TTL_MS } = this.values;
    const own: Partial<Record<(typeof sessionVariables)[number], string>> = {};
    if (worktree) {
      const { id: worktree_id } = worktree;
      const mode = write ? "write" : "read";
      const attached = await this.#asker.send("worktree.attach", { worktree_id, session_id, mode }, START);
      if (isProblem(attached)) return attached;
      own.MP_WORKTREE_ID = worktree_id;
      if (write) {
        const lock = { worktree_id, session_id, ttl_ms };
        const locked = await this.#asker.send("worktree.lock_writer", lock, START);
        if (isProblem(locked)) return locked;
        leases.hold({ kind: "writer", id: worktree_id, epoch: Number(locked.result.epoch) });
        own.MP_WRITER_EPOCH = String(locked.result.epoch);
      }
    }
    if (task_id !== undefined) {
      const claimed = await this.#asker.send("task.claim", { task_id, session_id, ttl_ms }, START);
      if (isProblem(claimed)) return claimed;
      leases.hold({ kind: "claim", id: task_id, epoch: Number(claimed.result.epoch) });
      own.MP_TASK_ID = task_id;
      own.MP_TASK_EPOCH = String(claimed.result.epoch);
    }
    const minted = await this.#asker.token(session_id);
    if (isProblem(minted)) return minted;
    const running = { session_id, status: "running", epoch };
    const reported = await this.#asker.send("session.report_status", running, START);
    if (isProblem(reported)) return reported;
    // What is inherited of another session must not pass for this one's.
    const inherited = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !(sessionVariables as readonly string[]).includes(name)),
    );
    return {
      ...inherited,
      MP_SESSION_ID: session_id,
      MP_SESSION_EPOCH: String(epoch),
      MP_TOKEN: (minted as { token: string }).token,
      MP_WORKSPACE: workspace_id,
      ...(project_id !== undefined && { MP_PROJECT: project_id }),
      ...own,
    };
  }

  async #work(
    place: Place,
    session: Lease,
    leases: Leases,
    env: Readonly<Record<string, string | undefined>>,
  ): Promise<number> {
    const { command = [] } = this.values;
    const spool = this.values["no-output"] ? undefined : await newSpool();
    try {
      const started = startChild({
        command,
        cwd: place.worktree?.path ?? process.cwd(),
        env,
        spool,
        onTyped: (name) => this.#childEnded || this.#passed.push({ name, code: codeOf(name) }),
      });
      const ended = "code" in started ? started : await this.#watched(started, leases, place);
      if (ended.unstarted) await note(`mp: ${command[0]}: ${ended.unstarted}`);
      if (ended.hint) await note(`  hint: ${ended.hint}`);
      this.#childEnded = true;
      const telling = new Telling(this.#asker, session, this.#hurry.signal);
      const artifact_id = spool ? await telling.keep(spool, place.task_id) : null;
      // Until here: a large output may take longer than the leases.
      leases.stop();
      const verdict = verdictOf(ended, this.#passed, leases.lost, this.#stopped);
      const claim = this.values["leave-task"] ? undefined : leases.held("claim");
      const told = await telling.end(verdict, { exit_code: ended.code, claim });
      if (!("code" in started)) await Promise.race([started.written, aborted(this.#hurry.signal)]);
      if (this.asJson)
        await this.#report(session, verdict, { exit_code: ended.code, artifact_id, ended: told });
      return ended.code;
    } finally {
      spool?.remove();
    }
  }

  /** Wait for its end. */
  async #watched(child: Child, leases: Leases, place: Place): Promise<Ended> {
    this.#child = child;
    // What came while it was being started.
    for (const { name } of this.#passed) child.signal(name, endingSignals.has(name));
    if (leases.lost) void this.#lost(leases.lost, place);
    const ended = await child.ended;
    this.#childEnded = true;
    // Nothing of a child that had to stop may go on writing.
    if (this.#stopped) child.signal("SIGKILL", true);
    await child.read;
    return ended;
  }

  #signalled(name: NodeJS.Signals): void {
    // A second one, once there is nothing left to pass it on to, means: do not even wait for the daemon.
    if (this.#childEnded) {
      if (endingSignals.has(name)) this.#hurry.abort();
      return;
    }
    if (!this.#child && !endingSignals.has(name)) return;
    // Before there is anything to give back, or when it is said twice, nothing keeps us: leases run out by themselves.
    if (!this.#child && (!this.#begun || this.#passed.length > 0)) process.exit(codeOf(name));
    this.#passed.push({ name, code: codeOf(name) });
    this.#child?.signal(name, endingSignals.has(name));
  }

  async #lost({ kind, words }: Loss, { worktree, task_id }: Place): Promise<void> {
    if (!this.#child || this.#childEnded) return;
    const stop = (this.values["on-lost"] ?? "stop") === "stop";
    const what = {
      session: "the session",
      writer: `the writer lock of ${worktree?.path}`,
      claim: `the claim on task ${task_id}`,
    }[kind];
    if (stop) {
      this.#stopped = true;
      const child = this.#child;
      child.signal("SIGTERM", true);
      const grace = setTimeout(() => child.signal("SIGKILL", true), this.values.grace ?? GRACE_MS);
      void child.ended.then(() => clearTimeout(grace));
    } else this.#child.signal("SIGURG", false);
    const { safe } = await import("./terminal.ts");
    const now = stop ? "being stopped" : "told by SIGURG and goes on";
    await note(`${safe(`mp: ${what} ${words}; the command is ${now}`)}${this.#child.raw ? "\r" : ""}`);
  }

  async #report({ id }: Lease, { outcome, reason }: Verdict, more: object): Promise<void> {
    const { keys } = this.#asker;
    await note(JSON.stringify({ session_id: id, outcome, reason: reason ?? null, ...more, keys }));
  }
}

/** A place for the output; without one the command runs all the same. */
async function newSpool(): Promise<Spool | undefined> {
  try {
    return new Spool();
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    await note(`mp: the output is not kept, for there is no room for temporary files: ${code}`);
    return undefined;
  }
}

interface WorktreeRow extends Within {
  readonly worktree_id: string;
  readonly path: string;
}
interface TaskRow extends Within {
  readonly task_id: string;
}
interface SessionRow extends Within {
  readonly session_id: string;
}

/** A thing that the command line names, as the daemon has it. */
async function found(
  link: Link,
  kind: "worktree",
  text: string | undefined,
): Promise<WorktreeRow | undefined | Problem>;
async function found(
  link: Link,
  kind: "task",
  text: string | undefined,
): Promise<TaskRow | undefined | Problem>;
async function found(
  link: Link,
  kind: "session",
  text: string | undefined,
): Promise<SessionRow | undefined | Problem>;
async function found(link: Link, kind: string, text: string | undefined): Promise<object | undefined> {
  if (text === undefined) return undefined;
  const id = await idOf(link, kind, text);
  return isProblem(id) ? id : link.ask(`${kind}.get`, { [`${kind}_id`]: id });
}
