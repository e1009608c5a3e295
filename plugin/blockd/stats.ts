/** Numbers of the data plane, as the control plane and its metrics see them. */
import type { StoreUsage } from '../file/store/chunk-store.ts';
import type { PoolStats } from '../fuse/pool.ts';
import type { FetchStats } from './fetch/fetch-stats.ts';

export interface DataPlaneStats {
  pid: number;
  upMs: number;
  fuse: PoolStats;
  store: StoreUsage;
  fetch: FetchStats;
  /** Reads that wait for bytes now. */
  waitingReads: number;
  residentBytes: number;
}
