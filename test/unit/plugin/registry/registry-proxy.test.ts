/** The proxy that tests and measurements put in front of a registry: bytes pass unchanged, no faster than its link, faults hit when asked. */
import { afterEach, expect, test } from 'vitest';
import { startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import { startRegistryProxy } from '../../../support/registry-proxy.ts';

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: Omit<Parameters<typeof startRegistryProxy>[0], 'upstream'>) {
  const registry = await startFaultRegistry();
  cleanUps.push(() => registry.stop());
  const proxy = await startRegistryProxy({ upstream: registry.host, ...options });
  cleanUps.push(() => proxy.close());
  const client = testClient();
  cleanUps.push(() => client.close());
  const blob = randomBlob(1_000_000);
  const digest = registry.addBlob(blob);
  const read = async (offset: number, length: number) => {
    const { bytes } = await client.fetchRange(repositoryOf(proxy), digest, blob.length, offset, length);
    expect(Buffer.from(bytes).equals(blob.subarray(offset, offset + length))).toBe(true);
  };
  return { proxy, read };
}

test('a round trip is added to every request, and one more to a connection’s first', async () => {
  const { proxy, read } = await start({ roundTripMs: 40 });
  const startMs = performance.now();
  await read(0, 1000);
  const firstMs = performance.now() - startMs;
  await read(1000, 1000);
  // Timers may fire up to a millisecond early on each way.
  expect(firstMs).toBeGreaterThanOrEqual(76);
  expect(performance.now() - startMs - firstMs).toBeGreaterThanOrEqual(37);
  expect(proxy.counters.connectionCount).toBe(1);
});

test('connections share the rate', async () => {
  const { proxy, read } = await start({ rateBytesPerS: 4_000_000 });
  const startMs = performance.now();
  await Promise.all(Array.from({ length: 8 }, (_, i) => read(i * 100_000, 100_000)));
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(195);
  expect(proxy.counters.downBytes).toBeGreaterThan(800_000);
});

test('faults hit the requests they are meant for; without a list there is no way to inject one', async () => {
  const { proxy, read } = await start({ faults: [{ effect: { kind: 'status', status: 503 } }] });
  expect((await failureOf(read(0, 10))).code).toBe('Unavailable');
  proxy.inject({ effect: { kind: 'truncate', afterBytes: 5 }, times: 2 });
  expect((await failureOf(read(0, 10))).code).toBe('Unavailable');
  await read(0, 10);
  const plain = await start({});
  expect(() => plain.proxy.inject({ effect: { kind: 'reset' } })).toThrow('faults: []');
});
