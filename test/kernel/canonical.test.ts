import { describe, expect, test } from "bun:test";
import canonicalize from "canonicalize";
import fc from "fast-check";
import { canonical } from "../../src/kernel/canonical.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/kernel/canonical.test.ts: MP_TEST_SEED=${seed}`);

/** Names that are sorted, kept or lost in ways of their own. */
const name = fc.oneof(
  fc.string({ unit: "grapheme" }),
  fc.constantFrom(
    "",
    "0",
    "1",
    "9",
    "10",
    "4294967295",
    "__proto__",
    "toJSON",
    "a",
    "A",
    "é",
    "𝒜",
    "\uffee",
    "\\ud800",
  ),
);
const { value } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4 },
    fc.constantFrom(null, true, false, undefined),
    fc.double({ noNaN: true, noDefaultInfinity: true }),
    fc.integer(),
    name,
    fc.array(tie("value"), { maxLength: 3 }),
    fc.array(fc.tuple(name, tie("value")), { maxLength: 5 }).map((entries) => Object.fromEntries(entries)),
  ),
}));

describe("canonical JSON", () => {
  test("is what the library makes, whatever is in it", () => {
    fc.assert(
      fc.property(value, (each) => {
        expect(canonical({ each })).toBe(canonicalize({ each })!);
      }),
      { seed, numRuns: 3_000 },
    );
  });

  test("does not depend on the order in which members were added, and leaves the value as it was", () => {
    const sent = { b: [{ z: 1, y: { d: 1, c: 2 } }], a: 1, "10": 1, "9": 2 };
    const before = JSON.stringify(sent);
    expect(canonical(sent)).toBe('{"10":1,"9":2,"a":1,"b":[{"y":{"c":2,"d":1},"z":1}]}');
    expect(JSON.stringify(sent)).toBe(before);
  });

  test("refuses half a surrogate pair and what is no number, and nothing that looks like it", () => {
    expect(() => canonical({ a: [Number.NaN] })).toThrow();
    expect(() => canonical({ a: "\ud800" })).toThrow();
    expect(() => canonical({ "\udc00": 1 })).toThrow();
    expect(canonical({ a: "\\ud800 𝒜" })).toBe('{"a":"\\\\ud800 𝒜"}');
  });
});
