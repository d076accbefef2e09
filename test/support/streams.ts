/**
 * Readers of event streams on a Unix socket, for tests: NDJSON, NDJSON with frames, server-sent events, WebSocket.
 *
 * They speak the protocols themselves, over a connection that can be told not to read, because a client library would
 * go on buffering. Always so: every frame is kept in the order it came; of an event only its position and a hash of its
 * bytes, so that many readers of a long log fit. `check` holds what a reader got against what the log says, by the
 * rules of SPEC §5. Left out on purpose: reconnecting, which is the tests' own business.
 */
import type { Event } from "../../src/kernel/aggregate.ts";
import type { LogReader } from "../../src/kernel/log.ts";
import type { Json } from "../http/api.ts";

export type Form = "ndjson" | "frames" | "sse" | "websocket";

/** One frame as it came. */
export interface Got {
  readonly kind: string;
  /** Position of an event, or the position that a control frame names. */
  readonly at: number;
  /** Hash of an event's bytes. */
  readonly hash?: bigint | number;
  /** All of a control frame. */
  readonly frame?: Json;
}

/** An event of the log, as a reader should get it. */
export interface Truth {
  readonly at: number;
  readonly hash: bigint | number;
  readonly body: string;
  readonly event: Event;
  /** Does its command end with it? */
  readonly end: boolean;
}

/** What the log says, all of it, by position − 1. */
export function truthOf(reader: LogReader): Truth[] {
  const decoder = new TextDecoder();
  return reader.rows(0, reader.head()).map(({ seq_global, body: bytes, command_end }) => {
    const body = decoder.decode(bytes);
    const event = JSON.parse(body) as Event;
    return { at: seq_global, hash: Bun.hash(bytes), body, event, end: command_end === 1 };
  });
}

/**
 * Hold what a reader got against the log: order, no gap, no duplicate, the bytes, and that no control frame names a
 * position before every event up to it came, or one in the middle of a command.
 * @param after where the reader started
 * @param wanted the events of the log after it that pass its filter
 * @param all the whole log
 * @returns how many of `wanted` came
 * @throws Error at the first thing that is wrong
 */
export function check(
  got: readonly Got[],
  after: number,
  wanted: readonly Truth[],
  all: readonly Truth[],
): number {
  let next = 0;
  let live = false;
  const wrong = (index: number, what: string) =>
    new Error(
      `frame ${index} (${got[index]!.kind} ${got[index]!.at}): ${what}; after ${after}, next wanted ${wanted[next]?.at}`,
    );
  for (const [index, { kind, at, hash }] of got.entries()) {
    switch (kind) {
      case "hello":
        if (index !== 0) throw wrong(index, "hello is the first frame only");
        break;
      case "event":
        if (at !== wanted[next]?.at) throw wrong(index, "a gap, a duplicate, or out of order");
        if (hash !== wanted[next]!.hash) throw wrong(index, "not the bytes of the log");
        next += 1;
        break;
      case "checkpoint":
      case "caught_up":
      case "heartbeat":
      case "fell_behind":
      case "projection_updated":
      case "end":
        if (at < (wanted[next - 1]?.at ?? after)) throw wrong(index, "behind what came already");
        if (next < wanted.length && wanted[next]!.at <= at)
          throw wrong(index, "ahead of an event that had not come");
        if (kind !== "end" && at !== after && all[at - 1]?.end !== true)
          throw wrong(index, "in the middle of a command");
        if (kind === "caught_up" && live) throw wrong(index, "caught up twice");
        if (kind === "fell_behind" && !live) throw wrong(index, "fell behind twice");
        if (kind === "heartbeat" && !live) throw wrong(index, "a heartbeat for one that is behind");
        if (kind === "caught_up") live = true;
        if (kind === "fell_behind") live = false;
        break;
      default:
        throw wrong(index, "unknown");
    }
  }
  return next;
}

const POSITION: Readonly<Record<string, string>> = {
  hello: "head",
  checkpoint: "seq_global",
  caught_up: "seq_global",
  fell_behind: "seq_global",
  heartbeat: "head",
  projection_updated: "as_of_seq",
  end: "resume_after",
};

/** An event's bytes as a frame that came. */
export function event(body: string): Got {
  // `seq_global` comes after the payload in canonical JSON, and nothing behind it can hold those words.
  const from = body.lastIndexOf('"seq_global":') + 13;
  return { kind: "event", at: Number.parseInt(body.slice(from, from + 16), 10), hash: Bun.hash(body) };
}

/** A control frame as one that came. */
export function control(frame: Json): Got {
  return { kind: frame.kind as string, at: frame[POSITION[frame.kind as string] ?? ""] as number, frame };
}

/** A stream that was refused instead. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly body: string,
  ) {
    super(`refused with ${status}: ${body}`);
  }
}

/** One connection. */
export interface Reader {
  /** Once there is an answer. @throws Refused when it is neither 200 nor 101, Error when the connection ends first */
  readonly begun: Promise<void>;
  /** The response's head, in lower case. */
  readonly head: string;
  /** Read no more, until `resume`. */
  pause(): void;
  resume(): void;
  /** Hang up. */
  close(): void;
  /** Send a WebSocket text frame. */
  send(text: string | Uint8Array): void;
  /** Bytes that came so far. */
  readonly bytes: number;
  /** Ended, by whoever. */
  readonly over: boolean;
  /** True when the response came to its proper end. */
  readonly complete: boolean;
}

/** Cuts a growing text at a separator. */
function cutter(separator: string, each: (piece: string) => void): (text: string) => void {
  let rest = "";
  return (text) => {
    const pieces = (rest + text).split(separator);
    rest = pieces.pop()!;
    for (const piece of pieces) each(piece);
  };
}

/** Takes the chunks of a chunked body out of bytes. */
function chunkedDecoder(data: (bytes: Uint8Array) => void, end: () => void): (bytes: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  let missing = 0;
  return (bytes) => {
    rest = rest.length > 0 ? Buffer.concat([rest, bytes]) : bytes;
    for (;;) {
      if (missing > 0) {
        const part = rest.subarray(0, missing);
        rest = rest.subarray(part.length);
        missing -= part.length;
        // The line end behind a chunk is counted, not given out.
        if (part.length > 0)
          data(missing >= 2 ? part : part.subarray(0, Math.max(0, part.length - 2 + missing)));
        if (missing > 0) return;
      }
      const line = rest.indexOf("\r\n");
      if (line < 0) return;
      const size = Number.parseInt(rest.toString("latin1", 0, line), 16);
      rest = rest.subarray(line + 2);
      if (size === 0) return end();
      missing = size + 2;
    }
  };
}

/** Takes the frames of a WebSocket out of bytes. */
function frameDecoder(
  message: (text: string) => void,
  other: (opcode: number) => void,
): (bytes: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return (bytes) => {
    rest = rest.length > 0 ? Buffer.concat([rest, bytes]) : bytes;
    for (;;) {
      if (rest.length < 2) return;
      const short = rest[1]! & 127;
      const head = short === 126 ? 4 : short === 127 ? 10 : 2;
      if (rest.length < head) return;
      const size =
        short === 126 ? rest.readUInt16BE(2) : short === 127 ? Number(rest.readBigUInt64BE(2)) : short;
      if (rest.length < head + size) return;
      const opcode = rest[0]! & 15;
      if (opcode === 1) message(rest.toString("utf8", head, head + size));
      else other(opcode);
      rest = rest.subarray(head + size);
    }
  };
}

/** A client's frame; the mask is zero. */
function clientFrame(opcode: number, payload: Uint8Array): Buffer {
  const size = payload.length;
  const length =
    size < 126
      ? [0x80 | size]
      : size < 65_536
        ? [0xfe, size >> 8, size & 255]
        : [0xff, 0, 0, 0, 0, ...be32(size)];
  return Buffer.concat([Buffer.from([0x80 | opcode, ...length, 0, 0, 0, 0]), payload]);
}

function be32(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
}

/**
 * Connect.
 * @param path with its query
 * @param message told of each WebSocket message, or each piece of the body between separators
 * @param separator that cuts the body; unused for a WebSocket
 */
async function connect(
  socket: string,
  path: string,
  headers: Readonly<Record<string, string>>,
  message: (text: string) => void,
  separator = "\n",
): Promise<Reader> {
  const begun = Promise.withResolvers<void>();
  const decoder = new TextDecoder();
  const cut = cutter(separator, message);
  const state = { head: "", bytes: 0, over: false, complete: false };
  let taking: ((bytes: Buffer) => void) | undefined;
  let early: Buffer = Buffer.alloc(0);
  let unsent: Buffer = Buffer.alloc(0);

  function begin(bytes: Buffer): void {
    early = Buffer.concat([early, bytes]);
    const end = early.indexOf("\r\n\r\n");
    if (end < 0) return;
    state.head = early.toString("latin1", 0, end).toLowerCase();
    const status = Number(state.head.slice(9, 12));
    const body = early.subarray(end + 4);
    if (status !== 200 && status !== 101) {
      const length = Number(/content-length: (\d+)/.exec(state.head)?.[1] ?? 0);
      if (body.length >= length) begun.reject(new Refused(status, body.toString()));
      return;
    }
    taking =
      status === 101
        ? frameDecoder(message, (opcode) => {
            if (opcode === 9) flush(clientFrame(10, new Uint8Array()));
            if (opcode === 8) state.complete = true;
          })
        : chunkedDecoder(
            (part) => cut(decoder.decode(part, { stream: true })),
            () => {
              state.complete = true;
            },
          );
    begun.resolve();
    taking(body);
  }

  function flush(more?: Buffer): void {
    if (more) unsent = Buffer.concat([unsent, more]);
    while (unsent.length > 0) {
      const written = connection.write(unsent);
      if (written <= 0) return;
      unsent = unsent.subarray(written);
    }
  }

  const over = () => {
    state.over = true;
    begun.reject(new Error("the connection ended before the answer"));
  };
  const connection = await Bun.connect({
    unix: socket,
    socket: {
      data(_, bytes) {
        state.bytes += bytes.length;
        if (taking) taking(bytes);
        else begin(bytes);
      },
      drain: () => flush(),
      close: over,
      end: over,
      error: over,
    },
  });
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  flush(Buffer.from(`GET ${path} HTTP/1.1\r\nHost: mp\r\n${lines.join("")}\r\n`));
  // A test that does not wait for the answer need not hear that there is none.
  begun.promise.catch(() => connection.terminate());
  return {
    begun: begun.promise,
    get head() {
      return state.head;
    },
    get bytes() {
      return state.bytes;
    },
    get over() {
      return state.over;
    },
    get complete() {
      return state.complete;
    },
    pause: () => void connection.pause(),
    resume: () => void connection.resume(),
    close: () => void connection.terminate(),
    send: (text) => flush(clientFrame(typeof text === "string" ? 1 : 2, Buffer.from(text as string))),
  };
}

/** Filters of SPEC §5 as a test has them. */
export interface Wanted {
  readonly types?: readonly string[];
  readonly streams?: readonly string[];
  readonly workspace_id?: string;
  readonly project_id?: string;
  readonly subject_kind?: string;
}

/** The events after a cursor that a filter lets through, found by reading the events themselves. */
export function passing(all: readonly Truth[], after: number, wanted: Wanted): Truth[] {
  const { types, streams, workspace_id, project_id, subject_kind } = wanted;
  const matches = (type: string) =>
    types!.some(
      (glob) => glob === "*" || glob === type || (glob.endsWith(".*") && type.startsWith(glob.slice(0, -1))),
    );
  return all
    .slice(after)
    .filter(
      ({ event }) =>
        (!types || matches(event.event_type)) &&
        (!streams || streams.includes(event.stream)) &&
        (workspace_id === undefined || event.workspace_id === workspace_id) &&
        (project_id === undefined || event.project_id === project_id) &&
        (subject_kind === undefined || event.subject.kind === subject_kind),
    );
}

/** A URL's query: lists as repeated parameters. */
export function query(params: object): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params))
    for (const each of Array.isArray(value) ? (value as unknown[]) : [value])
      if (each !== undefined) search.append(name, String(each));
  return search.toString();
}

export interface Stream extends Reader {
  readonly got: Got[];
}

const ACCEPT = { ndjson: "application/x-ndjson", frames: "application/x-ndjson", sse: "text/event-stream" };

/**
 * Follow the log as NDJSON or server-sent events. Comes back when the answer has begun, which for plain NDJSON is with
 * the first event only: see `begin`.
 * @throws Refused when it is refused
 */
export async function follow(...args: Parameters<typeof begin>): Promise<Stream> {
  const stream = await begin(...args);
  await stream.begun;
  return stream;
}

/** `follow`, without waiting for the answer. */
export async function begin(
  socket: string,
  form: Exclude<Form, "websocket">,
  params: object,
  headers: Readonly<Record<string, string>> = {},
): Promise<Stream> {
  const got: Got[] = [];
  const path = `/v1/events?${query({ follow: true, ...(form === "frames" && { frames: true }), ...params })}`;
  const line = {
    ndjson: (text: string) => event(text),
    frames: (text: string) =>
      text.startsWith('{"kind":"event"')
        ? event(text.slice('{"kind":"event","event":'.length, -1))
        : control(JSON.parse(text) as Json),
    sse: serverSentEvent,
  }[form];
  const reader = await connect(
    socket,
    path,
    { accept: ACCEPT[form], ...headers },
    (text) => got.push(line(text)),
    form === "sse" ? "\n\n" : "\n",
  );
  return Object.defineProperties({ got } as Stream, Object.getOwnPropertyDescriptors(reader));
}

/** One server-sent event; that its fields agree is part of the check. */
function serverSentEvent(text: string): Got {
  const fields = new Map(
    text.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]),
  );
  const kind = fields.get("event")!;
  const data = fields.get("data")!;
  const found = kind === "event" ? event(data) : control(JSON.parse(data) as Json);
  const id = kind === "event" || kind === "checkpoint" ? String(found.at) : undefined;
  if (found.kind !== kind || fields.get("id") !== id || fields.size !== (id === undefined ? 2 : 3))
    throw new Error(`not the form of a server-sent event: ${text.slice(0, 200)}`);
  return found;
}

/** A WebSocket with its subscriptions and answers. */
export interface Wire extends Reader {
  /** Frames by subscription. */
  readonly got: Map<string, Got[]>;
  /** Answers in the order they came. */
  readonly answers: Json[];
  /** Send a request; its answer. */
  ask(request: object): Promise<Json>;
  /** Subscribe, and give the frames that come. @throws Error when it is refused */
  subscribe(request_id: string, payload: object): Promise<Got[]>;
}

const UPGRADE = {
  upgrade: "websocket",
  connection: "Upgrade",
  "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
  "sec-websocket-version": "13",
};

/** Open a WebSocket. */
export async function wire(socket: string): Promise<Wire> {
  const got = new Map<string, Got[]>();
  const answers: Json[] = [];
  const waiting = new Map<unknown, (answer: Json) => void>();
  const begin = '{"kind":"event","subscription":"';
  const list = (id: string) => {
    const found = got.get(id) ?? [];
    got.set(id, found);
    return found;
  };
  const reader = await connect(socket, "/v1/stream", UPGRADE, (text) => {
    if (text.startsWith(begin)) {
      const end = text.indexOf('"', begin.length);
      list(text.slice(begin.length, end)).push(event(text.slice(end + '","event":'.length, -1)));
      return;
    }
    const message = JSON.parse(text) as Json;
    if ("request_id" in message) {
      answers.push(message);
      waiting.get(message.request_id)?.(message);
      waiting.delete(message.request_id);
    } else list(message.subscription as string).push(control(message));
  });
  await reader.begun;
  const own = {
    got,
    answers,
    ask(request: object) {
      const { promise, resolve } = Promise.withResolvers<Json>();
      waiting.set((request as Json).request_id, resolve);
      reader.send(JSON.stringify(request));
      return promise;
    },
    async subscribe(request_id: string, payload: object) {
      const answer = await own.ask({ request_id, type: "events.subscribe", payload });
      if (answer.kind !== "result") throw new Refused(Number(answer.status), JSON.stringify(answer));
      return list(request_id);
    },
  };
  return Object.defineProperties(own as Wire, Object.getOwnPropertyDescriptors(reader));
}

/** A seeded source of chance; the seed is printed, so that a failure can be seen again. */
export function chance(
  name: string,
  seed = Number(process.env.SEED ?? crypto.getRandomValues(new Uint32Array(1))[0]),
) {
  console.log(`${name}: SEED=${seed}`);
  let state = seed >>> 0;
  /** A number in [0, 1): mulberry32. */
  function next(): number {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
  const below = (limit: number) => Math.floor(next() * limit);
  return {
    /** An integer in [0, limit). */
    below,
    /** True so many times in a hundred. */
    percent: (share: number) => below(100) < share,
    pick: <T>(from: readonly T[]): T => from[below(from.length)]!,
    /** Some of them, at least one, at most `most`. */
    some: <T>(from: readonly T[], most: number): T[] =>
      Array.from({ length: 1 + below(Math.min(most, from.length)) }, () => from[below(from.length)]!),
  };
}
export type Chance = ReturnType<typeof chance>;
