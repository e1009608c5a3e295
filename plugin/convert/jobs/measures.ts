/**
 * What conversions cost: size beside the original and time for its size, against what was configured. Sources: R9 (full about 130 %,
 * index-only about 3 %), R10 (25 s and 3 s for a 1 GB image).
 */
import { formatBytes, MIB } from '../../base/units.ts';
import type { Mode } from '../publish/tag-names.ts';

const GB = 1e9;

/** Of one successful conversion. */
export interface Measures {
  /** Compressed layers of the images that were converted. */
  sourceBytes: number;
  /** Layers of the results, those that were there already too. */
  resultBytes: number;
  /** From the first request to the push of the tag. */
  elapsedMs: number;
}

export interface Budget {
  /** Of the original's size. */
  sizePercent: number;
  /** Milliseconds for each GB (10⁹ bytes) of the original. */
  msPerGb: number;
}

/** Headers, indexes and superblocks cost this even an empty image. */
const FREE_BYTES = 1 * MIB;
/** Starting the process and a slow registry's answers; small images take nothing else. */
const FREE_MS = 10_000;

export type BudgetKind = 'size' | 'time';

/** What was overstepped, as a sentence each; empty when nothing was. */
export function overBudget({ sourceBytes, resultBytes, elapsedMs }: Measures, budget: Budget): { kind: BudgetKind; what: string }[] {
  const over: { kind: BudgetKind; what: string }[] = [];
  if (resultBytes > FREE_BYTES + (sourceBytes * budget.sizePercent) / 100) {
    const share = `${((100 * resultBytes) / sourceBytes).toFixed(1)} % of the original's ${formatBytes(sourceBytes)}`;
    over.push({ kind: 'size', what: `the result has ${formatBytes(resultBytes)}, ${share}; the budget is ${budget.sizePercent} %` });
  }
  if (elapsedMs > FREE_MS + (sourceBytes / GB) * budget.msPerGb) {
    const what = `${(elapsedMs / 1000).toFixed(1)} s for ${formatBytes(sourceBytes)}; the budget is ${budget.msPerGb / 1000} s for a GB and ${FREE_MS / 1000} s`;
    over.push({ kind: 'time', what });
  }
  return over;
}

/** Sums over the successful conversions of one mode since the start. */
export interface ModeTotals extends Measures {
  count: number;
  overBudget: Record<BudgetKind, number>;
}

const none = (): ModeTotals => ({ count: 0, sourceBytes: 0, resultBytes: 0, elapsedMs: 0, overBudget: { size: 0, time: 0 } });

/** Counts conversions for the metrics. */
export class MeasureTotals {
  readonly byMode: Readonly<Record<Mode, ModeTotals>> = { full: none(), 'index-only': none() };

  add(mode: Mode, measures: Measures, over: readonly { kind: BudgetKind }[]): void {
    const totals = this.byMode[mode];
    totals.count += 1;
    totals.sourceBytes += measures.sourceBytes;
    totals.resultBytes += measures.resultBytes;
    totals.elapsedMs += measures.elapsedMs;
    for (const { kind } of over) totals.overBudget[kind] += 1;
  }
}
