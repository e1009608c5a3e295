/** Proves the behaviour of opened devices: rounds of fetching, odd reads, corrupt blocks, threads, refused descriptions. */
import { hash } from 'node:crypto';
import { Worker } from 'node:worker_threads';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { blobsOf, createDeviceFile, DeviceOpener, tryOpenDevice } from '../../../../plugin/file/device-file.ts';
import { MemoryFile, MissingList } from '../../../../plugin/file/file.ts';
import { openGzipIndex } from '../../../../plugin/file/open-layer.ts';
import { lengthOf } from '../../../../plugin/image/lsmt/segments.ts';
import { encodeChunkDigestsHeader, TARGET_CHUNK_BYTES } from '../../../../plugin/image/turbo/chunk-digests.ts';
import { crc32c } from '../../../../plugin/image/zfile/crc32c.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { hashFile, type MemoryDevice, memoryDevice, openMemoryDevice, PartialFile, readWhole } from '../../../support/devices.ts';
import { readFixture } from '../../../support/fixtures.ts';

const codec = loadCodec();

const turbo = (n: number) => ({
  meta: readFixture(`turbo/tar/l${n}.ext4.fs.meta`),
  target: readFixture(`oci/l${n}.tar.gz`),
  gzipIndex: readFixture(`turbo/targz/l${n}.gzip.meta`),
});
const blobs = [1, 2, 3].map((n) => readFixture(`blob/l${n}.lz4-4k.tar`));

function partialFiles(device: MemoryDevice): PartialFile[] {
  return blobsOf(device.spec).map((blob, i) => new PartialFile(device.bytesByDigest.get(blob.digest)!, i));
}

function errorOf(run: () => unknown): AppError {
  try {
    run();
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error('expected an error');
}

describe('opening', () => {
  test('blobs are listed once each, in order of first use', () => {
    const device = memoryDevice([blobs[0]!, turbo(1), blobs[0]!]);
    const list = blobsOf(device.spec);
    expect(list.length).toBe(4);
    expect(new Set(list.map((blob) => blob.digest)).size).toBe(4);
  });

  test('needs few rounds, serves all layers in each, and asks only for what it needs', () => {
    const device = memoryDevice([...blobs, turbo(2)]);
    const files = partialFiles(device);
    const opener = new DeviceOpener(device.spec, files, codec);
    let rounds = 0;
    for (;;) {
      const missing = new MissingList();
      const tables = opener.tryOpen(missing);
      if (tables !== undefined) break;
      rounds++;
      expect(missing.ranges.length).toBeGreaterThan(0);
      if (rounds === 1) expect(new Set(missing.ranges.map((range) => range.blobId)).size).toBe(6);
      for (const range of missing.ranges) {
        expect(range.offsetBytes + range.lengthBytes).toBeLessThanOrEqual(files[range.blobId]!.sizeBytes);
        files[range.blobId]!.fetch(range.offsetBytes, range.lengthBytes);
      }
    }
    expect(rounds).toBeLessThanOrEqual(4);
  });

  test('a read of a device that is not local names every missing range in one call', () => {
    const device = memoryDevice([...blobs, turbo(3)]);
    const { tables, file } = openMemoryDevice(device);
    const files = partialFiles(device);
    const partial = createDeviceFile(tables, files, codec);
    const length = 8 * 1024 * 1024;
    const wanted = Buffer.alloc(length);
    file.readSync(0, length, wanted, 0, new MissingList());
    const target = Buffer.alloc(length);
    let rounds = 0;
    for (; ; rounds++) {
      const missing = new MissingList();
      if (partial.readSync(0, length, target, 0, missing)) break;
      for (const range of missing.ranges) files[range.blobId]!.fetch(range.offsetBytes, range.lengthBytes);
    }
    expect(rounds).toBe(1);
    expect(target.equals(wanted)).toBe(true);
  });

  test('errors name layer, digest and place', () => {
    const device = memoryDevice([blobs[0]!, readFixture('hostile/lsmt/moffset-7.lsmt')]);
    const error = errorOf(() => openMemoryDevice(device));
    expect(error.code).toBe('DataLoss');
    expect(error.subject).toBe(blobsOf(device.spec)[1]!.digest);
    expect(error.details).toMatchObject({ layerIndex: 1, blobIndex: 1, field: 'record moffset' });
    expect(error.message).toContain('within 8..28');
  });

  test('a file whose size is not the described one is refused', () => {
    const device = memoryDevice([blobs[0]!]);
    const error = errorOf(() => tryOpenDevice(device.spec, [new MemoryFile(blobs[0]!.subarray(1))], codec, new MissingList()));
    expect(error.code).toBe('FailedPrecondition');
  });

  test('255 layers work', () => {
    const upper = readFixture('synth/b.lsmt');
    const device = memoryDevice([readFixture('synth/a.lsmt'), ...Array.from({ length: 254 }, () => upper)]);
    const expected = openMemoryDevice(memoryDevice([readFixture('synth/a.lsmt'), upper]));
    expect(Buffer.from(readWhole(openMemoryDevice(device).file)).equals(readWhole(expected.file))).toBe(true);
  });

  test('full and index layers mix in one stack, a blob used twice included', () => {
    const warp = { meta: readFixture('synth/warp.lsmt'), target: readFixture('synth/warp.target') };
    const a = readFixture('synth/a.lsmt');
    const top = readWhole(openMemoryDevice(memoryDevice([warp, a]), { pastTarget: 'zeros' }).file);
    const twice = openMemoryDevice(memoryDevice([a, warp, a]), { pastTarget: 'zeros' });
    expect(twice.files.length).toBe(3);
    expect(Buffer.from(readWhole(twice.file)).equals(top)).toBe(true);
    // The topmost size wins: the small layer on top makes the device small.
    expect(twice.tables.deviceSizeBytes).toBe(1048576);
  });
});

describe('originals that are not what an index was made of', () => {
  const gzip = readFixture('oci/l2.tar.gz');
  const meta = readFixture('turbo/tar/l2.ext4.fs.meta');
  /** The golden index, for a file of another size. */
  const indexFor = (bytes: Uint8Array): Uint8Array => {
    const index = Buffer.from(readFixture('turbo/targz/l2.gzip.meta'));
    index.writeBigUInt64LE(BigInt(bytes.length), 33);
    index.writeUInt32LE(crc32c(0, index, 0, 329), 329);
    return index;
  };
  const open = (target: Uint8Array) => openMemoryDevice(memoryDevice([{ meta, target, gzipIndex: indexFor(target) }]));

  test('the original itself opens', () => {
    expect(open(gzip).tables.deviceSizeBytes).toBe(1 << 30);
  });

  test('a second member is refused', () => {
    expect(() => open(Buffer.concat([gzip, gzipSync('one more member')]))).toThrow(/several members, or trailing garbage/);
  });

  test('garbage after the member is refused', () => {
    expect(() => open(Buffer.concat([gzip, Buffer.alloc(512, 0x5a)]))).toThrow(/several members, or trailing garbage/);
  });

  test('a tar that ends before what the index maps is refused; a last sector that is cut is not', () => {
    const tar = readFixture('oci/l2.tar');
    const { tables } = openMemoryDevice(memoryDevice([{ meta, target: tar }]));
    let end = 0;
    for (let i = 0; i < tables.segments.count; i++) {
      if (tables.segments.source[i] === 1) end = Math.max(end, (tables.segments.moffset[i]! + lengthOf(tables.segments, i)) * 512);
    }
    openMemoryDevice(memoryDevice([{ meta, target: tar.subarray(0, end - 100) }]));
    expect(() => openMemoryDevice(memoryDevice([{ meta, target: tar.subarray(0, end - 512) }]))).toThrow(/maps into sectors up to/);
  });
});

describe('originals with chunk digests', () => {
  const tar = readFixture('oci/l2.tar');
  const gzip = readFixture('oci/l1.tar.gz');
  const gzipIndex = readFixture('turbo/targz/l1.gzip.meta');

  /** The list of a tar whose spans begin at these offsets; `change` spoils one digest. */
  function digestsOf(bytes: Uint8Array, spanStarts: readonly number[], change?: number): Uint8Array {
    const digests: Buffer[] = [];
    for (const [i, begin] of spanStarts.entries()) {
      const end = spanStarts[i + 1] ?? bytes.length;
      for (let at = begin; at < end; at += TARGET_CHUNK_BYTES) {
        digests.push(hash('sha256', bytes.subarray(at, Math.min(end, at + TARGET_CHUNK_BYTES)), 'buffer'));
      }
    }
    if (change !== undefined) digests[change]![0]! ^= 1;
    return Buffer.concat([encodeChunkDigestsHeader(bytes.length, digests.length), ...digests]);
  }
  const plainOf = (change?: number) => ({
    meta: readFixture('turbo/tar/l2.ext4.fs.meta'),
    target: tar,
    chunkDigests: digestsOf(tar, [0], change),
  });
  const l1Tar = readFixture('oci/l1.tar');
  const index = new MemoryFile(gzipIndex);
  const { entries } = openGzipIndex(index, gzip.length, 'l1', new MissingList())!;
  const spanStarts = [...entries.plainOffset.subarray(0, entries.count)];
  const gzipOf = (change?: number) => ({
    meta: readFixture('turbo/tar/l1.ext4.fs.meta'),
    target: gzip,
    gzipIndex,
    chunkDigests: digestsOf(l1Tar, spanStarts, change),
  });

  test('right digests change nothing of what is read', () => {
    for (const layers of [[gzipOf()], [plainOf()]]) {
      const without = layers.map(({ chunkDigests: _, ...layer }) => layer);
      expect(hashFile(openMemoryDevice(memoryDevice(layers)).file)).toBe(hashFile(openMemoryDevice(memoryDevice(without)).file));
    }
  });

  test.each([
    ['gzip', gzipOf, 3],
    ['tar', plainOf, 2],
  ])('bytes of a %s that have another digest are an error with the place to fetch again, the others are read', (_, make, change) => {
    const device = memoryDevice([make(change)]);
    const { file, tables } = openMemoryDevice(device);
    const targetIndex = blobsOf(device.spec).findIndex(
      (blob) => blob.digest === (device.spec.layers[0] as { target: { digest: string } }).target.digest,
    );
    const errors = new Set<string>();
    let goodReads = 0;
    for (let at = 0; at < file.sizeBytes; at += 1 << 20) {
      for (let piece = at; piece < at + (1 << 20); piece += 1 << 17) {
        try {
          file.readSync(piece, 1 << 17, Buffer.alloc(1 << 17), 0, new MissingList());
          goodReads += 1;
        } catch (error) {
          if (!(error instanceof AppError)) throw error;
          errors.add(error.code);
          expect(error.details).toMatchObject({ blobIndex: targetIndex, offset: expect.any(Number), length: expect.any(Number) });
          expect(error.message).toMatch(/is not what its index says/);
        }
      }
    }
    expect([...errors]).toEqual(['DataLoss']);
    expect(goodReads).toBeGreaterThan(tables.segments.count > 0 ? 10 : 0);
  });

  test('a list that is not of these chunks is refused', () => {
    for (const layer of [
      { ...plainOf(), chunkDigests: digestsOf(tar.subarray(0, tar.length - 512), [0]) },
      { ...gzipOf(), chunkDigests: digestsOf(l1Tar, [0, 1, 2, 3, 4]) },
      { ...plainOf(), chunkDigests: plainOf().chunkDigests.subarray(0, 100) },
    ]) {
      expect(errorOf(() => openMemoryDevice(memoryDevice([layer]))).code).toBe('DataLoss');
    }
  });
});

describe('reading', () => {
  test('any offset and length gives the same bytes as whole-device reads, in any encoding', () => {
    for (const layers of [blobs, [1, 2, 3].map(turbo), [1, 2, 3].map((n) => readFixture(`zfile/l${n}.zstd-64k.zfile`))]) {
      const { file } = openMemoryDevice(memoryDevice(layers));
      const length = 4 * 1024 * 1024;
      const whole = Buffer.alloc(length);
      file.readSync(0, length, whole, 0, new MissingList());
      const target = Buffer.alloc(200_000);
      let state = 12345;
      const random = (below: number): number => {
        state = (state * 1103515245 + 12345) % 2147483648;
        return state % below;
      };
      for (let i = 0; i < 1500; i++) {
        const size = 1 + random(i % 10 === 0 ? 150_000 : 9000);
        const offset = random(length - size);
        const at = random(1000);
        expect(file.readSync(offset, size, target, at, new MissingList())).toBe(true);
        if (!target.subarray(at, at + size).equals(whole.subarray(offset, offset + size))) {
          expect.fail(`${size} bytes at ${offset} differ`);
        }
      }
    }
  });

  test('a corrupt block is an error with its stored range; its neighbours still read; the bytes repaired, it reads', () => {
    const bytes = Buffer.from(blobs[0]!);
    const { tables } = openMemoryDevice(memoryDevice([blobs[0]!]));
    const file = createDeviceFile(tables, [new MemoryFile(bytes)], codec);
    const { segments, sources } = tables;
    const source = sources[0]!;
    if (source.kind !== 'layer') throw new Error('a full layer');
    // A byte in the stored form of the block that holds the second segment's first sector.
    const block = Math.floor((segments.moffset[1]! * 512) / 4096);
    const sizes = source.content.zfile!.jumpTable.sizes;
    let position = 1536 + 512;
    for (let i = 0; i < block; i++) position += sizes[i]!;
    bytes[position + 3]! ^= 0x40;
    const target = Buffer.alloc(4096);
    const at = segments.lba[1]! * 512;
    const error = errorOf(() => file.readSync(at, 512, target, 0, new MissingList()));
    expect(error.code).toBe('DataLoss');
    expect(error.details).toMatchObject({ blobIndex: 0, blobId: 0, offset: position, length: sizes[block] });
    expect(file.readSync(segments.lba[0]! * 512, 512, target, 0, new MissingList())).toBe(true);
    bytes[position + 3]! ^= 0x40;
    expect(file.readSync(at, 512, target, 0, new MissingList())).toBe(true);
  });

  test('a corrupt gzip span is an error with its stored range', () => {
    const layer = turbo(1);
    const { tables } = openMemoryDevice(memoryDevice([layer]));
    const damaged = Buffer.from(layer.target);
    damaged.fill(0xff, 5000, 6000);
    const files = [layer.meta, layer.gzipIndex, damaged].map((bytes) => new MemoryFile(bytes));
    const file = createDeviceFile(tables, files, codec);
    const error = errorOf(() => readWholeStart(file, 8 * 1024 * 1024));
    expect(error.code).toBe('DataLoss');
    expect(error.details).toMatchObject({ blobIndex: 2, blobId: 2 });
    expect(error.details.length).toBeTypeOf('number');
  });

  test('tables posted to a worker thread share their memory and read the same bytes there', async () => {
    const { tables, file } = openMemoryDevice(memoryDevice(blobs));
    const source = `
      import { parentPort, workerData } from 'node:worker_threads';
      const { createDeviceFile } = await import(workerData.device);
      const { MemoryFile, MissingList } = await import(workerData.file);
      const { loadCodec } = await import(workerData.codecs);
      const { tables, blobs } = workerData;
      const device = createDeviceFile(tables, blobs.map((bytes) => new MemoryFile(bytes)), loadCodec());
      const target = Buffer.alloc(1 << 20);
      device.readSync(0, target.length, target, 0, new MissingList());
      parentPort.postMessage({ target, shared: tables.segments.lba.buffer instanceof SharedArrayBuffer });
    `;
    const url = (path: string): string => new URL(`../../../../plugin/${path}`, import.meta.url).href;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      workerData: { tables, blobs, device: url('file/device-file.ts'), file: url('file/file.ts'), codecs: url('kernel/codecs.ts') },
    });
    const answer = await new Promise<{ target: Uint8Array; shared: boolean }>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    await worker.terminate();
    const wanted = Buffer.alloc(1 << 20);
    file.readSync(0, wanted.length, wanted, 0, new MissingList());
    expect(answer.shared).toBe(true);
    expect(Buffer.from(answer.target).equals(wanted)).toBe(true);
  });
});

function readWholeStart(
  file: { readSync: (o: number, l: number, t: Uint8Array, at: number, m: MissingList) => boolean },
  length: number,
): void {
  file.readSync(0, length, Buffer.alloc(length), 0, new MissingList());
}
