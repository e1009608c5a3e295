/** Waiting on a condition with a deadline, the one way that tests wait. Ours. */
import { setTimeout as delay } from 'node:timers/promises';

export interface WaitOptions {
  /** What is waited for, as a person would say it; becomes the error's text. */
  what: string;
  /** Milliseconds until the wait fails; what is usual has to do on a machine that is ten times as busy as one thinks. */
  timeoutMs?: number;
  /** Milliseconds between two looks. */
  everyMs?: number;
  /** More about the situation, read only when the wait fails. */
  details?: () => string | Promise<string>;
}

/**
 * Calls `look` until it returns something other than undefined or false, and returns that. A throwing `look` counts as "not yet"; the last
 * error becomes the cause of the failure.
 */
export async function waitFor<T>(look: () => Promise<T | undefined | false> | T | undefined | false, options: WaitOptions): Promise<T> {
  const { what, timeoutMs = 30_000, everyMs = 20, details } = options;
  const end = performance.now() + timeoutMs;
  let cause: unknown;
  for (;;) {
    try {
      const seen = await look();
      if (seen !== undefined && seen !== false) return seen;
      cause = undefined;
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= end) break;
    await delay(everyMs);
  }
  const more = details === undefined ? '' : `\n${await details()}`;
  throw new Error(`waited ${timeoutMs} ms for ${what}${more}`, { cause });
}
