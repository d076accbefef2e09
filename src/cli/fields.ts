/**
 * The arguments that a payload's schema asks for (SPEC §12): pure, from the registry, so every aggregate gets them alike.
 *
 * What a verb cannot do without is positional: first its own subject, then required texts. What lies in something else needs
 * a flag named like that thing (`--workspace` for `workspace_id`), which takes a name or an id. Every other field is a
 * flag in kebab-case, named like the field.
 */
import type { TSchema } from "typebox";
import type { Registry } from "../kernel/registry.ts";
import { type Arg, type Args, asking, changing, everywhere } from "./command.ts";
import { labelOf } from "./parse.ts";

/** One field of a payload as an argument of the command line. */
export interface Field {
  /** The payload's name of it. */
  readonly field: string;
  /** The argument's name. */
  readonly name: string;
  readonly arg: Arg;
  /** The kind of thing it names, for fields such as `workspace_id`. */
  readonly refersTo: string | undefined;
  /** It is a path of the caller's disk. */
  readonly isPath: boolean;
}

/** What is read of a JSON Schema. */
export interface Plain {
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

/** The fields that the kernel adds to queries (SPEC §3). */
const general: Readonly<Record<string, string>> = {
  limit: "at most so many (all)",
  cursor: "go on where an earlier page ended: its 'next'",
  min_seq: "wait until the log has reached this position",
};

/** Names that mean the same in every command. */
const taken = new Set(Object.keys({ ...everywhere, ...asking, ...changing }));

/**
 * The arguments of a payload, positionals first.
 * @param kind the noun they belong to
 * @param payload the schema of a command's payload or of a query's parameters
 */
export function fieldsOf(registry: Registry, kind: string, payload: TSchema): Field[] {
  const { properties = {}, required = [] } = payload as Plain;
  const fields = Object.entries(properties).map(([field, schema]) =>
    fieldOf(registry, kind, field, schema, required.includes(field)),
  );
  const rank = ({ field, arg }: Field) => (arg.type !== "positional" ? 2 : field === `${kind}_id` ? 0 : 1);
  return fields.sort((a, b) => rank(a) - rank(b));
}

function fieldOf(registry: Registry, kind: string, field: string, given: Plain, required: boolean): Field {
  const schema = given.anyOf?.find((each) => each.type !== "null") ?? given;
  const refersTo = registry.aggregates
    .map((each) => each.kind)
    .find((each) => field === `${each}_id` || field.endsWith(`_${each}_id`));
  const own = field === `${kind}_id`;
  const isPath = refersTo === undefined && schema.type === "string" && /(^|_)(path|dir)$/.test(field);
  const isText = schema.type === "string" || schema.enum !== undefined;
  const type =
    required && (own || (refersTo === undefined && isText))
      ? "positional"
      : schema.type === "boolean"
        ? "boolean"
        : "string";
  const plain = kebab(refersTo === undefined ? field : field.replace(/_id$/, ""));
  return {
    field,
    name: taken.has(plain) ? `${kind}-${plain}` : plain,
    refersTo,
    isPath,
    arg: {
      type,
      required,
      description: refersTo
        ? `${own ? "its" : `the ${refersTo}, by`} ${hasNames(registry, refersTo) ? "name or id" : "id"}`
        : descriptionOf(field, schema, isPath),
      valueHint: hintOf(refersTo ?? field, schema),
      ...(refersTo && { alias: [kebab(field)] }),
      ...(refersTo && required && !own && { env: `MP_${refersTo.toUpperCase()}` }),
      ...(schema.enum && { options: schema.enum }),
      ...formatOf(field, schema),
    },
  };
}

/** `root_path` → `root-path`. */
export function kebab(name: string): string {
  return name.replaceAll("_", "-");
}

function hintOf(name: string, schema: Plain): string {
  if (schema.enum) return schema.enum.join("|");
  if (schema.type === "integer") return name.endsWith("_ms") ? "TIME" : "N";
  if (schema.type === "object") return "JSON";
  return name.toUpperCase().replace(/^.*_(PATH|DIR)$/, "$1");
}

function descriptionOf(field: string, schema: Plain, isPath: boolean): string {
  if (general[field] !== undefined) return general[field];
  if (isPath) {
    const found = field === "git_common_dir" ? "; found by itself from the repository's path" : "";
    return `a folder that exists; made absolute and canonical${found}`;
  }
  const { items } = schema;
  const said = limitsOf(items ?? schema) || `the ${field.replaceAll("_", " ")}`;
  return items?.type === "string" ? `${said} (repeat it, or use commas)` : said;
}

function limitsOf({ description, minimum, maximum, type }: Plain): string {
  if (description !== undefined) return description;
  if (type === "object") return "as JSON";
  if (minimum === undefined) return "";
  return maximum === undefined || maximum >= Number.MAX_SAFE_INTEGER
    ? `at least ${minimum}`
    : `${minimum} to ${maximum}`;
}

function formatOf(field: string, { type, minimum, items }: Plain): Partial<Arg> {
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
      return items?.type === "string" ? { many: true } : { format: "json" };
    default:
      return {};
  }
}

/**
 * Where a thing that is given by name may be looked for: `--workspace` for a verb that names a project, because projects are
 * listed by workspace and two workspaces may have a project of one name.
 * @param fields the arguments that the verb has anyway
 */
export function narrowing(registry: Registry, kind: string, fields: readonly Field[]): Field[] {
  return fields.flatMap(({ refersTo }) =>
    refersTo === undefined || !hasNames(registry, refersTo)
      ? []
      : listFields(registry, refersTo)
          .filter((each) => each.refersTo !== undefined && each.refersTo !== kind)
          .filter((each) => !fields.some(({ field }) => field === each.field))
          .map((each) => ({
            ...each,
            arg: { ...each.arg, description: `where to look for a ${refersTo} that is given by name` },
          })),
  );
}

/** Can things of this kind be looked up by name? */
export function hasNames(registry: Registry, kind: string): boolean {
  return "name" in (registry.queries.get(`${kind}.list`)?.params.properties ?? {});
}

/** What the `list` query of a kind takes, as arguments; none when it has none. */
export function listFields(registry: Registry, kind: string): Field[] {
  const list = registry.queries.get(`${kind}.list`);
  return list ? fieldsOf(registry, kind, list.params) : [];
}

/** The arguments for parse.ts and help.ts. */
export function argsOf(fields: readonly Field[]): Args {
  return Object.fromEntries(fields.map(({ name, arg }) => [name, arg]));
}

/** Where the daemon's JSON pointers lead on the command line. */
export function pointersOf(fields: readonly Field[]): Readonly<Record<string, string>> {
  return Object.fromEntries(fields.map(({ field, name, arg }) => [`/payload/${field}`, labelOf(name, arg)]));
}
