/**
 * What everything that lies in a workspace asks first (SPEC §8): are its parents there, its own, and open? One place for
 * it, so that every aggregate refuses alike. What gives something back (end, release, detach, the outcome of work that
 * was done) does not ask: a closed workspace must not lose it.
 */
import { type Find, missing, type Refused, reject, type Scope } from "../kernel/aggregate.ts";

/**
 * Why nothing may be begun or changed in a scope.
 * @param scope its workspace, and its project if it lies in one
 * @returns undefined when it may
 */
export function shut(find: Find, { workspace_id = "", project_id }: Scope): Refused | undefined {
  const workspace = find.one("workspaces", { workspace_id });
  if (!workspace) return missing("workspace", workspace_id);
  if (workspace.status === "closed") return reject("workspace.closed", { workspace_id });
  if (project_id === undefined) return undefined;
  const project = find.one("projects", { project_id });
  if (!project) return missing("project", project_id);
  if (project.workspace_id !== workspace_id)
    return reject("project.other_workspace", { project_id, workspace_id: project.workspace_id });
  return project.status === "archived" ? reject("project.archived", { project_id }) : undefined;
}

/** The statuses of a session that is there, and so can take something. */
const LIVE: readonly string[] = ["starting", "running", "idle", "waiting"];

/**
 * Why a session can take nothing in a workspace: it must be there, lie in it, and be live. What it gives back does not ask.
 * @returns undefined when it can
 */
export function unfit(find: Find, session_id: string, workspace_id: string | undefined): Refused | undefined {
  const session = find.one("sessions", { session_id });
  if (!session) return missing("session", session_id);
  if (session.workspace_id !== workspace_id)
    return reject("session.other_workspace", { session_id, workspace_id: session.workspace_id });
  const { status } = session;
  return LIVE.includes(status) ? undefined : reject("session.not_live", { session_id, status });
}
