/**
 * What a row of the bench is (SPEC §14): a figure of ours beside a yardstick's of the same run, and the floor.
 *
 * Always so: the two sides take turns, round after round, and the medians count, since a shared machine changes its mind
 * from one second to the next. Each side runs in a process of its own.
 */
import { join } from "node:path";
import type { Launcher } from "./daemon.ts";

/** What every row gets. */
export interface Bench {
  readonly launcher: Launcher;
  /** Fewer rounds, smaller logs. */
  readonly quick: boolean;
  /** Rounds of yardstick and ours. */
  readonly rounds: number;
  /** A large log with its read models, made at the first call. The rows share it and may add to it. */
  readonly bigLog: () => Promise<BigLog>;
  /** A word about what is under way, for a person who waits. */
  readonly say: (text: string) => void;
}

export interface BigLog {
  /** MP_HOME of the daemons that serve it. */
  readonly home: string;
  /** How many events it has, and how many bytes all their bodies together. */
  readonly events: number;
  readonly bytes: number;
}

export type Floor =
  /** At least so many times the yardstick. */
  | { readonly kind: "at least"; readonly times: number }
  /** At most so many times the yardstick. */
  | { readonly kind: "at most"; readonly times: number }
  /** At most so much more than the yardstick, in the row's unit. */
  | { readonly kind: "at most more"; readonly by: number }
  /** At most so much; there is no yardstick. */
  | { readonly kind: "limit"; readonly of: number }
  /** Nobody has said what it should be. */
  | { readonly kind: "none" };

export interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly yardstick: number | null;
  readonly ours: number;
  readonly floor: Floor;
  /** What else was seen, for whoever looks for the reason. */
  readonly notes: readonly string[];
}

/** One measurement, which may fill several lines of the table. */
export interface Row {
  readonly name: string;
  /** What is measured and beside what, in one sentence. */
  readonly what: string;
  readonly measure: (bench: Bench) => Promise<readonly Figure[]>;
}

/** Does the figure miss its floor? */
export function missed({ yardstick, ours, floor }: Figure): boolean {
  switch (floor.kind) {
    case "at least":
      return ours < yardstick! * floor.times;
    case "at most":
      return ours > yardstick! * floor.times;
    case "at most more":
      return ours > yardstick! + floor.by;
    case "limit":
      return ours > floor.of;
    case "none":
      return false;
  }
}

/** The middle one of some numbers (the mean of the two middle ones when they are even in number). */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Let both sides take turns, the yardstick first. */
export async function takeTurns<Y, O>(
  rounds: number,
  yardstick: (round: number) => Promise<Y>,
  ours: (round: number) => Promise<O>,
): Promise<{ yardstick: Y[]; ours: O[] }> {
  const done = { yardstick: [] as Y[], ours: [] as O[] };
  for (let round = 0; round < rounds; round++) {
    done.yardstick.push(await yardstick(round));
    done.ours.push(await ours(round));
  }
  return done;
}

/** Run a file of this folder in a process of its own and read the one JSON line it prints. */
export async function measured<Result>(file: string, plan: object): Promise<Result> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, file), JSON.stringify(plan)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const text = await Bun.readableStreamToText(child.stdout);
  if ((await child.exited) !== 0) throw new Error(`${file} failed`);
  return JSON.parse(text) as Result;
}

/** A process of this folder that speaks in JSON lines. */
export interface Partner {
  /** The next line it prints. */
  line<T>(): Promise<T>;
  /** Send it a line. */
  tell(line: string): void;
  /** End its standard input and wait for its end. */
  end(): Promise<void>;
}

/** Start a file of this folder that prints several lines, or is told something. */
export function partner(file: string, plan: object): Partner {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, file), JSON.stringify(plan)], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = (async function* () {
    let rest = "";
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = parts.pop()!;
      yield* parts;
    }
  })();
  return {
    async line<T>() {
      const next = await lines.next();
      if (next.done) throw new Error(`${file} ended early`);
      return JSON.parse(next.value) as T;
    },
    tell(line) {
      child.stdin.write(`${line}\n`);
      child.stdin.flush();
    },
    async end() {
      child.stdin.end();
      if ((await child.exited) !== 0) throw new Error(`${file} failed`);
    },
  };
}
