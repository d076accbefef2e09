/**
 * Idempotency keys (SPEC §7): scope (principal, key), fingerprint, first receipt, all in the command's transaction.
 *
 * Always holds: a key is written once and never forgotten; a refused command leaves none behind.
 */
import type { Database, Statement } from "bun:sqlite";
import canonicalize from "canonicalize";

/**
 * SHA-256 of the canonical `{type, schema_version, payload, expected_version}`, as they were sent: absent members stay
 * absent, so that a retry means the same after an upgrade.
 * @returns hexadecimal
 */
export function fingerprint(sent: {
  type: string;
  schema_version?: number | undefined;
  payload: unknown;
  expected_version?: number | undefined;
}): string {
  const { type, schema_version, payload, expected_version } = sent;
  const text = canonicalize({ type, schema_version, payload, expected_version })!;
  return new Bun.CryptoHasher("sha256").update(text).digest("hex");
}

export interface KeyRow {
  readonly fingerprint: string;
  /** The first receipt, as JSON text. */
  readonly receipt: string;
}

/** The keys, on the write connection, inside the writer's transaction. */
export class CommandKeys {
  readonly #find: Statement<KeyRow, [string, string]>;
  readonly #insert: Statement;

  constructor(db: Database) {
    this.#find = db.query(
      "SELECT fingerprint, receipt FROM command_keys WHERE principal = ? AND idempotency_key = ?",
    );
    this.#insert = db.query(
      "INSERT INTO command_keys (principal, idempotency_key, fingerprint, receipt) VALUES (?, ?, ?, ?)",
    );
  }

  find(principal: string, key: string): KeyRow | undefined {
    return this.#find.get(principal, key) ?? undefined;
  }

  insert(principal: string, key: string, print: string, receipt: string): void {
    this.#insert.run(principal, key, print, receipt);
  }
}
