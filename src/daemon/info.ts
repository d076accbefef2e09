/**
 * daemon.json (SPEC §11): who is running and where it listens, for clients to find it.
 *
 * Only the holder of the daemon lock writes or removes it, and always as a whole. It is a hint, never proof:
 * after a SIGKILL it stays behind, and a copied folder has a copied one, so discover.ts holds it against
 * /health and the lock. Reading is cheap to import, as every CLI command may do it; node:fs is loaded to write.
 */
import type { Paths } from "./paths.ts";

export interface DaemonInfo {
  readonly pid: number;
  readonly version: string;
  readonly api_version: number;
  /** A new one for every start. */
  readonly start_id: string;
  readonly log_id: string;
  /** RFC 3339 UTC with milliseconds. */
  readonly started_at: string;
  readonly addresses: {
    /** Absolute path of the Unix socket. */
    readonly socket: string;
    /** `http(s)://host:port`, only with --listen. */
    readonly tcp?: string;
  };
}

const fs = (): typeof import("node:fs") => require("node:fs");

/** Put daemon.json in place, 0600, in one step: a reader sees the old one, none or the new one. Lock holder only. */
export function writeInfo(paths: Paths, info: DaemonInfo): void {
  const { renameSync, rmSync, writeFileSync } = fs();
  const draft = `${paths.info}.tmp`;
  rmSync(draft, { force: true });
  writeFileSync(draft, `${JSON.stringify(info)}\n`, { mode: 0o600, flag: "wx" });
  renameSync(draft, paths.info);
}

/** @returns what daemon.json says; undefined when there is none or it is not one of ours */
export async function readInfo(paths: Paths): Promise<DaemonInfo | undefined> {
  try {
    const found: unknown = await Bun.file(paths.info).json();
    return isInfo(found) ? found : undefined;
  } catch {
    return undefined;
  }
}

/** Remove daemon.json, if there is one. Lock holder only: as the first act of a start, the last but one of a stop. */
export function removeInfo(paths: Paths): void {
  fs().rmSync(paths.info, { force: true });
}

/** Is this the content of a daemon.json? */
export function isInfo(value: unknown): value is DaemonInfo {
  const info = value as Partial<DaemonInfo> | null;
  return (
    typeof info === "object" &&
    info !== null &&
    Number.isInteger(info.pid) &&
    typeof info.version === "string" &&
    typeof info.start_id === "string" &&
    typeof info.log_id === "string" &&
    typeof info.addresses?.socket === "string"
  );
}
