/**
 * What the command line knows of the registry: names, sentences and the schemas of what is sent. All of it is data, so it
 * is made when the program is built (surface-text.ts), and a verb loads neither the aggregates nor TypeBox.
 *
 * Always holds: a registry is a surface too, so whatever takes one can be tried with aggregates of a test's own.
 */
import type { Reason } from "../kernel/aggregate.ts";
import { surfaceTexts } from "./surface-text.ts" with { type: "macro" };

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
}

/** The parts of a registry that verbs, their arguments and their help are made of. */
export interface Surface {
  readonly aggregates: readonly { readonly kind: string }[];
  readonly commands: ReadonlyMap<string, CommandSurface>;
  readonly queries: ReadonlyMap<string, QuerySurface>;
  readonly reasons: ReadonlyMap<string, Reason>;
}
interface CommandSurface {
  readonly spec: {
    readonly doc: string;
    readonly payload: Plain;
    readonly renews: boolean;
    /** Of its members only the names are here. */
    readonly result: Plain;
  };
}
interface QuerySurface {
  /** Of the rows of a list only the names of the members are here, of other answers nothing. */
  readonly spec: { readonly doc: string; readonly answer: Plain };
  readonly params: Plain;
}

let made: Surface | undefined;

/** The surface of this program. */
export function surface(): Surface {
  made ??= read(surfaceTexts());
  return made;
}

function read({ kinds, commands, queries, reasons }: ReturnType<typeof surfaceTexts>): Surface {
  return {
    aggregates: kinds.map((kind) => ({ kind })),
    commands: entries<CommandSurface>(commands, (whole) => ({
      get spec() {
        return whole().spec;
      },
    })),
    queries: entries<QuerySurface>(queries, (whole) => ({
      get spec() {
        return whole().spec;
      },
      get params() {
        return whole().params;
      },
    })),
    get reasons() {
      return new Map(JSON.parse(reasons) as [string, Reason][]);
    },
  };
}

/** A verb needs a few entries of many, so the text of each is read when it is looked at. */
function entries<E>(
  texts: Readonly<Record<string, string>>,
  entry: (whole: () => E) => E,
): ReadonlyMap<string, E> {
  return new Map(
    Object.entries(texts).map(([type, text]) => {
      let value: E | undefined;
      const whole = () => {
        value ??= JSON.parse(text) as E;
        return value;
      };
      return [type, entry(whole)];
    }),
  );
}
