/** Hints say how to go on: every command that one names is there, with the flags that it names. */
import { expect, test } from "bun:test";
import { argsOf } from "../../src/cli/command.ts";
import { nounNamed } from "../../src/cli/nouns.ts";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";

const { reasons } = buildRegistry(aggregates, system);

test("the hint of every reason names commands that there are", async () => {
  const named = [...reasons].flatMap(([reason, { hint }]) =>
    [...hint.matchAll(/\bmp (\w+) ([a-z][a-z-]*)([^:;,.']*)/g)].map(([, noun, verb, rest]) => ({
      reason,
      noun: noun!,
      verb: verb!,
      flags: [...rest!.matchAll(/--([a-z-]+)/g)].map(([, flag]) => flag!),
    })),
  );
  expect(named.length).toBeGreaterThan(20);
  const wrong: string[] = [];
  for (const { reason, noun, verb, flags } of named) {
    const found = (await nounNamed(noun))?.verbs[verb];
    const args = found && argsOf(found);
    if (!args) wrong.push(`${reason}: mp ${noun} ${verb}`);
    else for (const flag of flags) if (!args[flag]) wrong.push(`${reason}: mp ${noun} ${verb} --${flag}`);
  }
  expect(wrong).toEqual([]);
});
