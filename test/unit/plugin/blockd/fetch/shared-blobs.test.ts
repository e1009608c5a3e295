/** Blobs that images share because they name the same chunk list: each image's registry helps the others, none can keep a blob from them. */
import { expect, onTestFinished, test } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { FetchScheduler } from '../../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';
import { bytesOf, openStore, scratchDir, sourceOf, UNIT } from '../../file/store/store-support.ts';
import { FakeClock, runUntil, watch } from './fetch-support.ts';

/** Images that name the same list of chunk digests share stored bytes, whatever their registries. */
function listed(bytes: Uint8Array, host: string): BlobSource {
  const source = sourceOf(bytes, host);
  return { ...source, chunkList: { digest: source.digest as `sha256:${string}`, offsetBytes: UNIT, sizeBytes: 32, chunkBytes: UNIT } };
}

const signal = new AbortController().signal;

async function setUp() {
  const clock = new FakeClock();
  const { store } = await openStore({ rootDir: scratchDir(), clock });
  const bytes = bytesOf(1, 8 * UNIT);
  const asked: string[][] = [];
  const dead = new Set<string>();
  // As the registry client does: the repositories in order, until one has the blob.
  const fetchRange = async (source: BlobSource, offset: number, length: number): Promise<Uint8Array> => {
    const hosts = source.repositories.map(({ host }) => host);
    asked.push(hosts);
    if (hosts.every((host) => dead.has(host))) throw new AppError('Unavailable', { op: 'fetch', subject: 'blob', what: 'away' });
    return bytes.slice(offset, offset + length);
  };
  const scheduler = new FetchScheduler({ store, fetchRange, clock, patienceMs: 5000, random: () => 1 });
  onTestFinished(async () => {
    await scheduler.close();
    await store.close();
  });
  const read = (handle: Awaited<ReturnType<typeof store.acquire>>, unit: number) =>
    scheduler.ensure(handle, [{ offsetBytes: unit * UNIT, lengthBytes: UNIT }], 'demand', signal);
  return { clock, store, bytes, asked, dead, read };
}

test('a blob is fetched from the registry of the image that reads it, whoever used it first', async () => {
  const { clock, store, bytes, asked, dead, read } = await setUp();
  const first = await store.acquire(listed(bytes, 'first.example'));
  await read(first, 0);
  const second = await store.acquire(listed(bytes, 'second.example'));
  dead.add('first.example');
  const outcome = watch(read(second, 3));
  await runUntil(clock, () => outcome.isDone, 20_000);
  expect(outcome.error).toBeUndefined();
  expect(asked.at(-1)).toEqual(['second.example', 'first.example']);
});

test('the registries of other images that share a blob help when the own one is away', async () => {
  const { clock, store, bytes, asked, dead, read } = await setUp();
  const first = await store.acquire(listed(bytes, 'first.example'));
  const second = await store.acquire(listed(bytes, 'second.example'));
  await read(first, 0);
  await read(second, 1);
  dead.add('first.example');
  const outcome = watch(read(first, 2));
  await runUntil(clock, () => outcome.isDone, 20_000);
  expect(outcome.error).toBeUndefined();
  expect(asked.at(-1)).toEqual(['first.example', 'second.example']);
});
