/** The API server's client: every way of a kubeconfig to say who we are, renewal of its files, and errors that quote nothing secret. */
import fs from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { KubeClient } from '../../../../../plugin/base/kubernetes/kube-client.ts';
import { readKubeconfig, stampOf } from '../../../../../plugin/base/kubernetes/kubeconfig.ts';
import { makeCertificates } from '../../../../support/registry-tls.ts';
import { Scratch } from '../../../../support/scratch.ts';
import { waitFor } from '../../../../support/wait.ts';

const SECRET = 'not-for-any-eye';
const SIGNAL = AbortSignal.timeout(600_000);

let stack: AsyncDisposableStack;
let scratch: Scratch;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  scratch = stack.use(await Scratch.create('kube'));
});
afterEach(async () => {
  await stack.disposeAsync();
});

interface Parts {
  server: string;
  cluster?: Record<string, unknown>;
  user?: Record<string, unknown>;
}

function kubeconfig({ server, cluster = {}, user = {} }: Parts): string {
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'here',
    contexts: [
      { name: 'other', context: { cluster: 'x', user: 'y' } },
      { name: 'here', context: { cluster: 'c', user: 'u' } },
    ],
    clusters: [{ name: 'c', cluster: { server, ...cluster } }],
    users: [{ name: 'u', user }],
  });
}

async function listen(server: http.Server | https.Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  stack.defer(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

async function clientOf(file: string): Promise<KubeClient> {
  const client = new KubeClient(file);
  stack.defer(() => client.close());
  return client;
}

test('a client certificate beside the kubeconfig, and the authority inside it, open a TLS server', async () => {
  const certificates = makeCertificates();
  const server = https.createServer(
    { ...certificates.server, ca: certificates.ca, requestCert: true, rejectUnauthorized: true },
    (request, response) => response.end(JSON.stringify({ path: request.url })),
  );
  const port = await listen(server);
  await scratch.file('client.crt', certificates.client.cert);
  await scratch.file('client.key', certificates.client.key);
  const file = await scratch.file(
    'config.yaml',
    kubeconfig({
      server: `https://localhost:${port}/`,
      cluster: { 'certificate-authority-data': Buffer.from(certificates.ca).toString('base64') },
      user: { 'client-certificate': 'client.crt', 'client-key': 'client.key' },
    }),
  );
  expect(await (await clientOf(file)).get('/api/v1/x', SIGNAL)).toEqual({ path: '/api/v1/x' });
  const stranger = await scratch.file('stranger.yaml', kubeconfig({ server: `https://localhost:${port}` }));
  await expect((await clientOf(stranger)).get('/', SIGNAL)).rejects.toThrow(/does not answer/);
});

test('a token file that is renewed counts soon after, and YAML is read as well as JSON', async () => {
  const seen: (string | undefined)[] = [];
  const port = await listen(
    http.createServer((request, response) => {
      seen.push(request.headers.authorization);
      response.end('{}');
    }),
  );
  await scratch.file('token', 'first\n');
  const yaml = `apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n- {name: a, context: {cluster: c, user: u}}\nclusters:\n- name: c\n  cluster: {server: "http://127.0.0.1:${port}"}\nusers:\n- name: u\n  user: {tokenFile: token}\n`;
  const client = await clientOf(await scratch.file('config', yaml));
  await client.get('/', SIGNAL);
  await fs.writeFile(scratch.join('token'), 'second');
  await waitFor(
    async () => {
      await client.get('/', SIGNAL);
      return seen.at(-1) === 'Bearer second';
    },
    { what: 'the new token', timeoutMs: 30_000, everyMs: 100 },
  );
  expect(seen[0]).toBe('Bearer first');
});

test('a file that changes while it is read is read again', async () => {
  const text = kubeconfig({ server: 'http://127.0.0.1:1', user: { tokenFile: 'token' } });
  await scratch.file('token', 'first');
  const access = await readKubeconfig(await scratch.file('config', text));
  expect(access.stamp).toBe(await stampOf(access.files));
  await scratch.file('token', 'second');
  expect(access.stamp).not.toBe(await stampOf(access.files));
});

test('nobody waits for calls that are under way with a former token', async () => {
  const isRenewed = Promise.withResolvers<void>();
  const port = await listen(
    http.createServer((request, response) => {
      if (request.url === '/slow') void isRenewed.promise.then(() => response.end('{"slow":true}'));
      else response.end(JSON.stringify(request.headers.authorization));
    }),
  );
  await scratch.file('token', 'first');
  const text = kubeconfig({ server: `http://127.0.0.1:${port}`, user: { tokenFile: 'token' } });
  const client = await clientOf(await scratch.file('config', text));
  const slow = client.get('/slow', SIGNAL);
  await client.get('/', SIGNAL);
  await scratch.file('token', 'second');
  await waitFor(async () => (await client.get('/', SIGNAL)) === 'Bearer second', {
    what: 'the new token',
    timeoutMs: 60_000,
    everyMs: 100,
  });
  isRenewed.resolve();
  expect(await slow).toEqual({ slow: true });
});

test('answers become errors by their status; an abort is the caller’s own', async () => {
  const port = await listen(
    http.createServer((request, response) => {
      if (request.url === '/hang') return;
      response.statusCode = Number(request.url!.slice(1));
      response.end(SECRET);
    }),
  );
  const client = await clientOf(await scratch.file('config', kubeconfig({ server: `http://127.0.0.1:${port}` })));
  for (const [status, code] of [
    [404, 'NotFound'],
    [401, 'Unauthenticated'],
    [403, 'PermissionDenied'],
    [503, 'Unavailable'],
    [429, 'Unavailable'],
  ] as const) {
    await expect(client.get(`/${status}`, SIGNAL)).rejects.toMatchObject({ code, message: expect.not.stringContaining(SECRET) });
  }
  const abort = new AbortController();
  const hanging = client.get('/hang', abort.signal);
  abort.abort(new Error('enough'));
  await expect(hanging).rejects.toThrow('enough');
});

describe('a kubeconfig', () => {
  const server = 'https://127.0.0.1:6443';
  test.each([
    ['that is no YAML', `a: [${SECRET}`],
    ['without a current context', JSON.stringify({ contexts: [], clusters: [] })],
    ['whose context is missing', kubeconfig({ server }).replace('"current-context":"here"', '"current-context":"nowhere"')],
    ['whose cluster is missing', kubeconfig({ server }).replace('"name":"c"', '"name":"d"')],
    ['with a server that is no URL', kubeconfig({ server: SECRET })],
    ['with a program for credentials', kubeconfig({ server, user: { exec: { command: SECRET } } })],
    ['with a proxy', kubeconfig({ server, cluster: { 'proxy-url': SECRET } })],
    ['that names a missing file', kubeconfig({ server, user: { tokenFile: 'absent' } })],
  ])('%s is refused by name, and not quoted', async (_say, text) => {
    const file = await scratch.file('config', text);
    await expect(readKubeconfig(file)).rejects.toMatchObject({
      code: 'FailedPrecondition',
      message: expect.stringMatching(/^read kubeconfig (?!.*not-for-any-eye)/),
    });
  });

  test('may have keys without values, as YAML that people write has', async () => {
    const cluster = { 'certificate-authority': null, 'insecure-skip-tls-verify': null, 'proxy-url': null };
    const user = { exec: null, 'auth-provider': null, tokenFile: null, username: null, token: 't' };
    const nulls = await scratch.file('nulls', kubeconfig({ server, cluster, user }));
    expect(await readKubeconfig(nulls)).toMatchObject({
      server,
      skipsVerify: false,
      authorization: 'Bearer t',
    });
    const empty = await scratch.file('empty', kubeconfig({ server, user: { token: '', username: '' } }));
    expect(await readKubeconfig(empty)).toMatchObject({ authorization: undefined });
  });

  test('without a user is anonymous; name and password are sent as Basic', async () => {
    expect(await readKubeconfig(await scratch.file('a', kubeconfig({ server })))).toMatchObject({
      server,
      authorization: undefined,
      ca: undefined,
    });
    const basic = await readKubeconfig(await scratch.file('b', kubeconfig({ server, user: { username: 'u', password: 'p' } })));
    expect(basic.authorization).toBe('Basic dTpw');
    await expect(readKubeconfig(scratch.join('absent'))).rejects.toThrow(/cannot be read \(ENOENT\)/);
  });
});
