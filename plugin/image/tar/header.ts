/**
 * One 512-byte tar header. Source: POSIX.1-2017 pax (ustar interchange format), GNU tar manual "Basic Tar Format", star's extension.
 *
 *   0 name[100]  100 mode[8]  108 uid[8]  116 gid[8]  124 size[12]  136 mtime[12]  148 chksum[8]  156 typeflag[1]  157 linkname[100]
 *   257 magic[6]  263 version[2]  265 uname[32]  297 gname[32]  329 devmajor[8]  337 devminor[8]  345 prefix[155]
 *   GNU instead of prefix: 386 sparse[4]{offset[12], numbytes[12]}  482 isextended[1]  483 realsize[12]
 *   star: prefix[131], 476 atime[12]  488 ctime[12]  508 "tar\0"
 *
 * Text is kept as a byte string: one character a byte (latin1), because names in a tar have no encoding.
 */
import { printableBytes, tarError } from './errors.ts';

export const BLOCK_BYTES = 512;

export interface RawHeader {
  /** Bytes, prefix joined. */
  name: string;
  linkName: string;
  typeFlag: string;
  mode: number;
  uid: number;
  gid: number;
  sizeBytes: number;
  mtimeSeconds: number;
  devMajor: number;
  devMinor: number;
  isGnu: boolean;
}

const latin1 = (block: Buffer, start: number, length: number): string => {
  let end = start;
  while (end < start + length && block[end] !== 0) end += 1;
  return block.toString('latin1', start, end);
};

/** True when all 512 bytes are zero: half of an end-of-archive mark. */
export function isZeroBlock(block: Buffer): boolean {
  for (let i = 0; i < BLOCK_BYTES; i += 1) if (block[i] !== 0) return false;
  return true;
}

/**
 * A numeric field: octal text between blanks and NULs, or base-256 (first bit set; 0xff in front means negative).
 * An empty field is 0. Throws for other text and beyond 2^53.
 */
export function parseNumber(block: Buffer, start: number, length: number, field: string, offset: number): number {
  const first = block[start]!;
  if ((first & 0x80) !== 0) {
    const isNegative = (first & 0x40) !== 0;
    let value = isNegative ? (first & 0x7f) - 0x80 : first & 0x7f;
    for (let i = 1; i < length; i += 1) value = value * 256 + block[start + i]!;
    if (!Number.isSafeInteger(value)) throw tarError(offset, '', `${field} does not fit 53 bits`);
    return value;
  }
  let i = start;
  const end = start + length;
  while (i < end && (block[i] === 0x20 || block[i] === 0)) i += 1;
  let value = 0;
  for (; i < end; i += 1) {
    const digit = block[i]! - 0x30;
    if (digit < 0 || digit > 7) break;
    value = value * 8 + digit;
  }
  if (i < end && block[i] !== 0x20 && block[i] !== 0) {
    throw tarError(offset, '', `${field} is "${printableBytes(block.toString('latin1', start, end))}", not an octal number`);
  }
  return value;
}

/** Throws unless the stored checksum is the unsigned or the signed sum of the bytes with blanks in its own place. */
export function verifyChecksum(block: Buffer, offset: number): void {
  let unsigned = 8 * 0x20;
  let high = 0;
  for (let i = 0; i < BLOCK_BYTES; i += 1) {
    if (i >= 148 && i < 156) continue;
    const byte = block[i]!;
    unsigned += byte;
    if (byte >= 128) high += 1;
  }
  const stored = parseNumber(block, 148, 8, 'checksum', offset);
  if (stored !== unsigned && stored !== unsigned - 256 * high) {
    throw tarError(offset, '', `header checksum is ${stored}, the bytes sum to ${unsigned}`);
  }
}

/** Decodes a header whose checksum was verified. `offset`: its position in the decompressed tar, for errors. */
export function parseHeader(block: Buffer, offset: number): RawHeader {
  const magic = block.toString('latin1', 257, 265);
  const isUstar = magic.startsWith('ustar\0');
  const isGnu = magic === 'ustar  \0';
  let name = latin1(block, 0, 100);
  if (isUstar) {
    const isStar = block.toString('latin1', 508, 512) === 'tar\0';
    const prefix = latin1(block, 345, isStar ? 131 : 155);
    if (prefix !== '') name = `${prefix}/${name}`;
  }
  const hasDevice = isUstar || isGnu;
  const typeFlag = block.toString('latin1', 156, 157);
  const isDevice = typeFlag === '3' || typeFlag === '4';
  return {
    name,
    linkName: latin1(block, 157, 100),
    typeFlag,
    mode: parseNumber(block, 100, 8, 'mode', offset),
    uid: parseNumber(block, 108, 8, 'uid', offset),
    gid: parseNumber(block, 116, 8, 'gid', offset),
    sizeBytes: parseNumber(block, 124, 12, 'size', offset),
    mtimeSeconds: parseNumber(block, 136, 12, 'mtime', offset),
    devMajor: hasDevice && isDevice ? parseNumber(block, 329, 8, 'devmajor', offset) : 0,
    devMinor: hasDevice && isDevice ? parseNumber(block, 337, 8, 'devminor', offset) : 0,
    isGnu,
  };
}
