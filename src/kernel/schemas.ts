/**
 * The JSON Schemas (2020-12) of every command, query answer and event version, made from the registry (SPEC §13).
 * They are what `schemas/` holds, what `GET /v1/schemas` serves and what OpenAPI refers to.
 */
import type { TSchema } from "typebox";
import { type Registry, schemaOf } from "./registry.ts";
import { EventEnvelope } from "./system.ts";

/** One published schema. */
export interface Published {
  readonly $schema: string;
  readonly $id: string;
  readonly [member: string]: unknown;
}

/** The name of the schema of a type's version: `command.project.create.v1`, `event.project.created.v1`, … */
export function schemaName(
  part: "command" | "result" | "query" | "answer" | "event",
  type: string,
  version: number,
): string {
  return `${part}.${type}.v${version}`;
}

/** The name of the schema of every event's envelope (SPEC §4). */
export const EVENT_ENVELOPE = "envelope.event.v1";

const cache = new WeakMap<Registry, ReadonlyMap<string, Published>>();

/** Every schema by name, in a stable order. */
export function allSchemas(registry: Registry): ReadonlyMap<string, Published> {
  const known = cache.get(registry);
  if (known) return known;
  const all = new Map<string, Published>();
  const add = (name: string, title: string, schema: TSchema) =>
    all.set(name, {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      $id: `urn:mp:schema:${name}`,
      title,
      ...(JSON.parse(JSON.stringify(schema)) as object),
    });
  add(EVENT_ENVELOPE, "An event, whatever its payload.", EventEnvelope);
  for (const { type, spec } of registry.commands.values()) {
    for (const version of versionsOf(spec))
      add(schemaName("command", type, version), spec.doc, schemaOf(spec, version)!);
    add(schemaName("result", type, spec.version), `The result of ${type}.`, spec.result);
  }
  for (const { type, spec, params } of [...registry.queries.values(), ...registry.socket.values()]) {
    add(schemaName("query", type, spec.version), spec.doc, params);
    add(schemaName("answer", type, spec.version), `The answer of ${type}.`, spec.answer);
  }
  for (const { type, spec } of registry.events.values())
    for (const version of versionsOf(spec))
      add(schemaName("event", type, version), `The payload of ${type}.`, schemaOf(spec, version)!);
  const sorted = new Map([...all].sort(([a], [b]) => (a < b ? -1 : 1)));
  cache.set(registry, sorted);
  return sorted;
}

function versionsOf(spec: { version: number; older: Readonly<Record<number, unknown>> }): number[] {
  return [...Object.keys(spec.older).map(Number), spec.version];
}
