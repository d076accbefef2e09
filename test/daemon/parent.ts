/** A process that starts a tiny daemon, prints what it was told as one JSON line, and ends by itself. */
import { join } from "node:path";
import { startDaemon } from "../../src/daemon/handshake.ts";
import { paths } from "../../src/daemon/paths.ts";

const command = [process.execPath, join(import.meta.dir, "tiny-daemon.ts")];
console.log(JSON.stringify(await startDaemon({ paths: paths(), command, timeout_ms: 20_000 })));
