/** What caches own, on disk: durable, forgotten when it is nothing, and a damaged file harms no other cache. */
import { readdir, writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { OwnedCaches, type OwnedImage } from '../../../../../plugin/cache/create/owned.ts';
import { Scratch } from '../../../../support/scratch.ts';

let scratch: Scratch;
beforeEach(async () => {
  scratch = await Scratch.create('owned');
});
afterEach(() => scratch[Symbol.asyncDispose]());

const digest = (n: number) => `sha256:${String(n).padStart(64, '0')}` as const;
const image: OwnedImage = {
  reference: 'registry.example/app:1',
  names: ['registry.example/app:1'],
  target: { digest: digest(1), mediaType: 'application/vnd.oci.image.manifest.v1+json', sizeBytes: 500 },
  platformDigest: digest(1),
  configDigest: digest(2),
  chainId: digest(3),
  blobs: [{ digest: digest(4), sizeBytes: 10, repositories: [{ host: 'registry.example', repository: 'app' }] }],
};

const open = () => OwnedCaches.open(scratch.join('caches'), silentLogger);

test('what was written is there in the next process, and nothing is no file', async () => {
  const owned = await open();
  await owned.change('imc-a', (cache) => ({ ...cache, making: true }));
  await owned.change('imc-a', (cache) => ({ ...cache, making: false, ready: [image] }));
  expect((await open()).get('imc-a')).toEqual({ cacheId: 'imc-a', making: false, ready: [image], leaving: [] });
  await owned.change('imc-a', (cache) => ({ ...cache, ready: [] }));
  expect(owned.all()).toEqual([]);
  expect(await readdir(scratch.join('caches'))).toEqual([]);
});

test('changes of one cache come one after the other', async () => {
  const owned = await open();
  const add = (n: number) => owned.change('imc-a', (cache) => ({ ...cache, ready: [...cache.ready, { ...image, reference: `app:${n}` }] }));
  await Promise.all([1, 2, 3, 4].map(add));
  expect(owned.get('imc-a')?.ready.map(({ reference }) => reference)).toEqual(['app:1', 'app:2', 'app:3', 'app:4']);
});

test('a damaged file counts as a cache that is being made, so that it is cleared', async () => {
  const owned = await open();
  await owned.change('imc-a', (cache) => ({ ...cache, ready: [image] }));
  await writeFile(scratch.join('caches', 'imc-b.json'), '{"version":1,"cacheId":"imc-b"}');
  const again = await open();
  expect(again.get('imc-a')?.ready).toHaveLength(1);
  expect(again.get('imc-b')).toEqual({ cacheId: 'imc-b', making: true, ready: [], leaving: [] });
});

test('a name that is no cache id writes nothing', async () => {
  const owned = await open();
  await expect(owned.change('../imc-a', (cache) => ({ ...cache, making: true }))).rejects.toMatchObject({ code: 'InvalidArgument' });
  expect(await readdir(scratch.join('caches'))).toEqual([]);
});
