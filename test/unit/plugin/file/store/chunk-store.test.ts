import fs from 'node:fs';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import type { Digest } from '../../../../../plugin/base/digest.ts';
import { isAppError } from '../../../../../plugin/base/errors.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import { blobKeyOf, directoryOfKey } from '../../../../../plugin/file/store/blob-key.ts';
import { type DecodedMap, decodeMap, encodeBits, encodeWhole } from '../../../../../plugin/file/store/blob-map.ts';
import { type StoreFs, systemStoreFs } from '../../../../../plugin/file/store/store-fs.ts';
import { bytesOf, du, faultyFs, openStore, put, read, scratchDir, sourceOf, systemError, UNIT } from './store-support.ts';

describe('who vouches for bytes', () => {
  test('images share stored bytes only when they name the same registries or the same list of chunk digests', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(77, 2 * UNIT);
    const source = sourceOf(bytes);
    const from = (host: string, repository = 'a') => ({ ...source, repositories: [{ host, repository }] });
    const chunkList = { digest: source.digest, offsetBytes: UNIT, sizeBytes: 32, chunkBytes: UNIT };
    const evil = await store.acquire(from('evil.example'));
    await put(store, evil, bytes, 0, 2);
    for (const other of [from('good.example'), { ...from('evil.example'), chunkList }]) {
      const blob = await store.acquire(other);
      expect(blob.isReadable(0)).toBe(false);
      blob.release();
    }
    const same = await store.acquire(from('evil.example', 'b'));
    expect(same.isReadable(0)).toBe(true);
    await store.close();
  });
});

describe('reading and writing', () => {
  test('a read lists every missing unit-aligned range, adjacent ones merged, cut at the end of the blob', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(1, 5 * UNIT + 100);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 2, 3);
    expect(read(blob, 10, bytes.length - 10)).toEqual([
      { blobId: blob.blobId, offsetBytes: 0, lengthBytes: 2 * UNIT },
      { blobId: blob.blobId, offsetBytes: 3 * UNIT, lengthBytes: 2 * UNIT + 100 },
    ]);
    expect(read(blob, 2 * UNIT + 7, UNIT - 7)).toEqual(bytes.slice(2 * UNIT + 7, 3 * UNIT));
    await store.close();
  });

  test('what was written is read again after a clean restart, and by a worker thread at once', async () => {
    const rootDir = scratchDir();
    const bytes = bytesOf(2, 3 * UNIT + 1);
    const first = await openStore({ rootDir });
    const blob = await first.store.acquire(sourceOf(bytes));
    await put(first.store, blob, bytes, 1, 4);
    expect(await readInWorker(blob.shared(), UNIT + 5, UNIT)).toEqual(bytes.slice(UNIT + 5, 2 * UNIT + 5));
    await first.store.close();

    const second = await openStore({ rootDir });
    const again = await second.store.acquire(sourceOf(bytes));
    expect(read(again, UNIT, 2 * UNIT + 1)).toEqual(bytes.slice(UNIT));
    expect(read(again, 0, 1)).toEqual([{ blobId: again.blobId, offsetBytes: 0, lengthBytes: UNIT }]);
    await second.store.close();
  });

  test('handles of one digest share one blob; a manifest that gives it another size neither stops its readers nor removes its bytes', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(3, UNIT);
    const wrong = { ...sourceOf(bytes), sizeBytes: bytes.length + 1 };
    const one = await store.acquire(sourceOf(bytes));
    const two = await store.acquire(sourceOf(bytes));
    expect(two.blobId).toBe(one.blobId);
    const liar = await store.acquire(wrong);
    expect(liar.blobId).not.toBe(one.blobId);
    one.release();
    await put(store, two, bytes, 0, 1);
    two.release();
    liar.release();
    (await store.acquire(wrong)).release();
    const again = await store.acquire(sourceOf(bytes));
    expect(read(again, 0, UNIT)).toEqual(bytes);
    await store.close();
  });

  test('an empty blob is complete and verified without a fetch', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const blob = await store.acquire(sourceOf(new Uint8Array()));
    expect(blob.isComplete).toBe(true);
    expect(await store.verifyComplete(blob)).toBe('verified');
    await store.close();
  });

  test('a unit that is dropped while the blob is being marked whole is missing, now and after a restart', async () => {
    const rootDir = scratchDir();
    const bytes = bytesOf(23, 3 * UNIT);
    let onMark = (): void => {};
    const write: StoreFs['write'] = async (fd, data, offset) => {
      await systemStoreFs.write(fd, data, offset);
      if (data.length === 512 && offset === 512) onMark();
    };
    const { store } = await openStore({ rootDir, fs: { ...systemStoreFs, write } });
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 3);
    let dropped: Promise<void> | undefined;
    onMark = () => {
      dropped ??= store.drop(blob, UNIT, UNIT);
    };
    await store.verifyComplete(blob);
    await dropped;
    expect(read(blob, UNIT, 16)).toEqual([{ blobId: blob.blobId, offsetBytes: UNIT, lengthBytes: UNIT }]);
    await put(store, blob, bytes, 1, 2);
    blob.release();
    await store.close();
    const { store: again } = await openStore({ rootDir });
    const reopened = await again.acquire(sourceOf(bytes));
    expect([reopened.isComplete, reopened.isVerified]).toEqual([true, false]);
    reopened.release();
    await again.close();
  });

  test('a local path whose file was replaced by that of another blob is opened again, while the old one is still read', async () => {
    const rootDir = scratchDir();
    const { store } = await openStore({ rootDir: `${rootDir}/store` });
    const [before, after] = [bytesOf(21, UNIT), bytesOf(22, UNIT)];
    const localPath = `${rootDir}/blob`;
    fs.writeFileSync(localPath, before);
    const old = await store.acquire({ ...sourceOf(before), localPath });
    fs.rmSync(localPath);
    fs.writeFileSync(localPath, after);
    const fresh = await store.acquire({ ...sourceOf(after), localPath });
    expect(read(fresh, 0, 16)).toEqual(after.slice(0, 16));
    expect(read(old, 0, 16)).toEqual(before.slice(0, 16));
    old.release();
    fresh.release();
    await store.close();
  });

  test('a local file is served as it is, stays out of the ledger, and cannot be dropped; one of another size is refused', async () => {
    const rootDir = scratchDir();
    const { store } = await openStore({ rootDir: `${rootDir}/store` });
    const bytes = bytesOf(4, 2 * UNIT + 9);
    fs.writeFileSync(`${rootDir}/blob`, bytes);
    const before = store.usage().bytes;
    const source = { ...sourceOf(bytes), localPath: `${rootDir}/blob` };
    const blob = await store.acquire(source);
    expect(read(blob, 1, 2 * UNIT)).toEqual(bytes.slice(1, 2 * UNIT + 1));
    expect(store.usage().bytes).toBe(before);
    expect(blob.isReadable(2) && blob.isComplete && blob.isVerified).toBe(true);
    await expect(store.drop(blob, 0, 1)).rejects.toSatisfy((error) => isAppError(error, 'DataLoss'));
    fs.appendFileSync(`${rootDir}/blob`, 'x');
    blob.release();
    await expect(store.acquire({ ...source, localPath: `${rootDir}/other` })).rejects.toSatisfy((error) =>
      isAppError(error, 'FailedPrecondition'),
    );
    await store.close();
  });

  test('a marked unit is reported by the first hit alone', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(5, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    blob.mark(1);
    await put(store, blob, bytes, 0, 2);
    const hints: number[] = [];
    const missing = Object.assign(new MissingList(), { readAhead: (_: number, offset: number) => hints.push(offset) });
    const target = new Uint8Array(10);
    const file = blob.file();
    for (const offset of [0, UNIT + 5, UNIT + 5]) expect(file.readSync(offset, 10, target, 0, missing)).toBe(true);
    expect(hints).toEqual([UNIT]);
    expect(blob.counts()).toEqual({ presentBytes: 2 * UNIT, accessedBytes: 2 * UNIT });
    await store.close();
  });

  test('a refused unit is DataLoss and does not become readable', async () => {
    const { store } = await openStore({ rootDir: scratchDir(), verifyUnit: (_, unit) => unit !== 1 });
    const bytes = bytesOf(6, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await expect(put(store, blob, bytes, 0, 2)).rejects.toSatisfy((error) => isAppError(error, 'DataLoss'));
    expect(read(blob, 0, 1)).toHaveLength(1);
    expect(store.usage().reservedBytes).toBe(0);
    await store.close();
  });
});

describe('the whole blob', () => {
  test('a complete blob is checked against its digest once; the result survives a restart', async () => {
    const rootDir = scratchDir();
    const bytes = bytesOf(7, 3 * UNIT + 11);
    const { store } = await openStore({ rootDir });
    const blob = await store.acquire(sourceOf(bytes));
    expect(await store.verifyComplete(blob)).toBe('incomplete');
    await put(store, blob, bytes, 0, 4);
    expect(await store.verifyComplete(blob)).toBe('verified');
    await store.close();
    const next = await openStore({ rootDir });
    const again = await next.store.acquire(sourceOf(bytes));
    expect(again.isVerified).toBe(true);
    await next.store.drop(again, UNIT, 1);
    expect(again.isVerified).toBe(false);
    await next.store.close();
    const third = await openStore({ rootDir });
    const last = await third.store.acquire(sourceOf(bytes));
    expect(last.isVerified).toBe(false);
    expect(read(last, 0, bytes.length)).toEqual([{ blobId: last.blobId, offsetBytes: UNIT, lengthBytes: UNIT }]);
    await third.store.close();
  });

  test('bytes that are not what the digest names are forgotten, with an event', async () => {
    const { store, events } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(8, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytesOf(9, 2 * UNIT), 0, 2);
    expect(await store.verifyComplete(blob)).toBe('corrupt');
    expect(events.map((event) => event.kind)).toEqual(['blob-corrupt']);
    expect(read(blob, 0, 2 * UNIT)).toHaveLength(1);
    await put(store, blob, bytes, 0, 2);
    expect(await store.verifyComplete(blob)).toBe('verified');
    await store.close();
  });

  test('a verification can be aborted', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const bytes = bytesOf(10, UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 1);
    await expect(store.verifyComplete(blob, AbortSignal.abort())).rejects.toSatisfy((error) => isAppError(error, 'Canceled'));
    await store.close();
  });
});

describe('the budget', () => {
  test('the ledger equals du: after writes, drops, evictions and a restart', async () => {
    const rootDir = scratchDir();
    const { store } = await openStore({ rootDir, budgetBytes: 40 * UNIT });
    for (let seed = 20; seed < 30; seed += 1) {
      const bytes = bytesOf(seed, 7 * UNIT + seed);
      const blob = await store.acquire(sourceOf(bytes));
      await put(store, blob, bytes, 0, 3);
      await put(store, blob, bytes, 5, 8);
      if (seed % 3 === 0) await store.drop(blob, 0, UNIT);
      if (seed !== 29) blob.release();
      await store.checkpoint();
      expect((await store.refreshUsage()).bytes).toBe(du(rootDir));
      expect(store.usage().bytes).toBeLessThanOrEqual(40 * UNIT + 64 * 1024);
    }
    await store.close();
    const next = await openStore({ rootDir, budgetBytes: 40 * UNIT });
    expect(next.store.usage().bytes).toBe(du(rootDir));
    await next.store.close();
  });

  test('idle blobs go, least recently used first, also by the order of an earlier run; referenced ones never', async () => {
    const rootDir = scratchDir();
    const all = [1, 2, 3].map((seed) => bytesOf(30 + seed, 4 * UNIT));
    const first = await openStore({ rootDir });
    for (const bytes of [all[1]!, all[0]!]) {
      const blob = await first.store.acquire(sourceOf(bytes));
      await put(first.store, blob, bytes, 0, 4);
      blob.release();
    }
    await first.store.close();
    const dirOf = (bytes: Uint8Array): string => `${rootDir}/blobs/sha256/${directoryOfKey(blobKeyOf(sourceOf(bytes)))}`;
    fs.utimesSync(`${dirOf(all[1]!)}/map`, 1, 1);
    fs.utimesSync(`${dirOf(all[0]!)}/map`, 2, 2);

    const { store } = await openStore({ rootDir, budgetBytes: 11 * UNIT });
    const third = await store.acquire(sourceOf(all[2]!));
    expect(await put(store, third, all[2]!, 0, 4)).toBe(true);
    expect(fs.existsSync(dirOf(all[1]!))).toBe(false);
    expect(fs.existsSync(dirOf(all[0]!))).toBe(true);
    const pinned = await store.acquire(sourceOf(all[0]!));
    const more = await store.acquire(sourceOf(all[1]!));
    expect(await put(store, more, all[1]!, 0, 4)).toBe(false);
    expect(read(pinned, 0, 4 * UNIT)).toEqual(all[0]!);
    await store.close();
  });

  test('the ledger lists what takes room by its use, and idle blobs are evicted when somebody asks for room', async () => {
    const { store } = await openStore({ rootDir: scratchDir() });
    const all = [1, 2, 3, 4].map((seed) => bytesOf(70 + seed, 4 * UNIT));
    const [oldest, newer, pinned, open] = all.map((bytes) => blobKeyOf(sourceOf(bytes)));
    store.pin(sourceOf(all[2]!));
    const handles = [];
    for (const bytes of all) {
      const handle = await store.acquire(sourceOf(bytes));
      await put(store, handle, bytes, 0, 4);
      handles.push(handle);
    }
    const listed = (limit: number) => store.list(limit).map(({ key, use }) => [key, use]);
    const rest = [
      [pinned, 'pinned'],
      [open, 'open'],
    ];
    for (const [index, handle] of handles.slice(0, 3).entries()) {
      handle.release();
      await expect.poll(() => store.list(10).filter(({ use }) => use !== 'open').length, { timeout: 20_000 }).toBe(index + 1);
    }
    expect(listed(10)).toEqual([[oldest, 'idle'], [newer, 'idle'], ...rest]);
    expect(listed(1)).toEqual([[oldest, 'idle']]);
    const bytes = store.list(1)[0]!.diskBytes;
    const used = store.usage().bytes;
    expect(await store.evict(1)).toEqual({ blobs: 1, bytes });
    expect(store.usage().bytes).toBeLessThanOrEqual(used - bytes);
    expect(listed(10)).toEqual([[newer, 'idle'], ...rest]);
    expect(await store.evict(2 ** 40)).toMatchObject({ blobs: 1 });
    expect(listed(10)).toEqual(rest);
    await store.close();
  });

  test('without room bytes stay in memory, an event says so, and the store recovers when there is room again', async () => {
    const { store, events } = await openStore({ rootDir: scratchDir(), budgetBytes: 4 * UNIT });
    const a = bytesOf(40, 3 * UNIT);
    const b = bytesOf(41, 3 * UNIT);
    const one = await store.acquire(sourceOf(a));
    expect(await put(store, one, a, 0, 3)).toBe(true);
    const two = await store.acquire(sourceOf(b));
    expect(await put(store, two, b, 0, 2)).toBe(false);
    expect(read(two, 5, UNIT)).toEqual(b.slice(5, UNIT + 5));
    expect(events).toMatchObject([{ kind: 'store-degraded', reason: 'budget' }]);
    one.release();
    expect(await put(store, two, b, 2, 3)).toBe(true);
    expect(read(two, UNIT, 2 * UNIT)).toEqual(b.slice(UNIT));
    expect(events.map((event) => event.kind)).toEqual(['store-degraded', 'store-recovered']);
    await store.close();
  });
});

describe('a disk that refuses', () => {
  test.each(['ENOSPC', 'EDQUOT', 'EIO'])(
    '%s on a write: bytes are served from memory, the disk is left alone for a while',
    async (code) => {
      const clock = manualClock();
      const disk = faultyFs();
      const { store, events } = await openStore({ rootDir: scratchDir(), fs: disk, clock });
      const bytes = bytesOf(50, 3 * UNIT);
      const blob = await store.acquire(sourceOf(bytes));
      disk.fail.write = code;
      expect(await put(store, blob, bytes, 0, 1)).toBe(false);
      expect(read(blob, 0, UNIT)).toEqual(bytes.slice(0, UNIT));
      expect(events).toMatchObject([{ kind: 'store-degraded', reason: code }]);
      expect(await store.reserve(1)).toBeUndefined();
      delete disk.fail.write;
      clock.now += 5_000;
      expect(await put(store, blob, bytes, 1, 3)).toBe(true);
      expect(read(blob, 0, 3 * UNIT)).toEqual(bytes);
      expect(events.at(-1)).toEqual({ kind: 'store-recovered' });
      await store.close();
    },
  );

  test('a blob can be acquired on a full disk, and gets its file when there is room', async () => {
    const clock = manualClock();
    const disk = faultyFs();
    const rootDir = scratchDir();
    const { store } = await openStore({ rootDir, fs: disk, clock });
    const bytes = bytesOf(51, 2 * UNIT);
    disk.fail.mkdir = 'ENOSPC';
    const blob = await store.acquire(sourceOf(bytes));
    const shared = blob.shared();
    expect(await put(store, blob, bytes, 0, 1)).toBe(false);
    expect(read(blob, 0, UNIT)).toEqual(bytes.slice(0, UNIT));
    delete disk.fail.mkdir;
    clock.now += 5_000;
    expect(await put(store, blob, bytes, 1, 2)).toBe(true);
    expect(await readInWorker(shared, UNIT, UNIT)).toEqual(bytes.slice(UNIT));
    expect((await store.refreshUsage()).bytes).toBe(du(rootDir));
    await store.close();
  });

  test('a blob too large for the file system lives in memory and degrades nobody else', async () => {
    const disk = faultyFs();
    const { store, events } = await openStore({ rootDir: scratchDir(), fs: disk });
    const bytes = bytesOf(54, 2 * UNIT);
    disk.fail.truncate = 'EFBIG';
    const blob = await store.acquire({ ...sourceOf(bytes), sizeBytes: 8 * 1024 ** 4 });
    delete disk.fail.truncate;
    const other = await store.acquire(sourceOf(bytesOf(55, UNIT)));
    expect(await put(store, other, bytesOf(55, UNIT), 0, 1)).toBe(true);
    disk.fail.truncate = 'EFBIG';
    const reservation = await store.reserve(UNIT);
    expect((await store.write(blob, UNIT, bytes.subarray(0, UNIT), reservation)).isStored).toBe(false);
    expect(read(blob, UNIT + 1, 10)).toEqual(bytes.slice(1, 11));
    expect(events).toEqual([]);
    await store.close();
  });

  test('a failed sync forgets what was not durable, and only that', async () => {
    const disk = faultyFs();
    const { store } = await openStore({ rootDir: scratchDir(), fs: disk });
    const bytes = bytesOf(52, 3 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 1);
    await store.checkpoint();
    await put(store, blob, bytes, 2, 3);
    disk.fail.datasync = 'EIO';
    await store.checkpoint();
    expect(store.usage().degradedBy).toBe('EIO');
    expect(read(blob, 0, UNIT)).toEqual(bytes.slice(0, UNIT));
    expect(read(blob, 2 * UNIT, UNIT)).toHaveLength(1);
    delete disk.fail.datasync;
    await store.close();
  });

  test('an eviction after which the directories cannot be looked at is counted once', async () => {
    let isBroken = false;
    const rootDir = scratchDir();
    const lstat: StoreFs['lstat'] = (name) =>
      isBroken && name === rootDir ? Promise.reject(systemError('EIO')) : systemStoreFs.lstat(name);
    const { store } = await openStore({ rootDir, fs: { ...systemStoreFs, lstat } });
    const bytes = bytesOf(56, 3 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 3);
    blob.release();
    await expect.poll(() => store.list(1).map(({ use }) => use), { timeout: 30_000 }).toEqual(['idle']);
    isBroken = true;
    expect(await store.evict(1)).toMatchObject({ blobs: 1 });
    expect(await store.evict(1)).toEqual({ blobs: 0, bytes: 0 });
    isBroken = false;
    expect((await store.refreshUsage()).bytes).toBe(du(rootDir));
    await store.close();
  });

  test('a drop that cannot be made durable: the blob lives in memory from then on', async () => {
    const clock = manualClock();
    const disk = faultyFs();
    const { store } = await openStore({ rootDir: scratchDir(), fs: disk, clock });
    const bytes = bytesOf(53, 2 * UNIT);
    const blob = await store.acquire(sourceOf(bytes));
    await put(store, blob, bytes, 0, 2);
    await store.checkpoint();
    disk.fail.datasync = 'EIO';
    await store.drop(blob, 0, 1);
    delete disk.fail.datasync;
    clock.now += 5_000;
    expect(read(blob, UNIT, UNIT)).toHaveLength(1);
    expect(await put(store, blob, bytes, 0, 2)).toBe(false);
    expect(read(blob, 0, 2 * UNIT)).toEqual(bytes);
    await store.close();
  });
});

describe('what lies on disk is not believed blindly', () => {
  const bytes = bytesOf(60, 3 * UNIT);
  const source = sourceOf(bytes);
  const damages: [string, (dir: string) => void][] = [
    ['a map whose header is changed', (dir) => patch(`${dir}/map`, 20)],
    ['a map whose bits are changed', (dir) => patch(`${dir}/map`, 1024)],
    ['a map that is cut', (dir) => fs.truncateSync(`${dir}/map`, 1000)],
    ['an empty map', (dir) => fs.truncateSync(`${dir}/map`, 0)],
    ['data of another size', (dir) => fs.truncateSync(`${dir}/data`, 3 * UNIT - 1)],
    ['data without a map (a half-made eviction)', (dir) => fs.rmSync(`${dir}/map`)],
    ['a map without data', (dir) => fs.rmSync(`${dir}/data`)],
    ['an empty directory (a half-made creation)', (dir) => [fs.rmSync(`${dir}/map`), fs.rmSync(`${dir}/data`)]],
    ['an entry too many', (dir) => fs.writeFileSync(`${dir}/map.tmp`, 'x')],
    [
      'data that is a symbolic link',
      (dir) => [fs.renameSync(`${dir}/data`, `${dir}/../../../other`), fs.symlinkSync(`${dir}/../../../other`, `${dir}/data`)],
    ],
  ];
  test.each(damages)('%s: the blob counts as empty, an event says so, and it can be fetched again', async (_, damage) => {
    const rootDir = scratchDir();
    const first = await openStore({ rootDir: `${rootDir}/store` });
    const blob = await first.store.acquire(source);
    await put(first.store, blob, bytes, 0, 3);
    await first.store.close();
    damage(`${rootDir}/store/blobs/sha256/${directoryOfKey(blobKeyOf(source))}`);

    const { store, events } = await openStore({ rootDir: `${rootDir}/store` });
    const again = await store.acquire(source);
    expect(read(again, 0, 3 * UNIT)).toHaveLength(1);
    expect(events.map((event) => event.kind)).toEqual(['blob-reset']);
    expect(await put(store, again, bytes, 0, 3)).toBe(true);
    expect(read(again, 0, 3 * UNIT)).toEqual(bytes);
    if (!fs.existsSync(`${rootDir}/store/other`)) expect((await store.refreshUsage()).bytes).toBe(du(`${rootDir}/store`));
    await store.close();
  });

  test('a mark that all was checked does not count for what is fetched after a drop that a power cut tore', async () => {
    const rootDir = scratchDir();
    const first = await openStore({ rootDir });
    const blob = await first.store.acquire(source);
    await put(first.store, blob, bytes, 0, 3);
    await first.store.close();
    markWhole(`${rootDir}/blobs/sha256/${directoryOfKey(blobKeyOf(source))}/map`, source.digest as Digest);
    const second = await openStore({ rootDir });
    const torn = await second.store.acquire(source);
    expect([0, 1, 2].map((unit) => torn.isReadable(unit))).toEqual([true, false, true]);
    await put(second.store, torn, bytesOf(61, 3 * UNIT), 1, 2);
    await second.store.close();
    const third = await openStore({ rootDir });
    const last = await third.store.acquire(source);
    expect([last.isComplete, last.isVerified]).toEqual([true, false]);
    await third.store.close();
  });
});

/** The sectors of a power cut: the mark of a map that had all units, and the bits of one that has lost a unit since. */
function markWhole(file: string, digest: Digest): void {
  const life = decodeMap(fs.readFileSync(file), digest, 3 * UNIT, () => {}) as DecodedMap;
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, encodeWhole(life.life), 0, 512, 512);
  fs.writeSync(
    fd,
    encodeBits(life.life, 2, 3, (unit) => unit !== 1),
    0,
    512,
    1024,
  );
  fs.closeSync(fd);
}

function patch(file: string, offset: number): void {
  const fd = fs.openSync(file, 'r+');
  fs.writeSync(fd, Uint8Array.of(0xa5), 0, 1, offset);
  fs.closeSync(fd);
}

/** A clock that stands still until told; its sleeps end with their signal alone. */
function manualClock() {
  return {
    now: 1_000_000,
    nowMs(): number {
      return this.now;
    },
    monotonicMs(): number {
      return this.now;
    },
    sleep: (_: number, signal?: AbortSignal) =>
      new Promise<void>((_resolve, reject) => signal?.addEventListener('abort', () => reject(signal.reason))),
  };
}

async function readInWorker(shared: unknown, offset: number, length: number): Promise<Uint8Array> {
  const code = `
    import { parentPort, workerData } from 'node:worker_threads';
    const { BlobFile } = await import(workerData.module);
    const target = new Uint8Array(workerData.length);
    const missing = { add() {} };
    const isHit = new BlobFile(workerData.shared).readSync(workerData.offset, workerData.length, target, 0, missing);
    parentPort.postMessage(isHit ? target : null);`;
  const module = new URL('../../../../../plugin/file/store/blob-file.ts', import.meta.url).href;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), {
    workerData: { module, shared, offset, length },
    execArgv: [],
  });
  return new Promise((resolve, reject) => {
    worker.once('message', (bytes: Uint8Array | null) => (bytes === null ? reject(new Error('missed')) : resolve(bytes)));
    worker.once('error', reject);
  });
}
