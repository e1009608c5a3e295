/**
 * A registry in memory that misbehaves when told to, for tests of everything that talks to registries. It speaks the whole distribution
 * API (pull, ranges, push in all ways, referrers, tags, delete), Basic and Bearer, TLS, and redirects of blobs to a second server that, like an
 * object store, refuses expired signatures and requests that carry an Authorization header.
 *
 *   await using registry = await startFaultRegistry({ auth: { kind: 'bearer', username: 'u', password: 'p' } });
 *   const digest = registry.addBlob(bytes);
 *   registry.inject({ effect: { kind: 'reset', afterBytes: 100 } });       // the next GET of a blob
 *   … client.fetchRange({ host: registry.host, repository: 'team/app' }, digest, …)
 *   registry.log                                                           // every request, in order
 *
 * Blobs are shared by all repositories unless `addBlob` names one.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type Digest, sha256 } from '../../plugin/base/digest.ts';
import { listenOn, listenOnOwnPort } from './net.ts';
import { RegistryApi } from './registry-api.ts';
import { TokenService, type TokenServiceOptions } from './registry-auth.ts';
import { type Answer, applyFault, type Fault, FaultList, sendAnswer } from './registry-faults.ts';
import { makeCertificates, type TestCertificates } from './registry-tls.ts';

export interface FaultRegistryOptions {
  /** Serve TLS with a certificate of a new authority (`certificates.ca`), or of one that was made before. */
  readonly tls?: boolean | TestCertificates;
  /** With TLS: refuse clients without a certificate of the authority. */
  readonly requireClientCertificate?: boolean;
  readonly auth?: TokenServiceOptions;
  /** Default true; false: 404, so that the referrers tag is used. */
  readonly referrersApi?: boolean;
  /** Answer GETs of blobs with a redirect to the storage server. */
  readonly redirectBlobs?: boolean;
  /** Before each answer. */
  readonly latencyMs?: number;
  /** Entries per page of lists; default all. */
  readonly pageSize?: number;
}

export interface AccessLogEntry {
  readonly server: 'registry' | 'storage' | 'token';
  readonly method: string;
  /** Path and query. */
  readonly url: string;
  readonly headers: IncomingMessage['headers'];
  status: number;
  bodyBytes: number;
}

const NOTHING: Answer = { status: 500, headers: {}, body: Buffer.alloc(0) };

export class FaultRegistry {
  readonly log: AccessLogEntry[] = [];
  readonly faults = new FaultList();
  readonly api: RegistryApi;
  readonly tokens: TokenService | undefined;
  readonly certificates: TestCertificates | undefined;
  latencyMs: number;
  private readonly options: FaultRegistryOptions;
  private server: Server | undefined;
  private storage: Server | undefined;
  private port = 0;
  private storagePort = 0;
  private signature: string = randomUUID();

  constructor(options: FaultRegistryOptions) {
    this.options = options;
    this.latencyMs = options.latencyMs ?? 0;
    this.certificates = options.tls === true ? makeCertificates() : options.tls === false ? undefined : options.tls;
    this.api = new RegistryApi({ hasReferrersApi: options.referrersApi ?? true, pageSize: options.pageSize });
    this.tokens = options.auth === undefined ? undefined : new TokenService(options.auth);
  }

  /** `127.0.0.1:port` (`localhost:port` with TLS): the registry's name in references. */
  get host(): string {
    return `${this.certificates === undefined ? '127.0.0.1' : 'localhost'}:${this.port}`;
  }

  get origin(): string {
    return `${this.certificates === undefined ? 'http' : 'https'}://${this.host}`;
  }

  get storageOrigin(): string {
    return this.origin.replace(/:\d+$/, `:${this.storagePort}`);
  }

  addBlob(bytes: Uint8Array): Digest {
    const digest = sha256(bytes);
    this.api.blobs.set(digest, Buffer.from(bytes));
    return digest;
  }

  /** Stores a manifest, under a tag too if one is given. */
  addManifest(repository: string, bytes: Uint8Array, mediaType: string, tag?: string): Digest {
    return this.api.storeManifest(repository, tag, Buffer.from(bytes), mediaType);
  }

  inject(fault: Fault): void {
    this.faults.add(fault);
  }

  /** URLs handed out so far are refused by the storage server from now on. */
  expireStorageUrls(): void {
    this.signature = randomUUID();
  }

  /** A URL of the storage server that was never valid. */
  expiredStorageUrl(digest: Digest): string {
    return `${this.storageOrigin}/storage/${digest}?signature=expired`;
  }

  /** Requests of one kind that were answered so far. */
  requests(server: AccessLogEntry['server'], method?: string): AccessLogEntry[] {
    return this.log.filter((entry) => entry.server === server && (method === undefined || entry.method === method));
  }

  /** Starts, or starts again on the same ports after {@link stop}. */
  async start(): Promise<void> {
    [this.server, this.port] = await this.listen(this.port, (request) => this.answerRegistry(request), 'registry');
    [this.storage, this.storagePort] = await this.listen(this.storagePort, (request) => this.answerStorage(request), 'storage');
  }

  /** Refuses connections from now on and breaks those there are. Content stays. */
  async stop(): Promise<void> {
    for (const server of [this.server, this.storage]) {
      if (server === undefined) continue;
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      await closed;
    }
    this.server = undefined;
    this.storage = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  private async listen(
    port: number,
    answer: (request: IncomingMessage) => Promise<{ answer: Answer; whole?: Buffer | undefined }>,
    name: 'registry' | 'storage',
  ): Promise<[Server, number]> {
    const handle = (request: IncomingMessage, response: ServerResponse): void => {
      this.serve(request, response, answer, name).catch((error: unknown) => {
        if (!response.destroyed) response.destroy(error instanceof Error ? error : undefined);
      });
    };
    const { certificates } = this;
    const server =
      certificates === undefined
        ? createServer(handle)
        : createTlsServer(
            { ...certificates.server, ca: certificates.ca, requestCert: this.options.requireClientCertificate === true },
            handle,
          );
    server.keepAliveTimeout = 60_000;
    // The client breaks connections on purpose in many tests.
    server.on('clientError', (_error, socket) => socket.destroy());
    if (port === 0) return [server as Server, await listenOnOwnPort(server)];
    await listenOn(server, port);
    return [server as Server, port];
  }

  private async serve(
    request: IncomingMessage,
    response: ServerResponse,
    answerOf: (request: IncomingMessage) => Promise<{ answer: Answer; whole?: Buffer | undefined }>,
    name: 'registry' | 'storage',
  ): Promise<void> {
    const url = request.url ?? '/';
    const method = request.method ?? 'GET';
    const server = url.startsWith('/token') ? 'token' : name;
    const entry: AccessLogEntry = { server, method, url, headers: request.headers, status: 0, bodyBytes: 0 };
    this.log.push(entry);
    const effect = this.faults.take({ method, url, server });
    if (this.latencyMs > 0) await new Promise((resolve) => setTimeout(resolve, this.latencyMs));
    if (effect?.kind === 'resetUpload') {
      await this.api.takePart(request, effect.afterBytes);
      request.socket.resetAndDestroy();
      return;
    }
    // A request that is answered with a mere status has no effect on what is stored.
    const isRefused = effect?.kind === 'status' || effect?.kind === 'redirect';
    if (isRefused) request.resume();
    const { answer, whole } = isRefused ? { answer: NOTHING, whole: undefined } : await answerOf(request);
    const changed = applyFault(answer, effect, whole);
    entry.status = changed.status;
    entry.bodyBytes = await sendAnswer(request, response, changed, effect);
  }

  private async answerRegistry(request: IncomingMessage): Promise<{ answer: Answer; whole?: Buffer | undefined }> {
    const url = new URL(request.url ?? '/', this.origin);
    if (url.pathname === '/token' && this.tokens !== undefined) return { answer: await this.tokens.answer(request, url) };
    const refusal = this.tokens?.check(request, url, this.origin);
    if (refusal !== undefined) {
      request.resume();
      return { answer: refusal };
    }
    const blob = /\/blobs\/(sha256:[0-9a-f]{64})$/.exec(url.pathname);
    if (this.options.redirectBlobs === true && request.method === 'GET' && blob !== null && this.api.blobs.has(blob[1] as Digest)) {
      const location = `${this.storageOrigin}/storage/${blob[1]}?signature=${this.signature}`;
      return { answer: { status: 307, headers: { location, 'content-length': '0' }, body: Buffer.alloc(0) } };
    }
    return this.api.answer(request, url);
  }

  private async answerStorage(request: IncomingMessage): Promise<{ answer: Answer; whole?: Buffer | undefined }> {
    const url = new URL(request.url ?? '/', this.storageOrigin);
    const refuse = (status: number): { answer: Answer } => ({
      answer: { status, headers: { 'content-length': '0' }, body: Buffer.alloc(0) },
    });
    if (request.headers.authorization !== undefined) return refuse(400);
    if (url.searchParams.get('signature') !== this.signature) return refuse(403);
    return this.api.answerBlob(request, url.pathname.slice('/storage/'.length) as Digest);
  }
}

/** Starts a registry on loopback with free ports. Dispose it (`await using`) or call `stop()`. */
export async function startFaultRegistry(options: FaultRegistryOptions = {}): Promise<FaultRegistry> {
  const registry = new FaultRegistry(options);
  await registry.start();
  return registry;
}

export { startRegistryProxy } from './registry-proxy.ts';
