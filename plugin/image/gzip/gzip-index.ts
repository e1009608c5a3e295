/**
 * The random-access index of a gzip layer (`gzip.meta`): where inflating can begin, and with which window. See FORMAT.md.
 */
import { inflateSync } from 'node:zlib';
import { badField, hasBytes, readU32, readU64 } from '../lsmt/bytes.ts';
import { CRC_SEED, crc32c } from '../zfile/crc32c.ts';

export const GZIP_INDEX_HEADER_BYTES = 333;
export const GZIP_WINDOW_BYTES = 32768;
export const ENTRY_BYTES = 29;
/** Entries that we open: 1 TiB of tar at the usual span of 1 MiB, 29 MiB of table. */
export const MAX_GZIP_ENTRIES = 1024 * 1024;
/** Bytes, inflated or not, between two entries: what one cold read must inflate and hold. The usual span is 1 MiB, one block at most more. */
export const MAX_GZIP_SPAN_BYTES = 64 * 1024 * 1024;
/** A window deflates to hardly more than itself. */
const MAX_STORED_WINDOW_BYTES = GZIP_WINDOW_BYTES + 1024;

const OP = 'open gzip index';
export const MAGIC = Uint8Array.from([0x64, 0x64, 0x67, 0x7a, 0x69, 0x64, 0x78, 0x00]);
/** Positions of the header's fields. */
export const AT = {
  major: 8,
  windowCompression: 10,
  level: 11,
  span: 13,
  windowSize: 17,
  entrySize: 21,
  entryCount: 25,
  gzipSize: 33,
  indexSize: 41,
  originalSize: 49,
  tableOffset: 313,
  tableBytes: 321,
  crc: 329,
};

export interface GzipIndexHeader {
  /** Windows and table are zlib streams; otherwise stored as they are. */
  isCompressed: boolean;
  entryCount: number;
  gzipSizeBytes: number;
  originalSizeBytes: number;
  tableOffsetBytes: number;
  tableBytes: number;
}

/** Parallel arrays in shared memory. */
export interface GzipEntries {
  readonly count: number;
  /** Position in the decompressed data. */
  readonly plainOffset: Float64Array;
  /** Position in the gzip file of the next whole byte. */
  readonly gzipOffset: Float64Array;
  /** Position of the window in the index file. */
  readonly windowOffset: Float64Array;
  /** Stored length of the window. */
  readonly windowBytes: Uint16Array;
  /** 0..7: unused bits of the byte before gzipOffset. */
  readonly bits: Uint8Array;
}

/** Parses the first 333 bytes of an index file for a gzip file of known size. Throws DataLoss. Afterwards the table lies in the file. */
export function parseGzipIndexHeader(
  bytes: Uint8Array,
  sizes: { indexFileBytes: number; gzipFileBytes: number },
  subject: string,
): GzipIndexHeader {
  const bad = (field: string, found: string | number, expected: string, offsetBytes: number): Error =>
    badField({ op: OP, subject, field, found, expected, offsetBytes });
  if (bytes.length < GZIP_INDEX_HEADER_BYTES) throw bad('header size', bytes.length, `${GZIP_INDEX_HEADER_BYTES} bytes`, 0);
  if (!hasBytes(bytes, 0, MAGIC)) throw bad('magic', 'something else', 'ddgzidx', 0);
  const crc = crc32c(CRC_SEED, bytes, 0, AT.crc);
  if (crc !== readU32(bytes, AT.crc)) throw bad('header CRC', `0x${readU32(bytes, AT.crc).toString(16)}`, `0x${crc.toString(16)}`, AT.crc);
  if (bytes[AT.major] !== 1) throw bad('major version', bytes[AT.major]!, '1', AT.major);
  if (bytes[AT.windowCompression]! > 1) throw bad('window compression', bytes[AT.windowCompression]!, '0 or 1', AT.windowCompression);
  if (readU32(bytes, AT.windowSize) !== GZIP_WINDOW_BYTES) {
    throw bad('window size', readU32(bytes, AT.windowSize), `${GZIP_WINDOW_BYTES}`, AT.windowSize);
  }
  if (readU32(bytes, AT.entrySize) !== ENTRY_BYTES) throw bad('entry size', readU32(bytes, AT.entrySize), `${ENTRY_BYTES}`, AT.entrySize);
  const header: GzipIndexHeader = {
    isCompressed: bytes[AT.windowCompression] === 1,
    entryCount: readU64(bytes, AT.entryCount),
    gzipSizeBytes: readU64(bytes, AT.gzipSize),
    originalSizeBytes: readU64(bytes, AT.originalSize),
    tableOffsetBytes: readU64(bytes, AT.tableOffset),
    tableBytes: readU64(bytes, AT.tableBytes),
  };
  if (header.gzipSizeBytes !== sizes.gzipFileBytes) {
    throw bad('gzip file size', header.gzipSizeBytes, `${sizes.gzipFileBytes}, the target's size`, AT.gzipSize);
  }
  if (readU64(bytes, AT.indexSize) !== sizes.indexFileBytes) {
    throw bad('index file size', readU64(bytes, AT.indexSize), `${sizes.indexFileBytes}`, AT.indexSize);
  }
  if (header.entryCount > MAX_GZIP_ENTRIES) throw bad('entry count', header.entryCount, `at most ${MAX_GZIP_ENTRIES}`, AT.entryCount);
  if (header.entryCount === 0 && header.originalSizeBytes > 0) throw bad('entry count', 0, 'at least 1', AT.entryCount);
  if (!Number.isSafeInteger(header.originalSizeBytes)) {
    throw bad('decompressed size', header.originalSizeBytes, 'below 2^53', AT.originalSize);
  }
  if (header.tableOffsetBytes < GZIP_INDEX_HEADER_BYTES || header.tableOffsetBytes + header.tableBytes !== sizes.indexFileBytes) {
    const expected = `from ${GZIP_INDEX_HEADER_BYTES} on, and with ${header.tableBytes} bytes up to the end of the file`;
    throw bad('table offset', header.tableOffsetBytes, expected, AT.tableOffset);
  }
  return header;
}

/** Parses the stored entry table. Throws DataLoss on an entry that is out of order or points outside its file. */
export function parseGzipEntries(stored: Uint8Array, header: GzipIndexHeader, subject: string): GzipEntries {
  const size = header.entryCount * ENTRY_BYTES;
  const raw = unpack(stored, header.isCompressed, size, 'entry table', header.tableOffsetBytes, subject);
  const n = header.entryCount;
  const memory = new SharedArrayBuffer(n * 27);
  const entries: GzipEntries = {
    count: n,
    plainOffset: new Float64Array(memory, 0, n),
    gzipOffset: new Float64Array(memory, n * 8, n),
    windowOffset: new Float64Array(memory, n * 16, n),
    windowBytes: new Uint16Array(memory, n * 24, n),
    bits: new Uint8Array(memory, n * 26, n),
  };
  for (let i = 0; i < n; i++) {
    const at = i * ENTRY_BYTES;
    entries.plainOffset[i] = readU64(raw, at);
    entries.gzipOffset[i] = readU64(raw, at + 8);
    entries.windowOffset[i] = readU64(raw, at + 16);
    const windowBytes = readU32(raw, at + 25);
    entries.bits[i] = raw[at + 24]!;
    // Above the limit it is refused below, before the cut value could be used.
    entries.windowBytes[i] = Math.min(windowBytes, 0xffff);
  }
  checkEntries(entries, header, subject);
  return entries;
}

function checkEntries(entries: GzipEntries, header: GzipIndexHeader, subject: string): void {
  for (let i = 0; i < entries.count; i++) {
    const bad = (field: string, found: number, expected: string): Error =>
      badField({ op: OP, subject, field: `entry ${i} ${field}`, found, expected, offsetBytes: header.tableOffsetBytes });
    const plain = entries.plainOffset[i]!;
    const gzip = entries.gzipOffset[i]!;
    const previousPlain = i === 0 ? 0 : entries.plainOffset[i - 1]!;
    const nextPlain = i + 1 < entries.count ? entries.plainOffset[i + 1]! : header.originalSizeBytes;
    const nextGzip = i + 1 < entries.count ? entries.gzipOffset[i + 1]! : header.gzipSizeBytes;
    if ((i === 0 && plain !== 0) || plain < previousPlain || plain > header.originalSizeBytes) {
      throw bad('de_pos', plain, `ascending from 0 to at most ${header.originalSizeBytes}`);
    }
    if (nextPlain - plain > MAX_GZIP_SPAN_BYTES) throw bad('span', nextPlain - plain, `at most ${MAX_GZIP_SPAN_BYTES} bytes`);
    if (gzip < 1 || gzip >= header.gzipSizeBytes || nextGzip < gzip || nextGzip - gzip > MAX_GZIP_SPAN_BYTES) {
      throw bad('en_pos', gzip, `ascending within the gzip file's ${header.gzipSizeBytes} bytes, ${MAX_GZIP_SPAN_BYTES} apart at most`);
    }
    if (entries.bits[i]! > 7) throw bad('bits', entries.bits[i]!, '0..7');
    const windowBytes = entries.windowBytes[i]!;
    if (windowBytes > MAX_STORED_WINDOW_BYTES) throw bad('win_len', windowBytes, `at most ${MAX_STORED_WINDOW_BYTES}`);
    const windowOffset = entries.windowOffset[i]!;
    if (windowOffset < GZIP_INDEX_HEADER_BYTES || windowOffset + windowBytes > header.tableOffsetBytes) {
      throw bad('win_pos', windowOffset, `a window between the header and the table at ${header.tableOffsetBytes}`);
    }
  }
}

/** The window of one entry from its stored bytes: exactly 32768 bytes, front-filled with zeros near the start. Throws DataLoss. */
export function unpackWindow(stored: Uint8Array, isCompressed: boolean, offsetBytes: number, subject: string): Uint8Array {
  return unpack(stored, isCompressed, GZIP_WINDOW_BYTES, 'window', offsetBytes, subject);
}

function unpack(stored: Uint8Array, isCompressed: boolean, size: number, field: string, offsetBytes: number, subject: string): Uint8Array {
  let plain = stored;
  if (isCompressed && !(size === 0 && stored.length === 0)) {
    try {
      plain = inflateSync(stored, { maxOutputLength: Math.max(1, size) });
    } catch (cause) {
      throw badField({ op: OP, subject, field, found: 'no such zlib stream', expected: `${size} bytes in zlib`, offsetBytes, cause });
    }
  }
  if (plain.length !== size) {
    throw badField({ op: OP, subject, field: `${field} length`, found: plain.length, expected: `${size}`, offsetBytes });
  }
  return plain;
}

/** Index of the last entry at or before `plainOffset`. */
export function findGzipEntry(entries: Pick<GzipEntries, 'count' | 'plainOffset'>, plainOffset: number): number {
  let low = 0;
  let high = entries.count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (entries.plainOffset[middle]! <= plainOffset) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
