/**
 * Everything that can follow `mp`, by name (SPEC §12). The modules are imported when they are needed: a trivial command
 * pays for its own only. A noun that is not named here is an aggregate of the registry (domain.ts).
 */
import type { Noun, Verb } from "./command.ts";

interface Lazy<T> {
  readonly doc: string;
  readonly load: () => Promise<T>;
}

/** The nouns that are not aggregates. */
export const nouns: Readonly<Record<string, Lazy<Noun>>> = {
  daemon: {
    doc: "Start, stop and look after the daemon.",
    load: async () => (await import("./daemon.ts")).daemon,
  },
  events: { doc: "Follow and read the log.", load: async () => (await import("./events.ts")).events },
  projection: {
    doc: "List, rebuild and verify the read models.",
    load: async () => (await import("./projection.ts")).projection,
  },
  log: {
    doc: "Check that nothing in the log has been changed.",
    load: async () => (await import("./log.ts")).log,
  },
  schema: {
    doc: "Show the JSON Schemas of everything on the wire.",
    load: async () => (await import("./schema.ts")).schema,
  },
};

/** The verbs that need no noun. */
export const verbs: Readonly<Record<string, Lazy<Verb>>> = {
  errors: {
    doc: "List the problems that a request can meet.",
    load: async () => (await import("./catalogue.ts")).errors,
  },
  explain: {
    doc: "Explain a problem's code or reason.",
    load: async () => (await import("./catalogue.ts")).explain,
  },
  version: {
    doc: "Show the version of this program.",
    load: async () => (await import("./version.ts")).version,
  },
};

/** What an aggregate's noun has beyond, or otherwise than, its registry's verbs (domain.ts). */
const further: Readonly<Record<string, () => Promise<Readonly<Record<string, Verb>>>>> = {
  session: async () => {
    const [{ sessionVerbs }, { run }] = await Promise.all([import("./session.ts"), import("./run.ts")]);
    return Object.defineProperties({ run }, Object.getOwnPropertyDescriptors(sessionVerbs()));
  },
  worktree: async () => (await import("./worktree.ts")).worktreeVerbs(),
  task: async () => (await import("./task.ts")).taskVerbs(),
  board: async () => (await import("./board.ts")).boardVerbs(),
  artifact: async () => (await import("./artifact.ts")).artifactVerbs(),
};

/** A noun by name, also an aggregate; undefined when there is none. */
export async function nounNamed(name: string): Promise<Noun | undefined> {
  if (Object.hasOwn(nouns, name)) return nouns[name]!.load();
  const { domainNouns } = await import("./domain.ts");
  const all = domainNouns();
  if (!Object.hasOwn(all, name)) return undefined;
  const derived = all[name]!;
  const own = Object.hasOwn(further, name) ? await further[name]!() : {};
  // Verbs are made when they are looked at, so their getters move, not they.
  const verbs = Object.defineProperties(
    {},
    {
      ...Object.getOwnPropertyDescriptors(derived.verbs),
      ...Object.getOwnPropertyDescriptors(own),
    },
  ) as Noun["verbs"];
  return { doc: derived.doc, verbs };
}

/** The name and sentence of every noun: aggregates after the daemon, the rest behind them. */
export async function allNouns(): Promise<readonly { readonly name: string; readonly doc: string }[]> {
  const { domainNouns } = await import("./domain.ts");
  const own = Object.entries(nouns).map(([name, { doc }]) => ({ name, doc }));
  const aggregates = Object.entries(domainNouns()).map(([name, { doc }]) => ({ name, doc }));
  return [...own.slice(0, 1), ...aggregates, ...own.slice(1)];
}
