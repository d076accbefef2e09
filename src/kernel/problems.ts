/**
 * The one catalogue of problems (SPEC §3): code → HTTP status, CLI exit code, title, hint.
 *
 * A refusal is a value of this shape on every transport; `throw` is left to bugs. Docs, OpenAPI and
 * `mp errors` are made from `catalogue`, so a code that is not here cannot be answered. Problems never echo
 * input, paths or stacks: `detail` is written by us, from what the daemon itself knows.
 */

interface Entry {
  /** HTTP status; null where only the CLI can meet it. */
  readonly status: number | null;
  /** Exit code of the CLI (SPEC §12). */
  readonly exit: number;
  readonly title: string;
  /** What to do next, when the place that refuses knows nothing better. */
  readonly hint: string;
  /** May the same request succeed later, unchanged? */
  readonly retryable: boolean;
}

export const catalogue = {
  malformed_request: {
    status: 400,
    exit: 2,
    title: "The request is not strict JSON",
    hint: "send one UTF-8 JSON object: no duplicate keys, no NUL, depth at most 32, integers within ±(2^53−1)",
    retryable: false,
  },
  unknown_command: {
    status: 404,
    exit: 2,
    title: "There is no such command or query",
    hint: "list them with 'mp schema list'",
    retryable: false,
  },
  unsupported_schema_version: {
    status: 422,
    exit: 2,
    title: "This daemon does not speak that schema version",
    hint: "leave schema_version out to use the current one, or see 'mp schema list'",
    retryable: false,
  },
  invalid_schema: {
    status: 422,
    exit: 2,
    title: "The request breaks its schema",
    hint: "'errors' names every place; 'mp schema get NAME' prints the schema",
    retryable: false,
  },
  idempotency_key_required: {
    status: 400,
    exit: 2,
    title: "A state-changing command needs an idempotency key",
    hint: "send idempotency_key: 1–200 printable ASCII characters, the same one on every retry",
    retryable: false,
  },
  idempotency_key_reused: {
    status: 422,
    exit: 5,
    title: "This idempotency key belongs to another command",
    hint: "use a new key for a new command; the old key always answers with its first receipt",
    retryable: false,
  },
  expected_version_mismatch: {
    status: 412,
    exit: 5,
    title: "The stream is not at the expected version",
    hint: "read the subject again and decide on the version it has now",
    retryable: false,
  },
  conflict: {
    status: 409,
    exit: 5,
    title: "The current state forbids it",
    hint: "'reason' names the rule and 'details' what it met; see 'mp explain REASON'",
    retryable: false,
  },
  not_found: {
    status: 404,
    exit: 3,
    title: "There is no such thing",
    hint: "check the id, or list what exists",
    retryable: false,
  },
  unauthorized: {
    status: 401,
    exit: 4,
    title: "No valid credential",
    hint: "send 'Authorization: Bearer TOKEN', or use the Unix socket of the daemon's own user",
    retryable: false,
  },
  policy_denied: {
    status: 403,
    exit: 4,
    title: "Not allowed",
    hint: "the request came from a place, or asks for a thing, that the policy does not allow",
    retryable: false,
  },
  payload_too_large: {
    status: 413,
    exit: 2,
    title: "The request is too large",
    hint: "a body may have 1 MiB, an event 61,440 bytes, a batch 1,000 commands",
    retryable: false,
  },
  unsupported_media_type: {
    status: 415,
    exit: 2,
    title: "Unsupported media type",
    hint: "send 'Content-Type: application/json'",
    retryable: false,
  },
  cursor_ahead: {
    status: 410,
    exit: 8,
    title: "The cursor is ahead of the log",
    hint: "the log was restored or replaced: read 'mp daemon status', then start again from a cursor you trust",
    retryable: false,
  },
  cursor_foreign: {
    status: 410,
    exit: 8,
    title: "The cursor belongs to another log",
    hint: "the daemon serves another log now: start again with --from-start, or point at the right MP_HOME",
    retryable: false,
  },
  overloaded: {
    status: 503,
    exit: 7,
    title: "The daemon is overloaded",
    hint: "wait for Retry-After seconds and send the same command with the same key",
    retryable: true,
  },
  read_only: {
    status: 503,
    exit: 1,
    title: "The daemon refuses writes",
    hint: "reads go on; 'mp daemon status' says why, for instance a full disk or a stopped projection",
    retryable: true,
  },
  outcome_unknown: {
    status: 500,
    exit: 1,
    title: "The commit failed; nobody knows yet whether it is stored",
    hint: "the daemon is going down to find out: retry with the same key once it is back",
    retryable: true,
  },
  daemon_unavailable: {
    status: null,
    exit: 6,
    title: "No daemon answers",
    hint: "start it with 'mp daemon start'",
    retryable: true,
  },
  timeout: {
    status: null,
    exit: 7,
    title: "Timed out",
    hint: "try again, or allow more time with --timeout",
    retryable: true,
  },
  internal: {
    status: 500,
    exit: 1,
    title: "Internal error",
    hint: "this is a bug in mp: the daemon's log has more under the trace_id",
    retryable: false,
  },
} as const satisfies Record<string, Entry>;

export type Code = keyof typeof catalogue;

/** One place in a request that breaks its schema. */
export interface SchemaError {
  /** RFC 6901 JSON pointer into the envelope, for instance `/payload/name`. */
  readonly pointer: string;
  readonly message: string;
}

/** What a refused request answers: RFC 9457 problem details with the members of SPEC §3. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: Code;
  readonly reason: string | null;
  readonly detail: string;
  readonly hint: string;
  readonly retryable: boolean;
  readonly trace_id?: string;
  readonly details?: Readonly<Record<string, unknown>>;
  readonly errors?: readonly SchemaError[];
}

interface Extra {
  readonly reason?: string;
  readonly hint?: string;
  readonly trace_id?: string;
  readonly details?: Readonly<Record<string, unknown>>;
  readonly errors?: readonly SchemaError[];
}

/**
 * Make a problem from its catalogue entry.
 * @param code the catalogue's key
 * @param detail one sentence about this occurrence; must not repeat what the caller sent
 * @param extra overrides of the hint, and the optional members
 * @returns the problem; `status` is 0 for the codes that only the CLI meets
 */
export function problem(code: Code, detail: string, extra: Extra = {}): Problem {
  const entry: Entry = catalogue[code];
  return {
    type: `urn:mp:problem:${code}`,
    title: entry.title,
    status: entry.status ?? 0,
    code,
    reason: extra.reason ?? null,
    detail,
    hint: extra.hint ?? entry.hint,
    retryable: entry.retryable,
    ...(extra.trace_id !== undefined && { trace_id: extra.trace_id }),
    ...(extra.details !== undefined && { details: extra.details }),
    ...(extra.errors !== undefined && { errors: extra.errors }),
  };
}

/** True for a value made by `problem`, also after a trip over the wire. */
export function isProblem(value: unknown): value is Problem {
  return (
    typeof value === "object" && value !== null && "code" in value && "hint" in value && "retryable" in value
  );
}

/** The CLI's exit code for a problem (SPEC §12). */
export function exitCode(found: Problem): number {
  return catalogue[found.code]?.exit ?? 1;
}
