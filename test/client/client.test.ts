import { describe, expect, test } from "bun:test";
import { existsSync, rmSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join, relative } from "node:path";
import { type Client, connect, freshKey, patienceOf } from "../../src/client/client.ts";
import { aggregates } from "../../src/domain/index.ts";
import { isProblem, type Problem, problem } from "../../src/kernel/problems.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { tempHome, waitFor } from "../support/binary.ts";
import { type DaemonProcess, startDaemonProcess } from "../support/daemon.ts";
import { proxy } from "./proxy.ts";

/** The daemon of the tests that leave it running; each works in workspaces of its own. */
const shared = await startDaemonProcess(tempHome());

function must<T extends object>(answer: T | Problem): T {
  if (isProblem(answer)) throw new Error(JSON.stringify(answer));
  return answer;
}

function refusal(answer: object): Problem {
  if (!isProblem(answer)) throw new Error(`expected a problem: ${JSON.stringify(answer)}`);
  return answer;
}

let names = 0;
const name = () => `w-${++names}`;

/** The idempotency keys in what clients sent, in order. */
function keysIn(sent: readonly string[]): string[] {
  return [...sent.join("").matchAll(/"idempotency_key":"([^"]+)"/g)].map((match) => match[1]!);
}

async function workspacesNamed(client: Client, wanted: string): Promise<unknown[]> {
  const answer = must(await client.send({ type: "workspace.list", payload: { name: wanted } }));
  return (answer as { items: unknown[] }).items;
}

/** An HTTP server on a Unix socket that answers by itself, or has a daemon answer with `forward`. */
function between(
  daemon: DaemonProcess,
  answer: (request: Request, forward: () => Promise<Response>) => unknown,
) {
  const socket = join(tempHome(), "between.sock");
  const server = Bun.serve({
    unix: socket,
    async fetch(request) {
      const forward = async () => {
        const body = await request.clone().text();
        const { pathname } = new URL(request.url);
        return fetch(`http://localhost${pathname}`, {
          unix: daemon.socket,
          method: request.method,
          headers: { "content-type": "application/json" },
          body,
        });
      };
      return (await answer(request, forward)) as Response;
    },
  });
  return { socket, [Symbol.dispose]: () => void server.stop(true) };
}

function asResponse(found: Problem, headers: Record<string, string> = {}): Response {
  const status = {
    status: found.status,
    headers: { "content-type": "application/problem+json", ...headers },
  };
  return new Response(JSON.stringify(found), status);
}

describe("an answer that arrives", () => {
  const client = connect({ socket: shared.socket });

  test("a command gives its receipt, a query its answer", async () => {
    const wanted = name();
    const receipt = must(await client.execute("workspace.create", { name: wanted }));
    expect(receipt).toMatchObject({ type: "workspace.create", version: 1, replayed: false });
    const { id } = receipt.subject;
    const shown = must(await client.send({ type: "workspace.get", payload: { workspace_id: id } }));
    expect(shown).toMatchObject({ workspace_id: id, name: wanted, status: "open" });
    expect(must(await client.query("daemon.ping"))).toMatchObject({
      pong: true,
      version: shared.info.version,
    });
  });

  test("text stays text: times, numbers and JSON in names come back as they are, also through `api`", async () => {
    for (const odd of ["2026-11-22T10:00:00.000Z", "42", "true", '{"a":1}', "01/02/2026", "null"]) {
      const receipt = must(await client.execute("workspace.create", { name: odd }));
      const workspace_id = receipt.subject.id;
      const envelope = { type: "workspace.get", payload: { workspace_id } } as const;
      const shown = must(await client.send(envelope)) as { name: unknown; created_at: unknown };
      expect(shown.name).toBe(odd);
      expect(shown.created_at).toBeString();
      const { data } = await client.api.v1
        .queries({ type: "workspace.get" })
        .get({ query: { workspace_id } });
      expect((data as typeof shown).name).toBe(odd);
      expect((data as typeof shown).created_at).toBeString();
    }
    const { data } = await client.api.v1.events.get({ query: { limit: 3 } });
    const { items } = data as unknown as { items: { timestamp: unknown }[] };
    expect(items.map((event) => typeof event.timestamp)).toEqual(["string", "string", "string"]);
  });

  test("a problem is a value, its details as they were sent, and the command is not sent again", async () => {
    await using line = await proxy(shared.socket);
    const far = connect({ socket: line.socket });
    const taken = name();
    must(await far.execute("workspace.create", { name: taken }));
    const found = refusal(await far.execute("workspace.create", { name: taken }));
    expect(found).toMatchObject({ code: "conflict", reason: "workspace.name_taken", status: 409 });
    expect(found.details?.workspace_id).toBeString();
    const wrong = await far.send({
      type: "workspace.create",
      payload: { nope: 1 },
      idempotency_key: freshKey(),
    });
    expect(refusal(wrong).code).toBe("invalid_schema");
    expect(refusal(await far.send({ type: "no.such", payload: {} })).code).toBe("unknown_command");
    expect(refusal(await far.send({ type: "workspace.create", payload: { name: name() } })).code).toBe(
      "idempotency_key_required",
    );
    expect(line.sent.join("").match(/POST /g)).toHaveLength(5);
  });

  test("the options reach the daemon: key, expected_version, trace_id", async () => {
    const key = freshKey();
    const trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    const wanted = name();
    const first = must(await client.execute("workspace.create", { name: wanted }, { key, trace_id }));
    const again = must(await client.execute("workspace.create", { name: wanted }, { key }));
    expect(again).toEqual({ ...first, replayed: true });
    const workspace_id = first.subject.id;
    const late = await client.execute("workspace.close", { workspace_id }, { expected_version: 7 });
    expect(refusal(late)).toMatchObject({ code: "expected_version_mismatch", details: { actual: 1 } });
    const { events } = first;
    const { data } = await client.api.v1.events({ event_id: events[0]!.event_id }).get();
    expect(data).toMatchObject({ trace_id, causality: { idempotency_key: key } });
  });

  test("a batch answers each command; an atomic one is refused as a whole", async () => {
    const [a, b] = [name(), name()];
    const create = (each: string) => ({ type: "workspace.create", payload: { name: each } }) as const;
    const { items } = must(await client.batch([create(a), create(a), create(b)]));
    expect(items.map((item) => item.kind)).toEqual(["receipt", "problem", "receipt"]);
    const refused = refusal(await client.batch([create(name()), create(a)], { atomic: true }));
    expect(refused).toMatchObject({ code: "conflict", details: { index: 1 } });
  });
});

describe("an answer that is lost", () => {
  for (const cutAt of [0, 20, 400]) {
    test(`is asked for again with the same key (${cutAt} bytes of it arrive)`, async () => {
      await using line = await proxy(shared.socket);
      line.losing = 3;
      line.cutAt = cutAt;
      const client = connect({ socket: line.socket });
      const wanted = name();
      const receipt = must(await client.execute("workspace.create", { name: wanted }));
      expect(receipt).toMatchObject({ version: 1, replayed: true });
      const keys = keysIn(line.sent);
      expect(keys).toHaveLength(4);
      expect(new Set(keys).size).toBe(1);
      expect(await workspacesNamed(client, wanted)).toHaveLength(1);
    });
  }

  test("of a batch: every command keeps its key", async () => {
    await using line = await proxy(shared.socket);
    line.losing = 1;
    const client = connect({ socket: line.socket });
    const commands = [1, 2, 3].map(() => ({ type: "workspace.create", payload: { name: name() } }) as const);
    const { items } = must(await client.batch(commands, { atomic: true }));
    expect(items).toMatchObject([{ replayed: true }, { replayed: true }, { replayed: true }]);
    const keys = keysIn(line.sent);
    expect(keys.slice(3)).toEqual(keys.slice(0, 3));
    expect(new Set(keys).size).toBe(3);
  });

  test("of a query: it is asked again", async () => {
    await using line = await proxy(shared.socket);
    line.losing = 2;
    expect(must(await connect({ socket: line.socket }).query("daemon.ping")).pong).toBe(true);
  });

  test("because the daemon was killed: the call waits for the next one, which gives the first receipt", async () => {
    const daemon = await startDaemonProcess();
    await using line = await proxy(daemon.socket);
    const address = join(tempHome(), "address");
    symlinkSync(line.socket, address);
    line.losing = 1;
    line.onLost = () => {
      rmSync(address);
      void daemon.kill("SIGKILL");
    };
    const call = connect({ socket: address }).execute("workspace.create", { name: "once" });
    await waitFor(() => !existsSync(address), { what: "the lost answer" });
    await daemon.restart();
    symlinkSync(daemon.socket, address);
    expect(must(await call)).toMatchObject({ version: 1, seq_global: 1, replayed: true });
  });

  test("and nobody comes back: the problem names the key that finds out", async () => {
    const daemon = await startDaemonProcess();
    await using line = await proxy(daemon.socket);
    line.losing = 1;
    const client = connect({ socket: line.socket });
    const call = client.execute("workspace.create", { name: "kept" }, { key: "k-1", timeout_ms: 1_000 });
    await waitFor(() => line.losing === 0, { what: "the lost answer" });
    await daemon.kill("SIGKILL");
    const found = refusal(await call);
    expect(found.code).toBe("daemon_unavailable");
    expect(found.details).toMatchObject({ idempotency_key: "k-1" });
    expect(found.hint).toContain("same key");
    await daemon.restart();
    const receipt = must(await client.execute("workspace.create", { name: "kept" }, { key: "k-1" }));
    expect(receipt).toMatchObject({ seq_global: 1, replayed: true });
  });
});

describe("a daemon that says to come back", () => {
  test("overloaded: after Retry-After, with the same key", async () => {
    let refused = 2;
    const keys: string[] = [];
    using line = between(shared, async (request, forward) => {
      keys.push(((await request.clone().json()) as { idempotency_key: string }).idempotency_key);
      return refused-- > 0 ? asResponse(problem("overloaded", "full"), { "retry-after": "0" }) : forward();
    });
    const receipt = must(
      await connect({ socket: line.socket }).execute("workspace.create", { name: name() }),
    );
    expect(receipt.replayed).toBe(false);
    expect(keys).toHaveLength(3);
    expect(new Set(keys).size).toBe(1);
  });

  test("overloaded beyond the deadline: that problem, without waiting for a time that is too late", async () => {
    let asked = 0;
    using line = between(shared, () => {
      asked += 1;
      return asResponse(problem("overloaded", "full"), { "retry-after": "60" });
    });
    const client = connect({ socket: line.socket });
    const answer = await client.execute("workspace.create", { name: name() }, { timeout_ms: 5_000 });
    expect(refusal(answer).code).toBe("overloaded");
    expect(asked).toBe(1);
  });

  test("outcome_unknown: the call waits for the next daemon, which knows", async () => {
    const daemon = await startDaemonProcess();
    await using line = await proxy(daemon.socket);
    const body = JSON.stringify(problem("outcome_unknown", "the commit failed"));
    line.instead = `HTTP/1.1 500 Oh\r\ncontent-type: application/problem+json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    line.losing = 1;
    line.onLost = () => void daemon.kill("SIGKILL");
    const call = connect({ socket: line.socket }).execute("workspace.create", { name: "once" });
    await waitFor(() => line.losing === 0, { what: "the unknown outcome" });
    await daemon.restart();
    expect(must(await call)).toMatchObject({ seq_global: 1, replayed: true });
    expect(new Set(keysIn(line.sent)).size).toBe(1);
  });

  test("read_only and internal are refusals like any other: sent once", async () => {
    for (const code of ["read_only", "internal"] as const) {
      let asked = 0;
      using line = between(shared, () => {
        asked += 1;
        return asResponse(problem(code, "no"));
      });
      const answer = await connect({ socket: line.socket }).execute("workspace.create", { name: name() });
      expect(refusal(answer).code).toBe(code);
      expect(asked).toBe(1);
    }
  });
});

describe("no daemon", () => {
  test("is daemon_unavailable at once, with the address and how to start one", async () => {
    const socket = join(tempHome(), "run", "mp.sock");
    const from = performance.now();
    const found = refusal(await connect({ socket }).execute("workspace.create", { name: "x" }));
    expect(performance.now() - from).toBeLessThan(1_000);
    expect(found.code).toBe("daemon_unavailable");
    expect(found.detail).toContain(socket);
    expect(found.hint).toContain("mp daemon start");
    expect(found.details).toEqual({ address: socket, errno: "ENOENT" });
  });

  test("a socket file that a killed daemon left behind is no daemon", async () => {
    const daemon = await startDaemonProcess();
    await daemon.kill("SIGKILL");
    expect(existsSync(daemon.socket)).toBe(true);
    const found = refusal(await connect({ socket: daemon.socket }).query("daemon.ping"));
    expect(found).toMatchObject({ code: "daemon_unavailable", details: { errno: "ECONNREFUSED" } });
  });

  test("`start` may start one, and the command goes on", async () => {
    const home = tempHome();
    let starts = 0;
    const start = async () => {
      starts += 1;
      await startDaemonProcess(home);
      return undefined;
    };
    const client = connect({ socket: join(home, "run", "mp.sock") }, { start });
    expect(must(await client.execute("workspace.create", { name: "first" })).seq_global).toBe(1);
    expect(starts).toBe(1);
  });

  test("what `start` says ends the call", async () => {
    const start = async () => problem("policy_denied", "the folder is open to all");
    const client = connect({ socket: join(tempHome(), "none") }, { start });
    expect(refusal(await client.query("daemon.ping")).detail).toBe("the folder is open to all");
  });

  test("something else that listens there is told from a daemon", async () => {
    const socket = join(tempHome(), "other.sock");
    const server = Bun.serve({ unix: socket, fetch: () => new Response("<h1>hello</h1>") });
    const found = refusal(await connect({ socket }).query("daemon.ping"));
    void server.stop(true);
    expect(found.code).toBe("daemon_unavailable");
    expect(found.detail).toContain("not mp");
    expect(found.detail).not.toContain("hello");
  });
});

describe("a daemon that does not answer", () => {
  /** Takes connections and says nothing. */
  async function silence(): Promise<{ socket: string; [Symbol.asyncDispose](): Promise<void> }> {
    const socket = join(tempHome(), "silent.sock");
    const open = new Set<{ destroy(): unknown }>();
    const server = createServer((each) => open.add(each.on("error", () => each.destroy())));
    await new Promise<void>((resolve) => server.listen(socket, resolve));
    return {
      socket,
      async [Symbol.asyncDispose]() {
        for (const each of open) each.destroy();
        await new Promise((resolve) => server.close(resolve));
      },
    };
  }

  test("is `timeout` after timeout_ms, with the key of the command", async () => {
    await using line = await silence();
    const client = connect({ socket: line.socket });
    const options = { key: "k-7", timeout_ms: 150 };
    const found = refusal(await client.execute("workspace.create", { name: "x" }, options));
    expect(found).toMatchObject({ code: "timeout", details: { idempotency_key: "k-7", timeout_ms: 150 } });
    const asked = refusal(await client.query("daemon.ping", {}, { timeout_ms: 150 }));
    expect(asked.code).toBe("timeout");
    expect(asked.details).not.toHaveProperty("idempotency_key");
  });

  test("no query waits for ever: 30 s, a hook's 5 s, and only what goes through the whole log as long as it needs", () => {
    const { commands, queries } = buildRegistry(aggregates, system);
    const patience = Object.fromEntries(
      [...commands.keys(), ...queries.keys()].map((type) => [type, patienceOf(type)]),
    );
    const others = Object.entries(patience).filter(([, ms]) => ms !== 30_000);
    expect(others.toSorted()).toEqual([
      ["log.verify", Number.POSITIVE_INFINITY],
      ["projection.verify", Number.POSITIVE_INFINITY],
      ["worktree.check", 5_000],
    ]);
  });

  test("is `timeout` when the time of its type is over; the hint says how to look at the daemon", async () => {
    await using line = await silence();
    const from = performance.now();
    const found = refusal(await connect({ socket: line.socket }).query("worktree.check", { path: "/" }));
    expect(found).toMatchObject({ code: "timeout", details: { timeout_ms: 5_000 } });
    expect(found.detail).toEndWith("has not answered within 5s");
    expect(found.hint).toContain("'mp daemon status'");
    expect(performance.now() - from).toBeGreaterThan(4_900);
  }, 15_000);

  test("can be given up: the call rejects with the signal's reason", async () => {
    await using line = await silence();
    const given = new AbortController();
    const call = connect({ socket: line.socket }).query("daemon.ping", {}, { signal: given.signal });
    given.abort(new Error("enough"));
    await expect(call).rejects.toThrow("enough");
  });
});

describe("over HTTP", () => {
  test("the token goes along, no proxy sees it, no redirect is followed", async () => {
    const seen: (string | null)[] = [];
    const server = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      async fetch(request): Promise<Response> {
        seen.push(request.headers.get("authorization"));
        if (seen.length > 1) return Response.redirect(new URL("/elsewhere", request.url).href, 307);
        const { pathname } = new URL(request.url);
        const { method } = request;
        const headers = { "content-type": "application/json" };
        return fetch(`http://localhost${pathname}`, {
          unix: shared.socket,
          method,
          headers,
          body: await request.text(),
        });
      },
    });
    const { HTTP_PROXY, http_proxy } = process.env;
    try {
      process.env.HTTP_PROXY = process.env.http_proxy = "http://127.0.0.1:9";
      const client = connect({ url: `http://127.0.0.1:${server.port}/`, token: "secret" });
      expect(must(await client.query("daemon.ping")).pong).toBe(true);
      const found = refusal(await client.query("daemon.ping"));
      expect(found.code).toBe("daemon_unavailable");
      expect(seen).toEqual(["Bearer secret", "Bearer secret"]);
      expect(JSON.stringify(found)).not.toContain("secret");
    } finally {
      for (const [key, value] of Object.entries({ HTTP_PROXY, http_proxy }))
        if (value === undefined) delete process.env[key];
        else process.env[key] = value;
      void server.stop(true);
    }
  });

  test("an address where nobody is, or that is none, is daemon_unavailable", async () => {
    for (const url of ["http://127.0.0.1:9", "http://user:pw@127.0.0.1:9/x", "not a url"]) {
      const found = refusal(await connect({ url, token: "t" }).query("daemon.ping"));
      expect(found.code).toBe("daemon_unavailable");
      expect(JSON.stringify(found)).not.toContain("pw");
    }
  });
});

test("the client and the tail load nothing of the server: no Elysia, no TypeBox, no kernel but the problems and how times are said", async () => {
  const loaded: string[] = [];
  const root = join(import.meta.dir, "../..");
  const result = await Bun.build({
    entrypoints: ["client", "tail"].map((each) => join(root, `src/client/${each}.ts`)),
    target: "bun",
    plugins: [
      {
        name: "what is loaded",
        setup(build) {
          build.onLoad({ filter: /.*/ }, ({ path }) => {
            // A file of ours by its place, one of a package by the package's name.
            loaded.push(/\/node_modules\/(@[^/]+\/[^/]+|[^/]+)\//.exec(path)?.[1] ?? relative(root, path));
            return undefined;
          });
        },
      },
    ],
  });
  expect(result.success).toBe(true);
  expect([...new Set(loaded)].sort()).toEqual([
    "@elysiajs/eden",
    "src/client/client.ts",
    "src/client/tail.ts",
    "src/client/transport.ts",
    "src/kernel/problems.ts",
    "src/kernel/span.ts",
  ]);
});
