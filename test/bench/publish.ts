/**
 * The yardstick of the fan-out row, a process of its own: a bare `Bun.serve` on a Unix socket that publishes one and the
 * same frame to all its WebSockets, over and over. Nothing is stored, nothing differs. It begins at a line on its
 * stdin, prints when (PublishResult), and ends when its stdin ends.
 */
import type { ServerWebSocket } from "bun";

export interface PublishPlan {
  readonly socket: string;
  readonly frame: string;
  readonly times: number;
}

export interface PublishResult {
  /** Milliseconds since the epoch. */
  readonly begun: number;
}

/** Publishes in one turn of the loop, and bytes that a socket may have waiting before the next turn. */
const PER_TURN = 64;
const MAX_WAITING = 256 << 10;

const plan = JSON.parse(process.argv[2]!) as PublishPlan;
const sockets = new Set<ServerWebSocket<undefined>>();

const server = Bun.serve({
  unix: plan.socket,
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response(null, { status: 400 })),
  websocket: {
    backpressureLimit: 16 << 20,
    perMessageDeflate: false,
    open(ws) {
      sockets.add(ws);
      ws.subscribe("all");
    },
    message(ws) {
      ws.send('{"kind":"hello"}');
    },
  },
});

console.log('{"listening":true}');
const stdin = Bun.stdin.stream().getReader();
await stdin.read();
console.log(JSON.stringify({ begun: performance.timeOrigin + performance.now() } satisfies PublishResult));
for (let done = 0; done < plan.times; ) {
  for (let turn = 0; turn < PER_TURN && done < plan.times; turn++, done++) server.publish("all", plan.frame);
  do await new Promise((resolve) => setImmediate(resolve));
  while ([...sockets].some((ws) => ws.getBufferedAmount() > MAX_WAITING));
}
await stdin.read();
process.exit(0);
