/**
 * The one HTTP/2 connection to containerd. A containerd that restarts is waited for; a call that its end cut off before any answer is made
 * again, if the caller says that it may be.
 */
import http2, { type ClientHttp2Session, type ClientHttp2Stream, constants } from 'node:http2';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '../../base/errors.ts';
import { MAX_GRPC_MESSAGE_BYTES } from '../../base/limits.ts';
import { awayError, frameMessage, headerValue, type RawHeaders, type UnaryAnswer, unframeMessage } from './grpc-messages.ts';

/** A try to connect is repeated this often while nothing listens. */
const RETRY_MS = 100;
/** A containerd that takes a connection but says nothing is stuck; another try may find its successor. */
const CONNECT_MS = 5_000;
/** A message and its prefix; containerd sends no larger one. */
const MAX_BODY_BYTES = MAX_GRPC_MESSAGE_BYTES + 64;
/** Streams may hold a whole message each; Node refuses new ones above this (MB). */
const SESSION_MEMORY_MB = 512;

export const WINDOW_BYTES = 1024 * 1024;

/** The connection ended before the call was answered. */
class CutOff extends AppError {}

export interface UpstreamOptions {
  readonly socketPath: string;
  /** How long calls wait for a containerd that is away, in milliseconds. */
  readonly patienceMs: number;
}

export class Upstream implements Disposable {
  private readonly options: UpstreamOptions;
  private current: Promise<ClientHttp2Session> | undefined;
  /** All that are open, those that take no new streams included. */
  private readonly sessions = new Set<ClientHttp2Session>();
  private isClosed = false;

  constructor(options: UpstreamOptions) {
    this.options = options;
  }

  /** A connection that stood a moment ago. Rejects with Unavailable after the patience, or with the signal's reason. */
  async session(signal: AbortSignal): Promise<ClientHttp2Session> {
    const endMs = performance.now() + this.options.patienceMs;
    for (;;) {
      signal.throwIfAborted();
      try {
        const attempt = this.connected();
        const session = await attempt;
        if (!session.closed && !session.destroyed) return session;
        // Its end is not told yet.
        if (this.current === attempt) this.current = undefined;
        throw new Error('closed');
      } catch (error) {
        if (this.isClosed || performance.now() + RETRY_MS > endMs) throw awayError(this.options.socketPath, error);
        await delay(RETRY_MS, undefined, { signal }).catch((reason: unknown) => {
          throw signal.aborted ? signal.reason : reason;
        });
      }
    }
  }

  /** Opens a stream with these headers. Errors as {@link session}. */
  async open(headers: RawHeaders, signal: AbortSignal): Promise<ClientHttp2Stream> {
    return (await this.session(signal)).request([...headers] as never);
  }

  /**
   * One request, one answer; gRPC failures are answers too. Made again while containerd is away, so only for calls that may be repeated.
   * Rejects with Unavailable (containerd is away), the signal's reason, Internal (an answer that is too large).
   */
  async unary(headers: RawHeaders, message: Uint8Array, signal: AbortSignal): Promise<UnaryAnswer> {
    let cutOffMs: number | undefined;
    for (;;) {
      const stream = await this.open(headers, signal);
      try {
        const answer = await exchange(stream, frameMessage(message), signal);
        if (!isStarting(answer)) return answer;
        if (cutOffMs !== undefined && performance.now() - cutOffMs > this.options.patienceMs) return answer;
        throw cutOff('containerd is still starting');
      } catch (error) {
        if (!(error instanceof CutOff) || signal.aborted || this.isClosed) throw error;
        // A call that ran for long before it was cut off says nothing about how long containerd is away.
        cutOffMs ??= performance.now();
        if (performance.now() - cutOffMs > this.options.patienceMs) throw error;
        await delay(RETRY_MS);
      }
    }
  }

  [Symbol.dispose](): void {
    this.isClosed = true;
    for (const session of this.sessions) session.destroy();
  }

  private connected(): Promise<ClientHttp2Session> {
    if (this.isClosed) return Promise.reject(new AppError('Canceled', { op: 'call', subject: 'containerd', what: 'the proxy ends' }));
    if (this.current !== undefined) return this.current;
    const attempt = connect(this.options.socketPath, this.sessions, () => {
      if (this.current === attempt) this.current = undefined;
    });
    this.current = attempt;
    return attempt;
  }
}

/** Connects; `onOver` is called when no new stream can be opened on the session any more, once it failed included. */
function connect(socketPath: string, open: Set<ClientHttp2Session>, onOver: () => void): Promise<ClientHttp2Session> {
  return new Promise((resolve, reject) => {
    const session = http2.connect('http://localhost', {
      createConnection: () => net.connect(socketPath),
      settings: { initialWindowSize: WINDOW_BYTES, enablePush: false },
      maxSessionMemory: SESSION_MEMORY_MB,
    });
    open.add(session);
    const fail = (error: unknown): void => {
      onOver();
      reject(error);
    };
    const timer = setTimeout(() => session.destroy(new Error(`no connection within ${CONNECT_MS} ms`)), CONNECT_MS);
    session.once('connect', () => {
      clearTimeout(timer);
      resolve(session);
    });
    session.on('error', fail);
    // containerd stops: what runs may end, what is new goes to its successor.
    session.on('goaway', onOver);
    session.on('close', () => {
      clearTimeout(timer);
      open.delete(session);
      fail(new Error('closed'));
    });
  });
}

function cutOff(what: string, cause?: unknown): CutOff {
  return new CutOff('Unavailable', { op: 'call', subject: 'containerd', what, ...(cause === undefined ? {} : { cause }) });
}

/**
 * containerd listens before its image service works, and says so by these words alone (code Unknown in 1.6, Unavailable later). Source:
 * containerd, internal/cri/instrument and pkg/cri/server, errors of an uninitialized service.
 */
function isStarting({ headers, trailers }: UnaryAnswer): boolean {
  const text = headerValue(trailers, 'grpc-message') ?? headerValue(headers, 'grpc-message');
  return text?.startsWith('server is not initialized yet') === true;
}

/** Sends one framed message and collects the answer. */
function exchange(stream: ClientHttp2Stream, body: Buffer, signal: AbortSignal): Promise<UnaryAnswer> {
  return new Promise((resolve, reject) => {
    let headers: RawHeaders | undefined;
    let trailers: RawHeaders = [];
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    let failure: unknown;
    const onAbort = (): void => {
      failure = signal.reason;
      stream.close(constants.NGHTTP2_CANCEL);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    stream.on('response', (_headers, _flags, raw?: unknown) => (headers = raw as RawHeaders));
    stream.on('trailers', (_headers, _flags, raw?: unknown) => (trailers = raw as RawHeaders));
    stream.on('data', (chunk: Buffer) => {
      sizeBytes += chunk.length;
      if (sizeBytes <= MAX_BODY_BYTES) chunks.push(chunk);
      else {
        failure = new AppError('Internal', { op: 'call', subject: 'containerd', what: `answered more than ${MAX_BODY_BYTES} bytes` });
        stream.close(constants.NGHTTP2_CANCEL);
      }
    });
    stream.on('error', (error: Error) => (failure ??= cutOff('the connection broke', error)));
    stream.on('close', () => {
      signal.removeEventListener('abort', onAbort);
      if (failure !== undefined) reject(failure);
      else if (headers === undefined) reject(cutOff('the connection ended before an answer'));
      else if (trailers.length === 0 && !headers.includes('grpc-status')) reject(cutOff('the connection ended within an answer'));
      else resolve({ headers, message: unframeMessage(Buffer.concat(chunks)), trailers });
    });
    if (signal.aborted) onAbort();
    else stream.end(body);
  });
}
