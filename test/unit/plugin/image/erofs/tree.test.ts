import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { MODE_TYPE } from '../../../../../plugin/image/erofs/format.ts';
import { FileTree } from '../../../../../plugin/image/erofs/tree.ts';

const ATTRIBUTES = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1, mtimeNanoseconds: 0, xattrs: 0 };

function usedBytes(): number {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  gc();
  gc();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

describe('file tree', () => {
  it('holds objects in at most 500 bytes each, so that a million fit half a gigabyte', () => {
    const count = 300_000;
    const before = usedBytes();
    const tree = new FileTree();
    tree.beginLayer(1);
    let directory = tree.root;
    for (let i = 0; i < count; i += 1) {
      // Parts of a longer text, as a tar's names are.
      const path = `usr/lib/node_modules/package-${i}/some-file-with-a-usual-name-${i}.d.ts`;
      if (i % 12 === 0)
        directory = tree.create(tree.root, path.slice(21, 21 + path.slice(21).indexOf('/')), MODE_TYPE.directory, ATTRIBUTES);
      else tree.create(directory, path.slice(path.lastIndexOf('/') + 1), MODE_TYPE.file, ATTRIBUTES);
    }
    tree.endLayer();
    const each = (usedBytes() - before) / count;
    expect(tree.inodes.liveCount).toBe(count + 1);
    expect(each).toBeLessThan(500);
  });

  it('uses the rows of removed objects again, but not before the layer ends', () => {
    const tree = new FileTree();
    tree.beginLayer(1);
    for (let i = 0; i < 10; i += 1) tree.create(tree.root, `f${i}`, MODE_TYPE.file, ATTRIBUTES);
    for (let i = 0; i < 10; i += 1) tree.remove(tree.root, `f${i}`);
    tree.create(tree.root, 'during', MODE_TYPE.file, ATTRIBUTES);
    const rows = tree.inodes.count;
    tree.endLayer();
    tree.beginLayer(2);
    for (let i = 0; i < 10; i += 1) tree.create(tree.root, `g${i}`, MODE_TYPE.file, ATTRIBUTES);
    expect(tree.inodes.count).toBe(rows);
    expect(tree.inodes.liveCount).toBe(12);
  });

  it('takes marks that repeat themselves as one: they cost nothing, however full the directory is', () => {
    const tree = new FileTree();
    const many = 100_000;
    tree.beginLayer(1);
    tree.create(tree.root, 'lower', MODE_TYPE.file, ATTRIBUTES);
    tree.endLayer();
    tree.beginLayer(2);
    const directory = tree.create(tree.root, 'd', MODE_TYPE.directory, ATTRIBUTES);
    for (let i = 0; i < many; i += 1) tree.create(directory, `f${i}`, MODE_TYPE.file, ATTRIBUTES);
    // Looking through the directory each time would take minutes.
    for (let i = 0; i < many; i += 1) {
      tree.hideLower(directory);
      tree.whiteout(tree.root, 'd');
      tree.hideLower(tree.root);
    }
    expect(tree.lookup(tree.root, 'lower')).toBeUndefined();
    expect(tree.namesOf(directory).size).toBe(many);
    tree.endLayer();
    tree.beginLayer(3);
    tree.hideLower(tree.root);
    expect(tree.namesOf(tree.root).size).toBe(0);
  });

  it('tells which inodes on the device changed, and forgets them with the layer', () => {
    const tree = new FileTree();
    tree.beginLayer(1);
    const file = tree.create(tree.root, 'file', MODE_TYPE.file, ATTRIBUTES);
    expect(tree.changedInodes.size).toBe(0);
    tree.inodes.position[file] = 4096;
    tree.endLayer();
    tree.beginLayer(2);
    tree.addLink(tree.root, 'link', file);
    expect([...tree.changedInodes]).toEqual([file]);
    expect(tree.isOwn(tree.root, 'link', file)).toBe(true);
    expect(tree.isOwn(tree.root, 'file', file)).toBe(false);
    tree.whiteout(tree.root, 'file');
    tree.whiteout(tree.root, 'link');
    expect([...tree.namesOf(tree.root).keys()]).toEqual(['link']);
    tree.endLayer();
    expect(tree.changedInodes.size + tree.changedDirectories.size).toBe(0);
  });
});
