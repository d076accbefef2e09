/**
 * One folder is one worktree (SPEC §8), by whatever name it is given to the daemon: through the real socket, on a real disk.
 */
import { expect, test } from "bun:test";
import { mkdirSync, realpathSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { canonical } from "../../src/daemon/canonical.ts";
import { api, envelope, expectProblem } from "../http/api.ts";
import { tempHome } from "../support/binary.ts";
import { startDaemonProcess } from "../support/daemon.ts";

test("a link to a worktree's folder is refused as another worktree, and as a place to check", async () => {
  const daemon = await startDaemonProcess(tempHome());
  const mp = api(daemon);
  const workspace_id = (await mp.done("workspace.create", { name: "w" })).subject.id;
  const project_id = (await mp.done("project.create", { workspace_id, name: "p", repo_path: "/srv/p" }))
    .subject.id;
  const folder = join(realpathSync(daemon.home), "tree");
  const link = join(realpathSync(daemon.home), "link");
  mkdirSync(folder);
  symlinkSync(folder, link);
  await mp.done("worktree.register", { project_id, path: folder });
  const head = await mp.head();
  for (const [sent, told] of [
    [envelope("worktree.register", { project_id, path: link }), folder],
    [envelope("worktree.register", { project_id, path: join(link, "below") }), join(folder, "below")],
    [envelope("worktree.create", { project_id, path: join(link, "new"), branch: "b" }), join(folder, "new")],
    [{ type: "worktree.check", payload: { path: link } }, folder],
  ] as const) {
    const problem = expectProblem((await mp.post(sent)).json, "invalid_schema");
    expect(problem.errors).toEqual([
      { pointer: "/payload/path", message: `must be canonical: on this machine it is ${told}` },
    ]);
  }
  expect(await mp.head()).toBe(head);
  // The names of what may be on other machines are taken as they are.
  await mp.done("project.create", { workspace_id, name: "elsewhere", repo_path: link });
});

test("what is not there is followed as far as something is", () => {
  const home = realpathSync(tempHome());
  symlinkSync(home, join(home, "self"));
  expect(canonical(join(home, "self", "no", "where"))).toBe(join(home, "no", "where"));
  expect(canonical("/")).toBe("/");
});
