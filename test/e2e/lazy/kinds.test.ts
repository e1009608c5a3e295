/** Lazy images, ordinary images and stacks of both, through one snapshotter, pulled by CRI and by a client that passes snapshot labels. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Cri, readCriLog } from '../../support/cri.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { referenceImage, referenceListing } from '../../support/reference-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, readListing, treeDifferences } from '../../support/tree-compare.ts';
import { lazyBusybox, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let lazy: PushedImage;
let ordinary: PushedImage;
let both: PushedImage;

beforeAll(async () => {
  scratch = await Scratch.create('kinds');
  host = await LazyHost.start();
  const config = { cmd: ['/bin/cat', '/etc/kind'] };
  const kind = (name: string) => layerOfEntries([{ name: 'etc/kind', content: `${name}\n` }], { gzip: true });
  const lazyKind = await layerOfEntries([{ name: 'etc/' }, { name: 'etc/kind', content: 'lazy\n' }]);
  const converted = await lazyBusybox(scratch, [lazyKind], config);
  lazy = await pushImage(host.registry, 'kinds/lazy', '1', converted);
  ordinary = await pushImage(host.registry, 'kinds/ordinary', '1', await busyboxImage({ config, above: [await kind('ordinary')] }));
  // Two ordinary layers above the lazy ones: one changes a file, one takes a file away and hides a directory.
  const takesAway = await layerOfEntries([
    { name: 'etc/.wh.group', content: '' },
    { name: 'var/' },
    { name: 'var/.wh..wh..opq', content: '' },
    { name: 'var/new', content: 'x' },
  ]);
  both = await pushImage(host.registry, 'kinds/both', '1', buildImage([...converted.layers, await kind('both'), takesAway], config));
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('a client that passes labels pulls nothing of lazy layers, and each kind runs', async () => {
  const pull = async (image: PushedImage) =>
    (await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER })).layers.map((l) => l.isFetched);
  expect(await pull(lazy)).toEqual([false, false]);
  expect(await pull(ordinary)).toEqual([true, true]);
  expect(await pull(both)).toEqual([false, false, true, true]);
  expect(await runOnce(host, lazy.reference, 'lazy')).toBe('lazy\n');
  expect(await runOnce(host, ordinary.reference, 'ordinary')).toBe('ordinary\n');
  expect(await runOnce(host, both.reference, 'both')).toBe('both\n');
  expect(await runOnce(host, both.reference, 'both-2', '/bin/ls', '/etc', '/var')).toBe('/etc:\nkind\npasswd\n\n/var:\nnew\n');
});

test('CRI pulls each kind and runs it in pods; image sizes and usage are answered', async () => {
  await using cri = await Cri.connect(host.containerd.socket);
  for (const [name, image] of Object.entries({ lazy, ordinary, both })) {
    await cri.pullImage(image.reference);
    const pod = await cri.runPod(name);
    const container = await cri.startContainer(pod, image.reference);
    expect(await cri.waitExit(container.id)).toMatchObject({ exitCode: 0 });
    expect((await readCriLog(container.logPath)).map((line) => line.text)).toEqual([name]);
  }
  const images = await cri.listImages();
  expect(images.flatMap((image) => image.repoTags)).toEqual(expect.arrayContaining([lazy.reference, ordinary.reference, both.reference]));
});

test('an image of the reference implementation lists as the reference listed it, also when two namespaces pulled it', async () => {
  const image = await pushImage(host.registry, 'kinds/golden', '1', await referenceImage(3));
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER, namespace: 'k8s.io' });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, false, false]);
  await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await using view = await SnapshotView.mount(host.containerd, SNAPSHOTTER, pulled.snapshotKey);
  const differences = treeDifferences(await readListing(referenceListing(3)), await listTree(view.path), { ignorePaths: ['lost+found'] });
  expect(differences).toEqual([]);
});
