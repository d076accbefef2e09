/**
 * The budgets of SPEC §14, measured: `bun run bench [--quick] [--only ROW]… [--strict] [--json] [--source]`.
 *
 * Each row prints the yardstick, ours, the ratio and the floor, and says MISSED when the floor is missed. The
 * executable is what is measured. docs/bench.md says what each row does and has the figures of one machine.
 */
import { rmSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import type { BigLogPlan, BigLogResult } from "./biglog.ts";
import { commands, latency } from "./commands.ts";
import { launcher, machineTimes, othersShare, temporaryFolder } from "./daemon.ts";
import { rebuilding, verifying } from "./derived.ts";
import { memory, ping, start } from "./process.ts";
import { type Bench, type BigLog, type Figure, type Floor, measured, missed, type Row } from "./row.ts";
import { stalls } from "./stalls.ts";
import { catchup, fanout } from "./streams.ts";
import { work } from "./work.ts";

const ROWS: readonly Row[] = [
  commands,
  latency,
  catchup,
  fanout,
  rebuilding,
  verifying,
  ping,
  start,
  memory,
  stalls,
  work,
];

const { values: flags } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    only: { type: "string", multiple: true },
    strict: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    source: { type: "boolean", default: false },
    rounds: { type: "string" },
  },
});

function number(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
}

function floorText(floor: Floor, unit: string): string {
  switch (floor.kind) {
    case "at least":
      return `≥ ${floor.times} ×`;
    case "at most":
      return `≤ ${floor.times} ×`;
    case "at most more":
      return `≤ it + ${floor.by} ${unit}`;
    case "limit":
      return `≤ ${floor.of} ${unit}`;
    case "none":
      return "no floor";
  }
}

function line(figure: Figure): string[] {
  const { name, unit, yardstick, ours, floor } = figure;
  return [
    name,
    yardstick === null ? "–" : `${number(yardstick)} ${unit}`,
    `${number(ours)} ${unit}`,
    yardstick === null ? "–" : (ours / yardstick).toFixed(2),
    floorText(floor, unit),
    floor.kind === "none" ? "" : missed(figure) ? "MISSED" : "ok",
  ];
}

function table(figures: readonly Figure[]): string {
  const head = ["what", "yardstick", "mp", "ratio", "floor", ""];
  const rows = [head, head.map(() => "---"), ...figures.map(line)];
  const widths = head.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map(
      (row) =>
        `| ${row.map((cell, column) => (cell === "---" ? "-".repeat(widths[column]!) : cell.padEnd(widths[column]!))).join(" | ")} |`,
    )
    .join("\n");
}

/** The large log: made when a row first asks for it, in a folder that the caller removes. */
function largeLog(home: string, events: number, say: (text: string) => void): () => Promise<BigLog> {
  let made: Promise<BigLog> | undefined;
  async function make(): Promise<BigLog> {
    say(`making a log of ${events.toLocaleString("en")} events`);
    const { bytes } = await measured<BigLogResult>("biglog.ts", { home, events } satisfies BigLogPlan);
    return { home, events, bytes };
  }
  return () => {
    made ??= make();
    return made;
  };
}

/** A share of the CPU that others may have before it is worth a warning. */
const QUIET = 0.05;

interface Measured {
  readonly figures: readonly Figure[];
  /** The share of the CPU that other programs had meanwhile; 0 where nobody knows. */
  readonly others: number;
}

/** Measure one row and tell what comes; a row that breaks is told and does not stop the others. */
async function measureRow(row: Row, bench: Bench): Promise<Measured | undefined> {
  console.error(`${row.name}: ${row.what}`);
  const before = machineTimes();
  try {
    const figures = await row.measure(bench);
    const after = machineTimes();
    for (const figure of figures) {
      bench.say(line(figure).join(" | "));
      for (const note of figure.notes) bench.say(`  ${note}`);
    }
    const others = before && after ? othersShare(before, after) : 0;
    if (others > QUIET)
      bench.say(
        `  other programs had ${Math.round(others * 100)} % of the CPU meanwhile, which lowers the figures`,
      );
    return { figures, others };
  } catch (error) {
    console.error(error);
    return undefined;
  }
}

async function main(): Promise<number> {
  const unknown = flags.only?.filter((name) => !ROWS.some((row) => row.name === name)) ?? [];
  if (unknown.length > 0) {
    console.error(`no such row: ${unknown.join(", ")}; there are: ${ROWS.map((row) => row.name).join(", ")}`);
    return 2;
  }
  const say = (text: string) => console.error(`  ${text}`);
  const home = temporaryFolder();
  const bench: Bench = {
    launcher: launcher(flags.source),
    quick: flags.quick,
    rounds: Number(flags.rounds ?? (flags.quick ? 3 : 7)),
    bigLog: largeLog(home, flags.quick ? 100_000 : 1_000_000, say),
    say,
  };
  const machine = `${cpus()[0]?.model ?? "unknown CPU"}, ${cpus().length} cores, ${process.platform}/${process.arch}, Bun ${Bun.version}`;
  console.error(
    `${machine}; medians of up to ${bench.rounds} rounds; a shared machine is noisy: look at the ratios`,
  );
  const figures: Figure[] = [];
  const broken: string[] = [];
  const noisy: string[] = [];
  for (const row of ROWS) {
    if (flags.only && !flags.only.includes(row.name)) continue;
    const found = await measureRow(row, bench);
    if (found) figures.push(...found.figures);
    else broken.push(row.name);
    if (found && found.others > QUIET) noisy.push(`${row.name} (${Math.round(found.others * 100)} %)`);
  }
  rmSync(home, { recursive: true, force: true });
  if (flags.json)
    console.log(
      JSON.stringify({ machine, quick: flags.quick, rounds: bench.rounds, figures, broken, noisy }),
    );
  else console.log(`\n${table(figures)}`);
  if (noisy.length > 0) console.error(`other programs used the CPU meanwhile: ${noisy.join(", ")}`);
  if (broken.length > 0) console.error(`not measured, for an error: ${broken.join(", ")}`);
  const short = figures.filter(missed).map(({ name }) => name);
  if (short.length > 0) console.error(`MISSED: ${short.join("; ")}`);
  return broken.length > 0 || (flags.strict && short.length > 0) ? 1 : 0;
}

process.exitCode = await main();
