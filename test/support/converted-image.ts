/** Images converted by our own builder, for tests and the demo: layer tars in, an image of overlaybd layers out. */
import { createReadStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { basename } from 'node:path';
import { convertLayers } from '../../plugin/convert/build/convert-layers.ts';
import type { ConvertOptions } from '../../plugin/convert/build/options.ts';
import { buildImage, type Image, type ImageConfig, type Layer, MEDIA_TYPE } from './oci-image.ts';

export interface ConvertTarsOptions extends Partial<Pick<ConvertOptions, 'compression' | 'threads'>> {
  config: ImageConfig;
  /** A directory for the blobs; it must live as long as the image is pushed. Made if it is not there. */
  stagingDirectory: string;
  timeoutMs?: number;
}

/** Converts layer tars (or tar.gz), bottom to top, in full mode. */
export async function convertTars(tarPaths: readonly string[], options: ConvertTarsOptions): Promise<Image> {
  const { config, stagingDirectory, timeoutMs = 300_000, ...builder } = options;
  await mkdir(stagingDirectory, { recursive: true });
  const sources = tarPaths.map((path) => ({ name: basename(path), open: () => createReadStream(path, { highWaterMark: 1024 * 1024 }) }));
  const layers: Layer[] = [];
  for await (const layer of convertLayers(sources, { ...builder, stagingDirectory, signal: AbortSignal.timeout(timeoutMs) })) {
    const { digest, sizeBytes, annotations, path } = layer;
    layers.push({ mediaType: MEDIA_TYPE.tar, digest, sizeBytes, diffId: digest, annotations, blob: path });
  }
  return buildImage(layers, config);
}
