/** Blobs that a registry loses while containers read from them. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { type FakeLayer, overlaybdLayer } from '../../../support/fake-image-resolver.ts';
import { SnapshotterHarness } from '../../../support/snapshotter-harness.ts';

const IMAGE = 'r.example/team/app:1';
let harness: SnapshotterHarness;
let layers: FakeLayer[];
beforeEach(async () => {
  harness = await SnapshotterHarness.open({ watchIntervalMs: 20 });
  layers = ['0', '1', '2'].map((name) => {
    const layer = overlaybdLayer(name);
    harness.resolver.blobs.set(layer.digest, Buffer.alloc(layer.size));
    return layer;
  });
  const { top } = await harness.pull(IMAGE, layers, { manifestDigest: harness.resolver.add(IMAGE, layers) });
  await harness.container('container a', top);
  await harness.container('container b', top);
});
afterEach(async () => {
  await harness[Symbol.asyncDispose]();
});

const lossesOf = (digest: string) => harness.service.events(50, digest).filter((event) => event.type === 'blob-lost');

test('a loss is one event that names the containers, the rest of the image is fetched, and a return is told', async () => {
  const lost = layers[1]!.digest;
  const bytes = harness.resolver.blobs.get(lost)!;
  harness.resolver.blobs.delete(lost);
  await expect.poll(() => lossesOf(lost).length, { timeout: 30_000 }).toBe(1);
  const [event] = lossesOf(lost);
  expect(event?.message).toMatch(/gone from r\.example\/team\/app; .* container a, container b \(image r\.example\/team\/app:1\)/);
  await expect.poll(() => harness.devices.fetchedWhole, { timeout: 30_000 }).toEqual([layers[0]!.digest, layers[2]!.digest]);
  harness.resolver.blobs.set(lost, bytes);
  await expect
    .poll(() => harness.service.events(50, lost).map((each) => each.type), { timeout: 30_000 })
    .toEqual(['blob-found', 'blob-lost']);
});

test('what no container reads from is not watched, and trouble without an answer is no loss', async () => {
  for (const key of ['container a', 'container b']) harness.snapshotter.remove(key);
  harness.resolver.blobs.delete(layers[0]!.digest);
  await expect.poll(() => harness.devices.attached.size, { timeout: 30_000 }).toBe(0);
  const asked = harness.resolver.calls.length;
  await harness.restart();
  expect(lossesOf(layers[0]!.digest)).toEqual([]);
  expect(harness.resolver.calls.slice(asked).filter((call) => call.startsWith('size'))).toEqual([]);
});

test('a blob that the data plane has trouble with is looked at before its time', async () => {
  await harness[Symbol.asyncDispose]();
  harness = await SnapshotterHarness.open({ watchIntervalMs: 4_000 });
  for (const layer of layers) harness.resolver.blobs.set(layer.digest, Buffer.alloc(layer.size));
  const { top } = await harness.pull(IMAGE, layers, { manifestDigest: harness.resolver.add(IMAGE, layers) });
  await harness.container('c', top);
  harness.resolver.blobs.delete(layers[2]!.digest);
  harness.resolver.blobs.delete(layers[0]!.digest);
  harness.devices.troubled.push(layers[2]!.digest, sha256('not in use'));
  await expect.poll(() => lossesOf(layers[2]!.digest).length, { timeout: 30_000 }).toBe(1);
});

test('a look that fails, as on a full disk, ends neither the watch nor the process', async () => {
  const lost = layers[1]!.digest;
  const { client } = harness.service.database;
  client.exec("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END");
  const asked = harness.resolver.calls.length;
  harness.resolver.blobs.delete(lost);
  const looks = (): number => harness.resolver.calls.slice(asked).filter((call) => call.startsWith('size')).length;
  // More than two looks at three blobs.
  await expect.poll(looks, { timeout: 30_000 }).toBeGreaterThan(6);
  client.exec('DROP TRIGGER full');
  await expect.poll(() => lossesOf(lost).length, { timeout: 30_000 }).toBe(1);
});
