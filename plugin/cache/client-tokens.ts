/**
 * Idempotency by client token: for a day the same token with the same request is the same change (R121). A token stands for the cache that it
 * made: when that one is gone, whoever removed it, the token is free again, and the request makes a new cache. Ours.
 */
import type { CacheStore } from '../../db/cache-store.ts';
import type { CacheTime } from './cache-time.ts';
import type { Secrets } from './secrets.ts';
import { cacheError } from './validation.ts';

export const TOKEN_LIFE_US = 24 * 3_600_000_000;

export class ClientTokens {
  private readonly store: CacheStore;
  private readonly time: CacheTime;
  private readonly secrets: Secrets;
  private readonly exists: (cacheId: string) => boolean;

  /** `exists`: whether there is a cache of this id. */
  constructor(store: CacheStore, time: CacheTime, secrets: Secrets, exists: (cacheId: string) => boolean) {
    this.store = store;
    this.time = time;
    this.secrets = secrets;
    this.exists = exists;
  }

  /** The cache that the token's request was about; undefined: it was not used. Throws IdempotentParameterMismatch. */
  find(scope: string, token: string | undefined, request: unknown): string | undefined {
    if (token === undefined) return undefined;
    const row = this.store.token(scope, token);
    if (row === undefined || this.time.nowUs() - row.createdUs > TOKEN_LIFE_US || !this.exists(row.cacheId)) return undefined;
    if (row.requestHash === this.secrets.hash(request)) return row.cacheId;
    throw cacheError('IdempotentParameterMismatch', {
      ...{ op: scope, subject: 'request', what: 'the client token was used for another request within the last 24 hours' },
    });
  }

  /** Remembers it; inside the transaction of the change. */
  add(scope: string, token: string | undefined, request: unknown, cacheId: string): void {
    if (token === undefined) return;
    this.store.forgetTokens(this.time.nowUs() - TOKEN_LIFE_US);
    this.store.putToken({ scope, token, requestHash: this.secrets.hash(request), cacheId, createdUs: this.time.nowUs() });
  }
}
