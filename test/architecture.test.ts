/**
 * The shape of the source, as a test: who may know whom, and what is nowhere. Imports are read with Bun's own scanner, those
 * of types as well as those of values, because a type is knowledge too. ARCHITECTURE.md says why it is so.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { aggregates } from "../src/domain/index.ts";

const root = join(import.meta.dir, "..");
const files = [...new Bun.Glob("src/**/*.ts").scanSync(root)]
  .map((file) => normalize(file).replaceAll("\\", "/"))
  .sort();
const text = new Map(files.map((file) => [file, readFileSync(join(root, file), "utf8")]));
/** Every module that has code: declarations for the compiler are none. */
const modules = files.filter((file) => !file.endsWith(".d.ts"));

// The scanner leaves out what only the compiler sees, so its marks are taken off first.
const scanner = new Bun.Transpiler({
  loader: "ts",
  trimUnusedImports: false,
  tsconfig: JSON.stringify({ compilerOptions: { verbatimModuleSyntax: true } }),
});
const withTypes = (source: string) =>
  source
    .replace(/^import type (?=[{*\w])/gm, "import ")
    .replace(/^export type (?=[{*])/gm, "export ")
    .replace(/\bimport\((".*?")\)\.[A-Z]/g, "import($1)");

/** What a module imports: files as `src/…`, packages by name. */
function importsOf(file: string, source: string, lazy = true): string[] {
  return scanner
    .scanImports(source)
    .filter(({ kind }) => lazy || kind !== "dynamic-import")
    .map(({ path }) => (path.startsWith(".") ? join(dirname(file), path).replaceAll("\\", "/") : path));
}
const values = new Map(modules.map((file) => [file, importsOf(file, text.get(file)!)]));
const all = new Map(modules.map((file) => [file, importsOf(file, withTypes(text.get(file)!))]));

/** Without what is loaded only when it is needed. */
const first = new Map(modules.map((file) => [file, importsOf(file, withTypes(text.get(file)!), false)]));

/** The modules under a folder that import something they may not. */
function trespassers(
  folder: string,
  mayImport: (path: string, file: string) => boolean,
  graph = all,
): string[] {
  return modules
    .filter((file) => file.startsWith(folder))
    .flatMap((file) =>
      graph
        .get(file)!
        .filter((path) => !mayImport(path, file))
        .map((path) => `${file} → ${path}`),
    );
}
const under =
  (...folders: string[]) =>
  (path: string) =>
    !path.startsWith("src/") || folders.some((folder) => path.startsWith(`src/${folder}`));

test("the scanner sees what it must", () => {
  expect(modules.length).toBeGreaterThan(30);
  expect(all.get("src/domain/project.ts")).toContain("src/kernel/aggregate.ts");
  // A module of types only.
  expect([
    values.get("src/client/types.ts"),
    all.get("src/client/types.ts")!.includes("src/domain/index.ts"),
  ]).toEqual([[], true]);
  const missing = modules.flatMap((file) =>
    all.get(file)!.filter((path) => path.startsWith("src/") && !text.has(path)),
  );
  expect(missing).toEqual([]);
  const unseen = modules.flatMap((file) =>
    [...text.get(file)!.matchAll(/(?:from|import\()\s*"(\.[^"]+\.ts)"/g)]
      .map((match) => join(dirname(file), match[1]!).replaceAll("\\", "/"))
      .filter((path) => !all.get(file)!.includes(path))
      .map((path) => `${file} → ${path}`),
  );
  expect(unseen).toEqual([]);
});

describe("who may know whom", () => {
  test("kernel: only itself; it knows no aggregate, no HTTP, no CLI, no daemon", () => {
    expect(trespassers("src/kernel/", under("kernel/"))).toEqual([]);
  });

  test("domain: only what an aggregate is, schemas and TypeBox; no aggregate another, only parts of its own", () => {
    const allowed = new Set([
      "src/kernel/aggregate.ts",
      "src/kernel/schema.ts",
      "src/domain/lease.ts",
      "src/domain/scope.ts",
      "typebox",
      "fractional-indexing",
    ]);
    expect(
      trespassers(
        "src/domain/",
        (path, file) =>
          allowed.has(path) ||
          (file === "src/domain/index.ts" && /^src\/domain\/\w+\.ts$/.test(path)) ||
          path.startsWith(`${/^\w+\/\w+\/\w+/.exec(file)![0]}-`),
      ),
    ).toEqual([]);
  });

  test("integrity: only the kernel", () => {
    expect(trespassers("src/integrity/", under("kernel/", "integrity/"))).toEqual([]);
  });

  test("http: the kernel, and the client's types; no daemon, no aggregate", () => {
    expect(trespassers("src/http/", under("kernel/", "http/", "version.ts", "client/types.ts"))).toEqual([]);
    expect(trespassers("src/http/", under("kernel/", "http/", "version.ts"), values)).toEqual([]);
  });

  test("client: problems, how times are said, and where a daemon is; of the server only types", () => {
    expect(
      trespassers(
        "src/client/",
        under("client/", "kernel/problems.ts", "kernel/span.ts", "daemon/info.ts", "daemon/lock.ts"),
        values,
      ),
    ).toEqual([]);
    expect(
      trespassers("src/client/", under("client/", "kernel/", "domain/index.ts", "http/app.ts", "daemon/")),
    ).toEqual([]);
  });

  test("daemon: everything that is served, but no CLI", () => {
    expect(
      trespassers(
        "src/daemon/",
        under(
          "daemon/",
          "domain/index.ts",
          "integrity/",
          "kernel/",
          "http/",
          "client/discover.ts",
          "version.ts",
        ),
      ),
    ).toEqual([]);
    const served = modules.filter(
      (file) => file.startsWith("src/daemon/") && all.get(file)!.some((path) => path.startsWith("src/http/")),
    );
    expect(served).toEqual(["src/daemon/front.ts"]);
  });

  test("cli: nothing below it knows it, and it does not reach into the server", () => {
    expect(
      trespassers(
        "src/cli/",
        under("cli/", "client/", "daemon/", "domain/index.ts", "kernel/", "version.ts"),
      ),
    ).toEqual([]);
    const callers = modules.filter(
      (file) => !file.startsWith("src/cli/") && all.get(file)!.some((path) => path.startsWith("src/cli/")),
    );
    expect(callers).toEqual(["src/main.ts"]);
  });

  test("cli: loads no aggregate; what it says of them is put in when the program is built", () => {
    const loading = modules.filter(
      (file) => file.startsWith("src/cli/") && values.get(file)!.includes("src/domain/index.ts"),
    );
    expect(loading).toEqual(["src/cli/surface-text.ts"]);
    const uses = modules.flatMap((file) => text.get(file)!.match(/.*"\.\/surface-text\.ts".*/g) ?? []);
    expect(uses.length).toBeGreaterThan(0);
    expect(uses.filter((line) => !line.endsWith('"./surface-text.ts" with { type: "macro" };'))).toEqual([]);
  });

  test("nobody goes in a circle; only what is loaded lazily may know who loads it", () => {
    const circles: string[] = [];
    const done = new Set<string>();
    const visit = (file: string, way: readonly string[]) => {
      if (way.includes(file)) circles.push([...way.slice(way.indexOf(file)), file].join(" → "));
      if (done.has(file) || way.includes(file)) return;
      for (const next of first.get(file) ?? []) visit(next, [...way, file]);
      done.add(file);
    };
    for (const file of modules) visit(file, []);
    expect(circles).toEqual([]);
  });

  test("the web framework stays in http, the database in the kernel and its threads", () => {
    const users = (name: string) =>
      modules.filter((file) =>
        values.get(file)!.some((path) => path === name || path.startsWith(`${name}/`)),
      );
    expect(users("elysia").filter((file) => !file.startsWith("src/http/"))).toEqual([]);
    expect(users("bun:sqlite").filter((file) => !/^src\/(kernel|daemon)\//.test(file))).toEqual([]);
  });
});

describe("what is nowhere else", () => {
  const offending = (pattern: RegExp, except: readonly string[] = [], within = "src/") =>
    modules
      .filter((file) => file.startsWith(within) && !except.includes(file))
      .flatMap((file) =>
        text
          .get(file)!
          .split("\n")
          .filter((line) => pattern.test(line))
          .map((line) => `${file}: ${line.trim()}`),
      );

  test("the events table: only log.ts names it", () => {
    const sql = /\b(from|into|update|join|table|exists)\s+"?events\b(?!["']?\s*[;{])/i;
    expect(sql.test('"SELECT body FROM events WHERE seq_global > ?"')).toBe(true);
    expect(offending(sql, ["src/kernel/log.ts"])).toEqual([]);
  });

  test("time and chance: only clock.ts reads them, as far as what is stored goes", () => {
    const chance = /\b(Date\.now|Math\.random|performance\.now|new Date\(\)|Temporal\.Now)\b/;
    expect(offending(chance, ["src/kernel/clock.ts"], "src/kernel/")).toEqual([]);
    expect(
      offending(
        /\b(Date|Math\.random|performance|crypto|process|Bun|fetch|setTimeout|async|await)\b/,
        [],
        "src/domain/",
      ),
    ).toEqual([]);
  });

  test("throw: a domain has none, refusals are values", () => {
    expect(offending(/\bthrow\b/, [], "src/domain/")).toEqual([]);
  });
});

describe("what is not there at all", () => {
  const lines = modules.flatMap((file) =>
    text
      .get(file)!
      .split("\n")
      .map((line) => [file, line] as const),
  );
  const found = (pattern: RegExp) =>
    lines.filter(([, line]) => pattern.test(line)).map(([file, line]) => `${file}: ${line.trim()}`);

  test("barrels, default exports, escapes from the compiler, empty catches, unfinished work", () => {
    expect(found(/^export \*/)).toEqual([]);
    const own = /^export (async function|function|const|class|interface|type \w)/m;
    const only = modules.filter(
      (file) => /^export .*\bfrom "/m.test(text.get(file)!) && !own.test(text.get(file)!),
    );
    expect(only).toEqual([]);
    expect(found(/^export default\b/)).toEqual([]);
    expect(found(/\bas any\b|: any(\[\]|[;,)>]| =)|<any>|@ts-(ignore|expect-error|nocheck)/)).toEqual([]);
    expect(found(/\b(TODO|FIXME|XXX|HACK)\b/)).toEqual([]);
    expect(modules.filter((file) => /catch\s*(\([^)]*\))?\s*\{\s*\}/.test(text.get(file)!))).toEqual([]);
  });

  test("names that say nothing", () => {
    expect(
      found(/\b(class|function|interface|type|const|let)\s+\w*(Manager|Service|Helper|Util|Utils|Handler)\b/),
    ).toEqual([]);
    expect(
      modules.filter((file) => /(manager|service|helper|util|handler|common|misc)s?\.ts$/i.test(file)),
    ).toEqual([]);
  });

  test("modules that do not say what they are for", () => {
    expect(files.filter((file) => !/^\/\*\*[\s\S]{20,}?\*\//.test(text.get(file)!))).toEqual([]);
  });

  test("an aggregate that is not in the one list", () => {
    const kinds = modules
      .filter((file) => /^src\/domain\/(?!(index|lease|scope)\.ts)\w+\.ts$/.test(file))
      .map((file) => file.replace(/^.*\/|\.ts$/g, ""));
    expect(aggregates.map((aggregate) => aggregate.kind as string).sort()).toEqual(kinds);
  });
});
