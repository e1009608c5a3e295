/** Annotation keys of accelerated layers. Source: overlaybd-formats.md 4.1. containerd turns each into a snapshot label. */

const PREFIX = 'containerd.io/snapshot/overlaybd/';

export const ANNOTATION = {
  blobDigest: `${PREFIX}blob-digest`,
  blobSize: `${PREFIX}blob-size`,
  version: `${PREFIX}version`,
  blobFsType: `${PREFIX}blob-fs-type`,
  accelerationLayer: `${PREFIX}acceleration-layer`,
  turboTargetDigest: `${PREFIX}turbo-oci/target-digest`,
  turboTargetMediaType: `${PREFIX}turbo-oci/target-media-type`,
  /** Older names of the two above: read, never written. */
  fastTargetDigest: `${PREFIX}fastoci/target-digest`,
  fastTargetMediaType: `${PREFIX}fastoci/target-media-type`,
} as const;

/**
 * diffID of a layer whose digest is another: an index-only layer is compressed. Ours, under the name that containerd and BuildKit have for
 * it; it spares publication a second book, and readers a decompression.
 */
export const DIFF_ID_ANNOTATION = 'containerd.io/uncompressed';

/** Values of {@link ANNOTATION.version}. */
export const LAYER_VERSION = { native: '0.1.0', turbo: '0.1.0-turbo.ociv1', turboLegacy: '0.1.0-fastoci' } as const;

/** BuildKit's mark on a manifest that is not an image. */
export const DOCKER_REFERENCE_TYPE = 'vnd.docker.reference.type';
