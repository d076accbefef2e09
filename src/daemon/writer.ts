/**
 * The writer thread: the only write connection of the process (SPEC §7, rule 6; §11).
 *
 * It runs what has come from the front (queue.ts) in one transaction (kernel/execute.ts), and answers after the
 * commit is durable; whatever queued up meanwhile is the next batch. Between batches it goes on with
 * rebuilds in short steps and moves the WAL into the database. It knows no socket and no caller.
 */
import { type Database, SQLiteError } from "bun:sqlite";
import { aggregates } from "../domain/index.ts";
import { systemClock, wireTime } from "../kernel/clock.ts";
import { DatabaseRefused, isStorageError, openForWriting } from "../kernel/database.ts";
import { type Committed, Executor, OutcomeUnknown, type WriteRequest } from "../kernel/execute.ts";
import { LogReader, LogWriter, logId } from "../kernel/log.ts";
import { Projections } from "../kernel/projection.ts";
import { buildRegistry, versionsWithoutPath } from "../kernel/registry.ts";
import { system } from "../kernel/system.ts";
import { type BlobChange, Blobs } from "./blobs.ts";
import { hostOf } from "./host.ts";
import { encodeMessage, type FromWriter, type ToWriter } from "./messages.ts";
import { sessionEnded } from "./tokens.ts";

/** Commands in one transaction, so that the last of them does not wait for long. */
const MAX_BATCH = 512;
/** So much in the WAL alone is moved into the database between two batches, in bytes. */
const WAL_BYTES = 8 << 20;
/** A WAL of this size is told, for some reader keeps it from starting over; then one of twice the size, and so on. */
const WAL_ALARM_BYTES = 256 << 20;
/** The timer rings at least so often, so that a clock that is set is noticed. */
const LONGEST_MS = 60_000;
/** How long the timer waits after the disk refused what it had to write. */
const REFUSED_MS = 1_000;
/** So long nothing ran that should have: the machine slept or the process was stopped, and nobody could renew. */
const LATE_MS = 1_000;
/** So long no piece of work takes, however slow the disk: the machine slept in the middle of it. */
const ASLEEP_MS = 10_000;
/** How long renewals that were kept waiting by a slow piece of work have to be read. */
const READ_MS = 100;
/** A page with its header, as the WAL holds it. */
const FRAME_BYTES = 4_096 + 24;

const say = (message: FromWriter) => self.postMessage(encodeMessage(message));
const text = (error: unknown) => (error instanceof Error ? (error.stack ?? error.message) : String(error));

function open(database: string, start_id: string) {
  const db = openForWriting(database);
  try {
    return writerOn(db, start_id);
  } catch (error) {
    db.close();
    throw error;
  }
}

function writerOn(db: Database, start_id: string) {
  const registry = buildRegistry(aggregates, system);
  const reader = new LogReader(db);
  const without = versionsWithoutPath(registry, reader.versions());
  if (without.length > 0) throw new DatabaseRefused(without.join("; "));
  const log_id = logId(db, systemClock.id, () => wireTime(systemClock.now()));

  const wal = db.query<{ log: number; checkpointed: number }, []>("PRAGMA wal_checkpoint(NOOP)");
  let alarm = WAL_ALARM_BYTES;
  function tidy() {
    const { log: frames, checkpointed } = wal.get()!;
    if ((frames - checkpointed) * FRAME_BYTES < WAL_BYTES) return;
    untilFull("the WAL cannot be moved into the database", () => db.run("PRAGMA wal_checkpoint(PASSIVE)"));
    const size = frames * FRAME_BYTES;
    if (size < WAL_BYTES * 2) alarm = WAL_ALARM_BYTES;
    if (size < alarm) return;
    alarm = size * 2;
    say({ kind: "warning", message: `the WAL has ${size} bytes: a reader keeps it from starting over` });
  }

  const projections = new Projections(db, registry, reader);
  projections.start((name, done, of) => {
    say({ kind: "progress", name, done, of });
    tidy();
  });
  const log = new LogWriter(db, log_id);
  const bug = (trace_id: string, error: unknown) => say({ kind: "bug", trace_id, error: text(error) });
  const executor = new Executor(
    db,
    registry,
    log,
    reader,
    projections,
    systemClock,
    start_id,
    hostOf(db),
    bug,
    (acting) => sessionEnded(db, acting),
  );

  const blobs = new Blobs(db);
  /** Tell what was committed, once the bytes of the artifacts that it expired are forgotten. */
  function tell(committed: Committed) {
    let digests: readonly string[] = [];
    untilFull("bytes of expired artifacts stay until the next sweep", () => {
      digests = blobs.expired(committed.events);
    });
    if (digests.length > 0) say({ kind: "released", digests });
    say({ kind: "committed", ...committed });
  }
  /** Whether the artifacts' read model can be asked what nobody wants. */
  const readable = () =>
    projections.status().some(({ name, error }) => name === "artifact" && error === null);

  const waiting: WriteRequest[] = [];
  /** Write a batch of what waits. */
  function write() {
    let commands = 0;
    let count = 0;
    while (count < waiting.length && commands < MAX_BATCH) commands += waiting[count++]!.commands.length;
    if (count === 0) return;
    asked(() => {
      const committed = executor.run(waiting.splice(0, count));
      if (waiting.length > 0) setImmediate(guarded, write);
      // Before the answer, so that whoever has it finds the rebuild under way.
      for (const effect of committed.effects) if (effect.kind === "rebuild") rebuild(effect.projections);
      tell(committed);
    });
  }

  let rebuilding = false;
  /** Whatever the front has sent meanwhile, then one short step. */
  function goOn() {
    write();
    const went = untilFull("the rebuild was given up", () => {
      rebuilding = projections.step() !== undefined;
    });
    if (!went) {
      projections.giveUp();
      rebuilding = false;
    }
    say({ kind: "projections", projections: projections.status() });
    tidy();
    if (rebuilding) setImmediate(guarded, goOn);
  }

  function rebuild(names: readonly string[]) {
    untilFull("the rebuild was given up", () => {
      for (const name of names) projections.rebuild(name);
    });
    say({ kind: "projections", projections: projections.status() });
    if (!rebuilding) setImmediate(guarded, goOn);
    rebuilding = true;
  }

  let timer: ReturnType<typeof setTimeout> | undefined;
  /** When the timer is to ring. */
  let rings = 0;
  /** When this thread was last at work. */
  let active = systemClock.now();
  /** Holders could not renew, and the disk refused to give each one whole ttl for it: none ends before that (SPEC §8). */
  let owed = executor.grace() !== undefined;
  /** Leases that have run out were left for the next batch to renew. */
  let put_off = false;
  /** Set the one timer to when the next lease ends, but not sooner than in so many milliseconds. */
  function arm(soonest = 0) {
    const end = executor.nextEnd();
    const now = systemClock.now();
    const at = end === undefined ? Number.POSITIVE_INFINITY : Math.max(end, now + soonest);
    // One that rings too soon is set again then: cheaper than a new one for every batch.
    if (timer !== undefined && rings <= at) return;
    clearTimeout(timer);
    rings = Math.min(at, now + LONGEST_MS);
    timer = end === undefined ? undefined : setTimeout(guarded, rings - now, rang);
  }
  function rang() {
    noticeGap();
    clearTimeout(timer);
    timer = undefined;
    put_off = false;
    if (owed) owed = executor.grace() !== undefined;
    const committed = owed ? undefined : executor.expire();
    // Nobody has asked for it.
    if (committed) tell({ ...committed, outcomes: [] });
    // A disk that refuses this refuses renewals as well, and is not asked again at once.
    if (committed?.refused !== undefined) owed = true;
    arm(owed ? REFUSED_MS : 0);
    active = systemClock.now();
    tidy();
  }
  /** The timer should have rung long ago and nothing was done since, or the clock was set back: everybody gets a whole ttl. */
  function noticeGap() {
    const now = systemClock.now();
    const slept = timer !== undefined && now - Math.max(rings, active) > LATE_MS;
    if (slept || active - now > LATE_MS) owed = executor.grace() !== undefined;
    active = now;
  }
  /** Do what the front asks, then see to the leases: its messages may come so fast that the timer never rings. */
  function asked(work: () => void) {
    noticeGap();
    const began = active;
    work();
    active = systemClock.now();
    if (active - began > ASLEEP_MS) owed = executor.grace() !== undefined;
    arm();
    if (timer !== undefined && rings <= active) {
      // Renewals that came meanwhile are in the next batch. Only once: a disk that stays so slow ends leases too.
      if (active - began > LATE_MS && !put_off) {
        put_off = true;
        clearTimeout(timer);
        rings = active + READ_MS;
        timer = setTimeout(guarded, READ_MS, rang);
      } else rang();
    }
    tidy();
  }
  arm(owed ? REFUSED_MS : 0);

  return {
    log_id,
    projections,
    /** Requests for the next batch: it is written once all that is here has been read. */
    take(requests: readonly WriteRequest[]) {
      if (waiting.length === 0) setImmediate(guarded, write);
      for (const request of requests) waiting.push(request);
    },
    blobs(changes: readonly BlobChange[]) {
      asked(() => say({ kind: "blobs", done: blobs.change(changes, systemClock.now(), readable()) }));
    },
    close() {
      while (waiting.length > 0) write();
      clearTimeout(timer);
      // A reader that is about to end is not worth waiting for.
      db.run("PRAGMA busy_timeout = 100");
      // What does not fit into the database now stays in the WAL, as safe as it was.
      untilFull("the WAL stays", () => db.run("PRAGMA wal_checkpoint(TRUNCATE)"));
      db.close();
    },
  };
}

/** Do what can wait until there is room on the disk again, or until others let go. Returns whether it was done. */
function untilFull(message: string, work: () => void): boolean {
  try {
    work();
    return true;
  } catch (error) {
    if (!isStorageError(error) || !/^SQLITE_(FULL|BUSY)/.test(error.code ?? "")) throw error;
    say({ kind: "warning", message: `${message}: ${error.code}` });
    return false;
  }
}

/** An outcome is unknown, or there is a bug: nothing may be written in this process any more (SPEC §11). */
let lost = false;

function guarded(work: () => void) {
  if (lost) return;
  try {
    work();
  } catch (error) {
    lost = true;
    say({ kind: "lost", error: text(error instanceof OutcomeUnknown ? error.cause : error) });
  }
}

/** Why a database cannot be served, for the person who starts the daemon. */
function refusal(error: unknown): string {
  if (error instanceof DatabaseRefused) return error.message;
  return error instanceof SQLiteError ? `${error.code}: ${error.message}` : text(error);
}

let opened: ReturnType<typeof open> | undefined;
self.onmessage = (message: MessageEvent<string>) => {
  const data = JSON.parse(message.data) as ToWriter;
  switch (data.kind) {
    case "open":
      try {
        opened = open(data.database, data.start_id);
        say({ kind: "ready", log_id: opened.log_id, projections: opened.projections.status() });
      } catch (error) {
        say({ kind: "refused", message: refusal(error) });
      }
      break;
    case "write":
      opened!.take(data.requests);
      break;
    case "blobs":
      guarded(() => opened!.blobs(data.changes));
      break;
    case "close":
      guarded(() => opened?.close());
      say({ kind: "closed" });
  }
};
