/** "Did you mean": the known name closest to a misspelt one. Levenshtein distance, two rows. */

/** Names longer than this are no typing mistakes; bounds the work to 64 × 64 steps a candidate. */
const MAX_NAME = 64;

function distance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(replaced, previous[j]! + 1, row[j - 1]! + 1));
    }
    previous = row;
  }
  return previous[b.length]!;
}

/**
 * The candidate that differs least from `name`, compared whole and by its last part (a key may stand in the wrong section);
 * undefined when none shares at least two thirds of its letters.
 */
export function nearestName(name: string, candidates: readonly string[]): string | undefined {
  if (name.length > MAX_NAME) return undefined;
  const last = (text: string): string => text.slice(text.lastIndexOf('.') + 1);
  let best: { candidate: string; score: number } | undefined;
  for (const candidate of candidates) {
    const whole = distance(name, candidate) / Math.max(name.length, candidate.length);
    const part = distance(last(name), last(candidate)) / Math.max(last(name).length, last(candidate).length);
    // The section counts a little, so that equal keys of two sections prefer the near one.
    const score = Math.min(whole, part + 0.02);
    if (score <= 1 / 3 && (best === undefined || score < best.score)) best = { candidate, score };
  }
  return best?.candidate;
}
