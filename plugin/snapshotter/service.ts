/** The snapshotter's public door: opens everything it owns, puts the disk and the database in agreement, serves, and ends in order. */
import path from 'node:path';
import { type Database, openDatabase } from '../../db/database.ts';
import { DependencyStore, type DigestUser } from '../../db/dependency-store.ts';
import { type EventRow, EventStore } from '../../db/event-store.ts';
import { type ResolutionRow, ResolutionStore } from '../../db/resolution-store.ts';
import { SnapshotStore } from '../../db/snapshot-store.ts';
import type { Digest } from '../base/digest.ts';
import { describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { BlobSource } from '../file/device-spec.ts';
import { blobKeyOf } from '../file/store/blob-key.ts';
import { blobsOfLayer } from './accelerated.ts';
import { BlobWatch } from './blob-watch.ts';
import { DecisionStore } from './decision-store.ts';
import { DeviceManager } from './device-manager.ts';
import { SnapshotDirectories } from './directories.ts';
import { foundationOf } from './foundation.ts';
import { Snapshots } from './gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import { serviceDefinitionOf } from './grpc-adapter.ts';
import { snapshotsService } from './grpc-service.ts';
import { ImageDecider, type ImageDecision } from './image-decider.ts';
import { IndexFiles } from './index-files.ts';
import { IndexLayers } from './index-layer.ts';
import { overlayOptions } from './overlay-support.ts';
import type { BlockDevices, ImageMounter, ImageResolver } from './ports.ts';
import { reconcileDirectories } from './reconcile.ts';
import { resolveRemoteLayer } from './remote-layer.ts';
import type { ServedLayer } from './served-layers.ts';
import { Snapshotter } from './snapshotter.ts';
import type { TwinPolicy } from './twin-policy.ts';
import { serveOnSocket } from './unix-server.ts';
import { UsageMeter } from './usage-meter.ts';
import { wallTimeUs } from './wall-time.ts';

export type { DigestUser } from '../../db/dependency-store.ts';
export type { BlockDevices, ImageMounter, ImageResolver } from './ports.ts';
export type { ServedLayer } from './served-layers.ts';
export type { TwinPolicy } from './twin-policy.ts';

/** Garbage and unused devices that an earlier attempt could not remove are looked for this often. */
const HOUSEKEEPING_MS = 60_000;

export interface SnapshotterOptions {
  /** Holds snapshots and mount points; containerd's plugin directory, so that kubelet accounts its file system. */
  rootDir: string;
  socketPath: string;
  /** Prepare, View and Mounts answer within this, in milliseconds. */
  prepareDeadlineMs: number;
  /** Manifest and layer checks of a pull may take this, in milliseconds; then the pull is ordinary. Less than the above. */
  resolveDeadlineMs: number;
  /** Added to every overlay mount, `volatile` for example. */
  mountOptions: readonly string[];
  /** Turn user-namespace labels into idmapped mounts. */
  remapIds: boolean;
  /** Serving ordinary images from their accelerated twins. */
  twins: TwinPolicy;
  /** How often registries are asked whether they still have what containers read, in milliseconds. */
  watchIntervalMs: number;
  /** How long an unused device stays open, in milliseconds. */
  closeDelayMs?: number;
  /** How long a device that was found open counts as open without another look, in milliseconds. */
  freshMs?: number;
}

export interface SnapshotterDependencies {
  devices: BlockDevices;
  mounter: ImageMounter;
  resolver: ImageResolver;
  logger: Logger;
}

/** A few mounts in a process of its own. */
const PROBE_DEADLINE_MS = 30_000;

/** A layer of which only labels are known gets less time: the manifest has had its chance. */
const LABELS_DEADLINE_MS = 5_000;

export interface SnapshotterService extends AsyncDisposable {
  /** Ends in order. With `unmount` images are taken down, used or not; else containers keep them. */
  stop(options: { unmount: boolean }): Promise<void>;
  readonly snapshotter: Snapshotter;
  readonly database: Database;
  /** How images were resolved, newest first. */
  resolutions(limit: number): ResolutionRow[];
  /** What happened, newest first; of one image or snapshot if named. */
  events(limit: number, subject?: string): EventRow[];
  /**
   * Snapshots (containers among them) that cannot be read without a manifest or blob: what deletes it must refuse while there are any.
   * Oldest first, at most `limit`.
   */
  usersOf(digest: string, limit: number): DigestUser[];
  /**
   * Decides how an image is served, as its first Prepare would, with `resolver` in place of the node's own, and remembers it for that
   * Prepare. Errors: ResourceExhausted, InvalidArgument (the reference).
   */
  plan(image: PlannedImage, resolver: ImageResolver): Promise<{ layers: readonly ServedLayer[]; reason: string | null }>;
  /** Every blob that committed snapshots of this chain are read from. */
  blobsOf(chainId: Digest): BlobSource[];
}

export interface PlannedImage {
  reference: string;
  manifestDigest: Digest;
  /** Its layers carry annotations; else it is an ordinary image, which may have a twin. */
  isAccelerated: boolean;
}

/** Blobs of all snapshots of a chain: several may stand on different parents. */
function blobsOfChain(chainId: Digest, parts: { snapshots: SnapshotStore; directories: SnapshotDirectories }): BlobSource[] {
  const blobs = new Map<string, BlobSource>();
  for (const row of parts.snapshots.byChainRef(chainId)) {
    if (row.kind !== 'committed' || row.brokenReason !== null) continue;
    const { accelerated } = foundationOf('look up', row.key, row, parts);
    for (const blob of accelerated?.layers.flatMap(blobsOfLayer) ?? []) blobs.set(blobKeyOf(blob), blob);
  }
  return [...blobs.values()];
}

/** Which manifest serves an ordinary image. */
function twinText({ base, artifact }: ImageDecision): string {
  return base === null ? '' : `, served from ${artifact}`;
}

/** Opens and serves. Errors: FailedPrecondition (`remapIds` on a kernel that cannot), those of openDatabase, SnapshotDirectories and serveOnSocket. The data plane may be away. */
export async function startSnapshotter(options: SnapshotterOptions, dependencies: SnapshotterDependencies): Promise<SnapshotterService> {
  const { devices: blockDevices, mounter, resolver, logger } = dependencies;
  const directories = new SnapshotDirectories(options.rootDir, logger);
  if (options.remapIds) {
    const probe = path.join(directories.root, 'idmap-probe');
    await mounter.checkIdmappedLowers(probe, AbortSignal.timeout(PROBE_DEADLINE_MS));
  }
  const database = openDatabase(path.join(options.rootDir, 'sidecar.db'));
  const snapshots = new SnapshotStore(database);
  const resolutions = new ResolutionStore(database);
  const events = new EventStore(database);
  const needs = new DependencyStore(database);
  const indexFiles = new IndexFiles(directories.root, needs);
  const devices = new DeviceManager({
    devices: blockDevices,
    mounter,
    directories,
    dependencies: needs,
    isUsed: (id) => snapshots.isDeviceUsed(id),
    logger,
    openDeadlineMs: options.prepareDeadlineMs,
    ...(options.closeDelayMs === undefined ? {} : { closeDelayMs: options.closeDelayMs }),
    ...(options.freshMs === undefined ? {} : { freshMs: options.freshMs }),
  });
  const decisions = new DecisionStore({ resolutions, snapshots, files: indexFiles });
  const deciding = {
    devices: blockDevices,
    decisions,
    twins: options.twins,
    logger,
    deadlineMs: options.resolveDeadlineMs,
    onDecided: (decision: ImageDecision) => {
      const { image, lazyLayers, totalLayers, reason } = decision;
      const isOrdinary = decision.base !== null && decision.artifact === null;
      const what = isOrdinary
        ? 'pulled as an ordinary image'
        : `${lazyLayers.length} of ${totalLayers} layers are lazy${twinText(decision)}`;
      const message = reason === null ? what : `${what}: ${reason}`;
      events.append({ atUs: wallTimeUs(), type: 'image-resolved', subject: image, message });
    },
  };
  const deciderFor = (source: ImageResolver): ImageDecider =>
    new ImageDecider({ ...deciding, resolver: source, indexLayers: new IndexLayers({ resolver: source, files: indexFiles }) });
  const decider = deciderFor(resolver);
  const usage = new UsageMeter();
  const snapshotter = new Snapshotter({
    database,
    snapshots,
    dependencies: needs,
    events,
    directories,
    indexFiles,
    devices,
    usage,
    logger,
    overlayOptions: [...(await overlayOptions()), ...options.mountOptions],
    remapIds: options.remapIds,
    prepareDeadlineMs: options.prepareDeadlineMs,
    resolveRemote: (pull, below) =>
      resolveRemoteLayer(pull, below, { decider, resolver, deadlineMs: LABELS_DEADLINE_MS, usesTwins: options.twins.isEnabled }),
  });
  try {
    await reconcileDirectories({ snapshots, events, directories, logger });
    const server = await serveOnSocket(options.socketPath, [
      { definition: serviceDefinitionOf(Snapshots), implementation: snapshotsService(snapshotter, logger) },
    ]);
    let housekeeping: Promise<void> | undefined;
    const keepHouse = (): void => {
      housekeeping ??= snapshotter
        .cleanup()
        .catch((error: unknown) => logger.warn({ reason: describeError(error) }, 'housekeeping failed; tried again in a minute'))
        .finally(() => {
          housekeeping = undefined;
        });
    };
    const watch = new BlobWatch({
      devices: blockDevices,
      resolver,
      dependencies: needs,
      events,
      logger,
      devicesInUse: () => snapshotter.devicesInUse(),
      intervalMs: options.watchIntervalMs,
    });
    const timer = setInterval(keepHouse, HOUSEKEEPING_MS);
    timer.unref();
    keepHouse();
    const stop = async ({ unmount }: { unmount: boolean }): Promise<void> => {
      clearInterval(timer);
      await server[Symbol.asyncDispose]();
      await watch[Symbol.asyncDispose]();
      if (unmount) await devices.unmountAll();
      await devices.stop();
      await housekeeping;
      await usage[Symbol.asyncDispose]();
      database[Symbol.dispose]();
    };
    return {
      stop,
      snapshotter,
      database,
      resolutions: (limit) => resolutions.list(limit),
      events: (limit, subject) => events.list(limit, subject),
      usersOf: (digest, limit) => needs.usersOf(digest, limit),
      plan: async ({ reference, manifestDigest, isAccelerated }, source) => {
        if (!isAccelerated && !options.twins.isEnabled) return { layers: [], reason: 'ordinary images are not served from twins' };
        const own = deciderFor(source);
        const decision = isAccelerated
          ? await own.decide(reference, manifestDigest, { index: 0, digest: manifestDigest })
          : await own.decideTwin(reference, manifestDigest, 0);
        return { layers: decision.lazyLayers, reason: decision.reason };
      },
      blobsOf: (chainId) => blobsOfChain(chainId, { snapshots, directories }),
      [Symbol.asyncDispose]: () => stop({ unmount: false }),
    };
  } catch (error) {
    database[Symbol.dispose]();
    throw error;
  }
}
