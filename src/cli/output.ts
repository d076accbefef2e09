/**
 * Where everything the CLI prints goes (SPEC §12): data on stdout, everything else on stderr.
 *
 * A person at a terminal gets tables and colour, a pipe plain TSV without a header line, `--json` JSON. Every write is
 * awaited, so output is never cut off at exit and a slow reader slows us, not our memory. A reader that has gone is no
 * error: `print` says so and the verb ends. What draws on terminals is imported only for one (terminal.ts).
 */
import { type Problem, problem } from "../kernel/problems.ts";

/** A column of a table, or a member of a record. */
export interface Column {
  /** The member of the row. */
  readonly name: string;
  /** What a table's head says, when the name in capitals does not do. */
  readonly title?: string;
  /**
   * How a table shows the value: `2h5m` for a time, the end of an id, `P1`, `1.5 MiB`, `task 5f0a11c2 +2` for links. TSV has it
   * as it is.
   */
  readonly as?: "age" | "short" | "priority" | "bytes" | "links";
}

type Row = Readonly<Record<string, unknown>>;

/** How rows look in the two forms. */
export interface Shape {
  /** Columns of the TSV, in an order that scripts rely on: new ones come last. */
  readonly columns: readonly Column[];
  /** Columns of the table, best first; all of `columns` when absent. */
  readonly shown?: readonly Column[];
  /** What a terminal says instead of an empty table. */
  readonly empty?: string;
  /** Let the terminal break long lines: nothing is cut. */
  readonly whole?: boolean;
}

export class Output {
  /** True once whoever read stdout has gone. */
  gone = false;
  /** A write that failed for another reason, for instance a full disk. */
  failed: Problem | undefined;

  constructor(
    /** `--json` was given. */
    readonly asJson: boolean,
    /** stdout is a terminal. */
    readonly terminal: boolean,
    readonly env: Readonly<Record<string, string | undefined>>,
  ) {}

  /** May the terminal get colour (SPEC §12: `NO_COLOR` honoured)? */
  get colour(): boolean {
    return this.terminal && !this.env.NO_COLOR && this.env.TERM !== "dumb";
  }

  /**
   * Write text or bytes to stdout and wait until it has been taken.
   * @returns false when nobody reads any more, or the write failed: stop then
   */
  async print(text: string | Uint8Array): Promise<boolean> {
    if (this.gone || this.failed) return false;
    if (text.length === 0) return true;
    try {
      await writeAll("stdout", text);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
      if (code === "EPIPE") this.gone = true;
      else this.failed = problem("internal", `the output cannot be written: ${code}`, { hint: WRITE_HINT });
      return false;
    }
    return true;
  }

  /** Write one JSON document: indented for a person, one line for a program. */
  json(value: unknown): Promise<boolean> {
    return this.print(`${this.terminal ? JSON.stringify(value, null, 2) : JSON.stringify(value)}\n`);
  }

  /** Write rows as a table or as TSV; not for `--json`, whose document is the daemon's own. */
  async table(rows: readonly Row[], shape: Shape): Promise<boolean> {
    if (!this.terminal) return this.print(rows.map((row) => tsv(shape.columns, row)).join(""));
    if (rows.length === 0) {
      if (shape.empty !== undefined) await note(shape.empty);
      return true;
    }
    const { drawTable } = await import("./terminal.ts");
    return this.print(drawTable(rows, shape.shown ?? shape.columns, this.colour, shape.whole));
  }

  /**
   * Write one thing: a name and a value per line.
   * @param shown what a terminal gets instead of all of it
   */
  async record(row: Row, shown: Row = row): Promise<boolean> {
    if (!this.terminal)
      return this.print(
        Object.entries(row)
          .map(([name, value]) => `${name}\t${field(value)}\n`)
          .join(""),
      );
    const { drawRecord } = await import("./terminal.ts");
    return this.print(drawRecord(shown, this.colour));
  }

  /**
   * Write what came of a command: a sentence for a person, one TSV line for a pipe.
   * @param said the sentence, without its end of line
   * @param fields the TSV line
   */
  async said(said: string, fields: readonly unknown[]): Promise<boolean> {
    if (!this.terminal) return this.print(`${fields.map(field).join("\t")}\n`);
    const { safe } = await import("./terminal.ts");
    return this.print(`${safe(said)}\n`);
  }
}

const WRITE_HINT = "make room where stdout goes, and run it again: reading changes nothing";

const writers: { stdout?: Bun.FileSink; stderr?: Bun.FileSink } = {};

/**
 * Write and wait until all of it has been taken. Not by `Bun.write`, which leaves a hole of zeros in a file that is
 * appended to.
 * @throws the system's error, with its code
 */
async function writeAll(to: "stdout" | "stderr", data: string | Uint8Array): Promise<void> {
  writers[to] ??= Bun[to].writer();
  const writer = writers[to];
  // Either of them can be the one that tells of a reader that has gone.
  await Promise.all([writer.write(data), writer.flush()]);
}

/** Write a line for people to stderr. A stderr that cannot be written is nobody's: the exit code still tells. */
export async function note(text: string): Promise<void> {
  try {
    await writeAll("stderr", `${text}\n`);
  } catch {
    return;
  }
}

/** One line of TSV. */
export function tsv(columns: readonly Column[], row: Row): string {
  return `${columns.map(({ name }) => field(row[name])).join("\t")}\n`;
}

/** A value as a field of TSV: tab, line ends and backslash become `\t`, `\n`, `\r`, `\\`; null is empty. */
export function field(value: unknown): string {
  return plain(value).replace(
    /[\\\t\n\r]/g,
    (found) => ({ "\\": "\\\\", "\t": "\\t", "\n": "\\n" })[found] ?? "\\r",
  );
}

/** A value as text: lists with commas, other structures as JSON, null and undefined as nothing. */
export function plain(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value) && value.every((each) => typeof each !== "object")) return value.join(",");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/**
 * Is this stream a terminal? Asks the file first: node:tty costs as much as the rest of a trivial command, so it is
 * loaded only for a device that is not the null device.
 */
export async function isTerminal(stream: 1 | 2): Promise<boolean> {
  try {
    const found = await (stream === 1 ? Bun.stdout : Bun.stderr).stat();
    if (!found.isCharacterDevice()) return false;
    if (process.platform !== "win32" && found.rdev === (await Bun.file("/dev/null").stat()).rdev)
      return false;
    const { isatty } = await import("node:tty");
    return isatty(stream);
  } catch {
    return false;
  }
}
