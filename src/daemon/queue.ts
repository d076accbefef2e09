/**
 * The front's side of the writer: a queue in front of one thread (SPEC §10 limits, §14).
 *
 * Requests go to the writer as they come, and what has come while it makes a batch durable is its next batch, so one client gets
 * the shortest latency and a hundred share each fsync. Answers come after the commit, and after `onCommit` has seen its events.
 */
import type { Outcome, WriteRequest } from "../kernel/execute.ts";
import type { Stored } from "../kernel/log.ts";
import { type Problem, problem } from "../kernel/problems.ts";
import type { ProjectionStatus } from "../kernel/projection.ts";
import type { BlobChange } from "./blobs.ts";
import { decodeMessage, type FromWriter, type ToWriter } from "./messages.ts";

/** Commands that may wait (SPEC §10); beyond it the answer is `overloaded`. */
const MAX_QUEUED = 10_000;
/** Requests that the writer has at most, so that what waits is in memory once: more than it needs for two batches. */
const MAX_UNDER_WAY = 1_024;
/** Changes of the table of blobs in one transaction. */
const MAX_BLOBS = 512;

const UNKNOWN = problem(
  "outcome_unknown",
  "the commit failed, and the daemon ends to find out what is stored",
);
const ENDING = problem("overloaded", "the daemon is ending: the next one takes over");

interface Waiting {
  readonly request: WriteRequest;
  readonly resolve: (outcomes: readonly Outcome[] | Problem) => void;
}

/** A change of the table of blobs. */
interface WaitingBlob {
  readonly change: BlobChange;
  readonly resolve: (done: boolean | Problem) => void;
}

export interface QueueEvents {
  progress(name: string, done: number, of: number): void;
  /** A commit is durable: called before its commands are answered. */
  committed(events: readonly Stored[], projections: readonly string[]): void;
  /** Bytes are in the artifact store no more: their rows are gone. */
  released(digests: readonly string[]): void;
  shutdown(): void;
  /** The disk or the file began to refuse writes (SQLite's code), or takes them again (undefined). */
  readOnly(code: string | undefined): void;
  warning(message: string): void;
  bug(trace_id: string, error: string): void;
  /** The writer cannot go on; its commands were answered `outcome_unknown`. The process must end. */
  lost(error: string): void;
}

export class WriteQueue {
  readonly #worker: Worker;
  /** Not yet given to the writer. */
  readonly #waiting: Waiting[] = [];
  /** Given to the writer, which answers them in order. */
  readonly #underWay: Waiting[] = [];
  /** Commands in both. */
  #queued = 0;
  /** Changes of the table of blobs that wait, and those under way: one transaction at a time. */
  #blobs: WaitingBlob[] = [];
  #blobsUnderWay: readonly WaitingBlob[] = [];
  #closed: (() => void) | undefined;
  #flushed: (() => void) | undefined;
  #lost = false;
  #readOnly: string | undefined;
  projections: readonly ProjectionStatus[] = [];

  private constructor(
    worker: Worker,
    readonly events: QueueEvents,
  ) {
    this.#worker = worker;
  }

  /**
   * Start the writer on a database.
   * @returns the queue and the log's id, or a sentence that says why the database cannot be served
   */
  static async open(
    database: string,
    start_id: string,
    events: QueueEvents,
  ): Promise<{ queue: WriteQueue; log_id: string } | { refused: string }> {
    const worker = new Worker(new URL("./writer.ts", import.meta.url));
    const queue = new WriteQueue(worker, events);
    const { promise, resolve } = Promise.withResolvers<{ log_id: string } | { refused: string }>();
    worker.onerror = (event) => {
      resolve({ refused: event.message });
      queue.#lose(event.message);
    };
    worker.onmessage = (message: MessageEvent<string>) => {
      const data = decodeMessage(message.data);
      if (data.kind === "ready") {
        queue.projections = data.projections;
        resolve({ log_id: data.log_id });
      } else if (data.kind === "refused") resolve({ refused: data.message });
      else queue.#hear(data);
    };
    queue.#say({ kind: "open", database, start_id });
    const result = await promise;
    if ("refused" in result) worker.terminate();
    return "refused" in result ? result : { queue, log_id: result.log_id };
  }

  /** SQLite's code while writes are refused because of the disk or the file. */
  get readOnly(): string | undefined {
    return this.#readOnly;
  }

  /** True once the writer cannot go on. */
  get lost(): boolean {
    return this.#lost;
  }

  /** Commands that wait or are under way. */
  get size(): number {
    return this.#queued;
  }

  /**
   * Hand a request to the writer.
   * @returns its outcomes once they are durable; `overloaded` at once when too many wait
   */
  submit(request: WriteRequest): Promise<readonly Outcome[] | Problem> {
    if (this.#lost) return Promise.resolve(ENDING);
    if (this.#queued + request.commands.length > MAX_QUEUED)
      return Promise.resolve(problem("overloaded", `${this.#queued} commands are waiting already`));
    this.#queued += request.commands.length;
    const { promise, resolve } = Promise.withResolvers<readonly Outcome[] | Problem>();
    this.#waiting.push({ request, resolve });
    // Once the sockets that are ready now have been read, so that they share a message.
    if (this.#waiting.length === 1) setImmediate(() => this.#send());
    return promise;
  }

  /**
   * Have the writer change the table of blobs.
   * @returns once it is durable: whether there is a row more or less; `read_only`, `outcome_unknown` or `overloaded` otherwise
   */
  blob(change: BlobChange): Promise<boolean | Problem> {
    if (this.#lost) return Promise.resolve(ENDING);
    const { promise, resolve } = Promise.withResolvers<boolean | Problem>();
    this.#blobs.push({ change, resolve });
    if (this.#blobsUnderWay.length === 0) this.#sendBlobs();
    return promise;
  }

  /** Wait until everything accepted is answered. */
  async flush(): Promise<void> {
    if (this.#queued === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#flushed = resolve;
    await promise;
  }

  /** Wait until everything accepted is answered, then close the database. Not after `lost`. */
  async close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#closed = resolve;
    // The worker takes messages in order: by then all that came before is committed.
    this.#send(this.#waiting.length);
    this.#say({ kind: "close" });
    await promise;
    this.#worker.terminate();
  }

  #say(message: ToWriter): void {
    this.#worker.postMessage(JSON.stringify(message));
  }

  #send(most = MAX_UNDER_WAY - this.#underWay.length): void {
    const given = this.#waiting.splice(0, most);
    if (given.length === 0) return;
    this.#say({ kind: "write", requests: given.map((each) => each.request) });
    this.#underWay.push(...given);
  }

  /** What queues up while a change is made durable shares the next fsync, as commands do. */
  #sendBlobs(): void {
    this.#blobsUnderWay = this.#blobs.splice(0, MAX_BLOBS);
    if (this.#blobsUnderWay.length > 0)
      this.#say({ kind: "blobs", changes: this.#blobsUnderWay.map(({ change }) => change) });
  }

  #hear(message: FromWriter): void {
    // They were answered already.
    if (this.#lost && message.kind !== "closed") return;
    switch (message.kind) {
      case "committed": {
        if (message.events.length > 0)
          this.events.committed(message.events, [
            ...new Set(message.events.map((event) => event.subject_kind)),
          ]);
        if (message.outcomes.length === 0) break;
        this.#noteStorage(message);
        const answered = this.#underWay.splice(0, message.outcomes.length);
        for (const [index, each] of answered.entries()) {
          this.#queued -= each.request.commands.length;
          each.resolve(message.outcomes[index]!);
        }
        for (const effect of message.effects) if (effect.kind === "shutdown") this.events.shutdown();
        if (this.#queued === 0) this.#flushed?.();
        if (this.#waiting.length > 0) setImmediate(() => this.#send());
        break;
      }
      case "blobs": {
        const { done } = message;
        for (const [index, { resolve }] of this.#blobsUnderWay.entries())
          resolve(
            "changed" in done
              ? done.changed[index]!
              : problem("read_only", `the database cannot be written (${done.refused}): nothing was changed`),
          );
        this.#sendBlobs();
        break;
      }
      case "released":
        this.events.released(message.digests);
        break;
      case "projections":
        this.projections = message.projections;
        break;
      case "progress":
        this.events.progress(message.name, message.done, message.of);
        break;
      case "warning":
        this.events.warning(message.message);
        break;
      case "bug":
        this.events.bug(message.trace_id, message.error);
        break;
      case "lost":
        this.#lose(message.error);
        break;
      case "closed":
        this.#closed?.();
    }
  }

  /** Writes are refused until one succeeds: a batch that had nothing to write tells nothing. */
  #noteStorage({ refused, outcomes }: Extract<FromWriter, { kind: "committed" }>): void {
    const wrote = () => outcomes.flat().some((outcome) => "receipt" in outcome && !outcome.replayed);
    if (refused === this.#readOnly || (refused === undefined && !wrote())) return;
    this.#readOnly = refused;
    this.events.readOnly(refused);
  }

  /** Everything under way may or may not be on disk: say so, and let the process end. */
  #lose(error: string): void {
    if (this.#lost) return;
    this.#lost = true;
    for (const each of this.#underWay) each.resolve(UNKNOWN);
    for (const { resolve } of this.#blobsUnderWay) resolve(UNKNOWN);
    for (const { resolve } of this.#blobs) resolve(ENDING);
    this.#blobsUnderWay = [];
    this.#blobs = [];
    // The writer never saw these.
    for (const each of this.#waiting) each.resolve(ENDING);
    this.#underWay.length = 0;
    this.#waiting.length = 0;
    this.#queued = 0;
    this.#flushed?.();
    this.#closed?.();
    this.events.lost(error);
  }
}
