/** The harness itself: that its containerd, registry, images and clients work, with containerd's own overlayfs snapshotter. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Containerd } from '../../support/containerd.ts';
import { CONTAINERD_LINES } from '../../support/containerd-versions.ts';
import { Cri, readCriLog } from '../../support/cri.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { mountsUnder } from '../../support/mounts.ts';
import { type PushedImage, pushImage } from '../../support/oci-image.ts';
import { allProcesses } from '../../support/process.ts';
import { busyboxImage, manyLayersImage, pauseImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';

describe.each(CONTAINERD_LINES)('containerd %s', (line) => {
  let registry: DockerRegistry;
  let containerd: Containerd;
  let pause: PushedImage;
  let busybox: PushedImage;

  beforeAll(async () => {
    registry = await DockerRegistry.start();
    pause = await pushImage(registry, 'test/pause', '1', await pauseImage());
    busybox = await pushImage(registry, 'test/busybox', '1', await busyboxImage());
    containerd = await Containerd.start({ line, sandboxImage: pause.reference, registries: [{ host: registry.host }] });
  });

  afterAll(async () => {
    await containerd?.[Symbol.asyncDispose]();
    await registry?.[Symbol.asyncDispose]();
    if (containerd !== undefined) {
      const left = allProcesses().filter((p) => p.args.some((a) => a.includes(containerd.socket)));
      expect(left, 'processes of this containerd that outlived it').toEqual([]);
      expect(mountsUnder(containerd.root), 'mounts that outlived containerd').toEqual([]);
    }
  });

  test('CRI pulls an image, runs a pod on the host network, executes a command and reads its log', async () => {
    await using cri = await Cri.connect(containerd.socket);
    await cri.pullImage(busybox.reference);
    const tags = (await cri.listImages()).flatMap((image) => image.repoTags);
    expect(tags).toContain(busybox.reference);
    const pod = await cri.runPod('smoke');
    const container = await cri.startContainer(pod, busybox.reference, { command: ['/bin/sh', '-c', 'echo hello; exec sleep 600'] });
    const said = await cri.exec(container.id, ['/bin/cat', '/etc/passwd']);
    expect(said).toEqual({ stdout: 'root:x:0:0:root:/root:/bin/sh\n', stderr: '', exitCode: 0 });
    const logged = async () => (await readCriLog(container.logPath)).map(({ text }) => text);
    await waitFor(async () => (await logged()).length > 0, { what: 'a line in the log' });
    expect(await logged()).toEqual(['hello']);
    await cri.removeContainer(container.id);
    const second = await cri.startContainer(pod, busybox.reference, { name: 'second', command: ['/bin/sh', '-c', 'exit 7'] });
    expect(await cri.waitExit(second.id)).toMatchObject({ state: 'exited', exitCode: 7 });
  });

  test('a client that passes snapshot labels pulls and unpacks an image of twelve layers, which ctr then runs', async () => {
    const image = await pushImage(registry, 'test/layers', '1', await manyLayersImage(11));
    const pulled = await lazyPull(containerd, image.reference, { snapshotter: 'overlayfs' });
    expect(pulled).toMatchObject({ digest: image.manifest.digest, isUnpacked: true });
    expect(pulled.layers).toHaveLength(12);
    expect(pulled.layers.every((layer) => layer.isFetched)).toBe(true);
    const { stdout } = await containerd.ctr(['run', '--rm', '--snapshotter', 'overlayfs', image.reference, 'layers-test']);
    expect(stdout).toBe('11\n');
  });

  test('disposing takes away a container that still runs, its shim and its mounts', async () => {
    await containerd.restart();
    await lazyPull(containerd, busybox.reference, { snapshotter: 'overlayfs' });
    await containerd.ctr(['run', '--detach', busybox.reference, 'left-behind', '/bin/sleep', '6000']);
    expect(mountsUnder(containerd.root.replace(/root$/, 'state')).length).toBeGreaterThan(0);
  });
});
