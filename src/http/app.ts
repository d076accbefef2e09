/**
 * The HTTP API (SPEC §2): every route, in one screenful. Elysia routes and gives Eden its types; what a request
 * means is decided by `dispatch`, the same as on the WebSocket.
 *
 * Always holds: no body reaches Elysia's own lenient parser or validator; no error of Elysia's or of ours shows input,
 * a path or a stack (SPEC §10).
 */
import { Elysia } from "elysia";
import type { AnyEnvelope, BatchAnswer, Receipt } from "../client/types.ts";
import type { Dispatch } from "../kernel/dispatch.ts";
import { isProblem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import { typed } from "../kernel/schema.ts";
import { allSchemas } from "../kernel/schemas.ts";
import type { Hub } from "../kernel/stream.ts";
import { answerText, json, refused, respond } from "./answers.ts";
import { bodyOf, getEvents } from "./events.ts";
import { openApi } from "./openapi.ts";
import { type Gate, readJson, traceOf, Unreadable } from "./request.ts";
import { connection } from "./stream.ts";

/** Live streams and sockets at most (SPEC §10). */
const MAX_CONNECTIONS = 1_024;

export interface Health {
  readonly status: "ok";
  readonly version: string;
  readonly api_version: number;
  readonly start_id: string;
}

interface Parts {
  readonly registry: Registry;
  readonly dispatch: Dispatch;
  readonly hub: Hub;
  readonly health: Health;
  readonly gate: Gate;
  /** Log a bug; the answer says only that there was one. */
  readonly onBug: (trace_id: string, error: unknown) => void;
}

/** The routes. `parse` is ours, `normalize` off: Elysia would strip what it does not know. */
export function app({ registry, dispatch, hub, health, gate, onBug }: Parts) {
  let streams = 0;
  const tooMany = () =>
    streams < MAX_CONNECTIONS ? undefined : problem("overloaded", `${streams} streams are open already`);

  return new Elysia({ normalize: false })
    .onError(({ error, code, request }) => {
      if (code === "NOT_FOUND")
        return refused<Response>(
          problem("not_found", "there is no such route", { hint: "see /openapi.json" }),
        );
      const trace_id = traceOf(request) ?? crypto.randomUUID().replaceAll("-", "");
      onBug(trace_id, error);
      return refused<Response>(problem("internal", "the request met a bug", { trace_id }));
    })
    .get("/health", () => health)
    .guard({
      // The gate comes before the body is read: who may not ask is not listened to.
      parse: ({ request }) => {
        const caller = gate(request);
        return isProblem(caller) ? new Unreadable(caller) : readJson(request);
      },
      beforeHandle: ({ request, body }) => {
        if ((body as unknown) instanceof Unreadable)
          return refused<Response>((body as unknown as Unreadable).problem);
        if (request.method !== "GET") return undefined;
        const caller = gate(request);
        return isProblem(caller) ? refused<Response>(caller) : undefined;
      },
    })
    .post(
      "/v1/commands",
      async ({ body, request }): Promise<Receipt | object> =>
        respond(await dispatch.one(body, callerOf(gate, request), traceOf(request))),
      { body: typed<AnyEnvelope>() },
    )
    .post(
      "/v1/commands/batch",
      async ({ body, request }): Promise<BatchAnswer> => {
        const done = await dispatch.batch(body, callerOf(gate, request), traceOf(request));
        if ("problem" in done) return refused(done.problem);
        const items = done.answers.map((each) => `{"kind":"${each.kind}",${answerText(each).slice(1)}`);
        return json(`{"items":[${items.join(",")}]}`);
      },
      { body: typed<{ atomic: boolean; commands: readonly AnyEnvelope[] }>() },
    )
    .get("/v1/queries/:type", async ({ params, request }): Promise<object> => {
      const { searchParams } = new URL(request.url);
      return respond(await dispatch.query(params.type, searchParams, traceOf(request)));
    })
    .get("/v1/events", ({ request, server }) => {
      server?.timeout(request, 0);
      return getEvents(hub, request, tooMany);
    })
    .get("/v1/events/:event_id", ({ params, request }): object => {
      const line = hub.reader.byId(params.event_id);
      if (!line)
        return refused(problem("not_found", "there is no such event", { trace_id: traceOf(request) ?? "" }));
      return json(bodyOf(hub, line, new URL(request.url).searchParams.get("as_stored") === "true"));
    })
    .get("/v1/stream", ({ request, server }) => {
      const full = tooMany();
      if (full) return refused<Response>(full);
      const data = connection(hub, dispatch, callerOf(gate, request), () => {
        streams -= 1;
      });
      if (!server?.upgrade(request, { data }))
        return refused<Response>(
          problem("malformed_request", "this route is a WebSocket", { hint: "send an upgrade" }),
        );
      streams += 1;
      return undefined;
    })
    .get(
      "/v1/schemas",
      ({ request }): Promise<object> =>
        dispatch
          .query("schema.list", new URL(request.url).searchParams, traceOf(request))
          .then(respond<object>),
    )
    .get("/v1/schemas/:name", ({ params, request }): object => {
      const found = allSchemas(registry).get(params.name.replace(/\.json$/, ""));
      return found
        ? json(JSON.stringify(found), { "content-type": "application/schema+json" })
        : refused(problem("not_found", "there is no such schema", { trace_id: traceOf(request) ?? "" }));
    })
    .get("/openapi.json", () => openApi(registry));
}

export type App = ReturnType<typeof app>;

/** The caller of a request that has passed the gate. */
function callerOf(gate: Gate, request: Request) {
  const caller = gate(request);
  if (isProblem(caller)) throw new Error("a request came past the gate");
  return caller;
}
