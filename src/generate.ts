/**
 * Writes `schemas/`, one file per type and version (SPEC §13), and `docs/reference.md` from the registry; with `check` it
 * only tells what differs.
 *
 * A published event schema never changes: a file of an event version that would get other bytes is an error even
 * when writing, because the way on is a new version with an upcaster.
 */
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { aggregates } from "./domain/index.ts";
import { buildRegistry } from "./kernel/registry.ts";
import { allSchemas } from "./kernel/schemas.ts";
import { system } from "./kernel/system.ts";
import { reference } from "./reference.ts";

/**
 * @param root the repository
 * @param check true: change nothing
 * @returns the files that differ from what the registry says, relative to root
 * @throws Error when a published event schema would change
 */
export async function generate(root: string, check: boolean): Promise<string[]> {
  const registry = buildRegistry(aggregates, system);
  const wanted = new Map(
    [...allSchemas(registry)].map(([name, schema]) => [
      join("schemas", `${name}.json`),
      `${JSON.stringify(schema, null, 2)}\n`,
    ]),
  );
  wanted.set(join("docs", "reference.md"), reference(registry));
  await mkdir(join(root, "schemas"), { recursive: true });
  const present = (await readdir(join(root, "schemas")))
    .filter((file) => file.endsWith(".json"))
    .map((file) => join("schemas", file));
  const drifted = new Map<string, string | undefined>();
  for (const path of new Set([...present, ...wanted.keys()])) {
    const file = Bun.file(join(root, path));
    const text = wanted.get(path);
    const found = (await file.exists()) ? await file.text() : undefined;
    if (found === text) continue;
    if (found !== undefined && /^schemas.(event|envelope)\./.test(path))
      throw new Error(`${path} is published: make a new version with an upcaster instead`);
    drifted.set(path, text);
  }
  // Only now: a run that ends with an error has changed nothing.
  if (!check)
    for (const [path, text] of drifted)
      await (text === undefined ? rm(join(root, path)) : Bun.write(join(root, path), text));
  return [...drifted.keys()].sort();
}
