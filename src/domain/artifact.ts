/**
 * artifact: bytes by content, and what they are for (SPEC §8). `available → expired`.
 *
 * The bytes come first, by their own route into a store; registering says what they are and links them to what they belong
 * to. Always holds: nothing is registered whose bytes are not in the store with the size that is told; everything an
 * artifact is linked to lies in one workspace, its own. When it expires the bytes go (unless another artifact has the same
 * ones) and what is known about them stays. Left out on purpose: the store itself, which is a disk and so no decision.
 */
import { Type } from "typebox";
import {
  aggregate,
  born,
  command,
  event,
  type Find,
  later,
  missing,
  query,
  type Refused,
  type RowOf,
  reject,
  type Scope,
  table,
  touched,
} from "../kernel/aggregate.ts";
import { field, foldCase, Id, Name, nullable, object, oneOf, pageOf, Seq, Time } from "../kernel/schema.ts";
import { shut } from "./scope.ts";

const Digest = Type.String({
  pattern: "^sha256:[0-9a-f]{64}$",
  description: "sha256: and 64 hexadecimal digits, lower case",
});

const MediaType = Type.String({
  maxLength: 255,
  pattern: "^[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?:;[ -~]{1,128})?$",
  description: "a media type, such as text/plain; charset=utf-8",
});

const Reason = Type.String({ minLength: 1, maxLength: 512 });

/** From a second to ten years. */
const Kept = Type.Integer({
  minimum: 1_000,
  maximum: 315_360_000_000,
  description: "milliseconds, from 1,000 (a second) to 315,360,000,000 (ten years)",
});

const AskedKept = Type.Integer({
  minimum: 1_000,
  maximum: 315_360_000_000,
  description: "how long the bytes are kept, 1s to 3650d; until they are expired when absent",
});

const Status = oneOf("available", "expired");

/** What an artifact can be linked to, and where that lies. */
const places = {
  workspace: (find: Find, id: string): Scope | undefined => find.one("workspaces", { workspace_id: id }),
  project: (find: Find, id: string): Scope | undefined => find.one("projects", { project_id: id }),
  session: (find: Find, id: string): Scope | undefined => scopeOf(find.one("sessions", { session_id: id })),
  worktree: (find: Find, id: string): Scope | undefined => find.one("worktrees", { worktree_id: id }),
  task: (find: Find, id: string): Scope | undefined => find.one("tasks", { task_id: id }),
  board: (find: Find, id: string): Scope | undefined => find.one("boards", { board_id: id }),
};

const LinkKind = oneOf("workspace", "project", "session", "worktree", "task", "board");
const Link = object({ kind: LinkKind, id: Id });
const Links = Type.Array(Link, { minItems: 1, maxItems: 64 });
const AskedLinks = field(
  Type.Array(object({ kind: field(LinkKind, "what kind of thing"), id: field(Id, "which one") }), {
    minItems: 1,
    maxItems: 64,
  }),
  "what it belongs to",
);
interface Linked {
  readonly kind: keyof typeof places;
  readonly id: string;
}

const shown = {
  artifact_id: Id,
  workspace_id: Id,
  digest: Digest,
  size: Seq,
  media_type: MediaType,
  name: nullable(Name),
  status: Status,
  /** How long the bytes are kept; null: until they are expired by a command. */
  expire_after_ms: nullable(Seq),
  expired_at: nullable(Time),
  expire_reason: nullable(Reason),
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const artifacts = table(
  { ...shown, name_key: nullable(Type.String()) },
  {
    key: ["artifact_id"],
    // Where two serve alike SQLite takes the later one: so the one that tells least comes first.
    index: [
      ["status", "artifact_id"],
      ["digest", "status"],
      ["workspace_id", "artifact_id"],
      ["name_key", "artifact_id"],
    ],
    hidden: ["name_key"],
  },
);

const artifact_links = table(
  {
    artifact_id: Id,
    kind: LinkKind,
    id: Id,
    linked_at: Time,
    // Those of the artifact, so that what is linked to one thing can be filtered a page at a time.
    digest: Digest,
    status: Status,
    name_key: nullable(Type.String()),
  },
  {
    key: ["artifact_id", "kind", "id"],
    index: [["id", "artifact_id"]],
    hidden: ["digest", "status", "name_key"],
  },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    artifacts: RowOf<typeof artifacts>;
    artifact_links: RowOf<typeof artifact_links>;
  }
}

interface State {
  readonly status: "absent" | "available" | "expired";
  readonly expire_after_ms?: number | undefined;
}

const keyOf = (name: string | undefined | null) =>
  name === undefined || name === null ? null : foldCase(name);

/** A row whose project may be null, as a scope. */
function scopeOf(row: { workspace_id: string; project_id: string | null } | undefined): Scope | undefined {
  return row && { workspace_id: row.workspace_id, project_id: row.project_id ?? undefined };
}

/** Links without repetitions: naming a thing twice links it once. */
function distinct<L extends Linked>(links: readonly L[]): L[] {
  return [...new Map(links.map((link) => [`${link.kind}/${link.id}`, link])).values()];
}

/**
 * Why an artifact cannot be linked to all of these.
 * @param workspace_id the workspace that they must lie in; that of the first when absent
 * @returns undefined when it can
 */
function unlinkable(find: Find, links: readonly Linked[], workspace_id?: string): Refused | undefined {
  const scopes: Scope[] = [];
  for (const { kind, id } of links) {
    const scope = places[kind](find, id);
    if (!scope) return missing(kind, id);
    scopes.push({ workspace_id: scope.workspace_id, project_id: scope.project_id });
  }
  const home = workspace_id ?? scopes[0]?.workspace_id;
  for (const scope of [{ workspace_id: home }, ...scopes]) {
    const refused = shut(find, scope);
    if (refused) return refused;
  }
  const elsewhere = scopes.findIndex((scope) => scope.workspace_id !== home);
  return elsewhere < 0
    ? undefined
    : reject("artifact.other_workspace", {
        ...links[elsewhere]!,
        workspace_id: scopes[elsewhere]!.workspace_id,
      });
}

/** Why there are no bytes of this digest and size to register; undefined when there are. */
function unstored(find: Find, digest: string, size: number): Refused | undefined {
  const stored = find.one("blobs", { digest });
  if (stored)
    return stored.size === size
      ? undefined
      : reject("artifact.size_mismatch", { digest, size, actual: stored.size });
  const [expired] = find.all(
    "artifacts",
    { digest, status: "expired" },
    { by: ["artifact_id"], descending: true, limit: 1 },
  );
  return expired
    ? reject("artifact.bytes_expired", {
        digest,
        artifact_id: expired.artifact_id,
        expired_at: expired.expired_at,
      })
    : reject("artifact.bytes_missing", { digest });
}

export const artifact = aggregate("artifact", { status: "absent" } as State)({
  commands: {
    register: command(
      {
        digest: field(Digest, "what the bytes are known by"),
        media_type: field(MediaType, "what the bytes are"),
        size: field(Seq, "how many bytes there are"),
        name: Type.Optional(field(Name, "what it is called")),
        retention: Type.Optional(
          object({
            expire_after_ms: AskedKept,
          }),
        ),
        links: AskedLinks,
      },
      "Register bytes that are in the store, and link them to what they belong to.",
      { creates: true },
    ),
    link: command(
      { artifact_id: field(Id, "the artifact to link"), links: AskedLinks },
      "Link an artifact to more things of its workspace.",
    ),
    expire: command(
      {
        artifact_id: field(Id, "the artifact whose bytes go"),
        reason: Type.Optional(field(Reason, "why they go")),
      },
      "Let an artifact's bytes go; what is known about them stays.",
    ),
    retention_over: command({ artifact_id: Id, epoch: Seq }, "Its bytes were kept as long as was asked.", {
      internal: true,
    }),
  },
  events: {
    registered: event(1, {
      digest: Digest,
      media_type: MediaType,
      size: Seq,
      name: Type.Optional(Name),
      retention: Type.Optional(object({ expire_after_ms: Kept })),
      links: Links,
    }),
    linked: event(1, { links: Links }),
    expired: event(1, { reason: Type.Optional(Reason) }),
  },
  reasons: {
    "artifact.digest_mismatch": {
      is: "the bytes that were sent have another digest",
      hint: "compute the SHA-256 of exactly what is sent, or let 'mp artifact upload FILE' do it; nothing was stored",
    },
    "artifact.size_mismatch": {
      is: "the bytes have another size than was told",
      hint: "use the actual size that is in the details",
    },
    "artifact.bytes_missing": {
      is: "no bytes of that digest are in the store",
      hint: "send them first: 'mp artifact upload FILE', or PUT /v1/artifacts/DIGEST",
    },
    "artifact.bytes_expired": {
      is: "the bytes of that digest have expired and are gone",
      hint: "send them again: 'mp artifact upload FILE', or PUT /v1/artifacts/DIGEST",
    },
    "artifact.other_workspace": {
      is: "an artifact and all that it is linked to lie in one workspace",
      hint: "register the same bytes once more for the other workspace: they are stored only once",
    },
  },
  scope: (_, { links }, find) => {
    const [{ kind, id }] = links as [Linked];
    return { workspace_id: places[kind](find, id)?.workspace_id };
  },
  lease: {
    of: ({ status, expire_after_ms }) =>
      status === "available" && expire_after_ms !== undefined
        ? { epoch: 1, ttl_ms: expire_after_ms, grace: false }
        : undefined,
    expire: "retention_over",
  },
  decide: {
    register(_, { digest, media_type, size, name, retention, links: asked }, { find }) {
      const links = distinct(asked);
      return (
        unlinkable(find, links) ??
        unstored(find, digest, size) ?? [
          { type: "registered", payload: { digest, media_type, size, name, retention, links } },
        ]
      );
    },
    link(_, { artifact_id, links: asked }, { find, scope: { workspace_id } }) {
      const links = distinct(asked).filter((link) => !find.one("artifact_links", { artifact_id, ...link }));
      if (links.length === 0) return [];
      return unlinkable(find, links, workspace_id) ?? [{ type: "linked", payload: { links } }];
    },
    expire: ({ status }, { reason }, { find, scope }) =>
      status === "expired" ? [] : (shut(find, scope) ?? [{ type: "expired", payload: { reason } }]),
    // Asked by nobody, so a closed workspace does not keep it from being done.
    retention_over: ({ status }) =>
      status === "expired" ? [] : [{ type: "expired", payload: { reason: "retention" } }],
  },
  evolve: {
    registered: (_, { retention }) => ({ status: "available", expire_after_ms: retention?.expire_after_ms }),
    linked: (state) => state,
    expired: (state) => ({ ...state, status: "expired" }),
  },
  readModel: {
    version: 1,
    tables: { artifacts, artifact_links },
    apply: {
      registered: (rows, event) => {
        const { subject, workspace_id, payload, timestamp } = event;
        const { digest, size, media_type, name, retention, links } = payload;
        const name_key = keyOf(name);
        rows.artifacts.insert({
          ...born(event),
          artifact_id: subject.id,
          workspace_id: workspace_id ?? "",
          digest,
          size,
          media_type,
          name: name ?? null,
          status: "available",
          expire_after_ms: retention?.expire_after_ms ?? null,
          expired_at: null,
          expire_reason: null,
          name_key,
        });
        for (const { kind, id } of links)
          rows.artifact_links.insert({
            artifact_id: subject.id,
            kind,
            id,
            linked_at: timestamp,
            digest,
            status: "available",
            name_key,
          });
      },
      linked: (rows, event) => {
        const { subject, payload, timestamp } = event;
        const artifact_id = subject.id;
        const { digest, status, name_key } = rows.artifacts.one({ artifact_id })!;
        for (const { kind, id } of payload.links)
          rows.artifact_links.insert({
            artifact_id,
            kind,
            id,
            linked_at: timestamp,
            digest,
            status,
            name_key,
          });
        rows.artifacts.update({ artifact_id }, touched(event));
      },
      expired: (rows, event) => {
        const artifact_id = event.subject.id;
        rows.artifacts.update(
          { artifact_id },
          {
            status: "expired",
            expired_at: event.timestamp,
            expire_reason: event.payload.reason ?? null,
            ...touched(event),
          },
        );
        rows.artifact_links.update({ artifact_id }, { status: "expired" });
      },
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        digest: Type.Optional(field(Digest, "only those of these bytes")),
        status: Type.Optional(field(Status, "only those with this status")),
        name: Type.Optional(field(Name, "only those of this name")),
        linked_to: Type.Optional(field(Id, "only those that are linked to this thing, of whatever kind")),
      },
      pageOf(object(shown)),
      "List artifacts, oldest first.",
      (read, { workspace_id, digest, status, name, linked_to, ...page }) => {
        const where = { digest, status, name_key: name === undefined ? undefined : foldCase(name) };
        if (linked_to === undefined) return read.page("artifacts", { workspace_id, ...where }, page);
        // The order ends in `kind` only to be whole: no two kinds have one id.
        const links = read.page("artifact_links", { id: linked_to, ...where }, page, ["artifact_id", "kind"]);
        const linked = links.items.map(({ artifact_id }) => read.one("artifacts", { artifact_id })!);
        // All of them lie where that thing lies.
        return workspace_id === undefined || linked[0]?.workspace_id === workspace_id
          ? { items: linked, next: links.next }
          : { items: [], next: null };
      },
    ),
    get: query(
      { artifact_id: field(Id, "the artifact to show") },
      object({
        as_of_seq: Seq,
        ...shown,
        expires_at: nullable(Time),
        stored: Type.Boolean({ description: "whether the bytes are in the store now" }),
        links: Type.Array(object({ kind: LinkKind, id: Id, linked_at: Time })),
      }),
      "Show one artifact, what it is linked to, and whether its bytes are in the store.",
      (read, { artifact_id }) => {
        const found = read.one("artifacts", { artifact_id });
        if (!found) return missing("artifact", artifact_id);
        const { status, created_at, expire_after_ms } = found;
        return {
          ...found,
          expires_at:
            status === "available" && expire_after_ms !== null ? later(created_at, expire_after_ms) : null,
          stored: read.one("blobs", { digest: found.digest }) !== undefined,
          links: read
            .all("artifact_links", { artifact_id })
            .map(({ kind, id, linked_at }) => ({ kind, id, linked_at })),
        };
      },
    ),
  },
});
