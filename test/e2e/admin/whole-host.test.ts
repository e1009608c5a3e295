/**
 * The admin API and obdctl on a whole host with containerd and a registry. `obdctl materialize`: a lazily pulled image has no layers in
 * containerd's content store, so that export and push fail; afterwards they work, and what was exported is the image, whole, on another
 * containerd. Every example of the README is run with real curl, and each answer fits the OpenAPI document. The vendor's actions and obdctl
 * steer caches that are Ready.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { CacheWatch } from '../../support/cache-watch.ts';
import { Containerd } from '../../support/containerd.ts';
import { Cri, readCriLog } from '../../support/cri.ts';
import { IMAGE_METHODS } from '../../support/cri-messages.ts';
import { createCache, listCaches, waitCache } from '../../support/image-caches.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { freePort } from '../../support/net.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { type ApiDocument, answerMisfit, operationOf, operationsOf } from '../../support/openapi.ts';
import { run } from '../../support/process.ts';
import { encode } from '../../support/protobuf-table.ts';
import { RawGrpc } from '../../support/raw-grpc.ts';
import { type ExampleAnswer, readmeExamples, runExample } from '../../support/readme-examples.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';
import { lazyBusybox, OBDCTL, obdctl, runOnce } from '../lazy/lazy-images.ts';
import { ask } from './bad-input.ts';

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
  // What a first try has materialized.
  await containerd.removeEverything();
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
  await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
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

/** A registry that takes connections and never says anything: what asks it goes on until it is told otherwise. */
async function silentRegistry(): Promise<{ host: string } & Disposable> {
  const server = createServer(() => {}).listen(await freePort(), '127.0.0.1');
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => {
    socket.on('error', () => socket.destroy());
    sockets.add(socket);
  });
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  return {
    host: `127.0.0.1:${port}`,
    [Symbol.dispose]: () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** Names are free again for a test that is tried once more. */
async function dropCaches(): Promise<void> {
  for (const { imageCacheId } of await listCaches(host.sidecar)) await host.sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
}

/** What kubelet does for a pod's first image. */
async function pullForPod(namespace: string, name: string, reference: string): Promise<void> {
  using client = new RawGrpc(host.sidecar.criSocket);
  const annotations = { 'k8s.aliyun.com/eci-auto-imc': 'false' };
  const sandboxConfig = { metadata: { name, uid: `uid-${name}`, namespace }, labels: {}, annotations };
  const message = encode(IMAGE_METHODS.PullImage.request, { image: { image: reference }, sandboxConfig });
  const { code, details } = await client.call({ path: '/runtime.v1.ImageService/PullImage', message });
  expect(`${code} ${details}`).toBe('0 ');
}

test('every example of the README works with real curl, in its order, and each answer is what the OpenAPI document says', async () => {
  await dropCaches();
  using silent = await silentRegistry();
  const { registry, sidecar } = host;
  for (const [repository, tag] of [
    ['team/example', '1'],
    ['team/example', '0'],
    ['nginx', '1.27'],
  ] as const) {
    await pushImage(
      registry,
      repository,
      tag,
      await busyboxImage({ above: [await layerOfEntries([{ name: 'tag', content: `${repository} ${tag}` }])] }),
    );
  }
  const document = JSON.parse(await sidecar.admin('GET', '/v1/openapi.json')) as ApiDocument;
  const env: Record<string, string> = { S: sidecar.adminSocket };
  // What stands in the README, and what an operator has in its place: names of images, and ids of earlier answers.
  const names: [string | RegExp, string][] = [
    ['registry.example%2Fteam', `${encodeURIComponent(registry.host)}%2Fteam`],
    ['registry.example/team/app', `${registry.host}/team/example`],
    ['"registry.example"', `"${registry.host}"`],
    ['nginx:1.27', `${registry.host}/nginx:1.27`],
  ];
  const idsOf: Readonly<Record<string, (id: string) => void>> = {
    'POST /v1/conversions': (id) => names.unshift([/conversions\/7\b/, `conversions/${id}`]),
    'POST /v1/conversion-rules': (id) => names.unshift([/conversion-rules\/1\b/, `conversion-rules/${id}`]),
    'POST /v1/convert/notifications': (id) => names.unshift([/notifications\/1\b/, `notifications/${id}`]),
    'POST /v1/image-caches': (id) => (env.ID = id),
    'POST /v1/tokens': (id) => (env.TOKEN_ID = id),
  };
  const before: readonly [RegExp, () => Promise<void>][] = [
    [
      /if-match/,
      async () => {
        await waitCache(sidecar, env.ID!, 'Ready');
        const { version } = JSON.parse(await sidecar.admin('GET', `/v1/image-caches/${env.ID}`)) as { version: number };
        names.unshift(['if-match: "1"', `if-match: "${version}"`]);
      },
    ],
    [
      /\/cancel/,
      async () => {
        const { id } = JSON.parse(await sidecar.admin('POST', '/v1/conversions', { reference: `${silent.host}/team/app:1` })) as {
          id: number;
        };
        names.unshift([/conversions\/7\b/, `conversions/${id}`]);
      },
    ],
    [
      /v1\/ready|healthz/,
      async () => void (await waitFor(() => sidecar.admin('GET', '/v1/ready'), { what: 'every part to work', timeoutMs: 60_000 })),
    ],
    [/v1\/materialize/, () => pullForPod('team', 'web-0', `${registry.host}/team/example:1`)],
  ];
  const called = new Set<string>();
  const wrong: string[] = [];
  const check = (example: string, answer: ExampleAnswer): void => {
    const [path] = answer.path.split('?') as [string];
    const operation = operationOf(document, answer.method, path);
    called.add(`${operation?.method} ${operation?.path}`);
    const misfit = operation === undefined ? 'is not documented' : answerMisfit(document, operation, answer);
    if (misfit !== undefined || answer.status >= 300) wrong.push(`${example}: ${answer.status} ${misfit}: ${answer.body.slice(0, 300)}`);
    if (answer.body.includes('"secret"')) wrong.push(`${example}: the secret comes back`);
  };
  for (const example of readmeExamples()) {
    for (const [pattern, prepare] of before) if (pattern.test(example)) await prepare();
    const filled = names.reduce(
      (text, [name, value]) => text.replaceAll(typeof name === 'string' ? name : new RegExp(name, 'g'), value),
      example,
    );
    const answer = await runExample(filled, env);
    check(filled, answer);
    if (answer.type !== 'application/json') continue;
    const { id, imageCacheId } = JSON.parse(answer.body) as { id?: string | number; imageCacheId?: string };
    idsOf[`${answer.method} ${answer.path}`]?.(String(id ?? imageCacheId));
  }
  expect(wrong).toEqual([]);
  expect(operationsOf(document).filter(({ method, path }) => !called.has(`${method} ${path}`))).toEqual([]);
});

/** One of the vendor's actions, as a form by curl. */
async function action(params: Readonly<Record<string, string>>): Promise<{ status: number; body: Record<string, unknown> }> {
  const data = Object.entries(params).flatMap(([name, value]) => ['--data-urlencode', `${name}=${value}`]);
  const args = ['-sS', '--max-time', '60', '-w', '\n%{http_code}', '--unix-socket', host.sidecar.adminSocket, 'http://localhost/', ...data];
  const { stdout } = await run('curl', args);
  const end = stdout.lastIndexOf('\n');
  return { status: Number(stdout.slice(end + 1)), body: JSON.parse(stdout.slice(0, end)) as Record<string, unknown> };
}

test('the vendor’s actions make, describe, change and delete a cache that becomes Ready', async () => {
  await dropCaches();
  const made = await action({
    Action: 'CreateImageCache',
    ImageCacheName: 'by-action',
    'Image.1': image.reference,
    'Tag.1.Key': 'team',
    'Tag.1.Value': 'api',
  });
  expect(made).toMatchObject({ status: 200, body: { ImageCacheId: expect.stringMatching(/^imc-/), ContainerGroupId: expect.any(String) } });
  const id = String(made.body.ImageCacheId);
  await waitCache(host.sidecar, id, 'Ready');
  const described = async () => (await action({ Action: 'DescribeImageCaches', ImageCacheId: id })).body;
  expect(await described()).toMatchObject({
    TotalCount: 1,
    ImageCaches: [
      { ImageCacheName: 'by-action', Status: 'Ready', Progress: '100%', Images: [image.reference], Tags: [{ Key: 'team', Value: 'api' }] },
    ],
  });
  const matched = await action({ Action: 'DescribeImageCaches', 'MatchImage.1': image.reference, ImageFullMatch: 'true' });
  expect(matched.body).toMatchObject({ ImageCaches: [expect.objectContaining({ ImageCacheId: id })] });
  expect(await action({ Action: 'UpdateImageCache', ImageCacheId: id, RetentionDays: '3', EliminationStrategy: 'LRU' })).toMatchObject({
    status: 200,
  });
  expect(await described()).toMatchObject({
    ImageCaches: [{ RetentionDays: 3, EliminationStrategy: 'LRU', ExpireDateTime: expect.any(String) }],
  });
  expect(await action({ Action: 'UpdateImageCache', ImageCacheId: id, RetentionDays: '3' })).toMatchObject({
    status: 400,
    body: { Code: 'NoNeedUpdate' },
  });
  // Eight who have seen the same: one is right, the others are told.
  const path = `/v1/image-caches/${id}`;
  const versionOf = async () => (JSON.parse(await host.sidecar.admin('GET', path)) as { version: number }).version;
  const version = await versionOf();
  const headers = { 'content-type': 'application/json', 'if-match': `"${version}"` };
  const patches = [11, 12, 13, 14, 15, 16, 17, 18].map((retentionDays) => JSON.stringify({ retentionDays }));
  const answers = await Promise.all(patches.map((body) => ask(host.sidecar.adminSocket, { method: 'PATCH', path, body, headers })));
  expect(answers.map(({ status }) => status).sort()).toEqual([200, 412, 412, 412, 412, 412, 412, 412]);
  expect(await versionOf()).toBe(version + 1);
  expect((await action({ Action: 'ListUsage' })).body.Attributes).toMatchObject({
    MaxImageCacheCount: 500,
    UsedImageCacheBytes: expect.any(Number),
  });
  expect((await action({ Action: 'DeleteImageCache', ImageCacheId: id })).status).toBe(200);
  expect(await described()).toMatchObject({ TotalCount: 0 });
  // Once more is no failure: the first answer may have been lost.
  expect((await action({ Action: 'DeleteImageCache', ImageCacheId: id })).status).toBe(200);
});

test('obdctl makes a cache and waits until it is Ready, shows, matches and changes it, follows its events, and removes it', async () => {
  await dropCaches();
  const waited = await obdctl(host, 'cache', 'create', 'by-hand', image.reference, '--tag', 'team=web', '--wait');
  expect(waited).toMatchObject({ code: 0, stderr: '' });
  expect(waited.stdout).toMatch(/ Accepted: [\s\S]* Ready: [^\n]*\n$/);
  const follower = spawn(process.execPath, [
    OBDCTL,
    '--socket',
    host.sidecar.adminSocket,
    '-o',
    'table',
    'cache',
    'events',
    'by-hand',
    '-f',
  ]);
  const gone = once(follower, 'exit');
  let followed = '';
  follower.stdout.setEncoding('utf8').on('data', (chunk: string) => (followed += chunk));
  try {
    const [listed, shown, matched, json] = await Promise.all([
      obdctl(host, 'cache', 'ls', '--status', 'Ready', '--tag', 'team=web'),
      obdctl(host, 'cache', 'show', 'by-hand'),
      obdctl(host, 'cache', 'match', image.reference, '--perfect'),
      obdctl(host, 'cache', 'show', 'by-hand', '-o', 'json'),
    ]);
    expect(listed.stdout).toMatch(/by-hand +Ready +1 /);
    expect(shown.stdout).toContain(image.manifest.digest);
    expect(matched.stdout).toMatch(/^matched imc-\w{20}: /);
    expect(JSON.parse(json.stdout)).toMatchObject({ status: 'Ready', progress: 100, tags: [{ key: 'team', value: 'web' }] });
    await waitFor(() => followed.includes('Ready'), { what: 'obdctl to tell the events', timeoutMs: 60_000 });
    const updated = await obdctl(host, 'cache', 'update', 'by-hand', '--days', '5', '--name', 'renamed');
    expect(updated.stdout).toMatch(/name +renamed[\s\S]*expires +\d{4}-/);
    expect((await obdctl(host, 'cache', 'update', 'renamed', '--days', '5')).stderr).toMatch(/^obdctl: /);
    expect(await obdctl(host, 'cache', 'rm', 'renamed')).toMatchObject({ code: 0, stdout: 'removed renamed\n' });
    expect(await gone).toEqual([0, null]);
    expect((await obdctl(host, 'cache', 'show', 'renamed')).code).toBe(1);
  } finally {
    follower.kill('SIGKILL');
  }
});

test('two caches made with curl are Ready when curl -N says so; their containers start while the registry is stopped; bytes of a deleted one go with its last container', async () => {
  const { registry, sidecar } = host;
  await dropCaches();
  const payload = Buffer.alloc(3_000_000, 'payload');
  const config = { cmd: ['/bin/sh', '-c', 'wc -c < /payload'] };
  const layer = async (name: string) =>
    layerOfEntries([
      { name: 'etc/kind', content: name },
      { name: 'payload', content: payload },
    ]);
  const lazy = await pushImage(registry, 'story/lazy', '1', await lazyBusybox(scratch, [await layer('lazy')], config));
  const ordinary = await pushImage(registry, 'story/ordinary', '1', await busyboxImage({ config, above: [await layer('ordinary')] }));
  await using cri = await Cri.connect(host.containerd.socket);
  await cri.pullImage(`${registry.host}/test/pause:1`);
  using watch = new CacheWatch(sidecar.adminSocket);
  const made = [
    await createCache(sidecar, { imageCacheName: 'story-one', images: [lazy.reference] }),
    await createCache(sidecar, { imageCacheName: 'story-two', images: [ordinary.reference, image.reference] }),
  ] as const;
  for (const { imageCacheId } of made) await watch.ready(imageCacheId);

  await registry.stop();
  try {
    for (const { reference } of [lazy, ordinary, image]) {
      const known = async () => (await cri.images('ImageStatus', { image: { image: reference } })).image !== undefined;
      await waitFor(known, { what: `CRI to know ${reference}`, timeoutMs: 60_000, details: () => sidecar.logTail() });
    }
    const pod = await cri.runPod('story');
    for (const [name, { reference }] of Object.entries({ lazy, ordinary })) {
      const { id, logPath } = await cri.startContainer(pod, reference, { name });
      expect(await cri.waitExit(id), name).toMatchObject({ exitCode: 0 });
      expect((await readCriLog(logPath)).map(({ text }) => text)).toEqual(['3000000']);
    }
    const command = ['/bin/sh', '-c', 'trap "exit 0" TERM; sleep 1000000 & wait'];
    const user = await cri.startContainer(pod, lazy.reference, { name: 'user', command });
    const digest = lazy.layers.at(-1)!.digest;
    const isStored = async (): Promise<boolean> => (await sidecar.admin('GET', '/v1/store/blobs')).includes(digest.slice('sha256:'.length));
    const [{ imageCacheId }] = made;
    await sidecar.admin('DELETE', `/v1/image-caches/${imageCacheId}`);
    await watch.until(imageCacheId, 'deleted', ({ kind }) => kind === 'deleted');
    await host.containerd.ctr(['leases', 'create', '--id', 'collect'], { namespace: 'k8s.io' });
    await host.containerd.ctr(['leases', 'delete', '--sync', 'collect'], { namespace: 'k8s.io' });
    expect((await cri.exec(user.id, ['/bin/wc', '-c', '/payload'])).stdout).toBe('3000000 /payload\n');
    expect(await isStored()).toBe(true);
    await cri.removePod(pod.id);
    await waitFor(async () => !(await isStored()), {
      what: 'the bytes of the deleted cache to go',
      timeoutMs: 90_000,
      details: () => sidecar.logTail(),
    });
  } finally {
    await registry.startAgain();
  }
});
