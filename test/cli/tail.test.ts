/** `mp events tail` and the rest of `mp events`: every flag of SPEC §12. */
import { beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { start, tempHome, waitFor } from "../support/binary.ts";
import { cli, fill, lines, shell } from "./cli.ts";

const home = tempHome();
const { mp, out, json, refused } = cli(home);

interface Line {
  readonly seq_global: number;
  readonly event_type: string;
  readonly workspace_id?: string;
  readonly project_id?: string;
  readonly stream: string;
  readonly subject: { readonly kind: string; readonly id: string };
  readonly payload: { readonly name?: string };
}

/** Runs a tail that ends by itself and gives its events. */
async function tail(...args: string[]): Promise<Line[]> {
  return lines(await out("events", "tail", "--json", ...args)).map((line) => JSON.parse(line) as Line);
}
const seqs = (events: readonly Line[]) => events.map(({ seq_global }) => seq_global);
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, at) => from + at);

/** A tail that goes on, and its lines as they come. */
function following(args: readonly string[], at = home) {
  const child = start(["events", "tail", "--json", ...args], { home: at });
  const seen: string[] = [];
  const stderr = Bun.readableStreamToText(child.stderr);
  const read = (async () => {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of child.stdout) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = parts.pop() ?? "";
      seen.push(...parts);
    }
  })();
  return {
    child,
    seen,
    events: () => seen.map((line) => JSON.parse(line) as Line & { kind?: string }),
    async ended(): Promise<{ code: number; stderr: string }> {
      const code = await child.exited;
      await read;
      return { code, stderr: await stderr };
    },
  };
}

/** Waits until a tail that follows has got as far as the live end. */
const caughtUp = (tailing: ReturnType<typeof following>) =>
  waitFor(() => tailing.seen.some((line) => line.includes('"caught_up"')), { what: "caught_up" });

let demo: string;
let core: string;

beforeAll(async () => {
  demo = await out("workspace", "create", "demo"); // 1
  core = await out("project", "create", "core", "--workspace", "demo"); // 2
  await out("workspace", "create", "other"); // 3
  await out("project", "create", "core", "--workspace", "other"); // 4
  await out("workspace", "close", "other"); // 5
});

describe("where it starts", () => {
  test("--from-start, --after, and --no-follow alone", async () => {
    expect(seqs(await tail("--from-start", "--no-follow")).slice(0, 5)).toEqual(range(1, 5));
    expect(seqs(await tail("--no-follow")).slice(0, 5)).toEqual(range(1, 5));
    expect(seqs(await tail("--after", "3", "--count", "2"))).toEqual([4, 5]);
    expect(seqs(await tail("--after", "0", "--count", "1"))).toEqual([1]);
  });

  test("--since, as a length of time and as a time", async () => {
    expect(seqs(await tail("--since", "1h", "--no-follow")).slice(0, 5)).toEqual(range(1, 5));
    const third = await json<{ items: { timestamp: string }[] }>(
      "events",
      "list",
      "--after",
      "2",
      "--limit",
      "1",
    );
    const since = third.items[0]!.timestamp;
    const found = await json<{ items: { timestamp: string; seq_global: number }[] }>(
      "events",
      "list",
      "--limit",
      "5",
    );
    const first = found.items.find(({ timestamp }) => timestamp >= since)!.seq_global;
    expect(seqs(await tail("--since", since, "--no-follow"))[0]).toBe(first);
    expect(await tail("--since", "2999-01-01", "--no-follow")).toEqual([]);
  });

  test("without any: with what happens from now on", async () => {
    const live = following(["--count", "1", "--frames"]);
    await caughtUp(live);
    const id = await out("workspace", "create", "live");
    expect(await live.ended()).toEqual({ code: 0, stderr: "" });
    expect(live.events().filter(({ kind }) => kind === undefined)).toMatchObject([{ subject: { id } }]);
  });
});

describe("what it shows", () => {
  test("--type, exact, as a glob, repeated and with commas", async () => {
    const types = async (...args: string[]) =>
      (await tail("--no-follow", ...args)).slice(0, 3).map(({ event_type }) => event_type);
    expect(await types("--type", "project.*")).toEqual(["project.created", "project.created"]);
    expect(await types("--type", "workspace.closed")).toEqual(["workspace.closed"]);
    expect(await types("--type", "workspace.closed", "--type", "project.*")).toEqual([
      "project.created",
      "project.created",
      "workspace.closed",
    ]);
    expect(await types("--type", "workspace.closed,project.*")).toHaveLength(3);
  });

  test("--stream, by id and by name", async () => {
    expect(seqs(await tail("--no-follow", "--stream", `project/${core}`))).toEqual([2]);
    expect(seqs(await tail("--no-follow", "--stream", "workspace/demo"))).toEqual([1]);
    expect(seqs(await tail("--no-follow", "--stream", "project/core", "--workspace", "demo"))).toEqual([2]);
    expect(await refused(3, "events", "tail", "--no-follow", "--stream", "workspace/nobody")).toContain(
      "nobody",
    );
  });

  test("--workspace, --project, --subject-kind, by id and by name", async () => {
    expect(seqs(await tail("--no-follow", "--workspace", "demo"))).toEqual([1, 2]);
    expect(seqs(await tail("--no-follow", "--workspace", demo))).toEqual([1, 2]);
    expect(seqs(await tail("--no-follow", "--project", core))).toEqual([2]);
    expect(seqs(await tail("--no-follow", "--project", "core", "--workspace", "demo"))).toEqual([2]);
    expect(await refused(2, "events", "tail", "--no-follow", "--project", "core")).toContain(
      "more than one project",
    );
    expect(seqs(await tail("--no-follow", "--subject-kind", "project"))).toEqual([2, 4]);
  });

  test("--frames adds control lines, each with a kind; the event lines stay as they are", async () => {
    const plain = lines(await out("events", "tail", "--from-start", "--count", "5", "--json"));
    const framed = lines(await out("events", "tail", "--from-start", "--no-follow", "--json", "--frames"));
    const kinds = framed.map((line) => (JSON.parse(line) as { kind?: string }).kind ?? "event");
    expect(kinds[0]).toBe("hello");
    expect(kinds.filter((kind) => kind === "event").length).toBeGreaterThanOrEqual(5);
    expect(framed.filter((_, at) => kinds[at] === "event").slice(0, 5)).toEqual(plain);
  });

  test("--as-stored gives the same bytes while every version is current", async () => {
    expect(await tail("--after", "0", "--count", "3", "--as-stored")).toEqual(
      await tail("--after", "0", "--count", "3"),
    );
  });

  test("a pipe without --json gets TSV, and control frames go to stderr", async () => {
    const { stdout, stderr } = await mp("events", "tail", "--from-start", "--no-follow", "--frames");
    const [first] = lines(stdout);
    const [seq, time, type, stream, actor, payload, ...more] = first!.split("\t");
    expect([seq, type, stream, payload, more.length]).toEqual([
      "1",
      "workspace.created",
      `workspace/${demo}`,
      '{"name":"demo"}',
      0,
    ]);
    expect(time).toMatch(/^\d{4}-\d\d-\d\dT/);
    expect(actor).not.toBe("");
    expect(stderr).toMatch(/^log [0-9a-f-]+, at \d+\n/);
  });
});

describe("when it ends", () => {
  test("0 at --count, exactly so many lines", async () => {
    expect(seqs(await tail("--from-start", "--count", "3"))).toEqual([1, 2, 3]);
  });

  test("0 at --until-idle, after everything that is there", async () => {
    expect(seqs(await tail("--from-start", "--until-idle", "150ms")).slice(0, 5)).toEqual(range(1, 5));
    expect(await tail("--until-idle", "50ms")).toEqual([]);
  });

  test("--until-idle waits for the next event as long as they keep coming", async () => {
    const here = tempHome();
    await cli(here).out("daemon", "start");
    const live = following(["--until-idle", "1500ms", "--frames"], here);
    await caughtUp(live);
    const from = performance.now();
    let made = 0;
    while (performance.now() - from < 2_000) await fill(here, 1, `busy-${made++}-`);
    const { code } = await live.ended();
    expect(code).toBe(0);
    expect(live.events().filter(({ kind }) => kind === undefined)).toHaveLength(made);
  });

  test("7 at --timeout, with what came before it on stdout", async () => {
    const { code, stdout, stderr } = await mp(
      "events",
      "tail",
      "--from-start",
      "--count",
      "100000",
      "--timeout",
      "400ms",
      "--json",
    );
    expect(code).toBe(7);
    expect(lines(stdout).length).toBeGreaterThanOrEqual(5);
    expect(JSON.parse(stderr)).toMatchObject({
      code: "timeout",
      detail: expect.stringContaining("of 100000 events"),
    });
  });

  test("130 at Ctrl-C, 143 at SIGTERM, quietly", async () => {
    for (const [signal, code] of [
      ["SIGINT", 130],
      ["SIGTERM", 143],
    ] as const) {
      const live = following(["--frames"]);
      await caughtUp(live);
      live.child.kill(signal);
      expect(await live.ended()).toEqual({ code, stderr: "" });
    }
  });

  test("0 when the reader has gone, quietly", async () => {
    const here = tempHome();
    await cli(here).out("daemon", "start");
    await fill(here, 3_000);
    const { stdout, stderr } = await shell(
      `mp events tail --from-start --json | head -n 1 | jq .seq_global; echo "code \${PIPESTATUS[0]}"`,
      here,
    );
    expect([stdout, stderr]).toEqual(["1\ncode 0\n", ""]);
  });

  test.skipIf(process.platform === "win32")(
    "0 soon after the reader has gone, also when nothing happens",
    async () => {
      const here = tempHome();
      await cli(here).out("daemon", "start");
      await fill(here, 2);
      const from = performance.now();
      const { code, stdout } = await shell(
        `mp events tail --from-start --json | head -n 1 | wc -l | tr -d ' '; echo "code \${PIPESTATUS[0]}"`,
        here,
      );
      expect([code, stdout]).toEqual([0, "1\ncode 0\n"]);
      expect(performance.now() - from).toBeLessThan(5_000);
    },
  );

  test("0 when the reader goes while nothing happens, as soon as there is something to say", async () => {
    const { as_of_seq } = await json<{ as_of_seq: number }>("daemon", "ping");
    const live = start(["events", "tail", "--json", "--after", String(as_of_seq)], { home });
    const reader = live.stdout.getReader();
    await out("workspace", "create", "for-the-reader");
    await reader.read();
    await reader.cancel();
    await out("workspace", "create", "for-nobody");
    expect(await live.exited).toBe(0);
  });

  test("6 with --no-spawn and no daemon", async () => {
    expect(await cli(tempHome()).refused(6, "events", "tail", "--no-spawn")).toContain("mp daemon start");
  });
});

describe("the cursor file", () => {
  const folder = tempHome();
  const read = (path: string) =>
    JSON.parse(readFileSync(path, "utf8")) as { log_id: string; seq_global: number };

  test("is made, holds log and position, and the next run goes on behind it", async () => {
    const file = join(folder, "first");
    const before = await tail("--from-start", "--no-follow", "--cursor-file", file);
    const { log_id } = await json<{ log_id: string }>("daemon", "status");
    expect(read(file)).toEqual({ log_id, seq_global: before.at(-1)!.seq_global });
    expect(await tail("--from-start", "--no-follow", "--cursor-file", file)).toEqual([]);

    const id = await out("workspace", "create", "behind-the-cursor");
    expect(await tail("--from-start", "--no-follow", "--cursor-file", file)).toMatchObject([
      { subject: { id } },
    ]);
    expect(readdirSync(dirname(file)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  test("also remembers where nothing came: what happens between two runs is not lost", async () => {
    const file = join(folder, "quiet");
    expect(await tail("--until-idle", "50ms", "--cursor-file", file)).toEqual([]);
    const id = await out("workspace", "create", "in-between");
    expect(await tail("--no-follow", "--cursor-file", file)).toMatchObject([{ subject: { id } }]);
  });

  test("moves on under a filter that lets nothing through", async () => {
    const file = join(folder, "filtered");
    expect(await tail("--no-follow", "--subject-kind", "board", "--cursor-file", file)).toEqual([]);
    const { as_of_seq } = await json<{ as_of_seq: number }>("daemon", "ping");
    expect(read(file).seq_global).toBe(as_of_seq);
  });

  test("--count ends at its line, not behind it", async () => {
    const file = join(folder, "counted");
    expect(seqs(await tail("--from-start", "--count", "2", "--cursor-file", file))).toEqual([1, 2]);
    expect(read(file).seq_global).toBe(2);
    expect(seqs(await tail("--count", "2", "--cursor-file", file))).toEqual([3, 4]);
  });

  test("never names a line that was not written: SIGKILL at any moment leaves no hole", async () => {
    const here = tempHome();
    await cli(here).out("daemon", "start");
    await fill(here, 5_000);
    const file = join(here, "cursor");
    const seen = new Set<number>();
    let kills = 0;
    while (seen.size < 5_000) {
      const live = following(["--from-start", "--no-follow", "--cursor-file", file], here);
      await waitFor(
        () => live.seen.length >= Math.min(700, 5_000 - seen.size) || live.child.exitCode !== null,
        {
          what: "some lines",
        },
      );
      live.child.kill("SIGKILL");
      await live.ended();
      kills += 1;
      // A line that was cut is not one that was written.
      for (const line of live.seen) seen.add((JSON.parse(line) as Line).seq_global);
      if (existsSync(file)) {
        const { seq_global } = read(file);
        expect(range(1, seq_global).filter((seq) => !seen.has(seq))).toEqual([]);
      }
    }
    expect([seen.size, kills > 0]).toEqual([5_000, true]);
  });

  test("does not move while the reader does not read", async () => {
    const here = tempHome();
    await cli(here).out("daemon", "start");
    await fill(here, 5_000);
    const file = join(here, "cursor");
    // More than a pipe holds: it is stuck in a write when the first byte can be read, and dies there.
    const { code, stdout } = await shell(
      `mkfifo "$MP_HOME/pipe"
       mp events tail --from-start --json --cursor-file "$MP_HOME/cursor" > "$MP_HOME/pipe" &
       exec 3< "$MP_HOME/pipe"
       head -c 1 <&3; kill -9 $!; wait $! 2>/dev/null; cat <&3`,
      here,
    );
    expect(code).toBe(0);
    const written = stdout.split("\n").slice(0, -1);
    expect(written.length).toBeLessThan(5_000);
    expect(existsSync(file) ? read(file).seq_global : 0).toBeLessThanOrEqual(written.length);
  });

  test("that cannot be written is refused before anything is shown", async () => {
    expect(await refused(2, "events", "tail", "--cursor-file", join(folder, "no", "such"))).toContain(
      "cannot be used",
    );
    expect(await refused(2, "events", "tail", "--cursor-file", folder)).toContain("cannot be used");
  });

  test("beyond the end, or of another log, ends with 8 and is left alone", async () => {
    const file = join(folder, "ahead");
    const { log_id } = await json<{ log_id: string }>("daemon", "status");
    const ahead = `${JSON.stringify({ log_id, seq_global: 1_000_000 })}\n`;
    writeFileSync(file, ahead);
    expect(await refused(8, "events", "tail", "--no-follow", "--cursor-file", file)).toContain(
      "cursor_ahead",
    );
    expect(readFileSync(file, "utf8")).toBe(ahead);
  });
});

describe("a daemon that goes and comes back", () => {
  test("is followed over a restart: nothing twice, nothing left out", async () => {
    const here = tempHome();
    const there = cli(here);
    await there.out("daemon", "start");
    await fill(here, 10, "before-");
    const live = following(["--from-start", "--count", "30", "--frames"], here);
    await caughtUp(live);
    await there.out("daemon", "restart");
    await fill(here, 20, "after-");
    const { code, stderr } = await live.ended();
    expect(code).toBe(0);
    expect(seqs(live.events().filter(({ kind }) => kind === undefined))).toEqual(range(1, 30));
    expect(live.events().map(({ kind }) => kind)).toContain("disconnected");
    expect(lines(stderr).map((line) => (JSON.parse(line) as { kind: string }).kind)).toEqual([
      "disconnected",
      "hello",
    ]);
  });

  test("with another log is noticed: exit code 8", async () => {
    const here = tempHome();
    const there = cli(here);
    await there.out("daemon", "start");
    await fill(here, 5);
    const live = following(["--from-start", "--frames"], here);
    await caughtUp(live);
    await there.out("daemon", "stop");
    for (const name of readdirSync(here).filter((each) => each.startsWith("kernel.db")))
      await Bun.file(join(here, name)).delete();
    await there.out("daemon", "start");
    const { code, stderr } = await live.ended();
    expect(code).toBe(8);
    expect(stderr).toContain("cursor_foreign");
  });
});

describe("list and get", () => {
  test("a page, and the next one", async () => {
    const first = await json<{ items: Line[]; next: string; log_id: string }>(
      "events",
      "list",
      "--limit",
      "2",
    );
    expect(seqs(first.items)).toEqual([1, 2]);
    const second = await json<{ items: Line[] }>("events", "list", "--limit", "2", "--cursor", first.next);
    expect(seqs(second.items)).toEqual([3, 4]);
    const { stdout, stderr } = await mp("events", "list", "--limit", "2", "--after", "1");
    expect(lines(stdout).map((line) => line.split("\t")[0])).toEqual(["2", "3"]);
    expect(stderr).toBe("there are more: --cursor 3\n");
  });

  test("filters, as in tail", async () => {
    const found = await json<{ items: Line[] }>(
      "events",
      "list",
      "--type",
      "project.*",
      "--workspace",
      "demo",
    );
    expect(seqs(found.items)).toEqual([2]);
  });

  test("one event, its stored bytes under --json", async () => {
    const [line] = lines(await out("events", "tail", "--from-start", "--count", "1", "--json"));
    const { event_id } = JSON.parse(line!) as { event_id: string };
    expect(await out("events", "get", event_id, "--json")).toBe(line!);
    expect(await out("events", "get", event_id)).toContain("event_type\tworkspace.created");
    expect(await out("events", "get", event_id.toUpperCase(), "--json")).toBe(line!);
  });

  test("an id in capitals is that id", async () => {
    const stream = `workspace/${demo.toUpperCase()}`;
    expect(seqs(await tail("--no-follow", "--stream", stream))).toEqual([1]);
    expect(await json("workspace", "get", demo.toUpperCase())).toMatchObject({ workspace_id: demo });
  });

  test("--min-seq waits for a position that is there", async () => {
    const receipt = await json<{ seq_global: number }>("workspace", "create", "min-seq");
    const page = await json<{ as_of_seq: number }>("events", "list", "--min-seq", String(receipt.seq_global));
    expect(page.as_of_seq).toBeGreaterThanOrEqual(receipt.seq_global);
  });
});

// They are for people at a shell, with the programs that people have there.
describe.skipIf(!Bun.which("jq") || !Bun.which("sha256sum"))("the acceptance lines (jq, sha256sum)", () => {
  test("create and tail in an empty home with no daemon", async () => {
    const { code, stdout } = await shell(
      "mp workspace create demo >/dev/null && mp events tail --from-start --no-follow --json | jq -r .event_type",
      tempHome(),
    );
    expect([code, stdout]).toEqual([0, "workspace.created\n"]);
  });

  test("a shell loop with sha256sum reproduces every prev_hash", async () => {
    const { code, stdout, stderr } = await shell(
      `log_id=$(mp daemon status --json | jq -r .log_id)
       expected=$(printf 'mp.local/%s/events' "$log_id" | sha256sum | cut -d ' ' -f 1)
       checked=0
       while IFS= read -r line; do
         prev=$(printf '%s\\n' "$line" | jq -r .prev_hash)
         if [ "$prev" != "$expected" ]; then echo "broken: $line"; exit 1; fi
         expected=$( { printf '\\0'; printf '%s' "$line"; } | sha256sum | cut -d ' ' -f 1)
         checked=$((checked + 1))
       done < <(mp events tail --from-start --no-follow --json)
       echo "$checked $expected"`,
      home,
    );
    expect([code, stderr]).toEqual([0, ""]);
    const [checked, last] = stdout.trim().split(" ");
    const verified = JSON.parse((await mp("log", "verify", "--json")).stdout);
    expect([Number(checked), last]).toEqual([verified.events, verified.head_hash]);
  });
});
