/**
 * On-disk structures of EROFS that the builder writes and the reader reads. Source: Linux, fs/erofs/erofs_fs.h. See FORMAT.md.
 * All integers little-endian, blocks of 4096 bytes.
 */
import { crc32c } from './crc32c.ts';

export const BLOCK_BYTES = 4096;
export const SUPER_OFFSET = 1024;
export const SUPER_BYTES = 128;
export const SUPER_MAGIC = 0xe0f5e1e2;

/** An inode's number is its byte position divided by this (the metadata area begins at block 0 in what we write). */
export const SLOT_BYTES = 32;
export const EXTENDED_INODE_BYTES = 64;
export const COMPACT_INODE_BYTES = 32;

/** Block numbers have 32 bits; the last is kept for "no block". */
export const MAX_DEVICE_BLOCKS = 0xffff_ffff;

export const FEATURE_COMPAT = { superblockChecksum: 0x1, mtime: 0x2, xattrFilter: 0x4 } as const;
/** Incompatible features the reader understands: chunk-based files. The writer uses none. */
export const FEATURE_INCOMPAT = { chunkedFile: 0x4 } as const;

export const LAYOUT = { plain: 0, compressedFull: 1, inline: 2, compressedCompact: 3, chunkBased: 4 } as const;

export const S_IFMT = 0o170000;
export const MODE_TYPE = {
  fifo: 0o010000,
  char: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
  socket: 0o140000,
} as const;

/** The file type byte of a directory entry for a mode. */
export function direntType(mode: number): number {
  switch (mode & S_IFMT) {
    case MODE_TYPE.file:
      return 1;
    case MODE_TYPE.directory:
      return 2;
    case MODE_TYPE.char:
      return 3;
    case MODE_TYPE.block:
      return 4;
    case MODE_TYPE.fifo:
      return 5;
    case MODE_TYPE.socket:
      return 6;
    case MODE_TYPE.symlink:
      return 7;
    default:
      return 0;
  }
}

/** Device numbers as the kernel's new_encode_dev writes them. */
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0;
}

export function decodeDevice(value: number): { major: number; minor: number } {
  return { major: (value >>> 8) & 0xfff, minor: (value & 0xff) | ((value >>> 12) & 0xfff00) };
}

export interface Superblock {
  rootNid: number;
  inodeCount: number;
  /** Blocks of the whole device. */
  blockCount: number;
  /** 16 bytes. */
  uuid: Uint8Array;
  /** At most 16 ASCII characters. */
  volumeName: string;
}

/** Writes the superblock into the device's first block and seals it with the checksum, which covers the rest of that block. */
export function encodeSuperblock(block: Buffer, superblock: Superblock): void {
  block.fill(0, 0, SUPER_OFFSET + SUPER_BYTES);
  const at = SUPER_OFFSET;
  block.writeUInt32LE(SUPER_MAGIC, at);
  block.writeUInt32LE(FEATURE_COMPAT.superblockChecksum | FEATURE_COMPAT.mtime, at + 8);
  block[at + 12] = 12;
  block.writeUInt16LE(superblock.rootNid, at + 14);
  block.writeBigUInt64LE(BigInt(superblock.inodeCount), at + 16);
  block.writeUInt32LE(superblock.blockCount, at + 36);
  block.set(superblock.uuid.subarray(0, 16), at + 48);
  block.write(superblock.volumeName.slice(0, 16), at + 64, 'latin1');
  block.writeUInt32LE(superblockChecksum(block), at + 4);
}

/** CRC-32C of the first block from the superblock on, with the checksum's own field as zero; not inverted at the end. */
export function superblockChecksum(block: Buffer): number {
  const covered = Buffer.from(block.subarray(SUPER_OFFSET, BLOCK_BYTES));
  covered.writeUInt32LE(0, 4);
  return crc32c(0xffff_ffff, covered);
}

/** What an inode says of itself, without its extended attributes and inline data. */
export interface InodeFields {
  layout: number;
  /** Bytes of the extended attributes that follow, header included; 0 or 12 + 4n. */
  xattrBytes: number;
  mode: number;
  sizeBytes: number;
  /** Block number of plain data, device number, or 0. */
  union: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  linkCount: number;
}

export function xattrCountField(xattrBytes: number): number {
  return xattrBytes === 0 ? 0 : (xattrBytes - 12) / 4 + 1;
}

export function xattrBytesOfCount(count: number): number {
  return count === 0 ? 0 : 12 + 4 * (count - 1);
}

/** Writes an extended inode (64 bytes) at `at`. `ino32`: its number, cut to 32 bits; what 32-bit programs see. */
export function encodeInode(target: Buffer, at: number, inode: InodeFields, ino32: number): void {
  target.writeUInt16LE(1 | (inode.layout << 1), at);
  target.writeUInt16LE(xattrCountField(inode.xattrBytes), at + 2);
  target.writeUInt16LE(inode.mode, at + 4);
  target.writeUInt16LE(0, at + 6);
  target.writeUInt32LE(inode.sizeBytes % 2 ** 32, at + 8);
  target.writeUInt32LE(Math.floor(inode.sizeBytes / 2 ** 32), at + 12);
  target.writeUInt32LE(inode.union, at + 16);
  target.writeUInt32LE(ino32 % 2 ** 32, at + 20);
  target.writeUInt32LE(inode.uid, at + 24);
  target.writeUInt32LE(inode.gid, at + 28);
  target.writeUInt32LE(((inode.mtimeSeconds % 2 ** 32) + 2 ** 32) % 2 ** 32, at + 32);
  target.writeInt32LE(Math.floor(inode.mtimeSeconds / 2 ** 32), at + 36);
  target.writeUInt32LE(inode.mtimeNanoseconds, at + 40);
  target.writeUInt32LE(inode.linkCount, at + 44);
  target.fill(0, at + 48, at + EXTENDED_INODE_BYTES);
}

/** Reads an extended or compact inode; `buffer` holds at least 64 bytes from `at` (32 for a compact one). */
export function decodeInode(buffer: Buffer, at: number): InodeFields & { isExtended: boolean } {
  const format = buffer.readUInt16LE(at);
  const isExtended = (format & 1) !== 0;
  const common = {
    isExtended,
    layout: (format >> 1) & 7,
    xattrBytes: xattrBytesOfCount(buffer.readUInt16LE(at + 2)),
    mode: buffer.readUInt16LE(at + 4),
    union: buffer.readUInt32LE(at + 16),
  };
  if (!isExtended) {
    return {
      ...common,
      sizeBytes: buffer.readUInt32LE(at + 8),
      uid: buffer.readUInt16LE(at + 24),
      gid: buffer.readUInt16LE(at + 26),
      mtimeSeconds: 0,
      mtimeNanoseconds: 0,
      linkCount: buffer.readUInt16LE(at + 6),
    };
  }
  return {
    ...common,
    sizeBytes: buffer.readUInt32LE(at + 8) + buffer.readUInt32LE(at + 12) * 2 ** 32,
    uid: buffer.readUInt32LE(at + 24),
    gid: buffer.readUInt32LE(at + 28),
    mtimeSeconds: buffer.readUInt32LE(at + 32) + buffer.readInt32LE(at + 36) * 2 ** 32,
    mtimeNanoseconds: buffer.readUInt32LE(at + 40),
    linkCount: buffer.readUInt32LE(at + 44),
  };
}
