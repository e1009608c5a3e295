/** Admin services with fixed answers, for tests of the API and of obdctl. */
import type { AdminServices, DeviceRow, EventRow, SnapshotRow } from '../../../admin/services.ts';
import { AppError } from '../../../plugin/base/errors.ts';

const at = '2026-01-31T12:00:00.000Z';

export const SNAPSHOTS: readonly SnapshotRow[] = ['a', 'b', 'c', 'd'].map((key, index) => ({
  key: `default/${key}`,
  kind: index === 3 ? 'active' : 'committed',
  parent: index === 0 ? null : `default/${'abc'[index - 1]}`,
  layer: index < 2 ? 'remote' : 'ordinary',
  image: 'registry.example/app:1',
  layerDigest: null,
  createdAt: at,
  updatedAt: at,
  deviceId: null,
  decision: { isLazy: index < 2, reason: 'layer 3 is gzip without an index' },
  broken: key === 'c' ? { reason: 'directory 3 is missing', since: at } : null,
}));

export const DEVICE: DeviceRow = {
  id: '0123456789abcdef0123456789abcdef',
  image: 'registry.example/app:1\u001b[31m',
  state: 'attached',
  detail: null,
  devicePath: '/run/overlaybd-sidecar/devices/1',
  sizeBytes: 2 ** 30,
  layerCount: 3,
  layerBytes: 2 ** 20,
  presentBytes: 65_536,
  accessedBytes: 4096,
  readCount: 10,
  readBytes: 40_960,
  hitCount: 8,
  missCount: 2,
  stallCount: 1,
  waitingCount: 1,
  failureCount: 0,
};

export const EVENTS: readonly EventRow[] = [1, 2, 3].map((second) => ({
  at: `2026-01-31T12:00:0${second}.000Z`,
  source: 'blockd',
  severity: 'warning',
  kind: 'store-degraded',
  subject: 'store',
  message: `event ${second}`,
}));

export function fakeServices(overrides: Partial<AdminServices> = {}): AdminServices {
  return {
    status: async () => ({
      version: '0.1.0',
      startedAt: at,
      isReady: true,
      degraded: [],
      processes: [{ name: 'blockd', pid: 7, state: 'running' }],
      rootDirectory: '/var/lib/x',
      snapshotterSocket: '/run/x.sock',
      counts: { snapshots: 4, brokenSnapshots: 1, devices: 1, images: 1 },
    }),
    snapshots: async () => SNAPSHOTS,
    devices: async () => [DEVICE],
    store: async () => ({
      budgetBytes: 1000,
      usedBytes: 500,
      reservedBytes: 0,
      memoryBytes: 0,
      blobCount: 3,
      degradedBy: null,
    }),
    storeBlobs: async (limit) => {
      const blobs = [
        { blob: `sha256:${'a'.repeat(64)}`, diskBytes: 300, use: 'idle' as const },
        { blob: `sha256:${'b'.repeat(64)}`, diskBytes: 200, use: 'open' as const },
      ];
      return { blobs: blobs.slice(0, limit), totalCount: blobs.length };
    },
    evict: async (freeBytes) => ({ freedBytes: Math.min(freeBytes, 300), evictedBlobs: 1, usedBytes: 200 }),
    traffic: async () => ({
      readCount: 10,
      readBytes: 40_960,
      missCount: 2,
      waitingCount: 1,
      requestCount: 3,
      retryCount: 1,
      failureCount: 0,
      fetchedBytes: { demand: 65_536, prefetch: 1024, fill: 0 },
    }),
    events: async (limit) => EVENTS.slice(-limit),
    materialize: async (reference) => {
      if (!reference.includes('/')) {
        throw new AppError('NotFound', { op: 'materialize', subject: reference, what: 'no such image', details: { limit: 1 } });
      }
      return { reference, manifestDigest: `sha256:${'0'.repeat(64)}`, layerCount: 2, totalBytes: 2048, fetchedBytes: 1024 };
    },
    ...overrides,
  };
}
