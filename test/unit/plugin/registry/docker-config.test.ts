/** docker's config.json: which entry counts, helpers, and files that change, are broken, or break while they are in use. */
import { chmodSync, existsSync, mkdtempSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pino from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { describeError } from '../../../../plugin/base/errors.ts';
import { runCredentialHelper } from '../../../../plugin/registry/credential-helper.ts';
import { dockerConfigSource, parseDockerConfig } from '../../../../plugin/registry/docker-config.ts';
import { failureOf } from '../../../support/registry-client.ts';

const auth = (user: string) => ({ auth: Buffer.from(`${user}:secret:with:colons`).toString('base64') });
const user = (name: string) => ({ username: name, password: 'secret:with:colons' });

let dir: string;
let file: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'obd-docker-config-'));
  file = join(dir, 'config.json');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const write = (content: unknown) => writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
/** A helper program in `dir`, which is put first on its PATH. */
const helper = (name: string, script: string) => {
  const path = join(dir, `docker-credential-${name}`);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
};
const env = () => ({ PATH: `${dir}:${process.env.PATH}` });

describe('entries', () => {
  const config = {
    auths: {
      'registry.example': auth('host'),
      'registry.example/team': auth('team'),
      'registry.example/team/app': auth('app'),
      'https://index.docker.io/v1/': auth('hub'),
      'registry.other:5000': { username: 'plain', password: 'p' },
      'tokens.example': { identitytoken: 'refresh' },
      'bearer.example': { registrytoken: 'bearer' },
      'empty.example': {},
      'broken.example': { auth: '!!!' },
    },
  };
  test.each([
    ['registry.example', 'else/where', user('host')],
    ['registry.example', 'team/other', user('team')],
    ['registry.example', 'team/app', user('app')],
    ['registry.example', 'team/app/deeper', user('app')],
    ['registry.example', 'team/apple', user('team')],
    ['registry.example', 'teams', user('host')],
    ['docker.io', 'library/ubuntu', user('hub')],
    ['registry.other:5000', 'x', { username: 'plain', password: 'p' }],
    ['registry.other', 'x', undefined],
    ['tokens.example', 'x', { identityToken: 'refresh' }],
    ['bearer.example', 'x', { registryToken: 'bearer' }],
    ['empty.example', 'x', undefined],
    ['broken.example', 'x', undefined],
    ['unknown.example', 'x', undefined],
  ])('%s/%s: the longest matching key counts', async (host, repository, expected) => {
    write(config);
    expect(await dockerConfigSource(file)(host, repository)).toEqual(expected);
  });

  test('a missing file means anonymous; one that appears, changes or goes is noticed at the next question', async () => {
    const source = dockerConfigSource(file);
    expect(await source('registry.example', 'x')).toBeUndefined();
    write({ auths: { 'registry.example': auth('one') } });
    expect(await source('registry.example', 'x')).toEqual(user('one'));
    write({ auths: { 'registry.example': auth('another') } });
    expect(await source('registry.example', 'x')).toEqual(user('another'));
    unlinkSync(file);
    expect(await source('registry.example', 'x')).toBeUndefined();
  });

  test.each([
    ['no JSON', '{"auths":{"h":{"auth":"c2VjcmV0'],
    ['no object', '[]'],
  ])('%s is FailedPrecondition that names the file and quotes nothing', async (_what, text) => {
    write(text);
    const error = await failureOf(dockerConfigSource(file)('h', 'x'));
    expect(error.code).toBe('FailedPrecondition');
    expect(error.message).toContain(file);
    expect(describeError(error)).not.toContain('c2VjcmV0');
  });

  test('parts of other types are left out', () => {
    expect(parseDockerConfig('{"auths":[1],"credHelpers":{"h":1},"credsStore":2}', 'f')).toEqual({
      auths: [],
      credHelpers: new Map(),
      credsStore: undefined,
    });
  });
});

describe('helpers', () => {
  test('a registry’s own helper beats the host’s entry, a key with a path beats both, the general helper comes last', async () => {
    helper('own', 'read server; echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"own\\",\\"Secret\\":\\"$server\\"}"');
    helper('general', 'read server; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$server\\"}"');
    write({
      auths: { 'a.example': auth('host'), 'a.example/team': auth('team'), 'b.example': {} },
      credHelpers: { 'a.example': 'own' },
      credsStore: 'general',
    });
    const source = dockerConfigSource(file, { env: env() });
    expect(await source('a.example', 'x')).toEqual({ username: 'own', password: 'a.example' });
    expect(await source('a.example', 'team/x')).toEqual(user('team'));
    expect(await source('b.example', 'x')).toEqual({ identityToken: 'b.example' });
    expect(await source('docker.io', 'library/x')).toEqual({ identityToken: 'https://index.docker.io/v1/' });
  });

  test('a helper without credentials for a registry means anonymous', async () => {
    helper('none', 'echo "credentials not found in native keychain"; exit 1');
    expect(await runCredentialHelper('none', 'a.example', { env: env() })).toBeUndefined();
  });

  test.each([
    ['fails', 'echo "token abc leaked" >&2; echo "token abc leaked"; exit 3', 'Unavailable'],
    ['answers no JSON', 'echo "token abc"', 'FailedPrecondition'],
    ['answers too much', 'yes 0123456789 | head -c 400000', 'FailedPrecondition'],
    ['never ends', 'sleep 60', 'DeadlineExceeded'],
  ])('a helper that %s is an error without its words', async (_what, script, code) => {
    helper('bad', script);
    const error = await failureOf(
      runCredentialHelper('bad', 'a.example', { env: env(), timeoutMs: 300 + (code === 'DeadlineExceeded' ? 0 : 5000) }),
    );
    expect(error.code).toBe(code);
    expect(describeError(error)).not.toContain('abc');
  });

  test('a helper that is not there cannot be started, which may pass', async () => {
    expect((await failureOf(runCredentialHelper('missing-helper', 'a.example', { env: env() }))).code).toBe('Unavailable');
  });

  test.each(['../evil', 'a/b', '', 'x y'])('the name %j runs nothing', async (name) => {
    expect((await failureOf(runCredentialHelper(name, 'a.example', { env: env() }))).code).toBe('FailedPrecondition');
  });
});

describe('what goes on when the source of credentials fails', () => {
  const HOUR_MS = 3_600_000;
  let atMs = 0;
  const clock = { ...systemClock, monotonicMs: () => atMs };
  const linesOf = () => {
    const lines: string[] = [];
    return { lines, logger: pino({ level: 'info' }, { write: (line: string) => void lines.push(line) }) };
  };

  test('a file that is being written in place leaves the earlier content in use, for an hour, and is told of once', async () => {
    const { lines, logger } = linesOf();
    write({ auths: { 'a.example': auth('one') } });
    const source = dockerConfigSource(file, { clock, logger });
    expect(await source('a.example', 'x')).toEqual(user('one'));
    write('');
    for (let question = 0; question < 3; question += 1) expect(await source('a.example', 'x')).toEqual(user('one'));
    write('{"auths":{"a.example":{"auth":"c2Vjc');
    atMs += HOUR_MS - 1;
    expect(await source('a.example', 'x')).toEqual(user('one'));
    expect(lines).toHaveLength(1);
    expect(lines[0]).not.toContain('c2Vjc');
    atMs += 1;
    expect((await failureOf(source('a.example', 'x'))).code).toBe('FailedPrecondition');
    write({ auths: { 'a.example': auth('another') } });
    expect(await source('a.example', 'x')).toEqual(user('another'));
  });

  test('a helper that fails leaves its last answer in use, for an hour, and is told of once; its return counts', async () => {
    const { lines, logger } = linesOf();
    const answer = (name: string) => helper('cloud', `echo '{"Username":"${name}","Secret":"s"}'`);
    answer('first');
    write({ auths: {}, credsStore: 'cloud' });
    const source = dockerConfigSource(file, { clock, logger, env: env() });
    expect(await source('a.example', 'x')).toEqual({ username: 'first', password: 's' });
    helper('cloud', 'echo "token abc leaked"; exit 1');
    atMs += 30_000;
    for (let question = 0; question < 3; question += 1) {
      expect(await source('a.example', 'x')).toEqual({ username: 'first', password: 's' });
      atMs += 500;
    }
    expect(lines).toHaveLength(1);
    expect(lines[0]).not.toContain('abc');
    atMs += HOUR_MS;
    expect((await failureOf(source('a.example', 'x'))).code).toBe('Unavailable');
    answer('second');
    // Not at once: a failure holds for half a second.
    expect((await failureOf(source('a.example', 'x'))).code).toBe('Unavailable');
    atMs += 500;
    expect(await source('a.example', 'x')).toEqual({ username: 'second', password: 's' });
  });

  test('nobody waits for a helper that failed before and now hangs, while there is an answer to go on with', async () => {
    helper('cloud', `echo '{"Username":"u","Secret":"s"}'`);
    write({ auths: {}, credsStore: 'cloud' });
    const source = dockerConfigSource(file, { clock, env: env() });
    await source('a.example', 'x');
    helper('cloud', 'exit 1');
    atMs += 30_000;
    await source('a.example', 'x');
    helper('cloud', `touch ${dir}/hangs; while ! [ -e ${dir}/go ]; do sleep 0.05; done; echo '{"Username":"new","Secret":"s"}'`);
    atMs += 500;
    expect(await source('a.example', 'x')).toEqual({ username: 'u', password: 's' });
    await expect.poll(() => existsSync(join(dir, 'hangs')), { timeout: 20_000 }).toBe(true);
    expect(await source('a.example', 'x')).toEqual({ username: 'u', password: 's' });
    writeFileSync(join(dir, 'go'), '');
    await expect.poll(() => source('a.example', 'x'), { timeout: 20_000 }).toEqual({ username: 'new', password: 's' });
  });
});
