/**
 * One envelope in, one answer out: the same on every transport (SPEC §2, §3).
 *
 * Parses nothing and knows no socket: it gets a JSON value and who sent it. Checks come in this order: envelope,
 * type, schema version, payload, key; so the caller hears of the first thing that is wrong with all its places.
 */
import { type Static, type TSchema, Type } from "typebox";
import { type Actor, isRefused } from "./aggregate.ts";
import { freshTrace, wireTime } from "./clock.ts";
import { type Acting, type Outcome, refusal, type WriteCommand, type WriteRequest } from "./execute.ts";
import { fingerprint } from "./idempotency.ts";
import { nearest } from "./nearest.ts";
import { badCursor } from "./page.ts";
import { isProblem, type Problem, problem, type SchemaError } from "./problems.ts";
import { BadCursor, type ReadModels } from "./readmodel.ts";
import { type QueryEntry, type Registry, schemaOf, upcast } from "./registry.ts";
import { Id, MOST_ERRORS, object, Seq, schemaErrors, UNKNOWN_FIELD } from "./schema.ts";
import type { Hub } from "./stream.ts";

/** Who sent a request: made from the credential, never from the envelope (SPEC §2). */
export interface Caller {
  readonly actor: Actor;
  /** Scope of idempotency keys. */
  readonly principal: string;
  /** Why the credential is good no more: asked of whatever is no command. */
  readonly ended?: () => Problem | undefined;
  /** The session whose credential it is: commands are held against that by the writer, after their keys. */
  readonly acting?: Acting;
}

const TRACE_ID = /^(?!0{32})[0-9a-f]{32}$/;

export const TraceId = Type.String({
  pattern: TRACE_ID.source,
  description: "32 hex digits, not all zero",
});

export const IdempotencyKey = Type.String({
  pattern: "^[ -~]{1,200}$",
  description: "1–200 printable ASCII characters",
});

/** The members every envelope may have; `payload` is checked by its own schema. */
export const envelopeFields = {
  type: Type.String({ minLength: 1, maxLength: 128 }),
  // Any whole number: one that is not a version here is unsupported_schema_version, not a broken schema.
  schema_version: Type.Optional(Type.Integer()),
  payload: Type.Record(Type.String(), Type.Unknown()),
  idempotency_key: Type.Optional(IdempotencyKey),
  expected_version: Type.Optional(Seq),
  trace_id: Type.Optional(TraceId),
  parent_event_id: Type.Optional(Id),
};
const Envelope = object(envelopeFields);
export type Envelope = Static<typeof Envelope>;

const Batch = object({ atomic: Type.Boolean(), commands: Type.Array(Type.Unknown(), { minItems: 1 }) });

/** Most commands of a batch (SPEC §10). */
export const MAX_BATCH = 1_000;

/** How long `min_seq` waits for the read models, in milliseconds. */
const MIN_SEQ_WAIT_MS = 5_000;

export type Answer =
  | { readonly kind: "receipt"; readonly receipt: string; readonly replayed: boolean }
  | { readonly kind: "result"; readonly result: object }
  | { readonly kind: "problem"; readonly problem: Problem };

/** Answers one of the kernel's own queries. */
export type SystemQuery = (params: never, caller: Caller) => object | Problem | Promise<object | Problem>;

export interface Dispatch {
  /** Before anything is read: a problem when the daemon is stopping, or the log does not reach `min_seq` in time. */
  ready(min_seq: number | undefined): Promise<Problem | undefined>;
  /** One envelope: a command or a query. */
  one(value: unknown, caller: Caller, trace_id?: string): Promise<Answer>;
  /** `{atomic, commands}`: one answer per command, or a problem about the batch itself. */
  batch(
    value: unknown,
    caller: Caller,
    trace_id?: string,
  ): Promise<{ answers: Answer[] } | { problem: Problem }>;
  /** A query with parameters that came as text, as a URL has them. */
  query(type: string, search: URLSearchParams, caller: Caller, trace_id?: string): Promise<Answer>;
}

/**
 * Make the dispatcher of a daemon.
 * @param parts the registry, the writer's queue, the read models, the stream hub and the kernel's own queries
 */
export function dispatcher(parts: {
  registry: Registry;
  submit(request: WriteRequest): Promise<readonly Outcome[] | Problem>;
  readModels: ReadModels;
  hub: Hub;
  systemQueries: Readonly<Record<string, SystemQuery>>;
  /** What a valid payload says of the daemon's machine that is not so there; undefined when it says nothing of it. */
  misplaced(type: string, payload: Readonly<Record<string, unknown>>): Promise<SchemaError[]> | undefined;
  /** Milliseconds since the epoch: what queries take for the present. */
  now(): number;
  /** A problem when nothing is taken any more, because the daemon is stopping. */
  closed(): Problem | undefined;
}): Dispatch {
  const { registry, hub } = parts;

  function entryOf(type: string) {
    return registry.commands.get(type) ?? registry.queries.get(type);
  }

  /** What is wrong with an envelope; where its type is known, also what is wrong with its payload, all at once. */
  function envelopeErrors(value: unknown, at = ""): SchemaError[] {
    const errors = schemaErrors(Envelope, value, at);
    if (errors.length === 0 || typeof value !== "object" || value === null) return errors;
    const { type, payload, schema_version } = value as Partial<Envelope>;
    const entry = typeof type === "string" ? entryOf(type) : undefined;
    if (!entry || payload === undefined || errors.some(({ pointer }) => pointer === `${at}/payload`))
      return errors;
    const schema =
      "params" in entry ? entry.params : schemaOf(entry.spec, schema_version ?? entry.spec.version);
    return schema ? [...errors, ...schemaErrors(schema, payload, `${at}/payload`)] : errors;
  }

  /** Everything that can be wrong with a command before the writer sees it. */
  function prepare(envelope: Envelope, caller: Caller, trace_id: string): WriteCommand | Problem {
    const entry = registry.commands.get(envelope.type)!;
    const version = envelope.schema_version ?? entry.spec.version;
    const schema = schemaOf(entry.spec, version);
    if (!schema) return unsupported(entry.type, entry.spec.version, trace_id);
    const errors = schemaErrors(schema, envelope.payload, "/payload");
    if (errors.length > 0) return invalidSchema(errors, trace_id);
    const payload = upcast(entry.type, entry.spec, version, envelope.payload) as Record<string, unknown>;
    if (envelope.idempotency_key === undefined)
      return problem("idempotency_key_required", `${entry.type} changes state, so it needs a key`, {
        trace_id,
      });
    return {
      type: entry.type,
      payload,
      idempotency_key: envelope.idempotency_key,
      fingerprint: fingerprint(envelope),
      expected_version: envelope.expected_version,
      trace_id,
      parent_event_id: envelope.parent_event_id,
      principal: caller.principal,
      actor: caller.actor,
      acting: caller.acting,
    };
  }

  /** A command with what it says of the machine that is not so: that is told after its key was looked for. */
  async function placed(command: WriteCommand, at = ""): Promise<WriteCommand> {
    const errors = (await parts.misplaced(command.type, command.payload)) ?? [];
    if (errors.length === 0) return command;
    const pointed = errors.map((error) => ({ ...error, pointer: at + error.pointer }));
    return { ...command, wrong: invalidSchema(pointed, command.trace_id) };
  }

  function unknownType(type: string, trace_id: string): Problem {
    if (registry.socket.has(type))
      return problem("unknown_command", "that query is not taken here: frames would follow its answer", {
        trace_id,
        hint: "only on the WebSocket, GET /v1/stream",
      });
    const near = nearest(type, [...registry.commands.keys(), ...registry.queries.keys()]);
    return problem("unknown_command", "there is no command or query of that type", {
      trace_id,
      ...(near.length > 0 && { hint: `did you mean ${near.join(", ")}? 'mp schema list' shows all` }),
    });
  }

  async function ready(min_seq: number | undefined): Promise<Problem | undefined> {
    const reached = min_seq === undefined || (await hub.reached(min_seq, MIN_SEQ_WAIT_MS));
    const closed = parts.closed();
    if (closed || reached) return closed;
    return problem("overloaded", `the log has not reached min_seq within ${MIN_SEQ_WAIT_MS} ms`, {
      details: { head: hub.head, min_seq },
      hint: "check min_seq: it is the seq_global of a receipt of this log",
    });
  }

  async function ask(
    entry: QueryEntry,
    params: Record<string, unknown>,
    caller: Caller,
    trace_id: string,
  ): Promise<Answer> {
    const refuse = (found: Problem): Answer => ({ kind: "problem", problem: { ...found, trace_id } });
    const ended = caller.ended?.();
    if (ended) return refuse(ended);
    const errors = schemaErrors(entry.params, params, "/payload");
    if (errors.length === 0) errors.push(...((await parts.misplaced(entry.type, params)) ?? []));
    if (errors.length > 0) return refuse(invalidSchema(errors, trace_id));
    const { min_seq, ...own } = params;
    if (typeof min_seq === "number") {
      const notYet = await ready(min_seq);
      if (notYet) return refuse(notYet);
    }
    if (!entry.reads) {
      const result = await parts.systemQueries[entry.type]!(own as never, caller);
      return isProblem(result) ? refuse(result) : { kind: "result", result };
    }
    const { kind, run } = entry.reads;
    try {
      const { as_of_seq, answer } = parts.readModels.snapshot(kind, (read) =>
        run(read, own as never, wireTime(parts.now())),
      );
      // The log is there but the read model is not: its projection has stopped (SPEC §6), and waiting does not help.
      if (typeof min_seq === "number" && as_of_seq < min_seq)
        return refuse(
          problem("overloaded", `the projection '${kind}' has stopped before min_seq`, {
            details: { projection: kind, as_of_seq, min_seq },
            hint: "see 'mp projection list'; once the cause is mended: mp projection rebuild",
          }),
        );
      if (isRefused(answer)) return refuse(refusal(registry, answer));
      return { kind: "result", result: { as_of_seq, ...answer } };
    } catch (error) {
      if (!(error instanceof BadCursor)) throw error;
      return refuse(badCursor());
    }
  }

  return {
    ready,

    async one(value, caller, given) {
      const trace_id = traceOf(value, given);
      const closed = parts.closed();
      if (closed) return { kind: "problem", problem: { ...closed, trace_id } };
      const errors = envelopeErrors(value);
      if (errors.length > 0) return { kind: "problem", problem: invalidSchema(errors, trace_id) };
      const envelope = value as Envelope;
      const entry = entryOf(envelope.type);
      if (!entry) return { kind: "problem", problem: unknownType(envelope.type, trace_id) };
      if ("params" in entry) {
        if (envelope.schema_version !== undefined && envelope.schema_version !== entry.spec.version)
          return { kind: "problem", problem: unsupported(entry.type, entry.spec.version, trace_id) };
        const extra = (["idempotency_key", "expected_version", "parent_event_id"] as const)
          .filter((name) => envelope[name] !== undefined)
          .map((name) => ({ pointer: `/${name}`, message: "is not taken by a query" }));
        if (extra.length > 0) return { kind: "problem", problem: invalidSchema(extra, trace_id) };
        return ask(entry, envelope.payload, caller, trace_id);
      }
      const command = prepare(envelope, caller, trace_id);
      if (isProblem(command)) return { kind: "problem", problem: command };
      const outcomes = await parts.submit({ commands: [await placed(command)], atomic: false });
      return isProblem(outcomes)
        ? { kind: "problem", problem: { ...outcomes, trace_id } }
        : answerOf(outcomes[0]!);
    },

    async batch(value, caller, given) {
      const trace_id = traceOf(undefined, given);
      const closed = parts.closed();
      if (closed) return { problem: { ...closed, trace_id } };
      const errors = schemaErrors(Batch, value);
      if (errors.length > 0) return { problem: invalidSchema(errors, trace_id) };
      const { atomic, commands: sent } = value as Static<typeof Batch>;
      if (sent.length > MAX_BATCH)
        return {
          problem: problem("payload_too_large", `a batch has at most ${MAX_BATCH} commands`, { trace_id }),
        };
      const prepared = sent.map((each, index): WriteCommand | Problem => {
        const at = `/commands/${index}`;
        const own = traceOf(each, given);
        const wrong = envelopeErrors(each, at);
        if (wrong.length > 0) return invalidSchema(wrong, own);
        const envelope = each as Envelope;
        const entry = entryOf(envelope.type);
        if (!entry) return unknownType(envelope.type, own);
        if ("params" in entry)
          return invalidSchema(
            [{ pointer: `${at}/type`, message: "is a query: a batch takes commands only" }],
            own,
          );
        const command = prepare(envelope, caller, own);
        if (!isProblem(command) || !command.errors) return command;
        return {
          ...command,
          errors: command.errors.map((error) => ({ ...error, pointer: at + error.pointer })),
        };
      });
      const bad = prepared.findIndex(isProblem);
      if (atomic && bad >= 0) {
        // Nothing was decided: the answer is about the one that is wrong.
        const found = prepared[bad] as Problem;
        return { problem: { ...found, details: { ...found.details, index: bad } } };
      }
      const commands = await Promise.all(
        prepared.flatMap((each, index) => (isProblem(each) ? [] : placed(each, `/commands/${index}`))),
      );
      const outcomes = commands.length > 0 ? await parts.submit({ commands, atomic }) : [];
      if (isProblem(outcomes)) return { problem: { ...outcomes, trace_id } };
      const refused = atomic ? outcomes.find((outcome) => "problem" in outcome) : undefined;
      if (refused) return refused as { problem: Problem };
      let next = 0;
      return {
        answers: prepared.map((each) =>
          isProblem(each) ? { kind: "problem", problem: each } : answerOf(outcomes[next++]!),
        ),
      };
    },

    async query(type, search, caller, given) {
      const trace_id = traceOf(undefined, given);
      const entry = registry.queries.get(type);
      if (!entry) {
        const found = unknownType(type, trace_id);
        const hint = registry.commands.has(type) ? "it is a command: POST it to /v1/commands" : found.hint;
        return { kind: "problem", problem: { ...found, hint } };
      }
      return ask(entry, fromText(entry.params.properties, search), caller, trace_id);
    },
  };
}

function answerOf(outcome: Outcome): Answer {
  return "problem" in outcome
    ? { kind: "problem", problem: outcome.problem }
    : { kind: "receipt", receipt: outcome.receipt, replayed: outcome.replayed };
}

/** `invalid_schema` with every place; a single one is also told in words. */
export function invalidSchema(errors: SchemaError[], trace_id: string): Problem {
  const [first] = errors;
  const more = errors.length >= MOST_ERRORS ? ", and perhaps in more" : "";
  let detail = `the request breaks its schema in ${errors.length} places${more}`;
  // The name of an unknown field is the sender's own word: it stands in its pointer and nowhere else.
  if (errors.length === 1 && first)
    detail =
      first.message === UNKNOWN_FIELD
        ? "the request has a field that is not known"
        : `${first.pointer || "the request"} ${first.message}`;
  return problem("invalid_schema", detail, { errors, trace_id });
}

function unsupported(type: string, current: number, trace_id: string): Problem {
  return problem("unsupported_schema_version", `${type} is at schema version ${current} here`, {
    details: { type, current },
    trace_id,
  });
}

/** The envelope's own trace id, else the transport's, else a new one (SPEC §2). */
function traceOf(value: unknown, given: string | undefined): string {
  const own = (value as { trace_id?: unknown } | null | undefined)?.trace_id;
  if (typeof own === "string" && TRACE_ID.test(own)) return own;
  return given ?? freshTrace();
}

/**
 * Parameters as a URL has them: text becomes what the schema wants, and only that. What does not fit stays text, so the
 * schema refuses it with its pointer. A list is the parameter repeated, or its values with commas.
 */
export function fromText(
  fields: Readonly<Record<string, TSchema>>,
  search: URLSearchParams,
): Record<string, unknown> {
  const one = (name: string, all: string[]): unknown => {
    const type = Object.hasOwn(fields, name) ? (fields[name] as { type?: string }).type : undefined;
    if (type === "array") return all.flatMap((text) => text.split(","));
    if (all.length > 1) return all;
    const [text] = all as [string];
    if (type === "integer" && /^(0|-?[1-9]\d{0,15})$/.test(text)) return Number(text);
    if (type === "boolean" && /^(true|false)$/.test(text)) return text === "true";
    return text;
  };
  // fromEntries, because an assignment to `__proto__` would make no field, and so would not be refused.
  return Object.fromEntries(
    [...new Set(search.keys())].map((name) => [name, one(name, search.getAll(name))]),
  );
}
