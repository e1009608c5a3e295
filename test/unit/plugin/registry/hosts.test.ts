/** hosts.toml and the directories around it: what containerd's documentation promises, and what happens when files change or are broken. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { describeError } from '../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { HostResolver, type HostResolverOptions } from '../../../../plugin/registry/hosts.ts';
import { parseHostsToml } from '../../../../plugin/registry/hosts-toml.ts';
import { failureOf } from '../../../support/registry-client.ts';
import { makeCertificates } from '../../../support/registry-tls.ts';

let dir: string;
let nowMs = 0;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'obd-hosts-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
const resolver = (options: Partial<HostResolverOptions> = {}) =>
  new HostResolver({ hostsDirs: [dir], plainHttpHosts: [], insecureHosts: [], clock, logger: silentLogger, ...options });
const write = (host: string, text: string, name = 'hosts.toml') => {
  mkdirSync(join(dir, host), { recursive: true });
  writeFileSync(join(dir, host, name), text);
};
const keys = async (hosts: HostResolver, host: string) => (await hosts.resolve(host)).map((endpoint) => endpoint.key);

describe('registries without a file', () => {
  test.each([
    ['docker.io', 'https://registry-1.docker.io/v2', false],
    ['registry.example', 'https://registry.example/v2', false],
    ['registry.example:5000', 'https://registry.example:5000/v2', false],
    ['localhost:5000', 'http://localhost:5000/v2', true],
    ['127.0.0.1:5000', 'http://127.0.0.1:5000/v2', true],
    ['[::1]:5000', 'http://[::1]:5000/v2', true],
    ['localhost:443', 'https://localhost/v2', true],
    ['plain.example:80', 'http://plain.example/v2', false],
    ['insecure.example', 'https://insecure.example/v2', true],
  ])('%s is served by %s', async (host, key, skipVerify) => {
    const [endpoint] = await resolver({ plainHttpHosts: ['plain.example:80'], insecureHosts: ['insecure.example'] }).resolve(host);
    expect(endpoint).toMatchObject({ key, namespaceQuery: '', credentialHost: host });
    expect(endpoint?.tls.skipVerify).toBe(skipVerify);
  });

  test.each(['', 'a/b', '../etc', 'user@host', 'host:99999'])('%j is refused', async (host) => {
    expect((await failureOf(resolver().resolve(host))).code).toBe('InvalidArgument');
  });
});

describe('directories', () => {
  test('a host with a port is looked for as host_port_, then host:port, then _default', async () => {
    write('_default', 'server = "https://default.example"');
    expect(await keys(resolver(), 'r.example:5000')).toEqual(['https://default.example/v2']);
    write('r.example:5000', 'server = "https://colon.example"');
    expect(await keys(resolver(), 'r.example:5000')).toEqual(['https://colon.example/v2']);
    write('r.example_5000_', 'server = "https://underscore.example"');
    expect(await keys(resolver(), 'r.example:5000')).toEqual(['https://underscore.example/v2']);
  });

  test('the first directory that has the registry wins', async () => {
    write('r.example', 'server = "https://first.example"');
    const second = mkdtempSync(join(tmpdir(), 'obd-hosts-'));
    try {
      mkdirSync(join(second, 'other.example'));
      writeFileSync(join(second, 'other.example', 'hosts.toml'), 'server = "https://second.example"');
      const hosts = resolver({ hostsDirs: [dir, second, '/nonexistent'] });
      expect(await keys(hosts, 'r.example')).toEqual(['https://first.example/v2']);
      expect(await keys(hosts, 'other.example')).toEqual(['https://second.example/v2']);
    } finally {
      rmSync(second, { recursive: true, force: true });
    }
  });

  test('mirrors come in the order of the file, then the server; without a server, the registry itself', async () => {
    write('r.example', '[host."https://z.example"]\n[host."http://a.example:5000"]\n');
    expect(await keys(resolver(), 'r.example')).toEqual(['https://z.example/v2', 'http://a.example:5000/v2', 'https://r.example/v2']);
  });

  test('a mirror is told which registry is meant and has credentials of its own', async () => {
    write('docker.io', '[host."https://m.example:5000"]\n');
    const [mirror, server] = await resolver().resolve('docker.io');
    expect(mirror).toMatchObject({ namespaceQuery: 'ns=docker.io', credentialHost: 'm.example:5000' });
    expect(server).toMatchObject({ namespaceQuery: '', credentialHost: 'docker.io' });
  });

  test('a change counts within a second, an unchanged file is not read again, a broken edit keeps the last good settings', async () => {
    write('r.example', 'server = "https://one.example"');
    const hosts = resolver();
    const first = await hosts.resolve('r.example');
    write('r.example', 'server = "https://three.example"');
    expect(await hosts.resolve('r.example')).toBe(first);
    nowMs += 1000;
    expect(await keys(hosts, 'r.example')).toEqual(['https://three.example/v2']);
    const second = await hosts.resolve('r.example');
    nowMs += 1000;
    expect(await hosts.resolve('r.example')).toBe(second);
    write('r.example', 'server = ');
    nowMs += 1000;
    expect(await hosts.resolve('r.example')).toBe(second);
    rmSync(join(dir, 'r.example'), { recursive: true });
    nowMs += 1000;
    expect(await keys(hosts, 'r.example')).toEqual(['https://r.example/v2']);
  });

  test('certificates beside or named by the file are read, and read again when they change', async () => {
    const certificates = makeCertificates();
    const elsewhere = join(dir, 'ca.pem');
    writeFileSync(elsewhere, certificates.ca);
    write('r.example', certificates.client.cert, 'client.crt');
    write('r.example', certificates.client.key, 'client.key');
    write('r.example', `ca = ${JSON.stringify(elsewhere)}\nclient = [["client.crt", "client.key"]]\n`);
    const hosts = resolver();
    const [before] = await hosts.resolve('r.example');
    expect(() => before?.tls.secureContext()).not.toThrow();
    expect(before?.tls.withoutClients().id).not.toBe(before?.tls.id);
    writeFileSync(elsewhere, makeCertificates().ca);
    nowMs += 1000;
    const [after] = await hosts.resolve('r.example');
    expect(after?.tls.id).not.toBe(before?.tls.id);
  });

  test('without hosts.toml, docker’s certificate files in the directory count', async () => {
    const certificates = makeCertificates();
    write('r.example', certificates.ca, 'ca.crt');
    write('r.example', certificates.client.cert, 'client.cert');
    write('r.example', certificates.client.key, 'client.key');
    const [endpoint] = await resolver().resolve('r.example');
    expect(endpoint?.key).toBe('https://r.example/v2');
    expect(endpoint?.tls.withoutClients().id).not.toBe(endpoint?.tls.id);
  });

  test('a missing or unusable certificate is FailedPrecondition', async () => {
    write('r.example', 'ca = "missing.pem"');
    expect((await failureOf(resolver().resolve('r.example'))).message).toContain('missing.pem');
    write('s.example', 'not a certificate', 'ca.pem');
    write('s.example', 'client = "ca.pem"');
    const [endpoint] = await resolver().resolve('s.example');
    expect(() => endpoint?.tls.secureContext()).toThrowError(expect.objectContaining({ code: 'FailedPrecondition' }));
  });
});

describe('hosts.toml', () => {
  test('all keys of containerd’s documentation', () => {
    const [mirror, server] = parseHostsToml(
      `
      server = "https://registry.example/prefix"
      capabilities = ["push"]
      [host."mirror.example:8443/cache"]
        capabilities = ["pull", "resolve"]
        ca = ["/a.pem", "b.pem"]
        client = [["c.crt", "c.key"], ["pair.pem", ""]]
        skip_verify = true
        dial_timeout = "1.5s"
        [host."mirror.example:8443/cache".header]
          x-one = "1"
          x-two = ["a", "b"]
      `,
      'hosts.toml',
    );
    expect(mirror).toEqual({
      origin: 'https://mirror.example:8443',
      basePath: '/cache/v2',
      capabilities: new Set(['pull', 'resolve']),
      caFiles: ['/a.pem', 'b.pem'],
      clientFiles: [
        { certificate: 'c.crt', key: 'c.key' },
        { certificate: 'pair.pem', key: '' },
      ],
      skipVerify: true,
      headers: { 'x-one': '1', 'x-two': 'a, b' },
      connectTimeoutMs: 1500,
    });
    expect(server).toMatchObject({
      origin: 'https://registry.example',
      basePath: '/prefix/v2',
      capabilities: new Set(['push']),
      skipVerify: undefined,
    });
  });

  test.each([
    ['https://h.example', false, '/v2'],
    ['https://h.example/', false, '/v2'],
    ['https://h.example/v2', false, '/v2'],
    ['https://h.example/v2/', false, '/v2'],
    ['https://h.example/v2/proxy', false, '/v2/proxy/v2'],
    ['https://h.example/v2/proxy', true, '/v2/proxy'],
    ['https://h.example', true, ''],
  ])('the path of %s with override_path = %s is %j', (server, isOverridden, basePath) => {
    const [section] = parseHostsToml(`server = "${server}"\noverride_path = ${isOverridden}`, 'f');
    expect(section?.basePath).toBe(basePath);
  });

  test.each([
    ['broken TOML', 'server = "https://x', 'not TOML'],
    ['an unknown capability', 'capabilities = ["delete"]', 'capabilities'],
    ['credentials in the URL', 'server = "https://user:hunter2@h.example"', 'server'],
    ['another scheme', 'server = "httpx://h.example"', 'server'],
    ['a number as CA', 'ca = 5', 'ca'],
    ['three client files', 'client = [["a","b","c"]]', 'client'],
    ['a text as header', 'header = "x"', 'header'],
    ['a header with a line break', '[header]\nx = "a\\nb"', 'header.x'],
    ['a header of the client’s own', '[header]\nRange = "bytes=0-1"', 'header.Range'],
    ['a long dial_timeout', 'dial_timeout = "2h"', 'dial_timeout'],
    ['a host that is no table', 'host = 5', 'host'],
    ['seventeen mirrors', Array.from({ length: 17 }, (_, i) => `[host."https://m${i}.example"]`).join('\n'), '17 hosts'],
    ['a secret in a broken line', '[header]\nauthorization = "Bearer hunter2', 'not TOML'],
  ])('%s is FailedPrecondition that names file and key, without secrets', (_what, text, named) => {
    let error: unknown;
    try {
      parseHostsToml(text, '/etc/certs.d/x/hosts.toml');
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toMatchObject({ code: 'FailedPrecondition' });
    expect(describeError(error)).toContain('/etc/certs.d/x/hosts.toml');
    expect(describeError(error)).toContain(named);
    expect(describeError(error)).not.toContain('hunter2');
  });
});
