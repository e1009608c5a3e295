/** Deadlines of answers. */
import { AppError } from '../plugin/base/errors.ts';
import { ANSWER_DEADLINE_MS } from './limits.ts';

/** A signal that fires when the caller hangs up or the deadline passes. */
export function deadline(request: Request, limitMs: number): AbortSignal {
  return AbortSignal.any([request.signal, AbortSignal.timeout(limitMs)]);
}

/** Awaits `work`, but no longer than its signal allows: a service that forgets the signal must not hold the caller. */
export async function within<T>(op: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const expired = (): AppError => {
    const isTimeout = signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError';
    return new AppError(isTimeout ? 'DeadlineExceeded' : 'Canceled', {
      op,
      subject: 'request',
      what: isTimeout ? 'no answer within the deadline' : 'the caller hung up',
      cause: signal.reason,
    });
  };
  if (signal.aborted) throw expired();
  let onAbort = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(expired());
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work(signal), aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** {@link within} for what answers from memory and the local database. */
export function soon<T>(op: string, request: Request, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  return within(op, deadline(request, ANSWER_DEADLINE_MS), work);
}
