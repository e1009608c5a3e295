/** Credentials that come over the admin API: kept in the vault, found for pulls by the longest prefix, replaced, forgotten, never shown. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { registryCredentials } from '../../../../plugin/main/registry-credentials.ts';
import { CredentialVault } from '../../../../plugin/registry/vault/vault.ts';
import { Scratch } from '../../../support/scratch.ts';

let scratch: Scratch;
const signal = AbortSignal.timeout(60_000);
const open = (): Promise<CredentialVault> => {
  const paths = { file: scratch.join('credentials.sealed'), keyFile: scratch.join('credentials.key') };
  return CredentialVault.open(paths, systemClock, (error) => {
    throw error;
  });
};

beforeEach(async () => {
  scratch = await Scratch.create('regs');
});
afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
});

test('what is put is used for that registry or that part of it, also after a restart, until it is removed', async () => {
  const kept = registryCredentials(await open());
  await kept.put('Registry.Example:5000', { userName: 'all', password: 'a' }, signal);
  await kept.put('registry.example:5000/team/', { identityToken: 't' }, signal);
  await kept.put('index.docker.io', { userName: 'hub', password: 'h' }, signal);
  await kept.put('registry.example:5000', { userName: 'all', password: 'b' }, signal);
  const vault = await open();
  const find = vault.sources().ofAdmin;
  expect(await find('registry.example:5000', 'other/app')).toEqual({ username: 'all', password: 'b' });
  expect(await find('registry.example:5000', 'team/app')).toEqual({ identityToken: 't' });
  expect(await find('registry.example:5000', 'teams/app')).toEqual({ username: 'all', password: 'b' });
  expect(await find('docker.io', 'library/nginx')).toEqual({ username: 'hub', password: 'h' });
  const again = registryCredentials(vault);
  expect(await again.list(signal)).toEqual([
    { scope: 'docker.io', kind: 'password', updatedAt: expect.any(String) },
    { scope: 'registry.example:5000', kind: 'password', updatedAt: expect.any(String) },
    { scope: 'registry.example:5000/team', kind: 'identity-token', updatedAt: expect.any(String) },
  ]);
  await again.remove('registry.example:5000', signal);
  await expect(again.remove('registry.example:5000', signal)).rejects.toMatchObject({ code: 'NotFound' });
  expect(await find('registry.example:5000', 'other/app')).toBeUndefined();
});
