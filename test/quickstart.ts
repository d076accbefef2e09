/**
 * `bun run quickstart`: the main job, for real, in a temporary MP_HOME, with the compiled binary and nothing else.
 *
 * It prints each command as a person would type it, and checks what it shows: a gap, a doubled event or digests that
 * differ end it with an error. It leaves nothing behind but node_modules and
 * dist/mp.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";

const root = join(import.meta.dir, "..");
const mp = join(root, "dist", process.platform === "win32" ? "mp.exe" : "mp");
const home = mkdtempSync(join(tmpdir(), "mp-"));
const env = { ...process.env, MP_HOME: home };

function say(text: string): void {
  console.log(`\n── ${text}`);
}

function fail(text: string): never {
  throw new Error(text);
}

function show(args: readonly string[], comment = ""): void {
  console.log(`$ mp ${args.map((arg) => (/[^\w./:=*-]/.test(arg) ? `'${arg}'` : arg)).join(" ")}${comment}`);
}

/** Run `mp` as typed and let it speak for itself: tables at a terminal, TSV in a pipe. */
async function run(...args: string[]): Promise<void> {
  show(args);
  const code = await Bun.spawn([mp, ...args], { env, stdio: ["ignore", "inherit", "inherit"] }).exited;
  if (code !== 0) fail(`mp ${args.join(" ")} ended with exit code ${code}`);
}

/** A second process that shows the stream as it happens. It is one process from first to last: it resumes by itself. */
function follow(cursorFile: string) {
  const args = ["events", "tail", "--from-start", "--cursor-file", cursorFile, "--json"];
  show(args, "    # in a second process");
  const child = Bun.spawn([mp, ...args], { env, stdio: ["ignore", "pipe", "ignore"] });
  const seen: number[] = [];
  let arrived = Promise.withResolvers<void>();
  (async () => {
    let rest = "";
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const event = JSON.parse(line) as {
          seq_global: number;
          event_type: string;
          payload: { name?: string };
        };
        seen.push(event.seq_global);
        console.log(
          `  │ ${String(event.seq_global).padStart(3)}  ${event.event_type}  ${event.payload.name ?? ""}`,
        );
        arrived.resolve();
        arrived = Promise.withResolvers<void>();
      }
    }
  })().catch((error) => console.error(error));
  return {
    seen,
    async until(seq: number): Promise<void> {
      const late = AbortSignal.timeout(20_000);
      while ((seen.at(-1) ?? 0) < seq) {
        if (late.aborted) fail(`the stream stopped at ${seen.at(-1) ?? 0}, before event ${seq}`);
        await Promise.race([arrived.promise, new Promise((resolve) => setTimeout(resolve, 1_000))]);
      }
    },
    stop: () => child.kill("SIGINT"),
  };
}

try {
  say("Build one executable");
  await $`${process.execPath} build.ts`.cwd(root);

  say(`Start the daemon (everything is under ${home})`);
  await run("daemon", "start");

  say("A workspace for this very checkout, and a project in it");
  await run("workspace", "create", "demo", "--root-path", root);
  await run("workspace", "open", "demo");
  await run("project", "create", "core", "--workspace", "demo", "--repo-path", root);
  await run("workspace", "list");

  say("The event stream, live, in a second process");
  const cursor = join(home, "cursor");
  const stream = follow(cursor);
  await stream.until(2);
  await run("project", "create", "docs", "--workspace", "demo");
  await stream.until(3);

  say("Kill the daemon in the middle of the work: SIGKILL, no goodbye");
  const { pid } = (await $`${mp} daemon status --json`.env(env).json()) as { pid: number };
  const burst = (n: number) => [
    "project",
    "create",
    `burst-${n}`,
    "--workspace",
    "demo",
    "--key",
    `burst-${n}`,
  ];
  show([...burst(0), "--no-spawn"], "    # and 7 more like it, at once");
  const writing = Array.from({ length: 8 }, (_, n) =>
    Bun.spawn([mp, ...burst(n), "--no-spawn"], { env, stdio: ["ignore", "ignore", "ignore"] }),
  );
  await Promise.race(writing.map((each) => each.exited));
  process.kill(pid, "SIGKILL");
  console.log(`$ kill -9 ${pid}`);
  const codes = await Promise.all(writing.map((each) => each.exited));
  console.log(`  ${codes.filter((code) => code === 0).length} of the 8 commands had their answer`);

  say("Start it again, and send the 8 commands once more with the same keys: none is lost, none is doubled");
  await run("daemon", "start");
  for (let n = 0; n < 8; n++) await $`${mp} ${burst(n)}`.env(env).quiet();
  await stream.until(11);
  await run("project", "list", "--workspace", "demo");

  say("The stream went on from its cursor by itself: no gap, no repeat");
  stream.stop();
  if (stream.seen.length !== 11 || stream.seen.some((seq, index) => seq !== index + 1))
    fail(`expected events 1 to 11 once each, saw ${stream.seen.join(" ")}`);
  console.log(`  events 1 to ${stream.seen.at(-1)}, each once`);

  say("Throw the read models away, rebuild them from the log, compare the digests");
  await run("projection", "rebuild");
  await run("projection", "verify");
  await run("log", "verify");

  say("Done. Go on with");
  console.log(`  dist/mp workspace create demo          a workspace of your own (the daemon starts by itself)
  dist/mp events tail --from-start       watch what happens, in another terminal
  dist/mp daemon status                  what runs, and where
  dist/mp help                           everything else`);
} finally {
  await $`${mp} daemon stop`.env(env).quiet().nothrow();
  rmSync(home, { recursive: true, force: true });
}
