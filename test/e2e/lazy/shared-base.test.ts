/**
 * Images that share base layers while their artifacts differ: by converter options, by what lies above, by the order of pulls, and with the
 * base unpacked before as an ordinary layer. Every container sees exactly its own tree: the one that containerd's overlayfs shows of the
 * unconverted image.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ALGORITHM } from '../../../plugin/image/zfile/codec.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, type Image, type Layer, layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxLayer } from '../../support/small-images.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, type TreeEntry, treeDifferences } from '../../support/tree-compare.ts';
import { convertedImage, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let base: Layer;

beforeAll(async () => {
  scratch = await Scratch.create('shared');
  host = await LazyHost.start();
  base = await busyboxLayer();
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

const config = { cmd: ['/bin/cat', '/etc/who'] };

/** A layer that names its image, changes a file of the base and takes one away. */
const own = (who: string): Promise<Layer> =>
  layerOfEntries([
    { name: 'etc/' },
    { name: 'etc/who', content: `${who}\n` },
    { name: 'etc/passwd', content: `${who}:x:0:0::/:/bin/sh\n` },
    { name: `only-${who}`, content: who.repeat(1000) },
    { name: 'etc/.wh.group', content: '' },
  ]);

async function treeOf(snapshotter: string, image: PushedImage): Promise<TreeEntry[]> {
  const { snapshotKey } = await lazyPull(host.containerd, image.reference, { snapshotter });
  await using view = await SnapshotView.mount(host.containerd, snapshotter, snapshotKey);
  return await listTree(view.path);
}

/** The tree that the unconverted layers give. */
async function expectedTree(name: string, layers: readonly Layer[]): Promise<TreeEntry[]> {
  return treeOf('overlayfs', await pushImage(host.registry, `plain/${name}`, '1', buildImage(layers, config)));
}

// A root that no tar names has the times of its making.
const ignorePaths = ['.'];

async function expectOwnTree(image: PushedImage, layers: readonly Layer[], who: string): Promise<void> {
  expect(treeDifferences(await expectedTree(who, layers), await treeOf(SNAPSHOTTER, image), { ignorePaths })).toEqual([]);
  expect(await runOnce(host, image.reference, `run-${who}-${image.repository.replaceAll('/', '-')}`)).toBe(`${who}\n`);
}

test('two lazy images on one base artifact, and a third whose base was made with other options', async () => {
  const [a, b, c] = [await own('a'), await own('b'), await own('c')];
  const push = async (name: string, image: Image) => pushImage(host.registry, `shared/${name}`, '1', image);
  const one = await push('a', await convertedImage(scratch, [base, a], config));
  const two = await push('b', await convertedImage(scratch, [base, b], config));
  const lz4 = { compression: { algorithm: ALGORITHM.lz4, blockSizeBytes: 4096 } } as const;
  const three = await push('c', await convertedImage(scratch, [base, c], config, lz4));
  expect(one.layers[0]!.digest).toBe(two.layers[0]!.digest);
  expect(one.layers[0]!.digest).not.toBe(three.layers[0]!.digest);
  for (const [image, layer, who] of [
    [one, a, 'a'],
    [three, c, 'c'],
    [two, b, 'b'],
    [one, a, 'a'],
  ] as const) {
    await expectOwnTree(image, [base, layer], who);
  }
});

test('the unconverted base pulled first, then the lazy image, and the other way round', async () => {
  const d = await own('d');
  const plainFirst = await pushImage(host.registry, 'order/plain', '1', buildImage([base, d], config));
  const lazySecond = await pushImage(host.registry, 'order/lazy', '1', await convertedImage(scratch, [base, d], config));
  await expectOwnTree(plainFirst, [base, d], 'd');
  await expectOwnTree(lazySecond, [base, d], 'd');
  await expectOwnTree(plainFirst, [base, d], 'd');
});

test('a base artifact that was unpacked as an ordinary layer stands below a lazy image and is not seen', async () => {
  const [bottomLayer, e] = [await layerOfEntries([{ name: 'bottom', content: 'of e' }]), await own('e')];
  const image = await convertedImage(scratch, [bottomLayer, base, e], config);
  // A pull without labels unpacks the artifact itself: files that no container shall see.
  const bottom = await pushImage(host.registry, 'unpacked/base', '1', buildImage(image.layers.slice(0, 1), config));
  const unpacked = await lazyPull(host.containerd, bottom.reference, { snapshotter: SNAPSHOTTER, passLabels: false });
  expect(unpacked.layers.map((layer) => layer.isFetched)).toEqual([true]);
  await expectOwnTree(await pushImage(host.registry, 'unpacked/lazy', '1', image), [bottomLayer, base, e], 'e');
});

test('an ordinary image above a lazy one of another artifact: same files below, each with its own top', async () => {
  const [f, g] = [await own('f'), await own('g')];
  const converted = await convertedImage(scratch, [base, f], config);
  const lazy = await pushImage(host.registry, 'above/lazy', '1', converted);
  const mixed = await pushImage(host.registry, 'above/mixed', '1', buildImage([...converted.layers, g], config));
  await expectOwnTree(mixed, [base, f, g], 'g');
  await expectOwnTree(lazy, [base, f], 'f');
});
