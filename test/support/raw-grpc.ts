/** Calls of any gRPC method with bytes in and out, to compare two servers answer by answer. Ours. */
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';

export interface RawAnswer {
  code: number;
  details: string;
  /** Absent when the call failed. */
  bytes?: Buffer;
  /** Trailing metadata, without what every answer has. */
  trailers: Record<string, unknown>;
}

export interface RawCall {
  /** `/package.Service/Method` */
  path: string;
  message: Uint8Array;
  metadata?: Record<string, string>;
  timeoutMs?: number;
  signal?: AbortSignal;
}

const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

export class RawGrpc implements Disposable {
  private readonly client: Client;

  /** `options` are grpc-js channel options. */
  constructor(socket: string, options: Record<string, string | number> = {}) {
    this.client = new Client(`unix:${socket}`, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
      // A pool of its own: two clients of one address would share their connection.
      'grpc.use_local_subchannel_pool': 1,
      ...options,
    });
  }

  /** One request, one answer; failures are answers too. */
  call({ path, message, metadata = {}, timeoutMs = 60_000, signal }: RawCall): Promise<RawAnswer> {
    const sent = new Metadata();
    for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
    return new Promise((resolve) => {
      const answer: RawAnswer = { code: 0, details: '', trailers: {} };
      const call = this.client.makeUnaryRequest(
        path,
        (bytes: Uint8Array) => Buffer.from(bytes),
        (bytes: Buffer) => bytes,
        message,
        sent,
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, bytes?: Buffer) => {
          if (bytes !== undefined) answer.bytes = bytes;
          if (error === null) return;
          answer.code = error.code;
          answer.details = error.details;
        },
      );
      call.on('status', (status) => {
        const { 'content-type': _, ...trailers } = status.metadata.getMap();
        resolve({ ...answer, trailers });
      });
      signal?.addEventListener('abort', () => call.cancel(), { once: true });
      if (signal?.aborted) call.cancel();
    });
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}
