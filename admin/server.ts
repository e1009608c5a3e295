/**
 * Where the admin API listens: always on a root-only unix socket, and on TCP with bearer tokens when the configuration says so. Both serve
 * the same application, which is told who asks.
 */
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { getRequestListener, RequestError } from '@hono/node-server';
import { AppError, errnoOf } from '../plugin/base/errors.ts';
import type { Audit } from './audit.ts';
import { type Caller, NOBODY, SOCKET_CALLER } from './auth/scopes.ts';
import type { AdminApp, AdminEnv } from './context.ts';
import { wireError } from './errors.ts';
import { ANSWER_DEADLINE_MS, LATE_CHECK_MS, MAX_CONNECTIONS, READER_PATIENCE_MS } from './limits.ts';
import { actionFailure, isAction } from './rpc/failure.ts';

/** Milliseconds; see `limits.ts`. */
export interface AdminPatience {
  requestMs: number;
  readerMs: number;
}

const PATIENCE: AdminPatience = { requestMs: ANSWER_DEADLINE_MS, readerMs: READER_PATIENCE_MS };

export interface AdminServerOptions {
  app: AdminApp;
  /** Absolute path; its directory is made (0700) if missing. An older instance's socket is replaced. */
  socketPath: string;
  /** `address` is host:port. The configuration has already refused what is not loopback unless allowed. */
  tcp?: { address: string; callerOf(token: string): Caller | undefined; audit: Audit };
  patience?: AdminPatience;
  /** Told of what failed before the application had the request, and was no fault of the request. */
  onFailure?: (error: unknown) => void;
}

export interface AdminServer extends AsyncDisposable {
  /** The TCP port in use, when TCP is on. */
  readonly tcpPort: number | undefined;
  /** Ends open connections and stops listening. May be called again. */
  close(): Promise<void>;
}

/** The empty status page is for everybody: it asks for a token itself, and holds nothing. */
function isStatusPage(request: Request): boolean {
  const { pathname, search } = new URL(request.url);
  return request.method === 'GET' && pathname === '/' && search === '';
}

/** The application behind bearer tokens. */
export function withBearerTokens(app: AdminApp, { callerOf, audit }: NonNullable<AdminServerOptions['tcp']>) {
  return async (request: Request, connection: Connection = {}): Promise<Response> => {
    const requestId = randomUUID();
    const given = request.headers.get('authorization');
    const token = /^Bearer +(\S{1,600})$/i.exec(given ?? '')?.[1];
    const caller = token === undefined ? undefined : callerOf(token);
    if (caller !== undefined) return app.fetch(request, { ...connection, caller, requestId });
    if (given === null && isStatusPage(request)) return app.fetch(request, { ...connection, caller: NOBODY, requestId });
    const what = given === null ? 'a bearer token is required' : 'the token is wrong, removed or expired';
    const error = new AppError('Unauthenticated', { op: 'authenticate', subject: 'request', what });
    const answerOf = isAction(request.method, request.url) ? actionFailure : wireError;
    const { status, body, headers } = answerOf(error, requestId);
    await audit.refused({ caller: NOBODY.name, action: request.method, path: new URL(request.url).pathname, status, requestId });
    return Response.json(body, { status, headers: { ...headers, 'www-authenticate': 'Bearer' } });
  };
}

/** What the application may do with the connection of a request. */
type Connection = Pick<AdminEnv['Bindings'], 'hangUpOnStall'>;

/** A request that cannot be read at all, or what failed before the application had it: the one shape all the same. */
function answerUnread(cause: unknown, onFailure: AdminServerOptions['onFailure']): Response {
  const what = 'its address or its Host header is none';
  const isUnreadable = cause instanceof RequestError;
  if (!isUnreadable) onFailure?.(cause);
  const error = isUnreadable ? new AppError('InvalidArgument', { op: 'read', subject: 'request', what, cause }) : cause;
  const { status, body, headers } = wireError(error, randomUUID());
  return Response.json(body, { status, headers });
}

/** Requests must arrive, with their bodies, within the patience; then they are answered 408 and the connection ends. */
function createServer(
  fetch: (request: Request, connection: Connection) => Response | Promise<Response>,
  { requestMs, readerMs }: AdminPatience,
  onFailure: AdminServerOptions['onFailure'],
): http.Server {
  const listener = getRequestListener(
    (request, { outgoing }) => fetch(request, { hangUpOnStall: () => void outgoing.setTimeout(readerMs, () => outgoing.destroy()) }),
    { errorHandler: (cause) => answerUnread(cause, onFailure) },
  );
  const connectionsCheckingInterval = Math.min(LATE_CHECK_MS, requestMs);
  const server = http.createServer({ requestTimeout: requestMs, headersTimeout: requestMs, connectionsCheckingInterval }, listener);
  server.maxConnections = MAX_CONNECTIONS;
  return server;
}

function listen(server: http.Server, where: string, start: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => {
      const what = `cannot listen (${errnoOf(error) ?? 'unknown'})`;
      reject(new AppError('FailedPrecondition', { op: 'start admin API', subject: where, what, cause: error }));
    };
    server.once('error', onError);
    server.once('listening', () => {
      server.off('error', onError);
      resolve();
    });
    start();
  });
}

/**
 * Listens under a name of its own and renames it into place: a caller finds the old instance or the new one, never neither, and a dead
 * instance's socket is no obstacle.
 */
async function listenUnix(server: http.Server, socketPath: string): Promise<void> {
  fs.mkdirSync(path.dirname(socketPath), { recursive: true, mode: 0o700 });
  const ownPath = path.join(path.dirname(socketPath), `.a${process.pid}`);
  fs.rmSync(ownPath, { force: true });
  await listen(server, socketPath, () => {
    // bind(2) happens inside listen(), so the mask covers just that.
    const mask = process.umask(0o177);
    try {
      server.listen(ownPath);
    } finally {
      process.umask(mask);
    }
  });
  fs.renameSync(ownPath, socketPath);
}

function splitAddress(address: string): { host: string; port: number } {
  const colon = address.lastIndexOf(':');
  return { host: address.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(address.slice(colon + 1)) };
}

function end(server: http.Server): Promise<void> {
  return new Promise((resolve) => {
    if (!server.listening) {
      resolve();
      return;
    }
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

/** Starts listening. Throws FailedPrecondition when a place cannot be listened on; nothing is left open then. */
export async function startAdminServer({ app, socketPath, tcp, patience = PATIENCE, onFailure }: AdminServerOptions): Promise<AdminServer> {
  const servers: http.Server[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(servers.map(end));
  };
  let tcpPort: number | undefined;
  try {
    if (tcp !== undefined) {
      const { host, port } = splitAddress(tcp.address);
      const server = createServer(withBearerTokens(app, tcp), patience, onFailure);
      servers.push(server);
      await listen(server, tcp.address, () => server.listen({ host, port, exclusive: true }));
      const bound = server.address();
      tcpPort = typeof bound === 'object' && bound !== null ? bound.port : undefined;
    }
    const server = createServer((request, connection) => app.fetch(request, { ...connection, caller: SOCKET_CALLER }), patience, onFailure);
    servers.push(server);
    await listenUnix(server, socketPath);
  } catch (error) {
    await close();
    throw error;
  }
  return { tcpPort, close, [Symbol.asyncDispose]: close };
}
