/**
 * One authorized request to one endpoint: headers of the hosts file, the mirror's namespace, login, one renewal after a 401, and redirects.
 * What is secret stays with the origin it belongs to: a redirect to another origin goes without authorization, host headers and client
 * certificates, and never from TLS to plain HTTP.
 */
import type { Readable } from 'node:stream';
import type { Clock } from '../base/clock.ts';
import { AppError } from '../base/errors.ts';
import type { Access, Authenticator } from './auth.ts';
import { type BodySink, DiscardSink } from './body.ts';
import type { Endpoint } from './hosts.ts';
import { headerOf, type Purpose, peerError, statusError } from './http-errors.ts';
import { MAX_REDIRECTS, MAX_URL_CHARS, REQUEST_TIMEOUT_MS } from './limits.ts';
import { formatRepository } from './reference.ts';
import type { TlsProfile } from './tls.ts';
import { abortError, type ChooseSink, type ExchangeHead, type ExchangeRequest, type ResolveAt, type Transport } from './transport.ts';

export interface RegistryCall {
  readonly op: string;
  /** What is asked for, for messages: a digest or tag. */
  readonly subject: string;
  readonly access: Access;
  readonly method: ExchangeRequest['method'];
  /** After the endpoint's base path and the repository: `/blobs/sha256:…`; or a whole URL that this endpoint gave (uploads, pages). */
  readonly target: string | URL;
  /** Without `?`. */
  readonly query?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Makes the body; called again when the request is repeated after a 401. */
  readonly body?: () => Uint8Array | Readable;
  readonly deadline: Deadline;
  readonly headersTimeoutMs?: number;
}

/** When a call must be over: a time on the monotonic clock (Infinity for streams) and the caller's abort. */
export interface Deadline {
  readonly atMs: number;
  readonly signal: AbortSignal | undefined;
}

/** A place a redirect led to, outside the endpoint's origin. */
export interface Redirect {
  readonly origin: string;
  readonly path: string;
  readonly tls: TlsProfile;
}

export interface SessionOptions {
  readonly transport: Transport;
  readonly authenticator: Authenticator;
  readonly clock: Clock;
  readonly userAgent: string;
}

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

export class Session {
  readonly clock: Clock;
  private readonly options: SessionOptions;

  constructor(options: SessionOptions) {
    this.options = options;
    this.clock = options.clock;
  }

  /** A deadline `timeoutMs` from now. */
  deadline(signal: AbortSignal | undefined, timeoutMs = REQUEST_TIMEOUT_MS): Deadline {
    return { atMs: this.clock.monotonicMs() + timeoutMs, signal };
  }

  purposeOf(endpoint: Endpoint, call: Pick<RegistryCall, 'op' | 'subject' | 'access'>): Purpose {
    return { op: call.op, subject: `${formatRepository(call.access.repository)} ${call.subject}`, at: endpoint.key };
  }

  /** An error for an unwanted final status. */
  statusError(endpoint: Endpoint, call: RegistryCall, head: ExchangeHead, body?: Uint8Array): AppError {
    return statusError(this.purposeOf(endpoint, call), head.status, head.headers, this.clock.nowMs(), body);
  }

  /**
   * Sends the call; resolves for every status but 401 (Unauthenticated after one renewal). Redirects are answers here; see
   * {@link follow}. Throws what transport and login throw.
   */
  async send(endpoint: Endpoint, call: RegistryCall, chooseSink: ChooseSink, resolveAt: ResolveAt = 'end'): Promise<ExchangeHead> {
    const purpose = this.purposeOf(endpoint, call);
    const url = this.urlOf(endpoint, call, purpose);
    if (url.origin !== endpoint.origin) {
      const away = { origin: url.origin, path: url.path, tls: endpoint.tls.withoutClients() };
      return this.sendAway(endpoint, call, away, chooseSink, resolveAt);
    }
    const { authenticator } = this.options;
    const found = authenticator.headerFor(endpoint, call.access);
    const header = found instanceof Promise ? await this.bounded(found, call.deadline, purpose) : found;
    const choose: ChooseSink = (head) => (head.status === 401 ? new DiscardSink() : chooseSink(head));
    const head = await this.exchange(endpoint, call, url, this.headersOf(endpoint, call, header), endpoint.tls, choose, resolveAt);
    if (head.status !== 401) return head;
    const renewed = await this.bounded(authenticator.answerChallenge(endpoint, call.access, head.headers, header), call.deadline, purpose);
    const second = await this.exchange(endpoint, call, url, this.headersOf(endpoint, call, renewed), endpoint.tls, choose, resolveAt);
    if (second.status === 401) {
      authenticator.refused(endpoint, call.access, renewed);
      throw this.statusError(endpoint, call, second);
    }
    return second;
  }

  /**
   * As {@link send}, following up to five redirects (for GET and HEAD). `redirect` says where the answer came from when that was another
   * origin; a 401 there is an answer like any other.
   */
  async follow(
    endpoint: Endpoint,
    call: RegistryCall,
    chooseSink: ChooseSink,
    resolveAt: ResolveAt = 'end',
  ): Promise<{ head: ExchangeHead; redirect: Redirect | undefined }> {
    const purpose = this.purposeOf(endpoint, call);
    const choose: ChooseSink = (head) => (isRedirect(head) ? new DiscardSink() : chooseSink(head));
    let head = await this.send(endpoint, call, choose, resolveAt);
    let url = this.urlOf(endpoint, call, purpose);
    let redirect: Redirect | undefined;
    for (let count = 0; isRedirect(head); count += 1) {
      if (count === MAX_REDIRECTS) throw peerError('Unavailable', purpose, `more than ${MAX_REDIRECTS} redirects`);
      const next = redirectTarget(head, url, purpose);
      url = { origin: next.origin, path: `${next.pathname}${next.search}` };
      if (redirect === undefined && url.origin === endpoint.origin) {
        head = await this.send(endpoint, { ...call, target: next, query: '' }, choose, resolveAt);
      } else {
        redirect = { ...url, tls: endpoint.tls.withoutClients() };
        head = await this.sendAway(endpoint, call, redirect, choose, resolveAt);
      }
    }
    return { head, redirect };
  }

  /** Sends to a place a redirect led to, with nothing secret. */
  sendAway(
    endpoint: Endpoint,
    call: RegistryCall,
    redirect: Redirect,
    chooseSink: ChooseSink,
    resolveAt: ResolveAt = 'end',
  ): Promise<ExchangeHead> {
    const headers = { ...call.headers, 'user-agent': this.options.userAgent };
    return this.exchange(endpoint, call, redirect, headers, redirect.tls, chooseSink, resolveAt);
  }

  private exchange(
    endpoint: Endpoint,
    call: RegistryCall,
    url: { origin: string; path: string },
    headers: Readonly<Record<string, string>>,
    tls: TlsProfile,
    chooseSink: (head: ExchangeHead) => BodySink,
    resolveAt: ResolveAt,
  ): Promise<ExchangeHead> {
    const purpose = this.purposeOf(endpoint, call);
    const { atMs, signal } = call.deadline;
    const leftMs = atMs - this.clock.monotonicMs();
    if (leftMs <= 0) return Promise.reject(overdue(purpose));
    const body = call.body?.();
    return this.options.transport.exchange(
      {
        method: call.method,
        origin: url.origin,
        path: url.path,
        headers,
        tls,
        connectTimeoutMs: endpoint.connectTimeoutMs,
        // Only the origin is told of a redirect's target: its path and query may be a signature.
        purpose: url.origin === endpoint.origin ? purpose : { ...purpose, at: `${endpoint.key}, redirected to ${url.origin}` },
        ...(body === undefined ? {} : { body }),
        ...(leftMs === Infinity ? {} : { timeoutMs: leftMs }),
        ...(signal === undefined ? {} : { signal }),
        ...(call.headersTimeoutMs === undefined
          ? {}
          : { headersTimeoutMs: call.headersTimeoutMs, bodyIdleTimeoutMs: call.headersTimeoutMs }),
      },
      chooseSink,
      resolveAt,
    );
  }

  private headersOf(endpoint: Endpoint, call: RegistryCall, authorization: string | undefined): Record<string, string> {
    const headers: Record<string, string> = { ...endpoint.headers, ...call.headers, 'user-agent': this.options.userAgent };
    if (authorization !== undefined) headers.authorization = authorization;
    return headers;
  }

  private urlOf(endpoint: Endpoint, call: RegistryCall, purpose: Purpose): { origin: string; path: string } {
    if (call.target instanceof URL) {
      checkTarget(call.target, endpoint.origin, purpose);
      const { origin, pathname, search } = call.target;
      const query = call.query === undefined || call.query === '' ? search : search === '' ? `?${call.query}` : `${search}&${call.query}`;
      return { origin, path: `${pathname}${query}` };
    }
    const query = [call.query ?? '', endpoint.namespaceQuery].filter((part) => part !== '').join('&');
    const path = `${endpoint.basePath}/${call.access.repository.repository}${call.target}`;
    return { origin: endpoint.origin, path: query === '' ? path : `${path}?${query}` };
  }

  /** Waits for something shared with other callers, no longer than this caller may wait. */
  private async bounded<T>(shared: Promise<T>, deadline: Deadline, purpose: Purpose): Promise<T> {
    const { signal } = deadline;
    const leftMs = deadline.atMs - this.clock.monotonicMs();
    let timer: NodeJS.Timeout | undefined;
    let onAbort: (() => void) | undefined;
    const limit = new Promise<never>((_resolve, reject) => {
      if (leftMs !== Infinity) timer = setTimeout(() => reject(overdue(purpose)), Math.max(leftMs, 0));
      if (signal === undefined) return;
      onAbort = () => reject(abortError(purpose, signal));
      if (signal.aborted) onAbort();
      else signal.addEventListener('abort', onAbort, { once: true });
    });
    try {
      return await Promise.race([shared, limit]);
    } finally {
      clearTimeout(timer);
      if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
    }
  }
}

function overdue(purpose: Purpose): AppError {
  return new AppError('DeadlineExceeded', { op: purpose.op, subject: purpose.subject, what: `${purpose.at}: the time for it is over` });
}

function isRedirect(head: ExchangeHead): boolean {
  return REDIRECTS.has(head.status) && headerOf(head.headers, 'location') !== undefined;
}

function redirectTarget(head: ExchangeHead, from: { origin: string; path: string }, purpose: Purpose): URL {
  const target = resolveLocation(headerOf(head.headers, 'location') ?? '', from, purpose);
  checkTarget(target, from.origin, purpose);
  return target;
}

/** A Location header against the URL it answers. Throws Unavailable when it is no URL. */
export function resolveLocation(location: string, from: { origin: string; path: string }, purpose: Purpose): URL {
  if (location === '' || location.length > MAX_URL_CHARS || !URL.canParse(location, from.origin + from.path)) {
    throw peerError('Unavailable', purpose, 'its Location header is not a URL');
  }
  return new URL(location, from.origin + from.path);
}

function checkTarget(target: URL, fromOrigin: string, purpose: Purpose): void {
  if (target.protocol !== 'https:' && target.protocol !== 'http:')
    throw peerError('PermissionDenied', purpose, 'leads to neither http nor https');
  if (target.protocol === 'http:' && fromOrigin.startsWith('https:')) {
    throw peerError('PermissionDenied', purpose, `leads from TLS to plain HTTP at ${target.host}; that is refused`);
  }
  if (target.username !== '' || target.password !== '') throw peerError('PermissionDenied', purpose, 'leads to a URL with credentials');
}
