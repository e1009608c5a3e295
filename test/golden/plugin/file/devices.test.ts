/**
 * Proves that every encoding of the reference's layers reads, through the whole chain of wrappers, to the device digests that the
 * reference itself computed; by hashing whole devices, for every prefix of each stack.
 */
import { describe, expect, test } from 'vitest';
import { hashFile, type MemoryLayer, memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { fixtureManifest, readFixture } from '../../../support/fixtures.ts';

const { devices } = fixtureManifest();

/** How each stack's layer `n` (1-based) is made from files. */
const STACKS: { name: string; device: string; prefix: string; layer: (n: number) => MemoryLayer }[] = [
  { name: 'lsmt', device: 'native', prefix: 'l', layer: (n) => readFixture(`lsmt/l${n}.lsmt`) },
  ...['lz4-4k', 'lz4-64k', 'zstd-4k', 'zstd-64k'].map((form) => ({
    name: `zfile ${form}`,
    device: 'native',
    prefix: 'l',
    layer: (n: number) => readFixture(`zfile/l${n}.${form}.zfile`),
  })),
  { name: 'blob', device: 'native', prefix: 'l', layer: (n) => readFixture(`blob/l${n}.lz4-4k.tar`) },
  {
    name: 'turbo over tar',
    device: 'turbo-tar',
    prefix: 'l',
    layer: (n) => ({ meta: readFixture(`turbo/tar/l${n}.ext4.fs.meta`), target: readFixture(`oci/l${n}.tar`) }),
  },
  {
    name: 'turbo over tar.gz',
    device: 'turbo-targz',
    prefix: 'l',
    layer: (n) => ({
      meta: readFixture(`turbo/tar/l${n}.ext4.fs.meta`),
      target: readFixture(`oci/l${n}.tar.gz`),
      gzipIndex: readFixture(`turbo/targz/l${n}.gzip.meta`),
    }),
  },
  {
    name: 'turbo erofs over tar',
    device: 'turbo-erofs-tar',
    prefix: 'e',
    layer: (n) => ({ meta: readFixture(`turbo/erofs/e${n}.erofs.fs.meta`), target: readFixture(`oci/small/e${n}.tar`) }),
  },
];

describe('devices of the reference', () => {
  for (const stack of STACKS) {
    for (const height of [1, 2, 3]) {
      const key = `${stack.device}:${[1, 2, 3]
        .slice(0, height)
        .map((n) => `${stack.prefix}${n}`)
        .join('+')}`;
      test(`${stack.name}: ${key}`, () => {
        const layers = Array.from({ length: height }, (_, i) => stack.layer(i + 1));
        const { tables, file } = openMemoryDevice(memoryDevice(layers));
        expect(tables.deviceSizeBytes).toBe(devices[key]!.device_size);
        expect(hashFile(file)).toBe(devices[key]!.device_sha256);
      });
    }
  }

  test('zstd 64 KiB blob', () => {
    const { file } = openMemoryDevice(memoryDevice([readFixture('blob/l1.zstd-64k.tar')]));
    expect(hashFile(file)).toBe(devices['native:l1']!.device_sha256);
  });

  test('merged layer', () => {
    const { file } = openMemoryDevice(memoryDevice([readFixture('merge/l1+l2+l3.merged.zfile')]));
    expect(hashFile(file)).toBe(devices['merge:l1+l2+l3']!.device_sha256);
  });

  test('the same stack with its encodings mixed', () => {
    const layers = [readFixture('blob/l1.zstd-64k.tar'), readFixture('lsmt/l2.lsmt'), readFixture('zfile/l3.lz4-64k.zfile')];
    const { file } = openMemoryDevice(memoryDevice(layers));
    expect(hashFile(file)).toBe(devices['native:l1+l2+l3']!.device_sha256);
  });

  for (const key of Object.keys(devices).filter((name) => name.startsWith('synth:'))) {
    test(key, () => {
      const layers = key
        .slice('synth:'.length)
        .split('+')
        .map((name) => readFixture(`synth/${name}.lsmt`));
      const { tables, file } = openMemoryDevice(memoryDevice(layers));
      expect(tables.deviceSizeBytes).toBe(devices[key]!.device_size);
      expect(hashFile(file)).toBe(devices[key]!.device_sha256);
    });
  }

  for (const name of ['a', 'b', 'c', 'd', 'e', 'f']) {
    test(`synth/${name}.lsmt alone`, () => {
      const wanted = fixtureManifest().files[`synth/${name}.lsmt`]!.device!;
      const { tables, file } = openMemoryDevice(memoryDevice([readFixture(`synth/${name}.lsmt`)]));
      expect(tables.deviceSizeBytes).toBe(wanted.device_size);
      expect(hashFile(file)).toBe(wanted.device_sha256);
    });
  }

  test('sealed layer reads as the committed one', () => {
    const { file } = openMemoryDevice(memoryDevice([readFixture('synth/a.sealed')]));
    expect(hashFile(file)).toBe(fixtureManifest().files['synth/a.lsmt']!.device!.device_sha256);
  });

  test('warp layer whose target is shorter than a range that maps into it', () => {
    const wanted = fixtureManifest().files['synth/warp.lsmt']!.device!;
    const layer = { meta: readFixture('synth/warp.lsmt'), target: readFixture('synth/warp.target') };
    expect(hashFile(openMemoryDevice(memoryDevice([layer]), { pastTarget: 'zeros' }).file)).toBe(wanted.device_sha256);
  });
});
