/**
 * Twins of our own builder: an image of tar.gz, tar and several-member gzip layers starts from its own layers, with its tree; bytes that
 * changed under the same digest are errors, never data; and when an original is deleted, the rest of the image is saved.
 */
import { createHash } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../plugin/base/digest.ts';
import { convertLayers } from '../../../plugin/convert/build/convert-layers.ts';
import { DIFF_ID_ANNOTATION } from '../../../plugin/image/oci/annotations.ts';
import { ARTIFACT_TYPE } from '../../../plugin/image/oci/media-types.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import {
  buildImage,
  type Image,
  type ImageConfig,
  type Layer,
  layerOfEntries,
  layerOfTar,
  MEDIA_TYPE,
  pushImage,
} from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxLayer } from '../../support/small-images.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { tarOf } from '../../support/tar.ts';
import { listTree, treeDifferences } from '../../support/tree-compare.ts';
import { asArtifact } from '../../support/twin-image.ts';
import { filledBytes, obdctl, runOnce } from '../lazy/lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
beforeEach(async () => {
  scratch = await Scratch.create('own-index');
  host = await LazyHost.start({ sidecar: { config: { snapshotter: { watch_interval: '1s' } } } });
});
afterEach(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

/** The index-only artifact of an image whose layers are in memory. */
async function indexOnly(base: Image, config: ImageConfig): Promise<Image> {
  const sources = base.layers.map(({ digest, diffId, mediaType, blob }) => ({
    name: digest,
    digest,
    diffId,
    mediaType,
    async *open() {
      yield blob as Uint8Array;
    },
  }));
  const layers: Layer[] = [];
  const options = { mode: 'index-only' as const, stagingDirectory: await scratch.dir('staging'), signal: AbortSignal.timeout(120_000) };
  for await (const { digest, sizeBytes, annotations, path, kind } of convertLayers(sources, options)) {
    const diffId = (annotations[DIFF_ID_ANNOTATION] ?? digest) as Digest;
    const mediaType = kind === 'index' ? MEDIA_TYPE.tarGzip : MEDIA_TYPE.tar;
    layers.push({ mediaType, digest, sizeBytes, diffId, annotations, blob: await readFile(path) });
  }
  return asArtifact(buildImage(layers, config), ARTIFACT_TYPE.turbo, base);
}

/** A layer whose gzip file has two members, as parallel packers write them. */
async function twoMembers(content: string): Promise<Layer> {
  const tar = await tarOf([{ name: 'members', content }]);
  const blob = Buffer.concat([gzipSync(tar.subarray(0, 512)), gzipSync(tar.subarray(512))]);
  return { mediaType: MEDIA_TYPE.tarGzip, digest: sha256(blob), sizeBytes: blob.length, diffId: sha256(tar), blob };
}

const config = { cmd: ['/bin/cat', '/etc/who'] };

test('layers of every kind: the container runs, the tree is that of overlayfs, and no layer is downloaded', async () => {
  const layers = [
    await busyboxLayer({ gzip: true }),
    await layerOfEntries([
      { name: 'data/' },
      { name: 'data/large', content: filledBytes(3_000_000, 1) },
      { name: 'data/odd', content: filledBytes(70_001, 2) },
    ]),
    await layerOfEntries(
      [
        { name: 'data/more', content: filledBytes(2_500_000, 3) },
        { name: 'etc/.wh.group', content: '' },
      ],
      { gzip: true },
    ),
    await twoMembers('of two members\n'.repeat(1000)),
    layerOfTar(await tarOf([{ name: 'etc/who', content: 'index\n' }]), { gzip: true }),
  ];
  const base = buildImage(layers, config);
  const image = await pushImage(host.registry, 'own/app', 'v1', base);
  await pushImage(host.registry, 'own/app', 'v1_accelerated', await indexOnly(base, config));
  await host.registry.forget();
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual(layers.map(() => false));
  expect(await runOnce(host, image.reference, 'own')).toBe('index\n');
  const originals = new Set<string>(layers.map((layer) => layer.digest));
  const ofOriginals = (await host.registry.requests()).filter((entry) => entry.method === 'GET' && originals.has(entry.digest));
  expect([...new Set(ofOriginals.map((entry) => entry.status))]).toEqual([206]);
  const plain = await lazyPull(host.containerd, image.reference, { snapshotter: 'overlayfs' });
  await using expected = await SnapshotView.mount(host.containerd, 'overlayfs', plain.snapshotKey);
  await using actual = await SnapshotView.mount(host.containerd, SNAPSHOTTER, pulled.snapshotKey);
  // Directories that no tar names have the time of their making.
  const differences = treeDifferences(await listTree(expected.path), await listTree(actual.path), {
    ignorePaths: ['.'],
    ignoreFields: ['mtime', 'mtime_ns'],
  });
  expect(differences).toEqual([]);
});

test.each([
  ['tar', false],
  ['tar.gz', true],
])('bytes of a %s that changed in the registry under the same digest are an I/O error with an event', async (_, gzip) => {
  const layers = [
    await busyboxLayer({ gzip: true }),
    await layerOfEntries([{ name: 'large', content: filledBytes(4_000_000, 4) }], { gzip }),
  ];
  const base = buildImage(layers, config);
  const image = await pushImage(host.registry, 'own/changed', 'v1', base);
  await pushImage(host.registry, 'own/changed', 'v1_accelerated', await indexOnly(base, config));
  const [, layer] = layers;
  const changed = Buffer.from(layer!.blob as Uint8Array);
  // In the middle: stored blocks of what does not compress, so that gzip itself sees nothing wrong.
  changed[changed.length >> 1]! ^= 0xff;
  writeFileSync(host.registry.blobPath(layer!.digest), changed);
  expect((await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER })).layers[1]!.isFetched).toBe(false);
  await expect(runOnce(host, image.reference, 'changed', '/bin/md5sum', '/large')).rejects.toThrow(/I\/O error|Input\/output error/);
  await expect.poll(async () => (await obdctl(host, 'events')).stdout, { timeout: 60_000 }).toMatch(/read-failed/);
});

test('an original that the registry loses under a container: the event names it, and the other layers are fetched whole at once', async () => {
  const [lost, other] = await Promise.all(
    [5, 6].map((seed) => layerOfEntries([{ name: `large-${seed}`, content: filledBytes(3_000_000, seed) }], { gzip: true })),
  );
  const base = buildImage([await busyboxLayer({ gzip: true }), lost!, other!], config);
  const image = await pushImage(host.registry, 'own/lost', 'v1', base);
  await pushImage(host.registry, 'own/lost', 'v1_accelerated', await indexOnly(base, config));
  await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await host.containerd.ctr(['run', '--detach', '--snapshotter', SNAPSHOTTER, image.reference, 'sufferer', '/bin/sleep', '1000']);
  expect(await host.registry.blobBytesSent(other!.digest)).toBeLessThan(other!.sizeBytes);
  rmSync(host.registry.blobPath(lost!.digest));
  const events = async (): Promise<string> => (await obdctl(host, 'events')).stdout;
  await expect.poll(events, { timeout: 60_000 }).toMatch(new RegExp(`blob-lost\\s+${lost!.digest.slice(0, 19)}.*sufferer`));
  await expect.poll(() => host.registry.blobBytesSent(other!.digest), { timeout: 60_000 }).toBeGreaterThanOrEqual(other!.sizeBytes);
  // What was saved is read without the registry.
  await host.registry.stop();
  const exec = ['tasks', 'exec', '--exec-id', 'read', 'sufferer', '/bin/md5sum', '/large-6'];
  expect((await host.containerd.ctr(exec)).stdout).toContain(createHash('md5').update(filledBytes(3_000_000, 6)).digest('hex'));
  await host.containerd.ctr(['tasks', 'kill', '--signal', 'SIGKILL', 'sufferer']);
});
