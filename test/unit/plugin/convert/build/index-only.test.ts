/** Index-only conversion of the fixture layers: the tree of full mode on every prefix, reproducible blobs, and what is refused. */
import { gunzipSync, gzipSync, zstdCompressSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { convertedImage } from '../../../../../plugin/convert/build/converted-image.ts';
import { MemoryFile, MissingList } from '../../../../../plugin/file/file.ts';
import { openGzipIndex } from '../../../../../plugin/file/open-layer.ts';
import { readText } from '../../../../../plugin/image/lsmt/bytes.ts';
import { ANNOTATION, DIFF_ID_ANNOTATION } from '../../../../../plugin/image/oci/annotations.ts';
import { parseImageConfig } from '../../../../../plugin/image/oci/config.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import { CHUNK_DIGESTS_NAME, parseChunkDigests } from '../../../../../plugin/image/turbo/chunk-digests.ts';
import { parseTurboLayer } from '../../../../../plugin/image/turbo/turbo-layer.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { type BuiltLayer, buildLayers, deviceReader, type StackLayer } from './converted-device.ts';
import { listTree } from './listed-tree.ts';

const NAMES = ['l1', 'l2', 'l3'];
const tars = (): Buffer[] => NAMES.map((name) => readFixture(`oci/${name}.tar`));
const gzips = (): Buffer[] => NAMES.map((name) => readFixture(`oci/${name}.tar.gz`));
const index = { mode: 'index-only' } as const;

const stackOf = (built: readonly BuiltLayer[], sources: readonly Buffer[]): StackLayer[] =>
  built.map((layer, i) => ({ built: layer, source: sources[i]! }));
const members = (tar: Buffer): Buffer => Buffer.concat([gzipSync(tar.subarray(0, 70_000)), gzipSync(tar.subarray(70_000))]);

describe('index-only conversion', () => {
  it('shows the tree of full mode on every prefix, over tar, tar.gz and stacks with layers that cannot be indexed', async () => {
    const full = await buildLayers(tars());
    const inputs = [
      tars(),
      gzips(),
      [tars()[0]!, gzips()[1]!, tars()[2]!],
      [gzips()[0]!, zstdCompressSync(tars()[1]!), gzips()[2]!],
      [members(tars()[0]!), gzips()[1]!, Buffer.concat([gzips()[2]!, Buffer.alloc(512)])],
    ];
    for (const sources of inputs) {
      const built = await buildLayers(sources, index);
      for (let count = 1; count <= NAMES.length; count += 1) {
        const found = listTree(deviceReader(stackOf(built, sources).slice(0, count)));
        expect(found).toEqual(listTree(deviceReader(full.slice(0, count).map((layer) => layer.blob))));
        expect(found.size).toBeGreaterThan(100);
      }
    }
  });

  it('says why a layer was converted in full', async () => {
    const sources = [members(tars()[0]!), zstdCompressSync(tars()[1]!), Buffer.concat([gzips()[2]!, Buffer.alloc(512)])];
    const built = await buildLayers(sources, index);
    expect(built.map((layer) => layer.kind)).toEqual(['full', 'full', 'full']);
    expect(built.map((layer) => layer.warnings[0])).toEqual([
      'it was converted in full: it is gzip of several members (as eStargz is), of which readers of an index see only the first',
      'it was converted in full: it is compressed with zstd, which cannot be read at random',
      'it was converted in full: bytes follow the end of its gzip stream',
    ]);
    // In full mode an image has these very blobs.
    const full = await buildLayers(tars());
    expect(built.map((layer) => layer.digest)).toEqual(full.map((layer) => layer.digest));
    await expect(buildLayers([gzips()[0]!, sources[1]!], { ...index, unindexable: 'refuse' })).rejects.toMatchObject({
      code: 'Unimplemented',
      message: 'index layer 1: it is compressed with zstd, which cannot be read at random',
    });
  });

  it('gives the same blobs however the input is cut and however many threads there are', async () => {
    const digests = (await buildLayers(gzips(), { ...index, threads: 1 })).map((layer) => layer.digest);
    for (const [threads, chunkBytes] of [
      [2, 1],
      [3, 1000],
      [4, 1 << 20],
    ] as const) {
      const small = chunkBytes === 1 ? gzips().slice(1) : gzips();
      const built = await buildLayers(chunkBytes === 1 ? [gzips()[0]!, ...small] : small, {
        ...index,
        threads,
        chunkBytes: Math.max(chunkBytes, 37),
      });
      expect(built.map((layer) => layer.digest)).toEqual(digests);
    }
  });

  it('goes on from a converted base with the bytes that a conversion in one go gives', async () => {
    const whole = await buildLayers(gzips(), index);
    for (const count of [1, 2]) {
      const base = {
        read: deviceReader(stackOf(whole, gzips()).slice(0, count)),
        diffIds: whole.slice(0, count).map((layer) => layer.sourceDiffId),
      };
      const upper = await buildLayers(gzips().slice(count), { ...index, base });
      expect(upper.map((layer) => layer.digest)).toEqual(whole.slice(count).map((layer) => layer.digest));
    }
  });

  it('writes blobs as the reference does: entries, headers, annotations, diffIDs', async () => {
    const built = await buildLayers(gzips(), index);
    for (const [i, layer] of built.entries()) {
      const tar = gunzipSync(layer.blob);
      const names: string[] = [];
      for (let at = 0; tar[at] !== 0; at += 512 + Math.ceil(Number.parseInt(tar.toString('latin1', at + 124, at + 135), 8) / 512) * 512) {
        names.push(readText(tar, at, 100));
        expect(tar.toString('latin1', at + 100, at + 148)).toMatch(/^0000644\0(?:0000000\0){2}[0-7]{11}\0(?:00000000000\0)$/);
      }
      expect(names).toEqual(['erofs.fs.meta', '.turbo.ociv1', 'gzip.meta', CHUNK_DIGESTS_NAME]);
      // gzip: no name, no time.
      expect(layer.blob.subarray(0, 8).toString('hex')).toBe('1f8b080000000000');
      expect(layer.annotations).toEqual({
        [ANNOTATION.blobDigest]: sha256(layer.blob),
        [ANNOTATION.blobSize]: String(layer.blob.length),
        [ANNOTATION.version]: '0.1.0-turbo.ociv1',
        [ANNOTATION.turboTargetDigest]: sha256(gzips()[i]!),
        [ANNOTATION.turboTargetMediaType]: MEDIA_TYPE.ociLayerGzip,
        [DIFF_ID_ANNOTATION]: sha256(tar),
      });
      expect(layer.sourceDiffId).toBe(sha256(tars()[i]!));
    }
  });

  it('carries the SHA-256 of every chunk of every span', async () => {
    for (const sources of [gzips(), tars()]) {
      for (const [i, layer] of (await buildLayers(sources, index)).entries()) {
        const plain = tars()[i]!;
        const { gzipIndex, chunkDigests } = parseTurboLayer(gunzipSync(layer.blob), 'test');
        const tables = gzipIndex && openGzipIndex(new MemoryFile(gzipIndex), sources[i]!.length, 'test', new MissingList());
        const spanStarts = tables === undefined ? [0] : [...tables.entries.plainOffset];
        const list = parseChunkDigests(chunkDigests!, { spanStarts, plainBytes: plain.length }, 'test');
        spanStarts.forEach((start, span) => {
          const end = spanStarts[span + 1] ?? plain.length;
          for (let at = start, n = list.firstOfSpan[span]!; at < end; at += list.chunkBytes, n += 1) {
            const expected = sha256(plain.subarray(at, Math.min(end, at + list.chunkBytes)));
            expect(`sha256:${Buffer.from(list.digests.subarray(n * 32, n * 32 + 32)).toString('hex')}`).toBe(expected);
          }
        });
      }
    }
  });

  it('makes an index-only artifact of a stack in which one layer is, and a full one of a stack in which none is', async () => {
    const config = parseImageConfig(
      Buffer.from(
        JSON.stringify({
          architecture: 'amd64',
          os: 'linux',
          config: {},
          rootfs: { type: 'layers', diff_ids: tars().map((tar) => sha256(tar)) },
        }),
      ),
      'test',
    );
    const sources = [gzips()[0]!, zstdCompressSync(tars()[1]!), gzips()[2]!];
    const layers = sources.map((bytes) => ({ mediaType: MEDIA_TYPE.ociLayerGzip, digest: sha256(bytes), sizeBytes: bytes.length }));
    const mixed = await buildLayers(sources, index);
    const image = convertedImage({ manifest: { layers }, config }, mixed);
    expect(image.manifest.descriptor.artifactType).toBe(ARTIFACT_TYPE.turbo);
    expect(image.layers.map((layer) => layer.mediaType)).toEqual([
      MEDIA_TYPE.ociLayerGzip,
      MEDIA_TYPE.ociLayerTar,
      MEDIA_TYPE.ociLayerGzip,
    ]);
    expect(parseImageConfig(image.config.bytes, 'test').diffIds).toEqual(
      mixed.map((layer) => (layer.kind === 'index' ? sha256(gunzipSync(layer.blob)) : layer.digest)),
    );
    const full = convertedImage(
      { manifest: { layers: layers.slice(1, 2) }, config: { ...config, diffIds: config.diffIds.slice(1, 2) } },
      mixed.slice(1, 2),
    );
    expect(full.manifest.descriptor.artifactType).toBe(ARTIFACT_TYPE.native);
  });
});
