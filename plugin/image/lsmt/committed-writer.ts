/**
 * Writes a committed layer: header, data back to back, index, trailer. The caller streams the data bytes; this keeps the record list
 * and joins neighbours by the reference's rules, so that the same mappings give the same bytes. See FORMAT.md, table 3.
 */
import assert from 'node:assert';
import { AppError } from '../../base/errors.ts';
import { roundUp, SECTOR_BYTES } from '../../base/units.ts';
import { encodeLsmtBlock, LSMT_BLOCK_BYTES, LSMT_FLAG, LSMT_RECORD_BYTES, type LsmtIdentity, MAX_LAYER_RECORDS } from './header.ts';
import { writeRecord } from './layer-index.ts';
import { isZeroed, lengthOf, MAX_SEGMENT_SECTORS, SegmentBuilder, type SegmentTable } from './segments.ts';

/** The reference copies data in steps of 32 KiB and joins afterwards; the steps show in where long runs are cut. */
const COPY_STEP_SECTORS = (32 * 1024) / SECTOR_BYTES;
/** Joined records stay below this, although a record could hold it. */
const JOIN_LIMIT_SECTORS = MAX_SEGMENT_SECTORS;
const INDEX_PAD_RECORDS = 256;

/** Tag of a warp record that maps into the target. */
export const REMOTE_TAG = 1;

export class CommittedLayerWriter {
  private readonly identity: LsmtIdentity;
  private readonly padRecords: number;
  private readonly records = new SegmentBuilder();
  private endSector = LSMT_BLOCK_BYTES / SECTOR_BYTES;
  private previousLba = 0;

  /** `kind`: a warp layer's index is not padded. */
  constructor(identity: LsmtIdentity, kind: 'plain' | 'warp' = 'plain') {
    this.identity = identity;
    this.padRecords = kind === 'warp' ? 1 : INDEX_PAD_RECORDS;
  }

  /** The file's first 4096 bytes. */
  header(): Uint8Array {
    return encodeLsmtBlock(this.identity, { flags: 7, indexOffsetBytes: 0, indexCount: 0 });
  }

  /** A mapping whose `lengthSectors * 512` bytes the caller appends next. Ascending device order (asserted). */
  addData(lbaSectors: number, lengthSectors: number, tag = 0): void {
    for (let done = 0; done < lengthSectors; done += COPY_STEP_SECTORS) {
      const step = Math.min(COPY_STEP_SECTORS, lengthSectors - done);
      this.addRecord(lbaSectors + done, step, this.endSector, false, tag);
      this.endSector += step;
    }
  }

  /** A range that reads as zeros and hides lower layers; no bytes follow. */
  addZeroed(lbaSectors: number, lengthSectors: number, tag = 0): void {
    for (let done = 0; done < lengthSectors; done += MAX_SEGMENT_SECTORS) {
      this.addRecord(lbaSectors + done, Math.min(MAX_SEGMENT_SECTORS, lengthSectors - done), this.endSector, true, tag);
    }
  }

  /** Warp layers: a range of the target; no bytes follow. */
  addRemote(lbaSectors: number, lengthSectors: number, targetSectors: number): void {
    for (let done = 0; done < lengthSectors; done += MAX_SEGMENT_SECTORS) {
      const length = Math.min(MAX_SEGMENT_SECTORS, lengthSectors - done);
      this.addRecord(lbaSectors + done, length, targetSectors + done, false, REMOTE_TAG);
    }
  }

  /** Index and trailer, the bytes after the data. Throws ResourceExhausted when the index is longer than readers accept. */
  finish(): Uint8Array {
    const table = this.records.view();
    const count = roundUp(table.count, this.padRecords);
    if (count > MAX_LAYER_RECORDS) {
      const what = `${count} records, readers accept ${MAX_LAYER_RECORDS}`;
      throw new AppError('ResourceExhausted', { op: 'write lsmt layer', subject: this.identity.uuid ?? 'layer', what });
    }
    const bytes = new Uint8Array(count * LSMT_RECORD_BYTES + LSMT_BLOCK_BYTES);
    encodeRecords(table, bytes);
    for (let i = table.count; i < count; i++) {
      writeRecord(bytes, i * LSMT_RECORD_BYTES, { lba: -1, length: 0, moffset: 0, zeroed: false, tag: 0 });
    }
    const fields = { flags: LSMT_FLAG.dataFile | LSMT_FLAG.sealed, indexOffsetBytes: this.endSector * SECTOR_BYTES, indexCount: count };
    bytes.set(encodeLsmtBlock(this.identity, fields), count * LSMT_RECORD_BYTES);
    return bytes;
  }

  private addRecord(lba: number, length: number, moffset: number, zeroed: boolean, tag: number): void {
    assert(length > 0 && lba >= this.previousLba, 'mappings come in ascending device order');
    this.previousLba = lba + length;
    const table = this.records.view();
    const last = table.count - 1;
    if (last >= 0) {
      const lastLength = lengthOf(table, last);
      const lastZeroed = isZeroed(table, last);
      if (
        lastZeroed === zeroed &&
        table.source[last] === tag &&
        table.lba[last]! + lastLength === lba &&
        table.moffset[last]! + (lastZeroed ? 0 : lastLength) === moffset &&
        lastLength + length < JOIN_LIMIT_SECTORS
      ) {
        this.records.extendLast(length);
        return;
      }
    }
    this.records.push(lba, length, moffset, zeroed, tag);
  }
}

/** Writes `table` as records from byte 0 of `bytes`; `source` becomes the tag. */
export function encodeRecords(table: SegmentTable, bytes: Uint8Array): void {
  for (let i = 0; i < table.count; i++) {
    writeRecord(bytes, i * LSMT_RECORD_BYTES, {
      lba: table.lba[i]!,
      length: lengthOf(table, i),
      moffset: table.moffset[i]!,
      zeroed: isZeroed(table, i),
      tag: table.source[i]! & 0xff,
    });
  }
}
