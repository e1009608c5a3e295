/**
 * A committed LSMT layer whose data is not in device order: file data as the tar brings it, then the metadata, which is known last. The
 * index, sorted as readers want it, is made at the end. So nothing is held back, and what a mount and a tree walk read (metadata,
 * index, trailer) lies together at the end of the blob. Format: overlaybd-formats.md 1; readers do not ask data to be in order.
 *
 *   header │ file data, tar order │ metadata │ index │ trailer
 */
import assert from 'node:assert';
import { AppError } from '../../base/errors.ts';
import { GIB, roundUp, SECTOR_BYTES } from '../../base/units.ts';
import { encodeLsmtBlock, LSMT_BLOCK_BYTES, LSMT_FLAG, LSMT_RECORD_BYTES, MAX_LAYER_RECORDS } from '../../image/lsmt/header.ts';
import { writeRecord } from '../../image/lsmt/layer-index.ts';

/** The longest record that joining makes (overlaybd-formats.md 1.3). */
const MAX_RECORD_SECTORS = 16382;
const INDEX_PAD_RECORDS = 256;
/** What the reference gives a device; the size is written before it is known, so small images all get this one. */
const MIN_DEVICE_BYTES = 64 * GIB;

/** Takes bytes in order; borrowed during the call. */
export interface ByteSink {
  write(bytes: Uint8Array): void;
  /** Ends the data: afterwards all that is written is stored exactly where it follows. Tells where the data came to lie. */
  settle(): Promise<SettledData>;
}

/** Where bytes that were written lie in the layer file: those from `writtenAt` on (up to the next entry's) moved back by `shiftBytes`. */
export interface SettledData {
  /** Ascending; the first is at 0. */
  shifts: readonly { writtenAt: number; shiftBytes: number }[];
  /** Where the next byte that is written will lie. */
  endBytes: number;
}

/** A device size for a file system of `usedBytes`. */
export function deviceSizeFor(usedBytes: number): number {
  return Math.max(MIN_DEVICE_BYTES, roundUp(usedBytes, GIB));
}

export class LayerStream {
  private readonly sink: ByteSink;
  /** Runs in the order they were written: device byte, length. The position in the file follows from the lengths. */
  private readonly starts: number[] = [];
  private readonly lengths: number[] = [];
  /** Bytes appended so far. */
  dataBytes = 0;

  /** Writes the header. `deviceBytes`: as far as known; the trailer, which readers believe, has the final value. */
  constructor(sink: ByteSink, deviceBytes: number) {
    this.sink = sink;
    const identity = { virtualSizeBytes: deviceSizeFor(deviceBytes) };
    sink.write(encodeLsmtBlock(identity, { flags: 7, indexOffsetBytes: 0, indexCount: 0 }));
  }

  /** Stores bytes of the device; each device byte at most once. Multiples of 512. */
  append(deviceOffset: number, bytes: Uint8Array): void {
    assert(deviceOffset % SECTOR_BYTES === 0 && bytes.length % SECTOR_BYTES === 0);
    const last = this.starts.length - 1;
    if (last >= 0 && this.starts[last]! + this.lengths[last]! === deviceOffset) this.lengths[last] = this.lengths[last]! + bytes.length;
    else {
      if (this.starts.length === MAX_LAYER_RECORDS) throw tooMany(this.starts.length);
      this.starts.push(deviceOffset);
      this.lengths.push(bytes.length);
    }
    this.dataBytes += bytes.length;
    this.sink.write(bytes);
  }

  /** Writes index and trailer. Rejects with ResourceExhausted when the index is longer than readers accept. */
  async finish(identity: { deviceBytes: number; uuid: string; parentUuid: string | undefined }): Promise<void> {
    const settled = await this.sink.settle();
    const records = this.records(settled);
    const count = roundUp(records.length, INDEX_PAD_RECORDS);
    if (count > MAX_LAYER_RECORDS) throw tooMany(count);
    const bytes = new Uint8Array(count * LSMT_RECORD_BYTES);
    for (let i = 0; i < count; i += 1) {
      const record = records[i] ?? { lba: -1, length: 0, moffset: 0 };
      writeRecord(bytes, i * LSMT_RECORD_BYTES, { ...record, zeroed: false, tag: 0 });
    }
    this.sink.write(bytes);
    this.sink.write(
      encodeLsmtBlock(
        { virtualSizeBytes: deviceSizeFor(identity.deviceBytes), uuid: identity.uuid, parentUuid: identity.parentUuid },
        { flags: LSMT_FLAG.dataFile | LSMT_FLAG.sealed, indexOffsetBytes: settled.endBytes, indexCount: count },
      ),
    );
  }

  /** One record for each piece of a run that stayed in one piece, cut to the longest record. */
  private records({ shifts }: SettledData): { lba: number; length: number; moffset: number }[] {
    const records: { lba: number; length: number; moffset: number }[] = [];
    let writtenAt = LSMT_BLOCK_BYTES;
    let next = 0;
    this.starts.forEach((start, i) => {
      for (let done = 0; done < this.lengths[i]!; ) {
        while (next + 1 < shifts.length && shifts[next + 1]!.writtenAt <= writtenAt) next += 1;
        const pieceEnd = shifts[next + 1]?.writtenAt ?? Number.POSITIVE_INFINITY;
        const length = Math.min(this.lengths[i]! - done, pieceEnd - writtenAt, MAX_RECORD_SECTORS * SECTOR_BYTES);
        records.push({
          lba: (start + done) / SECTOR_BYTES,
          length: length / SECTOR_BYTES,
          moffset: (writtenAt + shifts[next]!.shiftBytes) / SECTOR_BYTES,
        });
        done += length;
        writtenAt += length;
      }
    });
    records.sort((a, b) => a.lba - b.lba);
    return records;
  }
}

function tooMany(count: number): AppError {
  const what = `${count} records, readers accept ${MAX_LAYER_RECORDS}`;
  return new AppError('ResourceExhausted', { op: 'write lsmt layer', subject: 'layer', what });
}
