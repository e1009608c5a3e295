/** An HTTP server that keeps what is sent to it, for tests of notifications. Ours. */
import http from 'node:http';
import type { AddressInfo } from 'node:net';

export interface ReceivedHook {
  path: string;
  headers: http.IncomingHttpHeaders;
  body: string;
}

export class HookReceiver implements AsyncDisposable {
  readonly received: ReceivedHook[] = [];
  /** Answers of the next requests, first to last; 200 when there is none. `hang` answers nothing. */
  readonly answers: (number | 'hang')[] = [];
  private readonly server: http.Server;

  private constructor() {
    this.server = http.createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        this.received.push({ path: request.url ?? '', headers: request.headers, body: Buffer.concat(chunks).toString() });
        const answer = this.answers.shift() ?? 200;
        if (answer !== 'hang') response.writeHead(answer, { location: '/elsewhere' }).end('x'.repeat(100_000));
      });
    });
  }

  static async start(): Promise<HookReceiver> {
    const receiver = new HookReceiver();
    await new Promise<void>((resolve) => receiver.server.listen(0, '127.0.0.1', resolve));
    return receiver;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.closeAllConnections();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }
}
