/** The rules of project (SPEC §8): every command in every state of it and of its workspace, and every reason. */
import { describe, expect, test } from "bun:test";
import { project } from "../../src/domain/project.ts";
import { workspace } from "../../src/domain/workspace.ts";
import { about, given, uuid } from "../support/given.ts";

const W = uuid(1);
const W2 = uuid(2);
const P = uuid(3);
const NOWHERE = uuid(9);
const [inW, inW2] = [about(workspace, W), about(workspace, W2)];
const open = inW("created", { name: "w" });
const closed = inW("closed", {});
const reopened = inW("opened", {});
const its = about(project, P, { workspace_id: W });
const created = its("created", { name: "Core", repo_path: "/srv/core", git_common_dir: "/srv/core/.git" });
const archived = its("archived", {});

describe("create", () => {
  test("makes it active, with what was given and nothing else, in the scope of its workspace", () => {
    const [event] = given(project, open)
      .when("create", { workspace_id: W, name: "a" })
      .thenEvents({ type: "created", payload: { name: "a" } });
    expect(event).toMatchObject({ workspace_id: W, project_id: event!.subject.id, seq_stream: 1 });
    const payload = { name: "a", repo_path: "/a", git_common_dir: "/a/.git" };
    given(project, open)
      .when("create", { workspace_id: W, ...payload })
      .thenEvents({ type: "created", payload });
  });

  test("needs a workspace that exists and is open", () => {
    given(project, open)
      .when("create", { workspace_id: NOWHERE, name: "a" })
      .thenMissing("workspace", NOWHERE);
    given(project).when("create", { workspace_id: W, name: "a" }).thenMissing("workspace", W);
    given(project, open, closed)
      .when("create", { workspace_id: W, name: "a" })
      .thenRefused("workspace.closed", { workspace_id: W });
    given(project, open, closed, reopened)
      .when("create", { workspace_id: W, name: "a" })
      .thenEvents({ type: "created", payload: { name: "a" } });
    given(project, open, closed, inW2("created", { name: "w2" }))
      .when("create", { workspace_id: W2, name: "a" })
      .thenEvents({ type: "created", payload: { name: "a" } });
  });

  test("is refused when the name is taken in that workspace, by an archived one too, whatever the case", () => {
    for (const name of ["Core", "CORE", "core"])
      for (const past of [
        [open, created],
        [open, created, archived],
      ])
        given(project, ...past)
          .when("create", { workspace_id: W, name })
          .thenRefused("project.name_taken", { project_id: P });
  });

  test("the same name is free in another workspace, and the same repository may be two projects", () => {
    const payload = { name: "Core", repo_path: "/srv/core", git_common_dir: "/srv/core/.git" };
    given(project, open, created, inW2("created", { name: "w2" }))
      .when("create", { workspace_id: W2, ...payload })
      .thenEvents({ type: "created", payload });
    given(project, open, created)
      .when("create", { workspace_id: W, ...payload, name: "Core 2" })
      .thenEvents({ type: "created", payload: { ...payload, name: "Core 2" } });
  });

  test("tells that the workspace is closed before it tells that the name is taken", () => {
    given(project, open, created, closed)
      .when("create", { workspace_id: W, name: "Core" })
      .thenRefused("workspace.closed", { workspace_id: W });
  });
});

describe("archive", () => {
  test("is not about what does not exist", () => {
    given(project, open).when("archive", { project_id: P }).thenMissing("project", P);
    given(project, open).when("archive", { project_id: W }).thenMissing("project", W);
  });

  test("archives an active one, and changes nothing about an archived one, in the scope of its workspace", () => {
    const [event] = given(project, open, created)
      .when("archive", { project_id: P })
      .thenEvents({ type: "archived", payload: {} });
    expect(event).toMatchObject({ workspace_id: W, project_id: P, seq_stream: 2 });
    given(project, open, created, archived).when("archive", { project_id: P }).thenEvents();
  });

  test("is refused in a closed workspace, unless there is nothing to change", () => {
    given(project, open, created, closed)
      .when("archive", { project_id: P })
      .thenRefused("workspace.closed", { workspace_id: W });
    given(project, open, created, archived, closed).when("archive", { project_id: P }).thenEvents();
    given(project, open, created, closed, reopened)
      .when("archive", { project_id: P })
      .thenEvents({ type: "archived", payload: {} });
  });

  test("looks at its own workspace, not at another", () => {
    given(project, inW2("created", { name: "w2" }), inW2("closed", {}), open, created)
      .when("archive", { project_id: P })
      .thenEvents({ type: "archived", payload: {} });
  });

  test("is guarded by the version", () => {
    given(project, open, created).when("archive", { project_id: P }, { expected_version: 2 }).thenMismatch(1);
    given(project, open, created)
      .when("archive", { project_id: P }, { expected_version: 1 })
      .thenEvents({ type: "archived", payload: {} });
  });
});
