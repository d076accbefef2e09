/**
 * The artifact store beside a real writer on a real disk (SPEC §8): its limit, a disk that cannot be written, and what the
 * sweep takes away and leaves.
 */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { WriteQueue } from "../../src/daemon/queue.ts";
import { Store } from "../../src/daemon/store.ts";
import { aggregates } from "../../src/domain/index.ts";
import { systemClock } from "../../src/kernel/clock.ts";
import { openForReading } from "../../src/kernel/database.ts";
import { daemonCommand } from "../../src/kernel/execute.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { api, ask, expectRefused } from "../http/api.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";
import { faults, unavailable } from "../support/faults.ts";

const registry = buildRegistry(aggregates, system);
const DAY_MS = 24 * 3_600_000;
const digestOf = (bytes: string) => `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
const streamOf = (...parts: string[]) => {
  const all = parts.map((part) => new TextEncoder().encode(part));
  return new ReadableStream<Uint8Array>({
    pull: (controller) => (all.length > 0 ? controller.enqueue(all.shift()!) : controller.close()),
  });
};

type More = Partial<ConstructorParameters<typeof Store>[0]>;

/** A writer and a store in a folder of their own. */
async function opened(more: More = {}) {
  const folder = mkdtempSync(join(tmpdir(), "mp-store-"));
  const told: string[] = [];
  let store: Store | undefined;
  const queueOpened = await WriteQueue.open(join(folder, "kernel.db"), systemClock.id(), {
    committed: () => undefined,
    progress: () => undefined,
    released: (digests) => store?.released(digests),
    shutdown: () => undefined,
    readOnly: () => undefined,
    warning: (message) => told.push(message),
    bug: (_, error) => told.push(error),
    lost: (error) => told.push(error),
  });
  if ("refused" in queueOpened) throw new Error(queueOpened.refused);
  const { queue } = queueOpened;
  const db = openForReading(join(folder, "kernel.db"));
  const artifacts = join(folder, "artifacts");
  const again = (also: More = {}) =>
    new Store({
      folder: artifacts,
      db,
      registry,
      change: (change) => queue.blob(change),
      warning: (message) => told.push(message),
      bug: (error) => told.push(String(error)),
      ...more,
      ...also,
    });
  store = again();
  afterAll(async () => {
    await store?.close();
    db.close();
    await queue.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const run = async (type: string, payload: Record<string, unknown>) => {
    const found = await queue.submit({
      commands: [daemonCommand(type, payload, crypto.randomUUID())],
      atomic: false,
    });
    if (isProblem(found) || !("receipt" in found[0]!)) throw new Error(JSON.stringify(found));
    return (JSON.parse(found[0].receipt) as { subject: { id: string } }).subject.id;
  };
  return {
    store,
    again,
    told,
    run,
    queue,
    artifacts,
    file: (digest: string) => join(artifacts, "sha256", digest.slice(7, 9), digest.slice(7)),
    rows: () =>
      db
        .query<{ digest: string }, []>("SELECT digest FROM blobs ORDER BY digest")
        .all()
        .map((row) => row.digest),
    row: (digest: string) =>
      db.query<{ stored_at: number }, [string]>("SELECT stored_at FROM blobs WHERE digest = ?").get(digest)!,
    /** Let bytes have been stored so many milliseconds earlier. */
    age(digest: string, ms: number) {
      const other = new Database(join(folder, "kernel.db"));
      other.run("PRAGMA busy_timeout = 5000");
      other.query("UPDATE blobs SET stored_at = stored_at - ? WHERE digest = ?").run(ms, digest);
      other.close();
    },
    drafts: () => readdirSync(join(artifacts, "tmp")),
    /** Store bytes that must be taken. */
    async keep(bytes: string) {
      const digest = digestOf(bytes);
      const found = await store.put(digest, streamOf(bytes), bytes.length);
      if (isProblem(found)) throw new Error(JSON.stringify(found));
      return digest;
    },
    /** Register bytes that are stored. */
    async register(bytes: string) {
      const workspace = await run("workspace.create", { name: crypto.randomUUID() });
      return run("artifact.register", {
        digest: digestOf(bytes),
        size: bytes.length,
        media_type: "text/plain",
        links: [{ kind: "workspace", id: workspace }],
      });
    },
  };
}

const problemOf = (found: object): Problem => {
  if (!isProblem(found)) throw new Error(`expected a problem: ${JSON.stringify(found)}`);
  return found;
};

describe("an upload", () => {
  test("has a limit, whether it says its length or not, and what is beyond it leaves nothing", async () => {
    const { store, drafts, rows } = await opened({ max_bytes: 8 });
    const exact = await store.put(digestOf("12345678"), streamOf("1234", "5678"), undefined);
    expect(exact).toEqual({ digest: digestOf("12345678"), size: 8, created: true });
    for (const length of [9, undefined])
      expect(
        problemOf(await store.put(digestOf("123456789"), streamOf("1234", "56789"), length)),
      ).toMatchObject({
        code: "payload_too_large",
        details: { max_bytes: 8 },
      });
    expect([drafts(), rows()]).toEqual([[], [digestOf("12345678")]]);
  });

  test("into a folder that another has just made is as durable as that", async () => {
    const held = Promise.withResolvers<void>();
    const begun: string[] = [];
    const ended: string[] = [];
    const it = await opened({
      async sync(folder) {
        begun.push(folder);
        if (begun.length === 1) await held.promise;
        ended.push(folder);
      },
    });
    const pair = new Map<string, string>();
    let [first, second] = ["", ""];
    for (let n = 0; second === ""; n += 1) {
      const before = pair.get(digestOf(`${n}`).slice(7, 9));
      if (before !== undefined) [first, second] = [before, `${n}`];
      pair.set(digestOf(`${n}`).slice(7, 9), `${n}`);
    }
    const folder = dirname(it.file(digestOf(first)));
    const one = it.keep(first);
    await waitFor(() => begun.length === 1, { what: "the first to make the folder" });
    await it.keep(second);
    // The first has not come to it: the second has seen to it by itself.
    expect(begun.filter((each) => each === dirname(folder)).length).toBeGreaterThan(0);
    held.resolve();
    await one;
    expect(new Set(ended)).toEqual(new Set([folder, dirname(folder), it.artifacts]));
    // What is known to be durable is not asked for again.
    const known = begun.length;
    await it.keep(first);
    expect(begun.slice(known)).toEqual([folder]);
  });

  test("of another length than was told is refused, and leaves nothing", async () => {
    const { store, drafts, rows } = await opened();
    const digest = digestOf("abc");
    expect(problemOf(await store.put(digest, streamOf("abc"), 4))).toMatchObject({
      code: "conflict",
      reason: "artifact.size_mismatch",
      details: { digest, size: 4, actual: 3 },
    });
    expect([drafts(), rows()]).toEqual([[], []]);
  });

  test("that breaks off is refused, and leaves nothing", async () => {
    const { store, drafts, rows } = await opened();
    let first = true;
    const broken = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (!first) throw new Error("gone");
        first = false;
        controller.enqueue(new Uint8Array(3));
      },
    });
    expect(problemOf(await store.put(digestOf("abc"), broken, undefined)).code).toBe("malformed_request");
    expect([drafts(), rows()]).toEqual([[], []]);
  });

  test("that brings nothing for long is given up, and leaves nothing", async () => {
    const { store, drafts, rows } = await opened({ stalled_ms: 20 });
    const { promise: cancelled, resolve } = Promise.withResolvers<void>();
    let first = true;
    const stalled = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (!first) return new Promise<void>(() => undefined);
        first = false;
        controller.enqueue(new Uint8Array(3));
        return undefined;
      },
      cancel: () => resolve(),
    });
    expect(problemOf(await store.put(digestOf("abc"), stalled, undefined)).code).toBe("malformed_request");
    await cancelled;
    expect([drafts(), rows()]).toEqual([[], []]);
  });

  test("to a folder that cannot be written is refused, and so is one whose row cannot be", async () => {
    const full = await opened();
    rmSync(join(full.artifacts, "tmp"), { recursive: true });
    writeFileSync(join(full.artifacts, "tmp"), "a file");
    const found = problemOf(await full.store.put(digestOf("abc"), streamOf("abc"), 3));
    expect([found.code, found.retryable]).toEqual(["read_only", true]);
    expect(JSON.stringify(found)).not.toContain(full.artifacts);
    expect(full.told).toEqual([]);

    const refusing = await opened();
    await refusing.store.close();
    const closed = problemOf(await refusing.store.put(digestOf("abc"), streamOf("abc"), 3));
    expect(closed.code).toBe("overloaded");
    expect([refusing.drafts(), refusing.rows(), existsSync(refusing.file(digestOf("abc")))]).toEqual([
      [],
      [],
      false,
    ]);
  });

  test.skipIf(unavailable !== undefined)(
    "is refused while the database finds no room, leaves no file, and is taken once there is room",
    async () => {
      const disk = faults();
      const home = tempHome();
      const { socket } = await startDaemonProcess(home, disk.env);
      const digest = digestOf("abc");
      const path = `/v1/artifacts/${digest}`;
      disk.arm("enospc");
      expectRefused(await ask(socket, "PUT", path, "abc"), "read_only");
      expectRefused(await ask(socket, "GET", path), "not_found");
      expect(existsSync(join(home, "artifacts", "sha256", digest.slice(7, 9), digest.slice(7)))).toBe(false);
      disk.disarm("enospc");
      expect((await ask(socket, "PUT", path, "abc")).status).toBe(201);
    },
  );

  test.skipIf(unavailable !== undefined)(
    "whose bytes the disk does not promise to keep is refused, leaves nothing, and is taken once it does",
    async () => {
      const disk = faults();
      const home = tempHome();
      const { socket } = await startDaemonProcess(home, disk.env);
      const digest = digestOf("abc");
      const path = `/v1/artifacts/${digest}`;
      disk.arm("draft-eio");
      expectRefused(await ask(socket, "PUT", path, "abc"), "read_only");
      expectRefused(await ask(socket, "GET", path), "not_found");
      const folder = join(home, "artifacts");
      const file = join(folder, "sha256", digest.slice(7, 9), digest.slice(7));
      expect([existsSync(file), readdirSync(join(folder, "tmp"))]).toEqual([false, []]);
      // Nothing else is wrong with the disk: commands go on, and the same bytes are new when they are sent again.
      await api({ socket }).done("workspace.create", { name: "w" });
      disk.disarm("draft-eio");
      expect((await ask(socket, "PUT", path, "abc")).status).toBe(201);
      expect((await ask(socket, "GET", path)).text).toBe("abc");
    },
  );

  test.skipIf(unavailable !== undefined)(
    "whose row may or may not be durable is answered so, and found out at the next start",
    async () => {
      const disk = faults();
      const home = tempHome();
      const daemon = await startDaemonProcess(home, disk.env);
      const path = `/v1/artifacts/${digestOf("abc")}`;
      disk.arm("fsync-eio");
      expectRefused(await ask(daemon.socket, "PUT", path, "abc"), "outcome_unknown");
      disk.disarm("fsync-eio");
      await daemon.restart();
      const { status } = await ask(daemon.socket, "GET", path);
      expect([200, 404]).toContain(status);
      // Either way nothing is half there.
      expect((await ask(daemon.socket, "PUT", path, "abc")).status).toBe(status === 200 ? 200 : 201);
      expect((await ask(daemon.socket, "GET", path)).text).toBe("abc");
      await api(daemon).done("workspace.create", { name: "w" });
    },
  );
});

describe("the sweep", () => {
  test("takes away drafts and files without a row, and leaves what is stored, and what is no file of the store", async () => {
    const it = await opened();
    const digest = await it.keep("kept");
    const orphan = it.file(digestOf("without a row"));
    mkdirSync(dirname(orphan), { recursive: true });
    writeFileSync(orphan, "without a row");
    writeFileSync(join(it.artifacts, "tmp", "left behind"), "x");
    const note = join(it.artifacts, "sha256", "README");
    const misplaced = join(dirname(it.file(digest)), "note");
    writeFileSync(note, "not ours");
    writeFileSync(misplaced, "not ours");
    await it.again().sweep();
    expect([existsSync(orphan), it.drafts()]).toEqual([false, []]);
    expect([existsSync(it.file(digest)), existsSync(note), existsSync(misplaced)]).toEqual([
      true,
      true,
      true,
    ]);
    expect([it.rows(), it.told]).toEqual([[digest], []]);
  });

  test("leaves an upload that is under way", async () => {
    const it = await opened();
    const { promise, resolve } = Promise.withResolvers<void>();
    let parts = 0;
    const slow = new ReadableStream<Uint8Array>({
      async pull(controller) {
        parts += 1;
        if (parts === 2) await promise;
        if (parts === 3) return controller.close();
        controller.enqueue(new TextEncoder().encode("part"));
      },
    });
    const putting = it.store.put(digestOf("partpart"), slow, undefined);
    await waitFor(() => parts === 2 && it.drafts().length === 1, { what: "a draft" });
    await it.store.sweep();
    expect(it.drafts()).toHaveLength(1);
    resolve();
    expect(await putting).toMatchObject({ created: true });
  });

  test("tells of bytes that are gone, which can be sent again", async () => {
    const it = await opened();
    const digest = await it.keep("lost");
    rmSync(it.file(digest));
    await it.store.sweep();
    expect(it.rows()).toEqual([]);
    expect(it.told).toEqual([expect.stringContaining(digest)]);
    expect(problemOf(it.store.find(digest)).code).toBe("not_found");
    expect(await it.store.put(digest, streamOf("lost"), undefined)).toMatchObject({ created: true });
  });

  test("never takes away what an artifact has: it gets its row again, once its bytes are looked at", async () => {
    const it = await opened();
    const [wanted, changed, loose] = [
      await it.keep("wanted"),
      await it.keep("changed"),
      await it.keep("loose"),
    ];
    const artifact_id = await it.register("wanted");
    await it.register("changed");
    const all = [wanted, changed, loose].map((digest) => it.file(digest));
    for (const path of all) renameSync(path, `${path}.away`);
    await it.store.sweep();
    expect(it.rows()).toEqual([]);
    for (const path of all) renameSync(`${path}.away`, path);
    writeFileSync(it.file(changed), "Changed");
    const before = new Date("2026-01-02T03:04:05Z");
    utimesSync(it.file(wanted), before, before);
    it.told.length = 0;
    await it.again().sweep();
    expect(it.rows()).toEqual([wanted]);
    expect(it.row(wanted).stored_at).toBe(before.getTime());
    expect([existsSync(it.file(changed)), existsSync(it.file(loose))]).toEqual([true, false]);
    expect(it.told.sort()).toEqual([
      expect.stringMatching(`the bytes of ${wanted} are in the store again`),
      expect.stringMatching(`the file of ${changed} has other bytes`),
    ]);
    expect(it.store.find(wanted)).toMatchObject({ size: 6 });
    // What was found again goes with its artifact as if it had never been away.
    await it.run("artifact.expire", { artifact_id });
    await waitFor(() => !existsSync(it.file(wanted)), { what: "the file to be removed" });
    expect(it.rows()).toEqual([]);
  });

  test("says nothing of files whose folder is away or cannot be read, except that it is", async () => {
    const it = await opened();
    const digest = await it.keep("precious");
    await it.register("precious");
    const files = join(it.artifacts, "sha256");
    renameSync(files, `${files}.away`);
    await it.again().sweep();
    symlinkSync(files, files);
    await it.again().sweep();
    expect(it.rows()).toEqual([digest]);
    expect(it.told).toEqual(
      [1, 2].map(() => expect.stringContaining("1 files of the artifact store cannot")),
    );
    unlinkSync(files);
    renameSync(`${files}.away`, files);
    await it.again().sweep();
    expect(it.store.find(digest)).toMatchObject({ size: 8 });
    expect(it.told).toHaveLength(2);
  });

  test("takes away what nobody has registered in a day, and nothing before", async () => {
    let now = Date.now();
    const it = await opened({ now: () => now });
    const [loose, kept] = [await it.keep("loose"), await it.keep("kept")];
    await it.register("kept");
    now += DAY_MS - 60_000;
    await it.store.sweep();
    expect(it.rows()).toEqual([loose, kept].sort());
    now += 120_000;
    await it.store.sweep();
    expect(it.rows()).toEqual([kept]);
    expect([existsSync(it.file(loose)), existsSync(it.file(kept))]).toEqual([false, true]);
    expect(it.drafts()).toEqual([]);
  });

  test("gives whoever sends bytes again all the time again", async () => {
    const it = await opened();
    const digest = await it.keep("again");
    it.age(digest, 2 * DAY_MS);
    expect(await it.store.put(digest, streamOf("again"), undefined)).toMatchObject({ created: false });
    await it.store.sweep();
    expect(it.rows()).toEqual([digest]);
    it.age(digest, 2 * DAY_MS);
    await it.store.sweep();
    expect([it.rows(), existsSync(it.file(digest))]).toEqual([[], false]);
  });

  test("ends what a crash between the end of an artifact and that of its bytes has left, and not what came after", async () => {
    const it = await opened();
    const digest = await it.keep("over");
    const artifact_id = await it.register("over");
    await it.run("artifact.expire", { artifact_id });
    await waitFor(() => !existsSync(it.file(digest)), { what: "the file to be removed" });
    // Sent again: it waits for whoever registers it.
    await it.keep("over");
    await it.store.sweep();
    expect(it.rows()).toEqual([digest]);
    // From before the end: what should have gone with it.
    it.age(digest, 3_600_000);
    await it.store.sweep();
    expect([it.rows(), existsSync(it.file(digest)), it.told]).toEqual([[], false, []]);
  });

  test("leaves what was sent again before another artifact of the same bytes expired, for its day", async () => {
    let now = Date.now();
    const it = await opened({ now: () => now });
    const digest = await it.keep("same");
    const artifact_id = await it.register("same");
    // It must be told apart from what was sent for the first artifact.
    const registered = Date.now();
    await waitFor(() => Date.now() > registered, { what: "the next millisecond" });
    expect(await it.store.put(digest, streamOf("same"), 4)).toMatchObject({ created: false });
    await it.run("artifact.expire", { artifact_id });
    await it.store.sweep();
    expect([it.rows(), existsSync(it.file(digest))]).toEqual([[digest], true]);
    const again = await it.register("same");
    await it.run("artifact.expire", { artifact_id: again });
    await waitFor(() => !existsSync(it.file(digest)), { what: "the file to be removed" });
    await it.keep("same");
    now += DAY_MS + 60_000;
    await it.store.sweep();
    expect(it.rows()).toEqual([]);
  });

  test("takes nothing away that it did not see as it is, or that an artifact has by now", async () => {
    const it = await opened();
    const digest = await it.keep("seen");
    const { stored_at } = it.row(digest);
    for (const what of ["release", "lose"] as const)
      expect(await it.queue.blob({ what, digest, stored_at: stored_at - 1 })).toBe(false);
    await it.register("seen");
    expect(await it.queue.blob({ what: "release", digest, stored_at })).toBe(false);
    expect(it.rows()).toEqual([digest]);
  });

  test("has many rows to look at and looks at all of them", async () => {
    const it = await opened();
    const digests = Array.from({ length: 1_200 }, (_, n) => digestOf(`row ${n}`));
    for (const digest of digests) mkdirSync(dirname(it.file(digest)), { recursive: true });
    const added = await Promise.all(digests.map((digest) => it.queue.blob({ what: "add", digest, size: 1 })));
    expect(new Set(added)).toEqual(new Set([true]));
    await it.store.sweep();
    expect(it.rows()).toEqual([]);
    expect(it.told).toHaveLength(1_200);
  });
});
