/**
 * What may be asked of image caches, one schema for types, checks and the admin API's document. Names and ranges are those of the ImageCache
 * resource and of CreateImageCache (R110, R118, R120, R121, R155). Unknown fields are refused. Ours.
 */
import { z } from 'zod';
import { isAppError } from '../base/errors.ts';
import { isRegistryHost, parseReference } from '../registry/reference.ts';

/** Images in one cache (R110). */
export const MAX_CACHE_IMAGES = 20;
/** GiB (R120). */
export const MIN_CACHE_SIZE = 20;
export const MAX_CACHE_SIZE = 32_768;
/** Days (R120); 65,536 days are 179 years. */
export const MAX_RETENTION_DAYS = 65_536;
export const MAX_TAGS = 20;
export const MAX_CREDENTIALS = 10;
/** Registries with a transport rule of their own in one request. */
export const MAX_REGISTRIES = 20;
/** Images of one pod: Kubernetes has no limit, but an object of etcd ends at 1.5 MiB. */
export const MAX_POD_IMAGES = 100;
/** GiB that a pod may declare beyond the 30 that it has (R134). */
export const MAX_EXTRA_EPHEMERAL = 5_000;
/** Names of automatic caches begin with this; users may not take them (R94). */
export const AUTOMATIC_PREFIX = 'auto-create-for-';
/** Layers of one image; the format's own limit is 255, others have 127. */
const MAX_IMAGE_LAYERS = 255;

export const CACHE_STATES = ['Preparing', 'Creating', 'Ready', 'Failed', 'Updating', 'UpdateFailed'] as const;

/** True when the text names an image: host, repository, tag or digest, with the usual shorthand. */
export function isImageReference(text: string): boolean {
  try {
    parseReference(text);
    return true;
  } catch (error) {
    if (isAppError(error, 'InvalidArgument')) return false;
    throw error;
  }
}

/** As a person wrote it, `nginx` and `registry.example/team/app:1.2@sha256:…` alike. */
export const imageReferenceSchema = z.string().min(1).max(512).refine(isImageReference, 'is not an image reference');

/** Equal references once; their order is the user's. */
const imagesSchema = z
  .array(imageReferenceSchema)
  .min(1)
  .max(MAX_CACHE_IMAGES)
  .refine((images) => new Set(images).size === images.length, 'names an image twice');

/** As in the resource group, tag and name rules of the vendor: lower case, digits and -, 2 to 128, not beginning or ending with -. */
export const cacheNameSchema = z.string().regex(/^[a-z0-9](?:[a-z0-9-]{0,126}[a-z0-9])$/, 'is not 2 to 128 of a-z 0-9 -, ends included');

/** `imc-` and 20 of a-z 0-9. */
export const cacheIdSchema = z.string().regex(/^imc-[a-z0-9]{20}$/, 'is not imc- and 20 of a-z 0-9');

/** ASCII, up to 64 characters (R121). */
export const clientTokenSchema = z.string().regex(/^[\x21-\x7e]{1,64}$/, 'is not 1 to 64 printable ASCII characters');

const registryHostSchema = z.string().refine(isRegistryHost, 'is not a registry host, with its port if it has one');

export const tagSchema = z.strictObject({ key: z.string().min(1).max(128), value: z.string().max(256).default('') });
export type CacheTag = z.infer<typeof tagSchema>;

const tagsSchema = z
  .array(tagSchema)
  .max(MAX_TAGS)
  .refine((tags) => new Set(tags.map((tag) => tag.key)).size === tags.length, 'has a key twice');

/** Write-only: never in an answer, event, error or log. */
export const registryCredentialSchema = z.strictObject({
  /** Registry host with port, as in references. */
  server: registryHostSchema,
  userName: z.string().min(1).max(1024),
  password: z.string().min(1).max(65_536),
});
export type ImageRegistryCredential = z.infer<typeof registryCredentialSchema>;

const credentialsSchema = z
  .array(registryCredentialSchema)
  .max(MAX_CREDENTIALS)
  .refine((list) => new Set(list.map((entry) => entry.server)).size === list.length, 'has a server twice');

/** Things of the vendor's cloud, by their own names: stored, shown, and without effect on a node. */
const cloudSchema = z
  .record(z.string().regex(/^[A-Za-z][A-Za-z0-9_.-]{0,63}$/), z.string().max(4096))
  .refine((record) => Object.keys(record).length <= 32, 'has more than 32 entries');

/** What create and update share, without defaults. */
const settings = {
  imageCacheName: cacheNameSchema,
  images: imagesSchema,
  /** GiB that the images may take. */
  imageCacheSize: z.int().min(MIN_CACHE_SIZE).max(MAX_CACHE_SIZE),
  /** Days until the cache is removed; null: never. */
  retentionDays: z.int().min(1).max(MAX_RETENTION_DAYS).nullable(),
  /** Whether the cache gives way when the quota is reached; null: it does not. */
  eliminationStrategy: z.literal('LRU').nullable(),
  /**
   * Reuse (the vendor's name). Blobs that are here are never downloaded again; true: they count as they were checked when they came, false:
   * they are read from the disk and checked anew.
   */
  autoMatchImageCache: z.boolean(),
  /** Usable as soon as metadata and the blocks of a start are here, the rest following. */
  flash: z.boolean(),
  tags: tagsSchema,
  imageRegistryCredentials: credentialsSchema,
  /** Registries spoken to without TLS, for these images alone (R135). */
  plainHttpRegistry: z.array(registryHostSchema).max(MAX_REGISTRIES),
  /** Registries whose certificate is not checked, for these images alone. */
  insecureRegistry: z.array(registryHostSchema).max(MAX_REGISTRIES),
};

export const createCacheRequestSchema = z.strictObject({
  imageCacheName: settings.imageCacheName,
  images: settings.images,
  /** Absent: the configured default (20). */
  imageCacheSize: settings.imageCacheSize.optional(),
  retentionDays: settings.retentionDays.default(null),
  eliminationStrategy: settings.eliminationStrategy.default(null),
  autoMatchImageCache: settings.autoMatchImageCache.default(false),
  flash: settings.flash.default(false),
  tags: settings.tags.default([]),
  imageRegistryCredentials: settings.imageRegistryCredentials.default([]),
  plainHttpRegistry: settings.plainHttpRegistry.default([]),
  insecureRegistry: settings.insecureRegistry.default([]),
  /** What images of several platforms are cached for (R158); absent: this machine's. */
  cpuArch: z
    .string()
    .regex(/^[a-z0-9_]{1,32}$/)
    .optional(),
  osType: z
    .string()
    .regex(/^[a-z0-9]{1,32}$/)
    .optional(),
  /** Stored and filtered by; no effect. */
  resourceGroupId: z.string().max(128).optional(),
  /** Stored and shown; no effect (R118: zoneId, securityGroupId, vSwitchId, eipInstanceId, flashCopyCount, standardCopyCount …). */
  cloud: cloudSchema.default({}),
});
/** As it comes from a client: what has a default may be absent. */
export type CreateCacheRequest = z.input<typeof createCacheRequestSchema>;

/** Absent: unchanged. Lists are replaced whole. Images and size are built anew (Updating); the rest takes effect at once. */
export const updateCacheRequestSchema = z.strictObject({
  imageCacheName: settings.imageCacheName.optional(),
  images: settings.images.optional(),
  imageCacheSize: settings.imageCacheSize.optional(),
  retentionDays: settings.retentionDays.optional(),
  eliminationStrategy: settings.eliminationStrategy.optional(),
  autoMatchImageCache: settings.autoMatchImageCache.optional(),
  flash: settings.flash.optional(),
  tags: settings.tags.optional(),
  imageRegistryCredentials: settings.imageRegistryCredentials.optional(),
  plainHttpRegistry: settings.plainHttpRegistry.optional(),
  insecureRegistry: settings.insecureRegistry.optional(),
  resourceGroupId: z.string().max(128).optional(),
});
export type UpdateCacheRequest = z.infer<typeof updateCacheRequestSchema>;

const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'is not sha256: and 64 hexadecimal digits');

/** One image of a pod. What the caller knows beyond the reference makes the match better. */
export const podImageSchema = z.strictObject({
  reference: imageReferenceSchema,
  /** What the tag names now: index or manifest. Absent: not asked, or the registry did not answer in time. */
  digest: digestSchema.optional(),
  /** The layers of the image for this machine; absent: unknown. */
  layers: z
    .array(z.strictObject({ digest: digestSchema, sizeBytes: z.int().min(0) }))
    .max(MAX_IMAGE_LAYERS)
    .optional(),
});
export type PodImage = z.infer<typeof podImageSchema>;

export const matchRequestSchema = z.strictObject({
  /** Every image of the pod, init containers included; equal ones count once. */
  images: z.array(podImageSchema).min(1).max(MAX_POD_IMAGES),
  /** GiB of ephemeral storage that the pod declared beyond the 30 that it has. */
  extraEphemeralStorage: z.int().min(0).max(MAX_EXTRA_EPHEMERAL).default(0),
  /** Pins one cache by id and passes by the matching (R145, R146). */
  imageCacheId: z.string().max(128).optional(),
  /** Only caches that hold every image of the pod (R143); goes before `matchCountRequest` (R147). */
  perfectMatch: z.boolean().default(false),
  /** Only caches that hold at least so many images of the pod whole (R144, C9). */
  matchCountRequest: z.int().min(1).max(MAX_POD_IMAGES).optional(),
});
export type MatchRequest = z.input<typeof matchRequestSchema>;

/** What the automatic cache of a pod is made from. */
export const autoCreateRequestSchema = z.strictObject({
  sandboxId: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,111}$/, 'is not 1 to 112 letters, digits, _ . -'),
  /** Containers of a pod often share one; 20 different ones at most. */
  images: z.array(imageReferenceSchema).min(1).max(MAX_POD_IMAGES),
  credentials: credentialsSchema.optional(),
  extraEphemeralStorage: z.int().min(0).max(MAX_EXTRA_EPHEMERAL).optional(),
  plainHttpRegistry: settings.plainHttpRegistry.optional(),
  insecureRegistry: settings.insecureRegistry.optional(),
});
