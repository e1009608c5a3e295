/** What conversions cost is compared with what was configured (R9, R10), and summed up for the metrics. */
import { expect, test } from 'vitest';
import { MeasureTotals, overBudget } from '../../../../../plugin/convert/jobs/measures.ts';

const FULL = { sizePercent: 130, msPerGb: 25_000 };
const GB = 1_000_000_000;

test('within the budget nothing is said; what oversteps it is told with both numbers', () => {
  expect(overBudget({ sourceBytes: GB, resultBytes: 1.3 * GB, elapsedMs: 25_000 }, FULL)).toEqual([]);
  const over = overBudget({ sourceBytes: GB, resultBytes: 1.4 * GB, elapsedMs: 36_000 }, FULL);
  expect(over.map(({ kind }) => kind)).toEqual(['size', 'time']);
  expect(over[0]!.what).toMatch(/140\.0 % of the original's .*; the budget is 130 %/);
  expect(over[1]!.what).toMatch(/^36\.0 s for .*; the budget is 25 s for a GB and 10 s$/);
});

test('images of nearly nothing are allowed what every image costs', () => {
  expect(overBudget({ sourceBytes: 0, resultBytes: 900_000, elapsedMs: 9_000 }, FULL)).toEqual([]);
  expect(overBudget({ sourceBytes: 0, resultBytes: 2_000_000, elapsedMs: 11_000 }, FULL)).toHaveLength(2);
});

test('totals are kept by mode', () => {
  const totals = new MeasureTotals();
  const measures = { sourceBytes: 100, resultBytes: 10, elapsedMs: 5 };
  totals.add('full', measures, []);
  totals.add('full', measures, [{ kind: 'size' }]);
  expect(totals.byMode.full).toEqual({ count: 2, sourceBytes: 200, resultBytes: 20, elapsedMs: 10, overBudget: { size: 1, time: 0 } });
  expect(totals.byMode['index-only'].count).toBe(0);
});
