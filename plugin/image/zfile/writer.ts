/**
 * Writes a ZFile as a stream: chunks in, finished bytes out, one block of memory in between. The reference rewrites the first 512
 * bytes at the end when its target can seek; {@link ZFileEnd.finalHeader} is that rewritten header.
 */
import assert from 'node:assert';
import { writeU32 } from '../lsmt/bytes.ts';
import { type BlockCodec, compressBound } from './codec.ts';
import { BLOCK_CRC_SEED, CRC_SEED, crc32c } from './crc32c.ts';
import { encodeZFileBlock, ZFILE_BLOCK_BYTES, type ZFileParameters } from './header.ts';

const CRC_BYTES = 4;

export interface ZFileEnd {
  /** Last blocks, jump table and trailer: append them. */
  bytes: Uint8Array;
  /** Optional: written over the first 512 bytes, it spares readers the trailer. */
  finalHeader: Uint8Array;
}

/** Use: header(), write() any number of times, finish(). Output must be appended in the order it is returned. */
export class ZFileWriter {
  private readonly parameters: ZFileParameters;
  private readonly codec: BlockCodec;
  private readonly pending: Uint8Array;
  private pendingBytes = 0;
  private sizes = new Uint32Array(1024);
  private blockCount = 0;
  private originalSizeBytes = 0;
  private endBytes = ZFILE_BLOCK_BYTES;

  constructor(parameters: ZFileParameters, codec: BlockCodec) {
    this.parameters = parameters;
    this.codec = codec;
    this.pending = Buffer.allocUnsafeSlow(parameters.blockSizeBytes);
  }

  /** The first 512 bytes. */
  header(): Uint8Array {
    return encodeZFileBlock('first-header', this.parameters, { indexOffsetBytes: 0, blockCount: 0, originalSizeBytes: 0, indexCrc: 0 });
  }

  /** Takes any number of bytes (borrowed until it returns) and returns what is complete; the result is the caller's. */
  write(chunk: Uint8Array): Uint8Array {
    const blockSize = this.parameters.blockSizeBytes;
    const blocks = Math.floor((this.pendingBytes + chunk.length) / blockSize);
    const out = Buffer.allocUnsafe(blocks * (compressBound(blockSize) + CRC_BYTES));
    let used = 0;
    let taken = 0;
    if (this.pendingBytes > 0) {
      taken = Math.min(blockSize - this.pendingBytes, chunk.length);
      this.pending.set(chunk.subarray(0, taken), this.pendingBytes);
      this.pendingBytes += taken;
      if (this.pendingBytes === blockSize) {
        used += this.emit(this.pending, 0, blockSize, out, used);
        this.pendingBytes = 0;
      }
    }
    for (; this.pendingBytes === 0 && taken + blockSize <= chunk.length; taken += blockSize) {
      used += this.emit(chunk, taken, blockSize, out, used);
    }
    if (taken < chunk.length) {
      this.pending.set(chunk.subarray(taken), 0);
      this.pendingBytes = chunk.length - taken;
    }
    return out.subarray(0, used);
  }

  /** Ends the file; the writer must not be used afterwards. */
  finish(): ZFileEnd {
    const last = Buffer.allocUnsafe(compressBound(this.pendingBytes) + CRC_BYTES);
    const lastBytes = this.pendingBytes > 0 ? this.emit(this.pending, 0, this.pendingBytes, last, 0) : 0;
    const table = new Uint8Array(this.blockCount * 4);
    for (let i = 0; i < this.blockCount; i++) writeU32(table, i * 4, this.sizes[i]!);
    const values = {
      indexOffsetBytes: this.endBytes,
      blockCount: this.blockCount,
      originalSizeBytes: this.originalSizeBytes,
      indexCrc: crc32c(CRC_SEED, table),
    };
    const trailer = encodeZFileBlock('trailer', this.parameters, values);
    return {
      bytes: Buffer.concat([last.subarray(0, lastBytes), table, trailer]),
      finalHeader: encodeZFileBlock('final-header', this.parameters, values),
    };
  }

  private emit(src: Uint8Array, srcOffset: number, length: number, dst: Uint8Array, dstOffset: number): number {
    const { algorithm } = this.parameters;
    const size = this.codec.compress(algorithm, src, srcOffset, length, dst, dstOffset, compressBound(length));
    assert(size > 0, 'compression into a buffer of the bound size cannot fail');
    writeU32(dst, dstOffset + size, crc32c(BLOCK_CRC_SEED, dst, dstOffset, size));
    if (this.blockCount === this.sizes.length) {
      const larger = new Uint32Array(this.sizes.length * 2);
      larger.set(this.sizes);
      this.sizes = larger;
    }
    this.sizes[this.blockCount++] = size + CRC_BYTES;
    this.originalSizeBytes += length;
    this.endBytes += size + CRC_BYTES;
    return size + CRC_BYTES;
  }
}
