/**
 * From an argv to an exit code (SPEC §12): find the verb, read its arguments strictly, run it, print what went wrong.
 *
 * citty's own runner takes unknown flags, stray words and empty values, always exits 1 and prints usage on stdout; here
 * all of that is refused with exit code 2, stdout stays empty, and the nearest right word is named.
 */
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import {
  type Args,
  argsOf,
  asking,
  type Context,
  changing,
  type Ending,
  everywhere,
  type Verb,
} from "./command.ts";
import { complain } from "./exit.ts";
import { allNouns, nounNamed, nouns, verbs } from "./nouns.ts";
import { isTerminal, Output } from "./output.ts";
import { parse, usage } from "./parse.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Run one command line.
 * @param argv what follows the program's name
 * @returns the exit code; everything that was printed has been taken by then
 */
export async function main(argv: readonly string[], env: Environment): Promise<number> {
  const end = argv.indexOf("--");
  const flags = end < 0 ? argv : argv.slice(0, end);
  const out = new Output(flags.includes("--json"), await isTerminal(1), env);
  const found = await locate(argv);
  if (isProblem(found)) return complain(found, out);
  const { path, declared } = found;
  const ending = await run(found, out, env).catch((error: unknown) => bug(error, env));
  if (out.failed) return complain(out.failed, out);
  if (isProblem(ending)) return complain(ending, out, { path, pointers: declared?.more.pointers ?? {} });
  return ending ?? 0;
}

/** What a command line asks for: a verb with its words, or help. */
interface Located {
  /** `mp workspace create` */
  readonly path: string;
  readonly declared?: Verb;
  readonly rest: readonly string[];
  readonly help?: (out: Output) => Promise<Ending>;
}

/** Flags that may stand before the noun and take a value. */
const before: Args = { ...everywhere, ...asking, ...changing };

/** Find the noun and the verb. Flags in front of them belong to the verb. */
async function locate(argv: readonly string[]): Promise<Located | Problem> {
  const words: number[] = [];
  for (let at = 0; at < argv.length && words.length < 2; at++) {
    const word = argv[at]!;
    if (word === "--") break;
    if (!word.startsWith("-") || word === "-") words.push(at);
    else if (takesValue(word)) at += 1;
  }
  const [first, second] = words.map((at) => argv[at]!);
  const without = (count: number) => argv.filter((_, at) => !words.slice(0, count).includes(at));
  const wantsHelp = asksForHelp(argv);

  if (first === undefined) {
    if (wantsHelp || argv.every((word) => word === "--json")) return { path: "mp", rest: [], help: overview };
    if (argv.some((word) => word === "--version" || word === "-V"))
      return {
        path: "mp version",
        declared: await verbs.version!.load(),
        rest: argv.filter((word) => word !== "--version" && word !== "-V"),
      };
    const wrong = parse(argv, before, "mp", {});
    return isProblem(wrong) ? wrong : usage("a noun is missing", "see 'mp --help'");
  }
  if (first === "help") return aboutHelp(second, without(1));
  if (Object.hasOwn(verbs, first)) {
    const declared = await verbs[first]!.load();
    return helpOr({ path: `mp ${first}`, declared, rest: without(1) }, wantsHelp);
  }
  const noun = await nounNamed(first);
  if (!noun) return unknownNoun(first);
  if (second === undefined) {
    if (wantsHelp)
      return {
        path: `mp ${first}`,
        rest: [],
        help: async (out) => (await import("./help.ts")).nounHelp(first, noun, out),
      };
    return usage(
      `mp ${first} needs a verb`,
      `${Object.keys(noun.verbs).join(", ")}; see 'mp ${first} --help'`,
    );
  }
  const declared = Object.hasOwn(noun.verbs, second) ? noun.verbs[second] : undefined;
  if (!declared) return unknownVerb(first, second, Object.keys(noun.verbs));
  return helpOr({ path: `mp ${first} ${second}`, declared, rest: without(2) }, wantsHelp);
}

/** `mp help …` is the command line behind it with `--help`, or a topic. */
async function aboutHelp(what: string | undefined, rest: readonly string[]): Promise<Located | Problem> {
  const { topicHelp, topics } = await import("./help.ts");
  const topic = topics.find((each) => each === what);
  if (topic) {
    const words = { topic: { type: "positional", description: "" }, ...everywhere } as const;
    const wrong = parse(rest, words, "mp help", {});
    return isProblem(wrong)
      ? wrong
      : { path: `mp help ${topic}`, rest: [], help: (out) => topicHelp(topic, out) };
  }
  const found = await locate(["--help", ...rest]);
  return isProblem(found) ? { ...found, hint: `${found.hint}; topics: ${topics.join(", ")}` } : found;
}

async function overview(out: Output): Promise<Ending> {
  const help = { name: "help", doc: "Show help about a command, or a topic: exit-codes, environment." };
  const others = [...Object.entries(verbs).map(([name, { doc }]) => ({ name, doc })), help];
  return (await import("./help.ts")).overview(await allNouns(), others, out);
}

function takesValue(word: string): boolean {
  return !word.includes("=") && word.startsWith("--") && before[word.slice(2)]?.type === "string";
}

function asksForHelp(argv: readonly string[]): boolean {
  const end = argv.indexOf("--");
  return (end < 0 ? argv : argv.slice(0, end)).some((word) => word === "--help" || word === "-h");
}

function helpOr(found: Located & { readonly declared: Verb }, wantsHelp: boolean): Located {
  const { path, declared } = found;
  return wantsHelp
    ? { path, rest: [], help: async (out) => (await import("./help.ts")).verbHelp(path, declared, out) }
    : found;
}

async function run({ path, declared, rest, help }: Located, out: Output, env: Environment): Promise<Ending> {
  if (help) return help(out);
  const values = parse(rest, argsOf(declared!), path, env);
  if (isProblem(values)) return values;
  const context: Context = { out, path };
  return declared!.run!({
    rawArgs: [...rest],
    args: values as never,
    cmd: declared!,
    data: context,
  }) as Promise<Ending>;
}

async function unknownNoun(name: string): Promise<Problem> {
  const [{ nearest }, { domainNouns }] = await Promise.all([
    import("../kernel/nearest.ts"),
    import("./domain.ts"),
  ]);
  const near = nearest(name, [
    ...Object.keys(nouns),
    ...Object.keys(domainNouns()),
    ...Object.keys(verbs),
    "help",
  ]);
  return usage(
    `there is no command 'mp ${name}'`,
    `${didYouMean(near.map((each) => `mp ${each}`))}see 'mp --help'`,
  );
}

/** What other programs call it. */
const synonyms: Readonly<Record<string, readonly string[]>> = {
  ...{ ls: ["list"], all: ["list"] },
  ...{ show: ["get"], inspect: ["get"], info: ["get"], describe: ["get"] },
  ...{ add: ["create", "register"], new: ["create"], start: ["create", "spawn"] },
  ...{ rm: ["remove", "cancel", "archive", "close"], delete: ["remove", "cancel", "archive", "close"] },
  ...{ stop: ["end", "pause"], kill: ["end"], done: ["complete"], finish: ["complete", "end"] },
};

async function unknownVerb(noun: string, name: string, known: readonly string[]): Promise<Problem> {
  const { nearest } = await import("../kernel/nearest.ts");
  const meant = (Object.hasOwn(synonyms, name) ? synonyms[name]! : []).filter((each) => known.includes(each));
  const near = (meant.length > 0 ? meant : nearest(name, known)).map((each) => `mp ${noun} ${each}`);
  return usage(`mp ${noun} has no verb '${name}'`, `${didYouMean(near)}it has ${known.join(", ")}`);
}

function didYouMean(near: readonly string[]): string {
  return near.length > 0 ? `did you mean '${near.join("' or '")}'? ` : "";
}

/** A throw is a bug of this program; nothing of it is the user's to mend. */
function bug(error: unknown, env: Environment): Problem {
  const told = error instanceof Error ? error : new Error(String(error));
  return problem("internal", env.MP_DEBUG ? (told.stack ?? told.message) : told.message, {
    hint: "this is a bug in mp; with MP_DEBUG=1 it says where",
  });
}
