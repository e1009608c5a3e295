/**
 * Writes the random-access index of a gzip layer (`gzip.meta`) as the layer is read. See FORMAT.md, "Writing". The bytes depend on the
 * gzip file, the span and zlib's compressor (the one inside Node, so a Node version fixes them).
 *
 *   header (made last) │ windows, in order │ table
 */
import assert from 'node:assert';
import { deflateSync } from 'node:zlib';
import { AppError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import { writeU32, writeU64 } from '../lsmt/bytes.ts';
import { CRC_SEED, crc32c } from '../zfile/crc32c.ts';
import { AT, ENTRY_BYTES, GZIP_INDEX_HEADER_BYTES, GZIP_WINDOW_BYTES, MAGIC, MAX_GZIP_ENTRIES } from './gzip-index.ts';

/**
 * A cold read fetches and inflates one span: some 300 KB and 2 ms. The whole small blob of 247 MB of tar.gz (853 MB of headers, programs
 * and node_modules) is then 1.3 % of it; 2.0 % with spans of 512 KiB, 0.8 % with 2 MiB. It would be 3.8 % with whole windows.
 */
export const DEFAULT_GZIP_SPAN_BYTES = 1 * MIB;
/** The reference's default, recorded in the header; readers do not need it. */
const LEVEL = 6;

/** Where inflating can begin. */
export interface GzipEntry {
  /** Position in the decompressed data. */
  plainOffset: number;
  /** Position in the gzip file of the next whole byte. */
  gzipOffset: number;
  /** 0..7: unused bits of the byte before gzipOffset. */
  bits: number;
}

/** Compresses a window of exactly 32768 bytes, front-filled with zeros, as the index stores it. */
export function packWindow(window: Uint8Array): Uint8Array {
  assert(window.length === GZIP_WINDOW_BYTES, 'a window is 32768 bytes');
  return deflateSync(window, { level: LEVEL });
}

/** Says which block boundaries become entries: the start, then the first at or behind each multiple of the span. Known at once. */
export class SpanChooser {
  private readonly spanBytes: number;
  private next = 0;

  constructor(spanBytes: number) {
    assert(spanBytes >= 65536, 'the format wants spans from 64 KiB on');
    this.spanBytes = spanBytes;
  }

  /** Boundaries before this position are no entries. */
  get nextOffset(): number {
    return this.next;
  }

  /** True when the boundary at `plainOffset` (ascending) is an entry. */
  takes(plainOffset: number): boolean {
    if (plainOffset < this.next) return false;
    this.next = (Math.floor(plainOffset / this.spanBytes) + 1) * this.spanBytes;
    return true;
  }
}

/** Collects entries in order; the caller stores the windows one after the other behind 333 bytes of room for the header. */
export class GzipIndexWriter {
  private readonly spanBytes: number;
  private readonly subject: string;
  private readonly entries: (GzipEntry & { windowOffset: number; windowBytes: number })[] = [];
  private endBytes = GZIP_INDEX_HEADER_BYTES;

  constructor(spanBytes: number, subject: string) {
    this.spanBytes = spanBytes;
    this.subject = subject;
  }

  get entryCount(): number {
    return this.entries.length;
  }

  /** An entry whose stored window has `windowBytes` bytes. Throws ResourceExhausted when there are more than readers open. */
  add(entry: GzipEntry, windowBytes: number): void {
    const previous = this.entries.at(-1);
    assert(previous === undefined ? entry.plainOffset === 0 : entry.plainOffset > previous.plainOffset, 'entries ascend from 0');
    if (this.entries.length === MAX_GZIP_ENTRIES) {
      const what = `more than ${MAX_GZIP_ENTRIES} entries`;
      throw new AppError('ResourceExhausted', { op: 'write gzip index', subject: this.subject, what });
    }
    this.entries.push({ ...entry, windowOffset: this.endBytes, windowBytes });
    this.endBytes += windowBytes;
  }

  /** The file's first 333 bytes, and what follows the windows. */
  finish(sizes: { gzipBytes: number; plainBytes: number }): { header: Uint8Array; table: Uint8Array } {
    const raw = new Uint8Array(this.entries.length * ENTRY_BYTES);
    this.entries.forEach((entry, i) => {
      const at = i * ENTRY_BYTES;
      writeU64(raw, at, entry.plainOffset);
      writeU64(raw, at + 8, entry.gzipOffset);
      writeU64(raw, at + 16, entry.windowOffset);
      raw[at + 24] = entry.bits;
      writeU32(raw, at + 25, entry.windowBytes);
    });
    const table = deflateSync(raw, { level: LEVEL });
    const header = new Uint8Array(GZIP_INDEX_HEADER_BYTES);
    header.set(MAGIC);
    header[AT.major] = 1;
    header[AT.windowCompression] = 1;
    header[AT.level] = LEVEL;
    writeU32(header, AT.span, this.spanBytes);
    writeU32(header, AT.windowSize, GZIP_WINDOW_BYTES);
    writeU32(header, AT.entrySize, ENTRY_BYTES);
    writeU64(header, AT.entryCount, this.entries.length);
    writeU64(header, AT.gzipSize, sizes.gzipBytes);
    writeU64(header, AT.indexSize, this.endBytes + table.length);
    writeU64(header, AT.originalSize, sizes.plainBytes);
    writeU64(header, AT.tableOffset, this.endBytes);
    writeU64(header, AT.tableBytes, table.length);
    writeU32(header, AT.crc, crc32c(CRC_SEED, header, 0, AT.crc));
    return { header, table };
  }
}
