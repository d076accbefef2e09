/**
 * 16 processes claim from one queue of 200 tasks with dependencies (SPEC §8): each task is claimed once per attempt, nothing
 * is claimed before its dependencies have succeeded, and all end.
 *
 * Every claimer is a row of processes of the executable. Some claims are failed and retried, some given back, and some
 * holders vanish without a word, so that the daemon has to end their claims. The judge reads the log with rules of
 * its own and knows none of mp's code. MP_TEST_SEED repeats the plan; the order of the processes is the machine's.
 */
import { expect, test } from "bun:test";
import { run, tempHome } from "../support/binary.ts";
import { random } from "../support/random.ts";

const CLAIMERS = 16;
const TASKS = 200;
const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;

interface Event {
  readonly event_type: string;
  readonly seq_global: number;
  readonly subject: { readonly id: string };
  readonly payload: {
    readonly session_id: string;
    readonly epoch: number;
    readonly attempt: number;
    readonly depends_on: readonly string[];
  };
}

/** What one claim was, by the log alone. */
function judge(events: readonly Event[]): { claims: number; expiries: number; succeeded: number } {
  const needs = new Map<string, readonly string[]>();
  const done = new Set<string>();
  const held = new Map<string, { session_id: string; epoch: number }>();
  const attempts = new Map<string, number>();
  const epochs = new Map<string, number>();
  let [claims, expiries] = [0, 0];
  for (const { event_type, seq_global, subject, payload } of events) {
    const { id } = subject;
    const at = `event ${seq_global}, ${event_type} of ${id}`;
    switch (event_type) {
      case "task.created":
        needs.set(id, payload.depends_on);
        break;
      case "task.claimed":
        claims += 1;
        expect([at, held.get(id)]).toEqual([at, undefined]);
        expect([at, done.has(id)]).toEqual([at, false]);
        expect([at, needs.get(id)!.filter((each) => !done.has(each))]).toEqual([at, []]);
        expect([at, payload.attempt]).toEqual([at, (attempts.get(id) ?? 0) + 1]);
        expect([at, payload.epoch > (epochs.get(id) ?? 0)]).toEqual([at, true]);
        attempts.set(id, payload.attempt);
        epochs.set(id, payload.epoch);
        held.set(id, payload);
        break;
      case "task.succeeded":
      case "task.released":
      case "task.claim_expired":
      case "task.failed":
        // A claim that has run out for the last time allowed fails the task right after it.
        if (event_type === "task.failed" && !held.has(id)) break;
        expect([at, held.get(id)?.epoch]).toEqual([at, payload.epoch]);
        held.delete(id);
        if (event_type === "task.claim_expired") expiries += 1;
        if (event_type === "task.succeeded") done.add(id);
        break;
    }
  }
  expect([...held]).toEqual([]);
  return { claims, expiries, succeeded: done.size };
}

test(`${CLAIMERS} processes share ${TASKS} tasks with dependencies: one winner per attempt, in order, to the end`, async () => {
  console.log(`test/races/claims.test.ts: MP_TEST_SEED=${seed}`);
  const chance = random(seed);
  const home = tempHome();
  const mp = async (...args: string[]) => {
    const { code, stdout, stderr } = await run([...args, "--json"], { home, timeout_ms: 60_000 });
    return { code, said: stderr, answer: (stdout === "" ? {} : JSON.parse(stdout)) as never };
  };
  const created = async (...args: string[]) => {
    const { code, said, answer } = await mp(...args);
    if (code !== 0) throw new Error(`${args.join(" ")}: ${said}`);
    return (answer as { subject: { id: string } }).subject.id;
  };
  const workspace = await created("workspace", "create", "race");
  const project = await created("project", "create", "core", "--workspace", workspace);

  const tasks: string[] = [];
  for (let n = 0; n < TASKS; n++) {
    const on = new Set<string>();
    for (let count = Math.floor(chance() * 4); count > 0 && tasks.length > 0; count--)
      on.add(tasks[Math.floor(tasks.length * chance() ** 0.5)]!);
    const flags = [...on].flatMap((each) => ["--depends-on", each]);
    const priority = String(Math.floor(chance() * 5));
    tasks.push(
      await created(
        "task",
        "create",
        `task ${n}`,
        "--project",
        project,
        "--priority",
        priority,
        "--max-attempts",
        "50",
        ...flags,
      ),
    );
  }

  /** One claimer: claims until nothing is left for it, and does with each claim what the dice say. */
  async function claimer(n: number): Promise<void> {
    const session = await created("session", "spawn", "--agent", `claimer-${n}`, "--workspace", workspace);
    const dice = random(seed + n);
    for (;;) {
      const { code, said, answer } = await mp(
        "task",
        "claim",
        "--session",
        session,
        "--project",
        project,
        "--ttl-ms",
        "1500",
        "--wait",
        "5s",
      );
      if (code === 7) {
        // Nothing came for a while. Whoever is failed and not retried would be waited for in vain: retry, and look again.
        const left = (await mp("task", "list", "--project", project)).answer as {
          items: { task_id: string; status: string }[];
        };
        if (left.items.every((task) => task.status === "succeeded")) return;
        for (const { task_id } of left.items.filter((task) => task.status === "failed"))
          await mp("task", "retry", task_id);
        continue;
      }
      if (code !== 0) throw new Error(`claimer ${n}: exit ${code}: ${said}`);
      const { task_id, epoch } = (answer as { result: { task_id: string; epoch: number } }).result;
      const roll = dice();
      const ended =
        roll < 0.05
          ? undefined
          : roll < 0.1
            ? await mp("task", "release", task_id, "--epoch", String(epoch))
            : roll < 0.15
              ? await mp(
                  "task",
                  "fail",
                  task_id,
                  "--epoch",
                  String(epoch),
                  "--failure-class",
                  "dice",
                  "--failure-message",
                  "bad luck",
                )
              : await mp("task", "complete", task_id, "--epoch", String(epoch));
      // On a slow machine a claim may run out before its holder comes back: then the epoch is stale, and only that.
      if (ended && ended.code !== 0) expect(ended.said).toContain("task.stale_epoch");
      if (roll >= 0.1 && roll < 0.15) await mp("task", "retry", task_id);
      const left = (
        await mp("task", "list", "--project", project, "--status", "succeeded", "--limit", "1000")
      ).answer as { items: unknown[] };
      if (left.items.length === TASKS) return;
    }
  }
  await Promise.all(Array.from({ length: CLAIMERS }, (_, n) => claimer(n)));

  const log = await run(["events", "tail", "--from-start", "--no-follow", "--json", "--type", "task.*"], {
    home,
  });
  const events = log.stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Event);
  const { claims, expiries, succeeded } = judge(events);
  console.log(`${claims} claims, ${expiries} expired`);
  expect(succeeded).toBe(TASKS);
  expect(claims).toBeGreaterThan(TASKS);
  expect(expiries).toBeGreaterThan(0);
  const verified = await run(["projection", "verify", "--json"], { home });
  expect((JSON.parse(verified.stdout) as { ok: boolean }).ok).toBe(true);
}, 240_000);
