/**
 * Puts the layers of a lazily pulled image into containerd's content store, so that `ctr images export` and `push` find them: blockd
 * fetches what is missing and checks digests, containerd takes the bytes and checks them again. Ours.
 *
 * The image is looked for in every namespace of containerd, `k8s.io` and `default` first, and served in each that has it; content is
 * stored once for all of them.
 */
import pLimit from 'p-limit';
import type { MaterializeResult } from '../../admin/services.ts';
import type { Digest } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../base/limits.ts';
import type { Logger } from '../base/log.ts';
import { unlessAborted } from '../base/unless-aborted.ts';
import type { BlobSource } from '../file/device-spec.ts';
import { checkRepository, formatReference, parseReference, type Repository } from '../registry/reference.ts';
import { ContainerdClient, type ImageTarget } from '../snapshotter/containerd/containerd-client.ts';
import { fetchImageManifest, type ImageManifest, type ManifestLayer } from '../snapshotter/manifest.ts';

/** Two layers at once: while one is fetched the other is written. */
const LAYERS_AT_ONCE = 2;

/** As many as blockd tries for one blob. */
const MAX_REPOSITORIES = 16;

const FIRST_NAMESPACES = ['k8s.io', 'default'];

/** `containerd.io/distribution.source.<host>` = repositories on that host that hold the content, separated by commas. */
const LABEL_SOURCE = 'containerd.io/distribution.source.';
/** A label of a manifest that keeps its layer from garbage collection, `…l.<index>`. */
const LABEL_GC_LAYER = 'containerd.io/gc.ref.content.l.';

export interface MaterializeParts {
  /** containerd's socket. */
  containerdAddress: string;
  /** Makes a blob local and checks its digest; the file stays for ten minutes at least. */
  fetchWhole(source: BlobSource, signal: AbortSignal): Promise<{ path: string; fetchedBytes: number }>;
  logger: Logger;
}

interface FoundImage {
  namespace: string;
  name: string;
  target: ImageTarget;
}

export class Materializer {
  private readonly parts: MaterializeParts;
  /** Writes under way: containerd takes one for a digest and namespace at a time. */
  private readonly writing = new Map<string, Promise<unknown>>();

  constructor(parts: MaterializeParts) {
    this.parts = parts;
  }

  /**
   * Puts every missing layer of the image in place. May be called again, and while it runs; what is there is not written twice.
   * Errors: NotFound (containerd has no such image), Unavailable (containerd, blockd or the registry), ResourceExhausted (no room),
   * DataLoss (the registry sends other bytes), those of the registry. Aborted: finished layers stay.
   */
  async materialize(reference: string, signal: AbortSignal): Promise<MaterializeResult> {
    using client = new ContainerdClient(this.parts.containerdAddress);
    const images = await this.find(client, reference, signal);
    const results: MaterializeResult[] = [];
    for (const image of images) results.push(await this.inNamespace(client, image, signal));
    const [first] = results;
    if (first === undefined) throw new TypeError('find answers at least one image');
    return { ...first, reference, fetchedBytes: results.reduce((sum, { fetchedBytes }) => sum + fetchedBytes, 0) };
  }

  private async find(client: ContainerdClient, reference: string, signal: AbortSignal): Promise<FoundImage[]> {
    const all = await client.namespaces(signal);
    const namespaces = [
      ...FIRST_NAMESPACES.filter((name) => all.includes(name)),
      ...all.filter((name) => !FIRST_NAMESPACES.includes(name)).sort(),
    ];
    const found: FoundImage[] = [];
    for (const namespace of namespaces) {
      for (const name of namesOf(reference)) {
        const target = await client.image(namespace, name, signal);
        if (target === undefined) continue;
        found.push({ namespace, name, target });
        break;
      }
    }
    if (found.length > 0) return found;
    const what = `containerd has no image of this name in its namespaces (${namespaces.join(', ')}); see ctr -n NAMESPACE images ls`;
    throw new AppError('NotFound', { op: 'materialize', subject: reference, what });
  }

  private async inNamespace(client: ContainerdClient, image: FoundImage, signal: AbortSignal): Promise<MaterializeResult> {
    const { namespace, name } = image;
    const manifest = await this.manifestOf(client, image, signal);
    const about = await client.contentInfo(namespace, manifest.digest, signal);
    const labels = about?.labels ?? {};
    const layers = uniqueLayers(manifest);
    const log = this.parts.logger.child({ image: name, namespace, manifest: manifest.digest });
    log.info({ layers: layers.length }, 'materializing');
    await using lease = await client.lease(namespace, signal);
    const sources = repositoriesOf(name, labels);
    const failed = new AbortController();
    const both = AbortSignal.any([signal, failed.signal]);
    const limit = pLimit(LAYERS_AT_ONCE);
    const fetched = await Promise.allSettled(
      layers.map((layer) =>
        limit(async () => {
          try {
            return await this.oneLayer(client, { namespace, lease: lease.id, layer, sources, log }, both);
          } catch (error) {
            failed.abort(error);
            throw error;
          }
        }),
      ),
    );
    both.throwIfAborted();
    const keep = gcLabels(manifest, labels);
    if (Object.keys(keep).length > 0) await client.labelContent(namespace, manifest.digest, keep, signal);
    const fetchedBytes = fetched.reduce((sum, one) => sum + (one.status === 'fulfilled' ? one.value : 0), 0);
    log.info({ fetchedBytes }, 'materialized');
    return {
      reference: name,
      manifestDigest: manifest.digest,
      layerCount: manifest.layers.length,
      totalBytes: layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      fetchedBytes,
    };
  }

  /** The manifest for this machine, from containerd's content store. */
  private manifestOf(client: ContainerdClient, image: FoundImage, signal: AbortSignal): Promise<ImageManifest> {
    const { namespace, name, target } = image;
    const resolver = {
      parseReference,
      resolveManifest: async (_: string, digest: string | undefined, inner: AbortSignal) => ({
        manifestBytes: await client.readContent(namespace, digest ?? target.digest, MAX_MANIFEST_BYTES, inner),
        digest: digest ?? target.digest,
        mediaType: target.mediaType,
      }),
    };
    return fetchImageManifest(resolver, name, undefined, signal);
  }

  /** Answers how many bytes were fetched; 0 when the layer was there. */
  private async oneLayer(
    client: ContainerdClient,
    work: { namespace: string; lease: string; layer: ManifestLayer; sources: readonly Repository[]; log: Logger },
    signal: AbortSignal,
  ): Promise<number> {
    const { namespace, layer } = work;
    const key = `${namespace} ${layer.digest}`;
    for (let other = this.writing.get(key); other !== undefined; other = this.writing.get(key)) await unlessAborted(other, signal);
    signal.throwIfAborted();
    const writing = this.fetchAndWrite(client, work, signal);
    const done = writing.then(
      () => this.writing.delete(key),
      () => this.writing.delete(key),
    );
    this.writing.set(key, done);
    return writing;
  }

  private async fetchAndWrite(
    client: ContainerdClient,
    work: { namespace: string; lease: string; layer: ManifestLayer; sources: readonly Repository[]; log: Logger },
    signal: AbortSignal,
  ): Promise<number> {
    const { namespace, lease, layer, sources, log } = work;
    const { digest, sizeBytes } = layer;
    if ((await client.contentInfo(namespace, digest, signal)) !== undefined) return 0;
    if (sources.length === 0) {
      const what = 'neither the name of the image nor labels of its manifest say which registry has it';
      throw new AppError('FailedPrecondition', { op: 'materialize layer', subject: digest, what });
    }
    const started = performance.now();
    const { path, fetchedBytes } = await this.parts.fetchWhole({ digest, sizeBytes, repositories: [...sources] }, signal);
    await client.writeContent(namespace, lease, { source: { path }, digest, sizeBytes, labels: sourceLabels(sources) }, signal);
    log.info({ layer: digest, sizeBytes, fetchedBytes, elapsedMs: Math.round(performance.now() - started) }, 'layer materialized');
    return fetchedBytes;
  }
}

/** What containerd may have stored the reference as: as it is written, or with everything that people leave out. */
function namesOf(reference: string): string[] {
  try {
    return [...new Set([reference, formatReference(parseReference(reference))])];
  } catch (error) {
    if (!isAppError(error, 'InvalidArgument')) throw error;
    return [reference];
  }
}

/** A layer may stand in a manifest twice; it is one content. */
function uniqueLayers(manifest: ImageManifest): ManifestLayer[] {
  return [...new Map(manifest.layers.map((layer) => [layer.digest, layer])).values()];
}

/** Where the layers lie: the repository that the image is named after, then those that containerd noted when it pulled. */
function repositoriesOf(name: string, labels: Readonly<Record<string, string>>): Repository[] {
  const found = new Map<string, Repository>();
  const add = (make: () => Repository): void => {
    try {
      const { host, repository } = make();
      found.set(`${host}/${repository}`, { host, repository });
    } catch (error) {
      // A name that is no reference, or a label that somebody wrote: another source may do.
      if (!isAppError(error, 'InvalidArgument')) throw error;
    }
  };
  add(() => parseReference(name));
  for (const [label, value] of Object.entries(labels)) {
    if (!label.startsWith(LABEL_SOURCE)) continue;
    for (const repository of value.split(',')) add(() => checkRepository({ host: label.slice(LABEL_SOURCE.length), repository }));
  }
  return [...found.values()].slice(0, MAX_REPOSITORIES);
}

/** The labels by which containerd's push finds repositories to mount blobs from. */
function sourceLabels(sources: readonly Repository[]): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const { host, repository } of sources) {
    const label = LABEL_SOURCE + host;
    labels[label] = labels[label] === undefined ? repository : `${labels[label]},${repository}`;
  }
  return labels;
}

/** The references from the manifest to its layers that are missing: a pull that discards layers leaves them out. */
function gcLabels(manifest: ImageManifest, labels: Readonly<Record<string, string>>): Record<string, string> {
  const kept = new Set(Object.values(labels));
  return Object.fromEntries(
    manifest.layers.flatMap(({ digest }: { digest: Digest }, index) => (kept.has(digest) ? [] : [[`${LABEL_GC_LAYER}${index}`, digest]])),
  );
}
