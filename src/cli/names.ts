/**
 * Names where ids are wanted (SPEC §12).
 *
 * A name is looked up with the `list` query of its kind, so any aggregate that can be listed by name has this. A name
 * that stands for several things is refused with all of them; the CLI never picks one.
 */
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Link } from "./link.ts";
import { usage } from "./parse.ts";

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
/** Candidates that a refusal lists. */
const MOST = 10;

/**
 * The id that a text stands for.
 * @param kind of the thing, for instance `workspace`
 * @param text its id, or its name
 * @param within parameters that narrow the search, for instance `{workspace_id}`
 * @returns the id; `not_found`, or `invalid_schema` with the candidates when several have that name
 */
export async function idOf(
  link: Link,
  kind: string,
  text: string,
  within: Readonly<Record<string, unknown>> = {},
): Promise<string | Problem> {
  const id = idLike(text);
  if (ID.test(id)) return id;
  const answer = await link.ask(`${kind}.list`, { ...within, name: text, limit: MOST + 1 });
  if (isProblem(answer))
    return answer.code === "invalid_schema"
      ? usage(`'${text}' is neither the id nor the name of a ${kind}`, ID_HINT)
      : answer;
  const { items } = answer as { items: readonly Record<string, unknown>[] };
  const [only] = items;
  if (items.length === 1 && only) return String(only[`${kind}_id`]);
  if (items.length === 0)
    return problem("not_found", `there is no ${kind} named '${text}'`, {
      hint: `list them with 'mp ${kind} list'`,
      details: { kind, name: text },
    });
  const candidates = items
    .slice(0, MOST)
    .map((item) => ({ id: item[`${kind}_id`], ...parentOf(item, kind) }));
  const told = candidates.map((each) =>
    Object.entries(each)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
  );
  return problem("invalid_schema", `more than one ${kind} is named '${text}'`, {
    hint: `give its id, or say where it is:\n    ${told.join("\n    ")}${items.length > MOST ? "\n    …" : ""}`,
    details: { kind, name: text, candidates },
  });
}

/** What looks like an id in lower case, as ids are compared; some programs write them in capitals. */
export function idLike(text: string): string {
  const id = text.toLowerCase();
  return ID.test(id) ? id : text;
}

const ID_HINT = "an id is a UUIDv7; a name has 1–128 characters and no control characters";

/** What tells one candidate from another: the ids of what it is in. */
function parentOf(item: Readonly<Record<string, unknown>>, kind: string) {
  return Object.fromEntries(
    Object.entries(item).filter(
      ([name, value]) => /_id$/.test(name) && name !== `${kind}_id` && value !== null,
    ),
  );
}
