/** Logging in: how often, with which scope, what happens to expired tokens and changed credentials, and that secrets stay home. */
import { afterEach, describe, expect, test } from 'vitest';
import { describeError } from '../../../../plugin/base/errors.ts';
import { type Logger, silentLogger } from '../../../../plugin/base/log.ts';
import { patienceFor } from '../../../../plugin/blockd/fetch/retry-policy.ts';
import type { RegistryClient, RegistryClientOptions } from '../../../../plugin/registry/client.ts';
import type { Credential } from '../../../../plugin/registry/credentials.ts';
import { type FaultRegistry, type FaultRegistryOptions, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, repositoryOf, testClient } from '../../../support/registry-client.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const blob = randomBlob(300_000);
const USER = { username: 'puller', password: 'correct horse' };

async function start(
  options: FaultRegistryOptions,
  clientOptions: RegistryClientOptions = {},
): Promise<{ registry: FaultRegistry; client: RegistryClient; read: (repository?: string) => Promise<unknown> }> {
  const registry = await startFaultRegistry(options);
  cleanUps.push(() => registry.stop());
  const digest = registry.addBlob(blob);
  const client = testClient({ credentials: async () => USER, ...clientOptions });
  cleanUps.push(() => client.close());
  const read = (repository?: string) => client.fetchRange(repositoryOf(registry, repository), digest, blob.length, 1000, 5000);
  return { registry, client, read };
}

describe('Bearer', () => {
  const auth = { kind: 'bearer', ...USER } as const;

  test('a hundred concurrent reads log in once, and later reads not at all', async () => {
    const { registry, read } = await start({ auth });
    await Promise.all(Array.from({ length: 100 }, () => read()));
    expect(registry.requests('token').length).toBe(1);
    const refused = registry.log.filter((entry) => entry.status === 401).length;
    await Promise.all(Array.from({ length: 100 }, () => read()));
    expect(registry.requests('token').length).toBe(1);
    expect(registry.log.filter((entry) => entry.status === 401).length).toBe(refused);
  });

  test('each repository has a token of its own, for pull alone', async () => {
    const { registry, read } = await start({ auth });
    await read('team/one');
    await read('team/two');
    const scopes = registry.requests('token').map((entry) => new URL(entry.url, registry.origin).searchParams.getAll('scope'));
    expect(scopes).toEqual([['repository:team/one:pull'], ['repository:team/two:pull']]);
  });

  test('a registry that asks for push on a read does not get it', async () => {
    const { registry, read } = await start({ auth: { ...auth, challengeActions: 'pull,push,delete' } });
    await read();
    expect(new URL(registry.requests('token')[0]!.url, registry.origin).searchParams.getAll('scope')).toEqual(['repository:team/app:pull']);
  });

  test('a proxying registry’s longer name for the repository is used in the scope', async () => {
    const { registry, read } = await start({ auth: { ...auth, scopePrefix: 'proxy/' } });
    await read();
    expect(registry.requests('token')[0]!.url).toContain(encodeURIComponent('repository:proxy/team/app:pull'));
  });

  test('an expired token is renewed once, and the read succeeds', async () => {
    const { registry, read } = await start({ auth });
    await read();
    registry.tokens?.expireTokens();
    await Promise.all(Array.from({ length: 20 }, () => read()));
    expect(registry.requests('token').length).toBe(2);
  });

  test('a registry that refuses fresh tokens too gets one renewal, then Unauthenticated', async () => {
    const { registry, read } = await start({ auth });
    await read();
    const before = registry.log.length;
    const challenge = `Bearer realm="${registry.origin}/token",service="fault-registry",scope="repository:team/app:pull"`;
    registry.inject({ effect: { kind: 'status', status: 401, headers: { 'www-authenticate': challenge } }, times: 10 });
    expect((await failureOf(read() as Promise<unknown>)).code).toBe('Unauthenticated');
    expect(registry.log.length - before).toBe(3);
  });

  test('wrong credentials are Unauthenticated, not retried for a second, and never quoted', async () => {
    const wrong = { username: 'puller', password: 'hunter2' };
    let nowMs = 0;
    const clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs, sleep: async () => {} };
    const { registry, read } = await start({ auth }, { clock, credentials: async () => wrong });
    const error = await failureOf(read());
    expect(error.code).toBe('Unauthenticated');
    expect(describeError(error) + JSON.stringify(error)).not.toContain('hunter2');
    nowMs += 999;
    await failureOf(read());
    expect(registry.requests('token').length).toBe(1);
    nowMs += 1;
    await failureOf(read());
    expect(registry.requests('token').length).toBe(2);
  });

  test.each([400, 401, 403, 404])(
    'a token service that answers %d has refused the credentials: readers wait for others',
    async (status) => {
      const { registry, read } = await start({ auth });
      registry.inject({ server: 'token', path: /token/, effect: { kind: 'status', status } });
      const error = await failureOf(read());
      expect(error.code).toBe('Unauthenticated');
      expect(patienceFor(error, 600_000)).toBe(600_000);
    },
  );

  test('a token service that is away is Unavailable', async () => {
    const { registry, read } = await start({ auth });
    registry.inject({ server: 'token', path: /token/, effect: { kind: 'status', status: 503 } });
    expect((await failureOf(read())).code).toBe('Unavailable');
  });

  test('a token service that is away in the last quarter of a token’s life costs no read and one line a minute', async () => {
    let nowMs = 0;
    const clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs, sleep: async () => {} };
    const lines: string[] = [];
    const logger = Object.create(silentLogger, { warn: { value: (_facts: object, message: string) => lines.push(message) } }) as Logger;
    const { registry, read } = await start({ auth: { ...auth, lifetimeS: 1000 } }, { clock, logger });
    await read();
    registry.inject({ server: 'token', path: /token/, effect: { kind: 'status', status: 503 }, times: 1000 });
    for (nowMs = 760_000; nowMs < 790_000; nowMs += 1000) await read();
    await expect.poll(() => lines.length, { timeout: 30_000 }).toBeGreaterThan(0);
    expect(lines).toEqual(['renewing a registry token early failed']);
  });

  test.each([
    ['no JSON', 'token token token'],
    ['no token', '{"expires_in":5}'],
    ['a token with a line break', '{"token":"a\\nb"}'],
    ['a token of 100 KB', JSON.stringify({ token: 'x'.repeat(100_000) })],
    ['a megabyte', `{"token":"x","pad":"${'y'.repeat(1_000_000)}"}`],
  ])('a token answer with %s is Unavailable', async (_what, body) => {
    const { registry, read } = await start({ auth });
    registry.inject({ server: 'token', path: /token/, effect: { kind: 'status', status: 200, body }, times: 3 });
    const error = await failureOf(read());
    expect(error.code).toBe('Unavailable');
    expect(error.message.length).toBeLessThan(500);
  });

  test('a refresh token goes to the token service by POST', async () => {
    const { registry, read } = await start(
      { auth: { ...auth, refreshToken: 'refresh me' } },
      { credentials: async () => ({ identityToken: 'refresh me' }) },
    );
    await read();
    expect(registry.requests('token').map((entry) => [entry.method, entry.url])).toEqual([['POST', '/token']]);
  });

  test('a registry token is sent as it is', async () => {
    const { registry, client, read } = await start({ auth }, { credentials: async () => ({ registryToken: 'ready-made' }) });
    registry.tokens?.issued.set('ready-made', new Set(['repository:team/app:pull']));
    await read();
    expect(registry.requests('token').length).toBe(0);
    client.forgetLogins();
    await read();
  });

  test('without credentials a public repository is read with an anonymous token', async () => {
    const { registry, read } = await start({ auth: { ...auth, anonymousPull: true } }, { credentials: async () => undefined });
    await read();
    expect(registry.requests('token')[0]!.headers.authorization).toBeUndefined();
  });

  test('a token is renewed in the background after three quarters of its life', async () => {
    let nowMs = 0;
    const clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs, sleep: async () => {} };
    const { registry, read } = await start({ auth: { ...auth, lifetimeS: 100 } }, { clock });
    await read();
    nowMs = 70_000;
    await read();
    expect(registry.requests('token').length).toBe(1);
    nowMs = 76_000;
    await read();
    await expect.poll(() => registry.requests('token').length, { timeout: 30_000 }).toBe(2);
    expect(registry.log.filter((entry) => entry.status === 401).length).toBe(1);
  });

  test.each([
    ['is no URL', 'not a url'],
    ['is a file', 'file:///etc/passwd'],
    ['carries credentials', 'http://user:hunter2@127.0.0.1:1/token'],
  ])('a realm that %s is FailedPrecondition', async (_what, realm) => {
    const { read } = await start({ auth: { ...auth, realm } });
    const error = await failureOf(read());
    expect(error.code).toBe('FailedPrecondition');
    expect(error.message).not.toContain('hunter2');
  });

  test('a registry behind TLS may not name a realm without TLS', async () => {
    const plain = await startFaultRegistry({ auth });
    cleanUps.push(() => plain.stop());
    const registry = await startFaultRegistry({ tls: true, auth: { ...auth, realm: `${plain.origin}/token` } });
    cleanUps.push(() => registry.stop());
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': `server = "${registry.origin}"\nskip_verify = true\n` });
    cleanUps.push(cleanUp);
    const client = testClient({ hostsDirs: [certsDir], credentials: async () => USER });
    cleanUps.push(() => client.close());
    const digest = registry.addBlob(blob);
    const error = await failureOf(client.fetchRange({ host: 'r.test', repository: 'team/app' }, digest, blob.length, 0, 100));
    expect(error.message).toContain('leaves TLS');
    expect(plain.log.length + registry.requests('token').length).toBe(0);
  });
});

describe('Basic', () => {
  const auth = { kind: 'basic', ...USER } as const;

  test('the first request of a repository goes without, all later ones with the user’s name', async () => {
    const { registry, read } = await start({ auth });
    await read();
    await read();
    expect(registry.log.map((entry) => entry.status)).toEqual([401, 206, 206]);
  });

  test('without credentials it is Unauthenticated and says so', async () => {
    const { read } = await start({ auth }, { credentials: async () => undefined });
    const error = await failureOf(read());
    expect(error.code).toBe('Unauthenticated');
    expect(error.message).toContain('there are none');
  });

  test('changed credentials are used at once after a 401, and within a second without one', async () => {
    let nowMs = 0;
    let current: Credential = USER;
    const clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs, sleep: async () => {} };
    const { registry, read } = await start({ auth }, { clock, credentials: async () => current });
    await read();
    registry.tokens!.password = 'new password';
    current = { username: 'puller', password: 'new password' };
    await read();
    expect(registry.log.map((entry) => entry.status)).toEqual([401, 206, 401, 206]);
    registry.tokens!.password = 'third';
    current = { username: 'puller', password: 'third' };
    nowMs += 1000;
    await read();
    expect(registry.log.at(-1)?.status).toBe(206);
    expect(registry.log.length).toBe(5);
  });
});

describe.each(['bearer', 'basic'] as const)('credentials that the registry refuses (%s)', (kind) => {
  const wrong = { username: 'puller', password: 'revoked' };

  test('are told to their source, which may have others', async () => {
    let current: Credential = wrong;
    const refused: Credential[] = [];
    const told = (credential: Credential): void => {
      refused.push(credential);
      current = USER;
    };
    const { read } = await start({ auth: { kind, ...USER } }, { credentials: Object.assign(async () => current, { refused: told }) });
    expect((await failureOf(read())).code).toBe('Unauthenticated');
    expect(refused).toEqual([wrong]);
    await read();
    expect(refused).toEqual([wrong]);
  });
});

test('new credentials that are refused do not take a token away that works', async () => {
  let current: Credential = USER;
  let nowMs = 0;
  const clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs, sleep: async () => {} };
  const { read } = await start({ auth: { kind: 'bearer', ...USER, lifetimeS: 1000 } }, { clock, credentials: async () => current });
  await read();
  current = { username: 'puller', password: 'of another pod, revoked' };
  for (nowMs = 2_000; nowMs < 12_000; nowMs += 2_000) await read();
});

describe('secrets stay with their origin', () => {
  test('a redirect to another origin carries no authorization and no host headers', async () => {
    const { registry, read } = await start({ auth: { kind: 'bearer', ...USER }, redirectBlobs: true });
    await read();
    const [stored] = registry.requests('storage');
    expect(stored?.status).toBe(206);
    expect(stored?.headers.authorization).toBeUndefined();
    expect(stored?.headers.range).toBe('bytes=1000-5999');
  });

  test('headers of a hosts file go to its host alone', async () => {
    const registry = await startFaultRegistry({ redirectBlobs: true });
    cleanUps.push(() => registry.stop());
    const digest = registry.addBlob(blob);
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': `server = "${registry.origin}"\n[header]\nx-secret = "hunter2"\n` });
    cleanUps.push(cleanUp);
    const client = testClient({ hostsDirs: [certsDir] });
    cleanUps.push(() => client.close());
    await client.fetchRange({ host: 'r.test', repository: 'team/app' }, digest, blob.length, 0, 100);
    expect(registry.requests('registry').map((entry) => entry.headers['x-secret'])).toEqual(['hunter2']);
    expect(registry.requests('storage').map((entry) => entry.headers['x-secret'])).toEqual([undefined]);
  });

  test('a mirror is asked with its own credentials, never with the registry’s', async () => {
    const mirror = await startFaultRegistry({ auth: { kind: 'basic', username: 'm', password: 'm' } });
    cleanUps.push(() => mirror.stop());
    const digest = mirror.addBlob(blob);
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [mirror.origin, 'https://r.invalid'] });
    cleanUps.push(cleanUp);
    const asked: string[] = [];
    const client = testClient({
      hostsDirs: [certsDir],
      credentials: async (host) => {
        asked.push(host);
        return { username: 'm', password: 'm' };
      },
    });
    cleanUps.push(() => client.close());
    await client.fetchRange({ host: 'r.test', repository: 'team/app' }, digest, blob.length, 0, 100);
    expect(new Set(asked)).toEqual(new Set([mirror.host]));
    expect(mirror.log.at(-1)?.url).toContain('ns=r.test');
  });
});
