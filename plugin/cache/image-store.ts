/**
 * The port through which caches touch the world: registries, the content store, containerd. `plugin/cache/create` implements it; tests have
 * one in memory. Every method may be called again with the same arguments after any failure or kill and then ends in the same state. Ours.
 *
 * Failures are AppError. Unavailable, DeadlineExceeded and ResourceExhausted of the machine may pass and are tried again; the others fail the cache.
 */
import type { Digest } from '../base/digest.ts';
import type { ImageRegistryCredential } from './requests.ts';
import type { ImageForm } from './types.ts';

/** How the images of one cache are reached. Plain data: crosses process borders. Secret: never logged. */
export interface ImageAccess {
  readonly credentials: readonly ImageRegistryCredential[];
  readonly plainHttp: readonly string[];
  readonly insecure: readonly string[];
  /** Absent: this machine's. */
  readonly platform?: { readonly os: string; readonly architecture: string };
}

export interface ResolvedLayer {
  /** The blob that is kept: for accelerated forms the accelerated one. */
  readonly digest: Digest;
  /** Of the blob as the registry gives it. */
  readonly sizeBytes: number;
  /** Of the file system up to this layer (OCI chain id), for look-ups of snapshots. */
  readonly chainId: Digest;
  /** The original layer that an index-only blob reads from, kept as well. */
  readonly source?: { readonly digest: Digest; readonly sizeBytes: number };
}

/** An image as a digest pins it. */
export interface ResolvedImage {
  /** As it was asked for. */
  readonly reference: string;
  /** What the reference names: an index or a manifest. */
  readonly digest: Digest;
  /** The manifest for the platform. */
  readonly platformDigest: Digest;
  readonly configDigest: Digest;
  /** The form it will be held in. */
  readonly form: ImageForm;
  readonly layers: readonly ResolvedLayer[];
  /**
   * Bytes it will take on disk when no other image shares anything, as far as that is known before it is here: blobs, sources, metadata. At
   * least the layers' sum. What it takes in truth is told by `prepare`.
   */
  readonly sizeBytes: number;
  /** What it takes on disk, once it is here; before, its layers are what is known. */
  readonly held?: readonly HeldPart[];
}

/** What is done of one image. Never more than the total. */
export interface PrepareProgress {
  /** Bytes that are here and verified, those that were here before included. */
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface PrepareOptions {
  readonly access: ImageAccess;
  readonly signal: AbortSignal;
  /** The name of the worker's cgroup and staging directory, unique to the cache. */
  readonly workerName: string;
  /**
   * Whether blobs that are here already, for whatever cache or container, count as they were checked when they came. False: their bytes are
   * read from the disk and checked anew.
   */
  readonly trustsReused: boolean;
  /** Bytes that the image may take; more is ResourceExhausted with `details.neededBytes` and `details.limitBytes`. */
  readonly reservationBytes: number;
  /**
   * `usable` (flash caches): resolves as soon as a pod can start from the image although it is not whole, reads of the rest going to the
   * registry; a second call with `whole` follows. Metadata and pins are as for `whole`. No reader notices the passage.
   */
  readonly until: 'usable' | 'whole';
  /** Of what `until` asks for. May be called often. */
  onProgress(progress: PrepareProgress): void;
  /** Something worth an event: a phase, an endpoint that does not answer, what was reused. Never a secret. */
  onNote(note: PrepareNote): void;
}

export interface PrepareNote {
  readonly type: 'Normal' | 'Warning';
  /** One word in PascalCase. */
  readonly reason: string;
  readonly message: string;
}

/** What an image took. */
export interface PreparedImage {
  /** Bytes fetched from registries for it; the rest was here. */
  readonly fetchedBytes: number;
  /** What it takes on disk now, whoever shares it. */
  readonly held: readonly HeldPart[];
}

/** A thing on disk that images may share; it is there once for all that name it. */
export interface HeldPart {
  /** A digest, or `snapshot` and a chain id. */
  readonly name: string;
  readonly bytes: number;
}

export interface ImageStore {
  /** Asks the registry. Bounded: at most a few requests, each with a deadline. NotFound, Unauthenticated … as the registry says. */
  resolve(reference: string, access: ImageAccess, signal: AbortSignal): Promise<ResolvedImage>;
  /**
   * Resolves when the image is Ready for the cache (see `until`): every blob whole in the store, its digest verified by reading, pinned for
   * the cache; containerd has manifest, config, image record and snapshots under the cache's lease. An image that is so already is
   * looked at and nothing is fetched. After a rejection nothing needs to be left; `release` removes what is.
   */
  prepare(imageCacheId: string, image: ResolvedImage, options: PrepareOptions): Promise<PreparedImage>;
  /** True when what `prepare` promised still holds; cheap (presence and sizes, not every byte). Rejects only when it cannot tell. */
  verify(imageCacheId: string, image: ResolvedImage, signal: AbortSignal): Promise<boolean>;
  /**
   * Drops the cache's pins, lease and image records that nobody else wants, except for the images in `keep`. Bytes that something
   * else uses stay until its end. Nothing to drop is no error.
   */
  release(imageCacheId: string, keep: readonly ResolvedImage[], signal: AbortSignal): Promise<void>;
  /** Ids of caches that own anything: for what a kill left. */
  list(signal: AbortSignal): Promise<readonly string[]>;
  /** Of these caches, those with an image that a container uses now. When it cannot be told: rejects, and the caches count as used. */
  inUse(imageCacheIds: readonly string[], signal: AbortSignal): Promise<ReadonlySet<string>>;
}
