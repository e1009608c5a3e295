/** Publication in index-only mode against a registry in memory: documents, what is used again and what must not be. */
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterEach, expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import { publishAccelerated } from '../../../../../plugin/convert/publish/publish.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import type { FaultRegistryOptions } from '../../../../support/fault-registry.ts';
import { buildImage, type Layer } from '../../../../support/oci-image.ts';
import { failureOf, testClient } from '../../../../support/registry-client.ts';
import { tarOf } from '../../../../support/tar.ts';
import { manifestOf, type PublishBench, REPOSITORY, reads, startPublishBench, store } from './publish-bench.ts';

const benches: PublishBench[] = [];
afterEach(async () => {
  for (const bench of benches.splice(0)) await bench[Symbol.asyncDispose]();
});

async function start(options: FaultRegistryOptions = {}) {
  const bench = await startPublishBench(options, { mode: 'index-only' });
  benches.push(bench);
  const { registry, lines, counter } = bench;
  return { registry, lines, counter, context: (request: object = {}) => bench.context(undefined, request) };
}

async function layer(
  name: string,
  pack: (tar: Buffer) => Buffer = (tar) => gzipSync(tar),
  mediaType: string = MEDIA_TYPE.dockerLayerGzip,
): Promise<Layer> {
  const tar = await tarOf([
    { name: `${name}/` },
    { name: `${name}/file`, content: Buffer.alloc(50_000, name) },
    { name: 'top', content: name },
  ]);
  const blob = pack(tar);
  return { mediaType, digest: sha256(blob), sizeBytes: blob.length, diffId: sha256(tar), blob };
}

test('an image gets its index beside it: documents as the reference writes them; again it sends and reads nothing', async () => {
  const { registry, context, lines } = await start();
  const image = buildImage([await layer('a'), await layer('b')]);
  const source = store(registry, image, '1');
  const result = await publishAccelerated(context(), { tag: '1' });
  expect(result).toMatchObject({ sourceDigest: source, targetTag: '1_accelerated' });
  const manifest = manifestOf(registry, result.targetDigest);
  expect(manifest).toMatchObject({ artifactType: ARTIFACT_TYPE.turbo, subject: { digest: source } });
  expect(manifest.layers).toMatchObject(
    image.layers.map((original) => ({
      mediaType: MEDIA_TYPE.ociLayerGzip,
      annotations: {
        'containerd.io/snapshot/overlaybd/version': '0.1.0-turbo.ociv1',
        'containerd.io/snapshot/overlaybd/turbo-oci/target-digest': original.digest,
        'containerd.io/snapshot/overlaybd/turbo-oci/target-media-type': MEDIA_TYPE.dockerLayerGzip,
      },
    })),
  );
  const config = JSON.parse(registry.api.blobs.get(manifest.config.digest)!.toString());
  expect(config.rootfs.diff_ids).toEqual(
    manifest.layers.map((l: { annotations: Record<string, string> }) => l.annotations['containerd.io/uncompressed']),
  );
  registry.log.length = 0;
  expect(await publishAccelerated(context(), { tag: '1' })).toEqual({ ...result, isUnchanged: true });
  expect(reads(registry, image)).toBe(0);
  expect(lines).toContain('2 of 2 layers are converted already');
});

test('a new layer on indexed ones is the only one read, and the result is that of a whole conversion', async () => {
  const { registry, context, lines } = await start();
  const zstd = await layer('z', (tar) => zstdCompressSync(tar), MEDIA_TYPE.ociLayerZstd);
  const [a, b] = [await layer('a'), await layer('b')];
  for (const [tag, layers] of [
    ['indexed', [a, b]],
    ['mixed', [a, zstd, b]],
  ] as const) {
    store(registry, buildImage(layers.slice(0, -1)), `${tag}-base`);
    await publishAccelerated(context(), { tag: `${tag}-base` });
    const image = buildImage([...layers]);
    store(registry, image, tag);
    registry.log.length = 0;
    const onBase = await publishAccelerated(context(), { tag });
    expect(lines.join('\n')).not.toMatch(/anew|cannot be built upon/);
    expect(reads(registry, image)).toBe(1);
    const fresh = await start();
    store(fresh.registry, image, tag);
    const whole = await publishAccelerated(fresh.context(), { tag });
    expect(onBase.targetDigest).toBe(whole.targetDigest);
  }
});

test('an index of one compressed form is not taken for another form of the same tar', async () => {
  const { registry, context } = await start();
  const [fast, small] = [await layer('a', (tar) => gzipSync(tar, { level: 1 })), await layer('a', (tar) => gzipSync(tar, { level: 9 }))];
  expect(fast.diffId).toBe(small.diffId);
  expect(fast.digest).not.toBe(small.digest);
  for (const [tag, one] of [
    ['fast', fast],
    ['small', small],
  ] as const) {
    store(registry, buildImage([one]), tag);
    const { targetDigest } = await publishAccelerated(context(), { tag });
    const [made] = manifestOf(registry, targetDigest).layers;
    expect(made.annotations['containerd.io/snapshot/overlaybd/turbo-oci/target-digest']).toBe(one.digest);
  }
});

test('a layer that cannot be indexed is converted in full in its place, or refuses the image, as the request says', async () => {
  const { registry, context, lines, counter } = await start();
  const zstd = await layer('z', (tar) => zstdCompressSync(tar), MEDIA_TYPE.ociLayerZstd);
  const image = buildImage([await layer('a'), zstd]);
  store(registry, image, '1');
  const { targetDigest } = await publishAccelerated(context(), { tag: '1' });
  expect(counter()).toMatchObject({ sourceBytes: image.layersSizeBytes, readBytes: image.layersSizeBytes });
  const manifest = manifestOf(registry, targetDigest);
  expect(manifest.artifactType).toBe(ARTIFACT_TYPE.turbo);
  expect(
    manifest.layers.map((l: { annotations: Record<string, string> }) => l.annotations['containerd.io/snapshot/overlaybd/version']),
  ).toEqual(['0.1.0-turbo.ociv1', '0.1.0']);
  expect(lines.join('\n')).toMatch(/layer 2: it was converted in full: it is compressed with zstd/);
  store(registry, buildImage([zstd]), '2');
  const refused = await failureOf(publishAccelerated(context({ unindexable: 'refuse' }), { tag: '2' }));
  // What was made for the other image is no answer here.
  expect(refused).toMatchObject({ code: 'Unimplemented', subject: zstd.digest });
  expect(registry.api.tags.has(`${REPOSITORY}:2_accelerated`)).toBe(false);
});

test.each([
  ['with', true],
  ['without', false],
])(
  'an image of two platforms, in a registry %s the referrers API: each platform and the whole refer to their original',
  async (_, referrersApi) => {
    const { registry, context } = await start({ referrersApi });
    const images = [buildImage([await layer('amd')]), buildImage([await layer('arm')])];
    const manifests = images.map((image, i) => {
      store(registry, image, `platform-${i}`);
      const { mediaType, digest, bytes } = image.manifest;
      return { mediaType, digest, size: bytes.length, platform: { os: 'linux', architecture: ['amd64', 'arm64'][i] } };
    });
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPE.ociIndex, manifests }));
    const source = registry.api.storeManifest(REPOSITORY, '1', bytes, MEDIA_TYPE.ociIndex);
    const result = await publishAccelerated(context(), { tag: '1' });
    expect(result.targetTag).toBe('1_accelerated');
    const index = manifestOf(registry, result.targetDigest);
    expect(index).toMatchObject({ mediaType: MEDIA_TYPE.ociIndex, artifactType: ARTIFACT_TYPE.turbo, subject: { digest: source } });
    expect(index.manifests.map((entry: { platform: object }) => entry.platform)).toEqual(manifests.map(({ platform }) => platform));
    await using client = testClient();
    const twins: Digest[] = [result.targetDigest, ...index.manifests.map((entry: { digest: Digest }) => entry.digest)];
    for (const [i, subject] of [source, ...images.map((image) => image.manifest.digest)].entries()) {
      const listed = await client.listReferrers({ host: registry.host, repository: REPOSITORY }, subject, {
        artifactType: ARTIFACT_TYPE.turbo,
        signal: new AbortController().signal,
      });
      expect(listed.map(({ digest }) => digest)).toEqual([twins[i]]);
    }
    expect(await publishAccelerated(context(), { tag: '1' })).toEqual({ ...result, isUnchanged: true });
  },
);
