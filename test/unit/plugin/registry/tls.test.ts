/** TLS: authorities and client certificates from a hosts directory, unknown authorities, skip_verify, and no way down to plain HTTP. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Digest } from '../../../../plugin/base/digest.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../support/fault-registry.ts';
import { failureOf, randomBlob, testClient } from '../../../support/registry-client.ts';

const blob = randomBlob(200_000);
const repository = { host: 'r.test', repository: 'team/app' };
let open: FaultRegistry;
let strict: FaultRegistry;
let plain: FaultRegistry;
let digest: Digest;
let dir: string;

beforeAll(async () => {
  open = await startFaultRegistry({ tls: true, redirectBlobs: true });
  strict = await startFaultRegistry({ tls: open.certificates!, requireClientCertificate: true });
  plain = await startFaultRegistry();
  for (const registry of [open, strict, plain]) digest = registry.addBlob(blob);
  dir = mkdtempSync(join(tmpdir(), 'obd-tls-test-'));
});
afterAll(async () => {
  for (const registry of [open, strict, plain]) await registry.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** Reads with a hosts.toml of this text, beside which the certificates lie. */
async function read(name: string, hostsToml: string): Promise<Buffer> {
  const hostDir = join(dir, name, 'r.test');
  mkdirSync(hostDir, { recursive: true });
  writeFileSync(join(hostDir, 'hosts.toml'), hostsToml);
  const certificates = open.certificates!;
  writeFileSync(join(hostDir, 'ca.pem'), certificates.ca);
  writeFileSync(join(hostDir, 'client.crt'), certificates.client.cert);
  writeFileSync(join(hostDir, 'client.key'), certificates.client.key);
  writeFileSync(join(hostDir, 'pair.pem'), certificates.client.cert + certificates.client.key);
  const client = testClient({ hostsDirs: [join(dir, name)] });
  try {
    return Buffer.from((await client.fetchRange(repository, digest, blob.length, 100, 1000)).bytes);
  } finally {
    await client.close();
  }
}
const wanted = blob.subarray(100, 1100);

test('an unknown authority is Unavailable, names TLS and hosts.toml, and asks for patience', async () => {
  const error = await failureOf(read('unknown', `server = "${open.origin}"`));
  expect([error.code, error.details.fault]).toEqual(['Unavailable', 'tls']);
  expect(error.retryAfterMs).toBeGreaterThanOrEqual(1000);
  expect(error.message).toContain('hosts.toml');
});

test('the authority of the hosts file is trusted, for the registry and for where it redirects', async () => {
  expect((await read('ca', `server = "${open.origin}"\nca = "ca.pem"`)).equals(wanted)).toBe(true);
  expect(open.requests('storage').at(-1)?.status).toBe(206);
});

test('skip_verify trusts anything', async () => {
  expect((await read('skip', `server = "${open.origin}"\nskip_verify = true`)).equals(wanted)).toBe(true);
});

test.each([
  ['a pair', '[["client.crt", "client.key"]]'],
  ['one file with both', '"pair.pem"'],
])('a client certificate as %s is presented', async (name, client) => {
  const text = `server = "${strict.origin}"\nca = "ca.pem"\nclient = ${client}`;
  expect((await read(`client ${name}`.replaceAll(' ', '-'), text)).equals(wanted)).toBe(true);
});

test('without its client certificate a strict registry is Unavailable', async () => {
  const error = await failureOf(read('no-client', `server = "${strict.origin}"\nca = "ca.pem"`));
  expect(error.code).toBe('Unavailable');
});

test('a redirect from TLS to plain HTTP is refused', async () => {
  const location = `${plain.origin}/v2/team/app/blobs/${digest}`;
  open.inject({ server: 'registry', effect: { kind: 'redirect', location } });
  const error = await failureOf(read('downgrade', `server = "${open.origin}"\nca = "ca.pem"`));
  expect(error.code).toBe('PermissionDenied');
  expect(plain.log.length).toBe(0);
});

test('a TLS client at a plain port, and a plain client at a TLS port, are Unavailable', async () => {
  expect((await failureOf(read('tls-at-plain', `server = "${plain.origin.replace('http:', 'https:')}"`))).code).toBe('Unavailable');
  expect((await failureOf(read('plain-at-tls', `server = "${open.origin.replace('https:', 'http:')}"`))).code).toBe('Unavailable');
});
