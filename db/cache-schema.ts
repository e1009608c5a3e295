/**
 * Tables of image caches, for typed queries. The SQL that makes them is in `migrations/0007-caches.ts`; a test keeps both equal. Times are
 * microseconds since the Unix epoch by the caches' own clock (`plugin/cache/cache-time.ts`). JSON columns are written and checked by the
 * part that owns them.
 */
import { blob, index, integer, primaryKey, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core';

export const imageCaches = sqliteTable(
  'image_caches',
  {
    /** `imc-…`; never used twice. */
    id: text('id').primaryKey().notNull(),
    /** Unique among those that are not deleted. */
    name: text('name').notNull(),
    owner: text('owner', { enum: ['user', 'system'] }).notNull(),
    sandboxId: text('sandbox_id'),
    status: text('status', { enum: ['Preparing', 'Creating', 'Ready', 'Failed', 'Updating', 'UpdateFailed'] }).notNull(),
    /** False: what serves is not whole yet (a flash cache), or nothing serves. */
    isWhole: integer('is_whole', { mode: 'boolean' }).notNull(),
    sizeGib: integer('size_gib').notNull(),
    /** What an update asked for; null: the size stays. */
    pendingSizeGib: integer('pending_size_gib'),
    retentionDays: integer('retention_days'),
    isLru: integer('is_lru', { mode: 'boolean' }).notNull(),
    /** What nothing is looked up by (JSON). */
    settings: text('settings').notNull(),
    /** Encrypted; null: none. */
    credentials: blob('credentials', { mode: 'buffer' }),
    progress: integer('progress').notNull(),
    flashProgress: integer('flash_progress'),
    version: integer('version').notNull(),
    failure: text('failure'),
    /** Failed attempts at the present work. */
    attempts: integer('attempts').notNull(),
    /** When the present (or last) work began. */
    workSinceUs: integer('work_since_us').notNull(),
    matchCount: integer('match_count').notNull(),
    createdUs: integer('created_us').notNull(),
    updatedUs: integer('updated_us').notNull(),
    /** When it first became Ready; null: never yet. */
    servedUs: integer('served_us'),
    matchedUs: integer('matched_us'),
    failedUs: integer('failed_us'),
    /** Set: gone for everybody; kept for a day, so that a second deletion is answered as the first. */
    deletedUs: integer('deleted_us'),
  },
  (table) => [uniqueIndex('image_caches_name').on(table.name), index('image_caches_deleted').on(table.deletedUs)],
);

export const imageCacheImages = sqliteTable(
  'image_cache_images',
  {
    cacheId: text('cache_id')
      .notNull()
      .references(() => imageCaches.id, { onDelete: 'cascade' }),
    list: text('list', { enum: ['current', 'pending'] }).notNull(),
    position: integer('position').notNull(),
    reference: text('reference').notNull(),
    /** What it was pinned to (JSON); null: not resolved yet. */
    resolved: text('resolved'),
  },
  (table) => [primaryKey({ columns: [table.cacheId, table.list, table.position] })],
);

export const imageCacheEvents = sqliteTable(
  'image_cache_events',
  {
    cacheId: text('cache_id')
      .notNull()
      .references(() => imageCaches.id, { onDelete: 'cascade' }),
    /** From 1, without gaps until the oldest go. */
    number: integer('number').notNull(),
    type: text('type', { enum: ['Normal', 'Warning'] }).notNull(),
    reason: text('reason').notNull(),
    message: text('message').notNull(),
    count: integer('count').notNull(),
    firstUs: integer('first_us').notNull(),
    lastUs: integer('last_us').notNull(),
  },
  (table) => [primaryKey({ columns: [table.cacheId, table.number] })],
);

export const imageCacheTokens = sqliteTable(
  'image_cache_tokens',
  {
    /** The action that the token belongs to. */
    scope: text('scope').notNull(),
    token: text('token').notNull(),
    /** Keyed hash of the request: says nothing about what is in it. */
    requestHash: text('request_hash').notNull(),
    cacheId: text('cache_id').notNull(),
    createdUs: integer('created_us').notNull(),
  },
  (table) => [primaryKey({ columns: [table.scope, table.token] }), index('image_cache_tokens_created').on(table.createdUs)],
);

export const imageCacheClock = sqliteTable('image_cache_clock', {
  /** Always 1. */
  id: integer('id').primaryKey().notNull(),
  seenUs: integer('seen_us').notNull(),
  offsetUs: integer('offset_us').notNull(),
  /** Since when the machine's clock has gone steadily after a jump; null: no jump is open. */
  steadySinceUs: integer('steady_since_us'),
});
