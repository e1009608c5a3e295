import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { parseHeaderOnlyTar, parseTurboLayer } from '../../../../../plugin/image/turbo/turbo-layer.ts';
import { readFixture } from '../../../../support/fixtures.ts';

describe('turbo layer blob', () => {
  test.each([1, 2, 3])('layer %i: metadata and gzip index come out as the files they were made from', (n) => {
    const overGzip = parseTurboLayer(gunzipSync(readFixture(`turbo/targz/l${n}.turboOCIv1.tar.gz`)), 'x');
    expect(Buffer.from(overGzip.gzipIndex!).equals(readFixture(`turbo/targz/l${n}.gzip.meta`))).toBe(true);
    expect(Buffer.from(overGzip.metaByFsType.get('ext4')!).equals(readFixture(`turbo/tar/l${n}.ext4.fs.meta`))).toBe(true);
    const overTar = parseTurboLayer(gunzipSync(readFixture(`turbo/tar/l${n}.turboOCIv1.tar.gz`)), 'x');
    expect(overTar.gzipIndex).toBeUndefined();
    expect(Buffer.from(overTar.metaByFsType.get('ext4')!).equals(readFixture(`turbo/tar/l${n}.ext4.fs.meta`))).toBe(true);
  });

  test('an ordinary layer is not taken for one, and a cut one is refused', () => {
    expect(() => parseTurboLayer(readFixture('oci/l3.tar'), 'x')).toThrow('no marker');
    const tar = gunzipSync(readFixture('turbo/targz/l3.turboOCIv1.tar.gz'));
    expect(() => parseTurboLayer(tar.subarray(0, 2000), 'x')).toThrow('what the tar holds');
  });
});

describe('header-only tar', () => {
  test.each([2, 3])('layer %i: each regular file points at its own content in the original tar', (n) => {
    const original = readFixture(`oci/l${n}.tar`);
    const entries = [...parseHeaderOnlyTar(readFixture(`turbo/tarmeta/l${n}.tar.meta`), 'x')];
    expect(entries.length).toBeGreaterThan(10);
    for (const entry of entries) {
      if (entry.contentOffsetBytes === undefined || entry.contentOffsetBytes === 0) continue;
      // The block before the content is this entry's header in the original, but for the two fields that were overwritten.
      const header = original.subarray(entry.contentOffsetBytes - 512, entry.contentOffsetBytes);
      expect(Buffer.from(entry.header.subarray(0, 148)).equals(header.subarray(0, 148))).toBe(true);
    }
    expect(entries.some((entry) => entry.sizeBytes > 0 && entry.contentOffsetBytes! > 0)).toBe(true);
  });

  test('a file cut inside a header is refused', () => {
    expect(() => [...parseHeaderOnlyTar(readFixture('turbo/tarmeta/l3.tar.meta').subarray(0, 700), 'x')]).toThrow('512 bytes');
  });
});
