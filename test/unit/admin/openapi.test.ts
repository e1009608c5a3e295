/**
 * The OpenAPI document is what the API does: every documented operation is called, its answer is checked against the documented schema by a
 * JSON Schema validator of its own, and nothing is served that is not documented.
 */
import { beforeAll, describe, expect, it } from 'vitest';
import type { AdminApp } from '../../../admin/context.ts';
import { type ApiDocument, misfit, operationsOf } from '../../support/openapi.ts';
import { appWithOneOfEach } from './fake-app.ts';

const JSON_TYPE = 'application/json';
const IMC = 'imc-00000000000000000001';
const RULE = { repository: 'registry.example/team/app' };
/** A request for each operation; the key is `METHOD path` of the document. `?` begins a query; the values fill `{…}`. */
const SAMPLES: Readonly<Record<string, { path?: string; body?: unknown; form?: Record<string, string>; status?: number }>> = {
  'GET /': {},
  'POST /': { form: { Action: 'ListUsage' } },
  'POST /v1/image-caches': { body: { imageCacheName: 'two', images: ['nginx:1.27'] }, status: 201 },
  'GET /v1/image-caches': { path: '?limit=10&status=Preparing' },
  'POST /v1/image-caches:match': { body: { images: [{ reference: 'registry.example/team/app:1' }] } },
  'GET /v1/image-caches/{id}': { path: IMC },
  'GET /v1/image-caches/{id}/events': { path: IMC },
  'PATCH /v1/image-caches/{id}': { path: IMC, body: { retentionDays: 5 } },
  'DELETE /v1/image-caches/{id}': { path: IMC, status: 204 },
  'POST /v1/store:evict': { body: { bytes: 10 } },
  'POST /v1/materialize': { body: { reference: 'registry.example/team/app:1' } },
  'POST /v1/conversions': { body: { reference: 'registry.example/team/app:1' }, status: 202 },
  'GET /v1/conversions/{id}': { path: '7' },
  'POST /v1/conversions/{id}/cancel': { path: '7' },
  'GET /v1/conversions/{id}/log': { path: '7' },
  'GET /v1/conversions/{id}/events': { path: '7' },
  'POST /v1/conversion-rules': { body: RULE, status: 201 },
  'GET /v1/conversion-rules/{id}': { path: '1' },
  'PATCH /v1/conversion-rules/{id}': { path: '1', body: { isEnabled: false } },
  'DELETE /v1/conversion-rules/{id}': { path: '1', status: 204 },
  'POST /v1/convert/notifications': { body: { name: 'ci', url: 'https://ci.example/x' }, status: 201 },
  'DELETE /v1/convert/notifications/{id}': { path: '1', status: 204 },
  'PUT /v1/registries/{registry}': { path: 'registry.example:5000%2Fteam', body: { userName: 'u', password: 'p' } },
  'DELETE /v1/registries/{registry}': { path: 'kept.example', status: 204 },
  'POST /v1/tokens': { body: { name: 'ci', scopes: ['read'] }, status: 201 },
  'DELETE /v1/tokens/{id}': { status: 204 },
  'GET /v1/pods/{pod}': { path: 'team%2Fweb-0' },
  'DELETE /v1/images': { path: '?reference=registry.example/team/app:1' },
};

let document: ApiDocument;
let app: AdminApp;
let tokenId: string;

beforeAll(async () => {
  ({ app, tokenId } = await appWithOneOfEach());
  document = (await (await app.request('/v1/openapi.json')).json()) as ApiDocument;
});

/** The event stream's first bytes, or the whole answer. */
async function call(method: string, path: string, target: AdminApp) {
  const key = `${method} ${path}`;
  const { path: value = '', body, form, status = 200 } = SAMPLES[key] ?? {};
  const filled = path.includes('{') ? path.replace(/\{\w+\}/, value === '' ? tokenId : value) : path + value;
  const hangUp = new AbortController();
  const payload = form === undefined ? (body === undefined ? {} : { body: JSON.stringify(body) }) : { body: new URLSearchParams(form) };
  const headers = body === undefined ? {} : { 'content-type': JSON_TYPE };
  const response = await target.request(filled, { method, ...payload, headers, signal: hangUp.signal });
  const type = (response.headers.get('content-type') ?? '').split(';')[0]!;
  if (type !== 'text/event-stream') return { expected: status, response, type, text: await response.text() };
  const reader = response.body!.getReader();
  const first = await reader.read();
  await reader.cancel();
  return { expected: status, response, type, text: new TextDecoder().decode(first.value) };
}

const operations = () => operationsOf(document);

describe('the OpenAPI document', () => {
  it('names every part of the API, in version 3.1, with the scope of each operation', () => {
    expect(document.openapi).toBe('3.1.0');
    for (const path of [
      'image-caches',
      'image-caches:match',
      'image-caches:watch',
      'usage',
      'conversions',
      'conversion-rules',
      'snapshots',
      'devices',
      'store',
      'registries',
      'health',
      'ready',
      'metrics',
      'openapi.json',
    ]) {
      expect(document.paths, path).toHaveProperty([`/v1/${path}`]);
    }
    const scopes = Object.fromEntries(
      operations().map(({ method, path, operation }) => [`${method} ${path}`, operation.security[0]?.bearer?.[0]]),
    );
    expect(scopes).toMatchObject({
      ...{
        'GET /v1/image-caches': 'read',
        'POST /v1/image-caches': 'cache',
        'POST /v1/image-caches:match': 'read',
        'GET /v1/tokens': 'admin',
      },
      ...{ 'POST /v1/conversions': 'convert', 'PATCH /v1/conversion-rules/{id}': 'convert', 'PUT /v1/registries/{registry}': 'admin' },
    });
  });

  it('answers each operation as it says, and refuses nonsense for each with the one error shape', async () => {
    const errorShape = document.paths['/v1/status']!.get!.responses.default!.content![JSON_TYPE]!.schema!;
    const wrong: string[] = [];
    for (const { method, path, operation } of operations()) {
      const fresh = await appWithOneOfEach();
      tokenId = fresh.tokenId;
      const key = `${method} ${path}`;
      const { expected, response, type, text } = await call(method, path, fresh.app);
      const described = operation.responses[String(response.status)];
      if (response.status !== expected || described === undefined) {
        wrong.push(`${key}: ${response.status} ${text.slice(0, 300)}`);
        continue;
      }
      const content = described.content?.[type];
      if (type !== '' && content === undefined) wrong.push(`${key}: ${type} is not described`);
      if (type !== JSON_TYPE || content?.schema === undefined) continue;
      const answered = misfit(document, content.schema, JSON.parse(text));
      if (answered !== undefined) wrong.push(`${key}: ${answered}`);
      if (!path.includes('{id}')) continue;
      const unknown = await fresh.app.request(path.replace('{id}', '%00'), { method });
      const refused = misfit(document, errorShape, await unknown.json());
      if (refused !== undefined) wrong.push(`${key}: unknown id gives ${refused}`);
    }
    expect(wrong).toEqual([]);
  });

  it('names every route that is served', () => {
    const documented = new Set(operations().map(({ method, path }) => `${method} ${path}`));
    const aliases = new Set(['GET /metrics', 'GET /openapi.json']);
    const served = app.routes
      .filter(({ method }) => method !== 'ALL')
      .map(
        ({ method, path }) =>
          `${method} ${path.replace(/:(\w+)/g, (match, name: string) => (path.includes(`/${match}`) ? `{${name}}` : match))}`,
      );
    const names = served.map((route) =>
      route
        .replace(/^POST \/v1\/convert$/, 'POST /v1/conversions')
        .replace('/v1/convert/jobs', '/v1/conversions')
        .replace('/v1/convert/rules', '/v1/conversion-rules'),
    );
    expect(names.filter((route) => !documented.has(route) && !aliases.has(route))).toEqual([]);
  });

  it('is a page for people, too, which loads nothing', async () => {
    const page = await app.request('/v1/reference');
    const text = await page.text();
    expect(page.headers.get('content-security-policy')).toMatch(/default-src 'none'; script-src 'none'/);
    for (const { method, path } of operations()) expect(text).toContain(`<code>${method} ${path}</code>`);
    expect(text).not.toMatch(/<script|src=|@import|url\(/);
  });
});

describe('both names of conversions', () => {
  it('answer the same', async () => {
    const text = async (path: string) => (await app.request(path)).text();
    expect(await text('/v1/conversions')).toBe(await text('/v1/convert/jobs'));
    expect(await text('/v1/conversions/7')).toBe(await text('/v1/convert/jobs/7'));
    expect(await text('/v1/conversion-rules')).toBe(await text('/v1/convert/rules'));
    expect((await app.request('/v1/conversionsx')).status).toBe(404);
  });
});
