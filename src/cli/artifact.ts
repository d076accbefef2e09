/**
 * `mp artifact` beyond its registry (SPEC §8, §12): a file into the store and registered, and bytes out of it again; what
 * belongs to what.
 *
 * Always holds: bytes are never whole in memory; what is downloaded has the digest that was asked for, and takes its name only
 * then; a file that is there stays, unless `--force` says otherwise. What the daemon sends becomes a file name only where that
 * is a plain one, in the current folder; else the file is named by its digest.
 */
import { existsSync, statSync } from "node:fs";
import { type FileHandle, mkdtemp, open, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { connect, type Target } from "../client/client.ts";
import { codeOf, failureOf, unavailable } from "../client/transport.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { spanOf } from "../kernel/span.ts";
import { type Args, asking, changing, type Ending, type Values, type Verb, verb } from "./command.ts";
import { forReading, type Page, queryVerb, type Rows } from "./domain.ts";
import { INTERRUPTED, TERMINATED } from "./exit.ts";
import { daemonLink, type Link } from "./link.ts";
import { idOf, mayEndId } from "./names.ts";
import type { Column, Output } from "./output.ts";
import { usage } from "./parse.ts";

/** The verbs of artifacts that are not derived. */
export function artifactVerbs(): Readonly<Record<string, Verb>> {
  return {
    get upload() {
      return uploadVerb();
    },
    get download() {
      return downloadVerb();
    },
    get list() {
      return listVerb();
    },
    get get() {
      return getVerb();
    },
  };
}

const DIGEST = /^sha256:[0-9a-f]{64}$/;
const BINARY = "application/octet-stream";
/** What the daemon takes as a name (SPEC §8). */
const NAME = /^[^\p{Cc}\u202a-\u202e\u2066-\u2069]{1,128}$/u;

const linked = (kind: string, description: string, env?: string) =>
  ({
    type: "string",
    many: true,
    valueHint: kind.toUpperCase(),
    description,
    ...(env !== undefined && { env }),
  }) as const;

/** What an upload can be linked to; a session's own child links to its session by itself. */
const linkArgs = {
  workspace: linked("workspace", "link it to this workspace, by name or id"),
  session: linked("session", "link it to this session, by id", "MP_SESSION_ID"),
  task: linked("task", "link it to this task, by id"),
  worktree: linked("worktree", "link it to this worktree, by path or id"),
  project: linked("project", "link it to this project, by name or id"),
  board: linked("board", "link it to this board, by name or id"),
} as const satisfies Args;

/** What a list can be narrowed to besides a workspace. */
const ofArgs = Object.fromEntries(
  (["session", "task", "worktree", "project", "board"] as const).map((kind) => {
    const { valueHint, description } = linkArgs[kind];
    return [
      kind,
      { type: "string", valueHint, description: description.replace("link it to", "only those of") },
    ] as const;
  }),
);

function listVerb(): Verb {
  return queryVerb("artifact.list", {
    doc: "List artifacts, oldest first: all, or those of one thing.",
    args: {
      ...ofArgs,
      "linked-to": {
        type: "string",
        valueHint: "ID",
        description: "only those of the thing with this id, whatever it is",
      },
    },
    examples: [
      "mp artifact list --session SESSION            the output of a run",
      "mp artifact list --project core --workspace demo",
    ],
    given: async (link, values) => {
      const to = await linkedTo(link, values);
      return isProblem(to) ? to : { "linked-to": to };
    },
    rows: (items, { link }) => withLinks(link, items),
  });
}

/** The id of what a list is to be of; undefined where it is of everything. */
async function linkedTo(
  link: Link,
  values: Readonly<Record<string, unknown>>,
): Promise<string | undefined | Problem> {
  const asked = [...Object.keys(ofArgs), "linked-to"].filter((name) => values[name] !== undefined);
  const [name] = asked;
  if (name === undefined) return undefined;
  if (asked.length > 1)
    return usage(
      `${asked.map((each) => `--${each}`).join(" and ")} exclude each other`,
      "a list is of one thing: give one of them",
    );
  const text = String(values[name]);
  const within = values.workspace === undefined ? {} : await workspaceOf(link, String(values.workspace));
  if (isProblem(within)) return within;
  if (name !== "linked-to") return idOf(link, name, text, name === "worktree" ? {} : within);
  if (!mayEndId(text)) return text;
  for (const kind of ["session", "task", "worktree", "project", "workspace", "board"]) {
    const id = await idOf(link, kind, text);
    if (!isProblem(id) || id.code !== "not_found") return id;
  }
  return problem("not_found", `there is nothing whose id ends in '${text}'`, {
    hint: "'mp session list', 'mp task list' and the others show the ends of ids",
  });
}

async function workspaceOf(link: Link, text: string): Promise<{ readonly workspace_id: string } | Problem> {
  const workspace_id = await idOf(link, "workspace", text);
  return isProblem(workspace_id) ? workspace_id : { workspace_id };
}

interface Linked {
  readonly kind: string;
  readonly id: string;
}

/** From what tells most of where an artifact comes from to what tells least. */
const NEAREST = ["session", "task", "worktree", "board", "project", "workspace"];
/** Questions that are under way at a time. */
const AT_ONCE = 16;

/** The rows of a list with what each is linked to, for the list itself does not tell. */
async function withLinks(
  link: Link,
  items: readonly Readonly<Record<string, unknown>>[],
): Promise<Rows | Problem> {
  const rows: Readonly<Record<string, unknown>>[] = [];
  for (let from = 0; from < items.length; from += AT_ONCE) {
    const some = items.slice(from, from + AT_ONCE);
    const answers = await Promise.all(
      some.map(({ artifact_id }) => link.query("artifact.get", { artifact_id: String(artifact_id) })),
    );
    for (const [at, answer] of answers.entries()) {
      if (isProblem(answer)) return answer;
      rows.push({ ...some[at], links: nearestFirst(answer.links) });
    }
  }
  return { items: rows };
}

function nearestFirst<L extends Linked>(links: readonly L[]): L[] {
  return links.toSorted((a, b) => NEAREST.indexOf(a.kind) - NEAREST.indexOf(b.kind));
}

const LINKS: readonly Column[] = [
  { name: "kind" },
  { name: "id", as: "short" },
  { name: "linked_at", title: "LINKED", as: "age" },
];

function getVerb(): Verb {
  return queryVerb("artifact.get", {
    doc: "Show one artifact, what it belongs to, and whether its bytes are in the store.",
    examples: ["mp artifact get 5f0a11c2", "mp artifact get report.html --workspace demo --json"],
    draw: (whole, { out }) => drawn(whole, out.colour),
  });
}

async function drawn(whole: Readonly<Record<string, unknown>>, colour: boolean): Promise<string> {
  const { drawPart, drawRecord, span } = await import("./terminal.ts");
  const { links, expire_after_ms, stored, ...rest } = whole;
  const { size, ...others } = rest;
  const record = await forReading("artifact", {
    size,
    ...others,
    bytes: stored ? "in the store" : "gone",
    kept: !stored
      ? null
      : typeof expire_after_ms === "number"
        ? `for ${span(expire_after_ms)}`
        : "until they are expired",
  });
  const all = nearestFirst(links as readonly (Linked & Readonly<Record<string, unknown>>)[]);
  return `${drawRecord(record, colour)}${drawPart("belongs to", all, colour, LINKS)}`;
}

const MADE: readonly Column[] = [
  { name: "name" },
  { name: "size", as: "bytes" },
  { name: "status" },
  { name: "created_at", title: "CREATED", as: "age" },
  { name: "artifact_id", title: "ID", as: "short" },
];
/** Artifacts that the record of another thing shows. */
const MOST = 20;

/**
 * The artifacts of a thing as a part of its record; nothing where it has none.
 * @param id of the thing
 * @param all the command line that lists all of them
 */
export async function drawArtifactsOf(
  link: Link,
  id: string,
  all: string,
  colour: boolean,
): Promise<string | Problem> {
  const answer = await link.ask("artifact.list", { linked_to: id, limit: MOST });
  if (isProblem(answer)) return answer;
  const { items, next } = answer as Page;
  if (items.length === 0) return "";
  const { drawPart } = await import("./terminal.ts");
  return drawPart(next === null ? "artifacts" : `artifacts, the first ${MOST}: ${all}`, items, colour, MADE);
}

const uploadArgs = {
  file: {
    type: "positional",
    required: true,
    valueHint: "FILE",
    description: "the file; - is standard input",
  },
  ...linkArgs,
  "media-type": { type: "string", valueHint: "TYPE", description: "what it is (by the file's ending)" },
  name: { type: "string", valueHint: "NAME", description: "what it is called (as the file)" },
  "expire-after-ms": {
    type: "string",
    format: "milliseconds",
    valueHint: "TIME",
    description: "keep the bytes so long, from 1s on (until they are expired)",
  },
  ...changing,
  ...asking,
} as const satisfies Args;

function uploadVerb(): Verb {
  return verb(
    "Store a file and register it as an artifact of what it belongs to.",
    uploadArgs,
    (values, { out }) => interruptible((signal) => upload(values, out, signal)),
    {
      notes: [
        "At least one of --session, --task, --worktree, --project, --workspace, --board is needed; each may be repeated.",
        "The same bytes are stored once, however often they are uploaded.",
        "A pipe gets TSV: artifact_id, digest, size.",
      ],
      examples: [
        "mp artifact upload report.html --task TASK",
        "make test 2>&1 | mp artifact upload - --session SESSION --name test.log --media-type text/plain",
      ],
      pointers: {
        "/payload/media_type": "--media-type",
        "/payload/name": "--name",
        "/payload/retention/expire_after_ms": "--expire-after-ms",
      },
    },
  );
}

async function upload(values: Values<typeof uploadArgs>, out: Output, signal: AbortSignal): Promise<Ending> {
  const asked = Object.keys(linkArgs).flatMap((kind) =>
    (values[kind as keyof typeof linkArgs] ?? []).map((text) => ({ kind, text })),
  );
  if (asked.length === 0)
    return usage(
      "an artifact belongs to something",
      "give --session, --task, --worktree, --project, --workspace or --board",
    );
  const link = daemonLink(values);
  const links: { kind: string; id: string }[] = [];
  for (const { kind, text } of asked) {
    // The workspace comes first, and is where the others are looked for: an artifact's links lie in one.
    const home = links.find((each) => each.kind === "workspace");
    const id = await idOf(link, kind, text, home && kind !== "workspace" ? { workspace_id: home.id } : {});
    if (isProblem(id)) return id;
    links.push({ kind, id });
  }
  const source = values.file === "-" ? await spooled(signal) : await hashed(values.file, signal);
  if (isProblem(source)) return source;
  try {
    const { path, digest, size } = source;
    const at = await link.address();
    if (isProblem(at)) return at;
    const stored = await connect(at).upload(digest, Bun.file(path), { ...timeoutOf(values.timeout), signal });
    if (isProblem(stored)) return changedMeanwhile(stored);
    const name = values.name ?? nameOf(values.file);
    const receipt = await link.send("artifact.register", {
      digest,
      size,
      media_type: values["media-type"] ?? mediaTypeOf(values.file),
      ...(name !== undefined && { name }),
      ...(values["expire-after-ms"] !== undefined && {
        retention: { expire_after_ms: values["expire-after-ms"] },
      }),
      links,
    });
    if (isProblem(receipt)) return receipt;
    const { id } = receipt.subject;
    if (out.asJson) await out.json({ ...receipt, digest, size });
    else {
      const what = name === undefined ? `artifact ${id}` : `artifact ${name} (${id})`;
      const again = receipt.replayed ? "; it was done before, under this key" : "";
      await out.said(`registered ${what}, ${digest}, ${size} bytes${again}`, [id, digest, size]);
    }
    return undefined;
  } finally {
    await source.done();
  }
}

/** Bytes on this disk, with their digest. */
interface Source {
  readonly path: string;
  readonly digest: string;
  readonly size: number;
  /** Remove what was made for it. */
  readonly done: () => Promise<void>;
}

/** A file of the user's. */
async function hashed(path: string, signal: AbortSignal): Promise<Source | Problem> {
  try {
    if (statSync(path).isDirectory()) return usage(`FILE: '${path}' is a folder`, "give the path of a file");
    const found = await poured(Bun.file(path).stream(), async () => true, signal);
    return { path, ...found, done: async () => undefined };
  } catch (error) {
    const code = errno(error);
    return usage(
      `FILE: '${path}' ${code === "ENOENT" ? "does not exist" : `cannot be read (${code})`}`,
      "give the path of a file that you can read",
    );
  }
}

/** Standard input, in a file of its own: its digest is known only at its end, and must stand in front. */
async function spooled(signal: AbortSignal): Promise<Source | Problem> {
  const folder = await mkdtemp(join(tmpdir(), "mp-upload-"));
  const done = () => rm(folder, { recursive: true, force: true });
  const path = join(folder, "stdin");
  try {
    const file = await open(path, "wx", 0o600);
    const found = await poured(Bun.stdin.stream(), (chunk) => write(file, chunk), signal);
    await file.close();
    return { path, ...found, done };
  } catch (error) {
    await done();
    const code = errno(error);
    return problem("internal", `standard input cannot be kept: ${code}`, {
      hint: "make room in the folder of temporary files, or set TMPDIR to another",
    });
  }
}

/** The daemon has seen other bytes than were hashed: somebody writes to the file. */
function changedMeanwhile(refused: Problem): Problem {
  return refused.reason === "artifact.digest_mismatch"
    ? { ...refused, hint: "the file was changed while it was sent: send it again once it is whole" }
    : refused;
}

function nameOf(file: string): string | undefined {
  const name = file === "-" ? "" : basename(file).normalize("NFC");
  return NAME.test(name) ? name : undefined;
}

function mediaTypeOf(file: string): string {
  return (file === "-" ? "" : Bun.file(file).type) || BINARY;
}

const downloadArgs = {
  artifact: {
    type: "positional",
    required: true,
    valueHint: "ARTIFACT",
    description: "its name or id, or the digest of the bytes: sha256:HEX",
  },
  output: {
    type: "string",
    alias: ["o"],
    valueHint: "FILE",
    description: "the file to write; - is standard output (as the artifact is called, else the digest)",
  },
  force: { type: "boolean", description: "replace a file that is there" },
  workspace: {
    type: "string",
    valueHint: "WORKSPACE",
    description: "where to look for an artifact that is given by name",
  },
  ...asking,
} as const satisfies Args;

function downloadVerb(): Verb {
  return verb(
    "Read the bytes of an artifact, checked against their digest.",
    downloadArgs,
    (values, { out }) => interruptible((signal) => download(values, out, signal)),
    {
      notes: [
        "Without --output: a file of the artifact's name in the current folder, where that is a plain file name; else one that is",
        "called sha256-HEX. A file takes its name only when all of it is there and its digest is right.",
        "On standard output the bytes come as they are read: exit code 5 says that their digest was wrong.",
        "A pipe gets TSV: path, digest, size; with --output - only the bytes.",
      ],
      examples: [
        "mp artifact download report.html --workspace demo",
        "mp artifact download ARTIFACT --output - | less",
      ],
    },
  );
}

async function download(
  values: Values<typeof downloadArgs>,
  out: Output,
  signal: AbortSignal,
): Promise<Ending> {
  const toOutput = values.output === "-";
  if (toOutput && out.asJson) return usage("--json and --output - exclude each other", "give one of them");
  const link = daemonLink(values);
  const found = await digestOf(link, values.artifact, values.workspace);
  if (isProblem(found)) return found;
  const { digest, artifact_id, name } = found;
  const path = resolve(values.output ?? fileNameOf(name, digest));
  if (!toOutput && !values.force && existsSync(path)) return thereAlready(path);
  const at = await link.address();
  if (isProblem(at)) return at;
  const ask = { at, digest, timeout: values.timeout, signal };
  if (toOutput) return printBytes(ask, out);
  const size = await received(ask, (body) => written(body, path, digest, values.force, signal)).catch(
    (error: unknown) => {
      if (!(error instanceof Unwritable)) throw error;
      return problem("internal", `${path} cannot be written: ${error.message}`, {
        hint: "give another --output, or make room",
      });
    },
  );
  if (isProblem(size)) return size;
  if (out.asJson) await out.json({ ...(artifact_id !== undefined && { artifact_id }), path, digest, size });
  else await out.said(`wrote ${path}, ${size} bytes`, [path, digest, size]);
  return undefined;
}

/** Which bytes are wanted, and of whom. */
interface Asked {
  readonly at: Target;
  readonly digest: string;
  /** Milliseconds. */
  readonly timeout: number | undefined;
  readonly signal: AbortSignal;
}

/** Have the bytes of a digest taken as they come. @returns what `take` makes of them; why they did not all come */
async function received<T>(
  { at, digest, timeout, signal }: Asked,
  take: (body: ReadableStream<Uint8Array>) => Promise<T | Problem>,
): Promise<T | Problem> {
  const response = await connect(at).download(digest, { ...timeoutOf(timeout), signal });
  if (isProblem(response)) return response;
  try {
    return await take(response.body ?? new Blob().stream());
  } catch (error) {
    if (error instanceof Unwritable) throw error;
    if (error instanceof Error && error.name === "TimeoutError")
      return problem("timeout", `not all of it came within ${spanOf(timeout!)}`, {
        hint: "allow more time with --timeout",
      });
    return unavailable(at, failureOf(error), codeOf(error));
  }
}

/** Write the bytes of a digest to stdout as they come; a problem when they did not, or were others. */
export function printBytes(asked: Asked, out: Output): Promise<Problem | undefined> {
  return received(asked, async (body) => {
    const came = await poured(body, (chunk) => out.print(chunk), asked.signal);
    return out.gone || out.failed || came.digest === asked.digest
      ? undefined
      : mismatch(asked.digest, came.digest);
  });
}

interface Found {
  readonly digest: string;
  readonly artifact_id?: string;
  /** What the artifact is called. */
  readonly name?: string | null;
}

/** The digest that a word stands for, and of which artifact. */
async function digestOf(link: Link, text: string, workspace: string | undefined): Promise<Found | Problem> {
  if (DIGEST.test(text)) return { digest: text };
  const within = workspace === undefined ? {} : await workspaceOf(link, workspace);
  if (isProblem(within)) return within;
  const artifact_id = await idOf(link, "artifact", text, within);
  if (isProblem(artifact_id)) return artifact_id;
  const found = await link.query("artifact.get", { artifact_id });
  return isProblem(found) ? found : { digest: found.digest, artifact_id, name: found.name };
}

/** A file name that is no path, no option, nothing hidden, and that can be seen. */
const PLAIN = /^[^./\\:\s-](?:[^/\\:]*[^/\\:\s])?$/;

/** The name of the file: the artifact's, where that is a plain file name; else its digest. */
function fileNameOf(name: string | null | undefined, digest: string): string {
  return name && NAME.test(name) && PLAIN.test(name) ? name : digest.replace(":", "-");
}

/**
 * Write a body beside its place and put it there once it is right.
 * @returns its size in bytes
 */
async function written(
  body: ReadableStream<Uint8Array>,
  path: string,
  digest: string,
  force: boolean,
  signal: AbortSignal,
): Promise<number | Problem> {
  const draft = join(dirname(path), `.mp-${crypto.randomUUID()}.part`);
  const file = await open(draft, "wx").catch(unwritable);
  try {
    const came = await poured(body, (chunk) => write(file, chunk), signal);
    await file.sync().catch(unwritable);
    if (came.digest !== digest) return mismatch(digest, came.digest);
    if (!force && existsSync(path)) return thereAlready(path);
    await rename(draft, path).catch(unwritable);
    return came.size;
  } finally {
    await file.close();
    await rm(draft, { force: true });
  }
}

/** Have all of a stream taken, in its order. */
async function poured(
  from: ReadableStream<Uint8Array>,
  to: (chunk: Uint8Array) => Promise<boolean>,
  signal: AbortSignal,
): Promise<{ readonly digest: string; readonly size: number }> {
  const hash = new Bun.CryptoHasher("sha256");
  const reader = from.getReader();
  const abort = () => void reader.cancel();
  signal.addEventListener("abort", abort, { once: true });
  let size = 0;
  for (let taken = true; taken; ) {
    const { value } = await reader.read();
    signal.throwIfAborted();
    if (value === undefined) break;
    hash.update(value);
    size += value.length;
    taken = await to(value);
  }
  signal.removeEventListener("abort", abort);
  await reader.cancel();
  return { digest: `sha256:${hash.digest("hex")}`, size };
}

async function write(file: FileHandle, chunk: Uint8Array): Promise<true> {
  for (let from = 0; from < chunk.length; )
    from += (await file.write(chunk, from, chunk.length - from).catch(unwritable)).bytesWritten;
  return true;
}

/** A file of the user's cannot be written; its message is the code. */
class Unwritable extends Error {}

function unwritable(error: unknown): never {
  throw new Unwritable(errno(error), { cause: error });
}

function thereAlready(path: string): Problem {
  return usage(`the file ${path} is there already`, "give another --output, or --force to replace it");
}

function mismatch(digest: string, actual: string): Problem {
  return problem("conflict", "the bytes that came have another digest", {
    reason: "artifact.digest_mismatch",
    hint: "try again; if it stays so, the file in the daemon's store is damaged",
    details: { digest, actual },
  });
}

/** Run something that Ctrl-C and SIGTERM end cleanly: nothing half-made stays. */
export async function interruptible(work: (signal: AbortSignal) => Promise<Ending>): Promise<Ending> {
  const stop = new AbortController();
  let code: number | undefined;
  const end = (exit: number) => () => {
    code ??= exit;
    stop.abort();
  };
  // Once each: a second one ends the process at once.
  process.once("SIGINT", end(INTERRUPTED));
  process.once("SIGTERM", end(TERMINATED));
  try {
    const ending = await work(stop.signal);
    return code ?? ending;
  } catch (error) {
    if (code !== undefined) return code;
    throw error;
  }
}

function timeoutOf(timeout: number | undefined) {
  return timeout === undefined ? {} : { timeout_ms: timeout };
}

function errno(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}
