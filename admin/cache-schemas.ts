/**
 * Shapes of the image-cache part of the admin API. Requests are checked by the schemas of the cache part itself; answers are its own
 * types, described here for the OpenAPI document and held to it by the type checker.
 */
import { z } from '@hono/zod-openapi';
import {
  CACHE_STATES,
  type CacheChange,
  type CacheEvent,
  type CacheUsage,
  cacheIdSchema,
  cacheNameSchema,
  clientTokenSchema,
  createCacheRequestSchema,
  type ImageCache,
  imageReferenceSchema,
  type MatchExplanation,
  matchRequestSchema,
  updateCacheRequestSchema,
} from '../plugin/cache/service.ts';
import { CACHE_PAGE_DEFAULT, CACHE_PAGE_MAX } from './limits.ts';
import { decimal } from './route-kit.ts';

const count = z.int().min(0);
const at = z.string().openapi({ description: 'RFC 3339, UTC', example: '2026-01-31T12:00:00.000Z' });

/** Images that one question may name; a URL has an end. */
export const MATCH_IMAGES_MAX = 100;

const clientToken = clientTokenSchema
  .optional()
  .openapi({ description: 'the same token with the same request within 24 hours gives the same answer; also as header idempotency-key' });

/** A nullable literal would be written as an enumeration without null. */
const strategy = z.union([z.literal('LRU'), z.null()]).openapi({ description: 'LRU: may give way when there are too many caches' });

export const createBodySchema = createCacheRequestSchema
  .extend({ eliminationStrategy: strategy.default(null), clientToken })
  .openapi('CreateImageCache');
export const updateBodySchema = updateCacheRequestSchema
  .extend({ eliminationStrategy: strategy.optional(), clientToken })
  .openapi('UpdateImageCache');
export const matchBodySchema = z.strictObject(matchRequestSchema.shape).openapi('MatchRequest');

const cacheEventSchema = z
  .object({
    type: z.enum(['Normal', 'Warning']),
    reason: z.string().openapi({ example: 'ImageCached' }),
    message: z.string(),
    name: z.string(),
    count,
    firstTimestamp: at,
    lastTimestamp: at,
  })
  .openapi('ImageCacheEvent');
export const cacheEventsSchema = z.object({ events: z.array(cacheEventSchema) });

const cacheImageSchema = z
  .object({
    reference: z.string(),
    canonicalReference: z.string(),
    digest: z.string().nullable().openapi({ description: 'what the reference named when the cache was made' }),
    platformDigest: z.string().nullable(),
    configDigest: z.string().nullable(),
    form: z.enum(['full', 'index-only', 'ordinary']).nullable(),
    sizeBytes: count.nullable(),
  })
  .openapi('CachedImage');

const statusValue = z.enum(CACHE_STATES);

export const cacheSchema = z
  .object({
    imageCacheId: z.string().openapi({ example: 'imc-0123456789abcdefghij' }),
    imageCacheName: z.string(),
    owner: z.enum(['user', 'system']),
    sandboxId: z.string().nullable(),
    status: statusValue,
    progress: z.number().min(0).max(100),
    flashProgress: z.number().min(0).max(100).nullable(),
    images: z.array(cacheImageSchema),
    pendingImages: z.array(cacheImageSchema).nullable(),
    imageCacheSize: z.int().openapi({ description: 'GiB' }),
    retentionDays: z.int().nullable(),
    eliminationStrategy: strategy,
    autoMatchImageCache: z.boolean(),
    flash: z.boolean(),
    tags: z.array(z.object({ key: z.string(), value: z.string() })),
    plainHttpRegistry: z.array(z.string()),
    insecureRegistry: z.array(z.string()),
    cpuArch: z.string().nullable(),
    osType: z.string().nullable(),
    resourceGroupId: z.string().nullable(),
    cloud: z.record(z.string(), z.string()).openapi({ description: 'names of the vendor’s cloud: stored, without effect here' }),
    creationTime: at,
    lastUpdatedTime: at,
    expireDateTime: at.nullable(),
    lastMatchedTime: at.nullable(),
    matchCount: count,
    snapshotId: z.string().nullable(),
    flashSnapshotId: z.string().nullable(),
    containerGroupId: z.string(),
    version: count.openapi({ description: 'counts changes; also as ETag' }),
    failure: z.string().nullable(),
    events: z.array(cacheEventSchema).openapi({ description: 'the 50 newest, oldest first' }),
  })
  .openapi('ImageCache');
export type CacheView = z.infer<typeof cacheSchema>;

export const cachePageSchema = z
  .object({ imageCaches: z.array(cacheSchema), next: z.string().nullable(), totalCount: count })
  .openapi('ImageCachePage');

export const cacheChangeSchema = z
  .object({ kind: z.enum(['added', 'changed', 'deleted']), imageCache: cacheSchema })
  .openapi('CacheChange');
export type CacheChangeView = z.infer<typeof cacheChangeSchema>;

const degreeSchema = z.object({ sameDigest: count, sameReference: count, sameRepository: count, sharedLayerBytes: count });
const imageMatchSchema = z.object({
  reference: z.string(),
  tier: z.enum(['same-digest', 'same-reference', 'same-repository', 'shared-layers', 'none']),
  cachedReference: z.string().nullable(),
  isCovered: z.boolean(),
  isStale: z.boolean(),
  sharedLayerBytes: count,
});

export const explanationSchema = z
  .object({
    outcome: z.enum(['pinned', 'matched', 'none']),
    imageCacheId: z.string().nullable(),
    reason: z.string(),
    ephemeralStorage: z.number().openapi({ description: 'GiB that a cache may have for this pod' }),
    candidates: z.array(
      z.object({
        imageCacheId: z.string(),
        imageCacheName: z.string(),
        status: statusValue,
        imageCacheSize: z.int(),
        creationTime: at,
        degree: degreeSchema,
        coveredImages: count,
        images: z.array(imageMatchSchema),
        rank: z.int().nullable(),
        lostBecause: z.string().nullable(),
      }),
    ),
  })
  .openapi('MatchExplanation');
export type ExplanationView = z.infer<typeof explanationSchema>;

export const usageSchema = z
  .object({
    maxImageCacheCount: count,
    usedImageCacheCount: count,
    maxAutoImageCacheCount: count,
    usedAutoImageCacheCount: count,
    budgetBytes: count,
    committedBytes: count,
    creating: count,
    waiting: count,
  })
  .openapi('CacheUsage');
export type UsageView = z.infer<typeof usageSchema>;

/** One or many of a query parameter that may be repeated. */
const many = <T extends z.ZodType<string, string>>(item: T) =>
  z
    .union([item, z.array(item).max(MATCH_IMAGES_MAX)])
    .transform((value): string[] => (Array.isArray(value) ? value : [value]))
    .optional();

const flag = z.enum(['true', 'false']).transform((text) => text === 'true');

const tagFilter = z
  .string()
  .max(400)
  .transform((text) => {
    const at = text.indexOf('=');
    return at === -1 ? { key: text } : { key: text.slice(0, at), value: text.slice(at + 1) };
  });

export const listQuerySchema = z.strictObject({
  id: many(z.string().max(64)).openapi({ description: 'ids; repeat for several' }),
  name: z.string().max(128).optional(),
  status: statusValue.optional(),
  owner: z.enum(['user', 'system']).optional(),
  snapshotId: z.string().max(64).optional(),
  image: imageReferenceSchema.optional().openapi({ description: 'caches that hold an image of this reference' }),
  tag: z
    .union([tagFilter, z.array(tagFilter).max(20)])
    .transform((value) => (Array.isArray(value) ? value : [value]))
    .optional()
    .openapi({ type: 'string', description: 'key, or key=value; repeat for several, which must all hold' }),
  resourceGroupId: z.string().max(128).optional(),
  matchImage: many(imageReferenceSchema).openapi({
    description: 'runs the matcher for a pod of these images: best first; repeat for several',
  }),
  imageFullMatch: flag.optional().openapi({ type: 'string', enum: ['true', 'false'], description: 'with matchImage: every image whole' }),
  imageMatchCountRequest: decimal(1, MATCH_IMAGES_MAX).optional(),
  limit: decimal(1, CACHE_PAGE_MAX).default(CACHE_PAGE_DEFAULT),
  after: z.string().max(512).optional().openapi({ description: '`next` of the page before' }),
});

export const watchQuerySchema = z.strictObject({
  id: many(z.string().max(64)).openapi({ description: 'only these; repeat for several' }),
  owner: z.enum(['user', 'system']).optional(),
});

export const dryRunQuerySchema = z.strictObject({
  dryRun: flag.optional().openapi({ type: 'string', enum: ['true', 'false'], description: 'checks everything and changes nothing' }),
});

export { cacheIdSchema, cacheNameSchema };

/** Copies a read-only value into what an answer's schema holds; the types are equal but for that. */
type Writable<T> = T extends readonly (infer Item)[]
  ? Writable<Item>[]
  : T extends object
    ? { -readonly [K in keyof T]: Writable<T[K]> }
    : T;
const writable = <T>(value: T): Writable<T> => value as Writable<T>;

export const viewCache = (cache: ImageCache): CacheView => writable(cache);
export const viewEvents = (events: readonly CacheEvent[]): z.infer<typeof cacheEventSchema>[] => writable(events);
export const viewExplanation = (explanation: MatchExplanation): ExplanationView => writable(explanation);
export const viewUsage = (usage: CacheUsage): UsageView => writable(usage);
export const viewChange = ({ kind, cache }: CacheChange): CacheChangeView => ({ kind, imageCache: viewCache(cache) });
