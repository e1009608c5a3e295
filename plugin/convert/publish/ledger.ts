/**
 * What publication asks of the book of converted layers: which layer of a source chain exists already, and where. Implemented by the
 * control plane over its database; a conversion's process reaches it through its parent. Ours.
 */
import { z } from 'zod';
import { type Digest, isDigest, sha256 } from '../../base/digest.ts';
import { MAX_BLOB_BYTES } from '../../base/limits.ts';

const digest = z.custom<Digest>(isDigest, 'not sha256: and 64 hexadecimal digits');

/** A converted layer that is in the registry. */
export const knownLayerSchema = z.strictObject({
  digest,
  sizeBytes: z.int().min(0).max(MAX_BLOB_BYTES),
  annotations: z.record(z.string(), z.string()),
});
export type KnownLayer = z.infer<typeof knownLayerSchema>;

/** `repositories`: the one asked about first, if it has the layer; then others of the same registry. */
export type LayerEntry = KnownLayer & { readonly repositories: readonly string[] };

export interface LayerLedger {
  /** One answer for each chain id. */
  find(chainIds: readonly Digest[], signal: AbortSignal): Promise<readonly (LayerEntry | undefined)[]>;
  /** Durable when it resolves: a later attempt begins above this layer. Only for blobs that were seen in the repository. */
  record(chainId: Digest, layer: KnownLayer, signal: AbortSignal): Promise<void>;
  /** The registry no longer has the layer in this repository. */
  forget(chainId: Digest, signal: AbortSignal): Promise<void>;
}

/** The chain ids of every prefix of the layers, bottom to top (image-spec, config.md). */
export function chainIdsOf(diffIds: readonly Digest[]): Digest[] {
  const chainIds: Digest[] = [];
  for (const diffId of diffIds) {
    const below = chainIds.at(-1);
    chainIds.push(below === undefined ? diffId : sha256(`${below} ${diffId}`));
  }
  return chainIds;
}
