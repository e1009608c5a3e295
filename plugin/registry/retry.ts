/** Repeats small, idempotent requests that failed for a passing reason. Ours: bounded, with jitter, and no longer than the caller wants. */
import type { Clock } from '../base/clock.ts';
import { isAppError } from '../base/errors.ts';
import { FIRST_BACKOFF_MS, MAX_ATTEMPTS, MAX_BACKOFF_MS } from './limits.ts';

/**
 * Calls `action` up to three times while it fails with Unavailable and asks for no longer wait than 2 s. Throws the last error. Stops
 * waiting when the signal is aborted.
 */
export async function withRetries<T>(clock: Clock, signal: AbortSignal | undefined, action: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await action();
    } catch (error) {
      if (attempt >= MAX_ATTEMPTS || signal?.aborted || !isAppError(error, 'Unavailable')) throw error;
      const askedMs = error.retryAfterMs ?? 0;
      if (askedMs > MAX_BACKOFF_MS) throw error;
      // Half fixed, half random: clients that failed together do not come back together.
      const ownMs = FIRST_BACKOFF_MS * 2 ** (attempt - 1) * (0.5 + Math.random() / 2);
      await clock.sleep(Math.max(askedMs, ownMs), signal);
    }
  }
}
