/**
 * kubelet's image service on a root-only unix socket: every call goes through to containerd as bytes, whatever service and method it names,
 * with its metadata, deadline and cancellation; answers come back with their status, details and trailers. Calls of methods that have a
 * handler are read first. A handler that fails is passed by: the call then goes through like any other.
 *
 *   kubelet ── unix socket ── HTTP/2 ──► handler? ── no ──► stream to containerd, piped both ways
 *                                           └─ yes ─► whole message ─► handler ─► containerd, as the handler wants it
 */
import fs from 'node:fs/promises';
import http2, { constants, type Http2Server, type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import net from 'node:net';
import path from 'node:path';
import { Duplex } from 'node:stream';
import { systemClock } from '../../base/clock.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import { MAX_GRPC_MESSAGE_BYTES } from '../../base/limits.ts';
import type { Logger } from '../../base/log.ts';
import { LogRepeater } from '../../base/log-repeater.ts';
import { statusOf } from '../../snapshotter/grpc-adapter.ts';
import { removeStaleSocket } from '../../snapshotter/unix-server.ts';
import { AuthorityFilter } from './authority-filter.ts';
import {
  failureAnswer,
  failureTrailers,
  frameMessage,
  headerValue,
  type RawHeaders,
  type UnaryAnswer,
  unframeMessage,
} from './grpc-messages.ts';
import { type Upstream, WINDOW_BYTES } from './upstream.ts';

/** kubelet opens one connection or two; people with crictl some more. */
const MAX_CONNECTIONS = 256;
/** Calls under way on one connection: kubelet pulls images of 110 pods at worst. */
const MAX_STREAMS = 1024;
/** Node refuses new streams of a connection above this (MB). */
const SESSION_MEMORY_MB = 512;
/** Calls under way get this long to end at a stop. */
const DRAIN_MS = 3_000;

/** A failure that the caller is to see, as against one of our own that must not stand in its way. */
export class Refusal extends Error {
  readonly reason: AppError;

  constructor(reason: AppError) {
    super(reason.message);
    this.reason = reason;
  }
}

/** One call of a method that has a handler. */
export interface UnaryCall {
  /** `/runtime.v1.ImageService/PullImage` */
  readonly path: string;
  /** Uncompressed. Borrowed for the time of the call. */
  readonly message: Uint8Array;
  /** Aborted when the caller gives up or its deadline passes. */
  readonly signal: AbortSignal;
  /** Sends the call to containerd with this message, its own by default. */
  forward(message?: Uint8Array): Promise<UnaryAnswer>;
  /** Another method of the same service, with the headers of this call. */
  ask(method: string, message: Uint8Array): Promise<UnaryAnswer>;
}

/** Answers a call, or throws {@link Refusal}. Anything else that it throws is logged, and containerd's own answer is given. */
export type UnaryHandler = (call: UnaryCall) => Promise<UnaryAnswer>;

export interface ProxyOptions {
  readonly socketPath: string;
  readonly upstream: Upstream;
  /** By path. */
  readonly handlers: ReadonlyMap<string, UnaryHandler>;
  readonly logger: Logger;
}

/** For calls of ours only: containerd must not answer compressed. */
const NOT_FORWARDED: ReadonlySet<string> = new Set([':authority', 'grpc-accept-encoding', 'grpc-encoding']);

function upstreamHeaders(raw: RawHeaders, options: { drop: ReadonlySet<string>; path?: string }): string[] {
  const headers = [':authority', 'localhost'];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i]!;
    if (!options.drop.has(name)) headers.push(name, name === ':path' && options.path !== undefined ? options.path : raw[i + 1]!);
  }
  // Pseudo headers come first.
  const pseudo: string[] = [];
  const others: string[] = [];
  for (let i = 0; i < headers.length; i += 2) (headers[i]!.startsWith(':') ? pseudo : others).push(headers[i]!, headers[i + 1]!);
  return [...pseudo, ...others];
}

const AUTHORITY_ONLY: ReadonlySet<string> = new Set([':authority']);

const TIMEOUT_UNITS_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 };
/** Node's timers end here (25 days). */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** The deadline that a call carries, in milliseconds from now; undefined: none. */
function timeoutOf(raw: RawHeaders): number | undefined {
  const match = /^(\d{1,8})([HMSmun])$/.exec(headerValue(raw, 'grpc-timeout') ?? '');
  return match === null ? undefined : Math.min(Number(match[1]) * TIMEOUT_UNITS_MS[match[2]!]!, MAX_TIMER_MS);
}

export class ProxyServer implements AsyncDisposable {
  private readonly options: ProxyOptions;
  private readonly server: Http2Server;
  private readonly listener: net.Server;
  private readonly sessions = new Set<ServerHttp2Session>();
  /** kubelet asks again and again, whatever fails. */
  private readonly log: LogRepeater;

  private constructor(options: ProxyOptions) {
    this.options = options;
    this.log = new LogRepeater(options.logger, systemClock);
    this.server = http2.createServer({
      settings: { initialWindowSize: WINDOW_BYTES, maxConcurrentStreams: MAX_STREAMS },
      maxSessionMemory: SESSION_MEMORY_MB,
    });
    this.server.on('session', (session) => {
      this.sessions.add(session);
      session.on('close', () => this.sessions.delete(session));
    });
    // A client that breaks the protocol ends its own connection.
    this.server.on('sessionError', (error) => options.logger.debug({ reason: describeError(error) }, 'a CRI connection broke'));
    this.server.on('stream', (opened, _headers: IncomingHttpHeaders, _flags, raw?: unknown) => {
      const stream = opened as ServerHttp2Stream;
      // A broken stream is told by its `close`.
      stream.on('error', (error) => options.logger.debug({ reason: describeError(error) }, 'a CRI call broke'));
      this.serve(stream, raw as RawHeaders).catch((error: unknown) => this.fail(stream, error));
    });
    this.listener = net.createServer((socket) => this.accept(socket));
    this.listener.maxConnections = MAX_CONNECTIONS;
  }

  /** Serves until disposed of. Errors: FailedPrecondition (another process serves on the socket), Internal (cannot be bound). */
  static async listen(options: ProxyOptions): Promise<ProxyServer> {
    const proxy = new ProxyServer(options);
    const { socketPath } = options;
    await fs.mkdir(path.dirname(socketPath), { recursive: true, mode: 0o700 });
    await removeStaleSocket(socketPath);
    await new Promise<void>((resolve, reject) => {
      proxy.listener.once('error', (cause) =>
        reject(new AppError('Internal', { op: 'listen', subject: socketPath, what: cause.message, cause })),
      );
      const before = process.umask(0o177);
      proxy.listener.listen(socketPath, () => resolve());
      process.umask(before);
    });
    return proxy;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.listener.close(() => resolve()));
    for (const session of this.sessions) session.close();
    const cutOff = setTimeout(() => {
      for (const session of this.sessions) session.destroy();
    }, DRAIN_MS);
    await closed;
    clearTimeout(cutOff);
  }

  private accept(socket: net.Socket): void {
    const filter = new AuthorityFilter();
    const connection = Duplex.from({ readable: socket.pipe(filter), writable: socket } as never);
    const end = (): void => {
      connection.destroy();
      filter.destroy();
      socket.destroy();
    };
    for (const part of [socket, filter, connection]) {
      part.on('error', (error: unknown) => {
        this.options.logger.debug({ reason: describeError(error) }, 'a CRI connection ended');
        end();
      });
      part.on('close', end);
    }
    this.server.emit('connection', connection);
  }

  private async serve(stream: ServerHttp2Stream, raw: RawHeaders): Promise<void> {
    const gone = new AbortController();
    const giveUp = (code: 'Canceled' | 'DeadlineExceeded', what: string): void =>
      gone.abort(new AppError(code, { op: 'call', subject: headerValue(raw, ':path') ?? '', what }));
    stream.once('close', () => giveUp('Canceled', 'the caller gave it up'));
    const timeoutMs = timeoutOf(raw);
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => giveUp('DeadlineExceeded', 'its deadline passed'), timeoutMs);
    stream.once('close', () => clearTimeout(timer));
    const handler = this.options.handlers.get(headerValue(raw, ':path') ?? '');
    if (handler === undefined) return this.pass(stream, raw, [], gone.signal);
    const request = await readBody(stream);
    const message = request.isWhole ? unframeMessage(Buffer.concat(request.chunks)) : undefined;
    if (message === undefined) return this.pass(stream, raw, request.chunks, gone.signal);
    const answer = await this.handle(handler, raw, message, gone.signal);
    if (!stream.destroyed) send(stream, answer);
  }

  private async handle(handler: UnaryHandler, raw: RawHeaders, message: Uint8Array, signal: AbortSignal): Promise<UnaryAnswer> {
    const { upstream, logger } = this.options;
    const callPath = headerValue(raw, ':path') ?? '';
    const headers = upstreamHeaders(raw, { drop: NOT_FORWARDED });
    let forwarded: UnaryAnswer | undefined;
    const call: UnaryCall = {
      path: callPath,
      message,
      signal,
      forward: async (changed = message) => {
        forwarded = await upstream.unary(headers, changed, signal);
        return forwarded;
      },
      ask: (method, asked) => {
        const service = callPath.slice(0, callPath.lastIndexOf('/'));
        return upstream.unary(upstreamHeaders(raw, { drop: NOT_FORWARDED, path: `${service}/${method}` }), asked, signal);
      },
    };
    try {
      return await handler(call);
    } catch (error) {
      if (error instanceof Refusal) return failureAnswer(statusOf(error.reason));
      if (signal.aborted) throw signal.reason;
      const text = 'the logic of a CRI call failed; containerd alone answers it';
      // Bytes that are no message are the caller's fault, which containerd tells it.
      if (isAppError(error, 'InvalidArgument')) logger.debug({ reason: error.message, path: callPath }, text);
      else this.log.write('error', { err: error, path: callPath }, text);
      return forwarded ?? upstream.unary(headers, message, signal);
    }
  }

  /** Joins the stream to one of containerd's. `read` was taken from the stream already. */
  private async pass(stream: ServerHttp2Stream, raw: RawHeaders, read: readonly Buffer[], signal: AbortSignal): Promise<void> {
    const below = await this.options.upstream.open(upstreamHeaders(raw, { drop: AUTHORITY_ONLY }), signal);
    const { session } = below;
    const cutOff = new AppError('Unavailable', { op: 'call', subject: 'containerd', what: 'the connection ended before the answer did' });
    let trailers: RawHeaders = [];
    below.on('response', (_headers, flags, answer?: unknown) => {
      if (stream.destroyed) return;
      const isOver = (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0;
      stream.respond([...(answer as RawHeaders)] as never, { endStream: isOver, waitForTrailers: !isOver, sendDate: false } as never);
    });
    below.on('trailers', (_headers, _flags, answer?: unknown) => (trailers = answer as RawHeaders));
    stream.on('wantTrailers', () => stream.sendTrailers(objectOf(trailers)));
    below.on('error', (error) => this.options.logger.debug({ reason: describeError(error) }, 'a call to containerd broke'));
    // Node ends what was cut off too, before it closes it: only trailers say that an answer is whole.
    below.on('end', () => {
      if (trailers.length > 0 && !stream.destroyed) stream.end();
    });
    below.on('close', () => {
      if (stream.destroyed || stream.writableEnded) return;
      const isBroken = below.rstCode !== constants.NGHTTP2_NO_ERROR;
      if (!stream.headersSent) this.fail(stream, cutOff);
      else if (isBroken && session?.closed === false) stream.close(below.rstCode);
      else {
        // As a client of containerd itself would see the end of the connection.
        if (isBroken) trailers = failureTrailers(statusOf(cutOff));
        stream.end();
      }
    });
    stream.once('close', () => {
      if (!below.closed) below.close(stream.rstCode === constants.NGHTTP2_NO_ERROR ? constants.NGHTTP2_CANCEL : stream.rstCode);
    });
    if (stream.destroyed) {
      below.close(constants.NGHTTP2_CANCEL);
      return;
    }
    for (const chunk of read) below.write(chunk);
    stream.pipe(below);
    below.pipe(stream, { end: false });
  }

  /** Answers a call that could not be made. */
  private fail(stream: ServerHttp2Stream, error: unknown): void {
    if (stream.destroyed) return;
    if (!(error instanceof AppError)) this.log.write('error', { err: error }, 'a CRI call failed unexpectedly');
    if (stream.headersSent) stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    else send(stream, failureAnswer(statusOf(error)));
  }
}

/** Trailers as `sendTrailers` takes them; equal names become a list. */
function objectOf(raw: RawHeaders): Record<string, string | string[]> {
  const object: Record<string, string | string[]> = {};
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i]!;
    const before = object[name];
    object[name] = before === undefined ? raw[i + 1]! : [...(Array.isArray(before) ? before : [before]), raw[i + 1]!];
  }
  return object;
}

/** Reads a request to its end, or until it is larger than any that containerd takes (which then says so itself). */
async function readBody(stream: ServerHttp2Stream): Promise<{ chunks: Buffer[]; isWhole: boolean }> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  return new Promise((resolve, reject) => {
    const settle = (isWhole: boolean): void => {
      stream.pause();
      stream.off('data', onData);
      resolve({ chunks, isWhole });
    };
    const onData = (chunk: Buffer): void => {
      chunks.push(chunk);
      sizeBytes += chunk.length;
      if (sizeBytes > MAX_GRPC_MESSAGE_BYTES + 5) settle(false);
    };
    stream.on('data', onData);
    stream.once('end', () => settle(true));
    stream.once('close', () => reject(new AppError('Canceled', { op: 'read', subject: 'request', what: 'the caller gave it up' })));
  });
}

function send(stream: ServerHttp2Stream, answer: UnaryAnswer): void {
  if (answer.trailers.length === 0) {
    stream.respond([...answer.headers] as never, { endStream: true, sendDate: false } as never);
    return;
  }
  stream.on('wantTrailers', () => stream.sendTrailers(objectOf(answer.trailers)));
  stream.respond([...answer.headers] as never, { waitForTrailers: true, sendDate: false } as never);
  stream.end(answer.message === undefined ? undefined : frameMessage(answer.message));
}
