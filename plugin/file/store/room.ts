/** Room under the store's budget: promised before a fetch, made by evicting what nobody uses. Ours. */
import type { DiskHealth } from './disk-health.ts';
import type { DiskTree } from './disk-tree.ts';
import type { Ledger, Reservation } from './ledger.ts';
import { type KeyedMutex, Mutex } from './mutex.ts';

export interface RoomParts {
  ledger: Ledger;
  tree: DiskTree;
  health: DiskHealth;
  keys: KeyedMutex;
  /** Blobs whose last user has gone; they can be evicted once these settle. */
  closings: ReadonlySet<Promise<void>>;
}

export class StoreRoom {
  private readonly parts: RoomParts;
  /** One eviction at a time: two at once would remove twice what is wanted. */
  private readonly lock = new Mutex();

  constructor(parts: RoomParts) {
    this.parts = parts;
  }

  /** See {@link ChunkStore.reserve}. */
  async reserve(bytes: number): Promise<Reservation | undefined> {
    const { ledger, tree, health, keys, closings } = this.parts;
    if (!health.mayTry()) return undefined;
    const reservation = ledger.reserve(bytes);
    if (reservation !== undefined) return reservation;
    if (tree.idleCount === 0 && closings.size === 0) return this.none(bytes);
    return this.lock.run(async () => {
      const excess = (): number => ledger.excessOf(bytes);
      await tree.evict(excess, keys);
      if (excess() > 0 && closings.size > 0) {
        await Promise.allSettled(closings);
        await tree.evict(excess, keys);
      }
      return ledger.reserve(bytes) ?? this.none(bytes);
    });
  }

  /** Removes idle blobs, least recently used first, until `bytes` are freed or none is left. */
  evict(bytes: number): Promise<{ blobs: number; bytes: number }> {
    const { ledger, tree, keys } = this.parts;
    return this.lock.run(() => {
      const usedBefore = ledger.usedBytes;
      return tree.evict(() => bytes - (usedBefore - ledger.usedBytes), keys);
    });
  }

  private none(bytes: number): undefined {
    const { usedBytes, reservedBytes, budgetBytes } = this.parts.ledger;
    const inUse = `${usedBytes} bytes in use and ${reservedBytes} reserved of ${budgetBytes}`;
    this.parts.health.outOfBudget(`no room for ${bytes} bytes: ${inUse}, nothing idle to evict`);
    return undefined;
  }
}
