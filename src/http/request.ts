/**
 * What comes in front of every route (SPEC §2, §3, §10): who is it, may a browser have sent it, is the body strict JSON.
 *
 * Always holds: no route sees a body that `parseStrict` has not passed, and none a caller that no credential names.
 */
import { freshTrace } from "../kernel/clock.ts";
import type { Caller } from "../kernel/dispatch.ts";
import { parseStrict } from "../kernel/json.ts";
import { type Problem, problem } from "../kernel/problems.ts";

/** Largest body in bytes (SPEC §10). */
export const MAX_BODY = 1 << 20;

/** A body that is not what the route takes. Parsers answer with it instead of throwing. */
export class Unreadable {
  constructor(readonly problem: Problem) {}
}

/**
 * Read a body as strict JSON.
 * @returns the value, or `Unreadable` with unsupported_media_type, payload_too_large or malformed_request
 */
export async function readJson(request: Request): Promise<unknown> {
  const type = request.headers.get("content-type");
  if (type === null || !/^application\/json\s*(;\s*charset="?utf-8"?\s*)?$/i.test(type))
    return new Unreadable(problem("unsupported_media_type", "the body must be application/json in UTF-8"));
  const bytes = await readBytes(request);
  if (bytes instanceof Unreadable) return bytes;
  const parsed = parseStrict(bytes);
  return parsed.ok ? parsed.value : new Unreadable(problem("malformed_request", parsed.detail));
}

async function readBytes(request: Request): Promise<Uint8Array | Unreadable> {
  const tooLarge = () => new Unreadable(problem("payload_too_large", `a body has at most ${MAX_BODY} bytes`));
  const length = request.headers.get("content-length");
  if (length !== null && Number(length) > MAX_BODY) return tooLarge();
  try {
    if (length !== null) return new Uint8Array(await request.arrayBuffer());
    // A chunked body does not say how long it is: stop reading once it is too long.
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of request.body ?? []) {
      size += chunk.length;
      if (size > MAX_BODY) return tooLarge();
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  } catch {
    // The client has hung up, which is its right and no bug: nobody hears this answer.
    return new Unreadable(problem("malformed_request", "the body ended early"));
  }
}

/** The parameters of a request's URL. Taken from the text: a Host header that is no host would make `new URL` throw. */
export function searchOf(request: Request): URLSearchParams {
  const { url } = request;
  const from = url.indexOf("?");
  return new URLSearchParams(from < 0 ? "" : url.slice(from).split("#", 1)[0]);
}

/** The trace id of a W3C `traceparent` header when there is a valid one, else a new one. */
export function traceOf(request: Request): string {
  const header = request.headers.get("traceparent") ?? "";
  return TRACEPARENT.exec(header)?.[1] ?? freshTrace();
}

const TRACEPARENT = /^(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$/;

/** How a listener knows its callers. */
export type Gate = (request: Request) => Caller | Problem;

/**
 * A browser sends an Origin where it matters, and no page has business here: such a request is refused on every route,
 * also on those that need no credential (SPEC §10).
 */
export function originRefusal(request: Request): Problem | undefined {
  return request.headers.has("origin")
    ? problem("policy_denied", "requests with an Origin are not taken on the socket")
    : undefined;
}

/**
 * The Unix socket: whoever can open it is the daemon's own user, for its folder and itself are closed to all others
 * (SPEC §10). A browser cannot open it, so a request with an Origin is somebody's detour and is refused.
 * @param user the name of the user that runs the daemon
 * @param uid its number, which scopes idempotency keys
 * @param bearer who an Authorization header stands for; without it, and without the header, it is the user
 */
export function socketGate(
  user: string,
  uid: number,
  bearer: (authorization: string) => Caller | Problem = () =>
    problem("unauthorized", "no token is known here"),
): Gate {
  const caller: Caller = { actor: { id: user, kind: "user" }, principal: `uid:${uid}` };
  return (request) => {
    const refusal = originRefusal(request);
    if (refusal) return refusal;
    const authorization = request.headers.get("authorization");
    return authorization === null ? caller : bearer(authorization);
  };
}

/** A gate that looks at each request once, however often it is asked about it. */
export function oneLook(gate: Gate): Gate {
  const seen = new WeakMap<Request, Caller | Problem>();
  return (request) => {
    let found = seen.get(request);
    if (found === undefined) {
      found = gate(request);
      seen.set(request, found);
    }
    return found;
  };
}
