/**
 * The TurboOCI layer blob after gunzip: a small tar with file-system metadata, a marker and, for gzip layers, the gzip index.
 * Also the header-only tar of the local conversion flow. See FORMAT.md.
 */
import { MIB, roundUp } from '../../base/units.ts';
import { badField, readText, readU64 } from '../lsmt/bytes.ts';
import { CHUNK_DIGESTS_NAME } from './chunk-digests.ts';

const OP = 'open turbo layer';
const BLOCK = 512;
const AT = { size: 124, type: 156, devMajor: 329 };
export const TURBO_MARKER = '.turbo.ociv1';
export const EROFS_META_NAME = 'erofs.fs.meta';
export const GZIP_INDEX_NAME = 'gzip.meta';

/**
 * The largest layer blob that is read, held in memory as a whole: the reference's index of a 370 MB layer has 12 MB, ours 5, so this is for
 * layers of several GB. Readers and writers share it: what is larger could be published, and never be served.
 */
export const MAX_TURBO_BLOB_BYTES = 64 * MIB;
/** The same uncompressed. Metadata compresses to a third and windows do not: twice the above is far from any real one. */
export const MAX_TURBO_TAR_BYTES = 2 * MAX_TURBO_BLOB_BYTES;

export interface TurboLayer {
  /** `ext4` or `erofs`, or both, to the ZFile (or bare) warp layer. Views into the input. */
  metaByFsType: Map<'ext4' | 'erofs', Uint8Array>;
  gzipIndex: Uint8Array | undefined;
  /** Layers of this product: see chunk-digests.ts, which parses it. */
  chunkDigests: Uint8Array | undefined;
}

function sizeAt(tar: Uint8Array, header: number, subject: string): number {
  const text = String.fromCharCode(...tar.subarray(header + AT.size, header + AT.size + 12));
  const match = /^[ \0]*([0-7]*)[ \0]*$/.exec(text);
  if (match !== null) return match[1] === '' ? 0 : Number.parseInt(match[1]!, 8);
  throw badField({ op: OP, subject, field: 'entry size', found: JSON.stringify(text), expected: 'octal', offsetBytes: header + AT.size });
}

function isZeroBlock(tar: Uint8Array, at: number): boolean {
  for (let i = at; i < at + BLOCK; i++) if (tar[i] !== 0) return false;
  return true;
}

/** Reads the entries of a decompressed TurboOCI layer blob. Throws DataLoss when it is not one. Bounding the gunzip is the caller's. */
export function parseTurboLayer(tar: Uint8Array, subject: string): TurboLayer {
  const layer: TurboLayer = { metaByFsType: new Map(), gzipIndex: undefined, chunkDigests: undefined };
  let hasMarker = false;
  for (let at = 0; at + BLOCK <= tar.length && !isZeroBlock(tar, at); ) {
    const name = readText(tar, at, 100);
    const size = sizeAt(tar, at, subject);
    const content = at + BLOCK;
    if (content + size > tar.length) {
      const expected = `at most ${tar.length - content}, what the tar holds`;
      throw badField({ op: OP, subject, field: `size of ${name}`, found: size, expected, offsetBytes: at + AT.size });
    }
    const bytes = tar.subarray(content, content + size);
    if (name === 'ext4.fs.meta') layer.metaByFsType.set('ext4', bytes);
    else if (name === EROFS_META_NAME) layer.metaByFsType.set('erofs', bytes);
    else if (name === GZIP_INDEX_NAME) layer.gzipIndex = bytes;
    else if (name === CHUNK_DIGESTS_NAME) layer.chunkDigests = bytes;
    else if (name === TURBO_MARKER) hasMarker = true;
    at = content + roundUp(size, BLOCK);
  }
  if (hasMarker && layer.metaByFsType.size > 0) return layer;
  const found = hasMarker ? 'no file-system metadata' : 'no marker';
  throw badField({ op: OP, subject, field: 'entries', found, expected: `${TURBO_MARKER} and a *.fs.meta entry`, offsetBytes: 0 });
}

export interface HeaderOnlyEntry {
  /** The entry's own header block, checksum and device numbers not usable. A view into the input. */
  header: Uint8Array;
  /** PAX and GNU long-name blocks, headers and data, that came before it. A view into the input. */
  extension: Uint8Array;
  type: string;
  sizeBytes: number;
  /** Where the content begins in the decompressed tar; regular files only. */
  contentOffsetBytes: number | undefined;
}

/** Iterates a header-only tar: headers and their extensions, no contents. Throws DataLoss on a cut file or a size that is no number. */
export function* parseHeaderOnlyTar(tar: Uint8Array, subject: string): Generator<HeaderOnlyEntry> {
  for (let at = 0; at < tar.length; ) {
    const begin = at;
    for (let type = typeAt(tar, at); type === 'x' || type === 'g' || type === 'L' || type === 'K'; type = typeAt(tar, at)) {
      const size = sizeAt(tar, at, subject);
      at += BLOCK + roundUp(size, BLOCK);
    }
    if (at + BLOCK > tar.length) {
      throw badField({ op: OP, subject, field: 'header', found: 'the end of the file', expected: '512 bytes', offsetBytes: at });
    }
    const type = typeAt(tar, at);
    const isRegular = type === '0' || type === '\0' || type === '7';
    const sizeBytes = sizeAt(tar, at, subject);
    const contentOffsetBytes = isRegular ? readU64(tar, at + AT.devMajor) : undefined;
    if (contentOffsetBytes !== undefined && !Number.isSafeInteger(contentOffsetBytes + sizeBytes)) {
      const expected = 'below 2^53';
      throw badField({ op: OP, subject, field: 'content offset', found: contentOffsetBytes, expected, offsetBytes: at + AT.devMajor });
    }
    yield { header: tar.subarray(at, at + BLOCK), extension: tar.subarray(begin, at), type, sizeBytes, contentOffsetBytes };
    at += BLOCK;
  }
}

function typeAt(tar: Uint8Array, at: number): string {
  return at + BLOCK <= tar.length ? String.fromCharCode(tar[at + AT.type]!) : '';
}
