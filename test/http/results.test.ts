/**
 * What a task's result may hold and how large events may be, through the real socket (SPEC §4, §10): any JSON that the strict
 * parser lets through comes back as it went in; what is refused leaves the claim as it was, and the key free.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { MAX_EVENT_BYTES } from "../../src/kernel/log.ts";
import { tempHome } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, envelope, expectNoEcho, expectRefused, type Json, key, MARKER } from "./api.ts";
import { fresh, makePlace, type Place } from "./place.ts";

const home = tempHome();
let mp: Api;
let here: Place;
beforeAll(async () => {
  const daemon = await startDaemonProcess(home);
  mp = api(daemon);
  here = await makePlace(mp, daemon.socket);
});

const long = (length: number) => "x".repeat(length);

/** `task.complete` as text, with a result as it is written. */
const completing = (task_id: string, epoch: number, result: string, idempotency_key = key()) =>
  `{"type":"task.complete","payload":{"task_id":"${task_id}","epoch":${epoch},"result":${result}},"idempotency_key":"${idempotency_key}"}`;
/** So deep, itself the first level. */
const nested = (depth: number) => `{"a":`.repeat(depth - 1).concat("{}", "}".repeat(depth - 1));

describe("the JSON of a result", () => {
  const broken: readonly (readonly [name: string, result: string])[] = [
    ["a key __proto__", `{"__proto__":{"status":"${MARKER}"}}`],
    ["a key __proto__, written with escapes", `{"\\u005f_proto__":{"status":"x"}}`],
    ["a key constructor, deep in a list", `{"a":[1,[{"b":{"constructor":{"prototype":{}}}}]]}`],
    ["a key prototype", `{"a":{"prototype":[]}}`],
    ["a NUL in a text", `{"a":"x\\u0000y"}`],
    ["a NUL in a key", `{"a\\u0000b":1}`],
    ["half a pair", `{"a":"\\ud800"}`],
    ["a key twice", `{"a":{"b":1,"b":2}}`],
    ["a number beyond 2^53", `{"a":9007199254740993}`],
    ["33 levels, with the envelope", nested(31)],
  ];
  test.each(broken)("with %s is refused, and the claim is as it was", async (_, result) => {
    const { task_id, epoch } = await here.claimed();
    const before = await mp.answer("task.get", { task_id });
    const reply = await mp.post(completing(task_id, epoch, result));
    expectRefused(reply, "malformed_request");
    expectNoEcho(reply.text, home);
    expect(await mp.answer("task.get", { task_id })).toEqual(before);
  });

  test("comes back as it went in, in the answer and in the event: 32 levels, and any other key", async () => {
    const odd = `{"10":1,"9":[{"z":null,"a":[]}],"":"empty","toString":"t","hasOwnProperty":false,"valueOf":{"__defineGetter__":-0.5},"ß":"\\u2028\u202e","e\u0301":1e-7,"é":9007199254740991}`;
    for (const result of ["{}", nested(30), odd]) {
      const { task_id, epoch } = await here.claimed();
      const done = await mp.post(completing(task_id, epoch, result));
      expect([done.status, done.text]).toEqual([200, done.text]);
      const [{ event_id }] = done.json.events as [{ event_id: string }];
      const told = JSON.parse(result) as Json;
      expect((await mp.answer("task.get", { task_id })).result).toEqual(told);
      const event = (await mp.get(`/v1/events/${event_id}`)).json;
      expect((event.payload as Json).result).toEqual(told);
    }
  });
});

describe("an event that would be larger than events may be", () => {
  /** A result of a text of so many bytes. */
  const sized = (bytes: number) => JSON.stringify({ log: long(bytes) });

  test("of a result: to the byte, and the claim goes on", async () => {
    const { task_id, epoch, session_id } = await here.claimed();
    const idempotency_key = key();
    const before = await mp.answer("task.get", { task_id });
    const head = await mp.head();
    const send = (bytes: number) => mp.post(completing(task_id, epoch, sized(bytes), idempotency_key));
    const sizeIn = (detail: string) => Number(/would have (\d+) bytes, at most 61440 fit/.exec(detail)?.[1]);
    const first = expectRefused(await send(70_000), "payload_too_large");
    const most = 70_000 - (sizeIn(first.detail) - MAX_EVENT_BYTES);
    expect(most).toBeWithin(60_000, MAX_EVENT_BYTES);
    expect(sizeIn(expectRefused(await send(most + 1), "payload_too_large").detail)).toBe(MAX_EVENT_BYTES + 1);

    expect(await mp.head()).toBe(head);
    expect(await mp.answer("task.get", { task_id })).toEqual(before);
    await mp.done("task.renew", { task_id, epoch });
    expect(await mp.answer("session.get", { session_id })).toMatchObject({ claims: [{ task_id, epoch }] });

    const done = await send(most);
    expect([done.status, done.json.replayed]).toEqual([200, false]);
    const stored = await mp.get(`/v1/events?after=${head}&limit=1`, { accept: "application/x-ndjson" });
    expect(Buffer.byteLength(stored.text.trimEnd())).toBe(MAX_EVENT_BYTES);
  });

  test("of a batch undoes what came before it", async () => {
    const [one, other] = [await here.claimed(), await here.claimed()];
    const head = await mp.head();
    const refused = await mp.batch(true, [
      envelope("task.complete", { task_id: one.task_id, epoch: one.epoch }),
      envelope("task.complete", {
        task_id: other.task_id,
        epoch: other.epoch,
        result: { log: long(62_000) },
      }),
    ]);
    expect(expectRefused(refused, "payload_too_large").details).toEqual({ index: 1 });
    expect(await mp.head()).toBe(head);
    expect(await mp.answer("task.get", { task_id: one.task_id })).toMatchObject({ status: "running" });
    await mp.done("task.complete", { task_id: one.task_id, epoch: one.epoch });
  });

  test("of what is made: each part has its size, and all of it has too much; nothing is there, the name is free", async () => {
    const { workspace_id, project_id } = here;
    const name = fresh("wide board");
    const stage = "😀".repeat(128);
    const wide = Array.from({ length: 64 }, (_, n) => ({ name: `${"😀".repeat(120)} ${n}`, stage }));
    const head = await mp.head();
    const board = envelope("board.create", { workspace_id, name, lanes: wide });
    expectRefused(await mp.post(board), "payload_too_large");
    const task = { project_id, title: "t", body: "😀".repeat(32_768) };
    expectRefused(await mp.post(envelope("task.create", task)), "payload_too_large");
    expect(await mp.head()).toBe(head);
    expect((await mp.answer("board.list", { workspace_id, name })).items).toEqual([]);
    const narrow = { ...board, payload: { workspace_id, name, lanes: [{ name: "one" }] } };
    expect((await mp.post(narrow)).json).toMatchObject({ replayed: false, version: 1 });
  });
});
