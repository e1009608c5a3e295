/** Prefetch traces and priority lists: what to read ahead when a device starts. See FORMAT.md. */
import { badField, readU32, readU64, writeU32, writeU64 } from '../lsmt/bytes.ts';
import { CRC_SEED, crc32c } from '../zfile/crc32c.ts';

const OP = 'read trace';
const MAGIC = 0xc2ef_1820;
const HEADER_BYTES = 24;
const RECORD_BYTES = 24;
const READ = 0x52;
/** Larger ranges are split: the reference replays through a buffer of this size and overruns it otherwise. */
export const MAX_TRACE_READ_BYTES = 1024 * 1024;
/** A range longer than one I/O of the reference was not written by a recorder. */
const MAX_RECORDED_BYTES = 64 * 1024 * 1024;
/** Ranges of one trace; a start touches some ten thousand. */
export const MAX_TRACE_RANGES = 1024 * 1024;
export const MAX_PRIORITY_LIST_BYTES = 65536;

/** A range of a layer's LSMT file (tar and ZFile removed). */
export interface TraceRange {
  /** Position of the layer in the stack, 0 = lowest. */
  layerIndex: number;
  offsetBytes: number;
  lengthBytes: number;
}

export type Prefetch = { kind: 'trace'; ranges: TraceRange[] } | { kind: 'list'; paths: string[] };

/** Parses a prefetch file of either kind, told apart by the magic. Throws DataLoss on a damaged trace or a list that is too long. */
export function parsePrefetch(bytes: Uint8Array, subject: string): Prefetch {
  if (bytes.length >= 4 && readU32(bytes, 0) === MAGIC) return { kind: 'trace', ranges: parseTrace(bytes, subject) };
  return { kind: 'list', paths: parsePriorityList(bytes, subject) };
}

/** Parses a trace. Ranges above 1 MiB come out split; writes and impossible ranges are refused. */
export function parseTrace(bytes: Uint8Array, subject: string): TraceRange[] {
  const bad = (field: string, found: number, expected: string, offsetBytes: number): Error =>
    badField({ op: OP, subject, field, found, expected, offsetBytes });
  if (bytes.length < HEADER_BYTES) throw bad('size', bytes.length, `at least ${HEADER_BYTES} bytes`, 0);
  if (readU32(bytes, 0) !== MAGIC) throw bad('magic', readU32(bytes, 0), `${MAGIC}`, 0);
  const dataBytes = readU64(bytes, 8);
  if (HEADER_BYTES + dataBytes !== bytes.length) throw bad('data_size', dataBytes, `${bytes.length - HEADER_BYTES}`, 8);
  const count = Math.floor(dataBytes / RECORD_BYTES);
  if (count > MAX_TRACE_RANGES) throw bad('data_size', dataBytes, `at most ${MAX_TRACE_RANGES} records`, 8);
  const checksum = crc32c(CRC_SEED, bytes, HEADER_BYTES, count * RECORD_BYTES);
  if (checksum !== readU32(bytes, 16)) throw bad('checksum', readU32(bytes, 16), `${checksum}`, 16);
  const ranges: TraceRange[] = [];
  for (let i = 0; i < count; i++) {
    const at = HEADER_BYTES + i * RECORD_BYTES;
    if (bytes[at] !== READ) throw bad(`record ${i} op`, bytes[at]!, `${READ} (R)`, at);
    const lengthBytes = readU64(bytes, at + 8);
    const offsetBytes = readU64(bytes, at + 16);
    if (lengthBytes > MAX_RECORDED_BYTES) throw bad(`record ${i} count`, lengthBytes, `at most ${MAX_RECORDED_BYTES}`, at + 8);
    if (!Number.isSafeInteger(offsetBytes + lengthBytes)) throw bad(`record ${i} offset`, offsetBytes, 'below 2^53', at + 16);
    pushSplit(ranges, readU32(bytes, at + 4), offsetBytes, lengthBytes);
    if (ranges.length > MAX_TRACE_RANGES) throw bad(`record ${i}`, ranges.length, `at most ${MAX_TRACE_RANGES} ranges`, at);
  }
  return ranges;
}

function pushSplit(ranges: TraceRange[], layerIndex: number, offsetBytes: number, lengthBytes: number): void {
  for (let done = 0; done < lengthBytes; done += MAX_TRACE_READ_BYTES) {
    ranges.push({ layerIndex, offsetBytes: offsetBytes + done, lengthBytes: Math.min(MAX_TRACE_READ_BYTES, lengthBytes - done) });
  }
}

/** Encodes a trace; ranges above 1 MiB are split, padding is zero. */
export function encodeTrace(ranges: readonly TraceRange[]): Uint8Array {
  const split: TraceRange[] = [];
  for (const range of ranges) pushSplit(split, range.layerIndex, range.offsetBytes, range.lengthBytes);
  const bytes = new Uint8Array(HEADER_BYTES + split.length * RECORD_BYTES);
  split.forEach((range, i) => {
    const at = HEADER_BYTES + i * RECORD_BYTES;
    bytes[at] = READ;
    writeU32(bytes, at + 4, range.layerIndex);
    writeU64(bytes, at + 8, range.lengthBytes);
    writeU64(bytes, at + 16, range.offsetBytes);
  });
  writeU32(bytes, 0, MAGIC);
  writeU64(bytes, 8, split.length * RECORD_BYTES);
  writeU32(bytes, 16, crc32c(CRC_SEED, bytes, HEADER_BYTES));
  return bytes;
}

const PATH = /^[A-Za-z0-9_.\-/]+$/;

/** Paths of a priority list; a trailing `/` asks for the whole directory. Lines with other characters are ignored, as in the reference. */
export function parsePriorityList(bytes: Uint8Array, subject: string): string[] {
  if (bytes.length > MAX_PRIORITY_LIST_BYTES) {
    const expected = `at most ${MAX_PRIORITY_LIST_BYTES} bytes`;
    throw badField({ op: 'read priority list', subject, field: 'size', found: bytes.length, expected, offsetBytes: 0 });
  }
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    .toString('latin1')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => PATH.test(line));
}

/** Encodes a priority list; paths that readers would ignore are left out, and the list is cut at 65536 bytes. */
export function encodePriorityList(paths: readonly string[]): Uint8Array {
  let text = '';
  for (const path of paths) {
    if (!PATH.test(path)) continue;
    if (text.length + path.length + 1 > MAX_PRIORITY_LIST_BYTES) break;
    text += `${path}\n`;
  }
  return Buffer.from(text, 'latin1');
}
