/** Range reads when all is well: remembered redirects, mirrors and their order, limits on what is under way, proxies, and closing. */
import { createServer, request as httpRequest, type Server } from 'node:http';
import { connect } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import type { RegistryClientOptions } from '../../../../plugin/registry/client.ts';
import { type FaultRegistry, type FaultRegistryOptions, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, repositoryOf, testClient, until } from '../../../support/registry-client.ts';
import { makeHostsDir } from '../../../support/registry-hosts.ts';

const cleanUps: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const blob = randomBlob(1_000_000);

async function startRegistry(options: FaultRegistryOptions = {}): Promise<FaultRegistry> {
  const registry = await startFaultRegistry(options);
  cleanUps.push(() => registry.stop());
  registry.addBlob(blob);
  return registry;
}
function startClient(options: RegistryClientOptions = {}) {
  const client = testClient(options);
  cleanUps.push(() => client.close());
  return client;
}
/** A client that knows `r.test` as served by these, in order. */
function mirroredClient(origins: readonly string[], options: RegistryClientOptions = {}) {
  const { certsDir, cleanUp } = makeHostsDir({ 'r.test': origins });
  cleanUps.push(cleanUp);
  const client = startClient({ hostsDirs: [certsDir], ...options });
  const repository = { host: 'r.test', repository: 'team/app' };
  return async (digest: `sha256:${string}`, offset = 1000, length = 5000) => {
    const result = await client.fetchRange(repository, digest, blob.length, offset, length);
    expect(Buffer.from(result.bytes).equals(blob.subarray(offset, offset + length))).toBe(true);
    return result.mirror;
  };
}

describe('redirects', () => {
  test('the registry is asked once, later ranges of the blob go straight to the storage', async () => {
    const registry = await startRegistry({ redirectBlobs: true });
    const digest = registry.addBlob(blob);
    const client = startClient();
    for (let i = 0; i < 5; i += 1) await client.fetchRange(repositoryOf(registry), digest, blob.length, i * 1000, 1000);
    expect([registry.requests('registry').length, registry.requests('storage').length]).toEqual([1, 5]);
  });

  test('an expired URL leads back to the registry once, unseen by the caller', async () => {
    const registry = await startRegistry({ redirectBlobs: true });
    const digest = registry.addBlob(blob);
    const client = startClient();
    const read = () => client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 1000);
    await read();
    registry.expireStorageUrls();
    expect(Buffer.from((await read()).bytes).equals(blob.subarray(0, 1000))).toBe(true);
    expect(registry.log.map((entry) => [entry.server, entry.status])).toEqual([
      ['registry', 307],
      ['storage', 206],
      ['storage', 403],
      ['registry', 307],
      ['storage', 206],
    ]);
  });

  test('a URL is used for five minutes at most', async () => {
    let nowMs = 0;
    const registry = await startRegistry({ redirectBlobs: true });
    const digest = registry.addBlob(blob);
    const client = startClient({ clock: { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} } });
    const read = () => client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 1000);
    await read();
    nowMs = 299_000;
    await read();
    expect(registry.requests('registry').length).toBe(1);
    nowMs = 300_000;
    await read();
    expect(registry.requests('registry').length).toBe(2);
  });
});

describe('mirrors', () => {
  test('are tried in order; the registry itself comes last', async () => {
    const [first, second] = [await startRegistry(), await startRegistry()];
    const read = mirroredClient([first.origin, second.origin]);
    expect(await read(first.addBlob(blob))).toBe(`${first.origin}/v2`);
    expect(second.log.length).toBe(0);
  });

  test('one without the blob is passed over, and not asked again for that blob', async () => {
    const empty = await startFaultRegistry();
    cleanUps.push(() => empty.stop());
    const full = await startRegistry();
    const read = mirroredClient([empty.origin, full.origin]);
    const digest = full.addBlob(blob);
    for (let i = 0; i < 5; i += 1) expect(await read(digest, i * 1000)).toBe(`${full.origin}/v2`);
    expect(empty.log.length).toBe(1);
  });

  test('one that is down is passed over for a while and then tried again', async () => {
    let nowMs = 0;
    const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
    const [first, second] = [await startRegistry(), await startRegistry()];
    const digest = first.addBlob(blob);
    const read = mirroredClient([first.origin, second.origin], { clock });
    first.inject({ effect: { kind: 'status', status: 503 }, times: 2 });
    expect(await read(digest)).toBe(`${second.origin}/v2`);
    expect(await read(digest)).toBe(`${second.origin}/v2`);
    expect(first.log.length).toBe(1);
    nowMs += 301_000;
    expect(await read(digest)).toBe(`${second.origin}/v2`);
    expect(first.log.length).toBe(2);
    nowMs += 301_000;
    expect(await read(digest)).toBe(`${first.origin}/v2`);
  });

  test('when all are down the failure is Unavailable, names each, and a return is noticed at once', async () => {
    const [first, second] = [await startRegistry(), await startRegistry()];
    const digest = first.addBlob(blob);
    const read = mirroredClient([first.origin, second.origin]);
    await first.stop();
    await second.stop();
    for (let i = 0; i < 5; i += 1) {
      const error = await failureOf(read(digest));
      expect(error.code).toBe('Unavailable');
      expect(error.message).toContain(first.origin);
      expect(error.message).toContain(second.origin);
    }
    await second.start();
    expect(await read(digest)).toBe(`${second.origin}/v2`);
  });

  test('absence at one and an outage at another is an outage', async () => {
    const empty = await startFaultRegistry();
    cleanUps.push(() => empty.stop());
    const down = await startRegistry();
    const digest = down.addBlob(blob);
    const read = mirroredClient([empty.origin, down.origin]);
    await down.stop();
    expect((await failureOf(read(digest))).code).toBe('Unavailable');
  });

  test('one without the pull capability is not asked', async () => {
    const [first, second] = [await startRegistry(), await startRegistry()];
    const { certsDir, cleanUp } = makeHostsDir({
      'r.test': `server = "${second.origin}"\n[host."${first.origin}"]\ncapabilities = ["resolve"]\n`,
    });
    cleanUps.push(cleanUp);
    const client = startClient({ hostsDirs: [certsDir] });
    await client.fetchRange({ host: 'r.test', repository: 'team/app' }, first.addBlob(blob), blob.length, 0, 10);
    expect([first.log.length, second.log.length]).toEqual([0, 1]);
  });

  test('override_path replaces /v2', async () => {
    const registry = await startRegistry();
    const { certsDir, cleanUp } = makeHostsDir({ 'r.test': `server = "${registry.origin}/cache/v2"\noverride_path = true\n` });
    cleanUps.push(cleanUp);
    const client = startClient({ hostsDirs: [certsDir] });
    await client.fetchRange({ host: 'r.test', repository: 'team/app' }, registry.addBlob(blob), blob.length, 0, 10);
    expect(registry.log[0]?.url).toMatch(/^\/cache\/v2\/team\/app\/blobs\//);
  });
});

describe('bounds', () => {
  test('connections per origin stay within the limit while all requests are served', async () => {
    const registry = await startRegistry({ latencyMs: 5 });
    const digest = registry.addBlob(blob);
    const client = startClient({ connectionsPerOrigin: 4 });
    let most = 0;
    registry.faults.take = () => {
      most = Math.max(most, registry.log.filter((entry) => entry.status === 0).length);
      return undefined;
    };
    await Promise.all(Array.from({ length: 60 }, (_, i) => client.fetchRange(repositoryOf(registry), digest, blob.length, i * 100, 100)));
    expect(most).toBeLessThanOrEqual(4);
    expect(most).toBeGreaterThan(1);
  });

  test('the 4,097th request under way is refused with ResourceExhausted', async () => {
    const registry = await startRegistry();
    const digest = registry.addBlob(blob);
    registry.inject({ effect: { kind: 'stall' }, times: 4096 });
    const client = startClient({ headersTimeoutMs: 60_000 });
    const refused: string[] = [];
    const ask = async (): Promise<string> => {
      const { code } = await failureOf(client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 10));
      if (code === 'ResourceExhausted') refused.push(code);
      return code;
    };
    const all = Array.from({ length: 4100 }, ask);
    await until(() => refused.length === 4, 'four to be refused');
    await client.close();
    expect((await Promise.all(all)).filter((code) => code === 'ResourceExhausted')).toHaveLength(4);
  });

  test('a client that was closed refuses, and requests under way fail', async () => {
    const registry = await startRegistry();
    const digest = registry.addBlob(blob);
    registry.inject({ effect: { kind: 'stall' } });
    const client = testClient({ headersTimeoutMs: 60_000 });
    const reading = failureOf(client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 10));
    await until(() => registry.log.length === 1, 'the request to arrive');
    await client.close();
    expect(['Unavailable', 'Canceled']).toContain((await reading).code);
    expect((await failureOf(client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 10))).code).toBe('Canceled');
    await client.close();
  });

  test('a range of no bytes asks nobody', async () => {
    const registry = await startRegistry();
    const { bytes } = await startClient().fetchRange(repositoryOf(registry), registry.addBlob(blob), blob.length, 5, 0);
    expect([bytes.length, registry.log.length]).toEqual([0, 0]);
  });
});

describe('proxies from the environment', () => {
  /** A proxy that forwards absolute-form requests and CONNECT to one target, whatever their host, and notes what it saw. */
  async function startProxy(target: FaultRegistry): Promise<{ url: string; seen: string[] }> {
    const seen: string[] = [];
    const port = Number(target.host.split(':')[1]);
    const proxy: Server = createServer((request, response) => {
      seen.push(`${request.method} ${request.url} ${request.headers['proxy-authorization'] ?? ''}`);
      const path = new URL(request.url ?? '').pathname;
      const forwarded = httpRequest(
        { port, path, method: request.method, headers: { ...request.headers, host: target.host } },
        (answer) => {
          response.writeHead(answer.statusCode ?? 502, answer.headers);
          answer.pipe(response);
        },
      );
      request.pipe(forwarded);
    });
    proxy.on('connect', (request, client) => {
      seen.push(`CONNECT ${request.url}`);
      const upstream = connect(port, '127.0.0.1', () => {
        client.write('HTTP/1.1 200 OK\r\n\r\n');
        upstream.pipe(client).pipe(upstream);
      });
      for (const socket of [client, upstream]) socket.on('error', () => client.destroy() && upstream.destroy());
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    cleanUps.push(() => {
      proxy.closeAllConnections();
      return new Promise<void>((resolve) => proxy.close(() => resolve()));
    });
    return { url: `http://user:pass@127.0.0.1:${(proxy.address() as { port: number }).port}`, seen };
  }

  test('plain registries are asked through HTTP_PROXY in absolute form', async () => {
    const registry = await startRegistry();
    const proxy = await startProxy(registry);
    const client = startClient({ env: { HTTP_PROXY: proxy.url }, plainHttpHosts: ['registry.invalid'] });
    const digest = registry.addBlob(blob);
    const { bytes } = await client.fetchRange({ host: 'registry.invalid', repository: 'team/app' }, digest, blob.length, 7, 70);
    expect(Buffer.from(bytes).equals(blob.subarray(7, 77))).toBe(true);
    const credentials = Buffer.from('user:pass').toString('base64');
    expect(proxy.seen).toEqual([`GET http://registry.invalid/v2/team/app/blobs/${digest} Basic ${credentials}`]);
  });

  test('TLS registries are reached through a tunnel of HTTPS_PROXY', async () => {
    const registry = await startRegistry({ tls: true });
    const proxy = await startProxy(registry);
    const client = startClient({ env: { HTTPS_PROXY: proxy.url }, insecureHosts: ['registry.invalid'] });
    const digest = registry.addBlob(blob);
    const { bytes } = await client.fetchRange({ host: 'registry.invalid', repository: 'team/app' }, digest, blob.length, 7, 70);
    expect(Buffer.from(bytes).equals(blob.subarray(7, 77))).toBe(true);
    expect(proxy.seen).toEqual(['CONNECT registry.invalid:443']);
  });

  test('NO_PROXY goes straight; a proxy that is down is Unavailable', async () => {
    const registry = await startRegistry();
    const digest = registry.addBlob(blob);
    const env = { HTTP_PROXY: 'http://127.0.0.1:1', NO_PROXY: 'nobody.invalid' };
    const client = startClient({ env, plainHttpHosts: ['registry.invalid'] });
    const error = await failureOf(client.fetchRange({ host: 'registry.invalid', repository: 'team/app' }, digest, blob.length, 0, 10));
    expect(error.code).toBe('Unavailable');
    await client.fetchRange(repositoryOf(registry), digest, blob.length, 0, 10);
    expect(registry.log.length).toBe(1);
  });
});
