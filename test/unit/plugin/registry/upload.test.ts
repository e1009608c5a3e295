/** Uploads: every way in, going on after breaks, least scope, and what a registry may not talk the client into. */
import { afterEach, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { encodeManifest } from '../../../../plugin/image/oci/manifest.ts';
import { MEDIA_TYPE } from '../../../../plugin/image/oci/media-types.ts';
import { type FaultRegistry, type FaultRegistryOptions, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, hastyClock, randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const USER = { username: 'pusher', password: 'secret' };
async function start(options: FaultRegistryOptions = {}) {
  const registry = await startFaultRegistry(options);
  cleanUps.push(() => registry.stop());
  const client = testClient({ clock: hastyClock, credentials: async () => USER });
  cleanUps.push(() => client.close());
  return { registry, client, repository: repositoryOf(registry) };
}
const from = (bytes: Buffer) => async (offset: number, length: number) => bytes.subarray(offset, offset + length);
const identity = (bytes: Buffer) => ({ digest: sha256(bytes), sizeBytes: bytes.length });
const methods = (registry: FaultRegistry) => registry.log.filter((entry) => entry.server === 'registry').map((entry) => entry.method);

test('a small blob goes in one request, a large one in a stream; what is there is not sent again', async () => {
  const { registry, client, repository } = await start();
  for (const [size, expected] of [
    [0, ['HEAD', 'POST', 'PUT']],
    [1000, ['HEAD', 'POST', 'PUT']],
    [9_000_000, ['HEAD', 'POST', 'PATCH', 'PUT']],
  ] as const) {
    const blob = randomBlob(size);
    registry.log.length = 0;
    expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('uploaded');
    expect(methods(registry)).toEqual(expected);
    expect(registry.api.blobs.get(sha256(blob))?.equals(blob)).toBe(true);
    expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('existed');
  }
});

test('chunkBytes limits each request, and progress tells what the registry has', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(5_000_000);
  const progress: number[] = [];
  const options = { chunkBytes: 2_000_000, onProgress: (bytes: number) => progress.push(bytes) };
  await client.uploadBlob(repository, identity(blob), from(blob), options);
  const ranges = registry.log.flatMap((entry) => (entry.method === 'PATCH' ? [entry.headers['content-range']] : []));
  expect(ranges).toEqual(['0-1999999', '2000000-3999999', '4000000-4999999']);
  expect(progress).toEqual([2_000_000, 4_000_000, 5_000_000, 5_000_000]);
});

test('a broken stream goes on where the registry stands', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(9_000_000);
  registry.inject({ method: 'PATCH', path: /uploads/, effect: { kind: 'resetUpload', afterBytes: 3_000_000 } });
  expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('uploaded');
  const ranges = registry.log.flatMap((entry) => (entry.method === 'PATCH' ? [entry.headers['content-range']] : []));
  expect(ranges).toEqual(['0-8999999', '3000000-8999999']);
  expect(registry.api.blobs.get(sha256(blob))?.equals(blob)).toBe(true);
});

test.each([404, 410])('an upload that the registry forgot (%i) begins anew; one whose last answer was lost is done', async (status) => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(5_000_000);
  registry.inject({ method: 'PATCH', path: /uploads/, effect: { kind: 'status', status: status === 404 ? 500 : status } });
  registry.inject({ method: 'GET', path: /uploads/, effect: { kind: 'status', status } });
  expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('uploaded');
  expect(methods(registry)).toEqual(['HEAD', 'POST', 'PATCH', 'GET', 'HEAD', 'POST', 'PATCH', 'PUT']);

  const second = randomBlob(1000);
  registry.inject({ method: 'PUT', path: /uploads/, effect: { kind: 'reset' } });
  expect(await client.uploadBlob(repository, identity(second), from(second))).toBe('uploaded');
  expect(registry.api.blobs.get(sha256(second))?.equals(second)).toBe(true);
});

test('an upload that expires between two chunks, or before its last request, begins anew', async () => {
  const { registry, client, repository } = await start();
  const forgotten = { kind: 'status', status: 404 } as const;
  const blob = randomBlob(5_000_000);
  for (const chunkBytes of [3_000_000, blob.length]) {
    let isFirst = true;
    const onProgress = (): void => {
      if (isFirst) registry.api.uploads.clear();
      isFirst = false;
    };
    expect(await client.uploadBlob(repository, identity(blob), from(blob), { chunkBytes, onProgress })).toBe('uploaded');
    expect(registry.api.blobs.get(sha256(blob))?.equals(blob)).toBe(true);
    registry.api.blobs.clear();
  }
  const small = randomBlob(1000);
  registry.inject({ method: 'PUT', path: /uploads/, effect: forgotten });
  expect(await client.uploadBlob(repository, identity(small), from(small))).toBe('uploaded');
});

test('a registry that knows no HEAD of blobs is sent them, and tells their size all the same', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(100_000);
  registry.inject({ method: 'HEAD', path: /blobs/, times: 100, effect: { kind: 'status', status: 405 } });
  expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('uploaded');
  expect(await client.statBlob(repository, sha256(blob))).toBe(blob.length);
  expect(await client.statBlob(repository, sha256('absent'))).toBeUndefined();
});

test('a registry that never takes a byte ends the upload after six attempts', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(5_000_000);
  registry.inject({ method: 'PATCH', path: /uploads/, times: 100, effect: { kind: 'status', status: 503 } });
  expect((await failureOf(client.uploadBlob(repository, identity(blob), from(blob)))).code).toBe('Unavailable');
  expect(methods(registry).filter((method) => method === 'PATCH').length).toBe(6);
});

test('a registry that takes bytes and says it has none ends the upload', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(5_000_000);
  registry.inject({
    method: 'PATCH',
    path: /uploads/,
    times: 100,
    effect: { kind: 'status', status: 202, headers: { location: '/v2/team/app/blobs/uploads/x', range: '0-0' } },
  });
  expect((await failureOf(client.uploadBlob(repository, identity(blob), from(blob)))).code).toBe('Unavailable');
  expect(methods(registry).filter((method) => method === 'PATCH').length).toBeLessThanOrEqual(6);
});

test('other bytes than the digest says are DataLoss; a source that fails is told as it failed', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(1000);
  const other = randomBlob(1000);
  expect((await failureOf(client.uploadBlob(repository, identity(blob), from(other)))).code).toBe('DataLoss');
  expect(registry.api.blobs.has(sha256(blob))).toBe(false);
  const short = async (): Promise<Uint8Array> => new Uint8Array(3);
  expect((await failureOf(client.uploadBlob(repository, identity(blob), short))).code).toBe('DataLoss');
  const large = randomBlob(5_000_000);
  const failing = async (): Promise<Uint8Array> => {
    throw new AppError('FailedPrecondition', { op: 'read', subject: 'source', what: 'gone' });
  };
  expect((await failureOf(client.uploadBlob(repository, identity(large), failing))).message).toBe('read source: gone');
});

test('a blob is mounted from a repository that has it, with pull on that one and pull,push on the target', async () => {
  const { registry, client, repository } = await start({ auth: { kind: 'bearer', ...USER } });
  const blob = randomBlob(1000);
  const digest = sha256(blob);
  registry.inject({ method: 'HEAD', path: /blobs/, times: 2, effect: { kind: 'status', status: 404 } });
  registry.addBlob(blob);
  expect(await client.uploadBlob(repository, identity(blob), from(blob), { mountFrom: ['team/base'] })).toBe('mounted');
  const scopes = registry.requests('token').map((entry) => new URL(entry.url, registry.origin).searchParams.getAll('scope'));
  expect(scopes.at(-1)).toEqual(['repository:team/app:pull,push', 'repository:team/base:pull']);
  expect(registry.log.some((entry) => entry.url.includes(`mount=${encodeURIComponent(digest)}&from=team%2Fbase`))).toBe(true);
});

test('a blob is provided without bytes of ours: found, mounted, or not at all', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(1000);
  expect(await client.provideBlob(repository, identity(blob), { mountFrom: ['team/base'] })).toBeUndefined();
  expect(methods(registry)).toEqual(['HEAD', 'POST', 'DELETE']);
  registry.inject({ method: 'HEAD', path: /blobs/, times: 1, effect: { kind: 'status', status: 404 } });
  registry.addBlob(blob);
  expect(await client.provideBlob(repository, identity(blob), { mountFrom: ['team/base'] })).toBe('mounted');
  expect(await client.provideBlob(repository, identity(blob))).toBe('existed');
});

test('a mount that does not work becomes an upload', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(1000);
  expect(await client.uploadBlob(repository, identity(blob), from(blob), { mountFrom: ['team/base', 'team/app', '../x'] })).toBe(
    'uploaded',
  );
  expect(methods(registry)).toEqual(['HEAD', 'POST', 'DELETE', 'POST', 'PUT']);
});

test('an upload that was begun instead of a mount need not be ended in order', async () => {
  const { registry, client, repository } = await start();
  const blob = randomBlob(1000);
  for (const effect of [
    { kind: 'status', status: 202, headers: {} },
    { kind: 'status', status: 202, headers: { location: 'ftp://x/' } },
  ] as const) {
    registry.inject({ method: 'POST', path: /mount=/, effect });
    expect(await client.provideBlob(repository, identity(blob), { mountFrom: ['team/base'] })).toBeUndefined();
  }
  registry.inject({ method: 'DELETE', path: /uploads/, effect: { kind: 'reset' } });
  expect(await client.uploadBlob(repository, identity(blob), from(blob), { mountFrom: ['team/base'] })).toBe('uploaded');
});

test('an expired token in the middle of an upload is renewed', async () => {
  const { registry, client, repository } = await start({ auth: { kind: 'bearer', ...USER } });
  const blob = randomBlob(5_000_000);
  let isFirst = true;
  const readAt = async (offset: number, length: number): Promise<Uint8Array> => {
    if (isFirst) registry.tokens?.expireTokens();
    isFirst = false;
    return blob.subarray(offset, offset + length);
  };
  await client.uploadBlob(repository, identity(blob), readAt, { chunkBytes: 1_000_000 });
  expect(registry.api.blobs.get(sha256(blob))?.equals(blob)).toBe(true);
});

test('an upload location on another origin gets no authorization', async () => {
  const { registry, client, repository } = await start({ auth: { kind: 'basic', ...USER } });
  const other = await startFaultRegistry();
  cleanUps.push(() => other.stop());
  other.api.uploads.set('elsewhere', Buffer.alloc(0));
  const blob = randomBlob(1000);
  registry.inject({
    method: 'POST',
    path: /uploads/,
    effect: { kind: 'status', status: 202, headers: { location: `${other.origin}/v2/x/y/blobs/uploads/elsewhere` } },
  });
  // The first POST goes without a login and is not what the fault is for, so log in first.
  await client.statBlob(repository, sha256(blob));
  await client.uploadBlob(repository, identity(blob), from(blob));
  expect(other.log.map((entry) => [entry.method, entry.headers.authorization])).toEqual([['PUT', undefined]]);
});

test('pushes go to the endpoint that takes them, and blobs are looked for there alone', async () => {
  const { registry: mirror } = await start();
  const { registry } = await start();
  const blob = randomBlob(1000);
  mirror.addBlob(blob);
  const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [mirror.origin, registry.origin] });
  cleanUps.push(cleanUp);
  const client = testClient({ hostsDirs: [certsDir] });
  cleanUps.push(() => client.close());
  const repository = { host: 'r.test', repository: 'team/app' };
  expect(await client.uploadBlob(repository, identity(blob), from(blob))).toBe('uploaded');
  expect(mirror.log.length).toBe(0);
});

test('a manifest is stored under its tag and digest, deleted by both, and must be a manifest', async () => {
  const { registry, client, repository } = await start();
  const bytes = encodeManifest({
    kind: 'manifest',
    mediaType: MEDIA_TYPE.ociManifest,
    config: { mediaType: MEDIA_TYPE.ociConfig, digest: sha256('{}'), sizeBytes: 2 },
    layers: [],
  });
  const digest = await client.putManifest(repository, 'v1', bytes, MEDIA_TYPE.ociManifest);
  expect(digest).toBe(sha256(bytes));
  expect((await client.resolve(repository, 'v1')).digest).toBe(digest);
  await client.deleteManifest(repository, 'v1');
  expect((await failureOf(client.resolve(repository, 'v1'))).code).toBe('NotFound');
  await client.deleteManifest(repository, digest);
  expect((await failureOf(client.deleteManifest(repository, digest))).code).toBe('NotFound');
  const before = registry.log.length;
  expect((await failureOf(client.putManifest(repository, 'v1', Buffer.from('{}'), MEDIA_TYPE.ociManifest))).code).toBe('InvalidArgument');
  expect((await failureOf(client.putManifest(repository, sha256('x'), bytes, MEDIA_TYPE.ociManifest))).code).toBe('InvalidArgument');
  expect(registry.log.length).toBe(before);
});

test('a registry that stored another manifest is DataLoss', async () => {
  const { registry, client, repository } = await start();
  const bytes = encodeManifest({ kind: 'index', mediaType: MEDIA_TYPE.ociIndex, manifests: [] });
  registry.inject({
    method: 'PUT',
    path: /manifests/,
    effect: { kind: 'status', status: 201, headers: { 'docker-content-digest': sha256('other') } },
  });
  expect((await failureOf(client.putManifest(repository, 'v1', bytes, MEDIA_TYPE.ociIndex))).code).toBe('DataLoss');
});
