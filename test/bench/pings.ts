/**
 * Pings at a steady pace, a process of its own: `daemon.ping` over HTTP on the Unix socket, one every few milliseconds on
 * whichever connection is free, so that a slow answer does not keep the next ping from being sent. Prints PingsResult.
 */
import type { Socket } from "bun";

export interface PingsPlan {
  readonly socket: string;
  /** How long; until standard input ends when absent. */
  readonly seconds?: number;
  readonly every_ms: number;
}

export interface PingsResult {
  readonly pings: number;
  readonly median_ms: number;
  readonly p99_ms: number;
  readonly max_ms: number;
}

const CONNECTIONS = 100;
const REQUEST = Buffer.from("GET /v1/queries/daemon.ping HTTP/1.1\r\nHost: mp\r\n\r\n");

/** Nobody waits for a socket's own functions, so they end the process. */
function fail(message: string): never {
  console.error(message);
  process.exit(1);
}

async function run({ socket, seconds, every_ms }: PingsPlan): Promise<PingsResult> {
  const free: Socket<{ sent: number }>[] = [];
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: CONNECTIONS }, () =>
      Bun.connect<{ sent: number }>({
        unix: socket,
        data: { sent: 0 },
        socket: {
          open: (each) => void free.push(each),
          // The answer is a few hundred bytes and comes in one piece.
          data(each, chunk) {
            if (chunk.toString("latin1", 9, 12) !== "200") fail(`unexpected: ${chunk}`);
            times.push(performance.now() - each.data.sent);
            free.push(each);
          },
          close: () => fail("the daemon closed a connection"),
        },
      }),
    ),
  );
  let over = false;
  const ends = seconds === undefined ? Bun.stdin.arrayBuffer() : Bun.sleep(seconds * 1000);
  void ends.then(() => {
    over = true;
  });
  let sent = 0;
  for (let due = performance.now(); !over; due += every_ms) {
    await Bun.sleep(Math.max(0, due - performance.now()));
    const each = free.shift();
    // All are waiting for an answer: each of them will count what it waited.
    if (!each) continue;
    each.data.sent = performance.now();
    each.write(REQUEST);
    sent += 1;
  }
  while (times.length < sent) await Bun.sleep(1);
  times.sort((a, b) => a - b);
  return {
    pings: sent,
    median_ms: times[times.length >> 1]!,
    p99_ms: times[Math.floor(times.length * 0.99)]!,
    max_ms: times.at(-1)!,
  };
}

if (import.meta.main) {
  console.log(JSON.stringify(await run(JSON.parse(process.argv[2]!) as PingsPlan)));
  process.exit(0);
}
