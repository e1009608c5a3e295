/**
 * Every documented operation refuses every kind of fault with its status, in the documented shape, under the number of its request, and
 * changes nothing. The list of operations is the OpenAPI document's, so a route that is added later is held to it.
 */
import { beforeAll, expect, it } from 'vitest';
import { withBearerTokens } from '../../../admin/server.ts';
import { type ApiDocument, type DocumentedOperation, misfit, operationsOf } from '../../support/openapi.ts';
import { appWithOneOfEach } from './fake-app.ts';
import { addressOf, call, JSON_TYPE, SAMPLES } from './operation-samples.ts';

const FORM_TYPE = 'application/x-www-form-urlencoded';
/** More than any body may have. */
const LENGTH = '9999999';

let document: ApiDocument;

beforeAll(async () => {
  const { app } = await appWithOneOfEach();
  document = (await (await app.request('/v1/openapi.json')).json()) as ApiDocument;
});

interface Fault {
  what: string;
  status: number;
  ask(): Response | Promise<Response>;
}

type Fake = Awaited<ReturnType<typeof appWithOneOfEach>>;

function faultsOf({ method, path, operation }: DocumentedOperation, { app, tokens, audit, tokenId }: Fake): Fault[] {
  const isAction = path === '/';
  // Without an action it is the status page.
  const address = isAction ? '/?Action=ListUsage' : addressOf(method, path, tokenId);
  const send = (init: RequestInit, where = address) => app.request(where, { method, ...init });
  const guarded = withBearerTokens(app, { address: '', callerOf: (token) => tokens.callerOf(token), audit });
  const withToken = (token: string) =>
    guarded(new Request(`http://localhost${address}`, { method, headers: { authorization: `Bearer ${token}` } }));
  const faults: Fault[] = [
    { what: 'another site', status: 403, ask: () => send({ headers: { host: 'evil.example' } }) },
    { what: 'a wrong token', status: 401, ask: () => withToken('wrong') },
    {
      what: 'an unknown parameter',
      status: 400,
      ask: () => call(app, method, path, `${address}${address.includes('?') ? '&' : '?'}nonsense=1`),
    },
  ];
  const scope = operation.security[0]?.bearer?.[0];
  if (scope !== undefined && scope !== 'read') {
    const reader = tokens.create({ name: 'r', scopes: ['read'] }).token;
    faults.push({ what: 'a token without the scope', status: 403, ask: () => withToken(reader) });
  }
  const { body, form } = SAMPLES[`${method} ${path}`] ?? {};
  if (body !== undefined || form !== undefined) {
    const type = form === undefined ? JSON_TYPE : FORM_TYPE;
    const typed = (text: string, given: string, more = {}) => ({
      body: text,
      headers: { 'content-type': given, 'content-length': String(text.length), ...more },
    });
    faults.push({ what: 'another content type', status: 415, ask: () => send(typed('<a/>', 'text/xml')) });
    faults.push({ what: 'a body too long', status: 413, ask: () => send(typed('x', type, { 'content-length': LENGTH })) });
    faults.push({ what: 'a body of another kind', status: 400, ask: () => send(typed('[1', type)) });
  }
  if (body !== undefined) {
    const strange = JSON.stringify({ ...(body as object), nonsense: 1 });
    faults.push({ what: 'an unknown field', status: 400, ask: () => send({ body: strange, headers: { 'content-type': JSON_TYPE } }) });
  }
  // A registry's credentials may be set for any.
  if (path.includes('{') && method !== 'PUT') {
    faults.push({ what: 'what does not exist', status: 404, ask: () => call(app, method, path, addressOf(method, path, tokenId, '4242')) });
  }
  return faults;
}

/** What is wrong with the answer to a fault; undefined when nothing is. */
async function problemOf(answer: Response, status: number, schema: object): Promise<string | undefined> {
  const text = await answer.text();
  if (answer.status !== status) return `${answer.status} and not ${status}: ${text.slice(0, 200)}`;
  const { requestId, RequestId } = JSON.parse(text) as { requestId?: string; RequestId?: string };
  if (answer.headers.get('x-request-id') !== (requestId ?? RequestId)) return 'another number in the header';
  return misfit(document, schema, JSON.parse(text));
}

it('refuses what is wrong, whatever the operation, and changes nothing', async () => {
  const wrong: string[] = [];
  const counts: Record<string, number> = {};
  for (const documented of operationsOf(document)) {
    const { method, path, operation } = documented;
    const fake = await appWithOneOfEach();
    const schema = operation.responses.default?.content?.[JSON_TYPE]?.schema;
    if (schema === undefined) {
      wrong.push(`${method} ${path}: does not say how it fails`);
      continue;
    }
    const before = JSON.stringify(fake.caches.list());
    for (const { what, status, ask } of faultsOf(documented, fake)) {
      const problem = await problemOf(await ask(), status, schema);
      if (problem !== undefined) wrong.push(`${method} ${path}: ${what}: ${problem}`);
      counts[what] = (counts[what] ?? 0) + 1;
    }
    if (JSON.stringify(fake.caches.list()) !== before) wrong.push(`${method} ${path}: something has changed`);
  }
  expect(wrong).toEqual([]);
  const all = operationsOf(document).length;
  expect(counts).toMatchObject({ 'another site': all, 'a wrong token': all, 'an unknown parameter': all });
  expect(counts['an unknown field']).toBeGreaterThan(10);
  expect(counts['what does not exist']).toBeGreaterThan(10);
});
