/** Brings a blob in: opens what is on disk, makes what is not, and leaves it without a file when the disk refuses. */
import { AppError, describeError, errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { BlobSource } from '../device-spec.ts';
import type { Blob } from './blob.ts';
import { createBlobDir, mapPath, openBlobDir, removeBlobDir, unlessMissing } from './blob-dir.ts';
import type { DiskHealth } from './disk-health.ts';
import type { DiskTree } from './disk-tree.ts';
import type { Ledger, Reservation } from './ledger.ts';
import type { StoreEvent } from './store-event.ts';
import type { StoreFs } from './store-fs.ts';

/** A blob's directory, map and empty data file: reserved when it is made. */
export const NEW_BLOB_BYTES = 12 * 1024;

export interface OpenerParts {
  fs: StoreFs;
  tree: DiskTree;
  ledger: Ledger;
  health: DiskHealth;
  log: Logger;
  nowMs: () => number;
  tell: (event: StoreEvent) => void;
}

/**
 * Opens or creates the blob's directory. `reservation` is room for a new one (undefined: there was none; it may be made by the first
 * write). Never rejects because of the disk. The caller holds the blob's key.
 */
export async function openStored(blob: Blob, reservation: Reservation | undefined, parts: OpenerParts): Promise<void> {
  let onDiskBytes = parts.tree.take(blob.key) ?? 0;
  try {
    if (onDiskBytes > 0) {
      if (await openExisting(blob, onDiskBytes, parts)) return;
      parts.ledger.add(-onDiskBytes);
      onDiskBytes = 0;
    }
    if (reservation === undefined) return;
    blob.adopt(await createBlobDir(parts.fs, blob.dir, blob.digest, blob.sizeBytes), 0);
    await blob.refresh();
    await parts.tree.refreshDirs();
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    parts.health.diskFailed(error, `open blob ${blob.digest}`);
    if (blob.hasFile || onDiskBytes === 0) return;
    // A directory that can neither be opened nor removed stays on the account and is left alone.
    blob.diskBytes = onDiskBytes;
    blob.abandonDisk();
  }
}

async function openExisting(blob: Blob, onDiskBytes: number, parts: OpenerParts): Promise<boolean> {
  const opening = openBlobDir(parts.fs, blob.dir, blob.digest, blob.sizeBytes, blob.presence);
  const opened = (await unlessMissing(opening)) ?? 'a file is missing';
  if (typeof opened !== 'string') {
    blob.adopt(opened, onDiskBytes);
    await parts.fs.touch(mapPath(blob.dir), parts.nowMs());
    return true;
  }
  parts.log.warn({ digest: blob.digest, damage: opened }, 'a stored blob is not whole and is removed');
  parts.tell({ kind: 'blob-reset', digest: blob.digest, detail: opened });
  blob.presence.flags.fill(0);
  await removeBlobDir(parts.fs, blob.dir);
  return false;
}

/** Opens a local file that holds a whole blob. Rejects with FailedPrecondition when it is not a file of the stated size. */
export async function openLocal(fs: StoreFs, source: BlobSource, path: string): Promise<number> {
  const refuse = (what: string, cause?: unknown): AppError =>
    new AppError('FailedPrecondition', { op: 'use local blob', subject: path, what, cause });
  try {
    const fd = await fs.open(path, 'read');
    const stat = await fs.fstat(fd);
    if (stat.isFile && stat.sizeBytes === source.sizeBytes) return fd;
    await fs.close(fd);
    throw refuse(`it has ${stat.sizeBytes} bytes instead of ${source.sizeBytes}`);
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    throw refuse(`it cannot be opened: ${describeError(error)}`, error);
  }
}
