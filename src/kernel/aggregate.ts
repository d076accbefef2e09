/**
 * What an aggregate is: data plus pure functions (SPEC §8).
 *
 * A domain file hands one object to `aggregate`: commands, events, `decide`, `evolve`, a read model and its
 * queries. Types flow from the schemas; a missing `decide`, `evolve` or `apply` does not compile. `decide` never throws,
 * never reads a clock, never writes; `evolve` and `apply` see nothing but the event, so replay needs no clock
 * and no luck. Route, CLI verb, Eden type, JSON Schema and docs derive from here.
 */
import { type Static, type TObject, type TProperties, type TSchema, Type } from "typebox";
import { object } from "./schema.ts";

export interface Actor {
  readonly id: string;
  readonly kind: "user" | "session" | "system" | "ci" | "service";
  readonly on_behalf_of?: { readonly id: string; readonly kind: string };
}

/** The event envelope of SPEC §4. */
export interface Event<P = unknown> {
  readonly actor: Actor;
  readonly causality: {
    readonly command_id: string;
    readonly idempotency_key: string;
    readonly parent_event_id?: string | undefined;
  };
  readonly event_id: string;
  readonly event_type: string;
  readonly payload: P;
  readonly prev_hash: string;
  readonly project_id?: string | undefined;
  readonly schema_version: number;
  readonly seq_global: number;
  readonly seq_stream: number;
  readonly stream: string;
  readonly subject: { readonly id: string; readonly kind: string };
  readonly timestamp: string;
  readonly trace_id: string;
  readonly workspace_id?: string | undefined;
}

/** What a read model sees of an event: no more, so that a rebuild need not take whole envelopes apart. */
export type Fact<P = unknown> = Pick<
  Event<P>,
  | "event_type"
  | "payload"
  | "project_id"
  | "schema_version"
  | "seq_stream"
  | "subject"
  | "timestamp"
  | "workspace_id"
>;

/** What every event of a stream has in its envelope. It is fixed by the first one: a stream never moves. */
export interface Scope {
  readonly workspace_id?: string | undefined;
  readonly project_id?: string | undefined;
}

/** The time so many milliseconds after another, both RFC 3339: domain files reckon with time, they never ask for it. */
export function later(at: string, ms: number): string {
  return new Date(Date.parse(at) + ms).toISOString();
}

/** How many milliseconds there are from one time to another, both RFC 3339; negative when `to` is earlier. */
export function between(from: string, to: string): number {
  return Date.parse(to) - Date.parse(from);
}

/** What the row of a subject gets from its first event. */
export function born({ timestamp, seq_stream }: Fact) {
  return { created_at: timestamp, updated_at: timestamp, version: seq_stream };
}

/** What the row of a subject gets from each later event. */
export function touched({ timestamp, seq_stream }: Fact) {
  return { updated_at: timestamp, version: seq_stream };
}

/** An old version of a payload and the pure, total step to the next version (SPEC §13). */
export interface Older {
  readonly payload: TSchema;
  up(payload: never): unknown;
}
export type OlderVersions = Readonly<Record<number, Older>>;

export interface CommandSpec<P extends TProperties = TProperties, R extends TSchema = TSchema> {
  readonly doc: string;
  readonly version: number;
  readonly payload: TObject<P>;
  readonly older: OlderVersions;
  /** True for commands that make their subject; the daemon chooses its id. */
  readonly creates: boolean;
  /** True for commands that only put off the end of the subject's lease: no event, no trace in the log (SPEC §8). */
  readonly renews: boolean;
  /** True for commands that only the daemon itself gives, or another decision: nobody can send them. */
  readonly internal: boolean;
  /** Schema of the receipt's `result`. */
  readonly result: R;
}

/**
 * Declare a command.
 * @param fields its payload, current version
 * @param doc one sentence for help and docs
 * @param more `creates`: it makes its subject; `renews`: it only renews its lease; `internal`: the daemon's own; `result`:
 *   what the receipt's `result` holds; `rule`: what no single field can say; `version` and `older` once the payload has changed
 */
export function command<P extends TProperties, R extends TSchema = TObject<Record<never, never>>>(
  fields: P,
  doc: string,
  more: {
    creates?: boolean;
    renews?: boolean;
    internal?: boolean;
    result?: R;
    rule?: { readonly holds: (payload: Static<TObject<P>>) => boolean; readonly message: string };
    version?: number;
    older?: OlderVersions;
  } = {},
): CommandSpec<P, R> {
  const { rule } = more;
  // The schema says the rule in words: its readers see no more of it than that.
  const payload = object(fields, rule?.message);
  return {
    doc,
    version: more.version ?? 1,
    payload: rule ? Type.Refine(payload, rule.holds, () => rule.message) : payload,
    older: more.older ?? {},
    creates: more.creates ?? false,
    renews: more.renews ?? false,
    internal: more.internal ?? false,
    result: more.result ?? (object({}) as TSchema as R),
  };
}

export interface EventSpec<P extends TProperties = TProperties> {
  readonly version: number;
  readonly payload: TObject<P>;
  readonly older: OlderVersions;
}

/**
 * Declare an event.
 * @param version the current version; a published one never changes (SPEC §13)
 * @param fields the payload of that version
 * @param older each earlier version with its upcaster to the next one
 */
export function event<P extends TProperties>(
  version: number,
  fields: P,
  older: OlderVersions = {},
): EventSpec<P> {
  return { version, payload: object(fields), older };
}

/** A table of a read model: its columns are a schema, its SQL derives from it. */
export interface TableSpec<P extends TProperties = TProperties> {
  readonly row: TObject<P>;
  readonly key: readonly string[];
  readonly unique: readonly (readonly string[])[];
  readonly index: readonly (readonly string[])[];
  /** Columns that queries do not show. */
  readonly hidden: readonly string[];
}

/**
 * Declare a table.
 * @param columns string → TEXT, integer → INTEGER; `nullable` ones may be null
 * @param more `key` primary key; `unique` and `index` further indexes; `hidden` columns that no answer shows
 */
export function table<P extends TProperties>(
  columns: P,
  more: {
    key: readonly (keyof P & string)[];
    unique?: readonly (readonly (keyof P & string)[])[];
    index?: readonly (readonly (keyof P & string)[])[];
    hidden?: readonly (keyof P & string)[];
  },
): TableSpec<P> {
  return {
    row: object(columns),
    key: more.key,
    unique: more.unique ?? [],
    index: more.index ?? [],
    hidden: more.hidden ?? [],
  };
}

/**
 * The rows of every read model, by table name. Each domain file adds its own by declaration merging, so that
 * `find` and `read` are typed without one domain file importing another.
 */
export interface Tables {
  /** Until when a stream's lease lasts (SPEC §8): liveness, in no read model and never replayed. */
  leases: {
    readonly stream: string;
    readonly epoch: number;
    readonly ttl_ms: number;
    readonly expires_at: number;
  };
  /** Which artifacts' bytes are in the store on this machine: not state either. */
  blobs: { readonly digest: string; readonly size: number; readonly stored_at: number };
}

export type RowOf<T extends TableSpec> = Static<T["row"]>;
type TableName = keyof Tables & string;

/** A part of a column's values; members that are absent do not bound it. */
export interface Range<V> {
  readonly above?: V;
  readonly from?: V;
  readonly below?: V;
  readonly upTo?: V;
  readonly oneOf?: readonly V[];
}
type Where<R> = { readonly [K in keyof R]?: R[K] | Range<NonNullable<R[K]>> | undefined };

/** Which rows come first, and how many at most. Key order, all of them, when absent. */
export interface Order<R> {
  readonly by?: readonly (keyof R & string)[];
  readonly descending?: boolean;
  readonly limit?: number;
}

/** Read models as `decide` sees them: inside the writer's own transaction, so on the truth. */
export interface Find {
  one<T extends TableName>(table: T, where: Where<Tables[T]>): Tables[T] | undefined;
  all<T extends TableName>(table: T, where: Where<Tables[T]>, order?: Order<Tables[T]>): Tables[T][];
}

/** Read models as a query sees them: one consistent snapshot, hidden columns left out, `undefined` filters nothing. */
export interface Read {
  one<T extends TableName>(table: T, where: Where<Tables[T]>): Tables[T] | undefined;
  all<T extends TableName>(table: T, where: Where<Tables[T]>, order?: Order<Tables[T]>): Tables[T][];
  /**
   * A page.
   * @param by its order, ending in columns that tell every row from every other; the table's key when absent
   */
  page<T extends TableName>(
    table: T,
    where: Where<Tables[T]>,
    params: { readonly limit?: number | undefined; readonly cursor?: string | undefined },
    by?: readonly (keyof Tables[T] & string)[],
  ): { items: Tables[T][]; next: string | null };
  /** What only SQL says well, such as a join or a tree. Hidden columns are there. Values only through parameters. */
  sql<R>(text: string, ...values: (string | number | null)[]): R[];
}

/** A table as its own projection writes it. It may look at its own rows: they follow from the events before. */
export interface Rows<R> {
  one(where: Where<R>): R | undefined;
  all(where: Where<R>, order?: Order<R>): R[];
  insert(row: R): void;
  /** Change the rows that match; naming a column that does not exist is a bug and throws. */
  update(where: Where<R>, change: Where<R>): void;
  delete(where: Where<R>): void;
}

export interface QuerySpec<P extends TProperties = TProperties, A extends TSchema = TSchema> {
  readonly doc: string;
  readonly version: number;
  readonly params: TObject<P>;
  /** Schema of the whole answer. */
  readonly answer: A;
  /** Rows of a page at most, where that is less than MAX_PAGE. */
  readonly largest?: number;
}

/** A query that reads an aggregate's read model. The kernel's own queries are answered by the daemon instead. */
export interface ReadQuery<P extends TProperties = TProperties, A extends TSchema = TSchema>
  extends QuerySpec<P, A> {
  run(read: Read, params: never, at: string): object | Refused;
}

/**
 * Declare a query.
 * @param params what it takes; `limit`, `cursor` and `min_seq` are added by the kernel
 * @param answer schema of the whole answer, with `as_of_seq`
 * @param doc one sentence
 * @param run reads and answers, without `as_of_seq`; a `Refused` where there is no such thing. Its last parameter is the
 *   time of the question, RFC 3339, for what depends on it (overdue, not before)
 * @param largest rows of a page at most: LARGE_PAGE where a row takes more than one look-up, so that no page keeps others
 *   waiting for long (SPEC §14)
 */
export function query<P extends TProperties, A extends TSchema>(
  params: P,
  answer: A,
  doc: string,
  run: (
    read: Read,
    params: Static<TObject<P>> & { limit?: number; cursor?: string },
    at: string,
  ) => object | Refused,
  { largest }: { readonly largest?: number } = {},
): ReadQuery<P, A> {
  const more = largest === undefined ? {} : { largest };
  return { doc, version: 1, params: object(params), answer, run: run as ReadQuery["run"], ...more };
}

/** Why a decision went against the command. The reasons an aggregate can give are listed in its `reasons`. */
export interface Refused {
  readonly refused: "conflict" | "not_found";
  readonly reason: string | null;
  readonly details: Readonly<Record<string, unknown>>;
}

/** A rule that a `conflict` can name: what is the case, as a sentence without a full stop, and what to do about it. */
export interface Reason {
  readonly is: string;
  readonly hint: string;
}

/** Refuse with `conflict` and a reason of the catalogue, such as `workspace.closed`. */
export function reject(reason: string, details: Readonly<Record<string, unknown>> = {}): Refused {
  return { refused: "conflict", reason, details };
}

/** Refuse with `not_found`: the command or query names something that does not exist. */
export function missing(kind: string, id: string): Refused {
  return { refused: "not_found", reason: null, details: { kind, id } };
}

export function isRefused(value: unknown): value is Refused {
  return typeof value === "object" && value !== null && "refused" in value;
}

/** Optional members may be given as undefined; the kernel leaves them out of the event (SPEC §4). */
type Sparse<T> = { [K in keyof T]: Record<never, never> extends Pick<T, K> ? T[K] | undefined : T[K] };

type Commands = Readonly<Record<string, CommandSpec>>;
type Events = Readonly<Record<string, EventSpec>>;
type TableSpecs = Readonly<Record<string, TableSpec>>;
type Queries = Readonly<Record<string, ReadQuery>>;

/** An event as `decide` makes it: its short name and payload; the kernel adds the envelope. */
export type Made<E extends Events> = {
  [K in keyof E & string]: { readonly type: K; readonly payload: Sparse<Static<E[K]["payload"]>> };
}[keyof E & string];

/**
 * The commands that one aggregate's decision may ask of another, internal or not, by type, with their payloads. The domain file
 * that decides such a command adds it here by declaration merging, so that calls are typed without one file importing another.
 */
// biome-ignore lint/suspicious/noEmptyInterface: it is filled by declaration merging
export interface Calls {}

/** A command to another stream that belongs to this decision: all of them are accepted, or nothing happens. */
export type Call = { [T in keyof Calls]: { readonly type: T; readonly payload: Calls[T] } }[keyof Calls];

/**
 * Events; or events with a `result` for the receipt and with calls to `also` carry out; or a refusal. No events: accepted,
 * nothing changes.
 */
export type Decision<M> =
  | readonly M[]
  | { readonly events: readonly M[]; readonly result?: object; readonly also?: readonly Call[] }
  | Refused;

export interface Context {
  /** Everything as it was before the command, also while other streams' decisions of the same command are made. */
  readonly find: Find;
  /** The subject's id; for a creating command the id it will have. */
  readonly id: string;
  /** The command's time, RFC 3339: an input like any other, the same for all events of the command. */
  readonly at: string;
  /** The scope of the subject's stream. Empty for a creating command. */
  readonly scope: Scope;
  /** The position of the log before the command. */
  readonly head: number;
  /** The name of the machine that the daemon runs on. */
  readonly host: string;
  /** A fresh id for something inside the subject: an input as well, for `decide` makes nothing up. */
  readonly newId: () => string;
}

/** A right that ends by itself unless it is renewed (SPEC §8). A stream has at most one at a time. */
export interface Lease {
  /** The fencing token: whoever holds the lease knows it. */
  readonly epoch: number;
  /** How long it lasts from its event or its last renewal, in milliseconds. */
  readonly ttl_ms: number;
  /** False for what is no holder's liveness: a daemon's restart does not put it off. */
  readonly grace?: boolean;
}

export interface Aggregate<
  K extends string = string,
  S = never,
  C extends Commands = Commands,
  E extends Events = Events,
  T extends TableSpecs = TableSpecs,
  Q extends Queries = Queries,
> {
  readonly kind: K;
  readonly initial: S;
  readonly commands: C;
  readonly events: E;
  /** Each `conflict` reason this aggregate can give. */
  readonly reasons: Readonly<Record<string, Reason>>;
  /** The scope of a new stream, from the command that creates it. */
  readonly scope: (id: string, payload: Record<string, unknown>, find: Find) => Scope;
  /** The lease that a state has, and the internal command `{<kind>_id, epoch}` that the daemon gives when it has run out. */
  readonly lease?: { readonly of: (state: S) => Lease | undefined; readonly expire: keyof C & string };
  /** For commands that may name their subject by what it must be: how it is chosen. */
  readonly choose?: {
    readonly [N in keyof C & string]?: (
      payload: Static<C[N]["payload"]>,
      context: Pick<Context, "find" | "at">,
    ) => string | Refused;
  };
  readonly decide: {
    readonly [N in keyof C & string]: (
      state: S,
      payload: Static<C[N]["payload"]>,
      context: Context,
    ) => Decision<Made<E>>;
  };
  readonly evolve: { readonly [N in keyof E & string]: (state: S, payload: Static<E[N]["payload"]>) => S };
  readonly readModel: {
    /** Raise it when `apply` changes what it writes: the generation id derives from it. */
    readonly version: number;
    readonly tables: T;
    readonly apply: {
      readonly [N in keyof E & string]: (
        rows: { readonly [R in keyof T]: Rows<RowOf<T[R]>> },
        event: Fact<Static<E[N]["payload"]>>,
      ) => void;
    };
  };
  readonly queries: Q;
}

/** Any aggregate, its types forgotten: what the kernel works with. */
export interface AnyAggregate {
  readonly kind: string;
  readonly initial: unknown;
  readonly commands: Commands;
  readonly events: Events;
  readonly reasons: Readonly<Record<string, Reason>>;
  readonly scope: (id: string, payload: Record<string, unknown>, find: Find) => Scope;
  readonly lease?: { readonly of: (state: never) => Lease | undefined; readonly expire: string };
  readonly choose?: Readonly<
    Record<string, (payload: never, context: Pick<Context, "find" | "at">) => string | Refused>
  >;
  readonly decide: Readonly<
    Record<
      string,
      (state: never, payload: never, context: Context) => Decision<{ type: string; payload: object }>
    >
  >;
  readonly evolve: Readonly<Record<string, (state: never, payload: never) => unknown>>;
  readonly readModel: {
    readonly version: number;
    readonly tables: TableSpecs;
    readonly apply: Readonly<Record<string, (rows: never, event: never) => void>>;
  };
  readonly queries: Queries;
}

/**
 * Declare an aggregate: `aggregate("project", initialState)({ … })`.
 * @param kind the first part of its types and of its streams
 * @param initial the state of a stream without events
 * @returns a function that takes the rest and gives it back with its types
 */
export function aggregate<K extends string, S>(kind: K, initial: S) {
  return <C extends Commands, E extends Events, T extends TableSpecs, Q extends Queries>(
    rest: Omit<Aggregate<K, S, C, E, T, Q>, "kind" | "initial">,
  ): Aggregate<K, S, C, E, T, Q> => ({ kind, initial, ...rest });
}
