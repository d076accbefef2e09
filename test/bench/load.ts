/**
 * The command load, a process of its own: N connections to the Unix socket, one `project.create` under way on each.
 *
 * It shares two cores with the daemon, so it is made to cost little: requests are bytes that were made before, of which
 * only the digits of a counter change; of an answer only the status and the length are looked at. Prints one
 * JSON line, LoadResult.
 */
import type { Socket } from "bun";
import { cpuBetween, cpuTimes } from "./daemon.ts";

export interface LoadPlan {
  readonly socket: string;
  /** The daemon's process, for its CPU time. */
  readonly pid: number;
  readonly workspace_id: string;
  readonly connections: number;
  /** Commands that are not counted, then those that are. */
  readonly warmup: number;
  readonly commands: number;
  /** Four characters that no other run on this workspace has. */
  readonly tag: string;
}

export interface LoadResult {
  readonly commands: number;
  readonly seconds: number;
  readonly median_ms: number;
  readonly p99_ms: number;
  /** CPU microseconds per command: of the load itself and, where there is a /proc, of the daemon. */
  readonly load_cpu_us: number;
  readonly front_cpu_us: number | null;
  readonly writer_cpu_us: number | null;
  readonly daemon_cpu_us: number | null;
}

interface Client {
  readonly request: Buffer;
  /** Where the counter's digits stand in the request. */
  readonly digits: readonly number[];
  sent: number;
  /** Bytes of the answer that are still to come; -1 when none has come yet. */
  missing: number;
}

const DIGITS = 8;
const COUNTER = "0".repeat(DIGITS);

function makeClient({ workspace_id, tag }: LoadPlan): Client {
  const body = JSON.stringify({
    type: "project.create",
    payload: { workspace_id, name: `project-${tag}-${COUNTER}` },
    idempotency_key: `bench-${tag}-${COUNTER}`,
  });
  const request = Buffer.from(
    `POST /v1/commands HTTP/1.1\r\nHost: mp\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
  );
  const digits: number[] = [];
  const mark = `${tag}-${COUNTER}`;
  for (let at = request.indexOf(mark); at >= 0; at = request.indexOf(mark, at + 1))
    digits.push(at + mark.length - 1);
  return { request, digits, sent: 0, missing: -1 };
}

function setCounter({ request, digits }: Client, value: number): void {
  for (const last of digits) {
    let rest = value;
    for (let at = last; at > last - DIGITS; at--) {
      request[at] = 48 + (rest % 10);
      rest = Math.floor(rest / 10);
    }
  }
}

/** Bytes of an HTTP answer, from its head. Throws when it is not a 200. */
function answerLength(chunk: Buffer): number {
  const head = chunk.indexOf("\r\n\r\n");
  if (head < 0 || chunk.toString("latin1", 9, 12) !== "200") throw new Error(`unexpected: ${chunk}`);
  const at = chunk.indexOf("ontent-", 0, "latin1");
  const length = /ontent-length: *(\d+)/i.exec(chunk.toString("latin1", at, head))?.[1];
  if (length === undefined) throw new Error(`an answer without a length: ${chunk}`);
  return head + 4 + Number(length);
}

async function run(plan: LoadPlan): Promise<LoadResult> {
  const total = plan.warmup + plan.commands;
  const latencies = new Float64Array(plan.commands);
  const done = Promise.withResolvers<void>();
  let next = 0;
  let finished = 0;
  let begun = { at: 0, cpu: process.cpuUsage(), daemon: cpuTimes(plan.pid) };
  let over = { ...begun };

  function send(socket: Socket<Client>): void {
    if (next >= total) return;
    const client = socket.data;
    setCounter(client, next++);
    client.missing = -1;
    client.sent = performance.now();
    if (socket.write(client.request) !== client.request.length)
      throw new Error("the socket took half a request");
  }

  function answered(socket: Socket<Client>): void {
    const index = finished++ - plan.warmup;
    if (index >= 0) latencies[index] = performance.now() - socket.data.sent;
    if (finished === plan.warmup)
      begun = { at: performance.now(), cpu: process.cpuUsage(), daemon: cpuTimes(plan.pid) };
    if (finished === total) {
      over = { at: performance.now(), cpu: process.cpuUsage(), daemon: cpuTimes(plan.pid) };
      done.resolve();
    } else send(socket);
  }

  const sockets = await Promise.all(
    Array.from({ length: plan.connections }, () =>
      Bun.connect<Client>({
        unix: plan.socket,
        data: makeClient(plan),
        socket: {
          data(socket, chunk) {
            const client = socket.data;
            if (client.missing < 0) client.missing = answerLength(chunk);
            client.missing -= chunk.length;
            if (client.missing === 0) answered(socket);
          },
          close() {
            if (finished < total) done.reject(new Error("the daemon closed a connection"));
          },
          error: (_, error) => done.reject(error),
        },
      }),
    ),
  );
  for (const socket of sockets) send(socket);
  await done.promise;
  for (const socket of sockets) socket.terminate();

  latencies.sort();
  const micro = (seconds: number) => (seconds * 1e6) / plan.commands;
  const cpu = over.daemon && begun.daemon ? cpuBetween(begun.daemon, over.daemon) : undefined;
  const own = over.cpu.user + over.cpu.system - begun.cpu.user - begun.cpu.system;
  return {
    commands: plan.commands,
    seconds: (over.at - begun.at) / 1000,
    median_ms: latencies[latencies.length >> 1]!,
    p99_ms: latencies[Math.floor(latencies.length * 0.99)]!,
    load_cpu_us: own / plan.commands,
    front_cpu_us: cpu ? micro(cpu.front) : null,
    writer_cpu_us: cpu ? micro(cpu.writer) : null,
    daemon_cpu_us: cpu ? micro(cpu.all) : null,
  };
}

if (import.meta.main) console.log(JSON.stringify(await run(JSON.parse(process.argv[2]!) as LoadPlan)));
