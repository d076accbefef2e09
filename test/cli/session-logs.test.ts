/** `mp session logs` (SPEC §8): what a session's command printed, and why there is nothing. */
import { beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { start, tempHome, waitFor } from "../support/binary.ts";
import { atTerminal, cli, lines, shell } from "./cli.ts";

const home = tempHome();
const { mp, out, json, refused } = cli(home);

/** Runs a script as a session. @returns the session's id */
async function ran(script: string, ...flags: string[]): Promise<string> {
  const { stderr } = await mp("session", "run", "--json", ...flags, "--", "sh", "-c", script);
  return (JSON.parse(lines(stderr).at(-1)!) as { session_id: string }).session_id;
}

beforeAll(async () => {
  await out("workspace", "create", "demo");
});

describe("session logs", () => {
  test("stdout gets the bytes as they were printed, by id or its end", async () => {
    const id = await ran("printf 'a\\000\\377\\n'; echo second; exit 3");
    await shell(`mp session logs ${id} > "$MP_HOME/logs.bin"`, home);
    const bytes = Buffer.from(await Bun.file(join(home, "logs.bin")).arrayBuffer());
    expect(bytes.equals(Buffer.from([0x61, 0x00, 0xff, 0x0a, ...Buffer.from("second\n")]))).toBe(true);
    const plain = await ran("echo out; echo err >&2");
    expect((await out("session", "logs", plain.slice(-8))).split("\n").toSorted()).toEqual(["err", "out"]);
    const { code, shown } = await atTerminal(["session", "logs", plain], { home });
    expect([code, lines(shown).toSorted()]).toEqual([0, ["err", "out"]]);
  });

  test("a child sees that of its parent, and only the output: not what else belongs to the session", async () => {
    const id = await ran("echo mine");
    writeFileSync(join(home, "report.txt"), "another file\n");
    await out("artifact", "upload", join(home, "report.txt"), "--session", id);
    const env = { MP_SESSION_ID: id };
    expect((await cli(home, env).mp("session", "logs")).stdout).toBe("mine\n");
    const { items } = await json<{ items: { name: string }[] }>("session", "logs", id);
    expect(items.map(({ name }) => name)).toEqual(["output.log"]);
  });

  test("a reader that has gone is no error", async () => {
    const id = await ran("seq 1 200000");
    const { code, stdout, stderr } = await shell(`mp session logs ${id} | head -n 1; exit $PIPESTATUS`, home);
    expect([code, stdout, stderr]).toEqual([0, "1\n", ""]);
  });

  test("none while it runs, none when nothing was printed, none of a session without a command", async () => {
    const child = start(["session", "run", "--title", "long", "--", "sh", "-c", "echo begun; sleep 600"], {
      home,
    });
    const id = await waitFor(
      async () =>
        (await json<{ items: { session_id: string; title: string }[] }>("session", "list")).items.find(
          ({ title }) => title === "long",
        )?.session_id,
      { what: "the session" },
    );
    await waitFor(async () => (await json("session", "get", id)).status === "running", { what: "its run" });
    expect(await refused(3, "session", "logs", id)).toContain("the session is running: its output is kept");
    child.kill("SIGTERM");
    await child.exited;
    expect(await out("session", "logs", id)).toBe("begun");
    expect(await refused(3, "session", "logs", await ran("exit 0"))).toContain("printed nothing");
    const unseen = await ran("echo unseen", "--no-output");
    expect(await refused(3, "session", "logs", unseen)).toContain("--no-output");
    const bare = (await out("session", "spawn", "--workspace", "demo", "--agent", "ada")).split("\t")[0]!;
    await out("session", "end", bare, "cancelled");
    expect(await refused(3, "session", "logs", bare)).toContain("not run by 'mp session run'");
  });

  test("bytes that have expired are said to be", async () => {
    const id = await ran("echo gone soon");
    const { items } = await json<{ items: { artifact_id: string }[] }>("session", "logs", id);
    await out("artifact", "expire", items[0]!.artifact_id);
    expect(await refused(5, "session", "logs", id)).toContain("artifact.bytes_expired");
  });

  test("help, and what does not exist", async () => {
    expect(await out("session", "logs", "--help")).toContain("mp session logs [SESSION]");
    expect(await refused(3, "session", "logs", "0123abcd")).toContain("mp session list");
  });
});
