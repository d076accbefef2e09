/**
 * Leases and renewals (kernel/leases.ts, kernel/execute.ts; SPEC §8), with a clock that the test moves.
 *
 * `lock` is an aggregate that no product has: whoever takes it holds it until it is given back or not renewed in time;
 * `deposit` keeps something for a while, which is nobody's liveness, so it gets no grace.
 */
import { describe, expect, test } from "bun:test";
import { Type } from "typebox";
import {
  aggregate,
  command,
  event,
  later,
  missing,
  type RowOf,
  reject,
  table,
} from "../../src/kernel/aggregate.ts";
import { openForReading } from "../../src/kernel/database.ts";
import type { WriteCommand } from "../../src/kernel/execute.ts";
import { ReadModels } from "../../src/kernel/readmodel.ts";
import { Id } from "../../src/kernel/schema.ts";
import { dumpAll, type Engine, engine, receiptOf, refusedOf, tempFolder, toWrite } from "./engine.ts";

const locks = table(
  { lock_id: Id, name: Type.String(), taken: Type.Integer(), version: Type.Integer() },
  { key: ["lock_id"], index: [["name", "taken"]] },
);
const deposits = table({ deposit_id: Id }, { key: ["deposit_id"] });

declare module "../../src/kernel/aggregate.ts" {
  interface Tables {
    locks: RowOf<typeof locks>;
    deposits: RowOf<typeof deposits>;
  }
}

interface Lock {
  readonly epoch: number;
  readonly ttl_ms: number;
  readonly held: boolean;
}

const Epoch = Type.Object({ epoch: Type.Integer(), expires_at: Type.String() });

/** @param flaws `throwsAt`: `apply` cannot take the end of this epoch; `stubborn`: the end of a lease ends nothing */
function lock(flaws: { throwsAt?: number; version?: number; stubborn?: boolean } = {}) {
  const give = (state: Lock, { epoch }: { epoch: number }) =>
    state.held && state.epoch === epoch
      ? [{ type: "given" as const, payload: { epoch } }]
      : reject("lock.stale", { epoch, current: state.epoch });
  return aggregate("lock", { epoch: 0, ttl_ms: 0, held: false } as Lock)({
    commands: {
      create: command({ name: Type.String() }, "Make a lock.", { creates: true }),
      take: command(
        { lock_id: Type.Optional(Id), name: Type.Optional(Type.String()), ttl_ms: Type.Integer() },
        "Take one: that one, or the first free one of that name.",
        { result: Epoch },
      ),
      hold: command({ lock_id: Id, epoch: Type.Integer() }, "Renew it.", { renews: true, result: Epoch }),
      give: command({ lock_id: Id, epoch: Type.Integer() }, "Give it back."),
      retake: command(
        { lock_id: Id, ttl_ms: Type.Integer() },
        "Give it back and take it again, in one command.",
      ),
      polish: command({ lock_id: Id }, "Polish it, whoever has it."),
      overdo: command({ lock_id: Id }, "Renew it, and more: a bug.", { renews: true }),
      lose: command({ lock_id: Id, epoch: Type.Integer() }, "Its time is over.", { internal: true }),
    },
    events: {
      created: event(1, { name: Type.String() }),
      taken: event(1, { epoch: Type.Integer(), ttl_ms: Type.Integer() }),
      given: event(1, { epoch: Type.Integer() }),
      lost: event(1, { epoch: Type.Integer() }),
      polished: event(1, {}),
    },
    reasons: {
      "lock.stale": { is: "the epoch is not the current one", hint: "take it again" },
      "lock.held": { is: "it is held", hint: "wait" },
      "lock.none_free": { is: "none is free", hint: "wait" },
    },
    scope: () => ({}),
    choose: {
      take(payload, { find }) {
        if (payload.name === "nothing") return missing("lock", "nothing");
        const free = find.one("locks", { name: payload.name ?? "", taken: 0 });
        return free?.lock_id ?? reject("lock.none_free");
      },
    },
    lease: {
      of: ({ held, epoch, ttl_ms }) => (held ? { epoch, ttl_ms } : undefined),
      expire: "lose",
    },
    decide: {
      create: (_, { name }) => [{ type: "created", payload: { name } }],
      take(state, { ttl_ms }, { find, id, at }) {
        const lease = find.one("leases", { stream: `lock/${id}` });
        if (state.held) return reject("lock.held", { epoch: state.epoch, expires_at: lease!.expires_at });
        const epoch = state.epoch + 1;
        return {
          events: [{ type: "taken", payload: { epoch, ttl_ms } }],
          result: { epoch, expires_at: later(at, ttl_ms) },
        };
      },
      hold: (state, { epoch }, { at }) =>
        state.held && state.epoch === epoch
          ? { events: [], result: { epoch, expires_at: later(at, state.ttl_ms) } }
          : reject("lock.stale", { epoch, current: state.epoch }),
      give,
      retake: (state, { ttl_ms }) => [
        { type: "given", payload: { epoch: state.epoch } },
        { type: "taken", payload: { epoch: state.epoch + 1, ttl_ms } },
      ],
      polish: () => [{ type: "polished", payload: {} }],
      overdo: (state) => [{ type: "given", payload: { epoch: state.epoch } }],
      lose: (state, { epoch }) =>
        flaws.stubborn
          ? []
          : state.held && state.epoch === epoch
            ? [{ type: "lost", payload: { epoch } }]
            : [],
    },
    evolve: {
      created: (state) => state,
      taken: (_, { epoch, ttl_ms }) => ({ epoch, ttl_ms, held: true }),
      given: (state) => ({ ...state, held: false }),
      lost: (state) => ({ ...state, held: false }),
      polished: (state) => state,
    },
    readModel: {
      version: flaws.version ?? 1,
      tables: { locks },
      apply: {
        created: (rows, { subject, payload: { name } }) =>
          rows.locks.insert({ lock_id: subject.id, name, taken: 0, version: 1 }),
        taken(rows, { subject, seq_stream, payload: { epoch } }) {
          if (epoch === flaws.throwsAt) throw new Error("a bug in apply");
          rows.locks.update({ lock_id: subject.id }, { taken: 1, version: seq_stream });
        },
        given: (rows, { subject, seq_stream }) =>
          rows.locks.update({ lock_id: subject.id }, { taken: 0, version: seq_stream }),
        lost: (rows, { subject, seq_stream }) =>
          rows.locks.update({ lock_id: subject.id }, { taken: 0, version: seq_stream }),
        polished: () => {},
      },
    },
    queries: {},
  });
}

const deposit = aggregate("deposit", { there: false })({
  commands: {
    leave: command({}, "Leave something for 10 s.", { creates: true }),
    clear: command({ deposit_id: Id, epoch: Type.Integer() }, "It was there long enough.", {
      internal: true,
    }),
  },
  events: { left: event(1, {}), cleared: event(1, {}) },
  reasons: {},
  scope: () => ({}),
  lease: {
    of: ({ there }) => (there ? { epoch: 1, ttl_ms: 10_000, grace: false } : undefined),
    expire: "clear",
  },
  decide: {
    leave: () => [{ type: "left", payload: {} }],
    clear: (state) => (state.there ? [{ type: "cleared", payload: {} }] : []),
  },
  evolve: { left: () => ({ there: true }), cleared: () => ({ there: false }) },
  readModel: {
    version: 1,
    tables: { deposits },
    apply: {
      left: (rows, { subject }) => rows.deposits.insert({ deposit_id: subject.id }),
      cleared: () => {},
    },
  },
  queries: {},
});

const START = Date.UTC(2026, 10, 22, 10);

/** A kernel whose clock the test moves, and a lock that is free. */
function withLock(more: { path?: string; flaws?: Parameters<typeof lock>[0] } = {}) {
  const clock = { now: START };
  const open = (flaws = more.flaws, path = more.path) =>
    engine({ aggregates: [lock(flaws), deposit], now: () => clock.now, ...(path !== undefined && { path }) });
  const kernel = open();
  const lock_id = kernel.done("lock.create", { name: "one" }).subject.id;
  return { kernel, clock, lock_id, open, take: (ttl_ms = 1_000) => taken(kernel, lock_id, ttl_ms) };
}

const taken = (kernel: Engine, lock_id: string, ttl_ms = 1_000) =>
  kernel.done("lock.take", { lock_id, ttl_ms }).result as { epoch: number; expires_at: string };

interface LeaseRow {
  readonly stream: string;
  readonly epoch: number;
  readonly ttl_ms: number;
  readonly expires_at: number;
  readonly renewal_key: string | null;
}
/** The leases as they are kept, without the time that all times here begin with. */
const leases = ({ db }: Engine) =>
  db
    .query<LeaseRow, []>("SELECT stream, epoch, ttl_ms, expires_at, renewal_key FROM leases ORDER BY stream")
    .all()
    .map((row) => ({ ...row, expires_at: row.expires_at - START }));
const ends = (kernel: Engine) => leases(kernel).map((row) => row.expires_at);
/** What the last expiry made, as types; undefined when none was due. */
const expired = (kernel: Engine) =>
  kernel.executor.expire()?.events.map((each) => `${each.event_type} ${each.stream}`);

describe("a lease", () => {
  test("begins with the command that makes it, and ends with the one that ends it", () => {
    const { kernel, lock_id, take } = withLock();
    const stream = `lock/${lock_id}`;
    expect(leases(kernel)).toEqual([]);
    expect(kernel.executor.nextEnd()).toBeUndefined();
    expect(take()).toEqual({ epoch: 1, expires_at: "2026-11-22T10:00:01.000Z" });
    expect(leases(kernel)).toEqual([
      { stream, epoch: 1, ttl_ms: 1_000, expires_at: 1_000, renewal_key: null },
    ]);
    expect(kernel.executor.nextEnd()).toBe(START + 1_000);
    kernel.done("lock.give", { lock_id, epoch: 1 });
    expect(leases(kernel)).toEqual([]);
    expect(kernel.executor.nextEnd()).toBeUndefined();
  });

  test("is seen by decisions and by queries, without who renewed it", () => {
    const { kernel, lock_id, take } = withLock();
    take(5_000);
    kernel.done("lock.hold", { lock_id, epoch: 1 });
    expect(kernel.refused("lock.take", { lock_id, ttl_ms: 1 }).details).toEqual({
      epoch: 1,
      expires_at: START + 5_000,
    });
    const row = { stream: `lock/${lock_id}`, epoch: 1, ttl_ms: 5_000, expires_at: START + 5_000 };
    expect(kernel.projections.find.all("leases", { epoch: { from: 1 } })).toMatchObject([row]);
    const db = openForReading(kernel.path);
    const models = new ReadModels(db, kernel.registry);
    const told = models.snapshot("lock", (read) => [
      read.one("leases", { stream: row.stream }),
      read.all("leases", {}),
      read.page("leases", {}, {}).items,
      read.all("blobs", { size: undefined }),
    ]);
    db.close();
    expect(told.answer).toEqual([row, [row], [row], []] as never);
  });

  test("that another command touches without ending it goes on as it was", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    clock.now += 400;
    kernel.done("lock.hold", { lock_id, epoch: 1 }, { idempotency_key: "r1" });
    clock.now += 400;
    kernel.done("lock.polish", { lock_id });
    kernel.refused("lock.take", { lock_id, ttl_ms: 9_000 });
    expect(leases(kernel)).toMatchObject([{ epoch: 1, expires_at: 1_400, renewal_key: "r1" }]);
  });

  test("of a new epoch is a new one, also within one command: whole ttl, no renewal known", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    const held = toWrite("lock.hold", { lock_id, epoch: 1 });
    kernel.run(held);
    clock.now += 400;
    kernel.done("lock.retake", { lock_id, ttl_ms: 2_000 });
    expect(leases(kernel)).toMatchObject([{ epoch: 2, ttl_ms: 2_000, expires_at: 2_400, renewal_key: null }]);
    // The renewal before belongs to a lease that is over: it is decided anew, and its epoch is stale.
    expect(refusedOf(kernel.run(held).outcomes[0]![0]!)).toMatchObject({
      reason: "lock.stale",
      details: { epoch: 1, current: 2 },
    });
  });

  test("of a command that is refused, or rolled back with its batch, is as it was", () => {
    const { kernel, lock_id, take } = withLock();
    const before = dumpAll(kernel.path);
    const batch = [
      toWrite("lock.take", { lock_id, ttl_ms: 1_000 }),
      toWrite("lock.give", { lock_id, epoch: 7 }),
    ];
    kernel.executor.run([{ commands: batch, atomic: true }]);
    expect(dumpAll(kernel.path)).toEqual(before);
    take();
    kernel.refused("lock.give", { lock_id, epoch: 7 });
    expect(ends(kernel)).toEqual([1_000]);
    const back = [
      toWrite("lock.give", { lock_id, epoch: 1 }),
      toWrite("lock.take", { lock_id: lock_id, ttl_ms: 1 }),
      toWrite("lock.give", { lock_id, epoch: 1 }),
    ];
    kernel.executor.run([{ commands: back, atomic: true }]);
    expect(leases(kernel)).toMatchObject([{ epoch: 1, expires_at: 1_000 }]);
  });
});

describe("a renewal", () => {
  test("puts off the end by the ttl from now, and leaves nothing in the log and no key for ever", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    const { events, command_keys, locks: rows } = dumpAll(kernel.path);
    clock.now += 700;
    const receipt = kernel.done("lock.hold", { lock_id, epoch: 1 }, { idempotency_key: "r1" });
    expect(receipt).toMatchObject({
      events: [],
      version: 2,
      seq_global: 2,
      result: { epoch: 1, expires_at: "2026-11-22T10:00:01.700Z" },
    });
    expect(leases(kernel)).toMatchObject([{ epoch: 1, ttl_ms: 1_000, expires_at: 1_700, renewal_key: "r1" }]);
    expect(dumpAll(kernel.path)).toMatchObject({ events, command_keys, locks: rows } as Record<
      string,
      string
    >);
  });

  test("that is refused changes nothing and uses up no key", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    clock.now += 700;
    const key = { idempotency_key: "r" };
    expect(kernel.refused("lock.hold", { lock_id, epoch: 2 }, key)).toMatchObject({ reason: "lock.stale" });
    expect(ends(kernel)).toEqual([1_000]);
    kernel.done("lock.hold", { lock_id, epoch: 1 }, key);
    expect(ends(kernel)).toEqual([1_700]);
  });

  test("sent again is the same one, also after a restart; the one before it is forgotten", () => {
    const { kernel, lock_id, take, clock, open } = withLock();
    take();
    const [first, second] = ["r1", "r2"].map((idempotency_key) =>
      toWrite("lock.hold", { lock_id, epoch: 1 }, { idempotency_key }),
    ) as [WriteCommand, WriteCommand];
    const at = (engine: Engine, command: WriteCommand) => receiptOf(engine.run(command).outcomes[0]![0]!);
    clock.now += 100;
    const receipt = at(kernel, first);
    clock.now += 100;
    expect(at(kernel, first)).toEqual({ ...receipt, replayed: true });
    expect(ends(kernel)).toEqual([1_100]);
    const next = at(kernel, second);
    clock.now += 100;
    kernel.close();
    const reopened = open(undefined, kernel.path);
    expect(at(reopened, second)).toEqual({ ...next, replayed: true });
    expect(ends(reopened)).toEqual([1_200]);
    // No longer the last: what its sender gets is a renewal of its own, and harmless.
    expect(at(reopened, first)).toMatchObject({ replayed: false, result: { epoch: 1 } });
    expect(leases(reopened)).toMatchObject([{ expires_at: 1_300, renewal_key: "r1" }]);
  });

  test("has its key to itself: another command under it is refused, and it under another's", () => {
    const { kernel, lock_id, take } = withLock();
    take();
    const other = kernel.done("lock.create", { name: "two" }, { idempotency_key: "made" }).subject.id;
    taken(kernel, other);
    const key = { idempotency_key: "r1" };
    kernel.done("lock.hold", { lock_id, epoch: 1 }, key);
    const before = dumpAll(kernel.path);
    for (const [type, payload] of [
      ["lock.give", { lock_id, epoch: 1 }],
      ["lock.hold", { lock_id, epoch: 2 }],
      ["lock.hold", { lock_id: other, epoch: 1 }],
    ] as const)
      expect(kernel.refused(type, payload, key)).toMatchObject({
        code: "idempotency_key_reused",
        status: 422,
      });
    expect(kernel.refused("lock.hold", { lock_id, epoch: 1 }, { idempotency_key: "made" })).toMatchObject({
      code: "idempotency_key_reused",
    });
    expect(dumpAll(kernel.path)).toEqual(before);
    // Of another principal it is another key.
    kernel.done("lock.hold", { lock_id: other, epoch: 1 }, { ...key, principal: "uid:2" });
    expect(leases(kernel).map((row) => row.renewal_key)).toEqual(["r1", "r1"]);
  });

  test("of a lease whose row was lost gives it a new one: what holds it ends again", () => {
    const { kernel, clock, lock_id, take } = withLock();
    take();
    kernel.db.run("DELETE FROM leases");
    clock.now += 300;
    kernel.done("lock.hold", { lock_id, epoch: 1 }, { idempotency_key: "r1" });
    expect(leases(kernel)).toMatchObject([{ epoch: 1, ttl_ms: 1_000, expires_at: 1_300, renewal_key: "r1" }]);
    clock.now += 1_000;
    expect(expired(kernel)?.length).toBe(1);
  });

  test("of two leases in one batch, and twice of one, are each their own", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    const other = kernel.done("lock.create", { name: "two" }).subject.id;
    taken(kernel, other, 3_000);
    clock.now += 500;
    const [a, b] = [lock_id, other].map((id) => toWrite("lock.hold", { lock_id: id, epoch: 1 }));
    const { outcomes, events } = kernel.executor.run([{ commands: [a!, b!, a!, b!], atomic: true }]);
    expect(outcomes[0]!.map((outcome) => receiptOf(outcome).replayed)).toEqual([false, false, true, true]);
    expect(events).toEqual([]);
    expect(ends(kernel).toSorted()).toEqual([1_500, 3_500]);
  });

  test("that does more than renew is a bug: its retry would do it again", () => {
    const { kernel, lock_id, take } = withLock();
    take();
    const before = dumpAll(kernel.path);
    expect(kernel.refused("lock.overdo", { lock_id })).toMatchObject({ code: "internal" });
    expect(String(kernel.bugs[0]!.error)).toContain("lock.overdo does more than renew");
    expect(dumpAll(kernel.path)).toEqual(before);
  });
});

describe("a lease that has run out", () => {
  test("is ended by the daemon, in an event, exactly when its time is over", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    clock.now += 999;
    expect(expired(kernel)).toBeUndefined();
    clock.now += 1;
    expect(expired(kernel)).toEqual([`lock.lost lock/${lock_id}`]);
    expect(expired(kernel)).toBeUndefined();
    expect(leases(kernel)).toEqual([]);
    const { actor, causality, payload } = JSON.parse(kernel.reader.range(2, 3)[0]!.body);
    expect(actor).toEqual({ id: "mpd", kind: "system" });
    expect(causality.idempotency_key).toBe(`expire lock/${lock_id} 1`);
    expect(payload).toEqual({ epoch: 1 });
    // The one who held it hears that it is over; the next one gets the next epoch, which ends by itself as well.
    expect(kernel.refused("lock.hold", { lock_id, epoch: 1 })).toMatchObject({ reason: "lock.stale" });
    expect(take().epoch).toBe(2);
    clock.now += 1_000;
    expect(expired(kernel)).toEqual([`lock.lost lock/${lock_id}`]);
  });

  test("does not, as long as it is renewed in time", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    for (let time = 0; time < 10; time++) {
      clock.now += 999;
      expect(expired(kernel)).toBeUndefined();
      kernel.done("lock.hold", { lock_id, epoch: 1 });
    }
    clock.now += 1_000;
    expect(expired(kernel)).toHaveLength(1);
  });

  test("ends in the order of the ends, those that last longer stay", () => {
    const { kernel, clock } = withLock();
    const ids = [3_000, 1_000, 2_000, 9_000].map((ttl_ms, index) => {
      const { id } = kernel.done("lock.create", { name: `n-${index}` }).subject;
      taken(kernel, id, ttl_ms);
      return id;
    });
    clock.now += 5_000;
    expect(expired(kernel)).toEqual([1, 2, 0].map((index) => `lock.lost lock/${ids[index]}`));
    expect(leases(kernel).map((row) => row.stream)).toEqual([`lock/${ids[3]}`]);
    expect(kernel.executor.nextEnd()).toBe(START + 9_000);
  });

  test("of very many, some at a time", () => {
    const { kernel, clock } = withLock();
    const created = kernel.executor.run([
      {
        commands: Array.from({ length: 300 }, (_, n) => toWrite("lock.create", { name: `${n}` })),
        atomic: false,
      },
    ]);
    const ids = created.outcomes[0]!.map((outcome) => receiptOf(outcome).subject.id);
    kernel.executor.run([
      { commands: ids.map((lock_id) => toWrite("lock.take", { lock_id, ttl_ms: 1_000 })), atomic: false },
    ]);
    clock.now += 1_000;
    expect([expired(kernel)?.length, expired(kernel)?.length, expired(kernel)]).toEqual([256, 44, undefined]);
  });

  test("is not given back twice: the command for its end is of its epoch", () => {
    const { kernel, lock_id, take, clock } = withLock();
    take();
    clock.now += 1_000;
    kernel.done("lock.retake", { lock_id, ttl_ms: 1_000 });
    expect(expired(kernel)).toBeUndefined();
    expect(leases(kernel)).toMatchObject([{ epoch: 2, expires_at: 2_000 }]);
  });

  test("and cannot be ended, because a projection has stopped, is looked at again later, and the others end", () => {
    const first = withLock();
    const { clock, lock_id } = first;
    first.take();
    const { id: deposit_id } = first.kernel.done("deposit.leave", {}).subject;
    first.kernel.close();
    const kernel = first.open({ throwsAt: 1, version: 2 }, first.kernel.path);
    expect(kernel.projections.status().map((each) => each.status)).toEqual(["stopped", "serving"]);
    clock.now += 20_000;
    expect(expired(kernel)).toEqual([`deposit.cleared deposit/${deposit_id}`]);
    expect(leases(kernel)).toMatchObject([{ stream: `lock/${lock_id}`, epoch: 1, expires_at: 25_000 }]);
    expect(kernel.bugs).toEqual([]);
    clock.now += 4_999;
    expect(expired(kernel)).toBeUndefined();
    clock.now += 1;
    expect(expired(kernel)).toEqual([]);
    kernel.close();
    // Mended, it ends.
    const mended = first.open({ version: 3 }, first.kernel.path);
    clock.now += 5_000;
    expect(expired(mended)).toEqual([`lock.lost lock/${lock_id}`]);
  });

  test("and whose end ends nothing is no reason to try without a pause", () => {
    const { kernel, take, clock } = withLock({ flaws: { stubborn: true } });
    take();
    clock.now += 1_000;
    expect(expired(kernel)).toEqual([]);
    expect(ends(kernel)).toEqual([6_000]);
    clock.now += 5_000;
    // The command for its end is known by then, and answered from its key.
    expect(expired(kernel)).toEqual([]);
    expect(ends(kernel)).toEqual([11_000]);
  });

  test("while the database cannot be written stays as it is, and ends once it can", () => {
    const { kernel, take, clock, lock_id } = withLock();
    take();
    clock.now += 1_000;
    kernel.db.run("PRAGMA busy_timeout = 1");
    const other = engine({ path: kernel.path, aggregates: [lock(), deposit] });
    other.db.run("BEGIN IMMEDIATE");
    expect(kernel.executor.expire()).toMatchObject({ refused: "SQLITE_BUSY", events: [] });
    expect(kernel.executor.grace()).toBe("SQLITE_BUSY");
    other.db.run("ROLLBACK");
    other.close();
    expect(ends(kernel)).toEqual([1_000]);
    expect(expired(kernel)).toEqual([`lock.lost lock/${lock_id}`]);
    expect(kernel.executor.grace()).toBeUndefined();
    expect(kernel.bugs).toEqual([]);
  });

  test("replayed is the same with no clock: what is rebuilt, and what is folded", () => {
    const { kernel, clock, lock_id, open, take } = withLock();
    take();
    kernel.done("deposit.leave", {});
    clock.now += 20_000;
    expect(expired(kernel)).toHaveLength(2);
    expect(take()).toMatchObject({ epoch: 2 });
    const before = dumpAll(kernel.path);
    clock.now = 0;
    for (const name of ["lock", "deposit"]) kernel.projections.rebuild(name);
    kernel.finishRebuilds();
    expect(dumpAll(kernel.path)).toMatchObject({ locks: before.locks!, deposits: before.deposits! });
    kernel.close();
    const reopened = open(undefined, kernel.path);
    expect(reopened.refused("lock.take", { lock_id, ttl_ms: 1 })).toMatchObject({ details: { epoch: 2 } });
    expect(dumpAll(reopened.path)).toEqual(before);
  });
});

describe("grace", () => {
  test("gives every holder one whole ttl, nobody more, and is not for what nobody renews", () => {
    const { kernel, clock, take } = withLock();
    take();
    const long = kernel.done("lock.create", { name: "long" }).subject.id;
    taken(kernel, long, 60_000);
    kernel.done("deposit.leave", {});
    clock.now += 500;
    kernel.executor.grace();
    expect(ends(kernel).toSorted((a, b) => a - b)).toEqual([1_500, 10_000, 60_500]);
    // What was made or renewed while the clock was ahead lasts no longer than its ttl either.
    clock.now -= 100_000;
    kernel.executor.grace();
    expect(ends(kernel).toSorted((a, b) => a - b)).toEqual([-98_500, -89_500, -39_500]);
    clock.now += 200_000;
    kernel.executor.grace();
    expect(expired(kernel)?.map((each) => each.split(" ")[0])).toEqual(["deposit.cleared"]);
  });

  test("leaves nothing in the log, and the last renewal's key is known after it", () => {
    const { kernel, clock, lock_id, take } = withLock();
    take();
    const hold = toWrite("lock.hold", { lock_id, epoch: 1 });
    kernel.run(hold);
    const head = kernel.reader.head();
    clock.now += 900;
    kernel.executor.grace();
    expect(receiptOf(kernel.run(hold).outcomes[0]![0]!).replayed).toBe(true);
    expect([kernel.reader.head(), ends(kernel)]).toEqual([head, [1_900]]);
  });
});

describe("a command that may choose its subject", () => {
  test("takes the one it names, else the one that is chosen, and its receipt and key are of that", () => {
    const { kernel, lock_id } = withLock();
    const two = kernel.done("lock.create", { name: "two" }).subject.id;
    expect(kernel.done("lock.take", { lock_id, ttl_ms: 1_000 }).subject.id).toBe(lock_id);
    const command = toWrite("lock.take", { name: "two", ttl_ms: 1_000 });
    const receipt = receiptOf(kernel.run(command).outcomes[0]![0]!);
    expect(receipt).toMatchObject({ subject: { kind: "lock", id: two }, version: 2, result: { epoch: 1 } });
    // The retry is the same, although another would be chosen now, or none.
    expect(receiptOf(kernel.run(command).outcomes[0]![0]!)).toEqual({ ...receipt, replayed: true });
  });

  test("sees what the commands before it in the batch did: each is chosen once", () => {
    const { kernel } = withLock();
    for (let n = 0; n < 2; n++) kernel.done("lock.create", { name: "many" });
    const { outcomes } = kernel.run(
      ...[1, 2, 3].map(() => toWrite("lock.take", { name: "many", ttl_ms: 1_000 })),
    );
    const [a, b, c] = outcomes.flat();
    expect(receiptOf(a!).subject.id).not.toBe(receiptOf(b!).subject.id);
    expect(refusedOf(c!)).toMatchObject({ code: "conflict", reason: "lock.none_free" });
  });

  test("is refused where nothing can be chosen, uses up no key, and has its expected version compared", () => {
    const { kernel } = withLock();
    const before = dumpAll(kernel.path);
    const key = { idempotency_key: "k" };
    expect(kernel.refused("lock.take", { name: "nothing", ttl_ms: 1 }, key)).toMatchObject({
      code: "not_found",
      details: { kind: "lock", id: "nothing" },
    });
    expect(kernel.refused("lock.take", { name: "none", ttl_ms: 1 }, key)).toMatchObject({
      reason: "lock.none_free",
    });
    expect(
      kernel.refused("lock.take", { name: "one", ttl_ms: 1 }, { ...key, expected_version: 9 }),
    ).toMatchObject({ code: "expected_version_mismatch", details: { expected: 9, actual: 1 } });
    expect(dumpAll(kernel.path)).toEqual(before);
    expect(
      kernel.done("lock.take", { name: "one", ttl_ms: 1 }, { ...key, expected_version: 1 }).version,
    ).toBe(2);
  });
});

test("a log of any past is opened with its leases, each with one whole ttl of its own", () => {
  const path = `${tempFolder()}/kernel.db`;
  const { kernel, clock, lock_id, take } = withLock({ path });
  take(2_000);
  clock.now += 60_000;
  kernel.close();
  const { kernel: reopened } = {
    kernel: engine({ path, aggregates: [lock(), deposit], now: () => clock.now }),
  };
  // What the writer does first.
  reopened.executor.grace();
  expect(expired(reopened)).toBeUndefined();
  expect(reopened.executor.nextEnd()).toBe(START + 62_000);
  expect(reopened.done("lock.hold", { lock_id, epoch: 1 }).result).toMatchObject({ epoch: 1 });
});
