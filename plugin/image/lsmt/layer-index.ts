/**
 * The index of one committed or sealed layer: parsing with every check. See FORMAT.md, table 2.
 */
import { SECTOR_BYTES } from '../../base/units.ts';
import { badField, readU32, writeU32 } from './bytes.ts';
import { LSMT_BLOCK_BYTES, LSMT_RECORD_BYTES, type LsmtHeader } from './header.ts';
import { SegmentBuilder, type SegmentTable } from './segments.ts';

const OP = 'open lsmt layer';
const DATA_BEGIN_SECTOR = LSMT_BLOCK_BYTES / SECTOR_BYTES;
/** Positions in a target beyond this cannot be counted in bytes exactly (2^53 / 512). */
const MAX_EXACT_SECTOR = 2 ** 44;

/** What the two 64-bit words of a record say; `lba` is -1 for an invalid (padding) record. */
export interface RawRecord {
  lba: number;
  length: number;
  moffset: number;
  zeroed: boolean;
  tag: number;
}

/** Decodes the record at `offset` into `record`. Positions above 2^53 are rounded, never wrapped. */
export function readRecord(bytes: Uint8Array, offset: number, record: RawRecord): void {
  const low = readU32(bytes, offset);
  const high = readU32(bytes, offset + 4);
  const mapHigh = readU32(bytes, offset + 12);
  const isInvalid = low === 0xffff_ffff && (high & 0x3_ffff) === 0x3_ffff;
  record.lba = isInvalid ? -1 : low + (high & 0x3_ffff) * 0x1_0000_0000;
  record.length = high >>> 18;
  record.moffset = readU32(bytes, offset + 8) + (mapHigh & 0x7f_ffff) * 0x1_0000_0000;
  record.zeroed = (mapHigh & 0x80_0000) !== 0;
  record.tag = mapHigh >>> 24;
}

/** Encodes a record; `lba` -1 writes padding. */
export function writeRecord(bytes: Uint8Array, offset: number, record: RawRecord): void {
  const padding = record.lba < 0;
  const lbaHigh = padding ? 0x3_ffff : Math.floor(record.lba / 0x1_0000_0000);
  writeU32(bytes, offset, padding ? 0xffff_ffff : record.lba % 0x1_0000_0000);
  writeU32(bytes, offset + 4, (lbaHigh | (record.length << 18)) >>> 0);
  writeU32(bytes, offset + 8, record.moffset % 0x1_0000_0000);
  const mapHigh = Math.floor(record.moffset / 0x1_0000_0000);
  writeU32(bytes, offset + 12, (mapHigh | (record.zeroed ? 0x80_0000 : 0) | (record.tag << 24)) >>> 0);
}

export interface LayerIndexOptions {
  /** Checked by parseLsmtTrailer. */
  trailer: LsmtHeader;
  /** `warp`: tags choose between the layer's own file (0) and its target (1). `plain`: tags on disk mean nothing. */
  kind: 'plain' | 'warp';
  subject: string;
}

/**
 * Parses `bytes`, the `indexCount` records at `indexOffsetBytes`. `source` of the result is 0 for data in the layer file and, in warp
 * layers, 1 for data in the target. Throws DataLoss on records out of order or out of bounds.
 */
export function parseLayerIndex(bytes: Uint8Array, options: LayerIndexOptions): SegmentTable {
  const { trailer, subject } = options;
  if (bytes.length !== trailer.indexCount * LSMT_RECORD_BYTES) {
    const expected = `${trailer.indexCount} records of 16`;
    throw badField({ op: OP, subject, field: 'index bytes', found: bytes.length, expected, offsetBytes: trailer.indexOffsetBytes });
  }
  const tags = options.kind === 'warp' ? warpTagsOf(bytes, options) : undefined;
  const endSector = trailer.indexOffsetBytes / SECTOR_BYTES;
  const builder = new SegmentBuilder(trailer.indexCount);
  const record: RawRecord = { lba: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
  let previousEnd = 0;
  for (let at = 0; at < bytes.length; at += LSMT_RECORD_BYTES) {
    readRecord(bytes, at, record);
    if (record.lba < 0) continue;
    const offsetBytes = trailer.indexOffsetBytes + at;
    if (record.lba < previousEnd) {
      const expected = `at least ${previousEnd}, the end of the record before (sectors)`;
      throw badField({ op: OP, subject, field: 'record offset', found: record.lba, expected, offsetBytes });
    }
    previousEnd = record.lba + record.length;
    const source = tags === undefined ? 0 : record.tag - tags.smallest;
    if (source === 1) checkRemote(record, subject, offsetBytes);
    else checkOwn(record, endSector, subject, offsetBytes);
    if (record.length > 0) builder.push(record.lba, record.length, record.moffset, record.zeroed, source);
  }
  return builder.view();
}

/** A record that maps into the layer file itself: within the data area [8, index). */
function checkOwn(record: RawRecord, endSector: number, subject: string, offsetBytes: number): void {
  const end = record.zeroed ? record.moffset : record.moffset + record.length;
  // A data record may not begin at the end; a zeroed one, which occupies nothing, may.
  const beginsInside = record.zeroed ? record.moffset <= endSector : record.moffset < endSector;
  if (record.moffset >= DATA_BEGIN_SECTOR && beginsInside && end <= endSector) return;
  const expected = `within ${DATA_BEGIN_SECTOR}..${endSector} (sectors) for ${record.length} sectors`;
  throw badField({ op: OP, subject, field: 'record moffset', found: record.moffset, expected, offsetBytes: offsetBytes + 8 });
}

/** A record that maps into the target. Past the target's end it reads as zeros, so only what cannot be counted is refused. */
function checkRemote(record: RawRecord, subject: string, offsetBytes: number): void {
  if (record.moffset + record.length <= MAX_EXACT_SECTOR) return;
  const expected = `at most ${MAX_EXACT_SECTOR} (sectors)`;
  throw badField({ op: OP, subject, field: 'record moffset', found: record.moffset, expected, offsetBytes: offsetBytes + 8 });
}

/**
 * Tags of a warp layer may carry a constant (writers on a stack add one), which is removed by subtracting the smallest. That leaves a
 * layer whose only tag is not 0 ambiguous: the reference then reads the wrong file. Refused here.
 */
function warpTagsOf(bytes: Uint8Array, options: LayerIndexOptions): { smallest: number } {
  const record: RawRecord = { lba: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
  let smallest = 256;
  let largest = -1;
  for (let at = 0; at < bytes.length; at += LSMT_RECORD_BYTES) {
    readRecord(bytes, at, record);
    if (record.lba < 0) continue;
    smallest = Math.min(smallest, record.tag);
    largest = Math.max(largest, record.tag);
  }
  const bad = (expected: string): Error =>
    badField({
      op: OP,
      subject: options.subject,
      field: 'record tags',
      found: `${smallest}..${largest}`,
      expected,
      offsetBytes: options.trailer.indexOffsetBytes,
    });
  if (largest - smallest > 1) throw bad('two neighbouring values, metadata and target');
  if (largest > 0 && largest === smallest) throw bad('at least one record of metadata beside the ones of the target');
  return { smallest };
}
