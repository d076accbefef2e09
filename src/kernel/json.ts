/**
 * The strict JSON layer in front of every schema (SPEC §10, `malformed_request` of SPEC §3).
 *
 * What it accepts is one JSON text (RFC 8259) that every reader understands alike: no key twice, no byte that
 * is not UTF-8, no half of a surrogate pair, no number from which on doubles skip integers. It runs once for
 * each request, so native code does the parsing and the two passes around it only look for what native code
 * lets through. Left out on purpose: whether the value is an envelope (a lone scalar is fine here), and how
 * long the text may be. A refusal names the rule and never anything from the input.
 */

/** Containers inside one another that are still accepted: `[[1]]` is 2 deep. */
const maxDepth = 32;

const rule = {
  empty: "the text is empty",
  encoding: "the text is not valid UTF-8",
  byteOrderMark: "the text starts with a byte order mark",
  depth: `arrays and objects are nested more than ${maxDepth} deep`,
  syntax: "the text is not valid JSON",
  duplicate: "a key appears twice in one object",
  reservedKey: "a key is one of __proto__, constructor and prototype",
  nul: "a key or a string contains the NUL character",
  surrogate: "the text contains a lone surrogate",
  number: "a number is beyond ±(2^53−1)",
} as const;

type Rule = (typeof rule)[keyof typeof rule];

export type Parsed =
  | { readonly ok: true; readonly value: unknown }
  /** One sentence for the `detail` of a `malformed_request`; it echoes nothing of the input. */
  | { readonly ok: false; readonly detail: string };

/** A BOM is kept, so that it can be refused; the decoder would drop it in silence. */
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Parses one JSON text strictly (SPEC §10).
 *
 * In: the body as bytes, or a text that the transport has decoded (a WebSocket text frame). Out: the value, or
 * the sentence that says which rule it breaks, for `malformed_request`. A text that breaks several gets one of
 * them. Never throws.
 */
export function parseStrict(input: Uint8Array | string): Parsed {
  let text: string;
  if (typeof input === "string") {
    if (!input.isWellFormed()) return refuse(rule.surrogate);
    text = input;
  } else {
    try {
      text = utf8.decode(input);
    } catch {
      return refuse(rule.encoding);
    }
  }
  if (text === "") return refuse(rule.empty);
  if (text.charCodeAt(0) === 0xfeff) return refuse(rule.byteOrderMark);

  const colons = countColons(text);
  if (typeof colons !== "number") return refuse(colons);

  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return refuse(rule.syntax);
  }

  // Text that got here is well formed and has no raw control character in a string: only an escape can
  // bring in a NUL or half a surrogate pair.
  const keys = countKeys(value, text.includes("\\u"));
  if (typeof keys !== "number") return refuse(keys);
  // Every member of the text has one colon; of two members with one name, the parser keeps the last.
  return keys === colons ? { ok: true, value } : refuse(rule.duplicate);
}

function refuse(detail: Rule): Parsed {
  return { ok: false, detail };
}

/** Counts the colons outside strings. The depth is checked before the parser's own recursion meets it. */
function countColons(text: string): number | Rule {
  const end = text.length;
  let colons = 0;
  let depth = 0;
  for (let i = 0; i < end; i++) {
    switch (text.charCodeAt(i)) {
      case 0x22: // "
        i = closingQuote(text, i);
        if (i < 0) return rule.syntax;
        break;
      case 0x3a: // :
        colons++;
        break;
      case 0x5b: // [
      case 0x7b: // {
        if (++depth > maxDepth) return rule.depth;
        break;
      case 0x5d: // ]
      case 0x7d: // }
        depth--;
        break;
    }
  }
  return colons;
}

/** Where the string that opens at `open` ends, or -1. A quote after an odd run of backslashes is inside it. */
function closingQuote(text: string, open: number): number {
  for (let quote = text.indexOf('"', open + 1); quote >= 0; quote = text.indexOf('"', quote + 1)) {
    let start = quote;
    while (text.charCodeAt(start - 1) === 0x5c) start--;
    if ((quote - start) % 2 === 0) return quote;
  }
  return -1;
}

/**
 * Counts the keys of all objects in a parsed value, which is at most `maxDepth` deep. Whole numbers are judged by
 * value, however they are written (`1e22` is one), and every double from 2^53 on is whole.
 */
function countKeys(value: unknown, escapes: boolean): number | Rule {
  if (typeof value === "string") return (escapes && brokenText(value)) || 0;
  if (typeof value === "number") return Math.abs(value) <= Number.MAX_SAFE_INTEGER ? 0 : rule.number;
  if (typeof value !== "object" || value === null) return 0;

  let keys = 0;
  if (Array.isArray(value)) {
    for (const item of value) {
      const inside = countKeys(item, escapes);
      if (typeof inside !== "number") return inside;
      keys += inside;
    }
    return keys;
  }
  const object = value as Record<string, unknown>;
  // for…in, because it is twice as fast here as Object.keys; nothing that JSON.parse makes inherits a key.
  for (const key in object) {
    if (key === "__proto__" || key === "constructor" || key === "prototype") return rule.reservedKey;
    const broken = escapes && brokenText(key);
    if (broken) return broken;
    const inside = countKeys(object[key], escapes);
    if (typeof inside !== "number") return inside;
    keys += inside + 1;
  }
  return keys;
}

function brokenText(text: string): Rule | false {
  if (text.includes("\0")) return rule.nul;
  return text.isWellFormed() ? false : rule.surrogate;
}
