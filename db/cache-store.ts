/** Rows of image caches, their images, events, client tokens and clock. No rules; every method is synchronous. */
import { and, asc, count, eq, isNotNull, isNull, lt, lte, max, sql } from 'drizzle-orm';
import { imageCacheClock, imageCacheEvents, imageCacheImages, imageCaches, imageCacheTokens } from './cache-schema.ts';
import type { Database } from './database.ts';

export type CacheRow = typeof imageCaches.$inferSelect;
export type CacheImageRow = typeof imageCacheImages.$inferSelect;
export type CacheEventRow = typeof imageCacheEvents.$inferSelect;
export type CacheTokenRow = typeof imageCacheTokens.$inferSelect;

/** Events of one cache (R116). */
export const MAX_CACHE_EVENTS = 50;
/** Deleted caches that are remembered, whatever their age. */
const MAX_TOMBSTONES = 10_000;
/** Tokens that are remembered, whatever their age: a day of one creation a second. */
const MAX_TOKENS = 100_000;

export class CacheStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  transaction<T>(work: () => T): T {
    return this.database.transaction(work);
  }

  /** Those that are not deleted, oldest first, with their images. */
  load(): { row: CacheRow; images: CacheImageRow[] }[] {
    const { orm } = this.database;
    const rows = orm.select().from(imageCaches).where(isNull(imageCaches.deletedUs)).orderBy(asc(imageCaches.createdUs)).all();
    const images = Map.groupBy(orm.select().from(imageCacheImages).all(), (image) => image.cacheId);
    return rows.map((row) => ({ row, images: images.get(row.id) ?? [] }));
  }

  insert(row: CacheRow, images: readonly CacheImageRow[]): void {
    this.database.orm.insert(imageCaches).values(row).run();
    this.insertImages(images);
  }

  update(id: string, values: Partial<Omit<CacheRow, 'id'>>): void {
    if (Object.keys(values).length > 0) this.database.orm.update(imageCaches).set(values).where(eq(imageCaches.id, id)).run();
  }

  replaceImages(id: string, images: readonly CacheImageRow[]): void {
    this.database.orm.delete(imageCacheImages).where(eq(imageCacheImages.cacheId, id)).run();
    this.insertImages(images);
  }

  /** True when the cache was deleted and is still remembered. */
  wasDeleted(id: string): boolean {
    const isDeleted = and(eq(imageCaches.id, id), isNotNull(imageCaches.deletedUs));
    return this.database.orm.select({ id: imageCaches.id }).from(imageCaches).where(isDeleted).get() !== undefined;
  }

  /** Forgets caches that were deleted at or before the time. */
  forgetDeleted(beforeUs: number): void {
    const { orm } = this.database;
    orm.delete(imageCaches).where(lte(imageCaches.deletedUs, beforeUs)).run();
    orm.run(
      sql`DELETE FROM image_caches WHERE id IN (SELECT id FROM image_caches WHERE deleted_us IS NOT NULL ORDER BY deleted_us DESC LIMIT -1 OFFSET ${MAX_TOMBSTONES})`,
    );
  }

  /** Adds an event, or counts it when it is the same as the last one; drops the oldest beyond the limit. */
  addEvent(event: Omit<CacheEventRow, 'number' | 'count' | 'firstUs' | 'lastUs'>, nowUs: number): void {
    const { orm } = this.database;
    const ofCache = eq(imageCacheEvents.cacheId, event.cacheId);
    const number =
      orm
        .select({ number: max(imageCacheEvents.number) })
        .from(imageCacheEvents)
        .where(ofCache)
        .get()?.number ?? 0;
    const isLast = and(ofCache, eq(imageCacheEvents.number, number));
    const last = orm.select().from(imageCacheEvents).where(isLast).get();
    if (last !== undefined && last.type === event.type && last.reason === event.reason && last.message === event.message) {
      orm
        .update(imageCacheEvents)
        .set({ count: last.count + 1, lastUs: nowUs })
        .where(isLast)
        .run();
      return;
    }
    orm
      .insert(imageCacheEvents)
      .values({ ...event, number: number + 1, count: 1, firstUs: nowUs, lastUs: nowUs })
      .run();
    orm
      .delete(imageCacheEvents)
      .where(and(ofCache, lte(imageCacheEvents.number, number + 1 - MAX_CACHE_EVENTS)))
      .run();
  }

  /** Oldest first. */
  events(id: string): CacheEventRow[] {
    return this.database.orm
      .select()
      .from(imageCacheEvents)
      .where(eq(imageCacheEvents.cacheId, id))
      .orderBy(asc(imageCacheEvents.number))
      .all();
  }

  token(scope: string, token: string): CacheTokenRow | undefined {
    const isToken = and(eq(imageCacheTokens.scope, scope), eq(imageCacheTokens.token, token));
    return this.database.orm.select().from(imageCacheTokens).where(isToken).get();
  }

  /** Adds a token, or gives one a new meaning. */
  putToken(row: CacheTokenRow): void {
    const { scope: _scope, token: _token, ...set } = row;
    const target = [imageCacheTokens.scope, imageCacheTokens.token];
    this.database.orm.insert(imageCacheTokens).values(row).onConflictDoUpdate({ target, set }).run();
  }

  /** Forgets tokens from before the time, and the oldest beyond the limit. */
  forgetTokens(beforeUs: number): void {
    const { orm } = this.database;
    orm.delete(imageCacheTokens).where(lt(imageCacheTokens.createdUs, beforeUs)).run();
    const total = orm.select({ n: count() }).from(imageCacheTokens).get()?.n ?? 0;
    if (total <= MAX_TOKENS) return;
    orm.run(
      sql`DELETE FROM image_cache_tokens WHERE (scope, token) IN (SELECT scope, token FROM image_cache_tokens ORDER BY created_us LIMIT ${total - MAX_TOKENS})`,
    );
  }

  loadClock(): { seenUs: number; offsetUs: number; steadySinceUs: number | null } | undefined {
    return this.database.orm.select().from(imageCacheClock).get();
  }

  saveClock(state: { seenUs: number; offsetUs: number; steadySinceUs: number | null }): void {
    this.database.orm
      .insert(imageCacheClock)
      .values({ id: 1, ...state })
      .onConflictDoUpdate({ target: imageCacheClock.id, set: state })
      .run();
  }

  private insertImages(images: readonly CacheImageRow[]): void {
    if (images.length > 0)
      this.database.orm
        .insert(imageCacheImages)
        .values([...images])
        .run();
  }
}
