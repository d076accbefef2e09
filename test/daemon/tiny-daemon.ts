/**
 * The smallest process that comes up as a daemon does: claim, socket, daemon.json, word to the parent. It takes the
 * real pieces of src/daemon in the order of the real one and has nothing behind /health. TINY says how it goes wrong:
 *
 * speechless: prints to stderr and ends · noisy: prints to stdout before its word · fails: refuses after it got the
 * lock · fails-once: the first that gets the lock refuses · gated: waits with the socket until `<data>/gate` exists.
 */
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { announceFailed, announceReady, claimDaemon } from "../../src/daemon/handshake.ts";
import { type DaemonInfo, removeInfo, writeInfo } from "../../src/daemon/info.ts";
import { paths, prepare } from "../../src/daemon/paths.ts";
import { isProblem, type Problem, problem } from "../../src/kernel/problems.ts";
import { waitFor } from "../support/binary.ts";

const how = process.env.TINY ?? "";
process.umask(0o077);

if (how === "speechless") {
  console.error("\u001b[31mthe runtime is broken\u001b[0m");
  process.exit(3);
}
if (how === "noisy") console.log('a greeting\n{"ready":true,"info":{}}\n{"log":"line"}');

const here = paths();
const refusal = prepare(here);
if (refusal) fail(refusal);
const claim = await claimDaemon(here, { timeout_ms: Number(process.env.TINY_TIMEOUT_MS ?? 10_000) });
if (isProblem(claim)) fail(claim);
if ("running" in claim) {
  announceReady(claim.running);
  process.exit(0);
}

const failed = join(here.data, "failed");
if (how === "fails" || (how === "fails-once" && !existsSync(failed))) {
  writeFileSync(failed, "");
  fail(problem("read_only", "the log is damaged"));
}
if (how === "gated") {
  await waitFor(() => existsSync(join(here.data, "gate")), { what: "the gate", timeout_ms: 20_000 });
}

const info: DaemonInfo = {
  pid: process.pid,
  version: process.env.TINY_VERSION ?? "1.2.3",
  api_version: 1,
  start_id: crypto.randomUUID(),
  log_id: crypto.randomUUID(),
  started_at: new Date().toISOString(),
  addresses: { socket: here.socket },
};
rmSync(here.socket, { force: true });
Bun.serve({
  unix: here.socket,
  routes: {
    "/health": () =>
      Response.json({
        status: "ok",
        version: info.version,
        api_version: info.api_version,
        start_id: info.start_id,
      }),
    "/environment": () => Response.json({ cwd: process.cwd(), env: process.env }),
    "/print": async () => {
      console.log("printed");
      console.error("printed");
      await new Promise((done) => process.stdout.write("printed\n", done));
      return new Response("printed");
    },
  },
});
writeInfo(here, info);
process.on("SIGTERM", () => {
  removeInfo(here);
  process.exit(0);
});
announceReady(info);

function fail(found: Problem): never {
  announceFailed(found);
  process.exit(1);
}
