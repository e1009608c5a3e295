/**
 * Checks bytes of an index-only layer's original against the digests that our own indexes carry (plugin/image/turbo/chunk-digests.ts), at
 * each read, before they are served: the original's own digest proves nothing until it is complete.
 */
import assert from 'node:assert';
import { hash } from 'node:crypto';
import { AppError } from '../base/errors.ts';
import { type ChunkDigests, TARGET_DIGEST_BYTES } from '../image/turbo/chunk-digests.ts';
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

/** The first chunk of a whole span that is wrong, from 0; undefined when all are right. */
export function wrongChunkOf(list: ChunkDigests, span: number, bytes: Uint8Array): number | undefined {
  const first = list.firstOfSpan[span]!;
  for (let at = 0, i = 0; at < bytes.length; at += list.chunkBytes, i++) {
    if (!isRight(list, first + i, bytes.subarray(at, at + list.chunkBytes))) return i;
  }
  return undefined;
}

function isRight(list: ChunkDigests, index: number, chunk: Uint8Array): boolean {
  const expected = list.digests.subarray(index * TARGET_DIGEST_BYTES, (index + 1) * TARGET_DIGEST_BYTES);
  return hash('sha256', chunk, 'buffer').equals(expected);
}

/** A plain tar whose chunks are checked when they are read; those that were are kept in the thread's bounded cache. */
export class CheckedTarFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly tar: RandomAccessFile;
  private readonly list: ChunkDigests;
  private readonly origin: { subject: string; blobId: number };
  private readonly cache: SpanCache;
  private readonly owner: number;

  constructor(tar: RandomAccessFile, list: ChunkDigests, origin: { subject: string; blobId: number }, cache = threadSpanCache) {
    this.tar = tar;
    this.list = list;
    this.origin = origin;
    this.cache = cache;
    this.owner = cache.newOwner();
    this.sizeBytes = tar.sizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the file');
    const { chunkBytes } = this.list;
    const end = offsetBytes + lengthBytes;
    let isComplete = true;
    for (let i = Math.floor(offsetBytes / chunkBytes); i * chunkBytes < end; i++) {
      const chunk = this.cache.find(this.owner, i) ?? this.readChunk(i, missing);
      if (chunk === undefined) isComplete = false;
      if (chunk === undefined || !isComplete) continue;
      const from = Math.max(offsetBytes, i * chunkBytes);
      const to = Math.min(end, (i + 1) * chunkBytes);
      target.set(chunk.subarray(from - i * chunkBytes, to - i * chunkBytes), targetOffset + (from - offsetBytes));
    }
    return isComplete;
  }

  private readChunk(i: number, missing: MissingRanges): Uint8Array | undefined {
    const begin = i * this.list.chunkBytes;
    const chunk = Buffer.allocUnsafeSlow(Math.min(this.list.chunkBytes, this.sizeBytes - begin));
    if (!this.tar.readSync(begin, chunk.length, chunk, 0, missing)) return undefined;
    if (!isRight(this.list, i, chunk)) {
      const { subject, blobId } = this.origin;
      const details = { blobId, blobIndex: blobId, offset: begin, length: chunk.length };
      throw new AppError('DataLoss', { op: 'read tar layer', subject, what: `chunk ${i} is not what its index says`, details });
    }
    this.cache.keep(this.owner, i, chunk);
    return chunk;
  }
}
