/** Image caches over REST: every operation, every kind of wrong input with its status and code, and that nothing has changed after it. */
import { describe, expect, it } from 'vitest';
import { MAX_REQUEST_BYTES } from '../../../admin/limits.ts';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { fakeApp } from './fake-app.ts';

const IMAGE = 'registry.example/team/app:1';
const NEW = { imageCacheName: 'web', images: [IMAGE] };

interface Answer {
  status: number;
  headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: answers are compared, not used
  body: any;
}

function serve(caches = new MemoryCaches()) {
  const { app, audited } = fakeApp({ caches });
  const ask = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> => {
    const payload = body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) };
    const response = await app.request(`/v1${path}`, { method, ...payload, headers: { 'content-type': 'application/json', ...headers } });
    const text = await response.text();
    return { status: response.status, headers: response.headers, body: text === '' ? undefined : JSON.parse(text) };
  };
  return { ask, app, caches, audited };
}

describe('image caches', () => {
  it('are made, listed, shown, changed and removed, with an ETag at each step', async () => {
    const { ask, caches } = serve();
    const made = await ask('POST', '/image-caches', { ...NEW, retentionDays: 7, tags: [{ key: 'team', value: 'a' }] });
    const id = made.body.imageCacheId as string;
    expect([made.status, made.headers.get('etag'), made.headers.get('location')]).toEqual([201, '"1"', `/v1/image-caches/${id}`]);
    expect(made.body).toMatchObject({ ...NEW, images: [{ reference: IMAGE }], status: 'Preparing', imageCacheSize: 20, version: 1 });
    caches.advance(id, 'Ready', 100);
    expect((await ask('GET', `/image-caches/${id}`)).headers.get('etag')).toBe('"2"');
    const changed = await ask('PATCH', `/image-caches/${id}`, { retentionDays: null }, { 'if-match': '"2"' });
    expect(changed).toMatchObject({ status: 200, body: { retentionDays: null, version: 3 } });
    expect((await ask('GET', `/image-caches/${id}/events`)).body.events).toHaveLength(2);
    expect((await ask('GET', '/usage')).body).toMatchObject({ usedImageCacheCount: 1, maxImageCacheCount: 500 });
    expect((await ask('DELETE', `/image-caches/${id}`)).status).toBe(204);
    expect((await ask('GET', `/image-caches/${id}`)).body).toMatchObject({ code: 'NotFound', details: { reason: 'ImageCacheNotFound' } });
  });

  it('are listed by filters, page by page', async () => {
    const { ask, caches } = serve();
    for (const n of [1, 2, 3]) {
      await ask('POST', '/image-caches', {
        imageCacheName: `c${n}`,
        images: [`${IMAGE}${n}`],
        tags: [{ key: 'n', value: String(n) }],
        resourceGroupId: 'g',
      });
    }
    caches.advance('imc-00000000000000000002', 'Ready', 100, { snapshotId: 's-2' });
    const names = async (query: string) => {
      const { body } = await ask('GET', `/image-caches?${query}`);
      return body.imageCaches.map((cache: { imageCacheName: string }) => cache.imageCacheName);
    };
    const first = await ask('GET', '/image-caches?limit=2');
    expect(first.body).toMatchObject({ totalCount: 3, next: expect.any(String) });
    expect(await names(`limit=2&after=${first.body.next}`)).toEqual(['c1']);
    expect(await names('status=Ready')).toEqual(['c2']);
    expect(await names('snapshotId=s-2')).toEqual(['c2']);
    expect(await names('name=c3')).toEqual(['c3']);
    expect(await names('tag=n=1')).toEqual(['c1']);
    expect(await names('tag=n&tag=n=3')).toEqual(['c3']);
    expect(await names(`image=${IMAGE}2`)).toEqual(['c2']);
    expect(await names('id=imc-00000000000000000001&id=imc-00000000000000000003')).toEqual(['c3', 'c1']);
    expect(await names(`matchImage=${IMAGE}1&matchImage=${IMAGE}2&imageFullMatch=true`)).toEqual(['c2', 'c1']);
    expect(await names('owner=system')).toEqual([]);
    expect(await names('resourceGroupId=g')).toHaveLength(3);
  });

  it('are the same for the same client token, in the header or in the body', async () => {
    const { ask, caches } = serve();
    const first = await ask('POST', '/image-caches', { ...NEW, clientToken: 'once' });
    const second = await ask('POST', '/image-caches', NEW, { 'idempotency-key': 'once' });
    expect([second.status, second.body.imageCacheId]).toEqual([201, first.body.imageCacheId]);
    const other = await ask('POST', '/image-caches', { ...NEW, images: ['other:2'] }, { 'idempotency-key': 'once' });
    expect(other).toMatchObject({ status: 409, body: { code: 'IdempotentParameterMismatch' } });
    expect(await ask('POST', '/image-caches', { ...NEW, clientToken: 'a' }, { 'idempotency-key': 'b' })).toMatchObject({ status: 400 });
    expect(caches.usage().usedImageCacheCount).toBe(1);
  });

  it('explain a match and change nothing', async () => {
    const { ask } = serve();
    await ask('POST', '/image-caches', NEW);
    const { status, body } = await ask('POST', '/image-caches:match', { images: [{ reference: IMAGE }], extraEphemeralStorage: 10 });
    expect([status, body]).toMatchObject([200, { outcome: 'matched', ephemeralStorage: 40, candidates: [{ rank: 1, lostBecause: null }] }]);
  });

  it('are followed as server-sent events, from what is there to what changes, until the caller hangs up', async () => {
    const { ask, app, caches } = serve();
    const { body } = await ask('POST', '/image-caches', NEW);
    const hangUp = new AbortController();
    const response = await app.request(`/v1/image-caches:watch?id=${body.imageCacheId}`, { signal: hangUp.signal });
    expect(response.headers.get('content-type')).toMatch(/^text\/event-stream/);
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    const read = async (): Promise<unknown> => JSON.parse(/^data: (.*)$/m.exec((await reader.read()).value ?? '')![1]!);
    expect(await read()).toMatchObject({ kind: 'added', imageCache: { status: 'Preparing' } });
    caches.advance(body.imageCacheId, 'Creating', 40);
    expect(await read()).toMatchObject({ kind: 'changed', imageCache: { status: 'Creating', progress: 40 } });
    await caches.delete(body.imageCacheId);
    expect(await read()).toMatchObject({ kind: 'deleted' });
    await reader.cancel();
  });
});

describe('wrong input', () => {
  const many = Array.from({ length: 21 }, (_, n) => `registry.example/app:${n}`);
  const credential = { server: 'registry.example', userName: 'u', password: 'p' };

  it.each([
    ['21 images', { ...NEW, images: many }, 'images'],
    ['no image', { ...NEW, images: [] }, 'images'],
    ['an image twice', { ...NEW, images: [IMAGE, IMAGE] }, 'images'],
    ['no images at all', { imageCacheName: 'web' }, 'images'],
    ['a malformed reference', { ...NEW, images: ['Registry.example/UPPER case'] }, 'images.0'],
    ['a size below the range', { ...NEW, imageCacheSize: 19 }, 'imageCacheSize'],
    ['a size above the range', { ...NEW, imageCacheSize: 32_769 }, 'imageCacheSize'],
    ['half a GiB', { ...NEW, imageCacheSize: 20.5 }, 'imageCacheSize'],
    ['zero days', { ...NEW, retentionDays: 0 }, 'retentionDays'],
    ['too many days', { ...NEW, retentionDays: 65_537 }, 'retentionDays'],
    ['an unknown field', { ...NEW, imageCachesize: 20 }, 'imageCachesize'],
    ['an unknown strategy', { ...NEW, eliminationStrategy: 'FIFO' }, 'eliminationStrategy'],
    ['a bad name', { ...NEW, imageCacheName: '-x' }, 'imageCacheName'],
    ['21 tags', { ...NEW, tags: many.map((key) => ({ key, value: '' })) }, 'tags'],
    [
      '11 credentials',
      { ...NEW, imageRegistryCredentials: many.slice(0, 11).map((_, n) => ({ ...credential, server: `r${n}.example` })) },
      'imageRegistryCredentials',
    ],
    ['a client token with a space', { ...NEW, clientToken: 'a b' }, 'clientToken'],
    ['a list', [], 'expected object'],
  ])('%s is refused with 400 and its field by name', async (_, body, field) => {
    const { ask, caches } = serve();
    const answer = await ask('POST', '/image-caches', body);
    expect(answer).toMatchObject({
      status: 400,
      body: { code: 'InvalidArgument', details: { kind: 'InvalidArgument' }, requestId: expect.any(String) },
    });
    expect(answer.body.message).toContain(field);
    expect(answer.headers.get('x-request-id')).toBe(answer.body.requestId);
    expect(caches.usage().usedImageCacheCount).toBe(0);
  });

  it('that only the service can judge is told with its status and the name that R133 gives it', async () => {
    const { ask, caches } = serve(new MemoryCaches({ quota: 1 }));
    expect(await ask('POST', '/image-caches', { ...NEW, imageCacheName: 'auto-create-for-x' })).toMatchObject({
      status: 400,
      body: { code: 'InvalidArgument' },
    });
    expect(await ask('POST', '/image-caches?dryRun=true', NEW)).toMatchObject({ status: 400, body: { code: 'DryRunOperation' } });
    const { body: cache } = await ask('POST', '/image-caches', NEW);
    expect(await ask('POST', '/image-caches', NEW)).toMatchObject({ status: 409, body: { code: 'ImageCache.NameDuplicated' } });
    expect(await ask('POST', '/image-caches', { ...NEW, imageCacheName: 'two' })).toMatchObject({
      status: 403,
      body: { code: 'QuotaExceeded', details: { kind: 'ResourceExhausted' } },
    });
    const path = `/image-caches/${cache.imageCacheId}`;
    expect(await ask('PATCH', path, { images: ['a:2'] })).toMatchObject({ status: 400, body: { code: 'ImageCache.IncorrectStatus' } });
    expect(await ask('PATCH', path, { retentionDays: null })).toMatchObject({ status: 400, body: { code: 'NoNeedUpdate' } });
    expect(await ask('PATCH', path, { retentionDays: 3 }, { 'if-match': '"9"' })).toMatchObject({
      status: 412,
      body: { code: 'OperationConflict' },
    });
    expect(await ask('PATCH', path, { retentionDays: 3 }, { 'if-match': 'nine' })).toMatchObject({ status: 400 });
    expect(caches.list().caches).toEqual([caches.get(cache.imageCacheId)]);
    expect(caches.get(cache.imageCacheId)).toMatchObject({ version: 1, retentionDays: null });
  });

  it('of other kinds: ids that do not exist, other content types, bodies that are too long or no JSON, unknown query parameters', async () => {
    const { ask, app, caches } = serve();
    for (const [method, path, body] of [
      ['GET', '/image-caches/imc-x', undefined],
      ['GET', '/image-caches/imc-x/events', undefined],
      ['PATCH', '/image-caches/imc-x', { retentionDays: 1 }],
      ['DELETE', '/image-caches/imc-x', undefined],
    ] as const) {
      expect(await ask(method, path, body)).toMatchObject({ status: 404, body: { code: 'NotFound' } });
    }
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/jsonx', '']) {
      expect(await ask('POST', '/image-caches', NEW, { 'content-type': type, 'content-length': '10' })).toMatchObject({ status: 415 });
    }
    const long = JSON.stringify({ ...NEW, pad: 'x'.repeat(10 * 1024 * 1024) });
    const refused = await ask('POST', '/image-caches', long);
    expect(refused).toMatchObject({ status: 413, body: { code: 'InvalidArgument', details: { limitBytes: MAX_REQUEST_BYTES } } });
    const broken = await ask('POST', '/image-caches', '{"imageCacheName": "hunter2');
    expect(broken).toMatchObject({ status: 400, body: { message: 'read request body: is no JSON' } });
    for (const query of ['limit=0', 'limit=101', 'colour=red', 'status=ready', 'image=UPPER%20case', 'imageFullMatch=yes']) {
      expect((await ask('GET', `/image-caches?${query}`)).status, query).toBe(400);
    }
    expect((await app.request('/v1/image-caches', { method: 'PUT' })).status).toBe(405);
    expect(caches.usage().usedImageCacheCount).toBe(0);
  });

  it('and credentials: what is given is in no answer, error, event or audit line', async () => {
    const { ask, app, caches, audited } = serve();
    const secret = 'correct-horse-battery-staple';
    const credential = { server: 'registry.example', userName: 'u', password: secret };
    const seen: string[] = [];
    const tell = async (...args: Parameters<typeof ask>): Promise<void> => void seen.push(JSON.stringify((await ask(...args)).body));
    await tell('POST', '/image-caches', { ...NEW, imageRegistryCredentials: [credential] });
    await tell('POST', '/image-caches', { ...NEW, imageRegistryCredentials: [credential] });
    await tell('POST', '/image-caches', { ...NEW, imageRegistryCredentials: [{ ...credential, server: secret.repeat(400) }] });
    await tell('POST', '/image-caches', { ...NEW, imageRegistryCredentials: [{ ...credential, passwort: secret }] });
    await tell('POST', '/image-caches', `{"imageRegistryCredentials": "${secret}`);
    await tell('PATCH', '/image-caches/imc-00000000000000000001', { imageRegistryCredentials: [credential], retentionDays: 9 });
    await tell('PUT', '/registries/registry.example', { userName: 'u', password: secret });
    await tell('PUT', '/registries/registry.example', { userName: 'u', password: secret, more: secret });
    await tell('GET', '/registries');
    await tell('GET', '/image-caches');
    await tell('GET', '/overview');
    const form = new URLSearchParams({
      Action: 'CreateImageCache',
      ImageCacheName: 'rpc',
      'Image.1': IMAGE,
      'ImageRegistryCredential.1.Server': 'r.example',
    });
    form.set('ImageRegistryCredential.1.UserName', 'u');
    form.set('ImageRegistryCredential.1.Password', secret);
    seen.push(await (await app.request('/', { method: 'POST', body: form })).text());
    form.set('ImageRegistryCredential.1.Paswort', secret);
    seen.push(await (await app.request('/', { method: 'POST', body: form })).text());
    seen.push(JSON.stringify(caches.list()), ...audited);
    expect(seen.filter((text) => text.length > 2).length).toBeGreaterThan(14);
    expect(seen.filter((text) => text.includes(secret))).toEqual([]);
  });
});
