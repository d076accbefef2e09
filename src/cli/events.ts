/**
 * `mp events`: tail, list, get (SPEC §5, §12). Under `--json` an event is always the daemon's own bytes, one event a line,
 * so that `sha256sum` over the lines reproduces the chain.
 */
import type { TailFilter } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { asking, type Noun, type Values, verb } from "./command.ts";
import { drawer } from "./lines.ts";
import { daemonLink, type Link } from "./link.ts";
import { idLike, idOf } from "./names.ts";
import { note } from "./output.ts";
import { duration, usage } from "./parse.ts";

const filters = {
  type: {
    type: "string",
    many: true,
    valueHint: "GLOB",
    description: "only these event types, such as task.* (repeat it, or use commas)",
  },
  stream: {
    type: "string",
    many: true,
    valueHint: "KIND/ID",
    description: "only these streams, such as project/ID or project/NAME",
  },
  workspace: {
    type: "string",
    alias: ["workspace-id"],
    valueHint: "WORKSPACE",
    description: "only events of this workspace, by name or id",
  },
  project: {
    type: "string",
    alias: ["project-id"],
    valueHint: "PROJECT",
    description: "only events of this project, by name or id",
  },
  "subject-kind": {
    type: "string",
    valueHint: "KIND",
    description: "only events about such things, for instance task",
  },
  "as-stored": { type: "boolean", description: "give events of old versions as they were stored" },
} as const;

const start = {
  after: { type: "string", format: "count", valueHint: "SEQ", description: "what comes after this position" },
  since: {
    type: "string",
    valueHint: "TIME",
    description: "what came since 10m ago, or since an RFC 3339 time",
  },
} as const;

const fromStart = { "from-start": { type: "boolean", description: "from the first event on" } } as const;

const POINTERS = {
  "/types": "--type",
  "/streams": "--stream",
  "/workspace_id": "--workspace",
  "/project_id": "--project",
  "/subject_kind": "--subject-kind",
  "/after": "--after",
  "/since": "--since",
  "/limit": "--limit",
  "/cursor": "--cursor",
  "/min_seq": "--min-seq",
};
const pointers = Object.fromEntries(
  Object.entries(POINTERS).flatMap(([pointer, flag]) => [
    [pointer, flag],
    [`/payload${pointer}`, flag],
  ]),
);

/** The filter in the daemon's terms: names looked up. */
async function filterOf(link: Link, values: Partial<Values<typeof filters>>): Promise<TailFilter | Problem> {
  const { type, stream, workspace, project } = values;
  if (!stream && workspace === undefined && project === undefined)
    return withoutUndefined({ types: type, subject_kind: values["subject-kind"] });
  const workspace_id = workspace === undefined ? undefined : await idOf(link, "workspace", workspace);
  if (isProblem(workspace_id)) return workspace_id;
  const within = workspace_id === undefined ? {} : { workspace_id };
  const project_id = project === undefined ? undefined : await idOf(link, "project", project, within);
  if (isProblem(project_id)) return project_id;
  const streams: string[] = [];
  for (const each of stream ?? []) {
    const slash = each.indexOf("/");
    if (slash < 1)
      return usage(
        `--stream '${each}' has no kind`,
        "write it as KIND/ID or KIND/NAME, for instance project/core",
      );
    const kind = each.slice(0, slash);
    const { surface } = await import("./surface.ts");
    const kinds = surface().aggregates.map((known) => known.kind);
    if (!kinds.includes(kind))
      return usage(
        `--stream: there is no kind '${kind}'; there are ${kinds.join(", ")}`,
        "write it as KIND/ID or KIND/NAME, for instance project/core",
      );
    const id = await idOf(link, kind, each.slice(slash + 1), kind === "project" ? within : {});
    if (isProblem(id)) return id;
    streams.push(`${kind}/${id}`);
  }
  return withoutUndefined({
    types: type,
    ...(streams.length > 0 && { streams }),
    workspace_id,
    project_id,
    subject_kind: values["subject-kind"],
  });
}

function withoutUndefined(
  filter: { readonly [K in keyof TailFilter]: TailFilter[K] | undefined },
): TailFilter {
  return Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined));
}

/** `--since`: a length of time before now, or a time. */
function timeOf(since: string): string | Problem {
  const ago = duration(since);
  if (ago !== undefined) return new Date(Date.now() - ago).toISOString();
  const time = /^\d{4}-\d{2}-\d{2}([T ]|$)/.test(since) ? Date.parse(since) : Number.NaN;
  return Number.isNaN(time)
    ? usage(
        `--since must be a length of time or a time`,
        "for instance 10m, 2h, 2026-11-22 or 2026-11-22T10:00:00Z",
      )
    : new Date(time).toISOString();
}

/** A refusal when more than one of these flags says where to start. */
function startsTwice<const N extends string>(
  values: Readonly<Partial<Record<N, unknown>>>,
  names: readonly N[],
): Problem | undefined {
  const [one, other] = names.filter((name) => values[name] !== undefined && values[name] !== false);
  return other === undefined
    ? undefined
    : usage(`--${one} and --${other} exclude each other`, "say once where to start");
}

const tail = verb(
  "Follow the log: every event as it happens.",
  {
    ...start,
    ...fromStart,
    ...filters,
    count: { type: "string", format: "count", valueHint: "N", description: "end after so many events" },
    "until-idle": {
      type: "string",
      format: "duration",
      valueHint: "TIME",
      description: "end when nothing has come for this long",
    },
    "no-follow": { type: "boolean", description: "end at what is the log's end now" },
    "cursor-file": {
      type: "string",
      valueHint: "FILE",
      description: "keep the position in this file, and go on from it next time",
    },
    frames: {
      type: "boolean",
      description: "also give the control frames (hello, caught_up …); without --json they go to stderr",
    },
    "no-spawn": asking["no-spawn"],
    // Not from the environment: there it is how long an answer may take.
    timeout: {
      type: "string",
      format: "limit",
      valueHint: "TIME",
      description: "end with exit code 7 after this time",
    },
  },
  async (values, { out }) => {
    const twice = startsTwice(values, ["after", "since", "from-start"]);
    if (twice) return twice;
    if (values.count === 0)
      return usage("--count must be 1 or more", "leave it out to follow without an end");
    const since = values.since === undefined ? undefined : timeOf(values.since);
    if (isProblem(since)) return since;
    const { follow } = await import("./tail.ts");
    const link = daemonLink(values);
    return follow({ ...values, since }, out, link, () => filterOf(link, values));
  },
  {
    pointers,
    notes: [
      "Starts with what happens from now on; with --no-follow at the first event. With --cursor-file it goes on where",
      "the file says; the flags above only say where to start while there is no such file. The file is written after the",
      "lines, so after a crash some lines may come again, but none is left out.",
      'It reconnects by itself. --json gives the stored bytes, one event a line; --frames adds lines with a "kind".',
      "A pipe gets TSV: seq_global, timestamp, event_type, stream, actor, payload.",
      "Exit codes: 0 at --count, --until-idle, --no-follow or when the reader has gone; 7 at --timeout; 8 when it cannot",
      "go on without a gap (another log, or a position beyond its end); 130 after Ctrl-C.",
    ],
    examples: [
      "mp events tail --type 'project.*'",
      "mp events tail --from-start --no-follow --json | jq -r .event_type",
      "mp events tail --cursor-file ~/.seen --until-idle 5s --json",
    ],
  },
);

const list = verb(
  "Read a page of the log, oldest first.",
  {
    ...start,
    ...fromStart,
    ...filters,
    limit: { type: "string", format: "count", valueHint: "N", description: "at most so many events (100)" },
    cursor: { type: "string", valueHint: "CURSOR", description: "the 'next' of the page before" },
    "min-seq": {
      type: "string",
      format: "count",
      valueHint: "SEQ",
      description: "wait until the log is there",
    },
    ...asking,
  },
  async (values, { out }) => {
    const twice = startsTwice(values, ["after", "since", "cursor", "from-start"]);
    if (twice) return twice;
    const since = values.since === undefined ? undefined : timeOf(values.since);
    if (isProblem(since)) return since;
    const link = daemonLink(values);
    const filter = await filterOf(link, values);
    if (isProblem(filter)) return filter;
    const { after, limit, cursor } = values;
    const page = await link.query("events.list", {
      ...(filter as object),
      ...(after !== undefined && { after }),
      ...(since !== undefined && { since }),
      ...(limit !== undefined && { limit }),
      ...(cursor !== undefined && { cursor }),
      ...(values["min-seq"] !== undefined && { min_seq: values["min-seq"] }),
      ...(values["as-stored"] && { as_stored: true }),
    });
    if (isProblem(page)) return page;
    if (out.asJson) {
      await out.json(page);
      return undefined;
    }
    const draw = await drawer(out);
    await out.print((page.items as readonly Event[]).map(draw).join(""));
    if (page.next !== null) await note(`there are more: --cursor ${page.next}`);
    return undefined;
  },
  {
    pointers,
    notes: [
      "A pipe gets TSV: seq_global, timestamp, event_type, stream, actor, payload. All events: mp events tail --no-follow.",
    ],
  },
);

const get = verb(
  "Show one event.",
  {
    event: {
      type: "positional",
      required: true,
      valueHint: "EVENT_ID",
      description: "which one: the event_id that lists and receipts show",
    },
    "as-stored": filters["as-stored"],
    "no-spawn": asking["no-spawn"],
    timeout: asking.timeout,
  },
  async (values, { out }) => {
    const path = `/v1/events/${encodeURIComponent(idLike(values.event))}${values["as-stored"] ? "?as_stored=true" : ""}`;
    const line = await daemonLink(values).get(path);
    if (isProblem(line)) return line;
    if (out.asJson) await out.print(`${line}\n`);
    else await out.record(JSON.parse(line) as Record<string, unknown>);
    return undefined;
  },
  { notes: ["--json gives the stored bytes. A pipe gets a name and a value per line."] },
);

export const events: Noun = { doc: "Events: follow and read the log.", verbs: { tail, list, get } };
