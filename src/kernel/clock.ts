/**
 * The only source of time and of ids. Everything that needs either gets a `Clock` handed in, so tests can
 * hold time still and replay never needs one.
 */
import { uuidv7 } from "uuidv7";

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  /** A fresh UUIDv7, lower case, monotonic within the process (RFC 9562 §5.7). */
  id(): string;
}

export const systemClock: Clock = { now: Date.now, id: uuidv7 };

/** A time on the wire: RFC 3339 UTC with milliseconds (SPEC §1). */
export function wireTime(milliseconds: number): string {
  return new Date(milliseconds).toISOString();
}
