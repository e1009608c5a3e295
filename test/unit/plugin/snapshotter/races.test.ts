/** What happens to files of the snapshotter while something else is under way; each test makes the moment itself. */
import { mkdirSync } from 'node:fs';
import fs from 'node:fs/promises';
import path from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { type Database, openDatabase } from '../../../../db/database.ts';
import { DependencyStore } from '../../../../db/dependency-store.ts';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { SnapshotDirectories } from '../../../../plugin/snapshotter/directories.ts';
import { IndexFiles } from '../../../../plugin/snapshotter/index-files.ts';
import { Scratch } from '../../../support/scratch.ts';

let scratch: Scratch;
let database: Database;
beforeEach(async () => {
  scratch = await Scratch.create('races');
  database = openDatabase(':memory:');
});
afterEach(async () => {
  vi.restoreAllMocks();
  database[Symbol.dispose]();
  await scratch[Symbol.asyncDispose]();
});

/** Time for what began meanwhile to go as far as it can. */
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i += 1) await new Promise((resolve) => setImmediate(resolve));
}

test.each(['kept again', 'counted on again'])(
  'a metadata file that is %s while it is swept away is there afterwards, or known not to be',
  async (how) => {
    const files = new IndexFiles(scratch.path, new DependencyStore(database));
    const bytes = Buffer.from('metadata');
    const digest = sha256(bytes);
    const localPath = scratch.join('indexes', digest.slice('sha256:'.length));
    const blob = { digest, sizeBytes: bytes.length, repositories: [], localPath };
    // Of a long time ago: nothing has touched it.
    await fs.writeFile(localPath, bytes);
    let seen: Promise<boolean> | undefined;
    const remove = fs.rm;
    vi.spyOn(fs, 'rm').mockImplementation(async (...call) => {
      await undefined;
      seen ??= how === 'kept again' ? files.keep(bytes).then(() => true) : files.hold([{ kind: 'index', meta: blob, target: { ...blob } }]);
      await turns(50);
      await remove(...call);
    });
    expect(await files.sweep()).toBe(1);
    const isCounted = await seen;
    const isThere = (await fs.readdir(path.dirname(localPath))).length === 1;
    expect(isThere).toBe(isCounted);
  },
);

test('trees that are moved to the trash while it is emptied are deleted before their cleanup ends', async () => {
  const directories = new SnapshotDirectories(scratch.join('root'), silentLogger);
  const trash = scratch.join('root', 'removed');
  mkdirSync(path.join(trash, 'first'));
  const listed = Promise.withResolvers<void>();
  const list = fs.readdir;
  vi.spyOn(fs, 'readdir').mockImplementationOnce((async (directory: string) => {
    const names = await list(directory);
    listed.resolve();
    return names;
  }) as never);
  const first = directories.emptyTrash();
  await listed.promise;
  mkdirSync(path.join(trash, 'second'));
  mkdirSync(path.join(trash, 'third'));
  await Promise.all([directories.emptyTrash(), directories.emptyTrash()]);
  expect(await fs.readdir(trash)).toEqual([]);
  await first;
});
