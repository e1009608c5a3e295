/**
 * Which credentials registries refused lately, so that others for the same repository are taken first: two pods may bring different ones,
 * and what the one lost must not take the image from the other's container. Only the order is changed; the last ones are still tried.
 */
import { LRUCache } from 'lru-cache';
import { type Credential, credentialFingerprint } from '../credentials.ts';

/** More than a node has repositories with several credentials. */
const MAX_REFUSALS = 4_096;
/** Longer would keep credentials back that were only not yet known everywhere. */
const REFUSED_MS = 10 * 60_000;

export class Refusals {
  private readonly nowMs: () => number;
  private readonly untilMs = new LRUCache<string, number>({ max: MAX_REFUSALS });

  constructor(nowMs: () => number) {
    this.nowMs = nowMs;
  }

  add(credential: Credential): void {
    this.untilMs.set(credentialFingerprint(credential), this.nowMs() + REFUSED_MS);
  }

  has(credential: Credential): boolean {
    return (this.untilMs.get(credentialFingerprint(credential)) ?? 0) > this.nowMs();
  }
}
