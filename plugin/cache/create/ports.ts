/** What the making of caches needs from other parts; `plugin/main/` joins them. */
import type { Digest } from '../../base/digest.ts';
import type { BlobSource, LayerSpec } from '../../file/device-spec.ts';
import type { ImageAccess } from '../image-store.ts';

export interface PinnedBlob {
  readonly digest: string;
  readonly sizeBytes: number;
  /** On disk, whole, and its digest was checked. */
  readonly isWhole: boolean;
  readonly diskBytes: number;
}

/** The data plane's store of blobs. Every call may fail with Unavailable while blockd is away. */
export interface BlobKeeper {
  /** Makes these the blobs that an owner keeps. ResourceExhausted with `neededBytes` and `limitBytes`: the store has no room. */
  pin(owner: string, blobs: readonly BlobSource[], signal: AbortSignal): Promise<void>;
  /** Makes a pinned blob whole, checks its digest (`isCheckedAgain`: whoever checked it before), and answers where its bytes lie. */
  fillPinned(
    owner: string,
    blob: BlobSource,
    signal: AbortSignal,
    options: { isCheckedAgain: boolean },
  ): Promise<{ path: string; fetchedBytes: number }>;
  /** Bytes that are here, by digest, of the blobs that {@link fillPinned} was asked for. Starts again when blockd is replaced. */
  filledBytes(owner: string, signal: AbortSignal): Promise<Readonly<Record<string, number>>>;
  pinned(owner: string, signal: AbortSignal): Promise<readonly PinnedBlob[]>;
  pinOwners(signal: AbortSignal): Promise<readonly string[]>;
  unpin(owner: string, signal: AbortSignal): Promise<void>;
  wholeOf(digests: readonly string[], signal: AbortSignal): Promise<readonly string[]>;
  /** Lets the data plane reach these repositories as a cache's images are reached, for a minute. */
  grant(
    owner: string,
    repositories: readonly BlobSource['repositories'][number][],
    access: ImageAccess,
    signal: AbortSignal,
  ): Promise<void>;
}

/** How the snapshotter will serve an image. */
export interface ServedPlan {
  /** Of the image's layers, from the bottom, those that are served without unpacking. */
  readonly layers: readonly { readonly spec: LayerSpec }[];
  /** Why not more; null when all are. */
  readonly reason: string | null;
}

/** The snapshotter, which runs in the same process. */
export interface ServedImages {
  /**
   * Decides now, as the first Prepare of a pull would, and remembers it for that Prepare. Never fails because of a twin. Errors:
   * ResourceExhausted, those of a reference.
   */
  plan(image: { reference: string; manifestDigest: Digest; isAccelerated: boolean }, access: ImageAccess): Promise<ServedPlan>;
  /** Every blob that snapshots of this chain are read from; none for an ordinary one. */
  blobsOf(chainId: Digest): readonly BlobSource[];
}
