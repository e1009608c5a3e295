/** Sizes at which things change: directories of many blocks, files beyond 4 GiB, attributes larger than a block, deep paths. */
import { closeSync, ftruncateSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { MS_RDONLY, mount } from '../../../../plugin/kernel/mount.ts';
import { run } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { type BuiltLayer, buildLayers, writeDevice } from '../../../unit/plugin/convert/build/converted-device.ts';
import { rawEntry, rawTar } from '../../../unit/plugin/image/tar/raw-tar.ts';
import { listMounted } from './mounted-tree.ts';

async function mounted(scratch: Scratch, layers: readonly BuiltLayer[], options = { fsck: true }): Promise<string> {
  const device = scratch.join(`device-${layers.length}`);
  writeDevice(
    layers.map((layer) => layer.blob),
    layers.at(-1)!.statistics.deviceBytes,
    device,
  );
  if (options.fsck) await run('fsck.erofs', ['--extract', device], { timeoutMs: 120_000 });
  const target = scratch.join(`mount-${layers.length}`);
  await mkdir(target);
  mount({ source: device, target, fsType: 'erofs', flags: MS_RDONLY, options: '' });
  return target;
}

describe('large things, mounted by the kernel', () => {
  it('a directory of 100,000 entries is found by name, and a name more or less changes a few blocks', async () => {
    await using scratch = await Scratch.create('dir');
    const count = 100_000;
    const nameOf = (i: number): string => `entry-${((i * 7919) % count).toString().padStart(6, '0')}${'-x'.repeat(i % 9)}`;
    const entries = Array.from({ length: count }, (_, i) =>
      rawEntry({ name: `big/${nameOf(i)}`, content: i % 1000 === 0 ? String(i) : '' }),
    );
    const second = rawTar([{ name: 'big/entry-000500-between', content: 'new' }, { name: `big/.wh.${nameOf(17)}` }]);
    const layers = await buildLayers([Buffer.concat([...entries, Buffer.alloc(1024)]), second]);
    const first = await mounted(scratch, layers.slice(0, 1));
    expect(readdirSync(`${first}/big`)).toHaveLength(count);
    for (const i of [0, 1000, 50_000, 99_000]) expect(readFileSync(`${first}/big/${nameOf(i)}`, 'utf8')).toBe(String(i));
    expect(() => statSync(`${first}/big/entry-000500-between`)).toThrow(/ENOENT/);
    const both = await mounted(scratch, layers);
    expect(readdirSync(`${both}/big`)).toHaveLength(count);
    expect(readFileSync(`${both}/big/entry-000500-between`, 'utf8')).toBe('new');
    expect(() => statSync(`${both}/big/${nameOf(17)}`)).toThrow(/ENOENT/);
    // Superblock, two directory blocks, the directory's inode, the new inode.
    expect(layers[1]!.statistics.metadataBytes).toBeLessThanOrEqual(6 * 4096);
  });

  it('a sparse file of 5 GiB and a dense one of zeros cost nothing and read right', async () => {
    await using scratch = await Scratch.create('sparse');
    const source = await scratch.dir('source');
    const size = 5 * 2 ** 30 + 123;
    const fd = openSync(`${source}/sparse`, 'w');
    writeSync(fd, 'begin', 0);
    writeSync(fd, 'middle', 2 ** 32 - 3);
    writeSync(fd, 'end', size - 3);
    ftruncateSync(fd, size);
    closeSync(fd);
    const tars: Buffer[] = [];
    for (const format of ['gnu', 'posix']) {
      await run('tar', ['--sparse', `--format=${format}`, '-cf', scratch.join(`${format}.tar`), '-C', source, 'sparse']);
      tars.push(await readFile(scratch.join(`${format}.tar`)));
    }
    for (const tar of tars) {
      const [layer] = await buildLayers([tar]);
      expect(layer!.blob.length).toBeLessThan(50_000);
      // fsck.erofs reads all of the file; once is enough, below.
      const root = await mounted(scratch, [layer!], { fsck: false });
      expect(statSync(`${root}/sparse`).size).toBe(size);
      const read = (position: number, length: number): string => {
        const file = openSync(`${root}/sparse`, 'r');
        const bytes = Buffer.alloc(length);
        readSync(file, bytes, 0, length, position);
        closeSync(file);
        return bytes.toString('latin1');
      };
      expect(read(0, 6)).toBe('begin\0');
      expect(read(2 ** 32 - 4, 8)).toBe('\0middle\0');
      expect(read(size - 4, 4)).toBe('\0end');
      expect(read(3 * 2 ** 30, 4)).toBe('\0\0\0\0');
      await run('umount', [root]);
      await run('rm', ['-r', root]);
    }
    const [dense] = await buildLayers([rawTar([{ name: 'zeros', content: Buffer.alloc(2 ** 25) }])]);
    expect(dense!.statistics.dataBytes).toBe(0);
  });

  it('attributes larger than a block, deep paths, and inodes that move with all their names', async () => {
    await using scratch = await Scratch.create('deep');
    const deep = Array.from({ length: 400 }, () => 'd').join('/');
    const value = (length: number, fill: string): string => fill.repeat(length);
    const first = rawTar([
      { name: `${deep}/leaf`.slice(0, 100), content: 'leaf', pax: [['path', `${deep}/leaf`]] },
      { name: 'a/file', content: 'small file with a tail', pax: [['SCHILY.xattr.user.a', 'x']] },
      { name: 'b/link', type: '1', linkName: 'a/file' },
      { name: 'c/', type: '5' },
      { name: 'c/sub/', type: '5' },
      { name: './', type: '5', mode: 0o711 },
    ]);
    const second = rawTar([
      {
        name: 'b/again',
        type: '1',
        linkName: 'a/file',
        pax: [
          ['SCHILY.xattr.user.b', value(20_000, 'b')],
          ['SCHILY.xattr.trusted.c', value(30_000, 'c')],
        ],
      },
      { name: 'c/', type: '5', pax: [['SCHILY.xattr.user.dir', value(60_000, 'd')]] },
      {
        name: './',
        type: '5',
        mode: 0o700,
        pax: [
          ['SCHILY.xattr.user.root', value(65_000, 'r')],
          ['SCHILY.xattr.trusted.root', value(65_000, 's')],
        ],
      },
    ]);
    const layers = await buildLayers([first, second]);
    const before = await mounted(scratch, layers.slice(0, 1));
    expect(readFileSync(`${before}/${deep}/leaf`, 'utf8')).toBe('leaf');
    const listed = listMounted(await mounted(scratch, layers));
    const names = ['a/file', 'b/link', 'b/again'].map((path) => listed.get(path)!);
    expect(new Set(names.map((object) => object.ino)).size).toBe(1);
    for (const object of names) {
      expect(object).toMatchObject({ links: 3, sizeBytes: 22, value: names[0]!.value });
      expect(Object.fromEntries(Object.entries(object.xattrs).map(([name, text]) => [name, Buffer.from(text, 'base64').length]))).toEqual({
        'user.a': 1,
        'user.b': 20_000,
        'trusted.c': 30_000,
      });
    }
    expect(Buffer.from(listed.get('c')!.xattrs['user.dir']!, 'base64').toString()).toBe(value(60_000, 'd'));
    expect(listed.get('c/sub')).toMatchObject({ type: 'dir', links: 2 });
    expect(Buffer.from(listed.get('.')!.xattrs['trusted.root']!, 'base64').length).toBe(65_000);
    expect(listed.get('.')!.mode).toBe(0o700);
    expect(listed.get(`${deep}/leaf`)!.sizeBytes).toBe(4);
  });
});
