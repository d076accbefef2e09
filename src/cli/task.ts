/**
 * `mp task` beyond its registry (SPEC §8, §12): waiting for work, the ready queue as a queue, one task in sentences.
 *
 * How it waits is in waiting.ts; here is only whose events count for a claim.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Verb } from "./command.ts";
import { commandVerb, forReading, type Page, queryVerb } from "./domain.ts";
import type { Link } from "./link.ts";
import { type Column, note } from "./output.ts";
import { usage } from "./parse.ts";
import type { Values } from "./payload.ts";
import { sendOnceFree, type Wish, waitArg } from "./waiting.ts";

/** The verbs of tasks that are not derived, or show more. */
export function taskVerbs(): Readonly<Record<string, Verb>> {
  return {
    get claim() {
      return claimVerb();
    },
    get ready() {
      return readyVerb();
    },
    get get() {
      return getVerb();
    },
  };
}

function claimVerb(): Verb {
  return commandVerb("task.claim", {
    doc: "Claim a task for a session: TASK, or the most urgent one that is ready, of those that the flags leave.",
    args: { wait: waitArg("wait so long for one that can be claimed") },
    notes: [
      "Give the epoch with renew, release, complete and fail: an older one is refused, for then somebody else has the task.",
      "--wait hears of what becomes ready and tries again; exit code 7 when nothing did in time, 130 after Ctrl-C.",
    ],
    examples: [
      "mp task claim --session SESSION --project core --wait 10m",
      "mp task claim TASK --session SESSION --ttl-ms 15m",
      "mp task claim --session SESSION --stage review --json | jq -r '.result.task_id, .result.epoch'",
    ],
    misfit(values, { fields }) {
      const flags = fields
        .filter(({ within, name }) => within === "filter" && values[name] !== undefined)
        .map(({ name }) => `--${name}`);
      return values.task === undefined || flags.length === 0
        ? undefined
        : usage(
            `TASK and ${flags.join(" and ")} exclude each other`,
            "name a task, or say which ones it may be one of",
          );
    },
    send(filled, context) {
      // Without TASK, and without anything that narrows it: any of the session's workspace.
      const payload = "task_id" in filled || "filter" in filled ? filled : { ...filled, filter: {} };
      return sendOnceFree("task.claim", payload, context, () => wishOf(context.link, payload));
    },
  });
}

/** Those of the project, or of the workspace that the session is in. */
async function wishOf(link: Link, { session_id, filter }: Values): Promise<Wish | Problem> {
  const { project_id } = (filter ?? {}) as { project_id?: string };
  const session = project_id === undefined ? await link.ask("session.get", { session_id }) : undefined;
  if (isProblem(session)) return session;
  const scope =
    project_id === undefined
      ? { workspace_id: (session as { workspace_id: string }).workspace_id }
      : { project_id };
  return {
    kind: "task",
    filter: { types: ["task.*"], ...scope },
    undo: ({ result: { task_id, epoch } }) => ["task.release", { task_id, epoch, reason: "interrupted" }],
  };
}

const QUEUE: readonly Column[] = [
  { name: "position", title: "#" },
  { name: "priority", title: "PRIO", as: "priority" },
  { name: "title" },
  { name: "created_at", title: "AGE", as: "age" },
  { name: "stage" },
  { name: "task_id", title: "ID", as: "short" },
];

function readyVerb(): Verb {
  return queryVerb("task.ready", {
    doc: "Show the queue of tasks that can be claimed now, the next one first.",
    examples: ["mp task ready --project core", "mp task ready --workspace demo --limit 5"],
    async show(answer, { out }) {
      const { items, next } = answer as Page;
      const columns = Object.keys(items[0] ?? {}).map((name) => ({ name }));
      const rows = out.terminal ? items.map((row, at) => ({ ...row, position: at + 1 })) : items;
      await out.table(rows, { columns, shown: QUEUE, empty: "no task is ready" });
      if (next !== null) await note(`there are more: --cursor ${next}`);
      return undefined;
    },
  });
}

/** `task.get`, as far as it is drawn in its own way. */
interface Task {
  readonly status: string;
  readonly priority: number;
  readonly attempt: number;
  readonly max_attempts: number;
  readonly claim: { readonly session_id: string; readonly epoch: number; readonly expires_at: string } | null;
  readonly why: readonly { readonly detail: string; readonly task_id?: string }[];
  readonly dependencies: readonly Values[];
  readonly dependency_count: number;
  readonly dependents: readonly Values[];
  readonly dependent_count: number;
  readonly attempts: readonly Values[];
}

/** What the record of a task leaves out: told elsewhere in it, or bookkeeping. */
const ELSEWHERE = new Set([
  ...["max_attempts", "claim_session_id", "claim_epoch", "unmet"],
  ...["dependency_count", "dependent_count", "why", "dependencies", "dependents", "attempts"],
]);

const OTHER_TASKS: readonly Column[] = [
  { name: "status" },
  { name: "title" },
  { name: "task_id", title: "ID", as: "short" },
];
const ATTEMPTS: readonly Column[] = [
  { name: "attempt", title: "#" },
  { name: "outcome" },
  { name: "session_id", title: "SESSION", as: "short" },
  { name: "epoch" },
  { name: "claimed_at", title: "CLAIMED", as: "age" },
  { name: "ended_at", title: "ENDED", as: "age" },
  { name: "failure_message", title: "FAILURE" },
];

function getVerb(): Verb {
  return queryVerb("task.get", {
    doc: "Show one task: who has it, what it waits for, and what came of each attempt.",
    examples: ["mp task get 5f0a11c2", "mp task get TASK --json | jq .why"],
    draw: (whole, { out }) => drawn(whole as unknown as Task, out.colour),
  });
}

async function drawn(task: Task, colour: boolean): Promise<string> {
  const { drawPart, drawRecord, localTime, paint, safe, shortId, timeAndAge } = await import("./terminal.ts");
  const { status, priority, attempt, max_attempts, claim, why } = task;
  const told = Object.entries(task).filter(([name]) => !ELSEWHERE.has(name));
  const record = await forReading("task", {
    ...Object.fromEntries(told),
    priority: `P${priority}`,
    attempt: `${attempt} of ${max_attempts}`,
    claim:
      claim && `session ${claim.session_id}, epoch ${claim.epoch}, until ${timeAndAge(claim.expires_at)}`,
  });
  const sentences = why.map(({ detail, task_id }) => {
    const said = detail.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, (wire) => localTime(wire));
    return `  ${safe(said)}${task_id === undefined ? "" : ` (${shortId(task_id)})`}\n`;
  });
  const part = (name: string, rows: readonly Values[], count: number, columns: readonly Column[]) => {
    const some = count > rows.length ? `${name} (${rows.length} of ${count})` : name;
    return rows.length > 0 ? [drawPart(some, rows, colour, columns)] : [];
  };
  const plain = status === "running" || status === "succeeded";
  return [
    drawRecord(record, colour),
    ...(plain || why.length === 0
      ? []
      : [`\n${paint(colour).bold("why it cannot be claimed")}\n`, ...sentences]),
    ...part("depends on", task.dependencies, task.dependency_count, OTHER_TASKS),
    ...part("others depend on it", task.dependents, task.dependent_count, OTHER_TASKS),
    ...part("attempts", task.attempts, task.attempts.length, ATTEMPTS),
  ].join("");
}
