/**
 * docs/agents.md as it stands: its `sh` blocks, run from top to bottom in one shell with the real executable, in a fresh
 * repository. A command of the guide that fails fails this test, so the guide cannot go stale unseen.
 */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { aggregates } from "../../src/domain/index.ts";
import { buildRegistry } from "../../src/kernel/registry.ts";
import { system } from "../../src/kernel/system.ts";
import { binary, tempHome } from "../support/binary.ts";

const guide = readFileSync(join(import.meta.dir, "..", "..", "docs", "agents.md"), "utf8");

test("every command of the guide does what it says", async () => {
  const home = tempHome();
  const bin = join(home, "bin");
  const repository = join(home, "core");
  mkdirSync(bin);
  mkdirSync(repository);
  writeFileSync(join(bin, "mp"), `#!/bin/sh\nexec '${binary()}' "$@"\n`, { mode: 0o755 });
  const blocks = [...guide.matchAll(/^```sh\n([\s\S]*?)^```/gm)].map((found) => found[1]!);
  expect(blocks.length).toBeGreaterThan(6);
  const begin = "set -eu\ngit init -q -b main\ngit commit -q --allow-empty -m begin\n";
  const { MP_BINARY: _, ...inherited } = process.env;
  const shell = Bun.spawn(["bash", "-c", begin + blocks.join("\n")], {
    cwd: repository,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: {
      ...inherited,
      PATH: `${bin}:${process.env.PATH}`,
      MP_HOME: join(home, "mp"),
      GIT_AUTHOR_NAME: "Ada",
      GIT_AUTHOR_EMAIL: "ada@example.org",
      GIT_COMMITTER_NAME: "Ada",
      GIT_COMMITTER_EMAIL: "ada@example.org",
    },
  });
  const [stdout, stderr] = await Promise.all([
    Bun.readableStreamToText(shell.stdout),
    Bun.readableStreamToText(shell.stderr),
  ]);
  const stop = Bun.spawnSync([binary(), "daemon", "stop"], {
    env: { ...inherited, MP_HOME: join(home, "mp") },
  });
  expect({ code: await shell.exited, stderr }).toMatchObject({ code: 0 });
  expect(stdout).toContain("refused by the hook");
  expect(stdout).toContain("the old epoch is void");
  expect(stderr).toContain("worktree.writer_held");
  expect(stderr).toContain("worktree.stale_epoch");
  expect(stop.exitCode).toBe(0);
}, 60_000);

test("every reason that the guide explains is one that mp can give", () => {
  const { reasons } = buildRegistry(aggregates, system);
  const told = [...guide.matchAll(/`((?:workspace|project|session|worktree|task|board|artifact)\.[a-z_]+)`/g)]
    .map((found) => found[1]!)
    .filter((name) => !name.endsWith("_"));
  expect(told.length).toBeGreaterThan(15);
  expect(told.filter((name) => !reasons.has(name))).toEqual([]);
});
