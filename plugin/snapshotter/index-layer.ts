/**
 * Index-only (TurboOCI) layers: the small blob is fetched whole, checked, and taken apart into metadata files; the data stays in the
 * original layer. Source: overlaybd-formats.md 5.1 and 8.5.
 */
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import pLimit from 'p-limit';
import { type Digest, sha256 } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import type { BlobSource, LayerSpec } from '../file/device-spec.ts';
import { layerCompression } from '../image/oci/media-types.ts';
import { MAX_TURBO_BLOB_BYTES, MAX_TURBO_TAR_BYTES, parseTurboLayer } from '../image/turbo/turbo-layer.ts';
import type { IndexFiles } from './index-files.ts';
import type { ImageResolver, RepositoryName } from './ports.ts';

export type FsType = 'ext4' | 'erofs';

/** Blobs in memory at once, over all pulls: 4 × (64 + 128) MiB at worst; usual ones take some hundred KiB. */
const CONCURRENCY = 4;

/** An index-only layer, taken apart. */
export interface IndexLayer {
  /** SHA-256 of the uncompressed small blob: what an image that names it directly calls the layer. */
  diffId: Digest;
  metaByFsType: ReadonlyMap<FsType, BlobSource>;
  gzipIndex: BlobSource | undefined;
  /** Only layers of this product carry them. */
  chunkDigests: BlobSource | undefined;
}

const unzip = promisify(gunzip);

function isGzip(bytes: Uint8Array): boolean {
  return bytes[0] === 0x1f && bytes[1] === 0x8b;
}

async function uncompress(bytes: Uint8Array, digest: string): Promise<Uint8Array> {
  if (!isGzip(bytes)) return bytes;
  try {
    return await unzip(bytes, { maxOutputLength: MAX_TURBO_TAR_BYTES });
  } catch (cause) {
    const what = `it does not uncompress to at most ${MAX_TURBO_TAR_BYTES} bytes: ${cause instanceof Error ? cause.message : String(cause)}`;
    throw new AppError('DataLoss', { op: 'open index layer', subject: digest, what, cause });
  }
}

export class IndexLayers {
  private readonly parts: { resolver: ImageResolver; files: IndexFiles };
  private readonly limit = pLimit(CONCURRENCY);

  constructor(parts: { resolver: ImageResolver; files: IndexFiles }) {
    this.parts = parts;
  }

  /**
   * Fetches a layer and takes it apart. Errors: those of the registry, DataLoss (malformed), InvalidArgument (too large),
   * ResourceExhausted (disk full).
   */
  fetch(repository: RepositoryName, blob: { digest: Digest; sizeBytes: number }, signal: AbortSignal): Promise<IndexLayer> {
    return this.limit(async () => {
      signal.throwIfAborted();
      const { resolver, files } = this.parts;
      const bytes = await resolver.fetchBlob(repository, blob, MAX_TURBO_BLOB_BYTES, signal);
      const tar = await uncompress(bytes, blob.digest);
      const layer = parseTurboLayer(tar, blob.digest);
      const metaByFsType = new Map<FsType, BlobSource>();
      for (const [fsType, meta] of layer.metaByFsType) metaByFsType.set(fsType, await files.keep(meta));
      const gzipIndex = layer.gzipIndex === undefined ? undefined : await files.keep(layer.gzipIndex);
      const chunkDigests = layer.chunkDigests === undefined ? undefined : await files.keep(layer.chunkDigests);
      return { diffId: sha256(tar), metaByFsType, gzipIndex, chunkDigests };
    });
  }
}

/** The file system that all layers of an image use: what its lowest layer has, EROFS if it has both. */
export function fsTypeOf(bottom: IndexLayer): FsType {
  return bottom.metaByFsType.has('erofs') ? 'erofs' : 'ext4';
}

/** The layer over its original, or why it cannot be read. `mediaType` is that of the original. */
export function indexSpecOf(
  layer: IndexLayer,
  fsType: FsType,
  original: { blob: BlobSource; mediaType: string },
): { spec: LayerSpec } | { refusal: string } {
  const meta = layer.metaByFsType.get(fsType);
  if (meta === undefined) return { refusal: `it has no ${fsType} metadata, which the layers below it have` };
  const { blob: target, mediaType } = original;
  const compression = layerCompression(mediaType);
  if (compression === 'none' || compression === 'gzip') {
    // The media type may be wrong (containerd looks at the bytes); an index of a gzip file is checked against it.
    const { gzipIndex, chunkDigests } = layer;
    const checked = chunkDigests === undefined ? {} : { chunkDigests };
    if (gzipIndex !== undefined) return { spec: { kind: 'index', meta, target, gzipIndex, ...checked } };
    // Digests of the tar's chunks hold for the tar alone: nothing of a gzip file could pass for it.
    if (compression === 'none' || chunkDigests !== undefined) return { spec: { kind: 'index', meta, target, ...checked } };
    return { refusal: 'its original layer is compressed with gzip and it carries no index of it' };
  }
  const what =
    compression === undefined ? `has the media type ${JSON.stringify(mediaType.slice(0, 100))}` : `is compressed with ${compression}`;
  return { refusal: `its original layer ${what}; only tar and gzip can be read at random` };
}
