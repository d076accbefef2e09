/**
 * Idempotency keys (SPEC §7): scope (principal, key), fingerprint, first receipt, all in the command's transaction.
 *
 * Always holds: a key is written once and never forgotten; a refused command leaves none behind.
 */
import type { Database, Statement } from "bun:sqlite";
import { canonical } from "./canonical.ts";

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
  return Bun.SHA256.hash(canonical({ expected_version, payload, schema_version, type }), "hex");
}

/** What is kept of an accepted command. */
export interface KeyRow {
  /** Hexadecimal. */
  readonly fingerprint: string;
  readonly command_type: string;
  /** The log's position after the command. */
  readonly seq_global: number;
  /** How many events it made; they end at `seq_global`. */
  readonly events: number;
  /** JSON of what the events do not tell; null when they tell everything. */
  readonly rest: string | null;
}

/** The keys, on the write connection, inside the writer's transaction. */
export class CommandKeys {
  readonly #find: Statement<KeyRow, [string, string]>;
  readonly #insert: Statement;

  constructor(db: Database) {
    this.#find = db.query(
      `SELECT lower(hex(fingerprint)) AS fingerprint, command_type, seq_global, events, rest
       FROM command_keys WHERE principal = ? AND idempotency_key = ?`,
    );
    this.#insert = db.query(
      `INSERT INTO command_keys (principal, idempotency_key, fingerprint, command_type, seq_global, events, rest)
       VALUES (?, ?, unhex(?), ?, ?, ?, ?)`,
    );
  }

  find(principal: string, key: string): KeyRow | undefined {
    return this.#find.get(principal, key) ?? undefined;
  }

  insert(principal: string, key: string, row: KeyRow): void {
    this.#insert.run(principal, key, row.fingerprint, row.command_type, row.seq_global, row.events, row.rest);
  }
}
