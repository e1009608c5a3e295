/** What joins the CRI part to the rest: events that cannot be stored, and how a pulled image was resolved among names of other clients. */
import { expect, test } from 'vitest';
import type { ResolutionRow } from '../../../../db/resolution-store.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { podEvents, resolutionOf } from '../../../../plugin/main/cri.ts';
import { parseReference } from '../../../../plugin/registry/reference.ts';

test('an event that cannot be stored stops nobody', () => {
  const stored: string[] = [];
  let isFull = false;
  const store = {
    append({ type }: { type: string }): void {
      if (isFull) throw new Error('database or disk is full');
      stored.push(type);
    },
  };
  const { add } = podEvents(store, silentLogger);
  add('one', 'team/p', 'x');
  isFull = true;
  add('two', 'team/p', 'x');
  expect(stored).toEqual(['one']);
});

test('a name that is no reference, which other clients of containerd may give, hides no image', () => {
  const rows = ['Not A Name', 'r.example/team/a:1'].map((image) => ({
    image,
    lazyLayers: 2,
    totalLayers: 3,
    reason: null,
    baseDigest: null,
  }));
  const snapshotter = { resolutions: () => rows as unknown as ResolutionRow[] };
  expect(resolutionOf(snapshotter, parseReference('r.example/team/a:1'))).toEqual({ outcome: 'lazy', reason: '2 of 3 layers are lazy' });
  expect(resolutionOf(snapshotter, parseReference('r.example/team/b:1'))).toBeUndefined();
});
