/**
 * Room for caches: numbers of manual and automatic ones, and bytes. What gives way is chosen here; whoever asks waits for its turn, so that
 * two never take the same place (R100 – R103). Ours.
 */
import pLimit from 'p-limit';
import { AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { formatBytes } from '../base/units.ts';
import { unlessAborted } from '../base/unless-aborted.ts';
import { ByteLedger } from './byte-ledger.ts';
import { type CacheRecord, countedImages, hasWork, pinnedOf } from './cache-record.ts';
import type { Catalogue } from './catalogue.ts';
import type { ImageStore } from './image-store.ts';
import { byLeastRecentUse, mayGiveWay } from './retention.ts';
import type { CacheOwner } from './types.ts';
import { cacheError } from './validation.ts';

/** Changes that wait for their turn: each takes a moment unless containerd hangs, and then more of them help nobody. */
const MAX_WAITING = 200;
/** How long containerd may take to say what is in use. */
const IN_USE_LIMIT_MS = 10_000;

export interface AdmissionLimits {
  readonly maxCount: number;
  readonly maxAutomaticCount: number;
  readonly budgetBytes: number;
}

export interface AdmissionParts {
  readonly catalogue: Catalogue;
  readonly store: Pick<ImageStore, 'inUse'>;
  readonly limits: AdmissionLimits;
  readonly logger: Logger;
  /** Removes a cache that gives way; resolves when it is gone from the catalogue. */
  remove(id: string, why: string): Promise<void>;
}

export class Admission {
  private readonly parts: AdmissionParts;
  private readonly turn = pLimit(1);

  constructor(parts: AdmissionParts) {
    this.parts = parts;
  }

  /** Runs alone among all that may change how much room there is. Throws Unavailable when too many wait. */
  exclusive<T>(work: () => Promise<T>): Promise<T> {
    if (this.turn.pendingCount >= MAX_WAITING) {
      throw new AppError('Unavailable', {
        ...{ op: 'change', subject: 'image caches', what: `${MAX_WAITING} changes wait already`, retryAfterMs: 1000 },
      });
    }
    return this.turn(work);
  }

  /** Makes room for one cache more; inside {@link exclusive}. Throws QuotaExceeded. */
  async roomForOne(owner: CacheOwner, signal?: AbortSignal): Promise<void> {
    const max = this.maxCount(owner);
    for (;;) {
      const pool = this.parts.catalogue.ofOwner(owner);
      if (pool.length < max) return;
      // A failed automatic cache holds nothing and helps nobody.
      const hasFailed = owner === 'system' && pool.some(isFailed);
      const [victim] = await this.idle(
        (record) => record.owner === owner && (hasFailed ? isFailed(record) : isDispensable(record)),
        signal,
      );
      if (victim === undefined) throw this.tooMany(owner, pool.length, max);
      await this.parts.remove(victim.id, `the quota of ${max} ${owner === 'user' ? 'manual' : 'automatic'} caches is reached`);
    }
  }

  /** True when {@link roomForOne} would find room; changes nothing. */
  async hasRoomForOne(owner: CacheOwner): Promise<boolean> {
    const pool = this.parts.catalogue.ofOwner(owner);
    if (pool.length < this.maxCount(owner)) return true;
    if (this.maxCount(owner) === 0) return false;
    return (await this.idle((record) => record.owner === owner && isDispensable(record))).length > 0;
  }

  /** The error of a full pool. */
  tooMany(owner: CacheOwner, used = this.parts.catalogue.ofOwner(owner).length, max = this.maxCount(owner)): AppError {
    const [kind, hint] =
      owner === 'user'
        ? (['manual', 'delete one, mark some with eliminationStrategy LRU, or raise caches.max_count'] as const)
        : (['automatic', 'all of them are in use or being built; caches.max_automatic_count can be raised'] as const);
    return cacheError('QuotaExceeded', {
      ...{ op: 'create', subject: 'image cache', what: `there are ${used} ${kind} caches and ${max} are allowed: ${hint}` },
      details: { used, limit: max },
    });
  }

  /**
   * Makes room for the bytes of a cache, which the ledger counts already. Automatic caches give way first. Throws QuotaExceeded; the signal's
   * reason at once, since whoever has the turn may be waiting for the end of this cache's work.
   */
  roomForBytes(record: CacheRecord, signal: AbortSignal): Promise<void> {
    const work = async (): Promise<void> => {
      const { catalogue, limits } = this.parts;
      const mayGo = (other: CacheRecord): boolean =>
        other.id !== record.id && mayGiveWay(other) && !hasWork(other) && (other.owner === 'system' || record.owner === 'user');
      for (;;) {
        signal.throwIfAborted();
        if (catalogue.ledger.totalBytes <= limits.budgetBytes) return;
        const found = await this.idle(mayGo, signal);
        const idle = [...found.filter(({ owner }) => owner === 'system'), ...found.filter(({ owner }) => owner === 'user')];
        // Nobody gives way for one that does not fit all the same.
        const leastBytes = this.bytesWithout(idle);
        if (leastBytes > limits.budgetBytes) throw this.tooLarge(record, leastBytes);
        // Of those that share all they have, one must begin. None: while containerd was asked, one that could not give way went all the same.
        const victim = idle.find(({ id }) => catalogue.ledger.freedBy(id) > 0) ?? idle[0];
        if (victim === undefined || catalogue.ledger.totalBytes <= limits.budgetBytes) return;
        await this.parts.remove(victim.id, `its bytes are needed for ${record.name}`);
      }
    };
    return unlessAborted(this.exclusive(work), signal);
  }

  private bytesWithout(gone: readonly CacheRecord[]): number {
    const without = new Set(gone.map((record) => record.id));
    const ledger = new ByteLedger();
    for (const record of this.parts.catalogue.all()) if (!without.has(record.id)) ledger.set(record.id, pinnedOf(countedImages(record)));
    return ledger.totalBytes;
  }

  private tooLarge(record: CacheRecord, neededBytes: number): AppError {
    const { budgetBytes } = this.parts.limits;
    return cacheError('QuotaExceeded', {
      ...{ op: 'create', subject: record.name },
      what: `with all that cannot give way it would take ${formatBytes(neededBytes)}, and caches may have ${formatBytes(budgetBytes)} (caches.budget_bytes)`,
      details: { neededBytes, limitBytes: budgetBytes },
    });
  }

  /**
   * Of those that may go, the ones that no container uses, least recently used first. What cannot be told counts as used; what changes while
   * containerd is asked counts too: a pod is given one, or somebody updates it.
   */
  private async idle(mayGo: (record: CacheRecord) => boolean, signal?: AbortSignal): Promise<CacheRecord[]> {
    const { catalogue, store, logger } = this.parts;
    const ids = new Set(catalogue.all().flatMap((record) => (mayGo(record) ? record.id : [])));
    if (ids.size === 0) return [];
    const deadline = AbortSignal.timeout(IN_USE_LIMIT_MS);
    try {
      const used = await store.inUse([...ids], signal === undefined ? deadline : AbortSignal.any([signal, deadline]));
      return catalogue
        .all()
        .filter((record) => ids.has(record.id) && mayGo(record) && !used.has(record.id))
        .sort(byLeastRecentUse);
    } catch (error) {
      logger.warn({ reason: describeError(error) }, 'what is in use cannot be told; no cache gives way');
      return [];
    }
  }

  private maxCount(owner: CacheOwner): number {
    return owner === 'user' ? this.parts.limits.maxCount : this.parts.limits.maxAutomaticCount;
  }
}

function isFailed({ status }: CacheRecord): boolean {
  return status === 'Failed';
}

/** May give way, and nobody waits for it. A flash cache that is being filled serves already. */
function isDispensable(record: CacheRecord): boolean {
  return mayGiveWay(record) && (!hasWork(record) || record.status === 'Ready');
}
