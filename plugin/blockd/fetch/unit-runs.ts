/** Sets of units as ranges. Ours. */

/** Adjacent numbers as ranges [first, end), ascending. */
export function runsOf(units: Iterable<number>): [number, number][] {
  const runs: [number, number][] = [];
  for (const unit of [...units].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last !== undefined && last[1] === unit) last[1] = unit + 1;
    else runs.push([unit, unit + 1]);
  }
  return runs;
}
