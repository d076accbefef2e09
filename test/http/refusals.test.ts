/**
 * Bad input through the real socket (SPEC §3, §10): every row of the catalogue that a Unix socket can meet, on every
 * transport, with its code, its status and its members. Always checked as well: the log did not move, and the answer
 * holds no word of the sender's, no path and no stack. Not here: every reason of the domain (work.test.ts), `unauthorized`
 * (only a bad token meets it: test/daemon/tokens.test.ts), `read_only` and `outcome_unknown` (they need a broken disk), and
 * the codes that only the CLI meets.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { app } from "../../src/http/app.ts";
import { socketGate } from "../../src/http/request.ts";
import { type Code, catalogue } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import {
  type Api,
  api,
  ask,
  envelope,
  expectNoEcho,
  expectProblem,
  expectRefused,
  type Json,
  key,
  MARKER,
  raw,
  type Wire,
  wire,
} from "./api.ts";

const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let ws: Wire;
let head = 0;

/** Things that exist, so that a refusal can be about them. */
const there = { open: "", closed: "", project: "", name: "", event: "" };
const NOWHERE = "01900000-0000-7000-8000-000000000000";
const usedKey = key();
const usedKeyCommand = {
  type: "workspace.create",
  payload: { name: "key holder" },
  idempotency_key: usedKey,
};

beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  ws = await wire(daemon.socket);
  const open = await mp.done("workspace.create", { name: "Open", root_path: "/srv/open" });
  there.open = open.subject.id;
  there.event = (open.events as { event_id: string }[])[0]!.event_id;
  there.project = (await mp.done("project.create", { workspace_id: there.open, name: "Core" })).subject.id;
  there.closed = (await mp.done("workspace.create", { name: "Closed" })).subject.id;
  await mp.done("workspace.close", { workspace_id: there.closed });
  expect((await mp.post(usedKeyCommand)).status).toBe(200);
});
afterAll(() => ws.close());

beforeEach(async () => {
  head = await mp.head();
  expect(head).toBeGreaterThan(0);
});
afterEach(async () => {
  expect(await mp.head()).toBe(head);
});

/** An envelope that must be refused, and what must be said. */
interface Row {
  readonly name: string;
  readonly send: () => Json;
  readonly code: Code;
  readonly reason?: string;
  readonly details?: () => object;
  /** JSON pointers of `errors`, in any order. */
  readonly pointers?: readonly string[];
  /** What the hint must contain. */
  readonly hint?: string;
  /** Queries are not taken by a batch at all. */
  readonly query?: true;
}

const create = (payload: object, more: object = {}) => envelope("workspace.create", payload, more);
const broken = (name: string, send: () => Json, ...pointers: string[]): Row => ({
  name,
  send,
  code: "invalid_schema",
  pointers,
});
const brokenQuery = (name: string, send: () => Json, ...pointers: string[]): Row => ({
  ...broken(name, send, ...pointers),
  query: true,
});

const rows: readonly Row[] = [
  broken("an empty envelope", () => ({}), "/type", "/payload"),
  broken("no payload", () => ({ type: "workspace.create", idempotency_key: key() }), "/payload"),
  broken("a type that is no text", () => ({ type: 5, payload: {}, idempotency_key: key() }), "/type"),
  broken("an empty type", () => ({ type: "", payload: {} }), "/type"),
  broken("a type without end", () => ({ type: MARKER.repeat(20), payload: {} }), "/type"),
  broken("a payload that is a list", () => ({ type: "workspace.create", payload: [MARKER] }), "/payload"),
  broken("a payload that is null", () => ({ type: "workspace.create", payload: null }), "/payload"),
  broken("an unknown field beside the known ones", () => create({ name: "x" }, { actor: MARKER }), "/actor"),
  broken("an unknown field of the payload", () => create({ name: "x", colour: MARKER }), "/payload/colour"),
  broken(
    "a field name that needs escaping in a pointer",
    () => create({ name: "x", "a/b~c": MARKER }),
    "/payload/a~1b~0c",
  ),
  broken(
    "the envelope and the payload broken at once",
    () => create({ name: 5, root_path: MARKER }, { expected_version: MARKER, trace_id: MARKER }),
    "/payload/name",
    "/payload/root_path",
    "/expected_version",
    "/trace_id",
  ),
  broken("a required field missing", () => create({ root_path: "/a" }), "/payload/name"),
  broken("a number as text", () => create({ name: "x" }, { expected_version: "0" }), "/expected_version"),
  broken("a text as number", () => create({ name: 12345 }), "/payload/name"),
  broken(
    "a fraction as version",
    () => create({ name: "x" }, { expected_version: 0.5 }),
    "/expected_version",
  ),
  broken("a negative version", () => create({ name: "x" }, { expected_version: -1 }), "/expected_version"),
  broken(
    "a schema version that is text",
    () => create({ name: "x" }, { schema_version: "1" }),
    "/schema_version",
  ),
  broken("null for an optional field", () => create({ name: "x", root_path: null }), "/payload/root_path"),
  broken("null for an optional member", () => create({ name: "x" }, { trace_id: null }), "/trace_id"),
  broken("a trace id of zeros", () => create({ name: "x" }, { trace_id: "0".repeat(32) }), "/trace_id"),
  broken("a trace id in capitals", () => create({ name: "x" }, { trace_id: "A".repeat(32) }), "/trace_id"),
  broken(
    "a parent that is no UUIDv7",
    () => create({ name: "x" }, { parent_event_id: MARKER }),
    "/parent_event_id",
  ),
  broken("an empty key", () => create({ name: "x" }, { idempotency_key: "" }), "/idempotency_key"),
  broken(
    "a key with a line break",
    () => create({ name: "x" }, { idempotency_key: `a\n${MARKER}` }),
    "/idempotency_key",
  ),
  broken(
    "a key of 201 characters",
    () => create({ name: "x" }, { idempotency_key: "k".repeat(201) }),
    "/idempotency_key",
  ),
  broken(
    "a key that is not ASCII",
    () => create({ name: "x" }, { idempotency_key: "schlüssel" }),
    "/idempotency_key",
  ),
  broken("an empty name", () => create({ name: "" }), "/payload/name"),
  broken("a name of 129 characters", () => create({ name: MARKER.padEnd(129, "x") }), "/payload/name"),
  broken("a name with a line break", () => create({ name: `${MARKER}\n` }), "/payload/name"),
  broken("a name that is not NFC", () => create({ name: `${MARKER}e\u0301` }), "/payload/name"),
  broken("a relative path", () => create({ name: "x", root_path: `${MARKER}/a` }), "/payload/root_path"),
  broken("a path with dots", () => create({ name: "x", root_path: `/${MARKER}/../a` }), "/payload/root_path"),
  broken(
    "an id that is no UUIDv7",
    () => envelope("workspace.open", { workspace_id: `${MARKER}` }),
    "/payload/workspace_id",
  ),
  broken(
    "an id in capitals",
    () => envelope("workspace.open", { workspace_id: there.open.toUpperCase() }),
    "/payload/workspace_id",
  ),
  brokenQuery(
    "a key on a query",
    () => ({ type: "workspace.list", payload: {}, idempotency_key: MARKER }),
    "/idempotency_key",
  ),
  brokenQuery(
    "a guard and a parent on a query",
    () => ({ type: "workspace.list", payload: {}, expected_version: 0, parent_event_id: there.event }),
    "/expected_version",
    "/parent_event_id",
  ),
  brokenQuery(
    "a limit of nothing",
    () => ({ type: "workspace.list", payload: { limit: 0 } }),
    "/payload/limit",
  ),
  brokenQuery(
    "a limit beyond a page",
    () => ({ type: "workspace.list", payload: { limit: 10_001 } }),
    "/payload/limit",
  ),
  brokenQuery(
    "a limit as text",
    () => ({ type: "workspace.list", payload: { limit: "5" } }),
    "/payload/limit",
  ),
  brokenQuery(
    "a cursor of nobody's",
    () => ({ type: "workspace.list", payload: { cursor: MARKER } }),
    "/payload/cursor",
  ),
  brokenQuery(
    "a word that is none of the choices",
    () => ({ type: "workspace.list", payload: { status: MARKER } }),
    "/payload/status",
  ),
  brokenQuery(
    "an unknown parameter",
    () => ({ type: "workspace.list", payload: { colour: MARKER } }),
    "/payload/colour",
  ),
  {
    name: "a type that does not exist",
    send: () => envelope(`${MARKER}.create`, {}),
    code: "unknown_command",
    hint: "mp schema list",
  },
  {
    name: "a type that is nearly one",
    send: () => envelope("workspace.craete", {}),
    code: "unknown_command",
    hint: "workspace.create",
  },
  {
    name: "the name of an object's own method",
    send: () => envelope("toString", {}),
    code: "unknown_command",
  },
  ...[0, 2, -1, 999_999_999].map(
    (schema_version): Row => ({
      name: `schema version ${schema_version}`,
      send: () => create({ [MARKER]: MARKER }, { schema_version }),
      code: "unsupported_schema_version",
      details: () => ({ type: "workspace.create", current: 1 }),
    }),
  ),
  {
    name: "a schema version of a query",
    send: () => ({ type: "workspace.list", payload: {}, schema_version: 2 }),
    code: "unsupported_schema_version",
    query: true,
  },
  {
    name: "no key",
    send: () => ({ type: "workspace.create", payload: { name: MARKER } }),
    code: "idempotency_key_required",
  },
  {
    name: "no key on a command of the kernel",
    send: () => ({ type: "projection.rebuild", payload: {} }),
    code: "idempotency_key_required",
  },
  {
    name: "a key that belongs to another command",
    send: () => ({ ...usedKeyCommand, payload: { name: MARKER } }),
    code: "idempotency_key_reused",
  },
  {
    name: "a key that belongs to the same command with another guard",
    send: () => ({ ...usedKeyCommand, expected_version: 0 }),
    code: "idempotency_key_reused",
  },
  {
    name: "a version that is not the stream's",
    send: () => envelope("workspace.close", { workspace_id: there.open }, { expected_version: 7 }),
    code: "expected_version_mismatch",
    details: () => ({ stream: `workspace/${there.open}`, expected: 7, actual: 1 }),
    hint: "version 1",
  },
  {
    name: "a create that expects something to be there",
    send: () => create({ name: MARKER }, { expected_version: 1 }),
    code: "expected_version_mismatch",
    hint: "always expects version 0",
  },
  {
    name: "a guard on a command of the kernel",
    send: () => envelope("projection.rebuild", {}, { expected_version: 3 }),
    code: "expected_version_mismatch",
  },
  {
    name: "a workspace that does not exist",
    send: () => envelope("workspace.open", { workspace_id: NOWHERE }),
    code: "not_found",
    details: () => ({ kind: "workspace", id: NOWHERE }),
  },
  {
    name: "a workspace that does not exist, with a guard",
    send: () => envelope("workspace.open", { workspace_id: NOWHERE }, { expected_version: 1 }),
    code: "not_found",
  },
  {
    name: "a project in a workspace that does not exist",
    send: () => envelope("project.create", { workspace_id: NOWHERE, name: MARKER }),
    code: "not_found",
    details: () => ({ kind: "workspace", id: NOWHERE }),
  },
  {
    name: "an id of another kind",
    send: () => envelope("project.archive", { project_id: there.open }),
    code: "not_found",
    details: () => ({ kind: "project", id: there.open }),
  },
  {
    name: "a parent event that does not exist",
    send: () => create({ name: MARKER }, { parent_event_id: NOWHERE }),
    code: "not_found",
    details: () => ({ kind: "event", id: NOWHERE }),
  },
  {
    name: "a projection that does not exist",
    send: () => envelope("projection.rebuild", { name: MARKER }),
    code: "not_found",
    hint: "workspace",
  },
  {
    name: "a query for what does not exist",
    send: () => ({ type: "project.get", payload: { project_id: NOWHERE } }),
    code: "not_found",
    details: () => ({ kind: "project", id: NOWHERE }),
    query: true,
  },
  {
    name: "a schema that does not exist",
    send: () => ({ type: "schema.get", payload: { name: MARKER } }),
    code: "not_found",
    query: true,
  },
  {
    name: "a name that is taken",
    send: () => create({ name: "OPEN" }),
    code: "conflict",
    reason: "workspace.name_taken",
    details: () => ({ workspace_id: there.open }),
  },
  {
    name: "a path that is taken",
    send: () => create({ name: MARKER, root_path: "/srv/open" }),
    code: "conflict",
    reason: "workspace.path_taken",
    details: () => ({ workspace_id: there.open }),
  },
  {
    name: "a project in a closed workspace",
    send: () => envelope("project.create", { workspace_id: there.closed, name: MARKER }),
    code: "conflict",
    reason: "workspace.closed",
    details: () => ({ workspace_id: there.closed }),
    hint: "mp workspace open",
  },
  {
    name: "a project's name that is taken",
    send: () => envelope("project.create", { workspace_id: there.open, name: "cORE" }),
    code: "conflict",
    reason: "project.name_taken",
    details: () => ({ project_id: there.project }),
  },
  {
    name: "a cursor beyond the head",
    send: () => ({ type: "events.list", payload: { after: 1_000_000 } }),
    code: "cursor_ahead",
    details: () => ({ head, after: 1_000_000 }),
    query: true,
  },
  {
    name: "a cursor of another log",
    send: () => ({ type: "events.list", payload: { after: 0, log_id: NOWHERE } }),
    code: "cursor_foreign",
    query: true,
  },
];

/** What an answer must say, wherever it came from. `at` stands in front of its pointers. */
function expectRow(value: unknown, row: Row, at = ""): void {
  const found = expectProblem(value, row.code);
  if (row.reason) expect(found.reason).toBe(row.reason);
  if (row.details) expect(found.details).toMatchObject(row.details());
  if (row.hint) expect(found.hint).toContain(row.hint);
  if (row.pointers)
    expect((found.errors ?? []).map((error) => error.pointer).sort()).toEqual(
      row.pointers.map((pointer) => at + pointer).sort(),
    );
  else expect(found.errors).toBeUndefined();
}

describe.each(rows.map((row) => [row.name, row] as const))("%s", (_, row) => {
  test("POST /v1/commands", async () => {
    const reply = await mp.post(row.send());
    expectRefused(reply, row.code);
    expectRow(reply.json, row);
    expectNoEcho(reply.text, home);
  });

  test("a WebSocket", async () => {
    const { kind, ...found } = await ws.request(row.send());
    expect(kind).toBe("problem");
    expectRow(found, row);
    expectNoEcho(JSON.stringify(found), home);
  });

  test("a batch, each for itself", async () => {
    const reply = await mp.batch(false, [row.send(), row.send()]);
    expect([reply.status, reply.headers.get("content-type")]).toEqual([200, "application/json"]);
    const items = reply.json.items as Json[];
    expect(items).toHaveLength(2);
    for (const [index, { kind, ...found }] of items.entries()) {
      expect(kind).toBe("problem");
      if (row.query)
        expect(expectProblem(found, "invalid_schema").errors?.[0]?.pointer).toStartWith("/commands/");
      else expectRow(found, row, `/commands/${index}`);
    }
    expectNoEcho(reply.text, home);
  });

  test("a batch, all or nothing: what comes before it is not kept", async () => {
    const reply = await mp.batch(true, [
      create({ name: "never kept" }),
      row.send(),
      create({ name: "nor this" }),
    ]);
    if (row.query) return void expectRefused(reply, "invalid_schema");
    const { details, ...found } = expectRefused(reply, row.code);
    expect(details).toMatchObject({ index: 1 });
    const { index: _, ...own } = details as Json;
    expectRow(row.details ? { ...found, details: own } : found, row, "/commands/1");
    expectNoEcho(reply.text, home);
  });
});

test("the table has every code that a request without a token can meet on this socket", () => {
  const elsewhere: Code[] = ["unauthorized", "read_only", "outcome_unknown", "daemon_unavailable", "timeout"];
  const below: Code[] = [
    "malformed_request",
    "payload_too_large",
    "unsupported_media_type",
    "policy_denied",
    "overloaded",
    "internal",
  ];
  const met = new Set([...rows.map((row) => row.code), ...elsewhere, ...below]);
  expect((Object.keys(catalogue) as Code[]).filter((code) => !met.has(code))).toEqual([]);
});

test("the name of an unknown field stands in its pointer and nowhere else", async () => {
  const refused = [
    await mp.post(create({ name: "x", [MARKER]: 1 })),
    await mp.post(create({ name: "x" }, { [MARKER]: 1 })),
    await mp.post({ type: "workspace.list", payload: { [MARKER]: 1 } }),
    await mp.get(`/v1/queries/workspace.list?${MARKER}=1`),
    await mp.get(`/v1/events?${MARKER}=1`),
    await ask(daemon.socket, "POST", "/v1/commands/batch", { atomic: true, commands: [{}], [MARKER]: 1 }),
  ];
  for (const reply of refused) {
    const { errors, ...rest } = expectRefused(reply, "invalid_schema");
    expect(errors?.[0]?.pointer).toEndWith(`/${MARKER}`);
    expect(errors?.[0]?.message).toBe("is not a known field");
    expectNoEcho(JSON.stringify(rest), home);
  }
});

test("a refusal leaves no workspace behind", async () => {
  const { items } = await mp.answer("workspace.list");
  expect((items as Json[]).map((item) => item.name).sort()).toEqual(["Closed", "Open", "key holder"]);
});

describe("a request that is valid JSON but no envelope", () => {
  test.each(["[]", "1", '"x"', "null", "true", "[{}]", "-0.5"])("%s", async (text) => {
    expect(expectRefused(await mp.post(text), "invalid_schema").errors).toEqual([
      { pointer: "", message: "must be an object" },
    ]);
    const batch = await ask(daemon.socket, "POST", "/v1/commands/batch", text);
    expectRefused(batch, "invalid_schema");
    const { kind, ...found } = await ws.send(text);
    expect(kind).toBe("problem");
    expectProblem(found, "invalid_schema");
  });
});

describe("a body that is not strict JSON", () => {
  const utf8 = (text: string) => new TextEncoder().encode(text);
  const bytes = (hex: string) => Uint8Array.from(hex.split(" "), (each) => Number.parseInt(each, 16));
  const good = `{"type":"workspace.create","payload":{"name":"${MARKER}"},"idempotency_key":"k"`;
  const cases: readonly (readonly [name: string, body: Uint8Array])[] = [
    ["nothing", utf8("")],
    ["white space", utf8(" \r\n\t")],
    ["an unfinished object", utf8(good)],
    ["a comma too many", utf8(`${good},}`)],
    ["single quotes", utf8(`{'type':'${MARKER}'}`)],
    ["a comment", utf8(`/*${MARKER}*/${good}}`)],
    ["two values", utf8(`${good}}${good}}`)],
    ["a form", utf8(`type=workspace.create&name=${MARKER}`)],
    ["NaN", utf8('{"type":NaN}')],
    ["a byte order mark", utf8(`\ufeff${good}}`)],
    ["a key twice", utf8(`${good},"type":"workspace.open"}`)],
    ["a key twice, far inside", utf8('{"type":"a","payload":{"a":[{"b":1,"b":2}]}}')],
    ["a key twice, once escaped", utf8('{"type":"a","t\\u0079pe":"b","payload":{}}')],
    ["__proto__", utf8(`{"type":"workspace.create","payload":{"__proto__":{"name":"${MARKER}"}}}`)],
    ["constructor", utf8('{"type":"workspace.create","payload":{"constructor":{}}}')],
    ["prototype", utf8('{"prototype":1}')],
    ["an escaped __proto__", utf8('{"\\u005f_proto__":1}')],
    ["a NUL", utf8('{"type":"workspace.create","payload":{"name":"a\\u0000b"}}')],
    ["a raw control character", utf8('{"type":"a\tb"}')],
    ["half a surrogate pair", utf8('{"type":"\\ud83d"}')],
    ["33 levels", utf8(`${"[".repeat(33)}${"]".repeat(33)}`)],
    ["100,000 levels", utf8("[".repeat(100_000))],
    ["an integer beyond 2^53−1", utf8('{"type":"a","payload":{"n":9007199254740992}}')],
    ["an integer beyond 2^53−1, with an exponent", utf8('{"n":1e16}')],
    ["a number beyond all doubles", utf8('{"n":1e999}')],
    ["bytes that are not UTF-8", bytes("7b 22 61 22 3a 22 ff fe 22 7d")],
    ["a slash in two bytes", bytes("7b 22 61 22 3a 22 c0 af 22 7d")],
    ["a surrogate in three bytes", bytes("7b 22 61 22 3a 22 ed a0 80 22 7d")],
    ["UTF-16", bytes("ff fe 7b 00 7d 00")],
    ["gzip", Bun.gzipSync(utf8(`${good}}`))],
  ];

  test.each(cases)("%s", async (_, body) => {
    for (const path of ["/v1/commands", "/v1/commands/batch"]) {
      const reply = await ask(daemon.socket, "POST", path, body);
      const found = expectRefused(reply, "malformed_request");
      expect(found.errors).toBeUndefined();
      expectNoEcho(reply.text, home);
    }
    const { kind, ...found } = await ws.send(body);
    expect(kind).toBe("problem");
    expectProblem(found, "malformed_request");
    expectNoEcho(JSON.stringify(found), home);
  });

  test("the deepest that is accepted is read to the end, and then refused by its schema", async () => {
    const text = `{"type":"workspace.create","payload":{"name":${"[".repeat(30)}${"]".repeat(30)}}}`;
    expect(expectRefused(await mp.post(text), "invalid_schema").errors).toEqual([
      { pointer: "/payload/name", message: "must be a string" },
    ]);
  });
});

describe("media types", () => {
  const body = JSON.stringify({ type: "workspace.list", payload: {} });
  test.each([
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json-patch+json",
    "application/problem+json",
    "application/json; charset=latin1",
    "application/json, text/plain",
    "application/jsonx",
    "",
    MARKER,
  ])("Content-Type: %s is refused", async (type) => {
    for (const path of ["/v1/commands", "/v1/commands/batch"]) {
      const reply = await ask(daemon.socket, "POST", path, body, { "content-type": type });
      expectRefused(reply, "unsupported_media_type");
      expectNoEcho(reply.text, home);
    }
  });

  test.each([
    "application/json",
    "APPLICATION/JSON",
    "application/json; charset=utf-8",
    'application/json;charset="UTF-8"',
  ])("Content-Type: %s is taken", async (type) => {
    expect((await ask(daemon.socket, "POST", "/v1/commands", body, { "content-type": type })).status).toBe(
      200,
    );
  });

  test("no Content-Type at all is refused, with a body and without one", async () => {
    const head = "POST /v1/commands HTTP/1.1\r\nHost: mp\r\n";
    for (const rest of [
      `Content-Length: ${body.length}\r\n\r\n${body}`,
      "Content-Length: 0\r\n\r\n",
      "\r\n",
    ]) {
      const { responses } = await raw(daemon.socket, [head + rest]);
      expectRefused({ ...responses[0]!, text: responses[0]!.body }, "unsupported_media_type");
    }
  });

  test("events in a form that nobody has", async () => {
    expectRefused(await mp.get("/v1/events", { accept: "image/png" }), "unsupported_media_type");
    expectRefused(
      await mp.get("/v1/events?follow=true", { accept: "application/json" }),
      "unsupported_media_type",
    );
  });
});

describe("too large", () => {
  const HEAD = "POST /v1/commands HTTP/1.1\r\nHost: mp\r\nContent-Type: application/json\r\n";
  const NEXT = "GET /health HTTP/1.1\r\nHost: mp\r\n\r\n";
  const MIB = 1 << 20;
  /** An envelope of exactly so many bytes: white space in front is JSON too. */
  const sized = (bytes: number) => JSON.stringify({ type: "workspace.list", payload: {} }).padStart(bytes);
  const chunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`;
  const tooLarge = (
    response: { status: number; headers: Record<string, string>; body: string } | undefined,
  ) => {
    expectRefused({ ...response!, text: response!.body }, "payload_too_large");
    expectNoEcho(response!.body, home);
  };

  test("a body of 1 MiB is taken, one of a byte more is not", async () => {
    expect((await mp.post(sized(MIB))).status).toBe(200);
    const reply = await mp.post(sized(MIB + 1));
    expectRefused(reply, "payload_too_large");
  });

  test("a body that is announced as too large is refused before it is sent, and the connection goes on", async () => {
    const body = "x".repeat(2 * MIB);
    const { responses } = await raw(
      daemon.socket,
      [`${HEAD}Content-Length: ${body.length}\r\n\r\n`, body, NEXT],
      {
        count: 2,
      },
    );
    tooLarge(responses[0]);
    expect(responses[1]!.status).toBe(200);
    const early = await raw(daemon.socket, [`${HEAD}Content-Length: ${body.length}\r\n\r\n`, "x"]);
    tooLarge(early.responses[0]);
  });

  test("a body that is announced as enormous gets the same problem, not the runtime's own bare answer", async () => {
    for (const length of [100 * MIB, 3_000 * MIB]) {
      const { responses } = await raw(daemon.socket, [`${HEAD}Content-Length: ${length}\r\n\r\n`, "x"]);
      tooLarge(responses[0]);
    }
  });

  test("a chunked body that grows too large is refused: the problem arrives, and the connection goes on", async () => {
    const chunks = Array.from({ length: 32 }, () => chunk("y".repeat(65_536)));
    const { responses } = await raw(
      daemon.socket,
      [`${HEAD}Transfer-Encoding: chunked\r\n\r\n`, ...chunks, "0\r\n\r\n", NEXT],
      { count: 2 },
    );
    tooLarge(responses[0]);
    expect(responses[1]!.status).toBe(200);
  });

  test("a chunked body that never ends is refused as soon as it is too large", async () => {
    const chunks = Array.from({ length: 17 }, () => chunk("y".repeat(65_536)));
    const { responses } = await raw(daemon.socket, [`${HEAD}Transfer-Encoding: chunked\r\n\r\n`, ...chunks]);
    tooLarge(responses[0]);
  });

  test("a chunked body of any shape is read as one text", async () => {
    const text = sized(200);
    const parts = [...text].map(chunk);
    const { responses } = await raw(daemon.socket, [
      `${HEAD}Transfer-Encoding: chunked\r\n\r\n${parts.join("")}0\r\n\r\n`,
    ]);
    expect(responses[0]!.status).toBe(200);
  });

  test("a client that hangs up in the middle of its body is no bug", async () => {
    for (const framing of ["Content-Length: 100", "Transfer-Encoding: chunked"])
      await raw(daemon.socket, [`${HEAD}${framing}\r\n\r\n`, '5\r\n{"typ'], { count: 0, hangUp: true });
    await mp.head();
    expect(await Bun.file(join(home, "daemon.log")).text()).not.toContain('"level":"error"');
  });

  test("a batch of 1,001 commands", async () => {
    const command = { type: "workspace.open", payload: { workspace_id: NOWHERE } };
    const reply = await mp.batch(
      false,
      Array.from({ length: 1_001 }, () => command),
    );
    expectRefused(reply, "payload_too_large");
    expect(
      (
        await mp.batch(
          false,
          Array.from({ length: 1_000 }, () => command),
        )
      ).status,
    ).toBe(200);
  });

  test("a batch of nothing, of what is no list, and without atomic", async () => {
    for (const [body, pointer] of [
      [{ atomic: true, commands: [] }, "/commands"],
      [{ atomic: true, commands: {} }, "/commands"],
      [{ commands: [create({ name: "x" })] }, "/atomic"],
      [{ atomic: "true", commands: [create({ name: "x" })] }, "/atomic"],
      [{ atomic: true, commands: [create({ name: "x" })], [MARKER]: 1 }, `/${MARKER}`],
    ] as const) {
      const found = expectRefused(
        await ask(daemon.socket, "POST", "/v1/commands/batch", body),
        "invalid_schema",
      );
      expect(found.errors?.map((error) => error.pointer)).toEqual([pointer]);
    }
  });

  test("more broken places than are told are counted, not listed", async () => {
    const fields = Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`f${index}`, 1]));
    const sixty = expectRefused(await mp.post(create({ name: "x", ...fields })), "invalid_schema");
    expect(sixty.errors?.map((error) => error.pointer)).toEqual(
      Object.keys(fields).map((name) => `/payload/${name}`),
    );
    const many = Object.fromEntries(Array.from({ length: 20_000 }, (_, index) => [`f${index}`, 1]));
    const found = expectRefused(await mp.post(create({ name: "x", ...many })), "invalid_schema");
    expect(found.errors).toHaveLength(100);
    expect(found.detail).toContain("and perhaps in more");
  });
});

describe("routes and methods", () => {
  const unknown: readonly (readonly [method: string, path: string])[] = [
    ["GET", "/"],
    ["GET", `/${MARKER}`],
    ["GET", "/v1"],
    ["GET", "/v2/commands"],
    ["GET", "/v1/commands"],
    ["PUT", "/v1/commands"],
    ["DELETE", "/v1/commands"],
    ["OPTIONS", "/v1/commands"],
    ["POST", "/health"],
    ["POST", "/v1/events"],
    ["POST", "/v1/queries/workspace.list"],
    ["DELETE", "/v1/events/1"],
    ["PATCH", "/openapi.json"],
    ["GET", "/v1/queries"],
    ["GET", "/v1/queries/a/b"],
    ["GET", "/v1/../../etc/passwd"],
    ["GET", "/.env"],
    ["GET", "/v1/schemas/..%2f..%2fetc%2fpasswd"],
  ];
  test.each(unknown)("%s %s is no route", async (method, path) => {
    const reply = await ask(daemon.socket, method, path, method === "POST" ? "{}" : undefined);
    expectRefused(reply, "not_found");
    expectNoEcho(reply.text, home);
  });

  test("a query's type that does not exist, one that is a command, and one that is nearly one", async () => {
    expectRefused(await mp.get(`/v1/queries/${MARKER}`), "unknown_command");
    expectRefused(await mp.get("/v1/queries/%E0%A4%A"), "unknown_command");
    expect(expectRefused(await mp.get("/v1/queries/workspace.create"), "unknown_command").hint).toContain(
      "POST",
    );
    expect(expectRefused(await mp.get("/v1/queries/workspace.lits"), "unknown_command").hint).toContain(
      "workspace.list",
    );
  });

  test("a subscription: it is known, and only the WebSocket takes it", async () => {
    const sent = { type: "events.subscribe", payload: { after: 0 } };
    for (const reply of [
      await mp.post(sent),
      await mp.batch(true, [sent]),
      await mp.get("/v1/queries/events.subscribe?after=0"),
    ])
      expect(expectRefused(reply, "unknown_command").hint).toBe("only on the WebSocket, GET /v1/stream");
    expect((await mp.answer("schema.get", { name: "query.events.subscribe.v1" })).schema).toMatchObject({
      required: ["after"],
    });
  });

  test("parameters that break their schema", async () => {
    for (const [query, pointer] of [
      ["limit=0", "limit"],
      ["limit=1&limit=2", "limit"],
      ["limit=", "limit"],
      ["limit=01", "limit"],
      ["limit=1e3", "limit"],
      ["limit=+5", "limit"],
      ["limit=5.0", "limit"],
      ["limit=99999999999999999999", "limit"],
      [`status=${MARKER}`, "status"],
      ["status=open&status=open", "status"],
      ["colour=red", "colour"],
      ["__proto__=1", "__proto__"],
      ["__proto__=1&__proto__=2", "__proto__"],
      ["constructor=1", "constructor"],
      ["name=%00", "name"],
      ["min_seq=-1", "min_seq"],
      ["cursor=!", "cursor"],
    ]) {
      const reply = await mp.get(`/v1/queries/workspace.list?${query}`);
      const found = expectRefused(reply, "invalid_schema");
      expect([query, found.errors?.map((error) => error.pointer)]).toEqual([query, [`/payload/${pointer}`]]);
      expectNoEcho(reply.text, home);
    }
    expectRefused(await mp.get("/v1/events?since=2026-13-01T00:00:00.000Z"), "invalid_schema");
    expectRefused(await mp.get("/v1/events?after=-1"), "invalid_schema");
    expectRefused(await mp.get(`/v1/events?${MARKER}=1`), "invalid_schema");
    expectRefused(await mp.get("/v1/events?types=task.*.x"), "invalid_schema");
    expectRefused(await mp.get(`/v1/events/${there.event}?as_stored=1`), "invalid_schema");
    expectRefused(await mp.get(`/v1/events/${there.event}?pretty=true`), "invalid_schema");
    expectRefused(await mp.get("/v1/schemas?pretty=true"), "invalid_schema");
  });

  test("cursors of a stream, on every transport", async () => {
    for (const accept of ["application/json", "application/x-ndjson", "text/event-stream"]) {
      const follow = accept === "application/json" ? "" : "&follow=true";
      expectRefused(await mp.get(`/v1/events?after=1000000${follow}`, { accept }), "cursor_ahead");
      expectRefused(
        await mp.get(`/v1/events?after=0&log_id=${NOWHERE}${follow}`, { accept }),
        "cursor_foreign",
      );
    }
    const refusals: readonly (readonly [Code, object])[] = [
      ["cursor_ahead", { after: 1_000_000 }],
      ["cursor_foreign", { after: 0, log_id: NOWHERE }],
      ["invalid_schema", {}],
      ["invalid_schema", { after: 0, [MARKER]: 1 }],
      ["invalid_schema", { after: 0, filter: { types: [MARKER] } }],
    ];
    for (const [code, payload] of refusals) {
      const { kind, ...found } = await ws.request({ type: "events.subscribe", payload });
      expect(kind).toBe("problem");
      expectProblem(found, code);
    }
  });

  test("things that do not exist", async () => {
    for (const path of [`/v1/events/${NOWHERE}`, `/v1/events/${MARKER}`, `/v1/schemas/${MARKER}`]) {
      const reply = await mp.get(path);
      expectRefused(reply, "not_found");
      expectNoEcho(reply.text, home);
    }
  });

  test("a stream that is not upgraded", async () => {
    expectRefused(await mp.get("/v1/stream"), "malformed_request");
  });

  test("HEAD answers as GET does, with no body", async () => {
    for (const path of [
      "/health",
      "/v1/queries/workspace.list",
      `/v1/queries/${MARKER}`,
      "/v1/queries/workspace.list?limit=0",
    ]) {
      const [got, headOnly] = await Promise.all([mp.get(path), ask(daemon.socket, "HEAD", path)]);
      expect([headOnly.status, headOnly.text]).toEqual([got.status, ""]);
      expect(headOnly.headers.get("content-type")).toBe(got.headers.get("content-type"));
    }
  });
});

describe("what a browser or an odd client sends (SPEC §10)", () => {
  const routes: readonly (readonly [method: string, path: string])[] = [
    ["GET", "/health"],
    ["GET", "/openapi.json"],
    ["GET", "/v1/queries/workspace.list"],
    ["HEAD", "/v1/queries/workspace.list"],
    ["GET", "/v1/events"],
    ["GET", "/v1/events?follow=true"],
    ["GET", "/v1/events/x"],
    ["GET", "/v1/schemas"],
    ["GET", "/v1/schemas/x"],
    ["GET", "/v1/stream"],
    ["GET", "/nowhere"],
    ["POST", "/v1/commands"],
    ["POST", "/v1/commands/batch"],
    ["OPTIONS", "/v1/commands"],
  ];
  test.each(routes)("%s %s with an Origin is refused", async (method, path) => {
    for (const origin of [`http://${MARKER}.example`, "http://mp", "http://localhost", "null"]) {
      const body = method === "POST" ? JSON.stringify(create({ name: MARKER })) : undefined;
      const reply = await ask(daemon.socket, method, path, body, { origin });
      if (method === "HEAD") expect([reply.status, reply.text]).toEqual([403, ""]);
      else {
        expectRefused(reply, "policy_denied");
        expectNoEcho(reply.text, home);
      }
      expect(reply.headers.get("access-control-allow-origin")).toBeNull();
    }
  });

  test("an upgrade with an Origin is refused, without one it is taken", async () => {
    const upgrade = (more: string) =>
      raw(daemon.socket, [
        `GET /v1/stream HTTP/1.1\r\nHost: mp\r\n${more}Upgrade: websocket\r\nConnection: Upgrade\r\n` +
          "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
      ]);
    const [refusal] = (await upgrade("Origin: http://mp\r\n")).responses;
    expectRefused({ ...refusal!, text: refusal!.body }, "policy_denied");
    // 101 is an interim response to a reader of plain HTTP, so there is nothing to read and nothing to wait for.
    const open = await wire(daemon.socket);
    expect((await open.request({ type: "daemon.ping", payload: {} })).kind).toBe("result");
    open.close();
  });

  test("a body is not read before its sender is let in", async () => {
    const { responses } = await raw(daemon.socket, [
      "POST /v1/commands HTTP/1.1\r\nHost: mp\r\nOrigin: http://x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n",
    ]);
    expectRefused({ ...responses[0]!, text: responses[0]!.body }, "policy_denied");
  });

  test("Host headers of every kind change nothing", async () => {
    for (const host of [
      "mp",
      "",
      "evil.example",
      "a b c",
      "../../etc",
      "x/health?",
      "a?limit=5#",
      "[::1",
      "127.0.0.1:1",
    ]) {
      const { responses } = await raw(
        daemon.socket,
        [
          `GET /v1/queries/workspace.list?limit=0 HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
          `GET /v1/events?limit=1 HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
          `GET /nowhere HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
        ],
        { count: 3 },
      );
      expect([host, responses.map((each) => each.status)]).toEqual([host, [422, 200, 404]]);
    }
    const twice = await raw(daemon.socket, ["GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"]);
    expect(twice.responses[0]!.status).toBe(200);
  });

  test("a GET with a body does not become two requests", async () => {
    const smuggled = "GET /nowhere HTTP/1.1\r\nHost: mp\r\n\r\n";
    for (const framed of [
      `Content-Length: ${smuggled.length}\r\n\r\n${smuggled}`,
      `Transfer-Encoding: chunked\r\n\r\n${smuggled.length.toString(16)}\r\n${smuggled}\r\n0\r\n\r\n`,
    ]) {
      const { responses } = await raw(
        daemon.socket,
        [
          `GET /v1/queries/workspace.list HTTP/1.1\r\nHost: mp\r\n${framed}`,
          "GET /health HTTP/1.1\r\nHost: mp\r\n\r\n",
        ],
        { count: 2 },
      );
      expect(responses.map((each) => each.status)).toEqual([200, 200]);
      expect(JSON.parse(responses[1]!.body)).toMatchObject({ status: "ok" });
    }
  });

  test("a length that contradicts itself is refused and the connection closed", async () => {
    const { responses, closed } = await raw(
      daemon.socket,
      [
        "POST /v1/commands HTTP/1.1\r\nHost: mp\r\nContent-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: mp\r\n\r\n",
      ],
      { count: 0 },
    );
    expect([responses.map((each) => each.status), closed]).toEqual([[400], true]);
  });
});

describe("trace ids", () => {
  const trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  const traceparent = `00-${trace_id}-00f067aa0ba902b7-01`;
  const good = { name: 5 };

  test("that of the traceparent header is in every problem and is written into no other", async () => {
    const asked: readonly (readonly [string, string, (string | object)?])[] = [
      ["POST", "/v1/commands", create(good)],
      ["POST", "/v1/commands", "{"],
      ["POST", "/v1/commands/batch", { atomic: true, commands: [create(good)] }],
      ["GET", "/v1/queries/workspace.list?limit=0"],
      ["GET", "/v1/events?after=-1"],
      ["GET", "/v1/events?after=1000000"],
      ["GET", `/v1/events/${NOWHERE}`],
      ["GET", "/v1/schemas/none"],
      ["GET", "/v1/stream"],
      ["GET", "/nowhere"],
    ];
    for (const [method, path, body] of asked) {
      const reply = await ask(daemon.socket, method, path, body, { traceparent });
      expect([path, reply.json.trace_id]).toEqual([path, trace_id]);
    }
    const items = (
      await ask(
        daemon.socket,
        "POST",
        "/v1/commands/batch",
        { atomic: false, commands: [create(good)] },
        { traceparent },
      )
    ).json.items as Json[];
    expect(items[0]!.trace_id).toBe(trace_id);
  });

  test("the envelope's own goes before the header's", async () => {
    const own = "0123456789abcdef0123456789abcdef";
    const reply = await ask(daemon.socket, "POST", "/v1/commands", create(good, { trace_id: own }), {
      traceparent,
    });
    expect(reply.json.trace_id).toBe(own);
  });

  test("a header that is not right is as none", async () => {
    for (const header of [
      "",
      trace_id,
      `ff-${trace_id}-00f067aa0ba902b7-01`,
      `00-${"0".repeat(32)}-00f067aa0ba902b7-01`,
      `00-${trace_id}-${"0".repeat(16)}-01`,
      `00-${trace_id.toUpperCase()}-00f067aa0ba902b7-01`,
      `00-${trace_id}-00f067aa0ba902b7`,
    ]) {
      const reply = await ask(daemon.socket, "POST", "/v1/commands", create(good), { traceparent: header });
      expect(expectRefused(reply, "invalid_schema").trace_id).not.toBe(trace_id);
    }
  });
});

test("a position that is never reached is waited for, but not for ever, and then says when to come back", async () => {
  const min_seq = head + 1_000;
  const [post, get, events, frame] = await Promise.all([
    mp.post({ type: "workspace.list", payload: { min_seq } }),
    mp.get(`/v1/queries/daemon.ping?min_seq=${min_seq}`),
    mp.get(`/v1/events?min_seq=${min_seq}`),
    ws.request({ type: "project.list", payload: { min_seq } }),
  ]);
  for (const reply of [post, get, events]) {
    const { details, hint } = expectRefused(reply, "overloaded");
    expect([details, hint]).toEqual([{ head, min_seq }, expect.stringContaining("check min_seq")]);
    expect(reply.headers.get("retry-after")).toBe("1");
  }
  const { kind, ...found } = frame;
  expect(kind).toBe("problem");
  expectProblem(found, "overloaded");
});

describe("a bug", () => {
  const secret = `${MARKER} at /home/someone/secret.ts:1`;
  const bugs: [string, unknown][] = [];
  const socket = join(home, "bug.sock");
  const fails = () => Promise.reject(new Error(secret));
  let server: { stop(now?: boolean): Promise<void> };

  beforeAll(() => {
    const gate = socketGate("ada", 1);
    const routes = app({
      registry: buildRegistry([], system),
      dispatch: { ready: async () => undefined, one: fails, batch: fails, query: fails },
      // The event routes reach for the log, which is not there.
      hub: {} as never,
      bytes: {} as never,
      health: { status: "ok", version: "0", api_version: 1, start_id: NOWHERE },
      gate,
      onBug: (trace_id, error) => bugs.push([trace_id, error]),
    });
    routes.listen({ unix: socket } as unknown as Parameters<typeof routes.listen>[0]);
    server = routes.server!;
  });
  afterAll(async () => {
    await server.stop(true);
    rmSync(socket, { force: true });
  });

  test("answers internal on every route, says nothing of itself, and is told to the log with its trace id", async () => {
    const requests: readonly (readonly [string, string, object?])[] = [
      ["POST", "/v1/commands", create({ name: "x" })],
      ["POST", "/v1/commands/batch", { atomic: true, commands: [create({ name: "x" })] }],
      ["GET", "/v1/queries/workspace.list"],
      ["GET", "/v1/schemas"],
      ["GET", "/v1/events"],
      ["GET", `/v1/events/${NOWHERE}`],
    ];
    for (const [method, path, body] of requests) {
      bugs.length = 0;
      const reply = await ask(socket, method, path, body);
      const found = expectRefused(reply, "internal");
      expectNoEcho(reply.text);
      expect([path, bugs.map(([trace_id]) => trace_id)]).toEqual([path, [found.trace_id]]);
    }
  });

  test("answers internal on a WebSocket too, and the socket goes on", async () => {
    bugs.length = 0;
    const open = await wire(socket);
    for (let times = 0; times < 2; times++) {
      const { kind, ...found } = await open.request(create({ name: "x" }));
      expect(kind).toBe("problem");
      const { trace_id } = expectProblem(found, "internal");
      expect(bugs.at(-1)).toEqual([trace_id, new Error(secret)]);
      expectNoEcho(JSON.stringify(found));
    }
    open.close();
  });
});
