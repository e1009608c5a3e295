/** What comes between two steps of the scheduler: repairs, ends and corruption found while something else waits for the disk. */
import { expect, onTestFinished, test, vi } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { FetchScheduler, type FetchSchedulerOptions } from '../../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { hashFile } from '../../../../../plugin/file/store/hash-file.ts';
import { bytesOf, openStore, read, scratchDir, sourceOf, UNIT } from '../../file/store/store-support.ts';
import { FakeClock, FakeRegistry, runUntil, settle, settleAll, watch } from './fetch-support.ts';

/** The real one, before whose result a test may do something. */
vi.mock(import('../../../../../plugin/file/store/hash-file.ts'), async (importOriginal) => {
  const real = await importOriginal();
  return { hashFile: vi.fn(real.hashFile) };
});

const signal = new AbortController().signal;

/** A blob of `units` that mirror a, asked first, and mirror b have. */
async function setUp(seed: number, units: number, options: Partial<FetchSchedulerOptions> = {}) {
  const clock = new FakeClock();
  const registry = new FakeRegistry();
  const { store } = await openStore({ rootDir: scratchDir(), clock });
  const scheduler = new FetchScheduler({ store, fetchRange: registry.fetchRange, clock, random: () => 1, ...options });
  onTestFinished(async () => {
    await scheduler.close();
    await store.close();
  });
  const bytes = bytesOf(seed, units * UNIT);
  const source = { ...sourceOf(bytes), repositories: ['a', 'b'].map((host) => ({ host: `${host}.example`, repository: 'r' })) };
  registry.add(source, bytes);
  const all = [{ offsetBytes: 0, lengthBytes: bytes.length }];
  return { clock, registry, store, scheduler, bytes, blob: await store.acquire(source), all };
}

/** Does `what` when the next blob has been hashed, before the result is known. */
function afterHashing(what: () => Promise<unknown>): void {
  const real = vi.mocked(hashFile).getMockImplementation()!;
  vi.mocked(hashFile).mockImplementationOnce(async (...args) => {
    const digest = await real(...args);
    await what();
    return digest;
  });
}

test('a blob of which a unit was repaired while it was being verified is verified all the same', async () => {
  const { scheduler, blob, all } = await setUp(1, 3);
  let repaired: Promise<void> | undefined;
  afterHashing(() => (repaired = scheduler.repair(blob, UNIT, 1, signal)));
  await scheduler.ensure(blob, all, 'demand', signal);
  await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
  expect(repaired).toBeDefined();
});

test('whoever misses bytes as they are found corrupt asks another mirror for them', async () => {
  const { registry, scheduler, store, blob, bytes, all } = await setUp(2, 3);
  registry.answer = ({ avoidMirrors }, found) => (avoidMirrors.includes('a.example') ? found : found.map((byte) => byte ^ 1));
  const drop = store.drop.bind(store);
  let again: Promise<void> | undefined;
  store.drop = (...args) => {
    const dropped = drop(...args);
    again = scheduler.ensure(blob, all, 'demand', signal);
    return dropped;
  };
  await scheduler.ensure(blob, all, 'demand', signal);
  await vi.waitFor(() => expect(again).toBeDefined(), 20_000);
  await again;
  expect(Buffer.from(read(blob, 0, bytes.length) as Uint8Array).equals(bytes)).toBe(true);
  await vi.waitFor(() => expect(blob.isVerified).toBe(true), 20_000);
});

test('a reader that goes while wrong bytes are being forgotten is told at once, though the registry is away', async () => {
  const { registry, scheduler, store, blob, all } = await setUp(3, 3);
  await scheduler.ensure(blob, all, 'demand', signal);
  registry.answer = () => undefined;
  const reader = new AbortController();
  const drop = store.drop.bind(store);
  store.drop = async (...args) => {
    await drop(...args);
    reader.abort();
  };
  const outcome = watch(scheduler.repair(blob, UNIT, 1, reader.signal));
  await settleAll();
  expect(outcome.error).toMatchObject({ code: 'Canceled' });
});

test('the end of the scheduler also ends what was waiting for quiet or for the disk', async () => {
  const { clock, registry, scheduler, store, blob } = await setUp(4, 30, { fill: { delayMs: 0, rateBytesPerS: 0 } });
  registry.answer = () => undefined;
  const reading = watch(scheduler.ensure(blob, [{ offsetBytes: 0, lengthBytes: UNIT }], 'demand', signal));
  scheduler.attach(blob);
  // A reader waits, so the fill gives way.
  await settle();
  expect(registry.requests.length).toBe(1);
  const dropping = Promise.withResolvers<void>();
  store.drop = () => dropping.promise;
  vi.spyOn(blob, 'isReadable').mockImplementation((unit) => unit === 9);
  const repairing = watch(scheduler.repair(blob, 9 * UNIT, 1, signal));
  const closing = watch(scheduler.close());
  dropping.resolve();
  await runUntil(clock, () => closing.isDone && repairing.isDone, 5_000);
  for (const { error } of [reading, repairing]) expect(error).toMatchObject({ code: 'Canceled' });
});

test('the background fill also brings what somebody else was bringing when it came by, and did not bring', async () => {
  const { clock, registry, scheduler, blob } = await setUp(5, 30, { fill: { delayMs: 0, rateBytesPerS: 0 } });
  const request = Promise.withResolvers<Uint8Array>();
  registry.answer = () => {
    registry.answer = (_, bytes) => bytes;
    return request.promise;
  };
  const reader = new AbortController();
  const reading = watch(scheduler.ensure(blob, [{ offsetBytes: 5 * UNIT, lengthBytes: UNIT }], 'demand', reader.signal));
  await settle();
  reader.abort();
  scheduler.attach(blob);
  await runUntil(clock, () => blob.counts().presentBytes === 29 * UNIT, 20_000);
  const passedAtMs = clock.monotonicMs() + 3_000;
  await runUntil(clock, () => clock.monotonicMs() > passedAtMs, 5_000);
  request.reject(new AppError('Unavailable', { op: 'fetch', subject: 'blob', what: 'simulated' }));
  await runUntil(clock, () => blob.isComplete, 60_000, 500);
  expect(reading.error).toMatchObject({ code: 'Canceled' });
});
