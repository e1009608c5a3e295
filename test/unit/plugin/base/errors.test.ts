/** Errors that cross a process border keep what machines read: code, retry and facts. */
import { expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';

test('an error that crossed as JSON says the same', () => {
  const before = new AppError('ResourceExhausted', {
    op: 'pin blobs for',
    subject: 'cache',
    what: 'too large',
    retryAfterMs: 500,
    details: { neededBytes: 7, limitBytes: 5 },
  });
  const after = AppError.fromJSON(JSON.parse(JSON.stringify(before)), { op: 'ask', subject: 'nobody' });
  expect(after.toJSON()).toEqual(before.toJSON());
  expect(after.message).toBe(before.message);
});

test('what is no fact is left out, and what is no error becomes one', () => {
  const odd = AppError.fromJSON({ code: 'NotFound', details: { a: 1, b: {}, c: null } }, { op: 'ask', subject: 'somebody' });
  expect(odd.details).toEqual({ a: 1 });
  expect(AppError.fromJSON('nonsense', { op: 'ask', subject: 'somebody' })).toMatchObject({ code: 'Internal', subject: 'somebody' });
});
