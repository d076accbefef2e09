/**
 * How a verb of the CLI is declared (SPEC §12): citty's `defineCommand`, with the types and the strictness that citty
 * lacks. Only declarations: parse.ts reads them against an argv, help.ts prints them, runner.ts runs them.
 *
 * Always holds: a verb gets every value checked and in its own type, and flags it has not declared never reach it.
 */
import { type ArgsDef, type CommandDef, defineCommand } from "citty";
import type { Problem } from "../kernel/problems.ts";
import type { Output } from "./output.ts";

/** What the text of a value becomes; without it the text stays as it is. */
export type Format =
  /** A whole number from 0 on. */
  | "count"
  /** `250ms`, `5s`, `1m30s`, `2h`, `1d`, or seconds without a unit. Milliseconds. */
  | "duration"
  /** The same, but not nothing. */
  | "limit"
  /** The same, but a number without a unit is milliseconds. */
  | "milliseconds"
  /** Any JSON number. */
  | "number"
  /** JSON text. */
  | "json";

/** One flag or positional. The members citty knows mean what they mean there. */
export interface Arg {
  readonly type: "boolean" | "string" | "positional" | "enum";
  readonly description: string;
  /** What help calls the value, for instance `NAME`. */
  readonly valueHint?: string;
  /** Further names; one letter is used with one dash. */
  readonly alias?: readonly string[];
  readonly required?: boolean;
  /** The only values that are taken. */
  readonly options?: readonly string[];
  readonly format?: Format;
  /** May be given more than once, or once with commas. */
  readonly many?: boolean;
  /** Of a boolean: `--no-name` says false, and what is not said is neither. */
  readonly negatable?: boolean;
  /** The environment variable that stands in when the flag is not given. */
  readonly env?: string;
  /**
   * For help: the environment variable that the verb itself looks at when the argument is not given. A first word that has one
   * may be left out where the variable is set.
   */
  readonly fallback?: string;
  /** Not in help. */
  readonly hidden?: boolean;
}

export type Args = Readonly<Record<string, Arg>>;

type One<A extends Arg> = A["format"] extends "count" | "duration" | "limit" | "milliseconds" | "number"
  ? number
  : A["format"] extends "json"
    ? unknown
    : A["options"] extends readonly (infer O extends string)[]
      ? O
      : string;

type Value<A extends Arg> = A["type"] extends "boolean"
  ? boolean
  : A["many"] extends true
    ? readonly string[] | undefined
    : A["required"] extends true
      ? One<A>
      : One<A> | undefined;

/** The values of declared arguments, as a verb gets them. */
export type Values<A extends Args> = { readonly [K in keyof A]: Value<A[K]> };

/** Every command takes these. */
export const everywhere = {
  json: { type: "boolean", description: "print JSON instead of a table" },
  help: { type: "boolean", alias: ["h"], description: "show this help" },
} as const satisfies Args;

/** Commands that ask the daemon take these. */
export const asking = {
  "no-spawn": {
    type: "boolean",
    env: "MP_NO_SPAWN",
    description: "do not start a daemon when none runs",
  },
  timeout: {
    type: "string",
    format: "limit",
    valueHint: "TIME",
    env: "MP_TIMEOUT",
    description: "give up after this time, such as 500ms, 30s or 2m",
  },
  "trace-id": {
    type: "string",
    valueHint: "HEX",
    description: "32 hex digits that the daemon's log and events will carry",
  },
} as const satisfies Args;

/** Commands that change state take these. */
export const changing = {
  key: {
    type: "string",
    valueHint: "KEY",
    description: "idempotency key: the same key again gives the first receipt again (made up when not given)",
  },
  "expected-version": {
    type: "string",
    format: "count",
    valueHint: "N",
    description: "only if the subject is at this version",
  },
} as const satisfies Args;

export type Asking = Values<typeof asking>;
export type Changing = Values<typeof changing>;

/** What a verb is run with besides its values. */
export interface Context {
  readonly out: Output;
  /** The words the user typed, `mp workspace create`. */
  readonly path: string;
}

/** How a verb ends: an exit code, a problem to print, or nothing when all is well. */
export type Ending = number | Problem | undefined;

/** A declared verb: citty's definition plus what help shows below the flags. */
export interface Verb extends CommandDef<ArgsDef> {
  readonly args: ArgsDef;
  readonly more: More;
}

interface More {
  /** Lines of help below the flags. */
  readonly notes?: readonly string[];
  /** Whole command lines. */
  readonly examples?: readonly string[];
  /** Where the daemon's JSON pointers lead on this command line, for instance `/payload/name` → `NAME`. */
  readonly pointers?: Readonly<Record<string, string>>;
}

/**
 * Declare a verb.
 * @param doc one sentence for help
 * @param args its own arguments; positionals in their order
 * @param run what it does
 * @param more what help says below the flags
 */
export function verb<const A extends Args>(
  doc: string,
  args: A,
  run: (values: Values<A & typeof everywhere>, context: Context) => Promise<Ending>,
  more: More = {},
): Verb {
  const all: Args = { ...args, ...everywhere };
  const definition = defineCommand({
    meta: { description: doc },
    args: all as ArgsDef,
    run: ({ args: values, data }) => run(values as unknown as Values<A & typeof everywhere>, data as Context),
  });
  return { ...definition, args: all as ArgsDef, more };
}

/** The arguments of a verb, in our own types again. */
export function argsOf(declared: Verb): Args {
  return declared.args as Args;
}

/** A noun: its verbs by name. */
export interface Noun {
  readonly doc: string;
  readonly verbs: Readonly<Record<string, Verb>>;
}
