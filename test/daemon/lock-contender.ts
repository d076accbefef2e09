/**
 * A process for lock.test.ts that does with the lock argv[2] what its stdin says, one word a line, and answers
 * each with one line: `take` won | lost, `drop` dropped, `probe` locked | free. `dawdle` is a probe that takes its
 * time: it answers reading, and goes on until it sees that another process is in the middle of taking the lock.
 */
import { Database } from "bun:sqlite";
import { acquireLock, isLocked, type Lock } from "../../src/daemon/lock.ts";

const path = process.argv[2] ?? "";
let lock: Lock | undefined;

const words: Readonly<Record<string, () => string>> = {
  take() {
    lock = acquireLock(path);
    return lock ? "won" : "lost";
  },
  drop() {
    lock?.release();
    return "dropped";
  },
  dawdle() {
    const reader = new Database(path, { readonly: true });
    reader.run("BEGIN");
    reader.query("PRAGMA schema_version").get();
    setImmediate(function look() {
      if (reserved()) reader.close();
      else setImmediate(look);
    });
    return "reading";
  },
  probe: () => (isLocked(path) ? "locked" : "free"),
};

for await (const word of console) console.log(words[word]?.() ?? "what?");

function reserved(): boolean {
  const db = new Database(path, { readwrite: true });
  try {
    db.run("BEGIN IMMEDIATE");
    return false;
  } catch {
    return true;
  } finally {
    db.close();
  }
}
