/**
 * `mp worktree` beyond its registry (SPEC §8, §12): `check` for hooks, waiting for the lock, and verbs that say what git made
 * of them.
 *
 * The receipt of create, remove and reconcile is an intent: git runs outside the writer, and what came of it is another
 * event. These verbs end when that is known, and say it. `check` never starts a daemon in an empty home only to hear
 * that nothing is locked there.
 */
import { existsSync } from "node:fs";
import { paths } from "../daemon/paths.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { asking, type Ending, type Verb, verb } from "./command.ts";
import { type Answered, commandVerb, forReading, queryVerb, withoutPosition } from "./domain.ts";
import { carried } from "./fields.ts";
import { daemonLink, type Link, type Sent } from "./link.ts";
import { type Column, isTerminal, note, type Output } from "./output.ts";
import { wantedBy } from "./payload.ts";
import { surface } from "./surface.ts";
import { sendOnceFree, waitArg } from "./waiting.ts";

interface Row {
  readonly worktree_id: string;
  readonly path: string;
  readonly branch: string | null;
  readonly status: string;
  readonly failure: string | null;
  readonly commit_sha: string | null;
  readonly version: number;
}

interface Checked {
  readonly worktree_id: string | null;
  readonly path: string | null;
  readonly writer: {
    readonly session_id: string;
    readonly epoch: number;
    readonly expires_at: string;
  } | null;
}

/** How long git may take after the daemon has answered, when `--timeout` does not say. */
const GIT_MS = 300_000;
const FAILED = 1;

/** The verbs of worktrees that are not derived, or end otherwise. */
export function worktreeVerbs(): Readonly<Record<string, Verb>> {
  const settling = (type: string, examples: readonly string[]) =>
    commandVerb(type, {
      notes: [
        "It ends when git has: exit code 1 with git's own words when git could not, and nothing has changed then.",
      ],
      pipe: "A pipe gets TSV: worktree_id, status, branch, commit_sha, path. --json: the receipt, and the worktree as it is then.",
      examples,
      show: settled,
    });
  return {
    get create() {
      return settling("worktree.create", [
        "mp worktree create ../core-fix fix/parser --project core",
        "mp worktree create ../core-fix fix/parser --project core --base origin/main",
      ]);
    },
    get remove() {
      return settling("worktree.remove", [
        "mp worktree remove ../core-fix",
        "mp worktree remove ../core-fix --force",
      ]);
    },
    get reconcile() {
      return settling("worktree.reconcile", ["mp worktree reconcile ../core-fix"]);
    },
    get "lock-writer"() {
      return lockVerb();
    },
    get check() {
      return checkVerb();
    },
    get list() {
      return listVerb();
    },
    get get() {
      return getVerb();
    },
  };
}

/** States in which nothing of a worktree is on the disk, and its place is free. */
const GONE = new Set(["removed", "failed"]);

function listVerb(): Verb {
  return queryVerb("worktree.list", {
    doc: "List worktrees, oldest first; at a terminal without those that were removed or never came to be.",
    args: {
      all: { type: "boolean", description: "at a terminal, also those that are removed or failed" },
    },
    notes: ["A pipe and --json always get all, a terminal too with --all, --status or --path."],
    examples: ["mp worktree list", "mp worktree list --all --project core"],
    async rows(items, { values }) {
      if (values.all || values.status !== undefined || values.path !== undefined) return { items };
      const kept = items.filter(({ status }) => !GONE.has(String(status)));
      const counts = [...GONE].flatMap((gone) => {
        const count = items.filter(({ status }) => status === gone).length;
        return count > 0 ? [`${count} ${gone}`] : [];
      });
      return {
        items: kept,
        below: counts.length > 0 ? `hidden: ${counts.join(", ")}; --all shows them` : undefined,
      };
    },
  });
}

/** `worktree.get`, as far as it is drawn in its own way. */
interface Whole extends Readonly<Record<string, unknown>> {
  readonly writer: {
    readonly session_id: string;
    readonly epoch: number;
    readonly expires_at: string;
  } | null;
  readonly writer_status: string;
  readonly writer_epoch: number;
  readonly attachments: readonly Readonly<Record<string, unknown>>[];
}

const ATTACHMENTS: readonly Column[] = [
  { name: "session_id", title: "SESSION", as: "short" },
  { name: "mode" },
  { name: "attached_at", title: "ATTACHED", as: "age" },
];

function getVerb(): Verb {
  return queryVerb("worktree.get", {
    doc: "Show one worktree: what git says of it, who is attached to it and who writes.",
    examples: ["mp worktree get ../core-fix", "mp worktree get . --json | jq .writer"],
    draw: (whole, { out }) => drawn(whole as unknown as Whole, out.colour),
  });
}

async function drawn(worktree: Whole, colour: boolean): Promise<string> {
  const { drawPart, drawRecord, timeAndAge } = await import("./terminal.ts");
  const { writer, writer_status, writer_epoch, writer_session_id: _, attachments, ...rest } = worktree;
  const before = writer_epoch > 0 ? `, the last epoch was ${writer_epoch}` : "";
  const { branch, ...others } = rest;
  const record = await forReading("worktree", {
    branch,
    writer: writer
      ? `session ${writer.session_id}, epoch ${writer.epoch}, until ${timeAndAge(writer.expires_at)}`
      : `nobody: the lock is ${writer_status}${before}`,
    ...others,
  });
  const attached =
    attachments.length > 0 ? drawPart("attached sessions", attachments, colour, ATTACHMENTS) : "";
  return `${drawRecord(record, colour)}${attached}`;
}

/** Say what git made of the intent. */
async function settled(receipt: Sent, { values, link, out }: Answered): Promise<Ending> {
  const row = await outcome(link, receipt, values);
  if (isProblem(row)) return row;
  const verbed = receipt.type.slice(receipt.type.indexOf(".") + 1);
  const wanted =
    { create: ["present"], remove: ["removed"], reconcile: ["present", "missing"] }[verbed] ?? [];
  const failed = !wanted.includes(row.status);
  if (out.asJson) await out.json({ ...receipt, worktree: withoutPosition(row) });
  if (failed) return failure(verbed, row, out);
  if (out.asJson) return undefined;
  const at = row.commit_sha === null ? "" : ` at ${row.commit_sha.slice(0, 12)}`;
  const on = row.branch === null ? at : `: ${row.branch}${at}`;
  const done =
    { create: "created worktree", remove: "removed worktree" }[verbed] ?? `${row.status}: worktree`;
  await out.said(`${done} ${row.path} (${row.worktree_id})${row.status === "present" ? on : ""}`, [
    row.worktree_id,
    row.status,
    row.branch,
    row.commit_sha,
    row.path,
  ]);
  return undefined;
}

/** The words of git, on stderr. */
async function failure(verbed: string, row: Row, out: Output): Promise<number> {
  const { worktree_id, path, status } = row;
  const said = row.failure ?? `it is ${status}`;
  if (out.asJson) {
    await note(JSON.stringify({ worktree_id, status, failure: said }));
    return FAILED;
  }
  const terminal = await isTerminal(2);
  const { paint, safe } = terminal ? await import("./terminal.ts") : { paint: undefined, safe: String };
  const colours = paint?.(!out.env.NO_COLOR && out.env.TERM !== "dumb");
  const error = colours ? colours.bold(colours.red("error:")) : "error:";
  const lines = said.trimEnd().split("\n");
  await note(
    [
      `${error} git could not ${verbed} the worktree ${safe(path)}`,
      ...lines.map((line) => `  ${safe(line)}`),
      `  hint: it is ${status} now; mend the cause and give the command again`,
    ].join("\n"),
  );
  return FAILED;
}

/** The worktree once the event that tells how git fared is in the log. */
async function outcome(
  link: Link,
  { subject, seq_global: after, version, events }: Sent,
  { timeout }: Readonly<Record<string, unknown>>,
): Promise<Row | Problem> {
  const worktree_id = subject.id;
  const row = await rowOf(link, worktree_id);
  const begun = events.some(({ event_type }) => /^worktree\..*_started$/.test(event_type));
  // The daemon holds its answer back until git has ended, as long as that does not take too long.
  if (isProblem(row) || !begun || row.version > version) return row;
  const target = await link.address();
  if (isProblem(target)) return target;
  const { tail } = await import("../client/tail.ts");
  const signal = AbortSignal.timeout(typeof timeout === "number" ? timeout : GIT_MS);
  const streams = [`worktree/${worktree_id}`];
  const told = /^worktree\.(created|creation_failed|removed|removal_failed|reconciled)$/;
  for await (const frame of tail(target, { after, filter: { streams }, signal })) {
    if (frame.kind === "end") return frame.problem;
    if (frame.kind === "event" && told.test(frame.event.event_type)) return rowOf(link, worktree_id);
  }
  return problem("timeout", "git has not ended yet", {
    hint: `it goes on: 'mp worktree get ${worktree_id}' says how it ended`,
    details: { worktree_id, status: row.status },
  });
}

async function rowOf(link: Link, worktree_id: string): Promise<Row | Problem> {
  return (await link.ask("worktree.get", { worktree_id })) as Row | Problem;
}

function lockVerb(): Verb {
  return commandVerb("worktree.lock_writer", {
    args: { wait: waitArg("wait so long for the lock while another session holds it") },
    notes: [
      "--wait hears when the lock is given back or runs out, and takes it then; exit code 7 when it was not free in time, 130",
      "after Ctrl-C.",
    ],
    examples: [
      "mp worktree lock-writer ../core-fix --session SESSION --ttl-ms 5m",
      "mp worktree lock-writer ../core-fix --session SESSION --wait 10m",
    ],
    send(payload, context) {
      const { worktree_id, session_id } = payload;
      return sendOnceFree("worktree.lock_writer", payload, context, async () => ({
        kind: "lock",
        filter: { streams: [`worktree/${worktree_id}`] },
        undo: ({ result: { epoch } }) => ["worktree.release_writer", { worktree_id, session_id, epoch }],
      }));
    },
  });
}

function checkVerb(): Verb {
  const wanted = wantedBy(surface(), "worktree.check");
  const { path: _, ...args } = wanted.args;
  return verb(
    "Whether one may write at a path: for hooks. Exit code 0 when one may, 5 with the reason when not.",
    {
      path: {
        type: "positional",
        valueHint: "PATH",
        description: "a file or folder, there or not (the current folder)",
      },
      ...args,
      epoch: { ...args.epoch!, fallback: "MP_WRITER_EPOCH" },
      session: { ...args.session!, fallback: "MP_SESSION_ID" },
      ...asking,
    },
    async (values, { out }): Promise<Ending> => {
      // No log, so nobody has locked anything.
      if (!existsSync(paths().database)) return allow({ worktree_id: null, path: null, writer: null }, out);
      const link = daemonLink(values);
      const own = fromEnvironment(values, out.env);
      const given = await wanted.fill(link, { ...values, path: values.path ?? ".", ...own }, out.env);
      if (isProblem(given)) return given;
      const answer = await link.ask("worktree.check", given);
      if (!isProblem(answer)) return allow(answer as unknown as Checked, out);
      if (own.epoch === undefined || answer.reason !== "worktree.stale_epoch") return answer;
      return (await elsewhere(link, given, out.env)) ? allow(undefined, out) : answer;
    },
    {
      pointers: wanted.pointers,
      notes: [
        "The nearest worktree at or above PATH counts. Nobody writes there, or you do: 0. Another does, or your epoch is",
        "an old one: 5. In a home without a log it is 0 at once; a daemon that is down is started, with --no-spawn it is 6.",
        "In a session that 'mp session run' began nothing need be said: its epoch counts for its own worktree.",
        "A pipe gets nothing when one may write. --json: what was found.",
      ],
      examples: [
        "mp worktree check || exit 1                    in .git/hooks/pre-commit",
        "mp worktree check src/parser.ts --epoch 3 --session SESSION",
      ],
    },
  );
}

/** What `mp session run` told this process: the session, and the epoch of its writer lock. */
function fromEnvironment(
  values: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>,
): { readonly epoch?: number; readonly session?: string } {
  const { session, worktree } = carried;
  const stored = env[worktree!.epoch] ?? "";
  const epoch = values.epoch === undefined && /^\d{1,15}$/.test(stored) ? Number(stored) : undefined;
  const id = values.session === undefined ? env[session!.id] || undefined : undefined;
  return { ...(epoch !== undefined && { epoch }), ...(id !== undefined && { session: id }) };
}

/** Is the path in another worktree than the one that the epoch of the environment is for, and may one write there? */
async function elsewhere(
  link: Link,
  { epoch: _, ...given }: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>,
): Promise<boolean> {
  const own = env[carried.worktree!.id];
  if (!own) return false;
  const answer = await link.ask("worktree.check", given);
  return !isProblem(answer) && (answer as unknown as Checked).worktree_id !== own;
}

async function allow(found: Checked | undefined, out: Output): Promise<Ending> {
  const { worktree_id = null, path = null, writer = null } = found ?? {};
  if (out.asJson) await out.json({ as_of_seq: 0, worktree_id, path, allowed: true, writer, ...found });
  else if (out.terminal) {
    const why =
      path === null
        ? "no worktree is registered here"
        : writer === null
          ? `nobody holds the writer lock of ${path}`
          : `you hold the writer lock of ${path}`;
    await out.said(`allowed: ${why}`, []);
  }
  return undefined;
}
