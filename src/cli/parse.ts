/**
 * A strict argv (SPEC §12): every flag must be declared, every value must be there and fit, nothing is left over.
 *
 * Flags and positionals may be mixed; `--` ends the flags; `--flag=VALUE` takes any value, `--flag VALUE` none that
 * starts with a dash. A positional may be given as a flag of its name instead. A refusal is a problem that names the place and
 * the nearest name. Left out on purpose: abbreviated flags and bundled letters, which break the day a flag is added.
 */
import { nearest } from "../kernel/nearest.ts";
import { type Problem, problem } from "../kernel/problems.ts";
import type { Arg, Args, Format } from "./command.ts";

/** The values by name; absent ones are undefined, absent booleans false. */
export type Parsed = Readonly<Record<string, unknown>>;

/** Something about the command line is wrong: exit 2. The nearest names, if any, are in the hint. */
export function usage(detail: string, hint: string): Problem {
  return problem("invalid_schema", detail, { hint });
}

type Environment = Readonly<Record<string, string | undefined>>;

interface Named {
  readonly name: string;
  readonly arg: Arg;
}

/**
 * Read an argv against a declaration.
 * @param argv the words after the verb
 * @param args what is declared
 * @param path the command as typed, for hints
 * @param env where flags with a variable, and a first word with a fallback, look when they are not given; empty ones count as
 *   not set
 * @returns the values, or `invalid_schema` about the first thing that is wrong
 */
export function parse(argv: readonly string[], args: Args, path: string, env: Environment): Parsed | Problem {
  const values: Record<string, unknown> = {};
  const help = `see '${path} --help'`;
  const read = readFlags(argv, args, values, help);
  if ("unknown" in read) return unknownFlag(read.unknown, args, help);
  if ("problem" in read) return read.problem;
  const missing: Missing[] = [];
  return (
    readWords(read.words, args, values, env, help, missing) ??
    readEnvironment(env, args, values, help, missing) ??
    lacking(missing, help) ??
    values
  );
}

/** What a verb cannot do without and was not given, and the variable that could have told it. */
interface Missing {
  readonly label: string;
  readonly variable: string | undefined;
}

/** All that is missing, at once: who mends one place after the other starts the program as often. */
function lacking(missing: readonly Missing[], help: string): Problem | undefined {
  if (missing.length === 0) return undefined;
  const labels = missing.map(({ label }) => label);
  const told = labels.length === 1 ? labels[0] : `${labels.slice(0, -1).join(", ")} and ${labels.at(-1)}`;
  const ways = missing.flatMap(({ label, variable }) =>
    variable === undefined ? [] : [`give ${missing.length === 1 ? "it" : label}, or set ${variable}; `],
  );
  return usage(`${told} ${labels.length === 1 ? "is" : "are"} missing`, `${ways.join("")}${help}`);
}

type Words =
  | { readonly words: readonly string[] }
  | { readonly unknown: string }
  | { readonly problem: Problem };

/** Put the flags into `values`; what is left are the positionals. */
function readFlags(
  argv: readonly string[],
  args: Args,
  values: Record<string, unknown>,
  help: string,
): Words {
  const flags = flagsOf(args);
  const words: string[] = [];
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at]!;
    if (word === "--") return { words: [...words, ...argv.slice(at + 1)] };
    if (!word.startsWith("-") || word === "-") {
      words.push(word);
      continue;
    }
    const equals = word.indexOf("=");
    const typed = equals < 0 ? word : word.slice(0, equals);
    const found = flags.get(typed);
    if (!found) return { unknown: typed };
    const { name, arg } = found;
    if (arg.type === "boolean") {
      const said = !typed.startsWith("--no-") || name.startsWith("no-");
      if (equals >= 0) return { problem: usage(`${typed} takes no value`, help) };
      if (values[name] === !said)
        return { problem: usage(`--${name} and --no-${name} exclude each other`, help) };
      values[name] = said;
      continue;
    }
    const text = equals >= 0 ? word.slice(equals + 1) : argv[++at];
    if (text === undefined || text === "" || (equals < 0 && isFlag(text)))
      return { problem: usage(`${typed} needs a value`, valueHint(found, text, help)) };
    const taken = take(arg, typed, text, values[name], help);
    if ("problem" in taken) return taken;
    values[name] = taken.value;
  }
  return { words };
}

/**
 * Put the positionals into `values`. A flag may have given some: the words are the others, in their order. A first one that
 * the verb finds in its variable may be left out where the words are enough for the rest.
 */
function readWords(
  words: readonly string[],
  args: Args,
  values: Record<string, unknown>,
  env: Environment,
  help: string,
  missing: Missing[],
): Problem | undefined {
  const open = Object.entries(args).filter(
    ([name, arg]) => arg.type === "positional" && values[name] === undefined,
  );
  const needed = open.filter(([, arg]) => arg.required).length;
  const [first] = open;
  const known = first?.[1].fallback;
  const positionals = known !== undefined && env[known] && words.length === needed - 1 ? open.slice(1) : open;
  for (const [index, [name, arg]] of positionals.entries()) {
    const word = words[index];
    const label = labelOf(name, arg);
    if (word === undefined && arg.required) {
      missing.push({ label, variable: arg.fallback });
      continue;
    }
    if (arg.many) {
      // The last one takes all that is left, as it is: a command line, in which empty words and commas mean something.
      if (word !== undefined) values[name] = words.slice(index);
      return undefined;
    }
    if (word === undefined) continue;
    if (word === "") return usage(`${label} is empty`, help);
    const taken = take(arg, label, word, undefined, help);
    if ("problem" in taken) return taken.problem;
    values[name] = taken.value;
  }
  const stray = words[positionals.length];
  return stray === undefined
    ? undefined
    : usage(`unexpected argument '${stray}'`, strayHint(stray, args, help));
}

/** Put what was not given into `values`: from its variable, false for a flag without a value, or a refusal. */
function readEnvironment(
  env: Environment,
  args: Args,
  values: Record<string, unknown>,
  help: string,
  missing: Missing[],
): Problem | undefined {
  for (const [name, arg] of Object.entries(args)) {
    if (arg.type === "positional" || values[name] !== undefined) continue;
    const stored = arg.env === undefined ? undefined : env[arg.env];
    if (stored === undefined || stored === "") {
      if (arg.required) missing.push({ label: `--${name}`, variable: arg.env });
      else if (arg.type === "boolean" && !arg.negatable) values[name] = false;
    } else if (arg.type === "boolean") {
      values[name] = stored !== "0" && stored !== "false";
    } else {
      const taken = take(arg, `the environment variable ${arg.env}`, stored, undefined, help);
      if ("problem" in taken) return taken.problem;
      values[name] = taken.value;
    }
  }
  return undefined;
}

function unknownFlag(typed: string, args: Args, help: string): Problem {
  const known = Object.entries(args).flatMap(([name, arg]) => (isOnlyWords(arg) ? [] : [name]));
  // Without the dashes, which would count as letters that are right.
  const bare = typed.replace(/^-+/, "");
  const begun = known.filter((name) => name.startsWith(`${bare}-`));
  const near = (begun.length > 0 ? begun : nearest(bare, known)).map((name) => `--${name}`).join(" or ");
  return usage(`unknown flag ${typed}`, near === "" ? help : `did you mean ${near}? ${help}`);
}

/** What is left of a command line has no name; every other positional can be given as a flag too. */
export function isOnlyWords({ type, many }: Arg): boolean {
  return type === "positional" && many === true;
}

/** Every spelling of every flag: `--name`, its aliases, one letter with one dash. */
function flagsOf(args: Args): Map<string, Named> {
  const flags = new Map<string, Named>();
  for (const [name, arg] of Object.entries(args)) {
    if (isOnlyWords(arg)) continue;
    flags.set(`--${name}`, { name, arg });
    if (arg.negatable) flags.set(`--no-${name}`, { name, arg });
    for (const alias of arg.alias ?? [])
      flags.set(alias.length === 1 ? `-${alias}` : `--${alias}`, { name, arg });
  }
  return flags;
}

/** Does this word open a flag, rather than being a value such as `-` or `-3`? */
function isFlag(word: string): boolean {
  return /^-[^\d]/.test(word);
}

function valueHint({ name, arg }: Named, next: string | undefined, help: string): string {
  if (next !== undefined && next !== "")
    return `if '${next}' is the value, write --${name}='${next}'; ${help}`;
  return arg.options ? `one of ${arg.options.join(", ")}; ${help}` : help;
}

function strayHint(stray: string, args: Args, help: string): string {
  const flag = args[stray.replaceAll("_", "-")];
  return flag && flag.type !== "positional" ? `did you mean --${stray.replaceAll("_", "-")}? ${help}` : help;
}

/** What help and errors call an argument: `NAME` or `--name`. */
export function labelOf(name: string, arg: Arg): string {
  if (arg.type !== "positional") return `--${name}`;
  return arg.valueHint ?? inCapitals(name);
}

function inCapitals(name: string): string {
  return name.replaceAll("-", "_").toUpperCase();
}

type Taken = { readonly value: unknown } | { readonly problem: Problem };

/** Turn one text into the value, and add it to what is there already where many are taken. */
function take(arg: Arg, label: string, text: string, before: unknown, help: string): Taken {
  if (before !== undefined && !arg.many) return { problem: usage(`${label} is given twice`, help) };
  if (arg.many) {
    const parts = text.split(",");
    if (parts.includes("")) return { problem: usage(`${label} has an empty value`, help) };
    return { value: [...((before as string[] | undefined) ?? []), ...parts] };
  }
  if (arg.options && !arg.options.includes(text)) {
    const near = nearest(text, arg.options).map((each) => `'${each}'`);
    const what = label === arg.options.join("|") ? `'${text}'` : label;
    return {
      problem: usage(
        `${what} must be one of ${arg.options.join(", ")}`,
        near.length > 0 ? `did you mean ${near.join(" or ")}? ${help}` : help,
      ),
    };
  }
  if (arg.format === undefined) return { value: text };
  const { read, what } = formats[arg.format];
  // Seconds or milliseconds? Nobody guesses right; only a flag that names its unit needs none.
  if (TIMES.has(arg.format) && /^\d+(\.\d+)?$/.test(text) && !label.endsWith("-ms"))
    return {
      problem: usage(
        `${label} must be a time with its unit: ${text}s, ${text}m or ${text}ms, not ${text}`,
        help,
      ),
    };
  const value = read(text);
  return value === undefined ? { problem: usage(`${label} must be ${what}`, help) } : { value };
}

const TIMES: ReadonlySet<Format> = new Set(["duration", "limit", "milliseconds"]);

const formats: Readonly<Record<Format, { readonly what: string; read(text: string): unknown }>> = {
  count: {
    what: "a whole number, 0 or more",
    read: (text) => (/^\d{1,15}$/.test(text) ? Number(text) : undefined),
  },
  duration: { what: "a time such as 500ms, 30s, 2m or 1h30m", read: duration },
  limit: {
    what: "a time such as 500ms, 30s, 2m or 1h30m, and more than 0",
    read: (text) => duration(text) || undefined,
  },
  milliseconds: {
    what: "a time such as 500ms, 30s or 2m",
    read: (text) => (/^\d{1,15}$/.test(text) ? Number(text) : duration(text)),
  },
  number: {
    what: "a number",
    read: (text) => (/^-?\d+(\.\d+)?$/.test(text) && text.length < 16 ? Number(text) : undefined),
  },
  json: {
    what: "JSON",
    read(text) {
      try {
        return JSON.parse(text) as unknown;
      } catch {
        return undefined;
      }
    },
  },
};

const UNITS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/**
 * A length of time as people write it.
 * @param text `250ms`, `5s`, `1m30s`, `2h`, `1d`; a number alone is seconds
 * @returns milliseconds, at most a thousand years; undefined when it is not one
 */
export function duration(text: string): number | undefined {
  if (!/^(\d{1,10}(\.\d{1,3})?(ms|s|m|h|d))+$/.test(text)) {
    return /^\d{1,7}(\.\d{1,3})?$/.test(text) ? Math.round(Number(text) * UNITS.s) : undefined;
  }
  let total = 0;
  for (const [, amount, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g))
    total += Number(amount) * UNITS[unit as keyof typeof UNITS];
  return total < 1_000 * 365 * UNITS.d ? Math.round(total) : undefined;
}
