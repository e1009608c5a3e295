/** What clients of the service see: refusals, idempotency, quotas, retention, lists, pins, automatic caches. */
import { expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import type { CreateCacheRequest, UpdateCacheRequest } from '../../../../plugin/cache/service.ts';
import { CacheHost, DAY_MS, fakeImage, GIB, HOUR_MS, layerDigest } from '../../../support/fake-caches.ts';

const refOf = (n: number): string => `registry.example/team/app-${n}:1`;

function host(options: ConstructorParameters<typeof CacheHost>[0] = {}): CacheHost {
  const made = new CacheHost(options);
  for (let n = 0; n < 60; n += 1) made.node.push(fakeImage(refOf(n), ['base', `app-${n}`]));
  return made;
}

async function ready(caches: CacheHost, n: number, more: Partial<CreateCacheRequest> = {}): Promise<string> {
  const { imageCacheId } = await caches.service.create({ imageCacheName: `app-${n}`, images: [refOf(n)], ...more });
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  return imageCacheId;
}

const reason = (name: string) => expect.objectContaining({ details: expect.objectContaining({ reason: name }) });

const GOOD: CreateCacheRequest = { imageCacheName: 'good', images: [refOf(0)] };

test.each<[string, Record<string, unknown>]>([
  ['no images', { images: [] }],
  ['21 images', { images: Array.from({ length: 21 }, (_, n) => refOf(n)) }],
  ['an image twice', { images: [refOf(1), refOf(1)] }],
  ['an image twice in two spellings', { images: ['nginx', 'docker.io/library/nginx:latest'] }],
  ['a malformed reference', { images: ['registry.example/UPPER:1'] }],
  ['a name with capitals', { imageCacheName: 'Web' }],
  ['a name of one letter', { imageCacheName: 'w' }],
  ['a reserved name', { imageCacheName: 'auto-create-for-me' }],
  ['a size below 20', { imageCacheSize: 19 }],
  ['a size above 32768', { imageCacheSize: 32_769 }],
  ['a size that is no whole number', { imageCacheSize: 20.5 }],
  ['zero days', { retentionDays: 0 }],
  ['too many days', { retentionDays: 65_537 }],
  ['another strategy', { eliminationStrategy: 'FIFO' }],
  ['21 tags', { tags: Array.from({ length: 21 }, (_, n) => ({ key: `k${n}`, value: '' })) }],
  ['a tag twice', { tags: [{ key: 'a' }, { key: 'a' }] }],
  [
    '11 credentials',
    { imageRegistryCredentials: Array.from({ length: 11 }, (_, n) => ({ server: `r${n}.example`, userName: 'u', password: 'p' })) },
  ],
  ['a bad registry host', { plainHttpRegistry: ['http://x'] }],
  ['an unknown field', { colour: 'red' }],
])('a request with %s is refused and changes nothing', async (_, change) => {
  await using caches = host();
  await expect(caches.service.create({ ...GOOD, ...change } as CreateCacheRequest)).rejects.toMatchObject({
    code: 'InvalidArgument',
    details: { reason: 'InvalidParameter' },
  });
  expect(caches.service.list().totalCount).toBe(0);
});

test('the widest request is accepted and shown without its secrets', async () => {
  await using caches = host();
  const request: CreateCacheRequest = {
    ...{ imageCacheName: 'wide', images: Array.from({ length: 20 }, (_, n) => refOf(n)), imageCacheSize: 32_768, retentionDays: 65_536 },
    ...{ eliminationStrategy: 'LRU', autoMatchImageCache: true, flash: true, tags: [{ key: 'team', value: 'a' }] },
    imageRegistryCredentials: [{ server: 'registry.example', userName: 'u', password: 'hidden-word' }],
    ...{ plainHttpRegistry: ['registry.example'], insecureRegistry: ['other.example:5000'], cpuArch: 'arm64', osType: 'linux' },
    ...{ resourceGroupId: 'rg-1', cloud: { vSwitchId: 'vsw-1', flashCopyCount: '2' } },
  };
  const created = await caches.service.create(request);
  expect(created).toMatchObject({
    ...{ imageCacheSize: 32_768, retentionDays: 65_536, eliminationStrategy: 'LRU', autoMatchImageCache: true, flash: true },
    ...{
      tags: [{ key: 'team', value: 'a' }],
      cpuArch: 'arm64',
      resourceGroupId: 'rg-1',
      cloud: { vSwitchId: 'vsw-1', flashCopyCount: '2' },
    },
  });
  expect(created.events.map(({ type, reason, message }) => `${type} ${reason}: ${message}`)).toEqual([
    expect.stringContaining('Accepted'),
    expect.stringMatching(/WithoutEffect: .*vSwitchId, flashCopyCount/),
    expect.stringMatching(/Warning OneCopy: flashCopyCount 2: /),
  ]);
  expect(JSON.stringify(created)).not.toContain('hidden-word');
});

test('names are unique while their cache lives', async () => {
  await using caches = host();
  await ready(caches, 1);
  await expect(caches.service.create({ imageCacheName: 'app-1', images: [refOf(2)] })).rejects.toMatchObject({
    code: 'AlreadyExists',
    details: { reason: 'ImageCache.NameDuplicated' },
  });
});

test('the same token with the same request gives the same cache for a day; with another one it is refused', async () => {
  await using caches = host();
  const first = await caches.service.create(GOOD, { clientToken: 't-1' });
  const again = await caches.service.create({ ...GOOD }, { clientToken: 't-1' });
  expect(again.imageCacheId).toBe(first.imageCacheId);
  caches.restart();
  expect((await caches.service.create(GOOD, { clientToken: 't-1' })).imageCacheId).toBe(first.imageCacheId);
  await expect(caches.service.create({ ...GOOD, imageCacheSize: 21 }, { clientToken: 't-1' })).rejects.toMatchObject({
    code: 'Conflict',
    details: { reason: 'IdempotentParameterMismatch' },
  });
  await caches.pass(25 * HOUR_MS);
  await expect(caches.service.create({ ...GOOD, imageCacheSize: 21 }, { clientToken: 't-1' })).rejects.toEqual(
    reason('ImageCache.NameDuplicated'),
  );
  for (const clientToken of ['', 'x'.repeat(65), 'é', 'a b']) {
    await expect(caches.service.create(GOOD, { clientToken })).rejects.toEqual(reason('InvalidParameter'));
  }
});

test('a token is free again when its cache is gone: the request makes a new cache', async () => {
  await using caches = host();
  const first = await caches.service.create(GOOD, { clientToken: 't-1' });
  await caches.service.delete(first.imageCacheId);
  const second = await caches.service.create(GOOD, { clientToken: 't-1' });
  expect(second.imageCacheId).not.toBe(first.imageCacheId);
  expect((await caches.service.create(GOOD, { clientToken: 't-1' })).imageCacheId).toBe(second.imageCacheId);
  await caches.service.delete(second.imageCacheId);
  const other = await caches.service.create({ ...GOOD, imageCacheSize: 21 }, { clientToken: 't-1' });
  caches.restart();
  await expect(caches.service.create(GOOD, { clientToken: 't-1' })).rejects.toEqual(reason('IdempotentParameterMismatch'));
  expect(caches.service.list().caches.map(({ imageCacheId }) => imageCacheId)).toEqual([other.imageCacheId]);
});

test('a dry run checks everything and changes nothing', async () => {
  await using caches = host({ maxCount: 1 });
  await expect(caches.service.create(GOOD, { dryRun: true })).rejects.toEqual(reason('DryRunOperation'));
  expect(caches.service.list().totalCount).toBe(0);
  const id = await ready(caches, 1);
  await expect(caches.service.create(GOOD, { dryRun: true })).rejects.toEqual(reason('QuotaExceeded'));
  const before = caches.service.get(id);
  await expect(caches.service.update(id, { retentionDays: 3 }, { dryRun: true })).rejects.toEqual(reason('DryRunOperation'));
  expect(caches.service.get(id)).toEqual(before);
});

test.each<[UpdateCacheRequest, string]>([
  [{}, 'NoNeedUpdate'],
  [{ imageCacheName: 'app-1', imageCacheSize: 20, retentionDays: null, flash: false }, 'NoNeedUpdate'],
  [{ imageCacheName: 'app-2' }, 'ImageCache.NameDuplicated'],
  [{ imageCacheName: 'auto-create-for-x' }, 'InvalidParameter'],
  [{ images: [] }, 'InvalidParameter'],
])('the update %j is refused as %s', async (patch, name) => {
  await using caches = host();
  const id = await ready(caches, 1);
  await ready(caches, 2);
  const before = caches.service.get(id);
  await expect(caches.service.update(id, patch)).rejects.toEqual(reason(name));
  expect(caches.service.get(id)).toEqual(before);
});

test('settings change at once, and only the version that was seen is changed', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  const { version } = caches.service.get(id);
  const changed = await caches.service.update(
    id,
    { imageCacheName: 'renamed', retentionDays: 5, tags: [{ key: 'a', value: 'b' }], eliminationStrategy: 'LRU' },
    { version },
  );
  expect(changed).toMatchObject({
    status: 'Ready',
    imageCacheName: 'renamed',
    retentionDays: 5,
    eliminationStrategy: 'LRU',
    version: version + 1,
  });
  await expect(caches.service.update(id, { retentionDays: 6 }, { version })).rejects.toMatchObject({
    code: 'Conflict',
    details: { reason: 'OperationConflict' },
  });
  await ready(caches, 1);
});

test('two updates at once: one of them is told of the conflict', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  const outcomes = await Promise.allSettled([
    caches.service.update(id, { images: [refOf(2)] }),
    caches.service.update(id, { images: [refOf(3)] }),
  ]);
  expect(outcomes.map((outcome) => outcome.status).sort()).toEqual(['fulfilled', 'rejected']);
  const [lost] = outcomes.filter((outcome) => outcome.status === 'rejected');
  expect(lost?.reason).toEqual(reason('OperationConflict'));
});

test('a failed cache cannot be updated, nor one that is being created', async () => {
  await using caches = host();
  caches.node.hold();
  const { imageCacheId } = await caches.service.create(GOOD);
  await expect(caches.service.update(imageCacheId, { retentionDays: 1 })).rejects.toEqual(reason('ImageCache.IncorrectStatus'));
  caches.node.letGo();
  const absent = await caches.service.create({ imageCacheName: 'absent', images: ['registry.example/none:1'] });
  await caches.settle();
  await expect(caches.service.update(absent.imageCacheId, { retentionDays: 1 })).rejects.toEqual(reason('ImageCache.IncorrectStatus'));
});

test('at the manual quota creation is refused, unless an LRU-marked cache can go: the least recently matched one', async () => {
  await using caches = host({ maxCount: 3 });
  const kept = await ready(caches, 1);
  const older = await ready(caches, 2, { eliminationStrategy: 'LRU' });
  await caches.pass(HOUR_MS);
  const younger = await ready(caches, 3, { eliminationStrategy: 'LRU' });
  await caches.pass(HOUR_MS);
  // Matched last, although it was made first.
  caches.service.matchForPod({ images: [{ reference: refOf(2) }] });
  const fourth = await ready(caches, 4);
  expect(
    caches.service
      .list()
      .caches.map((cache) => cache.imageCacheId)
      .sort(),
  ).toEqual([kept, older, fourth].sort());
  expect(() => caches.service.get(younger)).toThrowError(expect.objectContaining({ code: 'NotFound' }));
  const fifth = await ready(caches, 5);
  expect(() => caches.service.get(older)).toThrowError();
  await expect(caches.service.create({ imageCacheName: 'sixth', images: [refOf(6)] })).rejects.toMatchObject({
    code: 'ResourceExhausted',
    details: { reason: 'QuotaExceeded' },
  });
  expect(
    caches.service
      .list()
      .caches.map((cache) => cache.imageCacheId)
      .sort(),
  ).toEqual([kept, fourth, fifth].sort());
});

test('a cache that a container uses does not give way, and nobody does when that cannot be told', async () => {
  await using caches = host({ maxCount: 2 });
  const used = await ready(caches, 1, { eliminationStrategy: 'LRU' });
  const idle = await ready(caches, 2, { eliminationStrategy: 'LRU' });
  caches.node.usedBlobs.add(layerDigest('app-1'));
  caches.node.fail('inUse', new AppError('Unavailable', { op: 'list', subject: 'containers', what: 'containerd is away' }));
  await expect(caches.service.create({ imageCacheName: 'third', images: [refOf(3)] })).rejects.toEqual(reason('QuotaExceeded'));
  const third = await ready(caches, 3);
  expect(
    caches.service
      .list()
      .caches.map((cache) => cache.imageCacheId)
      .sort(),
  ).toEqual([used, third].sort());
  expect(() => caches.service.get(idle)).toThrowError();
});

test('deletion of a cache in use frees its bytes when the last user has gone', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  caches.node.usedBlobs.add(layerDigest('app-1'));
  await caches.service.delete(id);
  expect(caches.node.blobs.has(layerDigest('app-1'))).toBe(true);
  expect(caches.node.blobs.has(layerDigest('base'))).toBe(false);
  caches.node.usedBlobs.clear();
  caches.node.collect();
  expect(caches.node.blobs.size).toBe(0);
});

test('the byte budget counts what is shared once; automatic caches give way, others only when they are marked', async () => {
  await using caches = host({ budgetBytes: 10 * GIB });
  const big = (name: string): void => caches.node.push(fakeImage(`r.example/${name}:1`, ['common', name], { layerMib: 3 * 1024 }));
  for (const name of ['a', 'b', 'c', 'd']) big(name);
  await caches.service.autoCreate({ sandboxId: 's1', images: ['r.example/a:1'] });
  await caches.settle();
  await caches.service.create({ imageCacheName: 'bb', images: ['r.example/b:1'] });
  await caches.settle();
  expect(caches.service.usage().committedBytes).toBe(9 * GIB);
  const third = await caches.service.create({ imageCacheName: 'cc', images: ['r.example/c:1'] });
  await caches.settle();
  expect(caches.service.get(third.imageCacheId).status).toBe('Ready');
  expect(caches.service.usage()).toMatchObject({ committedBytes: 9 * GIB, usedAutoImageCacheCount: 0, usedImageCacheCount: 2 });
  // Nothing else may go: it fails, and says both numbers.
  const fourth = await caches.service.create({ imageCacheName: 'dd', images: ['r.example/d:1'] });
  await caches.settle();
  expect(caches.service.get(fourth.imageCacheId)).toMatchObject({ status: 'Failed' });
  expect(caches.service.get(fourth.imageCacheId).failure).toContain('caches.budget_bytes');
  expect(caches.service.usage().committedBytes).toBe(9 * GIB);
  expect(caches.node.diskBytes).toBe(9 * GIB);
});

test('automatic caches go 7 days after creation, or 30 after the last match; manual ones after their days or never', async () => {
  await using caches = host();
  const { service } = caches;
  const unmatched = (await service.autoCreate({ sandboxId: 'u', images: [refOf(1)] })).imageCacheId;
  const matched = (await service.autoCreate({ sandboxId: 'm', images: [refOf(2)] })).imageCacheId;
  const forEver = await ready(caches, 3);
  const tenDays = await ready(caches, 4, { retentionDays: 10 });
  const alive = (): string[] =>
    [unmatched, matched, forEver, tenDays].filter((id) => service.list({ imageCacheIds: [id] }).totalCount === 1);
  await caches.pass(6 * DAY_MS, DAY_MS);
  service.matchForPod({ images: [{ reference: refOf(2) }] });
  expect(service.get(matched).lastMatchedTime).not.toBeNull();
  expect(alive()).toHaveLength(4);
  await caches.pass(DAY_MS + HOUR_MS, HOUR_MS);
  expect(alive()).toEqual([matched, forEver, tenDays]);
  await caches.pass(3 * DAY_MS, DAY_MS);
  expect(alive()).toEqual([matched, forEver]);
  await caches.pass(25 * DAY_MS, DAY_MS);
  expect(alive()).toEqual([matched, forEver]);
  await caches.pass(2 * DAY_MS, DAY_MS);
  expect(alive()).toEqual([forEver]);
  await caches.pass(10 * 365 * DAY_MS, 365 * DAY_MS);
  expect(alive()).toEqual([forEver]);
});

test('an automatic cache that a container runs from is not unused', async () => {
  await using caches = host();
  const { imageCacheId } = await caches.service.autoCreate({ sandboxId: 'u', images: [refOf(1)] });
  await caches.settle();
  caches.node.usedBlobs.add(layerDigest('app-1'));
  await caches.pass(20 * DAY_MS, DAY_MS);
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  caches.node.usedBlobs.clear();
  await caches.pass(DAY_MS);
  expect(() => caches.service.get(imageCacheId)).toThrowError();
});

test('a clock that jumps removes nothing for a day, warns, and is forgiven when it is set right', async () => {
  await using caches = host();
  const ids: string[] = [];
  for (let n = 0; n < 5; n += 1) ids.push((await caches.service.autoCreate({ sandboxId: `s${n}`, images: [refOf(n)] })).imageCacheId);
  await caches.settle();
  caches.clock.jump(365 * DAY_MS);
  await caches.pass(20 * HOUR_MS, HOUR_MS);
  expect(caches.service.list().totalCount).toBe(5);
  expect(caches.service.complaint).toContain('8760 hours');
  expect(caches.service.events(ids[0]!).at(-1)).toMatchObject({ type: 'Warning', reason: 'ClockJumped' });
  caches.clock.jump(-365 * DAY_MS);
  await caches.pass(20 * HOUR_MS, HOUR_MS);
  expect(caches.service.list().totalCount).toBe(5);
  expect(caches.service.complaint).toBeUndefined();
  // Through a restart as well; and a jump that stays is believed in the end.
  caches.clock.jump(365 * DAY_MS);
  caches.restart();
  await caches.pass(20 * HOUR_MS, HOUR_MS);
  expect(caches.service.list().totalCount).toBe(5);
  await caches.pass(5 * HOUR_MS, HOUR_MS);
  expect(caches.service.list().totalCount).toBe(0);
});

test('the automatic cache of a pod: named after it, shared by pods of equal images, added to, and ended by the quota', async () => {
  await using caches = host({ maxAutomaticCount: 2 });
  const { service } = caches;
  const first = await service.autoCreate({ sandboxId: 'pod-a', images: [refOf(1), refOf(1)], extraEphemeralStorage: 10 });
  expect(first).toMatchObject({ imageCacheName: 'auto-create-for-pod-a', owner: 'system', imageCacheSize: 40, sandboxId: 'pod-a' });
  const beside = { sandboxId: 'pod-b', images: [refOf(1)], extraEphemeralStorage: 10 };
  expect((await service.autoCreate(beside)).imageCacheId).toBe(first.imageCacheId);
  // While it is being created, and after it: one more image of the same pod.
  caches.node.hold();
  await caches.settle();
  await service.autoCreate({ sandboxId: 'pod-a', images: [refOf(2)] });
  caches.node.letGo();
  await caches.settle();
  expect(service.get(first.imageCacheId)).toMatchObject({ status: 'Ready', progress: 100 });
  expect(service.get(first.imageCacheId).images).toHaveLength(2);
  expect((await service.autoCreate({ sandboxId: 'pod-a', images: [refOf(3)] })).status).toBe('Updating');
  await caches.settle();
  expect(service.get(first.imageCacheId).images).toHaveLength(3);
  expect(service.matchForPod({ images: [1, 2, 3].map((n) => ({ reference: refOf(n) })), extraEphemeralStorage: 10 })).toMatchObject({
    outcome: 'matched',
    missingImages: [],
  });
  await caches.pass(HOUR_MS);
  const second = await service.autoCreate({ sandboxId: 'pod-c', images: [refOf(5)] });
  await caches.settle();
  await caches.pass(HOUR_MS);
  const third = await service.autoCreate({ sandboxId: 'pod-d', images: [refOf(6)] });
  expect(service.list({ owner: 'system' }).caches.map((cache) => cache.imageCacheId)).toEqual([third.imageCacheId, second.imageCacheId]);
  await expect(service.autoCreate({ sandboxId: 'pod/../x', images: [refOf(7)] })).rejects.toEqual(reason('InvalidParameter'));
});

test('a pin must serve; a match is recorded and survives a kill', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  expect(() => caches.service.matchForPod({ images: [{ reference: refOf(1) }], imageCacheId: 'imc-none' })).toThrowError(
    reason('ImageCacheNotFound'),
  );
  caches.node.hold();
  const waiting = await caches.service.create({ imageCacheName: 'waiting', images: [refOf(2)] });
  expect(() => caches.service.matchForPod({ images: [{ reference: refOf(2) }], imageCacheId: waiting.imageCacheId })).toThrowError(
    expect.objectContaining({ code: 'FailedPrecondition', message: expect.stringContaining('Preparing') }),
  );
  const before = caches.service.explain({ images: [{ reference: refOf(1) }] });
  expect(before.imageCacheId).toBe(id);
  expect(caches.service.get(id).matchCount).toBe(0);
  caches.service.matchForPod({ images: [{ reference: refOf(1) }] });
  caches.restart();
  expect(caches.service.get(id)).toMatchObject({ matchCount: 1 });
  expect(caches.service.get(id).lastMatchedTime).not.toBeNull();
});

test('the decision has an answer for every spelling that the pod uses', async () => {
  await using caches = host();
  caches.node.push(fakeImage('docker.io/library/nginx:1', ['nginx']));
  await caches.service.create({ imageCacheName: 'nginx', images: ['docker.io/library/nginx:1'] });
  await caches.settle();
  const { images, missingImages } = caches.service.matchForPod({
    images: ['nginx:1', 'docker.io/library/nginx:1', 'nginx:2'].map((reference) => ({ reference })),
  });
  expect(images.map((image) => [image.reference, image.isCovered])).toEqual([
    ['nginx:1', true],
    ['docker.io/library/nginx:1', true],
    ['nginx:2', false],
  ]);
  expect(missingImages).toEqual(['nginx:2']);
});

test('collectors are told by every name of an image', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  const [image] = caches.service.get(id).images;
  const names = [refOf(1), image!.digest!, image!.platformDigest!, image!.configDigest!, image!.configDigest!.slice(7)];
  for (const name of [...names, `registry.example/team/app-1@${image!.digest}`]) expect(caches.service.usersOf(name)).toEqual([id]);
  for (const name of [refOf(2), 'registry.example/team/app-1:2', 'no reference!', `sha256:${'0'.repeat(64)}`]) {
    expect(caches.service.isPinned(name)).toBe(false);
  }
  await caches.service.delete(id);
  for (const name of names) expect(caches.service.isPinned(name)).toBe(false);
});

test('lists: every filter, pages in a stable order, the matcher as a filter', async () => {
  await using caches = host();
  const ids: string[] = [];
  for (let n = 0; n < 5; n += 1) {
    ids.unshift(
      await ready(caches, n, { tags: [{ key: 'parity', value: String(n % 2) }], ...(n === 3 ? { resourceGroupId: 'rg-3' } : {}) }),
    );
    await caches.pass(HOUR_MS);
  }
  const { service } = caches;
  const found = (filter: Parameters<typeof service.list>[0]): string[] => service.list(filter).caches.map((cache) => cache.imageCacheId);
  expect(found({})).toEqual(ids);
  expect(found({ imageCacheName: 'app-2' })).toEqual([ids[2]]);
  expect(found({ tags: [{ key: 'parity', value: '1' }] })).toEqual([ids[1], ids[3]]);
  expect(found({ tags: [{ key: 'none' }] })).toEqual([]);
  expect(found({ resourceGroupId: 'rg-3' })).toEqual([ids[1]]);
  expect(found({ image: 'registry.example/team/app-4:1' })).toEqual([ids[0]]);
  expect(found({ snapshotId: service.get(ids[4]!).snapshotId! })).toEqual([ids[4]]);
  expect(found({ status: 'Failed' })).toEqual([]);
  expect(found({ owner: 'system' })).toEqual([]);
  expect(found({ matchImages: [refOf(1), refOf(2)] })).toEqual([ids[2], ids[3]]);
  expect(found({ matchImages: [refOf(1), refOf(2)], imageFullMatch: true })).toEqual([]);
  expect(found({ matchImages: [refOf(1), refOf(2)], imageMatchCountRequest: 1 })).toEqual([ids[2], ids[3]]);
  const first = service.list({}, { limit: 2 });
  expect(first).toMatchObject({ totalCount: 5 });
  await service.delete(ids[2]!);
  const second = service.list({}, { limit: 2, after: first.next! });
  expect(second.caches.map((cache) => cache.imageCacheId)).toEqual([ids[3], ids[4]]);
  expect(second.next).toBeNull();
  for (const page of [{ limit: 0 }, { limit: 101 }, { after: 'nonsense' }]) {
    expect(() => service.list({}, page)).toThrowError(reason('InvalidParameter'));
  }
});

test('a watcher sees what is there, then each cache as it is; the end of the service ends it', async () => {
  await using caches = host();
  const present = await ready(caches, 1);
  const seen: [string, string][] = [];
  const watching = (async () => {
    for await (const { kind, cache } of caches.service.watch(new AbortController().signal)) seen.push([kind, cache.imageCacheId]);
  })();
  await caches.settle();
  expect(seen).toEqual([['added', present]]);
  const next = await ready(caches, 2);
  await caches.service.delete(present);
  await caches.settle();
  expect(seen[1]).toEqual(['added', next]);
  expect(seen.at(-1)).toEqual(['deleted', present]);
  await caches.service.stop();
  await watching;
  await expect(caches.service.create(GOOD)).rejects.toEqual(reason('ServiceStopping'));
});

test('the 50 newest events are kept, and equal ones in a row are one with a count', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  for (let n = 0; n < 60; n += 1) await caches.service.update(id, { retentionDays: n + 1 });
  const same = caches.service.events(id);
  expect(same.at(-1)).toMatchObject({ reason: 'Updated', count: 60 });
  for (let n = 0; n < 60; n += 1) {
    await caches.service.update(id, n % 2 === 0 ? { flash: true } : { retentionDays: 100 + n, flash: false });
  }
  const events = caches.service.events(id);
  expect(events).toHaveLength(50);
  expect(new Set(events.map((event) => event.name)).size).toBe(50);
  expect(caches.service.get(id).events).toEqual(events);
});

test('an automatic cache follows tags that moved when a pod misses by them, and begins again after a failure, but not at once', async () => {
  await using caches = host();
  const { service } = caches;
  const request = { sandboxId: 'pod-a', images: [refOf(1)] };
  const { imageCacheId } = await service.autoCreate(request);
  await caches.settle();
  const moved = fakeImage(refOf(1), ['base', 'app-1 anew']);
  caches.node.push(moved);
  const pod = { images: [{ reference: refOf(1), digest: moved.digest }] };
  expect(service.matchForPod(pod).missingImages).toEqual([refOf(1)]);
  expect((await service.autoCreate(request)).status).toBe('Ready');
  await caches.pass(HOUR_MS);
  expect((await service.autoCreate({ ...request, sandboxId: 'pod-b' })).imageCacheId).toBe(imageCacheId);
  await caches.settle();
  expect(service.matchForPod(pod).missingImages).toEqual([]);

  const absent = { sandboxId: 'pod-c', images: ['registry.example/none:1'] };
  const failed = await service.autoCreate(absent);
  await caches.settle();
  expect((await service.autoCreate(absent)).status).toBe('Failed');
  expect((await service.autoCreate({ ...absent, sandboxId: 'pod-d' })).imageCacheId).toBe(failed.imageCacheId);
  caches.node.push(fakeImage('registry.example/none:1', ['base', 'none']));
  await caches.pass(HOUR_MS);
  const again = await service.autoCreate(absent);
  expect(again).toMatchObject({ status: 'Preparing', imageCacheName: 'auto-create-for-pod-c' });
  expect(again.imageCacheId).not.toBe(failed.imageCacheId);
  await caches.settle();
  expect(service.get(again.imageCacheId).status).toBe('Ready');
});

test('each pull of a pod brings credentials for its image, and its automatic cache has them all, while it is made too', async () => {
  await using caches = host();
  const { service, node } = caches;
  const credential = (server: string, password = 'p') => ({ server, userName: 'u', password });
  const [a, b, c] = ['a.example/x:1', 'b.example/y:1', 'c.example/z:1'] as const;
  for (const reference of [a, b, c]) node.push(fakeImage(reference, [reference]));
  const serversFor = (reference: string): string[] => (node.accesses.get(reference)?.credentials ?? []).map(({ server }) => server);
  node.hold();
  const { imageCacheId } = await service.autoCreate({ sandboxId: 'pod', images: [a], credentials: [credential('a.example')] });
  await caches.settle();
  await service.autoCreate({ sandboxId: 'pod', images: [a, b], credentials: [credential('b.example')] });
  node.letGo();
  await caches.settle();
  expect(service.get(imageCacheId)).toMatchObject({ status: 'Ready', images: [{ reference: a }, { reference: b }] });
  expect(serversFor(b)).toEqual(['a.example', 'b.example']);
  await service.autoCreate({ sandboxId: 'pod', images: [a, b, c], credentials: [credential('a.example', 'new'), credential('c.example')] });
  await caches.settle();
  expect(service.get(imageCacheId)).toMatchObject({ status: 'Ready', images: [{}, {}, { reference: c }] });
  expect(node.accesses.get(c)?.credentials).toEqual([credential('b.example'), credential('a.example', 'new'), credential('c.example')]);
  // Those of another pod are not for this one's cache.
  await service.autoCreate({ sandboxId: 'other', images: [a], credentials: [credential('d.example')] });
  await caches.pass(11 * 60_000);
  await service.autoCreate({ sandboxId: 'other', images: [a], credentials: [credential('d.example')] });
  await caches.settle();
  expect(serversFor(a)).not.toContain('d.example');
});

test('at the automatic quota a failed cache goes before one that serves', async () => {
  await using caches = host({ maxAutomaticCount: 2 });
  const good = (await caches.service.autoCreate({ sandboxId: 'a', images: [refOf(1)] })).imageCacheId;
  await caches.settle();
  await caches.pass(HOUR_MS);
  await caches.service.autoCreate({ sandboxId: 'b', images: ['registry.example/none:1'] });
  await caches.settle();
  const next = (await caches.service.autoCreate({ sandboxId: 'c', images: [refOf(2)] })).imageCacheId;
  expect(caches.service.list().caches.map((cache) => cache.imageCacheId)).toEqual([next, good]);
});

test('when the key of the credentials is lost, what needs them fails and says so; the rest goes on', async () => {
  await using caches = host();
  const credentials = [{ server: 'registry.example', userName: 'u', password: 'p' }];
  const id = await ready(caches, 1, { imageRegistryCredentials: credentials });
  caches.restart({ key: new Uint8Array(32).fill(9) });
  await caches.service.update(id, { retentionDays: 5 });
  await caches.service.update(id, { images: [refOf(2)] });
  await caches.settle();
  expect(caches.service.get(id)).toMatchObject({ status: 'UpdateFailed', failure: expect.stringContaining('another key') });
  await caches.service.update(id, { images: [refOf(2)], imageRegistryCredentials: credentials });
  await caches.settle();
  expect(caches.service.get(id).status).toBe('Ready');
});
