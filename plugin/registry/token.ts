/**
 * Gets a bearer token from a registry's token service. Source: distribution, docs/spec/auth/token.md (GET with Basic) and oauth.md (POST
 * with a refresh token).
 */
import { AppError, type ErrorCode } from '../base/errors.ts';
import { CollectSink } from './body.ts';
import { basicHeader, type Credential } from './credentials.ts';
import { type Headers, type Purpose, peerError, statusError } from './http-errors.ts';
import {
  DEFAULT_TOKEN_LIFETIME_MS,
  MAX_TOKEN_CHARS,
  MAX_TOKEN_LIFETIME_MS,
  MAX_TOKEN_RESPONSE_BYTES,
  MAX_URL_CHARS,
  MIN_TOKEN_LIFETIME_MS,
  REQUEST_TIMEOUT_MS,
} from './limits.ts';
import type { TlsProfile } from './tls.ts';
import type { Transport } from './transport.ts';

/** What a challenge asked for, cut down to what the caller needs. */
export interface TokenRequest {
  readonly realm: string;
  readonly service: string | undefined;
  readonly scopes: readonly string[];
}

export interface Token {
  readonly value: string;
  readonly lifetimeMs: number;
}

export interface TokenContext {
  readonly transport: Transport;
  readonly tls: TlsProfile;
  readonly connectTimeoutMs: number;
  /** The registry that named the realm. */
  readonly registryOrigin: string;
  readonly subject: string;
  readonly userAgent: string;
  readonly nowMs: () => number;
}

/**
 * One request to the realm. Throws AppError: Unauthenticated when the credentials are refused, in whatever words, Unavailable (retry),
 * FailedPrecondition for a realm that must not be used.
 */
export async function requestToken(request: TokenRequest, credential: Credential | undefined, context: TokenContext): Promise<Token> {
  const purpose: Purpose = { op: 'log in for', subject: context.subject, at: 'the token service' };
  const realm = checkRealm(request.realm, context, purpose);
  const at: Purpose = { ...purpose, at: realm.origin };
  const isPost = credential !== undefined && 'identityToken' in credential;
  const parameters = new URLSearchParams(isPost ? '' : realm.search);
  if (request.service !== undefined) parameters.set('service', request.service);
  const headers: Record<string, string> = { accept: 'application/json', 'user-agent': context.userAgent };
  let body: Uint8Array | undefined;
  if (isPost) {
    parameters.set('grant_type', 'refresh_token');
    parameters.set('refresh_token', credential.identityToken);
    parameters.set('client_id', 'overlaybd-sidecar');
    parameters.set('scope', request.scopes.join(' '));
    headers['content-type'] = 'application/x-www-form-urlencoded';
    body = Buffer.from(parameters.toString());
  } else {
    for (const scope of request.scopes) parameters.append('scope', scope);
    if (credential !== undefined && 'password' in credential) {
      parameters.set('account', credential.username);
      headers.authorization = basicHeader(credential.username, credential.password);
    }
  }
  const query = isPost ? realm.search : `?${parameters}`;
  const sink = new CollectSink(MAX_TOKEN_RESPONSE_BYTES, () => peerError('Unavailable', at, 'the token answer is too large'));
  const head = await context.transport.exchange(
    {
      method: isPost ? 'POST' : 'GET',
      origin: realm.origin,
      path: `${realm.pathname}${query}`,
      headers,
      ...(body === undefined ? {} : { body }),
      tls: realm.origin === context.registryOrigin ? context.tls : context.tls.withoutClients(),
      connectTimeoutMs: context.connectTimeoutMs,
      timeoutMs: REQUEST_TIMEOUT_MS,
      purpose: at,
    },
    () => sink,
  );
  if (head.status !== 200) throw tokenStatusError(at, head.status, head.headers, context.nowMs());
  return parseToken(sink.bytes(), at);
}

/** A token service answers 400 and 403 for wrong passwords too; a redirect is refused, since a password would follow it. */
const REFUSALS: ReadonlySet<ErrorCode> = new Set(['InvalidArgument', 'PermissionDenied', 'NotFound', 'Internal']);

function tokenStatusError(at: Purpose, status: number, headers: Headers, nowMs: number): AppError {
  const error = statusError(at, status, headers, nowMs);
  if (!REFUSALS.has(error.code)) return error;
  return new AppError('Unauthenticated', {
    op: at.op,
    subject: at.subject,
    what: `${at.at} answered ${status}`,
    details: { status, endpoint: at.at },
  });
}

/** A registry reached over TLS must not send credentials anywhere in the clear. */
function checkRealm(text: string, context: TokenContext, purpose: Purpose): URL {
  const refuse = (what: string): AppError =>
    new AppError('FailedPrecondition', { op: purpose.op, subject: purpose.subject, what: `the realm of the registry's challenge ${what}` });
  if (text.length > MAX_URL_CHARS || !URL.canParse(text)) throw refuse('is not a URL');
  const realm = new URL(text);
  if (realm.protocol !== 'https:' && realm.protocol !== 'http:') throw refuse('is neither http nor https');
  if (realm.protocol === 'http:' && context.registryOrigin.startsWith('https:')) throw refuse('leaves TLS');
  if (realm.username !== '' || realm.password !== '') throw refuse('carries credentials');
  return realm;
}

/** What may stand in an Authorization header; RFC 6750 allows less. */
const TOKEN_TEXT = /^[\x21-\x7e]+$/;

function parseToken(bytes: Uint8Array, at: Purpose): Token {
  let answer: Record<string, unknown>;
  try {
    const parsed: unknown = JSON.parse(new TextDecoder().decode(bytes));
    answer = typeof parsed === 'object' && parsed !== null ? (parsed as Record<string, unknown>) : {};
  } catch {
    // The parser's message would quote the answer, which may hold a token.
    throw peerError('Unavailable', at, 'the token answer is not JSON');
  }
  const value = answer.token ?? answer.access_token;
  if (typeof value !== 'string' || value.length > MAX_TOKEN_CHARS || !TOKEN_TEXT.test(value)) {
    throw peerError('Unavailable', at, 'the token answer holds no usable token');
  }
  const seconds = answer.expires_in;
  const statedMs = typeof seconds === 'number' && Number.isFinite(seconds) && seconds > 0 ? seconds * 1000 : DEFAULT_TOKEN_LIFETIME_MS;
  return { value, lifetimeMs: Math.min(Math.max(statedMs, MIN_TOKEN_LIFETIME_MS), MAX_TOKEN_LIFETIME_MS) };
}

/**
 * What a token allows beyond reading, as `push` or `push, delete`; undefined when it allows no more or does not say. Only tokens that are
 * JWTs with the claim `access` say it (distribution, docs/spec/auth/jwt.md); nothing is trusted for it, so the signature is not checked.
 */
export function excessOf(token: string): string | undefined {
  const payload = token.split('.')[1];
  if (payload === undefined) return undefined;
  let claims: unknown;
  try {
    claims = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8'));
  } catch {
    // Not a JWT: opaque tokens are common.
    return undefined;
  }
  const access = typeof claims === 'object' && claims !== null && 'access' in claims ? claims.access : undefined;
  if (!Array.isArray(access)) return undefined;
  const actions = access.slice(0, 64).flatMap((entry: unknown) => {
    const granted = typeof entry === 'object' && entry !== null && 'actions' in entry ? entry.actions : undefined;
    return Array.isArray(granted) ? granted.filter((action) => action === 'push' || action === 'delete' || action === '*') : [];
  });
  return actions.length === 0 ? undefined : [...new Set(actions)].join(', ');
}
