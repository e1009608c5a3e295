/** The control plane's client while blockd is being replaced: what changes something is asked again, what only looks fails at once. */
import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { BlockdClient } from '../../../../plugin/blockd/client.ts';
import type { DeviceSpec } from '../../../../plugin/file/device-spec.ts';

const SPEC: DeviceSpec = {
  version: 1,
  id: 'device',
  image: 'test/image:1',
  layers: [{ kind: 'full', blob: { digest: `sha256:${'0'.repeat(64)}`, sizeBytes: 1, repositories: [] } }],
};

let directory: string;
let socket: string;
let client: BlockdClient;
const servers: http.Server[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'obd-client-'));
  socket = join(directory, 'blockd.sock');
  client = new BlockdClient(socket);
});
afterEach(async () => {
  await client.close();
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
  rmSync(directory, { recursive: true });
});

async function serve(answer: http.RequestListener): Promise<void> {
  const server = http.createServer(answer);
  servers.push(server);
  rmSync(socket, { force: true });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
}

const fine: http.RequestListener = (_, response) => response.end(JSON.stringify({ id: 'device' }));

test('attaching waits for a blockd that is not there yet', async () => {
  const attached = client.attach(SPEC, AbortSignal.timeout(5000));
  await serve(fine);
  expect(await attached).toMatchObject({ id: 'device' });
});

test('attaching asks the next blockd when the first one dies before its answer', async () => {
  let asked = 0;
  await serve((request) => {
    asked += 1;
    void serve(fine).then(() => request.socket.destroy());
  });
  expect(await client.attach(SPEC, AbortSignal.timeout(5000))).toMatchObject({ id: 'device' });
  expect(asked).toBe(1);
});

test('an answer that is an error is final', async () => {
  let asked = 0;
  await serve((_, response) => {
    asked += 1;
    response.writeHead(503).end(JSON.stringify({ code: 'Unavailable', op: 'open', subject: 'device', what: 'registry is away' }));
  });
  await expect(client.attach(SPEC, AbortSignal.timeout(5000))).rejects.toMatchObject({ code: 'Unavailable' });
  expect(asked).toBe(1);
});

test('attaching ends with Unavailable at its signal, and looking ends at once', async () => {
  await expect(client.stats(new AbortController().signal)).rejects.toMatchObject({ code: 'Unavailable' });
  await expect(client.attach(SPEC, AbortSignal.timeout(300))).rejects.toMatchObject({ code: 'Unavailable' });
});
