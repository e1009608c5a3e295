/**
 * The public door of image caches: wires catalogue, matcher, creation queue and sweeper over the control plane's database; what it needs from
 * outside is in {@link CacheOptions}. Ours.
 *
 *   create, update, autoCreate ─► catalogue ─► creation queue ─► image store (containerd, blobs)
 *   matchForPod, explain, list ◄─┘   ▲ ▲                              │
 *                            sweeper ┘ └ verifier ◄───────────────────┘
 */
import { CacheStore } from '../../db/cache-store.ts';
import type { Database } from '../../db/database.ts';
import { EventStore } from '../../db/event-store.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { type AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Admission } from './admission.ts';
import { AutomaticCaches } from './automatic.ts';
import { CacheTime } from './cache-time.ts';
import { Catalogue, notFound } from './catalogue.ts';
import { type ChangeOptions, Changes } from './changes.ts';
import { ClientTokens } from './client-tokens.ts';
import { CreationQueue } from './creation-queue.ts';
import type { ImageStore } from './image-store.ts';
import { pageOf } from './listing.ts';
import { explainMatch, matchImage } from './match.ts';
import { candidateOf, type MatchQuery, parseQuery } from './match-query.ts';
import { Releaser } from './releaser.ts';
import { Secrets } from './secrets.ts';
import { Sweeper } from './sweeper.ts';
import type {
  AutoCreateRequest,
  CacheChange,
  CacheEvent,
  CacheFilter,
  CachePage,
  CacheService,
  CacheUsage,
  CreateCacheRequest,
  ImageCache,
  MatchExplanation,
  MatchRequest,
  MatchResult,
  UpdateCacheRequest,
} from './types.ts';
import { cacheError } from './validation.ts';
import { Verifier } from './verifier.ts';
import type { Watched } from './watchers.ts';

export * from './requests.ts';
export * from './types.ts';

/** Expiry is told in days; a minute late is nothing. */
const SWEEP_MS = 60_000;
/** What could not be looked at, since containerd or the data plane was away, is soon. */
const LOOK_AGAIN_MS = 60_000;
/** Until containerd is there for the first time. */
const FIRST_SWEEPS_MS = 2_000;

export interface CacheOptions {
  readonly database: Database;
  readonly store: ImageStore;
  /** 32 bytes under which credentials are sealed; only root may read where they lie. */
  readonly key: Uint8Array;
  readonly logger: Logger;
  readonly clock?: Clock;
  /** Caches of users and of the system, and bytes of all. */
  readonly maxCount: number;
  readonly maxAutomaticCount: number;
  readonly budgetBytes: number;
  /** GiB */
  readonly defaultSize: number;
  /** GiB */
  readonly podEphemeralSize: number;
  readonly unmatchedDays: number;
  readonly matchedDays: number;
  readonly concurrency: number;
  readonly creationDeadlineMs: number;
  readonly verifyIntervalMs: number;
}

/** Takes up what an earlier control plane left, and begins. What containerd does not let it do yet is tried again. */
export function startCaches(options: CacheOptions): CacheService {
  const service = new Service(options);
  service.start();
  return service;
}

class Service implements CacheService {
  private readonly options: CacheOptions;
  private readonly clock: Clock;
  private readonly cacheStore: CacheStore;
  private readonly nodeEvents: EventStore;
  private readonly catalogue: Catalogue;
  private readonly admission: Admission;
  private readonly automatic: AutomaticCaches;
  private readonly changes: Changes;
  private readonly queue: CreationQueue;
  private readonly releaser: Releaser;
  private readonly sweeper: Sweeper;
  private readonly verifier: Verifier;
  private readonly controller = new AbortController();
  private loops: Promise<unknown> = Promise.resolve();

  constructor(options: CacheOptions) {
    const { database, store, logger, key, maxCount, maxAutomaticCount, budgetBytes, unmatchedDays, matchedDays } = options;
    const { signal } = this.controller;
    this.options = options;
    this.clock = options.clock ?? systemClock;
    this.nodeEvents = new EventStore(database);
    this.cacheStore = new CacheStore(database);
    const { cacheStore } = this;
    const time = new CacheTime(this.clock, cacheStore);
    const secrets = new Secrets(key);
    const catalogue = new Catalogue(cacheStore, time, { unmatchedDays, matchedDays });
    this.catalogue = catalogue;
    const limits = { maxCount, maxAutomaticCount, budgetBytes };
    const remove = (id: string, why: string): Promise<void> => this.removeBySystem(id, why);
    const poke = (): void => this.queue.poke();
    const isBusy = (id: string): boolean => this.queue.isBusy(id);
    this.admission = new Admission({ catalogue, store, limits, logger, remove });
    this.releaser = new Releaser({ catalogue, store, logger, signal });
    const { admission, releaser } = this;
    const { concurrency, creationDeadlineMs: deadlineMs, defaultSize, podEphemeralSize } = options;
    this.queue = new CreationQueue({ catalogue, store, secrets, admission, releaser, clock: this.clock, logger, concurrency, deadlineMs });
    this.sweeper = new Sweeper({ catalogue, cacheStore, store, releaser, logger, signal, isBusy, remove });
    this.verifier = new Verifier({ catalogue, store, logger, signal, isBusy, poke });
    this.automatic = new AutomaticCaches({ catalogue, admission, secrets, podEphemeralSize, remove, poke });
    this.changes = new Changes({
      ...{ catalogue, admission, secrets, store, signal, defaultSize, poke },
      tokens: new ClientTokens(cacheStore, time, secrets, (id) => catalogue.find(id) !== undefined),
    });
  }

  start(): void {
    this.queue.start();
    this.loops = Promise.all([
      this.repeat(
        () => (this.releaser.hasLooked ? SWEEP_MS : FIRST_SWEEPS_MS),
        'the sweep of image caches',
        () => this.sweeper.sweep(),
      ),
      this.repeat(
        () => (this.verifier.sawAll ? this.options.verifyIntervalMs : Math.min(LOOK_AGAIN_MS, this.options.verifyIntervalMs)),
        'looking at image caches',
        () => this.verifier.verifyAll(),
      ),
    ]);
  }

  async stop(): Promise<void> {
    this.controller.abort(stopping());
    this.catalogue.watchers.stop();
    await this.queue.stop();
    await this.loops;
    this.catalogue.flush();
  }

  async create(request: CreateCacheRequest, options: ChangeOptions = {}): Promise<ImageCache> {
    this.refuseWhenStopping();
    return this.catalogue.view(await this.changes.create(request, options));
  }

  async update(id: string, patch: UpdateCacheRequest, options: ChangeOptions & { version?: number } = {}): Promise<ImageCache> {
    this.refuseWhenStopping();
    await this.changes.update(id, patch, options);
    return this.catalogue.view(id);
  }

  async autoCreate(request: AutoCreateRequest): Promise<ImageCache> {
    this.refuseWhenStopping();
    return this.catalogue.view(await this.automatic.ensure(request));
  }

  async delete(id: string): Promise<void> {
    this.refuseWhenStopping();
    if (this.catalogue.find(id) !== undefined) await this.remove(id);
    else if (!this.cacheStore.wasDeleted(id)) throw notFound(id);
  }

  get(id: string): ImageCache {
    return this.catalogue.view(id);
  }

  events(id: string): readonly CacheEvent[] {
    this.catalogue.get(id);
    return this.catalogue.events(id);
  }

  list(filter: CacheFilter = {}, page: { limit?: number; after?: string } = {}): CachePage {
    const { records, next, totalCount } = pageOf(this.catalogue.all(), filter, page);
    return { caches: records.map(({ id }) => this.catalogue.view(id)), next, totalCount };
  }

  watch(signal: AbortSignal, { imageCacheIds, owner }: Pick<CacheFilter, 'imageCacheIds' | 'owner'> = {}): AsyncIterable<CacheChange> {
    this.refuseWhenStopping();
    const passes = (cache: Watched): boolean =>
      (imageCacheIds === undefined || imageCacheIds.includes(cache.imageCacheId)) && (owner === undefined || cache.owner === owner);
    const present = this.catalogue.all().map((record) => ({ imageCacheId: record.id, owner: record.owner }));
    return this.catalogue.watchers.watch(present, passes, signal);
  }

  explain(request: MatchRequest, { atMost }: { atMost?: number } = {}): MatchExplanation {
    const query = this.query(request);
    if (atMost === undefined || query.pinnedId !== undefined) return explainMatch(query, this.catalogue.matchable());
    const repositories = new Set(query.images.map(({ repository }) => repository));
    const near = [...this.catalogue.index.near(query, atMost), ...this.catalogue.notServing(repositories, atMost)];
    return explainMatch(query, near, this.catalogue.count);
  }

  matchForPod(request: MatchRequest): MatchResult {
    const query = this.query(request);
    const candidate = query.pinnedId === undefined ? this.catalogue.index.best(query) : this.pinned(query.pinnedId);
    if (candidate === undefined) {
      return { outcome: 'none', cache: null, images: [], missingImages: referencesOf(query.named) };
    }
    const images = query.named.map((image) => matchImage(image, candidate));
    this.catalogue.matched(candidate.id);
    return {
      outcome: query.pinnedId === undefined ? 'matched' : 'pinned',
      cache: this.catalogue.view(candidate.id),
      images,
      missingImages: referencesOf(images.filter((image) => !image.isCovered)),
    };
  }

  usage(): CacheUsage {
    const { maxCount, maxAutomaticCount, budgetBytes } = this.options;
    return {
      maxImageCacheCount: maxCount,
      usedImageCacheCount: this.catalogue.ofOwner('user').length,
      maxAutoImageCacheCount: maxAutomaticCount,
      usedAutoImageCacheCount: this.catalogue.ofOwner('system').length,
      budgetBytes,
      committedBytes: this.catalogue.ledger.totalBytes,
      creating: this.queue.running,
      waiting: this.queue.waiting,
    };
  }

  usersOf(referenceOrDigest: string): readonly string[] {
    return this.catalogue.users.of(referenceOrDigest);
  }

  isPinned(referenceOrDigest: string): boolean {
    return this.usersOf(referenceOrDigest).length > 0;
  }

  get complaint(): string | undefined {
    const jump = this.catalogue.time.openJump;
    if (jump === undefined) return this.releaser.complaint;
    const at = new Date(jump.believedAtUs / 1000).toISOString();
    return `Image caches: the machine's clock jumped by ${Math.round(jump.byUs / 3_600_000_000)} hours; nothing expires by that before ${at} of the former time.`;
  }

  private query(request: MatchRequest): MatchQuery {
    return parseQuery(request, this.options.podEphemeralSize);
  }

  /** Must serve (R109, R149). */
  private pinned(id: string): ReturnType<typeof candidateOf> {
    const candidate = candidateOf(this.catalogue.get(id));
    if (candidate.serves) return candidate;
    throw cacheError('ImageCache.IncorrectStatus', {
      ...{ op: 'pin image cache', subject: id, what: `its status is ${candidate.status}, and only a Ready one can be pinned` },
      details: { status: candidate.status },
    });
  }

  private async removeBySystem(id: string, why: string): Promise<void> {
    const record = this.catalogue.find(id);
    if (record === undefined) return;
    this.nodeEvents.append({
      ...{ atUs: this.clock.nowMs() * 1000, type: 'image-cache-removed', subject: record.name },
      message: `${id} (${record.owner === 'user' ? 'manual' : 'automatic'}): ${why}`,
    });
    await this.remove(id);
  }

  /** Durable first; its work ends, then what it owns is let go. */
  private async remove(id: string): Promise<void> {
    this.catalogue.delete(id);
    await this.queue.abort(id);
    await this.releaser.release(id);
  }

  private refuseWhenStopping(): void {
    if (this.controller.signal.aborted) throw stopping();
  }

  /** Until the service ends. What goes wrong is told, and may go better the next time. */
  private async repeat(everyMs: () => number, what: string, work: () => Promise<void>): Promise<void> {
    const { signal } = this.controller;
    while (!signal.aborted) {
      try {
        await work();
      } catch (error) {
        if (!signal.aborted) this.options.logger.error({ reason: describeError(error) }, `${what} failed`);
      }
      if (!(await this.pause(everyMs()))) return;
    }
  }

  /** False: the service ends. */
  private pause(delayMs: number): Promise<boolean> {
    return this.clock.sleep(delayMs, this.controller.signal).then(
      () => true,
      () => false,
    );
  }
}

function referencesOf(images: readonly { readonly reference: string }[]): string[] {
  return [...new Set(images.map((image) => image.reference))];
}

function stopping(): AppError {
  return cacheError('ServiceStopping', { op: 'change', subject: 'image caches', what: 'the service ends' });
}
