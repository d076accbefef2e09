/**
 * The kernel's own commands and queries: the types that are not about one aggregate (SPEC §2). Only their
 * shapes; the commands are performed by the writer, the queries are answered by the front (daemon/system.ts), and those
 * of the socket by the socket itself (http/stream.ts).
 */
import { type TProperties, type TSchema, Type } from "typebox";
import { command, type QuerySpec } from "./aggregate.ts";
import { field, Id, nullable, object, oneOf, pageOf, Seq, Sha256, Time } from "./schema.ts";

function shape<P extends TProperties, A extends TSchema>(doc: string, params: P, answer: A) {
  return { doc, version: 1, params: object(params), answer } satisfies QuerySpec<P>;
}

/** The filters of SPEC §5, as they travel. */
export const filterFields = {
  types: Type.Optional(
    Type.Array(
      Type.String({
        pattern: "^(\\*|[a-z_]+\\.(\\*|[a-z_]+))$",
        description: "an event type, 'kind.*' or '*'",
      }),
      { minItems: 1, maxItems: 64, description: "only events of one of these types" },
    ),
  ),
  streams: Type.Optional(
    Type.Array(Type.String({ pattern: "^[a-z_]+/[0-9a-f-]{36}$", description: "a stream such as task/ID" }), {
      minItems: 1,
      maxItems: 64,
      description: "only events of one of these streams",
    }),
  ),
  workspace_id: Type.Optional(field(Id, "only events of this workspace")),
  project_id: Type.Optional(field(Id, "only events of this project")),
  subject_kind: Type.Optional(
    field(
      Type.String({ pattern: "^[a-z_]+$", maxLength: 64, description: "a kind such as task" }),
      "only events about this kind",
    ),
  ),
};

const LogId = field(Id, "the log that the position is of: another one is refused");
const AsStored = field(Type.Boolean(), "as they were written, not converted to their current versions");

const ProjectionStatus = object({
  name: Type.String(),
  generation: Type.String(),
  as_of_seq: Seq,
  status: oneOf("serving", "rebuilding", "stopped"),
  rebuilt_to_seq: nullable(Seq),
  error: nullable(Type.String()),
});

const Position = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Kind = Type.String({ pattern: "^[a-z_]+$", description: "a kind such as task" });

/** The envelope of SPEC §4: what every event is, whatever its payload. Members that are absent are left out, never null. */
export const EventEnvelope = object({
  actor: object({
    id: Type.String(),
    kind: oneOf("user", "session", "system", "ci", "service"),
    on_behalf_of: Type.Optional(object({ id: Type.String(), kind: Type.String() })),
  }),
  causality: object({
    command_id: Id,
    idempotency_key: Type.String(),
    parent_event_id: Type.Optional(Id),
  }),
  event_id: Id,
  event_type: Type.String({ pattern: "^[a-z_]+\\.[a-z_]+$", description: "a type such as task.created" }),
  payload: Type.Object({}, { description: "as the schema of its type and version says" }),
  prev_hash: Sha256,
  project_id: Type.Optional(Id),
  schema_version: Position,
  seq_global: Position,
  seq_stream: Position,
  stream: Type.String({ pattern: "^[a-z_]+/[0-9a-f-]{36}$", description: "a stream such as task/ID" }),
  subject: object({ id: Id, kind: Kind }),
  timestamp: Time,
  trace_id: Type.String({ pattern: "^[0-9a-f]{32}$", description: "32 hex digits" }),
  workspace_id: Type.Optional(Id),
});

const SchemaEntry = object({
  name: Type.String(),
  kind: oneOf("command", "result", "query", "answer", "event", "envelope"),
  version: Type.Integer(),
  doc: Type.String(),
});

export const systemCommands = {
  "daemon.shutdown": command({}, "Stop the daemon: it answers what it has accepted, then ends."),
  "projection.rebuild": command(
    {
      name: Type.Optional(
        field(Type.String({ minLength: 1, maxLength: 64 }), "the projection; all when absent"),
      ),
    },
    "Rebuild one projection, or all, from the log beside the serving ones.",
    { result: object({ projections: Type.Array(Type.String()) }) },
  ),
};

export const systemQueries = {
  "daemon.ping": shape(
    "Ask whether the daemon answers.",
    {},
    object({ as_of_seq: Seq, pong: Type.Literal(true), start_id: Id, version: Type.String() }),
  ),
  "daemon.status": shape(
    "Show what the daemon is and how it does.",
    {},
    object({
      as_of_seq: Seq,
      state: oneOf("running", "read_only"),
      pid: Type.Integer(),
      version: Type.String(),
      commit: nullable(Type.String()),
      api_version: Type.Integer(),
      start_id: Id,
      started_at: Time,
      log_id: Id,
      head: Seq,
      addresses: object({ socket: Type.String(), tcp: Type.Optional(Type.String()) }),
      projections: Type.Array(ProjectionStatus),
      subscriptions: Type.Integer(),
      queued_commands: Type.Integer(),
      wal_bytes: Type.Integer(),
      database_bytes: Type.Integer(),
      memory_bytes: Type.Integer(),
      jobs: Type.Array(object({ type: Type.String(), done: Type.Integer(), of: Type.Integer() })),
    }),
  ),
  "events.list": shape(
    "Read a page of the log.",
    {
      after: Type.Optional(field(Seq, "only events behind this position")),
      since: Type.Optional(field(Time, "only events from this time on")),
      log_id: Type.Optional(LogId),
      as_stored: Type.Optional(AsStored),
      ...filterFields,
    },
    object({
      as_of_seq: Seq,
      log_id: Id,
      items: Type.Array(EventEnvelope as TSchema),
      next: nullable(Type.String()),
    }),
  ),
  "projection.list": shape("List the projections and where each stands.", {}, pageOf(ProjectionStatus)),
  "projection.verify": shape(
    "Rebuild all read models into a scratch database and compare digests.",
    {},
    object({
      as_of_seq: Seq,
      ok: Type.Boolean(),
      items: Type.Array(
        object({
          name: Type.String(),
          as_of_seq: Seq,
          ok: Type.Boolean(),
          digest: Sha256,
          rebuilt_digest: Sha256,
          error: nullable(Type.String()),
        }),
      ),
    }),
  ),
  "log.verify": shape(
    "Check the whole log: chain, gaps, schemas, triggers.",
    {},
    object({
      as_of_seq: Seq,
      ok: Type.Boolean(),
      log_id: Id,
      events: Type.Integer(),
      /** Leaf hash of the last event. */
      head_hash: Sha256,
      first_bad: nullable(object({ seq_global: Seq, problem: Type.String() })),
    }),
  ),
  "token.session": shape(
    "Make the token with which the commands of a session's processes are recorded as its own.",
    { session_id: field(Id, "the session whose processes it is for") },
    object({ as_of_seq: Seq, token: Type.String(), session_id: Id, epoch: Position }),
  ),
  "schema.list": shape("List the commands, queries and events with their versions.", {}, pageOf(SchemaEntry)),
  "schema.get": shape(
    "Show a JSON Schema.",
    { name: field(Type.String({ minLength: 1, maxLength: 128 }), "the type that it is the schema of") },
    object({ as_of_seq: Seq, name: Type.String(), schema: Type.Unknown() }),
  ),
};

/** What is asked on the WebSocket only, because its answer goes on: frames follow it (SPEC §5). */
export const socketQueries = {
  "events.subscribe": shape(
    "Subscribe to the log from a cursor: the answer first, then the frames.",
    {
      after: field(Seq, "the position that the reader has come to"),
      log_id: Type.Optional(LogId),
      filter: Type.Optional(field(object({ ...filterFields }), "which events")),
      frames: Type.Optional(
        field(Type.Array(Type.Literal("projection_updated")), "which frames besides those of events"),
      ),
      as_stored: Type.Optional(AsStored),
    },
    object({ as_of_seq: Seq, log_id: Id }),
  ),
};

export const system = { commands: systemCommands, queries: systemQueries, socket: socketQueries };
