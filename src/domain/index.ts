/** The one list of aggregates. A new aggregate adds one file and one line here. */
import { artifact } from "./artifact.ts";
import { board } from "./board.ts";
import { project } from "./project.ts";
import { session } from "./session.ts";
import { workspace } from "./workspace.ts";

export const aggregates = [workspace, project, session, board, artifact] as const;
