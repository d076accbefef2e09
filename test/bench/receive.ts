/**
 * The receiving end of a stream, a process of its own: N raw connections to a Unix socket, WebSocket or NDJSON. The same
 * one stands in front of mp and in front of the yardstick.
 *
 * It shares two cores with the sender, so it looks only at what bounds a frame or a chunk and skips the rest. Prints a
 * line when every connection has had its first frame, and ReceiveResult when each has had all its events.
 */
import type { Socket } from "bun";

export interface ReceivePlan {
  readonly socket: string;
  readonly form: "websocket" | "ndjson";
  readonly connections: number;
  readonly after: number;
  /** Events that each connection waits for (WebSocket), or bytes of the body (NDJSON). */
  readonly events: number;
}

export interface ReceiveResult {
  /** Milliseconds since the epoch: the first request was sent, the last event was there. */
  readonly begun: number;
  readonly ended: number;
  readonly bytes: number;
  /** CPU seconds of this process meanwhile. */
  readonly cpu: number;
}

const now = () => performance.timeOrigin + performance.now();

/** Counts units in the bytes of one connection. */
interface Decoder {
  /** Bytes of the frame under way that are still to come. */
  skip: number;
  /** The beginning of a frame that came in two pieces. */
  rest: Buffer | undefined;
  /** False while the HTTP head is still to come. */
  begun: boolean;
  /** Events seen (WebSocket) or body bytes seen (NDJSON). */
  seen: number;
  /** Frames of any kind. */
  frames: number;
}

/** Frame head and the eleven first characters of its text: enough to know its length and whether it is an event. */
const FRAME_HEAD = 10 + 11;
const V = 118;

/** `{"kind":"event"`: no other frame and no answer has a v there. */
function isEvent(chunk: Buffer, text: number): boolean {
  return chunk[text + 10] === V;
}

/** Count the frames of a chunk; what is left of an incomplete head is kept. */
function webSocketFrames(decoder: Decoder, chunk: Buffer): void {
  let at = 0;
  const { length } = chunk;
  for (;;) {
    if (decoder.skip > 0) {
      const step = Math.min(decoder.skip, length - at);
      decoder.skip -= step;
      at += step;
      if (decoder.skip > 0) return;
    }
    if (at >= length) return;
    const short = chunk[at + 1]! & 127;
    const head = short === 126 ? 4 : short === 127 ? 10 : 2;
    if (length - at < FRAME_HEAD && length - at < head + short) {
      decoder.rest = Buffer.from(chunk.subarray(at));
      return;
    }
    const size =
      short === 126 ? chunk.readUInt16BE(at + 2) : short === 127 ? chunk.readUInt32BE(at + 6) : short;
    decoder.frames += 1;
    if (isEvent(chunk, at + head)) decoder.seen += 1;
    decoder.skip = head + size;
  }
}

/** Count the body bytes of HTTP chunks. */
function httpChunks(decoder: Decoder, chunk: Buffer): void {
  let at = 0;
  const { length } = chunk;
  while (at < length) {
    if (decoder.skip > 0) {
      const step = Math.min(decoder.skip, length - at);
      decoder.skip -= step;
      at += step;
      continue;
    }
    const end = chunk.indexOf("\r\n", at);
    if (end < 0) {
      decoder.rest = Buffer.from(chunk.subarray(at));
      return;
    }
    const size = Number.parseInt(chunk.toString("latin1", at, end), 16);
    decoder.frames += 1;
    decoder.seen += size;
    // The size's own line, the bytes, and the line end behind them.
    decoder.skip = end + 2 - at + size + 2;
  }
}

const UPGRADE =
  "GET /v1/stream HTTP/1.1\r\nHost: mp\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/** A masked text frame; the mask is zero. */
function clientFrame(text: string): Buffer {
  const head =
    text.length < 126 ? [0x81, 0x80 | text.length] : [0x81, 0xfe, text.length >> 8, text.length & 255];
  return Buffer.concat([Buffer.from([...head, 0, 0, 0, 0]), Buffer.from(text)]);
}

function receive(plan: ReceivePlan, greeted: () => void): Promise<ReceiveResult> {
  const { form, after, connections, events } = plan;
  const { promise, resolve, reject } = Promise.withResolvers<ReceiveResult>();
  const subscribe = clientFrame(
    JSON.stringify({ request_id: "1", type: "events.subscribe", payload: { after } }),
  );
  const follow = `GET /v1/events?after=${after}&follow=true HTTP/1.1\r\nHost: mp\r\nAccept: application/x-ndjson\r\n\r\n`;
  const sockets: Socket<Decoder>[] = [];
  let met = 0;
  let complete = 0;
  let bytes = 0;
  const cpu = process.cpuUsage();
  const begun = now();

  function took(socket: Socket<Decoder>, piece: Buffer): void {
    const decoder = socket.data;
    bytes += piece.length;
    let chunk = piece;
    if (decoder.rest) {
      chunk = Buffer.concat([decoder.rest, piece]);
      decoder.rest = undefined;
    }
    if (!decoder.begun) {
      const head = chunk.indexOf("\r\n\r\n");
      if (head < 0) {
        decoder.rest = Buffer.from(chunk);
        return;
      }
      const status = chunk.toString("latin1", 9, 12);
      if (status !== "101" && status !== "200") {
        reject(new Error(chunk.toString()));
        return;
      }
      decoder.begun = true;
      if (form === "websocket") socket.write(subscribe);
      chunk = chunk.subarray(head + 4);
    }
    const { frames, seen } = decoder;
    if (form === "websocket") webSocketFrames(decoder, chunk);
    else httpChunks(decoder, chunk);
    if (frames === 0 && decoder.frames > 0 && ++met === connections) greeted();
    if (seen >= events || decoder.seen < events || ++complete < connections) return;
    const ended = now();
    const used = process.cpuUsage(cpu);
    for (const each of sockets) each.terminate();
    resolve({ begun, ended, bytes, cpu: (used.user + used.system) / 1e6 });
  }

  for (let index = 0; index < connections; index++)
    void Bun.connect<Decoder>({
      unix: plan.socket,
      data: { skip: 0, rest: undefined, begun: false, seen: 0, frames: 0 },
      socket: {
        open(socket) {
          sockets.push(socket);
          socket.write(form === "websocket" ? UPGRADE : follow);
        },
        data: took,
        close() {
          if (complete < connections) reject(new Error("the stream ended early"));
        },
      },
    });
  return promise;
}

if (import.meta.main) {
  const plan = JSON.parse(process.argv[2]!) as ReceivePlan;
  console.log(JSON.stringify(await receive(plan, () => console.log('{"ready":true}'))));
  process.exit(0);
}
