/**
 * The daemon's log file (SPEC §11): JSON lines, appended synchronously so that the line before a crash is there.
 *
 * daemon.log is 0600 and rotates by size; daemon.log.1 is the newest of the old ones. A failing disk never
 * reaches the caller: lines that could not be written are counted, and the first one that can be is preceded by
 * one that says how many are missing. One logger per file: the lock holder's main thread has it, and other
 * threads hand their lines over. No transports: those are threads, and would lose the last lines.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  openSync,
  readSync,
  renameSync,
  writeSync,
} from "node:fs";
import { type Level, type Logger as PinoLogger, pino, stdTimeFunctions } from "pino";

export type Logger = PinoLogger;

interface Settings {
  readonly level: Level | "silent";
  /** Size at which the file is put aside, in bytes. */
  readonly max_bytes?: number;
  /** How many old files to keep beside the current one. */
  readonly keep?: number;
}

const MAX_BYTES = 10 * 1024 * 1024;
const KEEP = 3;

/**
 * Open the daemon's log. Lines have `level` (its name), `time` (RFC 3339 UTC with milliseconds), `pid`, what the
 * caller gives, and `msg`.
 * @param path daemon.log; made if missing, in a folder that exists
 * @returns a pino logger that never throws into its caller, whatever the disk does
 */
export function logger(path: string, { level, max_bytes = MAX_BYTES, keep = KEEP }: Settings): Logger {
  return pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    rotatingFile(path, max_bytes, keep),
  );
}

function rotatingFile(path: string, maxBytes: number, keep: number): { write(line: string): void } {
  let fd: number | undefined;
  let size = 0;
  let lost = 0;

  function open(): number {
    const opened = openSync(path, constants.O_RDWR | constants.O_APPEND | constants.O_CREAT, 0o600);
    const found = fstatSync(opened);
    if (found.isFile() && (found.mode & 0o077) !== 0) fchmodSync(opened, 0o600);
    size = found.size;
    // A write that a full disk or a crash cut short: the next line must not continue it.
    if (size > 0 && !endsLine(opened, size)) size += writeSync(opened, "\n");
    return opened;
  }

  function close(): void {
    if (fd !== undefined) closeSync(fd);
    fd = undefined;
  }

  function rotate(): void {
    close();
    for (let age = keep - 1; age >= 1; age--) rename(`${path}.${age}`, `${path}.${age + 1}`);
    rename(path, `${path}.1`);
  }

  function append(text: string): void {
    const bytes = Buffer.from(text);
    fd ??= open();
    if (size > 0 && size + bytes.length > maxBytes) {
      rotate();
      fd = open();
    }
    for (let done = 0; done < bytes.length; ) {
      const written = writeSync(fd, bytes, done);
      done += written;
      size += written;
    }
  }

  return {
    write(line) {
      try {
        append(lost > 0 ? missing(lost) + line : line);
        lost = 0;
      } catch {
        lost++;
        // Opened anew for the next line: by then somebody may have made room, or the folder.
        tryClose();
      }
    },
  };

  function tryClose(): void {
    try {
      close();
    } catch {
      fd = undefined;
    }
  }
}

function endsLine(fd: number, size: number): boolean {
  const last = Buffer.alloc(1);
  readSync(fd, last, 0, 1, size - 1);
  return last.toString() === "\n";
}

function missing(lines: number): string {
  const line = { level: "warn", time: new Date().toISOString(), pid: process.pid, lost_lines: lines };
  return `${JSON.stringify({ ...line, msg: "the lines before this one could not be written" })}\n`;
}

function rename(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch (error) {
    const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
    if (!absent) throw error;
  }
}
