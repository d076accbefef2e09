import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type QueueEvents, WriteQueue } from "../../src/daemon/queue.ts";
import { systemClock } from "../../src/kernel/clock.ts";
import { migrations } from "../../src/kernel/database.ts";
import type { Outcome, WriteCommand } from "../../src/kernel/execute.ts";
import { fingerprint } from "../../src/kernel/idempotency.ts";
import type { Stored } from "../../src/kernel/log.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";

function tempDatabase(): string {
  const folder = mkdtempSync(join(tmpdir(), "mp-queue-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return join(folder, "kernel.db");
}

/** What the queue told, in order. */
function listener(): QueueEvents & { readonly commits: (readonly Stored[])[]; readonly told: string[] } {
  const commits: (readonly Stored[])[] = [];
  const told: string[] = [];
  return {
    commits,
    told,
    committed: (events) => commits.push(events),
    progress: () => {},
    released: () => {},
    shutdown: () => told.push("shutdown"),
    readOnly: (code) => told.push(`read-only ${code}`),
    warning: (message) => told.push(message),
    bug: (_, error) => told.push(error),
    lost: (error) => told.push(`lost ${error}`),
  };
}

async function opened(path = tempDatabase()) {
  const events = listener();
  const found = await WriteQueue.open(path, systemClock.id(), events);
  if ("refused" in found) throw new Error(found.refused);
  return { path, events, queue: found.queue, log_id: found.log_id };
}

function create(name: string): WriteCommand {
  const payload = { name };
  return {
    type: "workspace.create",
    payload,
    idempotency_key: name,
    fingerprint: fingerprint({ type: "workspace.create", payload }),
    trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
    principal: "uid:1",
    actor: { id: "ada", kind: "user" },
  };
}
const one = (name: string) => ({ commands: [create(name)], atomic: false });
const many = (count: number, prefix: string) => ({
  commands: Array.from({ length: count }, (_, i) => create(`${prefix}-${i}`)),
  atomic: false,
});

function accepted(found: readonly Outcome[] | Problem): boolean {
  return !isProblem(found) && found.every((outcome) => "receipt" in outcome);
}

describe("the queue in front of the writer", () => {
  test("answers a command after readers were told of it, with everything durable by then", async () => {
    const { path, events, queue } = await opened();
    const other = new Database(path, { readonly: true });
    for (let n = 1; n <= 5; n++) {
      const found = await queue.submit(one(`w-${n}`));
      expect(accepted(found)).toBe(true);
      expect(events.commits).toHaveLength(n);
      expect(other.query("SELECT max(seq_global) AS n FROM events").get()).toEqual({ n });
    }
    expect(queue.size).toBe(0);
    other.close();
    await queue.close();
  });

  test("makes one commit of what came at once, and answers each with its own", async () => {
    const { events, queue } = await opened();
    const found = await Promise.all(Array.from({ length: 1_000 }, (_, i) => queue.submit(one(`w-${i}`))));
    for (const [index, outcomes] of found.entries()) {
      if (isProblem(outcomes)) throw new Error(outcomes.detail);
      const [outcome] = outcomes;
      expect("receipt" in outcome! && JSON.parse(outcome.receipt)).toMatchObject({ seq_global: index + 1 });
    }
    expect(events.commits.flat().map((event) => event.seq_global)).toEqual(
      Array.from({ length: 1_000 }, (_, i) => i + 1),
    );
    // 512 at most in one.
    expect(events.commits.length).toBeGreaterThanOrEqual(2);
    expect(events.commits.length).toBeLessThan(10);
    await queue.close();
  });

  test("takes 10,000 commands and answers overloaded at once beyond, and takes more when there is room", async () => {
    const { queue } = await opened();
    const waiting = Array.from({ length: 10 }, (_, i) => queue.submit(many(1_000, `b-${i}`)));
    expect(queue.size).toBe(10_000);
    const refused = await queue.submit(one("too-many"));
    expect(refused).toMatchObject({ code: "overloaded", status: 503, retryable: true });
    const answers = await Promise.all(waiting);
    expect(answers.every(accepted)).toBe(true);
    expect(queue.size).toBe(0);
    expect(accepted(await queue.submit(one("too-many")))).toBe(true);
    await queue.close();
  });

  test("answers all that it took before it closes, and leaves no WAL", async () => {
    const { path, queue } = await opened();
    const waiting = Array.from({ length: 50 }, (_, i) => queue.submit(many(50, `b-${i}`)));
    const flushed = queue.flush();
    await Promise.all([flushed, queue.close()]);
    expect((await Promise.all(waiting)).every(accepted)).toBe(true);
    expect(await Bun.file(`${path}-wal`).exists()).toBe(false);
    const again = await opened(path);
    expect(accepted(await again.queue.submit(one("after")))).toBe(true);
    expect(again.events.commits[0]![0]).toMatchObject({ seq_global: 2_501 });
    await again.queue.flush();
    await again.queue.close();
  });

  test("tells of the end that was asked for after the answer is known", async () => {
    const { events, queue } = await opened();
    const command = { ...create("x"), type: "daemon.shutdown", payload: {} };
    expect(accepted(await queue.submit({ commands: [command], atomic: false }))).toBe(true);
    expect(events.told).toEqual(["shutdown"]);
    await queue.submit({ commands: [command], atomic: false });
    expect(events.told).toEqual(["shutdown"]);
    await queue.close();
  });

  test("goes on with a rebuild between batches, and tells where it is", async () => {
    const { queue } = await opened();
    for (let i = 0; i < 5; i++) expect(accepted(await queue.submit(many(1_000, `b-${i}`)))).toBe(true);
    const command = { ...create("x"), type: "projection.rebuild", payload: {} };
    expect(accepted(await queue.submit({ commands: [command], atomic: false }))).toBe(true);
    const seen = new Set<number | null>();
    let n = 0;
    for (;;) {
      const [workspaces] = queue.projections;
      seen.add(workspaces!.rebuilt_to_seq);
      if (n > 0 && queue.projections.every((each) => each.status === "serving")) break;
      expect(accepted(await queue.submit(one(`between-${n++}`)))).toBe(true);
    }
    expect(n).toBeGreaterThan(2);
    expect(seen.size).toBeGreaterThan(2);
    await queue.close();
  });

  test("says in a sentence why a database cannot be served", async () => {
    const notOne = tempDatabase();
    writeFileSync(notOne, "this is no database, but it is long enough to look at\n".repeat(50));
    const newer = tempDatabase();
    const older = await opened(newer);
    await older.queue.close();
    const db = new Database(newer);
    db.run("INSERT INTO event_versions VALUES ('workspace.created', 99), ('workspace.imagined', 1)");
    const unknown = await WriteQueue.open(newer, systemClock.id(), listener());
    db.run("PRAGMA user_version = 99");
    db.close();
    const refusals = {
      notOne: await WriteQueue.open(notOne, systemClock.id(), listener()),
      unknown,
      newer: await WriteQueue.open(newer, systemClock.id(), listener()),
      nowhere: await WriteQueue.open("/nowhere/kernel.db", systemClock.id(), listener()),
    };
    expect(refusals).toEqual({
      notOne: { refused: "SQLITE_NOTADB: file is not a database" },
      unknown: {
        refused:
          "the log holds workspace.created version 99, this mp knows 1: use a newer mp; the log holds workspace.imagined, which this mp does not know",
      },
      newer: {
        refused: `the database has schema 99, this mp knows ${migrations.length}: use the newer mp that wrote it`,
      },
      nowhere: { refused: "SQLITE_CANTOPEN: unable to open database file" },
    });
  });
});
