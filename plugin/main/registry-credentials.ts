/** The admin API's credentials of registries, in the vault that pulls and the data plane read. */
import type { RegistryCredentials, RegistrySecret, StoredCredential } from '../../admin/registry-routes.ts';
import { AppError } from '../base/errors.ts';
import type { Credential } from '../registry/credentials.ts';
import type { VaultEntry } from '../registry/vault/entry.ts';
import type { CredentialVault } from '../registry/vault/vault.ts';

/** Other names of Docker Hub, as docker's own configuration writes them. */
const DOCKER_HUB = new Set(['index.docker.io', 'registry-1.docker.io']);

/** Hosts are compared in lower case, and Docker Hub has one name in references. */
function prefixOf(scope: string): string {
  const slash = scope.indexOf('/');
  const host = (slash === -1 ? scope : scope.slice(0, slash)).toLowerCase();
  const rest = slash === -1 ? '' : scope.slice(slash).replace(/\/+$/, '');
  return (DOCKER_HUB.has(host) ? 'docker.io' : host) + rest;
}

const idOf = (prefix: string): string => `admin:${prefix}`;

function credentialOf(secret: RegistrySecret): Credential {
  return 'identityToken' in secret ? secret : { username: secret.userName, password: secret.password };
}

function shown({ prefix, credential, savedMs }: VaultEntry): StoredCredential {
  return { scope: prefix, kind: 'password' in credential ? 'password' : 'identity-token', updatedAt: new Date(savedMs).toISOString() };
}

export function registryCredentials(vault: Pick<CredentialVault, 'list' | 'put' | 'get' | 'delete'>): RegistryCredentials {
  return {
    async list() {
      const entries = vault.list().filter((entry) => entry.origin === 'admin');
      return entries.map(shown).sort((a, b) => (a.scope < b.scope ? -1 : 1));
    },
    async put(scope, secret) {
      const prefix = prefixOf(scope);
      const id = idOf(prefix);
      const facts = { isExact: false, expiresMs: null, renewal: null };
      await vault.put({ id, origin: 'admin', prefix, credential: credentialOf(secret), ...facts });
      const entry = vault.get(id);
      if (entry === undefined) throw new AppError('Conflict', { op: 'keep credentials', subject: prefix, what: 'removed meanwhile' });
      return shown(entry);
    },
    async remove(scope) {
      const prefix = prefixOf(scope);
      if (await vault.delete(idOf(prefix))) return;
      throw new AppError('NotFound', { op: 'forget credentials', subject: prefix, what: 'there are none' });
    },
  };
}
