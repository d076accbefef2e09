/** The rules of workspace (SPEC §8): every command in every state, every reason, and what a name or a path may be. */
import { describe, expect, test } from "bun:test";
import { workspace } from "../../src/domain/workspace.ts";
import { foldCase, matches, Name, Path } from "../../src/kernel/schema.ts";
import { about, given, uuid } from "../support/given.ts";

const W = uuid(1);
const OTHER = uuid(2);
const created = about(workspace, W)("created", { name: "Core", root_path: "/srv/core" });
const closed = about(workspace, W)("closed", {});
const opened = about(workspace, W)("opened", {});
const others = about(workspace, OTHER);

describe("create", () => {
  test("makes it open, with what was given and nothing else", () => {
    given(workspace)
      .when("create", { name: "a" })
      .thenEvents({ type: "created", payload: { name: "a" } });
    given(workspace)
      .when("create", { name: "a", root_path: "/a" })
      .thenEvents({ type: "created", payload: { name: "a", root_path: "/a" } });
  });

  test("its events are in the scope of the new workspace", () => {
    const [event] = given(workspace)
      .when("create", { name: "a" })
      .thenEvents({ type: "created", payload: { name: "a" } });
    expect(event).toMatchObject({
      workspace_id: event!.subject.id,
      stream: `workspace/${event!.subject.id}`,
      seq_stream: 1,
    });
    expect(event).not.toHaveProperty("project_id");
  });

  test("is refused when the name is taken, by an open one and by a closed one, whatever the case", () => {
    for (const name of ["Core", "CORE", "core", "cOrE"]) {
      given(workspace, created)
        .when("create", { name })
        .thenRefused("workspace.name_taken", { workspace_id: W });
      given(workspace, created, closed)
        .when("create", { name })
        .thenRefused("workspace.name_taken", { workspace_id: W });
    }
    given(workspace, created)
      .when("create", { name: "Core " })
      .thenEvents({ type: "created", payload: { name: "Core " } });
  });

  test("is refused when the path is taken, by an open one and by a closed one; case matters in a path", () => {
    given(workspace, created)
      .when("create", { name: "x", root_path: "/srv/core" })
      .thenRefused("workspace.path_taken", { workspace_id: W });
    given(workspace, created, closed)
      .when("create", { name: "x", root_path: "/srv/core" })
      .thenRefused("workspace.path_taken", { workspace_id: W });
    given(workspace, created)
      .when("create", { name: "x", root_path: "/srv/CORE" })
      .thenEvents({ type: "created", payload: { name: "x", root_path: "/srv/CORE" } });
  });

  test("tells of the name first when both are taken", () => {
    given(workspace, created, others("created", { name: "Other" }))
      .when("create", { name: "other", root_path: "/srv/core" })
      .thenRefused("workspace.name_taken", { workspace_id: OTHER });
  });

  test("any number of workspaces have no path", () => {
    given(workspace, others("created", { name: "Other" }))
      .when("create", { name: "x" })
      .thenEvents({ type: "created", payload: { name: "x" } });
  });

  test("expects that there is nothing yet", () => {
    given(workspace)
      .when("create", { name: "a" }, { expected_version: 0 })
      .thenEvents({ type: "created", payload: { name: "a" } });
    given(workspace).when("create", { name: "a" }, { expected_version: 1 }).thenMismatch(0);
  });
});

describe("open and close", () => {
  test("are not about what does not exist", () => {
    given(workspace).when("open", { workspace_id: W }).thenMissing("workspace", W);
    given(workspace).when("close", { workspace_id: W }).thenMissing("workspace", W);
    given(workspace, others("created", { name: "o" }))
      .when("close", { workspace_id: W })
      .thenMissing("workspace", W);
  });

  test("change the state, or nothing when it is so already", () => {
    given(workspace, created).when("open", { workspace_id: W }).thenEvents();
    given(workspace, created).when("close", { workspace_id: W }).thenEvents({ type: "closed", payload: {} });
    given(workspace, created, closed).when("close", { workspace_id: W }).thenEvents();
    given(workspace, created, closed)
      .when("open", { workspace_id: W })
      .thenEvents({ type: "opened", payload: {} });
    given(workspace, created, closed, opened).when("open", { workspace_id: W }).thenEvents();
    given(workspace, created, closed, opened)
      .when("close", { workspace_id: W })
      .thenEvents({ type: "closed", payload: {} });
  });

  test("are guarded by the version, also where they would change nothing", () => {
    given(workspace, created, closed)
      .when("open", { workspace_id: W }, { expected_version: 2 })
      .thenEvents({ type: "opened", payload: {} });
    given(workspace, created, closed)
      .when("open", { workspace_id: W }, { expected_version: 1 })
      .thenMismatch(2);
    given(workspace, created).when("open", { workspace_id: W }, { expected_version: 2 }).thenMismatch(1);
  });
});

describe("names (SPEC §8)", () => {
  const takenBy = (name: string, other: string) =>
    given(workspace, about(workspace, W)("created", { name }))
      .when("create", { name: other })
      .thenRefused("workspace.name_taken", { workspace_id: W });
  const freeBeside = (name: string, other: string) =>
    given(workspace, about(workspace, W)("created", { name }))
      .when("create", { name: other })
      .thenEvents({ type: "created", payload: { name: other } });

  test.each([
    ["straße", "STRASSE"],
    ["STRAẞE", "strasse"],
    ["straße", "STRAẞE"],
    ["İstanbul", "i\u0307stanbul"],
    ["ΟΔΟΣ", "οδος"],
    ["ΟΔΟΣ", "οδοσ"],
    ["ΣΑΣ", "σας"],
    ["ÅNGSTRÖM", "ångström"],
    ["ﬁle", "FILE"],
    ["ЖУК", "жук"],
    ["Ǆ", "ǆ"],
  ])("%s and %s are the same name", (name, other) => {
    takenBy(name, other);
    takenBy(other, name);
  });

  test.each([
    ["a", "á"],
    ["ss", "s"],
    ["I\u0307x", "Ix"],
    ["名", "各"],
    ["a b", "a  b"],
    ["ه", "ة"],
  ])("%s and %s are two names", (name, other) => void freeBeside(name, other));

  test("are 1 to 128 code points, not UTF-16 units and not what looks like one", () => {
    for (const one of ["x", "é", "😀", "名"]) {
      expect([one, matches(Name, one.repeat(128)), matches(Name, one.repeat(129))]).toEqual([
        one,
        true,
        false,
      ]);
    }
    // A family is one picture of 7 code points: 18 are 126 of them, 19 are 133.
    expect([matches(Name, "👨‍👩‍👧‍👦".repeat(18)), matches(Name, "👨‍👩‍👧‍👦".repeat(19))]).toEqual([
      true,
      false,
    ]);
    expect(matches(Name, "")).toBe(false);
    const name = "😀".repeat(128);
    given(workspace).when("create", { name }).thenEvents({ type: "created", payload: { name } });
  });

  test("are NFC", () => {
    for (const name of ["e\u0301", "A\u030a", "\u212b", "\u1100\u1161"])
      expect([name, matches(Name, name), matches(Name, name.normalize("NFC"))]).toEqual([name, false, true]);
  });

  test("have no control characters; everything else is a name", () => {
    for (let code = 0; code <= 0x1f; code++)
      expect(matches(Name, `a${String.fromCharCode(code)}`)).toBe(false);
    for (let code = 0x7f; code <= 0x9f; code++) expect(matches(Name, String.fromCharCode(code))).toBe(false);
    // Nor those that make a terminal show a name the other way round.
    for (const code of [0x202a, 0x202e, 0x2066, 0x2069])
      expect(matches(Name, `a${String.fromCharCode(code)}b`)).toBe(false);
    for (const name of [
      " ",
      "~",
      "\u00a0",
      "../etc/passwd",
      "'; DROP TABLE events; --",
      "%",
      "_",
      "$a",
      "constructor",
    ])
      expect([name, matches(Name, name)]).toEqual([name, true]);
  });

  test("fold to one form: folding what is folded, in capitals or not, changes nothing", () => {
    const wrong: string[] = [];
    for (let code = 0; code <= 0x10ffff; code++) {
      if (code >= 0xd800 && code <= 0xdfff) continue;
      const name = String.fromCodePoint(code).normalize("NFC");
      const folded = foldCase(name);
      const same = [folded, name.toUpperCase().normalize("NFC"), name.toLowerCase().normalize("NFC")];
      if (same.some((each) => foldCase(each) !== folded)) wrong.push(code.toString(16));
    }
    expect(wrong).toEqual([]);
  });
});

describe("paths (SPEC §8)", () => {
  const verdicts = (paths: readonly string[]) => paths.map((path) => [path, matches(Path, path)]);

  test("are absolute and canonical", () => {
    const long = `/${"x".repeat(4095)}`;
    const paths = [
      "/",
      "/a",
      "/a/b c/ü",
      "/...",
      "/.git",
      "/a/..b",
      "/a/b..",
      "C:\\",
      "C:\\a b\\c",
      "/a\\b",
      long,
    ];
    expect(verdicts(paths)).toEqual(paths.map((path) => [path, true]));
  });

  test("and nothing else", () => {
    const relative = ["", "a", "./a", "~/a", "file:///a", "C:", "C:a"];
    const notCanonical = ["//", "//a", "/a/", "/a//b", "/.", "/..", "/a/.", "/a/..", "/a/./b", "/a/../b"];
    const odd = ["/a\0b", "C:\\a\\", "C:\\a\\..\\b", "C:\\a/b", `/${"x".repeat(4096)}`];
    const paths = [...relative, ...notCanonical, ...odd];
    expect(verdicts(paths)).toEqual(paths.map((path) => [path, false]));
  });
});
