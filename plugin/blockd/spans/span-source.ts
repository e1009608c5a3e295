/**
 * The blob in which the inflated spans of one gzip layer are kept: in the chunk store, under its budget, counted, evicted and made
 * durable like every other. Its name is derived from what its bytes are made of. Never fetched: span-maker.ts fills it. Ours.
 */
import { sha256 } from '../../base/digest.ts';
import type { GzipSource } from '../../file/device-file.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import { type SpanLayout, spanFileBytes } from '../../file/span-file.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import { blobKeyOf } from '../../file/store/blob-key.ts';
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
 * the index that cuts it into spans, and the digests that spans were checked against. Spans that nothing could check are as good as the
 * bytes they were made of, which may turn out wrong when the layer is complete: `trust` names what they are believed for.
 */
export function spanBlobOf(
  source: GzipSource,
  blobs: { gzip: BlobSource; index: BlobSource },
  layout: SpanLayout,
  trust: string,
): BlobSource {
  const origin = ['inflated spans 1', blobKeyOf(blobs.gzip), blobs.index.digest, source.chunksDigest ?? `unchecked ${trust}`];
  return { digest: sha256(origin.join('\n')), sizeBytes: spanFileBytes(layout), repositories: [] };
}
