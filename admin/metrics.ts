/** Prometheus metrics: gauges read from the services at each scrape, and those of the process. Cardinality is bounded by the devices. */
import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { CACHE_STATES, type CacheService } from '../plugin/cache/service.ts';
import type { ConvertService } from '../plugin/convert/service.ts';
import { addConvertMetrics } from './convert-metrics.ts';
import type { AdminServices, DeviceRow } from './services.ts';

const DEVICE_METRICS: readonly { name: string; help: string; of: (device: DeviceRow) => number }[] = [
  { name: 'layer_bytes', help: 'Bytes of the layers of a device', of: (d) => d.layerBytes },
  { name: 'present_bytes', help: 'Bytes of the layers that are local', of: (d) => d.presentBytes },
  { name: 'reads_total', help: 'Reads that the kernel asked for', of: (d) => d.readCount },
  { name: 'read_bytes_total', help: 'Bytes of these reads', of: (d) => d.readBytes },
  { name: 'hits_total', help: 'Reads answered from local bytes', of: (d) => d.hitCount },
  { name: 'stalls_total', help: 'Reads that waited for a second or longer', of: (d) => d.stallCount },
  { name: 'misses_total', help: 'Reads that needed the registry', of: (d) => d.missCount },
  { name: 'failures_total', help: 'Reads that ended in an I/O error', of: (d) => d.failureCount },
  { name: 'waiting_reads', help: 'Reads that wait for a registry now', of: (d) => d.waitingCount },
];

export interface Metrics {
  readonly contentType: string;
  /** Reads the services and writes the exposition text; a service that does not answer is shown as `overlaybd_up{part}` 0. */
  render(signal: AbortSignal): Promise<string>;
}

/** Totals are read from the parts and not counted here, which the library's counters cannot express: they are set as gauges and named as they are. */
const asCounters = (text: string): string => text.replace(/^# TYPE (\S+_total) gauge$/gm, '# TYPE $1 counter');

export function createMetrics(services: AdminServices, caches: CacheService, convert: ConvertService): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: 'overlaybd_sidecar_' });
  addConvertMetrics(registry, convert);
  const registers = [registry];
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []): Gauge<L> =>
    new Gauge({ name: `overlaybd_${name}`, help, labelNames: [...labelNames], registers });

  const up = gauge('up', 'Whether a part of the service answers', ['part']);
  const snapshots = gauge('snapshots', 'Snapshots by state', ['state']);
  const devices = gauge('devices', 'Block devices by state', ['state']);
  const storeBytes = gauge('store_bytes', 'Bytes of the local store by kind', ['kind']);
  const storeBlobs = gauge('store_blobs', 'Blobs in the local store');
  const degraded = gauge('store_degraded', '1 while fetched bytes are not kept on disk');
  const reads = gauge('reads_total', 'Reads that the kernel asked for since blockd started');
  const readBytes = gauge('read_bytes_total', 'Bytes that the kernel asked for since blockd started');
  const misses = gauge('misses_total', 'Reads that found something missing since blockd started');
  const failures = gauge('read_failures_total', 'Reads that were given up since blockd started');
  const waiting = gauge('waiting_reads', 'Reads that wait for a registry now');
  const requests = gauge('registry_requests_total', 'Range requests sent since blockd started, retries included');
  const retries = gauge('registry_retries_total', 'Range requests sent again since blockd started');
  const fetched = gauge('fetched_bytes_total', 'Bytes received from registries since blockd started', ['for']);
  const cacheCount = gauge('image_caches', 'Image caches by owner and quota', ['owner', 'kind']);
  const cacheStates = gauge('image_cache_states', 'Image caches by state', ['state']);
  const cacheBytes = gauge('image_cache_bytes', 'Bytes of image caches by kind', ['kind']);
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
    storeBytes.set({ kind: 'memory' }, store.memoryBytes);
    storeBlobs.set(store.blobCount);
    degraded.set(store.degradedBy === null ? 0 : 1);
  };
  const readTraffic = async (signal: AbortSignal): Promise<void> => {
    const traffic = await services.traffic(signal);
    reads.set(traffic.readCount);
    readBytes.set(traffic.readBytes);
    misses.set(traffic.missCount);
    failures.set(traffic.failureCount);
    waiting.set(traffic.waitingCount);
    requests.set(traffic.requestCount);
    retries.set(traffic.retryCount);
    for (const [reason, value] of Object.entries(traffic.fetchedBytes)) fetched.set({ for: reason }, value);
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

  const readCaches = async (): Promise<void> => {
    const usage = caches.usage();
    cacheCount.set({ owner: 'user', kind: 'used' }, usage.usedImageCacheCount);
    cacheCount.set({ owner: 'user', kind: 'max' }, usage.maxImageCacheCount);
    cacheCount.set({ owner: 'system', kind: 'used' }, usage.usedAutoImageCacheCount);
    cacheCount.set({ owner: 'system', kind: 'max' }, usage.maxAutoImageCacheCount);
    for (const state of CACHE_STATES) cacheStates.set({ state }, caches.list({ status: state }, { limit: 1 }).totalCount);
    cacheBytes.set({ kind: 'budget' }, usage.budgetBytes);
    cacheBytes.set({ kind: 'committed' }, usage.committedBytes);
  };

  return {
    contentType: registry.contentType,
    async render(signal) {
      const parts = { snapshots: readStatus, store: readStore, devices: readDevices, traffic: readTraffic, caches: readCaches };
      const results = await Promise.allSettled(Object.values(parts).map((read) => read(signal)));
      for (const [index, part] of Object.keys(parts).entries()) up.set({ part }, results[index]?.status === 'fulfilled' ? 1 : 0);
      return asCounters(await registry.metrics());
    },
  };
}
