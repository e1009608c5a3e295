/** What an accelerated snapshot records about its device: enough to build it without asking its parents or the registry. */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { isDigest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_LAYERS } from '../base/limits.ts';
import { type BlobSource, type DeviceSpec, deviceIdOf, type LayerSpec, layerSpecSchema } from '../file/device-spec.ts';

const acceleratedSchema = z.object({
  /** The image as it was pulled; for people and for the registry's host. */
  image: z.string().max(512),
  /** The manifest that the layers were taken from; null when only labels were at hand. */
  artifact: z.string().refine(isDigest, 'not a digest').nullable(),
  /** The ordinary image that was pulled, when the artifact is its twin. */
  base: z.string().refine(isDigest, 'not a digest').nullable().default(null),
  /** The complete device, bottom to top, up to and with this snapshot's own layer. */
  layers: z.array(layerSpecSchema).min(1).max(MAX_LAYERS),
});
export type Accelerated = z.infer<typeof acceleratedSchema>;

/** The stored form. */
export function encodeAccelerated(value: Accelerated): string {
  return JSON.stringify(value);
}

/** Reads the stored form. Throws DataLoss: the database says something that no version of this program wrote. */
export function decodeAccelerated(text: string, key: string): Accelerated {
  const parsed = acceleratedSchema.safeParse(JSON.parse(text));
  if (parsed.success) return parsed.data;
  throw new AppError('DataLoss', { op: 'read snapshot', subject: key, what: `its list of layers is malformed: ${parsed.error.message}` });
}

/** Every digest without which the snapshot cannot be read: manifests, blobs, original layers, metadata files. */
export function needsOf(value: Accelerated): Set<string> {
  const needs = new Set(value.layers.flatMap((layer) => blobsOfLayer(layer).map((blob) => blob.digest)));
  for (const manifest of [value.artifact, value.base]) if (manifest !== null) needs.add(manifest);
  return needs;
}

/** The blobs of one layer. */
export function blobsOfLayer(layer: LayerSpec): BlobSource[] {
  if (layer.kind === 'full') return [layer.blob];
  return [layer.meta, layer.gzipIndex, layer.chunkDigests, layer.target].filter((blob) => blob !== undefined);
}

/**
 * The device of a snapshot. Equal layers share one, with one exception: downloaded layers die with their snapshots, so a device
 * over them belongs to these files alone.
 */
export function deviceSpecOf(value: Accelerated): DeviceSpec {
  const files = value.layers.flatMap((layer) => (layer.kind === 'full' ? (layer.blob.localPath ?? []) : []));
  const suffix = files.length === 0 ? '' : `-${createHash('sha256').update(files.join('\0')).digest('hex').slice(0, 16)}`;
  return { version: 1, id: `${deviceIdOf(value.layers)}${suffix}`, image: value.image, layers: value.layers };
}
