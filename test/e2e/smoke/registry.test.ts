/** The harness itself: that docker-registry's access log tells what was fetched, and that the registry can go away, return and ask for a name. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { DockerRegistry, parseAccessLog } from '../../support/docker-registry.ts';
import { buildImage, layerOfEntries, pushImage } from '../../support/oci-image.ts';
import { waitFor } from '../../support/wait.ts';

const get = (url: string, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, { headers, signal: AbortSignal.timeout(30_000) });

test('the access log counts the body bytes of whole and partial reads of each blob', async () => {
  await using registry = await DockerRegistry.start();
  const layer = await layerOfEntries([{ name: 'big', content: Buffer.alloc(300_000, 7) }]);
  const image = await pushImage(registry, 'team/app', 'v1', buildImage([layer]));
  await registry.forget();
  const url = `${registry.url}/v2/team/app/blobs/${layer.digest}`;
  expect((await (await get(url)).arrayBuffer()).byteLength).toBe(layer.sizeBytes);
  const part = await get(url, { range: 'bytes=65536-131071' });
  expect(part.status).toBe(206);
  expect((await part.arrayBuffer()).byteLength).toBe(65_536);
  await get(`${registry.url}/v2/team/app/manifests/v1`, { accept: image.manifest.mediaType });
  const requests = await registry.requests();
  const blob = { method: 'GET', kind: 'blob', repository: 'team/app', digest: layer.digest };
  expect(requests).toMatchObject([
    { ...blob, status: 200, bytesWritten: layer.sizeBytes },
    { ...blob, status: 206, bytesWritten: 65_536 },
    { kind: 'manifest', status: 200, bytesWritten: image.manifest.bytes.length },
  ]);
  expect(await registry.blobBytesSent()).toBe(layer.sizeBytes + 65_536);
  expect(await registry.blobBytesSent(image.config.digest)).toBe(0);
});

test('a stopped registry refuses connections, and has its content again when it returns on the same port', async () => {
  await using registry = await DockerRegistry.start();
  const image = await pushImage(registry, 'app', 'v1', buildImage([await layerOfEntries([{ name: 'a', content: 'a' }])]));
  const url = `${registry.url}/v2/app/manifests/${image.manifest.digest}`;
  await registry.stop();
  await expect(get(url)).rejects.toThrow();
  await registry.startAgain();
  expect((await get(url, { accept: image.manifest.mediaType })).status).toBe(200);
});

test('with a password the registry refuses strangers and takes a push with the right one', async () => {
  await using registry = await DockerRegistry.start({ htpasswd: { username: 'ann', password: 'secret' } });
  expect((await get(`${registry.url}/v2/`)).status).toBe(401);
  const image = buildImage([await layerOfEntries([{ name: 'a', content: 'a' }])]);
  await expect(pushImage({ ...registry, url: registry.url, authorization: undefined }, 'app', 'v1', image)).rejects.toThrow(/401/);
  await pushImage(registry, 'app', 'v1', image);
});

test('a push is told to a webhook', async () => {
  const bodies: string[] = [];
  const server = createServer((request, response) => {
    request.on('data', (chunk: Buffer) => bodies.push(chunk.toString()));
    request.on('end', () => response.end());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    await using registry = await DockerRegistry.start({ notifications: [{ name: 'hook', url }] });
    const image = await pushImage(registry, 'app', 'v1', buildImage([await layerOfEntries([{ name: 'a', content: 'a' }])]));
    await waitFor(() => bodies.join('').includes(image.manifest.digest), { what: 'the notification of the push' });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test('lines of the log that are no answers, and a line cut short, are passed over', () => {
  const answer = JSON.stringify({
    'http.request.method': 'GET',
    'http.request.uri': '/v2/a/b/blobs/sha256:00',
    'http.response.status': 200,
    'http.response.written': 12,
    'http.response.duration': '1m2.5s',
    time: '2026-01-02T03:04:05Z',
  });
  const entries = parseAccessLog(`{"level":"info","msg":"listening"}\nplain text\n${answer}\n${answer.slice(0, 40)}`);
  expect(entries).toEqual([
    {
      timeMs: Date.parse('2026-01-02T03:04:05Z'),
      method: 'GET',
      uri: '/v2/a/b/blobs/sha256:00',
      kind: 'blob',
      repository: 'a/b',
      digest: 'sha256:00',
      status: 200,
      bytesWritten: 12,
      durationMs: 62_500,
      userAgent: '',
    },
  ]);
});
