import { randomFillSync } from 'node:crypto';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { checkGrowth } from '../../../../../plugin/convert/build/decompress.ts';
import type { SourceLayer } from '../../../../../plugin/convert/build/options.ts';
import { restoreTree } from '../../../../../plugin/image/erofs/restore-tree.ts';
import { CHUNK_LIST_ANNOTATION, parseChunkList } from '../../../../../plugin/image/oci/chunk-list.ts';
import { ALGORITHM } from '../../../../../plugin/image/zfile/codec.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { rawTar } from '../../image/tar/raw-tar.ts';
import { buildLayers, conversionFailure, deviceReader, sourceOf } from './converted-device.ts';

const tars = (): Buffer[] => ['l1', 'l2', 'l3'].map((name) => readFixture(`oci/${name}.tar`));

const failure = (layer: Partial<SourceLayer> & Pick<SourceLayer, 'open'>, signal = new AbortController().signal): Promise<AppError> =>
  conversionFailure([{ name: 'the layer', ...layer }], { signal, threads: 1 });

describe('conversion of layers', () => {
  it('does not depend on how the input is compressed or cut, nor on the number of threads', async () => {
    const plain = await buildLayers(tars());
    const digests = plain.map((layer) => layer.digest);
    const gzip = await buildLayers(
      tars().map((tar) => gzipSync(tar)),
      { chunkBytes: 1000, threads: 1 },
    );
    const members = tars().map((tar) => Buffer.concat([gzipSync(tar.subarray(0, 70_000)), gzipSync(tar.subarray(70_000))]));
    const eStargz = await buildLayers(members, { chunkBytes: 4096, threads: 3 });
    const frames = tars().map((tar) =>
      Buffer.concat([
        zstdCompressSync(tar.subarray(0, 9000)),
        zstdCompressSync(tar.subarray(9000)),
        Buffer.from('502a4d180400000061626364', 'hex'),
      ]),
    );
    const zstd = await buildLayers(frames, { chunkBytes: 333 });
    for (const other of [gzip, eStargz, zstd]) expect(other.map((layer) => layer.digest)).toEqual(digests);
    expect(plain.map((layer) => layer.sourceDiffId)).toEqual(tars().map((tar) => sha256(tar)));
    expect(gzip[0]!.sourceDigest).toBe(sha256(gzipSync(tars()[0]!)));
  });

  it('gives one device for every compression', async () => {
    const size = (await buildLayers(tars()))[2]!.statistics.deviceBytes;
    const devices: string[] = [];
    for (const [algorithm, blockSizeBytes] of [
      [ALGORITHM.lz4, 4096],
      [ALGORITHM.lz4, 65_536],
      [ALGORITHM.zstd, 4096],
      [ALGORITHM.zstd, 32_768],
      [ALGORITHM.zstd, 65_536],
    ] as const) {
      const layers = await buildLayers(tars(), { compression: { algorithm, blockSizeBytes } });
      devices.push(sha256(deviceReader(layers.map((layer) => layer.blob))(0, size)));
    }
    expect(new Set(devices).size).toBe(1);
  });

  it('continues on a converted base with the bytes that a conversion in one go gives', async () => {
    const whole = await buildLayers(tars());
    for (const count of [1, 2]) {
      const lower = whole.slice(0, count);
      const base = { read: deviceReader(lower.map((layer) => layer.blob)), diffIds: lower.map((layer) => layer.sourceDiffId) };
      const upper = await buildLayers(tars().slice(count), { base });
      expect(upper.map((layer) => layer.digest)).toEqual(whole.slice(count).map((layer) => layer.digest));
      expect(upper.map((layer) => layer.sourceChainId)).toEqual(whole.slice(count).map((layer) => layer.sourceChainId));
    }
  });

  it('makes no block that the reference cannot read back, though the data does not compress', async () => {
    const random = randomFillSync(Buffer.alloc(3_000_000));
    for (const algorithm of [ALGORITHM.lz4, ALGORITHM.zstd]) {
      const [layer] = await buildLayers([rawTar([{ name: 'random', content: random }])], {
        compression: { algorithm, blockSizeBytes: 65_536 },
      });
      const blob = layer!.blob;
      const zfile = blob.subarray(1536);
      const indexOffset = Number(zfile.readBigUInt64LE(40));
      const blocks = Number(zfile.readBigUInt64LE(48));
      for (let i = 0; i < blocks; i += 1) expect(zfile.readUInt32LE(indexOffset + 4 * i)).toBeLessThanOrEqual(65_536);
      expect(
        deviceReader([blob])(
          layer!.statistics.deviceBytes - layer!.statistics.metadataBytes + 4096 - Math.ceil(random.length / 4096) * 4096,
          random.length,
        ).equals(random),
      ).toBe(true);
    }
  });

  it('carries the SHA-256 of each chunk, bound by the annotation', async () => {
    for (const layer of await buildLayers(tars())) {
      const list = parseChunkList(layer.annotations[CHUNK_LIST_ANNOTATION]!, 'test');
      const stored = layer.blob.subarray(list.offsetBytes, list.offsetBytes + list.sizeBytes);
      expect(sha256(stored)).toBe(list.digest);
      const covered = layer.blob.subarray(0, list.offsetBytes - 512);
      expect(list.sizeBytes).toBe(32 * Math.ceil(covered.length / list.chunkBytes));
      for (let i = 0; i * list.chunkBytes < covered.length; i += 1) {
        const chunk = covered.subarray(i * list.chunkBytes, (i + 1) * list.chunkBytes);
        expect(sha256(chunk).slice(7)).toBe(stored.toString('hex', 32 * i, 32 * i + 32));
      }
      expect(sha256(layer.blob)).toBe(layer.digest);
      expect(layer.sizeBytes).toBe(layer.blob.length);
      expect(layer.blob.length % 512).toBe(0);
    }
  });

  it('keeps the metadata of each layer together: a walk of the whole tree reads a few runs of the device', async () => {
    const layerOf = (layer: number) =>
      rawTar(
        Array.from({ length: 600 }, (_, i) => ({
          name: `dir-${i % 30}/file-${layer}-${i}`,
          content: Buffer.alloc(i % 3 === 0 ? 20_000 : 300, `content ${i} `),
        })),
      );
    const layers = await buildLayers([1, 2, 3].map(layerOf));
    const read = deviceReader(layers.map((layer) => layer.blob));
    const touched: [number, number][] = [];
    const { tree } = restoreTree((offset, length) => {
      touched.push([offset, offset + length]);
      return read(offset, length);
    });
    expect(tree.inodes.liveCount).toBe(1 + 30 + 3 * 600);
    touched.sort(([a], [b]) => a - b);
    let [runs, end, bytes] = [0, -1, 0];
    for (const [from, to] of touched) {
      // One range request fetches 64 KiB at least.
      if (from > end + 65_536) runs += 1;
      bytes += Math.max(0, to - Math.max(from, end));
      end = Math.max(end, to);
    }
    // The root in front, and one run a layer.
    expect(runs).toBeLessThanOrEqual(1 + layers.length);
    const metadata = layers.reduce((sum, layer) => sum + layer.statistics.metadataBytes, 0);
    expect(bytes).toBeLessThanOrEqual(metadata);
  });

  it('names what it left out', async () => {
    const [layer] = await buildLayers(tars().slice(0, 1));
    expect(layer!.warnings).toEqual(['extended attribute trusted.overlay.opaque was left out of 1 entries']);
  });
});

describe('bad input', () => {
  const tar = rawTar([{ name: 'dir/file', content: 'x'.repeat(5000) }]);

  it('is refused with the layer, the entry and the offset, and leaves no file', async () => {
    const cut = await failure({ open: sourceOf(tar.subarray(0, 3000)) });
    expect(cut.code).toBe('DataLoss');
    expect(cut.message).toMatch(/^convert the layer: read tar entry dir\/file: at byte 3000: the archive ends here/);
    expect(cut.details).toMatchObject({ layer: 'the layer', offset: 3000 });
  });

  it('is refused when the compression is cut or damaged', async () => {
    const random = rawTar([{ name: 'random', content: randomFillSync(Buffer.alloc(100_000)) }]);
    for (const packed of [gzipSync(random), zstdCompressSync(random)]) {
      const cut = await failure({ open: sourceOf(packed.subarray(0, packed.length - 5)) });
      expect(cut.code).toBe('DataLoss');
      expect(cut.message).toMatch(/decompress the layer: the (gzip|zstd) stream is damaged after byte \d+ of the tar: /);
    }
    const large = gzipSync(rawTar([{ name: 'large', content: randomFillSync(Buffer.alloc(2_000_000)) }]));
    const inside = await failure({ open: sourceOf(large.subarray(0, 1_500_000)) });
    expect(inside.message).toMatch(/\(in the entry large\)$/);
    expect(inside.details.offset).toBeGreaterThan(1_000_000);
    const damaged = Buffer.from(gzipSync(rawTar([{ name: 'a', content: 'text '.repeat(3000) }])));
    damaged[damaged.length - 6]! ^= 1;
    expect((await failure({ open: sourceOf(damaged) })).code).toBe('DataLoss');
  });

  it('is refused when the digest or the diffID is another', async () => {
    const packed = gzipSync(tar);
    const wrong = sha256('something else');
    expect((await failure({ open: sourceOf(packed), digest: wrong })).message).toMatch(/digest is sha256:.*, expected sha256:/);
    expect((await failure({ open: sourceOf(packed), digest: sha256(packed), diffId: wrong })).message).toMatch(/diffID is sha256:/);
  });

  it('is refused when it decompresses beyond the limit', async () => {
    const bomb = gzipSync(Buffer.alloc(2 ** 23));
    expect(await failure({ open: sourceOf(bomb) })).toMatchObject({ code: 'ResourceExhausted', subject: 'the layer' });
    // A gigabyte may come of anything; beyond it the ratio counts, however large a layer may be.
    const grown = (produced: number, consumed: number) => () => checkGrowth({ produced, consumed }, { maxBytes: 2 ** 40 }, 'the layer');
    expect(grown(2 ** 30, 1)).not.toThrow();
    expect(grown(2 ** 31, 2 ** 22)).not.toThrow();
    expect(grown(2 ** 31, 2 ** 20)).toThrow(/1048576 bytes decompress to more than 1000 times as many/);
  });

  it('passes on the error of its source, and the reason of an abort', async () => {
    const lost = new AppError('Unavailable', { op: 'read', subject: 'registry', what: 'reset' });
    const open = async function* () {
      yield gzipSync(tar).subarray(0, 50);
      throw lost;
    };
    expect((await failure({ open })).code).toBe('Unavailable');
    const controller = new AbortController();
    const endless = async function* () {
      for (let i = 0; ; i += 1) {
        if (i === 10) controller.abort(new AppError('Canceled', { op: 'convert', subject: 'image', what: 'the user asked for it' }));
        yield rawTar([{ name: `file-${i}`, content: 'x'.repeat(100_000) }]).subarray(0, -1024);
      }
    };
    expect((await failure({ open: endless }, controller.signal)).code).toBe('Canceled');
  });
});
