/** One device for all containers of an image; opened once, closed after the last, and a stuck image is nobody else's trouble. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { openDatabase } from '../../../../db/database.ts';
import { DependencyStore } from '../../../../db/dependency-store.ts';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { DeviceManager } from '../../../../plugin/snapshotter/device-manager.ts';
import { SnapshotDirectories } from '../../../../plugin/snapshotter/directories.ts';
import { FakeBlockDevices } from '../../../support/fake-block-devices.ts';
import { FakeImageMounter } from '../../../support/fake-image-mounter.ts';
import { overlaybdLayer } from '../../../support/fake-image-resolver.ts';
import { Scratch } from '../../../support/scratch.ts';
import { NEVER_ABORTED, SnapshotterHarness } from '../../../support/snapshotter-harness.ts';

/** What takes a moment may take ten times as long on a machine that is busy. */
const LONG = 30_000;
const A = 'r.example/team/a:1';
const B = 'r.example/team/b:1';
let harness: SnapshotterHarness;
beforeEach(async () => {
  harness = await SnapshotterHarness.open();
});
afterEach(async () => {
  await harness[Symbol.asyncDispose]();
});

async function lazyImage(image: string): Promise<{ top: string }> {
  const layers = [overlaybdLayer(image)];
  return harness.pull(image, layers, { manifestDigest: harness.resolver.add(image, layers) });
}

const attaches = () => harness.devices.calls.filter((call) => call.startsWith('attach'));

test('many containers and views at once make one mount; the device closes after the last is removed, not before', async () => {
  const { top } = await lazyImage(A);
  await Promise.all([
    ...Array.from({ length: 20 }, (_, index) => harness.container(`c${index}`, top)),
    harness.snapshotter.view('v', top, {}, NEVER_ABORTED),
  ]);
  expect(harness.mounter.mountCount).toBe(1);
  expect(harness.devices.attached.size).toBe(1);
  for (let index = 0; index < 20; index += 1) harness.snapshotter.remove(`c${index}`);
  await harness.snapshotter.cleanup();
  expect(harness.mounter.mounted.size).toBe(1);
  harness.snapshotter.remove('v');
  await vi.waitFor(() => expect(harness.devices.attached.size).toBe(0), LONG);
  expect(harness.mounter.mounted.size).toBe(0);
});

test('a device that was found open a moment ago is not asked for again, one that was closed is', async () => {
  await using quick = await SnapshotterHarness.open({ freshMs: 3_600_000 });
  const layers = [overlaybdLayer(A)];
  const { top } = await quick.pull(A, layers, { manifestDigest: quick.resolver.add(A, layers) });
  const attachCount = (): number => quick.devices.calls.filter((call) => call.startsWith('attach')).length;
  for (let index = 0; index < 5; index += 1) await quick.container(`c${index}`, top);
  await quick.snapshotter.mounts('c0', NEVER_ABORTED);
  expect(attachCount()).toBe(1);
  for (let index = 0; index < 5; index += 1) quick.snapshotter.remove(`c${index}`);
  await vi.waitFor(() => expect(quick.devices.attached.size).toBe(0), LONG);
  await quick.container('again', top);
  expect(attachCount()).toBe(2);
  expect(quick.mounter.mounted.size).toBe(1);
});

test('a committed snapshot does not hold the device of its parent', async () => {
  const { top } = await lazyImage(A);
  await harness.container('c', top);
  await harness.snapshotter.commit('committed', 'c', {}, NEVER_ABORTED);
  await vi.waitFor(() => expect(harness.mounter.mounted.size).toBe(0), LONG);
  await harness.container('d', 'committed');
  expect(harness.mounter.mounted.size).toBe(1);
});

test('an image whose registry is silent fails in its deadline with UNAVAILABLE that names it; another image starts meanwhile; later it works', async () => {
  await harness[Symbol.asyncDispose]();
  harness = await SnapshotterHarness.open({ prepareDeadlineMs: 3_000 });
  const stuck = await lazyImage(A);
  const fine = await lazyImage(B);
  const id = [...(await deviceIds(stuck.top))][0]!;
  const gate = Promise.withResolvers<void>();
  harness.devices.gates.set(id, gate.promise);
  const failing = harness.container('a', stuck.top);
  await expect(harness.container('b', fine.top)).resolves.toHaveLength(1);
  await expect(failing).rejects.toMatchObject({ code: 'Unavailable', message: expect.stringContaining(A) });
  expect(() => harness.snapshotter.stat('a')).toThrowError(expect.objectContaining({ code: 'NotFound' }));
  harness.devices.gates.clear();
  gate.resolve();
  await expect(harness.container('a', stuck.top)).resolves.toHaveLength(1);
});

/** Opens and closes a container to learn the device's id. */
async function deviceIds(top: string): Promise<string[]> {
  await harness.container('probe', top);
  const ids = [...harness.devices.attached.keys()];
  harness.snapshotter.remove('probe');
  await vi.waitFor(() => expect(harness.mounter.mounted.size).toBe(0), LONG);
  return ids;
}

test('after a reboot (no mounts, no devices) Mounts brings the image back; after a restart of the process alone it is still there', async () => {
  const { top } = await lazyImage(A);
  const before = await harness.snapshotter.prepare('c', top, {}, NEVER_ABORTED);
  await harness.restart();
  expect(harness.mounter.mounted.size).toBe(1);
  harness.mounter.mounted.clear();
  harness.devices.attached.clear();
  await harness.restart();
  expect(await harness.snapshotter.mounts('c', NEVER_ABORTED)).toEqual(before);
  expect(harness.mounter.mounted.size).toBe(1);
  expect(harness.devices.attached.size).toBe(1);
});

test('devices and mounts that nobody uses are closed at the start, once blockd can be asked', async () => {
  const { top } = await lazyImage(A);
  await harness.container('c', top);
  await harness.service[Symbol.asyncDispose]();
  harness.devices.attached.set('left-over', [...harness.devices.attached.values()][0]!);
  await harness.start();
  await vi.waitFor(() => expect(harness.devices.attached.has('left-over')).toBe(false), LONG);
  expect(harness.devices.attached.size).toBe(1);
});

test('with blockd away what is mounted goes on, and what is not fails clearly', async () => {
  const mounted = await lazyImage(A);
  const other = await lazyImage(B);
  await harness.container('a', mounted.top);
  harness.devices.isAway = true;
  await expect(harness.container('a2', mounted.top)).resolves.toHaveLength(1);
  await expect(harness.container('b', other.top)).rejects.toMatchObject({ code: 'Unavailable', message: expect.stringContaining(B) });
  expect(attaches().length).toBeGreaterThan(1);
});

test('a caller that gives up leaves no snapshot and no device behind', async () => {
  const { top } = await lazyImage(A);
  const [id] = await deviceIds(top);
  const gate = Promise.withResolvers<void>();
  harness.devices.gates.set(id!, gate.promise);
  const controller = new AbortController();
  const given = harness.snapshotter.prepare('c', top, {}, controller.signal);
  controller.abort();
  await expect(given).rejects.toMatchObject({ code: 'Unavailable' });
  gate.resolve();
  await vi.waitFor(() => expect(harness.mounter.mounted.size).toBe(0), LONG);
  await vi.waitFor(() => expect(harness.devices.attached.size).toBe(0), LONG);
});

test('a snapshot that is removed or committed while its device is opened again has no mounts', async () => {
  const { top } = await lazyImage(A);
  for (const end of ['removed', 'committed']) {
    await harness.container(end, top);
    const [id] = harness.devices.attached.keys();
    const gate = Promise.withResolvers<void>();
    harness.devices.gates.set(id!, gate.promise);
    const asked = harness.snapshotter.mounts(end, NEVER_ABORTED);
    if (end === 'removed') harness.snapshotter.remove(end);
    else await harness.snapshotter.commit('name', end, {}, NEVER_ABORTED);
    harness.devices.gates.clear();
    gate.resolve();
    await expect(asked).rejects.toMatchObject({ code: 'NotFound' });
  }
});

test('an image that is being mounted when all are unmounted is unmounted too', async () => {
  await using scratch = await Scratch.create('devices');
  using database = openDatabase(':memory:');
  const devices = new FakeBlockDevices();
  const mounter = new FakeImageMounter();
  const directories = new SnapshotDirectories(scratch.join('root'), silentLogger);
  const dependencies = new DependencyStore(database);
  const parts = { devices, mounter, directories, dependencies, isUsed: () => true, logger: silentLogger, openDeadlineMs: 60_000 };
  const manager = new DeviceManager(parts);
  const attached = Promise.withResolvers<void>();
  devices.gates.set('one', attached.promise);
  const looked = Promise.withResolvers<void>();
  const list = directories.mountPoints.bind(directories);
  directories.mountPoints = async () => {
    const found = await list();
    looked.resolve();
    return found;
  };
  const blob = { digest: sha256('layer'), sizeBytes: 1, repositories: [{ host: 'r.example', repository: 'a' }] };
  const opening = manager.acquire({ version: 1, id: 'one', image: A, layers: [{ kind: 'full', blob }] }, NEVER_ABORTED);
  const unmounting = manager.unmountAll();
  await looked.promise;
  attached.resolve();
  await Promise.all([opening, unmounting]);
  await manager.stop();
  expect(mounter.mountCount).toBe(1);
  expect(mounter.mounted.size).toBe(0);
});
