/**
 * Proves that damaged files never do worse than a clear error: good files of every format with bytes changed, removed or added, opened
 * and read. A crash, a hang, an allocation by a lying field or any error that is not ours fails the test. Checksums that guard the
 * fields are made right again in half of the runs, so that the checks behind them are reached. Time-boxed; seeds printed.
 */

import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { MemoryFile, MissingList, type RandomAccessFile } from '../../../../plugin/file/file.ts';
import { GzipFile } from '../../../../plugin/file/gzip-file.ts';
import { openGzipIndex } from '../../../../plugin/file/open-layer.ts';
import { writeU32 } from '../../../../plugin/image/lsmt/bytes.ts';
import { parseRwIndex } from '../../../../plugin/image/lsmt/rw-layer.ts';
import { parsePrefetch } from '../../../../plugin/image/turbo/trace.ts';
import { parseHeaderOnlyTar, parseTurboLayer } from '../../../../plugin/image/turbo/turbo-layer.ts';
import { crc32c } from '../../../../plugin/image/zfile/crc32c.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { contentFile, memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { readFixture } from '../../../support/fixtures.ts';

const BOX = { interruptAfterTimeLimit: 2500, markInterruptAsFailure: false, numRuns: 20_000 };
/** Reads of one mutant: enough to touch all of the small good files, little enough to go through many. */
const READ_BYTES = 256 * 1024;

/** Interesting values for a byte: extremes of fields are made of them. */
const byteArb = fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.nat(255));

interface Mutation {
  edits: { at: number; bytes: number[] }[];
  cut: number;
  pad: number;
  fix: boolean;
}

/** `hot`: regions that hold fields, as fractions are too unlikely to hit them. */
const mutationArb = (size: number, hot: [number, number][]): fc.Arbitrary<Mutation> =>
  fc.record({
    edits: fc.array(
      fc.record({
        at: fc.oneof(fc.nat(size - 1), ...hot.map(([from, to]) => fc.integer({ min: from, max: Math.min(to, size) - 1 }))),
        bytes: fc.array(byteArb, { minLength: 1, maxLength: 8 }),
      }),
      { maxLength: 4 },
    ),
    cut: fc.oneof({ weight: 9, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(size) }),
    pad: fc.oneof({ weight: 9, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(5000) }),
    fix: fc.boolean(),
  });

function mutate(good: Uint8Array, mutation: Mutation): Buffer {
  const bytes = Buffer.concat([good.subarray(0, good.length - mutation.cut), Buffer.alloc(mutation.pad)]);
  for (const edit of mutation.edits) {
    edit.bytes.forEach((byte, i) => {
      if (edit.at + i < bytes.length) bytes[edit.at + i] = byte;
    });
  }
  return bytes;
}

/** Runs `use` on `good`, which it takes, on half of it, which it refuses, and on mutants, as many as time allows: only our own errors may come out. */
function survives(good: Uint8Array, hot: [number, number][], use: (bytes: Buffer) => void, fix: (bytes: Buffer) => void = () => {}): void {
  use(Buffer.from(good));
  expect(() => use(Buffer.from(good.subarray(0, good.length >> 1)))).toThrow(AppError);
  fc.assert(
    fc.property(mutationArb(good.length, hot), (mutation) => {
      const bytes = mutate(good, mutation);
      if (mutation.fix) fix(bytes);
      try {
        use(bytes);
      } catch (error) {
        if (!(error instanceof AppError)) throw error;
      }
    }),
    BOX,
  );
}

function readSome(file: RandomAccessFile): void {
  const size = Math.min(READ_BYTES, file.sizeBytes);
  const target = Buffer.allocUnsafe(size);
  file.readSync(0, size, target, 0, new MissingList());
  file.readSync(file.sizeBytes - size, size, target, 0, new MissingList());
}

function fixZFileDigest(bytes: Buffer, at: number): void {
  if (at < 0 || at + 512 > bytes.length) return;
  const block = Buffer.from(bytes.subarray(at, at + 512));
  block.fill(0, 28, 32);
  writeU32(bytes, at + 28, crc32c(0, block));
}

describe('damaged files', () => {
  test('lsmt', () => {
    const good = readFixture('hostile/lsmt/good.lsmt');
    const trailer = good.length - 4096;
    survives(
      good,
      [
        [0, 140],
        [trailer, trailer + 140],
        [trailer - 4096, trailer - 3900],
      ],
      (bytes) => readSome(openMemoryDevice(memoryDevice([bytes])).file),
    );
  });

  test('zfile, final header', () => {
    const good = readFixture('hostile/zfile/good-overwritten-header.zfile');
    survives(
      good,
      [
        [0, 96],
        [good.length - 620, good.length - 512],
      ],
      (bytes) => readSome(contentFile(bytes)),
      (bytes) => fixZFileDigest(bytes, 0),
    );
  });

  test('zfile, trailer', () => {
    const good = readFixture('hostile/zfile/good.zfile');
    const hot: [number, number][] = [
      [0, 96],
      [good.length - 620, good.length - 416],
    ];
    survives(
      good,
      hot,
      (bytes) => readSome(contentFile(bytes)),
      (bytes) => {
        fixZFileDigest(bytes, 0);
        fixZFileDigest(bytes, bytes.length - 512);
      },
    );
  });

  test('tar-wrapped blob', () => {
    const good = readFixture('blob/l3.lz4-4k.tar');
    survives(good, [[0, 2100]], (bytes) => readSome(openMemoryDevice(memoryDevice([bytes])).file));
  });

  test('warp layer', () => {
    const meta = readFixture('synth/warp.lsmt');
    const target = readFixture('synth/warp.target');
    const trailer = meta.length - 4096;
    // The reference's own file maps past its target.
    const use = (bytes: Buffer): void => readSome(openMemoryDevice(memoryDevice([{ meta: bytes, target }]), { pastTarget: 'zeros' }).file);
    survives(meta, [[trailer - 200, trailer + 140]], use);
  });

  test('gzip index', () => {
    const good = readFixture('turbo/targz/l1.gzip.meta');
    const gzip = new MemoryFile(readFixture('oci/l1.tar.gz'));
    const use = (bytes: Buffer): void => {
      const index = new MemoryFile(bytes);
      const tables = openGzipIndex(index, gzip.sizeBytes, 'index', new MissingList())!;
      readSome(new GzipFile(gzip, index, tables, loadCodec(), { subject: 'gzip', blobId: 0, indexBlobId: 1 }));
    };
    survives(good, [[0, 333]], use, (bytes) => {
      if (bytes.length >= 333) writeU32(bytes, 329, crc32c(0, bytes, 0, 329));
    });
  });

  test('gzip layer', () => {
    const index = new MemoryFile(readFixture('turbo/targz/l1.gzip.meta'));
    const good = readFixture('oci/l1.tar.gz');
    const tables = openGzipIndex(index, good.length, 'index', new MissingList())!;
    survives(good, [[0, 1000]], (bytes) => {
      const file = new MemoryFile(Buffer.concat([bytes, Buffer.alloc(Math.max(0, good.length - bytes.length))]).subarray(0, good.length));
      readSome(new GzipFile(file, index, tables, loadCodec(), { subject: 'gzip', blobId: 0, indexBlobId: 1 }));
    });
  });

  test('trace', () => {
    survives(
      readFixture('trace/trace'),
      [[0, 48]],
      (bytes) => void parsePrefetch(bytes, 'trace'),
      (bytes) => {
        if (bytes.length >= 24) writeU32(bytes, 16, crc32c(0, bytes, 24));
      },
    );
  });

  test('turbo layer and header-only tar', () => {
    const turbo = gunzipSync(readFixture('turbo/targz/l3.turboOCIv1.tar.gz'));
    survives(turbo, [[0, 512]], (bytes) => void parseTurboLayer(bytes, 'turbo'));
    survives(readFixture('turbo/tarmeta/l3.tar.meta'), [[0, 2048]], (bytes) => {
      for (const entry of parseHeaderOnlyTar(bytes, 'tarmeta')) if (entry.header.length !== 512) throw new Error('cut header');
    });
  });

  test('writable index', () => {
    const dataBytes = readFixture('synth/a.rw.data').length;
    survives(
      readFixture('synth/a.rw.index'),
      [
        [0, 140],
        [4096, 4240],
      ],
      (bytes) => void parseRwIndex(bytes, dataBytes, 'rw'),
    );
  });
});
