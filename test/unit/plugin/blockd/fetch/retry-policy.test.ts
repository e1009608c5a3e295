import { expect, test } from 'vitest';
import { AppError, type ErrorCode } from '../../../../../plugin/base/errors.ts';
import { backoffMs, patienceFor } from '../../../../../plugin/blockd/fetch/retry-policy.ts';

const error = (code: ErrorCode, retryAfterMs?: number, details: Record<string, boolean> = {}): AppError =>
  new AppError(code, { op: 'fetch', subject: 'blob', what: 'failed', details, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) });

test.each([
  ['Unavailable', 600_000],
  ['DeadlineExceeded', 600_000],
  ['Unauthenticated', 600_000],
  ['ResourceExhausted', 600_000],
  ['FailedPrecondition', 600_000],
  ['NotFound', 30_000],
  ['PermissionDenied', 30_000],
  ['DataLoss', 0],
  ['InvalidArgument', 0],
  ['Internal', 0],
  ['Canceled', 0],
] as const)('%s is retried for %d ms', (code, patienceMs) => {
  expect(patienceFor(error(code), 600_000)).toBe(patienceMs);
  expect(patienceFor(error(code), 5)).toBeLessThanOrEqual(5);
});

test('pauses double from 100 ms to 1 s, less a jitter of up to a half', () => {
  const pauses = [1, 2, 3, 4, 5, 100].map((failures) => backoffMs(failures, error('Unavailable'), 0.999_999));
  expect(pauses.map(Math.round)).toEqual([100, 200, 400, 800, 1000, 1000]);
  expect(backoffMs(5, error('Unavailable'), 0)).toBe(500);
});

test('a registry that asks for time gets it, up to 30 s', () => {
  expect(backoffMs(1, error('ResourceExhausted', 7_000), 0)).toBe(7_000);
  expect(backoffMs(1, error('ResourceExhausted', 3_600_000), 0)).toBe(30_000);
});

test('what the client supposes is not what a registry asks for', () => {
  expect(backoffMs(1, error('Unavailable', 5_000), 0)).toBe(50);
  expect(backoffMs(1, error('Unavailable', 5_000, { isRetryAfterAsked: true }), 0)).toBe(5_000);
});
