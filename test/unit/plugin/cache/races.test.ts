/** What happens to caches while something else is under way: each test lets one thing happen within a call of the other. */
import { expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { CacheHost, DAY_MS, fakeImage, GIB, HOUR_MS, layerDigest } from '../../../support/fake-caches.ts';

const refOf = (n: number): string => `registry.example/app-${n}:1`;

function host(options: ConstructorParameters<typeof CacheHost>[0] = {}): CacheHost {
  const made = new CacheHost(options);
  for (let n = 0; n < 5; n += 1) made.node.push(fakeImage(refOf(n), ['base', `app-${n}`]));
  return made;
}

async function ready(caches: CacheHost, n: number, options: { eliminationStrategy?: 'LRU'; retentionDays?: number } = {}): Promise<string> {
  const { imageCacheId } = await caches.service.create({ imageCacheName: `app-${n}`, images: [refOf(n)], ...options });
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  return imageCacheId;
}

const idsOf = ({ service }: CacheHost): string[] => service.list().caches.map((cache) => cache.imageCacheId);

test('a name that is given to another cache while room is made for a new one is not given twice', async () => {
  await using caches = host({ maxCount: 2 });
  const renamed = await ready(caches, 1);
  await ready(caches, 2, { eliminationStrategy: 'LRU' });
  caches.node.during('inUse', async () => {
    await caches.service.update(renamed, { imageCacheName: 'wanted' });
  });
  await expect(caches.service.create({ imageCacheName: 'wanted', images: [refOf(3)] })).rejects.toMatchObject({
    details: { reason: 'ImageCache.NameDuplicated', imageCacheId: renamed },
  });
  await caches.settle();
  caches.restart();
  expect(caches.service.get(renamed).imageCacheName).toBe('wanted');
});

test('a cache that is updated while one is looked for that gives way does not give way, and nothing hangs', async () => {
  await using caches = host({ maxCount: 1 });
  const updated = await ready(caches, 1, { eliminationStrategy: 'LRU' });
  caches.node.during('inUse', async () => {
    await caches.service.update(updated, { images: [refOf(2)] });
    // Its work waits for the turn that the creation has.
    await caches.settle();
  });
  await expect(caches.service.create({ imageCacheName: 'new', images: [refOf(3)] })).rejects.toMatchObject({
    details: { reason: 'QuotaExceeded' },
  });
  await caches.settle();
  expect(caches.service.get(updated)).toMatchObject({ status: 'Ready', images: [{ reference: refOf(2) }] });
});

test('a cache whose work waits for its turn to make room is deleted at once', async () => {
  await using caches = host({ maxCount: 2 });
  const other = await ready(caches, 1);
  await ready(caches, 2, { eliminationStrategy: 'LRU' });
  let isDeleted = false;
  let wasSoon = false;
  caches.node.during('inUse', async () => {
    await caches.service.update(other, { images: [refOf(3)] });
    await caches.settle();
    void caches.service.delete(other).then(() => {
      isDeleted = true;
    });
    await caches.settle();
    wasSoon = isDeleted;
  });
  await ready(caches, 4);
  expect(wasSoon).toBe(true);
  expect(caches.node.pins.has(other)).toBe(false);
});

test('a cache that a pod is given while one is looked for that gives way was used last', async () => {
  await using caches = host({ maxCount: 2 });
  const matched = await ready(caches, 1, { eliminationStrategy: 'LRU' });
  await caches.pass(HOUR_MS);
  const other = await ready(caches, 2, { eliminationStrategy: 'LRU' });
  await caches.pass(HOUR_MS);
  caches.node.during('inUse', async () => {
    expect(caches.service.matchForPod({ images: [{ reference: refOf(1) }] }).cache?.imageCacheId).toBe(matched);
  });
  const third = await ready(caches, 3);
  expect(idsOf(caches).sort()).toEqual([matched, third].sort());
  expect(idsOf(caches)).not.toContain(other);
});

test('of the caches that give way for bytes none goes that was used while another went', async () => {
  await using caches = host({ budgetBytes: 9 * GIB });
  const big = (name: string, gib: number): void => caches.node.push(fakeImage(`r.example/${name}:1`, [name], { layerMib: gib * 1024 }));
  for (const name of ['a', 'b', 'c']) big(name, 3);
  big('large', 6);
  for (const [at, name] of ['a', 'b', 'c'].entries()) {
    await caches.service.autoCreate({ sandboxId: `s${at}`, images: [`r.example/${name}:1`] });
    await caches.pass(HOUR_MS);
  }
  caches.node.during('release', async () => {
    expect(caches.service.matchForPod({ images: [{ reference: 'r.example/b:1' }] }).outcome).toBe('matched');
  });
  const { imageCacheId } = await caches.service.create({ imageCacheName: 'large', images: ['r.example/large:1'] });
  await caches.settle();
  expect(caches.service.get(imageCacheId).status).toBe('Ready');
  expect(caches.service.list({ owner: 'system' }).caches.map((cache) => cache.images[0]?.reference)).toEqual(['r.example/b:1']);
});

test('a cache that a pod is given, or that gets more time, while the expired are looked at stays', async () => {
  await using caches = host();
  const { service } = caches;
  const matched = (await service.autoCreate({ sandboxId: 'matched', images: [refOf(1)] })).imageCacheId;
  const unused = (await service.autoCreate({ sandboxId: 'unused', images: [refOf(2)] })).imageCacheId;
  const prolonged = await ready(caches, 3, { retentionDays: 7 });
  await caches.pass(7 * DAY_MS - 600_000);
  expect(idsOf(caches)).toHaveLength(3);
  caches.node.during('inUse', async () => {
    service.matchForPod({ images: [{ reference: refOf(1) }] });
    await service.update(prolonged, { retentionDays: 30 });
  });
  await caches.pass(1_200_000, 60_000);
  expect(idsOf(caches).sort()).toEqual([matched, prolonged].sort());
  expect(idsOf(caches)).not.toContain(unused);
});

test('a cache that got other images while the former ones were looked at is not damaged', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  caches.node.during('verify', async () => {
    await caches.service.update(id, { images: [refOf(2)] });
    await caches.settle();
    expect(caches.service.get(id)).toMatchObject({ status: 'Ready', images: [{ reference: refOf(2) }] });
    expect(caches.node.blobs.has(layerDigest('app-1'))).toBe(false);
  });
  await caches.pass(6 * HOUR_MS);
  expect(caches.service.events(id).map((event) => event.reason)).not.toContain('ContentDamaged');
  expect(caches.service.get(id).status).toBe('Ready');
});

test('only the version that was seen is changed, also when the registry takes its time to say what tags mean', async () => {
  await using caches = host();
  const { imageCacheId: id } = await caches.service.autoCreate({ sandboxId: 's', images: [refOf(1)] });
  await caches.settle();
  const { version } = caches.service.get(id);
  caches.node.push(fakeImage(refOf(1), ['base', 'app-1', 'moved']));
  caches.node.during('resolve', async () => {
    const credentials = [{ server: 'registry.example', userName: 'pod', password: 'p' }];
    await caches.service.autoCreate({ sandboxId: 's', images: [refOf(1)], credentials });
  });
  await expect(caches.service.update(id, { images: [refOf(1)] }, { version })).rejects.toMatchObject({
    details: { reason: 'OperationConflict' },
  });
  expect(caches.service.get(id).status).toBe('Ready');
});

test('what cannot be let go is tried once a minute, not as fast as it fails', async () => {
  await using caches = host();
  const id = await ready(caches, 1);
  const away = (): AppError => new AppError('Unavailable', { op: 'release', subject: id, what: 'containerd is away' });
  caches.node.fail('release', ...Array.from({ length: 100 }, away));
  const left = (): number => caches.node.failures.get('release')!.length;
  await caches.service.delete(id);
  expect(left()).toBe(99);
  await caches.pass(3 * 60_000, 60_000);
  expect(left()).toBeGreaterThanOrEqual(95);
  expect(caches.service.complaint).toContain('containerd is away');
});
