/** Joins the CRI part to the rest of the control plane. */
import { EventStore } from '../../db/event-store.ts';
import { systemClock } from '../base/clock.ts';
import type { Config } from '../base/config/config.ts';
import { describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { BlockdClient } from '../blockd/client.ts';
import type { CacheService } from '../cache/types.ts';
import { type CriService, type PodEvents, type Resolution, startCri } from '../cri/service.ts';
import { RegistryClient } from '../registry/client.ts';
import type { CredentialSource } from '../registry/credentials.ts';
import { dockerConfigSource } from '../registry/docker-config.ts';
import { vaultPathsOf } from '../registry/node-credentials.ts';
import { formatReference, formatRepository, parseReference, type Reference, type Repository } from '../registry/reference.ts';
import { CredentialVault } from '../registry/vault/vault.ts';
import type { SnapshotterService } from '../snapshotter/service.ts';
import { wallTimeUs } from '../snapshotter/wall-time.ts';

/** blockd answers from memory. */
const LEDGER_MS = 2_000;
/** Directory, data and presence map. */
const INODES_PER_BLOB = 3;
/** The newest resolutions, among which that of an image just pulled is. */
const RESOLUTIONS = 200;
/** Repositories whose too powerful tokens were told of. */
const MAX_TOLD = 1_000;

/** The stored credentials, which the resolver needs before the CRI part is there. Errors: FailedPrecondition (the key file is unfit). */
export function openVault(config: Config, logger: Logger): Promise<CredentialVault> {
  return CredentialVault.open(vaultPathsOf(config), systemClock, (error) =>
    logger.error({ reason: describeError(error) }, 'stored credentials are lost; pods bring theirs again when they pull'),
  );
}

/** Tells once of each repository whose token for reading allows more (R47). */
export function excessTeller(add: PodEvents['add']): (repository: Repository, actions: string) => void {
  const told = new Set<string>();
  return (repository, actions) => {
    const name = formatRepository(repository);
    if (told.has(name) || told.size >= MAX_TOLD) return;
    told.add(name);
    add('credential-can-write', name, `the credentials in use for it allow ${actions} too; pulls need no more than pull`);
  };
}

/** Events in the log and the database; one that cannot be stored, as on a full disk, stops nobody. */
export function podEvents(store: Pick<EventStore, 'append'>, logger: Logger): PodEvents {
  return {
    add(type, subject, message) {
      logger.info({ type, subject }, message);
      try {
        store.append({ atUs: wallTimeUs(), type, subject, message });
      } catch (error) {
        logger.error({ reason: describeError(error) }, 'an event could not be stored');
      }
    },
  };
}

export interface CriParts {
  readonly config: Config;
  readonly vault: CredentialVault;
  readonly snapshotter: SnapshotterService;
  readonly blockd: Pick<BlockdClient, 'stats'>;
  readonly caches: CacheService | undefined;
  readonly logger: Logger;
}

/** Starts the image service. Errors: those of startCri. */
export function startImageService({ config, vault, snapshotter, blockd, caches, logger }: CriParts): Promise<CriService> {
  const { add } = podEvents(new EventStore(snapshotter.database), logger);
  const { cri, credentials, registry } = config;
  const onExcess = excessTeller(add);
  let lastLedger: { bytes: number; files: number } | undefined;
  return startCri(
    {
      socketPath: cri.socket,
      containerdAddress: config.containerd.address,
      patienceMs: cri.containerdPatienceMs,
      lookupMs: cri.logicDeadlineMs,
      imageRights: cri.imageRights,
      rightsTtlMs: cri.rightsTtlMs,
      podSelector: cri.podSelector,
      podEphemeralGib: config.caches.podEphemeralSize,
      kubeconfig: cri.kubeconfig,
      manifestsDir: cri.manifestsDir,
      rulesFile: credentials.rulesFile,
      dockerConfig: registry.dockerConfig,
      secretRecheckMs: credentials.secretRecheckMs,
      rootDir: config.paths.root,
    },
    {
      database: snapshotter.database,
      vault,
      caches,
      events: { add },
      clock: systemClock,
      logger,
      async ledger() {
        try {
          const { store: ledger } = await blockd.stats(AbortSignal.timeout(LEDGER_MS));
          lastLedger = { bytes: ledger.bytes, files: ledger.blobs * INODES_PER_BLOB };
        } catch (error) {
          if (!isAppError(error)) throw error;
        }
        return lastLedger;
      },
      resolutionOf: (reference) => resolutionOf(snapshotter, reference),
      // A client of its own: what it learns with one pod's credentials is no other's to use.
      async askRegistry(reference, object, credential, signal) {
        const nodes = registry.dockerConfig === undefined ? undefined : dockerConfigSource(registry.dockerConfig);
        const source: CredentialSource = async (host, repository) => (host === reference.host ? credential : nodes?.(host, repository));
        await using client = new RegistryClient({
          hostsDirs: [registry.hostsDir],
          plainHttpHosts: registry.plainHttp,
          logger,
          headersTimeoutMs: registry.responseTimeoutMs,
          bodyIdleTimeoutMs: registry.stallTimeoutMs,
          credentials: source,
          onExcess,
        });
        return (await client.resolve(reference, object, { signal })).digest;
      },
    },
  );
}

/** Labels of other clients than kubelet name images as they like. */
function isNamed(image: string, wanted: string): boolean {
  try {
    return formatReference(parseReference(image)) === wanted;
  } catch (error) {
    if (isAppError(error, 'InvalidArgument')) return false;
    throw error;
  }
}

/** How an image was resolved last; undefined: not lately. */
export function resolutionOf(snapshotter: Pick<SnapshotterService, 'resolutions'>, reference: Reference): Resolution | undefined {
  const wanted = formatReference(reference);
  const row = snapshotter.resolutions(RESOLUTIONS).find(({ image }) => isNamed(image, wanted));
  if (row === undefined) return undefined;
  const lazy = `${row.lazyLayers} of ${row.totalLayers} layers are lazy`;
  const reason = row.reason === null ? lazy : row.lazyLayers === 0 ? row.reason : `${lazy}: ${row.reason}`;
  return { outcome: row.lazyLayers === 0 ? 'ordinary' : row.baseDigest === null ? 'lazy' : 'twin', reason };
}
