import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { AppError, type ErrorCode } from '../../../../../plugin/base/errors.ts';
import { FetchScheduler, type FetchSchedulerOptions } from '../../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import type { FetchEvent } from '../../../../../plugin/blockd/fetch/fetch-types.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import type { BlobHandle } from '../../../../../plugin/file/store/blob-handle.ts';
import { bytesOf, openStore, read, scratchDir, sourceOf, type TestStore, UNIT } from '../../file/store/store-support.ts';
import { FakeClock, FakeRegistry, runUntil, settle, settleAll, watch } from './fetch-support.ts';

async function setUp(options: Partial<FetchSchedulerOptions> & { budgetBytes?: number; opened?: TestStore } = {}) {
  const clock = new FakeClock();
  const registry = new FakeRegistry();
  const events: FetchEvent[] = [];
  const { budgetBytes, opened: given, ...rest } = options;
  const opened = given ?? (await openStore({ rootDir: scratchDir(), clock, ...(budgetBytes === undefined ? {} : { budgetBytes }) }));
  const { store } = opened;
  const scheduler = new FetchScheduler({
    store,
    fetchRange: registry.fetchRange,
    clock,
    onEvent: (event) => events.push(event),
    random: () => 1,
    ...rest,
  });
  onTestFinished(async () => {
    await scheduler.close();
    await store.close();
  });
  const blobOf = async (seed: number, sizeBytes: number, host?: string): Promise<{ blob: BlobHandle; bytes: Uint8Array }> => {
    const bytes = bytesOf(seed, sizeBytes);
    const source = sourceOf(bytes, host);
    registry.add(source, bytes);
    return { blob: await store.acquire(source), bytes };
  };
  const demand = (blob: BlobHandle, unit: number, units = 1, signal = new AbortController().signal) => {
    const offsetBytes = unit * UNIT;
    const lengthBytes = Math.min(units * UNIT, blob.sizeBytes - offsetBytes);
    return scheduler.ensure(blob, [{ offsetBytes, lengthBytes }], 'demand', signal);
  };
  return { clock, registry, events, store, storeEvents: opened.events, scheduler, blobOf, demand };
}

const failure = (code: ErrorCode): AppError => new AppError(code, { op: 'fetch', subject: 'blob', what: 'simulated' });
const units = (requests: { offsetBytes: number; lengthBytes: number }[]): number[][] =>
  requests.map(({ offsetBytes, lengthBytes }) => [offsetBytes / UNIT, Math.ceil(lengthBytes / UNIT)]);

describe('what is asked for', () => {
  test('an isolated miss fetches exactly one unit, and the read then succeeds', async () => {
    const { blobOf, demand, registry } = await setUp();
    const { blob, bytes } = await blobOf(1, 40 * UNIT);
    const missing = read(blob, 20 * UNIT + 100, 4096) as MissingList['ranges'];
    await demand(blob, missing[0]!.offsetBytes / UNIT);
    expect(read(blob, 20 * UNIT + 100, 4096)).toEqual(bytes.slice(20 * UNIT + 100, 20 * UNIT + 4196));
    expect(units(registry.requests)).toEqual([[20, 1]]);
  });

  test('the same unit asked for twice is fetched once; neighbours come in one request; 1 MiB is the largest', async () => {
    const { blobOf, demand, registry, scheduler } = await setUp();
    const { blob, bytes } = await blobOf(2, 40 * UNIT + 5);
    await Promise.all([demand(blob, 3), demand(blob, 3), demand(blob, 8, 33)]);
    expect(units(registry.requests)).toEqual([
      [3, 1],
      [8, 16],
      [24, 16],
      [40, 1],
    ]);
    expect(read(blob, 8 * UNIT, 32 * UNIT + 5)).toEqual(bytes.slice(8 * UNIT));
    expect(scheduler.stats()).toMatchObject({
      misses: 3,
      requests: 4,
      bytesFetchedDemand: 33 * UNIT + 5,
      bytesFetchedPrefetch: 0,
      inFlight: 0,
    });
  });

  test('misses that wait for a slot merge with their neighbours', async () => {
    const { blobOf, demand, registry } = await setUp({ limits: { inFlight: 1 } });
    const { blob } = await blobOf(3, 40 * UNIT);
    await Promise.all([demand(blob, 30), demand(blob, 5), demand(blob, 6)]);
    expect(units(registry.requests)).toEqual([
      [30, 1],
      [5, 2],
    ]);
  });

  test('a sequential reader is kept ahead of, also when it only hits; a random one fetches nothing more than it touches', async () => {
    const { blobOf, demand, scheduler } = await setUp();
    const { blob, bytes } = await blobOf(4, 400 * UNIT);
    const file = blob.file();
    let misses = 0;
    for (let unit = 0; unit < 400; unit += 1) {
      const target = new Uint8Array(UNIT);
      const missing = Object.assign(new MissingList(), { readAhead: (_: number, offset: number) => scheduler.readAhead(blob, offset) });
      while (!file.readSync(unit * UNIT, UNIT, target, 0, missing)) {
        misses += 1;
        await demand(blob, unit);
      }
      expect(target).toEqual(bytes.subarray(unit * UNIT, (unit + 1) * UNIT));
      await settleAll();
    }
    expect(misses).toBeLessThan(30);
    expect(scheduler.stats().bytesFetchedDemand + scheduler.stats().bytesFetchedPrefetch).toBe(400 * UNIT);

    const { blob: other } = await blobOf(5, 900 * UNIT);
    const before = scheduler.stats();
    for (let i = 0; i < 300; i += 1) await demand(other, (i * 347) % 900);
    const after = scheduler.stats();
    expect(after.bytesFetchedPrefetch).toBe(before.bytesFetchedPrefetch);
    expect(after.bytesFetchedDemand - before.bytesFetchedDemand).toBe(300 * UNIT);
  });

  test('ranges outside the blob or far too large are refused', async () => {
    const { blobOf, scheduler } = await setUp();
    const { blob } = await blobOf(6, UNIT);
    const { signal } = new AbortController();
    for (const range of [
      { offsetBytes: 0, lengthBytes: UNIT + 1 },
      { offsetBytes: -1, lengthBytes: 1 },
    ]) {
      await expect(scheduler.ensure(blob, [range], 'demand', signal)).rejects.toMatchObject({ code: 'InvalidArgument' });
    }
  });
});

describe('order and fairness', () => {
  test('readers go before read-ahead, and a read-ahead that a reader wants moves up', async () => {
    const { blobOf, demand, registry, scheduler } = await setUp({ limits: { inFlight: 2 } });
    const { blob } = await blobOf(10, 300 * UNIT);
    const release: (() => void)[] = [];
    registry.answer = (_, bytes) => new Promise((resolve) => release.push(() => resolve(bytes)));
    const { signal } = new AbortController();
    const first = scheduler.ensure(blob, [{ offsetBytes: 0, lengthBytes: UNIT }], 'prefetch', signal);
    const queued = scheduler.ensure(blob, [{ offsetBytes: 100 * UNIT, lengthBytes: UNIT }], 'prefetch', signal);
    const reader = demand(blob, 200);
    const joined = demand(blob, 100);
    const drain = watch(Promise.all([first, queued, reader, joined]));
    while (!drain.isDone) {
      await settle(1);
      release.shift()?.();
    }
    expect(units(registry.requests).map(([unit]) => unit)).toEqual([0, 200, 100]);
    expect(scheduler.stats().joinedPrefetch).toBe(1);
  });

  test('a registry that is stuck leaves slots to the others, a stuck blob leaves slots to its neighbours', async () => {
    const { blobOf, demand, registry } = await setUp({ limits: { inFlight: 16, inFlightPerHosts: 8, inFlightPerBlob: 4 } });
    const { blob: stuck } = await blobOf(11, 100 * UNIT, 'stuck.example');
    const { blob: neighbour } = await blobOf(12, 100 * UNIT, 'stuck.example');
    const { blob: other } = await blobOf(13, 100 * UNIT, 'other.example');
    registry.answer = (request, bytes) => (request.digest === stuck.source.digest ? undefined : bytes);
    const hanging = Array.from({ length: 50 }, (_, i) => watch(demand(stuck, i * 2)));
    await settle();
    await Promise.all([demand(neighbour, 3), demand(neighbour, 9), demand(other, 1), demand(other, 5)]);
    expect(hanging.some((outcome) => outcome.isDone)).toBe(false);
    expect(registry.mostRunning).toBeLessThanOrEqual(8);
  });

  test('too many waiting reads are refused, not collected', async () => {
    const { blobOf, demand, registry } = await setUp({ limits: { inFlight: 1, queuedDemand: 2 } });
    const { blob } = await blobOf(14, 100 * UNIT);
    registry.answer = () => undefined;
    const waiting = [0, 2, 4].map((unit) => watch(demand(blob, unit)));
    await expect(demand(blob, 6)).rejects.toMatchObject({ code: 'ResourceExhausted' });
    expect(waiting.some((outcome) => outcome.isDone)).toBe(false);
  });
});

describe('a registry in trouble', () => {
  test.each(['Unavailable', 'DeadlineExceeded', 'Unauthenticated', 'ResourceExhausted'] as const)(
    '%s: the read waits, and succeeds within 2 s of the return; events tell of both',
    async (code) => {
      const { blobOf, demand, registry, clock, events } = await setUp();
      const { blob, bytes } = await blobOf(20, 30 * UNIT);
      registry.answer = () => Promise.reject(failure(code));
      const reads = [1, 5, 9, 13, 17].map((unit) => watch(demand(blob, unit)));
      await runUntil(clock, () => clock.monotonicMs() > 1_000_000 + 300_000, 400_000, 500);
      expect(reads.some((outcome) => outcome.isDone)).toBe(false);
      // Five minutes of a probe or two a second, not five readers hammering.
      expect(registry.requests.length).toBeLessThan(1500);
      registry.answer = (_, found) => found;
      expect(await runUntil(clock, () => reads.every((outcome) => outcome.isDone), 2_000)).toBeLessThanOrEqual(2_000);
      expect(reads.every((outcome) => outcome.error === undefined)).toBe(true);
      expect(read(blob, 17 * UNIT, UNIT)).toEqual(bytes.slice(17 * UNIT, 18 * UNIT));
      expect(events.map((event) => event.kind)).toEqual(['fetch-waiting', 'fetch-resumed']);
    },
  );

  test('connections that hang without a word: a side request notices the return within 2 s', async () => {
    const { blobOf, demand, registry, clock } = await setUp();
    const { blob } = await blobOf(21, 30 * UNIT);
    let isAway = true;
    // A request made while the registry is away never gets an answer, not even after its return.
    registry.answer = (_, bytes) => (isAway ? undefined : bytes);
    const reads = [1, 5, 9].map((unit) => watch(demand(blob, unit)));
    await runUntil(clock, () => clock.monotonicMs() > 1_007_000, 60_000);
    isAway = false;
    expect(await runUntil(clock, () => reads.every((outcome) => outcome.isDone), 2_000)).toBeLessThanOrEqual(2_000);
    expect(reads.every((outcome) => outcome.error === undefined)).toBe(true);
  });

  test('patience ends: the read fails with the last error, and an event says so', async () => {
    const { blobOf, demand, registry, clock, events } = await setUp({ patienceMs: 20_000 });
    const { blob } = await blobOf(22, 30 * UNIT);
    registry.answer = () => Promise.reject(failure('Unavailable'));
    const outcomes = [1, 3, 5, 7, 9].map((unit) => watch(demand(blob, unit)));
    const passedMs = await runUntil(clock, () => outcomes.every((outcome) => outcome.isDone), 25_000);
    expect(passedMs).toBeGreaterThan(19_000);
    for (const outcome of outcomes) expect(outcome.error).toMatchObject({ code: 'Unavailable' });
    expect(events.map((event) => event.kind)).toEqual(['fetch-waiting', 'fetch-failed']);
    registry.answer = (_, bytes) => bytes;
    const again = watch(demand(blob, 1));
    await runUntil(clock, () => again.isDone, 2_000);
    expect(again.error).toBeUndefined();
  });

  test.each(['NotFound', 'PermissionDenied'] as const)('%s is given 30 s', async (code) => {
    const { blobOf, demand, registry, clock } = await setUp();
    const { blob } = await blobOf(23, UNIT);
    registry.answer = () => Promise.reject(failure(code));
    const outcome = watch(demand(blob, 0));
    expect(await runUntil(clock, () => outcome.isDone, 40_000)).toBeGreaterThan(29_000);
    expect(outcome.error).toMatchObject({ code });
  });

  test('wrong bytes: asked once of another mirror, then an error; an answer of another length is wrong bytes too', async () => {
    const { registry, store, demand, scheduler } = await setUp();
    const bytes = bytesOf(24, 4 * UNIT);
    const source = {
      ...sourceOf(bytes, 'a.example'),
      repositories: ['a', 'b'].map((host) => ({ host: `${host}.example`, repository: 'r' })),
    };
    registry.add(source, bytes);
    const blob = await store.acquire(source);
    registry.answer = (request, found) => (request.avoidMirrors.length === 0 ? found.subarray(1) : found);
    await demand(blob, 1);
    expect(registry.requests.map((request) => request.avoidMirrors)).toEqual([[], ['a.example']]);
    expect(read(blob, UNIT, UNIT)).toEqual(bytes.slice(UNIT, 2 * UNIT));
    registry.answer = () => Promise.reject(failure('DataLoss'));
    await expect(demand(blob, 3)).rejects.toMatchObject({ code: 'DataLoss' });
    expect(scheduler.stats()).toMatchObject({ failures: 1, retries: 2 });
  });

  test('a failed read-ahead is forgotten: nobody waited for it', async () => {
    const { blobOf, demand, registry, scheduler, clock } = await setUp();
    const { blob } = await blobOf(25, 100 * UNIT);
    registry.answer = (request, bytes) => (request.offsetBytes >= 4 * UNIT ? Promise.reject(failure('Unavailable')) : bytes);
    await demand(blob, 0, 2);
    await demand(blob, 2, 2);
    await runUntil(clock, () => scheduler.stats().inFlight === 0, 1_000);
    const { length } = registry.requests;
    clock.advance(5_000);
    await settle();
    expect(registry.requests.length).toBe(length);
    registry.answer = (_, bytes) => bytes;
    await demand(blob, 4);
  });

  test('an error that is no AppError is given up at once', async () => {
    const { blobOf, demand, registry } = await setUp();
    const { blob } = await blobOf(26, UNIT);
    registry.answer = () => Promise.reject(new TypeError('bug'));
    await expect(demand(blob, 0)).rejects.toMatchObject({ code: 'Internal' });
  });
});

/** A blob that mirror a, asked first, sends wrong, and mirror b right. */
async function setUpTwoMirrors(seed: number, units: number, opened?: TestStore) {
  const parts = await setUp(opened === undefined ? {} : { opened });
  const bytes = bytesOf(seed, units * UNIT);
  const source = { ...sourceOf(bytes), repositories: ['a', 'b'].map((host) => ({ host: `${host}.example`, repository: 'r' })) };
  parts.registry.add(source, bytes);
  parts.registry.answer = ({ avoidMirrors: avoid }, found) => {
    const isRight = avoid.includes('a.example') && !avoid.includes('b.example');
    return isRight ? found : found.map((byte) => byte ^ 1);
  };
  return { ...parts, bytes, blob: await parts.store.acquire(source) };
}

describe('corrupt bytes in the store', () => {
  test('are fetched again from another mirror once; the same unit wrong again soon is an error', async () => {
    const { registry, demand, scheduler, clock, blob, bytes } = await setUpTwoMirrors(30, 4);
    await demand(blob, 2);
    expect(read(blob, 2 * UNIT, 16)).not.toEqual(bytes.slice(2 * UNIT, 2 * UNIT + 16));
    const { signal } = new AbortController();
    // Two readers find it at the same time: one repair.
    await Promise.all([scheduler.repair(blob, 2 * UNIT + 5, 100, signal), scheduler.repair(blob, 2 * UNIT + 9, 1, signal)]);
    expect(read(blob, 2 * UNIT, 16)).toEqual(bytes.slice(2 * UNIT, 2 * UNIT + 16));
    expect(registry.requests.length).toBe(2);
    await expect(scheduler.repair(blob, 2 * UNIT, 100, signal)).rejects.toMatchObject({ code: 'DataLoss' });
    clock.advance(60_000);
    await scheduler.repair(blob, 2 * UNIT, 100, signal);
  });
});

describe('corrupt bytes from one of several mirrors', () => {
  test('are fetched again from another mirror than the one that sent them, whoever sent something since', async () => {
    const { registry, demand, scheduler, blob, bytes } = await setUpTwoMirrors(31, 6);
    await demand(blob, 0, 4);
    const { signal } = new AbortController();
    // The first repair makes b the last mirror that sent something; the others still came from a.
    for (const unit of [0, 1, 3]) {
      await scheduler.repair(blob, unit * UNIT, 10, signal);
      expect(read(blob, unit * UNIT, 16)).toEqual(bytes.slice(unit * UNIT, unit * UNIT + 16));
    }
    // A block that lies in units 1 and 2: 1 was repaired, so 2 is to blame.
    await scheduler.repair(blob, 2 * UNIT - 5, 10, signal);
    expect(read(blob, 2 * UNIT, 16)).toEqual(bytes.slice(2 * UNIT, 2 * UNIT + 16));
    expect(registry.requests.slice(1).map((request) => [request.offsetBytes / UNIT, request.avoidMirrors])).toEqual(
      [0, 1, 3, 2].map((unit) => [unit, ['a.example']]),
    );
    await expect(scheduler.repair(blob, 2 * UNIT - 5, 10, signal)).rejects.toMatchObject({ code: 'DataLoss' });
  });
});

describe('bytes that the store refuses', () => {
  test('are fetched again from another mirror than the one that sent them, whoever answered another request meanwhile', async () => {
    const bytes = bytesOf(34, 8 * UNIT);
    const opened = await openStore({
      rootDir: scratchDir(),
      clock: new FakeClock(),
      verifyUnit: (_, unit, found) => Buffer.compare(found, bytes.subarray(unit * UNIT, (unit + 1) * UNIT)) === 0,
    });
    const { registry, blob, demand } = await setUpTwoMirrors(34, 8, opened);
    let release = (): void => {};
    const { answer } = registry;
    registry.answer = async (request, found) => {
      // The second of two requests for the bad mirror's bytes is answered when the first was asked again, of the good one.
      const isHeld = request.offsetBytes === 4 * UNIT && request.avoidMirrors.length === 0;
      if (isHeld) await new Promise<void>((resolve) => (release = resolve));
      return (await answer(request, found))!;
    };
    const held = demand(blob, 4);
    await demand(blob, 0);
    release();
    await held;
    for (const unit of [0, 4]) expect(read(blob, unit * UNIT, 16)).toEqual(bytes.slice(unit * UNIT, unit * UNIT + 16));
  });
});

describe('a unit that is being repaired', () => {
  test('is repaired once for all readers who find it, and its neighbour that was repaired before stays', async () => {
    const { registry, demand, scheduler, blob, bytes } = await setUpTwoMirrors(33, 6);
    await demand(blob, 0, 4);
    const { signal } = new AbortController();
    await scheduler.repair(blob, UNIT, 10, signal);
    // Blocks that lie in units 1 and 2, read at the same time; then one over 0 to 3, of which 0 and 3 are wrong.
    await Promise.all([0, 1, 2].map((at) => scheduler.repair(blob, 2 * UNIT - 5 + at, 10, signal)));
    await scheduler.repair(blob, 0, 4 * UNIT, signal);
    expect(registry.requests.slice(1).map((request) => request.offsetBytes / UNIT)).toEqual([1, 2, 0, 3]);
    for (let unit = 0; unit < 4; unit += 1) expect(read(blob, unit * UNIT, 16)).toEqual(bytes.slice(unit * UNIT, unit * UNIT + 16));
  });

  test('is not fetched from the bad mirror by another reader who comes in between', async () => {
    const { demand, scheduler, blob, bytes } = await setUpTwoMirrors(32, 4);
    await demand(blob, 0, 2);
    const repaired = scheduler.repair(blob, 0, 10, new AbortController().signal);
    // Its bytes are gone already, and its own fetch is not under way yet.
    await Promise.all([repaired, demand(blob, 0, 4)]);
    expect(read(blob, 0, 16)).toEqual(bytes.slice(0, 16));
  });
});

describe('complete blobs that are not what their digest names', () => {
  const corruptCount = (events: { kind: string }[]): number => events.filter((event) => event.kind === 'blob-corrupt').length;

  test('are fetched again from another mirror', async () => {
    const { storeEvents, demand, blob, bytes } = await setUpTwoMirrors(60, 3);
    await demand(blob, 0, 3);
    await vi.waitFor(() => expect(corruptCount(storeEvents)).toBe(1), 20_000);
    await vi.waitFor(() => expect(blob.isReadable(0)).toBe(false), 20_000);
    await demand(blob, 0, 3);
    await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
    expect(read(blob, 0, 16)).toEqual(bytes.slice(0, 16));
  });

  test('are fetched again from another mirror than the one that was found out, though another one sent something last', async () => {
    const { storeEvents, demand, scheduler, blob, bytes } = await setUpTwoMirrors(62, 4);
    await demand(blob, 0, 4);
    // A reader finds one unit wrong before the whole is verified; the others, still wrong, were not read.
    const { signal } = new AbortController();
    await scheduler.repair(blob, 0, 10, signal);
    await vi.waitFor(() => expect(corruptCount(storeEvents)).toBe(1), 20_000);
    await vi.waitFor(() => expect(blob.isReadable(0)).toBe(false), 20_000);
    await settle();
    await demand(blob, 0, 4);
    for (let unit = 0; unit < 4; unit += 1) expect(read(blob, unit * UNIT, 16)).toEqual(bytes.slice(unit * UNIT, unit * UNIT + 16));
    await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
  });

  test('are not served any more when they are wrong again', async () => {
    const { blobOf, registry, storeEvents, demand } = await setUp();
    const { blob } = await blobOf(61, 3 * UNIT);
    registry.answer = (_, found) => found.map((byte) => byte ^ 1);
    for (const times of [1, 2]) {
      await demand(blob, 0, 3);
      await vi.waitFor(() => expect(corruptCount(storeEvents)).toBe(times), 20_000);
      await vi.waitFor(() => expect(blob.isReadable(0)).toBe(false), 20_000);
      await settle();
    }
    await expect(demand(blob, 0, 3)).rejects.toMatchObject({ code: 'DataLoss' });
    expect(registry.requests.length).toBe(2);
  });
});

describe('background fill', () => {
  test('waits its delay, keeps its rate, completes and verifies the blob', async () => {
    const { blobOf, clock, scheduler, registry } = await setUp({ fill: { delayMs: 10_000, rateBytesPerS: 16 * UNIT } });
    const { blob } = await blobOf(40, 64 * UNIT + 3);
    scheduler.attach(blob);
    scheduler.attach(blob);
    await runUntil(clock, () => clock.monotonicMs() >= 1_009_900, 20_000);
    expect(registry.requests).toEqual([]);
    const passedMs = await runUntil(clock, () => blob.isComplete, 20_000);
    expect(passedMs).toBeGreaterThan(3_500);
    expect(passedMs).toBeLessThan(6_500);
    await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
    expect(scheduler.stats()).toMatchObject({ bytesFetchedFill: 64 * UNIT + 3, bytesFetchedDemand: 0 });
  });

  test('without configuration nothing is filled, but a blob that readers complete is verified', async () => {
    const { blobOf, clock, scheduler, demand, registry } = await setUp();
    const { blob } = await blobOf(41, 3 * UNIT);
    scheduler.attach(blob);
    clock.advance(1_000_000);
    await settle();
    expect(registry.requests).toEqual([]);
    await demand(blob, 0, 3);
    await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
  });

  test('a blob that is not what its digest names is forgotten and not filled again', async () => {
    const { blobOf, clock, scheduler, registry, storeEvents } = await setUp({ fill: { delayMs: 0, rateBytesPerS: 0 } });
    const { blob } = await blobOf(42, 3 * UNIT);
    registry.answer = (_, bytes) => bytes.map((byte) => byte ^ 1);
    scheduler.attach(blob);
    await vi.waitFor(() => expect(storeEvents.map((event) => event.kind)).toContain('blob-corrupt'), 20_000);
    const { length } = registry.requests;
    clock.advance(600_000);
    await settle();
    expect(registry.requests.length).toBe(length);
  });

  test('gives up for a while when the registry fails or the store has no room, and spends no memory', async () => {
    const { blobOf, clock, scheduler, registry, store } = await setUp({ fill: { delayMs: 0, rateBytesPerS: 0 }, budgetBytes: 10 * UNIT });
    const { blob } = await blobOf(43, 100 * UNIT);
    scheduler.attach(blob);
    await runUntil(clock, () => clock.monotonicMs() > 1_030_000, 60_000, 500);
    expect(registry.requests.length).toBeLessThan(10);
    expect(store.usage()).toMatchObject({ memoryBytes: 0, reservedBytes: 0 });
  });
});

describe('ends', () => {
  test('an aborted read is Canceled and is not fetched if it had not begun', async () => {
    const { blobOf, demand, registry } = await setUp({ limits: { inFlight: 1 } });
    const { blob } = await blobOf(50, 10 * UNIT);
    const release: (() => void)[] = [];
    registry.answer = (_, bytes) => new Promise((resolve) => release.push(() => resolve(bytes)));
    const first = demand(blob, 0);
    const abort = new AbortController();
    const second = demand(blob, 5, 1, abort.signal);
    abort.abort();
    await expect(second).rejects.toMatchObject({ code: 'Canceled' });
    await settle();
    release[0]!();
    await first;
    expect(registry.requests.length).toBe(1);
  });

  test('the last release of a blob ends its fetches; its bytes are not written to a closed blob', async () => {
    const { blobOf, demand, registry, store } = await setUp();
    const { blob } = await blobOf(51, 10 * UNIT);
    registry.answer = () => undefined;
    const outcome = watch(demand(blob, 0));
    await settle();
    blob.release();
    await settle();
    expect(outcome.error).toMatchObject({ code: 'Canceled' });
    await expect(demand(blob, 1)).rejects.toMatchObject({ code: 'Canceled' });
    expect(store.usage().reservedBytes).toBe(0);
  });

  test('close answers every reader and leaves nothing reserved', async () => {
    const { blobOf, demand, registry, scheduler, store } = await setUp();
    const { blob } = await blobOf(52, 300 * UNIT);
    registry.answer = () => undefined;
    const outcomes = Array.from({ length: 150 }, (_, i) => watch(demand(blob, 2 * i)));
    await settle();
    await scheduler.close();
    for (const outcome of outcomes) expect(outcome.error).toMatchObject({ code: 'Canceled' });
    expect(store.usage().reservedBytes).toBe(0);
    expect(scheduler.stats()).toMatchObject({ inFlight: 0, inFlightBytes: 0, queuedDemand: 0 });
  });
});

describe('without room', () => {
  test('reads go on from memory', async () => {
    const { blobOf, demand, store } = await setUp({ budgetBytes: UNIT });
    const { blob, bytes } = await blobOf(60, 20 * UNIT);
    for (let unit = 0; unit < 20; unit += 3) {
      await demand(blob, unit);
      expect(read(blob, unit * UNIT, UNIT)).toEqual(bytes.slice(unit * UNIT, (unit + 1) * UNIT));
    }
    expect(store.usage().degradedBy).toBe('budget');
  });
});
