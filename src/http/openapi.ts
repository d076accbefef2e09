/**
 * `GET /openapi.json`: OpenAPI 3.1, made from the registry, the schemas and the catalogue of problems (SPEC §2, §3).
 *
 * Types, payloads, parameters and problems come from there by themselves; only the handful of routes is written down here,
 * and a test compares them with the routes there are.
 */
import type { TObject, TSchema } from "typebox";
import { envelopeFields } from "../kernel/dispatch.ts";
import { catalogue } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import { object } from "../kernel/schema.ts";
import { allSchemas, EVENT_ENVELOPE, schemaName } from "../kernel/schemas.ts";
import { EventEnvelope } from "../kernel/system.ts";
import { VERSION } from "../version.ts";
import { eventsParams } from "./events.ts";

const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` });
const body = (schema: object, type = "application/json") => ({ content: { [type]: { schema } } });

/** The whole document. */
export function openApi(registry: Registry): object {
  const { payload: _, type: __, ...general } = envelopeFields;
  const schemas: Record<string, unknown> = {};
  const event = JSON.stringify(EventEnvelope);
  const eventRef = JSON.stringify(ref(EVENT_ENVELOPE));
  // A published schema stands for itself; here an event inside another one is told by its name.
  for (const [name, { $schema: _schema, $id: _id, ...schema }] of allSchemas(registry))
    schemas[name] =
      name === EVENT_ENVELOPE ? schema : JSON.parse(JSON.stringify(schema).replaceAll(event, eventRef));
  const commands = [...registry.commands.values()];
  for (const { type, spec } of commands) {
    schemas[`envelope.${type}`] = {
      ...object(general),
      required: ["type", "payload", "idempotency_key"],
      title: spec.doc,
      properties: {
        type: { const: type },
        payload: ref(schemaName("command", type, spec.version)),
        ...general,
      },
    };
  }
  for (const [type, { spec }] of registry.queries)
    schemas[`envelope.${type}`] = {
      type: "object",
      additionalProperties: false,
      required: ["type", "payload"],
      title: spec.doc,
      properties: {
        type: { const: type },
        payload: ref(schemaName("query", type, spec.version)),
        schema_version: general.schema_version,
        trace_id: general.trace_id,
      },
    };
  schemas.receipt = receipt;
  schemas.problem = problem;

  const refusals: Record<string, { description: string }> = {};
  for (const [code, { status }] of Object.entries(catalogue)) {
    if (status === null) continue;
    const codes = [refusals[status]?.description, code].filter(Boolean).join(", ");
    refusals[status] = { description: codes, ...body(ref("problem"), "application/problem+json") };
  }
  const answers = (schema: object, description: string) => ({
    "200": { description, ...body(schema) },
    ...refusals,
  });
  const any = {
    oneOf: [...commands, ...registry.queries.values()].map(({ type }) => ref(`envelope.${type}`)),
  };

  const paths: Record<string, unknown> = {
    "/v1/commands": {
      post: {
        summary: "Send one envelope: a command or a query",
        requestBody: { required: true, ...body(any) },
        responses: answers(
          { anyOf: [ref("receipt"), { type: "object" }] },
          "A receipt, or the answer of a query",
        ),
      },
    },
    "/v1/commands/batch": {
      post: {
        summary: "Send up to 1,000 commands; atomic means all or nothing",
        requestBody: {
          required: true,
          ...body({
            type: "object",
            additionalProperties: false,
            required: ["atomic", "commands"],
            properties: {
              atomic: { type: "boolean" },
              commands: {
                type: "array",
                minItems: 1,
                maxItems: 1_000,
                items: { oneOf: commands.map(({ type }) => ref(`envelope.${type}`)) },
              },
            },
          }),
        },
        responses: answers(
          {
            type: "object",
            properties: { items: { type: "array", items: { anyOf: [ref("receipt"), ref("problem")] } } },
          },
          "One receipt or problem per command, each with its kind",
        ),
      },
    },
    "/v1/events": {
      get: {
        summary: "Read the log: a page, or with follow=true a live stream",
        parameters: parameters(eventsParams(registry)),
        responses: {
          "200": {
            description: "Events",
            content: {
              "application/json": { schema: ref(schemaName("answer", "events.list", 1)) },
              "application/x-ndjson": { schema: { type: "string" } },
              "text/event-stream": { schema: { type: "string" } },
            },
          },
          ...refusals,
        },
      },
    },
    "/v1/events/{event_id}": {
      get: {
        summary: "Read one event",
        parameters: [{ name: "event_id", in: "path", required: true, schema: { type: "string" } }],
        responses: answers(ref(EVENT_ENVELOPE), "The event"),
      },
    },
    "/v1/stream": {
      get: {
        summary: "WebSocket: subscriptions and pipelined requests",
        // OpenAPI has no words for a socket's messages: what only it takes is told here.
        "x-socket-queries": Object.fromEntries(
          [...registry.socket.values()].map(({ type, spec: { doc, version } }) => [
            type,
            {
              summary: doc,
              payload: ref(schemaName("query", type, version)),
              answer: ref(schemaName("answer", type, version)),
            },
          ]),
        ),
        responses: { "101": { description: "Upgraded" } },
      },
    },
    "/v1/artifacts/{digest}": {
      put: {
        summary: "Send the bytes of an artifact; they are seen once size and digest are checked",
        parameters: [digest],
        requestBody: {
          required: true,
          ...body({ type: "string", format: "binary" }, "application/octet-stream"),
        },
        responses: {
          ...answers(storedBytes, "They were there already"),
          "201": { description: "They are stored", ...body(storedBytes) },
        },
      },
      get: {
        summary: "Read the bytes of an artifact, or a range of them",
        parameters: [digest],
        responses: {
          "200": {
            description: "The bytes",
            ...body({ type: "string", format: "binary" }, "application/octet-stream"),
          },
          "206": { description: "The part that the Range header asks for" },
          "304": { description: "The bytes that the If-None-Match header names" },
          ...refusals,
        },
      },
    },
    "/v1/schemas": {
      get: {
        summary: "List the schemas",
        responses: answers(ref(schemaName("answer", "schema.list", 1)), "Schemas"),
      },
    },
    "/v1/schemas/{name}": {
      get: {
        summary: "Read one JSON Schema",
        parameters: [{ name: "name", in: "path", required: true, schema: { type: "string" } }],
        responses: answers({ type: "object" }, "The schema"),
      },
    },
    "/health": {
      get: { summary: "Is it up; needs no credential", responses: { "200": { description: "It is" } } },
    },
    "/openapi.json": {
      get: { summary: "Read this document", responses: { "200": { description: "OpenAPI 3.1" } } },
    },
  };
  for (const [type, { spec, params }] of registry.queries)
    paths[`/v1/queries/${type}`] = {
      get: {
        operationId: type,
        summary: spec.doc,
        parameters: parameters(params),
        responses: answers(ref(schemaName("answer", type, spec.version)), "The answer"),
      },
    };
  return {
    openapi: "3.1.0",
    info: {
      title: "mp",
      version: VERSION,
      description: "One daemon, one log.",
      license: { name: "MIT", identifier: "MIT" },
    },
    paths,
    components: { schemas },
  };
}

function parameters(params: TObject): object[] {
  const required: readonly string[] = params.required ?? [];
  return Object.entries(params.properties as Record<string, TSchema>).map(([name, schema]) => ({
    name,
    in: "query",
    required: required.includes(name),
    schema,
  }));
}

const string = { type: "string" };
const digestOfBytes = { type: "string", pattern: "^sha256:[0-9a-f]{64}$" };
const digest = { name: "digest", in: "path", required: true, schema: digestOfBytes };
const storedBytes = {
  type: "object",
  additionalProperties: false,
  required: ["digest", "size"],
  properties: { digest: digestOfBytes, size: { type: "integer" } },
};
const receipt = {
  type: "object",
  required: ["command_id", "type", "subject", "version", "seq_global", "events", "result", "replayed"],
  properties: {
    command_id: string,
    type: string,
    subject: { type: "object", properties: { kind: string, id: string } },
    version: { type: "integer" },
    seq_global: { type: "integer" },
    events: { type: "array", items: { type: "object" } },
    result: { type: "object" },
    replayed: { type: "boolean" },
  },
};
const problem = {
  type: "object",
  required: ["type", "title", "status", "code", "reason", "detail", "hint", "retryable"],
  properties: {
    type: string,
    title: string,
    status: { type: "integer" },
    code: { enum: Object.keys(catalogue) },
    reason: { type: ["string", "null"] },
    detail: string,
    hint: string,
    retryable: { type: "boolean" },
    trace_id: string,
    details: { type: "object" },
    errors: { type: "array", items: { type: "object", properties: { pointer: string, message: string } } },
  },
};
