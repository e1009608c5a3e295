/**
 * SHA-256 of each chunk of an index-only layer's decompressed target, an entry of the small blob that the reference ignores. See
 * FORMAT.md. The manifest binds the blob, the blob binds this list, so what a span inflates to can be checked before it is served.
 */
import assert from 'node:assert';
import type { AppError } from '../../base/errors.ts';
import { badField, hasBytes, readU32, readU64, writeU32, writeU64 } from '../lsmt/bytes.ts';

/** Name of the entry in the small blob. */
export const CHUNK_DIGESTS_NAME = 'sha256.chunks';
export const TARGET_CHUNK_BYTES = 65536;
export const TARGET_DIGEST_BYTES = 32;
const HEADER_BYTES = 32;
const MAGIC = Uint8Array.from([0x6f, 0x62, 0x64, 0x63, 0x68, 0x75, 0x6e, 0x6b]);
const AT = { version: 8, chunkBytes: 12, plainBytes: 16, count: 24 };
const OP = 'open chunk digests';
/** 128 GiB of tar; the small blob has a limit of its own in front of this one. */
const MAX_DIGESTS = 2 * 1024 * 1024;

/** Chunks begin anew at each span, so that a span is checked with nothing but itself. */
export interface ChunkDigests {
  chunkBytes: number;
  plainBytes: number;
  /** For each span the number of its first digest; one more entry at the end. */
  firstOfSpan: Uint32Array;
  /** 32 bytes each, in order. A view into the input. */
  digests: Uint8Array;
}

/** The file: header and digests. `digests` in the order of the data. */
export function encodeChunkDigestsHeader(plainBytes: number, count: number): Uint8Array {
  const header = new Uint8Array(HEADER_BYTES);
  header.set(MAGIC);
  writeU32(header, AT.version, 1);
  writeU32(header, AT.chunkBytes, TARGET_CHUNK_BYTES);
  writeU64(header, AT.plainBytes, plainBytes);
  writeU64(header, AT.count, count);
  return header;
}

/**
 * Parses the entry for a target whose spans begin at `spanStarts` (the index's `plainOffset`, ascending from 0; `[0]` for a plain tar)
 * and end at `plainBytes`. Throws DataLoss when the list is not one of exactly these chunks.
 */
export function parseChunkDigests(
  bytes: Uint8Array,
  target: { spanStarts: ArrayLike<number>; plainBytes: number },
  subject: string,
): ChunkDigests {
  const bad = (field: string, found: string | number, expected: string, offsetBytes: number): AppError =>
    badField({ op: OP, subject, field, found, expected, offsetBytes });
  if (bytes.length < HEADER_BYTES) throw bad('size', bytes.length, `at least ${HEADER_BYTES} bytes`, 0);
  if (!hasBytes(bytes, 0, MAGIC)) throw bad('magic', 'something else', 'obdchunk', 0);
  const version = readU32(bytes, AT.version);
  if (version !== 1) throw bad('version', version, '1', AT.version);
  const chunkBytes = readU32(bytes, AT.chunkBytes);
  if (chunkBytes !== TARGET_CHUNK_BYTES) throw bad('chunk size', chunkBytes, `${TARGET_CHUNK_BYTES}`, AT.chunkBytes);
  const plainBytes = readU64(bytes, AT.plainBytes);
  if (plainBytes !== target.plainBytes) throw bad('decompressed size', plainBytes, `${target.plainBytes}, the target's`, AT.plainBytes);
  const count = readU64(bytes, AT.count);
  if (count > MAX_DIGESTS || HEADER_BYTES + count * TARGET_DIGEST_BYTES !== bytes.length) {
    throw bad('number of digests', count, `what ${bytes.length} bytes hold, at most ${MAX_DIGESTS}`, AT.count);
  }
  const spans = target.spanStarts.length;
  const firstOfSpan = new Uint32Array(spans + 1);
  for (let i = 0; i < spans; i++) {
    const end = i + 1 < spans ? target.spanStarts[i + 1]! : plainBytes;
    assert(end >= target.spanStarts[i]!, 'spans ascend');
    const next = firstOfSpan[i]! + Math.ceil((end - target.spanStarts[i]!) / chunkBytes);
    if (next > count) throw bad('number of digests', count, `at least ${next}, one for each chunk of the spans`, AT.count);
    firstOfSpan[i + 1] = next;
  }
  if (firstOfSpan[spans] !== count)
    throw bad('number of digests', count, `${firstOfSpan[spans]}, one for each chunk of the spans`, AT.count);
  return { chunkBytes, plainBytes, firstOfSpan, digests: bytes.subarray(HEADER_BYTES) };
}
