/** Rows of image resolutions (lazy or ordinary, with the reason). No rules. */
import { desc, eq, sql } from 'drizzle-orm';
import type { Database } from './database.ts';
import { resolutions } from './schema.ts';

export type ResolutionRow = typeof resolutions.$inferSelect;

export class ResolutionStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  get(subject: string): ResolutionRow | undefined {
    return this.database.orm.select().from(resolutions).where(eq(resolutions.subject, subject)).get();
  }

  /** Newest first. */
  list(limit: number): ResolutionRow[] {
    return this.database.orm.select().from(resolutions).orderBy(desc(resolutions.decidedUs)).limit(limit).all();
  }

  /** Writes or replaces a row, and keeps only the newest `keep` rows. */
  put(row: ResolutionRow, keep: number): void {
    const { subject, ...values } = row;
    this.database.transaction(() => {
      this.database.orm.insert(resolutions).values(row).onConflictDoUpdate({ target: resolutions.subject, set: values }).run();
      this.database.orm.run(
        sql`DELETE FROM resolutions WHERE subject IN (SELECT subject FROM resolutions ORDER BY decided_us DESC, subject LIMIT -1 OFFSET ${keep})`,
      );
    });
  }
}
