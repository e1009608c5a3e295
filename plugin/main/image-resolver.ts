/** The registry client as the snapshotter wants it. */
import type { Config } from '../base/config/config.ts';
import { type Digest, parseDigest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { RegistryClient } from '../registry/client.ts';
import { nodeCredentials } from '../registry/node-credentials.ts';
import { parseReference, referenceObject } from '../registry/reference.ts';
import type { OriginSources } from '../registry/vault/entry.ts';
import type { ImageResolver } from '../snapshotter/service.ts';

export interface ResolverParts {
  readonly config: Config;
  readonly logger: Logger;
  readonly vault: OriginSources;
}

/** A client of its own, as the configuration says. */
export function createImageResolver({ config, logger, vault }: ResolverParts): ImageResolver {
  const { hostsDir, plainHttp, responseTimeoutMs, stallTimeoutMs } = config.registry;
  const client = new RegistryClient({
    hostsDirs: [hostsDir],
    plainHttpHosts: plainHttp,
    logger,
    headersTimeoutMs: responseTimeoutMs,
    bodyIdleTimeoutMs: stallTimeoutMs,
    credentials: nodeCredentials(config, vault, logger),
  });
  return imageResolverOf(client);
}

export function imageResolverOf(client: RegistryClient): ImageResolver {
  return {
    parseReference,
    async resolveManifest(text, digest, signal) {
      const reference = parseReference(text);
      const { descriptor, bytes } = await client.getManifest(reference, digest ?? referenceObject(reference), { signal });
      return { manifestBytes: bytes, digest: descriptor.digest, mediaType: descriptor.mediaType };
    },
    async listReferrers(repository, digest, signal) {
      const listed = await client.listReferrers(repository, parseDigest(digest, 'referrers'), { signal });
      return listed.flatMap(({ digest: referrer, artifactType }) =>
        artifactType === undefined ? [] : [{ digest: referrer, artifactType }],
      );
    },
    async fetchBlob(repository, blob, maxBytes, signal) {
      if (blob.sizeBytes > maxBytes) {
        throw new AppError('InvalidArgument', {
          op: 'fetch blob',
          subject: blob.digest,
          what: `${blob.sizeBytes} bytes, the limit is ${maxBytes}`,
        });
      }
      return client.getSmallBlob(repository, { digest: blob.digest as Digest, sizeBytes: blob.sizeBytes }, { signal, maxBytes });
    },
    blobSize: (repository, digest, signal) => client.statBlob(repository, parseDigest(digest, 'blob'), { signal }),
  };
}
