/**
 * The types of the API, derived from the registry's source: what a client may send and what it gets (SPEC §2, §3).
 * Types only; nothing here exists at run time, so importing it costs nothing.
 */
import type { Static, TObject, TProperties } from "typebox";
import type { aggregates } from "../domain/index.ts";
import type { CommandSpec, QuerySpec } from "../kernel/aggregate.ts";
import type { Problem } from "../kernel/problems.ts";
import type { systemCommands, systemQueries } from "../kernel/system.ts";

type Aggregates = (typeof aggregates)[number];

type Prefixed<A, Part extends "commands" | "queries"> = A extends { readonly kind: infer K extends string }
  ? A extends { readonly [P in Part]: infer C }
    ? { [N in keyof C & string as `${K}.${N}`]: C[N] }
    : never
  : never;

type Intersect<U> = (U extends unknown ? (each: U) => void : never) extends (all: infer I) => void
  ? I
  : never;

type CommandSpecs = Intersect<Prefixed<Aggregates, "commands">> & typeof systemCommands;
type QuerySpecs = Intersect<Prefixed<Aggregates, "queries">> & typeof systemQueries;

/** Every command's type, such as `project.create`. */
export type CommandType = keyof CommandSpecs & string;
/** Every query's type, such as `project.list`. */
export type QueryType = keyof QuerySpecs & string;

/** The payload a command takes. */
export type Payload<T extends CommandType> = T extends unknown
  ? CommandSpecs[T] extends CommandSpec<infer P extends TProperties>
    ? Fields<P, Record<string, never>>
    : never
  : never;

/** The members of an object; `None` where there are none, because `object` would take anything. */
type Fields<P extends TProperties, None> = keyof P extends never ? None : Static<TObject<P>>;

/** The `result` of a command's receipt. */
export type Result<T extends CommandType> = T extends unknown
  ? CommandSpecs[T] extends { readonly result: infer R extends TObject }
    ? Fields<R["properties"], Record<string, never>>
    : Record<string, unknown>
  : never;

type General = { min_seq?: number };
type Paging = { limit?: number; cursor?: string };

/** The parameters a query takes. */
export type Params<T extends QueryType> = T extends unknown
  ? QuerySpecs[T] extends QuerySpec<infer P extends TProperties>
    ? Fields<P, unknown> & General & (Ask<T> extends { next: unknown } ? Paging : unknown)
    : never
  : never;

/** What a query answers. */
export type Ask<T extends QueryType> = T extends unknown
  ? QuerySpecs[T] extends { readonly answer: infer A extends TObject }
    ? Static<A>
    : never
  : never;

/** The optional members of an envelope that a caller may choose. */
export interface EnvelopeOptions {
  readonly idempotency_key?: string;
  readonly expected_version?: number;
  readonly schema_version?: number;
  readonly trace_id?: string;
  readonly parent_event_id?: string;
}

/** The envelope of one type. */
export type EnvelopeOf<T extends CommandType | QueryType> = EnvelopeOptions & {
  readonly type: T;
  readonly payload: T extends CommandType ? Payload<T> : T extends QueryType ? Params<T> : never;
};

/** Any envelope that the daemon takes. */
export type AnyEnvelope = { [T in CommandType | QueryType]: EnvelopeOf<T> }[CommandType | QueryType];

/** What an accepted command answers (SPEC §3). */
export interface Receipt<T extends CommandType = CommandType> {
  readonly command_id: string;
  readonly type: T;
  readonly subject: { readonly kind: string; readonly id: string };
  readonly version: number;
  readonly seq_global: number;
  readonly events: readonly {
    readonly event_id: string;
    readonly event_type: string;
    readonly seq_global: number;
    readonly seq_stream: number;
  }[];
  readonly result: Result<T>;
  readonly replayed: boolean;
}

/** Bytes that are in the artifact store (SPEC §8). */
export interface StoredBytes {
  /** `sha256:` and 64 hexadecimal digits. */
  readonly digest: string;
  readonly size: number;
}

/** What a batch answers, in the order of its commands. An atomic batch that is refused answers a problem instead. */
export interface BatchAnswer {
  readonly items: readonly (
    | ({ readonly kind: "receipt" } & Receipt)
    | ({ readonly kind: "problem" } & Problem)
  )[];
}
