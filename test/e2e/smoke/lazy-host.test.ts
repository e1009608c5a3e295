/** The harness itself: that a whole host starts in scratch directories, runs both kinds of images, and leaves nothing behind. */
import { writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { convertTars } from '../../support/converted-image.ts';
import { Cri, readCriLog } from '../../support/cri.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { listMounts } from '../../support/mounts.ts';
import { pushImage } from '../../support/oci-image.ts';
import { allProcesses } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage, busyboxLayer } from '../../support/small-images.ts';
import { timedStart } from '../../support/timed-start.ts';

test('a converted image starts without its layer being pulled, an ordinary one beside it, and disposing leaves nothing', async () => {
  let paths: string[] = [];
  {
    await using scratch = await Scratch.create('smoke');
    const layer = await busyboxLayer();
    const tar = scratch.join('busybox.tar');
    await writeFile(tar, layer.blob);
    const config = { cmd: ['/bin/echo', 'lazily'] };
    const converted = await convertTars([tar], { config, stagingDirectory: scratch.join('converted') });
    await using host = await LazyHost.start();
    paths = [host.sidecar.configPath, host.containerd.socket];
    const { registry, containerd } = host;
    const lazy = await pushImage(registry, 'smoke/busybox', 'overlaybd', converted);
    const ordinary = await pushImage(registry, 'smoke/busybox', 'plain', await busyboxImage({ config: { cmd: ['/bin/echo', 'plainly'] } }));

    const pulled = await lazyPull(containerd, lazy.reference, { snapshotter: SNAPSHOTTER });
    expect(pulled.layers.map((l) => l.isFetched)).toEqual([false]);
    const common = { registry, containerd, snapshotter: SNAPSHOTTER };
    expect(await timedStart({ ...common, reference: lazy.reference, name: 'lazy', ready: /lazily/ })).toMatchObject({ output: 'lazily' });
    await timedStart({ ...common, reference: ordinary.reference, name: 'plain', ready: /plainly/ });
    // The registry writes its log a moment after it has answered.
    await expect.poll(() => registry.blobBytesSent(), { timeout: 30_000 }).toBeGreaterThanOrEqual(ordinary.layersSizeBytes);

    await using cri = await Cri.connect(containerd.socket);
    await cri.pullImage(lazy.reference);
    const pod = await cri.runPod('lazy');
    const container = await cri.startContainer(pod, lazy.reference);
    expect(await cri.waitExit(container.id)).toMatchObject({ exitCode: 0 });
    expect((await readCriLog(container.logPath)).map((l) => l.text)).toEqual(['lazily']);
  }
  const directories = paths.map((path) => path.slice(0, path.lastIndexOf('/')));
  expect(listMounts().filter((m) => directories.some((d) => m.mountPoint.startsWith(d)))).toEqual([]);
  expect(allProcesses().filter((p) => p.args.some((a) => directories.some((d) => a.includes(d))))).toEqual([]);
});
