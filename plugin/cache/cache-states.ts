/**
 * States of an image cache (R122, R123, R124, R126).
 *
 *                        ┌────────────── found damaged, fetched again ─────────────┐
 *                        ▼                                                         │
 *   Preparing ──► Creating ──► Ready ◄──► Updating ──► UpdateFailed ──► Updating   │
 *       │            │          │ │                        │                       │
 *       └──► Failed ◄┴──────────┘ └────────────────────────┴───────────────────────┘
 *
 * Preparing: accepted; its images are being looked up. Creating: their content is being brought. A Failed cache holds nothing and goes after a
 * day; Ready becomes Failed when a flash cache cannot be made whole. Ready, Updating and UpdateFailed serve pods.
 */
import assert from 'node:assert';
import type { CacheState } from './types.ts';

/** The one table of allowed moves. */
export const CACHE_MOVES: Readonly<Record<CacheState, readonly CacheState[]>> = {
  Preparing: ['Creating', 'Failed'],
  Creating: ['Ready', 'Failed'],
  Ready: ['Updating', 'Creating', 'Failed'],
  Updating: ['Ready', 'UpdateFailed'],
  UpdateFailed: ['Updating', 'Creating'],
  Failed: [],
};

const SERVING: ReadonlySet<CacheState> = new Set<CacheState>(['Ready', 'Updating', 'UpdateFailed']);
const WORKING: ReadonlySet<CacheState> = new Set<CacheState>(['Preparing', 'Creating', 'Updating']);

/** A move that is not in the table is a broken invariant. */
export function assertMove(from: CacheState, to: CacheState): void {
  assert(CACHE_MOVES[from].includes(to), `a cache moves from ${from} to ${CACHE_MOVES[from].join(' or ') || 'nothing'}, not to ${to}`);
}

/** True when the cache has content that pods may start from. */
export function isServing(state: CacheState): boolean {
  return SERVING.has(state);
}

/** True when something has to be done for it; a Ready flash cache that is not whole has work too. */
export function isWorking(state: CacheState): boolean {
  return WORKING.has(state);
}
