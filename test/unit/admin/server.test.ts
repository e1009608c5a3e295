import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { readTokenFile, TokenFile } from '../../../admin/auth/token-file.ts';
import { callAdmin, isUnreachable, watchAdmin } from '../../../admin/client.ts';
import { PAGE_WATCHERS_MAX } from '../../../admin/limits.ts';
import { type AdminPatience, type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { silentLogger } from '../../../plugin/base/log.ts';
import { waitFor } from '../../support/wait.ts';
import { fakeApp, memoryTokens } from './fake-app.ts';

const directory = mkdtempSync(join(tmpdir(), 'obd-admin-'));
const { app, audit, tokens, caches } = fakeApp({ tokens: memoryTokens() });
const servers: AdminServer[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close();
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function start(options: {
  socketPath: string;
  tcp?: { address: string; tokenFile: string };
  patience?: AdminPatience;
}): Promise<AdminServer> {
  const { socketPath, tcp, patience } = options;
  const file = tcp === undefined ? undefined : new TokenFile(tcp.tokenFile, silentLogger);
  const callerOf = (text: string) => tokens.callerOf(text) ?? file?.callerOf(text);
  const server = await startAdminServer({
    ...{ app, socketPath },
    ...(patience === undefined ? {} : { patience }),
    ...(tcp === undefined ? {} : { tcp: { address: tcp.address, callerOf, audit } }),
  });
  servers.push(server);
  return server;
}

const token = 'correct-horse-battery';
function tokenFile(text: string, mode: number): string {
  const file = join(directory, 'token');
  writeFileSync(file, text);
  chmodSync(file, mode);
  return file;
}

/** A connection that says just this; whoever reads it wants to be ended by the other side. */
async function saying(socketPath: string, text: string): Promise<Socket> {
  const socket = connect(socketPath);
  await once(socket, 'connect');
  socket.write(text);
  return socket;
}

async function answerTo(socketPath: string, text: string): Promise<string> {
  const socket = await saying(socketPath, text);
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

const health = (socketPath: string) => callAdmin({ socketPath, method: 'GET', path: '/healthz', timeoutMs: 30_000 });

describe('admin server', () => {
  it('makes a socket that only its owner may use, in a directory that only its owner may enter', async () => {
    const socketPath = join(directory, 'run', 'admin.sock');
    await start({ socketPath });
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
    expect(statSync(join(directory, 'run')).mode & 0o777).toBe(0o700);
    expect((await health(socketPath)).status).toBe(200);
  });

  it('takes over from an instance that still runs, whose end does not remove the new socket', async () => {
    const socketPath = join(directory, 'over.sock');
    const old = await start({ socketPath });
    await start({ socketPath });
    await old.close();
    expect((await health(socketPath)).status).toBe(200);
  });

  it('takes the place of a dead instance, and a client says that nothing runs', async () => {
    const socketPath = join(directory, 'dead.sock');
    await (await start({ socketPath })).close();
    const failure = await health(socketPath).catch((error: unknown) => error);
    expect(isUnreachable(failure)).toBe(true);
    expect(String(failure)).toContain('the service is not running');
    await start({ socketPath });
    expect((await health(socketPath)).status).toBe(200);
  });

  it('is not waited for without end by who follows its events', async () => {
    const socketPath = join(directory, 'silent.sock');
    const begins = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: cache\ndata: {}\n\n';
    for (const [first, expected] of [
      ['', []],
      [begins, ['{}']],
    ] as const) {
      const silent = createServer((socket) =>
        socket
          .on('error', () => socket.destroy())
          .resume()
          .write(first),
      ).listen(socketPath);
      await once(silent, 'listening');
      const watch = async (): Promise<string[]> => {
        const events: string[] = [];
        const watching = (async () => {
          for await (const data of watchAdmin(socketPath, '/v1/overview:watch', 500)) events.push(data);
        })();
        await expect(watching).rejects.toThrow(/nothing came for 0.5 s/);
        return events;
      };
      // On a machine that is busy for half a second nothing comes at all.
      await expect.poll(watch, { timeout: 30_000 }).toEqual(expected);
      await new Promise((closed) => silent.close(closed));
    }
  });

  it('serves TCP only with the bearer token', async () => {
    const server = await start({
      socketPath: join(directory, 'tcp.sock'),
      tcp: { address: '127.0.0.1:0', tokenFile: tokenFile(`${token}\n`, 0o600) },
    });
    const ask = (authorization?: string) =>
      fetch(`http://127.0.0.1:${server.tcpPort}/v1/status`, { headers: authorization === undefined ? {} : { authorization } });
    expect((await ask()).status).toBe(401);
    expect((await ask(`Bearer ${token}x`)).status).toBe(401);
    expect((await ask(token)).status).toBe(401);
    const denied = await ask();
    expect(denied.headers.get('www-authenticate')).toBe('Bearer');
    expect(await denied.text()).not.toContain(token);
    expect((await ask(`Bearer ${token}`)).status).toBe(200);
  });

  it('refuses to start when a place is taken, and leaves nothing listening', async () => {
    const first = await start({
      socketPath: join(directory, 'p1.sock'),
      tcp: { address: '127.0.0.1:0', tokenFile: tokenFile(token, 0o600) },
    });
    const socketPath = join(directory, 'p2.sock');
    await expect(
      start({ socketPath, tcp: { address: `127.0.0.1:${first.tcpPort}`, tokenFile: join(directory, 'token') } }),
    ).rejects.toThrow(/cannot listen \(EADDRINUSE\)/);
    expect(isUnreachable(await health(socketPath).catch((error: unknown) => error))).toBe(true);
  });

  it('ends requests that arrive drop by drop, and answers others meanwhile', async () => {
    const socketPath = join(directory, 'slow.sock');
    await start({ socketPath, patience: { requestMs: 500, readerMs: 60_000 } });
    const head = 'POST /v1/image-caches HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n';
    const slow = [
      answerTo(socketPath, 'GET /v1/sta'),
      answerTo(socketPath, `${head}content-length: 100\r\n\r\n{"imageCacheName":`),
      answerTo(socketPath, `${head}transfer-encoding: chunked\r\n\r\n5\r\n{"ima\r\n`),
    ];
    // On a machine that is busy for half a second a good request is late, too.
    await waitFor(async () => (await health(socketPath)).status === 200, { what: 'an answer meanwhile', timeoutMs: 30_000 });
    for (const answer of await Promise.all(slow)) expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(caches.usage().usedImageCacheCount).toBe(0);
  });

  it('says Internal, and nothing of why, when who asks cannot be found out', async () => {
    const failures: unknown[] = [];
    const server = await startAdminServer({
      ...{ app, socketPath: join(directory, 'broken.sock'), onFailure: (error: unknown) => void failures.push(error) },
      tcp: {
        address: '127.0.0.1:0',
        audit,
        callerOf: () => {
          throw new Error('disk I/O error at /secret/place');
        },
      },
    });
    servers.push(server);
    const answer = await fetch(`http://127.0.0.1:${server.tcpPort}/v1/usage`, { headers: { authorization: `Bearer ${token}` } });
    expect(answer.status).toBe(500);
    const text = await answer.text();
    expect(JSON.parse(text)).toMatchObject({ code: 'Internal' });
    expect(text).not.toContain('secret');
    expect(String(failures)).toContain('/secret/place');
  });

  it('answers a request whose Host is none in the one shape', async () => {
    const socketPath = join(directory, 'host.sock');
    await start({ socketPath });
    const answer = await answerTo(socketPath, 'GET /v1/status HTTP/1.1\r\nhost: a b\r\nconnection: close\r\n\r\n');
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({ code: 'InvalidArgument', requestId: expect.any(String) });
  });

  it('hangs up on readers of events who take nothing, and gives their places to others', async () => {
    const socketPath = join(directory, 'stuck.sock');
    await start({ socketPath, patience: { requestMs: 10_000, readerMs: 500 } });
    const watch = 'GET /v1/image-caches:watch HTTP/1.1\r\nhost: localhost\r\n\r\n';
    const stuck = await Promise.all(Array.from({ length: PAGE_WATCHERS_MAX }, () => saying(socketPath, watch)));
    try {
      const next = async () => {
        const socket = await saying(socketPath, watch);
        const [first] = (await once(socket, 'data')) as [Buffer];
        socket.destroy();
        return first.toString().slice(9, 12);
      };
      await expect.poll(next, { timeout: 30_000 }).toBe('507');
      const { imageCacheId } = await caches.create({ imageCacheName: 'large', images: ['a:1'] });
      // More than sockets and streams hold for a reader.
      for (let n = 0; n < 20; n += 1) caches.advance(imageCacheId, 'Creating', n, { failure: 'x'.repeat(200_000) });
      await expect.poll(next, { timeout: 30_000 }).toBe('200');
    } finally {
      for (const socket of stuck) socket.destroy();
      for (const { imageCacheId } of caches.list().caches) await caches.delete(imageCacheId);
    }
  });

  it.each([
    [token, 0o644, /mode 644 lets others read it/],
    ['short', 0o600, /16 to 512 printable/],
    [`${token} ${token}`, 0o600, /without spaces/],
    ['x'.repeat(2000), 0o600, /longer than 1024 bytes/],
  ])('refuses the token file %#', (text, mode, message) => {
    expect(() => readTokenFile(tokenFile(text, mode))).toThrow(message);
  });
});
