/**
 * The entry: hands argv to cli/runner.ts, and ends with its exit code. Nothing else is imported here: what a command needs
 * it imports itself, so that a trivial one starts as fast as the runtime.
 */
import { main } from "./cli/runner.ts";

// Everything printed was awaited; what is still open (an idle connection, a stuck stream) must not hold the process.
process.exit(await main(process.argv.slice(2), process.env));
