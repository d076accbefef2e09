/**
 * The bytes of artifacts through the socket (SPEC §8): what is stored, what is refused and leaves nothing, what is seen when,
 * and what a crash, a race and the end of a retention leave.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { connect } from "../../src/client/client.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { type Api, api, ask, envelope, expectNoEcho, expectRefused, type Json, MARKER, raw } from "./api.ts";

const home = tempHome();
let daemon: DaemonProcess;
let mp: Api;
beforeAll(async () => {
  daemon = await startDaemonProcess(home);
  mp = api(daemon);
});

const digestOf = (bytes: string | Uint8Array) =>
  `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
const url = (digest: string) => `/v1/artifacts/${digest}`;
let made = 0;
/** Bytes that no other test has. */
const fresh = () => new TextEncoder().encode(`bytes ${process.pid} ${++made}\n`);

const put = (digest: string, body: string | Uint8Array, to = daemon.socket) =>
  ask(to, "PUT", url(digest), body, { "content-type": "application/x-anything" });

/** Put bytes that must be taken. */
async function stored(bytes: Uint8Array): Promise<string> {
  const digest = digestOf(bytes);
  const reply = await put(digest, bytes);
  expect([200, 201]).toContain(reply.status);
  return digest;
}

/** Every file of a store, relative to its folder. */
function filesOf(folder = home): string[] {
  const artifacts = join(folder, "artifacts");
  return readdirSync(artifacts, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(artifacts.length + 1))
    .sort();
}
const fileOf = (digest: string, folder = home) =>
  join(folder, "artifacts", "sha256", digest.slice(7, 9), digest.slice(7));
const drafts = (folder = home) => filesOf(folder).filter((file) => file.startsWith("tmp"));

/** An upload of which a part has come in, and no more does. */
async function begun({ home, socket }: DaemonProcess, digest: string) {
  const connection = await Bun.connect({ unix: socket, socket: { data: () => undefined } });
  connection.write(`PUT ${url(digest)} HTTP/1.1\r\nHost: mp\r\nContent-Length: 1000000\r\n\r\nsome of it`);
  await waitFor(
    () => drafts(home).find((file) => readFileSync(join(home, "artifacts", file), "utf8") === "some of it"),
    { what: "a draft" },
  );
  return connection;
}

let workspaces = 0;
async function workspace(): Promise<string> {
  return (await mp.done("workspace.create", { name: `w-${++workspaces}` })).subject.id;
}
const link = (id: string) => ({ kind: "workspace", id });
const what = (bytes: Uint8Array, more: object) => ({
  digest: digestOf(bytes),
  size: bytes.length,
  media_type: "text/plain",
  ...more,
});
/** Register bytes that are stored; the artifact's id. */
async function registered(bytes: Uint8Array, more: object): Promise<string> {
  return (await mp.done("artifact.register", what(bytes, more))).subject.id;
}
const refusedCommand = async (type: string, payload: object) =>
  expectRefused(await mp.post(envelope(type, payload)), "conflict");

describe("an upload", () => {
  test("is stored once, is there for whoever knows the digest, and only for the daemon's user on the disk", async () => {
    const bytes = fresh();
    const digest = digestOf(bytes);
    expectRefused(await mp.get(url(digest)), "not_found");
    const first = await put(digest, bytes);
    expect([first.status, first.json]).toEqual([201, { digest, size: bytes.length }]);
    const second = await put(digest, bytes);
    expect([second.status, second.json]).toEqual([200, { digest, size: bytes.length }]);
    const reply = await mp.get(url(digest));
    expect([reply.status, reply.text]).toEqual([200, new TextDecoder().decode(bytes)]);
    expect(Object.fromEntries(reply.headers)).toMatchObject({
      "content-type": "application/octet-stream",
      "content-length": String(bytes.length),
      "content-disposition": "attachment",
      "x-content-type-options": "nosniff",
      etag: `"${digest}"`,
    });
    expect(readFileSync(fileOf(digest))).toEqual(Buffer.from(bytes));
    expect(statSync(fileOf(digest)).mode & 0o777).toBe(0o600);
    expect(statSync(join(fileOf(digest), "..")).mode & 0o777).toBe(0o700);
    expect(drafts()).toEqual([]);
  });

  test("may be empty, and may come without a length", async () => {
    const nothing = new Uint8Array();
    const digest = digestOf(nothing);
    const [reply] = (
      await raw(daemon.socket, [`PUT ${url(digest)} HTTP/1.1\r\nHost: mp\r\nContent-Length: 0\r\n\r\n`])
    ).responses;
    expect(reply!.status).toBe(201);
    const empty = await mp.get(url(digest));
    expect([empty.status, empty.text]).toEqual([200, ""]);
    const chunked = digestOf("abcdef");
    const [answer] = (
      await raw(daemon.socket, [
        `PUT ${url(chunked)} HTTP/1.1\r\nHost: mp\r\nTransfer-Encoding: chunked\r\n\r\n`,
        "3\r\nabc\r\n",
        "3\r\ndef\r\n0\r\n\r\n",
      ])
    ).responses;
    expect(JSON.parse(answer!.body)).toEqual({ digest: chunked, size: 6 });
  });

  test("with another digest than its URL says leaves nothing", async () => {
    const before = filesOf();
    const digest = digestOf("what was meant");
    const found = expectRefused(await put(digest, `what was sent ${MARKER}`), "conflict");
    expect(found).toMatchObject({
      reason: "artifact.digest_mismatch",
      details: { digest, actual: digestOf(`what was sent ${MARKER}`) },
    });
    expectNoEcho(JSON.stringify(found), home);
    expect(filesOf()).toEqual(before);
    expectRefused(await mp.get(url(digest)), "not_found");
    expectRefused(await mp.get(url(found.details!.actual as string)), "not_found");
  });

  test("names its place by a digest and nothing else", async () => {
    const before = filesOf();
    const hex = "ab".repeat(32);
    for (const bad of [
      hex,
      `sha256:${hex.toUpperCase()}`,
      `sha256:${hex}0`,
      `sha256:${hex.slice(1)}`,
      `sha512:${hex}`,
      "sha256:",
      `sha256:..%2f..%2f${hex}`,
      "..%2f..%2fkernel.db",
      "%2e%2e",
      `sha256:${hex}%00`,
      `sha256:${hex}%0a`,
      MARKER,
    ])
      for (const method of ["PUT", "GET"]) {
        const reply = await ask(daemon.socket, method, url(bad), method === "PUT" ? "x" : undefined);
        if (reply.status === 404) expectRefused(reply, "not_found");
        else expect(expectRefused(reply, "invalid_schema").errors).toHaveLength(1);
        expectNoEcho(reply.text, home);
      }
    expect(filesOf()).toEqual(before);
  });

  test("from a page of a browser is refused before anything is read", async () => {
    const reply = await ask(daemon.socket, "PUT", url(digestOf("x")), "x", { origin: "https://example.org" });
    expectRefused(reply, "policy_denied");
    expectRefused(await mp.get(url(digestOf("x")), { origin: "https://example.org" }), "policy_denied");
  });

  test("whose client is gone in the middle leaves nothing", async () => {
    const digest = digestOf("never whole");
    const connection = await begun(daemon, digest);
    expectRefused(await mp.get(url(digest)), "not_found");
    connection.terminate();
    await waitFor(() => drafts().length === 0, { what: "the draft to be removed" });
    expectRefused(await mp.get(url(digest)), "not_found");
  });

  test("twice at the same time is stored once", async () => {
    const bytes = new Uint8Array(1 << 20).fill(++made);
    const digest = digestOf(bytes);
    const replies = await Promise.all(Array.from({ length: 8 }, () => put(digest, bytes)));
    expect(replies.map((reply) => reply.status).sort()).toEqual([200, 200, 200, 200, 200, 200, 200, 201]);
    expect(digestOf(await Bun.file(fileOf(digest)).bytes())).toBe(digest);
    expect(drafts()).toEqual([]);
  });
});

describe("a download", () => {
  test("can be a part of the bytes, only their headers, or nothing new", async () => {
    const bytes = fresh();
    const digest = await stored(bytes);
    const part = await mp.get(url(digest), { range: "bytes=2-4" });
    expect([part.status, part.text]).toEqual([206, new TextDecoder().decode(bytes.slice(2, 5))]);
    expect(part.headers.get("content-range")).toBe(`bytes 2-4/${bytes.length}`);
    const head = await ask(daemon.socket, "HEAD", url(digest));
    expect([head.status, head.text, head.headers.get("content-length")]).toEqual([
      200,
      "",
      String(bytes.length),
    ]);
    const same = await mp.get(url(digest), { "if-none-match": `"x", "${digest}"` });
    expect([same.status, same.text]).toEqual([304, ""]);
  });

  test("of a file that is not on the disk any more is no bug", async () => {
    const digest = await stored(fresh());
    await Bun.file(fileOf(digest)).delete();
    expectRefused(await mp.get(url(digest)), "not_found");
  });
});

describe("the typed client", () => {
  test("sends bytes, files and streams, and reads them", async () => {
    const client = connect({ socket: daemon.socket });
    const path = join(tempHome(), "file");
    for (const make of [
      (bytes: Uint8Array<ArrayBuffer>) => bytes,
      (bytes: Uint8Array<ArrayBuffer>) => new Blob([bytes]).stream() as ReadableStream<Uint8Array>,
      async (bytes: Uint8Array<ArrayBuffer>) => {
        await Bun.write(path, bytes);
        return Bun.file(path);
      },
    ]) {
      const bytes = fresh();
      const digest = digestOf(bytes);
      expect(await client.upload(digest, await make(bytes))).toEqual({ digest, size: bytes.length });
      const found = await client.download(digest);
      if (isProblem(found)) throw new Error(JSON.stringify(found));
      expect(await found.bytes()).toEqual(bytes);
    }
    expect(await client.upload(digestOf("a"), new TextEncoder().encode("b"))).toMatchObject({
      reason: "artifact.digest_mismatch",
    });
    expect(await client.download(digestOf("nobody has this"))).toMatchObject({ code: "not_found" });
    const nobody = connect({ socket: join(home, "nobody.sock") });
    expect(await nobody.download(digestOf("a"))).toMatchObject({ code: "daemon_unavailable" });
    expect(await nobody.upload(digestOf("a"), new Blob(["a"]).stream())).toMatchObject({
      code: "daemon_unavailable",
    });
  });
});

describe("registering", () => {
  test("needs the bytes, of that size, and links of one workspace", async () => {
    const [w, other] = [await workspace(), await workspace()];
    const bytes = fresh();
    const digest = digestOf(bytes);
    const links = [link(w)];
    expect(await refusedCommand("artifact.register", what(bytes, { links }))).toMatchObject({
      reason: "artifact.bytes_missing",
      details: { digest },
    });
    await stored(bytes);
    expect(await refusedCommand("artifact.register", what(bytes, { links, size: 1 }))).toMatchObject({
      reason: "artifact.size_mismatch",
      details: { digest, size: 1, actual: bytes.length },
    });
    expect(
      await refusedCommand("artifact.register", what(bytes, { links: [...links, link(other)] })),
    ).toMatchObject({
      reason: "artifact.other_workspace",
      details: { ...link(other), workspace_id: other },
    });
    const artifact_id = await registered(bytes, { links, name: "it" });
    expect(await mp.answer("artifact.get", { artifact_id })).toMatchObject({
      workspace_id: w,
      digest,
      size: bytes.length,
      stored: true,
      links: [link(w)],
    });
    expect(await mp.answer("artifact.list", { linked_to: w })).toMatchObject({
      items: [{ artifact_id }],
      next: null,
    });
  });

  test("links to everything that lies in a workspace, and each finds it", async () => {
    const id = async (type: string, payload: object) => (await mp.done(type, payload)).subject.id;
    const workspace_id = await workspace();
    const project_id = await id("project.create", { workspace_id, name: "p" });
    const links = [
      { kind: "session", id: await id("session.spawn", { workspace_id, agent: { name: "a" } }) },
      { kind: "task", id: await id("task.create", { project_id, title: "t" }) },
      { kind: "worktree", id: await id("worktree.register", { project_id, path: home }) },
      { kind: "board", id: await id("board.create", { workspace_id, name: "b", lanes: [{ name: "l" }] }) },
      { kind: "project", id: project_id },
      link(workspace_id),
    ];
    const bytes = fresh();
    await stored(bytes);
    const artifact_id = await registered(bytes, { links });
    const found = (await mp.answer("artifact.get", { artifact_id })) as {
      links: Json[];
      workspace_id: string;
    };
    expect(found.workspace_id).toBe(workspace_id);
    expect(found.links.map((each) => each.id).sort()).toEqual(links.map((each) => each.id).sort());
    for (const each of links)
      expect(await mp.answer("artifact.list", { linked_to: each.id })).toMatchObject({
        items: [{ artifact_id }],
      });
    for (const { kind } of links)
      expectRefused(
        await mp.post(envelope("artifact.link", { artifact_id, links: [{ kind, id: artifact_id }] })),
        "not_found",
      );
  });

  test("the end of the last artifact of the bytes is their end, and sending them again a new beginning", async () => {
    const links = [link(await workspace())];
    const bytes = fresh();
    const digest = await stored(bytes);
    const [first, second] = [await registered(bytes, { links }), await registered(bytes, { links })];
    await mp.done("artifact.expire", { artifact_id: first });
    expect((await mp.get(url(digest))).status).toBe(200);
    expect(await mp.answer("artifact.get", { artifact_id: first })).toMatchObject({
      status: "expired",
      stored: true,
    });

    await mp.done("artifact.expire", { artifact_id: second, reason: "not needed" });
    const { expired_at } = await mp.answer("artifact.get", { artifact_id: second });
    const gone = { reason: "artifact.bytes_expired", details: { digest, artifact_id: second, expired_at } };
    expect(expectRefused(await mp.get(url(digest)), "conflict")).toMatchObject(gone);
    expect(await refusedCommand("artifact.register", what(bytes, { links }))).toMatchObject(gone);
    await waitFor(() => !existsSync(fileOf(digest)), { what: "the file to be removed" });
    expect(await mp.answer("artifact.get", { artifact_id: second })).toMatchObject({
      status: "expired",
      expire_reason: "not needed",
      digest,
      stored: false,
    });

    expect((await put(digest, bytes)).status).toBe(201);
    await registered(bytes, { links });
    expect((await mp.get(url(digest))).text).toBe(new TextDecoder().decode(bytes));
  });

  test("with a retention keeps the bytes that long, also over a restart", async () => {
    const mine = await startDaemonProcess(tempHome());
    const own = api(mine);
    const { subject } = await own.done("workspace.create", { name: "w" });
    const bytes = fresh();
    await put(digestOf(bytes), bytes, mine.socket);
    const register = (ms: number) =>
      own.done(
        "artifact.register",
        what(bytes, { links: [link(subject.id)], retention: { expire_after_ms: ms } }),
      );
    const soon = await register(1_000);
    const late = await register(3_600_000);
    await mine.restart();
    const state = async (of: Json & { subject: { id: string } }) =>
      (await own.answer("artifact.get", { artifact_id: of.subject.id })) as { status: string };
    await waitFor(async () => (await state(soon)).status === "expired", { what: "the retention to end" });
    expect(await state(soon)).toMatchObject({ expire_reason: "retention", expires_at: null, stored: true });
    expect((await state(late)).status).toBe("available");
    await own.done("artifact.expire", { artifact_id: late.subject.id });
    await waitFor(() => !existsSync(fileOf(digestOf(bytes), mine.home)), { what: "the file to be removed" });
  });
});

test("whoever sends bytes while the last artifact of them expires never finds half of it", async () => {
  const links = [link(await workspace())];
  const bytes = fresh();
  const digest = await stored(bytes);
  for (let round = 0; round < 40; round++) {
    const artifact_id = await registered(bytes, { links });
    const [, again, seen] = await Promise.all([
      mp.done("artifact.expire", { artifact_id }),
      put(digest, bytes),
      mp.get(url(digest)),
    ]);
    expect([200, 201]).toContain(again.status);
    // Before the end, or after it.
    if (seen.status === 200) expect(seen.text).toBe(new TextDecoder().decode(bytes));
    else expect(expectRefused(seen, "conflict").reason).toBe("artifact.bytes_expired");
    // Whichever came first: the store says the same to everybody, and the disk agrees with it.
    const { stored: row } = await mp.answer("artifact.get", { artifact_id });
    if (row) {
      expect((await mp.get(url(digest))).text).toBe(new TextDecoder().decode(bytes));
    } else {
      expectRefused(await mp.get(url(digest)), "conflict");
      expect((await put(digest, bytes)).status).toBe(201);
    }
    expect(await mp.answer("artifact.get", { artifact_id })).toMatchObject({ stored: true });
    expect(existsSync(fileOf(digest))).toBe(true);
  }
});

test.each(["SIGKILL", "SIGTERM"] as const)(
  "a daemon that ends by %s while bytes come in shows nothing of them, and takes away what was there",
  async (signal) => {
    const mine = await startDaemonProcess(tempHome());
    const whole = fresh();
    await put(digestOf(whole), whole, mine.socket);
    const digest = digestOf("never whole");
    const connection = await begun(mine, digest);
    const [draft] = drafts(mine.home) as [string];
    expect(await mine.kill(signal)).toBe(signal === "SIGKILL" ? 137 : 0);
    await mine.restart();
    connection.terminate();
    await waitFor(() => !existsSync(join(mine.home, "artifacts", draft)), { what: "the draft to be swept" });
    const own = api(mine);
    expectRefused(await own.get(url(digest)), "not_found");
    expect((await own.get(url(digestOf(whole)))).text).toBe(new TextDecoder().decode(whole));
    expect(filesOf(mine.home)).toHaveLength(1);
  },
);

test.skipIf(process.platform !== "linux")(
  "300 MB go in and out in little memory",
  async () => {
    const mine = await startDaemonProcess(tempHome());
    const peak = () =>
      Number(/VmHWM:\s*(\d+)/.exec(readFileSync(`/proc/${mine.info.pid}/status`, "utf8"))![1]);
    const part = crypto.getRandomValues(new Uint8Array(1 << 16));
    const parts = 4_800;
    const hash = new Bun.CryptoHasher("sha256");
    for (let n = 0; n < parts; n++) hash.update(part);
    const digest = `sha256:${hash.digest("hex")}`;
    let sent = 0;
    const body = new ReadableStream<Uint8Array>({
      pull: (controller) => (sent++ < parts ? controller.enqueue(part) : controller.close()),
    });
    const client = connect({ socket: mine.socket });
    const before = peak();
    expect(await client.upload(digest, body)).toEqual({ digest, size: parts << 16 });
    const back = await client.download(digest);
    if (isProblem(back)) throw new Error(JSON.stringify(back));
    const check = new Bun.CryptoHasher("sha256");
    for await (const chunk of back.body!) check.update(chunk);
    expect(`sha256:${check.digest("hex")}`).toBe(digest);
    expect((peak() - before) / 1_024).toBeLessThan(100);
  },
  60_000,
);
