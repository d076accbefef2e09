/**
 * What the front and the writer thread say to each other, and how: as text, because a string crosses threads for less
 * than an object that is cloned. A commit, which is the hot one, is not JSON in JSON either: receipts and event bodies
 * are JSON already and contain no newline, so they travel as lines behind a head.
 */
import type { Committed, Outcome, WriteRequest } from "../kernel/execute.ts";
import type { Stored } from "../kernel/log.ts";
import type { ProjectionStatus } from "../kernel/projection.ts";
import type { BlobChange, BlobsChanged } from "./blobs.ts";

/** What the front says. */
export type ToWriter =
  | { readonly kind: "open"; readonly database: string; readonly start_id: string }
  | { readonly kind: "write"; readonly requests: readonly WriteRequest[] }
  | { readonly kind: "blobs"; readonly changes: readonly BlobChange[] }
  | { readonly kind: "close" };

/** What the writer says. */
export type FromWriter =
  | { readonly kind: "progress"; readonly name: string; readonly done: number; readonly of: number }
  | { readonly kind: "ready"; readonly log_id: string; readonly projections: readonly ProjectionStatus[] }
  /** The database cannot be served; `message` says why and how to go on. */
  | { readonly kind: "refused"; readonly message: string }
  /** The answers to the requests that came first; to none for what the daemon did by itself, such as ending a lease. */
  | ({ readonly kind: "committed" } & Committed)
  | { readonly kind: "blobs"; readonly done: BlobsChanged }
  /** These bytes are in the store no more; comes before the commit that is the reason. */
  | { readonly kind: "released"; readonly digests: readonly string[] }
  | { readonly kind: "projections"; readonly projections: readonly ProjectionStatus[] }
  | { readonly kind: "bug"; readonly trace_id: string; readonly error: string }
  /** Something an operator should know; the daemon goes on. */
  | { readonly kind: "warning"; readonly message: string }
  /** The outcome of all that is under way is unknown; the process must end. */
  | { readonly kind: "lost"; readonly error: string }
  | { readonly kind: "closed" };

/** The marks of an outcome whose receipt is one of the lines. */
const FIRST = 0;
const REPLAYED = 1;

/** The columns of an event's line, in order. None of their values can hold a space. */
function columns(event: Stored): string {
  const { seq_global, event_id, stream, seq_stream, event_type, schema_version } = event;
  return `${seq_global} ${event_id} ${stream} ${seq_stream} ${event_type} ${schema_version} ${event.workspace_id ?? ""} ${
    event.project_id ?? ""
  } ${event.subject_kind} ${event.command_end}`;
}

/** A message of the writer as text. */
export function encodeMessage(message: FromWriter): string {
  if (message.kind !== "committed") return JSON.stringify(message);
  const { outcomes, events, effects, head, refused } = message;
  const lines = [""];
  const marks = outcomes.map((each) =>
    each.map((outcome) => {
      if ("problem" in outcome) return outcome;
      lines.push(outcome.receipt);
      return outcome.replayed ? REPLAYED : FIRST;
    }),
  );
  for (const event of events) lines.push(columns(event), event.body);
  lines[0] = JSON.stringify({
    kind: "committed",
    outcomes: marks,
    events: events.length,
    effects,
    head,
    refused,
  });
  // One that has no lines must not look like JSON alone.
  if (lines.length === 1) lines.push("");
  return lines.join("\n");
}

/** The message that `encodeMessage` made text of. */
export function decodeMessage(text: string): FromWriter {
  const end = text.indexOf("\n");
  if (end < 0) return JSON.parse(text) as FromWriter;
  const head = JSON.parse(text.slice(0, end)) as Omit<
    Extract<FromWriter, { kind: "committed" }>,
    "outcomes" | "events"
  > & {
    outcomes: (number | Outcome)[][];
    events: number;
  };
  const lines = text.slice(end + 1).split("\n");
  let next = 0;
  const outcomes = head.outcomes.map((each) =>
    each.map(
      (mark): Outcome =>
        typeof mark === "number" ? { receipt: lines[next++]!, replayed: mark === REPLAYED } : mark,
    ),
  );
  const events: Stored[] = [];
  for (let n = 0; n < head.events; n++) {
    const [
      seq_global,
      event_id,
      stream,
      seq_stream,
      event_type,
      schema_version,
      workspace_id,
      project_id,
      kind,
      command_end,
    ] = lines[next++]!.split(" ");
    events.push({
      seq_global: Number(seq_global),
      event_id: event_id!,
      stream: stream!,
      seq_stream: Number(seq_stream),
      event_type: event_type!,
      schema_version: Number(schema_version),
      workspace_id: workspace_id || null,
      project_id: project_id || null,
      subject_kind: kind!,
      command_end: command_end === "1" ? 1 : 0,
      body: lines[next++]!,
    });
  }
  return { ...head, outcomes, events };
}
