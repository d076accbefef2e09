/**
 * The end of `mp session run` (SPEC §8): what came of the child, told to the daemon.
 *
 * Always holds: the session's end is told with one key until there is an answer, also to a daemon that must be started for it;
 * what cannot be told within the time is said on stderr, and the leases run out by themselves. Whatever happens here, the
 * exit code stays the child's.
 */

import { connect, freshKey } from "../client/client.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Sent } from "./link.ts";
import { note } from "./output.ts";
import type { Asker, How } from "./run-asker.ts";
import type { Ended } from "./run-child.ts";
import type { Lease, Loss } from "./run-leases.ts";
import { OUTPUT_NAME, type Spool } from "./run-spool.ts";

/** How long the telling may take, in milliseconds. */
const TELL_MS = 30_000;

/** The signals that ask a process to end. */
export const endingSignals: ReadonlySet<string> = new Set(["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"]);

/** What the session's end says. */
export interface Verdict {
  readonly outcome: "completed" | "failed" | "cancelled";
  readonly reason?: string;
  /** What becomes of the task; without it the end of the session gives it back. */
  readonly task?: "complete" | { readonly class: string; readonly message: string };
}

/**
 * What came of it. Whoever was told to end and did not say that all is well has not failed: what is left undone may go on.
 * @param ended how the child ended
 * @param passed the signals that were passed on to it, or that its terminal gave it
 * @param loss what was lost meanwhile
 * @param stopped the child was stopped because of that
 */
export function verdictOf(
  ended: Ended,
  passed: readonly { readonly name: NodeJS.Signals; readonly code: number }[],
  loss: Loss | undefined,
  stopped: boolean,
): Verdict {
  const because = loss ? { reason: loss.reason } : {};
  if (stopped) return { outcome: "failed", ...because };
  if (ended.code === 0) return { outcome: "completed", ...because, task: "complete" };
  const cancelled =
    passed.find(({ name, code }) => ended.signal === name || ended.code === code) ??
    passed.findLast(({ name }) => endingSignals.has(name));
  if (cancelled) return { outcome: "cancelled", reason: `signal ${cancelled.name}`, ...because };
  // Nothing was tried: the task is given back.
  if (ended.unstarted)
    return { outcome: "failed", reason: `the command could not be started: ${ended.unstarted}` };
  const task = ended.signal
    ? { class: "signal", message: `killed by ${ended.signal}` }
    : { class: "exit", message: `exit code ${ended.code}` };
  return { outcome: "failed", ...because, task };
}

/** The telling of one end: all of it within one time. */
export class Telling {
  readonly #deadline = performance.now() + TELL_MS;

  constructor(
    readonly asker: Asker,
    readonly session: Lease,
    /** Gives it up. */
    readonly signal: AbortSignal,
  ) {}

  /**
   * Make the output an artifact.
   * @returns its id; null when there is none, because there was no output or it could not be told
   */
  async keep(spool: Spool, task_id: string | undefined): Promise<string | null> {
    const { path, size, digest } = spool.close();
    if (spool.lost === "disk") await note("mp: the disk for temporary files is full: not all output is kept");
    if (size === 0) return null;
    const stored = await this.#until(async (how) => {
      const target = await this.asker.address(how);
      return isProblem(target) ? target : connect(target).upload(digest, Bun.file(path), how);
    });
    const links = [
      { kind: "session", id: this.session.id },
      ...(task_id ? [{ kind: "task", id: task_id }] : []),
    ];
    const payload = { digest, size, media_type: "text/plain", name: OUTPUT_NAME, links };
    const registered = isProblem(stored) ? stored : await this.#insist("artifact.register", payload);
    if (!isProblem(registered)) return registered.subject.id;
    await note(`mp: the output could not be kept: ${registered.detail}`);
    return null;
  }

  /**
   * Tell the end: the task's, if its claim is still held, and the session's.
   * @returns whether the session's end is in the log
   */
  async end(
    verdict: Verdict,
    { exit_code, claim }: { readonly exit_code?: number; readonly claim?: Lease | undefined } = {},
  ): Promise<boolean> {
    if (claim && verdict.task !== undefined) {
      const held = { task_id: claim.id, epoch: claim.epoch };
      const told =
        verdict.task === "complete"
          ? await this.#insist("task.complete", held)
          : await this.#insist("task.fail", { ...held, failure: verdict.task });
      if (isProblem(told) && !told.retryable) await note(`mp: the task stays as it is: ${told.detail}`);
    }
    const told = await this.#endSession(verdict, exit_code);
    if (!isProblem(told)) return true;
    const already = told.reason === "session.invalid_transition" ? told.details?.from : undefined;
    await note(
      already === undefined
        ? `mp: the end of session ${this.session.id} could not be told (${told.detail}): its leases run out by themselves`
        : `mp: the session is ${already} already, so it stays so`,
    );
    return false;
  }

  /** From some statuses the table of SPEC §8 has no way to some ends: running is on the way to each. */
  async #endSession({ outcome, reason }: Verdict, exit_code: number | undefined): Promise<object | Problem> {
    const { id: session_id } = this.session;
    const payload = {
      session_id,
      outcome,
      ...(exit_code !== undefined && { exit_code }),
      ...(reason !== undefined && { reason: reason.slice(0, 128) }),
    };
    const first = await this.#insist("session.end", payload);
    if (!isProblem(first) || first.reason !== "session.invalid_transition") return first;
    const from = first.details?.from;
    const way =
      from === "lost"
        ? await this.#insist("session.resume", { session_id })
        : from === "waiting" || from === "idle"
          ? await this.#insist("session.report_status", { session_id, status: "running" })
          : first;
    return isProblem(way) ? way : this.#insist("session.end", payload);
  }

  #insist(type: string, payload: Readonly<Record<string, unknown>>): Promise<Sent | Problem> {
    const key = freshKey();
    return this.#until((how) => this.asker.send(type, payload, how, key));
  }

  #until<T extends object>(work: (how: How) => Promise<T | Problem>): Promise<T | Problem> {
    return this.asker.until(this.#deadline, this.signal, work);
  }
}
