/** Header and trailer of ZFiles: the same 96-byte structure in a 512-byte block. See FORMAT.md, table 1. */
import { badField, hasBytes, readU32, readU64, writeU32, writeU64 } from '../lsmt/bytes.ts';
import { ALGORITHM, type Algorithm } from './codec.ts';
import { CRC_SEED, crc32c } from './crc32c.ts';

export const ZFILE_BLOCK_BYTES = 512;
/** Blocks of a ZFile that we open: 128 GiB of layer in 4 KiB blocks, 128 MiB of jump table on disk. The format's own limit is 10^9. */
export const MAX_ZFILE_BLOCKS = 32 * 1024 * 1024;
export const MIN_BLOCK_SIZE = 4096;
export const MAX_BLOCK_SIZE = 65536;

const OP = 'open zfile';
const MAGIC = Uint8Array.from([
  0x5a, 0x46, 0x69, 0x6c, 0x65, 0x00, 0x01, 0x00, 0x74, 0x75, 0x6a, 0x69, 0x2e, 0x79, 0x79, 0x66, 0x40, 0x41, 0x6c, 0x69, 0x62, 0x61, 0x62,
  0x61,
]);
const STRUCT_BYTES = 96;
const AT = {
  size: 24,
  digest: 28,
  flags: 32,
  indexOffset: 40,
  indexSize: 48,
  originalSize: 56,
  indexCrc: 64,
  blockSize: 72,
  algorithm: 76,
  dictSize: 84,
  verify: 88,
};
const FLAG = { header: 1, dataFile: 2, sealed: 4, overwritten: 8, digest: 16 } as const;

export interface ZFileHeader {
  /** The header carries the final values; the trailer is not read. */
  isFinal: boolean;
  hasDigest: boolean;
  indexOffsetBytes: number;
  blockCount: number;
  originalSizeBytes: number;
  indexCrc: number;
  blockSizeBytes: number;
  /** Not checked yet. */
  algorithm: number;
  dictSizeBytes: number;
  hasBlockCrc: boolean;
}

/** A header whose values are known to be consistent with each other and with the file. */
export interface ZFileLayout extends ZFileHeader {
  algorithm: Algorithm;
}

/** True when the block begins with both ZFile magics; otherwise the file is used as it is. */
export function isZFile(block: Uint8Array): boolean {
  return block.length >= ZFILE_BLOCK_BYTES && hasBytes(block, 0, MAGIC);
}

function digestOf(block: Uint8Array): number {
  const copy = Uint8Array.from(block.subarray(0, ZFILE_BLOCK_BYTES));
  copy.fill(0, AT.digest, AT.digest + 4);
  return crc32c(CRC_SEED, copy);
}

function parseBlock(block: Uint8Array, subject: string, what: string, atBytes: number): ZFileHeader & { flags: number } {
  const flags = readU32(block, AT.flags) & 0x3f;
  const hasDigest = (flags & FLAG.digest) !== 0;
  if (hasDigest && digestOf(block) !== readU32(block, AT.digest)) {
    const found = hex(readU32(block, AT.digest));
    throw badField({ op: OP, subject, field: `${what} digest`, found, expected: hex(digestOf(block)), offsetBytes: atBytes + AT.digest });
  }
  return {
    flags,
    isFinal: (flags & FLAG.overwritten) !== 0,
    hasDigest,
    indexOffsetBytes: readU64(block, AT.indexOffset),
    blockCount: readU64(block, AT.indexSize),
    originalSizeBytes: readU64(block, AT.originalSize),
    indexCrc: readU32(block, AT.indexCrc),
    blockSizeBytes: readU32(block, AT.blockSize),
    algorithm: block[AT.algorithm]!,
    dictSizeBytes: readU32(block, AT.dictSize),
    hasBlockCrc: block[AT.verify] !== 0,
  };
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}

/** Parses a first block for which {@link isZFile} is true. Throws DataLoss on a wrong digest or a block that is no header. */
export function parseZFileHeader(block: Uint8Array, subject: string): ZFileHeader {
  const header = parseBlock(block, subject, 'header', 0);
  if ((header.flags & FLAG.header) === 0) {
    throw badField({ op: OP, subject, field: 'header flags', found: hex(header.flags), expected: 'the header bit', offsetBytes: AT.flags });
  }
  return header;
}

/** Parses the last 512 bytes of a ZFile whose header is not final. Throws DataLoss. */
export function parseZFileTrailer(block: Uint8Array, fileSizeBytes: number, subject: string): ZFileHeader {
  const at = fileSizeBytes - ZFILE_BLOCK_BYTES;
  if (!isZFile(block)) {
    throw badField({ op: OP, subject, field: 'trailer magic', found: 'something else', expected: 'ZFile', offsetBytes: at });
  }
  const trailer = parseBlock(block, subject, 'trailer', at);
  const wanted = FLAG.dataFile | FLAG.sealed;
  if ((trailer.flags & (wanted | FLAG.header)) !== wanted) {
    const expected = 'data file, sealed, not header';
    throw badField({ op: OP, subject, field: 'trailer flags', found: hex(trailer.flags), expected, offsetBytes: at + AT.flags });
  }
  return trailer;
}

/**
 * Checks the values of a final header or of a trailer against each other and the file: afterwards reading `blockCount * 4` bytes at
 * `indexOffsetBytes` stays inside the file and is bounded by {@link MAX_ZFILE_BLOCKS}. Throws DataLoss.
 */
export function checkZFileLayout(header: ZFileHeader, fileSizeBytes: number, subject: string): ZFileLayout {
  const bad = (field: string, found: number, expected: string, at: number): Error =>
    badField({ op: OP, subject, field, found, expected, offsetBytes: at });
  const { blockSizeBytes, blockCount, indexOffsetBytes, originalSizeBytes, algorithm } = header;
  if (blockSizeBytes < MIN_BLOCK_SIZE || blockSizeBytes > MAX_BLOCK_SIZE || (blockSizeBytes & (blockSizeBytes - 1)) !== 0) {
    throw bad('block_size', blockSizeBytes, `a power of two from ${MIN_BLOCK_SIZE} to ${MAX_BLOCK_SIZE}`, AT.blockSize);
  }
  if (algorithm !== ALGORITHM.lz4 && algorithm !== ALGORITHM.zstd) throw bad('algo', algorithm, '1 (lz4) or 2 (zstd)', AT.algorithm);
  if (blockCount > MAX_ZFILE_BLOCKS) throw bad('index_size', blockCount, `at most ${MAX_ZFILE_BLOCKS} blocks`, AT.indexSize);
  if (blockCount !== Math.ceil(originalSizeBytes / blockSizeBytes)) {
    throw bad('index_size', blockCount, `one block for each ${blockSizeBytes} of ${originalSizeBytes} bytes`, AT.indexSize);
  }
  const tableLimit = header.isFinal ? fileSizeBytes : fileSizeBytes - ZFILE_BLOCK_BYTES;
  if (indexOffsetBytes < ZFILE_BLOCK_BYTES + header.dictSizeBytes || indexOffsetBytes + blockCount * 4 > tableLimit) {
    const expected = `behind the blocks, with ${blockCount} entries before byte ${tableLimit}`;
    throw bad('index_offset', indexOffsetBytes, expected, AT.indexOffset);
  }
  return { ...header, algorithm };
}

/** The three forms a writer produces: while writing, at the end, and rewritten at the start once all is known. */
export type ZFileBlockForm = 'first-header' | 'trailer' | 'final-header';
const FORM_FLAGS: Record<ZFileBlockForm, number> = { 'first-header': 0x13, trailer: 0x16, 'final-header': 0x1b };

export interface ZFileParameters {
  algorithm: Algorithm;
  blockSizeBytes: number;
}

/** Builds a header or trailer; in a first header the four values that are not known yet are 0. */
export function encodeZFileBlock(
  form: ZFileBlockForm,
  parameters: ZFileParameters,
  values: { indexOffsetBytes: number; blockCount: number; originalSizeBytes: number; indexCrc: number },
): Uint8Array {
  const block = new Uint8Array(ZFILE_BLOCK_BYTES);
  block.set(MAGIC);
  writeU32(block, AT.size, STRUCT_BYTES);
  writeU32(block, AT.flags, FORM_FLAGS[form]);
  if (form !== 'first-header') {
    writeU64(block, AT.indexOffset, values.indexOffsetBytes);
    writeU64(block, AT.indexSize, values.blockCount);
    writeU64(block, AT.originalSize, values.originalSizeBytes);
    writeU32(block, AT.indexCrc, values.indexCrc);
  }
  writeU32(block, AT.blockSize, parameters.blockSizeBytes);
  block[AT.algorithm] = parameters.algorithm;
  block[AT.verify] = 1;
  writeU32(block, AT.digest, digestOf(block));
  return block;
}
