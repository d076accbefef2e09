/**
 * What the command line knows of the registry: names, sentences and the schemas of what is sent. All of it is data, so it
 * is made when the program is built (surface-text.ts), and a verb loads neither the aggregates nor TypeBox.
 *
 * Always holds: a registry is a surface too, so whatever takes one can be tried with aggregates of a test's own.
 */
import type { Reason } from "../kernel/aggregate.ts";
import { surfaceText } from "./surface-text.ts" with { type: "macro" };

/** What is read of a JSON Schema. */
export interface Plain {
  readonly type?: string;
  readonly enum?: readonly string[];
  readonly anyOf?: readonly Plain[];
  readonly items?: Plain;
  readonly properties?: Readonly<Record<string, Plain>>;
  readonly required?: readonly string[];
  readonly description?: string;
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
}

/** The parts of a registry that verbs, their arguments and their help are made of. */
export interface Surface {
  readonly aggregates: readonly { readonly kind: string }[];
  readonly commands: ReadonlyMap<string, CommandSurface>;
  readonly queries: ReadonlyMap<string, QuerySurface>;
  readonly reasons: ReadonlyMap<string, Reason>;
}
export interface CommandSurface {
  readonly type: string;
  readonly spec: {
    readonly doc: string;
    readonly payload: Plain;
    readonly renews: boolean;
    /** Of its members only the names are here. */
    readonly result: Plain;
  };
}
export interface QuerySurface {
  readonly type: string;
  /** Of the rows of a list only the names of the members are here, of other answers nothing. */
  readonly spec: { readonly doc: string; readonly answer: Plain };
  readonly params: Plain;
}

let read: Surface | undefined;

/** The surface of this program. */
export function surface(): Surface {
  read ??= parsed(surfaceText());
  return read;
}

function parsed(text: string): Surface {
  const { kinds, commands, queries, reasons } = JSON.parse(text) as {
    readonly kinds: readonly string[];
    readonly commands: readonly CommandSurface[];
    readonly queries: readonly QuerySurface[];
    readonly reasons: readonly [string, Reason][];
  };
  return {
    aggregates: kinds.map((kind) => ({ kind })),
    commands: new Map(commands.map((each) => [each.type, each])),
    queries: new Map(queries.map((each) => [each.type, each])),
    reasons: new Map(reasons),
  };
}
