/** Whole blobs on demand: for people who want an image's layers as files (`obdctl materialize`), and for caches. */
import { AppError } from '../base/errors.ts';
import { FETCH_STREAM_BYTES } from '../base/limits.ts';
import type { BlobSource } from '../file/device-spec.ts';
import type { BlobHandle } from '../file/store/blob-handle.ts';
import { blobKeyOf } from '../file/store/blob-key.ts';
import type { ChunkStore } from '../file/store/chunk-store.ts';
import type { ChunkVerifier } from './chunk-verifier.ts';
import type { FetchScheduler } from './fetch/fetch-scheduler.ts';

/** Asked for at once: sixteen requests of a stream. */
const STEP_BYTES = 16 * FETCH_STREAM_BYTES;

/**
 * The scheduler checks what is complete as well, and takes wrong bytes away; asked again, it fetches the whole once more, and then says that
 * the registry's bytes are wrong.
 */
const ATTEMPTS = 3;

/** How long a fetched blob is safe from eviction, so that the caller can read it. */
const HOLD_MS = 10 * 60_000;

/** Blobs held at once: an image of the most layers the format knows. */
const MAX_HELD = 255;

export interface FillParts {
  store: ChunkStore;
  scheduler: FetchScheduler;
  /** A device may read the blob while it is filled: what has a list is checked from the first unit on. */
  chunks: ChunkVerifier;
}

/**
 * Makes every byte of a blob local and checks its digest. Errors: DataLoss (the registry's bytes are not what the digest names),
 * ResourceExhausted (no room in the store), those of the registry.
 */
export async function fetchAndVerify(parts: FillParts, handle: BlobHandle, signal: AbortSignal): Promise<void> {
  if (handle.isVerified) return;
  await parts.chunks.load(handle, parts, signal);
  const { digest } = handle.source;
  let outcome: Awaited<ReturnType<ChunkStore['verifyComplete']>> = 'incomplete';
  for (let attempt = 1; outcome === 'incomplete' && attempt <= ATTEMPTS; attempt += 1) {
    await fetchAll(parts.scheduler, handle, signal);
    outcome = await parts.store.verifyComplete(handle, signal);
  }
  if (outcome === 'corrupt')
    throw new AppError('DataLoss', { op: 'verify blob', subject: digest, what: 'its bytes do not have this digest' });
  if (outcome === 'incomplete')
    throw new AppError('ResourceExhausted', { op: 'fetch whole blob', subject: digest, what: 'the store has no room for it' });
}

async function fetchAll(scheduler: FetchScheduler, handle: BlobHandle, signal: AbortSignal): Promise<void> {
  const { sizeBytes } = handle.source;
  for (let offsetBytes = 0; offsetBytes < sizeBytes; offsetBytes += STEP_BYTES) {
    const lengthBytes = Math.min(STEP_BYTES, sizeBytes - offsetBytes);
    await scheduler.ensure(handle, [{ offsetBytes, lengthBytes }], 'fill', signal);
  }
}

export class Fills {
  private readonly parts: FillParts;
  /** By key: one digest may have several blobs (store/blob-key.ts). */
  private readonly held = new Map<string, { handle: BlobHandle; timer: NodeJS.Timeout }>();

  constructor(parts: FillParts) {
    this.parts = parts;
  }

  /**
   * Makes every byte of a blob local, checks its digest and answers where its bytes lie; they stay there for ten minutes at least.
   * Errors: those of {@link fetchAndVerify}.
   */
  async fetchWhole(source: BlobSource, signal: AbortSignal): Promise<{ path: string; fetchedBytes: number }> {
    const { store } = this.parts;
    const handle = await store.acquire(source);
    try {
      const before = handle.counts().presentBytes;
      await fetchAndVerify(this.parts, handle, signal);
      this.hold(blobKeyOf(source), handle);
      return {
        path: handle.dataPath,
        fetchedBytes: Math.max(0, handle.sizeBytes - before),
      };
    } catch (error) {
      handle.release();
      throw error;
    }
  }

  /** Gives all held blobs back. */
  close(): void {
    for (const key of [...this.held.keys()]) this.letGo(key);
  }

  private hold(key: string, handle: BlobHandle): void {
    this.letGo(key);
    const oldest = this.held.keys().next().value;
    if (this.held.size >= MAX_HELD && oldest !== undefined) this.letGo(oldest);
    const timer = setTimeout(() => this.letGo(key), HOLD_MS);
    timer.unref();
    this.held.set(key, { handle, timer });
  }

  private letGo(key: string): void {
    const held = this.held.get(key);
    if (held === undefined) return;
    this.held.delete(key);
    clearTimeout(held.timer);
    held.handle.release();
  }
}
