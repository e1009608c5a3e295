/**
 * The admin API of the running product, without containerd: what real parts answer fits the OpenAPI document, tokens work on TCP and outlive
 * a kill, changes and refusals are audited, and no credential lies anywhere in plain text.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../support/net.ts';
import { type ApiDocument, misfit, operationsOf } from '../../support/openapi.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { Sidecar } from '../../support/sidecar.ts';
import { waitFor } from '../../support/wait.ts';
import { ask, askTcp, BAD_ARGUMENTS, badActions, badRest } from './bad-input.ts';

const OBDCTL = resolve(import.meta.dirname, '../../../admin/obdctl.ts');
const JSON_HEADER = { 'content-type': 'application/json' };
const SECRETS = ['s3cret-of-a-registry', 's3cret-of-a-cache', 's3cret-of-an-action'] as const;

let sidecar: Sidecar;
let scratch: Scratch;
let port: number;

beforeAll(async () => {
  scratch = await Scratch.create('api');
  port = await freePort();
  sidecar = await Sidecar.start({ config: { admin: { tcp_listen: `127.0.0.1:${port}` } } });
});
afterAll(async () => {
  await sidecar?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

const obdctl = async (...args: string[]): Promise<string> =>
  (await run(process.execPath, [OBDCTL, '--socket', sidecar.adminSocket, ...args])).stdout.trim();

async function tcp(token: string | undefined, method: string, path: string, body?: unknown): Promise<{ status: number; text: string }> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    method,
    headers: { 'content-type': 'application/json', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(30_000),
  });
  return { status: response.status, text: await response.text() };
}

const NEW = {
  imageCacheName: 'away',
  images: ['127.0.0.1:1/nothing/here:1'],
  imageRegistryCredentials: [{ server: '127.0.0.1:1', userName: 'u', password: SECRETS[1] }],
};

test('a token made by obdctl works on TCP for what it may, at once and after kill -9, until it is removed', async () => {
  const [cache, read] = [
    await obdctl('token', 'create', 'ci', '--scope', 'cache'),
    await obdctl('token', 'create', 'eye', '--scope', 'read'),
  ];
  expect((await tcp(undefined, 'GET', '/v1/usage')).status).toBe(401);
  expect((await tcp(read, 'POST', '/v1/image-caches', NEW)).status).toBe(403);
  // 409: this is the second try of a test that failed later on.
  expect([201, 409]).toContain((await tcp(cache, 'POST', '/v1/image-caches', NEW)).status);
  const { pid } = { pid: await sidecar.kill('sidecar') };
  await sidecar.waitProcess('sidecar', pid, 60_000);
  const usage = await waitFor(async () => tcp(cache, 'GET', '/v1/usage'), { what: 'the API to answer again', timeoutMs: 60_000 });
  expect(JSON.parse(usage.text)).toMatchObject({ usedImageCacheCount: 1 });
  await obdctl('token', 'rm', cache.split('_')[1]!);
  expect((await tcp(cache, 'GET', '/v1/usage')).status).toBe(401);
  expect((await tcp(read, 'GET', '/v1/usage')).status).toBe(200);
});

test('what the real parts answer to every look fits the document', async () => {
  const document = JSON.parse(await sidecar.admin('GET', '/v1/openapi.json')) as ApiDocument;
  const { imageCaches } = JSON.parse(await sidecar.admin('GET', '/v1/image-caches')) as { imageCaches: { imageCacheId: string }[] };
  const wrong: string[] = [];
  let checked = 0;
  for (const { method, path, operation } of operationsOf(document)) {
    const schema = operation.responses['200']?.content?.['application/json']?.schema;
    const isOfCache = path.startsWith('/v1/image-caches/');
    if (method !== 'GET' || schema === undefined || path === '/' || (path.includes('{') && !isOfCache)) continue;
    // Without containerd the product is not ready, and says so with 503.
    if (/\/ready$|healthz$/.test(path)) continue;
    const answer = JSON.parse(await sidecar.admin('GET', path.replace('{id}', imageCaches[0]!.imageCacheId))) as unknown;
    const problem = misfit(document, schema, answer);
    if (problem !== undefined) wrong.push(`${path}: ${problem}`);
    checked += 1;
  }
  expect(wrong).toEqual([]);
  expect(checked).toBeGreaterThan(18);
  const ready = await run('curl', ['-sS', '-w', ' %{http_code}', '--unix-socket', sidecar.adminSocket, 'http://localhost/v1/ready']);
  expect(ready.stdout).toMatch(/^\{"status":"degraded","degraded":\[".*containerd.*\} 503$/s);
  expect(await sidecar.admin('GET', '/v1/metrics')).toMatch(/overlaybd_image_caches\{owner="user",kind="used"\} 1/);
});

test('the vendor’s actions and REST speak of the same caches; a body that is too long is refused by a real connection', async () => {
  const action = async (...params: string[]) => {
    const { stdout } = await run('curl', [
      '-sS',
      '--unix-socket',
      sidecar.adminSocket,
      'http://localhost/',
      ...params.flatMap((one) => ['-d', one]),
    ]);
    return JSON.parse(stdout) as Record<string, unknown>;
  };
  expect(await action('Action=DescribeImageCaches', 'ImageCacheName=away')).toMatchObject({
    TotalCount: 1,
    ImageCaches: [{ Images: NEW.images }],
  });
  const credential = ['Server=127.0.0.1:1', 'UserName=u', `Password=${SECRETS[2]}`].map((one) => `ImageRegistryCredential.1.${one}`);
  const made = await action('Action=CreateImageCache', 'ImageCacheName=rpc', 'Image.1=127.0.0.1:1/a:1', ...credential);
  expect(made.ImageCacheId ?? made.Code).toMatch(/^imc-[a-z0-9]{20}$|NameDuplicated$/);
  expect(await action('Action=CreateImageCache', 'ImageCacheName=rpc', 'Image.1=a')).toMatchObject({ Code: 'ImageCache.NameDuplicated' });
  expect(await action('Action=CreateImageCache', 'ImageCacheName=dry', 'Image.1=a', 'DryRun=true')).toMatchObject({
    Code: 'DryRunOperation',
  });
  const body = scratch.join('long.json');
  writeFileSync(body, JSON.stringify({ ...NEW, pad: 'x'.repeat(10 * 1024 * 1024) }));
  const args = [
    '-sS',
    '-o',
    '/dev/null',
    '-w',
    '%{http_code}',
    '--unix-socket',
    sidecar.adminSocket,
    '-H',
    'content-type: application/json',
  ];
  expect((await run('curl', [...args, '--data-binary', `@${body}`, 'http://localhost/v1/image-caches'])).stdout).toBe('413');
  expect(JSON.parse(await sidecar.admin('GET', '/v1/usage'))).toMatchObject({ usedImageCacheCount: 2 });
});

test('what is wrong is refused through the socket with its status, its code and the field, however it is asked, and nothing changes', async () => {
  const request = JSON.stringify({ imageCacheName: 'taken', images: ['127.0.0.1:1/nothing/here:2'] });
  const put = await ask(sidecar.adminSocket, { method: 'POST', path: '/v1/image-caches', body: request, headers: JSON_HEADER });
  // 409: this is the second try of a test that failed later on.
  expect([201, 409]).toContain(put.status);
  type Shown = { imageCacheId: string; imageCacheName: string; retentionDays: number | null };
  const list = async () => (JSON.parse(await sidecar.admin('GET', '/v1/image-caches')) as { imageCaches: Shown[] }).imageCaches;
  const settings = async () => (await list()).map(({ imageCacheName, retentionDays }) => [imageCacheName, retentionDays]);
  const id = (await list()).find(({ imageCacheName }) => imageCacheName === 'taken')!.imageCacheId;
  const before = await settings();
  const wrong: string[] = [];
  for (const { what, question, status, says = '' } of badRest(id)) {
    const answer = await ask(sidecar.adminSocket, { ...question, headers: { 'x-request-id': 'forged', ...question.headers } });
    const body = JSON.parse(answer.text) as { code: string; message: string; details: { kind: string }; requestId: string };
    const isShaped =
      body.requestId === answer.headers['x-request-id'] && body.requestId !== 'forged' && typeof body.details.kind === 'string';
    if (answer.status !== status || !isShaped || !body.message.includes(says))
      wrong.push(`REST, ${what}: ${answer.status} ${answer.text.slice(0, 300)}`);
    if (answer.text.includes('hunter2')) wrong.push(`REST, ${what}: the password comes back`);
  }
  for (const { what, params, status, code } of badActions(id)) {
    const form = { 'content-type': 'application/x-www-form-urlencoded' };
    const answer = await ask(sidecar.adminSocket, { method: 'POST', path: '/', body: String(new URLSearchParams(params)), headers: form });
    const body = JSON.parse(answer.text) as { Code: string; RequestId: string };
    if (answer.status !== status || body.Code !== code || body.RequestId !== answer.headers['x-request-id'])
      wrong.push(`action, ${what}: ${answer.status} ${answer.text.slice(0, 300)}`);
  }
  const said = await Promise.all(
    BAD_ARGUMENTS.map(async ([args, code, says]) => {
      const { code: exit, stderr } = await run(process.execPath, [OBDCTL, '--socket', sidecar.adminSocket, ...args], {
        okCodes: [0, 1, 2, 3, 4],
      });
      return exit === code && says.test(stderr) && /^(?:obdctl|error): /.test(stderr)
        ? []
        : [`obdctl ${args.join(' ').slice(0, 80)}: ${exit} ${stderr}`];
    }),
  );
  expect([...wrong, ...said.flat()]).toEqual([]);
  expect(await settings()).toEqual(before);

  await sidecar.admin('DELETE', `/v1/image-caches/${id}`);
});

test('on TCP neither a page of another site nor a rebound name gets anything: without a token 401, whatever Host and Origin say', async () => {
  for (const headers of [
    { host: 'evil.example' },
    { origin: 'http://evil.example' },
    { origin: `http://127.0.0.1:${port}`, cookie: 'token=x' },
  ]) {
    for (const [method, path] of [
      ['GET', '/v1/status'],
      ['GET', '/?Action=ListUsage'],
      ['POST', '/'],
      ['OPTIONS', '/v1/status'],
    ] as const) {
      const answer = await askTcp(port, { method, path, headers });
      expect([method, path, answer.status]).toEqual([method, path, 401]);
      expect(answer.headers['access-control-allow-origin']).toBeUndefined();
    }
  }
  const page = await askTcp(port, { path: '/', headers: { host: 'evil.example' } });
  expect(page.status).toBe(200);
  expect(page.text).not.toContain('imc-');
  expect(page.headers['content-security-policy']).toContain("frame-ancestors 'none'");
});

test('changes and refusals are in the audit log, in the journal and among the events', async () => {
  const { events } = JSON.parse(await sidecar.admin('GET', '/v1/events')) as {
    events: { kind: string; subject: string; message: string }[];
  };
  const audited = events.filter(({ kind }) => kind.startsWith('api-')).map(({ kind, subject, message }) => `${kind} ${subject} ${message}`);
  expect(audited).toContainEqual(expect.stringMatching(/^api-change \/v1\/tokens POST by socket: 201 \(request /));
  expect(audited).toContainEqual(expect.stringMatching(/^api-change \/v1\/image-caches POST by token [0-9a-f]{12} \(ci\): 201 /));
  expect(audited).toContainEqual(expect.stringMatching(/^api-change \/ CreateImageCache by socket: 200 /));
  expect(audited).toContainEqual(expect.stringMatching(/^api-refused \/v1\/image-caches POST by token [0-9a-f]{12} \(eye\): 403 /));
  expect(audited).toContainEqual(expect.stringMatching(/^api-refused \/v1\/usage GET by nobody: 401 /));
  expect(
    readFileSync(sidecar.logPath, 'utf8')
      .split('\n')
      .filter((line) => line.includes('"audit":true')).length,
  ).toBeGreaterThan(5);
});

test('credentials are in no answer, log, event or file in plain text', async () => {
  await sidecar.admin('PUT', '/v1/registries/registry.example%2Fteam', { userName: 'ci', password: SECRETS[0] });
  expect(JSON.parse(await sidecar.admin('GET', '/v1/registries'))).toMatchObject({
    registries: [{ registry: 'registry.example/team', kind: 'password' }],
  });
  const answers = [];
  for (const path of ['/v1/registries', '/v1/image-caches', '/v1/overview', '/v1/events', '/v1/status', '/v1/metrics']) {
    answers.push(await sidecar.admin('GET', path));
  }
  const base64 = SECRETS.map((secret) => Buffer.from(`u:${secret}`).toString('base64').slice(0, 20));
  const patterns = [...SECRETS, ...base64];
  expect(answers.filter((answer) => patterns.some((secret) => answer.includes(secret)))).toEqual([]);
  const expressions = patterns.flatMap((secret) => ['-e', secret]);
  const places = [sidecar.root, sidecar.logPath, join(sidecar.run)];
  // 1: nothing found.
  const found = await run('grep', ['-rlaF', '--devices=skip', ...expressions, ...places], { okCodes: [0, 1] });
  expect(found.stdout).toBe('');
  expect(execFileSync('stat', ['-c', '%a', join(sidecar.root, 'sidecar.db')], { encoding: 'utf8' }).trim()).toBe('600');
  await sidecar.admin('DELETE', '/v1/registries/registry.example%2Fteam');
  expect(JSON.parse(await sidecar.admin('GET', '/v1/registries'))).toEqual({ registries: [] });
});
