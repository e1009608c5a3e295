/** What a conversion is asked to make. One schema for jobs, rules, the child process and the admin API's checks. Ours. */
import { z } from 'zod';
import { KIB } from '../../base/units.ts';
import { ALGORITHM } from '../../image/zfile/codec.ts';
import type { Compression } from '../build/compress-pool.ts';

/** `linux/amd64`, `linux/arm/v7`. */
const platform = z
  .string()
  .regex(/^[a-z0-9]{1,32}\/[a-z0-9_]{1,32}(?:\/[a-z0-9.]{1,32})?$/, 'is not os/architecture or os/architecture/variant');

export const COMPRESSIONS = ['zstd', 'lz4'] as const;
export const BLOCK_KIB = [4, 8, 16, 32, 64] as const;

export const convertRequestSchema = z.strictObject({
  mode: z.enum(['full', 'index-only']).default('full'),
  /** Index-only mode: what becomes of a layer that cannot be read at random (zstd, gzip of several members). */
  unindexable: z.enum(['convert', 'refuse']).default('convert'),
  runtime: z.enum(['containerd', 'docker-and-containerd']).default('containerd'),
  /** Images of an index that are converted; the others stay as they are. Empty: all. */
  platforms: z.array(platform).max(32).default([]),
  compression: z.enum(COMPRESSIONS).default('zstd'),
  /** KiB of a compressed block. */
  blockKib: z.union(BLOCK_KIB.map((kib) => z.literal(kib))).default(64),
});
/** Defaults filled in. */
export type ConvertRequest = z.infer<typeof convertRequestSchema>;

export function compressionOf(request: ConvertRequest): Compression {
  return { algorithm: ALGORITHM[request.compression], blockSizeBytes: request.blockKib * KIB };
}

/** Changes whenever the builder writes other bytes for the same layers, so that its results are not mixed with older ones. */
const BUILDER_VERSION = 'erofs2';

/** What beside the layers shows in a converted layer: the key under which it may be used again. */
export function layerOptionsOf(request: ConvertRequest): string {
  // A layer that was converted in full for lack of an index is no answer for who wants none of those.
  const mode = request.mode === 'index-only' && request.unindexable === 'refuse' ? 'index-only-or-none' : request.mode;
  return `${mode}/${BUILDER_VERSION}/${request.compression}/${request.blockKib}`;
}
