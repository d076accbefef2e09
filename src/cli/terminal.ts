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

/** A value for a person: times in their own zone, nothing as a dash. */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return NOTHING;
  if (typeof value === "string" && TIME.test(value)) return localTime(value);
  return safe(plain(value));
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
function width(): number {
  return process.stdout.columns || 80;
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
  const cells = rows.map((row) => columns.map(({ name }) => shown(row[name])));
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
  if (name !== "status" && name !== "state") return text;
  if (GOOD.has(text)) return colours.green(text);
  return BAD.has(text) ? colours.red(text) : colours.yellow(text);
}

const GOOD = new Set(["open", "active", "running", "serving", "succeeded", "completed"]);
const BAD = new Set(["stopped", "failed", "lost", "unresponsive", "foreign"]);

/** One thing: a name and a value per line, aligned. */
export function drawRecord(row: Row, colour: boolean): string {
  const colours = paint(colour);
  const titles = Object.keys(row).map((name) => name.replaceAll("_", " "));
  const widest = Math.max(...titles.map((title) => title.length)) + GAP;
  return Object.entries(row)
    .map(
      ([name, value], at) =>
        `${colours.bold(titles[at]!.padEnd(widest))}${painted(shown(value), name, colour)}\n`,
    )
    .join("");
}
