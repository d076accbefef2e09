/**
 * The gate of the routes (SPEC §10): every request is looked at once, whoever asks about it later, and one that is refused is
 * not listened to. What a token says is tested with the daemon (test/daemon/tokens.test.ts).
 */
import { afterAll, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { connect } from "../../src/client/client.ts";
import { tail } from "../../src/client/tail.ts";
import { ownToken } from "../../src/client/transport.ts";
import { app } from "../../src/http/app.ts";
import { type Gate, socketGate } from "../../src/http/request.ts";
import { type Problem, problem } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome } from "../support/binary.ts";
import { ask, envelope, expectRefused } from "./api.ts";

const NOWHERE = "01900000-0000-7000-8000-000000000000";
const socket = join(tempHome(), "gate.sock");
/** Every look, as the Authorization header that was there. */
let looks: (string | null)[] = [];
/** Who asked, as the routes were told. */
let callers: string[] = [];

const known = socketGate("ada", 1, (authorization) =>
  authorization === "Bearer good"
    ? { actor: { id: "s", kind: "session" }, principal: "session/s" }
    : problem("unauthorized", "that is nobody"),
);
const gate: Gate = (request) => {
  looks.push(request.headers.get("authorization"));
  return known(request);
};
const answered = (caller: { readonly principal: string }) => {
  callers.push(caller.principal);
  return { kind: "result", result: { as_of_seq: 0 } } as const;
};
const routes = app({
  registry: buildRegistry([], system),
  dispatch: {
    ready: async () => undefined,
    one: async (_, caller) => answered(caller),
    batch: async (_, caller) => ({ answers: [answered(caller)] }),
    query: async (_, __, caller) => answered(caller),
  },
  hub: { reader: { byId: () => undefined } } as never,
  bytes: {} as never,
  health: { status: "ok", version: "0", api_version: 1, start_id: NOWHERE },
  gate,
  // What lies behind the gate is not all there.
  onBug: () => undefined,
});
routes.listen({ unix: socket } as unknown as Parameters<typeof routes.listen>[0]);
afterAll(() => routes.server!.stop(true));

beforeEach(() => {
  looks = [];
  callers = [];
});

const requests: readonly (readonly [string, string, object?])[] = [
  ["POST", "/v1/commands", envelope("daemon.shutdown", {})],
  ["POST", "/v1/commands/batch", { atomic: false, commands: [envelope("daemon.shutdown", {})] }],
  ["GET", "/v1/queries/daemon.ping"],
  ["HEAD", "/v1/queries/daemon.ping"],
  ["GET", "/v1/schemas"],
  ["GET", `/v1/events/${NOWHERE}`],
  ["GET", "/v1/stream"],
  ["GET", `/v1/artifacts/sha256:${"0".repeat(64)}`],
  ["PUT", `/v1/artifacts/sha256:${"0".repeat(64)}`],
  ["GET", "/v1/nowhere"],
];

test("each request is looked at once, and its route hears who it is", async () => {
  for (const [method, path, body] of requests) {
    looks = [];
    await ask(socket, method, path, body, { authorization: "Bearer good" });
    expect([method, path, looks]).toEqual([method, path, ["Bearer good"]]);
  }
  expect(new Set(callers)).toEqual(new Set(["session/s"]));
  expect((await ask(socket, "GET", "/v1/queries/daemon.ping")).status).toBe(200);
  expect(callers.at(-1)).toBe("uid:1");
});

test("who is refused is refused on every route, before the body is read", async () => {
  for (const [method, path] of requests) {
    looks = [];
    const body = method === "POST" ? "{ this is no JSON" : undefined;
    const reply = await ask(socket, method, path, body, { authorization: "Bearer bad" });
    if (method === "HEAD") expect([path, reply.status]).toEqual([path, 401]);
    else expectRefused(reply, "unauthorized");
    expect([method, path, looks]).toEqual([method, path, ["Bearer bad"]]);
  }
  expect(callers).toEqual([]);
  expect((await ask(socket, "GET", "/health", undefined, { authorization: "Bearer bad" })).status).toBe(200);
});

test("a browser's detour is refused also with a good token", async () => {
  const headers = { authorization: "Bearer good", origin: "https://example.com" };
  expectRefused(await ask(socket, "GET", "/v1/queries/daemon.ping", undefined, headers), "policy_denied");
});

test("the client sends the token of its target on every way", async () => {
  const target = { socket, ...ownToken({ MP_TOKEN: "good" }) };
  await connect(target).query("daemon.ping");
  await connect(target).send(envelope("daemon.shutdown", {}) as never);
  await connect(target).download(`sha256:${"0".repeat(64)}`);
  for await (const _ of tail(target, { after: 0, reconnect: false })) break;
  expect(new Set(looks)).toEqual(new Set(["Bearer good"]));
  expect(looks).toHaveLength(4);
  looks = [];
  await connect({ socket, ...ownToken({ MP_TOKEN: "" }) }).query("daemon.ping");
  expect(looks).toEqual([null]);
  // What cannot stand in a header is a token that is not good, and no bug.
  const odd = (await connect({ socket, ...ownToken({ MP_TOKEN: "good\nx: y" }) }).query(
    "daemon.ping",
  )) as Problem;
  expect([odd.code, looks.at(-1)]).toEqual(["unauthorized", "Bearer good?x:?y"]);
});
