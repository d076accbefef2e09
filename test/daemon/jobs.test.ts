import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Jobs } from "../../src/daemon/jobs.ts";
import { aggregates } from "../../src/domain/index.ts";
import { type LogCheck, verifyLog } from "../../src/integrity/verify.ts";
import { systemClock } from "../../src/kernel/clock.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { isProblem, problem } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { fill, type Made } from "../bench/fill.ts";
import { ask, launched } from "../crash/launch.ts";
import { tempHome, waitFor } from "../support/binary.ts";

/** Two ranges of a thread and some of a third. */
const EVENTS = 40_000;
const RANGE = 16_384;
const STOPPING = problem("overloaded", "the daemon is stopping");

const folder = mkdtempSync(join(tmpdir(), "mp-jobs-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function* workspaces(): Generator<Made, undefined> {
  for (let n = 0; n < EVENTS; n++) {
    const id = systemClock.id();
    const subject = { kind: "workspace", id };
    yield {
      event_type: "workspace.created",
      payload: { name: `w-${n}` },
      seq_stream: 1,
      subject,
      workspace_id: id,
    };
  }
  return undefined;
}

const good = join(folder, "good", "kernel.db");
fill(join(folder, "good"), workspaces());

/** A copy of the good log, with faults. */
function copy(change: (db: Database) => void = () => {}): string {
  const path = join(mkdtempSync(join(folder, "log-")), "kernel.db");
  copyFileSync(good, path);
  const db = new Database(path);
  db.run("PRAGMA synchronous = OFF");
  const triggers = db
    .query<{ name: string; of: string; sql: string }, []>(
      "SELECT name, tbl_name AS of, sql FROM sqlite_schema WHERE type = 'trigger'",
    )
    .all();
  for (const { name } of triggers) db.run(`DROP TRIGGER ${name}`);
  change(db);
  const tables = db.query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
  for (const { of, sql } of triggers) if (tables.some(({ name }) => name === of)) db.run(sql);
  db.close();
  return path;
}

const forge = (db: Database, seq: number) =>
  db
    .query(
      `UPDATE events SET body = CAST(replace(CAST(body AS TEXT), '"name":"w', '"name":"v') AS BLOB) WHERE seq_global = ?`,
    )
    .run(seq);

function alone(path: string): LogCheck {
  const db = openForReading(path);
  try {
    return verifyLog(db, buildRegistry(aggregates, system), () => {});
  } finally {
    db.close();
  }
}

describe("log.verify as a job", () => {
  test("a large log is one job, told how far it is, and found good", async () => {
    const jobs = new Jobs(good);
    const seen: number[] = [];
    let over = false;
    const found = jobs.run("log.verify").finally(() => {
      over = true;
    });
    await waitFor(
      () => {
        expect(jobs.running.size).toBe(over ? 0 : 1);
        for (const { done, of } of jobs.running) {
          expect(of).toBe(done === 0 ? of : EVENTS);
          if (seen.at(-1) !== done) seen.push(done);
        }
        return over;
      },
      { what: "the end of the job" },
    );
    expect(await found).toEqual(alone(good));
    expect(await found).toMatchObject({ ok: true, events: EVENTS });
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(seen.length).toBeGreaterThan(2);
    expect(jobs.running.size).toBe(0);
  });

  /** Positions of forged events → the one that is told. */
  const cases: readonly (readonly [forged: readonly number[], told: number])[] = [
    [[1], 1],
    [[RANGE - 1], RANGE - 1],
    [[RANGE], RANGE],
    [[RANGE + 1], RANGE + 1],
    [[2 * RANGE], 2 * RANGE],
    // Nothing is behind the last to say which of the two was changed.
    [[EVENTS - 1], EVENTS],
    // The later ones are found first: their ranges begin with them.
    [[2 * RANGE + 1, RANGE + 1, RANGE - 1], RANGE - 1],
  ];
  for (const [forged, told] of cases)
    test(`names the first of the forged events ${forged.join(", ")}`, async () => {
      const path = copy((db) => {
        for (const seq of forged) forge(db, seq);
      });
      const found = await new Jobs(path).run("log.verify");
      expect(found).toMatchObject({ ok: false, events: told - 1, first_bad: { seq_global: told } });
      expect(found).toEqual(alone(path));
    });

  test("who asks while one runs shares the next", async () => {
    const jobs = new Jobs(good);
    const [first, second, third] = [jobs.run("log.verify"), jobs.run("log.verify"), jobs.run("log.verify")];
    expect(second).toBe(third);
    for (const each of [first, second]) expect(await each).toMatchObject({ ok: true, events: EVENTS });
    expect(jobs.running.size).toBe(0);
  });

  test("a daemon that stops ends all threads of one, and tells who waits", async () => {
    const jobs = new Jobs(good);
    const running = jobs.run("log.verify");
    const waiting = jobs.run("log.verify");
    await waitFor(() => [...jobs.running].some(({ done }) => done > 0), { what: "a range that is done" });
    jobs.close(STOPPING);
    for (const each of [running, waiting, jobs.run("log.verify")]) {
      const found = await each;
      expect(isProblem(found)).toBe(true);
      expect(found).toMatchObject({ code: "overloaded" });
    }
    expect(jobs.running.size).toBe(0);
  });

  test("when a thread can do no more the job fails, and the next one starts afresh", async () => {
    const path = copy((db) => db.run("DROP TABLE event_versions"));
    const jobs = new Jobs(path);
    const found = await jobs.run("log.verify").catch((error: unknown) => error);
    expect(found).toBeInstanceOf(Error);
    expect(String(found)).toContain("no such table: event_versions");
    expect(jobs.running.size).toBe(0);
    copyFileSync(good, path);
    expect(await jobs.run("log.verify")).toMatchObject({ ok: true, events: EVENTS });
  });

  test("the executable verifies a large log, and stops in the middle of that", async () => {
    const home = tempHome();
    copyFileSync(good, join(home, "kernel.db"));
    const daemon = await launched(home);
    expect(await ask<LogCheck>(daemon.socket, "log.verify")).toEqual(alone(good));
    const asked = fetch("http://mp/v1/queries/log.verify", { unix: daemon.socket })
      .then((response) => response.json())
      .catch(() => undefined);
    await waitFor(async () => ((await ask(daemon.socket, "daemon.status")).jobs as unknown[]).length === 1, {
      what: "the job",
    });
    daemon.kill("SIGTERM");
    expect(await daemon.exited).toBe(0);
    const answer = await asked;
    // An answer may come to nobody once the socket is gone.
    if (answer !== undefined) expect(answer).toMatchObject({ code: "overloaded", status: 503 });
    expect(readdirSync(home).filter((name) => name === "kernel.db-wal")).toEqual([]);
  });
});
