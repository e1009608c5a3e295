/** Joins the fetch scheduler to the registry client: a blob's repositories are asked in order until one has it. */
import type { Digest } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import type { RegistryClient } from '../registry/client.ts';
import type { FetchRange } from './fetch/fetch-types.ts';

/** A fetch function over the registry. A blob without a repository is NotFound. */
export function registryRanges(client: RegistryClient): FetchRange {
  return async (source, offsetBytes, lengthBytes, { signal, avoidMirrors, servedBy }) => {
    let failure: unknown = new AppError('NotFound', {
      op: 'fetch range of',
      subject: source.digest,
      what: 'no repository is known that has the blob',
    });
    for (const repository of source.repositories) {
      try {
        const { bytes, mirror } = await client.fetchRange(
          repository,
          source.digest as Digest,
          source.sizeBytes,
          offsetBytes,
          lengthBytes,
          avoidMirrors === undefined ? { signal } : { signal, avoidMirrors },
        );
        servedBy(mirror);
        return bytes;
      } catch (error) {
        signal.throwIfAborted();
        // A repository that waits may come back; one that refuses will not, so its answer counts only if nothing better is known.
        if (!isAppError(failure) || failure.code === 'NotFound' || failure.code === 'PermissionDenied') failure = error;
      }
    }
    throw failure;
  };
}
