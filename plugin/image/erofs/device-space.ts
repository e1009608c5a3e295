/**
 * Addresses on the device. Block 0 holds the superblock and the root inode, the blocks behind it are kept for the root's extended
 * attributes (unwritten they cost nothing), and everything else is given out once, upwards, and never again: a block of a lower layer
 * is only ever replaced by a newer copy of itself. Ours.
 *
 *   0      1024 superblock   1152 root inode + attributes …   65 blocks │ layer 1: data, directories, inodes │ layer 2: … │
 */
import { AppError } from '../../base/errors.ts';
import { roundUp } from '../../base/units.ts';
import { BLOCK_BYTES, EXTENDED_INODE_BYTES, MAX_DEVICE_BLOCKS, SLOT_BYTES, SUPER_BYTES, SUPER_OFFSET } from './format.ts';
import { MAX_XATTR_BYTES } from './xattrs.ts';

/** The root's number has 16 bits in the superblock, so the root inode stays in front for ever. */
export const ROOT_POSITION = SUPER_OFFSET + SUPER_BYTES;
export const ROOT_NID = ROOT_POSITION / SLOT_BYTES;
/** As far as the largest attributes that an inode can have. */
export const ROOT_END = roundUp(ROOT_POSITION + EXTENDED_INODE_BYTES + MAX_XATTR_BYTES, BLOCK_BYTES);

export class DeviceSpace {
  /** First byte not given out; a multiple of 4096. */
  private end: number;

  constructor(endBytes = ROOT_END) {
    this.end = Math.max(ROOT_END, roundUp(endBytes, BLOCK_BYTES));
  }

  get endBytes(): number {
    return this.end;
  }

  /** Gives out whole blocks for `sizeBytes`; returns their first byte. Throws ResourceExhausted at 16 TiB. */
  allocate(sizeBytes: number): number {
    const start = this.end;
    const end = start + roundUp(sizeBytes, BLOCK_BYTES);
    if (end / BLOCK_BYTES > MAX_DEVICE_BLOCKS - 1) {
      const what = `${sizeBytes} further bytes pass the ${MAX_DEVICE_BLOCKS} blocks that the format can address`;
      throw new AppError('ResourceExhausted', { op: 'allocate blocks', subject: 'device', what });
    }
    this.end = end;
    return start;
  }
}
