/**
 * `mp session` beyond its registry (SPEC §8, §12): the tree as a tree, one session with what it holds and has made, and what
 * its command printed.
 *
 * A tree needs no second look at the daemon: the rows come in the order of the tree, each with its depth.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import { asking, type Verb, verb } from "./command.ts";
import { commandVerb, forReading, type Page, queryVerb, sayBelow } from "./domain.ts";
import type { Link } from "./link.ts";
import { type Column, note, type Output } from "./output.ts";
import { usage } from "./parse.ts";
import { wantedBy } from "./payload.ts";
import { surface } from "./surface.ts";

/** A row of `session.tree`, as far as it is drawn. */
interface Row {
  readonly session_id: string;
  readonly depth: number;
  readonly status: string;
  readonly waiting_for: string | null;
  readonly title: string | null;
  readonly agent_name: string;
  readonly children: number;
  readonly worst_status: string | null;
  readonly forked_from_session_id: string | null;
  readonly updated_at: string;
}

const COLUMNS: readonly Column[] = [
  ...["depth", "session_id", "parent_session_id", "status", "waiting_for"],
  ...["agent_name", "title", "children", "worst_status"],
].map((name) => ({ name }));

/** Columns that a name and its branches have at least. */
const NARROWEST = 20;

/** States at a glance, also without colour; from the best to the worst. */
const MARKS: Readonly<Record<string, string>> = {
  completed: "✓",
  cancelled: "-",
  idle: "○",
  running: "●",
  starting: "◌",
  waiting: "◐",
  lost: "!",
  failed: "✗",
};
const SEVERITY = Object.keys(MARKS);
const OVER = new Set(["completed", "cancelled", "lost", "failed"]);

/** The verbs of sessions that are not derived. */
export function sessionVerbs(): Readonly<Record<string, Verb>> {
  return {
    get logs() {
      return logsVerb();
    },
    get "report-status"() {
      return commandVerb("session.report_status", {
        misfit: ({ status, "waiting-for": what }) =>
          status === "waiting" && what === undefined
            ? usage("--waiting-for is missing", "say what it waits for: approval, user_input or policy")
            : undefined,
      });
    },
    get tree() {
      return queryVerb("session.tree", {
        doc: "Show sessions as trees: who began whom, and how they are.",
        args: {
          depth: {
            type: "string",
            format: "count",
            valueHint: "N",
            description:
              "show so many levels, and of what is below them how many there are and the worst status",
          },
          live: { type: "boolean", description: "only those that are there, and those above them" },
        },
        misfit: ({ depth }) =>
          depth === 0 ? usage("--depth must be 1 or more", "leave it out to see all levels") : undefined,
        document(answer, { live, depth }) {
          const all = answer.items as unknown as readonly Row[];
          return { ...answer, items: upTo(depth, live ? livePart(all) : all) };
        },
        notes: [
          "Without ROOT: every tree, oldest first, also what has ended; --live leaves out what has ended or is lost.",
          "The worst status is that of the worst of all below, also of those that are not shown, from best to worst:",
          `${SEVERITY.join(", ")}. A terminal shows it where it is worse than the session's own.`,
        ],
        pipe: `A pipe gets TSV without a header: ${COLUMNS.map(({ name }) => name).join(", ")}.`,
        examples: [
          "mp session tree",
          "mp session tree --live",
          "mp session tree SESSION --depth 2",
          "mp session tree --workspace demo --json",
        ],
        async show(answer, { values, out }) {
          const { items, next } = answer as Page;
          const all = items as unknown as readonly Row[];
          const kept = values.live ? livePart(all) : all;
          await show(kept, values.depth, out);
          await sayBelow(ofOver(all, all.length - kept.length, values.live === true), out);
          if (next !== null) await note(`there are more: --cursor ${next}`);
          return undefined;
        },
      });
    },
    get list() {
      return queryVerb("session.list", {
        doc: "List sessions, oldest first, also those that have ended; --live leaves those out.",
        examples: ["mp session list --live", "mp session list --workspace demo --status waiting"],
        async rows(items, { values }) {
          const asked = values.live !== undefined || values.status !== undefined;
          return { items, below: asked ? undefined : ofOver(items as unknown as readonly Row[], 0, false) };
        },
      });
    },
    get get() {
      return queryVerb("session.get", {
        doc: "Show one session: how it is, what it holds, and what it has made.",
        examples: ["mp session get 7f45e807", "mp session get SESSION --json | jq .expires_at"],
        draw: (whole, { link, out }) => drawnOne(whole as unknown as Session, link, out.colour),
      });
    },
  };
}

/** Of the rows of a tree those that are there, with those above them. */
function livePart<R extends { readonly status: string; readonly depth: number }>(rows: readonly R[]): R[] {
  const kept: R[] = [];
  /** The depth that the row above is looked for at: its child is kept. */
  let above = -1;
  for (const row of rows.toReversed()) {
    if (OVER.has(row.status) && row.depth !== above) continue;
    kept.push(row);
    above = row.depth - 1;
  }
  return kept.reverse();
}

/** Of the rows of a tree so many levels, all where it is not said how many. */
function upTo<R extends { readonly depth: number }>(levels: unknown, rows: readonly R[]): readonly R[] {
  const first = rows[0]?.depth ?? 0;
  return typeof levels === "number" ? rows.filter(({ depth }) => depth - first < levels) : rows;
}

/** What is said below sessions about those that are over. */
function ofOver(rows: readonly Row[], hidden: number, live: boolean): string | undefined {
  if (hidden > 0) return `${hidden} that ended or are lost are hidden: leave out --live to see them`;
  const over = rows.filter(({ status }) => OVER.has(status)).length;
  return live || over === 0 ? undefined : `${over} of ${rows.length} ended or are lost: --live hides them`;
}

/** `session.get`, as far as it is drawn in its own way. */
interface Session extends Readonly<Record<string, unknown>> {
  readonly session_id: string;
  readonly agent_name: string;
  readonly agent_version: string | null;
  readonly agent_model: string | null;
  readonly forked_from_session_id: string | null;
  readonly forked_at_seq: number | null;
  readonly fork_mode: string | null;
  readonly attachments: readonly Readonly<Record<string, unknown>>[];
  readonly claims: readonly Readonly<Record<string, unknown>>[];
}

/** What the record of a session leaves out: told elsewhere in it, or bookkeeping. */
const ELSEWHERE = new Set([
  ...["agent_version", "agent_model", "forked_from_session_id", "forked_at_seq", "fork_mode"],
  ...["root_session_id", "depth", "attachments", "claims"],
]);

const ATTACHMENTS: readonly Column[] = [
  { name: "worktree_id", title: "WORKTREE", as: "short" },
  { name: "mode" },
];
const CLAIMS: readonly Column[] = [{ name: "task_id", title: "TASK", as: "short" }, { name: "epoch" }];

async function drawnOne(session: Session, link: Link, colour: boolean): Promise<string | Problem> {
  const { drawPart, drawRecord, shortId } = await import("./terminal.ts");
  const { drawArtifactsOf } = await import("./artifact.ts");
  const { session_id, agent_name, agent_version, agent_model, attachments, claims } = session;
  const { forked_from_session_id: from, forked_at_seq, fork_mode } = session;
  const model = agent_model === null ? "" : ` (${agent_model})`;
  const told = Object.entries(session).filter(([name]) => !ELSEWHERE.has(name) && name !== "agent_name");
  const record = await forReading("session", {
    agent: `${agent_name}${agent_version === null ? "" : ` ${agent_version}`}${model}`,
    ...(from !== null && { fork: `of ${shortId(from)} at #${forked_at_seq}, ${fork_mode}` }),
    ...Object.fromEntries(told),
  });
  const all = `mp artifact list --session ${shortId(session_id)}`;
  const artifacts = await drawArtifactsOf(link, session_id, all, colour);
  if (isProblem(artifacts)) return artifacts;
  const part = (title: string, rows: readonly Readonly<Record<string, unknown>>[], columns: typeof CLAIMS) =>
    rows.length > 0 ? drawPart(title, rows, colour, columns) : "";
  return [
    drawRecord(record, colour),
    part("attached to", attachments, ATTACHMENTS),
    part("claims", claims, CLAIMS),
    artifacts,
  ].join("");
}

function logsVerb(): Verb {
  const wanted = wantedBy(surface(), "session.get");
  return verb(
    "Write what the command of a session printed, as 'mp session run' has kept it.",
    { ...wanted.args, ...asking },
    async (values, { out }) => (await import("./session-logs.ts")).showLogs(values, wanted, out),
    {
      pointers: wanted.pointers,
      notes: [
        "stdout gets the bytes as they were printed, of stdout and stderr in the order in which they came. They are there once",
        "the command has ended; exit code 3 when there are none, 5 when they have expired. --json: the artifacts, not their bytes.",
      ],
      examples: ["mp session logs SESSION", "mp session logs 5f0a11c2 | less -R"],
    },
  );
}

async function show(rows: readonly Row[], levels: unknown, out: Output): Promise<void> {
  const below = belowOf(rows);
  const all = rows.map((row, at) => ({ ...row, below: below[at]! }));
  const kept = upTo(levels, all);
  if (!out.terminal || rows.length === 0)
    await out.table(kept, { columns: COLUMNS, empty: "no session matches" });
  else await out.print(await drawn(kept, out));
}

/** The tree as lines: branches, mark and name; state; age; id; what is hidden below. */
async function drawn(rows: readonly (Row & { readonly below: number })[], out: Output): Promise<string> {
  const { ago, cut, mood, pad, paint, shortId, visible, width } = await import("./terminal.ts");
  const colours = paint(out.colour);
  const lines = rows.map((row, at) => {
    const { status, waiting_for, title, agent_name, depth, below, worst_status, updated_at } = row;
    const isWorse = SEVERITY.indexOf(worst_status ?? "") > SEVERITY.indexOf(status);
    const agent = visible(agent_name);
    return {
      row,
      called: title === null ? agent : `${visible(title)} (${agent})`,
      state: waiting_for === null ? status : `${status} for ${waiting_for.replaceAll("_", " ")}`,
      age: ago(updated_at),
      fork: row.forked_from_session_id === null ? "" : `fork of ${shortId(row.forked_from_session_id)}`,
      more:
        below > 0 && rows[at + 1]?.depth !== depth + 1
          ? `+ ${below} below, worst ${worst_status}`
          : isWorse
            ? `worst ${worst_status}`
            : "",
    };
  });
  const widest = (texts: readonly string[]) =>
    texts.reduce((most, text) => Math.max(most, Bun.stringWidth(text)), 0);
  const states = widest(lines.map(({ state }) => state));
  const ages = widest(lines.map(({ age }) => age));
  const id = shortId(rows[0]!.session_id).length;
  /** What is left for names; two spaces are in front of each column behind them. */
  const roomFor = (age: boolean, fork: boolean) => {
    const mores = widest(lines.map((line) => [fork ? line.fork : "", line.more].filter(Boolean).join("  ")));
    const others = [states, age ? ages : 0, id, mores].filter((each) => each > 0);
    return others.reduce((left, each) => left - 2 - each, width());
  };
  // Where it is too narrow for all, the age is what one can do without, and then whose fork it is.
  const withAge = roomFor(true, true) >= NARROWEST;
  const withFork = roomFor(withAge, true) >= NARROWEST;
  const room = Math.max(NARROWEST, roomFor(withAge, withFork));
  const branches = branchesOf(rows, Math.floor(room / 2));
  const names = Math.min(room, widest(lines.map(({ called }, at) => `${branches[at]}M ${called}`)));
  const drawnLines = lines.map(({ row, called, state, age, fork, more }, at) => {
    const branch = branches[at]!;
    const mark = mood(row.status, MARKS[row.status] ?? "?", out.colour);
    const name = cut(called, names - Bun.stringWidth(branch) - 2);
    const cells = [
      pad(`${branch === "" ? "" : colours.dim(branch)}${mark} ${name}`, names),
      mood(row.status, pad(state, states), out.colour),
      ...(withAge ? [colours.dim(pad(age, ages))] : []),
      colours.dim(shortId(row.session_id)),
      ...(fork === "" || !withFork ? [] : [colours.dim(fork)]),
      ...(more === "" ? [] : [mood(row.worst_status ?? "", more, out.colour)]),
    ];
    return `${cells.join("  ")}\n`;
  });
  return drawnLines.join("");
}

/**
 * The lines of a tree in front of each row, such as `│  ├─ `.
 * @param most columns that they may take: deeper ones are told by a number
 */
function branchesOf(rows: readonly { readonly depth: number }[], most: number): string[] {
  const first = rows[0]?.depth ?? 0;
  /** Whether another child follows at each depth, seen from below. */
  const follows: boolean[] = [];
  const branches: string[] = [];
  for (let at = rows.length - 1; at >= 0; at--) {
    const depth = rows[at]!.depth - first;
    const drawn = 3 * depth <= most;
    const lines = drawn ? Array.from({ length: depth }, (_, level) => follows[level + 1] ?? false) : [];
    branches[at] = drawn
      ? lines
          .map((more, level) => (level < depth - 1 ? (more ? "│  " : "   ") : more ? "├─ " : "└─ "))
          .join("")
      : `… ${depth} deep ─ `;
    follows[depth] = true;
    follows.length = depth + 1;
  }
  return branches;
}

/** How many rows are below each. */
function belowOf(rows: readonly { readonly depth: number }[]): number[] {
  const below = rows.map(() => 0);
  const open: number[] = [];
  const close = (depth: number, end: number) => {
    while (open.length > 0 && rows[open.at(-1)!]!.depth >= depth) {
      const at = open.pop()!;
      below[at] = end - at - 1;
    }
  };
  for (const [at, { depth }] of rows.entries()) {
    close(depth, at);
    open.push(at);
  }
  close(0, rows.length);
  return below;
}
