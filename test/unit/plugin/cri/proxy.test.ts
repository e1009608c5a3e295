/**
 * The proxy between a client and a server of HTTP/2: methods it does not know pass both ways untouched, old clients' `:authority` is made
 * acceptable, a server that is away is waited for, and a handler that fails does not stand in the way.
 */
import http2, { type ClientHttp2Session, constants, type Http2Server, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import net from 'node:net';
import { PassThrough, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { AuthorityFilter } from '../../../../plugin/cri/proxy/authority-filter.ts';
import { successAnswer } from '../../../../plugin/cri/proxy/grpc-messages.ts';
import { ProxyServer, Refusal, type UnaryHandler } from '../../../../plugin/cri/proxy/proxy-server.ts';
import { Upstream } from '../../../../plugin/cri/proxy/upstream.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

const EMPTY = Buffer.from('0000000000', 'hex');

let stack: AsyncDisposableStack;
let scratch: Scratch;
let upstream: Upstream;
let onStream: (stream: ServerHttp2Stream, headers: http2.IncomingHttpHeaders, raw: readonly string[]) => void;
const handlers = new Map<string, UnaryHandler>();

interface Server {
  server: Http2Server;
  sessions: Set<ServerHttp2Session>;
}

async function startServer(): Promise<Server> {
  const server = http2.createServer({ maxSessionMemory: 256 });
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('close', () => sessions.delete(session));
  });
  server.on('stream', (opened, headers, _flags, raw?: unknown) => {
    // What a test breaks on purpose.
    opened.on('error', () => opened.destroy());
    onStream(opened as ServerHttp2Stream, headers, raw as readonly string[]);
  });
  await new Promise<void>((resolve) => server.listen(scratch.join('up.sock'), resolve));
  return { server, sessions };
}

async function stopServer({ server, sessions }: Server): Promise<void> {
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  for (const session of sessions) session.destroy();
  await closed;
}

function connect(): ClientHttp2Session {
  const session = http2.connect('http://localhost', {
    createConnection: () => net.connect(scratch.join('proxy.sock')),
    maxSessionMemory: 256,
  });
  stack.defer(() => session.destroy());
  return session;
}

/** Answers every call with its own bytes. */
function echo(stream: ServerHttp2Stream): void {
  stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'x-many': ['1', '2'] }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '7', 'grpc-message': 'a%20b', 'x-bin': 'AAEC' }));
  stream.pipe(stream);
}

interface Answer {
  headers: readonly string[];
  trailers: readonly string[];
  bytes: Buffer;
  rstCode: number;
}

function call(session: ClientHttp2Session, path: string, body: Uint8Array = EMPTY, headers: readonly string[] = []): Promise<Answer> {
  const stream = session.request([
    ':method',
    'POST',
    ':path',
    path,
    ':scheme',
    'http',
    ':authority',
    'localhost',
    'te',
    'trailers',
    ...headers,
  ] as never);
  return new Promise((resolve) => {
    const answer: Answer = { headers: [], trailers: [], bytes: Buffer.alloc(0), rstCode: 0 };
    const chunks: Buffer[] = [];
    stream.on('response', (_headers, _flags, raw?: unknown) => (answer.headers = raw as string[]));
    stream.on('trailers', (_headers, _flags, raw?: unknown) => (answer.trailers = raw as string[]));
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    // The code says it.
    stream.on('error', () => stream.destroy());
    stream.on('close', () => resolve({ ...answer, bytes: Buffer.concat(chunks), rstCode: stream.rstCode }));
    stream.end(body);
  });
}

const fieldOf = (headers: readonly string[], name: string): string | undefined => headers[headers.indexOf(name) + 1];

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  scratch = stack.use(await Scratch.create('proxy'));
  upstream = stack.use(new Upstream({ socketPath: scratch.join('up.sock'), patienceMs: 3_000 }));
  handlers.clear();
  onStream = echo;
  stack.use(await ProxyServer.listen({ socketPath: scratch.join('proxy.sock'), upstream, handlers, logger: silentLogger }));
});
afterEach(async () => {
  await stack.disposeAsync();
});

describe('an unknown method', () => {
  test('passes with its metadata, its answer with status, details and trailers', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    const seen: (readonly string[])[] = [];
    onStream = (stream, _headers, raw) => {
      seen.push(raw);
      echo(stream);
    };
    const body = Buffer.from('00000000026869', 'hex');
    const answer = await call(connect(), '/any.Service/Method', body, [
      'x-twice',
      'a',
      'x-twice',
      'b',
      'grpc-timeout',
      '5S',
      'bin-bin',
      'AAEC',
    ]);
    expect(answer.bytes).toEqual(body);
    expect(answer.headers.join(' ')).toContain('x-many 1 x-many 2');
    expect(answer.trailers).toEqual(['grpc-status', '7', 'grpc-message', 'a%20b', 'x-bin', 'AAEC']);
    expect(seen[0]!.join(' ')).toContain('x-twice a x-twice b grpc-timeout 5S bin-bin AAEC');
    expect(fieldOf(seen[0]!, ':authority')).toBe('localhost');
  });

  test('streams both ways before either end is done, and large ones pass with backpressure', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    const session = connect();
    const stream = session.request({ ':method': 'POST', ':path': '/stream' });
    const first = new Promise((resolve) => stream.once('data', resolve));
    stream.write('ping');
    expect(String(await first)).toBe('ping');
    stream.end();
    await new Promise((resolve) => stream.resume().once('close', resolve));
    const large = Buffer.alloc(24 * 1024 * 1024, 'x');
    expect((await call(session, '/large', large)).bytes.equals(large)).toBe(true);
  });

  test('ends at both ends when one gives up', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    const closed = Promise.withResolvers<number>();
    onStream = (stream) => stream.once('close', () => closed.resolve(stream.rstCode));
    const stream = connect().request({ ':method': 'POST', ':path': '/hang' });
    stream.on('error', () => stream.destroy());
    stream.write('x');
    await waitFor(() => server.sessions.size > 0, { what: 'the call to arrive' });
    stream.close(constants.NGHTTP2_CANCEL);
    expect(await closed.promise).toBe(constants.NGHTTP2_CANCEL);
    onStream = (below) => below.close(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    const answer = await call(connect(), '/refused');
    expect(answer.rstCode !== 0 || fieldOf(answer.headers, 'grpc-status') === '14').toBe(true);
  });
});

describe('hundreds of calls at once', () => {
  test('are all answered, each with its own answer', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    handlers.set('/s/Forward', (one) => one.forward());
    onStream = (stream) => {
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
      stream.on('end', () => {
        stream.respond({ ':status': 200 }, { waitForTrailers: true });
        stream.end(Buffer.concat(chunks));
      });
    };
    const session = connect();
    const bodies = Array.from({ length: 400 }, (_, i) => {
      const body = Buffer.alloc(5 + 4 + i);
      body.writeUInt32BE(body.length - 5, 1);
      body.writeUInt32BE(i, 5);
      return body;
    });
    const answers = await Promise.all(bodies.map((body, i) => call(session, i % 2 === 0 ? '/s/Forward' : '/s/Pass', body)));
    for (const [i, answer] of answers.entries()) {
      expect(answer.bytes.equals(bodies[i]!), `call ${i}`).toBe(true);
      expect(fieldOf(answer.trailers, 'grpc-status')).toBe('0');
    }
  });
});

describe('an answer that the end of the connection cuts off', () => {
  test('ends as unavailable for its caller, and later calls find the next connection', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    const sockets: net.Socket[] = [];
    server.server.on('connection', (socket: net.Socket) => sockets.push(socket));
    onStream = (stream) => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
      stream.write('0000000001');
      // As the kernel does for a process that was killed.
      stream.once('data', () => sockets[0]?.destroy());
    };
    const session = connect();
    const cut = session.request({ ':method': 'POST', ':path': '/cut' });
    const trailers = new Promise<http2.IncomingHttpHeaders>((resolve) => cut.once('trailers', resolve));
    cut.once('data', () => cut.write('x'));
    expect(await trailers).toMatchObject({ 'grpc-status': '14', 'grpc-message': expect.stringContaining('connection ended') });
    cut.end();
    onStream = echo;
    expect((await call(session, '/next', Buffer.from('y'))).bytes.toString()).toBe('y');
  });

  test('a connection that has just ended is not used again', async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    const signal = AbortSignal.timeout(60_000);
    const first = await upstream.session(signal);
    first.destroy();
    const stream = await upstream.open([':method', 'POST', ':path', '/x', ':scheme', 'http', ':authority', 'localhost'], signal);
    stream.on('error', () => stream.destroy());
    const status = await new Promise((resolve) => stream.once('response', (headers) => resolve(headers[':status'])));
    expect(status).toBe(200);
    stream.close();
  });
});

describe('a handler', () => {
  beforeEach(async () => {
    const server = await startServer();
    stack.defer(() => stopServer(server));
    // One message, status 0.
    onStream = (stream) => {
      stream.resume();
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.end(Buffer.from('000000000162', 'hex'));
    };
  });

  test('answers by itself, refuses with a status and text of any letters, or asks the server first', async () => {
    handlers.set('/s/Own', async () => successAnswer(Buffer.from('own')));
    handlers.set('/s/Refuse', async () => {
      throw new Refusal(new AppError('FailedPrecondition', { op: 'pull', subject: 'a', what: 'nö % \n' }));
    });
    handlers.set('/s/Ask', async (one) => {
      const asked = await one.ask('Other', one.message);
      return { ...(await one.forward()), message: Buffer.concat([asked.message!, one.message]) };
    });
    const session = connect();
    expect((await call(session, '/s/Own')).bytes.subarray(5).toString()).toBe('own');
    const refused = await call(session, '/s/Refuse');
    expect(fieldOf(refused.headers, 'grpc-status')).toBe('9');
    expect(fieldOf(refused.headers, 'grpc-message')).toBe('pull a: n%C3%B6 %25 %0A: failed precondition');
    expect((await call(session, '/s/Ask', Buffer.from('000000000161', 'hex'))).bytes.subarray(5).toString()).toBe('ba');
  });

  test('that fails is passed by, before and after the server answered', async () => {
    handlers.set('/s/Before', async () => {
      throw new TypeError('broken');
    });
    handlers.set('/s/After', async (one) => {
      await one.forward();
      throw new TypeError('broken');
    });
    for (const path of ['/s/Before', '/s/After']) expect((await call(connect(), path)).bytes.subarray(5).toString(), path).toBe('b');
  });

  test('is not asked about compressed or too large messages, and ends with the deadline of its call', async () => {
    handlers.set('/s/Hang', (one) => new Promise((_, reject) => one.signal.addEventListener('abort', () => reject(one.signal.reason))));
    const late = await call(connect(), '/s/Hang', EMPTY, ['grpc-timeout', '50m']);
    expect(fieldOf(late.headers, 'grpc-status')).toBe('4');
    expect((await call(connect(), '/s/Hang', Buffer.from('01000000016b', 'hex'))).bytes.subarray(5).toString()).toBe('b');
    expect((await call(connect(), '/s/Hang', Buffer.alloc(17 * 1024 * 1024))).bytes.subarray(5).toString()).toBe('b');
  });
});

describe('a server that is away', () => {
  test('is waited for, and then reported as unavailable', async () => {
    handlers.set('/s/Forward', (one) => one.forward());
    const both = [call(connect(), '/s/Forward'), call(connect(), '/s/Pass')];
    const server = await startServer();
    onStream = (stream) => {
      stream.resume();
      stream.respond({ ':status': 200, 'grpc-status': '0', 'x-here': 'yes' }, { endStream: true });
    };
    for (const answer of await Promise.all(both)) expect(fieldOf(answer.headers, 'x-here')).toBe('yes');
    await stopServer(server);
    const gone = await call(connect(), '/s/Pass');
    expect(fieldOf(gone.headers, 'grpc-status')).toBe('14');
    expect(fieldOf(gone.headers, 'grpc-message')).toContain('connect to containerd');
  });

  test('is asked again when it was cut off, or is still starting, but not for ever', async () => {
    handlers.set('/s/Forward', (one) => one.forward());
    const server = await startServer();
    stack.defer(() => stopServer(server));
    let calls = 0;
    const starting = { ':status': 200, 'grpc-status': '2', 'grpc-message': 'server is not initialized yet' };
    onStream = (stream) => {
      calls += 1;
      stream.resume();
      if (calls === 1) stream.session?.destroy();
      else if (calls < 4) stream.respond(starting, { endStream: true });
      else stream.respond({ ':status': 200, 'grpc-status': '0', 'x-calls': String(calls) }, { endStream: true });
    };
    expect(fieldOf((await call(connect(), '/s/Forward')).headers, 'x-calls')).toBe('4');
    onStream = (stream) => {
      stream.resume();
      stream.respond(starting, { endStream: true });
    };
    const never = await call(connect(), '/s/Forward');
    expect(fieldOf(never.headers, 'grpc-status')).toMatch(/^(?:2|14)$/);
  });
});

describe('the :authority of old clients', () => {
  test.each(['/run/overlaybd-sidecar/cri.sock', '/var/run/x', '/', 'localhost', '%2Frun%2Fx'])(
    '%s is accepted, call after call',
    async (authority) => {
      const server = await startServer();
      stack.defer(() => stopServer(server));
      const session = connect();
      for (let i = 0; i < 3; i += 1) {
        const stream = session.request([
          ':method',
          'POST',
          ':path',
          `/n/${i}`,
          ':scheme',
          'http',
          ':authority',
          authority,
          'x-path',
          '/kept/as/it/is',
        ] as never);
        const answer = await new Promise<readonly string[]>((resolve, reject) => {
          stream.on('response', (_headers, _flags, raw?: unknown) => resolve(raw as string[]));
          stream.on('error', reject);
          stream.resume().end();
        });
        expect(fieldOf(answer, ':status')).toBe('200');
      }
    },
  );

  /** The bytes that a client sends first, with everything else passed on. */
  async function filtered(pieces: readonly Uint8Array[]): Promise<Buffer> {
    const chunks: Buffer[] = [];
    const source = new PassThrough();
    const sink = new Writable({
      write(chunk: Buffer, _encoding, done) {
        chunks.push(chunk);
        done();
      },
    });
    const work = pipeline(source, new AuthorityFilter(), sink);
    for (const piece of pieces) source.write(piece);
    source.end();
    await work;
    return Buffer.concat(chunks);
  }

  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const frame = (type: number, flags: number, payload: Uint8Array): Buffer => {
    const head = Buffer.alloc(9);
    head.writeUIntBE(payload.length, 0, 3);
    head[3] = type;
    head[4] = flags;
    return Buffer.concat([head, payload]);
  };
  const literal = (authority: string): Buffer =>
    Buffer.concat([Buffer.from([0x83, 0x41, authority.length]), Buffer.from(authority), Buffer.from([0x44, 2]), Buffer.from('/p')]);

  test('is changed alone, however the bytes are cut, with padding and priority', async () => {
    const data = frame(0, 0, Buffer.from([0x41, 0x02, 0x2f, 0x2f]));
    const padded = frame(1, 0x8 | 0x20, Buffer.concat([Buffer.from([3, 0, 0, 0, 0, 9]), literal('/a/b'), Buffer.from('///')]));
    const input = Buffer.concat([preface, frame(4, 0, Buffer.alloc(0)), frame(1, 0x4, literal('/run/x')), data, padded]);
    const expected = Buffer.concat([
      preface,
      frame(4, 0, Buffer.alloc(0)),
      frame(1, 0x4, literal('-run-x')),
      data,
      frame(1, 0x8 | 0x20, Buffer.concat([Buffer.from([3, 0, 0, 0, 0, 9]), literal('-a-b'), Buffer.from('///')])),
    ]);
    expect(await filtered([input])).toEqual(expected);
    expect(await filtered([...input].map((byte) => Buffer.from([byte])))).toEqual(expected);
    for (const at of [5, 24, 30, 33, 40, 50]) expect(await filtered([input.subarray(0, at), input.subarray(at)])).toEqual(expected);
  });

  test('of nonsense is left to HTTP/2 to refuse', async () => {
    for (const payload of ['41', '41ff', '417f2f', '41ffffffffffff7f', '000041', '3fffffffffff', '4185ffffffffff']) {
      const input = Buffer.concat([preface, frame(1, 0x4, Buffer.from(payload, 'hex'))]);
      expect((await filtered([input])).length, payload).toBe(input.length);
    }
  });
});
