/**
 * Cached images as containerd and the data plane hold them: the port of plugin/cache/image-store.ts. The hostile work (documents of
 * registries, unpacking) runs in a process of its own; this one pins blobs, has them filled and checked, and keeps the image records.
 * Ours.
 *
 *   prepare: intent on disk ─► plan ─► process: documents and snapshots ─► pins ─► [usable] ─► every blob whole ─► records ─► read back
 *   release: intent on disk ─► pins ─► records ─► lease (containerd collects) ─► [last container ends] ─► gone
 */
import path from 'node:path';
import { sha256 } from '../../base/digest.ts';
import { AppError, describeError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatBytes } from '../../base/units.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import { type CgroupLimits, CgroupParent, cgroupNameOf, findHierarchies } from '../../kernel/cgroup.ts';
import type { RegistryClient } from '../../registry/client.ts';
import { formatReference, formatRepository, parseReference } from '../../registry/reference.ts';
import { ImageClient } from '../../snapshotter/containerd/image-client.ts';
import { fetchImageManifest } from '../../snapshotter/manifest.ts';
import type { ImageResolver } from '../../snapshotter/service.ts';
import type { ImageAccess, ImageStore, PreparedImage, PrepareOptions, ResolvedImage } from '../image-store.ts';
import { type Access, type FilledBlob, fillBlobs, ImageProgress, isPlain, tooLarge, withAccess } from './blob-fill.ts';
import { makeImage } from './image-process.ts';
import { recordsOf, usedBy } from './image-records.ts';
import { heldBy, imageKeyOf, OwnedCaches, type OwnedImage } from './owned.ts';
import type { BlobKeeper, ServedImages } from './ports.ts';
import type { Made, Question } from './protocol.ts';
import { isFile, missingOf } from './read-back.ts';
import { RecordKeeper, resourcesOf } from './record-keeper.ts';
import { openRegistry, type RegistrySettings } from './registry.ts';
import { isAccelerated, resolveImage } from './resolve.ts';
import { readStartOf } from './start/start-process.ts';

/** Should we never come back, containerd drops what was half done. */
const BUILD_LEASE_MS = 24 * 60 * 60_000;
const LABEL_EXPIRE = 'containerd.io/gc.expire';
/** Which product's, by its root directory: two may use one containerd. */
const LABEL_INSTANCE = 'io.overlaybd-sidecar.instance';

export interface ImageStoreOptions {
  /** The product's root; what caches own is written below. */
  rootDir: string;
  containerdAddress: string;
  namespace: string;
  /** The name under which containerd knows the product's snapshotter. */
  snapshotter: string;
  registry: RegistrySettings;
  /** Of the process that makes one image. */
  limits: CgroupLimits;
  /** Milliseconds for one image. */
  creationDeadlineMs: number;
  logLevel: string;
}

export interface ImageStoreParts {
  blobs: BlobKeeper;
  images: ServedImages;
  /** The registry client as the snapshotter wants it. */
  resolverOf(client: RegistryClient): ImageResolver;
  logger: Logger;
}

/** Opens what an earlier process left, clears away what it left half made, and keeps records from now on. Errors: system errors of the root. */
export async function openImageStore(options: ImageStoreOptions, parts: ImageStoreParts): Promise<ContainerdImageStore> {
  const owned = await OwnedCaches.open(path.join(options.rootDir, 'image-caches'), parts.logger);
  const cgroups = new CgroupParent(cgroupNameOf('cache', options.rootDir), await findHierarchies());
  try {
    await cgroups.reap();
  } catch (error) {
    parts.logger.warn({ reason: describeError(error) }, 'cgroups of an earlier process cannot be removed');
  }
  return new ContainerdImageStore(options, { ...parts, owned, cgroups });
}

export class ContainerdImageStore implements ImageStore {
  private readonly options: ImageStoreOptions;
  private readonly parts: ImageStoreParts & { owned: OwnedCaches; cgroups: CgroupParent };
  private readonly records: RecordKeeper;
  private readonly instance: string;
  /** Images being made, by cache. */
  private readonly making = new Map<string, number>();

  constructor(options: ImageStoreOptions, parts: ImageStoreParts & { owned: OwnedCaches; cgroups: CgroupParent }) {
    this.options = options;
    this.parts = parts;
    this.instance = sha256(options.rootDir).slice(7, 15);
    this.records = new RecordKeeper({
      containerdAddress: options.containerdAddress,
      namespace: options.namespace,
      snapshotter: options.snapshotter,
      owned: parts.owned,
      leaseOf: (cacheId) => this.leaseOf(cacheId),
      leases: (client, signal) => client.leases(options.namespace, LABEL_INSTANCE, this.instance, signal),
      log: parts.logger,
    });
  }

  async resolve(reference: string, access: ImageAccess, signal: AbortSignal): Promise<ResolvedImage> {
    const { images, resolverOf, logger } = this.parts;
    await using registry = openRegistry(this.options.registry, access, logger);
    const resolver = resolverOf(registry);
    return await withAccess(this.parts, parseReference(reference), access, signal, () =>
      resolveImage(reference, access, { resolver, images }, signal),
    );
  }

  async prepare(cacheId: string, image: ResolvedImage, options: PrepareOptions): Promise<PreparedImage> {
    const { reservationBytes, access, signal } = options;
    if (image.sizeBytes > reservationBytes) throw tooLarge(image.reference, image.sizeBytes, reservationBytes);
    this.making.set(cacheId, (this.making.get(cacheId) ?? 0) + 1);
    try {
      await this.parts.owned.change(cacheId, (cache) => ({ ...cache, making: true }));
      const repository = parseReference(image.reference);
      return await withAccess(this.parts, repository, access, signal, (granted) => this.make(cacheId, image, options, granted));
    } finally {
      this.end(cacheId);
    }
  }

  private end(cacheId: string): void {
    const count = (this.making.get(cacheId) ?? 1) - 1;
    if (count === 0) this.making.delete(cacheId);
    else this.making.set(cacheId, count);
  }

  private async make(cacheId: string, image: ResolvedImage, options: PrepareOptions, access: Access): Promise<PreparedImage> {
    const { signal, reservationBytes, until } = options;
    const { blobs, logger } = this.parts;
    const progress = new ImageProgress(image.sizeBytes, options.onProgress);
    const made = await this.inContainerd(cacheId, image, options, { progress, access });
    const owned = this.ownedOf(image, made);
    const held = heldBy(owned, made);
    const neededBytes = held.reduce((sum, { bytes }) => sum + bytes, 0);
    if (neededBytes > reservationBytes) throw tooLarge(image.reference, neededBytes, reservationBytes);
    if (owned.blobs.length + made.unpacked.length === 0) {
      throw new AppError('FailedPrecondition', {
        op: 'cache image',
        subject: image.reference,
        what: 'its snapshots hold nothing that can be read',
      });
    }
    const owner = this.ownerOf(cacheId, image);
    await blobs.pin(owner, owned.blobs, signal);
    for (const { digest, sizeBytes } of owned.blobs.filter(isFile)) progress.set(digest, sizeBytes);
    const remote = owned.blobs.filter((blob) => !isFile(blob));
    const reused = await this.reusedOf(cacheId, image, remote, options);
    const onBytes = (digest: string, bytes: number): void => progress.set(digest, bytes);
    const fill = (some: readonly BlobSource[]): Promise<FilledBlob[]> =>
      fillBlobs(blobs, { owner, blobs: some, checkedAgain: reused, access, signal, onBytes }, logger);
    const filled = await fill(until === 'usable' ? remote.filter(({ digest }) => reused.has(digest)) : remote);
    const fetchedBytes = filled.reduce((sum, one) => sum + one.fetchedBytes, made.fetchedBytes);
    if (until === 'usable' && remote.length > 0) await this.readStart(cacheId, owned, options);
    // Known before its records are made: whatever happens then, they are kept or taken away with it.
    await this.parts.owned.change(cacheId, (cache) => ({
      ...cache,
      making: (this.making.get(cacheId) ?? 0) > 1,
      ready: [...cache.ready.filter((other) => imageKeyOf(other) !== imageKeyOf(owned)), owned],
      leaving: cache.leaving.filter((other) => imageKeyOf(other) !== imageKeyOf(owned)),
    }));
    await this.records.make(owned, signal);
    await this.readBack(cacheId, owned, until, signal);
    await this.dropBuild(cacheId, image, signal);
    progress.finish();
    return { fetchedBytes, held };
  }

  /** Documents and snapshots, by a process of its own. */
  private async inContainerd(
    cacheId: string,
    image: ResolvedImage,
    options: PrepareOptions,
    { progress, access }: { progress: ImageProgress; access: Access },
  ): Promise<Made> {
    const { signal, workerName, reservationBytes, onNote } = options;
    const { containerdAddress, namespace, snapshotter, registry, limits, creationDeadlineMs, logLevel } = this.options;
    const { blobs, cgroups, logger } = this.parts;
    const lease = this.leaseOf(cacheId);
    const build = this.buildOf(cacheId, image);
    using client = new ImageClient(containerdAddress);
    await client.keepLease(namespace, lease.id, lease.labels, signal);
    const expire = new Date(Date.now() + BUILD_LEASE_MS).toISOString();
    await client.keepLease(namespace, build.lease, { ...lease.labels, [LABEL_EXPIRE]: expire }, signal);
    // Decided with the cache's own credentials; the first Prepare takes what is remembered.
    if (!isPlain(options.access)) await this.planAgain(image, options.access, signal);
    const staged = new Map<string, BlobSource>();
    const { host, repository } = parseReference(image.reference);
    const work = {
      ...{ registry, access: options.access, containerdAddress, namespace, snapshotter, lease: lease.id, buildLease: build.lease },
      ...{ reference: image.reference, digest: image.digest, platformDigest: image.platformDigest, reservationBytes, logLevel },
    };
    const fetchLayer = async ({ digest, sizeBytes }: Question, onMore: () => void): Promise<FilledBlob> => {
      const blob: BlobSource = { digest, sizeBytes, repositories: [{ host, repository }] };
      staged.set(digest, blob);
      const stagedBytes = bytesOf([...staged.values()]);
      if (stagedBytes > reservationBytes) throw tooLarge(image.reference, stagedBytes, reservationBytes);
      await blobs.pin(build.owner, [...staged.values()], signal);
      // Half of the work is fetching, the other unpacking.
      let hereBytes = 0;
      const onBytes = (_: string, bytes: number): void => {
        if (bytes > hereBytes || bytes >= sizeBytes) onMore();
        hereBytes = bytes;
        progress.set(`layer ${digest}`, Math.floor(bytes / 2));
      };
      const request = { owner: build.owner, blobs: [blob], checkedAgain: new Set<string>(), access, signal, onBytes };
      const [filled] = await fillBlobs(blobs, request, logger);
      return filled!;
    };
    let hereCount = 0;
    const onLayer = ({ digest, sizeBytes, how }: { digest: string; sizeBytes: number; how: string }): void => {
      if (how !== 'lazy') progress.set(`layer ${digest}`, sizeBytes);
      if (how === 'here') hereCount += 1;
    };
    const name = `${workerName}-${shortOf(image)}`;
    const attempt = { name, limits, deadlineMs: creationDeadlineMs, signal, work, fetchLayer, onLayer };
    const made = await makeImage(attempt, { cgroups, logger });
    if (hereCount > 0) {
      const message = `${hereCount} of ${image.layers.length} snapshots of ${image.reference} are here already`;
      onNote({ type: 'Normal', reason: 'Reused', message });
    }
    return made;
  }

  private async planAgain(image: ResolvedImage, access: ImageAccess, signal: AbortSignal): Promise<void> {
    const { images, resolverOf, logger } = this.parts;
    await using registry = openRegistry(this.options.registry, access, logger);
    const manifest = await fetchImageManifest(resolverOf(registry), image.reference, image.platformDigest, signal);
    const { reference, platformDigest } = image;
    await images.plan({ reference, manifestDigest: platformDigest, isAccelerated: isAccelerated(manifest) }, access);
  }

  /** Says which blobs are here already; answers those of them that are to be checked anew. */
  private async reusedOf(
    cacheId: string,
    image: ResolvedImage,
    blobs: readonly BlobSource[],
    { trustsReused, onNote, signal }: PrepareOptions,
  ): Promise<ReadonlySet<string>> {
    const digests = blobs.map(({ digest }) => digest);
    // What this cache had before was checked for it.
    const isOwn = this.parts.owned.get(cacheId)?.ready.some((one) => imageKeyOf(one) === imageKeyOf(image)) === true;
    const here = await this.parts.blobs.wholeOf(digests, signal);
    if (here.length === 0 || isOwn) return new Set();
    const how = trustsReused ? 'taken as they were checked when they came' : 'read from the disk and checked anew';
    const message = `${here.length} of ${blobs.length} blobs of ${image.reference} are here already; ${how}`;
    onNote({ type: 'Normal', reason: 'Reused', message });
    return new Set(trustsReused ? [] : here);
  }

  /** What a start reads is read now. */
  private async readStart(cacheId: string, image: OwnedImage, { signal, workerName, onNote }: PrepareOptions): Promise<void> {
    const { containerdAddress, namespace, snapshotter, limits, creationDeadlineMs: deadlineMs } = this.options;
    using client = new ImageClient(containerdAddress);
    const { lease } = this.buildOf(cacheId, image);
    const name = `${workerName}-${shortOf(image)}`;
    const read = await readStartOf({ name, client, namespace, snapshotter, lease, image, limits, deadlineMs, signal }, this.parts);
    const what = `${read.files} files (${formatBytes(read.bytes)}) that a start needs and ${read.entries} inodes are here`;
    const rest = read.isComplete ? '' : '; there is more than is read beforehand, and it comes when it is wanted';
    onNote({ type: 'Normal', reason: 'StartRead', message: what + rest });
  }

  /** Looks whether everything that was made is there, by asking who keeps it. Throws DataLoss naming what is not. */
  private async readBack(cacheId: string, image: OwnedImage, until: PrepareOptions['until'], signal: AbortSignal): Promise<void> {
    const missing = await this.missingOf(cacheId, image, until, signal);
    if (missing === undefined) return;
    throw new AppError('DataLoss', {
      op: 'read back image',
      subject: image.reference,
      what: `${missing} is not there, although it was made`,
    });
  }

  private async missingOf(
    cacheId: string,
    image: OwnedImage,
    until: PrepareOptions['until'],
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const { containerdAddress, namespace, snapshotter } = this.options;
    using client = new ImageClient(containerdAddress);
    const pinned = await this.parts.blobs.pinned(this.ownerOf(cacheId, image), signal);
    return await missingOf(image, { pinned, client, namespace, snapshotter, mayBePartial: until === 'usable' }, signal);
  }

  async verify(cacheId: string, image: ResolvedImage, signal: AbortSignal): Promise<boolean> {
    const owned = this.parts.owned.get(cacheId)?.ready.find((one) => imageKeyOf(one) === imageKeyOf(image));
    if (owned === undefined) return false;
    // Records that somebody removed come back by themselves; it must not count when this look is quicker.
    await this.records.reconcile(signal);
    const missing = await this.missingOf(cacheId, owned, 'whole', signal);
    if (missing !== undefined) this.parts.logger.warn({ cacheId, image: image.reference, missing }, 'a cached image is not whole any more');
    return missing === undefined;
  }

  async release(cacheId: string, keep: readonly ResolvedImage[], signal: AbortSignal): Promise<void> {
    const { blobs } = this.parts;
    const { namespace, snapshotter, containerdAddress } = this.options;
    const kept = new Set(keep.map(imageKeyOf));
    const isKept = (image: OwnedImage): boolean => kept.has(imageKeyOf(image));
    const cache = await this.parts.owned.change(cacheId, (now) => ({
      ...now,
      making: now.making && this.making.has(cacheId),
      ready: now.ready.filter(isKept),
      leaving: [...now.leaving, ...now.ready.filter((image) => !isKept(image))],
    }));
    const owners = new Set(cache.ready.map((image) => this.ownerOf(cacheId, image)));
    for (const owner of await blobs.pinOwners(signal)) {
      if (owner.startsWith(`${cacheId}.`) && !owners.has(owner)) await blobs.unpin(owner, signal);
    }
    await this.records.reconcile(signal);
    using client = new ImageClient(containerdAddress);
    const own = this.leaseOf(cacheId).id;
    const leases = await client.leases(namespace, LABEL_INSTANCE, this.instance, signal);
    for (const lease of leases) if (lease.startsWith(`${own}.`)) await client.dropLease(namespace, lease, false, signal);
    if (cache.ready.length === 0) {
      await client.dropLease(namespace, own, true, signal);
      return;
    }
    // All that it keeps beyond what the cache has: also what an attempt left that failed, and what a release did that was cut short.
    const needed = new Set(cache.ready.flatMap((image) => resourcesOf(image, snapshotter).map(({ id }) => id)));
    const gone = (await client.leaseResources(namespace, own, signal)).filter(({ id }) => !needed.has(id));
    for (const resource of gone) await client.removeFromLease(namespace, own, resource, signal);
  }

  async list(signal: AbortSignal): Promise<readonly string[]> {
    const { containerdAddress, namespace } = this.options;
    using client = new ImageClient(containerdAddress);
    const leases = await client.leases(namespace, LABEL_INSTANCE, this.instance, signal);
    const owners = await this.parts.blobs.pinOwners(signal);
    const owned = this.parts.owned.all().filter(({ making, ready }) => making || ready.length > 0);
    const leaseStart = this.leaseOf('').id;
    const ids = [
      ...owned.map(({ cacheId }) => cacheId),
      ...owners.map((owner) => owner.split('.')[0]!),
      ...leases.map((lease) => lease.slice(leaseStart.length).split('.')[0]!),
    ];
    return [...new Set(ids)];
  }

  async inUse(cacheIds: readonly string[], signal: AbortSignal): Promise<ReadonlySet<string>> {
    const { containerdAddress, namespace } = this.options;
    using client = new ImageClient(containerdAddress);
    const used = usedBy(await client.containers(namespace, signal), await recordsOf(client, namespace, signal));
    const isUsed = (cacheId: string): boolean =>
      this.parts.owned.get(cacheId)?.ready.some(({ names, target }) => [target.digest, ...names].some((name) => used.has(name))) === true;
    return new Set(cacheIds.filter(isUsed));
  }

  /** Ends the keeping of records; what is being made is ended by its own signal. */
  async stop(): Promise<void> {
    await this.records.stop();
  }

  private ownedOf(image: ResolvedImage, made: Made): OwnedImage {
    const reference = parseReference(image.reference);
    // As CRI names an image: what the pod wrote, repository and digest, image id.
    const names = [formatReference(reference), `${formatRepository(reference)}@${made.target.digest}`, made.configDigest];
    return {
      reference: image.reference,
      names: [...new Set(names)],
      target: made.target,
      platformDigest: image.platformDigest,
      configDigest: made.configDigest,
      chainId: made.chainId,
      blobs: [...this.parts.images.blobsOf(made.chainId)],
    };
  }

  /** What was half made is done: containerd and the data plane may forget what only the work needed. */
  private async dropBuild(cacheId: string, image: ResolvedImage, signal: AbortSignal): Promise<void> {
    const { containerdAddress, namespace } = this.options;
    const { owner, lease } = this.buildOf(cacheId, image);
    using client = new ImageClient(containerdAddress);
    await client.dropLease(namespace, lease, false, signal);
    await this.parts.blobs.unpin(owner, signal);
  }

  private leaseOf(cacheId: string): { id: string; labels: Readonly<Record<string, string>> } {
    return { id: `overlaybd-sidecar.${this.instance}.${cacheId}`, labels: { [LABEL_INSTANCE]: this.instance } };
  }

  /** Who pins the blobs of an image of a cache. */
  private ownerOf(cacheId: string, image: { reference: string; platformDigest: string }): string {
    return `${cacheId}.${shortOf(image)}`;
  }

  /** Names of what is needed while an image is made: pins of layers to unpack, and a lease. */
  private buildOf(cacheId: string, image: { reference: string; platformDigest: string }): { owner: string; lease: string } {
    return { owner: `${this.ownerOf(cacheId, image)}.layers`, lease: `${this.leaseOf(cacheId).id}.${shortOf(image)}` };
  }
}

function bytesOf(blobs: readonly BlobSource[]): number {
  return blobs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

/** Tells images of a cache apart in names. */
function shortOf(image: { reference: string; platformDigest: string }): string {
  return sha256(imageKeyOf(image)).slice('sha256:'.length).slice(0, 12);
}
