/** Inflated spans of gzip layers: made once, checked, kept in the store under its budget, found again, and made again when they go bad. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { MIB } from '../../../../plugin/base/units.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { MissedReads } from '../../../../plugin/blockd/missed-reads.ts';
import { OpenDevice } from '../../../../plugin/blockd/open-device.ts';
import { InflateThreads } from '../../../../plugin/blockd/spans/inflate-threads.ts';
import { SpanMaker } from '../../../../plugin/blockd/spans/span-maker.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../plugin/file/file.ts';
import type { BlobHandle } from '../../../../plugin/file/store/blob-handle.ts';
import { ChunkStore } from '../../../../plugin/file/store/chunk-store.ts';
import type { StoreEvent } from '../../../../plugin/file/store/store-event.ts';
import { OUT_HEADER_BYTES } from '../../../../plugin/fuse/protocol.ts';
import { parseTurboLayer } from '../../../../plugin/image/turbo/turbo-layer.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { type MemoryDevice, memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { tarOf } from '../../../support/tar.ts';
import { buildLayers } from '../convert/build/converted-device.ts';
import { bytesOf, scratchDir, UNIT } from '../file/store/store-support.ts';

const READ_BYTES = 1 * MIB;

/** Text that compresses to about a third, as programs do, and a file of zeros whose deflate blocks are longer than any span. */
function content(): { name: string; content: Uint8Array }[] {
  const text = Buffer.from(bytesOf(7, 4 * MIB).map((byte) => 97 + (byte % 8)));
  return [
    { name: 'text', content: text },
    { name: 'zeros', content: Buffer.alloc(6 * MIB) },
    { name: 'noise', content: bytesOf(9, 1 * MIB) },
  ];
}

let gzip: Buffer;
let checked: MemoryDevice;
/** As the reference writes them: no digests of chunks. */
let unchecked: MemoryDevice;
let expected: Buffer;

beforeAll(async () => {
  gzip = gzipSync(await tarOf(content()));
  const [layer] = await buildLayers([gzip], { mode: 'index-only' });
  const { metaByFsType, gzipIndex, chunkDigests } = parseTurboLayer(gunzipSync(layer!.blob), 'test');
  const parts = { meta: metaByFsType.get('erofs')!, target: gzip, gzipIndex: gzipIndex! };
  checked = memoryDevice([{ ...parts, chunkDigests: chunkDigests! }]);
  unchecked = memoryDevice([parts]);
  const { file } = openMemoryDevice(checked);
  expected = Buffer.alloc(Math.min(file.sizeBytes, 24 * MIB));
  file.readSync(0, expected.length, expected, 0, new MissingList());
});

class CountingThreads extends InflateThreads {
  inflated = 0;

  override inflate(request: Parameters<InflateThreads['inflate']>[0]): ReturnType<InflateThreads['inflate']> {
    this.inflated += 1;
    return super.inflate(request);
  }
}

type Serve = (bytes: Buffer, range: { isGzip: boolean; offset: number; tries: number }) => Buffer;
interface Options {
  device?: MemoryDevice;
  rootDir?: string;
  budgetBytes?: number;
  memoryBytes?: number;
  serve?: Serve;
}

async function setUp({
  device = checked,
  rootDir = scratchDir(),
  budgetBytes = 2 ** 30,
  memoryBytes = 64 * MIB,
  serve = (bytes) => bytes,
}: Options = {}) {
  const tries = new Map<string, number>();
  const threads = new CountingThreads({ threads: 2, onFailure: (error) => expect.unreachable(error.message) });
  let spans: SpanMaker | undefined;
  const onEvent = (event: StoreEvent): void => {
    if (event.kind === 'blob-corrupt') void spans?.forgetUnchecked(event.digest);
  };
  const store = await ChunkStore.open({ rootDir, budgetBytes, memoryBytes, clock: systemClock, onEvent });
  const fetchRange = async (source: BlobSource, offset: number, length: number): Promise<Uint8Array> => {
    const whole = device.bytesByDigest.get(source.digest)!;
    const units: Buffer[] = [];
    // Unit by unit, because a repair asks for other ranges.
    for (let at = offset; at < offset + length; at += UNIT) {
      const key = `${source.digest} ${at}`;
      tries.set(key, (tries.get(key) ?? 0) + 1);
      const bytes = Buffer.from(whole.subarray(at, Math.min(at + UNIT, offset + length)));
      units.push(serve(bytes, { isGzip: whole === gzip, offset: at, tries: tries.get(key)! }));
    }
    return Buffer.concat(units);
  };
  const scheduler = new FetchScheduler({ store, fetchRange, clock: systemClock, patienceMs: 50 });
  let isClosed = false;
  const close = async (): Promise<void> => {
    if (isClosed) return;
    isClosed = true;
    await scheduler.close();
    await store.close();
    await threads.close();
  };
  onTestFinished(close);
  spans = new SpanMaker({ store, scheduler, threads, log: silentLogger });
  const parts = {
    store,
    scheduler,
    codec: loadCodec(),
    chunks: new ChunkVerifier(),
    spans,
    clock: systemClock,
    log: silentLogger,
    logLinesPerMinute: 10,
    verify: 'transport' as const,
  };
  const open = await OpenDevice.open('one', device.spec, parts, new AbortController().signal);
  onTestFinished(() => open.close());
  return { open, parts, spans, store, threads, close, rootDir };
}

/**
 * A byte that comes wrong until `end`. It lies in a stored block, near the end of the noise: nothing in gzip tells, until all of the
 * layer is there. `plainAt`: where a device shows it, among 32 bytes.
 */
function wrongNoise(): { at: number; serve: Serve; plainAt: number; end: () => void } {
  const at = gzip.length - 100_000;
  let isWrong = true;
  const serve: Serve = (bytes, { isGzip, offset }) => {
    if (isWrong && isGzip && at >= offset && at < offset + bytes.length) bytes[at - offset]! ^= 1;
    return bytes;
  };
  const plainAt = expected.indexOf(gzip.subarray(at - 16, at + 16));
  expect(plainAt).toBeGreaterThan(0);
  const end = (): void => {
    isWrong = false;
  };
  return { at, serve, plainAt, end };
}

/** Reads as the main thread does for a worker that missed; undefined: an I/O error. */
async function readMissed(open: OpenDevice, offsetBytes: number, lengthBytes: number): Promise<Buffer | undefined> {
  let outcome: Buffer | undefined;
  const missed = new MissedReads({
    answer: (_slot, _unique, errno, answer, length) => {
      if (errno === 0) outcome = Buffer.from(answer.subarray(OUT_HEADER_BYTES, OUT_HEADER_BYTES + length));
    },
    onReadFailed: () => {},
  });
  await missed.serve({ type: 'miss', slot: 1, uniqueLow: 1, uniqueHigh: 0, tid: 1, offsetBytes, lengthBytes, ranges: [] }, open);
  return outcome;
}

/** Tells of each read of a blob through this handle whether all of it was there. */
function onRead(handle: BlobHandle, tell: (isHere: boolean) => void): void {
  const file = handle.file.bind(handle);
  handle.file = () => {
    const found = file();
    const readSync = found.readSync.bind(found);
    found.readSync = (...args) => {
      const isHere = readSync(...args);
      tell(isHere);
      return isHere;
    };
    return found;
  };
}

/** Reads everything in order; the offset of the first wrong or failed read, or undefined. */
async function firstWrong(open: OpenDevice): Promise<number | undefined> {
  for (let at = 0; at < expected.length; at += READ_BYTES) {
    const length = Math.min(READ_BYTES, expected.length - at);
    const found = await readMissed(open, at, length);
    if (found === undefined || !found.equals(expected.subarray(at, at + length))) return at;
  }
  return undefined;
}

/** Data files of the store that hold inflated spans: the ones larger than every blob that is fetched. */
function spanFiles(rootDir: string): string[] {
  const directory = path.join(rootDir, 'blobs', 'sha256');
  const files = fs.readdirSync(directory).map((name) => path.join(directory, name, 'data'));
  return files.filter((file) => fs.existsSync(file) && fs.statSync(file).size > gzip.length);
}

const diskBytes = (rootDir: string): number => Number(execFileSync('du', ['-s', '-B1', rootDir], { encoding: 'utf8' }).split('\t')[0]);

describe('a span', () => {
  test('is inflated once, whoever reads it, and kept: a restarted process inflates nothing', async () => {
    const { open, threads, store, close, rootDir } = await setUp();
    expect(await firstWrong(open)).toBeUndefined();
    const { inflated } = threads;
    expect(inflated).toBeGreaterThan(4);
    expect(await firstWrong(open)).toBeUndefined();
    expect(threads.inflated).toBe(inflated);
    expect((await store.refreshUsage()).bytes).toBe(diskBytes(rootDir));
    open.close();
    await close();
    const again = await setUp({ rootDir });
    expect(await firstWrong(again.open)).toBeUndefined();
    expect(again.threads.inflated).toBe(0);
    expect((await again.store.refreshUsage()).bytes).toBe(diskBytes(rootDir));
  });

  test('survives a process that is killed, from its checkpoint on, and is never half there', async () => {
    const { open, store, rootDir } = await setUp();
    expect(await readMissed(open, 0, READ_BYTES)).toBeDefined();
    await store.checkpoint();
    expect(await firstWrong(open)).toBeUndefined();
    // As a killed process leaves it: some spans recorded, others only written.
    const left = scratchDir();
    fs.cpSync(rootDir, left, { recursive: true });
    await store.checkpoint();
    const recorded = scratchDir();
    fs.cpSync(rootDir, recorded, { recursive: true });
    const after = await setUp({ rootDir: left });
    expect(await firstWrong(after.open)).toBeUndefined();
    expect((await after.store.refreshUsage()).bytes).toBe(diskBytes(left));
    const afterCheckpoint = await setUp({ rootDir: recorded });
    expect(await firstWrong(afterCheckpoint.open)).toBeUndefined();
    expect(afterCheckpoint.threads.inflated).toBe(0);
  });

  test('is inflated once for many readers at once, each of whom gets the right bytes', async () => {
    const { open, threads } = await setUp();
    const offsets = Array.from({ length: 300 }, (_, i) => (i * 7_919_113) % (expected.length - 100_000));
    const found = await Promise.all(offsets.map((at) => readMissed(open, at, 4096 + (at % 90_000))));
    for (const [i, at] of offsets.entries()) expect(found[i]?.equals(expected.subarray(at, at + 4096 + (at % 90_000)))).toBe(true);
    const { inflated } = threads;
    await Promise.all(offsets.map((at) => readMissed(open, at, 4096)));
    expect(threads.inflated).toBe(inflated);
    expect(inflated).toBeLessThan(24);
  });

  test('that the disk gives back wrong is made again, from bytes that are checked', async () => {
    const { open, close, rootDir } = await setUp();
    expect(await firstWrong(open)).toBeUndefined();
    open.close();
    await close();
    expect(spanFiles(rootDir)).toHaveLength(1);
    for (const file of spanFiles(rootDir)) {
      const bytes = fs.readFileSync(file);
      for (let at = 1000; at < bytes.length; at += 200_000) bytes[at]! ^= 1;
      fs.writeFileSync(file, bytes, { flag: 'r+' });
    }
    const again = await setUp({ rootDir });
    expect(await firstWrong(again.open)).toBeUndefined();
    expect(again.threads.inflated).toBeGreaterThan(4);
  });

  test('is served from memory when the store has no room, also one larger than that memory likes', async () => {
    const { open, store } = await setUp({ budgetBytes: 3 * MIB, memoryBytes: 4 * MIB });
    expect(await firstWrong(open)).toBeUndefined();
    expect(store.usage().bytes).toBeLessThanOrEqual(3 * MIB);
    expect(store.usage().reservedBytes).toBe(0);
  });

  test('without digests is kept as long as the process, which has nothing to check it against later', async () => {
    const { open, threads, close, rootDir } = await setUp({ device: unchecked });
    expect(await firstWrong(open)).toBeUndefined();
    const { inflated } = threads;
    expect(inflated).toBeGreaterThan(4);
    expect(await firstWrong(open)).toBeUndefined();
    expect(threads.inflated).toBe(inflated);
    open.close();
    await close();
    const again = await setUp({ device: unchecked, rootDir });
    expect(await firstWrong(again.open)).toBeUndefined();
    expect(again.threads.inflated).toBe(inflated);
  });

  test('without digests is forgotten when its layer turns out to be another one', async () => {
    const { at, serve, plainAt, end } = wrongNoise();
    const { open, store } = await setUp({ device: unchecked, serve });
    const rightPlain = expected.subarray(plainAt, plainAt + 32);
    expect((await readMissed(open, plainAt, 32))?.equals(rightPlain)).toBe(false);
    end();
    expect(open.handles[2]!.isReadable(Math.floor(at / UNIT))).toBe(true);
    await open.fetch([{ blobId: open.handles[2]!.blobId, offsetBytes: 0, lengthBytes: gzip.length }], new AbortController().signal);
    await vi.waitFor(async () => expect((await readMissed(open, plainAt, 32))?.equals(rightPlain)).toBe(true), 30_000);
    expect(await firstWrong(open)).toBeUndefined();
    expect(store.usage().reservedBytes).toBe(0);
  });

  test('without digests is forgotten also when it is being written as its layer turns out to be another one', async () => {
    const { serve, plainAt, end } = wrongNoise();
    const { open, store, spans } = await setUp({ device: unchecked, serve });
    const stored = open.handles[2]!;
    const write = store.write.bind(store);
    store.write = async (handle, ...rest) => {
      if (open.handles.includes(handle)) return write(handle, ...rest);
      store.write = write;
      end();
      // As when the layer has just become complete, and its digest is another one.
      const forgotten = [spans.forgetUnchecked(stored.source.digest), store.drop(stored, 0, stored.sizeBytes)];
      const written = await write(handle, ...rest);
      await Promise.all(forgotten);
      return written;
    };
    expect((await readMissed(open, plainAt, 32))?.equals(expected.subarray(plainAt, plainAt + 32))).toBe(true);
    expect(await firstWrong(open)).toBeUndefined();
    expect(store.usage().reservedBytes).toBe(0);
  });

  test('without digests is forgotten also when its layer turns out to be another one just after it was read', async () => {
    const { serve, plainAt, end } = wrongNoise();
    const { open, store, spans } = await setUp({ device: unchecked, serve });
    const [, index, stored] = open.handles as [BlobHandle, BlobHandle, BlobHandle];
    const forgotten: Promise<void>[] = [];
    let hasStored = false;
    onRead(stored, (isHere) => {
      hasStored = isHere;
    });
    // The index is read last.
    onRead(index, (isHere) => {
      if (!isHere || !hasStored || forgotten.length > 0) return;
      queueMicrotask(() => {
        end();
        forgotten.push(spans.forgetUnchecked(stored.source.digest), store.drop(stored, 0, stored.sizeBytes));
      });
    });
    expect((await readMissed(open, plainAt, 32))?.equals(expected.subarray(plainAt, plainAt + 32))).toBe(true);
    expect(forgotten).toHaveLength(2);
    await Promise.all(forgotten);
  });

  test('without digests is not found again by a device that is opened as its layer turns out to be another one', async () => {
    const { serve, plainAt, end } = wrongNoise();
    const { open, store, spans, parts } = await setUp({ device: unchecked, serve });
    const right = expected.subarray(plainAt, plainAt + 32);
    expect((await readMissed(open, plainAt, 32))?.equals(right)).toBe(false);
    const stored = await store.acquire(open.handles[2]!.source);
    open.close();
    const acquire = store.acquire.bind(store);
    store.acquire = async (source) => {
      const acquired = await acquire(source);
      if (open.handles.some((handle) => handle.source.digest === source.digest)) return acquired;
      store.acquire = acquire;
      end();
      await Promise.all([spans.forgetUnchecked(stored.source.digest), store.drop(stored, 0, stored.sizeBytes)]);
      return acquired;
    };
    const again = await OpenDevice.open('two', unchecked.spec, parts, new AbortController().signal);
    onTestFinished(() => again.close());
    expect((await readMissed(again, plainAt, 32))?.equals(right)).toBe(true);
  });

  test('that the thread cannot deal with fails its own reads, and no others', async () => {
    const { open, threads } = await setUp();
    const inflate = threads.inflate.bind(threads);
    threads.inflate = async (request) => inflate({ ...request, plainBytes: Number.MAX_SAFE_INTEGER });
    expect(await readMissed(open, 2 * MIB, 4096)).toBeUndefined();
    expect(threads.inflated).toBe(1);
    threads.inflate = inflate;
    expect(await firstWrong(open)).toBeUndefined();
  });

  test('goes on for a second device when the first, through which it was being made, is closed', async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { open, parts, threads } = await setUp();
    const second = await OpenDevice.open('two', checked.spec, parts, new AbortController().signal);
    onTestFinished(() => second.close());
    const inflate = threads.inflate.bind(threads);
    threads.inflate = async (request) => {
      await held;
      return inflate(request);
    };
    const at = 2 * MIB;
    const first = readMissed(open, at, 4096);
    const other = readMissed(second, at, 4096);
    open.close();
    release();
    expect(await first).toBeUndefined();
    expect((await other)?.equals(expected.subarray(at, at + 4096))).toBe(true);
  });
});

describe('a layer whose bytes come wrong', () => {
  const wrong = (bytes: Buffer): Buffer => Buffer.from(bytes.map((byte, i) => (i % 3000 === 1500 ? byte ^ 0x20 : byte)));

  test('once is fetched again', async () => {
    const { open } = await setUp({ serve: (bytes, { isGzip, tries }) => (isGzip && tries === 1 ? wrong(bytes) : bytes) });
    expect(await firstWrong(open)).toBeUndefined();
  });

  test('always gives I/O errors and never data', async () => {
    const { open, store } = await setUp({ serve: (bytes, { isGzip, offset }) => (isGzip && offset >= 65_536 ? wrong(bytes) : bytes) });
    let failures = 0;
    for (let at = 0; at < expected.length; at += 65_536) {
      const found = await readMissed(open, at, 65_536);
      if (found === undefined) failures += 1;
      else expect(found.equals(expected.subarray(at, at + 65_536))).toBe(true);
    }
    expect(failures).toBeGreaterThan(50);
    expect(store.usage().reservedBytes).toBe(0);
  });
});
