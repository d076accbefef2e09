/**
 * How a verb talks to the daemon (SPEC §12): one request when it runs; found or started first when it does not.
 *
 * The request itself is the test whether a daemon runs, so nothing is paid for looking. Everything that only the slow
 * way needs is imported there. Without `--no-spawn` any verb starts the daemon that it needs.
 */
import {
  type CallOptions,
  type Client,
  connect,
  freshKey,
  type LooseEnvelope,
  PATIENCE_MS,
  type Target,
} from "../client/client.ts";
import { baseOf, codeOf, failureOf, fetchFrom, ownToken, unavailable } from "../client/transport.ts";
import type { Ask, CommandType, Params, Payload, QueryType, Receipt } from "../client/types.ts";
import { type Paths, paths } from "../daemon/paths.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import type { Asking, Changing } from "./command.ts";
import { isTerminal, note } from "./output.ts";

/** How long a start may take when `--timeout` does not say. */
export const START_MS = 30_000;
const LOOK_MS = 1_000;

/** A receipt with the key it was given under (SPEC §7, rule 7). */
export type Keyed<R> = R & { readonly idempotency_key: string };

/** Any receipt. */
export type Sent = Keyed<Omit<Receipt, "result">> & { readonly result: Readonly<Record<string, unknown>> };

export interface Link {
  /** Ask a query of the registry. */
  query<T extends QueryType>(type: T, params: Params<T>): Promise<Ask<T> | Problem>;
  /** Carry out a command of the registry. */
  execute<T extends CommandType>(type: T, payload: Payload<T>): Promise<Keyed<Receipt<T>> | Problem>;
  /** Send any query: the CLI learns of most types only at run time. */
  ask(type: string, payload: Readonly<Record<string, unknown>>): Promise<object | Problem>;
  /** Send any command. */
  send(type: string, payload: Readonly<Record<string, unknown>>): Promise<Sent | Problem>;
  /** The address of a daemon that runs; asks it once. */
  address(): Promise<Target | Problem>;
  /** The body of a route that is no query, as text. */
  get(path: string): Promise<string | Problem>;
}

/**
 * The link of one verb.
 * @param values what the user chose about it
 * @param credential who asks: the session that this process belongs to, if any, when absent; `{}` is the user
 */
export function daemonLink(
  values: Partial<Asking & Changing>,
  credential: { readonly token?: string } = ownToken(process.env),
): Link {
  const here = paths();
  const calls: CallOptions = values.timeout === undefined ? {} : { timeout_ms: values.timeout };
  let target = { socket: here.socket, ...credential };
  let client = clientOf(target);

  /** The daemon may listen elsewhere: the runtime folder of the shell that started it is another one. */
  function clientOf(at: typeof target): Client {
    return connect(at, {
      start: async () => {
        const socket = await (values["no-spawn"] ? find(here) : start(here, values.timeout ?? START_MS));
        if (isProblem(socket) || socket === at.socket) return isProblem(socket) ? socket : undefined;
        target = { socket, ...credential };
        return MOVED;
      },
    });
  }

  async function call(envelope: LooseEnvelope): Promise<object | Problem> {
    const traced =
      values["trace-id"] === undefined ? envelope : { ...envelope, trace_id: values["trace-id"] };
    const answer = await client.send(traced, calls);
    if (answer !== MOVED) return hinted(answer);
    client = clientOf(target);
    return hinted(await client.send(traced, calls));
  }

  async function send(type: string, payload: Readonly<Record<string, unknown>>) {
    const idempotency_key = values.key ?? freshKey();
    const expected_version = values["expected-version"];
    const answer = await call({
      type,
      payload,
      idempotency_key,
      ...(expected_version !== undefined && { expected_version }),
    });
    return isProblem(answer) ? answer : ({ ...answer, idempotency_key } as Sent);
  }

  const ask = (type: string, payload: Readonly<Record<string, unknown>>) => call({ type, payload });

  async function address(): Promise<Target | Problem> {
    const answer = await ask("daemon.ping", {});
    return isProblem(answer) ? answer : target;
  }

  async function get(path: string): Promise<string | Problem> {
    const at = await address();
    if (isProblem(at)) return at;
    const limit = values.timeout ?? PATIENCE_MS;
    try {
      const response = await fetchFrom(at)(`${baseOf(at)}${path}`, {
        headers: { accept: "application/json" },
        signal: AbortSignal.timeout(limit),
      });
      const text = await response.text();
      if (response.ok) return text;
      const found: unknown = JSON.parse(text);
      return isProblem(found) ? found : unavailable(at, "foreign");
    } catch (error) {
      if (error instanceof Error && error.name === "TimeoutError")
        return problem("timeout", `the daemon has not answered within ${spanOf(limit)}`);
      return unavailable(at, failureOf(error), codeOf(error));
    }
  }

  return {
    ask,
    send,
    query: <T extends QueryType>(type: T, params: Params<T>) =>
      ask(type, params) as Promise<Ask<T> | Problem>,
    execute: <T extends CommandType>(type: T, payload: Payload<T>) =>
      send(type, payload) as Promise<object> as Promise<Keyed<Receipt<T>> | Problem>,
    address,
    get,
  };
}

/** Ends a call whose daemon turned out to listen at another address. */
const MOVED = problem("daemon_unavailable", "the daemon listens at another address");

/** Start the daemon, or find the one that another process starts. */
async function start(here: Paths, timeout_ms: number): Promise<string | Problem> {
  const { selfCommand, startDaemon } = await import("../daemon/handshake.ts");
  const command = selfCommand(["daemon", "run", "--background"]);
  const answer = await startDaemon({ paths: here, command, timeout_ms });
  if (isProblem(answer)) return hungHint(answer);
  if (answer.started && (await isTerminal(2))) await note(`started the daemon (pid ${answer.info.pid})`);
  return answer.info.addresses.socket;
}

/** Find the daemon without starting one. */
async function find(here: Paths): Promise<string | Problem> {
  const { discover } = await import("../client/discover.ts");
  const { state, info } = await discover(here, { timeout_ms: LOOK_MS });
  if (info && (state === "running" || state === "running-older")) return info.addresses.socket;
  return problem("daemon_unavailable", `no daemon answers on ${here.socket}: it is ${state}`, {
    hint: state === "unresponsive" ? HUNG_HINT : "start it with 'mp daemon start', or leave out --no-spawn",
    details: { address: here.socket, state },
  });
}

export const HUNG_HINT =
  "it holds the lock and does not answer: 'mp daemon restart' ends it and starts another";

/** Waiting does not help with a daemon that holds the lock and does not answer, for instance without its socket. */
export function hungHint(found: Problem): Problem {
  const hung = found.code === "daemon_unavailable" && found.details?.state === "unresponsive";
  return hung ? { ...found, hint: HUNG_HINT } : found;
}

/** A daemon that does not know what this program knows is an older one: then restarting it helps. */
function hinted(answer: object | Problem): object | Problem {
  if (!isProblem(answer) || answer.code !== "unknown_command") return answer;
  return { ...answer, hint: `the daemon may be older than this program: mp daemon restart; ${answer.hint}` };
}
