/**
 * The decompressed view of an original layer, out of a file that holds its data span by span. For a gzip layer that file is a blob of
 * the store in which inflated spans are kept (they miss until somebody inflated them); a plain tar is a single span, and the file itself.
 *
 *   data      │ span 0        │ span 1     │ …            a span begins where a deflate block does
 *   file      │ chunks of 64 KiB │0│ chunks   │0│ …       each span begins at a chunk; zeros behind its end
 *
 * With the digests of an own index each chunk is checked whenever it is read from the file. Ours.
 */
import assert from 'node:assert';
import { FETCH_UNIT_BYTES } from '../base/limits.ts';
import { findGzipEntry, type GzipEntries } from '../image/gzip/gzip-index.ts';
import { type ChunkDigests, TARGET_CHUNK_BYTES } from '../image/turbo/chunk-digests.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { CheckedChunks } from './target-chunks.ts';

/** Spans begin at units of the store, and their chunks are those units. */
assert(TARGET_CHUNK_BYTES === FETCH_UNIT_BYTES);

/** Where the spans lie; plain data over shared memory. */
export interface SpanLayout {
  /** Begin of each span in the decompressed data, ascending from 0. */
  plainOffset: Float64Array;
  spanCount: number;
  plainBytes: number;
  /** For each span the number of its first chunk in the file; one more entry at the end. */
  firstChunk: Uint32Array;
}

/** How the spans of a gzip layer lie in the file that keeps them. */
export function layOutSpans(entries: GzipEntries, plainBytes: number): SpanLayout {
  const { count, plainOffset } = entries;
  const firstChunk = new Uint32Array(new SharedArrayBuffer((count + 1) * 4));
  for (let i = 0; i < count; i++) {
    const end = i + 1 < count ? plainOffset[i + 1]! : plainBytes;
    firstChunk[i + 1] = firstChunk[i]! + Math.ceil((end - plainOffset[i]!) / TARGET_CHUNK_BYTES);
  }
  return { plainOffset, spanCount: count, plainBytes, firstChunk };
}

/** A tar that lies in its file as it is. */
export function layOutTar(plainBytes: number): SpanLayout {
  const firstChunk = Uint32Array.of(0, Math.ceil(plainBytes / TARGET_CHUNK_BYTES));
  return { plainOffset: Float64Array.of(0), spanCount: 1, plainBytes, firstChunk };
}

/** Size of the file that keeps the spans; a blob is never empty. */
export function spanFileBytes(layout: SpanLayout): number {
  return Math.max(1, layout.firstChunk[layout.spanCount]!) * TARGET_CHUNK_BYTES;
}

export class SpanFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly file: RandomAccessFile;
  private readonly layout: SpanLayout;
  private readonly checked: CheckedChunks | undefined;

  /** `origin`: what errors name, the number of `file` among the device's blobs. */
  constructor(file: RandomAccessFile, layout: SpanLayout, chunks: ChunkDigests | undefined, origin: { subject: string; blobId: number }) {
    this.file = file;
    this.layout = layout;
    this.checked = chunks === undefined ? undefined : new CheckedChunks(file, chunks, origin);
    this.sizeBytes = layout.plainBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the file');
    const { plainOffset, spanCount, firstChunk } = this.layout;
    const end = offsetBytes + lengthBytes;
    let isComplete = true;
    let position = offsetBytes;
    for (let i = findGzipEntry({ plainOffset, count: spanCount }, offsetBytes); position < end; i++) {
      const begin = plainOffset[i]!;
      const spanEnd = i + 1 < spanCount ? plainOffset[i + 1]! : this.sizeBytes;
      const to = Math.min(end, spanEnd);
      if (to <= position) continue;
      const at = targetOffset + (position - offsetBytes);
      const part = { from: position - begin, to: to - begin, spanBytes: spanEnd - begin };
      if (!this.readPart(firstChunk[i]!, part, target, at, missing)) isComplete = false;
      position = to;
    }
    return isComplete;
  }

  /** A part of one span; offsets in the span. */
  private readPart(
    firstChunk: number,
    part: { from: number; to: number; spanBytes: number },
    target: Uint8Array,
    at: number,
    missing: MissingRanges,
  ): boolean {
    const { from, to, spanBytes } = part;
    if (this.checked === undefined) return this.file.readSync(firstChunk * TARGET_CHUNK_BYTES + from, to - from, target, at, missing);
    let isComplete = true;
    for (let k = Math.floor(from / TARGET_CHUNK_BYTES); k * TARGET_CHUNK_BYTES < to; k++) {
      const begin = k * TARGET_CHUNK_BYTES;
      const end = Math.min(begin + TARGET_CHUNK_BYTES, spanBytes);
      const chunk = this.checked.read(firstChunk + k, end - begin, missing);
      if (chunk === undefined) isComplete = false;
      else target.set(chunk.subarray(Math.max(from, begin) - begin, Math.min(to, end) - begin), at + Math.max(from, begin) - from);
    }
    return isComplete;
  }
}
