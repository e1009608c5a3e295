/**
 * From a manifest to layers that blockd can read: the longest run from the bottom whose annotations say that they can be served, and why
 * it ends. Nothing is opened here except index-only layers, whose small blobs are taken apart.
 */
import { z } from 'zod';
import { type Digest, isDigest } from '../base/digest.ts';
import { type AppError, describeError, isAppError } from '../base/errors.ts';
import { MAX_LAYERS } from '../base/limits.ts';
import { type BlobSource, type LayerSpec, layerSpecSchema } from '../file/device-spec.ts';
import { type FsType, fsTypeOf, type IndexLayer, type IndexLayers, indexSpecOf } from './index-layer.ts';
import { type LayerMarks, readLayerMarks } from './labels.ts';
import type { ImageManifest, ManifestLayer } from './manifest.ts';
import type { ImageResolver, RepositoryName } from './ports.ts';

const digestSchema = z.custom<Digest>(isDigest, 'not a digest');

const servedLayerSchema = z.object({
  /** What containerd's chain ids are made of: the SHA-256 of the layer's uncompressed tar. */
  diffId: digestSchema,
  /** The layer's digest in the manifest that containerd pulls. */
  layerDigest: digestSchema,
  spec: layerSpecSchema,
});
/** A layer that is served, and what containerd knows it by. */
export type ServedLayer = z.infer<typeof servedLayerSchema>;

export const servedLayersSchema = z.array(servedLayerSchema).max(MAX_LAYERS);

export interface Servable {
  layers: ServedLayer[];
  /** Why not more; null when all are. */
  reason: string | null;
}

/** Where the bytes of a layer come from. */
export function blobOf(marks: LayerMarks, source: RepositoryName): BlobSource {
  const { blobDigest, blobSizeBytes, chunkList } = marks;
  const blob = { digest: blobDigest, sizeBytes: blobSizeBytes, repositories: [repositoryOf(source)] };
  return chunkList === undefined ? blob : { ...blob, chunkList };
}

function repositoryOf({ host, repository }: RepositoryName): RepositoryName {
  return { host, repository };
}

/** The original layers of a twin's image; an index-only layer must name the one at its own position. */
export interface OriginalLayers {
  source: RepositoryName;
  layers: readonly ManifestLayer[];
  /** What containerd calls the layers. */
  diffIds: readonly Digest[];
}

interface Parts {
  resolver: ImageResolver;
  indexLayers: IndexLayers;
}

/** Reads the annotations; a refusal instead when they cannot be served. */
function marksOf(layer: ManifestLayer): { marks: LayerMarks } | { refusal: string } {
  let marks: LayerMarks | undefined;
  try {
    marks = readLayerMarks(layer.annotations);
  } catch (error) {
    if (!isAppError(error, 'InvalidArgument')) throw error;
    return { refusal: error.message };
  }
  if (marks === undefined) return { refusal: 'an ordinary layer, without overlaybd annotations' };
  if (marks.isAccelerationLayer) return { refusal: 'an acceleration layer holds no file system' };
  if (marks.wantsDownload) return { refusal: 'its annotation asks for a download' };
  if (marks.blobDigest === layer.digest && marks.blobSizeBytes === layer.sizeBytes) return { marks };
  const { blobDigest, blobSizeBytes } = marks;
  return { refusal: `its annotations name ${blobDigest} of ${blobSizeBytes} bytes, its descriptor says ${layer.sizeBytes} bytes` };
}

/** The original that an index-only layer reads from, or why it is not to be had. */
async function originalOf(
  target: NonNullable<LayerMarks['target']>,
  source: RepositoryName,
  original: { layer: ManifestLayer; source: RepositoryName } | undefined,
  resolver: ImageResolver,
  signal: AbortSignal,
): Promise<{ blob: BlobSource; mediaType: string } | { refusal: string }> {
  if (original !== undefined) {
    const { layer } = original;
    if (layer.digest !== target.digest) return { refusal: `it indexes ${target.digest}, the image's layer is ${layer.digest}` };
    const blob = { digest: layer.digest, sizeBytes: layer.sizeBytes, repositories: [repositoryOf(original.source)] };
    return { blob, mediaType: layer.mediaType };
  }
  const sizeBytes = await resolver.blobSize(source, target.digest, signal);
  if (sizeBytes === undefined) return { refusal: `its original layer ${target.digest} is not in ${source.host}/${source.repository}` };
  return { blob: { digest: target.digest, sizeBytes, repositories: [repositoryOf(source)] }, mediaType: target.mediaType };
}

type Prepared =
  | { refusal: string }
  | { kind: 'full'; spec: LayerSpec; diffId: Digest; fsType: FsType }
  | { kind: 'index'; index: IndexLayer; original: { blob: BlobSource; mediaType: string } };

async function prepare(
  layer: ManifestLayer,
  source: RepositoryName,
  original: { layer: ManifestLayer; source: RepositoryName } | undefined,
  parts: Parts,
  signal: AbortSignal,
): Promise<Prepared> {
  const read = marksOf(layer);
  if ('refusal' in read) return read;
  const { marks } = read;
  if (marks.target === undefined) {
    return { kind: 'full', spec: { kind: 'full', blob: blobOf(marks, source) }, diffId: layer.digest, fsType: marks.fsType };
  }
  try {
    const found = await originalOf(marks.target, source, original, parts.resolver, signal);
    if ('refusal' in found) return found;
    const index = await parts.indexLayers.fetch(source, { digest: layer.digest, sizeBytes: layer.sizeBytes }, signal);
    return { kind: 'index', index, original: found };
  } catch (error) {
    if (!isAppError(error) || isTransient(error)) throw error;
    return { refusal: describeError(error) };
  }
}

/** Trouble that passes, and says nothing of an image: a registry or blockd is away, or credentials are refused in whose place others may come. */
export function isTransient(error: unknown): error is AppError {
  return isAppError(error, 'Unavailable', 'DeadlineExceeded', 'Canceled', 'Unauthenticated', 'PermissionDenied');
}

/**
 * The layers of an image, or of the twin of one (`originals`). Errors: Unavailable and the like when the registry does not tell. A
 * refused layer and all above it are left out.
 */
export async function servableLayers(
  manifest: ImageManifest,
  source: RepositoryName,
  originals: OriginalLayers | undefined,
  parts: Parts,
  signal: AbortSignal,
): Promise<Servable> {
  const prepared = await Promise.all(
    manifest.layers.map((layer, i) =>
      prepare(layer, source, originals && { layer: originals.layers[i]!, source: originals.source }, parts, signal),
    ),
  );
  const layers: ServedLayer[] = [];
  let fsType: FsType | undefined;
  for (const [i, found] of prepared.entries()) {
    const layer = manifest.layers[i]!;
    const refuse = (what: string): Servable => ({ layers, reason: `layer ${i} (${layer.digest}): ${what}` });
    if ('refusal' in found) return refuse(found.refusal);
    const name = originals === undefined ? undefined : { diffId: originals.diffIds[i]!, layerDigest: originals.layers[i]!.digest };
    if (found.kind === 'full') {
      fsType ??= found.fsType;
      layers.push({ spec: found.spec, ...(name ?? { diffId: found.diffId, layerDigest: layer.digest }) });
      continue;
    }
    fsType ??= fsTypeOf(found.index);
    const made = indexSpecOf(found.index, fsType, found.original);
    if ('refusal' in made) return refuse(made.refusal);
    layers.push({ spec: made.spec, ...(name ?? { diffId: found.index.diffId, layerDigest: layer.digest }) });
  }
  return { layers, reason: null };
}
