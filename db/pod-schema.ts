/**
 * Tables of pods seen by the CRI proxy, for typed queries. The SQL that makes them is in `migrations/0005-pods.ts`; a test keeps both
 * equal. Times are microseconds since the Unix epoch. JSON columns are written and checked by the part that owns them. Never a secret.
 */
import { index, integer, primaryKey, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const pods = sqliteTable(
  'pods',
  {
    /** Kubernetes' own; lives as long as the pod, through every restart of its sandbox. */
    uid: text('uid').primaryKey(),
    namespace: text('namespace').notNull(),
    name: text('name').notNull(),
    /** What its annotations said when it was first seen (JSON): they are never read again. */
    rules: text('rules').notNull(),
    /** Its images, as far as they are known (JSON list of references). */
    images: text('images').notNull(),
    imagesFrom: text('images_from', { enum: ['pulls', 'api-server', 'manifest'] }).notNull(),
    firstSeenUs: integer('first_seen_us').notNull(),
    lastSeenUs: integer('last_seen_us').notNull(),
  },
  (table) => [index('pods_last_seen').on(table.lastSeenUs), index('pods_name').on(table.namespace, table.name)],
);

export const podImages = sqliteTable(
  'pod_images',
  {
    uid: text('uid')
      .notNull()
      .references(() => pods.uid, { onDelete: 'cascade' }),
    /** As the pod names it. */
    image: text('image').notNull(),
    /** Made once. `refused` alone is made again at the next attempt, since nothing has been given yet. */
    decision: text('decision', { enum: ['pinned-cache', 'matched-cache', 'pull', 'refused'] }).notNull(),
    cacheId: text('cache_id'),
    /** What the reference meant when it was decided: the cache's digest. */
    digest: text('digest'),
    /** How it came in the end; null while the pull runs or after it failed. */
    outcome: text('outcome', { enum: ['cache', 'twin', 'lazy', 'ordinary', 'present'] }),
    /** Sentences (JSON list), oldest first. */
    reasons: text('reasons').notNull(),
    decidedUs: integer('decided_us').notNull(),
    updatedUs: integer('updated_us').notNull(),
  },
  (table) => [primaryKey({ columns: [table.uid, table.image] }), index('pod_images_cache').on(table.cacheId, table.image)],
);
