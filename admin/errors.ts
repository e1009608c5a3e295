/** How a failure looks on the wire: AppError as JSON, with its HTTP status. */
import { z } from '@hono/zod-openapi';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { AppError, ERROR_STATUS, type ErrorCode } from '../plugin/base/errors.ts';

export const errorSchema = z
  .object({
    error: z.object({
      code: z.enum(Object.keys(ERROR_STATUS) as [ErrorCode, ...ErrorCode[]]),
      message: z.string(),
      /** The parts of the message: what was done, on what, and what was found. */
      op: z.string(),
      subject: z.string(),
      what: z.string(),
      retryAfterMs: z.int().min(0).optional(),
      details: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])).optional(),
    }),
  })
  .openapi('Error');

export interface WireError {
  status: ContentfulStatusCode;
  body: z.infer<typeof errorSchema>;
  headers: Record<string, string>;
}

/** Turns any thrown value into an answer; what is no AppError becomes `Internal` without its text, which only the log may see. */
export function wireError(error: unknown): WireError {
  const known =
    error instanceof AppError
      ? error
      : new AppError('Internal', { op: 'answer', subject: 'request', what: 'unexpected failure; see the log' });
  const { op, subject, message } = known;
  const what = String(known.toJSON().what);
  const body: WireError['body'] = { error: { code: known.code, message, op, subject, what } };
  const headers: Record<string, string> = {};
  if (known.retryAfterMs !== undefined) {
    body.error.retryAfterMs = known.retryAfterMs;
    headers['retry-after'] = String(Math.ceil(known.retryAfterMs / 1000));
  }
  if (Object.keys(known.details).length > 0) body.error.details = { ...known.details };
  return { status: ERROR_STATUS[known.code].http as ContentfulStatusCode, body, headers };
}
