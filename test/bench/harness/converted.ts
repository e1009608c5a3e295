/** Images converted by our builder, kept in the test cache by the image and the builder's sources, so that a bench need not convert again. */
import { globSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import type { Compression } from '../../../plugin/convert/build/compress-pool.ts';
import { ARTIFACT_TYPE } from '../../../plugin/image/oci/media-types.ts';
import { convertTars, indexTars } from '../../support/converted-image.ts';
import type { LayeredImage } from '../../support/layered-image.ts';
import { buildImage, type Image, type Layer } from '../../support/oci-image.ts';
import { cached, keyOf } from '../../support/test-cache.ts';
import { asArtifact } from '../../support/twin-image.ts';

const REPOSITORY = resolve(import.meta.dirname, '../../..');
const BUILDER_SOURCES = ['plugin/convert/build/*.ts', 'plugin/image/{erofs,lsmt,zfile,overlaybd-tar,oci}/*.ts'];
const INDEX_SOURCES = [...BUILDER_SOURCES, 'plugin/convert/build/index/*.ts', 'plugin/image/{gzip,turbo}/*.ts'];

function keyOfSources(patterns: readonly string[], ...inputs: string[]): string {
  const files = patterns.flatMap((pattern) => globSync(join(REPOSITORY, pattern))).sort();
  return keyOf(...inputs, ...files.map((file) => readFileSync(file)));
}

/** Layers made once by `make`, in a directory of their own that is given to it. */
async function keptLayers(key: string, make: (stagingDirectory: string) => Promise<readonly Layer[]>): Promise<Layer[]> {
  const directory = await cached(`bench-converted-${key}`, async (made) => {
    const stagingDirectory = join(made, 'staging');
    await mkdir(join(made, 'layers'));
    const kept: Layer[] = [];
    for (const [index, layer] of (await make(stagingDirectory)).entries()) {
      const name = `layer${index}-${basename(layer.blob as string)}`;
      await rename(layer.blob as string, join(made, 'layers', name));
      kept.push({ ...layer, blob: name });
    }
    await writeFile(join(made, 'layers.json'), JSON.stringify(kept));
    await rm(stagingDirectory, { recursive: true });
  });
  const kept = JSON.parse(await readFile(join(directory, 'layers.json'), 'utf8')) as Layer[];
  return kept.map((layer) => ({ ...layer, blob: join(directory, 'layers', layer.blob as string) }));
}

/** The image in full mode; `compression` as the builder's own default if absent. */
export async function convertedImage(source: LayeredImage, compression?: Compression): Promise<Image> {
  const key = keyOfSources(BUILDER_SOURCES, source.image.manifest.digest, JSON.stringify(compression ?? null));
  const layers = await keptLayers(key, async (stagingDirectory) => {
    const options = { config: source.config, stagingDirectory, timeoutMs: 900_000, ...(compression === undefined ? {} : { compression }) };
    return (await convertTars(source.tarPaths, options)).layers;
  });
  return buildImage(layers, source.config);
}

/** The image's index-only twin. */
export async function indexTwin(source: LayeredImage): Promise<Image> {
  const key = keyOfSources(INDEX_SOURCES, source.image.manifest.digest, 'index-only');
  const layers = await keptLayers(key, async (stagingDirectory) => {
    const originals = source.image.layers.map(({ blob }) => blob as string);
    return (await indexTars(originals, { config: source.config, stagingDirectory, timeoutMs: 900_000 })).layers;
  });
  return asArtifact(buildImage(layers, source.config), ARTIFACT_TYPE.turbo, source.image);
}
