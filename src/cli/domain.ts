/**
 * The verbs of every aggregate, made from the registry (SPEC §12): a new command or query in a domain file is a new
 * verb, with its help, without a line here.
 *
 * What a verb cannot do without is positional: first its own subject (by id or name), then required texts; what is in
 * something else needs `--workspace W`. All other fields are flags in kebab-case. `columns` below holds the only hints.
 */
import type { TSchema } from "typebox";
import { aggregates } from "../domain/index.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { buildRegistry, type CommandEntry, type QueryEntry, type Registry } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";
import {
  type Arg,
  type Args,
  asking,
  type Context,
  changing,
  type Ending,
  type Noun,
  type Verb,
  verb,
} from "./command.ts";
import { daemonLink, type Keyed, type Link } from "./link.ts";
import { idOf } from "./names.ts";
import { type Column, note, type Shape } from "./output.ts";
import { labelOf } from "./parse.ts";

/** The columns a terminal shows, where the general rule would choose worse ones. */
const columns: Readonly<Record<string, readonly string[]>> = {
  workspace: ["name", "status", "root_path", "workspace_id"],
  project: ["name", "status", "repo_path", "project_id"],
};

/** What the nouns are about, for help. */
const docs: Readonly<Record<string, string>> = {
  workspace: "Workspaces: the places where projects live.",
  project: "Projects: the repositories and folders of a workspace.",
};

let built: Registry | undefined;

/** The registry of this program. */
export function registry(): Registry {
  built ??= buildRegistry(aggregates, system);
  return built;
}

/** Every aggregate as a noun. */
export function domainNouns(): Readonly<Record<string, Noun>> {
  return Object.fromEntries(registry().aggregates.map(({ kind }) => [kind, nounOf(kind)]));
}

function nounOf(kind: string): Noun {
  const verbs: Record<string, Verb> = {};
  const { commands, queries } = registry();
  for (const entry of commands.values())
    if (kindOf(entry.type) === kind) verbs[kebab(entry.name)] = commandVerb(kind, entry);
  for (const entry of queries.values())
    if (kindOf(entry.type) === kind) verbs[kebab(entry.type.slice(kind.length + 1))] = queryVerb(kind, entry);
  return { doc: docs[kind] ?? `Commands about a ${kind}.`, verbs };
}

const kindOf = (type: string) => type.slice(0, type.indexOf("."));
const kebab = (name: string) => name.replaceAll("_", "-");

/** One field of a payload as an argument of the command line. */
interface Field {
  /** The payload's name of it. */
  readonly field: string;
  /** The argument's name. */
  readonly name: string;
  readonly arg: Arg;
  /** The kind of thing it names, for fields such as `workspace_id`. */
  readonly refersTo: string | undefined;
  readonly isPath: boolean;
}

/** What this module reads of a JSON Schema. */
interface Plain {
  readonly type?: string;
  readonly enum?: readonly string[];
  readonly anyOf?: readonly Plain[];
  readonly items?: Plain;
  readonly properties?: Readonly<Record<string, Plain>>;
  readonly required?: readonly string[];
  readonly description?: string;
  readonly minimum?: number;
  readonly maximum?: number;
}

/** The arguments of a payload: positionals first, its own subject before the rest. */
function fieldsOf(kind: string, payload: TSchema): Field[] {
  const { properties = {}, required = [] } = payload as Plain;
  const fields = Object.entries(properties).map(([field, schema]) =>
    fieldOf(kind, field, schema, required.includes(field)),
  );
  const rank = ({ field, arg }: Field) => (arg.type !== "positional" ? 2 : field === `${kind}_id` ? 0 : 1);
  return fields.sort((a, b) => rank(a) - rank(b));
}

function fieldOf(kind: string, field: string, given: Plain, required: boolean): Field {
  const schema = given.anyOf?.find((each) => each.type !== "null") ?? given;
  const refersTo = referent(field);
  const own = field === `${kind}_id`;
  const text = schema.type === "string" || schema.enum !== undefined;
  const positional = required && (own || (refersTo === undefined && text));
  const name = kebab(refersTo === undefined ? field : field.replace(/_id$/, ""));
  const description =
    refersTo === undefined
      ? described(schema)
      : `${required || own ? "the" : "only of this"} ${refersTo}, by name or id`;
  return {
    field,
    name,
    refersTo,
    isPath: /(^|_)(path|dir)$/.test(field),
    arg: {
      type: positional ? "positional" : schema.type === "boolean" ? "boolean" : "string",
      description,
      required,
      valueHint: hintOf(refersTo ?? field, schema),
      ...(refersTo !== undefined && { alias: [kebab(field)] }),
      ...(refersTo !== undefined && required && !own && { env: `MP_${refersTo.toUpperCase()}` }),
      ...(schema.enum && { options: schema.enum }),
      ...formatOf(schema),
    },
  };
}

/** The kind that a field such as `workspace_id` or `parent_session_id` names. */
function referent(field: string): string | undefined {
  return registry().aggregates.find(({ kind }) => field === `${kind}_id` || field.endsWith(`_${kind}_id`))
    ?.kind;
}

function hintOf(name: string, schema: Plain): string {
  if (schema.enum) return schema.enum.join("|");
  if (schema.type === "integer") return "N";
  if (schema.type === "object") return "JSON";
  return name.toUpperCase().replace(/^.*_(PATH|DIR)$/, "$1");
}

function described({ description, minimum, maximum, items, enum: words }: Plain): string {
  const most = maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum;
  const range =
    minimum === undefined ? "" : most === undefined ? `at least ${minimum}` : `${minimum} to ${most}`;
  return (
    description ??
    (items ? `${described(items)} (repeat it, or use commas)` : words ? `one of ${words.join(", ")}` : range)
  );
}

function formatOf({ type, minimum, items }: Plain): Partial<Arg> {
  switch (type) {
    case "integer":
      return { format: (minimum ?? -1) >= 0 ? "count" : "number" };
    case "number":
      return { format: "number" };
    case "object":
      return { format: "json" };
    case "array":
      return items?.type === "string" ? { many: true } : { format: "json" };
    default:
      return {};
  }
}

/** Where a `not unique` name may be looked for: `--workspace` of a verb that names a project. */
function narrowing(kind: string, fields: readonly Field[]): Field[] {
  const named = fields.filter(({ refersTo }) => refersTo !== undefined);
  return named.flatMap(({ refersTo }) =>
    fieldsOf(refersTo!, registry().queries.get(`${refersTo}.list`)?.params ?? ({} as TSchema))
      .filter(
        (each) =>
          each.refersTo !== undefined &&
          each.refersTo !== kind &&
          !fields.some(({ field }) => field === each.field),
      )
      .map((each) => ({
        ...each,
        arg: { ...each.arg, description: `where to look for a ${refersTo} given by name` },
      })),
  );
}

function argsOfFields(fields: readonly Field[]): Args {
  return Object.fromEntries(fields.map(({ name, arg }) => [name, arg]));
}

function pointersOf(fields: readonly Field[]): Readonly<Record<string, string>> {
  return Object.fromEntries(fields.map(({ field, name, arg }) => [`/payload/${field}`, labelOf(name, arg)]));
}

/**
 * The payload that the command line stands for: names looked up, paths made canonical.
 * @param extra fields that only help to look names up
 */
async function payloadOf(
  link: Link,
  fields: readonly Field[],
  extra: readonly Field[],
  values: Readonly<Record<string, unknown>>,
): Promise<Record<string, unknown> | Problem> {
  const payload: Record<string, unknown> = {};
  const found: Record<string, unknown> = {};
  const all = [
    ...extra.map((each) => ({ ...each, extra: true })),
    ...fields.map((each) => ({ ...each, extra: false })),
  ];
  // What narrows a search is looked up before what it narrows.
  const order = all.sort((a, b) => narrows(b, all) - narrows(a, all));
  for (const each of order) {
    const value = values[each.name];
    if (value === undefined || (each.arg.type === "boolean" && value === false)) continue;
    let made: unknown = value;
    if (each.refersTo !== undefined)
      made = await idOf(link, each.refersTo, String(value), withinOf(each.refersTo, found));
    else if (each.isPath)
      made = (await import("./places.ts")).canonicalPath(String(value), labelOf(each.name, each.arg));
    if (isProblem(made)) return made;
    found[each.field] = made;
    if (!each.extra) payload[each.field] = made;
  }
  const wantsGit =
    fields.some(({ field }) => field === "git_common_dir") && payload.git_common_dir === undefined;
  if (wantsGit && typeof payload.repo_path === "string") {
    const common = (await import("./places.ts")).gitCommonDir(payload.repo_path);
    if (common !== undefined) payload.git_common_dir = common;
  }
  return payload;
}

/** How many of the other fields can be looked up within this one. */
function narrows({ field }: Field, all: readonly Field[]): number {
  return all.filter(({ refersTo }) => refersTo !== undefined && field in listParams(refersTo)).length;
}

const listParams = (kind: string): object => registry().queries.get(`${kind}.list`)?.params.properties ?? {};

/** Of what is known by now, what the `list` query of a kind takes. */
function withinOf(kind: string, found: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const takes = listParams(kind);
  return Object.fromEntries(
    Object.entries(found).filter(
      ([field]) => field !== `${kind}_id` && field.endsWith("_id") && field in takes,
    ),
  );
}

function commandVerb(kind: string, { type, spec }: CommandEntry): Verb {
  const fields = fieldsOf(kind, spec.payload);
  const extra = narrowing(kind, fields);
  const args = { ...argsOfFields(fields), ...argsOfFields(extra), ...changing, ...asking };
  return verb(
    spec.doc,
    args,
    async (values, { out }): Promise<Ending> => {
      const link = daemonLink(values);
      const payload = await payloadOf(link, fields, extra, values);
      if (isProblem(payload)) return payload;
      const receipt = await link.send(type, payload);
      if (isProblem(receipt)) return receipt;
      if (out.asJson) await out.json(receipt);
      else
        await out.said(sentence(receipt, nameIn(fields, values)), [receipt.subject.id, ...results(receipt)]);
      return undefined;
    },
    { pointers: pointersOf(fields), notes: [`A pipe gets: the ${kind}'s id.`] },
  );
}

/** What a person calls the subject: its new name, or how it was named on the command line. */
function nameIn(fields: readonly Field[], values: Readonly<Record<string, unknown>>): string | undefined {
  const told =
    fields.find(({ field }) => field === "name" || field === "title") ??
    fields.find(({ arg }) => arg.type === "positional");
  const text = told && values[told.name];
  return typeof text === "string" ? text : undefined;
}

/** `created workspace demo (0198…)`: the verb is that of the event, for that is what has happened. */
function sentence(receipt: Keyed<object> & Parameters<typeof results>[0], name: string | undefined): string {
  const { subject, events, replayed } = receipt;
  const own = events.find(({ event_type }) => kindOf(event_type) === subject.kind);
  const done = own
    ? own.event_type.slice(subject.kind.length + 1).replaceAll("_", " ")
    : "nothing to change in";
  const what =
    name === undefined || name === subject.id
      ? `${subject.kind} ${subject.id}`
      : `${subject.kind} ${name} (${subject.id})`;
  const values =
    results(receipt).length > 0
      ? `: ${Object.entries(receipt.result)
          .map(([key, value]) => `${key} ${value}`)
          .join(", ")}`
      : "";
  return `${done} ${what}${values}${replayed ? " (this key was used before: nothing was done again)" : ""}`;
}

function results(receipt: {
  readonly subject: { readonly kind: string; readonly id: string };
  readonly events: readonly { readonly event_type: string }[];
  readonly result: object;
  readonly replayed: boolean;
}): unknown[] {
  return Object.values(receipt.result);
}

/** Rows asked for at a time when all of a list are wanted. */
const PAGE = 1_000;

function queryVerb(kind: string, { type, spec, params }: QueryEntry): Verb {
  const paged = "cursor" in params.properties;
  const fields = fieldsOf(kind, params).filter(({ field }) => field !== "limit");
  const extra = narrowing(kind, fields);
  const limit = {
    type: "string",
    format: "count",
    valueHint: "N",
    description: "at most so many (all)",
  } as const;
  const args = {
    ...argsOfFields(fields),
    ...argsOfFields(extra),
    ...(paged && { limit }),
    ...asking,
  };
  const answered = spec.answer as Plain;
  return verb(
    spec.doc,
    args,
    async (values, { out }): Promise<Ending> => {
      const link = daemonLink(values);
      const given = await payloadOf(link, fields, extra, values);
      if (isProblem(given)) return given;
      const answer = paged
        ? await allPages(
            link,
            type,
            given,
            (values as Readonly<Record<string, unknown>>).limit as number | undefined,
          )
        : await link.ask(type, given);
      if (isProblem(answer)) return answer;
      if (out.asJson) await out.json(answer);
      else if (paged) await showPage(answer as Page, shapeOf(kind, answered), out);
      else await out.record(withoutPosition(answer));
      return undefined;
    },
    {
      pointers: pointersOf(fields),
      notes: paged
        ? [`A pipe gets TSV without a header: ${columnsOf(answered).join(", ")}.`]
        : ["A pipe gets a name and a value per line."],
    },
  );
}

interface Page {
  readonly as_of_seq: number;
  readonly items: readonly Record<string, unknown>[];
  readonly next: string | null;
}

/** As many rows as are wanted; `as_of_seq` is the first page's, so whoever subscribes from it misses nothing. */
async function allPages(
  link: Link,
  type: string,
  params: Readonly<Record<string, unknown>>,
  most = Number.POSITIVE_INFINITY,
): Promise<Page | Problem> {
  const items: Record<string, unknown>[] = [];
  let as_of_seq: number | undefined;
  let cursor = params.cursor;
  for (;;) {
    // A limit that no page can have (0) is the daemon's to refuse.
    const limit = Math.min(PAGE, most - items.length);
    const page = await link.ask(type, { ...params, limit, ...(cursor !== undefined && { cursor }) });
    if (isProblem(page)) return page;
    const { next, ...rest } = page as Page;
    items.push(...rest.items);
    as_of_seq ??= rest.as_of_seq;
    if (next === null || items.length >= most) return { ...rest, as_of_seq, items, next };
    cursor = next;
  }
}

async function showPage(page: Page, shape: Shape, out: Context["out"]): Promise<void> {
  await out.table(page.items, shape);
  if (page.next !== null) await note(`there are more: --cursor ${page.next}`);
}

function columnsOf(answer: Plain): string[] {
  return Object.keys(answer.properties?.items?.items?.properties ?? {});
}

function shapeOf(kind: string, answer: Plain): Shape {
  const all = columnsOf(answer);
  const asColumn = (name: string): Column => (name === `${kind}_id` ? { name, title: "ID" } : { name });
  return {
    columns: all.map(asColumn),
    shown: (columns[kind] ?? bestOf(kind, all)).map(asColumn),
    empty: `no ${kind} yet`,
  };
}

/** Name or title first, the own id last, between them what is neither an id nor bookkeeping. */
function bestOf(kind: string, all: readonly string[]): string[] {
  const first: string[] = all.filter((name) => name === "name" || name === "title");
  const between = all.filter((name) => !first.includes(name) && !/(_id|_at)$|^version$/.test(name));
  return [...first, ...between, ...all.filter((name) => name === `${kind}_id`)];
}

/** One thing without the position of the log it was read at. */
function withoutPosition(answer: object): Record<string, unknown> {
  const { as_of_seq: _, ...rest } = answer as Record<string, unknown>;
  return rest;
}
