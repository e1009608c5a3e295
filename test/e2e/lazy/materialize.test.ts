/**
 * `obdctl materialize`: a lazily pulled image has no layers in containerd's content store, so that export and push fail; afterwards they
 * work, and what was exported is the image, whole, on another containerd.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Containerd } from '../../support/containerd.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { waitFor } from '../../support/wait.ts';
import { lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let image: PushedImage;

const layersInStore = async (namespace = 'default'): Promise<string[]> => {
  const { stdout } = await host.containerd.ctr(['content', 'ls', '-q'], { namespace });
  return stdout.split('\n').filter((digest) => image.layers.some((layer) => layer.digest === digest));
};

beforeAll(async () => {
  scratch = await Scratch.create('materialize');
  host = await LazyHost.start();
  const above = await layerOfEntries([{ name: 'app/' }, { name: 'app/data', content: Buffer.alloc(3_000_000, 'data') }]);
  image = await pushImage(host.registry, 'team/app', '1', await lazyBusybox(scratch, [above]));
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('an image that containerd does not know is refused with a sentence, and nothing is fetched', async () => {
  const answer = await obdctl(host, 'materialize', 'registry.example/none:1');
  expect(answer.code).toBe(1);
  expect(answer.stderr).toMatch(/^obdctl: materialize registry\.example\/none:1: containerd has no image of this name in its namespaces/);
});

test('export and push fail for missing content; after materialize both work, and the export is the image', async () => {
  const { containerd, registry } = host;
  const pulled = await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, false]);
  const archive = scratch.join('image.tar');
  const copy = `${registry.host}/team/copy:1`;
  // The messages that the README's troubleshooting names.
  await expect(containerd.ctr(['images', 'export', archive, image.reference])).rejects.toThrow(
    /content digest sha256:[0-9a-f]{64}: not found/,
  );
  await containerd.ctr(['images', 'tag', image.reference, copy]);
  await expect(containerd.ctr(['images', 'push', '--plain-http', copy])).rejects.toThrow(/content digest sha256:[0-9a-f]{64}: not found/);

  const first = await obdctl(host, '--json', 'materialize', image.reference);
  expect(first).toMatchObject({ code: 0, stderr: '' });
  expect(JSON.parse(first.stdout)).toMatchObject({
    reference: image.reference,
    manifestDigest: image.manifest.digest,
    layerCount: 2,
    totalBytes: image.layersSizeBytes,
  });
  expect((await layersInStore()).sort()).toEqual(image.layers.map((layer) => layer.digest).sort());
  const again = await obdctl(host, '--json', 'materialize', image.reference);
  expect(JSON.parse(again.stdout)).toMatchObject({ fetchedBytes: 0 });

  await containerd.ctr(['images', 'export', archive, image.reference]);
  await containerd.ctr(['images', 'push', '--plain-http', copy]);
  // Elsewhere: another containerd, without the product, holds the same manifest and layers.
  await using elsewhere = await Containerd.start();
  await elsewhere.ctr(['images', 'import', '--no-unpack', archive]);
  const held = (await elsewhere.ctr(['content', 'ls', '-q'])).stdout.split('\n');
  expect(held).toEqual(expect.arrayContaining([image.manifest.digest, image.config.digest, ...image.layers.map((layer) => layer.digest)]));
  // What was pushed is pulled again, lazily, and is the same image.
  expect((await lazyPull(containerd, copy, { snapshotter: SNAPSHOTTER })).digest).toBe(image.manifest.digest);
});

test('what was materialized lives as long as its image: collection keeps it, and takes it when the image goes', async () => {
  const { containerd, registry } = host;
  await obdctl(host, 'materialize', image.reference);
  await containerd.ctr(['images', 'pull', '--plain-http', '--snapshotter', SNAPSHOTTER, `${registry.host}/test/pause:1`]);
  // Removing with --sync waits for a collection.
  await containerd.ctr(['images', 'rm', '--sync', `${registry.host}/test/pause:1`]);
  expect(await layersInStore()).toHaveLength(2);
  expect((await containerd.ctr(['leases', 'ls', '-q'])).stdout.trim()).toBe('');
  const { stdout } = await containerd.ctr(['images', 'ls', '-q']);
  await containerd.ctr(['images', 'rm', '--sync', ...stdout.split('\n').filter(Boolean)]);
  await waitFor(async () => (await layersInStore()).length === 0, { what: 'the layers to be collected' });
});

test('every namespace that has the image gets its layers, also from two calls at once', async () => {
  const { containerd } = host;
  await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER, namespace: 'k8s.io' });
  const answers = await Promise.all([1, 2].map(() => obdctl(host, 'materialize', image.reference)));
  expect(answers.map((answer) => answer.code)).toEqual([0, 0]);
  expect(await layersInStore()).toHaveLength(2);
  expect(await layersInStore('k8s.io')).toHaveLength(2);
  expect(await runOnce(host, image.reference, 'after', '/bin/wc', '-c', '/app/data')).toBe('3000000 /app/data\n');
});
