/**
 * What git does for worktrees (SPEC §8), outside the writer: begun by the intents of a commit (`worktree.*_started`), at most
 * one at a time per repository, its outcome recorded by the daemon's own commands.
 *
 * Always holds: an intent gets one outcome, whatever is killed in between. A folder is cleaned up only when a note, written
 * before git began and after nothing was found at its path, says that it is ours, git still has it as begun, and it holds
 * nothing but what git put there; what is not surely ours stays, and the outcome says so. Nothing that a client sent can be
 * an option of git. Left out on purpose: branches; what git made stays.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Event, Tables } from "../kernel/aggregate.ts";
import { daemonCommand, type Outcome, type WriteRequest } from "../kernel/execute.ts";
import type { Stored } from "../kernel/log.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { ReadModels } from "../kernel/readmodel.ts";
import {
  type Listed,
  markOf,
  onlyOfGit,
  orphansEnded,
  type Ran,
  real,
  runGit,
  saidIn,
  saying,
  sharedFolderOf,
  worktreesOf,
} from "./git.ts";
import { hostOf } from "./host.ts";
import type { Logger } from "./logger.ts";
import type { WriteQueue } from "./queue.ts";

type Worktree = Tables["worktrees"];

/** Something to do with git. */
interface Effect {
  readonly kind: "create" | "remove" | "reconcile" | "settle";
  readonly worktree: Worktree;
  readonly base?: string | undefined;
  readonly force: boolean;
  /** Where git is run; undefined when the project has no repository. */
  readonly repository: string | undefined;
  /** Effects with the same one come one after the other; undefined until git has said which repository it is. */
  queue: string | undefined;
  /** Tells the intent from any other of the worktree. */
  readonly intent: string;
  readonly done: () => void;
}

/** What came of an effect, as the internal command `worktree.record_<type>` takes it. */
interface Result {
  readonly type: "created" | "creation_failed" | "removed" | "removal_failed" | "reconciled";
  readonly payload: Readonly<Record<string, unknown>>;
}

const failed = (type: "creation_failed" | "removal_failed", message: string): Result => ({
  type,
  payload: { message: saying(message) },
});
const REMOVED: Result = { type: "removed", payload: {} };

const INTENTS = {
  "worktree.creation_started": "create",
  "worktree.removal_started": "remove",
  "worktree.reconciliation_started": "reconcile",
} as const;
/** The commands whose answer waits for the outcome. */
const HELD: readonly string[] = ["worktree.create", "worktree.remove", "worktree.reconcile"];

/** Characters of a branch in an event. */
const MOST_BRANCH = 255;
/** Runs of git at the same time, in as many repositories. */
const MOST_AT_ONCE = 8;
/** How long an answer waits for the outcome, in milliseconds: less than clients wait for it. Then it says what was begun. */
const HELD_MS = 25_000;
/** How long a daemon that stops lets git go on, in milliseconds. */
const STOP_MS = 2_000;
/** An outcome that could not be recorded, because the disk is full, is tried again after so many milliseconds. */
const AGAIN_MS = 1_000;

/** What effects need of their daemon. */
interface Parts {
  readonly queue: WriteQueue;
  readonly readModels: ReadModels;
  readonly log: Logger;
  /** Folder of the notes; made when the first is written. */
  readonly notes: string;
  /** The umask of whoever started the daemon: what the files of a worktree get. */
  readonly umask: number;
}

/** The git effects of a daemon. */
export class GitEffects {
  readonly #parts: Parts;
  readonly #waiting: Effect[] = [];
  readonly #running = new Map<string, Promise<void>>();
  /** By the id of the intent's event: settled once its outcome is recorded. */
  readonly #held = new Map<string, Promise<void>>();
  /** What git says is the shared folder of a repository, by the path that a project has for it. */
  readonly #shared = new Map<string, Promise<string | undefined>>();
  readonly #stop = new AbortController();
  /** Resolved once the daemon begins to stop. */
  readonly #closing = Promise.withResolvers<void>();
  #closed = false;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Begin what a commit intends. Called before its commands are answered. */
  committed(events: readonly Stored[]): void {
    // What is intended now is for the next start.
    if (this.#closed) return;
    for (const stored of events) {
      const kind = INTENTS[stored.event_type as keyof typeof INTENTS];
      if (kind === undefined) continue;
      const { subject, payload } = JSON.parse(stored.body) as Event<{ base?: string; force?: boolean }>;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#held.set(stored.event_id, promise);
      this.#add(kind, subject.id, `${stored.seq_stream}`, payload, () => {
        this.#held.delete(stored.event_id);
        resolve();
      });
    }
    this.#begin();
  }

  /** Find out what became of what an earlier daemon left unfinished. Before anything is committed. */
  settle(): void {
    const { readModels, notes } = this.#parts;
    const { answer: unfinished } = readModels.snapshot("worktree", (read) =>
      read.sql<{ worktree_id: string; version: number; intents: number }>(
        `SELECT worktree_id, version, max(reconciling, status IN ('creating', 'removing')) AS intents
         FROM worktrees WHERE intents > 0`,
      ),
    );
    const ids = unfinished.map((each) => each.worktree_id);
    if (existsSync(notes))
      for (const name of readdirSync(notes))
        if (!ids.includes(name.split(".")[0]!)) rmSync(join(notes, name));
    for (const { worktree_id, version, intents } of unfinished)
      for (let n = 0; n < intents; n += 1)
        this.#add("settle", worktree_id, `settled ${version} ${n}`, {}, () => undefined);
    this.#begin();
  }

  /**
   * Hand a request to the writer, and hold the answer to what git does until its outcome is recorded, 25 s at most.
   * @returns as `WriteQueue.submit`: the receipts are those of the intents
   */
  submit(request: WriteRequest): Promise<readonly Outcome[] | Problem> {
    const answered = this.#parts.queue.submit(request);
    return request.commands.some(({ type }) => HELD.includes(type)) ? this.#hold(answered) : answered;
  }

  async #hold(answered: Promise<readonly Outcome[] | Problem>): Promise<readonly Outcome[] | Problem> {
    const outcomes = await answered;
    if (isProblem(outcomes)) return outcomes;
    const held = outcomes.flatMap((outcome) =>
      "receipt" in outcome
        ? (JSON.parse(outcome.receipt) as { events: { event_id: string }[] }).events.flatMap(
            ({ event_id }) => this.#held.get(event_id) ?? [],
          )
        : [],
    );
    if (held.length === 0) return outcomes;
    const { promise: over, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, HELD_MS);
    await Promise.race([Promise.all(held), over, this.#closing.promise]);
    clearTimeout(timer);
    return outcomes;
  }

  /** Begin nothing more, let the answers go, give git a moment and then end it: the next start settles what is left. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#waiting.length = 0;
    this.#closing.resolve();
    const over = Promise.all(this.#running.values());
    if (this.#running.size > 0) await Promise.race([over, Bun.sleep(STOP_MS)]);
    this.#stop.abort();
    await over;
  }

  #add(
    kind: Effect["kind"],
    worktree_id: string,
    intent: string,
    { base, force = false }: { base?: string; force?: boolean },
    done: () => void,
  ): void {
    const { answer: found } = this.#parts.readModels.snapshot("worktree", (read) => {
      const worktree = read.one("worktrees", { worktree_id });
      return { worktree, project: worktree && read.one("projects", { project_id: worktree.project_id }) };
    });
    const { worktree, project } = found;
    if (!worktree) {
      // Its projection has stopped: the next start, which mends it, settles this too.
      done();
      return;
    }
    const repository = project?.repo_path ?? project?.git_common_dir ?? undefined;
    const effect: Effect = { kind, worktree, base, force, repository, queue: undefined, intent, done };
    this.#waiting.push(effect);
    if (repository === undefined) effect.queue = real(worktree.path);
    else
      void this.#sharedBy(repository).then((shared) => {
        effect.queue = shared ?? real(repository);
        this.#begin();
      });
  }

  /** The folder that all worktrees of a repository share: asked once, for one repository may have many paths. */
  #sharedBy(repository: string): Promise<string | undefined> {
    const known = this.#shared.get(repository);
    if (known) return known;
    const asked = sharedFolderOf(repository, this.#stop.signal)
      .catch((error: unknown) => {
        this.#parts.log.warn({ err: error, repository }, "git cannot be asked which repository it is");
        return undefined;
      })
      .then((found) => {
        // It may become one.
        if (found === undefined) this.#shared.delete(repository);
        return found;
      });
    this.#shared.set(repository, asked);
    return asked;
  }

  /** Begin whatever has waited longest and whose repository is free. */
  #begin(): void {
    for (let next = 0; next < this.#waiting.length && this.#running.size < MOST_AT_ONCE; ) {
      const effect = this.#waiting[next]!;
      const { queue } = effect;
      if (queue === undefined || this.#running.has(queue)) {
        next += 1;
        continue;
      }
      this.#waiting.splice(next, 1);
      const running = this.#carryOut(effect)
        .catch((error: unknown) =>
          this.#parts.log.error(
            { err: error, worktree_id: effect.worktree.worktree_id },
            "a git effect met a bug",
          ),
        )
        .then(() => {
          this.#running.delete(queue);
          effect.done();
          this.#begin();
        });
      this.#running.set(queue, running);
    }
  }

  async #carryOut(effect: Effect): Promise<void> {
    const { worktree_id, host, status } = effect.worktree;
    const here = hostOf(this.#parts.readModels.db);
    const why = `the worktree is on the machine ${host}, this is ${here}`;
    const result = host === here ? await this.#tried(effect) : notDone(effect, why);
    // What the end of the daemon may have cut off is for the next start to find out.
    if (result === undefined || this.#stop.signal.aborted || !(await this.#record(effect, result))) return;
    for (const name of [this.#noteOf(worktree_id), this.#outputOf(worktree_id)])
      rmSync(name, { force: true });
    this.#parts.log.info({ worktree_id, was: status, ...result }, "git effect");
  }

  /** What came of an effect; the disk may refuse something, or there is a bug: the intent gets its outcome even so. */
  async #tried(effect: Effect): Promise<Result | undefined> {
    try {
      return await this.#resultOf(effect);
    } catch (error) {
      this.#parts.log.error({ err: error, worktree_id: effect.worktree.worktree_id }, "a git effect failed");
      return notDone(effect, `the daemon could not do its part: ${(error as Error).message}`);
    }
  }

  async #resultOf(effect: Effect): Promise<Result | undefined> {
    switch (effect.kind) {
      case "create":
        return this.#create(effect);
      case "remove":
        return this.#remove(effect);
      case "reconcile":
        return this.#reconcile(effect);
      case "settle":
        await orphansEnded(effect.worktree.worktree_id, this.#stop.signal);
        if (this.#stop.signal.aborted) return undefined;
        return this.#interrupted(effect);
    }
  }

  async #interrupted(effect: Effect): Promise<Result> {
    const { worktree_id, status } = effect.worktree;
    if (status !== "creating" && status !== "removing") return this.#reconcile(effect);
    const said = await saidIn(this.#outputOf(worktree_id));
    const why = `interrupted: the daemon ended before git had finished\n${said}`;
    return status === "creating" ? this.#madeOrNot(effect, why) : this.#removedOrNot(effect, why);
  }

  async #create(effect: Effect): Promise<Result | undefined> {
    const { worktree, repository, base } = effect;
    const { worktree_id, path, branch } = worktree;
    if (repository === undefined) return failed("creation_failed", "the project has no repository");
    const known = await this.#git(effect, ["show-ref", "--verify", "--quiet", `refs/heads/${branch}`]);
    const unlike = known.code === 0 && base !== undefined ? await this.#unlike(effect, base) : undefined;
    if (unlike !== undefined) return failed("creation_failed", unlike);
    // What is no repository, or no git at all, is told in git's words by the command itself.
    const which =
      known.code === 0 ? ["--", path, branch!] : ["-b", branch!, "--", path, ...(base ? [base] : [])];
    if (there(path)) return failed("creation_failed", `there is something at ${path} already`);
    this.#note(worktree_id);
    const ran = await this.#change(effect, ["add", ...which]);
    // Ended by itself it has tidied up by itself, and what is at the path may be another's.
    if (!ran.killed) rmSync(this.#noteOf(worktree_id), { force: true });
    if (this.#stop.signal.aborted) return undefined;
    return this.#madeOrNot(effect, ran.said, ran.code === 0);
  }

  /** Why a branch that is there does not begin at a base; undefined when it does. */
  async #unlike(effect: Effect, base: string): Promise<string | undefined> {
    const { branch } = effect.worktree;
    const commit = (name: string) => this.#git(effect, ["rev-parse", "--verify", `${name}^{commit}`]);
    const [at, from] = [await commit(`refs/heads/${branch}`), await commit(base)];
    if (from.code !== 0) return `the base ${base} is no commit: ${from.said}`;
    if (at.out === from.out) return undefined;
    return (
      `the branch ${branch} exists at ${at.out.trim()}, and the base ${base} is ${from.out.trim()}: ` +
      "leave the base out to use the branch as it is, or give another branch"
    );
  }

  /** What became of a creation that is over; what is half-made and ours is taken away. */
  async #madeOrNot(effect: Effect, said: string, ended = false): Promise<Result> {
    const { worktree_id, path, branch } = effect.worktree;
    const { listed, entry } = await this.#look(effect);
    const complete = entry && entry.prunable === undefined && entry.locked !== "initializing";
    // Also when git ended badly, as it does when a hook fails: it is there. On another branch it is somebody else's.
    if (complete && there(join(path, ".git")) && (ended || entry.branch === branch))
      return { type: "created", payload: seen(entry) };
    if (!listed && ended) return { type: "created", payload: { branch } };
    if (!existsSync(this.#noteOf(worktree_id))) return failed("creation_failed", said);
    // What git cannot be asked about is not touched: it may be whole.
    const tidied = listed ? await this.#tidied(effect, entry) : !there(path);
    const left = `\nwhat is at ${path} was left as it is, for it may be another's: look at it, and take it away yourself`;
    return failed("creation_failed", tidied ? said : `${said}${left}`);
  }

  /** Take away what a creation has left that was cut off. Returns false when something is there that may be another's. */
  async #tidied(effect: Effect, entry: Listed | undefined): Promise<boolean> {
    const { path, branch } = effect.worktree;
    const begun = entry?.locked === "initializing" && (entry.branch ?? branch) === branch;
    if (entry && !begun) return !there(path);
    if (there(path) && !(await this.#onlyOfGit(effect, begun))) return false;
    await rm(path, { recursive: true, force: true });
    // Twice: once would not remove one that git has locked while it made it.
    if (entry) await this.#git(effect, ["worktree", "remove", "--force", "--force", "--", entry.path]);
    return true;
  }

  /** Whether nothing is at the path of a worktree that anybody could miss. */
  async #onlyOfGit({ repository, worktree }: Effect, listed: boolean): Promise<boolean> {
    const shared = await this.#sharedBy(repository!);
    if (shared === undefined) return false;
    const index = `${this.#noteOf(worktree.worktree_id)}.index`;
    return onlyOfGit(worktree.path, shared, listed, { index, signal: this.#stop.signal });
  }

  async #remove(effect: Effect): Promise<Result | undefined> {
    const { worktree, force, repository } = effect;
    if (repository === undefined) return failed("removal_failed", "the project has no repository");
    const { entry, said = "" } = await this.#look(effect);
    if (!entry) return this.#removedOrNot(effect, said);
    if (entry.prunable === undefined && there(join(worktree.path, ".git"))) this.#note(worktree.worktree_id);
    const ran = await this.#change(effect, ["remove", ...(force ? ["--force"] : []), "--", entry.path]);
    if (!ran.killed) rmSync(this.#noteOf(worktree.worktree_id), { force: true });
    if (this.#stop.signal.aborted) return undefined;
    return ran.code === 0 ? REMOVED : this.#removedOrNot(effect, ran.said);
  }

  /** What became of a removal that is over; one that git had begun to carry out is finished. */
  async #removedOrNot(effect: Effect, said: string): Promise<Result> {
    const { worktree, repository } = effect;
    const { worktree_id, path } = worktree;
    const { listed, entry } = await this.#look(effect);
    if (listed && !entry) {
      // Git is done with it: what is there now is somebody's, or what git could not remove.
      if (there(path)) this.#parts.log.warn({ worktree_id, path }, "git has removed it, something is there");
      return REMOVED;
    }
    // With the repository gone, nobody is left who could list it.
    const gone = repository === undefined || !there(repository);
    if (!entry) return gone && !there(path) ? REMOVED : failed("removal_failed", said);
    // It was whole when git began, and it lost its link: git had found that it may go.
    const begun = existsSync(this.#noteOf(worktree_id)) && !there(join(path, ".git"));
    if (!begun) return failed("removal_failed", said);
    if (there(path) && !(await this.#onlyOfGit(effect, true)))
      return failed(
        "removal_failed",
        `${said}\nwhat is left at ${path} may be in no commit: take it away yourself, then remove the worktree again`,
      );
    await rm(path, { recursive: true, force: true });
    await this.#git(effect, ["worktree", "remove", "--force", "--", entry.path]);
    return REMOVED;
  }

  async #reconcile(effect: Effect): Promise<Result> {
    const { origin, path, branch, commit_sha } = effect.worktree;
    const last = { branch: branch ?? undefined, commit: commit_sha ?? undefined };
    const found = (presence: "present" | "missing", payload: object = {}): Result => ({
      type: "reconciled",
      payload: { presence, ...payload },
    });
    if (!there(path)) return found("missing");
    const { listed, entry, said } = await this.#look(effect);
    if (entry) return entry.prunable === undefined ? found("present", seen(entry)) : found("missing");
    if (listed || effect.repository === undefined)
      return origin === "registered" ? found("present", last) : found("missing");
    this.#parts.log.warn(
      { path, said },
      "git cannot be asked: the folder is there, and nothing else is known",
    );
    return found("present", last);
  }

  /** What git lists at the worktree's path; `listed` false with what it said when it could not be asked. */
  async #look(effect: Effect): Promise<{ listed: boolean; entry?: Listed | undefined; said?: string }> {
    if (effect.repository === undefined) return { listed: false };
    const found = await worktreesOf(effect.repository, this.#stop.signal);
    if ("said" in found) return { listed: false, said: found.said };
    const path = real(effect.worktree.path);
    const entry = found.find((each) => each.path === path) ?? found.find((each) => real(each.path) === path);
    return { listed: true, entry };
  }

  /** Run git in the repository. */
  #git({ repository, worktree }: Effect, args: readonly string[], output?: string): Promise<Ran> {
    return runGit([...markOf(worktree.worktree_id), "-C", repository!, ...args], {
      umask: this.#parts.umask,
      signal: this.#stop.signal,
      ...(output !== undefined && { output }),
    });
  }

  /** Run the part of git that an intent is about: it goes on when the daemon is killed. */
  #change(effect: Effect, args: readonly string[]): Promise<Ran> {
    this.#folder();
    return this.#git(effect, ["worktree", ...args], this.#outputOf(effect.worktree.worktree_id));
  }

  /** Record an outcome. Returns false when it could not be recorded. */
  async #record({ worktree, intent }: Effect, { type, payload }: Result): Promise<boolean> {
    const { queue, log } = this.#parts;
    const { worktree_id } = worktree;
    const command = daemonCommand(
      `worktree.record_${type}`,
      { worktree_id, ...payload },
      `git ${worktree_id} ${intent}`,
    );
    for (;;) {
      const outcomes = await queue.submit({ commands: [command], atomic: false });
      const [outcome] = isProblem(outcomes) ? [{ problem: outcomes }] : outcomes;
      if (!("problem" in outcome!)) return true;
      const { problem } = outcome;
      if (problem.code !== "overloaded" && problem.code !== "read_only") {
        log.error({ problem, worktree_id, type }, "the outcome of a git effect was refused");
        return false;
      }
      if (this.#closed || queue.lost) return false;
      await Promise.race([Bun.sleep(AGAIN_MS), this.#closing.promise]);
    }
  }

  #noteOf(worktree_id: string): string {
    return join(this.#parts.notes, worktree_id);
  }

  /** The file with what git says. */
  #outputOf(worktree_id: string): string {
    return join(this.#parts.notes, `${worktree_id}.txt`);
  }

  #folder(): void {
    mkdirSync(this.#parts.notes, { recursive: true, mode: 0o700 });
  }

  /** From here on, what is at the path of a creation is ours, and what a removal leaves is its doing. */
  #note(worktree_id: string): void {
    this.#folder();
    writeFileSync(this.#noteOf(worktree_id), "", { flush: true });
  }
}

/** That nothing came of an effect; nothing can be said of a look that could not be taken. */
function notDone({ kind, worktree: { status } }: Effect, message: string): Result | undefined {
  if (kind === "reconcile") return undefined;
  if (status === "creating") return failed("creation_failed", message);
  return status === "removing" ? failed("removal_failed", message) : undefined;
}

/** Branch and commit of an entry, as outcomes tell them. */
function seen({ branch, head }: Listed) {
  // A branch that is too long for an event can only be one that another program made.
  return { branch: branch?.slice(0, MOST_BRANCH).toWellFormed(), commit: head };
}

/** Whether something is at a path, also when it may not be looked at. */
function there(path: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return true;
  }
}
