/** The life of devices: what a restart, a deadline or a failure of one caller may do to a device that containers read. */
import fs from 'node:fs';
import path from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { Devices } from '../../../../plugin/blockd/devices.ts';
import { EventRing } from '../../../../plugin/blockd/events.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import type { KeeperLink } from '../../../../plugin/blockd/keeper-link.ts';
import { InflateThreads } from '../../../../plugin/blockd/spans/inflate-threads.ts';
import { SpanMaker } from '../../../../plugin/blockd/spans/span-maker.ts';
import { SpecFiles } from '../../../../plugin/blockd/spec-files.ts';
import { blobsOf } from '../../../../plugin/file/device-file.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { ChunkStore } from '../../../../plugin/file/store/chunk-store.ts';
import type { FusePool } from '../../../../plugin/fuse/pool.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { memoryDevice } from '../../../support/devices.ts';
import { readFixture } from '../../../support/fixtures.ts';
import { scratchDir } from '../file/store/store-support.ts';

const device = memoryDevice([readFixture('blob/l1.lz4-4k.tar')]);
const never = new AbortController().signal;
/** None start: no layer here is gzip. */
const noThreads = new InflateThreads({ threads: 1, onFailure: (error) => expect.unreachable(error.message) });

/** The data plane without kernel and keeper: both are tables that outlive a "restart" of {@link Devices}. */
async function setUp() {
  const rootDir = scratchDir();
  const registry = { isAway: false };
  /** Connections that the keeper holds, and paths where their files are mounted. */
  const held = new Set<string>();
  const mounted = new Set<string>();
  const taking = { failures: 0 };
  const deviceDir = path.join(rootDir, 'run');
  fs.mkdirSync(deviceDir);
  const start = async () => {
    const store = await ChunkStore.open({
      rootDir: path.join(rootDir, `store-${Math.random()}`),
      budgetBytes: 2 ** 30,
      clock: systemClock,
    });
    const fetchRange = async (source: BlobSource, offset: number, length: number): Promise<Uint8Array> => {
      if (registry.isAway) throw new AppError('Unavailable', { op: 'fetch', subject: source.digest, what: 'away' });
      return device.bytesByDigest.get(source.digest)!.slice(offset, offset + length);
    };
    const scheduler = new FetchScheduler({ store, fetchRange, clock: systemClock });
    onTestFinished(async () => {
      await scheduler.close();
      await store.close();
    });
    let slot = 0;
    const unmounting = { after: async (): Promise<void> => {} };
    const countsOf = () => ({ reads: 3, bytes: 4096 });
    const pool = { add: () => ++slot, remove: async () => {}, answer: () => true, countsOf } as unknown as FusePool;
    const keeper = {
      list: async () => [...held],
      open: async (name: string, mountPath: string) => {
        held.add(name);
        mounted.add(mountPath);
        return 1;
      },
      take: async (name: string) => {
        if (taking.failures-- > 0) throw new AppError('Internal', { op: 'take', subject: name, what: 'simulated' });
        return 1;
      },
      close: async (name: string) => void held.delete(name),
    } as unknown as KeeperLink;
    const devices = new Devices({
      store,
      scheduler,
      codec: loadCodec(),
      chunks: new ChunkVerifier(),
      spans: new SpanMaker({ store, scheduler, threads: noThreads, log: silentLogger }),
      pool,
      keeper,
      specFiles: new SpecFiles(path.join(rootDir, 'devices')),
      deviceDir,
      mountPoints: async () => [...mounted],
      unmount: async (targets) => {
        for (const target of targets) mounted.delete(target);
        await unmounting.after();
      },
      onAttached: () => {},
      clock: systemClock,
      events: new EventRing(systemClock),
      log: silentLogger,
      logLinesPerMinute: 10,
      verify: 'transport',
    });
    await devices.restore();
    return { devices, store, unmounting, keeper };
  };
  return { start, registry, held, mounted, taking, deviceDir };
}

const stateOf = (devices: Devices): string[] => devices.list().map(({ instance, state }) => `${instance} ${state}`);

test('a caller whose deadline passes does not end the taking over of a device that containers read', async () => {
  const { start, registry, held } = await setUp();
  await (await start()).devices.attach(device.spec, never);
  registry.isAway = true;
  const { devices } = await start();
  await expect(devices.attach(device.spec, AbortSignal.timeout(50))).rejects.toMatchObject({ code: 'Unavailable' });
  expect([...held]).toEqual(['test']);
  registry.isAway = false;
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test attached']), 30_000);
});

test('detaching a device that is being taken over leaves it to its last users', async () => {
  const { start, registry, held, mounted } = await setUp();
  await (await start()).devices.attach(device.spec, never);
  registry.isAway = true;
  const { devices } = await start();
  await devices.detach(device.spec.id);
  expect([...mounted]).toEqual([]);
  expect([...held]).toEqual(['test']);
  registry.isAway = false;
  const again = await devices.attach(device.spec, never);
  expect(again.instance).toBe('test.1');
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test releasing', 'test.1 attached']), 30_000);
});

test('a device that was detached before a restart is not given to new users, whose file would be gone', async () => {
  const { start, mounted } = await setUp();
  const before = (await start()).devices;
  await before.attach(device.spec, never);
  await before.detach(device.spec.id);
  const { devices } = await start();
  expect(stateOf(devices)).toEqual(['test releasing']);
  const again = await devices.attach(device.spec, never);
  expect(mounted.has(again.devicePath)).toBe(true);
  expect(stateOf(devices)).toEqual(['test releasing', 'test.1 attached']);
});

test('taking over again after a failure holds no blob twice', async () => {
  const { start, taking } = await setUp();
  await (await start()).devices.attach(device.spec, never);
  taking.failures = 1;
  const { devices, store } = await start();
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test attached']), 30_000);
  devices.receive({ type: 'gone', slot: 1 });
  await vi.waitFor(() => expect(stateOf(devices)).toEqual([]), 30_000);
  const handle = await store.acquire(blobsOf(device.spec)[0]!);
  expect(handle.blob.references).toBe(1);
  handle.release();
});

test('a connection that nobody serves and whose mount cannot be taken down does not stop the others', async () => {
  const { start, held, mounted } = await setUp();
  await (await start()).devices.attach(device.spec, never);
  held.add('orphan');
  vi.spyOn(mounted, 'delete').mockImplementation(() => {
    throw new AppError('Unavailable', { op: 'unmount', subject: 'orphan', what: 'simulated' });
  });
  const { devices } = await start();
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test attached']), 30_000);
});

test('who comes while an opening is being given up does not share its end', async () => {
  const { start } = await setUp();
  const { devices, store } = await start();
  const acquire = store.acquire.bind(store);
  const reached = Promise.withResolvers<void>();
  const held = Promise.withResolvers<void>();
  store.acquire = async (source) => {
    store.acquire = acquire;
    reached.resolve();
    await held.promise;
    return acquire(source);
  };
  const deadline = new AbortController();
  const first = devices.attach(device.spec, deadline.signal);
  await reached.promise;
  deadline.abort();
  await expect(first).rejects.toMatchObject({ code: 'Unavailable' });
  const second = devices.attach(device.spec, never);
  held.resolve();
  expect(await second).toMatchObject({ state: 'attached' });
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test.1 attached']), 30_000);
});

test('an opening that was given up at its last step attaches nothing', async () => {
  const { start, held } = await setUp();
  const { devices } = await start();
  const deadline = new AbortController();
  const save = vi.spyOn(SpecFiles.prototype, 'save').mockImplementationOnce(async () => deadline.abort());
  onTestFinished(() => save.mockRestore());
  await expect(devices.attach(device.spec, deadline.signal)).rejects.toMatchObject({ code: 'Unavailable' });
  await vi.waitFor(() => expect(stateOf(devices)).toEqual([]), 30_000);
  expect([...held]).toEqual([]);
});

test('a device that the kernel has released is not attached again by an unmount that fails late', async () => {
  const { start } = await setUp();
  const { devices, unmounting, keeper } = await start();
  await devices.attach(device.spec, never);
  const closing = Promise.withResolvers<void>();
  keeper.close = () => closing.promise;
  unmounting.after = async () => {
    unmounting.after = async () => {};
    devices.receive({ type: 'gone', slot: 1 });
    throw new AppError('Unavailable', { op: 'unmount', subject: 'test', what: 'simulated' });
  };
  await devices.detach(device.spec.id);
  expect(stateOf(devices)).toEqual(['test releasing']);
  expect((await devices.attach(device.spec, never)).instance).toBe('test.1');
  closing.resolve();
  await vi.waitFor(() => expect(stateOf(devices)).toEqual(['test.1 attached']), 30_000);
});
