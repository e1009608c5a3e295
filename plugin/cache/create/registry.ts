/** The registry as one cache reaches it: the node's settings, with the cache's own credentials and transport rules before them. */
import type { Config } from '../../base/config/config.ts';
import type { Logger } from '../../base/log.ts';
import { RegistryClient } from '../../registry/client.ts';
import { type CredentialSource, firstCredential } from '../../registry/credentials.ts';
import { nodeCredentials } from '../../registry/node-credentials.ts';
import { sealedSources, type VaultPaths } from '../../registry/vault/sealed-source.ts';
import type { ImageAccess } from '../image-store.ts';

/** How this node reaches registries. Plain data, never a secret. */
export interface RegistrySettings extends Pick<Config, 'registry'> {
  /** Where stored credentials lie. */
  vault: VaultPaths;
}

/** What people write for Docker Hub. */
const HUB_NAMES = new Set(['index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com']);

/** A registry as references name it. */
export function canonicalHost(server: string): string {
  return HUB_NAMES.has(server) ? 'docker.io' : server;
}

function ownCredentials(access: ImageAccess): CredentialSource {
  const byHost = new Map(
    access.credentials.map(({ server, userName, password }) => [canonicalHost(server), { username: userName, password }]),
  );
  return async (host) => byHost.get(host);
}

/** A client of its own; close it. */
export function openRegistry(settings: RegistrySettings, access: ImageAccess, logger: Logger): RegistryClient {
  const { hostsDir, plainHttp, responseTimeoutMs, stallTimeoutMs } = settings.registry;
  return new RegistryClient({
    hostsDirs: [hostsDir],
    plainHttpHosts: [...plainHttp, ...access.plainHttp],
    insecureHosts: access.insecure,
    credentials: firstCredential(ownCredentials(access), nodeCredentials(settings, sealedSources(settings.vault), logger)),
    logger,
    userAgent: 'overlaybd-sidecar-cache',
    headersTimeoutMs: responseTimeoutMs,
    bodyIdleTimeoutMs: stallTimeoutMs,
  });
}
