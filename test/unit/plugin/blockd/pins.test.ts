/** Pinned blobs: never evicted, whole and checked when they are filled, within the store's budget, gone with their last owner and reader. */
import fs from 'node:fs';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { MIB } from '../../../../plugin/base/units.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { PinFiles } from '../../../../plugin/blockd/pin-files.ts';
import { Pins } from '../../../../plugin/blockd/pins.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { waitFor } from '../../../support/wait.ts';
import { bytesOf, du, openStore, scratchDir, sourceOf } from '../file/store/store-support.ts';

const SIGNAL = new AbortController().signal;
const BUDGET_BYTES = 4 * MIB;

/** Blobs of one MiB each by digest, as a registry has them. */
const BLOBS = new Map([1, 2, 3, 4, 5].map((seed) => [sourceOf(bytesOf(seed, MIB)).digest, bytesOf(seed, MIB)]));
const [FIRST, SECOND, THIRD, FOURTH, FIFTH] = [...BLOBS.values()].map((bytes) => sourceOf(bytes)) as [
  BlobSource,
  BlobSource,
  BlobSource,
  BlobSource,
  BlobSource,
];

/** A store with pins; what a process would have after it was started again over the same directory, when called again with it. */
async function start(rootDir = scratchDir()) {
  const { store } = await openStore({ rootDir: path.join(rootDir, 'store'), budgetBytes: BUDGET_BYTES });
  let fetchedBytes = 0;
  const scheduler = new FetchScheduler({
    store,
    clock: systemClock,
    patienceMs: 5000,
    fetchRange: async (source, offset, length) => {
      fetchedBytes += length;
      return BLOBS.get(source.digest)!.slice(offset, offset + length);
    },
  });
  const pins = new Pins({
    store,
    scheduler,
    chunks: new ChunkVerifier(),
    files: new PinFiles(path.join(rootDir, 'pins'), silentLogger),
    budgetBytes: BUDGET_BYTES,
    log: silentLogger,
  });
  await pins.restore();
  let isClosed = false;
  const close = async (): Promise<void> => {
    if (isClosed) return;
    isClosed = true;
    await scheduler.close();
    await store.close();
  };
  onTestFinished(close);
  /** As a container that reads a blob and ends. */
  const readOnce = async (source: BlobSource): Promise<void> => {
    const handle = await store.acquire(source);
    await scheduler.ensure(handle, [{ offsetBytes: 0, lengthBytes: handle.sizeBytes }], 'demand', SIGNAL);
    handle.release();
  };
  return { rootDir, store, pins, close, readOnce, fetched: () => fetchedBytes };
}

const pinFiles = (rootDir: string): string[] => fs.readdirSync(path.join(rootDir, 'pins'));

test('a pinned blob is filled, checked, and stays when others make room', async () => {
  const { pins, store, readOnce } = await start();
  await pins.set('imc-a', [FIRST]);
  expect(await pins.status('imc-a')).toMatchObject([{ isWhole: false }]);
  expect(await pins.fill('imc-a', FIRST, SIGNAL)).toMatchObject({ fetchedBytes: MIB });
  expect(pins.filledBytes('imc-a')).toEqual({ [FIRST.digest]: MIB });
  for (const other of [SECOND, THIRD, FOURTH, FIFTH, SECOND]) await readOnce(other);
  expect(await pins.status('imc-a')).toMatchObject([{ digest: FIRST.digest, sizeBytes: MIB, isWhole: true }]);
  expect((await store.refreshUsage()).bytes).toBeLessThanOrEqual(BUDGET_BYTES);
});

test('what is here is not fetched again, and filling twice fetches nothing', async () => {
  const { pins, readOnce, fetched } = await start();
  await readOnce(FIRST);
  await pins.set('imc-a', [FIRST]);
  expect((await pins.fill('imc-a', FIRST, SIGNAL)).fetchedBytes).toBe(0);
  await pins.set('imc-b', [FIRST]);
  expect((await pins.fill('imc-b', FIRST, SIGNAL)).fetchedBytes).toBe(0);
  expect(fetched()).toBe(MIB);
  expect(await pins.wholeOf([FIRST.digest, SECOND.digest])).toEqual([FIRST.digest]);
});

test('bytes that another registry gave and that were checked are taken from there', async () => {
  const { pins, fetched } = await start();
  const elsewhere = sourceOf(BLOBS.get(FIRST.digest)!, 'mirror.example');
  await pins.set('imc-a', [FIRST]);
  await pins.fill('imc-a', FIRST, SIGNAL);
  await pins.set('imc-b', [elsewhere]);
  expect((await pins.fill('imc-b', elsewhere, SIGNAL)).fetchedBytes).toBe(0);
  expect(fetched()).toBe(MIB);
  expect(await pins.status('imc-b')).toMatchObject([{ isWhole: true }]);
});

test('bytes that went bad on the disk are not passed on: the registry is asked', async () => {
  const { pins, fetched } = await start();
  const elsewhere = sourceOf(BLOBS.get(FIRST.digest)!, 'mirror.example');
  await pins.set('imc-a', [FIRST]);
  const { path: file } = await pins.fill('imc-a', FIRST, SIGNAL);
  fs.writeFileSync(file, Buffer.alloc(MIB));
  await pins.set('imc-b', [elsewhere]);
  await pins.fill('imc-b', elsewhere, SIGNAL);
  expect(fetched()).toBe(2 * MIB);
  expect(await pins.status('imc-b')).toMatchObject([{ isWhole: true }]);
});

test('a blob that was checked before is checked again only when that is asked for, and fetched again when it went bad', async () => {
  const { pins, fetched } = await start();
  await pins.set('imc-a', [FIRST]);
  const { path: file } = await pins.fill('imc-a', FIRST, SIGNAL);
  await pins.set('imc-b', [FIRST]);
  fs.writeFileSync(file, Buffer.alloc(MIB));
  expect(await pins.fill('imc-b', FIRST, SIGNAL)).toMatchObject({ fetchedBytes: 0 });
  expect(fetched()).toBe(MIB);
  expect(await pins.fill('imc-b', FIRST, SIGNAL, { isCheckedAgain: true })).toMatchObject({ fetchedBytes: MIB });
  expect(fetched()).toBe(2 * MIB);
  expect(fs.readFileSync(file).equals(BLOBS.get(FIRST.digest)!)).toBe(true);
  expect(await pins.fill('imc-b', FIRST, SIGNAL, { isCheckedAgain: true })).toMatchObject({ fetchedBytes: 0 });
  expect(await pins.status('imc-b')).toMatchObject([{ isWhole: true }]);
});

test('only what is pinned can be filled', async () => {
  const { pins } = await start();
  await pins.set('imc-a', [FIRST]);
  await expect(pins.fill('imc-a', SECOND, SIGNAL)).rejects.toMatchObject({ code: 'FailedPrecondition' });
  await expect(pins.fill('imc-b', FIRST, SIGNAL)).rejects.toMatchObject({ code: 'FailedPrecondition' });
});

test('pins that do not fit the store are refused with both numbers, and nothing changes', async () => {
  const { pins, rootDir } = await start();
  await pins.set('imc-a', [FIRST, SECOND]);
  await expect(pins.set('imc-b', [SECOND, THIRD, FOURTH])).rejects.toMatchObject({
    code: 'ResourceExhausted',
    details: { neededBytes: 4 * MIB, limitBytes: Math.floor(BUDGET_BYTES * 0.9) },
  });
  expect(pins.list()).toEqual(['imc-a']);
  expect(pinFiles(rootDir)).toEqual(['imc-a.json']);
  // What others pin already takes no room.
  await pins.set('imc-b', [SECOND, THIRD]);
});

test('released blobs go at once, those that another owner pins stay, and the ledger is what the disk has', async () => {
  const { pins, store, rootDir } = await start();
  await pins.set('imc-a', [FIRST, SECOND]);
  await pins.set('imc-b', [SECOND]);
  for (const blob of [FIRST, SECOND]) await pins.fill('imc-a', blob, SIGNAL);
  await pins.release('imc-a');
  await pins.release('imc-a');
  expect(await pins.wholeOf([FIRST.digest, SECOND.digest])).toEqual([SECOND.digest]);
  expect(pinFiles(rootDir)).toEqual(['imc-b.json']);
  expect((await store.refreshUsage()).bytes).toBe(du(path.join(rootDir, 'store')));
});

test('a smaller set lets the rest go', async () => {
  const { pins } = await start();
  await pins.set('imc-a', [FIRST, SECOND]);
  for (const blob of [FIRST, SECOND]) await pins.fill('imc-a', blob, SIGNAL);
  await pins.set('imc-a', [SECOND]);
  expect(await pins.wholeOf([FIRST.digest, SECOND.digest])).toEqual([SECOND.digest]);
});

test('a released blob stays as long as somebody reads it', async () => {
  const { pins, store, rootDir } = await start();
  await pins.set('imc-a', [FIRST]);
  await pins.fill('imc-a', FIRST, SIGNAL);
  const reader = await store.acquire(FIRST);
  await pins.release('imc-a');
  expect(pins.list()).toEqual([]);
  expect(reader.isVerified).toBe(true);
  expect(pinFiles(rootDir)).toEqual(['imc-a.json']);
  reader.release();
  await waitFor(() => pinFiles(rootDir).length === 0, { what: 'the released blob to go' });
  expect(store.diskBytesOf(FIRST)).toBe(0);
});

test('pins hold in the next process, and a release that was cut short is ended there', async () => {
  const before = await start();
  const { rootDir } = before;
  await before.pins.set('imc-a', [FIRST]);
  await before.pins.set('imc-b', [SECOND]);
  await before.pins.fill('imc-a', FIRST, SIGNAL);
  await before.pins.fill('imc-b', SECOND, SIGNAL);
  const reader = await before.store.acquire(SECOND);
  await before.pins.release('imc-b');
  reader.release();
  await before.close();

  const { pins, readOnce } = await start(rootDir);
  expect(pins.list()).toEqual(['imc-a']);
  expect(await pins.wholeOf([FIRST.digest, SECOND.digest])).toEqual([FIRST.digest]);
  for (const other of [SECOND, THIRD, FOURTH, FIFTH]) await readOnce(other);
  expect(await pins.status('imc-a')).toMatchObject([{ isWhole: true }]);
  expect(pinFiles(rootDir)).toEqual(['imc-a.json']);
});

test('a damaged list of pins is left alone and harms no other', async () => {
  const before = await start();
  await before.pins.set('imc-a', [FIRST]);
  await before.close();
  fs.writeFileSync(path.join(before.rootDir, 'pins', 'imc-b.json'), '{"version":1,"owner":"imc-c","isReleased":false,"blobs":[]}');
  const { pins } = await start(before.rootDir);
  expect(pins.list()).toEqual(['imc-a']);
});

test('wrong bytes of a registry are not kept', async () => {
  const { pins } = await start();
  const wrong = { ...FIRST, digest: SECOND.digest.replace(/.$/, (last) => (last === '0' ? '1' : '0')) as typeof FIRST.digest };
  BLOBS.set(wrong.digest, bytesOf(9, MIB));
  onTestFinished(() => void BLOBS.delete(wrong.digest));
  await pins.set('imc-a', [wrong]);
  await expect(pins.fill('imc-a', wrong, SIGNAL)).rejects.toMatchObject({ code: 'DataLoss' });
  expect(await pins.status('imc-a')).toMatchObject([{ isWhole: false }]);
});

test('an owner that is released as a fill begins leaves no word of what it filled', async () => {
  const { pins, store } = await start();
  await pins.set('imc-a', [FIRST]);
  const acquire = store.acquire.bind(store);
  let released: Promise<void> | undefined;
  store.acquire = async (source) => {
    released ??= pins.release('imc-a');
    await released;
    return acquire(source);
  };
  await pins.fill('imc-a', FIRST, SIGNAL);
  expect(pins.filledBytes('imc-a')).toEqual({});
});
