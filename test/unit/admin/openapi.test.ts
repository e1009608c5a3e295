/**
 * The OpenAPI document is what the API does: every documented operation is called, its answer is checked against the documented schema by a
 * JSON Schema validator of its own, and nothing is served that is not documented.
 */
import { beforeAll, describe, expect, it } from 'vitest';
import type { AdminApp } from '../../../admin/context.ts';
import { type ApiDocument, answerMisfit, operationsOf } from '../../support/openapi.ts';
import { appWithOneOfEach } from './fake-app.ts';
import { addressOf, call, SAMPLES } from './operation-samples.ts';

let document: ApiDocument;
let app: AdminApp;

beforeAll(async () => {
  ({ app } = await appWithOneOfEach());
  document = (await (await app.request('/v1/openapi.json')).json()) as ApiDocument;
});

/** The event stream's first bytes, or the whole answer. */
async function textOf(response: Response, type: string): Promise<string> {
  if (type !== 'text/event-stream') return response.text();
  const reader = response.body!.getReader();
  const first = await reader.read();
  await reader.cancel();
  return new TextDecoder().decode(first.value);
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

  it('answers each operation as it says, streams of events included', async () => {
    const wrong: string[] = [];
    for (const documented of operations()) {
      const { method, path } = documented;
      const fresh = await appWithOneOfEach();
      const key = `${method} ${path}`;
      const response = await call(fresh.app, method, path, addressOf(method, path, fresh.tokenId));
      const type = (response.headers.get('content-type') ?? '').split(';')[0]!;
      const body = await textOf(response, type);
      const { status } = response;
      const problem =
        status === (SAMPLES[key]?.status ?? 200) ? answerMisfit(document, documented, { status, type, body }) : `status ${status}`;
      if (problem !== undefined) wrong.push(`${key}: ${problem}: ${body.slice(0, 300)}`);
    }
    expect(wrong).toEqual([]);
  });

  it('names the methods of every path: others are 405', async () => {
    for (const [path, item] of Object.entries(document.paths)) {
      for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) {
        if (method.toLowerCase() in item) continue;
        const answer = await app.request(path.replace(/\{\w+\}/, '1'), { method });
        expect([path, method, answer.status]).toEqual([path, method, 405]);
        expect(
          answer.headers
            .get('allow')
            ?.split(', ')
            .map((one) => one.toLowerCase())
            .sort(),
        ).toEqual(Object.keys(item).sort());
      }
    }
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
