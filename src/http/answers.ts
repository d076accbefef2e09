/**
 * Answers as HTTP responses (SPEC §3): one place for status, headers and content type.
 *
 * The routes are typed with what a client will parse, while Elysia gets a finished `Response`, which it passes on
 * untouched: receipts and events go out as the bytes they already are.
 */
import { freshTrace } from "../kernel/clock.ts";
import type { Answer } from "../kernel/dispatch.ts";
import type { Problem } from "../kernel/problems.ts";

const JSON_HEADERS = { "content-type": "application/json", "cache-control": "no-store" };

/**
 * A response with JSON text.
 * @typeParam T what the text is, for the typed client; nothing checks it here
 */
export function json<T>(text: string, headers?: Record<string, string>): T {
  // Elysia takes any Response as it is; its type only matters to Eden.
  return new Response(text, { headers: headers ? { ...JSON_HEADERS, ...headers } : JSON_HEADERS }) as T;
}

/**
 * A problem as `application/problem+json` with its status; `overloaded` says when to come back.
 * @param trace_id of the request, for a problem that has none of its own
 */
export function refused<T>(problem: Problem, trace_id?: string): T {
  return new Response(problemText(problem, trace_id), {
    status: problem.status,
    headers: {
      "content-type": "application/problem+json",
      "cache-control": "no-store",
      ...(problem.code === "overloaded" && { "retry-after": "1" }),
      ...(problem.code === "unauthorized" && { "www-authenticate": "Bearer" }),
    },
  }) as T;
}

/** A problem as JSON text. Every problem that leaves has a trace id, so that there is something to ask about. */
export function problemText(problem: Problem, trace_id?: string): string {
  return JSON.stringify({ ...problem, trace_id: problem.trace_id ?? trace_id ?? freshTrace() });
}

/** Any answer of the dispatcher. */
export function respond<T>(answer: Answer): T {
  switch (answer.kind) {
    case "receipt":
      return answer.replayed
        ? json(replayed(answer.receipt), { "idempotency-replayed": "true" })
        : json(answer.receipt);
    case "result":
      return json(JSON.stringify(answer.result));
    case "problem":
      return refused(answer.problem);
  }
}

/** The first receipt again, marked as such. `replayed` is its last member (execute.ts writes it there). */
export function replayed(receipt: string): string {
  return receipt.replace(/"replayed":false\}$/, '"replayed":true}');
}

/** An answer as a member of a larger JSON text: a WebSocket frame or a batch. */
export function answerText(answer: Answer): string {
  switch (answer.kind) {
    case "receipt":
      return answer.replayed ? replayed(answer.receipt) : answer.receipt;
    case "result":
      return JSON.stringify(answer.result);
    case "problem":
      return problemText(answer.problem);
  }
}
