/**
 * Credentials of pulls: which images a pattern covers, which Secrets count and in what order, what rules and their programs give, and that all
 * of it is renewed for readers. Nothing secret is in an error or event.
 */
import fs from 'node:fs/promises';
import http from 'node:http';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { authOf, credentialOf } from '../../../../plugin/cri/credentials/auth-config.ts';
import { type Candidate, CredentialBroker, type PullSubject } from '../../../../plugin/cri/credentials/broker.ts';
import { longestMatch, matchesPattern } from '../../../../plugin/cri/credentials/image-pattern.ts';
import { askProvider } from '../../../../plugin/cri/credentials/provider.ts';
import { CredentialRenewer, type RenewerOptions } from '../../../../plugin/cri/credentials/renewal.ts';
import { matchesRule, parseRules, RuleBook } from '../../../../plugin/cri/credentials/rules.ts';
import { PodSecrets } from '../../../../plugin/cri/credentials/secrets.ts';
import type { PodFacts } from '../../../../plugin/cri/pods/pod-facts.ts';
import type { AuthConfig } from '../../../../plugin/cri/wire/messages.ts';
import { parseReference } from '../../../../plugin/registry/reference.ts';
import { excessOf } from '../../../../plugin/registry/token.ts';
import { POD_ORIGINS } from '../../../../plugin/registry/vault/entry.ts';
import { CredentialVault, type NewEntry } from '../../../../plugin/registry/vault/vault.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

const SECRET = 'not-for-any-eye';
const SIGNAL = AbortSignal.timeout(120_000);

describe('patterns', () => {
  test.each([
    ['r.example', 'r.example/a', true],
    ['r.example', 'r.example:5000/a', false],
    ['r.example:5000', 'r.example:5000/a', true],
    ['R.Example/team', 'r.example/team/app', true],
    ['r.example/team', 'r.example/teams/app', false],
    ['r.example/team/*', 'r.example/team/app', true],
    ['https://r.example/team/', 'r.example/team', true],
    ['*.example', 'r.example/a', true],
    ['*.example', 'a.b.example/a', false],
    ['*.dkr.ecr.*.amazonaws.com', '1.dkr.ecr.eu-west-1.amazonaws.com/a', true],
    ['r*y.example', 'registry.example/a', true],
    ['r*y.example', 'ry.example/a', true],
    ['ry*y.example', 'ry.example/a', false],
    ['*', 'anything/at/all', true],
    ['x'.repeat(600), 'r.example/a', false],
  ])('%s covers %s: %s', (pattern, name, expected) => {
    expect(matchesPattern(pattern, name)).toBe(expected);
  });

  test('the longest that covers a name wins', () => {
    const entries = [
      ['r.example', 1],
      ['r.example/team', 2],
      ['r.example/team/other', 3],
      ['*', 4],
    ] as const;
    expect(longestMatch(entries, 'r.example/team/app')?.[1]).toBe(2);
    expect(longestMatch(entries, 'else.example/team')?.[1]).toBe(4);
    expect(longestMatch(entries.slice(0, 3), 'else.example/team')).toBeUndefined();
  });
});

describe('what a pull brings', () => {
  const none: AuthConfig = { username: '', password: '', auth: '', serverAddress: '', identityToken: '', registryToken: '' };

  test('counts as it does for containerd: each form, and only for its registry', () => {
    const user = { username: 'u', password: 'p:q' };
    expect(credentialOf(undefined, 'r.example')).toBeUndefined();
    expect(credentialOf(none, 'r.example')).toBeUndefined();
    expect(credentialOf({ ...none, ...user }, 'r.example')).toEqual(user);
    expect(credentialOf({ ...none, auth: Buffer.from('u:p:q').toString('base64') }, 'r.example')).toEqual(user);
    expect(credentialOf({ ...none, auth: Buffer.from('no colon').toString('base64') }, 'r.example')).toBeUndefined();
    expect(credentialOf({ ...none, identityToken: 't' }, 'r.example')).toEqual({ identityToken: 't' });
    expect(credentialOf({ ...none, registryToken: 't' }, 'r.example')).toEqual({ registryToken: 't' });
    for (const [server, host, counts] of [
      ['https://r.example', 'r.example', true],
      ['R.EXAMPLE/v2/', 'r.example', true],
      ['other.example', 'r.example', false],
      ['https://index.docker.io/v1/', 'docker.io', true],
    ] as const) {
      expect(credentialOf({ ...none, ...user, serverAddress: server }, host) !== undefined, server).toBe(counts);
    }
    expect(authOf(user)).toEqual(user);
    expect(authOf({ identityToken: 't' })).toEqual({ identityToken: 't' });
  });
});

describe('rules', () => {
  const rule = (more: string): string => `[[rules]]\nname = "a"\nnamespace = "team"\nimages = ["r.example/team"]\n${more}\n`;

  test('match namespace, service account and image', () => {
    const [one] = parseRules(rule('service_account = "puller"\nsource = "docker-helper"\nhelper = "x"'), 'f');
    const subject = { namespace: 'team', serviceAccount: 'puller', imageName: 'r.example/team/app' };
    expect(matchesRule(one!, subject)).toBe(true);
    expect(matchesRule(one!, { ...subject, namespace: 'other' })).toBe(false);
    expect(matchesRule(one!, { ...subject, serviceAccount: 'default' })).toBe(false);
    expect(matchesRule(one!, { ...subject, serviceAccount: undefined })).toBe(false);
    expect(matchesRule(one!, { ...subject, imageName: 'r.example/teams/app' })).toBe(false);
  });

  test.each([
    ['no TOML', '[[rules'],
    ['an unknown source', rule('source = "magic"')],
    ['a relative program', rule('source = "plugin"\ncommand = "provider"')],
    ['a misspelt key', rule('source = "socket"\nsocket = "/s"\nnamspace = "x"')],
    ['no images', rule('source = "socket"\nsocket = "/s"').replace('["r.example/team"]', '[]')],
    ['one name twice', rule('source = "socket"\nsocket = "/s"') + rule('source = "socket"\nsocket = "/s"')],
  ])('with %s are refused as a whole', (_say, text) => {
    expect(() => parseRules(text, 'rules.toml')).toThrow(/read credential rules rules.toml/);
  });
});

describe('tokens that allow more than reading', () => {
  const jwt = (claims: unknown): string => `e30.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.x`;

  test('are noticed; others are not judged', () => {
    const access = (...actions: string[]) => [{ type: 'repository', name: 'team/app', actions }];
    expect(excessOf(jwt({ access: access('pull') }))).toBeUndefined();
    expect(excessOf(jwt({ access: access('pull', 'push') }))).toBe('push');
    expect(excessOf(jwt({ access: [...access('*'), ...access('delete', '*')] }))).toBe('*, delete');
    for (const token of ['opaque', 'a.b.c', jwt(null), jwt([]), jwt({ access: 'push' }), jwt({ access: [null, { actions: 'push' }] })]) {
      expect(excessOf(token), token).toBeUndefined();
    }
  });
});

let scratch: Scratch;
let events: string[];
const tell = { add: (type: string, subject: string, message: string) => events.push(`${type} ${subject} ${message}`) };
/** Objects of the API server by path; a function is asked, an error thrown. */
let objects: Map<string, unknown>;
const kube = {
  async get(path: string): Promise<unknown> {
    const found = objects.get(path);
    if (found instanceof Error) throw found;
    if (found === undefined) throw new AppError('NotFound', { op: 'ask the API server for', subject: path, what: 'it answered 404' });
    return found;
  },
};

beforeEach(async () => {
  scratch = await Scratch.create('creds');
  events = [];
  objects = new Map();
});
afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
});

function addSecret(
  name: string,
  auths: Record<string, string>,
  more: { type?: string; labels?: object; changed?: string; data?: string } = {},
): void {
  const config = { auths: Object.fromEntries(Object.entries(auths).map(([key, user]) => [key, { username: user, password: SECRET }])) };
  objects.set(`/api/v1/namespaces/team/secrets/${name}`, {
    kind: 'Secret',
    type: more.type ?? 'kubernetes.io/dockerconfigjson',
    metadata: { name, namespace: 'team', labels: more.labels ?? {}, creationTimestamp: more.changed ?? '2026-01-01T00:00:00Z' },
    data: { '.dockerconfigjson': more.data ?? Buffer.from(JSON.stringify(config)).toString('base64') },
  });
}

const facts = (more: Partial<PodFacts> = {}): PodFacts => ({
  from: 'api-server',
  images: [],
  serviceAccount: 'default',
  pullSecrets: [],
  ephemeralLimitGib: null,
  ...more,
});

function subject(more: Partial<PullSubject> = {}): PullSubject {
  const pod = { name: 'web', namespace: 'team', uid: 'u', labels: {}, annotations: {} };
  return {
    pod,
    facts: undefined,
    image: 'r.example/team/app:1',
    reference: parseReference('r.example/team/app:1'),
    auth: undefined,
    ...more,
  };
}

function broker(options: { rulesFile?: string } = {}): CredentialBroker {
  const rules = new RuleBook(options.rulesFile, systemClock, (error) => tell.add('credential-rules-refused', '', error.message));
  return new CredentialBroker({
    secrets: new PodSecrets(kube),
    rules,
    dockerConfig: undefined,
    admin: async () => ({ username: 'admin', password: SECRET }),
    events: tell,
  });
}

const users = (candidates: readonly Candidate[]): string[] =>
  candidates.map(({ credential, origin }) => `${origin} ${'username' in credential ? credential.username : 'token'}`);

describe('Secrets', () => {
  test('count by type and by name or label, in the pod’s namespace, named by the pod or its service account; the rest is told once', async () => {
    addSecret('acr-credential-a', { 'r.example': 'by-name' });
    addSecret('labelled', { 'r.example/team': 'by-label' }, { labels: { 'images.alibabacloud.com/accelerated': 'true' } });
    addSecret('plain', { 'r.example': 'unmarked' });
    addSecret('label-false', { 'r.example': 'unmarked' }, { labels: { 'images.alibabacloud.com/accelerated': 'True' } });
    addSecret('acr-credential-old', { 'r.example': 'type' }, { type: 'kubernetes.io/dockercfg' });
    addSecret('acr-credential-broken', {}, { data: Buffer.from(`{"auths": ${SECRET}`).toString('base64') });
    addSecret('acr-credential-unnamed', { 'r.example/team/app': 'not-named-by-the-pod' });
    objects.set('/api/v1/namespaces/team/serviceaccounts/default', { imagePullSecrets: [{ name: 'labelled' }] });
    const pullSecrets = ['acr-credential-a', 'plain', 'label-false', 'acr-credential-old', 'acr-credential-broken', 'acr-credential-gone'];
    const it = broker();
    const of = subject({ facts: facts({ pullSecrets }) });
    expect(users(await it.candidates(of, SIGNAL))).toEqual(['secret by-label', 'secret by-name', 'admin admin']);
    await it.candidates(of, SIGNAL);
    const ignored = events.filter((event) => event.startsWith('secret-ignored team/web'));
    expect(ignored).toHaveLength(5);
    for (const [name, why] of [
      ['plain', 'does not begin with acr-credential-'],
      ['label-false', 'does not begin with acr-credential-'],
      ['acr-credential-old', 'its type is "kubernetes.io/dockercfg"'],
      ['acr-credential-broken', 'not JSON'],
      ['acr-credential-gone', 'none of this name in namespace team'],
    ] as const) {
      expect(
        ignored.find((event) => event.includes(`Secret team/${name} `)),
        name,
      ).toContain(why);
    }
    expect(events.join()).not.toContain(SECRET);
  });

  test('of equal prefixes, the newest is first; of another registry, none', async () => {
    addSecret('acr-credential-a', { 'r.example/team': 'older', 'else.example': 'else' });
    addSecret('acr-credential-b', { 'r.example/team': 'newer' }, { changed: '2026-02-01T00:00:00Z' });
    addSecret('acr-credential-c', { 'r.example': 'newest-but-short' }, { changed: '2026-03-01T00:00:00Z' });
    const pullSecrets = ['acr-credential-a', 'acr-credential-b', 'acr-credential-c'];
    const found = await broker().candidates(subject({ facts: facts({ pullSecrets }) }), SIGNAL);
    expect(users(found)).toEqual(['secret newer', 'secret older', 'secret newest-but-short', 'admin admin']);
  });

  test('an API server that does not answer is told of, and the pull goes on with what it brought', async () => {
    objects.set(
      '/api/v1/namespaces/team/serviceaccounts/default',
      new AppError('Unavailable', { op: 'ask', subject: 'it', what: 'is away' }),
    );
    const auth = { username: 'own', password: SECRET, auth: '', serverAddress: '', identityToken: '', registryToken: '' };
    const found = await broker().candidates(subject({ facts: facts({ pullSecrets: ['x'] }), auth }), SIGNAL);
    expect(users(found)).toEqual(['pull own']);
    expect(events.join()).toContain('Secrets cannot be used');
  });

  test('an API server that is silent costs no more than its time; the pull goes on with what it brought', async () => {
    const silent = {
      get: (_path: string, signal: AbortSignal) =>
        new Promise((_, reject) => {
          if (signal.aborted) reject(signal.reason);
          else signal.addEventListener('abort', () => reject(signal.reason));
        }),
    };
    const rules = new RuleBook(undefined, systemClock, () => undefined);
    const it = new CredentialBroker({
      ...{ secrets: new PodSecrets(silent), rules, dockerConfig: undefined, events: tell },
      admin: async () => ({ username: 'admin', password: SECRET }),
    });
    const auth = { username: 'own', password: SECRET, auth: '', serverAddress: '', identityToken: '', registryToken: '' };
    const pod = subject({ facts: facts({ pullSecrets: ['x'] }) });
    expect(users(await it.candidates({ ...pod, auth }, AbortSignal.timeout(50)))).toEqual(['pull own']);
    expect(users(await it.candidates(pod, AbortSignal.timeout(50)))).toEqual(['admin admin']);
    expect(events).toEqual(['credential-source-failed team/web Secrets cannot be used: no answer in time']);
    const gone = new AbortController();
    const asked = it.candidates(pod, AbortSignal.any([gone.signal, AbortSignal.timeout(60_000)]));
    gone.abort(new Error('the caller gave it up'));
    await expect(asked).rejects.toThrow('the caller gave it up');
  });

  test('what a pull brought is first, and renewable when a Secret of the pod holds the same', async () => {
    addSecret('acr-credential-a', { 'r.example': 'own' });
    const auth = { username: 'own', password: SECRET, auth: '', serverAddress: '', identityToken: '', registryToken: '' };
    const [first, ...rest] = await broker().candidates(subject({ facts: facts({ pullSecrets: ['acr-credential-a'] }), auth }), SIGNAL);
    expect(rest).toEqual([]);
    expect(first).toMatchObject({
      origin: 'secret',
      entry: { prefix: 'r.example/team/app', isExact: true, renewal: { kind: 'secret', secrets: ['acr-credential-a'] } },
    });
    const [lone] = await broker().candidates(subject({ auth }), SIGNAL);
    const id = 'pull:team:r.example/team/app';
    expect(lone).toMatchObject({ origin: 'pull', entry: { id, prefix: 'r.example/team/app', isExact: true, renewal: null } });
  });
});

/** A program that answers for `r.example`, and writes down what it was asked. */
async function provider(answer: unknown, more = ''): Promise<string> {
  const text = typeof answer === 'string' ? answer : JSON.stringify(answer);
  const file = await scratch.file('provider', `#!/bin/sh\ncat > ${scratch.join('asked')}\n${more}\ncat <<'END'\n${text}\nEND\n`);
  await fs.chmod(file, 0o700);
  return file;
}

const answerOf = (username: string, cacheDuration = '10m') => ({
  kind: 'CredentialProviderResponse',
  apiVersion: 'credentialprovider.kubelet.k8s.io/v1',
  cacheKeyType: 'Registry',
  cacheDuration,
  auth: { 'r.example': { username: 'short', password: SECRET }, 'r.example/team': { username, password: SECRET } },
});

const rulesWith = (command: string, more = ''): string =>
  `[[rules]]\nname = "a"\nnamespace = "*"\nimages = ["*.example"]\nsource = "plugin"\ncommand = "${command}"\n${more}`;

const QUERY = {
  host: 'r.example',
  imageName: 'r.example/team/app',
  namespace: 'team',
  serviceAccount: undefined,
};

describe('sources of rules', () => {
  test('a credential provider is asked as kubelet asks it, and its longest match counts', async () => {
    const command = await provider(answerOf('long', '1h30m'), 'test "$EXTRA" = yes || exit 9');
    const [rule] = parseRules(rulesWith(command, 'env = { EXTRA = "yes" }\napi_version = "v1beta1"'), 'f');
    expect(await askProvider(rule!, QUERY, SIGNAL)).toEqual({ credential: { username: 'long', password: SECRET }, lifeMs: 90 * 60_000 });
    expect(JSON.parse(await fs.readFile(scratch.join('asked'), 'utf8'))).toEqual({
      apiVersion: 'credentialprovider.kubelet.k8s.io/v1beta1',
      kind: 'CredentialProviderRequest',
      image: 'r.example/team/app',
    });
    const elsewhere = await askProvider(rule!, { ...QUERY, imageName: 'else.example/a' }, SIGNAL);
    expect(elsewhere).toBeUndefined();
  });

  test('a key of the answer may be written as docker writes it', async () => {
    const answer = { ...answerOf('x'), auth: { 'https://index.docker.io/v1/': { username: 'hub', password: SECRET } } };
    const [rule] = parseRules(rulesWith(await provider(answer)), 'f');
    const query = { ...QUERY, host: 'docker.io', imageName: 'docker.io/library/nginx' };
    expect((await askProvider(rule!, query, SIGNAL))?.credential).toEqual({ username: 'hub', password: SECRET });
  });

  test.each([
    ['no JSON', `${SECRET} is no JSON`, ''],
    ['another document', { kind: 'Secret', data: SECRET }, ''],
    ['a failure', answerOf('x'), 'exit 3'],
    ['too much', 'x'.repeat(300_000), ''],
  ])('that answer %s fail without a secret in the error', async (_say, answer, more) => {
    const [rule] = parseRules(rulesWith(await provider(answer, more)), 'f');
    const failure = await askProvider(rule!, QUERY, SIGNAL).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(failure).toBeInstanceOf(AppError);
    expect(String((failure as AppError).stack)).not.toContain(SECRET);
  });

  test('a program that is not there, and one that hangs until the caller gives up', async () => {
    const [absent] = parseRules(rulesWith(scratch.join('absent')), 'f');
    await expect(askProvider(absent!, QUERY, SIGNAL)).rejects.toThrow(/cannot be run/);
    const [hanging] = parseRules(rulesWith(await provider('x', 'exec sleep 600')), 'f');
    const abort = new AbortController();
    const asked = askProvider(hanging!, QUERY, abort.signal);
    abort.abort(new AppError('Canceled', { op: 'a', subject: 'b', what: 'c' }));
    await expect(asked).rejects.toThrow('a b: c');
  });

  test('a service on a socket answers the same documents', async () => {
    const asked: unknown[] = [];
    const server = http.createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        asked.push(`${request.method} ${request.url}`, JSON.parse(Buffer.concat(chunks).toString()));
        response.end(JSON.stringify(answerOf('by-socket')));
      });
    });
    const socket = scratch.join('helper.sock');
    const [rule] = parseRules(`[[rules]]\nname = "s"\nnamespace = "team"\nimages = ["*"]\nsource = "socket"\nsocket = "${socket}"\n`, 'f');
    await expect(askProvider(rule!, QUERY, SIGNAL)).rejects.toThrow(/does not answer/);
    await new Promise<void>((resolve) => server.listen(socket, resolve));
    try {
      expect(await askProvider(rule!, { ...QUERY, serviceAccount: 'puller' }, SIGNAL)).toMatchObject({
        credential: { username: 'by-socket' },
      });
      expect(asked).toEqual([
        'POST /credentials',
        expect.objectContaining({ namespace: 'team', serviceAccount: 'puller', image: QUERY.imageName }),
      ]);
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
  });

  test('pulls that come together at the start wait for the rules', async () => {
    const rulesFile = await scratch.file('rules.toml', rulesWith('/bin/true'));
    const book = new RuleBook(rulesFile, systemClock, (error) => tell.add('refused', '', error.message));
    const found = await Promise.all(Array.from({ length: 8 }, () => book.current()));
    expect(found.map(({ length }) => length)).toEqual([1, 1, 1, 1, 1, 1, 1, 1]);
  });

  test('a rules file that turns wrong leaves the former rules, and says so once', async () => {
    const rulesFile = await scratch.file('rules.toml', rulesWith(await provider(answerOf('one'))));
    let nowMs = 0;
    const book = new RuleBook(rulesFile, { ...systemClock, monotonicMs: () => nowMs }, (error) => tell.add('refused', '', error.message));
    expect(await book.current()).toHaveLength(1);
    await fs.writeFile(rulesFile, 'nonsense = ');
    for (let i = 0; i < 3; i += 1) {
      nowMs += 2_000;
      expect(await book.current()).toHaveLength(1);
    }
    expect(events).toHaveLength(1);
    await fs.rm(rulesFile);
    for (let i = 0; i < 3; i += 1) {
      nowMs += 2_000;
      expect(await book.current()).toHaveLength(1);
    }
    expect(events).toHaveLength(2);
  });
});

describe('renewal', () => {
  const open = (): Promise<CredentialVault> =>
    CredentialVault.open({ file: scratch.join('v'), keyFile: scratch.join('k') }, systemClock, (error) => {
      throw error;
    });
  const renewer = (vault: CredentialVault, rulesFile?: string, more: Partial<RenewerOptions> = {}): CredentialRenewer =>
    new CredentialRenewer({
      vault,
      secrets: new PodSecrets(kube),
      rules: new RuleBook(rulesFile, systemClock, () => undefined),
      clock: systemClock,
      events: tell,
      logger: silentLogger,
      secretRecheckMs: 100,
      isRepositoryNeeded: () => true,
      ...more,
    });
  const userOf = (vault: CredentialVault): string | undefined => {
    const found = vault.find(POD_ORIGINS, 'r.example', 'team/app')?.credential;
    return found !== undefined && 'username' in found ? found.username : undefined;
  };

  test('lets go of what nobody used for a day, but of nothing that a pull brings again meanwhile', async () => {
    let nowMs = Date.now();
    const clock = { ...systemClock, nowMs: () => nowMs, monotonicMs: () => nowMs };
    const vault = await CredentialVault.open({ file: scratch.join('v'), keyFile: scratch.join('k') }, clock, () => undefined);
    const entries = ['gone', 'pulled'].map((name): NewEntry => {
      const credential = { username: 'u', password: 'p' };
      return { id: name, origin: 'pull', prefix: `r.example/${name}`, isExact: true, credential, expiresMs: null, renewal: null };
    });
    for (const entry of entries) await vault.put(entry);
    const dropped: string[] = [];
    const seen = Object.create(vault, {
      delete: {
        value: async (id: string) => {
          const isThere = await vault.delete(id);
          if (dropped.length === 0) await vault.put(entries[1]!);
          dropped.push(id);
          return isThere;
        },
      },
    }) as CredentialVault;
    await using running = renewer(seen, undefined, { clock, isRepositoryNeeded: () => false });
    nowMs += 25 * 3_600_000;
    await waitFor(() => dropped.length > 0, { what: 'the sweep' });
    await running[Symbol.asyncDispose]();
    expect(dropped).toEqual(['gone']);
    expect(vault.list().map(({ id }) => id)).toEqual(['pulled']);
  });

  test('follows a Secret that changes, by another process than the one that pulled', async () => {
    addSecret('acr-credential-a', { 'r.example': 'before' });
    const [candidate] = await broker().candidates(subject({ facts: facts({ pullSecrets: ['acr-credential-a'] }) }), SIGNAL);
    await (await open()).put(candidate!.entry!);
    const vault = await open();
    await using _ = renewer(vault);
    addSecret('acr-credential-a', { 'r.example': 'after' });
    await waitFor(() => userOf(vault) === 'after', { what: 'the changed Secret', timeoutMs: 30_000 });
    objects.clear();
    await waitFor(() => events.some((event) => event.startsWith('credential-not-renewed')), { what: 'the event', timeoutMs: 30_000 });
    expect(userOf(vault)).toBe('after');
    addSecret('acr-credential-a', { 'r.example': 'back' });
    await waitFor(() => userOf(vault) === 'back', { what: 'the Secret that came back', timeoutMs: 30_000 });
    expect(events.filter((event) => event.startsWith('credential-not-renewed'))).toHaveLength(1);
    expect(events.join()).not.toContain(SECRET);
  });

  test('leaves alone what a pull replaced, or somebody removed, while the API server was asked', async () => {
    addSecret('acr-credential-a', { 'r.example': 'old' });
    const [candidate] = await broker().candidates(subject({ facts: facts({ pullSecrets: ['acr-credential-a'] }) }), SIGNAL);
    const entry = candidate!.entry!;
    for (const change of ['replace', 'remove'] as const) {
      const vault = await open();
      await vault.put({ ...entry, credential: { username: 'older', password: SECRET } });
      const asked = Promise.withResolvers<void>();
      const answer = Promise.withResolvers<void>();
      const slow = {
        async get(path: string): Promise<unknown> {
          asked.resolve();
          await answer.promise;
          return kube.get(path);
        },
      };
      const it = new CredentialRenewer({
        ...{ vault, secrets: new PodSecrets(slow), rules: new RuleBook(undefined, systemClock, () => undefined), clock: systemClock },
        ...{ events: tell, logger: silentLogger, secretRecheckMs: 60_000, isRepositoryNeeded: () => true },
      });
      await asked.promise;
      if (change === 'remove') await vault.delete(entry.id);
      else await vault.put({ ...entry, credential: { username: 'newer', password: SECRET } });
      answer.resolve();
      await it[Symbol.asyncDispose]();
      expect(userOf(vault), change).toBe(change === 'remove' ? undefined : 'newer');
    }
  });

  test('asks a rule again before its answer expires', async () => {
    const rulesFile = await scratch.file('rules.toml', rulesWith(await provider(answerOf('first', '1s'))));
    const [candidate] = await broker({ rulesFile }).candidates(subject(), SIGNAL);
    expect(candidate).toMatchObject({ origin: 'rule', source: 'rule a', entry: { isExact: true, prefix: 'r.example/team/app' } });
    const vault = await open();
    await vault.put(candidate!.entry!);
    await provider(answerOf('second', '1s'));
    await using _ = renewer(vault, rulesFile);
    await waitFor(() => userOf(vault) === 'second', { what: 'the renewed credential', timeoutMs: 30_000 });
    await fs.writeFile(rulesFile, '');
    await waitFor(() => events.some((event) => event.includes('rule a is gone')), { what: 'the event', timeoutMs: 30_000 });
  });
});
