/**
 * What a `mp session run` takes before its command begins (SPEC §8): the worktree, its writer lock, the task; and what the
 * command is told of it.
 *
 * Always holds: the lock and the task are both held or neither; nothing that is inherited of another session passes for
 * this one's. What is taken is renewed by run-leases.ts; on a refusal the end of the session gives back what there is.
 */
import { sessionVariables } from "../daemon/variables.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { type Asker, START } from "./run-asker.ts";
import type { Lease, Leases } from "./run-leases.ts";
import type { Needs } from "./run-needs.ts";
import { isPassing, type Waiting } from "./waiting.ts";

/** What takes, and for whom. */
interface Taker {
  readonly asker: Asker;
  readonly session: Lease;
  readonly leases: Leases;
  readonly needs: Needs;
  /** Where others are quicker, wait on here. */
  readonly waiting: Waiting | undefined;
}

/** What was taken. */
export interface Taken {
  readonly task_id: string | undefined;
  /** The command's environment. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * Take what was asked for.
 * @returns what the command is told; the refusal
 */
export async function take(taker: Taker): Promise<Taken | Problem> {
  const { asker, session, leases, needs } = taker;
  const { workspace_id, worktree } = needs.place;
  const { id: session_id, epoch } = session;
  if (worktree) {
    const mode = needs.write ? "write" : "read";
    const payload = { worktree_id: worktree.id, session_id, mode };
    const attached = await asker.send("worktree.attach", payload, START);
    if (isProblem(attached)) return attached;
  }
  const held = await lockAndClaim(taker);
  if (isProblem(held)) return held;
  for (const lease of held) leases.hold(lease);
  const writer = held.find(({ kind }) => kind === "writer");
  const claim = held.find(({ kind }) => kind === "claim");
  const project_id = await projectOf(taker, claim);
  if (isProblem(project_id)) return project_id;
  const minted = await asker.token(session_id);
  if (isProblem(minted)) return minted;
  const running = { session_id, status: "running", epoch };
  const reported = await asker.send("session.report_status", running, START);
  if (isProblem(reported)) return reported;
  const inherited = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !(sessionVariables as readonly string[]).includes(name)),
  );
  const own: Partial<Record<(typeof sessionVariables)[number], string>> = {
    MP_SESSION_ID: session_id,
    MP_SESSION_EPOCH: String(epoch),
    MP_TOKEN: (minted as { token: string }).token,
    MP_WORKSPACE: workspace_id,
    ...(project_id !== undefined && { MP_PROJECT: project_id }),
    ...(worktree && { MP_WORKTREE_ID: worktree.id }),
    ...(writer && { MP_WRITER_EPOCH: String(writer.epoch) }),
    ...(claim && { MP_TASK_ID: claim.id, MP_TASK_EPOCH: String(claim.epoch) }),
  };
  return { task_id: claim?.id, env: { ...inherited, ...own } };
}

/** Where others are quicker, try again as long as there is time. */
async function lockAndClaim(taker: Taker): Promise<readonly Lease[] | Problem> {
  const { needs, waiting } = taker;
  for (;;) {
    const held = await tryBoth(taker);
    if (!waiting || !isProblem(held) || !isPassing(held)) return held;
    waiting.refusedWith(held);
    const woken = await waiting.next();
    if (isProblem(woken)) return woken;
    if (woken !== "try") return waiting.late(needs.kind);
  }
}

/** The lock first: a claim that is given back has cost the task an attempt. */
async function tryBoth({ asker, session, leases, needs }: Taker): Promise<readonly Lease[] | Problem> {
  const { worktree, task_id, next } = needs.place;
  const { id: session_id } = session;
  const { ttl_ms } = leases;
  const held: Lease[] = [];
  if (needs.write && worktree) {
    const lock = { worktree_id: worktree.id, session_id };
    const locked = await asker.send("worktree.lock_writer", { ...lock, ttl_ms }, START);
    if (isProblem(locked)) return locked;
    held.push({ kind: "writer", id: worktree.id, epoch: Number(locked.result.epoch) });
  }
  if (!next && task_id === undefined) return held;
  const wanted = next ? { filter: next } : { task_id };
  const claimed = await asker.send("task.claim", { ...wanted, session_id, ttl_ms }, START);
  if (!isProblem(claimed))
    return [
      ...held,
      { kind: "claim", id: String(claimed.result.task_id), epoch: Number(claimed.result.epoch) },
    ];
  for (const { id: worktree_id, epoch } of held) {
    const released = await asker.send("worktree.release_writer", { worktree_id, session_id, epoch }, START);
    if (isProblem(released)) return released;
  }
  return claimed;
}

/** The project of the session, else of the task that turned out to be the next one. */
async function projectOf(
  { asker, needs: { place } }: Taker,
  claim: Lease | undefined,
): Promise<string | undefined | Problem> {
  if (place.project_id !== undefined || !claim) return place.project_id;
  const task = await asker.ask("task.get", { task_id: claim.id }, START);
  return isProblem(task) ? task : (task as { readonly project_id: string }).project_id;
}
