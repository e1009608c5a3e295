/**
 * Opening one layer: which wrappers its blob has, where its data lies and what its index says. Each function either has all bytes it
 * needs, or adds what is missing and returns undefined, to be called again.
 */

import { GZIP_INDEX_HEADER_BYTES, parseGzipEntries, parseGzipIndexHeader } from '../image/gzip/gzip-index.ts';
import type { GzipTables } from '../image/gzip/gzip-span.ts';
import { badField, readU32 } from '../image/lsmt/bytes.ts';
import { LSMT_BLOCK_BYTES, LSMT_RECORD_BYTES, parseLsmtHeader, parseLsmtTrailer } from '../image/lsmt/header.ts';
import { parseLayerIndex } from '../image/lsmt/layer-index.ts';
import type { SegmentTable } from '../image/lsmt/segments.ts';
import { findPayload, type Payload, TAR_HEAD_BYTES } from '../image/overlaybd-tar/wrapper.ts';
import type { BlockCodec } from '../image/zfile/codec.ts';
import { checkZFileLayout, isZFile, parseZFileHeader, parseZFileTrailer, ZFILE_BLOCK_BYTES } from '../image/zfile/header.ts';
import { parseJumpTable } from '../image/zfile/jump-table.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { SliceFile } from './slice-file.ts';
import { ZFileFile, type ZFileTables } from './zfile-file.ts';

/** Asked for beside the head in the first round: it holds the jump table of small layers and the index of bare ones. */
const SPECULATIVE_TAIL_BYTES = 64 * 1024;
/** Asked for beside the LSMT trailer: 16 Ki records, which is most layers' whole index. */
const SPECULATIVE_INDEX_BYTES = 256 * 1024;

/** A blob without its wrappers; plain data over shared memory. */
export interface ContentTables {
  blobIndex: number;
  digest: string;
  payload: Payload;
  /** Absent: the payload is not compressed. */
  zfile?: ZFileTables;
}

/** The bytes, or undefined after adding what is missing. */
function readBytes(file: RandomAccessFile, offset: number, length: number, missing: MissingRanges): Uint8Array | undefined {
  const bytes = Buffer.allocUnsafeSlow(length);
  return length === 0 || file.readSync(offset, length, bytes, 0, missing) ? bytes : undefined;
}

function readEnd(file: RandomAccessFile, length: number, missing: MissingRanges): Uint8Array | undefined {
  const size = Math.min(length, file.sizeBytes);
  return readBytes(file, file.sizeBytes - size, size, missing);
}

/** Looks through tar and ZFile wrappers, detected from content. Throws DataLoss naming the digest. */
export function openContent(blob: RandomAccessFile, blobIndex: number, digest: string, missing: MissingRanges): ContentTables | undefined {
  const head = readBytes(blob, 0, Math.min(blob.sizeBytes, TAR_HEAD_BYTES), missing);
  if (head === undefined) {
    readEnd(blob, SPECULATIVE_TAIL_BYTES, missing);
    return undefined;
  }
  const payload = findPayload(head, blob.sizeBytes, digest);
  const file = new SliceFile(blob, payload.offsetBytes, payload.sizeBytes);
  if (file.sizeBytes < ZFILE_BLOCK_BYTES) return { blobIndex, digest, payload };
  const first = readBytes(file, 0, ZFILE_BLOCK_BYTES, missing);
  if (first === undefined) return undefined;
  if (!isZFile(first)) return { blobIndex, digest, payload };
  let values = parseZFileHeader(first, digest);
  if (!values.isFinal) {
    const last = readEnd(file, ZFILE_BLOCK_BYTES, missing);
    if (last === undefined) return undefined;
    values = { ...parseZFileTrailer(last, file.sizeBytes, digest), isFinal: false };
  }
  const layout = checkZFileLayout(values, file.sizeBytes, digest);
  const table = readBytes(file, layout.indexOffsetBytes, layout.blockCount * 4, missing);
  if (table === undefined) return undefined;
  const { algorithm, blockSizeBytes, originalSizeBytes, hasBlockCrc } = layout;
  const jumpTable = parseJumpTable(table, layout, digest);
  return { blobIndex, digest, payload, zfile: { algorithm, blockSizeBytes, originalSizeBytes, hasBlockCrc, jumpTable } };
}

/** The file that {@link openContent} found. */
export function createContentFile(content: ContentTables, blob: RandomAccessFile, codec: BlockCodec): RandomAccessFile {
  const { payload, zfile, digest, blobIndex } = content;
  const isWhole = payload.offsetBytes === 0 && payload.sizeBytes === blob.sizeBytes;
  const inner = isWhole ? blob : new SliceFile(blob, payload.offsetBytes, payload.sizeBytes);
  if (zfile === undefined) return inner;
  return new ZFileFile(inner, zfile, codec, { subject: digest, blobId: blobIndex, offsetInBlob: payload.offsetBytes });
}

export interface LayerIndex {
  virtualSizeBytes: number;
  segments: SegmentTable;
}

/** Reads header, trailer and index of a committed or sealed layer file. Throws DataLoss naming the digest. */
export function openLayerIndex(
  file: RandomAccessFile,
  kind: 'plain' | 'warp',
  digest: string,
  missing: MissingRanges,
): LayerIndex | undefined {
  if (file.sizeBytes < 2 * LSMT_BLOCK_BYTES) {
    const expected = `at least ${2 * LSMT_BLOCK_BYTES} bytes, a header and a trailer`;
    throw badField({ op: 'open lsmt layer', subject: digest, field: 'file size', found: file.sizeBytes, expected, offsetBytes: 0 });
  }
  const first = readBytes(file, 0, LSMT_BLOCK_BYTES, missing);
  const last = readEnd(file, LSMT_BLOCK_BYTES, missing);
  if (last === undefined) readEnd(file, SPECULATIVE_INDEX_BYTES, missing);
  // A file that is no layer at all is refused before more of it is fetched.
  if (first !== undefined) parseLsmtHeader(first, digest);
  if (first === undefined || last === undefined) return undefined;
  const trailer = parseLsmtTrailer(last, file.sizeBytes, digest);
  const index = readBytes(file, trailer.indexOffsetBytes, trailer.indexCount * LSMT_RECORD_BYTES, missing);
  if (index === undefined) return undefined;
  return { virtualSizeBytes: trailer.virtualSizeBytes, segments: parseLayerIndex(index, { trailer, kind, subject: digest }) };
}

/** Reads header and entries of a gzip index. Throws DataLoss naming the index's digest. */
export function openGzipIndex(
  index: RandomAccessFile,
  gzipFileBytes: number,
  digest: string,
  missing: MissingRanges,
): GzipTables | undefined {
  const head = readBytes(index, 0, Math.min(GZIP_INDEX_HEADER_BYTES, index.sizeBytes), missing);
  if (head === undefined) {
    readEnd(index, SPECULATIVE_TAIL_BYTES, missing);
    return undefined;
  }
  const header = parseGzipIndexHeader(head, { indexFileBytes: index.sizeBytes, gzipFileBytes }, digest);
  const stored = readBytes(index, header.tableOffsetBytes, header.tableBytes, missing);
  if (stored === undefined) return undefined;
  const entries = parseGzipEntries(stored, header, digest);
  return { originalSizeBytes: header.originalSizeBytes, isCompressed: header.isCompressed, entries };
}

/** Of a gzip member: header (10 bytes at least), data, CRC-32 and size. */
const MIN_GZIP_BYTES = 18;

/** The size, modulo 2^32, that the last member of a gzip file states. Throws DataLoss when the file is too small to be one. */
export function readGzipEnd(gzip: RandomAccessFile, missing: MissingRanges): number | undefined {
  if (gzip.sizeBytes < MIN_GZIP_BYTES) {
    const expected = `at least ${MIN_GZIP_BYTES} bytes`;
    throw badField({ op: 'open gzip layer', subject: 'target', field: 'file size', found: gzip.sizeBytes, expected, offsetBytes: 0 });
  }
  const end = readEnd(gzip, 4, missing);
  return end === undefined ? undefined : readU32(end, 0);
}
