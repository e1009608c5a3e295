/**
 * The decompressed view of a gzip layer through its random-access index. A read inflates the spans it touches, each from an entry of
 * the index to the next; inflated spans are kept in the thread's bounded cache.
 */
import assert from 'node:assert';
import { AppError } from '../base/errors.ts';
import { findGzipEntry, type GzipEntries, unpackWindow } from '../image/gzip/gzip-index.ts';
import type { RawInflater } from '../image/gzip/inflater.ts';
import type { ChunkDigests } from '../image/turbo/chunk-digests.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { type SpanCache, threadSpanCache } from './span-cache.ts';
import { wrongChunkOf } from './target-chunks.ts';

/** What opening found out; plain data over shared memory. */
export interface GzipTables {
  originalSizeBytes: number;
  isCompressed: boolean;
  entries: GzipEntries;
}

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
      const begin = entries.plainOffset[i]!;
      const to = Math.min(end, this.spanEnd(i));
      if (to <= position) continue;
      const span = this.cache.find(this.owner, i) ?? this.inflateSpan(i, missing);
      if (span === undefined) isComplete = false;
      else if (isComplete) target.set(span.subarray(position - begin, to - begin), targetOffset + (position - offsetBytes));
      position = to;
    }
    return isComplete;
  }

  private spanEnd(i: number): number {
    const { entries } = this.tables;
    return i + 1 < entries.count ? entries.plainOffset[i + 1]! : this.sizeBytes;
  }

  /** Inflates span `i`, or says what is missing for it. */
  private inflateSpan(i: number, missing: MissingRanges): Uint8Array | undefined {
    const { entries, isCompressed } = this.tables;
    const bits = entries.bits[i]!;
    const from = entries.gzipOffset[i]! - (bits > 0 ? 1 : 0);
    // The block at which the next span begins may share its first byte with the end of this one.
    const to = i + 1 < entries.count ? Math.min(this.gzip.sizeBytes, entries.gzipOffset[i + 1]!) : this.gzip.sizeBytes;
    const stored = Buffer.allocUnsafeSlow(to - from);
    const storedWindow = Buffer.allocUnsafe(entries.windowBytes[i]!);
    const hasData = this.gzip.readSync(from, stored.length, stored, 0, missing);
    const hasWindow = this.index.readSync(entries.windowOffset[i]!, storedWindow.length, storedWindow, 0, missing);
    if (!hasData || !hasWindow) return undefined;
    const dictionary = this.unpackWindow(storedWindow, isCompressed, entries.windowOffset[i]!);
    const span = Buffer.allocUnsafeSlow(this.spanEnd(i) - entries.plainOffset[i]!);
    const bitsValue = bits > 0 ? stored[0]! >>> (8 - bits) : 0;
    const input = bits > 0 ? stored.subarray(1) : stored;
    const { produced } = input.length > 0 ? this.inflater.inflate(input, { bits, bitsValue, dictionary }, span) : { produced: 0 };
    if (produced !== span.length) {
      const found = produced < 0 ? 'is no deflate data' : `inflates to ${produced} bytes, expected ${span.length}`;
      const what = `span ${i}, ${stored.length} bytes at ${from} of the blob, ${found}`;
      throw this.corrupt(what, this.origin.blobId, from, stored.length);
    }
    const wrong = this.chunks === undefined ? undefined : wrongChunkOf(this.chunks, i, span);
    if (wrong !== undefined) {
      throw this.corrupt(`span ${i}, chunk ${wrong}, is not what its index says`, this.origin.blobId, from, stored.length);
    }
    this.cache.keep(this.owner, i, span);
    return span;
  }

  private unpackWindow(stored: Uint8Array, isCompressed: boolean, offset: number): Uint8Array {
    try {
      return unpackWindow(stored, isCompressed, offset, this.origin.subject);
    } catch (cause) {
      const what = `window of ${stored.length} bytes at ${offset} of the index cannot be unpacked`;
      throw this.corrupt(what, this.origin.indexBlobId, offset, stored.length, cause);
    }
  }

  private corrupt(what: string, blobId: number, offset: number, length: number, cause?: unknown): AppError {
    const details = { blobId, blobIndex: blobId, offset, length };
    return new AppError('DataLoss', { op: 'read gzip layer', subject: this.origin.subject, what, details, cause });
  }
}
