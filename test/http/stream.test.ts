/**
 * `GET /v1/stream`, the WebSocket (SPEC §2, §5), and the guarantees of all streams on a daemon in a process of its own:
 * a writer at full speed, readers that stop reading, SIGKILL and SIGTERM.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { openForReading } from "../../src/kernel/database.ts";
import { LogReader } from "../../src/kernel/log.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { entry, newId, type Said, startLog, type TestLog } from "../support/log.ts";
import {
  begin,
  type Chance,
  chance,
  check,
  type Form,
  follow,
  type Got,
  passing,
  Refused,
  type Truth,
  truthOf,
  type Wanted,
  type Wire,
  wire,
} from "../support/streams.ts";
import { api, envelope, expectProblem, type Json } from "./api.ts";

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.close();
});

function log(options?: Parameters<typeof startLog>[0]): TestLog {
  const made = startLog(options);
  open.push(made);
  return made;
}

async function connected(socket: string): Promise<Wire> {
  const ws = await wire(socket);
  open.push(ws);
  return ws;
}

async function daemonAt(home: string): Promise<DaemonProcess> {
  const daemon = await startDaemonProcess(home);
  open.push({ close: () => daemon.kill("SIGKILL") });
  return daemon;
}

/** All of a daemon's log, read from its database. */
function logOf(home: string): Truth[] {
  const db = openForReading(join(home, "kernel.db"));
  try {
    return truthOf(new LogReader(db));
  } finally {
    db.close();
  }
}

const kinds = (got: readonly Got[]) => got.map(({ kind }) => kind);
const events = (got: readonly Got[]) => got.filter(({ kind }) => kind === "event");
const came = (got: readonly Got[], kind: string, count = 1) =>
  waitFor(() => got.filter((each) => each.kind === kind).length >= count, {
    what: `${count} × ${kind}`,
    timeout_ms: 20_000,
  });

describe("a subscription", () => {
  test("is answered, greeted, and gets its frames with its name on them", async () => {
    const made = log();
    const socket = made.listen();
    made.write([entry("a"), entry("b")]);
    const messages: string[] = [];
    const ws = new WebSocket(`ws+unix://${socket}:/v1/stream`);
    open.push(ws);
    ws.onmessage = ({ data }) => messages.push(String(data));
    await waitFor(() => ws.readyState === WebSocket.OPEN, { what: "the socket" });
    ws.send('{"request_id":"7","type":"events.subscribe","payload":{"after":0}}');
    await waitFor(() => messages.length === 5, { what: "five messages" });
    made.write([entry("c")]);
    await waitFor(() => messages.length === 6, { what: "the next event" });
    const bodies = made.reader.range(0, 3).map(({ body }) => body);
    expect(messages).toEqual([
      `{"request_id":"7","kind":"result","as_of_seq":2,"log_id":"${made.log_id}"}`,
      `{"kind":"hello","log_id":"${made.log_id}","oldest":1,"head":2,"subscription":"7"}`,
      ...bodies.slice(0, 2).map((body) => `{"kind":"event","subscription":"7","event":${body}}`),
      '{"kind":"caught_up","seq_global":2,"subscription":"7"}',
      `{"kind":"event","subscription":"7","event":${bodies[2]}}`,
    ]);
  });

  test("is one of at most 64 of a socket, each with its own cursor and filter", async () => {
    const made = log();
    const socket = made.listen();
    const { below, pick, percent } = chance("64 subscriptions");
    const ledgers = Array.from({ length: 5 }, newId);
    const command = () => Array.from({ length: 1 + below(3) }, () => entry("a", pick(ledgers)));
    made.write(...Array.from({ length: 1_200 }, command));
    const ws = await connected(socket);
    const subscribed: { got: Got[]; after: number; filter: Wanted }[] = [];
    for (let n = 0; n < 64; n++) {
      const after = below(made.hub.head + 1);
      const filter = percent(50) ? { streams: [`ledger/${pick(ledgers)}`, `ledger/${pick(ledgers)}`] } : {};
      subscribed.push({ got: await ws.subscribe(`s${n}`, { after, filter }), after, filter });
      made.write(...Array.from({ length: 10 }, command));
    }
    expectProblem(await problemOf(ws, { after: 0 }), "overloaded");
    expect(made.hub.subscriptions).toBe(64);
    made.write(...Array.from({ length: 10 }, command));
    const all = truthOf(made.reader);
    for (const { got, after, filter } of subscribed) {
      const wanted = passing(all, after, filter);
      await came(got, "event", wanted.length);
      expect(check(got, after, wanted, all)).toBe(wanted.length);
      expect(kinds(got)).toContain("caught_up");
    }
    // Another socket has its own 64.
    const other = await connected(socket);
    await other.subscribe("s0", { after: 0 });
    ws.close();
    await waitFor(() => made.hub.subscriptions === 1, { what: "the feeds of the closed socket to be gone" });
  });

  test("is refused when its name is taken, and the first goes on", async () => {
    const made = log();
    const ws = await connected(made.listen());
    const got = await ws.subscribe("a", { after: 0 });
    const { kind, request_id, ...found } = await ws.ask({
      request_id: "a",
      type: "events.subscribe",
      payload: { after: 0 },
    });
    expect([kind, request_id]).toEqual(["problem", "a"]);
    expect(expectProblem(found, "invalid_schema").errors).toEqual([
      { pointer: "/request_id", message: "is the name of a subscription of this socket already" },
    ]);
    made.write([entry("a")]);
    await came(got, "event");
    expect(kinds(got)).toEqual(["hello", "caught_up", "event"]);
  });

  test("is refused when it is not as it should be, and the socket goes on", async () => {
    const made = log();
    const ws = await connected(made.listen());
    made.write([entry("a")]);
    const subscribe = (payload: unknown, more: object = {}) => ({
      type: "events.subscribe",
      payload,
      ...more,
    });
    const refused: readonly (readonly [object, Parameters<typeof expectProblem>[1], string?])[] = [
      [subscribe({ after: 2 }), "cursor_ahead"],
      [subscribe({ after: Number.MAX_SAFE_INTEGER }), "cursor_ahead"],
      [subscribe({ after: 0, log_id: newId() }), "cursor_foreign"],
      [subscribe({}), "invalid_schema", "/payload/after"],
      [subscribe({ after: "0" }), "invalid_schema", "/payload/after"],
      [subscribe({ after: -1 }), "invalid_schema", "/payload/after"],
      [subscribe({ after: 0.5 }), "invalid_schema", "/payload/after"],
      [subscribe({ after: null }), "invalid_schema", "/payload/after"],
      [subscribe({ after: 0, limit: 5 }), "invalid_schema", "/payload/limit"],
      [subscribe({ after: 0, types: ["*"] }), "invalid_schema", "/payload/types"],
      [subscribe({ after: 0, filter: { type: "*" } }), "invalid_schema", "/payload/filter/type"],
      [subscribe({ after: 0, filter: { types: [] } }), "invalid_schema", "/payload/filter/types"],
      [subscribe({ after: 0, filter: { types: ["*.*"] } }), "invalid_schema", "/payload/filter/types/0"],
      [
        subscribe({ after: 0, filter: { types: ["*", "no.*"] } }),
        "invalid_schema",
        "/payload/filter/types/1",
      ],
      [subscribe({ after: 0, filter: { types: "ledger.*" } }), "invalid_schema", "/payload/filter/types"],
      [subscribe({ after: 0, frames: ["heartbeat"] }), "invalid_schema", "/payload/frames/0"],
      [subscribe({ after: 0, as_stored: "true" }), "invalid_schema", "/payload/as_stored"],
      [subscribe(undefined), "invalid_schema", "/payload"],
      [subscribe([]), "invalid_schema", "/payload"],
      [subscribe({ after: 0 }, { idempotency_key: "k" }), "invalid_schema", "/idempotency_key"],
      [subscribe({ after: 0 }, { expected_version: 0 }), "invalid_schema", "/expected_version"],
      [subscribe({ after: 0 }, { color: "red" }), "invalid_schema", "/color"],
      [subscribe({ after: 0 }, { trace_id: "1" }), "invalid_schema", "/trace_id"],
      [subscribe({ after: 0 }, { schema_version: 2 }), "unsupported_schema_version"],
      [subscribe({ after: 0 }, { schema_version: "1" }), "invalid_schema", "/schema_version"],
      [{ type: "events.subscribed", payload: {} }, "unknown_command"],
    ];
    for (const [index, [request, code, pointer]] of refused.entries()) {
      const { kind, request_id, ...found } = await ws.ask({ request_id: `r${index}`, ...request });
      expect([kind, request_id]).toEqual(["problem", `r${index}`]);
      const { errors } = expectProblem(found, code);
      expect([request, errors?.map((error) => error.pointer)]).toEqual([
        request,
        pointer ? [pointer] : undefined,
      ]);
    }
    expect(made.hub.subscriptions).toBe(0);
    await came(await ws.subscribe("good", { after: 1, log_id: made.log_id }), "caught_up");
  });

  test("may ask for what was stored, and which projections moved on", async () => {
    const made = log();
    const ws = await connected(made.listen());
    made.write([{ type: "parcel.sent", id: newId(), version: 1, payload: { to: "home" } }]);
    const plain = await ws.subscribe("plain", { after: 0 });
    const stored = await ws.subscribe("stored", { after: 0, as_stored: true });
    const asked = await ws.subscribe("asked", {
      after: 1,
      frames: ["projection_updated"],
      filter: { types: ["ledger.closed"] },
    });
    for (const got of [plain, stored, asked]) await came(got, "caught_up");
    const [truth] = truthOf(made.reader);
    expect(events(stored)[0]!.hash).toBe(truth!.hash);
    expect(events(plain)[0]!.hash).toBe(
      Bun.hash(truth!.body.replace('"home"', '["home"]').replace('"schema_version":1', '"schema_version":2')),
    );
    made.write([entry("a")], [entry("b")]);
    await came(asked, "projection_updated");
    await came(plain, "event", 3);
    expect(asked.at(-1)!.frame).toEqual({
      kind: "projection_updated",
      name: "ledger",
      as_of_seq: 3,
      subscription: "asked",
    });
    expect(kinds(plain)).toEqual(["hello", "event", "caught_up", "event", "event"]);
  });

  test("has heartbeats while nothing happens", async () => {
    const made = log({ heartbeat_ms: 5 });
    const ws = await connected(made.listen());
    const got = await ws.subscribe("a", { after: 0 });
    await came(got, "heartbeat", 2);
    expect(got.at(-1)!.frame).toEqual({ kind: "heartbeat", head: 0, subscription: "a" });
    made.write([entry("a"), entry("b")]);
    await waitFor(() => got.at(-1)!.kind === "heartbeat" && got.at(-1)!.at === 2, {
      what: "the next heartbeat",
    });
    const all = truthOf(made.reader);
    expect(check(got, 0, all, all)).toBe(2);
  });

  test("is never told of the middle of a command", async () => {
    const made = log();
    const ws = await connected(made.listen());
    const long = () => Array.from({ length: 1_700 }, () => entry("a"));
    made.write(long(), [entry("b")], long());
    const whole = await ws.subscribe("whole", { after: 0 });
    const part = await ws.subscribe("part", { after: 900 });
    const none = await ws.subscribe("none", { after: 0, filter: { types: ["parcel.*"] } });
    made.write(long(), long());
    const all = truthOf(made.reader);
    for (const [got, after, wanted] of [
      [whole, 0, all],
      [part, 900, all.slice(900)],
      [none, 0, []],
    ] as const) {
      await waitFor(() => got.some(({ kind, at }) => kind !== "hello" && at === all.length), {
        what: "the end",
      });
      expect(check(got, after, wanted, all)).toBe(wanted.length);
    }
    expect(kinds(none).filter((kind) => kind === "checkpoint").length).toBeGreaterThanOrEqual(4);
  });

  test("that meets a bug ends with a problem; the others of the socket go on, and its name is free", async () => {
    const made = log();
    const ws = await connected(made.listen());
    const parcels = await ws.subscribe("a", { after: 0, filter: { types: ["parcel.*"] } });
    const ledgers = await ws.subscribe("b", { after: 0, filter: { types: ["ledger.*"] } });
    made.write(
      [entry("a")],
      [{ type: "parcel.sent", id: newId(), version: 1, payload: { to: "nowhere" } } as Said],
    );
    await came(parcels, "end");
    await came(ledgers, "event");
    const { problem, resume_after } = parcels.at(-1)!.frame as { problem: unknown; resume_after: number };
    expectProblem(problem, "internal");
    expect(resume_after).toBe(0);
    expect(made.bugs.map(String)).toEqual(["Error: a bug in an upcaster"]);
    made.write([entry("b")]);
    await came(ledgers, "event", 2);
    expect(made.hub.subscriptions).toBe(1);
    await came(await ws.subscribe("a", { after: 2 }), "caught_up");
  });

  test("leaves nothing behind when its socket closes, whatever it was doing", async () => {
    const made = log();
    const socket = made.listen({ streams: 2 });
    for (let n = 0; n < 8; n++) made.write(...Array.from({ length: 100 }, () => [entry("x".repeat(20_000))]));
    for (let round = 0; round < 4; round++) {
      const busy = await wire(socket);
      const asleep = await wire(socket);
      const got = await busy.subscribe("a", { after: 0 });
      await busy.subscribe("b", { after: 799 });
      await asleep.subscribe("a", { after: 0 });
      asleep.pause();
      await came(got, "event", 100);
      expect(made.hub.subscriptions).toBe(3);
      busy.close();
      asleep.close();
      await waitFor(() => made.hub.subscriptions === 0, { what: "no feed to be left" });
    }
  });
});

/** The problem that a subscription is refused with. */
async function problemOf(ws: Wire, payload: object): Promise<unknown> {
  const found = await ws.subscribe(`p${Math.random()}`, payload).catch((error: unknown) => error);
  if (!(found instanceof Refused)) throw new Error("it was not refused", { cause: found });
  const { kind, request_id, ...rest } = JSON.parse(found.body) as Json;
  return rest;
}

describe("a frame", () => {
  test("that is no request is answered with a problem, and the socket goes on", async () => {
    const made = log();
    const ws = await connected(made.listen());
    const mebibyte = 1 << 20;
    const ping = '{"request_id":"x","type":"no.such","payload":{}}';
    const refused: readonly (readonly [string | Uint8Array, Parameters<typeof expectProblem>[1]])[] = [
      ["", "malformed_request"],
      ["hello", "malformed_request"],
      ['{"request_id":"1"', "malformed_request"],
      ['{"request_id":"1","request_id":"2","type":"daemon.ping","payload":{}}', "malformed_request"],
      ['{"request_id":"1","__proto__":{}}', "malformed_request"],
      [new Uint8Array([0x22, 0xff, 0x22]), "malformed_request"],
      ["[]", "invalid_schema"],
      ["null", "invalid_schema"],
      ['"a"', "invalid_schema"],
      ["{}", "invalid_schema"],
      ['{"request_id":7,"type":"daemon.ping","payload":{}}', "invalid_schema"],
      ['{"request_id":"","type":"daemon.ping","payload":{}}', "invalid_schema"],
      ['{"request_id":"a b","type":"daemon.ping","payload":{}}', "invalid_schema"],
      [`{"request_id":"${"a".repeat(65)}","type":"daemon.ping","payload":{}}`, "invalid_schema"],
      [ping.padEnd(mebibyte + 1), "payload_too_large"],
    ];
    for (const [index, [frame, code]] of refused.entries()) {
      ws.send(frame);
      await waitFor(() => ws.answers.length > index, { what: `an answer to frame ${index}` });
      const { kind, request_id, ...found } = ws.answers[index]!;
      expect([index, kind, request_id]).toEqual([index, "problem", null]);
      expectProblem(found, code);
    }
    // What is as large as may be, and what comes as bytes, is a request like any other.
    for (const frame of [ping.padEnd(mebibyte), new TextEncoder().encode(ping)]) {
      const before = ws.answers.length;
      ws.send(frame);
      await waitFor(() => ws.answers.length > before, { what: "an answer" });
      const { kind, request_id, ...found } = ws.answers.at(-1)!;
      expect([kind, request_id]).toEqual(["problem", "x"]);
      expectProblem(found, "unknown_command");
    }
  });
});

/** Keep a daemon busy with commands of all kinds until it is told to stop; says how many events there are. */
async function writeUntil(
  daemon: DaemonProcess,
  stop: () => boolean,
  { below, percent, pick }: Chance,
): Promise<void> {
  const mp = api(daemon);
  const name = () => `${below(1e9)}-${below(1e9)} ü`;
  const ids = (answer: Json, kind: string) =>
    (answer.items as { subject?: { kind: string; id: string } }[]).flatMap(({ subject }) =>
      subject?.kind === kind ? [subject.id] : [],
    );
  const send = async (commands: object[]) => (await mp.batch(false, commands)).json;
  const workspaces = ids(
    await send(Array.from({ length: 5 }, () => envelope("workspace.create", { name: name() }))),
    "workspace",
  );
  let projects: string[] = [];
  while (!stop()) {
    const answer = await send(
      Array.from({ length: 100 }, () => {
        if (percent(3))
          return envelope(`workspace.${pick(["open", "close"])}`, { workspace_id: pick(workspaces) });
        if (percent(20) && projects.length > 0)
          return envelope("project.archive", { project_id: pick(projects) });
        return envelope("project.create", { workspace_id: pick(workspaces), name: name() });
      }),
    );
    const made = ids(answer, "project");
    if (made.length > 0) projects = made;
  }
}

/** A filter made of what is in the log. */
function someFilter({ percent, pick, some }: Chance, all: readonly Truth[]): Wanted {
  if (all.length === 0 || percent(25)) return {};
  const { event } = pick(all);
  return {
    ...(percent(50) && {
      types: some(["workspace.*", "project.*", "project.created", "workspace.closed", "project.archived"], 2),
    }),
    ...(percent(25) && { streams: [event.stream, pick(all).event.stream, `task/${newId()}`] }),
    ...(percent(40) && event.workspace_id !== undefined && { workspace_id: event.workspace_id }),
    ...(percent(10) && event.project_id !== undefined && { project_id: event.project_id }),
    ...(percent(20) && { subject_kind: pick(["workspace", "project", "task"]) }),
  };
}

describe("a daemon", () => {
  const FORMS = ["ndjson", "frames", "sse", "websocket"] as const;

  test("that writes at full speed: whoever connects, whenever and wherever, gets exactly what the log has", async () => {
    const random = chance("full speed");
    const daemon = await daemonAt(tempHome());
    const { socket, home } = daemon;
    const mp = api(daemon);
    let writing = true;
    const writers = [1, 2].map(() => writeUntil(daemon, () => !writing, random));
    const streams: { form: Form; after: number; filter: Wanted; got: Got[] }[] = [];
    const sockets = await Promise.all([1, 2, 3].map(() => connected(socket)));
    for (let round = 0; round < 12; round++) {
      // As far apart in the log as they are in time: the next ones connect when there is more.
      const head = await waitFor(async () => ((await mp.head()) > round * 1_000 ? mp.head() : 0), {
        what: `${round * 1_000} events`,
        timeout_ms: 20_000,
      });
      const all = logOf(home);
      for (const form of FORMS) {
        const after = random.below(head + 1);
        const filter = someFilter(random, all);
        if (form === "websocket") {
          const got = await random.pick(sockets).subscribe(`s${round}`, { after, filter });
          streams.push({ form, after, filter, got });
          continue;
        }
        // Plain NDJSON begins with its first event, which for some filters never comes.
        const stream = await begin(socket, form, { after, ...filter });
        open.push(stream);
        streams.push({ form, after, filter, got: stream.got });
      }
    }
    writing = false;
    await Promise.all(writers);
    const all = logOf(home);
    for (const { got, after, filter } of streams) {
      const wanted = passing(all, after, filter);
      await came(got, "event", wanted.length);
    }
    expect(await daemon.kill("SIGTERM")).toBe(0);
    for (const { form, got, after, filter } of streams) {
      const wanted = passing(all, after, filter);
      if (form !== "ndjson") await came(got, "end");
      expect([form, filter, check(got, after, wanted, all)]).toEqual([form, filter, wanted.length]);
      if (form === "ndjson") continue;
      expect(got.at(-1)!.frame).toMatchObject({ kind: "end", resume_after: all.length });
    }
    expect(all.length).toBeGreaterThan(10_000);
  }, 60_000);

  test("goes on for everybody while some stop reading: they cost little, and then get every event", async () => {
    const daemon = await daemonAt(tempHome());
    const { socket, home, info } = daemon;
    const mp = api(daemon);
    const { subject } = await mp.done("workspace.create", { name: "w" });
    const framed = async (form: Exclude<Form, "websocket">) => {
      const stream = await follow(socket, form, {});
      open.push(stream);
      return { stream, got: stream.got };
    };
    const socketed = async (count: number) => {
      const ws = await connected(socket);
      const all = await Promise.all(
        Array.from({ length: count }, (_, n) => ws.subscribe(`s${n}`, { after: 0 })),
      );
      return all.map((got) => ({ stream: ws, got }));
    };
    const slow = [
      ...(await Promise.all((["frames", "sse", "frames", "sse", "frames", "sse"] as const).map(framed))),
      ...(await Promise.all([1, 1, 1, 3].map(socketed))).flat(),
    ];
    const plain = await framed("ndjson");
    const quick = [await framed("frames"), ...(await socketed(1))];
    for (const { got } of [...slow, ...quick]) await came(got, "caught_up");
    for (const { stream } of [...slow, plain]) stream.pause();

    // 50 MB of events of 8 kB each, as fast as it takes them.
    const path = `/${"x".repeat(3_900)}`;
    const commands = () =>
      Array.from({ length: 100 }, () =>
        envelope("project.create", {
          workspace_id: subject.id,
          name: newId(),
          repo_path: path,
          git_common_dir: path,
        }),
      );
    const before = residentBytes(info.pid);
    let most = before;
    let written = 0;
    while (written < 50e6) {
      const answers = await Promise.all([mp.batch(false, commands()), mp.batch(false, commands())]);
      for (const { status, json } of answers) {
        expect(status).toBe(200);
        expect((json.items as Json[]).every(({ kind }) => kind === "receipt")).toBe(true);
        written += 100 * 8_400;
      }
      most = Math.max(most, residentBytes(info.pid));
    }
    const all = logOf(home);
    expect(all.reduce((sum, { body }) => sum + body.length, 0)).toBeGreaterThan(50e6);
    // The others have it all, while those still have next to nothing.
    for (const { got } of quick) {
      await came(got, "event", all.length);
      expect(check(got, 0, all, all)).toBe(all.length);
    }
    for (const { got } of [...slow, plain]) expect(events(got).length).toBeLessThan(all.length / 4);
    // Thirteen readers with 50 MB kept for each would be 650 MB on top of the 150 to 250 MB that writing takes.
    most = Math.max(most, residentBytes(info.pid));
    console.log(`resident: ${(before / 1e6).toFixed()} MB before, ${(most / 1e6).toFixed()} MB at most`);
    expect(most - before).toBeLessThan(400e6);

    for (const { stream } of [...slow, plain]) stream.resume();
    for (const { got } of slow) {
      await waitFor(() => got.at(-1)?.kind === "caught_up" && got.at(-1)?.at === all.length, {
        what: "a slow reader to catch up",
        timeout_ms: 20_000,
      });
      expect(check(got, 0, all, all)).toBe(all.length);
      expect(kinds(got)).toContain("fell_behind");
    }
    await came(plain.got, "event", all.length);
    expect(check(plain.got, 0, all, all)).toBe(all.length);
    // And they are live again.
    await mp.done("workspace.create", { name: "v" });
    for (const { got } of [...slow, ...quick, plain])
      await waitFor(() => got.at(-1)?.at === all.length + 1, { what: "the next event" });
  }, 60_000);

  test("that is killed again and again: whoever comes back with the last position it has seen misses nothing", async () => {
    const random = chance("killed");
    const daemon = await daemonAt(tempHome());
    const { socket, home } = daemon;
    let writing = true;
    let up = Promise.resolve();
    /** Writers that outlive the daemon: what it did not answer, nobody counts on. */
    const write = async () => {
      while (writing) {
        await up;
        await writeUntil(daemon, () => !writing, random).catch(() => undefined);
      }
    };
    const writers = [write(), write()];

    interface Client {
      readonly form: Form;
      readonly filter: Wanted;
      after: number;
      /** What each connection got, and from where. */
      readonly connections: { readonly after: number; readonly got: Got[] }[];
    }
    const clients: Client[] = FORMS.flatMap((form) =>
      [{}, { types: ["project.archived"] }, { subject_kind: "workspace" }].map((filter) => ({
        form,
        filter,
        after: 0,
        connections: [],
      })),
    );
    const connect = async (client: Client) => {
      const { form, after, filter } = client;
      let got: Got[];
      if (form === "websocket") got = await (await connected(socket)).subscribe("s", { after, filter });
      else {
        // A browser repeats the URL it began with, and says where it was in a header.
        const last = form === "sse" && after > 0 ? { "last-event-id": String(after) } : undefined;
        const stream = await begin(socket, form, { after: last ? 0 : after, ...filter }, last);
        open.push(stream);
        got = stream.got;
      }
      client.connections.push({ after, got });
    };
    /** The last position that a client of its form can know of. */
    const seen = ({ form, after, connections }: Client) =>
      (connections.at(-1)?.got ?? []).reduce(
        (last, { kind, at }) =>
          kind === "event" || kind === "checkpoint" || (form !== "sse" && kind === "caught_up")
            ? Math.max(last, at)
            : last,
        after,
      );

    for (let life = 0; life < 5; life++) {
      await Promise.all(clients.map(connect));
      const enough = random.below(1_500);
      await waitFor(
        () =>
          clients.every(({ form, filter, connections }) =>
            form === "websocket" && Object.keys(filter).length === 0
              ? events(connections.at(-1)!.got).length > enough
              : true,
          ),
        { what: `${enough} events in life ${life}`, timeout_ms: 20_000 },
      );
      const back = Promise.withResolvers<void>();
      up = back.promise;
      await daemon.restart("SIGKILL");
      back.resolve();
      for (const client of clients) client.after = seen(client);
    }
    await Promise.all(clients.map(connect));
    writing = false;
    await Promise.all(writers);
    const all = logOf(home);
    for (const { form, filter, connections } of clients) {
      const last = connections.at(-1)!;
      await came(last.got, "event", passing(all, last.after, filter).length);
      let sum = 0;
      for (const { after, got } of connections) sum += check(got, after, passing(all, after, filter), all);
      // Each goes on where the one before it stopped: together they are the log, once.
      expect([form, filter, sum]).toEqual([form, filter, passing(all, 0, filter).length]);
    }
    expect(all.length).toBeGreaterThan(1_000);
  }, 60_000);

  test("that is stopped tells every reader where to go on, and the next one goes on there", async () => {
    const daemon = await daemonAt(tempHome());
    const { socket, home } = daemon;
    const mp = api(daemon);
    for (const name of ["a", "b", "c"]) await mp.done("workspace.create", { name });
    const ws = await connected(socket);
    const got = [
      await ws.subscribe("a", { after: 0 }),
      await ws.subscribe("b", { after: 2, filter: { types: ["project.archived"] } }),
    ];
    for (const form of ["frames", "sse"] as const) {
      const stream = await follow(socket, form, { after: 1 });
      open.push(stream);
      got.push(stream.got);
    }
    const plain = await follow(socket, "ndjson", {});
    open.push(plain);
    for (const each of got) await came(each, "caught_up");
    await daemon.kill("SIGTERM");
    for (const each of got) {
      await came(each, "end");
      const { problem, resume_after } = each.at(-1)!.frame as { problem: Json; resume_after: number };
      expect([problem.retryable, resume_after]).toEqual([true, 3]);
      expect(problem.trace_id).toMatch(/^[0-9a-f]{32}$/);
    }
    await waitFor(() => plain.over && ws.over, { what: "the connections to be closed" });
    expect(plain.complete).toBe(true);
    await daemon.restart();
    await mp.done("workspace.create", { name: "d" });
    const again = await connected(socket);
    const resumed = await again.subscribe("a", { after: 3 });
    await came(resumed, "event");
    expect(events(resumed).map(({ at }) => at)).toEqual([4]);
    const all = logOf(home);
    expect(check(resumed, 3, all.slice(3), all)).toBe(1);
  });

  test("answers the requests of a socket as they finish, each under its own name", async () => {
    const daemon = await daemonAt(tempHome());
    const ws = await connected(daemon.socket);
    const got = await ws.subscribe("events", { after: 0 });
    // This one waits for what does not exist yet; nothing waits for it.
    const early = ws.ask({
      request_id: "early",
      type: "workspace.list",
      payload: { min_seq: 200, limit: 1_000 },
    });
    expect(await ws.ask({ request_id: "ping", type: "daemon.ping", payload: {} })).toMatchObject({
      kind: "result",
      pong: true,
      as_of_seq: 0,
    });
    const names = Array.from({ length: 200 }, (_, n) => `w${n}`);
    const asked = names.flatMap((name) => [
      ws.ask({ request_id: name, ...envelope("workspace.create", { name }) }),
      ws.ask({ request_id: `${name}?`, type: "daemon.ping", payload: {} }),
      ws.ask({ request_id: `${name}!`, ...envelope("workspace.create", { name: "" }) }),
    ]);
    const answers = await Promise.all(asked);
    expect(answers.map(({ request_id, kind }) => `${request_id} ${kind}`)).toEqual(
      names.flatMap((name) => [`${name} receipt`, `${name}? result`, `${name}! problem`]),
    );
    expect((await early).items).toBeArrayOfSize(200);
    await came(got, "event", 200);
    // Each receipt is about the workspace that its request named.
    const { items } = (await early) as unknown as { items: { workspace_id: string; name: string }[] };
    const ids = new Map(items.map(({ name, workspace_id }) => [name, workspace_id]));
    for (const { request_id, kind, subject } of answers)
      if (kind === "receipt") expect((subject as Json).id).toBe(ids.get(request_id as string));
    expect(ws.answers.findIndex(({ request_id }) => request_id === "early")).toBeGreaterThan(200);
    // A key that was used answers with its first receipt, here as on HTTP.
    const twice = { ...envelope("workspace.create", { name: "twice" }), request_id: "t" };
    expect(await ws.ask(twice)).toMatchObject({ kind: "receipt", replayed: false });
    expect(await ws.ask(twice)).toMatchObject({ kind: "receipt", replayed: true });
  });

  test("counts its streams, and those of clients that hang up no more", async () => {
    const daemon = await daemonAt(tempHome());
    const mp = api(daemon);
    const counted = async () => (await mp.answer("daemon.status")).subscriptions;
    await mp.done("workspace.create", { name: "w" });
    const ws = await connected(daemon.socket);
    await ws.subscribe("a", { after: 0 });
    await ws.subscribe("b", { after: 1 });
    const streams = await Promise.all(
      (["ndjson", "frames", "sse"] as const).map((form) => follow(daemon.socket, form, {})),
    );
    // Nothing to send yet, so its response has not begun.
    streams.push(await begin(daemon.socket, "ndjson", { after: 1 }));
    await waitFor(async () => (await counted()) === 6, { what: "six streams" });
    ws.close();
    await waitFor(async () => (await counted()) === 4, { what: "four streams" });
    for (const stream of streams) stream.close();
    await waitFor(async () => (await counted()) === 0, { what: "no stream" });
  });

  test("keeps answers for a client that is slow to read them, and cuts off one that does not", async () => {
    const daemon = await daemonAt(tempHome());
    const mp = api(daemon);
    const { subject } = await mp.done("workspace.create", { name: "w" });
    const path = `/${"x".repeat(4_000)}`;
    const project = () =>
      envelope("project.create", {
        workspace_id: subject.id,
        name: newId(),
        repo_path: path,
        git_common_dir: path,
      });
    await mp.batch(false, Array.from({ length: 100 }, project));
    // Each answer has 800 kB.
    const list = (request_id: string) => ({
      request_id,
      type: "events.list",
      payload: { after: 0, limit: 100 },
    });
    const slow = await connected(daemon.socket);
    slow.pause();
    const asked = Array.from({ length: 12 }, (_, n) => slow.ask(list(`${n}`)));
    const hoarder = await connected(daemon.socket);
    hoarder.pause();
    for (let n = 0; n < 100; n++) hoarder.send(JSON.stringify(list(`${n}`)));
    expect(await mp.head()).toBe(101);
    hoarder.resume();
    await waitFor(() => hoarder.over, { what: "the hoarder to be cut off" });
    expect(hoarder.answers.length).toBeLessThan(40);
    slow.resume();
    for (const answer of await Promise.all(asked)) expect(answer.items).toBeArrayOfSize(100);
    expect(residentBytes(daemon.info.pid)).toBeLessThan(400e6);
  });
});

/** What a process holds in memory, in bytes. */
function residentBytes(pid: number): number {
  const kilobytes =
    process.platform === "linux"
      ? /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]
      : Bun.spawnSync(["ps", "-o", "rss=", "-p", String(pid)]).stdout.toString();
  return Number(kilobytes) * 1024;
}
