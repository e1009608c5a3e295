/**
 * How a failure looks to clients of the vendor's API: `{RequestId, HostId, Code, Message}` with the codes of R133, whatever part refused: an
 * action, a guard before it, or the door for tokens.
 */
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import type { AppError } from '../../plugin/base/errors.ts';
import { CACHE_ERROR_REASONS } from '../../plugin/cache/service.ts';
import { knownError, RequestRefusal, reasonOf, wireError } from '../errors.ts';

export interface ActionFailure {
  status: ContentfulStatusCode;
  body: { RequestId: string; HostId: string; Code: string; Message: string };
  headers: Record<string, string>;
}

const OWN_REASONS: ReadonlySet<unknown> = new Set([...CACHE_ERROR_REASONS, 'MissingParameter', 'InvalidAction.NotFound']);

/** Names in the vendor's manner for what its API has no name of its own for. */
const CODES: Readonly<Record<number, string>> = {
  401: 'InvalidSecurityToken',
  405: 'UnsupportedHTTPMethod',
  413: 'RequestEntityTooLarge',
  415: 'UnsupportedMediaType',
  429: 'Throttling',
};

/** True for requests that speak the vendor's language: its actions share the path of the status page, which is asked for without parameters. */
export function isAction(method: string, url: string): boolean {
  const { pathname, search } = new URL(url);
  return pathname === '/' && (method === 'POST' || (['GET', 'HEAD'].includes(method) && search !== ''));
}

/** The vendor's code of a failure. */
function codeOf(error: AppError, status: number): string {
  const { reason } = error.details;
  if (typeof reason === 'string' && OWN_REASONS.has(reason)) return reason;
  const known = reasonOf(error) ?? (error instanceof RequestRefusal || status === 401 ? CODES[status] : undefined);
  if (known !== undefined) return known;
  if (error.code === 'InvalidArgument') return 'InvalidParameter';
  if (error.code === 'PermissionDenied') return 'scope' in error.details ? 'Forbidden.Scope' : 'Forbidden.Origin';
  return error.code === 'Internal' ? 'InternalError' : error.code;
}

/** Turns any thrown value into an answer. R133: conflicts and duplicates are 400 here. */
export function actionFailure(thrown: unknown, requestId: string): ActionFailure {
  const error = knownError(thrown);
  const { status, headers } = wireError(error, requestId);
  const body = { RequestId: requestId, HostId: 'localhost', Code: codeOf(error, status), Message: error.message };
  return { status: error.code === 'Conflict' || error.code === 'AlreadyExists' ? 400 : status, body, headers };
}
