/**
 * Directory content: blocks of entries, sorted by name over the whole directory (`.` and `..` among the others), so that the kernel
 * finds a name by bisection. Source: Linux, fs/erofs/erofs_fs.h (erofs_dirent), dir.c, namei.c.
 *
 *   block: n × { nid u64, name offset u16, type u8, 0 }, then the names one behind the other; the last ends at NUL or at the end
 */
import { AppError } from '../../base/errors.ts';
import { BLOCK_BYTES } from './format.ts';

export const DIRENT_BYTES = 12;

export interface Dirent {
  /** Byte string. */
  name: string;
  nid: number;
  /** See direntType. */
  type: number;
}

/** Bytes one entry takes in a block. */
export function direntBytes(name: string): number {
  return DIRENT_BYTES + name.length;
}

/**
 * Cuts sorted names into blocks filled up to `fillBytes` (at most 4096). Returns the index of each block's first name.
 * `.` and `..` must be among the names.
 */
export function cutDirectory(names: readonly string[], fillBytes: number): number[] {
  const starts: number[] = [];
  let used = Number.POSITIVE_INFINITY;
  names.forEach((name, i) => {
    const bytes = direntBytes(name);
    if (used + bytes > fillBytes) {
      starts.push(i);
      used = 0;
    }
    used += bytes;
  });
  return starts;
}

/** Encodes the entries of one block at `at`; what they leave of `capacity` is zeroed. Returns the bytes used. */
export function encodeDirents(target: Buffer, at: number, capacity: number, entries: readonly Dirent[]): number {
  let nameOffset = entries.length * DIRENT_BYTES;
  entries.forEach((entry, i) => {
    const position = at + i * DIRENT_BYTES;
    target.writeUInt32LE(entry.nid % 2 ** 32, position);
    target.writeUInt32LE(Math.floor(entry.nid / 2 ** 32), position + 4);
    target.writeUInt16LE(nameOffset, position + 8);
    target[position + 10] = entry.type;
    target[position + 11] = 0;
    target.write(entry.name, at + nameOffset, 'latin1');
    nameOffset += entry.name.length;
  });
  target.fill(0, at + nameOffset, at + capacity);
  return nameOffset;
}

/** Reads the entries of one block (or inline tail) of `length` bytes. Throws DataLoss for anything out of place. */
export function decodeDirents(buffer: Buffer, at: number, length: number, subject: string): Dirent[] {
  const bad = (what: string): AppError => new AppError('DataLoss', { op: 'read erofs directory', subject, what });
  if (length < DIRENT_BYTES || length > BLOCK_BYTES) throw bad(`a block of ${length} bytes holds no entry`);
  const first = buffer.readUInt16LE(at + 8);
  const count = first / DIRENT_BYTES;
  if (!Number.isInteger(count) || count < 1 || first > length) throw bad(`first name offset is ${first} in a block of ${length} bytes`);
  const entries: Dirent[] = [];
  for (let i = 0; i < count; i += 1) {
    const position = at + i * DIRENT_BYTES;
    const start = buffer.readUInt16LE(position + 8);
    let end = i + 1 < count ? buffer.readUInt16LE(position + DIRENT_BYTES + 8) : length;
    if (start < first || end > length || end < start)
      throw bad(`entry ${i} has its name at ${start}..${end} in a block of ${length} bytes`);
    if (i + 1 === count) {
      const nul = buffer.indexOf(0, at + start);
      if (nul >= 0 && nul < at + end) end = nul - at;
    }
    const name = buffer.toString('latin1', at + start, at + end);
    if (name === '' || name.length > 255 || name.includes('\0') || name.includes('/')) throw bad(`entry ${i} has an impossible name`);
    const nid = buffer.readUInt32LE(position) + buffer.readUInt32LE(position + 4) * 2 ** 32;
    if (!Number.isSafeInteger(nid * 32)) throw bad(`entry ${i} names inode ${nid}`);
    entries.push({ name, nid, type: buffer[position + 10]! });
  }
  return entries;
}
