/** Readers of changes: a slow one costs one entry for each cache, however much happens, and nobody is told of what it cannot see. */
import { expect, test } from 'vitest';
import type { ImageCache } from '../../../../plugin/cache/service.ts';
import { Watchers } from '../../../../plugin/cache/watchers.ts';

function begin(ids: string[]) {
  const versions = new Map(ids.map((id) => [id, 1]));
  const shown = (id: string): ImageCache => ({ imageCacheId: id, owner: 'user', version: versions.get(id) ?? 0 }) as ImageCache;
  const watchers = new Watchers((id) => (versions.has(id) ? shown(id) : undefined));
  const change = (id: string): void => {
    versions.set(id, (versions.get(id) ?? 0) + 1);
    watchers.changed(shown(id));
  };
  const remove = (id: string): void => {
    const last = shown(id);
    versions.delete(id);
    watchers.deleted(last);
  };
  const add = (id: string): void => {
    versions.set(id, 1);
    watchers.added(shown(id));
  };
  return { watchers, change, remove, add, present: ids.map(shown) };
}

async function take(changes: AsyncIterator<{ kind: string; cache: ImageCache }>, count: number): Promise<string[]> {
  const taken: string[] = [];
  for (let n = 0; n < count; n += 1) {
    const { value } = await changes.next();
    taken.push(`${value.kind} ${value.cache.imageCacheId} ${value.cache.version}`);
  }
  return taken;
}

test('a slow reader is told the newest state of each cache, once', async () => {
  const { watchers, change, remove, add, present } = begin(['a', 'b']);
  const stop = new AbortController();
  const changes = watchers.watch(present, () => true, stop.signal)[Symbol.asyncIterator]();
  expect(await take(changes, 2)).toEqual(['added a 1', 'added b 1']);
  for (let n = 0; n < 10_000; n += 1) change('a');
  add('c');
  change('c');
  add('d');
  remove('d');
  remove('b');
  expect(await take(changes, 3)).toEqual(['changed a 10001', 'added c 2', 'deleted b 1']);
  stop.abort();
  expect((await changes.next()).done).toBe(true);
});

test('a reader hears of what passes its filter alone, and of the end while it waits', async () => {
  const { watchers, change, present } = begin(['a', 'b']);
  const changes = watchers.watch(present, ({ imageCacheId }) => imageCacheId === 'b', new AbortController().signal)[Symbol.asyncIterator]();
  expect(await take(changes, 1)).toEqual(['added b 1']);
  change('a');
  const next = changes.next();
  watchers.stop();
  expect((await next).done).toBe(true);
});

test('readers are bounded, and one that never reads is forgotten with its signal', () => {
  const { watchers, present } = begin(['a']);
  const stop = new AbortController();
  for (let n = 0; n < 200; n += 1) watchers.watch(present, () => true, stop.signal);
  expect(() => watchers.watch(present, () => true, stop.signal)).toThrowError(expect.objectContaining({ code: 'ResourceExhausted' }));
  stop.abort();
  watchers.watch(present, () => true, new AbortController().signal);
});
