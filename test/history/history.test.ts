/**
 * What was once published stays readable (SPEC §4, §6, §13). This folder holds one stored event, byte for byte, of every
 * published (type, version) in `<type>.v<version>.event`, its leaf hash in `leaves.txt`, and a hash of the code of every
 * read model's version in `generations.json`. All of them are only ever added to.
 *
 * A new event version: add a stored event of it and its line in leaves.txt. Changed code of a read model: raise its
 * `readModel.version` and add the hash that the failing test tells.
 */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import canonicalize from "canonicalize";
import { aggregates } from "../../src/domain/index.ts";
import type { AnyAggregate, Event } from "../../src/kernel/aggregate.ts";
import { encode, leafHash } from "../../src/kernel/log.ts";
import { buildRegistry, currentEvent, schemaOf, versionsWithoutPath } from "../../src/kernel/registry.ts";
import { foldCase, matches, schemaErrors } from "../../src/kernel/schema.ts";
import { currentBody } from "../../src/kernel/stream.ts";
import { EventEnvelope, system } from "../../src/kernel/system.ts";

const registry = buildRegistry(aggregates, system);
const folder = import.meta.dir;
const golden = readdirSync(folder).filter((file) => file.endsWith(".event"));
const bytesOf = (file: string) => readFileSync(join(folder, file));
const eventOf = (file: string) => JSON.parse(bytesOf(file).toString("utf8")) as Event;
const sha256 = (...parts: (string | Uint8Array)[]) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};

/** `<type>.v<version>.event` of everything that is published. */
const published = [...registry.events.values()].flatMap(({ type, spec }) =>
  [...Object.keys(spec.older).map(Number), spec.version].map((version) => `${type}.v${version}.event`),
);

test("every published event version has a stored event here", () => {
  expect(published.filter((file) => !golden.includes(file))).toEqual([]);
});

test("no event here is of a type or version that this mp does not know", () => {
  const stored = golden.map((file) => {
    const { event_type, schema_version } = eventOf(file);
    return { event_type, schema_version };
  });
  expect(versionsWithoutPath(registry, stored)).toEqual([]);
});

test("every leaf hash here is of an event, and every event has one", () => {
  const lines = readFileSync(join(folder, "leaves.txt"), "utf8").trimEnd().split("\n");
  expect(lines).toEqual(golden.sort().map((file) => `${sha256("\0", bytesOf(file))}  ${file}`));
});

describe.each(golden)("%s", (file) => {
  test("is a whole event, of the type and version in its name", () => {
    const event = eventOf(file);
    expect(`${event.event_type}.v${event.schema_version}.event`).toBe(file);
    const members =
      "actor causality event_id event_type payload prev_hash project_id schema_version seq_global seq_stream stream subject timestamp trace_id workspace_id";
    expect(members.split(" ").filter((name) => !(name in event) && name !== "project_id")).toEqual([]);
    expect(Object.keys(event).filter((name) => !members.split(" ").includes(name))).toEqual([]);
    expect(bytesOf(file).length).toBeLessThanOrEqual(61_440);
  });

  test("is of the published schema of all events, and not with a member more, less or null", () => {
    const event = eventOf(file);
    expect(schemaErrors(EventEnvelope, event)).toEqual([]);
    for (const name of Object.keys(event)) {
      expect(schemaErrors(EventEnvelope, { ...event, [name]: null })).not.toEqual([]);
      const { [name as "actor"]: _, ...less } = event;
      expect([name, matches(EventEnvelope, less)]).toEqual([name, /^(project|workspace)_id$/.test(name)]);
    }
    expect(schemaErrors(EventEnvelope, { ...event, color: "red" })).not.toEqual([]);
  });

  test("is canonical: it is encoded to the same bytes today, and by the library that knows RFC 8785", () => {
    const text = bytesOf(file).toString("utf8");
    const encoded = encode(eventOf(file));
    expect(encoded.body).toBe(text);
    expect(encoded.size).toBe(bytesOf(file).length);
    expect(canonicalize(eventOf(file))!).toBe(text);
  });

  test("has the leaf hash that was told of it", () => {
    const told = readFileSync(join(folder, "leaves.txt"), "utf8")
      .split("\n")
      .find((line) => line.endsWith(`  ${file}`));
    expect(told).toBe(`${leafHash(bytesOf(file))}  ${file}`);
    expect(encode(eventOf(file)).leaf).toBe(leafHash(bytesOf(file)));
  });

  test("passes the schema it was stored under, and the current one after its upcasters", () => {
    const event = eventOf(file);
    const { spec } = registry.events.get(event.event_type)!;
    expect(schemaErrors(schemaOf(spec, event.schema_version)!, event.payload)).toEqual([]);
    const current = currentEvent(registry, event);
    expect(current.schema_version).toBe(spec.version);
    expect(schemaErrors(spec.payload, current.payload)).toEqual([]);
  });

  test("is streamed as it is stored when its version is current, else as its upcasters make it", () => {
    const body = bytesOf(file).toString("utf8");
    const event = eventOf(file);
    const { seq_global, event_type, schema_version } = event;
    const streamed = currentBody(registry, { seq_global, event_type, schema_version, body });
    expect(streamed).toBe(canonicalize(currentEvent(registry, event))!);
    if (schema_version === registry.events.get(event_type)!.spec.version) expect(streamed).toBe(body);
  });
});

/** Everything a read model's rows are made by: what applies events, what brings them up to date, what folds names. */
function codeOf({ readModel, events }: AnyAggregate): string {
  const upcasters = Object.values(events).flatMap(({ older }) => Object.values(older).map(({ up }) => up));
  const functions = [...Object.values(readModel.apply), ...upcasters, foldCase];
  return sha256(functions.map((each) => each.toString().replaceAll(/\s+/g, " ")).join("\n"));
}

test("the code of a read model changes only together with its version", () => {
  const history = JSON.parse(readFileSync(join(folder, "generations.json"), "utf8")) as Record<
    string,
    Record<string, string>
  >;
  const now = registry.aggregates.map(
    (each) => [each.kind, String(each.readModel.version), codeOf(each)] as const,
  );
  // Differs: raise readModel.version in the domain file. Not there: add it to generations.json.
  expect(now.map(([kind, version]) => [kind, version, history[kind]?.[version]])).toEqual(
    now.map(([...each]) => each),
  );
});
