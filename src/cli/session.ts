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

/** Columns that a name and its branches have at least. */
const NARROWEST = 20;

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
  await out.print(await drawn(kept, first + levels - 1, out));
}

/**
 * The tree as lines: branches, mark and name; state; age; id; what is hidden below.
 * @param last the depth that nothing is shown below of
 */
async function drawn(
  rows: readonly (Row & { readonly below: number })[],
  last: number,
  out: Output,
): Promise<string> {
  const { ago, cut, mood, pad, paint, safe, shortId, width } = await import("./terminal.ts");
  const colours = paint(out.colour);
  const lines = rows.map((row) => {
    const { status, waiting_for, title, agent_name, depth, below, worst_status, updated_at } = row;
    return {
      row,
      called: safe(title === null ? agent_name : `${title} (${agent_name})`),
      state: waiting_for === null ? status : `${status} for ${waiting_for.replaceAll("_", " ")}`,
      age: ago(updated_at),
      more: depth === last && below > 0 ? `+ ${below} below, worst ${worst_status}` : "",
    };
  });
  const widest = (texts: readonly string[]) =>
    texts.reduce((most, text) => Math.max(most, Bun.stringWidth(text)), 0);
  const states = widest(lines.map(({ state }) => state));
  const ages = widest(lines.map(({ age }) => age));
  const mores = widest(lines.map(({ more }) => more));
  // Two spaces between two columns; the id's last.
  const rest = 2 + states + 2 + ages + 2 + shortId(rows[0]!.session_id).length + (mores > 0 ? 2 + mores : 0);
  const room = Math.max(NARROWEST, width() - rest);
  const branches = branchesOf(rows, Math.floor(room / 2));
  const names = Math.min(room, widest(lines.map(({ called }, at) => `${branches[at]}M ${called}`)));
  const drawnLines = lines.map(({ row, called, state, age, more }, at) => {
    const branch = branches[at]!;
    const mark = mood(row.status, MARKS[row.status] ?? "?", out.colour);
    const name = cut(called, names - Bun.stringWidth(branch) - 2);
    const cells = [
      pad(`${branch === "" ? "" : colours.dim(branch)}${mark} ${name}`, names),
      mood(row.status, pad(state, states), out.colour),
      colours.dim(pad(age, ages)),
      colours.dim(shortId(row.session_id)),
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
