/**
 * The contract of image caches: what they are, what is told about them and what may be asked (R83 – R136). The admin API, the CRI proxy and
 * the Kubernetes part speak to {@link CacheService} alone; what a cache needs from the world is in `image-store.ts`. Ours.
 *
 * Times are RFC 3339 in UTC (`2026-01-31T12:00:00.000Z`), sizes named `imageCacheSize` are GiB, as in the ImageCache resource. Failures are
 * AppError; `details.reason` is one of {@link CacheErrorReason}.
 */
import type { Digest } from '../base/digest.ts';
import type { CACHE_STATES, CacheTag, CreateCacheRequest, ImageRegistryCredential, MatchRequest, UpdateCacheRequest } from './requests.ts';

export type { CacheTag, CreateCacheRequest, ImageRegistryCredential, MatchRequest, PodImage, UpdateCacheRequest } from './requests.ts';

/** See `cache-states.ts` for the allowed moves. Usable by pods: Ready; while Updating or UpdateFailed the former content serves. */
export type CacheState = (typeof CACHE_STATES)[number];

/** Whose pool a cache counts in: made by hand, or by the system for a pod that matched nothing. */
export type CacheOwner = 'user' | 'system';

/**
 * Reasons of failures (R133 where it names one):
 * - `ImageCache.IncorrectStatus` the cache's state forbids it (FailedPrecondition): update outside Ready and UpdateFailed, a pin that is not Ready
 * - `NoNeedUpdate` the update changes nothing (InvalidArgument)
 * - `OperationConflict` another change runs, or `version` is not the cache's (Conflict)
 * - `QuotaExceeded` number of caches, or bytes (ResourceExhausted; answered as 403)
 * - `DryRunOperation` a dry run that would have been accepted (FailedPrecondition)
 * - `IdempotentParameterMismatch` the client token was used for another request (Conflict)
 * - `ImageCache.NameDuplicated` (AlreadyExists)
 * - `InvalidParameter` (InvalidArgument); `details.field` names it
 * - `ImageCacheNotFound` (NotFound)
 * - `ServiceStopping` (Unavailable)
 */
export const CACHE_ERROR_REASONS = [
  'ImageCache.IncorrectStatus',
  'NoNeedUpdate',
  'OperationConflict',
  'QuotaExceeded',
  'DryRunOperation',
  'IdempotentParameterMismatch',
  'ImageCache.NameDuplicated',
  'InvalidParameter',
  'ImageCacheNotFound',
  'ServiceStopping',
] as const;
export type CacheErrorReason = (typeof CACHE_ERROR_REASONS)[number];

/** How an image is held: accelerated with its data, accelerated over its original layers, or as its publisher made it. */
export type ImageForm = 'full' | 'index-only' | 'ordinary';

/** One image of a cache as its digest pins it. */
export interface CacheImage {
  /** As it was asked for. */
  readonly reference: string;
  /** Canonical form: `docker.io/library/nginx:1.27`. */
  readonly canonicalReference: string;
  /** What the reference named when the cache was made; null until it has been resolved. */
  readonly digest: Digest | null;
  /** The manifest for this machine; equal to `digest` unless that is an index. */
  readonly platformDigest: Digest | null;
  /** The image id that CRI shows. */
  readonly configDigest: Digest | null;
  readonly form: ImageForm | null;
  /** Bytes that it takes in the cache, shared ones included. */
  readonly sizeBytes: number | null;
}

/** A cache as it is shown. Never holds credentials. */
export interface ImageCache {
  /** `imc-…` */
  readonly imageCacheId: string;
  readonly imageCacheName: string;
  readonly owner: CacheOwner;
  /** The sandbox that an automatic cache was made for. */
  readonly sandboxId: string | null;
  readonly status: CacheState;
  /** Percent of the standard (whole, read back) content, 0 to 100 (R127); falls only when an update or a repair begins. */
  readonly progress: number;
  /** Percent of what a start needs; null without `flash`. */
  readonly flashProgress: number | null;
  /** What it serves now; before the first Ready, what it is to hold. */
  readonly images: readonly CacheImage[];
  /** What an update builds, or failed to build; null otherwise. */
  readonly pendingImages: readonly CacheImage[] | null;
  /** GiB */
  readonly imageCacheSize: number;
  /** Days; null: until it is deleted (user), or by the system's rule (system). */
  readonly retentionDays: number | null;
  readonly eliminationStrategy: 'LRU' | null;
  readonly autoMatchImageCache: boolean;
  readonly flash: boolean;
  readonly tags: readonly CacheTag[];
  readonly plainHttpRegistry: readonly string[];
  readonly insecureRegistry: readonly string[];
  readonly cpuArch: string | null;
  readonly osType: string | null;
  readonly resourceGroupId: string | null;
  readonly cloud: Readonly<Record<string, string>>;
  readonly creationTime: string;
  readonly lastUpdatedTime: string;
  /** When it will be removed; null: never by itself. Moves on with each match of an automatic cache. */
  readonly expireDateTime: string | null;
  readonly lastMatchedTime: string | null;
  /** How often pods matched it. */
  readonly matchCount: number;
  /** The sealed set that backs it: `s-…`; null until there is one. */
  readonly snapshotId: string | null;
  /** Set while a flash cache is used before it is whole: `f-…`. */
  readonly flashSnapshotId: string | null;
  /** `eci-…`: the worker process (its cgroup) that builds it. */
  readonly containerGroupId: string;
  /** Counts changes; give it to `update` to change only what was seen. */
  readonly version: number;
  /** The last failure, as a sentence; null when there is none. */
  readonly failure: string | null;
  /** The 50 newest, oldest first. */
  readonly events: readonly CacheEvent[];
}

/** Shape of R130. Equal consecutive ones are one with a count. */
export interface CacheEvent {
  readonly type: 'Normal' | 'Warning';
  /** One word: `ImageResolved`, `ImageCached`, `Ready`, `TooBig` … */
  readonly reason: string;
  readonly message: string;
  /** `<imageCacheId>.<hexadecimal number>`; unique in the cache. */
  readonly name: string;
  readonly count: number;
  readonly firstTimestamp: string;
  readonly lastTimestamp: string;
}

/** Filters of DescribeImageCaches (R129); those that are given must all hold. */
export interface CacheFilter {
  readonly imageCacheIds?: readonly string[];
  readonly imageCacheName?: string;
  readonly snapshotId?: string;
  /** A reference: caches with an image of the same canonical reference. */
  readonly image?: string;
  /** Value absent: any. */
  readonly tags?: readonly { readonly key: string; readonly value?: string }[];
  readonly resourceGroupId?: string;
  readonly status?: CacheState;
  readonly owner?: CacheOwner;
  /** Runs the matcher (nothing is recorded): only what matches these pod images, best first. */
  readonly matchImages?: readonly string[];
  /** With `matchImages`: every image whole. */
  readonly imageFullMatch?: boolean;
  /** With `matchImages`: at least so many images whole. */
  readonly imageMatchCountRequest?: number;
}

export interface CachePage {
  /** Newest first, or best match first. */
  readonly caches: readonly ImageCache[];
  /** For the next page; null on the last. Opaque. */
  readonly next: string | null;
  /** Of all pages. */
  readonly totalCount: number;
}

/** One step of {@link CacheService.watch}. A deleted cache is shown as it last was. */
export interface CacheChange {
  readonly kind: 'added' | 'changed' | 'deleted';
  readonly cache: ImageCache;
}

/** How near one pod image is to what a cache holds, best first (R107). */
export type ImageMatchTier = 'same-digest' | 'same-reference' | 'same-repository' | 'shared-layers' | 'none';

export interface ImageMatch {
  /** The pod's image. */
  readonly reference: string;
  readonly tier: ImageMatchTier;
  /** The cache's image that it was compared with at that tier; null for shared layers and none. */
  readonly cachedReference: string | null;
  /** True when the pod needs nothing from the registry for it but, at most, its manifest. */
  readonly isCovered: boolean;
  /** True when the references are equal and the tag has moved since the cache was made (R136). */
  readonly isStale: boolean;
  /** Bytes of the image's layers that the cache holds; 0 when the layers are not known. */
  readonly sharedLayerBytes: number;
}

/** Compared field by field in this order; higher is better. */
export interface MatchDegree {
  readonly sameDigest: number;
  readonly sameReference: number;
  readonly sameRepository: number;
  readonly sharedLayerBytes: number;
}

export interface MatchCandidate {
  readonly imageCacheId: string;
  readonly imageCacheName: string;
  readonly status: CacheState;
  readonly imageCacheSize: number;
  readonly creationTime: string;
  readonly degree: MatchDegree;
  readonly coveredImages: number;
  readonly images: readonly ImageMatch[];
  /** 1 is the chosen one; null when a rule excluded it. */
  readonly rank: number | null;
  /** Null for the chosen one; else the first rule by which it lost, as a sentence. */
  readonly lostBecause: string | null;
}

/** Every candidate and why it lost. Changes nothing. */
export interface MatchExplanation {
  /** `pinned`: by id. `matched`: by degree. `none`: an ordinary pull (R152); see `reason`. */
  readonly outcome: 'pinned' | 'matched' | 'none';
  readonly imageCacheId: string | null;
  readonly reason: string;
  /** GiB that a cache may have for this pod. */
  readonly ephemeralStorage: number;
  /** Best first; the excluded ones after them by id. */
  readonly candidates: readonly MatchCandidate[];
}

/** The decision for a pod. */
export interface MatchResult {
  readonly outcome: 'pinned' | 'matched' | 'none';
  /** The chosen cache; null for `none`. */
  readonly cache: ImageCache | null;
  /** One for each image of the pod, as the pod names it; empty for `none`. */
  readonly images: readonly ImageMatch[];
  /** References of the pod that no chosen cache holds whole. Not empty and automatic creation on: call `autoCreate` with all of the pod's. */
  readonly missingImages: readonly string[];
}

export interface AutoCreateRequest {
  readonly sandboxId: string;
  /** Those that the pod declares: 1 to 20 different ones. A later call for the same sandbox adds to them. */
  readonly images: readonly string[];
  readonly credentials?: readonly ImageRegistryCredential[];
  /** GiB beyond the 30 that a pod has; the cache may take both together (R95). */
  readonly extraEphemeralStorage?: number;
  readonly plainHttpRegistry?: readonly string[];
  readonly insecureRegistry?: readonly string[];
}

/** ListUsage (R132) and bytes. */
export interface CacheUsage {
  readonly maxImageCacheCount: number;
  readonly usedImageCacheCount: number;
  readonly maxAutoImageCacheCount: number;
  readonly usedAutoImageCacheCount: number;
  /** Of the configuration. */
  readonly budgetBytes: number;
  /** Of all images that caches hold or build; what several share counts once. */
  readonly committedBytes: number;
  readonly creating: number;
  readonly waiting: number;
}

/** What the admin API, the CRI proxy and the Kubernetes part may ask for. */
export interface CacheService {
  /**
   * Durable when it resolves; the images follow (watch `status`). The same token with the same request within 24 hours gives the same cache,
   * as long as that one exists; afterwards a new one.
   * Errors: InvalidParameter, NameDuplicated, QuotaExceeded, IdempotentParameterMismatch, DryRunOperation.
   */
  create(request: CreateCacheRequest, options?: { clientToken?: string; dryRun?: boolean }): Promise<ImageCache>;
  /** `limit` 1 to 100 (default 50); `after`: `next` of the page before. */
  list(filter?: CacheFilter, page?: { limit?: number; after?: string }): CachePage;
  /** Throws NotFound. */
  get(imageCacheId: string): ImageCache;
  /**
   * Metadata changes at once. Images, size: status Updating while the former content serves. The images that are named again are resolved
   * again, so that an update with the same list follows tags that moved. Errors: IncorrectStatus, NoNeedUpdate, OperationConflict,
   * InvalidParameter, NameDuplicated, IdempotentParameterMismatch, DryRunOperation.
   */
  update(
    imageCacheId: string,
    patch: UpdateCacheRequest,
    options?: { version?: number; clientToken?: string; dryRun?: boolean },
  ): Promise<ImageCache>;
  /**
   * Gone from list and match when it resolves, and its pins with it; bytes that a container uses go with the last user. Again within 24 hours: no error;
   * an id that never was: NotFound.
   */
  delete(imageCacheId: string): Promise<void>;
  /** The 50 newest, oldest first. */
  events(imageCacheId: string): readonly CacheEvent[];
  /**
   * Every cache that passes the filter as `added`, then changes. A slow reader is told the newest state of each cache, not every step
   * between. Ends with the signal or the service.
   */
  watch(signal: AbortSignal, filter?: Pick<CacheFilter, 'imageCacheIds' | 'owner'>): AsyncIterable<CacheChange>;
  /**
   * Every candidate with its scores and why it lost. Changes nothing. `atMost`: the chosen one, and so many others that have something in common
   * with the pod; in time that does not grow with the number of caches, for who asks at each pull.
   */
  explain(request: MatchRequest, options?: { atMost?: number }): MatchExplanation;
  /**
   * The decision for a pod, from what is known here (give digests for a better one); records the match. A pin that is unknown is NotFound, one
   * that does not serve is FailedPrecondition `ImageCache.IncorrectStatus`.
   */
  matchForPod(request: MatchRequest): MatchResult;
  /**
   * The automatic cache of the sandbox: made, added to, or as it is. Shares the download with the pod's own pull. Errors: InvalidParameter,
   * QuotaExceeded when every automatic cache is in use.
   */
  autoCreate(request: AutoCreateRequest): Promise<ImageCache>;
  usage(): CacheUsage;
  /** Caches that hold or build an image of this reference, index, manifest or config digest (image id). Constant time. */
  usersOf(referenceOrDigest: string): readonly string[];
  /** True when {@link usersOf} is not empty: collectors must leave the image alone. */
  isPinned(referenceOrDigest: string): boolean;
  /** What does not work now, as a sentence. */
  readonly complaint: string | undefined;
  /** Ends work and watchers; creations go on at the next start. */
  stop(): Promise<void>;
}
