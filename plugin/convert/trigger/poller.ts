/**
 * Notices pushes where no webhook tells of them: lists the tags of each polled repository and asks what they name. The first look at a
 * repository only writes down what is there (R40). Ours.
 */
import pLimit from 'p-limit';
import type { ConvertRuleStore } from '../../../db/convert-rule-store.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { RegistryClient } from '../../registry/client.ts';
import { formatRepository } from '../../registry/reference.ts';
import { isOutputTag } from '../publish/tag-names.ts';
import type { ConvertRule } from '../rules/rule.ts';
import type { RuleBook } from '../rules/rule-book.ts';
import { compileTagFilter } from '../rules/tag-filter.ts';
import type { Push } from './push.ts';

/** Tags looked at in one repository; in lists that are longer, the registry's first ones. */
const MAX_TAGS = 10_000;
/** HEAD requests at once: 10,000 tags at 20 ms take half a minute. */
const MAX_LOOKS = 8;

export interface PollerOptions {
  rules: RuleBook;
  store: ConvertRuleStore;
  client: RegistryClient;
  clock: Clock;
  logger: Logger;
  intervalMs: number;
  /** What it throws ends the look at this repository; the push is brought again at the next. */
  onPush(rule: ConvertRule, push: Push): void;
}

export class Poller implements AsyncDisposable {
  private readonly options: PollerOptions;
  private readonly closing = new AbortController();
  private round: Promise<void> | undefined;
  private isAskedAgain = false;
  private timer: NodeJS.Timeout | undefined;

  constructor(options: PollerOptions) {
    this.options = options;
  }

  /** Looks now (or once more when a look is under way), and every interval from then on. */
  poke(): void {
    if (this.closing.signal.aborted) return;
    if (this.round !== undefined) {
      this.isAskedAgain = true;
      return;
    }
    clearTimeout(this.timer);
    this.round = this.pollAll().finally(() => {
      this.round = undefined;
      if (this.closing.signal.aborted) return;
      this.timer = setTimeout(() => this.poke(), this.isAskedAgain ? 0 : this.options.intervalMs);
      this.timer.unref();
      this.isAskedAgain = false;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closing.abort(new Error('the poller ends'));
    clearTimeout(this.timer);
    await this.round;
  }

  private async pollAll(): Promise<void> {
    for (const rule of this.options.rules.list()) {
      if (!rule.isEnabled || rule.detection !== 'poll' || this.closing.signal.aborted) continue;
      try {
        await this.poll(rule);
      } catch (error) {
        if (this.closing.signal.aborted) return;
        this.options.logger.warn(
          { repository: formatRepository(rule.repository), reason: describeError(error) },
          'cannot look for pushes; tried again',
        );
      }
    }
  }

  private async poll(rule: ConvertRule): Promise<void> {
    const { store } = this.options;
    const matches = compileTagFilter(rule.filter);
    const listed = await this.tags(rule);
    if (listed === undefined) return;
    const tags = listed.filter((tag) => matches(tag) && !isOutputTag(tag)).slice(0, MAX_TAGS);
    const limit = pLimit(MAX_LOOKS);
    const looked = await Promise.all(tags.map((tag) => limit(async () => ({ tag, digest: await this.look(rule, tag) }))));
    // The rule may have been changed meanwhile: its seen tags are then of no use.
    const current = store.get(rule.id);
    if (current === undefined || current.enabledUs !== rule.enabledUs) return;
    const seen = store.seenTags(rule.id);
    for (const { tag, digest } of looked) {
      if (digest === undefined || seen.get(tag) === digest) continue;
      if (rule.hasBaseline) this.options.onPush(rule, { tag, digest });
      // After the push is queued: a crash between the two makes one look more, not one conversion less.
      store.putSeenTag(rule.id, tag, digest);
    }
    const present = new Set(tags);
    for (const tag of seen.keys()) if (!present.has(tag)) store.removeSeenTag(rule.id, tag);
    if (!rule.hasBaseline) store.update(rule.id, { hasBaseline: true });
  }

  /**
   * A repository that nothing was pushed to yet has no tags; the first one is a push. Undefined when one that had tags is said not to be
   * there: registries say so too while their storage or a login is away, and what was there before must not be taken for pushes then.
   */
  private async tags(rule: ConvertRule): Promise<string[] | undefined> {
    try {
      return await this.options.client.listTags(rule.repository, { signal: this.closing.signal, isCurrent: true });
    } catch (error) {
      if (!isAppError(error, 'NotFound')) throw error;
      return this.options.store.seenTags(rule.id).size === 0 ? [] : undefined;
    }
  }

  private async look(rule: ConvertRule, tag: string): Promise<Digest | undefined> {
    try {
      return (await this.options.client.resolve(rule.repository, tag, { signal: this.closing.signal, isCurrent: true })).digest;
    } catch (error) {
      // Deleted since the list was made.
      if (isAppError(error, 'NotFound')) return undefined;
      throw error;
    }
  }
}
