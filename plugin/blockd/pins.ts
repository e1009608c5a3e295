/**
 * Blobs that somebody keeps: image caches. A pinned blob is never evicted; it is filled, and its digest checked, when its owner asks. Pins
 * survive this process. Ours.
 *
 *   set(owner, blobs) ─► file, then pins ─► fill(owner, blob) …        all blobs together within the store's budget
 *   release(owner)    ─► file says so ─► unpinned: blobs that nobody else pins are removed, at once or when their last reader goes ─► file gone
 */
import { type FileHandle, open } from 'node:fs/promises';
import pLimit from 'p-limit';
import { isDigest } from '../base/digest.ts';
import { AppError, describeError, errnoOf, isAppError } from '../base/errors.ts';
import { FETCH_STREAM_BYTES } from '../base/limits.ts';
import type { Logger } from '../base/log.ts';
import type { BlobSource } from '../file/device-spec.ts';
import type { BlobHandle } from '../file/store/blob-handle.ts';
import { blobKeyOf } from '../file/store/blob-key.ts';
import type { ChunkStore } from '../file/store/chunk-store.ts';
import type { ChunkVerifier } from './chunk-verifier.ts';
import type { FetchScheduler } from './fetch/fetch-scheduler.ts';
import { fetchAndVerify } from './fills.ts';
import { MAX_PINNED_BLOBS, type PinFiles } from './pin-files.ts';

/** The images of 525 caches (the default quotas) with twenty each, and what is being made. */
const MAX_OWNERS = 16_384;

/** Of the budget; the rest is for containers whose images nobody caches, without which every read of theirs would go to the registry. */
const PINNED_SHARE = 0.9;

export interface PinnedBlob {
  digest: string;
  sizeBytes: number;
  /** On disk, whole, and its digest was checked. */
  isWhole: boolean;
  /** What it takes on disk. */
  diskBytes: number;
}

interface PinParts {
  store: ChunkStore;
  scheduler: FetchScheduler;
  chunks: ChunkVerifier;
  files: PinFiles;
  budgetBytes: number;
  log: Logger;
}

interface Owner {
  isReleased: boolean;
  /** By key. */
  blobs: Map<string, BlobSource>;
}

interface Progress {
  /** Sizes by digest. */
  done: Map<string, number>;
  filling: Set<BlobHandle>;
}

export class Pins {
  private readonly parts: PinParts;
  private readonly owners = new Map<string, Owner>();
  private readonly progress = new Map<string, Progress>();
  /** How many owners that are not released pin a key. */
  private readonly counts = new Map<string, number>();
  private pinnedBytes = 0;
  /** One change of files and counts at a time. */
  private readonly change = pLimit(1);

  constructor(parts: PinParts) {
    this.parts = parts;
    parts.store.onRemoved((key) => this.removed(key));
  }

  /** Takes up what an earlier process pinned. Before anything is fetched. Rejects with system errors of the directory. */
  async restore(): Promise<void> {
    const files = await this.parts.files.load();
    for (const file of files) this.owners.set(file.owner, { isReleased: file.isReleased, blobs: byKey(file.blobs) });
    for (const { isReleased, blobs } of this.owners.values()) if (!isReleased) this.count(blobs.values());
    for (const file of files.filter(({ isReleased }) => isReleased)) await this.drop(file.owner);
  }

  /**
   * Makes these the blobs of an owner: those it no longer names are let go. Durable when it resolves. Errors: ResourceExhausted with
   * `neededBytes` and `limitBytes` (all pinned blobs together do not fit the store), InvalidArgument.
   */
  set(owner: string, sources: readonly BlobSource[]): Promise<void> {
    return this.change(async () => {
      const blobs = byKey(sources.filter(({ localPath }) => localPath === undefined));
      const before = this.owners.get(owner);
      this.checkRoom(owner, blobs, before);
      // Until the new list is on disk, what stands on the old one is pinned too.
      const kept = before === undefined || before.isReleased ? new Map<string, BlobSource>() : before.blobs;
      const added = [...blobs].filter(([key]) => !kept.has(key)).map(([, blob]) => blob);
      const dropped = [...kept].filter(([key]) => !blobs.has(key)).map(([, blob]) => blob);
      await this.parts.files.write({ owner, isReleased: false, blobs: [...blobs.values()] });
      this.owners.set(owner, { isReleased: false, blobs });
      this.count(added);
      await this.uncount(dropped);
    });
  }

  /**
   * Makes a pinned blob whole and checks its digest; with `isCheckedAgain` also when it was checked before, and what has gone bad on the disk
   * since is fetched anew. Errors: FailedPrecondition (not pinned for the owner), those of fetchAndVerify.
   */
  async fill(
    owner: string,
    source: BlobSource,
    signal: AbortSignal,
    { isCheckedAgain = false }: { isCheckedAgain?: boolean } = {},
  ): Promise<{ path: string; fetchedBytes: number }> {
    const held = this.owners.get(owner);
    if (held === undefined || held.isReleased || !held.blobs.has(blobKeyOf(source))) {
      throw new AppError('FailedPrecondition', { op: 'fill pinned blob', subject: source.digest, what: `${owner} does not pin it` });
    }
    // Before anything else happens: an owner that is released meanwhile must not come back by it.
    const progress = this.progressOf(owner);
    const handle = await this.parts.store.acquire(source);
    try {
      if (isCheckedAgain && handle.isVerified) await this.parts.store.verifyComplete(handle, signal, { isAgain: true });
      const before = handle.counts().presentBytes;
      progress.filling.add(handle);
      const copiedBytes = await this.copyWhole(handle, signal);
      try {
        await fetchAndVerify(this.parts, handle, signal);
      } catch (error) {
        // The other blob may have gone bad on the disk since it was checked; nothing of it is left, and the registry is asked.
        if (copiedBytes === 0 || !isAppError(error, 'DataLoss')) throw error;
        await fetchAndVerify(this.parts, handle, signal);
      }
      return { path: handle.dataPath, fetchedBytes: Math.max(0, handle.sizeBytes - before - copiedBytes) };
    } finally {
      progress.filling.delete(handle);
      if (handle.isVerified) progress.done.set(source.digest, handle.sizeBytes);
      handle.release();
    }
  }

  /**
   * Takes the bytes of the same blob that another registry gave and whose digest was checked; units that are here already stay. Whatever
   * does not come this way is fetched. Answers how many bytes came.
   */
  private async copyWhole(handle: BlobHandle, signal: AbortSignal): Promise<number> {
    if (handle.isVerified) return 0;
    const { store } = this.parts;
    const { presentBytes } = handle.counts();
    const from = await store.wholeFileOf(handle.source);
    if (from === undefined) return 0;
    await using file = await openIfThere(from);
    for (let offset = 0; offset < handle.sizeBytes && file !== undefined && !signal.aborted; offset += FETCH_STREAM_BYTES) {
      const bytes = Buffer.allocUnsafe(Math.min(FETCH_STREAM_BYTES, handle.sizeBytes - offset));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, offset);
      const reservation = bytesRead < bytes.length ? undefined : await store.reserve(bytes.length);
      if (reservation === undefined) break;
      await store.write(handle, offset, bytes, reservation);
    }
    return handle.counts().presentBytes - presentBytes;
  }

  /** Bytes that are here, by digest, of the blobs that {@link fill} was asked for in this process. */
  filledBytes(owner: string): Record<string, number> {
    const progress = this.progress.get(owner);
    if (progress === undefined) return {};
    const filling = [...progress.filling].map((handle): [string, number] => [handle.source.digest, handle.counts().presentBytes]);
    return Object.fromEntries([...filling, ...progress.done]);
  }

  /** What an owner pins, as the disk has it; an unknown one pins nothing. */
  async status(owner: string): Promise<PinnedBlob[]> {
    const held = this.owners.get(owner);
    const sources = held === undefined || held.isReleased ? [] : [...held.blobs.values()];
    const { store } = this.parts;
    return Promise.all(
      sources.map(async (source) => ({
        digest: source.digest,
        sizeBytes: source.sizeBytes,
        isWhole: await store.isWhole(source),
        diskBytes: store.diskBytesOf(source),
      })),
    );
  }

  /** Owners that pin something. */
  list(): string[] {
    return [...this.owners].filter(([, { isReleased }]) => !isReleased).map(([owner]) => owner);
  }

  /** Which of these are whole on disk, whoever brought them. */
  async wholeOf(digests: readonly string[]): Promise<string[]> {
    return [...(await this.parts.store.wholeOf(new Set(digests.filter(isDigest))))];
  }

  /** Lets go of all that an owner pins. Durable when it resolves; bytes that are still read go later. An unknown owner is no error. */
  release(owner: string): Promise<void> {
    return this.change(async () => {
      const held = this.owners.get(owner);
      this.progress.delete(owner);
      if (held === undefined || held.isReleased) return;
      await this.parts.files.write({ owner, isReleased: true, blobs: [...held.blobs.values()] });
      held.isReleased = true;
      await this.uncount(held.blobs.values());
      await this.drop(owner);
    });
  }

  private checkRoom(owner: string, blobs: ReadonlyMap<string, BlobSource>, before: Owner | undefined): void {
    if (blobs.size > MAX_PINNED_BLOBS) throw tooMany(owner, `${blobs.size} blobs, the limit is ${MAX_PINNED_BLOBS}`);
    if (before === undefined && this.owners.size >= MAX_OWNERS) throw tooMany(owner, `${MAX_OWNERS} owners pin blobs already`);
    const addedBytes = [...blobs].reduce((sum, [key, blob]) => sum + (this.counts.has(key) ? 0 : blob.sizeBytes), 0);
    const neededBytes = this.pinnedBytes + addedBytes;
    const limitBytes = Math.floor(this.parts.budgetBytes * PINNED_SHARE);
    if (addedBytes === 0 || neededBytes <= limitBytes) return;
    throw new AppError('ResourceExhausted', {
      op: 'pin blobs for',
      subject: owner,
      what: `pinned blobs would take ${neededBytes} bytes, the store has room for ${limitBytes} (store.budget_bytes)`,
      details: { neededBytes, limitBytes },
    });
  }

  private count(sources: Iterable<BlobSource>): void {
    for (const source of sources) {
      const key = blobKeyOf(source);
      const count = this.counts.get(key) ?? 0;
      this.counts.set(key, count + 1);
      if (count > 0) continue;
      this.pinnedBytes += source.sizeBytes;
      this.parts.store.pin(source);
    }
  }

  private async uncount(sources: Iterable<BlobSource>): Promise<void> {
    for (const source of sources) {
      const key = blobKeyOf(source);
      const count = this.counts.get(key) ?? 0;
      if (count > 1) this.counts.set(key, count - 1);
      if (count !== 1) continue;
      this.counts.delete(key);
      this.pinnedBytes -= source.sizeBytes;
      await this.parts.store.unpin(source);
    }
  }

  /** Forgets what is gone, or wanted by others, of a released owner, and the owner when nothing is left. */
  private async drop(owner: string): Promise<void> {
    const held = this.owners.get(owner);
    if (held === undefined || !held.isReleased) return;
    for (const [key, source] of [...held.blobs]) {
      if (!this.counts.has(key)) await this.parts.store.unpin(source);
      if (this.counts.has(key) || this.parts.store.diskBytesOf(source) === 0) held.blobs.delete(key);
    }
    if (held.blobs.size > 0) return;
    this.owners.delete(owner);
    await this.parts.files.remove(owner);
  }

  private removed(key: string): void {
    for (const [owner, { isReleased, blobs }] of this.owners) {
      if (!isReleased || !blobs.delete(key) || blobs.size > 0) continue;
      this.change(() => this.drop(owner)).catch((error: unknown) => {
        this.parts.log.warn(
          { owner, reason: describeError(error) },
          'a list of released blobs cannot be removed; the next start tries again',
        );
      });
    }
  }

  private progressOf(owner: string): Progress {
    const known = this.progress.get(owner) ?? { done: new Map(), filling: new Set() };
    this.progress.set(owner, known);
    return known;
  }
}

/** Undefined: it went meanwhile. */
async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

function byKey(sources: readonly BlobSource[]): Owner['blobs'] {
  return new Map(sources.map((source) => [blobKeyOf(source), source]));
}

function tooMany(owner: string, what: string): AppError {
  return new AppError('InvalidArgument', { op: 'pin blobs for', subject: owner, what });
}
