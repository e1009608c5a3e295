/** A container of a lazy image becomes a new image, as `nerdctl commit` does it: the difference is a layer, which runs when pushed and pulled again. */
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { sha256 } from '../../../plugin/base/digest.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, layerOfEntries, layerOfTar, MEDIA_TYPE, pushImage } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { lazyBusybox, runOnce } from './lazy-images.ts';

test('the difference of a container of a lazy image is exactly what it changed, and runs as a layer above the lazy ones', async () => {
  await using scratch = await Scratch.create('commit');
  await using host = await LazyHost.start();
  const { registry, containerd } = host;
  const data = await layerOfEntries([{ name: 'data/' }, { name: 'data/kept', content: 'kept\n' }, { name: 'data/gone', content: 'x' }]);
  const lazy = await lazyBusybox(scratch, [data]);
  const image = await pushImage(registry, 'commit/app', '1', lazy);
  await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  const change =
    'echo new > /data/new; rm /data/gone; echo more >> /data/kept; cp /bin/busybox /data/copy; mv /data/copy /bin/busybox; mkdir -p /a/b; chmod 700 /tmp';
  await containerd.ctr(['run', '--snapshotter', SNAPSHOTTER, image.reference, 'changed', '/bin/sh', '-c', change]);
  const { stdoutBytes } = await containerd.ctr(['snapshots', '--snapshotter', SNAPSHOTTER, 'diff', 'changed']);
  await containerd.ctr(['containers', 'rm', 'changed']);
  const tar = gunzipSync(stdoutBytes);
  const names = (await run('tar', ['-tf', '-'], { input: tar })).stdout
    .split('\n')
    .filter(Boolean)
    .map((name) => name.replace(/\/$/, ''));
  const changed = ['a', 'a/b', 'bin', 'bin/busybox', 'data', 'data/.wh.gone', 'data/kept', 'data/new', 'tmp'];
  expect(names.filter((name) => !/^(dev|proc|sys|etc|run)(\/|$)/.test(name)).sort()).toEqual(changed);

  const plain = layerOfTar(tar);
  const layer = { ...plain, mediaType: MEDIA_TYPE.tarGzip, digest: sha256(stdoutBytes), sizeBytes: stdoutBytes.length, blob: stdoutBytes };
  const committed = await pushImage(registry, 'commit/app', '2', buildImage([...lazy.layers, layer], { cmd: ['/bin/sh'] }));
  const pulled = await lazyPull(containerd, committed.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((one) => one.isFetched)).toEqual([false, false, true]);
  const seen = await runOnce(host, committed.reference, 'again', '/bin/sh', '-c', 'cat /data/*; ls /data /a; stat -c %a /tmp');
  expect(seen).toBe('kept\nmore\nnew\n/a:\nb\n\n/data:\nkept\nnew\n700\n');
});

test('a whole commit by containerd: materialized, tagged with a new layer, pushed from content, pulled elsewhere', async () => {
  await using scratch = await Scratch.create('commit');
  await using host = await LazyHost.start();
  await using other = await LazyHost.start();
  const lazy = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'who', content: 'lazy\n' }])], { cmd: ['/bin/cat', '/who'] });
  const image = await pushImage(host.registry, 'commit/app', '1', lazy);
  await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await host.sidecar.admin('POST', '/v1/materialize', { reference: image.reference });
  const there = `${other.registry.host}/moved/app:1`;
  await host.containerd.ctr(['images', 'tag', image.reference, there]);
  await host.containerd.ctr(['images', 'push', '--plain-http', there]);
  expect((await lazyPull(other.containerd, there, { snapshotter: SNAPSHOTTER })).layers.map((one) => one.isFetched)).toEqual([
    false,
    false,
  ]);
  expect(await runOnce(other, there, 'moved')).toBe('lazy\n');
});
