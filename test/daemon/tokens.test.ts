/**
 * Tokens of sessions on the real socket (SPEC §8, §10): who a request is recorded as, and every way in which a token is good no
 * more. Left out on purpose: how long a comparison takes.
 */
import { describe, expect, test } from "bun:test";
import { chmodSync, readdirSync, readFileSync, rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { api, ask, envelope, expectProblem, expectRefused, type Json } from "../http/api.ts";
import { waitFor } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";

const daemon = await startDaemonProcess();
const mp = api(daemon);
const keyFile = join(daemon.home, "keys", "session.key");
const workspace_id = (await mp.done("workspace.create", { name: "demo" })).subject.id;

async function session(): Promise<string> {
  const spawned = await mp.done("session.spawn", { workspace_id, agent: { name: "tester" } });
  return spawned.subject.id;
}

async function tokenOf(session_id: string): Promise<string> {
  const answer = await mp.answer("token.session", { session_id });
  return String(answer.token);
}

const as = (token: string) => ({ authorization: `Bearer ${token}` });

/** A command with a token. */
const create = (name: string, token: string) => mp.post(envelope("workspace.create", { name }), as(token));

async function actorOf(reply: { readonly json: Json }): Promise<unknown> {
  const [event] = reply.json.events as { event_id: string }[];
  return (await mp.get(`/v1/events/${event!.event_id}`)).json.actor;
}

async function refusedNow(token: string): Promise<string> {
  const head = await mp.head();
  const problem = expectRefused(await create(`no ${crypto.randomUUID()}`, token), "unauthorized");
  expect(problem.hint).toContain("MP_TOKEN");
  if (token.length > 4) expect(JSON.stringify(problem)).not.toContain(token.slice(4));
  expectRefused(await mp.get("/v1/queries/workspace.list", as(token)), "unauthorized");
  expectRefused(await mp.get("/v1/events?limit=1", as(token)), "unauthorized");
  const bytes = crypto.randomUUID();
  const digest = `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
  const artifact = `/v1/artifacts/${digest}`;
  const sent = { ...as(token), "content-type": "application/octet-stream" };
  expectRefused(await ask(daemon.socket, "PUT", artifact, bytes, sent), "unauthorized");
  expectRefused(await mp.get(artifact, as(token)), "unauthorized");
  expectRefused(await mp.get(artifact), "not_found");
  expect(await mp.head()).toBe(head);
  return problem.detail;
}

describe("a token that is good", () => {
  test("makes a command the session's, on behalf of the daemon's user, with keys of its own", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    expect(token).toMatch(new RegExp(`^mps_${session_id}_1_[\\w-]{43}$`));
    const plain = await mp.post(envelope("workspace.create", { name: "by the user" }));
    const user = (await actorOf(plain)) as { id: string };
    const command = envelope("workspace.create", { name: "by the session" });
    const reply = await mp.post(command, as(token));
    expect(await actorOf(reply)).toEqual({
      id: session_id,
      kind: "session",
      on_behalf_of: { id: user.id, kind: "user" },
    });
    // Another principal: the same key is free for the user.
    const again = await mp.post({ ...command, payload: { name: "the same key" } });
    expect(again.status).toBe(200);
    expect((await mp.post(command, as(token))).json.replayed).toBe(true);
  });

  test("is good for queries, batches, events and the WebSocket, and the name of the scheme in any case", async () => {
    const token = await tokenOf(await session());
    expect((await mp.get("/v1/queries/workspace.list", as(token))).status).toBe(200);
    expect((await mp.get("/v1/events?limit=1", { authorization: `bearer ${token}` })).status).toBe(200);
    const batch = { atomic: true, commands: [envelope("workspace.create", { name: "in a batch" })] };
    const reply = await ask(daemon.socket, "POST", "/v1/commands/batch", batch, as(token));
    expect(reply.status).toBe(200);
  });

  test("outlives a restart of the daemon", async () => {
    const token = await tokenOf(await session());
    await daemon.restart("SIGKILL");
    expect((await create("after the restart", token)).status).toBe(200);
  });

  test("is nowhere on disk; only its key is, for this user alone", async () => {
    const token = await tokenOf(await session());
    expect((await create("looked for", token)).status).toBe(200);
    const secret = token.slice(-43);
    const files = readdirSync(daemon.home, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name));
    expect(files.length).toBeGreaterThan(3);
    expect(files.filter((file) => readFileSync(file).includes(secret))).toEqual([]);
    const { mode, size } = statSync(keyFile);
    expect([mode & 0o777, size, statSync(join(daemon.home, "keys")).mode & 0o777]).toEqual([
      0o600, 32, 0o700,
    ]);
  });
});

describe("a token that is not good", () => {
  test("forged, of another session or epoch, cut, of another scheme", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    const other = await session();
    const mac = token.slice(-43);
    const flipped = `${mac[0] === "A" ? "B" : "A"}${mac.slice(1)}`;
    const wrong = [
      `mps_${session_id}_1_${flipped}`,
      `mps_${other}_1_${mac}`,
      `mps_${session_id}_2_${mac}`,
      `mps_${session_id}_01_${mac}`,
      token.slice(0, -1),
      `${token}A`,
      "mps_",
      "some-word",
    ];
    for (const each of wrong) expect(await refusedNow(each)).toBe("the token is none of this daemon's");
    for (const authorization of ["", "Bearer", `Basic ${token}`, token, `Bearer ${token} ${token}`])
      expectRefused(await mp.get("/v1/queries/workspace.list", { authorization }), "unauthorized");
    // The last digit of the MAC has two bits that mean nothing: another spelling is another token.
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const last = alphabet.indexOf(token.at(-1)!);
    expect(await refusedNow(`${token.slice(0, -1)}${alphabet[last ^ 1]}`)).toBeString();
  });

  test("ends with its session", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    await mp.done("session.end", { session_id, outcome: "cancelled" });
    expect(await refusedNow(token)).toBe("the token's session is cancelled");
  });

  test("ends with its session, but what was carried out before is answered again under its key", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    const made = envelope("workspace.create", { name: `before ${session_id}` });
    const end = envelope("session.end", { session_id, outcome: "cancelled" });
    const first = [await mp.post(made, as(token)), await mp.post(end, as(token))];
    expect(first.map(({ status }) => status)).toEqual([200, 200]);
    for (const [n, command] of [made, end].entries()) {
      const again = await mp.post(command, as(token));
      expect(again.json).toEqual({ ...first[n]!.json, replayed: true });
    }
    // The key names no other command after the end either.
    const other = { ...made, payload: { name: `other ${session_id}` } };
    expectRefused(await mp.post(other, as(token)), "idempotency_key_reused");
  });

  test("ends in the transaction in which its session ends: no command slips in behind", async () => {
    const batch = async (atomic: boolean) => {
      const session_id = await session();
      const token = await tokenOf(session_id);
      const commands = [
        envelope("session.end", { session_id, outcome: "cancelled" }),
        envelope("workspace.create", { name: `behind ${session_id}` }),
      ];
      return ask(daemon.socket, "POST", "/v1/commands/batch", { atomic, commands }, as(token));
    };
    const { items } = (await batch(false)).json as { items: Json[] };
    expect(items.map((each) => each.kind ?? each.code)).toEqual(["receipt", "problem"]);
    expect(items[1]).toMatchObject({ code: "unauthorized", detail: "the token's session is cancelled" });
    const head = await mp.head();
    expect(expectRefused(await batch(true), "unauthorized").details).toEqual({ index: 1 });
    // The session and its token of the second batch are there, nothing else.
    expect(await mp.head()).toBe(head + 1);
  });

  test("leaves nothing in the log after its session's end, however many connections use it", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    const burst = (n: number) =>
      Array.from({ length: 20 }, (_, k) => create(`burst ${session_id} ${n} ${k}`, token));
    await Promise.all([
      ...burst(1),
      mp.post(envelope("session.end", { session_id, outcome: "cancelled" }), as(token)),
      ...burst(2),
    ]);
    const { text } = await mp.get("/v1/events", { accept: "application/x-ndjson" });
    const events = text
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Json);
    const own = events.filter((each) => (each.actor as Json).id === session_id);
    expect(own.at(-1)!.event_type).toBe("session.ended");
  });

  test("ends when its session is taken up again under another epoch", async () => {
    const spawned = await mp.done("session.spawn", {
      workspace_id,
      agent: { name: "short" },
      ttl_ms: 1_000,
    });
    const session_id = spawned.subject.id;
    const token = await tokenOf(session_id);
    await waitFor(async () => (await mp.answer("session.get", { session_id })).status === "lost", {
      what: "the loss of the session",
    });
    expect(await refusedNow(token)).toBe("the token's session is lost");
    await mp.done("session.resume", { session_id, ttl_ms: 60_000 });
    expect(await refusedNow(token)).toBe("the token is of an earlier epoch of its session");
    expect((await create("in the next epoch", await tokenOf(session_id))).status).toBe(200);
  });

  test("ends on a WebSocket that was opened with it", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    const ws = new WebSocket(`ws+unix://${daemon.socket}:/v1/stream`, { headers: as(token) } as never);
    const next = () =>
      new Promise<Json>((resolve) => {
        ws.onmessage = ({ data }) => resolve(JSON.parse(String(data)) as Json);
      });
    await new Promise((resolve, reject) => {
      ws.onopen = resolve;
      ws.onclose = reject;
    });
    const send = (name: string) => {
      const answer = next();
      ws.send(JSON.stringify({ request_id: name, ...envelope("workspace.create", { name }) }));
      return answer;
    };
    const done = await send("socket-1");
    expect(await actorOf({ json: done })).toMatchObject({ id: session_id, kind: "session" });
    await mp.done("session.end", { session_id, outcome: "cancelled" });
    const { request_id, kind, ...problem } = await send("socket-2");
    expect([request_id, kind]).toEqual(["socket-2", "problem"]);
    expectProblem(problem, "unauthorized");
    ws.close();
    const refused = new WebSocket(`ws+unix://${daemon.socket}:/v1/stream`, { headers: as(token) } as never);
    const opened = await new Promise((resolve) => {
      refused.onopen = () => resolve(true);
      refused.onclose = () => resolve(false);
    });
    expect(opened).toBe(false);
  });
});

describe("who gets one", () => {
  test("the user, for a session that is live; never a session", async () => {
    const session_id = await session();
    const token = await tokenOf(session_id);
    const query = { type: "token.session", payload: { session_id } };
    expectRefused(await mp.post(query, as(token)), "policy_denied");
    expectRefused(
      await mp.get(`/v1/queries/token.session?session_id=${session_id}`, as(token)),
      "policy_denied",
    );
    await mp.done("session.end", { session_id, outcome: "cancelled" });
    const ended = expectRefused(await mp.post(query), "conflict");
    expect([ended.reason, ended.details]).toEqual(["session.not_live", { session_id, status: "cancelled" }]);
    const nobody = { session_id: "01900000-0000-7000-8000-000000000000" };
    expectRefused(await mp.post({ type: "token.session", payload: nobody }), "not_found");
  });
});

describe("the key", () => {
  test("is made anew when it is gone, damaged or open to others, and what it made is good no more", async () => {
    const session_id = await session();
    const spoil = [() => rmSync(keyFile), () => chmodSync(keyFile, 0o640), () => truncateSync(keyFile, 31)];
    for (const [at, how] of spoil.entries()) {
      const token = await tokenOf(session_id);
      await daemon.kill();
      how();
      await daemon.restart();
      expect([at, await refusedNow(token)]).toEqual([at, "the token is none of this daemon's"]);
      const fresh = await tokenOf(session_id);
      expect((await create(`fresh ${at}`, fresh)).status).toBe(200);
      expect([statSync(keyFile).mode & 0o777, statSync(keyFile).size]).toEqual([0o600, 32]);
    }
  });
});
