/**
 * Where registries tell of pushes: one address, one path, one shared secret in a header. A notification is a hint: it only makes a rule
 * look at its own registry, whatever host it names. Ours.
 *
 *   POST /v1/registry-events[?registry=HOST]    Authorization: Bearer SECRET   (or X-Overlaybd-Secret: SECRET)
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import http from 'node:http';
import { AppError, ERROR_STATUS, errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { MAX_ENVELOPE_BYTES, type PushEvent, parsePushEvents } from './notification.ts';

export const WEBHOOK_PATH = '/v1/registry-events';

/** A notification is sent whole; a registry gives up after some seconds itself. */
const REQUEST_LIMIT_MS = 15_000;
/** Registries keep one connection each. */
const MAX_CONNECTIONS = 64;
const MAX_SECRET_BYTES = 1024;
const SECRET = /^[\x21-\x7e]{16,512}$/;

export interface WebhookOptions {
  /** `host:port`. */
  address: string;
  secret: string;
  logger: Logger;
  /**
   * Called for each push before the registry is answered; `registry` is what the endpoint's address says, if it says anything. What it
   * throws refuses the notification, which registries then repeat.
   */
  onPush(event: PushEvent, registry: string | undefined): void;
}

/** Reads a secret of 16 to 512 printable characters from a file that only its owner may read. Never in an error. */
export async function readSecretFile(file: string): Promise<string> {
  const refuse = (code: 'FailedPrecondition' | 'NotFound', what: string, cause?: unknown): AppError =>
    new AppError(code, { op: 'read secret', subject: file, what, cause });
  try {
    const { mode, size } = await stat(file);
    if ((mode & 0o077) !== 0) throw refuse('FailedPrecondition', `mode ${(mode & 0o777).toString(8)} lets others read it; chmod 600`);
    if (size > MAX_SECRET_BYTES) throw refuse('FailedPrecondition', `longer than ${MAX_SECRET_BYTES} bytes`);
    const secret = (await readFile(file, 'utf8')).trim();
    if (!SECRET.test(secret)) throw refuse('FailedPrecondition', 'must hold 16 to 512 printable characters without spaces');
    return secret;
  } catch (error) {
    if (error instanceof AppError) throw error;
    throw refuse('NotFound', `cannot be read (${errnoOf(error) ?? 'unknown'})`, error);
  }
}

export class WebhookServer implements AsyncDisposable {
  private readonly options: WebhookOptions;
  private readonly server: http.Server;
  private readonly expected: Buffer;

  private constructor(options: WebhookOptions) {
    this.options = options;
    this.expected = hashOf(options.secret);
    this.server = http.createServer({ requestTimeout: REQUEST_LIMIT_MS, headersTimeout: REQUEST_LIMIT_MS }, (request, response) => {
      this.answer(request).then(
        () => response.writeHead(204).end(),
        (error: unknown) => this.refuse(request, response, error),
      );
    });
    this.server.maxConnections = MAX_CONNECTIONS;
  }

  /** Throws FailedPrecondition when the address cannot be listened on. */
  static async start(options: WebhookOptions): Promise<WebhookServer> {
    const webhook = new WebhookServer(options);
    const colon = options.address.lastIndexOf(':');
    const host = options.address.slice(0, colon).replace(/^\[|\]$/g, '');
    await new Promise<void>((resolve, reject) => {
      webhook.server.once('error', (cause) => {
        const what = `cannot listen (${errnoOf(cause) ?? 'unknown'})`;
        reject(new AppError('FailedPrecondition', { op: 'start webhook', subject: options.address, what, cause }));
      });
      webhook.server.listen({ host, port: Number(options.address.slice(colon + 1)), exclusive: true }, () => resolve());
    });
    return webhook;
  }

  /** The port in use. */
  get port(): number {
    const address = this.server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => {
      this.server.close(() => resolve());
      this.server.closeAllConnections();
    });
  }

  private async answer(request: http.IncomingMessage): Promise<void> {
    const target = request.url ?? '/';
    const fail = (code: 'NotFound' | 'Unauthenticated', what: string): AppError =>
      new AppError(code, { op: 'take notification', subject: target.split('?', 1)[0]!.slice(0, 100), what });
    const { authorization, 'x-overlaybd-secret': header } = request.headers;
    const given = typeof header === 'string' ? header : (authorization ?? '').replace(/^Bearer /, '');
    // Hashes have one length and no order, so that the time taken says nothing about the secret.
    if (!timingSafeEqual(hashOf(given), this.expected)) throw fail('Unauthenticated', 'the shared secret is missing or wrong');
    // A target such as `//` is none that can be resolved.
    const url = URL.canParse(target, 'http://localhost') ? new URL(target, 'http://localhost') : undefined;
    if (request.method !== 'POST' || url?.pathname !== WEBHOOK_PATH) throw fail('NotFound', `only POST ${WEBHOOK_PATH} is here`);
    const registry = url.searchParams.get('registry') ?? undefined;
    for (const event of parsePushEvents(await readBody(request))) this.options.onPush(event, registry);
  }

  private refuse(request: http.IncomingMessage, response: http.ServerResponse, error: unknown): void {
    const known =
      error instanceof AppError
        ? error
        : new AppError('Internal', { op: 'take notification', subject: 'request', what: 'unexpected failure' });
    if (known.code === 'Internal') this.options.logger.error({ err: error }, 'a registry notification could not be taken');
    // What is still coming is not read.
    response.writeHead(ERROR_STATUS[known.code].http, { 'content-type': 'application/json', connection: 'close' });
    response.end(JSON.stringify({ error: { code: known.code, message: known.message } }), () => request.destroy());
  }
}

function hashOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

async function readBody(request: http.IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes > MAX_ENVELOPE_BYTES) {
      throw new AppError('InvalidArgument', { op: 'read', subject: 'notification', what: `longer than ${MAX_ENVELOPE_BYTES} bytes` });
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
