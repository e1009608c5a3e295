/**
 * What a start finds in the store's root: makes the directories, removes what a killed process left half made or half removed, and
 * lists the blobs that may be believed. Reads one sector a blob, several blobs at a time.
 */
import { dirname } from 'node:path';
import type { Digest } from '../../base/digest.ts';
import { describeError, errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { blobDirBytes, blobDirDamage, mapPath, removeBlobDir } from './blob-dir.ts';
import { keyOfDirectory } from './blob-key.ts';
import type { StoreEvent } from './store-event.ts';
import type { StoreFs } from './store-fs.ts';

export interface FoundBlob {
  key: string;
  diskBytes: number;
  lastUsedMs: number;
}

/** Blobs looked at together: keeps the four threads of the pool busy. */
const SCAN_WIDTH = 16;

/** Makes `path` and its parents, durably; those that exist are fine. */
export async function makeDirs(fs: StoreFs, path: string): Promise<void> {
  try {
    await fs.mkdir(path);
    await fs.syncDir(dirname(path));
  } catch (error) {
    const code = errnoOf(error);
    if (code === 'EEXIST') return;
    if (code !== 'ENOENT' || dirname(path) === path) throw error;
    await makeDirs(fs, dirname(path));
    await makeDirs(fs, path);
  }
}

/** Scans `blobsDir`. Blobs come back least recently used first. Throws system errors of the directory itself, not of one blob. */
export async function scanBlobs(fs: StoreFs, blobsDir: string, log: Logger, onEvent: (event: StoreEvent) => void): Promise<FoundBlob[]> {
  const names = await fs.readdir(blobsDir);
  const found: FoundBlob[] = [];
  let next = 0;
  const work = async (): Promise<void> => {
    for (let name = names[next++]; name !== undefined; name = names[next++]) {
      const blob = await lookAt(fs, blobsDir, name, log, onEvent);
      if (blob !== undefined) found.push(blob);
    }
  };
  await Promise.all(Array.from({ length: SCAN_WIDTH }, work));
  return found.sort((a, b) => a.lastUsedMs - b.lastUsedMs);
}

async function lookAt(
  fs: StoreFs,
  blobsDir: string,
  name: string,
  log: Logger,
  onEvent: (event: StoreEvent) => void,
): Promise<FoundBlob | undefined> {
  const dir = `${blobsDir}/${name}`;
  const known = keyOfDirectory(name);
  if (known === undefined) {
    log.warn({ path: dir }, 'not a blob of the store; left alone and not counted');
    return undefined;
  }
  const { key, digest } = known;
  const damage = await damageOf(fs, dir, digest);
  if (damage === undefined) {
    const lastUsedMs = (await fs.lstat(mapPath(dir))).modifiedMs;
    return { key, diskBytes: await blobDirBytes(fs, dir), lastUsedMs };
  }
  log.warn({ digest, damage }, 'a stored blob is not whole and is removed');
  onEvent({ kind: 'blob-reset', digest, detail: damage });
  try {
    await removeBlobDir(fs, dir);
    return undefined;
  } catch (error) {
    // Still there, so still counted: it is tried again when the blob is next wanted or evicted.
    log.error({ digest, err: error }, 'a damaged blob cannot be removed');
    return { key, diskBytes: (await fs.lstat(dir)).diskBytes, lastUsedMs: 0 };
  }
}

async function damageOf(fs: StoreFs, dir: string, digest: Digest): Promise<string | undefined> {
  try {
    return await blobDirDamage(fs, dir, digest);
  } catch (error) {
    return describeError(error);
  }
}
