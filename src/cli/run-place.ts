/**
 * Where a `mp session run` is to be, and what it is about (SPEC §8): read from the command line before there is a session.
 *
 * Always holds: what is named counts first, then what that lies in, then the environment, then the worktree that one is in,
 * then the only workspace there is; nothing is taken here.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Link } from "./link.ts";
import { idOf, namesOf, openWorkspaces, worktreeAround } from "./names.ts";
import { usage } from "./parse.ts";
import type { RunValues } from "./run.ts";

/** Where a session is, and what it is about. */
export interface Place {
  readonly workspace_id: string;
  readonly project_id: string | undefined;
  readonly worktree: { readonly id: string; readonly path: string } | undefined;
  /** The task that it works on; of `--next` it is known once it is claimed. */
  readonly task_id: string | undefined;
  /** Which tasks `--next` takes one of. */
  readonly next: { readonly project_id?: string; readonly stage?: string } | undefined;
  readonly parent_session_id: string | undefined;
}

/** Ids of where a thing is. */
interface Within {
  readonly workspace_id: string;
  readonly project_id: string | null;
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

/** What flags do not go together; undefined when all is well. */
export function misfit({ write, worktree, task, next, stage, wait }: RunValues): Problem | undefined {
  if (write && worktree === undefined)
    return usage("--write needs --worktree", "say which worktree's lock it wants");
  if (next && task !== undefined)
    return usage("--task and --next exclude each other", "name a task, or let it be the next one");
  if (stage !== undefined && !next)
    return usage("--stage needs --next", "it says which tasks the next one is one of");
  if (wait !== undefined && !next && !write && task === undefined)
    return usage("--wait needs --next, --task or --write", "say what it is to wait for");
  return undefined;
}

/** Find everything that the command line names. */
export async function findPlace(link: Link, values: RunValues): Promise<Place | Problem> {
  const worktree = await found<WorktreeRow>(link, "worktree", values.worktree);
  if (isProblem(worktree)) return worktree;
  const task = await found<TaskRow>(link, "task", values.task);
  if (isProblem(task)) return task;
  const { MP_WORKSPACE, MP_PROJECT } = process.env;
  const isTold = values.workspace || values.project || MP_WORKSPACE || MP_PROJECT;
  const about: Within | undefined | Problem =
    worktree ?? task ?? (isTold ? undefined : await worktreeAround(link));
  if (isProblem(about)) return about;
  const workspace_id = await workspaceOf(link, values.workspace, about);
  if (isProblem(workspace_id)) return workspace_id;
  const parent = await parentOf(link, values.parent, workspace_id);
  if (isProblem(parent)) return parent;
  // A project of the environment is one of its workspace, not of another that is named.
  const inherits = !about && (values.workspace === undefined || workspace_id === MP_WORKSPACE);
  const named = values.project ?? (inherits ? MP_PROJECT || undefined : undefined);
  const project_id =
    named === undefined
      ? (about?.project_id ?? undefined)
      : await idOf(link, "project", named, { workspace_id });
  if (isProblem(project_id)) return project_id;
  const { next, stage } = values;
  return {
    workspace_id,
    project_id,
    worktree: worktree && { id: worktree.worktree_id, path: worktree.path },
    task_id: task?.task_id,
    next: next
      ? { ...(project_id !== undefined && { project_id }), ...(stage !== undefined && { stage }) }
      : undefined,
    parent_session_id: parent?.session_id,
  };
}

/** The session that is named; else the one around, which is none of another workspace's parents. */
async function parentOf(
  link: Link,
  named: string | undefined,
  workspace_id: string,
): Promise<SessionRow | undefined | Problem> {
  if (named !== undefined) return found(link, "session", named);
  const around = await found<SessionRow>(link, "session", process.env.MP_SESSION_ID || undefined);
  return isProblem(around) || around?.workspace_id === workspace_id ? around : undefined;
}

async function workspaceOf(
  link: Link,
  text: string | undefined,
  about: Within | undefined,
): Promise<string | Problem> {
  const named = text ?? (about ? undefined : process.env.MP_WORKSPACE || undefined);
  if (named !== undefined) return idOf(link, "workspace", named);
  if (about) return about.workspace_id;
  const open = await openWorkspaces(link);
  if (isProblem(open)) return open;
  const [only, another] = open;
  if (!only) return usage("there is no open workspace", "create one: mp workspace create NAME");
  return another
    ? usage(
        "there is more than one open workspace",
        `say which: --workspace NAME, open are ${namesOf(open)}; or give a --worktree or a --task`,
      )
    : only.workspace_id;
}

/** A thing that the command line names, as the daemon has it. */
async function found<T extends object>(
  link: Link,
  kind: string,
  text: string | undefined,
): Promise<T | undefined | Problem> {
  if (text === undefined) return undefined;
  const id = await idOf(link, kind, text);
  return isProblem(id) ? id : ((await link.ask(`${kind}.get`, { [`${kind}_id`]: id })) as T | Problem);
}
