/** Metrics of conversion are those of the service at the time of the scrape. */
import { Registry } from 'prom-client';
import { expect, test } from 'vitest';
import { addConvertMetrics } from '../../../admin/convert-metrics.ts';
import { fakeConvert } from './fake-convert.ts';

test('jobs by state, sizes, time and what overstepped its budget, by mode', async () => {
  const registry = new Registry();
  addConvertMetrics(registry, fakeConvert());
  const text = await registry.metrics();
  expect(text).toContain('overlaybd_convert_jobs{state="SUCCESS"} 3');
  expect(text).toContain('overlaybd_convert_source_bytes_total{mode="full"} 3000');
  expect(text).toContain('overlaybd_convert_result_bytes_total{mode="index-only"} 3300');
  expect(text).toContain('overlaybd_convert_seconds_total{mode="full"} 4.5');
  expect(text).toContain('overlaybd_convert_over_budget_total{mode="full",budget="size"} 1');
});
