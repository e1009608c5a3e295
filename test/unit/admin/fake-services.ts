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
  sizeBytes: 2 ** 30,
  layerCount: 3,
  mountPoint: '/run/overlaybd-sidecar/m/1',
  path: 'fuse',
  userCount: 2,
  stats: { reads: 10, readBytes: 40_960, hits: 8, misses: 2, fetches: 1, fetchedBytes: 65_536, waiting: 0, failures: 0 },
};

export const EVENTS: readonly EventRow[] = [1, 2, 3].map((sequence) => ({
  sequence,
  at,
  severity: 'warning',
  kind: 'store.disk-full',
  subject: 'store',
  message: `event ${sequence}`,
}));

export function fakeServices(overrides: Partial<AdminServices> = {}): AdminServices {
  return {
    status: async () => ({
      version: '0.1.0',
      startedAt: at,
      isReady: true,
      degraded: [],
      processes: [{ name: 'blockd', pid: 7, state: 'running', restarts: 1 }],
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
      pinnedBytes: 100,
      blobCount: 3,
      completeBlobCount: 1,
      evictionCount: 0,
      evictedBytes: 0,
      isDiskFull: false,
      memoryBytes: 0,
    }),
    events: () => EVENTS,
    materialize: async (reference) => {
      if (!reference.includes('/')) {
        throw new AppError('NotFound', { op: 'materialize', subject: reference, what: 'no such image', details: { limit: 1 } });
      }
      return { reference, manifestDigest: `sha256:${'0'.repeat(64)}`, layerCount: 2, totalBytes: 2048, fetchedBytes: 1024 };
    },
    ...overrides,
  };
}
