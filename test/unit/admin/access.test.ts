/** Who may do what: tokens with scopes, refusals and their audit, browsers of other sites, and how often. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Audit } from '../../../admin/audit.ts';
import { type Scope, scopeOf } from '../../../admin/auth/scopes.ts';
import { TokenFile } from '../../../admin/auth/token-file.ts';
import { MAX_TOKENS } from '../../../admin/auth/tokens.ts';
import { withBearerTokens } from '../../../admin/server.ts';
import { silentLogger } from '../../../plugin/base/log.ts';
import { fakeApp, memoryTokens } from './fake-app.ts';

const directories: string[] = [];
// Limits count by the second: time stands still, so that a busy machine does not begin a new one in between.
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['Date', 'setTimeout', 'clearTimeout'] });
});
afterEach(() => {
  vi.useRealTimers();
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true, force: true });
});

/** The API as TCP serves it. */
function behindTokens(overrides: Parameters<typeof fakeApp>[0] = {}) {
  const fake = fakeApp(overrides);
  const guarded = withBearerTokens(fake.app, { address: '', callerOf: (token) => fake.tokens.callerOf(token), audit: fake.audit });
  const ask = (token: string | undefined, method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
    const init = body === undefined ? {} : { body: JSON.stringify(body) };
    const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
    return guarded(
      new Request(`http://localhost${path}`, {
        method,
        ...init,
        headers: { 'content-type': 'application/json', ...authorization, ...headers },
      }),
    );
  };
  const tokenFor = (...scopes: Scope[]) => fake.tokens.create({ name: scopes.join('-'), scopes }).token;
  return { ...fake, ask, tokenFor };
}

const NEW = { imageCacheName: 'web', images: ['registry.example/app:1'] };

describe('scopes', () => {
  it('let a token do what it names and no more; refusals are 403 and in the audit log', async () => {
    const { ask, tokenFor, audited, caches } = behindTokens();
    const read = tokenFor('read');
    expect((await ask(read, 'GET', '/v1/image-caches')).status).toBe(200);
    expect((await ask(read, 'POST', '/v1/image-caches:match', { images: [{ reference: 'a' }] })).status).toBe(200);
    const refused = await ask(read, 'POST', '/v1/image-caches', NEW);
    expect(refused.status).toBe(403);
    expect(await refused.json()).toMatchObject({ code: 'PermissionDenied', details: { scope: 'cache' } });
    expect(caches.usage().usedImageCacheCount).toBe(0);
    expect(audited.at(-1)).toMatch(/^api-refused \/v1\/image-caches POST by token [0-9a-f]{12} \(read\): 403 \(request [0-9a-f-]{36}\)$/);
    expect((await ask(tokenFor('cache'), 'POST', '/v1/image-caches', NEW)).status).toBe(201);
    expect(audited.at(-1)).toMatch(/^api-change \/v1\/image-caches POST by token [0-9a-f]{12} \(cache\): 201 /);
    expect((await ask(tokenFor('cache'), 'POST', '/v1/convert', { reference: 'registry.example/a:1' })).status).toBe(403);
    expect((await ask(tokenFor('convert'), 'POST', '/v1/convert', { reference: 'registry.example/a:1' })).status).toBe(202);
    expect(audited.at(-1)).toMatch(/^api-change \/v1\/conversions POST by token [0-9a-f]{12} \(convert\): 202 /);
    expect((await ask(tokenFor('cache', 'convert'), 'GET', '/v1/tokens')).status).toBe(403);
    expect((await ask(tokenFor('admin'), 'GET', '/v1/tokens')).status).toBe(200);
    expect((await ask(tokenFor('cache'), 'PUT', '/v1/registries/r.example', { userName: 'u', password: 'p' })).status).toBe(403);
  });

  it('hold for the vendor’s actions too, however they are spelt in the path', async () => {
    const { ask, tokenFor, audited } = behindTokens();
    const read = tokenFor('read');
    const create = '/?Action=CreateImageCache&ImageCacheName=web&Image.1=a';
    const refused = await ask(read, 'GET', create);
    expect(refused.status).toBe(403);
    expect(await refused.json()).toMatchObject({ Code: 'Forbidden.Scope', RequestId: expect.any(String) });
    expect(audited.at(-1)).toMatch(/^api-refused \/ CreateImageCache by token/);
    expect((await ask(read, 'GET', '/?Action=ListUsage')).status).toBe(200);
    expect((await ask(tokenFor('cache'), 'GET', create)).status).toBe(200);
    expect(audited.at(-1)).toMatch(/^api-change \/ CreateImageCache by token/);
    for (const path of ['/v1/%74okens', '/v1/tokens/', '/v1//tokens', '/v1/./tokens']) {
      expect([403, 404], path).toContain((await ask(read, 'GET', path)).status);
    }
  });

  it('close what no rule names: a change takes admin', () => {
    expect(scopeOf('POST', '/v1/whatever-comes-next')).toBe('admin');
    expect(scopeOf('DELETE', '/v1/status')).toBe('admin');
    expect(scopeOf('GET', '/v1/whatever-comes-next')).toBe('read');
    expect(scopeOf('POST', '/v1/image-caches-of-somebody-else')).toBe('admin');
  });
});

describe('refusals before an action', () => {
  it('have the shape of the vendor’s API, with a name for each; nothing else on that path has', async () => {
    const { ask, app, tokenFor, audited } = behindTokens({ rates: { readsPerSecond: 3, changesPerSecond: 1 } });
    const shaped = async (answer: Response) => [answer.status, (await answer.json()) as Record<string, unknown>];
    const failure = (Code: string) => ({
      RequestId: expect.stringMatching(/^[0-9a-f-]{36}$/),
      HostId: 'localhost',
      Code,
      Message: expect.any(String),
    });
    const LIST = '/?Action=ListUsage';
    expect(await shaped(await ask(undefined, 'GET', LIST))).toEqual([401, failure('InvalidSecurityToken')]);
    expect(await shaped(await ask('wrong', 'POST', '/'))).toEqual([401, failure('InvalidSecurityToken')]);
    expect(audited.at(-1)).toMatch(/^api-refused \/ POST by nobody: 401 /);
    const form = { 'content-type': 'application/x-www-form-urlencoded' };
    const post = (body: string, headers: Record<string, string>) => app.request('/', { method: 'POST', body, headers });
    expect(await shaped(await post('{}', { 'content-type': 'application/json', 'content-length': '2' }))).toEqual([
      415,
      failure('UnsupportedMediaType'),
    ]);
    expect(await shaped(await post('Action=ListUsage&x=y', { ...form, 'content-length': '100000' }))).toEqual([
      413,
      failure('RequestEntityTooLarge'),
    ]);
    expect(await shaped(await app.request(LIST, { headers: { host: 'evil.example' } }))).toEqual([403, failure('Forbidden.Origin')]);
    expect(audited.at(-1)).toMatch(/^api-refused \/ GET by socket: 403 /);
    const reader = tokenFor('read');
    for (let n = 0; n < 3; n += 1) expect((await ask(reader, 'GET', LIST)).status).toBe(200);
    const slow = await ask(reader, 'GET', LIST);
    expect(slow.headers.get('retry-after')).toBe('1');
    expect(await shaped(slow)).toEqual([429, failure('Throttling')]);
    expect(await (await ask(undefined, 'PUT', '/')).json()).toMatchObject({ code: 'Unauthenticated', requestId: expect.any(String) });
  });

  it('count an action that changes something among the changes', async () => {
    const { ask, tokenFor, caches } = behindTokens({ rates: { readsPerSecond: 100, changesPerSecond: 1 } });
    const token = tokenFor('cache');
    expect((await ask(token, 'GET', '/?Action=CreateImageCache&ImageCacheName=one&Image.1=a')).status).toBe(200);
    const second = await ask(token, 'GET', '/?Action=CreateImageCache&ImageCacheName=two&Image.1=a');
    expect([second.status, await second.json()]).toMatchObject([429, { Code: 'Throttling' }]);
    expect(caches.usage().usedImageCacheCount).toBe(1);
    expect((await ask(token, 'GET', '/?Action=ListUsage')).status).toBe(200);
  });
});

describe('tokens', () => {
  it('are refused when missing, wrong, of another shape, removed or expired; the refusal says nothing secret', async () => {
    let nowMs = Date.parse('2026-01-31T12:00:00Z');
    const { ask, tokens, audited } = behindTokens({ tokens: memoryTokens(() => nowMs) });
    const { id, token } = tokens.create({ name: 'ci', scopes: ['read'], expiresInDays: 1 });
    expect((await ask(token, 'GET', '/v1/status')).status).toBe(200);
    const wrong = `${token.slice(0, -1)}${token.endsWith('A') ? 'B' : 'A'}`;
    for (const given of [undefined, 'x', wrong, `obd_000000000000_${'A'.repeat(43)}`, `${token}${token}`]) {
      const answer = await ask(given, 'GET', '/v1/status');
      expect(answer.status).toBe(401);
      expect(answer.headers.get('www-authenticate')).toBe('Bearer');
      expect(await answer.text()).not.toContain(token.slice(20));
    }
    expect(audited.filter((line) => line.startsWith('api-refused /v1/status GET by nobody: 401'))).toHaveLength(5);
    nowMs += 24 * 3600 * 1000;
    expect((await ask(token, 'GET', '/v1/status')).status).toBe(401);
    nowMs -= 1000;
    expect((await ask(token, 'GET', '/v1/status')).status).toBe(200);
    tokens.remove(id);
    expect((await ask(token, 'GET', '/v1/status')).status).toBe(401);
    expect(audited.join()).not.toContain(token.slice(20));
  });

  it('are made and removed over the API; their text is shown once and only a hash is kept', async () => {
    const rows: unknown[] = [];
    const { app } = fakeApp();
    const post = (body: unknown) =>
      app.request('/v1/tokens', { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json' } });
    const made = await post({ name: 'ci', scopes: ['read', 'cache'] });
    const { id, token } = (await made.json()) as { id: string; token: string };
    expect([made.status, made.headers.get('cache-control'), token]).toEqual([
      201,
      'no-store',
      expect.stringMatching(/^obd_[0-9a-f]{12}_[\w-]{43}$/),
    ]);
    rows.push(await (await app.request('/v1/tokens')).json());
    expect(rows).toMatchObject([{ tokens: [{ id, name: 'ci', scopes: ['read', 'cache'], expiresAt: null }] }]);
    expect(JSON.stringify(rows)).not.toContain(token.slice(17));
    expect((await app.request(`/v1/tokens/${id}`, { method: 'DELETE' })).status).toBe(204);
    expect((await app.request(`/v1/tokens/${id}`, { method: 'DELETE' })).status).toBe(404);
    for (const wrong of [
      { name: 'ci', scopes: [] },
      { name: 'ci', scopes: ['root'] },
      { name: 'a b', scopes: ['read'] },
      { name: 'ci', scopes: ['read'], expiresInDays: 0 },
    ]) {
      expect((await post(wrong)).status).toBe(400);
    }
  });

  it('are bounded in number', () => {
    const tokens = memoryTokens();
    for (let n = 0; n < MAX_TOKENS; n += 1) tokens.create({ name: 'x', scopes: ['read'] });
    expect(() => tokens.create({ name: 'x', scopes: ['read'] })).toThrow(/there are 100 already/);
  });

  it('of the file are rotated without a restart, and lock out while the file is unusable', () => {
    const directory = mkdtempSync(join(tmpdir(), 'obd-token-'));
    directories.push(directory);
    const path = join(directory, 'token');
    const [first, second] = ['a'.repeat(32), 'b'.repeat(32)];
    writeFileSync(path, first, { mode: 0o600 });
    const file = new TokenFile(path, silentLogger);
    expect(file.callerOf(first)).toMatchObject({ scopes: ['admin'] });
    expect(file.callerOf(second)).toBeUndefined();
    rmSync(path);
    expect(file.callerOf(first)).toBeUndefined();
    writeFileSync(path, second, { mode: 0o600 });
    expect(file.callerOf(first)).toBeUndefined();
    expect(file.callerOf(second)).toMatchObject({ name: 'token file' });
  });
});

describe('requests', () => {
  it('of browsers at the socket are taken from the page’s own site alone, under a name that cannot be made to point here', async () => {
    const { app } = fakeApp();
    const status = async (site: string, host: string) =>
      (await app.request('/v1/status', { headers: { 'sec-fetch-site': site, host } })).status;
    expect(await status('same-origin', 'localhost:9100')).toBe(200);
    expect(await status('none', '127.0.0.1:9100')).toBe(200);
    expect(await status('same-origin', '[::1]:9100')).toBe(200);
    expect(await status('cross-site', 'localhost:9100')).toBe(403);
    expect(await status('same-site', 'localhost:9100')).toBe(403);
    expect(await status('same-origin', 'evil.example')).toBe(403);
    // A browser says nothing of the site on a plain connection to a name: what a rebound name does.
    const plain = async (headers: Record<string, string>, path = '/v1/status') => (await app.request(path, { headers })).status;
    expect(await plain({ host: 'evil.example:9100' })).toBe(403);
    expect(await plain({ host: 'evil.example:9100' }, '/')).toBe(403);
    expect(await plain({ host: 'localhost.evil.example' })).toBe(403);
    expect(await plain({ host: '192.0.2.7:9100' })).toBe(403);
    expect(await plain({ host: 'LOCALHOST:9100' })).toBe(200);
    expect(await plain({ host: 'localhost:9100', origin: 'http://localhost:9100' })).toBe(200);
    expect(await plain({ host: 'localhost:9100', origin: 'http://evil.example' })).toBe(403);
    expect(await plain({ host: 'localhost:9100', origin: 'http://localhost:8080' })).toBe(403);
    expect(await plain({ host: 'localhost:9100', origin: 'null' })).toBe(403);
    const { ask, tokenFor } = behindTokens();
    const headers = { 'sec-fetch-site': 'same-origin', host: 'node.example:9100' };
    expect((await ask(tokenFor('read'), 'GET', '/v1/status', undefined, headers)).status).toBe(200);
    const page = await ask(undefined, 'GET', '/', undefined, headers);
    expect([page.status, page.headers.get('content-type')]).toEqual([200, 'text/html; charset=UTF-8']);
    expect((await ask(undefined, 'GET', '/?Action=ListUsage')).status).toBe(401);
  });

  it('are limited by caller, changes more than reads, with 429 and when to come again', async () => {
    const { ask, tokenFor, caches } = behindTokens({ rates: { readsPerSecond: 3, changesPerSecond: 1 } });
    const [one, other] = [tokenFor('cache'), tokenFor('read')];
    const statuses = [];
    for (let n = 0; n < 4; n += 1) statuses.push((await ask(one, 'GET', '/v1/usage')).status);
    expect(statuses).toEqual([200, 200, 200, 429]);
    expect((await ask(other, 'GET', '/v1/usage')).status).toBe(200);
    expect((await ask(one, 'POST', '/v1/image-caches', NEW)).status).toBe(201);
    const refused = await ask(one, 'POST', '/v1/image-caches', { ...NEW, imageCacheName: 'two' });
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, '1']);
    expect(await refused.json()).toMatchObject({ code: 'ResourceExhausted', details: { retryAfterMs: 1000 } });
    expect(caches.usage().usedImageCacheCount).toBe(1);
    vi.advanceTimersByTime(1000);
    expect((await ask(one, 'GET', '/v1/usage')).status).toBe(200);
  });

  it('that are refused in numbers do not flood the audit log, which says how many it left out', async () => {
    const { ask, audited } = behindTokens();
    for (let n = 0; n < 30; n += 1) await ask('wrong', 'GET', '/v1/status');
    expect(audited).toHaveLength(10);
  });

  it('are answered as they were done although a full disk takes no entry of the audit log', async () => {
    const full = (): never => {
      throw new Error('database or disk is full');
    };
    const lines: unknown[] = [];
    const log = { ...silentLogger, error: (facts: unknown) => void lines.push(facts) } as typeof silentLogger;
    const { ask, tokenFor, caches } = behindTokens({ audit: new Audit(log, { append: full, list: () => [] }) });
    expect((await ask(tokenFor('cache'), 'POST', '/v1/image-caches', NEW)).status).toBe(201);
    expect(caches.usage().usedImageCacheCount).toBe(1);
    expect((await ask('wrong', 'GET', '/v1/status')).status).toBe(401);
    expect(lines).toHaveLength(2);
  });

  it('are in the audit log page by page, changes apart from refusals', async () => {
    const { ask, tokenFor } = behindTokens();
    const admin = tokenFor('admin');
    for (const name of ['one', 'two', 'three']) await ask(admin, 'POST', '/v1/image-caches', { ...NEW, imageCacheName: name });
    await ask(tokenFor('read'), 'POST', '/v1/image-caches', NEW);
    const page = async (query: string) =>
      (await (await ask(admin, 'GET', `/v1/audit?${query}`)).json()) as { entries: { kind: string }[]; next: number | null };
    const first = await page('limit=3');
    expect(first.entries).toMatchObject([
      {
        kind: 'refusal',
        action: 'POST',
        path: '/v1/image-caches',
        status: 403,
        leftOut: 0,
        caller: expect.stringMatching(/^token [0-9a-f]{12} \(read\)$/),
      },
      { kind: 'change', status: 201, at: expect.stringMatching(/Z$/), requestId: expect.any(String) },
      { kind: 'change' },
    ]);
    expect(await page(`limit=3&before=${first.next}`)).toMatchObject({ entries: [{ kind: 'change' }], next: null });
    expect((await page('kind=refusal')).entries).toHaveLength(1);
    expect((await ask(admin, 'GET', '/v1/audit?kind=all')).status).toBe(400);
  });
});
