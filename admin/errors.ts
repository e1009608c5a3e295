/**
 * How a failure looks on the wire: `{code, message, details, requestId}` with its HTTP status. `code` is one of requirement row R133's names
 * where one fits, else the product's own; `details.kind` is always the product's own. Source of the product's codes: `plugin/base/errors.ts`.
 */
import { z } from '@hono/zod-openapi';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { AppError, type AppErrorOptions, ERROR_STATUS, type ErrorCode } from '../plugin/base/errors.ts';

/** R133's names, and two more of the same kind; a part gives one as `details.reason`. */
export const REASONS = [
  'ImageCache.IncorrectStatus',
  'IncorrectStatus',
  'OperationConflict',
  'NoNeedUpdate',
  'ImageCacheNotSupport',
  'DryRunOperation',
  'QuotaExceeded',
  'IdempotentParameterMismatch',
  'ImageCache.NameDuplicated',
] as const;
export type Reason = (typeof REASONS)[number];

const KINDS = Object.keys(ERROR_STATUS) as [ErrorCode, ...ErrorCode[]];

export const errorSchema = z
  .object({
    code: z.enum([...KINDS, ...REASONS]),
    message: z.string().openapi({ description: 'what was done, on what, and what was found or expected' }),
    details: z
      .looseObject({
        kind: z.enum(KINDS),
        op: z.string(),
        subject: z.string(),
        retryAfterMs: z.int().min(0).optional(),
      })
      .openapi({ description: 'facts for machines; further ones by failure, such as limits' }),
    requestId: z.string().openapi({ description: 'also in the header x-request-id, the log and the audit log' }),
  })
  .openapi('Error');

/** A refusal whose HTTP status says more than its code: 405, 412, 413, 415, 429. */
export class RequestRefusal extends AppError {
  readonly httpStatus: ContentfulStatusCode;

  constructor(httpStatus: ContentfulStatusCode, code: ErrorCode, options: AppErrorOptions) {
    super(code, options);
    this.httpStatus = httpStatus;
  }
}

export interface WireError {
  status: ContentfulStatusCode;
  body: z.infer<typeof errorSchema>;
  headers: Record<string, string>;
}

/** R133's name for a failure, if it has one. */
export function reasonOf(error: AppError): Reason | undefined {
  return REASONS.find((reason) => reason === error.details.reason);
}

/** What is no AppError becomes `Internal` without its text, which only the log may see. */
export function knownError(error: unknown): AppError {
  if (error instanceof AppError) return error;
  return new AppError('Internal', { op: 'answer', subject: 'request', what: 'unexpected failure; see the log' });
}

export function statusOf(error: AppError): ContentfulStatusCode {
  if (error instanceof RequestRefusal) return error.httpStatus;
  if (reasonOf(error) === 'QuotaExceeded') return 403;
  return ERROR_STATUS[error.code].http as ContentfulStatusCode;
}

/** Turns any thrown value into an answer. */
export function wireError(thrown: unknown, requestId: string): WireError {
  const error = knownError(thrown);
  const { op, subject, message, retryAfterMs } = error;
  const headers: Record<string, string> = { 'x-request-id': requestId };
  if (retryAfterMs !== undefined) headers['retry-after'] = String(Math.ceil(retryAfterMs / 1000));
  const details = { ...error.details, kind: error.code, op, subject, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
  return { status: statusOf(error), body: { code: reasonOf(error) ?? error.code, message, details, requestId }, headers };
}
