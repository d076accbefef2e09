/**
 * One folder is one worktree (SPEC §8), by whatever name it is given to the daemon: through the real socket, on a real disk.
 */
import { expect, test } from "bun:test";
import { mkdirSync, realpathSync, renameSync, symlinkSync } from "node:fs";
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
  const dangling = join(realpathSync(daemon.home), "dangling");
  symlinkSync(join(daemon.home, "not yet"), dangling);
  const message = "must be canonical: a symbolic link is on its way";
  const register = (path: string) => envelope("worktree.register", { project_id, path });
  for (const sent of [
    register(link),
    register(join(link, "below")),
    register(dangling),
    envelope("worktree.create", { project_id, path: join(link, "new"), branch: "b" }),
    { type: "worktree.check", payload: { path: link } },
  ]) {
    const problem = expectProblem((await mp.post(sent)).json, "invalid_schema");
    expect(problem.errors).toEqual([{ pointer: "/payload/path", message }]);
  }
  const batch = await mp.batch(true, [envelope("workspace.close", { workspace_id }), register(link)]);
  expect(expectProblem(batch.json, "invalid_schema")).toMatchObject({
    details: { index: 1 },
    errors: [{ pointer: "/commands/1/payload/path", message }],
  });
  expect(await mp.head()).toBe(head);
  // The names of what may be on other machines are taken as they are.
  await mp.done("project.create", { workspace_id, name: "elsewhere", repo_path: link });
});

test("a retry is answered although the place is another by now", async () => {
  const daemon = await startDaemonProcess(tempHome());
  const mp = api(daemon);
  const workspace_id = (await mp.done("workspace.create", { name: "w" })).subject.id;
  const project_id = (await mp.done("project.create", { workspace_id, name: "p" })).subject.id;
  const folder = join(realpathSync(daemon.home), "tree");
  mkdirSync(folder);
  const register = envelope("worktree.register", { project_id, path: folder });
  const first = await mp.post(register);
  renameSync(folder, `${folder}-moved`);
  symlinkSync(`${folder}-moved`, folder);
  expect((await mp.post(register)).json).toEqual({ ...first.json, replayed: true });
});

test("what is not there is followed as far as something is, in a few looks", async () => {
  const home = realpathSync(tempHome());
  symlinkSync(home, join(home, "self"));
  expect(await canonical(join(home, "self", "no", "where"))).toBe(join(home, "no", "where"));
  expect(await canonical(home)).toBe(home);
  expect(await canonical("/")).toBe("/");
  expect(await canonical("/no-such-folder-at-all")).toBe("/no-such-folder-at-all");
  const deep = join(home, "x/".repeat(1_500));
  expect(await canonical(deep)).toBe(deep.slice(0, -1));
});
