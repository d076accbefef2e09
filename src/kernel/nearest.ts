/**
 * What somebody may have meant by a word that is not known (SPEC §3, §12): for hints, on the wire and on the command line.
 *
 * Loads nothing, so that a mistyped word costs no more than a right one.
 */

/** The known words nearest to a mistyped one, best first, at most three: for hints. */
export function nearest(wanted: string, known: Iterable<string>): string[] {
  return [...known]
    .map((name) => ({ name, away: distance(wanted, name) }))
    .filter(
      ({ name, away }) => away < name.length && away <= (name.length < 10 ? 2 : Math.floor(name.length / 3)),
    )
    .sort((a, b) => a.away - b.away || (a.name < b.name ? -1 : 1))
    .slice(0, 3)
    .map(({ name }) => name);
}

/** Levenshtein distance; the inputs are short: types, whose length the envelope bounds, and words of a command line. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}
