/**
 * When caches go by themselves, and which goes first when there is no room (R96, R97, R101 – R103, R124, C5). Pure; times are those of
 * `cache-time.ts`. Ours.
 */
import type { CacheRow } from '../../db/cache-store.ts';

const DAY_US = 24 * 3_600_000_000;

export interface RetentionRules {
  /** Days after creation, for automatic caches that no pod matched. */
  readonly unmatchedDays: number;
  /** Days after the last match, for automatic ones that pods matched. */
  readonly matchedDays: number;
}

type Ageing = Pick<CacheRow, 'owner' | 'retentionDays' | 'createdUs' | 'matchedUs' | 'failedUs' | 'status'>;

/** When the cache is removed; null: not by time. */
export function expiryUs(cache: Ageing, rules: RetentionRules): number | null {
  if (cache.status === 'Failed' && cache.failedUs !== null) return cache.failedUs + DAY_US;
  if (cache.retentionDays !== null) return cache.createdUs + cache.retentionDays * DAY_US;
  if (cache.owner === 'user') return null;
  return cache.matchedUs === null ? cache.createdUs + rules.unmatchedDays * DAY_US : cache.matchedUs + rules.matchedDays * DAY_US;
}

type Used = Pick<CacheRow, 'id' | 'createdUs' | 'matchedUs'>;

/** Least recently matched first; one that was never matched counts from its creation. */
export function byLeastRecentUse(a: Used, b: Used): number {
  return (a.matchedUs ?? a.createdUs) - (b.matchedUs ?? b.createdUs) || (a.id < b.id ? -1 : 1);
}

/** True when the cache may be removed to make room: automatic ones always, those of users when they are marked. */
export function mayGiveWay(cache: Pick<CacheRow, 'owner' | 'isLru'>): boolean {
  return cache.owner === 'system' || cache.isLru;
}
