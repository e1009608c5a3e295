/** Prometheus metrics: gauges read from the services at each scrape, and those of the process. Cardinality is bounded by the devices. */
import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import type { AdminServices, DeviceRow } from './services.ts';

const DEVICE_METRICS: readonly { name: string; help: string; of: (device: DeviceRow) => number }[] = [
  { name: 'reads_total', help: 'Reads the kernel asked for', of: (d) => d.stats.reads },
  { name: 'read_bytes_total', help: 'Bytes the kernel asked for', of: (d) => d.stats.readBytes },
  { name: 'misses_total', help: 'Reads that needed the registry', of: (d) => d.stats.misses },
  { name: 'fetches_total', help: 'Range requests sent', of: (d) => d.stats.fetches },
  { name: 'fetched_bytes_total', help: 'Bytes received from registries', of: (d) => d.stats.fetchedBytes },
  { name: 'failures_total', help: 'Reads that ended in an I/O error', of: (d) => d.stats.failures },
  { name: 'waiting_reads', help: 'Reads that wait for a registry now', of: (d) => d.stats.waiting },
];

export interface Metrics {
  readonly contentType: string;
  /** Reads the services and writes the exposition text; a service that does not answer is shown as `overlaybd_up{part}` 0. */
  render(signal: AbortSignal): Promise<string>;
}

export function createMetrics(services: AdminServices): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: 'overlaybd_sidecar_' });
  const registers = [registry];
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []): Gauge<L> =>
    new Gauge({ name: `overlaybd_${name}`, help, labelNames: [...labelNames], registers });

  const up = gauge('up', 'Whether a part of the service answers', ['part']);
  const snapshots = gauge('snapshots', 'Snapshots by state', ['state']);
  const devices = gauge('devices', 'Block devices by state', ['state']);
  const storeBytes = gauge('store_bytes', 'Bytes of the local store by kind', ['kind']);
  const storeBlobs = gauge('store_blobs', 'Blobs in the local store');
  const diskFull = gauge('store_disk_full', '1 while the disk refuses writes of the store');
  const evicted = gauge('store_evicted_bytes_total', 'Bytes evicted from the store since the start');
  const perDevice = DEVICE_METRICS.map(({ name, help, of }) => ({ of, metric: gauge(`device_${name}`, help, ['device', 'image']) }));

  const readStatus = async (signal: AbortSignal): Promise<void> => {
    const { counts } = await services.status(signal);
    snapshots.set({ state: 'usable' }, counts.snapshots - counts.brokenSnapshots);
    snapshots.set({ state: 'broken' }, counts.brokenSnapshots);
  };
  const readStore = async (signal: AbortSignal): Promise<void> => {
    const store = await services.store(signal);
    storeBytes.set({ kind: 'budget' }, store.budgetBytes);
    storeBytes.set({ kind: 'used' }, store.usedBytes);
    storeBytes.set({ kind: 'reserved' }, store.reservedBytes);
    storeBytes.set({ kind: 'pinned' }, store.pinnedBytes);
    storeBytes.set({ kind: 'memory' }, store.memoryBytes);
    storeBlobs.set(store.blobCount);
    diskFull.set(store.isDiskFull ? 1 : 0);
    evicted.set(store.evictedBytes);
  };
  const readDevices = async (signal: AbortSignal): Promise<void> => {
    const rows = await services.devices(signal);
    devices.reset();
    for (const state of ['opening', 'attached', 'releasing', 'failed'] as const) {
      devices.set({ state }, rows.filter((row) => row.state === state).length);
    }
    for (const { metric, of } of perDevice) {
      metric.reset();
      for (const row of rows) metric.set({ device: row.id, image: row.image }, of(row));
    }
  };

  return {
    contentType: registry.contentType,
    async render(signal) {
      const parts = { snapshots: readStatus, store: readStore, devices: readDevices };
      const results = await Promise.allSettled(Object.values(parts).map((read) => read(signal)));
      for (const [index, part] of Object.keys(parts).entries()) up.set({ part }, results[index]?.status === 'fulfilled' ? 1 : 0);
      return registry.metrics();
    },
  };
}
