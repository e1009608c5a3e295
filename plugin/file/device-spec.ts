/**
 * What a block device is made of: the durable description that the control plane writes for blockd, one JSON file a device
 * (`devices/<id>.json`). It holds all that blockd needs to serve the device again after a restart, without asking anyone. Never a secret.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { isDigest } from '../base/digest.ts';
import { MAX_BLOB_BYTES, MAX_LAYERS } from '../base/limits.ts';
import { MIB } from '../base/units.ts';
import { blobKeyOf } from './store/blob-key.ts';

/** Digests of a blob of 128 GiB in chunks of 64 KiB; the list is held in memory while the blob is used. */
const MAX_CHUNK_LIST_BYTES = 64 * MIB;

const digest = z.string().refine(isDigest, 'not sha256: and 64 hexadecimal digits');

/** Where a blob's bytes come from. `localPath` (absolute) wins over the registry when given. */
export const blobSourceSchema = z.object({
  digest,
  sizeBytes: z.int().min(0).max(MAX_BLOB_BYTES),
  /** Repositories that hold the blob, tried in order: `registry.example:5000` and `library/app`. */
  repositories: z.array(z.object({ host: z.string().min(1).max(255), repository: z.string().min(1).max(255) })).max(16),
  localPath: z.string().startsWith('/').optional(),
  /** Where in the blob the SHA-256 of its chunks lie (plugin/image/oci/chunk-list.ts); absent: the layer carries no list. */
  chunkList: z
    .object({ digest, offsetBytes: z.int().min(0), sizeBytes: z.int().min(0).max(MAX_CHUNK_LIST_BYTES), chunkBytes: z.int().min(4096) })
    .optional(),
});
export type BlobSource = z.infer<typeof blobSourceSchema>;

export const layerSpecSchema = z.discriminatedUnion('kind', [
  /** A layer blob that carries its own data (LSMT, optionally in ZFile, optionally in tar). */
  z.object({ kind: z.literal('full'), blob: blobSourceSchema }),
  /** TurboOCI: metadata from `meta` (a file-system metadata file, optionally in ZFile), data from the original layer. */
  z.object({
    kind: z.literal('index'),
    meta: blobSourceSchema,
    target: blobSourceSchema,
    /** Present when the target is gzip: the random-access index. */
    gzipIndex: blobSourceSchema.optional(),
    /** SHA-256 of the chunks of the target's decompressed data (plugin/image/turbo/chunk-digests.ts); only our own indexes have one. */
    chunkDigests: blobSourceSchema.optional(),
  }),
]);
export type LayerSpec = z.infer<typeof layerSpecSchema>;

export const deviceSpecSchema = z.object({
  version: z.literal(1),
  id: z.string().regex(/^[a-z0-9-]{1,64}$/),
  /** The image reference, for logs and people only. */
  image: z.string().max(512),
  /** Bottom to top. */
  layers: z.array(layerSpecSchema).min(1).max(MAX_LAYERS),
});
export type DeviceSpec = z.infer<typeof deviceSpecSchema>;

/**
 * The device id of a list of layers: equal lists share one device, whatever image names them. Equal means the same bytes by the same
 * witness (store/blob-key.ts), so that no image is served what another one's registry sent.
 */
export function deviceIdOf(layers: readonly LayerSpec[]): string {
  const hash = createHash('sha256');
  for (const layer of layers) {
    const blobs = layer.kind === 'full' ? [layer.blob] : [layer.meta, layer.target, layer.gzipIndex, layer.chunkDigests];
    hash.update(`${layer.kind} ${blobs.map((blob) => (blob === undefined ? '' : blobKeyOf(blob))).join(' ')}\n`);
  }
  return hash.digest('hex').slice(0, 32);
}
