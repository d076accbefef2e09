/**
 * `mp projection`: list, rebuild, verify (SPEC §6, §12).
 *
 * The daemon rebuilds in the background whether anyone waits or not; `rebuild` waits by looking at the list.
 */
import type { Ask } from "../client/types.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { asking, changing, type Noun, verb } from "./command.ts";
import { daemonLink, type Link } from "./link.ts";
import type { Output } from "./output.ts";
import { progress } from "./progress.ts";

const LOOK_MS = 100;

type Listed = Ask<"projection.list">["items"];

const LIST = ["name", "status", "as_of_seq", "rebuilt_to_seq", "generation", "error"].map((name) => ({
  name,
}));

const list = verb(
  "List the projections and where each stands.",
  asking,
  async (values, { out }) => {
    const answer = await daemonLink(values).query("projection.list", {});
    if (isProblem(answer)) return answer;
    if (out.asJson) await out.json(answer);
    else await showList(answer.items, out);
    return undefined;
  },
  { notes: [`A pipe gets TSV without a header: ${LIST.map(({ name }) => name).join(", ")}.`] },
);

async function showList(items: Listed, out: Output): Promise<void> {
  const failed = items.some(({ error }) => error !== null);
  const shown = LIST.filter(({ name }) => name !== "generation" && (failed || name !== "error"));
  await out.table(items, { columns: LIST, shown });
}

const rebuild = verb(
  "Rebuild one projection, or all, from the log; readers and writers go on meanwhile.",
  {
    name: { type: "positional", valueHint: "NAME", description: "the projection (all)" },
    "no-wait": { type: "boolean", description: "return once the rebuild has begun" },
    ...changing,
    ...asking,
  },
  async (values, { out }) => {
    const { name, timeout } = values;
    const from = performance.now();
    const link = daemonLink(values);
    const receipt = await link.execute("projection.rebuild", name === undefined ? {} : { name });
    if (isProblem(receipt)) return receipt;
    const { projections } = receipt.result as { readonly projections: readonly string[] };
    // A receipt of before says nothing about now: nothing was begun, so there is nothing to wait for.
    const waits = !values["no-wait"] && !receipt.replayed;
    if (waits) {
      const rebuilt = await waitFor(link, projections, from + (timeout ?? Number.POSITIVE_INFINITY));
      if (isProblem(rebuilt)) return rebuilt;
      const stopped = rebuilt.find(({ status }) => status === "stopped");
      if (stopped)
        return problem("read_only", `the projection ${stopped.name} has stopped: ${stopped.error}`, {
          hint: "what is served is as it was; use an mp that can apply that event, then rebuild again",
          details: { projection: stopped.name },
        });
    }
    const done = receipt.replayed ? "already-carried-out" : waits ? "rebuilt" : "rebuilding";
    if (out.asJson) await out.json(receipt);
    else if (!out.terminal) await out.print(projections.map((each) => `${each}\t${done}\n`).join(""));
    else if (receipt.replayed)
      await out.said("already carried out under this key: nothing was rebuilt now", []);
    else await out.said(`${done} ${projections.join(", ")}`, []);
    return undefined;
  },
  {
    pointers: { "/payload/name": "NAME" },
    notes: ["A pipe gets TSV: name, rebuilt|rebuilding|already-carried-out (a --key that was used before)."],
  },
);

/**
 * Wait until none of these is being rebuilt. Call when the daemon's list says that they are.
 * @param deadline on the clock of `performance.now()`
 */
async function waitFor(link: Link, names: readonly string[], deadline: number): Promise<Listed | Problem> {
  const told = await progress("projection.rebuild");
  for (;;) {
    const answer = await link.query("projection.list", {});
    const late = performance.now() > deadline;
    if (isProblem(answer) || late) {
      await told.end(false);
      return isProblem(answer) ? answer : LATE;
    }
    const wanted = answer.items.filter(({ name }) => names.includes(name));
    const under = wanted.filter(({ status }) => status === "rebuilding");
    const of = names.length * answer.as_of_seq;
    const left = under.reduce((sum, each) => sum + answer.as_of_seq - (each.rebuilt_to_seq ?? 0), 0);
    await told.report(of - left, of);
    if (under.length === 0) {
      await told.end(true);
      return wanted;
    }
    await Bun.sleep(LOOK_MS);
  }
}

const LATE = problem(
  "timeout",
  "the rebuild takes longer than --timeout allows; the daemon goes on with it",
  {
    hint: "see 'mp projection list', or allow more time with --timeout",
  },
);

const VERIFY = ["name", "ok", "as_of_seq", "digest", "rebuilt_digest", "error"].map((name) => ({ name }));

const verify = verb(
  "Rebuild all read models into a scratch database and compare digests with the serving ones.",
  asking,
  async (values, { out }) => {
    const { longQuery } = await import("./jobs.ts");
    const answer = await longQuery("projection.verify", values);
    if (isProblem(answer)) return answer;
    if (out.asJson) await out.json(answer);
    else {
      const shown = answer.ok
        ? VERIFY.filter(({ name }) => name !== "rebuilt_digest" && name !== "error")
        : VERIFY;
      await out.table(answer.items, { columns: VERIFY, shown });
    }
    return answer.ok ? 0 : 1;
  },
  {
    notes: [
      "Exit code 0 when all digests agree, 1 when one differs or a projection has stopped.",
      `A pipe gets TSV without a header: ${VERIFY.map(({ name }) => name).join(", ")}.`,
    ],
  },
);

export const projection: Noun = {
  doc: "Projections: the read models that are made from the log.",
  verbs: { list, rebuild, verify },
};
