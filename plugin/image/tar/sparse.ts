/**
 * Sparse files in a tar: which parts of the file the stored bytes are. Source: GNU tar manual, "Storing Sparse Files".
 *
 *   type S     up to 4 pairs in the header, then blocks of 21 pairs while `isextended` is set
 *   PAX 0.0    GNU.sparse.size, and GNU.sparse.offset / GNU.sparse.numbytes repeated
 *   PAX 0.1    GNU.sparse.size, GNU.sparse.map = offset,length,offset,length…
 *   PAX 1.0    GNU.sparse.major=1, GNU.sparse.realsize; the map is decimal lines in front of the data, padded to a block
 */
import { tarError } from './errors.ts';
import { parseNumber } from './header.ts';
import { MAX_CONTENT_BYTES, MAX_SPARSE_SEGMENTS } from './limits.ts';
import { type PaxRecords, parsePaxInteger } from './pax.ts';

/** A run of stored bytes: where in the file it belongs. Runs are stored one after the other. */
export interface SparseSegment {
  offsetBytes: number;
  lengthBytes: number;
}

/** Reads `count` pairs of a GNU header (24 bytes each) at `start` into `segments`; an empty pair ends the list. */
export function readGnuPairs(block: Buffer, start: number, count: number, segments: SparseSegment[], offset: number): void {
  for (let i = 0; i < count; i += 1) {
    const at = start + 24 * i;
    if (block[at] === 0 && block[at + 12] === 0) return;
    segments.push({
      offsetBytes: parseNumber(block, at, 12, 'sparse offset', offset),
      lengthBytes: parseNumber(block, at + 12, 12, 'sparse length', offset),
    });
    if (segments.length > MAX_SPARSE_SEGMENTS) throw tooMany(offset);
  }
}

/** The map that PAX 0.0 or 0.1 records carry, or undefined when they carry none. */
export function paxSparseMap(records: PaxRecords, offset: number): SparseSegment[] | undefined {
  const map = records.text.get('GNU.sparse.map');
  const numbers = map === undefined ? records.sparsePairs : map.split(',', 2 * MAX_SPARSE_SEGMENTS + 2);
  return numbers === undefined ? undefined : pairUp(numbers, offset);
}

function pairUp(numbers: readonly string[], offset: number): SparseSegment[] {
  if (numbers.length % 2 !== 0) throw tarError(offset, '', 'sparse map has an offset without a length');
  if (numbers.length > 2 * MAX_SPARSE_SEGMENTS) throw tooMany(offset);
  const segments: SparseSegment[] = [];
  for (let i = 0; i < numbers.length; i += 2) {
    segments.push({
      offsetBytes: parsePaxInteger(numbers[i]!, 'sparse offset', offset),
      lengthBytes: parsePaxInteger(numbers[i + 1]!, 'sparse length', offset),
    });
  }
  return segments;
}

/**
 * Reads a PAX 1.0 map from the front of the stored content. Returns undefined while `body` does not hold all of it yet, else the
 * segments and how many bytes the map takes (its last block is padded).
 */
export function parseInlineMap(body: Buffer, offset: number): { segments: SparseSegment[]; mapBytes: number } | undefined {
  let position = 0;
  const line = (): string | undefined => {
    const end = body.indexOf(0x0a, position);
    if (end < 0) {
      if (body.length - position > 24) throw tarError(offset, '', 'sparse map holds a line longer than a number');
      return undefined;
    }
    const text = body.toString('latin1', position, Math.min(end, position + 24));
    position = end + 1;
    return text;
  };
  const countText = line();
  if (countText === undefined) return undefined;
  const count = parsePaxInteger(countText, 'sparse segment count', offset);
  if (count > MAX_SPARSE_SEGMENTS) throw tooMany(offset);
  const numbers: string[] = [];
  for (let i = 0; i < 2 * count; i += 1) {
    const text = line();
    if (text === undefined) return undefined;
    numbers.push(text);
  }
  const mapBytes = Math.ceil(position / 512) * 512;
  return body.length < mapBytes ? undefined : { segments: pairUp(numbers, offset), mapBytes };
}

/** Throws unless segments ascend without overlap inside the file and are all stored (more may be: it is skipped). Drops empty ones. */
export function checkSparseMap(
  segments: readonly SparseSegment[],
  sizeBytes: number,
  storedBytes: number,
  offset: number,
): SparseSegment[] {
  let end = 0;
  let sum = 0;
  for (const { offsetBytes, lengthBytes } of segments) {
    if (offsetBytes < end || lengthBytes < 0 || lengthBytes > MAX_CONTENT_BYTES || offsetBytes + lengthBytes > sizeBytes) {
      throw tarError(offset, '', `sparse segment ${offsetBytes}+${lengthBytes} overlaps or leaves the file of ${sizeBytes} bytes`);
    }
    end = offsetBytes + lengthBytes;
    sum += lengthBytes;
  }
  if (sum > storedBytes) throw tarError(offset, '', `sparse segments add up to ${sum} bytes, ${storedBytes} are stored`);
  return segments.filter((segment) => segment.lengthBytes > 0);
}

function tooMany(offset: number): Error {
  return tarError(offset, '', `more than ${MAX_SPARSE_SEGMENTS} sparse segments`, 'ResourceExhausted');
}
