/**
 * Proves that every hostile file of the fixtures ends in a clear error, or in the digest that the reference reads where accepting it is
 * right; also where the reference crashes or never ends. The expectation is made from the manifest; deviations are listed with reasons.
 */
import { describe, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { MemoryFile, MissingList } from '../../../../plugin/file/file.ts';
import { GzipFile } from '../../../../plugin/file/gzip-file.ts';
import { openGzipIndex } from '../../../../plugin/file/open-layer.ts';
import { MAX_TRACE_READ_BYTES, parsePrefetch } from '../../../../plugin/image/turbo/trace.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { contentFile, hashFile, memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { type FixtureFile, fixtureFile, fixtureNames, readFixture } from '../../../support/fixtures.ts';

/** Files that the reference accepts and we refuse, each because it would serve wrong bytes or cannot be served. */
const STRICTER = new Map([
  ['hostile/zfile/original-size-smaller.zfile', 'blocks that belong to no byte'],
  ['hostile/zfile/short-block.zfile', 'the reference returns leftovers of its buffer'],
  ['hostile/zfile/trailer-digest-wrong.zfile', 'the trailer says it has a digest and it is wrong'],
  ['hostile/warp/fsmeta-into-index.lsmt', 'the index is no file-system metadata'],
  ['hostile/warp/only-remote.lsmt', 'the reference reads from the wrong file'],
]);

/** Runs `read` and compares with what the manifest says, stricter where listed. */
function expectVerdict(name: string, read: () => string): void {
  const entry: FixtureFile = fixtureFile(name);
  const mustAccept = entry.what?.startsWith('COMPATIBILITY') === true || (entry.upstream === 'accepts' && !STRICTER.has(name));
  if (mustAccept) {
    expect(read(), `${name}: ${entry.what}`).toBe(entry.device_sha256);
    return;
  }
  let error: unknown;
  try {
    read();
  } catch (thrown) {
    error = thrown;
  }
  expect(error, `${name}: ${entry.what}`).toBeInstanceOf(AppError);
  const appError = error as AppError;
  expect(['DataLoss', 'ResourceExhausted']).toContain(appError.code);
  // Names the file, and where in it.
  expect(appError.subject).toBe(sha256(readFixture(name)));
  expect(appError.details.offset).toBeTypeOf('number');
}

describe('hostile lsmt', () => {
  test.each(fixtureNames('hostile/lsmt/'))('%s', (name) => {
    expectVerdict(name, () => hashFile(openMemoryDevice(memoryDevice([readFixture(name)])).file));
  });
});

describe('hostile zfile', () => {
  test.each(fixtureNames('hostile/zfile/'))('%s', (name) => {
    // Without its magic a file is no ZFile: the reference then takes the bytes as they are, and so do we; short ones likewise.
    if (name === 'hostile/zfile/short.zfile' || name === 'hostile/zfile/empty-file.zfile') {
      expect(() => openMemoryDevice(memoryDevice([readFixture(name)]))).toThrow(AppError);
      return;
    }
    expectVerdict(name, () => hashFile(contentFile(readFixture(name))));
  });

  test.each(fixtureNames('hostile/zfile/'))('%s is refused as a layer', (name) => {
    expect(() => openMemoryDevice(memoryDevice([readFixture(name)]))).toThrow(AppError);
  });
});

describe('hostile tar', () => {
  test.each(fixtureNames('hostile/tar/'))('%s', (name) => {
    expectVerdict(name, () => hashFile(contentFile(readFixture(name))));
  });

  test.each(fixtureNames('hostile/tar/'))('%s is refused as a layer', (name) => {
    expect(() => openMemoryDevice(memoryDevice([readFixture(name)]))).toThrow(AppError);
  });
});

describe('hostile warp', () => {
  const target = readFixture('synth/warp.target');
  test.each(fixtureNames('hostile/warp/'))('%s', (name) => {
    expectVerdict(name, () =>
      hashFile(openMemoryDevice(memoryDevice([{ meta: readFixture(name), target }]), { pastTarget: 'zeros' }).file),
    );
  });
});

describe('hostile warp, as a device is opened', () => {
  test('an index that points past its original is refused', () => {
    const meta = readFixture('hostile/warp/remote-past-target.lsmt');
    expect(() => openMemoryDevice(memoryDevice([{ meta, target: readFixture('synth/warp.target') }]))).toThrow(/maps into sectors up to/);
  });
});

describe('hostile gzip index', () => {
  const gzip = new MemoryFile(readFixture('oci/l2.tar.gz'));
  test.each(fixtureNames('hostile/gzidx/'))('%s', (name) => {
    expectVerdict(name, () => {
      const bytes = readFixture(name);
      const digest = sha256(bytes);
      const index = new MemoryFile(bytes);
      const tables = openGzipIndex(index, gzip.sizeBytes, digest, new MissingList());
      return hashFile(new GzipFile(gzip, index, tables!, loadCodec(), { subject: digest, blobId: 0, indexBlobId: 1 }));
    });
  });
});

describe('hostile traces', () => {
  const parse = (name: string) => parsePrefetch(readFixture(`hostile/trace/${name}.trace`), name);

  test('good and odd ones are read', () => {
    expect(parse('good')).toMatchObject({ kind: 'trace' });
    const outOfRange = parse('layer-out-of-range');
    expect(outOfRange.kind === 'trace' && outOfRange.ranges[0]?.layerIndex).toBe(77);
    expect(parse('not-multiple')).toMatchObject({ kind: 'trace' });
  });

  test('a range above the replay buffer of the reference is split, not refused', () => {
    const trace = parse('large-count');
    const ranges = trace.kind === 'trace' ? trace.ranges : [];
    expect(ranges.slice(0, 3).reduce((sum, range) => sum + range.lengthBytes, 0)).toBe(3_014_656);
    expect(Math.max(...ranges.map((range) => range.lengthBytes))).toBe(MAX_TRACE_READ_BYTES);
  });

  test('without its magic it is a list, here without a usable line', () => {
    expect(parse('bad-magic')).toEqual({ kind: 'list', paths: [] });
  });

  test.each(['bad-checksum', 'size-mismatch'])('%s is refused', (name) => {
    expect(() => parse(name)).toThrow(AppError);
  });
});
