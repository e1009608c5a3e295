/**
 * Image caches in memory, for tests of what speaks to them: the rules that callers can see (names, quota, versions, tokens, states), and no
 * image at all. A test moves a cache on with {@link MemoryCaches.advance}. Ours.
 */
import { AppError } from '../../plugin/base/errors.ts';
import {
  type CacheChange,
  type CacheEvent,
  type CacheFilter,
  type CacheService,
  type CacheState,
  type CacheUsage,
  type CreateCacheRequest,
  createCacheRequestSchema,
  type ImageCache,
  type MatchExplanation,
  type UpdateCacheRequest,
} from '../../plugin/cache/service.ts';

type Failure = ConstructorParameters<typeof AppError>[0];
type Options = { clientToken?: string; dryRun?: boolean };

const refuse = (code: Failure, reason: string, subject: string, what: string): AppError =>
  new AppError(code, { op: 'change image cache', subject, what, details: { reason } });

export class MemoryCaches implements CacheService {
  readonly complaint = undefined;
  readonly quota: number;
  private readonly caches = new Map<string, ImageCache>();
  private readonly answers = new Map<string, { request: string; id: string }>();
  private readonly watchers = new Set<(change: CacheChange) => void>();
  private readonly nowMs: () => number;
  private made = 0;

  constructor({ quota = 500, nowMs = () => Date.parse('2026-01-31T12:00:00.000Z') }: { quota?: number; nowMs?: () => number } = {}) {
    this.quota = quota;
    this.nowMs = nowMs;
  }

  async create(given: CreateCacheRequest, { clientToken, dryRun }: Options = {}): Promise<ImageCache> {
    const { imageRegistryCredentials: _, images, imageCacheSize = 20, ...settings } = createCacheRequestSchema.parse(given);
    const name = settings.imageCacheName;
    const before = clientToken === undefined ? undefined : this.answers.get(clientToken);
    if (before !== undefined) {
      if (before.request === JSON.stringify(given)) return this.get(before.id);
      throw refuse('Conflict', 'IdempotentParameterMismatch', name, 'the client token was used for another request');
    }
    if (name.startsWith('auto-create-for-')) throw refuse('InvalidArgument', 'InvalidParameter', name, 'the prefix is reserved');
    if ([...this.caches.values()].some((cache) => cache.imageCacheName === name)) {
      throw refuse('AlreadyExists', 'ImageCache.NameDuplicated', name, 'there is one of this name');
    }
    if (this.caches.size >= this.quota) throw refuse('ResourceExhausted', 'QuotaExceeded', name, `there are ${this.quota} already`);
    if (dryRun === true) throw refuse('FailedPrecondition', 'DryRunOperation', name, 'would have been accepted');
    this.made += 1;
    const id = `imc-${String(this.made).padStart(20, '0')}`;
    const now = this.now();
    const { cpuArch = null, osType = null, resourceGroupId = null, ...rest } = settings;
    const cache: ImageCache = {
      ...rest,
      ...{ cpuArch, osType, resourceGroupId, imageCacheId: id, owner: 'user', sandboxId: null, status: 'Preparing', progress: 0 },
      ...{ flashProgress: settings.flash ? 0 : null, images: images.map(imageOf), pendingImages: null, imageCacheSize },
      ...{ creationTime: now, lastUpdatedTime: now, expireDateTime: null, lastMatchedTime: null, matchCount: 0 },
      ...{ snapshotId: null, flashSnapshotId: null, containerGroupId: `eci-${this.made}`, version: 1, failure: null },
      events: [this.eventOf(id, 'Accepted', `${images.length} images are to be cached`)],
    };
    if (clientToken !== undefined) this.answers.set(clientToken, { request: JSON.stringify(given), id });
    return this.put('added', cache);
  }

  list(filter: CacheFilter = {}, { limit = 50, after }: { limit?: number; after?: string } = {}) {
    const found = [...this.caches.values()].reverse().filter((cache) => fits(cache, filter));
    const from = after === undefined ? 0 : Number(after);
    const caches = found.slice(from, from + limit);
    const end = from + caches.length;
    return { caches, next: end < found.length ? String(end) : null, totalCount: found.length };
  }

  get(id: string): ImageCache {
    const cache = this.caches.get(id);
    if (cache !== undefined) return cache;
    throw new AppError('NotFound', {
      op: 'find image cache',
      subject: id,
      what: 'there is none',
      details: { reason: 'ImageCacheNotFound' },
    });
  }

  async update(id: string, patch: UpdateCacheRequest, { version, dryRun }: Options & { version?: number } = {}): Promise<ImageCache> {
    const cache = this.get(id);
    if (version !== undefined && version !== cache.version) {
      throw refuse('Conflict', 'OperationConflict', id, `its version is ${cache.version}, and ${version} was expected`);
    }
    const { images, imageRegistryCredentials: _, ...settings } = patch;
    const isBuilt = images !== undefined || settings.imageCacheSize !== undefined;
    if (isBuilt && cache.status !== 'Ready' && cache.status !== 'UpdateFailed') {
      throw refuse('FailedPrecondition', 'ImageCache.IncorrectStatus', id, `it is ${cache.status}`);
    }
    const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
    const isChange =
      isBuilt || Object.entries(given).some(([key, value]) => JSON.stringify(cache[key as keyof ImageCache]) !== JSON.stringify(value));
    if (!isChange) throw refuse('InvalidArgument', 'NoNeedUpdate', id, 'changes nothing');
    if (dryRun === true) throw refuse('FailedPrecondition', 'DryRunOperation', id, 'would have been accepted');
    const next = { ...cache, ...given, version: cache.version + 1, lastUpdatedTime: this.now() };
    if (!isBuilt) return this.put('changed', next);
    return this.put('changed', { ...next, status: 'Updating', progress: 0, pendingImages: (images ?? []).map(imageOf) });
  }

  async delete(id: string): Promise<void> {
    const cache = this.get(id);
    this.caches.delete(id);
    for (const tell of this.watchers) tell({ kind: 'deleted', cache });
  }

  events(id: string): readonly CacheEvent[] {
    return this.get(id).events;
  }

  async *watch(signal: AbortSignal, filter: Pick<CacheFilter, 'imageCacheIds' | 'owner'> = {}): AsyncGenerator<CacheChange> {
    const waiting: CacheChange[] = [...this.caches.values()].map((cache) => ({ kind: 'added', cache }));
    let wake = (): void => {};
    const tell = (change: CacheChange): void => {
      waiting.push(change);
      wake();
    };
    this.watchers.add(tell);
    signal.addEventListener('abort', () => wake(), { once: true });
    try {
      while (!signal.aborted) {
        const change = waiting.shift();
        if (change === undefined) await new Promise<void>((resolve) => (wake = resolve));
        else if (fits(change.cache, filter)) yield change;
      }
    } finally {
      this.watchers.delete(tell);
    }
  }

  explain({ images, extraEphemeralStorage = 0 }: Parameters<CacheService['explain']>[0]): MatchExplanation {
    const candidates = [...this.caches.values()].map((cache, index) => ({
      ...{ imageCacheId: cache.imageCacheId, imageCacheName: cache.imageCacheName, status: cache.status },
      ...{ imageCacheSize: cache.imageCacheSize, creationTime: cache.creationTime, coveredImages: 0 },
      degree: { sameDigest: 0, sameReference: 1, sameRepository: 0, sharedLayerBytes: 0 },
      images: images.map(({ reference }) => ({
        ...{ reference, tier: 'same-reference' as const, cachedReference: reference },
        ...{ isCovered: cache.status === 'Ready', isStale: false, sharedLayerBytes: 0 },
      })),
      rank: index + 1,
      lostBecause: index === 0 ? null : 'made earlier',
    }));
    const chosen = candidates[0];
    return {
      ...{ outcome: chosen === undefined ? 'none' : 'matched', imageCacheId: chosen?.imageCacheId ?? null, candidates },
      reason: chosen === undefined ? 'no cache holds any of the images' : 'nearest to the images of the pod',
      ephemeralStorage: 30 + extraEphemeralStorage,
    };
  }

  matchForPod(): never {
    throw new AppError('Unimplemented', { op: 'match', subject: 'pod', what: 'not in memory' });
  }

  async autoCreate(): Promise<never> {
    return this.matchForPod();
  }

  usage(): CacheUsage {
    return {
      ...{ maxImageCacheCount: this.quota, usedImageCacheCount: this.caches.size, maxAutoImageCacheCount: 25, usedAutoImageCacheCount: 0 },
      ...{ budgetBytes: 1000, committedBytes: 0, creating: 0, waiting: 0 },
    };
  }

  usersOf(): readonly string[] {
    return [];
  }

  isPinned(): boolean {
    return false;
  }

  async stop(): Promise<void> {}

  /** What the cache's work would do: its state, progress and an event. */
  advance(id: string, status: CacheState, progress: number, change: Partial<ImageCache> = {}): ImageCache {
    const cache = this.get(id);
    const event = this.eventOf(id, status, `the cache is ${status}, ${progress} %`, cache.events.length + 1);
    return this.put('changed', { ...cache, status, progress, ...change, version: cache.version + 1, events: [...cache.events, event] });
  }

  private put(kind: 'added' | 'changed', cache: ImageCache): ImageCache {
    this.caches.set(cache.imageCacheId, cache);
    for (const tell of this.watchers) tell({ kind, cache });
    return cache;
  }

  private now(): string {
    return new Date(this.nowMs()).toISOString();
  }

  private eventOf(id: string, reason: string, message: string, number = 1): CacheEvent {
    const now = this.now();
    return { type: 'Normal', reason, message, name: `${id}.${number.toString(16)}`, count: 1, firstTimestamp: now, lastTimestamp: now };
  }
}

function imageOf(reference: string): ImageCache['images'][number] {
  const unknown = { digest: null, platformDigest: null, configDigest: null, form: null, sizeBytes: null };
  return { reference, canonicalReference: reference, ...unknown };
}

function fits(cache: ImageCache, filter: CacheFilter): boolean {
  const { imageCacheIds, imageCacheName, status, owner, image, tags, resourceGroupId, snapshotId, matchImages } = filter;
  const holds = (reference: string): boolean => cache.images.some((one) => one.reference === reference);
  return (
    (imageCacheIds === undefined || imageCacheIds.includes(cache.imageCacheId)) &&
    (imageCacheName === undefined || imageCacheName === cache.imageCacheName) &&
    (status === undefined || status === cache.status) &&
    (owner === undefined || owner === cache.owner) &&
    (snapshotId === undefined || snapshotId === cache.snapshotId) &&
    (resourceGroupId === undefined || resourceGroupId === cache.resourceGroupId) &&
    (image === undefined || holds(image)) &&
    (matchImages === undefined || matchImages.some(holds)) &&
    (tags ?? []).every((tag) => cache.tags.some(({ key, value }) => key === tag.key && (tag.value === undefined || value === tag.value)))
  );
}
