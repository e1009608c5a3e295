/**
 * Where each block of a ZFile lies. On disk: one 32-bit size a block. In memory: 16- or 32-bit sizes and one absolute position for each
 * 16 blocks, in shared memory; 2.5 bytes a block of up to 32 KiB. See FORMAT.md, table 2.
 */
import { badField, readU32 } from '../lsmt/bytes.ts';
import { compressBound } from './codec.ts';
import { CRC_SEED, crc32c } from './crc32c.ts';
import { ZFILE_BLOCK_BYTES, type ZFileLayout } from './header.ts';

/** Blocks that share one absolute position; finding a block adds up at most 15 sizes. */
const GROUP_SHIFT = 4;
const GROUP_MASK = 15;

export interface JumpTable {
  readonly blockCount: number;
  /** Absolute position of block 16 * i in the ZFile. */
  readonly bases: Float64Array;
  /** Size of each block on disk, its CRC included. */
  readonly sizes: Uint16Array | Uint32Array;
}

/**
 * Parses the `blockCount * 4` bytes at `indexOffsetBytes`. Throws DataLoss on a wrong CRC, an entry that cannot be a block, or entries
 * that do not fill the space before the table exactly.
 */
export function parseJumpTable(bytes: Uint8Array, layout: ZFileLayout, subject: string): JumpTable {
  const { blockCount, indexOffsetBytes } = layout;
  const bad = (field: string, found: string | number, expected: string, offsetBytes: number): Error =>
    badField({ op: 'open zfile', subject, field, found, expected, offsetBytes });
  if (layout.hasDigest) {
    const crc = crc32c(CRC_SEED, bytes);
    if (crc !== layout.indexCrc) {
      throw bad('jump table CRC', `0x${crc.toString(16)}`, `0x${layout.indexCrc.toString(16)}`, indexOffsetBytes);
    }
  }
  const smallest = layout.hasBlockCrc ? 5 : 1;
  const largest = compressBound(layout.blockSizeBytes) + 4;
  const groupCount = Math.ceil(blockCount / (GROUP_MASK + 1));
  const bases = new Float64Array(new SharedArrayBuffer(groupCount * 8));
  const sizes =
    largest > 0xffff ? new Uint32Array(new SharedArrayBuffer(blockCount * 4)) : new Uint16Array(new SharedArrayBuffer(blockCount * 2));
  let position = ZFILE_BLOCK_BYTES + layout.dictSizeBytes;
  for (let i = 0; i < blockCount; i++) {
    const size = readU32(bytes, i * 4);
    if (size < smallest || size > largest) {
      throw bad(`jump table entry ${i}`, size, `${smallest}..${largest} bytes`, indexOffsetBytes + i * 4);
    }
    if ((i & GROUP_MASK) === 0) bases[i >>> GROUP_SHIFT] = position;
    sizes[i] = size;
    position += size;
  }
  if (position !== indexOffsetBytes) {
    throw bad('sum of the jump table', position, `${indexOffsetBytes}, where the table begins`, indexOffsetBytes);
  }
  return { blockCount, bases, sizes };
}

/** Position of block `i` in the ZFile. */
export function blockOffset(table: JumpTable, i: number): number {
  let position = table.bases[i >>> GROUP_SHIFT]!;
  const { sizes } = table;
  for (let k = i & ~GROUP_MASK; k < i; k++) position += sizes[k]!;
  return position;
}
