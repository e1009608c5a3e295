/** obdctl's commands for image caches, tokens, registries and the store, and its completion in real shells. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { endInput } from '../../support/child-input.ts';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { Scratch } from '../../support/scratch.ts';
import { fakeApp, memoryRegistries } from './fake-app.ts';

// Each test starts some ten processes, one after the other.
vi.setConfig({ testTimeout: 300_000 });

const program = join(import.meta.dirname, '../../../admin/obdctl.ts');
const IMAGE = 'registry.example/team/app:1';
const caches = new MemoryCaches();
const registries = memoryRegistries();
let scratch: Scratch;
let socket: string;
let server: AdminServer;

beforeAll(async () => {
  scratch = await Scratch.create('ctl');
  socket = scratch.join('admin.sock');
  const { app } = fakeApp({ caches, registries });
  server = await startAdminServer({ app, socketPath: socket });
});
afterAll(async () => {
  await server.close();
  await scratch[Symbol.asyncDispose]();
});

interface Run {
  code: number;
  stdout: string;
  stderr: string;
}

function run(command: string, args: readonly string[], input = ''): Promise<Run> {
  return new Promise((resolve) => {
    const child = execFile(command, args, { timeout: 120_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr });
    });
    endInput(child.stdin!, input);
  });
}
/** With the tables that a terminal shows. */
const obdctl = (args: readonly string[], input?: string): Promise<Run> =>
  run(process.execPath, [program, '--socket', socket, '-o', 'table', ...args], input);

describe('caches', () => {
  it('are made with their settings and a password from standard input, listed, shown, changed by name, matched and removed', async () => {
    const flags = ['--days', '7', '--lru', '--tag', 'team=a', '--credential', 'registry.example=ci', '--plain-http', 'plain.example:5000'];
    const made = await obdctl(['cache', 'create', 'web', IMAGE, 'nginx:1.27', ...flags], 'secret\n');
    expect(made).toMatchObject({ code: 0, stderr: '' });
    expect(made.stdout).toMatch(/^imc-\w{20}\nname +web\nstatus +Preparing 0 %/);
    expect(made.stdout).not.toContain('secret');
    expect(caches.list().caches[0]).toMatchObject({ retentionDays: 7, eliminationStrategy: 'LRU', tags: [{ key: 'team', value: 'a' }] });
    const [listed, shown, json, matched, usage, dry] = await Promise.all([
      obdctl(['cache', 'ls', '--tag', 'team=a']),
      obdctl(['cache', 'show', 'web']),
      obdctl(['cache', 'ls', '-o', 'json']),
      obdctl(['cache', 'match', IMAGE, '--ephemeral', '5']),
      obdctl(['usage']),
      obdctl(['cache', 'create', 'other', IMAGE, '--dry-run']),
    ]);
    expect(listed.stdout).toMatch(/^ID +NAME +STATUS[\s\S]*web +Preparing 0 % +2/);
    expect(shown.stdout).toContain(IMAGE);
    expect(JSON.parse(json.stdout)).toMatchObject({ imageCaches: [{ imageCacheName: 'web' }] });
    expect(matched.stdout).toMatch(/^matched imc-\w+: nearest to the images of the pod \(caches of up to 35 GiB fit\)\nRANK/);
    expect(usage.stdout).toMatch(/manual caches +1 +500/);
    expect(dry).toMatchObject({ code: 0, stdout: 'would be accepted\n' });
    const updated = await obdctl(['cache', 'update', 'web', '--days', 'never', '--if-version', '1', '-o', 'json']);
    expect(JSON.parse(updated.stdout)).toMatchObject({ retentionDays: null, version: 2 });
    const [stale, gone, wrong] = await Promise.all([
      obdctl(['cache', 'update', 'web', '--days', '3', '--if-version', '1']),
      obdctl(['cache', 'show', 'nothing']),
      obdctl(['cache', 'create', 'x', IMAGE, '--size', 'big']),
    ]);
    expect(stale).toMatchObject({ code: 1, stderr: expect.stringContaining('its version is 2, and 1 was expected') });
    const { imageCacheId } = await caches.create({ imageCacheName: 'imc-like', images: [IMAGE] });
    const byEither = await Promise.all([obdctl(['cache', 'show', 'imc-like']), obdctl(['cache', 'show', imageCacheId])]);
    expect(byEither.map(({ stdout }) => stdout.startsWith(imageCacheId))).toEqual([true, true]);
    await caches.delete(imageCacheId);
    expect(gone).toMatchObject({ code: 1, stderr: expect.stringContaining('there is none of this name or id') });
    expect(wrong.code).toBe(2);
    expect((await obdctl(['cache', 'rm', 'web'])).code).toBe(0);
    expect(caches.list().totalCount).toBe(0);
  });

  it('are followed: each event once, until the cache is Ready or has failed', async () => {
    const { imageCacheId: id } = await caches.create({ imageCacheName: 'slow', images: [IMAGE] });
    const child = spawn(process.execPath, [program, '--socket', socket, '-o', 'table', 'cache', 'events', 'slow', '-f'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    try {
      let text = '';
      child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      await expect.poll(() => text, { timeout: 120_000 }).toMatch(/Accepted: 1 images are to be cached\n$/);
      caches.advance(id, 'Creating', 40);
      caches.advance(id, 'Ready', 100);
      await expect
        .poll(() => text, { timeout: 120_000 })
        .toMatch(/Creating 40 % {2}Creating: [^\n]*\n[^\n]*Ready {2}Ready: the cache is Ready, 100 %\n$/);
      expect(text.match(/Accepted/g)).toHaveLength(1);
    } finally {
      child.kill('SIGKILL');
    }
    const failing = obdctl(['cache', 'create', 'bad', IMAGE, '--wait']);
    await expect.poll(() => caches.list({ imageCacheName: 'bad' }).totalCount, { timeout: 120_000 }).toBe(1);
    caches.advance(caches.list({ imageCacheName: 'bad' }).caches[0]!.imageCacheId, 'Failed', 10, { failure: 'too big' });
    expect((await failing).code).toBe(1);
  });
});

/** obdctl that goes on until somebody ends it, and what it has said so far. */
function following(...args: string[]) {
  const child = spawn(process.execPath, [program, '-o', 'table', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const said = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) child[name].setEncoding('utf8').on('data', (chunk: string) => (said[name] += chunk));
  return { said, child, ended: once(child, 'close'), [Symbol.dispose]: () => void child.kill('SIGKILL') };
}

describe('waiting', () => {
  it('is left by Ctrl-C, which says what goes on', async () => {
    using waiting = following('--socket', socket, 'cache', 'create', 'long', IMAGE, '--wait');
    await expect.poll(() => waiting.said.stdout, { timeout: 120_000 }).toContain('Accepted');
    waiting.child.kill('SIGINT');
    expect(await waiting.ended).toEqual([130, null]);
    expect(waiting.said.stderr).toBe('\nobdctl: long goes on being made; `obdctl cache events long -f` follows it\n');
    expect(caches.list({ imageCacheName: 'long' }).totalCount).toBe(1);
    using events = following('--socket', socket, 'cache', 'events', 'long', '-f');
    await expect.poll(() => events.said.stdout, { timeout: 120_000 }).toContain('Accepted');
    events.child.kill('SIGINT');
    expect(await events.ended).toEqual([null, 'SIGINT']);
    expect(events.said.stderr).toBe('');
  });

  it('goes on over a restart of the service, tells each event once, and ends when the cache is deleted', async () => {
    const own = new MemoryCaches();
    const restarted = scratch.join('restarted.sock');
    const { app } = fakeApp({ caches: own });
    const { imageCacheId: id } = await own.create({ imageCacheName: 'web', images: [IMAGE] });
    const first = await startAdminServer({ app, socketPath: restarted });
    using events = following('--socket', restarted, 'cache', 'create', 'other', IMAGE, '--wait');
    await expect.poll(() => events.said.stdout, { timeout: 120_000 }).toContain('Accepted');
    await first.close();
    const other = own.list({ imageCacheName: 'other' }).caches[0]!.imageCacheId;
    own.advance(other, 'Creating', 50);
    await using _second = await startAdminServer({ app, socketPath: restarted });
    await expect.poll(() => events.said.stdout, { timeout: 120_000 }).toContain('Creating 50 %');
    await own.delete(other);
    expect(await events.ended).toEqual([1, null]);
    expect(events.said.stdout.match(/Accepted/g)).toHaveLength(1);
    expect(events.said.stderr).toBe('obdctl: other was deleted\n');
    expect(own.get(id).status).toBe('Preparing');
  });
});

describe('the rest', () => {
  it('tokens, registries and the store', async () => {
    const made = await obdctl(['token', 'create', 'ci', '--scope', 'read,cache', '--days', '3']);
    expect(made.stdout).toMatch(/^obd_[0-9a-f]{12}_[\w-]{43}\n$/);
    const id = made.stdout.split('_')[1]!;
    const listed = await obdctl(['token', 'ls']);
    expect(listed.stdout).toMatch(new RegExp(`${id} +ci +read,cache +\\S+ +\\S+Z`));
    expect(listed.stdout).not.toContain(made.stdout.trim().slice(20));
    const [removed, wrong, kept, blobs, evicted] = await Promise.all([
      obdctl(['token', 'rm', id]),
      obdctl(['token', 'create', 'x', '--scope', 'root']),
      obdctl(['registry', 'set', 'registry.example/team', 'ci'], 'hunter2\n'),
      obdctl(['store', 'ls']),
      obdctl(['store', 'evict', '100']),
    ]);
    expect([removed.code, wrong.code, kept.code]).toEqual([0, 2, 0]);
    expect(registries.secrets.get('registry.example/team')).toEqual({ userName: 'ci', password: 'hunter2' });
    expect(blobs.stdout).toMatch(/^BLOB +ON DISK +USE\nsha256:a+ +300 B +idle/);
    expect(evicted.stdout).toBe('1 blobs with 100 B removed; 200 B in use\n');
    const shown = await obdctl(['registry', 'ls']);
    expect(shown.stdout).toMatch(/registry\.example\/team +password/);
    expect(shown.stdout).not.toContain('hunter2');
  });

  it.each(['bash', 'zsh'])('%s completes commands, options and their words', async (shell) => {
    const script = (await obdctl(['completion', shell])).stdout;
    const file = await scratch.file(`completion.${shell}`, script);
    const complete = async (line: string): Promise<string[]> => {
      const words = `obdctl ${line}`.split(' ');
      const set = `COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length - 1}; COMPREPLY=()`;
      const setUp = shell === 'zsh' ? 'emulate sh; compdef() { :; }; ' : '';
      const { stdout, stderr } = await run(shell, ['-c', `${setUp}source ${file}; ${set}; _obdctl; printf '%s\\n' "\${COMPREPLY[@]}"`]);
      return stdout
        .trim()
        .split('\n')
        .concat(stderr === '' ? [] : [stderr]);
    };
    expect(await complete('cache ')).toEqual(['create', 'ls', 'show', 'events', 'update', 'rm', 'match', '--help']);
    expect(await complete('cache l')).toEqual(['ls']);
    expect(await complete('cache ls --status Re')).toEqual(['Ready']);
    expect(await complete('tok')).toEqual(['token']);
    expect(await complete('cache create web --fl')).toEqual(['--flash']);
    expect(await complete('-o ')).toEqual(['table', 'json']);
    expect(await complete('audit --kind re')).toEqual(['refusal']);
  });
});
