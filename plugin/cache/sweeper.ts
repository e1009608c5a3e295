/**
 * What time does to caches: the expired go, what is owed is let go, old tokens and deletions are forgotten. Runs every minute; a sweep that
 * does not happen is made up for by the next. Ours.
 */
import type { CacheStore } from '../../db/cache-store.ts';
import { describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { CacheRecord } from './cache-record.ts';
import type { Catalogue } from './catalogue.ts';
import { TOKEN_LIFE_US } from './client-tokens.ts';
import type { ImageStore } from './image-store.ts';
import type { Releaser } from './releaser.ts';
import { expiryUs } from './retention.ts';

/** A deletion is answered as the first one was for so long. */
const TOMBSTONE_US = 24 * 3_600_000_000;
const IN_USE_LIMIT_MS = 10_000;

export interface SweeperParts {
  readonly catalogue: Catalogue;
  readonly cacheStore: CacheStore;
  readonly store: Pick<ImageStore, 'inUse'>;
  readonly releaser: Releaser;
  readonly logger: Logger;
  readonly signal: AbortSignal;
  isBusy(id: string): boolean;
  remove(id: string, why: string): Promise<void>;
}

export class Sweeper {
  private readonly parts: SweeperParts;
  private warnedOfUs: number | undefined;

  constructor(parts: SweeperParts) {
    this.parts = parts;
  }

  async sweep(): Promise<void> {
    const { catalogue, cacheStore, releaser, isBusy } = this.parts;
    const nowUs = catalogue.time.nowUs();
    this.warnOfJump(nowUs);
    await this.expire(nowUs);
    await releaser.retry(isBusy);
    catalogue.flush();
    cacheStore.forgetDeleted(nowUs - TOMBSTONE_US);
    cacheStore.forgetTokens(nowUs - TOKEN_LIFE_US);
  }

  private async expire(nowUs: number): Promise<void> {
    const expired = this.expiredAt(nowUs);
    const used = await this.usedOf(expired.filter((record) => record.owner === 'system' && record.status !== 'Failed'));
    for (const { id } of expired) {
      // While the others were looked at or went, a pod may have been given it, or somebody has given it more time.
      const record = this.parts.catalogue.find(id);
      if (used.has(id) || record === undefined || !this.isExpired(record, nowUs)) continue;
      await this.parts.remove(id, record.status === 'Failed' ? 'it failed a day ago' : 'its time is over');
    }
  }

  private expiredAt(nowUs: number): CacheRecord[] {
    return this.parts.catalogue.all().filter((record) => this.isExpired(record, nowUs));
  }

  private isExpired(record: CacheRecord, nowUs: number): boolean {
    return (expiryUs(record, this.parts.catalogue.rules) ?? Number.POSITIVE_INFINITY) <= nowUs;
  }

  /** An automatic cache that containers run from is not unused. What cannot be told counts as used. */
  private async usedOf(records: readonly CacheRecord[]): Promise<ReadonlySet<string>> {
    const ids = records.map((record) => record.id);
    if (ids.length === 0) return new Set();
    try {
      return await this.parts.store.inUse(ids, AbortSignal.any([this.parts.signal, AbortSignal.timeout(IN_USE_LIMIT_MS)]));
    } catch (error) {
      this.parts.logger.warn({ reason: describeError(error) }, 'what is in use cannot be told; no automatic cache expires');
      return new Set(ids);
    }
  }

  /** Once for each jump: caches that would go when it is believed say so. */
  private warnOfJump(nowUs: number): void {
    const { catalogue, logger } = this.parts;
    const jump = catalogue.time.openJump;
    if (jump === undefined || jump.believedAtUs === this.warnedOfUs) return;
    this.warnedOfUs = jump.believedAtUs;
    const hours = Math.round(jump.byUs / 3_600_000_000);
    const what = `the machine's clock moved by ${hours} hours; it is believed if it goes on steadily for a day`;
    logger.warn({ byHours: hours }, what);
    for (const { id } of this.expiredAt(Math.max(nowUs, jump.believedAtUs + jump.byUs))) {
      catalogue.note(id, { type: 'Warning', reason: 'ClockJumped', message: `${what}, and this cache is then removed` });
    }
  }
}
