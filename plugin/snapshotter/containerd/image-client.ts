/**
 * What image caches ask of containerd beyond pulls: image records, lasting leases, snapshots, unpacking, containers, events. As in
 * containerd-client.ts, what is not there is undefined. Sources: containerd's public API; labels of its CRI plugin (pkg/cri/labels).
 */
import { EmptySchema } from '@bufbuild/protobuf/wkt';
import { isAppError } from '../../base/errors.ts';
import {
  Containers,
  ListContainerMessageSchema,
  ListContainersRequestSchema,
} from '../gen/containerd/services/containers/v1/containers_pb.ts';
import { ApplyRequestSchema, ApplyResponseSchema, Diff } from '../gen/containerd/services/diff/v1/diff_pb.ts';
import { EnvelopeSchema, Events, SubscribeRequestSchema } from '../gen/containerd/services/events/v1/events_pb.ts';
import {
  CreateImageRequestSchema,
  CreateImageResponseSchema,
  DeleteImageRequestSchema,
  type Image,
  Images,
  ListImagesRequestSchema,
  ListImagesResponseSchema,
  UpdateImageRequestSchema,
  UpdateImageResponseSchema,
} from '../gen/containerd/services/images/v1/images_pb.ts';
import {
  AddResourceRequestSchema,
  CreateRequestSchema,
  CreateResponseSchema,
  DeleteRequestSchema,
  DeleteResourceRequestSchema,
  Leases,
  ListRequestSchema,
  ListResourcesRequestSchema,
  ListResourcesResponseSchema,
  ListResponseSchema,
} from '../gen/containerd/services/leases/v1/leases_pb.ts';
import {
  CommitSnapshotRequestSchema,
  ListSnapshotsRequestSchema,
  ListSnapshotsResponseSchema,
  PrepareSnapshotRequestSchema,
  PrepareSnapshotResponseSchema,
  RemoveSnapshotRequestSchema,
  Snapshots,
  StatSnapshotRequestSchema,
  StatSnapshotResponseSchema,
  UsageRequestSchema,
  UsageResponseSchema,
  ViewSnapshotRequestSchema,
  ViewSnapshotResponseSchema,
} from '../gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import { Version, VersionResponseSchema } from '../gen/containerd/services/version/v1/version_pb.ts';
import type { Mount } from '../gen/containerd/types/mount_pb.ts';
import type { Scope } from './channel.ts';
import { ContainerdClient, unlessNotFound } from './containerd-client.ts';

/** Preparing an image reads its first blocks through the network; the snapshotter's own deadline is shorter. */
const PREPARE_DEADLINE_MS = 10 * 60_000;

/** A layer of 30 GiB unpacks at 100 MB/s in less. */
const APPLY_DEADLINE_MS = 60 * 60_000;

const METHODS = {
  listImages: { service: Images, name: 'list', input: ListImagesRequestSchema, output: ListImagesResponseSchema },
  createImage: { service: Images, name: 'create', input: CreateImageRequestSchema, output: CreateImageResponseSchema },
  updateImage: { service: Images, name: 'update', input: UpdateImageRequestSchema, output: UpdateImageResponseSchema },
  deleteImage: { service: Images, name: 'delete', input: DeleteImageRequestSchema, output: EmptySchema },
  createLease: { service: Leases, name: 'create', input: CreateRequestSchema, output: CreateResponseSchema },
  deleteLease: { service: Leases, name: 'delete', input: DeleteRequestSchema, output: EmptySchema },
  listLeases: { service: Leases, name: 'list', input: ListRequestSchema, output: ListResponseSchema },
  addResource: { service: Leases, name: 'addResource', input: AddResourceRequestSchema, output: EmptySchema },
  listResources: { service: Leases, name: 'listResources', input: ListResourcesRequestSchema, output: ListResourcesResponseSchema },
  deleteResource: { service: Leases, name: 'deleteResource', input: DeleteResourceRequestSchema, output: EmptySchema },
  prepare: { service: Snapshots, name: 'prepare', input: PrepareSnapshotRequestSchema, output: PrepareSnapshotResponseSchema },
  view: { service: Snapshots, name: 'view', input: ViewSnapshotRequestSchema, output: ViewSnapshotResponseSchema },
  commit: { service: Snapshots, name: 'commit', input: CommitSnapshotRequestSchema, output: EmptySchema },
  removeSnapshot: { service: Snapshots, name: 'remove', input: RemoveSnapshotRequestSchema, output: EmptySchema },
  listSnapshots: { service: Snapshots, name: 'list', input: ListSnapshotsRequestSchema, output: ListSnapshotsResponseSchema },
  stat: { service: Snapshots, name: 'stat', input: StatSnapshotRequestSchema, output: StatSnapshotResponseSchema },
  usage: { service: Snapshots, name: 'usage', input: UsageRequestSchema, output: UsageResponseSchema },
  apply: { service: Diff, name: 'apply', input: ApplyRequestSchema, output: ApplyResponseSchema },
  containers: { service: Containers, name: 'listStream', input: ListContainersRequestSchema, output: ListContainerMessageSchema },
  version: { service: Version, name: 'version', input: EmptySchema, output: VersionResponseSchema },
  subscribe: { service: Events, name: 'subscribe', input: SubscribeRequestSchema, output: EnvelopeSchema },
} as const;

/** A manifest, index or layer as containerd names it. */
export interface ContentDescriptor {
  digest: string;
  mediaType: string;
  sizeBytes: number;
}

export interface ImageRecord {
  name: string;
  labels: Readonly<Record<string, string>>;
  target: ContentDescriptor;
}

/** Something that a lease keeps: `content`, or `snapshots/` and a snapshotter's name. */
export interface LeaseResource {
  type: string;
  id: string;
}

/** A container as far as it uses an image. */
export interface ContainerImage {
  id: string;
  /** Name of the image record that it was made from. */
  image: string;
}

type Labels = Readonly<Record<string, string>>;

function recordOf({ name, labels, target }: Image): ImageRecord {
  const { digest = '', mediaType = '', size = 0n } = target ?? {};
  return { name, labels, target: { digest, mediaType, sizeBytes: Number(size) } };
}

/** A descriptor as it goes over the wire. */
function wireOf({ digest, mediaType, sizeBytes }: ContentDescriptor) {
  return { digest, mediaType, size: BigInt(sizeBytes) };
}

/** Errors as those of {@link ContainerdClient}. */
export class ImageClient extends ContainerdClient {
  async version(signal: AbortSignal): Promise<string> {
    return (await this.channel.call(METHODS.version, {}, {}, { op: 'ask for', subject: 'the version of containerd', signal })).version;
  }

  /** All image records of a namespace. */
  async images(namespace: string, signal: AbortSignal): Promise<ImageRecord[]> {
    const about = { op: 'list images of', subject: namespace, signal };
    const { images } = await this.channel.call(METHODS.listImages, {}, { namespace }, about);
    return images.map(recordOf);
  }

  /** Makes the record. False: there is one of the name, which stays as it is. */
  async createImage(namespace: string, { name, labels, target }: ImageRecord, signal: AbortSignal): Promise<boolean> {
    const image = { name, labels: { ...labels }, target: wireOf(target) };
    try {
      await this.channel.call(METHODS.createImage, { image }, { namespace }, { op: 'write image record', subject: name, signal });
      return true;
    } catch (error) {
      if (!isAppError(error, 'AlreadyExists')) throw error;
      return false;
    }
  }

  /** Makes the record, or gives the one that has the name these labels (added to its own) and this target. */
  async putImage(namespace: string, record: ImageRecord, signal: AbortSignal): Promise<void> {
    if (await this.createImage(namespace, record, signal)) return;
    const { name, labels, target } = record;
    const image = { name, labels: { ...labels }, target: wireOf(target) };
    const paths = ['target', ...Object.keys(labels).map((label) => `labels.${label}`)];
    const about = { op: 'write image record', subject: name, signal };
    await this.channel.call(METHODS.updateImage, { image, updateMask: { paths } }, { namespace }, about);
  }

  /**
   * Changes labels of a record; an empty value removes one. A record that is not there is no error. `target` is not changed, and must be
   * given: containerd 2.1 ends with a panic when an update has none.
   */
  async labelImage(namespace: string, { name, labels, target }: ImageRecord, signal: AbortSignal): Promise<void> {
    const paths = Object.keys(labels).map((label) => `labels.${label}`);
    const request = { image: { name, labels: { ...labels }, target: wireOf(target) }, updateMask: { paths } };
    await unlessNotFound(
      this.channel.call(METHODS.updateImage, request, { namespace }, { op: 'label image record', subject: name, signal }),
    );
  }

  /** With `sync` waits until what nothing keeps any more is collected: containerd may not do so by itself for long. */
  async deleteImage(namespace: string, name: string, sync: boolean, signal: AbortSignal): Promise<void> {
    const about = { op: 'delete image record', subject: name, signal, deadlineMs: PREPARE_DEADLINE_MS };
    await unlessNotFound(this.channel.call(METHODS.deleteImage, { name, sync }, { namespace }, about));
  }

  /** Takes a lease that lasts until {@link dropLease}; one that exists is no error. */
  async keepLease(namespace: string, id: string, labels: Labels, signal: AbortSignal): Promise<void> {
    const request = { id, labels: { ...labels } };
    try {
      await this.channel.call(METHODS.createLease, request, { namespace }, { op: 'create lease', subject: id, signal });
    } catch (error) {
      if (!isAppError(error, 'AlreadyExists')) throw error;
    }
  }

  /** Gives a lease back; with `sync` waits until what nothing else keeps is collected. One that is not there is no error. */
  async dropLease(namespace: string, id: string, sync: boolean, signal: AbortSignal): Promise<void> {
    const about = { op: 'delete lease', subject: id, signal, deadlineMs: PREPARE_DEADLINE_MS };
    await unlessNotFound(this.channel.call(METHODS.deleteLease, { id, sync }, { namespace }, about));
  }

  /** Ids of the leases that have this label with this value. */
  async leases(namespace: string, label: string, value: string, signal: AbortSignal): Promise<string[]> {
    const filters = [`labels."${label}"==${JSON.stringify(value)}`];
    const about = { op: 'list leases of', subject: namespace, signal };
    return (await this.channel.call(METHODS.listLeases, { filters }, { namespace }, about)).leases.map(({ id }) => id);
  }

  /** Makes a lease keep something that is there. */
  async addToLease(namespace: string, id: string, resource: LeaseResource, signal: AbortSignal): Promise<void> {
    const about = { op: 'add to lease', subject: `${id} ${resource.id}`, signal };
    await this.channel.call(METHODS.addResource, { id, resource }, { namespace }, about);
  }

  /** What a lease keeps; nothing when there is none. */
  async leaseResources(namespace: string, id: string, signal: AbortSignal): Promise<LeaseResource[]> {
    const about = { op: 'list resources of', subject: id, signal };
    const answer = await unlessNotFound(this.channel.call(METHODS.listResources, { id }, { namespace }, about));
    return (answer?.resources ?? []).map((resource) => ({ type: resource.type, id: resource.id }));
  }

  async removeFromLease(namespace: string, id: string, resource: LeaseResource, signal: AbortSignal): Promise<void> {
    const about = { op: 'remove from lease', subject: `${id} ${resource.id}`, signal };
    await unlessNotFound(this.channel.call(METHODS.deleteResource, { id, resource }, { namespace }, about));
  }

  /** Makes an active snapshot. Undefined: the snapshotter has the committed one that the labels ask for. */
  async prepareSnapshot(
    scope: Scope,
    snapshot: { snapshotter: string; key: string; parent: string; labels: Labels },
    signal: AbortSignal,
  ): Promise<Mount[] | undefined> {
    const about = { op: 'prepare snapshot', subject: snapshot.key, signal, deadlineMs: PREPARE_DEADLINE_MS };
    try {
      return (await this.channel.call(METHODS.prepare, { ...snapshot, labels: { ...snapshot.labels } }, scope, about)).mounts;
    } catch (error) {
      if (isAppError(error, 'AlreadyExists')) return undefined;
      throw error;
    }
  }

  /** Makes a view of a committed snapshot, and answers how it is mounted: the snapshotter opens its device. */
  async viewSnapshot(scope: Scope, snapshot: { snapshotter: string; key: string; parent: string }, signal: AbortSignal): Promise<Mount[]> {
    const about = { op: 'view snapshot', subject: snapshot.parent, signal, deadlineMs: PREPARE_DEADLINE_MS };
    return (await this.channel.call(METHODS.view, snapshot, scope, about)).mounts;
  }

  /** Commits an active snapshot; that the name is taken is no error. */
  async commitSnapshot(
    scope: Scope,
    snapshot: { snapshotter: string; key: string; name: string; labels: Labels },
    signal: AbortSignal,
  ): Promise<void> {
    const about = { op: 'commit snapshot', subject: snapshot.name, signal, deadlineMs: PREPARE_DEADLINE_MS };
    try {
      await this.channel.call(METHODS.commit, { ...snapshot, labels: { ...snapshot.labels } }, scope, about);
    } catch (error) {
      if (!isAppError(error, 'AlreadyExists')) throw error;
    }
  }

  async removeSnapshot(namespace: string, snapshotter: string, key: string, signal: AbortSignal): Promise<void> {
    const about = { op: 'remove snapshot', subject: key, signal };
    await unlessNotFound(this.channel.call(METHODS.removeSnapshot, { snapshotter, key }, { namespace }, about));
  }

  async hasSnapshot(namespace: string, snapshotter: string, key: string, signal: AbortSignal): Promise<boolean> {
    const about = { op: 'look up snapshot', subject: key, signal };
    return (await unlessNotFound(this.channel.call(METHODS.stat, { snapshotter, key }, { namespace }, about))) !== undefined;
  }

  /** Keys of the active snapshots in which somebody unpacks the layer of this chain. */
  async unpackingOf(namespace: string, snapshotter: string, chainId: string, signal: AbortSignal): Promise<string[]> {
    const filters = [`kind==active,labels."containerd.io/snapshot.ref"==${JSON.stringify(chainId)}`];
    const about = { op: 'list snapshots of', subject: chainId, signal };
    const found: string[] = [];
    for await (const { info } of this.channel.read(METHODS.listSnapshots, { snapshotter, filters }, { namespace }, about)) {
      found.push(...info.map(({ name }) => name));
    }
    return found;
  }

  /** Bytes that a snapshot itself takes; undefined when there is none. */
  async snapshotBytes(namespace: string, snapshotter: string, key: string, signal: AbortSignal): Promise<number | undefined> {
    const about = { op: 'measure snapshot', subject: key, signal };
    const usage = await unlessNotFound(this.channel.call(METHODS.usage, { snapshotter, key }, { namespace }, about));
    return usage === undefined ? undefined : Number(usage.size);
  }

  /** Unpacks a layer of the content store onto mounts; answers the digest of the uncompressed layer. */
  async apply(namespace: string, layer: ContentDescriptor, mounts: readonly Mount[], signal: AbortSignal): Promise<string> {
    const about = { op: 'unpack layer', subject: layer.digest, signal, deadlineMs: APPLY_DEADLINE_MS };
    const request = { diff: wireOf(layer), mounts: [...mounts] };
    return (await this.channel.call(METHODS.apply, request, { namespace }, about)).applied?.digest ?? '';
  }

  /** All containers of a namespace, ended ones that were not removed included; one a message, since each brings its whole specification. */
  async containers(namespace: string, signal: AbortSignal): Promise<ContainerImage[]> {
    const about = { op: 'list containers of', subject: namespace, signal };
    const found: ContainerImage[] = [];
    for await (const { container } of this.channel.read(METHODS.containers, {}, { namespace }, about)) {
      if (container !== undefined) found.push({ id: container.id, image: container.image });
    }
    return found;
  }

  /** Topics of events (`/images/delete`) in a namespace that match, as they happen; ends with an error when containerd goes. */
  async *events(namespace: string, topics: readonly string[], signal: AbortSignal): AsyncGenerator<string> {
    const filters = topics.map((topic) => `topic==${JSON.stringify(topic)},namespace==${JSON.stringify(namespace)}`);
    const about = { op: 'follow events of', subject: namespace, signal, deadlineMs: Number.POSITIVE_INFINITY };
    for await (const { topic } of this.channel.read(METHODS.subscribe, { filters }, { namespace }, about)) yield topic;
  }
}
