/**
 * Pulls of pods through the image service, with image caches, a runtime in memory and registries that want credentials: every decision, its
 * record, and what must never be borrowed.
 */
import fs from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Database, openDatabase } from '../../../../db/database.ts';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { type CriDependencies, type CriOptions, type CriService, startCri } from '../../../../plugin/cri/service.ts';
import { sealedSources } from '../../../../plugin/registry/vault/sealed-source.ts';
import { CredentialVault } from '../../../../plugin/registry/vault/vault.ts';
import { IMAGE_METHODS } from '../../../support/cri-messages.ts';
import { CacheHost, fakeImage } from '../../../support/fake-caches.ts';
import { FakeRuntime } from '../../../support/fake-runtime.ts';
import { decode, encode, type Message } from '../../../support/protobuf-table.ts';
import { type RawAnswer, RawGrpc } from '../../../support/raw-grpc.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

const PIN = 'k8s.aliyun.com/eci-imc-id';
const AUTO = 'k8s.aliyun.com/eci-auto-imc';
const PERFECT = 'k8s.aliyun.com/imc-perfect-match';
const COUNT = 'k8s.aliyun.com/imc-match-count-request';
const CODES = { ok: 0, failedPrecondition: 9, permissionDenied: 7, unavailable: 14, notFound: 5 };

const A = 'r.example/team/a:1';
const B = 'r.example/team/b:1';
const C = 'r.example/team/c:1';

let stack: AsyncDisposableStack;
let scratch: Scratch;
let caches: CacheHost;
let runtime: FakeRuntime;
let database: Database;
let vault: CredentialVault;
let service: CriService;
let client: RawGrpc;
let events: { type: string; subject: string; message: string }[];
/** `user:password` that the registry takes; undefined: it is away. */
let allowed: Set<string> | undefined;
let asked: string[];

async function start(options: Partial<CriOptions> = {}, more: Partial<CriDependencies> = {}): Promise<void> {
  service = await startCri(
    {
      socketPath: scratch.join('cri.sock'),
      containerdAddress: scratch.join('runtime.sock'),
      patienceMs: 5_000,
      lookupMs: 5_000,
      imageRights: 'check',
      rightsTtlMs: 60_000,
      podSelector: undefined,
      podEphemeralGib: 30,
      kubeconfig: undefined,
      manifestsDir: undefined,
      rulesFile: undefined,
      dockerConfig: undefined,
      secretRecheckMs: 1_000,
      rootDir: scratch.path,
      ...options,
    },
    {
      database,
      vault,
      caches: caches.service,
      async askRegistry(reference, object, credential) {
        const who = credential === undefined ? '' : 'password' in credential ? `${credential.username}:${credential.password}` : 'token';
        asked.push(`${reference.repository} ${who}`);
        const about = { op: 'resolve', subject: object };
        if (allowed === undefined) throw new AppError('Unavailable', { ...about, what: 'the registry does not answer' });
        if (!allowed.has(who)) throw new AppError('Unauthenticated', { ...about, what: 'wants other credentials' });
        if (object.startsWith('sha256:')) return object;
        const name = `${reference.host}/${reference.repository}:${object}`;
        return caches.node.registry.get(name)?.digest ?? `sha256:${'0'.repeat(64)}`;
      },
      resolutionOf: ({ repository }) => (repository.endsWith('/c') ? { outcome: 'lazy', reason: '3 of 3 layers are lazy' } : undefined),
      ledger: async () => ({ bytes: 500, files: 6 }),
      events: { add: (type, subject, message) => events.push({ type, subject, message }) },
      clock: systemClock,
      logger: silentLogger,
      ...more,
    },
  );
}

async function restart(options: Partial<CriOptions> = {}, more: Partial<CriDependencies> = {}): Promise<void> {
  await service.stop();
  await start(options, more);
}

beforeEach(async () => {
  await using starting = new AsyncDisposableStack();
  scratch = starting.use(await Scratch.create('pulls'));
  caches = starting.use(new CacheHost());
  runtime = starting.use(await FakeRuntime.start(scratch.join('runtime.sock')));
  database = starting.use(openDatabase(':memory:'));
  vault = await CredentialVault.open({ file: scratch.join('v'), keyFile: scratch.join('k') }, systemClock, () => undefined);
  events = [];
  asked = [];
  allowed = new Set(['']);
  await start();
  starting.defer(() => service.stop());
  client = starting.use(new RawGrpc(scratch.join('cri.sock')));
  stack = starting.move();
});
afterEach(async () => {
  await stack.disposeAsync();
});

interface Pod {
  name: string;
  annotations?: Record<string, string>;
  labels?: Record<string, string>;
  auth?: { username: string; password: string };
}

function call(method: keyof typeof IMAGE_METHODS, message: Message, signal?: AbortSignal): Promise<RawAnswer> {
  const request = { path: `/runtime.v1.ImageService/${method}`, message: encode(IMAGE_METHODS[method].request, message) };
  return client.call({ ...request, ...(signal === undefined ? {} : { signal }) });
}

function pull(image: string, pod: Pod, signal?: AbortSignal): Promise<RawAnswer> {
  const { name, annotations = {}, labels = {}, auth } = pod;
  const sandboxConfig = { metadata: { name, uid: `uid-${name}`, namespace: 'team' }, labels, annotations };
  return call('PullImage', { image: { image, annotations }, sandboxConfig, ...(auth === undefined ? {} : { auth }) }, signal);
}

const imageRef = (answer: RawAnswer): unknown => decode(IMAGE_METHODS.PullImage.response, answer.bytes!).imageRef;

/** A Ready cache of images, which containerd has too; returns its id. */
async function cacheOf(name: string, references: readonly string[], salt = ''): Promise<string> {
  for (const reference of references) {
    const image = fakeImage(reference, [`${reference}-layer`], { salt });
    caches.node.push(image);
    if (runtime.images.every(({ repoTags }) => !repoTags.includes(reference))) {
      runtime.add(reference, { id: image.configDigest!, digest: image.digest });
    }
  }
  const { imageCacheId } = await caches.service.create({ imageCacheName: name, images: [...references] });
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  return imageCacheId;
}

function pullable(reference: string): void {
  const image = fakeImage(reference, [`${reference}-layer`]);
  caches.node.push(image);
  const repository = reference.slice(0, reference.lastIndexOf(':'));
  runtime.registry.set(reference, { id: image.configDigest!, repoTags: [reference], repoDigests: [`${repository}@${image.digest}`] });
}

const typesOf = (subject: string): string[] => events.filter((event) => event.subject === subject).map(({ type }) => type);
const decisionFor = (pod: string, image: string) => service.explainPod(`team/${pod}`).decisions.find((one) => one.image === image);

describe('a pod that pins a cache', () => {
  test('gets its images from it without containerd pulling or the registry being there', async () => {
    const id = await cacheOf('one', [A, B]);
    allowed = undefined;
    const answer = await pull(A, { name: 'p', annotations: { [PIN]: id } });
    expect(answer.code, answer.details).toBe(CODES.ok);
    expect(imageRef(answer)).toBe(fakeImage(A, [`${A}-layer`]).configDigest);
    expect(runtime.pulls).toEqual([]);
    expect(decisionFor('p', A)).toMatchObject({ decision: 'pinned-cache', imageCacheId: id, outcome: 'cache' });
    expect(typesOf('team/p')).toEqual(['pod-pulls-always']);
  });

  test('fails with the id and state of a cache that is not Ready or not there, and may try again', async () => {
    caches.node.hold();
    caches.node.push(fakeImage(A, ['slow']));
    const { imageCacheId: id } = await caches.service.create({ imageCacheName: 'slow', images: [A] });
    const pod = { name: 'p', annotations: { [PIN]: id } };
    const refused = await pull(A, pod);
    expect(refused.code).toBe(CODES.failedPrecondition);
    expect(refused.details).toContain(id);
    expect(refused.details).toMatch(/is (Preparing|Creating), not Ready/);
    expect(decisionFor('p', A)).toMatchObject({ decision: 'refused' });
    const absent = await pull(A, { name: 'q', annotations: { [PIN]: 'imc-00000000000000000000' } });
    expect(absent.details).toContain('imc-00000000000000000000');
    expect(absent.details).toContain('does not exist');
    caches.node.letGo();
    await waitFor(() => caches.service.get(id).status === 'Ready', { what: 'the cache' });
    const image = fakeImage(A, ['slow']);
    runtime.add(A, { id: image.configDigest!, digest: image.digest });
    expect((await pull(A, pod)).code).toBe(CODES.ok);
    expect(decisionFor('p', A)).toMatchObject({ decision: 'pinned-cache', outcome: 'cache' });
  });

  test('is unaffected when its cache goes, and by annotations that are added or edited later', async () => {
    const id = await cacheOf('one', [A]);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id } })).code).toBe(CODES.ok);
    await caches.service.delete(id);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id } })).code).toBe(CODES.ok);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: 'imc-00000000000000000000' } })).code).toBe(CODES.ok);
    await restart();
    expect((await pull(A, { name: 'p', annotations: {} })).code).toBe(CODES.ok);
    expect(runtime.pulls).toEqual([]);
    pullable(B);
    expect((await pull(B, { name: 'r', annotations: { [AUTO]: 'false' } })).code).toBe(CODES.ok);
    expect((await pull(B, { name: 'r', annotations: { [PIN]: 'imc-00000000000000000000' } })).code).toBe(CODES.ok);
    expect(service.explainPod('team/r').rules).toMatchObject({ inForce: 'off', pin: null });
  });

  test('is told when the name means something else here, or the cache has not got the image', async () => {
    const first = await cacheOf('first', [A]);
    const second = await cacheOf('second', [A], 'moved');
    pullable(B);
    runtime.registry.set(A, runtime.images[0]!);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: first } })).code).toBe(CODES.ok);
    expect((await pull(A, { name: 'q', annotations: { [PIN]: second } })).code).toBe(CODES.ok);
    expect(typesOf('team/q')).toEqual(['pod-cache-not-used']);
    expect((await pull(B, { name: 'q', annotations: { [PIN]: second } })).code).toBe(CODES.ok);
    expect(runtime.pulls.map(({ image }) => image)).toEqual([A, B]);
    expect(decisionFor('q', B)?.reasons.join()).toContain('does not hold this image');
  });
});

describe('a pod that pins nothing', () => {
  test('takes a cache that fits; a miss is pulled and makes a cache of the pod, which the next pod hits', async () => {
    pullable(A);
    expect((await pull(A, { name: 'first' })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
    await waitFor(() => typesOf('team/first').includes('pod-cache-created'), { what: 'the automatic cache' });
    // For the cache, beside the pull; a pull that no cache could answer and that brings no credentials asks nothing.
    expect(asked).toEqual(['team/a ']);
    await waitFor(() => caches.service.list({ owner: 'system' }).caches[0]?.status === 'Ready', { what: 'its readiness' });
    expect(caches.service.list({ owner: 'system' }).caches[0]).toMatchObject({ imageCacheName: 'auto-create-for-uid-first' });
    expect((await pull(A, { name: 'second' })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
    expect(decisionFor('second', A)).toMatchObject({ decision: 'matched-cache', outcome: 'cache' });
  });

  test('makes one cache for replicas that start together', async () => {
    pullable(A);
    caches.node.hold();
    expect((await pull(A, { name: 'replica' })).code).toBe(CODES.ok);
    await waitFor(() => typesOf('team/replica').includes('pod-cache-created'), { what: 'the automatic cache' });
    const answers = await Promise.all(Array.from({ length: 32 }, (_, i) => pull(A, { name: `replica-${i}` })));
    expect(answers.map(({ code }) => code)).toEqual(Array.from({ length: 32 }, () => CODES.ok));
    expect(caches.service.list({ owner: 'system' }).totalCount).toBe(1);
  });

  test('refines the match as its images arrive, and its automatic cache grows with them', async () => {
    for (const reference of [A, B, C]) pullable(reference);
    for (const reference of [A, B, C]) expect((await pull(reference, { name: 'p' })).code).toBe(CODES.ok);
    await waitFor(
      () => {
        const { caches: own } = caches.service.list({ owner: 'system' });
        const cache = own[0];
        return cache !== undefined && [...cache.images, ...(cache.pendingImages ?? [])].some(({ reference }) => reference === C);
      },
      { what: 'all images in the automatic cache' },
    );
    expect(service.explainPod('uid-p')).toMatchObject({ images: [A, B, C], imagesFrom: 'pulls' });
    expect(decisionFor('p', C)).toMatchObject({ decision: 'pull', outcome: 'lazy' });
    expect(decisionFor('p', A)).toMatchObject({ outcome: 'present' });
  });

  test('is decided once, however many calls ask at once', async () => {
    await cacheOf('one', [A]);
    let decisions = 0;
    const counting = Object.create(caches.service, {
      matchForPod: {
        value: (request: Parameters<typeof caches.service.matchForPod>[0]) => {
          decisions += 1;
          return caches.service.matchForPod(request);
        },
      },
    }) as typeof caches.service;
    await restart({}, { caches: counting });
    const answers = await Promise.all(Array.from({ length: 8 }, () => pull(A, { name: 'p' })));
    expect(answers.every(({ code }) => code === CODES.ok)).toBe(true);
    expect(decisions).toBe(1);
  });

  test('gets what the name means now when the tag has moved since the cache was made; with the registry away, what the cache has', async () => {
    const id = await cacheOf('one', [A]);
    expect((await pull(A, { name: 'before' })).code).toBe(CODES.ok);
    expect(decisionFor('before', A)).toMatchObject({ decision: 'matched-cache', imageCacheId: id });
    const moved = fakeImage(A, ['moved-layer'], { salt: 'moved' });
    caches.node.push(moved);
    caches.node.hold();
    runtime.registry.set(A, { id: moved.configDigest!, repoTags: [A], repoDigests: [`r.example/team/a@${moved.digest}`] });
    await restart({ rightsTtlMs: 1 });
    expect(imageRef(await pull(A, { name: 'after' }))).toBe(moved.configDigest);
    expect(decisionFor('after', A)).toMatchObject({ decision: 'pull' });
    expect(decisionFor('after', A)?.reasons.join()).toContain(`the tag names ${moved.digest} now`);
    // What was decided for a pod stays.
    expect(imageRef(await pull(A, { name: 'before' }))).toBe(fakeImage(A, [`${A}-layer`]).configDigest);
    allowed = undefined;
    expect(imageRef(await pull(A, { name: 'offline' }))).toBe(fakeImage(A, [`${A}-layer`]).configDigest);
    expect(decisionFor('offline', A)).toMatchObject({ decision: 'matched-cache' });
  });

  test('with auto "false" uses no cache and makes none', async () => {
    await cacheOf('one', [A]);
    pullable(A);
    expect((await pull(A, { name: 'p', annotations: { [AUTO]: 'false' } })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
    expect(caches.service.usage().usedAutoImageCacheCount).toBe(0);
    expect(decisionFor('p', A)?.reasons[0]).toContain('eci-auto-imc');
  });

  test('with a bad annotation goes on as without it, and one event says so', async () => {
    await cacheOf('one', [A]);
    const annotations = { [AUTO]: 'perhaps', [PIN]: 'x'.repeat(1024 * 1024), [COUNT]: '-1' };
    expect((await pull(A, { name: 'p', annotations })).code).toBe(CODES.ok);
    expect((await pull(A, { name: 'p', annotations })).code).toBe(CODES.ok);
    expect(runtime.pulls).toEqual([]);
    expect(typesOf('team/p').filter((type) => type === 'pod-annotation-ignored')).toHaveLength(3);
  });

  test('without the label of the selector is left alone', async () => {
    const id = await cacheOf('one', [A]);
    await restart({ podSelector: 'alibabacloud.com/eci=true' });
    pullable(A);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id } })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
    const labels = { 'alibabacloud.com/eci': 'true' };
    expect((await pull(A, { name: 'q', annotations: { [PIN]: id }, labels })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
  });
});

describe('a pod whose images are known beforehand', () => {
  const manifest = (name: string, images: readonly string[], more: object = {}): string =>
    JSON.stringify({
      kind: 'Pod',
      metadata: { name, namespace: 'team' },
      spec: { containers: images.map((image) => ({ image })), ...more },
    });

  test('is matched with all of them at its first pull: perfect match and match count', async () => {
    await fs.mkdir(scratch.join('manifests'));
    await fs.writeFile(scratch.join('manifests', 'static.json'), manifest('static', [A, B, 'no image: at all']));
    await fs.writeFile(scratch.join('manifests', 'other.yaml'), manifest('static-other', [C]));
    await fs.writeFile(scratch.join('manifests', 'broken.yaml'), '{ : ] nonsense');
    await restart({ manifestsDir: scratch.join('manifests') });
    await cacheOf('one', [A]);
    for (const reference of [A, B]) pullable(reference);
    // Automatic caches of these pods are not to be matched by the next.
    caches.node.hold();
    expect((await pull(A, { name: 'static-node1', annotations: { [PERFECT]: 'true' } })).code).toBe(CODES.ok);
    expect(service.explainPod('team/static-node1')).toMatchObject({ images: [A, B], imagesFrom: 'manifest' });
    expect(decisionFor('static-node1', A)).toMatchObject({ decision: 'pull' });
    expect((await pull(A, { name: 'static-node2', annotations: { [COUNT]: '1' } })).code).toBe(CODES.ok);
    expect(decisionFor('static-node2', A)).toMatchObject({ decision: 'matched-cache' });
    expect((await pull(A, { name: 'static-node3', annotations: { [COUNT]: '2' } })).code).toBe(CODES.ok);
    expect(decisionFor('static-node3', A)).toMatchObject({ decision: 'pull' });
    await waitFor(() => caches.service.list({ owner: 'system' }).totalCount >= 1, { what: 'an automatic cache' });
    expect(caches.service.list({ owner: 'system' }).caches.every(({ images }) => images.length === 2)).toBe(true);
  });

  test('counts an image once that the pod names in another way than kubelet', async () => {
    const untagged = A.replace(/:1$/, '');
    const latest = `${untagged}:latest`;
    await fs.mkdir(scratch.join('manifests'));
    await fs.writeFile(scratch.join('manifests', 'p.json'), manifest('p', [untagged, B]));
    await restart({ manifestsDir: scratch.join('manifests') });
    for (const reference of [latest, B]) pullable(reference);
    caches.node.hold();
    expect((await pull(latest, { name: 'p-node1' })).code).toBe(CODES.ok);
    expect(service.explainPod('team/p-node1').images).toEqual([latest, B]);
    expect(decisionFor('p-node1', latest)?.reasons.join()).toContain('all 2 images of the pod are known');
    await waitFor(() => typesOf('team/p-node1').includes('pod-cache-created'), { what: 'the automatic cache' });
    expect((await pull(latest, { name: 'p-node2' })).code).toBe(CODES.ok);
    expect((await pull(B, { name: 'p-node2' })).code).toBe(CODES.ok);
    expect(service.explainPod('team/p-node2').images).toEqual([latest, B]);
    expect(typesOf('team/p-node2')).toEqual([]);
  });

  test('is known from the API server, with its Secrets; another pod of its name, or no answer, leaves it to its pulls', async () => {
    const secret = Buffer.from(JSON.stringify({ auths: { 'r.example/team': { username: 'from-secret', password: 'good' } } })).toString(
      'base64',
    );
    const spec = {
      serviceAccountName: 'puller',
      imagePullSecrets: [{ name: 'acr-credential-a' }],
      initContainers: [{ image: B }],
      containers: [{ image: A }],
    };
    const objects: Record<string, unknown> = {
      '/api/v1/namespaces/team/pods/p': { kind: 'Pod', metadata: { name: 'p', namespace: 'team', uid: 'uid-p' }, spec },
      '/api/v1/namespaces/team/pods/q': { kind: 'Pod', metadata: { name: 'q', namespace: 'team', uid: 'another' }, spec },
      '/api/v1/namespaces/team/serviceaccounts/puller': {},
      '/api/v1/namespaces/team/secrets/acr-credential-a': {
        type: 'kubernetes.io/dockerconfigjson',
        metadata: { name: 'acr-credential-a', namespace: 'team' },
        data: { '.dockerconfigjson': secret },
      },
    };
    const server = http.createServer((request, response) => {
      const found = objects[request.url ?? ''];
      response.statusCode = found === undefined ? 404 : 200;
      response.end(JSON.stringify(found ?? {}));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    stack.defer(async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });
    const { port } = server.address() as AddressInfo;
    const kubeconfig = await scratch.file(
      'kubeconfig',
      `current-context: a\ncontexts: [{name: a, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: "http://127.0.0.1:${port}"}}]\n`,
    );
    await restart({ kubeconfig });
    allowed = new Set(['from-secret:good']);
    for (const reference of [A, B]) pullable(reference);
    caches.node.hold();
    expect((await pull(A, { name: 'p' })).code).toBe(CODES.ok);
    expect(service.explainPod('team/p')).toMatchObject({ images: [B, A], imagesFrom: 'api-server' });
    expect(runtime.pulls).toEqual([{ image: A, auth: 'from-secret:good' }]);
    expect(decisionFor('p', A)?.reasons.join()).toContain('Secret team/acr-credential-a');
    expect(await vault.sources().ofPods('r.example', 'team/a')).toEqual({ username: 'from-secret', password: 'good' });
    allowed = new Set(['']);
    expect((await pull(A, { name: 'q' })).code).toBe(CODES.ok);
    expect(service.explainPod('team/q')).toMatchObject({ images: [A], imagesFrom: 'pulls' });
    expect(decisionFor('q', A)?.reasons.join()).toContain('another pod of this name');
    expect(runtime.pulls.at(-1)).toEqual({ image: A, auth: '' });
  });

  test('may have what its containers may write', async () => {
    await fs.mkdir(scratch.join('manifests'));
    const limited = {
      containers: [
        { image: A, resources: { limits: { 'ephemeral-storage': '60Gi' } } },
        { image: B, resources: { limits: { 'ephemeral-storage': '20Gi' } } },
      ],
    };
    await fs.writeFile(scratch.join('manifests', 'p.json'), manifest('p', [], limited));
    await restart({ manifestsDir: scratch.join('manifests') });
    pullable(A);
    expect((await pull(A, { name: 'p-node', annotations: { 'k8s.aliyun.com/eci-extra-ephemeral-storage': '10Gi' } })).code).toBe(CODES.ok);
    expect(service.explainPod('team/p-node').rules.extraEphemeralGib).toBe(50);
  });
});

describe('rights', () => {
  const owner = { username: 'owner', password: 'good' };
  const stranger = { username: 'stranger', password: 'bad' };

  test('a pod without rights gets nothing from a cache, one with rights does, and nobody borrows', async () => {
    const id = await cacheOf('one', [A]);
    allowed = new Set(['owner:good']);
    const annotations = { [PIN]: id };
    expect((await pull(A, { name: 'owner', annotations, auth: owner })).code).toBe(CODES.ok);
    for (const pod of [{ name: 'stranger', auth: stranger }, { name: 'nobody' }]) {
      const answer = await pull(A, { ...pod, annotations });
      expect(answer.code).toBe(CODES.permissionDenied);
      expect(answer.details).toContain(A);
      expect(answer.details).not.toContain('bad');
    }
    expect(runtime.pulls).toEqual([]);
    expect(asked).toEqual(['team/a owner:good', 'team/a stranger:bad', 'team/a ']);
    expect(vault.list().map(({ credential }) => credential)).toEqual([owner]);
  });

  test('a registry that refuses beside a mirror that is away has refused', async () => {
    const id = await cacheOf('one', [A]);
    const askRegistry: CriDependencies['askRegistry'] = async (_reference, object) => {
      const details = { registryRefused: true };
      throw new AppError('Unavailable', { op: 'resolve', subject: object, what: 'mirror: away; registry: 401', details });
    };
    await restart({}, { askRegistry });
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id } })).code).toBe(CODES.permissionDenied);
  });

  test('credentials that break the connection open nothing: without them the registry answers', async () => {
    const id = await cacheOf('one', [A]);
    pullable(A);
    let isAway = false;
    const askRegistry: CriDependencies['askRegistry'] = async (_reference, object, credential) => {
      const about = { op: 'resolve', subject: object };
      if (isAway || credential !== undefined) throw new AppError('Unavailable', { ...about, what: 'the connection broke' });
      throw new AppError('Unauthenticated', { ...about, what: 'wants credentials' });
    };
    await restart({}, { askRegistry });
    const pod = { annotations: { [PIN]: id }, auth: { username: 'u', password: 'x'.repeat(60_000) } };
    const refused = await pull(A, { name: 'p', ...pod });
    expect(refused.code).toBe(CODES.permissionDenied);
    expect(refused.details).not.toContain('xxxx');
    // It may be a moment's fault, so that containerd's own pull goes on with them.
    expect((await pull(A, { name: 'q', annotations: { [AUTO]: 'false' }, auth: owner })).code).toBe(CODES.ok);
    expect(runtime.pulls).toEqual([{ image: A, auth: 'owner:good' }]);
    isAway = true;
    expect((await pull(A, { name: 'r', ...pod })).code).toBe(CODES.ok);
  });

  test('credentials that break the connection are kept for nobody where the registry gives the image to everybody', async () => {
    const id = await cacheOf('one', [A]);
    pullable(B);
    const requests: unknown[] = [];
    const seen = Object.create(caches.service, {
      autoCreate: {
        value: (request: Parameters<typeof caches.service.autoCreate>[0]) => {
          requests.push(request);
          return caches.service.autoCreate(request);
        },
      },
    }) as typeof caches.service;
    const askRegistry: CriDependencies['askRegistry'] = async ({ host, repository }, object, credential) => {
      if (credential !== undefined) throw new AppError('Unavailable', { op: 'resolve', subject: object, what: 'the connection broke' });
      return caches.node.registry.get(`${host}/${repository}:${object}`)?.digest ?? object;
    };
    await restart({}, { caches: seen, askRegistry });
    const auth = { username: 'u', password: 'x'.repeat(60_000) };
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id }, auth })).code).toBe(CODES.ok);
    expect((await pull(B, { name: 'q', auth })).code).toBe(CODES.ok);
    expect(vault.list().map(({ prefix }) => prefix)).toEqual([]);
    await waitFor(() => requests.length > 0, { what: 'the request' });
    expect(requests).toEqual([expect.objectContaining({ images: [B], credentials: [] })]);
  });

  test('a consent is believed for a while, a registry that is away costs only the check; "strict" and "off" say otherwise', async () => {
    const id = await cacheOf('one', [A]);
    const annotations = { [PIN]: id };
    for (const name of ['a', 'b', 'c']) expect((await pull(A, { name, annotations })).code).toBe(CODES.ok);
    expect(asked).toHaveLength(1);
    allowed = undefined;
    await restart({ imageRights: 'strict' });
    expect((await pull(A, { name: 'd', annotations })).code).toBe(CODES.unavailable);
    allowed = new Set();
    await restart({ imageRights: 'off' });
    expect((await pull(A, { name: 'e', annotations })).code).toBe(CODES.ok);
  });

  test('whatever a pod brings, the data plane goes on reading what others brought', async () => {
    for (const reference of [A, B, C]) pullable(reference);
    const odd = { username: 'token-as-name', password: '' };
    const huge = { username: 'u', password: 'x'.repeat(100_000) };
    allowed = new Set(['owner:good', 'token-as-name:', `u:${huge.password}`]);
    for (const [image, auth] of [
      [A, owner],
      [B, odd],
      [C, huge],
    ] as const) {
      expect((await pull(image, { name: 'p', annotations: { [AUTO]: 'false' }, auth })).code).toBe(CODES.ok);
    }
    const reader = sealedSources({ file: scratch.join('v'), keyFile: scratch.join('k') });
    expect(await reader.ofPods('r.example', 'team/a')).toEqual(owner);
    expect(await reader.ofPods('r.example', 'team/b')).toEqual(odd);
    expect(await reader.ofPods('r.example', 'team/c')).toBeUndefined();
    expect(events.filter(({ type }) => type === 'credential-not-stored')).toHaveLength(1);
    expect(JSON.stringify(events)).not.toContain('xxxx');
  });

  test('what a pull brings is kept once the registry takes it, for its repository alone, and goes to containerd unchanged', async () => {
    for (const reference of [A, B]) pullable(reference);
    allowed = new Set(['owner:good']);
    await pull(A, { name: 'p', annotations: { [AUTO]: 'false' }, auth: owner });
    await pull(B, { name: 'p', annotations: { [AUTO]: 'false' }, auth: stranger });
    expect(runtime.pulls).toEqual([
      { image: A, auth: 'owner:good' },
      { image: B, auth: 'stranger:bad' },
    ]);
    const sources = vault.sources();
    expect(await sources.ofPods('r.example', 'team/a')).toEqual(owner);
    expect(await sources.ofPods('r.example', 'team/b')).toBeUndefined();
  });
});

describe('pulls of one repository at once', () => {
  const owner = { username: 'owner', password: 'good' };
  const wrong = { username: 'wrong', password: 'one' };
  const other = { username: 'wrong', password: 'two' };
  const MISSING = 'r.example/team/a:missing';
  const none = { [AUTO]: 'false' };
  const kept = () => vault.sources().ofPods('r.example', 'team/a');

  /** A pull that containerd works on until `end`. */
  async function begun(image: string, pod: Pod, signal?: AbortSignal): Promise<{ end(): Promise<RawAnswer> }> {
    const gate = Promise.withResolvers<void>();
    runtime.gates.set(image, gate.promise);
    const before = runtime.pulls.length;
    const answer = pull(image, pod, signal);
    await waitFor(() => runtime.pulls.length > before, { what: `the pull of ${image}` });
    const end = (): Promise<RawAnswer> => {
      runtime.gates.delete(image);
      gate.resolve();
      return answer;
    };
    return { end };
  }

  test.each(['first', 'last'])('the one that fails takes nothing away that the other goes well with; it ends %s', async (when) => {
    pullable(A);
    // The registry judges nothing while it is away.
    allowed = undefined;
    const failing = await begun(MISSING, { name: 'p', annotations: none, auth: owner });
    const going = await begun(A, { name: 'q', annotations: none, auth: owner });
    if (when === 'first') expect((await failing.end()).code).toBe(CODES.notFound);
    expect(await kept()).toEqual(owner);
    expect((await going.end()).code).toBe(CODES.ok);
    if (when === 'last') expect((await failing.end()).code).toBe(CODES.notFound);
    expect(await kept()).toEqual(owner);
  });

  test('credentials that the registry takes meanwhile stay, whoever tried them before it spoke', async () => {
    pullable(A);
    allowed = undefined;
    const failing = await begun(MISSING, { name: 'p', annotations: none, auth: owner });
    allowed = new Set(['owner:good']);
    const going = await begun(A, { name: 'q', annotations: none, auth: owner });
    expect((await failing.end()).code).toBe(CODES.notFound);
    expect(await kept()).toEqual(owner);
    expect((await going.end()).code).toBe(CODES.ok);
    expect(await kept()).toEqual(owner);
  });

  test.each(['first', 'last'])(
    'credentials that prove right are kept, also when wrong ones took their place; those end %s',
    async (when) => {
      pullable(A);
      allowed = undefined;
      const going = await begun(A, { name: 'p', annotations: none, auth: owner });
      const failing = await begun(MISSING, { name: 'q', annotations: none, auth: wrong });
      if (when === 'first') await failing.end();
      expect((await going.end()).code).toBe(CODES.ok);
      if (when === 'last') await failing.end();
      expect(await kept()).toEqual(owner);
    },
  );

  test('when all fail, what was right before is there again', async () => {
    pullable(A);
    allowed = new Set(['owner:good']);
    expect((await pull(A, { name: 'o', annotations: none, auth: owner })).code).toBe(CODES.ok);
    allowed = undefined;
    const again = 'r.example/team/a:also-missing';
    const first = await begun(MISSING, { name: 'p', annotations: none, auth: wrong });
    const second = await begun(again, { name: 'q', annotations: none, auth: other });
    await first.end();
    await second.end();
    expect(await kept()).toEqual(owner);
  });

  test('what a pull brought that was given up before anybody judged it is not kept', async () => {
    allowed = undefined;
    const caller = new AbortController();
    const pulling = await begun(MISSING, { name: 'p', annotations: none, auth: wrong }, caller.signal);
    expect(await kept()).toEqual(wrong);
    caller.abort();
    await waitFor(async () => (await kept()) === undefined, { what: 'the credentials to go' });
    await pulling.end();
  });
});

describe('an automatic cache', () => {
  const owner = { username: 'owner', password: 'good' };

  test('is made of what the pod itself may have, never with what another pod brought', async () => {
    pullable(A);
    allowed = new Set(['owner:good']);
    expect((await pull(A, { name: 'owner', annotations: { [AUTO]: 'false' }, auth: owner })).code).toBe(CODES.ok);
    expect(await vault.sources().ofPods('r.example', 'team/a')).toEqual(owner);
    // In the registry, and not for this pod: containerd is refused, as here it is not found.
    const other = 'r.example/team/a:2';
    caches.node.push(fakeImage(other, ['secret-layer']));
    for (let i = 0; i < 2; i += 1) expect((await pull(other, { name: 'stranger' })).code).toBe(CODES.notFound);
    await waitFor(() => typesOf('team/stranger').includes('pod-cache-not-created'), { what: 'the refusal' });
    await service.stop();
    expect(caches.service.list().totalCount).toBe(0);
    expect(typesOf('team/stranger')).toEqual(['pod-cache-not-created']);
    await start();
  });

  test('leaves out images that the pod may not have, and gets the credentials of the others', async () => {
    await fs.mkdir(scratch.join('manifests'));
    const pod = { kind: 'Pod', metadata: { name: 'p', namespace: 'team' }, spec: { containers: [{ image: A }, { image: B }] } };
    await fs.writeFile(scratch.join('manifests', 'p.json'), JSON.stringify(pod));
    const requests: unknown[] = [];
    const seen = Object.create(caches.service, {
      autoCreate: {
        value: (request: Parameters<typeof caches.service.autoCreate>[0]) => {
          requests.push({ images: request.images, credentials: request.credentials });
          return caches.service.autoCreate(request);
        },
      },
    }) as typeof caches.service;
    const askRegistry: CriDependencies['askRegistry'] = async ({ repository }, object, credential) => {
      if (repository === 'team/a' && credential !== undefined) return `sha256:${'a'.repeat(64)}`;
      throw new AppError('Unauthenticated', { op: 'resolve', subject: object, what: 'wants other credentials' });
    };
    await restart({ manifestsDir: scratch.join('manifests') }, { caches: seen, askRegistry });
    for (const reference of [A, B]) pullable(reference);
    expect((await pull(A, { name: 'p-node', auth: owner })).code).toBe(CODES.ok);
    await waitFor(() => requests.length > 0, { what: 'the request' });
    expect(requests).toEqual([{ images: [A], credentials: [{ server: 'r.example', userName: 'owner', password: 'good' }] }]);
  });

  test('is asked for again when the registry did not answer at the first try', async () => {
    allowed = undefined;
    expect((await pull(A, { name: 'p' })).code).toBe(CODES.notFound);
    await waitFor(() => typesOf('team/p').includes('pod-cache-not-created'), { what: 'the event' });
    allowed = new Set(['']);
    pullable(A);
    expect((await pull(A, { name: 'p' })).code).toBe(CODES.ok);
    await waitFor(() => typesOf('team/p').includes('pod-cache-created'), { what: 'the cache' });
  });
});

describe('when parts fail', () => {
  test('caches that throw something unexpected are passed by', async () => {
    const broken = Object.create(caches.service, {
      matchForPod: {
        value: () => {
          throw new TypeError('broken');
        },
      },
    }) as typeof caches.service;
    await restart({}, { caches: broken });
    pullable(A);
    expect((await pull(A, { name: 'p' })).code).toBe(CODES.ok);
    expect(runtime.pulls).toHaveLength(1);
  });

  test('a registry that answers nothing about rights does not hold a pull with credentials', async () => {
    allowed = undefined;
    pullable(A);
    expect((await pull(A, { name: 'p', annotations: { [AUTO]: 'false' }, auth: { username: 'u', password: 'p' } })).code).toBe(CODES.ok);
    expect(runtime.pulls).toEqual([{ image: A, auth: 'u:p' }]);
    expect(await vault.sources().ofPods('r.example', 'team/a')).toEqual({ username: 'u', password: 'p' });
    // What nobody confirmed and containerd could not pull with takes no other's place.
    runtime.registry.delete(A);
    expect((await pull(A, { name: 'q', annotations: { [AUTO]: 'false' }, auth: { username: 'v', password: 'w' } })).code).toBe(
      CODES.notFound,
    );
    expect(await vault.sources().ofPods('r.example', 'team/a')).toEqual({ username: 'u', password: 'p' });
  });

  test('a registry that is silent is not asked about one credential after the other', async () => {
    pullable(A);
    const dockerConfig = await scratch.file('config.json', '{"auths":{"r.example":{"username":"docker","password":"d"}}}');
    await vault.put({
      ...{ id: 'admin:r.example', origin: 'admin', prefix: 'r.example', isExact: false, expiresMs: null, renewal: null },
      credential: { username: 'admin', password: 'a' },
    });
    const silent: CriDependencies['askRegistry'] = (_reference, _object, credential, signal) => {
      asked.push(credential !== undefined && 'username' in credential ? credential.username : '');
      return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    };
    await restart({ dockerConfig, lookupMs: 200 }, { askRegistry: silent });
    expect((await pull(A, { name: 'p', annotations: { [AUTO]: 'false' } })).code).toBe(CODES.ok);
    // The second is without credentials: is it away?
    expect(asked).toEqual(['docker', '']);
    expect(runtime.pulls).toEqual([{ image: A, auth: 'docker:d' }]);
  });

  test('a pull that no pod makes goes through', async () => {
    pullable(A);
    expect((await call('PullImage', { image: { image: A } })).code).toBe(CODES.ok);
    expect((await call('PullImage', { image: { image: B } })).code).toBe(CODES.notFound);
    expect(service.pods(10)).toEqual([]);
  });
});

describe('the other methods', () => {
  test('show images of caches as pinned, and refuse to remove them by any of their names', async () => {
    await cacheOf('one', [A]);
    runtime.add(B, { id: `sha256:${'b'.repeat(64)}`, digest: `sha256:${'c'.repeat(64)}` });
    const listed = decode(IMAGE_METHODS.ListImages.response, (await call('ListImages', {})).bytes!).images as Message[];
    expect(listed.map(({ repoTags, pinned }) => [(repoTags as string[])[0], pinned === true])).toEqual([
      [A, true],
      [B, false],
    ]);
    const image = fakeImage(A, [`${A}-layer`]);
    for (const name of [A, image.configDigest!, `r.example/team/a@${image.digest}`]) {
      const status = decode(IMAGE_METHODS.ImageStatus.response, (await call('ImageStatus', { image: { image: name } })).bytes!);
      expect((status.image as Message).pinned, name).toBe(true);
      const removed = await call('RemoveImage', { image: { image: name } });
      expect(removed.code, name).toBe(CODES.failedPrecondition);
      expect(removed.details).toContain('imc-');
    }
    expect((await call('RemoveImage', { image: { image: B } })).code).toBe(CODES.ok);
    expect(runtime.images).toHaveLength(1);
  });

  test('hide an image from a new pod whose pin does not serve, so that its pull decides; others see it', async () => {
    const id = await cacheOf('one', [A]);
    const statusFor = async (annotations: Record<string, string>): Promise<boolean> => {
      const { bytes } = await call('ImageStatus', { image: { image: A, annotations } });
      return decode(IMAGE_METHODS.ImageStatus.response, bytes!).image !== undefined;
    };
    expect(await statusFor({ [PIN]: id })).toBe(true);
    expect(await statusFor({ [PIN]: 'imc-00000000000000000000' })).toBe(false);
    expect(await statusFor({})).toBe(true);
    expect((await pull(A, { name: 'p', annotations: { [PIN]: id } })).code).toBe(CODES.ok);
    await caches.service.delete(id);
    // A running pod that was given it may look at it as before.
    expect(await statusFor({ [PIN]: id })).toBe(true);
  });

  test('tell once of an image that is here with another digest than in the cache that a pod pins', async () => {
    await cacheOf('first', [A]);
    const moved = await cacheOf('second', [A], 'moved');
    for (let i = 0; i < 2; i += 1) await call('ImageStatus', { image: { image: A, annotations: { [PIN]: moved } } });
    expect(typesOf(A)).toEqual(['pod-cache-not-used']);
  });

  test('name a directory that exists and count the store', async () => {
    const { bytes } = await call('ImageFsInfo', {});
    expect(decode(IMAGE_METHODS.ImageFsInfo.response, bytes!)).toEqual({
      imageFilesystems: [{ timestamp: 5, fsId: { mountpoint: scratch.path }, usedBytes: { value: 1500 }, inodesUsed: { value: 16 } }],
    });
  });

  test('keep a directory that is on the disk of the store, and no other: an earlier configuration may have left one', async () => {
    const mountpointFor = async (mountpoint: string): Promise<unknown> => {
      runtime.mountpoint = mountpoint;
      const answer = decode(IMAGE_METHODS.ImageFsInfo.response, (await call('ImageFsInfo', {})).bytes!);
      return (answer.imageFilesystems as { fsId: Message }[])[0]?.fsId.mountpoint;
    };
    const beside = await scratch.dir('beside');
    expect(await mountpointFor(beside)).toBe(beside);
    expect(await mountpointFor('/proc')).toBe(scratch.path);
  });

  test('explain only pods that are known', () => {
    expect(() => service.explainPod('team/nobody')).toThrow(/no image was pulled/);
    expect(() => service.explainPod('uid-nobody')).toThrow(/no image was pulled/);
  });
});
