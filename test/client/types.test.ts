/**
 * What the compiler must refuse and infer: `tsc` is the test, since an `@ts-expect-error` that expects in vain is an
 * error. Nothing here runs but the last lines, so that the runner counts the file.
 */
import { expect, test } from "bun:test";
import type { Client, LooseEnvelope } from "../../src/client/client.ts";
import type { TailFrame } from "../../src/client/tail.ts";
import type {
  Ask,
  CommandType,
  Params,
  Payload,
  QueryType,
  Receipt,
  Result,
} from "../../src/client/types.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
/** Does not compile unless its argument is `true`. */
type Sure<T extends true> = T;

export type Inferred = [
  Sure<
    Equal<Extract<CommandType, "project.create" | "daemon.shutdown">, "project.create" | "daemon.shutdown">
  >,
  Sure<Equal<Extract<QueryType, "project.list" | "daemon.ping">, "project.list" | "daemon.ping">>,
  Sure<Equal<Extract<CommandType, QueryType>, never>>,
  Sure<Equal<Payload<"workspace.open">, { workspace_id: string }>>,
  Sure<Equal<Required<Payload<"project.create">>["repo_path"], string>>,
  Sure<Equal<Payload<"daemon.shutdown">, Record<string, never>>>,
  Sure<Equal<Params<"project.get">["project_id"], string>>,
  Sure<Equal<Params<"daemon.ping">["min_seq"], number | undefined>>,
  Sure<Equal<Receipt<"project.create">["type"], "project.create">>,
  Sure<Equal<Ask<"project.list">["next"], string | null>>,
  Sure<Equal<Ask<"project.list">["items"][number]["status"], "active" | "archived">>,
  Sure<Equal<Ask<"project.get">["name"], string>>,
  Sure<Equal<Params<"workspace.list">["status"], "open" | "closed" | undefined>>,
  Sure<Equal<Result<"projection.rebuild">, { projections: string[] }>>,
  Sure<Equal<Extract<TailFrame, { kind: "event" }>["line"], string>>,
];

async function commands(client: Client) {
  const id = "0198c0de-0000-7000-8000-000000000000";
  const answer = await client.execute("project.create", { workspace_id: id, name: "core" });
  if (isProblem(answer)) answer satisfies Problem;
  else answer satisfies Receipt<"project.create">;
  // @ts-expect-error: it may be a problem
  answer.seq_global;
  await client.execute("project.create", { workspace_id: id, name: "core", repo_path: "/r" }, { key: "k" });
  await client.execute("daemon.shutdown", {});

  // @ts-expect-error: no such type
  await client.execute("project.creat", { workspace_id: id, name: "core" });
  // @ts-expect-error: a query is no command
  await client.execute("project.list", {});
  // @ts-expect-error: the name is missing
  await client.execute("project.create", { workspace_id: id });
  // @ts-expect-error: the payload is missing
  await client.execute("project.create");
  // @ts-expect-error: a name is text
  await client.execute("project.create", { workspace_id: id, name: 7 });
  // @ts-expect-error: not a field
  await client.execute("project.create", { workspace_id: id, name: "core", nope: 1 });
  // @ts-expect-error: absent is left out, never undefined
  await client.execute("project.create", { workspace_id: id, name: "core", repo_path: undefined });
  // @ts-expect-error: the payload of another command
  await client.execute("workspace.create", { workspace_id: id, name: "core" });
  // @ts-expect-error: it takes nothing
  await client.execute("daemon.shutdown", { nope: 1 });
  // @ts-expect-error: the key is called key here
  await client.execute("daemon.shutdown", {}, { idempotency_key: "k" });
  // @ts-expect-error: a version is a number
  await client.execute("workspace.open", { workspace_id: id }, { expected_version: "1" });
}

async function queries(client: Client) {
  const ping = await client.query("daemon.ping");
  if (!isProblem(ping)) ping satisfies { as_of_seq: number; pong: true; version: string };
  await client.query("daemon.ping", { min_seq: 3 });
  await client.query("project.list", { limit: 5, cursor: "c", name: "core" }, { timeout_ms: 10 });
  await client.query("project.get", { project_id: "p" });

  // @ts-expect-error: no such type
  await client.query("project.lst");
  // @ts-expect-error: a command is no query
  await client.query("project.create", { workspace_id: "w", name: "core" });
  // @ts-expect-error: the id is missing
  await client.query("project.get");
  // @ts-expect-error: the id is missing here too
  await client.query("project.get", {});
  // @ts-expect-error: not a parameter
  await client.query("daemon.ping", { nope: 1 });
  // @ts-expect-error: a limit is a number
  await client.query("project.list", { limit: "5" });
  // @ts-expect-error: one project has no pages
  await client.query("project.get", { project_id: "p", limit: 5 });
  // @ts-expect-error: no such status
  await client.query("project.list", { status: "open" });
  // @ts-expect-error: a query takes no key
  await client.query("daemon.ping", {}, { key: "k" });
}

async function others(client: Client) {
  await client.batch([
    { type: "workspace.create", payload: { name: "w" } },
    { type: "project.create", payload: { workspace_id: "w", name: "p" }, idempotency_key: "k" },
  ]);
  // @ts-expect-error: the payload of another command
  await client.batch([{ type: "workspace.create", payload: { workspace_id: "w" } }]);
  // @ts-expect-error: a query is no command
  await client.batch([{ type: "daemon.ping", payload: {} }]);

  const envelope: LooseEnvelope = { type: "whatever.type", payload: { any: "thing" } };
  await client.send(envelope);
  // @ts-expect-error: an envelope has a payload
  await client.send({ type: "daemon.ping" });

  await client.api.v1.commands.post({ type: "daemon.ping", payload: {} });
  await client.api.v1.queries({ type: "daemon.ping" }).get();
  (await client.api.health.get()).data?.start_id satisfies string | undefined;
  (await client.api.v1.commands.batch.post({ atomic: true, commands: [] })).data?.items.length;
  // @ts-expect-error: no such route
  await client.api.v1.nope.get();
  // @ts-expect-error: a wrong payload, through Eden itself
  await client.api.v1.commands.post({ type: "project.create", payload: { name: "core" } });
}

test("what this file says is checked by tsc", () => {
  expect([commands, queries, others].map((each) => each.length)).toEqual([1, 1, 1]);
});
