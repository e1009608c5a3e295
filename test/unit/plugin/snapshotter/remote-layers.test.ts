/**
 * Which device a container gets: always the one of its image's own artifact, whatever other images, pulls and orders there were; and
 * what happens when layers cannot be served lazily.
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { deviceIdOf } from '../../../../plugin/file/device-spec.ts';
import { type FakeLayer, ordinaryLayer, overlaybdLayer } from '../../../support/fake-image-resolver.ts';
import { NEVER_ABORTED, SnapshotterHarness } from '../../../support/snapshotter-harness.ts';

const A = 'r.example/team/a:1';
const B = 'r.example/team/b:1';
let harness: SnapshotterHarness;
beforeEach(async () => {
  harness = await SnapshotterHarness.open();
});
afterEach(async () => {
  await harness[Symbol.asyncDispose]();
});

/** The digests of the device that a container's lowest lower is mounted from. */
function deviceBelow(lowers: string[]): string[] {
  const id = path.basename(lowers.at(-1)!);
  return harness.devices.attached.get(id)!.layers.map((layer) => (layer.kind === 'full' ? layer.blob.digest : layer.meta.digest));
}

async function unpackBlob(directory: string, layer: FakeLayer): Promise<void> {
  await fs.writeFile(path.join(directory, 'overlaybd.commit'), `blob ${layer.digest}`);
}

test('a lazy image is pulled without a download, with one manifest request and one check for all of its layers', async () => {
  const layers = Array.from({ length: 127 }, (_, index) => overlaybdLayer(`layer ${index}`));
  const manifestDigest = harness.resolver.add(A, layers);
  const { top, steps } = await harness.pull(A, layers, { manifestDigest });
  expect(steps).toEqual(layers.map(() => 'remote'));
  expect(harness.resolver.calls).toEqual([manifestDigest]);
  expect(harness.devices.calls.filter((call) => call !== 'list')).toEqual(['check 127']);
  expect(harness.snapshotter.stat(top)).toMatchObject({ kind: 'committed', name: top });
  expect(await harness.snapshotter.usageOf(top)).toEqual({ inodes: 0, bytes: 0 });
  const lowers = await harness.container('c', top);
  expect(lowers).toHaveLength(1);
  expect(deviceBelow(lowers)).toEqual(layers.map((layer) => layer.digest));
  expect(harness.service.resolutions(10)).toMatchObject([{ subject: manifestDigest, lazyLayers: 127, totalLayers: 127, reason: null }]);
});

test.each([
  ['A first', [A, B]],
  ['B first', [B, A]],
])('images that share a base and come from different artifacts keep their own devices (%s)', async (_, order) => {
  const base = overlaybdLayer('base');
  const images: Record<string, FakeLayer[]> = { [A]: [base, overlaybdLayer('a')], [B]: [base, overlaybdLayer('b')] };
  const tops: Record<string, string> = {};
  for (const image of order) {
    const layers = images[image]!;
    tops[image] = (await harness.pull(image, layers, { manifestDigest: harness.resolver.add(image, layers) })).top;
  }
  for (const image of [A, B]) {
    const lowers = await harness.container(`container of ${image}`, tops[image]!);
    expect(deviceBelow(lowers)).toEqual(images[image]!.map((layer) => layer.digest));
    const spec = harness.devices.attached.get(path.basename(lowers[0]!))!;
    expect(spec.layers.map((layer) => layer.kind === 'full' && layer.blob.repositories[0]?.repository)).toEqual(
      Array(2).fill(image === A ? 'team/a' : 'team/b'),
    );
  }
});

test('a base that is an ordinary directory does not matter to the lazy layer above it: its device is complete by itself', async () => {
  const base = overlaybdLayer('base');
  harness.devices.badBlobs.add(base.digest);
  const broken = await harness.pull(B, [base], { manifestDigest: harness.resolver.add(B, [base]), unpack: unpackBlob });
  expect(broken.steps).toEqual(['downloaded']);
  harness.devices.badBlobs.clear();
  const layers = [base, overlaybdLayer('a')];
  const { top, steps } = await harness.pull(A, layers, { manifestDigest: harness.resolver.add(A, layers) });
  expect(steps).toEqual(['exists', 'remote']);
  const lowers = await harness.container('c', top);
  expect(lowers).toHaveLength(1);
  expect(deviceBelow(lowers)).toEqual(layers.map((layer) => layer.digest));
});

test('ordinary layers on a lazy image: overlay lowers are these, top first, then the image', async () => {
  const layers = [overlaybdLayer('0'), overlaybdLayer('1'), ordinaryLayer('2'), ordinaryLayer('3')];
  const { top, steps } = await harness.pull(A, layers, { manifestDigest: harness.resolver.add(A, layers) });
  expect(steps).toEqual(['remote', 'remote', 'downloaded', 'downloaded']);
  const lowers = await harness.container('c', top);
  expect(lowers.map((lower) => lower.replace(/.*\/root\//, ''))).toEqual([
    expect.stringMatching(/^snapshots\/\d+\/fs$/),
    expect.stringMatching(/^snapshots\/\d+\/fs$/),
    expect.stringMatching(/^mounts\//),
  ]);
  expect(deviceBelow(lowers)).toEqual([layers[0]!.digest, layers[1]!.digest]);
  expect(harness.service.resolutions(1)[0]?.reason).toMatch(/layer 2 .*ordinary layer/);
});

test('a layer that cannot be opened makes itself and all above ordinary, found with few checks, and recorded with the reason', async () => {
  const layers = Array.from({ length: 100 }, (_, index) => overlaybdLayer(`layer ${index}`));
  harness.devices.badBlobs.add(layers[41]!.digest);
  const { steps } = await harness.pull(A, layers, { manifestDigest: harness.resolver.add(A, layers), unpack: unpackBlob });
  expect(steps).toEqual(layers.map((_, index) => (index < 41 ? 'remote' : 'downloaded')));
  expect(harness.devices.calls.filter((call) => call.startsWith('check')).length).toBeLessThanOrEqual(8);
  expect(harness.service.resolutions(1)[0]).toMatchObject({ lazyLayers: 41, reason: expect.stringMatching(/^layer 41: .*bad magic/) });
  expect(harness.service.events(200, A).map((event) => event.type)).toContain('layer-not-lazy');
});

test('a downloaded image of block layers runs from its files, on a device of its own', async () => {
  const layers = [overlaybdLayer('0'), overlaybdLayer('1')];
  harness.resolver.isAway = true;
  harness.devices.isAway = true;
  const { top, steps } = await harness.pull(A, layers, { manifestDigest: sha256('m'), unpack: unpackBlob });
  expect(steps).toEqual(['downloaded', 'downloaded']);
  harness.devices.isAway = false;
  const lowers = await harness.container('c', top);
  const spec = harness.devices.attached.get(path.basename(lowers[0]!))!;
  expect(spec.layers.map((layer) => layer.kind === 'full' && layer.blob.localPath)).toEqual([
    expect.stringMatching(/snapshots\/\d+\/fs\/overlaybd\.commit$/),
    expect.stringMatching(/snapshots\/\d+\/fs\/overlaybd\.commit$/),
  ]);
  expect(spec.id).not.toBe(deviceIdOf(spec.layers));
});

test('an image cannot be served in the place of another by claiming its chain id', async () => {
  const victim = [overlaybdLayer('v0'), overlaybdLayer('v1')];
  const evil = [overlaybdLayer('v0'), overlaybdLayer('evil')];
  const manifestDigest = harness.resolver.add(A, evil);
  const base = (await harness.pull(A, [evil[0]!], { manifestDigest })).top;
  const labels = {
    ...evil[1]!.annotations,
    'containerd.io/snapshot.ref': sha256(`${victim[0]!.digest} ${victim[1]!.digest}`),
    'containerd.io/snapshot/cri.image-ref': A,
    'containerd.io/snapshot/cri.manifest-digest': manifestDigest,
  };
  const [mount] = await harness.snapshotter.prepare('extract', base, labels, NEVER_ABORTED);
  expect(mount).toMatchObject({ type: 'bind' });
  await unpackBlob(mount!.source, evil[1]!);
  await harness.snapshotter.commit('claimed', 'extract', labels, NEVER_ABORTED);
  await expect(harness.container('c', 'claimed')).rejects.toMatchObject({
    code: 'FailedPrecondition',
    message: expect.stringMatching(/broken/),
  });
});

test('without a manifest the labels suffice while the chain id proves the device', async () => {
  const layers = [overlaybdLayer('0'), overlaybdLayer('1')];
  const { top, steps } = await harness.pull(A, layers);
  expect(steps).toEqual(['remote', 'remote']);
  expect(deviceBelow(await harness.container('c', top))).toEqual(layers.map((layer) => layer.digest));
});

test('index-only layers are refused with a reason that the container sees', async () => {
  const turbo = overlaybdLayer('t', { 'containerd.io/snapshot/overlaybd/turbo-oci/target-digest': sha256('x') });
  const { top, steps } = await harness.pull(A, [turbo], { manifestDigest: harness.resolver.add(A, [turbo]) });
  expect(steps).toEqual(['downloaded']);
  await expect(harness.container('c', top)).rejects.toMatchObject({
    code: 'FailedPrecondition',
    message: expect.stringMatching(/TurboOCI/),
  });
  expect(harness.snapshotter.stat(top).labels['containerd.io/snapshot/overlaybd/broken']).toMatch(/TurboOCI/);
});

test('the same chain in two namespaces stands on two bases and is found on each', async () => {
  const lazy = [overlaybdLayer('0'), overlaybdLayer('1')];
  harness.resolver.add(B, lazy);
  harness.devices.badBlobs.add(lazy[0]!.digest);
  const bases = [];
  for (const namespace of ['one', 'two']) {
    const key = `e-${namespace}`;
    const labels = { ...lazy[0]!.annotations, 'containerd.io/snapshot.ref': lazy[0]!.digest, 'containerd.io/snapshot/cri.image-ref': B };
    const [mount] = await harness.snapshotter.prepare(key, '', labels, NEVER_ABORTED);
    await unpackBlob(mount!.source, lazy[0]!);
    await harness.snapshotter.commit(`${namespace}/base`, key, {}, NEVER_ABORTED);
    bases.push(`${namespace}/base`);
  }
  harness.devices.badBlobs.clear();
  const ref = sha256(`${lazy[0]!.digest} ${lazy[1]!.digest}`);
  const labels = {
    ...lazy[1]!.annotations,
    'containerd.io/snapshot.ref': ref,
    'containerd.io/snapshot/cri.image-ref': 'r.example/team/c:1',
    'containerd.io/snapshot/cri.manifest-digest': harness.resolver.add('r.example/team/c:1', lazy),
  };
  for (const base of bases) {
    await expect(harness.snapshotter.prepare(`p ${base}`, base, labels, NEVER_ABORTED)).rejects.toMatchObject({ code: 'AlreadyExists' });
    const filter = `labels."containerd.io/snapshot.ref"==${ref},parent==${base}`;
    expect([...harness.snapshotter.list([filter])].flat()).toHaveLength(1);
  }
});

test('a moved tag is resolved again at once', async () => {
  const first = [overlaybdLayer('old')];
  harness.resolver.add(A, first);
  expect((await harness.pull(A, first)).steps).toEqual(['remote']);
  const second = [overlaybdLayer('new')];
  harness.resolver.add(A, second);
  expect((await harness.pull(A, second)).steps).toEqual(['remote']);
  expect(harness.resolver.calls).toHaveLength(2);
});

test('a downloaded layer whose blob also carries the list of its chunks is served from disk', async () => {
  const base = overlaybdLayer('base');
  harness.devices.badBlobs.add(base.digest);
  const unpack = async (directory: string, layer: FakeLayer): Promise<void> => {
    await unpackBlob(directory, layer);
    await fs.writeFile(path.join(directory, 'overlaybd.chunks'), 'a list');
  };
  const { top, steps } = await harness.pull(A, [base], { manifestDigest: harness.resolver.add(A, [base]), unpack });
  expect(steps).toEqual(['downloaded']);
  harness.devices.badBlobs.clear();
  expect(await harness.container('c', top)).toHaveLength(1);
});

describe('trouble that passes is no decision', () => {
  const layers = [overlaybdLayer('0'), overlaybdLayer('1'), overlaybdLayer('2')];
  const fails = () => Promise.reject(new Error('the registry is away'));
  const checks = () => harness.devices.calls.filter((call) => call.startsWith('check')).length;
  const later = (ms: number) => {
    const nowMs = performance.now() + ms;
    const spy = vi.spyOn(performance, 'now').mockReturnValue(nowMs);
    onTestFinished(() => spy.mockRestore());
  };

  test('a pull that failed meets a registry that is back: the image is lazy, and what was said meanwhile is told', async () => {
    const manifestDigest = harness.resolver.add(A, layers);
    harness.devices.isAway = true;
    await expect(harness.pull(A, layers, { manifestDigest, unpack: fails })).rejects.toThrow('the registry is away');
    expect(harness.service.resolutions(1)[0]).toMatchObject({
      lazyLayers: 0,
      totalLayers: 3,
      reason: expect.stringMatching(/blockd is away/),
    });
    harness.devices.isAway = false;
    expect((await harness.pull(A, layers, { manifestDigest })).steps).toEqual(['remote', 'remote', 'remote']);
    expect(harness.service.resolutions(1)[0]).toMatchObject({ artifactDigest: manifestDigest, lazyLayers: 3, reason: null });
  });

  test('also when its lowest layers are there already, a few seconds later; and after a restart', async () => {
    const base = layers.slice(0, 1);
    await harness.pull(B, base, { manifestDigest: harness.resolver.add(B, base) });
    const manifestDigest = harness.resolver.add(A, layers);
    for (const pass of [async () => later(10_000), () => harness.restart()]) {
      harness.devices.isAway = true;
      await expect(harness.pull(A, layers, { manifestDigest, unpack: fails })).rejects.toThrow('the registry is away');
      harness.devices.isAway = false;
      await pass();
      const { top, steps } = await harness.pull(A, layers, { manifestDigest });
      expect(steps).toEqual(['exists', 'remote', 'remote']);
      for (const key of [top, [...harness.snapshotter.list([])].flat().find((info) => info.name === top)?.parent]) {
        if (key !== undefined) harness.snapshotter.remove(key);
      }
      harness.service.database.client.prepare('DELETE FROM resolutions').run();
    }
  });

  test.each(['Unauthenticated', 'PermissionDenied'] as const)(
    'nor is a registry that wants other credentials (%s), which the next pull may bring',
    async (code) => {
      const manifestDigest = harness.resolver.add(A, layers);
      const refusal = async (): Promise<never> => {
        throw new AppError(code, { op: 'ask', subject: A, what: 'the credentials were refused' });
      };
      // The manifest first, then what the data plane reads.
      for (const part of [
        vi.spyOn(harness.resolver, 'resolveManifest').mockImplementation(refusal),
        vi.spyOn(harness.devices, 'check').mockImplementation(refusal),
      ]) {
        await expect(harness.pull(A, layers, { manifestDigest, unpack: fails })).rejects.toThrow('the registry is away');
        expect(harness.service.resolutions(1)[0]).toMatchObject({
          lazyLayers: 0,
          reason: expect.stringMatching(/credentials were refused/),
        });
        part.mockRestore();
      }
      expect((await harness.pull(A, layers, { manifestDigest })).steps).toEqual(['remote', 'remote', 'remote']);
      expect(harness.service.resolutions(1)[0]).toMatchObject({ artifactDigest: manifestDigest, lazyLayers: 3, reason: null });
    },
  );

  test('the layers of one pull do not wait for it one after the other', async () => {
    later(0);
    const manifestDigest = harness.resolver.add(A, layers);
    harness.devices.isAway = true;
    const { steps } = await harness.pull(A, layers, { manifestDigest, unpack: unpackBlob });
    expect(steps).toEqual(['downloaded', 'downloaded', 'downloaded']);
    expect(checks()).toBe(1);
  });
});
