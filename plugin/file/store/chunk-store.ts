/**
 * The content-addressed store of blobs that are on this node in part or whole. Ours.
 *
 *   <root>/blobs/sha256/<hex>.<witness>/{data,map}       (blob-key.ts)
 *
 *   absent ──acquire──► open (referenced) ──last release──► closing ──► idle (on disk, evictable) ──acquire──► open
 *                                                                        └──evict──► absent      (not while it is pinned)
 *
 * Every byte under the root is in the ledger. Room is reserved before a fetch; idle blobs go, least recently used first, when there is
 * none; referenced ones never. When bytes cannot be kept, they stay in a bounded memory cache and reads go on. Main thread of one
 * process only: two stores on one root would destroy each other's blobs (the keeper runs one blockd at a time).
 *
 * Locks, in the order they may be taken: room → key → blob. Who holds a key never asks for room.
 */
import assert from 'node:assert/strict';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { AppError, errnoOf } from '../../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import { type Logger, silentLogger } from '../../base/log.ts';
import { MIB } from '../../base/units.ts';
import type { BlobSource } from '../device-spec.ts';
import { Blob, type UnitWrite } from './blob.ts';
import { dataPath, isWholeBlobDir, mapPath } from './blob-dir.ts';
import { BlobHandle } from './blob-handle.ts';
import { blobKeyOf } from './blob-key.ts';
import { NEW_BLOB_BYTES, openLocal, openStored } from './blob-opener.ts';
import { CheckpointTimer } from './checkpoint-timer.ts';
import { DiskHealth } from './disk-health.ts';
import { DiskTree } from './disk-tree.ts';
import { hashFile } from './hash-file.ts';
import { Ledger, type Reservation } from './ledger.ts';
import { KeyedMutex, Mutex } from './mutex.ts';
import { presenceBytesOf, unitCountOf } from './presence.ts';
import { StoreRoom } from './room.ts';
import type { StoreEvent } from './store-event.ts';
import { type StoreFs, systemStoreFs } from './store-fs.ts';
import { UnitCache } from './unit-cache.ts';

export interface ChunkStoreOptions {
  /** Absolute; belongs to the store alone. */
  rootDir: string;
  /** What the root may take on disk, directories included. */
  budgetBytes: number;
  clock: Clock;
  log?: Logger;
  onEvent?: (event: StoreEvent) => void;
  /** Checks a unit before it becomes readable (artifacts that list SHA-256 per chunk). */
  verifyUnit?: (blobId: number, unitIndex: number, bytes: Uint8Array) => boolean;
  /** Bound of the cache for units that disk has no room for. Default 64 MiB: about a thousand units, one start's worth. */
  memoryBytes?: number;
  /** Delay from the first undurable unit to its checkpoint. */
  checkpointMs?: number;
  fs?: StoreFs;
}

export interface StoreUsage {
  /** On disk as `du` counts it. */
  bytes: number;
  budgetBytes: number;
  blobs: number;
  reservedBytes: number;
  /** Units that only memory holds. */
  memoryBytes: number;
  /** Why fetched bytes are not kept at the moment: `budget` or a system error's code. */
  degradedBy: string | undefined;
}

/** A blob that takes room. `open`: somebody reads it; `pinned`: it is kept; `idle`: it may be evicted. */
export interface StoredBlob {
  /** See blob-key.ts; the digest of an ordinary blob. */
  key: string;
  diskBytes: number;
  use: 'open' | 'pinned' | 'idle';
}

/** What a power cut may cost in fetches. */
const CHECKPOINT_MS = 1000;
/** Shared memory for presence flags of all open blobs: enough for 16 TiB of layers; more is a hostile manifest. */
const MAX_PRESENCE_BYTES = 256 * MIB + 64 * 1024;

export class ChunkStore {
  private readonly options: ChunkStoreOptions;
  private readonly fs: StoreFs;
  private readonly log: Logger;
  private readonly ledger: Ledger;
  private readonly tree: DiskTree;
  private readonly health: DiskHealth;
  private readonly memory: UnitCache;
  /** By key; referenced, or closing. */
  private readonly openBlobs = new Map<string, Blob>();
  private readonly keys = new KeyedMutex();
  private readonly room: StoreRoom;
  private readonly verifyLock = new Mutex();
  private readonly closings = new Set<Promise<void>>();
  private readonly checkpoints: CheckpointTimer;
  private readonly unreferencedListeners: ((blobId: number) => void)[] = [];
  private readonly removedListeners: ((key: string) => void)[] = [];
  private readonly stop = new AbortController();
  private nextId = 1;
  private presenceBytes = 0;
  private busy = 0;
  private onDrained: (() => void) | undefined;

  private constructor(options: ChunkStoreOptions) {
    this.options = options;
    this.fs = options.fs ?? systemStoreFs;
    this.log = options.log ?? silentLogger;
    this.ledger = new Ledger(options.budgetBytes);
    this.tree = new DiskTree(options.rootDir, this.fs, this.ledger, this.log);
    this.memory = new UnitCache(options.memoryBytes ?? 64 * MIB);
    this.health = new DiskHealth(options.clock, this.log, (event) => this.tell(event));
    this.room = new StoreRoom({ ledger: this.ledger, tree: this.tree, health: this.health, keys: this.keys, closings: this.closings });
    this.checkpoints = new CheckpointTimer(options.clock, options.checkpointMs ?? CHECKPOINT_MS, this.stop.signal, async () => {
      await this.checkpoint();
      return [...this.openBlobs.values()].some((blob) => blob.isDirty);
    });
  }

  /** Scans the root (made if need be), clears up after a killed predecessor. Rejects with system errors of the root itself. */
  static async open(options: ChunkStoreOptions): Promise<ChunkStore> {
    const store = new ChunkStore(options);
    await store.tree.open((event) => store.tell(event));
    return store;
  }

  /**
   * A counted reference to a blob; those with equal keys (blob-key.ts) share one. Succeeds also when the disk refuses (the blob then lives in memory). Rejects:
   * InvalidArgument when a local file is in use with another size, ResourceExhausted when open blobs are impossibly large,
   * FailedPrecondition when `localPath` is not a file of the stated size.
   */
  async acquire(source: BlobSource): Promise<BlobHandle> {
    // A path may hold another blob tomorrow, while the file of today is still read.
    const key = blobKeyOf(source);
    const isNew = source.localPath === undefined && !this.openBlobs.has(key) && !this.tree.isUnused(key);
    const early = isNew ? await this.reserve(NEW_BLOB_BYTES) : undefined;
    try {
      return await this.keys.run(key, async () => {
        const blob = this.openBlobs.get(key) ?? (await this.bringIn(key, source, early));
        if (blob.sizeBytes !== source.sizeBytes) {
          throw refuse('InvalidArgument', source, `its size is given as ${source.sizeBytes}, but it is in use with ${blob.sizeBytes}`);
        }
        blob.references += 1;
        return new BlobHandle(blob, source, this.memory, () => this.letGo(blob));
      });
    } finally {
      early?.release();
    }
  }

  private async bringIn(key: string, source: BlobSource, early: Reservation | undefined): Promise<Blob> {
    const presenceBytes = presenceBytesOf(source.sizeBytes);
    if (this.presenceBytes + presenceBytes > MAX_PRESENCE_BYTES) {
      throw refuse('ResourceExhausted', source, `open blobs would need more than ${MAX_PRESENCE_BYTES} bytes of presence flags`);
    }
    // Booked before the disk is asked: many may be on their way in.
    this.presenceBytes += presenceBytes;
    try {
      const blob = await this.openBlob(key, source, early);
      this.openBlobs.set(key, blob);
      return blob;
    } catch (error) {
      this.presenceBytes -= presenceBytes;
      throw error;
    }
  }

  private async openBlob(key: string, source: BlobSource, early: Reservation | undefined): Promise<Blob> {
    const digest = source.digest as Digest;
    const place = { fs: this.fs, ledger: this.ledger, dir: this.tree.dirOf(key), parentDir: this.tree.blobsDir };
    const blob = new Blob(this.nextId++, key, digest, source.sizeBytes, place);
    if (source.localPath !== undefined) {
      blob.adoptLocal(await openLocal(this.fs, source, source.localPath));
    } else {
      const late = early === undefined && this.health.mayTry() ? this.ledger.reserve(NEW_BLOB_BYTES) : undefined;
      const { fs, tree, ledger, health, log } = this;
      const nowMs = (): number => this.options.clock.nowMs();
      await openStored(blob, early ?? late, { fs, tree, ledger, health, log, nowMs, tell: (event) => this.tell(event) });
      late?.release();
    }
    return blob;
  }

  /** Called once a handle. The last one closes the blob when nothing is under way any more. */
  private letGo(blob: Blob): void {
    blob.references -= 1;
    assert(blob.references >= 0);
    if (blob.references > 0) return;
    for (const listener of this.unreferencedListeners) listener(blob.id);
    this.closeIfUnused(blob);
  }

  private closeIfUnused(blob: Blob): void {
    if (blob.references > 0 || blob.busy > 0 || this.stop.signal.aborted) return;
    const closing = this.keys.run(blob.key, async () => {
      if (blob.references > 0 || blob.busy > 0 || this.openBlobs.get(blob.key) !== blob) return;
      await this.settle(blob);
      // A write may have begun through a handle that was released meanwhile; its end comes back here.
      if (blob.busy > 0) return;
      await this.forget(blob);
      if (blob.diskBytes > 0) this.tree.put(blob.key, blob.diskBytes);
      await this.removeIfDoomed(blob.key);
    });
    this.closings.add(closing);
    closing.finally(() => this.closings.delete(closing));
  }

  /** Keeps a blob from eviction, whether or not it is on disk or in use; until {@link unpin}, or the end of the process. */
  pin(source: BlobSource): void {
    this.tree.pin(blobKeyOf(source));
  }

  /** Ends a pin, if there is one: the blob is removed, now or when its last user goes (see {@link onRemoved}). Not for one that others want pinned. */
  async unpin(source: BlobSource): Promise<void> {
    const key = blobKeyOf(source);
    this.tree.unpin(key);
    await this.keys.run(key, async () => {
      if (!this.openBlobs.has(key)) await this.removeIfDoomed(key);
    });
  }

  /** What a blob takes on disk, as the ledger knows it. */
  diskBytesOf(source: BlobSource): number {
    const key = blobKeyOf(source);
    return this.openBlobs.get(key)?.diskBytes ?? this.tree.bytesOf(key) ?? 0;
  }

  /** True when the blob is whole on disk, and its digest was checked. */
  async isWhole(source: BlobSource): Promise<boolean> {
    const key = blobKeyOf(source);
    return this.openBlobs.get(key)?.isWhole ?? isWholeBlobDir(this.fs, this.tree.dirOf(key), source.digest as Digest);
  }

  /** Of these digests, those of which a whole and verified blob is on disk, whoever brought it. */
  async wholeOf(digests: ReadonlySet<Digest>): Promise<Set<Digest>> {
    const whole = await this.tree.wholeOf(digests);
    for (const blob of this.openBlobs.values()) if (blob.isWhole && digests.has(blob.digest)) whole.add(blob.digest);
    return whole;
  }

  /** A file with all bytes of the blob that came by another witness (blob-key.ts) and was checked; undefined: there is none. May go at any time. */
  async wholeFileOf(source: BlobSource): Promise<string | undefined> {
    const key = blobKeyOf(source);
    const digest = source.digest as Digest;
    for (const blob of this.openBlobs.values()) {
      if (blob.key !== key && blob.digest === digest && blob.isWhole && blob.sizeBytes === source.sizeBytes) return dataPath(blob.dir);
    }
    const dir = await this.tree.wholeDirOf(digest, key);
    return dir === undefined ? undefined : dataPath(dir);
  }

  /** Tells the keys of unpinned blobs that are not on disk any more. */
  onRemoved(listener: (key: string) => void): void {
    this.removedListeners.push(listener);
  }

  /** The caller holds the key, and nobody uses the blob. */
  private async removeIfDoomed(key: string): Promise<void> {
    if (await this.tree.removeIfDoomed(key)) for (const listener of this.removedListeners) listener(key);
  }

  private async forget(blob: Blob): Promise<void> {
    this.openBlobs.delete(blob.key);
    this.presenceBytes -= presenceBytesOf(blob.sizeBytes);
    this.memory.deleteRange(blob.id, 0, blob.unitCount);
    await this.tolerate(`close blob ${blob.digest}`, () => blob.close());
  }

  /** Checkpoint, ledger and recency of one blob. */
  private async settle(blob: Blob): Promise<void> {
    await this.tolerate(`checkpoint of blob ${blob.digest}`, async () => {
      await blob.checkpoint();
      await blob.refresh();
      if (blob.references === 0 && blob.hasFile && blob.diskBytes > 0) await this.fs.touch(mapPath(blob.dir), this.options.clock.nowMs());
    });
  }

  /** Does work on the disk; a disk that refuses is a state, not a failure. */
  private async tolerate(doing: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
      this.health.diskFailed(error, doing);
    }
  }

  /** Tells when the last handle of a blob goes; fetches for it have no reader any more. */
  onUnreferenced(listener: (blobId: number) => void): void {
    this.unreferencedListeners.push(listener);
  }

  /**
   * Promises room for bytes that are about to be fetched, evicting idle blobs if need be. Undefined: there is none, and the bytes will
   * be kept in memory only. The reservation must be given to {@link write} or released.
   */
  reserve(bytes: number): Promise<Reservation | undefined> {
    return this.room.reserve(bytes);
  }

  /**
   * Makes fetched bytes readable: on disk if `reservation` is given and the disk takes them, else in memory. `offsetBytes` is a multiple
   * of the unit, and the bytes end at a unit's or the blob's end (asserted). `bytes` is borrowed until the promise settles. Releases
   * the reservation. Rejects with DataLoss when `verifyUnit` refuses a unit; nothing has become readable then.
   */
  async write(
    handle: BlobHandle,
    offsetBytes: number,
    bytes: Uint8Array,
    reservation: Reservation | undefined,
  ): Promise<{ isStored: boolean }> {
    const { blob } = handle;
    assert(offsetBytes % FETCH_UNIT_BYTES === 0 && offsetBytes + bytes.length <= blob.sizeBytes);
    assert(bytes.length % FETCH_UNIT_BYTES === 0 || offsetBytes + bytes.length === blob.sizeBytes);
    const first = offsetBytes / FETCH_UNIT_BYTES;
    this.enter(blob);
    try {
      this.verifyUnits(blob, offsetBytes, bytes);
      return await blob.writing(first, first + unitCountOf(bytes.length), async (write) => {
        // Closed: nobody reads it any more, and its memory would be taken from others.
        if (this.openBlobs.get(blob.key) !== blob) return { isStored: false };
        const isStored = reservation !== undefined && !blob.isBroken && (await this.tryWrite(blob, write, bytes));
        if (!isStored) this.keepInMemory(blob, write, bytes);
        return { isStored };
      });
    } finally {
      reservation?.release();
      this.leave(blob);
    }
  }

  private enter(blob: Blob): void {
    blob.busy += 1;
    this.busy += 1;
  }

  private leave(blob: Blob): void {
    blob.busy -= 1;
    this.busy -= 1;
    this.closeIfUnused(blob);
    if (this.busy === 0) this.onDrained?.();
  }

  private verifyUnits(blob: Blob, offsetBytes: number, bytes: Uint8Array): void {
    const { verifyUnit } = this.options;
    if (verifyUnit === undefined) return;
    for (let at = 0; at < bytes.length; at += FETCH_UNIT_BYTES) {
      const offset = offsetBytes + at;
      if (verifyUnit(blob.id, offset / FETCH_UNIT_BYTES, bytes.subarray(at, at + FETCH_UNIT_BYTES))) continue;
      throw new AppError('DataLoss', {
        op: 'verify unit',
        subject: blob.digest,
        what: `the bytes fetched at offset ${offset} are not those the chunk list names`,
        details: { blobId: blob.id, offset, length: FETCH_UNIT_BYTES },
      });
    }
  }

  private async tryWrite(blob: Blob, write: UnitWrite, bytes: Uint8Array): Promise<boolean> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        if (!(await blob.write(write, bytes))) return false;
        if (blob.isDirty) this.checkpoints.schedule();
        if (this.health.degradedBy !== undefined) this.health.succeeded();
        return true;
      } catch (error) {
        const code = errnoOf(error);
        if (code === undefined) throw error;
        // Others fill the same disk: give back what nobody uses, once, before living without.
        if (attempt === 1 && (code === 'ENOSPC' || code === 'EDQUOT') && this.tree.idleCount > 0) {
          await this.room.evict(bytes.length);
          continue;
        }
        this.health.diskFailed(error, `write blob ${blob.digest}`);
        return false;
      }
    }
  }

  private keepInMemory(blob: Blob, { firstUnit, dropped }: UnitWrite, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += FETCH_UNIT_BYTES) {
      const unit = firstUnit + at / FETCH_UNIT_BYTES;
      if (!blob.presence.isReadable(unit) && !dropped.has(unit)) this.memory.put(blob.id, unit, bytes.subarray(at, at + FETCH_UNIT_BYTES));
    }
  }

  /** Makes every present unit durable and sets the ledger right, one blob after the other (one disk flush at a time). */
  async checkpoint(): Promise<void> {
    for (const blob of [...this.openBlobs.values()]) if (blob.isDirty) await this.settle(blob);
  }

  /**
   * Forgets the units of a range, durably, because their bytes proved wrong. Rejects with DataLoss for a local file, which nothing can
   * fetch again. A disk that refuses makes the blob live in memory.
   */
  async drop(handle: BlobHandle, offsetBytes: number, lengthBytes: number): Promise<void> {
    const { blob, source } = handle;
    assert(offsetBytes >= 0 && lengthBytes > 0 && offsetBytes + lengthBytes <= blob.sizeBytes);
    if (source.localPath !== undefined) {
      throw refuse('DataLoss', source, `the local file ${source.localPath} is damaged at offset ${offsetBytes}`);
    }
    const first = Math.floor(offsetBytes / FETCH_UNIT_BYTES);
    const end = Math.ceil((offsetBytes + lengthBytes) / FETCH_UNIT_BYTES);
    this.memory.deleteRange(blob.id, first, end);
    this.enter(blob);
    await this.tolerate(`drop units of blob ${blob.digest}`, () => blob.drop(first, end)).finally(() => this.leave(blob));
  }

  /**
   * Checks a complete blob against its digest, in a worker thread, one blob at a time; one that was checked before only with `isAgain`.
   * `verified` is durable. `corrupt`: everything is forgotten and an event says so; `onCorrupt` is called as it is forgotten, before
   * anybody can miss it. Rejects with Canceled on abort, Internal when the file cannot be read.
   */
  async verifyComplete(
    handle: BlobHandle,
    signal?: AbortSignal,
    { isAgain = false, onCorrupt }: { isAgain?: boolean; onCorrupt?: () => void } = {},
  ): Promise<'verified' | 'incomplete' | 'corrupt'> {
    const { blob } = handle;
    this.enter(blob);
    try {
      return await this.verifyLock.run(async () => {
        for (;;) {
          if (blob.isWhole && !isAgain) return 'verified';
          if (!blob.isComplete || !blob.hasFile || blob.isBroken) return 'incomplete';
          const { generation } = blob.presence;
          const digest = await hashFile(blob.presence.fd, blob.sizeBytes, signal);
          // Units were taken away, and perhaps brought again: what is there now was not hashed.
          if (blob.presence.generation !== generation) continue;
          if (digest !== blob.digest) {
            onCorrupt?.();
            return this.foundCorrupt(handle, digest);
          }
          await this.tolerate(`mark blob ${blob.digest} complete`, async () => {
            await blob.markWhole();
            await blob.refresh();
          });
          if (blob.presence.generation === generation) return 'verified';
        }
      });
    } finally {
      this.leave(blob);
    }
  }

  private async foundCorrupt(handle: BlobHandle, digest: Digest): Promise<'corrupt'> {
    const detail = `all bytes are there, but their digest is ${digest}`;
    this.log.error({ digest: handle.blob.digest, detail }, 'a fetched blob is not what its digest names');
    this.tell({ kind: 'blob-corrupt', digest: handle.blob.digest, detail });
    await this.drop(handle, 0, handle.blob.sizeBytes);
    return 'corrupt';
  }

  /** At most `limit` of the blobs that take room: idle ones in the order in which they would be evicted, then pinned, then open ones. */
  list(limit: number): StoredBlob[] {
    const rows: StoredBlob[] = [];
    for (const { key, diskBytes, isPinned } of this.tree.unused()) {
      if (rows.length >= limit) return rows;
      rows.push({ key, diskBytes, use: isPinned ? 'pinned' : 'idle' });
    }
    for (const { key, diskBytes } of this.openBlobs.values()) {
      if (rows.length >= limit) return rows;
      rows.push({ key, diskBytes, use: 'open' });
    }
    return rows;
  }

  /** Removes idle blobs, least recently used first, until `bytes` are freed or none is left. */
  evict(bytes: number): Promise<{ blobs: number; bytes: number }> {
    return this.room.evict(bytes);
  }

  /** The account as the store knows it; after a checkpoint it equals `du` (see {@link refreshUsage}). */
  usage(): StoreUsage {
    return {
      bytes: this.ledger.usedBytes,
      budgetBytes: this.ledger.budgetBytes,
      blobs: this.openBlobs.size + this.tree.unusedCount,
      reservedBytes: this.ledger.reservedBytes,
      memoryBytes: this.memory.usedBytes,
      degradedBy: this.health.degradedBy,
    };
  }

  /** The account after asking the disk about every blob. Rejects with system errors. */
  async refreshUsage(): Promise<StoreUsage> {
    for (const blob of [...this.openBlobs.values()]) await blob.refresh();
    await this.tree.refreshUnused();
    await this.tree.refreshDirs();
    return this.usage();
  }

  /** Waits for writes under way, makes everything durable, closes all descriptors. No thread may read through the store any more. */
  async close(): Promise<void> {
    this.stop.abort();
    await this.checkpoints.ended();
    if (this.busy > 0) await new Promise<void>((resolve) => (this.onDrained = resolve));
    await Promise.allSettled(this.closings);
    for (const blob of [...this.openBlobs.values()]) {
      await this.keys.run(blob.key, async () => {
        await this.settle(blob);
        await this.forget(blob);
      });
    }
  }

  private tell(event: StoreEvent): void {
    this.options.onEvent?.(event);
  }
}

function refuse(code: 'InvalidArgument' | 'ResourceExhausted' | 'DataLoss', source: BlobSource, what: string): AppError {
  return new AppError(code, { op: 'use blob', subject: source.digest, what });
}
