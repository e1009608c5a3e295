/**
 * LZ4 and zstd as ZFile uses them, and inflate (inflate.ts). liblz4 is the system's `liblz4.so.1`; zstd is the one inside the Node binary, so that a Node
 * version fixes the compressed bytes. Buffers are passed by address: nothing is copied. Signatures: lz4.h, zstd.h.
 */
import assert from 'node:assert';
import koffi from 'koffi';
import { AppError } from '../base/errors.ts';
import { ALGORITHM, type Algorithm, type Codec, compressBound } from '../image/zfile/codec.ts';
import { LibraryInflater } from './inflate.ts';

const ZSTD_LEVEL = 3;

type Lz4Call = (src: number, dst: number, srcSize: number, dstCapacity: number) => number;
type ZstdDecompress = (context: unknown, dst: number, capacity: number, src: number, srcSize: number) => number;
type ZstdCompress = (context: unknown, dst: number, capacity: number, src: number, srcSize: number, level: number) => number;

/** Address of `bytes[offset]`. Valid while `bytes` is referenced: the memory of array buffers does not move. */
function addressOf(bytes: Uint8Array, offset: number, length: number): number {
  assert(offset >= 0 && length > 0 && offset + length <= bytes.length, 'range lies within its buffer');
  return Number(koffi.address(bytes)) + offset;
}

class LibraryCodec extends LibraryInflater implements Codec {
  private readonly lz4Decompress: Lz4Call;
  private readonly lz4Compress: Lz4Call;
  private readonly zstdDecompress: ZstdDecompress;
  private readonly zstdCompress: ZstdCompress;
  private readonly isZstdError: (code: number) => number;
  private readonly decompressContext: unknown;
  private readonly compressContext: unknown;

  constructor() {
    super();
    const lz4 = koffi.load('liblz4.so.1');
    this.lz4Decompress = lz4.func('LZ4_decompress_safe', 'int', ['uintptr_t', 'uintptr_t', 'int', 'int']) as Lz4Call;
    this.lz4Compress = lz4.func('LZ4_compress_default', 'int', ['uintptr_t', 'uintptr_t', 'int', 'int']) as Lz4Call;
    const zstd = koffi.load(null);
    const args = ['void *', 'uintptr_t', 'size_t', 'uintptr_t', 'size_t'];
    this.zstdDecompress = zstd.func('ZSTD_decompressDCtx', 'size_t', args) as ZstdDecompress;
    this.zstdCompress = zstd.func('ZSTD_compressCCtx', 'size_t', [...args, 'int']) as ZstdCompress;
    this.isZstdError = zstd.func('ZSTD_isError', 'uint', ['size_t']) as (code: number) => number;
    // One context each for the life of the thread: creating one costs more than a block.
    this.decompressContext = (zstd.func('ZSTD_createDCtx', 'void *', []) as () => unknown)();
    this.compressContext = (zstd.func('ZSTD_createCCtx', 'void *', []) as () => unknown)();
  }

  decompress(
    algorithm: Algorithm,
    src: Uint8Array,
    srcOffset: number,
    srcLength: number,
    dst: Uint8Array,
    dstOffset: number,
    dstCapacity: number,
  ): number {
    const from = addressOf(src, srcOffset, srcLength);
    const to = addressOf(dst, dstOffset, dstCapacity);
    if (algorithm === ALGORITHM.lz4) {
      const length = this.lz4Decompress(from, to, srcLength, dstCapacity);
      return length < 0 ? -1 : length;
    }
    const length = this.zstdDecompress(this.decompressContext, to, dstCapacity, from, srcLength);
    // Error codes are the top of size_t, far above any capacity.
    return length > dstCapacity ? -1 : length;
  }

  compress(
    algorithm: Algorithm,
    src: Uint8Array,
    srcOffset: number,
    srcLength: number,
    dst: Uint8Array,
    dstOffset: number,
    dstCapacity: number,
  ): number {
    assert(dstCapacity >= compressBound(srcLength), 'the target holds the worst case');
    const from = addressOf(src, srcOffset, srcLength);
    const to = addressOf(dst, dstOffset, dstCapacity);
    if (algorithm === ALGORITHM.lz4) return this.lz4Compress(from, to, srcLength, dstCapacity);
    const length = this.zstdCompress(this.compressContext, to, dstCapacity, from, srcLength, ZSTD_LEVEL);
    assert(this.isZstdError(length) === 0, 'zstd fails only without memory when the target is large enough');
    return length;
  }
}

let loaded: Codec | undefined;

/** The codec of this thread. Throws FailedPrecondition naming the library when liblz4 is not installed. Not shareable between threads. */
export function loadCodec(): Codec {
  try {
    loaded ??= new LibraryCodec();
    return loaded;
  } catch (cause) {
    throw new AppError('FailedPrecondition', {
      op: 'load',
      subject: 'liblz4.so.1',
      what: 'the shared library cannot be loaded; install liblz4 (Debian package liblz4-1)',
      cause,
    });
  }
}
