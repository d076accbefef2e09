/**
 * What a person at a terminal sees (SPEC §12): tables that fit its width, aligned records, colour.
 *
 * Always holds: text from the log never reaches a terminal with control characters in it, so nobody's file name can
 * move the cursor or change the title. Imported only for a terminal: it costs more than a whole trivial command.
 */
import Table from "cli-table3";
import picocolors from "picocolors";
import { type Column, plain } from "./output.ts";

type Row = Readonly<Record<string, unknown>>;

/** Digits of an id that tell it from others at a glance, and that the command line takes for it. */
const SHORT = 8;

const GAP = 2;
const NARROWEST = 8;
const NOTHING = "–";

/** The colours, or their absence. */
export function paint(colour: boolean) {
  return picocolors.createColors(colour);
}

/** Text without control characters (C0, DEL, C1) and without the marks that turn the writing direction. */
export function safe(text: string): string {
  return text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
    /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g,
    (found) => `\\x${found.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}

/** A value for a person: times in their own zone, members of a structure in words, nothing as a dash. */
export function shown(value: unknown): string {
  if (value === null || value === undefined || (Array.isArray(value) && value.length === 0)) return NOTHING;
  if (typeof value === "string" && TIME.test(value)) return localTime(value);
  if (typeof value === "object" && !Array.isArray(value))
    return Object.entries(value)
      .map(([name, each]) => `${safe(name.replaceAll("_", " "))} ${shown(each)}`)
      .join(", ");
  return safe(plain(value));
}

/** The end of an id: enough to name it by. */
export function shortId(id: string): string {
  return id.slice(-SHORT);
}

/** A value as its column wants it. */
function cellOf(value: unknown, as: Column["as"]): string {
  if (value === null || value === undefined) return NOTHING;
  switch (as) {
    case "age":
      return ago(String(value));
    case "short":
      return shortId(String(value));
    case "priority":
      return `P${value}`;
    case "bytes":
      return typeof value === "number" ? size(value) : shown(value);
    default:
      return shown(value);
  }
}

const TIME = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/;

/** `2026-11-22 10:00:00` in the zone of this machine. */
export function localTime(wire: string): string {
  const time = new Date(wire);
  const two = (part: number) => String(part).padStart(2, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

/** A size for a person. */
export function size(bytes: number): string {
  if (bytes < 1 << 10) return `${bytes} B`;
  return bytes < 1 << 20 ? `${Math.round(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

/** How long ago a time was, in its two largest units. */
export function ago(wire: string): string {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(wire)) / 1_000));
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "m"],
    [seconds % 60, "s"],
  ] as const;
  const first = parts.findIndex(([count]) => count > 0);
  const told = first < 0 ? [[0, "s"] as const] : parts.slice(first, first + 2);
  return told.map(([count, unit]) => `${count}${unit}`).join("");
}

/** How many columns of characters there are. */
export function width(): number {
  return process.stdout.columns || 80;
}

/** A text that fits into so many columns: what is too long ends in `…`. */
export function cut(text: string, columns: number): string {
  if (Bun.stringWidth(text) <= columns) return text;
  let fits = "";
  let taken = 1;
  for (const { segment } of new Intl.Segmenter().segment(text)) {
    taken += Bun.stringWidth(segment);
    if (taken > columns) break;
    fits += segment;
  }
  return columns > 0 ? `${fits}…` : "";
}

/** A text with spaces behind it, so many columns wide. */
export function pad(text: string, columns: number): string {
  return `${text}${" ".repeat(Math.max(0, columns - Bun.stringWidth(text)))}`;
}

/** A table without lines, with its head in capitals, cut to the terminal's width. */
export function drawTable(
  rows: readonly Row[],
  columns: readonly Column[],
  colour: boolean,
  whole = false,
): string {
  const colours = paint(colour);
  const head = columns.map(({ name, title }) => title ?? name.replaceAll("_", " ").toUpperCase());
  const cells = rows.map((row) => columns.map(({ name, as }) => cellOf(row[name], as)));
  const table = new Table({
    head: head.map((each) => colours.bold(each)),
    colWidths: fit(head, cells, whole ? Number.POSITIVE_INFINITY : width()),
    chars: NO_LINES,
    style: { "padding-left": 0, "padding-right": GAP, head: [], border: [], compact: true },
  });
  for (const row of cells) table.push(row.map((cell, at) => painted(cell, columns[at]!.name, colour)));
  return `${table
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n")}\n`;
}

const NO_LINES = Object.fromEntries(
  ["top", "bottom", "left", "right"]
    .flatMap((side) => [side, `${side}-mid`, `${side}-left`, `${side}-right`])
    .concat(["mid", "mid-mid", "middle"])
    .map((name) => [name, ""]),
);

/**
 * The widths of the columns: as wide as what is in them, the widest ones cut until all fit. Ids are never cut: half an
 * id is of no use.
 */
function fit(head: readonly string[], cells: readonly (readonly string[])[], available: number): number[] {
  const widths = head.map((title, at) =>
    Math.max(Bun.stringWidth(title), ...cells.map((row) => Bun.stringWidth(row[at]!))),
  );
  const least = head.map((title, at) =>
    cells.some((row) => ID.test(row[at]!))
      ? Number.POSITIVE_INFINITY
      : Math.max(NARROWEST, Bun.stringWidth(title)),
  );
  let over = widths.reduce((sum, each) => sum + each + GAP, -GAP) - available;
  while (over > 0) {
    const widest = widths.reduce(
      (best, each, at) => (each > least[at]! && (best < 0 || each > widths[best]!) ? at : best),
      -1,
    );
    if (widest < 0) break;
    widths[widest]! -= 1;
    over -= 1;
  }
  return widths.map((each) => each + GAP);
}

const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-/;

/** States in the colour of their mood, ids and what is missing in the background. */
function painted(text: string, name: string, colour: boolean): string {
  const colours = paint(colour);
  if (text === NOTHING || ID.test(text)) return colours.dim(text);
  if (name === "ok") return text === "true" ? colours.green(text) : colours.red(text);
  if (name === "priority") return text === "P0" ? colours.red(text) : text;
  return name === "status" || name === "state" || name === "outcome" ? mood(text, text, colour) : text;
}

/** A text in the colour of a state. */
export function mood(state: string, text: string, colour: boolean): string {
  const colours = paint(colour);
  if (GOOD.has(state)) return colours.green(text);
  if (BAD.has(state)) return colours.red(text);
  return OVER.has(state) ? colours.dim(text) : colours.yellow(text);
}

const GOOD = new Set([
  ...["open", "active", "running", "serving", "succeeded", "completed", "present", "available"],
  ...["registered"],
]);
const BAD = new Set(["stopped", "failed", "lost", "unresponsive", "foreign", "missing"]);
const OVER = new Set(["closed", "archived", "cancelled", "removed", "expired", "released"]);

/** One thing: a name and a value per line, aligned; lists of structures as tables below. */
export function drawRecord(row: Row, colour: boolean): string {
  const colours = paint(colour);
  const all = Object.entries(row);
  const plainly = all.filter(([, value]) => !isRows(value));
  const widest = Math.max(0, ...plainly.map(([name]) => name.length)) + GAP;
  const lines = plainly.map(
    ([name, value]) =>
      `${colours.bold(name.replaceAll("_", " ").padEnd(widest))}${painted(shown(value), name, colour)}\n`,
  );
  return [
    ...lines,
    ...all.flatMap(([name, value]) => (isRows(value) ? [drawPart(name, value, colour)] : [])),
  ].join("");
}

function isRows(value: unknown): value is readonly Row[] {
  return Array.isArray(value) && value.length > 0 && value.every((each) => typeof each === "object");
}

/** A table with a title, as a part of something else. */
export function drawPart(
  title: string,
  rows: readonly Row[],
  colour: boolean,
  columns: readonly Column[] = Object.keys(rows[0] ?? {}).map((name) => ({ name })),
): string {
  return `\n${paint(colour).bold(title.replaceAll("_", " "))}\n${drawTable(rows, columns, colour)}`;
}
