/**
 * `mp board show` (SPEC §8, §12): lanes side by side where the terminal is wide enough, below each other where not.
 *
 * One snapshot over all its pages: lanes and position are the first page's, and a node that moves meanwhile is neither
 * missed nor doubled, because pages go by id. Left out on purpose: edges, which text draws badly; `--json` has them.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import { asking, type Ending, type Verb, verb } from "./command.ts";
import { commandVerb, tell } from "./domain.ts";
import { INTERRUPTED, TERMINATED } from "./exit.ts";
import { daemonLink, type Link } from "./link.ts";
import type { Column, Output } from "./output.ts";
import { usage } from "./parse.ts";
import { wantedBy } from "./payload.ts";
import { surface } from "./surface.ts";

interface Lane {
  readonly lane_id: string;
  readonly name: string;
  readonly stage: string | null;
  readonly wip_limit: number | null;
  readonly node_count: number;
  readonly over_limit: boolean;
}

interface Node {
  readonly node_id: string;
  readonly lane_id: string;
  readonly rank: string;
  readonly kind: string;
  readonly ref_id: string | null;
  readonly text: string | null;
  readonly title: string | null;
  readonly status: string | null;
}

interface Snapshot {
  readonly as_of_seq: number;
  readonly board: { readonly board_id: string; readonly workspace_id: string; readonly name: string };
  readonly lanes: readonly Lane[];
  readonly nodes: readonly Node[];
  readonly edges: readonly { readonly from_node_id: string; readonly to_node_id: string }[];
  readonly next: string | null;
}

/** As many as a page of a snapshot can have. */
const PAGE = 1_000;
/** Cards of a lane that a terminal shows when nobody says how many. */
const CARDS = 20;
/** A lane beside others is at least so wide, with so much between two. */
const NARROWEST = 16;
const GAP = 2;
/** Between two drawings, however much happens. */
const REST_MS = 100;
/** To the top left, and all away. */
const CLEAR = "\u001b[H\u001b[2J";

const COLUMNS: readonly Column[] = [...["lane", "rank", "kind", "status", "title", "node_id", "ref_id"]].map(
  (name) => ({ name }),
);

/** The verbs of boards that are not derived. */
export function boardVerbs(): Readonly<Record<string, Verb>> {
  return {
    get show() {
      return showVerb();
    },
    get snapshot() {
      return showVerb();
    },
    get "add-node"() {
      return placingVerb("board.add_node");
    },
    get "move-node"() {
      return placingVerb("board.move_node");
    },
  };
}

/** A command that puts a node into a lane, and says into which. */
function placingVerb(type: string): Verb {
  return commandVerb(type, {
    async show(receipt, context) {
      const { link, out, values } = context;
      if (!out.terminal || out.asJson) return tell(receipt, context);
      const { laneNamed } = await import("./lanes.ts");
      const lane = await laneNamed(link, String(values.lane), receipt.subject.id);
      // It is done all the same: somebody may have renamed the lane since.
      const name = isProblem(lane) ? String(values.lane) : lane.name;
      return tell(receipt, context, surface(), `to ${name}`);
    },
  });
}

function showVerb(): Verb {
  const wanted = wantedBy(surface(), "board.snapshot");
  const { cursor: _, ...args } = wanted.args;
  return verb(
    "Show a board: its lanes and what is in them.",
    {
      ...args,
      limit: {
        type: "string",
        format: "count",
        valueHint: "N",
        description: `at most so many cards of each lane (${CARDS} at a terminal, else all)`,
      },
      follow: {
        type: "boolean",
        description: "draw it again whenever something on it changes; Ctrl-C ends it",
      },
      ...asking,
    },
    async (values, { out }): Promise<Ending> => {
      if (values.follow && (!out.terminal || out.asJson))
        return usage("--follow draws at a terminal", "programs follow it with 'mp events tail --json'");
      const link = daemonLink(values);
      const given = await wanted.fill(link, { ...values, limit: undefined }, out.env);
      if (isProblem(given)) return given;
      const whole = await snapshot(link, given);
      if (isProblem(whole)) return whole;
      const limit = values.limit as number | undefined;
      const most = limit ?? (out.terminal && !out.asJson ? CARDS : Number.POSITIVE_INFINITY);
      if (values.follow) return follow(link, given, whole, most, out);
      const cards = cardsOf(whole, given);
      const nodes = cards.flatMap(({ all }) => all.slice(0, most));
      if (out.asJson) await out.json(limit === undefined ? whole : within(whole, nodes));
      else if (out.terminal) await out.print(await draw(whole, cards, most, out.colour));
      else {
        const names = new Map(whole.lanes.map(({ lane_id, name }) => [lane_id, name]));
        const rows = nodes.map((node) => ({
          ...node,
          lane: names.get(node.lane_id),
          title: node.title ?? node.text,
        }));
        await out.table(rows, { columns: COLUMNS });
      }
      return undefined;
    },
    {
      pointers: wanted.pointers,
      notes: [
        "Each card: what it is called, and below what it is, how it is, and the end of its id, which commands take.",
        "A lane that holds more than it should is red: nothing is refused for it.",
        `A pipe gets TSV without a header: ${COLUMNS.map(({ name }) => name).join(", ")}.`,
        "--json: the whole snapshot with its edges.",
      ],
      examples: [
        "mp board show sprint",
        "mp board show sprint --lane doing --limit 100",
        "mp board show sprint --follow",
      ],
    },
  );
}

/** All pages as one answer. */
async function snapshot(link: Link, given: Readonly<Record<string, unknown>>): Promise<Snapshot | Problem> {
  let first: Snapshot | undefined;
  const nodes: Node[] = [];
  const edges: Snapshot["edges"][number][] = [];
  for (let cursor: string | null | undefined; cursor !== null; ) {
    const answer = await link.ask("board.snapshot", { ...given, limit: PAGE, ...(cursor && { cursor }) });
    if (isProblem(answer)) return answer;
    const page = answer as Snapshot;
    first ??= page;
    nodes.push(...page.nodes);
    edges.push(...page.edges);
    cursor = page.next;
  }
  return { ...first!, nodes, edges, next: null };
}

/** The nodes of a lane, top to bottom: ranks are compared byte by byte. */
function nodesOf({ nodes }: Snapshot, { lane_id }: Lane): Node[] {
  return nodes
    .filter((node) => node.lane_id === lane_id)
    .sort((a, b) => (a.rank < b.rank ? -1 : a.rank > b.rank ? 1 : 0));
}

/** The snapshot with these nodes only, and the edges between them. */
function within(whole: Snapshot, nodes: readonly Node[]): Snapshot {
  const kept = new Set(nodes.map(({ node_id }) => node_id));
  const edges = whole.edges.filter((edge) => kept.has(edge.from_node_id) && kept.has(edge.to_node_id));
  return { ...whole, nodes, edges };
}

interface Cards {
  readonly lane: Lane;
  readonly all: readonly Node[];
}

/** The lanes that are asked for, with their nodes. */
function cardsOf(whole: Snapshot, { lane_id: only }: Readonly<Record<string, unknown>>): Cards[] {
  const lanes = whole.lanes.filter(({ lane_id }) => (only ?? lane_id) === lane_id);
  return lanes.map((lane) => ({ lane, all: nodesOf(whole, lane) }));
}

/** Draw it, and again after each change of the board or of what may be on it, until Ctrl-C. */
async function follow(
  link: Link,
  given: Readonly<Record<string, unknown>>,
  first: Snapshot,
  most: number,
  out: Output,
): Promise<Ending> {
  const target = await link.address();
  if (isProblem(target)) return target;
  const { tail } = await import("../client/tail.ts");
  const stop = new AbortController();
  let ending = INTERRUPTED;
  process.once("SIGINT", () => stop.abort());
  process.once("SIGTERM", () => {
    ending = TERMINATED;
    stop.abort();
  });
  const show = async (whole: Snapshot) => {
    const lines = (await draw(whole, cardsOf(whole, given), most, out.colour)).split("\n");
    const rows = (process.stdout.rows || lines.length) - 1;
    if (!(await out.print(`${CLEAR}${lines.slice(0, rows).join("\n")}\n`))) stop.abort();
  };
  /** Whether something has changed since the drawing that is under way began; undefined while there is none. */
  let stale: boolean | undefined;
  let failed: Problem | undefined;
  const redraw = async () => {
    do {
      stale = false;
      const whole = await snapshot(link, given);
      if (isProblem(whole)) failed = whole;
      else await show(whole);
      if (failed) stop.abort();
      await Bun.sleep(REST_MS);
    } while (stale && !stop.signal.aborted);
    stale = undefined;
  };
  await show(first);
  const { board, as_of_seq: after } = first;
  const { workspace_id } = board;
  for await (const frame of tail(target, { after, filter: { workspace_id }, signal: stop.signal })) {
    if (frame.kind === "end") return frame.problem;
    if (frame.kind !== "event" || !concerns(frame.event.subject, board.board_id)) continue;
    if (stale === undefined) void redraw();
    else stale = true;
  }
  return failed ?? ending;
}

/** Can an event of this subject change what the board shows? */
function concerns({ kind, id }: { readonly kind: string; readonly id: string }, board_id: string): boolean {
  return kind === "board" ? id === board_id : ["task", "session", "worktree", "artifact"].includes(kind);
}

/** The board as lines. */
async function draw(
  { board, as_of_seq }: Snapshot,
  lanes: readonly Cards[],
  most: number,
  colour: boolean,
): Promise<string> {
  const terminal = await import("./terminal.ts");
  const { pad, paint, safe, shortId, width } = terminal;
  const colours = paint(colour);
  const beside = Math.floor((width() + GAP) / lanes.length) - GAP;
  const wide = beside >= NARROWEST;
  const columns = wide ? beside : width();
  const drawn = lanes.map((each) => laneLines(each, most, columns, colour, terminal));
  const head = `${colours.bold(safe(board.name))}  ${colours.dim(`${shortId(board.board_id)}  as of #${as_of_seq}`)}`;
  const body = wide
    ? Array.from({ length: Math.max(...drawn.map(({ length }) => length)) }, (_, line) =>
        drawn
          .map((each) => pad(each[line] ?? "", columns))
          .join(" ".repeat(GAP))
          .trimEnd(),
      )
    : drawn.flatMap((each, at) => (at === 0 ? each : ["", ...each]));
  return `${[head, "", ...body].join("\n")}\n`;
}

/** A lane: its head, a line, two lines for each card. */
function laneLines(
  { lane, all }: Cards,
  most: number,
  columns: number,
  colour: boolean,
  { cut, mood, paint, safe, shortId, visible }: typeof import("./terminal.ts"),
): string[] {
  const colours = paint(colour);
  const count = lane.wip_limit === null ? `${lane.node_count}` : `${lane.node_count}/${lane.wip_limit}`;
  const told = lane.over_limit ? `${count} over` : count;
  const name = cut(safe(lane.name), columns - told.length - 1);
  const cards = all.slice(0, most).flatMap((node) => {
    const { kind, status, title, text, ref_id, node_id } = node;
    const called = visible(title ?? text ?? "");
    const mark = status === null ? colours.dim("·") : mood(status, "●", colour);
    const id = shortId(ref_id ?? node_id);
    const state = (status ?? "").replaceAll("_", " ");
    // What there is no room for goes: first what it is, then the end of how it is, for the mark tells that too.
    const room = columns - id.length - 1;
    const [what = ""] = [`  ${kind} `, "  "].filter((each) => each.length + state.length <= room);
    const how = state === "" ? "" : `${mood(status ?? "", cut(state, room - what.length), colour)} `;
    return [`${mark} ${cut(called, columns - 2)}`, `${colours.dim(what)}${how}${colours.dim(id)}`];
  });
  const left = all.length - most;
  return [
    `${colours.bold(name)} ${lane.over_limit ? colours.red(told) : colours.dim(told)}`,
    colours.dim("─".repeat(columns)),
    ...cards,
    ...(all.length === 0 ? [colours.dim("nothing")] : []),
    ...(left > 0 ? [colours.dim(`+ ${left} more`)] : []),
  ];
}
