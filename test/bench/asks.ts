/**
 * Requests one after another on one connection to the Unix socket, a process of its own: what one client waits for.
 *
 * Answers are looked at for their status and the cursor of the next page and no further, so that it costs the daemon's
 * cores little. It reads its plan from standard input, for it can be long, and prints one JSON line, AsksResult.
 */
import { randomUUID } from "node:crypto";

export interface AsksPlan {
  readonly socket: string;
  /** It ends after so many seconds, or with the last request. */
  readonly seconds: number;
  /** Asked in turn: over and over if they are queries, once if they are commands. */
  readonly asks: readonly Ask[];
  /** The status that every answer must have; 200 when absent. */
  readonly status?: number;
}

export type Ask =
  /** A query with its parameters; all pages of it count as one. */
  | { readonly query: string; readonly params: Readonly<Record<string, string>>; readonly all: boolean }
  /** `aside`: it only makes room for the next one and does not count. */
  | { readonly command: string; readonly payload: object; readonly aside?: boolean };

export interface AsksResult {
  /** Milliseconds of each ask, all its pages together. */
  readonly times: readonly number[];
  /** The longest single answer, and the most bytes that one had. */
  readonly longest_ms: number;
  readonly most_bytes: number;
}

/** The bytes of a request; a command has a key of its own each time. */
function bytesOf(ask: Ask, cursor?: string): Buffer {
  if ("query" in ask) {
    const params = new URLSearchParams({ ...ask.params, ...(cursor !== undefined && { cursor }) });
    return Buffer.from(`GET /v1/queries/${ask.query}?${params} HTTP/1.1\r\nHost: mp\r\n\r\n`);
  }
  const { command: type, payload } = ask;
  const body = JSON.stringify({ type, payload, idempotency_key: randomUUID() });
  return Buffer.from(
    `POST /v1/commands HTTP/1.1\r\nHost: mp\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

/** One connection: a request in, its answer out. */
async function connect(path: string): Promise<(request: Buffer) => Promise<Buffer>> {
  let chunks: Buffer[] = [];
  let missing = -1;
  let waiting: PromiseWithResolvers<Buffer> | undefined;
  const socket = await Bun.connect({
    unix: path,
    socket: {
      data(_, chunk) {
        chunks.push(Buffer.from(chunk));
        if (missing < 0) {
          const head = Buffer.concat(chunks);
          const end = head.indexOf("\r\n\r\n");
          if (end < 0) return;
          const length = /^content-length: *(\d+)/im.exec(head.toString("latin1", 0, end))?.[1];
          missing = end + 4 + Number(length) - head.length;
        } else missing -= chunk.length;
        if (missing > 0) return;
        const answer = Buffer.concat(chunks);
        [chunks, missing] = [[], -1];
        waiting?.resolve(answer);
      },
      close: () => waiting?.reject(new Error("the daemon closed the connection")),
    },
  });
  return (request) => {
    waiting = Promise.withResolvers();
    // Requests here are so small that the socket takes them whole.
    if (socket.write(request) < request.length) throw new Error("only a part of a request was taken");
    return waiting.promise;
  };
}

async function run({ socket, seconds, asks, status = 200 }: AsksPlan): Promise<AsksResult> {
  const send = await connect(socket);
  const times: number[] = [];
  let longest_ms = 0;
  let most_bytes = 0;
  const begun = performance.now();
  for (let index = 0; performance.now() - begun < seconds * 1000; index++) {
    const ask = asks[index % asks.length];
    if (!ask || (index >= asks.length && "command" in ask)) break;
    const aside = "command" in ask && ask.aside;
    let waited = 0;
    for (let cursor: string | undefined, more = true; more; ) {
      const request = bytesOf(ask, cursor);
      const started = performance.now();
      const answer = await send(request);
      const took = performance.now() - started;
      if (answer.toString("latin1", 9, 12) !== String(status))
        throw new Error(`unexpected: ${answer.toString("utf8", 0, 2_000)}`);
      waited += took;
      if (aside) break;
      longest_ms = Math.max(longest_ms, took);
      most_bytes = Math.max(most_bytes, answer.length);
      const next = answer.lastIndexOf('"next":');
      const text = next < 0 ? "" : answer.toString("latin1", next + 7);
      cursor = /^"([^"]+)"/.exec(text)?.[1];
      more = "query" in ask && ask.all && cursor !== undefined;
    }
    if (!aside) times.push(waited);
  }
  return { times, longest_ms, most_bytes };
}

if (import.meta.main) {
  console.log(JSON.stringify(await run((await Bun.stdin.json()) as AsksPlan)));
  process.exit(0);
}
