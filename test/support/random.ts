/**
 * Chance that can be repeated: mulberry32, small, and the same numbers for the same seed. A test prints its seed, and
 * MP_TEST_SEED gives it back.
 */

/** Numbers from 0 to 1, the same for the same seed. */
export function random(state: number): () => number {
  let a = state;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
