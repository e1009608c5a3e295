/**
 * Puts one image into containerd as a pull would, except that lazy layers stay where they are: documents into the content store, then one
 * snapshot a layer through containerd's API. Runs in the process of the work. Source: containerd's unpacker (labels and order).
 *
 *   layer: snapshot there? ─► Prepare says AlreadyExists? ─► else content (fetched once with others who pull it), Apply, Commit
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MAX_LAYERS, MAX_MANIFEST_BYTES } from '../../base/limits.ts';
import { parseImageConfig } from '../../image/oci/config.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { parseManifest } from '../../image/oci/manifest.ts';
import type { RegistryClient } from '../../registry/client.ts';
import { formatReference, parseReference, type Reference } from '../../registry/reference.ts';
import { chainIdOf } from '../../snapshotter/chain-id.ts';
import type { Scope } from '../../snapshotter/containerd/channel.ts';
import { pullRefOf, type Sharing } from '../../snapshotter/containerd/content-write.ts';
import type { ContentDescriptor, ImageClient } from '../../snapshotter/containerd/image-client.ts';
import type { Made, Work } from './protocol.ts';

/** How often an unpacking layer is measured: at 500 MB/s it oversteps its bound by as many megabytes at most. */
const MEASURE_MS = 1000;

/** How long it is waited, for one image, that somebody else unpacks what he brought; a layer of 1 GiB takes 10 s. */
const UNPACK_PATIENCE_MS = 60_000;
const UNPACK_LOOK_MS = 200;
/** While somebody is at work it is asked seldom whether he still is: containerd asks the snapshotter about every snapshot that it has. */
const LOOKS_PER_LIST = 10;

/** A registry that answers sends something within this, however busy the node is. */
const STILL_MS = 15_000;
const STILL_LOOK_MS = 500;

/** What containerd's unpacker calls a snapshot in which it works. */
const PULL_KEY_PREFIX = 'extract-';

/** What containerd gives to remote snapshotters begins with this. */
const SNAPSHOT_PREFIX = 'containerd.io/snapshot/';
const LABEL_CHAIN_REF = 'containerd.io/snapshot.ref';
const LABEL_SOURCE = 'containerd.io/distribution.source.';

export interface BuildParts {
  client: ImageClient;
  registry: RegistryClient;
  /** Makes a layer local; answers a file with its bytes. `onBytes`: some have come, or all are here and are being checked. */
  fetchLayer(layer: { digest: Digest; sizeBytes: number }, onBytes: () => void): Promise<{ path: string; fetchedBytes: number }>;
  onLayer(layer: { digest: Digest; sizeBytes: number }, how: 'here' | 'lazy' | 'unpacked'): void;
  signal: AbortSignal;
  /** Milliseconds without bytes after which others who pull the layer may bring it; default 15 s. */
  stillMs?: number;
}

interface Layer {
  descriptor: Descriptor;
  diffId: Digest;
  /** Of this layer and those below; the name of its snapshot. */
  chainId: Digest;
}

interface Documents {
  target: ContentDescriptor;
  manifestDigest: Digest;
  configDigest: Digest;
  layers: Layer[];
  documentBytes: number;
  fetchedBytes: number;
}

/**
 * Builds. May be called again after any failure; what is there is not made again. Errors: those of the registry and of containerd,
 * InvalidArgument (documents that do not fit together), ResourceExhausted with `neededBytes` and `limitBytes`, DataLoss.
 */
export async function buildImage(work: Work, parts: BuildParts): Promise<Made> {
  return new Build(work, parts).run();
}

class Build {
  private readonly work: Work;
  private readonly parts: BuildParts;
  private readonly reference: Reference;
  private readonly scope: Scope;
  private readonly unpacked: { chainId: Digest; bytes: number }[] = [];
  private patienceMs = UNPACK_PATIENCE_MS;

  constructor(work: Work, parts: BuildParts) {
    this.work = work;
    this.parts = parts;
    this.reference = parseReference(work.reference);
    this.scope = { namespace: work.namespace, lease: work.buildLease };
  }

  async run(): Promise<Made> {
    const documents = await this.documents();
    const { target, configDigest, layers } = documents;
    let fetchedBytes = documents.fetchedBytes;
    let parent = '';
    for (const layer of layers) {
      fetchedBytes += await this.layer(layer, parent, documents.manifestDigest);
      parent = layer.chainId;
    }
    await this.keep({ type: `snapshots/${this.work.snapshotter}`, id: parent });
    const chainId = layers.at(-1)!.chainId;
    const { documentBytes } = documents;
    return { target: { ...target, digest: this.work.digest }, configDigest, chainId, unpacked: this.unpacked, documentBytes, fetchedBytes };
  }

  /** Index, manifest and configuration: into containerd, checked, with the labels by which one keeps the next. */
  private async documents(): Promise<Documents> {
    const { work } = this;
    const top = await this.document(work.digest);
    const isIndex = work.platformDigest !== work.digest;
    const manifestBytes = isIndex ? await this.document(work.platformDigest) : top;
    const manifest = parseManifest(manifestBytes.bytes, manifestBytes.mediaType, `manifest ${work.platformDigest}`);
    const config = await this.config(manifest.config);
    const { diffIds } = parseImageConfig(config.bytes, `configuration ${manifest.config.digest}`);
    const layers = this.layersOf(manifest.layers, diffIds);
    const topChainId = layers.at(-1)!.chainId;
    await this.write(manifest.config.digest, config.bytes, { [`containerd.io/gc.ref.snapshot.${work.snapshotter}`]: topChainId });
    await this.write(work.platformDigest, manifestBytes.bytes, { 'containerd.io/gc.ref.content.config': manifest.config.digest });
    if (isIndex) await this.write(work.digest, top.bytes, { 'containerd.io/gc.ref.content.m.0': work.platformDigest });
    return {
      target: { digest: work.digest, mediaType: top.mediaType, sizeBytes: top.bytes.length },
      manifestDigest: work.platformDigest,
      configDigest: manifest.config.digest,
      layers,
      documentBytes: (isIndex ? top.bytes.length : 0) + manifestBytes.bytes.length + config.bytes.length,
      fetchedBytes: top.fetchedBytes + (isIndex ? manifestBytes.fetchedBytes : 0) + config.fetchedBytes,
    };
  }

  /** A manifest or index: containerd's, or the registry's. */
  private async document(digest: Digest) {
    const { client, registry, signal } = this.parts;
    const { namespace } = this.work;
    if ((await client.contentInfo(namespace, digest, signal)) !== undefined) {
      const bytes = await client.readContent(namespace, digest, MAX_MANIFEST_BYTES, signal);
      return { bytes, mediaType: mediaTypeOf(bytes, digest) ?? (await this.announcedType(digest)), fetchedBytes: 0 };
    }
    const { bytes, descriptor } = await registry.getManifest(this.reference, digest, { signal });
    return { bytes, mediaType: mediaTypeOf(bytes, digest) ?? descriptor.mediaType, fetchedBytes: bytes.length };
  }

  /** For the rare document that does not say itself what it is. */
  private async announcedType(digest: Digest): Promise<string> {
    const { registry, signal } = this.parts;
    return (await registry.resolve(this.reference, digest, { signal })).mediaType;
  }

  private async config({ digest, sizeBytes }: Descriptor) {
    const { client, registry, signal } = this.parts;
    const { namespace } = this.work;
    if ((await client.contentInfo(namespace, digest, signal)) !== undefined) {
      return { bytes: await client.readContent(namespace, digest, MAX_MANIFEST_BYTES, signal), fetchedBytes: 0 };
    }
    const bytes = await registry.getSmallBlob(this.reference, { digest, sizeBytes }, { signal, maxBytes: MAX_MANIFEST_BYTES });
    return { bytes, fetchedBytes: bytes.length };
  }

  private layersOf(descriptors: readonly Descriptor[], diffIds: readonly Digest[]): Layer[] {
    const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'cache image', subject: this.work.reference, what });
    if (descriptors.length === 0 || descriptors.length > MAX_LAYERS)
      throw refuse(`it has ${descriptors.length} layers, 1 to ${MAX_LAYERS} can be held`);
    if (diffIds.length !== descriptors.length) {
      throw refuse(`it has ${descriptors.length} layers, and its configuration names ${diffIds.length}`);
    }
    return descriptors.map((descriptor, i) => ({ descriptor, diffId: diffIds[i]!, chainId: chainIdOf(diffIds.slice(0, i + 1)) }));
  }

  /** Written or found, labelled, and kept by the cache's lease. */
  private async write(digest: Digest, bytes: Uint8Array, labels: Readonly<Record<string, string>>): Promise<void> {
    const { client, signal } = this.parts;
    const { namespace, buildLease } = this.work;
    const { host, repository } = this.reference;
    const all = { ...labels, [`${LABEL_SOURCE}${host}`]: repository };
    const content = { source: { bytes }, digest, sizeBytes: bytes.length, labels: all, ref: `${buildLease}-${digest}` };
    await client.writeContent(namespace, buildLease, content, signal);
    await this.keep({ type: 'content', id: digest });
    const before = await client.contentInfo(namespace, digest, signal);
    const missing = Object.entries(labels).filter(([label, value]) => before?.labels[label] !== value);
    if (missing.length > 0) await client.labelContent(namespace, digest, Object.fromEntries(missing), signal);
  }

  private keep(resource: { type: string; id: string }): Promise<void> {
    const { namespace, lease } = this.work;
    return this.parts.client.addToLease(namespace, lease, resource, this.parts.signal);
  }

  /** Answers how many bytes were fetched. */
  private async layer(layer: Layer, parent: string, manifestDigest: Digest): Promise<number> {
    const { client, signal, onLayer } = this.parts;
    const { namespace, snapshotter } = this.work;
    const { digest, sizeBytes } = layer.descriptor;
    if (await this.isThere(layer)) {
      await this.account(layer);
      onLayer({ digest, sizeBytes }, 'here');
      return 0;
    }
    const labels = this.labelsOf(layer, manifestDigest);
    const key = `${this.work.buildLease}-${randomUUID()} ${layer.chainId}`;
    const mounts = await client.prepareSnapshot(this.scope, { snapshotter, key, parent, labels }, signal);
    if (mounts === undefined) {
      await this.account(layer);
      onLayer({ digest, sizeBytes }, 'lazy');
      return 0;
    }
    try {
      const { how, fetchedBytes } = await this.bring(layer);
      if (how !== 'brought' && (await this.isUnpackedByOthers(layer, key, how))) {
        await this.account(layer);
        onLayer({ digest, sizeBytes }, 'here');
        return 0;
      }
      await this.unpack(layer, key, mounts);
      await client.commitSnapshot(
        this.scope,
        { snapshotter, key, name: layer.chainId, labels: { [LABEL_CHAIN_REF]: layer.chainId } },
        signal,
      );
      await this.account(layer);
      onLayer({ digest, sizeBytes }, 'unpacked');
      return fetchedBytes;
    } finally {
      // Gone when it was committed; else nobody will want it.
      await client.removeSnapshot(namespace, snapshotter, key, AbortSignal.timeout(30_000));
    }
  }

  /** The lease of the work keeps it from now on, or there is none to keep: a collector may come between two looks. */
  private async isThere({ chainId }: Layer): Promise<boolean> {
    const { client, signal } = this.parts;
    const { namespace, snapshotter, buildLease } = this.work;
    if (!(await client.hasSnapshot(namespace, snapshotter, chainId, signal))) return false;
    await client.addToLease(namespace, buildLease, { type: `snapshots/${snapshotter}`, id: chainId }, signal);
    return client.hasSnapshot(namespace, snapshotter, chainId, signal);
  }

  /**
   * Who pulls the layer now (a pod) unpacks it too: waited for, for a while, so that it is not done twice. Whoever brought it while this
   * waited waits for nobody; where it was there before, works for two caches would wait for each other, so one of them goes ahead.
   */
  private async isUnpackedByOthers(layer: Layer, ownKey: string, how: Exclude<Sharing, 'brought'>): Promise<boolean> {
    const { client, signal } = this.parts;
    const { namespace, snapshotter, buildLease } = this.work;
    // Those of an earlier attempt at this work, which was killed, are nobody's.
    const isAwaited = (key: string): boolean =>
      key.startsWith(PULL_KEY_PREFIX) || (!key.startsWith(`${buildLease}-`) && (how === 'awaited' || key < ownKey));
    // How often nobody may be seen at work before nobody is expected: who has just brought it needs a moment before he unpacks it.
    const idleLooks = how === 'awaited' ? 3 : 1;
    let idle = 0;
    for (let untilList = 0; this.patienceMs > 0; this.patienceMs -= UNPACK_LOOK_MS) {
      if (await this.isThere(layer)) return true;
      if (untilList > 0) untilList -= 1;
      else {
        const keys = await client.unpackingOf(namespace, snapshotter, layer.chainId, signal);
        if (!keys.some(isAwaited)) idle += 1;
        else untilList = LOOKS_PER_LIST - 1;
        if (idle >= idleLooks) break;
      }
      await delay(UNPACK_LOOK_MS, undefined, { signal });
    }
    return this.isThere(layer);
  }

  private labelsOf({ descriptor, chainId }: Layer, manifestDigest: Digest): Record<string, string> {
    const inherited = Object.entries(descriptor.annotations ?? {}).filter(([label]) => label.startsWith(SNAPSHOT_PREFIX));
    return {
      ...Object.fromEntries(inherited),
      [LABEL_CHAIN_REF]: chainId,
      [`${SNAPSHOT_PREFIX}cri.image-ref`]: formatReference(this.reference),
      [`${SNAPSHOT_PREFIX}cri.manifest-digest`]: manifestDigest,
      [`${SNAPSHOT_PREFIX}cri.layer-digest`]: descriptor.digest,
    };
  }

  /** Puts the layer into the content store, once for all who pull it at this moment. */
  private async bring({ descriptor }: Layer): Promise<{ how: Sharing; fetchedBytes: number }> {
    const { client, fetchLayer, signal, stillMs = STILL_MS } = this.parts;
    const { namespace, buildLease } = this.work;
    const { digest, sizeBytes } = descriptor;
    let fetchedBytes = 0;
    let lastMs = 0;
    let coming: ReturnType<BuildParts['fetchLayer']> | undefined;
    const onBytes = (): void => {
      lastMs = performance.now();
    };
    // This is the background; a pod that waits for the layer must not wait for what does not move.
    const bring = async (): Promise<string | undefined> => {
      onBytes();
      coming ??= fetchLayer({ digest, sizeBytes }, onBytes);
      const fetched = await unlessStill(coming, () => performance.now() - lastMs >= stillMs);
      fetchedBytes = fetched?.fetchedBytes ?? 0;
      return fetched?.path;
    };
    const content = { digest, sizeBytes, labels: {}, ref: pullRefOf(descriptor), bring };
    return { how: await client.shareContent(namespace, buildLease, content, signal), fetchedBytes };
  }

  private async unpack(layer: Layer, key: string, mounts: NonNullable<Awaited<ReturnType<ImageClient['prepareSnapshot']>>>): Promise<void> {
    const { client } = this.parts;
    const { namespace } = this.work;
    const { digest, sizeBytes, mediaType } = layer.descriptor;
    const diffId = await this.bounded(key, (limited) => client.apply(namespace, { digest, sizeBytes, mediaType }, mounts, limited));
    if (diffId === layer.diffId) return;
    const what = `unpacked, its digest is ${diffId}, and the image's configuration says ${layer.diffId}`;
    throw new AppError('DataLoss', { op: 'unpack layer', subject: digest, what });
  }

  /** Unpacks within what is left of the reservation. */
  private async bounded<T>(key: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { client, signal } = this.parts;
    const { namespace, snapshotter } = this.work;
    const stop = new AbortController();
    const done = new AbortController();
    const watch = async (): Promise<void> => {
      const either = AbortSignal.any([signal, done.signal]);
      while (!either.aborted) {
        await delay(MEASURE_MS, undefined, { signal: either, ref: false });
        const bytes = await client.snapshotBytes(namespace, snapshotter, key, either);
        const tooLarge = this.excess(bytes ?? 0);
        if (tooLarge !== undefined) stop.abort(tooLarge);
      }
    };
    const watching = watch().catch((error: unknown) => {
      // Ended by the work's end, or containerd does not answer, which the work finds out itself.
      if (!done.signal.aborted && !signal.aborted && !(error instanceof AppError)) stop.abort(error);
    });
    try {
      return await work(AbortSignal.any([signal, stop.signal]));
    } finally {
      done.abort();
      await watching;
    }
  }

  /** Adds what a layer's snapshot takes; nothing for a lazy one. */
  private async account(layer: Layer): Promise<void> {
    const { client, signal } = this.parts;
    const { namespace, snapshotter } = this.work;
    const bytes = (await client.snapshotBytes(namespace, snapshotter, layer.chainId, signal)) ?? 0;
    if (bytes > 0) this.unpacked.push({ chainId: layer.chainId, bytes });
    const tooLarge = this.excess(0);
    if (tooLarge !== undefined) throw tooLarge;
  }

  private excess(moreBytes: number): AppError | undefined {
    const neededBytes = this.unpacked.reduce((sum, { bytes }) => sum + bytes, moreBytes);
    const limitBytes = this.work.reservationBytes;
    if (neededBytes <= limitBytes) return undefined;
    const what = `its unpacked layers take ${neededBytes} bytes or more, ${limitBytes} are reserved for it`;
    return new AppError('ResourceExhausted', {
      op: 'cache image',
      subject: this.work.reference,
      what,
      details: { neededBytes, limitBytes },
    });
  }
}

/** Undefined: it does not move. It goes on all the same, and may be waited for again. */
async function unlessStill<T>(work: Promise<T>, isStill: () => boolean): Promise<T | undefined> {
  for (;;) {
    const ended = await Promise.race([work.then((value) => ({ value })), delay(STILL_LOOK_MS, undefined, { ref: false })]);
    if (ended !== undefined) return ended.value;
    if (!isStill()) continue;
    // Should it fail before somebody waits for it again, that is no unhandled failure.
    void Promise.allSettled([work]);
    return undefined;
  }
}

/** What a document says it is; most do. */
function mediaTypeOf(bytes: Uint8Array, digest: Digest): string | undefined {
  let document: unknown;
  try {
    document = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'read manifest', subject: digest, what: 'not JSON', cause });
  }
  const mediaType = typeof document === 'object' && document !== null && 'mediaType' in document ? document.mediaType : undefined;
  return typeof mediaType === 'string' && mediaType !== '' ? mediaType : undefined;
}
