/** What a conversion is given and what it gives back. */
import type { Digest } from '../../base/digest.ts';
import type { ReadDevice } from '../../image/erofs/layer-plan.ts';
import type { WrittenBlob } from './blob-writer.ts';
import type { Compression } from './compress-pool.ts';

/** One layer of the source image, bottom to top. */
export interface SourceLayer {
  /** For messages: the digest, or a file name. */
  name: string;
  /** Opens the layer's bytes as stored (compressed or not); called once. */
  open(signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** Digest of the stored bytes; checked when given. */
  digest?: Digest;
  /** Digest of the decompressed tar, from the image's configuration; checked when given. */
  diffId?: Digest;
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
  /** Default: zstd in 64 KiB blocks. The choice shows in the digests. */
  compression?: Compression;
  /** Compression threads, default 2. Does not show in the digests. */
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

export interface ConvertedLayer extends WrittenBlob {
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
    /** Bytes of the device that the layer stores. */
    dataBytes: number;
    metadataBytes: number;
    /** Where the device ends with this layer on top. */
    deviceBytes: number;
  };
  /** Sentences about what could not be kept. */
  warnings: string[];
}
