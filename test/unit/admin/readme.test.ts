/**
 * The README's curl examples: each is run by a real shell with real curl against the served API over parts in memory, and together they call every operation of
 * the OpenAPI document.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { endInput } from '../../support/child-input.ts';
import type { MemoryCaches } from '../../support/memory-caches.ts';
import { type ApiDocument, operationOf, operationsOf } from '../../support/openapi.ts';
import { readmeExamples, runExample } from '../../support/readme-examples.ts';
import { Scratch } from '../../support/scratch.ts';
import { appWithOneOfEach } from './fake-app.ts';

const examples = readmeExamples();

let scratch: Scratch;
let server: AdminServer;
let caches: MemoryCaches;
let tokenId: string;
const asked: { method: string; path: string; status: number }[] = [];
let document: ApiDocument;

beforeAll(async () => {
  scratch = await Scratch.create('readme');
  const one = await appWithOneOfEach();
  ({ caches, tokenId } = one);
  document = (await (await one.app.request('/v1/openapi.json')).json()) as ApiDocument;
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

test.each(examples)('%s', { timeout: 130_000 }, async (example) => {
  const ID = caches.list().caches[0]?.imageCacheId ?? 'imc-none';
  const { status, type, body } = await runExample(example, { S: scratch.join('admin.sock'), ID, TOKEN_ID: tokenId });
  expect(status).toBeLessThan(300);
  if (type === 'text/event-stream') expect(body).toMatch(/^event: \w+\ndata: \{/);
  expect(body).not.toContain('"secret"');
});

test('together they call every documented operation', () => {
  const called = new Set(asked.filter(({ status }) => status < 300).map(({ method, path }) => operationOf(document, method, path)));
  const missing = operationsOf(document).filter(({ operation }) => ![...called].some((one) => one?.operation === operation));
  expect(missing.map(({ method, path }) => `${method} ${path}`)).toEqual([]);
  expect(examples.length).toBeGreaterThan(50);
});

/** The commands of the README's block about obdctl, one by one, without their remarks. */
function readmeCommands(): string[][] {
  const readme = readFileSync(join(import.meta.dirname, '../../../README.md'), 'utf8');
  const block = /## Looking inside: `obdctl`[\s\S]*?```sh\n([\s\S]*?)```/.exec(readme)![1]!;
  const commands = block.split(/\n|; /).map((line) => line.replace(/ +#.*$/, '').trim());
  return commands.filter((command) => command.startsWith('obdctl ')).map((command) => command.split(' ').slice(1));
}

test('obdctl understands every command of the README, in its order', async () => {
  const program = join(import.meta.dirname, '../../../admin/obdctl.ts');
  const ready = setInterval(() => {
    for (const { imageCacheId, status } of caches.list().caches) if (status !== 'Ready') caches.advance(imageCacheId, 'Ready', 100);
  }, 50);
  const refused: string[] = [];
  try {
    for (const { imageCacheId } of caches.list().caches) await caches.delete(imageCacheId);
    for (const words of readmeCommands()) {
      const args = words.map((word) => (word === 'REF' ? 'registry.example/team/app:1' : word));
      const child = spawn(process.execPath, [program, '--socket', scratch.join('admin.sock'), ...args], { timeout: 120_000 });
      let said = '';
      endInput(child.stdin, 'secret\n');
      child.stdout.on('data', () => {
        // Followed for ever.
        if (args.includes('-f')) child.kill('SIGINT');
      });
      child.stderr.setEncoding('utf8').on('data', (chunk: string) => (said += chunk));
      const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
      if (code !== 0 && signal !== 'SIGINT') refused.push(`obdctl ${words.join(' ')}: ${code ?? signal} ${said}`);
    }
  } finally {
    clearInterval(ready);
  }
  expect(refused).toEqual([]);
  expect(readmeCommands().length).toBeGreaterThan(20);
  // Some thirty processes, one after the other.
}, 300_000);
