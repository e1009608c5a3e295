/** Ordinary snapshots: life cycle, errors, labels, usage, and what survives when files and database disagree. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs/promises';
import path from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { NEVER_ABORTED, SnapshotterHarness } from '../../../support/snapshotter-harness.ts';

let harness: SnapshotterHarness;
beforeEach(async () => {
  harness = await SnapshotterHarness.open({ mountOptions: ['metacopy=off'], remapIds: true });
});
afterEach(async () => {
  await harness[Symbol.asyncDispose]();
});

const snapshotsDir = () => path.join(harness.root, 'root', 'snapshots');

async function commit(name: string, parent = ''): Promise<string> {
  const [mount] = await harness.snapshotter.prepare(`${name}-active`, parent, {}, NEVER_ABORTED);
  const upper = mount!.options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length) ?? mount!.source;
  await fs.writeFile(path.join(upper, 'file'), 'x'.repeat(100_000));
  await harness.snapshotter.commit(name, `${name}-active`, {}, NEVER_ABORTED);
  return upper;
}

test('errors have the codes that containerd acts on', async () => {
  await commit('base');
  const { snapshotter } = harness;
  const code = (wanted: string) => expect.objectContaining({ code: wanted });
  expect(() => snapshotter.stat('none')).toThrowError(code('NotFound'));
  expect(() => snapshotter.remove('none')).toThrowError(code('NotFound'));
  await expect(snapshotter.prepare('a', 'none', {}, NEVER_ABORTED)).rejects.toEqual(code('NotFound'));
  await expect(snapshotter.mounts('base', NEVER_ABORTED)).rejects.toEqual(code('FailedPrecondition'));
  await snapshotter.prepare('a', 'base', {}, NEVER_ABORTED);
  await expect(snapshotter.prepare('a', 'base', {}, NEVER_ABORTED)).rejects.toEqual(code('AlreadyExists'));
  await expect(snapshotter.prepare('b', 'a', {}, NEVER_ABORTED)).rejects.toEqual(code('InvalidArgument'));
  await expect(snapshotter.prepare('', '', {}, NEVER_ABORTED)).rejects.toEqual(code('InvalidArgument'));
  await expect(snapshotter.commit('base', 'a', {}, NEVER_ABORTED)).rejects.toEqual(code('AlreadyExists'));
  await expect(snapshotter.commit('x', 'base', {}, NEVER_ABORTED)).rejects.toEqual(code('FailedPrecondition'));
  expect(() => snapshotter.remove('base')).toThrowError(code('FailedPrecondition'));
  expect(() => snapshotter.update('a', {}, ['parent'])).toThrowError(code('InvalidArgument'));
});

test('one key prepared many times at once is made once, and nothing is left of the others', async () => {
  const results = await Promise.allSettled(Array.from({ length: 16 }, () => harness.snapshotter.prepare('same', '', {}, NEVER_ABORTED)));
  expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  expect(await fs.readdir(snapshotsDir())).toHaveLength(1);
});

test('field masks change only what they name, and an empty value removes a label', async () => {
  await harness.snapshotter.prepare('a', '', { keep: '1', change: '1', drop: '1' }, NEVER_ABORTED);
  const { createdUs } = harness.snapshotter.stat('a');
  const updated = harness.snapshotter.update('a', { change: '2', ignored: 'x', 'dots.in/key': '3' }, [
    'labels.change',
    'labels.drop',
    'labels.dots.in/key',
  ]);
  expect(updated.labels).toEqual({ keep: '1', change: '2', 'dots.in/key': '3' });
  expect(updated.createdUs).toBe(createdUs);
  expect(updated.updatedUs).toBeGreaterThanOrEqual(createdUs);
  expect(harness.snapshotter.update('a', { all: 'new' }, []).labels).toEqual({ all: 'new' });
});

test('usage of a committed snapshot is stored, that of an active one is walked with each inode once', async () => {
  const upper = await commit('base');
  expect(await harness.snapshotter.usageOf('base')).toEqual({ inodes: 2, bytes: expect.any(Number) });
  await fs.writeFile(path.join(upper, 'later'), 'x');
  expect((await harness.snapshotter.usageOf('base')).inodes).toBe(2);
  const [mount] = await harness.snapshotter.prepare('a', '', {}, NEVER_ABORTED);
  await fs.writeFile(path.join(mount!.source, 'one'), 'x'.repeat(8192));
  await fs.link(path.join(mount!.source, 'one'), path.join(mount!.source, 'two'));
  const usage = await harness.snapshotter.usageOf('a');
  expect(usage.inodes).toBe(2);
  expect(usage.bytes).toBeGreaterThanOrEqual(8192);
});

test('usage counts files whose names are no UTF-8, and is told of a tree that goes deeper than a path can name', async () => {
  const [mount] = await harness.snapshotter.prepare('odd', '', {}, NEVER_ABORTED);
  const odd = Buffer.concat([Buffer.from(`${mount!.source}/dir-`), Buffer.from([0xff, 0xfe])]);
  await fs.mkdir(odd);
  await fs.writeFile(Buffer.concat([odd, Buffer.from([0x2f, 0xe4])]), 'x'.repeat(8192));
  // By relative paths, as a container's programs may.
  const deep = `for (let i = 0; i < 30; i++) { fs.mkdirSync('d'.repeat(200)); process.chdir('d'.repeat(200)); }`;
  try {
    const made = spawnSync(process.execPath, ['-e', deep], { cwd: mount!.source, encoding: 'utf8' });
    expect(made).toMatchObject({ status: 0, stderr: '' });
    const usage = await harness.snapshotter.usageOf('odd');
    expect(usage.bytes).toBeGreaterThanOrEqual(8192);
    expect(usage.inodes).toBeGreaterThan(15);
    await harness.snapshotter.commit('odd-layer', 'odd', {}, NEVER_ABORTED);
    expect(harness.snapshotter.stat('odd-layer').kind).toBe('committed');
  } finally {
    // The scratch directory is removed by names.
    spawnSync('rm', ['-rf', '--', mount!.source]);
  }
});

test('a removed snapshot is gone at once, its bytes at the cleanup; a cleanup that was cut short is finished by the next', async () => {
  await commit('base');
  const [name] = await fs.readdir(snapshotsDir());
  harness.snapshotter.remove('base');
  expect(() => harness.snapshotter.stat('base')).toThrowError(/no such snapshot/);
  await fs.rename(path.join(snapshotsDir(), name!), path.join(harness.root, 'root', 'removed', 'cut-short'));
  await fs.mkdir(path.join(snapshotsDir(), 'new-of-a-killed-process'));
  await harness.snapshotter.cleanup();
  expect(await fs.readdir(snapshotsDir())).toEqual([]);
  expect(await fs.readdir(path.join(harness.root, 'root', 'removed'))).toEqual([]);
});

test('cleanup never takes a snapshot that is being made', async () => {
  await commit('base');
  const made = Array.from({ length: 30 }, (_, index) => harness.snapshotter.prepare(`c${index}`, 'base', {}, NEVER_ABORTED));
  const cleaned = Array.from({ length: 5 }, () => harness.snapshotter.cleanup());
  await Promise.all([...made, ...cleaned]);
  for (let index = 0; index < 30; index += 1) {
    const [mount] = await harness.snapshotter.mounts(`c${index}`, NEVER_ABORTED);
    await fs.access(mount!.options.find((option) => option.startsWith('upperdir='))!.slice('upperdir='.length));
  }
});

test('a snapshot whose directory vanished stops nobody: it is listed with its reason, refused, removable; others work', async () => {
  const lost = await commit('lost');
  await commit('fine');
  await harness.service[Symbol.asyncDispose]();
  await fs.rm(path.dirname(lost), { recursive: true });
  await harness.start();
  const [listed] = [...harness.snapshotter.list(['labels."containerd.io/snapshot/overlaybd/broken"'])].flat();
  expect(listed).toMatchObject({ name: 'lost' });
  await expect(harness.snapshotter.prepare('c', 'lost', {}, NEVER_ABORTED)).rejects.toMatchObject({ code: 'FailedPrecondition' });
  await harness.snapshotter.prepare('d', 'fine', {}, NEVER_ABORTED);
  harness.snapshotter.remove('lost');
});

test('a list goes through all snapshots in batches', async () => {
  for (let index = 0; index < 250; index += 1) await harness.snapshotter.prepare(`s${index}`, '', {}, NEVER_ABORTED);
  const batches = [...harness.snapshotter.list([])];
  expect(batches.map((batch) => batch.length)).toEqual([100, 100, 50]);
});

test('mount options: configured ones, volatile by label, mappings of a user namespace with the owner that fits', async () => {
  await commit('base');
  const labels = {
    'containerd.io/snapshot/overlaybd/volatile': 'yes',
    'containerd.io/snapshot/uidmapping': '0:1000:65536',
    'containerd.io/snapshot/gidmapping': '0:2000:65536',
  };
  const [mount] = await harness.snapshotter.prepare('c', 'base', labels, NEVER_ABORTED);
  expect(mount!.options).toEqual(expect.arrayContaining(['metacopy=off', 'volatile', 'uidmap=0:1000:65536', 'gidmap=0:2000:65536']));
  const upper = mount!.options.find((option) => option.startsWith('upperdir='))!.slice('upperdir='.length);
  expect(await fs.stat(upper)).toMatchObject({ uid: 1000, gid: 2000 });
  expect(await harness.snapshotter.mounts('c', NEVER_ABORTED)).toEqual([mount]);
});

test("a new snapshot's root belongs to whom its parent's root belongs", async () => {
  const upper = await commit('base');
  await fs.chown(upper, 12, 34);
  const [mount] = await harness.snapshotter.prepare('c', 'base', {}, NEVER_ABORTED);
  const own = mount!.options.find((option) => option.startsWith('upperdir='))!.slice('upperdir='.length);
  expect(await fs.stat(own)).toMatchObject({ uid: 12, gid: 34 });
  expect((await fs.stat(own)).mode & 0o7777).toBe(0o755);
});

test('two processes cannot serve one socket, and the socket is for root alone', async () => {
  await expect(harness.start()).rejects.toMatchObject({ code: 'FailedPrecondition' });
  const socket = path.join(harness.root, 'run', 'snapshotter.sock');
  expect((await fs.stat(socket)).mode & 0o777).toBe(0o600);
  expect((await fs.stat(path.dirname(socket))).mode & 0o777).toBe(0o700);
  await vi.waitFor(() => expect(harness.snapshotter.list([]).next().done).toBe(true), 30_000);
});

test('remapping ids is refused at the start where the kernel cannot, by the name of the option', async () => {
  await expect(SnapshotterHarness.open({ remapIds: true }, { idmapProblem: 'the kernel is too old' })).rejects.toMatchObject({
    code: 'FailedPrecondition',
    message: expect.stringMatching(/the kernel is too old/),
  });
  await using able = await SnapshotterHarness.open({ remapIds: true });
  expect([...able.snapshotter.list([])].flat()).toEqual([]);
});
