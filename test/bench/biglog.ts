/**
 * Makes the large log, a process of its own (fill.ts). Prints one JSON line, BigLogResult, when the file is complete.
 *
 * One workspace for a thousand projects; every tenth project is archived.
 */
import { systemClock } from "../../src/kernel/clock.ts";
import { fill, type Made } from "./fill.ts";

export interface BigLogPlan {
  /** MP_HOME of the daemon that will serve it. */
  readonly home: string;
  readonly events: number;
}

export interface BigLogResult {
  /** Bytes of all bodies together. */
  readonly bytes: number;
}

const PER_WORKSPACE = 1_000;
const ARCHIVED_EACH = 10;

/** Endless workspaces with their projects. */
function* life(): Generator<Made, never> {
  for (let workspace = 0; ; workspace++) {
    const workspace_id = systemClock.id();
    const subject = { kind: "workspace", id: workspace_id };
    const payload = { name: `workspace-${workspace}` };
    yield { event_type: "workspace.created", payload, seq_stream: 1, subject, workspace_id };
    for (let project = 0; project < PER_WORKSPACE; project++) {
      const project_id = systemClock.id();
      const common = { subject: { kind: "project", id: project_id }, workspace_id, project_id };
      const name = `project-${workspace}-${project}`;
      yield { event_type: "project.created", payload: { name }, seq_stream: 1, ...common };
      if (project % ARCHIVED_EACH === 0)
        yield { event_type: "project.archived", payload: {}, seq_stream: 2, ...common };
    }
  }
}

if (import.meta.main) {
  const { home, events } = JSON.parse(process.argv[2]!) as BigLogPlan;
  console.log(JSON.stringify({ bytes: fill(home, life().take(events)) } satisfies BigLogResult));
}
