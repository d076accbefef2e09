/**
 * `GET /v1/events` (SPEC §5): pages, and live streams as NDJSON or server-sent events.
 *
 * A live stream is pulled: nothing is read from the log until the client has taken what it was given, so a slow reader
 * costs one page of memory. What goes out are the stored bytes.
 */
import { type Static, type TSchema, Type } from "typebox";
import { fromText } from "../kernel/dispatch.ts";
import type { Filter, Line } from "../kernel/log.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { DEFAULT_PAGE, Id, MAX_PAGE, object, Seq, schemaErrors, Time } from "../kernel/schema.ts";
import {
  currentBody,
  type Feed,
  type Frame,
  HEARTBEAT_MS,
  type Hub,
  resolveTypes,
} from "../kernel/stream.ts";
import { filterFields } from "../kernel/system.ts";
import { json, refused } from "./answers.ts";

const Params = object({
  after: Type.Optional(Seq),
  since: Type.Optional(Time),
  log_id: Type.Optional(Id),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: MAX_PAGE })),
  cursor: Type.Optional(
    Type.String({ pattern: "^[0-9]{1,16}$", description: "the 'next' of an earlier page" }),
  ),
  min_seq: Type.Optional(Seq),
  follow: Type.Optional(Type.Boolean()),
  frames: Type.Optional(Type.Boolean()),
  as_stored: Type.Optional(Type.Boolean()),
  ...filterFields,
});
type Params = Static<typeof Params>;

/** The part of the parameters that is a filter. */
export function filterOf(
  hub: Hub,
  params: Static<TSchema> & Partial<Record<keyof typeof filterFields, unknown>>,
): Filter {
  const { types, streams, workspace_id, project_id, subject_kind } = params as Params;
  const exact = resolveTypes(hub.registry, types);
  return {
    ...(exact && { types: exact }),
    ...(streams && { streams }),
    ...(workspace_id !== undefined && { workspace_id }),
    ...(project_id !== undefined && { project_id }),
    ...(subject_kind !== undefined && { subject_kind }),
  };
}

/**
 * A page of events.
 * @returns `{as_of_seq, log_id, items, next}` where `next` is the cursor of the next page, or a problem of the cursor
 */
export function eventPage(
  hub: Hub,
  params: Partial<Params>,
): { as_of_seq: number; log_id: string; lines: Line[]; next: string | null } | Problem {
  const after = startOf(hub, params);
  if (isProblem(after)) return after;
  const filter = filterOf(hub, params);
  const limit = params.limit ?? DEFAULT_PAGE;
  const { head } = hub;
  const lines: Line[] = [];
  let at = after;
  while (at < head && lines.length < limit) {
    // A window at a time, so that a filter that matches little reads no more than it must in one go.
    const upTo = Math.min(head, at + MAX_PAGE);
    const found = hub.reader.range(at, upTo, filter, limit - lines.length);
    for (const line of found) lines.push(line);
    at = lines.length === limit ? lines.at(-1)!.seq_global : upTo;
  }
  return { as_of_seq: head, log_id: hub.log_id, lines, next: at < head ? String(at) : null };
}

/** Where to start: the cursor of a page, `after`, or the first event since a time. */
function startOf(hub: Hub, params: Partial<Params>): number | Problem {
  const since = params.since === undefined ? undefined : hub.reader.firstSince(Date.parse(params.since)) - 1;
  const after = params.cursor !== undefined ? Number(params.cursor) : (params.after ?? since ?? 0);
  return hub.checkCursor(after, params.log_id) ?? after;
}

/** The items of a page as the client wants them. */
export function bodyOf(hub: Hub, line: Line, as_stored: boolean | undefined): string {
  return as_stored ? line.body : currentBody(hub.registry, line);
}

const NDJSON = "application/x-ndjson";
const SSE = "text/event-stream";

/**
 * Answer `GET /v1/events`.
 * @param admit called before a live stream starts; a problem when there are too many
 */
export async function getEvents(
  hub: Hub,
  request: Request,
  admit: () => Problem | undefined,
): Promise<Response> {
  const url = new URL(request.url);
  const sent = fromText(Params.properties, url.searchParams);
  const errors = schemaErrors(Params, sent);
  if (errors.length > 0)
    return refused(problem("invalid_schema", "the parameters break their schema", { errors }));
  const params = sent as Params;
  const wanted = accepted(request.headers.get("accept"));
  if (!wanted) return refused(notAcceptable());
  if (params.min_seq !== undefined && !(await hub.reached(params.min_seq, 5_000)))
    return refused(problem("overloaded", "the log has not reached min_seq"));

  if (params.follow && wanted !== "application/json") {
    const last = request.headers.get("last-event-id");
    const after = last !== null && /^\d{1,16}$/.test(last) ? Number(last) : startOf(hub, params);
    if (isProblem(after)) return refused(after);
    const full = admit();
    if (full) return refused(full);
    const feed = hub.open({
      after,
      filter: filterOf(hub, params),
      as_stored: params.as_stored ?? false,
      projections: false,
    });
    if (isProblem(feed)) return refused(feed);
    return live(feed, wanted === SSE ? sse : params.frames ? ndjsonFrame : ndjsonEvent, wanted);
  }
  if (params.follow)
    return refused(
      problem("unsupported_media_type", "a live stream is application/x-ndjson or text/event-stream", {
        hint: "send 'Accept: application/x-ndjson' or 'Accept: text/event-stream' with follow=true",
      }),
    );

  const page = eventPage(hub, params);
  if (isProblem(page)) return refused(page);
  const bodies = page.lines.map((line) => bodyOf(hub, line, params.as_stored));
  if (wanted === NDJSON || wanted === SSE)
    return new Response(bodies.map((body) => `${body}\n`).join(""), {
      headers: {
        "content-type": NDJSON,
        "cache-control": "no-store",
        ...(page.next !== null && { "mp-next": page.next }),
      },
    });
  const head = `{"as_of_seq":${page.as_of_seq},"log_id":"${page.log_id}"`;
  return json(`${head},"items":[${bodies.join(",")}],"next":${JSON.stringify(page.next)}}`);
}

function accepted(header: string | null): "application/json" | typeof NDJSON | typeof SSE | undefined {
  const types = (header ?? "*/*").split(",").map((part) => part.split(";")[0]!.trim().toLowerCase());
  for (const type of types) {
    if (type === NDJSON || type === SSE || type === "application/json") return type;
    if (type === "*/*" || type === "application/*") return "application/json";
  }
  return undefined;
}

function notAcceptable(): Problem {
  return problem(
    "unsupported_media_type",
    "events come as application/json, application/x-ndjson or text/event-stream",
    {
      hint: "send one of them as Accept",
    },
  );
}

/** A frame as text; undefined for those that this form leaves out. */
type Form = (frame: Frame) => string;

const ndjsonEvent: Form = (frame) => (frame.kind === "event" ? `${frame.body}\n` : "");
const ndjsonFrame: Form = (frame) => `${frameText(frame)}\n`;

/** SSE: `id:` stands on events and checkpoints; `data:` of an event is the event itself (SPEC §5). */
const sse: Form = (frame) => {
  const id = frame.kind === "event" || frame.kind === "checkpoint" ? `id: ${frame.seq_global}\n` : "";
  const data = frame.kind === "event" ? frame.body : JSON.stringify(frame);
  return `${id}event: ${frame.kind}\ndata: ${data}\n\n`;
};

/** A frame as JSON; the event in it is the stored text. */
export function frameText(frame: Frame): string {
  return frame.kind === "event" ? `{"kind":"event","event":${frame.body}}` : JSON.stringify(frame);
}

/** A live response that pulls from the feed at the client's pace. */
function live(feed: Feed, form: Form, type: string): Response {
  const encoder = new TextEncoder();
  let timer: Timer | undefined;
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        for (;;) {
          const text = feed.next().map(form).join("");
          if (text !== "") {
            controller.enqueue(encoder.encode(text));
            if (feed.over) controller.close();
            return;
          }
          if (feed.over) return controller.close();
          if (!feed.idle) continue;
          const { promise, resolve } = Promise.withResolvers<"event" | "time">();
          feed.onWake(() => resolve("event"));
          timer = setTimeout(() => resolve("time"), HEARTBEAT_MS);
          const woken = await promise;
          clearTimeout(timer);
          const beat = woken === "time" ? feed.heartbeat() : undefined;
          // Plain NDJSON has no frames to keep it alive with; an empty line is not an event, so it stays silent.
          const sign = beat ? form(beat) : "";
          if (sign !== "") return controller.enqueue(encoder.encode(sign));
        }
      },
      cancel() {
        clearTimeout(timer);
        feed.close();
      },
    },
    { highWaterMark: 0 },
  );
  return new Response(body, { headers: { "content-type": type, "cache-control": "no-store" } });
}
