/**
 * The compact form of an index: four parallel arrays, 20 bytes a segment, over shared memory once finished so that worker threads
 * read the same copy. Ours.
 *
 * Segments are sorted by device position and do not overlap.
 */
import { SECTOR_BYTES } from '../../base/units.ts';

/** Bit 15 of `length`: the range reads as zeros. */
const ZEROED = 0x8000;
const LENGTH_MASK = 0x3fff;
/** The longest range that one record can hold, in sectors. */
export const MAX_SEGMENT_SECTORS = 0x3fff;

export const SEGMENT_BYTES = 20;

export interface SegmentTable {
  readonly count: number;
  /** Device position, sectors. */
  readonly lba: Float64Array;
  /** Position in the source, sectors; for a zeroed segment where its data would have been. */
  readonly moffset: Float64Array;
  /** Length in sectors (bits 0..13) and the zeroed bit (15); use {@link lengthOf} and {@link isZeroed}. */
  readonly length: Uint16Array;
  /** Which file holds the data; meaning is the caller's (see device-file). */
  readonly source: Uint16Array;
}

export function lengthOf(table: SegmentTable, i: number): number {
  return table.length[i]! & LENGTH_MASK;
}

export function isZeroed(table: SegmentTable, i: number): boolean {
  return (table.length[i]! & ZEROED) !== 0;
}

/** Index of the last segment that begins at or before `sector`; -1 when there is none. */
export function findSegment(table: SegmentTable, sector: number): number {
  const { lba } = table;
  let low = 0;
  let high = table.count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (lba[middle]! <= sector) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Collects segments in ascending order. */
export class SegmentBuilder {
  private capacity: number;
  private lba: Float64Array;
  private moffset: Float64Array;
  private length: Uint16Array;
  private source: Uint16Array;
  count = 0;

  constructor(capacity = 64) {
    this.capacity = Math.max(1, capacity);
    this.lba = new Float64Array(this.capacity);
    this.moffset = new Float64Array(this.capacity);
    this.length = new Uint16Array(this.capacity);
    this.source = new Uint16Array(this.capacity);
  }

  push(lba: number, length: number, moffset: number, zeroed: boolean, source: number): void {
    if (this.count === this.capacity) this.grow();
    const i = this.count++;
    this.lba[i] = lba;
    this.moffset[i] = moffset;
    this.length[i] = zeroed ? length | ZEROED : length;
    this.source[i] = source;
  }

  /** Lengthens the last segment; the sum must fit one record. */
  extendLast(length: number): void {
    const i = this.count - 1;
    this.length[i] = this.length[i]! + length;
  }

  /** The table so far, over private memory that this builder still owns. */
  view(): SegmentTable {
    return { count: this.count, lba: this.lba, moffset: this.moffset, length: this.length, source: this.source };
  }

  private grow(): void {
    this.capacity *= 2;
    this.lba = copyInto(new Float64Array(this.capacity), this.lba);
    this.moffset = copyInto(new Float64Array(this.capacity), this.moffset);
    this.length = copyInto(new Uint16Array(this.capacity), this.length);
    this.source = copyInto(new Uint16Array(this.capacity), this.source);
  }
}

function copyInto<T extends Float64Array | Uint16Array>(to: T, from: T): T {
  to.set(from as never);
  return to;
}

/** A copy of exactly the right size in shared memory; posting it to a worker thread copies nothing. */
export function shareSegments(table: SegmentTable): SegmentTable {
  const n = table.count;
  const memory = new SharedArrayBuffer(n * SEGMENT_BYTES);
  const shared = {
    count: n,
    lba: new Float64Array(memory, 0, n),
    moffset: new Float64Array(memory, n * 8, n),
    length: new Uint16Array(memory, n * 16, n),
    source: new Uint16Array(memory, n * 18, n),
  };
  shared.lba.set(table.lba.subarray(0, n));
  shared.moffset.set(table.moffset.subarray(0, n));
  shared.length.set(table.length.subarray(0, n));
  shared.source.set(table.source.subarray(0, n));
  return shared;
}

/** One segment as plain values; for writers, tools and tests, not for the read path. */
export interface Segment {
  lbaSectors: number;
  lengthSectors: number;
  moffsetSectors: number;
  isZeroed: boolean;
  source: number;
}

export function* segmentsOf(table: SegmentTable): Generator<Segment> {
  for (let i = 0; i < table.count; i++) {
    yield {
      lbaSectors: table.lba[i]!,
      lengthSectors: lengthOf(table, i),
      moffsetSectors: table.moffset[i]!,
      isZeroed: isZeroed(table, i),
      source: table.source[i]!,
    };
  }
}

/** Sectors to bytes; exact, since 512 is a power of two. */
export function sectorsToBytes(sectors: number): number {
  return sectors * SECTOR_BYTES;
}
