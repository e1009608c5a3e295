/**
 * HTTP for everything in this folder: connection pools per origin and TLS profile, proxies, deadlines, aborts, and bodies that go straight
 * where they belong. Wraps undici. HTTP/1.1 with one request a connection: a stalled range then holds up nothing behind it.
 * Redirects and authorization are the business of the layers above; this one never repeats a request.
 */
import type { Readable } from 'node:stream';
import { LRUCache } from 'lru-cache';
import { type Dispatcher, Pool, ProxyAgent } from 'undici';
import { AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { BodySink } from './body.ts';
import { type Headers, networkError, type Purpose } from './http-errors.ts';
import {
  BODY_IDLE_TIMEOUT_MS,
  HEADERS_TIMEOUT_MS,
  KEEP_ALIVE_MS,
  MAX_CONNECTIONS_PER_ORIGIN,
  MAX_ORIGINS,
  MAX_PENDING_REQUESTS,
} from './limits.ts';
import type { ProxyRules } from './proxy-env.ts';
import type { TlsProfile } from './tls.ts';

export interface ExchangeRequest {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** `https://host:port`. */
  readonly origin: string;
  /** Path and query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | Readable;
  readonly tls: TlsProfile;
  readonly connectTimeoutMs: number;
  readonly headersTimeoutMs?: number;
  readonly bodyIdleTimeoutMs?: number;
  /** Milliseconds for all of it; absent (streams): only the idle limits count. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly purpose: Purpose;
}

export interface ExchangeHead {
  readonly status: number;
  readonly headers: Headers;
}

/** Chooses where the body goes once status and headers are known; throws to refuse the answer. */
export type ChooseSink = (head: ExchangeHead) => BodySink;

/** `head`: resolve when the headers are there (streams); `end`: when the body is complete. */
export type ResolveAt = 'head' | 'end';

export interface TransportOptions {
  readonly proxies: ProxyRules;
  readonly logger: Logger;
  readonly connectionsPerOrigin?: number;
  readonly headersTimeoutMs?: number;
  readonly bodyIdleTimeoutMs?: number;
}

/** The abort of a caller, as an error: its own AppError if it gave one as reason. */
export function abortError(purpose: Pick<Purpose, 'op' | 'subject'>, signal: AbortSignal): AppError {
  const reason: unknown = signal.reason;
  if (reason instanceof AppError) return reason;
  const isTimeout = reason instanceof Error && reason.name === 'TimeoutError';
  return new AppError(isTimeout ? 'DeadlineExceeded' : 'Canceled', {
    op: purpose.op,
    subject: purpose.subject,
    what: isTimeout ? 'the time for it is over' : 'was called off',
  });
}

export class Transport {
  private readonly options: TransportOptions;
  private readonly dispatchers: LRUCache<string, Dispatcher>;
  private pendingCount = 0;
  private isClosed = false;

  constructor(options: TransportOptions) {
    this.options = options;
    this.dispatchers = new LRUCache({ max: MAX_ORIGINS, dispose: (dispatcher) => this.retire(dispatcher) });
  }

  /**
   * Sends one request. Rejects with AppError: Unavailable when the network or the peer's HTTP failed, DeadlineExceeded after `timeoutMs`,
   * Canceled (or the signal's own reason) on abort, ResourceExhausted when too many requests wait, and whatever `chooseSink` or the sink
   * throws. Any status resolves. An abort after the head was resolved fails the sink.
   */
  exchange(request: ExchangeRequest, chooseSink: ChooseSink, resolveAt: ResolveAt = 'end'): Promise<ExchangeHead> {
    const { purpose, signal } = request;
    if (signal?.aborted) return Promise.reject(abortError(purpose, signal));
    if (this.isClosed || this.pendingCount >= MAX_PENDING_REQUESTS) return Promise.reject(this.refusal(purpose));
    let dispatcher: Dispatcher;
    try {
      dispatcher = this.dispatcherFor(request);
    } catch (error) {
      return Promise.reject(error);
    }
    return new Promise((resolve, reject) => {
      this.pendingCount += 1;
      const exchange = new Exchange(request, chooseSink, resolveAt, resolve, reject, () => (this.pendingCount -= 1));
      dispatcher.dispatch(
        {
          origin: request.origin,
          path: request.path,
          method: request.method,
          headers: request.headers,
          body: (request.body as Uint8Array | Readable | undefined) ?? null,
          headersTimeout: request.headersTimeoutMs ?? this.options.headersTimeoutMs ?? HEADERS_TIMEOUT_MS,
          bodyTimeout: request.bodyIdleTimeoutMs ?? this.options.bodyIdleTimeoutMs ?? BODY_IDLE_TIMEOUT_MS,
        },
        exchange,
      );
    });
  }

  private refusal(purpose: Purpose): AppError {
    if (this.isClosed) return new AppError('Canceled', { op: purpose.op, subject: purpose.subject, what: 'the registry client is closed' });
    return new AppError('ResourceExhausted', {
      op: purpose.op,
      subject: purpose.subject,
      what: `${MAX_PENDING_REQUESTS} requests are under way`,
      retryAfterMs: 100,
    });
  }

  private dispatcherFor(request: ExchangeRequest): Dispatcher {
    const isTls = request.origin.startsWith('https:');
    const key = `${isTls ? request.tls.id : ''} ${request.connectTimeoutMs} ${request.origin}`;
    let dispatcher = this.dispatchers.get(key);
    if (dispatcher === undefined) {
      dispatcher = this.connect(request, isTls);
      this.dispatchers.set(key, dispatcher);
    }
    return dispatcher;
  }

  private connect(request: ExchangeRequest, isTls: boolean): Dispatcher {
    const tlsOptions = isTls ? { secureContext: request.tls.secureContext(), rejectUnauthorized: !request.tls.skipVerify } : {};
    const poolOptions: Pool.Options = {
      connections: this.options.connectionsPerOrigin ?? MAX_CONNECTIONS_PER_ORIGIN,
      pipelining: 1,
      allowH2: false,
      keepAliveTimeout: KEEP_ALIVE_MS,
      keepAliveMaxTimeout: KEEP_ALIVE_MS,
      connectTimeout: request.connectTimeoutMs,
      maxHeaderSize: 64 * 1024,
    };
    const proxy = this.options.proxies.proxyFor(request.origin);
    if (proxy === undefined) return new Pool(request.origin, { ...poolOptions, connect: tlsOptions });
    return new ProxyAgent({
      uri: proxy,
      proxyTunnel: isTls,
      requestTls: tlsOptions,
      ...poolOptions,
      factory: (origin, options) => new Pool(origin, { ...poolOptions, ...options }),
    });
  }

  private retire(dispatcher: Dispatcher): void {
    dispatcher.close().catch((error: unknown) => this.options.logger.debug({ err: describeError(error) }, 'closing connections failed'));
  }

  /** Cuts all connections; requests under way fail, later ones are refused. May be called again. */
  async close(): Promise<void> {
    this.isClosed = true;
    const all = [...this.dispatchers.values()];
    await Promise.all(all.map((dispatcher) => dispatcher.destroy()));
    this.dispatchers.clear();
  }
}

/** One request under way: undici's handler, the deadline and the abort in one object, settled exactly once. */
class Exchange implements Dispatcher.DispatchHandler {
  private readonly request: ExchangeRequest;
  private readonly chooseSink: ChooseSink;
  private readonly resolveAt: ResolveAt;
  private readonly resolve: (head: ExchangeHead) => void;
  private readonly reject: (error: unknown) => void;
  private readonly release: () => void;
  private controller: Dispatcher.DispatchController | undefined;
  private timer: NodeJS.Timeout | undefined;
  private readonly onAbort: (() => void) | undefined;
  private head: ExchangeHead | undefined;
  private sink: BodySink | undefined;
  private isDone = false;

  constructor(
    request: ExchangeRequest,
    chooseSink: ChooseSink,
    resolveAt: ResolveAt,
    resolve: (head: ExchangeHead) => void,
    reject: (error: unknown) => void,
    release: () => void,
  ) {
    this.request = request;
    this.chooseSink = chooseSink;
    this.resolveAt = resolveAt;
    this.resolve = resolve;
    this.reject = reject;
    this.release = release;
    const { timeoutMs, signal, purpose } = request;
    if (timeoutMs !== undefined) this.timer = setTimeout(() => this.cut(this.deadlineError(timeoutMs)), timeoutMs);
    if (signal !== undefined) {
      this.onAbort = () => this.cut(abortError(purpose, signal));
      signal.addEventListener('abort', this.onAbort, { once: true });
    }
  }

  private deadlineError(timeoutMs: number): AppError {
    const { op, subject, at } = this.request.purpose;
    return new AppError('DeadlineExceeded', {
      op,
      subject,
      what: `${at}: not done in ${timeoutMs} ms`,
      details: { timeoutMs, endpoint: at },
    });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.controller = controller;
    if (this.isDone) controller.abort(new Error('no longer wanted'));
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number, headers: Headers): void {
    if (this.isDone || status < 200) return;
    this.head = { status, headers };
    try {
      this.sink = this.chooseSink(this.head);
    } catch (error) {
      this.cut(error);
      return;
    }
    this.sink.onDrain = (abandoned) => (abandoned === undefined ? this.controller?.resume() : this.cut(abandoned));
    if (this.resolveAt === 'head') this.resolve(this.head);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (this.isDone || this.sink === undefined) return;
    try {
      const next = this.sink.write(chunk);
      if (next === 'pause') controller.pause();
      else if (next === 'stop') {
        this.succeed();
        controller.abort(new Error('enough was read'));
      }
    } catch (error) {
      this.cut(error);
    }
  }

  onResponseEnd(): void {
    if (this.isDone) return;
    try {
      this.sink?.end();
    } catch (error) {
      this.fail(error);
      return;
    }
    // undici gives a connection back one turn after its answer ended. Going on earlier would open a second one for the next request.
    const { head } = this;
    if (head !== undefined && this.settle()) queueMicrotask(() => setImmediate(this.resolve, head));
    else this.succeed();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.fail(error instanceof AppError ? error : networkError(this.request.purpose, error));
  }

  /** Also for an end without a head, which is a failure of the peer. */
  private succeed(): void {
    if (!this.settle()) return;
    if (this.head === undefined) this.reject(networkError(this.request.purpose, undefined));
    else this.resolve(this.head);
  }

  private fail(error: unknown): void {
    if (!this.settle()) return;
    this.sink?.fail?.(error);
    this.reject(error);
  }

  /** Fails and closes the connection, whose remaining bytes nobody will read. */
  private cut(error: unknown): void {
    this.fail(error);
    this.controller?.abort(error instanceof Error ? error : new Error('cut off'));
  }

  private settle(): boolean {
    if (this.isDone) return false;
    this.isDone = true;
    clearTimeout(this.timer);
    if (this.onAbort !== undefined) this.request.signal?.removeEventListener('abort', this.onAbort);
    this.release();
    return true;
  }
}
