/**
 * What every request passes before its handler: it gets a number, its caller must have the scope, browsers on other sites are kept out,
 * and rate, body and content type have limits. Changes and refusals go to the audit log.
 */
import { randomUUID } from 'node:crypto';
import { bodyLimit } from 'hono/body-limit';
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible';
import { AppError } from '../plugin/base/errors.ts';
import type { Audit } from './audit.ts';
import { isReading, mayDo, SOCKET_CALLER, scopeOf } from './auth/scopes.ts';
import type { AdminApp, AdminContext } from './context.ts';
import { RequestRefusal } from './errors.ts';
import { CHANGES_PER_SECOND, MAX_REQUEST_BYTES, READS_PER_SECOND } from './limits.ts';
import { documentedPath } from './path-names.ts';

export interface RateLimits {
  readsPerSecond: number;
  changesPerSecond: number;
}

const DEFAULT_RATES: RateLimits = { readsPerSecond: READS_PER_SECOND, changesPerSecond: CHANGES_PER_SECOND };

const JSON_TYPE = /^application\/(?:[a-z0-9.-]+\+)?json(?:\s*;|$)/i;
const FORM_TYPE = /^application\/x-www-form-urlencoded(?:\s*;|$)/i;

/** Throws PermissionDenied when the caller's token lacks the scope. */
export function demandScope(c: AdminContext, scope: Parameters<typeof mayDo>[1]): void {
  const caller = c.get('caller');
  if (mayDo(caller, scope)) return;
  const subject = `${c.req.method} ${c.req.path.slice(0, 200)}`;
  const what = `the token has the scopes ${caller.scopes.join(', ') || 'none'}, and this takes ${scope}`;
  throw new AppError('PermissionDenied', { op: 'authorize', subject, what, details: { scope } });
}

/** `localhost`, 127.0.0.0/8 and ::1, with or without a port: names that nobody else can make point here. */
const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?$/i;

/**
 * A browser reaches the root-only socket through a forwarded port; a script of another site must not do so with the browser's help. Browsers
 * name the site that asks, but only where they trust the connection (Sec-Fetch-Site) or the request is no plain look (Origin). A site whose
 * name was made to point here (DNS rebinding) is the same site to them, and shows in Host alone; so Host is checked for every request. On TCP
 * there are tokens, which no browser adds by itself.
 */
function refuseOtherSites(c: AdminContext): void {
  if (c.get('caller') !== SOCKET_CALLER) return;
  const refuse = (what: string): AppError => new AppError('PermissionDenied', { op: 'accept', subject: 'request', what });
  const host = c.req.header('host');
  if (host !== undefined && !LOOPBACK.test(host)) {
    throw refuse(`the socket is asked as http://localhost/…, and this request was for ${JSON.stringify(host.slice(0, 100))}`);
  }
  const site = c.req.header('sec-fetch-site') ?? 'none';
  const origin = c.req.header('origin');
  if (!['same-origin', 'none'].includes(site) || (origin !== undefined && origin !== `http://${host}`)) {
    throw refuse(`browsers may ask from its own page alone; this came from ${JSON.stringify((origin ?? site).slice(0, 100))}`);
  }
}

/** A request with a body must say that it is what the path takes. */
function checkContentType(c: AdminContext): void {
  const hasBody = (c.req.header('content-length') ?? '0') !== '0' || c.req.header('transfer-encoding') !== undefined;
  if (!hasBody) return;
  const given = c.req.header('content-type') ?? '';
  const [expected, pattern] = c.req.path === '/' ? ['application/x-www-form-urlencoded', FORM_TYPE] : ['application/json', JSON_TYPE];
  if (pattern.test(given)) return;
  const what = `content type ${JSON.stringify(given.slice(0, 100))} is not ${expected}`;
  throw new RequestRefusal(415, 'InvalidArgument', { op: 'read', subject: 'request body', what });
}

async function takeTurn(limiter: RateLimiterMemory, caller: string): Promise<void> {
  try {
    await limiter.consume(caller);
  } catch (limited) {
    if (!(limited instanceof RateLimiterRes)) throw limited;
    const what = `more than ${limiter.points} such requests in a second`;
    throw new RequestRefusal(429, 'ResourceExhausted', { op: 'accept', subject: 'request', what, retryAfterMs: limited.msBeforeNext });
  }
}

/** Adds the guards; they run before every handler that is added afterwards. */
export function addGuards(app: AdminApp, audit: Audit, rates: RateLimits = DEFAULT_RATES): void {
  const reads = new RateLimiterMemory({ points: rates.readsPerSecond, duration: 1 });
  const changes = new RateLimiterMemory({ points: rates.changesPerSecond, duration: 1 });

  app.use(async (c, next) => {
    const requestId = c.env?.requestId ?? randomUUID();
    const caller = c.env?.caller ?? SOCKET_CALLER;
    c.set('requestId', requestId);
    c.set('caller', caller);
    await next();
    c.header('x-request-id', requestId);
    const { method, path } = c.req;
    const { status } = c.res;
    const action = c.get('changeAction');
    const entry = { caller: caller.name, action: action ?? method, path: documentedPath(method, path), status, requestId };
    const isRefused = c.get('isRefused') === true || (c.error instanceof AppError && c.error.code === 'PermissionDenied');
    if (isRefused) await audit.refused(entry);
    else if (action !== undefined || !isReading(method, path)) audit.change(entry);
  });
  app.use(async (c, next) => {
    refuseOtherSites(c);
    const { method, path } = c.req;
    const caller = c.get('caller').name;
    c.set('takeChangeTurn', () => takeTurn(changes, caller));
    demandScope(c, scopeOf(method, path));
    await takeTurn(isReading(method, path) ? reads : changes, caller);
    checkContentType(c);
    await next();
  });
  app.use(
    bodyLimit({
      maxSize: MAX_REQUEST_BYTES,
      onError: () => {
        throw new RequestRefusal(413, 'InvalidArgument', {
          op: 'read',
          subject: 'request body',
          what: `longer than ${MAX_REQUEST_BYTES} bytes`,
          details: { limitBytes: MAX_REQUEST_BYTES },
        });
      },
    }),
  );
}
