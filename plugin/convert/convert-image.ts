/** Full mode from end to end without publication: one image manifest in, converted blobs, config and manifest out. Ours. */
import type { Descriptor } from '../image/oci/descriptor.ts';
import { convertLayers } from './build/convert-layers.ts';
import { type ConvertedImage, convertedImage, type SourceManifest } from './build/converted-image.ts';
import type { ConvertedLayer, ConvertOptions } from './build/options.ts';
import { type BlobReader, readSourceManifest, sourceLayers } from './source/image-source.ts';

export interface ConversionResult {
  source: SourceManifest;
  /** Bottom to top; the blobs lie in the staging directory. */
  layers: ConvertedLayer[];
  image: ConvertedImage;
}

/**
 * Converts the image that `descriptor` names in `reader`. `onLayer` is called for each blob as soon as it is complete, in order; start
 * slow work there, do not wait for it. Rejects as convertLayers does, and with InvalidArgument for a manifest that is no image.
 */
export async function convertImage(
  reader: BlobReader,
  descriptor: Descriptor,
  options: ConvertOptions & { onLayer?: (layer: ConvertedLayer) => void },
): Promise<ConversionResult> {
  const source = await readSourceManifest(reader, descriptor, options.signal);
  const layers: ConvertedLayer[] = [];
  for await (const layer of convertLayers(sourceLayers(reader, source), options)) {
    layers.push(layer);
    options.onLayer?.(layer);
  }
  return { source, layers, image: convertedImage(source, layers) };
}
