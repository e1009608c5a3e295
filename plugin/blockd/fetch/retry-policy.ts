/**
 * What follows a failed fetch that a reader waits for. Pure.
 *
 *   Unavailable, DeadlineExceeded, Unauthenticated, ResourceExhausted   again, until the patience is spent
 *   FailedPrecondition                                                  the same: settings of this node that a person or program is writing
 *   NotFound, PermissionDenied                                          again for 30 s (a push or new credentials may be under way)
 *   DataLoss                                                            once more, from another mirror
 *   anything else                                                       no
 */
import type { AppError } from '../../base/errors.ts';
import { askedWaitMs } from '../../registry/http-errors.ts';

const BACKOFF_FIRST_MS = 100;
/** A registry's return must be noticed within 2 s; a request a second and blob is no load. */
const BACKOFF_MAX_MS = 1000;
/** A registry that says when to come back is believed up to here. */
const RETRY_AFTER_MAX_MS = 30_000;
const DOUBTFUL_PATIENCE_MS = 30_000;

/** How long a demand may wait in all while its blob fails with this error; 0: not at all. */
export function patienceFor(error: AppError, patienceMs: number): number {
  switch (error.code) {
    case 'Unavailable':
    case 'DeadlineExceeded':
    case 'Unauthenticated':
    case 'ResourceExhausted':
    case 'FailedPrecondition':
      return patienceMs;
    case 'NotFound':
    case 'PermissionDenied':
      return Math.min(DOUBTFUL_PATIENCE_MS, patienceMs);
    default:
      return 0;
  }
}

/**
 * The pause after the `failures`-th failure in a row (from 1), with jitter: `random` is in [0, 1). A registry that asked for a longer one
 * (Retry-After) gets it. The waits that the client itself proposes do not count, or a return would go unnoticed for longer than 2 s; but
 * its own lack of room does.
 */
export function backoffMs(failures: number, error: AppError, random: number): number {
  const step = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(failures - 1, 10));
  const askedMs = error.code === 'ResourceExhausted' ? (error.retryAfterMs ?? 0) : askedWaitMs(error);
  return Math.max(step * (0.5 + random / 2), Math.min(askedMs, RETRY_AFTER_MAX_MS));
}
