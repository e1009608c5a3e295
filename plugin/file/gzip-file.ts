/**
 * The decompressed view of a gzip layer through its random-access index, for readers without a store to keep spans in (span-file.ts has
 * one): a read inflates the spans it touches; inflated spans are kept in the thread's bounded cache.
 */
import assert from 'node:assert';
import { AppError } from '../base/errors.ts';
import { findGzipEntry } from '../image/gzip/gzip-index.ts';
import { type GzipTables, gzipSpan, inflateSpan } from '../image/gzip/gzip-span.ts';
import type { RawInflater } from '../image/gzip/inflater.ts';
import type { ChunkDigests } from '../image/turbo/chunk-digests.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { type SpanCache, threadSpanCache } from './span-cache.ts';
import { digestsOfSpan, wrongChunkOf } from './target-chunks.ts';

export interface GzipOrigin {
  /** Named in errors: the digest of the gzip layer. */
  subject: string;
  /** Of the gzip blob. */
  blobId: number;
  /** Of the blob that holds the index. */
  indexBlobId: number;
}

export class GzipFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly gzip: RandomAccessFile;
  private readonly index: RandomAccessFile;
  private readonly tables: GzipTables;
  private readonly inflater: RawInflater;
  private readonly origin: GzipOrigin;
  private readonly chunks: ChunkDigests | undefined;
  private readonly cache: SpanCache;
  private readonly owner: number;

  /** `index` is the index file itself: windows are read from it when a span is inflated. With `chunks` each span is checked. */
  constructor(
    gzip: RandomAccessFile,
    index: RandomAccessFile,
    tables: GzipTables,
    inflater: RawInflater,
    origin: GzipOrigin,
    chunks?: ChunkDigests,
    cache = threadSpanCache,
  ) {
    this.gzip = gzip;
    this.index = index;
    this.tables = tables;
    this.inflater = inflater;
    this.origin = origin;
    this.chunks = chunks;
    this.cache = cache;
    this.owner = cache.newOwner();
    this.sizeBytes = tables.originalSizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the file');
    const { entries } = this.tables;
    const end = offsetBytes + lengthBytes;
    let isComplete = true;
    let position = offsetBytes;
    for (let i = findGzipEntry(entries, offsetBytes); position < end; i++) {
      const { plainOffset, plainBytes } = gzipSpan(this.tables, this.gzip.sizeBytes, i);
      const to = Math.min(end, plainOffset + plainBytes);
      if (to <= position) continue;
      const span = this.cache.find(this.owner, i) ?? this.readSpan(i, missing);
      if (span === undefined) isComplete = false;
      else if (isComplete) target.set(span.subarray(position - plainOffset, to - plainOffset), targetOffset + (position - offsetBytes));
      position = to;
    }
    return isComplete;
  }

  /** Inflates span `i`, or says what is missing for it. */
  private readSpan(i: number, missing: MissingRanges): Uint8Array | undefined {
    const span = gzipSpan(this.tables, this.gzip.sizeBytes, i);
    const stored = Buffer.allocUnsafeSlow(span.storedBytes);
    const window = Buffer.allocUnsafe(span.windowBytes);
    const hasData = this.gzip.readSync(span.storedOffset, stored.length, stored, 0, missing);
    const hasWindow = this.index.readSync(span.windowOffset, window.length, window, 0, missing);
    if (!hasData || !hasWindow) return undefined;
    const plain = Buffer.allocUnsafeSlow(span.plainBytes);
    const { isCompressed } = this.tables;
    const fault = inflateSpan(this.inflater, { bits: span.bits, isCompressed }, { stored, window }, plain);
    const { blobId, indexBlobId } = this.origin;
    if (fault?.part === 'index') throw this.corrupt(`span ${i}: ${fault.what}`, indexBlobId, span.windowOffset, span.windowBytes);
    const wrong = this.chunks === undefined ? undefined : wrongChunkOf(digestsOfSpan(this.chunks, i), plain);
    const what = fault?.what ?? (wrong === undefined ? undefined : `chunk ${wrong} is not what its index says`);
    if (what !== undefined) throw this.corrupt(`span ${i}: ${what}`, blobId, span.storedOffset, span.storedBytes);
    this.cache.keep(this.owner, i, plain);
    return plain;
  }

  private corrupt(what: string, blobId: number, offset: number, length: number): AppError {
    const details = { blobId, blobIndex: blobId, offset, length };
    return new AppError('DataLoss', { op: 'read gzip layer', subject: this.origin.subject, what, details });
  }
}
