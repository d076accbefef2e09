/** What an aggregate looks like on the command line by the rules alone; and that every one of the registry has them all. */
import { describe, expect, test } from "bun:test";
import { Type } from "typebox";
import { argsOf } from "../../src/cli/command.ts";
import { domainNouns } from "../../src/cli/domain.ts";
import { fieldsOf } from "../../src/cli/fields.ts";
import { allNouns, nounNamed } from "../../src/cli/nouns.ts";
import { labelOf } from "../../src/cli/parse.ts";
import type { Plain } from "../../src/cli/surface.ts";
import { aggregates } from "../../src/domain/index.ts";
import { aggregate, command, query } from "../../src/kernel/aggregate.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { Id, Name, nullable, object, oneOf, Path, pageOf, Seq, Time } from "../../src/kernel/schema.ts";
import { system } from "../../src/kernel/system.ts";

const row = object({
  job_id: Id,
  project_id: Id,
  title: Name,
  stage: nullable(Type.String()),
  created_at: Time,
});
const nothing = () => [];

const job = aggregate("job", { status: "absent" })({
  commands: {
    create: command(
      {
        project_id: Id,
        title: Name,
        priority: Type.Integer({ minimum: 0, maximum: 4 }),
        parent_job_id: Type.Optional(Id),
        depends_on: Type.Optional(Type.Array(Id)),
        deadline_at: Type.Optional(Time),
      },
      "Create a job.",
      { creates: true },
    ),
    complete: command(
      { epoch: Seq, job_id: Id, result: Type.Optional(Type.Record(Type.String(), Type.Unknown())) },
      "Complete a job.",
      { result: object({ attempt: Seq }) },
    ),
    lock_writer: command(
      {
        job_id: Id,
        mode: oneOf("read", "write"),
        ttl_ms: Type.Optional(Seq),
        steal: Type.Optional(Type.Boolean()),
      },
      "Lock.",
    ),
    place: command({ job_id: Id, path: Path, timeout: Type.Optional(Seq) }, "Place."),
    spawn: command(
      { agent: object({ name: Name, version: Type.Optional(Name), steps: Type.Optional(Seq) }), job_id: Id },
      "Structures.",
    ),
    fail: command(
      { job_id: Id, failure: object({ class: Name, message: Type.String() }), code: Seq },
      "Structures whose members speak for themselves.",
    ),
    claim: command(
      {
        job_id: Type.Optional(Id),
        session_id: Id,
        filter: Type.Optional(object({ project_id: Type.Optional(Id), stage: Type.Optional(Name) })),
      },
      "By id or by filter.",
    ),
    follow: command({ job_id: Id, depends_on_job_id: Id }, "Another of its kind."),
    nest: command({ job_id: Id, deep: object({ list: Type.Array(Seq) }) }, "What no flag can say."),
  },
  events: {},
  reasons: {},
  scope: () => ({}),
  decide: {
    create: nothing,
    complete: nothing,
    lock_writer: nothing,
    place: nothing,
    spawn: nothing,
    fail: nothing,
    claim: nothing,
    follow: nothing,
    nest: nothing,
  },
  choose: { claim: ({ job_id }) => job_id ?? "" },
  evolve: {},
  readModel: { version: 1, tables: {}, apply: {} },
  queries: {
    list: query(
      { project_id: Type.Optional(Id), stage: Type.Optional(Type.String()) },
      pageOf(row),
      "List.",
      () => ({}),
    ),
    get: query({ job_id: Id }, row, "Show.", () => ({})),
  },
});

const nouns = domainNouns(buildRegistry([...aggregates, job], system));

/** `NAME --flag …` as help shows it, required ones with a star. */
function usage(noun: string, verb: string): string[] {
  return Object.entries(argsOf(nouns[noun]!.verbs[verb]!))
    .filter(
      ([name]) =>
        !["json", "help", "key", "expected-version", "no-spawn", "timeout", "trace-id"].includes(name),
    )
    .map(([name, arg]) => `${labelOf(name, arg)}${arg.required ? "*" : ""}`);
}

describe("arguments derive from the payload", () => {
  test("required texts are positional, what it lies in is a required flag, the rest are flags", () => {
    expect(usage("job", "create")).toEqual([
      "TITLE*",
      "--project*",
      "--priority*",
      "--parent-job",
      "--depends-on",
      "--deadline-at",
      "--workspace",
    ]);
  });

  test("its own subject comes first, also where the payload has it later", () => {
    expect(usage("job", "complete")).toEqual(["JOB*", "--epoch*", "--result"]);
  });

  test("underscores become dashes, choices become options, milliseconds may have units", () => {
    expect(usage("job", "lock-writer").slice(0, 4)).toEqual([
      "JOB*",
      "READ|WRITE*".toLowerCase(),
      "--ttl-ms",
      "--steal",
    ]);
    const { verbs } = nouns.job!;
    const args = argsOf(verbs["lock-writer"]!);
    expect(args.mode).toMatchObject({ options: ["read", "write"] });
    expect(args["ttl-ms"]).toMatchObject({ format: "milliseconds" });
    expect(args.steal).toMatchObject({ type: "boolean", negatable: true });
  });

  test("a structure of plain values is a flag for each; its name is the flag without more", () => {
    expect(usage("job", "spawn")).toEqual(["JOB*", "--agent*", "--agent-version", "--agent-steps"]);
    expect(argsOf(nouns.job!.verbs.spawn!)["agent-steps"]).toMatchObject({ format: "count" });
  });

  test("members that speak for themselves need no prefix, but may have it", () => {
    expect(usage("job", "fail")).toEqual(["JOB*", "--class*", "--message*", "--code*"]);
    expect(argsOf(nouns.job!.verbs.fail!).class).toMatchObject({ alias: ["failure-class"] });
  });

  test("a subject that may be left out is a word that may be left out", () => {
    expect(usage("job", "claim")).toEqual(["JOB", "--session*", "--project", "--stage", "--workspace"]);
    expect(argsOf(nouns.job!.verbs.claim!).session).toMatchObject({ env: "MP_SESSION_ID" });
  });

  test("another of the own kind is the next word", () => {
    expect(usage("job", "follow")).toEqual(["JOB*", "DEPENDS_ON_JOB*"]);
  });

  test("what no flag can say is JSON", () => {
    expect(argsOf(nouns.job!.verbs.nest!).deep).toMatchObject({ format: "json", valueHint: "JSON" });
  });

  test("a field named like a general flag does not hide it", () => {
    expect(usage("job", "place").slice(0, 3)).toEqual(["JOB*", "PATH*", "--job-timeout"]);
  });

  test("lists take names where they can, and paging", () => {
    expect(usage("job", "list")).toEqual([
      "--project",
      "--stage",
      "--limit",
      "--cursor",
      "--min-seq",
      "--workspace",
    ]);
  });

  test("every reference also has the payload's own name, and the environment where it is required", () => {
    const args = argsOf(nouns.project!.verbs.create!);
    expect(args.workspace).toMatchObject({ required: true, alias: ["workspace-id"], env: "MP_WORKSPACE" });
  });
});

test("every command and query of every aggregate is a verb, and every field of it an argument", () => {
  const all = domainNouns();
  const registry = buildRegistry(aggregates, system);
  const { commands, queries } = registry;
  let seen = 0;
  for (const [type, payload] of [
    ...[...commands.values()].map((each) => [each.type, each.spec.payload] as const),
    ...[...queries.values()].map((each) => [each.type, each.params] as const),
  ]) {
    const [kind, name] = type.split(".") as [string, string];
    if (!Object.hasOwn(all, kind)) continue;
    const verb = all[kind]!.verbs[name.replaceAll("_", "-")];
    expect([type, verb !== undefined]).toEqual([type, true]);
    const args = argsOf(verb!);
    const fields = fieldsOf(registry, kind, payload);
    const covered = new Set(fields.map(({ field, within }) => within ?? field));
    expect([type, [...covered].toSorted()]).toEqual([type, Object.keys(payload.properties).toSorted()]);
    expect([type, new Set(fields.map((each) => each.name)).size]).toEqual([type, fields.length]);
    for (const { name: flag, arg } of fields) {
      expect([type, flag, args[flag]?.type]).toEqual([type, flag, arg.type]);
      expect([type, flag, (args[flag]?.description.length ?? 0) > 0]).toEqual([type, flag, true]);
    }
    seen += 1;
  }
  expect(seen).toBeGreaterThan(60);
});

/** The words of a sentence that say more than the name of the field does. */
function besides(name: string, sentence: string): string[] {
  const own = new Set([
    ...name.split(/[_-]/),
    "the",
    "its",
    "a",
    "an",
    "by",
    "name",
    "or",
    "id",
    "path",
    "json",
    "as",
  ]);
  return sentence
    .toLowerCase()
    .split(/[^a-z]+/)
    .filter((word) => word !== "" && !own.has(word));
}

test("every field of every command and query says in its schema what it is for", () => {
  const { commands, queries, socket } = buildRegistry(aggregates, system);
  const forms = [Id, Name, Path, Time].map((each) => (each as Plain).description!);
  const empty: string[] = [];
  const look = (at: string, { properties = {}, items }: Plain) => {
    if (items) look(at, items);
    for (const [name, given] of Object.entries(properties)) {
      const { description = "" } = given;
      const form = forms.find((each) => description.endsWith(each)) ?? "";
      const isNamed = given.type === "object" && given.properties !== undefined;
      if (!isNamed && besides(name, description.replace(form, "")).length < 2)
        empty.push(`${at}.${name}: ${description}`);
      look(`${at}.${name}`, given);
    }
  };
  for (const { type, spec } of commands.values()) look(type, spec.payload as Plain);
  for (const { type, params } of [...queries.values(), ...socket.values()]) look(type, params as Plain);
  expect(empty).toEqual([]);
});

test("no argument's description is merely its name", async () => {
  const empty: string[] = [];
  for (const { name: noun } of await allNouns())
    for (const [verb, declared] of Object.entries((await nounNamed(noun))!.verbs))
      for (const [name, { description }] of Object.entries(argsOf(declared)))
        if (besides(name, description).length < 2) empty.push(`mp ${noun} ${verb} ${name}: ${description}`);
  expect(empty).toEqual([]);
});
