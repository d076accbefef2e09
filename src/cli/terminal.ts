/**
 * What a person at a terminal sees (SPEC §12): tables that fit its width, aligned records, colour.
 *
 * Always holds: text from the log never reaches a terminal with control characters in it, so nobody's file name can
 * move the cursor or change the title. Imported only for a terminal: it costs more than a whole trivial command.
 */
import Table from "cli-table3";
import picocolors from "picocolors";
import { UNITS } from "../kernel/span.ts";
import { type Column, plain } from "./output.ts";

type Row = Readonly<Record<string, unknown>>;

/** Digits of an id that tell it from others at a glance, and that the command line takes for it. */
const SHORT = 8;

const GAP = 2;
const NARROWEST = 8;
/** Enough for the folder that a path ends in. */
const NARROWEST_PATH = 12;
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

/** A text that can be told from no text: in quotes where it begins or ends with space, or has no width at all. */
export function visible(text: string): string {
  const plainly = safe(text);
  const unseen = plainly !== plainly.trim() || (plainly !== "" && Bun.stringWidth(plainly) === 0);
  return unseen ? `"${plainly}"` : plainly;
}

/** A value for a person: times in their own zone, members of a structure in words, nothing as a dash. */
export function shown(value: unknown): string {
  if (value === null || value === undefined || (Array.isArray(value) && value.length === 0)) return NOTHING;
  if (typeof value === "string" && TIME.test(value)) return localTime(value);
  if (typeof value === "object" && !Array.isArray(value))
    return Object.entries(value)
      .map(([name, each]) => `${safe(name.replaceAll("_", " "))} ${shown(each)}`)
      .join(", ");
  return visible(plain(value));
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
    case "links":
      return linksIn(value as readonly { readonly kind: string; readonly id: string }[]);
    default:
      return shown(value);
  }
}

/** The first of what something is linked to, and how many more there are. */
function linksIn([first, ...others]: readonly { readonly kind: string; readonly id: string }[]): string {
  if (!first) return NOTHING;
  return `${safe(first.kind)} ${shortId(first.id)}${others.length > 0 ? ` +${others.length}` : ""}`;
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

/** A length of time in its largest units, as many of them as are asked for, from the largest that it has. */
function inUnits(ms: number, most: number): string {
  const first = UNITS.findIndex(([unit]) => ms >= unit);
  if (first < 0) return "0s";
  return UNITS.slice(first, first + most)
    .map(([unit, name], at) => {
      const larger = UNITS[first + at - 1]?.[0];
      const count = Math.floor((at === 0 || larger === undefined ? ms : ms % larger) / unit);
      return count === 0 ? "" : `${count}${name}`;
    })
    .join("");
}

/** Milliseconds for a person, all of them: `1m`, `1m30s`, `8h`. */
export function span(ms: number): string {
  return inUnits(ms, UNITS.length);
}

/** How long ago a time was, in its two largest units. */
export function ago(wire: string): string {
  return inUnits(Math.max(0, Math.round((Date.now() - Date.parse(wire)) / 1_000)) * 1_000, 2);
}

/** A time, and how far away it is: `2026-11-22 10:00:00 (5m ago)`, `(in 4m)`. */
export function timeAndAge(wire: string): string {
  const ahead = Math.round((Date.parse(wire) - Date.now()) / 1_000) * 1_000;
  return `${localTime(wire)} (${ahead > 0 ? `in ${inUnits(ahead, 2)}` : `${ago(wire)} ago`})`;
}

/** The members of one thing for a person: times with their age, lengths of time and sizes in units. */
export function readable(row: Row): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(row).map(([name, value]) => {
      if (typeof value === "number" && name.endsWith("_ms")) return [name.slice(0, -3), span(value)];
      if (typeof value === "number" && name === "size")
        return [name, value < 1 << 10 ? size(value) : `${size(value)} (${value} bytes)`];
      return [name, typeof value === "string" && TIME.test(value) ? timeAndAge(value) : value];
    }),
  );
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

/** A path that fits into so many columns: its end tells it from others, so what is too long begins with `…`. */
export function cutPath(path: string, columns: number): string {
  if (Bun.stringWidth(path) <= columns) return path;
  const letters = [...new Intl.Segmenter().segment(path)].map(({ segment }) => segment);
  let taken = 1;
  let from = letters.length;
  for (; from > 0; from--) {
    taken += Bun.stringWidth(letters[from - 1]!);
    if (taken > columns) break;
  }
  const whole = letters.indexOf("/", from);
  const rest = letters.slice(whole >= 0 && whole < letters.length - 1 ? whole : from);
  return columns > 0 ? `…${rest.join("")}` : "";
}

/** A text with spaces behind it, so many columns wide. */
export function pad(text: string, columns: number): string {
  return `${text}${" ".repeat(Math.max(0, columns - Bun.stringWidth(text)))}`;
}

/**
 * A table without lines, with its head in capitals, cut to the terminal's width.
 * @param whole nothing is cut: the terminal breaks long lines
 */
export function drawTable(
  rows: readonly Row[],
  columns: readonly Column[],
  colour: boolean,
  whole = false,
): string {
  const colours = paint(colour);
  const all = columns.map(({ name, title, as }) => ({
    name,
    as,
    title: title ?? name.replaceAll("_", " ").toUpperCase(),
    cells: rows.map((row) => cellOf(row[name], as)),
  }));
  const fitted = whole ? all.map(withWidth) : fit(all, width());
  const table = new Table({
    head: fitted.map(({ title }) => colours.bold(title)),
    colWidths: fitted.map((each) => each.width + GAP),
    chars: NO_LINES,
    style: { "padding-left": 0, "padding-right": GAP, head: [], border: [], compact: true },
  });
  for (const at of rows.keys())
    table.push(fitted.map(({ name, cells }) => painted(cells[at]!, name, colour)));
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

/** A column of a table that is being fitted. */
interface Drawn {
  readonly name: string;
  readonly as: Column["as"];
  readonly title: string;
  readonly cells: readonly string[];
}

type Fitted = Drawn & { width: number };

function withWidth(column: Drawn): Fitted {
  const widths = [column.title, ...column.cells].map((text) => Bun.stringWidth(text));
  return { ...column, width: widths.reduce((most, each) => Math.max(most, each), 0) };
}

/**
 * The columns with widths that fit: as wide as what is in them where there is room. Where there is not, columns go that say
 * nothing, then the widest of the others are cut, what things are called last of them. Ids are never cut: half an id is of no use.
 */
function fit(all: readonly Drawn[], available: number): Fitted[] {
  const over = (columns: readonly Fitted[]) =>
    columns.reduce((sum, each) => sum + each.width + GAP, -GAP) - available;
  const full = all.map(withWidth);
  if (over(full) <= 0) return full;
  const telling = full.filter(({ cells }) => cells.some((cell) => cell !== NOTHING));
  const ranks = [...new Set(telling.map(({ name }) => rankOf(name)))].sort();
  for (const rank of ranks)
    for (let left = over(telling); left > 0; left--) {
      const widest = telling
        .filter((each) => rankOf(each.name) === rank && each.width > leastOf(each))
        .reduce<Fitted | undefined>(
          (best, each) => (best && best.width >= each.width ? best : each),
          undefined,
        );
      if (!widest) break;
      widest.width -= 1;
    }
  // A path is cut between two folders, so it may take less than it was given.
  return telling.map((each) =>
    PATH.test(each.name)
      ? withWidth({ ...each, cells: each.cells.map((cell) => cutPath(cell, each.width)) })
      : each,
  );
}

/** Which columns are cut first: what a thing is called comes after what it has, its state last of all. */
function rankOf(name: string): number {
  return STATE.test(name) ? 2 : CALLED.test(name) ? 1 : 0;
}

/** How far a column can be cut. */
function leastOf({ name, as, title, cells, width: widest }: Fitted): number {
  if (as !== undefined || cells.some((cell) => ID.test(cell))) return widest;
  return Math.max(PATH.test(name) ? NARROWEST_PATH : NARROWEST, Bun.stringWidth(title));
}

const PATH = /(^|_)(path|dir)$/;
const CALLED = /^(title|name)$/;
const STATE = /(^|_)(status|state|outcome)$/;

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
  columns: readonly Column[] = Object.keys(rows[0] ?? {}).map((name) =>
    name.endsWith("_id") ? { name, as: "short" } : { name },
  ),
): string {
  return `\n${paint(colour).bold(title.replaceAll("_", " "))}\n${drawTable(rows, columns, colour)}`;
}
