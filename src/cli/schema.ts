/** `mp schema`: list, get (SPEC §12, §13). A schema is JSON whoever reads it. */
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { asking, type Noun, verb } from "./command.ts";
import { daemonLink, type Link } from "./link.ts";

const COLUMNS = ["name", "kind", "version", "doc"].map((name) => ({ name }));
/** In the order in which a type without a kind is looked for. */
const KINDS: readonly string[] = ["command", "query", "event", "answer", "result"];

const list = verb(
  "List the schemas of commands, queries, events and answers.",
  {
    kind: {
      type: "string",
      options: KINDS,
      valueHint: "KIND",
      description: `only these: ${KINDS.join(", ")}`,
    },
    ...asking,
  },
  async (values, { out }) => {
    const answer = await daemonLink(values).query("schema.list", { limit: 10_000 });
    if (isProblem(answer)) return answer;
    const items = answer.items.filter(({ kind }) => values.kind === undefined || kind === values.kind);
    if (out.asJson) await out.json({ ...answer, items });
    else
      await out.table(items, {
        columns: COLUMNS,
        shown: COLUMNS.filter(({ name }) => name === "name" || name === "doc"),
      });
    return undefined;
  },
  { notes: [`A pipe gets TSV without a header: ${COLUMNS.map(({ name }) => name).join(", ")}.`] },
);

const get = verb(
  "Print a JSON Schema.",
  {
    name: {
      type: "positional",
      required: true,
      valueHint: "NAME",
      description: "its name, for instance command.project.create.v1, or just project.create",
    },
    ...asking,
  },
  async (values, { out }) => {
    const link = daemonLink(values);
    const name = await wholeName(link, values.name);
    if (isProblem(name)) return name;
    const answer = await link.query("schema.get", { name });
    if (isProblem(answer)) return answer;
    await out.json(answer.schema);
    return undefined;
  },
  {
    pointers: { "/payload/name": "NAME" },
    examples: ["mp schema get project.create", "mp schema get event.project.created.v1"],
  },
);

/** The name as it is, or the newest schema of what a command, query or event of that type takes. */
async function wholeName(link: Link, name: string): Promise<string | Problem> {
  if (/\.v\d+$/.test(name) && KINDS.some((kind) => name.startsWith(`${kind}.`))) return name;
  const answer = await link.query("schema.list", { limit: 10_000 });
  if (isProblem(answer)) return answer;
  const named = answer.items
    .filter((each) =>
      [`${each.kind}.${name}.v${each.version}`, `${name}.v${each.version}`].includes(each.name),
    )
    .sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind) || b.version - a.version);
  if (named[0]) return named[0].name;
  const { nearest } = await import("../kernel/nearest.ts");
  const types = answer.items.map((each) => each.name.slice(each.kind.length + 1).replace(/\.v\d+$/, ""));
  const near = nearest(name, new Set(types));
  const help = "list them with 'mp schema list'";
  return problem("not_found", `there is no schema for '${name}'`, {
    hint: near.length > 0 ? `did you mean ${near.join(" or ")}? ${help}` : help,
  });
}

export const schema: Noun = {
  doc: "Schemas: the JSON Schema of everything on the wire.",
  verbs: { list, get },
};
