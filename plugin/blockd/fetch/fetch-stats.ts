/** Counters of the fetch scheduler: plain numbers that only grow, for metrics and benchmarks. */
import type { FetchPriority } from './fetch-types.ts';

/** Upper bounds of the latency histogram; the last count is for everything above. */
export const LATENCY_BOUNDS_MS: readonly number[] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];

export class FetchCounters {
  bytesFetchedDemand = 0;
  bytesFetchedPrefetch = 0;
  bytesFetchedFill = 0;
  /** Range requests made, retries included. */
  requests = 0;
  /** Demands that found something missing. */
  misses = 0;
  retries = 0;
  /** Demands that were given up. */
  failures = 0;
  /** Demands for units that a read-ahead was already bringing. */
  joinedPrefetch = 0;

  addBytes(priority: FetchPriority, bytes: number): void {
    if (priority === 'demand') this.bytesFetchedDemand += bytes;
    else if (priority === 'prefetch') this.bytesFetchedPrefetch += bytes;
    else this.bytesFetchedFill += bytes;
  }
}

/** How long demands waited, from the miss until the bytes were readable. */
export class LatencyHistogram {
  readonly counts: number[] = new Array(LATENCY_BOUNDS_MS.length + 1).fill(0);
  sumMs = 0;

  add(latencyMs: number): void {
    let bucket = 0;
    while (bucket < LATENCY_BOUNDS_MS.length && latencyMs > LATENCY_BOUNDS_MS[bucket]!) bucket += 1;
    this.counts[bucket]! += 1;
    this.sumMs += latencyMs;
  }
}

export interface FetchStats extends Readonly<Omit<FetchCounters, 'addBytes'>> {
  inFlight: number;
  inFlightBytes: number;
  queuedDemand: number;
  queuedPrefetch: number;
  latency: { boundsMs: readonly number[]; counts: readonly number[]; sumMs: number };
  blobs: (Readonly<Omit<FetchCounters, 'addBytes'>> & { blobId: number; digest: string; isWaiting: boolean })[];
}
