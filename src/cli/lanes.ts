/**
 * What the words of a board's command line stand for (SPEC §8, §12): lanes by name, nodes by what they stand for, and lanes
 * in short form, `NAME[:STAGE[:LIMIT]]`.
 */
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Link } from "./link.ts";
import { idLike, idOf } from "./names.ts";
import { usage } from "./parse.ts";

type Values = Readonly<Record<string, unknown>>;

/** A lane as `board.get` answers it, as far as it is read here. */
interface Lane {
  readonly lane_id: string;
  readonly name: string;
  readonly stage: string | null;
  readonly wip_limit: number | null;
}

const LANE = /^(?:([^:=]+)=)?([^:]+)(?::([^:]*))?(?::(\d*))?$/;
const PAGE = 1_000;

/**
 * The lanes of `--lane` flags, or of one that holds them as JSON.
 *
 * For a board that is there, a lane of that name stays the one it is, with the stage and limit it has unless others are given
 * (`NAME:` has none); `OLD=NAME` gives it another name.
 */
export async function lanesOf(
  link: Link,
  texts: string | readonly string[],
  { board_id }: Values,
): Promise<unknown> {
  const joined = [texts].flat().join(",");
  if (joined.startsWith("["))
    try {
      return JSON.parse(joined) as unknown;
    } catch {
      return usage("--lane must be NAME[:STAGE[:LIMIT]], or all lanes as JSON", LANE_HINT);
    }
  const known = board_id === undefined ? [] : await lanesOn(link, String(board_id));
  if (isProblem(known)) return known;
  const lanes: object[] = [];
  for (const text of [texts].flat()) {
    const [, old, name, stage, limit] = LANE.exec(text) ?? [];
    if (name === undefined) return usage(`--lane: '${text}' is not NAME[:STAGE[:LIMIT]]`, LANE_HINT);
    const lane = known.find((each) => same(each.name, old ?? name));
    if (old !== undefined && !lane) return unknownLane(old, known);
    const wip_limit = limit === undefined ? lane?.wip_limit : limit === "" ? undefined : Number(limit);
    const stays = stage === undefined ? lane?.stage : stage;
    lanes.push({
      ...(lane && { lane_id: lane.lane_id }),
      name,
      ...(stays && { stage: stays }),
      ...(wip_limit != null && { wip_limit }),
    });
  }
  return lanes;
}

const LANE_HINT = "for instance --lane todo --lane doing:doing:3 --lane done";

/** A lane of the board, by name, by id, or by the end of its id. */
export async function laneOf(
  link: Link,
  text: string | readonly string[],
  { board_id }: Values,
): Promise<unknown> {
  const lane = await laneNamed(link, String(text), String(board_id));
  return isProblem(lane) ? lane : lane.lane_id;
}

/** The lane that a text stands for, whole. */
export async function laneNamed(link: Link, text: string, board_id: string): Promise<Lane | Problem> {
  const wanted = idLike(text);
  const lanes = await lanesOn(link, board_id);
  if (isProblem(lanes)) return lanes;
  return (
    lanes.find(({ name }) => same(name, wanted)) ??
    lanes.find(({ lane_id }) => lane_id === wanted || (wanted.length >= 8 && lane_id.endsWith(wanted))) ??
    unknownLane(wanted, lanes)
  );
}

/** A node of the board, by its id, by the id of what it stands for, or by the end of either. */
export async function nodeOf(
  link: Link,
  text: string | readonly string[],
  { board_id }: Values,
): Promise<unknown> {
  const wanted = String(text).toLowerCase();
  const found = new Set<string>();
  for (let cursor: string | null | undefined; cursor !== null; ) {
    const answer = await link.ask("board.snapshot", { board_id, limit: PAGE, ...(cursor && { cursor }) });
    if (isProblem(answer)) return answer;
    const page = answer as { nodes: { node_id: string; ref_id: string | null }[]; next: string | null };
    for (const { node_id, ref_id } of page.nodes)
      if (wanted.length >= 8 && (node_id.endsWith(wanted) || ref_id?.endsWith(wanted))) found.add(node_id);
    cursor = page.next;
  }
  const [only] = found;
  if (found.size === 1) return only;
  return found.size === 0
    ? problem("not_found", `nothing on the board is '${text}'`, {
        hint: `'mp board show ${board_id}' shows what is on it, with the end of each id`,
        details: { board_id },
      })
    : usage(
        `'${text}' stands for several nodes of the board`,
        `give more of the id: ${[...found].join(", ")}`,
      );
}

/** What a node is to stand for: of the kind that the command line names. */
export async function refOf(
  link: Link,
  text: string | readonly string[],
  _: Values,
  { kind }: Values,
): Promise<unknown> {
  return idOf(link, String(kind), String(text));
}

async function lanesOn(link: Link, board_id: string): Promise<readonly Lane[] | Problem> {
  const answer = await link.ask("board.get", { board_id });
  return isProblem(answer) ? answer : (answer as { lanes: readonly Lane[] }).lanes;
}

function same(one: string, other: string): boolean {
  return one.normalize("NFC").toLowerCase() === other.normalize("NFC").toLowerCase();
}

function unknownLane(text: string, lanes: readonly Lane[]): Problem {
  return problem("not_found", `the board has no lane '${text}'`, {
    hint: `it has ${lanes.map(({ name }) => name).join(", ")}`,
  });
}
