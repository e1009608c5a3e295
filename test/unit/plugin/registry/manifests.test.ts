/** Manifests, whole blobs and lists: digests are checked, sizes bounded, breaks survived, pages followed within the origin. */
import { afterEach, describe, expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../../plugin/base/digest.ts';
import { encodeManifest, type Manifest } from '../../../../plugin/image/oci/manifest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../plugin/image/oci/media-types.ts';
import type { RegistryClientOptions } from '../../../../plugin/registry/client.ts';
import { type FaultRegistryOptions, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, hastyClock, randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: FaultRegistryOptions = {}, clientOptions: RegistryClientOptions = {}) {
  const registry = await startFaultRegistry(options);
  cleanUps.push(() => registry.stop());
  const client = testClient({ clock: hastyClock, ...clientOptions });
  cleanUps.push(() => client.close());
  return { registry, client, repository: repositoryOf(registry) };
}

const descriptor = (bytes: Uint8Array, mediaType: string) => ({ mediaType, digest: sha256(bytes), sizeBytes: bytes.length });
function manifest(layer: string, more: Partial<Manifest> = {}): Uint8Array {
  return encodeManifest({
    kind: 'manifest',
    mediaType: MEDIA_TYPE.ociManifest,
    config: descriptor(Buffer.from('{}'), MEDIA_TYPE.ociConfig),
    layers: [descriptor(Buffer.from(layer), MEDIA_TYPE.ociLayerTar)],
    ...more,
  });
}

describe('manifests', () => {
  test('a tag resolves by one HEAD and is fetched by digest with its bytes unchanged', async () => {
    const { registry, client, repository } = await start();
    const bytes = manifest('a');
    const digest = registry.addManifest('team/app', bytes, MEDIA_TYPE.ociManifest, 'v1');
    expect(await client.resolve(repository, 'v1')).toEqual({ mediaType: MEDIA_TYPE.ociManifest, digest, sizeBytes: bytes.length });
    expect(registry.log.map((entry) => entry.method)).toEqual(['HEAD']);
    const fetched = await client.getManifest(repository, digest);
    expect(Buffer.from(fetched.bytes).equals(bytes)).toBe(true);
    expect(registry.log.at(-1)?.headers.accept).toContain(MEDIA_TYPE.ociIndex);
  });

  test.each([
    ['without a digest', { kind: 'status', status: 200, headers: { 'content-type': MEDIA_TYPE.ociManifest } }],
    ['that is not known', { kind: 'status', status: 405 }],
  ] as const)('a HEAD %s is followed by a GET', async (_what, effect) => {
    const { registry, client, repository } = await start();
    const digest = registry.addManifest('team/app', manifest('a'), MEDIA_TYPE.ociManifest, 'v1');
    registry.inject({ method: 'HEAD', path: /manifests/, effect });
    expect((await client.resolve(repository, 'v1')).digest).toBe(digest);
    expect(registry.log.map((entry) => entry.method)).toEqual(['HEAD', 'GET']);
  });

  test('what is not there is NotFound after one request', async () => {
    const { registry, client, repository } = await start();
    expect((await failureOf(client.resolve(repository, 'v1'))).code).toBe('NotFound');
    const error = await failureOf(client.getManifest(repository, 'v1'));
    expect([error.code, error.details.registryCode]).toEqual(['NotFound', 'MANIFEST_UNKNOWN']);
    expect(registry.log.length).toBe(2);
  });

  test('other bytes than the digest says are DataLoss', async () => {
    const { registry, client, repository } = await start();
    const digest = registry.addManifest('team/app', manifest('a'), MEDIA_TYPE.ociManifest);
    registry.inject({ path: /manifests/, effect: { kind: 'corrupt', atByte: 30 } });
    expect((await failureOf(client.getManifest(repository, digest))).code).toBe('DataLoss');
  });

  test('other bytes at one mirror are fetched from the next', async () => {
    const [bad, good] = [await start(), await start()];
    const bytes = manifest('a');
    for (const { registry } of [bad, good]) registry.addManifest('team/app', bytes, MEDIA_TYPE.ociManifest);
    bad.registry.inject({ path: /manifests/, effect: { kind: 'corrupt' } });
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [bad.registry.origin, good.registry.origin] });
    cleanUps.push(cleanUp);
    const client = testClient({ hostsDirs: [certsDir] });
    cleanUps.push(() => client.close());
    const fetched = await client.getManifest({ host: 'r.test', repository: 'team/app' }, sha256(bytes));
    expect(Buffer.from(fetched.bytes).equals(bytes)).toBe(true);
  });

  test('what a tag names now is asked where pushes go, when the caller must know', async () => {
    const [mirror, registry] = [await start(), await start()];
    const old = mirror.registry.addManifest('team/app', manifest('old'), MEDIA_TYPE.ociManifest, 'v1');
    const now = registry.registry.addManifest('team/app', manifest('now'), MEDIA_TYPE.ociManifest, 'v1');
    registry.registry.addManifest('team/app', manifest('now'), MEDIA_TYPE.ociManifest, 'v2');
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [mirror.registry.origin, registry.registry.origin] });
    cleanUps.push(cleanUp);
    const client = testClient({ hostsDirs: [certsDir] });
    cleanUps.push(() => client.close());
    const repository = { host: 'r.test', repository: 'team/app' };
    expect((await client.resolve(repository, 'v1')).digest).toBe(old);
    const isCurrent = true;
    expect((await client.resolve(repository, 'v1', { isCurrent })).digest).toBe(now);
    expect((await client.getManifest(repository, 'v1', { isCurrent })).descriptor.digest).toBe(now);
    expect(await client.listTags(repository)).toEqual(['v1']);
    expect(await client.listTags(repository, { isCurrent })).toEqual(['v1', 'v2']);
  });

  test('more than 8 MiB is refused without being held', async () => {
    const { registry, client, repository } = await start();
    registry.addManifest('team/app', Buffer.alloc(8 * 1024 * 1024 + 1, 32), MEDIA_TYPE.ociManifest, 'big');
    expect((await failureOf(client.getManifest(repository, 'big'))).message).toContain('more than 8388608 bytes');
  });

  test('a passing failure is tried again twice, a long Retry-After is left to the caller', async () => {
    const { registry, client, repository } = await start();
    registry.addManifest('team/app', manifest('a'), MEDIA_TYPE.ociManifest, 'v1');
    registry.inject({ path: /manifests/, times: 2, effect: { kind: 'status', status: 503 } });
    await client.getManifest(repository, 'v1');
    expect(registry.log.length).toBe(3);
    registry.inject({ path: /manifests/, times: 2, effect: { kind: 'status', status: 429, headers: { 'retry-after': '60' } } });
    const error = await failureOf(client.getManifest(repository, 'v1'));
    expect([error.code, error.retryAfterMs, registry.log.length]).toEqual(['Unavailable', 60_000, 4]);
  });

  test.each(['', '../x', 'a/b', 'v1?x', 'sha256:abc'])('the object %j asks nobody', async (object) => {
    const { registry, client, repository } = await start();
    await expect(async () => client.getManifest(repository, object)).rejects.toMatchObject({ code: 'InvalidArgument' });
    await expect(async () => client.resolve({ ...repository, repository: 'a/../b' }, 'v1')).rejects.toMatchObject({
      code: 'InvalidArgument',
    });
    expect(registry.log.length).toBe(0);
  });
});

describe('whole blobs', () => {
  const blob = randomBlob(3_000_000);
  const identity = { digest: sha256(blob), sizeBytes: blob.length };
  const drain = async (stream: AsyncIterable<Uint8Array>): Promise<Buffer> => {
    const chunks: Uint8Array[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    return Buffer.concat(chunks);
  };

  test('a stream gives the bytes', async () => {
    const { registry, client, repository } = await start({ redirectBlobs: true });
    registry.addBlob(blob);
    expect((await drain(client.streamBlob(repository, identity))).equals(blob)).toBe(true);
  });

  test('a stream goes on after resets, stalls and truncation, from the byte where it broke', async () => {
    const { registry, client, repository } = await start({}, { bodyIdleTimeoutMs: 2_000 });
    registry.addBlob(blob);
    registry.inject({ effect: { kind: 'reset', afterBytes: 1_000_000 } });
    registry.inject({ effect: { kind: 'truncate', afterBytes: 500_000 } });
    registry.inject({ effect: { kind: 'stall', afterBytes: 500_000 } });
    expect((await drain(client.streamBlob(repository, identity))).equals(blob)).toBe(true);
    const ranges = registry.log.map((entry) => entry.headers.range);
    expect(ranges[0]).toBeUndefined();
    const starts = ranges.slice(1).map((range) => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1]));
    // Not just three: on a busy machine a good answer may seem to stall.
    expect(starts.length).toBeGreaterThanOrEqual(3);
    expect(starts).toEqual(starts.toSorted((a, b) => a - b));
    expect(starts[0]).toBeGreaterThan(0);
  });

  test('a stream of wrong bytes ends with DataLoss', async () => {
    const { registry, client, repository } = await start();
    registry.addBlob(blob);
    registry.inject({ effect: { kind: 'corrupt', atByte: 2_000_000 } });
    expect((await failureOf(drain(client.streamBlob(repository, identity)))).code).toBe('DataLoss');
  });

  test('a stream of another length is DataLoss before a byte of it', async () => {
    const { registry, client, repository } = await start();
    registry.addBlob(blob);
    const error = await failureOf(drain(client.streamBlob(repository, { ...identity, sizeBytes: blob.length - 1 })));
    expect(error.code).toBe('DataLoss');
  });

  test('a registry that never sends a byte ends the stream after six attempts', async () => {
    const { registry, client, repository } = await start();
    registry.addBlob(blob);
    registry.inject({ times: 100, effect: { kind: 'status', status: 503 } });
    expect((await failureOf(drain(client.streamBlob(repository, identity)))).code).toBe('Unavailable');
    expect(registry.log.length).toBe(6);
  });

  test('leaving a stream early cuts it off, and a slow reader holds a bounded amount', async () => {
    const { registry, client, repository } = await start();
    const large = Buffer.alloc(64 * 1024 * 1024, 7);
    const digest = registry.addBlob(large);
    const before = process.memoryUsage().arrayBuffers;
    for await (const chunk of client.streamBlob(repository, { digest, sizeBytes: large.length })) {
      expect(chunk.length).toBeGreaterThan(0);
      await expect.poll(() => process.memoryUsage().arrayBuffers - before, { timeout: 20_000 }).toBeLessThan(32 * 1024 * 1024);
      break;
    }
    expect((await drain(client.streamBlob(repository, { digest: registry.addBlob(blob), sizeBytes: blob.length }))).length).toBe(
      blob.length,
    );
  });

  test('a small blob comes in one piece, checked; a larger one than allowed asks nobody', async () => {
    const { registry, client, repository } = await start();
    const digest = registry.addBlob(blob);
    expect(Buffer.from(await client.getSmallBlob(repository, identity)).equals(blob)).toBe(true);
    registry.inject({ effect: { kind: 'corrupt' } });
    expect((await failureOf(client.getSmallBlob(repository, identity))).code).toBe('DataLoss');
    const before = registry.log.length;
    expect((await failureOf(client.getSmallBlob(repository, { digest, sizeBytes: 9_000_000 }))).code).toBe('InvalidArgument');
    expect((await failureOf(client.getSmallBlob(repository, identity, { maxBytes: 100 }))).code).toBe('InvalidArgument');
    expect(registry.log.length).toBe(before);
  });

  test('a caller with room for it gets a blob larger than a document, such as the index of a large layer, up to 64 MiB', async () => {
    const { registry, client, repository } = await start();
    const index = randomBlob(9 * 1024 * 1024);
    const digest = registry.addBlob(index);
    const room = { maxBytes: 64 * 1024 * 1024 };
    expect(Buffer.from(await client.getSmallBlob(repository, { digest, sizeBytes: index.length }, room)).equals(index)).toBe(true);
    const before = registry.log.length;
    const larger = { digest, sizeBytes: room.maxBytes + 1 };
    expect((await failureOf(client.getSmallBlob(repository, larger, { maxBytes: Number.MAX_SAFE_INTEGER }))).code).toBe('InvalidArgument');
    expect(registry.log.length).toBe(before);
  });

  test('stat gives the size, or undefined', async () => {
    const { registry, client, repository } = await start();
    expect(await client.statBlob(repository, registry.addBlob(blob))).toBe(blob.length);
    expect(await client.statBlob(repository, sha256('nothing'))).toBeUndefined();
  });
});

describe('referrers', () => {
  const subject = { mediaType: MEDIA_TYPE.ociManifest, digest: sha256('the image') as Digest, sizeBytes: 9 };

  test.each([
    ['the API', true],
    ['the fallback tag', false],
  ])('%s lists what was pushed with a subject, filtered by type', async (_what, referrersApi) => {
    const { registry, client, repository } = await start({ referrersApi });
    const full = manifest('full', { artifactType: ARTIFACT_TYPE.native, subject });
    const index = manifest('index', { artifactType: ARTIFACT_TYPE.turbo, subject, annotations: { a: 'b' } });
    for (const bytes of [full, index, index]) await client.putManifest(repository, sha256(bytes), bytes, MEDIA_TYPE.ociManifest);
    const all = await client.listReferrers(repository, subject.digest);
    expect(all.map((entry) => entry.digest)).toEqual([sha256(full), sha256(index)]);
    const turbo = await client.listReferrers(repository, subject.digest, { artifactType: ARTIFACT_TYPE.turbo });
    expect(turbo.map(({ digest, sizeBytes, artifactType }) => ({ digest, sizeBytes, artifactType }))).toEqual([
      { digest: sha256(index), sizeBytes: index.length, artifactType: ARTIFACT_TYPE.turbo },
    ]);
    expect(registry.api.tags.size).toBe(referrersApi ? 0 : 1);
  });

  test('none are an empty list', async () => {
    for (const referrersApi of [true, false]) {
      const { client, repository } = await start({ referrersApi });
      expect(await client.listReferrers(repository, subject.digest)).toEqual([]);
    }
  });

  test('a mirror without the API does not hide what the registry behind it lists', async () => {
    const [mirror, upstream] = [await start({ referrersApi: false }), await start()];
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [mirror.registry.origin, upstream.registry.origin] });
    cleanUps.push(cleanUp);
    const client = testClient({ hostsDirs: [certsDir] });
    cleanUps.push(() => client.close());
    const repository = { host: 'r.test', repository: 'team/app' };
    const digest = upstream.registry.addManifest('team/app', manifest('full', { subject }), MEDIA_TYPE.ociManifest);
    expect((await client.listReferrers(repository, subject.digest)).map((entry) => entry.digest)).toEqual([digest]);
    // The registry is away: what the mirror has under the tag is better than nothing.
    const other = manifest('other', { subject });
    await mirror.client.putManifest(mirror.repository, sha256(other), other, MEDIA_TYPE.ociManifest);
    upstream.registry.inject({ path: /referrers/, times: 100, effect: { kind: 'status', status: 503, headers: { 'retry-after': '60' } } });
    expect((await client.listReferrers(repository, subject.digest)).map((entry) => entry.digest)).toEqual([sha256(other)]);
  });

  test('many writers of the fallback tag at once make room for each other', async () => {
    const { registry, repository } = await start({ referrersApi: false, latencyMs: 2 });
    const clients = Array.from({ length: 6 }, () => testClient());
    cleanUps.push(async () => {
      for (const client of clients) await client.close();
    });
    const pushed = clients.map((client, i) => {
      const bytes = manifest(`artifact ${i}`, { subject });
      return client.putManifest(repository, sha256(bytes), bytes, MEDIA_TYPE.ociManifest);
    });
    // Each has seen its entry in the list, or would have given up with a conflict.
    expect(new Set(await Promise.all(pushed)).size).toBe(6);
    expect(registry.api.tags.size).toBe(1);
  });

  test('the fallback tag loses entries that were deleted without it when the registry takes it no longer', async () => {
    const { registry, client, repository } = await start({ referrersApi: false });
    const push = (bytes: Uint8Array) => client.putManifest(repository, sha256(bytes), bytes, MEDIA_TYPE.ociManifest);
    const [gone, kept, later] = ['gone', 'kept', 'later'].map((name) => manifest(name, { subject })) as [
      Uint8Array,
      Uint8Array,
      Uint8Array,
    ];
    await push(gone);
    await push(kept);
    await client.deleteManifest(repository, sha256(gone));
    const body = JSON.stringify({ errors: [{ code: 'MANIFEST_BLOB_UNKNOWN' }] });
    registry.inject({ method: 'PUT', path: /manifests\/sha256-/, effect: { kind: 'status', status: 400, body } });
    await push(later);
    const listed = async () => (await client.listReferrers(repository, subject.digest)).map((entry) => entry.digest);
    expect(await listed()).toEqual([sha256(kept), sha256(later)]);
    // All are there: then something else is wrong.
    registry.inject({ method: 'PUT', path: /manifests\/sha256-/, effect: { kind: 'status', status: 400, body } });
    expect((await failureOf(push(manifest('more', { subject })))).details.registryCode).toBe('MANIFEST_BLOB_UNKNOWN');
    expect(await listed()).toEqual([sha256(kept), sha256(later)]);
  });

  test('pages are followed', async () => {
    const { client, registry, repository } = await start({ pageSize: 2 });
    for (let i = 0; i < 5; i += 1) registry.addManifest('team/app', manifest(`${i}`, { subject }), MEDIA_TYPE.ociManifest);
    expect((await client.listReferrers(repository, subject.digest)).length).toBe(5);
    expect(registry.log.length).toBe(3);
  });

  test('entries that cannot be read are left out, an endless list and another origin are refused', async () => {
    const { client, registry, repository } = await start();
    const body = (entries: unknown[]) => JSON.stringify({ schemaVersion: 2, manifests: entries });
    const good = { mediaType: MEDIA_TYPE.ociManifest, digest: sha256('x'), size: 1 };
    const headers = { 'content-type': MEDIA_TYPE.ociIndex };
    const inject = (link: string | undefined, entries: unknown[], times = 1) =>
      registry.inject({
        path: /referrers/,
        times,
        effect: { kind: 'status', status: 200, headers: link === undefined ? headers : { ...headers, link }, body: body(entries) },
      });
    inject(undefined, [{ ...good, digest: `sha512:${'a'.repeat(128)}` }, good, 7, { ...good, size: -1 }]);
    expect((await client.listReferrers(repository, subject.digest)).length).toBe(1);
    inject('<http://elsewhere.invalid/>; rel="next"', [good]);
    expect((await failureOf(client.listReferrers(repository, subject.digest))).code).toBe('PermissionDenied');
    inject(`</v2/team/app/referrers/${subject.digest}?again>; rel="next"`, [good], 1000);
    const before = registry.log.length;
    expect((await failureOf(client.listReferrers(repository, subject.digest))).code).toBe('PermissionDenied');
    expect(registry.log.length - before).toBe(100);
  });
});

describe('tags', () => {
  test('all pages are listed in the registry’s order', async () => {
    const { client, registry, repository } = await start({ pageSize: 3 });
    const bytes = manifest('a');
    for (const tag of ['c', 'a', 'b', 'e', 'd']) registry.addManifest('team/app', bytes, MEDIA_TYPE.ociManifest, tag);
    expect(await client.listTags(repository)).toEqual(['a', 'b', 'c', 'd', 'e']);
  });

  test('what is no list is Unavailable, what is no tag is left out', async () => {
    const { client, registry, repository } = await start();
    const inject = (body: string) => registry.inject({ path: /tags/, times: 3, effect: { kind: 'status', status: 200, body } });
    inject('{"tags":"x"}');
    expect((await failureOf(client.listTags(repository))).code).toBe('Unavailable');
    registry.faults.clear();
    inject('{"tags":["ok","../x",7,null]}');
    expect(await client.listTags(repository)).toEqual(['ok']);
    registry.faults.clear();
    inject('{"tags":null}');
    expect(await client.listTags(repository)).toEqual([]);
  });
});
