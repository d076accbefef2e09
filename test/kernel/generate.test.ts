/** The generated files (SPEC §13): they are what the source makes, and a published event schema never changes. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { generate } from "../../src/generate.ts";

const repository = join(import.meta.dir, "../..");
const root = mkdtempSync(join(tmpdir(), "mp-schemas-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const file = (name: string) => join(root, "schemas", `${name}.json`);
const read = (name: string) => readFileSync(file(name), "utf8");
const contents = () =>
  Object.fromEntries(
    readdirSync(join(root, "schemas")).map((name) => [
      name,
      readFileSync(join(root, "schemas", name), "utf8"),
    ]),
  );

beforeEach(() => {
  rmSync(join(root, "schemas"), { recursive: true, force: true });
  for (const folder of ["schemas", "docs"])
    cpSync(join(repository, folder), join(root, folder), { recursive: true });
});

test("the committed files are what the source makes", async () => {
  expect(await generate(repository, true)).toEqual([]);
});

test("they can be made from nothing, byte for byte", async () => {
  const committed = contents();
  rmSync(join(root, "schemas"), { recursive: true });
  expect(await generate(root, false)).toEqual(
    Object.keys(committed)
      .sort()
      .map((name) => join("schemas", name)),
  );
  expect(contents()).toEqual(committed);
});

describe("a drift of a command, a query or an answer", () => {
  const [changed, extra, lost] = ["command.workspace.create.v1", "query.made.up.v1", "answer.daemon.ping.v1"];
  beforeEach(() => {
    writeFileSync(file(changed), read(changed).replace("128", "64"));
    writeFileSync(file(extra), "{}\n");
    rmSync(file(lost));
  });
  const drifted = [lost, changed, extra].map((name) => join("schemas", `${name}.json`));

  test("is told by the check, which changes nothing", async () => {
    const before = contents();
    expect(await generate(root, true)).toEqual(drifted);
    expect(contents()).toEqual(before);
  });

  test("is mended by writing", async () => {
    expect(await generate(root, false)).toEqual(drifted);
    expect(await generate(root, true)).toEqual([]);
  });
});

describe("a published event schema that would change", () => {
  const refusal = /schemas\/event\.\S+\.json is published: make a new version with an upcaster instead/;

  test.each([
    [
      "another shape",
      () =>
        writeFileSync(
          file("event.workspace.created.v1"),
          read("event.workspace.created.v1").replace("128", "64"),
        ),
    ],
    [
      "another byte",
      () => writeFileSync(file("event.workspace.created.v1"), `${read("event.workspace.created.v1")}\n`),
    ],
    [
      "a version that is gone from the source",
      () => writeFileSync(file("event.workspace.created.v0"), read("event.workspace.created.v1")),
    ],
    ["an event that is gone from the source", () => writeFileSync(file("event.robot.built.v1"), "{}\n")],
  ])("%s: it is refused, by the check and by writing", async (_, change) => {
    change();
    // Another drift, so that there is something to write before the refusal.
    rmSync(file("answer.daemon.ping.v1"));
    writeFileSync(file("query.made.up.v1"), "{}\n");
    const before = contents();
    await expect(generate(root, true)).rejects.toThrow(refusal);
    await expect(generate(root, false)).rejects.toThrow(refusal);
    expect(contents()).toEqual(before);
  });
});
