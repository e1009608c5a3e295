/** What becomes of a cache from its request to its end, over a registry and a node in memory. */
import { expect, test, vi } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { CacheHost, DAY_MS, fakeImage, GIB, layerDigest, MIB } from '../../../support/fake-caches.ts';

const WEB = fakeImage('registry.example/team/web:1', ['base', 'node', 'web']);
const API = fakeImage('registry.example/team/api:1', ['base', 'node', 'api']);

function host(options: ConstructorParameters<typeof CacheHost>[0] = {}): CacheHost {
  const made = new CacheHost(options);
  made.node.push(WEB);
  made.node.push(API);
  return made;
}

const reasonsOf = (service: CacheHost['service'], id: string): string[] => service.events(id).map((event) => event.reason);

test('a cache goes from Preparing over Creating to Ready, pinned by digest, its events telling each step', async () => {
  await using caches = host();
  const { service } = caches;
  const created = await service.create({ imageCacheName: 'web', images: [WEB.reference, API.reference] });
  expect(created).toMatchObject({ status: 'Preparing', imageCacheSize: 20, owner: 'user', progress: 0, version: 1, expireDateTime: null });
  expect(created.imageCacheId).toMatch(/^imc-[a-z0-9]{20}$/);
  await caches.settle();
  const ready = service.get(created.imageCacheId);
  expect(ready).toMatchObject({ status: 'Ready', progress: 100, flashProgress: null, failure: null });
  expect(ready.images.map((image) => image.digest)).toEqual([WEB.digest, API.digest]);
  expect(ready.snapshotId).toMatch(/^s-/);
  expect(reasonsOf(service, created.imageCacheId)).toEqual([
    ...['Accepted', 'ImageResolved', 'ImageResolved', 'Creating', 'ImageCached', 'ImageCached', 'Ready'],
  ]);
  // What images share is fetched once.
  expect(caches.node.fetches.get(layerDigest('base'))).toBe(1);
  expect(service.usage()).toMatchObject({ usedImageCacheCount: 1, committedBytes: 400 * MIB, creating: 0, waiting: 0 });
  expect(caches.node.diskBytes).toBe(400 * MIB);
});

test('images that are larger than the cache fail it with both numbers, and nothing stays on disk', async () => {
  await using caches = host();
  caches.node.push(fakeImage('registry.example/big:1', ['a', 'b'], { layerMib: 11 * 1024 }));
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'big', images: ['registry.example/big:1'] });
  await caches.settle();
  const failed = caches.service.get(imageCacheId);
  expect(failed).toMatchObject({ status: 'Failed', snapshotId: null });
  expect(failed.failure).toContain(String(22 * GIB));
  expect(failed.failure).toContain(String(20 * GIB));
  expect(failed.events.at(-1)).toMatchObject({ type: 'Warning', reason: 'Failed' });
  expect(caches.node.blobs.size).toBe(0);
  expect(caches.service.usage().committedBytes).toBe(0);
  // It stays a day, so that somebody reads why.
  await caches.pass(DAY_MS - 60_000);
  expect(caches.service.get(imageCacheId).status).toBe('Failed');
  await caches.pass(180_000, 60_000);
  expect(() => caches.service.get(imageCacheId)).toThrowError(expect.objectContaining({ code: 'NotFound' }));
});

test('what unpacking takes counts: against the size of the cache, and in the ledger', async () => {
  await using caches = host({ budgetBytes: 12 * GIB });
  caches.node.push(fakeImage('registry.example/plain:1', ['p'], { layerMib: 4 * 1024 }));
  caches.node.unpackedBytes.set('registry.example/plain:1', 7 * GIB);
  const plain = await caches.service.create({ imageCacheName: 'plain', images: ['registry.example/plain:1'] });
  await caches.settle();
  expect(caches.service.get(plain.imageCacheId)).toMatchObject({ status: 'Ready', images: [{ sizeBytes: 11 * GIB }] });
  expect(caches.service.usage().committedBytes).toBe(11 * GIB);
  caches.restart();
  expect(caches.service.usage().committedBytes).toBe(11 * GIB);
  // The next one would fit as the registry has it, and not as it is on disk.
  caches.node.push(fakeImage('registry.example/more:1', ['q'], { layerMib: 512 }));
  caches.node.unpackedBytes.set('registry.example/more:1', GIB);
  const more = await caches.service.create({ imageCacheName: 'more', images: ['registry.example/more:1'] });
  await caches.settle();
  expect(caches.service.get(more.imageCacheId)).toMatchObject({ status: 'Failed' });
  expect(caches.service.get(more.imageCacheId).failure).toContain('caches.budget_bytes');
  expect(caches.service.usage().committedBytes).toBe(11 * GIB);
  expect(caches.node.pins.size).toBe(1);
});

test('images that share most of their bytes fit a cache that each of them nearly fills', async () => {
  await using caches = host();
  const big = { layerMib: 9 * 1024 };
  for (const name of ['a', 'b']) caches.node.push(fakeImage(`registry.example/${name}:1`, ['common', 'more'], { ...big, salt: name }));
  const images = ['registry.example/a:1', 'registry.example/b:1'];
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'two', images });
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', failure: null });
  expect(caches.service.usage().committedBytes).toBe(18 * GIB);
});

test('a registry that is away for a moment is tried again; one that says no is not', async () => {
  await using caches = host();
  const away = (): AppError => new AppError('Unavailable', { op: 'fetch', subject: WEB.reference, what: 'connection reset' });
  caches.node.fail('prepare', away(), away());
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Creating');
  await caches.pass(1_000);
  await caches.pass(10_000, 2_000);
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  const warnings = caches.service.events(imageCacheId).filter((event) => event.type === 'Warning');
  expect(warnings.map((event) => event.reason)).toEqual(['Retrying', 'Retrying']);
  expect(warnings[0]?.message).toContain('registry.example');

  const absent = await caches.service.create({ imageCacheName: 'absent', images: ['registry.example/none:1'] });
  await caches.settle();
  expect(caches.service.get(absent.imageCacheId).status).toBe('Failed');
});

test('credentials that were good a moment ago are tried again; those that never were are not', async () => {
  await using caches = host();
  const refused = (): AppError => new AppError('Unauthenticated', { op: 'get', subject: WEB.reference, what: 'answered 401' });
  caches.node.fail('prepare', refused());
  const good = await caches.service.create({ imageCacheName: 'good', images: [WEB.reference] });
  await caches.pass(1_000);
  expect(caches.service.get(good.imageCacheId).status).toBe('Ready');
  caches.node.fail('resolve', refused());
  const wrong = await caches.service.create({ imageCacheName: 'wrong', images: [API.reference] });
  await caches.settle();
  expect(caches.service.get(wrong.imageCacheId).status).toBe('Failed');
});

test('a registry that stays away fails a creation after five attempts', async () => {
  await using caches = host();
  caches.node.fail(
    'resolve',
    ...Array.from({ length: 5 }, () => new AppError('Unavailable', { op: 'get', subject: 'x', what: 'no route' })),
  );
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  for (let attempt = 0; attempt < 4; attempt += 1) {
    await caches.settle();
    expect(caches.service.get(imageCacheId).status).toBe('Preparing');
    await caches.pass(300_000);
  }
  expect(caches.service.get(imageCacheId).status).toBe('Failed');
});

test('progress never falls, stays below 100 until all is read back, and is told to watchers', async () => {
  await using caches = host();
  const stop = new AbortController();
  const seen: number[] = [];
  const watching = (async () => {
    for await (const { cache } of caches.service.watch(stop.signal)) seen.push(cache.progress);
  })();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference, API.reference] });
  await caches.settle();
  expect(caches.service.get(imageCacheId).progress).toBe(100);
  stop.abort();
  await watching;
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  expect(seen.at(-1)).toBe(100);
  expect(new Set(seen).size).toBeGreaterThan(3);
});

test('a flash cache is used before it is whole; progress stays that of the whole', async () => {
  await using caches = host();
  caches.node.hold();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference], flash: true });
  await caches.settle();
  caches.node.letGo();
  // One layer is enough for a start; then the filling waits.
  for (let turn = 0; caches.service.get(imageCacheId).status !== 'Ready'; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
    if (turn > 1000) throw new Error('never usable');
  }
  caches.node.hold();
  await caches.settle();
  const usable = caches.service.get(imageCacheId);
  expect(usable).toMatchObject({ status: 'Ready', flashProgress: 100, snapshotId: null });
  expect(usable.progress).toBeLessThan(100);
  expect(usable.flashSnapshotId).toMatch(/^f-/);
  expect(caches.service.matchForPod({ images: [{ reference: WEB.reference }] }).cache?.imageCacheId).toBe(imageCacheId);
  // What is still being filled cannot be built anew.
  await expect(caches.service.update(imageCacheId, { images: [API.reference] })).rejects.toMatchObject({
    details: { reason: 'OperationConflict' },
  });
  caches.restart();
  caches.node.letGo();
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', progress: 100, flashSnapshotId: null });
  expect(caches.service.get(imageCacheId).snapshotId).toMatch(/^s-/);
});

test('a flash cache that cannot be used before it is whole becomes whole all the same', async () => {
  await using caches = host();
  caches.node.fail('prepare', new AppError('Unavailable', { op: 'view', subject: WEB.reference, what: 'not there within 30 s' }));
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference], flash: true });
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', progress: 100, flashProgress: 100 });
  expect(reasonsOf(caches.service, imageCacheId)).toContain('NotUsableSoon');
  expect(reasonsOf(caches.service, imageCacheId)).not.toContain('FlashReady');
  expect(reasonsOf(caches.service, imageCacheId)).not.toContain('Retrying');
});

test('an unpacked image that fills most of a flash cache is measured against the same bound twice', async () => {
  await using caches = host();
  caches.node.push(fakeImage('registry.example/plain:1', ['p'], { layerMib: 6 * 1024 }));
  caches.node.unpackedBytes.set('registry.example/plain:1', 10 * GIB);
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'plain', images: ['registry.example/plain:1'], flash: true });
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', progress: 100, images: [{ sizeBytes: 16 * GIB }] });
});

test('a kill in every state loses nothing: the work goes on, and each blob is fetched once', async () => {
  await using caches = host();
  caches.node.hold();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  caches.restart();
  expect(caches.service.get(imageCacheId).status).toBe('Preparing');
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Creating');
  caches.restart();
  caches.node.letGo();
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  caches.restart();
  caches.node.hold();
  await caches.service.update(imageCacheId, { images: [API.reference] });
  await caches.settle();
  caches.restart();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Updating' });
  caches.node.letGo();
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready' });
  expect([...caches.node.fetches.values()]).toEqual([1, 1, 1, 1]);
  // The content of the former images has gone with them.
  expect(caches.node.blobs.has(layerDigest('web'))).toBe(false);
});

test('what a killed process left without a cache is let go at the next start', async () => {
  await using caches = host();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  caches.node.fail('release', new AppError('Unavailable', { op: 'release', subject: imageCacheId, what: 'containerd is away' }));
  await caches.service.delete(imageCacheId);
  expect(caches.node.pins.size).toBe(1);
  expect(caches.service.complaint).toContain('containerd is away');
  caches.restart();
  await caches.settle();
  expect(caches.node.pins.size).toBe(0);
  expect(caches.node.blobs.size).toBe(0);
  expect(caches.service.complaint).toBeUndefined();
});

test('a containerd that starts after the service is asked again soon, and nothing is complained of afterwards', async () => {
  await using caches = host();
  const away = new AppError('Unavailable', { op: 'list', subject: 'leases', what: 'containerd is away' });
  caches.node.fail('list', away, away);
  caches.restart();
  await vi.waitFor(() => expect(caches.service.complaint).toContain('containerd is away'), 30_000);
  await caches.pass(10_000, 2_000);
  expect(caches.service.complaint).toBeUndefined();
});

test('content that is damaged is noticed and brought again; the cache does not serve meanwhile', async () => {
  await using caches = host();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  caches.node.blobs.delete(layerDigest('web'));
  caches.node.hold();
  await caches.pass(6 * 3_600_000);
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Creating', progress: 0 });
  expect(caches.service.matchForPod({ images: [{ reference: WEB.reference }] }).outcome).toBe('none');
  caches.node.letGo();
  await caches.settle();
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', progress: 100 });
  expect(reasonsOf(caches.service, imageCacheId)).toContain('ContentDamaged');
});

test('what could not be looked at, as at boot, is looked at again within a minute', async () => {
  await using caches = host();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  caches.node.blobs.delete(layerDigest('web'));
  caches.node.fail('verify', new AppError('Unavailable', { op: 'look up', subject: 'snapshot', what: 'containerd is away' }));
  caches.restart();
  await caches.settle();
  expect(reasonsOf(caches.service, imageCacheId)).not.toContain('ContentDamaged');
  await caches.pass(60_000);
  expect(reasonsOf(caches.service, imageCacheId)).toContain('ContentDamaged');
  expect(caches.service.get(imageCacheId)).toMatchObject({ status: 'Ready', progress: 100 });
});

test('while a cache is updated the former content serves, and a failed update leaves it', async () => {
  await using caches = host();
  const { service } = caches;
  const { imageCacheId, version } = await service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  caches.node.fail('resolve', new AppError('PermissionDenied', { op: 'get', subject: API.reference, what: 'denied' }));
  const updating = await service.update(imageCacheId, { images: [WEB.reference, API.reference] });
  expect(updating).toMatchObject({ status: 'Updating', progress: 0 });
  expect(updating.version).toBeGreaterThan(version);
  expect(updating.images).toHaveLength(1);
  expect(updating.pendingImages).toHaveLength(2);
  expect(service.matchForPod({ images: [{ reference: WEB.reference }], imageCacheId }).outcome).toBe('pinned');
  await expect(service.update(imageCacheId, { retentionDays: 3 })).rejects.toMatchObject({ details: { reason: 'OperationConflict' } });
  await caches.settle();
  expect(service.get(imageCacheId)).toMatchObject({ status: 'UpdateFailed' });
  expect(service.get(imageCacheId).failure).toContain('denied');
  expect(service.matchForPod({ images: [{ reference: WEB.reference }] }).missingImages).toEqual([]);
  expect(caches.node.pins.get(imageCacheId)?.size).toBe(1);
  // Back to what it was, or on to what was wanted.
  await service.update(imageCacheId, { images: [WEB.reference] });
  await caches.settle();
  expect(service.get(imageCacheId)).toMatchObject({ status: 'Ready', failure: null });
  await service.update(imageCacheId, { images: [WEB.reference, API.reference] });
  await caches.settle();
  expect(service.get(imageCacheId)).toMatchObject({ status: 'Ready', pendingImages: null, failure: null });
  expect(service.get(imageCacheId).images).toHaveLength(2);
});

test('an update with the same images follows a tag that moved, and is refused when none did', async () => {
  await using caches = host();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  const same = { images: [WEB.reference] };
  await expect(caches.service.update(imageCacheId, same)).rejects.toMatchObject({
    code: 'InvalidArgument',
    details: { reason: 'NoNeedUpdate' },
  });
  const moved = fakeImage(WEB.reference, ['base', 'node', 'web 2']);
  caches.node.push(moved);
  await caches.service.update(imageCacheId, same);
  await caches.settle();
  expect(caches.service.get(imageCacheId).images[0]?.digest).toBe(moved.digest);
  expect(caches.node.blobs.has(layerDigest('web'))).toBe(false);
});

test('deletion in the middle of a creation leaves nothing, and a second one is no error', async () => {
  await using caches = host();
  caches.node.hold();
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.settle();
  await caches.service.delete(imageCacheId);
  expect(caches.service.list().totalCount).toBe(0);
  expect(caches.node.pins.size).toBe(0);
  await caches.service.delete(imageCacheId);
  caches.restart();
  await caches.service.delete(imageCacheId);
  await expect(caches.service.delete('imc-00000000000000000000')).rejects.toMatchObject({ code: 'NotFound' });
  // The name is free again.
  await caches.service.create({ imageCacheName: 'web', images: [WEB.reference] });
  await caches.pass(2 * DAY_MS);
  await expect(caches.service.delete(imageCacheId)).rejects.toMatchObject({ code: 'NotFound' });
});

test('credentials reach the registry and nothing else', async () => {
  await using caches = host();
  const password = 'correct horse battery staple';
  caches.node.fail('prepare', new AppError('PermissionDenied', { op: 'get', subject: 'x', what: `the registry says: bad ${password}` }));
  const { imageCacheId } = await caches.service.create({
    ...{ imageCacheName: 'web', images: [WEB.reference] },
    imageRegistryCredentials: [{ server: 'registry.example', userName: 'robot', password }],
  });
  await caches.settle();
  const shown = JSON.stringify([caches.service.get(imageCacheId), caches.service.events(imageCacheId), caches.service.list()]);
  expect(caches.service.get(imageCacheId).status).toBe('Failed');
  expect(shown).toContain('[removed]');
  expect(shown).not.toContain(password);
});
