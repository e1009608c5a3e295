/**
 * The block device: a merged segment table over the files that hold the data. Ranges that no segment covers, or a zeroed one, read as
 * zeros, and so does what lies past the end of a source (overlaybd-formats 1.5). Any offset and length; the reference takes only
 * whole sectors.
 */
import assert from 'node:assert';
import { SECTOR_BYTES } from '../base/units.ts';
import { findSegment, isZeroed, lengthOf, type SegmentTable } from '../image/lsmt/segments.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';

export class StackFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly table: SegmentTable;
  private readonly sources: readonly RandomAccessFile[];

  /** `sources[i]` holds the data of segments whose `source` is i. */
  constructor(table: SegmentTable, sources: readonly RandomAccessFile[], sizeBytes: number) {
    this.table = table;
    this.sources = sources;
    this.sizeBytes = sizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the device');
    const { table } = this;
    const end = offsetBytes + lengthBytes;
    let isComplete = true;
    let position = offsetBytes;
    let i = findSegment(table, Math.floor(position / SECTOR_BYTES));
    while (position < end) {
      const begin = i < 0 ? 0 : table.lba[i]! * SECTOR_BYTES;
      const segmentEnd = i < 0 ? 0 : begin + lengthOf(table, i) * SECTOR_BYTES;
      if (position >= segmentEnd) {
        // A gap, up to the next segment.
        i++;
        const next = i < table.count ? Math.min(end, table.lba[i]! * SECTOR_BYTES) : end;
        if (next > position) target.fill(0, targetOffset + (position - offsetBytes), targetOffset + (next - offsetBytes));
        position = next;
        continue;
      }
      if (isZeroed(table, i)) {
        const to = Math.min(end, segmentEnd);
        target.fill(0, targetOffset + (position - offsetBytes), targetOffset + (to - offsetBytes));
        position = to;
        continue;
      }
      const source = table.source[i]!;
      const sourceOffset = table.moffset[i]! * SECTOR_BYTES + (position - begin);
      let to = segmentEnd;
      // Neighbours that also touch in the source are one read: records are short, runs are long.
      while (to < end && i + 1 < table.count && this.continues(i, source)) to += lengthOf(table, ++i) * SECTOR_BYTES;
      to = Math.min(to, end);
      const at = targetOffset + (position - offsetBytes);
      if (!this.readSource(source, sourceOffset, to - position, target, at, missing)) isComplete = false;
      position = to;
    }
    return isComplete;
  }

  /** True when segment i + 1 carries on where i ends, on the device and in the same source. */
  private continues(i: number, source: number): boolean {
    const { table } = this;
    const length = lengthOf(table, i);
    return (
      table.source[i + 1] === source &&
      table.lba[i + 1] === table.lba[i]! + length &&
      table.moffset[i + 1] === table.moffset[i]! + length &&
      !isZeroed(table, i + 1)
    );
  }

  private readSource(source: number, offset: number, length: number, target: Uint8Array, at: number, missing: MissingRanges): boolean {
    const file = this.sources[source]!;
    const available = Math.max(0, Math.min(length, file.sizeBytes - offset));
    if (available < length) target.fill(0, at + available, at + length);
    return available === 0 || file.readSync(offset, available, target, at, missing);
  }
}
