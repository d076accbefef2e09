/**
 * A strict argv (SPEC §12): every flag must be declared, every value must be there and fit, nothing is left over.
 *
 * Flags and positionals may be mixed; `--` ends the flags; `--flag=VALUE` takes any value, `--flag VALUE` none that
 * starts with a dash. A refusal is a problem that names the place and the nearest name. Left out on purpose: abbreviated
 * flags and bundled letters, which break the day a flag is added.
 */
import { type Problem, problem } from "../kernel/problems.ts";
import type { Arg, Args, Format } from "./command.ts";

/** The values by name; absent ones are undefined, absent booleans false. */
export type Parsed = Readonly<Record<string, unknown>>;

/** Something about the command line is wrong: exit 2. The nearest names, if any, are in the hint. */
export function usage(detail: string, hint: string): Problem {
  return problem("invalid_schema", detail, { hint });
}

interface Named {
  readonly name: string;
  readonly arg: Arg;
}

/**
 * Read an argv against a declaration.
 * @param argv the words after the verb
 * @param args what is declared
 * @param path the command as typed, for hints
 * @param env where flags with a variable look when they are not given; empty ones count as not set
 * @returns the values, or `invalid_schema` about the first thing that is wrong
 */
export async function parse(
  argv: readonly string[],
  args: Args,
  path: string,
  env: Readonly<Record<string, string | undefined>>,
): Promise<Parsed | Problem> {
  const values: Record<string, unknown> = {};
  const words: string[] = [];
  const help = `see '${path} --help'`;
  const flags = flagsOf(args);

  for (let at = 0; at < argv.length; at++) {
    const word = argv[at]!;
    if (word === "--") {
      words.push(...argv.slice(at + 1));
      break;
    }
    if (!word.startsWith("-") || word === "-") {
      words.push(word);
      continue;
    }
    const equals = word.indexOf("=");
    const typed = equals < 0 ? word : word.slice(0, equals);
    const found = flags.get(typed);
    if (!found) return unknownFlag(typed, flags, help);
    const { name, arg } = found;
    if (arg.type === "boolean") {
      const said = !typed.startsWith("--no-") || name.startsWith("no-");
      if (equals >= 0) return usage(`${typed} takes no value`, help);
      if (values[name] === !said) return usage(`--${name} and --no-${name} exclude each other`, help);
      values[name] = said;
      continue;
    }
    const next = equals >= 0 ? word.slice(equals + 1) : argv[at + 1];
    const missing = next === undefined || next === "" || (equals < 0 && isFlag(next));
    if (missing) return usage(`${typed} needs a value`, valueHint(found, next, help));
    if (equals < 0) at += 1;
    const value = take(arg, typed, next, values[name], help);
    if ("problem" in value) return value.problem;
    values[name] = value.value;
  }

  const positionals = Object.entries(args).filter(([, arg]) => arg.type === "positional");
  for (const [index, [name, arg]] of positionals.entries()) {
    const word = words[index];
    if (word === undefined) {
      if (arg.required) return usage(`${labelOf(name, arg)} is missing`, help);
      continue;
    }
    if (word === "") return usage(`${labelOf(name, arg)} is empty`, help);
    const value = take(arg, labelOf(name, arg), word, undefined, help);
    if ("problem" in value) return value.problem;
    values[name] = value.value;
  }
  const stray = words[positionals.length];
  if (stray !== undefined) return usage(`unexpected argument '${stray}'`, strayHint(stray, args, help));

  for (const [name, arg] of Object.entries(args)) {
    if (arg.type === "positional" || values[name] !== undefined) continue;
    const stored = arg.env === undefined ? undefined : env[arg.env];
    if (stored === undefined || stored === "") {
      if (arg.required)
        return usage(`--${name} is missing`, arg.env ? `give it, or set ${arg.env}; ${help}` : help);
      if (arg.type === "boolean" && !arg.negatable) values[name] = false;
      continue;
    }
    if (arg.type === "boolean") {
      values[name] = stored !== "0" && stored !== "false";
      continue;
    }
    const value = take(arg, `the environment variable ${arg.env}`, stored, undefined, help);
    if ("problem" in value) return value.problem;
    values[name] = value.value;
  }
  return values;

  async function unknownFlag(typed: string, known: ReadonlyMap<string, Named>, also: string) {
    const { nearest } = await import("../kernel/registry.ts");
    const near = nearest(
      typed,
      [...known].filter(([word, { name }]) => word === `--${name}`).map(([word]) => word),
    );
    return usage(
      `unknown flag ${typed}`,
      near.length > 0 ? `did you mean ${near.join(" or ")}? ${also}` : also,
    );
  }
}

/** Every spelling of every flag: `--name`, its aliases, one letter with one dash. */
function flagsOf(args: Args): Map<string, Named> {
  const flags = new Map<string, Named>();
  for (const [name, arg] of Object.entries(args)) {
    if (arg.type === "positional") continue;
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
  return arg.valueHint ?? name.replaceAll("-", "_").toUpperCase();
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
  if (arg.options && !arg.options.includes(text))
    return { problem: usage(`${label} must be one of ${arg.options.join(", ")}`, help) };
  if (arg.format === undefined) return { value: text };
  const { read, what } = formats[arg.format];
  const value = read(text);
  return value === undefined ? { problem: usage(`${label} must be ${what}`, help) } : { value };
}

const formats: Readonly<Record<Format, { readonly what: string; read(text: string): unknown }>> = {
  count: {
    what: "a whole number, 0 or more",
    read: (text) => (/^\d{1,15}$/.test(text) ? Number(text) : undefined),
  },
  duration: { what: "a time such as 500ms, 30s, 2m or 1h30m", read: duration },
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
