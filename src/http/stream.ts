/**
 * `GET /v1/stream`: the WebSocket (SPEC §2, §5). Subscriptions and pipelined commands on one socket.
 *
 * Elysia's route only upgrades: Elysia would parse a text frame itself, and leniently, so the frames are
 * taken from Bun's socket and go through `parseStrict`. When the socket pushes back, pumping stops with the frames
 * at hand and goes on at `drain`, from the cursor: a reader that does not read costs one page.
 */
import type { ServerWebSocket } from "bun";
import { type Static, Type } from "typebox";
import { type Caller, type Dispatch, envelopeFields, TraceId } from "../kernel/dispatch.ts";
import { parseStrict } from "../kernel/json.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { Id, object, Seq, schemaErrors } from "../kernel/schema.ts";
import { type Feed, type Frame, HEARTBEAT_MS, type Hub } from "../kernel/stream.ts";
import { filterFields } from "../kernel/system.ts";
import { answerText } from "./answers.ts";
import { filterOf } from "./events.ts";

/** Subscriptions on one socket, and requests under way on it, at most (SPEC §10). */
const MAX_SUBSCRIPTIONS = 64;
const MAX_UNDER_WAY = 1_000;

const RequestId = Type.String({ pattern: "^[!-~]{1,64}$", description: "1–64 printable ASCII characters" });

const Subscribe = object({
  after: Seq,
  log_id: Type.Optional(Id),
  filter: Type.Optional(object({ ...filterFields })),
  frames: Type.Optional(Type.Array(Type.Literal("projection_updated"))),
  as_stored: Type.Optional(Type.Boolean()),
});

const SubscribeEnvelope = object({
  request_id: RequestId,
  type: Type.Literal("events.subscribe"),
  schema_version: Type.Optional(Type.Literal(1)),
  payload: Subscribe,
  trace_id: Type.Optional(TraceId),
});

/** The payload of `events.subscribe`. */
export type Subscribe = Static<typeof Subscribe>;
export const subscribeSchema = Subscribe;

interface Subscribed {
  readonly id: string;
  readonly feed: Feed;
  /** Frames that were pulled but not yet taken by the socket. */
  pending: Frame[];
  /** The start and the end of every event frame of this subscription. */
  readonly prefix: string;
  heartbeat: Timer;
}

/** What Elysia's WebSocket dispatch calls; one per socket. */
export interface Connection {
  open(ws: ServerWebSocket<Connection>): void;
  message(ws: ServerWebSocket<Connection>, message: string | Buffer): void;
  drain(ws: ServerWebSocket<Connection>): void;
  close(ws: ServerWebSocket<Connection>): void;
}

/**
 * One socket's life.
 * @param caller who opened it
 * @param closed called once, at its end
 */
export function connection(hub: Hub, dispatch: Dispatch, caller: Caller, closed: () => void): Connection {
  const subscriptions = new Map<string, Subscribed>();
  let underWay = 0;
  let blocked = false;
  let scheduled = false;
  let socket: ServerWebSocket<Connection>;

  function frame(subscribed: Subscribed, each: Frame): string {
    return each.kind === "event"
      ? `${subscribed.prefix}${each.body}}`
      : JSON.stringify({ ...each, subscription: subscribed.id });
  }

  /** Send until the socket pushes back or nobody has more. */
  function pump(): void {
    scheduled = false;
    if (blocked || socket.readyState !== WebSocket.OPEN) return;
    let more = false;
    socket.cork(() => {
      for (const subscribed of subscriptions.values()) {
        if (blocked) break;
        if (subscribed.pending.length === 0) subscribed.pending = subscribed.feed.next();
        flush(subscribed);
        if (subscribed.feed.over) end(subscribed);
        else if (!subscribed.feed.idle) more = true;
        else subscribed.feed.onWake(wake);
      }
    });
    // A page at a time, so that other sockets get their turn.
    if (more && !blocked) schedule();
  }

  function flush(subscribed: Subscribed): void {
    let sent = 0;
    for (const each of subscribed.pending) {
      const status = socket.send(frame(subscribed, each));
      if (status !== 0) sent += 1;
      if (status > 0) continue;
      // −1: taken, but the client is slow; 0: not taken at all. Either way go on at `drain`.
      blocked = true;
      break;
    }
    subscribed.pending = sent === subscribed.pending.length ? [] : subscribed.pending.slice(sent);
  }

  function schedule(): void {
    if (scheduled) return;
    scheduled = true;
    setImmediate(pump);
  }

  /** A commit: live sockets are served at once, in the same turn. */
  function wake(): void {
    if (!scheduled) pump();
  }

  function beat(subscribed: Subscribed): void {
    const each = blocked || subscribed.pending.length > 0 ? undefined : subscribed.feed.heartbeat();
    if (each) socket.send(frame(subscribed, each));
  }

  function end(subscribed: Subscribed): void {
    clearInterval(subscribed.heartbeat);
    subscribed.feed.close();
    subscriptions.delete(subscribed.id);
  }

  /** `text` is a JSON object: its members follow `request_id` and `kind`. */
  function answer(request_id: string | null, kind: string, text: string): void {
    socket.send(`{"request_id":${JSON.stringify(request_id)},"kind":"${kind}",${text.slice(1)}`);
  }

  function refuse(request_id: string | null, found: Problem): void {
    answer(request_id, "problem", JSON.stringify(found));
  }

  /** Start a subscription; its answer and its frames follow. */
  function subscribe(value: unknown, request_id: string): Problem | undefined {
    const errors = schemaErrors(SubscribeEnvelope, value);
    if (errors.length > 0) return problem("invalid_schema", "the subscription breaks its schema", { errors });
    const { after, log_id, filter, frames, as_stored } = (value as Static<typeof SubscribeEnvelope>).payload;
    if (subscriptions.has(request_id))
      return problem("conflict", "a subscription of this socket has that request_id", {
        reason: "events.already_subscribed",
        hint: "use another request_id for each subscription of a socket",
      });
    if (subscriptions.size >= MAX_SUBSCRIPTIONS)
      return problem("overloaded", `a socket has at most ${MAX_SUBSCRIPTIONS} subscriptions`);
    const foreign = hub.checkCursor(after, log_id);
    const feed =
      foreign ??
      hub.open({
        after,
        filter: filterOf(hub, filter ?? {}),
        as_stored: as_stored ?? false,
        projections: frames?.includes("projection_updated") ?? false,
      });
    if (isProblem(feed)) return feed;
    const subscribed: Subscribed = {
      id: request_id,
      feed,
      pending: [],
      prefix: `{"kind":"event","subscription":${JSON.stringify(request_id)},"event":`,
      heartbeat: setInterval(() => beat(subscribed), HEARTBEAT_MS),
    };
    subscriptions.set(request_id, subscribed);
    answer(request_id, "result", JSON.stringify({ as_of_seq: hub.head, log_id: hub.log_id }));
    schedule();
    return undefined;
  }

  async function request(value: unknown): Promise<void> {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      return refuse(null, problem("invalid_schema", "a frame is one JSON object"));
    const { request_id, ...envelope } = value as Record<string, unknown>;
    const errors = schemaErrors(RequestId, request_id, "/request_id");
    if (errors.length > 0)
      return refuse(null, problem("invalid_schema", "a request needs its request_id", { errors }));
    const id = request_id as string;
    if (envelope.type === "events.subscribe") {
      const refusal = subscribe(value, id);
      if (refusal) refuse(id, refusal);
      return;
    }
    if (underWay >= MAX_UNDER_WAY)
      return refuse(id, problem("overloaded", `${underWay} requests of this socket are under way`));
    underWay += 1;
    const done = await dispatch.one(envelope, caller);
    underWay -= 1;
    if (socket.readyState !== WebSocket.OPEN) return;
    answer(id, done.kind, answerText(done));
  }

  return {
    open(ws) {
      socket = ws;
    },
    message(_, message) {
      const parsed = parseStrict(typeof message === "string" ? message : new Uint8Array(message));
      if (parsed.ok) void request(parsed.value);
      else refuse(null, problem("malformed_request", parsed.detail));
    },
    drain() {
      blocked = false;
      pump();
    },
    close() {
      for (const subscribed of [...subscriptions.values()]) end(subscribed);
      closed();
    },
  };
}

/** What a WebSocket request may hold besides the envelope. */
export const requestFields = { request_id: RequestId, ...envelopeFields };
