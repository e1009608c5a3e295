/**
 * Images whose layers lie as files in the test cache: made once by a recipe that fills one directory a layer, then kept as tar and tar.gz.
 * Recipes are written so that the same inputs give the same bytes. Ours.
 */
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buildImage, type Image, type ImageConfig, type Layer, layerOfTarFile } from './oci-image.ts';
import { run } from './process.ts';
import { gzipFile, tarDirectory } from './tar.ts';
import { cached } from './test-cache.ts';

/** Everything that a recipe makes itself (not what packages bring) is of this time. */
export const RECIPE_TIME_S = 1_700_000_000;

export interface LayeredImage {
  /** With gzip layers, as images are pushed in practice. */
  image: Image;
  /** The layers' uncompressed tars, bottom to top: what a converter reads. */
  tarPaths: string[];
  /** All layers as one directory, read-only by convention. */
  tree: string;
  /** Sum of the tars. */
  tarsSizeBytes: number;
  config: ImageConfig;
}

export interface Recipe {
  /** Name in the cache: with a key of the recipe's inputs. */
  name: string;
  /** Makes one directory for each layer below `work`, and returns them bottom to top. */
  make(work: string): Promise<string[]>;
  config: ImageConfig;
}

/** The image of a recipe, made at the first call of a machine. */
export async function layeredImage(recipe: Recipe): Promise<LayeredImage> {
  const directory = await cached(recipe.name, async (made) => {
    const work = join(made, 'work');
    await mkdir(work);
    const directories = await recipe.make(work);
    const tree = join(made, 'tree');
    await mkdir(tree);
    for (const [index, layer] of directories.entries()) {
      const tar = join(made, `layer${index}.tar`);
      await tarDirectory(layer, tar, { latestMtimeS: RECIPE_TIME_S });
      await gzipFile(tar, `${tar}.gz`);
      await run('tar', ['-xpf', tar, '--numeric-owner', '--xattrs', '--xattrs-include=*', '-C', tree], { timeoutMs: 600_000 });
    }
    await rm(work, { recursive: true });
    const layers = await Promise.all(
      directories.map((_, index) => layerOfTarFile(join(made, `layer${index}.tar`), join(made, `layer${index}.tar.gz`))),
    );
    // Paths change when the directory gets its name; digests are what is worth keeping.
    await writeFile(join(made, 'layers.json'), JSON.stringify(layers.map(({ blob: _, ...rest }) => rest)));
  });
  const kept = JSON.parse(await readFile(join(directory, 'layers.json'), 'utf8')) as Omit<Layer, 'blob'>[];
  const layers = kept.map((layer, index) => ({ ...layer, blob: join(directory, `layer${index}.tar.gz`) }));
  const tarPaths = layers.map((_, index) => join(directory, `layer${index}.tar`));
  const sizes = await Promise.all(tarPaths.map(async (path) => (await stat(path)).size));
  const tarsSizeBytes = sizes.reduce((sum, size) => sum + size, 0);
  return { image: buildImage(layers, recipe.config), tarPaths, tree: join(directory, 'tree'), tarsSizeBytes, config: recipe.config };
}
