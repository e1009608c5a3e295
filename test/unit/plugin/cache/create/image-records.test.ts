/** Image records of caches: named and labelled as CRI's own, given back when somebody removes them, gone when nobody wants them. */
import { expect, test } from 'vitest';
import { changesToKeep, changesToLeave, changesToMake, knowsPinned, usedBy } from '../../../../../plugin/cache/create/image-records.ts';
import type { OwnedImage } from '../../../../../plugin/cache/create/owned.ts';
import type { ImageRecord } from '../../../../../plugin/snapshotter/containerd/image-client.ts';

const digest = (n: number) => `sha256:${String(n).padStart(64, '0')}` as const;

function image(n: number, tag = 'registry.example/app:1'): OwnedImage {
  return {
    reference: tag,
    names: [tag, `registry.example/app@${digest(n)}`, digest(n + 100)],
    target: { digest: digest(n), mediaType: 'application/vnd.oci.image.manifest.v1+json', sizeBytes: 500 },
    platformDigest: digest(n),
    configDigest: digest(n + 100),
    chainId: digest(n + 200),
    blobs: [],
  };
}

/** What containerd has after the changes, as its image service applies them. */
function applied(records: readonly ImageRecord[], changes: ReturnType<typeof changesToKeep>): Map<string, ImageRecord> {
  const after = new Map(records.map((record) => [record.name, record]));
  for (const { name, put, label, isDeleted } of changes) {
    const before = after.get(name);
    if (put !== undefined) after.set(name, { ...put, labels: { ...before?.labels, ...put.labels } });
    if (label !== undefined && before !== undefined) {
      const labels = Object.entries({ ...before.labels, ...label.labels }).filter(([, value]) => value !== '');
      after.set(name, { ...before, labels: Object.fromEntries(labels) });
    }
    if (isDeleted === true) after.delete(name);
  }
  return after;
}

const pulled = (name: string, n: number): ImageRecord => ({
  name,
  target: image(n).target,
  labels: { 'io.cri-containerd.image': 'managed' },
});
const none = new Map<string, OwnedImage>();

test('every name is made, labelled as CRI labels its own, and goes again', () => {
  const made = applied([], changesToMake(image(1), new Map(), true));
  expect([...made.keys()]).toEqual(image(1).names);
  for (const record of made.values()) {
    expect(record.target.digest).toBe(digest(1));
    expect(record.labels).toMatchObject({ 'io.cri-containerd.image': 'managed', 'io.cri-containerd.pinned': 'pinned' });
  }
  expect(changesToKeep(image(1), made, true)).toEqual([]);
  expect(applied([...made.values()], changesToLeave(image(1), made, none, true)).size).toBe(0);
});

test('what somebody removes comes back, what somebody moved stays where it is', () => {
  const made = applied([], changesToMake(image(1), new Map(), false));
  made.delete(image(1).names[0]!);
  expect(applied([...made.values()], changesToKeep(image(1), made, false)).get(image(1).names[0]!)?.target.digest).toBe(digest(1));
  const moved = new Map(made).set(image(1).names[0]!, pulled(image(1).names[0]!, 2));
  expect(changesToKeep(image(1), moved, false)).toEqual([]);
});

test('an image that was just resolved takes its tag', () => {
  const tag = image(1).names[0]!;
  const after = applied([pulled(tag, 1)], changesToMake(image(2), new Map([[tag, pulled(tag, 1)]]), false));
  expect(after.get(tag)?.target.digest).toBe(digest(2));
});

test('records that others made stay, without the pin that was put on them', () => {
  const before = image(1).names.map((name) => pulled(name, 1));
  const found = applied(before, changesToMake(image(1), new Map(before.map((one) => [one.name, one])), true));
  for (const { labels } of found.values()) expect(labels['io.cri-containerd.pinned']).toBe('pinned');
  const after = applied([...found.values()], changesToLeave(image(1), found, none, true));
  expect([...after.values()]).toEqual(before);
});

test('a pin that others made stays', () => {
  const labels = { 'io.cri-containerd.image': 'managed', 'io.cri-containerd.pinned': 'pinned' };
  const before = image(1).names.map((name) => ({ ...pulled(name, 1), labels }));
  const records = new Map(before.map((one) => [one.name, one]));
  const found = applied(before, changesToMake(image(1), records, true));
  expect([...applied([...found.values()], changesToLeave(image(1), found, none, true)).values()]).toEqual(before);
});

test('a pull by somebody else takes our claim away: the record is theirs', () => {
  const made = applied([], changesToMake(image(1), new Map(), false));
  const tag = image(1).names[0]!;
  made.set(tag, pulled(tag, 1));
  const after = applied([...made.values()], changesToLeave(image(1), made, none, false));
  expect([...after.keys()]).toEqual([tag]);
});

test('a container uses an image by whatever name of it CRI noted', () => {
  const held = image(1);
  const alias: ImageRecord = { name: 'registry.example/app:latest', target: held.target, labels: {} };
  const records = new Map([[alias.name, alias]]);
  const used = usedBy([{ image: alias.name }, { image: 'gone:1' }], records);
  expect([...used].sort()).toEqual(['gone:1', alias.name, held.target.digest].sort());
});

test('names that another cached image has stay, and are its again', () => {
  const [old, next] = [image(1), image(2)];
  const tag = old.names[0]!;
  const records = applied(
    [...applied([], changesToMake(old, new Map(), false)).values()],
    changesToMake(next, applied([], changesToMake(old, new Map(), false)), false),
  );
  expect(records.get(tag)?.target.digest).toBe(digest(2));
  // An update that failed: the new image goes, the old one keeps serving.
  const wanted = new Map(old.names.map((name): [string, OwnedImage] => [name, old]));
  const after = applied([...records.values()], changesToLeave(next, records, wanted, false));
  expect([...after.keys()].sort()).toEqual([...old.names].sort());
  expect(after.get(tag)?.target.digest).toBe(digest(1));
});

test.each([
  ['1.6.20~ds1', false],
  ['v1.7.24', true],
  ['2.1.9', true],
  ['10.0.0', true],
  ['', false],
  ['unknown', false],
])('containerd %s knows pinned images: %s', (version, knows) => {
  expect(knowsPinned(version)).toBe(knows);
});
