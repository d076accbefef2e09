/**
 * SIGKILL at a random moment under load, 50 times on one home (SPEC §4, §7, §11): no acknowledged command is lost, none is
 * doubled when all are retried with their keys, and the log and the read models are clean.
 *
 * The moments fall into serving, rebuilding and starting up. MP_TEST_SEED repeats a run's plan; the operating system still
 * decides which instruction a moment falls on. The checks at the end do not use the daemon's own reading of the log.
 */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { tempHome } from "../support/binary.ts";
import { random } from "../support/random.ts";
import { ask, begin, command, type Envelope, type Launched, launched, type Receipt, send } from "./launch.ts";

const ROUNDS = 50;
const WRITERS = 24;
const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;

/** A command that was sent, and its receipt once it was acknowledged. */
interface Sent {
  readonly envelope: Envelope;
  /** Part of a batch that is all or nothing. */
  readonly grouped: boolean;
  receipt: Receipt | undefined;
}

/** A batch that is all or nothing. */
interface Group {
  readonly members: readonly Sent[];
}

test(`no acknowledged command is lost and none is doubled by ${ROUNDS} kills`, async () => {
  console.log(`test/crash/kill.test.ts: MP_TEST_SEED=${seed}, killing ${command.join(" ")}`);
  const chance = random(seed);
  const home = tempHome();
  const sent: Sent[] = [];
  const groups: Group[] = [];
  const workspaces: string[] = [];
  const toggled: string[] = [];
  let number = 0;

  /** A new command of a kind that is accepted whenever it arrives, however often others arrived before. */
  function invent(grouped = false): Sent {
    number += 1;
    const key = `key-${number}`;
    const among = (list: readonly string[]) => list[Math.floor(chance() * list.length)];
    const dice = chance();
    const parent = among(workspaces);
    const subject = among(toggled);
    let envelope: Envelope = { type: "workspace.create", payload: { name: key }, idempotency_key: key };
    if (dice < 0.5 && parent !== undefined)
      envelope = {
        type: "project.create",
        payload: { workspace_id: parent, name: key },
        idempotency_key: key,
      };
    else if (dice < 0.7 && subject !== undefined)
      envelope = {
        type: dice < 0.6 ? "workspace.close" : "workspace.open",
        payload: { workspace_id: subject },
        idempotency_key: key,
      };
    const made = { envelope, grouped, receipt: undefined };
    sent.push(made);
    return made;
  }

  function acknowledge(made: Sent, receipt: Receipt): void {
    // What was acknowledged once is acknowledged in the same words for ever.
    if (made.receipt) expect({ ...receipt, replayed: true }).toEqual({ ...made.receipt, replayed: true });
    if (made.receipt === undefined && made.envelope.type === "workspace.create")
      (number % 5 === 0 ? toggled : workspaces).push(receipt.subject.id);
    made.receipt ??= receipt;
  }

  /** Send commands one after the other until the daemon is gone. */
  async function writer(socket: string): Promise<void> {
    for (;;) {
      // Retries in between, of what may or may not be known; not of a batch's members, which come and go together.
      const old = chance() < 0.1 ? sent[Math.floor(chance() * sent.length)] : undefined;
      if (old === undefined && chance() < 0.05) {
        const group = { members: [invent(true), invent(true), invent(true)] };
        groups.push(group);
        if (!(await sendGroup(socket, group))) return;
        continue;
      }
      const made = old === undefined || old.grouped ? invent() : old;
      const fate = await send(socket, made.envelope);
      if (fate.kind === "lost") return;
      if (fate.kind === "problem") throw new Error(`refused: ${JSON.stringify(fate.problem)}`);
      acknowledge(made, fate.receipt);
    }
  }

  async function sendGroup(socket: string, { members }: Group): Promise<boolean> {
    let text: string;
    try {
      const response = await fetch("http://mp/v1/commands/batch", {
        unix: socket,
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ atomic: true, commands: members.map((each) => each.envelope) }),
      });
      text = await response.text();
    } catch {
      return false;
    }
    const { items } = JSON.parse(text) as { items?: Receipt[] };
    if (!items) throw new Error(`refused: ${text}`);
    for (const [index, made] of members.entries()) {
      const { kind: _, ...receipt } = items[index] as Receipt & { kind: string };
      acknowledge(made, receipt as Receipt);
    }
    return true;
  }

  // How long a start takes here: a kill within that time meets one.
  const began = performance.now();
  const first = await launched(home);
  const start = performance.now() - began;
  first.kill("SIGTERM");
  expect(await first.exited).toBe(0);

  const struck = { "starting up": 0, rebuilding: 0, serving: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const dice = chance();
    if (dice < 0.25) {
      // Half of these starts have to rebuild their read models first, and so last longer.
      if (dice < 0.12) forgetGenerations(home);
      const child = begin(home);
      await pause(chance() * start * 1.2);
      child.kill("SIGKILL");
      const said = await Bun.readableStreamToText(child.stdout);
      await child.exited;
      struck[said === "" ? "starting up" : "serving"] += 1;
      continue;
    }
    const daemon = await launched(home);
    const writers = Array.from({ length: WRITERS }, () => writer(daemon.socket));
    await pause(20 + chance() * 200);
    if (dice < 0.5) {
      const rebuild = {
        type: "projection.rebuild",
        payload: {},
        idempotency_key: `rebuild-${round}`,
      };
      await send(daemon.socket, rebuild);
      await pause(chance() * 30);
    }
    daemon.kill("SIGKILL");
    expect(await daemon.exited).toBe(137);
    await Promise.all(writers);
    struck[nextTables(home) > 0 ? "rebuilding" : "serving"] += 1;
  }
  const acknowledged = sent.filter((each) => each.receipt).length;
  console.log(`${sent.length} commands, ${acknowledged} acknowledged; killed while`, struck);
  // The plan really led where it should have.
  for (const count of Object.values(struck)) expect(count).toBeGreaterThan(0);
  expect(acknowledged).toBeGreaterThan(ROUNDS * WRITERS);
  expect(acknowledged).toBeLessThan(sent.length);

  // A batch that is all or nothing was stored so, acknowledged or not.
  const keys = storedKeys(home);
  for (const { members } of groups)
    expect(new Set(members.map((each) => keys.has(each.envelope.idempotency_key))).size).toBe(1);

  const daemon = await launched(home);
  const before = new Map(sent.map((each) => [each, each.receipt]));
  await retryAll(daemon, sent, acknowledge, (made, receipt) => {
    const known = before.get(made) !== undefined || keys.has(made.envelope.idempotency_key);
    expect(receipt.replayed).toBe(known);
  });
  await retryAll(daemon, sent, acknowledge, (_, receipt) => expect(receipt.replayed).toBe(true));

  expect(await ask(daemon.socket, "log.verify")).toMatchObject({ ok: true, first_bad: null });
  expect(await ask(daemon.socket, "projection.verify")).toMatchObject({ ok: true });
  const { log_id } = daemon.info;
  daemon.kill("SIGTERM");
  expect(await daemon.exited).toBe(0);
  checkLog(
    home,
    log_id,
    sent.map((each) => each.receipt!),
  );
}, 120_000);

/** Waits for no condition: the moment of a kill is meant to be any. */
function pause(ms: number): Promise<void> {
  return Bun.sleep(ms);
}

async function retryAll(
  daemon: Launched,
  sent: readonly Sent[],
  acknowledge: (made: Sent, receipt: Receipt) => void,
  check: (made: Sent, receipt: Receipt) => void,
): Promise<void> {
  const queue = [...sent];
  await Promise.all(
    Array.from({ length: WRITERS }, async () => {
      for (let made = queue.pop(); made; made = queue.pop()) {
        const fate = await send(daemon.socket, made.envelope);
        if (fate.kind !== "receipt") throw new Error(`a retry was not accepted: ${JSON.stringify(fate)}`);
        check(made, fate.receipt);
        acknowledge(made, fate.receipt);
      }
    }),
  );
}

function open<R>(home: string, use: (db: Database) => R): R {
  // Not read-only: after a kill the first to open the WAL has to recover it.
  const db = new Database(join(home, "kernel.db"));
  try {
    return use(db);
  } finally {
    db.close();
  }
}

/** Tables of a generation that is being built. */
function nextTables(home: string): number {
  return open(home, (db) => {
    const sql =
      "SELECT count(*) AS n FROM sqlite_schema WHERE type = 'table' AND name LIKE '%\\_\\_next' ESCAPE '\\'";
    return db.query<{ n: number }, []>(sql).get()!.n;
  });
}

/** As a new version of mp would find them: the next start rebuilds all read models. */
function forgetGenerations(home: string): void {
  open(home, (db): void => {
    const made = db.query("SELECT 1 FROM sqlite_schema WHERE name = 'projections'").get();
    if (made) db.run("UPDATE projections SET generation = 'another'");
  });
}

function storedKeys(home: string): Set<string> {
  return open(home, (db) => {
    const rows = db.query<{ key: string }, []>("SELECT idempotency_key AS key FROM command_keys").all();
    return new Set(rows.map((row) => row.key));
  });
}

/** The log itself, by hand: each receipt's events at their places, nothing else, no gap, every hash. */
function checkLog(home: string, log_id: string, receipts: readonly Receipt[]): void {
  const rows = open(home, (db) =>
    db
      .query<{ seq_global: number; event_id: string; body: Uint8Array }, []>(
        "SELECT seq_global, event_id, body FROM events ORDER BY seq_global",
      )
      .all(),
  );
  const claimed = new Map<number, string>();
  for (const { events, command_id } of receipts)
    for (const { seq_global, event_id, seq_stream } of events) {
      if (claimed.has(seq_global))
        throw new Error(`two commands were told that event ${seq_global} is theirs`);
      claimed.set(seq_global, event_id);
      const event = JSON.parse(new TextDecoder().decode(rows[seq_global - 1]!.body)) as {
        event_id: string;
        seq_stream: number;
        causality: { command_id: string };
      };
      // Only where it differs: so many calls of expect would take seconds.
      if (
        event.event_id !== event_id ||
        event.seq_stream !== seq_stream ||
        event.causality.command_id !== command_id
      )
        expect(event).toMatchObject({ event_id, seq_stream, causality: { command_id } });
    }
  expect(claimed.size).toBe(rows.length);

  const sha256 = (...parts: (string | Uint8Array)[]) => {
    const hash = createHash("sha256");
    for (const part of parts) hash.update(part);
    return hash.digest("hex");
  };
  let prev_hash = sha256(`mp.local/${log_id}/events`);
  const versions = new Map<string, number>();
  for (const [index, { seq_global, body }] of rows.entries()) {
    const event = JSON.parse(new TextDecoder().decode(body)) as {
      seq_global: number;
      seq_stream: number;
      stream: string;
      prev_hash: string;
    };
    const place = { seq_global: index + 1, seq_stream: (versions.get(event.stream) ?? 0) + 1, prev_hash };
    versions.set(event.stream, place.seq_stream);
    if (seq_global !== index + 1) expect(seq_global).toBe(index + 1);
    if (
      event.seq_global !== place.seq_global ||
      event.seq_stream !== place.seq_stream ||
      event.prev_hash !== prev_hash
    )
      expect(event).toMatchObject(place);
    prev_hash = sha256(new Uint8Array([0]), body);
  }
}
