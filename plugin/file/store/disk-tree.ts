/**
 * The store's directories and the blobs in them that nobody uses: least recently used first, each with its bytes on the ledger. Eviction
 * takes whole blobs.
 */
import { errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { blobDirBytes, removeBlobDir, unlessMissing } from './blob-dir.ts';
import { directoryOfKey } from './blob-key.ts';
import type { Ledger } from './ledger.ts';
import type { KeyedMutex } from './mutex.ts';
import { makeDirs, scanBlobs } from './scan.ts';
import type { StoreEvent } from './store-event.ts';
import type { StoreFs } from './store-fs.ts';

export class DiskTree {
  readonly blobsDir: string;
  private readonly rootDir: string;
  private readonly fs: StoreFs;
  private readonly ledger: Ledger;
  private readonly log: Logger;
  /** By key; insertion order is the order of use. The value is the blob's bytes on disk. */
  private readonly idle = new Map<string, number>();
  private dirBytes = 0;

  constructor(rootDir: string, fs: StoreFs, ledger: Ledger, log: Logger) {
    this.rootDir = rootDir;
    this.blobsDir = `${rootDir}/blobs/sha256`;
    this.fs = fs;
    this.ledger = ledger;
    this.log = log;
  }

  get idleCount(): number {
    return this.idle.size;
  }

  /** Makes the directories and takes stock. Rejects with system errors of the root itself. */
  async open(onEvent: (event: StoreEvent) => void): Promise<void> {
    await makeDirs(this.fs, this.blobsDir);
    for (const blob of await scanBlobs(this.fs, this.blobsDir, this.log, onEvent)) {
      this.idle.set(blob.key, blob.diskBytes);
      this.ledger.add(blob.diskBytes);
    }
    await this.refreshDirs();
  }

  dirOf(key: string): string {
    return `${this.blobsDir}/${directoryOfKey(key)}`;
  }

  isIdle(key: string): boolean {
    return this.idle.has(key);
  }

  /** Takes a blob out of the idle ones; its bytes stay on the ledger. Undefined: not on disk. */
  take(key: string): number | undefined {
    const diskBytes = this.idle.get(key);
    this.idle.delete(key);
    return diskBytes;
  }

  /** A blob that nobody uses any more; it is now the most recently used one. */
  put(key: string, diskBytes: number): void {
    this.idle.delete(key);
    this.idle.set(key, diskBytes);
  }

  /** Removes idle blobs, oldest first, until `excess` is no longer positive or each was tried once. */
  async evict(excess: () => number, keys: KeyedMutex): Promise<void> {
    for (let tries = this.idle.size; tries > 0 && excess() > 0; tries -= 1) {
      const victim = this.idle.keys().next();
      if (victim.done === true) return;
      await keys.run(victim.value, () => this.remove(victim.value));
    }
  }

  private async remove(key: string): Promise<void> {
    const diskBytes = this.take(key);
    if (diskBytes === undefined) return;
    try {
      await removeBlobDir(this.fs, this.dirOf(key));
      this.ledger.add(-diskBytes);
      await this.refreshDirs();
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
      this.log.error({ blob: key, err: error }, 'a blob cannot be evicted');
      this.put(key, diskBytes);
    }
  }

  /** Asks the disk about every idle blob: what a killed process left unwritten may have been given its final blocks since. */
  async refreshIdle(): Promise<void> {
    for (const [key, diskBytes] of [...this.idle]) {
      const bytes = await unlessMissing(blobDirBytes(this.fs, this.dirOf(key)));
      // Gone, taken or changed meanwhile: its new place accounts for it.
      if (bytes === undefined || this.idle.get(key) !== diskBytes) continue;
      this.idle.set(key, bytes);
      this.ledger.add(bytes - diskBytes);
    }
  }

  /** Asks the disk what the directories above the blobs take. */
  async refreshDirs(): Promise<void> {
    const stats = await Promise.all([this.rootDir, `${this.rootDir}/blobs`, this.blobsDir].map((dir) => this.fs.lstat(dir)));
    const bytes = stats.reduce((sum, stat) => sum + stat.diskBytes, 0);
    this.ledger.add(bytes - this.dirBytes);
    this.dirBytes = bytes;
  }
}
