/**
 * What the tests of the API share: a client that adds nothing and hides nothing, on each of the transports.
 *
 * Always so: a body goes out as the bytes it was given as; an answer comes back with its status, its headers and its
 * text; waiting ends with the answer or with an error that says what came so far. Left out on purpose: the typed
 * client, whose tests are in test/client.
 */
import { expect } from "bun:test";
import { type Code, catalogue, type Problem } from "../../src/kernel/problems.ts";
import type { DaemonProcess } from "../support/daemon.ts";

type Body = string | Uint8Array | object;
export type Json = Record<string, unknown>;

export interface Reply {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** The text as JSON; throws when it is none. */
  readonly json: Json;
}

/** How long an answer may take before a test gives up on it, in milliseconds. */
const PATIENCE_MS = 10_000;

/** One HTTP request on a Unix socket. An object is sent as JSON; a text or bytes as they are. */
export async function ask(
  socket: string,
  method: string,
  path: string,
  body?: Body,
  headers: Record<string, string> = {},
): Promise<Reply> {
  const raw = typeof body === "string" || body instanceof Uint8Array;
  const response = await fetch(`http://mp${path}`, {
    unix: socket,
    method,
    headers: { ...(body !== undefined && { "content-type": "application/json" }), ...headers },
    ...(body !== undefined && { body: raw ? (body as BodyInit) : JSON.stringify(body) }),
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const text = await response.text();
  return {
    status: response.status,
    headers: response.headers,
    text,
    get json() {
      return JSON.parse(text) as Json;
    },
  };
}

let keys = 0;
/** An idempotency key that no other test uses. */
export function key(): string {
  keys += 1;
  return `test-${process.pid}-${keys}`;
}

/** An envelope of a command with a key of its own. */
export function envelope(type: string, payload: object, more: object = {}): Json {
  return { type, payload, idempotency_key: key(), ...more };
}

/** The API of one daemon. */
export function api(daemon: Pick<DaemonProcess, "socket">) {
  const post = (body: Body, headers?: Record<string, string>) =>
    ask(daemon.socket, "POST", "/v1/commands", body, headers);
  return {
    get: (path: string, headers?: Record<string, string>) =>
      ask(daemon.socket, "GET", path, undefined, headers),
    post,
    batch: (atomic: boolean, commands: readonly unknown[]) =>
      ask(daemon.socket, "POST", "/v1/commands/batch", { atomic, commands }),
    /** Send a command that must be accepted; its receipt. */
    async done(
      type: string,
      payload: object,
      more: object = {},
    ): Promise<Json & { subject: { id: string } }> {
      const reply = await post(envelope(type, payload, more));
      if (reply.status !== 200) throw new Error(`${type} was refused: ${reply.text}`);
      return reply.json as Json & { subject: { id: string } };
    },
    /** Ask a query that must be answered. */
    async answer(type: string, payload: object = {}): Promise<Json> {
      const reply = await post({ type, payload });
      if (reply.status !== 200) throw new Error(`${type} was refused: ${reply.text}`);
      return reply.json;
    },
    /** `seq_global` of the last event. */
    async head(): Promise<number> {
      return (await ask(daemon.socket, "GET", "/v1/queries/daemon.ping")).json.as_of_seq as number;
    },
  };
}
export type Api = ReturnType<typeof api>;

/** One HTTP response as it came over a raw connection. */
export interface RawResponse {
  readonly status: number;
  /** Lower-case names. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/**
 * Write parts to a raw connection, as the peer takes them, and read responses.
 * @param count how many responses to wait for; 0 waits for the peer to hang up
 * @param hangUp close right after the last part, without reading
 * @returns what came, and whether the peer closed the connection
 */
export async function raw(
  socket: string,
  parts: readonly (string | Uint8Array)[],
  { count = 1, hangUp = false } = {},
): Promise<{ responses: RawResponse[]; closed: boolean }> {
  const queue = parts.map((part) => (typeof part === "string" ? Buffer.from(part, "latin1") : part));
  const { promise: over, resolve, reject } = Promise.withResolvers<void>();
  let got = "";
  let closed = false;
  let offset = 0;
  const enough = () => count > 0 && responsesIn(got).length >= count;
  const pump = (connection: Bun.Socket) => {
    while (queue.length > 0) {
      const written = connection.write(queue[0]!.subarray(offset));
      if (written < 0) return;
      offset += written;
      if (offset < queue[0]!.length) return;
      queue.shift();
      offset = 0;
    }
    if (hangUp) connection.terminate();
  };
  const timer = setTimeout(
    () =>
      reject(new Error(`no answer within ${PATIENCE_MS} ms; so far: ${JSON.stringify(got.slice(0, 500))}`)),
    PATIENCE_MS,
  );
  const connection = await Bun.connect({
    unix: socket,
    socket: {
      open: pump,
      drain: pump,
      data(_, data) {
        got += data.toString("latin1");
        if (enough()) resolve();
      },
      close() {
        closed = true;
        resolve();
      },
      error: (_, error) => reject(error),
    },
  });
  try {
    await over;
  } finally {
    clearTimeout(timer);
    connection.terminate();
  }
  return { responses: responsesIn(got), closed };
}

/** The whole responses at the start of what a connection gave; interim ones (1xx) are left out. */
function responsesIn(got: string): RawResponse[] {
  const found: RawResponse[] = [];
  let rest = got;
  for (let end = rest.indexOf("\r\n\r\n"); end >= 0; end = rest.indexOf("\r\n\r\n")) {
    const [line, ...lines] = rest.slice(0, end).split("\r\n");
    const headers = Object.fromEntries(
      lines.map((each) => {
        const colon = each.indexOf(":");
        return [each.slice(0, colon).toLowerCase(), each.slice(colon + 1).trim()];
      }),
    );
    const length = Number(headers["content-length"] ?? 0);
    if (rest.length < end + 4 + length) break;
    const status = Number(line!.split(" ")[1]);
    const body = Buffer.from(rest.slice(end + 4, end + 4 + length), "latin1").toString("utf8");
    if (status >= 200) found.push({ status, headers, body });
    rest = rest.slice(end + 4 + length);
  }
  return found;
}

/** A WebSocket to `/v1/stream` that pairs answers with requests. */
export interface Wire {
  /** Send a request; `kind` and members of its answer. */
  request(envelope: object): Promise<Json>;
  /** Send a frame as it is; the answer that names no request. */
  send(frame: string | Uint8Array): Promise<Json>;
  close(): void;
}

/** Open a WebSocket on a Unix socket. Rejects when it is refused. */
export async function wire(socket: string): Promise<Wire> {
  const ws = new WebSocket(`ws+unix://${socket}:/v1/stream`);
  const waiting = new Map<string | null, (answer: Json) => void>();
  let requests = 0;
  ws.onmessage = ({ data }) => {
    const { request_id, ...answer } = JSON.parse(String(data)) as Json & { request_id?: string | null };
    if (request_id === undefined) return;
    waiting.get(request_id)?.(answer);
    waiting.delete(request_id);
  };
  const opened = Promise.withResolvers<void>();
  ws.onopen = () => opened.resolve();
  ws.onerror = ws.onclose = () => {
    opened.reject(new Error("the WebSocket was refused"));
    for (const answer of waiting.values()) answer({ kind: "closed" });
  };
  await opened.promise;
  const expectAnswer = (id: string | null, frame: string | Uint8Array) => {
    const { promise, resolve, reject } = Promise.withResolvers<Json>();
    waiting.set(id, resolve);
    const timer = setTimeout(() => reject(new Error(`no answer within ${PATIENCE_MS} ms`)), PATIENCE_MS);
    ws.send(frame as string);
    return promise.finally(() => clearTimeout(timer));
  };
  return {
    request(envelope) {
      requests += 1;
      return expectAnswer(`r${requests}`, JSON.stringify({ request_id: `r${requests}`, ...envelope }));
    },
    send: (frame) => expectAnswer(null, frame),
    close: () => ws.close(),
  };
}

/** A word that is in no file of the project: what a test sends, and must not get back. */
export const MARKER = "zq7f3marker";

/** What no answer may hold: the sender's words, a path of this machine, a stack. */
export function expectNoEcho(text: string, home?: string): void {
  for (const never of [
    MARKER,
    "node_modules",
    ".ts:",
    "    at ",
    "/src/",
    "/$bunfs",
    "SQLITE",
    ...(home ? [home] : []),
  ])
    expect(text).not.toContain(never);
}

/** All members that a problem may have (SPEC §3). */
const MEMBERS = new Set(
  "type title status code reason detail hint retryable trace_id details errors".split(" "),
);

/**
 * That a value is a whole problem of a code, as the catalogue has it.
 * @returns the problem
 */
export function expectProblem(value: unknown, code: Code): Problem & { trace_id: string } {
  const found = value as Problem & { trace_id: string };
  const { title, status, retryable } = catalogue[code];
  expect(found).toMatchObject({ type: `urn:mp:problem:${code}`, code, title, status, retryable });
  expect(found.detail).toBeString();
  expect(found.detail).not.toBe("");
  expect(found.hint).toBeString();
  expect(found.hint).not.toBe("");
  expect(found.trace_id).toMatch(/^(?!0{32})[0-9a-f]{32}$/);
  expect(Object.keys(found).filter((member) => !MEMBERS.has(member))).toEqual([]);
  if (code === "conflict") expect(found.reason).toMatch(/^[a-z]+\.[a-z_]+$/);
  else expect(found.reason).toBeNull();
  for (const error of found.errors ?? []) {
    expect(Object.keys(error).sort()).toEqual(["message", "pointer"]);
    expect(error.pointer).toMatch(/^(\/|$)/);
  }
  return found;
}

/** That a reply is a problem of a code: status, content type, body. */
export function expectRefused(
  reply: Pick<Reply, "status" | "text"> & { readonly headers: Headers | Readonly<Record<string, string>> },
  code: Code,
): Problem & { trace_id: string } {
  const headers = new Headers(reply.headers as Record<string, string>);
  expect([reply.status, headers.get("content-type")]).toEqual([
    catalogue[code].status as number,
    "application/problem+json",
  ]);
  expect(headers.get("cache-control")).toBe("no-store");
  expect(headers.has("retry-after")).toBe(code === "overloaded");
  return expectProblem(JSON.parse(reply.text), code);
}
