/** Whatever is sent, the admin API answers with a refusal of its one shape or does it: never with 500, and nothing hangs. Time-boxed; prints its seed. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fakeApp } from '../../unit/admin/fake-app.ts';

const SECONDS = 3;
const run = { interruptAfterTimeLimit: SECONDS * 1000, numRuns: 100_000, endOnFailure: true, verbose: 1 } as const;

const word = fc.oneof(
  fc.string({ maxLength: 40 }),
  fc.constantFrom('web', 'nginx:1.27', 'imc-00000000000000000001', '', '1', 'true', '__proto__'),
);
const value = fc.oneof(word, fc.integer(), fc.double(), fc.boolean(), fc.constant(null));
const field = fc.oneof(
  fc.constantFrom(
    'imageCacheName',
    'images',
    'imageCacheSize',
    'retentionDays',
    'tags',
    'flash',
    'imageRegistryCredentials',
    'clientToken',
    'cloud',
  ),
  fc.constantFrom(
    'scopes',
    'name',
    'expiresInDays',
    'bytes',
    'reference',
    'userName',
    'password',
    'repository',
    'request',
    'filter',
    'url',
  ),
  word,
);
const body = fc.oneof(
  fc.dictionary(field, fc.oneof(value, fc.array(value, { maxLength: 25 }), fc.dictionary(word, value, { maxKeys: 4 })), { maxKeys: 6 }),
  fc.array(value, { maxLength: 3 }),
  value,
);
const path = fc.constantFrom(
  ...[
    '/v1/image-caches',
    '/v1/image-caches:match',
    '/v1/image-caches/imc-x',
    '/v1/image-caches/imc-x/events',
    '/v1/tokens',
    '/v1/tokens/x',
  ],
  ...[
    '/v1/conversions',
    '/v1/conversion-rules',
    '/v1/conversion-rules/1',
    '/v1/convert/notifications',
    '/v1/registries/r.example',
    '/v1/store:evict',
  ],
  ...['/v1/materialize', '/v1/snapshots', '/v1/events', '/v1/usage', '/v1/conversions/7/log'],
);
const method = fc.constantFrom('GET', 'POST', 'PUT', 'PATCH', 'DELETE');
/** Decoding may fail, and says so; that is an answer, too. */
const query = fc.dictionary(
  fc.oneof(word, fc.constantFrom('limit', 'after', 'tag', 'id', 'status', 'since', 'matchImage', 'dryRun')),
  word,
  { maxKeys: 3 },
);

test('REST', async () => {
  const rates = { readsPerSecond: 1e9, changesPerSecond: 1e9 };
  await fc.assert(
    fc.asyncProperty(method, path, query, body, async (verb, where, asked, sent) => {
      const { app } = fakeApp({ rates });
      const payload = verb === 'GET' ? {} : { body: JSON.stringify(sent), headers: { 'content-type': 'application/json' } };
      const response = await app.request(`${where}?${new URLSearchParams(asked)}`, { method: verb, ...payload });
      const text = await response.text();
      expect(response.status).toBeLessThan(500);
      if (response.status >= 400) {
        expect(JSON.parse(text)).toMatchObject({ code: expect.any(String), message: expect.any(String), requestId: expect.any(String) });
      }
    }),
    run,
  );
});

const parameter = fc.oneof(
  word,
  fc.constantFrom(
    'ImageCacheName',
    'Image.1',
    'Image.2',
    'Tag.1.Key',
    'Tag.1.Value',
    'ImageCacheId',
    'RetentionDays',
    'DryRun',
    'Limit',
    'NextToken',
  ),
  fc.constantFrom(
    'ImageRegistryCredential.1.Server',
    'ImageRegistryCredential.1.Password',
    'AcrRegistryInfo.1.InstanceId',
    'VSwitchId',
    'MatchImage.1',
  ),
);
const action = fc.constantFrom('CreateImageCache', 'DescribeImageCaches', 'UpdateImageCache', 'DeleteImageCache', 'ListUsage', 'Nothing');

test('the vendor’s actions', async () => {
  const rates = { readsPerSecond: 1e9, changesPerSecond: 1e9 };
  await fc.assert(
    fc.asyncProperty(action, fc.dictionary(parameter, word, { maxKeys: 6 }), fc.boolean(), async (name, parameters, isForm) => {
      const { app } = fakeApp({ rates });
      const params = new URLSearchParams({ ...parameters, Action: name });
      const response = isForm ? await app.request('/', { method: 'POST', body: params }) : await app.request(`/?${params}`);
      expect(response.status).toBeLessThan(500);
      expect(await response.json()).toMatchObject(response.status < 400 ? { RequestId: expect.any(String) } : { Code: expect.any(String) });
    }),
    run,
  );
});
