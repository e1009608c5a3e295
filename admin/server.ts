/**
 * Where the admin API listens: always on a root-only unix socket, and on TCP with a bearer token when the configuration says so. Both
 * serve the same application.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { getRequestListener } from '@hono/node-server';
import type { OpenAPIHono } from '@hono/zod-openapi';
import { Hono } from 'hono';
import { AppError, errnoOf } from '../plugin/base/errors.ts';
import { wireError } from './errors.ts';
import { ANSWER_DEADLINE_MS, MAX_CONNECTIONS } from './limits.ts';

const TOKEN = /^[\x21-\x7e]{16,512}$/;
const TOKEN_FILE_MAX_BYTES = 1024;

export interface AdminServerOptions {
  app: OpenAPIHono;
  /** Absolute path; its directory is made (0700) if missing. An older instance's socket is replaced. */
  socketPath: string;
  /** `address` is host:port. The configuration has already refused what is not loopback unless allowed. */
  tcp?: { address: string; tokenFile: string };
}

export interface AdminServer extends AsyncDisposable {
  /** The TCP port in use, when TCP is on. */
  readonly tcpPort: number | undefined;
  /** Ends open connections and stops listening. May be called again. */
  close(): Promise<void>;
}

/** Reads the token; refuses a file that others may read. Throws FailedPrecondition or NotFound, never with the token in it. */
export function readTokenFile(file: string): string {
  const refuse = (code: 'FailedPrecondition' | 'NotFound', what: string, cause?: unknown): AppError =>
    new AppError(code, { op: 'read token', subject: file, what, cause });
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch (error) {
    throw refuse('NotFound', `cannot be opened (${errnoOf(error) ?? 'unknown'})`, error);
  }
  try {
    const { mode, size } = fs.fstatSync(fd);
    if ((mode & 0o077) !== 0) throw refuse('FailedPrecondition', `mode ${(mode & 0o777).toString(8)} lets others read it; chmod 600`);
    if (size > TOKEN_FILE_MAX_BYTES) throw refuse('FailedPrecondition', `longer than ${TOKEN_FILE_MAX_BYTES} bytes`);
    const token = fs.readFileSync(fd, 'utf8').trim();
    if (!TOKEN.test(token)) throw refuse('FailedPrecondition', 'must hold 16 to 512 printable characters without spaces');
    return token;
  } finally {
    fs.closeSync(fd);
  }
}

/** The application behind a bearer token. */
export function withBearerToken(app: OpenAPIHono, token: string): Hono {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest();
  const expected = hash(`Bearer ${token}`);
  const guarded = new Hono();
  guarded.use(async (c, next) => {
    const given = c.req.header('authorization') ?? '';
    // Hashes have one length and no order, so that the time taken says nothing about the token.
    if (timingSafeEqual(hash(given), expected)) return next();
    const what = given === '' ? 'a bearer token is required' : 'the token is wrong';
    const { status, body } = wireError(new AppError('Unauthenticated', { op: 'authenticate', subject: 'request', what }));
    return c.json(body, status, { 'www-authenticate': 'Bearer' });
  });
  guarded.route('/', app);
  return guarded;
}

function createServer(fetch: (request: Request) => Response | Promise<Response>): http.Server {
  const server = http.createServer({ requestTimeout: ANSWER_DEADLINE_MS, headersTimeout: ANSWER_DEADLINE_MS }, getRequestListener(fetch));
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
export async function startAdminServer({ app, socketPath, tcp }: AdminServerOptions): Promise<AdminServer> {
  const servers: http.Server[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(servers.map(end));
  };
  let tcpPort: number | undefined;
  try {
    if (tcp !== undefined) {
      const { host, port } = splitAddress(tcp.address);
      const guarded = withBearerToken(app, readTokenFile(tcp.tokenFile));
      const server = createServer((request) => guarded.fetch(request));
      servers.push(server);
      await listen(server, tcp.address, () => server.listen({ host, port, exclusive: true }));
      const bound = server.address();
      tcpPort = typeof bound === 'object' && bound !== null ? bound.port : undefined;
    }
    const server = createServer((request) => app.fetch(request));
    servers.push(server);
    await listenUnix(server, socketPath);
  } catch (error) {
    await close();
    throw error;
  }
  return { tcpPort, close, [Symbol.asyncDispose]: close };
}
