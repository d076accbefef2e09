/**
 * How bytes get to a daemon: where it is, one `fetch` for it, and what a failed one means (SPEC §2, §3).
 *
 * The one thing that callers must know of a failure is whether the request can have been carried out: then only a retry
 * with the same key is honest. No proxy of the environment ever sees a request to this machine, and no
 * redirect is followed: both would hand the token to somebody else. Cheap to import: every CLI call pays for it.
 */
import { type Problem, problem } from "../kernel/problems.ts";

/**
 * A daemon's address: its Unix socket (an absolute path), or HTTP(S); with the bearer token to send, if any. On the socket
 * a request without one is the daemon's user's own.
 */
export type Target =
  | { readonly socket: string; readonly token?: string }
  | { readonly url: string; readonly token?: string };

/** The token of the session that this process belongs to (`MP_TOKEN`), as a part of its target. */
export function ownToken(env: Readonly<Record<string, string | undefined>>): { readonly token?: string } {
  // What is no token at all must be refused by the daemon, and not break the request.
  return env.MP_TOKEN ? { token: env.MP_TOKEN.replace(/[^!-~]/g, "?") } : {};
}

/** The address as messages show it: without path, user or token. */
export function addressOf(target: Target): string {
  if ("socket" in target) return target.socket;
  return URL.canParse(target.url) ? new URL(target.url).origin : "that URL";
}

/** What request URLs begin with; no slash at the end. */
export function baseOf(target: Target): string {
  return "socket" in target ? "http://localhost" : target.url.replace(/\/+$/, "");
}

/**
 * A `fetch` that goes to the daemon.
 * @returns a function like `fetch`; its idle timer is off, deadlines are the caller's
 */
export function fetchFrom(target: Target): (url: string, init: RequestInit) => Promise<Response> {
  const common = { redirect: "manual", timeout: false } as const;
  const direct = "url" in target && isLoopback(target.url) ? ({ proxy: false } as const) : {};
  const way = "socket" in target ? { unix: target.socket } : direct;
  if (target.token === undefined) return (url, init) => fetch(url, { ...init, ...common, ...way });
  const authorization = `Bearer ${target.token}`;
  return (url, init) => {
    const headers = { ...(init.headers as Record<string, string> | undefined), authorization };
    return fetch(url, { ...init, ...common, ...way, headers });
  };
}

function isLoopback(url: string): boolean {
  const host = URL.canParse(url) ? new URL(url).hostname : "";
  return host === "localhost" || host.endsWith(".localhost") || host === "[::1]" || /^127\./.test(host);
}

/**
 * `unreachable`: nobody took the request. `busy`: a daemon is there, its queue of connections is full. `lost`: the request
 * may have been carried out, its answer did not arrive. `foreign`: what answers is no daemon.
 */
export type Failure = "unreachable" | "busy" | "lost" | "foreign";

/** These mean that no connection came about; an unknown error counts as lost, which is the safe side. */
const NEVER_SENT = new Set(
  ["ECONNREFUSED", "ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EACCES", "EPERM", "ENOTFOUND"].concat(
    ["EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN", "ERR_INVALID_URL", "DEPTH_ZERO_SELF_SIGNED_CERT"],
    ["SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"],
    ["CERT_HAS_EXPIRED", "ERR_TLS_CERT_ALTNAME_INVALID"],
  ),
);

const FOREIGN = new Set(["Malformed_HTTP_Response", "ERR_ENCODING_INVALID_ENCODED_DATA"]);

/**
 * What an error thrown by `fetch`, or by reading a body, means. Not for aborts: those are the caller's own.
 * @throws the error itself when it is not about the network: a bug
 */
export function failureOf(error: unknown): Failure {
  const code = codeOf(error);
  if (code === "" && !(error instanceof SyntaxError)) throw error;
  if (NEVER_SENT.has(code)) return "unreachable";
  if (code === "EAGAIN") return "busy";
  // Not HTTP, not the JSON that its headers promise, or not even text.
  const foreign = error instanceof SyntaxError || FOREIGN.has(code);
  return foreign ? "foreign" : "lost";
}

/** The error's code for `details`, such as ECONNREFUSED; empty when it has none. */
export function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/** `daemon_unavailable` (SPEC §3): which address, what happened there, how to start a daemon. */
export function unavailable(target: Target, failure: Failure, code = ""): Problem {
  const address = addressOf(target);
  const said = {
    unreachable: `no daemon listens on ${address}`,
    busy: `the daemon on ${address} takes no more connections`,
    lost: `the connection to ${address} broke`,
    foreign: `what answers on ${address} is not mp`,
  }[failure];
  const local = "socket" in target;
  const hint = local
    ? "start it with 'mp daemon start'"
    : "check the URL, and on that machine: mp daemon status";
  return problem("daemon_unavailable", code === "" ? said : `${said} (${code})`, {
    hint:
      failure === "foreign" ? "check the address: 'mp daemon status' shows where the daemon listens" : hint,
    details: { address, ...(code !== "" && { errno: code }) },
  });
}

/**
 * Milliseconds to wait after failed attempt number `attempt` (from 0): 25, doubling up to 1,000, and a random half of it
 * off, so that many clients do not come back in step.
 */
export function backoff(attempt: number): number {
  return Math.min(1_000, 25 * 2 ** Math.min(attempt, 10)) * (0.5 + Math.random() / 2);
}

/**
 * The seconds of a `Retry-After` header (1 when there is none) as milliseconds, and up to a quarter more, so that those
 * who were told the same do not come back in step.
 */
export function retryAfter(headers: Headers): number {
  const said = headers.get("retry-after");
  const seconds = said !== null && /^\d{1,6}$/.test(said) ? Number(said) : 1;
  return seconds * 1_000 * (1 + Math.random() / 4);
}

/** Wait `ms` milliseconds, or until `signal` is aborted. */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  if (signal?.aborted) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const wake = () => resolve();
  const timer = setTimeout(wake, ms);
  signal?.addEventListener("abort", wake, { once: true });
  await promise;
  clearTimeout(timer);
  signal?.removeEventListener("abort", wake);
}
