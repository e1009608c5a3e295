/**
 * A proxy in front of a real registry: faults on chosen requests, and a link with a rate and a round trip. The client uses `host` as the
 * registry; the registry sees the client's Host header, so that the URLs it makes lead back through the proxy.
 */
import { Agent, createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import { type Answer, applyFault, type Fault, FaultList, sendAnswer } from './registry-faults.ts';
import { type Shaper, startShaper } from './registry-shaper.ts';

export interface RegistryProxyOptions {
  /** `host:port` of a plain-HTTP registry. */
  readonly upstream: string;
  readonly rateBytesPerS?: number;
  readonly roundTripMs?: number;
  /** Faults from the beginning; more can be injected. Without faults, bytes are passed on untouched. */
  readonly faults?: readonly Fault[];
}

export interface RegistryProxy {
  /** `127.0.0.1:port`: use it as the registry's name. */
  readonly host: string;
  readonly counters: Shaper['counters'];
  readonly setLink: Shaper['setLink'];
  /** Only when `faults` was given (it may be empty). */
  inject(fault: Fault): void;
  close(): Promise<void>;
}

/** Larger answers are not collected; faults on them would need the whole in memory. */
const MAX_ANSWER_BYTES = 256 * 1024 * 1024;

async function collect(stream: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) throw new Error(`more than ${MAX_ANSWER_BYTES} bytes pass a fault proxy at once`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** Starts the proxy on loopback; only plain HTTP when there are faults, anything on TCP otherwise. */
export async function startRegistryProxy(options: RegistryProxyOptions): Promise<RegistryProxy> {
  const faultProxy = options.faults === undefined ? undefined : await startFaultProxy(options.upstream, options.faults);
  const shaper = await startShaper({
    target: faultProxy?.host ?? options.upstream,
    ...(options.rateBytesPerS === undefined ? {} : { rateBytesPerS: options.rateBytesPerS }),
    ...(options.roundTripMs === undefined ? {} : { roundTripMs: options.roundTripMs }),
  });
  return {
    host: shaper.host,
    counters: shaper.counters,
    setLink: shaper.setLink,
    inject(fault) {
      if (faultProxy === undefined) throw new Error('start the proxy with faults: [] to inject faults later');
      faultProxy.faults.add(fault);
    },
    async close() {
      await shaper.close();
      await faultProxy?.close();
    },
  };
}

async function startFaultProxy(upstream: string, initial: readonly Fault[]) {
  const faults = new FaultList();
  for (const fault of initial) faults.add(fault);
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const [hostname, port] = [upstream.slice(0, upstream.lastIndexOf(':')), upstream.slice(upstream.lastIndexOf(':') + 1)];

  const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const effect = faults.take({ method: request.method ?? '', url: request.url ?? '', server: 'registry' });
    const { range, ...rest } = request.headers;
    const headers = effect?.kind === 'ignoreRange' || range === undefined ? rest : { ...rest, range };
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const forwarded = httpRequest({ hostname, port, method: request.method, path: request.url, headers, agent }, resolve);
      forwarded.on('error', reject);
      request.pipe(forwarded);
    });
    const plain = Object.fromEntries(
      Object.entries(answer.headers).flatMap(([key, value]) => (typeof value === 'string' ? [[key, value]] : [])),
    );
    if (effect === undefined) {
      response.writeHead(answer.statusCode ?? 502, plain);
      answer.pipe(response);
      return;
    }
    const full: Answer = { status: answer.statusCode ?? 502, headers: plain, body: await collect(answer) };
    await sendAnswer(request, response, applyFault(full, effect, full.body), effect);
  };

  const server = createServer((request, response) => {
    handle(request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server has a port');
  return {
    host: `127.0.0.1:${address.port}`,
    faults,
    async close() {
      agent.destroy();
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
