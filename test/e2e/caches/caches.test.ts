/**
 * Image caches on a whole host: pods of cached images start with the registry stopped, whatever form the image has and whoever tries to take
 * it away, and bytes go when the last user does. One host for all; the cases build on each other in order.
 */
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ARTIFACT_TYPE } from '../../../plugin/image/oci/media-types.ts';
import { indexTars } from '../../support/converted-image.ts';
import { Cri, readCriLog } from '../../support/cri.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { cacheById, createCache, listCaches, type ShownCache, waitCache } from '../../support/image-caches.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { buildImage, layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { allProcesses, killPid } from '../../support/process.ts';
import { startRegistryProxy } from '../../support/registry-proxy.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage, busyboxLayer } from '../../support/small-images.ts';
import { asArtifact } from '../../support/twin-image.ts';
import { CacheDropper, VerifyingReader } from '../../support/verifying-reader.ts';
import { waitFor } from '../../support/wait.ts';
import { filledBytes, lazyBusybox } from '../lazy/lazy-images.ts';

const ACCOUNT = { username: 'ann', password: 'correct-horse' };

/** More than a start reads. */
const PAYLOAD_BYTES = 3_000_000;

let scratch: Scratch;
let host: LazyHost;
let cri: Cri;
let full: PushedImage;
let twin: PushedImage;
let ordinary: PushedImage;
let first: ShownCache;
let second: ShownCache;

const config = (sleeps = false) => ({ cmd: ['/bin/sh', '-c', sleeps ? 'trap "exit 0" TERM; sleep 1000000 & wait' : 'cat /etc/kind'] });
const kind = (name: string, seed: number) =>
  layerOfEntries([
    { name: 'etc/kind', content: `${name}\n` },
    { name: 'payload', content: filledBytes(PAYLOAD_BYTES, seed) },
  ]);

/** An ordinary image, and its index-only twin under the tag that converters write. */
async function pushTwins(): Promise<PushedImage> {
  const layers = [await busyboxLayer(), await kind('twin', 2)];
  const paths: string[] = [];
  for (const [index, layer] of layers.entries()) {
    paths.push(scratch.join(`twin${index}.tar`));
    await writeFile(paths[index]!, layer.blob);
  }
  const base = buildImage(layers, config());
  const converted = await indexTars(paths, { config: config(), stagingDirectory: scratch.join('twin-converted') });
  await pushImage(host.registry, 'caches/twin', '1_accelerated', asArtifact(converted, ARTIFACT_TYPE.turbo, base));
  return pushImage(host.registry, 'caches/twin', '1', base);
}

beforeAll(async () => {
  scratch = await Scratch.create('caches');
  host = await LazyHost.start();
  cri = await Cri.connect(host.containerd.socket);
  full = await pushImage(host.registry, 'caches/full', '1', await lazyBusybox(scratch, [await kind('full', 1)], config()));
  twin = await pushTwins();
  ordinary = await pushImage(
    host.registry,
    'caches/ordinary',
    '1',
    await busyboxImage({ config: config(), above: [await kind('ordinary', 3)] }),
  );
});

afterAll(async () => {
  await cri?.[Symbol.asyncDispose]();
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

/** A name that another try of the same test has not taken. */
const once = (name: string): string => `${name}-${randomBytes(3).toString('hex')}`;

/** The registry behind a slow link, under a name of its own. */
async function slowLink(of: LazyHost, rateBytesPerS: number) {
  const link = await startRegistryProxy({ upstream: of.registry.host, rateBytesPerS });
  await of.containerd.addRegistry(link.host);
  const push = { url: of.registry.url, host: link.host };
  return { ...link, push, [Symbol.asyncDispose]: () => link.close() };
}

/** The root of a running container, as it sees it. */
async function rootOf(of: LazyHost, containerId: string): Promise<string> {
  const { stdout } = await of.containerd.ctr(['tasks', 'ls'], { namespace: 'k8s.io' });
  const [, pid] =
    stdout
      .split('\n')
      .map((line) => line.split(/\s+/))
      .find(([id]) => id === containerId) ?? [];
  return `/proc/${pid}/root`;
}

const kinds = (): Record<string, PushedImage> => ({ full, twin, ordinary });

/** The image as CRI knows it; what IfNotPresent asks. */
async function known(reference: string): Promise<boolean> {
  return (await cri.images('ImageStatus', { image: { image: reference } })).image !== undefined;
}

async function untilKnown(): Promise<void> {
  for (const { reference } of Object.values(kinds())) {
    await waitFor(() => known(reference), { what: `CRI to know ${reference}`, timeoutMs: 60_000, details: () => host.sidecar.logTail() });
  }
}

/** Runs every cached image in a pod of its own, as kubelet does with IfNotPresent, and expects what it prints. */
async function startAll(round: string): Promise<void> {
  await untilKnown();
  for (const [name, image] of Object.entries(kinds())) {
    const pod = await cri.runPod(`${name}-${round}`);
    const container = await cri.startContainer(pod, image.reference);
    expect(await cri.waitExit(container.id), `${name} ${round}`).toMatchObject({ exitCode: 0 });
    expect((await readCriLog(container.logPath)).map(({ text }) => text)).toEqual([name]);
    await cri.removePod(pod.id);
  }
}

async function forceCollection(): Promise<void> {
  const lease = once('collect');
  await host.containerd.ctr(['leases', 'create', '--id', lease], { namespace: 'k8s.io' });
  await host.containerd.ctr(['leases', 'delete', '--sync', lease], { namespace: 'k8s.io' });
}

async function storeBytes(): Promise<{ usedBytes: number; diskBytes: number }> {
  const { usedBytes } = JSON.parse(await host.sidecar.admin('GET', '/v1/store')) as { usedBytes: number };
  const du = execFileSync('du', ['-s', '--block-size=1', join(host.sidecar.root, 'store')], { encoding: 'utf8' });
  return { usedBytes, diskBytes: Number(du.split('\t')[0]) };
}

/** The ledger, when it is what the disk has. */
async function settledBytes(): Promise<{ usedBytes: number }> {
  const look = async () => {
    const bytes = await storeBytes();
    return bytes.usedBytes === bytes.diskBytes ? bytes : undefined;
  };
  return waitFor(look, { what: 'the ledger to be what du says', timeoutMs: 60_000 });
}

const blobFiles = (digest: string): string[] =>
  execFileSync('find', [join(host.sidecar.root, 'store'), '-name', `${digest.slice('sha256:'.length)}.*`], { encoding: 'utf8' })
    .split('\n')
    .filter(Boolean);

/** With what a test that had to be tried again has left. */
async function dropCaches(): Promise<void> {
  for (const { imageCacheId } of await listCaches(host.sidecar)) await host.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
}

test('two caches become Ready, and the registry sends each blob once', async () => {
  await dropCaches();
  await cri.pullImage(`${host.registry.host}/test/pause:1`);
  await host.registry.forget();
  const made = [
    await createCache(host.sidecar, { imageCacheName: once('first'), images: [full.reference, twin.reference] }),
    await createCache(host.sidecar, { imageCacheName: once('second'), images: [ordinary.reference, full.reference] }),
  ];
  [first, second] = (await Promise.all(made.map(({ imageCacheId }) => waitCache(host.sidecar, imageCacheId, 'Ready')))) as [
    ShownCache,
    ShownCache,
  ];
  const layers = [...full.layers, ...twin.layers, ...ordinary.layers];
  for (const { digest, sizeBytes } of layers) {
    // A request that is tried again on a busy machine may send a part twice.
    expect(await host.registry.blobBytesSent(digest), digest).toBeLessThan(1.5 * sizeBytes);
  }
});

test('a creation survives the death of its process, of the control plane and of the data plane', async () => {
  const above = [await layerOfEntries([{ name: 'payload', content: randomBytes(20_000_000) }], { gzip: true })];
  const { reference } = await pushImage(host.registry, 'caches/killed', '1', await busyboxImage({ config: config(), above }));
  const { imageCacheId } = await createCache(host.sidecar, { imageCacheName: once('killed'), images: [reference] });
  const worker = (): number | undefined =>
    allProcesses().find(
      ({ args, state }) => state !== 'Z' && args.some((one) => one.endsWith('/cache/create/worker.ts')) && args.includes(reference),
    )?.pid;
  await killPid(await waitFor(worker, { what: 'the process that makes the image', timeoutMs: 30_000, everyMs: 5 }));
  await host.sidecar.kill('sidecar');
  await host.sidecar.kill('blockd');
  await waitCache(host.sidecar, imageCacheId, 'Ready');
  await host.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
  const leases = async (): Promise<string> => (await host.containerd.ctr(['leases', 'ls'], { namespace: 'k8s.io' })).stdout;
  await waitFor(async () => !(await leases()).includes(imageCacheId), { what: 'the leases of the deleted cache to go', timeoutMs: 60_000 });
  expect(readdirSync(join(host.sidecar.root, 'pins')).filter((name) => name.startsWith(imageCacheId))).toEqual([]);
  expect(await known(reference)).toBe(false);
});

test('blobs that are here are not downloaded again; the flag for reuse decides whether they are believed or checked anew', async () => {
  await host.registry.forget();
  const [layer] = full.layers.slice(-1);
  const made = async (
    imageCacheName: string,
    autoMatchImageCache: boolean,
  ): Promise<{ cache: ShownCache; reused: string; sentBytes: number }> => {
    const { imageCacheId } = await createCache(host.sidecar, {
      imageCacheName: once(imageCacheName),
      images: [full.reference],
      autoMatchImageCache,
    });
    const cache = await waitCache(host.sidecar, imageCacheId, 'Ready');
    const reused = cache.events.filter(({ reason }) => reason === 'Reused').map(({ message }) => message);
    const sentBytes = await host.registry.blobBytesSent(layer!.digest);
    await host.registry.forget();
    return { cache, reused: reused.join('\n'), sentBytes };
  };
  const trusting = await made('trusting', true);
  expect(trusting).toMatchObject({ reused: expect.stringContaining('taken as they were checked'), sentBytes: 0 });
  const checking = await made('checking', false);
  expect(checking).toMatchObject({ reused: expect.stringContaining('checked anew'), sentBytes: 0 });

  // A bit that turned over on the disk since the blob was checked.
  const [directory] = blobFiles(layer!.digest);
  await using file = await open(join(directory!, 'data'), 'r+');
  const at = Math.floor(layer!.sizeBytes / 2);
  const { buffer } = await file.read(Buffer.alloc(1), 0, 1, at);
  await file.write(Buffer.from([buffer[0]! ^ 1]), 0, 1, at);
  expect(await made('still-trusting', true)).toMatchObject({ sentBytes: 0 });
  const healed = await made('checking-again', false);
  expect(healed.sentBytes).toBeGreaterThanOrEqual(layer!.sizeBytes);
  const { buffer: after } = await file.read(Buffer.alloc(1), 0, 1, at);
  expect(after[0]).toBe(buffer[0]);
  const all = await listCaches(host.sidecar);
  for (const { imageCacheId } of all.filter(({ imageCacheName }) => /trusting|checking/.test(imageCacheName))) {
    await host.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
  }
});

/** All that caches can leave behind: in containerd, and on the product's disk. */
async function everything(): Promise<Record<string, string[]>> {
  const listed = async (...args: string[]): Promise<string[]> =>
    (await host.containerd.ctr(args, { namespace: 'k8s.io' })).stdout.split('\n').filter(Boolean).sort();
  const isOwn = (line: string): boolean => !/(^|\/)(sidecar\.db|.*\.log)/.test(line);
  return {
    content: await listed('content', 'ls', '-q'),
    snapshots: (await listed('snapshots', '--snapshotter', SNAPSHOTTER, 'ls')).map((line) => line.split(/\s+/)[0]!),
    images: await listed('images', 'ls', '-q'),
    leases: (await listed('leases', 'ls')).map((line) => line.split(/\s+/)[0]!),
    files: execFileSync('find', ['.', '-xdev', '-mindepth', '1'], { cwd: host.sidecar.root, encoding: 'utf8' })
      .split('\n')
      .filter(isOwn)
      .sort(),
  };
}

test('a cache that fails says why, with both sizes when it is too large, and leaves nothing anywhere', async () => {
  await forceCollection();
  const { committedBytes } = JSON.parse(await host.sidecar.admin('GET', '/v1/usage')) as { committedBytes: number };
  const before = await everything();
  const fine = await pushImage(host.registry, 'caches/fine', '1', await lazyBusybox(scratch, [await kind('fine', 8)], config()));
  const own = await layerOfEntries([{ name: 'own', content: filledBytes(300_000, 9) }], { gzip: true });
  const other = await layerOfEntries([{ name: 'other', content: filledBytes(300_000, 10) }], { gzip: true });
  await pushImage(host.registry, 'caches/failing', 'honest', buildImage([own, other], config()));
  const largeBytes = 21 * 2 ** 30;
  const large = await pushImage(host.registry, 'caches/failing', 'large', buildImage([own, { ...other, sizeBytes: largeBytes }], config()));
  const broken = await pushImage(host.registry, 'caches/failing', 'broken', buildImage([own, { ...other, diffId: own.diffId }], config()));
  const failureOf = async (imageCacheName: string, reference: string): Promise<string> => {
    const { imageCacheId } = await createCache(host.sidecar, { imageCacheName: once(imageCacheName), images: [fine.reference, reference] });
    const { events } = await waitCache(host.sidecar, imageCacheId, 'Failed');
    return events.find(({ reason }) => reason === 'Failed')?.message ?? '';
  };
  // Of the one nothing came yet; of the other one image was whole, and of the next a layer was unpacked.
  const told = await failureOf('too-large', large.reference);
  const [, needed, limit] = /take .* \((\d+) bytes\), and its size is .* \((\d+) bytes\)/.exec(told) ?? [];
  expect(Number(needed), told).toBeGreaterThan(largeBytes);
  expect(Number(limit), told).toBe(20 * 2 ** 30);
  expect(await failureOf('broken', broken.reference)).toContain("the image's configuration says");
  await waitFor(async () => isDeepStrictEqual(await everything(), before), {
    what: 'nothing to be left of two caches that failed',
    timeoutMs: 60_000,
    details: async () => JSON.stringify({ before, now: await everything() }, undefined, 1),
  });
  await settledBytes();
  expect(JSON.parse(await host.sidecar.admin('GET', '/v1/usage'))).toMatchObject({ committedBytes });
});

test('images of a private registry come with the credentials of their cache, which show nowhere', async () => {
  await using registry = await DockerRegistry.start({ htpasswd: ACCOUNT });
  // Others at another try: the registry of the first is gone.
  const above = [await kind('private', randomBytes(4).readUInt32LE())];
  const images = [
    await pushImage(registry, 'private/full', '1', await lazyBusybox(scratch, above, config())),
    await pushImage(registry, 'private/ordinary', '1', await busyboxImage({ config: config(), above })),
  ].map(({ reference }) => reference);
  const create = (imageCacheName: string, password: string): Promise<ShownCache> => {
    const imageRegistryCredentials = [{ server: registry.host, userName: ACCOUNT.username, password }];
    return createCache(host.sidecar, { imageCacheName: once(imageCacheName), images, imageRegistryCredentials });
  };
  const wrong = await create('wrong', 'battery-staple');
  await waitCache(host.sidecar, wrong.imageCacheId, 'Failed');
  const right = await create('right', ACCOUNT.password);
  const shown = await waitCache(host.sidecar, right.imageCacheId, 'Ready');
  expect(readdirSync(join(host.sidecar.root, 'pins')).filter((name) => name.startsWith(wrong.imageCacheId))).toEqual([]);
  for (const text of [JSON.stringify(shown), readFileSync(host.sidecar.logPath, 'utf8')]) {
    expect(text).not.toContain(ACCOUNT.password);
    expect(text).not.toContain('battery-staple');
  }
  for (const { imageCacheId } of [wrong, right]) await host.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
});

test('with the registry stopped, pods of all cached images start', async () => {
  await host.registry.stop();
  await startAll('offline');
});

test('containerd knows them as its own: records, labels, leases', async () => {
  const { stdout } = await host.containerd.ctr(['images', 'ls'], { namespace: 'k8s.io' });
  const line = stdout.split('\n').find((text) => text.startsWith(twin.reference));
  expect(line).toContain('io.cri-containerd.image=managed');
  expect(stdout).toContain(`${host.registry.host}/caches/twin@${twin.manifest.digest}`);
  expect(stdout).toContain(full.config.digest);
  const leases = (await host.containerd.ctr(['leases', 'ls'], { namespace: 'k8s.io' })).stdout;
  for (const cache of [first, second]) expect(leases).toContain(cache.imageCacheId);
});

test('a forced collection, ctr images rm, RemoveImage and a restart of containerd take nothing away', async () => {
  await forceCollection();
  await startAll('collected');
  for (const { reference } of Object.values(kinds())) {
    await host.containerd.ctr(['images', 'rm', '--sync', reference], { namespace: 'k8s.io' });
  }
  await forceCollection();
  await startAll('ctr-removed');
  for (const { reference } of Object.values(kinds())) await cri.removeImage(reference);
  await forceCollection();
  await startAll('cri-removed');
  await host.containerd.restart();
  await forceCollection();
  await startAll('restarted');
});

test('deleting a cache in use frees bytes when its last container has ended', async () => {
  const originals = twin.layers.map(({ digest }) => digest);
  const pod = await cri.runPod('user');
  const container = await cri.startContainer(pod, twin.reference, {
    command: ['/bin/sh', '-c', 'trap "exit 0" TERM; sleep 1000000 & wait'],
  });
  const before = await storeBytes();
  await host.sidecar.admin('DELETE', `/v1/image-caches/${first.imageCacheId}`);
  await forceCollection();
  const script = 'wc -c < /payload; cat /etc/kind';
  const { stdout } = await cri.exec(container.id, ['/bin/sh', '-c', script]);
  expect(stdout).toBe(`${PAYLOAD_BYTES}\ntwin\n`);
  expect(originals.every((digest) => blobFiles(digest).length > 0)).toBe(true);
  // What the other cache has stays.
  expect(await known(full.reference)).toBe(true);

  await cri.removePod(pod.id);
  await waitFor(() => originals.every((digest) => blobFiles(digest).length === 0), {
    what: 'bytes of the deleted cache to go',
    timeoutMs: 90_000,
    details: () => host.sidecar.logTail(),
  });
  await waitFor(async () => !(await known(twin.reference)), { what: 'the image record to go', timeoutMs: 60_000 });
  expect(full.layers.every(({ digest }) => blobFiles(digest).length > 0)).toBe(true);
  expect((await settledBytes()).usedBytes).toBeLessThan(before.usedBytes - PAYLOAD_BYTES);
});

test('with the last cache everything goes: leases, pins, records, unpacked layers', async () => {
  await dropCaches();
  await waitFor(async () => !(await known(full.reference)) && !(await known(ordinary.reference)), {
    what: 'image records to go',
    timeoutMs: 60_000,
  });
  await waitFor(async () => !(await host.containerd.ctr(['leases', 'ls'], { namespace: 'k8s.io' })).stdout.includes('imc-'), {
    what: 'leases to go',
    timeoutMs: 60_000,
  });
  await forceCollection();
  const { stdout } = await host.containerd.ctr(['snapshots', '--snapshotter', SNAPSHOTTER, 'ls'], { namespace: 'k8s.io' });
  // The pause image, which CRI pulled itself, is all that is left.
  expect(stdout.split('\n').filter((line) => line.includes('sha256:'))).toHaveLength(1);
  const left = (): string[] => full.layers.flatMap(({ digest }) => blobFiles(digest));
  await waitFor(() => left().length === 0, { what: 'the blobs of the last cache to go', timeoutMs: 60_000 });
  expect(existsSync(join(host.sidecar.root, 'image-caches'))).toBe(true);
  await settledBytes();
});

test('a container of a flash cache starts without its registry before the cache is whole, and reads right while it becomes so', async () => {
  await using other = await LazyHost.start({ containerd: { line: '2' } });
  // Slow enough that the cache is not whole for a quarter of a minute.
  await using link = await slowLink(other, 1_500_000);
  const payload = filledBytes(24_000_000, 7);
  const above = [
    await layerOfEntries([
      { name: 'etc/kind', content: 'flash\n' },
      { name: 'payload', content: payload },
    ]),
  ];
  const image = await pushImage(link.push, 'caches/flash', '1', await lazyBusybox(scratch, above, config()));
  await using its = await Cri.connect(other.containerd.socket);
  await its.pullImage(`${other.registry.host}/test/pause:1`);

  const { imageCacheId } = await createCache(other.sidecar, { imageCacheName: 'flash', images: [image.reference], flash: true });
  const shown = await waitCache(other.sidecar, imageCacheId, 'Ready');
  await other.registry.stop();
  expect(shown.events.map(({ reason }) => reason)).toContain('StartRead');
  const pod = await its.runPod('flash');
  const started = await its.startContainer(pod, image.reference);
  expect(await its.waitExit(started.id), other.sidecar.logTail()).toMatchObject({ exitCode: 0 });
  expect((await readCriLog(started.logPath)).map(({ text }) => text)).toEqual(['flash']);
  const progress = async (): Promise<number> => (await cacheById(other.sidecar, imageCacheId)).progress;
  expect(await progress()).toBeLessThan(100);

  await other.registry.startAgain();
  link.setLink({ rateBytesPerS: 24_000_000 });
  const command = ['/bin/sh', '-c', 'trap "exit 0" TERM; sleep 1000000 & wait'];
  const container = await its.startContainer(pod, image.reference, { name: 'reader', command });
  const files = [{ path: 'payload', size: payload.length, sha256: createHash('sha256').update(payload).digest('hex') }];
  const root = await rootOf(other, container.id);
  await using reader = await VerifyingReader.start({ root, mode: 'read', files, seed: 1 });
  // So that each pass goes through the data plane.
  await using _cold = new CacheDropper(200);
  await waitFor(async () => (await progress()) === 100, {
    what: 'the flash cache to be whole',
    timeoutMs: 120_000,
    details: () => other.sidecar.logTail(),
  });
  await reader.waitPasses(2);
  expect(await reader.stop()).toMatchObject({ errors: [], wrong: [] });
  expect((await cacheById(other.sidecar, imageCacheId)).status).toBe('Ready');
  await its.removePod(pod.id);

  // A containerd that knows pinned images is told.
  const record = async (): Promise<string> =>
    (await other.containerd.ctr(['images', 'ls'], { namespace: 'k8s.io' })).stdout
      .split('\n')
      .find((line) => line.startsWith(image.reference)) ?? '';
  expect(await record()).toContain('io.cri-containerd.pinned=pinned');
  const isPinned = async (): Promise<boolean | undefined> => {
    const { images } = await its.images('ListImages', {});
    return (images as { repoTags: string[]; pinned?: boolean }[]).find(({ repoTags }) => repoTags.includes(image.reference))?.pinned;
  };
  await waitFor(isPinned, { what: 'CRI to list the image as pinned', timeoutMs: 30_000 });
  // What a pull with imagePullPolicy Always does: the record is the puller's then, and stays when the cache goes, no longer pinned.
  await its.pullImage(image.reference);
  await other.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
  await waitFor(async () => !(await record()).includes('pinned=pinned'), { what: 'the pin to go', timeoutMs: 30_000 });
});
