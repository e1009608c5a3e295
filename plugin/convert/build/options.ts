/** What a conversion is given and what it gives back. */
import type { Digest } from '../../base/digest.ts';
import { GIB, KIB } from '../../base/units.ts';
import type { ReadDevice } from '../../image/erofs/layer-plan.ts';
import { ALGORITHM } from '../../image/zfile/codec.ts';
import type { Compression } from './compress-pool.ts';

/**
 * Smallest blobs, and with them fewest bytes for a lazy start over a network. 1.06 GB of programs, headers and node_modules (334 MB as
 * tar.gz) become 361 MB; zstd in 32 KiB 373 MB, lz4 in 4 KiB 587 MB, at 7.4, 7.6 and 6.5 CPU seconds from the tar.gz.
 */
export const DEFAULT_COMPRESSION: Compression = { algorithm: ALGORITHM.zstd, blockSizeBytes: 64 * KIB };
export const DEFAULT_THREADS = 2;
export const DEFAULT_MAX_LAYER_BYTES = 256 * GIB;

/** One layer of the source image, bottom to top. */
export interface SourceLayer {
  /** For messages: the digest, or a file name. */
  name: string;
  /** Opens the layer's bytes as stored (compressed or not); called again when an index-only conversion turns to the full form. */
  open(signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** Digest of the stored bytes; checked when given. */
  digest?: Digest;
  /** Digest of the decompressed tar, from the image's configuration; checked when given. */
  diffId?: Digest;
  /** Of its descriptor: index-only mode names the layer's family after it. Default: OCI. */
  mediaType?: string;
}

/** A base that is converted already: what lies below the first source layer. */
export interface ConvertedBase {
  /** Reads the merged device of the base; only its metadata is asked for. */
  read: ReadDevice;
  /** diffIDs of the source layers that the base was made from, bottom to top. */
  diffIds: readonly Digest[];
}

export interface ConvertOptions {
  /** A directory of this conversion alone, for blobs and staging; the caller removes it. */
  stagingDirectory: string;
  signal: AbortSignal;
  /**
   * `full` (default): blobs with all data. `index-only`: small blobs over the unchanged source layers; `compression` then is only that of
   * layers which cannot be indexed.
   */
  mode?: 'full' | 'index-only';
  /** Index-only mode: a layer that cannot be read at random (zstd, gzip of several members) is converted in full (default) or refused. */
  unindexable?: 'convert' | 'refuse';
  /** Default: zstd in 64 KiB blocks. The choice shows in the digests. */
  compression?: Compression;
  /** Compression threads, or layers indexed at once; default 2. Does not show in the digests. */
  threads?: number;
  /** Largest decompressed layer; default 256 GiB. */
  maxLayerBytes?: number;
  base?: ConvertedBase;
  /** Called after each piece of input; must return quickly. */
  onProgress?: (progress: ConvertProgress) => void;
}

export interface ConvertProgress {
  /** Position of the layer in the list, from 0. */
  layer: number;
  readBytes: number;
  tarBytes: number;
  entries: number;
}

export interface ConvertedLayer {
  path: string;
  digest: Digest;
  sizeBytes: number;
  kind: 'full' | 'index';
  /** The source layer's, computed. */
  sourceDiffId: Digest;
  sourceDigest: Digest;
  /** Of the source layers up to this one (image-spec, config.md). */
  sourceChainId: Digest;
  /** For the descriptor of the blob, keys as overlaybd-formats.md 4.1. */
  annotations: Record<string, string>;
  statistics: {
    entries: number;
    readBytes: number;
    tarBytes: number;
    /** Content of files that the layer stores itself. */
    dataBytes: number;
    metadataBytes: number;
    /** Where the device ends with this layer on top. */
    deviceBytes: number;
  };
  /** Sentences about what could not be kept. */
  warnings: string[];
}
