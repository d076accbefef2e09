/** projection, log, schema, errors, explain, version, help: what they say, in a pipe and as JSON. */
import { Database } from "bun:sqlite";
import { beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { argsOf } from "../../src/cli/command.ts";
import { allNouns, nounNamed } from "../../src/cli/nouns.ts";
import { aggregates } from "../../src/domain/index.ts";
import { catalogue } from "../../src/kernel/problems.ts";
import { VERSION } from "../../src/version.ts";
import { tempHome } from "../support/binary.ts";
import { atTerminal, cli, fill, lines } from "./cli.ts";

const home = tempHome();
const { mp, out, json, refused } = cli(home);

beforeAll(async () => {
  await out("daemon", "start");
  await fill(home, 50);
});

/** Runs `mp`, which shows progress on stderr; its stdout and those lines. */
async function work(code: number, ...args: string[]) {
  const finished = await mp(...args);
  expect([finished.code, finished.stderr]).toEqual([code, expect.any(String)]);
  const progress = lines(finished.stderr).map(
    (line) => (JSON.parse(line) as { progress: Progress }).progress,
  );
  return { stdout: finished.stdout, progress };
}
interface Progress {
  readonly work: string;
  readonly done: number;
  readonly of: number;
}

/** One projection per aggregate. */
const KINDS = aggregates.map((aggregate) => aggregate.kind as string);

describe("projection", () => {
  test("list", async () => {
    expect(lines(await out("projection", "list")).map((line) => line.split("\t").slice(0, 3))).toEqual([
      ...KINDS.map((kind) => [kind, "serving", "50"]),
    ]);
    expect(await json("projection", "list")).toMatchObject({ as_of_seq: 50, next: null });
  });

  test("rebuild waits until it is done, with progress as JSON lines", async () => {
    const { stdout, progress } = await work(0, "projection", "rebuild");
    expect(stdout).toBe(KINDS.map((kind) => `${kind}\trebuilt\n`).join(""));
    expect(progress.at(-1)).toEqual({
      work: "projection.rebuild",
      done: 50 * KINDS.length,
      of: 50 * KINDS.length,
    });
    expect((await work(0, "projection", "rebuild", "project")).stdout).toBe("project\trebuilt\n");
  });

  test("rebuild --no-wait returns at once; --json gives the receipt", async () => {
    expect(await out("projection", "rebuild", "--no-wait")).toBe(
      KINDS.map((kind) => `${kind}\trebuilding`).join("\n"),
    );
    const { stdout } = await work(0, "projection", "rebuild", "workspace", "--json", "--key", "rebuild-1");
    expect(JSON.parse(stdout)).toMatchObject({
      type: "projection.rebuild",
      result: { projections: ["workspace"] },
      idempotency_key: "rebuild-1",
    });
  });

  test("rebuild under a key that was used before rebuilds nothing, and says so", async () => {
    const { stdout: first } = await work(0, "projection", "rebuild", "project", "--key", "rebuild-2");
    expect(first).toBe("project\trebuilt\n");
    const before = await json<{ items: object[] }>("projection", "list");
    expect(await out("projection", "rebuild", "project", "--key", "rebuild-2")).toBe(
      "project\talready-carried-out",
    );
    expect((await json<{ items: object[] }>("projection", "list")).items).toEqual(before.items);
    const { shown } = await atTerminal(["projection", "rebuild", "project", "--key", "rebuild-2"], { home });
    expect(shown).toBe("already carried out under this key: nothing was rebuilt now\n");
  });

  test("verify: 0 when the digests agree", async () => {
    const { stdout, progress } = await work(0, "projection", "verify");
    for (const line of lines(stdout)) {
      const [, ok, , digest, rebuilt] = line.split("\t");
      expect([ok, digest]).toEqual(["true", rebuilt!]);
    }
    const [last] = progress.slice(-1);
    // Work that ends before anybody looks says nothing.
    if (last) expect(last).toEqual({ work: "projection.verify", done: last.of, of: last.of });
    expect(progress.filter(({ of }) => of === 0)).toEqual([]);
  });

  test("verify: 1 when one differs, and which", async () => {
    const here = tempHome();
    const there = cli(here);
    await there.out("workspace", "create", "demo");
    await there.out("daemon", "stop");
    const db = new Database(join(here, "kernel.db"), { readwrite: true });
    db.run("UPDATE workspaces SET name = 'forged'");
    db.close();
    const { code, stdout } = await there.mp("projection", "verify", "--json");
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      ok: false,
      items: KINDS.map((name) => ({ name, ok: name !== "workspace" })),
    });
  });
});

describe("log", () => {
  test("verify: 0, with the number of events and the last hash", async () => {
    const { stdout } = await work(0, "log", "verify");
    expect(stdout).toMatch(/^ok\ttrue\nevents\t50\nlog_id\t[0-9a-f-]{36}\nhead_hash\t[0-9a-f]{64}\n$/);
  });

  test("verify: 1 and the first bad position when a byte was changed", async () => {
    const here = tempHome();
    const there = cli(here);
    await there.out("daemon", "start");
    await fill(here, 5);
    await there.out("daemon", "stop");
    forge(join(here, "kernel.db"), 3);
    const { code, stdout } = await there.mp("log", "verify", "--json");
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, events: 2, first_bad: { seq_global: 3 } });
    expect((await there.mp("log", "verify")).stdout).toMatch(
      /^ok\tfalse\nevents\t2\nfirst_bad_seq\t3\nproblem\t/,
    );
  });
});

/** Changes one letter of a stored event, as somebody with the file at hand would. */
function forge(path: string, seq: number): void {
  const db = new Database(path, { readwrite: true });
  const triggers = db
    .query<{ name: string; sql: string }, []>("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
    .all();
  for (const { name } of triggers) db.run(`DROP TRIGGER ${name}`);
  const changed = db.run(
    'UPDATE events SET body = CAST(replace(CAST(body AS TEXT), \'"name":"w\', \'"name":"v\') AS BLOB) WHERE seq_global = ?',
    [seq],
  );
  expect(changed.changes).toBe(1);
  for (const { sql } of triggers) db.run(sql);
  db.close();
}

describe("schema", () => {
  test("list names every file of schemas/, --kind some of them", async () => {
    const names = lines(await out("schema", "list")).map((line) => line.split("\t")[0]!);
    const files = [...new Bun.Glob("*.json").scanSync(join(import.meta.dir, "../../schemas"))];
    expect(names.toSorted()).toEqual(files.map((file) => file.replace(/\.json$/, "")).toSorted());
    const events = lines(await out("schema", "list", "--kind", "event"));
    expect(events.every((line) => line.startsWith("event."))).toBe(true);
    expect(events.length).toBeLessThan(names.length);
  });

  test("get prints the schema, by its name or by the type alone", async () => {
    const committed = JSON.parse(
      readFileSync(join(import.meta.dir, "../../schemas/command.project.create.v1.json"), "utf8"),
    );
    for (const name of ["command.project.create.v1", "project.create"])
      expect(JSON.parse(await out("schema", "get", name))).toEqual(committed);
    expect(JSON.parse(await out("schema", "get", "project.created"))).toMatchObject({
      $id: "urn:mp:schema:event.project.created.v1",
    });
  });
});

describe("without a daemon", () => {
  const nowhere = cli(tempHome(), { MP_NO_SPAWN: "1" });

  test("errors lists the catalogue, --reasons the reasons", async () => {
    const rows = lines(await nowhere.out("errors")).map((line) => line.split("\t"));
    expect(rows.map(([code, http, exit]) => [code, http, exit])).toEqual(
      Object.entries(catalogue).map(([code, { status, exit }]) => [code, `${status ?? ""}`, `${exit}`]),
    );
    const { items } = await nowhere.json<{ items: { reason: string }[] }>("errors", "--reasons");
    expect(items.map(({ reason }) => reason)).toEqual(
      expect.arrayContaining(["workspace.name_taken", "project.name_taken"]),
    );
  });

  test("explain: a code and a reason", async () => {
    expect(await nowhere.json("explain", "not_found")).toMatchObject({
      code: "not_found",
      http: 404,
      exit: 3,
    });
    expect(await nowhere.json("explain", "workspace.closed")).toMatchObject({ code: "conflict", exit: 5 });
    expect(await nowhere.out("explain", "workspace.closed")).toContain("hint\topen it first");
  });

  test("version", async () => {
    expect((await nowhere.out("version")).split("\t").slice(0, 2)).toEqual(["mp", VERSION]);
    expect(await nowhere.json("version")).toMatchObject({ version: VERSION, api_version: 1 });
    for (const flag of ["--version", "-V"])
      expect(await nowhere.out(flag)).toBe(await nowhere.out("version"));
  });

  test("help goes to stdout with 0, in every way to ask for it", async () => {
    const overview = await nowhere.out();
    for (const noun of [
      "daemon",
      "workspace",
      "project",
      "events",
      "projection",
      "log",
      "schema",
      "errors",
      "explain",
    ])
      expect(overview).toMatch(new RegExp(`^  ${noun} `, "m"));
    for (const args of [["--help"], ["-h"], ["help"]]) expect(await nowhere.out(...args)).toBe(overview);

    const verb = await nowhere.out("workspace", "create", "--help");
    expect(verb).toContain("mp workspace create NAME [FLAGS]");
    for (const args of [
      ["help", "workspace", "create"],
      ["workspace", "create", "x", "--bogus", "-h"],
      ["--help", "workspace", "create"],
    ])
      expect(await nowhere.out(...args)).toBe(verb);
    expect(await nowhere.out("workspace", "--help")).toBe(await nowhere.out("help", "workspace"));
    expect(await nowhere.out("help", "errors")).toBe(await nowhere.out("errors", "--help"));
  });

  test("help names every flag that is taken, and none that is not", async () => {
    const { arguments: all } = await nowhere.json<{ arguments: { name: string }[] }>(
      "events",
      "tail",
      "--help",
    );
    const shown = await nowhere.out("events", "tail", "--help");
    for (const { name } of all) expect(shown).toContain(name);
    for (const flag of "after since from-start type stream workspace count until-idle timeout no-follow cursor-file frames json".split(
      " ",
    ))
      expect(all.map(({ name }) => name)).toContain(`--${flag}`);
    expect(await nowhere.out("daemon", "run", "--help")).not.toContain("--background");
  });

  test("help fits: 80 columns in a pipe, the terminal's otherwise; a long flag has its sentence below it", async () => {
    const help = await nowhere.out("session", "list", "--help");
    expect(help).toMatch(/\n {2}--status starting\|\S+\n {20,40}only those with this status\n/);
    for (const args of [["session", "run"], ["worktree"], ["board", "add-node"], []]) {
      const [own] = (await nowhere.out(...args, "--help")).split(/^(?:Examples|Start here):/m);
      const long = lines(own!).filter((line) => Bun.stringWidth(line) > 80 && line.trim().includes("  "));
      expect([args, long]).toEqual([args, []]);
    }
    for (const columns of [50, 120]) {
      const { shown } = await atTerminal(["task", "create", "--help"], { home, columns });
      const [own] = Bun.stripANSI(shown).split(/^Examples:/m);
      const widest = Math.max(...lines(own!).map((line) => Bun.stringWidth(line)));
      expect([columns, widest <= columns && widest > columns - 15]).toEqual([columns, true]);
    }
  });

  test("help environment has every variable that is read, and no other", async () => {
    const { items } = await nowhere.json<{ items: { variable: string }[] }>("help", "environment");
    const told = items
      .flatMap(({ variable }) => variable.split(", "))
      .filter((each) => each.startsWith("MP_"));
    const read = new Set<string>();
    for (const file of new Bun.Glob("src/**/*.ts").scanSync(join(import.meta.dir, "../..")))
      if (file !== "src/cli/help.ts")
        for (const [name] of readFileSync(join(import.meta.dir, "../..", file), "utf8").matchAll(
          /\bMP_[A-Z_]+\b/g,
        ))
          read.add(name);
    for (const { name: noun } of await allNouns())
      for (const declared of Object.values((await nounNamed(noun))!.verbs))
        for (const { env, fallback } of Object.values(argsOf(declared)))
          for (const [name] of `${env} ${fallback}`.matchAll(/MP_[A-Z_]+/g)) read.add(name);
    // Those of the build.
    for (const name of ["MP_VERSION", "MP_COMMIT"]) read.delete(name);
    expect(told.toSorted()).toEqual([...read].toSorted());
  });

  test("help exit-codes has every exit code of the catalogue", async () => {
    const { items } = await nowhere.json<{ items: { exit: number }[] }>("help", "exit-codes");
    const codes = items.map(({ exit }) => exit);
    for (const { exit } of Object.values(catalogue)) expect(codes).toContain(exit);
    expect(codes).toContain(130);
    expect(await nowhere.out("help", "exit-codes")).toMatch(/^0\tok\t/);
    expect(await nowhere.out("help", "environment")).toContain("MP_HOME\t");
  });

  test("a word after -- is no flag", async () => {
    expect(await refused(3, "explain", "--", "--help")).toContain("'--help'");
  });
});
