/** What a manifest is to conversion: an image to convert, the result of a conversion, or something to leave alone. R28, R38. */
import { ANNOTATION, DOCKER_REFERENCE_TYPE } from '../../image/oci/annotations.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import type { Index, Manifest } from '../../image/oci/manifest.ts';
import { ARTIFACT_TYPE, layerCompression, MEDIA_TYPE } from '../../image/oci/media-types.ts';

const OUTPUT_TYPES: ReadonlySet<string | undefined> = new Set(Object.values(ARTIFACT_TYPE));
const OUTPUT_ANNOTATIONS = [ANNOTATION.blobDigest, ANNOTATION.turboTargetDigest, ANNOTATION.fastTargetDigest];

/** True for what a conversion, ours or the reference's, has made. */
export function isConverted(document: Manifest | Index): boolean {
  if (OUTPUT_TYPES.has(document.artifactType)) return true;
  if (document.kind === 'index') return false;
  return document.layers.some((layer) => OUTPUT_ANNOTATIONS.some((key) => layer.annotations?.[key] !== undefined));
}

/** Why a manifest is no image that can be converted; undefined when it is one. `entry` is its descriptor in an index. */
export function reasonToLeave(manifest: Manifest, entry?: Descriptor): string | undefined {
  const reference = entry?.annotations?.[DOCKER_REFERENCE_TYPE];
  if (reference !== undefined) return `it is an ${reference}`;
  if (isConverted(manifest)) return 'it is a converted image';
  if (manifest.artifactType !== undefined) return `it is an artifact of type ${manifest.artifactType}`;
  const { mediaType } = manifest.config;
  if (mediaType !== MEDIA_TYPE.ociConfig && mediaType !== MEDIA_TYPE.dockerConfig)
    return `its configuration has the media type ${mediaType}`;
  if (manifest.layers.length === 0) return 'it has no layers';
  const odd = manifest.layers.find((layer) => layerCompression(layer.mediaType) === undefined);
  return odd === undefined ? undefined : `layer ${odd.digest} has the media type ${odd.mediaType}`;
}

/** `linux/arm/v7` */
export function platformText({ platform }: Descriptor): string {
  if (platform === undefined) return 'linux';
  return [platform.os, platform.architecture, platform.variant ?? ''].filter(Boolean).join('/');
}

/** Does a platform fit a wish? A wish without variant fits all variants. */
export function fitsPlatform(entry: Descriptor, wishes: readonly string[]): boolean {
  const text = platformText(entry);
  return wishes.length === 0 || wishes.some((wish) => text === wish || text.startsWith(`${wish}/`));
}
