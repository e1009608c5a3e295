/** A counted reference to a stored blob: what devices and the fetch scheduler hold. Main thread only; threads get {@link BlobHandle.shared}. */
import assert from 'node:assert/strict';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { BlobSource } from '../device-spec.ts';
import type { Blob } from './blob.ts';
import { dataPath } from './blob-dir.ts';
import { BlobFile, type SharedBlob } from './blob-file.ts';
import { UNIT_ACCESSED, UNIT_MARKED } from './presence.ts';
import type { UnitCache } from './unit-cache.ts';

export class BlobHandle {
  /** The store's own; not for other parts. */
  readonly blob: Blob;
  readonly source: BlobSource;
  private readonly memory: UnitCache;
  private readonly onRelease: () => void;
  private held = true;

  constructor(blob: Blob, source: BlobSource, memory: UnitCache, onRelease: () => void) {
    this.blob = blob;
    this.source = source;
    this.memory = memory;
    this.onRelease = onRelease;
  }

  /** False after {@link release}. */
  get isHeld(): boolean {
    return this.held;
  }

  get blobId(): number {
    return this.blob.id;
  }

  /** Where the blob's bytes lie: whole only when {@link isVerified}. */
  get dataPath(): string {
    return this.source.localPath ?? dataPath(this.blob.dir);
  }

  get sizeBytes(): number {
    return this.blob.sizeBytes;
  }

  get unitCount(): number {
    return this.blob.unitCount;
  }

  /** True when all units are on disk; false while some are in memory only. */
  get isComplete(): boolean {
    return this.blob.isComplete;
  }

  /** True when the blob is complete and its digest was checked (or it is a local file). */
  get isVerified(): boolean {
    return this.blob.isWhole;
  }

  /** True when a read of the unit on this thread would be answered: on disk or in memory. */
  isReadable(unit: number): boolean {
    return this.blob.presence.isReadable(unit) || this.memory.has(this.blob.id, unit);
  }

  /** True when some reader has read the unit. */
  isAccessed(unit: number): boolean {
    return (this.blob.presence.get(unit) & UNIT_ACCESSED) !== 0;
  }

  /** Marks the unit: the first reader that hits it reports {@link MissingRanges.readAhead}. */
  mark(unit: number): void {
    assert(unit < this.blob.unitCount);
    this.blob.presence.set(unit, UNIT_MARKED);
  }

  /** What a worker thread needs to build its {@link BlobFile}; valid until {@link release}. */
  shared(): SharedBlob {
    assert(this.held);
    const { id, digest, sizeBytes, presence } = this.blob;
    return { blobId: id, digest, sizeBytes, presence: presence.buffer };
  }

  /** The blob as a file for this thread; also sees units that only memory holds. */
  file(): BlobFile {
    return new BlobFile(this.shared(), this.memory);
  }

  /** Bytes on disk, and bytes that some reader has touched; one pass over the blob's units. */
  counts(): { presentBytes: number; accessedBytes: number } {
    const accessed = this.blob.presence.count(UNIT_ACCESSED);
    const bytes = (units: number): number => Math.min(units * FETCH_UNIT_BYTES, this.blob.sizeBytes);
    return { presentBytes: bytes(this.blob.presentUnits), accessedBytes: bytes(accessed) };
  }

  /**
   * Gives the reference back; later calls do nothing. Only after every thread has dropped the files it built from {@link shared}: the
   * last release closes the descriptor.
   */
  release(): void {
    if (!this.held) return;
    this.held = false;
    this.onRelease();
  }
}
