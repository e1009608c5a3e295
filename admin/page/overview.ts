/** Everything that the status page shows, in one object: gathered at most once a second, however many look. */
import { z } from '@hono/zod-openapi';
import type { CacheService, ImageCache } from '../../plugin/cache/service.ts';
import { CACHE_STATES } from '../../plugin/cache/service.ts';
import type { ConvertService } from '../../plugin/convert/service.ts';
import { jobSchema, viewJob } from '../convert-schemas.ts';
import { ANSWER_DEADLINE_MS, OVERVIEW_INTERVAL_MS } from '../limits.ts';
import { type AdminServices, deviceSchema, eventSchema, statusSchema, storeSchema, trafficSchema } from '../services.ts';

/** Rows of each table; the page is for a look, the lists of the API for the rest. */
const MAX_CACHES = 100;
const MAX_DEVICES = 200;
const MAX_JOBS = 20;
const MAX_EVENTS = 40;

const count = z.int().min(0);

const overviewCacheSchema = z.object({
  imageCacheId: z.string(),
  imageCacheName: z.string(),
  owner: z.enum(['user', 'system']),
  status: z.enum(CACHE_STATES),
  progress: z.number(),
  images: z.array(z.string()),
  sizeBytes: count,
  imageCacheSize: z.int().openapi({ description: 'GiB' }),
  lastMatchedTime: z.string().nullable(),
  expireDateTime: z.string().nullable(),
  failure: z.string().nullable(),
});

export const overviewSchema = z
  .object({
    status: statusSchema.nullable(),
    store: storeSchema.nullable(),
    traffic: trafficSchema.nullable(),
    caches: z.array(overviewCacheSchema),
    cacheCount: count,
    devices: z.array(deviceSchema).nullable(),
    deviceCount: count,
    conversions: z.array(jobSchema).openapi({ description: 'those that run or wait' }),
    events: z.array(eventSchema).openapi({ description: 'newest first' }),
  })
  .openapi('Overview');
export type OverviewView = z.infer<typeof overviewSchema>;

export interface OverviewParts {
  services: AdminServices;
  caches: CacheService;
  convert: ConvertService;
}

function viewCache(cache: ImageCache): z.infer<typeof overviewCacheSchema> {
  const { imageCacheId, imageCacheName, owner, status, progress, imageCacheSize, lastMatchedTime, expireDateTime, failure } = cache;
  return {
    ...{ imageCacheId, imageCacheName, owner, status, progress, imageCacheSize, lastMatchedTime, expireDateTime, failure },
    images: cache.images.map((image) => image.reference),
    sizeBytes: cache.images.reduce((sum, image) => sum + (image.sizeBytes ?? 0), 0),
  };
}

export class Overview {
  private readonly parts: OverviewParts;
  private latest: { atMs: number; value: Promise<OverviewView> } | undefined;

  constructor(parts: OverviewParts) {
    this.parts = parts;
  }

  /** What is true now, or was a second ago. A part that does not answer is null or empty; its absence is in `status.degraded`. */
  look(): Promise<OverviewView> {
    const nowMs = performance.now();
    if (this.latest === undefined || nowMs - this.latest.atMs >= OVERVIEW_INTERVAL_MS) this.latest = { atMs: nowMs, value: this.gather() };
    return this.latest.value;
  }

  private async gather(): Promise<OverviewView> {
    const { services, caches, convert } = this.parts;
    const signal = AbortSignal.timeout(ANSWER_DEADLINE_MS);
    const parts = await Promise.allSettled([
      services.status(signal),
      services.store(signal),
      services.traffic(signal),
      services.devices(signal),
      services.events(MAX_EVENTS, signal),
    ]);
    const [status, store, traffic, devices, events] = parts;
    const page = caches.list({}, { limit: MAX_CACHES });
    const jobs = (['BUILDING', 'PENDING'] as const).flatMap((state) => convert.jobs({ state, limit: MAX_JOBS }));
    const deviceRows = devices.status === 'fulfilled' ? [...devices.value] : null;
    return {
      status: status.status === 'fulfilled' ? status.value : null,
      store: store.status === 'fulfilled' ? store.value : null,
      traffic: traffic.status === 'fulfilled' ? traffic.value : null,
      caches: page.caches.map(viewCache),
      cacheCount: page.totalCount,
      devices: deviceRows?.slice(0, MAX_DEVICES) ?? null,
      deviceCount: deviceRows?.length ?? 0,
      conversions: jobs.slice(0, MAX_JOBS).map(viewJob),
      events: events.status === 'fulfilled' ? events.value.slice(-MAX_EVENTS).reverse() : [],
    };
  }
}
