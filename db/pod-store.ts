/** Rows of pods and of what was decided for their images. No rules. Every method is synchronous. */
import { and, asc, desc, eq, sql } from 'drizzle-orm';
import type { Database } from './database.ts';
import { podImages, pods } from './pod-schema.ts';

export type PodRow = typeof pods.$inferSelect;
export type PodImageRow = typeof podImages.$inferSelect;

export class PodStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  get(uid: string): PodRow | undefined {
    return this.database.orm.select().from(pods).where(eq(pods.uid, uid)).get();
  }

  /** Pods of one name, newest first: a name is used again when a pod is replaced. */
  byName(namespace: string, name: string, limit: number): PodRow[] {
    return this.database.orm
      .select()
      .from(pods)
      .where(and(eq(pods.namespace, namespace), eq(pods.name, name)))
      .orderBy(desc(pods.firstSeenUs), asc(pods.uid))
      .limit(limit)
      .all();
  }

  /** Last seen first. */
  list(limit: number): PodRow[] {
    return this.database.orm.select().from(pods).orderBy(desc(pods.lastSeenUs), asc(pods.uid)).limit(limit).all();
  }

  /** Inserts or replaces a pod, and keeps only the `keep` pods that were seen last. */
  put(row: PodRow, keep: number): void {
    const { uid, ...values } = row;
    this.database.transaction(() => {
      this.database.orm.insert(pods).values(row).onConflictDoUpdate({ target: pods.uid, set: values }).run();
      this.database.orm.run(
        sql`DELETE FROM pods WHERE uid <> ${uid} AND uid IN (SELECT uid FROM pods ORDER BY last_seen_us DESC, uid LIMIT -1 OFFSET ${keep})`,
      );
    });
  }

  image(uid: string, image: string): PodImageRow | undefined {
    return this.database.orm
      .select()
      .from(podImages)
      .where(and(eq(podImages.uid, uid), eq(podImages.image, image)))
      .get();
  }

  /** In the order in which they were decided. */
  images(uid: string): PodImageRow[] {
    return this.database.orm
      .select()
      .from(podImages)
      .where(eq(podImages.uid, uid))
      .orderBy(asc(podImages.decidedUs), asc(podImages.image))
      .all();
  }

  putImage(row: PodImageRow): void {
    const { uid: _, image: __, ...values } = row;
    this.database.orm
      .insert(podImages)
      .values(row)
      .onConflictDoUpdate({ target: [podImages.uid, podImages.image], set: values })
      .run();
  }

  /** True when some pod was given this image from this cache. */
  wasServed(cacheId: string, image: string): boolean {
    return (
      this.database.orm
        .select({ uid: podImages.uid })
        .from(podImages)
        .where(and(eq(podImages.cacheId, cacheId), eq(podImages.image, image), eq(podImages.decision, 'pinned-cache')))
        .limit(1)
        .get() !== undefined
    );
  }
}
