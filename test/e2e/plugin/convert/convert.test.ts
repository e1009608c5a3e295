/**
 * Conversion on a whole host: a real image of Debian packages is converted in docker-registry through the admin API, started lazily from
 * its twin, and its tree is that of the original unpacked by containerd's overlayfs snapshotter.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { JobView } from '../../../../admin/convert-schemas.ts';
import { convertCgroups } from '../../../support/convert-bench.ts';
import { DEBIAN_IMAGE_READY, debianImage } from '../../../support/debian-image.ts';
import { LazyHost, SNAPSHOTTER } from '../../../support/lazy-host.ts';
import { lazyPull } from '../../../support/lazy-pull.ts';
import { buildImage, type Image, type Layer, layerOfEntries, type PushedImage, pushImage } from '../../../support/oci-image.ts';
import { allProcesses } from '../../../support/process.ts';
import { startRegistryProxy } from '../../../support/registry-proxy.ts';
import { SnapshotView } from '../../../support/snapshot-view.ts';
import { timedStart } from '../../../support/timed-start.ts';
import { compareTrees } from '../../../support/tree-compare.ts';
import { waitFor } from '../../../support/wait.ts';
import { obdctl } from '../../lazy/lazy-images.ts';

const REPOSITORY = 'debian/app';
let host: LazyHost;
let original: PushedImage;
let image: Image;
let config: Awaited<ReturnType<typeof debianImage>>['config'];

beforeAll(async () => {
  ({ image, config } = await debianImage());
  host = await LazyHost.start();
  original = await pushImage(host.registry, REPOSITORY, '1', image);
}, 600_000);
afterAll(() => host?.[Symbol.asyncDispose]());

const job = async (id: number): Promise<JobView> => JSON.parse(await host.sidecar.admin('GET', `/v1/convert/jobs/${id}`)) as JobView;

async function log(id: number): Promise<string> {
  const { lines } = JSON.parse(await host.sidecar.admin('GET', `/v1/convert/jobs/${id}/log`)) as { lines: { message: string }[] };
  return lines.map((line) => line.message).join('\n');
}

async function convert(reference: string, more: object = {}): Promise<number> {
  const { id } = JSON.parse(await host.sidecar.admin('POST', '/v1/convert', { reference, ...more })) as JobView;
  return id;
}

async function succeeded(id: number, timeoutMs = 200_000): Promise<JobView> {
  const done = await waitFor(
    async () => {
      const now = await job(id);
      return now.state === 'SUCCESS' || now.state === 'FAILED' ? now : undefined;
    },
    { what: `job ${id}`, timeoutMs, everyMs: 100, details: () => log(id) },
  );
  expect(done.failure).toBeNull();
  return done;
}

/**
 * Differences but inherent ones: unpacking gives a directory that it changes, and that the layer does not list, the time of unpacking; so
 * the root, and `changed`. The twin, made without a clock, keeps the time of the last layer that lists it.
 */
async function differences(expected: SnapshotView, actual: SnapshotView, changed: readonly string[] = []): Promise<string[]> {
  const inherent = ['.', ...changed].flatMap((path) => [`${path}: mtime is `, `${path}: mtime_ns is `]);
  return (await compareTrees(expected.path, actual.path)).filter((line) => !inherent.some((begin) => line.startsWith(begin)));
}

/** Requests that begin an upload of a blob. */
async function uploads(): Promise<number> {
  return (await host.registry.requests()).filter((e) => e.method === 'POST' && e.uri.includes('/blobs/uploads/')).length;
}

test('a Debian image is converted, the original stays as it was, and converting it again sends no layer', async () => {
  const done = await succeeded(await convert(original.reference));
  expect(done).toMatchObject({ sourceDigest: image.manifest.digest, targetTag: '1_containerd_accelerated', attempts: 1 });
  expect(done.progress).toMatchObject({
    layersTotal: image.layers.length,
    layersDone: image.layers.length,
    readBytes: image.layersSizeBytes,
  });
  // R9: the twin of an image of tar.gz layers takes at most 130 % of it.
  expect(done.progress.convertedBytes).toBeLessThan(image.layersSizeBytes * 1.3);
  const tags = (await (await fetch(`${host.registry.url}/v2/${REPOSITORY}/tags/list`)).json()) as { tags: string[] };
  expect(tags.tags.sort()).toEqual(['1', '1_containerd_accelerated', image.manifest.digest.replace(':', '-')]);
  const accept = image.manifest.mediaType;
  const head = await fetch(`${host.registry.url}/v2/${REPOSITORY}/manifests/1`, { headers: { accept } });
  expect(head.headers.get('docker-content-digest')).toBe(image.manifest.digest);

  await host.registry.forget();
  const again = await succeeded(await convert(original.reference));
  expect(again.targetDigest).toBe(done.targetDigest);
  expect(again.progress).toMatchObject({ layersReused: image.layers.length, readBytes: 0, uploadedBytes: 0 });
  expect(await uploads()).toBe(0);
  expect(await host.registry.blobBytesSent()).toBe(image.config.bytes.length);
});

test('the twin starts lazily, and its tree is the one that containerd’s overlayfs snapshotter unpacks from the original', async () => {
  const { registry, containerd } = host;
  const reference = `${original.reference}_containerd_accelerated`;
  const start = await timedStart({ registry, containerd, snapshotter: SNAPSHOTTER, reference, name: 'lazy', ready: DEBIAN_IMAGE_READY });
  expect(start.bytesAtFirstOutput).toBeLessThan(image.layersSizeBytes / 2);
  const lazy = await lazyPull(containerd, reference, { snapshotter: SNAPSHOTTER });
  expect(lazy.layers.map((layer) => layer.isFetched)).toEqual(image.layers.map(() => false));
  const unpacked = await lazyPull(containerd, original.reference, { snapshotter: 'overlayfs', passLabels: false });
  await using expected = await SnapshotView.mount(containerd, 'overlayfs', unpacked.snapshotKey);
  await using actual = await SnapshotView.mount(containerd, SNAPSHOTTER, lazy.snapshotKey);
  expect(await differences(expected, actual)).toEqual([]);
});

test('a layer more on the same chain: only it is read, and the result starts with the new file', async () => {
  const change: Layer = await layerOfEntries(
    // Another one at another try.
    [{ name: 'app/main.py', content: `print("changed", flush=True)\n# ${randomBytes(8).toString('hex')}\n` }, { name: 'app/.wh.doc' }],
    { gzip: true },
  );
  const { registry, containerd } = host;
  const changed = await pushImage(registry, REPOSITORY, '2', buildImage([...image.layers, change], config));
  await registry.forget();
  const done = await succeeded(await convert(changed.reference));
  expect(done.progress).toMatchObject({ layersReused: image.layers.length, readBytes: change.sizeBytes });
  // The layer, and the configuration.
  expect(await uploads()).toBe(2);
  expect(await registry.blobBytesSent()).toBeLessThan(image.layersSizeBytes / 4);
  const reference = `${changed.reference}_containerd_accelerated`;
  await timedStart({ registry, containerd, snapshotter: SNAPSHOTTER, reference, name: 'changed', ready: /^changed/ });
  const lazy = await lazyPull(containerd, reference, { snapshotter: SNAPSHOTTER });
  const unpacked = await lazyPull(containerd, changed.reference, { snapshotter: 'overlayfs', passLabels: false });
  await using expected = await SnapshotView.mount(containerd, 'overlayfs', unpacked.snapshotKey);
  await using actual = await SnapshotView.mount(containerd, SNAPSHOTTER, lazy.snapshotKey);
  expect(await differences(expected, actual, ['app'])).toEqual([]);
});

/** Asks for deletion; the refusal, or what went. */
async function remove(reference: string): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await obdctl(host, 'image', 'rm', reference);
  return { code, text: stdout + stderr };
}

/** Takes images out of containerd and waits until the snapshots are gone, then deletes from the registry. */
async function removeWhenUnused(reference: string, images: readonly string[]): Promise<string> {
  await host.containerd.ctr(['images', 'rm', '--sync', ...images]);
  const gone = await waitFor(
    async () => {
      const answer = await remove(reference);
      return answer.code === 0 ? answer : undefined;
    },
    { what: `nobody to use ${reference}`, timeoutMs: 60_000, everyMs: 200 },
  );
  return gone.text;
}

const headOf = async (repository: string, object: string): Promise<number> =>
  (await fetch(`${host.registry.url}/v2/${repository}/manifests/${object}`, { headers: { accept: image.manifest.mediaType } })).status;

test('what this node reads from is not deleted: a full twin, an index-only one and the original that it needs; without users they go', async () => {
  const { registry, containerd } = host;
  const layers = await Promise.all(
    ['lower', 'upper'].map((name) =>
      layerOfEntries(
        [
          { name, content: randomBytes(100_000) },
          { name: 'who', content: name },
        ],
        { gzip: true },
      ),
    ),
  );
  for (const [mode, suffix] of [
    ['full', '_containerd_accelerated'],
    ['index-only', '_accelerated'],
  ] as const) {
    const repository = `deletion/${mode}`;
    // Layers of its own: containerd has one snapshot for equal ones.
    const own = await layerOfEntries([{ name: 'mode', content: mode }], { gzip: true });
    const base = await pushImage(registry, repository, '1', buildImage([own, ...layers]));
    const { targetDigest } = await succeeded(await convert(base.reference, { mode }));
    // The pod names the ordinary image.
    const pulled = await lazyPull(containerd, base.reference, { snapshotter: SNAPSHOTTER });
    expect(pulled.layers.map((layer) => layer.isFetched)).toEqual([false, false, false]);
    const used = await remove(`${base.reference}${suffix}`);
    expect(used).toMatchObject({ code: 1, text: expect.stringMatching(/it is in use by committed \S+/) });
    const needed = await remove(base.reference);
    expect(needed).toMatchObject({ code: 1, text: expect.stringMatching(/its accelerated image is in use by committed/) });
    expect([await headOf(repository, '1'), await headOf(repository, targetDigest!)]).toEqual([200, 200]);

    const text = await removeWhenUnused(`${base.reference}${suffix}`, [base.reference]);
    expect(text).toContain(`deleted ${registry.host}/${repository}@${targetDigest}`);
    expect([await headOf(repository, '1'), await headOf(repository, targetDigest!), await headOf(repository, `1${suffix}`)]).toEqual([
      200, 404, 404,
    ]);
    const list = await fetch(`${registry.url}/v2/${repository}/manifests/${base.manifest.digest.replace(':', '-')}`, {
      headers: { accept: 'application/vnd.oci.image.index.v1+json' },
    });
    expect(await list.json()).toMatchObject({ manifests: [] });

    // A second name of the original: this registry deletes no tag alone, so nothing goes.
    await pushImage(registry, repository, 'latest', base);
    expect((await remove(`${registry.host}/${repository}:latest`)).text).toMatch(/1 names the same image/);
    expect(await headOf(repository, 'latest')).toBe(200);
    expect((await remove(`${registry.host}/${repository}@${base.manifest.digest}`)).code).toBe(0);
    expect([await headOf(repository, '1'), await headOf(repository, 'latest')]).toEqual([404, 404]);
  }
});

test('a full copy for Docker keeps no original: it starts after the original is gone', async () => {
  const { registry, containerd } = host;
  const layer = await layerOfEntries([{ name: 'alone', content: randomBytes(50_000) }], { gzip: true });
  const base = await pushImage(registry, 'deletion/copy', '1', buildImage([layer]));
  await succeeded(await convert(base.reference, { runtime: 'docker-and-containerd' }));
  const reference = `${base.reference}_accelerated`;
  await lazyPull(containerd, reference, { snapshotter: SNAPSHOTTER });
  expect(await remove(base.reference)).toMatchObject({ code: 0 });
  expect(await headOf('deletion/copy', '1')).toBe(404);
  const lazy = await lazyPull(containerd, reference, { snapshotter: SNAPSHOTTER });
  await using view = await SnapshotView.mount(containerd, SNAPSHOTTER, lazy.snapshotKey);
  expect(readFileSync(join(view.path, 'alone'))).toHaveLength(50_000);
  expect((await remove(reference)).text).toMatch(/it is in use/);
});

test('kill -9 of the control plane in the middle: nothing of the job lives on, and the next control plane finishes it', async () => {
  const { registry, sidecar } = host;
  const slow = await startRegistryProxy({ upstream: registry.host, rateBytesPerS: 3_000_000 });
  try {
    const layers = await Promise.all(
      [2e5, 9e6].map((size) => layerOfEntries([{ name: `f${size}`, content: randomBytes(size) }], { gzip: true })),
    );
    await pushImage(registry, 'debian/killed', '1', buildImage(layers));
    const id = await convert(`${slow.host}/debian/killed:1`);
    const worker = await waitFor(() => workerPids()[0], { what: 'the conversion process' });
    await waitFor(async () => (await log(id)).includes('was uploaded'), { what: 'the first layer to be uploaded', timeoutMs: 30_000 });
    await sidecar.kill('sidecar');
    await waitFor(() => !workerPids().includes(worker), { what: 'the conversion process to go' });
    await waitFor(() => sidecar.answers(), { what: 'the control plane', timeoutMs: 30_000 });
    const done = await waitFor(() => succeeded(id), { what: 'the job', timeoutMs: 60_000 });
    expect(done.progress).toMatchObject({ layersReused: 1, layersDone: 2 });
    expect(await log(id)).toMatch(/the service was started again/);
  } finally {
    await slow.close();
  }
  expect(workerPids()).toEqual([]);
  const staging = join(sidecar.root, 'convert');
  expect(existsSync(staging) ? readdirSync(staging) : []).toEqual([]);
  expect((await convertCgroups(sidecar.root)).filter((path) => path.includes('/job-'))).toEqual([]);
});

/** Processes of conversions of this host. */
function workerPids(): number[] {
  const staging = join(host.sidecar.root, 'convert');
  return allProcesses()
    .filter((p) => p.state !== 'Z' && p.args.some((arg) => arg.startsWith(staging)))
    .map((p) => p.pid);
}
