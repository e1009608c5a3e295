/** The harness itself: that the comparison of trees sees every difference that an image must not have. */
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, linkSync, mkdirSync, rmSync, symlinkSync, unlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { FIXTURES_DIR } from '../../support/fixtures.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { tarDirectory } from '../../support/tar.ts';
import { compareTrees, listTree, readListing, type TreeEntry, treeDifferences } from '../../support/tree-compare.ts';
import { writeXattr } from '../../support/xattrs.ts';

function makeTree(root: string): void {
  mkdirSync(join(root, 'd/e'), { recursive: true });
  writeFileSync(join(root, 'd/file'), 'content');
  linkSync(join(root, 'd/file'), join(root, 'd/hard'));
  writeFileSync(join(root, 'd/twin'), 'content');
  symlinkSync('file', join(root, 'd/sym'));
  writeFileSync(Buffer.concat([Buffer.from(`${root}/latin-`), Buffer.from([0xe9])]), 'x');
  execFileSync('mknod', [join(root, 'dev'), 'c', '259', '1000']);
  execFileSync('mkfifo', [join(root, 'fifo')]);
  chmodSync(join(root, 'd/twin'), 0o4711);
  chownSync(join(root, 'd/e'), 70_000, 8);
  utimesSync(join(root, 'd/twin'), 1, 1_600_000_000.25);
}

test('a tree that went through a layer tar equals the original', async () => {
  await using scratch = await Scratch.create('tree');
  const original = await scratch.dir('original');
  const copy = await scratch.dir('copy');
  makeTree(original);
  writeXattr(join(original, 'd/file'), 'trusted.note', 'hello');
  await tarDirectory(original, scratch.join('layer.tar'));
  await run('tar', ['-xpf', scratch.join('layer.tar'), '--xattrs', '--xattrs-include=*', '-C', copy]);
  expect(await compareTrees(original, copy)).toEqual([]);
  const list = await listTree(original);
  expect(list.find((e) => e.path === 'dev')?.rdev).toEqual([259, 1000]);
  expect(list.find((e) => e.path === 'd/file')?.xattrs_b64).toEqual({ 'trusted.note': Buffer.from('hello').toString('base64') });
  expect(list.find((e) => e.path_b64 !== undefined)?.path_b64).toBe(Buffer.from('latin-\xe9', 'latin1').toString('base64'));
});

test.each<[string, (root: string) => void, string[]]>([
  ['a changed byte', (root) => writeFileSync(join(root, 'd/twin'), 'contenT'), ['d/twin: sha256', 'd/twin: mtime']],
  ['permissions', (root) => chmodSync(join(root, 'd/twin'), 0o711), ['d/twin: mode']],
  ['an owner', (root) => chownSync(join(root, 'd/e'), 70_000, 9), ['d/e: gid']],
  ['a fraction of a second', (root) => utimesSync(join(root, 'd/twin'), 1, 1_600_000_000.5), ['d/twin: mtime_ns']],
  [
    'a hard link that became a copy',
    (root) => {
      unlinkSync(join(root, 'd/hard'));
      writeFileSync(join(root, 'd/hard'), 'content');
    },
    ['d/file: nlink', 'd/file: hardlink_group', 'd/hard: nlink'],
  ],
  [
    'another link target',
    (root) => {
      unlinkSync(join(root, 'd/sym'));
      symlinkSync('filf', join(root, 'd/sym'));
    },
    ['d/sym: target'],
  ],
  ['a missing entry', (root) => rmSync(join(root, 'fifo')), ['fifo: missing']],
  ['an additional entry', (root) => writeFileSync(join(root, 'new'), ''), ['new: not expected']],
  ['an extended attribute', (root) => writeXattr(join(root, 'd/twin'), 'user.x', 'y'), ['d/twin: xattrs_b64']],
])('the comparison sees %s', async (_, change, expected) => {
  await using scratch = await Scratch.create('tree');
  makeTree(scratch.path);
  const before = await listTree(scratch.path);
  change(scratch.path);
  const seen = treeDifferences(before, await listTree(scratch.path));
  for (const line of expected)
    expect(
      seen.some((s) => s.startsWith(line)),
      `${line} in ${seen.join(' | ')}`,
    ).toBe(true);
});

test('a golden layer unpacked by tar lists as the reference listed its device', async () => {
  await using scratch = await Scratch.create('tree');
  const expected = await readListing(join(FIXTURES_DIR, 'listing/native-l1.json'));
  const layer = await scratch.dir('layer');
  await run('tar', ['-xpf', join(FIXTURES_DIR, 'oci/l1.tar'), '--xattrs', '--xattrs-include=*', '--numeric-owner', '-C', layer]);
  // The device's root directory is not in the layer: it keeps what mkfs gave it. tar leaves directories it fills later with a new time.
  const withoutDirTimes = (list: TreeEntry[]): TreeEntry[] => list.map((e) => (e.type === 'dir' ? { ...e, mtime: 0, mtime_ns: 0 } : e));
  const actual = withoutDirTimes(await listTree(layer));
  expect(treeDifferences(withoutDirTimes(expected), actual, { ignorePaths: ['.', 'lost+found'] })).toEqual([]);
});
