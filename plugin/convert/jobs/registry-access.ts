/** The registry client that conversion uses, from plain settings that can cross a process border. */
import type { Logger } from '../../base/log.ts';
import { RegistryClient } from '../../registry/client.ts';
import { dockerConfigSource } from '../../registry/docker-config.ts';
import type { RegistryAccess } from './protocol.ts';

/** Make one a process and close it. */
export function openRegistry(access: RegistryAccess, logger: Logger): RegistryClient {
  return new RegistryClient({
    hostsDirs: [access.hostsDir],
    plainHttpHosts: access.plainHttp,
    logger,
    headersTimeoutMs: access.responseTimeoutMs,
    bodyIdleTimeoutMs: access.stallTimeoutMs,
    userAgent: 'overlaybd-sidecar-convert',
    ...(access.dockerConfig === undefined ? {} : { credentials: dockerConfigSource(access.dockerConfig) }),
  });
}
