/**
 * A log of its own, in this process: a real SQLite file, written by the real LogWriter, with aggregates that no product
 * has: `ledger`, whose commands make any number of events, and `parcel`, whose event has an older version.
 *
 * Always so: what `commit` gives back is durable and nobody has heard of it; `publish` tells the hub; `write` does both.
 * Left out on purpose: decide and execute, which have tests of their own.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Type } from "typebox";
import { app } from "../../src/http/app.ts";
import { socketGate } from "../../src/http/request.ts";
import { aggregate, event, table } from "../../src/kernel/aggregate.ts";
import { systemClock } from "../../src/kernel/clock.ts";
import { openForReading, openForWriting } from "../../src/kernel/database.ts";
import { dispatcher } from "../../src/kernel/dispatch.ts";
import { encode, LogReader, LogWriter, logId, type Stored } from "../../src/kernel/log.ts";
import { problem } from "../../src/kernel/problems.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { Hub } from "../../src/kernel/stream.ts";
import { system } from "../../src/kernel/system.ts";

const nothing = { commands: {}, reasons: {}, scope: () => ({}), decide: {}, queries: {} };
const noTable = table({ id: Type.String() }, { key: ["id"] });

const ledger = aggregate(
  "ledger",
  {},
)({
  ...nothing,
  events: { entered: event(1, { text: Type.String() }), closed: event(1, {}) },
  evolve: { entered: () => ({}), closed: () => ({}) },
  readModel: { version: 1, tables: { ledgers: noTable }, apply: { entered: () => {}, closed: () => {} } },
});

const parcel = aggregate(
  "parcel",
  {},
)({
  ...nothing,
  events: {
    sent: event(
      2,
      { to: Type.Array(Type.String()) },
      {
        1: {
          payload: Type.Object({ to: Type.String() }, { additionalProperties: false }),
          up({ to }: { to: string }) {
            // What cannot be: upcasters are total. A test wants to see what a bug does.
            if (to === "nowhere") throw new Error("a bug in an upcaster");
            return { to: [to] };
          },
        },
      },
    ),
  },
  evolve: { sent: () => ({}) },
  readModel: { version: 1, tables: { parcels: noTable }, apply: { sent: () => {} } },
});

/** One event of a command, as a test says it. */
export interface Said {
  readonly type: "ledger.entered" | "ledger.closed" | "parcel.sent";
  /** The stream's id; each has its own. */
  readonly id: string;
  readonly payload?: object;
  /** 1 when absent; `parcel.sent` is at 2 now. */
  readonly version?: number;
  readonly workspace_id?: string;
  readonly project_id?: string;
}

export const newId = systemClock.id;

/** An entry of a ledger; with a workspace and a project when they are given. */
export function entry(
  text: string,
  id = newId(),
  scope: Pick<Said, "workspace_id" | "project_id"> = {},
): Said {
  return { type: "ledger.entered", id, payload: { text }, ...scope };
}

/**
 * Make a log.
 * @param heartbeat_ms of its hub
 */
export function startLog({ heartbeat_ms = 3_600_000 } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "mp-log-"));
  const path = join(folder, "kernel.db");
  const db = openForWriting(path);
  const log_id = logId(db, newId, () => new Date().toISOString());
  const writer = new LogWriter(db, log_id);
  const reader = new LogReader(openForReading(path));
  const registry = buildRegistry([ledger, parcel], system);
  const hub = new Hub(reader, registry, log_id, heartbeat_ms);
  const versions = new Map<string, number>();
  const bugs: unknown[] = [];

  /** Append the events of commands to the transaction that is open. */
  function append(commands: readonly (readonly Said[])[]): Stored[] {
    return commands.flatMap((command) => {
      let { head } = writer;
      const command_id = newId();
      const encoded = command.map(({ type, id, payload = {}, version = 1, workspace_id, project_id }) => {
        const kind = type.split(".")[0]!;
        const stream = `${kind}/${id}`;
        const seq_stream = (versions.get(stream) ?? 0) + 1;
        versions.set(stream, seq_stream);
        const next = encode({
          actor: { id: "ada", kind: "user" },
          causality: { command_id, idempotency_key: command_id },
          event_id: writer.nextId(Date.now()),
          event_type: type,
          payload,
          prev_hash: head.leaf,
          ...(project_id !== undefined && { project_id }),
          schema_version: version,
          seq_global: head.seq_global + 1,
          seq_stream,
          stream,
          subject: { id, kind },
          timestamp: new Date().toISOString(),
          trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
          ...(workspace_id !== undefined && { workspace_id }),
        });
        head = { seq_global: next.event.seq_global, leaf: next.leaf };
        return next;
      });
      return writer.append(encoded);
    });
  }

  function commit(commands: readonly (readonly Said[])[]): Stored[] {
    return db.transaction(() => append(commands)).immediate();
  }

  function publish(events: readonly Stored[]): void {
    hub.publish(events, [...new Set(events.map((each) => each.subject_kind))]);
  }

  /** The API on a Unix socket, over this log. It takes no commands. */
  function listen({ streams }: { streams?: number } = {}) {
    const socket = join(folder, "mp.sock");
    const routes = app({
      registry,
      hub,
      bytes: {} as never,
      dispatch: dispatcher({
        now: Date.now,
        registry,
        hub,
        readModels: new ReadModels(reader.db, registry),
        submit: async () => problem("read_only", "this log is written by its test"),
        systemQueries: {},
        misplaced: () => undefined,
        closed: () => undefined,
      }),
      health: { status: "ok", version: "0", api_version: 1, start_id: newId() },
      gate: socketGate("ada", 1),
      onBug: (_, error) => bugs.push(error),
      ...(streams !== undefined && { streams }),
    });
    routes.listen({ unix: socket, idleTimeout: 0, websocket: { idleTimeout: 120 } } as Parameters<
      typeof routes.listen
    >[0]);
    server = routes.server;
    return socket;
  }
  let server: ReturnType<typeof app>["server"] = null;

  return {
    path,
    log_id,
    db,
    reader,
    registry,
    hub,
    bugs,
    append,
    commit,
    publish,
    listen,
    write(...commands: (readonly Said[])[]): Stored[] {
      const events = commit(commands);
      publish(events);
      return events;
    },
    async close() {
      hub.close(problem("overloaded", "the test is over"));
      await server?.stop(true);
      reader.db.close();
      db.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
export type TestLog = ReturnType<typeof startLog>;
