/**
 * Idempotency and concurrency through the real socket (SPEC §7), and what a receipt says (SPEC §3). Not here: the same
 * over a SIGKILL under load (test/crash), and keys of two principals (test/kernel/dispatch.test.ts: one socket has one).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { aggregates } from "../../src/domain/index.ts";
import { tempHome } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import {
  type Api,
  api,
  ask,
  envelope,
  expectProblem,
  expectRefused,
  type Json,
  key,
  type Reply,
  type Wire,
  wire,
} from "./api.ts";

const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
let ws: Wire;
beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
  ws = await wire(daemon.socket);
});
afterAll(() => ws.close());

let names = 0;
/** A name that no other test uses. */
const name = () => `name ${++names}`;
const create = (more: object = {}) => envelope("workspace.create", { name: name() }, more);
const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** All events of the log, as they are stored. */
const events = async (after = 0) =>
  (await mp.get(`/v1/events?after=${after}&limit=10000`)).json.items as (Json & {
    causality: { command_id: string; idempotency_key: string; parent_event_id?: string };
  })[];
const carriedOut = async (idempotency_key: unknown) =>
  (await events()).filter((event) => event.causality.idempotency_key === idempotency_key);

describe("a receipt", () => {
  test("says what happened, and the log says the same", async () => {
    const before = await mp.head();
    const command = create({
      trace_id: "0123456789abcdef0123456789abcdef",
      expected_version: 0,
      schema_version: 1,
    });
    const reply = await mp.post(command);
    expect(reply.status).toBe(200);
    expect(reply.headers.get("content-type")).toBe("application/json");
    expect(reply.headers.get("cache-control")).toBe("no-store");
    expect(reply.headers.has("idempotency-replayed")).toBe(false);
    const [event] = await events(before);
    expect(reply.json).toEqual({
      command_id: event!.causality.command_id,
      type: "workspace.create",
      subject: event!.subject as object,
      version: 1,
      seq_global: before + 1,
      events: [
        { event_id: event!.event_id, event_type: "workspace.created", seq_global: before + 1, seq_stream: 1 },
      ],
      result: {},
      replayed: false,
    });
    expect(event).toMatchObject({
      event_type: "workspace.created",
      payload: command.payload as object,
      trace_id: command.trace_id,
      causality: { idempotency_key: command.idempotency_key },
      stream: `workspace/${(event!.subject as Json).id}`,
    });
    expect(Object.keys(event!.causality).sort()).toEqual(["command_id", "idempotency_key"]);
    expect(reply.json.command_id).toMatch(ID);
    expect(await mp.get(`/v1/events/${event!.event_id}`)).toMatchObject({ status: 200, json: event! });
  });

  test("of a command that changes nothing has no events and the position after it", async () => {
    const { subject } = await mp.done("workspace.create", { name: name() });
    const before = await mp.head();
    const again = await mp.done("workspace.open", { workspace_id: subject.id });
    expect(again).toMatchObject({ events: [], version: 1, seq_global: before, subject, replayed: false });
    expect(await mp.head()).toBe(before);
  });

  test("names the event that caused it, when the sender does", async () => {
    const { events: made } = await mp.done("workspace.create", { name: name() });
    const parent_event_id = (made as { event_id: string }[])[0]!.event_id;
    const caused = create({ parent_event_id });
    await mp.post(caused);
    expect((await carriedOut(caused.idempotency_key))[0]!.causality.parent_event_id).toBe(parent_event_id);
  });

  test("is the same on a WebSocket and in a batch, for a command of each kind", async () => {
    const frame = await ws.request(create());
    expect(frame).toMatchObject({ kind: "receipt", type: "workspace.create", version: 1, replayed: false });
    const batch = await mp.batch(false, [create()]);
    const [item] = batch.json.items as Json[];
    expect(Object.keys(item!).sort()).toEqual(Object.keys(frame).sort());
    const rebuild = await mp.done("projection.rebuild", {});
    expect(rebuild).toMatchObject({
      events: [],
      version: 0,
      result: { projections: aggregates.map((each) => each.kind) },
    });
  });

  test("takes its trace id from the traceparent header, and makes one up when there is none", async () => {
    const command = create();
    const trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    await ask(daemon.socket, "POST", "/v1/commands", command, {
      traceparent: `00-${trace_id}-00f067aa0ba902b7-01`,
    });
    expect((await carriedOut(command.idempotency_key))[0]!.trace_id).toBe(trace_id);
    const other = create();
    await mp.post(other);
    expect((await carriedOut(other.idempotency_key))[0]!.trace_id).toMatch(/^(?!0{32})[0-9a-f]{32}$/);
  });

  test("and its event hold the actor of the socket, whatever the environment of the client says", async () => {
    const command = create();
    await mp.post(command);
    const [event] = await carriedOut(command.idempotency_key);
    expect(event!.actor).toMatchObject({ kind: "user" });
    expect((event!.actor as Json).id).toBeString();
  });
});

/** The first receipt again: equal but for `replayed`. */
function expectReplay(again: Reply, first: Reply): void {
  expect(again.status).toBe(200);
  expect(again.headers.get("idempotency-replayed")).toBe("true");
  expect(again.json).toEqual({ ...first.json, replayed: true });
}

describe("the same key again (rules 1–3)", () => {
  test("gives the first receipt, no new event, on every transport", async () => {
    const command = create();
    const first = await mp.post(command);
    const head = await mp.head();
    expectReplay(await mp.post(command), first);
    const replayed = { ...first.json, replayed: true };
    expect(await ws.request(command)).toEqual({ kind: "receipt", ...replayed });
    for (const atomic of [true, false]) {
      const batch = await mp.batch(atomic, [command, command]);
      expect(batch.json.items).toEqual([
        { kind: "receipt", ...replayed },
        { kind: "receipt", ...replayed },
      ]);
    }
    expect(await mp.head()).toBe(head);
  });

  test("is found before expected_version, before the name that is taken by now, and before a state that forbids", async () => {
    const guarded = create({ expected_version: 0 });
    const first = await mp.post(guarded);
    const workspace_id = (first.json.subject as Json).id;
    const close = envelope("workspace.close", { workspace_id }, { expected_version: 1 });
    const closed = await mp.post(close);
    const project = envelope("project.create", { workspace_id, name: "p" });
    expectRefused(await mp.post(project), "conflict");
    await mp.done("workspace.open", { workspace_id }, { expected_version: 2 });
    const made = await mp.post(project);
    expect(made.status).toBe(200);
    await mp.done("workspace.close", { workspace_id });
    expectReplay(await mp.post(guarded), first);
    expectReplay(await mp.post(close), closed);
    expectReplay(await mp.post(project), made);
  });

  test("is the same command however its JSON is written, and whatever its trace id or parent", async () => {
    const command = create();
    const first = await mp.post(command);
    const [made] = first.json.events as { event_id: string }[];
    const { type, payload, idempotency_key } = command;
    const spaced = JSON.stringify({ payload, idempotency_key, type }, null, 3).replaceAll("n", "\\u006e");
    expectReplay(await mp.post(spaced), first);
    expectReplay(
      await mp.post({ ...command, trace_id: "1".repeat(32), parent_event_id: made!.event_id }),
      first,
    );
  });

  test("is replayed for a command that changed nothing, and for one of the kernel", async () => {
    const { subject } = await mp.done("workspace.create", { name: name() });
    const noop = envelope("workspace.open", { workspace_id: subject.id });
    const first = await mp.post(noop);
    // What happens meanwhile does not change what is said again.
    await mp.done("workspace.close", { workspace_id: subject.id });
    expectReplay(await mp.post(noop), first);
    const rebuild = envelope("projection.rebuild", { name: "project" });
    const rebuilding = await mp.post(rebuild);
    expectReplay(await mp.post(rebuild), rebuilding);
  });

  test("works for keys of 1 and of 200 characters, and of all printable ASCII", async () => {
    const printable = Array.from({ length: 95 }, (_, index) => String.fromCharCode(32 + index)).join("");
    for (const idempotency_key of ["k", "k".repeat(200), printable]) {
      const command = create({ idempotency_key });
      const first = await mp.post(command);
      expect(first.status).toBe(200);
      expectReplay(await mp.post(command), first);
    }
  });

  test("is still known after restarts, by SIGTERM and by SIGKILL", async () => {
    const other = await startDaemonProcess();
    const its = api(other);
    const command = create();
    const first = await its.post(command);
    const noop = envelope("workspace.open", { workspace_id: (first.json.subject as Json).id });
    const unchanged = await its.post(noop);
    const head = await its.head();
    for (const signal of ["SIGTERM", "SIGKILL"] as const) {
      await other.restart(signal);
      expectReplay(await its.post(command), first);
      expectReplay(await its.post(noop), unchanged);
      expectRefused(await its.post({ ...command, payload: { name: "other" } }), "idempotency_key_reused");
      expect(await its.head()).toBe(head);
    }
    await other.kill();
  });

  test("sent 30 times at once is carried out once", async () => {
    const command = create();
    const replies = await Promise.all(Array.from({ length: 30 }, () => mp.post(command)));
    expect(replies.map((reply) => reply.status)).toEqual(replies.map(() => 200));
    expect(new Set(replies.map((reply) => reply.json.command_id)).size).toBe(1);
    expect(replies.filter((reply) => reply.json.replayed === false)).toHaveLength(1);
    expect(replies.filter((reply) => reply.headers.get("idempotency-replayed") === "true")).toHaveLength(29);
    expect(await carriedOut(command.idempotency_key)).toHaveLength(1);
  });
});

describe("the same key with another command (rule 4)", () => {
  test("is refused, whatever differs, and changes nothing", async () => {
    const command = create();
    const first = await mp.post(command);
    const head = await mp.head();
    const workspace_id = (first.json.subject as Json).id;
    for (const other of [
      { ...command, payload: { name: name() } },
      { ...command, payload: { ...(command.payload as object), root_path: "/x" } },
      { ...command, expected_version: 0 },
      { ...command, schema_version: 1 },
      { ...command, type: "workspace.close", payload: { workspace_id } },
      { ...command, type: "projection.rebuild", payload: {} },
    ])
      expectRefused(await mp.post(other), "idempotency_key_reused");
    expect(await mp.head()).toBe(head);
    expectReplay(await mp.post(command), first);
  });

  test("within one batch: the second is refused", async () => {
    const command = create();
    const batch = await mp.batch(false, [command, { ...command, payload: { name: name() } }]);
    const [first, second] = batch.json.items as Json[];
    expect(first!.kind).toBe("receipt");
    expect(second).toMatchObject({ kind: "problem", code: "idempotency_key_reused" });
  });
});

describe("a refused command (rule 5)", () => {
  test("consumes no key: what mends the cause lets the same one through, and so does another command", async () => {
    const idempotency_key = key();
    const taken = name();
    const holder = await mp.done("workspace.create", { name: taken });
    const command = envelope(
      "project.create",
      { workspace_id: holder.subject.id, name: "p" },
      { idempotency_key },
    );
    await mp.done("workspace.close", { workspace_id: holder.subject.id });
    for (const refused of [
      command,
      { ...command, schema_version: 7 },
      { ...command, payload: {} },
      { ...command, expected_version: 5 },
      { ...command, type: "workspace.create", payload: { name: taken } },
    ])
      expect((await mp.post(refused)).status).toBeGreaterThanOrEqual(400);
    await mp.done("workspace.open", { workspace_id: holder.subject.id });
    const made = await mp.post(command);
    expect(made.json).toMatchObject({ type: "project.create", replayed: false });
    expectReplay(await mp.post(command), made);
  });

  test("a batch that is refused as a whole consumes none of its keys", async () => {
    const [one, two] = [create(), create()];
    const refused = await mp.batch(true, [one, two, envelope("workspace.open", { workspace_id: NOWHERE })]);
    expect(expectRefused(refused, "not_found").details).toMatchObject({ index: 2 });
    const accepted = await mp.batch(true, [one, two]);
    const items = accepted.json.items as Json[];
    expect(items.map((item) => [item.kind, item.replayed])).toEqual([
      ["receipt", false],
      ["receipt", false],
    ]);
  });
});

const NOWHERE = "01900000-0000-7000-8000-000000000000";

describe("batches", () => {
  test("all or nothing: the later commands see what the earlier ones did, and the events lie side by side", async () => {
    const { subject } = await mp.done("workspace.create", { name: name() });
    const before = await mp.head();
    const workspace_id = subject.id;
    const batch = await mp.batch(true, [
      envelope("workspace.close", { workspace_id }, { expected_version: 1 }),
      envelope("workspace.open", { workspace_id }, { expected_version: 2 }),
      envelope("project.create", { workspace_id, name: "after" }),
    ]);
    const items = batch.json.items as (Json & { seq_global: number; version: number })[];
    expect(items.map((item) => [item.seq_global - before, item.version])).toEqual([
      [1, 2],
      [2, 3],
      [3, 1],
    ]);
  });

  test("all or nothing: the refusal of one is the answer, and nothing of the others is there", async () => {
    const taken = name();
    await mp.done("workspace.create", { name: taken });
    const before = await mp.head();
    const lost = name();
    const batch = await mp.batch(true, [
      envelope("workspace.create", { name: lost }),
      envelope("workspace.create", { name: lost.toUpperCase() }),
      envelope("workspace.create", { name: taken }),
    ]);
    const found = expectRefused(batch, "conflict");
    expect([found.reason, (found.details as Json).index]).toEqual(["workspace.name_taken", 1]);
    expect(await mp.head()).toBe(before);
    expect((await mp.answer("workspace.list", { name: lost })).items).toEqual([]);
    // The writer has forgotten it too: what it keeps in memory is what is in the log.
    expect((await mp.done("workspace.create", { name: lost })).seq_global).toBe(before + 1);
  });

  test("each for itself: answers in order, refusals do not stop the rest", async () => {
    const [a, b] = [create(), create()];
    const batch = await mp.batch(false, [
      a,
      { type: "nope.nope", payload: {} },
      { ...a, idempotency_key: key() },
      envelope("workspace.open", { workspace_id: NOWHERE }),
      b,
    ]);
    expect(batch.status).toBe(200);
    const items = batch.json.items as Json[];
    expect(items.map((item) => item.code ?? item.kind)).toEqual([
      "receipt",
      "unknown_command",
      "conflict",
      "not_found",
      "receipt",
    ]);
  });

  test("of 1,000 commands is carried out as one", async () => {
    const before = await mp.head();
    const batch = await mp.batch(
      true,
      Array.from({ length: 1_000 }, () => create()),
    );
    const items = batch.json.items as { seq_global: number; kind: string }[];
    expect(items.map((item) => item.seq_global)).toEqual(items.map((_, index) => before + 1 + index));
    expect(await mp.head()).toBe(before + 1_000);
  });
});

describe("races (rule 6)", () => {
  test("50 creates of one name: one winner, 49 clear conflicts that name it, on every transport", async () => {
    const contested = name();
    const before = await mp.head();
    const attempts = Array.from({ length: 50 }, (_, index) =>
      envelope("workspace.create", { name: index % 2 === 0 ? contested : contested.toUpperCase() }),
    );
    const answers = await Promise.all(
      attempts.map(async (attempt, index): Promise<Json> => {
        if (index % 3 === 0) return ws.request(attempt);
        if (index % 3 === 1) return ((await mp.batch(false, [attempt])).json.items as Json[])[0]!;
        const reply = await mp.post(attempt);
        return { kind: reply.status === 200 ? "receipt" : "problem", ...reply.json };
      }),
    );
    const won = answers.filter((answer) => answer.kind === "receipt");
    expect(won).toHaveLength(1);
    const workspace_id = (won[0]!.subject as Json).id;
    for (const { kind, ...found } of answers.filter((answer) => answer.kind !== "receipt")) {
      expect(kind).toBe("problem");
      expect(expectProblem(found, "conflict")).toMatchObject({
        reason: "workspace.name_taken",
        details: { workspace_id },
      });
    }
    expect(await mp.head()).toBe(before + 1);
  });

  test("20 changes that expect the same version: one winner, 19 are told the version there is", async () => {
    const { subject } = await mp.done("workspace.create", { name: name() });
    const workspace_id = subject.id;
    const replies = await Promise.all(
      Array.from({ length: 20 }, () =>
        mp.post(envelope("workspace.close", { workspace_id }, { expected_version: 1 })),
      ),
    );
    expect(replies.filter((reply) => reply.status === 200)).toHaveLength(1);
    for (const reply of replies.filter((each) => each.status !== 200))
      expect(expectRefused(reply, "expected_version_mismatch").details).toEqual({
        stream: `workspace/${workspace_id}`,
        expected: 1,
        actual: 2,
      });
  });

  test("a close and a create in it: the project is there only if it was first", async () => {
    for (let times = 0; times < 20; times++) {
      const { subject } = await mp.done("workspace.create", { name: name() });
      const workspace_id = subject.id;
      const project = envelope("project.create", { workspace_id, name: "p" });
      const close = envelope("workspace.close", { workspace_id });
      const both = times % 2 === 0 ? [project, close] : [close, project];
      const replies = await Promise.all(both.map((each) => mp.post(each)));
      const [made, closed] = times % 2 === 0 ? replies : replies.toReversed();
      expect(closed!.status).toBe(200);
      if (made!.status === 200) expect(made!.json.seq_global).toBeLessThan(closed!.json.seq_global as number);
      else expect(expectRefused(made!, "conflict").reason).toBe("workspace.closed");
    }
  });

  test("positions have no gap, whoever wrote", async () => {
    const all: number[] = [];
    for (let after = 0; ; ) {
      const page = await events(after);
      if (page.length === 0) break;
      all.push(...page.map((event) => event.seq_global as number));
      after = all.at(-1)!;
    }
    expect(all).toEqual(all.map((_, index) => index + 1));
  });
});

describe("more than the queue holds (SPEC §10)", () => {
  test("is refused at once and is not carried out; the rest is, and what was refused can be sent again", async () => {
    const before = await mp.head();
    const batches = Array.from({ length: 30 }, () => Array.from({ length: 1_000 }, () => create()));
    const replies = await Promise.all(batches.map((commands) => mp.batch(true, commands)));
    const refused = replies.flatMap((reply, index) => (reply.status === 200 ? [] : [index]));
    expect(refused.length).toBeGreaterThan(0);
    for (const index of refused) {
      expectRefused(replies[index]!, "overloaded");
      expect(replies[index]!.headers.get("retry-after")).toBe("1");
    }
    expect(await mp.head()).toBe(before + (30 - refused.length) * 1_000);
    const again = await mp.batch(true, batches[refused[0]!]!);
    expect((again.json.items as Json[]).map((item) => item.replayed)).toEqual(batches[0]!.map(() => false));
  });
});
