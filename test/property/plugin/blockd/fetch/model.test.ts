import fs from 'node:fs';
import { expect, test } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { AppError, isAppError } from '../../../../../plugin/base/errors.ts';
import { FetchScheduler } from '../../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import type { FetchRange } from '../../../../../plugin/blockd/fetch/fetch-types.ts';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import type { BlobHandle } from '../../../../../plugin/file/store/blob-handle.ts';
import { ChunkStore } from '../../../../../plugin/file/store/chunk-store.ts';
import { bytesOf, du, scratchDir, sourceOf, UNIT } from '../../../../unit/plugin/file/store/store-support.ts';
import { randomOf, SimDisk } from '../../file/store/sim-disk.ts';

const TIME_BOX_MS = Number(process.env.OBD_PROPERTY_MS ?? 6_000);

interface Content {
  source: BlobSource;
  bytes: Uint8Array;
}

/** Twelve blobs of two registries, more than the budget holds. */
const contents: Content[] = Array.from({ length: 12 }, (_, index) => {
  const bytes = bytesOf(index + 1, (4 + index * 3) * UNIT + index * 1000);
  return { bytes, source: sourceOf(bytes, `registry-${index % 2}.example`) };
});
const byDigest = new Map(contents.map((content) => [content.source.digest, content.bytes]));

/** A registry that is late, fails, stops half-way and sometimes lies about lengths, but never about bytes. */
function faultyRegistry(random: () => number): FetchRange {
  return async (source, offsetBytes, lengthBytes, { signal }) => {
    await systemClock.sleep(random() * 4, signal);
    const dice = random();
    const fail = (code: 'Unavailable' | 'DeadlineExceeded' | 'NotFound'): AppError =>
      new AppError(code, { op: 'get', subject: source.digest, what: 'simulated' });
    if (dice < 0.08) throw fail('Unavailable');
    if (dice < 0.1) throw fail('DeadlineExceeded');
    if (dice < 0.11) throw fail('NotFound');
    const end = offsetBytes + lengthBytes - (dice < 0.13 ? 1 : 0);
    return byDigest.get(source.digest)!.slice(offsetBytes, end);
  };
}

/** One reader: opens a blob, reads here and there or from end to end through the public contract, and compares. */
async function reader(store: ChunkStore, scheduler: FetchScheduler, random: () => number, counts: { reads: number }): Promise<void> {
  const { source, bytes } = contents[Math.floor(random() * contents.length)]!;
  const handle = await store.acquire(source);
  if (random() < 0.3) scheduler.attach(handle);
  const isSequential = random() < 0.4;
  let at = Math.floor(random() * bytes.length);
  try {
    for (let i = 0; i < 20; i += 1) {
      if (!isSequential || at >= bytes.length) at = Math.floor(random() * bytes.length);
      const lengthBytes = Math.min(bytes.length - at, 1 + Math.floor(random() * 2 * UNIT));
      const found = await readAll(scheduler, handle, at, lengthBytes);
      expect(Buffer.compare(found, bytes.subarray(at, at + lengthBytes))).toBe(0);
      counts.reads += 1;
      at += lengthBytes;
      if (random() < 0.03) await scheduler.repair(handle, at - 1, 1, new AbortController().signal);
    }
  } catch (error) {
    // Lengths that lie twice in a row, or a unit repaired twice, are DataLoss; a closing scheduler cancels. Wrong bytes are neither.
    if (!isAppError(error, 'DataLoss', 'Canceled')) throw error;
  } finally {
    handle.release();
  }
}

async function readAll(scheduler: FetchScheduler, handle: BlobHandle, offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
  const target = new Uint8Array(lengthBytes);
  const file = handle.file();
  for (let round = 0; round < 50; round += 1) {
    const missing = Object.assign(new MissingList(), { readAhead: (_: number, offset: number) => scheduler.readAhead(handle, offset) });
    if (file.readSync(offsetBytes, lengthBytes, target, 0, missing)) return target;
    await scheduler.ensure(handle, missing.ranges, 'demand', new AbortController().signal);
  }
  throw new Error('a read never ended');
}

test('readers of a store that evicts, restarts and loses power, fed by a faulty registry, only ever see the source bytes', async () => {
  const seed = Number(process.env.OBD_SEED ?? Date.now() % 1_000_000_000);
  const random = randomOf(seed);
  const dir = scratchDir();
  const endMs = performance.now() + TIME_BOX_MS;
  const counts = { reads: 0, lives: 0, crashes: 0, requests: 0 };
  let disk = new SimDisk(`${dir}/0`);
  try {
    while (performance.now() < endMs || counts.reads === 0) {
      counts.lives += 1;
      const budgetBytes = (random() < 0.3 ? 20 : 120) * UNIT;
      const store = await ChunkStore.open({ rootDir: disk.rootDir, budgetBytes, clock: systemClock, fs: disk.fs, checkpointMs: 10 });
      expect(store.usage().bytes).toBe(du(disk.rootDir));
      const fill = random() < 0.5 ? { fill: { delayMs: 5, rateBytesPerS: 0 } } : {};
      const limits = { inFlight: 1 + Math.floor(random() * 12) };
      const scheduler = new FetchScheduler({ store, fetchRange: faultyRegistry(random), clock: systemClock, limits, random, ...fill });
      const readers = Promise.all(Array.from({ length: 6 }, () => reader(store, scheduler, random, counts)));
      const isCrash = random() < 0.5;
      if (isCrash) {
        disk.dieAfter(Math.floor(random() * 400));
        await Promise.race([readers, disk.died]);
        counts.crashes += 1;
        disk = await disk.restart(random() < 0.5 ? 'power' : 'kill', `${dir}/${counts.lives}`, random);
        continue;
      }
      await readers;
      counts.requests += scheduler.stats().requests;
      await scheduler.close();
      expect(scheduler.stats()).toMatchObject({ inFlight: 0, inFlightBytes: 0, queuedDemand: 0 });
      await store.close();
      expect(store.usage().reservedBytes).toBe(0);
      expect(store.usage().bytes).toBe(du(disk.rootDir));
    }
  } catch (error) {
    throw new Error(`OBD_SEED=${seed} shows it (timing may matter)`, { cause: error });
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
  console.log(`seed ${seed}: ${JSON.stringify(counts)}`);
});
