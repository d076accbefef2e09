/**
 * THE main path: one command → a receipt or a problem (SPEC §2, §3, §7), on the writer's connection.
 *
 *   dedupe ─▶ load ─▶ expected_version ─▶ decide ─▶ encode ─▶ append ─▶ project ─▶ leases ─▶ receipt and key
 *
 * Always holds: everything a command writes is in the transaction of its batch; a refusal writes nothing and uses up no
 * key; an exception is a bug: the batch is rolled back and its commands run one by one, so that only the guilty one
 * answers `internal`. What a decision asks of other streams is decided before anything is written: all of it is
 * accepted, or the command is refused. Requests come here parsed, validated and in their current version (dispatch.ts).
 */
import { type Database, SQLiteError } from "bun:sqlite";
import {
  type Actor,
  type AnyAggregate,
  type Context,
  type Event,
  isRefused,
  type Lease,
  missing,
  type Refused,
  type Scope,
} from "./aggregate.ts";
import { type Clock, freshTrace, wireTime } from "./clock.ts";
import { isStorageError } from "./database.ts";
import { CommandKeys, fingerprint, type KeyRow } from "./idempotency.ts";
import { Leases } from "./leases.ts";
import { type Encoded, encode, type LogReader, type LogWriter, MAX_EVENT_BYTES, type Stored } from "./log.ts";
import { type Problem, problem } from "./problems.ts";
import { ProjectionStopped, type Projections } from "./projection.ts";
import { type CommandEntry, currentEvent, type Registry } from "./registry.ts";
import { matches } from "./schema.ts";

/** One command as the front hands it over. */
export interface WriteCommand {
  readonly type: string;
  readonly payload: Record<string, unknown>;
  readonly idempotency_key: string;
  readonly fingerprint: string;
  readonly expected_version?: number | undefined;
  readonly trace_id: string;
  readonly parent_event_id?: string | undefined;
  /** Scope of the key: the credential, not the person (SPEC §7). */
  readonly principal: string;
  readonly actor: Actor;
  /** The session whose credential it was sent with: good as long as that lives in that epoch. */
  readonly acting?: Acting | undefined;
  /** What is wrong with it by the state of the machine: told unless its key is known (SPEC §7). */
  readonly wrong?: Problem | undefined;
}

/** A session in an epoch, which speaks by a credential of its own. */
export interface Acting {
  readonly session_id: string;
  readonly epoch: number;
}

/** What one command comes to: a receipt as JSON text, or a problem. */
export type Outcome =
  | { readonly receipt: string; readonly replayed: boolean }
  | { readonly problem: Problem };

/** One command, or a batch that is all or nothing. */
export interface WriteRequest {
  readonly commands: readonly WriteCommand[];
  readonly atomic: boolean;
}

/** Something to do once a commit has made it true. */
export type Effect =
  | { readonly kind: "shutdown" }
  | { readonly kind: "rebuild"; readonly projections: readonly string[] };

export interface Committed {
  /** One list of outcomes per request, in order. */
  readonly outcomes: readonly (readonly Outcome[])[];
  /** What was appended, in order. */
  readonly events: readonly Stored[];
  readonly effects: readonly Effect[];
  readonly head: number;
  /** SQLite's code when nothing could be written; every outcome is `read_only` then. */
  readonly refused?: string | undefined;
}

/** COMMIT itself failed: nobody knows what is on disk. The process must end (SPEC §11). */
export class OutcomeUnknown extends Error {}

/** A stream as `decide` needs it. */
interface Loaded {
  readonly state: unknown;
  readonly version: number;
  readonly scope: Scope;
}

/** A command that is being decided: what it was given, and what it has come to so far. */
interface Asked {
  readonly command: WriteCommand;
  readonly now: number;
  readonly at: string;
  readonly command_id: string;
  /** The streams that change. */
  readonly streams: Map<
    string,
    { readonly aggregate: AnyAggregate; readonly before: Loaded; readonly after: Loaded }
  >;
  readonly events: Encoded[];
}

/** Leases that are ended in one transaction. */
const MAX_EXPIRED = 256;
/** A lease that cannot be ended is looked at again after so many milliseconds. */
const POSTPONED_MS = 5_000;

/** Streams kept folded in memory: this many that were touched last, and up to as many before them. */
const MAX_LOADED = 5_000;

export class Executor {
  readonly #keys: CommandKeys;
  readonly #leases: Leases;
  #loaded = new Map<string, Loaded>();
  #loadedBefore = new Map<string, Loaded>();
  #events: Stored[] = [];
  #effects: Effect[] = [];
  /** The command that is being run: what a bug is reported with. */
  #current = { index: 0, trace_id: "" };

  constructor(
    readonly db: Database,
    readonly registry: Registry,
    readonly log: LogWriter,
    readonly reader: LogReader,
    readonly projections: Projections,
    readonly clock: Clock,
    /** What the daemon is called in receipts of its own commands. */
    readonly start_id: string,
    /** The name of this machine. */
    readonly host: string,
    /** Told of every bug, once. */
    readonly onBug: (trace_id: string, error: unknown) => void,
    /** Why a session's credential is good no more: asked in the transaction, so no command slips in behind its end. */
    readonly ended: (acting: Acting) => Problem | undefined = () => undefined,
  ) {
    this.#keys = new CommandKeys(db);
    this.#leases = new Leases(db);
  }

  /**
   * Run requests in one transaction and make them durable.
   * @returns after the commit; with `refused` and nothing written when the disk or the file is at fault
   * @throws OutcomeUnknown when the commit, or any fsync, failed
   */
  run(requests: readonly WriteRequest[]): Committed {
    try {
      return this.#commit(() => requests.map((request) => this.#request(request)));
    } catch (error) {
      if (error instanceof OutcomeUnknown) throw error;
      // No command is guilty of the disk: trying them one by one would only take longer.
      if (isStorageError(error)) return this.#readOnly(requests, error.code ?? "");
      // A bug in one command must not fail the others: each gets a transaction of its own.
      if (requests.length > 1) return join(requests.map((request) => this.run([request])));
      const [request] = requests as [WriteRequest];
      if (!request.atomic && request.commands.length > 1) {
        const alone = join(request.commands.map((each) => this.run([{ commands: [each], atomic: false }])));
        return { ...alone, outcomes: [alone.outcomes.flat()] };
      }
      const { index, trace_id } = this.#current;
      this.onBug(trace_id, error);
      const met = problem("internal", "the command met a bug; nothing was changed", {
        trace_id,
        ...(request.atomic && { details: { index } }),
      });
      return this.#nothing([request.commands.map(() => ({ problem: met }))]);
    }
  }

  #readOnly(requests: readonly WriteRequest[], refused: string): Committed {
    const detail = `the database cannot be written (${refused}): nothing was changed`;
    const outcomes = requests.map(({ commands }) =>
      commands.map(({ trace_id }) => ({ problem: problem("read_only", detail, { trace_id }) })),
    );
    return { ...this.#nothing(outcomes), refused };
  }

  #nothing(outcomes: Outcome[][]): Committed {
    return { outcomes, events: [], effects: [], head: this.log.head.seq_global };
  }

  #commit(work: () => Outcome[][]): Committed {
    this.#events = [];
    this.#effects = [];
    this.db.run("BEGIN IMMEDIATE");
    let committing = false;
    try {
      const outcomes = work();
      if (this.#events.length > 0) this.projections.reached(this.log.head.seq_global);
      committing = true;
      this.db.run("COMMIT");
      return { outcomes, events: this.#events, effects: this.#effects, head: this.log.head.seq_global };
    } catch (error) {
      if (outcomeUnknown(error, committing)) throw new OutcomeUnknown("the commit failed", { cause: error });
      if (this.db.inTransaction) this.db.run("ROLLBACK");
      this.#forget();
      throw error;
    }
  }

  #forget(): void {
    this.#loaded.clear();
    this.#loadedBefore.clear();
    this.log.rolledBack();
    this.projections.rolledBack();
  }

  /** One request inside the open transaction. */
  #request(request: WriteRequest): Outcome[] {
    if (!request.atomic) return request.commands.map((command, index) => this.#command(command, index));
    const { length } = this.#events;
    const effects = this.#effects.length;
    this.db.run("SAVEPOINT atomic");
    const outcomes: Outcome[] = [];
    for (const [index, command] of request.commands.entries()) {
      const outcome = this.#command(command, index);
      outcomes.push(outcome);
      if (!("problem" in outcome)) continue;
      this.db.run("ROLLBACK TO atomic");
      this.db.run("RELEASE atomic");
      this.#forget();
      this.#events.length = length;
      this.#effects.length = effects;
      // All or nothing: each command of the batch answers with the refusal of the one that was refused.
      const refused = { ...outcome.problem, details: { ...outcome.problem.details, index } };
      return request.commands.map(() => ({ problem: refused }));
    }
    this.db.run("RELEASE atomic");
    return outcomes;
  }

  #command(command: WriteCommand, index: number): Outcome {
    this.#current = { index, trace_id: command.trace_id };
    try {
      return this.#execute(command);
    } catch (error) {
      if (!(error instanceof ProjectionStopped)) throw error;
      const { projection } = error;
      return {
        problem: problem(
          "read_only",
          `the projection '${projection}' has stopped, and this command needs it`,
          {
            details: { projection },
            hint: "see 'mp projection list'; once the cause is mended: mp projection rebuild",
            trace_id: command.trace_id,
          },
        ),
      };
    }
  }

  #execute(command: WriteCommand): Outcome {
    const entry = this.registry.commands.get(command.type) ?? this.registry.internal.get(command.type)!;
    const refuse = (
      code: Parameters<typeof problem>[0],
      detail: string,
      extra: Parameters<typeof problem>[2] = {},
    ) => ({
      problem: problem(code, detail, { ...extra, trace_id: command.trace_id }),
    });

    const known = this.#keys.find(command.principal, command.idempotency_key);
    if (known?.fingerprint === command.fingerprint) return { receipt: this.#again(known), replayed: true };
    const renewed = known ? undefined : this.#leases.renewed(command.principal, command.idempotency_key);
    if (renewed?.fingerprint === command.fingerprint) return { receipt: renewed.receipt, replayed: true };
    if (known ?? renewed)
      return refuse("idempotency_key_reused", "another command was carried out under this key");
    // Only now: what was carried out before the end is answered again after it (SPEC §7).
    const ended = command.acting && this.ended(command.acting);
    if (ended) return { problem: { ...ended, trace_id: command.trace_id } };
    if (command.wrong) return { problem: command.wrong };
    if (command.parent_event_id !== undefined && !this.reader.byId(command.parent_event_id))
      return refuse("not_found", "there is no event with the parent_event_id", {
        details: { kind: "event", id: command.parent_event_id },
      });
    if (!entry.aggregate) return this.#system(entry, command, refuse);

    const now = this.clock.now();
    const asked: Asked = {
      command,
      now,
      at: wireTime(now),
      command_id: this.clock.id(),
      streams: new Map(),
      events: [],
    };
    const { kind } = entry.aggregate;
    const id = this.#subject(entry, command.payload, asked);
    if (isRefused(id)) return { problem: this.#refusal(id, command) };
    const stream = `${kind}/${id}`;
    const { version: actual, state } = this.#load(entry, stream);
    if (actual === 0 && !entry.spec.creates) return { problem: this.#refusal(missing(kind, id), command) };
    const { expected_version: expected } = command;
    if (expected !== undefined && expected !== actual)
      return refuse("expected_version_mismatch", `${stream} is at version ${actual}, not ${expected}`, {
        details: { stream, expected, actual },
        hint: entry.spec.creates
          ? "a command that creates always expects version 0: leave expected_version out, or send 0"
          : `read the ${kind} again and decide on its version ${actual}`,
      });

    const decided = this.#decide(entry, id, command.payload, asked);
    if (isRefused(decided)) return { problem: this.#refusal(decided, command) };
    const tooLarge = asked.events.find((each) => each.size > MAX_EVENT_BYTES);
    if (tooLarge)
      return refuse(
        "payload_too_large",
        `the event would have ${tooLarge.size} bytes, at most ${MAX_EVENT_BYTES} fit`,
      );

    for (const stored of this.log.append(asked.events)) this.#events.push(stored);
    for (const { event } of asked.events) this.projections.apply(event);
    for (const [each, { aggregate, before, after }] of asked.streams) {
      this.#remember(each, after);
      const { lease } = aggregate;
      if (lease)
        this.#leases.changed(each, lease.of(before.state as never), lease.of(after.state as never), now);
    }
    return this.#receipt(command, {
      command_id: asked.command_id,
      kind,
      id,
      version: asked.streams.get(stream)?.after.version ?? actual,
      result: decided.result,
      events: asked.events.map((each) => each.event),
      ...(entry.spec.renews && { renews: { stream, lease: entry.aggregate.lease?.of(state as never), now } }),
    });
  }

  /** The id of a command's subject: a fresh one, the one it names, or the one it chooses. */
  #subject(entry: CommandEntry, payload: Record<string, unknown>, { at }: Asked): string | Refused {
    const { aggregate, spec, name } = entry;
    if (spec.creates) return this.clock.id();
    const named = payload[`${aggregate!.kind}_id`] as string | undefined;
    return named ?? aggregate!.choose![name]!(payload as never, { find: this.projections.find, at });
  }

  /**
   * Decide one command and whatever it asks of other streams. Writes nothing but into `asked`: each decision has the state
   * of its own stream as the ones before it left it, while `find` shows all read models and leases as they were before the
   * command, until all of it is accepted.
   * @returns the result for the receipt, or why not
   */
  #decide(
    entry: CommandEntry,
    id: string,
    payload: Record<string, unknown>,
    asked: Asked,
  ): { readonly result: object } | Refused {
    const { name, spec } = entry;
    const aggregate = entry.aggregate!;
    const { kind } = aggregate;
    const stream = `${kind}/${id}`;
    this.projections.needs(kind);
    const loaded = asked.streams.get(stream)?.after ?? this.#load(entry, stream);
    if (loaded.version === 0 && !spec.creates) return missing(kind, id);
    const context: Context = {
      find: this.projections.find,
      id,
      at: asked.at,
      scope: loaded.scope,
      head: this.log.head.seq_global,
      host: this.host,
      newId: this.clock.id,
    };
    const decision = aggregate.decide[name]!(loaded.state as never, payload as never, context);
    if (isRefused(decision)) return decision;
    const { events, result = {}, also = [] } = "events" in decision ? decision : { events: decision };
    // A renewal's key is forgotten with the next one: were there events, its retry would make them again.
    if (spec.renews && events.length + also.length > 0) throw new Error(`${entry.type} does more than renew`);
    const scope = loaded.version === 0 ? aggregate.scope(id, payload, context.find) : loaded.scope;
    let { state, version } = loaded;
    for (const made of events) {
      version += 1;
      const encoded = this.#encode(aggregate, made, { id, stream, version, scope }, asked);
      asked.events.push(encoded);
      state = aggregate.evolve[made.type]!(state as never, encoded.event.payload as never);
    }
    if (events.length > 0) {
      const before = asked.streams.get(stream)?.before ?? loaded;
      asked.streams.set(stream, { aggregate, before, after: { state, version, scope } });
    }
    for (const call of also as readonly { type: string; payload: Record<string, unknown> }[]) {
      const called = this.registry.internal.get(call.type) ?? this.registry.commands.get(call.type)!;
      const subject = this.#subject(called, call.payload, asked);
      if (isRefused(subject)) return subject;
      const decided = this.#decide(called, subject, call.payload, asked);
      if (isRefused(decided)) return decided;
    }
    return { result };
  }

  #encode(
    aggregate: AnyAggregate,
    made: { readonly type: string; readonly payload: object },
    to: { readonly id: string; readonly stream: string; readonly version: number; readonly scope: Scope },
    { command, now, at, command_id, events }: Asked,
  ): Encoded {
    const { kind } = aggregate;
    const { id, stream, version, scope } = to;
    const payload = given(made.payload);
    const spec = aggregate.events[made.type]!;
    // What is appended can never be mended: a decision that breaks its own schema is a bug, found before it is stored.
    if (!matches(spec.payload, payload)) throw new Error(`${kind}.${made.type} breaks its own schema`);
    const last = events.at(-1);
    const { head } = this.log;
    // In the order of its canonical form, which so costs least.
    return encode({
      actor: command.actor,
      causality: {
        command_id,
        idempotency_key: command.idempotency_key,
        parent_event_id: command.parent_event_id,
      },
      event_id: this.log.nextId(now),
      event_type: `${kind}.${made.type}`,
      payload,
      prev_hash: last?.leaf ?? head.leaf,
      project_id: scope.project_id,
      schema_version: spec.version,
      seq_global: (last?.event.seq_global ?? head.seq_global) + 1,
      seq_stream: version,
      stream,
      subject: { id, kind },
      timestamp: at,
      trace_id: command.trace_id,
      workspace_id: scope.workspace_id,
    });
  }

  /**
   * End the leases that have run out, each by the command that its aggregate names.
   * @returns what was committed; undefined when no lease has run out
   * @throws OutcomeUnknown as `run` does
   */
  expire(): Committed | undefined {
    const due = this.#leases.due(this.clock.now(), MAX_EXPIRED);
    if (due.length === 0) return undefined;
    const requests = due.map(({ stream, epoch }): WriteRequest => {
      const [kind, id] = stream.split("/") as [string, string];
      const { lease } = this.registry.aggregates.find((each) => each.kind === kind)!;
      return {
        commands: [
          daemonCommand(
            `${kind}.${lease!.expire}`,
            { [`${kind}_id`]: id, epoch },
            `expire ${stream} ${epoch}`,
          ),
        ],
        atomic: false,
      };
    });
    const committed = this.run(requests);
    // What still stands could not be ended, as when a projection has stopped: the others must not wait for it.
    const until = this.clock.now() + POSTPONED_MS;
    const refused = this.#aside(() => {
      for (const lease of due) this.#leases.postpone(lease, until);
    });
    return { ...committed, refused: committed.refused ?? refused };
  }

  /** When the next lease ends, in milliseconds since the epoch; undefined when there is none. */
  nextEnd(): number | undefined {
    return this.#leases.next();
  }

  /**
   * Give every holder of a lease one whole ttl from now: nobody could renew until now.
   * @returns SQLite's code when the disk or the file refused it
   * @throws OutcomeUnknown as `run` does
   */
  grace(): string | undefined {
    return this.#aside(() => this.#leases.grace(this.clock.now()));
  }

  /** Write what belongs to no command. Returns SQLite's code when the disk or the file refused it. */
  #aside(work: () => void): string | undefined {
    try {
      this.#commit(() => {
        work();
        return [];
      });
      return undefined;
    } catch (error) {
      if (!isStorageError(error)) throw error;
      return error.code ?? "";
    }
  }

  /** The kernel's own commands: they change no stream, and act once the commit has made them true. */
  #system(
    entry: CommandEntry,
    command: WriteCommand,
    refuse: (code: "not_found" | "expected_version_mismatch", detail: string, extra?: object) => Outcome,
  ): Outcome {
    if (command.expected_version)
      return refuse("expected_version_mismatch", "a command of the kernel has no stream: its version is 0", {
        details: { expected: command.expected_version, actual: 0 },
        hint: "leave expected_version out",
      });
    const receipt = { command_id: this.clock.id(), version: 0, events: [] };
    if (entry.type === "daemon.shutdown") {
      this.#effects.push({ kind: "shutdown" });
      return this.#receipt(command, { ...receipt, kind: "daemon", id: this.start_id, result: {} });
    }
    const names = this.projections.status().map((each) => each.name);
    const { name } = command.payload as { name?: string };
    if (name !== undefined && !names.includes(name))
      return refuse("not_found", "there is no such projection", { hint: `there are: ${names.join(", ")}` });
    const projections = name === undefined ? names : [name];
    this.#effects.push({ kind: "rebuild", projections });
    return this.#receipt(command, {
      ...receipt,
      kind: "projection",
      id: name ?? "*",
      result: { projections },
    });
  }

  #receipt(
    command: WriteCommand,
    done: {
      command_id: string;
      kind: string;
      id: string;
      version: number;
      result: object;
      events: readonly Event[];
      /** It only renewed the lease of this stream, which accepting it says is there. */
      renews?: { readonly stream: string; readonly lease: Lease | undefined; readonly now: number };
    },
  ): Outcome {
    const { command_id, version, result, events } = done;
    const subject = { kind: done.kind, id: done.id };
    const { seq_global } = this.log.head;
    const receipt = receiptText({
      command_id,
      type: command.type,
      subject,
      version,
      seq_global,
      events,
      result,
    });
    if (done.renews) {
      const { principal, idempotency_key: key, fingerprint } = command;
      const { stream, lease, now } = done.renews;
      if (!lease) throw new Error(`${command.type} renews a lease that is not there`);
      this.#leases.renew(stream, lease, now, { principal, key, fingerprint, receipt });
      return { receipt, replayed: false };
    }
    const last = events.at(-1);
    const plain =
      last?.seq_stream === version && last.subject.id === subject.id && Object.keys(result).length === 0;
    this.#keys.insert(command.principal, command.idempotency_key, {
      fingerprint: command.fingerprint,
      command_type: command.type,
      seq_global,
      events: events.length,
      rest: plain ? null : JSON.stringify({ command_id, subject, version, result }),
    });
    return { receipt, replayed: false };
  }

  /** The first receipt again, from the events of its command. */
  #again(known: KeyRow): string {
    const { command_type: type, seq_global, rest } = known;
    const events = this.reader
      .range(seq_global - known.events, seq_global)
      .map((line) => JSON.parse(line.body) as Event);
    const told = rest === null ? events.at(-1)! : undefined;
    const { command_id, subject, version, result } = told
      ? { command_id: told.causality.command_id, subject: told.subject, version: told.seq_stream, result: {} }
      : (JSON.parse(rest!) as {
          command_id: string;
          subject: Event["subject"];
          version: number;
          result: object;
        });
    return receiptText({ command_id, type, subject, version, seq_global, events, result });
  }

  #refusal(refused: Refused, { trace_id }: WriteCommand): Problem {
    return { ...refusal(this.registry, refused), trace_id };
  }

  #load(entry: CommandEntry, stream: string): Loaded {
    const aggregate = entry.aggregate!;
    if (entry.spec.creates) return { state: aggregate.initial, version: 0, scope: {} };
    const kept = this.#loaded.get(stream) ?? this.#loadedBefore.get(stream);
    if (kept) return kept;
    const rows = this.reader.stream(stream);
    let state = aggregate.initial;
    let scope: Scope = {};
    for (const row of rows) {
      const event = currentEvent(this.registry, JSON.parse(row.body) as Event);
      const { name } = this.registry.events.get(event.event_type)!;
      state = aggregate.evolve[name]!(state as never, event.payload as never);
      scope = { workspace_id: event.workspace_id, project_id: event.project_id };
    }
    const loaded = { state, version: rows.length, scope };
    if (rows.length > 0) this.#remember(stream, loaded);
    return loaded;
  }

  /** Keep a stream folded. Two generations instead of a list by age: forgetting costs nothing per command. */
  #remember(stream: string, loaded: Loaded): void {
    if (this.#loaded.size >= MAX_LOADED) {
      this.#loadedBefore = this.#loaded;
      this.#loaded = new Map();
    }
    this.#loaded.set(stream, loaded);
  }
}

/** A refusal as a problem: `not_found`, or `conflict` with the reason's own words. */
export function refusal(registry: Registry, { refused, reason, details }: Refused): Problem {
  if (refused === "not_found")
    return problem("not_found", `there is no such ${String(details.kind)}`, { details });
  const { is, hint } = registry.reasons.get(reason!)!;
  return problem("conflict", is, { ...(reason !== null && { reason }), details, hint });
}

/** Who the daemon itself is in events and keys. */
const DAEMON: Actor = { id: "mpd", kind: "system" };

/**
 * A command that the daemon gives itself, such as the end of a lease or the outcome of an effect.
 * @param key tells it from any other: given twice it is carried out once
 */
export function daemonCommand(type: string, payload: Record<string, unknown>, key: string): WriteCommand {
  return {
    type,
    payload,
    idempotency_key: key,
    fingerprint: fingerprint({ type, payload }),
    trace_id: freshTrace(),
    principal: DAEMON.id,
    actor: DAEMON,
  };
}

/** A receipt as it is sent (SPEC §3). `replayed` comes last: that is where a replay is marked (http/answers.ts). */
function receiptText(receipt: {
  command_id: string;
  type: string;
  subject: Event["subject"];
  version: number;
  seq_global: number;
  events: readonly Event[];
  result: object;
}): string {
  const { command_id, type, subject, version, seq_global, events, result } = receipt;
  const made = events.map(
    (each) =>
      `{"event_id":"${each.event_id}","event_type":"${each.event_type}","seq_global":${each.seq_global},"seq_stream":${each.seq_stream}}`,
  );
  return `{"command_id":"${command_id}","type":"${type}","subject":{"kind":"${subject.kind}","id":${JSON.stringify(
    subject.id,
  )}},"version":${version},"seq_global":${seq_global},"events":[${made.join(",")}],"result":${JSON.stringify(result)},"replayed":false}`;
}

/** Absent members are left out, never null or undefined (SPEC §4), so that live and replayed events are equal. */
function given(payload: object): object {
  for (const value of Object.values(payload))
    if (value === undefined)
      return Object.fromEntries(Object.entries(payload).filter(([, each]) => each !== undefined));
  return payload;
}

function join(parts: readonly Committed[]): Committed {
  return {
    outcomes: parts.flatMap((part) => part.outcomes),
    events: parts.flatMap((part) => part.events),
    effects: parts.flatMap((part) => part.effects),
    head: parts.at(-1)!.head,
    refused: parts.find((part) => part.refused !== undefined)?.refused,
  };
}

/**
 * Whether an error leaves open what is on disk. A COMMIT that found no room is known to have stored nothing: SQLite
 * writes the frame that commits last, and tells a failed fsync apart. After a failed fsync nothing is known, whenever it
 * comes: the operating system may have dropped pages that it will not write again (SPEC §11).
 */
function outcomeUnknown(error: unknown, committing: boolean): boolean {
  const code = error instanceof SQLiteError ? (error.code ?? "") : "";
  return code.includes("FSYNC") || (committing && code !== "SQLITE_FULL");
}
