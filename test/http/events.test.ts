/**
 * `GET /v1/events` through real Unix sockets (SPEC §5): pages, NDJSON and server-sent events, over a log whose commands
 * make several events and which has old versions. What needs a whole daemon is in stream.test.ts.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { waitFor } from "../support/binary.ts";
import { entry, newId, type Said, startLog, type TestLog } from "../support/log.ts";
import {
  chance,
  check,
  type Form,
  follow,
  passing,
  query,
  Refused,
  type Stream,
  truthOf,
  type Wanted,
  wire,
} from "../support/streams.ts";
import { ask, expectProblem, expectRefused, type Json } from "./api.ts";

const open: { close(): unknown }[] = [];
function log(options?: Parameters<typeof startLog>[0]): TestLog {
  const made = startLog(options);
  open.push(made);
  return made;
}
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.close();
});

/** A stream that is hung up at the end of the test. */
async function following(...args: Parameters<typeof follow>): Promise<Stream> {
  const stream = await follow(...args);
  open.push(stream);
  return stream;
}

const JSON_TYPE = "application/json";
const NDJSON = "application/x-ndjson";
const SSE = "text/event-stream";
const FORMS = ["ndjson", "frames", "sse"] as const;

interface Page {
  readonly as_of_seq: number;
  readonly log_id: string;
  readonly items: readonly Json[];
  readonly next: string | null;
}

const page = async (socket: string, params: object): Promise<Page> => {
  const reply = await ask(socket, "GET", `/v1/events?${query(params)}`);
  if (reply.status !== 200) throw new Refused(reply.status, reply.text);
  return reply.json as unknown as Page;
};

/** Follow `next` to the end. */
async function pages(
  socket: string,
  { after, ...params }: { after?: number; [name: string]: unknown },
): Promise<Page[]> {
  const found = [await page(socket, { ...params, ...(after !== undefined && { after }) })];
  for (let next = found[0]!.next; next !== null; next = found.at(-1)!.next)
    found.push(await page(socket, { ...params, cursor: next }));
  return found;
}

const seqs = (items: readonly Json[]) => items.map((item) => item.seq_global as number);
const frames = (stream: Stream, kind: string) => stream.got.filter((each) => each.kind === kind);
const came = (stream: Stream, kind: string, count = 1) =>
  waitFor(() => frames(stream, kind).length >= count, { what: `${count} × ${kind}` });

/** What a problem over a raw connection says. */
async function refusal(stream: Promise<unknown>): Promise<Json> {
  const found = await stream.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(found instanceof Refused)) throw new Error("it was not refused", { cause: found });
  return JSON.parse(found.body) as Json;
}

/** A log with several ledgers in several workspaces, commands of several events, and a parcel here and there. */
function filled(made: TestLog, commands: number, { below, percent, pick }: ReturnType<typeof chance>) {
  const ledgers = Array.from({ length: 6 }, newId);
  const workspaces = Array.from({ length: 3 }, newId);
  const projects = Array.from({ length: 3 }, newId);
  made.write(
    ...Array.from({ length: commands }, (): Said[] => {
      const scope = { workspace_id: pick(workspaces), ...(percent(50) && { project_id: pick(projects) }) };
      if (percent(5))
        return [{ type: "parcel.sent", id: newId(), version: 2, payload: { to: ["ü"] }, ...scope }];
      const id = pick(ledgers);
      const entries = Array.from({ length: 1 + below(4) }, () => entry("日本".repeat(below(20)), id, scope));
      return percent(20) ? [...entries, { type: "ledger.closed", id, ...scope }] : entries;
    }),
  );
  return { ledgers, workspaces, projects };
}

describe("pages", () => {
  test("through the whole log give the log, whatever the limit, and its bytes", async () => {
    const made = log();
    const random = chance("pages");
    filled(made, 400, random);
    const socket = made.listen();
    const all = truthOf(made.reader);
    const blobs = made.db
      .query<{ body: Uint8Array }, []>("SELECT body FROM events ORDER BY seq_global")
      .all()
      .map(({ body }) => new Bun.CryptoHasher("sha256").update(body).digest("hex"));
    for (const limit of [1 + random.below(9), 10 + random.below(200), 10_000]) {
      const lines: string[] = [];
      const items: Json[] = [];
      for (let next: string | null = "0"; next !== null; ) {
        const params = { cursor: next, limit };
        const json: Page = await page(socket, params);
        const text = await ask(socket, "GET", `/v1/events?${query(params)}`, undefined, {
          accept: NDJSON,
        });
        expect(text.headers.get("content-type")).toBe("application/x-ndjson");
        expect(json).toMatchObject({ as_of_seq: all.length, log_id: made.log_id });
        expect(json.items.length).toBeLessThanOrEqual(limit);
        lines.push(...text.text.split("\n").slice(0, -1));
        items.push(...json.items);
        next = json.next;
        expect(text.headers.get("mp-next")).toBe(next);
      }
      expect(lines.map((line) => new Bun.CryptoHasher("sha256").update(line).digest("hex"))).toEqual(blobs);
      expect(seqs(items)).toEqual(all.map(({ at }) => at));
    }
    // The object has the same bytes in it.
    const whole = await ask(socket, "GET", "/v1/events?limit=10000");
    const bodies = all.map(({ body }) => body).join(",");
    expect(whole.text).toBe(
      `{"as_of_seq":${all.length},"log_id":"${made.log_id}","items":[${bodies}],"next":null}`,
    );
    expect(whole.headers.get("content-type")).toBe("application/json");
  });

  test("have what the filters let through: AND between kinds, OR within", async () => {
    const made = log();
    const random = chance("filters");
    const { ledgers, workspaces, projects } = filled(made, 250, random);
    const socket = made.listen();
    const all = truthOf(made.reader);
    const { pick, some } = random;
    const streams = ledgers.map((id) => `ledger/${id}`);
    const filters: Wanted[] = [
      {},
      { types: ["*"] },
      { types: ["ledger.*"] },
      { types: ["ledger.closed", "parcel.*"] },
      { streams: streams.slice(0, 2) },
      { streams: [`ledger/${newId()}`] },
      { workspace_id: workspaces[0]! },
      { project_id: projects[0]! },
      { workspace_id: newId() },
      { subject_kind: "parcel" },
      { subject_kind: "nothing" },
      { types: ["ledger.entered"], streams: some(streams, 3), workspace_id: pick(workspaces) },
      { types: ["parcel.*"], workspace_id: pick(workspaces), project_id: pick(projects) },
      { types: ["parcel.sent"], subject_kind: "ledger" },
      {
        types: ["*"],
        streams,
        workspace_id: pick(workspaces),
        project_id: pick(projects),
        subject_kind: "ledger",
      },
    ];
    for (const filter of filters) {
      const after = random.below(all.length / 2);
      const wanted = passing(all, after, filter);
      const found = await pages(socket, { ...filter, after, limit: 50 });
      expect([filter, seqs(found.flatMap(({ items }) => items))]).toEqual([
        filter,
        wanted.map(({ at }) => at),
      ]);
      // Lists may also stand in one parameter, with commas.
      const joined = Object.fromEntries(
        Object.entries(filter).map(([name, value]) => [name, Array.isArray(value) ? value.join(",") : value]),
      );
      expect(seqs((await page(socket, { ...joined, after, limit: 10_000 })).items)).toEqual(
        wanted.map(({ at }) => at),
      );
    }
  });

  test("look at so many positions only, so that no filter keeps the daemon busy: next says there is more", async () => {
    const made = log();
    for (let n = 0; n < 9; n++)
      made.write(
        Array.from({ length: 5_000 }, () => entry("a")),
        [{ type: "parcel.sent", id: newId(), version: 2, payload: { to: [] } }],
      );
    const socket = made.listen();
    const found = await pages(socket, { subject_kind: "parcel", limit: 100 });
    expect(found.map(({ items }) => items.length)).toEqual([3, 4, 2]);
    expect(found.map(({ next }) => next)).toEqual(["20000", "40000", null]);
    expect(seqs(found.flatMap(({ items }) => items))).toEqual(
      Array.from({ length: 9 }, (_, n) => (n + 1) * 5_001),
    );
  });

  test("end early where events are large", async () => {
    const made = log();
    const large = "x".repeat(60_000);
    for (let n = 0; n < 4; n++) made.write(...Array.from({ length: 100 }, () => [entry(large)]));
    const found = await pages(made.listen(), { limit: 10_000 });
    expect(seqs(found.flatMap(({ items }) => items))).toEqual(Array.from({ length: 400 }, (_, n) => n + 1));
    expect(found.length).toBe(2);
  });

  test("start at a time", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a"), entry("b")]);
    const first = made.db
      .query<{ t: string }, []>("SELECT body ->> 'timestamp' AS t FROM events LIMIT 1")
      .get()!.t;
    const since = (ms: number) => new Date(Date.parse(first) + ms).toISOString();
    const found = async (ms: number) => seqs((await page(socket, { since: since(ms) })).items);
    expect(await found(-60_000)).toEqual([1, 2]);
    expect(await found(60_000)).toEqual([]);
    // The log has more than was announced: a time behind it all is not a cursor beyond the head.
    made.commit([[entry("c")]]);
    expect(await page(socket, { since: since(60_000) })).toMatchObject({
      as_of_seq: 2,
      items: [],
      next: null,
    });
  });

  test("wait for min_seq", async () => {
    const made = log();
    const socket = made.listen();
    const waiting = page(socket, { min_seq: 2 });
    made.write([entry("a")]);
    made.write([entry("b")]);
    expect(seqs((await waiting).items)).toEqual([1, 2]);
  });
});

describe("what is sent is what was asked for", () => {
  test("by Accept", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a")]);
    for (const [accept, expected] of [
      [undefined, JSON_TYPE],
      ["*/*", JSON_TYPE],
      ["application/*", JSON_TYPE],
      [JSON_TYPE, JSON_TYPE],
      [NDJSON, NDJSON],
      ["APPLICATION/X-NDJSON; charset=utf-8", NDJSON],
      [`text/html, ${NDJSON}, ${JSON_TYPE}`, NDJSON],
      [`${NDJSON};q=0.5, ${JSON_TYPE}`, JSON_TYPE],
      [`${JSON_TYPE};q=0, */*;q=0.1`, NDJSON],
      [`application/*, ${JSON_TYPE};q=0.3`, NDJSON],
      ["*/*;q=0", undefined],
      [`${NDJSON};q=0.9, */*;q=0.1`, NDJSON],
      [SSE, undefined],
      ["text/*", undefined],
      ["image/png", undefined],
    ] as const) {
      const reply = await ask(socket, "GET", "/v1/events", undefined, accept === undefined ? {} : { accept });
      if (expected === undefined) expectRefused(reply, "unsupported_media_type");
      else expect([accept, reply.headers.get("content-type")]).toEqual([accept, expected]);
    }
    for (const [accept, expected] of [
      ["*/*", NDJSON],
      ["application/*", NDJSON],
      [NDJSON, NDJSON],
      [SSE, SSE],
      ["text/*", SSE],
      [`${JSON_TYPE}, ${SSE}`, SSE],
      [`${NDJSON};q=0.1, ${SSE};q=0.2`, SSE],
      [JSON_TYPE, undefined],
    ] as const) {
      const stream = following(socket, "ndjson", { after: 0 }, { accept });
      if (expected === undefined) expectProblem(await refusal(stream), "unsupported_media_type");
      else expect((await stream).head).toContain(`content-type: ${expected}`);
    }
  });

  test("or refused", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a")]);
    for (const [params, ...pointers] of [
      ["limit=0", "/limit"],
      ["limit=10001", "/limit"],
      ["limit=x", "/limit"],
      ["after=-1", "/after"],
      ["after=1.5", "/after"],
      ["after=9007199254740992", "/after"],
      ["since=yesterday", "/since"],
      ["cursor=x", "/cursor"],
      ["after=0&since=2020-01-01T00:00:00.000Z", "/after", "/since"],
      ["after=0&cursor=0&follow=true", "/after", "/cursor"],
      ["types=Ledger", "/types/0"],
      ["types=ledger.*,ledger.clsed&types=no.*", "/types/1", "/types/2"],
      ["types=no.such&follow=true", "/types/0"],
      ["types=ledger.*&types=*.*", "/types/1"],
      ["types=", "/types/0"],
      ["streams=ledger", "/streams/0"],
      ["workspace_id=1", "/workspace_id"],
      ["subject_kind=A", "/subject_kind"],
      ["follow=1", "/follow"],
      ["follow=true&limit=5", "/limit"],
      ["color=red", "/color"],
    ] as const) {
      const reply = await ask(socket, "GET", `/v1/events?${params}`);
      const { errors } = expectRefused(reply, "invalid_schema");
      expect([params, errors?.map((error) => error.pointer)]).toEqual([params, pointers]);
    }
    for (const form of FORMS) {
      const refused = (params: object) => refusal(follow(socket, form, params));
      expectProblem(await refused({ after: 2 }), "cursor_ahead");
      expectProblem(await refused({ after: 0, log_id: newId() }), "cursor_foreign");
    }
    const last = (id: string, params: object = {}) =>
      refusal(follow(socket, "sse", params, { "last-event-id": id }));
    expectProblem(await last("x"), "invalid_schema");
    expectProblem(await last("2"), "cursor_ahead");
    // It takes the place of the start that the URL names.
    expectProblem(await last("2", { after: 0 }), "cursor_ahead");
    expectProblem(await last("2", { since: "2020-01-01T00:00:00.000Z" }), "cursor_ahead");
    expectProblem(await last("1", { log_id: newId() }), "cursor_foreign");
    expect(made.hub.subscriptions).toBe(0);
  });
});

describe("a live stream", () => {
  test("goes from the backlog into what is written meanwhile, in every form, with nothing lost or twice", async () => {
    const made = log();
    const random = chance("live");
    const { ledgers } = filled(made, 800, random);
    const socket = made.listen();
    const filter = { streams: ledgers.slice(0, 2).map((id) => `ledger/${id}`) };
    const streams: { stream: Stream; form: Form; after: number; wanted: Wanted }[] = [];
    for (let round = 0; round < 8; round++)
      for (const form of FORMS) {
        const after = random.below(made.hub.head);
        const wanted = round % 2 ? filter : {};
        streams.push({ stream: await following(socket, form, { after, ...wanted }), form, after, wanted });
        made.write(...Array.from({ length: 20 }, () => [entry("b", ledgers[0]), entry("c", ledgers[5])]));
      }
    const all = truthOf(made.reader);
    for (const { stream, form, after, wanted } of streams) {
      const expected = passing(all, after, wanted);
      await came(stream, "event", expected.length);
      expect(check(stream.got, after, expected, all)).toBe(expected.length);
      expect([form, stream.got[0]!.kind]).toEqual([form, form === "ndjson" ? "event" : "hello"]);
      expect([form, frames(stream, "caught_up").length > 0]).toEqual([form, form !== "ndjson"]);
    }
  });

  test("has server-sent events with id, event and data, and resumes at Last-Event-ID", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a\nb")], [entry("c")]);
    const response = await fetch("http://mp/v1/events?follow=true", {
      unix: socket,
      headers: { accept: "text/event-stream" },
    });
    expect(response.headers.get("cache-control")).toBe("no-store");
    const [first, second] = made.reader.range(0, 2).map(({ body }) => body);
    const hello = JSON.stringify({ kind: "hello", log_id: made.log_id, oldest: 1, head: 2 });
    const whole = [
      `event: hello\ndata: ${hello}\n\n`,
      `id: 1\nevent: event\ndata: ${first}\n\n`,
      `id: 2\nevent: event\ndata: ${second}\n\n`,
      `event: caught_up\ndata: {"kind":"caught_up","seq_global":2}\n\n`,
    ].join("");
    let text = "";
    const decoder = new TextDecoder();
    for await (const part of response.body!) {
      text += decoder.decode(part);
      if (text.length >= whole.length) break;
    }
    expect(text).toBe(whole);

    // It wins over `after`, which stays in the URL of a browser that comes back.
    const resumed = await following(socket, "sse", { after: 0 }, { "last-event-id": "1" });
    await came(resumed, "caught_up");
    expect(frames(resumed, "event").map(({ at }) => at)).toEqual([2]);
    const fresh = await following(socket, "sse", { after: 1 }, { "last-event-id": "" });
    await came(fresh, "caught_up");
    expect(frames(fresh, "event").map(({ at }) => at)).toEqual([2]);
  });

  test("names checkpoints by id in server-sent events, so that who comes back need not start over", async () => {
    const made = log();
    const socket = made.listen();
    made.write(...Array.from({ length: 3_000 }, () => [entry("a")]));
    const stream = await following(socket, "sse", { subject_kind: "parcel" });
    await came(stream, "checkpoint", 2);
    expect(
      frames(stream, "checkpoint")
        .map(({ at }) => at)
        .slice(0, 2),
    ).toEqual([1_000, 2_000]);
  });

  test("never splits the events of a command by a control frame", async () => {
    const made = log();
    const socket = made.listen();
    const long = () => Array.from({ length: 1_700 }, () => entry("a"));
    made.write(long(), [entry("b")], long(), long());
    const streams = await Promise.all([
      following(socket, "frames", {}),
      following(socket, "sse", { after: 900 }),
      following(socket, "frames", { subject_kind: "parcel" }),
    ]);
    made.write(long(), long());
    const all = truthOf(made.reader);
    for (const [index, stream] of streams.entries()) {
      const [after, expected] = [
        [0, all],
        [900, all.slice(900)],
        [0, []],
      ][index] as [number, typeof all];
      await waitFor(() => stream.got.some(({ kind, at }) => kind !== "hello" && at === all.length), {
        what: "the end of the log",
      });
      expect(check(stream.got, after, expected, all)).toBe(expected.length);
    }
    expect(frames(streams[2]!, "checkpoint").length).toBeGreaterThanOrEqual(4);
  });

  test("shows an event when its commit is announced and not before", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a")]);
    const streams = await Promise.all(FORMS.map((form) => following(socket, form, {})));
    const committed = made.commit([[entry("b"), entry("c")]]);
    const late = await following(socket, "frames", { after: 0 });
    await came(late, "caught_up");
    expect(frames(late, "caught_up")[0]!.at).toBe(1);
    expect(seqs((await page(socket, {})).items)).toEqual([1]);
    made.publish(committed);
    for (const stream of [...streams, late]) {
      await came(stream, "event", 3);
      expect(frames(stream, "event").map(({ at }) => at)).toEqual([1, 2, 3]);
    }
  });

  test("has heartbeats while nothing happens, where frames are sent, and nothing in plain NDJSON", async () => {
    const made = log({ heartbeat_ms: 5 });
    const socket = made.listen();
    made.write([entry("a")]);
    const [plain, ...framed] = await Promise.all(FORMS.map((form) => following(socket, form, {})));
    for (const stream of framed) {
      await came(stream, "heartbeat", 3);
      expect(frames(stream, "heartbeat")[0]!.frame).toEqual({ kind: "heartbeat", head: 1 });
    }
    expect(plain!.got.map(({ kind }) => kind)).toEqual(["event"]);
    made.write([entry("b"), entry("c")]);
    const all = truthOf(made.reader);
    for (const stream of framed) {
      await waitFor(() => frames(stream, "heartbeat").at(-1)!.at === 3, {
        what: "a heartbeat at the new head",
      });
      expect(check(stream.got, 0, all, all)).toBe(3);
    }
  });

  test("gives old versions converted, or as they are stored", async () => {
    const made = log();
    const socket = made.listen();
    made.write([{ type: "parcel.sent", id: newId(), version: 1, payload: { to: "home" } }]);
    const stored = made.reader.range(0, 1)[0]!.body;
    const converted = stored
      .replace('"to":"home"', '"to":["home"]')
      .replace('"schema_version":1', '"schema_version":2');
    expect(converted).not.toBe(stored);
    const { event_id } = JSON.parse(stored) as { event_id: string };
    for (const [params, expected] of [
      ["", converted],
      ["as_stored=true", stored],
      ["as_stored=false", converted],
    ] as const) {
      const text = async (path: string, accept: string) =>
        (await ask(socket, "GET", `${path}?${params}`, undefined, { accept })).text;
      expect(await text("/v1/events", NDJSON)).toBe(`${expected}\n`);
      expect(await text("/v1/events", JSON_TYPE)).toContain(`"items":[${expected}]`);
      expect(await text(`/v1/events/${event_id}`, "*/*")).toBe(expected);
      for (const form of FORMS) {
        const stream = await following(socket, form, Object.fromEntries(new URLSearchParams(params)));
        await came(stream, "event");
        expect(stream.got.find(({ kind }) => kind === "event")!.hash).toBe(Bun.hash(expected));
      }
    }
  });

  test("that meets a bug ends with a problem, and the daemon goes on", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a")]);
    const streams = await Promise.all(FORMS.map((form) => following(socket, form, {})));
    for (const stream of streams) await came(stream, "event");
    made.write([{ type: "parcel.sent", id: newId(), version: 1, payload: { to: "nowhere" } }]);
    for (const stream of streams) await waitFor(() => stream.complete, { what: "the end of the stream" });
    for (const stream of streams.slice(1)) {
      const { problem, resume_after } = stream.got.at(-1)!.frame as { problem: Json; resume_after: number };
      expectProblem(problem, "internal");
      expect(resume_after).toBe(1);
    }
    expect(made.bugs.map(String)).toEqual(FORMS.map(() => "Error: a bug in an upcaster"));
    expect(seqs((await page(socket, { as_stored: true })).items)).toEqual([1, 2]);
    expect(made.hub.subscriptions).toBe(0);
  });

  test("ends with the daemon: where to go on is in the last frame", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a")]);
    const streams = await Promise.all(FORMS.map((form) => following(socket, form, {})));
    for (const stream of streams) await came(stream, "event");
    await waitFor(() => made.hub.subscriptions === 3, { what: "three feeds" });
    made.hub.close({ ...expectProblem(await refusal(follow(socket, "sse", { after: 9 })), "cursor_ahead") });
    for (const stream of streams) await waitFor(() => stream.complete, { what: "the end of the stream" });
    expect(streams.map((stream) => stream.got.at(-1)!.kind)).toEqual(["event", "end", "end"]);
    for (const stream of streams.slice(1)) {
      expect(stream.got.at(-1)!.frame).toMatchObject({ kind: "end", resume_after: 1 });
      expectProblem(stream.got.at(-1)!.frame!.problem, "cursor_ahead");
    }
  });
});

describe("who hangs up leaves nothing behind", () => {
  const gone = (made: TestLog) => waitFor(() => made.hub.subscriptions === 0, { what: "no feed to be left" });

  test("idle, in the middle of the backlog, and while it does not read", async () => {
    const made = log();
    const socket = made.listen({ streams: 3 });
    for (let n = 0; n < 8; n++) made.write(...Array.from({ length: 100 }, () => [entry("x".repeat(20_000))]));
    // Three places: a stream that did not leave would be missed.
    for (let round = 0; round < 4; round++)
      for (const form of FORMS) {
        const idle = await follow(socket, form, { after: 799 });
        const busy = await follow(socket, form, {});
        const asleep = await follow(socket, form, {});
        asleep.pause();
        await came(busy, "event", 100);
        expect(made.hub.subscriptions).toBe(3);
        for (const stream of [idle, busy, asleep]) stream.close();
        await gone(made);
      }
  });

  test("before its answer is there, and with a method that takes none", async () => {
    const made = log();
    const socket = made.listen({ streams: 1 });
    made.write([entry("a")]);
    // Plain NDJSON from the head on: the response has not begun.
    for (let round = 0; round < 3; round++) {
      const never = new AbortController();
      const asked = fetch("http://mp/v1/events?follow=true&after=1", {
        unix: socket,
        headers: { accept: NDJSON },
        signal: never.signal,
      }).catch((error: Error) => error.name);
      await waitFor(() => made.hub.subscriptions === 1, { what: "the feed" });
      never.abort();
      expect(await asked).toBe("AbortError");
      await gone(made);
    }
    // It waits for min_seq when the client hangs up.
    const waiting = new AbortController();
    const asked = fetch("http://mp/v1/events?follow=true&after=1&min_seq=2", {
      unix: socket,
      signal: waiting.signal,
    }).catch((error: Error) => error.name);
    await ask(socket, "GET", "/health");
    waiting.abort();
    expect(await asked).toBe("AbortError");
    await ask(socket, "GET", "/health");
    made.write([entry("b")]);
    await gone(made);
    const head = await ask(socket, "HEAD", "/v1/events?follow=true");
    expect([head.status, head.text]).toEqual([200, ""]);
    await gone(made);
    const stream = await following(socket, "ndjson", {});
    await came(stream, "event", 2);
  });

  test("and there is a limit to how many stay", async () => {
    const made = log();
    const socket = made.listen({ streams: 4 });
    made.write([entry("a")]);
    const sockets = [
      await wire(socket),
      await follow(socket, "sse", {}),
      await follow(socket, "ndjson", {}),
      await follow(socket, "frames", {}),
    ];
    open.push(...sockets);
    expectProblem(await refusal(follow(socket, "sse", {})), "overloaded");
    expectProblem(await refusal(wire(socket)), "overloaded");
    expect(seqs((await page(socket, {})).items)).toEqual([1]);
    for (const each of sockets) {
      each.close();
      const next = await waitFor(() => follow(socket, "sse", {}).catch(() => undefined), {
        what: "the place",
      });
      next.close();
      await waitFor(() => wire(socket).then((ws) => open.push(ws)), { what: "the place, for a WebSocket" });
    }
  });
});
