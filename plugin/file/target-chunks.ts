/**
 * The digests that our own indexes carry of an original layer's decompressed data (plugin/image/turbo/chunk-digests.ts), at work: what
 * is read of the original is checked against them before it is served; the original's own digest proves nothing until it is complete.
 */
import { hash } from 'node:crypto';
import { AppError } from '../base/errors.ts';
import { type ChunkDigests, TARGET_CHUNK_BYTES, TARGET_DIGEST_BYTES } from '../image/turbo/chunk-digests.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { type SpanCache, threadSpanCache } from './span-cache.ts';

/** The same over shared memory, so that all threads read one copy. */
export function shareChunkDigests(list: ChunkDigests): ChunkDigests {
  const { firstOfSpan, digests } = list;
  const shared = {
    ...list,
    firstOfSpan: new Uint32Array(new SharedArrayBuffer(firstOfSpan.byteLength)),
    digests: new Uint8Array(new SharedArrayBuffer(digests.byteLength)),
  };
  shared.firstOfSpan.set(firstOfSpan);
  shared.digests.set(digests);
  return shared;
}

/** Memory that a list takes. */
export function chunkDigestsBytes(list: ChunkDigests | undefined): number {
  return list === undefined ? 0 : list.firstOfSpan.byteLength + list.digests.byteLength;
}

/** The digests of one span's chunks, 32 bytes each; a view into the list. */
export function digestsOfSpan(list: ChunkDigests, span: number): Uint8Array {
  return list.digests.subarray(list.firstOfSpan[span]! * TARGET_DIGEST_BYTES, list.firstOfSpan[span + 1]! * TARGET_DIGEST_BYTES);
}

/** The first chunk of a whole span that is wrong, from 0; undefined when all are right. */
export function wrongChunkOf(digests: Uint8Array, span: Uint8Array): number | undefined {
  for (let at = 0, i = 0; at < span.length; at += TARGET_CHUNK_BYTES, i++) {
    if (!isRight(digests, i, span.subarray(at, at + TARGET_CHUNK_BYTES))) return i;
  }
  return undefined;
}

function isRight(digests: Uint8Array, index: number, chunk: Uint8Array): boolean {
  const expected = digests.subarray(index * TARGET_DIGEST_BYTES, (index + 1) * TARGET_DIGEST_BYTES);
  return hash('sha256', chunk, 'buffer').equals(expected);
}

/** Reads chunks of a file whole, checks each, and keeps those that are right in the thread's bounded cache. */
export class CheckedChunks {
  private readonly file: RandomAccessFile;
  private readonly digests: Uint8Array;
  private readonly origin: { subject: string; blobId: number };
  private readonly cache: SpanCache;
  private readonly owner: number;

  /** Chunk `i` lies at `i` times the chunk size of `file`; `origin` is what errors name. */
  constructor(file: RandomAccessFile, list: ChunkDigests, origin: { subject: string; blobId: number }, cache = threadSpanCache) {
    this.file = file;
    this.digests = list.digests;
    this.origin = origin;
    this.cache = cache;
    this.owner = cache.newOwner();
  }

  /**
   * The bytes of chunk `i`, which has `lengthBytes` (borrowed), or undefined after saying what is missing. Throws DataLoss when they are
   * not those of the list.
   */
  read(i: number, lengthBytes: number, missing: MissingRanges): Uint8Array | undefined {
    const known = this.cache.find(this.owner, i);
    if (known !== undefined) return known;
    const chunk = Buffer.allocUnsafeSlow(lengthBytes);
    const offset = i * TARGET_CHUNK_BYTES;
    if (!this.file.readSync(offset, lengthBytes, chunk, 0, missing)) return undefined;
    if (!isRight(this.digests, i, chunk)) {
      const { subject, blobId } = this.origin;
      const details = { blobId, blobIndex: blobId, offset, length: lengthBytes };
      throw new AppError('DataLoss', { op: 'read index layer', subject, what: `chunk ${i} is not what its index says`, details });
    }
    this.cache.keep(this.owner, i, chunk);
    return chunk;
  }
}
