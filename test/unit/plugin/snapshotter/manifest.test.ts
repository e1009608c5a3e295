/** Manifests as registries send them, and as they should not. */
import os from 'node:os';
import { expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { fetchImageManifest } from '../../../../plugin/snapshotter/manifest.ts';
import { FakeImageResolver, overlaybdLayer } from '../../../support/fake-image-resolver.ts';

const SIGNAL = new AbortController().signal;
const INDEX = 'application/vnd.oci.image.index.v1+json';
const MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const ARCH = os.arch() === 'x64' ? 'amd64' : os.arch();

test('a tag that names an index is followed to the manifest of this platform', async () => {
  const resolver = new FakeImageResolver();
  const manifest = resolver.add('r/a:linux', [overlaybdLayer('1'), overlaybdLayer('2')]);
  const entries = [
    { digest: sha256('other'), platform: { os: 'linux', architecture: 's390x' } },
    { digest: manifest, platform: { os: 'linux', architecture: ARCH } },
  ];
  resolver.addBytes('r/a:1', JSON.stringify({ manifests: entries }), INDEX);
  const found = await fetchImageManifest(resolver, 'r/a:1', undefined, SIGNAL);
  expect(found.digest).toBe(manifest);
  expect(found.layers.map((layer) => layer.digest)).toEqual([sha256('1'), sha256('2')]);
});

test('bytes that do not match the digest are refused', async () => {
  const resolver = new FakeImageResolver();
  resolver.add('r/a:1', []);
  const lying = {
    ...resolver,
    parseReference: resolver.parseReference,
    resolveManifest: async () => ({ manifestBytes: new TextEncoder().encode('{}'), digest: sha256('x'), mediaType: MANIFEST }),
  };
  await expect(fetchImageManifest(lying, 'r/a:1', sha256('x'), SIGNAL)).rejects.toMatchObject({ code: 'DataLoss' });
});

test.each([
  ['not JSON', 'x', MANIFEST, 'InvalidArgument'],
  ['no layers', '{}', MANIFEST, 'InvalidArgument'],
  ['a negative size', JSON.stringify({ layers: [{ digest: sha256('a'), size: -1 }] }), MANIFEST, 'InvalidArgument'],
  ['a path for a digest', JSON.stringify({ layers: [{ digest: '../x', size: 1 }] }), MANIFEST, 'InvalidArgument'],
  ['too many layers', JSON.stringify({ layers: Array(256).fill({ digest: sha256('a'), size: 1 }) }), MANIFEST, 'InvalidArgument'],
  ['an index without this platform', JSON.stringify({ manifests: [] }), INDEX, 'NotFound'],
])('%s is a clear error', async (_, text, mediaType, code) => {
  const resolver = new FakeImageResolver();
  resolver.addBytes('r/a:1', text, mediaType);
  await expect(fetchImageManifest(resolver, 'r/a:1', undefined, SIGNAL)).rejects.toMatchObject({ code });
});
