/** The registry as one cache reaches it: the node's settings, with the cache's own credentials and transport rules before them. */
import type { Logger } from '../../base/log.ts';
import { RegistryClient } from '../../registry/client.ts';
import { type CredentialSource, firstCredential } from '../../registry/credentials.ts';
import { dockerConfigSource } from '../../registry/docker-config.ts';
import type { ImageAccess } from '../image-store.ts';

/** How this node reaches registries. Plain data, never a secret. */
export interface RegistrySettings {
  hostsDir: string;
  plainHttp: readonly string[];
  dockerConfig?: string;
  responseTimeoutMs: number;
  stallTimeoutMs: number;
}

/** What people write for Docker Hub. */
const HUB_NAMES = new Set(['index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com']);

function canonicalHost(server: string): string {
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
  const { hostsDir, plainHttp, dockerConfig, responseTimeoutMs, stallTimeoutMs } = settings;
  const sources = [ownCredentials(access), ...(dockerConfig === undefined ? [] : [dockerConfigSource(dockerConfig)])];
  return new RegistryClient({
    hostsDirs: [hostsDir],
    plainHttpHosts: [...plainHttp, ...access.plainHttp],
    insecureHosts: access.insecure,
    credentials: firstCredential(...sources),
    logger,
    userAgent: 'overlaybd-sidecar-cache',
    headersTimeoutMs: responseTimeoutMs,
    bodyIdleTimeoutMs: stallTimeoutMs,
  });
}
