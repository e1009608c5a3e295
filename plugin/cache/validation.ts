/** Failures of image caches with the reasons that clients know (R133), and the checking of requests. Ours. */
import type { z } from 'zod';
import { AppError, type ErrorCode } from '../base/errors.ts';
import type { CacheErrorReason } from './types.ts';

/** What was wrong with a request, in one sentence; more would only be read by machines. */
const MAX_PROBLEMS = 5;

export interface CacheFailure {
  op: string;
  subject: string;
  what: string;
  details?: Readonly<Record<string, string | number | boolean>>;
  cause?: unknown;
}

const CODES: Readonly<Record<CacheErrorReason, ErrorCode>> = {
  'ImageCache.IncorrectStatus': 'FailedPrecondition',
  NoNeedUpdate: 'InvalidArgument',
  OperationConflict: 'Conflict',
  QuotaExceeded: 'ResourceExhausted',
  DryRunOperation: 'FailedPrecondition',
  IdempotentParameterMismatch: 'Conflict',
  'ImageCache.NameDuplicated': 'AlreadyExists',
  InvalidParameter: 'InvalidArgument',
  ImageCacheNotFound: 'NotFound',
  ServiceStopping: 'Unavailable',
};

/** An AppError whose code follows from the reason. */
export function cacheError(reason: CacheErrorReason, { details, ...options }: CacheFailure): AppError {
  return new AppError(CODES[reason], { ...options, details: { ...details, reason } });
}

/** Checks what came from outside; unknown fields and wrong values are told with their path. Throws InvalidParameter. */
export function checkRequest<T>(schema: z.ZodType<T>, value: unknown, op: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { issues } = parsed.error;
  const told = issues.slice(0, MAX_PROBLEMS).map((issue) => `${issue.path.join('.') || 'request'}: ${issue.message}`);
  throw cacheError('InvalidParameter', {
    op,
    subject: 'request',
    what: told.join('; '),
    details: { field: issues[0]?.path.join('.') ?? '' },
  });
}
