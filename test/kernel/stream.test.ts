/**
 * The guarantees of SPEC §5 at their source: hub, ring and feeds over a real log. The same guarantees through sockets
 * are in test/http.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { Filter } from "../../src/kernel/log.ts";
import { filterOf } from "../../src/kernel/page.ts";
import { isProblem, problem } from "../../src/kernel/problems.ts";
import { currentBody, type Feed, type Frame, Hub, readPage, resolveTypes } from "../../src/kernel/stream.ts";
import { waitFor } from "../support/binary.ts";
import { entry, newId, type Said, startLog, type TestLog } from "../support/log.ts";
import {
  chance,
  check,
  control,
  event,
  type Got,
  passing,
  truthOf,
  type Wanted,
} from "../support/streams.ts";

const logs: TestLog[] = [];
function log(options?: Parameters<typeof startLog>[0]): TestLog {
  const made = startLog(options);
  logs.push(made);
  return made;
}
afterEach(async () => {
  for (const each of logs.splice(0)) await each.close();
});

const STOP = problem("overloaded", "stopping");

function open(
  hub: Hub,
  after: number,
  more: { filter?: Filter; as_stored?: boolean; projections?: boolean } = {},
) {
  const feed = hub.open({ after, filter: {}, as_stored: false, projections: false, ...more });
  if (isProblem(feed)) throw new Error(feed.detail);
  return feed;
}

const gotten = (frames: readonly Frame[]): Got[] =>
  frames.map((frame) => (frame.kind === "event" ? event(frame.body) : control({ ...frame })));

/** Pull until there is nothing more. */
function drain(feed: Feed): Frame[] {
  const frames: Frame[] = [];
  do frames.push(...feed.next());
  while (!feed.idle && !feed.over);
  return frames;
}

const kinds = (frames: readonly { kind: string }[]) => frames.map(({ kind }) => kind);
const positions = (frames: readonly Frame[]) =>
  frames.flatMap((frame) => (frame.kind === "event" ? [frame.seq_global] : []));

test("every reader gets what its filter lets through, whatever its cursor, its pace and what is written meanwhile", () => {
  const { below, percent, pick, some } = chance("feeds");
  const { hub, reader, write } = log();
  const ledgers = Array.from({ length: 8 }, newId);
  const places = Array.from({ length: 3 }, newId);
  const command = (): Said[] => {
    const scope = { workspace_id: pick(places), ...(percent(50) && { project_id: pick(places) }) };
    if (percent(2))
      return [{ type: "parcel.sent", id: newId(), version: 2, payload: { to: ["x"] }, ...scope }];
    const id = pick(ledgers);
    const entries = Array.from({ length: 1 + below(6) }, () => entry("é".repeat(below(40)), id, scope));
    return percent(10) ? [...entries, { type: "ledger.closed", id, ...scope }] : entries;
  };
  const filter = (): Wanted => ({
    ...(percent(40) && {
      types: some(
        ["ledger.*", "ledger.entered", "ledger.closed", "parcel.*", "parcel.sent", "no.such", "*"],
        3,
      ),
    }),
    ...(percent(30) && { streams: some([...ledgers, newId()], 3).map((id) => `ledger/${id}`) }),
    ...(percent(25) && { workspace_id: pick([...places, newId()]) }),
    ...(percent(15) && { project_id: pick(places) }),
    ...(percent(15) && { subject_kind: pick(["ledger", "parcel", "nothing"]) }),
  });
  write(...Array.from({ length: 500 }, command));

  const readers: { feed: Feed; after: number; wanted: Wanted; pulls: number; got: Got[] }[] = [];
  for (let round = 0; round < 80; round++) {
    const after = below(hub.head + 1);
    const wanted = filter();
    const feed = open(hub, after, { filter: filterOf(hub, { ...wanted }) });
    // Percent of the rounds in which it reads. One that sleeps has read up to now.
    const pulls = pick([100, 30, 5, 0]);
    readers.push({ feed, after, wanted, pulls, got: pulls === 0 ? gotten(drain(feed)) : [] });
    write(...Array.from({ length: 1 + below(90) }, command));
    for (const each of readers) if (percent(each.pulls)) each.got.push(...gotten(each.feed.next()));
  }
  const all = truthOf(reader);
  expect(all.length).toBeGreaterThan(10_000);
  for (const { feed, after, wanted, got } of readers) {
    got.push(...gotten(drain(feed)));
    const expected = passing(all, after, wanted);
    expect([wanted, check(got, after, expected, all)]).toEqual([wanted, expected.length]);
    expect(got[0]!.kind).toBe("hello");
  }
  // What this is about did happen.
  const seen = readers.flatMap(({ got }) => kinds(got));
  for (const kind of ["fell_behind", "checkpoint", "caught_up"]) expect(seen).toContain(kind);
});

describe("a command's events", () => {
  const long = (text: string) => Array.from({ length: 2_500 }, () => entry(text));

  test("are not split when they are more than a page, from the ring or from the log", () => {
    const made = log();
    const live = open(made.hub, 0);
    drain(live);
    made.write([entry("a")], long("b"), [entry("c")], long("d"));
    const all = truthOf(made.reader);
    expect(all.length).toBe(5_002);
    const backlog = new Hub(made.reader, made.registry, made.log_id);
    for (const [feed, source] of [
      [live, "ring"],
      [open(made.hub, 1_200), "ring, from the middle of a command"],
      [open(backlog, 0), "log"],
      [open(backlog, 1_200), "log, from the middle of a command"],
    ] as const) {
      const { after } = feed.subscription;
      for (let frames = feed.next(); frames.length > 0; frames = feed.next()) {
        const last = positions(frames).at(-1);
        if (last !== undefined) expect([source, last, all[last - 1]!.end]).toEqual([source, last, true]);
      }
      expect(feed.idle).toBe(true);
      const again = gotten(drain(open(feed.hub, after)));
      expect([source, check(again, after, all.slice(after), all)]).toEqual([source, 5_002 - after]);
    }
  });

  test("are not split by a checkpoint when a filter lets none of them through", () => {
    const made = log();
    made.write(...Array.from({ length: 4 }, () => [...long("a"), entry("b")]));
    const all = truthOf(made.reader);
    for (const hub of [made.hub, new Hub(made.reader, made.registry, made.log_id)]) {
      const got = gotten(drain(open(hub, 0, { filter: { types: ["parcel.sent"] } })));
      expect(check(got, 0, [], all)).toBe(0);
      expect(kinds(got)).toEqual(["hello", ...Array.from({ length: 4 }, () => "checkpoint"), "caught_up"]);
    }
  });

  test("are not split where large ones fill a page early", () => {
    const made = log();
    const large = "x".repeat(40_000);
    const alone = () => Array.from({ length: 100 }, () => [entry(large)]);
    made.write(
      [entry("a")],
      Array.from({ length: 60 }, () => entry(large)),
      ...alone(),
    );
    const all = truthOf(made.reader);
    for (const hub of [made.hub, new Hub(made.reader, made.registry, made.log_id)]) {
      const feed = open(hub, 0);
      const pages: number[][] = [];
      for (let frames = feed.next(); frames.length > 0; frames = feed.next()) pages.push(positions(frames));
      expect(pages.length).toBeGreaterThan(2);
      expect(pages.map((page) => all[page.at(-1)! - 1]!.end)).not.toContain(false);
      expect(pages.flat()).toEqual(all.map(({ at }) => at));
    }
  });
});

describe("what is not durable or not announced", () => {
  test("is not in a stream and not in a page, and never comes when it is rolled back", () => {
    const { hub, reader, db, append, write } = log();
    write([entry("a")]);
    const feed = open(hub, 0);
    drain(feed);

    db.run("BEGIN IMMEDIATE");
    const lost = append([[entry("lost"), entry("lost too")]]);
    expect(lost.map(({ seq_global }) => seq_global)).toEqual([2, 3]);
    expect(drain(feed)).toEqual([]);
    expect(kinds(drain(open(hub, 0)))).toEqual(["hello", "event", "caught_up"]);
    expect(reader.range(0, 99).length).toBe(1);
    db.run("ROLLBACK");
    expect(drain(feed)).toEqual([]);
    expect(hub.open({ after: 2, filter: {}, as_stored: false, projections: false })).toMatchObject({
      code: "cursor_ahead",
    });
  });

  test("is left out even when the log has it already: a commit is announced whole", () => {
    const { hub, reader, registry, log_id, commit, write } = log();
    write([entry("a")]);
    // With the first event in its ring, and with nothing there, so that the log is read.
    const hubs = [hub, new Hub(reader, registry, log_id)];
    const feeds = hubs.map((each) => open(each, 0));
    feeds.forEach(drain);
    const commits = [commit([[entry("b"), entry("c"), entry("d")]]), commit([[entry("e"), entry("f")]])];
    feeds.push(...hubs.map((each) => open(each, 0)));
    expect(feeds.map((feed) => positions(drain(feed)))).toEqual([[], [], [1], [1]]);
    for (const events of commits) {
      for (const each of hubs) each.publish(events, []);
      for (const feed of feeds)
        expect(positions(drain(feed))).toEqual(events.map(({ seq_global }) => seq_global));
    }
  });
});

describe("a reader that does not read", () => {
  test("is told that it fell behind, gets every event from the log, and is told that it caught up", () => {
    const { hub, reader, write } = log();
    write([entry("a")]);
    const asleep = open(hub, 0);
    const awake = open(hub, 0);
    expect(kinds(drain(asleep))).toEqual(["hello", "event", "caught_up"]);
    drain(awake);
    for (let n = 0; n < 10; n++) {
      write(...Array.from({ length: 1_000 }, () => [entry("b")]));
      expect(kinds(drain(awake))).toEqual(Array.from({ length: 1_000 }, () => "event"));
    }
    const all = truthOf(reader);
    const frames = drain(asleep);
    expect(frames[0]).toEqual({ kind: "fell_behind", seq_global: 1, head: 10_001 });
    expect(frames.at(-1)).toEqual({ kind: "caught_up", seq_global: 10_001 });
    expect(positions(frames)).toEqual(all.slice(1).map(({ at }) => at));
  });

  test("holds about a page, however large the events are", () => {
    const { hub, reader, registry, log_id, write } = log();
    const large = "x".repeat(60_000);
    for (let n = 0; n < 4; n++) write(...Array.from({ length: 100 }, () => [entry(large)]));
    const size = (frames: Frame[]) =>
      frames.reduce((sum, frame) => sum + (frame.kind === "event" ? frame.body.length : 0), 0);
    for (const each of [hub, new Hub(reader, registry, log_id)]) {
      const feed = open(each, 0);
      let total = 0;
      while (!feed.idle) {
        const held = size(feed.next());
        // 1 MiB of characters, and a step of 64 of the largest events on top.
        expect(held).toBeLessThan((1 << 20) + 64 * 61_440);
        total += held;
      }
      expect(total).toBeGreaterThan(400 * 60_000);
    }
  });

  test("does not keep the ring from forgetting", () => {
    const { hub, write } = log();
    open(hub, 0).next();
    const places = (after: number) => hub.recent(after)?.map(({ row }) => row.seq_global);
    write(...Array.from({ length: 50 }, () => [entry("x".repeat(40_000))]));
    expect(places(0)?.length).toBeGreaterThan(0);
    write(...Array.from({ length: 50 }, () => [entry("x".repeat(60_000))]));
    expect(places(0)).toBeUndefined();
    expect(places(99)).toEqual([100]);
    for (let n = 0; n < 2; n++) write(...Array.from({ length: 4_500 }, () => [entry("y")]));
    expect(places(100)).toBeUndefined();
    expect(places(9_100 - 5_000)?.[0]).toBe(9_100 - 4_999);
  });
});

describe("control frames", () => {
  test("checkpoints tell a reader whose filter lets little through how far it is", () => {
    const { hub, reader, registry, log_id, write } = log();
    write([{ type: "parcel.sent", id: newId(), version: 2, payload: { to: [] } }]);
    for (let n = 0; n < 5; n++) write(...Array.from({ length: 1_000 }, () => [entry("a")]));
    const all = truthOf(reader);
    for (const each of [hub, new Hub(reader, registry, log_id)]) {
      const frames = drain(open(each, 0, { filter: { subject_kind: "parcel" } }));
      expect(check(gotten(frames), 0, all.slice(0, 1), all)).toBe(1);
      const told = frames.flatMap((frame) => (frame.kind === "checkpoint" ? [frame.seq_global] : []));
      expect(told.length).toBeGreaterThanOrEqual(4);
    }
    // Live too: a thousand events that do not pass, one at a time.
    const live = open(hub, hub.head, { filter: { subject_kind: "parcel" } });
    drain(live);
    const frames: Frame[] = [];
    for (let n = 0; n < 20; n++) {
      write(...Array.from({ length: 100 }, () => [entry("b")]));
      frames.push(...drain(live));
    }
    expect(frames).toEqual([
      { kind: "checkpoint", seq_global: 6_001 },
      { kind: "checkpoint", seq_global: 7_001 },
    ]);
  });

  test("a heartbeat comes to who is up to date, names where that is, and comes after the events before it", async () => {
    const { hub, write } = log({ heartbeat_ms: 5 });
    write([entry("a")]);
    const live = open(hub, 0);
    drain(live);
    const behind = open(hub, 0);
    behind.next();
    for (let n = 0; n < 2; n++) {
      write(...Array.from({ length: 6_000 }, () => [entry("b")]));
      drain(live);
    }
    const beats: Frame[] = [];
    await waitFor(
      () => {
        beats.push(...live.next());
        return beats.length >= 3;
      },
      { what: "three heartbeats" },
    );
    expect(beats[0]).toEqual({ kind: "heartbeat", head: 12_001 });
    expect(new Set(kinds(beats))).toEqual(new Set(["heartbeat"]));
    // It was live when the beat was due and is not any more: what it has not read comes first.
    const frames = drain(behind);
    expect(frames[0]!.kind).toBe("fell_behind");
    expect(kinds(frames).indexOf("caught_up")).toBe(12_001);
    expect(kinds(frames).indexOf("heartbeat")).toBe(12_002);
  });

  test("a beat wakes an idle reader, once", async () => {
    const { hub } = log({ heartbeat_ms: 5 });
    const feed = open(hub, 0);
    drain(feed);
    let woken = 0;
    feed.onWake(() => {
      woken += 1;
    });
    await waitFor(() => woken > 0, { what: "a wake" });
    expect(feed.idle).toBe(false);
    await waitFor(() => kinds(feed.next()).includes("heartbeat"), { what: "a heartbeat" });
    expect(woken).toBe(1);
  });

  test("projection_updated comes on request only, after the events, once for each projection", () => {
    const { hub, write } = log();
    const asked = open(hub, 0, { projections: true, filter: { types: ["parcel.sent"] } });
    const other = open(hub, 0);
    drain(asked);
    drain(other);
    const parcel: Said = { type: "parcel.sent", id: newId(), version: 2, payload: { to: [] } };
    write([entry("a")], [parcel], [entry("b")]);
    expect(drain(asked)).toMatchObject([
      { kind: "event", seq_global: 2 },
      { kind: "projection_updated", name: "ledger", as_of_seq: 3 },
      { kind: "projection_updated", name: "parcel", as_of_seq: 3 },
    ]);
    expect(kinds(drain(other))).toEqual(["event", "event", "event"]);
    expect(drain(asked)).toEqual([]);
  });

  test("end says why, and where to go on: after what was given out", () => {
    const { hub, reader, write } = log();
    write(...Array.from({ length: 3_000 }, () => [entry("a")]));
    const feeds = [open(hub, 0), open(hub, 0), open(hub, 3_000)];
    feeds[1]!.next();
    feeds[2]!.next();
    hub.close(STOP);
    expect(feeds.map((feed) => drain(feed).at(-1))).toEqual([
      { kind: "end", problem: STOP, resume_after: 0 },
      { kind: "end", problem: STOP, resume_after: 1_000 },
      { kind: "end", problem: STOP, resume_after: 3_000 },
    ]);
    expect(feeds.map((feed) => feed.over)).toEqual([true, true, true]);
    expect(feeds.flatMap((feed) => feed.next())).toEqual([]);
    expect(hub.subscriptions).toBe(0);
    expect(hub.open({ after: 0, filter: {}, as_stored: false, projections: false })).toMatchObject({
      code: "overloaded",
    });
    expect(reader.head()).toBe(3_000);
  });
});

describe("the hub", () => {
  test("refuses a cursor beyond the head, and one of another log, at once", () => {
    const { hub, log_id, write } = log();
    write([entry("a")]);
    expect(isProblem(hub.open({ after: 2, filter: {}, as_stored: false, projections: false }))).toBe(true);
    expect(hub.checkCursor(1)).toBeUndefined();
    expect(hub.checkCursor(1, log_id)).toBeUndefined();
    expect(hub.checkCursor(2)).toMatchObject({
      code: "cursor_ahead",
      details: { head: 1, after: 2, log_id },
    });
    expect(hub.checkCursor(0, newId())).toMatchObject({ code: "cursor_foreign", details: { log_id } });
  });

  test("lets wait for a position, for a time, and not longer than it lives", async () => {
    const { hub, write } = log();
    expect(await hub.reached(0, 0)).toBe(true);
    expect(await hub.reached(1, 1)).toBe(false);
    const waits = [hub.reached(2, 60_000), hub.reached(3, 60_000)];
    write([entry("a"), entry("b")]);
    expect(await waits[0]).toBe(true);
    hub.close(STOP);
    expect(await waits[1]).toBe(false);
    expect(await hub.reached(3, 60_000)).toBe(false);
  });

  test("gives one turn for each round of the event loop, in order", async () => {
    const { hub } = log();
    const order: string[] = [];
    const turns = [1, 2, 3].map((n) => hub.turn().then(() => order.push(`turn ${n}`)));
    const rounds = (async () => {
      for (let n = 1; n <= 3; n++) {
        await new Promise((resolve) => setImmediate(resolve));
        order.push(`round ${n}`);
      }
    })();
    await Promise.all([...turns, rounds]);
    expect(order).toEqual(["turn 1", "round 1", "turn 2", "round 2", "turn 3", "round 3"]);
  });

  test("wakes an idle reader at a commit, and makes one that is behind wait for its turn", async () => {
    const { hub, write } = log();
    const feed = open(hub, 0);
    await feed.ready();
    drain(feed);
    let ready = 0;
    const wait = () => feed.ready().then(() => (ready += 1));
    const idle = wait();
    await hub.turn();
    expect(ready).toBe(0);
    write(...Array.from({ length: 2_000 }, () => [entry("a")]));
    await idle;
    feed.next();
    expect(feed.idle).toBe(false);
    const turn = wait();
    expect(ready).toBe(1);
    await turn;
    feed.close();
    expect(hub.subscriptions).toBe(0);
    expect(feed.next()).toEqual([]);
  });
});

describe("old versions", () => {
  const old = (to: string): Said => ({ type: "parcel.sent", id: newId(), version: 1, payload: { to } });

  test("come in the current version, canonical, or as they are stored when that is asked for", () => {
    const { hub, reader, registry, log_id, write } = log();
    write([old("home")], [{ ...old(""), version: 2, payload: { to: ["a", "b"] } }]);
    const stored = reader.range(0, 2);
    const fresh = new Hub(reader, registry, log_id);
    const bodies = (as_stored: boolean, from = hub) =>
      drain(open(from, 0, { as_stored })).flatMap((frame) => (frame.kind === "event" ? [frame.body] : []));
    expect(bodies(true)).toEqual(stored.map(({ body }) => body));
    expect(bodies(true, fresh)).toEqual(bodies(true));
    expect(bodies(false, fresh)).toEqual(bodies(false));
    expect(bodies(false)[1]).toBe(stored[1]!.body);
    expect(bodies(false)[0]).toBe(
      stored[0]!.body
        .replace('"payload":{"to":"home"}', '"payload":{"to":["home"]}')
        .replace('"schema_version":1', '"schema_version":2'),
    );
    expect(currentBody(registry, stored[1]!)).toBe(stored[1]!.body);
  });

  test("that cannot be converted throw, and the reader has not moved on", () => {
    const { hub, write } = log();
    write([entry("a")], [old("nowhere")], [entry("b")]);
    const feed = open(hub, 1);
    expect(() => feed.next()).toThrow("a bug in an upcaster");
    expect(() => feed.next()).toThrow("a bug in an upcaster");
    feed.end(STOP);
    expect(feed.next()).toEqual([{ kind: "end", problem: STOP, resume_after: 1 }]);
  });
});

test("readPage stops at the limit, at the space and at the end, and says how far it looked", () => {
  const { reader, write } = log();
  write(...Array.from({ length: 300 }, (_, n) => [entry(`${n}`), entry("x".repeat(1_000))]));
  const page = (...args: [number, number, Filter?, number?, number?]) => {
    const [after, upTo, filter = {}, limit, chars] = args;
    const found = readPage(reader, "range", after, upTo, filter, limit, chars);
    return [found.lines.length, found.lines[0]?.seq_global, found.lines.at(-1)?.seq_global, found.upTo];
  };
  expect(readPage(reader, "texts", 0, 600, {}).lines).toEqual(
    readPage(reader, "range", 0, 600, {}).lines.map(({ seq_global, body }) => ({ seq_global, body })),
  );
  expect(page(0, 600)).toEqual([600, 1, 600, 600]);
  expect(page(0, 600, {}, 7)).toEqual([7, 1, 7, 7]);
  expect(page(0, 600, {}, 64)).toEqual([64, 1, 64, 64]);
  expect(page(0, 600, {}, 65)).toEqual([65, 1, 65, 65]);
  expect(page(5, 6, {}, 100)).toEqual([1, 6, 6, 6]);
  expect(page(6, 6)).toEqual([0, undefined, undefined, 6]);
  expect(page(0, 600, { types: ["no.such"] })).toEqual([0, undefined, undefined, 600]);
  // The space is used up in the middle of a command: its end comes along.
  expect(page(1, 600, {}, 1_000, 10)).toEqual([65, 2, 66, 66]);
});

test("type globs become the types that there are; what is not known stays as it is", () => {
  const { registry } = log();
  expect(resolveTypes(registry, undefined)).toBeUndefined();
  expect(resolveTypes(registry, ["ledger.entered", "*"])).toBeUndefined();
  expect(resolveTypes(registry, ["ledger.*", "parcel.sent"])).toEqual([
    "ledger.entered",
    "ledger.closed",
    "parcel.sent",
  ]);
  expect(resolveTypes(registry, ["ledge.*"])).toEqual([]);
  expect(resolveTypes(registry, ["no.such"])).toEqual(["no.such"]);
});
