/**
 * One `mp session run … -- CMD` (SPEC §8): a command as a session, with the leases it needs, from its first to its last moment.
 *
 * Always holds: nothing is started before everything that was asked for is held; the session's end is told with what really
 * came of the child; the exit code is the child's. In order: where (run-place.ts), wait (run-needs.ts), take (run-take.ts),
 * keep (run-leases.ts), run (run-child.ts), tell (run-end.ts). A kill -9 of this program leaves the child running: its leases
 * run out, and its epochs are stale from then on.
 */
import { constants as os } from "node:os";
import { basename } from "node:path";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Ending } from "./command.ts";
import type { Sent } from "./link.ts";
import { isTerminal, note } from "./output.ts";
import type { RunValues } from "./run.ts";
import { Asker, aborted, START } from "./run-asker.ts";
import { type Child, type Ended, startChild } from "./run-child.ts";
import { endingSignals, Telling, type Verdict, verdictOf } from "./run-end.ts";
import { type Lease, Leases, type Loss } from "./run-leases.ts";
import { Needs } from "./run-needs.ts";
import { findPlace, misfit, type Place } from "./run-place.ts";
import { Spool } from "./run-spool.ts";
import { take } from "./run-take.ts";
import { isPassing, Waiting } from "./waiting.ts";

const TTL_MS = 60_000;
const GRACE_MS = 10_000;

/** Passed on to the child: to its whole group what ends things, to itself what only it understands. */
const signals = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"] as const;
const codeOf = (signal: NodeJS.Signals) => 128 + os.signals[signal];

/** One run, from the command line to its exit code. */
export class Run {
  readonly #asker: Asker;
  readonly #passed: { readonly name: NodeJS.Signals; readonly code: number }[] = [];
  readonly #hurry = new AbortController();
  #waiting: Waiting | undefined;
  #place: Place | undefined;
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
    const wrong = misfit(this.values);
    if (wrong) return wrong;
    for (const name of signals) process.on(name, () => this.#signalled(name));
    const place = await findPlace(this.#asker.link(), this.values);
    if (isProblem(place)) return place;
    const needs = new Needs(this.#asker, place, this.values.write);
    const hindered = await this.#waitFor(needs);
    if (hindered) return hindered;
    this.#begun = true;
    const spawned = await this.#spawn(place);
    if (isProblem(spawned)) {
      this.#waiting?.end();
      return spawned;
    }
    const session: Lease = { kind: "session", id: spawned.subject.id, epoch: Number(spawned.result.epoch) };
    const ttl_ms = this.values.ttl ?? TTL_MS;
    const leases = new Leases(this.#asker, session.id, ttl_ms, (loss) => void this.#lost(loss));
    leases.hold(session);
    const waiting = this.#waiting;
    const taken = await take({ asker: this.#asker, session, leases, needs, waiting });
    waiting?.end();
    const interrupted = this.#passed.at(-1);
    if (isProblem(taken) || interrupted) {
      leases.stop();
      this.#childEnded = true;
      const reason = interrupted ? `signal ${interrupted.name}` : whyNot(taken as Problem);
      await new Telling(this.#asker, session, this.#hurry.signal).end({ outcome: "cancelled", reason });
      return interrupted ? interrupted.code : (taken as Problem);
    }
    leases.watch(spawned.seq_global);
    this.#place = { ...place, task_id: taken.task_id };
    return this.#work(this.#place, session, leases, taken.env);
  }

  /** Wait until there is something to begin with. @returns why there is not */
  async #waitFor(needs: Needs): Promise<Problem | undefined> {
    const { wait: wait_ms, next } = this.values;
    // Of a lock, or of a task that is named, the refusal itself says most.
    if (wait_ms === undefined) return next ? needs.hindrance() : undefined;
    const target = await this.#asker.address(START);
    if (isProblem(target)) return target;
    const waiting = new Waiting(target, needs.filter, wait_ms, (event) => needs.hears(event));
    this.#waiting = waiting;
    for (let told = false; ; told = true) {
      const woken = await waiting.next();
      const hindrance =
        woken === "try" ? await needs.hindrance() : isProblem(woken) ? woken : waiting.late(needs.kind);
      if (hindrance === undefined) return undefined;
      if (!isPassing(hindrance)) {
        waiting.end();
        return hindrance;
      }
      waiting.refusedWith(hindrance);
      if (!told && !this.asJson && (await isTerminal(2)))
        await note(`mp: waiting: ${hindrance.detail}; Ctrl-C ends it`);
    }
  }

  #spawn({ workspace_id, project_id, parent_session_id }: Place): Promise<Sent | Problem> {
    const { command = [], title, agent, ttl = TTL_MS } = this.values;
    const name = (agent ?? basename(command[0]!).slice(0, 128)).normalize("NFC") || "command";
    return this.#asker.send(
      "session.spawn",
      {
        workspace_id,
        agent: { name },
        ttl_ms: ttl,
        ...(project_id !== undefined && { project_id }),
        ...(parent_session_id !== undefined && { parent_session_id }),
        ...(title !== undefined && { title: title.normalize("NFC") }),
      },
      START,
    );
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
      const ended = "code" in started ? started : await this.#watched(started, leases);
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
  async #watched(child: Child, leases: Leases): Promise<Ended> {
    this.#child = child;
    // What came while it was being started.
    for (const { name } of this.#passed) child.signal(name, endingSignals.has(name));
    if (leases.lost) void this.#lost(leases.lost);
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
    this.#waiting?.finish(name);
    this.#child?.signal(name, endingSignals.has(name));
  }

  async #lost({ kind, words }: Loss): Promise<void> {
    if (!this.#child || this.#childEnded) return;
    const { worktree, task_id } = this.#place!;
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

/** Why a session ends before its command has begun. */
function whyNot({ reason, code }: Problem): string {
  return reason ?? code;
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
