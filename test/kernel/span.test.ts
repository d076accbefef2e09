import { expect, test } from "bun:test";
import { spanOf } from "../../src/kernel/span.ts";

test("a length of time in words: two units at most, never longer than it is", () => {
  const said: readonly (readonly [number, string])[] = [
    [0, "0ms"],
    [300, "300ms"],
    [1_000, "1s"],
    [1_500, "1.5s"],
    [9_999, "9.9s"],
    [10_000, "10s"],
    [59_999, "59s"],
    [90_000, "1m30s"],
    [300_000, "5m"],
    [3_600_000, "1h"],
    [28_799_967, "7h59m"],
    [86_400_000, "24h"],
    [90_000_000, "25h"],
    [172_800_000, "2d"],
    [315_360_000_000, "3650d"],
  ];
  expect(said.map(([ms]) => [ms, spanOf(ms)])).toEqual(said.map((each) => [...each]));
});
