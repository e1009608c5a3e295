/** The vendor's RPC actions: names, shapes and codes of R118, R119, R129, R130, R132 and R133, as query and as form. */
import { expect, test } from 'vitest';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { fakeApp } from './fake-app.ts';

function serve(caches = new MemoryCaches()) {
  const { app, audited } = fakeApp({ caches });
  type Named = Record<string, string>;
  // biome-ignore lint/suspicious/noExplicitAny: answers are compared, not used
  const read = async (response: Response): Promise<{ status: number; body: any }> => ({
    status: response.status,
    body: await response.json(),
  });
  return {
    ...{ app, caches, audited },
    byQuery: async (params: Named) => read(await app.request(`/?${new URLSearchParams(params)}`)),
    byForm: async (params: Named) => read(await app.request('/', { method: 'POST', body: new URLSearchParams(params) })),
  };
}

const CREATE = {
  Action: 'CreateImageCache',
  Version: '2018-08-08',
  RegionId: 'cn-hangzhou',
  ImageCacheName: 'web',
  'Image.1': 'registry.example/team/app:1',
  'Image.2': 'nginx:1.27',
};

test('a cache is made with every parameter of the vendor, and described with every field', async () => {
  const { byForm, byQuery, caches } = serve();
  const made = await byForm({
    ...CREATE,
    ...{ ZoneId: 'z', SecurityGroupId: 'sg', VSwitchId: 'v-1,v-2', EipInstanceId: 'eip', ResourceGroupId: 'rg', ClientToken: 'once' },
    ...{
      ImageCacheSize: '30',
      RetentionDays: '7',
      AutoMatchImageCache: 'true',
      Flash: 'true',
      FlashCopyCount: '1',
      StandardCopyCount: '2',
    },
    ...{ 'ImageRegistryCredential.1.Server': 'registry.example', 'ImageRegistryCredential.1.UserName': 'u' },
    ...{ 'ImageRegistryCredential.1.Password': 'p', 'Tag.1.Key': 'team', 'Tag.1.Value': 'a', 'Tag.2.Key': 'bare', Annotations: '{}' },
    ...{ 'AcrRegistryInfo.1.InstanceId': 'cri-1', 'AcrRegistryInfo.1.RegionId': 'cn-hangzhou', 'AcrRegistryInfo.1.Domain.1': 'x.example' },
    ...{ PlainHttpRegistry: 'plain.example:5000,other.example', InsecureRegistry: 'self.example', EliminationStrategy: 'LRU' },
  });
  expect(made).toMatchObject({
    status: 200,
    body: { RequestId: expect.any(String), ImageCacheId: expect.stringMatching(/^imc-/), ContainerGroupId: 'eci-1' },
  });
  const id = made.body.ImageCacheId as string;
  expect(caches.get(id)).toMatchObject({
    ...{ imageCacheSize: 30, retentionDays: 7, autoMatchImageCache: true, flash: true, eliminationStrategy: 'LRU', resourceGroupId: 'rg' },
    tags: [
      { key: 'team', value: 'a' },
      { key: 'bare', value: '' },
    ],
    plainHttpRegistry: ['plain.example:5000', 'other.example'],
    cloud: { RegionId: 'cn-hangzhou', ZoneId: 'z', VSwitchId: 'v-1,v-2', FlashCopyCount: '1' },
  });
  caches.advance(id, 'Ready', 100, {
    snapshotId: 's-1',
    lastMatchedTime: '2026-02-01T00:00:00.000Z',
    expireDateTime: '2026-02-07T00:00:00.000Z',
  });
  const { body } = await byQuery({ Action: 'DescribeImageCaches', ImageCacheId: id });
  expect(body).toMatchObject({ RequestId: expect.any(String), TotalCount: 1 });
  expect(body.ImageCaches[0]).toEqual({
    ...{ ImageCacheId: id, ImageCacheName: 'web', ImageCacheSize: 30, Images: ['registry.example/team/app:1', 'nginx:1.27'] },
    ...{ Status: 'Ready', Progress: '100%', CreationTime: expect.any(String), ExpireDateTime: '2026-02-07T00:00:00.000Z' },
    ...{ LastMatchedTime: '2026-02-01T00:00:00.000Z', RegionId: 'cn-hangzhou', ResourceGroupId: 'rg', ContainerGroupId: 'eci-1' },
    ...{
      SnapshotId: 's-1',
      EliminationStrategy: 'LRU',
      RetentionDays: 7,
      Tags: [
        { Key: 'team', Value: 'a' },
        { Key: 'bare', Value: '' },
      ],
    },
    Events: expect.arrayContaining([
      expect.objectContaining({
        Type: 'Normal',
        Reason: 'Ready',
        Count: 1,
        Name: expect.any(String),
        FirstTimestamp: expect.any(String),
        LastTimestamp: expect.any(String),
      }),
    ]),
  });
});

test('filters and pages of DescribeImageCaches', async () => {
  const { byQuery } = serve();
  for (const n of ['1', '2', '3'])
    await byQuery({ Action: 'CreateImageCache', ImageCacheName: `c${n}`, 'Image.1': `app:${n}`, 'Tag.1.Key': 'n', 'Tag.1.Value': n });
  const found = async (params: Record<string, string>) => {
    const { body } = await byQuery({ Action: 'DescribeImageCaches', ...params });
    return [body.ImageCaches.map((cache: { ImageCacheName: string }) => cache.ImageCacheName), body.TotalCount, body.NextToken];
  };
  expect(await found({ Limit: '2' })).toEqual([['c3', 'c2'], 3, expect.any(String)]);
  expect(await found({ Limit: '2', NextToken: '2' })).toEqual([['c1'], 3, undefined]);
  expect(await found({ 'Tag.1.Key': 'n', 'Tag.1.Value': '2' })).toEqual([['c2'], 1, undefined]);
  expect(await found({ ImageCacheName: 'c1' })).toEqual([['c1'], 1, undefined]);
  expect(await found({ Image: 'app:3' })).toEqual([['c3'], 1, undefined]);
  expect(await found({ 'MatchImage.1': 'app:1', 'MatchImage.2': 'app:2', ImageFullMatch: 'false', ImageMatchCountRequest: '1' })).toEqual([
    ['c2', 'c1'],
    2,
    undefined,
  ]);
  expect(await found({ SnapshotId: 's-none' })).toEqual([[], 0, undefined]);
});

test('update, delete and usage', async () => {
  const { byForm, byQuery, caches, audited } = serve();
  const { ImageCacheId } = (await byForm(CREATE)).body;
  expect(await byForm({ Action: 'UpdateImageCache', ImageCacheId, RetentionDays: '3' })).toEqual({
    status: 200,
    body: { RequestId: expect.any(String) },
  });
  expect(caches.get(ImageCacheId).retentionDays).toBe(3);
  expect((await byQuery({ Action: 'ListUsage', RegionId: 'cn-hangzhou' })).body.Attributes).toMatchObject({
    ...{ MaxImageCacheCount: 500, UsedImageCacheCount: 1, MaxAutoImageCacheCount: 25, UsedAutoImageCacheCount: 0 },
  });
  expect((await byQuery({ Action: 'DeleteImageCache', ImageCacheId })).status).toBe(200);
  expect(caches.usage().usedImageCacheCount).toBe(0);
  expect(audited.map((line) => line.split(' ').slice(0, 3).join(' '))).toEqual([
    'api-change / CreateImageCache',
    'api-change / UpdateImageCache',
    'api-change / DeleteImageCache',
  ]);
});

test.each([
  ['an unknown action', { Action: 'RunInstances' }, 404, 'InvalidAction.NotFound'],
  ['no image', { ...CREATE, 'Image.1': '', 'Image.2': '' }, 400, 'InvalidParameter'],
  ['a missing name', { Action: 'CreateImageCache', 'Image.1': 'a' }, 400, 'InvalidParameter'],
  ['a missing id', { Action: 'DeleteImageCache' }, 400, 'MissingParameter'],
  ['an unknown parameter', { ...CREATE, Imgae: 'x' }, 400, 'InvalidParameter'],
  ['a size out of range', { ...CREATE, ImageCacheSize: '19' }, 400, 'InvalidParameter'],
  ['a number that is none', { ...CREATE, RetentionDays: '1e3' }, 400, 'InvalidParameter'],
  ['a boolean that is none', { ...CREATE, Flash: 'yes' }, 400, 'InvalidParameter'],
  ['an index that is none', { ...CREATE, 'Image.x': 'a' }, 400, 'InvalidParameter'],
  ['an index beyond all lists', { ...CREATE, 'Image.101': 'a' }, 400, 'InvalidParameter'],
  ['eleven switches', { ...CREATE, VSwitchId: 'a,b,c,d,e,f,g,h,i,j,k' }, 400, 'InvalidParameter'],
  ['a registry instance without id', { ...CREATE, 'AcrRegistryInfo.1.RegionId': 'x' }, 400, 'InvalidParameter'],
  ['a dry run', { ...CREATE, DryRun: 'true' }, 400, 'DryRunOperation'],
  ['a reserved name', { ...CREATE, ImageCacheName: 'auto-create-for-x' }, 400, 'InvalidParameter'],
  ['an id that does not exist', { Action: 'UpdateImageCache', ImageCacheId: 'imc-x', RetentionDays: '1' }, 404, 'ImageCacheNotFound'],
])('%s is refused with its code, and nothing changes', async (_, params, status, code) => {
  const { byForm, caches } = serve();
  const answer = await byForm(params as Record<string, string>);
  expect(answer).toMatchObject({
    status,
    body: { Code: code, Message: expect.any(String), RequestId: expect.any(String), HostId: 'localhost' },
  });
  expect(caches.usage().usedImageCacheCount).toBe(0);
});

test('R133: duplicates, quota, state, no change, and a token that is used for something else', async () => {
  const { byForm, caches } = serve(new MemoryCaches({ quota: 1 }));
  const { ImageCacheId } = (await byForm({ ...CREATE, ClientToken: 't' })).body;
  const update = { Action: 'UpdateImageCache', ImageCacheId };
  for (const [params, status, code] of [
    [CREATE, 400, 'ImageCache.NameDuplicated'],
    [{ ...CREATE, ImageCacheName: 'other', ClientToken: 't' }, 400, 'IdempotentParameterMismatch'],
    [{ ...CREATE, ImageCacheName: 'other' }, 403, 'QuotaExceeded'],
    [{ ...update, 'Image.1': 'b' }, 400, 'ImageCache.IncorrectStatus'],
    [{ ...update, ImageCacheName: 'web' }, 400, 'NoNeedUpdate'],
  ] as const) {
    expect(await byForm(params as Record<string, string>)).toMatchObject({ status, body: { Code: code } });
  }
  expect((await byForm({ ...CREATE, ClientToken: 't' })).body.ImageCacheId).toBe(ImageCacheId);
  expect(caches.get(ImageCacheId).version).toBe(1);
});

test('HEAD changes nothing', async () => {
  const { app, caches } = serve();
  expect((await app.request(`/?${new URLSearchParams(CREATE)}`, { method: 'HEAD' })).status).toBe(405);
  expect((await app.request('/?Action=ListUsage', { method: 'HEAD' })).status).toBe(200);
  expect(caches.usage().usedImageCacheCount).toBe(0);
});

test('a parameter that comes twice is refused, also once in the query and once in the form; other content types are 415', async () => {
  const { app } = serve();
  expect((await app.request('/?Action=ListUsage&Action=ListUsage')).status).toBe(400);
  const both = await app.request('/?RegionId=a&Action=ListUsage', { method: 'POST', body: new URLSearchParams({ RegionId: 'b' }) });
  expect(both.status).toBe(400);
  const json = await app.request('/', {
    method: 'POST',
    body: '{}',
    headers: { 'content-type': 'application/json', 'content-length': '2' },
  });
  expect(json.status).toBe(415);
});
