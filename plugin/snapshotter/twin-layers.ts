/**
 * Checks a twin against its image, layer by layer: as many as the image has, and an index-only layer reads from exactly the image's own
 * layer. What cannot be checked is that a gzip layer unpacks to what the image's configuration says, which containerd checks by
 * unpacking; that is the trust that the policy gives to a repository.
 */
import { type Digest, sha256 } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../base/limits.ts';
import { parseImageConfig } from '../image/oci/config.ts';
import { ARTIFACT_TYPE, layerCompression } from '../image/oci/media-types.ts';
import type { IndexLayers } from './index-layer.ts';
import { readLayerMarks } from './labels.ts';
import { fetchImageManifest } from './manifest.ts';
import type { ImageResolver, RepositoryName } from './ports.ts';
import { type OriginalLayers, type Servable, servableLayers } from './served-layers.ts';
import type { TwinCandidate } from './twin-finder.ts';

/** An ordinary image, as far as a twin is compared with it. */
export interface BaseImage extends OriginalLayers {
  digest: Digest;
}

/**
 * Fetches the manifest and configuration of an ordinary image. Errors: those of the resolver; InvalidArgument when its documents do not
 * fit together.
 */
export async function fetchBaseImage(resolver: ImageResolver, image: string, digest: Digest, signal: AbortSignal): Promise<BaseImage> {
  const { host, repository } = resolver.parseReference(image);
  const source: RepositoryName = { host, repository };
  const manifest = await fetchImageManifest(resolver, image, digest, signal);
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'read image', subject: `${image}@${digest}`, what });
  if (manifest.config === undefined) throw refuse('its manifest names no configuration');
  const bytes = await resolver.fetchBlob(source, manifest.config, MAX_MANIFEST_BYTES, signal);
  if (sha256(bytes) !== manifest.config.digest) throw refuse('its configuration is not the one that its manifest names');
  const { diffIds } = parseImageConfig(bytes, `configuration ${manifest.config.digest}`);
  const { layers } = manifest;
  if (diffIds.length !== layers.length) throw refuse(`it has ${layers.length} layers, and its configuration names ${diffIds.length}`);
  // The digest of an uncompressed layer is known to be that of its tar.
  const liar = layers.findIndex((layer, i) => layerCompression(layer.mediaType) === 'none' && layer.digest !== diffIds[i]);
  if (liar !== -1) throw refuse(`its configuration says that layer ${liar} (${layers[liar]!.digest}, uncompressed) is ${diffIds[liar]}`);
  return { digest, source, layers, diffIds };
}

/**
 * Why a twin's layers are not those of the image; undefined when they may be. An index-only twin may hold some layers as a whole, where
 * the original cannot be read at random.
 */
function mismatchOf(twin: TwinCandidate, base: BaseImage): string | undefined {
  const { layers } = twin.manifest;
  if (layers.length !== base.layers.length) return `it has ${layers.length} layers, the image has ${base.layers.length}`;
  const targets = layers.map((layer) => readLayerMarks(layer.annotations)?.target?.digest);
  const index = targets.findIndex((target) => target !== undefined);
  if (twin.kind === ARTIFACT_TYPE.native) {
    return index === -1 ? undefined : `layer ${index} is index-only, and the artifact says that it is a full one`;
  }
  if (index === -1) return 'no layer of it is index-only, and the artifact says that it is';
  const other = targets.findIndex((target, i) => target !== undefined && target !== base.layers[i]!.digest);
  return other === -1 ? undefined : `layer ${other} indexes ${targets[other]}, the image's layer is ${base.layers[other]!.digest}`;
}

/**
 * The layers of the image as the twin serves them. Throws FailedPrecondition when it is not the image's twin, InvalidArgument or DataLoss
 * when it is malformed, Unavailable and the like when a registry does not tell.
 */
export async function twinLayers(
  twin: TwinCandidate,
  base: BaseImage,
  parts: { resolver: ImageResolver; indexLayers: IndexLayers },
  signal: AbortSignal,
): Promise<Servable> {
  const mismatch = mismatchOf(twin, base);
  const refuse = (what: string): AppError =>
    new AppError('FailedPrecondition', { op: 'use twin', subject: `${twin.repository.repository}@${twin.manifest.digest}`, what });
  if (mismatch !== undefined) throw refuse(mismatch);
  return servableLayers(twin.manifest, twin.repository, base, parts, signal);
}
