/** Which mirror is asked when another one is silent: whose fault a caller's end of patience is, and what a mirror on trial costs. */
import { expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { AppError, type ErrorCode } from '../../../../plugin/base/errors.ts';
import { startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, testClient, until } from '../../../support/registry-client.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const SIZE = 100_000;

/** A first mirror that lets `hang` requests hang, and a second that answers; the client's clock is moved by hand. */
async function setUp(hang: number) {
  const [first, second] = [await startFaultRegistry(), await startFaultRegistry()];
  first.inject({ effect: { kind: 'stall' }, times: hang });
  const { certsDir, cleanUp } = makeHostsDir({ 'registry.test': [first.origin, second.origin] });
  let passedMs = 0;
  const clock = { ...systemClock, monotonicMs: () => passedMs };
  const client = testClient({ hostsDirs: [certsDir], clock, headersTimeoutMs: 60_000, bodyIdleTimeoutMs: 60_000 });
  onTestFinished(async () => {
    await client.close();
    cleanUp();
    await first.stop();
    await second.stop();
  });
  /** The origin that sent a blob nobody asked for before: where a known one was found is remembered. */
  const fetch = async (signal?: AbortSignal): Promise<string> => {
    const blob = randomBlob(SIZE);
    const digest = first.addBlob(blob);
    second.addBlob(blob);
    const repository = { host: 'registry.test', repository: 'team/app' };
    const { bytes, mirror } = await client.fetchRange(repository, digest, SIZE, 0, 1000, signal === undefined ? {} : { signal });
    expect(Buffer.from(bytes).equals(blob.subarray(0, 1000))).toBe(true);
    return mirror.replace(/\/v2$/, '');
  };
  /** A request that hangs at the first mirror until the caller ends it after `afterMs`. */
  const giveUp = async (code: ErrorCode, afterMs: number): Promise<void> => {
    const controller = new AbortController();
    const before = first.log.length;
    const failure = failureOf(fetch(controller.signal));
    await until(() => first.log.length > before, 'the request arrives', 20_000);
    passedMs += afterMs;
    controller.abort(new AppError(code, { op: 'fetch', subject: 'blob', what: 'simulated' }));
    expect((await failure).code).toBe(code);
  };
  return { first, second, fetch, giveUp, pass: (ms: number) => void (passedMs += ms) };
}

test('a mirror that was silent until its caller gave up is passed over for about as long as it kept the caller waiting', async () => {
  const { first, second, fetch, giveUp, pass } = await setUp(1);
  await giveUp('DeadlineExceeded', 10_000);
  expect(await fetch()).toBe(second.origin);
  pass(4_000);
  expect(await fetch()).toBe(second.origin);
  pass(26_000);
  expect(await fetch()).toBe(first.origin);
});

test.each([
  ['a caller that has lost interest', 'Canceled', 10_000],
  ['a request that is made again elsewhere', 'Unavailable', 10_000],
  ['a caller in a hurry', 'DeadlineExceeded', 100],
] as const)('%s does not make the mirror guilty', async (_what, code, afterMs) => {
  const { first, fetch, giveUp } = await setUp(1);
  await giveUp(code, afterMs);
  expect(await fetch()).toBe(first.origin);
});

test('a mirror that failed before has a few seconds to prove itself, then the next one is asked in the same request', async () => {
  const { first, second, fetch, giveUp, pass } = await setUp(2);
  await giveUp('DeadlineExceeded', 10_000);
  pass(30_000);
  expect(await fetch()).toBe(second.origin);
  expect(first.log).toHaveLength(2);
});

test.each([
  ['the registry’s own refusal is told beside a mirror that is away', 503, 403, true],
  ['a mirror’s refusal is not taken for that of a registry that is away', 403, 503, undefined],
])('%s', async (_what, mirrorStatus, registryStatus, registryRefused) => {
  const [mirror, registry] = [await startFaultRegistry(), await startFaultRegistry()];
  const { certsDir, cleanUp } = makeHostsDir({ [registry.host]: [mirror.origin, registry.origin] });
  const client = testClient({ hostsDirs: [certsDir] });
  onTestFinished(async () => {
    await client.close();
    cleanUp();
    await mirror.stop();
    await registry.stop();
  });
  const fail = (status: number) => ({ path: /manifests/, effect: { kind: 'status', status }, times: 1000 }) as const;
  mirror.inject(fail(mirrorStatus));
  registry.inject(fail(registryStatus));
  const failure = await failureOf(client.resolve({ host: registry.host, repository: 'team/app' }, 'latest'));
  expect(failure.code).toBe('Unavailable');
  expect(failure.details.registryRefused).toBe(registryRefused);
});
