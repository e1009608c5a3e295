/**
 * The decompressed view of a ZFile. Blocks that a read covers whole are decoded straight into the caller's buffer; the ragged first
 * and last block go through the thread's block cache. Compressed bytes are read contiguously, up to 256 KiB at a time.
 */
import assert from 'node:assert';
import { AppError } from '../base/errors.ts';
import { readU32 } from '../image/lsmt/bytes.ts';
import type { Algorithm, BlockCodec } from '../image/zfile/codec.ts';
import { BLOCK_CRC_SEED, crc32c } from '../image/zfile/crc32c.ts';
import { blockOffset, type JumpTable } from '../image/zfile/jump-table.ts';
import { type BlockCache, threadBlockCache } from './block-cache.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';

/** Compressed bytes held at once: the largest request (1 MiB) takes a few rounds, and every thread keeps one buffer. */
const SCRATCH_BYTES = 256 * 1024;
const CRC_BYTES = 4;

/** One buffer for all files of the thread: it is filled and used up within one synchronous call. */
let scratch: Uint8Array | undefined;

/** What opening found out; plain data over shared memory. */
export interface ZFileTables {
  algorithm: Algorithm;
  blockSizeBytes: number;
  originalSizeBytes: number;
  hasBlockCrc: boolean;
  jumpTable: JumpTable;
}

export interface ZFileOrigin {
  /** Named in errors: the layer's digest. */
  subject: string;
  /** Of the blob that holds the file; in the details of errors as `blobId`. */
  blobId: number;
  /** Position of the ZFile in that blob. */
  offsetInBlob: number;
}

export class ZFileFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly inner: RandomAccessFile;
  private readonly tables: ZFileTables;
  private readonly codec: BlockCodec;
  private readonly origin: ZFileOrigin;
  private readonly cache: BlockCache;
  private readonly owner: number;

  constructor(inner: RandomAccessFile, tables: ZFileTables, codec: BlockCodec, origin: ZFileOrigin, cache = threadBlockCache) {
    this.inner = inner;
    this.tables = tables;
    this.codec = codec;
    this.origin = origin;
    this.cache = cache;
    this.owner = cache.newOwner();
    this.sizeBytes = tables.originalSizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the file');
    if (lengthBytes === 0) return true;
    const { blockSizeBytes, jumpTable } = this.tables;
    const end = offsetBytes + lengthBytes;
    let block = Math.floor(offsetBytes / blockSizeBytes);
    let lastBlock = Math.floor((end - 1) / blockSizeBytes);
    // Ragged ends that are cached need no compressed bytes; then they also do not make the range read below longer.
    if (block * blockSizeBytes < offsetBytes || (block + 1) * blockSizeBytes > end) {
      if (this.copyCached(block, offsetBytes, end, target, targetOffset)) block++;
    }
    if (lastBlock >= block && (lastBlock + 1) * blockSizeBytes > end) {
      if (this.copyCached(lastBlock, offsetBytes, end, target, targetOffset)) lastBlock--;
    }
    let isComplete = true;
    let position = block <= lastBlock ? blockOffset(jumpTable, block) : 0;
    while (block <= lastBlock) {
      let until = block;
      let runBytes = 0;
      do runBytes += jumpTable.sizes[until++]!;
      while (until <= lastBlock && runBytes + jumpTable.sizes[until]! <= SCRATCH_BYTES);
      scratch ??= Buffer.allocUnsafeSlow(SCRATCH_BYTES);
      if (this.inner.readSync(position, runBytes, scratch, 0, missing)) {
        // After a miss the result is void: go on only to learn what else is missing.
        if (isComplete) this.decodeRun(block, until, position, offsetBytes, end, target, targetOffset);
      } else {
        isComplete = false;
      }
      block = until;
      position += runBytes;
    }
    return isComplete;
  }

  private copyCached(block: number, offset: number, end: number, target: Uint8Array, targetOffset: number): boolean {
    const bytes = this.cache.find(this.owner, block);
    if (bytes === undefined) return false;
    this.copyPart(bytes, block, offset, end, target, targetOffset);
    return true;
  }

  /** Copies what of `block` lies in [offset, end). */
  private copyPart(bytes: Uint8Array, block: number, offset: number, end: number, target: Uint8Array, targetOffset: number): void {
    const begin = block * this.tables.blockSizeBytes;
    const from = Math.max(offset, begin);
    const to = Math.min(end, begin + this.tables.blockSizeBytes);
    target.set(bytes.subarray(from - begin, to - begin), targetOffset + (from - offset));
  }

  /** Decodes blocks [first, until) whose compressed bytes fill the scratch buffer. `position` is that of the first in the ZFile. */
  private decodeRun(
    first: number,
    until: number,
    position: number,
    offset: number,
    end: number,
    target: Uint8Array,
    targetOffset: number,
  ): void {
    const { blockSizeBytes, jumpTable } = this.tables;
    let at = 0;
    for (let block = first; block < until; block++) {
      const size = jumpTable.sizes[block]!;
      const begin = block * blockSizeBytes;
      const plainBytes = Math.min(blockSizeBytes, this.sizeBytes - begin);
      if (begin >= offset && begin + plainBytes <= end) {
        this.decode(block, at, size, position + at, target, targetOffset + (begin - offset), plainBytes);
      } else {
        const slot = this.cache.take(plainBytes);
        this.decode(block, at, size, position + at, slot, 0, plainBytes);
        this.cache.keep(this.owner, block);
        this.copyPart(slot, block, offset, end, target, targetOffset);
      }
      at += size;
    }
  }

  private decode(
    block: number,
    at: number,
    storedBytes: number,
    position: number,
    into: Uint8Array,
    intoOffset: number,
    plainBytes: number,
  ): void {
    const source = scratch!;
    const { hasBlockCrc, algorithm } = this.tables;
    const compressedBytes = hasBlockCrc ? storedBytes - CRC_BYTES : storedBytes;
    if (hasBlockCrc) {
      const wanted = readU32(source, at + compressedBytes);
      const found = crc32c(BLOCK_CRC_SEED, source, at, compressedBytes);
      if (found !== wanted) {
        throw this.corrupt(block, position, storedBytes, `checksum is ${found.toString(16)}, expected ${wanted.toString(16)}`);
      }
    }
    const length = this.codec.decompress(algorithm, source, at, compressedBytes, into, intoOffset, plainBytes);
    if (length !== plainBytes) {
      const found = length < 0 ? 'cannot be decompressed' : `decompresses to ${length} bytes, expected ${plainBytes}`;
      throw this.corrupt(block, position, storedBytes, found);
    }
  }

  private corrupt(block: number, position: number, storedBytes: number, what: string): AppError {
    const offset = this.origin.offsetInBlob + position;
    return new AppError('DataLoss', {
      op: 'read zfile',
      subject: this.origin.subject,
      what: `block ${block}, ${storedBytes} stored bytes at ${offset} of the blob, ${what}`,
      details: { blobId: this.origin.blobId, blobIndex: this.origin.blobId, offset, length: storedBytes, block },
    });
  }
}
