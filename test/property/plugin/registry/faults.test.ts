/**
 * Whatever faults a registry strings together, a range read either gives exactly the bytes of the blob or fails with an AppError whose code
 * belongs to the contract; and once the faults are over, reads succeed. The seed is printed on failure.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isAppError } from '../../../../plugin/base/errors.ts';
import type { RegistryClient } from '../../../../plugin/registry/client.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../support/fault-registry.ts';
import { forTime } from '../../../support/for-time.ts';
import { randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import type { FaultEffect } from '../../../support/registry-faults.ts';

const SIZE = 300_000;
const blob = randomBlob(SIZE);
const USER = { username: 'u', password: 'p' };
let registry: FaultRegistry;
let client: RegistryClient;

beforeAll(async () => {
  registry = await startFaultRegistry({ auth: { kind: 'bearer', ...USER }, redirectBlobs: true });
  client = testClient({ credentials: async () => USER, headersTimeoutMs: 100, bodyIdleTimeoutMs: 100 });
});
afterAll(async () => {
  await client.close();
  await registry.stop();
});

/** Repeats while the answer is Unavailable, for at most 40 s: a busy machine may take longer than the client's short limits for once. */
async function untilRead(read: () => Promise<void>): Promise<void> {
  const endMs = Date.now() + 40_000;
  for (;;) {
    try {
      await read();
      return;
    } catch (error) {
      if (!isAppError(error, 'Unavailable') || Date.now() > endMs) throw error;
    }
  }
}

const bytes = fc.integer({ min: 0, max: 70_000 });
const effect: fc.Arbitrary<FaultEffect> = fc.oneof(
  { weight: 3, arbitrary: bytes.map((afterBytes): FaultEffect => ({ kind: 'reset', afterBytes })) },
  { weight: 3, arbitrary: bytes.map((afterBytes): FaultEffect => ({ kind: 'truncate', afterBytes })) },
  { weight: 1, arbitrary: bytes.map((afterBytes): FaultEffect => ({ kind: 'stall', afterBytes })) },
  { weight: 1, arbitrary: fc.constant<FaultEffect>({ kind: 'reset' }) },
  { weight: 2, arbitrary: fc.constant<FaultEffect>({ kind: 'ignoreRange' }) },
  {
    weight: 2,
    arbitrary: fc.tuple(bytes, bytes, bytes).map(([a, b, c]): FaultEffect => ({ kind: 'contentRange', value: `bytes ${a}-${b}/${c}` })),
  },
  {
    weight: 3,
    arbitrary: fc
      .constantFrom(200, 204, 206, 302, 400, 401, 403, 404, 410, 416, 418, 429, 500, 503)
      .map((status): FaultEffect => ({ kind: 'status', status })),
  },
  {
    weight: 1,
    arbitrary: fc
      .constantFrom('http://127.0.0.1:1/x', '/v2/', 'ftp://x', '::', '//')
      .map((location): FaultEffect => ({ kind: 'redirect', location })),
  },
);
const CODES = [
  'Unavailable',
  'DataLoss',
  'NotFound',
  'PermissionDenied',
  'Unauthenticated',
  'Unimplemented',
  'InvalidArgument',
  'Internal',
] as const;

test('a read gives the right bytes or an error of the contract', async () => {
  const digest = registry.addBlob(blob);
  const read = async (offset: number, length: number) => {
    const result = await client.fetchRange(repositoryOf(registry), digest, SIZE, offset, length);
    expect(Buffer.from(result.bytes).equals(blob.subarray(offset, offset + length))).toBe(true);
  };
  const fault = fc.record({ effect, server: fc.constantFrom('registry' as const, 'storage' as const) });
  await forTime(
    6000,
    fc.asyncProperty(
      fc.array(fault, { maxLength: 4 }),
      fc.boolean(),
      fc.integer({ min: 0, max: SIZE - 1 }),
      fc.integer({ min: 1, max: 70_000 }),
      async (faults, isExpired, offset, wanted) => {
        const length = Math.min(wanted, SIZE - offset);
        if (isExpired) registry.expireStorageUrls();
        for (const entry of faults) registry.inject({ ...entry, path: /./ });
        try {
          await read(offset, length);
        } catch (error) {
          if (!isAppError(error, ...CODES)) throw error;
        }
        registry.faults.clear();
        registry.log.length = 0;
        // A refused login is not repeated for a second; credentials that were set right are used at once.
        client.forgetLogins();
        await untilRead(() => read(offset, length));
      },
    ),
  );
});
