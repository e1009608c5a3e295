/**
 * Manifest and config of a converted image, as the reference's convertor writes them with its referrer option. Source:
 * overlaybd-formats.md 4.2. Everything else of the source stays: history, process settings, annotations of the manifest.
 */
import { type Digest, parseDigest, sha256 } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { ANNOTATION, DIFF_ID_ANNOTATION, LAYER_VERSION } from '../../image/oci/annotations.ts';
import { encodeImageConfig, type ImageConfig } from '../../image/oci/config.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { encodeManifest, type Manifest } from '../../image/oci/manifest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../image/oci/media-types.ts';
import type { ConvertedLayer } from './options.ts';

export interface SourceManifest {
  /** Of the manifest in its registry or layout; becomes the `subject`. Absent for layers that never were an image. */
  descriptor?: Descriptor;
  manifest: Pick<Manifest, 'layers' | 'annotations'>;
  config: ImageConfig;
}

export interface ConvertedImage {
  /** Bottom to top, as in the manifest. */
  layers: Descriptor[];
  config: { bytes: Uint8Array; descriptor: Descriptor };
  manifest: { bytes: Uint8Array; descriptor: Descriptor };
}

/** Puts a converted image together. `layers`: one for each layer of the source, bottom to top. */
export function convertedImage(
  source: SourceManifest,
  layers: readonly Pick<ConvertedLayer, 'digest' | 'sizeBytes' | 'annotations'>[],
): ConvertedImage {
  const { descriptor, manifest, config } = source;
  if (layers.length !== manifest.layers.length || config.diffIds.length !== manifest.layers.length) {
    const what = `${manifest.layers.length} layers, ${config.diffIds.length} diffIDs and ${layers.length} converted layers do not go together`;
    throw new AppError('InvalidArgument', { op: 'convert', subject: descriptor?.digest ?? 'layers', what });
  }
  const layerDescriptors = layers.map(
    ({ digest, sizeBytes, annotations }): Descriptor => ({
      mediaType: isIndexOnly(annotations) ? MEDIA_TYPE.ociLayerGzip : MEDIA_TYPE.ociLayerTar,
      digest,
      sizeBytes,
      annotations,
    }),
  );
  // One layer that needs the original makes the artifact need it.
  const artifactType = layers.some((layer) => isIndexOnly(layer.annotations)) ? ARTIFACT_TYPE.turbo : ARTIFACT_TYPE.native;
  const configBytes = encodeImageConfig({ ...config, diffIds: layers.map(diffIdOf) });
  const configDescriptor: Descriptor = { mediaType: MEDIA_TYPE.ociConfig, digest: sha256(configBytes), sizeBytes: configBytes.length };
  const manifestBytes = encodeManifest({
    kind: 'manifest',
    mediaType: MEDIA_TYPE.ociManifest,
    artifactType,
    config: configDescriptor,
    layers: layerDescriptors,
    ...(descriptor === undefined ? {} : { subject: subjectOf(descriptor) }),
    ...(manifest.annotations === undefined ? {} : { annotations: manifest.annotations }),
  });
  return {
    layers: layerDescriptors,
    config: { bytes: configBytes, descriptor: configDescriptor },
    manifest: {
      bytes: manifestBytes,
      descriptor: {
        mediaType: MEDIA_TYPE.ociManifest,
        digest: sha256(manifestBytes),
        sizeBytes: manifestBytes.length,
        artifactType,
        ...(descriptor?.platform === undefined ? {} : { platform: descriptor.platform }),
      },
    },
  };
}

function isIndexOnly(annotations: Readonly<Record<string, string>>): boolean {
  return annotations[ANNOTATION.version] === LAYER_VERSION.turbo;
}

/** A blob of full mode is not compressed as a whole: its digest is its diffID. */
function diffIdOf({ digest, annotations }: Pick<ConvertedLayer, 'digest' | 'annotations'>): Digest {
  const uncompressed = annotations[DIFF_ID_ANNOTATION];
  return uncompressed === undefined ? digest : parseDigest(uncompressed, digest);
}

/** A descriptor as the `subject` of another manifest: identity alone. */
function subjectOf({ mediaType, digest, sizeBytes }: Descriptor): Descriptor {
  return { mediaType, digest, sizeBytes };
}
