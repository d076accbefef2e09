/**
 * `GET /v1/stream`: the WebSocket (SPEC §2, §5). Subscriptions and pipelined commands on one socket.
 *
 * Elysia's route only upgrades: Elysia would parse a text frame itself, and leniently, so the frames are taken from
 * Bun's socket and go through `parseStrict`. Everything that is sent is sent by `pump`: when the socket pushes back it
 * stops with what is at hand and goes on at `drain`, so a reader that does not read costs a page for each subscription.
 */
import type { ServerWebSocket } from "bun";
import { type Static, Type } from "typebox";
import { freshTrace } from "../kernel/clock.ts";
import { type Caller, type Dispatch, invalidSchema, TraceId } from "../kernel/dispatch.ts";
import { parseStrict } from "../kernel/json.ts";
import { filterOf, unknownTypes } from "../kernel/page.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { object, schemaErrors } from "../kernel/schema.ts";
import type { Feed, Frame, Hub } from "../kernel/stream.ts";
import { socketQueries } from "../kernel/system.ts";
import { answerText, problemText } from "./answers.ts";
import { framesOf, type OnBug } from "./events.ts";
import { MAX_BODY } from "./request.ts";

/** Subscriptions on one socket, and requests under way on it, at most (SPEC §10). */
const MAX_SUBSCRIPTIONS = 64;
const MAX_UNDER_WAY = 1_000;

/** Characters of answers that wait for a client to read them; a client with more than that is cut off. */
const MAX_ANSWERS = 16 << 20;

const RequestId = Type.String({ pattern: "^[!-~]{1,64}$", description: "1–64 printable ASCII characters" });

const SubscribeEnvelope = object({
  request_id: RequestId,
  type: Type.Literal("events.subscribe"),
  schema_version: Type.Optional(Type.Literal(1)),
  payload: socketQueries["events.subscribe"].params,
  trace_id: Type.Optional(TraceId),
});

interface Subscribed {
  readonly id: string;
  readonly feed: Feed;
  /** What every event frame of this subscription begins with. */
  readonly prefix: string;
  /** There may be something for it. */
  readonly wake: () => void;
  /** Frames that were pulled but not yet taken by the socket. */
  pending: Frame[];
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
 * @param caller who opened it; a credential that ends meanwhile ends its requests, not the frames under way
 * @param onBug told of what should not happen; the client only hears `internal`
 * @param closed called at its end
 */
export function connection(
  hub: Hub,
  dispatch: Dispatch,
  caller: Caller,
  onBug: OnBug,
  closed: () => void,
): Connection {
  const subscriptions = new Map<string, Subscribed>();
  /** Those that `pump` has to look at. */
  const due = new Set<Subscribed>();
  let answers: string[] = [];
  let answersSize = 0;
  let underWay = 0;
  let blocked = false;
  let scheduled = false;
  let socket: ServerWebSocket<Connection>;

  /** Once for all that happens in this turn: a commit that wakes many subscriptions is sent in one piece. */
  function schedule(): void {
    if (scheduled || blocked) return;
    scheduled = true;
    queueMicrotask(pump);
  }

  /** Send until the socket pushes back or nobody has more. */
  function pump(): void {
    scheduled = false;
    if (blocked || socket.readyState !== WebSocket.OPEN) return;
    socket.cork(() => {
      if (answers.length > 0) sendAnswers();
      for (const subscribed of due) {
        if (blocked) return;
        serve(subscribed);
      }
    });
  }

  function sendAnswers(): void {
    const taken = sendAll(answers, (text) => text);
    for (const text of answers.slice(0, taken)) answersSize -= text.length;
    answers = answers.slice(taken);
  }

  /** One page of one subscription. */
  function serve(subscribed: Subscribed): void {
    const { feed, wake } = subscribed;
    if (subscribed.pending.length === 0) subscribed.pending = framesOf(feed, onBug);
    const taken = sendAll(subscribed.pending, (frame) => frameText(subscribed, frame));
    subscribed.pending = subscribed.pending.slice(taken);
    if (subscribed.pending.length > 0) return;
    due.delete(subscribed);
    if (feed.over) subscriptions.delete(subscribed.id);
    else if (feed.idle) feed.onWake(wake);
    else void feed.ready().then(wake);
  }

  /** Send until the socket pushes back; gives how many it took. */
  function sendAll<T>(all: readonly T[], text: (each: T) => string): number {
    let taken = 0;
    while (taken < all.length && !blocked) {
      const status = socket.send(text(all[taken]!));
      // −1: taken, but the client is slow; 0: not taken at all. Either way go on at `drain`.
      blocked = status <= 0;
      if (status !== 0) taken += 1;
    }
    return taken;
  }

  function frameText({ id, prefix }: Subscribed, frame: Frame): string {
    if (frame.kind !== "event") return JSON.stringify({ ...frame, subscription: id });
    const { body, shared } = frame;
    if (!shared) return `${prefix}${body}}`;
    // Who subscribed under the same name, on whatever socket, gets the same text: it is made once.
    if (shared.prefix !== prefix) {
      shared.prefix = prefix;
      shared.text = `${prefix}${body}}`;
    }
    return shared.text;
  }

  /** `text` is a JSON object: its members follow `request_id` and `kind`. */
  function answer(request_id: string | null, kind: string, text: string): void {
    if (answersSize > MAX_ANSWERS) {
      socket.close(1013, "answers are not read");
      return;
    }
    const whole = `{"request_id":${JSON.stringify(request_id)},"kind":"${kind}",${text.slice(1)}`;
    answers.push(whole);
    answersSize += whole.length;
    schedule();
  }

  function refuse(request_id: string | null, found: Problem): void {
    answer(request_id, "problem", problemText(found));
  }

  /** Start a subscription: its answer comes first, then its frames. */
  function subscribe(value: unknown, request_id: string): Problem | undefined {
    const { schema_version: version = 1 } = value as { schema_version?: unknown };
    if (Number.isInteger(version) && version !== 1)
      return problem("unsupported_schema_version", "events.subscribe is at schema version 1 here");
    const errors = schemaErrors(SubscribeEnvelope, value);
    if (errors.length > 0) return invalidSchema(errors, freshTrace());
    const { after, log_id, filter, frames, as_stored } = (value as Static<typeof SubscribeEnvelope>).payload;
    if (subscriptions.has(request_id))
      return invalidSchema(
        [{ pointer: "/request_id", message: "is the name of a subscription of this socket already" }],
        freshTrace(),
      );
    if (subscriptions.size >= MAX_SUBSCRIPTIONS)
      return problem("overloaded", `a socket has at most ${MAX_SUBSCRIPTIONS} subscriptions`, {
        hint: "open another socket",
      });
    const feed =
      unknownTypes(hub, filter?.types, "/payload/filter") ??
      hub.checkCursor(after, log_id) ??
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
      prefix: `{"kind":"event","subscription":${JSON.stringify(request_id)},"event":`,
      wake() {
        due.add(subscribed);
        schedule();
      },
      pending: [],
    };
    subscriptions.set(request_id, subscribed);
    answer(request_id, "result", JSON.stringify({ as_of_seq: hub.head, log_id: hub.log_id }));
    void feed.ready().then(subscribed.wake);
    return undefined;
  }

  async function request(value: unknown): Promise<void> {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      return refuse(null, problem("invalid_schema", "a frame is one JSON object"));
    const { request_id, ...envelope } = value as Record<string, unknown>;
    const errors = schemaErrors(RequestId, request_id, "/request_id");
    if (errors.length > 0) return refuse(null, invalidSchema(errors, freshTrace()));
    const id = request_id as string;
    if (envelope.type === "events.subscribe") {
      const refusal = caller.ended?.() ?? subscribe(value, id);
      if (refusal) refuse(id, refusal);
      return;
    }
    if (underWay >= MAX_UNDER_WAY)
      return refuse(id, problem("overloaded", `${underWay} requests of this socket are under way`));
    underWay += 1;
    const done = await dispatch.one(envelope, caller);
    underWay -= 1;
    answer(id, done.kind, answerText(done));
  }

  return {
    open(ws) {
      socket = ws;
    },
    message(_, message) {
      const bytes = typeof message === "string" ? Buffer.byteLength(message) : message.length;
      if (bytes > MAX_BODY)
        return refuse(null, problem("payload_too_large", `a request has at most ${MAX_BODY} bytes`));
      const parsed = parseStrict(typeof message === "string" ? message : new Uint8Array(message));
      if (parsed.ok) void request(parsed.value);
      else refuse(null, problem("malformed_request", parsed.detail));
    },
    drain() {
      blocked = false;
      pump();
    },
    close() {
      for (const { feed } of subscriptions.values()) feed.close();
      closed();
    },
  };
}
