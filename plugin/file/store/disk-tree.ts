/**
 * The store's directories and the blobs in them that nobody uses: least recently used first, each with its bytes on the ledger. Eviction
 * takes whole blobs, and never pinned ones.
 *
 *   idle ──pin──► kept (never evicted) ──unpin──► idle and doomed: goes at once, or when its last user does
 */
import type { Digest } from '../../base/digest.ts';
import { errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { blobDirBytes, isWholeBlobDir, removeBlobDir, unlessMissing } from './blob-dir.ts';
import { digestOfKey, directoryOfKey } from './blob-key.ts';
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
  /** Blobs that nobody uses and that are pinned; like `idle`. */
  private readonly kept = new Map<string, number>();
  private readonly pinned = new Set<string>();
  /** Blobs that were unpinned and are still in use. */
  private readonly doomed = new Set<string>();
  private dirBytes = 0;

  constructor(rootDir: string, fs: StoreFs, ledger: Ledger, log: Logger) {
    this.rootDir = rootDir;
    this.blobsDir = `${rootDir}/blobs/sha256`;
    this.fs = fs;
    this.ledger = ledger;
    this.log = log;
  }

  /** Blobs that may be evicted. */
  get idleCount(): number {
    return this.idle.size;
  }

  /** Blobs on disk that nobody uses. */
  get unusedCount(): number {
    return this.idle.size + this.kept.size;
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

  /** True when the blob is on disk and nobody uses it. */
  isUnused(key: string): boolean {
    return this.bytesOf(key) !== undefined;
  }

  /** Bytes on disk of a blob that nobody uses; undefined when there is none. */
  bytesOf(key: string): number | undefined {
    return this.idle.get(key) ?? this.kept.get(key);
  }

  /** Of these blobs, those on disk that nobody uses and that are whole and verified. Asks the disk about each. */
  async wholeOf(digests: ReadonlySet<Digest>): Promise<Set<Digest>> {
    const whole = new Set<Digest>();
    for (const key of [...this.idle.keys(), ...this.kept.keys()]) {
      const digest = digestOfKey(key);
      if (!digests.has(digest) || whole.has(digest)) continue;
      if (await isWholeBlobDir(this.fs, this.dirOf(key), digest)) whole.add(digest);
    }
    return whole;
  }

  /** Directory of a whole and verified blob that nobody uses, of this digest and another key; undefined: there is none. */
  async wholeDirOf(digest: Digest, otherThan: string): Promise<string | undefined> {
    for (const key of [...this.idle.keys(), ...this.kept.keys()]) {
      if (key === otherThan || digestOfKey(key) !== digest) continue;
      if (await isWholeBlobDir(this.fs, this.dirOf(key), digest)) return this.dirOf(key);
    }
    return undefined;
  }

  /** Takes a blob out of the unused ones; its bytes stay on the ledger. Undefined: not on disk. */
  take(key: string): number | undefined {
    const diskBytes = this.bytesOf(key);
    this.idle.delete(key);
    this.kept.delete(key);
    return diskBytes;
  }

  /** A blob that nobody uses any more; it is now the most recently used one. */
  put(key: string, diskBytes: number): void {
    this.take(key);
    (this.pinned.has(key) ? this.kept : this.idle).set(key, diskBytes);
  }

  /** Keeps a blob from eviction, from now on; it need not be on disk yet. */
  pin(key: string): void {
    this.pinned.add(key);
    this.doomed.delete(key);
    const diskBytes = this.take(key);
    if (diskBytes !== undefined) this.put(key, diskBytes);
  }

  /** Undoes {@link pin}, if there was one: the blob is to be removed when nobody uses it (see {@link removeIfDoomed}). */
  unpin(key: string): void {
    this.pinned.delete(key);
    this.doomed.add(key);
    const diskBytes = this.take(key);
    if (diskBytes !== undefined) this.put(key, diskBytes);
  }

  /** Removes a blob that was unpinned. The caller holds its key, and nobody uses it. True: it is not on disk any more. */
  async removeIfDoomed(key: string): Promise<boolean> {
    if (!this.doomed.has(key)) return false;
    await this.remove(key);
    if (this.isUnused(key)) return false;
    this.doomed.delete(key);
    return true;
  }

  /** Blobs that nobody uses with their bytes: first those that may be evicted, in the order in which they would be, then pinned ones. */
  *unused(): Generator<{ key: string; diskBytes: number; isPinned: boolean }> {
    for (const [key, diskBytes] of this.idle) yield { key, diskBytes, isPinned: false };
    for (const [key, diskBytes] of this.kept) yield { key, diskBytes, isPinned: true };
  }

  /** Removes idle blobs, oldest first, until `excess` is no longer positive or each was tried once. Answers what went. */
  async evict(excess: () => number, keys: KeyedMutex): Promise<{ blobs: number; bytes: number }> {
    const gone = { blobs: 0, bytes: 0 };
    for (let tries = this.idle.size; tries > 0 && excess() > 0; tries -= 1) {
      const [victim] = this.idle;
      if (victim === undefined) break;
      const [key, diskBytes] = victim;
      await keys.run(key, async () => {
        // Somebody may have come to use it while this waited for its turn.
        if (this.idle.get(key) !== diskBytes) return;
        await this.remove(key);
        if (this.isUnused(key)) return;
        gone.blobs += 1;
        gone.bytes += diskBytes;
      });
    }
    return gone;
  }

  private async remove(key: string): Promise<void> {
    const diskBytes = this.take(key);
    if (diskBytes === undefined) return;
    try {
      await removeBlobDir(this.fs, this.dirOf(key));
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
      this.log.error({ blob: key, err: error }, 'a blob cannot be evicted');
      this.put(key, diskBytes);
      return;
    }
    this.ledger.add(-diskBytes);
    try {
      await this.refreshDirs();
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
      this.log.error({ err: error }, "the store's directories cannot be looked at");
    }
  }

  /** Asks the disk about every unused blob: what a killed process left unwritten may have been given its final blocks since. */
  async refreshUnused(): Promise<void> {
    for (const place of [this.idle, this.kept]) {
      for (const [key, diskBytes] of [...place]) {
        const bytes = await unlessMissing(blobDirBytes(this.fs, this.dirOf(key)));
        // Gone, taken or changed meanwhile: its new place accounts for it.
        if (bytes === undefined || place.get(key) !== diskBytes) continue;
        place.set(key, bytes);
        this.ledger.add(bytes - diskBytes);
      }
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
