/**
 * The HTTP API (SPEC §2): every route, in one screenful. Elysia routes and gives Eden its types; what a request
 * means is decided by `dispatch`, the same as on the WebSocket.
 *
 * Always holds: no body reaches Elysia's own lenient parser or validator; no error of Elysia's or of ours shows input,
 * a path or a stack (SPEC §10).
 */
import { Elysia } from "elysia";
import { Type } from "typebox";
import type { AnyEnvelope, BatchAnswer, Receipt, StoredBytes } from "../client/types.ts";
import { freshTrace } from "../kernel/clock.ts";
import { type Answer, type Dispatch, fromText, invalidSchema } from "../kernel/dispatch.ts";
import { bodyOf } from "../kernel/page.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import { object, schemaErrors, typed } from "../kernel/schema.ts";
import { allSchemas } from "../kernel/schemas.ts";
import type { Hub } from "../kernel/stream.ts";
import { answerText, json, refused, respond } from "./answers.ts";
import { type Bytes, getArtifact, putArtifact } from "./artifacts.ts";
import { eventsParams, getEvents } from "./events.ts";
import { openApi } from "./openapi.ts";
import { type Gate, oneLook, originRefusal, readJson, searchOf, traceOf, Unreadable } from "./request.ts";
import { connection } from "./stream.ts";

/** Live streams and sockets at most, when nobody says otherwise (SPEC §10). */
const MAX_STREAMS = 1_024;

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
  /** The bytes of artifacts. */
  readonly bytes: Bytes;
  readonly health: Health;
  readonly gate: Gate;
  /** Live streams and sockets at most. */
  readonly streams?: number;
  /** Log a bug; the answer says only that there was one. */
  readonly onBug: (trace_id: string, error: unknown) => void;
}

/** The routes. Elysia parses nothing, and `normalize` is off: it would strip what it does not know. */
export function app({
  registry,
  dispatch: undefended,
  hub,
  bytes,
  health,
  gate: undoubted,
  onBug,
  streams = MAX_STREAMS,
}: Parts) {
  const dispatch = defended(undefended, onBug);
  const gate = oneLook(undoubted);
  /** For all but commands, which the writer holds against what has ended, after their keys. */
  const live: Gate = (request) => {
    const caller = gate(request);
    return isProblem(caller) ? caller : (caller.ended?.() ?? caller);
  };
  const noSuchRoute = problem("not_found", "there is no such route with that method", {
    hint: "see /openapi.json",
  });
  const listParams = eventsParams(registry);
  const places = new Set<object>();
  /** Take a place among the live streams and sockets; what it gives back leaves it. */
  const admit = (): (() => void) | Problem => {
    if (places.size >= streams) return problem("overloaded", `${places.size} streams are open already`);
    const place = {};
    places.add(place);
    return () => {
      places.delete(place);
    };
  };

  return new Elysia({ normalize: false })
    .onError(({ error, code, request }) => {
      const trace_id = traceOf(request);
      if (code === "NOT_FOUND") {
        const caller = live(request);
        return refused<never>(isProblem(caller) ? caller : noSuchRoute, trace_id);
      }
      onBug(trace_id, error);
      return refused<never>(problem("internal", "the request met a bug"), trace_id);
    })
    .get("/health", ({ request }) => {
      const refusal = originRefusal(request);
      return refusal ? refused<Health>(refusal, traceOf(request)) : json<Health>(JSON.stringify(health));
    })
    .put(
      "/v1/artifacts/:digest",
      async ({ params, request }) => {
        const caller = live(request);
        if (isProblem(caller)) return refused<StoredBytes>(caller, traceOf(request));
        return putArtifact(bytes, params.digest, request, admit);
      },
      // The body is a stream of any bytes: nobody parses it.
      { parse: "none" },
    )
    .guard({
      // The gate comes before the body is read: who may not ask is not listened to.
      beforeHandle: ({ request }) => {
        const caller = gate(request);
        return isProblem(caller) ? refused<never>(caller, traceOf(request)) : undefined;
      },
    })
    .post(
      "/v1/commands",
      async ({ request }): Promise<Receipt | object> => {
        const body = await readJson(request);
        if (body instanceof Unreadable) return refused<never>(body.problem, traceOf(request));
        return respond(await dispatch.one(body, callerOf(gate, request), traceOf(request)));
      },
      { parse: "none", body: typed<AnyEnvelope>() },
    )
    .post(
      "/v1/commands/batch",
      async ({ request }): Promise<BatchAnswer> => {
        const body = await readJson(request);
        if (body instanceof Unreadable) return refused<never>(body.problem, traceOf(request));
        const done = await dispatch.batch(body, callerOf(gate, request), traceOf(request));
        if ("problem" in done) return refused(done.problem);
        const items = done.answers.map((each) => `{"kind":"${each.kind}",${answerText(each).slice(1)}`);
        return json(`{"items":[${items.join(",")}]}`);
      },
      { parse: "none", body: typed<{ atomic: boolean; commands: readonly AnyEnvelope[] }>() },
    )
    .guard({
      beforeHandle: ({ request }) => {
        const caller = live(request);
        return isProblem(caller) ? refused<never>(caller, traceOf(request)) : undefined;
      },
    })
    .get(
      "/v1/queries/:type",
      async ({ params, request }): Promise<object> =>
        respond(
          await dispatch.query(params.type, searchOf(request), callerOf(gate, request), traceOf(request)),
        ),
    )
    .get("/v1/events", ({ request, server }) => {
      server?.timeout(request, 0);
      return getEvents({ hub, dispatch, params: listParams, onBug }, request, admit);
    })
    .get("/v1/events/:event_id", ({ params, request }): object => oneEvent(hub, request, params.event_id))
    .get("/v1/artifacts/:digest", ({ params, request }) => getArtifact(bytes, params.digest, request))
    .get("/v1/stream", ({ request, server }) => {
      const leave = admit();
      if (isProblem(leave)) return refused<never>(leave, traceOf(request));
      const data = connection(hub, dispatch, callerOf(gate, request), onBug, leave);
      if (server?.upgrade(request, { data })) return undefined;
      leave();
      return refused<never>(
        problem("malformed_request", "this route is a WebSocket", { hint: "send an upgrade" }),
        traceOf(request),
      );
    })
    .get(
      "/v1/schemas",
      async ({ request }): Promise<object> =>
        respond(
          await dispatch.query("schema.list", searchOf(request), callerOf(gate, request), traceOf(request)),
        ),
    )
    .get("/v1/schemas/:name", ({ params, request }): object => {
      const found = allSchemas(registry).get(params.name.replace(/\.json$/, ""));
      return found
        ? json(JSON.stringify(found), { "content-type": "application/schema+json" })
        : refused(problem("not_found", "there is no such schema"), traceOf(request));
    })
    .get("/openapi.json", () => json<object>(JSON.stringify(openApi(registry))));
}

export type App = ReturnType<typeof app>;

const EventParams = object({ as_stored: Type.Optional(Type.Boolean()) });

/** `GET /v1/events/{event_id}`: the event as the log has it, in its current version unless `as_stored` says not to. */
function oneEvent(hub: Hub, request: Request, event_id: string): object {
  const params = fromText(EventParams.properties, searchOf(request));
  const errors = schemaErrors(EventParams, params);
  if (errors.length > 0) return refused(invalidSchema(errors, traceOf(request)));
  const line = hub.reader.byId(event_id);
  return line
    ? json(bodyOf(hub, line, params.as_stored === true))
    : refused(problem("not_found", "there is no such event"), traceOf(request));
}

/** The caller of a request that has passed the gate. */
function callerOf(gate: Gate, request: Request) {
  const caller = gate(request);
  if (isProblem(caller)) throw new Error("a request came past the gate");
  return caller;
}

/** The dispatcher, with `internal` as the answer to a bug: on a WebSocket as well, where nobody else would answer. */
function defended(dispatch: Dispatch, onBug: Parts["onBug"]): Dispatch {
  const bug = (error: unknown, trace_id = freshTrace()): Problem => {
    onBug(trace_id, error);
    return problem("internal", "the request met a bug", { trace_id });
  };
  const answer = (error: unknown, trace_id?: string): Answer => ({
    kind: "problem",
    problem: bug(error, trace_id),
  });
  return {
    ready: (min_seq) => dispatch.ready(min_seq),
    one: (value, caller, trace_id) =>
      dispatch.one(value, caller, trace_id).catch((error: unknown) => answer(error, trace_id)),
    batch: (value, caller, trace_id) =>
      dispatch.batch(value, caller, trace_id).catch((error: unknown) => ({ problem: bug(error, trace_id) })),
    query: (type, search, caller, trace_id) =>
      dispatch.query(type, search, caller, trace_id).catch((error: unknown) => answer(error, trace_id)),
  };
}
