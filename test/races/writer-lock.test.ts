/**
 * 16 processes fight for one writer lock, with ttls that run out and steals (SPEC §8): epochs only grow, one holds it at a
 * time, and no renewal, release or check with a stale epoch is ever accepted.
 *
 * The judge has the log and every receipt with its position; it knows none of mp's code. MP_TEST_SEED repeats the plan.
 */
import { expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { run, tempHome, waitFor } from "../support/binary.ts";
import { random } from "../support/random.ts";

const FIGHTERS = 16;
const ROUNDS = 8;
const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;

interface Event {
  readonly event_type: string;
  readonly seq_global: number;
  readonly payload: { readonly session_id: string; readonly epoch: number };
}

/** What a process was told: which use of an epoch, and where the log stood when it was accepted or refused. */
interface Use {
  readonly verb: string;
  readonly epoch: number;
  readonly accepted: boolean;
  /** Position of the log with the answer; undefined for a refusal. */
  readonly seq_global: number | undefined;
}

test(`${FIGHTERS} processes and one writer lock: no stale epoch is ever accepted`, async () => {
  console.log(`test/races/writer-lock.test.ts: MP_TEST_SEED=${seed}`);
  const home = tempHome();
  const place = join(home, "tree");
  mkdirSync(place);
  const mp = async (...args: string[]) => {
    const { code, stdout, stderr } = await run([...args, "--json"], { home, timeout_ms: 60_000 });
    return {
      code,
      said: stderr,
      answer: stdout === "" ? {} : (JSON.parse(stdout) as Record<string, unknown>),
    };
  };
  const created = async (...args: string[]) => {
    const { code, said, answer } = await mp(...args);
    if (code !== 0) throw new Error(`${args.join(" ")}: ${said}`);
    return (answer as { subject: { id: string } }).subject.id;
  };
  const workspace = await created("workspace", "create", "race");
  const project = await created("project", "create", "core", "--workspace", workspace);
  const worktree = await created("worktree", "register", place, "--project", project);
  const uses: Use[] = [];

  async function use(verb: string, epoch: number, ...args: string[]): Promise<boolean> {
    const { code, said, answer } = await mp("worktree", verb, ...args, "--epoch", String(epoch));
    if (code !== 0)
      expect({ verb, code, said }).toMatchObject({
        verb,
        code: 5,
        said: expect.stringContaining("worktree.stale_epoch"),
      });
    uses.push({
      verb,
      epoch,
      accepted: code === 0,
      seq_global: (answer.seq_global ?? answer.as_of_seq) as number | undefined,
    });
    return code === 0;
  }

  async function fighter(n: number): Promise<void> {
    const dice = random(seed + n);
    const session = await created("session", "spawn", "--agent", `fighter-${n}`, "--workspace", workspace);
    expect((await mp("worktree", "attach", worktree, "write", "--session", session)).code).toBe(0);
    let old: number | undefined;
    for (let round = 0; round < ROUNDS; round++) {
      let taken = await mp("worktree", "lock-writer", worktree, "--session", session, "--ttl-ms", "1000");
      const stolen = taken.code !== 0 && dice() < 0.3;
      if (stolen) {
        const held = JSON.parse(taken.said) as { details: { epoch: number } };
        taken = await mp(
          "worktree",
          "steal-writer",
          worktree,
          "--session",
          session,
          "--expected-epoch",
          String(held.details.epoch),
          "dice",
        );
      }
      // An epoch that was once ours and is not any more is tried again at any time: it must never do anything.
      if (old !== undefined && dice() < 0.5) await use("renew-writer", old, worktree, "--session", session);
      if (taken.code !== 0) continue;
      const { epoch } = (taken.answer as { result: { epoch: number } }).result;
      old = epoch;
      await use("check", epoch, place);
      if (dice() < 0.5) await use("renew-writer", epoch, worktree, "--session", session);
      // Some keep it until it runs out; a stolen one would last for minutes.
      if (stolen || dice() < 0.8) await use("release-writer", epoch, worktree, "--session", session);
      await use("check", epoch, place);
    }
  }
  await Promise.all(Array.from({ length: FIGHTERS }, (_, n) => fighter(n)));

  // Whatever the dice said: one more lock is stolen, and runs out in the hands of its thief.
  const status = async () =>
    ((await mp("worktree", "get", worktree)).answer as { writer_status: string }).writer_status;
  const ended = { what: "the end of the lock", timeout_ms: 20_000 };
  await waitFor(async () => (await status()) !== "held", ended);
  const [holder, thief] = [
    await created("session", "spawn", "--agent", "holder", "--workspace", workspace),
    await created("session", "spawn", "--agent", "thief", "--workspace", workspace),
  ];
  for (const session of [holder, thief])
    await mp("worktree", "attach", worktree, "write", "--session", session);
  const lock = async (...args: string[]) => {
    const { code, said, answer } = await mp("worktree", ...args);
    expect({ args, code, said }).toEqual({ args, code: 0, said: "" });
    return (answer as { result: { epoch: number } }).result.epoch;
  };
  const first = await lock("lock-writer", worktree, "--session", holder, "--ttl-ms", "20000");
  const stolen = await lock(
    "steal-writer",
    worktree,
    "dice",
    "--session",
    thief,
    "--expected-epoch",
    String(first),
  );
  expect(await use("renew-writer", first, worktree, "--session", holder)).toBe(false);
  expect(await use("release-writer", stolen, worktree, "--session", thief)).toBe(true);
  const kept = await lock("lock-writer", worktree, "--session", thief, "--ttl-ms", "1000");
  await waitFor(async () => (await status()) === "expired", ended);
  expect(await use("check", kept, place)).toBe(false);
  const log = await run(["events", "tail", "--from-start", "--no-follow", "--json", "--type", "worktree.*"], {
    home,
  });
  const events = log.stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Event);
  /** From which position of the log to which an epoch was the valid one. */
  const valid = new Map<number, { from: number; to: number }>();
  let held: { epoch: number; session_id: string } | undefined;
  let last = 0;
  for (const { event_type, seq_global, payload } of events) {
    if (event_type === "worktree.writer_locked" || event_type === "worktree.writer_stolen") {
      if (event_type === "worktree.writer_locked")
        expect([seq_global, held]).toEqual([seq_global, undefined]);
      expect(payload.epoch).toBeGreaterThan(last);
      if (held) valid.get(held.epoch)!.to = seq_global;
      last = payload.epoch;
      held = payload;
      valid.set(last, { from: seq_global, to: Number.POSITIVE_INFINITY });
    } else if (event_type === "worktree.writer_released" || event_type === "worktree.writer_expired") {
      // One that has run out may still be given back, as long as nobody has it: `expired` becomes `free`.
      const given = held?.epoch ?? (event_type.endsWith("released") ? last : undefined);
      expect([seq_global, payload.epoch]).toEqual([seq_global, given!]);
      valid.get(payload.epoch)!.to = seq_global;
      held = undefined;
    }
  }
  for (const { verb, epoch, seq_global, accepted } of uses.filter((each) => each.accepted)) {
    const { from, to } = valid.get(epoch)!;
    expect({
      verb,
      epoch,
      accepted,
      at: [seq_global, from, to],
      inTime: seq_global! >= from && seq_global! <= (verb === "release-writer" ? to : to - 1),
    }).toEqual({ verb, epoch, accepted, at: [seq_global, from, to], inTime: true });
  }
  const types = new Set(events.map((each) => each.event_type));
  for (const type of ["locked", "released", "expired", "stolen"])
    expect([...types]).toContain(`worktree.writer_${type}`);
  console.log(
    `${last} epochs, ${uses.filter((each) => !each.accepted).length} stale uses refused of ${uses.length}`,
  );
  expect(uses.some((each) => !each.accepted)).toBe(true);
}, 240_000);
