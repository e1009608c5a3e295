/** The golden files' registry blobs as an image, with the annotations that the reference implementation's convertor writes. */
import { join } from 'node:path';
import { FIXTURES_DIR } from './fixtures.ts';
import { buildImage, type Image, type Layer, layerOfOverlaybdBlob } from './oci-image.ts';

/** Layers 1 to `count` as lz4 blobs; `above` are ordinary layers on top of them. */
export async function referenceImage(count: 1 | 2 | 3 = 3, above: readonly Layer[] = []): Promise<Image> {
  const layers: Layer[] = [];
  for (let n = 1; n <= count; n++) layers.push(await layerOfOverlaybdBlob(join(FIXTURES_DIR, `blob/l${n}.lz4-4k.tar`)));
  return buildImage([...layers, ...above], { cmd: ['/bin/sh'] });
}

/** What the reference listed of the device of layers 1 to `count`; compare without `lost+found`, which belongs to ext4. */
export function referenceListing(count: 1 | 2 | 3 = 3): string {
  const layers = ['l1', 'l2', 'l3'].slice(0, count).join('+');
  return join(FIXTURES_DIR, `listing/native-${layers}.json`);
}
