/** Layer files for benches that need a device of a certain size rather than an image: uncompressed LSMT, one mapping over everything. Ours. */
import { createReadStream } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { sha256 } from '../../../plugin/base/digest.ts';
import { SECTOR_BYTES } from '../../../plugin/base/units.ts';
import { CommittedLayerWriter } from '../../../plugin/image/lsmt/committed-writer.ts';
import type { Layer } from '../../support/oci-image.ts';
import { MEDIA_TYPE } from '../../support/oci-image.ts';

/** A name for the layer: benches read it before all of it is there, and nobody asks for the digest of its bytes. */
function layer(filePath: string, sizeBytes: number): Layer {
  const digest = sha256(Buffer.from(filePath));
  return { mediaType: MEDIA_TYPE.tar, digest, sizeBytes, diffId: digest, blob: filePath };
}

/** A layer that holds the bytes of `rawPath` as the whole device. */
export async function layerOfRaw(rawPath: string, filePath: string): Promise<Layer> {
  const { size } = await stat(rawPath);
  await using file = await open(filePath, 'w');
  const writer = new CommittedLayerWriter({ virtualSizeBytes: size });
  await file.write(writer.header());
  writer.addData(0, size / SECTOR_BYTES);
  for await (const chunk of createReadStream(rawPath, { highWaterMark: 1024 * 1024 })) await file.write(chunk as Buffer);
  await file.write(writer.finish());
  return layer(filePath, (await file.stat()).size);
}

/** A layer whose device reads as zeros; a hole on disk, but data to everyone who fetches it. */
export async function sparseLayer(filePath: string, deviceBytes: number): Promise<Layer> {
  await using file = await open(filePath, 'w');
  const writer = new CommittedLayerWriter({ virtualSizeBytes: deviceBytes });
  const header = writer.header();
  await file.write(header);
  writer.addData(0, deviceBytes / SECTOR_BYTES);
  await file.write(writer.finish(), 0, null, header.length + deviceBytes);
  return layer(filePath, (await file.stat()).size);
}
