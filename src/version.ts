/**
 * What this program is: its version, the commit it was built from, and whether it runs as the one executable.
 *
 * build.ts puts MP_VERSION and MP_COMMIT in as constants; run from source neither is defined and the version comes
 * from package.json. Nothing here is read at run time: no file, no environment, no git.
 */
import { version as packageVersion } from "../package.json" with { type: "json" };

declare const MP_VERSION: string | undefined;
declare const MP_COMMIT: string | undefined;

/** True in the compiled executable, where `process.execPath` is `mp` itself; false when Bun runs the source. */
export const COMPILED: boolean = typeof MP_VERSION === "string";

/** The semantic version of the product (SPEC §13), e.g. `0.1.0`. */
export const VERSION: string = typeof MP_VERSION === "string" ? MP_VERSION : packageVersion;

/** The git commit of the build (12 hex digits, `-dirty` when the tree had changes); null when it is not known. */
export const COMMIT: string | null = typeof MP_COMMIT === "string" && MP_COMMIT !== "" ? MP_COMMIT : null;

/** The version of the HTTP API and its envelopes (SPEC §13). It changes only when an old client cannot go on. */
export const API_VERSION = 1;
