/**
 * The blob in which the inflated spans of one gzip layer are kept: in the chunk store, under its budget, counted, evicted and made
 * durable like every other. Its name is derived from what its bytes are made of. Never fetched: span-maker.ts fills it. Ours.
 */
import { sha256 } from '../../base/digest.ts';
import type { GzipSource } from '../../file/device-file.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import { layOutSpans, type SpanLayout, spanFileBytes } from '../../file/span-file.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import { blobKeyOf } from '../../file/store/blob-key.ts';
import type { ChunkStore } from '../../file/store/chunk-store.ts';
import type { GzipTables } from '../../image/gzip/gzip-span.ts';
import type { ChunkDigests } from '../../image/turbo/chunk-digests.ts';

/** A gzip layer of an open device, with all that making its spans needs. */
export interface SpanSource {
  gzip: BlobHandle;
  index: BlobHandle;
  /** Of the blob that keeps them. */
  kept: BlobHandle;
  tables: GzipTables;
  layout: SpanLayout;
  chunks: ChunkDigests | undefined;
  /** Aborted when the device that the handles belong to is closed. */
  closed: AbortSignal;
}

/**
 * Like a layer's bytes (store/blob-key.ts), spans are shared between images that believe the same witness: the gzip blob with its own,
 * the index that cuts it into spans, and the digests that spans were checked against.
 */
export function spanBlobOf(source: GzipSource, blobs: { gzip: BlobSource; index: BlobSource }, layout: SpanLayout): BlobSource {
  const origin = ['inflated spans 1', blobKeyOf(blobs.gzip), blobs.index.digest, source.chunksDigest ?? 'unchecked'];
  return { digest: sha256(origin.join('\n')), sizeBytes: spanFileBytes(layout), repositories: [] };
}

/** Acquires the blob for the spans of one layer. Rejects like {@link ChunkStore.acquire}. */
export async function openSpans(
  store: ChunkStore,
  source: GzipSource,
  handles: readonly BlobHandle[],
  closed: AbortSignal,
): Promise<SpanSource> {
  const gzip = handles[source.blobIndex]!;
  const index = handles[source.indexBlobIndex]!;
  const layout = layOutSpans(source.gzip.entries, source.gzip.originalSizeBytes);
  const kept = await store.acquire(spanBlobOf(source, { gzip: gzip.source, index: index.source }, layout));
  return { gzip, index, kept, tables: source.gzip, layout, chunks: source.chunks, closed };
}
