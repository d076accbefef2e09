/**
 * The registry: every command, query and event the daemon knows, by type, from one list of aggregates and the
 * kernel's own types. Routes, CLI, client types, schemas/ and OpenAPI are made from it.
 *
 * Always holds (checked here, at every start): every older version has an unbroken chain of upcasters to the current one; no
 * two things have one name; a command that does not make its subject names it by `<kind>_id`, or says how it is chosen;
 * only what has a lease can renew it, and only the daemon ends it.
 */
import { type TObject, Type } from "typebox";
import type {
  AnyAggregate,
  CommandSpec,
  EventSpec,
  Fact,
  OlderVersions,
  QuerySpec,
  ReadQuery,
  Reason,
} from "./aggregate.ts";
import { field, MAX_PAGE, matches, object, Seq } from "./schema.ts";

export interface CommandEntry {
  readonly type: string;
  readonly spec: CommandSpec;
  /** The aggregate that decides it; undefined for the kernel's own commands. */
  readonly aggregate: AnyAggregate | undefined;
  /** The second part of the type. */
  readonly name: string;
}
export interface QueryEntry {
  readonly type: string;
  readonly spec: QuerySpec;
  /** Its own parameters and the general ones. */
  readonly params: TObject;
  /** How to answer it from the read models, and whose; undefined for the kernel's own queries. */
  readonly reads: { readonly kind: string; readonly run: ReadQuery["run"] } | undefined;
}
export interface EventEntry {
  readonly type: string;
  readonly spec: EventSpec;
  readonly aggregate: AnyAggregate;
  readonly name: string;
}

export interface Registry {
  readonly aggregates: readonly AnyAggregate[];
  readonly commands: ReadonlyMap<string, CommandEntry>;
  /** Commands that nobody can send: the daemon's own, and those of other decisions. */
  readonly internal: ReadonlyMap<string, CommandEntry>;
  readonly queries: ReadonlyMap<string, QueryEntry>;
  /** Queries that only a WebSocket takes, because frames follow their answer. */
  readonly socket: ReadonlyMap<string, QueryEntry>;
  readonly events: ReadonlyMap<string, EventEntry>;
  /** Every `conflict` reason with what it means. */
  readonly reasons: ReadonlyMap<string, Reason>;
}

/** The kernel's own commands and queries, by whole type. */
export interface SystemTypes {
  readonly commands: Readonly<Record<string, CommandSpec>>;
  readonly queries: Readonly<Record<string, QuerySpec>>;
  /** Those that only a WebSocket takes. */
  readonly socket?: Readonly<Record<string, QuerySpec>>;
}

/**
 * Build the registry.
 * @param aggregates the domain's one list
 * @param system the kernel's own types
 * @throws Error when one of the rules above is broken: a bug
 */
export function buildRegistry(aggregates: readonly unknown[], system: SystemTypes): Registry {
  const commands = new Map<string, CommandEntry>();
  const internal = new Map<string, CommandEntry>();
  const queries = new Map<string, QueryEntry>();
  const socket = new Map<string, QueryEntry>();
  const events = new Map<string, EventEntry>();
  const reasons = new Map<string, Reason>();
  const tables = new Map<string, string>();
  const add = <V>(map: Map<string, V>, name: string, value: V) => {
    if (map.has(name)) throw new Error(`${name} is declared twice`);
    map.set(name, value);
  };
  for (const aggregate of aggregates as readonly AnyAggregate[]) {
    for (const [name, spec] of Object.entries(aggregate.commands)) {
      const type = `${aggregate.kind}.${name}`;
      checkChain(type, spec.version, spec.older);
      if (!spec.creates && !(`${aggregate.kind}_id` in spec.payload.properties))
        throw new Error(`${type} does not name its subject: its payload has no ${aggregate.kind}_id`);
      if (
        !spec.creates &&
        !spec.payload.required?.includes(`${aggregate.kind}_id`) &&
        !aggregate.choose?.[name]
      )
        throw new Error(`${type} does not always name its subject, and nothing chooses one`);
      if (spec.renews && !aggregate.lease)
        throw new Error(`${type} renews, but ${aggregate.kind} has no lease`);
      add(spec.internal ? internal : commands, type, { type, spec, aggregate, name });
    }
    if (aggregate.lease && !aggregate.commands[aggregate.lease.expire]?.internal)
      throw new Error(`${aggregate.kind}.${aggregate.lease.expire} ends a lease, so it must be internal`);
    for (const [name, spec] of Object.entries(aggregate.queries)) {
      const type = `${aggregate.kind}.${name}`;
      add(queries, type, queryEntry(type, spec, { kind: aggregate.kind, run: spec.run }));
    }
    for (const [name, spec] of Object.entries(aggregate.events)) {
      const type = `${aggregate.kind}.${name}`;
      checkChain(type, spec.version, spec.older);
      add(events, type, { type, spec, aggregate, name });
    }
    for (const [name, reason] of Object.entries(aggregate.reasons)) add(reasons, name, reason);
    for (const table of Object.keys(aggregate.readModel.tables)) add(tables, table, aggregate.kind);
  }
  for (const [type, spec] of Object.entries(system.commands))
    add(commands, type, { type, spec, aggregate: undefined, name: type.split(".")[1]! });
  for (const [type, spec] of Object.entries(system.queries))
    add(queries, type, queryEntry(type, spec, undefined));
  for (const [type, spec] of Object.entries(system.socket ?? {}))
    add(socket, type, { type, spec, params: spec.params, reads: undefined });
  // One envelope for all, so one name for all.
  for (const type of [...queries.keys(), ...socket.keys()])
    if (commands.has(type) || (queries.has(type) && socket.has(type)))
      throw new Error(`${type} is declared twice`);
  return {
    aggregates: aggregates as readonly AnyAggregate[],
    commands,
    internal,
    queries,
    socket,
    events,
    reasons,
  };
}

/** The parameters are made when they are asked for: the writer's thread never asks. */
function queryEntry(type: string, spec: QuerySpec, reads: QueryEntry["reads"]): QueryEntry {
  let params: TObject | undefined;
  return {
    type,
    spec,
    reads,
    get params() {
      params ??= withPaging(spec);
      return params;
    },
  };
}

/** What a query really takes: its own parameters, `min_seq`, and for pages `limit` and `cursor` (SPEC §3). */
function withPaging(spec: QuerySpec): TObject {
  const paged = "next" in ((spec.answer as TObject).properties ?? {});
  return object({
    ...spec.params.properties,
    ...(paged && {
      limit: Type.Optional(limitOf(spec)),
      cursor: Type.Optional(
        field(Type.String({ maxLength: 512 }), "go on where an earlier page ended: its 'next'"),
      ),
    }),
    min_seq: Type.Optional(field(Seq, "wait until the log has reached this position")),
  });
}

function limitOf({ largest = MAX_PAGE }: QuerySpec) {
  return Type.Integer({ minimum: 1, maximum: largest, description: "at most so many of them" });
}

function checkChain(type: string, current: number, older: OlderVersions): void {
  const versions = Object.keys(older)
    .map(Number)
    .sort((a, b) => a - b);
  for (const [index, version] of versions.entries())
    if (versions[index + 1] !== version + 1 && version + 1 !== current)
      throw new Error(`${type}: nothing leads from version ${version} to ${version + 1}`);
}

/**
 * Take a payload from an older version to the current one.
 * @returns the current payload
 * @throws Error when a step makes something that breaks the next schema: an upcaster must be total
 */
export function upcast(
  type: string,
  spec: Pick<CommandSpec | EventSpec, "version" | "payload" | "older">,
  version: number,
  payload: unknown,
): unknown {
  let value = payload;
  for (let at = version; at < spec.version; at++) {
    value = spec.older[at]!.up(value as never);
    const schema = at + 1 === spec.version ? spec.payload : spec.older[at + 1]!.payload;
    if (!matches(schema, value))
      throw new Error(`the upcaster of ${type} from version ${at} breaks version ${at + 1}`);
  }
  return value;
}

/** The schema of a stored or sent version; undefined when there is none. */
export function schemaOf(
  spec: Pick<CommandSpec | EventSpec, "version" | "payload" | "older">,
  version: number,
) {
  return version === spec.version ? spec.payload : spec.older[version]?.payload;
}

/**
 * A stored event in its current version.
 * @throws Error when the registry does not know its type or version; the start-up proof rules that out
 */
export function currentEvent<E extends Fact>(registry: Registry, event: E): E {
  const entry = registry.events.get(event.event_type);
  if (!entry) throw new Error(`no aggregate knows the event ${event.event_type}`);
  if (event.schema_version === entry.spec.version) return event;
  return {
    ...event,
    schema_version: entry.spec.version,
    payload: upcast(entry.type, entry.spec, event.schema_version, event.payload),
  };
}

/**
 * The start-up proof of SPEC §13: each stored (type, version) has a path to the current one and none is newer.
 * @returns one sentence per pair that has none
 */
export function versionsWithoutPath(
  registry: Registry,
  stored: readonly { event_type: string; schema_version: number }[],
): string[] {
  return stored.flatMap(({ event_type, schema_version }) => {
    const entry = registry.events.get(event_type);
    if (!entry) return [`the log holds ${event_type}, which this mp does not know`];
    if (schema_version > entry.spec.version)
      return [
        `the log holds ${event_type} version ${schema_version}, this mp knows ${entry.spec.version}: use a newer mp`,
      ];
    if (!schemaOf(entry.spec, schema_version))
      return [`the log holds ${event_type} version ${schema_version}, which has no upcaster in this mp`];
    return [];
  });
}
