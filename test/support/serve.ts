/**
 * The daemon in the foreground, from source: what `startDaemonProcess` runs. It says ready or failed as `mp daemon run`
 * does, and ends at once when its standard input does: then nobody is left who would stop it.
 */
import { announceFailed, announceReady } from "../../src/daemon/handshake.ts";
import { paths } from "../../src/daemon/paths.ts";
import { serve } from "../../src/daemon/serve.ts";
import { isProblem } from "../../src/kernel/problems.ts";

void Bun.stdin.text().then(() => process.kill(process.pid, "SIGKILL"));

const served = await serve(paths());
if (isProblem(served)) {
  announceFailed(served);
  process.exit(1);
}
if ("running" in served) {
  announceReady(served.running);
  process.exit(0);
}
announceReady(served.info);
process.exit(await served.ended);
