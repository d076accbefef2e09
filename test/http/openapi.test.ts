/**
 * `/openapi.json` as a daemon serves it: a whole OpenAPI 3.1 document, in which every command, every query, every problem
 * and every route is, and nothing that is not there.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { Compile, Meta } from "typebox/schema";
import { aggregates } from "../../src/domain/index.ts";
import { app } from "../../src/http/app.ts";
import { socketGate } from "../../src/http/request.ts";
import { catalogue } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, ask, type Json } from "./api.ts";

interface Operation {
  readonly summary?: string;
  readonly operationId?: string;
  readonly parameters?: readonly { name: string; in: string; required?: boolean; schema: Json }[];
  readonly requestBody?: { content: Record<string, { schema: Json }> };
  readonly responses: Record<string, { description: string; content?: Record<string, { schema: Json }> }>;
}
interface Document {
  readonly openapi: string;
  readonly info: Json;
  readonly paths: Record<string, Record<string, Operation>>;
  readonly components: { readonly schemas: Record<string, Json> };
}

const registry = buildRegistry(aggregates, system);
const isSchema = Compile(Meta["https://json-schema.org/draft/2020-12/schema"] as never);
const home = tempHome();
let mp: Api;
let socket: string;
let document: Document;
beforeAll(async () => {
  const daemon = await startDaemonProcess(home);
  socket = daemon.socket;
  mp = api(daemon);
  const reply = await mp.get("/openapi.json");
  expect(reply.headers.get("content-type")).toBe("application/json");
  expect(reply.headers.get("cache-control")).toBe("no-store");
  document = reply.json as unknown as Document;
});

/** Every object in a JSON value. */
function* objects(value: unknown): Generator<Json> {
  if (typeof value !== "object" || value === null) return;
  if (!Array.isArray(value)) yield value as Json;
  for (const each of Object.values(value)) yield* objects(each);
}
const operations = () =>
  Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  );

describe("the document", () => {
  test("has the members that OpenAPI 3.1 requires", () => {
    expect(document.openapi).toMatch(/^3\.1\.\d+$/);
    expect(document.info).toMatchObject({ title: "mp", version: expect.stringMatching(/^\d+\.\d+\.\d+/) });
    expect(Object.keys(document).sort()).toEqual(["components", "info", "openapi", "paths"]);
    for (const name of Object.keys(document.components.schemas)) expect(name).toMatch(/^[a-zA-Z0-9._-]+$/);
    for (const { path, method, operation } of operations()) {
      expect(path).toStartWith("/");
      expect(["get", "post", "put"]).toContain(method);
      expect(operation.summary).toBeString();
      expect(Object.keys(operation.responses)).not.toBeEmpty();
      for (const [status, response] of Object.entries(operation.responses)) {
        expect(status).toMatch(/^[1-5]\d\d$/);
        expect(response.description).toBeString();
      }
      const inPath = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]!);
      const declared = (operation.parameters ?? []).filter((each) => each.in === "path");
      expect([path, declared.map((each) => each.name)]).toEqual([path, inPath]);
      for (const parameter of operation.parameters ?? []) {
        expect(["path", "query", "header"]).toContain(parameter.in);
        if (parameter.in === "path") expect(parameter.required).toBe(true);
      }
      const names = (operation.parameters ?? []).map((each) => `${each.in} ${each.name}`);
      expect(new Set(names).size).toBe(names.length);
    }
    const named = operations().flatMap(({ operation }) => operation.operationId ?? []);
    expect(new Set(named).size).toBe(named.length);
  });

  test("refers only to what is in it, and leaves nothing unused", () => {
    const wanted = [...objects(document)].flatMap((each) =>
      typeof each.$ref === "string" ? [each.$ref] : [],
    );
    expect(wanted).not.toBeEmpty();
    for (const ref of wanted) {
      const found = ref
        .replace(/^#\//, "")
        .split("/")
        .reduce<unknown>(
          (at, step) => (at as Json | undefined)?.[step.replaceAll("~1", "/").replaceAll("~0", "~")],
          document,
        );
      expect([ref, typeof found]).toEqual([ref, "object"]);
    }
    const used = new Set(wanted.map((ref) => ref.replace("#/components/schemas/", "")));
    const unused = Object.keys(document.components.schemas).filter((name) => !used.has(name));
    // What an event holds, and what a command's receipt holds, is not the body of any request.
    expect(unused.filter((name) => !/^(event|result)\./.test(name))).toEqual([]);
  });

  test("has JSON Schemas of 2020-12 only", () => {
    const schemas = [
      ...Object.entries(document.components.schemas),
      ...operations().flatMap(({ path, operation }) => [
        ...(operation.parameters ?? []).map((each) => [`${path} ${each.name}`, each.schema] as const),
        ...Object.values(operation.requestBody?.content ?? {}).map((each) => [path, each.schema] as const),
        ...Object.values(operation.responses).flatMap((response) =>
          Object.values(response.content ?? {}).map((each) => [path, each.schema] as const),
        ),
      ]),
    ];
    expect(schemas.length).toBeGreaterThan(50);
    expect(schemas.filter(([, schema]) => !isSchema.Check(schema)).map(([name]) => name)).toEqual([]);
    expect(isSchema.Check({ type: "nonsense" })).toBe(false);
  });
});

describe("what is in it", () => {
  test("every command and every query, each with its envelope", () => {
    const { schema } = document.paths["/v1/commands"]!.post!.requestBody!.content["application/json"]!;
    const refs = (schema.oneOf as { $ref: string }[]).map((each) => each.$ref.split("/").at(-1)!);
    expect(refs.sort()).toEqual(
      [...registry.commands.keys(), ...registry.queries.keys()].map((type) => `envelope.${type}`).sort(),
    );
    for (const type of registry.commands.keys()) {
      const whole = document.components.schemas[`envelope.${type}`]!;
      expect(whole).toMatchObject({
        additionalProperties: false,
        required: ["type", "payload", "idempotency_key"],
      });
      expect((whole.properties as Json).type).toEqual({ const: type });
    }
    for (const [type, { params }] of registry.queries) {
      const whole = document.components.schemas[`envelope.${type}`]!;
      expect(Object.keys(whole.properties as Json).sort()).toEqual([
        "payload",
        "schema_version",
        "trace_id",
        "type",
      ]);
      const { get } = document.paths[`/v1/queries/${type}`]!;
      expect((get!.parameters ?? []).map((each) => each.name)).toEqual(Object.keys(params.properties));
      expect(get!.responses["200"]!.content!["application/json"]!.schema).toEqual({
        $ref: `#/components/schemas/answer.${type}.v1`,
      });
    }
  });

  test("every status of the catalogue, with its codes, wherever a problem can be answered", () => {
    const statuses = new Set(
      Object.values(catalogue).flatMap((entry) => (entry.status === null ? [] : [String(entry.status)])),
    );
    for (const { path, operation } of operations()) {
      if (path === "/health" || path === "/v1/stream" || path === "/openapi.json") continue;
      expect([path, [...statuses].filter((status) => !operation.responses[status])]).toEqual([path, []]);
      for (const status of statuses)
        expect(Object.keys(operation.responses[status]!.content!)).toEqual(["application/problem+json"]);
    }
    const told = Object.values(document.paths["/v1/commands"]!.post!.responses)
      .map((each) => each.description)
      .join(", ");
    for (const [code, entry] of Object.entries(catalogue))
      if (entry.status !== null) expect(told).toContain(code);
  });

  test("every route of the app, and no other", () => {
    const { routes } = app({
      registry,
      dispatch: {} as never,
      hub: {} as never,
      bytes: {} as never,
      health: {} as never,
      gate: socketGate("ada", 1),
      onBug: () => undefined,
    });
    const real = new Set(
      routes.map((route) => `${route.method.toLowerCase()} ${route.path.replaceAll(/:(\w+)/g, "{$1}")}`),
    );
    const documented = new Set(
      operations().map(
        ({ path, method }) => `${method} ${path.replace(/^\/v1\/queries\/.*/, "/v1/queries/{type}")}`,
      ),
    );
    expect([...documented].sort()).toEqual([...real].sort());
  });

  test("every parameter of GET /v1/events, and each is taken", async () => {
    const { parameters } = document.paths["/v1/events"]!.get!;
    const values: Record<string, string> = {
      after: "0",
      since: "2020-01-01T00:00:00.000Z",
      log_id: String((await mp.answer("daemon.status")).log_id),
      limit: "1",
      cursor: "0",
      min_seq: "0",
      follow: "false",
      frames: "true",
      as_stored: "true",
      types: "workspace.*",
      streams: "workspace/01900000-0000-7000-8000-000000000000",
      workspace_id: "01900000-0000-7000-8000-000000000000",
      project_id: "01900000-0000-7000-8000-000000000000",
      subject_kind: "workspace",
    };
    expect(parameters!.map((each) => each.name).sort()).toEqual(Object.keys(values).sort());
    // Only one of them says where to start.
    for (const start of ["after", "since", "cursor"]) {
      const some = Object.entries(values).filter(
        ([name]) => name === start || !["after", "since", "cursor"].includes(name),
      );
      const reply = await ask(socket, "GET", `/v1/events?${new URLSearchParams(some)}`);
      expect(reply.status).toBe(200);
    }
    for (const { name, schema } of parameters!) {
      const of = schema.type === "array" ? (schema.items as Json) : schema;
      const value =
        of.type === "integer"
          ? Number(values[name])
          : of.type === "boolean"
            ? values[name] === "true"
            : values[name]!;
      expect([name, Compile(schema as never).Check(schema.type === "array" ? [value] : value)]).toEqual([
        name,
        true,
      ]);
    }
  });

  test("a problem and a receipt as they really are", async () => {
    const check = (name: string, value: unknown) => {
      const schema = document.components.schemas[name]!;
      expect([name, Compile(schema as never).Check(value)]).toEqual([name, true]);
      expect(Object.keys(value as Json).filter((member) => !(member in (schema.properties as Json)))).toEqual(
        [],
      );
    };
    check("problem", (await ask(socket, "POST", "/v1/commands", "{}")).json);
    check("receipt", await mp.done("workspace.create", { name: "w" }));
  });
});
