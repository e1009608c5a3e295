/** Joins the fetch scheduler to the registry client: a blob's repositories are asked in order until one has it. */

import type { Config } from '../base/config/config.ts';
import type { Digest } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { RegistryClient } from '../registry/client.ts';
import { askedWaitMs } from '../registry/http-errors.ts';
import { nodeCredentials, vaultPathsOf } from '../registry/node-credentials.ts';
import { sealedSources } from '../registry/vault/sealed-source.ts';
import type { FetchRange } from './fetch/fetch-types.ts';

/** {@link registryRanges} with a client of its own, as the configuration says. */
export function createRegistryRanges(config: Config, logger: Logger): FetchRange {
  const { hostsDir, plainHttp, responseTimeoutMs, stallTimeoutMs } = config.registry;
  const client = new RegistryClient({
    hostsDirs: [hostsDir],
    plainHttpHosts: plainHttp,
    logger,
    headersTimeoutMs: responseTimeoutMs,
    bodyIdleTimeoutMs: stallTimeoutMs,
    credentials: nodeCredentials(config, sealedSources(vaultPathsOf(config)), logger),
  });
  return registryRanges(client);
}

/** A fetch function over the registry. A blob without a repository is NotFound. */
export function registryRanges(client: RegistryClient): FetchRange {
  return async (source, offsetBytes, lengthBytes, { signal, avoidMirrors, onAsked, servedBy, onProgress, target }) => {
    let failure: unknown = new AppError('NotFound', {
      op: 'fetch range of',
      subject: source.digest,
      what: 'no repository is known that has the blob',
    });
    for (const repository of source.repositories) {
      try {
        const { bytes, mirror } = await client.fetchRange(repository, source.digest as Digest, source.sizeBytes, offsetBytes, lengthBytes, {
          signal,
          onAsked,
          onProgress,
          target,
          ...(avoidMirrors === undefined ? {} : { avoidMirrors }),
        });
        servedBy(mirror);
        return bytes;
      } catch (error) {
        signal.throwIfAborted();
        if (isBetterNews(error, failure)) failure = error;
      }
    }
    throw failure;
  };
}

/**
 * A repository that waits may come back; one that refuses will not, so its answer counts only if nothing better is known. Of several that
 * wait, the one that asks for the shortest wait counts.
 */
function isBetterNews(error: unknown, known: unknown): boolean {
  if (!isAppError(known) || known.code === 'NotFound' || known.code === 'PermissionDenied') return true;
  return isAppError(error, 'Unavailable') && askedWaitMs(error) < askedWaitMs(known);
}
