/** From a reference to an image that a digest pins, in the form that the snapshotter will serve it. A few requests, each bounded. Ours. */
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../../base/limits.ts';
import type { LayerSpec } from '../../file/device-spec.ts';
import { parseImageConfig } from '../../image/oci/config.ts';
import { parseReference } from '../../registry/reference.ts';
import { blobsOfLayer } from '../../snapshotter/accelerated.ts';
import { chainIdOf } from '../../snapshotter/chain-id.ts';
import { readLayerMarks } from '../../snapshotter/labels.ts';
import { fetchImageManifest, type ImageManifest, ownArchitecture } from '../../snapshotter/manifest.ts';
import type { ImageResolver } from '../../snapshotter/service.ts';
import type { ImageAccess, ResolvedImage, ResolvedLayer } from '../image-store.ts';
import type { ServedImages, ServedPlan } from './ports.ts';

/** Resolving, all requests together: a registry that needs longer is in trouble, and is asked again later. */
export const RESOLVE_DEADLINE_MS = 60_000;

/** True when a layer carries the annotations of an accelerated one; what they say is judged when it is used. */
export function isAccelerated(manifest: Pick<ImageManifest, 'layers'>): boolean {
  return manifest.layers.some(({ annotations }) => {
    try {
      return readLayerMarks(annotations) !== undefined;
    } catch (error) {
      if (error instanceof AppError) return true;
      throw error;
    }
  });
}

function formOf(plan: ServedPlan, layerCount: number): ResolvedImage['form'] {
  // With a layer that must be unpacked it is started as an ordinary image: containerd fetches that layer and all above.
  if (plan.layers.length < layerCount) return 'ordinary';
  return plan.layers.some(({ spec }) => spec.kind === 'index') ? 'index-only' : 'full';
}

function layerOf(spec: LayerSpec | undefined, original: ImageManifest['layers'][number], chainId: Digest): ResolvedLayer {
  if (spec === undefined) return { digest: original.digest, sizeBytes: original.sizeBytes, chainId };
  if (spec.kind === 'full') return { digest: spec.blob.digest as Digest, sizeBytes: spec.blob.sizeBytes, chainId };
  const { target } = spec;
  const metadataBytes = blobsOfLayer(spec).reduce((sum, blob) => sum + blob.sizeBytes, 0) - target.sizeBytes;
  const source = { digest: target.digest as Digest, sizeBytes: target.sizeBytes };
  return { digest: spec.meta.digest as Digest, sizeBytes: metadataBytes, chainId, source };
}

/** Errors: those of the registry; InvalidArgument (malformed, or for another platform than this machine's). */
export async function resolveImage(
  reference: string,
  access: ImageAccess,
  parts: { resolver: ImageResolver; images: ServedImages },
  signal: AbortSignal,
): Promise<ResolvedImage> {
  const { resolver, images } = parts;
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'resolve image', subject: reference, what });
  const own = { os: 'linux', architecture: ownArchitecture() };
  const platform = access.platform ?? own;
  if (platform.os !== own.os || platform.architecture !== own.architecture) {
    throw refuse(`it is wanted for ${platform.os}/${platform.architecture}, and this machine runs ${own.os}/${own.architecture}`);
  }
  const limited = AbortSignal.any([signal, AbortSignal.timeout(RESOLVE_DEADLINE_MS)]);
  const { host, repository } = parseReference(reference);
  const top = await resolver.resolveManifest(reference, undefined, limited);
  const manifest = await fetchImageManifest(resolver, reference, top.digest as Digest, limited);
  if (manifest.config === undefined) throw refuse('its manifest names no configuration');
  const { diffIds } = parseImageConfig(
    await resolver.fetchBlob({ host, repository }, manifest.config, MAX_MANIFEST_BYTES, limited),
    `configuration ${manifest.config.digest}`,
  );
  const { layers } = manifest;
  if (layers.length === 0 || diffIds.length !== layers.length) {
    throw refuse(`it has ${layers.length} layers, and its configuration names ${diffIds.length}`);
  }
  const plan = await images.plan({ reference, manifestDigest: manifest.digest, isAccelerated: isAccelerated(manifest) }, access);
  const resolved = layers.map((layer, i) => layerOf(plan.layers[i]?.spec, layer, chainIdOf(diffIds.slice(0, i + 1))));
  const documentBytes = top.manifestBytes.length + manifest.config.sizeBytes;
  return {
    reference,
    digest: top.digest as Digest,
    platformDigest: manifest.digest,
    configDigest: manifest.config.digest,
    form: formOf(plan, layers.length),
    layers: resolved,
    sizeBytes: documentBytes + bytesOf(resolved),
  };
}

/** Every blob once. */
export function bytesOf(layers: readonly ResolvedLayer[]): number {
  const blobs = layers.flatMap(({ digest, sizeBytes, source }) => [{ digest, sizeBytes }, ...(source === undefined ? [] : [source])]);
  return [...new Map(blobs.map(({ digest, sizeBytes }) => [digest, sizeBytes])).values()].reduce((sum, bytes) => sum + bytes, 0);
}
