/**
 * The verbs of every aggregate, made from the registry (SPEC §12): a new command or query in a domain file is a new
 * verb, with its help, without a line here. `columns`, `docs` and `examples` are the only hints, and there are rules
 * without them. What a noun has beyond its registry (`mp session tree`) is in a file of its own, made of the same parts.
 */
import { isProblem, type Problem } from "../kernel/problems.ts";
import { type Args, asking, changing, type Ending, type Noun, type Verb, verb } from "./command.ts";
import { type Field, kebab } from "./fields.ts";
import { daemonLink, type Link, type Sent } from "./link.ts";
import { type Column, isTerminal, note, type Output, plain, type Shape } from "./output.ts";
import { resultsOf, type Values, type Wanted, wantedBy } from "./payload.ts";
import { type Plain, type Surface, surface } from "./surface.ts";

/**
 * The columns a terminal shows, where the general rule would choose worse ones. What has no name of its own is called by the
 * end of its id, which every command takes.
 */
const columns: Readonly<Record<string, readonly (string | Column)[]>> = {
  workspace: ["name", "status", "root_path", "workspace_id"],
  project: ["name", "status", "repo_path", "project_id"],
  session: [
    { name: "agent_name", title: "AGENT" },
    "title",
    "status",
    "waiting_for",
    { name: "updated_at", title: "CHANGED", as: "age" },
    { name: "session_id", title: "ID", as: "short" },
  ],
  worktree: [
    "path",
    "branch",
    "status",
    { name: "writer_status", title: "LOCK" },
    { name: "writer_session_id", title: "WRITER", as: "short" },
    { name: "worktree_id", title: "ID", as: "short" },
  ],
  task: [
    { name: "priority", title: "PRIO", as: "priority" },
    "title",
    "status",
    "stage",
    { name: "claim_session_id", title: "CLAIMED BY", as: "short" },
    { name: "updated_at", title: "CHANGED", as: "age" },
    { name: "task_id", title: "ID", as: "short" },
  ],
  board: ["name", { name: "created_at", title: "CREATED", as: "age" }, "board_id"],
  artifact: [
    "name",
    { name: "size", as: "bytes" },
    "status",
    { name: "links", title: "LINKED TO", as: "links" },
    { name: "created_at", title: "CREATED", as: "age" },
    { name: "artifact_id", title: "ID", as: "short" },
  ],
};

/** What the nouns are about, for help. */
const docs: Readonly<Record<string, string>> = {
  workspace: "Workspaces: the places where projects live.",
  project: "Projects: the repositories and folders of a workspace.",
  session: "Sessions: runs of agents, people and CI jobs, as a tree.",
  worktree: "Worktrees: folders that many sessions see and one writes to.",
  task: "Tasks: work that is claimed, done once, and tried again.",
  board: "Boards: lanes of cards, each for a task, a session or another thing.",
  artifact: "Artifacts: files by their content, and what they belong to.",
};

/** Command lines that say more than the flags do. */
const examples: Readonly<Record<string, readonly string[]>> = {
  "session.spawn": [
    "mp session spawn --workspace demo --agent coder --agent-model large --title 'fix the build'",
  ],
  "session.report_status": ["mp session report-status SESSION waiting --waiting-for approval"],
  "session.end": ["mp session end SESSION completed --summary 'all tests pass'"],
  "session.fork": ["mp session fork SESSION new_worktree --title 'another way'"],
  "worktree.attach": ["mp worktree attach ../core-fix write --session SESSION"],
  "worktree.steal_writer": [
    "mp worktree steal-writer ../core-fix 'its machine is gone' --session SESSION --expected-epoch 3",
  ],
  "task.create": [
    "mp task create 'write the parser' --project core --priority 1",
    "mp task create 'test the parser' --project core --depends-on 5f0a11c2 --not-before 30m",
  ],
  "task.complete": [`mp task complete TASK --epoch 1 --result '{"commit":"4bf92f3"}'`],
  "task.fail": ["mp task fail TASK --epoch 1 --class build --message 'it does not compile'"],
  "task.block": ["mp task block TASK approval --reason 'touches the schema'"],
  "task.add_dependency": ["mp task add-dependency TASK THE_TASK_IT_WAITS_FOR"],
  "board.create": ["mp board create sprint --workspace demo --lane todo --lane doing:doing:3 --lane done"],
  "board.update_lanes": [
    "mp board update-lanes sprint --lane todo --lane doing:doing:5 --lane review --lane done",
    "mp board update-lanes sprint --lane todo=backlog --lane doing --lane done    renames a lane",
  ],
  "board.add_node": [
    "mp board add-node sprint todo task --ref TASK",
    "mp board add-node sprint todo comment --text 'only small things'",
  ],
  "board.move_node": ["mp board move-node sprint TASK doing --before OTHER_TASK"],
};

/**
 * Every aggregate as a noun, its commands and queries as verbs.
 * @param from what there is; this program's when absent
 */
export function domainNouns(from: Surface = surface()): Readonly<Record<string, Noun>> {
  return Object.fromEntries(from.aggregates.map(({ kind }) => [kind, nounOf(from, kind)]));
}

/** A verb is made when it is asked for: most runs need one. */
function nounOf(from: Surface, kind: string): Noun {
  const verbs = {};
  const add = (type: string, make: () => Verb) =>
    Object.defineProperty(verbs, verbOf(type), { enumerable: true, get: make });
  for (const type of from.commands.keys())
    if (kindOf(type) === kind) add(type, () => commandVerb(type, {}, from));
  for (const type of from.queries.keys())
    if (kindOf(type) === kind) add(type, () => queryVerb(type, {}, from));
  return { doc: docs[kind] ?? `Whatever is about a ${kind}.`, verbs };
}

const kindOf = (type: string) => type.slice(0, type.indexOf("."));
const verbOf = (type: string) => kebab(type.slice(type.indexOf(".") + 1));

/** What a verb of an aggregate does otherwise than all the others. */
export interface More<T> {
  readonly doc?: string;
  /** Flags besides those of the payload. */
  readonly args?: Args;
  /** What help says before what a pipe gets. */
  readonly notes?: readonly string[];
  /** What a pipe gets, where that is not the usual. */
  readonly pipe?: string;
  readonly examples?: readonly string[];
  /** What does not go together, or cannot be meant: said here, in the words of the command line. */
  readonly misfit?: (values: Values, wanted: Wanted) => Problem | undefined;
  /** What happens once the daemon has answered, instead of the usual. */
  readonly show?: (answer: T, context: Answered) => Promise<Ending>;
}

/** What a command of an aggregate does otherwise. */
export interface MoreOfCommand extends More<Sent> {
  /** How it is sent, where once may not do; an exit code when a signal ended it. */
  readonly send?: (payload: Values, context: Answered) => Promise<Sent | Problem | number>;
}

/** What a query of an aggregate does otherwise. */
export interface MoreOfQuery extends More<object> {
  /** Make of the flags what those of the payload want to know. */
  readonly given?: (link: Link, values: Values) => Promise<Values | Problem>;
  /** One thing as a terminal shows it. */
  readonly draw?: (whole: Values, context: Answered) => Promise<string | Problem>;
  /** What `--json` prints where a flag that is no parameter narrows the answer. */
  readonly document?: (answer: Page, values: Values) => object;
  /** What a terminal shows of the rows of a list, and says below them of those that it does not show. */
  readonly rows?: (items: readonly Values[], context: Answered) => Promise<Rows | Problem>;
}

/** Rows for a terminal. */
export interface Rows {
  readonly items: readonly Values[];
  /** A line below the table. */
  readonly below?: string | undefined;
}

/** What a verb knows when the daemon has answered. */
export interface Answered {
  readonly values: Values;
  readonly link: Link;
  readonly out: Output;
  readonly wanted: Wanted;
}

/**
 * The verb of a command.
 * @param type such as `task.claim`
 */
export function commandVerb(type: string, more: MoreOfCommand = {}, from: Surface = surface()): Verb {
  const { spec } = from.commands.get(type)!;
  const wanted = wantedBy(from, type);
  const results = resultsOf(from, type).filter((name) => name !== `${kindOf(type)}_id`);
  return verb(
    more.doc ?? spec.doc,
    { ...wanted.args, ...more.args, ...changing, ...asking },
    async (values, { out }): Promise<Ending> => {
      const wrong = more.misfit?.(values, wanted);
      if (wrong) return wrong;
      const link = daemonLink(values);
      const payload = await wanted.fill(link, values, out.env);
      if (isProblem(payload)) return payload;
      const context = { values, link, out, wanted };
      const receipt = await (more.send ? more.send(payload, context) : link.send(type, payload));
      if (typeof receipt === "number" || isProblem(receipt)) return receipt;
      return more.show ? more.show(receipt, context) : tell(receipt, context, from);
    },
    {
      pointers: wanted.pointers,
      notes: [
        ...(more.notes ?? []),
        more.pipe ?? `A pipe gets TSV: ${[`${kindOf(type)}_id`, ...results].join(", ")}.`,
      ],
      examples: more.examples ?? examples[type] ?? [],
    },
  );
}

/**
 * Say what came of a command.
 * @param where behind what was done, for instance `to doing`
 */
export async function tell(
  receipt: Sent,
  { values, out, wanted }: Answered,
  from: Surface = surface(),
  where = "",
): Promise<Ending> {
  const { subject, result } = receipt;
  const results = resultsOf(from, receipt.type).filter((name) => name !== `${subject.kind}_id`);
  if (out.asJson) await out.json(receipt);
  else
    await out.said(await sentence(receipt, results, nameIn(wanted.fields, values), where, out), [
      subject.id,
      ...results.map((name) => result[name]),
    ]);
  return undefined;
}

/** What a person calls the subject: its new name, or how it was named on the command line. */
function nameIn(fields: readonly Field[], values: Values): string | undefined {
  const told =
    fields.find(({ field, within }) => within === undefined && (field === "name" || field === "title")) ??
    fields.find(({ arg }) => arg.type === "positional");
  const text = told && values[told.name];
  return typeof text === "string" ? text : undefined;
}

/** `created workspace demo (0198…)`: the verbs are those of the events, for that is what has happened. */
async function sentence(
  { type, subject, events, result, replayed }: Sent,
  results: readonly string[],
  name: string | undefined,
  where: string,
  out: Output,
): Promise<string> {
  const { shown, visible } = out.terminal ? await import("./terminal.ts") : { shown: plain, visible: plain };
  const { kind, id } = subject;
  const own = events.filter(({ event_type }) => kindOf(event_type) === kind);
  const done = [...new Set(own.map(({ event_type }) => verbOf(event_type).replaceAll("-", " ")))].join(", ");
  const what = name === undefined || name === id ? `${kind} ${id}` : `${kind} ${visible(name)} (${id})`;
  const renewed = surface().commands.get(type)?.spec.renews;
  const what_happened =
    done === ""
      ? `${renewed ? "renewed:" : "nothing changed:"} ${what}`
      : done.includes(" ")
        ? `${what}: ${[done, where].filter(Boolean).join(" ")}`
        : `${done} ${what}`;
  const told = results
    .filter((member) => result[member] !== undefined)
    .map((member) => `, ${member.replaceAll("_", " ")} ${shown(result[member])}`);
  return `${what_happened}${told.join("")}${replayed ? "; it was done before, under this key" : ""}`;
}

/** Rows asked for at a time when all of a list are wanted. */
const PAGE = 1_000;

/**
 * The verb of a query.
 * @param type such as `task.list`
 */
export function queryVerb(type: string, more: MoreOfQuery = {}, from: Surface = surface()): Verb {
  const { spec, params } = from.queries.get(type)!;
  const paged = "cursor" in (params.properties ?? {});
  const wanted = wantedBy(from, type);
  const shape = shapeOf(type, spec.answer);
  return verb(
    more.doc ?? spec.doc,
    { ...wanted.args, ...more.args, ...asking },
    async (values, { out }): Promise<Ending> => {
      const wrong = more.misfit?.(values, wanted);
      if (wrong) return wrong;
      const link = daemonLink(values);
      const meant = more.given ? await more.given(link, values) : {};
      if (isProblem(meant)) return meant;
      const given = await wanted.fill(link, { ...values, ...meant }, out.env);
      if (isProblem(given)) return given;
      const answer = paged ? await allPages(link, type, given) : await link.ask(type, given);
      if (isProblem(answer)) return answer;
      const context = { values, link, out, wanted };
      if (out.asJson) await out.json(more.document ? more.document(answer as Page, values) : answer);
      else if (more.show) return more.show(answer, context);
      else if (paged) {
        const page = answer as Page;
        const rows = more.rows && out.terminal ? await more.rows(page.items, context) : page;
        if (isProblem(rows)) return rows;
        await showPage({ ...page, ...rows }, shape, out);
      } else {
        const whole = withoutPosition(answer);
        if (out.terminal && more.draw) {
          const drawn = await more.draw(whole, context);
          if (isProblem(drawn)) return drawn;
          await out.print(drawn);
        } else await out.record(whole, out.terminal ? await forReading(kindOf(type), whole) : whole);
      }
      return undefined;
    },
    {
      pointers: wanted.pointers,
      notes: [
        ...(more.notes ?? []),
        more.pipe ??
          (paged
            ? `A pipe gets TSV without a header: ${shape.columns.map(({ name }) => name).join(", ")}.`
            : "A pipe gets a name and a value per line."),
      ],
      examples: more.examples ?? examples[type] ?? [],
    },
  );
}

/** A page, or several of them put together. */
export interface Page {
  readonly as_of_seq: number;
  readonly items: readonly Values[];
  readonly next: string | null;
}

/**
 * As many rows as are wanted, all where no limit is given. `as_of_seq` is the first page's, so whoever subscribes from it
 * misses nothing.
 */
async function allPages(link: Link, type: string, { limit, ...params }: Values): Promise<Page | Problem> {
  const most = typeof limit === "number" ? limit : Number.POSITIVE_INFINITY;
  const items: Values[] = [];
  let first: Page | undefined;
  for (let cursor = params.cursor; ; ) {
    // A limit that no page can have (0) is the daemon's to refuse.
    const asked = {
      ...params,
      limit: Math.min(PAGE, most - items.length),
      ...(cursor !== undefined && { cursor }),
    };
    const answer = await link.ask(type, asked);
    if (isProblem(answer)) return answer;
    const page = answer as Page;
    first ??= page;
    items.push(...page.items);
    if (page.next === null || items.length >= most) return { ...first, items, next: page.next };
    cursor = page.next;
  }
}

/** Print the rows of a list. */
async function showPage({ items, next, below }: Page & Rows, shape: Shape, out: Output): Promise<void> {
  await out.table(items, shape);
  await sayBelow(below, out);
  if (next !== null) await note(`there are more: --cursor ${next}`);
}

/** Say something about a list at a terminal, in the background: on stderr, for it is no row. */
export async function sayBelow(text: string | undefined, out: Output): Promise<void> {
  if (text === undefined || !out.terminal) return;
  const { paint } = await import("./terminal.ts");
  await note(paint(out.colour && (await isTerminal(2))).dim(text));
}

/**
 * How the rows of a list look.
 * @param type of the query
 * @param answer the schema of what it answers
 */
function shapeOf(type: string, answer: Plain): Shape {
  const kind = kindOf(type);
  const all = Object.keys(answer.properties?.items?.items?.properties ?? {});
  const asColumn = (name: string | Column): Column =>
    typeof name !== "string" ? name : name === `${kind}_id` ? { name, title: "ID", as: "short" } : { name };
  return {
    columns: all.map(asColumn),
    shown: (columns[kind] ?? bestOf(kind, all)).map(asColumn),
    empty: `no ${kind} matches`,
  };
}

/** Name or title first, the own id last, between them what is neither an id nor bookkeeping. */
function bestOf(kind: string, all: readonly string[]): string[] {
  const first: string[] = all.filter((name) => name === "name" || name === "title");
  const last = all.filter((name) => name === `${kind}_id`);
  return [
    ...first,
    ...all.filter((name) => !first.includes(name) && !/(_id|_at)$|^version$/.test(name)),
    ...last,
  ];
}

/**
 * One thing as a person reads it: what it is called and how it is, its id, what else there is, then what it lies in, and when.
 * What is not there is left out.
 * @param kind of the thing
 */
export async function forReading(kind: string, row: Values): Promise<Values> {
  const { readable } = await import("./terminal.ts");
  const isThere = (value: unknown) => value !== null && !(Array.isArray(value) && value.length === 0);
  const place = (name: string) => {
    if (/^(title|name|path)$/.test(name)) return 0;
    if (name === "status") return 1;
    if (name === `${kind}_id`) return 2;
    return name.endsWith("_id") ? 4 : name.endsWith("_at") ? 5 : 3;
  };
  const members = Object.entries(row).filter(([name, value]) => name !== "version" && isThere(value));
  return readable(Object.fromEntries(members.toSorted(([a], [b]) => place(a) - place(b))));
}

/** One thing without the position of the log it was read at. */
export function withoutPosition(answer: object): Values {
  const { as_of_seq: _, ...rest } = answer as Record<string, unknown>;
  return rest;
}
