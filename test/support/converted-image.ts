/** Images converted by our own builder, for tests and the demo: layer tars in, an image of overlaybd layers out. */
import { createReadStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Digest } from '../../plugin/base/digest.ts';
import { convertLayers } from '../../plugin/convert/build/convert-layers.ts';
import type { ConvertOptions } from '../../plugin/convert/build/options.ts';
import { DIFF_ID_ANNOTATION } from '../../plugin/image/oci/annotations.ts';
import { buildImage, type Image, type ImageConfig, type Layer, MEDIA_TYPE } from './oci-image.ts';

export interface ConvertTarsOptions extends Partial<Pick<ConvertOptions, 'compression' | 'threads'>> {
  config: ImageConfig;
  /** A directory for the blobs; it must live as long as the image is pushed. Made if it is not there. */
  stagingDirectory: string;
  timeoutMs?: number;
}

/** Converts layer tars (or tar.gz), bottom to top, in full mode. */
export function convertTars(tarPaths: readonly string[], options: ConvertTarsOptions): Promise<Image> {
  return convert(tarPaths, { ...options, mode: 'full' });
}

/** Makes small blobs over layers that stay as they are, bottom to top. */
export function indexTars(tarPaths: readonly string[], options: Omit<ConvertTarsOptions, 'compression'>): Promise<Image> {
  return convert(tarPaths, { ...options, mode: 'index-only' });
}

async function convert(tarPaths: readonly string[], options: ConvertTarsOptions & { mode: 'full' | 'index-only' }): Promise<Image> {
  const { config, stagingDirectory, timeoutMs = 300_000, ...builder } = options;
  await mkdir(stagingDirectory, { recursive: true });
  const sources = tarPaths.map((path) => ({ name: basename(path), open: () => createReadStream(path, { highWaterMark: 1024 * 1024 }) }));
  const layers: Layer[] = [];
  for await (const layer of convertLayers(sources, { ...builder, stagingDirectory, signal: AbortSignal.timeout(timeoutMs) })) {
    const { digest, sizeBytes, annotations, path, kind } = layer;
    const diffId = (annotations[DIFF_ID_ANNOTATION] ?? digest) as Digest;
    layers.push({ mediaType: kind === 'index' ? MEDIA_TYPE.tarGzip : MEDIA_TYPE.tar, digest, sizeBytes, diffId, annotations, blob: path });
  }
  return buildImage(layers, config);
}
