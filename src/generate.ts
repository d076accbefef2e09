/**
 * Writes `schemas/` from the registry, one file per type and version (SPEC §13); with `check` it only tells what differs.
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

/**
 * @param root the repository
 * @param check true: change nothing
 * @returns the files that differ from what the registry says, relative to root
 * @throws Error when a published event schema would change
 */
export async function generate(root: string, check: boolean): Promise<string[]> {
  const folder = join(root, "schemas");
  const wanted = new Map(
    [...allSchemas(buildRegistry(aggregates, system))].map(([name, schema]) => [
      `${name}.json`,
      `${JSON.stringify(schema, null, 2)}\n`,
    ]),
  );
  await mkdir(folder, { recursive: true });
  const present = (await readdir(folder)).filter((file) => file.endsWith(".json"));
  const drifted: string[] = [];
  for (const file of new Set([...present, ...wanted.keys()])) {
    const path = join(folder, file);
    const text = wanted.get(file);
    const found = present.includes(file) ? await Bun.file(path).text() : undefined;
    if (found === text) continue;
    if (found !== undefined && file.startsWith("event."))
      throw new Error(`schemas/${file} is published: make a new version with an upcaster instead`);
    drifted.push(join("schemas", file));
    if (check) continue;
    if (text === undefined) await rm(path);
    else await Bun.write(path, text);
  }
  return drifted.sort();
}
