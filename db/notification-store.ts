/** Rows of notifications of finished conversions, and of their deliveries. No rules. */
import { and, asc, count, desc, eq, lt, lte, sql } from 'drizzle-orm';
import { convertDeliveries, convertNotifications } from './convert-schema.ts';
import type { Database } from './database.ts';

export type NotificationRow = typeof convertNotifications.$inferSelect;
export type DeliveryRow = typeof convertDeliveries.$inferSelect;

/** History: a thousand conversions told to two receivers. */
const MAX_DELIVERIES = 2000;

export class NotificationStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  insert(row: Omit<NotificationRow, 'id'>): number {
    return Number(this.database.orm.insert(convertNotifications).values(row).run().lastInsertRowid);
  }

  get(id: number): NotificationRow | undefined {
    return this.database.orm.select().from(convertNotifications).where(eq(convertNotifications.id, id)).get();
  }

  byName(name: string): NotificationRow | undefined {
    return this.database.orm.select().from(convertNotifications).where(eq(convertNotifications.name, name)).get();
  }

  list(): NotificationRow[] {
    return this.database.orm.select().from(convertNotifications).orderBy(asc(convertNotifications.id)).all();
  }

  count(): number {
    return this.database.orm.select({ n: count() }).from(convertNotifications).get()?.n ?? 0;
  }

  /** With its deliveries. */
  remove(id: number): void {
    this.database.orm.delete(convertNotifications).where(eq(convertNotifications.id, id)).run();
  }

  /** Adds a delivery to be made, and drops the oldest beyond the limit, made or not. */
  addDelivery(notificationId: number, event: string, nowUs: number): void {
    this.database.transaction(() => {
      const { orm } = this.database;
      orm.insert(convertDeliveries).values({ notificationId, event, state: 'WAITING', nextUs: nowUs, createdUs: nowUs }).run();
      orm.run(
        sql`DELETE FROM convert_deliveries WHERE id IN (SELECT id FROM convert_deliveries ORDER BY id DESC LIMIT -1 OFFSET ${MAX_DELIVERIES})`,
      );
    });
  }

  /** Deliveries whose time has come, by that time. */
  due(nowUs: number, limit: number): DeliveryRow[] {
    return this.database.orm
      .select()
      .from(convertDeliveries)
      .where(and(eq(convertDeliveries.state, 'WAITING'), lte(convertDeliveries.nextUs, nowUs)))
      .orderBy(asc(convertDeliveries.nextUs), asc(convertDeliveries.id))
      .limit(limit)
      .all();
  }

  /** When the next delivery is due; undefined when none waits. */
  nextDueUs(): number | undefined {
    return this.database.orm
      .select({ nextUs: convertDeliveries.nextUs })
      .from(convertDeliveries)
      .where(eq(convertDeliveries.state, 'WAITING'))
      .orderBy(asc(convertDeliveries.nextUs))
      .limit(1)
      .get()?.nextUs;
  }

  updateDelivery(id: number, values: Partial<Omit<DeliveryRow, 'id'>>): void {
    this.database.orm.update(convertDeliveries).set(values).where(eq(convertDeliveries.id, id)).run();
  }

  /** Newest first, those below `before`. */
  deliveries(options: { limit: number; before?: number }): DeliveryRow[] {
    const query = this.database.orm.select().from(convertDeliveries).$dynamic();
    if (options.before !== undefined) query.where(lt(convertDeliveries.id, options.before));
    return query.orderBy(desc(convertDeliveries.id)).limit(options.limit).all();
  }
}
