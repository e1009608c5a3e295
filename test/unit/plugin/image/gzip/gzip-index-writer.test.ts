/** Our gzip indexes: entries at real block boundaries, read back by our reader, byte for byte the reference's where it chose the same. */
import { randomFillSync } from 'node:crypto';
import { constants, crc32, deflateRawSync, gzipSync, inflateSync, type ZlibOptions } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { MemoryFile, MissingList } from '../../../../../plugin/file/file.ts';
import { GzipFile } from '../../../../../plugin/file/gzip-file.ts';
import { openGzipIndex } from '../../../../../plugin/file/open-layer.ts';
import { type GzipEntry, GzipIndexWriter, packWindow, SpanChooser } from '../../../../../plugin/image/gzip/gzip-index-writer.ts';
import { gzipHeaderBytes, MAX_GZIP_HEADER_BYTES } from '../../../../../plugin/image/gzip/member-header.ts';
import { WindowThinner } from '../../../../../plugin/image/gzip/sparse-window.ts';
import { BlockInflater } from '../../../../../plugin/kernel/block-inflater.ts';
import { loadCodec } from '../../../../../plugin/kernel/codecs.ts';
import { LibraryInflater } from '../../../../../plugin/kernel/inflate.ts';
import { readFixture } from '../../../../support/fixtures.ts';

const WINDOW = 32_768;

/** Every block boundary of a gzip file and its data. */
function boundariesOf(gzip: Buffer): { entries: GzipEntry[]; plain: Buffer } {
  using inflater = new BlockInflater();
  inflater.start();
  let at = gzipHeaderBytes(gzip, 'test')!;
  const entries: GzipEntry[] = [{ plainOffset: 0, gzipOffset: at, bits: 0 }];
  const parts: Buffer[] = [];
  let plainOffset = 0;
  for (;;) {
    const output = Buffer.allocUnsafeSlow(10_000);
    inflater.setInput(gzip.subarray(at, at + 777));
    const step = inflater.step(BlockInflater.addressOf(output), output.length, { stopsAtBlock: true });
    at += step.consumed;
    plainOffset += step.produced;
    parts.push(output.subarray(0, step.produced));
    if (step.at === 'bad') throw new Error(`bad at ${at}`);
    if (step.at === 'end') return { entries, plain: Buffer.concat(parts) };
    if (step.at === 'boundary') entries.push({ plainOffset, gzipOffset: at, bits: step.bits });
  }
}

const windowAt = (plain: Buffer, end: number): Buffer => Buffer.concat([Buffer.alloc(WINDOW), plain]).subarray(end, end + WINDOW);

function indexOf(gzip: Buffer, spanBytes: number, isThin = true): { index: Buffer; plain: Buffer; entries: GzipEntry[] } {
  const { entries, plain } = boundariesOf(gzip);
  const chooser = new SpanChooser(spanBytes);
  const writer = new GzipIndexWriter(spanBytes, 'test');
  const thinner = new WindowThinner(new LibraryInflater());
  const chosen = entries.filter((entry) => chooser.takes(entry.plainOffset));
  const windows = chosen.map((entry) => {
    const window = Buffer.from(windowAt(plain, entry.plainOffset));
    const start = {
      bits: entry.bits,
      lastByte: gzip[entry.gzipOffset - 1]!,
      input: gzip.subarray(entry.gzipOffset, entry.gzipOffset + 40_960),
    };
    if (isThin) thinner.thin(window, start);
    const packed = packWindow(window);
    writer.add(entry, packed.length);
    return packed;
  });
  const { header, table } = writer.finish({ gzipBytes: gzip.length, plainBytes: plain.length });
  return { index: Buffer.concat([header, ...windows, table]), plain, entries: chosen };
}

function openFile(gzip: Buffer, index: Buffer): GzipFile {
  const tables = openGzipIndex(new MemoryFile(index), gzip.length, 'test', new MissingList())!;
  return new GzipFile(new MemoryFile(gzip), new MemoryFile(index), tables, loadCodec(), { subject: 'test', blobId: 0, indexBlobId: 1 });
}

function expectReads(gzip: Buffer, index: Buffer, plain: Buffer): void {
  // A file for each read, so that each begins at its own entry.
  const tables = openGzipIndex(new MemoryFile(index), gzip.length, 'test', new MissingList())!;
  expect(tables.originalSizeBytes).toBe(plain.length);
  for (let i = tables.entries.count - 1; i >= 0; i -= 1) {
    const from = tables.entries.plainOffset[i]!;
    const to = i + 1 < tables.entries.count ? tables.entries.plainOffset[i + 1]! : plain.length;
    const target = Buffer.alloc(to - from);
    if (target.length > 0) openFile(gzip, index).readSync(from, target.length, target, 0, new MissingList());
    expect(target.equals(plain.subarray(from, to))).toBe(true);
  }
}

describe('the fixtures', () => {
  it.each(['l1', 'l2', 'l3'])('%s: every entry of the reference is one of our boundaries, with our window', (name) => {
    const gzip = readFixture(`oci/${name}.tar.gz`);
    const theirs = readFixture(`turbo/targz/${name}.gzip.meta`);
    const { entries, plain } = boundariesOf(gzip);
    expect(plain.equals(readFixture(`oci/${name}.tar`))).toBe(true);
    const tables = openGzipIndex(new MemoryFile(theirs), gzip.length, name, new MissingList())!;
    for (let i = 0; i < tables.entries.count; i += 1) {
      const plainOffset = tables.entries.plainOffset[i]!;
      const own = { plainOffset, gzipOffset: tables.entries.gzipOffset[i]!, bits: tables.entries.bits[i]! };
      expect(entries).toContainEqual(own);
      const at = tables.entries.windowOffset[i]!;
      expect(inflateSync(theirs.subarray(at, at + tables.entries.windowBytes[i]!)).equals(windowAt(plain, plainOffset))).toBe(true);
    }
  });

  it.each(['l2', 'l3'])(
    '%s: one entry, so header and window are the reference’s byte for byte, and the table but for the compressor',
    (name) => {
      const gzip = readFixture(`oci/${name}.tar.gz`);
      const theirs = readFixture(`turbo/targz/${name}.gzip.meta`);
      const { index } = indexOf(gzip, 1 << 20);
      const tableAt = Number(theirs.readBigUInt64LE(313));
      expect(index.subarray(0, tableAt).equals(theirs.subarray(0, tableAt))).toBe(true);
      expect(inflateSync(index.subarray(tableAt)).equals(inflateSync(theirs.subarray(tableAt)))).toBe(true);
    },
  );

  it('l1: reads back from every entry at the smallest span', () => {
    const gzip = readFixture('oci/l1.tar.gz');
    const { index, plain, entries } = indexOf(gzip, 65_536);
    expect(entries.length).toBeGreaterThan(4);
    expectReads(gzip, index, plain);
  });
});

describe('gzip of every kind', () => {
  const text = Buffer.from(Array.from({ length: 60_000 }, (_, i) => `line ${(i * 7919) % 1000} of ${i % 37}`).join('\n'));
  const mixed = Buffer.concat([text, randomFillSync(Buffer.alloc(300_000)), Buffer.alloc(500_000), text.subarray(0, 400_000)]);
  const kinds: [string, ZlibOptions][] = [
    ['level 1', { level: 1 }],
    ['level 6', { level: 6 }],
    ['level 9 in small blocks', { level: 9, memLevel: 1 }],
    ['stored blocks', { level: 0 }],
    ['fixed codes', { strategy: constants.Z_FIXED }],
    ['no matches', { strategy: constants.Z_HUFFMAN_ONLY }],
    ['runs only', { strategy: constants.Z_RLE }],
    ['a window of 512 bytes', { windowBits: 9 }],
  ];

  it.each(kinds)('%s: all spans read back, and thin windows say no less than whole ones', (_, options) => {
    const gzip = gzipSync(mixed, options);
    const thin = indexOf(gzip, 65_536);
    const whole = indexOf(gzip, 65_536, false);
    expectReads(gzip, thin.index, mixed);
    expectReads(gzip, whole.index, mixed);
    expect(thin.index.length).toBeLessThanOrEqual(whole.index.length + 100);
  });

  it('empty blocks of flushes are no second entry for one position', () => {
    const body = Buffer.concat([deflateRawSync(text, { finishFlush: constants.Z_FULL_FLUSH }), deflateRawSync(text)]);
    const trailer = Buffer.alloc(8);
    const plain = Buffer.concat([text, text]);
    trailer.writeUInt32LE(crc32(plain), 0);
    trailer.writeUInt32LE(plain.length, 4);
    const gzip = Buffer.concat([gzipSync('').subarray(0, 10), body, trailer]);
    const { index } = indexOf(gzip, 65_536);
    expectReads(gzip, index, plain);
  });

  it('nothing at all has one entry', () => {
    const gzip = gzipSync(Buffer.alloc(0));
    const { index, entries } = indexOf(gzip, 65_536);
    expect(entries).toHaveLength(1);
    expect(openFile(gzip, index).sizeBytes).toBe(0);
  });
});

describe('member headers', () => {
  const header = (flags: number, rest: string | Uint8Array): Buffer =>
    Buffer.concat([Buffer.from([0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255]), Buffer.from(rest as string, 'latin1')]);

  it('are as long as their flags say, and asked for until they are whole', () => {
    const cases: [Buffer, number][] = [
      [header(0, 'data'), 10],
      [header(8, 'name\0data'), 15],
      [header(4, Buffer.from([3, 0, 1, 2, 3])), 15],
      [header(4 | 8 | 16 | 2, Buffer.concat([Buffer.from([1, 0, 9]), Buffer.from('n\0c\0xx')])), 19],
    ];
    for (const [bytes, length] of cases) {
      expect(gzipHeaderBytes(bytes, 'test')).toBe(length);
      for (let cut = 0; cut < length; cut += 1) expect(gzipHeaderBytes(bytes.subarray(0, cut), 'test')).toBeUndefined();
    }
  });

  it('are refused when they are none, or endless', () => {
    expect(() => gzipHeaderBytes(header(0x20, ''), 'test')).toThrow(/reserved bits/);
    expect(() => gzipHeaderBytes(Buffer.from('no gzip at all'), 'test')).toThrow(/1f 8b/);
    expect(() => gzipHeaderBytes(header(8, 'x'.repeat(MAX_GZIP_HEADER_BYTES)), 'test')).toThrow(/longer than/);
  });
});
