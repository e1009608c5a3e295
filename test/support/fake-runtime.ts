/**
 * containerd's image service in memory, over real HTTP/2 on a unix socket: images that are there, images that can be pulled, and what was asked
 * with which credentials. Ours.
 */
import http2, { type Http2Server, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import { IMAGE_METHODS } from './cri-messages.ts';
import { decode, encode, type Message } from './protobuf-table.ts';

export interface RuntimeImage {
  id: string;
  repoTags: string[];
  repoDigests: string[];
}

export interface SeenPull {
  image: string;
  /** `user:password`, empty without credentials. */
  auth: string;
}

type Method = keyof typeof IMAGE_METHODS;

export class FakeRuntime implements AsyncDisposable {
  readonly images: RuntimeImage[] = [];
  /** Where it thinks that images lie. */
  mountpoint = '/no/such/guess';
  /** What a pull finds, by reference; others are NotFound. */
  readonly registry = new Map<string, RuntimeImage>();
  readonly pulls: SeenPull[] = [];
  /** Pulls of these references are answered when this resolves. */
  readonly gates = new Map<string, Promise<void>>();
  /** Methods in the order in which they were called. */
  readonly calls: string[] = [];
  private readonly server: Http2Server;
  private readonly sessions = new Set<ServerHttp2Session>();

  private constructor() {
    this.server = http2.createServer();
    this.server.on('session', (session) => {
      this.sessions.add(session);
      session.on('close', () => this.sessions.delete(session));
    });
    this.server.on('stream', (opened, headers) => {
      const stream = opened as ServerHttp2Stream;
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () => void this.answer(stream, String(headers[':path']), Buffer.concat(chunks)));
      // A caller that gives up.
      stream.on('error', () => this.calls.push('broken'));
    });
  }

  static async start(socketPath: string): Promise<FakeRuntime> {
    const runtime = new FakeRuntime();
    await new Promise<void>((resolve) => runtime.server.listen(socketPath, resolve));
    return runtime;
  }

  /** An image that is there already. */
  add(reference: string, image: { id: string; digest: string }): void {
    const repository = reference.replace(/:[^:/]*$/, '');
    this.images.push({ id: image.id, repoTags: [reference], repoDigests: [`${repository}@${image.digest}`] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    for (const session of this.sessions) session.destroy();
    await closed;
  }

  private find(name: string): RuntimeImage | undefined {
    return this.images.find(({ id, repoTags, repoDigests }) => id === name || repoTags.includes(name) || repoDigests.includes(name));
  }

  private async answer(stream: ServerHttp2Stream, path: string, body: Buffer): Promise<void> {
    const method = path.slice(path.lastIndexOf('/') + 1) as Method;
    this.calls.push(method);
    const table = IMAGE_METHODS[method];
    const request = table === undefined ? {} : decode(table.request, body.subarray(5));
    const message = table === undefined ? undefined : this.messageFor(method, request);
    if (method === 'PullImage') await this.gates.get(String((request.image as Message | undefined)?.image ?? ''));
    if (stream.destroyed) return;
    if (message !== undefined) this.send(stream, method, message);
    else if (table === undefined) fail(stream, 12, `unknown method ${method}`);
    else fail(stream, 5, 'failed to resolve reference: not found');
  }

  /** Undefined: there is no such image in the registry. */
  private messageFor(method: Method, request: Message): Message | undefined {
    const name = String((request.image as Message | undefined)?.image ?? '');
    const image = this.find(name);
    switch (method) {
      case 'ListImages':
        return { images: this.images };
      case 'ImageStatus':
        return image === undefined ? {} : { image };
      case 'ImageFsInfo':
        return {
          imageFilesystems: [
            { timestamp: 5, fsId: { mountpoint: this.mountpoint }, usedBytes: { value: 1000 }, inodesUsed: { value: 10 } },
          ],
        };
      case 'RemoveImage':
        if (image !== undefined) this.images.splice(this.images.indexOf(image), 1);
        return {};
      case 'PullImage': {
        const auth = request.auth as Message | undefined;
        this.pulls.push({ image: name, auth: auth === undefined ? '' : `${auth.username}:${auth.password}` });
        const pulled = this.registry.get(name);
        if (pulled !== undefined && !this.images.includes(pulled)) this.images.push(pulled);
        return pulled === undefined ? undefined : { imageRef: pulled.id };
      }
    }
  }

  private send(stream: ServerHttp2Stream, method: Method, message: Message): void {
    const bytes = encode(IMAGE_METHODS[method].response, message);
    const framed = Buffer.alloc(5 + bytes.length);
    framed.writeUInt32BE(bytes.length, 1);
    framed.set(bytes, 5);
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.end(framed);
  }
}

function fail(stream: ServerHttp2Stream, code: number, details: string): void {
  stream.respond(
    { ':status': 200, 'content-type': 'application/grpc', 'grpc-status': String(code), 'grpc-message': details },
    { endStream: true },
  );
}
