/** Images converted by our builder, kept in the test cache by the image and the builder's sources, so that a bench need not convert again. */
import { globSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import type { Compression } from '../../../plugin/convert/build/compress-pool.ts';
import { convertTars } from '../../support/converted-image.ts';
import type { LayeredImage } from '../../support/layered-image.ts';
import { buildImage, type Image, type Layer } from '../../support/oci-image.ts';
import { cached, keyOf } from '../../support/test-cache.ts';

const REPOSITORY = resolve(import.meta.dirname, '../../..');
const BUILDER_SOURCES = ['plugin/convert/build/*.ts', 'plugin/image/{erofs,lsmt,zfile,overlaybd-tar,oci}/*.ts'];

/** The image in full mode; `compression` as the builder's own default if absent. */
export async function convertedImage(source: LayeredImage, compression?: Compression): Promise<Image> {
  const files = BUILDER_SOURCES.flatMap((pattern) => globSync(join(REPOSITORY, pattern))).sort();
  const key = keyOf(source.image.manifest.digest, JSON.stringify(compression ?? null), ...files.map((file) => readFileSync(file)));
  const directory = await cached(`bench-converted-${key}`, async (made) => {
    const stagingDirectory = join(made, 'staging');
    const options = { config: source.config, stagingDirectory, timeoutMs: 900_000, ...(compression === undefined ? {} : { compression }) };
    const { layers } = await convertTars(source.tarPaths, options);
    await mkdir(join(made, 'layers'));
    const kept: Layer[] = [];
    for (const [index, layer] of layers.entries()) {
      const name = `layer${index}-${basename(layer.blob as string)}`;
      await rename(layer.blob as string, join(made, 'layers', name));
      kept.push({ ...layer, blob: name });
    }
    await writeFile(join(made, 'layers.json'), JSON.stringify(kept));
    await rm(stagingDirectory, { recursive: true });
  });
  const kept = JSON.parse(await readFile(join(directory, 'layers.json'), 'utf8')) as Layer[];
  return buildImage(
    kept.map((layer) => ({ ...layer, blob: join(directory, 'layers', layer.blob as string) })),
    source.config,
  );
}
