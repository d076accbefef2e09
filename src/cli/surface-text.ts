/**
 * What surface.ts and fields.ts need of the registry and its schemas, as text. Macros: these functions run while the program
 * is being built (or, from source, transpiled), and what they return stands in their place. Nothing here is in the executable.
 */
import { aggregates } from "../domain/index.ts";
import { buildRegistry } from "../kernel/registry.ts";
import { Id, Name, Path, Time } from "../kernel/schema.ts";
import { system } from "../kernel/system.ts";

/** The surface: JSON for each command and query, by type. */
export function surfaceTexts() {
  const { commands, queries, reasons } = buildRegistry(aggregates, system);
  const texts = <E>(entries: ReadonlyMap<string, E>, said: (entry: E) => object): Record<string, string> =>
    Object.fromEntries([...entries].map(([type, entry]) => [type, JSON.stringify(said(entry))]));
  return {
    kinds: aggregates.map(({ kind }): string => kind),
    commands: texts(commands, ({ spec: { doc, payload, renews, result } }) => ({
      spec: { doc, payload, renews, result: namesOf(result) },
    })),
    queries: texts(queries, ({ spec: { doc, answer }, params }) => {
      const rows = namesOf((answer as Schema).properties?.items?.items ?? {});
      return { spec: { doc, answer: { properties: { items: { items: rows } } } }, params };
    }),
    reasons: JSON.stringify([...reasons]),
  };
}

/** The pattern that a name is known by. */
export function namePattern(): string {
  return (Name as Schema).pattern!;
}

/** The pattern that a point in time is known by. */
export function timePattern(): string {
  return (Time as Schema).pattern!;
}

/** What values look like on the wire that the command line takes in its own ways. */
export function wireForms(): string[] {
  return [Id, Name, Path, Time].map((each) => (each as Schema).description!);
}

interface Schema {
  readonly pattern?: string;
  readonly description?: string;
  readonly properties?: Readonly<Record<string, { readonly items?: Schema }>>;
}

/** An object's schema without anything but the names of its members. */
function namesOf({ properties = {} }: Schema): object {
  return { properties: Object.fromEntries(Object.keys(properties).map((name) => [name, {}])) };
}
