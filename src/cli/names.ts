/**
 * Names where ids are wanted (SPEC §12), paths for worktrees, and the end of an id for whatever has one.
 *
 * A name is looked up with the `list` query of its kind, so any aggregate that can be listed by name has this. What stands
 * for several things is refused with all of them; the CLI never picks one. The end of an id, not its start: ids begin with
 * the time, so those of one moment begin alike.
 */
import type { Ask } from "../client/types.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Link } from "./link.ts";
import { usage } from "./parse.ts";

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
/** The end of an id: at least as much of it as tables show. */
const TAIL = /^[0-9a-f-]{8,35}$/i;
/** Candidates that a refusal lists. */
const MOST = 10;
/** Rows that are asked for at a time where an id's end is looked for: as many as a page can have (SPEC §10). */
const PAGE = 10_000;

/** What a kind is called by besides its id. */
type Handle = "name" | "path" | "nothing";

/** What the kind's list can be narrowed by. A kind that is none is the daemon's to refuse. */
async function handleOf(kind: string): Promise<Handle> {
  const { surface } = await import("./surface.ts");
  const list = surface().queries.get(`${kind}.list`)?.params.properties ?? { name: undefined };
  return "name" in list ? "name" : "path" in list ? "path" : "nothing";
}

type Row = Readonly<Record<string, unknown>>;

/**
 * The id that a text stands for.
 * @param kind of the thing, for instance `workspace`
 * @param text its id, its name (of a worktree: its path), or the last eight digits or more of its id
 * @param within parameters that narrow the search, for instance `{workspace_id}`
 * @returns the id; `not_found`, or `invalid_schema` with the candidates when several are called so
 */
export async function idOf(
  link: Link,
  kind: string,
  text: string,
  within: Readonly<Record<string, unknown>> = {},
): Promise<string | Problem> {
  const id = idLike(text);
  if (ID.test(id)) return id;
  const handle = await handleOf(kind);
  const called = await rowsCalled(link, kind, handle, text, within);
  if (isProblem(called)) return called;
  const items =
    called.length === 0 && mayEndId(text) ? await rowsEnding(link, kind, text.toLowerCase(), within) : called;
  if (isProblem(items)) return items;
  const [only] = items;
  if (items.length === 1 && only) return String(only[`${kind}_id`]);
  return items.length === 0 ? unknown(kind, handle, text) : ambiguous(kind, handle, text, items);
}

/** The things of that name, or at that path; none for a kind that has neither. */
async function rowsCalled(
  link: Link,
  kind: string,
  handle: Handle,
  text: string,
  within: Row,
): Promise<readonly Row[] | Problem> {
  if (handle === "nothing") return [];
  if (handle === "name") {
    const name = text.normalize("NFC");
    return rowsOf(await link.ask(`${kind}.list`, { ...within, name, limit: MOST + 1 }), kind, text);
  }
  const { canonicalPath, looksLikePath } = await import("./places.ts");
  const path = canonicalPath(text, kind, "any");
  const rows = rowsOf(await link.ask(`${kind}.list`, { path, limit: PAGE }), kind, text);
  if (isProblem(rows)) return rows;
  // A place may have been several worktrees', one after another: the one that is there counts.
  const there = rows.filter(({ status }) => status !== "removed" && status !== "failed");
  if (rows.length > 0) return there.length > 0 ? there : rows.slice(-1);
  // What is inside a worktree means that worktree, as it does for `mp worktree check`.
  const nearest = looksLikePath(text) ? await worktreeAt(link, String(path)) : undefined;
  return nearest === undefined ? [] : isProblem(nearest) ? nearest : [{ worktree_id: nearest }];
}

/**
 * The nearest worktree at or above a path.
 * @param path absolute and canonical
 * @returns its id; undefined when there is none
 */
async function worktreeAt(link: Link, path: string): Promise<string | undefined | Problem> {
  const found = await link.ask("worktree.check", { path });
  // Whoever writes there does not matter: it is only asked where it is.
  const { worktree_id } = (isProblem(found) ? (found.details ?? {}) : found) as { worktree_id?: unknown };
  if (isProblem(found) && found.reason !== "worktree.writer_held") return found;
  return typeof worktree_id === "string" ? worktree_id : undefined;
}

/** The worktree that this process is in, with what it lies in; undefined when it is in none. */
export async function worktreeAround(link: Link): Promise<Ask<"worktree.get"> | undefined | Problem> {
  const { canonicalPath } = await import("./places.ts");
  const worktree_id = await worktreeAt(link, String(canonicalPath(".", "", "any")));
  return typeof worktree_id === "string" ? link.query("worktree.get", { worktree_id }) : worktree_id;
}

/** The open workspaces, as many as a refusal names. */
export async function openWorkspaces(link: Link): Promise<Ask<"workspace.list">["items"] | Problem> {
  const open = await link.query("workspace.list", { status: "open", limit: MOST });
  return isProblem(open) ? open : open.items;
}

/** What they are called, for a refusal. */
export function namesOf(workspaces: readonly { readonly name: string }[]): string {
  return workspaces.map(({ name }) => `'${name}'`).join(", ") || "none";
}

function rowsOf(answer: object | Problem, kind: string, text: string): readonly Row[] | Problem {
  if (!isProblem(answer)) return (answer as { items: readonly Row[] }).items;
  return answer.code === "invalid_schema"
    ? usage(
        `'${text}' is neither the id nor the name of a ${kind}`,
        `${ID_HINT}; a name has 1–128 characters and no control characters`,
      )
    : answer;
}

/** The things whose ids end so. */
async function rowsEnding(
  link: Link,
  kind: string,
  tail: string,
  within: Row,
): Promise<readonly Row[] | Problem> {
  const found: Row[] = [];
  for (let cursor: string | null | undefined; cursor !== null; ) {
    const answer = await link.ask(`${kind}.list`, { ...within, limit: PAGE, ...(cursor && { cursor }) });
    if (isProblem(answer)) return answer;
    const page = answer as { items: readonly Row[]; next: string | null };
    found.push(...page.items.filter((row) => String(row[`${kind}_id`]).endsWith(tail)));
    cursor = page.next;
  }
  return found;
}

function unknown(kind: string, handle: Handle, text: string): Problem {
  if (handle === "nothing" && !mayEndId(text))
    return usage(`'${text}' is not the id of a ${kind}`, `${ID_HINT}; list them with 'mp ${kind} list'`);
  const called = handle === "nothing" ? "whose id ends in" : handle === "path" ? "at" : "named";
  return problem("not_found", `there is no ${kind} ${called} '${text}'`, {
    hint: `list them with 'mp ${kind} list'`,
    details: { kind, name: text },
  });
}

function ambiguous(kind: string, handle: Handle, text: string, items: readonly Row[]): Problem {
  const candidates = items
    .slice(0, MOST)
    .map((item) => ({ id: item[`${kind}_id`], ...parentOf(item, kind) }));
  const told = candidates.map((each) =>
    Object.entries(each)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
  );
  const called = handle === "name" ? "is named" : "is called";
  return problem("invalid_schema", `more than one ${kind} ${called} '${text}'`, {
    hint: `give its id, or say where it is:\n    ${told.join("\n    ")}${items.length > MOST ? "\n    …" : ""}`,
    details: { kind, name: text, candidates },
  });
}

/** Can a text be the end of an id, rather than a whole one? */
export function mayEndId(text: string): boolean {
  return TAIL.test(text);
}

/** What looks like an id in lower case, as ids are compared; some programs write them in capitals. */
export function idLike(text: string): string {
  const id = text.toLowerCase();
  return ID.test(id) ? id : text;
}

const ID_HINT = "an id is a UUIDv7, or its last eight digits";

/** What tells one candidate from another: the ids of what it is in. */
function parentOf(item: Row, kind: string) {
  return Object.fromEntries(
    Object.entries(item).filter(
      ([name, value]) => /_id$/.test(name) && name !== `${kind}_id` && value !== null,
    ),
  );
}
