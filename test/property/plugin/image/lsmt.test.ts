/** Proves merging, writable indexes and the committed writer against models that keep one entry a sector. Time-boxed; seeds printed. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { commitSegments } from '../../../../plugin/file/commit-segments.ts';
import { MemoryFile } from '../../../../plugin/file/file.ts';
import { CommittedLayerWriter } from '../../../../plugin/image/lsmt/committed-writer.ts';
import { parseLsmtHeader } from '../../../../plugin/image/lsmt/header.ts';
import { mergeLayers, withSourceBase } from '../../../../plugin/image/lsmt/overlay.ts';
import { AppendLayerWriter, parseRwIndex, sealTail } from '../../../../plugin/image/lsmt/rw-layer.ts';
import { SegmentBuilder, type SegmentTable, segmentsOf } from '../../../../plugin/image/lsmt/segments.ts';
import { memoryDevice, openMemoryDevice, readWhole } from '../../../support/devices.ts';
import { filler } from '../../../support/filler.ts';

const BOX = { interruptAfterTimeLimit: 4000, markInterruptAsFailure: false, numRuns: 3000 };
const DEVICE_SECTORS = 200;

/** A layer's index: ascending records made from (gap, length) pairs. */
const layerArb = fc
  .array(fc.record({ gap: fc.nat(12), length: fc.integer({ min: 1, max: 20 }), zeroed: fc.boolean(), moffset: fc.nat(1_000_000) }), {
    maxLength: 20,
  })
  .map((records): SegmentTable => {
    const builder = new SegmentBuilder(1);
    let at = 0;
    for (const { gap, length, zeroed, moffset } of records) {
      builder.push(at + gap, length, moffset, zeroed, 0);
      at += gap + length;
    }
    return builder.view();
  });

/** What each sector reads: `layer:moffset` or `zero`. */
function sectorsOf(tables: readonly SegmentTable[]): Map<number, string> {
  const sectors = new Map<number, string>();
  for (const table of tables) {
    for (const s of segmentsOf(table)) {
      for (let i = 0; i < s.lengthSectors; i++) {
        sectors.set(s.lbaSectors + i, s.isZeroed ? `zero ${s.source}` : `${s.source}:${s.moffsetSectors + i}`);
      }
    }
  }
  return sectors;
}

describe('merging', () => {
  test('any stack reads, sector by sector, as its layers laid over each other; sorted and without overlap', () => {
    fc.assert(
      fc.property(fc.array(layerArb, { maxLength: 9 }), (layers) => {
        const tables = layers.map((table, i) => withSourceBase(table, i));
        const merged = mergeLayers(tables, 'test');
        expect(sectorsOf([merged])).toEqual(sectorsOf(tables));
        let end = 0;
        for (const s of segmentsOf(merged)) {
          expect(s.lbaSectors).toBeGreaterThanOrEqual(end);
          expect(s.lengthSectors).toBeGreaterThan(0);
          end = s.lbaSectors + s.lengthSectors;
        }
      }),
      BOX,
    );
  });
});

const operationArb = fc.record({
  lba: fc.nat(DEVICE_SECTORS - 1),
  length: fc.integer({ min: 1, max: 90 }),
  discard: fc.boolean(),
  seed: fc.nat(1000),
});

describe('writable layers', () => {
  test('writes and discards in any order read back after sealing and after committing, overwritten data gone', () => {
    fc.assert(
      fc.property(fc.array(operationArb, { maxLength: 40 }), (operations) => {
        const virtualSizeBytes = DEVICE_SECTORS * 512;
        const wanted = Buffer.alloc(virtualSizeBytes);
        const writer = new AppendLayerWriter({ virtualSizeBytes });
        const data: Uint8Array[] = [writer.dataHeader()];
        const index: Uint8Array[] = [writer.indexHeader()];
        for (const { lba, length, discard, seed } of operations) {
          const bytes = Math.min(length, DEVICE_SECTORS - lba) * 512;
          index.push(discard ? writer.discard(lba * 512, bytes) : writer.write(lba * 512, bytes));
          const content = discard ? Buffer.alloc(bytes) : filler(lba * 512, bytes, seed);
          if (!discard) data.push(content);
          wanted.set(content, lba * 512);
        }
        const dataFile = Buffer.concat(data);
        const live = parseRwIndex(Buffer.concat(index), dataFile.length, 'rw');
        const sealed = Buffer.concat([dataFile, sealTail(parseLsmtHeader(dataFile, 'rw'), live, dataFile.length)]);
        expect(Buffer.from(readWhole(openMemoryDevice(memoryDevice([sealed])).file)).equals(wanted)).toBe(true);
        const committer = new CommittedLayerWriter({ virtualSizeBytes });
        const committed = Buffer.concat([...commitSegments(live, [new MemoryFile(dataFile)], committer, () => 0)]);
        expect(Buffer.from(readWhole(openMemoryDevice(memoryDevice([committed])).file)).equals(wanted)).toBe(true);
      }),
      BOX,
    );
  });
});
