/**
 * Progress of long work (SPEC §12): a bar where stderr is a terminal, JSON lines on stderr otherwise.
 *
 * A line says `{"progress":{"work","done","of"}}`; none while nobody knows how much there is, one at the end with `done` =
 * `of`, and at most two a second before it. A bar appears only when the work takes long enough for anyone to wonder.
 */
import { isTerminal, note } from "./output.ts";

const LINE_MS = 500;
const BAR_AFTER_MS = 300;

export interface Progress {
  /** Say how far it is; `of` 0 while nobody knows. */
  report(done: number, of: number): Promise<void>;
  /** Take the bar away; say a last line when all of it is done. */
  end(complete: boolean): Promise<void>;
}

/** @param work what is under way, for instance `log.verify` */
export async function progress(work: string): Promise<Progress> {
  return (await isTerminal(2)) ? bar(work) : lines(work);
}

function lines(work: string): Progress {
  let said = Number.NEGATIVE_INFINITY;
  let last = { done: 0, of: 0 };
  const say = () => note(JSON.stringify({ progress: { work, ...last } }));
  return {
    async report(done, of) {
      last = { done, of };
      // Done is for the end to say: it says it once.
      if (of === 0 || done >= of) return;
      if (performance.now() - said < LINE_MS) return;
      said = performance.now();
      await say();
    },
    async end(complete) {
      if (!complete || last.of === 0) return;
      last = { done: last.of, of: last.of };
      await say();
    },
  };
}

async function bar(work: string): Promise<Progress> {
  const { SingleBar } = await import("cli-progress");
  const drawn = new SingleBar({
    format: `${work} [{bar}] {percentage}% {value} of {total}, {duration_formatted}`,
    barCompleteChar: "=",
    barIncompleteChar: " ",
    barsize: 30,
    hideCursor: true,
    clearOnComplete: true,
    fps: 10,
  });
  const from = performance.now();
  let started = false;
  return {
    async report(done, of) {
      if (of === 0 || performance.now() - from < BAR_AFTER_MS) return;
      if (!started) drawn.start(of, done);
      else {
        drawn.setTotal(of);
        drawn.update(done);
      }
      started = true;
    },
    async end() {
      if (started) drawn.stop();
    },
  };
}
