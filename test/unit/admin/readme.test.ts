/**
 * The README's curl examples: each is run by a real shell with real curl against the served API, and together they call every operation of
 * the OpenAPI document.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import type { MemoryCaches } from '../../support/memory-caches.ts';
import { Scratch } from '../../support/scratch.ts';
import { appWithOneOfEach } from './fake-app.ts';

const readme = readFileSync(join(import.meta.dirname, '../../../README.md'), 'utf8');
const section = /<!-- curl examples: begin -->([\s\S]*?)<!-- curl examples: end -->/.exec(readme)![1]!;
const examples = section.split('\n').filter((line) => line.startsWith('curl '));

let scratch: Scratch;
let server: AdminServer;
let caches: MemoryCaches;
let tokenId: string;
const asked: { method: string; path: string; status: number }[] = [];
let documented: string[];

beforeAll(async () => {
  scratch = await Scratch.create('readme');
  const one = await appWithOneOfEach();
  ({ caches, tokenId } = one);
  const { paths } = (await (await one.app.request('/v1/openapi.json')).json()) as { paths: Record<string, object> };
  documented = Object.entries(paths).flatMap(([path, item]) => Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`));
  const { app } = one;
  const fetch = app.fetch.bind(app);
  app.fetch = async (request, ...rest) => {
    const response = await fetch(request, ...rest);
    asked.push({ method: request.method, path: new URL(request.url).pathname, status: response.status });
    return response;
  };
  server = await startAdminServer({ app, socketPath: scratch.join('admin.sock') });
});
afterAll(async () => {
  await server.close();
  await scratch[Symbol.asyncDispose]();
});

/** A stream of events has no end; its first seconds are enough, and 28 is what curl then says. */
function run(example: string): Promise<{ code: number; stdout: string; stderr: string }> {
  const limit = example.includes(' -N ') ? 2 : 30;
  const script = `curl() { command curl --silent --show-error --fail-with-body --max-time ${limit} "$@"; }\n${example}`;
  const id = caches.list().caches[0]?.imageCacheId ?? 'imc-none';
  const env = { ...process.env, S: scratch.join('admin.sock'), J: 'content-type: application/json', ID: id, TOKEN_ID: tokenId };
  return new Promise((resolve) => {
    execFile('bash', ['-c', script], { env, timeout: 50_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test.each(examples)('%s', async (example) => {
  const { code, stdout, stderr } = await run(example);
  const isStream = example.includes(' -N ');
  expect([stderr.replace(/^curl: \(28\).*\n/, ''), isStream ? 0 : code], stdout).toEqual(['', 0]);
  if (isStream) expect(stdout).toMatch(/^event: \w+\ndata: \{/);
  expect(stdout).not.toContain('"secret"');
});

test('together they call every documented operation', () => {
  const isOf = (operation: string) => {
    const [method, path] = operation.split(' ') as [string, string];
    const pattern = new RegExp(`^${path.replace(/[.*+?^$()|[\]\\]/g, '\\$&').replace(/\{\w+\}/g, '[^/]+')}$`);
    return asked.some((one) => one.method === method && pattern.test(one.path) && one.status < 300);
  };
  expect(documented.filter((operation) => !isOf(operation))).toEqual([]);
  expect(examples.length).toBeGreaterThan(50);
});
