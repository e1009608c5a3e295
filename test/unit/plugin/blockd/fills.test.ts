/** Whole blobs on demand: what one caller was given stays while another asks. */
import { expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { Fills } from '../../../../plugin/blockd/fills.ts';
import { blobKeyOf } from '../../../../plugin/file/store/blob-key.ts';
import { bytesOf, openStore, scratchDir, sourceOf, UNIT } from '../file/store/store-support.ts';

test('the same layer of another registry does not take the file of the first from its caller', async () => {
  const bytes = bytesOf(1, 2 * UNIT);
  const { store } = await openStore({ rootDir: scratchDir() });
  const fetchRange = async (_source: unknown, offset: number, length: number): Promise<Uint8Array> => bytes.slice(offset, offset + length);
  const scheduler = new FetchScheduler({ store, fetchRange, clock: systemClock });
  const fills = new Fills({ store, scheduler, chunks: new ChunkVerifier() });
  onTestFinished(async () => {
    fills.close();
    await scheduler.close();
    await store.close();
  });
  const sources = ['one.example', 'two.example'].map((host) => sourceOf(bytes, host));
  const paths = new Set<string>();
  for (const source of sources) paths.add((await fills.fetchWhole(source, new AbortController().signal)).path);
  expect(paths.size).toBe(2);
  // Nothing but the hold keeps them from eviction; a blob that is let go becomes idle a moment later.
  await store.refreshUsage();
  await store.evict(2 ** 40);
  expect(store.list(10).map(({ key, use }) => [key, use])).toEqual(sources.map((source) => [blobKeyOf(source), 'open']));
});
