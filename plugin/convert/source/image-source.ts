/** Where the bytes of an image to convert come from: a registry, an OCI layout. The pipeline knows only this. Ours. */
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../../base/limits.ts';
import { type ImageConfig, parseImageConfig } from '../../image/oci/config.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { type Manifest, parseManifestOrIndex } from '../../image/oci/manifest.ts';
import { layerCompression } from '../../image/oci/media-types.ts';
import type { SourceManifest } from '../build/converted-image.ts';
import type { SourceLayer } from '../build/options.ts';

/** Content-addressed reads. What comes back is checked by the caller, who has the digest. */
export interface BlobReader {
  /** A document of at most MAX_MANIFEST_BYTES, verified against its digest. Rejects with NotFound or DataLoss. */
  readDocument(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array>;
  /** The bytes of a blob, as stored, not verified. */
  openBlob(descriptor: Descriptor, signal: AbortSignal): AsyncIterable<Uint8Array>;
}

/** Refuses a document that is too large before it is read. */
export function checkDocumentSize(descriptor: Descriptor): void {
  if (descriptor.sizeBytes <= MAX_MANIFEST_BYTES) return;
  const what = `${descriptor.sizeBytes} bytes, at most ${MAX_MANIFEST_BYTES} are allowed`;
  throw new AppError('InvalidArgument', { op: 'read document', subject: descriptor.digest, what });
}

/** Reads the manifest and configuration that a descriptor names. An index is InvalidArgument: choose one of its manifests first. */
export async function readSourceManifest(reader: BlobReader, descriptor: Descriptor, signal: AbortSignal): Promise<SourceManifest> {
  const parsed = parseManifestOrIndex(await reader.readDocument(descriptor, signal), descriptor.mediaType, descriptor.digest);
  if (parsed.kind === 'index') {
    throw new AppError('InvalidArgument', {
      op: 'convert',
      subject: descriptor.digest,
      what: 'it is an index, not the manifest of one image',
    });
  }
  const config = parseImageConfig(await reader.readDocument(parsed.config, signal), parsed.config.digest);
  checkLayers(parsed, config, descriptor);
  return { descriptor, manifest: parsed, config };
}

function checkLayers(manifest: Manifest, config: ImageConfig, descriptor: Descriptor): void {
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'convert', subject: descriptor.digest, what });
  if (manifest.layers.length !== config.diffIds.length) {
    throw refuse(`its manifest has ${manifest.layers.length} layers, its configuration ${config.diffIds.length} diffIDs`);
  }
  for (const layer of manifest.layers) {
    if (layerCompression(layer.mediaType) === undefined) throw refuse(`layer ${layer.digest} has media type ${layer.mediaType}`);
  }
}

/** The layers of a manifest for the builder, each to be checked against its digest and diffID. */
export function sourceLayers(reader: BlobReader, { manifest, config }: SourceManifest): SourceLayer[] {
  return manifest.layers.map((descriptor, i) => ({
    name: descriptor.digest,
    open: (signal: AbortSignal) => reader.openBlob(descriptor, signal),
    digest: descriptor.digest,
    diffId: config.diffIds[i] as Digest,
    mediaType: descriptor.mediaType,
  }));
}
