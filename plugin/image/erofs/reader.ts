/**
 * Reads an uncompressed EROFS device: superblock, inodes, directories, content. Source: Linux, fs/erofs. Everything in it is hostile:
 * positions are checked against the device before reading, sizes before allocating.
 */
import { AppError } from '../../base/errors.ts';
import { type Dirent, decodeDirents } from './directory.ts';
import {
  BLOCK_BYTES,
  COMPACT_INODE_BYTES,
  decodeInode,
  EXTENDED_INODE_BYTES,
  FEATURE_COMPAT,
  FEATURE_INCOMPAT,
  type InodeFields,
  LAYOUT,
  SLOT_BYTES,
  SUPER_MAGIC,
  SUPER_OFFSET,
  superblockChecksum,
} from './format.ts';

/** Copies bytes of the device; a fresh buffer each time, zeros where nothing was written. */
export type ReadBytes = (offsetBytes: number, lengthBytes: number) => Buffer;

export interface DeviceSuperblock {
  rootNid: number;
  blockCount: number;
  metaBlock: number;
  volumeName: string;
  inodeCount: number;
}

/** An inode and where it is. */
export interface ErofsInode extends InodeFields {
  nid: number;
  position: number;
  isExtended: boolean;
  /** Byte behind inode and attributes, where inline content begins. */
  tailPosition: number;
}

const fail = (subject: string, what: string, offset?: number): AppError =>
  new AppError('DataLoss', { op: 'read erofs', subject, what, ...(offset === undefined ? {} : { details: { offset } }) });

export class ErofsReader {
  readonly superblock: DeviceSuperblock;
  private readonly read: ReadBytes;

  /** Throws DataLoss when there is no sound superblock, Unimplemented for features beyond uncompressed data and chunks. */
  constructor(read: ReadBytes) {
    this.read = read;
    const block = read(0, BLOCK_BYTES);
    const at = SUPER_OFFSET;
    if (block.readUInt32LE(at) !== SUPER_MAGIC) throw fail('superblock', 'the magic is missing', at);
    const compat = block.readUInt32LE(at + 8);
    if ((compat & FEATURE_COMPAT.superblockChecksum) !== 0 && superblockChecksum(block) !== block.readUInt32LE(at + 4)) {
      throw fail('superblock', 'the checksum does not match', at + 4);
    }
    const incompat = block.readUInt32LE(at + 80);
    if ((incompat & ~FEATURE_INCOMPAT.chunkedFile) !== 0 || block[at + 12] !== 12) {
      const what = `features 0x${incompat.toString(16)} with blocks of 2^${block[at + 12]} bytes`;
      throw new AppError('Unimplemented', { op: 'read erofs', subject: 'superblock', what });
    }
    this.superblock = {
      rootNid: block.readUInt16LE(at + 14),
      inodeCount: Number(block.readBigUInt64LE(at + 16)),
      blockCount: block.readUInt32LE(at + 36),
      metaBlock: block.readUInt32LE(at + 40),
      volumeName: block.toString('latin1', at + 64, at + 80).replace(/\0.*$/s, ''),
    };
  }

  inode(nid: number): ErofsInode {
    const position = this.superblock.metaBlock * BLOCK_BYTES + nid * SLOT_BYTES;
    const bytes = this.readChecked(position, EXTENDED_INODE_BYTES, `inode ${nid}`);
    const fields = decodeInode(bytes, 0);
    const size = fields.isExtended ? EXTENDED_INODE_BYTES : COMPACT_INODE_BYTES;
    if (fields.layout === LAYOUT.compressedFull || fields.layout === LAYOUT.compressedCompact || fields.layout > LAYOUT.chunkBased) {
      throw new AppError('Unimplemented', { op: 'read erofs', subject: `inode ${nid}`, what: `data layout ${fields.layout}` });
    }
    if (!Number.isSafeInteger(fields.sizeBytes)) throw fail(`inode ${nid}`, `size is ${fields.sizeBytes} bytes`, position);
    return { ...fields, nid, position, tailPosition: position + size + fields.xattrBytes };
  }

  /** The attributes' stored bytes. */
  xattrBytes(inode: ErofsInode): Buffer {
    if (inode.xattrBytes === 0) return Buffer.alloc(0);
    return this.readChecked(inode.tailPosition - inode.xattrBytes, inode.xattrBytes, `inode ${inode.nid}`);
  }

  /** Entries of a directory, `.` and `..` included, block by block. */
  *directory(inode: ErofsInode): Generator<Dirent> {
    for (let offset = 0; offset < inode.sizeBytes; offset += BLOCK_BYTES) {
      const length = Math.min(BLOCK_BYTES, inode.sizeBytes - offset);
      yield* decodeDirents(this.content(inode, offset, length), 0, length, `inode ${inode.nid}`);
    }
  }

  /** Bytes of a file, directory or link; the range must lie within its size. */
  content(inode: ErofsInode, offsetBytes: number, lengthBytes: number): Buffer {
    const subject = `inode ${inode.nid}`;
    if (offsetBytes + lengthBytes > inode.sizeBytes) throw fail(subject, `range ${offsetBytes}+${lengthBytes} passes its size`);
    const target = Buffer.alloc(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const { position, runBytes } = this.locate(inode, offsetBytes + done);
      const take = Math.min(runBytes, lengthBytes - done);
      if (position !== undefined) this.readChecked(position, take, subject).copy(target, done);
      done += take;
    }
    return target;
  }

  /** Where a byte of the content lies on the device (undefined: a hole), and how many follow it there. */
  locate(inode: ErofsInode, offsetBytes: number): { position: number | undefined; runBytes: number } {
    const rest = inode.sizeBytes - offsetBytes;
    if (inode.layout === LAYOUT.chunkBased) return this.locateChunk(inode, offsetBytes, rest);
    if (inode.layout === LAYOUT.inline) {
      const tailStart = Math.floor((inode.sizeBytes - 1) / BLOCK_BYTES) * BLOCK_BYTES;
      if (offsetBytes >= tailStart) return { position: inode.tailPosition + offsetBytes - tailStart, runBytes: rest };
      return { position: inode.union * BLOCK_BYTES + offsetBytes, runBytes: tailStart - offsetBytes };
    }
    return { position: inode.union * BLOCK_BYTES + offsetBytes, runBytes: rest };
  }

  private locateChunk(inode: ErofsInode, offsetBytes: number, rest: number): { position: number | undefined; runBytes: number } {
    const chunkBytes = BLOCK_BYTES * 2 ** (inode.union & 0x1f);
    const entryBytes = (inode.union & 0x20) !== 0 ? 8 : 4;
    const index = Math.floor(offsetBytes / chunkBytes);
    const table = Math.ceil(inode.tailPosition / entryBytes) * entryBytes;
    const entry = this.readChecked(table + index * entryBytes, entryBytes, `inode ${inode.nid}`);
    const block = entry.readUInt32LE(entryBytes - 4);
    const within = offsetBytes - index * chunkBytes;
    const runBytes = Math.min(rest, chunkBytes - within);
    return { position: block === 0xffff_ffff ? undefined : block * BLOCK_BYTES + within, runBytes };
  }

  private readChecked(position: number, length: number, subject: string): Buffer {
    const end = this.superblock.blockCount * BLOCK_BYTES;
    if (!Number.isSafeInteger(position) || position < 0 || position + length > end) {
      throw fail(subject, `it names bytes ${position}+${length}, the device has ${end}`, position);
    }
    return this.read(position, length);
  }
}
