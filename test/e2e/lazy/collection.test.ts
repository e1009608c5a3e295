/**
 * containerd's garbage collection, leases and image removal: they free the devices, mounts and snapshots of what nobody uses any more, and
 * nothing else.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { ContainerdChannel } from '../../../plugin/snapshotter/containerd/channel.ts';
import {
  Snapshots,
  ViewSnapshotRequestSchema,
  ViewSnapshotResponseSchema,
} from '../../../plugin/snapshotter/gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { mountsUnder } from '../../support/mounts.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { waitFor } from '../../support/wait.ts';
import { lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;

const rowsOf = async <T>(what: string): Promise<T[]> =>
  (JSON.parse((await obdctl(host, '--json', what)).stdout) as Record<string, T[]>)[what] ?? [];
const devices = () => rowsOf<{ id: string; image: string; state: string }>('devices');
const snapshots = () => rowsOf<{ key: string; image: string | null; kind: string }>('snapshots');

async function lazyImage(name: string): Promise<PushedImage> {
  const top = await layerOfEntries([{ name: 'who', content: `${name}\n` }]);
  const image = await pushImage(host.registry, `gc/${name}`, '1', await lazyBusybox(scratch, [top], { cmd: ['/bin/cat', '/who'] }));
  await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
  return image;
}

/** Removes an image and waits for a collection. */
const remove = (image: PushedImage) => host.containerd.ctr(['images', 'rm', '--sync', image.reference]);

beforeAll(async () => {
  scratch = await Scratch.create('gc');
  host = await LazyHost.start();
});
beforeEach(() => host.containerd.removeEverything());

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('removing an image frees its snapshots, device and mount once its last container is gone; a neighbour on the same base runs on', async () => {
  const [gone, stays] = [await lazyImage('gone'), await lazyImage('stays')];
  const { containerd } = host;
  await containerd.ctr(['run', '--detach', '--snapshotter', SNAPSHOTTER, gone.reference, 'user', '/bin/sleep', '600']);
  await containerd.ctr(['run', '--detach', '--snapshotter', SNAPSHOTTER, stays.reference, 'neighbour', '/bin/sleep', '600']);
  expect((await devices()).map((device) => device.image).sort()).toEqual([gone.reference, stays.reference]);

  // A container keeps what it stands on, whatever happens to the image.
  await remove(gone);
  expect((await containerd.ctr(['tasks', 'exec', '--exec-id', 'e', 'user', '/bin/cat', '/who'])).stdout).toBe('gone\n');
  await containerd.ctr(['tasks', 'rm', '--force', 'user']);
  await containerd.ctr(['containers', 'rm', 'user']);
  // Any collection takes the rest.
  await remove(await lazyImage('trigger'));
  await waitFor(async () => (await devices()).map((device) => device.image).join() === stays.reference, {
    what: 'the device to be released',
  });
  expect(mountsUnder(host.sidecar.root)).toHaveLength(1);
  const left = await snapshots();
  expect(left.filter((row) => row.key.includes('user') || row.image === gone.reference).map((row) => row.kind)).toEqual(
    // The base was pulled for the image that is gone, and is the neighbour's too.
    ['committed'],
  );
  expect((await containerd.ctr(['tasks', 'exec', '--exec-id', 'e', 'neighbour', '/bin/cat', '/who'])).stdout).toBe('stays\n');
  await containerd.ctr(['tasks', 'rm', '--force', 'neighbour']);
  await containerd.ctr(['containers', 'rm', 'neighbour']);
  await remove(stays);
  await waitFor(async () => (await devices()).length === 0 && (await snapshots()).length === 0, { what: 'everything to be freed' });
  expect(mountsUnder(host.sidecar.root)).toEqual([]);
});

test('a lease keeps a snapshot of a removed image, with all below it, until it is given back', async () => {
  const image = await lazyImage('leased');
  const { containerd } = host;
  const { snapshotKey } = await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await containerd.ctr(['leases', 'create', '--id', 'keeper']);
  using channel = new ContainerdChannel(containerd.socket);
  await channel.call(
    { service: Snapshots, name: 'view', input: ViewSnapshotRequestSchema, output: ViewSnapshotResponseSchema },
    { snapshotter: SNAPSHOTTER, key: 'leased', parent: snapshotKey },
    { namespace: 'default', lease: 'keeper' },
    { op: 'view', subject: image.reference, signal: AbortSignal.timeout(30_000) },
  );
  await remove(image);
  expect((await snapshots()).map((row) => row.kind).sort()).toEqual(['committed', 'committed', 'view']);
  expect((await devices()).map((device) => device.state)).toEqual(['attached']);
  await containerd.ctr(['leases', 'rm', '--sync', 'keeper']);
  await waitFor(async () => (await snapshots()).length === 0 && (await devices()).length === 0, { what: 'everything to be freed' });
});

test('an image that was removed is pulled again and runs; what its predecessor fetched is still local', async () => {
  const first = await lazyImage('again');
  expect(await runOnce(host, first.reference, 'first')).toBe('again\n');
  await remove(first);
  await waitFor(async () => (await snapshots()).length === 0 && (await devices()).length === 0, { what: 'everything to be freed' });
  await host.registry.forget();
  await lazyImage('again');
  expect(await runOnce(host, first.reference, 'second')).toBe('again\n');
  // The configuration is containerd's own and was collected.
  for (const { digest } of first.layers) expect(await host.registry.blobBytesSent(digest)).toBe(0);
});
