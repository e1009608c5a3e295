/** Opening and reading devices over bytes that go bad: on the way, and on this node's disk. */
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { MissedReads } from '../../../../plugin/blockd/missed-reads.ts';
import { OpenDevice } from '../../../../plugin/blockd/open-device.ts';
import { InflateThreads } from '../../../../plugin/blockd/spans/inflate-threads.ts';
import { SpanMaker } from '../../../../plugin/blockd/spans/span-maker.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../plugin/file/file.ts';
import { blobKeyOf, directoryOfKey } from '../../../../plugin/file/store/blob-key.ts';
import { ChunkStore } from '../../../../plugin/file/store/chunk-store.ts';
import { OUT_HEADER_BYTES } from '../../../../plugin/fuse/protocol.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { readFixture } from '../../../support/fixtures.ts';
import { scratchDir, UNIT } from '../file/store/store-support.ts';

/** None start: no layer here is gzip. */
const noThreads = new InflateThreads({ threads: 1, onFailure: (error) => expect.unreachable(error.message) });
const signal = new AbortController().signal;
const device = memoryDevice([1, 2, 3].map((n) => readFixture(`blob/l${n}.lz4-4k.tar`)));

/** What the registry answers for a range; `tries` counts how often it was asked for. */
type Serve = (bytes: Buffer, range: { digest: string; offset: number; tries: number }) => Buffer;

async function setUp(serve: Serve = (bytes) => bytes) {
  const rootDir = scratchDir();
  const tries = new Map<string, number>();
  const store = await ChunkStore.open({ rootDir, budgetBytes: 2 ** 30, clock: systemClock });
  const fetchRange = async (source: BlobSource, offset: number, length: number): Promise<Uint8Array> => {
    const key = `${source.digest} ${offset}`;
    tries.set(key, (tries.get(key) ?? 0) + 1);
    const bytes = Buffer.from(device.bytesByDigest.get(source.digest)!.subarray(offset, offset + length));
    return serve(bytes, { digest: source.digest, offset, tries: tries.get(key)! });
  };
  const scheduler = new FetchScheduler({ store, fetchRange, clock: systemClock, patienceMs: 50 });
  onTestFinished(async () => {
    await scheduler.close();
    await store.close();
  });
  const parts = {
    store,
    scheduler,
    codec: loadCodec(),
    chunks: new ChunkVerifier(),
    spans: new SpanMaker({ store, scheduler, threads: noThreads, log: silentLogger }),
    clock: systemClock,
    log: silentLogger,
    logLinesPerMinute: 10,
    verify: 'transport' as const,
  };
  const dataFile = (source: BlobSource): string => path.join(rootDir, 'blobs', 'sha256', directoryOfKey(blobKeyOf(source)), 'data');
  return { parts, store, dataFile, tries };
}

/** Reads as the main thread does for a worker that missed. */
async function readMissed(open: OpenDevice, offsetBytes: number, lengthBytes: number): Promise<{ errno: number; bytes: Buffer }> {
  let outcome = { errno: -1, bytes: Buffer.alloc(0) };
  const missed = new MissedReads({
    answer: (_slot, _unique, errno, answer, length) => {
      outcome = { errno, bytes: Buffer.from(answer.subarray(OUT_HEADER_BYTES, OUT_HEADER_BYTES + length)) };
    },
    onReadFailed: () => {},
  });
  await missed.serve({ type: 'miss', slot: 1, uniqueLow: 1, uniqueHigh: 0, tid: 1, offsetBytes, lengthBytes, ranges: [] }, open);
  return outcome;
}

const { file: whole } = openMemoryDevice(device);
function expected(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  whole.readSync(offset, length, bytes, 0, new MissingList());
  return bytes;
}

/** Flips a byte in the stored copy of each of the units. */
function damage(file: string, units: readonly number[]): void {
  const fd = fs.openSync(file, 'r+');
  for (const unit of units) {
    const at = unit * UNIT + 30_000;
    const byte = Buffer.alloc(1);
    fs.readSync(fd, byte, 0, 1, at);
    fs.writeSync(fd, Buffer.from([byte[0]! ^ 0x40]), 0, 1, at);
  }
  fs.closeSync(fd);
}

describe('opening', () => {
  test('with "full-layer-first" every layer is here and proven before the device opens, and one that is not what its digest says stops it', async () => {
    const { parts } = await setUp();
    const careful = { ...parts, verify: 'full-layer-first' as const };
    const open = await OpenDevice.open('one', device.spec, careful, signal);
    expect(open.handles.map((handle) => handle.isVerified)).toEqual([true, true, true]);
    open.close();

    // A byte of a block that opening does not look at: lazily, the image opens.
    const [, top] = device.spec.layers;
    const digest = top!.kind === 'full' ? top!.blob.digest : '';
    const flips: Serve = (bytes, range) => {
      const at = 2 * UNIT - range.offset;
      if (range.digest === digest && at >= 0 && at < bytes.length) bytes[at]! ^= 1;
      return bytes;
    };
    const lying = await setUp(flips);
    await expect(OpenDevice.open('two', device.spec, { ...lying.parts, verify: 'full-layer-first' }, signal)).rejects.toMatchObject({
      code: 'DataLoss',
      message: expect.stringContaining(digest),
    });
  });

  test('bytes of a table that came wrong are fetched again', async () => {
    const wrongOnce: Serve = (bytes, { tries }) => (tries === 1 ? Buffer.from(bytes.map((byte) => byte ^ 0x11)) : bytes);
    const { parts } = await setUp(wrongOnce);
    const open = await OpenDevice.open('one', device.spec, parts, signal);
    onTestFinished(() => open.close());
    expect((await readMissed(open, 0, 65536)).bytes.equals(expected(0, 65536))).toBe(true);
  });

  test('a layer whose bytes stay wrong is refused', async () => {
    const { parts, store } = await setUp((bytes) => Buffer.from(bytes.map((byte) => byte ^ 0x11)));
    await expect(OpenDevice.open('one', device.spec, parts, signal)).rejects.toMatchObject({ code: 'DataLoss' });
    expect(store.usage().reservedBytes).toBe(0);
  });
});

describe('stored bytes that went bad', () => {
  const length = 1024 * 1024;
  /** Nearly all data of the small images lies here. */
  const end = 12 * length;

  test('in several units under one read are all fetched again', async () => {
    const { parts, dataFile } = await setUp();
    const open = await OpenDevice.open('one', device.spec, parts, signal);
    onTestFinished(() => open.close());
    for (let at = 0; at < end; at += length) await readMissed(open, at, length);
    for (const { source, unitCount } of open.handles)
      damage(
        dataFile(source),
        Array.from({ length: unitCount - 1 }, (_, i) => i),
      );
    for (let at = 0; at < end; at += length) {
      const { errno, bytes } = await readMissed(open, at, length);
      expect([at, errno]).toEqual([at, 0]);
      expect(bytes.equals(expected(at, length))).toBe(true);
    }
  });

  test('that the disk does not give back are fetched again', async () => {
    const { parts, dataFile } = await setUp();
    const open = await OpenDevice.open('one', device.spec, parts, signal);
    onTestFinished(() => open.close());
    for (let at = 0; at < end; at += length) await readMissed(open, at, length);
    // A file that is cut short gives nothing back, as a bad sector does.
    for (const { source, sizeBytes } of open.handles) fs.truncateSync(dataFile(source), Math.floor(sizeBytes / 2));
    for (let at = 0; at < end; at += length) {
      const { errno, bytes } = await readMissed(open, at, length);
      expect([at, errno]).toEqual([at, 0]);
      expect(bytes.equals(expected(at, length))).toBe(true);
    }
  });
});
