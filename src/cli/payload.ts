/**
 * From the values of a command line to the payload it stands for (SPEC §12): names looked up, paths made canonical, times
 * as the wire has them, and what `mp session run` left in the environment.
 *
 * Always holds: nothing is made up; a value that cannot be turned into what the payload wants is refused before anything
 * is sent. Which arguments there are is said in fields.ts.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import type { Args } from "./command.ts";
import {
  argsOf,
  carried,
  type Field,
  FOLDER,
  fieldsOf,
  listFields,
  narrowing,
  pointersOf,
} from "./fields.ts";
import type { Link } from "./link.ts";
import { idOf, namesOf, openWorkspaces, worktreeAround } from "./names.ts";
import { duration, labelOf, usage } from "./parse.ts";
import type { PathRule } from "./places.ts";
import type { Surface } from "./surface.ts";

export type Values = Readonly<Record<string, unknown>>;
type Environment = Readonly<Record<string, string | undefined>>;

/** What a command or a query wants to know on the command line, and how that becomes its payload. */
export interface Wanted {
  readonly type: string;
  readonly fields: readonly Field[];
  readonly args: Args;
  /** Where the daemon's JSON pointers lead. */
  readonly pointers: Readonly<Record<string, string>>;
  /** Make the payload. */
  fill(link: Link, values: Values, env: Environment): Promise<Record<string, unknown> | Problem>;
}

/** What something lies in, so that it is looked for there only. */
const PLACES = /^(workspace|project)_id$/;

/** What is taken from the worktree that one is in, where neither a flag nor a variable says where the thing is. */
const around: Readonly<Record<string, readonly ("workspace_id" | "project_id")[]>> = {
  "task.create": ["project_id"],
  "task.list": ["project_id"],
  "session.spawn": ["workspace_id", "project_id"],
};
/** Any of these says already what is meant. */
const TELLING = /^(workspace|project|parent_task|session|parent_session)_id$/;
const AROUND_DOC = "; that of the worktree that one is in when not given";

/** Paths that need not be there: those that git will make, and those that are only compared. */
const pathRules: Readonly<Record<string, PathRule>> = {
  "worktree.create": "new",
  "worktree.list": "any",
  "worktree.check": "any",
};

const pathWords: Readonly<Record<PathRule, string | undefined>> = {
  folder: undefined,
  new: "a folder that is not there yet, in one that is; made absolute and canonical",
  any: "a path, there or not; made absolute and canonical",
};

/** Values that only their own noun understands: what the text means is looked up there, beside what was found before. */
type Meaning = (
  link: Link,
  text: string | readonly string[],
  found: Values,
  values: Values,
) => Promise<unknown>;
const meanings: Readonly<Record<string, () => Promise<Meaning>>> = {
  "board.lanes": async () => (await import("./lanes.ts")).lanesOf,
  "board.lane_id": async () => (await import("./lanes.ts")).laneOf,
  "board.node_id": async () => (await import("./lanes.ts")).nodeOf,
  "board.after": async () => (await import("./lanes.ts")).nodeOf,
  "board.before": async () => (await import("./lanes.ts")).nodeOf,
  "board.ref_id": async () => (await import("./lanes.ts")).refOf,
};

/**
 * What a command or query wants.
 * @param type such as `task.claim`
 */
export function wantedBy(from: Surface, type: string): Wanted {
  const kind = type.slice(0, type.indexOf("."));
  const schema = from.commands.get(type)?.spec.payload ?? from.queries.get(type)!.params;
  const pathDoc = pathWords[pathRules[type] ?? "folder"];
  const taken: readonly string[] = around[type] ?? [];
  const fields = fieldsOf(from, kind, schema).map((each) => {
    const { required: _, ...arg } = each.arg;
    if (taken.includes(each.field))
      return { ...each, arg: { ...arg, description: `${arg.description}${AROUND_DOC}` } };
    return each.isPath && pathDoc
      ? { ...each, arg: { ...each.arg, description: arg.description.replace(FOLDER, pathDoc) } }
      : each;
  });
  const extra = narrowing(from, kind, fields);

  /** What things of a kind can be listed by, for each that is referred to. */
  function listed(): (kind: string | undefined) => readonly string[] {
    const kinds = new Set([...fields, ...extra].map(({ refersTo }) => refersTo ?? ""));
    const known = new Map([...kinds].map((each) => [each, listFields(from, each).map(({ field }) => field)]));
    return (of) => known.get(of ?? "") ?? [];
  }

  async function fill(link: Link, given: Values, env: Environment) {
    const values = withEnvironment(kind, fields, given, env);
    if (isProblem(values)) return values;
    const all = [...fields, ...extra];
    const isTold = all.some(({ field, name }) => TELLING.test(field) && values[name] !== undefined);
    const placed =
      taken.length === 0 || isTold || env.MP_PROJECT || env.MP_WORKSPACE
        ? {}
        : await placeAround(link, taken);
    if (isProblem(placed)) return placed;
    const found: Record<string, unknown> = { ...placed };
    const lists = listed();
    // What narrows a search is looked up before what it narrows.
    const narrows = ({ field }: Field) =>
      all.filter(({ refersTo }) => lists(refersTo).includes(field)).length;
    for (const each of all.toSorted((a, b) => narrows(b) - narrows(a))) {
      const value = each.isName ? composed(values[each.name]) : values[each.name];
      if (value === undefined) continue;
      const within = Object.entries(found).filter(
        ([field]) => PLACES.test(field) && lists(each.refersTo).includes(field),
      );
      const made = await meant(link, type, each, value, Object.fromEntries(within), found, values);
      if (isProblem(made)) return made;
      found[each.field] = made;
    }
    const lacks = fields.find(({ field, needed }) => needed && taken.includes(field) && !(field in found));
    return lacks ? unplaced(link, lacks) : withGitDir(fields, nested(fields, found));
  }

  return { type, fields, args: { ...argsOf(fields), ...argsOf(extra) }, pointers: pointersOf(fields), fill };
}

/** Of the worktree that this process is in: where it lies. Nothing when it is in none. */
async function placeAround(link: Link, taken: readonly string[]): Promise<Values | Problem> {
  const worktree = await worktreeAround(link);
  return isProblem(worktree)
    ? worktree
    : Object.fromEntries(Object.entries(worktree ?? {}).filter(([name]) => taken.includes(name)));
}

/** Nobody says where it is to be. */
async function unplaced(link: Link, { field, name, arg }: Field): Promise<Problem> {
  const how = `give it, or set ${arg.env}, or be in a worktree that mp knows`;
  if (field !== "workspace_id") return usage(`--${name} is missing`, how);
  const open = await openWorkspaces(link);
  return isProblem(open)
    ? open
    : usage(`--${name} is missing`, `${how}: --${name} NAME, open are ${namesOf(open)}`);
}

/** A name as it is compared and stored (SPEC §8): some systems type and complete letters in parts. */
function composed(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(composed);
  return typeof value === "string" ? value.normalize("NFC") : value;
}

/** What one text stands for. */
async function meant(
  link: Link,
  type: string,
  { field, refersTo, isPath, isTime, name, arg }: Field,
  value: unknown,
  within: Values,
  found: Values,
  values: Values,
): Promise<unknown> {
  const kind = type.slice(0, type.indexOf("."));
  const meaning = await meanings[`${kind}.${field}`]?.();
  if (meaning) return meaning(link, value as string, found, values);
  if (field === "links" && Array.isArray(value)) return linksOf(link, value, found);
  if (refersTo && Array.isArray(value)) {
    const ids: string[] = [];
    for (const text of value) {
      const id = await idOf(link, refersTo, text, within);
      if (isProblem(id)) return id;
      ids.push(id);
    }
    return ids;
  }
  if (refersTo) return idOf(link, refersTo, String(value), within);
  if (isPath)
    return (await import("./places.ts")).canonicalPath(
      String(value),
      labelOf(name, arg),
      pathRules[type] ?? "folder",
    );
  return isTime ? timeOf(String(value), labelOf(name, arg)) : value;
}

/** What was not given but is known: the subject that `mp session run` named, and its epoch. */
function withEnvironment(
  kind: string,
  fields: readonly Field[],
  given: Values,
  env: Environment,
): Values | Problem {
  const known = carried[kind];
  const values: Record<string, unknown> = { ...given };
  for (const { field, name, arg, needed } of fields) {
    if (values[name] !== undefined || arg.fallback === undefined || !known) continue;
    const isEpoch = field === "epoch";
    const subject = env[known.id] || undefined;
    const stored = isEpoch ? env[known.epoch] : subject;
    const fits = !isEpoch || (subject !== undefined && values[kind] === subject);
    if (stored && fits && (!isEpoch || /^\d{1,15}$/.test(stored))) {
      const swallowed = isEpoch ? undefined : fields.find((each) => holdsSubject(each, given));
      if (swallowed) {
        const label = labelOf(swallowed.name, swallowed.arg);
        return usage(
          `${label} is missing`,
          `give it behind ${labelOf(name, arg)}, or as --${swallowed.name}`,
        );
      }
      values[name] = isEpoch ? Number(stored) : stored;
    } else if (needed) {
      const otherwise = isEpoch
        ? `${known.epoch} counts for the ${kind} in ${known.id}`
        : `or set ${known.id}`;
      return usage(`${labelOf(name, arg)} is missing`, `give it; ${otherwise}`);
    }
  }
  return values;
}

/** A path or an id where any text is taken: it was meant as the subject, and the text itself was forgotten. */
function holdsSubject({ name, arg, refersTo, isPath }: Field, given: Values): boolean {
  const isText = arg.type === "positional" && arg.required && !arg.options && !refersTo && !isPath;
  return isText === true && /^(\.{0,2}\/|\.{1,2}$|[0-9a-f-]{8,36}$)/i.test(String(given[name] ?? ""));
}

/** The payload as its schema has it: members of structures inside them, and nothing that only helped to look names up. */
function nested(fields: readonly Field[], found: Values): Record<string, unknown> {
  const payload: Record<string, unknown> = {};
  for (const { field, within } of fields) {
    if (!(field in found)) continue;
    if (within === undefined) payload[field] = found[field];
    else payload[within] = { ...(payload[within] as object | undefined), [field]: found[field] };
  }
  return payload;
}

/** The folder that all worktrees of a repository share, where the payload has a place for it. */
async function withGitDir(fields: readonly Field[], payload: Record<string, unknown>) {
  const wanted = fields.some(({ field }) => field === "git_common_dir");
  if (!wanted || payload.git_common_dir !== undefined || typeof payload.repo_path !== "string")
    return payload;
  const common = (await import("./places.ts")).gitCommonDir(payload.repo_path);
  return common === undefined ? payload : { ...payload, git_common_dir: common };
}

/** A length of time from now, or a time. */
function timeOf(text: string, label: string): string | Problem {
  const ahead = /^\d+$/.test(text) ? undefined : duration(text);
  if (ahead !== undefined) return new Date(Date.now() + ahead).toISOString();
  const time = /^\d{4}-\d{2}-\d{2}([T ]|$)/.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(time)
    ? usage(
        `${label} must be a time, or a length of time from now`,
        "for instance 30m, 2h, 2026-11-22 or 2026-11-22T10:00:00Z",
      )
    : new Date(time).toISOString();
}

/** `task/0198…` → `{kind, id}`; names do where the kind has them. */
async function linksOf(link: Link, texts: readonly string[], found: Values): Promise<unknown> {
  const { workspace_id } = found;
  const within = typeof workspace_id === "string" ? { workspace_id } : {};
  const links: { kind: string; id: string }[] = [];
  for (const text of texts) {
    const [, kind, name] = /^([a-z]+)\/(.+)$/.exec(text) ?? [];
    if (kind === undefined || name === undefined)
      return usage(
        `--link: '${text}' is not KIND/ID`,
        "for instance --link task/0198…, or --link workspace/demo",
      );
    const id = await idOf(link, kind, name, kind === "project" || kind === "board" ? within : {});
    if (isProblem(id)) return id;
    links.push({ kind, id });
  }
  return links;
}

/** What is read of the schema of a command's result. */
export function resultsOf(from: Surface, type: string): string[] {
  return Object.keys(from.commands.get(type)?.spec.result.properties ?? {});
}
