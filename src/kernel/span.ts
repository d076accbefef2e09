/**
 * A length of time as people write it, `7h59m`: what the command line takes (cli/parse.ts reads it) and what messages say.
 *
 * Two units at most, the smaller one rounded down: a wait is never told longer than it is.
 */

/** From the largest to the smallest, in milliseconds. */
export const UNITS = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "m"],
  [1_000, "s"],
  [1, "ms"],
] as const;

/**
 * A length of time in words: `500ms`, `1.5s`, `10s`, `1m30s`, `7h59m`, `24h`, `3d`.
 * @param ms milliseconds, 0 or more
 */
export function spanOf(ms: number): string {
  if (ms >= 1_000 && ms < 10_000 && ms % 1_000 !== 0) return `${Math.floor(ms / 100) / 10}s`;
  // A day alone is 24 hours: limits of a day are told so.
  const first = UNITS.findIndex(([unit], at) => ms >= (at === 0 ? 2 * unit : unit));
  if (first < 0) return `${Math.floor(ms)}ms`;
  const [large, largest] = UNITS[first]!;
  const next = UNITS[first + 1];
  const rest = next && large >= 60_000 ? Math.floor((ms % large) / next[0]) : 0;
  return `${Math.floor(ms / large)}${largest}${rest > 0 ? `${rest}${next![1]}` : ""}`;
}
