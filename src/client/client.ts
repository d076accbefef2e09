/**
 * The typed client (SPEC §2, §3, §7): Eden over the Unix socket or HTTP, checked and completed from the registry.
 *
 * Always holds: a refusal is a value and never retried; an answer that was lost is asked for again under the same key
 * until the deadline, so a command is carried out once however often it travels. Commands and queries go as envelopes
 * in a JSON body, never through a query string, so nothing is turned into text and back. Nothing of the
 * server is loaded: Elysia and the schemas are types here. Event streams are in tail.ts.
 */
import { treaty } from "@elysiajs/eden/treaty2";
import type { App } from "../http/app.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import {
  addressOf,
  backoff,
  baseOf,
  codeOf,
  type Failure,
  failureOf,
  fetchFrom,
  pause,
  retryAfter,
  type Target,
  unavailable,
} from "./transport.ts";
import type {
  AnyEnvelope,
  Ask,
  BatchAnswer,
  CommandType,
  EnvelopeOf,
  EnvelopeOptions,
  Params,
  Payload,
  QueryType,
  Receipt,
  StoredBytes,
} from "./types.ts";

export type { Target } from "./transport.ts";

/** How long a call may take with all its retries, when nobody says otherwise; and how long lost answers are retried. */
export const PATIENCE_MS = 30_000;

/** Where that is not the right time: what goes through the whole log takes as long as it takes, a hook keeps people waiting. */
const PATIENCE: Readonly<Record<string, number>> = {
  "log.verify": Number.POSITIVE_INFINITY,
  "projection.verify": Number.POSITIVE_INFINITY,
  "worktree.check": 5_000,
};

/** Milliseconds that a command or query may take when nobody says otherwise: a daemon may be there and be frozen. */
export function patienceOf(type: string): number {
  return PATIENCE[type] ?? PATIENCE_MS;
}

export interface ClientOptions {
  /**
   * Called when nobody listens at the address; may start a daemon there. A problem ends the call with it; without
   * one the request is sent again. When absent the answer is `daemon_unavailable` at once.
   */
  readonly start?: () => Promise<Problem | undefined>;
}

export interface CallOptions {
  /**
   * Milliseconds that the call may take with all its retries; then it answers `timeout`. When absent it is `patienceOf` the
   * type, counted from when a daemon was started; bytes may take as long as they need, but are not sent again after 30,000.
   */
  readonly timeout_ms?: number;
  /** Give up: the call rejects with the signal's reason, and a command under way may still be carried out. */
  readonly signal?: AbortSignal;
}

export interface CommandOptions extends CallOptions, Omit<EnvelopeOptions, "idempotency_key"> {
  /** The idempotency key (SPEC §7); a new one when absent. Give the same one to repeat a command after a crash. */
  readonly key?: string;
}

export interface QueryOptions extends CallOptions, Pick<EnvelopeOptions, "schema_version" | "trace_id"> {}

export interface BatchOptions extends CallOptions {
  /** All or nothing, in one transaction. */
  readonly atomic?: boolean;
}

/** Any command of the registry as a batch takes it; without an idempotency key it gets a new one. */
export type BatchCommand = { [T in CommandType]: EnvelopeOf<T> }[CommandType];

/** An envelope whose type is not known before run time, as the CLI has it. The daemon checks all of it. */
export interface LooseEnvelope extends EnvelopeOptions {
  readonly type: string;
  readonly payload: Readonly<Record<string, unknown>>;
}

/** `params` may be left out where every parameter may. */
type QueryArguments<T extends QueryType> =
  Record<never, never> extends Params<T>
    ? [params?: Params<T>, options?: QueryOptions]
    : [params: Params<T>, options?: QueryOptions];

/** What treaty makes of the routes. */
export type Api = ReturnType<typeof treaty<App>>;

export interface Client {
  /**
   * Carry out a command (SPEC §7). A lost answer, `overloaded` and `outcome_unknown` are retried with the same key.
   * @returns the receipt, or the problem. When it gave up on a lost answer, `details.idempotency_key` is the key to
   *   retry with: the command may have been carried out
   */
  execute<T extends CommandType>(
    type: T,
    payload: Payload<T>,
    options?: CommandOptions,
  ): Promise<Receipt<T> | Problem>;
  /** Ask a query. Retried like a command, since it changes nothing. */
  query<T extends QueryType>(type: T, ...rest: QueryArguments<T>): Promise<Ask<T> | Problem>;
  /** Carry out up to 1,000 commands in one request. A problem when the batch itself, or an atomic one, is refused. */
  batch(commands: readonly BatchCommand[], options?: BatchOptions): Promise<BatchAnswer | Problem>;
  /** Send an envelope that the compiler knows nothing about. A command needs its key in it: see `freshKey`. */
  send(envelope: LooseEnvelope, options?: CallOptions): Promise<object | Problem>;
  /**
   * Send the bytes of an artifact (SPEC §8). They are streamed: a file is `Bun.file(path)`. Sending them again does no harm,
   * so a lost answer is asked for again, except where they come from a stream, which can be read only once.
   * @param digest `sha256:` and the hexadecimal SHA-256 of exactly these bytes
   * @returns once they are durable
   */
  upload(
    digest: string,
    body: Blob | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array>,
    options?: CallOptions,
  ): Promise<StoredBytes | Problem>;
  /**
   * Read the bytes of an artifact.
   * @returns a response whose body is to be read, and checked against the digest, by the caller
   */
  download(digest: string, options?: CallOptions): Promise<Response | Problem>;
  /** Every route, typed, as Eden has it: one request, no retry, and text stays text. */
  readonly api: Api;
}

/** A new idempotency key. */
export function freshKey(): string {
  return `mp-${crypto.randomUUID()}`;
}

/**
 * Make a client. Nothing is sent and nobody is looked for before the first call.
 * @param target the daemon's address
 * @param options see `ClientOptions`
 */
export function connect(target: Target, { start }: ClientOptions = {}): Client {
  const api = treaty<App>(baseOf(target), {
    fetcher: fetchFrom(target) as typeof fetch,
    // Eden would make Date objects of everything that looks like a time.
    parseDate: false,
  });
  const commands = api.v1.commands;
  const direct = fetchFrom(target);
  const urlOf = (digest: string) => `${baseOf(target)}/v1/artifacts/${encodeURIComponent(digest)}`;

  const send = (envelope: LooseEnvelope, options: CallOptions = {}) => {
    const keys = envelope.idempotency_key === undefined ? [] : [envelope.idempotency_key];
    const patience = { ...options, patience_ms: patienceOf(envelope.type) };
    return insist(target, start, keys, patience, (fetch) =>
      commands.post(envelope as AnyEnvelope, { fetch }),
    );
  };

  return {
    api,
    send,
    execute<T extends CommandType>(
      type: T,
      payload: Payload<T>,
      { key = freshKey(), timeout_ms, signal, ...rest }: CommandOptions = {},
    ) {
      const envelope = { ...rest, type, payload, idempotency_key: key };
      return send(envelope, callOptions(timeout_ms, signal)) as Promise<Receipt<T> | Problem>;
    },
    query<T extends QueryType>(type: T, ...[params, options]: QueryArguments<T>) {
      const { timeout_ms, signal, ...rest } = options ?? {};
      const envelope = { ...rest, type, payload: params ?? {} };
      return send(envelope, callOptions(timeout_ms, signal)) as Promise<Ask<T> | Problem>;
    },
    async upload(digest, body, options = {}) {
      const put = async (init: RequestInit): Promise<Answered> => {
        const response = await direct(urlOf(digest), { ...init, method: "PUT", body });
        return read(response, await response.json());
      };
      if (!(body instanceof ReadableStream))
        return insist(target, start, [], options, put) as Promise<StoredBytes | Problem>;
      const { timeout_ms, signal } = options;
      const clock = timeout_ms === undefined ? undefined : AbortSignal.timeout(timeout_ms);
      const signals = [signal, clock].filter((each) => each !== undefined);
      const answered = await attempted(() => put({ signal: AbortSignal.any(signals) }));
      signal?.throwIfAborted();
      if (clock?.aborted && !answered.response) return timedOut(target, timeout_ms!);
      const tried = judge(target, answered);
      return ("done" in tried ? tried.done : tried.again) as StoredBytes | Problem;
    },
    download: (digest, options = {}) =>
      insist(target, start, [], options, async (init) => {
        const response = await direct(urlOf(digest), { ...init, method: "GET" });
        return read(response, response.ok ? response : await response.json());
      }) as Promise<Response | Problem>,
    batch(given, { atomic = false, ...options } = {}) {
      const keyed = given.map((each) => ({ ...each, idempotency_key: each.idempotency_key ?? freshKey() }));
      const keys = keyed.map((each) => each.idempotency_key);
      return insist(target, start, keys, { ...options, patience_ms: PATIENCE_MS }, (fetch) =>
        commands.batch.post({ atomic, commands: keyed as AnyEnvelope[] }, { fetch }),
      ) as Promise<BatchAnswer | Problem>;
    },
  };
}

function callOptions(timeout_ms: number | undefined, signal: AbortSignal | undefined): CallOptions {
  return { ...(timeout_ms !== undefined && { timeout_ms }), ...(signal && { signal }) };
}

/** What Eden answers, as far as it is read here. */
interface Answered {
  readonly data: unknown;
  readonly error: { readonly value: unknown } | null;
  readonly response: Response | undefined;
}

/** What a route answered that Eden does not know how to ask. */
function read(response: Response, value: unknown): Answered {
  return response.ok ? { data: value, error: null, response } : { data: null, error: { value }, response };
}

/** One attempt: the end of the call, or why to try again and, where the daemon said so, after how many milliseconds. */
type Attempt =
  | { readonly done: object }
  | { readonly again: Problem; readonly failure?: Failure; readonly after_ms?: number | undefined };

/** How long at most, said by the caller or not; for ever when neither is there. */
interface Patience extends CallOptions {
  readonly patience_ms?: number;
}

/**
 * Send until there is an answer that stands.
 * @param keys of the commands in it; none for a query
 */
async function insist(
  target: Target,
  start: ClientOptions["start"],
  keys: readonly string[],
  { timeout_ms, patience_ms = Number.POSITIVE_INFINITY, signal }: Patience,
  post: (fetch: RequestInit) => Promise<unknown>,
): Promise<object | Problem> {
  let from = performance.now();
  const limit = timeout_ms ?? patience_ms;
  const left = () => from + Math.min(limit, timeout_ms ?? PATIENCE_MS) - performance.now();
  /** Has an answer gone missing? Then nobody knows, and it is worth waiting for a daemon to come back. */
  let missing = false;
  for (let attempt = 0; ; attempt++) {
    signal?.throwIfAborted();
    const clock = limit === Number.POSITIVE_INFINITY ? undefined : AbortSignal.timeout(Math.max(0, left()));
    const signals = [signal, clock].filter((each) => each !== undefined);
    const answered = await attempted(() =>
      post(signals.length === 0 ? {} : { signal: AbortSignal.any(signals) }),
    );
    signal?.throwIfAborted();
    if (clock?.aborted && !answered.response) return unsettled(timedOut(target, limit), keys);

    const tried = judge(target, answered);
    if ("done" in tried) return tried.done;
    if (tried.failure === "lost" || tried.again.code === "outcome_unknown") missing = true;
    let wait = tried.after_ms ?? backoff(attempt);
    if (tried.failure === "unreachable") {
      const refusal = await start?.();
      if (refusal) return missing ? unsettled(refusal, keys) : refusal;
      if (!start && !missing) return tried.again;
      // What was started says that it is ready: the first time there is nothing to wait for.
      if (start && attempt === 0) {
        wait = 0;
        // Its start has taken its own time, which was limited as well.
        if (timeout_ms === undefined) from = performance.now();
      }
    }
    if (wait > left()) return missing ? unsettled(tried.again, keys) : tried.again;
    await pause(wait, signal);
  }
}

/** Eden returns what breaks before the answer begins and throws what breaks within it: here both are returned. */
async function attempted(post: () => Promise<unknown>): Promise<Answered> {
  try {
    return (await post()) as Answered;
  } catch (error) {
    return { data: null, error: { value: error }, response: undefined };
  }
}

/** What one answer means. */
function judge(target: Target, { data, error, response }: Answered): Attempt {
  if (!response) {
    const failure = failureOf(error?.value);
    const again = unavailable(target, failure, codeOf(error?.value));
    return failure === "foreign" ? { done: again } : { again, failure };
  }
  if (!error && typeof data === "object" && data !== null) return { done: data };
  if (!isProblem(error?.value)) return { done: unavailable(target, "foreign", `HTTP ${response.status}`) };
  const found = error.value;
  // Only what says of itself that the same command will do: every other refusal stands.
  if (found.code === "overloaded") return { again: found, after_ms: retryAfter(response.headers) };
  return found.code === "outcome_unknown" ? { again: found } : { done: found };
}

function timedOut(target: Target, limit: number): Problem {
  return problem("timeout", `${addressOf(target)} has not answered within ${spanOf(limit)}`, {
    hint: "'mp daemon status' says whether it answers at all, 'mp daemon restart' ends one that does not; more time: --timeout",
    details: { address: addressOf(target), timeout_ms: limit },
  });
}

/** A problem that leaves open whether commands were carried out: it says so, and with which key to find out. */
function unsettled(found: Problem, keys: readonly string[]): Problem {
  if (keys.length === 0) return found;
  const known = keys.length === 1 ? { idempotency_key: keys[0] } : { idempotency_keys: keys };
  return {
    ...found,
    hint: `it may have been carried out: send the same again with the same key; ${found.hint}`,
    details: { ...found.details, ...known },
  };
}
