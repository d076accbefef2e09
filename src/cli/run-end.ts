/**
 * The end of `mp session run` (SPEC §8): what came of the child, told to the daemon.
 *
 * Always holds: the session's end is told with one key until there is an answer, also to a daemon that must be started for it;
 * what cannot be told within the time is said on stderr, and the leases run out by themselves. Whatever happens here, the
 * exit code stays the child's.
 */

import { connect, freshKey } from "../client/client.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { note } from "./output.ts";
import type { Asker } from "./run-asker.ts";
import type { Ended } from "./run-child.ts";
import type { Lease, Loss } from "./run-leases.ts";
import type { Spool } from "./run-spool.ts";

/** How long the telling may take, in milliseconds. */
const TELL_MS = 30_000;

/** What the session's end says. */
export interface Verdict {
  readonly outcome: "completed" | "failed" | "cancelled";
  readonly reason?: string;
  /** What becomes of the task; without it the end of the session gives it back. */
  readonly task?: "complete" | { readonly class: string; readonly message: string };
}

/**
 * What came of it.
 * @param ended how the child ended
 * @param passed the signals that were passed on to it
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
  // Who catches a signal, tidies up and says so with the code that it would have ended with, was cancelled as well.
  const cancelled = passed.find(({ name, code }) => ended.signal === name || ended.code === code);
  if (cancelled) return { outcome: "cancelled", reason: `signal ${cancelled.name}`, ...because };
  if (ended.code === 0) return { outcome: "completed", ...because, task: "complete" };
  // Nothing was tried: the task is given back.
  if (ended.unstarted)
    return { outcome: "failed", reason: `the command could not be started: ${ended.unstarted}` };
  const task = ended.signal
    ? { class: "signal", message: `killed by ${ended.signal}` }
    : { class: "exit", message: `exit code ${ended.code}` };
  return { outcome: "failed", ...because, task };
}

/** What was told. */
export interface Told {
  readonly artifact_id: string | null;
  /** The session's end is in the log. */
  readonly ended: boolean;
}

/**
 * Tell it.
 * @param signal gives up the telling
 */
export async function tellEnd(
  asker: Asker,
  session: Lease,
  verdict: Verdict,
  {
    exit_code,
    task_id,
    claim,
    spool,
    signal,
  }: {
    readonly exit_code?: number;
    readonly task_id: string | undefined;
    /** The claim on the task, as long as it is held. */
    readonly claim: Lease | undefined;
    readonly spool: Spool | undefined;
    readonly signal: AbortSignal;
  },
): Promise<Told> {
  const deadline = performance.now() + TELL_MS;
  const until = <T extends object>(work: Parameters<typeof asker.until<T>>[2]) =>
    asker.until(deadline, signal, work);
  const insist = (type: string, payload: Readonly<Record<string, unknown>>) => {
    const key = freshKey();
    return until((how) => asker.send(type, payload, how, key));
  };

  const artifact = spool ? await keep() : null;
  const artifact_id = isProblem(artifact) ? null : artifact;
  if (isProblem(artifact)) await note(`mp: the output could not be kept: ${artifact.detail}`);

  if (claim && verdict.task !== undefined) {
    const held = { task_id: claim.id, epoch: claim.epoch };
    const told =
      verdict.task === "complete"
        ? await insist("task.complete", held)
        : await insist("task.fail", { ...held, failure: verdict.task });
    if (isProblem(told) && !told.retryable) await note(`mp: the task stays as it is: ${told.detail}`);
  }

  const told = await endSession();
  if (isProblem(told)) {
    const already = told.reason === "session.invalid_transition" ? told.details?.from : undefined;
    await note(
      already === undefined
        ? `mp: the end of session ${session.id} could not be told (${told.detail}): its leases run out by themselves`
        : `mp: the session is ${already} already, so it stays so`,
    );
  }
  return { artifact_id, ended: !isProblem(told) };

  /** From some statuses the table of SPEC §8 has no way to some ends: running is on the way to each. */
  async function endSession(): Promise<object | Problem> {
    const payload = {
      session_id: session.id,
      outcome: verdict.outcome,
      ...(exit_code !== undefined && { exit_code }),
      ...(verdict.reason !== undefined && { reason: verdict.reason.slice(0, 128) }),
    };
    const first = await insist("session.end", payload);
    if (!isProblem(first) || first.reason !== "session.invalid_transition") return first;
    const from = first.details?.from;
    const way =
      from === "lost"
        ? await insist("session.resume", { session_id: session.id })
        : from === "waiting" || from === "idle"
          ? await insist("session.report_status", { session_id: session.id, status: "running" })
          : first;
    return isProblem(way) ? way : insist("session.end", payload);
  }

  /** @returns the artifact's id; null when there was no output */
  async function keep(): Promise<string | null | Problem> {
    const { path, size, digest } = spool!.close();
    if (size === 0) return null;
    const stored = await until(async (how) => {
      const target = await asker.address(how);
      if (isProblem(target)) return target;
      return connect(target).upload(digest, Bun.file(path), how);
    });
    if (isProblem(stored)) return stored;
    const links = [{ kind: "session", id: session.id }, ...(task_id ? [{ kind: "task", id: task_id }] : [])];
    const payload = { digest, size, media_type: "text/plain", name: "output.log", links };
    const registered = await insist("artifact.register", payload);
    return isProblem(registered) ? registered : registered.subject.id;
  }
}
