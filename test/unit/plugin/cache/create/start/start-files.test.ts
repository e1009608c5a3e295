/** What a start reads is found as the kernel, a shell and the dynamic loader would find it, inside the image alone, and within bounds. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readElf } from '../../../../../../plugin/cache/create/start/elf.ts';
import { ImageTree } from '../../../../../../plugin/cache/create/start/image-tree.ts';
import { readStart } from '../../../../../../plugin/cache/create/start/start-files.ts';
import { rootsOf } from '../../../../../../plugin/cache/create/start/start-process.ts';
import { Scratch } from '../../../../../support/scratch.ts';

/** A dynamic program that every machine with this test has. */
const PROGRAM = '/bin/ls';

let scratch: Scratch;
beforeEach(async () => {
  scratch = await Scratch.create('start-files');
});
afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
});

/** A directory with these files; a target instead of content makes a link. */
function root(name: string, files: Readonly<Record<string, string | Buffer | { link: string }>>): string {
  const directory = scratch.join(name);
  fs.mkdirSync(directory, { recursive: true });
  for (const [file, content] of Object.entries(files)) {
    const at = path.join(directory, file);
    fs.mkdirSync(path.dirname(at), { recursive: true });
    if (typeof content === 'object' && 'link' in content) fs.symlinkSync(content.link, at);
    else fs.writeFileSync(at, content);
  }
  return directory;
}

test('names are found through links, which never leave the image', () => {
  const tree = new ImageTree([
    root('one', {
      'usr/bin/tool': 'tool',
      bin: { link: 'usr/bin' },
      'etc/abs': { link: '/usr/bin/tool' },
      'etc/up': { link: '../../../../etc/abs' },
      'etc/loop': { link: 'loop' },
      'etc/passwd-of-host': { link: `${scratch.path}/../../../../../../../etc/hostname` },
    }),
  ]);
  for (const name of ['/bin/tool', 'bin/./tool', '/etc/abs', '/etc/up', '/../bin/../bin/tool']) {
    expect(tree.find(name)?.name, name).toBe('/usr/bin/tool');
  }
  for (const name of ['/etc/loop', '/etc/passwd-of-host', '/no/such', '/bin/tool/below', 'a\0b', `/${'x'.repeat(300)}`]) {
    expect(tree.find(name), name).toBeUndefined();
  }
  expect(tree.list('/etc', 10)).toEqual(['abs', 'loop', 'passwd-of-host', 'up']);
  expect(tree.list('/etc', 2)).toHaveLength(2);
  expect(tree.list('/bin/tool', 10)).toEqual([]);
});

test('directories are stacked as overlayfs stacks them, whiteouts included', () => {
  const top = root('top', { 'etc/both': 'top', 'file-now': 'x' });
  const bottom = root('bottom', { 'etc/both': 'bottom', 'etc/below': 'b', 'etc/gone': 'g', 'file-now/inside': 'i' });
  execFileSync('mknod', [path.join(top, 'etc/gone'), 'c', '0', '0']);
  const tree = new ImageTree([top, bottom]);
  expect(fs.readFileSync(tree.find('/etc/both')!.path, 'utf8')).toBe('top');
  expect(tree.find('/etc/below')?.path).toBe(path.join(bottom, 'etc/below'));
  expect(tree.find('/etc/gone')).toBeUndefined();
  expect(tree.find('/file-now/inside')).toBeUndefined();
});

test('the interpreter and the libraries of a program are those that the loader names', () => {
  const bytes = fs.readFileSync(PROGRAM);
  const elf = readElf((offset, length) => bytes.subarray(offset, offset + length));
  const listed = execFileSync('ldd', [PROGRAM], { encoding: 'utf8' });
  expect(elf?.interpreter).toMatch(/^\/lib.*\/ld-/);
  expect(elf?.libraries).toContain('libc.so.6');
  for (const library of elf?.libraries ?? []) expect(listed).toContain(library);
});

test('files that only begin like a program are none, however they end', () => {
  const bytes = Buffer.from(fs.readFileSync(PROGRAM).subarray(0, 4096));
  const readAt = (of: Buffer) => (offset: number, length: number) => of.subarray(Math.min(offset, of.length), offset + length);
  for (let length = 0; length < 1024; length += 7) expect(() => readElf(readAt(bytes.subarray(0, length)))).not.toThrow();
  for (let at = 16; at < 1024; at += 1) {
    const damaged = Buffer.from(bytes);
    damaged[at] = 0xff;
    expect(() => readElf(readAt(damaged))).not.toThrow();
  }
});

test('a start reads its command, what scripts call, interpreters, libraries, and data that it names', () => {
  const library = execFileSync('ldd', [PROGRAM], { encoding: 'utf8' });
  const loader = /(\/lib\S*\/ld-\S+)/.exec(library)![1]!;
  const libc = /libc\.so\.6 => (\S+)/.exec(library)![1]!;
  const tree = new ImageTree([
    root('image', {
      'entry.sh': '#!/usr/bin/env sh\nif true; then\n  helper --config /etc/app.conf\nfi\nexec "$@"\n',
      'usr/bin/env': 'env',
      'opt/bin/sh': 'sh',
      'opt/bin/helper': '#! /opt/bin/sh\nsecond\n',
      'opt/bin/second': 'second',
      'opt/bin/server': fs.readFileSync(PROGRAM),
      [loader.slice(1)]: 'loader',
      [libc.slice(1)]: 'libc',
      'etc/app.conf': 'conf',
      'etc/passwd': 'root',
      'srv/app/index.js': 'index',
      'srv/unused': 'unused',
    }),
  ]);
  const { names, bytes, entries, isComplete } = readStart(tree, {
    entrypoint: ['/entry.sh'],
    cmd: ['server', 'index.js'],
    env: ['PATH=/none:/opt/bin:/usr/bin'],
    workingDir: '/srv/app',
  });
  expect(new Set(names)).toEqual(
    new Set([
      ...['/entry.sh', '/usr/bin/env', '/opt/bin/sh', '/opt/bin/helper', '/opt/bin/second', '/opt/bin/server'],
      ...[loader, libc, '/etc/app.conf', '/etc/passwd', '/srv/app/index.js'],
    ]),
  );
  expect(bytes).toBeGreaterThan(fs.statSync(PROGRAM).size);
  expect(entries).toBeGreaterThan(names.length);
  expect(isComplete).toBe(true);
});

test('a command line for a shell is looked through', () => {
  const tree = new ImageTree([root('image', { 'bin/sh': 'sh', 'bin/cat': 'cat', 'etc/kind': 'k', 'etc/other': 'o' })]);
  expect(readStart(tree, { cmd: ['/bin/sh', '-c', 'trap "exit 0" TERM; cat /etc/kind && wait'] }).names).toEqual([
    '/bin/sh',
    '/bin/cat',
    '/etc/kind',
  ]);
});

test('what is no file is not opened, and nothing is needed', () => {
  const image = root('image', { 'etc/hosts': '' });
  execFileSync('mkfifo', [path.join(image, 'pipe')]);
  expect(readStart(new ImageTree([image]), { entrypoint: ['/pipe'], cmd: ['/etc', '', '-x'] }).names).toEqual([]);
  expect(readStart(new ImageTree([image]), {})).toMatchObject({ names: [], isComplete: true });
});

test('bytes, files and inodes are bounded, and it says so', () => {
  const tree = new ImageTree([root('image', { a: 'x'.repeat(1000), b: 'y', c: 'z' })]);
  const process = { cmd: ['/a', '/b', '/c'] };
  expect(readStart(tree, process, { maxBytes: 999 })).toMatchObject({ names: ['/b', '/c'], isComplete: false });
  expect(readStart(tree, process, { maxFiles: 1 })).toMatchObject({ names: ['/a'], isComplete: false });
  expect(readStart(tree, process, { maxLookups: 0 })).toMatchObject({ names: [], isComplete: false });
  expect(readStart(tree, process, { maxEntries: 2 })).toMatchObject({ entries: 2, isComplete: false });
  expect(readStart(tree, process, { maxWalkMs: 0 })).toMatchObject({ entries: 0, isComplete: false });
});

test('the directories of a view are those of its mount', () => {
  expect(rootsOf([{ type: 'bind', source: '/a', options: ['ro', 'rbind'] }])).toEqual(['/a']);
  expect(rootsOf([{ type: 'overlay', source: 'overlay', options: ['index=off', 'lowerdir=/top:/bottom'] }])).toEqual(['/top', '/bottom']);
});
