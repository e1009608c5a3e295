/** Images that share base layers and have twins of different kinds and converters, or none: each container sees its own tree. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ARTIFACT_TYPE } from '../../../plugin/image/oci/media-types.ts';
import { ALGORITHM } from '../../../plugin/image/zfile/codec.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, type Image, layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, type TreeEntry, treeDifferences } from '../../support/tree-compare.ts';
import { asArtifact, goldenErofsTwins } from '../../support/twin-image.ts';
import { convertedImage, indexedImage } from '../lazy/lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
beforeEach(async () => {
  scratch = await Scratch.create('twin-base');
  host = await LazyHost.start();
});
afterEach(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

async function treeOf(snapshotter: string, image: PushedImage): Promise<TreeEntry[]> {
  const { snapshotKey } = await lazyPull(host.containerd, image.reference, { snapshotter });
  await using view = await SnapshotView.mount(host.containerd, snapshotter, snapshotKey);
  return await listTree(view.path);
}

const ignoreFields = ['mtime', 'mtime_ns', 'nlink', 'hardlink_group'] as const;

test.each([
  ['lazy ones first', [0, 1, 2, 3, 4]],
  ['the ordinary one first', [4, 3, 2, 1, 0]],
  ['mixed', [1, 4, 0, 3, 2]],
])('%s', async (_, order) => {
  // The golden layers; on them nothing, a full twin's layer, another converter's, and a layer without a twin.
  const golden = await goldenErofsTwins();
  const own = (who: string) =>
    layerOfEntries([
      { name: `only-${who}`, content: who.repeat(5000) },
      { name: 'who', content: who },
    ]);
  const images: PushedImage[] = [];
  const add = async (name: string, image: Image, twin?: Image): Promise<void> => {
    images.push(await pushImage(host.registry, name, '1', image));
    if (twin !== undefined) await pushImage(host.registry, name, '1_accelerated', twin);
  };
  await add('base/index', golden.base, golden.turbo);
  for (const [who, algorithm] of Object.entries({ a: ALGORITHM.zstd, b: ALGORITHM.lz4 })) {
    const layers = [...golden.base.layers, await own(who)];
    const image = buildImage(layers, { cmd: [`/${who}`] });
    const converted = await convertedImage(scratch, layers, {}, { compression: { algorithm, blockSizeBytes: 4096 } });
    await add(`base/${who}`, image, asArtifact(converted, ARTIFACT_TYPE.native, image));
  }
  // The reference's index of the golden layers, and ours of the same ones.
  const layers = [...golden.base.layers, await own('index')];
  const image = buildImage(layers, { cmd: ['/index'] });
  await add('base/own', image, asArtifact(await indexedImage(scratch, layers, {}), ARTIFACT_TYPE.turbo, image));
  await add('base/none', buildImage([...golden.base.layers, await own('none')], { cmd: ['/none'] }));
  const expected: TreeEntry[][] = [];
  for (const image of images) expected.push(await treeOf('overlayfs', image));
  for (const i of [...order, ...order]) {
    // Directories that no tar names have the time of their making or none, and converters differ in who shares an inode.
    const actual = await treeOf(SNAPSHOTTER, images[i]!);
    expect(treeDifferences(expected[i]!, actual, { ignorePaths: ['.'], ignoreFields }), images[i]!.reference).toEqual([]);
  }
});
