/** That nothing of a temporary home outlives its test, also when that goes wrong. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { processesOf } from "./binary.ts";

describe("of a test that", () => {
  for (const how of ["throws", "times out"])
    test(`${how} neither the home is left, nor its daemon, nor whoever would begin it again`, async () => {
      const child = Bun.spawn([process.execPath, "test", join(import.meta.dir, "left.ts")], {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
        env: { ...process.env, LEFT: how },
      });
      const [code, said, told] = await Promise.all([
        child.exited,
        Bun.readableStreamToText(child.stdout),
        Bun.readableStreamToText(child.stderr),
      ]);
      const home = /home=(\S+)/.exec(said)?.[1] ?? "";
      expect([code, home, told]).toEqual([
        1,
        expect.stringContaining("/mp-"),
        expect.stringContaining("1 fail"),
      ]);
      const left = processesOf(home);
      for (const pid of left) process.kill(pid, "SIGKILL");
      expect([left, existsSync(home)]).toEqual([[], false]);
    });
});
