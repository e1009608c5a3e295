/** A good request for every operation of the OpenAPI document. */
import type { AdminApp } from '../../../admin/context.ts';

export const JSON_TYPE = 'application/json';
const IMC = 'imc-00000000000000000001';
const RULE = { repository: 'registry.example/team/app' };
/** A request for each operation; the key is `METHOD path` of the document. `?` begins a query; the values fill `{…}`. */
export const SAMPLES: Readonly<Record<string, { path?: string; body?: unknown; form?: Record<string, string>; status?: number }>> = {
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
  'GET /v1/audit': { path: '?limit=10&kind=change' },
  'GET /v1/pods/{pod}': { path: 'team%2Fweb-0' },
  'DELETE /v1/images': { path: '?reference=registry.example/team/app:1' },
};

/** The address of an operation's sample, with another value for its placeholder if wanted. */
export function addressOf(method: string, path: string, tokenId: string, other?: string): string {
  const value = other ?? SAMPLES[`${method} ${path}`]?.path ?? '';
  return path.includes('{') ? path.replace(/\{\w+\}/, value === '' ? tokenId : value) : path + value;
}

/** Sends the sample of an operation. */
export function call(target: AdminApp, method: string, path: string, address: string): Response | Promise<Response> {
  const { body, form } = SAMPLES[`${method} ${path}`] ?? {};
  const payload = form === undefined ? (body === undefined ? {} : { body: JSON.stringify(body) }) : { body: new URLSearchParams(form) };
  const headers = body === undefined ? {} : { 'content-type': JSON_TYPE };
  return target.request(address, { method, ...payload, headers });
}
