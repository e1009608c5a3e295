/** From a reference to a pinned image: the form the snapshotter will serve, every size, and refusals of what cannot be held. */
import os from 'node:os';
import { expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import type { ServedPlan } from '../../../../../plugin/cache/create/ports.ts';
import { bytesOf, isAccelerated, resolveImage } from '../../../../../plugin/cache/create/resolve.ts';
import type { ImageAccess } from '../../../../../plugin/cache/image-store.ts';
import type { LayerSpec } from '../../../../../plugin/file/device-spec.ts';
import { parseReference } from '../../../../../plugin/registry/reference.ts';
import { chainIdOf } from '../../../../../plugin/snapshotter/chain-id.ts';
import type { ImageResolver } from '../../../../../plugin/snapshotter/service.ts';
import { buildImage, type Image, layerOfEntries } from '../../../../support/oci-image.ts';

const REFERENCE = 'registry.example/app:1';
const plain: ImageAccess = { credentials: [], plainHttp: [], insecure: [] };
const place = [{ host: 'registry.example', repository: 'app' }];
const fake = (n: number): Digest => `sha256:${String(n).padStart(64, '0')}`;

async function image(): Promise<Image> {
  return buildImage(await Promise.all([1, 2].map((n) => layerOfEntries([{ name: `file${n}`, content: `${n}` }]))), {});
}

function world(of: Image, plan: ServedPlan, options: { config?: Buffer; platforms?: readonly string[] } = {}) {
  const architecture = os.arch() === 'x64' ? 'amd64' : os.arch();
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.index.v1+json',
      manifests: (options.platforms ?? []).map((name) => ({
        mediaType: of.manifest.mediaType,
        digest: of.manifest.digest,
        size: of.manifest.bytes.length,
        platform: { os: 'linux', architecture: name === 'own' ? architecture : name },
      })),
    }),
  );
  const top = options.platforms === undefined ? of.manifest : { ...of.manifest, bytes: index, digest: sha256(index) };
  const asked: { isAccelerated: boolean }[] = [];
  const resolver = {
    parseReference,
    resolveManifest: async (_: string, digest: string | undefined) => {
      if (digest === undefined || digest === top.digest) {
        const mediaType = options.platforms === undefined ? of.manifest.mediaType : 'application/vnd.oci.image.index.v1+json';
        return { manifestBytes: top.bytes, digest: top.digest, mediaType };
      }
      return { manifestBytes: of.manifest.bytes, digest: of.manifest.digest, mediaType: of.manifest.mediaType };
    },
    fetchBlob: async () => options.config ?? of.config.bytes,
  } as unknown as ImageResolver;
  const images = {
    plan: async (planned: { isAccelerated: boolean }) => {
      asked.push(planned);
      return plan;
    },
    blobsOf: () => [],
  };
  return { parts: { resolver, images }, asked, top };
}

const signal = new AbortController().signal;
const full = (n: number): LayerSpec => ({ kind: 'full', blob: { digest: fake(n), sizeBytes: 1000, repositories: place } });
const index = (n: number): LayerSpec => ({
  kind: 'index',
  meta: { digest: fake(n), sizeBytes: 10, repositories: [], localPath: '/meta' },
  gzipIndex: { digest: fake(n + 50), sizeBytes: 5, repositories: [], localPath: '/gzip' },
  target: { digest: fake(n + 100), sizeBytes: 2000, repositories: place },
});

test.each([
  ['full', [full(1), full(2)], 2000],
  ['index-only', [index(1), index(2)], 4030],
  ['index-only', [full(1), index(2)], 3015],
] as const)('an image that is served whole is %s', async (form, specs, layerBytes) => {
  const of = await image();
  const { parts, top } = world(of, { layers: specs.map((spec) => ({ spec })), reason: null });
  const resolved = await resolveImage(REFERENCE, plain, parts, signal);
  expect(resolved).toMatchObject({ form, digest: top.digest, platformDigest: of.manifest.digest, configDigest: of.config.digest });
  expect(bytesOf(resolved.layers)).toBe(layerBytes);
  expect(resolved.sizeBytes).toBe(layerBytes + of.manifest.bytes.length + of.config.bytes.length);
  expect(resolved.layers.map(({ chainId }) => chainId)).toEqual([
    chainIdOf([of.layers[0]!.diffId]),
    chainIdOf(of.layers.map(({ diffId }) => diffId)),
  ]);
});

test('an image with a layer that must be unpacked is an ordinary one', async () => {
  const of = await image();
  const { parts, asked } = world(of, { layers: [{ spec: full(1) }], reason: 'layer 1: no' });
  const resolved = await resolveImage(REFERENCE, plain, parts, signal);
  expect(resolved.form).toBe('ordinary');
  expect(resolved.layers[1]).toMatchObject({ digest: of.layers[1]!.digest, sizeBytes: of.layers[1]!.sizeBytes });
  expect(asked).toMatchObject([{ isAccelerated: false }]);
});

test('an index is pinned by its own digest, and by that of the manifest for this machine', async () => {
  const of = await image();
  const { parts, top } = world(of, { layers: [], reason: null }, { platforms: ['s390x', 'own'] });
  expect(await resolveImage(REFERENCE, plain, parts, signal)).toMatchObject({ digest: top.digest, platformDigest: of.manifest.digest });
  const other = world(of, { layers: [], reason: null }, { platforms: ['s390x'] });
  await expect(resolveImage(REFERENCE, plain, other.parts, signal)).rejects.toMatchObject({ code: 'NotFound' });
});

test('images for other machines, and documents that do not fit together, are refused', async () => {
  const of = await image();
  const { parts } = world(of, { layers: [], reason: null });
  const elsewhere = { ...plain, platform: { os: 'linux', architecture: 's390x' } };
  await expect(resolveImage(REFERENCE, elsewhere, parts, signal)).rejects.toMatchObject({ code: 'InvalidArgument' });
  const one = buildImage(of.layers.slice(0, 1), {});
  const wrong = world(of, { layers: [], reason: null }, { config: one.config.bytes });
  await expect(resolveImage(REFERENCE, plain, wrong.parts, signal)).rejects.toMatchObject({ code: 'InvalidArgument' });
});

test('a layer with annotations of acceleration makes an image an accelerated one, malformed ones too', () => {
  const layer = (annotations: Record<string, string>) => ({ digest: fake(1), sizeBytes: 1, mediaType: '', annotations });
  const prefix = 'containerd.io/snapshot/overlaybd';
  expect(isAccelerated({ layers: [layer({})] })).toBe(false);
  expect(isAccelerated({ layers: [layer({}), layer({ [`${prefix}/blob-digest`]: fake(1), [`${prefix}/blob-size`]: '5' })] })).toBe(true);
  expect(isAccelerated({ layers: [layer({ [`${prefix}/blob-digest`]: 'nonsense' })] })).toBe(true);
});
