/**
 * Lets go of what caches no longer hold, until it is done: after a deletion, a failure, an update, and for what a kill left. Ours.
 */
import { describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { countedImages, pinnedOf } from './cache-record.ts';
import type { Catalogue } from './catalogue.ts';
import type { ImageStore } from './image-store.ts';

/** Dropping a lease and its records takes containerd a second or two. */
const RELEASE_LIMIT_MS = 60_000;
const LIST_LIMIT_MS = 30_000;

export interface ReleaserParts {
  readonly catalogue: Catalogue;
  readonly store: Pick<ImageStore, 'release' | 'list'>;
  readonly logger: Logger;
  readonly signal: AbortSignal;
}

export class Releaser {
  private readonly parts: ReleaserParts;
  /** Caches that may own more than they hold. At most those that exist, existed since the start, or were left. */
  private readonly owed = new Set<string>();
  private readonly running = new Map<string, Promise<void>>();
  /** What an earlier process left is known. False for a while at boot: containerd starts after this service. */
  hasLooked = false;
  /** Why the last attempt failed, as a sentence. */
  complaint: string | undefined;

  constructor(parts: ReleaserParts) {
    this.parts = parts;
  }

  /** True when nothing waits to be let go. */
  get isDone(): boolean {
    return this.hasLooked && this.owed.size === 0;
  }

  /** Drops what the cache owns beyond what it holds; resolves when that is done or has failed (then {@link retry} does it). */
  release(id: string): Promise<void> {
    this.owed.add(id);
    const done = this.idle(id)
      .then(() => this.releaseOne(id))
      .finally(() => {
        if (this.running.get(id) === done) this.running.delete(id);
      });
    this.running.set(id, done);
    return done;
  }

  /** Resolves when nothing of the cache is being dropped: what is prepared meanwhile could go with it. */
  idle(id: string): Promise<void> {
    return this.running.get(id) ?? Promise.resolve();
  }

  /** Looks for what an earlier process left, once, and tries again what failed. `isBusy`: caches that are being built keep all they have. */
  async retry(isBusy: (id: string) => boolean): Promise<void> {
    if (!this.hasLooked) await this.look(isBusy);
    // Of those that are owed now: one that fails is owed again.
    for (const id of [...this.owed]) {
      if (this.parts.signal.aborted) return;
      if (!isBusy(id)) await this.release(id);
    }
  }

  private async look(isBusy: (id: string) => boolean): Promise<void> {
    const { store, catalogue, signal } = this.parts;
    try {
      const owners = await store.list(AbortSignal.any([signal, AbortSignal.timeout(LIST_LIMIT_MS)]));
      for (const id of owners) if (catalogue.find(id) === undefined || !isBusy(id)) this.owed.add(id);
      this.hasLooked = true;
      if (this.owed.size === 0) this.complaint = undefined;
    } catch (error) {
      if (!signal.aborted) this.complain('what caches own cannot be listed', error);
    }
  }

  private async releaseOne(id: string): Promise<void> {
    const { store, catalogue, signal } = this.parts;
    const record = catalogue.find(id);
    const keep = record === undefined ? [] : pinnedOf(countedImages(record));
    this.owed.delete(id);
    try {
      await store.release(id, keep, AbortSignal.any([signal, AbortSignal.timeout(RELEASE_LIMIT_MS)]));
      if (this.owed.size === 0) this.complaint = undefined;
    } catch (error) {
      this.owed.add(id);
      if (!signal.aborted) this.complain(`${id} cannot be let go`, error);
    }
  }

  private complain(what: string, error: unknown): void {
    this.complaint = `Image caches: ${what}: ${describeError(error)}.`;
    this.parts.logger.warn({ reason: describeError(error) }, what);
  }
}
