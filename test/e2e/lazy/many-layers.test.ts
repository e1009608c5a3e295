/** Images of 127 layers, as many as builders make: all lazy, and half of each kind. Ordinary ones alone are in ordinary-images.test.ts. */
import { expect, test } from 'vitest';
import { Cri, readCriLog } from '../../support/cri.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, type Layer, layerOfEntries, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { lazyBusybox, runOnce } from './lazy-images.ts';

const LAYERS = 127;

async function layersAbove(count: number, from: number): Promise<Layer[]> {
  const layers: Layer[] = [];
  for (let n = from; n < from + count; n++) {
    layers.push(
      await layerOfEntries([{ name: 'layers/' }, { name: `layers/${n}`, content: `layer ${n}\n` }, { name: 'top', content: `${n}\n` }]),
    );
  }
  return layers;
}

test('127 lazy layers are pulled without a download with few requests, and run; with 63 ordinary ones on 64 lazy ones too', async () => {
  await using scratch = await Scratch.create('layers');
  const config = { cmd: ['/bin/cat', '/top'] };
  const lazy = await lazyBusybox(scratch, await layersAbove(LAYERS - 1, 1), config);
  const mixed = buildImage([...lazy.layers.slice(0, 64), ...(await layersAbove(63, 64))], config);
  await using host = await LazyHost.start();
  const image = await pushImage(host.registry, 'deep/lazy', '1', lazy);
  await host.registry.forget();
  const pulled = await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.filter((layer) => layer.isFetched)).toEqual([]);
  expect(pulled.layers).toHaveLength(LAYERS);
  // containerd asks for tag, manifest and configuration, the product for the manifest: not once a layer.
  expect((await host.registry.requests()).filter((request) => request.kind === 'manifest').length).toBeLessThanOrEqual(4);
  expect(await runOnce(host, image.reference, 'deep')).toBe(`${LAYERS - 1}\n`);
  expect((await runOnce(host, image.reference, 'deeper', '/bin/ls', '/layers')).split('\n').filter(Boolean)).toHaveLength(LAYERS - 1);

  const both = await pushImage(host.registry, 'deep/both', '1', mixed);
  const pulledBoth = await lazyPull(host.containerd, both.reference, { snapshotter: SNAPSHOTTER });
  expect(pulledBoth.layers.filter((layer) => layer.isFetched)).toHaveLength(63);
  expect(await runOnce(host, both.reference, 'both', '/bin/sh', '-c', 'cat /top; ls /layers | wc -l')).toBe('126\n126\n');

  // CRI passes a list of layers that its label limit cuts short.
  await using cri = await Cri.connect(host.containerd.socket);
  await cri.pullImage(image.reference);
  const container = await cri.startContainer(await cri.runPod('deep'), image.reference);
  expect(await cri.waitExit(container.id)).toMatchObject({ exitCode: 0 });
  expect((await readCriLog(container.logPath)).map((line) => line.text)).toEqual([`${LAYERS - 1}`]);
});
