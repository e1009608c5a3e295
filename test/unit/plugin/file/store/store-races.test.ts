/** What comes between two steps of the store: drops, closings and evictions while bytes are written, checked or counted. */
import { describe, expect, test } from 'vitest';
import { GIB } from '../../../../../plugin/base/units.ts';
import { blobKeyOf } from '../../../../../plugin/file/store/blob-key.ts';
import type { ChunkStore } from '../../../../../plugin/file/store/chunk-store.ts';
import { type StoreFs, systemStoreFs } from '../../../../../plugin/file/store/store-fs.ts';
import { bytesOf, du, openStore, put, read, scratchDir, sourceOf, systemError, UNIT } from './store-support.ts';

/** The real file system; `before` and `after` a call of `name` a test may wait, or throw. */
function slowFs<Name extends keyof StoreFs>(name: Name) {
  type Args = Parameters<StoreFs[Name]>;
  const hooks = { before: async (..._args: Args): Promise<void> => {}, after: async (..._args: Args): Promise<void> => {} };
  const real = systemStoreFs[name] as (...args: Args) => Promise<unknown>;
  const slow = async (...args: Args): Promise<unknown> => {
    await hooks.before(...args);
    const result = await real(...args);
    await hooks.after(...args);
    return result;
  };
  return { fs: { ...systemStoreFs, [name]: slow } as StoreFs, hooks };
}

/** Holds the next call that `isIt` until released; `reached` when it has come. */
function holdOnce<Args extends unknown[]>(
  hooks: Record<string, (...args: Args) => Promise<void>>,
  at: string,
  isIt: (...args: Args) => boolean,
) {
  const reached = Promise.withResolvers<void>();
  const held = Promise.withResolvers<void>();
  let isFirst = true;
  hooks[at] = async (...args) => {
    if (!isFirst || !isIt(...args)) return;
    isFirst = false;
    reached.resolve();
    await held.promise;
  };
  return { reached: reached.promise, release: () => held.resolve() };
}

const isData = (_fd: number, bytes: Uint8Array): boolean => bytes.length >= UNIT;
const turns = async (count = 50): Promise<void> => {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
};
const closed = (store: ChunkStore): Promise<void> =>
  expect.poll(() => store.list(10).filter(({ use }) => use === 'open').length, { timeout: 20_000 }).toBe(0);

describe('while bytes are being written', () => {
  test('others for the same unit wait, so that what was read once stays as it is', async () => {
    const { fs, hooks } = slowFs('write');
    const { store } = await openStore({ rootDir: scratchDir(), fs });
    const blob = await store.acquire(sourceOf(bytesOf(1, 2 * UNIT)));
    const { reached, release } = holdOnce(hooks, 'before', isData);
    const early = put(store, blob, bytesOf(2, 2 * UNIT), 0, 2);
    await reached;
    const late = put(store, blob, bytesOf(1, 2 * UNIT), 0, 1);
    await turns();
    expect(blob.isReadable(0)).toBe(false);
    release();
    expect(await Promise.all([early, late])).toEqual([true, true]);
    expect(read(blob, 0, 2 * UNIT)).toEqual(bytesOf(2, 2 * UNIT));
    await store.close();
  });

  test.each([undefined, 'EIO'])('a unit that is dropped does not come back with them (the disk: %s)', async (code) => {
    const { fs, hooks } = slowFs('write');
    const { store } = await openStore({ rootDir: scratchDir(), fs });
    const bytes = bytesOf(3, 3 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    const { reached, release } = holdOnce(hooks, 'before', isData);
    const writing = put(store, blob, bytes, 0, 3);
    await reached;
    const dropped = store.drop(blob, UNIT, 1);
    if (code !== undefined) {
      hooks.after = async () => {
        throw systemError(code);
      };
    }
    release();
    await Promise.all([writing, dropped]);
    expect([0, 1, 2].map((unit) => blob.isReadable(unit))).toEqual([true, false, true]);
    await store.close();
  });

  test('and a sync fails, they are not believed to be on the disk', async () => {
    const { fs, hooks } = slowFs('write');
    let isBroken = false;
    const datasync: StoreFs['datasync'] = (fd) => (isBroken ? Promise.reject(systemError('EIO')) : systemStoreFs.datasync(fd));
    const { store } = await openStore({ rootDir: scratchDir(), fs: { ...fs, datasync } });
    const bytes = bytesOf(4, 3 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 1);
    const { reached, release } = holdOnce(hooks, 'after', isData);
    const writing = put(store, blob, bytes, 2, 3);
    await reached;
    isBroken = true;
    await store.checkpoint();
    release();
    expect(await writing).toBe(false);
    expect(read(blob, 2 * UNIT, UNIT)).toEqual(bytes.slice(2 * UNIT));
    expect(blob.counts().presentBytes).toBe(0);
    isBroken = false;
    await store.close();
  });
});

describe('a blob that was whole', () => {
  test('is not whole any more from the moment on that something of it is dropped', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(5, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 2);
    expect(await store.verifyComplete(blob)).toBe('verified');
    const dropped = store.drop(blob, 0, 1);
    expect(blob.isVerified).toBe(false);
    expect(await store.verifyComplete(blob)).toBe('incomplete');
    await dropped;
    await put(store, blob, bytesOf(6, 2 * UNIT), 0, 1);
    expect([blob.isComplete, blob.isVerified]).toEqual([true, false]);
    await store.close();
  });
});

describe('a blob that is closed', () => {
  test('and evicted while the disk is asked about it leaves the account right, and the store as it is', async () => {
    const rootDir = scratchDir();
    const { fs, hooks } = slowFs('lstat');
    const { store } = await openStore({ rootDir, fs });
    const bytes = bytesOf(7, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 2);
    const { reached, release } = holdOnce(hooks, 'before', (path) => path.endsWith('/map'));
    const usage = store.refreshUsage();
    await reached;
    blob.release();
    await closed(store);
    expect(await store.evict(1)).toMatchObject({ blobs: 1 });
    release();
    expect((await usage).bytes).toBe(du(rootDir));
    expect(store.usage().degradedBy).toBeUndefined();
    await store.close();
  });

  test('while an older look at the disk is on its way back leaves the account right', async () => {
    const rootDir = scratchDir();
    const { fs, hooks } = slowFs('lstat');
    const { store } = await openStore({ rootDir, fs });
    const bytes = bytesOf(8, 5 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 1);
    const { reached, release } = holdOnce(hooks, 'after', (path) => path.endsWith('/map'));
    const usage = store.refreshUsage();
    await reached;
    await put(store, blob, bytes, 1, 5);
    blob.release();
    await closed(store);
    release();
    await usage;
    expect(store.usage().bytes).toBe(du(rootDir));
    await store.close();
  });

  test('takes nothing of what is written to it, not into memory either', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(9, UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    blob.release();
    await closed(store);
    expect(await put(store, blob, bytes, 0, 1)).toBe(false);
    expect(store.usage()).toMatchObject({ memoryBytes: 0, reservedBytes: 0 });
    expect(store.list(10).some(({ key, use }) => key === blobKeyOf(blob.source) && use === 'open')).toBe(false);
    await store.close();
  });
});

test('blobs that are opened at the same time stay within the bound for all of them', async () => {
  const { store } = await openStore({ rootDir: scratchDir() });
  const sources = [10, 11].map((seed) => ({ ...sourceOf(bytesOf(seed, UNIT)), sizeBytes: 9 * 1024 * GIB }));
  const outcomes = await Promise.allSettled(sources.map((source) => store.acquire(source)));
  expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(outcomes.find(({ status }) => status === 'rejected')).toMatchObject({ reason: { code: 'ResourceExhausted' } });
  for (const outcome of outcomes) if (outcome.status === 'fulfilled') outcome.value.release();
  await closed(store);
  (await store.acquire(sources[1]!)).release();
  await store.close();
});
