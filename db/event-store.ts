/** What happened, for people: an append-only list that keeps its newest rows. */
import { desc, eq, lte } from 'drizzle-orm';
import type { Database } from './database.ts';
import { events } from './schema.ts';

export type EventRow = typeof events.$inferSelect;

/** A day of pulls on a busy node; beyond it the journal is the place to look. */
const MAX_EVENTS = 10_000;

export class EventStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  /** Appends one event and drops the oldest beyond the limit. */
  append(event: Omit<EventRow, 'id'>): void {
    this.database.transaction(() => {
      const { lastInsertRowid } = this.database.orm.insert(events).values(event).run();
      this.database.orm
        .delete(events)
        .where(lte(events.id, Number(lastInsertRowid) - MAX_EVENTS))
        .run();
    });
  }

  /** Newest first, all or those of one subject. */
  list(limit: number, subject?: string): EventRow[] {
    const query = this.database.orm.select().from(events).$dynamic();
    if (subject !== undefined) query.where(eq(events.subject, subject));
    return query.orderBy(desc(events.id)).limit(limit).all();
  }
}
