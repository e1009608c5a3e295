/**
 * What credential helpers answered: each is asked once for all who wait, seldom, and its last good answer goes on while it fails. A cloud
 * login that is away for a while must not take the credentials from containers that run. Ours.
 *
 *   answered ── 30 s ──► asked again ──► answered
 *                            └─ failed ──► last good answer, for an hour; asked again every half second ──► answered
 */
import { LRUCache } from 'lru-cache';
import type { Clock } from '../base/clock.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type HelperOptions, runCredentialHelper } from './credential-helper.ts';
import type { Credential } from './credentials.ts';
import { HELPER_CACHE_MS, HELPER_FAILURE_HOLD_MS, KEEP_CREDENTIALS_MS, MAX_HELPER_ENTRIES } from './limits.ts';

interface Entry {
  /** The question under way; never rejects, what came of it is below. */
  pending: Promise<void> | undefined;
  /** Not asked again before. */
  nextMs: number;
  good: { readonly credential: Credential | undefined; readonly atMs: number } | undefined;
  /** Undefined while all is well. */
  failure: AppError | undefined;
}

export class HelperAnswers {
  private readonly options: HelperOptions;
  private readonly parts: { readonly clock: Clock; readonly logger: Logger };
  private readonly entries = new LRUCache<string, Entry>({ max: MAX_HELPER_ENTRIES });

  constructor(options: HelperOptions, parts: { readonly clock: Clock; readonly logger: Logger }) {
    this.options = options;
    this.parts = parts;
  }

  /**
   * The helper's answer for a server; undefined when it has none. While it fails its last good answer is given at once, for
   * {@link KEEP_CREDENTIALS_MS}; then, or without one, errors as {@link runCredentialHelper}.
   */
  async ask(helper: string, server: string): Promise<Credential | undefined> {
    const key = `${helper} ${server}`;
    let entry = this.entries.get(key);
    if (entry === undefined) {
      entry = { pending: undefined, nextMs: Number.NEGATIVE_INFINITY, good: undefined, failure: undefined };
      this.entries.set(key, entry);
    }
    if (this.parts.clock.monotonicMs() >= entry.nextMs) entry.pending ??= this.refresh(entry, helper, server);
    // A helper that failed last time may hang this time: nobody who can go on without it waits.
    if (entry.failure === undefined || !this.isKept(entry)) await entry.pending;
    if (entry.failure !== undefined && !this.isKept(entry)) throw entry.failure;
    return entry.good?.credential;
  }

  /** Forgets everything: the configuration that names the helpers changed. */
  clear(): void {
    this.entries.clear();
  }

  private isKept({ good }: Entry): boolean {
    return good !== undefined && this.parts.clock.monotonicMs() - good.atMs < KEEP_CREDENTIALS_MS;
  }

  private async refresh(entry: Entry, helper: string, server: string): Promise<void> {
    const { clock, logger } = this.parts;
    try {
      const credential = await runCredentialHelper(helper, server, this.options);
      if (entry.failure !== undefined) logger.info({ helper, server }, 'a credential helper answers again');
      entry.good = { credential, atMs: clock.monotonicMs() };
      entry.failure = undefined;
      entry.nextMs = clock.monotonicMs() + HELPER_CACHE_MS;
    } catch (error) {
      if (entry.failure === undefined) {
        logger.warn({ helper, server, err: describeError(error) }, 'a credential helper fails; its last answer, if any, stays in use');
      }
      entry.failure = isAppError(error)
        ? error
        : new AppError('Unavailable', { op: 'run', subject: `docker-credential-${helper}`, what: 'cannot be run', cause: error });
      entry.nextMs = clock.monotonicMs() + HELPER_FAILURE_HOLD_MS;
    } finally {
      entry.pending = undefined;
    }
  }
}
