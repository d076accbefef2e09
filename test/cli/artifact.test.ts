/** `mp artifact upload` and `download` (SPEC §8, §12): files in and out, names, refusals, and what is left behind. */
import { beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { proxy } from "../client/proxy.ts";
import { run, start, tempHome, waitFor } from "../support/binary.ts";
import { atTerminal, type Cli, cli, lines } from "./cli.ts";

const home = tempHome();
const folder = tempHome();
let mp: Cli;
beforeAll(async () => {
  mp = cli(home);
  await mp.out("workspace", "create", "demo");
  await mp.out("workspace", "create", "other");
  await mp.out("project", "create", "core", "--workspace", "demo");
  await mp.out("project", "create", "core", "--workspace", "other");
});

const digestOf = (bytes: string) => `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
let files = 0;
/** A file that no other test has. */
function file(ending = ".txt"): { path: string; name: string; bytes: string; digest: string } {
  const name = `file-${++files}${ending}`;
  const bytes = `the bytes of ${name}\n`;
  writeFileSync(join(folder, name), bytes);
  return { path: join(folder, name), name, bytes, digest: digestOf(bytes) };
}
/** Run `mp` in an empty folder of its own. */
async function within(...args: string[]) {
  const cwd = mkdtempSync(join(folder, "in-"));
  return { cwd, ...(await run(args, { home, cwd })) };
}

describe("upload", () => {
  test("stores a file, and registers it with its name, its type and what it belongs to", async () => {
    const { path, name, bytes, digest } = file();
    const told = await mp.out("artifact", "upload", path, "--project", "core", "--workspace", "demo");
    const [artifact_id, ...rest] = told.split("\t") as [string, ...string[]];
    expect(rest).toEqual([digest, String(bytes.length)]);
    const found = await mp.json<{ links: { kind: string }[] }>("artifact", "get", artifact_id);
    expect(found).toMatchObject({ digest, name, media_type: "text/plain;charset=utf-8", stored: true });
    expect(found.links.map((each) => each.kind).sort()).toEqual(["project", "workspace"]);
  });

  test("is told how to call it, and for how long; --json is the receipt with the bytes; a key makes it once", async () => {
    const { path, digest } = file();
    const words = ["artifact", "upload", path, "--workspace", "demo", "--key", "upload-once"];
    const more = ["--name", "Result", "--media-type", "text/x-log", "--expire-after-ms", "1h"];
    const receipt = await mp.json<{ subject: { id: string } }>(...words, ...more);
    expect(receipt).toMatchObject({ type: "artifact.register", digest, replayed: false });
    expect(await mp.json(...words, ...more)).toMatchObject({ subject: receipt.subject, replayed: true });
    expect(await mp.json("artifact", "get", receipt.subject.id)).toMatchObject({
      name: "Result",
      media_type: "text/x-log",
      expire_after_ms: 3_600_000,
    });
  });

  test("takes standard input", async () => {
    const words = ["artifact", "upload", "-", "--workspace", "demo"];
    const { code, stdout, stderr } = await run(words, { home, stdin: "from a pipe" });
    expect([code, stderr]).toEqual([0, ""]);
    const [artifact_id, digest] = stdout.split("\t") as [string, string];
    expect(digest).toBe(digestOf("from a pipe"));
    expect(await mp.json("artifact", "get", artifact_id)).toMatchObject({
      name: null,
      media_type: "application/octet-stream",
    });
  });

  test.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("leaves nothing in the folder of temporary files when %s ends it", async (signal, code) => {
    const temporary = mkdtempSync(join(folder, "tmp-"));
    const child = start(["artifact", "upload", "-", "--workspace", "demo"], {
      home,
      stdin: "pipe",
      env: { TMPDIR: temporary },
    });
    child.stdin?.write("a part");
    child.stdin?.flush();
    await waitFor(
      () =>
        readdirSync(temporary).some(
          (each) => readFileSync(join(temporary, each, "stdin"), "utf8") === "a part",
        ),
      { what: "the spool" },
    );
    child.kill(signal);
    expect(await child.exited).toBe(code);
    expect(readdirSync(temporary)).toEqual([]);
  });

  test("is refused without anything it belongs to, of what is no file, and by the daemon", async () => {
    const { path } = file();
    expect(await mp.refused(2, "artifact", "upload", path)).toContain("--session");
    expect(await mp.refused(2, "artifact", "upload", folder, "--workspace", "demo")).toContain("a folder");
    const missing = join(folder, "missing");
    expect(await mp.refused(2, "artifact", "upload", missing, "--workspace", "demo")).toContain("not exist");
    expect(await mp.refused(3, "artifact", "upload", path, "--workspace", "nope")).toContain("workspace");
    // Two workspaces have a project of that name.
    expect(await mp.refused(2, "artifact", "upload", path, "--project", "core")).toContain("more than one");
    const both = ["--workspace", "demo", "--workspace", "other"];
    expect(await mp.refused(5, "artifact", "upload", path, ...both)).toContain("artifact.other_workspace");
    const odd = ["--workspace", "demo", "--media-type", "odd"];
    expect(await mp.refused(2, "artifact", "upload", path, ...odd)).toContain("--media-type must be");
  });
});

describe("download", () => {
  /** A file that is uploaded. */
  async function uploaded(ending?: string) {
    const made = file(ending);
    const told = await mp.out("artifact", "upload", made.path, "--workspace", "demo");
    return { ...made, artifact_id: told.split("\t")[0]! };
  }

  test("writes a file of the artifact's name, asked for by name or id; by digest under its digest", async () => {
    const { name, bytes, digest, artifact_id } = await uploaded();
    for (const [asked, expected] of [
      [name, name],
      [name.toUpperCase(), name],
      [artifact_id, name],
      [artifact_id.slice(-8), name],
      [digest, digest.replace(":", "-")],
    ] as const) {
      const { cwd, code, stdout } = await within("artifact", "download", asked);
      expect(code).toBe(0);
      expect(stdout.trim().split("\t")).toEqual([join(cwd, expected), digest, String(bytes.length)]);
      expect(readdirSync(cwd)).toEqual([expected]);
      expect(readFileSync(join(cwd, expected), "utf8")).toBe(bytes);
    }
  });

  test("takes no name for the file that is more than a plain name", async () => {
    const odd = ["../../evil", "/etc/evil", "..", ".profile", "-rf", "a:b", "a\\b", "  ", "end "];
    const { path, digest } = file();
    for (const name of odd) {
      const words = ["--workspace", "demo", `--name=${name}`];
      const [artifact_id] = (await mp.out("artifact", "upload", path, ...words)).split("\t") as [string];
      const { cwd } = await within("artifact", "download", artifact_id);
      expect([name, ...readdirSync(cwd)]).toEqual([name, digest.replace(":", "-")]);
    }
  });

  test("leaves a file of that name alone", async () => {
    const { name, artifact_id, bytes } = await uploaded();
    const cwd = mkdtempSync(join(folder, "in-"));
    writeFileSync(join(cwd, name), "mine");
    const words = ["artifact", "download", artifact_id];
    expect(await run(words, { home, cwd })).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--force"),
    });
    expect(readFileSync(join(cwd, name), "utf8")).toBe("mine");
    expect((await run([...words, "--force"], { home, cwd })).code).toBe(0);
    expect(readFileSync(join(cwd, name), "utf8")).toBe(bytes);
  });

  test("goes to standard output, with nothing else", async () => {
    const { name, bytes } = await uploaded();
    const { cwd, stdout, stderr, code } = await within("artifact", "download", name, "-o", "-");
    expect([stdout, stderr, code, readdirSync(cwd)]).toEqual([bytes, "", 0, []]);
    expect(await mp.refused(2, "artifact", "download", name, "-o", "-", "--json")).toContain("exclude");
  });

  test("replaces a file only with --force", async () => {
    const { name, bytes, digest } = await uploaded();
    const target = join(folder, "target");
    writeFileSync(target, "mine");
    expect(await mp.refused(2, "artifact", "download", name, "--output", target)).toContain("--force");
    expect(readFileSync(target, "utf8")).toBe("mine");
    expect(await mp.json("artifact", "download", name, "--output", target, "--force")).toMatchObject({
      path: target,
      digest,
      size: bytes.length,
    });
    expect(readFileSync(target, "utf8")).toBe(bytes);
  });

  test("finds damaged bytes, and leaves no file", async () => {
    const { name, digest } = await uploaded();
    const stored = join(home, "artifacts", "sha256", digest.slice(7, 9), digest.slice(7));
    chmodSync(stored, 0o600);
    writeFileSync(stored, "damaged");
    const { cwd, code, stderr } = await within("artifact", "download", name);
    expect([code, readdirSync(cwd)]).toEqual([5, []]);
    expect(stderr).toContain("artifact.digest_mismatch");
    expect((await within("artifact", "download", name, "-o", "-")).code).toBe(5);
    rmSync(stored);
  });

  test("that does not come to its end leaves no file: 7 when the time is over, 143 after SIGTERM", async () => {
    const large = join(folder, "large.bin");
    writeFileSync(large, Buffer.alloc(32 << 20, "x"));
    const digest = (await mp.out("artifact", "upload", large, "--workspace", "demo")).split("\t")[1]!;
    await using net = await proxy(join(home, "run", "mp.sock"));
    const elsewhere = tempHome();
    mkdirSync(join(elsewhere, "run"), { mode: 0o700 });
    symlinkSync(net.socket, join(elsewhere, "run", "mp.sock"));
    for (const [code, timeout, signal] of [
      [7, "2s", undefined],
      [143, "1h", "SIGTERM"],
    ] as const) {
      const cwd = mkdtempSync(join(folder, "cwd-"));
      const before = net.passed;
      net.freezing = before + 1_000_000;
      const words = ["artifact", "download", digest, "--timeout", timeout];
      const child = start(words, { home: elsewhere, cwd });
      const said = Bun.readableStreamToText(child.stderr);
      await waitFor(() => net.frozen && readdirSync(cwd).length > 0, { what: "a part of it" });
      if (signal) child.kill(signal);
      expect([await child.exited, readdirSync(cwd)]).toEqual([code, []]);
      expect(await said).toStartWith(signal ? "" : "error: not all of it came within 2s");
      net.cut();
      net.frozen = false;
    }
  });

  test("says what is not there, and what has expired", async () => {
    const { name, artifact_id } = await uploaded();
    await mp.out("artifact", "expire", artifact_id);
    expect(await mp.refused(5, "artifact", "download", name)).toContain("artifact.bytes_expired");
    const { shown } = await atTerminal(["artifact", "get", name], { home, env: { NO_COLOR: "1" } });
    expect(shown).toMatch(/\nbytes +gone\n/);
    expect(shown).not.toContain("kept");
    expect(await mp.refused(3, "artifact", "download", digestOf("nobody has this"))).toContain("upload");
    expect(await mp.refused(3, "artifact", "download", "no-such-thing")).toContain("mp artifact list");
    const nowhere = join(folder, "no", "such", "folder");
    const { digest } = await uploaded();
    expect(await mp.refused(1, "artifact", "download", digest, "-o", nowhere)).toContain("ENOENT");
    expect(existsSync(nowhere)).toBe(false);
  });
});

describe("list and get", () => {
  let session: string;
  let task: string;
  let made: string;
  let other: string;
  const seen = async (...args: string[]) =>
    (await atTerminal(args, { home, columns: 90, env: { NO_COLOR: "1" } })).shown;
  const listed = async (...args: string[]) =>
    lines(await mp.out("artifact", "list", ...args)).map((line) => line.split("\t")[0]);

  beforeAll(async () => {
    const spawned = await mp.out("session", "spawn", "--workspace", "demo", "--agent", "ada");
    session = spawned.split("\t")[0]!;
    task = await mp.out("task", "create", "a task", "--project", "core", "--workspace", "demo");
    const path = join(folder, "big.bin");
    writeFileSync(path, Buffer.alloc(3 << 20));
    const words = ["artifact", "upload", path, "--workspace", "demo"];
    made = (await mp.out(...words, "--session", session, "--task", task, "--project", "core")).split(
      "\t",
    )[0]!;
    other = (await mp.out(...words, "--name", "other", "--session", session)).split("\t")[0]!;
  });

  test("those of one thing, by the flags that upload has, also by the ends of ids and by names", async () => {
    for (const of of [session, session.slice(-8), session.slice(-8).toUpperCase()]) {
      expect(await listed("--session", of)).toEqual([made, other]);
      expect(await listed("--linked-to", of)).toEqual([made, other]);
    }
    expect(await listed("--task", task.slice(-8))).toEqual([made]);
    expect(await listed("--linked-to", task.slice(-8))).toEqual([made]);
    expect(await listed("--project", "core", "--workspace", "demo")).toContain(made);
    const found = await mp.json<{ items: object[] }>("artifact", "list", "--session", session.slice(-8));
    expect(found.items).toHaveLength(2);
    expect(found.items[0]).not.toHaveProperty("links");
  });

  test("what is nothing, or two things, is refused", async () => {
    expect(await mp.refused(3, "artifact", "list", "--linked-to", "00000000")).toContain(
      "ends in '00000000'",
    );
    expect(await mp.refused(2, "artifact", "list", "--linked-to", "nothing")).toContain("--linked-to");
    expect(await mp.refused(3, "artifact", "list", "--session", "00000000")).toContain("session");
    expect(await mp.refused(2, "artifact", "list", "--session", session, "--task", task)).toContain(
      "--session and --task exclude each other",
    );
  });

  test("a terminal shows what each is of, and when it came; a pipe has the columns it had", async () => {
    const [head, ...rows] = lines(await seen("artifact", "list", "--session", session));
    expect(head!.split(/ {2,}/)).toEqual(["NAME", "SIZE", "STATUS", "LINKED TO", "CREATED", "ID"]);
    expect(rows.map((row) => row.split(/ {2,}/).filter((_, at) => at !== 4))).toEqual([
      ["big.bin", "3.0 MiB", "available", `session ${session.slice(-8)} +3`, made.slice(-8)],
      ["other", "3.0 MiB", "available", `session ${session.slice(-8)} +1`, other.slice(-8)],
    ]);
    expect(lines(await mp.out("artifact", "list", "--session", session))[0]!.split("\t")).toHaveLength(13);
  });

  test("one artifact: its size in words and in bytes, what it belongs to", async () => {
    const shown = await seen("artifact", "get", made);
    expect(shown).toMatch(
      /^name +big\.bin\nstatus +available\nartifact id .*\nsize +3\.0 MiB \(3145728 bytes\)\n/,
    );
    expect(shown).toMatch(
      new RegExp(`\\nbelongs to\\nKIND .*\\nsession +${session.slice(-8)} +\\w+\\ntask `),
    );
    expect(await mp.out("artifact", "get", made)).toContain("\nsize\t3145728\n");
  });
});
