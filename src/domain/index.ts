/** The one list of aggregates. A new aggregate adds one file and one line here. */
import { artifact } from "./artifact.ts";
import { board } from "./board.ts";
import { project } from "./project.ts";
import { session } from "./session.ts";
import { task } from "./task.ts";
import { workspace } from "./workspace.ts";
import { worktree } from "./worktree.ts";

export const aggregates = [workspace, project, session, worktree, task, board, artifact] as const;
