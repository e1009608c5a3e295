/** Inflated spans of gzip layers, least recently used first, bounded in bytes; one cache for all files of a thread. Ours. */
import { LRUCache } from 'lru-cache';

/**
 * 16 MiB a thread: some ten spans of 1 MiB, a few streams that walk a layer side by side. A single larger span (at most 64 MiB) is used
 * once and not kept.
 */
const MAX_SPAN_CACHE_BYTES = 16 * 1024 * 1024;

export class SpanCache {
  private readonly spans: LRUCache<string, Uint8Array>;
  private nextOwner = 1;

  constructor(maxBytes = MAX_SPAN_CACHE_BYTES) {
    this.spans = new LRUCache({ maxSize: maxBytes, maxEntrySize: maxBytes, sizeCalculation: (span) => Math.max(1, span.length) });
  }

  newOwner(): number {
    return this.nextOwner++;
  }

  find(owner: number, entry: number): Uint8Array | undefined {
    return this.spans.get(`${owner} ${entry}`);
  }

  keep(owner: number, entry: number, span: Uint8Array): void {
    this.spans.set(`${owner} ${entry}`, span);
  }
}

/** The cache of this thread. */
export const threadSpanCache = new SpanCache();
