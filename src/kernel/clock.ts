/**
 * The only source of time and of ids. Everything that needs either gets a `Clock` handed in, so tests can
 * hold time still and replay never needs one.
 */
import { V7Generator } from "uuidv7";

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  /** A fresh UUIDv7, lower case, monotonic within the process (RFC 9562 §5.7). */
  id(): string;
}

/** The runtime makes ids four times as fast as the library, which is for those that must grow for ever (`growingIds`). */
export const systemClock: Clock = { now: Date.now, id: () => Bun.randomUUIDv7() };

/** A time on the wire: RFC 3339 UTC with milliseconds (SPEC §1). */
export function wireTime(milliseconds: number): string {
  return new Date(milliseconds).toISOString();
}

/** Milliseconds since the epoch in a UUIDv7 (RFC 9562 §5.7). */
export function timeOfId(id: string): number {
  return Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16);
}

/**
 * UUIDv7s that only grow, over restarts and whatever the clock does: a clock that was set back is overruled.
 * @param after the last id that was given out before, if any
 * @returns a function from the time now (ms) to the next id
 */
export function growingIds(after: string | undefined): (now: number) => string {
  const generator = new V7Generator();
  generator.setRollbackAllowance(2 ** 48 - 1);
  const floor = after === undefined ? 0 : timeOfId(after) + 1;
  return (now) => generator.generateOrResetWithTs(Math.max(now, floor)).toString();
}

/** A new trace id: 32 hexadecimal digits. */
export function freshTrace(): string {
  return crypto.randomUUID().replaceAll("-", "");
}
