/** Conversion logs in with docker's configuration, then with what people stored, and never with what pods brought. */
import { afterEach, expect, test } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { openRegistry } from '../../../../../plugin/convert/jobs/registry-access.ts';
import { CredentialVault } from '../../../../../plugin/registry/vault/vault.ts';
import { startFaultRegistry } from '../../../../support/fault-registry.ts';
import { failureOf } from '../../../../support/registry-client.ts';
import { Scratch } from '../../../../support/scratch.ts';

const cleanUps: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

test('stored credentials are used, those of pods are not', async () => {
  const scratch = await Scratch.create('access');
  cleanUps.push(() => scratch[Symbol.asyncDispose]());
  const registry = await startFaultRegistry({ auth: { kind: 'basic', username: 'pusher', password: 'secret' } });
  cleanUps.push(() => registry.stop());
  registry.api.storeManifest('team/app', '1', Buffer.from('{}'), 'application/vnd.oci.image.manifest.v1+json');
  const paths = { file: scratch.join('credentials.sealed'), keyFile: scratch.join('credentials.key') };
  const vault = await CredentialVault.open(paths, systemClock, (error) => {
    throw error;
  });
  const credential = { username: 'pusher', password: 'secret' };
  const facts = { prefix: registry.host, credential, isExact: false, expiresMs: null, renewal: null };
  const look = async () => {
    const access = { hostsDir: scratch.path, plainHttp: [registry.host], responseTimeoutMs: 20_000, stallTimeoutMs: 20_000, vault: paths };
    await using client = openRegistry(access, silentLogger);
    return (await client.resolve({ host: registry.host, repository: 'team/app' }, '1')).digest;
  };
  await vault.put({ id: 'pod', origin: 'pull', ...facts });
  expect((await failureOf(look())).code).toBe('Unauthenticated');
  await vault.put({ id: 'admin', origin: 'admin', ...facts });
  expect(await look()).toMatch(/^sha256:/);
});
