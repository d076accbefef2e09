/**
 * `GET /v1/events` (SPEC §5): pages, and live streams as NDJSON or server-sent events.
 *
 * A live stream is pulled: nothing is read from the log until the client has taken what it was given, so a slow reader
 * costs one page of memory. What goes out are the stored bytes. Plain NDJSON has nothing but events, so the runtime
 * holds its response header back until there is one: who wants to know earlier asks for `frames=true`.
 */
import { type TObject, Type } from "typebox";
import { freshTrace } from "../kernel/clock.ts";
import { type Dispatch, fromText, invalidSchema } from "../kernel/dispatch.ts";
import { bodyOf, eventPage, filterOf, type PageParams, startOf, unknownTypes } from "../kernel/page.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import { object, schemaErrors } from "../kernel/schema.ts";
import type { Feed, Frame, Hub } from "../kernel/stream.ts";
import { json, refused } from "./answers.ts";
import { searchOf, traceOf } from "./request.ts";

/** Told of a bug, with the trace id that the client was given. */
export type OnBug = (trace_id: string, error: unknown) => void;

/** What `GET /v1/events` takes besides the parameters of the query `events.list`. */
const streaming = { follow: Type.Optional(Type.Boolean()), frames: Type.Optional(Type.Boolean()) };

/** The parameters of `GET /v1/events`. */
export function eventsParams(registry: Registry): TObject {
  return object({ ...registry.queries.get("events.list")!.params.properties, ...streaming });
}
type Params = PageParams & { min_seq?: number; as_stored?: boolean; follow?: boolean; frames?: boolean };

const JSON_TYPE = "application/json";
const NDJSON = "application/x-ndjson";
const SSE = "text/event-stream";

interface EventsParts {
  readonly hub: Hub;
  readonly dispatch: Pick<Dispatch, "ready">;
  /** `eventsParams`, made once: a schema is compiled at its first use. */
  readonly params: TObject;
  readonly onBug: OnBug;
}

/**
 * Answer `GET /v1/events`.
 * @param admit called before a live stream starts: gives back how to leave, or a problem when there are too many
 */
export async function getEvents(
  { hub, dispatch, params: schema, onBug }: EventsParts,
  request: Request,
  admit: () => (() => void) | Problem,
): Promise<Response> {
  const trace_id = traceOf(request);
  const refuse = (found: Problem) => refused<Response>(found, trace_id);
  const params = fromText(schema.properties, searchOf(request)) as Params;
  const errors = schemaErrors(schema, params);
  if (params.follow && params.limit !== undefined)
    errors.push({ pointer: "/limit", message: "is not taken with follow=true" });
  if (errors.length > 0) return refuse(invalidSchema(errors, trace_id));
  const offered = params.follow ? [NDJSON, SSE] : [JSON_TYPE, NDJSON];
  const type = negotiate(request.headers.get("accept"), offered);
  if (!type)
    return refuse(
      problem("unsupported_media_type", `this comes as ${offered.join(" or ")}`, {
        hint: "send one of them as Accept; text/event-stream needs follow=true, application/json does without",
      }),
    );
  const notReady = await dispatch.ready(params.min_seq);
  if (notReady) return refuse(notReady);

  if (params.follow) {
    const last = type === SSE ? request.headers.get("last-event-id") : null;
    if (last && !/^\d{1,16}$/.test(last))
      return refuse(invalidSchema([{ pointer: "/last-event-id", message: "must be a position" }], trace_id));
    // It comes with the URL of the first attempt: what that says about the start is over.
    const { after: _after, since: _since, cursor: _cursor, ...rest } = params;
    const after = startOf(hub, last ? { ...rest, cursor: last } : params, "");
    if (isProblem(after)) return refuse(after);
    const unknown = unknownTypes(hub, params.types, "");
    if (unknown) return refuse(unknown);
    const leave = admit();
    if (isProblem(leave)) return refuse(leave);
    const feed = hub.open({
      after,
      filter: filterOf(hub, params),
      as_stored: params.as_stored ?? false,
      projections: false,
    });
    if (!isProblem(feed)) return live(feed, formOf(type, params.frames), type, onBug, leave);
    leave();
    return refuse(feed);
  }

  const page = eventPage(hub, params, "");
  if (isProblem(page)) return refuse(page);
  const bodies = page.lines.map((line) => bodyOf(hub, line, params.as_stored));
  const next = JSON.stringify(page.next);
  if (type === JSON_TYPE)
    return json(
      `{"as_of_seq":${page.as_of_seq},"log_id":"${page.log_id}","items":[${bodies.join(",")}],"next":${next}}`,
    );
  return json(bodies.map((body) => `${body}\n`).join(""), {
    "content-type": NDJSON,
    ...(page.next !== null && { "mp-next": page.next }),
  });
}

/**
 * Choose what to send (RFC 9110 §12.5.1): the client's weights decide, then its order; the first offer is the default.
 * @returns undefined when nothing that is offered is acceptable
 */
function negotiate(header: string | null, offered: readonly string[]): string | undefined {
  const ranges = (header ?? "*/*").split(",").map((part, index) => {
    const [range, ...more] = part.split(";").map((each) => each.trim().toLowerCase());
    const weight = more.find((each) => each.startsWith("q="));
    return { range, index, weight: weight === undefined ? 1 : Number(weight.slice(2)) };
  });
  const best = offered
    .map((type) => {
      // The most specific range that fits counts.
      const fits = [type, `${type.split("/")[0]}/*`, "*/*"].map((range) =>
        ranges.find((each) => each.range === range),
      );
      return { type, ...fits.find((range) => range !== undefined) };
    })
    .filter(({ weight = 0 }) => weight > 0)
    .sort((a, b) => b.weight! - a.weight! || a.index! - b.index!);
  return best[0]?.type;
}

/** A feed's next frames. A bug on the way ends this stream, not the daemon: the client hears `internal`. */
export function framesOf(feed: Feed, onBug: OnBug): Frame[] {
  try {
    return traced(feed.next());
  } catch (error) {
    const trace_id = freshTrace();
    onBug(trace_id, error);
    feed.end(problem("internal", "the stream met a bug", { trace_id }));
    return feed.next();
  }
}

/** Every problem that leaves has a trace id. `end` is always the last frame. */
function traced(frames: Frame[]): Frame[] {
  const last = frames.at(-1);
  if (last?.kind !== "end" || last.problem.trace_id !== undefined) return frames;
  return [...frames.slice(0, -1), { ...last, problem: { ...last.problem, trace_id: freshTrace() } }];
}

/** A frame as text; empty for those that the form leaves out. */
type Form = (frame: Frame) => string;

const ndjsonEvent: Form = (frame) => (frame.kind === "event" ? `${frame.body}\n` : "");
const ndjsonFrame: Form = (frame) =>
  frame.kind === "event" ? `{"kind":"event","event":${frame.body}}\n` : `${JSON.stringify(frame)}\n`;

/** SSE: `id:` stands on events and checkpoints; `data:` of an event is the event itself (SPEC §5). */
const sse: Form = (frame) => {
  const id = frame.kind === "event" || frame.kind === "checkpoint" ? `id: ${frame.seq_global}\n` : "";
  const data = frame.kind === "event" ? frame.body : JSON.stringify(frame);
  return `${id}event: ${frame.kind}\ndata: ${data}\n\n`;
};

function formOf(type: string, frames: boolean | undefined): Form {
  return type === SSE ? sse : frames ? ndjsonFrame : ndjsonEvent;
}

/** A live response that pulls from the feed at the client's pace. */
function live(feed: Feed, form: Form, type: string, onBug: OnBug, leave: () => void): Response {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        while (!feed.over) {
          await feed.ready();
          let text = "";
          for (const frame of framesOf(feed, onBug)) text += form(frame);
          if (text !== "") return controller.enqueue(encoder.encode(text));
        }
        leave();
        controller.close();
      },
      cancel() {
        feed.close();
        leave();
      },
    },
    { highWaterMark: 0 },
  );
  return new Response(body, { headers: { "content-type": type, "cache-control": "no-store" } });
}
