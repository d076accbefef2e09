/**
 * Canonical JSON (RFC 8785): the bytes that events and fingerprints are hashed as (SPEC §4, §7).
 *
 * Always holds: the same text as the library `canonicalize` makes, to which tests hold it, in a tenth of the time. The
 * language writes numbers and strings as RFC 8785 wants them; what it leaves open is the order of the members, and most
 * values here are made in order. What it would not do right is left to the library.
 */
import canonicalize from "canonicalize";

/**
 * The canonical text of a JSON value. Members that are undefined are left out.
 * @throws Error for half a surrogate pair, and for a number that JSON has no word for
 */
export function canonical(value: object): string {
  let sorted: unknown = value;
  if (!isInOrder(value)) {
    sorted = inOrder(value);
    // Names that are whole numbers stand first in any object of the language, whatever the order they are added in.
    if (!isInOrder(sorted)) return canonicalize(value)!;
  }
  const text = JSON.stringify(sorted);
  // Half a surrogate pair was escaped; the library refuses it.
  return text.includes("\\ud") ? canonicalize(value)! : text;
}

/** Whether the language writes it in canonical form. */
function isInOrder(value: unknown): boolean {
  if (typeof value === "number") return Number.isFinite(value);
  if (typeof value !== "object" || value === null) return true;
  if (Array.isArray(value)) return value.every(isInOrder);
  let before = "";
  for (const name in value) {
    if (name < before || !isInOrder((value as Record<string, unknown>)[name])) return false;
    before = name;
  }
  return true;
}

/** The value with the members of its objects in order; those parts that are so already are taken as they are. */
function inOrder(value: unknown): unknown {
  if (typeof value !== "object" || isInOrder(value)) return value;
  if (Array.isArray(value)) return value.map(inOrder);
  const entries = Object.entries(value as object).map(([name, each]) => [name, inOrder(each)] as const);
  // Names are compared by UTF-16 code units. fromEntries, because an assignment to `__proto__` would make no member.
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}
