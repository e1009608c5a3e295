/** Ranges of several blobs made local for a reader, in portions that the scheduler takes. */
import assert from 'node:assert/strict';
import { MIB } from '../../base/units.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import type { FetchScheduler } from './fetch-scheduler.ts';

/** Asked of the scheduler at once; its own limit is twice that. */
const BATCH_BYTES = 32 * MIB;

export interface BlobRange {
  blobId: number;
  offsetBytes: number;
  lengthBytes: number;
}

/** Resolves when all ranges are local; every range is of one of `handles`. Rejects like {@link FetchScheduler.ensure}. */
export async function fetchRanges(
  scheduler: FetchScheduler,
  handles: readonly BlobHandle[],
  ranges: readonly BlobRange[],
  signal: AbortSignal,
): Promise<void> {
  const byBlob = Map.groupBy(ranges, (range) => range.blobId);
  await Promise.all(
    [...byBlob].map(async ([blobId, wanted]) => {
      const handle = handles.find((candidate) => candidate.blobId === blobId);
      assert(handle !== undefined, 'a read misses only blobs of its device');
      for (const some of batches(wanted)) await scheduler.ensure(handle, some, 'demand', signal);
    }),
  );
}

/** Ranges in portions that the scheduler takes; the tables of a large layer are more than one. */
function* batches(ranges: readonly BlobRange[]): Generator<BlobRange[]> {
  let batch: BlobRange[] = [];
  let bytes = 0;
  for (const range of ranges) {
    for (let at = 0; at < range.lengthBytes; at += BATCH_BYTES / 2) {
      const lengthBytes = Math.min(BATCH_BYTES / 2, range.lengthBytes - at);
      if (bytes + lengthBytes > BATCH_BYTES) {
        yield batch;
        batch = [];
        bytes = 0;
      }
      batch.push({ blobId: range.blobId, offsetBytes: range.offsetBytes + at, lengthBytes });
      bytes += lengthBytes;
    }
  }
  if (batch.length > 0) yield batch;
}
