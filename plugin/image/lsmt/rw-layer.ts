/**
 * Append-only writable layers: a data file that only grows and an index file of records in write order. Reading (live mappings),
 * writing (records for writes and discards) and sealing (index and trailer appended to the data file). See FORMAT.md, table 4.
 */
import assert from 'node:assert';
import { AppError } from '../../base/errors.ts';
import { roundUp, SECTOR_BYTES } from '../../base/units.ts';
import { badField } from './bytes.ts';
import { encodeRecords } from './committed-writer.ts';
import {
  encodeLsmtBlock,
  LSMT_BLOCK_BYTES,
  LSMT_FLAG,
  LSMT_RECORD_BYTES,
  type LsmtHeader,
  type LsmtIdentity,
  parseLsmtHeader,
} from './header.ts';
import { type RawRecord, readRecord, writeRecord } from './layer-index.ts';
import { overlay } from './overlay.ts';
import { MAX_SEGMENT_SECTORS, SegmentBuilder, type SegmentTable } from './segments.ts';

/** Records of a writable index that we load: 64 MiB of index, some 200 MiB while merging. The reference goes to 128 000 000. */
export const MAX_RW_RECORDS = 4 * 1024 * 1024;

const OP = 'open writable layer';
const DATA_BEGIN_SECTOR = LSMT_BLOCK_BYTES / SECTOR_BYTES;
/** Writes are cut into pieces of 4 MiB, as the reference does. */
const WRITE_PIECE_SECTORS = (4 * 1024 * 1024) / SECTOR_BYTES;

/**
 * The live mappings of an append-only pair. `indexFile` is the whole index file; a partial record at its end is ignored. The data
 * file's own header is the caller's to parse (parseLsmtHeader). Throws DataLoss on records outside the data file,
 * ResourceExhausted above {@link MAX_RW_RECORDS}, Unimplemented for sparse layers, whose mappings live in the host's file system.
 */
export function parseRwIndex(indexFile: Uint8Array, dataFileSizeBytes: number, subject: string): SegmentTable {
  parseLsmtHeader(indexFile.subarray(0, LSMT_BLOCK_BYTES), subject, 'index');
  const count = Math.floor((indexFile.length - LSMT_BLOCK_BYTES) / LSMT_RECORD_BYTES);
  if (count > MAX_RW_RECORDS) {
    throw new AppError('ResourceExhausted', { op: OP, subject, what: `${count} index records, at most ${MAX_RW_RECORDS}` });
  }
  const endSector = Math.floor(dataFileSizeBytes / SECTOR_BYTES);
  // Ascending runs need no merging among themselves: `starts` holds where in `all` each run begins.
  const all = new SegmentBuilder(Math.max(1, count));
  const starts: number[] = [0];
  let runEnd = 0;
  const record: RawRecord = { lba: 0, length: 0, moffset: 0, zeroed: false, tag: 0 };
  for (let i = 0; i < count; i++) {
    const at = LSMT_BLOCK_BYTES + i * LSMT_RECORD_BYTES;
    readRecord(indexFile, at, record);
    if (record.lba < 0) continue;
    const end = record.zeroed ? record.moffset : record.moffset + record.length;
    if (record.moffset < DATA_BEGIN_SECTOR || end > endSector) {
      const expected = `within ${DATA_BEGIN_SECTOR}..${endSector} (sectors) for ${record.length} sectors`;
      throw badField({ op: OP, subject, field: 'record moffset', found: record.moffset, expected, offsetBytes: at + 8 });
    }
    if (record.length === 0) continue;
    if (record.lba < runEnd) starts.push(all.count);
    all.push(record.lba, record.length, record.moffset, record.zeroed, 0);
    runEnd = record.lba + record.length;
  }
  starts.push(all.count);
  return overlayRuns(all.view(), starts, 0, starts.length - 1);
}

/** Merges runs[from, to): the later lies over the earlier. */
function overlayRuns(all: SegmentTable, starts: readonly number[], from: number, to: number): SegmentTable {
  if (to - from === 1) {
    const [a, b] = [starts[from]!, starts[to]!];
    return {
      count: b - a,
      lba: all.lba.subarray(a, b),
      moffset: all.moffset.subarray(a, b),
      length: all.length.subarray(a, b),
      source: all.source.subarray(a, b),
    };
  }
  const middle = (from + to) >>> 1;
  return overlay(overlayRuns(all, starts, middle, to), overlayRuns(all, starts, from, middle));
}

/** Refuses a sparse writable layer with a clear error; returns the header otherwise. */
export function parseRwDataHeader(block: Uint8Array, subject: string): LsmtHeader {
  const header = parseLsmtHeader(block, subject);
  if ((header.flags & LSMT_FLAG.sparse) === 0) return header;
  throw new AppError('Unimplemented', {
    op: OP,
    subject,
    what: 'a sparse writable layer keeps its mappings in the holes of its host file; only append-only layers can be read here',
  });
}

/** Produces the bytes of an append-only pair. Pure: the caller appends what it gets to the two files. */
export class AppendLayerWriter {
  private readonly identity: LsmtIdentity;
  private endSector = DATA_BEGIN_SECTOR;

  constructor(identity: LsmtIdentity) {
    this.identity = identity;
  }

  dataHeader(): Uint8Array {
    return encodeLsmtBlock(this.identity, { flags: LSMT_FLAG.header | LSMT_FLAG.dataFile, indexOffsetBytes: 0, indexCount: 0 });
  }

  indexHeader(): Uint8Array {
    return encodeLsmtBlock(this.identity, { flags: LSMT_FLAG.header, indexOffsetBytes: LSMT_BLOCK_BYTES, indexCount: 0 });
  }

  /** Records for a write whose bytes the caller appends to the data file. Offset and length are multiples of 512 (asserted). */
  write(offsetBytes: number, lengthBytes: number): Uint8Array {
    return this.records(offsetBytes, lengthBytes, WRITE_PIECE_SECTORS, false);
  }

  /** Records for a discard; nothing is appended to the data file. */
  discard(offsetBytes: number, lengthBytes: number): Uint8Array {
    return this.records(offsetBytes, lengthBytes, MAX_SEGMENT_SECTORS, true);
  }

  private records(offsetBytes: number, lengthBytes: number, pieceSectors: number, zeroed: boolean): Uint8Array {
    assert(offsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0, 'writes are whole sectors');
    const total = lengthBytes / SECTOR_BYTES;
    const bytes = new Uint8Array(Math.ceil(total / pieceSectors) * LSMT_RECORD_BYTES);
    for (let done = 0, at = 0; done < total; done += pieceSectors, at += LSMT_RECORD_BYTES) {
      const length = Math.min(pieceSectors, total - done);
      writeRecord(bytes, at, { lba: offsetBytes / SECTOR_BYTES + done, length, moffset: this.endSector, zeroed, tag: 0 });
      if (!zeroed) this.endSector += length;
    }
    return bytes;
  }
}

/** What sealing appends to a data file of `dataFileSizeBytes`: the live mappings, zeros up to a multiple of 512, the trailer. */
export function sealTail(header: LsmtHeader, live: SegmentTable, dataFileSizeBytes: number): Uint8Array {
  assert(dataFileSizeBytes % SECTOR_BYTES === 0, 'data files hold whole sectors');
  const indexBytes = roundUp(live.count * LSMT_RECORD_BYTES, SECTOR_BYTES);
  const bytes = new Uint8Array(indexBytes + LSMT_BLOCK_BYTES);
  encodeRecords(live, bytes);
  const fields = { flags: LSMT_FLAG.dataFile | LSMT_FLAG.sealed, indexOffsetBytes: dataFileSizeBytes, indexCount: live.count };
  bytes.set(encodeLsmtBlock(header, fields), indexBytes);
  return bytes;
}
