/** One test per registry fault that the data plane must survive: what a range read does when the registry misbehaves in this way. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { RegistryClient } from '../../../../plugin/registry/client.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import type { FaultEffect } from '../../../support/registry-faults.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const SIZE = 5 * 1024 * 1024;
const OFFSET = 128 * 1024;
const LENGTH = 64 * 1024;

describe('a range read and a registry that misbehaves', () => {
  const blob = randomBlob(SIZE);
  const wanted = blob.subarray(OFFSET, OFFSET + LENGTH);
  let registry: FaultRegistry;
  let client: RegistryClient;

  beforeAll(async () => {
    registry = await startFaultRegistry();
    registry.addBlob(blob);
    client = testClient();
  });
  afterEach(() => {
    registry.faults.clear();
  });
  afterAll(async () => {
    await client.close();
    await registry.stop();
  });

  const read = (timeoutMs?: number) => {
    const digest = registry.addBlob(blob);
    return client.fetchRange(repositoryOf(registry), digest, SIZE, OFFSET, LENGTH, timeoutMs === undefined ? {} : { timeoutMs });
  };
  const fail = (effect: FaultEffect, times = 1) => registry.inject({ effect, times });
  const expectGoodRead = async () => expect(Buffer.from((await read()).bytes).equals(wanted)).toBe(true);

  test('connection refused is Unavailable with a short wait, and the next read after its return succeeds', async () => {
    await registry.stop();
    const error = await failureOf(read());
    expect(error.code).toBe('Unavailable');
    expect(error.retryAfterMs).toBeLessThanOrEqual(1000);
    expect(error.details.fault).toBe('refused');
    await registry.start();
    await expectGoodRead();
  });

  test('one reset before the head is repeated at once and not seen by the caller', async () => {
    fail({ kind: 'reset' });
    await expectGoodRead();
  });

  test('one reset in the middle of the body is repeated at once and not seen by the caller', async () => {
    fail({ kind: 'reset', afterBytes: 1000 });
    await expectGoodRead();
  });

  test('repeated resets are Unavailable after two attempts', async () => {
    const before = registry.log.length;
    fail({ kind: 'reset', afterBytes: 1000 }, 10);
    const error = await failureOf(read());
    expect([error.code, error.details.fault]).toEqual(['Unavailable', 'reset']);
    expect(registry.log.length - before).toBe(2);
  });

  test.each([
    ['before the head', undefined],
    ['in the body', 1000],
  ])('a stall %s ends after the idle limit as Unavailable', async (_where, afterBytes) => {
    fail(afterBytes === undefined ? { kind: 'stall' } : { kind: 'stall', afterBytes });
    const impatient = testClient({ headersTimeoutMs: 200, bodyIdleTimeoutMs: 200 });
    try {
      const digest = registry.addBlob(blob);
      const error = await failureOf(impatient.fetchRange(repositoryOf(registry), digest, SIZE, OFFSET, LENGTH));
      expect([error.code, error.details.fault]).toEqual(['Unavailable', 'timeout']);
    } finally {
      await impatient.close();
    }
    // On a busy machine the limit may be over before the registry has seen the request that the fault was for.
    registry.faults.clear();
    await expectGoodRead();
  });

  test('a stall longer than the caller’s own limit is DeadlineExceeded', async () => {
    fail({ kind: 'stall', afterBytes: 10 });
    const error = await failureOf(read(100));
    expect(error.code).toBe('DeadlineExceeded');
  });

  test('truncated bodies are Unavailable and never returned as data', async () => {
    fail({ kind: 'truncate', afterBytes: LENGTH - 1 }, 10);
    const error = await failureOf(read());
    expect([error.code, error.details.fault]).toEqual(['Unavailable', 'reset']);
  });

  test.each([
    ['another start', `bytes ${OFFSET + 1}-${OFFSET + LENGTH}/${SIZE}`],
    ['another end', `bytes ${OFFSET}-${OFFSET + LENGTH}/${SIZE}`],
    ['another total', `bytes ${OFFSET}-${OFFSET + LENGTH - 1}/${SIZE + 1}`],
    ['an unknown total', `bytes ${OFFSET}-${OFFSET + LENGTH - 1}/*`],
    ['nonsense', 'kittens'],
  ])('a Content-Range with %s is DataLoss and names both ranges', async (_what, value) => {
    fail({ kind: 'contentRange', value });
    const error = await failureOf(read());
    expect(error.code).toBe('DataLoss');
    expect(error.message).toContain(`bytes ${OFFSET}-${OFFSET + LENGTH - 1}/${SIZE}`);
    expect(error.message).toContain(value);
    await expectGoodRead();
  });

  test('200 for a range near the front is streamed up to the range', async () => {
    fail({ kind: 'ignoreRange' });
    await expectGoodRead();
  });

  test('200 for a range beyond 4 MiB is refused by name', async () => {
    fail({ kind: 'ignoreRange' });
    const digest = registry.addBlob(blob);
    const error = await failureOf(client.fetchRange(repositoryOf(registry), digest, SIZE, SIZE - LENGTH, LENGTH));
    expect(error.code).toBe('Unimplemented');
    expect(error.message).toContain('ignores Range');
  });

  test('200 is taken when the whole blob was asked for, and refused when it has another size', async () => {
    const digest = registry.addBlob(blob);
    fail({ kind: 'ignoreRange' });
    const { bytes } = await client.fetchRange(repositoryOf(registry), digest, SIZE, 0, SIZE);
    expect(Buffer.from(bytes).equals(blob)).toBe(true);
    fail({ kind: 'ignoreRange' });
    const error = await failureOf(client.fetchRange(repositoryOf(registry), digest, SIZE + 1, 0, 10));
    expect(error.code).toBe('DataLoss');
  });

  test('403 is PermissionDenied', async () => {
    fail({ kind: 'status', status: 403 });
    expect((await failureOf(read())).code).toBe('PermissionDenied');
  });

  test('404 is NotFound', async () => {
    fail({ kind: 'status', status: 404, body: '{"errors":[{"code":"BLOB_UNKNOWN"}]}' });
    expect((await failureOf(read())).code).toBe('NotFound');
  });

  test('416 is DataLoss: the registry contradicts the descriptor', async () => {
    fail({ kind: 'status', status: 416 });
    expect((await failureOf(read())).code).toBe('DataLoss');
  });

  test.each([
    ['seconds', '7', 7000],
    ['an hour, cut to five minutes', '3600', 300_000],
    ['nonsense, replaced by the usual wait', 'soon', 200],
  ])('429 is Unavailable with Retry-After in %s', async (_what, value, expectedMs) => {
    fail({ kind: 'status', status: 429, headers: { 'retry-after': value } });
    const error = await failureOf(read());
    expect([error.code, error.retryAfterMs, error.details.status]).toEqual(['Unavailable', expectedMs, 429]);
    expect(error.details.isRetryAfterAsked === true).toBe(value !== 'soon');
  });

  test.each([500, 502, 503])('%i is Unavailable', async (status) => {
    fail({ kind: 'status', status });
    const error = await failureOf(read());
    expect([error.code, error.details.status]).toEqual(['Unavailable', status]);
    await expectGoodRead();
  });

  test('a redirect to an expired URL is Unavailable, and the next read asks the registry anew', async () => {
    const digest = registry.addBlob(blob);
    fail({ kind: 'redirect', location: registry.expiredStorageUrl(digest) });
    const error = await failureOf(read());
    expect(error.code).toBe('Unavailable');
    expect(error.message).toContain('403');
    expect(error.message).not.toContain('signature');
    await expectGoodRead();
  });

  test('a redirect loop ends', async () => {
    const digest = registry.addBlob(blob);
    fail({ kind: 'redirect', location: `/v2/team/app/blobs/${digest}` }, 20);
    const before = registry.log.length;
    const error = await failureOf(read());
    expect([error.code, registry.log.length - before]).toEqual(['Unavailable', 6]);
  });

  test('of several endpoints that fail, the one that asks for the shortest wait is told', async () => {
    await using first = await startFaultRegistry();
    const digest = registry.addBlob(blob);
    const { certsDir, cleanUp } = makeHostsDir({ 'registry.test': [first.origin, registry.origin] });
    const mirrored = testClient({ hostsDirs: [certsDir] });
    const status = (seconds?: string): FaultEffect => ({
      kind: 'status',
      status: 503,
      ...(seconds === undefined ? {} : { headers: { 'retry-after': seconds } }),
    });
    const ask = () => failureOf(mirrored.fetchRange({ host: 'registry.test', repository: 'team/app' }, digest, SIZE, OFFSET, LENGTH));
    try {
      for (const [ofFirst, ofRegistry, expected] of [
        ['20', '10', [10_000, true]],
        ['10', '20', [10_000, true]],
        ['20', undefined, [200, undefined]],
      ] as const) {
        first.inject({ effect: status(ofFirst) });
        registry.inject({ effect: status(ofRegistry) });
        const error = await ask();
        expect([error.retryAfterMs, error.details.isRetryAfterAsked]).toEqual(expected);
      }
    } finally {
      await mirrored.close();
      cleanUp();
    }
  });

  test('corrupted bytes are fetched from another mirror when the reader names the one that sent them', async () => {
    const first = await startFaultRegistry();
    try {
      const digest = registry.addBlob(blob);
      first.addBlob(blob);
      first.inject({ effect: { kind: 'corrupt' }, times: 10 });
      const { certsDir, cleanUp } = makeHostsDir({ 'registry.test': [first.origin, registry.origin] });
      const mirrored = testClient({ hostsDirs: [certsDir] });
      try {
        const repository = { host: 'registry.test', repository: 'team/app' };
        const bad = await mirrored.fetchRange(repository, digest, SIZE, OFFSET, LENGTH);
        expect(Buffer.from(bad.bytes).equals(wanted)).toBe(false);
        expect(bad.mirror).toBe(`${first.origin}/v2`);
        const good = await mirrored.fetchRange(repository, digest, SIZE, OFFSET, LENGTH, { avoidMirrors: [bad.mirror] });
        expect(good.mirror).toBe(`${registry.origin}/v2`);
        expect(Buffer.from(good.bytes).equals(wanted)).toBe(true);
      } finally {
        await mirrored.close();
        cleanUp();
      }
    } finally {
      await first.stop();
    }
  });

  test('with one mirror alone, corrupted bytes are fetched from it once more', async () => {
    fail({ kind: 'corrupt' });
    const bad = await read();
    const digest = registry.addBlob(blob);
    const good = await client.fetchRange(repositoryOf(registry), digest, SIZE, OFFSET, LENGTH, { avoidMirrors: [bad.mirror] });
    expect(Buffer.from(good.bytes).equals(wanted)).toBe(true);
  });

  test('an abort ends a stalled read at once with Canceled', async () => {
    fail({ kind: 'stall', afterBytes: 10 });
    const controller = new AbortController();
    const digest = registry.addBlob(blob);
    const reading = failureOf(client.fetchRange(repositoryOf(registry), digest, SIZE, OFFSET, LENGTH, { signal: controller.signal }));
    controller.abort();
    expect((await reading).code).toBe('Canceled');
  });

  test('a range outside the blob is InvalidArgument and asks nobody', async () => {
    const digest = registry.addBlob(blob);
    const before = registry.log.length;
    for (const [offset, length] of [
      [SIZE, 1],
      [-1, 1],
      [0, SIZE + 1],
      [0.5, 1],
      [0, -1],
    ] as const) {
      expect((await failureOf(client.fetchRange(repositoryOf(registry), digest, SIZE, offset, length))).code).toBe('InvalidArgument');
    }
    expect(registry.log.length).toBe(before);
  });
});
