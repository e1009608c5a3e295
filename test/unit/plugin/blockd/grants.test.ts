/** Registries as one cache reaches them: its credentials count for its repositories, for a while, and never show. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { parseConfig } from '../../../../plugin/base/config/config.ts';
import { AppError, describeError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import type { FetchOptions } from '../../../../plugin/blockd/fetch/fetch-types.ts';
import { type Grant, Grants } from '../../../../plugin/blockd/grants.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob } from '../../../support/registry-client.ts';
import { Scratch } from '../../../support/scratch.ts';

const USER = { username: 'puller', password: 'correct horse' };
const blob = randomBlob(300_000);

let registry: FaultRegistry;
let scratch: Scratch;
let grants: Grants;
let digest: BlobSource['digest'];
beforeEach(async () => {
  scratch = await Scratch.create('grants');
  registry = await startFaultRegistry({ auth: { kind: 'basic', ...USER } });
  digest = registry.addBlob(blob);
  const config = parseConfig(`[paths]\nroot = "${scratch.path}"\n[registry]\nhosts_dir = "${scratch.path}"\n`, 'test');
  const otherwise = async (): Promise<never> => {
    throw new AppError('PermissionDenied', { op: 'fetch', subject: 'blob', what: 'without a grant' });
  };
  grants = new Grants({ config, log: silentLogger, otherwise });
});
afterEach(async () => {
  vi.useRealTimers();
  await registry.stop();
  await scratch[Symbol.asyncDispose]();
});

const source = (repository = 'team/app'): BlobSource => ({
  digest,
  sizeBytes: blob.length,
  repositories: [{ host: registry.host, repository }],
});

function read(of: BlobSource, onAsked = (): void => {}): Promise<Uint8Array> {
  const options: FetchOptions = {
    signal: AbortSignal.timeout(20_000),
    attempt: 1,
    onAsked,
    servedBy: () => {},
    target: new Uint8Array(1000),
    onProgress: () => {},
  };
  return grants.fetchRange(of, 500, 1000, options);
}

const grant = (changes: Partial<Grant> = {}): Grant => ({
  repositories: [{ host: registry.host, repository: 'team/app' }],
  credentials: [{ host: registry.host, ...USER }],
  plainHttp: [],
  insecure: [],
  ...changes,
});

test('the granted repository is read with the granted credentials, others as usual', async () => {
  expect(await failureOf(read(source()))).toMatchObject({ code: 'PermissionDenied' });
  grants.set('access-1', grant());
  expect(Buffer.from(await read(source()))).toEqual(blob.subarray(500, 1500));
  expect((await failureOf(read(source('team/other')))).message).toContain('without a grant');
});

test('a changed grant counts at once, a wrong one is told without its secret', async () => {
  grants.set('access-1', grant({ credentials: [{ host: registry.host, username: 'puller', password: 'battery staple' }] }));
  const failure = await failureOf(read(source()));
  expect(['Unauthenticated', 'PermissionDenied']).toContain(failure.code);
  expect(describeError(failure)).not.toContain('battery staple');
  grants.set('access-1', grant());
  expect(await read(source())).toHaveLength(1000);
});

test('a grant that changes or ends while bytes are fetched by it fails no reader', async () => {
  grants.set('access-1', grant());
  const changes = [() => grants.set('access-1', grant({ plainHttp: ['other.example'] }))];
  expect(await read(source(), () => changes.pop()?.())).toHaveLength(1000);
  expect(changes).toEqual([]);
});

test('a refused grant of another cache stands in the way of none', async () => {
  const wrong = grant({ credentials: [{ host: registry.host, username: 'puller', password: 'battery staple' }] });
  grants.set('access-wrong', wrong);
  grants.set('access-right', grant());
  expect(await read(source())).toHaveLength(1000);
  grants.set('access-wrong', wrong);
  expect(await read(source())).toHaveLength(1000);
});

test('a refused grant is passed by also when a mirror beside the registry is away', async () => {
  const hosts = `server = "${registry.origin}"\n[host."http://127.0.0.1:1"]\n  capabilities = ["pull", "resolve"]\n`;
  await scratch.file(`${registry.host}/hosts.toml`, hosts);
  grants.set('access-wrong', grant({ credentials: [{ host: registry.host, username: 'puller', password: 'battery staple' }] }));
  expect((await failureOf(read(source()))).message).toContain('without a grant');
});

test('a grant ends after a minute unless it is renewed', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  grants.set('access-1', grant());
  vi.advanceTimersByTime(50_000);
  grants.set('access-1', grant());
  vi.advanceTimersByTime(50_000);
  vi.useRealTimers();
  expect(await read(source())).toHaveLength(1000);
});

test('an ended grant is none', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  grants.set('access-1', grant());
  vi.advanceTimersByTime(61_000);
  vi.useRealTimers();
  expect((await failureOf(read(source()))).message).toContain('without a grant');
});

test('malformed grants are refused without a word of what is in them, and there are not endlessly many', () => {
  const secret = { ...grant(), credentials: [{ host: 'x', username: 'u', password: 5, token: 'hidden' }] };
  expect(() => grants.set('access-1', secret)).toThrow(/malformed/);
  try {
    grants.set('access-1', secret);
  } catch (error) {
    expect(describeError(error)).not.toContain('hidden');
  }
  for (let n = 0; n < 64; n += 1) grants.set(`access-${n}`, grant());
  expect(() => grants.set('access-more', grant())).toThrow(/grants/);
});
