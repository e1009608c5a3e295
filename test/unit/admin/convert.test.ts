/** Conversion over the admin API: bodies are checked, the vendor's names are understood, progress comes as events. */
import { expect, test } from 'vitest';
import { WATCHERS_MAX } from '../../../admin/limits.ts';
import { AppError } from '../../../plugin/base/errors.ts';
import type { ConvertService } from '../../../plugin/convert/service.ts';
import { fakeApp } from './fake-app.ts';
import { fakeConvert, JOB } from './fake-convert.ts';

const appOf = (overrides: Partial<ConvertService> = {}) => fakeApp({ convert: fakeConvert(overrides) }).app;

// biome-ignore lint/suspicious/noExplicitAny: answers are compared, not used
async function ask(method: string, path: string, body?: unknown, app = appOf()): Promise<{ status: number; body: any }> {
  const init = body === undefined ? { method } : { method, body: JSON.stringify(body), headers: { 'content-type': 'application/json' } };
  const response = await app.request(`/v1/convert${path}`, init);
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text) };
}

test('a conversion is queued with its defaults; what is unknown or out of range is refused by name', async () => {
  const queued = await ask('POST', '', { reference: 'registry.example/team/app:1', compression: 'lz4', platforms: ['linux/amd64'] });
  expect(queued).toMatchObject({ status: 202, body: { id: 7, repository: 'registry.example/team/app', state: 'BUILDING' } });
  expect(queued.body.request).toEqual({
    mode: 'full',
    unindexable: 'convert',
    runtime: 'containerd',
    platforms: ['linux/amd64'],
    compression: 'lz4',
    blockKib: 64,
  });
  expect((await ask('POST', '', { reference: 'a:1', buildType: 'IMAGE_TO_ECI_ACCELERATED_IMAGE' })).status).toBe(202);
  for (const wrong of [
    {},
    { reference: 'a:1', buildType: 'IMAGE' },
    { reference: 'a:1', mode: 'best' },
    { reference: 'a:1', x: 1 },
    { reference: 'a:1', blockKib: 5 },
    { reference: 'a:1', platforms: ['Linux'] },
  ]) {
    expect(await ask('POST', '', wrong)).toMatchObject({ status: 400, body: { code: 'InvalidArgument' } });
  }
});

test('jobs: list, one, log, cancel', async () => {
  expect((await ask('GET', '/jobs?limit=1')).body).toMatchObject({ jobs: [{ id: 7 }], next: 7 });
  expect((await ask('GET', '/jobs')).body).toMatchObject({ jobs: [{ id: 7 }, { id: 6, state: 'SUCCESS' }], next: null });
  expect((await ask('GET', '/jobs?state=WRONG')).status).toBe(400);
  expect(await ask('GET', '/jobs/8')).toMatchObject({ status: 404 });
  expect((await ask('GET', '/jobs/7/log')).body).toMatchObject({ lines: [{ lineNumber: 1, message: 'asked for by hand' }], next: null });
  expect((await ask('POST', '/jobs/7/cancel')).body).toMatchObject({ state: 'FAILED', failure: { code: 'Canceled' } });
});

test('progress is a stream of events that ends with the job; watchers are counted', async () => {
  const response = await appOf().request('/v1/convert/jobs/7/events');
  expect(response.headers.get('content-type')).toMatch(/text\/event-stream/);
  const events = (await response.text()).split('\n\n').filter(Boolean);
  expect(events.map((event) => event.split('\n')[0])).toEqual(['event: job', 'event: job']);
  expect(JSON.parse(events[1]!.split('data: ')[1]!)).toMatchObject({ id: 7, state: 'SUCCESS' });
  expect((await appOf().request('/v1/convert/jobs/8/events')).status).toBe(404);

  const never = appOf({
    watch: () =>
      (async function* () {
        yield JOB;
        await new Promise(() => {});
      })(),
  });
  for (let i = 0; i < WATCHERS_MAX; i += 1) await never.request('/v1/convert/jobs/7/events');
  expect((await never.request('/v1/convert/jobs/7/events')).status).toBe(507);
});

test('rules take our names and the vendor’s (CreateArtifactBuildRule)', async () => {
  const own = await ask('POST', '/rules', { repository: 'registry.example/team/app', filter: { type: 'TAG_LIST', tags: ['1'] } });
  expect(own).toMatchObject({
    status: 201,
    body: { repository: 'registry.example/team/app', filter: { type: 'TAG_LIST', tags: ['1'] }, isEnabled: true },
  });
  const vendor = { ScopeType: 'REPOSITORY', ScopeId: 'registry.example/team/app', ArtifactType: 'ACCELERATED_IMAGE' };
  expect((await ask('POST', '/rules', vendor)).body).toMatchObject({ repository: 'registry.example/team/app', request: { mode: 'full' } });
  const index = await ask('POST', '/rules', { ...vendor, Parameters: { ImageIndexOnly: true } });
  expect(index.body).toMatchObject({ request: { mode: 'index-only' } });
  for (const wrong of [
    { ...vendor, ScopeType: 'NAMESPACE' },
    { ...vendor, ScopeId: 'no-registry' },
    { repository: 'x' },
    { repository: 'r.example/a', filter: { type: 'TAG_LIST', tags: Array.from({ length: 11 }, (_, i) => `t${i}`) } },
  ]) {
    expect((await ask('POST', '/rules', wrong)).status).toBe(400);
  }
  expect((await ask('DELETE', '/rules/1')).status).toBe(204);
  expect((await ask('PATCH', '/rules/1', { isEnabled: false })).status).toBe(404);
});

test('notifications show that they are signed, never with what', async () => {
  const made = await ask('POST', '/notifications', { name: 'ci', url: 'https://ci.example/hook', secretFile: '/etc/secret' });
  expect(made).toMatchObject({
    status: 201,
    body: { name: 'ci', isSigned: true, filter: { type: 'TAG_REG_EXP', expression: '_accelerated$' } },
  });
  expect(JSON.stringify(made.body)).not.toContain('/etc/secret');
  for (const url of ['ftp://x', 'https://user:word@x/', 'nonsense']) {
    expect((await ask('POST', '/notifications', { name: 'ci', url })).status).toBe(400);
  }
  expect((await ask('GET', '/deliveries')).body).toEqual({ deliveries: [], next: null });
});

test('an image is deleted by reference; who uses it is in the refusal', async () => {
  const ask = async (query: string, app = appOf()) => {
    const response = await app.request(`/v1/images${query}`, { method: 'DELETE' });
    return { status: response.status, body: await response.json() };
  };
  const reference = `?reference=${encodeURIComponent('registry.example/team/app:1')}`;
  expect(await ask(reference)).toMatchObject({ status: 200, body: { repository: 'registry.example/team/app', kind: 'full', tags: ['1'] } });
  expect((await ask('')).status).toBe(400);
  const used = appOf({
    removeImage: () =>
      Promise.reject(
        new AppError('FailedPrecondition', { op: 'delete', subject: 'app:1', what: 'it is in use by active pod', details: { users: 1 } }),
      ),
  });
  const refused = await ask(reference, used);
  expect(refused.status).toBe(400);
  expect(JSON.stringify(refused.body)).toContain('it is in use by active pod');
});
