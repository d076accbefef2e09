/**
 * The answers of the kernel's own queries (SPEC §2): what only the running daemon knows. Their shapes are in
 * kernel/system.ts; a query that is declared there and not answered here does not compile.
 */
import { statSync } from "node:fs";
import type { Caller, SystemQuery } from "../kernel/dispatch.ts";
import { badCursor, bodyOf, eventPage, type PageParams } from "../kernel/page.ts";
import { isProblem, problem } from "../kernel/problems.ts";
import type { Registry } from "../kernel/registry.ts";
import { DEFAULT_PAGE } from "../kernel/schema.ts";
import { allSchemas } from "../kernel/schemas.ts";
import type { Hub } from "../kernel/stream.ts";
import type { systemQueries } from "../kernel/system.ts";
import { COMMIT } from "../version.ts";
import type { DaemonInfo } from "./info.ts";
import type { Jobs } from "./jobs.ts";
import type { WriteQueue } from "./queue.ts";
import type { SessionTokens } from "./tokens.ts";

type Answers = { readonly [T in keyof typeof systemQueries]: SystemQuery };

interface Paging {
  readonly limit?: number;
  readonly cursor?: string;
}

/** Make the answers of one daemon. */
export function systemAnswers(daemon: {
  info: DaemonInfo;
  registry: Registry;
  hub: Hub;
  queue: WriteQueue;
  jobs: Jobs;
  tokens: SessionTokens;
  database: string;
}): Answers {
  const { info, registry, hub, queue, jobs, tokens, database } = daemon;
  const size = (path: string) => statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  // The writer tells of changes of status only; whoever serves is written with the log, so it is at its head.
  const projections = () =>
    queue.projections.map((each) => (each.error === null ? { ...each, as_of_seq: hub.head } : each));
  /** A page of a list that is made in one go; its cursor is the number of items before. */
  function page<T>(all: readonly T[], { limit = DEFAULT_PAGE, cursor = "0" }: Paging) {
    if (!/^\d{1,9}$/.test(cursor)) return badCursor();
    const to = Number(cursor) + limit;
    return {
      as_of_seq: hub.head,
      items: all.slice(Number(cursor), to),
      next: to < all.length ? String(to) : null,
    };
  }
  return {
    "daemon.ping": () => ({
      as_of_seq: hub.head,
      pong: true,
      start_id: info.start_id,
      version: info.version,
    }),
    "daemon.status": () => ({
      as_of_seq: hub.head,
      state: queue.readOnly === undefined ? "running" : "read_only",
      pid: info.pid,
      version: info.version,
      commit: COMMIT,
      api_version: info.api_version,
      start_id: info.start_id,
      started_at: info.started_at,
      log_id: info.log_id,
      head: hub.head,
      addresses: info.addresses,
      projections: projections(),
      subscriptions: hub.subscriptions,
      queued_commands: queue.size,
      wal_bytes: size(`${database}-wal`),
      database_bytes: size(database),
      memory_bytes: process.memoryUsage.rss(),
      jobs: [...jobs.running],
    }),
    "events.list": (params: PageParams & { as_stored?: boolean }) => {
      const found = eventPage(hub, params);
      if (isProblem(found)) return found;
      const { lines, ...rest } = found;
      return {
        ...rest,
        items: lines.map((line) => JSON.parse(bodyOf(hub, line, params.as_stored)) as unknown),
      };
    },
    "projection.list": (params: Paging) => page(projections(), params),
    "projection.verify": async () => {
      const items = await jobs.run("projection.verify");
      if (isProblem(items)) return items;
      // The position that was compared, which the log has left behind since.
      const as_of_seq = Math.max(0, ...items.map((item) => item.as_of_seq));
      return { as_of_seq, ok: items.every((item) => item.ok), items };
    },
    "log.verify": () => jobs.run("log.verify"),
    "token.session": ({ session_id }: { session_id: string }, { actor }: Caller) => {
      if (actor.kind === "session")
        return problem("policy_denied", "a session cannot ask for a session's token", {
          hint: "ask for it as the daemon's user: without MP_TOKEN in the environment",
        });
      const minted = tokens.mint(session_id);
      return isProblem(minted) ? minted : { as_of_seq: hub.head, ...minted };
    },
    "schema.list": (params: Paging) =>
      page(
        [...allSchemas(registry)].map(([name, schema]) => ({
          name,
          kind: name.split(".")[0]!,
          version: Number(/\.v(\d+)$/.exec(name)![1]),
          doc: String(schema.title),
        })),
        params,
      ),
    "schema.get": ({ name }: { name: string }) => {
      const schema = allSchemas(registry).get(name);
      return schema
        ? { as_of_seq: hub.head, name, schema }
        : problem("not_found", "there is no such schema", { hint: "list them with 'mp schema list'" });
    },
  };
}
