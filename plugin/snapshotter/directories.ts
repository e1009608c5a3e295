/**
 * Where snapshots lie on disk.
 *
 *   <root>/snapshots/<id>/fs     what the snapshot itself holds (overlay upper, or an unpacked layer)
 *   <root>/snapshots/<id>/work   overlayfs's own, active snapshots only
 *   <root>/snapshots/new-*       being made; its rename to <id> happens inside the transaction that inserts the row
 *   <root>/mounts/<device>       mount point of a block device's file system, shared by all snapshots that stand on it
 *   <root>/removed/*             waits to be deleted
 *
 * The database says what exists. A directory without a row is garbage; it is moved to removed/ and deleted, by Cleanup or at start.
 */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fsSync from 'node:fs';
import fs from 'node:fs/promises';
import path from 'node:path';
import { AppError, errnoOf } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';

/** Deleting trees is work for the disk; two at once leave room for containers. */
const DELETE_CONCURRENCY = 2;
/** Trees that one `rm` deletes: starting one stops the event loop for some milliseconds. 64 names fit any argument list. */
const DELETE_BATCH = 64;

/** A directory that is filled before it gets its place. */
export interface StagedDirectory {
  readonly path: string;
  /** Moves it to its place; call inside the transaction that makes the row. Synchronous on purpose. */
  place(id: number): void;
  /** Gives it up; to be called when `place` did not happen. */
  discard(): Promise<void>;
}

/** `rm` walks by descriptors, so neither depth nor odd names stop it, and it stays off mounts that were left in a tree. */
function removeTrees(...targets: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('rm', ['-rf', '--one-file-system', '--', ...targets], { stdio: ['ignore', 'ignore', 'pipe'] });
    let complaint = '';
    child.stderr.setEncoding('utf8');
    child.stderr.on('data', (text: string) => {
      complaint = (complaint + text).slice(0, 2000);
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve();
      else reject(new AppError('Internal', { op: 'delete', subject: targets[0] ?? '', what: complaint.trim() || `rm ended with ${code}` }));
    });
  });
}

export class SnapshotDirectories {
  readonly root: string;
  private readonly snapshots: string;
  private readonly mounts: string;
  private readonly trash: string;
  private readonly logger: Logger;
  private readonly staged = new Set<string>();
  private emptying: Promise<void> | undefined;
  private emptyingAgain: Promise<void> | undefined;

  constructor(root: string, logger: Logger) {
    if (!path.isAbsolute(root) || /[:,\\\s]/.test(root)) {
      // These characters end an overlayfs option.
      throw new AppError('InvalidArgument', {
        op: 'open snapshot root',
        subject: root,
        what: 'must be an absolute path without colon, comma, backslash and blanks',
      });
    }
    fsSync.mkdirSync(root, { recursive: true, mode: 0o700 });
    // As the kernel names it in its table of mounts.
    this.root = fsSync.realpathSync(root);
    this.snapshots = path.join(this.root, 'snapshots');
    this.mounts = path.join(this.root, 'mounts');
    this.trash = path.join(this.root, 'removed');
    this.logger = logger;
    for (const directory of [this.snapshots, this.mounts, this.trash]) fsSync.mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  own(id: number): string {
    return path.join(this.snapshots, String(id), 'fs');
  }

  work(id: number): string {
    return path.join(this.snapshots, String(id), 'work');
  }

  mountPoint(deviceId: string): string {
    return path.join(this.mounts, deviceId);
  }

  /** Devices that have a mount point here, mounted or not. */
  async mountPoints(): Promise<string[]> {
    return fs.readdir(this.mounts);
  }

  async removeMountPoint(deviceId: string): Promise<void> {
    try {
      await fs.rmdir(this.mountPoint(deviceId));
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }

  /**
   * Makes a snapshot's directories; `owner` becomes the owner of its root directory. Synchronous inside: five quick calls cost less than
   * five turns through the thread pool, and far less than the flush of the row that follows.
   */
  async stage(options: { withWork: boolean; owner: { uid: number; gid: number } | undefined }): Promise<StagedDirectory> {
    const name = `new-${randomBytes(8).toString('hex')}`;
    const staging = path.join(this.snapshots, name);
    this.staged.add(name);
    const discard = async (): Promise<void> => {
      try {
        await removeTrees(staging);
      } finally {
        this.staged.delete(name);
      }
    };
    try {
      fsSync.mkdirSync(staging, { mode: 0o700 });
      const own = path.join(staging, 'fs');
      fsSync.mkdirSync(own);
      fsSync.chmodSync(own, 0o755);
      if (options.owner !== undefined) fsSync.chownSync(own, options.owner.uid, options.owner.gid);
      if (options.withWork) {
        fsSync.mkdirSync(path.join(staging, 'work'));
        fsSync.chmodSync(path.join(staging, 'work'), 0o711);
      }
    } catch (cause) {
      await discard();
      const isFull = errnoOf(cause) === 'ENOSPC' || errnoOf(cause) === 'EDQUOT';
      throw new AppError(isFull ? 'ResourceExhausted' : 'Internal', {
        op: 'make snapshot directory',
        subject: staging,
        what: cause instanceof Error ? cause.message : String(cause),
        cause,
      });
    }
    return {
      path: staging,
      place: (id) => {
        fsSync.renameSync(staging, path.join(this.snapshots, String(id)));
        this.staged.delete(name);
      },
      discard,
    };
  }

  /** Undoes `place` after its transaction was rolled back. */
  async abandon(id: number): Promise<void> {
    await this.moveToTrash(String(id));
  }

  private async moveToTrash(name: string): Promise<void> {
    try {
      await fs.rename(path.join(this.snapshots, name), path.join(this.trash, `${name}-${randomBytes(8).toString('hex')}`));
    } catch (error) {
      // Another Cleanup was quicker.
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }

  /**
   * Moves every directory that no row claims to the trash. `isKnown` is asked after the listing, so a directory that got its row in
   * between is known. Returns how many were moved.
   */
  async collect(isKnown: (id: number) => boolean): Promise<number> {
    const names = await fs.readdir(this.snapshots);
    let movedCount = 0;
    for (const name of names) {
      if (this.staged.has(name)) continue;
      if (/^[0-9]{1,15}$/.test(name) && isKnown(Number(name))) continue;
      await this.moveToTrash(name);
      movedCount += 1;
    }
    return movedCount;
  }

  /**
   * Deletes what lies in the trash. One run at a time; who comes meanwhile shares the next one, since this one has looked already. A tree that
   * cannot be deleted is logged and left for the next run.
   */
  emptyTrash(): Promise<void> {
    if (this.emptying === undefined) {
      this.emptying = this.deleteAll().finally(() => {
        this.emptying = undefined;
      });
      return this.emptying;
    }
    const again = (): Promise<void> => {
      this.emptyingAgain = undefined;
      return this.emptyTrash();
    };
    this.emptyingAgain ??= this.emptying.then(again, again);
    return this.emptyingAgain;
  }

  private async deleteAll(): Promise<void> {
    const names = await fs.readdir(this.trash);
    const worker = async (): Promise<void> => {
      for (let batch = names.splice(0, DELETE_BATCH); batch.length > 0; batch = names.splice(0, DELETE_BATCH)) {
        try {
          await removeTrees(...batch.map((name) => path.join(this.trash, name)));
        } catch (err) {
          this.logger.warn({ err }, 'removed snapshots could not be deleted; tried again at the next cleanup');
        }
      }
    };
    await Promise.all(Array.from({ length: DELETE_CONCURRENCY }, worker));
  }

  /** True if the snapshot's own directory is there. */
  async hasOwn(id: number): Promise<boolean> {
    try {
      return (await fs.lstat(this.own(id))).isDirectory();
    } catch (error) {
      if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return false;
      throw error;
    }
  }
}
