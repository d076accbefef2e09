/**
 * The verbs of every aggregate, made from the registry (SPEC §12): a new command or query in a domain file is a new
 * verb, with its help, without a line here. `columns` and `docs` are the only hints, and there are rules without them.
 */
import { aggregates } from "../domain/index.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { buildRegistry, type CommandEntry, type QueryEntry, type Registry } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";
import { asking, changing, type Ending, type Noun, type Verb, verb } from "./command.ts";
import {
  argsOf,
  type Field,
  fieldsOf,
  kebab,
  listFields,
  narrowing,
  type Plain,
  pointersOf,
} from "./fields.ts";
import { daemonLink, type Link, type Sent } from "./link.ts";
import { idOf } from "./names.ts";
import { type Column, note, type Output, plain, type Shape } from "./output.ts";
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

/**
 * Every aggregate as a noun, its commands and queries as verbs.
 * @param from the registry; this program's when absent
 */
export function domainNouns(from: Registry = registry()): Readonly<Record<string, Noun>> {
  return Object.fromEntries(from.aggregates.map(({ kind }) => [kind, nounOf(from, kind)]));
}

/** A verb is made when it is asked for: most runs need one. */
function nounOf(from: Registry, kind: string): Noun {
  const verbs = {};
  const add = (type: string, make: () => Verb) =>
    Object.defineProperty(verbs, verbOf(type), { enumerable: true, get: make });
  for (const entry of from.commands.values())
    if (kindOf(entry.type) === kind) add(entry.type, () => commandVerb(from, kind, entry));
  for (const entry of from.queries.values())
    if (kindOf(entry.type) === kind) add(entry.type, () => queryVerb(from, kind, entry));
  return { doc: docs[kind] ?? `Whatever is about a ${kind}.`, verbs };
}

const kindOf = (type: string) => type.slice(0, type.indexOf("."));
const verbOf = (type: string) => kebab(type.slice(type.indexOf(".") + 1));

type Values = Readonly<Record<string, unknown>>;

/**
 * The payload that the command line stands for: names looked up, paths made canonical.
 * @param extra arguments that only help to look names up
 */
async function payloadOf(
  from: Registry,
  link: Link,
  fields: readonly Field[],
  extra: readonly Field[],
  values: Values,
): Promise<Record<string, unknown> | Problem> {
  const found: Record<string, unknown> = {};
  const lists = (kind: string | undefined) =>
    (kind === undefined ? [] : listFields(from, kind)).map((each) => each.field);
  const all = [...fields, ...extra];
  // What narrows a search is looked up before what it narrows.
  const narrows = ({ field }: Field) => all.filter(({ refersTo }) => lists(refersTo).includes(field)).length;
  for (const each of all.toSorted((a, b) => narrows(b) - narrows(a))) {
    const value = values[each.name];
    if (value === undefined) continue;
    const within = Object.entries(found).filter(
      ([field]) => /_id$/.test(field) && lists(each.refersTo).includes(field),
    );
    const made = each.refersTo
      ? await idOf(link, each.refersTo, String(value), Object.fromEntries(within))
      : each.isPath
        ? (await import("./places.ts")).canonicalPath(String(value), labelOf(each.name, each.arg))
        : value;
    if (isProblem(made)) return made;
    found[each.field] = made;
  }
  const payload = Object.fromEntries(
    fields.flatMap(({ field }) => (field in found ? [[field, found[field]]] : [])),
  );
  const wantsGit =
    fields.some(({ field }) => field === "git_common_dir") && payload.git_common_dir === undefined;
  if (wantsGit && typeof payload.repo_path === "string") {
    const common = (await import("./places.ts")).gitCommonDir(payload.repo_path);
    if (common !== undefined) payload.git_common_dir = common;
  }
  return payload;
}

function commandVerb(from: Registry, kind: string, { type, spec }: CommandEntry): Verb {
  const fields = fieldsOf(from, kind, spec.payload);
  const extra = narrowing(from, kind, fields);
  const results = Object.keys((spec.result as Plain).properties ?? {});
  return verb(
    spec.doc,
    { ...argsOf(fields), ...argsOf(extra), ...changing, ...asking },
    async (values, { out }): Promise<Ending> => {
      const link = daemonLink(values);
      const payload = await payloadOf(from, link, fields, extra, values);
      if (isProblem(payload)) return payload;
      const receipt = await link.send(type, payload);
      if (isProblem(receipt)) return receipt;
      const { subject, result } = receipt;
      if (out.asJson) await out.json(receipt);
      else
        await out.said(sentence(receipt, nameIn(fields, values)), [
          subject.id,
          ...results.map((name) => result[name]),
        ]);
      return undefined;
    },
    { pointers: pointersOf(fields), notes: [`A pipe gets TSV: ${[`${kind}_id`, ...results].join(", ")}.`] },
  );
}

/** What a person calls the subject: its new name, or how it was named on the command line. */
function nameIn(fields: readonly Field[], values: Values): string | undefined {
  const told =
    fields.find(({ field }) => field === "name" || field === "title") ??
    fields.find(({ arg }) => arg.type === "positional");
  const text = told && values[told.name];
  return typeof text === "string" ? text : undefined;
}

/** `created workspace demo (0198…)`: the verb is that of the event, for that is what has happened. */
function sentence({ subject, events, result, replayed }: Sent, name: string | undefined): string {
  const { kind, id } = subject;
  const own = events.find(({ event_type }) => kindOf(event_type) === kind);
  const done = own ? verbOf(own.event_type).replaceAll("-", " ") : "nothing changed:";
  const what = name === undefined || name === id ? `${kind} ${id}` : `${kind} ${name} (${id})`;
  const told = Object.entries(result).map(([member, value]) => `, ${member} ${plain(value)}`);
  return `${done} ${what}${told.join("")}${replayed ? "; it was done before, under this key" : ""}`;
}

/** Rows asked for at a time when all of a list are wanted. */
const PAGE = 1_000;

function queryVerb(from: Registry, kind: string, { type, spec, params }: QueryEntry): Verb {
  const paged = "cursor" in params.properties;
  const fields = fieldsOf(from, kind, params);
  const extra = narrowing(from, kind, fields);
  const shape = shapeOf(kind, spec.answer as Plain);
  return verb(
    spec.doc,
    { ...argsOf(fields), ...argsOf(extra), ...asking },
    async (values, { out }): Promise<Ending> => {
      const link = daemonLink(values);
      const given = await payloadOf(from, link, fields, extra, values);
      if (isProblem(given)) return given;
      const answer = paged ? await allPages(link, type, given) : await link.ask(type, given);
      if (isProblem(answer)) return answer;
      if (out.asJson) await out.json(answer);
      else if (paged) await showPage(answer as Page, shape, out);
      else await out.record(withoutPosition(answer));
      return undefined;
    },
    {
      pointers: pointersOf(fields),
      notes: paged
        ? [`A pipe gets TSV without a header: ${shape.columns.map(({ name }) => name).join(", ")}.`]
        : ["A pipe gets a name and a value per line."],
    },
  );
}

interface Page {
  readonly as_of_seq: number;
  readonly items: readonly Values[];
  readonly next: string | null;
}

/**
 * As many rows as are wanted, all where no limit is given. `as_of_seq` is the first page's, so whoever subscribes from it
 * misses nothing.
 */
async function allPages(link: Link, type: string, { limit, ...params }: Values): Promise<Page | Problem> {
  const most = typeof limit === "number" ? limit : Number.POSITIVE_INFINITY;
  const items: Values[] = [];
  let first: Page | undefined;
  for (let cursor = params.cursor; ; ) {
    // A limit that no page can have (0) is the daemon's to refuse.
    const asked = {
      ...params,
      limit: Math.min(PAGE, most - items.length),
      ...(cursor !== undefined && { cursor }),
    };
    const answer = await link.ask(type, asked);
    if (isProblem(answer)) return answer;
    const page = answer as Page;
    first ??= page;
    items.push(...page.items);
    if (page.next === null || items.length >= most) return { ...first, items, next: page.next };
    cursor = page.next;
  }
}

async function showPage(page: Page, shape: Shape, out: Output): Promise<void> {
  await out.table(page.items, shape);
  if (page.next !== null) await note(`there are more: --cursor ${page.next}`);
}

function shapeOf(kind: string, answer: Plain): Shape {
  const all = Object.keys(answer.properties?.items?.items?.properties ?? {});
  const asColumn = (name: string): Column => (name === `${kind}_id` ? { name, title: "ID" } : { name });
  return {
    columns: all.map(asColumn),
    shown: (columns[kind] ?? bestOf(kind, all)).map(asColumn),
    empty: `no ${kind} matches`,
  };
}

/** Name or title first, the own id last, between them what is neither an id nor bookkeeping. */
function bestOf(kind: string, all: readonly string[]): string[] {
  const first: string[] = all.filter((name) => name === "name" || name === "title");
  const last = all.filter((name) => name === `${kind}_id`);
  return [
    ...first,
    ...all.filter((name) => !first.includes(name) && !/(_id|_at)$|^version$/.test(name)),
    ...last,
  ];
}

/** One thing without the position of the log it was read at. */
function withoutPosition(answer: object): Values {
  const { as_of_seq: _, ...rest } = answer as Record<string, unknown>;
  return rest;
}
