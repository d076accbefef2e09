/**
 * Pages of events (SPEC §5): the query `events.list` and `GET /v1/events` answer with them, whatever carries them.
 *
 * A page looks at a bounded part of the log and holds a bounded number of characters, so that no filter and no limit
 * keeps the daemon busy for long. Live streams start where a page would (`startOf`) and filter as it does.
 */
import type { Filter, Line } from "./log.ts";
import { nearest } from "./nearest.ts";
import { isProblem, type Problem, problem } from "./problems.ts";
import { DEFAULT_PAGE } from "./schema.ts";
import { currentBody, type Hub, readPage, resolveTypes } from "./stream.ts";

/** Positions that one page looks at, at most, and characters of events after which it ends: see `eventPage`. */
const PAGE_POSITIONS = 20_000;
const PAGE_CHARS = 16 << 20;

/** The filters of SPEC §5, as they were sent and checked. */
export interface FilterParams {
  readonly types?: readonly string[];
  readonly streams?: readonly string[];
  readonly workspace_id?: string;
  readonly project_id?: string;
  readonly subject_kind?: string;
}

/** What a page is asked for with. */
export interface PageParams extends FilterParams {
  readonly after?: number;
  readonly since?: string;
  readonly log_id?: string;
  readonly limit?: number;
  readonly cursor?: string;
}

/** The refusal of a cursor that no page gave; `at` is the pointer of the parameters. */
export function badCursor(at = "/payload"): Problem {
  const message = "must be the 'next' of an earlier page";
  return problem("invalid_schema", `${at}/cursor ${message}`, {
    errors: [{ pointer: `${at}/cursor`, message }],
  });
}

/**
 * A filter that can let nothing through is a slip of the pen.
 * @param at the pointer of the parameters
 * @returns invalid_schema with every type or glob that no known event has, and in the hint those that are nearly it
 */
export function unknownTypes(hub: Hub, types: readonly string[] = [], at = "/payload"): Problem | undefined {
  const events = [...hub.registry.events.keys()];
  const known = new Set(["*", ...events, ...events.map((type) => type.replace(/\..*/, ".*"))]);
  const wrong = [...types.entries()].filter(([, type]) => !known.has(type));
  if (wrong.length === 0) return undefined;
  const near = [...new Set(wrong.flatMap(([, type]) => nearest(type, known)))].slice(0, 3);
  const message = "is no known event type";
  return problem("invalid_schema", "the filter names an event type that is not known", {
    errors: wrong.map(([index]) => ({ pointer: `${at}/types/${index}`, message })),
    hint: `${near.length > 0 ? `did you mean ${near.join(", ")}? ` : ""}'mp schema list' shows all`,
  });
}

/** The part of the parameters that is a filter. */
export function filterOf(hub: Hub, params: FilterParams): Filter {
  const { types, streams, workspace_id, project_id, subject_kind } = params;
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
 * A page of events. It has fewer than `limit` of them, or none, where the filter lets little through or events are
 * large: only `next` says whether there is more. So no page keeps the daemon busy for long, whatever is asked.
 * @param at the pointer of the parameters
 * @returns `{as_of_seq, log_id, lines, next}` where `next` is the cursor of the next page, or a problem of the cursor
 */
export function eventPage(
  hub: Hub,
  params: PageParams,
  at?: string,
): { as_of_seq: number; log_id: string; lines: Line[]; next: string | null } | Problem {
  const unknown = unknownTypes(hub, params.types, at);
  if (unknown) return unknown;
  const after = startOf(hub, params, at);
  if (isProblem(after)) return after;
  const { head, log_id, reader } = hub;
  const { lines, upTo } = readPage(
    reader,
    "range",
    after,
    Math.min(head, after + PAGE_POSITIONS),
    filterOf(hub, params),
    params.limit ?? DEFAULT_PAGE,
    PAGE_CHARS,
  );
  return { as_of_seq: head, log_id, lines, next: upTo < head ? String(upTo) : null };
}

/**
 * Where to start: the cursor of a page, `after`, or the first event since a time; or what is wrong with that.
 * @param at the pointer of the parameters
 * @returns the position, or invalid_schema for a wrong cursor and for two starts, cursor_ahead, cursor_foreign
 */
export function startOf(hub: Hub, params: PageParams, at = "/payload"): number | Problem {
  const { cursor, after, since, log_id } = params;
  const starts = (["after", "since", "cursor"] as const).filter((name) => params[name] !== undefined);
  if (starts.length > 1)
    return problem("invalid_schema", `${starts.join(" and ")} each say where to start: send one of them`, {
      errors: starts.map((name) => ({
        pointer: `${at}/${name}`,
        message: `is not taken with ${starts.filter((other) => other !== name).join(" and ")}`,
      })),
    });
  if (cursor !== undefined && !/^\d{1,16}$/.test(cursor)) return badCursor(at);
  const start =
    cursor === undefined ? (after ?? (since === undefined ? 0 : before(hub, since))) : Number(cursor);
  return hub.checkCursor(start, log_id) ?? start;
}

/** The position before the first event since a time. The log may be ahead of what the hub has heard of. */
function before(hub: Hub, since: string): number {
  return Math.min(hub.reader.firstSince(Date.parse(since)) - 1, hub.head);
}

/** The items of a page as the client wants them. */
export function bodyOf(hub: Hub, line: Line, as_stored: boolean | undefined): string {
  return as_stored ? line.body : currentBody(hub.registry, line);
}
