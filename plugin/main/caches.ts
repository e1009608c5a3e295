/** Image caches as the configuration wants them: over containerd, the data plane and the snapshotter. */
import path from 'node:path';
import type { Config } from '../base/config/config.ts';
import type { Logger } from '../base/log.ts';
import type { BlockdClient } from '../blockd/client.ts';
import { type ContainerdImageStore, openImageStore } from '../cache/create/image-store.ts';
import type { BlobKeeper } from '../cache/create/ports.ts';
import { canonicalHost, openRegistry } from '../cache/create/registry.ts';
import type { ImageAccess } from '../cache/image-store.ts';
import { type CacheService, startCaches } from '../cache/service.ts';
import { vaultPathsOf } from '../registry/node-credentials.ts';
import { readOrMakeKey } from '../registry/vault/sealing.ts';
import type { SnapshotterService } from '../snapshotter/service.ts';
import { imageResolverOf } from './image-resolver.ts';

/** The data plane as caches see it. */
function blobKeeper(blockd: BlockdClient): BlobKeeper {
  return {
    pin: (...call) => blockd.pin(...call),
    fillPinned: (...call) => blockd.fillPinned(...call),
    filledBytes: (...call) => blockd.filledBytes(...call),
    pinned: (...call) => blockd.pinned(...call),
    pinOwners: (...call) => blockd.pinOwners(...call),
    unpin: (...call) => blockd.unpin(...call),
    wholeOf: (...call) => blockd.wholeOf(...call),
    grant: (owner, repositories, { credentials, plainHttp, insecure }: ImageAccess, signal) =>
      blockd.grant(
        owner,
        {
          repositories: [...repositories],
          credentials: credentials.map(({ server, userName, password }) => ({ host: canonicalHost(server), username: userName, password })),
          plainHttp: [...plainHttp],
          insecure: [...insecure],
        },
        signal,
      ),
  };
}

/** The world of images as caches need it. */
export function openImages(
  config: Config,
  snapshotter: SnapshotterService,
  blockd: BlockdClient,
  logger: Logger,
): Promise<ContainerdImageStore> {
  const { cpus, memoryBytes, namespace, snapshotter: name, creationDeadlineMs } = config.caches;
  const registry = { registry: config.registry, vault: vaultPathsOf(config) };
  return openImageStore(
    {
      rootDir: config.paths.root,
      containerdAddress: config.containerd.address,
      namespace,
      snapshotter: name,
      registry,
      limits: { cpus, memoryBytes },
      creationDeadlineMs,
      logLevel: config.log.level,
    },
    {
      blobs: blobKeeper(blockd),
      images: {
        plan: async (image, access) => {
          await using client = openRegistry(registry, access, logger);
          return await snapshotter.plan(image, imageResolverOf(client));
        },
        blobsOf: (chainId) => snapshotter.blobsOf(chainId),
      },
      resolverOf: imageResolverOf,
      logger,
    },
  );
}

/** See {@link startCaches}. Ends with its `stop`. */
export async function startImageCaches(
  config: Config,
  snapshotter: SnapshotterService,
  blockd: BlockdClient,
  logger: Logger,
): Promise<CacheService> {
  const store = await openImages(config, snapshotter, blockd, logger);
  const { root } = config.paths;
  const { maxCount, maxAutomaticCount, budgetBytes, defaultSize, podEphemeralSize, unmatchedDays, matchedDays } = config.caches;
  const { concurrency, creationDeadlineMs, verifyIntervalMs } = config.caches;
  const service = startCaches({
    database: snapshotter.database,
    store,
    key: await readOrMakeKey(config.credentials.keyFile ?? path.join(root, 'credentials.key')),
    logger,
    ...{ maxCount, maxAutomaticCount, budgetBytes, defaultSize, podEphemeralSize, unmatchedDays, matchedDays },
    ...{ concurrency, creationDeadlineMs, verifyIntervalMs },
  });
  const stop = service.stop.bind(service);
  return Object.assign(service, {
    stop: async () => {
      await stop();
      await store.stop();
    },
  });
}
