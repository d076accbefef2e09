/** The one list of aggregates. A new aggregate adds one file and one line here. */
import { project } from "./project.ts";
import { workspace } from "./workspace.ts";

export const aggregates = [workspace, project] as const;
