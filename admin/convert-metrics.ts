/** Prometheus metrics of conversion, read from the service at each scrape. */
import { Gauge, type Registry } from 'prom-client';
import type { ConvertService, ConvertStatistics } from '../plugin/convert/service.ts';

type Totals = ConvertStatistics['byMode']['full'];

const BY_MODE: readonly { name: string; help: string; of: (totals: Totals) => number }[] = [
  { name: 'done_total', help: 'Successful conversions since the start', of: (t) => t.count },
  { name: 'source_bytes_total', help: 'Compressed layers of the images of these conversions', of: (t) => t.sourceBytes },
  { name: 'result_bytes_total', help: 'Layers of their results', of: (t) => t.resultBytes },
  { name: 'seconds_total', help: 'How long they took, from the first request to the push of the tag', of: (t) => t.elapsedMs / 1000 },
];

/** Adds the metrics to a registry. */
export function addConvertMetrics(registry: Registry, convert: Pick<ConvertService, 'statistics'>): void {
  const gauge = <L extends string>(name: string, help: string, labels: readonly L[], collect: (this: Gauge<L>) => void): Gauge<L> =>
    new Gauge({ name: `overlaybd_convert_${name}`, help, labelNames: [...labels], registers: [registry], collect });
  for (const { name, help, of } of BY_MODE) {
    gauge(name, help, ['mode'], function () {
      for (const [mode, totals] of Object.entries(convert.statistics().byMode)) this.set({ mode }, of(totals));
    });
  }
  gauge('over_budget_total', 'Of these conversions, those larger or slower than configured', ['mode', 'budget'], function () {
    for (const [mode, { overBudget }] of Object.entries(convert.statistics().byMode)) {
      for (const [budget, count] of Object.entries(overBudget)) this.set({ mode, budget }, count);
    }
  });
  gauge('jobs', 'Conversions that are kept, by state', ['state'], function () {
    for (const [state, count] of Object.entries(convert.statistics().jobs)) this.set({ state }, count);
  });
}
