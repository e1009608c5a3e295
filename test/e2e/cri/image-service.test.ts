/**
 * kubelet's image service through the product, against real containerd: every call is answered as containerd itself answers it, many pulls run
 * at once, and calls outlive a restart of containerd and the death of the sidecar. A container of a private image goes on reading while tokens
 * die, passwords change and the sidecar is killed, and none of its secrets is written down anywhere.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ContainerdLine } from '../../support/containerd-versions.ts';
import { Cri } from '../../support/cri.ts';
import { IMAGE_METHODS } from '../../support/cri-messages.ts';
import { cacheById, createCache, waitCache } from '../../support/image-caches.ts';
import { LazyHost } from '../../support/lazy-host.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { PrivateImage } from '../../support/private-image.ts';
import { decode, encode, type Message } from '../../support/protobuf-table.ts';
import { type RawAnswer, RawGrpc } from '../../support/raw-grpc.ts';
import { startRegistryProxy } from '../../support/registry-proxy.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';

type Method = keyof typeof IMAGE_METHODS;

const SERVICES = ['runtime.v1.ImageService', 'runtime.v1alpha2.ImageService'] as const;
const UNAVAILABLE = 14;
/** Another containerd than the system's. */
const LINE = process.env.OVERLAYBD_CONTAINERD as ContainerdLine | undefined;
/** How long a container reads under changing credentials. */
const ROTATION_MS = Number(process.env.OVERLAYBD_ROTATION_MS ?? 12_000);
/** Each is read once, so that the registry is asked; half a MiB each. */
const FILES_PER_SECOND = 4;

let stack: AsyncDisposableStack;
let host: LazyHost;
let direct: RawGrpc;
let proxied: RawGrpc;
let image: PushedImage;
let secret: PrivateImage;

beforeAll(async () => {
  await using starting = new AsyncDisposableStack();
  const scratch = starting.use(await Scratch.create('cri'));
  const fileCount = Math.ceil((ROTATION_MS / 1000) * FILES_PER_SECOND);
  secret = starting.use(await PrivateImage.start(scratch, 'team/private', { fileCount, tokenLifeMs: 5_000 }));
  const rules = `[[rules]]\nname = "team"\nnamespace = "default"\nimages = ["${secret.registry.host}/team"]\nsource = "plugin"\ncommand = "${secret.provider}"\n`;
  const rulesFile = await scratch.file('rules.toml', rules);
  host = starting.use(
    await LazyHost.start({
      containerd: LINE === undefined ? {} : { line: LINE },
      sidecar: { config: { credentials: { rules_file: rulesFile }, cri: { containerd_patience: '2m' } } },
    }),
  );
  await host.containerd.addRegistry(secret.registry.host);
  image = await pushImage(host.registry, 'cri/busybox', '1', await busyboxImage());
  direct = starting.use(new RawGrpc(host.containerd.socket));
  proxied = starting.use(new RawGrpc(host.sidecar.criSocket));
  stack = starting.move();
  expect((await proxied.call(pullCall(image.reference))).code).toBe(0);
});
afterAll(async () => {
  await stack?.disposeAsync();
});

function request(method: Method, message: Message): Uint8Array {
  return encode(IMAGE_METHODS[method].request, message);
}

let pods = 0;

const AUTO = 'k8s.aliyun.com/eci-auto-imc';

/** A pull as kubelet makes it, for a pod of its own, which wants no image cache unless told otherwise. */
function pullCall(reference: string, { namespace = 'default', auto = 'false' } = {}): { path: string; message: Uint8Array } {
  const name = `pod-${++pods}`;
  const sandboxConfig = { metadata: { name, uid: `uid-${pods}`, namespace }, labels: { app: 'a' }, annotations: { [AUTO]: auto } };
  const message = request('PullImage', { image: { image: reference }, sandboxConfig });
  return { path: '/runtime.v1.ImageService/PullImage', message };
}

/** An answer without what differs from call to call: the order of lists, and the time. */
function comparable(method: Method | undefined, answer: RawAnswer): unknown {
  const { bytes, ...rest } = answer;
  if (bytes === undefined || method === undefined) return { ...rest, bytes: bytes?.toString('hex') };
  const message = decode(IMAGE_METHODS[method].response, bytes);
  if (method === 'ListImages') (message.images as { id: string }[]).sort((a, b) => (a.id < b.id ? -1 : 1));
  return { ...rest, length: bytes.length, message };
}

describe.each(SERVICES)('%s', (service) => {
  const cases: [string, Method | undefined, string, () => Uint8Array][] = [
    ['all images', 'ListImages', 'ListImages', () => new Uint8Array()],
    ['images of a name', 'ListImages', 'ListImages', () => request('ListImages', { filter: { image: { image: image.reference } } })],
    ['an image', 'ImageStatus', 'ImageStatus', () => request('ImageStatus', { image: { image: image.reference } })],
    [
      'an image in detail',
      'ImageStatus',
      'ImageStatus',
      () => request('ImageStatus', { image: { image: image.config.digest }, verbose: true }),
    ],
    ['no image', 'ImageStatus', 'ImageStatus', () => request('ImageStatus', { image: { image: `${host.registry.host}/no/such:1` } })],
    ['a bad name', undefined, 'ImageStatus', () => request('ImageStatus', { image: { image: 'UPPER case' } })],
    ['a pull of what is there', 'PullImage', 'PullImage', () => request('PullImage', { image: { image: image.reference } })],
    ['a pull of nothing', undefined, 'PullImage', () => request('PullImage', { image: { image: `${host.registry.host}/no/such:1` } })],
    ['a pull of a bad name', undefined, 'PullImage', () => request('PullImage', { image: { image: '::' } })],
    [
      'removing nothing',
      'RemoveImage',
      'RemoveImage',
      () => request('RemoveImage', { image: { image: `${host.registry.host}/no/such:1` } }),
    ],
    ['an empty request', undefined, 'PullImage', () => new Uint8Array()],
    ['bytes that are no message', undefined, 'PullImage', () => Buffer.from('ffffffff', 'hex')],
    [
      'fields that nobody knows',
      'ImageStatus',
      'ImageStatus',
      () => Buffer.concat([request('ImageStatus', { image: { image: image.reference } }), Buffer.from('fa3e03414243', 'hex')]),
    ],
    ['an unknown method', undefined, 'NoSuchMethod', () => Buffer.from('0a0141', 'hex')],
    ['a message above containerd’s limit', undefined, 'ImageStatus', () => Buffer.alloc(17 * 1024 * 1024, 1)],
  ];

  test.each(cases)('is answered as by containerd: %s', async (_say, method, name, message) => {
    const call = { path: `/${service}/${name}`, message: message() };
    expect(comparable(method, await proxied.call(call))).toEqual(comparable(method, await direct.call(call)));
  });

  test('passes other services through, and keeps a deadline', async () => {
    expect(statSync(host.sidecar.criSocket).mode & 0o777).toBe(0o600);
    for (const path of [`/${service.replace('Image', 'Runtime')}/Version`, '/no.such.Service/Method']) {
      const call = { path, message: new Uint8Array() };
      expect(comparable(undefined, await proxied.call(call)), path).toEqual(comparable(undefined, await direct.call(call)));
    }
    const late = await proxied.call({ path: `/${service}/ListImages`, message: new Uint8Array(), timeoutMs: -1 });
    expect(late.code).toBe(4);
  });

  test('names a directory that exists as the place of images, with at least the bytes that the store holds', async () => {
    const call = { path: `/${service}/ImageFsInfo`, message: new Uint8Array() };
    const first = await direct.call(call);
    expect((await proxied.call(call)).code).toBe(first.code);
    // containerd 2 speaks the first version no longer.
    if (first.code !== 0) return;
    const usageOf = ({ bytes }: RawAnswer): Message =>
      (decode(IMAGE_METHODS.ImageFsInfo.response, bytes!).imageFilesystems as Message[])[0]!;
    const usedBytes = (usage: Message): number => Number((usage.usedBytes as Message | undefined)?.value ?? 0);
    const place = (usageOf(await proxied.call(call)).fsId as Message).mountpoint as string;
    expect(existsSync(place), place).toBe(true);
    expect(statSync(place).dev).toBe(statSync(host.sidecar.root).dev);
    // containerd looks at its snapshots every ten seconds.
    await waitFor(
      async () => {
        const [ours, theirs] = [usageOf(await proxied.call(call)), usageOf(await direct.call(call))];
        const store = JSON.parse(await host.sidecar.admin('GET', '/v1/store')) as { usedBytes: number };
        return usedBytes(ours) === usedBytes(theirs) + store.usedBytes;
      },
      { what: "containerd's bytes and the store's", timeoutMs: 60_000, everyMs: 200 },
    );
  });
});

test('32 pulls at once succeed, and a pull that is given up ends while others go on', async () => {
  const images = await Promise.all(
    Array.from({ length: 8 }, async (_, i) => {
      const layer = await layerOfEntries([{ name: `at-once-${i}`, content: Buffer.alloc(64 * 1024, i) }]);
      return pushImage(host.registry, `cri/at-once-${i}`, '1', await busyboxImage({ above: [layer] }));
    }),
  );
  const givenUp = new AbortController();
  const first = proxied.call({ ...pullCall(images[0]!.reference), signal: givenUp.signal });
  const pulls = Array.from({ length: 32 }, (_, i) => proxied.call(pullCall(images[i % images.length]!.reference)));
  givenUp.abort();
  expect((await first).code).toBe(1);
  const answers = await Promise.all(pulls);
  expect(answers.map(({ code, details }) => `${code} ${details}`)).toEqual(Array.from({ length: 32 }, () => '0 '));
  expect(new Set(answers.map(({ bytes }) => decode(IMAGE_METHODS.PullImage.response, bytes!).imageRef))).toEqual(
    new Set(images.map(({ config }) => config.digest)),
  );
});

test('calls under way and new ones outlive a restart of containerd', async () => {
  const layer = await layerOfEntries([{ name: 'restart', content: Buffer.alloc(8 * 1024 * 1024, 7) }]);
  const large = await pushImage(host.registry, 'cri/restart', '1', await busyboxImage({ above: [layer] }));
  const pull = proxied.call({ ...pullCall(large.reference), timeoutMs: 240_000 });
  await host.containerd.stop('SIGKILL');
  const status = { path: '/runtime.v1.ImageService/ImageStatus', message: request('ImageStatus', { image: { image: image.reference } }) };
  const meanwhile = Array.from({ length: 8 }, () => proxied.call({ ...status, timeoutMs: 240_000 }));
  await host.containerd.startAgain();
  expect((await Promise.all(meanwhile)).map(({ code, details }) => `${code} ${details}`)).toEqual(Array.from({ length: 8 }, () => '0 '));
  const pulled = await pull;
  expect(`${pulled.code} ${pulled.details}`).toBe('0 ');
});

test('a sidecar that is killed during pulls comes back, knows its pods, and the pulls succeed again', async () => {
  const layer = await layerOfEntries([{ name: 'killed', content: Buffer.alloc(4 * 1024 * 1024, 9) }]);
  const large = await pushImage(host.registry, 'cri/killed', '1', await busyboxImage({ above: [layer] }));
  const call = pullCall(large.reference);
  const before = await host.sidecar.waitProcess('sidecar');
  const pulls = Array.from({ length: 4 }, () => proxied.call(call));
  await host.sidecar.kill('sidecar');
  for (const { code } of await Promise.all(pulls)) expect([0, UNAVAILABLE]).toContain(code);
  await host.sidecar.waitProcess('sidecar', before, 30_000);
  // kubelet tries again, as here.
  const again = await waitFor(
    async () => {
      using client = new RawGrpc(host.sidecar.criSocket);
      const answer = await client.call(call);
      return answer.code === 0 ? answer : undefined;
    },
    { what: 'a pull through the new sidecar', timeoutMs: 60_000, everyMs: 200, details: () => host.sidecar.logTail() },
  );
  expect(decode(IMAGE_METHODS.PullImage.response, again.bytes!).imageRef).toBe(large.config.digest);
});

/** Waits until the cache that a pod's miss has caused is Ready. */
async function automaticCache(uid: string): Promise<void> {
  await waitFor(
    async () => {
      const answer = await host.sidecar.admin('GET', `/v1/image-caches?name=auto-create-for-${uid}`);
      const { imageCaches: caches } = JSON.parse(answer) as { imageCaches: { imageCacheName: string; status: string }[] };
      return caches.some(({ imageCacheName, status }) => imageCacheName === `auto-create-for-${uid}` && status === 'Ready');
    },
    { what: 'the automatic cache', timeoutMs: 120_000, everyMs: 200, details: () => host.sidecar.logTail() },
  );
}

test('a miss makes a cache of the pod, and the next pod has the image from it while the registry is stopped', async () => {
  // Another image at another try, for which there is no cache yet.
  const layer = await layerOfEntries([{ name: 'cached', content: randomBytes(8).toString('hex') }]);
  const cached = await pushImage(host.registry, `cri/cached-${layer.digest.slice(7, 15)}`, '1', await busyboxImage({ above: [layer] }));
  expect((await proxied.call(pullCall(cached.reference, { auto: 'true' }))).code).toBe(0);
  await automaticCache(`uid-${pods}`);
  await host.registry.stop();
  try {
    const hit = await proxied.call(pullCall(cached.reference, { auto: 'true' }));
    expect(`${hit.code} ${hit.details}`).toBe('0 ');
    expect(decode(IMAGE_METHODS.PullImage.response, hit.bytes!).imageRef).toBe(cached.config.digest);
  } finally {
    await host.registry.startAgain();
  }
  const explained = await host.sidecar.admin('GET', `/v1/pods/uid-${pods}`);
  expect(JSON.parse(explained)).toMatchObject({ decisions: [{ decision: 'matched-cache', outcome: 'cache' }] });
  const status = { path: '/runtime.v1.ImageService/ImageStatus', message: request('ImageStatus', { image: { image: cached.reference } }) };
  expect(decode(IMAGE_METHODS.ImageStatus.response, (await proxied.call(status)).bytes!).image).toMatchObject({ pinned: true });
  const removed = await proxied.call({ ...status, path: '/runtime.v1.ImageService/RemoveImage' });
  expect(removed.details).toContain('imc-');
});

test('a pull and a cache that is made at the same time share the download, whichever begins: the registry sends each layer once', async () => {
  // Slow enough that both are at work together.
  const link = await startRegistryProxy({ upstream: host.registry.host, rateBytesPerS: 4_000_000 });
  await using _link = { [Symbol.asyncDispose]: () => link.close() };
  await host.containerd.addRegistry(link.host);
  const pushed = async (name: string): Promise<PushedImage> => {
    const files = [0, 1, 2].map((n) => [{ name: `${name}${n}`, content: randomBytes(1_500_000) }]);
    const above = await Promise.all(files.map((entries) => layerOfEntries(entries, { gzip: true })));
    return pushImage({ url: host.registry.url, host: link.host }, `cri/${name}`, '1', await busyboxImage({ above }));
  };
  const sentOnce = async ({ layers }: PushedImage): Promise<void> => {
    for (const { digest, sizeBytes } of layers.slice(1)) {
      const sentBytes = await host.registry.blobBytesSent(digest);
      // A request that is tried again on a busy machine may send a part twice.
      expect(sentBytes, digest).toBeGreaterThanOrEqual(sizeBytes);
      expect(sentBytes, digest).toBeLessThan(1.5 * sizeBytes);
    }
  };
  const [first, second] = [await pushed('pulled'), await pushed('created')];
  await host.registry.forget();
  expect((await proxied.call(pullCall(first.reference, { auto: 'true' }))).code).toBe(0);
  await automaticCache(`uid-${pods}`);
  await sentOnce(first);

  const { imageCacheId } = await createCache(host.sidecar, {
    imageCacheName: `created-${link.host.split(':')[1]}`,
    images: [second.reference],
  });
  const begun = async (): Promise<boolean> => (await cacheById(host.sidecar, imageCacheId)).progress > 0;
  await waitFor(begun, { what: 'the cache to be under way', timeoutMs: 60_000, details: () => host.sidecar.logTail() });
  expect((await proxied.call(pullCall(second.reference))).code).toBe(0);
  await waitCache(host.sidecar, imageCacheId, 'Ready');
  await sentOnce(second);
});

test('a container of a private image reads on while tokens die, passwords change and the sidecar is killed; nobody else may have the image', async () => {
  expect((await proxied.call(pullCall(secret.reference, { namespace: 'other' }))).code, 'a pod of another namespace').not.toBe(0);
  const pulled = await proxied.call(pullCall(secret.reference));
  expect(`${pulled.code} ${pulled.details}`).toBe('0 ');
  const explained = JSON.parse(await host.sidecar.admin('GET', `/v1/pods/default%2Fpod-${pods}`)) as {
    decisions: { outcome: string; reasons: string[] }[];
  };
  expect(explained.decisions).toMatchObject([{ outcome: 'lazy' }]);
  expect(explained.decisions[0]!.reasons.join()).toContain('rule team');
  await using cri = await Cri.connect(host.containerd.socket);
  const pod = await cri.runPod('private');
  const { id } = await cri.startContainer(pod, secret.reference);
  const files = [...secret.files];
  const startedMs = performance.now();
  const wrong: string[] = [];
  for (const [i, [path, md5]] of files.entries()) {
    // One change of the password in the middle, one after which the sidecar is killed at once, and tokens that live five seconds.
    if (i === Math.floor(files.length / 3)) await secret.rotate();
    if (i === Math.floor((files.length * 2) / 3)) await host.sidecar.kill('sidecar');
    const { stdout, exitCode } = await cri.exec(id, ['/bin/busybox', 'md5sum', path], 60);
    if (exitCode !== 0 || !stdout.startsWith(md5)) wrong.push(`${path}: exit ${exitCode}, ${stdout.trim()}`);
    const dueMs = startedMs + ((i + 1) * ROTATION_MS) / files.length;
    await waitFor(() => performance.now() >= dueMs, { what: 'the next read', timeoutMs: ROTATION_MS });
  }
  expect(wrong).toEqual([]);
  const denied = await waitFor(
    async () => {
      using client = new RawGrpc(host.sidecar.criSocket);
      const answer = await client.call(pullCall(secret.reference, { namespace: 'other' }));
      return answer.code === UNAVAILABLE ? undefined : answer;
    },
    { what: 'an answer of the new sidecar', timeoutMs: 60_000, everyMs: 200 },
  );
  expect(denied.code, 'a pod of another namespace beside local blocks').not.toBe(0);
  await cri.removePod(pod.id);
  expect(secretsIn(join(host.sidecar.root, '..'))).toEqual([]);
  const { events } = JSON.parse(await host.sidecar.admin('GET', '/v1/events?limit=1000')) as { events: unknown[] };
  const shown = JSON.stringify(events) + (await host.sidecar.admin('GET', '/v1/pods'));
  for (const text of secret.secretTexts()) expect(shown).not.toContain(text);
});

/** Files of the product (log, database pages, device lists, sockets' neighbours) that hold a secret in any form. */
function secretsIn(directory: string): string[] {
  const texts = secret.secretTexts();
  const { dev } = statSync(directory);
  const look = (within: string): string[] =>
    readdirSync(within, { withFileTypes: true }).flatMap((entry) => {
      const path = join(within, entry.name);
      // Mounted images and block devices lie on other file systems.
      if (entry.isDirectory()) return statSync(path).dev === dev ? look(path) : [];
      // What the product makes for a moment may be gone.
      const size = statSync(path, { throwIfNoEntry: false })?.size;
      if (!entry.isFile() || size === undefined || size > 64 * 1024 * 1024) return [];
      const bytes = readFileSync(path);
      return texts.some((text) => bytes.includes(text)) ? [path] : [];
    });
  return look(directory);
}
