/** The registry client that conversion uses, from plain settings that can cross a process border. */
import type { Logger } from '../../base/log.ts';
import { RegistryClient } from '../../registry/client.ts';
import { firstCredential } from '../../registry/credentials.ts';
import { dockerConfigSource } from '../../registry/docker-config.ts';
import { sealedSources } from '../../registry/vault/sealed-source.ts';
import type { RegistryAccess } from './protocol.ts';

/**
 * Make one a process and close it. Credentials are those of docker's configuration, then what people stored; never what pods brought,
 * which is for reading their images.
 */
export function openRegistry({ dockerConfig, vault, ...access }: RegistryAccess, logger: Logger): RegistryClient {
  const sources = [
    ...(dockerConfig === undefined ? [] : [dockerConfigSource(dockerConfig, { logger })]),
    ...(vault === undefined ? [] : [sealedSources(vault).ofAdmin]),
  ];
  return new RegistryClient({
    hostsDirs: [access.hostsDir],
    plainHttpHosts: access.plainHttp,
    logger,
    headersTimeoutMs: access.responseTimeoutMs,
    bodyIdleTimeoutMs: access.stallTimeoutMs,
    userAgent: 'overlaybd-sidecar-convert',
    credentials: firstCredential(...sources),
  });
}
