/**
 * Extended attributes of an inode, stored right behind it. Source: Linux, fs/erofs/erofs_fs.h (erofs_xattr_ibody_header, _entry).
 *
 *   12 bytes: name filter u32 (0: unused), shared count u8 (0), 7 reserved
 *   each:     name length u8, prefix index u8, value length u16, name without prefix, value; padded with zeros to 4 bytes
 *
 * Sets are interned: inodes with equal attributes share one number, so a million equal labels cost one copy in memory.
 */
import { AppError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';

const IBODY_HEADER_BYTES = 12;
/** 16-bit count of 4-byte units in the inode. */
export const MAX_XATTR_BYTES = IBODY_HEADER_BYTES + 4 * 0xfffe;
/** e_value_size has 16 bits. */
export const MAX_XATTR_VALUE_BYTES = 0xffff;
/** Distinct sets are kept in memory: real images have tens of them, of some hundred bytes. */
const MAX_INTERNED_BYTES = 128 * MIB;

const PREFIXES: readonly { index: number; prefix: string; isWhole: boolean }[] = [
  { index: 2, prefix: 'system.posix_acl_access', isWhole: true },
  { index: 3, prefix: 'system.posix_acl_default', isWhole: true },
  { index: 1, prefix: 'user.', isWhole: false },
  { index: 4, prefix: 'trusted.', isWhole: false },
  { index: 6, prefix: 'security.', isWhole: false },
];

/** True when EROFS (and the kernel behind it) has a place for this name. */
export function isStorableXattr(name: string): boolean {
  return placeOf(name) !== undefined;
}

function placeOf(name: string): { index: number; suffix: string } | undefined {
  for (const { index, prefix, isWhole } of PREFIXES) {
    if (isWhole ? name === prefix : name.startsWith(prefix) && name.length > prefix.length && name.length - prefix.length <= 255) {
      return { index, suffix: isWhole ? '' : name.slice(prefix.length) };
    }
  }
  return undefined;
}

/** The bytes behind the inode for a set of attributes, empty for none. Names are byte strings, each storable. */
export function encodeXattrs(attributes: ReadonlyMap<string, Uint8Array>): Buffer {
  if (attributes.size === 0) return Buffer.alloc(0);
  // Sorted, so that the order in the tar does not show in the digest.
  const names = [...attributes.keys()].sort((a, b) => (a < b ? -1 : 1));
  const parts: Buffer[] = [Buffer.alloc(IBODY_HEADER_BYTES)];
  let total = IBODY_HEADER_BYTES;
  for (const name of names) {
    const { index, suffix } = placeOf(name)!;
    const value = attributes.get(name)!;
    const bytes = Buffer.alloc(Math.ceil((4 + suffix.length + value.length) / 4) * 4);
    bytes[0] = suffix.length;
    bytes[1] = index;
    bytes.writeUInt16LE(value.length, 2);
    bytes.write(suffix, 4, 'latin1');
    bytes.set(value, 4 + suffix.length);
    parts.push(bytes);
    total += bytes.length;
  }
  return Buffer.concat(parts, total);
}

/** Reads what {@link encodeXattrs} wrote; shared attributes and long-prefix indexes are refused. `subject` names the inode in errors. */
export function decodeXattrs(bytes: Buffer, subject: string): Map<string, Uint8Array> {
  const attributes = new Map<string, Uint8Array>();
  if (bytes.length === 0) return attributes;
  if (bytes[4] !== 0) throw bad(subject, `${bytes[4]} shared extended attributes, none are expected`);
  let at = IBODY_HEADER_BYTES;
  while (at < bytes.length) {
    const nameLength = bytes[at]!;
    const index = bytes[at + 1]!;
    const valueLength = bytes.readUInt16LE(at + 2);
    const end = at + 4 + nameLength + valueLength;
    const place = PREFIXES.find((p) => p.index === index);
    if (place === undefined || end > bytes.length)
      throw bad(subject, `extended attribute at byte ${at} is out of bounds or of prefix ${index}`);
    const name = place.prefix + bytes.toString('latin1', at + 4, at + 4 + nameLength);
    attributes.set(name, Uint8Array.from(bytes.subarray(at + 4 + nameLength, end)));
    at = Math.ceil(end / 4) * 4;
  }
  return attributes;
}

function bad(subject: string, what: string): AppError {
  return new AppError('DataLoss', { op: 'read erofs inode', subject, what });
}

/** Numbers for sets of attributes; 0 is the empty set. */
export class XattrTable {
  private readonly encoded: Buffer[] = [Buffer.alloc(0)];
  private readonly byContent = new Map<string, number>();
  private totalBytes = 0;

  /** The number of a set given as its stored bytes. Throws ResourceExhausted past the bounds of the format or of memory. */
  intern(bytes: Buffer, subject: string): number {
    if (bytes.length === 0) return 0;
    if (bytes.length > MAX_XATTR_BYTES) {
      const what = `extended attributes take ${bytes.length} bytes, at most ${MAX_XATTR_BYTES} fit an inode`;
      throw new AppError('ResourceExhausted', { op: 'store extended attributes', subject, what });
    }
    const key = bytes.toString('latin1');
    const known = this.byContent.get(key);
    if (known !== undefined) return known;
    this.totalBytes += 2 * bytes.length;
    if (this.totalBytes > MAX_INTERNED_BYTES) {
      const what = `distinct sets of extended attributes pass ${MAX_INTERNED_BYTES} bytes of memory`;
      throw new AppError('ResourceExhausted', { op: 'store extended attributes', subject, what });
    }
    this.encoded.push(bytes);
    this.byContent.set(key, this.encoded.length - 1);
    return this.encoded.length - 1;
  }

  bytesOf(id: number): Buffer {
    return this.encoded[id]!;
  }
}
