/** The compressors of ZFile blocks, as an interface that the pure format code is given. Implemented in plugin/kernel/codecs.ts. */

import type { RawInflater } from '../gzip/inflater.ts';

/** Algorithm numbers as the header stores them. */
export const ALGORITHM = { lz4: 1, zstd: 2 } as const;
export type Algorithm = (typeof ALGORITHM)[keyof typeof ALGORITHM];

export interface BlockCodec {
  /**
   * Decompresses one block from `src[srcOffset, +srcLength)` into `dst[dstOffset, +dstCapacity)`. Returns the decompressed length, or
   * -1 when the input is not a valid block or does not fit. The ranges must lie in their arrays (asserted).
   */
  decompress(
    algorithm: Algorithm,
    src: Uint8Array,
    srcOffset: number,
    srcLength: number,
    dst: Uint8Array,
    dstOffset: number,
    dstCapacity: number,
  ): number;

  /**
   * Compresses one block the way the reference does (LZ4 default, zstd level 3). `dstCapacity` must be at least
   * {@link compressBound} (asserted). Returns the compressed length.
   */
  compress(
    algorithm: Algorithm,
    src: Uint8Array,
    srcOffset: number,
    srcLength: number,
    dst: Uint8Array,
    dstOffset: number,
    dstCapacity: number,
  ): number;
}

/** The most bytes that a block of `length` bytes can grow to, for either algorithm and either's library. */
export function compressBound(length: number): number {
  return length + (length >>> 7) + 128;
}

/** Everything that layer files are compressed with. */
export type Codec = BlockCodec & RawInflater;
