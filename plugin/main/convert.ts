/** Conversion as the configuration wants it. */
import type { Config } from '../base/config/config.ts';
import type { Logger } from '../base/log.ts';
import type { CacheService } from '../cache/service.ts';
import { type ConvertOptions, type ConvertService, startConvert } from '../convert/service.ts';
import { vaultPathsOf } from '../registry/node-credentials.ts';

/** See {@link startConvert}. */
export function startConversion(
  config: Config,
  { database, usersOf }: Pick<ConvertOptions, 'database' | 'usersOf'>,
  caches: Pick<CacheService, 'usersOf'>,
  logger: Logger,
): Promise<ConvertService> {
  const { hostsDir, plainHttp, dockerConfig, responseTimeoutMs, stallTimeoutMs } = config.registry;
  const { concurrency, cpus, memoryBytes, stagingBytes, jobDeadlineMs, pollIntervalMs, webhookListen, webhookSecretFile } = config.convert;
  const { fullSizePercent, fullTimePerGbMs, indexSizePercent, indexTimePerGbMs } = config.convert;
  return startConvert({
    database,
    usersOf: (digest, limit) => {
      const inCaches = caches.usersOf(digest).map((key) => ({ kind: 'image cache', key }));
      return [...inCaches, ...usersOf(digest, limit)].slice(0, limit);
    },
    budgets: {
      full: { sizePercent: fullSizePercent, msPerGb: fullTimePerGbMs },
      'index-only': { sizePercent: indexSizePercent, msPerGb: indexTimePerGbMs },
    },
    rootDir: config.paths.root,
    registry: {
      ...{ hostsDir, plainHttp, responseTimeoutMs, stallTimeoutMs, vault: vaultPathsOf(config) },
      ...(dockerConfig === undefined ? {} : { dockerConfig }),
    },
    logger,
    logLevel: config.log.level,
    ...{ concurrency, cpus, memoryBytes, stagingBytes, jobDeadlineMs, pollIntervalMs },
    ...(webhookListen === undefined || webhookSecretFile === undefined
      ? {}
      : { webhook: { address: webhookListen, secretFile: webhookSecretFile } }),
  });
}
