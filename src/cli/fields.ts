/**
 * The arguments that a payload's schema asks for (SPEC §12): pure, from the surface, so every aggregate gets them alike.
 *
 * What a verb cannot do without is positional: first its own subject, then required texts and others of its kind. What lies
 * in something else needs a flag named like that thing (`--workspace` for `workspace_id`), which takes a name or an id.
 * Every other field is a flag in kebab-case, named like the field; a structure of plain values is a flag for each of them.
 */
import { type Arg, type Args, asking, changing, everywhere } from "./command.ts";
import { labelOf } from "./parse.ts";
import type { Plain, Surface } from "./surface.ts";
import { namePattern, timePattern, wireForms } from "./surface-text.ts" with { type: "macro" };

/** One field of a payload as an argument of the command line. */
export interface Field {
  /** The payload's name of it. */
  readonly field: string;
  /** The object of the payload that it is in, where it is not the payload itself. */
  readonly within: string | undefined;
  /** The argument's name. */
  readonly name: string;
  readonly arg: Arg;
  /** The kind of thing it names, for fields such as `workspace_id`. */
  readonly refersTo: string | undefined;
  /** It is a path of the caller's disk. */
  readonly isPath: boolean;
  /** It is a name or a title. */
  readonly isName: boolean;
  /** It is a point in time. */
  readonly isTime: boolean;
  /** The verb cannot do without it, though the command line can: see `Arg.fallback`. */
  readonly needed: boolean;
}

const TIME = "such as 2026-11-22T10:00Z, or so long from now, such as 30m";

/** What the command line takes for fields that are no references by themselves, or does where they are not given. */
const ways: Readonly<Record<string, string>> = {
  lane_id: "by name or id",
  node_id: "by its id or that of what it stands for",
  after: "by its id or that of what it stands for",
  before: "by its id or that of what it stands for",
  ref_id: "by id",
  limit: "all when not given",
  git_common_dir: "found by itself from the repository's path",
};

/** Names that mean the same in every command. */
const taken = new Set(Object.keys({ ...everywhere, ...asking, ...changing }));

/** Structures whose members speak for themselves: `--project` is enough for `filter.project_id`. */
const speaking = new Set(["filter", "failure", "retention"]);

/** References whose field is not named like what it refers to. */
const references: Readonly<Record<string, string>> = {
  depends_on: "task",
  root: "session",
};

/** Fields that are words of the command line although their verbs can do without them. */
const words = new Set(["root"]);

/** Lists of structures that have a short form, one flag for each: see payload.ts for what it stands for. */
const short: Readonly<Record<string, { readonly flag: string; readonly hint: string; readonly is: string }>> =
  {
    lanes: {
      flag: "lane",
      hint: "NAME[:STAGE[:LIMIT]]",
      is: "a lane, with the stage its tasks get and how many it should hold at most; repeat it, in their order",
    },
    links: { flag: "link", hint: "KIND/ID", is: "what it belongs to, such as task/ID; repeat it" },
  };

/**
 * What `mp session run` gives its child in the environment (SPEC §8). A verb falls back on the subject, and on the epoch of
 * that subject and no other: an epoch without its subject would fence the wrong thing.
 */
export const carried: Readonly<Record<string, { readonly id: string; readonly epoch: string }>> = {
  session: { id: "MP_SESSION_ID", epoch: "MP_SESSION_EPOCH" },
  task: { id: "MP_TASK_ID", epoch: "MP_TASK_EPOCH" },
  worktree: { id: "MP_WORKTREE_ID", epoch: "MP_WRITER_EPOCH" },
};

/**
 * The arguments of a payload, positionals first.
 * @param kind the noun they belong to
 * @param payload the schema of a command's payload or of a query's parameters
 */
export function fieldsOf(surface: Surface, kind: string, payload: Plain): Field[] {
  const { properties = {}, required = [] } = payload;
  const names = new Set(Object.keys(properties));
  const fields = Object.entries(properties).flatMap(([field, given]) => {
    const schema = without(given);
    const needed = required.includes(field);
    return isStructure(schema)
      ? membersOf(surface, field, schema, needed, names)
      : [fieldOf(surface, kind, field, schema, needed)];
  });
  const rank = ({ field, arg }: Field) => (arg.type !== "positional" ? 2 : field === `${kind}_id` ? 0 : 1);
  return fallingBack(
    kind,
    fields.sort((a, b) => rank(a) - rank(b)),
  );
}

/** The schema of a value that is there. */
function without(given: Plain): Plain {
  return given.anyOf?.find((each) => each.type !== "null") ?? given;
}

/** An object whose members are plain values: each of them can be a flag. */
function isStructure({ type, properties = {} }: Plain): boolean {
  const members = Object.values(properties).map(without);
  const nested = members.some((each) => each.type === "object" || each.type === "array");
  return type === "object" && members.length > 0 && !nested;
}

/** `agent {name, version}` → `--agent`, `--agent-version`. */
function membersOf(
  surface: Surface,
  within: string,
  { properties = {}, required = [] }: Plain,
  needed: boolean,
  others: ReadonlySet<string>,
): Field[] {
  return Object.entries(properties).map(([member, given]) => {
    const made = fieldOf(surface, "", member, without(given), needed && required.includes(member), true);
    const prefixed = `${kebab(within)}-${made.name}`;
    const bare = speaking.has(within) && !others.has(member) && !taken.has(made.name);
    const name = member === "name" ? kebab(within) : bare ? made.name : prefixed;
    const { alias = [], ...arg } = made.arg;
    const further = [...(bare ? [...alias, prefixed] : alias.map((each) => `${kebab(within)}-${each}`))];
    return {
      ...made,
      within,
      name,
      arg: { ...arg, ...(further.length > 0 && { alias: further }) },
    };
  });
}

function fieldOf(
  surface: Surface,
  kind: string,
  field: string,
  schema: Plain,
  required: boolean,
  flag = false,
): Field {
  const refersTo =
    references[field] ??
    surface.aggregates
      .map((each) => each.kind)
      .find((each) => field === `${each}_id` || field.endsWith(`_${each}_id`));
  const own = field === `${kind}_id`;
  const form = schema.type === "array" ? short[field] : undefined;
  const isTime = schema.pattern === timePattern();
  const isPath = refersTo === undefined && isPathName(field, schema);
  const isText = schema.type === "string" || schema.enum !== undefined;
  const among = refersTo === kind && schema.type === "string";
  const positional = own || words.has(field) || (required && (among || (refersTo === undefined && isText)));
  const isId = schema.type === "string" && field.endsWith("_id");
  const plain = form?.flag ?? kebab(isId ? field.replace(/_id$/, "") : field);
  return {
    field,
    within: undefined,
    name: taken.has(plain) ? `${kind}-${plain}` : plain,
    refersTo,
    isPath,
    isName: schema.pattern === namePattern() || form?.flag === "lane",
    isTime,
    needed: required,
    arg: {
      type: positional && !flag ? "positional" : schema.type === "boolean" ? "boolean" : "string",
      required,
      description: form ? form.is : descriptionOf(surface, field, schema, refersTo),
      valueHint:
        form?.hint ??
        (among && !own && positional
          ? field.replace(/_id$/, "").toUpperCase()
          : hintOf(refersTo ?? field.replace(/_id$/, ""), schema, isTime)),
      ...(isId && { alias: [kebab(field)] }),
      ...(form && { alias: [kebab(field)] }),
      ...(refersTo && required && field === `${refersTo}_id` && !own && { env: variableOf(refersTo) }),
      ...(schema.enum && { options: schema.enum }),
      ...formatOf(field, schema, form !== undefined),
    },
  };
}

/** The variable that names a thing of this kind, where one must be given. */
function variableOf(kind: string): string {
  return carried[kind]?.id ?? `MP_${kind.toUpperCase()}`;
}

/** The subject may come from the environment, and its epoch with it. */
function fallingBack(kind: string, fields: readonly Field[]): Field[] {
  const known = carried[kind];
  const subject = fields.find(({ field, needed }) => field === `${kind}_id` && needed);
  if (!known || !subject) return [...fields];
  return fields.map((each) => {
    if (each === subject) return { ...each, arg: { ...each.arg, fallback: known.id } };
    if (each.field !== "epoch") return each;
    const { required: _, ...arg } = each.arg;
    return { ...each, arg: { ...arg, fallback: `${known.epoch} of ${known.id}` } };
  });
}

/** `root_path` → `root-path`. */
export function kebab(name: string): string {
  return name.replaceAll("_", "-");
}

function hintOf(name: string, schema: Plain, isTime: boolean): string {
  if (isTime) return "TIME";
  if (name === "after" || name === "before") return "NODE";
  if (schema.enum) return schema.enum.join("|");
  if (schema.type === "integer") return name.endsWith("_ms") ? "TIME" : "N";
  if (schema.type === "object") return "JSON";
  return name.toUpperCase().replace(/^.*_(PATH|DIR)$/, "$1");
}

/** What a path must be, where the command line says nothing else of it. */
export const FOLDER = "a folder that exists; made absolute and canonical";

/** What help says about a field: what it is for, in the words of its schema, and how it is given here. */
function descriptionOf(surface: Surface, field: string, schema: Plain, refersTo: string | undefined): string {
  const how =
    ways[field] ??
    (refersTo
      ? `by ${handlesOf(surface, refersTo)}`
      : schema.pattern === timePattern()
        ? TIME
        : schema.type === "object"
          ? "as JSON"
          : undefined);
  const said = [sentenceOf(field, schema), ...(how === undefined ? [] : [how])].join(", ");
  const whole = isPathName(field, schema) ? `${said}: ${FOLDER}` : said;
  return schema.items?.type === "string" ? `${whole} (repeat it, or use commas)` : whole;
}

/** The schema's own words, without what only the wire asks for. */
function sentenceOf(field: string, { description = "" }: Plain): string {
  const form = wireForms().find((each) => description.endsWith(each)) ?? "";
  const said = description.slice(0, description.length - form.length).replace(/: $/, "");
  return said === "" ? field.replace(/_id$/, "").replaceAll("_", " ") : said;
}

function isPathName(field: string, { type }: Plain): boolean {
  return type === "string" && /(^|_)(path|dir)$/.test(field);
}

function formatOf(field: string, { type, minimum, items }: Plain, isShort: boolean): Partial<Arg> {
  switch (type) {
    case "boolean":
      return { negatable: true };
    case "integer":
      if (field.endsWith("_ms")) return { format: "milliseconds" };
      return { format: (minimum ?? -1) >= 0 ? "count" : "number" };
    case "number":
      return { format: "number" };
    case "object":
      return { format: "json" };
    case "array":
      return isShort || items?.type === "string" ? { many: true } : { format: "json" };
    default:
      return {};
  }
}

/**
 * Where a thing that is given by name may be looked for: `--workspace` for a verb that names a project, because projects are
 * listed by workspace and two workspaces may have a project of one name.
 * @param fields the arguments that the verb has anyway
 */
export function narrowing(surface: Surface, kind: string, fields: readonly Field[]): Field[] {
  return fields.flatMap(({ refersTo }) =>
    refersTo === undefined || !hasNames(surface, refersTo)
      ? []
      : listFields(surface, refersTo)
          .filter((each) => each.refersTo !== undefined && each.refersTo !== kind)
          .filter((each) => !fields.some(({ field }) => field === each.field))
          .map((each) => ({
            ...each,
            arg: { ...each.arg, description: `where to look for a ${refersTo} that is given by name` },
          })),
  );
}

/** Can things of this kind be looked up by name? */
function hasNames(surface: Surface, kind: string): boolean {
  return "name" in (surface.queries.get(`${kind}.list`)?.params.properties ?? {});
}

/** What a thing of this kind may be given by, in words. */
function handlesOf(surface: Surface, kind: string): string {
  const params = surface.queries.get(`${kind}.list`)?.params.properties ?? {};
  return "name" in params ? "name or id" : "path" in params ? "path or id" : "id";
}

/** What the `list` query of a kind takes, as arguments; none when it has none. */
export function listFields(surface: Surface, kind: string): Field[] {
  const list = surface.queries.get(`${kind}.list`);
  return list ? fieldsOf(surface, kind, list.params) : [];
}

/** The arguments for parse.ts and help.ts. */
export function argsOf(fields: readonly Field[]): Args {
  return Object.fromEntries(fields.map(({ name, arg }) => [name, arg]));
}

/** Where the daemon's JSON pointers lead on the command line. */
export function pointersOf(fields: readonly Field[]): Readonly<Record<string, string>> {
  return Object.fromEntries(
    fields.map(({ field, within, name, arg }) => [
      `/payload/${within === undefined ? "" : `${within}/`}${field}`,
      labelOf(name, arg),
    ]),
  );
}
