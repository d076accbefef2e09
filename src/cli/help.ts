/**
 * Help (SPEC §12), made from the same declarations that parse.ts reads: nothing here can name a flag that is not taken.
 *
 * Help that was asked for is data: it goes to stdout and the exit code is 0. Under `--json` it is a description of the
 * command that programs can read.
 */
import {
  type Arg,
  argsOf,
  asking,
  changing,
  type Ending,
  everywhere,
  type Noun,
  type Verb,
} from "./command.ts";
import type { Output } from "./output.ts";
import { isOnlyWords, labelOf } from "./parse.ts";

type Bold = (text: string) => string;

async function headings(out: Output): Promise<Bold> {
  if (!out.colour) return (text) => text;
  const { paint } = await import("./terminal.ts");
  return paint(true).bold;
}

/** What is longer than this on the left has its sentence on the next line. */
const LONGEST_LEFT = 30;

/** Columns of characters; a pipe has as many as paper. */
const room = () => process.stdout.columns || 80;

/** A text in lines that fit, the second and later ones so far in. */
function wrapped(text: string, first: number, later: number): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const indent = lines.length === 0 ? first : later;
    if (line !== "" && indent + Bun.stringWidth(line) + 1 + Bun.stringWidth(word) > room()) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line].join(`\n${" ".repeat(later)}`);
}

/** Words and their sentences in two columns. */
const pairs = (rows: readonly (readonly [string, string])[]) => {
  const column = 4 + Math.max(0, ...rows.map(([left]) => left.length).filter((size) => size <= LONGEST_LEFT));
  return rows.map(([left, right]) => {
    const said = wrapped(right, column, column);
    const apart =
      left.length > LONGEST_LEFT ? `\n${" ".repeat(column)}` : " ".repeat(column - 2 - left.length);
    return `  ${left}${said === "" ? "" : `${apart}${said}`}`;
  });
};

/** Paragraphs that fit: a line that does not end a sentence goes on in the next one. */
function paragraphs(lines: readonly string[]): string[] {
  const whole: string[] = [];
  for (const line of lines) {
    const last = whole.at(-1);
    if (last === undefined || /[.:]$/.test(last)) whole.push(line);
    else whole[whole.length - 1] = `${last} ${line}`;
  }
  return whole.map((text) => `  ${wrapped(text, 2, 2)}`);
}

const section = (bold: Bold, title: string, lines: readonly string[]) =>
  lines.length > 0 ? ["", bold(title), ...lines] : [];

/** A name with its sentence. */
export interface Entry {
  readonly name: string;
  readonly doc: string;
}

/** `mp`: what there is. */
export async function overview(
  nouns: readonly Entry[],
  others: readonly Entry[],
  out: Output,
): Promise<Ending> {
  if (out.asJson) {
    await out.json({ nouns, verbs: others });
    return 0;
  }
  const bold = await headings(out);
  const rows = (all: readonly Entry[]) => pairs(all.map(({ name, doc }) => [name, doc]));
  await out.print(
    `${[
      "One daemon, one log: people, CI jobs and agents share the work on a repository only by",
      "commands, and everything anyone reads is made from the log of what they did.",
      ...section(bold, "Usage:", ["  mp NOUN VERB [ARGUMENTS] [FLAGS]"]),
      ...section(bold, "Nouns:", rows(nouns)),
      ...section(bold, "Also:", rows(others)),
      ...section(bold, "Start here:", [
        "  mp workspace create demo                    the daemon starts by itself",
        "  mp project create core --workspace demo --repo-path .",
        "  mp task create 'fix the build' --project core",
        "  mp session run --workspace demo -- make     a command as a session",
        "  mp session tree                             who does what",
        "  mp events tail --from-start                 watch what happens; Ctrl-C ends it",
      ]),
      ...section(bold, "More:", [
        "  mp NOUN --help, mp NOUN VERB --help, mp help exit-codes, mp help environment",
      ]),
    ].join("\n")}\n`,
  );
  return 0;
}

/** `mp NOUN --help`. */
export async function nounHelp(name: string, noun: Noun, out: Output): Promise<Ending> {
  const all = Object.entries(noun.verbs).map(([verbName, each]) => ({ verb: verbName, doc: docOf(each) }));
  if (out.asJson) {
    await out.json({ noun: name, doc: noun.doc, verbs: all });
    return 0;
  }
  const bold = await headings(out);
  await out.print(
    `${[
      noun.doc,
      ...section(bold, "Usage:", [`  mp ${name} VERB [ARGUMENTS] [FLAGS]`]),
      ...section(
        bold,
        "Verbs:",
        pairs(
          Object.entries(noun.verbs).map(([verbName, each]) => [`${verbName}${wordsOf(each)}`, docOf(each)]),
        ),
      ),
      "",
      `All flags of one: mp ${name} VERB --help`,
    ].join("\n")}\n`,
  );
  return 0;
}

function docOf(declared: Verb): string {
  return (declared.meta as { description: string }).description;
}

/** The positionals, and the flags that are required, as usage shows them. */
function wordsOf(declared: Verb): string {
  const all = Object.entries(argsOf(declared));
  const words = all
    .filter(([, arg]) => arg.type === "positional")
    .map(([name, arg]) => (arg.required && !arg.fallback ? labelOf(name, arg) : `[${labelOf(name, arg)}]`));
  const flags = all
    .filter(([, arg]) => arg.type !== "positional" && arg.required)
    .map(([name, arg]) => `--${name} ${arg.valueHint ?? "VALUE"}`);
  return [...words, ...flags].map((each) => ` ${each}`).join("");
}

/** Flags that many commands have: below the own ones, so that those are seen first. */
const GENERAL = new Set(Object.keys({ ...everywhere, ...asking, ...changing }));

function isWordOrFlag(arg: Arg): boolean {
  return arg.type === "positional" && !isOnlyWords(arg);
}

/** `mp NOUN VERB --help`. */
export async function verbHelp(path: string, declared: Verb, out: Output): Promise<Ending> {
  const all = Object.entries(argsOf(declared)).filter(([, arg]) => !arg.hidden);
  const { notes = [], examples = [] } = declared.more;
  if (out.asJson) {
    const described = all.map(([name, arg]) => ({
      name: labelOf(name, arg),
      type: arg.type === "boolean" ? "boolean" : (arg.format ?? "string"),
      required: arg.required ?? false,
      ...(arg.many && { repeatable: true }),
      ...(arg.options && { options: arg.options }),
      ...(isWordOrFlag(arg) && { flag: `--${name}` }),
      ...((arg.env || arg.fallback) && { env: arg.env ?? arg.fallback }),
      description: arg.description,
    }));
    await out.json({ command: path, doc: docOf(declared), arguments: described, notes, examples });
    return 0;
  }
  const bold = await headings(out);
  const row = ([name, arg]: (typeof all)[number]): [string, string] => {
    const short = (arg.alias ?? []).filter((alias) => alias.length === 1).map((alias) => `-${alias}, `);
    const value = arg.type === "boolean" ? "" : ` ${arg.valueHint ?? "VALUE"}`;
    const left = arg.type === "positional" ? labelOf(name, arg) : `${short.join("")}--${name}${value}`;
    const facts = [
      arg.required && arg.type !== "positional" ? "required" : "",
      isWordOrFlag(arg) && arg.required && !arg.fallback ? `or --${name}` : "",
      arg.env || arg.fallback ? `or ${arg.env ?? arg.fallback}` : "",
    ];
    const said = facts.filter(Boolean).join("; ");
    return [left, `${arg.description}${said ? ` (${said})` : ""}`];
  };
  const own = all.filter(([name]) => !GENERAL.has(name));
  const general = all.filter(([name]) => GENERAL.has(name));
  const flags = own.filter(([, arg]) => arg.type !== "positional").length > 0 ? " [FLAGS]" : "";
  const words = wordsOf(declared);
  await out.print(
    `${[
      wrapped(docOf(declared), 0, 0),
      // Behind a -- stands no flag of ours.
      ...section(bold, "Usage:", [
        `  ${wrapped(`${path}${words.startsWith(" -- ") ? flags + words : words + flags}`, 2, 6)}`,
      ]),
      ...section(bold, "Arguments:", pairs(own.filter(([, arg]) => arg.type === "positional").map(row))),
      ...section(bold, "Flags:", pairs(own.filter(([, arg]) => arg.type !== "positional").map(row))),
      ...section(bold, "General flags:", pairs(general.map(row))),
      ...section(bold, "Notes:", paragraphs(notes)),
      ...section(
        bold,
        "Examples:",
        examples.map((line) => `  ${line}`),
      ),
    ].join("\n")}\n`,
  );
  return 0;
}

/** SPEC §12. */
const EXIT_CODES: readonly (readonly [number, string, string])[] = [
  [0, "ok", "also: the reader of the output has gone"],
  [1, "failure", "a bug, a full disk, a log or projection that does not verify, git could not do it"],
  [2, "usage", "a flag, an argument or a request that is not right"],
  [3, "not found", "there is no such thing"],
  [4, "denied", "no valid credential, or not allowed"],
  [
    5,
    "conflict",
    "the state forbids it: a name is taken, another holds the lock, an epoch is an old one, a version has moved on",
  ],
  [
    6,
    "daemon unavailable",
    "none runs and none could be started, or --no-spawn; mp daemon status: not running",
  ],
  [7, "timeout or overloaded", "--timeout or --wait is over, or too many commands wait"],
  [8, "cursor cannot be resumed", "it is of another log, or beyond the end of this one"],
  [130, "interrupted", "Ctrl-C"],
];

const ENVIRONMENT: readonly (readonly [string, string])[] = [
  ["MP_HOME", "one folder for everything: database, log, socket"],
  ["MP_NO_SPAWN", "1: never start a daemon (--no-spawn)"],
  ["MP_TIMEOUT", "how long to wait, such as 30s (--timeout)"],
  ["MP_WORKSPACE", "the workspace, by name or id, where one must be given (--workspace); so for every noun"],
  [
    "MP_PROJECT",
    "the project, by name or id, where one must be given (--project); without flag and variable task create, task list, session spawn and session run take the project and workspace of the worktree that one is in",
  ],
  [
    "MP_SESSION_ID, MP_TASK_ID, MP_WORKTREE_ID",
    "the subject of a verb where it is left out, and the session where one must be given; mp session run sets them",
  ],
  [
    "MP_SESSION_EPOCH, MP_TASK_EPOCH, MP_WRITER_EPOCH",
    "the epoch of that session, of the claim of that task, of the writer lock of that worktree (--epoch)",
  ],
  ["MP_TOKEN", "the credential to act with; mp session run sets it"],
  ["NO_COLOR", "anything: no colour"],
  ["MP_DEBUG", "1: say where in mp a bug was met"],
  ["XDG_DATA_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR", "where things are without MP_HOME"],
];

/** What `mp help` also knows about. */
export const topics = ["exit-codes", "environment"] as const;

/** `mp help TOPIC`. */
export async function topicHelp(name: (typeof topics)[number], out: Output): Promise<Ending> {
  if (name === "exit-codes") {
    const items = EXIT_CODES.map(([exit, meaning, when]) => ({ exit, meaning, when }));
    if (out.asJson) await out.json({ items });
    else
      await out.table(items, {
        columns: [{ name: "exit" }, { name: "meaning" }, { name: "when" }],
        whole: true,
      });
  } else {
    const items = ENVIRONMENT.map(([variable, meaning]) => ({ variable, meaning }));
    if (out.asJson) await out.json({ items });
    else await out.table(items, { columns: [{ name: "variable" }, { name: "meaning" }], whole: true });
  }
  return 0;
}
