/**
 * One event, one line: as a person at a terminal reads it, or as TSV (SPEC §12); and control frames in words.
 *
 * What an event says comes from its envelope and payload alone, so every event type of every aggregate has a line.
 */
import type { ControlFrame } from "../client/tail.ts";
import type { Event } from "../kernel/aggregate.ts";
import { type Column, type Output, tsv } from "./output.ts";

/** The columns of events in a pipe. */
const COLUMNS: readonly Column[] = [
  "seq_global",
  "timestamp",
  "event_type",
  "stream",
  "actor",
  "payload",
].map((name) => ({ name }));

/** How an event is shown when not as JSON: a line for a person, or one of TSV. */
export async function drawer(out: Output): Promise<(event: Event) => string> {
  if (!out.terminal) return (event) => tsv(COLUMNS, { ...event, actor: event.actor.id });
  const { localTime, paint, safe } = await import("./terminal.ts");
  const colours = paint(out.colour);
  return ({ seq_global, timestamp, event_type, subject, actor, payload }) => {
    const { name, title, ...rest } = payload as Record<string, unknown>;
    const called = typeof name === "string" ? name : typeof title === "string" ? title : subject.id;
    const more = Object.keys(rest).length > 0 ? ` ${colours.dim(safe(JSON.stringify(rest)))}` : "";
    const by = colours.dim(`by ${safe(actor.id)}`);
    return `${colours.dim(localTime(timestamp))} ${colours.dim(`#${seq_global}`.padEnd(7))} ${colours.cyan(event_type.padEnd(20))} ${safe(called)} ${by}${more}\n`;
  };
}

/** A control frame in words. */
export function frameInWords(frame: ControlFrame): string {
  switch (frame.kind) {
    case "hello":
      return `log ${frame.log_id}, at ${frame.head}`;
    case "checkpoint":
      return `nothing that matches up to ${frame.seq_global}`;
    case "caught_up":
      return `caught up at ${frame.seq_global}`;
    case "fell_behind":
      return `behind: at ${frame.seq_global} of ${frame.head}`;
    case "heartbeat":
      return `nothing new after ${frame.head}`;
    case "disconnected":
      return `${frame.problem.detail}; trying again`;
    case "end":
      return `ended: ${frame.problem.detail}`;
  }
}
