/** `mp errors` and `mp explain`: the one catalogue of problems (SPEC §3), for people. Needs no daemon. */
import { catalogue, type Problem, problem } from "../kernel/problems.ts";
import { type Ending, verb } from "./command.ts";

const CODES = ["code", "http", "exit", "retryable", "title", "hint"].map((name) => ({ name }));
const REASONS = ["reason", "is", "hint"].map((name) => ({ name }));

const codes = () =>
  Object.entries(catalogue).map(([code, { status, exit, retryable, title, hint }]) => ({
    code,
    http: status,
    exit,
    retryable,
    title,
    hint,
  }));

async function reasons() {
  const { surface } = await import("./surface.ts");
  return [...surface().reasons].map(([reason, { is, hint }]) => ({ reason, is, hint }));
}

export const errors = verb(
  "List the problems that a request can meet, with HTTP status and exit code.",
  { reasons: { type: "boolean", description: "list the reasons of 'conflict' instead" } },
  async (values, { out }): Promise<Ending> => {
    const items = values.reasons ? await reasons() : codes();
    if (out.asJson) await out.json({ items });
    else if (values.reasons) await out.table(items, { columns: REASONS, whole: true });
    else {
      const shown = CODES.filter(({ name }) => name !== "hint" && name !== "retryable");
      await out.table(items, { columns: CODES, shown, whole: true });
    }
    return undefined;
  },
  {
    notes: [
      `A pipe gets TSV without a header: ${CODES.map(({ name }) => name).join(", ")}; with --reasons: reason, is, hint.`,
      "More about one of them: mp explain CODE or mp explain REASON.",
    ],
  },
);

export const explain = verb(
  "Explain a problem's code, or the reason of a conflict.",
  {
    what: {
      type: "positional",
      required: true,
      valueHint: "CODE|REASON",
      description: "for instance not_found, or workspace.name_taken",
    },
  },
  async ({ what }, { out }): Promise<Ending> => {
    const known = await reasons();
    const { status, exit, title } = catalogue.conflict;
    const found =
      codes().find(({ code }) => code === what) ??
      known
        .filter(({ reason }) => reason === what)
        .map(({ reason, is, hint }) => ({
          reason,
          is,
          code: "conflict",
          http: status,
          exit,
          retryable: false,
          title,
          hint,
        }))[0];
    if (!found)
      return unknown(what, [...codes().map(({ code }) => code), ...known.map(({ reason }) => reason)]);
    if (out.asJson) await out.json(found);
    else await out.record(found);
    return undefined;
  },
  { examples: ["mp explain expected_version_mismatch", "mp explain project.name_taken"] },
);

async function unknown(what: string, known: readonly string[]): Promise<Problem> {
  const { nearest } = await import("../kernel/nearest.ts");
  const near = nearest(what, known);
  const list = "'mp errors' and 'mp errors --reasons' list them";
  return problem("not_found", `there is no code and no reason '${what}'`, {
    hint: near.length > 0 ? `did you mean ${near.join(" or ")}? ${list}` : list,
  });
}
