/**
 * kubelet's image service through the product, against real containerd: every call is answered as containerd itself answers it, many pulls run
 * at once, and calls outlive a restart of containerd and the death of the sidecar.
 */
import { existsSync, statSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { IMAGE_METHODS } from '../../support/cri-messages.ts';
import { LazyHost } from '../../support/lazy-host.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { decode, encode, type Message } from '../../support/protobuf-table.ts';
import { type RawAnswer, RawGrpc } from '../../support/raw-grpc.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';

type Method = keyof typeof IMAGE_METHODS;

const SERVICES = ['runtime.v1.ImageService', 'runtime.v1alpha2.ImageService'] as const;
const UNAVAILABLE = 14;

let stack: AsyncDisposableStack;
let host: LazyHost;
let direct: RawGrpc;
let proxied: RawGrpc;
let image: PushedImage;

beforeAll(async () => {
  await using starting = new AsyncDisposableStack();
  host = starting.use(await LazyHost.start());
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

/** A pull as kubelet makes it, for a pod of its own. */
function pullCall(reference: string, annotations: Record<string, string> = {}): { path: string; message: Uint8Array } {
  const name = `pod-${++pods}`;
  const sandboxConfig = { metadata: { name, uid: `uid-${pods}`, namespace: 'default' }, labels: { app: 'a' }, annotations };
  const message = request('PullImage', { image: { image: reference, annotations }, sandboxConfig });
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
    ['an empty request', undefined, 'RemoveImage', () => new Uint8Array()],
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
    for (const path of [`/${service.replace('Image', 'Runtime')}/Version`, '/no.such.Service/Method']) {
      const call = { path, message: new Uint8Array() };
      expect(comparable(undefined, await proxied.call(call)), path).toEqual(comparable(undefined, await direct.call(call)));
    }
    const late = await proxied.call({ path: `/${service}/ListImages`, message: new Uint8Array(), timeoutMs: -1 });
    expect(late.code).toBe(4);
  });

  test('names a directory that exists as the place of images, with at least the bytes that the store holds', async () => {
    const call = { path: `/${service}/ImageFsInfo`, message: new Uint8Array() };
    const [ours, theirs] = [await proxied.call(call), await direct.call(call)].map(
      ({ bytes }) => (decode(IMAGE_METHODS.ImageFsInfo.response, bytes!).imageFilesystems as Message[])[0]!,
    ) as [Message, Message];
    const place = (ours.fsId as Message).mountpoint as string;
    expect(existsSync(place), place).toBe(true);
    expect(statSync(place).dev).toBe(statSync(host.sidecar.root).dev);
    const store = JSON.parse(await host.sidecar.admin('GET', '/v1/store')) as { usedBytes: number };
    const used = (of: Message): number => Number((of.usedBytes as Message | undefined)?.value ?? 0);
    expect(used(ours)).toBe(used(theirs) + store.usedBytes);
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
  const pull = proxied.call({ ...pullCall(large.reference), timeoutMs: 120_000 });
  await host.containerd.stop('SIGKILL');
  const status = { path: '/runtime.v1.ImageService/ImageStatus', message: request('ImageStatus', { image: { image: image.reference } }) };
  const meanwhile = Array.from({ length: 8 }, () => proxied.call({ ...status, timeoutMs: 60_000 }));
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
