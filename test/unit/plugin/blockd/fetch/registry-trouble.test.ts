/**
 * The fetch scheduler and the registry client together, over real connections: trouble that arises in the one and is waited out in the
 * other. Readers of a running container see none of it.
 */
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { type Clock, systemClock } from '../../../../../plugin/base/clock.ts';
import { FetchScheduler } from '../../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import type { FetchEvent } from '../../../../../plugin/blockd/fetch/fetch-types.ts';
import { registryRanges } from '../../../../../plugin/blockd/range-source.ts';
import type { RegistryClientOptions } from '../../../../../plugin/registry/client.ts';
import { dockerConfigSource } from '../../../../../plugin/registry/docker-config.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../../support/fault-registry.ts';
import { testClient } from '../../../../support/registry-client.ts';
import { makeHostsDir } from '../../../../support/registry-hosts.ts';
import { bytesOf, openStore, read, scratchDir, UNIT } from '../../file/store/store-support.ts';
import { FakeClock, settleAll, watch } from './fetch-support.ts';

const WAIT = { timeout: 20_000 };
const UNITS = 60;

/** A blob of `registry`, read through a scheduler and a client of their own. */
async function reader(
  registry: FaultRegistry,
  seed: number,
  options: RegistryClientOptions = {},
  { host = registry.host, clock = systemClock }: { host?: string; clock?: Clock } = {},
) {
  const client = testClient(options);
  const { store } = await openStore({ rootDir: scratchDir() });
  const events: FetchEvent[] = [];
  const onEvent = (event: FetchEvent): void => void events.push(event);
  const scheduler = new FetchScheduler({ store, fetchRange: registryRanges(client), clock, onEvent, random: () => 1 });
  onTestFinished(async () => {
    await scheduler.close();
    await store.close();
    await client.close();
  });
  const bytes = bytesOf(seed, UNITS * UNIT);
  const repositories = [{ host, repository: 'team/app' }];
  const blob = await store.acquire({ digest: registry.addBlob(bytes), sizeBytes: bytes.length, repositories });
  return {
    client,
    events,
    kinds: () => events.map((event) => event.kind),
    /** Reads a unit as a container does: waits until it is there, then compares. */
    async demand(unit: number): Promise<void> {
      await scheduler.ensure(blob, [{ offsetBytes: unit * UNIT, lengthBytes: UNIT }], 'demand', new AbortController().signal);
      expect(Buffer.from(read(blob, unit * UNIT, UNIT) as Uint8Array).equals(bytes.subarray(unit * UNIT, (unit + 1) * UNIT))).toBe(true);
    },
  };
}

describe('credentials that cannot be had for a while', () => {
  let registry: FaultRegistry;
  beforeAll(async () => {
    registry = await startFaultRegistry({ auth: { kind: 'basic', username: 'u', password: 'p' } });
  });
  afterAll(() => registry.stop());

  function setUp() {
    const dir = scratchDir();
    const file = path.join(dir, 'config.json');
    const program = path.join(dir, 'docker-credential-cloud');
    let passedMs = 0;
    const clock = { ...systemClock, monotonicMs: () => systemClock.monotonicMs() + passedMs };
    return {
      credentials: dockerConfigSource(file, { clock, env: { PATH: `${dir}:${process.env.PATH}` } }),
      /** So that helpers are asked again. */
      aMinutePasses: () => void (passedMs += 60_000),
      config: (text: string) => fs.writeFileSync(file, text),
      helper: (script: string) => fs.writeFileSync(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 }),
    };
  }
  const withHelper = '{"credsStore":"cloud"}';
  const goodConfig = () => JSON.stringify({ auths: { [registry.host]: { username: 'u', password: 'p' } } });
  const goodHelper = 'echo \'{"Username":"u","Secret":"p"}\'';

  test('a helper that fails from the start: the read waits for it', async () => {
    const { credentials, config, helper } = setUp();
    config(withHelper);
    helper('exit 1');
    const { demand, kinds, events } = await reader(registry, 1, { credentials });
    const waiting = demand(3);
    await vi.waitFor(() => expect(kinds()).toEqual(['fetch-waiting']), WAIT);
    expect(events[0]).toMatchObject({ code: 'Unavailable' });
    helper(goodHelper);
    await waiting;
    expect(kinds()).toEqual(['fetch-waiting', 'fetch-resumed']);
  });

  test('a helper that fails later, and a configuration that is half written later: reads go on as if nothing had happened', async () => {
    const { credentials, config, helper, aMinutePasses } = setUp();
    config(withHelper);
    helper(goodHelper);
    const { demand, kinds, client } = await reader(registry, 2, { credentials });
    await demand(3);
    helper('exit 1');
    aMinutePasses();
    client.forgetLogins();
    await demand(10);
    config('{"credsSt');
    client.forgetLogins();
    await demand(20);
    expect(kinds()).toEqual([]);
  });

  test('a configuration that is no JSON from the start: the read waits until it is', async () => {
    const { credentials, config } = setUp();
    config('{"auths":');
    const { demand, kinds, events } = await reader(registry, 3, { credentials });
    const waiting = demand(3);
    await vi.waitFor(() => expect(kinds()).toEqual(['fetch-waiting']), WAIT);
    expect(events[0]).toMatchObject({ code: 'FailedPrecondition' });
    config(goodConfig());
    await waiting;
    expect(kinds()).toEqual(['fetch-waiting', 'fetch-resumed']);
  });
});

describe('a registry that says when to come back', () => {
  let registry: FaultRegistry;
  beforeAll(async () => {
    registry = await startFaultRegistry();
  });
  afterAll(() => registry.stop());

  /** One read that is refused once with these headers; the clock of its retry stands still. */
  async function refusedOnce(seed: number, status: number, headers: Record<string, string>) {
    const clock = new FakeClock();
    const { demand, kinds } = await reader(registry, seed, {}, { clock });
    registry.log.length = 0;
    registry.inject({ effect: { kind: 'status', status, headers } });
    const reading = demand(3);
    await vi.waitFor(() => expect(kinds()).toEqual(['fetch-waiting']), WAIT);
    return { clock, reading };
  }

  test.each([429, 503])('%i with Retry-After is not asked again before', async (status) => {
    const { clock, reading } = await refusedOnce(status, status, { 'retry-after': '20' });
    clock.advance(19_000);
    await settleAll();
    expect(registry.log).toHaveLength(1);
    clock.advance(1_000);
    await reading;
    expect(registry.log).toHaveLength(2);
  });

  test('an hour is cut to half a minute, since a reader waits', async () => {
    const { clock, reading } = await refusedOnce(10, 429, { 'retry-after': '3600' });
    clock.advance(30_000);
    await reading;
  });

  test.each([429, 503])('%i without Retry-After is asked again soon', async (status) => {
    const { clock, reading } = await refusedOnce(status + 1_000, status, {});
    clock.advance(1_000);
    await reading;
  });
});

describe('a first mirror that takes requests and never answers', () => {
  async function setUp(seed: number, requests: { hang: number }) {
    const [silent, good] = [await startFaultRegistry(), await startFaultRegistry()];
    const { certsDir, cleanUp } = makeHostsDir({ 'registry.test': [silent.origin, good.origin] });
    onTestFinished(async () => {
      cleanUp();
      await silent.stop();
      await good.stop();
    });
    silent.inject({ effect: { kind: 'stall' }, times: requests.hang });
    const clock = new FakeClock();
    const options = { hostsDirs: [certsDir], clock, headersTimeoutMs: 120_000, bodyIdleTimeoutMs: 120_000 };
    const parts = await reader(good, seed, options, { host: 'registry.test', clock });
    return { ...parts, clock, silent, good };
  }
  /** Ten times as fast as real time, so that connections keep up. */
  const untilDone = (clock: FakeClock, outcome: { isDone: boolean }) =>
    vi.waitFor(
      () => {
        clock.advance(100);
        expect(outcome.isDone).toBe(true);
      },
      { timeout: 60_000, interval: 10 },
    );

  test('is passed over: by the reads that hang there, and by those that come after', async () => {
    const { demand, clock, silent } = await setUp(40, { hang: 1_000 });
    const hanging = watch(Promise.all([demand(3), demand(20)]));
    await untilDone(clock, hanging);
    expect(hanging.error).toBeUndefined();
    const { length } = silent.log;
    for (const unit of [30, 40, 50]) await demand(unit);
    expect(silent.log).toHaveLength(length);
  });

  test('whose old connections alone hang is not blamed: it is asked again', async () => {
    const { demand, clock, silent, good } = await setUp(41, { hang: 1 });
    good.inject({ effect: { kind: 'stall' }, times: 1_000 });
    const bytes = good.api.blobs.values().next().value!;
    silent.addBlob(bytes);
    const hanging = watch(demand(3));
    await untilDone(clock, hanging);
    expect(hanging.error).toBeUndefined();
    const { length } = good.log;
    await demand(20);
    expect(good.log).toHaveLength(length);
  });
});
