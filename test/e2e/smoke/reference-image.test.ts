/** The harness itself, with the product: an image of the reference implementation's blobs mounts and lists as the reference listed it. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { pushImage } from '../../support/oci-image.ts';
import { referenceImage, referenceListing } from '../../support/reference-image.ts';
import { manyLayersImage } from '../../support/small-images.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, readListing, treeDifferences } from '../../support/tree-compare.ts';

test.each([1, 2, 3] as const)(
  'the first %i golden layers, pulled lazily and viewed, are the tree that the reference listed',
  async (count) => {
    await using host = await LazyHost.start();
    const image = await pushImage(host.registry, 'golden', `l${count}`, await referenceImage(count));
    const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
    expect(pulled.layers.some((layer) => layer.isFetched)).toBe(false);
    await using view = await SnapshotView.mount(host.containerd, SNAPSHOTTER, pulled.snapshotKey);
    const differences = treeDifferences(await readListing(referenceListing(count)), await listTree(view.path), {
      ignorePaths: ['lost+found'],
    });
    expect(differences).toEqual([]);
  },
);

test('a view of 128 ordinary layers mounts, although their names do not fit one page of options', async () => {
  await using host = await LazyHost.start();
  const image = await pushImage(host.registry, 'many', 'v1', await manyLayersImage(127));
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: 'overlayfs' });
  await using view = await SnapshotView.mount(host.containerd, 'overlayfs', pulled.snapshotKey);
  expect(await readFile(`${view.path}/top`, 'utf8')).toBe('127\n');
});
