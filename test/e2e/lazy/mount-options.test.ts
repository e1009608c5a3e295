/** `volatile` and user namespaces on lazy images, as the overlayfs snapshotter has them. */
import { chmod, mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ContainerdSnapshots } from '../../support/containerd-snapshots.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { listMounts, unmountUnder } from '../../support/mounts.ts';
import { type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { mountSnapshot } from '../../support/snapshot-view.ts';
import { lazyBusybox, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let image: PushedImage;
let parent: string;

beforeAll(async () => {
  scratch = await Scratch.create('options');
  host = await LazyHost.start();
  image = await pushImage(host.registry, 'options/app', '1', await lazyBusybox(scratch));
  parent = (await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER })).snapshotKey;
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('a container that asks for it by label gets a volatile overlay, its neighbour does not', async () => {
  using client = new ContainerdSnapshots(host.containerd.socket, SNAPSHOTTER);
  const label = { 'containerd.io/snapshot/overlaybd/volatile': 'yes' };
  for (const [key, labels] of [
    ['fast', label],
    ['safe', {}],
  ] as const) {
    const target = scratch.join(key);
    await mkdir(target);
    await mountSnapshot(await client.prepare(key, parent, labels), target);
    const mounted = listMounts().find((mount) => mount.mountPoint === target);
    // Newer kernels write fsync=volatile.
    expect(/[,=]volatile\b/.test(mounted?.superOptions ?? '')).toBe(key === 'fast');
    await unmountUnder(target);
    await client.remove(key);
  }
});

test('a container in a user namespace owns the files of a lazy image: ctr remaps them, whatever the snapshotter can', async () => {
  // The container's init looks its own root up, as nobody of the host; a real host's /run/containerd lets it.
  await chmod(dirname(host.containerd.socket), 0o711);
  const mapped = ['--uidmap', '0:100000:65536', '--gidmap', '0:100000:65536'];
  const { stdout } = await host.containerd.ctr([
    ...['run', '--rm', '--snapshotter', SNAPSHOTTER, ...mapped, image.reference, 'mapped'],
    ...['/bin/sh', '-c', 'stat -c %u:%g /etc/passwd; cat /proc/self/uid_map; echo mine > /etc/passwd && cat /etc/passwd'],
  ]);
  expect(stdout).toMatch(/^0:0\n +0 +100000 +65536\nmine\n$/);
  expect(await runOnce(host, image.reference, 'unmapped', '/bin/stat', '-c', '%u', '/etc/passwd')).toBe('0\n');
});
