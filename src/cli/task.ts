/**
 * `mp task` beyond its registry (SPEC §8, §12): waiting for work, the ready queue as a queue, one task in sentences.
 *
 * Waiting never polls: it hears the log from before its first try, so nothing that becomes ready is missed; each event
 * that can make a task ready leads to one more try, and of several that wait one wins and the others go on waiting.
 */
import type { TailFrame } from "../client/tail.ts";
import type { Target } from "../client/transport.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import { asking, changing, type Ending, type Verb, verb } from "./command.ts";
import { commandVerb, type Page, queryVerb, tell, withoutPosition } from "./domain.ts";
import { INTERRUPTED, TERMINATED } from "./exit.ts";
import { daemonLink, type Link, type Sent } from "./link.ts";
import { type Column, note, type Output } from "./output.ts";
import { type Values, wantedBy } from "./payload.ts";
import { surface } from "./surface.ts";

/** A clock that runs before the daemon's must not make it try without pause. */
const SOONEST_MS = 100;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** What a claim is refused with that time may mend. */
const PASSING = new Set(["task.none_ready", "task.not_ready", "task.already_claimed"]);
/** Events that only take away: nothing becomes ready by them. */
const TAKING = new Set(["task.claimed", "task.blocked", "task.paused", "task.dependency_added"]);

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
  const derived = commandVerb("task.claim");
  const wanted = wantedBy(surface(), "task.claim");
  return verb(
    "Claim a task for a session: TASK, or the most urgent one that is ready, of those that the flags leave.",
    {
      ...wanted.args,
      wait: {
        type: "string",
        format: "limit",
        valueHint: "TIME",
        description: "wait so long for one that can be claimed",
      },
      ...changing,
      ...asking,
    },
    async (values, { out }): Promise<Ending> => {
      const link = daemonLink(values);
      const filled = await wanted.fill(link, values, out.env);
      if (isProblem(filled)) return filled;
      // Without TASK, and without anything that narrows it: any of the session's workspace.
      const payload = "task_id" in filled || "filter" in filled ? filled : { ...filled, filter: {} };
      const wait = values.wait as number | undefined;
      const receipt =
        wait === undefined
          ? await link.send("task.claim", payload)
          : await waitFor(link, payload, wait, out, daemonLink(withoutOwn(values)));
      if (typeof receipt === "number" || isProblem(receipt)) return receipt;
      return tell(receipt, { values, link, out, wanted });
    },
    {
      ...derived.more,
      notes: [
        "Give the epoch with renew, release, complete and fail: an older one is refused, for then somebody else has the task.",
        "--wait hears of what becomes ready and tries again; exit code 7 when nothing did in time, 130 after Ctrl-C.",
        ...(derived.more.notes ?? []),
      ],
      examples: [
        "mp task claim --session SESSION --project core --wait 10m",
        "mp task claim TASK --session SESSION --ttl-ms 15m",
        "mp task claim --session SESSION --stage review --json | jq -r '.result.task_id, .result.epoch'",
      ],
    },
  );
}

/** What was said about the claim alone. */
function withoutOwn(values: Parameters<typeof daemonLink>[0]): Parameters<typeof daemonLink>[0] {
  const { key: _, "expected-version": __, ...rest } = values;
  return rest;
}

/** Why a wait is over before anything was claimed. */
type Over = "timeout" | "SIGINT" | "SIGTERM";

/** Claim as soon as it can be done. */
async function waitFor(
  link: Link,
  payload: Values,
  wait_ms: number,
  out: Output,
  /** For what undoes it: the claim's key and expected version are not its own. */
  back: Link,
): Promise<Sent | Problem | number> {
  const target = await link.address();
  if (isProblem(target)) return target;
  const scope = await scopeOf(link, payload);
  if (isProblem(scope)) return scope;
  const waiting = new Waiting(target, scope, wait_ms);
  try {
    let told = false;
    for (;;) {
      const woken = await waiting.next();
      if (isProblem(woken)) return woken;
      if (woken === "timeout") return late(waiting.refused, wait_ms);
      if (woken !== "try") return woken === "SIGINT" ? INTERRUPTED : TERMINATED;
      const receipt = await link.send("task.claim", payload);
      if (isProblem(receipt)) {
        if (!PASSING.has(receipt.reason ?? "")) return receipt;
        waiting.refusedWith(receipt);
        if (!told && out.terminal && !out.asJson) await note("waiting for a task; Ctrl-C ends it");
        told = true;
        continue;
      }
      if (waiting.over === undefined || waiting.over === "timeout") return receipt;
      // Whoever pressed Ctrl-C has no use for it: others have.
      const { task_id, epoch } = receipt.result;
      await back.send("task.release", { task_id, epoch, reason: "interrupted" });
      return waiting.over === "SIGINT" ? INTERRUPTED : TERMINATED;
    }
  } finally {
    waiting.end();
  }
}

/** Whose events count: those of the project, or of the workspace that the session is in. */
async function scopeOf(link: Link, { session_id, filter }: Values): Promise<object | Problem> {
  const { project_id } = (filter ?? {}) as { project_id?: string };
  if (project_id !== undefined) return { project_id };
  const session = await link.ask("session.get", { session_id });
  if (isProblem(session)) return session;
  return { workspace_id: (session as { workspace_id: string }).workspace_id };
}

function late(refused: Problem | undefined, wait_ms: number): Problem {
  const why = refused ? `: ${refused.detail}` : "";
  return problem("timeout", `nothing could be claimed within ${spanOf(wait_ms)}${why}`, {
    hint: "wait longer, or 'mp task ready' and 'mp task list --status running' show what there is",
    ...(refused?.details && { details: refused.details }),
  });
}

/** What to wait for: news of the log, a time, an end. */
class Waiting {
  readonly #stop = new AbortController();
  readonly #deadline: Timer;
  #alarm: Timer | undefined;
  #wake: (() => void) | undefined;
  /** Something has happened since the last try. */
  #news = false;
  #failed: Problem | undefined;
  over: Over | undefined;
  refused: Problem | undefined;

  constructor(target: Target, scope: object, wait_ms: number) {
    this.#deadline = setTimeout(() => this.#finish("timeout"), Math.min(wait_ms, LONGEST_TIMER_MS));
    // Once each: a second Ctrl-C ends the process at once.
    process.once("SIGINT", () => this.#finish("SIGINT"));
    process.once("SIGTERM", () => this.#finish("SIGTERM"));
    void this.#listen(target, scope);
  }

  async #listen(target: Target, scope: object): Promise<void> {
    const { tail } = await import("../client/tail.ts");
    const filter = { types: ["task.*"], ...scope };
    for await (const frame of tail(target, { filter, signal: this.#stop.signal })) this.#heard(frame);
  }

  #heard(frame: TailFrame): void {
    if (frame.kind === "end") this.#failed = frame.problem;
    // The first greeting is the leave to try; a later one comes after a connection was lost, or the daemon restarted.
    else if (frame.kind === "event" ? !TAKING.has(frame.event.event_type) : frame.kind === "hello")
      this.#news = true;
    else return;
    this.#wake?.();
  }

  #finish(over: Over): void {
    this.over ??= over;
    this.#wake?.();
  }

  /** Remember why it could not be claimed, and when that passes by itself. */
  refusedWith(refused: Problem): void {
    this.refused = refused;
    const { next_at, not_before, expires_at } = (refused.details ?? {}) as Record<string, unknown>;
    const at = next_at ?? not_before ?? expires_at;
    clearTimeout(this.#alarm);
    if (typeof at !== "string") return;
    const ms = Math.max(SOONEST_MS, Date.parse(at) - Date.now());
    this.#alarm = setTimeout(
      () => {
        this.#news = true;
        this.#wake?.();
      },
      Math.min(ms, LONGEST_TIMER_MS),
    );
  }

  /** Wait until there is a reason to try, or none to go on. */
  async next(): Promise<"try" | Over | Problem> {
    while (!this.#news && this.over === undefined && this.#failed === undefined)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    if (this.#failed || this.over) return this.#failed ?? this.over!;
    this.#news = false;
    return "try";
  }

  end(): void {
    clearTimeout(this.#deadline);
    clearTimeout(this.#alarm);
    this.#stop.abort();
  }
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
  readonly task_id: string;
  readonly title: string;
  readonly body: string | null;
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
  ...["max_attempts", "claim_session_id", "claim_epoch", "unmet", "version"],
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
    async show(answer, { out }) {
      const whole = withoutPosition(answer);
      if (!out.terminal) {
        await out.record(whole);
        return undefined;
      }
      await out.print(await drawn(whole as unknown as Task, out));
      return undefined;
    },
  });
}

async function drawn(task: Task, { colour }: Output): Promise<string> {
  const { drawPart, drawRecord, localTime, paint, safe, shortId } = await import("./terminal.ts");
  const { title, status, priority, attempt, max_attempts, claim, why } = task;
  const told = Object.entries(task).filter(([name, value]) => value !== null && !ELSEWHERE.has(name));
  const record = {
    title,
    status,
    ...Object.fromEntries(told),
    priority: `P${priority}`,
    attempt: `${attempt} of ${max_attempts}`,
    ...(claim && {
      claim: `session ${claim.session_id}, epoch ${claim.epoch}, until ${localTime(claim.expires_at)}`,
    }),
  };
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
