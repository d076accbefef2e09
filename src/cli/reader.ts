/**
 * Whether anybody still reads stdout, for a program that has nothing to write (SPEC §12: a closed reader ends a tail).
 *
 * A write tells it, but a quiet log gives none, and an empty write says nothing on Linux: so poll(2) is asked, which
 * reports a pipe without a reader by itself. Only for pipes and sockets, and loaded late: FFI costs milliseconds. Left
 * out on purpose: Windows, where the next write tells.
 */
import { fstatSync } from "node:fs";

const LIBRARIES: Readonly<Record<string, readonly string[]>> = {
  linux: ["libc.so.6", "libc.so"],
  darwin: ["libSystem.B.dylib"],
};
const POLLERR = 0x08;
const POLLHUP = 0x10;
const STDOUT = 1;

/**
 * Ask every so often whether the reader of stdout has gone.
 * @param every_ms between two looks
 * @param gone called once, when it has
 * @returns ends the looking
 */
export function watchReader(every_ms: number, gone: () => void): () => void {
  if (!isPipe()) return () => undefined;
  let poll: (() => number) | undefined;
  const timer = setInterval(async () => {
    poll ??= await loadPoll();
    if ((poll() & (POLLERR | POLLHUP)) === 0) return;
    clearInterval(timer);
    gone();
  }, every_ms);
  return () => clearInterval(timer);
}

function isPipe(): boolean {
  try {
    const found = fstatSync(STDOUT);
    return found.isFIFO() || found.isSocket();
  } catch {
    return false;
  }
}

/** poll(2) of stdout: what has happened to it. Always 0 where there is no such library. */
async function loadPoll(): Promise<() => number> {
  const { dlopen, ptr } = await import("bun:ffi");
  for (const name of LIBRARIES[process.platform] ?? [])
    try {
      const { symbols } = dlopen(name, { poll: { args: ["ptr", "u64", "i32"], returns: "i32" } });
      // struct pollfd { int fd; short events; short revents; }
      const asked = new DataView(new ArrayBuffer(8));
      asked.setInt32(0, STDOUT, true);
      return () => (symbols.poll(ptr(asked), 1n, 0) > 0 ? asked.getInt16(6, true) : 0);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
    }
  return () => 0;
}
