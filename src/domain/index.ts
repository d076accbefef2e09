/** The one list of aggregates. A new aggregate adds one file and one line here. */
import { artifact } from "./artifact.ts";
import { project } from "./project.ts";
import { workspace } from "./workspace.ts";

export const aggregates = [workspace, project, artifact] as const;
