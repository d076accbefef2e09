/**
 * `mp session` beyond its registry (SPEC §8, §12): the tree as a tree, and the wrapper around a command.
 *
 * What is drawn needs no second look at the daemon: the rows come in the order of the tree, each with its depth.
 */
import type { Verb } from "./command.ts";
import { type Page, queryVerb } from "./domain.ts";
import { type Column, note, type Output } from "./output.ts";
import { usage } from "./parse.ts";

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
  readonly updated_at: string;
}

const COLUMNS: readonly Column[] = [
  ...["depth", "session_id", "parent_session_id", "status", "waiting_for"],
  ...["agent_name", "title", "children", "worst_status"],
].map((name) => ({ name }));

/** States at a glance, also without colour. */
const MARKS: Readonly<Record<string, string>> = {
  starting: "◌",
  running: "●",
  idle: "○",
  waiting: "◐",
  lost: "!",
  completed: "✓",
  failed: "✗",
  cancelled: "-",
};

/** The verbs of sessions that are not derived. */
export function sessionVerbs(): Readonly<Record<string, Verb>> {
  return {
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
        },
        notes: [
          "Without ROOT: every tree, oldest first. The worst status is that of the worst of all below, from best to worst:",
          "completed, cancelled, idle, running, starting, waiting, lost, failed.",
          `A pipe gets TSV without a header: ${COLUMNS.map(({ name }) => name).join(", ")}.`,
        ],
        examples: [
          "mp session tree",
          "mp session tree SESSION --depth 2",
          "mp session tree --workspace demo --json",
        ],
        async show(answer, { values, out }) {
          const { items, next } = answer as Page;
          const levels = values.depth as number | undefined;
          if (levels === 0) return usage("--depth must be 1 or more", "leave it out to see all levels");
          await show(items as unknown as readonly Row[], levels ?? Number.POSITIVE_INFINITY, out);
          if (next !== null) await note(`there are more: --cursor ${next}`);
          return undefined;
        },
      });
    },
  };
}

async function show(rows: readonly Row[], levels: number, out: Output): Promise<void> {
  const first = rows[0]?.depth ?? 0;
  const below = belowOf(rows);
  const kept = rows
    .map((row, at) => ({ ...row, below: below[at]! }))
    .filter(({ depth }) => depth - first < levels);
  if (!out.terminal || rows.length === 0) {
    await out.table(kept, {
      columns: COLUMNS,
      empty: "no session matches",
    });
    return;
  }
  const terminal = await import("./terminal.ts");
  const { ago, cut, mood, pad, paint, safe, shortId, shown, width } = terminal;
  const colours = paint(out.colour);
  const branches = branchesOf(kept, Math.floor(width() / 2));
  const lines = kept.map((row, at) => {
    const { status, waiting_for, title, agent_name } = row;
    const hidden = row.depth - first === levels - 1 ? row.below : 0;
    const state = waiting_for === null ? status : `${status} for ${shown(waiting_for).replaceAll("_", " ")}`;
    const more = hidden === 0 ? "" : `+ ${hidden} below, worst ${row.worst_status}`;
    const called = safe(title === null ? agent_name : `${title} (${agent_name})`);
    return { row, branch: branches[at]!, called, state, age: ago(row.updated_at), more };
  });
  const widest = (of: (line: (typeof lines)[number]) => string) =>
    lines.reduce((most, line) => Math.max(most, Bun.stringWidth(of(line))), 0);
  const [states, ages, mores] = [
    widest(({ state }) => state),
    widest(({ age }) => age),
    widest(({ more }) => more),
  ];
  const rest = states + ages + 8 + 6 + (mores > 0 ? mores + 2 : 0);
  const names = Math.max(
    20,
    Math.min(
      widest(({ branch, called }) => `${branch}M ${called}`),
      width() - rest,
    ),
  );
  const drawn = lines.map(({ row, branch, called, state, age, more }) => {
    const mark = mood(row.status, MARKS[row.status] ?? "?", out.colour);
    const name = cut(called, names - Bun.stringWidth(branch) - 2);
    const filled = pad(`${branch === "" ? "" : colours.dim(branch)}${mark} ${name}`, names);
    const told = mood(row.status, pad(state, states), out.colour);
    const end = more === "" ? "" : `  ${mood(row.worst_status ?? "", more, out.colour)}`;
    return `${filled}  ${told}  ${colours.dim(pad(age, ages))}  ${colours.dim(shortId(row.session_id))}${end}`;
  });
  await out.print(`${drawn.join("\n")}\n`);
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
