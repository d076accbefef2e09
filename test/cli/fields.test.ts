/** What an aggregate that does not exist yet will look like on the command line (SPEC §8 `task`, `worktree`). */
import { describe, expect, test } from "bun:test";
import { Type } from "typebox";
import { argsOf } from "../../src/cli/command.ts";
import { domainNouns, registry } from "../../src/cli/domain.ts";
import { fieldsOf } from "../../src/cli/fields.ts";
import { labelOf } from "../../src/cli/parse.ts";
import { aggregates } from "../../src/domain/index.ts";
import { aggregate, command, query } from "../../src/kernel/aggregate.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { Id, Name, nullable, object, oneOf, Path, pageOf, Seq, Time } from "../../src/kernel/schema.ts";
import { system } from "../../src/kernel/system.ts";

const row = object({
  task_id: Id,
  project_id: Id,
  title: Name,
  stage: nullable(Type.String()),
  created_at: Time,
});
const nothing = () => [];

const task = aggregate("task", { status: "absent" })({
  commands: {
    create: command(
      {
        project_id: Id,
        title: Name,
        priority: Type.Integer({ minimum: 0, maximum: 4 }),
        parent_task_id: Type.Optional(Id),
        depends_on: Type.Optional(Type.Array(Id)),
        deadline_at: Type.Optional(Time),
      },
      "Create a task.",
      { creates: true },
    ),
    complete: command(
      { epoch: Seq, task_id: Id, result: Type.Optional(Type.Record(Type.String(), Type.Unknown())) },
      "Complete a task.",
      { result: object({ attempt: Seq }) },
    ),
    lock_writer: command(
      {
        task_id: Id,
        mode: oneOf("read", "write"),
        ttl_ms: Type.Optional(Seq),
        steal: Type.Optional(Type.Boolean()),
      },
      "Lock.",
    ),
    place: command({ task_id: Id, path: Path, timeout: Type.Optional(Seq) }, "Place."),
  },
  events: {},
  reasons: {},
  scope: () => ({}),
  decide: { create: nothing, complete: nothing, lock_writer: nothing, place: nothing },
  evolve: {},
  readModel: { version: 1, tables: {}, apply: {} },
  queries: {
    list: query(
      { project_id: Type.Optional(Id), stage: Type.Optional(Type.String()) },
      pageOf(row),
      "List.",
      () => ({}),
    ),
    get: query({ task_id: Id }, row, "Show.", () => ({})),
  },
});

const nouns = domainNouns(buildRegistry([...aggregates, task], system));

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
    expect(usage("task", "create")).toEqual([
      "TITLE*",
      "--project*",
      "--priority*",
      "--parent-task",
      "--depends-on",
      "--deadline-at",
      "--workspace",
    ]);
  });

  test("its own subject comes first, also where the payload has it later", () => {
    expect(usage("task", "complete")).toEqual(["TASK*", "--epoch*", "--result"]);
  });

  test("underscores become dashes, choices become options, milliseconds may have units", () => {
    expect(usage("task", "lock-writer").slice(0, 4)).toEqual([
      "TASK*",
      "READ|WRITE*".toLowerCase(),
      "--ttl-ms",
      "--steal",
    ]);
    const { verbs } = nouns.task!;
    const args = argsOf(verbs["lock-writer"]!);
    expect(args.mode).toMatchObject({ options: ["read", "write"] });
    expect(args["ttl-ms"]).toMatchObject({ format: "milliseconds" });
    expect(args.steal).toMatchObject({ type: "boolean", negatable: true });
  });

  test("a field named like a general flag does not hide it", () => {
    expect(usage("task", "place").slice(0, 3)).toEqual(["TASK*", "PATH*", "--task-timeout"]);
  });

  test("lists take names where they can, and paging", () => {
    expect(usage("task", "list")).toEqual([
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
  const { commands, queries } = registry();
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
    const fields = fieldsOf(registry(), kind, payload);
    expect(fields.map(({ field }) => field).toSorted()).toEqual(Object.keys(payload.properties).toSorted());
    for (const { name: flag, arg } of fields) {
      expect([type, flag, args[flag]]).toEqual([type, flag, arg]);
      expect([type, flag, arg.description.length > 0]).toEqual([type, flag, true]);
    }
    seen += 1;
  }
  expect(seen).toBeGreaterThan(8);
});
