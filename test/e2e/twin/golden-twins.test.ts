/**
 * The reference's own index-only artifacts, pulled by their own tag and as twins of the image that a pod names, from a registry without
 * the referrers API: the tree is the one that the reference listed, and of the original layers only ranges are fetched.
 */

import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Cri } from '../../support/cri.ts';
import { FIXTURES_DIR } from '../../support/fixtures.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { type Image, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, readListing, treeDifferences } from '../../support/tree-compare.ts';
import { goldenErofsTwins, goldenTwins, pushReferrersTag, type Twins } from '../../support/twin-image.ts';
import { obdctl } from '../lazy/lazy-images.ts';

// One for each test: what one has fetched, the next would find in the store.
let host: LazyHost;
beforeEach(async () => {
  host = await LazyHost.start();
});
afterEach(async () => {
  await host?.[Symbol.asyncDispose]();
});

/** What the registry was asked for since it last forgot. */
async function asked(base: Image) {
  const entries = (await host.registry.requests()).filter((entry) => entry.userAgent.startsWith('overlaybd'));
  const originals = new Set<string>(base.layers.map((layer) => layer.digest));
  const ofOriginals = entries.filter((entry) => entry.kind === 'blob' && entry.method === 'GET' && originals.has(entry.digest));
  return {
    uris: entries.map((entry) => `${entry.method} ${entry.uri}`),
    statuses: [...new Set(ofOriginals.map((entry) => entry.status))],
    digests: new Set(ofOriginals.map((entry) => entry.digest)),
  };
}

async function expectListing(snapshotKey: string, listing: string): Promise<void> {
  await using view = await SnapshotView.mount(host.containerd, SNAPSHOTTER, snapshotKey);
  const expected = await readListing(join(FIXTURES_DIR, 'listing', listing));
  expect(treeDifferences(expected, await listTree(view.path), { ignorePaths: ['lost+found'] })).toEqual([]);
}

async function publish(name: string, { base, turbo }: Twins, how: 'referrers' | 'tag'): Promise<PushedImage> {
  const image = await pushImage(host.registry, name, 'v1', base);
  await pushImage(host.registry, name, how === 'tag' ? 'v1_accelerated' : 'unlisted', turbo);
  if (how === 'referrers') await pushReferrersTag(host.registry, name, base, [turbo]);
  await host.registry.forget();
  return image;
}

const sets = [
  ['ext4 over tar.gz', () => goldenTwins(3, { gzip: true }), 'native-l1+l2+l3.json'],
  ['ext4 over tar', () => goldenTwins(3, { gzip: false, config: { cmd: ['/bin/plain'] } }), 'native-l1+l2+l3.json'],
  ['EROFS over tar', goldenErofsTwins, 'erofs-e1+e2+e3.json'],
] as const;

test.each(sets)('%s: the artifact that is named itself', async (name, make, listing) => {
  const { base, turbo } = await make();
  const repository = `own/${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')}`;
  await pushImage(host.registry, repository, 'base', base);
  const image = await pushImage(host.registry, repository, 'turbo', turbo);
  await host.registry.forget();
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, false, false]);
  await expectListing(pulled.snapshotKey, listing);
  const { statuses, digests } = await asked(base);
  expect(statuses).toEqual([206]);
  expect(digests.size).toBe(3);
});

test.each(sets)('%s: the image is named, and served from its twin', async (name, make, listing) => {
  const twins = await make();
  const image = await publish(
    `twin/${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')}`,
    twins,
    name.includes('gz') ? 'referrers' : 'tag',
  );
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled).toMatchObject({ name: image.reference, digest: twins.base.manifest.digest, isUnpacked: true });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, false, false]);
  await expectListing(pulled.snapshotKey, listing);
  const { uris, statuses } = await asked(twins.base);
  expect(statuses).toEqual([206]);
  // The look-up: this registry has no referrers API (and logs no request for it), so the tag in its place is read.
  expect(uris).toContainEqual(expect.stringContaining(`/manifests/${twins.base.manifest.digest.replace(':', '-')}`));
  expect((await obdctl(host, 'events')).stdout).toMatch(/3 of 3 layers are lazy, served from sha256/);
});

test('CRI pulls the image that a pod names, and its layers are not downloaded', async () => {
  const twins = await goldenTwins(3, { gzip: true, config: { cmd: ['/bin/cri'] } });
  const image = await publish('twin/cri', twins, 'referrers');
  await using cri = await Cri.connect(host.containerd.socket);
  await cri.pullImage(image.reference);
  const blobs = (await host.registry.requests()).filter((entry) => entry.kind === 'blob' && entry.method === 'GET' && entry.status === 200);
  expect(blobs.filter((entry) => twins.base.layers.some((layer) => layer.digest === entry.digest))).toEqual([]);
  const [found] = (await cri.listImages()).filter((one) => one.repoTags.includes(image.reference));
  expect(found?.repoDigests).toEqual([`${image.reference.replace(/:v1$/, '')}@${twins.base.manifest.digest}`]);
  await cri.removeImage(image.reference);
});
