/**
 * One span of a gzip layer, from an entry of its index to the next: where its bytes lie, and what they inflate to. See FORMAT.md.
 *
 *   window (in the index) ─┐
 *   stored bytes ──────────┴─► inflate ─► the span's part of the decompressed data
 */
import { isAppError } from '../../base/errors.ts';
import { type GzipEntries, unpackWindow } from './gzip-index.ts';
import type { RawInflater } from './inflater.ts';

/** What opening an index found out; plain data over shared memory. */
export interface GzipTables {
  originalSizeBytes: number;
  /** Windows are zlib streams; otherwise stored as they are. */
  isCompressed: boolean;
  entries: GzipEntries;
}

/** Offsets in the gzip file, in the index file and in the decompressed data. */
export interface GzipSpan {
  storedOffset: number;
  storedBytes: number;
  windowOffset: number;
  windowBytes: number;
  plainOffset: number;
  plainBytes: number;
  /** 0..7: how many bits of the first stored byte belong to the span, or 0 when all do. */
  bits: number;
}

/** Span `i` of a gzip file of `gzipBytes`. */
export function gzipSpan({ entries, originalSizeBytes }: GzipTables, gzipBytes: number, i: number): GzipSpan {
  const bits = entries.bits[i]!;
  const plainOffset = entries.plainOffset[i]!;
  const isLast = i + 1 === entries.count;
  const storedOffset = entries.gzipOffset[i]! - (bits > 0 ? 1 : 0);
  // The block at which the next span begins may share its first byte with the end of this one.
  const storedEnd = isLast ? gzipBytes : Math.min(gzipBytes, entries.gzipOffset[i + 1]!);
  return {
    storedOffset,
    storedBytes: storedEnd - storedOffset,
    windowOffset: entries.windowOffset[i]!,
    windowBytes: entries.windowBytes[i]!,
    plainOffset,
    plainBytes: (isLast ? originalSizeBytes : entries.plainOffset[i + 1]!) - plainOffset,
    bits,
  };
}

/** What is wrong with a span, and whether the gzip file's bytes or the index's are to blame. */
export interface SpanFault {
  part: 'gzip' | 'index';
  what: string;
}

/** Inflates a span into `output`, which has its size exactly. Returns what is wrong; then `output` holds anything. */
export function inflateSpan(
  inflater: RawInflater,
  span: { bits: number; isCompressed: boolean },
  bytes: { stored: Uint8Array; window: Uint8Array },
  output: Uint8Array,
): SpanFault | undefined {
  const { bits, isCompressed } = span;
  let dictionary: Uint8Array;
  try {
    dictionary = unpackWindow(bytes.window, isCompressed, 0, 'window');
  } catch (error) {
    if (!isAppError(error)) throw error;
    return { part: 'index', what: 'its window cannot be unpacked' };
  }
  const bitsValue = bits > 0 ? bytes.stored[0]! >>> (8 - bits) : 0;
  const input = bits > 0 ? bytes.stored.subarray(1) : bytes.stored;
  if (output.length === 0) return undefined;
  const produced = input.length > 0 ? inflater.inflate(input, { bits, bitsValue, dictionary }, output).produced : 0;
  if (produced === output.length) return undefined;
  if (produced < 0) return { part: 'gzip', what: 'it is no deflate data' };
  return { part: 'gzip', what: `it inflates to ${produced} bytes, expected ${output.length}` };
}
