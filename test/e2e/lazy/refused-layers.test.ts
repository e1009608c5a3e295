/** Layers in the middle of an image that cannot be served lazily: from there up the ordinary pull, the reason where people look for it. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, layerOfEntries, layerOfOverlaybdBlob, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { tarOf } from '../../support/tar.ts';
import { filledBytes, lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;

beforeAll(async () => {
  scratch = await Scratch.create('refused');
  host = await LazyHost.start();
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

const config = { cmd: ['/bin/cat', '/upper'] };
const upper = () => layerOfEntries([{ name: 'upper', content: 'upper\n' }]);

test('a malformed layer: what lies below stays lazy, the image is refused with the reason, others run, and it can be removed', async () => {
  const converted = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'middle', content: 'm' }]), await upper()], config);
  // Says that it is a block layer and is none.
  const garbage = await layerOfOverlaybdBlob(await tarOf([{ name: 'overlaybd.commit', content: filledBytes(20_000, 2) }]));
  const layers = [converted.layers[0]!, garbage, converted.layers[2]!];
  const image = await pushImage(host.registry, 'refused/malformed', '1', buildImage(layers, config));
  const good = await pushImage(host.registry, 'refused/good', '1', converted);
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, true, true]);

  const events = (await obdctl(host, 'events')).stdout;
  expect(events).toMatch(/refused\/malformed:1.*1 of 3 layers are lazy: layer 1/);
  expect(events).toContain(`layer-not-lazy`);
  const snapshots = (await obdctl(host, 'snapshots')).stdout;
  expect(snapshots).toMatch(/remote +partly +\S+refused\/malformed:1 +layer 1/);
  expect(snapshots).toMatch(/downloaded +ordinary +\S+refused\/malformed:1 +layer 1/);
  await expect(runOnce(host, image.reference, 'malformed')).rejects.toThrow(/refused\/malformed:1|broken/);
  await lazyPull(host.containerd, good.reference, { snapshotter: SNAPSHOTTER });
  expect(await runOnce(host, good.reference, 'good')).toBe('upper\n');
  await host.containerd.ctr(['images', 'rm', '--sync', image.reference]);
  // What both images share stays for the other one.
  expect((await obdctl(host, 'snapshots')).stdout).not.toContain('downloaded');
});

test('a layer that asks for its download is served from disk with all above it, and the container sees the whole tree', async () => {
  const converted = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'middle', content: 'another' }]), await upper()], config);
  const layers = converted.layers.map((layer, index) =>
    index === 1
      ? { ...layer, annotations: { ...layer.annotations, 'containerd.io/snapshot/overlaybd/download-remote-blob': 'download' } }
      : layer,
  );
  const image = await pushImage(host.registry, 'refused/download', '1', buildImage(layers, config));
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, true, true]);
  expect((await obdctl(host, 'events')).stdout).toMatch(/refused\/download:1.*asks for a download/);
  expect(await runOnce(host, image.reference, 'download')).toBe('upper\n');
  expect(await runOnce(host, image.reference, 'download-2', '/bin/ls', '/middle', '/bin/sh')).toBe('/bin/sh\n/middle\n');
});

test('labels that contradict the manifest make the layer ordinary, not another image', async () => {
  const one = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'upper', content: 'one\n' }])], config);
  const two = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'upper', content: 'two\n' }])], config);
  const lie = { ...one.layers[1]!, annotations: two.layers[1]!.annotations! };
  const image = await pushImage(host.registry, 'refused/lie', '1', buildImage([one.layers[0]!, lie], config));
  await pushImage(host.registry, 'refused/lie', 'two', two);
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, true]);
  expect((await obdctl(host, 'events')).stdout).toMatch(/refused\/lie:1.*its annotations name/);
  await expect(runOnce(host, image.reference, 'lie')).rejects.toThrow(/broken|not the one that chain/);
});
